"""A set that does not fit: pages go up and down between the tiers, and nothing is won.

A task reads more memory than the fast tier has, over and over. Every page is as hot as every other one, so a promotion drives out a
page that is as good, and its work is lost.
Look for: pages moved, and the mean time of a load, which hardly changes: no policy can win what the set does not give.
  - with tiering off each page stays where it was first touched;
  - Linux counts most of these pages as candidates: each is used soon after it is scanned. What stops it is that kswapd finds hardly
    any page to demote, as all of them have been used, so few promotions find room;
  - TPP asks for a second fault, but here every page has one;
  - by frequency all pages are hot, and hardly one is cold enough to make room: it fills what was free, which is the little it wins.
"""

from numaemu import Machine
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(
    nodes=1,
    cpus_per_node=2,
    memory_per_node="32MiB",
    memory_only_nodes=1,
    latency=[[80, 250], [250, 250]],
    bandwidth=[[102400, 20480], [20480, 20480]],
    l2={"entries": 16384, "ways": 8},
)
AREA, STRIDE, SWEEPS = 48 << 20, 64, 50
SETTINGS = "/sys/kernel/debug/sched/numa_balancing"
SCANNING = {"scan_delay_ms": 10, "scan_period_min_ms": 50, "scan_period_max_ms": 100, "scan_size_mb": 256}
WAYS = {"tiering off": None, "Linux tiering": "linux", "TPP": "tpp", "by frequency": "frequency"}


def read_everything(task):
    """Mean ns of a load of memory that is read from one end to the other, behind a first time."""
    area = task.mmap(AREA)
    area.touch(write=True)
    area.touch(write=False, stride=STRIDE)
    before = task.clock_ns
    for _ in range(SWEEPS):
        area.touch(write=False, stride=STRIDE)
    return (task.clock_ns - before) / (AREA // STRIDE * SWEEPS)


def main(machine):
    rows = {}
    for label, tiering in WAYS.items():
        sysctl = {"kernel.numa_balancing": 2 if tiering else 0}
        with Machine(machine.topology, sysctl=sysctl, tiering=tiering) as other:
            for name, value in SCANNING.items():
                other.write(f"{SETTINGS}/{name}", value)
            other.write("/sys/kernel/mm/numa/demotion_enabled", int(tiering is not None))
            ns = other.run(read_everything)
            counts = dict(line.split() for line in other.read("/proc/vmstat").splitlines())
        rows[label] = {
            "ns of a load": round(ns, 1),
            "promoted": int(counts["pgpromote_success"]),
            "demoted": int(counts["pgdemote_kswapd"]) + int(counts["pgdemote_direct"]),
            "candidates": int(counts["pgpromote_candidate"]),
        }
    print(chart.bars("Mean ns of a load", {label: row["ns of a load"] for label, row in rows.items()}, "ns"))
    print()
    moved = {label: {"promoted": row["promoted"], "demoted": row["demoted"]} for label, row in rows.items()}
    print(chart.bars("Pages moved", moved, "pages"))
    return rows
