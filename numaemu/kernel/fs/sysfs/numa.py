"""NUMA balancing and memory tiers as files: /sys/kernel/debug/sched/numa_balancing (Linux's kernel/sched/debug.c), /sys/kernel/mm/numa
and /sys/devices/virtual/memory_tiering (mm/memory-tiers.c).
"""

import functools

from numaemu.kernel.boot import NUMA_BALANCING_DEBUGFS
from numaemu.kernel.fs.sysfs.sysctl import invalid, kick_cpus, strtoul
from numaemu.kernel.mm.numa.memory_tiers import tiers_of
from numaemu.spec.machine_file import UINT_MAX
from numaemu.spec.units import list_text

DEBUGFS = "/sys/kernel/debug/sched/numa_balancing"
DEMOTION_ENABLED = "/sys/kernel/mm/numa/demotion_enabled"
TIERS = "/sys/devices/virtual/memory_tiering"
TRUE, FALSE = (
    ("1", "y", "Y", "t", "T", "on", "On", "ON", "true"),
    ("0", "n", "N", "f", "F", "off", "Off", "OFF", "false"),
)
AT_LEAST_1 = ("numa_scan_size_mb", "numa_scan_period_max_ms")


def show(system, word):
    return f"{getattr(system.machine, word)}\n"


def store(system, text, word):
    """An unsigned number; what the scanner divides by is not 0."""
    value, least = strtoul(text.strip()), int(word in AT_LEAST_1)
    if value is None or not least <= value <= UINT_MAX:
        name = NUMA_BALANCING_DEBUGFS[word][0]
        raise invalid(f"{DEBUGFS}/{name} is {text.strip()!r}, must be {least} to {UINT_MAX}")
    setattr(system.machine, word, value)
    kick_cpus(system.machine)


def show_demotion_enabled(system):
    return "true\n" if system.machine.demotion_enabled else "false\n"


def store_demotion_enabled(system, text):
    """kstrtobool"""
    word = text.strip()
    if word not in TRUE + FALSE:
        raise invalid(f"{DEMOTION_ENABLED} is {word!r}, must be true or false")
    system.machine.demotion_enabled = int(word in TRUE)


FILES = {
    DEMOTION_ENABLED: (show_demotion_enabled, store_demotion_enabled),
    **{
        f"{DEBUGFS}/{name}": (functools.partial(show, word=word), functools.partial(store, word=word))
        for word, (name, _default) in NUMA_BALANCING_DEBUGFS.items()
    },
}


def files(system):
    """{path: text} of the memory tiers: which nodes each has."""
    return {
        f"{TIERS}/memory_tier{tier}/nodelist": list_text(nodes) + "\n"
        for tier, nodes in tiers_of(system.machine).items()
    }
