"""Eden's size against promotions: what is promoted that would have died, and what a small Eden costs.

A program keeps a window of objects: each is dropped when a fixed number of newer ones have been made. Under the generational collector
an object that outlives its collections is promoted to the old generation, where only a full collection finds that it is dead.
Look for: promotions fall to nothing once Eden is larger than what lives.
  - a small Eden is collected often: the objects of the window become old by collections, not by time, and are promoted;
  - each promotion fills the old generation with what will be dead soon, until a full collection;
  - with a large Eden nearly everything is dead when Eden is full: few collections, and each copies the window alone.
"""

from numaemu.compiler.library import library
from numaemu.gc import get_root, new, pop_frame, push_frame, set_ref, set_root
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="64MiB")
HEAP, SIZES = "4MiB", ("64KiB", "128KiB", "256KiB", "512KiB", "1MiB", "2MiB")
WINDOW, OBJECTS = 1000, 60_000


@library
def sessions(cpu, mutator, window, objects):
    """Make objects, and hold the newest `window` of them in an array of references; False: no memory."""
    push_frame(cpu, mutator, 1)
    table = new(cpu, mutator, 0, window, 0)
    if table == 0:
        return False
    set_root(cpu, mutator, 0, table)
    for i in range(objects):
        thing = new(cpu, mutator, 1, 1, 7)
        if thing == 0:
            return False
        set_ref(cpu, mutator, get_root(cpu, mutator, 0), i % window, thing)
    pop_frame(cpu, mutator, 1)
    return True


def with_young(task, young):
    """One line of the table."""
    heap = task.gc_heap("generational", HEAP, young=young, tlab="2KiB")
    mutator, start = heap.attach(task), task.clock_ns
    if not mutator.run(sessions, WINDOW, OBJECTS):
        raise MemoryError("no room for the window")
    ns, collections = task.clock_ns - start, heap.collections(task)
    full = [each for each in collections if each.kind == "Pause Full"]
    return {
        "young collections": len(collections) - len(full),
        "full collections": len(full),
        "promoted KiB": sum(each.promoted for each in collections) // 1024,
        "pauses %": round(100 * sum(each.pause_ns for each in collections) / ns, 1),
        "ns an object": round(ns / OBJECTS),
    }, heap.log(task, details=True)


def main(machine):
    rows = {}
    for young in SIZES:
        rows[young], log = machine.run(with_young, young, name="gc")
        if young == "256KiB":
            print("\n".join(log.splitlines()[:8]) + "\n")
    print(
        chart.bars("Promoted, by the young generation's size", {k: v["promoted KiB"] for k, v in rows.items()}, "KiB")
    )
    print(chart.bars("Share of the time in pauses", {k: v["pauses %"] for k, v in rows.items()}, "%", "{:.1f}"))
    return rows
