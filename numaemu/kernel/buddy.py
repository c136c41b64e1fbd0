"""The buddy system: a zone's free lists, as the node that owns them keeps them. Half of Linux's mm/page_alloc.c.

Orders 0 to 10, grouped by mobility. The node cuts chains of single pages for CPUs (rmqueue_bulk, fill_shelf), takes
returned ones back (free_pcppages_bulk) and serves larger blocks; the other half, what a CPU does, is page_alloc.py.

Untouched memory costs nothing: what a zone never gave out is its *virgin* range, counted as free blocks of the highest
order, whose page structs nobody has written.
"""
import numpy as np

from numaemu.atomic import compare_exchange, exchange, load_acquire, store_seq_cst
from numaemu.compile import hot, kernel
from numaemu.kernel.mm_types import PG_buddy, PG_pcp, PG_used
from numaemu.kernel.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.mmzone import (MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE, NODE_RUNS, node_t, page_of,
                                   page_zone, pcp_of, zone_of)
from numaemu.kernel.smp import MSG_ALLOC, MSG_DRAIN, MSG_FILL, MSG_FREE, reply, wake_cpu
from numaemu.mailbox import fetch
from numaemu.native import populate, prefetch
from numaemu.param import MAX_ORDER, NR_ORDERS, PAGEBLOCK_ORDER
from numaemu.pointer import u8

U = np.uint64
_BUDDY, _PCP, _USED = U(PG_buddy), U(PG_pcp), U(PG_used)
POPULATE_FROM = 128              # pages of a chain from which on its second half is made present ahead; measured


@hot
def get_pageblock_migratetype(machine, pfn):
    return int(u8.array(machine.block_type)[pfn >> PAGEBLOCK_ORDER])


@kernel("void(machine_t*, i64, i64)")
def set_pageblock_migratetype(machine, pfn, migratetype):
    u8.array(machine.block_type)[pfn >> PAGEBLOCK_ORDER] = migratetype


@hot
def add_to_free_list(machine, zone, pfn, order, migratetype, to_tail):
    """Link a free block into its list and mark it."""
    area, page = zone.free_area[order], page_of(machine, pfn)
    VM_BUG_ON_PAGE(page.flags & (_BUDDY | _PCP) != U(0) or pfn & ((1 << order) - 1) != 0, page)
    page.flags = (page.flags & _USED) | _BUDDY
    page.private, page.migratetype = order, migratetype
    head, tail = area.head[migratetype], area.tail[migratetype]
    page.lru_prev, page.lru_next = (tail, 0) if to_tail else (0, head)
    if head == 0:
        area.head[migratetype] = area.tail[migratetype] = pfn
    elif to_tail:
        page_of(machine, tail).lru_next = pfn
        area.tail[migratetype] = pfn
    else:
        page_of(machine, head).lru_prev = pfn
        area.head[migratetype] = pfn
    area.nr_free[migratetype] += 1


@hot
def del_page_from_free_list(machine, zone, pfn, order):
    """Unlink a free block."""
    area, page = zone.free_area[order], page_of(machine, pfn)
    migratetype = page.migratetype
    VM_BUG_ON_PAGE(page.flags & _BUDDY == U(0) or page.private != order, page)
    if page.lru_prev != 0:
        page_of(machine, page.lru_prev).lru_next = page.lru_next
    else:
        area.head[migratetype] = page.lru_next
    if page.lru_next != 0:
        page_of(machine, page.lru_next).lru_prev = page.lru_prev
    else:
        area.tail[migratetype] = page.lru_prev
    page.flags &= ~_BUDDY
    area.nr_free[migratetype] -= 1


@hot
def page_is_buddy(machine, zone, pfn, order):
    """True if a free block of this order begins at `pfn` in the zone; never looks at virgin page structs."""
    if pfn < zone.start_pfn or pfn >= zone.start_pfn + zone.spanned_pages:
        return False
    if zone.virgin_pfn <= pfn < zone.virgin_end:
        return False
    page = page_of(machine, pfn)
    return (page.flags & _BUDDY) != U(0) and page.private == order


@kernel("void(machine_t*, zone_t*, i64, i64, i64)")
def __free_one_page(machine, zone, pfn, order, migratetype):
    """Give a block back, coalescing upward as far as the buddies are free."""
    zone.free_pages += 1 << order
    while order < MAX_ORDER:
        buddy = pfn ^ (1 << order)
        if not page_is_buddy(machine, zone, buddy, order):
            break
        del_page_from_free_list(machine, zone, buddy, order)
        pfn = min(pfn, buddy)
        order += 1
    if order >= PAGEBLOCK_ORDER:
        migratetype = get_pageblock_migratetype(machine, pfn)
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


@hot
def fallback_type(migratetype, n):
    """Linux's `fallbacks` table: where to steal first and second."""
    if migratetype == MIGRATE_UNMOVABLE:
        return MIGRATE_RECLAIMABLE if n == 0 else MIGRATE_MOVABLE
    if migratetype == MIGRATE_MOVABLE:
        return MIGRATE_RECLAIMABLE if n == 0 else MIGRATE_UNMOVABLE
    return MIGRATE_UNMOVABLE if n == 0 else MIGRATE_MOVABLE


@kernel("void(machine_t*, zone_t*, i64, i64)")
def move_freepages_block(machine, zone, pfn, migratetype):
    """Move the free blocks of a pageblock to another list; claim the pageblock if at least half of it is free."""
    start = pfn & ~((1 << PAGEBLOCK_ORDER) - 1)
    end = start + (1 << PAGEBLOCK_ORDER)
    at, moved = start, 0
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
    if moved >= 1 << (PAGEBLOCK_ORDER - 1):
        set_pageblock_migratetype(machine, pfn, migratetype)


@kernel("void(machine_t*, zone_t*, i64, i64, i64)")
def steal_suitable_fallback(machine, zone, pfn, order, migratetype):
    """Make whole pageblocks of a stolen block ours where Linux would: large blocks, or wanted for kernel memory."""
    if order >= PAGEBLOCK_ORDER:
        for block in range(pfn, pfn + (1 << order), 1 << PAGEBLOCK_ORDER):
            set_pageblock_migratetype(machine, block, migratetype)
    elif order >= PAGEBLOCK_ORDER // 2 or migratetype != MIGRATE_MOVABLE:
        move_freepages_block(machine, zone, pfn, migratetype)


@kernel("i64(machine_t*, zone_t*, i64, i64)")
def __rmqueue_fallback(machine, zone, order, migratetype):
    """Nothing of our own type: take the largest block of another, so that types mix as little as may be."""
    for current in range(MAX_ORDER, order - 1, -1):
        for n in range(2):
            other = fallback_type(migratetype, n)
            pfn = zone.free_area[current].head[other]
            if pfn != 0:
                steal_suitable_fallback(machine, zone, pfn, current, migratetype)
                page = page_of(machine, pfn)
                actual = page.private
                listed = page.migratetype if actual < PAGEBLOCK_ORDER else migratetype
                del_page_from_free_list(machine, zone, pfn, actual)
                expand(machine, zone, pfn, order, actual, listed)
                zone.free_pages -= 1 << order
                return pfn
    return 0


@kernel("i64(machine_t*, zone_t*, i64, i64)")
def __rmqueue(machine, zone, order, migratetype):
    """One block of `order`: own type, untouched memory, then another type's; its pfn or 0.

    Untouched memory is movable and may begin with blocks that are too small: on until one serves, or until one of
    the highest order lies there to be stolen from, as on a machine whose memory is all on its lists.
    """
    pfn = __rmqueue_smallest(machine, zone, order, migratetype)
    while pfn == 0 and (migratetype == MIGRATE_MOVABLE or zone.free_area[MAX_ORDER].head[MIGRATE_MOVABLE] == 0):
        if not touch_virgin(machine, zone):
            break
        pfn = __rmqueue_smallest(machine, zone, order, migratetype)
    if pfn == 0:
        pfn = __rmqueue_fallback(machine, zone, order, migratetype)
    return pfn


@kernel("i64(machine_t*, zone_t*, i64, i64, pcp_list_t*)")
def rmqueue_bulk(machine, zone, count, migratetype, shelf):
    """Up to `count` single pages as a chain linked by lru_next; its first pfn or 0. The shelf learns how many."""
    first = last = taken = 0
    while taken < count:
        pfn = __rmqueue(machine, zone, 0, migratetype)
        if pfn == 0:
            break
        page = page_of(machine, pfn)
        page.flags = (page.flags & _USED) | _PCP
        page.lru_next, page.order, page.migratetype = 0, 0, migratetype
        if first == 0:
            first = pfn
        else:
            page_of(machine, last).lru_next = pfn
        last = pfn
        taken += 1
    shelf.shelf_count = taken
    return first


@kernel("i64(machine_t*, zone_t*)")
def free_pcppages_bulk(machine, zone):
    """Take back the chains that CPUs returned to this zone; pages."""
    pfn, n = exchange(zone, "returned", 0), 0
    while pfn != 0:
        page = page_of(machine, pfn)
        following = page.lru_next
        prefetch(page_of(machine, following).address)
        page.flags &= _USED
        __free_one_page(machine, zone, pfn, 0, get_pageblock_migratetype(machine, pfn))
        pfn = following
        n += 1
    return n


# The host gives a frame memory at its first touch, which costs it more than our whole fault does. While a CPU eats
# the first half of a long chain of untouched frames, the node makes the second half present (in parallel, on another
# host core). Nothing emulated changes: the frames still read as zeros.

@hot
def note_fresh_runs(machine, zone, first, count):
    """Before a chain is published: remember the runs of untouched frames in its second half."""
    node, pfn = node_t.array(machine.nodes)[zone.node], first
    node.nr_runs = 0
    if count < POPULATE_FROM:
        return
    for i in range(count):
        page, n = page_of(machine, pfn), node.nr_runs
        if i >= count // 2 and page.flags & _USED == U(0):
            if n > 0 and node.run_pfn[n - 1] + node.run_pages[n - 1] == pfn:
                node.run_pages[n - 1] += 1
            elif n < NODE_RUNS:
                node.run_pfn[n], node.run_pages[n] = pfn, 1
                node.nr_runs = n + 1
        pfn = page.lru_next


@hot
def populate_runs(machine, zone):
    """Make them present on the host."""
    node = node_t.array(machine.nodes)[zone.node]
    for i in range(node.nr_runs):
        populate(machine.memory + (U(node.run_pfn[i]) << U(12)), node.run_pages[i] * 4096)


@kernel("i64(machine_t*, i64, i64, i64, i64, i64)")
def fill_shelf(machine, zone_number, migratetype, count, cpu_number, mark):
    """Serve MSG_FILL: put a chain on a CPU's shelf, no more than leaves the zone above `mark`; pages given.

    An empty shelf answered with nothing reads -1, so that who waits goes on to another zone.
    """
    zone = zone_of(machine, zone_number)
    free_pcppages_bulk(machine, zone)
    shelf = pcp_of(machine, cpu_number, zone_number).lists[migratetype]
    if load_acquire(shelf, "shelf") > 0:
        wake_cpu(machine, cpu_number)
        return 0
    spare = zone.free_pages - zone.watermark[mark]
    first = rmqueue_bulk(machine, zone, min(count, max(spare, 0)), migratetype, shelf)
    taken = shelf.shelf_count
    note_fresh_runs(machine, zone, first, taken)
    store_seq_cst(shelf, "shelf", first if first != 0 else -1)
    wake_cpu(machine, cpu_number)
    populate_runs(machine, zone)
    return taken


@kernel("i64(machine_t*, i64, i64, i64)")
def alloc_block(machine, zone_number, order, migratetype):
    """Serve MSG_ALLOC: one block for a CPU that has looked at the watermarks; its pfn or 0."""
    zone = zone_of(machine, zone_number)
    free_pcppages_bulk(machine, zone)
    pfn = __rmqueue(machine, zone, order, migratetype)
    if pfn != 0:
        for i in range(1 << order):
            page = page_of(machine, pfn + i)
            page.flags, page.migratetype = page.flags & _USED, migratetype
    return pfn


@kernel("void(machine_t*, i64, i64)")
def free_block(machine, pfn, order):
    """Serve MSG_FREE: a block of 2**order pages comes back."""
    for i in range(1 << order):
        page = page_of(machine, pfn + i)
        VM_BUG_ON_PAGE(page.flags & (_BUDDY | _PCP) != U(0) or page.mapcount != 0, page)
        page.refcount = 0
        page.flags &= _USED
    zone = zone_of(machine, page_zone(machine, pfn))
    __free_one_page(machine, zone, pfn, order, get_pageblock_migratetype(machine, pfn))


@kernel("i64(machine_t*, i64)")
def take_back_shelves(machine, zone_number):
    """The node's part of drain_all_pages: chains that CPUs have not taken yet go back to the lists; pages."""
    zone, n = zone_of(machine, zone_number), 0
    for cpu in range(machine.nr_cpu_ids):
        for migratetype in range(MIGRATE_RECLAIMABLE + 1):
            shelf = pcp_of(machine, cpu, zone_number).lists[migratetype]
            pfn = load_acquire(shelf, "shelf")
            if pfn <= 0 or compare_exchange(shelf, "shelf", pfn, -1) != pfn:
                continue
            wake_cpu(machine, cpu)
            while pfn != 0:
                following = page_of(machine, pfn).lru_next
                page_of(machine, pfn).flags &= _USED
                __free_one_page(machine, zone, pfn, 0, get_pageblock_migratetype(machine, pfn))
                pfn = following
                n += 1
    return n


@kernel("i64(machine_t*, mailbox_t*, i64*)")
def serve_pages(machine, mailbox, words):
    """A node's loop: serve what CPUs ask for until the mailbox is empty (0) or another kind of message comes (its kind)."""
    while True:
        kind = fetch(mailbox, words)
        token, a, b, c, d = words[2], words[3], words[4], words[5], words[6]
        if kind == MSG_FILL:             # a = zone * 4 + watermark, b = migratetype, c = pages, d = CPU
            fill_shelf(machine, a // 4, b, c, d, a % 4)
        elif kind == MSG_DRAIN:          # a = zone
            free_pcppages_bulk(machine, zone_of(machine, a))
            if token != 0:
                reply(machine, d, token, 0)
        elif kind == MSG_ALLOC:          # a = zone, b = order, c = migratetype, d = CPU
            reply(machine, d, token, alloc_block(machine, a, b, c))
        elif kind == MSG_FREE:           # a = pfn, b = order
            free_block(machine, a, b)
        else:
            return kind
