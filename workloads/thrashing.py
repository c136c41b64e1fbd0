"""Thrashing: ever more tasks share a CPU, each with a working set that fits, until together they need more than memory.

Each task visits its working set, a quarter of memory, at random. They take turns in slices of emulated time, 3 ms as on
Linux and, for comparison, a hundred times as long. All work for an emulated second. (`swap_thrash` lets one working set
grow instead.) The number of tasks, their share of memory and the slices are arguments: `numaemu run thrashing -- --help`
lists them.
Look for: the work of all tasks together breaks down at the fourth task, and longer slices save most of it.
  - up to three tasks it hardly matters how many share the CPU: their pages stay in memory, though not in the TLB;
  - with the fourth, memory no longer holds all working sets (the kernel keeps some for itself). A task that gets the CPU finds
    some of its pages gone and sleeps until the disk has brought one. Others run meanwhile, and lose their pages to it: from
    the fourth task on the CPU does a third of the work, in all, that it did for one;
  - a slice that is long enough to fetch a working set and then to use it saves most of that;
  - the table has accesses per emulated us, and major faults per thousand accesses, by the length of a slice.
"""

import argparse

import numba
import numpy as np

from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, load_u64, store_u64
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
SHARE = 0.25  # of the memory that is free at the start, for each task
MOST = 6  # tasks
SLICES_MS = (3, 300)  # emulated
WORK_MS = 1000  # emulated, of each run
STEP, DIFFERENT = 5000, 40  # accesses of an operation; as many lists of them are made
MOST_SLICES = 4


def arguments():
    parser = argparse.ArgumentParser(
        prog="numaemu run thrashing --",
        description="What ever more tasks on one CPU do together, by the length of their slices.",
    )
    parser.add_argument(
        "ms",
        type=int,
        nargs="?",
        default=WORK_MS,
        help=f"emulated time that each number of tasks works (default {WORK_MS})",
    )
    parser.add_argument(
        "--tasks", type=int, default=MOST, metavar="N", help=f"from one to so many tasks (default {MOST})"
    )
    parser.add_argument(
        "--share", type=float, default=SHARE, metavar="X", help=f"of memory, the working set of each (default {SHARE})"
    )
    parser.add_argument(
        "--slices",
        type=int,
        nargs="+",
        default=SLICES_MS,
        metavar="MS",
        help="lengths of a slice in emulated ms (default 3 300)",
    )
    given = parser.parse_args()
    if min(given.ms, given.tasks, *given.slices) < 1 or not 0 < given.share <= 1 or len(given.slices) > MOST_SLICES:
        parser.error(
            f"ms, --tasks and --slices must be at least 1, --share above 0 and at most 1, --slices at most {MOST_SLICES}"
        )
    return given


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
    given, seed = arguments(), getattr(machine, "seed", None) or 0
    machine.write("/proc/sys/vm/page-cluster", 0)
    machine.swapon("256MiB")
    pages, rows = int(sum(n["meminfo"]["MemFree"] for n in machine.stats()["nodes"]) // 4 * given.share), {}
    for nr_tasks in range(1, given.tasks + 1):
        for ms in given.slices:
            machine.write("/proc/sys/kernel/sched_base_slice_ns", ms * 1_000_000)
            rows[nr_tasks, ms] = together(machine, nr_tasks, pages, given.ms * 1_000_000, seed)
    names = [f"{n} task{'s' * (n > 1)}" for n in range(1, given.tasks + 1)]
    title = f"Accesses of all tasks together in an emulated us; each task's working set is {given.share:.0%} of memory"
    work = {name: {f"slices of {ms} ms": rows[n, ms][0] for ms in given.slices} for n, name in enumerate(names, 1)}
    print(chart.bars(title, work, "per us", "{:.3f}"))
    return {
        name: {
            f"{what}, {ms} ms": f"{rows[n, ms][i] * scale:.3f}"
            for ms in given.slices
            for i, what, scale in ((0, "accesses/us", 1), (1, "faults/1000", 1000))
        }
        for n, name in enumerate(names, 1)
    }
