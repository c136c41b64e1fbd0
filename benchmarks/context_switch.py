"""How fast two tasks on one CPU hand it to each other: by yielding, and at the end of slices inside long accesses.

python benchmarks/context_switch.py [rounds]
"""

import time

import numba
from common import median, repeats

from numaemu import Machine, load_u64

YIELDS = 20_000
SWEEPS = 200_000  # of a page's words, by each of two tasks
SLICE_NS = 100_000  # the shortest there is


def give_way(task, times):
    """Seconds that `times` calls of sched_yield take."""
    start = time.perf_counter()
    for _ in range(times):
        task.sched_yield()
    return time.perf_counter() - start


@numba.njit
def read_on(cpu, address, times):
    total = 0
    for _ in range(times):
        total += load_u64(cpu, address)
    return total


def compute(task, times):
    """Seconds that a user kernel of so many loads takes."""
    page = task.mmap(4096)
    task.call(read_on, page.addr, 1)
    start = time.perf_counter()
    task.call(read_on, page.addr, times)
    return time.perf_counter() - start


def both(machine, function, *args):
    """Two tasks on one CPU: switches, and the seconds of the slower one."""
    before = machine.stats()["cpus"][0]["nr_switches"]
    runs = [machine.spawn(function, *args, cpu=0) for _ in range(2)]
    seconds = max(run.result() for run in runs)
    return machine.stats()["cpus"][0]["nr_switches"] - before, seconds


def main():
    yields, slices, alone = [], [], []
    with Machine(
        nodes=1, cpus_per_node=1, memory_per_node="64MiB", sysctl={"kernel.sched_base_slice_ns": SLICE_NS}
    ) as machine:
        machine.run(compute, 1)
        for _ in range(repeats()):
            switches, seconds = both(machine, give_way, YIELDS)
            yields.append(switches / 2 / seconds)
            one = machine.run(compute, 64 * SWEEPS)
            switches, seconds = both(machine, compute, 64 * SWEEPS)
            slices.append((seconds - 2 * one) / switches * 1e6)
            alone.append(64 * SWEEPS / one / 1e6)
        machine.check()
    rate = median(yields)
    print(
        f"{'round trips/s of two tasks that yield':52} {rate:12,.0f}   wanted >= 20,000"
        + ("" if rate >= 20_000 else "  MISSED")
    )
    print(f"{'a switch at the end of a slice inside a kernel, us':52} {median(slices):12.1f}")
    print(f"{'loads/s of that kernel alone, M':52} {median(alone):12.1f}")


if __name__ == "__main__":
    main()
