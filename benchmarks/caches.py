"""Accesses per second with caches: what hits the first level, and random ones over 64 MiB; and against pycachesim.

    python benchmarks/caches.py [rounds]

The machine has three levels and one CPU. The same addresses go through pycachesim, which knows neither pages nor TLBs, from a list
of Python's numbers, its fastest way to take them.
"""

import time

import cachesim
import numba
import numpy as np
from common import median, repeats

from numaemu import Machine, load_u64

ACCESSES = 4_000_000
SAME = 1_000_000  # of these, so many go through pycachesim
CACHES = {
    "l1d": {"size": "32KiB", "ways": 8, "latency_ns": 1},
    "l2": {"size": "1MiB", "ways": 16, "latency_ns": 5},
    "llc": {"size": "16MiB", "ways": 16, "latency_ns": 20},
}
SHAPE = dict(nodes=1, memory_per_node="256MiB", latency=[[80]])
# fmt: off
WANTED = {"first level, vector": 60, "first level, user kernel": 60, "random 16 KiB, vector": 60, "random 64 MiB, vector": 8}
# fmt: on


@numba.njit
def sweep(cpu, base, nbytes, rounds):
    total = np.uint64(0)
    for _ in range(rounds):
        for at in range(0, nbytes, 8):
            total += load_u64(cpu, base + np.uint64(at))
    return total


def rate(function, *args, n=ACCESSES):
    """Millions a second, the best of three."""
    best = 1e9
    for _ in range(3):
        start = time.perf_counter()
        function(*args)
        best = min(best, time.perf_counter() - start)
    return n / best / 1e6


def patterns(region, rng):
    """{name: addresses}, each within 64 MiB."""
    base, small = np.uint64(region.addr), 16 << 10
    index = np.arange(ACCESSES, dtype=np.uint64)
    return {
        "first level, vector": base + index * np.uint64(8) % np.uint64(small),
        "random 16 KiB, vector": base + np.uint64(8) * rng.integers(0, small // 8, ACCESSES, np.uint64),
        "random 64 MiB, vector": base + np.uint64(8) * rng.integers(0, (64 << 20) // 8, ACCESSES, np.uint64),
    }


def rates(cpus):
    """Our rates on a machine of so many CPUs, and the addresses of each vector."""
    with Machine(**SHAPE, cpus_per_node=cpus, cache=CACHES) as machine:
        task, found = machine.task(cpu=0), {}
        region = task.mmap("64MiB").touch(write=True)
        addresses = patterns(region, np.random.default_rng(1))
        for name, vector in addresses.items():
            task.load(vector[:1000])
            found[name] = rate(task.load, vector)
        rounds = ACCESSES // (16 << 10) * 8
        task.call(sweep, np.uint64(region.addr), 16 << 10, 1)
        n = rounds * (16 << 10) // 8
        found["first level, user kernel"] = rate(task.call, sweep, np.uint64(region.addr), 16 << 10, rounds, n=n)
        return found, addresses


def theirs(addresses):
    """pycachesim's rate for the first of the addresses."""
    outer = None
    for name, size, ways in (("llc", 16 << 20, 16), ("l2", 1 << 20, 16), ("l1d", 32 << 10, 8)):
        inner = {} if outer is None else {"store_to": outer, "load_from": outer}
        previous, outer = outer, cachesim.Cache(name, size // 64 // ways, ways, 64, "LRU", **inner)
        if previous is None:
            last = outer
    memory = cachesim.MainMemory()
    memory.load_to(last)
    memory.store_from(last)
    simulator = cachesim.CacheSimulator(outer, memory)
    given = (addresses[:SAME] - addresses.min()).tolist()
    start = time.perf_counter()
    simulator.load(given, 1)
    return SAME / (time.perf_counter() - start) / 1e6


def main():
    rounds = [(rates(1), rates(4)[0]) for _ in range(repeats())]
    print(f"{'M accesses/s':28} {'1 CPU':>8} {'4 CPUs':>8} {'wanted':>8} {'pycachesim':>12} {'ratio':>7} {'wanted':>7}")
    for name, wanted in WANTED.items():
        one, four = (
            median(found[name] for found in some) for some in ([r[0][0] for r in rounds], [r[1] for r in rounds])
        )
        line = f"{name:28} {one:8.1f} {four:8.1f} {'>=':>4}{wanted:4}"
        if name in rounds[0][0][1]:
            others = theirs(rounds[0][0][1][name])
            line += f" {others:12.2f} {one / others:7.1f} {'>=20':>7}"
        print(line + ("" if one >= wanted else "  MISSED"))


if __name__ == "__main__":
    main()
