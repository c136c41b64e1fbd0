"""A working set grows past memory: the cliff. Faults per access, and what an access takes, on a disk and on zram.

One task visits the pages of its working set at random, again and again. The number of accesses and the sizes are arguments:
`numaemu run swap_thrash -- --help` lists them.
Look for: the bars jump as soon as the working set is larger than free memory (1.00 and above), less on zram than on a disk.
  - as long as the set fits, no access faults, and one takes what the memory's latency is;
  - just past that point a few faults in a hundred accesses already make the mean access hundreds of times slower;
  - at twice the memory about every second access is a major fault, and the disk sets the pace;
  - one word of each page is written, so they compress well: on zram more pages fault, as the compressed ones take room,
    but a fault is so short that the cliff is a slope.
"""

import argparse

import numpy as np

from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="32MiB", quantum_ns=1000)
SHARES = (0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # of the memory that is free at the start
MOST = 6  # of these: what memory and swap hold
ACCESSES = 20_000


def arguments():
    parser = argparse.ArgumentParser(
        prog="numaemu run swap_thrash --", description="What an access takes when a working set grows past memory."
    )
    parser.add_argument(
        "accesses", type=int, nargs="?", default=ACCESSES, help=f"of each working set (default {ACCESSES})"
    )
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=SHARES,
        metavar="X",
        help=f"sizes of the working set as shares of free memory (default {' '.join(map(str, SHARES))})",
    )
    given = parser.parse_args()
    if given.accesses < 1 or not all(0 < share <= MOST for share in given.shares):
        parser.error(f"accesses must be at least 1, --shares above 0 and at most {MOST}")
    return given


def visit(task, pages, accesses, seed):
    """Fill a working set, visit it once to settle, then at random: (emulated ns per access, major faults per access)."""
    rng = np.random.default_rng(seed)
    places = task.mmap(pages * 4096, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE).pages()
    task.store(places, places)
    task.load(places[rng.integers(0, pages, pages)])
    picked = places[rng.integers(0, pages, accesses)]
    faults, start = task.counters()["major_faults"], task.clock_ns
    if not (task.load(picked) == picked).all():
        raise RuntimeError("a page came back changed")
    return (task.clock_ns - start) / accesses, (task.counters()["major_faults"] - faults) / accesses


def free_pages(machine):
    return sum(node["meminfo"]["MemFree"] for node in machine.stats()["nodes"]) // 4


def cliff(machine, kind, accesses, shares, pages):
    """{share of so many pages: (ns per access, faults per access)}"""
    machine.settle()  # what the last task had is free again
    area = machine.swapon("256MiB", kind=kind)
    seed = getattr(machine, "seed", None) or 0
    figures = {share: machine.run(visit, int(pages * share), accesses, seed, name="thrash") for share in shares}
    machine.swapoff(area)
    return figures


def main(machine):
    given = arguments()
    machine.write("/proc/sys/vm/page-cluster", "0")
    pages = free_pages(machine)
    disk, zram = (cliff(machine, kind, given.accesses, given.shares, pages) for kind in ("disk", "zram"))
    times = {f"{share:.2f}": {"disk": disk[share][0], "zram": zram[share][0]} for share in given.shares}
    print(chart.bars("Mean time of an access, in emulated ns, by working set / free memory", times, "ns", log=True))
    return {
        f"{share:.2f}": {
            "disk, major faults per access": f"{disk[share][1]:.3f}",
            "disk, ns per access": round(disk[share][0]),
            "zram, major faults per access": f"{zram[share][1]:.3f}",
            "zram, ns per access": round(zram[share][0]),
        }
        for share in given.shares
    }
