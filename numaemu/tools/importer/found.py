"""What has been found out about a machine, and how that becomes a machine file."""

from dataclasses import dataclass, field

from numaemu.errors import ConfigError
from numaemu.spec.machine_file import LOCAL_DISTANCE, MAX_CPUS, MAX_DISTANCE, MAX_LATENCY_NS, MEMORY_PAGE
from numaemu.spec.units import format_size, list_text


@dataclass
class FoundNode:
    """A NUMA node: its number there, its memory in bytes (None: not told), its CPUs' numbers."""

    number: int
    memory: int | None
    cpus: set[int]


@dataclass
class Found:
    """A machine as it was described. Matrices are in the order of the nodes; an entry of `latency` and of `bandwidth` may be None."""

    name: str
    nodes: list[FoundNode]
    distance: list[list[int]] | None = None
    latency: list[list[int | None]] | None = None
    bandwidth: list[list[int | None]] | None = None  # MB/s
    extra: dict = field(default_factory=dict)  # further tables of the machine file
    notes: list[str] = field(default_factory=list)  # what cannot be expressed, or was changed


def machine_dict(found, scale=1.0):
    """(a dict of a machine file's shape, notes). Memory is divided by `scale`."""
    notes = list(found.notes)
    if not found.nodes:
        raise ConfigError("no node was found")
    cpus = numbered([node.cpus for node in found.nodes], notes)
    if [node.number for node in found.nodes] != list(range(len(found.nodes))):
        notes.append(f"nodes {list_text(node.number for node in found.nodes)} are numbered from 0 without gaps")
    sizes = [memory_of(node, scale, notes) for node in found.nodes]
    tables = [
        {"cpus": own} if size is None else {"memory": format_size(size), "cpus": own} for size, own in zip(sizes, cpus)
    ]
    machine = {"name": found.name, "node": tables}
    if found.distance:
        machine["distance"] = {"matrix": checked_distance(found, notes)}
    if latency := completed(found, machine.get("distance", {}).get("matrix"), notes):
        machine["latency"] = {"matrix": latency}
    if bandwidth := known_bandwidth(found, notes):
        machine["bandwidth"] = {"matrix": bandwidth}
    return machine | found.extra, notes


def memory_of(node, scale, notes):
    """Bytes of a node: whole pages."""
    if node.memory is None:
        return None
    size = int(node.memory / scale)
    if size % MEMORY_PAGE:
        notes.append(f"node {node.number}: {size % MEMORY_PAGE} bytes of an incomplete page are left out")
    return size // MEMORY_PAGE * MEMORY_PAGE


def numbered(cpus_of_nodes, notes):
    """CPU numbers that a machine can have: those found, or, if one is too high or there is no CPU 0, numbers without gaps."""
    numbers = sorted(cpu for cpus in cpus_of_nodes for cpu in cpus)
    if not numbers or numbers[0] == 0 and numbers[-1] < MAX_CPUS:
        return [sorted(cpus) for cpus in cpus_of_nodes]
    notes.append(f"CPUs {list_text(numbers)} are numbered from 0 without gaps")
    new = {cpu: i for i, cpu in enumerate(numbers)}
    return [sorted(new[cpu] for cpu in cpus) for cpus in cpus_of_nodes]


def checked_distance(found, notes):
    """Distances that a machine can have: a node's own is 10, others are at least that."""
    rows = [list(row) for row in found.distance]
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            least, most = LOCAL_DISTANCE, LOCAL_DISTANCE if i == j else MAX_DISTANCE
            if not least <= value <= most:
                row[j] = min(max(value, least), most)
                a, b = found.nodes[i].number, found.nodes[j].number
                notes.append(f"the distance from node {a} to node {b} is {value}, which becomes {row[j]}")
    return rows


def known_bandwidth(found, notes):
    """The matrix of bandwidths; the least one stands for those that nobody told. None if none is known."""
    known = [mbs for row in found.bandwidth or () for mbs in row if mbs]
    if not known:
        return None
    least = min(known)
    if any(not mbs for node, row in zip(found.nodes, found.bandwidth) if node.cpus for mbs in row):
        notes.append(f"bandwidths are known for some pairs of nodes only; the others are the lowest, {least} MB/s")
    return [[mbs or least for mbs in row] for row in found.bandwidth]


def completed(found, distance, notes):
    """The matrix of latencies, with those that nobody told in proportion to the distances; None if none is known."""
    known = {(i, j): ns for i, row in enumerate(found.latency or ()) for j, ns in enumerate(row) if ns is not None}
    if not known:
        return None
    n = range(len(found.nodes))
    if any((i, j) not in known for i in n for j in n if found.nodes[i].cpus):
        notes.append("latencies are known for some pairs of nodes only; the others follow the distances")
    d = distance or [[LOCAL_DISTANCE if i == j else 2 * LOCAL_DISTANCE + 1 for j in n] for i in n]
    (i, j), ns = min(known.items(), key=lambda item: item[1])
    return [[min(max(known.get((a, b)) or round(ns * d[a][b] / d[i][j]), 1), MAX_LATENCY_NS) for b in n] for a in n]
