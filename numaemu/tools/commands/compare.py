"""numaemu compare A.json B.json"""

import os

import click

from numaemu.tools.options import check_writable, write_json


@click.command("compare")
@click.argument("paths", metavar="A.json B.json", nargs=-1, required=True)
@click.option("--json", "json_path", metavar="FILE", help="Write the measures there.")
def command(paths, json_path):
    """Show runs side by side that 'numaemu run --json' has written: time, TLB, faults, placement, counters that differ."""
    from numaemu.tools.study import compare

    if len(paths) < 2:
        raise click.UsageError("compare: name two files at least")
    check_writable(json_path)
    runs = [compare.load(path) for path in paths]
    names = [os.path.basename(path).removesuffix(".json") for path in paths]
    if len(set(names)) < len(names):
        names = list(paths)
    compare.print_comparison(names, runs)
    if json_path:
        write_json({name: compare.measures(run) for name, run in zip(names, runs)}, json_path)
