"""STREAM triad, a[i] = b[i] + s * c[i], on every CPU at once: memory of the own node against memory far away.

Every CPU computes its slice of three shared arrays in a compiled function. The slice lies once on the node that the CPU
reaches fastest (local) and once on the one that it reaches slowest (remote).
Look for: the remote bar is shorter than the local one by as much as remote memory is slower.
  - a rate is 24 bytes per element over the emulated time of the slowest CPU, for all CPUs together;
  - there are no caches here, so an element costs two loads and a store at the latency of its node, and little else.
"""

import numba
import numpy as np

import numaemu
from numaemu import load_f64, store_f64
from numaemu.tools import chart

LOCKSTEP = True
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
    """One thread per CPU, its memory on the node that `placement` names: {cpu: emulated ns}"""
    arrays = [task.mmap(len(placement) * 8 * ELEMENTS) for _ in range(3)]
    threads = {
        cpu: task.clone(run_slice, [array.addr + i * 8 * ELEMENTS for array in arrays], node, cpu=cpu)
        for i, (cpu, node) in enumerate(placement.items())
    }
    spent = {cpu: thread.result() for cpu, thread in threads.items()}
    for array in arrays:
        array.munmap()
    return spent


def rate(nr_cpus, ns):
    """Bytes per ns, which is GB/s."""
    return round(nr_cpus * 24 * ELEMENTS / ns, 3)


def main(machine):
    latency = machine.topology.latency_ns
    memory = [node.id for node in machine.nodes if node.memory_bytes]
    rates, by_node = {}, {f"a CPU of node {node.id}": {} for node in machine.nodes if node.cpus}
    for where, pick in (("local", min), ("remote", max)):
        placement = {cpu.id: pick(memory, key=lambda n, cpu=cpu: latency[cpu.node][n]) for cpu in machine.cpus}
        spent = machine.run(run_all, placement)
        rates[where] = rate(len(spent), max(spent.values()))
        for node in machine.nodes:
            if node.cpus:
                row, cpu = by_node[f"a CPU of node {node.id}"], node.cpus[0]
                row[f"{where} memory"] = f"node {placement[cpu]}"
                row[f"{where} latency ns"] = latency[node.id][placement[cpu]]
                row[f"{where} GB/s"] = rate(1, spent[cpu])
    print(chart.bars(f"Triad, {len(machine.cpus)} CPUs together, in emulated GB/s", rates, "GB/s", "{:.3f}"))
    if len(memory) == 1:
        print("Only one node has memory: local and remote are the same.")
    return (
        {"cpus": len(machine.cpus)}
        | {f"{where} GB/s": figure for where, figure in rates.items()}
        | {"by node": by_node}
    )
