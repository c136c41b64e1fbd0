"""numaemu shell"""

import os
import sys

import click

from numaemu.tools.options import booted, machine_options

NOTE = (
    "numaemu: /proc and /sys are those of the emulated machine {name} ({what}). Tools that look see it; what acts on processes "
    "(numactl's policies, migratepages, taskset, kill) acts on this host's, which are not the machine's tasks."
)
SNAPSHOT = "as they were at its start; pip install 'numaemu[mount]' makes them live"


@click.command("shell")
@machine_options
@click.option("-q", "--quiet", is_flag=True, help="Without the words at the start.")
@click.argument("words", metavar="[COMMAND…]", nargs=-1)
def command(quiet, words, **options):
    """Boot a machine and give a shell, or run COMMAND, where /proc and /sys are the machine's.

    So numactl -H, numastat -m, free, top, ps, vmstat, slabtop, pmap, lscpu, lsmem and lstopo show the machine. It needs user
    namespaces, and no root. The exit status is the command's.
    """
    from numaemu.windows import namespace
    from numaemu.windows.mount import is_there

    with booted(options) as machine:
        if not quiet:
            live = "live" if is_there() else SNAPSHOT
            print(NOTE.format(name=machine.topology.name, what=live), file=sys.stderr, flush=True)
        # the processor that lstopo asks by itself is the host's
        env = os.environ | {"HWLOC_COMPONENTS": "-x86", "NUMAEMU_MACHINE": machine.topology.name}
        return namespace.run(machine, list(words) or [os.environ.get("SHELL", "/bin/sh")], env)
