"""STREAM triad, a[i] = b[i] + s * c[i], with 1 to N threads on one node: local memory, remote memory, and both in turn.

Each CPU has so many misses under way, so one thread alone is bound by latency; together they fill the memory controller or the
link. Look for the knee of each curve, where more threads bring no more bandwidth:
  - local memory: the knee is where the threads' sum comes to the controller's rate;
  - remote memory: a thread is slower, as its misses take longer, and the link ends the curve sooner. It moves its rate in each
    direction, and of three lines of a triad two come and one goes, so it ends at three halves of the link's rate;
  - interleaved, every other page remote: half of the lines pass the link, so the end is twice as high.
A rate counts 24 bytes for each element, as STREAM does.
"""

import numba
import numpy as np

import numaemu
from numaemu import load_many_f64, store_f64
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(
    nodes=2, cpus_per_node=8, memory_per_node="128MiB", latency=[[90, 140], [140, 90]],
    bandwidth_per_node="40GB/s", link={"bandwidth": "10GB/s"}, cpu={"outstanding": 12}, quantum_ns=500,
)  # fmt: skip
ELEMENTS, CHUNK, SCALAR = 8192, 512, 3.0  # of each thread's slice of each array; that are loaded at a time
READY_MS = 0.2  # emulated, after which all threads begin


@numba.njit(cache=True)
def triad(cpu, a, b, c, n, at, left, right):
    """`at`, `left`, `right`: host arrays for the addresses and the values of a chunk."""
    for start in range(0, n, len(at)):
        for array, values in ((b, left), (c, right)):
            for i in range(len(at)):
                at[i] = array + np.uint64(8 * (start + i))
            load_many_f64(cpu, at, values)
        for i in range(len(at)):
            store_f64(cpu, a + np.uint64(8 * (start + i)), left[i] + SCALAR * right[i])


def run_slice(task, starts, ready_ns):
    """(emulated ns at the begin, at the end) of one thread's slice."""
    a, b, c = (np.uint64(start) for start in starts)
    scratch = np.zeros(CHUNK, np.uint64), np.zeros(CHUNK), np.zeros(CHUNK)
    task.sleep(max(0, ready_ns - task.clock_ns) / 1e6)
    before = task.clock_ns
    task.call(triad, a, b, c, ELEMENTS, *scratch)
    return before, task.clock_ns


def run_threads(task, cpus, policy, nodes):
    """GB/s of a thread on each of the CPUs, their arrays on the nodes."""
    arrays = [task.mmap(len(cpus) * 8 * ELEMENTS) for _ in range(3)]
    for array in arrays:
        task.mbind(array.addr, array.nbytes, policy, nodes)
        array.touch()
    ready = task.clock_ns + int(READY_MS * 1e6) * len(cpus)
    threads = [
        task.clone(run_slice, [array.addr + i * 8 * ELEMENTS for array in arrays], ready, cpu=cpu)
        for i, cpu in enumerate(cpus)
    ]
    spans = [thread.result() for thread in threads]
    for array in arrays:
        array.munmap()
    return len(cpus) * 24 * ELEMENTS / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def knee(rates):
    """The number of threads from which on each more brings less than half of what the first brought."""
    counts = list(rates)
    for count, following in zip(counts, counts[1:]):
        if (rates[following] - rates[count]) / (following - count) < rates[counts[0]] / 2:
            return count
    return None


def main(machine):
    home = machine.nodes[machine.cpus[0].node]
    memory = [node.id for node in machine.nodes if node.memory_bytes]
    far = max(memory, key=lambda node: machine.topology.latency_ns[home.id][node])
    places = {"local": (numaemu.MPOL_BIND, [home.id]), "remote": (numaemu.MPOL_BIND, [far])}
    places["interleaved"] = (numaemu.MPOL_INTERLEAVE, [home.id, far])
    counts = [n for n in (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if n <= len(home.cpus)]
    rates = {
        name: {n: machine.run(run_threads, home.cpus[:n], *place, cpu=home.cpus[0]) for n in counts}
        for name, place in places.items()
    }
    for name, found in rates.items():
        print(
            chart.bars(
                f"Triad, {name} memory, in emulated GB/s by threads",
                {str(n): rate for n, rate in found.items()},
                "GB/s",
                "{:.1f}",
            )
        )
        where = knee(found)
        print(
            f"the knee is at {where} threads\n"
            if where
            else "there is no knee: the last thread brings at least half of what the first did\n"
        )
    if not machine.topology.rates.limited:
        print("The machine has no rates (--machine ice-lake has some), so nothing but latency bounds a thread.")
    return {name: {f"{n} threads, GB/s": round(rate, 2) for n, rate in found.items()} for name, found in rates.items()}
