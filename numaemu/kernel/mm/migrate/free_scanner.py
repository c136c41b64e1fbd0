"""Compaction's free scanner, run by a node. Part of Linux's mm/compaction.c.

Free lists belong to their node, so the free scanner runs there: a context that compacts asks for as many free pages as
it is about to move (MSG_ISOLATE_FREE) and waits. The node walks pageblocks from the zone's end downward and hands over
a chain of single pages in the context's compact_control_t. What is not used comes back over zone.returned.

Untouched memory needs no scanning: it is free in the largest blocks, which are no targets (suitable_migration_target).
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u8
from numaemu.kernel.include.mm_types import PG_buddy, PG_used
from numaemu.kernel.include.mmzone import (
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
    MIGRATE_PCPTYPES,
    WMARK_MIN,
    page_of,
    zone_of,
)
from numaemu.kernel.mm.migrate.compact_control import (
    COMPACT_CLUSTER_MAX,
    compact_control_of,
    isolation_suitable,
    pageblock_end,
    pageblock_start,
    set_pageblock_skip,
)
from numaemu.kernel.mm.page_alloc.free_area import del_page_from_free_list, touch_virgin
from numaemu.kernel.mm.page_alloc.node_side import free_pcppages_bulk
from numaemu.spec.param import PAGEBLOCK_ORDER, PAGEBLOCK_PAGES

U = np.uint64
_BUDDY, _USED = U(PG_buddy), U(PG_used)


@kernel("bool(machine_t*, compact_control_t*, zone_t*, i64)")
def suitable_migration_target(machine, cc, zone, block):
    """False for pageblocks that are free already, or not movable."""
    if block >= zone.virgin_pfn and block < zone.virgin_end:
        return False
    page = page_of(machine, max(block, zone.start_pfn))
    if page.flags & _BUDDY != U(0) and page.private >= (cc.order if cc.order > 0 else PAGEBLOCK_ORDER):
        return False
    return cc.ignore_block_suitable != 0 or u8.array(machine.block_type)[block >> PAGEBLOCK_ORDER] == MIGRATE_MOVABLE


@kernel("bool(machine_t*, zone_t*, i64, i64)")
def __isolate_free_page(machine, zone, pfn, order):
    """Take a free block off its list, if the zone keeps its min watermark; a large one makes its pageblocks movable."""
    if zone.free_pages - (1 << order) <= zone.watermark[WMARK_MIN] + zone.lowmem_reserve[0]:
        return False
    del_page_from_free_list(machine, zone, pfn, order)
    zone.free_pages -= 1 << order
    if order >= PAGEBLOCK_ORDER - 1:
        types = u8.array(machine.block_type)
        for block in range(pfn >> PAGEBLOCK_ORDER, ((pfn + (1 << order) - 1) >> PAGEBLOCK_ORDER) + 1):
            if types[block] < MIGRATE_HIGHATOMIC:
                types[block] = MIGRATE_MOVABLE
    return True


@hot
def add_to_freepages(machine, cc, pfn, order):
    """Cut an isolated block into single pages at the end of the chain (split_map_pages)."""
    migratetype = int(u8.array(machine.block_type)[pfn >> PAGEBLOCK_ORDER])
    for at in range(pfn, pfn + (1 << order)):
        page = page_of(machine, at)
        page.flags &= _USED
        page.refcount = page.mapcount = 0
        page.lru_next, page.order = 0, 0
        page.migratetype = migratetype if migratetype < MIGRATE_PCPTYPES else MIGRATE_MOVABLE
        if cc.freepages == 0:
            cc.freepages = at
        else:
            page_of(machine, cc.last_freepage).lru_next = at
        cc.last_freepage = at
    cc.nr_freepages += 1 << order


@kernel("i64(machine_t*, zone_t*, compact_control_t*, i64, i64, i64)")
def isolate_freepages_block(machine, zone, cc, start, end, stride):
    """Isolate free pages of a pageblock until there are enough; where the scan stopped."""
    at, scanned = start, 0
    while at < end:
        scanned += 1
        page = page_of(machine, at)
        if page.flags & _BUDDY == U(0):
            at += stride
            continue
        order = page.private
        if not __isolate_free_page(machine, zone, at, order):
            break
        add_to_freepages(machine, cc, at, order)
        scanned += (1 << order) - 1
        cc.free_isolated += 1 << order
        at += 1 << order
        if cc.nr_freepages >= cc.nr_migratepages:
            break
    cc.total_free_scanned += scanned
    return min(at, end) if stride > 1 else at


@kernel("void(machine_t*, i64)")
def isolate_freepages(machine, cpu_number):
    """Serve MSG_ISOLATE_FREE: walk down from cc.free_pfn until the chain is as long as what is to be moved, or the
    migrate scanner is met.

    Linux strides from the first pageblock on if it is in a hurry, since a search of the free lists
    (fast_isolate_freepages) has failed by then. There is none here, and striding for a few pages would use up a pageblock.
    """
    cc = compact_control_of(machine, cpu_number)
    zone = zone_of(machine, cc.zone)
    free_pcppages_bulk(machine, zone)
    if cc.nr_freepages >= cc.nr_migratepages:  # asked only to look at what was returned
        return
    at, block, low = cc.free_pfn, pageblock_start(cc.free_pfn), pageblock_end(cc.migrate_pfn)
    stride = 1
    while block >= low:
        end = min(block + PAGEBLOCK_PAGES, zone.start_pfn + zone.spanned_pages)
        while block < zone.virgin_pfn < end and touch_virgin(machine, zone):
            pass
        if suitable_migration_target(machine, cc, zone, block) and isolation_suitable(machine, cc, block):
            before = cc.nr_freepages
            at = isolate_freepages_block(machine, zone, cc, at, end, stride)
            if at >= end:
                set_pageblock_skip(machine, block, 1)
                zone.compact_cached_free_pfn = min(zone.compact_cached_free_pfn, block - PAGEBLOCK_PAGES)
            if cc.nr_freepages >= cc.nr_migratepages:
                if at >= end:
                    at = block - PAGEBLOCK_PAGES
                break
            if at < end:  # the watermark is near
                break
            stride = 1 if cc.nr_freepages > before else min(COMPACT_CLUSTER_MAX, stride << 1)
        block -= PAGEBLOCK_PAGES
        at = block
    cc.free_pfn = at
