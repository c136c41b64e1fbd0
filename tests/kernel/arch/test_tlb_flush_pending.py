"""Entries that go now and are flushed later: what may not return, or reach the disk, while a CPU can still use them.

The CPU that does so stands between two accesses; the other one's steps are made here, one by one.
"""

import numpy as np
import pytest

from numaemu import SegmentationFault
from numaemu.api.vectors import LOAD_MANY, STORE_MANY
from numaemu.compiler.build import JIT
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.tlb import UBC_MMS, set_tlb_ubc_flush_pending, try_to_unmap_flush
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.include.mm_types import PG_dirty, task_t
from numaemu.kernel.mm.cache import page_writeback
from numaemu.kernel.mm.fault import mmu_gather
from numaemu.kernel.mm.reclaim.pageout import scan_control_of, unmap_folio
from numaemu.kernel.mm.swap import swapon
from numaemu.kernel.syscalls import common as syscalls
from numaemu.uapi import (
    MADV_DONTNEED,
    MADV_FREE,
    MAP_ANONYMOUS,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    O_CREAT,
    O_RDWR,
    PROT_NONE,
    PROT_READ,
)

pytestmark = pytest.mark.interpreted
inserted = pytest.mark.skipif(JIT, reason="another CPU's step is put into compiled code")
LARGE_TLB = dict(l1={"entries": 64, "ways": 4}, l2={"entries": 128, "ways": 4})
PAGE = 4096


@pytest.fixture
def loop(loopback):
    machine = loopback(nodes=1, cpus_per_node=3, memory_per_node="32MiB", **LARGE_TLB)
    swapon.swapon(machine.machine, "area", 4 << 20)
    return machine


class Insider:
    """A thread on CPU 1 in the middle of its accesses, with all of `area` in its TLB."""

    def __init__(self, loop, task, area, store):
        self.loop, self.thread, self.cpu, self.pages = loop, task.clone(cpu=1), loop.cpu(1), area.pages()
        syscalls.begin_access(int(self.cpu.address), self.thread._number)
        self.store(7) if store else self.load()

    def load(self):
        values = np.zeros(len(self.pages), np.uint64)
        LOAD_MANY[8](int(self.cpu.address), self.pages.ctypes.data, values.ctypes.data, len(values))
        return values.tolist()

    def store(self, value):
        values = np.full(1, value, np.uint64)
        STORE_MANY[8](int(self.cpu.address), self.pages.ctypes.data, values.ctypes.data, len(self.pages), 0)


def reclaim_begins(loop, task, area):
    """kswapd takes the pages of a mapping out of its address spaces, and has not flushed yet."""
    kswapd = cpu_t.array(loop.machine.cpus)[loop.machine.nr_cpus]
    for cpu in range(3):
        syscalls.drain_lru(int(loop.cpu(cpu).address))
    sc = scan_control_of(kswapd)
    sc.gfp, sc.may_unmap, sc.may_swap, sc.may_writepage, sc.ignore_references = int(GFP_KERNEL), 1, 1, 1, 1
    sc.tlb_ubc.nr_mms = 0
    for address in area.pages().tolist():
        unmap_folio(kswapd, sc, loop.pfn(task, address))
        assert not loop.pte(task, address) & 1
    assert loop.mm(task).tlb_flush_pending == 1
    return kswapd, sc.tlb_ubc


def reclaim_goes_on(loop, task, kswapd, ubc):
    try_to_unmap_flush(kswapd, ubc)
    assert loop.mm(task).tlb_flush_pending == 0


def memory(loop, task, kind):
    if kind == "file":
        loop.create_file("/mnt/f", 4 * PAGE)
        return task.mmap(4 * PAGE, flags=MAP_SHARED, file=task.open("/mnt/f", O_RDWR))
    return task.mmap(4 * PAGE, **({"flags": MAP_SHARED | MAP_ANONYMOUS} if kind == "shared" else {}))


@pytest.mark.parametrize("kind", ["anonymous", "shared", "file"])
@pytest.mark.parametrize("prot", [PROT_READ, PROT_NONE])
def test_after_mprotect_nobody_uses_what_reclaim_has_taken(loop, kind, prot):
    task = loop.task()
    area = memory(loop, task, kind)
    insider = Insider(loop, task, area, store=True)
    kswapd, ubc = reclaim_begins(loop, task, area)
    task.mprotect(area.addr, area.nbytes, prot)
    with pytest.raises(SegmentationFault):
        insider.store(99)
    reclaim_goes_on(loop, task, kswapd, ubc)


@pytest.mark.parametrize("kind", ["anonymous", "shared", "file"])
@pytest.mark.parametrize("how", ["munmap", "moved", "left"])
def test_after_munmap_or_mremap_nobody_uses_what_reclaim_has_taken(loop, kind, how):
    task = loop.task()
    area = memory(loop, task, kind).touch()
    insider = Insider(loop, task, area, store=False)
    kswapd, ubc = reclaim_begins(loop, task, area)
    if how == "munmap":
        task.munmap(area.addr, area.nbytes)
    else:
        task.mremap(
            area.addr,
            area.nbytes,
            area.nbytes,
            MREMAP_MAYMOVE | (MREMAP_DONTUNMAP if how == "left" else MREMAP_FIXED),
            None if how == "left" else area.addr - (1 << 30),
        )
    if how != "left":
        with pytest.raises(SegmentationFault):
            insider.load()
        task.mmap(area.nbytes, addr=area.addr, flags=0x32).array()[:] = 5
        assert insider.load() == [5] * 4
    else:
        assert not any(
            loop.cpu(1).l1[i].tag >> 12 == address >> 12 for i in range(64) for address in area.pages().tolist()
        )
    reclaim_goes_on(loop, task, kswapd, ubc)


def test_a_page_that_comes_in_the_place_of_a_lazily_freed_one_is_everybodys(loop):
    task = loop.task()
    area = task.mmap(PAGE)
    task.store([area.addr], np.uint64(1))
    task.madvise(area.addr, PAGE, MADV_FREE)
    insider = Insider(loop, task, area, store=False)
    kswapd, ubc = reclaim_begins(loop, task, area)
    assert loop.pte(task, area.addr) == 0
    task.store([area.addr], np.uint64(2))
    assert insider.load() == [2]
    reclaim_goes_on(loop, task, kswapd, ubc)


def test_a_batch_of_more_address_spaces_than_it_holds_lowers_every_count(loop):
    tasks = [loop.task() for _ in range(UBC_MMS + 2)]
    cpu = loop.cpu()
    ubc = scan_control_of(cpu).tlb_ubc
    ubc.nr_mms = 0
    numbers = [task_t.array(loop.machine.tasks)[task._number].mm for task in tasks]
    for number in numbers:
        set_tlb_ubc_flush_pending(cpu, ubc, number)
    assert [loop.mm(task).tlb_flush_pending for task in tasks] == [0] * UBC_MMS + [1] * 2
    try_to_unmap_flush(cpu, ubc)
    assert [loop.mm(task).tlb_flush_pending for task in tasks] == [0] * (UBC_MMS + 2)


@inserted
def test_after_mprotect_nobody_writes_to_a_page_that_is_being_cleaned(loop, monkeypatch):
    """fsync has made an entry read-only and is about to flush it; mprotect finds it so, and returns first."""
    task = loop.task()
    loop.create_file("/mnt/f", PAGE)
    area = task.mmap(PAGE, flags=MAP_SHARED, file=task.open("/mnt/f", O_RDWR))
    insider = Insider(loop, task, area, store=True)
    file, flush = loop.task(cpu=2).open("/mnt/f", O_RDWR), page_writeback.flush_tlb_mm_range

    def mprotect_first(*args):
        if page_writeback.flush_tlb_mm_range is mprotect_first:
            monkeypatch.setattr(page_writeback, "flush_tlb_mm_range", flush)
            task.mprotect(area.addr, PAGE, PROT_READ)
            with pytest.raises(SegmentationFault):
                insider.store(99)
        flush(*args)

    monkeypatch.setattr(page_writeback, "flush_tlb_mm_range", mprotect_first)
    file.fsync()
    assert page_writeback.flush_tlb_mm_range is flush
    assert loop.mm(task).tlb_flush_pending == 0


@inserted
@pytest.mark.parametrize("how", ["munmap", "MADV_DONTNEED"])
@pytest.mark.parametrize("path", ["/mnt/f", "/dev/shm/f"])
def test_what_is_stored_before_the_flush_is_not_lost(loop, monkeypatch, how, path):
    """A thread stores to a page whose entry is gone, after somebody has written the page and made it clean."""
    task, other = loop.task(), loop.task(cpu=2)
    with other.open(path, O_RDWR | O_CREAT) as file:
        file.truncate(PAGE)
    file = task.open(path, O_RDWR)
    area = task.mmap(PAGE, flags=MAP_SHARED, file=file)
    insider = Insider(loop, task, area, store=True)
    page = loop.page(loop.pfn(task, area.addr))
    writer, flush = other.open(path, O_RDWR), mmu_gather.flush_tlb_mm_stride

    def write_first(*args):
        if mmu_gather.flush_tlb_mm_stride is write_first:
            monkeypatch.setattr(mmu_gather, "flush_tlb_mm_stride", flush)
            writer.fsync()
            assert page.mapcount == 1  # so reclaim leaves it alone, too
            insider.store(8)
        flush(*args)

    monkeypatch.setattr(mmu_gather, "flush_tlb_mm_stride", write_first)
    if how == "munmap":
        task.munmap(area.addr, PAGE)
    else:
        task.madvise(area.addr, PAGE, MADV_DONTNEED)
    assert mmu_gather.flush_tlb_mm_stride is flush
    syscalls.end_access(int(loop.cpu(1).address))
    assert page.flags & PG_dirty and page.mapcount == 0
    writer.fsync()
    loop.system("drop_caches", 1)
    assert int.from_bytes(other.open(path, O_RDWR).pread(8, 0), "little") == 8
    loop.audit()
