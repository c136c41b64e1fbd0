"""Which zones an allocation may use, and how far down: watermarks, reserves, migratetypes. From Linux's mm/page_alloc.c."""

from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.include.gfp import __GFP_DMA, __GFP_DMA32, __GFP_HIGHMEM, __GFP_MOVABLE, __GFP_RECLAIMABLE
from numaemu.kernel.include.internal import (
    ALLOC_HIGHATOMIC,
    ALLOC_MIN_RESERVE,
    ALLOC_NON_BLOCK,
    ALLOC_OOM,
    ALLOC_RESERVES,
    ALLOC_WMARK_MASK,
    ALLOC_WMARK_MIN,
)
from numaemu.kernel.include.mmzone import (
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
    MIGRATE_PCPTYPES,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    WMARK_MIN,
    ZONE_DMA,
    ZONE_DMA32,
    ZONE_HIGHMEM,
    ZONE_MOVABLE,
    ZONE_NORMAL,
    wmark_pages,
)
from numaemu.spec.param import NR_ORDERS


@hot
def gfp_zone(machine, gfp):
    """The highest zone an allocation may come from. What a machine has no zone for lies in the normal one."""
    if gfp & __GFP_HIGHMEM:
        if gfp & __GFP_MOVABLE:
            return ZONE_MOVABLE
        return ZONE_HIGHMEM if machine.highmem != 0 else ZONE_NORMAL
    if gfp & __GFP_DMA:
        return ZONE_DMA
    return ZONE_DMA32 if gfp & __GFP_DMA32 and machine.highmem == 0 else ZONE_NORMAL


@hot
def gfp_migratetype(machine, gfp):
    """The mobility type of the pageblocks that an allocation is to come from."""
    if machine.page_group_by_mobility_disabled != 0:
        return MIGRATE_UNMOVABLE
    if gfp & __GFP_MOVABLE:
        return MIGRATE_MOVABLE
    return MIGRATE_RECLAIMABLE if gfp & __GFP_RECLAIMABLE else MIGRATE_UNMOVABLE


@hot
def unusable_free(zone, order, alloc_flags):
    """__zone_watermark_unusable_free: free pages that do not count for this allocation."""
    unusable = (1 << order) - 1
    return unusable if alloc_flags & ALLOC_RESERVES else unusable + zone.nr_free_highatomic


@kernel("i64(i64, i64)")
def reserve_mark(mark, alloc_flags):
    """How far below a watermark those may go who cannot wait, or are dying."""
    if alloc_flags & ALLOC_MIN_RESERVE:
        mark -= mark // 2
        if alloc_flags & ALLOC_NON_BLOCK:
            mark -= mark // 4
    if alloc_flags & ALLOC_OOM:
        mark -= mark // 2
    return mark


@kernel("bool(zone_t*, i64, i64)")
def has_block(zone, order, alloc_flags):
    """True if a free block of this order lies on a list the allocation may use."""
    for current in range(order, NR_ORDERS):
        area = zone.free_area[current]
        for migratetype in range(MIGRATE_PCPTYPES):
            if area.nr_free[migratetype] > 0:
                return True
        if alloc_flags & (ALLOC_HIGHATOMIC | ALLOC_OOM) and area.nr_free[MIGRATE_HIGHATOMIC] > 0:
            return True
    first = (zone.virgin_pfn + (1 << order) - 1) & -(1 << order)
    return first + (1 << order) <= zone.virgin_end


@kernel("bool(zone_t*, i64, i64, i64)")
def only_blocks_are_missing(zone, order, highest_zone, alloc_flags):
    """True if a zone that is not to serve has pages enough above its watermark, but no block of this order."""
    mark = wmark_pages(zone, alloc_flags & ALLOC_WMARK_MASK)
    if alloc_flags & ALLOC_RESERVES:
        mark = reserve_mark(mark, alloc_flags)
    return (
        order > 0
        and zone.free_pages - unusable_free(zone, order, alloc_flags) > mark + zone.lowmem_reserve[highest_zone]
    )


@kernel("bool(zone_t*, i64, i64, i64, i64, i64)")
def __zone_watermark_ok(zone, order, mark, highest_zone, alloc_flags, free):
    """True if `free` pages stay above `mark` and the zone's lowmem reserve when 2**order of them are taken."""
    free -= unusable_free(zone, order, alloc_flags)
    if alloc_flags & ALLOC_RESERVES:
        mark = reserve_mark(mark, alloc_flags)
    if free <= mark + zone.lowmem_reserve[highest_zone]:
        return False
    return order == 0 or has_block(zone, order, alloc_flags)


@kernel("bool(zone_t*, i64, i64, i64, i64)")
def zone_watermark_ok(zone, order, mark, highest_zone, alloc_flags):
    return __zone_watermark_ok(zone, order, mark, highest_zone, alloc_flags, zone.free_pages)


@kernel("bool(zone_t*, i64, i64, i64, i64)")
def zone_watermark_slow(zone, order, mark, highest_zone, alloc_flags):
    """What zone_watermark_fast does when a first look fails: __GFP_HIGH does not mind the boost of the lowest mark."""
    if zone_watermark_ok(zone, order, mark, highest_zone, alloc_flags):
        return True
    if (
        order == 0
        and alloc_flags & ALLOC_MIN_RESERVE
        and alloc_flags & ALLOC_WMARK_MASK == ALLOC_WMARK_MIN
        and zone.watermark_boost != 0
    ):
        return zone_watermark_ok(zone, order, zone.watermark[WMARK_MIN], highest_zone, alloc_flags)
    return False


@hot
def zone_watermark_fast(zone, order, highest_zone, alloc_flags):
    """True if the zone may serve under the watermark that the alloc flags name."""
    mark = wmark_pages(zone, alloc_flags & ALLOC_WMARK_MASK)
    if order == 0 and zone.free_pages - zone.nr_free_highatomic > mark + zone.lowmem_reserve[highest_zone]:
        return True
    return zone_watermark_slow(zone, order, mark, highest_zone, alloc_flags)
