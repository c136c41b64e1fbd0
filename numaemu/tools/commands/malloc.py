"""numaemu malloc"""

import click

from numaemu.spec.topology import load_topology
from numaemu.tools.options import check_writable, write_json
from numaemu.tools.summary.progress import Progress


@click.command("malloc")
@click.argument("traces", metavar="TRACE…", nargs=-1, required=True)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    help="A kind of heap; repeatable. All that have the options if none is given.",
)
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the heap, as fit=best; repeatable."
)
@click.option(
    "--machine", metavar="NAME|FILE.toml", help="A preset or a machine file. One node of 512 MiB if not given."
)
@click.option("--json", "json_path", metavar="FILE", help="Write a list of rows there.")
def command(traces, kinds, options, machine, json_path):
    """Replay requests to malloc on heaps in emulated memory, and compare the kinds of heaps.

    A TRACE is a file of the public malloc lab (.rep), or what ltrace or mtrace has written. The exit status is 1 if a kind
    has lost a byte, run out of memory or left a heap that does not check.
    """
    from numaemu.tools import cli
    from numaemu.tools.traces.malloc import play_all, print_rows

    check_writable(json_path)
    given = {} if machine else {"nodes": 1, "cpus_per_node": 1, "memory_per_node": "512MiB"}
    topology = load_topology(machine, where="command line", **given)
    with Progress() as progress:
        rows = play_all(traces, kinds, options, lambda: cli.boot(topology, progress), progress.say)
    print_rows(rows)
    if json_path:
        write_json(rows, json_path)
    return cli.DONE if all(row["valid"] for row in rows) else cli.RAISED
