"""Accesses per second with caches: what hits the first level, random ones over 64 MiB, traces of programs; and against pycachesim.

    python benchmarks/caches.py [rounds]

The machine has three levels and one CPU; then four CPUs, of which one runs, so that there is a directory. The same addresses go through
pycachesim, which knows neither pages nor TLBs: one call for each, as a program does that has loads and stores, and a list of loads
at once, its fastest way. Ours are loads of memory, through TLBs and page tables.
"""

import pathlib
import sys
import time
from typing import NamedTuple

import cachesim
import numba
import numpy as np
from common import median, repeats

from numaemu import Machine, load_u64

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
from cache_traces import ACCESSES as OF_TRACE  # noqa: E402
from cache_traces import TRACES  # noqa: E402

ACCESSES = 4_000_000
SAME = 1_000_000  # of these, so many go through pycachesim
CACHES = {
    "l1d": {"size": "32KiB", "ways": 8, "latency_ns": 1},
    "l2": {"size": "1MiB", "ways": 16, "latency_ns": 5},
    "llc": {"size": "16MiB", "ways": 16, "latency_ns": 20},
}
SHAPE = dict(nodes=1, memory_per_node="256MiB", latency=[[80]])
# fmt: off
WANTED = {"first level, vector": 60, "first level, user kernel": 60, "random 16 KiB, vector": 60, "random 64 MiB, vector": 8,
          **{trace.__name__: 0 for trace in TRACES}}  # of these only the ratio is wanted
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


class Base(NamedTuple):
    """Where pycachesim's addresses begin."""

    addr: int


def patterns(region, rng):
    """{name: addresses}, each within 64 MiB."""
    base, small = np.uint64(region.addr), 16 << 10
    index = np.arange(ACCESSES, dtype=np.uint64)
    return {
        "first level, vector": base + index * np.uint64(8) % np.uint64(small),
        "random 16 KiB, vector": base + np.uint64(8) * rng.integers(0, small // 8, ACCESSES, np.uint64),
        "random 64 MiB, vector": base + np.uint64(8) * rng.integers(0, (64 << 20) // 8, ACCESSES, np.uint64),
        **{make.__name__: base + np.array([at for at, _ in list(make())[:OF_TRACE]], np.uint64) for make in TRACES},
    }


def measured(task):
    """Our rates, by task.load and in a user kernel."""
    region, found = task.mmap("64MiB"), {}
    region.touch(write=True)
    for name, addresses in patterns(region, np.random.default_rng(1)).items():
        task.load(addresses[:1000])
        found[name] = rate(task.load, addresses, n=len(addresses))
    rounds = ACCESSES // (16 << 10) * 8
    task.call(sweep, np.uint64(region.addr), 16 << 10, 1)
    n = rounds * (16 << 10) // 8
    found["first level, user kernel"] = rate(task.call, sweep, np.uint64(region.addr), 16 << 10, rounds, n=n)
    return found


def rates(cpus):
    """On a machine of so many CPUs, of which one runs."""
    with Machine(**SHAPE, cpus_per_node=cpus, cache=CACHES) as machine:
        return machine.run(measured)


def theirs(addresses):
    """pycachesim's rates for the first of the addresses: called for each, and with a list of them."""
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
    given = addresses[:SAME].tolist()

    def calls():
        for address in given:
            simulator.load(address, 1)

    return rate(calls, n=len(given)), rate(simulator.load, given, 1, n=len(given))


def main():
    ours = [(rates(1), rates(4)) for _ in range(repeats())]
    print(f"{'M accesses/s':26} {'1 CPU':>7} {'of 4':>7} {'wanted':>7}", end="")
    print(f" {'pycachesim, calls':>18} {'ratio':>6} {'wanted':>7} {'by list':>8} {'ratio':>6}")
    for name, wanted in WANTED.items():
        one, four = (median(found[which][name] for found in ours) for which in (0, 1))
        line = f"{name:26} {one:7.1f} {four:7.1f} {f'>={wanted:2}' if wanted else '':>7}"
        if not name.endswith("kernel"):
            calls, by_list = theirs(patterns(Base(1 << 30), np.random.default_rng(1))[name])
            line += f" {calls:18.2f} {one / calls:6.1f} {'>=20':>7} {by_list:8.1f} {one / by_list:6.2f}"
        print(line + ("" if one >= wanted else "  MISSED"))


if __name__ == "__main__":
    main()
