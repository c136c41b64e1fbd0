"""A zone's free lists by order and migratetype, as the node that owns them keeps them. From Linux's mm/page_alloc.c.

Untouched memory costs nothing: what a zone never gave out is its *virgin* range, counted as free blocks of the highest
order, whose page structs nobody has written.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u8
from numaemu.kernel.include.list import list_add, list_add_tail, list_del
from numaemu.kernel.include.mm_types import PG_buddy, PG_pcp, PG_used, page_t
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import MIGRATE_HIGHATOMIC, MIGRATE_ISOLATE, MIGRATE_PCPTYPES, page_of
from numaemu.spec.param import MAX_ORDER, NR_ORDERS, PAGEBLOCK_ORDER

U = np.uint64
_BUDDY, _PCP, _USED = U(PG_buddy), U(PG_pcp), U(PG_used)


@hot
def get_pageblock_migratetype(machine, pfn):
    return int(u8.array(machine.block_type)[pfn >> PAGEBLOCK_ORDER])


@kernel("void(machine_t*, i64, i64)")
def set_pageblock_migratetype(machine, pfn, migratetype):
    u8.array(machine.block_type)[pfn >> PAGEBLOCK_ORDER] = migratetype


@hot
def account_special(zone, migratetype, pages):
    """Free pages that not everybody may take: those for large atomic allocations, those nobody may have."""
    if migratetype == MIGRATE_HIGHATOMIC:
        zone.nr_free_highatomic += pages
    elif migratetype == MIGRATE_ISOLATE:
        zone.nr_isolated += pages
        zone.free_pages -= pages


@hot
def add_to_free_list(machine, zone, pfn, order, migratetype, to_tail):
    """Link a free block into its list and mark it."""
    area, page = zone.free_area[order], page_of(machine, pfn)
    VM_BUG_ON_PAGE(page.flags & (_BUDDY | _PCP) != U(0) or pfn & ((1 << order) - 1) != 0, page)
    page.flags = (page.flags & _USED) | _BUDDY
    page.private, page.migratetype = order, migratetype
    head, tail, pages = area.head[migratetype], area.tail[migratetype], page_t.array(machine.mem_map)
    head, tail = list_add_tail(pages, pfn, head, tail) if to_tail else list_add(pages, pfn, head, tail)
    area.head[migratetype], area.tail[migratetype] = head, tail
    area.nr_free[migratetype] += 1
    account_special(zone, migratetype, 1 << order)


@hot
def del_page_from_free_list(machine, zone, pfn, order):
    """Unlink a free block."""
    area, page = zone.free_area[order], page_of(machine, pfn)
    migratetype = page.migratetype
    VM_BUG_ON_PAGE(page.flags & _BUDDY == U(0) or page.private != order, page)
    head, tail = area.head[migratetype], area.tail[migratetype]
    head, tail = list_del(page_t.array(machine.mem_map), pfn, head, tail)
    area.head[migratetype], area.tail[migratetype] = head, tail
    page.flags &= ~_BUDDY
    area.nr_free[migratetype] -= 1
    account_special(zone, migratetype, -(1 << order))


@hot
def page_is_buddy(machine, zone, pfn, order):
    """True if a free block of this order begins at `pfn` in the zone; never looks at virgin page structs."""
    if pfn < zone.start_pfn or pfn >= zone.start_pfn + zone.spanned_pages:
        return False
    if zone.virgin_pfn <= pfn < zone.virgin_end:
        return False
    page = page_of(machine, pfn)
    return (page.flags & _BUDDY) != U(0) and page.private == order


@hot
def migratetype_is_mergeable(migratetype):
    return migratetype < MIGRATE_PCPTYPES


@hot
def must_stay_apart(machine, buddy, order, migratetype):
    """True if a pageblock that is kept for something would melt into another one."""
    if order < PAGEBLOCK_ORDER:
        return False
    other = get_pageblock_migratetype(machine, buddy)
    return other != migratetype and not (migratetype_is_mergeable(migratetype) and migratetype_is_mergeable(other))


@kernel("void(machine_t*, i64, i64, i64)")
def change_pageblock_range(machine, pfn, order, migratetype):
    """Give a whole block's pageblocks another migratetype."""
    for block in range(pfn, pfn + (1 << order), 1 << PAGEBLOCK_ORDER):
        set_pageblock_migratetype(machine, block, migratetype)


@kernel("void(machine_t*, zone_t*, i64, i64, i64)")
def __free_one_page(machine, zone, pfn, order, migratetype):
    """Give a block back, coalescing upward as far as the buddies are free; they take its migratetype."""
    zone.free_pages += 1 << order
    while order < MAX_ORDER:
        buddy = pfn ^ (1 << order)
        if not page_is_buddy(machine, zone, buddy, order) or must_stay_apart(machine, buddy, order, migratetype):
            break
        del_page_from_free_list(machine, zone, buddy, order)
        if order >= PAGEBLOCK_ORDER:
            change_pageblock_range(machine, buddy, order, migratetype)
        pfn = min(pfn, buddy)
        order += 1
    add_to_free_list(machine, zone, pfn, order, migratetype, False)


@hot
def expand(machine, zone, pfn, low, high, migratetype):
    """Cut a block of order `high` down to `low`, giving the upper halves back to the lists."""
    while high > low:
        high -= 1
        add_to_free_list(machine, zone, pfn + (1 << high), high, migratetype, False)


@kernel("bool(machine_t*, zone_t*)")
def touch_virgin(machine, zone):
    """Bring the next untouched block onto the free lists; False if there is none."""
    pfn = zone.virgin_pfn
    if pfn >= zone.virgin_end:
        return False
    order = MAX_ORDER
    while (pfn & ((1 << order) - 1)) != 0 or pfn + (1 << order) > zone.virgin_end:
        order -= 1
    zone.virgin_pfn = pfn + (1 << order)
    add_to_free_list(machine, zone, pfn, order, get_pageblock_migratetype(machine, pfn), True)
    return True


@kernel("i64(machine_t*, zone_t*, i64, i64)")
def __rmqueue_smallest(machine, zone, order, migratetype):
    """The smallest sufficient block of this migratetype, cut to size; its pfn or 0."""
    for current in range(order, NR_ORDERS):
        pfn = zone.free_area[current].head[migratetype]
        if pfn != 0:
            del_page_from_free_list(machine, zone, pfn, current)
            expand(machine, zone, pfn, order, current, migratetype)
            zone.free_pages -= 1 << order
            return pfn
    return 0
