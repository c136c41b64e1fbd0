"""What the TLB costs: time per load of a pointer chase whose working set grows.

One load per page, in random order, so that every load needs a translation of its own. Look for two steps:
  - up to the entries of the L1 TLB a load costs memory latency and nothing else;
  - then the L2 TLB answers, a few ns more;
  - beyond its entries every load pays a page walk: four loads more (true LRU and a cyclic chase: all or nothing,
    but for sets that happen to get fewer pages).
"""

import numba
import numpy as np

from numaemu import load_u64

LOADS = 20000  # measured for each working set, at least


@numba.njit(cache=True)
def follow(cpu, address, loads):
    for _ in range(loads):
        address = load_u64(cpu, address)
    return address


def chase(task, pages):
    """One line: a chain through `pages` pages, followed once to warm up and then measured."""
    area = task.mmap(pages * 4096)
    order = np.random.default_rng(pages).permutation(area.pages())
    task.store(order, np.roll(order, -1))
    task.call(follow, order[0], pages)
    loads, before = pages * -(-LOADS // pages), task.counters()
    task.call(follow, order[0], loads)
    after = task.counters()
    area.munmap()
    l1, l2, walks, ns = (
        after[name] - before[name] for name in ("l1_tlb_hits", "l2_tlb_hits", "page_walks", "clock_ns")
    )
    return {
        "KiB": pages * 4,
        "ns per load": round(ns / loads, 1),
        "L1 %": round(100 * l1 / loads),
        "L2 %": round(100 * l2 / loads),
        "walks %": round(100 * walks / loads),
    }


def main(machine):
    l1, l2 = machine.topology.l1.entries, machine.topology.l2.entries
    near = machine.nodes[machine.cpus[0].node].memory_bytes or max(node.memory_bytes for node in machine.nodes)
    most = near // 4096 // 2
    sizes = (l1 // 4, l1 // 2, l1, 2 * l1, l2 // 2, l2, 2 * l2, 4 * l2)
    return [machine.run(chase, pages) for pages in sorted(set(sizes)) if 0 < pages <= most]
