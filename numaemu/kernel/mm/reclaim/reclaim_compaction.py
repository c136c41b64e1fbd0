"""Reclaim for blocks of several pages: it frees what compaction needs to work, and leaves the rest to it.

The parts of Linux's mm/vmscan.c and mm/compaction.c that say how much that is.
"""

from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.include.internal import (
    COMPACT_CONTINUE,
    COMPACT_NOT_SUITABLE_ZONE,
    COMPACT_SKIPPED,
    PAGE_ALLOC_COSTLY_ORDER,
    gfp_compaction_allowed,
)
from numaemu.kernel.include.mmzone import (
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    MAX_NR_ZONES,
    WMARK_HIGH,
    WMARK_LOW,
    WMARK_MIN,
    lruvec_of,
    wmark_pages,
    zone_of,
)
from numaemu.kernel.mm.numa.memory_tiers import can_reclaim_anon_pages
from numaemu.kernel.mm.page_alloc.fragmentation import fragmentation_index
from numaemu.kernel.mm.page_alloc.watermark import zone_watermark_ok
from numaemu.kernel.mm.reclaim.pageout import scan_control_t  # noqa: F401  (the type in signatures)
from numaemu.kernel.mm.reclaim.workingset import DEF_PRIORITY


@hot
def compact_gap(order):
    """Free pages that compaction needs beside what it is to make."""
    return 2 << order


@kernel("i64(machine_t*, zone_t*, i64, i64)")
def compaction_suitable(machine, zone, order, highest_zoneidx):
    """COMPACT_CONTINUE, or why not: too little is free to move into, or the lack is not fragmentation."""
    mark = wmark_pages(zone, WMARK_LOW if order > PAGE_ALLOC_COSTLY_ORDER else WMARK_MIN) + compact_gap(order)
    if not zone_watermark_ok(zone, 0, mark, highest_zoneidx, 0):
        return COMPACT_SKIPPED
    if order > PAGE_ALLOC_COSTLY_ORDER and 0 <= fragmentation_index(zone, order) <= machine.extfrag_threshold:
        return COMPACT_NOT_SUITABLE_ZONE
    return COMPACT_CONTINUE


@kernel("bool(machine_t*, scan_control_t*, i64, i64)")
def should_continue_reclaim(machine, sc, node, reclaimed):
    """True if a pass over a node that freed `reclaimed` pages is followed by another: compaction could not begin yet, and
    there is more to be had.
    """
    hard = sc.order > PAGE_ALLOC_COSTLY_ORDER or sc.priority < DEF_PRIORITY - 2
    if sc.order == 0 or not hard or not gfp_compaction_allowed(sc.gfp) or machine.lumpy_reclaim != 0 or reclaimed == 0:
        return False
    for kind in range(sc.reclaim_idx + 1):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.managed_pages > 0 and (
            zone_watermark_ok(zone, sc.order, wmark_pages(zone, WMARK_MIN), sc.reclaim_idx, 0)
            or compaction_suitable(machine, zone, sc.order, sc.reclaim_idx) == COMPACT_CONTINUE
        ):
            return False
    inactive = lruvec_of(machine, node).nr[LRU_INACTIVE_FILE]
    if can_reclaim_anon_pages(machine, node):
        inactive += lruvec_of(machine, node).nr[LRU_INACTIVE_ANON]
    return inactive > compact_gap(sc.order)


@kernel("bool(machine_t*, scan_control_t*, i64)")
def compaction_ready(machine, sc, node):
    """True if every zone of a node has plenty for compaction to make a costly block of: then reclaim leaves the node alone.

    sc.compaction_ready says that one has.
    """
    if sc.order <= PAGE_ALLOC_COSTLY_ORDER or not gfp_compaction_allowed(sc.gfp) or machine.lumpy_reclaim != 0:
        return False
    every = True
    for kind in range(sc.reclaim_idx + 1):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.managed_pages == 0:
            continue
        if zone_watermark_ok(zone, sc.order, wmark_pages(zone, WMARK_MIN), sc.reclaim_idx, 0) or (
            compaction_suitable(machine, zone, sc.order, sc.reclaim_idx) == COMPACT_CONTINUE
            and zone_watermark_ok(zone, 0, wmark_pages(zone, WMARK_HIGH) + compact_gap(sc.order), sc.reclaim_idx, 0)
        ):
            sc.compaction_ready = 1
        else:
            every = False
    return every
