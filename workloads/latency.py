"""What one load costs, for every pair of CPU node and memory node: the machine's latency matrix, measured.

A chain of pointers through all cache lines of a buffer, in random order, is followed by a user kernel; each load
needs the one before, so emulated time per load is latency. Look for:
  - the diagonal is local memory, the rest is remote; a node without CPUs is a column without a row;
  - what the TLB adds is counted (L2 hits, walks and the loads of a walk) and taken away, so the figures are exact.
"""

import numba
import numpy as np

import numaemu
from numaemu import load_u64

LOCKSTEP = True
PAGES, LINE = 256, 64  # more pages than the L1 TLB has entries


@numba.njit(cache=True)
def follow(cpu, address, loads):
    """Load a pointer, go where it points, and so on."""
    for _ in range(loads):
        address = load_u64(cpu, address)
    return address


def write_chain(task, addresses, seed=1):
    """Store pointers that lead once through all `addresses`, in random order, and back to the first."""
    order = np.random.default_rng(seed).permutation(len(addresses))
    task.store(addresses[order], addresses[np.roll(order, -1)])


def measure(task, node, l2_ns, local_ns):
    """ns of one load from `node`, without the TLB's share, by a task on another or the same node."""
    buffer = task.mmap(PAGES * 4096)
    task.mbind(buffer.addr, buffer.nbytes, numaemu.MPOL_BIND, node)
    lines = np.arange(buffer.addr, buffer.addr + buffer.nbytes, LINE, dtype=np.uint64)
    write_chain(task, lines)
    before = task.counters()
    task.call(follow, lines[0], len(lines))
    grown = {name: value - before[name] for name, value in task.counters().items() if isinstance(value, int)}
    looked_up = grown["l2_tlb_hits"] + grown["page_walks"] + grown["dirty_assists"]
    tlb_ns = looked_up * l2_ns + grown["walk_loads"] * local_ns  # page tables are local: first touch
    return (grown["clock_ns"] - tlb_ns) / grown["loads"]


def main(machine):
    l2_ns, latency = machine.topology.l2.latency_ns, machine.topology.latency_ns
    targets = [node.id for node in machine.nodes if node.memory_bytes]
    return {
        f"node {node.id}, ns": {
            f"to node {t}": round(machine.run(measure, t, l2_ns, latency[node.id][node.id], cpu=node.cpus[0]), 2)
            for t in targets
        }
        for node in machine.nodes
        if node.cpus
    }
