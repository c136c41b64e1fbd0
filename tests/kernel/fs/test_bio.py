"""A bio for each page on its way to swap: how many pages of memory that takes, and that all come back."""

import numpy as np
import pytest

from numaemu import MADV_PAGEOUT
from numaemu.kernel.fs.bio import BLK_MAX_SEGMENTS, bio_queue_of
from numaemu.kernel.mm.slab.slab import cache_of, get_node
from numaemu.kernel.mm.swap import swapon

PAGES = 512
pytestmark = pytest.mark.interpreted


def boot(loopback, kind="disk"):
    """A machine with swap, and a task's pages that are not zero."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    swapon.swapon(loop.machine, "area", 16 << 20, kind=kind)
    task = loop.task()
    mapping = task.mmap(PAGES << 12)
    task.store(mapping.pages(), np.arange(1, PAGES + 1, dtype=np.uint64))
    return loop, task, mapping


def slabs(loop):
    return get_node(loop.machine, loop.machine.bio_slab, 0).nr_slabs


def per_slab(loop):
    cache = cache_of(loop.machine, loop.machine.bio_slab)
    return (4096 << cache.order) // cache.size


def test_all_pages_of_a_pageout_are_under_way_at_once(loopback):
    """As on Linux 6.12, where MADV_PAGEOUT of 8160 pages took 476 to 490 pages for bios, 16 in each."""
    loop, task, mapping = boot(loopback)
    before = loop.vmstat()
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    after = loop.vmstat()
    assert per_slab(loop) == 16
    assert after["numa_hit"] - before["numa_hit"] >= PAGES // per_slab(loop)
    assert after["pswpout"] - before["pswpout"] == PAGES
    loop.audit()


def test_bios_go_back_when_the_disk_is_done(loopback):
    loop, task, mapping = boot(loopback)
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    cache = cache_of(loop.machine, loop.machine.bio_slab)
    assert slabs(loop) <= cache.min_partial + 1
    queue = bio_queue_of(loop.cpus[0].state)
    assert queue.plug_pages == 0 and queue.issued == 0


def test_the_disk_does_one_request_after_the_other(loopback):
    """The call lasts as long as the disk takes for all pages."""
    loop, task, mapping = boot(loopback)
    before = task.clock_ns
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    taken = task.clock_ns - before
    assert PAGES * loop.machine.disk_page_ns <= taken < (PAGES + BLK_MAX_SEGMENTS) * loop.machine.disk_page_ns


def test_pages_that_no_disk_gets_need_no_bio(loopback):
    loop, task, mapping = boot(loopback, kind="zram")
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    assert slabs(loop) == 0 and loop.vmstat()["pswpout"] == PAGES


def test_reclaim_goes_on_without_memory_for_bios(loopback):
    """mempool_alloc: what is missing is waited for, and swapping out does not depend on it."""
    loop, task, mapping = boot(loopback)
    cache = cache_of(loop.machine, loop.machine.bio_slab)
    cache.order = cache.min_order = 11  # no such block
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    assert loop.vmstat()["pswpout"] == PAGES and slabs(loop) == 0
    assert (task.load(mapping.pages()) == np.arange(1, PAGES + 1)).all()
