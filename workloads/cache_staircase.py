"""The staircase of the caches: time per load of a pointer chase whose working set grows.

One load for each cache line, in random order, each needing the one before. Look for the steps:
  - a working set that fits a level costs that level's latency, one that fits none costs the memory's;
  - with true LRU and random order the way from one step to the next is short: what does not fit is mostly lost before it comes
    round again;
  - the TLB has steps of its own, which are drawn apart: its two levels reach so many pages.
"""

import numba
import numpy as np

from numaemu import load_u64
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(
    nodes=1, cpus_per_node=1, memory_per_node="128MiB", latency=[[90]],
    cache={
        "l1d": {"size": "32KiB", "ways": 8, "latency_ns": 1},
        "l2": {"size": "256KiB", "ways": 8, "latency_ns": 5},
        "llc": {"size": "2MiB", "ways": 16, "latency_ns": 20, "sharing": "node"},
    },
)  # fmt: skip
LINE, LOADS = 64, 20_000  # bytes; measured for each working set, at least


@numba.njit(cache=True)
def follow(cpu, address, loads):
    for _ in range(loads):
        address = load_u64(cpu, address)
    return address


def chase(task, nbytes, l2_ns):
    """(ns per load, what the TLB's second level and walks add): a chain through all lines, once to warm up."""
    area = task.mmap(nbytes)
    lines = np.arange(area.addr, area.addr + nbytes, LINE, dtype=np.uint64)
    order = np.random.default_rng(nbytes).permutation(lines)
    task.store(order, np.roll(order, -1))
    task.call(follow, order[0], len(order))
    loads, before = len(order) * -(-LOADS // len(order)), task.counters()
    task.call(follow, order[0], loads)
    after = task.counters()
    area.munmap()
    looked_up = sum(after[name] - before[name] for name in ("l2_tlb_hits", "page_walks"))
    return (after["clock_ns"] - before["clock_ns"]) / loads, looked_up * l2_ns / loads


def sizes_of(topology):
    """Around each level's size, and beyond all."""
    levels = [level.size for level in topology.cache.levels] if topology.cache else [32 << 10]
    return sorted({size * part // 4 for size in levels for part in (2, 3, 4, 5, 8)} | {4 * levels[-1]})


def main(machine):
    t, rows, told = machine.topology, {}, {}
    for nbytes in sizes_of(t):
        ns, tlb = machine.run(chase, -(-nbytes // 4096) * 4096, t.l2.latency_ns)
        label = f"{nbytes >> 10:>6,} KiB"
        rows[label] = {"caches and memory": ns - tlb, "translation": tlb}
        told[label.strip()] = round(ns, 1)
    levels = (
        ", ".join(f"{level.name} {level.size >> 10} KiB, {level.latency_ns} ns" for level in t.cache.levels)
        if t.cache
        else "none"
    )
    print(
        chart.divided(
            f"Time of one load by working set, in emulated ns (caches: {levels}; memory {t.latency_ns[0][0]} ns)",
            rows,
            {label: f"{sum(parts.values()):.1f} ns" for label, parts in rows.items()},
        )
    )
    return told
