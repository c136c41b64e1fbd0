"""hwloc's XML, of its versions 1 to 3 (lstopo machine.xml)."""

import re

from numaemu.errors import ConfigError
from numaemu.host.extras import need
from numaemu.spec.machine_file import LOCAL_DISTANCE, REMOTE_DISTANCE
from numaemu.spec.units import list_text
from numaemu.tools.importer.found import Found, FoundNode

OLD_TYPES = {"Socket": "Package", "Cache": "Cache"}  # of hwloc 1
CACHES = ("L1Cache", "L1iCache", "L2Cache", "L3Cache", "L4Cache", "L5Cache", "Cache")


def parse(text):
    """The root element. A document with entities of its own, or with references to other files, is refused."""
    import xml.etree.ElementTree

    safe = need("defusedxml.ElementTree", "import", "reading hwloc's XML")
    from defusedxml.common import DefusedXmlException

    try:
        root = safe.fromstring(text)
    except DefusedXmlException as error:
        raise ConfigError(f"the XML is refused: {type(error).__name__} ({error})") from None
    except (xml.etree.ElementTree.ParseError, ValueError, RecursionError) as error:
        raise ConfigError(f"no valid XML: {error}") from None
    if root.tag != "topology":
        raise ConfigError(f"the XML is a <{root.tag[:40]}>, must be hwloc's <topology>")
    return root


def bits(text):
    """The members of hwloc's "0x1,,0x0000ffff"."""
    value = 0
    for word in (text or "0").split(","):
        value = value << 32 | int(word or "0", 16)
    return {i for i in range(value.bit_length()) if value >> i & 1}


def number(element, name, default=None):
    """An attribute as a whole number."""
    text = element.get(name)
    if text is None:
        if default is None:
            raise ConfigError(f"an object {element.get('type')!r} has no {name}")
        return default
    return int(text)


def objects(root, kind):
    return [e for e in root.iter("object") if OLD_TYPES.get(e.get("type"), e.get("type")) == kind]


def read(text, name):
    """A Found."""
    try:
        return read_topology(parse(text), name)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise ConfigError(f"hwloc's XML does not make sense: {error}") from None


def read_topology(root, name):
    """A Found of the root element."""
    machine = next(iter(objects(root, "Machine")), None)
    if machine is None:
        raise ConfigError("hwloc's XML has no Machine")
    old = root.get("version") is None or root.get("version", "").startswith("1")
    elements = sorted(objects(root, "NUMANode"), key=lambda e: number(e, "os_index"))
    pus = {number(e, "os_index") for e in objects(root, "PU")}
    if not elements:  # hwloc 1 of a machine without NUMA
        memory = number(machine, "local_memory", 0)
        return described(Found(name, [FoundNode(0, memory, pus)]), root, [pus])
    near = [bits(e.get("cpuset")) for e in elements]
    owner = {pu: nearest(pu, near) for pu in sorted(pus)}
    nodes = [
        FoundNode(number(e, "os_index"), number(e, "local_memory", 0), {pu for pu, i in owner.items() if i == n})
        for n, e in enumerate(elements)
    ]
    found = Found(name, nodes)
    found.distance = old_distances(root, len(nodes)) if old else distances(root, elements)
    found.latency = attribute(root, elements, nodes, "Latency")
    found.bandwidth = attribute(root, elements, nodes, "Bandwidth")
    add_nodes_without_memory(found, root, {pu for pu, i in owner.items() if i is None})
    if not any(node.memory for node in found.nodes):
        found.notes.append("sizes of memory are not in it")
        for node in found.nodes:
            node.memory = None
    return described(found, root, near)


def add_nodes_without_memory(found, root, lost):
    """CPUs that are near no memory (it may not be used, or there is none) get nodes without memory: those that hwloc names."""
    known, groups = {node.number for node in found.nodes}, {}
    for pu in objects(root, "PU"):
        if number(pu, "os_index") in lost:
            names = bits(pu.get("complete_nodeset")) - known
            groups.setdefault(min(names) if names else max(known) + 1, set()).add(number(pu, "os_index"))
    for nid, cpus in sorted(groups.items()):
        place = sum(node.number < nid for node in found.nodes)
        found.nodes.insert(place, FoundNode(nid, 0, cpus))
        found.notes.append(f"CPUs {list_text(sorted(cpus))} have no memory that may be used: node {nid} has none")
        for matrix, new in ((found.distance, REMOTE_DISTANCE), (found.latency, None), (found.bandwidth, None)):
            if matrix:
                for row in matrix:
                    row.insert(place, new)
                matrix.insert(place, [new] * len(found.nodes))
        if found.distance:
            found.distance[place][place] = LOCAL_DISTANCE
            found.notes.append(f"distances from and to node {nid} are not in it: {REMOTE_DISTANCE}")


def nearest(pu, near):
    """The node that a CPU belongs to: the one with the fewest CPUs around it, of several the first."""
    return min((i for i in range(len(near)) if pu in near[i]), key=lambda i: (len(near[i]), i), default=None)


# -- matrices ------------------------------------------------------------------------------------------------


def words(element, tag):
    return [word for e in element.findall(tag) for word in (e.text or "").split()]


def distances(root, elements):
    """The matrix NUMALatency (or one without a name) over all nodes, or None."""
    for table in root.findall("distances2"):
        if table.get("type") != "NUMANode" or table.get("name", "NUMALatency") != "NUMALatency":
            continue
        key = "os_index" if table.get("indexing") == "os" else "gp_index"
        order, values = words(table, "indexes"), [int(word) for word in words(table, "u64values")]
        at, n = {index: i for i, index in enumerate(order)}, len(order)
        if {e.get(key) for e in elements} <= set(order) and len(values) == n * n:
            places = [at[e.get(key)] for e in elements]
            return [[values[a * n + b] for b in places] for a in places]
    return None


def old_distances(root, n):
    """hwloc 1: relative latencies, times 10, of all nodes in their logical order."""
    for table in root.iter("distances"):
        values = [float(e.get("value")) for e in table.findall("latency")]
        if int(table.get("nbobjs", 0)) == n and len(values) == n * n:
            base = float(table.get("latency_base", 10.0))
            return [[round(value * base) for value in values[i * n : (i + 1) * n]] for i in range(n)]
    return None


def attribute(root, elements, nodes, name):
    """Latency in ns, or Bandwidth in MB/s, by node of CPUs and node of memory from the memory attributes, or None."""
    attributes = {a.get("name"): a for a in root.findall("memattr")}
    table = attributes.get(f"Read{name}", attributes.get(name))
    if table is None:
        return None
    rows: list[list[int | None]] = [[None] * len(nodes) for _ in nodes]
    places = {kind: {e.get(f"{kind}_index"): j for j, e in enumerate(elements)} for kind in ("gp", "os")}
    for value in table.findall("memattr_value"):
        kind = "gp" if value.get("target_obj_gp_index") else "os"
        column = places[kind].get(value.get(f"target_obj_{kind}_index"))
        for i, node in enumerate(nodes):
            if column is not None and node.cpus and node.cpus <= bits(value.get("initiator_cpuset")):
                rows[i][column] = int(value.get("value"))
    return rows if any(ns is not None for row in rows for ns in row) else None


# -- what a machine file cannot say --------------------------------------------------------------------------


def described(found, root, near):
    """Notes about the rest of the topology."""
    notes = found.notes
    threads = max((len(bits(e.get("cpuset"))) for e in objects(root, "Core")), default=1)
    if threads > 1:
        notes.append(f"cores have {threads} threads; each is a CPU of its own")
    packages = [bits(e.get("cpuset")) for e in objects(root, "Package")]
    if packages and sorted(map(sorted, packages)) != sorted(map(sorted, (cpus for cpus in near if cpus))):
        notes.append(f"there are {len(packages)} packages, which are not the nodes; here a node is a package")
    caches = {cache_name(e): e for kind in CACHES for e in objects(root, kind)}
    if caches:
        sizes = ", ".join(f"{label} {size_text(e)}" for label, e in sorted(caches.items()))
        notes.append(f"caches are left out: {sizes}")
    if side := objects(root, "MemCache"):
        notes.append(f"{len(side)} memory-side caches are left out, of {size_text(side[0])} each")
    for other in root.findall("memattr"):
        if other.get("name") not in ("Capacity", "Locality", "Latency", "ReadLatency", "Bandwidth", "ReadBandwidth"):
            notes.append(f"the memory attribute {other.get('name')} is left out")
    if kinds := root.findall("cpukind"):
        notes.append(f"{len(kinds)} kinds of CPUs are all the same here")
    subtypes = {e.get("subtype") for e in objects(root, "NUMANode") if e.get("subtype")}
    if subtypes:
        notes.append(
            f"kinds of memory ({', '.join(sorted(subtypes))}) are known by their latencies and bandwidths only"
        )
    return found


def cache_name(element):
    if element.get("type") == "Cache":
        kind = {"0": "", "1": "d", "2": "i"}.get(element.get("cache_type"), "")
        return f"L{element.get('depth')}{kind}"
    return re.sub("Cache", "", element.get("type", ""))


def size_text(element):
    size = int(element.get("cache_size", 0))
    return f"{size >> 20} MiB" if size and size % (1 << 20) == 0 else f"{size >> 10} KiB"
