"""Gives a machine whose file has rates its servers, and its CPUs what they need to have several misses under way. At boot."""

import numpy as np

from numaemu.compiler.pointer import u16
from numaemu.hardware.bandwidth import END_OF_PATH, LINE_BYTES, MAX_HOPS, SLOTS, passage_t, rates_t
from numaemu.hardware.processor import cpu_t
from numaemu.hardware.timing import enable_timing

PS_PER_S = 10**12
QUANTA = 8  # of lockstep that a server remembers at least: a CPU is ahead by one, and by what one operation takes
FREE_NS = 20_000_000  # likewise where all run freely: how far their clocks may be apart; docs/guides/time.md
LEAST_WORDS, MOST_WORDS = 1 << 12, 1 << 20  # of a server's ring
MOST_BYTES = 1 << 27  # of all rings


def servers_of(topology):
    """(name, bytes a second or None) of each server: controllers, then links in both directions."""
    found = [(f"node {node}", rate) for node, rate in enumerate(topology.rates.node)]
    for link in topology.rates.links:
        found += [(f"link {a}>{b}", link.rate) for a, b in ((link.a, link.b), (link.b, link.a))]
    return found


def ring_words(topology):
    """How many words the ring of each server has: as many lines as the fastest moves in the time that it is to remember."""
    rates = [rate for _, rate in servers_of(topology) if rate is not None]
    ns = QUANTA * topology.quantum_ns if topology.lockstep else FREE_NS
    wanted = ns * max(rates) // (10**9 * LINE_BYTES * SLOTS)
    most = min(MOST_WORDS, MOST_BYTES // 8 // len(servers_of(topology)))
    words = LEAST_WORDS
    while words < wanted and 2 * words <= most:
        words *= 2
    return words


def rate_blocks(topology):
    """(name, bytes) of the tables; none where nothing has a rate."""
    if not topology.rates.limited:
        return []
    nr_servers = len(servers_of(topology))
    return [
        ("rates", rates_t.nbytes),
        ("rate_rings", nr_servers * ring_words(topology) * 8),
        ("rate_paths", topology.nr_nodes**2 * MAX_HOPS * 2),
        ("rate_passages", (topology.nr_cpu_ids + topology.nr_nodes) * nr_servers * passage_t.nbytes),
    ]


def init_paths(topology, address):
    """The servers that a line passes from node to node."""
    rates = topology.rates
    number = {}
    for i, link in enumerate(rates.links):
        number[link.a, link.b] = topology.nr_nodes + 2 * i
        number[link.b, link.a] = topology.nr_nodes + 2 * i + 1
    paths = np.full((topology.nr_nodes, topology.nr_nodes, MAX_HOPS), END_OF_PATH, np.uint16)
    for source, row in enumerate(rates.paths):
        for target, way in enumerate(row):
            for i, hop in enumerate(zip(way, way[1:])):
                paths[source, target, i] = number[hop]
    u16.array(address).as_numpy(paths.size)[:] = paths.ravel()


def init_servers(topology, blocks):
    """What all servers have in common, and the paths over them."""
    rates, words = rates_t.at(blocks["rates"]), ring_words(topology)
    rates.nr_nodes, rates.nr_servers = topology.nr_nodes, len(servers_of(topology))
    rates.lap_shift, rates.ring_mask, rates.shared = words.bit_length() - 1, words - 1, int(not topology.lockstep)
    if topology.rates.links:
        rates.paths = blocks["rate_paths"]
        init_paths(topology, rates.paths)


def init_passages(topology, cpu, blocks):
    """Each server as a CPU meets it."""
    words = ring_words(topology)
    for i, (_, rate) in enumerate(servers_of(topology)):
        if rate is not None:
            passage = passage_t.array(cpu.passages)[i]
            passage.ring = blocks["rate_rings"] + i * words * 8
            passage.line_ps = LINE_BYTES * PS_PER_S / rate
            passage.lines_per_ps = 1 / passage.line_ps


def init_rates(topology, machine, blocks):
    """What each CPU, and each node's kernel threads, know of rates and overlap."""
    nr_servers = len(servers_of(topology))
    if topology.rates.limited:
        init_servers(topology, blocks)
    for number in range(topology.nr_cpu_ids + topology.nr_nodes):
        cpu = cpu_t.array(machine.cpus)[number]
        cpu.outstanding = topology.rates.outstanding
        if topology.rates.limited:
            cpu.rates = blocks["rates"]
            cpu.passages = blocks["rate_passages"] + number * nr_servers * passage_t.nbytes
            init_passages(topology, cpu, blocks)
        if topology.rates.timed:
            cpu.keeps_lines = int(topology.cache is None)
            enable_timing(cpu)
