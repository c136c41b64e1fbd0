"""Taking a range of frames away from everybody, as the node that owns them does it: Linux's mm/page_isolation.c and the end
of alloc_contig_range in mm/page_alloc.c. Who asks is contig.py:

    ISOLATE_RANGE   nobody gets pages of these pageblocks any more; what is free there lies on lists of its own
    TAKE_RANGE      all of it is free: off the lists, and the asker's; else the reply is a page that is still in use
    UNDO_RANGE      the pageblocks are movable ones again
"""

from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.include.mmzone import MIGRATE_MOVABLE, MIGRATE_PCPTYPES, page_of, zone_of
from numaemu.kernel.mm.page_alloc.free_area import del_page_from_free_list, get_pageblock_migratetype
from numaemu.kernel.mm.page_alloc.mobility import start_isolate_page_range, test_pages_isolated, undo_isolate_page_range
from numaemu.kernel.mm.page_alloc.node_side import free_pcppages_bulk, take_back_shelves
from numaemu.spec.param import PAGEBLOCK_PAGES

ISOLATE_RANGE, TAKE_RANGE, UNDO_RANGE = range(3)


@kernel("bool(machine_t*, zone_t*, i64, i64)")
def isolate_range(machine, zone, start, end):
    """False: a pageblock is isolated already, kept for atomic allocations or cut by the zone's end; nothing was done."""
    for block in range(start, end, PAGEBLOCK_PAGES):
        if get_pageblock_migratetype(machine, block) >= MIGRATE_PCPTYPES:
            return False
    return start_isolate_page_range(machine, zone, start, end)


@kernel("i64(machine_t*, zone_t*, i64, i64)")
def take_range(machine, zone, start, end):
    """isolate_freepages_range: 0 if the asker has it all, else a page in use."""
    busy = test_pages_isolated(machine, zone, start, end)
    if busy != 0:
        return busy
    pfn = start
    while pfn < end:
        order = page_of(machine, pfn).private
        del_page_from_free_list(machine, zone, pfn, order)
        zone.free_pages -= 1 << order
        pfn += 1 << order
    undo_isolate_page_range(machine, zone, start, end, MIGRATE_MOVABLE)
    return 0


@hot
def serve_range(machine, zone_number, step, start, pages):
    """Serve MSG_RANGE: one of the three steps above, for the frames [start, start + pages) of a zone."""
    zone = zone_of(machine, zone_number)
    free_pcppages_bulk(machine, zone)
    if step == ISOLATE_RANGE:
        take_back_shelves(machine, zone.number, -1)
        return 1 if isolate_range(machine, zone, start, start + pages) else 0
    if step == TAKE_RANGE:
        return take_range(machine, zone, start, start + pages)
    undo_isolate_page_range(machine, zone, start, start + pages, MIGRATE_MOVABLE)
    return 0
