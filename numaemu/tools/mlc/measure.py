"""What `numaemu mlc` measures: threads of one task load and store for a while of emulated time, on CPUs and memory that are chosen.

Loads of a thread do not depend on each other, so as many are under way as the CPU allows (`[cpu] outstanding`). A thread counts its
lines from a common begin to a common end; bandwidth is the sum over the threads.
"""

from typing import Any

import numba
import numpy as np

from numaemu.api.access import load_u64, store_u64
from numaemu.api.overlap import work
from numaemu.compiler.atomic import exchange
from numaemu.hardware.controller import begin_overlap, end_overlap, now_ps
from numaemu.uapi import MPOL_BIND

LINE, PS = 64, 1000
WINDOW_NS, LOADED_NS = 50_000, 20_000  # of one measurement of bandwidth, of latency under load
READY_NS, CLONE_NS = 100_000, 20_000  # until all threads have begun: altogether, and for each
EARLY_NS = 5_000  # how long before the begin a thread is awake again
PLACES = 16 * 4096 // LINE  # lines of a thread's buffer where there are no caches: pages that a first-level TLB holds
MIXES = {  # kinds of traffic: loads, stores that follow them
    "ALL Reads": (1, 0),
    "3:1 Reads-Writes": (3, 1),
    "2:1 Reads-Writes": (2, 1),
    "1:1 Reads-Writes": (1, 1),
    "Stream-triad like": (2, 1),
}
BURST = 8  # lines between two injected delays
DELAYS = (0, 2, 8, 15, 50, 100, 200, 300, 400, 500, 700, 1000, 1300, 1700, 2500, 3500, 5000, 9000, 20000)  # ns


@numba.njit(cache=True)
def traffic(cpu, first, places, reads, writes, begin_ns, end_ns, delay_ns):
    """Load and store lines in turn from begin to end: lines per ns.

    The delay after a burst is drawn from half of `delay_ns` to one and a half: the bursts of threads that all wait equally long would fall
    on each other for ever, or never.
    """
    drawn = first
    ahead = begin_ns - now_ps(cpu) // PS
    if ahead > 0:
        work(cpu, ahead)
    lines, place, began = 0, 0, now_ps(cpu)
    begin_overlap(cpu)
    while now_ps(cpu) < end_ns * PS:
        for _ in range(BURST):
            for _ in range(reads):
                load_u64(cpu, first + np.uint64(LINE * place))
                place = (place + 1) % places
            for _ in range(writes):
                store_u64(cpu, first + np.uint64(LINE * place), np.uint64(0))
                place = (place + 1) % places
        lines += BURST * (reads + writes)
        exchange(cpu, "event_at", 0)  # the next access looks whether others are behind
        if delay_ns > 0:
            drawn = drawn * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            work(cpu, delay_ns // 2 + np.int64((drawn >> np.uint64(33)) % np.uint64(delay_ns + 1)))
    end_overlap(cpu)
    return lines * PS / (now_ps(cpu) - began)


@numba.njit(cache=True)
def chase(cpu, addresses, begin_ns, end_ns):
    """Load one address after the other is there, from begin to end: ns of a load."""
    ahead = begin_ns - now_ps(cpu) // PS
    if ahead > 0:
        work(cpu, ahead)
    loads, began = 0, now_ps(cpu)
    while now_ps(cpu) < end_ns * PS:
        load_u64(cpu, addresses[loads % len(addresses)])
        exchange(cpu, "event_at", 0)
        loads += 1
    return (now_ps(cpu) - began) / PS / loads


def wait_for(task, begin_ns):
    """Let others have the CPU until shortly before the begin."""
    task.sleep(max(0, begin_ns - EARLY_NS - task.clock_ns) / 1e6)


def run_traffic(task, first, places, mix, begin_ns, window_ns, delay_ns):
    """A thread: MB/s, of 1,000,000 bytes."""
    wait_for(task, begin_ns)
    rate = task.call(
        traffic, np.uint64(first), places, *mix, np.int64(begin_ns), np.int64(begin_ns + window_ns), np.int64(delay_ns)
    )
    return rate * LINE * 1000


def run_chase(task, first, places, begin_ns, window_ns):
    """A thread: ns of a load."""
    wait_for(task, begin_ns)
    lines = np.uint64(first) + np.uint64(LINE) * np.random.default_rng(1).permutation(places).astype(np.uint64)
    return task.call(chase, lines, np.int64(begin_ns), np.int64(begin_ns + window_ns))


class Bench:
    """Threads of one task, each with a buffer on each node that has memory. Lives in the process of the task's CPU."""

    def __init__(self, task, cpus, memory, places):
        self.task, self.places, self.buffers = task, places, {}
        for node in memory:
            area = task.mmap(len(cpus) * places * LINE)
            task.mbind(area.addr, area.nbytes, MPOL_BIND, [node])
            area.touch()
            self.buffers[node] = {cpu: area.addr + i * places * LINE for i, cpu in enumerate(cpus)}

    def begin_ns(self, threads):
        """When all threads that are about to be made will be there."""
        return self.task.clock_ns + READY_NS + CLONE_NS * threads

    def rate(self, where, mix=(1, 0), window_ns=WINDOW_NS):
        """MB/s of all CPUs of `where`, {CPU: node of its memory}."""
        begin = self.begin_ns(len(where))
        threads = [
            self.task.clone(run_traffic, self.buffers[node][cpu], self.places, mix, begin, window_ns, 0, cpu=cpu)
            for cpu, node in where.items()
        ]
        return sum(thread.result() for thread in threads)

    def loaded(self, where, chaser, delay_ns, window_ns=LOADED_NS):
        """(ns of a load by CPU `chaser`, MB/s of the others) where the others load with a delay after each burst."""
        begin = self.begin_ns(len(where))
        first = self.task.clone(
            run_chase, self.buffers[where[chaser]][chaser], self.places, begin, window_ns, cpu=chaser
        )
        others = [
            self.task.clone(
                run_traffic, self.buffers[node][cpu], self.places, (1, 0), begin, window_ns, delay_ns, cpu=cpu
            )
            for cpu, node in where.items()
            if cpu != chaser
        ]
        return first.result(), sum(thread.result() for thread in others)


def measure_all(task, shape, places, wanted, delays):
    """Everything but idle latencies; `shape`: {node: (its CPUs, True if it has memory)}."""
    cpus = [cpu for numbers, _ in shape.values() for cpu in numbers]
    memory = [node for node, (_, has) in shape.items() if has]
    bench = Bench(task, cpus, memory, places)
    found: dict[str, Any] = {}
    local = {cpu: node if has else memory[0] for node, (numbers, has) in shape.items() for cpu in numbers}
    if "peak" in wanted:
        found["peak_bandwidth_mbs"] = {name: bench.rate(local, mix) for name, mix in MIXES.items()}
    if "bandwidth" in wanted:
        found["bandwidth_mbs"] = [
            [bench.rate(dict.fromkeys(numbers, node)) if node in memory and numbers else None for node in shape]
            for numbers, _ in shape.values()
        ]
    if "loaded" in wanted and len(cpus) > 1:
        rows = ((delay, *bench.loaded(local, cpus[0], delay)) for delay in delays)
        names = ("inject_delay", "latency_ns", "bandwidth_mbs")
        found["loaded_latency"] = [dict(zip(names, row)) for row in rows]
    return found


def places_of(topology):
    """Lines of each thread's buffer: more than the caches have for it."""
    if topology.cache is None:
        return PLACES
    sharers = {"cpu": 1, "node": max(len(node.cpus) for node in topology.nodes)}
    shares = [
        level.size // int(sharers.get(level.sharing) or level.sharing.partition(":")[2])
        for level in topology.cache.levels
    ]
    return max(PLACES, 2 * sum(shares) // LINE // 64 * 64)


def measure(machine, wanted, delays=DELAYS):
    """What is wanted of "idle", "peak", "bandwidth" and "loaded"; of a machine without rates only latencies."""
    t, found = machine.topology, {}
    if "idle" in wanted:
        rows = machine.latency_matrix().tolist()
        found["idle_latency_ns"] = [[None if ns != ns else ns for ns in row] for row in rows]
    shape = {node.id: (node.cpus, bool(node.memory_bytes)) for node in t.nodes}
    rest = {name for name in wanted if name != "idle"}
    if rest and t.rates.limited:
        found |= machine.run(measure_all, shape, places_of(t), rest, delays, cpu=t.cpus[0])
    return found
