"""On-demand readahead: which windows a reader's pattern makes, and what they save in emulated time."""

import numpy as np
import pytest

from numaemu.kernel.arch.pgtable import pte_pfn
from numaemu.kernel.core.xarray import xa_load
from numaemu.kernel.fs.inode import inode_of
from numaemu.kernel.include.mm_types import VM_RAND_READ, VM_SEQ_READ, PG_readahead, PG_uptodate
from numaemu.kernel.mm.cache.pagemap import READ_CPU_BITS, filemap_get_folio, folio_wait_read
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.uapi import MAP_PRIVATE, O_RDONLY, POSIX_FADV_DONTNEED, POSIX_FADV_RANDOM, POSIX_FADV_SEQUENTIAL, PROT_READ

PAGES = 256
DISK = {"read_latency_us": 100, "bandwidth": 4096_000_000}  # a page takes 1 us
LATENCY_NS, PAGE_NS = 100_000, 1000

pytestmark = pytest.mark.interpreted


@pytest.fixture
def loop(loopback):
    loop = loopback(
        nodes=1,
        cpus_per_node=1,
        memory_per_node="16MiB",
        disk=DISK,
        cost={"copy_page_ns": 0, "clear_page_ns": 0, "syscall_ns": 0, "fault_ns": 0, "message_ns": 0},
    )
    loop.create_file("/mnt/f", PAGES << 12)
    return loop


def cached(loop, file):
    """The cached pages of a file, and those that are marked."""
    machine = loop.machine
    mapping = mapping_of(machine, inode_of(machine, loop.open_file(file).inode).mapping)
    pages = [index for index in range(PAGES) if xa_load(machine, mapping, index)]
    pfns = [int(pte_pfn(xa_load(machine, mapping, index))) for index in pages]
    marked = [index for index, pfn in zip(pages, pfns) if loop.page(pfn).flags & np.uint64(PG_readahead)]
    return pages, marked


def window(loop, file):
    state = loop.open_file(file)
    return state.start, state.size, state.async_size


def test_the_first_window_is_four_times_what_is_read(loop):
    """One page at the beginning: 4 pages, of which the second is the mark (get_init_ra_size)."""
    file = loop.task().open("/mnt/f")
    file.read(4096)
    assert window(loop, file) == (0, 4, 3)
    assert cached(loop, file) == (list(range(4)), [1])


def test_a_sequential_reader_gets_growing_windows(loop):
    """4, 8, 16, 32 pages, then 32 for ever; each is started at the mark of the one before."""
    file, seen = loop.task().open("/mnt/f"), []
    for _ in range(PAGES):
        file.read(4096)
        if window(loop, file)[:2] not in seen:
            seen.append(window(loop, file)[:2])
    assert [size for _, size in seen[:4]] == [4, 8, 16, 32]
    assert all(size == 32 for _, size in seen[3:])
    assert [start for start, _ in seen[:4]] == [0, 4, 12, 28]
    assert cached(loop, file)[0] == list(range(PAGES))
    assert loop.vmstat()["pgpgin"] == PAGES * 4
    loop.audit()


def test_small_random_reads_bring_only_themselves(loop):
    file = loop.task().open("/mnt/f")
    for index in (200, 50, 120):
        file.read(8192, index << 12)
    assert cached(loop, file) == ([50, 51, 120, 121, 200, 201], [])


def test_a_large_read_is_one_request(loop):
    """Of more than a window, as far as the disk takes it in one (ractl_max_pages)."""
    task = loop.task()
    file, before = task.open("/mnt/f"), task.clock_ns
    file.read(64 << 12)
    assert window(loop, file)[:2] == (64, 32)  # the next one, of the usual size, is on its way
    assert task.clock_ns - before == LATENCY_NS + 64 * PAGE_NS


def test_readahead_stops_at_the_end(loop):
    loop.create_file("/mnt/short", 5000)
    file = loop.task().open("/mnt/short")
    file.read(10)
    assert cached(loop, file)[0] == [0, 1]


def test_a_reader_waits_for_its_window_once(loop):
    """Latency and the window's bytes; what is there already costs nothing."""
    task = loop.task()
    file = task.open("/mnt/f")
    before = task.clock_ns
    file.read(4096)
    assert task.clock_ns - before == LATENCY_NS + 4 * PAGE_NS
    before = task.clock_ns
    file.read(4096, 0)
    assert task.clock_ns == before


def test_reading_ahead_hides_the_disk_behind_the_readers_work(loop):
    """Who works longer between two reads than a window takes waits for the first one only."""
    task = loop.task()
    file, cpu = task.open("/mnt/f"), loop.cpu()
    waited = 0
    for _ in range(PAGES):
        before = task.clock_ns
        file.read(4096)
        waited += task.clock_ns - before
        cpu.clock_base_ns += LATENCY_NS
    assert waited < 3 * LATENCY_NS


def test_random_readers_pay_each_time(loop):
    task = loop.task()
    file, before = task.open("/mnt/f"), task.clock_ns
    for index in range(0, 200, 40):
        file.read(4096, (index + 3) << 12)
    assert task.clock_ns - before == 5 * (LATENCY_NS + PAGE_NS)


def test_a_fault_reads_around_itself(loop):
    """16 pages before and 16 behind; the fault is a major one, its neighbours in 64 KiB are mapped with it."""
    task = loop.task()
    file = task.open("/mnt/f")
    area = task.mmap(PAGES << 12, PROT_READ, MAP_PRIVATE, file)
    task.read(area.addr + (100 << 12), 8)
    assert cached(loop, file)[0] == list(range(84, 116))
    assert task.counters()["task_major_faults"] == 1
    before = task.counters()["task_minor_faults"]
    task.read(area.addr + (101 << 12), 8)
    task.read(area.addr + (111 << 12), 8)
    assert task.counters()["task_minor_faults"] == before
    loop.audit()


@pytest.mark.parametrize("flag, pages", [(VM_RAND_READ, [100]), (VM_SEQ_READ, list(range(100, 132)))])
def test_advice_changes_what_a_fault_reads(loop, flag, pages):
    task = loop.task()
    file = task.open("/mnt/f")
    area = task.mmap(PAGES << 12, PROT_READ, MAP_PRIVATE, file)
    next(vma for vma in loop.vmas(task) if vma.start == area.addr).flags |= flag
    task.read(area.addr + (100 << 12), 8)
    assert cached(loop, file)[0] == pages


def test_a_fault_that_waited_finds_the_neighbours_there(loop):
    """All pages of one request are there at once: who has waited for one of them maps the others with it. So one fault for
    each 64 KiB, and one for the mark of the first window, which is not mapped around.
    """
    task = loop.task()
    with task.open("/mnt/f", O_RDONLY) as file:
        mapping = task.mmap(PAGES << 12, PROT_READ, MAP_PRIVATE, file, addr=0x7D0000000000)
    before = task.counters()
    mapping.touch(write=False)
    after = task.counters()
    assert after["task_major_faults"] - before["task_major_faults"] == 1
    assert after["task_minor_faults"] - before["task_minor_faults"] == PAGES // 16
    loop.audit()


def test_a_mapping_that_begins_inside_64_kib_is_mapped_from_there(loop):
    """Up to 64 KiB from its beginning (do_fault_around), across a border of 64 KiB."""
    task = loop.task()
    with task.open("/mnt/f", O_RDONLY) as file:
        file.read(PAGES << 12)
        mapping = task.mmap(64 << 12, PROT_READ, MAP_PRIVATE, file, addr=0x7D0000005000)
    task.load([mapping.addr], np.uint8)
    assert [loop.pte(task, mapping.addr + (i << 12)) != 0 for i in (0, 10, 11, 15, 16)] == [True] * 4 + [False]


def test_random_advice_reads_only_what_is_asked_for(loop):
    file = loop.task().open("/mnt/f")
    file.fadvise(0, 0, POSIX_FADV_RANDOM)
    file.read(8192)
    file.read(8192)
    assert cached(loop, file) == ([0, 1, 2, 3], [])
    file.fadvise(0, 0, POSIX_FADV_SEQUENTIAL)
    file.read(4096, 100 << 12)
    file.fadvise(8192, 4096, POSIX_FADV_DONTNEED)
    assert cached(loop, file) == ([0, 1, 3, 100], [])
    with pytest.raises(OSError, match="Invalid"):
        file.fadvise(0, 0, 9)


def test_hopeless_read_around_is_given_up(loop):
    """After more than MMAP_LOTSAMISS faults in vain only the page itself is read."""
    task = loop.task()
    file = task.open("/mnt/f")
    area = task.mmap(PAGES << 12, PROT_READ, MAP_PRIVATE, file)
    loop.open_file(file).mmap_miss = 100
    task.read(area.addr + (100 << 12), 8)
    assert cached(loop, file)[0] == [100]


@pytest.mark.interpreted
def test_who_comes_while_a_page_is_read_leaves_the_request_in_one_piece(two_nodes):
    """Until a page is read its `private` is the pfn of the next one, which may look like a time when it will have been."""
    two_nodes.create_file("/mnt/chain", 4096, 1)
    task = two_nodes.task()
    with task.open("/mnt/chain", O_RDONLY) as file:
        file.read(4096)
        pfn = filemap_get_folio(
            two_nodes.cpu(), inode_of(two_nodes.machine, two_nodes.open_file(file).inode).mapping, 0
        )
        page = two_nodes.page(pfn)
        flags = page.flags
        page.flags, page.private = flags & ~np.uint64(PG_uptodate), 5 << READ_CPU_BITS
        folio_wait_read(two_nodes.cpu(), page, 1000)
        assert page.private == 5 << READ_CPU_BITS
        page.flags = flags
        folio_wait_read(two_nodes.cpu(), page, 1000)
        assert page.private == 0
        put_page(two_nodes.cpu(), pfn)
    two_nodes.audit()
