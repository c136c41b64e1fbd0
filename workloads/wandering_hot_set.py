"""A hot set that wanders over DRAM and CXL memory: where pages lie, and who brings them back, decides what an access costs.

A task fills more memory than its socket has, then reads at random in a part of it, and in other parts later on. Six ways to
place its pages: as they were first touched, in turns, in turns weighted by bandwidth, and three tiering policies that move them.
Look for: the row of each way, one figure for each step of emulated time; the hot set has moved where the bars jump.
  - without tiering the time of an access is that of the nodes where the set happens to lie: for ever, however hot it is;
  - interleaving is never bad and never good; the weights follow bandwidth, and one task alone needs none;
  - Linux promotes what faults soon after it was scanned, as far as kswapd has made room by demotion;
  - TPP wants a second fault, so it follows later; by frequency pages come after three intervals in which they were used;
  - every page that has moved has cost its copy, and a flush of the TLB: moving pays if a page stays hot.
`--set numaemu.tiering=NAME` chooses a policy for other workloads; numaemu/tiering says how to write one.
"""

import numpy as np

import numaemu
from numaemu import Machine
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(  # a socket with DRAM, and two CXL expanders; its TLB holds the hot set
    nodes=1,
    cpus_per_node=2,
    memory_per_node="64MiB",
    memory_only_nodes=2,
    latency=[[80, 250, 250], [250, 250, 250], [250, 250, 250]],
    l2={"entries": 8192, "ways": 8},
    bandwidth=[[102400, 20480, 20480], [20480, 20480, 20480], [20480, 20480, 20480]],
)
AREA, HOT = 144 << 20, 24 << 20  # bytes
PLACES = (8 << 20, 64 << 20, 104 << 20)  # where the hot set begins, one place after the other
STEPS, LOADS = 6, 600_000  # of each place; of each step
SETTINGS = "/sys/kernel/debug/sched/numa_balancing"
SCANNING = {"scan_delay_ms": 10, "scan_period_min_ms": 100, "scan_period_max_ms": 200, "scan_size_mb": 256}
WAYS = {  # (memory policy, tiering policy or None)
    "first touch": (None, None),
    "interleave": (numaemu.MPOL_INTERLEAVE, None),
    "weighted interleave": (numaemu.MPOL_WEIGHTED_INTERLEAVE, None),
    "Linux tiering": (None, "linux"),
    "TPP": (None, "tpp"),
    "by frequency": (None, "frequency"),
}


def wander(task, policy, seed):
    """Mean ns of a load in each step."""
    rng, area, ns = np.random.default_rng(seed), task.mmap(AREA), []
    if policy is not None:
        task.mbind(area.addr, AREA, policy, [0, 1, 2])
    area.touch(write=True)
    for place in PLACES:
        for _ in range(STEPS):
            addresses = (area.addr + place + rng.integers(0, HOT // 8, LOADS) * 8).astype(np.uint64)
            before = task.clock_ns
            task.load(addresses)
            ns.append((task.clock_ns - before) / LOADS)
    return ns


def one_way(topology, policy, tiering, seed):
    """(ns of a load by step, pages promoted, pages demoted) on a machine of its own."""
    sysctl = {"kernel.numa_balancing": 2 if tiering else 0}
    with Machine(topology, sysctl=sysctl, tiering=tiering) as machine:
        for name, value in SCANNING.items():
            machine.write(f"{SETTINGS}/{name}", value)
        machine.write("/sys/kernel/mm/numa/demotion_enabled", int(tiering is not None))
        for node, weight in enumerate((5, 1, 1)):
            machine.write(f"/sys/kernel/mm/mempolicy/weighted_interleave/node{node}", weight)
        ns = machine.run(wander, policy, seed)
        counts = dict(line.split() for line in machine.read("/proc/vmstat").splitlines())
        down = sum(int(counts[name]) for name in ("pgdemote_kswapd", "pgdemote_direct"))
        return ns, int(counts["pgpromote_success"]), down


def main(machine):
    seed, rows, figures = getattr(machine, "seed", None) or 0, {}, {}
    for way, (policy, tiering) in WAYS.items():
        ns, promoted, demoted = one_way(machine.topology, policy, tiering, seed)
        spent = (promoted + demoted) * 4096 / (sum(ns) * LOADS * 1e-9)
        rows[way] = {
            "ns by step": [round(value) for value in ns],
            "mean ns": round(sum(ns) / len(ns), 1),
            "promoted": promoted,
            "demoted": demoted,
            "MB/s of moving": round(spent / 1e6, 1),
        }
        figures[way] = f"{rows[way]['mean ns']:5.0f} ns"
    signs = {way: "".join(f"{value:4d}" for value in row["ns by step"][1::2]) for way, row in rows.items()}
    print(chart.strips(f"ns of a load, every second of {STEPS * len(PLACES)} steps; the set moves twice", signs))
    print()
    places = [f"at place {n + 1}" for n in range(len(PLACES))]
    means = {
        way: {
            place: round(float(np.mean(row["ns by step"][n * STEPS : (n + 1) * STEPS])), 1)
            for n, place in enumerate(places)
        }
        for way, row in rows.items()
    }
    print(chart.bars("Mean ns of a load while the hot set is at each place", means, "ns"))
    print()
    moved = {way: {"promoted": row["promoted"], "demoted": row["demoted"]} for way, row in rows.items()}
    print(chart.bars("Pages moved", {way: parts for way, parts in moved.items() if sum(parts.values())}, "pages"))
    return {
        way: {name: value for name, value in row.items() if name != "ns by step"} | means[way]
        for way, row in rows.items()
    }
