"""The page allocator as a CPU sees it: per-CPU lists, zonelists, watermarks. Linux's mm/page_alloc.c.

The node's half (free lists, expand, rmqueue_bulk, free_pcppages_bulk) is buddy.py. Between the two lies the shelf of a
`pcp_list_t`: one word per CPU, zone and migratetype, through which a chain of pages (linked by lru_next) changes hands.

    CPU: list empty -> exchange(shelf, 0) -> its own list;  asks for the next chain at once (MSG_FILL), waits only if
         the shelf is empty too.
    node: MSG_FILL -> rmqueue_bulk -> shelf
    CPU: too many freed pages -> pushed on zone.returned (compare-exchange) -> node: free_pcppages_bulk

Who owns a page: on a free list the node; on the shelf whoever exchanges the word; on a per-CPU list that CPU; then
its users by reference count.
"""
import numpy as np

from numaemu.atomic import compare_exchange, exchange, fetch_add, load_acquire, store_release, store_seq_cst
from numaemu.compile import hot, kernel
from numaemu.kernel.gfp import (___GFP_DIRECT_RECLAIM, ___GFP_KSWAPD_RECLAIM, ___GFP_NORETRY, ___GFP_RETRY_MAYFAIL, __GFP_DMA, __GFP_DMA32,
                                __GFP_FS, __GFP_MOVABLE, __GFP_RECLAIMABLE, __GFP_THISNODE, __GFP_ZERO)
from numaemu.kernel.mm_inline import __page_cache_release, unlock_lruvec
from numaemu.kernel.mm_types import PF_MEMALLOC, PG_buddy, PG_pcp, PG_used, task_t
from numaemu.kernel.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.mmzone import (MAX_NR_ZONES, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE, MIGRATE_TYPES,
                                   MIGRATE_UNMOVABLE, WMARK_LOW, WMARK_MIN, ZONE_DMA, ZONE_DMA32, ZONE_MOVABLE,
                                   ZONE_NORMAL, page_of, page_to_nid, page_zone, pcp_of, zone_of, zonelist)
from numaemu.kernel.smp import (MSG_ALLOC, MSG_DRAIN, MSG_DRAIN_ALL, MSG_FALLBACK, MSG_FILL, MSG_FREE, actor_of_node,
                                machine_of, request, send, wait_for_event)
from numaemu.kernel.vmstat import NUMA_FALLBACK, PGFREE, count_vm_events, pgalloc_event, zone_statistics
from numaemu.native import call_address, clear_bytes, prefetch
from numaemu.param import MAX_NODES, NR_ORDERS
from numaemu.pointer import u64

U = np.uint64
_BUDDY, _PCP, _USED = U(PG_buddy), U(PG_pcp), U(PG_used)
MAX_RECLAIM_RETRIES = 16         # as Linux's slow path
PAGE_ALLOC_COSTLY_ORDER = 3


@kernel("bool(zone_t*, i64, i64, i64)")
def zone_watermark_ok(zone, order, mark, highest_zone):
    """True if the zone stays above `mark` and its lowmem reserve when 2**order pages are taken."""
    free = zone.free_pages - ((1 << order) - 1)
    if free <= mark + zone.lowmem_reserve[highest_zone]:
        return False
    if order == 0:
        return True
    for current in range(order, NR_ORDERS):
        area = zone.free_area[current]
        for migratetype in range(MIGRATE_TYPES):
            if area.nr_free[migratetype] > 0:
                return True
    return zone.virgin_end - zone.virgin_pfn >= 1 << order


@kernel("void(cpu_t*, zone_t*, i64, i64, i64)")
def ask_node(cpu, zone, migratetype, preferred_node, mark):
    """Ask for the next chain: our preferred node directly, any other through the coordinator."""
    machine = machine_of(cpu)
    pcp = pcp_of(machine, cpu.id, zone.number).lists[migratetype]
    pcp.asked = 1
    pcp.batch = min(max(2 * pcp.batch, zone.pcp_batch), zone.pcp_high)
    sent = zone.number * 4 + mark
    if zone.node == preferred_node:
        send(machine, actor_of_node(zone.node), MSG_FILL, cpu.id, 0, sent, migratetype, pcp.batch, cpu.id)
    else:
        count_vm_events(machine, cpu.id, NUMA_FALLBACK, 1)
        send(machine, 0, MSG_FALLBACK, cpu.id, 0, sent, migratetype, pcp.batch, cpu.id)


@kernel("bool(cpu_t*, zone_t*, i64, i64, i64)")
def take_shelf(cpu, zone, migratetype, preferred_node, mark):
    """Refill an empty per-CPU list: take the chain on the shelf, or ask and wait for one. False: the node has none."""
    machine = machine_of(cpu)
    pcp = pcp_of(machine, cpu.id, zone.number).lists[migratetype]
    waited = False
    while True:
        first = exchange(pcp, "shelf", 0)
        if first > 0:
            pcp.head, pcp.count, pcp.asked = first, pcp.shelf_count, 0
            ask_node(cpu, zone, migratetype, preferred_node, WMARK_LOW)
            return True
        if first < 0:
            pcp.asked = 0
            if waited:
                return False
        if pcp.asked == 0:
            ask_node(cpu, zone, migratetype, preferred_node, mark)
        waited = True
        cpu.clock_base_ns += machine.message_ns
        while True:
            store_seq_cst(cpu, "waiting", 1)
            if load_acquire(pcp, "shelf") != 0:
                break
            wait_for_event(cpu)
        store_release(cpu, "waiting", 0)


@kernel("i64(cpu_t*, zone_t*, i64, i64, i64)")
def rmqueue_pcplist(cpu, zone, migratetype, preferred_node, mark):
    """One page from this CPU's list for the zone; its pfn or 0."""
    machine = machine_of(cpu)
    pcp = pcp_of(machine, cpu.id, zone.number).lists[migratetype]
    if pcp.head == 0 and not take_shelf(cpu, zone, migratetype, preferred_node, mark):
        return 0
    pfn = pcp.head
    page = page_of(machine, pfn)
    VM_BUG_ON_PAGE(page.flags & _PCP == U(0), page)
    pcp.head = page.lru_next
    pcp.count -= 1
    prefetch(page_of(machine, page.lru_next).address)
    return pfn


@hot
def gfp_zone(gfp):
    """The highest zone an allocation may come from."""
    if gfp & __GFP_DMA:
        return ZONE_DMA
    if gfp & __GFP_DMA32:
        return ZONE_DMA32
    return ZONE_MOVABLE if gfp & __GFP_MOVABLE else ZONE_NORMAL


@hot
def gfp_migratetype(gfp):
    if gfp & __GFP_MOVABLE:
        return MIGRATE_MOVABLE
    return MIGRATE_RECLAIMABLE if gfp & __GFP_RECLAIMABLE else MIGRATE_UNMOVABLE


@kernel("i64(machine_t*, i64, u64, i64)")
def first_node(machine, nid, nodemask, highest_zone):
    """The first node of nid's zonelist that may serve: the preferred one, for the counters; -1 if none."""
    order = zonelist(machine, nid)
    for i in range(MAX_NODES):
        node = order[i]
        if node < 0:
            return -1
        if (nodemask >> U(node)) & U(1) != U(0):
            for kind in range(highest_zone, -1, -1):
                if zone_of(machine, node * MAX_NR_ZONES + kind).managed_pages > 0:
                    return node
    return -1


@kernel("i64(cpu_t*, i64, i64, i64, u64, i64)")
def get_page_from_freelist(cpu, gfp, order, nid, nodemask, mark):
    """Walk nid's zonelist under watermark `mark`; the pfn of a block, or 0."""
    machine = machine_of(cpu)
    highest = gfp_zone(gfp)
    migratetype = gfp_migratetype(gfp)
    preferred = first_node(machine, nid, nodemask, highest)
    if preferred < 0:
        return 0
    order_of_nodes = zonelist(machine, nid)
    for i in range(MAX_NODES):
        node = order_of_nodes[i]
        if node < 0:
            return 0
        if (nodemask >> U(node)) & U(1) == U(0) or (gfp & __GFP_THISNODE and node != nid):
            continue
        for kind in range(highest, -1, -1):
            zone = zone_of(machine, node * MAX_NR_ZONES + kind)
            if zone.managed_pages == 0 or not zone_watermark_ok(zone, order, zone.watermark[mark], highest):
                continue
            if order == 0:
                pfn = rmqueue_pcplist(cpu, zone, migratetype, preferred, mark)
            else:
                pfn = request(cpu, actor_of_node(node), MSG_ALLOC, zone.number, order, migratetype)
            if pfn != 0:
                count_vm_events(machine, cpu.id, pgalloc_event(machine, zone.number), 1 << order)
                zone_statistics(machine, cpu.id, cpu.node, preferred, node, 1)
                return pfn
    return 0


@hot
def prep_new_page(machine, cpu, pfn, order, gfp):
    """Make allocated pages fit for use; frames that were never given out are zero already and need no clearing."""
    for i in range(1 << order):
        page = page_of(machine, pfn + i)
        VM_BUG_ON_PAGE(page.flags & _BUDDY != U(0) or page.refcount != 0 or page.mapcount != 0, page)
        if gfp & __GFP_ZERO:
            frame = machine.memory + (U(pfn + i) << U(12))
            load_acquire(u64.array(frame), 0)          # a reading host fault maps 16 neighbours, a writing one only this
            if (page.flags & _USED) != U(0):
                clear_bytes(frame, 4096)
            cpu.clock_base_ns += machine.clear_page_ns
        page.flags = _USED
        page.mapping, page.index, page.private = 0, 0, 0
        page.mapcount = 0
        page.refcount = 1
        page.order = order


@kernel("void(cpu_t*, zone_t*, i64, i64)")
def return_chain(cpu, zone, first, last):
    """Push a chain of free pages back to its node."""
    machine = machine_of(cpu)
    while True:
        head = load_acquire(zone, "returned")
        page_of(machine, last).lru_next = head
        if compare_exchange(zone, "returned", head, first) == head:
            break
    if head == 0:
        send(machine, actor_of_node(zone.node), MSG_DRAIN, cpu.id, 0, zone.number, 0, 0, 0)


@kernel("void(cpu_t*, zone_t*, pcp_list_t*, i64)")
def trim_pcp(cpu, zone, pcp, keep):
    """Return all but the `keep` newest pages of a per-CPU list."""
    machine = machine_of(cpu)
    if pcp.count <= keep:
        return
    if keep == 0:
        first, pcp.head = pcp.head, 0
    else:
        last_kept = pcp.head
        for _ in range(keep - 1):
            last_kept = page_of(machine, last_kept).lru_next
        first = page_of(machine, last_kept).lru_next
        page_of(machine, last_kept).lru_next = 0
    last = first
    while page_of(machine, last).lru_next != 0:
        last = page_of(machine, last).lru_next
    pcp.count = keep
    return_chain(cpu, zone, first, last)


@kernel("void(cpu_t*)")
def drain_local_pages(cpu):
    """Return everything on this CPU's lists, and what stands on its shelves."""
    machine = machine_of(cpu)
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        for migratetype in range(MIGRATE_RECLAIMABLE + 1):
            pcp = pcp_of(machine, cpu.id, number).lists[migratetype]
            if pcp.count > 0:
                trim_pcp(cpu, zone, pcp, 0)
            pcp.batch = 0


@hot
def fatal_signal_pending(cpu):
    """True if the OOM killer has chosen the running task."""
    task = task_t.array(machine_of(cpu).tasks)[cpu.task]
    return cpu.task != 0 and load_acquire(task, "oom_victim") == task.pid


@kernel("bool(cpu_t*, i64, i64, u64)")
def may_oom(cpu, gfp, order, nodemask):
    """Let the OOM killer find memory, for allocations that Linux kills for; False: this one fails.

    Mirrors __alloc_pages_may_oom.
    """
    machine = machine_of(cpu)
    if machine.on_oom == U(0) or gfp & (___GFP_NORETRY | ___GFP_RETRY_MAYFAIL | __GFP_THISNODE) or not gfp & __GFP_FS:
        return False
    if order > PAGE_ALLOC_COSTLY_ORDER or gfp_zone(gfp) < ZONE_NORMAL:
        return False
    return call_address(machine.on_oom, cpu.address, U(gfp * 16 + order), nodemask) != U(0)


@kernel("i64(cpu_t*, i64, i64, i64, u64)")
def __alloc_pages_slowpath(cpu, gfp, order, nid, nodemask):
    """Nothing above the low watermarks: down to min; then collect unused pages from everybody's lists while some come;
    then the OOM killer.
    """
    machine = machine_of(cpu)
    if gfp & ___GFP_KSWAPD_RECLAIM and machine.on_wake_kswapd != U(0):
        call_address(machine.on_wake_kswapd, cpu.address, U(nid << 16 | order << 8 | gfp_zone(gfp)), nodemask)
    pfn, tries = get_page_from_freelist(cpu, gfp, order, nid, nodemask, WMARK_MIN), 0
    if cpu.flags & U(PF_MEMALLOC) != U(0):
        return pfn
    while pfn == 0 and gfp & ___GFP_DIRECT_RECLAIM:
        if tries == MAX_RECLAIM_RETRIES:
            if not may_oom(cpu, gfp, order, nodemask):
                break
            tries = 0
        if machine.on_reclaim != U(0):
            freed = call_address(machine.on_reclaim, cpu.address, U(gfp * 16 + order), nodemask)
            pfn = get_page_from_freelist(cpu, gfp, order, nid, nodemask, WMARK_MIN)
            if pfn != 0:
                break
            if freed > U(0) and tries < MAX_RECLAIM_RETRIES - 1:
                tries += 1
                continue
        drain_local_pages(cpu)
        returned = request(cpu, 0, MSG_DRAIN_ALL, cpu.id, 0, 0)
        pfn = get_page_from_freelist(cpu, gfp, order, nid, nodemask, WMARK_MIN)
        tries = tries + 1 if returned > 0 else MAX_RECLAIM_RETRIES
    return pfn


@kernel("i64(cpu_t*, i64, i64, i64, u64)")
def alloc_pages(cpu, gfp, order, nid, nodemask):
    """2**order pages near node `nid`, from `nodemask` only; the first pfn, or 0: nobody can serve.

    Mirrors __alloc_pages_noprof.
    """
    machine = machine_of(cpu)
    pfn = get_page_from_freelist(cpu, gfp, order, nid, nodemask, WMARK_LOW)
    if pfn == 0:
        pfn = __alloc_pages_slowpath(cpu, gfp, order, nid, nodemask)
    if pfn != 0:
        prep_new_page(machine, cpu, pfn, order, gfp)
    return pfn


@kernel("void(cpu_t*, i64)")
def free_unref_page(cpu, pfn):
    """A single page nobody refers to goes on this CPU's list; what is too much goes back to its node, coldest first."""
    machine = machine_of(cpu)
    page, zone = page_of(machine, pfn), zone_of(machine, page_zone(machine, pfn))
    VM_BUG_ON_PAGE(page.flags & (_BUDDY | _PCP) != U(0) or page.refcount != 0 or page.mapcount != 0, page)
    pcp = pcp_of(machine, cpu.id, zone.number).lists[page.migratetype]
    page.flags = _USED | _PCP
    page.lru_next = pcp.head
    pcp.head = pfn
    pcp.count += 1
    count_vm_events(machine, cpu.id, PGFREE, 1)
    if pcp.count > zone.pcp_high:
        keep = pcp.count // 2
        trim_pcp(cpu, zone, pcp, keep)


@kernel("void(cpu_t*, i64, i64)")
def free_pages(cpu, pfn, order):
    """Give 2**order pages back (their last reference is gone)."""
    if order == 0:
        free_unref_page(cpu, pfn)
        return
    machine = machine_of(cpu)
    count_vm_events(machine, cpu.id, PGFREE, 1 << order)
    send(machine, actor_of_node(page_to_nid(machine, pfn)), MSG_FREE, cpu.id, 0, pfn, order, 0, 0)


# -- references ----------------------------------------------------------------------------------------------

@hot
def get_page(page):
    """One more reference to a page that has one."""
    fetch_add(page, "refcount", 1)


@kernel("bool(page_t*)")
def try_get_page(page):
    """Take a reference to a page that may go at any moment: not if it is free, or frozen by migration.

    The caller looks again afterwards whether it still is the page it meant.
    """
    while True:
        seen = load_acquire(page, "refcount")
        if seen <= 0:
            return False
        if compare_exchange(page, "refcount", seen, seen + 1) == seen:
            return True


@kernel("void(cpu_t*, i64)")
def put_page(cpu, pfn):
    """Drop a reference; the last one frees the page."""
    page = page_of(machine_of(cpu), pfn)
    before = fetch_add(page, "refcount", -1)
    VM_BUG_ON_PAGE(before <= 0, page)
    if before == 1:
        unlock_lruvec(machine_of(cpu), __page_cache_release(cpu, pfn, -1))
        free_pages(cpu, pfn, 0)


@kernel("void(cpu_t*, i64*, i64, i64)")
def release_pages(cpu, pfns, first, end):
    """Drop a reference to each of pfns[first:end]; what is free then goes, taking each lru_lock as seldom as may be."""
    machine, locked = machine_of(cpu), -1
    for i in range(first, end):
        page = page_of(machine, pfns[i])
        before = fetch_add(page, "refcount", -1)
        VM_BUG_ON_PAGE(before <= 0, page)
        if before == 1:
            locked = __page_cache_release(cpu, pfns[i], locked)
        else:
            pfns[i] = 0
    unlock_lruvec(machine, locked)
    for i in range(first, end):
        if pfns[i] != 0:
            free_unref_page(cpu, pfns[i])