"""What a node does for CPUs: chains of single pages, larger blocks, taking them back. Half of Linux's mm/page_alloc.c.

The node cuts chains of single pages for CPUs (rmqueue_bulk, fill_shelf), takes returned ones back (free_pcppages_bulk)
and serves larger blocks; the free lists are free_area.py, what is taken from which of them mobility.py; the other half,
what a CPU does, is page_alloc.py.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, load_acquire, store_seq_cst
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import populate, prefetch
from numaemu.kernel.core.smp import wake_cpu
from numaemu.kernel.include.internal import ALLOC_AHEAD
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import PG_buddy, PG_pcp, PG_used
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import (
    MIGRATE_RECLAIMABLE,
    NODE_RUNS,
    WMARK_HIGH,
    node_t,
    page_of,
    page_zone,
    pcp_of,
    wmark_pages,
    zone_of,
)
from numaemu.kernel.mm.page_alloc.free_area import __free_one_page, get_pageblock_migratetype
from numaemu.kernel.mm.page_alloc.mobility import __rmqueue, rmqueue_buddy
from numaemu.spec.param import MAX_ORDER, PAGE_SIZE

U = np.uint64
_BUDDY, _PCP, _USED = U(PG_buddy), U(PG_pcp), U(PG_used)
POPULATE_FROM = 128  # pages of a chain from which on its second half is made present ahead; measured


@kernel("i64(machine_t*, zone_t*, i64, i64, i64, pcp_list_t*)")
def rmqueue_bulk(machine, zone, count, migratetype, alloc_flags, shelf):
    """Up to `count` single pages as a chain linked by lru_next; its first pfn or 0. The shelf learns how many."""
    first = last = taken = 0
    while taken < count:
        pfn = __rmqueue(machine, zone, 0, migratetype, alloc_flags)
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
        populate(frame_of(machine, node.run_pfn[i]), node.run_pages[i] * PAGE_SIZE)


@kernel("i64(machine_t*, i64, i64)")
def take_back_shelves(machine, zone_number, but):
    """Chains that were asked for ahead, and that CPUs (but the one of number `but`) have not taken yet, go back to the lists;
    pages. A chain that a CPU waits for is as good as taken.
    """
    zone, n = zone_of(machine, zone_number), 0
    for cpu in range(machine.nr_cpu_ids):
        for migratetype in range(MIGRATE_RECLAIMABLE + 1):
            shelf = pcp_of(machine, cpu, zone_number).lists[migratetype]
            pfn = load_acquire(shelf, "shelf")
            if pfn <= 0 or cpu == but or shelf.shelf_ahead == 0 or compare_exchange(shelf, "shelf", pfn, -1) != pfn:
                continue
            wake_cpu(machine, cpu)
            while pfn != 0:
                following = page_of(machine, pfn).lru_next
                page_of(machine, pfn).flags &= _USED
                __free_one_page(machine, zone, pfn, 0, get_pageblock_migratetype(machine, pfn))
                pfn = following
                n += 1
    return n


@kernel("i64(machine_t*, i64, i64, i64, i64, i64)")
def fill_shelf(machine, zone_number, migratetype, count, cpu_number, alloc_flags):
    """Serve MSG_FILL: put a chain on a CPU's shelf; pages given. Who waits for it has looked at the watermarks and gets
    all it asked for. Linux has no shelves, so they hold nothing while the zone is short: a chain asked for ahead leaves it
    above high, and where it falls below that (ZONE_BELOW_HIGH) the shelves of all others are taken back.

    An empty shelf answered with nothing reads -1, so that who waits goes on to another zone.
    """
    zone = zone_of(machine, zone_number)
    free_pcppages_bulk(machine, zone)
    shelf = pcp_of(machine, cpu_number, zone_number).lists[migratetype]
    if load_acquire(shelf, "shelf") > 0:
        wake_cpu(machine, cpu_number)
        return 0
    spare = zone.free_pages - zone.nr_free_highatomic - wmark_pages(zone, WMARK_HIGH)
    if alloc_flags & ALLOC_AHEAD:
        count = max(min(count, spare), 0)
    elif count > spare:
        take_back_shelves(machine, zone_number, cpu_number)
    shelf.shelf_ahead = 1 if alloc_flags & ALLOC_AHEAD else 0
    first = rmqueue_bulk(machine, zone, count, migratetype, alloc_flags, shelf)
    taken = shelf.shelf_count
    note_fresh_runs(machine, zone, first, taken)
    store_seq_cst(shelf, "shelf", first if first != 0 else -1)
    wake_cpu(machine, cpu_number)
    populate_runs(machine, zone)
    return taken


@kernel("i64(machine_t*, i64, i64, i64, i64)")
def alloc_block(machine, zone_number, order, migratetype, alloc_flags):
    """Serve MSG_ALLOC: one block for a CPU that has looked at the watermarks; its pfn or 0."""
    zone = zone_of(machine, zone_number)
    free_pcppages_bulk(machine, zone)
    pfn = rmqueue_buddy(machine, zone, order, migratetype, alloc_flags)
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
        VM_BUG_ON_PAGE(page.flags & (_BUDDY | _PCP) != U(0) or page.refcount != 0 or page.mapcount != 0, page)
        page.flags &= _USED
    zone, most = zone_of(machine, page_zone(machine, pfn)), min(order, MAX_ORDER)
    for at in range(pfn, pfn + (1 << order), 1 << most):  # split_large_buddy
        __free_one_page(machine, zone, at, most, get_pageblock_migratetype(machine, at))
