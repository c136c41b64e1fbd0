"""False sharing: threads count in words of their own, which lie in one cache line or in a line each.

Each thread reads some data of its own and then counts. No thread ever looks at another one's word, so there is nothing to share but
the line. Look for:
  - in lines of their own threads do not disturb each other: all is in the first cache, with any number of threads;
  - in one line each store takes the line away from all others, which get it back from the cache of the one that stored last, so
    that the transfers between caches come near to the counts;
  - across nodes that takes longer.
"""

import numba
import numpy as np

from numaemu import load_u64, store_u64
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(
    nodes=2, cpus_per_node=4, memory_per_node="64MiB", latency=[[90, 140], [140, 90]], quantum_ns=1,
    cache={
        "l1d": {"size": "32KiB", "ways": 8, "latency_ns": 1},
        "llc": {"size": "2MiB", "ways": 16, "latency_ns": 20, "sharing": "node"},
        "cache_to_cache": [[50, 130], [130, 50]],
    },
)  # fmt: skip
COUNTS, READS = 1000, 16  # of each thread; words read before each
READY_NS = 200_000  # emulated, after which all begin


@numba.njit(cache=True)
def count(cpu, word, data, n):
    """In turn: read words of a line of data, count in a word."""
    for _ in range(n):
        for i in range(READS):
            load_u64(cpu, data + np.uint64(8 * (i % 8)))
        store_u64(cpu, word, load_u64(cpu, word) + np.uint64(1))


def counter(task, word, ready_ns):
    """A thread: emulated ns of a count."""
    data = task.mmap(4096).touch()
    task.sleep(max(0, ready_ns - task.clock_ns) / 1e6)
    before = task.clock_ns
    task.call(count, np.uint64(word), np.uint64(data.addr), COUNTS)
    return (task.clock_ns - before) / COUNTS


def measure(task, cpus, apart):
    """ns of a count, the mean of the threads, whose words are so many bytes apart."""
    area = task.mmap(4096).touch()
    words = [area.addr + apart * i for i in range(len(cpus))]
    ready = task.clock_ns + READY_NS
    threads = [task.clone(counter, word, ready, cpu=cpu) for word, cpu in zip(words, cpus)]
    spent = [thread.result() for thread in threads]
    assert (task.load(words) == COUNTS).all(), "a thread's count is wrong"
    area.munmap()
    return sum(spent) / len(spent)


def transfers(machine):
    """Lines that came from another CPU's cache so far."""
    return sum(cpu.get("caches", {}).get("transfers", 0) for cpu in machine.stats()["cpus"])


def main(machine):
    with_cpus = [node.cpus for node in machine.nodes if node.cpus]
    first = with_cpus[0]
    teams = {f"{n} thread{'s' * (n > 1)} of one node": first[:n] for n in (1, 2, 4) if n <= len(first)}
    if len(with_cpus) > 1:
        teams["2 threads of two nodes"] = (first[0], with_cpus[1][0])
    rows, told = {}, {}
    for name, cpus in teams.items():
        rows[name], told[name] = {}, {}
        for kind, apart in (("in one line", 8), ("in a line each", 64)):
            before = transfers(machine)
            rows[name][kind] = machine.run(measure, list(cpus), apart, cpu=cpus[0])
            told[name][f"{kind}, ns"] = round(rows[name][kind], 1)
            told[name][f"{kind}, transfers"] = transfers(machine) - before
    print(chart.bars("Reading own data and counting once, in emulated ns", rows, "ns", "{:.1f}"))
    if machine.topology.cache is None:
        print("The machine has no caches, so there is nothing to share.")
    return told
