"""The caches of a machine: what [cache] of a machine file may say.

[cache]
l1d = { size = "32KiB", ways = 8, latency_ns = 1 }
l2 = { size = "1MiB", ways = 16, latency_ns = 4 }
llc = { size = "16MiB", ways = 16, latency_ns = 20, sharing = "node" }
cache_to_cache = 60
prefetch = ["stride"]
"""

import re
from dataclasses import dataclass
from typing import Any

from numaemu.errors import ConfigError
from numaemu.spec.units import GiB, check_list, check_table, format_size, parse_choice, parse_int, parse_size, shown

LEVELS = ("l1d", "l2", "llc")  # from the CPU outwards; a machine may end with any of them, or have no l2
MAX_CACHE_SIZE = 4 * GiB  # of one cache; its tags are a quarter of that
MAX_CACHE_WAYS = 1024
LINE_SIZES = (32, 64, 128, 256)  # bytes; all caches of a machine have lines of one size
MAX_CACHE_LATENCY_NS = 1_000_000  # 1 ms: catches a wrong unit
REPLACEMENTS = ("lru", "plru", "random")  # the one used longest ago, a binary tree's guess at it, any
PREFETCHERS = ("stride", "next-line")
SHARING = re.compile(r"cpu|node|cluster:([1-9]\d{0,3})", re.ASCII)
MAX_PLRU_WAYS = 64  # the tree's bits are one word
DEFAULT_LEVEL: dict[
    str, dict[str, Any]
] = {  # of a level that is given; sizes and ways of Skylake-SP (Intel's optimization manual)
    "l1d": {"size": "32KiB", "ways": 8, "latency_ns": 1, "sharing": "cpu"},  # 4 cycles at 3 GHz; assumed
    "l2": {"size": "1MiB", "ways": 16, "latency_ns": 5, "sharing": "cpu"},  # 14 cycles; assumed
    "llc": {"size": "22MiB", "ways": 11, "latency_ns": 20, "sharing": "node"},  # 16 cores' slices; assumed
}
DEFAULT_LEVEL_WORDS: dict[str, Any] = {"line": 64, "replacement": "lru", "inclusive": False}
CACHE_KEYS = (*LEVELS, "cache_to_cache", "prefetch")

Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CacheLevel:
    """One level; a hit costs `latency_ns` altogether."""

    name: str  # one of LEVELS
    size: int  # bytes of each cache
    ways: int
    line: int  # bytes
    latency_ns: int
    sharing: str  # "cpu", "cluster:N", "node"
    replacement: str  # one of REPLACEMENTS
    inclusive: bool  # what it drops, the caches above it drop, too

    @property
    def sets(self) -> int:
        return self.size // (self.line * self.ways)

    def groups(self, nodes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The CPUs that share each cache of this level; `nodes` has each node's CPUs."""
        match = SHARING.fullmatch(self.sharing)
        size = 1 if self.sharing == "cpu" else int(match[1]) if match and match[1] else None
        return [
            cpus[i : i + (size or len(cpus))] for cpus in nodes if cpus for i in range(0, len(cpus), size or len(cpus))
        ]


@dataclass(frozen=True)
class CacheSpec:
    """All caches of a machine."""

    levels: tuple[CacheLevel, ...]  # from the CPU outwards
    cache_to_cache_ns: Matrix | None  # by the nodes of who loads and of who has the line dirty; None: as memory
    prefetch: tuple[str, ...]  # of PREFETCHERS

    def to_dict(self) -> dict[str, Any]:
        """[cache] of a machine file."""
        table: dict[str, Any] = {}
        for level in self.levels:
            table[level.name] = {k: v for k, v in vars(level).items() if k != "name"} | {
                "size": format_size(level.size)
            }
        if self.cache_to_cache_ns is not None:
            rows = [list(row) for row in self.cache_to_cache_ns]
            same = len({value for row in rows for value in row}) == 1
            table["cache_to_cache"] = rows[0][0] if same else rows
        return table | {"prefetch": list(self.prefetch)}


def sharers(sharing: str) -> float:
    """For comparing: how many CPUs share a cache, at most."""
    match = SHARING.fullmatch(sharing)
    return 1 if sharing == "cpu" else int(match[1]) if match and match[1] else float("inf")


def parse_level(name: str, table: Any, where: str) -> CacheLevel:
    """One level's table; what is not given has its default."""
    what = f"cache: {name}"
    defaults = DEFAULT_LEVEL[name] | DEFAULT_LEVEL_WORDS
    table = defaults | check_table(table, defaults, what, where)
    line = parse_int(table["line"], f"{what}: line", where, min(LINE_SIZES), max(LINE_SIZES))
    if line not in LINE_SIZES:
        raise ConfigError.at(where, f"{what}: line is {line}, must be one of {', '.join(map(str, LINE_SIZES))}")
    ways = parse_int(table["ways"], f"{what}: ways", where, 1, MAX_CACHE_WAYS)
    size = parse_size(table["size"], f"{what}: size", where, least=line * ways, most=MAX_CACHE_SIZE, block=line * ways)
    latency = parse_int(table["latency_ns"], f"{what}: latency_ns", where, 0, MAX_CACHE_LATENCY_NS)
    sharing = table["sharing"]
    if not isinstance(sharing, str) or not SHARING.fullmatch(sharing):
        text = f"{what}: sharing is {shown(sharing)}, must be 'cpu', 'node' or 'cluster:N' with N CPUs"
        raise ConfigError.at(where, text)
    replacement = parse_choice(table["replacement"], REPLACEMENTS, f"{what}: replacement", where)
    if replacement == "plru" and (ways & (ways - 1) or ways > MAX_PLRU_WAYS):
        text = f"{what}: ways is {ways}, must be a power of two up to {MAX_PLRU_WAYS} with replacement 'plru'"
        raise ConfigError.at(where, text)
    if not isinstance(table["inclusive"], bool):
        raise ConfigError.at(where, f"{what}: inclusive is {shown(table['inclusive'])}, must be true or false")
    return CacheLevel(name, size, ways, line, latency, sharing, replacement, table["inclusive"])


def check_levels(levels: tuple[CacheLevel, ...], where: str) -> None:
    """What must fit from one level to the next."""
    first = levels[0]
    if first.sharing != "cpu":
        raise ConfigError.at(where, f"cache: l1d: sharing is {shown(first.sharing)}, must be 'cpu'")
    for inner, outer in zip(levels, levels[1:]):
        if inner.line != outer.line:
            text = f"cache: {outer.name}: line is {outer.line}, must be {inner.line} as that of {inner.name}"
            raise ConfigError.at(where, text)
        few, many = sharers(inner.sharing), sharers(outer.sharing)
        if few > many or (few < many < float("inf") and many % few):
            limit = f"must hold whole groups of {inner.name}, which has {shown(inner.sharing)}"
            raise ConfigError.at(where, f"cache: {outer.name}: sharing is {shown(outer.sharing)}, {limit}")


def parse_cache_to_cache(value: Any, nr_nodes: int, where: str) -> Matrix | None:
    """ns of a line that another CPU has dirty: one number, or a row for each node."""
    if value is None:
        return None
    what, most = "cache: cache_to_cache", MAX_CACHE_LATENCY_NS
    if not isinstance(value, (list, tuple)) and not hasattr(value, "tolist"):
        return ((parse_int(value, what, where, 1, most, " ns"),) * nr_nodes,) * nr_nodes
    rows = check_list(value, nr_nodes, what, where)
    rows = [check_list(rows[i], nr_nodes, f"{what}: row {i}", where) for i in range(nr_nodes)]
    return tuple(
        tuple(parse_int(ns, f"{what}: node {i} from node {j}", where, 1, most, " ns") for j, ns in enumerate(row))
        for i, row in enumerate(rows)
    )


def parse_prefetch(value: Any, where: str) -> tuple[str, ...]:
    """The names of prefetchers, each once."""
    if not isinstance(value, (list, tuple)):
        raise ConfigError.at(where, f"cache: prefetch is {shown(value)}, must be a list of {' and '.join(PREFETCHERS)}")
    names = [parse_choice(name, PREFETCHERS, "cache: prefetch", where) for name in value]
    return tuple(name for name in PREFETCHERS if name in names)


def parse_cache(table: Any, nr_nodes: int, where: str) -> CacheSpec | None:
    """[cache]: None where a machine file has none."""
    if table is None:
        return None
    check_table(table, CACHE_KEYS, "cache", where)
    if "l1d" not in table:
        raise ConfigError.at(where, "cache: l1d is missing, caches begin with it")
    levels = tuple(parse_level(name, table[name], where) for name in LEVELS if name in table)
    check_levels(levels, where)
    c2c = parse_cache_to_cache(table.get("cache_to_cache"), nr_nodes, where)
    return CacheSpec(levels, c2c, parse_prefetch(table.get("prefetch", ()), where))
