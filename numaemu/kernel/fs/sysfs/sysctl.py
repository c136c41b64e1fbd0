"""Settings of a running machine under /proc/sys and /sys/kernel/mm: Linux's kernel/sysctl.c and the handlers in mm/.

They live in the coordinator, the only process that reads or writes /proc and /sys. What other processes must know
stands in shared memory as well and is written there by the handlers below: watermarks and reserves in the zones,
max_map_count and the interleave weights in the machine. Boot has set these from the same values.
"""

import collections
import errno
import re
import time

from numaemu.compiler.atomic import exchange, fetch_or
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.boot import (
    COMPACTION_SYSCTLS,
    DIRTY_DEFAULTS,
    LOWMEM_RESERVE_RATIO,
    NODE_RECLAIM_SYSCTLS,
    OVERCOMMIT_RATIO,
    PROMOTE_RATE_LIMIT,
    SCHED_BASE_SLICE_NS,
    WATERMARK_BOOST_FACTOR,
    WATERMARK_SCALE_FACTOR,
    calculate_min_free_kbytes,
    setup_dirty_limits,
    setup_node_reclaim,
    setup_per_zone_lowmem_reserve,
    setup_per_zone_pageset,
    setup_per_zone_wmarks,
)
from numaemu.kernel.include.mm_types import present_cpus
from numaemu.kernel.include.mmzone import KCOMPACTD, node_t
from numaemu.kernel.include.vmstat import PGPROMOTE_CANDIDATE, node_page_state
from numaemu.kernel.mm.numa.memory_tiers import NUMA_BALANCING_MEMORY_TIERING
from numaemu.kernel.mm.swap.swapfile import swap_of
from numaemu.spec.machine_file import INT_MAX, KNOWN_SYSCTLS, MIN_HIGH_FRACTION
from numaemu.spec.param import MAX_MAP_COUNT

DEFAULTS = {  # Linux 6.12; min_free_kbytes is calculated
    "vm.watermark_scale_factor": WATERMARK_SCALE_FACTOR,
    "vm.watermark_boost_factor": WATERMARK_BOOST_FACTOR,
    "vm.percpu_pagelist_high_fraction": 0,
    "vm.lowmem_reserve_ratio": LOWMEM_RESERVE_RATIO,
    "vm.max_map_count": MAX_MAP_COUNT,
    "vm.overcommit_memory": 0,  # OVERCOMMIT_GUESS
    "vm.overcommit_ratio": OVERCOMMIT_RATIO,
    "vm.overcommit_kbytes": 0,
    "vm.swappiness": 60,  # mm/vmscan.c
    "vm.page-cluster": 3,  # mm/swap.c
    **{f"vm.{name}": value for name, value in NODE_RECLAIM_SYSCTLS.items()},
    "kernel.numa_balancing": 0,  # Linux: 1 on a machine of several nodes
    "kernel.numa_balancing_promote_rate_limit_MBps": PROMOTE_RATE_LIMIT,
    "kernel.randomize_va_space": 0,  # Linux: 2
    "kernel.sched_base_slice_ns": SCHED_BASE_SLICE_NS,
    **{f"vm.{name}": value for name, value in DIRTY_DEFAULTS.items()},
    "vm.panic_on_oom": 0,
    "vm.oom_kill_allocating_task": 0,
    "vm.oom_dump_tasks": 1,
    **{f"vm.{name}": value for name, value in COMPACTION_SYSCTLS.items()},
}
OVERCOMMIT = (
    "overcommit_memory",
    "overcommit_ratio",
    "overcommit_kbytes",
    "admin_reserve_kbytes",
    "user_reserve_kbytes",
)
DIRTY_PAIRS = (("dirty_ratio", "dirty_bytes"), ("dirty_background_ratio", "dirty_background_bytes"))
WEIGHTS = "/sys/kernel/mm/mempolicy/weighted_interleave"
KMSG_LINES = 10_000  # of the kernel's log; assumed
_NUMBER = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")

LOCKSTEP_BOOT_TIME = 1_735_689_600  # 2025-01-01 00:00 UTC


class Tracing:
    """What tracefs remembers: the events that were chosen, if tracing is on, the names of tasks by pid."""

    def __init__(self):
        self.mask, self.on, self.names = 0, True, {}


class System:
    """What /proc and /sys show and set: the machine, its shape, the settings in force."""

    def __init__(self, machine, topology):
        self.machine, self.topology = machine, topology
        self.kmsg = collections.deque(maxlen=KMSG_LINES)
        # btime of /proc/stat: by the host's clock, or where a run is to be repeated always the same
        self.boot_time = LOCKSTEP_BOOT_TIME if topology.lockstep else int(time.time())
        self.avenrun, self.load_seen_ns, self.load_busy_ns = [0, 0, 0], 0, 0  # proc/stat.py
        self.shape = None  # proc/tree.py
        self.trace = Tracing()
        self.writer = 0  # number of the task that writes, 0: none
        self.drain_all = lambda: None  # the coordinator's: unused pages go back, as a generator of its steps
        self.compact_nodes = None  # the coordinator's: compact these nodes, as a generator of its steps
        self.wake_kthreads = lambda node: None  # likewise: ring a node's kernel threads
        self.damon, self.damon_changed = None, lambda: None  # damon.py; the coordinator's: a kdamond has begun or ended
        self.cgroups, self.call_task = None, None  # the groups by number (cgroup.py); an operation for a task, a Future
        self.sysctl = {
            "vm.min_free_kbytes": calculate_min_free_kbytes(machine),
            **DEFAULTS,
            **reserves(machine),
            **topology.sysctl,
        }
        for ratio, nbytes in DIRTY_PAIRS:
            if self.sysctl[f"vm.{nbytes}"]:
                self.sysctl[f"vm.{ratio}"] = 0
        given = tuple(self.sysctl["vm.lowmem_reserve_ratio"])
        self.sysctl["vm.lowmem_reserve_ratio"] = given + LOWMEM_RESERVE_RATIO[len(given) :]


def reserves(machine):
    """init_user_reserve and init_admin_reserve, as boot has calculated them."""
    return {f"vm.{name}": getattr(machine, name) for name in ("user_reserve_kbytes", "admin_reserve_kbytes")}


def set_overcommit(system):
    """What may be promised: single words that __vm_enough_memory reads; an old value is an earlier moment's."""
    for name in OVERCOMMIT:
        setattr(system.machine, name, system.sysctl[f"vm.{name}"])


def set_overcommit_ratio(system):
    """overcommit_ratio_handler: the limit in kB means nothing any more."""
    system.sysctl["vm.overcommit_kbytes"] = 0
    set_overcommit(system)


def set_overcommit_kbytes(system):
    """overcommit_kbytes_handler: the ratio means nothing any more."""
    system.sysctl["vm.overcommit_ratio"] = 0
    set_overcommit(system)


def invalid(text):
    """The OSError of a value that the kernel does not take."""
    return OSError(errno.EINVAL, text)


def strtoul(word):
    """A number as the kernel reads one, decimal, octal after 0 or hexadecimal after 0x; None if it is none."""
    match = _NUMBER.fullmatch(word)
    if match is None:
        return None
    sign, digits = match.group(1), match.group(2)[:100]  # of more digits: larger than anything that is taken
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    return int(sign + digits, base)


# -- /proc/sys -----------------------------------------------------------------------------------------------


def read_sysctl(system, key):
    """proc_dointvec: numbers between tabs."""
    value = system.sysctl[key]
    return "\t".join(str(v) for v in (value if isinstance(value, tuple) else (value,))) + "\n"


def lowmem_reserve_ratio(key, old, values):
    """lowmem_reserve_ratio_sysctl_handler: those not given stay as they are, anything below 1 switches one off."""
    if max(values) > INT_MAX:
        raise invalid(f"{key} is {max(values)}, must be at most {INT_MAX}")
    return tuple(max(v, 0) for v in values) + old[len(values) :]


def write_sysctl(system, key, text):
    """proc_dointvec_minmax, then what the setting's own handler does. Words after the last number are ignored."""
    old = system.sysctl[key]
    words = text.split()[: len(old) if isinstance(old, tuple) else 1]
    values = [strtoul(word) for word in words]
    if not values or None in values:
        raise invalid(f"{key}: {text.strip()!r} is not a number")
    if isinstance(old, tuple):
        value = lowmem_reserve_ratio(key, old, values)
    else:
        value, (least, most) = values[0], KNOWN_SYSCTLS[key]
        if not least <= value <= most:
            raise invalid(f"{key} is {value}, must be {least} to {most}")
    if key in CHECKS:
        CHECKS[key](key, value)
    system.sysctl[key] = value
    return HANDLERS[key](system) if key in HANDLERS else None


def set_watermarks(system):
    """min_free_kbytes_sysctl_handler, watermark_scale_factor_sysctl_handler.

    Watermarks belong to the node that owns the zone; the coordinator writes them here in its stead. That is as good:
    nobody writes them but this function, each is one aligned word, and CPUs and nodes compare free pages with it as
    a hint, so one that still sees the old mark (or min of now and low of before) errs as one that came a moment
    earlier, which Linux, too, lets happen: it takes only zone->lock to write them, and readers take none.
    """
    setup_per_zone_wmarks(system.machine, system.sysctl)


def set_lowmem_reserve(system):
    """setup_per_zone_lowmem_reserve; single words again, as in set_watermarks."""
    setup_per_zone_lowmem_reserve(system.machine, system.sysctl["vm.lowmem_reserve_ratio"])


def set_swappiness(system):
    system.machine.swappiness = system.sysctl["vm.swappiness"]


def set_randomize_va_space(system):
    """A single word, read by whoever makes an address space."""
    system.machine.randomize_va_space = system.sysctl["kernel.randomize_va_space"]


def set_sched_base_slice(system):
    """A single word, which CPUs look at the next time."""
    system.machine.sched_base_slice_ns = system.sysctl["kernel.sched_base_slice_ns"]


def kick_cpus(machine):
    """A setting of NUMA balancing has changed: CPUs in the middle of accesses look anew when to look at their tasks."""
    for number in present_cpus(machine):
        exchange(cpu_t.array(machine.cpus)[number], "event_at", 0)


def reset_memory_tiering(machine):
    """Promotion begins anew with the default threshold."""
    for node in range(machine.nr_nodes):
        pgdat = node_t.array(machine.nodes)[node]
        pgdat.nbp_threshold = 0
        pgdat.nbp_th_nr_cand = node_page_state(machine, node, PGPROMOTE_CANDIDATE)
        pgdat.nbp_th_start_ms = 0


def set_numa_balancing(system):
    """sysctl_numa_balancing: a single word, which CPUs look at between two accesses."""
    machine, mode = system.machine, system.sysctl["kernel.numa_balancing"]
    if mode & ~machine.numa_balancing & NUMA_BALANCING_MEMORY_TIERING:
        reset_memory_tiering(machine)
    machine.numa_balancing = mode
    kick_cpus(machine)


def set_promote_rate_limit(system):
    system.machine.numa_promote_rate_limit = system.sysctl["kernel.numa_balancing_promote_rate_limit_MBps"]


def set_page_cluster(system):
    swap_of(system.machine).page_cluster = system.sysctl["vm.page-cluster"]


def set_max_map_count(system):
    system.machine.max_map_count = system.sysctl["vm.max_map_count"]


def set_watermark_boost_factor(system):
    system.machine.watermark_boost_factor = system.sysctl["vm.watermark_boost_factor"]


def must_be_fraction(key, value):
    """percpu_pagelist_high_fraction_sysctl_handler"""
    if 0 < value < MIN_HIGH_FRACTION:
        raise invalid(f"{key} is {value}, must be 0 or at least {MIN_HIGH_FRACTION}")


def set_pagesets(system):
    """zone_set_pageset_high_and_batch of every zone: a single word again. Longer lists are given back at once, by a CPU that
    is in the middle of an operation at its next free.
    """
    setup_per_zone_pageset(system.machine, system.sysctl)
    return system.drain_all()


def set_compaction(system):
    for name in COMPACTION_SYSCTLS:
        setattr(system.machine, name, system.sysctl[f"vm.{name}"])


def set_compaction_proactiveness(system):
    """compaction_proactiveness_sysctl_handler: each kcompactd looks at its node's fragmentation score at once."""
    set_compaction(system)
    for node in range(system.machine.nr_nodes) if system.machine.compaction_proactiveness else ():
        pgdat = node_t.array(system.machine.nodes)[node]
        pgdat.proactive_compact_trigger = 1
        fetch_or(pgdat, "kthread_pending", KCOMPACTD)
        system.wake_kthreads(node)


def set_node_reclaim(system):
    """vm.zone_reclaim_mode, sysctl_min_unmapped_ratio_sysctl_handler, sysctl_min_slab_ratio_sysctl_handler: single words."""
    setup_node_reclaim(system.machine, system.sysctl)


def set_dirty_limits(system):
    """dirty_ratio_handler, dirty_bytes_handler and the like."""
    setup_dirty_limits(system.machine, system.sysctl)


def set_dirty(instead):
    """A limit in bytes stands for the one in per cent, and the other way round: the one not written becomes 0."""

    def handler(system):
        system.sysctl[instead] = 0
        set_dirty_limits(system)

    return handler


CHECKS = {"vm.percpu_pagelist_high_fraction": must_be_fraction}
# fmt: off
HANDLERS = {"kernel.sched_base_slice_ns": set_sched_base_slice,
            "vm.min_free_kbytes": set_watermarks, "vm.watermark_scale_factor": set_watermarks,
            "vm.watermark_boost_factor": set_watermark_boost_factor, "vm.percpu_pagelist_high_fraction": set_pagesets,
            "vm.lowmem_reserve_ratio": set_lowmem_reserve, "vm.max_map_count": set_max_map_count,
            "vm.swappiness": set_swappiness, "vm.page-cluster": set_page_cluster,
            "kernel.randomize_va_space": set_randomize_va_space, "kernel.numa_balancing": set_numa_balancing,
            "kernel.numa_balancing_promote_rate_limit_MBps": set_promote_rate_limit,
            "vm.overcommit_memory": set_overcommit, "vm.overcommit_ratio": set_overcommit_ratio,
            "vm.overcommit_kbytes": set_overcommit_kbytes, "vm.admin_reserve_kbytes": set_overcommit,
            "vm.user_reserve_kbytes": set_overcommit,
            **dict.fromkeys([f"vm.{name}" for name in COMPACTION_SYSCTLS], set_compaction),
            **dict.fromkeys([f"vm.{name}" for name in NODE_RECLAIM_SYSCTLS], set_node_reclaim),
            "vm.compaction_proactiveness": set_compaction_proactiveness,
            "vm.dirty_expire_centisecs": set_dirty_limits, "vm.dirty_writeback_centisecs": set_dirty_limits}
# fmt: on
HANDLERS |= {f"vm.{one}": set_dirty(f"vm.{other}") for pair in DIRTY_PAIRS for one, other in (pair, pair[::-1])}


def write_drop_caches(_system, text):
    """drop_caches_sysctl_handler: 1 page cache, 2 slab, 3 both, 4 no message."""
    words = text.split()
    value = strtoul(words[0]) if words else None
    if value is None or not 1 <= value <= 4:
        raise invalid(f"vm.drop_caches is {text.strip()!r}, must be 1 to 4")
    return ("drop_caches", value & 3) if value & 3 else None


def write_compact_memory(system, text):
    """sysctl_compaction_handler: 1 compacts every node. What comes back is done step by step by the coordinator."""
    words = text.split()
    if not words or strtoul(words[0]) != 1:
        raise invalid(f"vm.compact_memory is {text.strip()!r}, must be 1")
    return system.compact_nodes(range(system.machine.nr_nodes))


def refresh_stats(_system, _text=""):
    """vmstat_refresh: counters are added up whenever they are read, so nothing is left to fold."""
    return ""


# -- /sys/kernel/mm ------------------------------------------------------------------------------------------


def read_weight(system, node):
    """node_show of mm/mempolicy.c"""
    return f"{system.machine.il_weights[node]}\n"


def write_weight(system, node, text):
    """node_store: 1 to 255; 0 or nothing is the default again, which is 1."""
    value = strtoul(text.strip() or "0")
    if value is None or not 0 <= value <= 255:
        raise invalid(f"the interleave weight of node {node} is {text.strip()!r}, must be 1 to 255")
    system.machine.il_weights[node] = value or 1


def read_lru_gen(_system):
    """enabled_show of mm/vmscan.c: the classic LRU lists are the only ones there are."""
    return "0x0000\n"


def write_lru_gen(_system, text):
    if text.strip() not in ("0", "n", "N", "0x0000"):
        raise invalid(f"the multi-generational LRU is not there: {text.strip()!r}, must be 0")


def dmesg(system):
    """The kernel's log."""
    return "".join(line + "\n" for line in system.kmsg)


FILES = {  # path: (read, write), None: not allowed
    "/dev/kmsg": (dmesg, None),
    "/proc/sys/vm/compact_memory": (None, write_compact_memory),
    "/proc/sys/vm/drop_caches": (None, write_drop_caches),
    "/proc/sys/vm/stat_refresh": (refresh_stats, refresh_stats),
    "/sys/kernel/mm/lru_gen/enabled": (read_lru_gen, write_lru_gen),
}
SLICE = "kernel.sched_base_slice_ns"  # of debugfs in Linux
FILES["/sys/kernel/debug/sched/base_slice_ns"] = (
    lambda system: read_sysctl(system, SLICE),
    lambda system, text: write_sysctl(system, SLICE, text),
)
FILES |= {
    "/proc/sys/" + key.replace(".", "/"): (
        lambda system, key=key: read_sysctl(system, key),
        lambda system, text, key=key: write_sysctl(system, key, text),
    )
    for key in KNOWN_SYSCTLS
}
