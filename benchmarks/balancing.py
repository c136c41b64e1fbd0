"""What NUMA balancing costs: accesses with and without it, and hinting faults per second on one CPU.

    python benchmarks/balancing.py [rounds]

The faults are counted over sweeps of which each begins with a scan; the time of scanning and of the accesses is in it.
"""

import time

from accesses import PATTERNS, SHAPE, patterns
from common import median, repeats, report

from numaemu import Machine

SLOW = [[10_000, 10_000], [10_000, 10_000]]  # ns an access: so that every sweep over PAGES outlasts a scan period
PAGES = 16384
SETTINGS = "/sys/kernel/debug/sched/numa_balancing"
SCANS = {"scan_delay_ms": 1, "scan_period_min_ms": 100, "scan_period_max_ms": 100}
STAY, MOVE, KEPT = 2.0, 0.3, 0.95  # million faults a second; accesses with balancing on against off


def sweeps(task, moves):
    """Million faults a second of the best of some sweeps over a region, on one CPU or on two by turns: of pages that stay or move."""
    region = task.mmap(PAGES * 4096)
    region.touch()
    idle = task.clone()  # alone, a task gets no hints for what is on its own node
    found = []
    for turn in range(12):
        if moves:
            task.sched_setaffinity({turn % 2})
        before, there = task.counters()["task_minor_faults"], task.move_pages(region.pages())
        start = time.perf_counter()
        region.touch(write=False)
        seconds = time.perf_counter() - start
        faults, moved = task.counters()["task_minor_faults"] - before, (task.move_pages(region.pages()) != there).sum()
        if faults > PAGES * 0.9 and (moved > PAGES * 0.9) == moves:
            found.append(faults / seconds / 1e6)
    idle.exit()
    return max(found)


def fault_rates():
    """Million hinting faults a second on pages that stay, and on pages that move."""
    rates = []
    for moves in (False, True):
        with Machine(nodes=2, cpus_per_node=1, memory_per_node="256MiB", latency=SLOW) as machine:
            for name, value in SCANS.items():
                machine.write(f"{SETTINGS}/{name}", value)
            machine.write("/proc/sys/kernel/numa_balancing", 1)
            rates.append(machine.run(sweeps, moves))
            stats = machine.stats()["vmstat"]
            assert moves == (stats["numa_pages_migrated"] > PAGES), stats["numa_pages_migrated"]
    return rates


def access_rates():
    """{pattern: accesses with balancing on, at Linux's default periods, over those with it off}"""
    rates = []
    for mode in (0, 1):
        with Machine(**SHAPE, sysctl={"kernel.numa_balancing": mode}) as machine:
            rates.append(machine.run(patterns))
    return {name: (rates[1][name], rates[0][name]) for name in PATTERNS}


def main():
    faults, accesses = [], []
    for _ in range(repeats()):
        faults.append(fault_rates())
        accesses.append(access_rates())
    rows = [
        (f"M accesses/s, {name}", *(median(r[name][i] for r in accesses) for i in (0, 1)),
         median(r[name][0] / r[name][1] for r in accesses), KEPT, False)
        for name in PATTERNS
    ]  # fmt: skip
    for place, (what, wanted) in enumerate((("stay", STAY), ("move", MOVE))):
        rate = median(r[place] for r in faults)
        rows.append((f"M hinting faults/s, pages that {what}", rate, 1.0, rate, wanted, False))
    report(rows)


if __name__ == "__main__":
    main()
