"""Accesses whose cost is computed one by one, not by identity: on an idle machine without caches it is the same."""

import numpy as np
import pytest

from numaemu.hardware.timing import enable_timing
from numaemu.mmu import clock_ns

pytestmark = pytest.mark.interpreted
MACHINE = {
    "nodes": 2,
    "cpus_per_node": 1,
    "memory_per_node": "32MiB",
    "distance": [[10, 20], [20, 10]],
    "latency": [[80, 140], [140, 80]],
}


def exercise(task, size=1 << 20):
    """Accesses of every kind, across pages and their borders, on two nodes."""
    a = task.mmap(size).addr
    task.touch(a, size)
    addresses = a + np.arange(0, size, 520, dtype=np.uint64)
    task.store(addresses, np.arange(len(addresses), dtype=np.uint64))
    assert task.load(addresses).tolist() == list(range(len(addresses)))
    task.write(a + 100, b"x" * 9000)
    task.store(a + 4093, 7)
    return task.read(a, 3 * 4096), task.load(a + 4093)


@pytest.mark.parametrize("thp", ["never", "always"])
def test_without_caches_and_rates_time_is_what_the_identity_says(loopback, thp):
    seen = []
    for timed in (False, True):
        loop = loopback(**MACHINE, kernel={"transparent_hugepage": thp})
        task, cpu = loop.task(), loop.cpu(0)
        if timed:
            enable_timing(cpu)
        data = exercise(task)
        seen.append((data, clock_ns(cpu), cpu.tick, cpu.l2_hits, cpu.walks, list(cpu.accesses)[:2]))
        assert (cpu.memory_ns > 0) == timed
    assert seen[0] == seen[1]
