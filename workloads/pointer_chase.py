"""What the TLB costs: time per load of a pointer chase whose working set grows.

One load per page, in random order, so that every load needs a translation of its own.
Look for: the bars have two steps, where the L1 TLB and then the L2 TLB no longer reach all pages.
  - up to the entries of the L1 TLB a load costs the memory's latency and nothing else;
  - then the L2 TLB answers, which adds a few ns;
  - beyond its entries every load pays a page walk, a load for each level of the page table. There is nothing between all and
    nothing (true LRU and a cyclic chase), but for sets of the TLB that happen to get fewer pages.
"""

import numba
import numpy as np

from numaemu import load_u64
from numaemu.tools import chart

LOCKSTEP = True
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
        "pages": pages,
        "ns per load": round(ns / loads, 1),
        "L1 TLB hits %": round(100 * l1 / loads),
        "L2 TLB hits %": round(100 * l2 / loads),
        "walks %": round(100 * walks / loads),
    }


def picture(rows, latency, l1, l2):
    """The time of a load by working set: what memory takes, and the rest, which is translation."""
    reach = {True: "within the L1 TLB", False: "within the L2 TLB"}
    titles = [
        f"{row['KiB']:>6,} KiB  {reach[row['pages'] <= l1] if row['pages'] <= l2 else 'beyond both TLBs'}"
        for row in rows
    ]
    return chart.divided(
        f"Time of one load by working set, in emulated ns (L1 TLB: {l1} pages, L2 TLB: {l2} pages)",
        {
            title: {"the memory's latency": latency, "translation": row["ns per load"] - latency}
            for title, row in zip(titles, rows)
        },
        {title: f"{row['ns per load']:.0f} ns" for title, row in zip(titles, rows)},
    )


def main(machine):
    l1, l2, home = machine.topology.l1.entries, machine.topology.l2.entries, machine.cpus[0].node
    memory = [node for node in machine.nodes if node.memory_bytes]
    near = min(memory, key=lambda node: machine.topology.latency_ns[home][node.id])
    sizes = sorted({l1 // 4, l1 // 2, l1, 2 * l1, l2 // 2, l2, 2 * l2, 4 * l2})
    rows = [machine.run(chase, pages) for pages in sizes if 0 < pages <= near.memory_bytes // 4096 // 2]
    print(picture(rows, machine.topology.latency_ns[home][near.id], l1, l2))
    return rows
