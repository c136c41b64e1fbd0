"""Compaction's migrate scanner: movable pages leave their LRU lists by pageblock. Part of Linux's mm/compaction.c.

It holds nobody's mmap_lock. What keeps the reverse map alive is a hold on each page's family (folio_hold_mapping); a
page on an LRU list under the lru_lock is not freed, so a reference to it is taken there.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u8
from numaemu.kernel.core.smp import let_others_run, machine_of
from numaemu.kernel.include.gfp import __GFP_FS
from numaemu.kernel.include.mm_types import PG_anon, PG_buddy, PG_locked, PG_lru, PG_unevictable
from numaemu.kernel.include.mmzone import LRU_UNEVICTABLE, lruvec_of, page_of, zone_of
from numaemu.kernel.include.trace import MM_COMPACTION_ISOLATE_MIGRATEPAGES, trace_event
from numaemu.kernel.include.vmstat import (
    COMPACT_ISOLATED,
    NR_ISOLATED_ANON,
    NR_ISOLATED_FILE,
    count_vm_events,
    percpu_of,
)
from numaemu.kernel.mm.cache.shmem import folio_hold_mapping, release_mapping
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages
from numaemu.kernel.mm.huge.split import is_huge_mapped
from numaemu.kernel.mm.migrate.compact_control import (
    COMPACT_ALL,
    COMPACT_CLUSTER_MAX,
    MIGRATE_ASYNC,
    get_pageblock_skip,
    isolation_suitable,
    pageblock_end,
    pageblock_start,
    set_pageblock_skip,
)
from numaemu.kernel.mm.migrate.migrate import NR_MAX_BATCHED_MIGRATION, batch_of, putback_page
from numaemu.kernel.mm.page_alloc.page_alloc import put_page, try_get_page
from numaemu.kernel.mm.page_alloc.slowpath import fatal_signal_pending
from numaemu.kernel.mm.reclaim.lru import (
    folio_clear,
    folio_set,
    folio_test,
    lruvec_del_folio,
    relock_lruvec,
    unlock_lruvec,
)
from numaemu.kernel.mm.reclaim.lru_batches import count_isolated
from numaemu.spec.param import MAX_ORDER, PAGEBLOCK_ORDER

U = np.uint64
LOCK_PAGES = 64  # scanned under one hold of the lru_lock
THROTTLE_TRIES = 100  # how often too many isolated pages are waited for; assumed
ISOLATED, NOT_MOVABLE, NOT_OURS = range(3)  # of isolate_folio; NOT_OURS: a reference is to be dropped


@kernel("i64(cpu_t*, compact_control_t*, i64)")
def isolate_folio(cpu, cc, pfn):
    """Take a movable page off its LRU list into the batch, locked. The lru_lock is held."""
    machine = machine_of(cpu)
    page, batch = page_of(machine, pfn), batch_of(machine, cpu)
    if not folio_test(page, PG_lru):
        return NOT_MOVABLE
    if folio_test(page, PG_unevictable) and machine.compact_unevictable_allowed == 0 and cc.alloc_contig == 0:
        return NOT_MOVABLE
    anon = folio_test(page, PG_anon)
    if not anon and cc.gfp & __GFP_FS == 0:
        return NOT_MOVABLE
    if not try_get_page(page):
        return NOT_MOVABLE
    if anon and load_acquire(page, "refcount") - 1 > load_acquire(page, "mapcount"):
        return NOT_OURS  # somebody holds on to it
    if folio_set(page, PG_locked):
        return NOT_OURS
    if not folio_clear(page, PG_lru):
        folio_clear(page, PG_locked)
        return NOT_OURS
    lruvec_del_folio(machine, lruvec_of(machine, zone_of(machine, cc.zone).node), pfn)
    count_isolated(machine, cpu, pfn, 1)
    batch.old[batch.nr], batch.vaddr[batch.nr], batch.place[batch.nr] = pfn, U(0), 0
    batch.nr += 1
    return ISOLATED


@kernel("void(cpu_t*, i64)")
def putback_from(cpu, first):
    """The pages of the batch from `first` on go back to their lists."""
    batch = batch_of(machine_of(cpu), cpu)
    for i in range(first, batch.nr):
        if batch.place[i] != 0:
            release_mapping(cpu, batch.place[i])
        putback_page(cpu, batch.old[i], False)
    batch.nr = first


@kernel("void(cpu_t*, i64)")
def hold_mappings(cpu, first):
    """Hold the family of every page of the batch from `first` on; pages that are nobody's any more go back."""
    batch = batch_of(machine_of(cpu), cpu)
    kept = first
    for i in range(first, batch.nr):
        mapping = folio_hold_mapping(cpu, batch.old[i])
        if mapping == 0:
            putback_page(cpu, batch.old[i], False)
            continue
        batch.old[kept], batch.place[kept] = batch.old[i], mapping
        kept += 1
    batch.nr = kept


@hot
def free_span(machine, zone, pfn, end):
    """Pages of the free block that begins at `pfn`, 0 if none does. A hint: its order may change meanwhile."""
    if zone.virgin_pfn <= pfn < zone.virgin_end:
        return min(end, zone.virgin_end) - pfn
    page = page_of(machine, pfn)
    if page.flags & U(PG_buddy) == U(0):
        return 0
    order = page.private
    return 1 << order if 0 <= order <= MAX_ORDER else 1


@hot
def test_and_set_skip(machine, cc, block):
    """True if the pageblock was to be skipped."""
    if cc.ignore_skip_hint != 0:
        return False
    skip = get_pageblock_skip(machine, block)
    set_pageblock_skip(machine, block, 1)
    return skip


@kernel("void(machine_t*, compact_control_t*, i64)")
def update_cached_migrate(machine, cc, pfn):
    """Where the next compaction of this zone goes on."""
    zone = zone_of(machine, cc.zone)
    for sync in range(1 if cc.mode == MIGRATE_ASYNC else 2):
        zone.compact_cached_migrate_pfn[sync] = max(zone.compact_cached_migrate_pfn[sync], pfn)


@hot
def span_to_pass(machine, cc, zone, at, end):
    """How many pages from `at` on need no look: free ones, or those of a huge page, which is worth more as it is."""
    span = free_span(machine, zone, at, end)
    if span == 0 and machine.thp_used != 0 and cc.alloc_contig == 0 and is_huge_mapped(machine, at):
        span = hpage_pages(machine) - at % hpage_pages(machine)
    return span


@kernel("i64(cpu_t*, compact_control_t*, i64, i64)")
def isolate_migratepages_block(cpu, cc, low, end):
    """Isolate the movable pages of [low, end), part of one pageblock; where the scan stopped.

    A hurried direct compaction gives a range of its order up at the first page that cannot move.
    """
    machine = machine_of(cpu)
    zone, batch = zone_of(machine, cc.zone), batch_of(machine, cpu)
    at, first, scanned, locked, block = low, batch.nr, 0, -1, pageblock_start(low)
    hurried = cc.direct_compaction != 0 and cc.mode == MIGRATE_ASYNC
    range_first, range_end = first, ((low >> max(cc.order, 0)) + 1) << max(cc.order, 0)
    skip_updated = low != max(block, zone.start_pfn)  # only who scans a pageblock from its start writes its hint
    while at < end:
        if hurried and at >= range_end:
            if batch.nr > first:
                break
            range_end = ((at >> cc.order) + 1) << cc.order
        span = span_to_pass(machine, cc, zone, at, end)
        if span > 0:
            at += span
            scanned += span
            continue
        scanned += 1
        result = NOT_MOVABLE
        if page_of(machine, at).flags & U(PG_lru) != U(0):
            if locked < 0:
                locked = relock_lruvec(cpu, at, -1)
                if not skip_updated:
                    skip_updated = True
                    if test_and_set_skip(machine, cc, block) and cc.finish_pageblock == 0:
                        at = end
                        break
            result = isolate_folio(cpu, cc, at)
            if result == NOT_OURS:
                unlock_lruvec(machine, locked)
                locked = -1
                put_page(cpu, at)
        at += 1
        if locked >= 0 and at % LOCK_PAGES == 0:
            unlock_lruvec(machine, locked)
            locked = -1
        if result == ISOLATED:
            if batch.nr >= cc.cluster:
                break
        elif hurried:
            unlock_lruvec(machine, locked)
            locked = -1
            putback_from(cpu, range_first)
            at = max(at, min(range_end, end))
    unlock_lruvec(machine, locked)
    at = min(at, end)
    isolated = batch.nr - first
    hold_mappings(cpu, first)
    if at == end and cc.alloc_contig == 0 and (isolated == 0 or cc.finish_pageblock != 0):
        if not skip_updated:
            set_pageblock_skip(machine, block, 1)
        update_cached_migrate(machine, cc, pageblock_end(at - 1))
    cc.total_migrate_scanned += scanned
    count_vm_events(machine, cpu.id, COMPACT_ISOLATED, isolated)
    trace_event(cpu, MM_COMPACTION_ISOLATE_MIGRATEPAGES, low, at, scanned, isolated, 0)
    return at


@hot
def suitable_migration_source(machine, cc, block):
    """A hurried direct compaction only looks at pageblocks of its own type."""
    if cc.mode != MIGRATE_ASYNC or cc.direct_compaction == 0:
        return True
    return int(u8.array(machine.block_type)[block >> PAGEBLOCK_ORDER]) == cc.migratetype


@kernel("bool(machine_t*, i64)")
def too_many_isolated(machine, node):
    """True if more than half as many pages are isolated as are on the lists."""
    isolated, lruvec = 0, lruvec_of(machine, node)
    for number in range(machine.nr_cpu_ids):
        counts = percpu_of(machine, number).node[node]
        isolated += counts.item[NR_ISOLATED_ANON] + counts.item[NR_ISOLATED_FILE]
    listed = 0
    for lru in range(LRU_UNEVICTABLE):
        listed += lruvec.nr[lru]
    return isolated > listed // 2


@kernel("bool(cpu_t*, compact_control_t*)")
def may_isolate(cpu, cc):
    """Wait while too many pages are isolated by others; False: give up."""
    machine = machine_of(cpu)
    node = zone_of(machine, cc.zone).node
    for _ in range(THROTTLE_TRIES):
        if batch_of(machine, cpu).nr > 0 or not too_many_isolated(machine, node):
            return True
        if cc.mode == MIGRATE_ASYNC or fatal_signal_pending(cpu):
            return False
        let_others_run(cpu)
    return False


@kernel("bool(cpu_t*, compact_control_t*)")
def isolate_migratepages(cpu, cc):
    """Move the migrate scanner on until something is isolated or it meets the free scanner; False: abort.

    Linux isolates 32 pages at a time; here as many as one shootdown serves, fewer where the scanners are about to meet.
    """
    machine = machine_of(cpu)
    zone, batch = zone_of(machine, cc.zone), batch_of(machine, cpu)
    at = cc.migrate_pfn
    distance = (cc.free_pfn - at) >> PAGEBLOCK_ORDER
    cc.cluster = min(max(distance * COMPACT_CLUSTER_MAX // 2, COMPACT_CLUSTER_MAX), NR_MAX_BATCHED_MIGRATION)
    enough = cc.cluster // 2 + 1 if cc.order == COMPACT_ALL else 1
    while pageblock_end(at) <= cc.free_pfn and batch.nr < enough:
        block, end = pageblock_start(at), pageblock_end(at)
        begin = max(at, zone.start_pfn)
        if begin == max(block, zone.start_pfn) and not isolation_suitable(machine, cc, block):
            at = end
            continue
        if not suitable_migration_source(machine, cc, block):
            update_cached_migrate(machine, cc, end)
            at = end
            continue
        if not may_isolate(cpu, cc):
            cc.migrate_pfn = at
            return False
        at = isolate_migratepages_block(cpu, cc, begin, end)
        if at < end:
            break
    cc.migrate_pfn = at
    return True
