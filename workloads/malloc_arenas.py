"""Eight threads on one heap: one lock, an arena for each thread, an arena for each node; and the caches in front of them.

Each thread allocates, writes, reads and frees blocks of up to 4 KiB, 40 at a time. The machine runs in lockstep, so that waiting for a
lock takes the emulated time that it would, and the figures repeat.
Look for: one lock costs half of the time, and with arenas nearly all accesses are local.
  - with one lock threads wait for each other, and the blocks of all lie side by side: nearly half of the accesses are remote;
  - ptmalloc with the main arena alone waits less, as each thread's cache serves what it can; distance stays;
  - an arena for each thread, or for each node, keeps a thread's blocks where it runs. What is left of remote accesses are the
    words that say where arenas and caches lie;
  - it takes more memory, as each arena keeps free blocks of its own: by thread more than by node.
"""

import numpy as np

from numaemu import load_i64, xadd_i64
from numaemu.compiler.library import library
from numaemu.malloc.replay import play_with_contents
from numaemu.malloc.trace import FREE, MALLOC
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=2, cpus_per_node=4, memory_per_node="64MiB")
HEAPS = {
    "segregated, one lock": ("segregated", {}),
    "ptmalloc, main arena": ("ptmalloc", {"arenas": "main"}),
    "ptmalloc, by thread": ("ptmalloc", {"arenas": "thread"}),
    "ptmalloc, by node": ("ptmalloc", {"arenas": "node"}),
}
REQUESTS, LIVE, MOST_BYTES = 1500, 40, 4096


def requests_of(seed):
    """Rows as `play_with_contents` takes them: LIVE blocks at a time, of random sizes."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(REQUESTS):
        if i >= LIVE:
            rows.append((FREE, i - LIVE, 0))
        rows.append((MALLOC, i, int(rng.integers(16, rng.choice((64, 512, MOST_BYTES))))))
    rows += [(FREE, i, 0) for i in range(REQUESTS - LIVE, REQUESTS)]
    return np.array(rows, np.int64)


@library
def meet(cpu, counter, threads):
    """Wait until all threads are here."""
    xadd_i64(cpu, counter, 1)
    while load_i64(cpu, counter) < threads:
        pass


def thread(task, heap, seed, counter, threads):
    """(emulated ns an operation, local accesses, remote accesses) of one thread."""
    mine, requests = task.malloc_heap(heap), requests_of(seed)
    task.call(meet, counter, threads)
    before = task.counters()
    if task.call(play_with_contents, mine, requests, REQUESTS) != len(requests):
        raise RuntimeError("a block has lost what it held")
    mine.flush()
    after = task.counters()
    ns, local, remote = (after[name] - before[name] for name in ("clock_ns", "local_accesses", "remote_accesses"))
    return ns / len(requests), local, remote


def run_threads(task, kind, options, cpus):
    """One line of the table."""
    heap = task.malloc_heap(kind, **options)
    task.call(play_with_contents, heap, requests_of(0)[:0], 1)  # compiled before anybody is measured
    counter = task.mmap(4096).addr
    threads = [task.clone(thread, heap, cpu, counter, len(cpus), cpu=cpu) for cpu in cpus]
    answers = [handle.result() for handle in threads]
    heap.check()
    local, remote = (sum(answer[i] for answer in answers) for i in (1, 2))
    return {
        "ns an operation": round(sum(answer[0] for answer in answers) / len(answers)),
        "remote %": round(100 * remote / (local + remote), 1),
        "heap KiB": heap.held()[1] // 1024,
    }


def main(machine):
    cpus = [cpu.id for cpu in machine.cpus[:8]]
    rows = {
        name: machine.run(run_threads, kind, options, cpus, name="malloc") for name, (kind, options) in HEAPS.items()
    }
    print(chart.bars("Emulated ns an operation", {name: row["ns an operation"] for name, row in rows.items()}, "ns"))
    print(chart.bars("Accesses to another node", {name: row["remote %"] for name, row in rows.items()}, "%", "{:.1f}"))
    return rows
