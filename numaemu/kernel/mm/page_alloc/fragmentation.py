"""How fragmented the free memory of a zone is: the indices of Linux's mm/vmstat.c.

Words of the free lists are read without a lock, as hints.
"""

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, i64
from numaemu.kernel.include.mmzone import MIGRATE_TYPES
from numaemu.spec.param import NR_ORDERS

contig_page_info_t = Struct(
    "contig_page_info_t", [("free_pages", i64), ("free_blocks_total", i64), ("free_blocks_suitable", i64)]
)


@hot
def virgin_order(pfn, end):
    """The order of the block that untouched memory at `pfn` would be cut into."""
    order = NR_ORDERS - 1
    while pfn & ((1 << order) - 1) != 0 or pfn + (1 << order) > end:
        order -= 1
    return order


@hot
def fill_contig_page_info(zone, suitable_order):
    """Of the zone's free blocks: (pages, blocks, blocks of `suitable_order` that they hold)."""
    pages = blocks = suitable = 0
    for order in range(NR_ORDERS):
        n = 0
        for migratetype in range(MIGRATE_TYPES):
            n += zone.free_area[order].nr_free[migratetype]
        blocks += n
        pages += n << order
        if order >= suitable_order:
            suitable += n << (order - suitable_order)
    pfn, end = zone.virgin_pfn, zone.virgin_end
    while pfn < end:
        order = virgin_order(pfn, end)
        n = (end - pfn) >> order if order == NR_ORDERS - 1 else 1
        blocks += n
        pages += n << order
        if order >= suitable_order:
            suitable += n << (order - suitable_order)
        pfn += n << order
    return pages, blocks, suitable


@kernel("i64(zone_t*, i64)")
def fragmentation_index(zone, order):
    """Why an allocation would fail, in thousandths: near 0 for lack of memory, near 1000 by fragmentation.

    -1000: it would not.
    """
    pages, blocks, suitable = fill_contig_page_info(zone, order)
    if blocks == 0:
        return 0
    if suitable != 0:
        return -1000
    return 1000 - (1000 + pages * 1000 // (1 << order)) // blocks


@kernel("i64(zone_t*, i64)")
def unusable_free_index(zone, order):
    """How much of the free memory an allocation of this order cannot use, in thousandths."""
    pages, _blocks, suitable = fill_contig_page_info(zone, order)
    if pages == 0:
        return 1000
    return (pages - (suitable << order)) * 1000 // pages


@kernel("i64(zone_t*, i64)")
def extfrag_for_order(zone, order):
    """The same in hundredths; 0 if nothing is free."""
    pages, _blocks, suitable = fill_contig_page_info(zone, order)
    return (pages - (suitable << order)) * 100 // pages if pages != 0 else 0
