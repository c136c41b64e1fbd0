"""/sys/kernel/mm/page_idle/bitmap: pages that nobody has used since they were marked."""

import errno

import numpy as np
import pytest

from numaemu.kernel.fs.sysfs.page_idle import BITMAP
from numaemu.kernel.include.mm_types import PG_idle, PG_young
from numaemu.kernel.mm.fault.rmap import folio_referenced
from numaemu.mmu import tlb_flush_all

pytestmark = pytest.mark.interpreted
PAGE = 4096
PAGES = 20


@pytest.fixture
def loop(two_nodes):
    return two_nodes


def bitmap(loop):
    """The whole file, a bool for each frame."""
    nbytes = -(-int(loop.machine.max_pfn) // 64) * 8
    return np.unpackbits(np.frombuffer(loop.pread(BITMAP, nbytes), np.uint8), bitorder="little").astype(bool)


def mark(loop, *pfns):
    """These frames are idle from now on."""
    words = np.zeros(-(-int(loop.machine.max_pfn) // 64), np.uint64)
    for pfn in pfns:
        words[pfn // 64] |= np.uint64(1 << pfn % 64)
    assert loop.pwrite(BITMAP, words.tobytes()) == words.nbytes


def idle_of(loop, task, addr, pages=PAGES):
    found = bitmap(loop)
    return [bool(found[loop.pfn(task, addr + i * PAGE)]) for i in range(pages)]


def flush_tlb(loop):
    """What the CPUs' TLBs hold would be used unnoticed."""
    for number in range(loop.machine.nr_cpus):
        tlb_flush_all(loop.cpu(number))


def test_marked_pages_are_idle_until_somebody_uses_them(loop):
    task = loop.task()
    addr = task.mmap(PAGES * PAGE).touch().addr
    loop.drain()
    pfns = [loop.pfn(task, addr + i * PAGE) for i in range(PAGES)]
    assert not any(bitmap(loop))
    mark(loop, *pfns)
    assert idle_of(loop, task, addr) == [True] * PAGES and sum(bitmap(loop)) == PAGES
    flush_tlb(loop)
    task.load([addr + 3 * PAGE, addr + 5 * PAGE])
    assert idle_of(loop, task, addr) == [i not in (3, 5) for i in range(PAGES)]
    assert loop.page(pfns[3]).flags & np.uint64(PG_young) and not loop.page(pfns[3]).flags & np.uint64(PG_idle)


def test_reclaim_learns_of_an_access_that_only_the_watcher_has_seen(loop):
    task = loop.task()
    addr = task.mmap(PAGE).touch().addr
    loop.drain()
    pfn = loop.pfn(task, addr)
    mark(loop, pfn)  # takes the Accessed bit of the first touch back
    assert folio_referenced(loop.cpu(0), pfn) == 1  # by PG_young
    assert folio_referenced(loop.cpu(0), pfn) == 0
    assert bitmap(loop)[pfn]  # nobody has used it since
    flush_tlb(loop)
    task.load([addr])
    assert folio_referenced(loop.cpu(0), pfn) == 1 and not bitmap(loop)[pfn]


def test_free_pages_and_the_kernels_are_never_idle(loop):
    mark(loop, *range(int(loop.machine.max_pfn)))
    before = bitmap(loop)
    task = loop.task()
    addr = task.mmap(PAGES * PAGE).touch().addr
    loop.drain()
    assert not any(idle_of(loop, task, addr)) and sum(before) == sum(bitmap(loop))


def test_ranges_of_whole_words_only(loop):
    for call in (
        lambda: loop.pread(BITMAP, 8, 4),
        lambda: loop.pread(BITMAP, 3, 0),
        lambda: loop.pwrite(BITMAP, b"123"),
    ):
        with pytest.raises(OSError) as failed:
            call()
        assert failed.value.errno == errno.EINVAL
    with pytest.raises(OSError) as failed:
        loop.pwrite(BITMAP, bytes(8), 1 << 30)
    assert failed.value.errno == errno.ENXIO
    with pytest.raises(OSError) as failed:
        loop.pwrite("/proc/meminfo", bytes(8))
    assert failed.value.errno == errno.EACCES
