"""Memory tiers: how far each node's memory is, in Linux's abstract distance, and where a full node's pages go.

    abstract distance   = 576 (DRAM) * latency / latency of DRAM * bandwidth of DRAM / bandwidth, each step in whole numbers
    tier                = abstract distance / 128; memory_tier4 is DRAM

Latency and bandwidth are those of the node's nearest CPUs, as the firmware's table (HMAT) has them: a machine file with [bandwidth]
has such a table. Linux's mm/memory-tiers.c, drivers/acpi/numa/hmat.c; where the table is missing all memory is DRAM.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.include.mmzone import node_of, node_t, populated_zones
from numaemu.spec.param import MAX_NODES

U = np.uint64
MEMTIER_CHUNK_BITS = 7
MEMTIER_CHUNK_SIZE = 1 << MEMTIER_CHUNK_BITS
MEMTIER_ADISTANCE_DRAM = 4 * MEMTIER_CHUNK_SIZE + (MEMTIER_CHUNK_SIZE >> 1)
NUMA_NO_NODE = -1
NUMA_BALANCING_DISABLED, NUMA_BALANCING_NORMAL, NUMA_BALANCING_MEMORY_TIERING = range(
    3
)  # bits of machine.numa_balancing


@hot
def node_is_toptier(machine, node):
    """True if pages of the node are not to be promoted: it is as near as memory of CPUs is, or nearer."""
    return node_of(machine, node).toptier != 0


@hot
def folio_use_access_time(machine, node):
    """True if the cpupid of a page on this node is a time."""
    return machine.numa_balancing & NUMA_BALANCING_MEMORY_TIERING != 0 and not node_is_toptier(machine, node)


@hot
def can_demote(machine, node):
    """True if reclaim may move pages of a node to a slower tier."""
    return machine.demotion_enabled != 0 and node_of(machine, node).demotion_preferred != U(0)


@hot
def can_reclaim_anon_pages(machine, node):
    """True if swap or a slower tier can take anonymous pages of a node."""
    return load_acquire(machine, "nr_swap_pages") > 0 or can_demote(machine, node)


@kernel("i64(machine_t*, i64, i64)")
def next_demotion_node(machine, node, turn):
    """The node that pages of a node are demoted to, -1: it is of the lowest tier. Of several that are as near, one by `turn`, where
    Linux draws one (node_random).
    """
    preferred, number = node_of(machine, node).demotion_preferred, 0
    for nid in range(MAX_NODES):
        number += np.int64((preferred >> U(nid)) & U(1))
    if number == 0:
        return NUMA_NO_NODE
    turn %= number
    for nid in range(MAX_NODES):
        if (preferred >> U(nid)) & U(1) != U(0):
            if turn == 0:
                return nid
            turn -= 1
    return NUMA_NO_NODE


# -- at boot -------------------------------------------------------------------------------------------------


def access_coordinates(topology, node):
    """{read_latency, write_latency (ns), read_bandwidth, write_bandwidth (MB/s)} of a node's nearest CPUs: access0/initiators; None:
    the machine has no such table.
    """
    initiators = [n.id for n in topology.nodes if n.cpus]
    if topology.bandwidth_mbs is None or not initiators:
        return None
    best = min(initiators, key=lambda n: (topology.latency_ns[n][node], -topology.bandwidth_mbs[n][node]))
    latency, bandwidth = topology.latency_ns[best][node], topology.bandwidth_mbs[best][node]
    return {
        "read_bandwidth": bandwidth,
        "read_latency": latency,
        "write_bandwidth": bandwidth,
        "write_latency": latency,
    }


def dram_perf(topology, with_memory):
    """The figures of the first node with memory and CPUs; None: there are none, or such nodes differ by more than a tenth
    (mt_set_default_dram_perf), and then Linux does not go by the table.
    """
    nodes = [n for n in with_memory if topology.nodes[n].cpus]
    perf = [access_coordinates(topology, n) for n in nodes]
    if not perf or perf[0] is None:
        return None
    same = all(abs(p[key] - perf[0][key]) * 10 <= perf[0][key] for p in perf for key in p)
    return perf[0] if same else None


def mt_perf_to_adistance(perf, dram):
    """The abstract distance of memory with these figures."""
    latency, bandwidth = ("read_latency", "write_latency"), ("read_bandwidth", "write_bandwidth")
    distance = MEMTIER_ADISTANCE_DRAM * sum(perf[k] for k in latency) // sum(dram[k] for k in latency)
    return distance * sum(dram[k] for k in bandwidth) // sum(perf[k] for k in bandwidth)


def adistances(topology, with_memory):
    """{node: abstract distance} of the nodes with memory."""
    dram = dram_perf(topology, with_memory)
    if dram is None:
        return dict.fromkeys(with_memory, MEMTIER_ADISTANCE_DRAM)
    return {node: mt_perf_to_adistance(access_coordinates(topology, node), dram) for node in with_memory}


def memory_tiers(adistance):
    """{number of a tier: its nodes}, the nearest first."""
    tiers = {}
    for node, distance in sorted(adistance.items(), key=lambda item: (item[1] >> MEMTIER_CHUNK_BITS, item[0])):
        tiers.setdefault(distance >> MEMTIER_CHUNK_BITS, []).append(node)
    return tiers


def preferred_targets(topology, node, candidates):
    """Those nodes of the next tier that are nearest, in the order in which Linux finds them (find_next_best_node)."""

    def order(n):
        return topology.distance[node][n] + (n < node) + bool(topology.nodes[n].cpus), n

    found = []
    for target in sorted(candidates, key=order):
        if found and topology.distance[node][target] != topology.distance[node][found[0]]:
            break
        found.append(target)
    return found


def mask(nodes):
    return sum(1 << node for node in nodes)


def tiers_of(machine):
    """{number of a tier: its nodes} of a machine that has booted."""
    nodes = [n for n in range(machine.nr_nodes) if node_of(machine, n).nr_present_pages > 0]
    return memory_tiers({n: node_of(machine, n).adistance for n in nodes})


def memory_tier_init(topology, machine):
    """Abstract distances, the highest tier that is not promoted from, demotion targets. Mirrors establish_demotion_targets.

    Pages are promoted from a tier only if none of its nodes, nor of a slower tier's, has CPUs.
    """
    for node in range(machine.nr_nodes):
        node_t.array(machine.nodes)[node].nr_present_pages = sum(
            z.present_pages for z in populated_zones(machine, node)
        )
        node_t.array(machine.nodes)[node].toptier = 1
    with_memory = [n for n in range(machine.nr_nodes) if node_of(machine, n).nr_present_pages > 0]
    distance = adistances(topology, with_memory)
    tiers = list(memory_tiers(distance).items())
    with_cpus = [tier for tier, nodes in tiers if any(topology.nodes[n].cpus for n in nodes)]
    top = max(with_cpus, default=0)  # top_tier_adistance
    for place, (tier, nodes) in enumerate(tiers):
        lower = [n for _, below in tiers[place + 1 :] for n in below]
        for node in nodes:
            pgdat = node_t.array(machine.nodes)[node]
            pgdat.adistance, pgdat.toptier, pgdat.lower_tier_mask = distance[node], int(tier <= top), mask(lower)
            following = tiers[place + 1][1] if place + 1 < len(tiers) else []
            pgdat.demotion_preferred = mask(preferred_targets(topology, node, following))
