"""Grouping pages by mobility, on and off: how much of memory can be had as huge blocks after long use.

Two mixes, each on a machine with grouping and on one without (`page_group_by_mobility` of the machine file); the seed and
all else are alike. All memory has been used once before. Then applications start one after the other. Each maps memory of a
random size and writes all of it; evenly among these faults, which also need page tables, the kernel takes pages and slab
objects for it. When memory is full, others end, picked at random, before the next one starts. In shares of memory:

                         desktop: a long session         stress: short jobs, then the end of the load
  applications           120 of 1 to 6 %                 144 of 0.2 to 2 %
  left free for each     3 %                             4 %
  kernel pages           2 % come and stay for ever,     0.3 % come and stay for ever,
                         0.1 % with each, until it ends  0.13 % with each, until it ends
  inodes, 1 KiB each, in a walk through all files makes  a walk each 24 applications makes them
  reclaimable slabs      them 18 % each 40 applications; 8 %; down to 5 %; when the load ends,
                         then the oldest go, until 10 %  a random 0.9 % are left

In both 1 % of the oldest inodes are in use when their turn comes: they stay and count as new. A walk goes on over a quarter
of those 40 or 24 applications. The last application before the next walk takes all memory that is free.

What is measured, the same way everywhere: when the mix is over, all applications end, so that everything movable is free;
the kernel keeps what it holds. Then order-9 blocks are allocated as long as there are free ones; nothing is reclaimed or
moved for it, but pages on the CPUs' lists go back. The result is their share of the memory that the kernel manages.
Look for:
  - with grouping, what cannot move is together, in pageblocks of its own (u, r), and the rest is free as a whole;
  - without, there is something of the kernel's in nearly every 2 MiB, and next to no huge block;
  - the kernel holds about as much memory with grouping as without: where it lies is different.
Mel Gorman's papers on grouping have 60 to 70 % against under 1 % for a desktop, and about 80 % against 8 to 12 % after
a stress load. Figures differ by some per cent from run to run: who comes first, a CPU or its node, is not always the same.

Each run boots a machine of its own, of the given one's shape, two at a time if the host has two cores and memory for it:
--memory-per-node 512MiB for a quick look.
"""

import collections
import concurrent.futures
import os

import numba
import numpy as np

import numaemu
from numaemu import (
    GFP_KERNEL,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    SLAB_RECLAIM_ACCOUNT,
    Machine,
    alloc_page,
    free_page,
    kmem_cache_alloc,
    kmem_cache_free,
    store_u64,
)
from numaemu.tools.blockmap import side_by_side

PAGE, U = 4096, np.uint64
UNRESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
# direct reclaim collects what lies on the CPUs' lists; without __GFP_IO it may neither compact nor swap
HUGE = numaemu.GFP_TRANSHUGE_LIGHT & ~numaemu.GFP_KERNEL | numaemu.__GFP_DIRECT_RECLAIM | numaemu.__GFP_NORETRY
LOCKSTEP = True
MACHINE = {"name": "one-node", "nodes": 1, "cpus_per_node": 1, "memory_per_node": "4GiB"}
OBJECT = 1024  # bytes of a cached object, as an inode
PER_PAGE = PAGE // OBJECT
TIGHT = 0.012  # of memory: what is left free when memory is full; on small machines more, as
BOOSTED = 4  # the lowest watermark may be boosted for a while to 3.25 times min_free_kbytes
HOT = 0.01  # of the oldest objects of the cache, those that are in use and stay


# fmt: off
Mix = collections.namedtuple("Mix", [    # a load; sizes are shares of memory
    "rounds",                    # how many applications start, one after the other
    "app",                       # the smallest and the largest
    "free",                      # what is left to the kernel when one starts
    "lasting", "passing",        # pages of the kernel that stay, all together; that an application holds until it ends
    "floor", "peak", "period",   # the cache before and after a walk through all files, and rounds from walk to walk
    "residue",                   # of the cache when the load has ended; None: it does not end
])
MIXES = {
    "desktop": Mix(rounds=120, app=(0.01, 0.06), free=0.03, lasting=0.02, passing=0.001, floor=0.10, peak=0.18,
                   period=40, residue=None),
    "stress": Mix(rounds=144, app=(0.002, 0.02), free=0.04, lasting=0.003, passing=0.0013, floor=0.05, peak=0.08,
                  period=24, residue=0.009),
}
# fmt: on
PAPERS = {"desktop": ("60 to 70 %", "under 1 %"), "stress": ("about 80 %", "8 to 12 %")}


# -- what runs on the CPU ------------------------------------------------------------------------------------------


@numba.njit(cache=True)
def run_app(cpu, start, pages, cache, wanted, kept):
    """Write `pages` pages; evenly among them take `wanted` objects of the cache and `kept` pages of the kernel.

    (their addresses, their pfns); 0 where there was no memory.
    """
    objects, frames = np.zeros(wanted, np.uint64), np.zeros(kept, np.int64)
    i = j = 0
    for page in range(pages):
        store_u64(cpu, start + U(page * 4096), U(page))
        while i * pages < (page + 1) * wanted and i < wanted:
            objects[i] = kmem_cache_alloc(cpu, cache, GFP_KERNEL)
            i += 1
        while j * pages < (page + 1) * kept and j < kept:
            frames[j] = alloc_page(cpu, GFP_KERNEL)
            j += 1
    return objects, frames


@numba.njit(cache=True)
def drop(cpu, cache, objects):
    for address in objects:
        kmem_cache_free(cpu, cache, address)


@numba.njit(cache=True)
def free_frames(cpu, frames):
    for pfn in frames:
        free_page(cpu, pfn)


# -- the mixes -----------------------------------------------------------------------------------------------------


class Session:
    """A machine under a mix: its applications, what the kernel's cache holds, oldest first, and its lasting pages."""

    def __init__(self, machine, mix, seed):
        self.machine, self.mix, self.rng = machine, mix, np.random.default_rng(seed)
        self.kernel = machine.task(name="kernel")
        self.cache = self.kernel.kernel.kmem_cache_create("inode", OBJECT, flags=SLAB_RECLAIM_ACCOUNT)
        self.apps, self.objects = [], np.zeros(0, np.uint64)
        self.pages = self.kilobytes("MemTotal") // 4
        self.tight = max(TIGHT, BOOSTED * int(machine.read("/proc/sys/vm/min_free_kbytes")) / 4 / self.pages)

    def kilobytes(self, name):
        """A line of /proc/meminfo."""
        lines = self.machine.read("/proc/meminfo").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    def room(self, left):
        """Pages to be had until only `left` of memory is free."""
        return self.kilobytes("MemFree") // 4 - int(left * self.pages)

    def fill_once(self):
        """All memory has been used before: one task takes it, and ends."""
        task = self.machine.task(name="first")
        task.mmap(self.room(self.tight) * PAGE, flags=UNRESERVED).touch()
        task.exit()

    def end_app(self, which):
        task, frames = self.apps.pop(which)
        task.call(free_frames, frames)
        task.exit()

    def shrink_cache(self, to):
        """The oldest objects go, except those in use, which count as new from now on."""
        excess = max(len(self.objects) - to, 0)
        oldest, rest = self.objects[:excess], self.objects[excess:]
        hot = self.rng.random(excess) < HOT
        self.kernel.call(drop, self.cache.number, oldest[~hot])
        self.objects = np.concatenate([rest, oldest[hot]])

    def start_app(self, wanted, greedy):
        """An application of random size, for which others end, or (greedy) one that takes all that is free.

        `wanted` objects of the cache, and pages of the kernel, come while it runs.
        """
        lasting, passing = int(self.mix.lasting / self.mix.rounds * self.pages), int(self.mix.passing * self.pages)
        size, beside = int(self.rng.uniform(*self.mix.app) * self.pages), wanted // PER_PAGE + lasting + passing
        if greedy:
            size = max(self.room(self.tight) - beside, 1)
        while not greedy and self.apps and self.room(max(self.mix.free, self.tight)) < size + beside:
            self.end_app(self.rng.integers(len(self.apps)))
        task = self.machine.task(name="app")
        start = task.mmap(size * PAGE, flags=UNRESERVED).addr
        objects, frames = task.call(run_app, U(start), size, self.cache.number, wanted, lasting + passing)
        if not (objects.all() and frames.all()):
            raise MemoryError(f"no memory for {wanted} objects: the mix is too large for {self.machine!r}")
        frames = self.rng.permutation(frames)
        self.apps.append((task, frames[lasting:]))
        self.objects = np.concatenate([self.objects, objects])

    def run(self):
        """The mix, from first use of the memory on."""
        mix = self.mix
        self.fill_once()
        for n in range(mix.rounds):
            phase = n % mix.period / mix.period
            height = 4 * phase if phase < 0.25 else (1 - phase) / 0.75  # the walk takes a quarter of the period
            target = int((mix.floor + (mix.peak - mix.floor) * height) * self.pages) * PER_PAGE
            self.shrink_cache(target)
            self.start_app(max(target - len(self.objects), 0), greedy=(n + 1) % mix.period == 0)
        if mix.residue is not None:
            stays = self.rng.random(len(self.objects)) < mix.residue * self.pages * PER_PAGE / len(self.objects)
            self.kernel.call(drop, self.cache.number, self.objects[~stays])

    def end(self):
        """All applications end; empty slabs go back."""
        while self.apps:
            self.end_app(0)
        self.cache.shrink()

    def huge_blocks(self):
        """How many order-9 blocks the free lists have."""
        blocks, kernel = [], self.kernel.kernel
        while pfn := kernel.alloc_pages(HUGE, 9):
            blocks.append(pfn)
        for pfn in blocks:
            kernel.free_pages(pfn, 9)
        return len(blocks)


def measure(shape, mix, seed, grouping):
    """One run: (a row of the table, pageblocks before and after the applications end)"""
    with Machine(shape, kernel={"page_group_by_mobility": grouping}) as machine:
        session = Session(machine, MIXES[mix], seed)
        session.run()
        running = machine.pageblocks()
        taken = sum(n for name, n in machine.stats()["vmstat"].items() if name.startswith("pgalloc"))
        session.end()
        machine.check()  # after which nothing is under way to the free lists any more
        kernel = session.pages - session.room(0)
        row = {
            "in huge blocks": 100 * 512 * session.huge_blocks() / session.pages,
            "kernel MiB": kernel // 256,
            "used over": taken / session.pages,
        }
        return row, running, machine.pageblocks()


def show(title, running, ended):
    from rich.console import Console

    console = Console(highlight=False)
    console.rule(f"[bold]{title}", align="left")
    console.print(side_by_side({"applications run": running, "applications have ended": ended}))
    console.print()


def workers(shape):
    """How many machines at a time: two, if the host has the cores, and twice the memory over."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 if len(os.sched_getaffinity(0)) > 1 and free > 4 * shape.memory_bytes else 1


def main(machine):
    seed, table, shape = getattr(machine, "seed", None) or 0, {}, machine.topology
    runs = [(mix, grouping) for mix in MIXES for grouping in (True, False)]
    with concurrent.futures.ThreadPoolExecutor(workers(shape)) as pool:
        results = list(pool.map(lambda run: measure(shape, run[0], seed, run[1]), runs))
    for (mix, grouping), (row, running, ended) in zip(runs, results):
        name = f"{mix}, {'grouped' if grouping else 'not grouped'}"
        share = f"{row['in huge blocks']:.1f} %"
        show(f"{name}: {share} of memory in huge blocks", running, ended)
        table[name] = {
            "in huge blocks": share,
            "published": PAPERS[mix][not grouping],
            "kernel MiB": row["kernel MiB"],
            "memory taken": f"{row['used over']:.1f} times",
        }
    return table
