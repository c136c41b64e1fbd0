"""A task moves to another node, and its pages follow: NUMA balancing, which finds out by hinting faults who uses what.

A task fills its memory, goes on to read it, and is moved to a CPU of another node; once without NUMA balancing, once with it.
Look for: the time of a load, which jumps when the task moves.
  - without balancing it stays where it is: each load is a remote one;
  - with balancing the scanner makes the pages inaccessible part by part; the next load of each takes a hinting fault, sees that
    the page is not on the node of the CPU, and brings it: a few scans later loads are as fast as before;
  - the steps with faults are slower than either: that is what it costs.
"""

import numpy as np

from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=2, cpus_per_node=2, memory_per_node="64MiB", latency=[[80, 240], [240, 80]])
PAGES, STEPS, LOADS = 1024, 8, 250_000
SETTINGS = "/sys/kernel/debug/sched/numa_balancing"
SCANNING = {"scan_delay_ms": 10, "scan_period_min_ms": 40, "scan_period_max_ms": 80, "scan_size_mb": 256}


def read_and_move(task, cpus, seed):
    """(ns of a load, pages on the task's node) by step; the task moves in the middle."""
    rng, area, rows = np.random.default_rng(seed), task.mmap(PAGES * 4096), []
    area.touch(write=True)
    for cpu in cpus:
        task.sched_setaffinity([cpu])
        for _ in range(STEPS):
            addresses = area.addr + rng.integers(0, area.nbytes // 8, LOADS) * 8
            before = task.clock_ns
            task.load(addresses.astype(np.uint64))
            ns = (task.clock_ns - before) / LOADS
            rows.append((round(ns, 1), int((np.asarray(area.nodes()) == task.node).sum())))
    return rows


def main(machine):
    far = next((cpu.id for cpu in machine.cpus if cpu.node != machine.cpus[0].node), None)
    if far is None:
        return "all CPUs are on one node: there is nowhere to move to"
    seed, rows = getattr(machine, "seed", None) or 0, {}
    for name, value in SCANNING.items():
        machine.write(f"{SETTINGS}/{name}", value)
    before = machine.read("/proc/sys/kernel/numa_balancing")
    for label, mode in (("off", 0), ("on", 1)):
        machine.write("/proc/sys/kernel/numa_balancing", mode)
        rows[label] = machine.run(read_and_move, (machine.cpus[0].id, far), seed)
    machine.write("/proc/sys/kernel/numa_balancing", before.strip())
    for label, steps in rows.items():
        print(
            chart.bars(
                f"ns of a load with balancing {label}; the task moves behind step {STEPS}",
                {f"step {n + 1:2d}, {here:4d} pages near": ns for n, (ns, here) in enumerate(steps)},
                "ns",
            )
        )
        print()
    counts = dict(line.split() for line in machine.read("/proc/vmstat").splitlines())
    names = ("numa_pte_updates", "numa_hint_faults", "numa_hint_faults_local", "numa_pages_migrated")
    return {
        f"balancing {label}": {
            "ns before the move": steps[STEPS - 1][0],
            "ns at once after it": steps[STEPS][0],
            "ns at the end": steps[-1][0],
            "pages near at the end": steps[-1][1],
        }
        for label, steps in rows.items()
    } | {"counters": {name: int(counts[name]) for name in names}}
