"""numaemu machine draw"""

import shutil
import sys

import click

from numaemu.spec.topology import load_topology
from numaemu.tools.options import check_writable, write_text


@click.command("draw")
@click.argument("source", metavar="[NAME|FILE.toml]", required=False)
@click.option("--svg", "svg_path", metavar="FILE", help="Write a picture there instead of drawing in the terminal.")
def command(source, svg_path):
    """Draw a preset or machine file: its nodes with their memory and CPUs, distances and latencies."""
    from numaemu.tools import drawing

    topology = load_topology(source)
    if svg_path is None:
        sys.stdout.write(drawing.text(topology, shutil.get_terminal_size().columns))
        return
    check_writable(svg_path, "--svg")
    write_text(drawing.svg(topology), svg_path, "--svg")
