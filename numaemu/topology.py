"""What a machine is made of: nodes, CPUs, memory, distances, latencies, TLBs.

A machine comes from a preset, a machine file (TOML), a dict of the same shape, keyword arguments
or a mixture; load_topology() reads all of them.  Nothing is started here, and whatever is wrong
ends in a ConfigError of one line: the thing, its value, the limit, the place.
"""

import json
import os
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from numaemu.cmdline import HugePages, parse_hugepages
from numaemu.errors import ConfigError
from numaemu.formats import FORMATS
from numaemu.param import NR_ASIDS, WALK_CACHE_MAX
from numaemu.units import GiB, MiB, TiB, check_list, check_table, format_size, nearest, parse_int, parse_size

# --- limits -------------------------------------------------------------------------------------
MAX_NODES = 64  # a process each; a node mask fits one 64-bit word
MAX_CPUS = 256  # a process each
MAX_MEMORY = 16 * TiB  # of the whole machine; 46 bits of physical address hold 64 TiB
MEMORY_BLOCK = 2 * MiB  # memory comes in whole pageblocks (Linux pageblock_order 9)
MIN_NODE_MEMORY = 4 * MiB  # one buddy block of the highest order (10)
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

# --- defaults -----------------------------------------------------------------------------------
PAGE_SIZES = dict.fromkeys(FORMATS, 4096)  # the paging schemes there are, with the page size of each
DEFAULT_PAGING = "x86-64-4level"
DEFAULT_NODES, DEFAULT_CPUS_PER_NODE, DEFAULT_MEMORY_PER_NODE = 2, 2, 512 * MiB
REMOTE_DISTANCE = 21  # what most two-socket servers report
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
    "syscall_ns": 100,  # entry and return of a system call; assumed
    "shootdown_ns": 1500,  # the initiator, per shootdown request; assumed
    "ipi_ns": 1000,  # a CPU that answers a shootdown; assumed
    "compress_ns": 3000,  # zram: compressing one page; assumed
    "decompress_ns": 1500,  # zram: decompressing one page; assumed
    "context_switch_ns": 1000,  # another task gets the CPU, without what it then misses in the TLB; assumed
    "message_ns": 2000,  # a request to a node or the coordinator and its answer; assumed
}
LONG_MAX = (1 << 63) - 1
DEFAULT_DISK = {  # of a machine's one disk: a SATA SSD; assumed
    "size": "64GiB",  # nothing is stored on the host but what is written
    "read_latency_us": 100,  # one request, before its bytes come
    "write_latency_us": 30,
    "bandwidth": "500MB/s",  # K, M, G as in sizes: powers of 1024
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
    "vm.max_map_count": (0, 65530),  # what the index of an address space has room for
    "vm.zone_reclaim_mode": (0, INT_MAX),
    "vm.swappiness": (0, 200),
    "vm.page-cluster": (0, 31),
    "kernel.numa_balancing": (0, 4),
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
}

SLAB_DEBUG_LETTERS = "FZPU-"  # Linux also has T (trace), A (failslab), O (no larger slabs)

# --- what a machine file may say ----------------------------------------------------------------
DEFAULT_KERNEL = {  # the kernel's boot options
    "page_group_by_mobility": True,
    "slab_debug": "",
    "random_seed": 0,  # of what kernel.randomize_va_space draws
    "thread_size": "",  # of a kernel stack; "": 16KiB, with paging x86-32 8KiB
    "transparent_hugepage": "never",
    "hugepages": "",  # words of the command line that fill the pools: cmdline.py
}
THREAD_SIZES = ("", "4KiB", "8KiB", "16KiB")
THP_OPTIONS = ("always", "madvise", "never")
ZONE_LAYOUTS = ("x86-64", "x86-32")  # DMA, DMA32, Normal; DMA, Normal up to 896 MiB, HighMem
MAX_MEMORY_32 = 3 * GiB  # 32 bits of physical address; the last GiB is the hole of devices
MAX_MEMORY_ARM64_39 = 252 * GiB  # the direct map has 256 GiB, holes included
MIN_HIGH_FRACTION = 8  # MIN_PERCPU_PAGELIST_HIGH_FRACTION

SIZE_KEYS = ("low_memory", "kernelcore", "movablecore")
SCALAR_KEYS = ("name", "paging", "page_size", "zone_layout", *SIZE_KEYS)
MACHINE_KEYS = (*SCALAR_KEYS, "node", "distance", "latency", "tlb", "sysctl", "cost", "kernel", "disk")
NODE_KEYWORDS = ("nodes", "cpus_per_node", "memory_per_node", "memory_only_nodes")
TABLES = {  # with known keys
    **DEFAULT_TLB,
    "sysctl": KNOWN_SYSCTLS,
    "cost": DEFAULT_COST,
    "kernel": DEFAULT_KERNEL,
    "disk": DEFAULT_DISK,
}
MATRICES = {  # unit, lowest and highest value
    "distance": ("", LOCAL_DISTANCE, MAX_DISTANCE),
    "latency": (" ns", 1, MAX_LATENCY_NS),
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


@dataclass(frozen=True)
class NodeSpec:
    """One NUMA node; a node without CPUs is a memory-only one."""

    id: int
    memory_bytes: int
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """A machine as loaded.  Every instance from from_dict() and load_topology() is valid."""

    name: str
    paging: str
    page_size: int  # bytes
    nodes: tuple[NodeSpec, ...]
    distance: Matrix  # as numactl --hardware prints it
    latency_ns: Matrix  # of one load: CPU's node (row) by memory's node (column)
    l1: TlbSpec
    l2: TlbSpec
    asids: int  # address spaces the TLB keeps apart
    walk_cache: int  # entries of the page-walk cache
    sysctl: dict[str, int | tuple[int, ...]]
    cost: dict[str, int]  # ns, the keys of DEFAULT_COST
    kernel: dict[str, bool | int | str]  # boot options, the keys of DEFAULT_KERNEL
    zone_layout: str  # one of ZONE_LAYOUTS
    disk: DiskSpec
    low_memory: int  # bytes of RAM below 4 GiB of the physical address space
    kernelcore: int | None  # bytes kept out of ZONE_MOVABLE, as Linux's boot parameter
    movablecore: int | None  # bytes given to ZONE_MOVABLE; only one of the two is set

    @property
    def nr_nodes(self) -> int:
        return len(self.nodes)

    @property
    def nr_cpus(self) -> int:
        return sum(len(node.cpus) for node in self.nodes)

    @property
    def cpus(self) -> tuple[int, ...]:
        """All CPU numbers, ascending: 0 to nr_cpus - 1."""
        return tuple(range(self.nr_cpus))

    @property
    def memory_bytes(self) -> int:
        return sum(node.memory_bytes for node in self.nodes)

    @property
    def thread_size(self) -> int:
        """Bytes of a kernel stack, 0: as the paging has them."""
        text = self.kernel["thread_size"]
        return parse_size(text, "thread_size", "") if text else 0

    def node_of_cpu(self, cpu: int) -> int:
        for node in self.nodes:
            if cpu in node.cpus:
                return node.id
        raise ValueError(f"cpu {cpu} does not exist, cpus are 0 to {self.nr_cpus - 1}")

    def hugepages(self, where: str = "") -> HugePages:
        """What `kernel.hugepages` asks for."""
        return parse_hugepages(self.kernel["hugepages"], self.paging, self.nr_nodes, where)

    def physical_ranges(self) -> list[list[tuple[int, int]]]:
        """Per node the (first byte, number of bytes) of its RAM in the physical address space.

            0          low_memory     4 GiB
            | node 0 | node 1 |  hole  | node 1 | node 2 | ...
        """
        ranges, end = [], 0  # end: RAM laid out so far, holes not counted
        for node in self.nodes:
            low = min(node.memory_bytes, max(0, self.low_memory - end))
            high_start = MAX_LOW_MEMORY + max(0, end - self.low_memory)
            parts = [(end, low), (high_start, node.memory_bytes - low)]
            ranges.append([part for part in parts if part[1]])
            end += node.memory_bytes
        return ranges

    @classmethod
    def from_dict(cls, machine: dict[str, Any], where: str = "dict") -> "Topology":
        """The machine a dict of a machine file's shape describes; `where` is for its errors."""
        check_table(machine, MACHINE_KEYS, "machine", where)
        nodes = _parse_nodes(machine.get("node"), where)
        distance, latency_ns = _parse_matrices(machine, len(nodes), where)
        tlb = check_table(machine.get("tlb", {}), DEFAULT_TLB | DEFAULT_TLB_WORDS, "tlb", where)
        words = DEFAULT_TLB_WORDS | tlb
        paging = _parse_paging(machine.get("paging", DEFAULT_PAGING), where)
        page_size = machine.get("page_size", PAGE_SIZES[paging])
        return cls(
            name=_parse_name(machine.get("name", "custom"), where),
            paging=paging,
            page_size=_parse_page_size(page_size, paging, where),
            nodes=nodes,
            distance=distance,
            latency_ns=latency_ns,
            l1=_parse_tlb("l1", tlb.get("l1", {}), MAX_L1_ENTRIES, where),
            l2=_parse_tlb("l2", tlb.get("l2", {}), MAX_L2_ENTRIES, where),
            asids=parse_int(words["asids"], "tlb: asids", where, 0, NR_ASIDS - 1),
            walk_cache=parse_int(words["walk_cache"], "tlb: walk_cache", where, 0, WALK_CACHE_MAX),
            sysctl=_parse_sysctl(machine.get("sysctl", {}), where),
            cost=_parse_cost(machine.get("cost", {}), where),
            kernel=_parse_kernel(machine.get("kernel", {}), paging, len(nodes), where),
            zone_layout=_parse_zone_layout(machine, sum(node.memory_bytes for node in nodes), where),
            disk=_parse_disk(machine.get("disk", {}), where),
            **_parse_sizes(machine, sum(node.memory_bytes for node in nodes), where),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same machine in a machine file's shape: from_dict() makes it again."""
        sizes = {key: getattr(self, key) for key in SIZE_KEYS}
        return {
            "name": self.name,
            "paging": self.paging,
            "page_size": self.page_size,
            "zone_layout": self.zone_layout,
            **{key: format_size(size) for key, size in sizes.items() if size is not None},
            "node": [
                {"memory": format_size(node.memory_bytes), "cpus": list(node.cpus)}
                for node in self.nodes
            ],
            "distance": {"matrix": [list(row) for row in self.distance]},
            "latency": {"matrix": [list(row) for row in self.latency_ns]},
            "tlb": {
                "l1": vars(self.l1).copy(),
                "l2": vars(self.l2).copy(),
                "asids": self.asids,
                "walk_cache": self.walk_cache,
            },
            "sysctl": {k: list(v) if isinstance(v, tuple) else v for k, v in self.sysctl.items()},
            "cost": dict(self.cost),
            "kernel": dict(self.kernel),
            "disk": {
                "size": format_size(self.disk.size),
                "read_latency_us": self.disk.read_latency_us,
                "write_latency_us": self.disk.write_latency_us,
                "bandwidth": format_size(self.disk.bandwidth) + "/s",
            },
        }

    def to_toml(self) -> str:
        """The text of a machine file that describes this machine."""
        machine = self.to_dict()
        lines = [f"{key} = {_toml(machine[key])}" for key in SCALAR_KEYS if key in machine]
        for node in machine["node"]:
            lines += ["", "[[node]]", *(f"{key} = {_toml(value)}" for key, value in node.items())]
        for key in MATRICES:
            rows = [f"    {_toml(row)}," for row in machine[key]["matrix"]]
            lines += ["", f"[{key}]", "matrix = [", *rows, "]"]
        for key in ("tlb", "sysctl", "cost", "kernel", "disk"):
            quote = _toml if key == "sysctl" else str  # their keys have dots
            rows = [f"{quote(name)} = {_toml(value)}" for name, value in machine[key].items()]
            lines += ["", f"[{key}]", *rows]
        return "\n".join(lines) + "\n"


# --- reading ------------------------------------------------------------------------------------
Source = str | os.PathLike | dict[str, Any] | Topology | None


def load_topology(
    source: Source = None, /, *, where: str = "keyword arguments", **keywords: Any
) -> Topology:
    """The machine of a preset's name, a .toml file, a dict or a Topology, changed by keywords.

    Keywords (None counts as not given): `nodes` (a fresh set like the source's first node with
    CPUs, with default matrices), `cpus_per_node` (of nodes that have CPUs), `memory_per_node`,
    `memory_only_nodes` (that many more, without CPUs), `distance` and `latency` (matrices), `l1`
    and `l2` (dicts of entries, ways, latency_ns), `sysctl`, `cost`, `kernel`, and a machine file's
    own `name`, `paging`, `page_size`, `low_memory`, `kernelcore`, `movablecore`.  `where` names the
    place of the keywords in errors.
    """
    check_table(keywords, KEYWORDS, "machine", where)
    keywords = {key: value for key, value in keywords.items() if value is not None}
    machine, place = _read_source(source)
    topology = Topology.from_dict(machine, place)
    if not keywords:
        return topology
    return Topology.from_dict(_override(machine, topology, keywords, where), where)


def list_presets() -> dict[str, str]:
    """Name of each preset and the first line of its comment."""
    files = (resources.files("numaemu") / "presets").iterdir()
    paths = sorted(Path(str(file)) for file in files if file.name.endswith(".toml"))
    return {p.stem: p.read_text("utf-8").partition("\n")[0].lstrip("# ") for p in paths}


def preset_path(name: str) -> Path:
    """The machine file of a preset."""
    presets = list_presets()
    if name not in presets:
        known = f"presets: {', '.join(presets)}; a machine file ends in .toml"
        raise ConfigError.at(known, f"unknown preset {name!r}{nearest(name, presets)}")
    return Path(str(resources.files("numaemu") / "presets" / f"{name}.toml"))


def _read_source(source: Source) -> tuple[dict[str, Any], str]:
    """The source as a dict of a machine file's shape, and its name for error messages."""
    if source is None:
        node = {"memory": DEFAULT_MEMORY_PER_NODE, "cpus": DEFAULT_CPUS_PER_NODE}
        return {"node": [node] * DEFAULT_NODES}, "default machine"
    if isinstance(source, Topology):
        return source.to_dict(), f"topology {source.name}"
    if isinstance(source, dict):
        return source, "dict"
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(f"machine is {source!r}, must be a preset, a .toml file or a dict")
    text = os.fspath(source)
    if isinstance(source, str) and not text.endswith(".toml") and os.sep not in text:
        return _read_file(preset_path(text), f"preset {text}"), f"preset {text}"
    return _read_file(Path(text), text), text


def _read_file(path: Path, where: str) -> dict[str, Any]:
    try:
        machine = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError.at(where, "machine file not found") from None
    except OSError as error:
        reason = str(error.strerror).lower()
        raise ConfigError.at(where, f"machine file cannot be read: {reason}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError too
        reason = str(error)[:1].lower() + str(error)[1:]
        raise ConfigError.at(where, f"machine file is not valid toml: {reason}") from None
    return {"name": path.stem} | machine


def _override(
    machine: dict[str, Any], topology: Topology, keywords: dict[str, Any], where: str
) -> dict[str, Any]:
    """`machine`, whose topology is valid, with what the keywords say in its place."""
    machine = dict(machine)
    if any(key in keywords for key in NODE_KEYWORDS):
        _override_nodes(machine, topology, keywords, where)
    machine["tlb"] = dict(machine.get("tlb", {}))
    for key, value in keywords.items():
        if key in SCALAR_KEYS:
            machine[key] = value
        elif key in MATRICES:
            machine[key] = {"matrix": value}
        elif key in TABLES:
            table = machine["tlb"] if key in DEFAULT_TLB else machine
            table[key] = table.get(key, {}) | check_table(value, TABLES[key], key, where)
        elif key in DEFAULT_TLB_WORDS:
            machine["tlb"][key] = value
    return machine


def _override_nodes(
    machine: dict[str, Any], topology: Topology, keywords: dict[str, Any], where: str
) -> None:
    nodes = topology.to_dict()["node"]
    pattern = next(node for node in nodes if node["cpus"])
    if "nodes" in keywords:
        count = parse_int(keywords["nodes"], "nodes", where, 1, MAX_NODES)
        nodes = [{**pattern, "cpus": len(pattern["cpus"])} for _ in range(count)]
        machine.pop("distance", None)
        machine.pop("latency", None)
    if "cpus_per_node" in keywords:
        cpus = parse_int(keywords["cpus_per_node"], "cpus_per_node", where, 1, MAX_CPUS)
        for node in nodes:
            node["cpus"] = cpus if node["cpus"] else 0
    memory = pattern["memory"]
    if "memory_per_node" in keywords:
        memory = _parse_memory(keywords["memory_per_node"], "memory_per_node", where)
        for node in nodes:
            node["memory"] = memory
    if "memory_only_nodes" in keywords:
        count = parse_int(keywords["memory_only_nodes"], "memory_only_nodes", where, 0, MAX_NODES)
        nodes += [{"memory": memory, "cpus": 0}] * count
        _grow_matrices(machine, len(nodes))
    machine["node"] = nodes


def _grow_matrices(machine: dict[str, Any], nr_nodes: int) -> None:
    """Default rows and columns for further nodes in the matrices that the machine states."""
    distance = _default_distance(nr_nodes)
    for key, matrix in (("distance", distance), ("latency", _default_latency(distance))):
        if key in machine:
            for row, stated in zip(matrix, machine[key]["matrix"]):
                row[: len(stated)] = stated
            machine[key] = {"matrix": matrix}


def _default_distance(nr_nodes: int) -> list[list[int]]:
    nodes = range(nr_nodes)
    return [[LOCAL_DISTANCE if i == j else REMOTE_DISTANCE for j in nodes] for i in nodes]


def _default_latency(distance: list[list[int]]) -> list[list[int]]:
    """ns of one load where the machine file says nothing: in proportion to the distance."""
    return [[round(LOCAL_LATENCY_NS * value / LOCAL_DISTANCE) for value in row] for row in distance]


# --- validation: from what a machine file says to what Topology holds ---------------------------
def _parse_name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ConfigError.at(where, f"name is {name!r}, must be a line of text")
    return name


def _parse_paging(paging: Any, where: str) -> str:
    if paging not in tuple(PAGE_SIZES):
        known = " or ".join(map(repr, PAGE_SIZES))
        raise ConfigError.at(where, f"paging is {paging!r}, must be {known}")
    return paging


def _parse_page_size(value: Any, paging: str, where: str) -> int:
    page_size = parse_size(value, "page_size", where)
    if page_size != PAGE_SIZES[paging]:
        limit = f"must be {PAGE_SIZES[paging]} with paging {paging!r}"
        raise ConfigError.at(where, f"page_size is {page_size}, {limit}")
    return page_size


def _parse_sizes(machine: dict[str, Any], memory_bytes: int, where: str) -> dict[str, int | None]:
    """The SIZE_KEYS; kernelcore and movablecore are parts of `memory_bytes`."""
    if "kernelcore" in machine and "movablecore" in machine:
        raise ConfigError.at(where, "kernelcore and movablecore are both given, must be one")
    sizes: dict[str, int | None] = {"low_memory": DEFAULT_LOW_MEMORY}
    for key in SIZE_KEYS:
        sizes.setdefault(key)
        if key in machine:
            most = MAX_LOW_MEMORY if key == "low_memory" else memory_bytes
            limits = {"least": MEMORY_BLOCK, "most": most, "block": MEMORY_BLOCK}
            sizes[key] = parse_size(machine[key], key, where, **limits)
    return sizes


def _parse_memory(value: Any, what: str, where: str) -> int:
    """Bytes of one node."""
    limits = {"least": MIN_NODE_MEMORY, "most": MAX_MEMORY, "block": MEMORY_BLOCK}
    return parse_size(value, what, where, **limits)


def _parse_nodes(tables: Any, where: str) -> tuple[NodeSpec, ...]:
    if not isinstance(tables, (list, tuple)) or not tables:
        raise ConfigError.at(where, "node must be a list of tables, one [[node]] for each node")
    if len(tables) > MAX_NODES:
        raise ConfigError.at(where, f"machine has {len(tables)} nodes, must be at most {MAX_NODES}")
    nodes: list[NodeSpec] = []
    owner: dict[int, int] = {}  # CPU number to node
    for nid, table in enumerate(tables):
        check_table(table, ("memory", "cpus"), f"node {nid}", where)
        if "memory" not in table:
            raise ConfigError.at(where, f"node {nid}: memory is missing")
        memory_bytes = _parse_memory(table["memory"], f"node {nid}: memory", where)
        cpus = _parse_cpus(table.get("cpus", 0), nid, owner, where)
        nodes.append(NodeSpec(nid, memory_bytes, cpus))
    _check_totals(nodes, owner, where)
    return tuple(nodes)


def _parse_cpus(value: Any, nid: int, owner: dict[int, int], where: str) -> tuple[int, ...]:
    """CPU numbers of node `nid`, from a list or from how many; enters them into `owner`."""
    numbers: list[int] | range
    if isinstance(value, (list, tuple, range)):
        what = f"node {nid}: cpu number"
        numbers = [parse_int(cpu, what, where, 0, MAX_CPUS - 1) for cpu in value]
    else:
        first = max(owner, default=-1) + 1
        numbers = range(first, first + parse_int(value, f"node {nid}: cpus", where, 0, MAX_CPUS))
    for cpu in numbers:
        if cpu in owner:
            raise ConfigError.at(where, f"node {nid}: cpu {cpu} is already in node {owner[cpu]}")
        owner[cpu] = nid
    return tuple(sorted(numbers))


def _check_totals(nodes: list[NodeSpec], owner: dict[int, int], where: str) -> None:
    """Limits that hold for the machine as a whole; `owner` has every CPU's node."""
    memory_bytes = sum(node.memory_bytes for node in nodes)
    if memory_bytes > MAX_MEMORY:
        text = f"machine has {format_size(memory_bytes)} of memory"
        raise ConfigError.at(where, f"{text}, must be at most {format_size(MAX_MEMORY)}")
    if not owner:
        raise ConfigError.at(where, "machine has no cpus, at least one node must have one")
    if len(owner) > MAX_CPUS:
        raise ConfigError.at(where, f"machine has {len(owner)} cpus, must be at most {MAX_CPUS}")
    missing = next((cpu for cpu in range(max(owner)) if cpu not in owner), None)
    if missing is not None:
        text = f"cpu {missing} is in no node, cpus must be numbered 0 to {max(owner)} without a gap"
        raise ConfigError.at(where, text)


def _parse_matrices(machine: dict[str, Any], nr_nodes: int, where: str) -> tuple[Matrix, Matrix]:
    """Distance, and latency in ns."""
    distance = _default_distance(nr_nodes)
    if "distance" in machine:
        distance = _parse_matrix(machine["distance"], "distance", nr_nodes, where)
    latency = _default_latency(distance)
    if "latency" in machine:
        latency = _parse_matrix(machine["latency"], "latency", nr_nodes, where)
    return tuple(map(tuple, distance)), tuple(map(tuple, latency))


def _parse_matrix(table: Any, key: str, nr_nodes: int, where: str) -> list[list[int]]:
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


def _parse_tlb(level: str, table: Any, most: int, where: str) -> TlbSpec:
    table = DEFAULT_TLB[level] | check_table(table, DEFAULT_TLB[level], level, where)
    entries = parse_int(table["entries"], f"{level}: entries", where, 1, most)
    ways = parse_int(table["ways"], f"{level}: ways", where, 1, entries)
    latency = parse_int(table["latency_ns"], f"{level}: latency_ns", where, 0, MAX_LATENCY_NS)
    if entries % ways:
        text = f"{level}: entries is {entries}, must be a multiple of ways, {ways}"
        raise ConfigError.at(where, text)
    return TlbSpec(entries, ways, latency)


def _parse_sysctl(table: Any, where: str) -> dict[str, int | tuple[int, ...]]:
    return {
        key: _parse_sysctl_value(key, value, where)
        for key, value in check_table(table, KNOWN_SYSCTLS, "sysctl", where).items()
    }


def _parse_sysctl_value(key: str, value: Any, where: str) -> int | tuple[int, ...]:
    least, most = KNOWN_SYSCTLS[key]
    if key == "vm.percpu_pagelist_high_fraction" and value in range(1, MIN_HIGH_FRACTION):
        limit = f"must be 0 or at least {MIN_HIGH_FRACTION}"
        raise ConfigError.at(where, f"sysctl: {key} is {value}, {limit}")
    if key != "vm.lowmem_reserve_ratio":
        return parse_int(value, f"sysctl: {key}", where, least, most)
    if isinstance(value, str):
        value = [int(word) if word.isdecimal() else word for word in value.split()]
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_ZONES:
        limit = f"1 to {MAX_ZONES} whole numbers"
        raise ConfigError.at(where, f"sysctl: {key} is {value!r}, must be {limit}")
    return tuple(parse_int(ratio, f"sysctl: {key}", where, least, most) for ratio in value)


def _parse_cost(table: Any, where: str) -> dict[str, int]:
    given = check_table(table, DEFAULT_COST, "cost", where)
    return {
        key: parse_int(given.get(key, default), f"cost: {key}", where, 0, MAX_COST_NS)
        for key, default in DEFAULT_COST.items()
    }


def _parse_kernel(table: Any, paging: str, nr_nodes: int, where: str) -> dict[str, bool | int | str]:
    options = DEFAULT_KERNEL | check_table(table, DEFAULT_KERNEL, "kernel", where)
    options["random_seed"] = parse_int(
        options["random_seed"], "kernel: random_seed", where, 0, LONG_MAX
    )
    for key, value in options.items():
        if not isinstance(value, type(DEFAULT_KERNEL[key])):
            kind = "true or false" if isinstance(DEFAULT_KERNEL[key], bool) else "text"
            raise ConfigError.at(where, f"kernel: {key} is {value!r}, must be {kind}")
    parse_hugepages(options["hugepages"], paging, nr_nodes, where)
    if options["transparent_hugepage"] not in THP_OPTIONS:
        limit = f"must be one of {', '.join(THP_OPTIONS)}"
        raise ConfigError.at(where, f"kernel: transparent_hugepage is {options['transparent_hugepage']!r}, {limit}")
    for letters in (block.partition(",")[0] for block in options["slab_debug"].split(";")):
        if wrong := set(letters.upper()) - set(SLAB_DEBUG_LETTERS):
            limit = f"must be of {SLAB_DEBUG_LETTERS}, then names of caches after a comma"
            raise ConfigError.at(where, f"kernel: slab_debug: option {min(wrong)!r}, {limit}")
    if options["thread_size"] not in THREAD_SIZES:
        limit = f"must be one of {', '.join(THREAD_SIZES[1:])}"
        raise ConfigError.at(where, f"kernel: thread_size is {options['thread_size']!r}, {limit}")
    return options


def _parse_zone_layout(machine: dict[str, Any], memory_bytes: int, where: str) -> str:
    paging = machine.get("paging", DEFAULT_PAGING)
    layout = machine.get("zone_layout", "x86-32" if paging == "x86-32" else "x86-64")
    if layout not in ZONE_LAYOUTS:
        known = " or ".join(map(repr, ZONE_LAYOUTS))
        raise ConfigError.at(where, f"zone_layout is {layout!r}, must be {known}")
    if layout == "x86-32" and memory_bytes > MAX_MEMORY_32:
        text = f"machine has {format_size(memory_bytes)} of memory, must be at most"
        raise ConfigError.at(where, f"{text} {format_size(MAX_MEMORY_32)} with zone_layout 'x86-32'")
    if paging == "arm64-39" and memory_bytes > MAX_MEMORY_ARM64_39:
        text = f"machine has {format_size(memory_bytes)} of memory, must be at most"
        limit = f"{format_size(MAX_MEMORY_ARM64_39)} with paging 'arm64-39'"
        raise ConfigError.at(where, f"{text} {limit}")
    if paging == "x86-32" and layout != "x86-32":
        text = f"zone_layout is {layout!r}, must be 'x86-32' with paging 'x86-32'"
        raise ConfigError.at(where, text)
    return layout


def _parse_disk(table: Any, where: str) -> DiskSpec:
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
    return DiskSpec(size, bandwidth=bandwidth, **latency)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)  # of printable text TOML reads JSON's form
