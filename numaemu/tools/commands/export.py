"""numaemu export DIR"""

import pathlib

import click

from numaemu.tools.options import booted, machine_options
from numaemu.tools.summary import report
from numaemu.windows.export import prepare


@click.command("export")
@click.argument("directory", metavar="DIR")
@machine_options
def command(directory, **options):
    """Boot a machine and write a snapshot of its /proc and /sys below DIR, for tools that take a root.

    As lstopo --input DIR --if fsroot, lscpu -s DIR, lsmem -s DIR. In a workload, machine.export(dir) does the same at any
    moment.
    """
    prepare(pathlib.Path(directory))  # what is wrong with it is told before a machine boots
    with booted(options) as machine:
        print(f"{report.plural(machine.export(directory), 'file')} in {directory}")
