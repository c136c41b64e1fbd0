"""What lies in each pageblock: its mobility type, and how many of its pages are free, movable, or neither; free blocks by size."""

import numpy as np

from numaemu.compiler.decorators import entry
from numaemu.compiler.pointer import u8
from numaemu.kernel.include.mm_types import PG_buddy, PG_lru, PG_pcp, machine_t
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, MIGRATE_MOVABLE, ZONE_NAMES, page_of, zone_of
from numaemu.spec.param import MAX_ORDER, NR_ORDERS, PAGEBLOCK_ORDER

U = np.uint64


def virgin_blocks(zone):
    """By order, the blocks that the untouched rest of a zone consists of."""
    pfn, end, counts = zone.virgin_pfn, zone.virgin_end, np.zeros(NR_ORDERS, np.int64)
    while pfn < end:
        order = NR_ORDERS - 1
        while pfn & ((1 << order) - 1) or pfn + (1 << order) > end:
            order -= 1
        blocks = (end - pfn) >> order if order == NR_ORDERS - 1 else 1  # the largest all at once
        counts[order] += blocks
        pfn += blocks << order
    return counts


def free_blocks(zone):
    """Free blocks by [migratetype, order]; untouched memory is movable, in the blocks it would be cut into."""
    counts = np.array([zone.free_area[order].nr_free.as_numpy() for order in range(NR_ORDERS)]).T
    counts[MIGRATE_MOVABLE] += virgin_blocks(zone)
    return counts


@entry("void(u64, i64, i64[], i64[])")
def count_pageblocks(machine_address, number, free, movable):
    """Pages of a zone by pageblock: free ones (on free lists, on CPUs' lists, untouched), those on an LRU list."""
    machine = machine_t.at(machine_address)
    zone = zone_of(machine, number)
    first, pfn, end = zone.start_pfn >> PAGEBLOCK_ORDER, zone.start_pfn, zone.start_pfn + zone.spanned_pages
    while pfn < end:
        if zone.virgin_pfn <= pfn < zone.virgin_end:
            free[(pfn >> PAGEBLOCK_ORDER) - first] += 1
            pfn += 1
            continue
        page, n = page_of(machine, pfn), 1
        if page.flags & U(PG_buddy) != U(0):
            order = page.private  # a hint: the block may be taken at this moment
            n = min(1 << order if 0 <= order <= MAX_ORDER else 1, end - pfn)
            for at in range(pfn, pfn + n):
                free[(at >> PAGEBLOCK_ORDER) - first] += 1
        elif page.flags & U(PG_pcp) != U(0):
            free[(pfn >> PAGEBLOCK_ORDER) - first] += 1
        elif page.flags & U(PG_lru) != U(0):
            movable[(pfn >> PAGEBLOCK_ORDER) - first] += 1
        pfn += n


def pageblocks(machine):
    """Each populated zone: {node, zone, first (block number), types, free, movable}, the last three by pageblock."""
    zones = []
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if zone.present_pages == 0:
            continue
        first, last = zone.start_pfn >> PAGEBLOCK_ORDER, (zone.start_pfn + zone.spanned_pages - 1) >> PAGEBLOCK_ORDER
        free, movable = np.zeros(last + 1 - first, np.int64), np.zeros(last + 1 - first, np.int64)
        count_pageblocks(int(machine.address), number, free, movable)
        zones.append(
            {
                "node": zone.node,
                "zone": ZONE_NAMES[zone.type],
                "first": first,
                "types": u8.array(machine.block_type).as_numpy(last + 1)[first:].tolist(),
                "free": free.tolist(),
                "movable": movable.tolist(),
            }
        )
    return zones
