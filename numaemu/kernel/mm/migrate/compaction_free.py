"""Compaction's free scanner, run by a node, and what compaction remembers of a zone. Part of Linux's mm/compaction.c.

Free lists belong to their node, so the free scanner runs there: a context that compacts asks for as many free pages as
it is about to move (MSG_ISOLATE_FREE) and waits. The node walks pageblocks from the zone's end downward and hands over
a chain of single pages in the context's compact_control_t. What is not used comes back over zone.returned.

Untouched memory needs no scanning: it is free in the largest blocks, which are no targets (suitable_migration_target).
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import Struct, i64, u8, u64
from numaemu.hardware.mailbox import mailbox_t
from numaemu.kernel.core.smp import MSG_ISOLATE_FREE, MSG_NONE, MSG_RANGE, reply
from numaemu.kernel.include.mm_types import PG_buddy, PG_used, machine_t
from numaemu.kernel.include.mmzone import (
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
    MIGRATE_PCPTYPES,
    MIGRATE_TYPES,
    WMARK_MIN,
    node_of,
    page_of,
    zone_of,
)
from numaemu.kernel.mm.page_alloc.free_area import del_page_from_free_list, touch_virgin
from numaemu.kernel.mm.page_alloc.node_side import free_pcppages_bulk, serve_pages
from numaemu.kernel.mm.page_alloc.page_isolation import serve_range
from numaemu.spec.param import NR_ORDERS, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES

U = np.uint64
_BUDDY, _USED = U(PG_buddy), U(PG_used)
COMPACT_CLUSTER_MAX = 32  # SWAP_CLUSTER_MAX
COMPACT_MAX_DEFER_SHIFT = 6  # compaction is skipped at most 64 times in a row
MAP_PAGES = 16  # what the host maps at a reading fault: fault_around_bytes of its mm/memory.c
MAP_AHEAD = 4 * PAGEBLOCK_PAGES  # how far before either scanner: what a batch or two need; assumed

# enum migrate_mode
MIGRATE_ASYNC, MIGRATE_SYNC_LIGHT, MIGRATE_SYNC = range(3)
COMPACT_ALL = -1  # order: everything (is_via_compact_memory)

# fmt: off
compact_control_t = Struct("compact_control_t", [       # struct compact_control: one for each context
    # by the context that compacts
    ("zone", i64),                       # number
    ("order", i64), ("gfp", i64), ("mode", i64), ("migratetype", i64), ("highest_zoneidx", i64),
    ("direct_compaction", i64), ("whole_zone", i64), ("ignore_skip_hint", i64), ("ignore_block_suitable", i64),
    ("proactive_compaction", i64), ("finish_pageblock", i64), ("contended", i64),
    ("alloc_contig", i64),               # everything has to leave a range: what cannot be reclaimed and huge pages, too
    ("migrate_pfn", i64),                # the migrate scanner's place
    ("cluster", i64),                    # pages to isolate at a time
    ("nr_migratepages", i64),            # pages that want a target
    ("total_migrate_scanned", i64),
    # by the zone's node while the context waits for its answer, else by the context
    ("free_pfn", i64),                   # the free scanner's place
    ("freepages", i64), ("last_freepage", i64), ("nr_freepages", i64),      # the chain, linked by lru_next; 0 = none
    ("total_free_scanned", i64), ("free_isolated", i64),
])
# fmt: on


@hot
def compact_control_of(machine, number):
    return compact_control_t.array(machine.compact)[number]


@hot
def pageblock_start(pfn):
    return pfn & ~(PAGEBLOCK_PAGES - 1)


@hot
def pageblock_end(pfn):
    return (pfn & ~(PAGEBLOCK_PAGES - 1)) + PAGEBLOCK_PAGES


# -- hints: single words that any context writes without a lock, as in Linux; a lost one costs a scan or saves one -----


@hot
def get_pageblock_skip(machine, pfn):
    return u8.array(machine.block_skip)[pfn >> PAGEBLOCK_ORDER] != 0


@hot
def set_pageblock_skip(machine, pfn, skip):
    u8.array(machine.block_skip)[pfn >> PAGEBLOCK_ORDER] = skip


@hot
def isolation_suitable(machine, cc, pfn):
    """False if an earlier scan found nothing in this pageblock."""
    return cc.ignore_skip_hint != 0 or not get_pageblock_skip(machine, pfn)


@kernel("void(zone_t*, i64)")
def defer_compaction(zone, order):
    """Compaction was in vain: the next attempts are skipped, twice as many as last time."""
    zone.compact_considered = 0
    zone.compact_defer_shift = min(zone.compact_defer_shift + 1, COMPACT_MAX_DEFER_SHIFT)
    zone.compact_order_failed = min(zone.compact_order_failed, order)


@kernel("bool(zone_t*, i64)")
def compaction_deferred(zone, order):
    """True if this attempt is to be skipped."""
    if order < zone.compact_order_failed:
        return False
    limit = 1 << zone.compact_defer_shift
    zone.compact_considered += 1
    if zone.compact_considered >= limit:
        zone.compact_considered = limit
        return False
    return True


@kernel("void(zone_t*, i64, bool)")
def compaction_defer_reset(zone, order, alloc_success):
    """Compaction has led to a block, or is expected to."""
    if alloc_success:
        zone.compact_considered = zone.compact_defer_shift = 0
    if order >= zone.compact_order_failed:
        zone.compact_order_failed = order + 1


@hot
def compaction_restarting(zone, order):
    """True after the longest row of skipped attempts."""
    return (
        order >= zone.compact_order_failed
        and zone.compact_defer_shift == COMPACT_MAX_DEFER_SHIFT
        and zone.compact_considered >= 1 << zone.compact_defer_shift
    )


# -- fragmentation, mm/vmstat.c: words of the free lists are read without a lock, as hints ---------------------

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


# -- the free scanner, run by the node -------------------------------------------------------------------------


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


# -- what is about to be moved, mapped ahead -------------------------------------------------------------------
# The host maps frames into a process at the process's first access, which costs half of what moving pages does. A CPU has
# mapped what its tasks use, its node's process has not. So while the node's kernel threads move a batch, its first
# thread, as long as nobody asks it for anything, maps what comes next (in parallel, on another host core). Nothing
# emulated changes.


@hot
def map_frames(machine, zone, pfn):
    """Access the first frame in use, or used before, of MAP_PAGES. An untouched one would cost the host memory."""
    if zone.virgin_pfn <= pfn < zone.virgin_end:
        return
    for at in range(pfn, pfn + MAP_PAGES):
        if page_of(machine, at).flags & _USED != U(0):
            load_acquire(u64.array(machine.memory + (U(at) << U(12))), 0)
            return


@kernel("bool(machine_t*, i64)")
def map_ahead(machine, context):
    """Map some frames before the scanners of this node's own compaction; False if all are, so far. Another context is a
    CPU's. The scanners' places are hints: the context that compacts moves one meanwhile.
    """
    cc = compact_control_of(machine, context)
    zone = zone_of(machine, cc.zone)
    node, low, high, mapped = (
        node_of(machine, zone.node),
        cc.migrate_pfn & -MAP_PAGES,
        pageblock_end(cc.free_pfn),
        False,
    )
    if context != machine.nr_cpus + zone.node:
        return False
    if not low <= node.map_source <= low + MAP_AHEAD:
        node.map_source = low
    if not high - MAP_AHEAD <= node.map_target <= high:
        node.map_target = high
    if node.map_source < min(low + MAP_AHEAD, high):
        map_frames(machine, zone, node.map_source)
        node.map_source += MAP_PAGES
        mapped = True
    if node.map_target > max(high - MAP_AHEAD, low):
        node.map_target -= MAP_PAGES
        map_frames(machine, zone, node.map_target)
        mapped = True
    return mapped


@entry("i64(u64, u64, u64)", nogil=True)
def serve_node(machine_address, mailbox_address, words_address):
    """A node's loop: serve_pages, the free scanner, the steps of page_isolation.py, and what can be done ahead. Kernel
    threads need Python's lock meanwhile.
    """
    machine, mailbox, words = machine_t.at(machine_address), mailbox_t.at(mailbox_address), i64.array(words_address)
    served = -1  # the context for which free pages were isolated last
    while True:
        kind = serve_pages(machine, mailbox, words)
        if kind == MSG_RANGE:
            reply(machine, words[6], words[2], serve_range(machine, words[3], words[4], words[5]))
        elif kind == MSG_ISOLATE_FREE:
            served = words[6]
            isolate_freepages(machine, served)
            reply(machine, served, words[2], compact_control_of(machine, served).nr_freepages)
        elif kind != MSG_NONE or served < 0 or not map_ahead(machine, served):
            return kind
