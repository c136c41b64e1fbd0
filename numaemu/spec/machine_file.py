"""What a machine file may say: keys, limits, defaults, and the checks that turn tables into specifications.

Whatever is wrong ends in a ConfigError of one line: the thing, its value, the limit, the place.
"""

import os
import pathlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from numaemu.errors import ConfigError
from numaemu.spec.cache import CACHE_KEYS
from numaemu.spec.cmdline import parse_hugepages
from numaemu.spec.formats import FORMATS
from numaemu.spec.rates import DEFAULT_CPU, DEFAULT_LINK
from numaemu.spec.units import (
    GiB,
    KiB,
    MiB,
    TiB,
    check_list,
    check_table,
    decimal,
    format_size,
    parse_choice,
    parse_int,
    parse_size,
    shown,
)

# --- limits -------------------------------------------------------------------------------------
MAX_NODES = 64  # a process each; a node mask fits one 64-bit word
MAX_CPUS = 1024  # a process each; numbers are below it
MAX_MEMORY = 16 * TiB  # of the whole machine; 46 bits of physical address hold 64 TiB
MEMORY_BLOCK = 2 * MiB  # a pageblock (Linux pageblock_order 9): nodes and zones begin at one
MEMORY_PAGE = 4 * KiB  # memory comes in whole pages
MIN_MEMORY = 4 * MiB  # of the first node that has any: one buddy block of the highest order (10)
LOCAL_DISTANCE, MAX_DISTANCE = 10, 255  # one byte of the ACPI SLIT; 10 is the node itself
MAX_LATENCY_NS = 1_000_000  # 1 ms, far beyond any memory: catches a wrong unit
MAX_COST_NS = 1_000_000_000  # 1 s, likewise
MAX_DISK = 16 * TiB
MAX_DISK_LATENCY_US = 1_000_000  # 1 s
MAX_BANDWIDTH = 1 * TiB  # bytes a second
MAX_L1_ENTRIES, MAX_L2_ENTRIES = 1024, 16384  # bound the TLB arrays of a CPU
MAX_LOW_MEMORY = 4 * GiB  # where 32-bit physical addresses end; RAM beyond low_memory starts here
MAX_ZONES = 5  # DMA, DMA32, Normal, Movable, Device: values of vm.lowmem_reserve_ratio
INT_MAX = 2**31 - 1  # a sysctl is a C int
UINT_MAX = 2**32 - 1  # what kstrtouint takes
ULONG_MAX = 2**64 - 1  # what kstrtoul takes

# --- defaults -----------------------------------------------------------------------------------
PAGE_SIZES = dict.fromkeys(FORMATS, 4096)  # the paging schemes there are, with the page size of each
DEFAULT_PAGING = "x86-64-4level"
DEFAULT_NODES, DEFAULT_CPUS_PER_NODE, DEFAULT_MEMORY_PER_NODE = 2, 2, 512 * MiB
REMOTE_DISTANCE = 21  # what most two-socket servers report
DEFAULT_BANDWIDTH_MBS = 102400  # 100 GiB/s: of a memory-only node that is added to a machine with [bandwidth]; assumed
LOCAL_LATENCY_NS = 80  # assumed; grows with the distance where no latency is given
DEFAULT_LOW_MEMORY = 3 * GiB  # as QEMU's PC splits RAM (hw/i386/pc_piix.c)
DEFAULT_TLB = {  # geometry of Skylake's data TLB and STLB (Intel optimization manual)
    "l1": {"entries": 64, "ways": 4, "latency_ns": 0},  # part of the load itself
    "l2": {"entries": 1536, "ways": 12, "latency_ns": 3},  # 9 cycles at 3 GHz; assumed
}
DEFAULT_TLB_WORDS = {
    "asids": 0,  # address spaces whose entries may stay side by side; 0: every switch flushes
    "walk_cache": 0,  # entries of the cache of upper page-table entries; 0: every walk begins at the top
}
DEFAULT_COST = {  # ns
    "fault_ns": 500,  # entry, handling and return of a page fault; assumed
    "clear_page_ns": 150,  # zeroing one page; assumed
    "copy_page_ns": 300,  # copying one page; assumed
    "syscall_ns": 100,  # entry and return of a system call (gms.tf/on-the-costs-of-syscalls.html: 78 to 592)
    "shootdown_ns": 1000,  # the initiator of a shootdown: entering its lists, waiting; assumed
    "shootdown_target_ns": 500,  # the initiator, for each CPU that it interrupts; assumed
    "ipi_ns": 1000,  # a CPU that answers a shootdown, without the flush; assumed
    "flush_page_ns": 100,  # one page out of a TLB (INVLPG; arch/x86/mm/tlb.c)
    "flush_all_ns": 50,  # all of a TLB (a write to CR3; Molnar, linux-mm, June 2015)
    "fork_entry_ns": 25,  # one entry of a page table that fork copies (Zhao et al., On-demand-fork, EuroSys 2021)
    "fork_table_ns": 150,  # one page table that fork makes, beside its clearing; assumed
    "migrate_page_ns": 1000,  # moving one page, small or huge, beside its copying and flushing; assumed
    "lock_handover_ns": 200,  # a lock that another CPU had when ours came; assumed
    "compress_ns": 3000,  # zram: compressing one page; assumed
    "decompress_ns": 1500,  # zram: decompressing one page; assumed
    "numa_scan_ns": 20,  # NUMA balancing: one entry that the scanner looks at; assumed
    "context_switch_ns": 1000,  # another task gets the CPU, without what it then misses in the TLB; assumed
    "message_ns": 2000,  # a request to a node or the coordinator and its answer; assumed
}
LONG_MAX = (1 << 63) - 1
DEFAULT_QUANTUM_NS = 20_000  # how far a CPU may be ahead of another in lockstep: docs/guides/lockstep.md
MAX_QUANTUM_NS = 1_000_000_000  # 1 s
DEFAULT_DISK: dict[str, Any] = {  # of a machine's one disk: a SATA SSD; assumed
    "size": "64GiB",  # nothing is stored on the host but what is written
    "read_latency_us": 100,  # one request, before its bytes come
    "write_latency_us": 30,
    "bandwidth": "500MB/s",  # K, M, G as in sizes: powers of 1024
    "rotational": False,  # true: swap reads ahead by places on the disk, not by addresses
}
KNOWN_SYSCTLS = {  # lowest and highest value, as the sysctl tables of Linux 6.12 have them
    "vm.min_free_kbytes": (0, INT_MAX),
    "vm.watermark_scale_factor": (1, 3000),
    "vm.watermark_boost_factor": (0, INT_MAX),
    "vm.percpu_pagelist_high_fraction": (0, INT_MAX),  # 0, or at least MIN_HIGH_FRACTION
    "vm.lowmem_reserve_ratio": (0, INT_MAX),  # one number per zone
    "vm.overcommit_memory": (0, 2),
    "vm.overcommit_ratio": (0, INT_MAX),
    "vm.overcommit_kbytes": (0, LONG_MAX),
    "vm.admin_reserve_kbytes": (0, LONG_MAX),
    "vm.user_reserve_kbytes": (0, LONG_MAX),
    "vm.max_map_count": (0, INT_MAX),
    "vm.zone_reclaim_mode": (0, INT_MAX),
    "vm.min_unmapped_ratio": (0, 100),
    "vm.min_slab_ratio": (0, 100),
    "vm.swappiness": (0, 200),
    "vm.page-cluster": (0, 31),
    # 1: pages follow tasks, 2: hot pages leave slow tiers, 3: both; 4, which Linux takes too, scans and does nothing in the top tier
    "kernel.numa_balancing": (0, 4),
    "kernel.numa_balancing_promote_rate_limit_MBps": (0, INT_MAX),
    "kernel.randomize_va_space": (0, 2),
    "kernel.sched_base_slice_ns": (100_000, 1_000_000_000),  # MIN_ and MAX_SCHED_GRANULARITY_NS
    "vm.dirty_ratio": (0, 100),
    "vm.dirty_background_ratio": (0, 100),
    "vm.dirty_bytes": (2 * 4096, MAX_MEMORY),
    "vm.dirty_background_bytes": (1, MAX_MEMORY),
    "vm.dirty_expire_centisecs": (0, INT_MAX),
    "vm.dirty_writeback_centisecs": (0, INT_MAX),
    "vm.nr_hugepages": (0, LONG_MAX),
    "vm.nr_overcommit_hugepages": (0, LONG_MAX),
    "vm.panic_on_oom": (0, 2),
    "vm.oom_kill_allocating_task": (0, INT_MAX),
    "vm.oom_dump_tasks": (0, INT_MAX),
    "vm.extfrag_threshold": (0, 1000),
    "vm.compaction_proactiveness": (0, 100),
    "vm.compact_unevictable_allowed": (0, 1),
    "vm.lumpy_reclaim": (0, 1),  # our own: 1 evicts around cold pages as Linux up to 3.4 did, instead of compacting
}

SLAB_DEBUG_LETTERS = "FZPU-"  # Linux also has T (trace), A (failslab), O (no larger slabs)

# --- what a machine file may say ----------------------------------------------------------------
DEFAULT_KERNEL: dict[str, Any] = {  # the kernel's boot options
    "page_group_by_mobility": True,
    "slab_debug": "",
    "random_seed": 0,  # of what kernel.randomize_va_space draws
    "thread_size": "",  # of a kernel stack; "": 16KiB, with paging x86-32 8KiB
    "transparent_hugepage": "never",
    "tiering": "linux",  # the tiering policy: a name, or a file of one's own that ends in .py
    "hugepages": "",  # words of the command line that fill the pools: cmdline.py
}
TIERING = pathlib.Path(__file__).parents[1] / "tiering"  # the policies that are shipped
THREAD_SIZES = ("", "4KiB", "8KiB", "16KiB")
THP_OPTIONS = ("always", "madvise", "never")
ZONE_LAYOUTS = ("x86-64", "x86-32")  # DMA, DMA32, Normal; DMA, Normal up to 896 MiB, HighMem
MAX_MEMORY_32 = 3 * GiB  # 32 bits of physical address; the last GiB is the hole of devices
MAX_MEMORY_ARM64_39 = 252 * GiB  # the direct map has 256 GiB, holes included
MIN_HIGH_FRACTION = 8  # MIN_PERCPU_PAGELIST_HIGH_FRACTION

SIZE_KEYS = ("low_memory", "kernelcore", "movablecore")
LOCKSTEP_KEYS = ("lockstep", "quantum_ns", "schedule_seed", "schedule")
SCHEDULE = re.compile(r"clock|random:(\d{1,18})|priorities:(\d{1,18})(?::(\d{1,18}(?:,\d{1,18}){0,63}))?")
SCALAR_KEYS = ("name", "paging", "page_size", "zone_layout", *SIZE_KEYS, *LOCKSTEP_KEYS)
OTHER_TABLES = ("tlb", "link", "cpu", "sysctl", "cost", "kernel", "disk", "cache")
MACHINE_KEYS = (*SCALAR_KEYS, "node", "distance", "latency", "bandwidth", *OTHER_TABLES)
NODE_KEYS = ("memory", "cpus", "bandwidth")
NODE_KEYWORDS = ("nodes", "cpus_per_node", "memory_per_node", "memory_only_nodes", "bandwidth_per_node")
TABLES: dict[str, Collection[str]] = {  # with known keys
    **DEFAULT_TLB,
    "link": DEFAULT_LINK,
    "cpu": DEFAULT_CPU,
    "sysctl": KNOWN_SYSCTLS,
    "cost": DEFAULT_COST,
    "kernel": DEFAULT_KERNEL,
    "disk": DEFAULT_DISK,
    "cache": CACHE_KEYS,
}
MATRICES = {  # unit, lowest and highest value
    "distance": ("", LOCAL_DISTANCE, MAX_DISTANCE),
    "latency": (" ns", 1, MAX_LATENCY_NS),
    "bandwidth": (" MB/s", 1, INT_MAX),
}

KEYWORDS = (*NODE_KEYWORDS, *SCALAR_KEYS, *MATRICES, *TABLES, *DEFAULT_TLB_WORDS)  # of load_topology()

Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TlbSpec:
    """Geometry of one TLB level; a hit costs `latency_ns` on top of the load."""

    entries: int
    ways: int
    latency_ns: int

    @property
    def sets(self) -> int:
        return self.entries // self.ways


@dataclass(frozen=True)
class DiskSpec:
    """The disk: a request takes its latency, and its bytes the bandwidth."""

    size: int  # bytes
    read_latency_us: int
    write_latency_us: int
    bandwidth: int  # bytes a second
    rotational: bool  # BLK_FEAT_ROTATIONAL, as of a hard disk; of virtio-blk disks, too


@dataclass(frozen=True)
class NodeSpec:
    """One NUMA node; a node without CPUs is a memory-only one."""

    id: int
    memory_bytes: int
    cpus: tuple[int, ...]

    @property
    def span_bytes(self) -> int:
        """Its memory, with the hole behind the end up to the next pageblock, where the next node begins."""
        return -(-self.memory_bytes // MEMORY_BLOCK) * MEMORY_BLOCK


def default_distance(nr_nodes: int) -> list[list[int]]:
    nodes = range(nr_nodes)
    return [[LOCAL_DISTANCE if i == j else REMOTE_DISTANCE for j in nodes] for i in nodes]


def default_latency(distance: list[list[int]]) -> list[list[int]]:
    """ns of one load where the machine file says nothing: in proportion to the distance."""
    return [[round(LOCAL_LATENCY_NS * value / LOCAL_DISTANCE) for value in row] for row in distance]


# --- validation: from what a machine file says to what Topology holds ---------------------------
def parse_name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ConfigError.at(where, f"name is {shown(name)}, must be a line of text")
    return name


def parse_paging(paging: Any, where: str) -> str:
    return parse_choice(paging, tuple(PAGE_SIZES), "paging", where)


def parse_page_size(value: Any, paging: str, where: str) -> int:
    """The page size in bytes, which the paging scheme decides."""
    page_size = parse_size(value, "page_size", where)
    if page_size != PAGE_SIZES[paging]:
        limit = f"must be {PAGE_SIZES[paging]} with paging {paging!r}"
        raise ConfigError.at(where, f"page_size is {shown(page_size)}, {limit}")
    return page_size


def parse_sizes(machine: dict[str, Any], memory_bytes: int, where: str) -> dict[str, Any]:
    """The SIZE_KEYS; kernelcore and movablecore are parts of `memory_bytes`."""
    if "kernelcore" in machine and "movablecore" in machine:
        raise ConfigError.at(where, "kernelcore and movablecore are both given, must be one")
    sizes: dict[str, Any] = {"low_memory": DEFAULT_LOW_MEMORY}
    for key in SIZE_KEYS:
        sizes.setdefault(key)
        if key in machine:
            most = MAX_LOW_MEMORY if key == "low_memory" else memory_bytes
            limits = {"least": MEMORY_BLOCK, "most": most, "block": MEMORY_BLOCK}
            sizes[key] = parse_size(machine[key], key, where, **limits)
    return sizes


def parse_memory(value: Any, what: str, where: str, least: int = 0) -> int:
    """Bytes of one node; 0: it has none."""
    return parse_size(value, what, where, least=least, most=MAX_MEMORY, block=MEMORY_PAGE)


def parse_nodes(tables: Any, where: str) -> tuple[NodeSpec, ...]:
    """The [[node]] tables: memory in bytes and CPU numbers of each; no CPU belongs to two nodes."""
    if not isinstance(tables, (list, tuple)) or not tables:
        raise ConfigError.at(where, "node must be a list of tables, one [[node]] for each node")
    if len(tables) > MAX_NODES:
        raise ConfigError.at(where, f"machine has {len(tables)} nodes, must be at most {MAX_NODES}")
    nodes: list[NodeSpec] = []
    owner: dict[int, int] = {}  # CPU number to node
    for nid, table in enumerate(tables):
        check_table(table, NODE_KEYS, f"node {nid}", where)
        if "memory" not in table:
            raise ConfigError.at(where, f"node {nid}: memory is missing")
        memory_bytes = parse_memory(table["memory"], f"node {nid}: memory", where)
        cpus = parse_cpus(table.get("cpus", 0), nid, owner, where)
        nodes.append(NodeSpec(nid, memory_bytes, cpus))
    check_totals(nodes, owner, where)
    return tuple(nodes)


def parse_cpus(value: Any, nid: int, owner: dict[int, int], where: str) -> tuple[int, ...]:
    """CPU numbers of node `nid`, from a list, text as "0-3,8-11" or how many; enters them into `owner`."""
    numbers: list[int] | range
    what = f"node {nid}: cpu number"
    if isinstance(value, str):
        value = parse_cpulist(value, nid, where)
    if isinstance(value, (list, tuple, range)):
        numbers = [parse_int(cpu, what, where, 0, MAX_CPUS - 1) for cpu in value]
    else:
        first = max(owner, default=-1) + 1
        numbers = range(first, first + parse_int(value, f"node {nid}: cpus", where, 0, MAX_CPUS))
    for cpu in numbers:
        if cpu in owner:
            raise ConfigError.at(where, f"node {nid}: cpu {cpu} is already in node {owner[cpu]}")
        owner[cpu] = nid
    return tuple(sorted(numbers))


CPU_RANGE = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", re.ASCII)


def parse_cpulist(text: str, nid: int, where: str) -> list[int]:
    """The numbers of "0-3,8-11", as Linux writes them."""
    numbers: list[int] = []
    for part in text.split(",") if text.strip() else ():
        match = CPU_RANGE.fullmatch(part)
        if match is None:
            hint = "must be a whole number, a list of them, or text such as '0-3,8-11'"
            raise ConfigError.at(where, f"node {nid}: cpus is {shown(text)}, {hint}")
        low, high = (
            parse_int(int(end), f"node {nid}: cpu number", where, 0, MAX_CPUS - 1)
            for end in (match[1], match[2] or match[1])
        )
        if low > high:
            raise ConfigError.at(where, f"node {nid}: cpus has {shown(part.strip())}, must not run down")
        numbers += range(low, high + 1)
    return numbers


def check_totals(nodes: list[NodeSpec], owner: dict[int, int], where: str) -> None:
    """Limits that hold for the machine as a whole; `owner` has every CPU's node."""
    memory_bytes = sum(node.memory_bytes for node in nodes)
    if memory_bytes > MAX_MEMORY:
        text = f"machine has {format_size(memory_bytes)} of memory"
        raise ConfigError.at(where, f"{text}, must be at most {format_size(MAX_MEMORY)}")
    if not owner:
        raise ConfigError.at(where, "machine has no cpus, at least one node must have one")
    if len(owner) > MAX_CPUS:
        raise ConfigError.at(where, f"machine has {len(owner)} cpus, must be at most {MAX_CPUS}")
    parse_int(max(owner), "cpu number", where, 0, MAX_CPUS - 1)
    if 0 not in owner:
        raise ConfigError.at(where, "cpu 0 is in no node, a machine boots on it")
    first = next((node for node in nodes if node.memory_bytes), None)
    if first is None:
        raise ConfigError.at(where, "machine has no memory, at least one node must have some")
    if first.memory_bytes < MIN_MEMORY:
        text = f"node {first.id}: memory is {format_size(first.memory_bytes)}"
        limit = f"must be at least {format_size(MIN_MEMORY)}, being the first that has any"
        raise ConfigError.at(where, f"{text}, {limit}")


def parse_matrices(machine: dict[str, Any], nr_nodes: int, where: str) -> tuple[Matrix, Matrix, Matrix | None]:
    """Distance, latency in ns, and bandwidth in MB/s or None: with it the firmware tells how fast each node's memory is."""
    distance = default_distance(nr_nodes)
    if "distance" in machine:
        distance = parse_matrix(machine["distance"], "distance", nr_nodes, where)
    latency = default_latency(distance)
    if "latency" in machine:
        latency = parse_matrix(machine["latency"], "latency", nr_nodes, where)
    bandwidth = None
    if "bandwidth" in machine:
        bandwidth = tuple(map(tuple, parse_matrix(machine["bandwidth"], "bandwidth", nr_nodes, where)))
    return tuple(map(tuple, distance)), tuple(map(tuple, latency)), bandwidth


def parse_matrix(table: Any, key: str, nr_nodes: int, where: str) -> list[list[int]]:
    """[distance], [latency] or another matrix of a row per node, each value within the limits and the unit of MATRICES."""
    rows = check_table(table, ("matrix",), key, where).get("matrix", [])
    rows = check_list(rows, nr_nodes, f"{key}: matrix", where)
    rows = [check_list(rows[i], nr_nodes, f"{key}: row {i}", where) for i in range(nr_nodes)]
    unit, least, most = MATRICES[key]
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            what = f"node {i}: {key} to node {j}"
            row[j] = parse_int(value, what, where, least, most, unit)
        if key == "distance" and row[i] != LOCAL_DISTANCE:
            text = f"node {i}: distance to itself is {row[i]}, must be {LOCAL_DISTANCE}"
            raise ConfigError.at(where, text)
    return rows


def parse_tlb(level: str, table: Any, most: int, where: str) -> TlbSpec:
    """One level's table: entries, ways (a divisor of them), latency in ns; what is not given has its default."""
    table = DEFAULT_TLB[level] | check_table(table, DEFAULT_TLB[level], level, where)
    entries = parse_int(table["entries"], f"{level}: entries", where, 1, most)
    ways = parse_int(table["ways"], f"{level}: ways", where, 1, entries)
    latency = parse_int(table["latency_ns"], f"{level}: latency_ns", where, 0, MAX_LATENCY_NS)
    if entries % ways:
        text = f"{level}: entries is {entries}, must be a multiple of ways, {ways}"
        raise ConfigError.at(where, text)
    return TlbSpec(entries, ways, latency)


def parse_sysctl(table: Any, where: str) -> dict[str, int | tuple[int, ...]]:
    return {
        key: parse_sysctl_value(key, value, where)
        for key, value in check_table(table, KNOWN_SYSCTLS, "sysctl", where).items()
    }


def parse_sysctl_value(key: str, value: Any, where: str) -> int | tuple[int, ...]:
    """A setting of [sysctl] within its limits; vm.lowmem_reserve_ratio is several numbers."""
    least, most = KNOWN_SYSCTLS[key]
    small = isinstance(value, int) and 0 < value < MIN_HIGH_FRACTION
    if key == "vm.percpu_pagelist_high_fraction" and small and value is not True:
        limit = f"must be 0 or at least {MIN_HIGH_FRACTION}"
        raise ConfigError.at(where, f"sysctl: {key} is {value}, {limit}")
    if key != "vm.lowmem_reserve_ratio":
        return parse_int(value, f"sysctl: {key}", where, least, most)
    if isinstance(value, str):
        value = [decimal(word) for word in value.split()]
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_ZONES:
        limit = f"1 to {MAX_ZONES} whole numbers"
        raise ConfigError.at(where, f"sysctl: {key} is {shown(value)}, must be {limit}")
    return tuple(parse_int(ratio, f"sysctl: {key}", where, least, most) for ratio in value)


def parse_lockstep(machine: dict[str, Any], where: str) -> dict[str, Any]:
    """What says who runs when: `lockstep`, `quantum_ns`, `schedule_seed`."""
    lockstep = machine.get("lockstep", False)
    if not isinstance(lockstep, bool):
        raise ConfigError.at(where, f"lockstep is {shown(lockstep)}, must be true or false")
    quantum = parse_int(machine.get("quantum_ns", DEFAULT_QUANTUM_NS), "quantum_ns", where, 1, MAX_QUANTUM_NS)
    seed = parse_int(machine.get("schedule_seed", 0), "schedule_seed", where, 0, LONG_MAX)
    schedule = machine.get("schedule", "clock")
    if not isinstance(schedule, str) or not SCHEDULE.fullmatch(schedule):
        raise ConfigError.at(
            where,
            f"schedule is {shown(schedule)}, must be clock, random:SEED or priorities:SEED[:STEP,…], 64 steps at most",
        )
    if schedule != "clock" and not lockstep:
        raise ConfigError.at(where, f"schedule is {shown(schedule)}, must be clock where lockstep is false")
    return {"lockstep": lockstep, "quantum_ns": quantum, "schedule_seed": seed, "schedule": schedule}


def parse_cost(table: Any, where: str) -> dict[str, int]:
    """[cost]: ns of each of the kernel's works; what is not given has its default."""
    given = check_table(table, DEFAULT_COST, "cost", where)
    return {
        key: parse_int(given.get(key, default), f"cost: {key}", where, 0, MAX_COST_NS)
        for key, default in DEFAULT_COST.items()
    }


def parse_tiering(name: str, where: str) -> str:
    """A tiering policy: one that is shipped, by its name, or a file's whole path."""
    if name.endswith(".py"):
        if not os.path.isfile(name):
            raise ConfigError.at(where, f"kernel: tiering is {shown(name)}, which is no file")
        return os.path.abspath(name)
    shipped = sorted(p.stem for p in TIERING.glob("*.py") if p.stem not in ("__init__", "install"))
    return str(parse_choice(name, tuple(shipped), "kernel: tiering", where))


def parse_kernel(table: Any, paging: str, nr_nodes: int, where: str) -> dict[str, bool | int | str]:
    """[kernel]: boot options by name, each of its type and one of its choices."""
    options = DEFAULT_KERNEL | check_table(table, DEFAULT_KERNEL, "kernel", where)
    options["random_seed"] = parse_int(options["random_seed"], "kernel: random_seed", where, 0, LONG_MAX)
    for key, value in options.items():
        if not isinstance(value, type(DEFAULT_KERNEL[key])):
            kind = "true or false" if isinstance(DEFAULT_KERNEL[key], bool) else "text"
            raise ConfigError.at(where, f"kernel: {key} is {shown(value)}, must be {kind}")
    parse_hugepages(options["hugepages"], paging, nr_nodes, where)
    parse_choice(options["transparent_hugepage"], THP_OPTIONS, "kernel: transparent_hugepage", where)
    for letters in (block.partition(",")[0] for block in options["slab_debug"].split(";")):
        if wrong := set(letters.upper()) - set(SLAB_DEBUG_LETTERS):
            limit = f"must be of {SLAB_DEBUG_LETTERS}, then names of caches after a comma"
            raise ConfigError.at(where, f"kernel: slab_debug: option {min(wrong)!r}, {limit}")
    options["tiering"] = parse_tiering(options["tiering"], where)
    if options["thread_size"] not in THREAD_SIZES:
        limit = f"must be one of {', '.join(THREAD_SIZES[1:])}"
        raise ConfigError.at(where, f"kernel: thread_size is {shown(options['thread_size'])}, {limit}")
    return options


def parse_zone_layout(machine: dict[str, Any], memory_bytes: int, where: str) -> str:
    """How memory is cut into zones: that of x86-64, or of a 32-bit kernel, which the paging may demand and which bounds
    memory.
    """
    paging = machine.get("paging", DEFAULT_PAGING)
    layout = machine.get("zone_layout", "x86-32" if paging == "x86-32" else "x86-64")
    parse_choice(layout, ZONE_LAYOUTS, "zone_layout", where)
    if layout == "x86-32" and memory_bytes > MAX_MEMORY_32:
        text = f"machine has {format_size(memory_bytes)} of memory, must be at most"
        raise ConfigError.at(where, f"{text} {format_size(MAX_MEMORY_32)} with zone_layout 'x86-32'")
    if paging == "arm64-39" and memory_bytes > MAX_MEMORY_ARM64_39:
        text = f"machine has {format_size(memory_bytes)} of memory, must be at most"
        limit = f"{format_size(MAX_MEMORY_ARM64_39)} with paging 'arm64-39'"
        raise ConfigError.at(where, f"{text} {limit}")
    if paging == "x86-32" and layout != "x86-32":
        text = f"zone_layout is {shown(layout)}, must be 'x86-32' with paging 'x86-32'"
        raise ConfigError.at(where, text)
    return layout


def parse_disk(table: Any, where: str) -> DiskSpec:
    """[disk]: size in bytes, latencies in us, bandwidth in bytes per second."""
    given = DEFAULT_DISK | check_table(table, DEFAULT_DISK, "disk", where)
    least = {"least": MEMORY_BLOCK, "most": MAX_DISK, "block": 4096}
    size = parse_size(given["size"], "disk: size", where, **least)
    latency = {
        key: parse_int(given[key], f"disk: {key}", where, 0, MAX_DISK_LATENCY_US, " us")
        for key in ("read_latency_us", "write_latency_us")
    }
    bandwidth = given["bandwidth"]
    if isinstance(bandwidth, str):
        bandwidth = bandwidth.strip().removesuffix("/s")
    bandwidth = parse_size(bandwidth, "disk: bandwidth", where, least=1, most=MAX_BANDWIDTH)
    if not isinstance(given["rotational"], bool):
        raise ConfigError.at(where, f"disk: rotational is {shown(given['rotational'])}, must be true or false")
    return DiskSpec(size, bandwidth=bandwidth, rotational=given["rotational"], **latency)
