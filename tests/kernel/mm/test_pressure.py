"""Everything at once while memory is short: one process against dictionaries, then all CPUs of a real machine."""

import importlib
import pathlib
import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from loopback import SMALL_TLB, Loopback, if_there_is_room

from numaemu import GFP_KERNEL, GFP_NOWAIT, MADV_COLD, MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT
from numaemu.compiler.build import JIT
from numaemu.kernel.mm.swap import swapon
from numaemu.uapi import MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE

U = np.uint64
BASE, PAGES, RW = 0x1000_0000, 1500, PROT_READ | PROT_WRITE
FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
FITS = 1000  # pages of all processes that two nodes of 4 MiB hold without swap, with room to spare


def addresses(page, n):
    return U(BASE) + np.arange(page, page + n, dtype=U) * U(4096)


class Process:
    """A task and what each of its pages holds: `free` pages have been given up (MADV_FREE) and may be zeros instead."""

    def __init__(self, task, mapped=None, values=None, free=None):
        self.task = task
        self.mapped = np.zeros(PAGES, bool) if mapped is None else mapped.copy()
        self.values = np.zeros(PAGES, U) if values is None else values.copy()
        self.free = np.zeros(PAGES, bool) if free is None else free.copy()

    def fork(self, task):
        return Process(task, self.mapped, self.values, self.free)

    def runs(self, page, n):
        """The mapped pages of a range."""
        return page + np.flatnonzero(self.mapped[page : page + n])

    def check(self, pages):
        """Look at the first and a middle word of some mapped pages."""
        where = U(BASE) + pages.astype(U) * U(4096)
        for offset in (0, 2048):
            found, expected = self.task.load(where + U(offset)), self.values[pages]
            gone = self.free[pages] & (found == 0)
            wrong = np.flatnonzero((found != expected) & ~gone)
            assert not len(wrong), f"page {pages[wrong[0]]}: {found[wrong[0]]}, not {expected[wrong[0]]}"
            self.values[pages[gone]], self.free[pages[gone]] = 0, False


class PressureMachine(RuleBasedStateMachine):
    """Up to four processes on two nodes of 4 MiB hold up to 24 MiB, with a swap area that comes and goes."""

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=2, cpus_per_node=1, memory_per_node="4MiB", **SMALL_TLB)
        self.processes, self.kernel_pages, self.objects, self.swap, self.counter = (
            [Process(self.loop.task())],
            [],
            [],
            False,
            0,
        )

    @initialize(kind=st.sampled_from(["disk", "zram"]), zswap=st.booleans())
    def begin(self, kind, zswap):
        self.kind, self.loop.machine.zswap_enabled = kind, int(zswap)
        self.swap_on()
        self.mmap(0, 0, PAGES)
        self.store(0, 0, PAGES, 0)
        self.fork(0, 1)

    who, page, cpus = st.integers(0, 3), st.integers(0, PAGES - 1) | st.sampled_from([0, PAGES // 3]), st.integers(0, 1)
    n, many = st.sampled_from([1, 3, 40, 300]), st.sampled_from([10, 500, PAGES])

    def pick(self, who, cpu=None):
        process = self.processes[who % len(self.processes)]
        if cpu is not None:
            process.task.sched_setaffinity(cpu)
        return process

    def held(self):
        return sum(int(np.count_nonzero(process.values)) for process in self.processes)

    # -- user memory

    @rule(who=who, page=page, n=n)
    def mmap(self, who, page, n):
        process, n = self.pick(who), min(n, PAGES - page)
        process.task.mmap(n << 12, RW, FIXED, addr=BASE + (page << 12))
        process.mapped[page : page + n], process.values[page : page + n], process.free[page : page + n] = True, 0, False

    @rule(who=who, page=page, n=n)
    def munmap(self, who, page, n):
        process, n = self.pick(who), min(n, PAGES - page)
        process.task.munmap(BASE + (page << 12), n << 12)
        process.mapped[page : page + n], process.values[page : page + n], process.free[page : page + n] = (
            False,
            0,
            False,
        )

    @rule(who=who, page=page, n=many, cpu=cpus)
    def store(self, who, page, n, cpu):
        """Touch pages; the larger ranges are more than fits beside what the others have."""
        process = self.pick(who, cpu)
        pages = process.runs(page, n)
        if not self.swap:
            pages = pages[: max(FITS - self.held(), 0)]
        self.counter += 1
        values = U(self.counter << 20) + pages.astype(U) + U(1)
        for offset in (0, 2048):
            process.task.store(U(BASE) + pages.astype(U) * U(4096) + U(offset), values)
        process.values[pages], process.free[pages] = values, False

    @rule(who=who, page=page, n=many, cpu=cpus)
    def load(self, who, page, n, cpu):
        process = self.pick(who, cpu)
        process.check(process.runs(page, n))

    @rule(who=who, page=page, n=n | many, advice=st.sampled_from([MADV_DONTNEED, MADV_PAGEOUT, MADV_FREE, MADV_COLD]))
    def madvise(self, who, page, n, advice):
        process, n = self.pick(who), min(n, PAGES - page)
        try:
            process.task.madvise(BASE + (page << 12), n << 12, advice)
        except OSError:
            assert not process.mapped[page : page + n].all()
        if advice == MADV_DONTNEED:
            process.values[page : page + n], process.free[page : page + n] = 0, False
        if advice == MADV_FREE:
            process.free[page : page + n] |= process.mapped[page : page + n]

    @precondition(lambda self: len(self.processes) < 4)
    @rule(who=who, cpu=cpus)
    def fork(self, who, cpu):
        process = self.pick(who)
        if self.swap or self.held() + np.count_nonzero(process.values) < FITS:
            self.processes.append(process.fork(process.task.fork(cpu=cpu)))

    @precondition(lambda self: len(self.processes) > 1)
    @rule(who=who)
    def exit(self, who):
        process = self.pick(who)
        process.task.exit()
        self.processes.remove(process)

    @rule(who=who, page=page, n=n, node=cpus)
    def move(self, who, page, n, node):
        process, n = self.pick(who), min(n, PAGES - page)
        with if_there_is_room():
            process.task.move_pages(addresses(page, min(n, 40)), node, flags=2)

    @rule(who=who, node=cpus)
    def migrate(self, who, node):
        with if_there_is_room():
            self.pick(who).task.migrate_pages([1 - node], [node])

    # -- kernel memory

    @precondition(lambda self: len(self.kernel_pages) < 8)
    @rule(order=st.integers(0, 3), cpu=cpus, waits=st.booleans())
    def alloc_pages(self, order, cpu, waits):
        pfn = self.pick(0, cpu).task.kernel.alloc_pages(GFP_KERNEL if waits else GFP_NOWAIT, order)
        assert pfn is not None or not waits
        if pfn is not None:
            self.kernel_pages.append((pfn, order))

    @precondition(lambda self: self.kernel_pages)
    @rule(which=st.integers(0, 7))
    def free_pages(self, which):
        pfn, order = self.kernel_pages.pop(which % len(self.kernel_pages))
        self.pick(0).task.kernel.free_pages(pfn, order)

    @precondition(lambda self: len(self.objects) < 60)
    @rule(size=st.sampled_from([16, 200, 1024, 6000]), n=st.integers(1, 30), cpu=cpus)
    def kmalloc(self, size, n, cpu):
        kernel = self.pick(0, cpu).task.kernel
        self.objects += [kernel.kmalloc(size, GFP_KERNEL) for _ in range(n)]

    @precondition(lambda self: self.objects)
    @rule(n=st.integers(1, 30), cpu=cpus)
    def kfree(self, n, cpu):
        for _ in range(min(n, len(self.objects))):
            self.pick(0, cpu).task.kernel.kfree(self.objects.pop(self.counter % len(self.objects)))

    # -- the machine

    @rule()
    def compact(self):
        self.loop.write("/proc/sys/vm/compact_memory", "1")

    @precondition(lambda self: not self.swap)
    @rule()
    def swap_on(self):
        swapon.swapon(self.loop.machine, "area", 40 << 20, kind=self.kind)
        self.swap = True

    @precondition(lambda self: self.swap and self.held() < FITS)
    @rule(cpu=cpus)
    def swap_off(self, cpu):
        kind = swapon.swapoff_begin(self.loop.machine, "area")
        swapon.try_to_unuse(int(self.loop.cpu(cpu).address), kind)
        swapon.swapoff_end(self.loop.machine, kind)
        self.swap = False

    @invariant()
    def every_frame_is_accounted_for(self):
        self.loop.audit()

    def teardown(self):
        for pfn, order in self.kernel_pages:
            self.pick(0).task.kernel.free_pages(pfn, order)
        for address in self.objects:
            self.pick(0).task.kernel.kfree(address)
        for process in self.processes:
            process.check(process.runs(0, PAGES))
            process.task.exit()
        self.loop.drain()
        self.loop.audit()
        counted = self.loop.vmstat()
        assert counted["oom_kill"] == 0
        assert {
            name: counted[name] for name in ("nr_anon_pages", "nr_swapcached", "nr_page_table_pages")
        } == dict.fromkeys(("nr_anon_pages", "nr_swapcached", "nr_page_table_pages"), 0)
        assert [info.inuse_pages for info in swapon.areas(self.loop.machine)] == [0] * self.swap
        self.loop.close()


PressureMachine.TestCase.settings = settings(max_examples=25 if JIT else 1, stateful_step_count=40 if JIT else 20)
TestPressure = pytest.mark.interpreted(PressureMachine.TestCase)


# -- a real machine ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    """The folder of the stress script is where its module is found, by CPUs too."""
    folder = str(pathlib.Path(__file__).parents[3] / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.mark.concurrent
def test_all_cpus_at_twice_the_memory():
    """Eight CPUs on four nodes, a disk and zram, fork, munmap, madvise, compaction: not one wrong word, no frame lost."""
    swap_stress = importlib.import_module("swap_stress")
    with swap_stress.stressed_machine("8MiB") as machine:
        for seed in range(2):
            assert swap_stress.one_round(machine, seed, 8) > 0
        counted = machine.stats()["vmstat"]
        assert counted["pswpout"] > 0 and counted["pswpin"] > 0 and counted["pgmigrate_success"] > 0
        assert counted["oom_kill"] == 0
        for name in ("/dev/zram0", "/dev/vdb"):
            machine.swapoff(name)
        machine.check()


@pytest.mark.concurrent
def test_forks_and_mremap_while_everything_moves():
    """Fork storms, mremap under other threads' hands, huge pages, compaction and swap: not one wrong word, no frame lost."""
    mm_stress = importlib.import_module("mm_stress")
    with mm_stress.stressed_machine() as machine:
        for seed in range(6):
            assert mm_stress.one_round(machine, seed) > 0
        counted = machine.stats()["vmstat"]
        assert counted["pswpin"] > 0 and counted["thp_fault_alloc"] > 0 and counted["nr_tlb_remote_flush"] > 0
        assert counted["oom_kill"] == 0
