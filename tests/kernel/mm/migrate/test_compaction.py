"""Compaction: scanners, hints and indices one by one, then all of it under random work and under CPUs that use the pages."""

import ctypes
import multiprocessing
import os
import pathlib
import resource
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from numaemu.kernel.arch.pgtable import pte_pfn
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.include.gfp import (
    __GFP_DIRECT_RECLAIM,
    __GFP_MOVABLE,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_TRANSHUGE,
)
from numaemu.kernel.include.internal import (
    COMPACT_DONE,
    COMPACT_PRIO_ASYNC,
    COMPACT_PRIO_SYNC_FULL,
    COMPACT_PRIO_SYNC_LIGHT,
    COMPACT_SKIPPED,
    pack_alloc,
)
from numaemu.kernel.include.mm_types import PG_anon, PG_locked, PG_lru, PG_used
from numaemu.kernel.include.mmzone import MIGRATE_MOVABLE, node_of, zone_t
from numaemu.kernel.mm.migrate.compact_control import (
    COMPACT_ALL,
    MIGRATE_SYNC,
    compact_control_of,
    compaction_defer_reset,
    compaction_deferred,
    defer_compaction,
    get_pageblock_skip,
)
from numaemu.kernel.mm.migrate.compaction import direct_compact, place_scanners, release_freepages
from numaemu.kernel.mm.migrate.free_scanner import isolate_freepages
from numaemu.kernel.mm.migrate.kcompactd import compact_node, proactive_compact_node, wakeup_kcompactd
from numaemu.kernel.mm.migrate.migrate import batch_of
from numaemu.kernel.mm.migrate.migrate_scanner import isolate_migratepages, isolate_migratepages_block, putback_from
from numaemu.kernel.mm.page_alloc.fragmentation import extfrag_for_order, fragmentation_index, unusable_free_index
from numaemu.node import MAP_AHEAD, MAP_PAGES, map_ahead
from numaemu.uapi import MADV_DONTNEED, MAP_ANONYMOUS, MAP_SHARED

U = np.uint64
PAGE = 4096


def fragmented(loop, pages=6000, keep=2, task=None):
    """A task whose every `keep`-th page of a mapping is left, the word i + 1 in page i: (task, addresses, words)."""
    task = task or loop.task()
    area = task.mmap(pages * PAGE)
    addresses, words = area.pages(), np.arange(1, pages + 1, dtype=U)
    task.store(addresses + U(8), words)
    for i in range(0, pages, keep):
        task.madvise(int(addresses[i]), (keep - 1) * PAGE, MADV_DONTNEED)
    kept = np.arange(pages) % keep == keep - 1
    loop.audit()  # what waits for its LRU list is on it
    loop.drain()
    return task, addresses[kept] + U(8), words[kept]


def intact(task, addresses, words):
    return (task.load(addresses) == words).all()


def free_pages(loop, order):
    """Pages that lie in free blocks of at least this order."""
    counts = [line.split()[-11:] for line in loop.buddyinfo().splitlines()]
    return sum(int(n) << o for row in counts for o, n in enumerate(row) if o >= order)


def control(loop, zone, order=COMPACT_ALL, **fields):
    """The compact_control of CPU 0, ready to begin on a zone."""
    cc = compact_control_of(loop.machine, 0)
    for name in cc.struct.kinds:
        setattr(cc, name, 0)
    cc.zone, cc.order, cc.gfp, cc.mode, cc.migratetype = zone.number, order, GFP_KERNEL, MIGRATE_SYNC, MIGRATE_MOVABLE
    cc.whole_zone = 1
    for name, value in fields.items():
        setattr(cc, name, value)
    place_scanners(loop.machine, cc)
    batch_of(loop.machine, loop.cpu(0)).nr = 0
    return cc


@pytest.fixture
def one_node(loopback):
    return loopback(nodes=1, cpus_per_node=1, memory_per_node="32MiB", sysctl={"vm.min_free_kbytes": 256})


# -- the whole of it -----------------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_compact_memory_makes_large_blocks(loopback):
    """Every other page is used: no block of 2 MiB before, nearly everything in such blocks after; contents unharmed."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", sysctl={"vm.min_free_kbytes": 256})
    task, addresses, words = fragmented(loop, 3400)
    before = free_pages(loop, 9)
    loop.write("/proc/sys/vm/compact_memory", "1")
    loop.audit()
    loop.drain()
    counts = loop.vmstat()
    assert free_pages(loop, 9) >= before + 2 * 512
    assert counts["pgmigrate_success"] > 500 and counts["pgmigrate_fail"] == 0
    assert counts["compact_isolated"] >= 2 * counts["pgmigrate_success"]
    assert counts["compact_migrate_scanned"] > 0 and counts["compact_free_scanned"] > 0
    assert counts["nr_isolated_anon"] == 0
    assert intact(task, addresses, words)
    loop.audit()


def test_every_kind_of_page(loopback):
    """Private, shared with children by copy on write, of a shared object, of one whose users are gone but one."""
    loop = loopback(nodes=1, cpus_per_node=2, memory_per_node="32MiB", sysctl={"vm.min_free_kbytes": 256})
    task, addresses, words = fragmented(loop, 4000)
    shared = task.mmap(300 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS)
    task.store(shared.pages(), np.arange(300, dtype=U))
    children = [task.fork(cpu=n) for n in (0, 1)]
    task.munmap(shared.addr, shared.nbytes)
    loop.write("/sys/devices/system/node/node0/compact", "1")
    assert loop.vmstat()["pgmigrate_success"] > 800
    for child in children:
        assert intact(child, addresses, words)
        assert child.load(shared.pages()).tolist() == list(range(300))
        child.store(addresses, words + U(7))
    assert intact(task, addresses, words)
    loop.audit()
    for child in children:
        child.exit()
    loop.write("/proc/sys/vm/compact_memory", "1")
    assert intact(task, addresses, words)
    loop.audit()


def test_cached_pages_of_files_that_nobody_maps(one_node):
    """Clean and dirty ones, between pages of a file that is deleted."""
    pages, task = 2000, one_node.task()
    for name in ("kept", "gone"):
        one_node.create_file(f"/mnt/{name}", pages * PAGE, len(name))
    with task.open("/mnt/kept", os.O_RDWR) as kept, task.open("/mnt/gone", os.O_RDONLY) as gone:
        for i in range(pages):  # read ahead, in turns of so much
            for file in (kept, gone):
                file.pread(8, i * PAGE)
        expected = np.frombuffer(kept.pread(pages * PAGE, 0), U).reshape(pages, -1).copy()
        expected[::5, 3] = 77
        for i in range(0, pages, 5):
            kept.pwrite(expected[i].tobytes(), i * PAGE)
    one_node.system("unlink", "/mnt/gone")
    before = one_node.vmstat()
    one_node.write("/proc/sys/vm/compact_memory", "1")
    after = one_node.vmstat()
    assert after["pgmigrate_success"] - before["pgmigrate_success"] > pages // 3
    assert after["nr_dirty"] == before["nr_dirty"] and after["nr_file_pages"] == before["nr_file_pages"]
    one_node.audit()
    with task.open("/mnt/kept", os.O_RDWR) as kept:
        faults = one_node.vmstat()["pgpgin"]
        assert (np.frombuffer(kept.pread(pages * PAGE, 0), U).reshape(pages, -1) == expected).all()
        assert one_node.vmstat()["pgpgin"] == faults  # all of it from the cache
        one_node.system("drop_caches")
        assert (np.frombuffer(kept.pread(pages * PAGE, 0), U).reshape(pages, -1) == expected).all()
    one_node.audit()


def test_twice_is_as_good_as_once(one_node):
    task, addresses, words = fragmented(one_node)
    one_node.write("/proc/sys/vm/compact_memory", "1")
    once = one_node.vmstat()["pgmigrate_success"]
    one_node.write("/proc/sys/vm/compact_memory", "1")
    assert one_node.vmstat()["pgmigrate_success"] - once < once // 10
    assert intact(task, addresses, words)
    one_node.audit()


def test_one_shootdown_for_many_pages(loopback):
    """The task runs on CPU 1, CPU 0 compacts: 512 pages to a shootdown."""
    loop = loopback(nodes=1, cpus_per_node=2, memory_per_node="64MiB", sysctl={"vm.min_free_kbytes": 256})
    fragmented(loop, 12000, task=loop.task(cpu=1))
    before = loop.vmstat()
    compact_node(loop.cpu(0), 0, False)
    after = loop.vmstat()
    moved = after["pgmigrate_success"] - before["pgmigrate_success"]
    assert moved > 2000
    assert after["nr_tlb_remote_flush"] - before["nr_tlb_remote_flush"] < moved // 50
    loop.audit()


# -- the scanners ----------------------------------------------------------------------------------------------------


def test_migrate_scanner_takes_what_is_on_a_list(one_node):
    """All of a pageblock's LRU pages, locked and off their lists; busy ones stay; put back, all is as before."""
    task, _, _ = fragmented(one_node)
    zone = one_node.zones()[1]
    cc = control(one_node, zone, cluster=512)
    block = int(zone.start_pfn) + 512
    on_lists = [pfn for pfn in range(block, block + 512) if one_node.page(pfn).flags & U(PG_lru)]
    busy = one_node.page(on_lists[3])
    busy.flags |= U(PG_locked)
    assert isolate_migratepages_block(one_node.cpu(), cc, block, block + 512) == block + 512
    batch = batch_of(one_node.machine, one_node.cpu())
    taken = [batch.old[i] for i in range(batch.nr)]
    assert taken == on_lists[:3] + on_lists[4:]
    for pfn in taken:
        page = one_node.page(pfn)
        assert page.flags & U(PG_locked) and page.flags & U(PG_anon) and not page.flags & U(PG_lru)
        assert (page.refcount, page.mapcount) == (2, 1)
    assert cc.total_migrate_scanned == 512
    putback_from(one_node.cpu(), 0)
    busy.flags &= ~U(PG_locked)
    one_node.audit()
    assert [pfn for pfn in range(block, block + 512) if one_node.page(pfn).flags & U(PG_lru)] == on_lists


def test_migrate_scanner_leaves_pages_that_somebody_holds(one_node):
    task, addresses, _ = fragmented(one_node)
    pfn = int(pte_pfn(U(one_node.pte(task, int(addresses[100])))))
    one_node.page(pfn).refcount += 1
    zone = one_node.zones()[1]
    block = pfn & ~511
    cc = control(one_node, zone, cluster=512)
    isolate_migratepages_block(one_node.cpu(), cc, block, block + 512)
    batch = batch_of(one_node.machine, one_node.cpu())
    assert batch.nr > 200 and pfn not in [batch.old[i] for i in range(batch.nr)]
    putback_from(one_node.cpu(), 0)
    one_node.page(pfn).refcount -= 1
    one_node.audit()


def test_free_scanner_goes_down_from_the_end(one_node):
    """A chain of at least as many pages as asked for, from the highest pageblocks that are not wholly free."""
    fragmented(one_node)
    zone = one_node.zones()[1]
    cc, before = control(one_node, zone, nr_migratepages=300), zone.free_pages
    isolate_freepages(one_node.machine, 0)
    chain, pfn = [], cc.freepages
    while pfn:
        chain.append(pfn)
        pfn = one_node.page(pfn).lru_next
    assert len(chain) == len(set(chain)) == cc.nr_freepages == before - zone.free_pages >= 300
    assert cc.last_freepage == chain[-1]
    blocks = [pfn // 512 for pfn in chain]
    assert blocks == sorted(blocks, reverse=True) and min(chain) >= cc.free_pfn & ~511
    assert cc.free_isolated == len(chain) and cc.total_free_scanned >= len(chain)
    release_freepages(one_node.cpu(), cc)
    one_node.drain()
    assert zone.free_pages == before
    one_node.audit()


def test_free_scanner_leaves_untouched_memory_alone(loopback):
    """What was never used is free in the largest blocks: nothing is moved there."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="64MiB")
    fragmented(loop, 2000)
    zone = loop.zones()[-1]
    virgin = zone.virgin_pfn
    loop.write("/proc/sys/vm/compact_memory", "1")
    assert virgin <= zone.virgin_pfn < virgin + 1024
    loop.audit()


def test_free_scanner_keeps_the_min_watermark(one_node):
    fragmented(one_node)
    zone = one_node.zones()[1]
    cc = control(one_node, zone, nr_migratepages=1 << 20)
    isolate_freepages(one_node.machine, 0)
    assert zone.free_pages >= zone.watermark[0]
    release_freepages(one_node.cpu(), cc)
    one_node.audit()


def test_skip_hints(one_node):
    """A pageblock where nothing was found is skipped until the hints are cleared; compact_memory ignores them."""
    fragmented(one_node)
    zone = one_node.zones()[1]
    cc = control(one_node, zone, cluster=512)
    cc.migrate_pfn = int(zone.start_pfn)
    assert isolate_migratepages(one_node.cpu(), cc)
    start = batch_of(one_node.machine, one_node.cpu()).old[0] & -512  # the first movable pageblock
    putback_from(one_node.cpu(), 0)
    assert get_pageblock_skip(one_node.machine, start)
    cc = control(one_node, zone)
    isolate_migratepages(one_node.cpu(), cc)
    assert batch_of(one_node.machine, one_node.cpu()).old[0] >= start + 512
    putback_from(one_node.cpu(), 0)
    cc = control(one_node, zone, ignore_skip_hint=1)
    isolate_migratepages(one_node.cpu(), cc)
    assert batch_of(one_node.machine, one_node.cpu()).old[0] < start + 512
    putback_from(one_node.cpu(), 0)
    one_node.audit()


def test_blocks_of_64_kib_come_by_moving_too(loopback):
    """Hurried compaction for a small order asks for few free pages each time, and must not use pageblocks up for them."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="64MiB", sysctl={"vm.min_free_kbytes": 256})
    task, addresses, words = fragmented(loop, 14000)
    while task.kernel.alloc_pages(GFP_TRANSHUGE & ~__GFP_DIRECT_RECLAIM, 4):
        pass
    before = loop.vmstat()
    blocks = [task.kernel.alloc_pages(GFP_TRANSHUGE, 4) for _ in range(128)]
    counts = {name: n - before[name] for name, n in loop.vmstat().items()}
    assert all(blocks) and counts["compact_fail"] == counts["allocstall_movable"] == 0
    assert 900 < counts["pgmigrate_success"] < 1500  # of each block half the pages, in pageblocks of 32 blocks
    assert intact(task, addresses, words)
    loop.audit()


# -- frames mapped ahead -------------------------------------------------------------------------------------------


def scanners(loop, migrate_pfn, free_pfn):
    """The context of node 0's kernel threads, and its compact_control with the scanners at these pages of the last zone."""
    context = loop.machine.nr_cpus
    cc = compact_control_of(loop.machine, context)
    cc.zone, cc.migrate_pfn, cc.free_pfn = loop.zones()[-1].number, migrate_pfn, free_pfn
    return context, cc


def resident(loop, zone):
    """Frames of a zone that the host has given memory to."""
    present = (ctypes.c_ubyte * zone.spanned_pages)()
    address = int(loop.machine.memory) + zone.start_pfn * PAGE
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(present) * PAGE), present) == 0
    return sum(byte & 1 for byte in present)


@pytest.mark.interpreted
def test_frames_are_mapped_ahead_of_both_scanners(loopback):
    """No further than MAP_AHEAD or where the scanners meet, for the node's own context only; what was never used costs
    the host nothing.
    """
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="64MiB", sysctl={"vm.min_free_kbytes": 256})
    fragmented(loop, 300)
    machine, node, zone = loop.machine, node_of(loop.machine, 0), loop.zones()[-1]
    start, before = zone.start_pfn, resident(loop, zone)
    context, cc = scanners(loop, start + 100, start + 7000)
    assert before < zone.spanned_pages // 2
    while map_ahead(machine, context):
        pass
    assert (node.map_source, node.map_target) == (start + 96 + MAP_AHEAD, start + 7168 - MAP_AHEAD)
    assert resident(loop, zone) == before
    assert not map_ahead(machine, 0)
    cc.migrate_pfn += MAP_PAGES  # goes on where it was
    assert map_ahead(machine, context) and not map_ahead(machine, context)
    assert node.map_source == start + 112 + MAP_AHEAD
    cc.migrate_pfn, cc.free_pfn = start, start + 600  # another compaction
    assert map_ahead(machine, context) and node.map_source == start + MAP_PAGES
    while map_ahead(machine, context):
        pass
    assert (node.map_source, node.map_target) == (start + 1024, start)
    assert resident(loop, zone) == before


def read_frames(loop, pfns, ahead, answer):
    """In a process that has mapped nothing yet, as a node's: its host faults while it reads a word of each frame."""
    context = loop.machine.nr_cpus
    while ahead and map_ahead(loop.machine, context):
        pass
    words = np.array(pfns, U) * U(PAGE) + loop.machine.memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for address in words.tolist():
        ctypes.c_uint64.from_address(address).value
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def test_a_process_that_maps_ahead_has_no_host_faults_later(one_node):
    fragmented(one_node)
    zone = one_node.zones()[-1]
    end = zone.start_pfn + zone.spanned_pages
    assert zone.spanned_pages <= 2 * MAP_AHEAD
    used = [pfn for pfn in range(zone.start_pfn, end, MAP_PAGES) if one_node.page(pfn).flags & PG_used]
    scanners(one_node, zone.start_pfn, end - 1)
    context, faults = multiprocessing.get_context("fork"), []
    for ahead in (False, True):
        answer = context.SimpleQueue()
        child = context.Process(target=read_frames, args=(one_node, used, ahead, answer))
        child.start()
        child.join()
        faults.append(answer.get())
    assert len(used) > 100 and faults[0] > len(used) // 2 and faults[1] < faults[0] // 2  # the host may map less around


# -- indices: Linux's formulas by hand ---------------------------------------------------------------------------------


def zone_with(blocks):
    """A zone with so many free blocks of each order (movable ones), outside any machine."""
    memory = np.zeros(zone_t.nbytes, np.uint8)
    zone = zone_t.at(memory.ctypes.data)
    for order, n in enumerate(blocks):
        zone.free_area[order].nr_free[MIGRATE_MOVABLE] = n
    return zone, memory


@pytest.mark.parametrize("blocks, order, extfrag, unusable", [
    ([], 0, 0, 1000),                    # nothing is free: lack of memory
    ([10, 3], 0, -1000, 0),              # an allocation succeeds
    ([10, 3], 1, -1000, 625),            # 10 of 16 pages
    ([10, 3], 2, 616, 1000),             # 1000 - (1000 + 16 * 1000 / 4) / 13
    ([1], 9, -1, 1000),                  # 1000 - (1000 + 1000 / 512) / 1
    ([600], 9, 997, 1000),               # 1000 - (1000 + 600000 / 512) / 600
])  # fmt: skip
@pytest.mark.interpreted
def test_indices(blocks, order, extfrag, unusable):
    zone, _memory = zone_with(blocks)
    assert fragmentation_index(zone, order) == extfrag
    assert unusable_free_index(zone, order) == unusable
    assert extfrag_for_order(zone, order) == (unusable // 10 if blocks else 0)


def test_unusable_index_of_a_recorded_zone():
    """Buddyinfo and unusable_index of Linux 6.12."""
    zone, _memory = zone_with([0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 3])
    line = "0.000 0.000 0.000 0.000 0.000 0.000 0.008 0.025 0.058 0.058 0.193"
    assert " ".join(f"{unusable_free_index(zone, order) / 1000:.3f}" for order in range(11)) == line


def test_extfrag_files(two_nodes):
    system = two_nodes.actors[0].system
    unusable = proc.read(system, "/sys/kernel/debug/extfrag/unusable_index").splitlines()
    extfrag = proc.read(system, "/sys/kernel/debug/extfrag/extfrag_index").splitlines()
    assert [line[:22] for line in unusable] == [line[:22] for line in extfrag]
    assert unusable[-1] == "Node 1, zone    DMA32 " + "0.000 " * 11
    assert extfrag[-1] == "Node 1, zone    DMA32 " + "-1.000 " * 11


# -- for an allocation ---------------------------------------------------------------------------------------------------


def on_compact(loop, order, prio, gfp=GFP_HIGHUSER_MOVABLE):
    """What the slow path does."""
    return int(direct_compact(int(loop.cpu().address), pack_alloc(gfp, order, prio), 1))


@pytest.mark.parametrize("prio", [COMPACT_PRIO_ASYNC, COMPACT_PRIO_SYNC_LIGHT, COMPACT_PRIO_SYNC_FULL])
def test_direct_compaction_makes_one_block_and_stops(loopback, prio):
    """An order that only compaction can serve: served afterwards, long before everything is compacted."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="64MiB", sysctl={"vm.min_free_kbytes": 256})
    task, addresses, words = fragmented(loop, 14000)
    order = 8
    while free_pages(loop, order):
        task.kernel.alloc_pages(__GFP_MOVABLE, order)
    status = on_compact(loop, order, prio)
    loop.drain()
    assert status == COMPACT_DONE and free_pages(loop, order) >= 1 << order
    assert 0 < loop.vmstat()["pgmigrate_success"] < 3000
    assert intact(task, addresses, words)
    loop.audit()


def test_direct_compaction_is_skipped_where_it_cannot_help(loopback):
    """Without memory to move into, or for an allocation that must not start I/O."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", sysctl={"vm.min_free_kbytes": 8192})
    fragmented(loop, 1500)
    assert on_compact(loop, 9, COMPACT_PRIO_SYNC_LIGHT) in (COMPACT_SKIPPED, COMPACT_DONE)
    assert on_compact(loop, 9, COMPACT_PRIO_SYNC_LIGHT, gfp=__GFP_MOVABLE) == COMPACT_SKIPPED
    assert loop.vmstat()["pgmigrate_success"] == 0


def test_deferring():
    """Failures are followed by 1, 3, 7 … skipped attempts, up to 63; another order is not concerned."""
    zone, _memory = zone_with([])
    skipped = []
    for _ in range(8):
        defer_compaction(zone, 5)
        n = 0
        while compaction_deferred(zone, 5):
            n += 1
        skipped.append(n)
        assert not compaction_deferred(zone, 4) or zone.compact_order_failed <= 4
    assert skipped == [1, 3, 7, 15, 31, 63, 63, 63]
    compaction_defer_reset(zone, 5, True)
    assert zone.compact_order_failed == 6 and not compaction_deferred(zone, 6)


# -- kcompactd -------------------------------------------------------------------------------------------------------------


def test_kcompactd(loopback):
    """Woken for an order, it makes such blocks, counts what it did and forgets the order."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="64MiB", sysctl={"vm.min_free_kbytes": 256})
    task, addresses, words = fragmented(loop, 14000)
    while free_pages(loop, 8):
        task.kernel.alloc_pages(__GFP_MOVABLE, 8)
    node = node_of(loop.machine, 0)
    wakeup_kcompactd(loop.cpu(), 0, 0, 2)
    assert not node.kthread_pending and loop.vmstat()["compact_daemon_wake"] == 0
    wakeup_kcompactd(loop.cpu(), 0, 8, 2)
    assert node.kcompactd_max_order == 8
    loop.run_kthreads()
    loop.drain()
    counts = loop.vmstat()
    assert free_pages(loop, 8) >= 256 and node.kcompactd_max_order == 0
    assert counts["compact_daemon_wake"] == 1
    assert counts["compact_daemon_migrate_scanned"] == counts["compact_migrate_scanned"] > 0
    assert counts["compact_daemon_free_scanned"] == counts["compact_free_scanned"] > 0
    assert intact(task, addresses, words)
    loop.audit()


def test_proactive_compaction(one_node):
    """Above the mark it compacts, no more often than each 500 ms; with proactiveness 0 never."""
    task, addresses, words = fragmented(one_node)
    cpu, ms = one_node.cpu(), 1_000_000
    one_node.write("/proc/sys/vm/compaction_proactiveness", "0")
    assert not proactive_compact_node(cpu, 0, 0)
    one_node.write("/proc/sys/vm/compaction_proactiveness", "50")
    assert proactive_compact_node(cpu, 0, 10 * ms)
    moved = one_node.vmstat()["pgmigrate_success"]
    assert moved > 0 and one_node.vmstat()["compact_daemon_migrate_scanned"] > 0
    assert not proactive_compact_node(cpu, 0, 509 * ms)
    proactive_compact_node(cpu, 0, 511 * ms)
    assert intact(task, addresses, words)
    one_node.audit()


def test_proactive_compaction_by_the_clock(loopback):
    """Nobody asks: 500 ms of emulated time go by, and the node is compacted; in vain, it waits for 32 s."""
    loop = loopback(
        nodes=1,
        cpus_per_node=1,
        memory_per_node="32MiB",
        sysctl={"vm.min_free_kbytes": 256, "vm.compaction_proactiveness": 100},
    )
    node, counts = node_of(loop.machine, 0), loop.vmstat
    task = loop.task()
    loop.write("/proc/sys/vm/compaction_proactiveness", "0")
    task, addresses, words = fragmented(loop, 6000, task=task)
    task.sleep(5000)
    assert counts()["pgmigrate_success"] == 0 and node.proactive_next_ns == 0
    loop.write("/proc/sys/vm/compaction_proactiveness", "100")
    task.sleep(600)
    moved = counts()["pgmigrate_success"]
    assert moved > 1000 and counts()["compact_daemon_migrate_scanned"] > 0 and counts()["compact_daemon_wake"] == 0
    assert node.proactive_next_ns > task.clock_ns - 600_000_000
    assert intact(task, addresses, words)


def test_proactive_compaction_in_vain_waits_longer(loopback):
    """Pages that cannot move leave the score as it was: the next look comes after 64 intervals, a write makes it now."""
    loop = loopback(
        nodes=1,
        cpus_per_node=1,
        memory_per_node="32MiB",
        sysctl={"vm.min_free_kbytes": 256, "vm.compaction_proactiveness": 100},
    )
    task, node = loop.task(), node_of(loop.machine, 0)
    pages = [task.kernel.alloc_pages(GFP_KERNEL, 0) for _ in range(6000)]
    for pfn in pages[::2]:
        task.kernel.free_pages(pfn, 0)
    loop.drain()
    before = task.clock_ns
    task.sleep(1000)
    assert node.proactive_next_ns >= before + (500_000_000 << 6)
    waited = node.proactive_next_ns
    task.sleep(1000)
    assert node.proactive_next_ns == waited
    loop.write("/proc/sys/vm/compaction_proactiveness", "99")
    assert node.proactive_compact_trigger == 1
    task.sleep(1)
    assert node.proactive_compact_trigger == 0 and node.proactive_next_ns > waited


# -- settings ---------------------------------------------------------------------------------------------------------------


def test_settings(machine):
    for value in ("0", "2", "x", ""):
        with pytest.raises(OSError, match="compact_memory"):
            machine.write("/proc/sys/vm/compact_memory", value)
    with pytest.raises(PermissionError):
        machine.read("/proc/sys/vm/compact_memory")
    with pytest.raises(PermissionError):
        machine.read("/sys/devices/system/node/node0/compact")
    for name, value in (
        ("extfrag_threshold", "500\n"),
        ("compaction_proactiveness", "20\n"),
        ("compact_unevictable_allowed", "1\n"),
    ):
        assert machine.read(f"/proc/sys/vm/{name}") == value
    with pytest.raises(OSError, match="must be 0 to 1000"):
        machine.write("/proc/sys/vm/extfrag_threshold", "1001")


# -- random work ------------------------------------------------------------------------------------------------------------

# fmt: off
WORK = st.lists(st.one_of(
    st.tuples(st.just("touch"), st.integers(0, 3), st.integers(0, 700), st.integers(1, 700)),
    st.tuples(st.just("drop"), st.integers(0, 3), st.integers(0, 700), st.integers(1, 300)),
    st.tuples(st.just("stripe"), st.integers(0, 3), st.integers(2, 5), st.just(0)),
    st.tuples(st.just("fork"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("compact"), st.integers(0, 3), st.integers(1, 9), st.just(0)),
    st.tuples(st.just("all"), st.just(0), st.just(0), st.just(0))), min_size=4, max_size=14)
# fmt: on


@hypothesis.given(WORK)
def test_random_work(work):
    """Pages come and go in four mappings, shared by forks, compaction of all kinds in between; nothing is lost."""
    from loopback import SMALL_TLB, Loopback

    with Loopback(
        nodes=1, cpus_per_node=2, memory_per_node="16MiB", sysctl={"vm.min_free_kbytes": 256}, **SMALL_TLB
    ) as loop:
        task, pages = loop.task(), 800
        flags = [MAP_SHARED | MAP_ANONYMOUS] + [None] * 3
        areas = [task.mmap(pages * PAGE, flags=f) if f else task.mmap(pages * PAGE) for f in flags]
        model, children = np.zeros((4, pages), np.int64), []
        stamp = 1
        for kind, which, first, n in work:
            area, last = areas[which], min(first + n, pages)
            if kind == "touch" and first < last:
                stamp += 1
                task.store(area.pages()[first:last] + U(16), np.full(last - first, stamp, U))
                model[which, first:last] = stamp
            elif kind == "drop" and first < last and which:
                task.madvise(area.addr + first * PAGE, (last - first) * PAGE, MADV_DONTNEED)
                model[which, first:last] = 0
            elif kind == "stripe" and which:
                for page in range(0, pages, first):
                    task.madvise(area.addr + page * PAGE, PAGE, MADV_DONTNEED)
                model[which, ::first] = 0
            elif kind == "fork" and len(children) < 2:
                children.append((task.fork(cpu=1), model.copy()))
            elif kind == "compact":
                on_compact(loop, first, which % 3)
            else:
                loop.write("/proc/sys/vm/compact_memory", "1")
            loop.audit()
        for who, expected in [(task, model), *children]:
            for which in range(1, 4):
                assert (who.load(areas[which].pages() + U(16)).astype(np.int64) == expected[which]).all()
            assert (who.load(areas[0].pages() + U(16)).astype(np.int64) == model[0]).all()
        loop.audit()


# -- under CPUs that use the pages --------------------------------------------------------------------------------------------


def test_compaction_while_every_cpu_works():
    """The stories of the stress workload on all CPUs, verified word by word, and compaction again and again meanwhile."""
    from numaemu.machine import Machine

    sys.path.insert(0, str(pathlib.Path(__file__).parents[4] / "workloads"))
    import stress

    with Machine(nodes=2, cpus_per_node=2, memory_per_node="64MiB") as machine:
        cpus = [cpu.id for cpu in machine.cpus]
        for seed in range(1, 4):
            stories = [story for story in stress.STORIES if story is not stress.hog]
            handles = [
                machine.spawn(story, 100 * seed + i, cpus, [0, 1], 300, cpu=cpus[i % len(cpus)])
                for i, story in enumerate(stories * 2)
            ]
            rounds = 0
            while not all(handle.done() for handle in handles):
                machine.write("/proc/sys/vm/compact_memory", "1")
                rounds += 1
            assert all(handle.result() > 0 for handle in handles) and rounds > 0
            machine.check()
        counts = machine.stats()["vmstat"]
        assert counts["compact_migrate_scanned"] > 0 and counts["pgmigrate_success"] > 0
