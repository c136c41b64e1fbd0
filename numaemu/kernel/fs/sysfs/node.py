"""/sys/devices/system/node: Linux's drivers/base/node.c."""

from numaemu.kernel.fs.proc.meminfo import node_meminfo
from numaemu.kernel.fs.proc.vmstat import node_vmstat
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, ZONE_NORMAL, zone_of
from numaemu.kernel.include.vmstat import fold_numa
from numaemu.spec.units import list_text

ROOT = "/sys/devices/system/node"


def mask_text(numbers, nr_bits):
    """Linux's %*pb: groups of 32 bits in hexadecimal, the first as wide as its bits need."""
    mask, words = sum(1 << number for number in numbers), []
    for low in range((nr_bits - 1) // 32 * 32, -1, -32):
        digits = (min(nr_bits - low, 32) + 3) // 4
        words.append(f"{mask >> low & 0xFFFF_FFFF:0{digits}x}")
    return ",".join(words)


def cpus_of(system, node):
    return system.topology.nodes[node].cpus


def cpulist(system, node):
    return list_text(cpus_of(system, node)) + "\n"


def cpumap(system, node):
    return mask_text(cpus_of(system, node), system.machine.nr_cpus) + "\n"


def distance(system, node):
    """node_read_distance"""
    return " ".join(str(d) for d in system.topology.distance[node]) + "\n"


def numastat(system, node):
    """node_read_numastat"""
    return "".join(f"{name} {value}\n" for name, value in fold_numa(system.machine, node).items())


# fmt: off
NODE_FILES = {"cpulist": cpulist, "cpumap": cpumap, "distance": distance, "meminfo": node_meminfo, "numastat": numastat,
              "vmstat": node_vmstat}
# fmt: on


def compact_store(system, node, _text):
    """Whatever is written compacts the node."""
    return system.compact_nodes([node])


NODE_WRITERS = {"compact": compact_store}


# -- which nodes ---------------------------------------------------------------------------------------------


def online(system):
    return range(system.machine.nr_nodes)


def has_cpu(system):
    return [node for node in online(system) if cpus_of(system, node)]


def has_memory(system):
    """N_MEMORY"""
    return [node for node in online(system) if int(system.machine.memory_mask) >> node & 1]


def has_normal_memory(system):
    """N_NORMAL_MEMORY: check_for_memory; memory that is only movable does not count."""
    return [
        node
        for node in has_memory(system)
        if any(zone_of(system.machine, node * MAX_NR_ZONES + kind).present_pages for kind in range(ZONE_NORMAL + 1))
    ]


def node_state(nodes):
    """show_node_state"""
    return lambda system: list_text(nodes(system)) + "\n"


# fmt: off
FILES = {f"{ROOT}/online": node_state(online), f"{ROOT}/possible": node_state(online),
         f"{ROOT}/has_cpu": node_state(has_cpu), f"{ROOT}/has_memory": node_state(has_memory),
         f"{ROOT}/has_normal_memory": node_state(has_normal_memory)}
# fmt: on
