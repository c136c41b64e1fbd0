"""Machines with rates: what timing each access costs on the host, and how near emulated bandwidth and latency come to the file.

python benchmarks/rates.py [rounds]
"""

import time

import numba
import numpy as np
from common import median, repeats

from numaemu import Machine, load_u64

ACCESSES, STREAM = 1_000_000, 4 << 20
LATENCY = [[80, 140], [140, 80]]
SHAPE = dict(nodes=2, cpus_per_node=1, memory_per_node="256MiB", latency=LATENCY, walk_cache=32)
RATES = dict(bandwidth_per_node="200GB/s", link={"bandwidth": "40GB/s"})
PATTERNS = {"sequential": 0.5, "random_64M": 0.7}
LIMITS = {"local": 20e9, "remote": 10e9}


def best(function, *args):
    """Seconds of the quickest of ten calls, as this thread has them from the host's processors."""
    times = []
    for _ in range(10):
        start = time.thread_time()
        function(*args)
        times.append(time.thread_time() - start)
    return min(times)


def speeds(task):
    """M accesses a second on the host, by pattern."""
    span, rng = 64 << 20, np.random.default_rng(2)
    region = task.mmap(span).touch()
    index = {"sequential": np.arange(ACCESSES) % (span // 8), "random_64M": rng.integers(0, span // 8, ACCESSES)}
    return {
        name: ACCESSES / best(task.load, np.uint64(region.addr) + np.uint64(8) * i.astype(np.uint64)) / 1e6
        for name, i in index.items()
    }


@numba.njit
def chase(cpu, head, hops):
    for _ in range(hops):
        head = load_u64(cpu, head)
    return head


def chased(task, node):
    """Emulated ns of a hop in a ring of lines in one page of a node."""
    from numaemu import MPOL_BIND

    region = task.mmap(4096)
    task.mbind(region.addr, 4096, MPOL_BIND, [node])
    ring = np.uint64(region.addr) + np.uint64(64) * np.random.default_rng(1).permutation(64).astype(np.uint64)
    task.store(ring, np.roll(ring, -1))
    head = task.call(chase, ring[0], 64)
    before = task.counters()["clock_ns"]
    task.call(chase, np.uint64(head), 6400)
    return (task.counters()["clock_ns"] - before) / 6400


def stream(task, node, nbytes):
    """Load each line of a region on a node once: (emulated ns when it began, when it ended)."""
    from numaemu import MPOL_BIND

    region = task.mmap(nbytes)
    task.mbind(region.addr, nbytes, MPOL_BIND, [node])
    region.touch()
    addresses = np.uint64(region.addr) + np.arange(0, nbytes, 64, dtype=np.uint64)
    task.sleep(max(0, 50 - task.counters()["clock_ns"] / 1e6))
    begin = task.counters()["clock_ns"]
    task.load(addresses)
    return begin, task.counters()["clock_ns"]


def together(streams, node, lockstep):
    """Bytes that so many streams of node 0 load together in a second of emulated time, over the limit."""
    shape = SHAPE | dict(cpus_per_node=streams, lockstep=lockstep, cpu={"outstanding": 12}, bandwidth_per_node="20GB/s")
    with Machine(**shape, link={"bandwidth": "10GB/s"}) as machine:
        handles = [machine.spawn(stream, node, STREAM, cpu=cpu) for cpu in range(streams)]
        spans = [handle.result() for handle in handles]
        late = sum(server["late_requests"] for server in machine.stats()["servers"])
    begin, end = min(span[0] for span in spans), max(span[1] for span in spans)
    limit = 20e9 if node == 0 else 10e9
    return streams * STREAM / (end - begin) * 1e9 / limit, late


def main():
    without, with_rates = [], []
    for _ in range(repeats()):
        for more, found in (({}, without), (RATES, with_rates)):
            with Machine(**SHAPE, **more) as machine:
                found.append(machine.run(speeds))
    print(f"{'host: M accesses/s':40} {'without':>9} {'rates':>9} {'ratio':>7} {'wanted':>7}")
    for name, wanted in PATTERNS.items():
        one, two = median(f[name] for f in without), median(f[name] for f in with_rates)
        print(
            f"{name:40} {one:9.1f} {two:9.1f} {two / one:7.2f} {wanted:7.2f}{'' if two / one >= wanted else '  MISSED'}"
        )
    with Machine(**SHAPE, **RATES) as machine:
        for node, ns in enumerate(LATENCY[0]):
            hop = machine.run(chased, node)
            print(f"chase from node 0 to node {node}: {hop:.2f} ns, the matrix says {ns}")
    for lockstep in (True, False):
        for node, where in enumerate(LIMITS):
            for streams in (4, 8):
                share, late = together(streams, node, lockstep)
                how = "lockstep" if lockstep else "free"
                print(f"{streams} streams, {where}, {how}: {share:.3f} of the limit, {late} late requests")


if __name__ == "__main__":
    main()
