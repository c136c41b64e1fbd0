"""numaemu machine import FILE|-|this"""

import sys

import click


@click.command("import")
@click.argument("source", metavar="FILE|DIR|-|this")
@click.option("--name", metavar="NAME", help="The machine's name; the file's if not given.")
@click.option(
    "--scale",
    type=click.FloatRange(1, 1e9),
    default=1.0,
    metavar="N",
    help="Divide all memory by N, as a host may not have as much.",
)
@click.option("--onto", metavar="NAME|FILE.toml", help="Keep this machine, with what the file says in its place.")
def command(source, name, scale, onto):
    """Write a machine file, on stdout, for a machine that another tool describes.

    FILE is hwloc's XML (lstopo machine.xml, versions 1 to 3), or what numactl --hardware, lscpu -p or Intel's mlc print; DIR holds
    a Linux system's proc and sys, and 'this' is the host. What a machine file cannot say, or what had to be changed, is said
    on stderr.
    """
    from numaemu.tools.importer.source import import_machine

    topology, notes = import_machine(source, name, scale, onto)
    for note in notes:
        print(f"numaemu: note: {note}", file=sys.stderr)
    sys.stdout.write(topology.to_toml())
