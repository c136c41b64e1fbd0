"""Grouping pages by mobility: which type steals from which, pageblocks for atomic allocations, pageblocks that nobody may
use. Run by the node that owns the zone. From Linux's mm/page_alloc.c and page_isolation.c.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_or, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.include.internal import ALLOC_HIGHATOMIC, ALLOC_KSWAPD, ALLOC_NOFRAGMENT, ALLOC_NON_BLOCK, ALLOC_OOM
from numaemu.kernel.include.mm_types import PG_buddy, PG_lru
from numaemu.kernel.include.mmzone import (
    MIGRATE_HIGHATOMIC,
    MIGRATE_ISOLATE,
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    WMARK_HIGH,
    ZONE_BOOSTED_WATERMARK,
    page_of,
)
from numaemu.kernel.include.trace import MM_PAGE_ALLOC_EXTFRAG, trace_event
from numaemu.kernel.mm.page_alloc.free_area import (
    __free_one_page,
    __rmqueue_smallest,
    add_to_free_list,
    change_pageblock_range,
    del_page_from_free_list,
    expand,
    get_pageblock_migratetype,
    migratetype_is_mergeable,
    page_is_buddy,
    set_pageblock_migratetype,
    touch_virgin,
)
from numaemu.spec.param import MAX_ORDER, NR_ORDERS, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES

U = np.uint64
_BUDDY = U(PG_buddy)
_MOVES = U(PG_lru)


# -- whole pageblocks ----------------------------------------------------------------------------------------


@hot
def block_start(pfn):
    return pfn & ~(PAGEBLOCK_PAGES - 1)


@hot
def zone_spans_block(zone, pfn):
    """False for a pageblock that the zone's start or end cuts: it keeps the type that it has from boot."""
    start = block_start(pfn)
    return start >= zone.start_pfn and start + PAGEBLOCK_PAGES <= zone.start_pfn + zone.spanned_pages


@kernel("bool(machine_t*, zone_t*, i64)")
def prep_move_freepages_block(machine, zone, pfn):
    """zone.block_counts: count a pageblock's free pages and those in use that can be moved; False: it is not wholly in the zone.

    A block of the highest order that holds the pageblock is not looked for here: who calls knows that there is none.
    """
    start, counts = block_start(pfn), zone.block_counts
    counts[0] = counts[1] = 0
    if not zone_spans_block(zone, pfn):
        return False
    at = start
    while at < start + PAGEBLOCK_PAGES:
        if zone.virgin_pfn <= at < zone.virgin_end:  # untouched, and so are all behind it
            counts[0] += start + PAGEBLOCK_PAGES - at
            break
        page = page_of(machine, at)
        if (page.flags & _BUDDY) != U(0):
            counts[0] += 1 << page.private
            at += 1 << page.private
        else:
            counts[1] += 1 if page.flags & _MOVES != U(0) and page.refcount > 0 else 0
            at += 1
    return True


@kernel("i64(machine_t*, zone_t*, i64, i64)")
def __move_freepages_block(machine, zone, pfn, migratetype):
    """Move the free blocks of a pageblock to another migratetype's lists; pages."""
    at, moved = block_start(pfn), 0
    end = at + PAGEBLOCK_PAGES
    while zone.virgin_pfn < end and zone.virgin_end > at and touch_virgin(machine, zone):
        pass
    while at < end:
        page = page_of(machine, at)
        if (page.flags & _BUDDY) == U(0):
            at += 1
            continue
        order = page.private
        del_page_from_free_list(machine, zone, at, order)
        add_to_free_list(machine, zone, at, order, migratetype, False)
        moved += 1 << order
        at += 1 << order
    return moved


# -- falling back to another migratetype ---------------------------------------------------------------------


@hot
def fallback_type(migratetype, n):
    """Linux's `fallbacks` table: where to steal first and second."""
    if migratetype == MIGRATE_UNMOVABLE:
        return MIGRATE_RECLAIMABLE if n == 0 else MIGRATE_MOVABLE
    if migratetype == MIGRATE_MOVABLE:
        return MIGRATE_RECLAIMABLE if n == 0 else MIGRATE_UNMOVABLE
    return MIGRATE_UNMOVABLE if n == 0 else MIGRATE_MOVABLE


@hot
def can_steal_fallback(machine, order, migratetype):
    """True if the rest of the pageblock may be claimed too: a large piece, or one for memory that cannot move."""
    return (
        order >= PAGEBLOCK_ORDER // 2 or migratetype != MIGRATE_MOVABLE or machine.page_group_by_mobility_disabled != 0
    )


@kernel("i64(zone_t*, i64, i64)")
def find_suitable_fallback(zone, order, migratetype):
    """The migratetype to take a block of this order from, -1: there is none. can_steal_fallback does not depend on it."""
    area = zone.free_area[order]
    for n in range(2):
        other = fallback_type(migratetype, n)
        if area.head[other] != 0:
            return other
    return -1


@kernel("bool(machine_t*, zone_t*)")
def boost_watermark(machine, zone):
    """Types begin to mix: higher watermarks make kswapd free more, so that it need not happen again; False: not here.

    kswapd takes boosts back meanwhile, so the word changes by compare-exchange.
    """
    if machine.watermark_boost_factor == 0 or PAGEBLOCK_PAGES * 4 > zone.managed_pages:
        return False
    most = zone.watermark[WMARK_HIGH] * machine.watermark_boost_factor // 10000
    if most == 0:
        return False
    most = max(PAGEBLOCK_PAGES, most)
    while True:
        seen = load_acquire(zone, "watermark_boost")
        if compare_exchange(zone, "watermark_boost", seen, min(seen + PAGEBLOCK_PAGES, most)) == seen:
            return True


@hot
def alike_pages(migratetype, block_type, free, movable):
    """Pages in use of a pageblock that fit to `migratetype`, as far as that can be told."""
    if migratetype == MIGRATE_MOVABLE:
        return movable
    return PAGEBLOCK_PAGES - (free + movable) if block_type == MIGRATE_MOVABLE else 0


@kernel("i64(machine_t*, zone_t*, i64, i64, i64, i64, i64, bool)")
def steal_suitable_fallback(machine, zone, pfn, current, order, migratetype, alloc_flags, whole):
    """Take a block of another type: with its pageblock if enough of that is free or alike; the pfn of a part of it."""
    block_type = page_of(machine, pfn).migratetype
    if current >= PAGEBLOCK_ORDER:
        del_page_from_free_list(machine, zone, pfn, current)
        change_pageblock_range(machine, pfn, current, migratetype)
        expand(machine, zone, pfn, order, current, migratetype)
        zone.free_pages -= 1 << order
        return pfn
    if boost_watermark(machine, zone) and alloc_flags & ALLOC_KSWAPD:
        fetch_or(zone, "flags", U(ZONE_BOOSTED_WATERMARK))
    if whole and prep_move_freepages_block(machine, zone, pfn):
        counts = zone.block_counts
        alike = alike_pages(migratetype, block_type, counts[0], counts[1])
        if counts[0] + alike >= PAGEBLOCK_PAGES // 2 or machine.page_group_by_mobility_disabled != 0:
            __move_freepages_block(machine, zone, pfn, migratetype)
            set_pageblock_migratetype(machine, pfn, migratetype)
            return __rmqueue_smallest(machine, zone, order, migratetype)
    del_page_from_free_list(machine, zone, pfn, current)
    expand(machine, zone, pfn, order, current, block_type)
    zone.free_pages -= 1 << order
    return pfn


@kernel("void(machine_t*, zone_t*, i64, i64, i64, i64, i64)")
def trace_extfrag(machine, zone, pfn, order, current, migratetype, other):
    """The tracepoint of __rmqueue_fallback, in the node's process: it writes into the ring of the node's kernel threads."""
    context = cpu_t.array(machine.cpus)[machine.nr_cpus + zone.node]
    types = migratetype | other << 8 | get_pageblock_migratetype(machine, pfn) << 16
    trace_event(context, MM_PAGE_ALLOC_EXTFRAG, pfn, order, current, types, 0)


@kernel("i64(machine_t*, zone_t*, i64, i64, i64)")
def __rmqueue_fallback(machine, zone, order, migratetype, alloc_flags):
    """Nothing of our own type: take the largest block of another, so that types mix as little as may be.

    Movable pages that cannot claim the pageblock take the smallest one instead: they do not stay for ever.
    """
    least = PAGEBLOCK_ORDER if order < PAGEBLOCK_ORDER and alloc_flags & ALLOC_NOFRAGMENT else order
    for current in range(MAX_ORDER, least - 1, -1):
        other = find_suitable_fallback(zone, current, migratetype)
        if other < 0:
            continue
        whole = can_steal_fallback(machine, current, migratetype)
        if not whole and current > order:
            for smaller in range(order, current + 1):
                other = find_suitable_fallback(zone, smaller, migratetype)
                if other >= 0:
                    current = smaller
                    break
        pfn = zone.free_area[current].head[other]
        if machine.trace_events != U(0):
            trace_extfrag(machine, zone, pfn, order, current, migratetype, other)
        return steal_suitable_fallback(
            machine,
            zone,
            pfn,
            current,
            order,
            migratetype,
            alloc_flags,
            can_steal_fallback(machine, current, migratetype),
        )
    return 0


@kernel("i64(machine_t*, zone_t*, i64, i64, i64)")
def __rmqueue(machine, zone, order, migratetype, alloc_flags):
    """One block of `order`: own type, untouched memory, then another type's; its pfn or 0.

    Untouched memory is movable and may begin with blocks that are too small: on until one serves, or until one of
    the highest order lies there to be stolen from, as on a machine whose memory is all on its lists.
    """
    pfn = __rmqueue_smallest(machine, zone, order, migratetype)
    fresh = (
        get_pageblock_migratetype(machine, zone.virgin_pfn) if zone.virgin_pfn < zone.virgin_end else MIGRATE_MOVABLE
    )
    while pfn == 0 and (migratetype == fresh or zone.free_area[MAX_ORDER].head[fresh] == 0):
        if not touch_virgin(machine, zone):
            break
        pfn = __rmqueue_smallest(machine, zone, order, migratetype)
    if pfn == 0:
        pfn = __rmqueue_fallback(machine, zone, order, migratetype, alloc_flags)
    return pfn


@kernel("void(machine_t*, zone_t*, i64, i64)")
def change_pageblock(machine, zone, pfn, migratetype):
    """Give a pageblock another migratetype; if it is wholly free it may coalesce with its neighbours now."""
    block = block_start(pfn)
    __move_freepages_block(machine, zone, block, migratetype)
    set_pageblock_migratetype(machine, block, migratetype)
    if page_is_buddy(machine, zone, block, PAGEBLOCK_ORDER):
        del_page_from_free_list(machine, zone, block, PAGEBLOCK_ORDER)
        zone.free_pages -= PAGEBLOCK_PAGES
        __free_one_page(machine, zone, block, PAGEBLOCK_ORDER, migratetype)


# -- pageblocks for large atomic allocations -----------------------------------------------------------------


@kernel("void(machine_t*, zone_t*, i64, i64)")
def reserve_highatomic_pageblock(machine, zone, pfn, order):
    """A large atomic allocation succeeded: keep its pageblock for the next ones, up to a hundredth of the zone."""
    share = zone.managed_pages // 100
    if share < PAGEBLOCK_PAGES:
        return
    most = (share + PAGEBLOCK_PAGES - 1) // PAGEBLOCK_PAGES * PAGEBLOCK_PAGES
    if zone.nr_reserved_highatomic >= most or not migratetype_is_mergeable(get_pageblock_migratetype(machine, pfn)):
        return
    if order >= PAGEBLOCK_ORDER:
        change_pageblock_range(machine, pfn, order, MIGRATE_HIGHATOMIC)
        zone.nr_reserved_highatomic += 1 << order
        return
    if not zone_spans_block(zone, pfn):
        return
    __move_freepages_block(machine, zone, pfn, MIGRATE_HIGHATOMIC)
    set_pageblock_migratetype(machine, pfn, MIGRATE_HIGHATOMIC)
    zone.nr_reserved_highatomic += PAGEBLOCK_PAGES


@kernel("bool(machine_t*, zone_t*, i64, bool)")
def unreserve_highatomic_pageblock(machine, zone, migratetype, force):
    """Under pressure: give one pageblock up, the last one only by `force`; True if free pages came of it."""
    if zone.nr_reserved_highatomic == 0 or (not force and zone.nr_reserved_highatomic <= PAGEBLOCK_PAGES):
        return False
    for order in range(NR_ORDERS):
        pfn = zone.free_area[order].head[MIGRATE_HIGHATOMIC]
        if pfn == 0:
            continue
        if order < PAGEBLOCK_ORDER:
            pages = PAGEBLOCK_PAGES
            change_pageblock(machine, zone, pfn, migratetype)
        else:
            pages = 1 << order
            del_page_from_free_list(machine, zone, pfn, order)
            change_pageblock_range(machine, pfn, order, migratetype)
            zone.free_pages -= pages
            __free_one_page(machine, zone, pfn, order, migratetype)
        zone.nr_reserved_highatomic -= min(pages, zone.nr_reserved_highatomic)
        return True
    return False


@kernel("i64(machine_t*, zone_t*, i64, i64, i64)")
def rmqueue_buddy(machine, zone, order, migratetype, alloc_flags):
    """One block straight from the free lists; who must not fail gets those kept for atomic allocations at last."""
    pfn = 0
    if alloc_flags & ALLOC_HIGHATOMIC:
        pfn = __rmqueue_smallest(machine, zone, order, MIGRATE_HIGHATOMIC)
    if pfn == 0:
        pfn = __rmqueue(machine, zone, order, migratetype, alloc_flags)
    if pfn == 0 and alloc_flags & (ALLOC_OOM | ALLOC_NON_BLOCK):
        pfn = __rmqueue_smallest(machine, zone, order, MIGRATE_HIGHATOMIC)
    if pfn != 0 and alloc_flags & ALLOC_HIGHATOMIC:
        reserve_highatomic_pageblock(machine, zone, pfn, order)
    return pfn


# -- pageblocks that nobody may use --------------------------------------------------------------------------


@kernel("void(machine_t*, zone_t*, i64)")
def split_free_block(machine, zone, pfn):
    """If a free block larger than a pageblock lies over `pfn`, cut it into pageblocks."""
    for order in range(PAGEBLOCK_ORDER + 1, NR_ORDERS):
        head = pfn & ~((1 << order) - 1)
        if page_is_buddy(machine, zone, head, order):
            migratetype = page_of(machine, head).migratetype
            del_page_from_free_list(machine, zone, head, order)
            for block in range(head, head + (1 << order), PAGEBLOCK_PAGES):
                add_to_free_list(machine, zone, block, PAGEBLOCK_ORDER, migratetype, False)
            return


@kernel("void(machine_t*, zone_t*, i64, i64)")
def set_migratetype(machine, zone, pfn, migratetype):
    """Move one pageblock between isolated and not; its free pages go with it."""
    block = block_start(pfn)
    while zone.virgin_pfn < block + PAGEBLOCK_PAGES and zone.virgin_end > block and touch_virgin(machine, zone):
        pass
    split_free_block(machine, zone, block)
    change_pageblock(machine, zone, block, migratetype)


@kernel("bool(machine_t*, zone_t*, i64, i64)")
def start_isolate_page_range(machine, zone, start, end):
    """Let nobody have pages of the pageblocks in [start, end) any more; False (and nothing done): one is isolated already,
    or not wholly in the zone.

    Pages on CPUs' lists follow when they are drained, pages in use when they are freed.
    """
    for block in range(start, end, PAGEBLOCK_PAGES):
        if get_pageblock_migratetype(machine, block) == MIGRATE_ISOLATE or not zone_spans_block(zone, block):
            return False
    for block in range(start, end, PAGEBLOCK_PAGES):
        set_migratetype(machine, zone, block, MIGRATE_ISOLATE)
    return True


@kernel("void(machine_t*, zone_t*, i64, i64, i64)")
def undo_isolate_page_range(machine, zone, start, end, migratetype):
    """The pageblocks in [start, end) that are isolated become `migratetype`."""
    for block in range(start, end, PAGEBLOCK_PAGES):
        if get_pageblock_migratetype(machine, block) == MIGRATE_ISOLATE:
            set_migratetype(machine, zone, block, migratetype)


@kernel("i64(machine_t*, zone_t*, i64, i64)")
def test_pages_isolated(machine, zone, start, end):
    """0 if every page of the isolated range is free, else the first that is not."""
    pfn = start
    while pfn < end:
        page = page_of(machine, pfn)
        if (page.flags & _BUDDY) == U(0):
            return pfn
        pfn += 1 << page.private
    return 0
