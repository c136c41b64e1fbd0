"""alloc_pages + free of single pages through the per-CPU lists against a bare stack in an array.

    python benchmarks/page_alloc.py [rounds]

Pairs a second on one CPU from compiled code. Wanted: 20 million, or half of what the stack does if that is less.
"""

import time

import numba
import numpy as np
from common import median, repeats, report

from numaemu import GFP_KERNEL, Machine, alloc_page, free_page

PAIRS = 20_000_000
FEW = 16  # pages held at once: fewer than a CPU's list holds


@numba.njit
def page_pairs(cpu, gfp, held, rounds):
    for _ in range(rounds):
        for i in range(held.size):
            held[i] = alloc_page(cpu, gfp)
        for i in range(held.size):
            free_page(cpu, held[i])


@numba.njit
def stack_pairs(stack, top, held, rounds):
    """The same with a stack of free pages; `top` in memory, as a real one has it."""
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


def measure(task, count):
    """(pages, stack) in million pairs a second, in the process of the CPU."""
    held, stack = np.zeros(count, np.int64), np.arange(count, dtype=np.int64)
    top = np.array([count])
    task.call(page_pairs, GFP_KERNEL, held, 2)
    stack_pairs(stack, top, held, 2)
    pages = rate(task.call, page_pairs, GFP_KERNEL, held, PAIRS // count)
    return pages, rate(stack_pairs, stack, top, held, PAIRS // count)


def main():
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="64MiB") as machine:
        figures = [machine.run(measure, FEW) for _ in range(repeats())]
    pages, stack = (median(column) for column in zip(*figures))
    report(
        [(f"alloc + free, {FEW} pages held (array stack), M/s", pages, stack, pages / min(20.0, stack / 2), 1.0, False)]
    )


if __name__ == "__main__":
    main()
