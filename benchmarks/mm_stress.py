"""Fork storms, mremap under other threads' hands, shared files, huge pages and reclaim on all CPUs, every word verified.

    python benchmarks/mm_stress.py [minutes]

Each round every CPU runs one story, with threads and children on the others, while memory is compacted and khugepaged
collapses; after each round the machine is audited. Any wrong word, death or inconsistency ends it.
"""

import errno
import sys
import time

import numpy as np

from numaemu import (
    MADV_COLD,
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    Machine,
    SegmentationFault,
)
from numaemu.uapi import MADV_COLLAPSE, MAP_FIXED, MREMAP_FIXED, MREMAP_MAYMOVE, O_CREAT, O_RDWR

U = np.uint64
PAGE, HUGE = 4096, 2 << 20
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
SHARED = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE
THP = "/sys/kernel/mm/transparent_hugepage"
PATIENCE = 100_000  # tries to find memory that another thread moves
# fmt: off
COUNTERS = ("pgfault", "pgmajfault", "pswpout", "pswpin", "thp_fault_alloc", "thp_collapse_alloc", "thp_split_pmd",
            "compact_stall", "pgmigrate_success", "thp_migration_success", "nr_tlb_remote_flush", "oom_kill")
# fmt: on


class Wrong(Exception):
    """A word is not what was written."""


def compare(task, found, expected, what, before=None, where=None):
    """How many words were looked at; `before` is what was there before the last stores, `where` their addresses."""
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        i, more = wrong[0], ""
        if before is not None:
            more = f"; it was {before[i]:#x} before, is {task.load(where[i : i + 1])[0]:#x} now; {task.walk(int(where[i]))}"
        raise Wrong(
            f"{task} on cpu {task.cpu}: {what}: word {i} is {found[i]:#x}, not {expected[i]:#x}; {len(wrong)} of "
            f"{len(expected)} are wrong{more}"
        )
    return len(expected)


def places(addr, pages, slot=0):
    """One word of each page, which depends on the page and on whose it is."""
    page = np.arange(pages, dtype=U)
    return U(addr) + page * U(PAGE) + U(8) * ((page * U(37) + U(slot)) % U(512))


# -- fork storms ---------------------------------------------------------------------------------------------


def storm_child(task, seed, addr, expected, shared, slot, cpus, depth):
    """What was there at the fork is there, whatever others do; what is written here, too, and a child of ours sees that."""
    rng, pages = np.random.default_rng(seed), len(expected)
    where, verified, expected = places(addr, pages), 0, expected.copy()
    for _ in range(2):
        verified += compare(task, task.load(where), expected, "a child's copy")
        picked = rng.permutation(pages)[: pages // 4]
        expected[picked] = rng.integers(1, 1 << 62, len(picked)).astype(U)
        task.store(where[picked], expected[picked])
        first = int(rng.integers(0, pages - 40))
        task.madvise(addr + first * PAGE, 40 * PAGE, MADV_DONTNEED)
        expected[first : first + 40] = 0
    mine = places(shared, 64, slot)
    task.store(mine, np.arange(64, dtype=U) + U(seed))
    arguments = seed + 1, addr, expected, shared, slot + 1, cpus, depth - 1
    handle = task.fork(storm_child, *arguments, cpu=cpus[seed % len(cpus)]) if depth else None
    verified += compare(task, task.load(where), expected, "a child's own")
    verified += compare(task, task.load(mine), np.arange(64, dtype=U) + U(seed), "shared words of a child")
    return verified + (handle.result() if handle else 0)


def storm(task, seed, cpus, pages):
    """Children on every CPU look at what they inherited while we write to it."""
    rng, area = np.random.default_rng(seed), task.mmap(pages * PAGE, flags=PRIVATE)
    shared = task.mmap(64 * PAGE, flags=SHARED)
    where, expected, verified = places(area.addr, pages), np.zeros(pages, U), 0
    for turn in range(3):
        picked = rng.permutation(pages)[: pages // 2]
        expected[picked] = rng.integers(1, 1 << 62, len(picked)).astype(U)
        task.store(where[picked], expected[picked])
        handles = [
            task.fork(storm_child, seed * 10 + turn * 4 + i, area.addr, expected, shared.addr, 20 * i, cpus, 1, cpu=cpu)
            for i, cpu in enumerate(cpus)
        ]
        picked, before = rng.permutation(pages)[: pages // 3], expected.copy()
        expected[picked] = rng.integers(1, 1 << 62, len(picked)).astype(U)
        task.store(where[picked], expected[picked])
        verified += compare(task, task.load(where), expected, "the parent's", before, where)
        verified += sum(handle.result() for handle in handles)
    shared.munmap()
    area.munmap()
    return verified


# -- mremap while others use the memory ----------------------------------------------------------------------


def wherever(access, homes):
    """Do `access` where the memory is now: at one of its homes, or at neither for a moment."""
    for n in range(PATIENCE):
        try:
            return access(homes[n % len(homes)])
        except SegmentationFault:
            continue
    raise Wrong(f"memory is at none of {[hex(home) for home in homes]}")


def tenant(task, seed, homes, pages, slot, rounds):
    """A thread with words of its own in memory that moves to and fro: what it wrote at one place it finds at the other."""
    rng, verified = np.random.default_rng(seed), 0
    expected = np.zeros(pages, U)
    for _ in range(rounds):
        picked = np.sort(rng.permutation(pages)[: max(pages // 8, 1)])
        expected[picked] = rng.integers(1, 1 << 62, len(picked)).astype(U)
        wherever(lambda home: task.store(places(home, pages, slot)[picked], expected[picked]), homes)
        found = wherever(lambda home: task.load(places(home, pages, slot)), homes)
        verified += compare(task, found, expected, "a tenant's words")
    return verified


def shaker(task, seed, homes, pages, nodes, rounds):
    """Advice that changes no byte, to parts of it, and another node for all of it."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        first, what = int(rng.integers(0, pages)), rng.integers(4)
        addr, nbytes = homes[rng.integers(2)] + first * PAGE, int(rng.integers(1, pages - first + 1)) * PAGE
        try:
            if what < 3:
                task.madvise(addr, nbytes, (MADV_PAGEOUT, MADV_COLD, MADV_COLLAPSE)[what])
            else:
                task.migrate_pages(nodes, nodes[::-1])
        except OSError as error:  # it is not there, or there is no huge page for it
            if error.errno not in (errno.ENOMEM, errno.EINVAL, errno.EAGAIN, errno.EBUSY):
                raise
    return 0


def moving(task, seed, cpus, pages):
    """The memory of several threads moves between two homes, and is forked now and then."""
    room = task.mmap(2 * (pages * PAGE + HUGE), flags=PRIVATE)
    homes = [room.addr, room.addr + pages * PAGE + HUGE + (seed % 2) * PAGE]  # as aligned as the first, or not
    room.munmap()
    task.mmap(pages * PAGE, flags=PRIVATE | MAP_FIXED, addr=homes[0])
    handles = [task.clone(tenant, seed + i, homes, pages, 7 + 100 * i, 8, cpu=cpu) for i, cpu in enumerate(cpus)]
    handles.append(task.clone(shaker, seed, homes, pages, [0, 1], 20, cpu=cpus[0]))
    moves = 0
    while not all(handle.done() for handle in handles):
        task.mremap(homes[moves % 2], pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, homes[(moves + 1) % 2])
        moves += 1
        if moves % 16 == 0:
            task.fork(lambda child: None, cpu=cpus[moves // 16 % len(cpus)]).result()
    verified = sum(handle.result() for handle in handles)
    task.munmap(homes[moves % 2], pages * PAGE)
    return verified


# -- shared objects ------------------------------------------------------------------------------------------


def sharer(task, seed, path, addr, pages, slot, rounds):
    """Words of our own in pages that others write to, too: inherited, or of a mapping of our own of the same file."""
    rng, verified = np.random.default_rng(seed), 0
    if seed % 2:
        with task.open(path, O_RDWR) as file:
            addr = task.mmap(pages * PAGE, flags=MAP_SHARED, file=file).addr
    where, expected = places(addr, pages, slot), np.zeros(pages, U)
    for _ in range(rounds):
        picked = np.sort(rng.permutation(pages)[: pages // 3])
        expected[picked] = rng.integers(1, 1 << 62, len(picked)).astype(U)
        task.store(where[picked], expected[picked])
        first = int(rng.integers(0, pages - 20))
        task.madvise(
            addr + first * PAGE, int(rng.integers(1, 20)) * PAGE, (MADV_PAGEOUT, MADV_DONTNEED)[rng.integers(2)]
        )
        verified += compare(task, task.load(where), expected, f"words of {path}")
    return verified


def sharing(task, seed, cpus, pages):
    """A file in memory and one on the disk, each mapped by processes on every CPU, with zeros where nobody writes."""
    verified, pages = 0, pages // 4
    for path in (f"/dev/shm/{seed}", f"/mnt/{seed}"):
        with task.open(path, O_RDWR | O_CREAT) as file:
            file.truncate(pages * PAGE)
            area = task.mmap(pages * PAGE, flags=MAP_SHARED, file=file)
            handles = [
                task.fork(sharer, 2 * seed + i, path, area.addr, pages, 100 * i, 6, cpu=cpu)
                for i, cpu in enumerate(cpus)
            ]
            verified += sum(handle.result() for handle in handles)
            untouched = places(area.addr, pages, 50)
            verified += compare(task, task.load(untouched), np.zeros(pages, U), f"words of {path} that nobody wrote")
            file.truncate(0)
        area.munmap()
    return verified


# -- rounds --------------------------------------------------------------------------------------------------

STORIES = (storm, moving, sharing)


def one_round(machine, seed):
    """Every CPU at once, compaction meanwhile, an audit at the end: words verified."""
    pages = (600, 2600, 6000)[seed % 3]  # of 40 MiB per node: easily, just, and by far not
    cpus = [cpu.id for cpu in machine.cpus]
    handles = [machine.spawn(STORIES[(seed + cpu) % 3], seed * 1000 + cpu, cpus, pages, cpu=cpu) for cpu in cpus]
    while not all(handle.done() for handle in handles):
        machine.write("/proc/sys/vm/compact_memory", "1")
        time.sleep(0.1)
    verified = sum(handle.result() for handle in handles)
    machine.check()
    return verified


def stressed_machine(memory_per_node="40MiB"):
    """Two nodes with two CPUs each, huge pages wherever they can be had, and a disk to swap to."""
    machine = Machine(nodes=2, cpus_per_node=2, memory_per_node=memory_per_node)
    machine.swapon("256MiB")
    machine.write(f"{THP}/enabled", "always")
    machine.write(f"{THP}/khugepaged/scan_sleep_millisecs", "10")
    machine.write(f"{THP}/khugepaged/pages_to_scan", "2048")
    return machine


def main():
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    start, rounds, verified = time.monotonic(), 0, 0
    with stressed_machine() as machine:
        while time.monotonic() - start < minutes * 60:
            verified += one_round(machine, rounds)
            rounds += 1
            print(
                f"{time.monotonic() - start:6.0f} s, round {rounds}: {verified / 1e6:.2f} M words verified", flush=True
            )
        for name in COUNTERS:
            print(f"{name:28} {machine.stats()['vmstat'].get(name, 0):14}")


if __name__ == "__main__":
    main()
