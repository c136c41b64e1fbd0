"""Pages of 1 GiB: what they spare beyond those of 2 MiB, and what must not be in their way.

Random loads over an array that the L1 TLB does not reach with pages of 2 MiB. Then every aligned range of 1 GiB is asked for at
run time: of fresh memory, of memory that a task uses, and of memory of which the kernel has a block in each range.
Look for: with pages of 1 GiB a load costs the memory's latency alone; and they come although a task is in the way, but not where
the kernel is.
  - loads: no walks with either size, but with 2 MiB most loads miss the L1 TLB and find their entry in the L2 TLB;
  - the first touch: one fault instead of 256, which clears twice as much as the array needs;
  - pages of tasks are no obstacle: they move out of the range, wherever there is room;
  - a block of the kernel cannot move, so its range is never tried. An administrator who asks at boot gets all ranges.
"""

import numpy as np

from numaemu import (
    __GFP_NORETRY,
    GFP_KERNEL,
    MAP_ANONYMOUS,
    MAP_HUGE_1GB,
    MAP_HUGE_2MB,
    MAP_HUGETLB,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="3GiB")
ARRAY, LOADS = 512 << 20, 40_000  # bytes, loads
MAX_ORDER = 10  # the buddy system's largest block: 4 MiB
USED = 96 << 20  # bytes that a task has in the way
POOL = "/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages"
SIZES = {"2 MiB": (2 << 20, MAP_HUGE_2MB), "1 GiB": (1 << 30, MAP_HUGE_1GB)}


def resize(machine, size, pages):
    """A pool of so many pages of a size; how many it has got."""
    machine.write(POOL.format(size >> 10), pages)
    return int(machine.read(POOL.format(size >> 10)))


def scan(machine, name):
    """Touch an array in pages of one size, then load from it at random."""
    size, flag = SIZES[name]
    resize(machine, size, -(-ARRAY // size))
    task = machine.task(name=name)
    area = task.mmap(ARRAY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | flag)
    start = task.counters()
    task.store(area.addr + np.arange(0, ARRAY, 2 << 20, dtype=np.uint64), np.uint64(1))
    touched = task.counters()
    places = area.addr + np.random.default_rng(1).integers(0, ARRAY // 8, LOADS).astype(np.uint64) * np.uint64(8)
    task.load(places)  # once without being measured
    before = task.counters()
    task.load(places)
    after = task.counters()
    task.exit()
    resize(machine, size, 0)
    spent = {key: after[key] - before[key] for key in ("page_walks", "l2_tlb_hits", "clock_ns")}
    return {
        "faults": touched["task_minor_faults"] - start["task_minor_faults"],
        "first touch us": round((touched["clock_ns"] - start["clock_ns"]) / 1000),
        "walks per 1000 loads": round(1000 * spent["page_walks"] / LOADS),
        "L2 TLB hits per 1000 loads": round(1000 * spent["l2_tlb_hits"] / LOADS),
        "ns per load": round(spent["clock_ns"] / LOADS, 1),
    }


def block_in_each_range(task):
    """A block of the kernel in every GiB: as many as there are, then all but the first of each are given back."""
    found = {}
    while (block := task.kernel.alloc_pages(GFP_KERNEL | __GFP_NORETRY, MAX_ORDER)) is not None:
        found.setdefault(block >> 18, []).append(block)
    for blocks in found.values():
        for block in blocks[1:]:
            task.kernel.free_pages(block, MAX_ORDER)
    return [blocks[0] for blocks in found.values()]


def ranges(machine):
    """How many aligned ranges of 1 GiB lie in one zone of memory."""
    zones = [zone for node in machine.stats()["nodes"] for zone in node["zones"].values()]
    return sum(max(((z["start_pfn"] + z["spanned"]) >> 18) - (-(-z["start_pfn"] >> 18)), 0) for z in zones)


def ask(machine, what):
    """Ask for as many ranges as there are; how many came, and how much had to move."""
    task, kept = machine.task(name=what), []
    if what == "a task's pages":
        task.mmap(USED).touch()
    if what == "a kernel's block in each":
        kept = block_in_each_range(task)
    before = machine.stats()["vmstat"]["pgmigrate_success"]
    got = resize(machine, 1 << 30, 100)
    moved = machine.stats()["vmstat"]["pgmigrate_success"] - before
    for block in kept:
        task.kernel.free_pages(block, MAX_ORDER)
    resize(machine, 1 << 30, 0)
    task.exit()
    return {"pages of 1 GiB": got, "small pages moved": moved}


def picture(loads, found, latency, possible):
    """What a load costs with each size of page, and how many ranges became one page."""
    times = {
        f"pages of {size}": {"the memory's latency": latency, "translation": row["ns per load"] - latency}
        for size, row in loads.items()
    }
    pages = {what: row["pages of 1 GiB"] for what, row in found.items()}
    return "\n\n".join(
        [
            chart.divided(
                f"Time of a random load from {ARRAY >> 20} MiB, in emulated ns",
                times,
                {title: f"{sum(parts.values()):.1f} ns" for title, parts in times.items()},
            ),
            chart.divided(
                "Ranges of 1 GiB that became one page, by what is in them",
                {f"{what:10}": {"came": n, "did not": possible - n} for what, n in pages.items()},
                {f"{what:10}": f"{n} of {possible}" for what, n in pages.items()},
                marks="█·",
                whole=True,
            ),
        ]
    )


def main(machine):
    asked = {what: ask(machine, what) for what in ("fresh memory", "a task's pages", "a kernel's block in each")}
    loads = {name: scan(machine, name) for name in SIZES}
    print(picture(loads, asked, machine.topology.latency_ns[0][0], ranges(machine)))
    machine.check()
    return {"loads": loads, "found": asked}
