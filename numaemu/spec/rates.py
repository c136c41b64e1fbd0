"""What a machine file says of rates: `[[node]] bandwidth`, `[link]`, and of overlap: `[cpu] outstanding`.

    [[node]]
    bandwidth = "200GB/s"           # what the node's memory controller moves at most

    [link]
    bandwidth = "40GB/s"            # of each link, in each direction
    links = "pairs"                 # a link for each pair of nodes; or "ring", "mesh 2x4", or a list:
    links = [{ a = 0, b = 1 }, { a = 1, b = 2, bandwidth = "20GB/s" }]

Lines between two nodes pass the links of the shortest path; of equally short ones that through the lower numbers.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from numaemu.errors import ConfigError
from numaemu.spec.param import MAX_OUTSTANDING
from numaemu.spec.units import check_table, parse_int, shown

RATE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}  # as vendors state memory
BINARY_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
RATE_TEXT = re.compile(r"(\d{1,15})(?:\.(\d{1,9}))?\s*(?:([kmgt])(i?))?b/s", re.IGNORECASE | re.ASCII)
MIN_RATE, MAX_RATE = 10**6, 10**13  # bytes a second: a line of 64 bytes takes 64 us, or 6.4 ps
DEFAULT_CPU = {"outstanding": 1}  # nothing overlaps
DEFAULT_LINK: dict[str, Any] = {"bandwidth": None, "links": "pairs"}
LINK_KEYS = ("a", "b", "bandwidth")
MESH = re.compile(r"mesh (\d{1,2})x(\d{1,2})", re.ASCII)
LINKS_HINT = "must be 'pairs', 'ring', 'mesh RxC' or a list of { a, b, bandwidth }"


@dataclass(frozen=True)
class Link:
    """Two nodes that lines pass between; in each direction at the rate."""

    a: int
    b: int
    rate: int  # bytes a second

    @property
    def name(self) -> str:
        return f"{self.a}-{self.b}"


@dataclass(frozen=True)
class Rates:
    """What moves how fast. Without a rate there is no limit."""

    node: tuple[int | None, ...]  # bytes a second of each node's memory controller
    links: tuple[Link, ...]
    paths: tuple[tuple[tuple[int, ...], ...], ...]  # by first and last node: the nodes on the way, both ends included
    link_table: dict[str, Any] | None  # what the machine file says in [link], checked
    outstanding: int  # misses of a CPU that may be under way

    @property
    def limited(self) -> bool:
        """True if some controller or link has a rate."""
        return any(rate is not None for rate in self.node) or bool(self.links)

    @property
    def timed(self) -> bool:
        """True if accesses have to be timed one by one."""
        return self.limited or self.outstanding > 1


def parse_rate(value: Any, what: str, where: str) -> int:
    """Bytes a second of "200GB/s", "1.5GiB/s" or a plain number. K, M, G, T are powers of 1000, with an i of 1024."""
    if isinstance(value, str):
        match = RATE_TEXT.fullmatch(value.strip())
        if match is None:
            raise ConfigError.at(where, f"{what} is {shown(value)}, must be a rate such as '200GB/s' or '1.5GiB/s'")
        whole, part, unit, binary = match.groups(default="")
        scale = (BINARY_UNITS if binary else RATE_UNITS)[unit.lower()]
        value, rest = divmod(int(whole + part) * scale, 10 ** len(part))
        if rest:
            raise ConfigError.at(where, f"{what} is a fraction of a byte a second, must be a whole number of them")
    rate = parse_int(value, what, where, 0, 10**30, " B/s")
    if not MIN_RATE <= rate <= MAX_RATE:
        limit = f"at least {format_rate(MIN_RATE)}" if rate < MIN_RATE else f"at most {format_rate(MAX_RATE)}"
        raise ConfigError.at(where, f"{what} is {format_rate(rate)}, must be {limit}")
    return rate


def format_rate(rate: int) -> str:
    """Text of a rate, which parse_rate() reads back to the same number."""
    for unit in ("T", "G", "M", "k"):
        scale = RATE_UNITS[unit.lower()]
        if rate >= scale and rate * 1000 % scale == 0:
            thousandths = rate * 1000 // scale
            return f"{thousandths / 1000:.15g}{unit}B/s"
    return f"{rate}B/s"


def parse_node_rates(tables: Any, where: str) -> tuple[int | None, ...]:
    """`bandwidth` of each [[node]], which are known to be tables."""
    return tuple(
        parse_rate(table["bandwidth"], f"node {nid}: bandwidth", where) if "bandwidth" in table else None
        for nid, table in enumerate(tables)
    )


def parse_rates(machine: dict[str, Any], nr_nodes: int, where: str) -> Rates:
    """All that a machine file says of rates and overlap."""
    node = parse_node_rates(machine["node"], where)
    links, table = parse_links(machine.get("link"), nr_nodes, where)
    cpu = DEFAULT_CPU | check_table(machine.get("cpu", {}), DEFAULT_CPU, "cpu", where)
    outstanding = parse_int(cpu["outstanding"], "cpu: outstanding", where, 1, MAX_OUTSTANDING)
    return Rates(node, links, shortest_paths(links, nr_nodes, where) if links else (), table, outstanding)


def parse_links(table: Any, nr_nodes: int, where: str) -> tuple[tuple[Link, ...], dict[str, Any] | None]:
    """The links of [link], and the table with what it did not say; (), None: there is no such table."""
    if table is None:
        return (), None
    given = DEFAULT_LINK | check_table(table, DEFAULT_LINK, "link", where)
    rate = None if given["bandwidth"] is None else parse_rate(given["bandwidth"], "link: bandwidth", where)
    stated: dict[str, Any] = {} if rate is None else {"bandwidth": format_rate(rate)}
    if isinstance(given["links"], str):
        if rate is None:
            raise ConfigError.at(where, "link: bandwidth is missing")
        pairs = pairs_of(given["links"], nr_nodes, where)
        return tuple(Link(a, b, rate) for a, b in pairs), stated | {"links": given["links"]}
    links = parse_link_list(given["links"], rate, nr_nodes, where)
    written = [{"a": link.a, "b": link.b, "bandwidth": format_rate(link.rate)} for link in links]
    return links, stated | {"links": written}


def pairs_of(name: str, nr_nodes: int, where: str) -> list[tuple[int, int]]:
    """The pairs of nodes that a topology of this name links."""
    nodes = range(nr_nodes)
    if name == "pairs":
        return [(a, b) for a in nodes for b in nodes if a < b]
    if name == "ring":
        return sorted({(min(a, b), max(a, b)) for a in nodes for b in [(a + 1) % nr_nodes] if a != b})
    match = MESH.fullmatch(name)
    if match is None:
        raise ConfigError.at(where, f"link: links is {shown(name)}, {LINKS_HINT}")
    rows, columns = int(match[1]), int(match[2])
    if rows * columns != nr_nodes:
        text = f"link: links is {shown(name)}, which has {rows * columns} nodes"
        raise ConfigError.at(where, f"{text}, must be the machine's {nr_nodes}")
    right = [(n, n + 1) for n in nodes if (n + 1) % columns]
    return sorted(right + [(n, n + columns) for n in nodes if n + columns < nr_nodes])


def parse_link_list(rows: Any, rate: int | None, nr_nodes: int, where: str) -> tuple[Link, ...]:
    """Links as tables of two nodes and a rate, which may be that of all."""
    if not isinstance(rows, (list, tuple)) or not rows:
        raise ConfigError.at(where, f"link: links is {shown(rows)}, {LINKS_HINT}")
    links: dict[tuple[int, int], Link] = {}
    for i, row in enumerate(rows):
        what = f"link {i}"
        check_table(row, LINK_KEYS, what, where)
        for end in ("a", "b"):
            if end not in row:
                raise ConfigError.at(where, f"{what}: {end} is missing")
            parse_int(row[end], f"{what}: {end}", where, 0, nr_nodes - 1)
        a, b = sorted((int(row["a"]), int(row["b"])))
        if a == b:
            raise ConfigError.at(where, f"{what}: a and b are both node {a}, must be two nodes")
        if (a, b) in links:
            raise ConfigError.at(where, f"{what}: nodes {a} and {b} are linked already")
        own = parse_rate(row["bandwidth"], f"{what}: bandwidth", where) if "bandwidth" in row else rate
        if own is None:
            raise ConfigError.at(where, f"{what}: bandwidth is missing")
        links[a, b] = Link(a, b, own)
    return tuple(links.values())


def shortest_paths(links: Collection[Link], nr_nodes: int, where: str) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The nodes on the way from each to each."""
    neighbours: list[list[int]] = [[] for _ in range(nr_nodes)]
    for link in links:
        neighbours[link.a].append(link.b)
        neighbours[link.b].append(link.a)
    paths = []
    for first in range(nr_nodes):
        way: dict[int, tuple[int, ...]] = {first: (first,)}
        reached = [first]
        for node in reached:  # grows meanwhile
            for following in sorted(neighbours[node]):
                if following not in way:
                    way[following] = (*way[node], following)
                    reached.append(following)
        for last in range(nr_nodes):
            if last not in way:
                raise ConfigError.at(where, f"link: no path of links leads from node {first} to node {last}")
        paths.append(tuple(way[last] for last in range(nr_nodes)))
    return tuple(paths)


def check_against_firmware(rates: Rates, mbs: Any, cpu_nodes: Collection[int], where: str) -> None:
    """[bandwidth], what the firmware tells the kernel, promises no more than there is."""
    by_link: dict[tuple[int, ...], int] = {
        ends: link.rate for link in rates.links for ends in ((link.a, link.b), (link.b, link.a))
    }
    for i in cpu_nodes if mbs is not None else ():
        for j, told in enumerate(mbs[i]):
            limits = [(rate, f"node {j}'s controller") for rate in [rates.node[j]] if rate is not None]
            way = rates.paths[j][i] if rates.links else ()
            limits += [(by_link[hop], f"link {min(hop)}-{max(hop)}") for hop in zip(way, way[1:])]
            least = min(limits, default=None)
            if least is not None and told * 10**6 > least[0]:
                text = f"node {i}: bandwidth to node {j} is {told} MB/s"
                raise ConfigError.at(where, f"{text}, must be at most {least[0] // 10**6}, the rate of {least[1]}")


def rates_to_dict(rates: Rates, machine: dict[str, Any]) -> dict[str, Any]:
    """`machine`, of a machine file's shape, with what it says of rates and overlap."""
    for table, rate in zip(machine["node"], rates.node):
        if rate is not None:
            table["bandwidth"] = format_rate(rate)
    if rates.link_table is not None:
        machine["link"] = dict(rates.link_table)
    machine["cpu"] = {"outstanding": rates.outstanding}
    return machine
