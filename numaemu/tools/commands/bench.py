"""numaemu bench"""

import click

import numaemu
from numaemu.tools.options import check_writable, write_json
from numaemu.tools.summary import report
from numaemu.tools.summary.progress import Progress


@click.command("bench")
@click.option("--json", "json_path", metavar="FILE", help="Write the figures there.")
def command(json_path):
    """How fast the emulator is on this host, as ratios against the host itself."""
    from numaemu.tools.bench import measure

    check_writable(json_path)
    with Progress() as progress:
        figures = measure(progress)
    report.print_bench(figures)
    if json_path:
        write_json({"numaemu": numaemu.__version__, "bench": figures}, json_path)
