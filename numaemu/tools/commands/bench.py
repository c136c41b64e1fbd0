"""numaemu bench"""

import click

import numaemu
from numaemu.tools.options import check_writable, write_json
from numaemu.tools.summary import report
from numaemu.tools.summary.progress import Progress


@click.command("bench")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Show the median of so many.")
@click.option("--json", "json_path", metavar="FILE", help="Write the figures there.")
def command(rounds, json_path):
    """How fast the emulator is on this host, as ratios against the host itself."""
    from numaemu.tools.bench import measure

    check_writable(json_path)
    with Progress() as progress:
        figures = measure(progress, rounds)
    report.print_bench(figures)
    if json_path:
        write_json({"numaemu": numaemu.__version__, "bench": figures}, json_path)
