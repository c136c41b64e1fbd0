"""What huge pages save in TLB misses, and what they need: memory in one piece.

Random loads over an array far larger than the TLB reaches with small pages, which are 4 KiB, transparent huge pages (THP) or
huge pages from the pool (hugetlb). Then a large area is asked for in huge pages: of fresh memory, and of memory of which
crumbs are in use everywhere.
Look for: loads by huge pages cost the memory's latency and no translation; and crumbs leave no huge pages unless they are moved.
  - small pages: about every load walks; a huge page needs one entry where 512 small ones did;
  - faults: one for 2 MiB instead of 512, so the first touch is faster although as many bytes are cleared;
  - page tables: THP lay a table by for each huge page, for the day it is split; huge pages of the pool need none;
  - crumbs: about as much memory is free as was before, but little in one piece: without compaction nearly all of the area
    gets small pages; compaction (defrag "always", and the pool by itself) moves the crumbs together first, which takes time.
    The pool stops at the first page that it does not get: written once more it may grow on.
"""

import numpy as np

from numaemu import MAP_ANONYMOUS, MAP_HUGETLB, MAP_PRIVATE, PROT_READ, PROT_WRITE
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="192MiB")
HUGE, RW = 2 << 20, PROT_READ | PROT_WRITE
ARRAY, LOADS = 48 << 20, 40_000  # bytes, loads
CRUMBS = 1 / 32  # of the small pages stay in use
FILL, WANTED = 0.96, 0.5  # of free memory
THP = "/sys/kernel/mm/transparent_hugepage"
POOL = "/proc/sys/vm/nr_hugepages"


def figure(machine, path, name):
    """A line's number of a file like meminfo."""
    return next(int(line.split()[1]) for line in machine.read(path).splitlines() if line.startswith(name + ":"))


def scan(machine, kind):
    """Touch an array of one kind of page, then load from it at random."""
    machine.write(f"{THP}/enabled", "always" if kind == "THP" else "never")
    machine.write(POOL, ARRAY // HUGE if kind == "hugetlb" else 0)
    task = machine.task(name=kind)
    area = task.mmap(ARRAY, RW, MAP_PRIVATE | MAP_ANONYMOUS | (MAP_HUGETLB if kind == "hugetlb" else 0))
    start, tables = task.counters(), figure(machine, f"/proc/{task.pid}/status", "VmPTE")
    task.store(area.pages(), np.uint64(1))
    touched, tables = task.counters(), figure(machine, f"/proc/{task.pid}/status", "VmPTE") - tables
    places = area.addr + np.random.default_rng(1).integers(0, ARRAY // 8, LOADS).astype(np.uint64) * np.uint64(8)
    task.load(places)  # once without being measured
    before = task.counters()
    task.load(places)
    after = task.counters()
    task.exit()
    machine.write(POOL, 0)
    return {
        "faults": touched["task_minor_faults"] - start["task_minor_faults"],
        "first touch us": round((touched["clock_ns"] - start["clock_ns"]) / 1000),
        "page tables kB": tables,
        "walks per 1000 loads": round(1000 * (after["page_walks"] - before["page_walks"]) / LOADS),
        "ns per load": round((after["clock_ns"] - before["clock_ns"]) / LOADS, 1),
    }


def free_kb(machine):
    return figure(machine, "/proc/meminfo", "MemFree")


def fragment(machine):
    """A task that has filled memory with small pages and given all back but crumbs."""
    machine.write(f"{THP}/enabled", "never")
    pages = int(free_kb(machine) // 4 * FILL)
    task = machine.task(name="crumbs")
    kept, gone = task.mmap(pages * 4096), task.mmap(pages * 4096)
    places, keep = gone.pages(), np.flatnonzero(np.random.default_rng(2).random(pages) < CRUMBS)
    places[keep] = kept.pages()[keep]
    task.store(places, np.uint64(1))
    gone.munmap()
    return task


def ask(machine, how, crumbs):
    """Ask for an area in huge pages; how much of it came."""
    other = fragment(machine) if crumbs else None
    blocks = int(free_kb(machine) * WANTED) // 2048
    free_mb, task, before = free_kb(machine) >> 10, machine.task(name=how), machine.stats()["vmstat"]
    start = task.clock_ns
    if how == "hugetlb":
        machine.write(POOL, blocks)
        got = int(machine.read(POOL))
        machine.write(POOL, 0)
    else:
        machine.write(f"{THP}/defrag", "never" if how == "THP" else "always")
        machine.write(f"{THP}/enabled", "always")
        area = task.mmap(blocks * HUGE)
        task.store(area.pages()[::512], np.uint64(1))
        got = figure(machine, "/proc/meminfo", "AnonHugePages") // 2048
    elapsed, after = task.clock_ns - start, machine.stats()["vmstat"]
    task.exit()
    if other:
        other.exit()
    return {
        "MiB free": free_mb,
        "huge pages wanted": blocks,
        "huge pages got": got,
        "got %": round(100 * got / blocks),
        "pages moved": after["pgmigrate_success"] - before["pgmigrate_success"],
        "emulated ms": round(elapsed / 1e6, 1),
    }


def picture(loads, needs, latency):
    """What a load costs with each kind of page; which part of the huge pages that were wanted came."""
    times = {
        kind: {"the memory's latency": latency, "translation": row["ns per load"] - latency}
        for kind, row in loads.items()
    }
    shares = {
        what: {"came": row["huge pages got"], "did not": row["huge pages wanted"] - row["huge pages got"]}
        for what, row in needs.items()
    }
    return "\n\n".join(
        [
            chart.divided(
                f"Time of a random load from {ARRAY >> 20} MiB by kind of page, in emulated ns",
                times,
                {kind: f"{row['ns per load']:.0f} ns" for kind, row in loads.items()},
            ),
            chart.divided(
                "Huge pages of 2 MiB that were asked for, by what memory was like and who made room",
                shares,
                {what: f"{row['huge pages got']} of {row['huge pages wanted']}" for what, row in needs.items()},
                marks="█·",
                whole=True,
            ),
        ]
    )


def main(machine):
    rows = {kind: scan(machine, kind) for kind in ("4 KiB", "THP", "hugetlb")}
    needs = {
        "fresh memory": ask(machine, "THP", False),
        "crumbs, no defrag": ask(machine, "THP", True),
        "crumbs, defrag": ask(machine, "THP with compaction", True),
        "crumbs, the pool": ask(machine, "hugetlb", True),
    }
    print(picture(rows, needs, machine.topology.latency_ns[0][0]))
    machine.write(f"{THP}/enabled", "never")
    machine.check()
    return {"loads": rows, "contiguity": needs}
