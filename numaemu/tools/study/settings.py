"""Settings as people write them in a word, 'nodes=4 vm.swappiness=10 policy=bind:0', for commands that run things several times.

A key is one of a machine's options, a sysctl (it has a dot), `seed`, or whatever else the command takes.
"""

import re
import shlex

from numaemu.errors import ConfigError
from numaemu.spec.machine_file import KNOWN_SYSCTLS, LOCKSTEP_KEYS
from numaemu.spec.machine_file import TABLES as KEYS_OF
from numaemu.spec.topology import load_topology
from numaemu.spec.units import nearest, shown

MACHINE = (
    "machine",
    "nodes",
    "cpus_per_node",
    "memory_per_node",
    "memory_only_nodes",
    "paging",
    "movablecore",
    "kernelcore",
    "low_memory",
    *LOCKSTEP_KEYS,
)
TABLES = tuple(
    table for table in KEYS_OF if table != "sysctl"
)  # of a machine file: kernel.transparent_hugepage is no sysctl
TIERING = "numaemu.tiering"  # the same as kernel.tiering
WHOLE = ("nodes", "cpus_per_node", "memory_only_nodes", "seed", "quantum_ns", "schedule_seed")


def value_of(key, text):
    """A value as the key takes it: whole numbers where only these make sense, or where a text is one."""
    if re.fullmatch(r"-?\d{1,20}", text):
        return int(text)
    if key in WHOLE:
        raise ConfigError(f"{key} is {shown(text)}, must be a whole number")
    return {"true": True, "false": False}.get(text, text)


def check_key(key, others, where):
    """Raise ConfigError for a key that nobody knows."""
    table, dot, _ = key.partition(".")
    if key in (*MACHINE, *KNOWN_SYSCTLS, *others, TIERING) or dot and (table in TABLES or table in others):
        return
    known = [*MACHINE, *KNOWN_SYSCTLS, *others]
    raise ConfigError(f"{where}: unknown key {shown(key)}{nearest(key, known)}")


def parse(text, others=(), where="settings"):
    """{key: value} of 'KEY=VALUE KEY=VALUE'; a dash in a key is an underscore."""
    found = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{where} is {shown(text)}: {str(error).lower()}") from None
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"{where} has {shown(word)}, must be KEY=VALUE")
        key = key if "." in key else key.replace("-", "_")
        check_key(key, others, where)
        found[key] = value_of(key, value)
    return found


def topology_of(settings, base=None, where="settings"):
    """The machine that settings describe: `base` (a Topology or whatever load_topology takes), changed by them."""
    keywords = {key: settings[key] for key in MACHINE[1:] if key in settings}
    for key, value in settings.items():
        table, dot, name = key.partition(".")
        if key in KNOWN_SYSCTLS:
            keywords.setdefault("sysctl", {})[key] = value
        elif key == TIERING:
            keywords.setdefault("kernel", {})["tiering"] = value
        elif dot and table in TABLES:
            keywords.setdefault(table, {})[name] = value
    if settings.get("seed"):
        keywords.setdefault("kernel", {})["random_seed"] = settings["seed"]
    return load_topology(settings.get("machine", base), where=where, **keywords)


def text_of(settings):
    """Settings as one writes them."""
    return " ".join(f"{key}={value}" for key, value in settings.items()) or "as given"
