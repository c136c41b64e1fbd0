"""The per-CPU page lists: Linux's struct per_cpu_pages in mm/page_alloc.c.

The node's half (free lists, rmqueue_bulk, free_pcppages_bulk) is page_alloc/node_side.py. Between the two lies the shelf of a
`pcp_list_t`: one word per CPU, zone and migratetype, through which a chain of pages (linked by lru_next) changes hands.

    CPU: list empty -> exchange(shelf, 0) -> its own list;  asks for the next chain at once (MSG_FILL), waits only if
         the shelf is empty too.
    node: MSG_FILL -> rmqueue_bulk -> shelf
    CPU: too many freed pages -> pushed on zone.returned (compare-exchange) -> node: free_pcppages_bulk

Who owns a page: on a free list the node; on the shelf whoever exchanges the word; on a per-CPU list that CPU; then
its users by reference count.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, load_acquire, store_seq_cst
from numaemu.compiler.decorators import kernel
from numaemu.compiler.native import prefetch
from numaemu.kernel.core.smp import (
    MSG_DRAIN,
    MSG_FALLBACK,
    MSG_FILL,
    actor_of_node,
    machine_of,
    send,
    stop_waiting,
    wait_for_event,
)
from numaemu.kernel.core.timer import run_local_timers
from numaemu.kernel.include.internal import ALLOC_AHEAD, pack_zone
from numaemu.kernel.include.mm_types import PG_pcp
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    MIGRATE_RECLAIMABLE,
    PCP_BATCH_SCALE_MAX,
    PCP_HIGH_MAX,
    page_of,
    pcp_of,
    zone_of,
)
from numaemu.kernel.include.vmstat import NUMA_FALLBACK, count_vm_events

U = np.uint64
_PCP = U(PG_pcp)


@kernel("void(cpu_t*, zone_t*, i64, i64, i64)")
def ask_node(cpu, zone, migratetype, preferred_node, alloc_flags):
    """Ask for the next chain: our preferred node directly, any other through the coordinator."""
    machine = machine_of(cpu)
    pcp = pcp_of(machine, cpu.id, zone.number).lists[migratetype]
    pcp.asked = 1
    longest = min(zone.pcp_list_high, zone.pcp_batch << PCP_BATCH_SCALE_MAX, PCP_HIGH_MAX)
    pcp.batch = min(max(2 * pcp.batch, zone.pcp_batch), longest)
    sent = pack_zone(zone.number, alloc_flags)
    if zone.node == preferred_node:
        send(cpu, actor_of_node(zone.node), MSG_FILL, 0, sent, migratetype, pcp.batch, cpu.id)
    else:
        count_vm_events(machine, cpu.id, NUMA_FALLBACK, 1)
        send(cpu, 0, MSG_FALLBACK, 0, sent, migratetype, pcp.batch, cpu.id)


@kernel("bool(cpu_t*, zone_t*, i64, i64, i64)")
def take_shelf(cpu, zone, migratetype, preferred_node, alloc_flags):
    """Refill an empty per-CPU list: take the chain on the shelf, or ask and wait for one. False: the node has none."""
    machine = machine_of(cpu)
    pcp = pcp_of(machine, cpu.id, zone.number).lists[migratetype]
    run_local_timers(cpu)
    ours = False  # what was asked for ahead may be refused, what is asked for now is looked for
    while True:
        first = exchange(pcp, "shelf", 0)
        if first > 0:
            pcp.head, pcp.count, pcp.asked = first, pcp.shelf_count, 0
            ask_node(cpu, zone, migratetype, preferred_node, ALLOC_AHEAD)
            return True
        if first < 0:
            pcp.asked = 0
            if ours:
                return False
        if pcp.asked == 0:
            ask_node(cpu, zone, migratetype, preferred_node, alloc_flags)
            ours = True
        cpu.clock_base_ns += machine.message_ns
        unwoken = False
        while True:
            store_seq_cst(cpu, "waiting", 1)
            if load_acquire(pcp, "shelf") != 0:
                break
            unwoken = wait_for_event(cpu)
        stop_waiting(cpu, unwoken)


@kernel("i64(machine_t*, pcp_list_t*)")
def take_coldest(machine, pcp):
    """__GFP_COLD: the page that was freed longest ago, from the far end of the list."""
    before, pfn = 0, pcp.head
    while page_of(machine, pfn).lru_next != 0:
        before, pfn = pfn, page_of(machine, pfn).lru_next
    if before == 0:
        pcp.head = 0
    else:
        page_of(machine, before).lru_next = 0
    pcp.count -= 1
    return pfn


@kernel("void(machine_t*, pcp_list_t*, i64)")
def put_coldest(machine, pcp, pfn):
    """free_cold_page: a page goes to the far end of the list."""
    page_of(machine, pfn).lru_next = 0
    pcp.count += 1
    last = pcp.head
    if last == 0:
        pcp.head = pfn
        return
    while page_of(machine, last).lru_next != 0:
        last = page_of(machine, last).lru_next
    page_of(machine, last).lru_next = pfn


@kernel("i64(cpu_t*, zone_t*, i64, i64, i64)")
def rmqueue_pcplist(cpu, zone, migratetype, preferred_node, alloc_flags):
    """One page from this CPU's list for the zone; its pfn or 0."""
    machine = machine_of(cpu)
    pcp = pcp_of(machine, cpu.id, zone.number).lists[migratetype]
    if pcp.head == 0 and not take_shelf(cpu, zone, migratetype, preferred_node, alloc_flags):
        return 0
    pfn = pcp.head
    page = page_of(machine, pfn)
    VM_BUG_ON_PAGE(page.flags & _PCP == U(0), page)
    pcp.head = page.lru_next
    pcp.count -= 1
    prefetch(page_of(machine, page.lru_next).address)
    return pfn


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
        send(cpu, actor_of_node(zone.node), MSG_DRAIN, 0, zone.number, 0, 0, 0)


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
