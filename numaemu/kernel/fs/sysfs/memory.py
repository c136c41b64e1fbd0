"""/sys/devices/system/memory, and each node's memory blocks and access classes: Linux's drivers/base/{memory,node}.c."""

from numaemu.kernel.fs.sysfs.node import ROOT as NODE
from numaemu.spec.units import GiB, MiB

ROOT = "/sys/devices/system/memory"
SECTION_SIZE = 128 * MiB  # 1 << SECTION_SIZE_BITS of x86-64 and of arm64 with pages of 4 KiB
LARGE, LARGEST = 64 * GiB, 2 * GiB  # MEM_SIZE_FOR_LARGE_BLOCK, MAX_BLOCK_SIZE: arch/x86/mm/init_64.c


def memory_block_size(system):
    """probe_memory_block_size; 0 with 32 bits, where memory cannot be plugged in: there is no such directory."""
    if system.topology.paging == "x86-32":
        return 0
    end = max(start + size for ranges in system.topology.physical_ranges() for start, size in ranges)
    if end < LARGE or system.topology.paging.startswith("arm64"):
        return SECTION_SIZE
    size = LARGEST
    while size > SECTION_SIZE and end % size:
        size //= 2
    return size


def blocks(system):
    """{block: (nodes with memory in it, ranges of bytes in it)}, by number."""
    size, found = memory_block_size(system), {}
    for node, ranges in zip(system.topology.nodes, system.topology.physical_ranges()) if size else ():
        for start, nbytes in ranges:
            for block in range(start // size, -(-(start + nbytes) // size)):
                nodes, parts = found.setdefault(block, (set(), []))
                nodes.add(node.id)
                parts.append((max(start, block * size), min(start + nbytes, (block + 1) * size)))
    return dict(sorted(found.items()))


def valid_zones(system, nodes, parts, zones):
    """valid_zones_show of a block that is online: the zone that has all of it, "none" if several do."""
    names = {
        name for node, start, end, name in zones if node in nodes for low, high in parts if start < high and low < end
    }
    return names.pop() if len(names) == 1 and len(nodes) == 1 else "none"


def files(system, zones):
    """{path: text} of everything but links; `zones`: (node, first byte, end, name) of each zone."""
    size = memory_block_size(system)
    if not size:
        return {}
    found = {"block_size_bytes": f"{size:x}", "auto_online_blocks": "offline"}
    for block, (nodes, parts) in blocks(system).items():
        texts = {"state": "online", "online": "1", "removable": "1", "phys_index": f"{block:08x}", "phys_device": "0"}
        texts["valid_zones"] = valid_zones(system, nodes, parts, zones)
        found |= {f"memory{block}/{name}": text for name, text in texts.items()}
    return {f"{ROOT}/{name}": f"{text}\n" for name, text in found.items()} | access_files(system)


def initiator_of(system, node):
    """The nearest node with CPUs, itself first: whose figures HMAT tables state for a memory."""
    latency = system.topology.latency_ns
    near = [other for other in system.topology.nodes if other.cpus]
    return min(near, key=lambda other: (latency[other.id][node.id], other.id != node.id, other.id)).id


def access_files(system):
    """access0/initiators: node_init_node_access, of every node with memory; latencies in ns, bandwidths in MB/s."""
    found = {}
    for node in system.topology.nodes:
        if node.memory_bytes:
            place = f"{NODE}/node{node.id}/access0/initiators"
            ns = system.topology.latency_ns[initiator_of(system, node)][node.id]
            found |= {f"{place}/{name}_latency": f"{ns}\n" for name in ("read", "write")}
            if (rates := system.topology.bandwidth_mbs) is not None:
                rate = rates[initiator_of(system, node)][node.id]
                found |= {f"{place}/{name}_bandwidth": f"{rate}\n" for name in ("read", "write")}
    return found


def links(system):
    """{path: target}"""
    found = {}
    for block, (nodes, _) in blocks(system).items():
        for node in nodes:
            found[f"{ROOT}/memory{block}/node{node}"] = f"../../node/node{node}"
            found[f"{NODE}/node{node}/memory{block}"] = f"../../memory/memory{block}"
    for node in system.topology.nodes:
        if node.memory_bytes:
            initiator = initiator_of(system, node)
            found[f"{NODE}/node{node.id}/access0/initiators/node{initiator}"] = f"../../../node{initiator}"
            found[f"{NODE}/node{initiator}/access0/targets/node{node.id}"] = f"../../../node{node.id}"
    return found
