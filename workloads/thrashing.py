"""Thrashing: ever more tasks share a CPU, each with a working set that fits, until together they need more than memory.

Each task visits its working set, a quarter of memory, at random. They take turns in slices of emulated time, 3 ms as on
Linux and, for comparison, a hundred times as long. All work for an emulated second. (`swap_thrash` lets one working set
grow instead.) Look for:
  - up to three tasks it hardly matters how many share the CPU: their pages stay in memory, though not in the TLB;
  - with the fourth, memory no longer holds all working sets (the kernel keeps some for itself). Whoever gets the CPU finds
    some of its pages gone and sleeps until the disk has brought one. Others run meanwhile, and lose their pages to it: from
    the fourth task on the CPU does a third of the work, in all, that it did for one;
  - a slice that is long enough to fetch a working set and then to use it saves most of that.
"""

import sys

import numba
import numpy as np

from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, load_u64, store_u64

MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
SHARE = 0.25  # of the memory that is free at the start, for each task
MOST = 6  # tasks
SLICES_MS = (3, 300)
STEP, DIFFERENT = 5000, 40  # accesses of an operation; as many lists of them are made
BAR = 40


@numba.njit(cache=True)
def meet(cpu, word, nr_tasks):
    """Wait until all have come; whoever waits uses its slices up."""
    store_u64(cpu, word, load_u64(cpu, word) + np.uint64(1))
    while load_u64(cpu, word) < np.uint64(nr_tasks):
        pass
    return 0


def work(task, word, nr_tasks, pages, for_ns, seed):
    """(clock at the start, at the end, accesses, major faults) of so many emulated ns, once all have filled their sets."""
    rng = np.random.default_rng(seed)
    places = task.mmap(pages * 4096, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE).pages()
    task.store(places, places)
    visits = [places[rng.integers(0, pages, STEP)] for _ in range(DIFFERENT)]
    task.call(meet, np.uint64(word), nr_tasks)
    start, done, faults = task.clock_ns, 0, task.counters()["task_major_faults"]
    while task.clock_ns < start + for_ns:
        picked = visits[done // STEP % DIFFERENT]
        if not (task.load(picked) == picked).all():
            raise RuntimeError("a page came back changed")
        done += STEP
    return start, task.clock_ns, done, task.counters()["task_major_faults"] - faults


def together(machine, nr_tasks, pages, for_ns, seed):
    """(accesses per emulated us of all threads of a process, major faults per access)"""
    task = machine.task(cpu=0)
    word = task.mmap(4096).touch().addr
    runs = [task.clone(work, word, nr_tasks, pages, for_ns, seed + i) for i in range(nr_tasks)]
    answers = [run.result() for run in runs]
    task.exit()
    starts, ends, done, faults = zip(*answers)
    return sum(done) / (max(ends) - min(starts)) * 1000, sum(faults) / sum(done)


def main(machine):
    for_ns = int(sys.argv[1]) * 1_000_000 if len(sys.argv) > 1 else 1_000_000_000
    seed = getattr(machine, "seed", None) or 0
    machine.write("/proc/sys/vm/page-cluster", 0)
    machine.swapon("256MiB")
    pages, rows = int(sum(n["meminfo"]["MemFree"] for n in machine.stats()["nodes"]) // 4 * SHARE), {}
    for nr_tasks in range(1, MOST + 1):
        for ms in SLICES_MS:
            machine.write("/proc/sys/kernel/sched_base_slice_ns", ms * 1_000_000)
            rows[nr_tasks, ms] = together(machine, nr_tasks, pages, for_ns, seed)
    most, (short, long) = max(rate for rate, _ in rows.values()), SLICES_MS
    print(
        f"tasks, each with {SHARE:.0%} of memory; the accesses of all in an emulated us, slices of {short} ms █, {long} ms ░"
    )
    for (nr_tasks, ms), (rate, _) in rows.items():
        bar = ("█" if ms == short else "░") * max(1, round(BAR * rate / most))
        print(f"{nr_tasks if ms == short else '':>3} {bar:{BAR}} {rate:8.3f}")
    print("accesses per us, and major faults per thousand accesses, by the length of a slice:")
    return {
        f"{n} tasks": {
            f"{what}, {ms} ms": f"{rows[n, ms][i] * scale:.3f}"
            for ms in SLICES_MS
            for i, what, scale in ((0, "work", 1), (1, "faults", 1000))
        }
        for n in range(1, MOST + 1)
    }
