"""What reclaim, compaction, migration and khugepaged do to memory while others use it, under schedules (tests/schedules.py).

In each program a task changes its address space in one way, a thread of it uses memory of its own there, and a context
disturbs both. All of them know at each moment which bytes they must read.
"""

import contextlib
import random

import numpy as np
import pytest
from schedules import Exploration, Failed, Stage, explore, spoil

from numaemu import BusError, SegmentationFault
from numaemu.api.allocators import KmemCache
from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import address_of
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import MSG_DRAIN_ALL, request
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.mm.huge.khugepaged import khugepaged_do_scan, khugepaged_look
from numaemu.kernel.mm.migrate.compact_control import COMPACT_ALL, MIGRATE_SYNC, compact_control_of
from numaemu.kernel.mm.migrate.compaction import init_control, migrate_isolated, place_scanners, release_freepages
from numaemu.kernel.mm.migrate.migrate import batch_of
from numaemu.kernel.mm.migrate.migrate_scanner import isolate_migratepages_block
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.reclaim.vmscan import init_scan_control, shrink_node
from numaemu.kernel.mm.swap import swapon
from numaemu.spec.param import PAGEBLOCK_PAGES
from numaemu.uapi import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    O_CREAT,
    O_RDWR,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.skipif(JIT, reason="a compiled function cannot be held up in its middle"),
]
PAGE, HUGE = 4096, 2 << 20
THP = "/sys/kernel/mm/transparent_hugepage"
SEEDS = range(8)


@pytest.fixture
def stage():
    made = []

    def make(swap=True, **keywords):
        made.append(Stage(**{**dict(nodes=1, cpus_per_node=2, memory_per_node="4MiB"), **keywords}))
        if swap:
            swapon.swapon(made[-1].machine, "area", 64 * PAGE)
        return made[-1]

    yield make
    for machine in made:
        machine.close()


# -- who disturbs: what kernel threads of node 0 do, in their context ---------------------------------------------------------


def reclaim(stage, passes=3):
    """kswapd at its hardest: the first passes find that pages have been used."""
    cpu = cpu_t.at(stage.context())
    sc = scan_control_of(cpu)
    for _ in range(passes):
        init_scan_control(stage.machine, sc, GFP_KERNEL, 0, stage.machine.node_mask)
        sc.priority, sc.kswapd = 0, 1
        shrink_node(cpu, sc, 0)


def compact(stage, first=1, end=128):
    """kcompactd moves what it can of the first pages of the zone into its upper half."""
    cpu, zone = cpu_t.at(stage.context()), stage.zones()[0]
    cc = compact_control_of(stage.machine, cpu.id)
    init_control(cc, COMPACT_ALL, GFP_KERNEL, MIGRATE_SYNC, 0)
    cc.zone, cc.whole_zone, cc.ignore_skip_hint, cc.ignore_block_suitable, cc.cluster = zone.number, 1, 1, 1, 32
    cc.freepages = cc.nr_freepages = cc.free_isolated = cc.total_migrate_scanned = cc.total_free_scanned = 0
    place_scanners(stage.machine, cc)
    batch_of(stage.machine, cpu).nr = 0
    at = first
    while at < end:
        at = isolate_migratepages_block(cpu, cc, at, end)
        if batch_of(stage.machine, cpu).nr > 0:
            migrate_isolated(cpu, cc)
    release_freepages(cpu, cc)


def used_before(stage):
    """Let the free scanner find frames in the upper half, which have been used before and are not all free."""
    task = stage.task()
    blocks = [task.kernel.alloc_pages(GFP_KERNEL, 8) for _ in range(3)]
    for block in blocks:
        if block != PAGEBLOCK_PAGES:
            task.kernel.free_pages(block, 8)
    assert PAGEBLOCK_PAGES in blocks
    stage.drain()


# -- what is disturbed ---------------------------------------------------------------------------------------------------------


class Memory:
    """A mapping of a task, and the bytes that it holds as the task knows it: the first of each page."""

    def __init__(self, task, area, values):
        self.task, self.addresses, self.values = task, area.pages(), np.array(values, np.uint8)

    def store(self, pages, value):
        self.task.store(self.addresses[pages], np.full(len(self.addresses[pages]), value, np.uint8))
        self.values[pages] = value

    def check(self, task=None, pages=slice(None)):
        read = (task or self.task).load(self.addresses[pages], np.uint8)
        assert read.tolist() == self.values[pages].tolist()


class Part:
    """Pages of a mapping, as a mapping."""

    def __init__(self, addr, addresses):
        self.addr, self.pages = addr, lambda: addresses


def refused(function, *args):
    """The access is refused."""
    try:
        function(*args)
    except SegmentationFault:
        return
    raise AssertionError("the access is not refused")


def munmap(stage, task, memory, area):
    task.munmap(area.addr, 2 * PAGE)
    refused(task.load, [area.addr])
    memory.check(pages=slice(2, None))
    task.mmap(2 * PAGE, addr=area.addr)
    memory.values[:2] = 0
    memory.store(slice(0, 1), 77)
    memory.check()


def mprotect(stage, task, memory, area):
    task.mprotect(area.addr, 2 * PAGE, PROT_READ)
    refused(task.store, [area.addr], np.uint8(1))
    memory.check()
    task.mprotect(area.addr, 2 * PAGE, PROT_NONE)
    refused(task.load, [area.addr])
    task.mprotect(area.addr, 2 * PAGE, PROT_READ | PROT_WRITE)
    memory.store(slice(0, 2), 78)
    memory.check()


def mremap(stage, task, memory, area):
    target = area.addr - (1 << 30)
    task.mremap(area.addr, 2 * PAGE, 2 * PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, target)
    refused(task.load, [area.addr])
    memory.addresses = memory.addresses.copy()
    memory.addresses[:2] = [target, target + PAGE]
    memory.check()
    memory.store(slice(1, 3), 79)
    memory.check()


def fork(stage, task, memory, area):
    child = task.fork(cpu=0)
    copy = Memory(child, area, memory.values)
    memory.store(slice(0, 2), 80)
    copy.check()
    copy.store(slice(1, 3), 81)
    memory.check()
    copy.check()
    child.exit(0)
    memory.store(slice(2, 4), 82)
    memory.check()


def fault(stage, task, memory, area):
    new = Memory(task, task.mmap(3 * PAGE), [0] * 3)
    new.check(pages=slice(0, 2))
    new.store(slice(1, 3), 83)
    task.madvise(area.addr, 2 * PAGE, MADV_DONTNEED)
    memory.values[:2] = 0
    memory.check()
    new.check()
    memory.store(slice(0, 1), 84)
    memory.check()


def exit(stage, task, memory, area):
    Memory(stage.child, area, memory.values).check(pages=slice(1, 3))
    stage.child.exit(0)
    memory.store(slice(0, 4), 85)
    memory.check()


CHANGES = [munmap, mprotect, mremap, fork, fault, exit]


def disturbed(stage, change, disturb, done, task=None):
    """The program: one task changes four pages, its thread uses two others, somebody disturbs. `done`: what is counted of it."""
    task, counted = task or stage.task(), "pswpout" if disturb is reclaim else "pgmigrate_success"
    area, apart = task.mmap(4 * PAGE), task.mmap(2 * PAGE)
    values = [11, 12, 13, 14]
    task.store(area.pages(), np.array(values, np.uint8))
    task.store(apart.pages(), np.array([21, 22], np.uint8))
    if change is exit:
        stage.child = task.fork(cpu=0)
    thread = task.clone(cpu=1)

    def program(stage):
        memory, others = Memory(task, area, values), Memory(thread, apart, [21, 22])

        def use():
            for value in range(30, 33):
                others.check()
                others.store(slice(value % 2, value % 2 + 1), value)

        def look():
            memory.check()
            others.check()
            done.append(stage.vmstat()[counted])

        contexts = {"change": lambda: change(stage, task, memory, area), "use": use, "disturb": lambda: disturb(stage)}
        return contexts, look

    return program


@pytest.mark.parametrize("disturb", [reclaim, compact])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_an_address_space_that_is_disturbed(stage, change, disturb):
    machine, done = stage(), []
    used_before(machine)
    explore(machine, disturbed(machine, change, disturb, done), SEEDS, kthreads=False)
    assert any(done)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_an_address_space_whose_pages_move(stage, change):
    """A task of the second node moves the pages of another process there and back."""
    machine, done = stage(swap=False, nodes=2), []
    mover, task = machine.task(cpu=2), machine.task()

    def move(stage):
        for node in (1, 0):
            mover.migrate_pages(1 - node, node, pid=task.pid)

    explore(machine, disturbed(machine, change, move, done, task), range(6), kthreads=False)
    assert any(done)


# -- copy on write -------------------------------------------------------------------------------------------------------------


def test_copy_on_write_while_a_fork_and_reclaim_go_on(stage):
    """What a child reads is what its parent's thread had stored when it was forked: later stores do not reach it."""
    machine = stage(cpus_per_node=3)
    task = machine.task()
    area = task.mmap(3 * PAGE)
    task.store(area.pages(), np.uint8(1))
    thread = task.clone(cpu=1)

    def program(stage):
        def forks():
            child = task.fork(cpu=0)
            first = child.load(area.pages(), np.uint8).tolist()
            task.store(area.pages() + np.uint64(8), np.uint8(200))
            assert child.load(area.pages(), np.uint8).tolist() == first
            assert not child.load(area.pages() + np.uint64(8), np.uint8).any()
            child.store(area.pages(), np.uint8(100))
            assert child.load(area.pages(), np.uint8).tolist() == [100] * 3

        def stores():
            for value in range(2, 5):
                thread.store(area.pages(), np.uint8(value))
                assert thread.load(area.pages(), np.uint8).tolist() == [value] * 3

        def look():
            assert task.load(area.pages(), np.uint8).tolist() == [4] * 3
            assert task.load(area.pages() + np.uint64(8), np.uint8).tolist() == [200] * 3

        return {"forks": forks, "stores": stores, "reclaim": lambda: reclaim(stage)}, look

    explore(machine, program, range(15), kthreads=False)


def test_two_threads_that_write_to_the_same_shared_page_both_get_on(stage):
    """Neither copies the other's copy, which is about to become writable: they would take turns at that for ever."""
    machine = stage(swap=False)
    task = machine.task()
    area = task.mmap(PAGE)
    task.store([area.addr], np.uint8(1))
    child, thread = task.fork(cpu=0), task.clone(cpu=1)
    for other in (thread, task):  # so both CPUs have the page in their TLBs, and free pages at hand
        other.mmap(8 * PAGE).touch().munmap()
        other.load([area.addr])

    def program(stage):
        def look():
            assert task.load(area.addr + np.arange(3), np.uint8).tolist() == [1, 2, 3]
            assert child.load(area.addr + np.arange(3), np.uint8).tolist() == [1, 0, 0]

        contexts = {
            "first": lambda: task.store([area.addr + 1], np.uint8(2)),
            "second": lambda: thread.store([area.addr + 2], np.uint8(3)),
        }
        return contexts, look

    explore(machine, program, range(20))


# -- shootdowns ----------------------------------------------------------------------------------------------------------------


def test_shootdowns_that_cross(stage):
    """Three threads protect pages of their own at once, each in the TLBs of all: everybody waits for everybody's answer."""
    machine = stage(cpus_per_node=3)
    task = machine.task()
    area = task.mmap(3 * PAGE)
    task.store(area.pages(), np.array([1, 2, 3], np.uint8))
    threads = [task, task.clone(cpu=1), task.clone(cpu=2)]
    for thread in threads:
        thread.load(area.pages())

    def program(stage):
        protected = [False] * 3

        def protect(me):
            for prot in (PROT_NONE, PROT_READ):
                protected[me] = False
                threads[me].mprotect(area.addr + me * PAGE, PAGE, prot)
                protected[me] = prot == PROT_NONE
                for page in range(3):
                    was = protected[page]
                    try:
                        value = threads[me].load([area.addr + page * PAGE], np.uint8)[0]
                    except SegmentationFault:
                        continue
                    assert value == page + 1
                    assert not (was and protected[page]), f"page {page} could be read while it was protected"

        return {f"thread {me}": lambda me=me: protect(me) for me in range(3)}, None

    explore(machine, program, range(20))


# -- page allocator and slabs --------------------------------------------------------------------------------------------------


def test_lists_of_cpus_while_all_are_drained(stage):
    """Two CPUs allocate and free pages, a third asks everybody for theirs: no page is there twice, none is lost."""
    machine = stage(swap=False, cpus_per_node=3)
    tasks = [machine.task(cpu=cpu) for cpu in range(3)]
    before = machine.zones()[0]

    def program(stage):
        held = [], []

        def allocate(me):
            for order in (0, 2, 0, 0, 1):
                pfn = tasks[me].kernel.alloc_pages(GFP_KERNEL, order)
                pages = set(range(pfn, pfn + (1 << order)))
                assert not any(pages & other for lists in held for _, _, other in lists), "a page was given out twice"
                held[me].append((pfn, order, pages))
                if len(held[me]) == 3:
                    pfn, order, _ = held[me].pop(0)
                    tasks[me].kernel.free_pages(pfn, order)

        def drain():
            cpu = stage.cpu(2)
            for _ in range(3):
                request(cpu, 0, MSG_DRAIN_ALL, -1, 0, 0)

        return {"cpu 0": lambda: allocate(0), "cpu 1": lambda: allocate(1), "drain": drain}, None

    explore(machine, program, range(20))
    assert before.free_pages > 0


def test_slab_objects_freed_where_they_were_not_allocated(stage):
    """Two CPUs free each other's objects, of the slabs that the other one allocates from, while a third shrinks the cache."""
    machine = stage(swap=False, cpus_per_node=3)
    tasks = [machine.task(cpu=cpu) for cpu in range(3)]
    cache = tasks[0].kernel.kmem_cache_create("things", 1024)

    def program(stage):
        made = [], []
        caches = [KmemCache(task, cache.number, "things") for task in tasks]

        def work(me):
            for step in range(6):
                address = caches[me].alloc(GFP_KERNEL)
                assert not any(address in there for there in made), "an object was given out twice"
                made[me].append(address)
                if step % 2 and made[1 - me]:
                    caches[me].free(made[1 - me].pop())

        def shrink():
            for _ in range(2):
                caches[2].shrink()

        return {"cpu 0": lambda: work(0), "cpu 1": lambda: work(1), "shrink": shrink}, None

    explore(machine, program, range(20))


# -- khugepaged, truncate ------------------------------------------------------------------------------------------------------


def test_khugepaged_while_a_thread_faults(stage):
    """khugepaged makes one huge page of a few small ones, while threads use them, and touch others beside."""
    machine, collapsed = stage(swap=False, memory_per_node="12MiB"), []
    task = machine.task()
    area = task.mmap(2 * HUGE)
    start = -(-area.addr // HUGE) * HUGE
    pages = start + np.arange(6, dtype=np.uint64) * np.uint64(PAGE)
    task.madvise(start, HUGE, MADV_NOHUGEPAGE)
    task.store(pages[:4], np.arange(1, 5, dtype=np.uint8))
    machine.write(f"{THP}/enabled", "always")
    thread = task.clone(cpu=1)

    def program(stage):
        def collapse():
            task.madvise(start, HUGE, MADV_HUGEPAGE)
            collapsed.append(True)
            with contextlib.suppress(OSError):
                task.madvise(start, HUGE, MADV_COLLAPSE)

        def use():
            for value in (10, 20):
                thread.store(pages[2:], np.arange(value, value + 4, dtype=np.uint8))
                assert thread.load(pages, np.uint8).tolist() == [1, 2, *range(value, value + 4)]

        def look():
            assert task.load(pages, np.uint8).tolist() == [1, 2, 20, 21, 22, 23]
            collapsed.append(stage.vmstat()["thp_collapse_alloc"])

        return {"khugepaged": collapse, "use": use}, look

    explore(machine, program, range(10), audit=False)
    assert any(collapsed)


def scan(stage):
    """khugepaged looks at every address space, in node 0's context."""
    khugepaged_do_scan(cpu_t.at(stage.context()), 1 << 16)


def looked_at(machine, change, collapsed):
    """(task, program): a task changes the first pages of what khugepaged makes one huge page of, its thread uses two others there."""
    task = machine.task()
    around = task.mmap(2 * HUGE)
    start = -(-around.addr // HUGE) * HUGE
    pages = start + np.arange(6, dtype=np.uint64) * np.uint64(PAGE)
    task.madvise(start, HUGE, MADV_NOHUGEPAGE)
    task.store(pages, np.array([11, 12, 13, 14, 21, 22], np.uint8))
    machine.write(f"{THP}/khugepaged/max_ptes_none", "0")  # khugepaged is woken, and is not to find anything yet
    machine.write(f"{THP}/enabled", "always")
    task.madvise(start, HUGE, MADV_HUGEPAGE)
    machine.write(f"{THP}/khugepaged/max_ptes_none", "511")
    area, apart, machine.start = Part(start, pages[:4]), Part(start + 4 * PAGE, pages[4:]), start
    if change is exit:
        machine.child = task.fork(cpu=0)
    thread = task.clone(cpu=1)

    def program(stage):
        memory, others = Memory(task, area, [11, 12, 13, 14]), Memory(thread, apart, [21, 22])

        def use():
            for value in (30, 31):
                others.check()
                others.store(slice(value % 2, value % 2 + 1), value)

        def look():
            memory.check()
            others.check()
            collapsed.append(int(stage.machine.khugepaged_pages_collapsed))

        contexts = {"khugepaged": lambda: scan(stage), "change": lambda: change(stage, task, memory, area), "use": use}
        return contexts, look

    return task, program


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_an_address_space_that_khugepaged_looks_at(stage, change):
    machine, collapsed = stage(swap=False, memory_per_node="16MiB"), []
    explore(machine, looked_at(machine, change, collapsed)[1], range(4), kthreads=False)
    assert any(collapsed)


ORDERS = 8  # seeds of schedules; the first of them show the fault


def cut_off(stage, task, memory, area):
    task.munmap(area.addr, 2 * PAGE)


def unmapped_between(machine):
    """munmap against khugepaged's scan; others may run where the lock of the address space is taken and given back."""
    task, program = looked_at(machine, cut_off, [])
    lock = int(address_of(machine.mm(task), "mmap_lock"))

    def without_use(stage):
        contexts, _ = program(stage)
        del contexts["use"]
        return contexts, lambda: refused(task.load, [machine.start])

    return Exploration(machine, without_use, kthreads=False, audit=False, visible=[lock])


def test_khugepaged_looks_again_when_it_has_the_lock(stage):
    unmapped_between(stage(swap=False, memory_per_node="16MiB")).seeds(range(ORDERS))


def test_a_missing_second_look_of_khugepaged_is_found(stage, monkeypatch):
    spoil(monkeypatch, khugepaged_look, ("if next_suitable(cpu, mm_number, at) == at:", "if True:"))
    with pytest.raises(Failed):
        unmapped_between(stage(swap=False, memory_per_node="16MiB")).seeds(range(ORDERS))


@pytest.mark.parametrize("path", ["/mnt/f", "/dev/shm/f"])
@pytest.mark.parametrize("flags", [MAP_SHARED, MAP_PRIVATE])
def test_truncate_while_others_fault(stage, path, flags):
    """After ftruncate has returned nobody has a page behind the end of the file, also none of his own; before it all is there."""
    machine = stage(swap=False)
    owner, task = machine.task(), machine.task(cpu=1)
    if path == "/mnt/f":
        machine.create_file(path, b"\7" * (3 * PAGE))
    file = owner.open(path, O_RDWR | O_CREAT)
    file.write(b"\7" * (3 * PAGE), 0)
    area = task.mmap(3 * PAGE, flags=flags, file=task.open(path, O_RDWR))

    def program(stage):
        shorter = []

        def truncate():
            file.truncate(PAGE)
            shorter.append(True)

        def use():
            for page in (0, 2, 1, 2):
                was = bool(shorter)
                try:
                    task.store([area.addr + page * PAGE + 8], np.uint8(page))
                    value = task.load([area.addr + page * PAGE], np.uint8)[0]
                except BusError:
                    assert page > 0
                    continue
                assert page == 0 or not was, f"page {page} is behind the end"
                assert value == 7

        def look():
            assert task.load([area.addr, area.addr + 8], np.uint8).tolist() == [7, 0]
            for page in (1, 2):
                with pytest.raises(BusError):
                    task.load([area.addr + page * PAGE])

        return {"truncate": truncate, "use": use}, look

    explore(machine, program, range(15))


# -- long programs -------------------------------------------------------------------------------------------------------------


class Walker:
    """A process that does what a seed says with eight pages, and knows what they hold: -1 where nothing is mapped."""

    def __init__(self, task, area, seed):
        self.task, self.area, self.random, self.cpu = task, area, random.Random(seed), task._site.where(task._number)[0]
        self.pages, self.values = area.pages(), [0] * len(area.pages())

    def some(self):
        first = self.random.randrange(len(self.pages))
        return range(first, self.random.randint(first + 1, len(self.pages)))

    def step(self, number):
        self.random.choice(
            [self.store, self.store, self.load, self.load, self.forget, self.protect, self.remap, self.fork]
        )(1 + number % 255)

    def store(self, value):
        pages = self.some()
        self.task.store(self.pages[pages.start : pages.stop], np.uint8(value))
        for page in pages:
            self.values[page] = value

    def load(self, _value, task=None):
        pages = self.some()
        read = (task or self.task).load(self.pages[pages.start : pages.stop], np.uint8).tolist()
        assert read == self.values[pages.start : pages.stop]

    def forget(self, _value):
        pages = self.some()
        self.task.madvise(int(self.pages[pages.start]), len(pages) * PAGE, MADV_DONTNEED)
        for page in pages:
            self.values[page] = 0

    def protect(self, value):
        pages = self.some()
        start, length = int(self.pages[pages.start]), len(pages) * PAGE
        self.task.mprotect(start, length, PROT_READ)
        refused(self.task.store, [start], np.uint8(value))
        self.task.mprotect(start, length, PROT_READ | PROT_WRITE)

    def remap(self, _value):
        pages = self.some()
        start, length = int(self.pages[pages.start]), len(pages) * PAGE
        self.task.munmap(start, length)
        refused(self.task.load, [start])
        self.task.mmap(length, addr=start)
        for page in pages:
            self.values[page] = 0

    def fork(self, value):
        child = self.task.fork(cpu=self.cpu)
        self.load(value, child)
        child.exit(0)


def long_program(stage, operations):
    """Two processes on two CPUs, half of the operations each, while kswapd goes over their pages again and again."""
    tasks = [stage.task(cpu=cpu) for cpu in range(2)]
    areas = [task.mmap(8 * PAGE) for task in tasks]

    def program(stage):
        walkers = [Walker(task, area, seed) for seed, (task, area) in enumerate(zip(tasks, areas))]

        def walk(walker):
            for number in range(operations // 2):
                walker.step(number)

        def disturb():
            for _ in range(4):
                reclaim(stage)
                for _ in range(20):
                    stage.others_run()

        contexts = {f"cpu {n}": lambda walker=walker: walk(walker) for n, walker in enumerate(walkers)}
        return {**contexts, "reclaim": disturb}, lambda: [walker.load(0) for walker in walkers]

    return program


def test_two_hundred_operations_of_two_processes(stage):
    machine = stage()
    explore(machine, long_program(machine, 200), range(2), kthreads=False)
