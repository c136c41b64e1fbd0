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

from numaemu.errors import ConfigError
from numaemu.spec.cache import CacheSpec, parse_cache
from numaemu.spec.cmdline import HugePages, parse_hugepages
from numaemu.spec.machine_file import (
    DEFAULT_BANDWIDTH_MBS,
    DEFAULT_CPUS_PER_NODE,
    DEFAULT_MEMORY_PER_NODE,
    DEFAULT_NODES,
    DEFAULT_PAGING,
    DEFAULT_TLB,
    DEFAULT_TLB_WORDS,
    KEYWORDS,
    LOCKSTEP_KEYS,
    MACHINE_KEYS,
    MATRICES,
    MAX_CPUS,
    MAX_L1_ENTRIES,
    MAX_L2_ENTRIES,
    MAX_LOW_MEMORY,
    MAX_NODES,
    MIN_MEMORY,
    NODE_KEYWORDS,
    OTHER_TABLES,
    PAGE_SIZES,
    SCALAR_KEYS,
    SIZE_KEYS,
    TABLES,
    DiskSpec,
    Matrix,
    NodeSpec,
    TlbSpec,
    default_distance,
    default_latency,
    parse_cost,
    parse_disk,
    parse_kernel,
    parse_lockstep,
    parse_matrices,
    parse_memory,
    parse_name,
    parse_nodes,
    parse_page_size,
    parse_paging,
    parse_sizes,
    parse_sysctl,
    parse_tlb,
    parse_zone_layout,
)
from numaemu.spec.param import NR_ASIDS, WALK_CACHE_MAX
from numaemu.spec.rates import Rates, check_against_firmware, parse_rate, parse_rates, rates_to_dict
from numaemu.spec.units import check_table, choice_text, format_size, nearest, parse_int, parse_size, shown


@dataclass(frozen=True)
class Topology:
    """A machine as loaded.  Every instance from from_dict() and load_topology() is valid."""

    name: str
    paging: str
    page_size: int  # bytes
    nodes: tuple[NodeSpec, ...]
    distance: Matrix  # as numactl --hardware prints it
    latency_ns: Matrix  # of one load: CPU's node (row) by memory's node (column)
    bandwidth_mbs: Matrix | None  # likewise in MB/s, as the firmware (HMAT) tells the kernel; None: it tells nothing
    rates: Rates  # of controllers and links, and how many misses of a CPU overlap
    l1: TlbSpec
    l2: TlbSpec
    asids: int  # address spaces the TLB keeps apart
    walk_cache: int  # entries of the page-walk cache
    sysctl: dict[str, int | tuple[int, ...]]
    cost: dict[str, int]  # ns, the keys of DEFAULT_COST
    kernel: dict[str, bool | int | str]  # boot options, the keys of DEFAULT_KERNEL
    zone_layout: str  # one of ZONE_LAYOUTS
    disk: DiskSpec
    cache: CacheSpec | None  # None: an access costs its latency
    low_memory: int  # bytes of RAM below 4 GiB of the physical address space
    kernelcore: int | None  # bytes kept out of ZONE_MOVABLE, as Linux's boot parameter
    movablecore: int | None  # bytes given to ZONE_MOVABLE; only one of the two is set
    lockstep: bool  # processes take turns by emulated time, so that a run can be repeated
    quantum_ns: int  # how far a CPU may be ahead of the next one then
    schedule: str  # who runs next in lockstep: "clock", or drawn: "random:SEED", "priorities:SEED:STEP,…"
    schedule_seed: int  # decides who is first where clocks are equal; 0: the lower number

    @property
    def nr_nodes(self) -> int:
        return len(self.nodes)

    @property
    def nr_cpus(self) -> int:
        return sum(len(node.cpus) for node in self.nodes)

    @property
    def cpus(self) -> tuple[int, ...]:
        """All CPU numbers, ascending; there may be gaps."""
        return tuple(sorted(cpu for node in self.nodes for cpu in node.cpus))

    @property
    def nr_cpu_ids(self) -> int:
        """The highest CPU number and 1."""
        return self.cpus[-1] + 1

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
        raise ValueError(f"cpu {cpu} does not exist, cpus are {choice_text(self.cpus)}")

    def hugepages(self, where: str = "") -> HugePages:
        """What `kernel.hugepages` asks for."""
        return parse_hugepages(self.kernel["hugepages"], self.paging, self.nr_nodes, where)

    def physical_ranges(self) -> list[list[tuple[int, int]]]:
        """Per node the (first byte, number of bytes) of its RAM in the physical address space.

            0          low_memory     4 GiB
            | node 0 | node 1 |  hole  | node 1 | node 2 | ...

        Each node begins at a pageblock: behind one that ends within a pageblock there is a hole.
        """
        ranges, end = [], 0  # end: RAM laid out so far, the hole below 4 GiB not counted
        for node in self.nodes:
            low = min(node.memory_bytes, max(0, self.low_memory - end))
            high_start = MAX_LOW_MEMORY + max(0, end - self.low_memory)
            parts = [(end, low), (high_start, node.memory_bytes - low)]
            ranges.append([part for part in parts if part[1]])
            end += node.span_bytes
        return ranges

    @classmethod
    def from_dict(cls, machine: dict[str, Any], where: str = "dict") -> "Topology":
        """The machine a dict of a machine file's shape describes; `where` is for its errors."""
        check_table(machine, MACHINE_KEYS, "machine", where)
        nodes = parse_nodes(machine.get("node"), where)
        distance, latency_ns, bandwidth_mbs = parse_matrices(machine, len(nodes), where)
        rates = parse_rates(machine, len(nodes), where)
        check_against_firmware(rates, bandwidth_mbs, [node.id for node in nodes if node.cpus], where)
        tlb = check_table(machine.get("tlb", {}), DEFAULT_TLB | DEFAULT_TLB_WORDS, "tlb", where)
        words = DEFAULT_TLB_WORDS | tlb
        paging = parse_paging(machine.get("paging", DEFAULT_PAGING), where)
        page_size = machine.get("page_size", PAGE_SIZES[paging])
        return cls(
            name=parse_name(machine.get("name", "custom"), where),
            paging=paging,
            page_size=parse_page_size(page_size, paging, where),
            nodes=nodes,
            distance=distance,
            latency_ns=latency_ns,
            bandwidth_mbs=bandwidth_mbs,
            rates=rates,
            l1=parse_tlb("l1", tlb.get("l1", {}), MAX_L1_ENTRIES, where),
            l2=parse_tlb("l2", tlb.get("l2", {}), MAX_L2_ENTRIES, where),
            asids=parse_int(words["asids"], "tlb: asids", where, 0, NR_ASIDS - 1),
            walk_cache=parse_int(words["walk_cache"], "tlb: walk_cache", where, 0, WALK_CACHE_MAX),
            sysctl=parse_sysctl(machine.get("sysctl", {}), where),
            cost=parse_cost(machine.get("cost", {}), where),
            kernel=parse_kernel(machine.get("kernel", {}), paging, len(nodes), where),
            zone_layout=parse_zone_layout(machine, sum(node.span_bytes for node in nodes), where),
            disk=parse_disk(machine.get("disk", {}), where),
            cache=parse_cache(machine.get("cache"), len(nodes), where),
            **parse_sizes(machine, sum(node.memory_bytes for node in nodes), where),
            **parse_lockstep(machine, where),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same machine in a machine file's shape: from_dict() makes it again."""
        sizes = {key: getattr(self, key) for key in SIZE_KEYS}
        bandwidth = self.bandwidth_mbs and {"bandwidth": {"matrix": [list(row) for row in self.bandwidth_mbs]}}
        machine = {
            "name": self.name,
            "paging": self.paging,
            "page_size": self.page_size,
            "zone_layout": self.zone_layout,
            **{key: format_size(size) for key, size in sizes.items() if size is not None},
            **{key: getattr(self, key) for key in LOCKSTEP_KEYS},
            "node": [{"memory": format_size(node.memory_bytes), "cpus": list(node.cpus)} for node in self.nodes],
            "distance": {"matrix": [list(row) for row in self.distance]},
            "latency": {"matrix": [list(row) for row in self.latency_ns]},
            **(bandwidth or {}),
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
                "rotational": self.disk.rotational,
            },
            **({"cache": self.cache.to_dict()} if self.cache else {}),
        }
        return rates_to_dict(self.rates, machine)

    def to_toml(self) -> str:
        """The text of a machine file that describes this machine."""
        machine = self.to_dict()
        lines = [f"{key} = {_toml(machine[key])}" for key in SCALAR_KEYS if key in machine]
        for node in machine["node"]:
            lines += ["", "[[node]]", *(f"{key} = {_toml(value)}" for key, value in node.items())]
        for key in (key for key in MATRICES if key in machine):
            rows = [f"    {_toml(row)}," for row in machine[key]["matrix"]]
            lines += ["", f"[{key}]", "matrix = [", *rows, "]"]
        for key in (key for key in OTHER_TABLES if key in machine):
            quote = _toml if key == "sysctl" else str  # their keys have dots
            rows = [f"{quote(name)} = {_toml(value)}" for name, value in machine[key].items()]
            lines += ["", f"[{key}]", *rows]
        return "\n".join(lines) + "\n"


# --- reading ------------------------------------------------------------------------------------
Source = str | os.PathLike | dict[str, Any] | Topology | None


def load_topology(source: Source = None, /, *, where: str = "keyword arguments", **keywords: Any) -> Topology:
    """The machine of a preset's name, a .toml file, a dict or a Topology, changed by keywords.

    Keywords (None counts as not given): `nodes` (a fresh set like the source's first node with
    CPUs, with default matrices), `cpus_per_node` (of nodes that have CPUs), `memory_per_node`
    (of nodes that have memory), `memory_only_nodes` (that many more, without CPUs), `distance`, `latency` and `bandwidth` (matrices), `l1`
    and `l2` (dicts of entries, ways, latency_ns), `bandwidth_per_node` (of each node's controller), `link`,
    `cpu`, `sysctl`, `cost`, `kernel`, `cache` (its keys), and a machine file's
    own `name`, `paging`, `page_size`, `low_memory`, `kernelcore`, `movablecore`, `lockstep`, `quantum_ns`, `schedule_seed`, `schedule`.
    `where` names the place of the keywords in errors.
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
    files = (resources.files("numaemu.spec") / "presets").iterdir()
    paths = sorted(Path(str(file)) for file in files if file.name.endswith(".toml"))
    return {p.stem: p.read_text("utf-8").partition("\n")[0].lstrip("# ") for p in paths}


def preset_path(name: str) -> Path:
    """The machine file of a preset."""
    presets = list_presets()
    if name not in presets:
        known = f"presets: {', '.join(presets)}; a machine file ends in .toml"
        raise ConfigError.at(known, f"unknown preset {shown(name)}{nearest(name, presets)}")
    return Path(str(resources.files("numaemu.spec") / "presets" / f"{name}.toml"))


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
        raise ConfigError(f"machine is {shown(source)}, must be a preset, a .toml file or a dict")
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


def _override(machine: dict[str, Any], topology: Topology, keywords: dict[str, Any], where: str) -> dict[str, Any]:
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


def _override_nodes(machine: dict[str, Any], topology: Topology, keywords: dict[str, Any], where: str) -> None:
    nodes = topology.to_dict()["node"]
    with_memory = [node for node in nodes if parse_size(node["memory"])]
    pattern = next(node for node in with_memory + nodes if node["cpus"])
    memory = with_memory[0]["memory"]
    if "nodes" in keywords:
        count = parse_int(keywords["nodes"], "nodes", where, 1, MAX_NODES)
        rate = {"bandwidth": pattern["bandwidth"]} if "bandwidth" in pattern else {}
        nodes = [{"memory": memory, "cpus": len(pattern["cpus"]), **rate} for _ in range(count)]
        machine.pop("distance", None)
        machine.pop("latency", None)
        machine.pop("bandwidth", None)
        if not isinstance(machine.get("cache", {}).get("cache_to_cache", 0), int):
            machine["cache"] = {k: v for k, v in machine["cache"].items() if k != "cache_to_cache"}
        if isinstance(machine.get("link", {}).get("links"), (list, tuple)):  # of the nodes that there were
            machine.pop("link")
    if "cpus_per_node" in keywords:
        cpus = parse_int(keywords["cpus_per_node"], "cpus_per_node", where, 1, MAX_CPUS)
        for node in nodes:
            node["cpus"] = cpus if node["cpus"] else 0
    if "memory_per_node" in keywords:
        memory = parse_memory(keywords["memory_per_node"], "memory_per_node", where, MIN_MEMORY)
        for node in nodes:
            node["memory"] = memory if parse_size(node["memory"]) else 0
    if "memory_only_nodes" in keywords:
        count = parse_int(keywords["memory_only_nodes"], "memory_only_nodes", where, 0, MAX_NODES)
        nodes += [{"memory": memory, "cpus": 0}] * count
        _grow_matrices(machine, len(nodes))
    if "bandwidth_per_node" in keywords:
        per_node = parse_rate(keywords["bandwidth_per_node"], "bandwidth_per_node", where)
        nodes = [node | {"bandwidth": per_node} for node in nodes]
    machine["node"] = nodes


def _grow_matrices(machine: dict[str, Any], nr_nodes: int) -> None:
    """Default rows and columns for further nodes in the matrices that the machine states."""
    distance = default_distance(nr_nodes)
    bandwidth = [[DEFAULT_BANDWIDTH_MBS] * nr_nodes for _ in range(nr_nodes)]
    for key, matrix in (("distance", distance), ("latency", default_latency(distance)), ("bandwidth", bandwidth)):
        if key in machine:
            for row, stated in zip(matrix, machine[key]["matrix"]):
                row[: len(stated)] = stated
            machine[key] = {"matrix": matrix}
    stated = machine.get("cache", {}).get("cache_to_cache", 0)
    if not isinstance(stated, int):  # of nodes without CPUs no caches send anything: any number does
        rows = [[*row, *[max(row)] * (nr_nodes - len(row))] for row in stated]
        machine["cache"] = machine["cache"] | {"cache_to_cache": rows + rows[-1:] * (nr_nodes - len(rows))}


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # of printable text TOML reads JSON's form
