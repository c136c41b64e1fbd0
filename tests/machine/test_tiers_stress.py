"""NUMA balancing, promotion, demotion, swap, fork and huge pages at once: no wrong byte, and every frame accounted."""

import hashlib

import numpy as np
import pytest

from numaemu import MADV_DONTNEED, Machine

SETTINGS = "/sys/kernel/debug/sched/numa_balancing"
SCANNING = {"scan_delay_ms": 1, "scan_period_min_ms": 1, "scan_period_max_ms": 4, "scan_size_mb": 16}
SHAPE = {
    "node": [{"memory": "16MiB", "cpus": 2}, {"memory": "16MiB", "cpus": 2}, {"memory": "16MiB", "cpus": 0}],
    "latency": {"matrix": [[80, 140, 250], [140, 80, 250], [250, 250, 250]]},
    "bandwidth": {"matrix": [[90000, 90000, 20000], [90000, 90000, 20000], [20000, 20000, 20000]]},
    "kernel": {"transparent_hugepage": "always"},
}
AREA, ROUNDS = 10 << 20, 24


def same(task, where, values):
    """Raise unless these words are what was stored there."""
    if not (task.load(where) == values).all():
        raise RuntimeError("a page came back changed")


def churn(task, cpus, seed):
    """Store, read back, fork, give away and move; a sum of all that is left."""
    rng, area = np.random.default_rng(seed), task.mmap(AREA)
    pages, values = area.pages(), np.zeros(AREA // 4096, np.uint64)
    for turn in range(ROUNDS):
        some = rng.choice(len(pages), len(pages) // 3, replace=False)
        values[some] = rng.integers(1, 1 << 60, len(some)).astype(np.uint64)
        task.store(pages[some], values[some])
        hot = rng.integers(0, 256, 20_000)
        task.load(pages[hot] + np.uint64(64))
        if turn % 8 == 3:
            task.fork(same, pages[:512], values[:512]).result()
        if turn % 8 == 5:
            first = int(rng.integers(0, len(pages) - 64))
            task.madvise(int(pages[first]), 64 * 4096, MADV_DONTNEED)
            values[first : first + 64] = 0
        if turn % 6 == 1:
            task.sched_setaffinity([int(rng.choice(cpus))])
        if turn % 6 == 4:
            task.sched_setaffinity(cpus)
        same(task, pages, values)
    return int(values.sum() & np.uint64((1 << 62) - 1))


def story(tiering, **keywords):
    """A machine with everything on; the hash of its figures."""
    with Machine(SHAPE, tiering=tiering, **keywords) as machine:
        for name, value in SCANNING.items():
            machine.write(f"{SETTINGS}/{name}", value)
        machine.write("/sys/kernel/mm/numa/demotion_enabled", 1)
        machine.write("/proc/sys/kernel/numa_balancing", 3)
        machine.swapon("64MiB")
        handles = [machine.spawn(churn, [0, 1, 2, 3], seed, cpu=seed) for seed in range(4)]
        sums = [handle.result() for handle in handles]
        machine.check()
        counts = machine.read("/proc/vmstat")
        return dict(line.split() for line in counts.splitlines()), hashlib.sha256(
            repr((sums, counts)).encode()
        ).hexdigest()


@pytest.mark.parametrize("tiering", ["linux", "tpp", "frequency"])
def test_no_wrong_byte(tiering):
    counts, _ = story(tiering)
    assert int(counts["numa_pages_migrated"]) + int(counts["pgdemote_kswapd"]) + int(counts["pgdemote_direct"]) > 0


def test_one_hash_in_lockstep():
    first, second = (story("linux", lockstep=True)[1] for _ in range(2))
    assert first == second
