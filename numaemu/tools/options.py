"""What several commands of the command line share: the options that describe a machine, and files that are written."""

import contextlib
import json
import os
import re
import sys
import types

import click

from numaemu.errors import ConfigError
from numaemu.spec.topology import load_topology
from numaemu.spec.units import shown
from numaemu.tools.summary import report
from numaemu.tools.summary.progress import Progress

_MACHINE = (
    click.option("--machine", metavar="NAME|FILE.toml", help="A preset (see 'machine list') or a machine file."),
    click.option("--nodes", type=int, metavar="N", help="That many nodes like the machine's first."),
    click.option("--cpus-per-node", type=int, metavar="N", help="CPUs of each node that has any."),
    click.option("--memory-per-node", metavar="SIZE", help="Memory of each node, as 512MiB."),
    click.option(
        "--set", "settings", multiple=True, metavar="SYSCTL=VALUE", help="As vm.min_free_kbytes=4096; repeatable."
    ),
)


def machine_options(command):
    """The options of a command that boots a machine."""
    for option in reversed(_MACHINE):
        command = option(command)
    return command


def topology_of(options, source=None):
    """The machine that such options describe; `source` is changed by them, unless --machine names another."""
    if isinstance(options, dict):
        options = types.SimpleNamespace(**options)
    settings, seed = parse_settings(options.settings), getattr(options, "seed", 0)
    kernel = {"random_seed": seed} if seed else {}
    if "numaemu.tiering" in settings:
        kernel["tiering"] = str(settings.pop("numaemu.tiering"))
    return load_topology(
        options.machine if source is None else source,
        where="command line",
        nodes=options.nodes,
        cpus_per_node=options.cpus_per_node,
        memory_per_node=options.memory_per_node,
        sysctl=settings or None,
        kernel=kernel or None,
        lockstep=getattr(options, "lockstep", False) or None,
        schedule_seed=seed or None,
    )


def booted(options):
    """A machine of such options, booted, with the usual progress on stderr."""
    return booted_as(topology_of(options))


@contextlib.contextmanager
def booted_as(topology):
    """A machine of this topology, likewise."""
    from numaemu.tools import cli

    with Progress(quiet=not sys.stderr.isatty()) as progress:
        machine = cli.boot(topology, progress)
    with machine:
        yield machine


def parse_settings(settings):
    """{sysctl: value} from texts like vm.min_free_kbytes=4096."""
    table = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not key:
            raise ConfigError(f"--set is {shown(setting)}, must be sysctl=value")
        table[key] = int(value) if re.fullmatch(r"-?\d{1,20}", value) else value
    return table


def check_writable(path, option="--json"):
    """Before a long run rather than after it: can the file that an option names be written?"""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    place = path if os.path.exists(path) else folder
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(place, os.W_OK):
        raise ConfigError(f"{option} is {path}, which cannot be written")


def write_text(text, path, option):
    """Write a file that an option names."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{option} is {path}: {str(error.strerror).lower()}") from error


def write_json(figures, path):
    """Write figures as JSON."""
    write_text(json.dumps(report.jsonable(figures), indent=1) + "\n", path, "--json")
