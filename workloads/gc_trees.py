"""Binary trees under five garbage collectors: pauses, throughput and memory. The shape of GCBench.

A tree that lives long stays while thousands of short-lived trees of several depths are made and dropped.
Look for: the share of the time that is not the program's own, and the longest pause.
  - reference counting has no pauses, but each store of a reference changes two counts: the program is the slowest;
  - mark-sweep and mark-compact walk all that lives at each collection, and then the whole heap once, or three times;
  - copying does nothing for garbage, but has only half of the memory, so it collects three times as often;
  - the generational collector spends least in pauses, as few objects live when Eden is full; its long pause is the first, which
    promotes the tree that stays. Its program marks a card at each store of a reference.
"""

from numaemu.gc.collectors import COLLECTORS
from numaemu.gc.exercise import make_tree, make_trees
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="64MiB")
HEAP, LONG_LIVED, DEPTHS, ALLOCATED = "2MiB", 12, (4, 6, 8, 10), 40_000  # levels; objects of each depth


def trees(task, collector):
    """One line of the table."""
    heap = task.gc_heap(collector, HEAP, tlab="8KiB")
    mutator = heap.attach(task)
    mutator.push_frame(1)
    mutator.run(make_tree, LONG_LIVED)
    start, made = task.clock_ns, 0
    for depth in DEPTHS:
        count = ALLOCATED // 2**depth
        if mutator.run(make_trees, depth, count) != count:
            raise MemoryError(f"{collector}: no room for a tree of {depth} levels")
        made += count * (2 ** (depth + 1) - 1)
    ns = task.clock_ns - start
    mutator.collect()
    if mutator.verify()["objects"] != 2 ** (LONG_LIVED + 1) - 1:
        raise RuntimeError(f"{collector}: the tree that lives long is not what it was")
    pauses = [each.pause_ns for each in heap.collections(task)[:-1]] or [0]
    return {
        "objects": made,
        "collections": len(heap.collections(task)) - 1,
        "ns an object": round(ns / made),
        "of these in pauses": round(sum(pauses) / made),
        "longest pause us": round(max(pauses) / 1000),
    }


def main(machine):
    rows = {collector: machine.run(trees, collector, name="gc") for collector in COLLECTORS}
    parts = {
        name: {"the program": row["ns an object"] - row["of these in pauses"], "pauses": row["of these in pauses"]}
        for name, row in rows.items()
    }
    figures = {name: f"{row['ns an object']} ns" for name, row in rows.items()}
    print(chart.divided("Emulated time for each object that is made", parts, figures))
    print(chart.bars("Longest pause", {name: row["longest pause us"] for name, row in rows.items()}, "us"))
    return rows
