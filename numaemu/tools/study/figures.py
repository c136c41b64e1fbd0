"""One run of a workload as one flat row: `numaemu.figures(workload, …)`, what a sweep collects."""

import contextlib
import os
import sys
import types

from numaemu.errors import ConfigError
from numaemu.spec.topology import load_topology
from numaemu.tools.study import settings as texts

OWN = ("args", "seed")
DEEPEST = 3  # levels of a result that become columns of their own


def figures(workload, settings=None, *, args=(), seed=0, flat=True, **keywords):
    """Run main(machine) of a workload once, quietly, and return its figures.

    workload   a .py file, the name of one that comes along, or a function main(machine)
    settings   dict of what is set, as {"nodes": 4, "vm.swappiness": 10, "args.pages": 100}: keys of a machine, sysctls, `seed`, and
               options of the workload (args.pages=100 is --pages 100). Keywords are the same, for names without a dot.
    args       what the workload finds in sys.argv[1:]
    flat       a row: emulated_ms, wall_s, measures, vmstat.* and result.*; False: all figures, as the JSON of a run has them
    """
    given = {"seed": seed} | dict(settings or {}) | keywords
    run = run_with(workload, given, args, "figures")
    return flattened(run) if flat else run


def run_with(workload, given, args=(), where="settings", watchers=(), lockstep=None):
    """All figures of one run. `watchers`: what else looks at the machine while it runs; `lockstep`: True, or as the workload says."""
    for key in given:
        texts.check_key(key, OWN, where)
    words = [
        *args,
        *(word for key, value in given.items() if key.startswith("args.") for word in option(key[5:], value)),
    ]
    with workload_of(workload, [str(word) for word in words]) as (module, name):
        topology = texts.topology_of(given, stated(module), where)
        if lockstep or getattr(module, "LOCKSTEP", False):
            topology = load_topology(topology, lockstep=True)
        return measured(module, topology, name, given.get("seed", 0), watchers)


def option(name, value):
    """A workload's option on its command line."""
    return [f"--{name}"] if value is True else [] if value is False else [f"--{name}", str(value)]


def stated(module):
    """The machine that a workload states itself."""
    from numaemu.tools import cli

    machine = getattr(module, "MACHINE", None)
    return None if machine is None else cli.stated_topology(machine, getattr(module, "__file__", "."))


@contextlib.contextmanager
def workload_of(workload, args):
    """(module, name), with sys.argv as the workload expects it; sys.path and sys.argv are the same again afterwards."""
    from numaemu.tools import cli

    saved = sys.argv, list(sys.path)
    try:
        if callable(workload):
            name = getattr(workload, "__name__", "main")
            sys.argv = [name, *args]
            yield types.SimpleNamespace(main=workload), name
            return
        path = cli.workload_path(os.fspath(workload))
        sys.argv = [os.fspath(workload), *args]
        sys.modules.pop(cli.module_name(path), None)
        yield cli.load_workload(path), os.fspath(workload)
    finally:
        sys.argv, sys.path[:] = saved


def measured(module, topology, name, seed, watchers=()):
    """One run: its figures; what the workload raises comes as it is."""
    from numaemu.tools import cli

    cli.seed_all(seed)
    options = types.SimpleNamespace(
        quiet=True, seed=seed, workload=name, buddyinfo=None, pagetypeinfo=None, mount_dir=None, check=False
    )
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return cli.run_workload(module, topology, options, watchers=watchers)
    except cli.WorkloadRaised as raised:
        raise raised.error from None


def flattened(run):
    """A run as a row."""
    from numaemu.tools.study.compare import measures
    from numaemu.tools.summary.report import jsonable

    names = {key: key.replace("%", "pct").strip().replace(" ", "_") for key in measures(run)}
    row = {names[key]: value for key, value in measures(run).items()} | {
        "emulated_ns": run["emulated_ns"],
        "seed": run["seed"],
    }
    row |= {f"vmstat.{name}": value for name, value in run["vmstat"].items()}
    return row | columns("result", jsonable(run["result"]))


def columns(name, value, depth=0):
    """{name: scalar} of a result, as far as it is made of scalars and dicts of them."""
    if isinstance(value, dict) and depth < DEEPEST:
        return {
            key: one
            for part, inner in value.items()
            for key, one in columns(f"{name}.{part}", inner, depth + 1).items()
        }
    return {name: value} if isinstance(value, (bool, int, float, str)) else {}


def check_workload(workload):
    """The path of a workload's file, or ConfigError."""
    from numaemu.tools import cli

    path = cli.workload_path(workload)
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{workload} cannot be read")
    return path
