"""Compaction: used pages move to the end of their zone, so that free ones become large blocks. Linux's mm/compaction.c.

    zone start | migrate scanner -->            <-- free scanner | zone end

The migrate scanner (migrate_scanner.py) isolates pages from the LRU lists, pageblock by pageblock; the free scanner
(free_scanner.py, run by the node) isolates as many free pages; migrate.py moves them all with one shootdown, whoever
uses them at that moment. Compaction ends when the scanners meet or a block of the wanted order is there.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import callback, hot, kernel
from numaemu.compiler.pointer import u8
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import MSG_ISOLATE_FREE, actor_of_node, machine_of, request
from numaemu.kernel.include.gfp import __GFP_IO
from numaemu.kernel.include.internal import (
    COMPACT_COMPLETE,
    COMPACT_CONTENDED,
    COMPACT_CONTINUE,
    COMPACT_DEFERRED,
    COMPACT_DONE,
    COMPACT_PARTIAL_SKIPPED,
    COMPACT_PRIO_ASYNC,
    COMPACT_PRIO_SYNC_FULL,
    COMPACT_SKIPPED,
    PAGE_ALLOC_COSTLY_ORDER,
    unpack_alloc,
)
from numaemu.kernel.include.mm_types import PG_buddy, PG_lru, PG_pcp
from numaemu.kernel.include.mmzone import (
    KSWAPD,
    MAX_NR_ZONES,
    MIGRATE_MOVABLE,
    WMARK_MIN,
    node_of,
    page_of,
    wmark_pages,
    zone_of,
    zonelist,
)
from numaemu.kernel.include.trace import MM_COMPACTION_BEGIN, MM_COMPACTION_END, trace_event
from numaemu.kernel.include.vmstat import (
    COMPACT_FREE_SCANNED,
    COMPACT_ISOLATED,
    COMPACT_MIGRATE_SCANNED,
    count_vm_events,
)
from numaemu.kernel.mm.cache.shmem import release_mapping
from numaemu.kernel.mm.migrate.compact_control import (
    COMPACT_ALL,
    MIGRATE_ASYNC,
    MIGRATE_SYNC_LIGHT,
    compact_control_of,
    compaction_defer_reset,
    compaction_deferred,
    compaction_restarting,
    defer_compaction,
    get_pageblock_skip,
    pageblock_end,
    pageblock_start,
    set_pageblock_skip,
)
from numaemu.kernel.mm.migrate.migrate import COMPACTION, batch_of, migrate_pages_batch
from numaemu.kernel.mm.migrate.migrate_scanner import isolate_migratepages, putback_from
from numaemu.kernel.mm.page_alloc.fragmentation import extfrag_for_order
from numaemu.kernel.mm.page_alloc.pcplist import drain_local_pages, return_chain
from numaemu.kernel.mm.page_alloc.slowpath import fatal_signal_pending
from numaemu.kernel.mm.page_alloc.watermark import gfp_migratetype, gfp_zone, zone_watermark_ok
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain
from numaemu.kernel.mm.reclaim.reclaim_compaction import compaction_suitable
from numaemu.spec.param import MAX_NODES, NR_ORDERS, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES

U = np.uint64
COMPACTION_HPAGE_ORDER = PAGEBLOCK_ORDER


# -- when to begin and when to stop --------------------------------------------------------------------------------


@kernel("i64(machine_t*, zone_t*, i64, i64)")
def compaction_suit_allocation_order(machine, zone, order, highest_zoneidx):
    """COMPACT_DONE if the allocation would succeed already."""
    if zone_watermark_ok(zone, order, wmark_pages(zone, WMARK_MIN), highest_zoneidx, 0):
        return COMPACT_DONE
    return (
        COMPACT_CONTINUE
        if compaction_suitable(machine, zone, order, highest_zoneidx) == COMPACT_CONTINUE
        else COMPACT_SKIPPED
    )


@hot
def compact_scanners_met(cc):
    return cc.free_pfn >> PAGEBLOCK_ORDER <= cc.migrate_pfn >> PAGEBLOCK_ORDER


@hot
def last_pageblock(zone):
    return pageblock_start(zone.start_pfn + zone.spanned_pages - 1)


@kernel("void(zone_t*)")
def reset_cached_positions(zone):
    """The next compaction begins at both ends."""
    zone.compact_cached_migrate_pfn[0] = zone.compact_cached_migrate_pfn[1] = zone.start_pfn
    zone.compact_cached_free_pfn = last_pageblock(zone)


@kernel("bool(zone_t*, i64, i64)")
def suitable_block_free(zone, order, migratetype):
    """True if a block for this allocation is on a list of its own or on one to steal from (find_suitable_fallback)."""
    for current in range(order, NR_ORDERS):
        may_steal = current >= PAGEBLOCK_ORDER // 2 or migratetype != MIGRATE_MOVABLE
        for other in range(3):  # unmovable, movable, reclaimable
            if zone.free_area[current].nr_free[other] > 0 and (other == migratetype or may_steal):
                return True
    return False


@kernel("i64(zone_t*)")
def fragmentation_score_zone(zone):
    """Hundredths of the free memory that no huge page could use."""
    return extfrag_for_order(zone, COMPACTION_HPAGE_ORDER)


@hot
def fragmentation_score_wmark(machine, low):
    """Proactive compaction begins above the high mark and ends at the low one."""
    mark = max(100 - machine.compaction_proactiveness, 5)
    return mark if low else min(mark + 10, 100)


@hot
def kswapd_is_running(machine, node):
    """True if memory is short: kswapd runs in turn with kcompactd (kthread.py), so that it waits already."""
    return load_acquire(node_of(machine, node), "kthread_pending") & U(KSWAPD) != U(0)


@kernel("i64(cpu_t*, compact_control_t*)")
def compact_finished(cpu, cc):
    """COMPACT_CONTINUE, or how compaction of this zone ends."""
    machine = machine_of(cpu)
    zone = zone_of(machine, cc.zone)
    if compact_scanners_met(cc):
        reset_cached_positions(zone)
        if cc.direct_compaction != 0:
            zone.compact_blockskip_flush = 1
        return COMPACT_COMPLETE if cc.whole_zone != 0 else COMPACT_PARTIAL_SKIPPED
    if cc.contended != 0 or fatal_signal_pending(cpu):
        return COMPACT_CONTENDED
    if cc.proactive_compaction != 0:
        if kswapd_is_running(machine, zone.node):
            return COMPACT_PARTIAL_SKIPPED
        return (
            COMPACT_CONTINUE
            if fragmentation_score_zone(zone) > fragmentation_score_wmark(machine, True)
            else COMPACT_DONE
        )
    if cc.order == COMPACT_ALL or cc.migrate_pfn & (PAGEBLOCK_PAGES - 1) != 0:  # a pageblock is always finished
        return COMPACT_CONTINUE
    return COMPACT_DONE if suitable_block_free(zone, cc.order, cc.migratetype) else COMPACT_CONTINUE


# -- forgetting the hints ------------------------------------------------------------------------------------------


@kernel("bool(machine_t*, zone_t*, i64, bool, bool)")
def __reset_isolation_pfn(machine, zone, pfn, check_source, check_target):
    """Clear a pageblock's hint if a sample finds a page to move or a free one there."""
    block = pageblock_start(pfn)
    if check_source and check_target and not get_pageblock_skip(machine, block):
        return True
    migratetype = int(u8.array(machine.block_type)[pfn >> PAGEBLOCK_ORDER])
    if not check_source and check_target and migratetype != MIGRATE_MOVABLE:
        return False
    at, end = max(block, zone.start_pfn), min(pageblock_end(pfn), zone.start_pfn + zone.spanned_pages)
    while at < end:
        virgin = zone.virgin_pfn <= at < zone.virgin_end
        flags = U(PG_buddy) if virgin else page_of(machine, at).flags
        if check_source and flags & U(PG_lru) != U(0) or check_target and flags & U(PG_buddy) != U(0):
            set_pageblock_skip(machine, block, 0)
            return True
        at += 1 << PAGE_ALLOC_COSTLY_ORDER
    return False


@kernel("void(machine_t*, zone_t*)")
def __reset_isolation_suitable(machine, zone):
    """Clear the hints of a zone from both ends, and let the scanners begin where something is to be found."""
    if zone.compact_blockskip_flush == 0:
        return
    zone.compact_blockskip_flush = 0
    migrate, free = zone.start_pfn, zone.start_pfn + zone.spanned_pages - 1
    first_source, last_target = free, migrate
    source_set = target_set = False
    while migrate < free:
        if __reset_isolation_pfn(machine, zone, migrate, True, source_set) and migrate < first_source:
            source_set, first_source = True, migrate
            zone.compact_init_migrate_pfn = migrate
            zone.compact_cached_migrate_pfn[0] = zone.compact_cached_migrate_pfn[1] = migrate
        if __reset_isolation_pfn(machine, zone, free, target_set, True) and free > last_target:
            target_set, last_target = True, free
            zone.compact_init_free_pfn = zone.compact_cached_free_pfn = free
        migrate += PAGEBLOCK_PAGES
        free -= PAGEBLOCK_PAGES
    if first_source >= last_target:
        zone.compact_cached_migrate_pfn[0] = zone.compact_cached_migrate_pfn[1] = migrate
        zone.compact_cached_free_pfn = free


# -- one zone ------------------------------------------------------------------------------------------------------


@kernel("void(cpu_t*, compact_control_t*, i64)")
def isolate_freepages(cpu, cc, wanted):
    """Let the zone's node bring the chain of free pages to this length, if it can (see free_scanner.py)."""
    machine = machine_of(cpu)
    cc.nr_migratepages = wanted
    before = cc.free_isolated
    request(cpu, actor_of_node(zone_of(machine, cc.zone).node), MSG_ISOLATE_FREE, cc.zone, 0, 0)
    count_vm_events(machine, cpu.id, COMPACT_ISOLATED, cc.free_isolated - before)


@kernel("void(cpu_t*, compact_control_t*)")
def release_freepages(cpu, cc):
    """Free pages that nothing was moved to go back to the node; the free scanner may find them again."""
    machine = machine_of(cpu)
    zone, first, last, highest = zone_of(machine, cc.zone), cc.freepages, cc.freepages, 0
    if first == 0:
        return
    pfn = first
    while pfn != 0:
        page = page_of(machine, pfn)
        page.flags |= U(PG_pcp)
        highest, last, pfn = max(highest, pfn), pfn, page.lru_next
    cc.freepages = cc.nr_freepages = 0
    return_chain(cpu, zone, first, last)
    zone.compact_cached_free_pfn = max(zone.compact_cached_free_pfn, pageblock_start(highest))


@kernel("bool(cpu_t*, compact_control_t*)")
def migrate_isolated(cpu, cc):
    """Move what is isolated; False: there is not room for all of it, and the rest is back on its lists."""
    batch = batch_of(machine_of(cpu), cpu)
    if cc.nr_freepages < batch.nr:
        isolate_freepages(cpu, cc, batch.nr)
    short = cc.nr_freepages < batch.nr
    if short:
        cc.migrate_pfn = batch.old[cc.nr_freepages]
        putback_from(cpu, cc.nr_freepages)
    nr, batch.target = batch.nr, COMPACTION
    migrate_pages_batch(cpu, batch)
    for i in range(nr):
        release_mapping(cpu, batch.place[i])
    return not short


@kernel("void(cpu_t*, compact_control_t*)")
def drain_freed(cpu, cc):
    """What was freed so far merges: from this CPU's lists back to the node, which has done so when it answers."""
    lru_add_drain(cpu)
    drain_local_pages(cpu)
    isolate_freepages(cpu, cc, 0)


@kernel("void(machine_t*, compact_control_t*)")
def place_scanners(machine, cc):
    """At both ends of the zone, or where the last compaction stopped."""
    zone, sync = zone_of(machine, cc.zone), 0 if cc.mode == MIGRATE_ASYNC else 1
    end = zone.start_pfn + zone.spanned_pages
    cc.migrate_pfn, cc.free_pfn = zone.start_pfn, last_pageblock(zone)
    if cc.whole_zone != 0:
        return
    if zone.start_pfn <= zone.compact_cached_free_pfn < end:
        cc.free_pfn = zone.compact_cached_free_pfn
    else:
        zone.compact_cached_free_pfn = cc.free_pfn
    if zone.start_pfn <= zone.compact_cached_migrate_pfn[sync] < end:
        cc.migrate_pfn = zone.compact_cached_migrate_pfn[sync]
    else:
        zone.compact_cached_migrate_pfn[0] = zone.compact_cached_migrate_pfn[1] = cc.migrate_pfn
    if cc.migrate_pfn <= zone.compact_init_migrate_pfn:
        cc.whole_zone = 1


@kernel("i64(cpu_t*, compact_control_t*)")
def compact_zone_loop(cpu, cc):
    """Isolate and move until compact_finished says how it ends."""
    machine = machine_of(cpu)
    batch, last_migrated = batch_of(machine, cpu), 0
    while True:
        result = compact_finished(cpu, cc)
        if result != COMPACT_CONTINUE:
            return result
        cc.finish_pageblock = 1 if last_migrated != 0 and last_migrated == pageblock_start(cc.migrate_pfn) else 0
        if not isolate_migratepages(cpu, cc):
            putback_from(cpu, 0)
            return COMPACT_CONTENDED
        if batch.nr > 0:
            last_migrated = pageblock_start(cc.migrate_pfn - 1)
            if not migrate_isolated(cpu, cc) and not compact_scanners_met(cc):
                return COMPACT_CONTENDED
        if cc.order > 0 and last_migrated != 0 and last_migrated < cc.migrate_pfn & ~((1 << cc.order) - 1):
            drain_freed(cpu, cc)
            last_migrated = 0


@kernel("i64(cpu_t*, compact_control_t*)")
def compact_zone(cpu, cc):
    """Compact a zone as the rest of `cc` says: a COMPACT_* result."""
    machine = machine_of(cpu)
    zone = zone_of(machine, cc.zone)
    cc.total_migrate_scanned = cc.total_free_scanned = cc.free_isolated = 0
    cc.freepages = cc.nr_freepages = cc.contended = cc.finish_pageblock = 0
    cc.migratetype = gfp_migratetype(machine, cc.gfp)
    if cc.order != COMPACT_ALL:
        result = compaction_suit_allocation_order(machine, zone, cc.order, cc.highest_zoneidx)
        if result != COMPACT_CONTINUE:
            return result
        if compaction_restarting(zone, cc.order):
            __reset_isolation_suitable(machine, zone)
    place_scanners(machine, cc)
    batch_of(machine, cpu).nr = 0
    lru_add_drain(cpu)
    end = zone.start_pfn + zone.spanned_pages
    trace_event(cpu, MM_COMPACTION_BEGIN, zone.start_pfn, cc.migrate_pfn, cc.free_pfn, end, cc.mode)
    result = compact_zone_loop(cpu, cc)
    release_freepages(cpu, cc)
    trace_event(cpu, MM_COMPACTION_END, zone.start_pfn, cc.migrate_pfn, cc.free_pfn, end, cc.mode | result << 8)
    count_vm_events(machine, cpu.id, COMPACT_MIGRATE_SCANNED, cc.total_migrate_scanned)
    count_vm_events(machine, cpu.id, COMPACT_FREE_SCANNED, cc.total_free_scanned)
    return result


# -- direct: for an allocation -------------------------------------------------------------------------------------


@kernel("void(compact_control_t*, i64, i64, i64, i64)")
def init_control(cc, order, gfp, mode, highest_zoneidx):
    """Everything else off."""
    cc.order, cc.gfp, cc.mode, cc.highest_zoneidx = order, gfp, mode, highest_zoneidx
    cc.direct_compaction = cc.whole_zone = cc.ignore_skip_hint = cc.ignore_block_suitable = cc.proactive_compaction = 0
    cc.alloc_contig = 0


@kernel("i64(cpu_t*, i64, i64, i64, i64)")
def compact_zone_order(cpu, zone_number, order, gfp, prio):
    """Compact one zone for an allocation."""
    machine = machine_of(cpu)
    cc = compact_control_of(machine, cpu.id)
    mode = MIGRATE_ASYNC if prio == COMPACT_PRIO_ASYNC else MIGRATE_SYNC_LIGHT
    init_control(cc, order, gfp, mode, gfp_zone(machine, gfp))
    cc.zone, cc.direct_compaction = zone_number, 1
    if prio == COMPACT_PRIO_SYNC_FULL:
        cc.whole_zone = cc.ignore_skip_hint = cc.ignore_block_suitable = 1
    return compact_zone(cpu, cc)


@kernel("i64(cpu_t*, i64, i64, i64, u64)")
def try_to_compact_pages(cpu, gfp, order, prio, nodemask):
    """Compact the zones an allocation may use, nearest first, until a block is there: the best COMPACT_* result."""
    machine, result = machine_of(cpu), COMPACT_SKIPPED
    if gfp & __GFP_IO == 0:
        return result
    nodes = zonelist(machine, cpu.node)
    for i in range(MAX_NODES):
        node = nodes[i]
        if node < 0:
            break
        if (nodemask >> U(node)) & U(1) == U(0):
            continue
        for kind in range(gfp_zone(machine, gfp), -1, -1):
            zone = zone_of(machine, node * MAX_NR_ZONES + kind)
            if zone.managed_pages == 0:
                continue
            if prio > COMPACT_PRIO_SYNC_FULL and compaction_deferred(zone, order):
                result = max(result, COMPACT_DEFERRED)
                continue
            status = compact_zone_order(cpu, zone.number, order, gfp, prio)
            result = max(result, status)
            if status == COMPACT_DONE:
                compaction_defer_reset(zone, order, False)
                return result
            if prio != COMPACT_PRIO_ASYNC and (status == COMPACT_COMPLETE or status == COMPACT_PARTIAL_SKIPPED):
                defer_compaction(zone, order)
            if fatal_signal_pending(cpu):
                return result
    return result


@callback("u64(u64, u64, u64)")
def direct_compact(cpu_address, packed, nodemask):
    """The slow path's way up, machine.on_compact: `packed` is the allocation and its compact priority."""
    gfp, order, prio = unpack_alloc(packed)
    return U(try_to_compact_pages(cpu_t.at(cpu_address), gfp, order, prio, nodemask))
