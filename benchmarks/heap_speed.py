"""How fast the host is at requests of a heap from a compiled loop, and at objects that a collection marks or copies.

    python benchmarks/heap_speed.py [TRACE.rep]

Without a trace of the malloc lab: blocks of 64 and 448 bytes in turn, the large ones freed, then 512 bytes each, as its binary-bal.
"""

import pathlib
import sys
import time

from common import median

from numaemu import Machine
from numaemu.gc.collectors import COLLECTORS
from numaemu.gc.exercise import make_tree
from numaemu.malloc.kinds import KINDS
from numaemu.malloc.replay import play
from numaemu.malloc.rules import binary
from numaemu.malloc.trace import read_trace

HEAP, DEPTH = "256MiB", 20  # of a tree of 2^21 - 1 objects
SLOW = "implicit"  # walks over all blocks


def requests_a_second(task, kind, requests, blocks):
    """The median of some rounds on a heap of its own each."""
    rates = []
    for _ in range(3 if kind == SLOW else 15):
        heap = task.malloc_heap(kind, source="mmap", limit="64MiB")
        start = time.perf_counter()
        assert task.call(play, heap, requests, blocks) == len(requests)
        rates.append(len(requests) / (time.perf_counter() - start))
    return median(rates[1:])  # the first may compile


def objects_a_second(task, kind):
    """Objects that a collection finds alive in a heap of 256 MiB, the median of three."""
    heap = task.gc_heap(kind, HEAP, tlab="64KiB")
    mutator, rates = heap.attach(task), []
    mutator.push_frame(1)
    mutator.collect()
    assert mutator.run(make_tree, DEPTH)
    for _ in range(3):
        start = time.perf_counter()
        mutator.collect()
        rates.append(heap.collections(task)[-1].objects / (time.perf_counter() - start))
    return median(rates)


def main(path=None):
    """The command line."""
    trace = binary() if path is None else read_trace(pathlib.Path(path))
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="1GiB") as machine:
        for kind in KINDS:
            rate = machine.run(requests_a_second, kind, trace.requests, trace.blocks)
            print(f"{kind:14} {rate / 1e6:6.2f} M requests/s", flush=True)
        for kind in COLLECTORS:
            print(f"{kind:14} {machine.run(objects_a_second, kind) / 1e6:6.1f} M objects/s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
