"""Transparent huge pages: faults, splitting, copy on write, fork, mremap, swap, khugepaged, and what the counters say."""

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import SMALL_TLB, Loopback

from numaemu.compiler.build import JIT
from numaemu.errors import OutOfMemory
from numaemu.uapi import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MPOL_BIND,
    MPOL_MF_MOVE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)

PAGE, HUGE = 4096, 2 << 20
RW = PROT_READ | PROT_WRITE
THP = "/sys/kernel/mm/transparent_hugepage"

pytestmark = pytest.mark.interpreted
compiled = pytest.mark.skipif(not JIT, reason="fills a machine's memory: minutes, page by page in Python")


@pytest.fixture
def always(loopback):
    machine = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")
    machine.write(f"{THP}/enabled", "always")
    return machine


def counts(machine, *names):
    vmstat = machine.vmstat()
    return [vmstat[name] for name in names]


def aligned(task, nbytes):
    """A mapping that begins with a huge page."""
    return task.mmap(nbytes)  # whole multiples of 2 MiB are aligned


def test_one_fault_maps_a_huge_page(always):
    task = always.task(cpu=1)
    area = aligned(task, 2 * HUGE)
    task.store([area.addr + 5 * PAGE], np.uint8(7))
    assert task.counters()["task_minor_faults"] == 1
    task.store([area.addr], np.uint8(1))
    assert task.counters()["task_minor_faults"] == 1
    assert area.nodes().tolist() == [1] * 512 + [-errno.ENOENT] * 512
    assert task.load([area.addr, area.addr + 5 * PAGE, area.addr + PAGE], np.uint8).tolist() == [1, 7, 0]
    assert counts(always, "thp_fault_alloc", "nr_anon_transparent_hugepages", "nr_anon_pages") == [1, 1, 512]
    always.audit()
    area.munmap()
    assert counts(always, "nr_anon_transparent_hugepages", "nr_anon_pages") == [0, 0]
    always.audit()


def test_settings_and_advice(loopback):
    machine = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")
    task = machine.task()
    area = aligned(task, 4 * HUGE)
    area.touch(stride=HUGE)
    assert counts(machine, "thp_fault_alloc") == [0]
    machine.write(f"{THP}/enabled", "madvise")
    area = aligned(task, 4 * HUGE)
    task.madvise(area.addr + HUGE, HUGE, MADV_HUGEPAGE)
    area.touch(stride=HUGE)
    assert counts(machine, "thp_fault_alloc") == [1]
    machine.write(f"{THP}/enabled", "always")
    area = aligned(task, 2 * HUGE)
    task.madvise(area.addr, HUGE, MADV_NOHUGEPAGE)
    area.touch(stride=HUGE)
    assert counts(machine, "thp_fault_alloc") == [2]
    small = task.mmap(HUGE - PAGE).touch(stride=PAGE * 64)  # no room for a huge one
    assert counts(machine, "thp_fault_alloc") == [2] and small
    machine.audit()


def test_reads_map_the_huge_page_of_zeros(always):
    task = always.task()
    area = aligned(task, 2 * HUGE)
    assert task.load([area.addr, area.addr + HUGE + PAGE], np.uint8).tolist() == [0, 0]
    assert task.counters()["task_minor_faults"] == 2
    assert counts(always, "thp_zero_page_alloc", "thp_fault_alloc", "nr_anon_pages") == [1, 0, 0]
    assert area.nodes()[0] == -errno.EFAULT
    task.store([area.addr + 3 * PAGE], np.uint8(4))  # 6.12: split, then one small page
    assert counts(always, "thp_split_pmd", "nr_anon_pages") == [1, 1]
    assert task.load(area.addr + PAGE * np.uint64([2, 3, 4]), np.uint8).tolist() == [0, 4, 0]
    always.audit()


def test_fallback_when_nothing_is_in_one_piece(always):
    task = always.task()
    blocks = []
    while True:
        area = aligned(task, HUGE).touch(stride=HUGE)
        if counts(always, "thp_fault_fallback")[0]:
            break
        blocks.append(area)
    assert area.nodes().tolist()[0] in (0, 1)
    always.audit()


@pytest.mark.parametrize("what", ["munmap", "dontneed", "mprotect", "free"])
def test_part_of_a_huge_page(always, what):
    task = always.task()
    area = aligned(task, 2 * HUGE)
    task.store(area.pages(), (np.arange(1024) % 251 + 1).astype(np.uint8))
    start = area.addr + 100 * PAGE
    if what == "munmap":
        task.munmap(start, PAGE)
    elif what == "dontneed":
        task.madvise(start, PAGE, MADV_DONTNEED)
    elif what == "free":
        task.madvise(start, PAGE, MADV_FREE)
    else:
        task.mprotect(start, PAGE, PROT_READ)
    assert counts(always, "thp_split_pmd", "nr_anon_transparent_hugepages") == [1, 1]
    left = np.array([i for i in range(1024) if i != 100])
    assert (task.load(area.pages()[left], np.uint8) == left % 251 + 1).all()
    if what == "dontneed":
        assert task.load([start], np.uint8).tolist() == [0]
    always.audit()


def test_a_huge_page_is_freed_lazily_as_a_whole(always):
    """MADV_FREE of all of it: one clean entry, 512 pages that reclaim may drop; a write to one keeps what is there."""
    task = always.task()
    area = aligned(task, 2 * HUGE)
    task.store(area.pages(), (np.arange(1024) % 250 + 1).astype(np.uint8))
    task.madvise(area.addr, HUGE, MADV_FREE)
    always.audit()  # what waits in a batch takes effect
    assert counts(always, "thp_split_pmd", "nr_anon_transparent_hugepages", "pglazyfree") == [0, 2, 512]
    rollup = dict(line.split(":") for line in always.read(f"/proc/{task.pid}/smaps_rollup").splitlines()[1:])
    assert rollup["LazyFree"].split() == ["2048", "kB"]
    assert (task.load(area.pages(), np.uint8) == np.arange(1024) % 250 + 1).all()
    always.audit()


@compiled
def test_reclaim_drops_what_of_a_huge_page_was_freed_lazily(always):
    task = always.task()
    area = aligned(task, 2 * HUGE)
    task.store(area.pages(), (np.arange(1024) % 250 + 1).astype(np.uint8))
    task.madvise(area.addr, HUGE, MADV_FREE)
    while counts(always, "pgsteal_file") == [0]:  # lazily freed ones are on the list of files
        task.mmap(HUGE).touch(stride=HUGE)
    left = task.load(area.pages(), np.uint8)
    assert (left[512:] == np.arange(512, 1024) % 250 + 1).all()
    assert 0 in left[:512] and ((left[:512] == 0) | (left[:512] == np.arange(512) % 250 + 1)).all()
    always.audit()


@compiled
def test_a_write_keeps_a_huge_page_that_was_freed_lazily(always):
    task = always.task()
    area = aligned(task, HUGE)
    task.store(area.pages(), (np.arange(512) % 250 + 1).astype(np.uint8))
    task.madvise(area.addr, HUGE, MADV_FREE)
    task.store([area.addr + 7 * PAGE], np.uint8(99))  # its one entry is dirty now
    always.audit()
    with pytest.raises(OutOfMemory):
        hog = always.task(cpu=1)
        always.write(f"/proc/{hog.pid}/oom_score_adj", "1000")
        while True:
            hog.mmap(HUGE).touch()
    expected = np.arange(512) % 250 + 1
    expected[7] = 99
    assert (task.load(area.pages(), np.uint8) == expected).all()
    always.audit()


def test_a_huge_page_becomes_cold_as_a_whole(always):
    task = always.task()
    area = aligned(task, HUGE).touch()
    always.audit()
    task.madvise(area.addr, HUGE, MADV_COLD)
    always.audit()
    assert counts(always, "thp_split_pmd", "nr_anon_transparent_hugepages") == [0, 1]
    text = always.read(f"/proc/{task.pid}/smaps_rollup")
    assert text[text.index("Referenced:") :].split()[1] == "0"


@pytest.mark.parametrize("advice", [MADV_FREE, MADV_COLD, MADV_PAGEOUT])
def test_advice_leaves_a_huge_page_alone_that_others_map(always, advice):
    task = always.task()
    area = aligned(task, HUGE).touch()
    child = task.fork()
    for start, nbytes in ((area.addr, HUGE), (area.addr + PAGE, PAGE)):
        task.madvise(start, nbytes, advice)
    always.audit()
    assert counts(always, "thp_split_pmd", "nr_anon_transparent_hugepages", "pglazyfree", "pswpout") == [0, 1, 0, 0]
    child.exit()


def test_fork_shares_and_a_write_splits_for_the_writer_only(always):
    task = always.task()
    area = aligned(task, HUGE)
    task.store([area.addr, area.addr + HUGE - 1], np.uint8([1, 2]))
    child = task.fork()
    assert counts(always, "nr_anon_transparent_hugepages", "nr_anon_pages") == [1, 512]
    always.audit()
    child.store([area.addr], np.uint8(9))
    assert counts(always, "thp_split_pmd", "nr_anon_transparent_hugepages", "nr_anon_pages") == [1, 1, 513]
    assert task.load([area.addr, area.addr + HUGE - 1], np.uint8).tolist() == [1, 2]
    assert child.load([area.addr, area.addr + HUGE - 1], np.uint8).tolist() == [9, 2]
    always.audit()
    child.exit()
    task.store([area.addr + 1], np.uint8(5))  # the last one: the huge page is used again
    assert counts(always, "thp_split_pmd", "nr_anon_transparent_hugepages") == [1, 1]
    always.audit()


def test_the_error_code_tells_a_protected_huge_page(always):
    task = always.task()
    area = aligned(task, HUGE)
    task.load([area.addr + 8], np.uint8)
    assert task.last_fault() == (area.addr + 8, 0b100)  # user, read, not present
    task.store([area.addr + 16], np.uint8(1))
    assert task.last_fault() == (area.addr + 16, 0b111)  # the huge page of zeros is there
    always.audit()


def test_mremap_moves_it_whole_or_in_pieces(always):
    task = always.task()
    area = aligned(task, 2 * HUGE)
    task.store(area.pages(), (np.arange(1024) % 250 + 1).astype(np.uint8))
    room = aligned(task, 6 * HUGE)
    room.munmap()
    moved = task.mremap(area.addr, 2 * HUGE, 2 * HUGE, MREMAP_FIXED | MREMAP_MAYMOVE, room.addr)
    assert counts(always, "thp_split_pmd", "nr_anon_transparent_hugepages") == [0, 2]
    always.audit()
    again = task.mremap(moved.addr, 2 * HUGE, 2 * HUGE, MREMAP_FIXED | MREMAP_MAYMOVE, room.addr + 3 * HUGE + PAGE)
    assert counts(always, "thp_split_pmd") == [2]
    assert (task.load(again.pages(), np.uint8) == np.arange(1024) % 250 + 1).all()
    always.audit()


def test_vma_borders_split(always):
    task = always.task()
    area = aligned(task, HUGE).touch(stride=HUGE)
    task.madvise(area.addr + 7 * PAGE, PAGE, MADV_NOHUGEPAGE)
    assert counts(always, "thp_split_pmd") == [1]
    always.audit()


def test_pages_out_and_back_in(always):
    always_swap = always
    from numaemu.kernel.mm.swap import swapon

    swapon.swapon(always_swap.machine, "swap", 16 << 20, -1, "disk")
    task = always.task()
    area = aligned(task, HUGE)
    task.store(area.pages(), (np.arange(512) % 250 + 1).astype(np.uint8))
    task.madvise(area.addr, HUGE, MADV_PAGEOUT)
    assert counts(always, "nr_anon_transparent_hugepages") == [0] and counts(always, "pswpout")[0] > 500
    always.audit()
    assert (task.load(area.pages(), np.uint8) == np.arange(512) % 250 + 1).all()
    always.audit()


def test_move_pages_of_a_huge_page(always):
    task = always.task()
    area = aligned(task, 2 * HUGE)
    task.store(area.pages(), (np.arange(1024) % 250 + 1).astype(np.uint8))
    assert task.move_pages(area.pages()[:3], [1, 1, 1]).tolist() == [
        1,
        -errno.EBUSY,
        1,
    ]  # the first one takes all along
    assert area.nodes().tolist() == [1] * 512 + [0] * 512
    assert counts(always, "thp_migration_success", "thp_split_pmd", "pgmigrate_success") == [1, 0, 512]
    assert (task.load(area.pages(), np.uint8) == np.arange(1024) % 250 + 1).all()
    always.audit()


def test_mbind_moves_a_huge_page_whole(always):
    task = always.task()
    area = aligned(task, 2 * HUGE)
    task.store(area.pages(), (np.arange(1024) % 250 + 1).astype(np.uint8))
    task.mbind(area.addr, HUGE, MPOL_BIND, 1, MPOL_MF_MOVE)
    assert set(area.nodes()[:512].tolist()) == {1} and set(area.nodes()[512:].tolist()) == {0}
    assert counts(always, "thp_migration_success", "thp_split_pmd", "nr_anon_transparent_hugepages") == [1, 0, 2]
    assert (task.load(area.pages(), np.uint8) == np.arange(1024) % 250 + 1).all()
    always.audit()


def test_migrate_pages_moves_huge_pages_whole(always):
    task = always.task()
    area = aligned(task, 2 * HUGE)
    task.store(area.pages(), (np.arange(1024) % 250 + 1).astype(np.uint8))
    assert task.migrate_pages(0, 1) == 0
    assert set(area.nodes().tolist()) == {1}
    assert counts(always, "thp_migration_success", "thp_split_pmd", "nr_anon_transparent_hugepages") == [2, 0, 2]
    assert (task.load(area.pages(), np.uint8) == np.arange(1024) % 250 + 1).all()
    always.audit()


def test_a_huge_page_is_taken_apart_where_the_target_has_none_in_one_piece(always):
    task = always.task()
    area = aligned(task, 1 * HUGE)
    task.store(area.pages(), (np.arange(512) % 250 + 1).astype(np.uint8))
    always.write(f"{THP}/enabled", "never")
    crumbs = task.mmap(4 << 20)
    task.mbind(crumbs.addr, crumbs.nbytes, MPOL_BIND, 1)
    always.write("/proc/sys/vm/compact_unevictable_allowed", "0")  # what is locked cannot be moved together
    task.mlock(crumbs.addr, crumbs.nbytes)
    always.write("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "1000")  # all that is whole
    rest = task.mmap(64 << 10)  # and of what is left above the watermark
    task.mbind(rest.addr, rest.nbytes, MPOL_BIND, 1)
    task.mlock(rest.addr, rest.nbytes)
    for at in range(0, crumbs.nbytes, 8 * PAGE):
        task.munmap(crumbs.addr + at, PAGE)
        task.munmap(crumbs.addr + at + 4 * PAGE, PAGE)
    before = counts(always, "thp_migration_fail", "thp_migration_split", "thp_split_pmd")
    task.move_pages(area.pages()[:1], [1])
    after = counts(always, "thp_migration_fail", "thp_migration_split", "thp_split_pmd")
    assert [b - a for a, b in zip(before, after)] == [1, 1, 1]
    assert set(area.nodes().tolist()) == {1}
    assert (task.load(area.pages(), np.uint8) == np.arange(512) % 250 + 1).all()
    always.audit()


def test_one_flush_for_a_huge_page(always):
    task = always.task()
    area = aligned(task, 2 * HUGE).touch(stride=HUGE)
    before = counts(always, "nr_tlb_local_flush_one", "nr_tlb_local_flush_all")
    task.madvise(area.addr, 2 * HUGE, MADV_DONTNEED)
    after = counts(always, "nr_tlb_local_flush_one", "nr_tlb_local_flush_all")
    assert [b - a for a, b in zip(before, after)] == [2, 0]


def test_collapse_by_advice(loopback):
    machine = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")
    task = machine.task()
    area = aligned(task, 2 * HUGE)
    task.store(area.pages()[:600:2], (np.arange(300) % 250 + 1).astype(np.uint8))
    task.madvise(area.addr, HUGE, MADV_COLLAPSE)
    assert counts(machine, "thp_collapse_alloc", "nr_anon_transparent_hugepages") == [1, 1]
    machine.audit()
    assert (task.load(area.pages()[:600:2], np.uint8) == np.arange(300) % 250 + 1).all()
    assert task.load(area.pages()[1:600:2], np.uint8).tolist() == [0] * 300
    task.store([area.addr + PAGE], np.uint8(3))
    assert counts(machine, "nr_anon_transparent_hugepages") == [1]
    with pytest.raises(OSError):
        task.madvise(task.mmap(HUGE).addr, HUGE, MADV_COLLAPSE)  # nothing is there
    machine.audit()


def test_khugepaged_collapses_in_its_time(loopback):
    machine = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")
    task = machine.task()
    area = aligned(task, 2 * HUGE)
    area.touch()
    machine.write(f"{THP}/khugepaged/scan_sleep_millisecs", "10")
    machine.write(f"{THP}/khugepaged/pages_to_scan", "512")
    machine.write(f"{THP}/enabled", "always")
    for _ in range(8):
        task.sleep(20)
        machine.run_kthreads()
    assert counts(machine, "thp_collapse_alloc", "nr_anon_transparent_hugepages") == [2, 2]
    machine.audit()
    task.munmap(area.addr, HUGE + PAGE)
    assert counts(machine, "nr_anon_transparent_hugepages") == [0]
    machine.audit()


def test_what_khugepaged_reclaims_counts_as_its_own(loopback):
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="24MiB")
    machine.write(f"{THP}/khugepaged/scan_sleep_millisecs", "10")
    machine.write(f"{THP}/khugepaged/pages_to_scan", "512")
    task = machine.task()
    area = aligned(task, 8 * HUGE)
    task.store(area.addr + HUGE * np.arange(8, dtype=np.uint64), np.uint8(1))
    machine.create_file("/mnt/cached", 22 << 20)
    with task.open("/mnt/cached") as file:
        file.read_through()
    others = "pgscan_kswapd", "pgscan_direct", "pgsteal_kswapd", "pgsteal_direct"
    before = counts(machine, *others)
    assert counts(machine, "pgscan_khugepaged", "pgsteal_khugepaged") == [0, 0]
    machine.write(f"{THP}/enabled", "always")
    for _ in range(8):
        task.sleep(20)
        machine.run_kthreads()
    scanned, stolen = counts(machine, "pgscan_khugepaged", "pgsteal_khugepaged")
    assert scanned >= stolen > 0 and counts(machine, *others) == before
    assert sum(counts(machine, "pgscan_anon", "pgscan_file")) == scanned + before[0] + before[1]
    machine.audit()


@pytest.mark.parametrize("file", ["scan_sleep_millisecs", "alloc_sleep_millisecs"])
def test_a_new_sleep_of_khugepaged_ends_the_one_that_has_begun(loopback, file):
    """khugepaged_wait is woken: what has come since is collapsed at once, and the new sleep begins."""
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    task = machine.task()
    machine.write(f"{THP}/enabled", "always")
    task.sleep(1)
    machine.run_kthreads()
    machine.machine.khugepaged_next_ns = 3600 * 10**9  # it sleeps for an hour
    area = aligned(task, HUGE)
    task.madvise(area.addr, HUGE, MADV_NOHUGEPAGE)
    task.store(area.pages()[:8], np.uint64(1))
    task.madvise(area.addr, HUGE, MADV_HUGEPAGE)
    task.sleep(1)
    machine.run_kthreads()
    assert counts(machine, "thp_collapse_alloc") == [0]
    machine.write(f"{THP}/khugepaged/{file}", "5000")
    machine.run_kthreads()
    assert counts(machine, "thp_collapse_alloc") == [1]
    assert machine.machine.khugepaged_next_ns <= 11 * 10**9
    machine.audit()


def test_limits_of_khugepaged(loopback):
    machine = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")
    task = machine.task()
    area = aligned(task, HUGE)
    area.touch(stride=2 * PAGE)
    machine.write(f"{THP}/enabled", "always")
    machine.write(f"{THP}/khugepaged/max_ptes_none", "255")
    task.sleep(20_000)
    machine.run_kthreads()
    assert counts(machine, "thp_collapse_alloc") == [0]
    machine.write(f"{THP}/khugepaged/max_ptes_none", "256")
    for _ in range(3):
        task.sleep(20_000)
        machine.run_kthreads()
    assert counts(machine, "thp_collapse_alloc") == [1]
    machine.audit()


def test_a_huge_page_is_one_tlb_entry(always):
    task = always.task()
    area = aligned(task, HUGE).touch(stride=HUGE)
    task.load(area.pages(), np.uint8)
    before = task.counters()
    task.load(area.pages(), np.uint8)
    after = task.counters()
    assert after["page_walks"] - before["page_walks"] <= 1


@pytest.mark.parametrize(
    "paging, huge", [("x86-64-5level", HUGE), ("x86-32", 2 * HUGE), ("arm64-39", HUGE), ("arm64-48", HUGE)]
)
def test_other_formats(loopback, paging, huge):
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="64MiB", paging=paging)
    machine.write(f"{THP}/enabled", "always")
    machine.write("/proc/sys/vm/nr_hugepages", "2")
    task = machine.task()
    room = task.mmap(4 * huge)
    start = -(-room.addr // huge) * huge
    places = start + np.arange(2 * huge // PAGE, dtype=np.uint64) * np.uint64(PAGE)
    task.store(places[:3], np.uint8([1, 2, 3]))
    assert counts(machine, "thp_fault_alloc", "nr_anon_pages")[0] == 1 and task.counters()["task_minor_faults"] == 1
    assert task.load([start + huge], np.uint8)[0] == 0
    assert counts(machine, "thp_zero_page_alloc") == [1]
    child = task.fork()
    child.store(places[:1], np.uint8(9))
    task.munmap(start + PAGE, PAGE)
    assert counts(machine, "thp_split_pmd") == [2]
    assert child.load(places[:3], np.uint8).tolist() == [9, 2, 3] and task.load(places[2:3], np.uint8).tolist() == [3]
    machine.audit()
    child.madvise(start, huge, MADV_COLLAPSE)
    assert child.load(places[:3], np.uint8).tolist() == [9, 2, 3]
    pool = task.mmap(2 * huge, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)
    task.store([pool.addr + huge - 1, pool.addr + huge], np.uint8([4, 5]))
    assert task.load([pool.addr, pool.addr + huge - 1, pool.addr + huge], np.uint8).tolist() == [0, 4, 5]
    machine.audit()
    child.exit()
    machine.audit()


def test_a_huge_page_goes_back_in_one_piece(always):
    def blocks():
        lines = always.buddyinfo().splitlines()
        return sum(int(line.split()[4 + order]) << order - 9 for line in lines for order in (9, 10))

    task = always.task()
    before, area = blocks(), aligned(task, 4 * HUGE)
    area.touch(stride=HUGE)
    assert blocks() < before - 3
    area.munmap()
    assert blocks() >= before - 1  # page tables stay out
    always.audit()


def test_compaction_leaves_huge_pages_alone(always):
    task = always.task()
    area = aligned(task, 2 * HUGE).touch(stride=HUGE)
    crumbs = task.mmap(6 * HUGE + PAGE * 3)
    crumbs.touch(stride=PAGE)
    task.munmap(crumbs.addr, 6 * HUGE)
    always.write("/proc/sys/vm/compact_memory", "1")
    assert counts(always, "thp_migration_split") == [0] and area
    always.audit()


# fmt: off
STEPS = st.lists(st.tuples(st.sampled_from(["write", "write", "read", "fork", "exit", "drop", "collapse", "split", "move",
                                            "protect", "out", "sleep", "bind", "place", "migrate"]),
                           st.integers(0, 3), st.integers(0, 1023)), min_size=1, max_size=25)
# fmt: on


@given(STEPS)
def test_random_steps_against_a_dictionary(steps):
    """Faults, writes, forks, partial unmapping, collapse, split and swap in any order: bytes by task and page."""
    from numaemu.kernel.mm.swap import swapon

    with Loopback(None, nodes=2, cpus_per_node=1, memory_per_node="32MiB", **SMALL_TLB) as machine:
        machine.write(f"{THP}/enabled", "always")
        swapon.swapon(machine.machine, "swap", 8 << 20, -1, "disk")
        first = machine.task()
        area = aligned(first, 2 * HUGE)
        tasks = [(first, {})]
        for what, which, page in steps:
            task, memory = tasks[which % len(tasks)]
            where = area.addr + page * PAGE
            huge = where // HUGE * HUGE
            if what == "write":
                task.store([where + 5], np.uint8(page % 200 + which + 1))
                memory[page] = page % 200 + which + 1
            elif what == "read":
                assert task.load([where + 5], np.uint8)[0] == memory.get(page, 0)
            elif what == "fork" and len(tasks) < 3:
                tasks.append((task.fork(cpu=which % 2), dict(memory)))
            elif what == "exit" and len(tasks) > 1:
                task.exit()
                tasks.remove((task, memory))
            elif what == "drop":
                pages = min(which * 40 + 1, 1024 - page)
                task.madvise(where, pages * PAGE, MADV_DONTNEED)
                for gone in range(page, page + pages):
                    memory.pop(gone, None)
            elif what == "collapse":
                try:
                    task.madvise(huge, HUGE, MADV_COLLAPSE)
                except OSError as error:
                    assert error.errno in (errno.EINVAL, errno.EAGAIN, errno.ENOMEM)
            elif what == "split":
                task.madvise(where, PAGE, MADV_FREE if page not in memory else MADV_NOHUGEPAGE)
                task.madvise(where, PAGE, MADV_HUGEPAGE)
            elif what == "protect":
                task.mprotect(where, PAGE, PROT_READ)
                task.mprotect(where, PAGE, RW)
            elif what == "out":
                task.madvise(huge + which * 64 * PAGE, 64 * PAGE, MADV_PAGEOUT)
            elif what == "sleep":
                task.sleep(30_000)
                machine.run_kthreads()
            elif what == "bind":
                task.mbind(huge, HUGE, MPOL_BIND, which % 2, MPOL_MF_MOVE)
            elif what == "place":
                task.move_pages(np.uint64([where, where + PAGE * (page % 2), huge]), [which % 2] * 3)
            elif what == "migrate":
                task.migrate_pages(which % 2, 1 - which % 2)
            elif what == "move":
                room = task.mmap(4 * HUGE)
                room.munmap()
                try:
                    task.mremap(huge, HUGE, HUGE, MREMAP_FIXED | MREMAP_MAYMOVE, room.addr)
                except OSError as error:  # it consists of several mappings
                    assert error.errno == errno.EFAULT
                    continue
                task.mremap(room.addr, HUGE, HUGE, MREMAP_FIXED | MREMAP_MAYMOVE, huge)
            machine.audit()
        for task, memory in tasks:
            assert (task.load(area.pages() + np.uint64(5), np.uint8) == [memory.get(i, 0) for i in range(1024)]).all()
