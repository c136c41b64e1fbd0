"""The cycle that reference counts miss: what a heap still holds after rings of objects have been dropped.

A program makes rings of 8 objects and chains of 8 objects, and drops each at once.
Look for: chains go at once under reference counting; rings stay until its backup tracer runs.
  - a chain's first object has one reference, from the program; when that goes, the counts fall one after the other;
  - in a ring each object has a reference from the one before it for ever: no count reaches 0;
  - a collector that traces does not care: what no root leads to is garbage, with or without cycles.
"""

from numaemu.compiler.library import library
from numaemu.gc import get_root, new, pop_frame, push_frame, set_ref, set_root
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="64MiB")
HEAP, ROUNDS, EACH, LENGTH = "1MiB", 6, 100, 8


@library
def make_and_drop(cpu, mutator, number, length, ring):
    """Chains, or rings, of so many objects, each dropped when it is complete."""
    for _ in range(number):
        push_frame(cpu, mutator, 2)
        set_root(cpu, mutator, 0, new(cpu, mutator, 0, 1, 1))
        set_root(cpu, mutator, 1, get_root(cpu, mutator, 0))
        for _ in range(length - 1):
            thing = new(cpu, mutator, 0, 1, 1)
            set_ref(cpu, mutator, thing, 0, get_root(cpu, mutator, 0))
            set_root(cpu, mutator, 0, thing)
        if ring:
            set_ref(cpu, mutator, get_root(cpu, mutator, 1), 0, get_root(cpu, mutator, 0))
        pop_frame(cpu, mutator, 2)


def garbage(task, collector, ring):
    """Bytes of garbage that the heap holds after each round, and after a collection."""
    heap = task.gc_heap(collector, HEAP, tlab="1KiB")
    mutator, found = heap.attach(task), []
    for _ in range(ROUNDS):
        mutator.run(make_and_drop, EACH, LENGTH, ring)
        found.append(mutator.verify()["garbage"])
    mutator.collect()
    return [*found, mutator.verify()["garbage"]]


def main(machine):
    rows = {}
    for collector in ("refcount", "mark-sweep"):
        for ring in (False, True):
            name = f"{collector}, {'rings' if ring else 'chains'}"
            rows[name] = machine.run(garbage, collector, ring, name="gc")
    after = {name: values[-2] for name, values in rows.items()}
    print(chart.bars(f"Garbage that the heap holds after {ROUNDS} rounds", after, "bytes"))
    traced = {name: values[-1] for name, values in rows.items()}
    print(chart.bars("The same after a collection (of refcount: the backup tracer)", traced, "bytes"))
    return {
        name: {**{f"round {i + 1}": n for i, n in enumerate(values[:-1])}, "collected": values[-1]}
        for name, values in rows.items()
    }
