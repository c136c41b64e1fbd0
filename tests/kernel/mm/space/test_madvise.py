"""madvise: what each advice does to pages and flags, and what Linux refuses."""

import errno

import numpy as np
import pytest

from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY
from numaemu.kernel.include.mm_types import MM_SWAPENTS, VM_RAND_READ, VM_SEQ_READ, PG_swapbacked
from numaemu.kernel.mm.swap import swapon
from numaemu.uapi import (
    MADV_COLD,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_MERGEABLE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    O_RDWR,
    PROT_NONE,
    PROT_READ,
)

PAGE = 4096
SHARED = MAP_SHARED | MAP_ANONYMOUS
UNRESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE

pytestmark = pytest.mark.interpreted


def refused(error, call, *args):
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == error


def page_of(loop, task, address):
    return loop.page(loop.pfn(task, address))


def test_free_marks_pages_that_reclaim_may_drop(two_nodes):
    task = two_nodes.task()
    area = task.mmap(4 * PAGE)
    task.store(area.pages()[:3], np.uint8(7))
    task.madvise(area.addr, 4 * PAGE, MADV_FREE)
    two_nodes.audit()  # what waits in a batch takes effect
    for i in range(3):
        assert not page_of(two_nodes, task, area.addr + i * PAGE).flags & np.uint64(PG_swapbacked)
        assert not two_nodes.pte(task, area.addr + i * PAGE) & int(_PAGE_DIRTY | _PAGE_ACCESSED)
    assert two_nodes.vmstat()["pglazyfree"] == 3
    assert task.load(area.pages(), np.uint8).tolist() == [7, 7, 7, 0]
    task.store(area.pages()[:1], np.uint8(8))
    assert two_nodes.pte(task, area.addr) & int(_PAGE_DIRTY)  # which tells reclaim to keep it
    task.madvise(area.addr, 4 * PAGE, MADV_FREE)
    assert two_nodes.vmstat()["pglazyfree"] == 3  # only new ones count


def test_free_spares_pages_that_others_map(two_nodes):
    task = two_nodes.task()
    area = task.mmap(PAGE).touch()
    child = task.fork()
    task.madvise(area.addr, PAGE, MADV_FREE)
    assert page_of(two_nodes, task, area.addr).flags & np.uint64(PG_swapbacked)
    child.exit()


def test_private_pages_of_files_are_not_anonymous_memory(two_nodes):
    """Neither may be dropped for zeros, nor be wiped at fork."""
    two_nodes.create_file("/mnt/f", b"file" * 1024)
    task = two_nodes.task()
    with task.open("/mnt/f", O_RDWR) as file:
        area = task.mmap(PAGE, file=file, flags=MAP_PRIVATE)
    task.write(area.addr, b"mine")
    for advice in (MADV_FREE, MADV_WIPEONFORK):
        refused(errno.EINVAL, task.madvise, area.addr, PAGE, advice)


def test_cold_pages_have_not_been_used(two_nodes):
    task = two_nodes.task()
    area = task.mmap(PAGE).touch()
    task.madvise(area.addr, PAGE, MADV_COLD)
    assert two_nodes.pte(task, area.addr) & int(_PAGE_ACCESSED | _PAGE_DIRTY) == int(_PAGE_DIRTY)
    task.load([area.addr], np.uint8)
    assert two_nodes.pte(task, area.addr) & int(_PAGE_ACCESSED)


@pytest.mark.parametrize("advice, status", [(MADV_POPULATE_WRITE, 0), (MADV_POPULATE_READ, -errno.EFAULT)])
def test_populate(two_nodes, advice, status):
    task = two_nodes.task()
    area = task.mmap(4 * PAGE)
    task.madvise(area.addr, 2 * PAGE, advice)
    assert area.nodes().tolist() == [status, status, -errno.ENOENT, -errno.ENOENT]
    faults = task.counters()["task_minor_faults"]
    task.load(area.pages()[:2], np.uint8)
    assert task.counters()["task_minor_faults"] == faults


def test_order_of_reading(two_nodes):
    task = two_nodes.task()
    area = task.mmap(PAGE)
    for advice, flags in ((MADV_RANDOM, VM_RAND_READ), (MADV_SEQUENTIAL, VM_SEQ_READ), (MADV_NORMAL, 0)):
        task.madvise(area.addr, PAGE, advice)
        assert two_nodes.vmas(task)[0].flags & (VM_RAND_READ | VM_SEQ_READ) == flags


def test_a_hole_is_passed_over(two_nodes):
    task = two_nodes.task()
    area = task.mmap(3 * PAGE).touch()
    task.munmap(area.addr + PAGE, PAGE)
    refused(errno.ENOMEM, task.madvise, area.addr, 3 * PAGE, MADV_DONTNEED)
    assert two_nodes.mm(task).rss[1] == 0


def test_refused(two_nodes):
    task = two_nodes.task()
    area, shared = task.mmap(2 * PAGE), task.mmap(2 * PAGE, flags=SHARED)
    locked = task.mmap(2 * PAGE, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED)
    for advice in (MADV_MERGEABLE, 5, 26, -1):
        refused(errno.EINVAL, task.madvise, area.addr, PAGE, advice)
    refused(errno.EINVAL, task.madvise, area.addr + 1, PAGE, MADV_WILLNEED)
    for advice in (MADV_FREE, MADV_WIPEONFORK):
        refused(errno.EINVAL, task.madvise, shared.addr, PAGE, advice)
    for advice in (MADV_FREE, MADV_DONTNEED, MADV_COLD):
        refused(errno.EINVAL, task.madvise, locked.addr, PAGE, advice)
    task.madvise(locked.addr, PAGE, MADV_DONTNEED_LOCKED)
    assert two_nodes.vmstat()["nr_mlock"] == 1
    refused(errno.EINVAL, task.madvise, task.mmap(PAGE, prot=PROT_READ).addr, PAGE, MADV_POPULATE_WRITE)
    refused(errno.EINVAL, task.madvise, task.mmap(PAGE, prot=PROT_NONE).addr, PAGE, MADV_POPULATE_READ)
    refused(errno.ENOMEM, task.madvise, 0x1000_0000, PAGE, MADV_POPULATE_READ)
    task.madvise(area.addr, 0, MADV_DONTNEED)


def test_free_gives_up_what_lies_in_swap(loopback):
    """MADV_FREE: the slots are free at once, and the pages are zeros when they are used again; a child keeps its own."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    loop.actors[0].rpc_swapon("/dev/vdb", 4 << 20, None, "disk")
    task = loop.task()
    area = task.mmap(64 << 12)
    task.store(area.pages(), np.uint64(7))
    task.madvise(area.addr, area.nbytes, MADV_PAGEOUT)
    child = task.fork()
    used = loop.machine.total_swap_pages - loop.machine.nr_swap_pages
    assert used == 64 == loop.mm(task).rss[MM_SWAPENTS]
    task.madvise(area.addr, 32 << 12, MADV_FREE)
    assert loop.mm(task).rss[MM_SWAPENTS] == 32 and loop.mm(child).rss[MM_SWAPENTS] == 64
    assert task.load(area.pages()).tolist() == [0] * 32 + [7] * 32
    child.madvise(area.addr, 32 << 12, MADV_FREE)
    assert loop.machine.total_swap_pages - loop.machine.nr_swap_pages == 32
    loop.audit()


def counts(loop, *names):
    text = loop.vmstat()
    return [text[name] for name in names]


def test_willneed_brings_anonymous_memory_back(loopback):
    """What lies in swap is read into the swap cache, so the access is a minor fault; what is not swapped out, or elsewhere, stays."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    loop.actors[0].rpc_swapon("/dev/vdb", 8 << 20, None, "disk")
    task = loop.task()
    area = task.mmap(16 * PAGE)
    task.store(area.pages()[1:15], np.arange(1, 15, dtype=np.uint8))
    task.madvise(area.addr, 16 * PAGE, MADV_PAGEOUT)
    task.mmap("12MiB", flags=UNRESERVED).touch().munmap()  # nothing of it is left in the swap cache
    before = counts(loop, "pswpin", "pgmajfault")
    task.madvise(area.addr, 8 * PAGE, MADV_WILLNEED)
    assert counts(loop, "pswpin", "pgmajfault") == [before[0] + 7, before[1]]
    assert loop.mm(task).rss[MM_SWAPENTS] == 14  # they are not mapped yet
    assert task.load(area.pages()[:8], np.uint8).tolist() == list(range(8))
    assert counts(loop, "pswpin", "pgmajfault") == [before[0] + 7, before[1]]
    assert task.load(area.pages()[8:9], np.uint8).tolist() == [8]
    assert counts(loop, "pgmajfault") == [before[1] + 1]
    loop.audit()


def test_willneed_brings_shared_memory_back(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    loop.actors[0].rpc_swapon("/dev/vdb", 8 << 20, None, "disk")
    task = loop.task()
    area = task.mmap(8 * PAGE, flags=SHARED)
    task.store(area.pages()[2:], np.arange(2, 8, dtype=np.uint8))
    task.madvise(area.addr, 8 * PAGE, MADV_PAGEOUT)
    task.mmap("12MiB", flags=UNRESERVED).touch().munmap()
    before = counts(loop, "pswpin", "pgmajfault")
    task.madvise(area.addr + PAGE, 4 * PAGE, MADV_WILLNEED)
    assert counts(loop, "pswpin", "pgmajfault") == [before[0] + 3, before[1]]
    assert task.load(area.pages()[:5], np.uint8).tolist() == [0, 0, 2, 3, 4]
    assert counts(loop, "pswpin", "pgmajfault") == [before[0] + 3, before[1]]
    loop.audit()


def test_willneed_reads_a_file(two_nodes):
    """As far as one call goes (force_page_cache_ra): 320 pages, from the place that the range maps; nobody waits for them yet."""
    two_nodes.create_file("/mnt/big", 400 * PAGE)
    task = two_nodes.task()
    with task.open("/mnt/big") as file:
        area = task.mmap(390 * PAGE, PROT_READ, MAP_PRIVATE, file, 4 * PAGE)
    start = task.clock_ns
    task.madvise(area.addr + 2 * PAGE, 3 * PAGE, MADV_WILLNEED)
    cached = lambda: np.flatnonzero(task.mincore(area.addr, area.nbytes)).tolist()
    assert cached() == [2, 3, 4] and task.clock_ns - start < 100_000
    task.madvise(area.addr + 4 * PAGE, 386 * PAGE, MADV_WILLNEED)
    assert cached() == list(range(2, 4 + 320))
    task.load(area.pages()[2:100], np.uint8)
    assert task.counters()["task_major_faults"] == 0
    task.load(area.pages()[389:], np.uint8)
    assert task.counters()["task_major_faults"] == 1
    two_nodes.audit()


def test_willneed_where_there_is_nothing(two_nodes):
    task = two_nodes.task()
    area = task.mmap(4 * PAGE).touch()
    task.madvise(area.addr, 4 * PAGE, MADV_WILLNEED)
    task.madvise(area.addr, 0, MADV_WILLNEED)
    refused(errno.ENOMEM, task.madvise, area.addr, 5 * PAGE, MADV_WILLNEED)
    assert two_nodes.vmstat()["pswpin"] == 0


# -- MADV_REMOVE ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tmpfs", [False, True])
def test_remove_makes_a_hole_for_everybody(loopback, tmpfs):
    """Pages in memory and in swap go, whoever maps them; private copies of a file's stay, as its size does."""
    loop = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    swapon.swapon(loop.machine, "swap", 8 << 20, -1, "disk")
    task = loop.task()
    file = task.memfd_create("m") if tmpfs else None
    if tmpfs:
        file.truncate(16 * PAGE)
    area = task.mmap(16 * PAGE, flags=MAP_SHARED, file=file) if tmpfs else task.mmap(16 * PAGE, flags=SHARED)
    task.store(area.pages(), np.arange(1, 17, dtype=np.uint64))
    task.madvise(area.addr + 8 * PAGE, 8 * PAGE, MADV_PAGEOUT)
    child = task.fork(cpu=1)
    child.load(area.pages()[:8])
    if tmpfs:
        own = task.mmap(16 * PAGE, flags=MAP_PRIVATE, file=file)
        task.store(own.pages()[:3], [101, 102, 103])
        task.load(own.pages()[3:6])
    before = loop.vmstat()["nr_shmem"]
    task.madvise(area.addr + 2 * PAGE, 12 * PAGE, MADV_REMOVE)
    assert before - loop.vmstat()["nr_shmem"] == 6 and loop.mm(task).rss[MM_SWAPENTS] == 0
    expected = [1, 2] + [0] * 12 + [15, 16]
    assert child.load(area.pages()).tolist() == task.load(area.pages()).tolist() == expected
    if tmpfs:
        assert file.size == 16 * PAGE and task.load(own.pages()).tolist() == [101, 102, 103] + expected[3:]
    loop.audit()


def test_remove_where_nothing_can_be_removed(two_nodes):
    two_nodes.create_file("/f", bytes(PAGE))
    task = two_nodes.task()
    private, locked = task.mmap(PAGE), task.mmap(PAGE, flags=SHARED | MAP_LOCKED)
    disk = task.mmap(PAGE, flags=MAP_SHARED, file=task.open("/f", O_RDWR))
    own = task.mmap(PAGE, flags=MAP_PRIVATE, file=task.open("/f"))
    for error, area in ((errno.EINVAL, private), (errno.EINVAL, locked), (errno.EOPNOTSUPP, disk), (errno.EACCES, own)):
        refused(error, task.madvise, area.addr, PAGE, MADV_REMOVE)
    two_nodes.audit()
