"""A shared array, one thread per CPU that scans its part: bound to node 0, interleaved, or placed by first touch.

Look for: first touch is fastest, as every thread finds its part on its own node.
  - bound: all threads load from node 0, and those that are far from it pay for every load;
  - interleaved: every thread spreads its loads over all nodes, so that all threads are about equally slow;
  - first touch: the CPUs of a node load from that node alone.
"""

import numba
import numpy as np

import numaemu
from numaemu import load_u64
from numaemu.tools import chart

LOCKSTEP = True
PAGES, STEP = 128, 64  # of each thread's part; bytes from one load to the next


@numba.njit(cache=True)
def scan(cpu, address, end):
    """Add up one word of every cache line."""
    total = np.uint64(0)
    while address < end:
        total += load_u64(cpu, address)
        address += np.uint64(STEP)
    return total


def scan_part(task, start, end):
    """(loads by memory node, emulated ns) of one scan by a warm TLB."""
    task.touch(start, end - start)
    task.call(scan, np.uint64(start), np.uint64(end))
    before = task.counters()
    task.call(scan, np.uint64(start), np.uint64(end))
    after = task.counters()
    return np.subtract(after["accesses_by_node"], before["accesses_by_node"]), after["clock_ns"] - before["clock_ns"]


def scan_together(task, cpus, nodes, mode, mask):
    """One thread per CPU; (accesses by node, the slowest thread's ns)."""
    array = task.mmap(len(cpus) * PAGES * 4096)
    if mode is not None:
        task.mbind(array.addr, array.nbytes, mode, mask)
        array.touch()
    parts = [array.addr + i * PAGES * 4096 for i in range(len(cpus) + 1)]
    threads = [task.clone(scan_part, parts[i], parts[i + 1], cpu=cpu) for i, cpu in enumerate(cpus)]
    matrix, slowest = np.zeros((nodes, nodes), np.int64), 0
    for (loads, ns), cpu_node in zip((t.result() for t in threads), cpus.values()):
        matrix[cpu_node] += loads
        slowest = max(slowest, ns)
    array.munmap()
    return {
        "slowest thread us": round(slowest / 1000, 1),
        "local loads %": round(100 * np.trace(matrix) / matrix.sum()),
        "loads": {
            f"CPUs of node {node}": {f"from node {n}": int(loads) for n, loads in enumerate(row)}
            for node, row in enumerate(matrix)
            if node in cpus.values()
        },
    }


def picture(result):
    """Where the loads of each placement go, and how long the slowest thread takes."""
    rows = {f"{name}, {cpus}": loads for name, case in result.items() for cpus, loads in case["loads"].items()}
    memory = list(next(iter(rows.values())))
    marks = {name: "0123456789abcdefghijklmnopqrstuvwxyz"[int(name.split()[-1]) % 36] for name in memory}
    title = "Where the loads go: each sign is a share of a line's loads, and names the node of the memory"
    return "\n\n".join(
        [
            chart.bars(
                "Time of the slowest thread, in emulated us",
                {name: case["slowest thread us"] for name, case in result.items()},
                "us",
                "{:,.1f}",
            ),
            chart.divided(title, rows, marks=marks, whole=True, explain=False),
        ]
    )


def main(machine):
    cpus = {cpu.id: cpu.node for cpu in machine.cpus}
    memory = [node.id for node in machine.nodes if node.memory_bytes]
    placements = {
        "bound to node 0": (numaemu.MPOL_BIND, 0),
        "interleaved": (numaemu.MPOL_INTERLEAVE, memory),
        "first touch": (None, None),
    }
    result = {name: machine.run(scan_together, cpus, len(machine.nodes), *how) for name, how in placements.items()}
    print(picture(result))
    return result
