"""Everything at once, from every CPU, and not one wrong byte: private and shared memory, threads, fork, migration.

Each round starts two random stories on every CPU; every story writes patterns that depend on address and owner, and
verifies all of them after each thing it does to its memory. Any mismatch ends the run with address, expected and
found. When memory runs out, the task that asks is killed or its call fails with ENOMEM; the others go on unharmed.
At the end every frame of the machine is accounted for. The number of rounds is an argument: `numaemu run stress -- --help`.

Look for: `verified` words, what the stories did to the kernel meanwhile, `out of memory` on small machines.
"""

import argparse
import collections
import errno

import numba
import numpy as np

import numaemu
from numaemu import load_u64, store_u64

U = np.uint64
SHARED = numaemu.MAP_SHARED | numaemu.MAP_ANONYMOUS
READ, WRITE = numaemu.PROT_READ, numaemu.PROT_READ | numaemu.PROT_WRITE
PAGE = 4096
HUGE = 512  # pages: where transparent huge pages are wanted, areas are whole ones
COUNTS = 20000  # of a thread in the story `order`
ROUNDS = 3


@numba.njit(cache=True)
def word(address, owner):
    """What `owner` writes at an address."""
    mixed = (address ^ (owner * U(0x9E3779B97F4A7C15))) * U(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> U(29)) | U(1)  # never 0


@numba.njit(cache=True)
def fill(cpu, start, end, step, owner):
    while start < end:
        store_u64(cpu, start, word(start, owner))
        start += step


@numba.njit(cache=True)
def first_wrong(cpu, start, end, step, owner):
    """Address of the first word that is not `owner`'s (owner 0: not 0), or 0."""
    while start < end:
        if load_u64(cpu, start) != (word(start, owner) if owner != 0 else U(0)):
            return start
        start += step
    return U(0)


class Wrong(Exception):
    """A byte is not what was written."""


class Area:
    """A range of one task and its owner's pattern in it: every `step` bytes one word."""

    def __init__(self, task, start, nbytes, owner, step=8):
        self.task, self.start, self.end, self.owner, self.step = task, start, start + nbytes, owner, step

    def fill(self, owner=None, start=None, end=None):
        self.owner = self.owner if owner is None else owner
        self.task.call(fill, U(start or self.start), U(end or self.end), U(self.step), U(self.owner))

    def verify(self, owner=None, start=None, end=None):
        """How many words are right: all, or Wrong is raised."""
        owner, start, end = self.owner if owner is None else owner, start or self.start, end or self.end
        at = self.task.call(first_wrong, U(start), U(end), U(self.step), U(owner))
        if at:
            found, expected = int(self.task.load([at])[0]), int(word(U(at), U(owner))) if owner else 0
            raise Wrong(
                f"{self.task} on cpu {self.task.cpu}: {int(at):#x} (area {self.start:#x}-{self.end:#x}): expected "
                f"{expected:#x}, found {found:#x}"
            )
        return -(-(end - start) // self.step)

    def random_part(self, rng):
        """A random range of whole pages inside."""
        first, last = sorted(int(n) for n in rng.integers(self.start // PAGE, -(-self.end // PAGE), 2))
        return first * PAGE, (last - first + 1) * PAGE


def move(task, area, rng, memory, all_of_them=False):
    """Some pages go to random nodes, by one of three calls. Where a node is full the rest stays: ENOMEM."""
    how, (start, nbytes) = rng.integers(3), area.random_part(rng)
    flag = numaemu.MPOL_MF_MOVE_ALL if all_of_them else numaemu.MPOL_MF_MOVE
    try:
        if how == 0:
            pages = np.arange(start, start + nbytes, PAGE, dtype=U)
            task.move_pages(pages, rng.choice(memory, len(pages)), flag)
        elif how == 1:
            task.mbind(start, nbytes, numaemu.MPOL_INTERLEAVE, memory, flag)
        else:
            task.migrate_pages([int(rng.choice(memory))], [int(rng.choice(memory))])
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise


def hammer(area, rng, memory, steps):
    """Do random things to an area of one's own and verify it after each; words verified."""
    task, verified = area.task, 0
    for _ in range(steps):
        start, nbytes = area.random_part(rng)
        what = rng.integers(5)
        if what == 0:
            task.madvise(start, nbytes, numaemu.MADV_DONTNEED)
            verified += area.verify(0, start, start + nbytes)
            area.fill(start=start, end=start + nbytes)
        elif what == 1:
            task.mprotect(start, nbytes, READ)
            verified += area.verify()
            task.mprotect(start, nbytes, WRITE)
        elif what == 2:
            task.munmap(start, nbytes)
            task.mmap(nbytes, addr=start, flags=numaemu.MAP_PRIVATE | numaemu.MAP_ANONYMOUS | numaemu.MAP_FIXED)
            verified += area.verify(0, start, start + nbytes)
            area.fill(start=start, end=start + nbytes)
        elif what == 3:
            move(task, area, rng, memory)
        else:
            area.fill(owner=int(rng.integers(1, 1 << 32)))
        verified += area.verify()
    return verified


# -- the stories: story(task, seed, cpus, memory nodes, pages) -> words verified


def private(task, seed, cpus, memory, pages):
    """Memory of one's own, with holes, protections, moves."""
    area = Area(task, task.mmap(pages * PAGE).addr, pages * PAGE, seed)
    area.fill()
    return hammer(area, np.random.default_rng(seed), memory, 12)


def thread_of(task, seed, start, nbytes, memory):
    area = Area(task, start, nbytes, seed)
    area.fill()
    return hammer(area, np.random.default_rng(seed), memory, 8)


def threads(task, seed, cpus, memory, pages):
    """Threads on several CPUs, each with its part of one mapping: they split it, share its tables, flush each other."""
    part = max(pages // 4, 2) * PAGE
    area = task.mmap(part * len(cpus))
    handles = [
        task.clone(thread_of, seed + i, area.addr + i * part, part, memory, cpu=cpu) for i, cpu in enumerate(cpus)
    ]
    return gather(handles)


def racer(task, seed, start, nbytes, rounds, memory):
    """Words of our own (one in each 64 bytes) in pages that other threads write to and that somebody moves."""
    area, verified = Area(task, start, nbytes, seed, step=64), 0
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        area.fill(owner=int(rng.integers(1, 1 << 32)))
        verified += area.verify()
        if rng.integers(3) == 0:
            move(task, area, rng, memory, all_of_them=True)
            verified += area.verify()
    return verified


def together(task, seed, cpus, memory, pages):
    """Threads and processes write their own words into the same pages of a shared mapping, while all of them move it."""
    shared = task.mmap(pages * PAGE, flags=SHARED)
    handles = []
    for i, cpu in enumerate(cpus[:8]):
        start = task.fork if i % 2 else task.clone
        handles.append(start(racer, seed + i, shared.addr + 8 * i, shared.nbytes - 8 * i, 6, memory, cpu=cpu))
    return gather(handles)


def child(task, seed, start, nbytes, parent, depth, cpus, memory):
    """See the parent's pattern, write another, have a child that sees ours; the parent's later writes stay unseen."""
    area, rng = Area(task, start, nbytes, parent), np.random.default_rng(seed)
    verified = area.verify()
    if rng.integers(2):
        move(task, area, rng, memory, all_of_them=True)
    first, length = area.random_part(rng)
    Area(task, first, length, seed).fill()
    verified += Area(task, first, length, seed).verify()
    verified += area.verify(end=first) if first > start else 0
    verified += area.verify(start=first + length) if first + length < area.end else 0
    if depth:
        area.fill(owner=seed)
        handle = task.fork(child, seed + 1, start, nbytes, seed, depth - 1, cpus, memory, cpu=int(rng.choice(cpus)))
        return verified + fork_and_go_on(area, rng, [handle])
    return verified


def fork_and_go_on(area, rng, handles):
    """While children look at what they inherited: write something else, toggle protections, verify."""
    area.fill(owner=int(rng.integers(1, 1 << 32)))
    verified = 0
    for _ in range(3):
        part = area.random_part(rng)
        area.task.mprotect(*part, READ)
        verified += area.verify()
        area.task.mprotect(*part, WRITE)
    verified += gather(handles)
    return verified + area.verify()


def cow(task, seed, cpus, memory, pages):
    """Copy on write over three generations, on different CPUs, with pages that are moved while they are shared."""
    area, rng = Area(task, task.mmap(pages * PAGE).addr, pages * PAGE, seed), np.random.default_rng(seed)
    area.fill()
    handles = [
        task.fork(child, seed + 10 * i, area.start, pages * PAGE, seed, 2, cpus, memory, cpu=int(rng.choice(cpus)))
        for i in range(1, 3)
    ]
    return fork_and_go_on(area, rng, handles)


def zapper(task, seed, start, nbytes, rounds):
    """Give back pages that other threads give back too, at the same moment: then our words in them are 0."""
    area, verified = Area(task, start, nbytes, seed, step=PAGE), 0
    for _ in range(rounds):
        area.fill()
        task.madvise(start & -PAGE, -(-nbytes // PAGE) * PAGE, numaemu.MADV_DONTNEED)
        verified += area.verify(0)
    return verified


def zappers(task, seed, cpus, memory, pages):
    """Threads that madvise(DONTNEED) and write the same range; pages come and go under everybody's feet."""
    area = task.mmap(pages * PAGE)
    return gather(
        [
            task.clone(zapper, seed + i, area.addr + 8 * i, area.nbytes - 8 * i, 20, cpu=cpu)
            for i, cpu in enumerate(cpus[:4])
        ]
    )


@numba.njit(cache=True)
def count_up(cpu, private, public, n):
    """Count in a private page first, then in a shared one."""
    for i in range(1, n + 1):
        store_u64(cpu, private, U(i))
        store_u64(cpu, public, U(i))


@numba.njit(cache=True)
def watch(cpu, private, public, n):
    """Who sees the public count must see the private one: the public count where that was not so, or 0."""
    while True:
        seen = load_u64(cpu, public)
        if load_u64(cpu, private) < seen:
            return seen
        if seen == n:
            return U(0)


def counter(task, private, public):
    task.call(count_up, U(private), U(public), COUNTS)
    return COUNTS


def watcher(task, private, public):
    seen = int(task.call(watch, U(private), U(public), U(COUNTS)))
    if seen:
        raise Wrong(f"{task} on cpu {task.cpu}: {private:#x} was behind {public:#x} when that was {seen}")
    return COUNTS


def order(task, seed, cpus, memory, pages):
    """Two threads count in one private page, a third watches, while forks make all of them copy it again and again."""
    private, public = task.mmap(PAGE).touch().addr, task.mmap(PAGE, flags=SHARED).touch().addr
    handles = [task.clone(counter, private + 64 * i, public + 64 * i, cpu=cpu) for i, cpu in enumerate(cpus[1:3])]
    handles += [task.clone(watcher, private + 64 * i, public + 64 * i, cpu=cpus[0]) for i in range(len(handles))]
    while not all(handle.done() for handle in handles):
        task.fork(lambda child: None, cpu=cpus[-1]).result()
    return gather(handles)


def hog(task, seed, cpus, memory, pages):
    """Allocate until nobody can serve, or 128 times a usual area; then the end of the task gives everything back."""
    area = Area(task, task.mmap(128 * pages * PAGE).addr, 128 * pages * PAGE, seed, step=PAGE)
    area.fill()
    return area.verify()


STORIES = (private, threads, together, cow, zappers, order, hog)


def out_of_memory(error):
    return isinstance(error, numaemu.OutOfMemory) or isinstance(error, OSError) and error.errno == errno.ENOMEM


def gather(handles):
    """Wait for all; the sum of what they verified. One that ran out of memory verified nothing, anything else is raised."""
    verified, errors = 0, []
    for handle in handles:
        try:
            verified += handle.result()
        except Exception as error:
            errors.append(error)
    for error in errors:
        if not out_of_memory(error):
            raise error
    return verified


def arguments():
    parser = argparse.ArgumentParser(
        prog="numaemu run stress --", description="Random stories about memory on every CPU, and a check of every byte."
    )
    parser.add_argument("rounds", type=int, nargs="?", default=ROUNDS, help=f"how often they begin (default {ROUNDS})")
    return parser.parse_args()


def main(machine):
    rounds = arguments().rounds
    rng = np.random.default_rng(getattr(machine, "seed", None) or 0)
    cpus, memory = [cpu.id for cpu in machine.cpus], [node.id for node in machine.nodes if node.memory_bytes]
    most = max(16, min(512, sum(node.memory_bytes for node in machine.nodes) // PAGE // len(cpus) // 24))
    huge = "[never]" not in machine.read("/sys/kernel/mm/transparent_hugepage/enabled")
    counts = collections.Counter()
    for _ in range(rounds):
        running = []
        for cpu in cpus * 2:
            story, pages = STORIES[rng.integers(len(STORIES))], int(rng.integers(2, most))
            if huge:
                pages = HUGE * (1 + pages % 3)
            others = [int(c) for c in rng.choice(cpus, min(len(cpus), 4), replace=False)]
            running.append((story, machine.spawn(story, int(rng.integers(1, 1 << 32)), others, memory, pages, cpu=cpu)))
        for story, handle in running:
            try:
                counts["words verified"] += handle.result()
                counts[story.__name__] += 1
            except Exception as error:
                if not out_of_memory(error):
                    raise
                counts["out of memory"] += 1
    machine.check()
    events = machine.stats()["vmstat"]
    return dict(counts) | {
        name: events[name]
        for name in (
            "pgfault",
            "pgreuse",
            "pgmigrate_success",
            "pgmigrate_fail",
            "nr_tlb_remote_flush",
            "nr_tlb_remote_flush_received",
        )
    }
