"""Emulated accesses per second over the same model written in C (limit.c): six patterns, same machine shape.

    python benchmarks/accesses.py [rounds]

Each round runs the C program and the emulator one after the other; the median of the rounds' ratios counts.
"""

import time

import numba
import numpy as np
from common import c_program, median, repeats, report

from numaemu import Machine, load_u64

ACCESSES = 10_000_000
# fmt: off
SHAPE = dict(nodes=2, cpus_per_node=1, memory_per_node="512MiB", latency=[[80, 140], [140, 80]],
             l1={"entries": 64, "ways": 4, "latency_ns": 0}, l2={"entries": 1536, "ways": 12, "latency_ns": 7})
PATTERNS = {"sequential": (64 << 20, 1.2), "random_64K": (64 << 10, 0.8), "random_4M": (4 << 20, 0.8),
            "random_512M": (512 << 20, 0.8), "chase_128K": (128 << 10, 0.8), "chase_64M": (64 << 20, 0.8)}
# fmt: on


@numba.njit
def chase(cpu, head, hops):
    for _ in range(hops):
        head = load_u64(cpu, head)
    return head


def shuffled_region(task, nbytes):
    """A region whose frames lie in random order over both nodes, as limit.c has them: touched in random order."""
    from numaemu import MPOL_INTERLEAVE

    region = task.mmap(nbytes)
    task.mbind(region.addr, region.nbytes, MPOL_INTERLEAVE, [0, 1])
    pages = region.pages()
    task.store(np.random.default_rng(1).permutation(pages), np.uint64(1))
    return region


def patterns(task):
    rng, rates = np.random.default_rng(2), {}
    region = shuffled_region(task, 512 << 20)
    for name, (span, _) in PATTERNS.items():
        if name.startswith("chase"):
            rates[name] = chase_rate(task, region.addr, span, rng)
            continue
        index = np.arange(ACCESSES) % (span // 8) if name == "sequential" else rng.integers(0, span // 8, ACCESSES)
        addresses = np.uint64(region.addr) + np.uint64(8) * index.astype(np.uint64)
        task.load(addresses[:1000])
        rates[name] = ACCESSES / min(timed(task.load, addresses) for _ in range(3)) / 1e6
    return rates


def chase_rate(task, base, span, rng):
    ring = np.uint64(base) + np.uint64(64) * rng.permutation(span // 64).astype(np.uint64)
    task.store(ring, np.roll(ring, -1))
    head, best = task.call(chase, ring[0], 1000), 1e9
    for _ in range(3):
        start = time.perf_counter()
        head = task.call(chase, np.uint64(head), ACCESSES // 2)
        best = min(best, time.perf_counter() - start)
    return ACCESSES // 2 / best / 1e6


def timed(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def main():
    ours, limits = [], []
    for _ in range(repeats()):
        limits.append(c_program("limit", ACCESSES))
        with Machine(**SHAPE) as machine:
            ours.append(machine.run(patterns))
    report(
        [
            (
                f"{name}, M accesses/s",
                median(o[name] for o in ours),
                median(c[name] for c in limits),
                median(o[name] / c[name] for o, c in zip(ours, limits)),
                wanted,
                False,
            )
            for name, (_, wanted) in PATTERNS.items()
        ]
    )


if __name__ == "__main__":
    main()
