"""kmem_cache_alloc + kmem_cache_free of one cache against a bare stack in an array.

    python benchmarks/slab.py [rounds]

Pairs a second on one CPU from compiled code. Wanted: 20 million, or half of what the stack does if that is less.
"""
import time

import numba
import numpy as np
from common import median, repeats, report

from numaemu import GFP_KERNEL, Machine, kmem_cache_alloc, kmem_cache_free

PAIRS, HELD = 20_000_000, 16          # objects held at once: takes HELD, gives HELD back


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


def measure(task, cache):
    """(slab, stack) in million pairs a second, in the process of the CPU."""
    held, stack, top = np.zeros(HELD, np.uint64), np.arange(1024, dtype=np.uint64), np.array([1024])
    task.call(slab_pairs, cache, GFP_KERNEL, held, 1)
    stack_pairs(stack, top, held, 1)
    slab = rate(task.call, slab_pairs, cache, GFP_KERNEL, held, PAIRS // HELD)
    return slab, rate(stack_pairs, stack, top, held, PAIRS // HELD)


def main():
    figures = []
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="64MiB") as machine:
        task = machine.task(cpu=0)
        cache = task.kernel.kmem_cache_create("bench", 64)
        for _ in range(repeats()):
            figures.append(machine.run(measure, cache.number))
        cache.destroy()
    slab, stack = (median(column) for column in zip(*figures))
    wanted = min(20.0, stack / 2)
    report([("kmem_cache_alloc + free (array stack), M pairs/s", slab, stack, slab / wanted, 1.0, False)])


if __name__ == "__main__":
    main()
