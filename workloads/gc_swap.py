"""A heap that is partly swapped out, under a collector that walks all of it and one that does not.

A large tree that nobody looks at any more goes to swap while another task needs the memory. Then the program goes on: it makes small
objects and drops them. Its own working set is tiny.
Look for: mark-sweep brings the whole tree back at each collection; the generational collector leaves it where it is.
  - marking must look at every object that lives, wherever its page is: each collection is a storm of major faults;
  - a young collection starts from roots and marked cards; the old tree is neither, so its pages stay in swap;
  - the pauses differ by what the disk takes, not by what the collectors do.
"""

from numaemu.compiler.library import library
from numaemu.gc import new, poll
from numaemu.gc.exercise import make_tree
from numaemu.tools import chart

LOCKSTEP = True
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


def need_memory(machine):
    """Another task takes what memory there is, and ends: what nobody has looked at lately is in swap then."""
    task = machine.task(cpu=0, name="hog")
    task.mmap(sum(node.memory_bytes for node in machine.nodes)).touch()
    task.exit()
    machine.settle()


def forget_and_go_on(machine, collector):
    """One line of the table."""
    task = machine.task(cpu=0, name="gc")
    heap = task.gc_heap(collector, HEAP, tlab="8KiB")
    mutator = heap.attach(task)
    mutator.push_frame(1)
    mutator.run(make_tree, LEVELS)
    mutator.collect()
    collections = len(heap.collections(task))
    need_memory(machine)
    before = task.counters()
    if mutator.run(make_and_drop, OBJECTS) != OBJECTS:
        raise MemoryError(f"{collector}: no room")
    after = task.counters()
    pauses = [each.pause_ns for each in heap.collections(task)[collections:]]
    task.exit()
    return {
        "collections": len(pauses),
        "major faults": after["major_faults"] - before["major_faults"],
        "longest pause us": round(max(pauses) / 1000),
        "ns an object": round((after["clock_ns"] - before["clock_ns"]) / OBJECTS),
    }


def main(machine):
    area, rows = machine.swapon("128MiB"), {}
    for collector in ("mark-sweep", "copying", "generational"):
        rows[collector] = forget_and_go_on(machine, collector)
    machine.swapoff(area)
    faults = {name: row["major faults"] for name, row in rows.items()}
    print(chart.bars("Pages that had to come back from swap", faults))
    print(chart.bars("Longest pause", {name: row["longest pause us"] for name, row in rows.items()}, "us", log=True))
    return rows
