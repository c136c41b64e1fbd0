"""A heap that is partly swapped out, under a collector that walks all of it and one that does not.

A large tree that nobody looks at any more is pushed out to swap (MADV_PAGEOUT). Then the program goes on: it makes small objects and
drops them. Its own working set is tiny.
Look for: mark-sweep brings the whole tree back at each collection; the generational collector leaves it where it is.
  - marking must look at every object that lives, wherever its page is: each collection is a storm of major faults;
  - a young collection starts from roots and marked cards; the old tree is neither, so its pages stay in swap;
  - the pauses differ by what the disk takes, not by what the collectors do.
"""

from numaemu import MADV_PAGEOUT
from numaemu.compiler.library import library
from numaemu.gc import new, poll
from numaemu.gc.exercise import make_tree
from numaemu.tools import chart

MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="32MiB")
HEAP, LEVELS, OBJECTS = "8MiB", 15, 120_000  # 65,535 objects of 48 bytes live


@library
def make_and_drop(cpu, mutator, objects):
    """Objects that nobody keeps; how many could be made."""
    for i in range(objects):
        if new(cpu, mutator, 0, 1, 5) == 0:
            return i
        poll(cpu, mutator)
    return objects


def forget_and_go_on(task, collector):
    """One line of the table."""
    heap = task.gc_heap(collector, HEAP, tlab="8KiB")
    mutator = heap.attach(task)
    mutator.push_frame(1)
    mutator.run(make_tree, LEVELS)
    mutator.collect()
    collections = len(heap.collections(task))
    first, last = heap.bounds(task)
    task.madvise(first & -4096, (last - first + 4095) & -4096, MADV_PAGEOUT)
    before = task.counters()
    if mutator.run(make_and_drop, OBJECTS) != OBJECTS:
        raise MemoryError(f"{collector}: no room")
    after = task.counters()
    pauses = [each.pause_ns for each in heap.collections(task)[collections:]]
    return {
        "collections": len(pauses),
        "major faults": after["task_major_faults"] - before["task_major_faults"],
        "longest pause us": round(max(pauses) / 1000),
        "ns an object": round((after["clock_ns"] - before["clock_ns"]) / OBJECTS),
    }


def main(machine):
    area, rows = machine.swapon("64MiB"), {}
    for collector in ("mark-sweep", "copying", "generational"):
        rows[collector] = machine.run(forget_and_go_on, collector, name="gc")
    machine.swapoff(area)
    faults = {name: row["major faults"] for name, row in rows.items()}
    print(chart.bars("Pages that had to come back from swap", faults))
    print(chart.bars("Longest pause", {name: row["longest pause us"] for name, row in rows.items()}, "us", log=True))
    return rows
