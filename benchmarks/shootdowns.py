"""A TLB shootdown (munmap of one page that another running CPU shares) over a bare semaphore round trip.

python benchmarks/shootdowns.py [rounds]
"""

import os
import time

import numba
import numpy as np
from common import median, repeats, report

from numaemu import Machine, load_u64
from numaemu.host.shm import doorbell

SHOOTDOWNS, ROUND_TRIPS = 2000, 20000


@numba.njit
def spin(cpu, flag, other):
    """Access memory until the flag is set."""
    n = 0
    while load_u64(cpu, flag) == 0:
        load_u64(cpu, other)
        n += 1
    return n


def run_until(task, flag, other):
    return task.call(spin, np.uint64(flag), np.uint64(other))


def unmap_shared_pages(task):
    """Microseconds of munmap of one page that a thread on another CPU may hold in its TLB."""
    flag, other = task.mmap(4096).touch(), task.mmap(4096).touch()
    handle = task.clone(run_until, flag.addr, other.addr, cpu=1)
    before = task.counters()["shootdowns_sent"]
    times = []
    for _ in range(SHOOTDOWNS):
        page = task.mmap(4096).touch()
        start = time.perf_counter()
        page.munmap()
        times.append(time.perf_counter() - start)
    sent = task.counters()["shootdowns_sent"] - before
    task.store([flag.addr], np.uint64(1))
    accesses = handle.result()
    assert sent >= SHOOTDOWNS and accesses > 0
    return median(times) * 1e6


def bare_round_trip():
    """Microseconds of one round trip between two processes over two semaphores, as plain as Python can."""
    there, back = doorbell(), doorbell()
    pid = os.fork()
    if pid == 0:
        for _ in range(ROUND_TRIPS):
            there.acquire()
            back.release()
        os._exit(0)
    times = []
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        there.release()
        back.acquire()
        times.append(time.perf_counter() - start)
    os.waitpid(pid, 0)
    return median(times) * 1e6


def main():
    ours, bare = [], []
    for _ in range(repeats()):
        bare.append(bare_round_trip())
        with Machine(nodes=2, cpus_per_node=1, memory_per_node="64MiB") as machine:
            ours.append(machine.run(unmap_shared_pages))
    report(
        [
            (
                "munmap of a shared page (semaphore round trip), us",
                median(ours),
                median(bare),
                median(o / b for o, b in zip(ours, bare)),
                5.0,
                True,
            )
        ]
    )


if __name__ == "__main__":
    main()
