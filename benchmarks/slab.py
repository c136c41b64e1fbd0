"""kmem_cache_alloc + kmem_cache_free of one cache against a bare stack in an array.

    python benchmarks/slab.py [rounds]

Pairs a second on one CPU from compiled code. Wanted: 20 million, or half of what the stack does if that is less.
"""

import time

import numba
import numpy as np
from common import median, repeats, report

from numaemu import GFP_KERNEL, Machine, kmem_cache_alloc, kmem_cache_free

PAIRS = 20_000_000
FEW, MANY = 16, 65536  # objects held at once: of one slab, of a thousand (through the partial lists)


@numba.njit
def slab_pairs(cpu, cache, gfp, held, rounds):
    for _ in range(rounds):
        for i in range(held.size):
            held[i] = kmem_cache_alloc(cpu, cache, gfp)
        for i in range(held.size):
            kmem_cache_free(cpu, cache, held[i])


@numba.njit
def stack_pairs(stack, top, held, rounds):
    """The same with a stack of free addresses; `top` in memory, as a real one has it."""
    for _ in range(rounds):
        for i in range(held.size):
            top[0] -= 1
            held[i] = stack[top[0]]
        for i in range(held.size):
            stack[top[0]] = held[i]
            top[0] += 1


def rate(function, *args):
    start = time.perf_counter()
    function(*args)
    return PAIRS / (time.perf_counter() - start) / 1e6


def measure(task, cache, count):
    """(slab, stack) in million pairs a second, in the process of the CPU."""
    held, stack = np.zeros(count, np.uint64), np.arange(count, dtype=np.uint64)
    top = np.array([count])
    task.call(slab_pairs, cache, GFP_KERNEL, held, 2)
    stack_pairs(stack, top, held, 2)
    slab = rate(task.call, slab_pairs, cache, GFP_KERNEL, held, PAIRS // count)
    return slab, rate(stack_pairs, stack, top, held, PAIRS // count)


def main():
    rows = []
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="64MiB") as machine:
        task = machine.task(cpu=0)
        cache = task.kernel.kmem_cache_create("bench", 64)
        for count in (FEW, MANY):
            figures = [machine.run(measure, cache.number, count) for _ in range(repeats())]
            slab, stack = (median(column) for column in zip(*figures))
            rows.append(
                (f"alloc + free, {count} held (array stack), M/s", slab, stack, slab / min(20.0, stack / 2), 1.0, False)
            )
        cache.destroy()
    report(rows)


if __name__ == "__main__":
    main()
