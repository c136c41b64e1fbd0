"""Address spaces against dictionaries of words: faults, fork and copy on write, shared memory, zapping, migration."""

import errno

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from loopback import SMALL_TLB, Loopback, if_there_is_room

from numaemu import OutOfMemory, SegmentationFault
from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import u64
from numaemu.kernel.arch.pgtable import install_table
from numaemu.kernel.core.xarray import new_tree_page
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.uapi import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)

BASE, PAGES, RW = 0x1000_0000, 8, PROT_READ | PROT_WRITE
UNRESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE  # more than there is


class Process:
    """A task and its twin: {page: cell}; a cell is [word, shared]. Forking copies private cells and shares the others."""

    def __init__(self, task, cells=None):
        self.task, self.cells = task, {} if cells is None else cells

    def fork(self, task):
        return Process(task, {page: cell if cell[1] else list(cell) for page, cell in self.cells.items()})


class MemoryMachine(RuleBasedStateMachine):
    """Up to six processes on two CPUs do what they like with eight pages; each word read is the twin's, each frame
    is accounted for after every step."""

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=2, cpus_per_node=1, memory_per_node="8MiB", **SMALL_TLB)
        self.processes = [Process(self.loop.task())]

    def pick(self, who):
        return self.processes[who % len(self.processes)]

    who, page, cpus = st.integers(0, 5), st.integers(0, PAGES - 1), st.integers(0, 1)

    @rule(who=who, page=page, n=st.integers(1, PAGES), shared=st.booleans())
    def mmap(self, who, page, n, shared):
        process, n = self.pick(who), min(n, PAGES - page)
        kind = MAP_SHARED if shared else MAP_PRIVATE
        process.task.mmap(n << 12, RW, kind | MAP_ANONYMOUS | 0x10, addr=BASE + (page << 12))
        process.cells.update({p: [0, shared] for p in range(page, page + n)})

    @rule(who=who, page=page, n=st.integers(1, PAGES))
    def munmap(self, who, page, n):
        process, n = self.pick(who), min(n, PAGES - page)
        process.task.munmap(BASE + (page << 12), n << 12)
        for p in range(page, page + n):
            process.cells.pop(p, None)

    @rule(who=who, page=page, offset=st.sampled_from([0, 8, 4088]), value=st.integers(1, 1 << 60), cpu=cpus)
    def store(self, who, page, offset, value, cpu):
        process = self.pick(who)
        process.task.sched_setaffinity(cpu)
        where = [BASE + (page << 12), BASE + (page << 12) + 4088]
        if page in process.cells:
            process.task.store(where, np.uint64(value))
            process.cells[page][0] = value
        else:
            with pytest.raises(SegmentationFault):
                process.task.store(where, np.uint64(value))

    @rule(who=who, page=page, cpu=cpus)
    def load(self, who, page, cpu):
        process = self.pick(who)
        process.task.sched_setaffinity(cpu)
        if page in process.cells:
            values = process.task.load([BASE + (page << 12), BASE + (page << 12) + 4088])
            assert values.tolist() == [process.cells[page][0]] * 2

    @rule(who=who, page=page, n=st.integers(1, PAGES))
    def forget(self, who, page, n):
        """MADV_DONTNEED: private pages are zeros again, shared ones keep what is in them."""
        process, n = self.pick(who), min(n, PAGES - page)
        try:
            process.task.madvise(BASE + (page << 12), n << 12, MADV_DONTNEED)
        except OSError as error:
            if error.errno == errno.EINVAL:  # locked: what lies before it was forgotten
                process.task.munlockall()
                return self.forget(who, page, n)
            assert not all(p in process.cells for p in range(page, page + n))
        for p in range(page, page + n):
            if p in process.cells and not process.cells[p][1]:
                process.cells[p][0] = 0

    @rule(who=who, page=page, to=page, n=st.integers(1, 3), keep=st.booleans())
    def mremap(self, who, page, to, n, keep):
        """Pages go to another place. What was there is unmapped even if the range turns out to be no single mapping."""
        process, n = self.pick(who), min(n, PAGES - max(page, to))
        if abs(page - to) < n:
            return
        cells, flags = process.cells, MREMAP_MAYMOVE | MREMAP_FIXED | (MREMAP_DONTUNMAP if keep else 0)
        try:
            process.task.mremap(BASE + (page << 12), n << 12, n << 12, flags, BASE + (to << 12))
            moved = True
        except OSError:
            moved = False
            assert page not in cells or n > 1
        taken = page in cells
        for i in range(n):
            if taken:
                cells.pop(to + i, None)
            if moved:
                cells[to + i] = cells[page + i]
                if not keep:
                    del cells[page + i]
                elif not cells[page + i][1]:
                    cells[page + i] = [0, False]

    @rule(who=who, page=page, n=st.integers(1, PAGES), lock=st.booleans())
    def mlock(self, who, page, n, lock):
        process, n = self.pick(who), min(n, PAGES - page)
        try:
            (process.task.mlock if lock else process.task.munlock)(BASE + (page << 12), n << 12)
            assert all(p in process.cells for p in range(page, page + n))
        except OSError:
            assert not all(p in process.cells for p in range(page, page + n))

    @precondition(lambda self: len(self.processes) < 6)
    @rule(who=who, cpu=cpus, thread=st.booleans())
    def fork(self, who, cpu, thread):
        process = self.pick(who)
        if thread:
            self.processes.append(Process(process.task.clone(cpu=cpu), process.cells))
        else:
            self.processes.append(process.fork(process.task.fork(cpu=cpu)))

    @precondition(lambda self: len(self.processes) > 1)
    @rule(who=who)
    def exit(self, who):
        process = self.pick(who)
        process.task.exit()
        self.processes.remove(process)

    @rule(who=who, page=page, node=st.integers(0, 1), all_of_them=st.booleans())
    def move(self, who, page, node, all_of_them):
        process = self.pick(who)
        with if_there_is_room():
            process.task.move_pages([BASE + (page << 12)], node, flags=4 if all_of_them else 2)

    @rule(who=who, node=st.integers(0, 1))
    def migrate(self, who, node):
        with if_there_is_room():
            self.pick(who).task.migrate_pages([1 - node], [node])

    @rule(who=who, page=page, write=st.booleans())
    def protect(self, who, page, write):
        """Take write permission away, look that it is gone, give it back."""
        process = self.pick(who)
        if page in process.cells:
            process.task.mprotect(BASE + (page << 12), 4096, PROT_READ)
            if write:
                with pytest.raises(SegmentationFault, match="does not allow it"):
                    process.task.store([BASE + (page << 12)], np.uint64(99))
            process.task.mprotect(BASE + (page << 12), 4096, RW)

    @invariant()
    def every_frame_is_accounted_for(self):
        self.loop.audit()

    def teardown(self):
        for process in self.processes:
            for page in process.cells:
                assert process.task.load([BASE + (page << 12)]).tolist() == [process.cells[page][0]]
            process.task.exit()
        self.loop.drain()
        used = self.loop.audit()
        assert sum(zone["used"] + zone["tables"] + zone["pcp"] for zone in used.values()) == 1  # the page of zeros
        assert {
            name: self.loop.vmstat()[name]
            for name in (
                "nr_anon_pages",
                "nr_mapped",
                "nr_shmem",
                "nr_page_table_pages",
                "nr_slab_unreclaimable",
                "nr_mlock",
            )
        } == dict.fromkeys(
            ("nr_anon_pages", "nr_mapped", "nr_shmem", "nr_page_table_pages", "nr_slab_unreclaimable", "nr_mlock"), 0
        )
        assert self.loop.machine.vm_committed_as == 0
        self.loop.close()


MemoryMachine.TestCase.settings = settings(max_examples=40 if JIT else 4, stateful_step_count=40)
TestMemory = pytest.mark.interpreted(MemoryMachine.TestCase)


@pytest.mark.interpreted
def test_a_first_read_shares_the_page_of_zeros(two_nodes):
    task = two_nodes.task()
    area = task.mmap("16KiB")
    area.touch(write=False)
    assert two_nodes.mm(task).rss[1] == 0
    assert {two_nodes.pfn(task, page) for page in area.pages().tolist()} == {two_nodes.machine.zero_pfn}
    area.touch()
    assert two_nodes.mm(task).rss[1] == 4
    two_nodes.audit()


@pytest.mark.interpreted
def test_the_last_sharer_uses_the_page_again(two_nodes):
    """fork, the child writes (copy), the child ends, the parent writes: the same frame as at first."""
    task = two_nodes.task()
    area = task.mmap("4KiB").touch()
    frame = two_nodes.pfn(task, area.addr)
    child = task.fork()
    child.write(area.addr, b"child")
    assert two_nodes.pfn(child, area.addr) != frame
    child.exit()
    before = two_nodes.vmstat()["pgreuse"]
    task.write(area.addr, b"parent")
    assert two_nodes.pfn(task, area.addr) == frame
    assert two_nodes.vmstat()["pgreuse"] == before + 1


@pytest.mark.interpreted
def test_out_of_memory_ends_only_the_task(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB")
    bystander, task = loop.task(), loop.task(name="greedy")
    bystander.write(bystander.mmap("4KiB", addr=BASE).addr, b"here")
    with pytest.raises(OutOfMemory, match="greedy"):
        task.mmap("16MiB", flags=UNRESERVED).touch()
    assert bystander.read(BASE, 4) == b"here"
    loop.drain()
    loop.audit()
    bystander.mmap("1MiB").touch()


@pytest.mark.interpreted
def test_fork_without_memory_fails_and_leaves_nothing(loopback):
    """The child's tables do not fit any more: ENOMEM, and everything it had is given back."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB")
    task = loop.task()
    area = task.mmap("64MiB", flags=UNRESERVED)
    task.store(area.pages()[::512], np.uint64(7))  # 32 leaf tables
    loop.machine.on_oom = 0  # no OOM killer: what a fork meets whose task has just been chosen by it
    held = list(iter(lambda: task.kernel.alloc_pages(GFP_KERNEL), None))
    for pfn in held[:10]:
        task.kernel.free_pages(pfn)
    before = loop.vmstat()["nr_page_table_pages"]
    with pytest.raises(OSError, match="Cannot allocate"):
        task.fork()
    assert loop.vmstat()["nr_page_table_pages"] == before
    assert set(task.load(area.pages()[::512]).tolist()) == {7}
    loop.drain()
    loop.audit()


@pytest.mark.interpreted
def test_shared_memory_lives_as_long_as_a_mapping(two_nodes):
    loop, task = two_nodes, two_nodes.task()
    area = task.mmap("16KiB", flags=MAP_SHARED | MAP_ANONYMOUS)
    child = task.fork(cpu=1)
    child.write(area.addr, b"from the child")
    task.madvise(area.addr, 4096, MADV_DONTNEED)
    assert task.read(area.addr, 14) == b"from the child"
    child.exit()
    assert loop.vmstat()["nr_shmem"] == 1
    area.munmap()
    assert loop.vmstat()["nr_shmem"] == 0
    loop.audit()


@pytest.mark.interpreted
def test_a_table_that_came_too_late_is_free_again(two_nodes):
    """Two CPUs made the same page table (and the same table of a shared object); the slower one's page goes back."""
    loop, task = two_nodes, two_nodes.task()
    task.mmap("4KiB", addr=BASE).touch()
    task.mmap("4KiB", flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    cpu, mm = loop.cpu(), loop.mm(task)
    pgd = loop.machine.memory + mm.pgd
    pfn = task.kernel.alloc_pages(GFP_KERNEL)
    standing = install_table(cpu, mm, pgd, pfn)
    assert standing == u64.array(pgd)[0] and standing >> np.uint64(12) != pfn
    loop.audit()
    assert new_tree_page(cpu, pgd, 0) == standing
    loop.audit()
