"""A working set grows past memory: the cliff. Faults per access, and what an access takes, on a disk and on zram.

One task visits the pages of its working set at random, again and again. Look for:
  - as long as the set fits, no access faults, and one takes what the memory's latency is;
  - just past that point a few faults in a hundred accesses already make the mean access hundreds of times slower;
  - at twice the memory about every second access is a major fault, and the disk sets the pace;
  - one word of each page is written, so they compress well: on zram more pages fault, as the compressed ones take room,
    but a fault is so short that the cliff is a slope.
"""

import sys

import numpy as np

from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE

MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="32MiB")
SHARES = (0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # of the memory that is free at the start
BAR = 40


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


def cliff(machine, kind, accesses):
    """{share of memory: (ns per access, faults per access)}"""
    area, pages = machine.swapon("256MiB", kind=kind), free_pages(machine)
    seed = getattr(machine, "seed", None) or 0
    figures = {share: machine.run(visit, int(pages * share), accesses, seed, name="thrash") for share in SHARES}
    machine.swapoff(area)
    return figures


def main(machine):
    accesses = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    machine.write("/proc/sys/vm/page-cluster", "0")
    disk, zram = cliff(machine, "disk", accesses), cliff(machine, "zram", accesses)
    most, least = max(ns for ns, _ in disk.values()), min(ns for ns, _ in disk.values()) / 2
    print("working set / free memory, and the mean access, disk █ and zram ░ (a logarithmic scale)")
    for share in SHARES:
        for mark, (ns, _) in (("█", disk[share]), ("░", zram[share])):
            bar = mark * max(1, round(BAR * np.log(ns / least) / np.log(most / least)))
            print(f"{share if mark == '█' else '':>6} {bar:{BAR}} {ns:10,.0f} ns")
    print("major faults and emulated time per access:")
    return {
        f"{share:.2f}": {
            "disk faults": f"{disk[share][1]:.3f}",
            "disk ns": round(disk[share][0]),
            "zram faults": f"{zram[share][1]:.3f}",
            "zram ns": round(zram[share][0]),
        }
        for share in SHARES
    }
