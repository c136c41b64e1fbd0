"""STREAM triad, a[i] = b[i] + s * c[i], on every CPU at once: local against remote memory.

Every CPU computes its slice of three shared arrays in a compiled kernel. Look for:
  - local: each slice lies on its CPU's own node; remote: on the node that is slowest to reach from there;
  - emulated GB/s of all CPUs together: 24 bytes per element over the slowest CPU's time. There are no caches here:
    each element is three accesses at the latency of its node, so the two figures differ as the latencies do.
"""

import numba
import numpy as np

import numaemu
from numaemu import load_f64, store_f64

ELEMENTS, SCALAR = 1 << 14, 3.0  # of each CPU's slice of each array


@numba.njit(cache=True)
def triad(cpu, a, b, c, n):
    for i in range(n):
        at = np.uint64(8 * i)
        store_f64(cpu, a + at, load_f64(cpu, b + at) + SCALAR * load_f64(cpu, c + at))


def run_slice(task, starts, node):
    """Place and fill a slice of each array, run the kernel on it; emulated ns."""
    a, b, c = (np.uint64(start) for start in starts)
    for start in starts:
        task.mbind(start, 8 * ELEMENTS, numaemu.MPOL_BIND, node)
    where = np.arange(0, 8 * ELEMENTS, 8, dtype=np.uint64)
    task.store(b + where, np.arange(ELEMENTS, dtype=float))
    task.store(c + where, np.full(ELEMENTS, 2.0))
    task.store(a + where, np.zeros(1))
    before = task.clock_ns
    task.call(triad, a, b, c, ELEMENTS)
    ns = task.clock_ns - before
    expected = np.arange(ELEMENTS) + SCALAR * 2.0
    assert (task.load(a + where, np.float64) == expected).all(), "the triad's result is wrong"
    return ns


def run_all(task, placement):
    """One thread per CPU, its memory on the node that `placement` names; GB/s of all together."""
    arrays = [task.mmap(len(placement) * 8 * ELEMENTS) for _ in range(3)]
    threads = [
        task.clone(run_slice, [array.addr + i * 8 * ELEMENTS for array in arrays], node, cpu=cpu)
        for i, (cpu, node) in enumerate(placement.items())
    ]
    slowest = max(thread.result() for thread in threads)
    for array in arrays:
        array.munmap()
    return round(len(placement) * 24 * ELEMENTS / slowest, 3)


def main(machine):
    latency = machine.topology.latency_ns
    memory = [node.id for node in machine.nodes if node.memory_bytes]
    local = {cpu.id: min(memory, key=lambda n: latency[cpu.node][n]) for cpu in machine.cpus}
    remote = {cpu.id: max(memory, key=lambda n: latency[cpu.node][n]) for cpu in machine.cpus}
    return {
        "cpus": len(machine.cpus),
        "local GB/s": machine.run(run_all, local),
        "remote GB/s": machine.run(run_all, remote),
    }
