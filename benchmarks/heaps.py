"""Random requests on every kind of heap and random work under every collector, by several threads, against a model beside them.

    python benchmarks/heaps.py [OPERATIONS] [NAME …]        in all for each; 10 million if not given. Names: kinds and collectors

Each block and each object says whose it is, and is looked at before it goes. A line for each: operations a second on the host, and
whether everything was right. The exit status is 1 if anything was not.
"""

import sys
import time

from numaemu import Machine
from numaemu.gc.collectors import COLLECTORS
from numaemu.gc.exercise import NOTHING, churn
from numaemu.malloc.kinds import KINDS
from numaemu.malloc.replay import play_random

THREADS, PIECE = 4, 200_000  # operations of a thread at a time
LIVE = 1000  # blocks of a thread at a time
LIVE_OF = {"implicit": 100}  # which walks over all that are in use


def use_heap(task, heap, seed, pieces):
    """One thread on a heap: how many operations were right."""
    mine, right, live = task.malloc_heap(heap), 0, LIVE_OF.get(heap.kind, LIVE)
    for piece in range(pieces):
        right += task.call(play_random, mine, PIECE, live, 1 + seed + piece * THREADS) == PIECE
    mine.flush()
    return right * PIECE


def use_objects(task, heap, seed, pieces):
    """One thread on a heap of objects: how many operations were right."""
    mutator, right = heap.attach(task), 0
    for piece in range(pieces):
        right += mutator.run(churn, PIECE, 300, seed + piece * THREADS) == NOTHING
    return right * PIECE


def run(task, name, pieces):
    """(operations that were right, whether the heap is what it should be at the end)"""
    kind = name in KINDS
    heap = task.malloc_heap(name, source="mmap", limit="256MiB") if kind else task.gc_heap(name, "48MiB")
    work = use_heap if kind else use_objects
    threads = [task.clone(work, heap, seed, pieces, cpu=seed % 4) for seed in range(1, THREADS)]
    right = work(task, heap, 0, pieces) + sum(thread.result() for thread in threads)
    if kind:
        heap.check()
        return right, heap.stats().payload == 0
    mutator = heap.attach(task)
    mutator.collect()
    return right, mutator.verify()["objects"] == 0


def main(operations="10_000_000", *names):
    """The command line; its exit status."""
    pieces, failed = max(int(float(operations)) // THREADS // PIECE, 1), 0
    with Machine(nodes=2, cpus_per_node=2, memory_per_node="512MiB") as machine:
        for name in names or (*KINDS, *COLLECTORS):
            start = time.perf_counter()
            right, clean = machine.run(run, name, pieces)
            seconds, wanted = time.perf_counter() - start, pieces * THREADS * PIECE
            failed += right != wanted or not clean
            words = "right" if right == wanted and clean else f"WRONG: {wanted - right} operations, clean: {clean}"
            print(f"{name:13} {wanted:12,} operations  {wanted / seconds / 1e6:6.2f} M/s  {words}", flush=True)
        machine.check()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
