"""One walk along a zonelist under one watermark: get_page_from_freelist and rmqueue of Linux's mm/page_alloc.c."""

import numpy as np

from numaemu.compiler.atomic import fetch_and
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import call_address, prefetch
from numaemu.kernel.core.smp import MSG_ALLOC, actor_of_node, machine_of, request
from numaemu.kernel.include.gfp import __GFP_COLD, __GFP_THISNODE, __GFP_WRITE
from numaemu.kernel.include.internal import (
    ALLOC_KSWAPD,
    ALLOC_NO_WATERMARKS,
    ALLOC_NOFRAGMENT,
    ALLOC_NON_BLOCK,
    ALLOC_OOM,
    ALLOC_SPREAD_DIRTY,
    ALLOC_WMARK_MASK,
    NODE_RECLAIM_DISTANCE,
    NODE_RECLAIM_FULL,
    NODE_RECLAIM_NOSCAN,
    node_reclaim_enabled,
    pack_alloc,
    pack_zone,
)
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    WMARK_LOW,
    ZONE_BOOSTED_WATERMARK,
    ZONE_NORMAL,
    node_distance,
    page_of,
    pcp_of,
    wmark_pages,
    zone_of,
    zonelist,
)
from numaemu.kernel.include.vmstat import (
    NUMA_HIT,
    NUMA_LOCAL,
    NUMA_OTHER,
    PGALLOC_DMA,
    count_vm_events,
    percpu_of,
    zone_statistics,
)
from numaemu.kernel.mm.cache.dirty import node_dirty_ok
from numaemu.kernel.mm.page_alloc.pcplist import rmqueue_pcplist, take_coldest, take_shelf
from numaemu.kernel.mm.page_alloc.report.trail import (
    TRAIL_DIRTY,
    TRAIL_KSWAPD,
    TRAIL_MARK_FAILED,
    TRAIL_NO_BLOCK,
    TRAIL_NO_PAGE,
    leave_trail,
)
from numaemu.kernel.mm.page_alloc.watermark import (
    gfp_migratetype,
    gfp_zone,
    only_blocks_are_missing,
    unusable_free,
    zone_watermark_fast,
    zone_watermark_ok,
)
from numaemu.spec.param import MAX_NODES

U = np.uint64
_BOOSTED = U(ZONE_BOOSTED_WATERMARK)
AGAIN = -1  # answer of a walk: once more, and types may mix


@kernel("void(cpu_t*, i64, i64, i64, i64)")
def wakeup_kswapd(cpu, gfp, order, nid, highest_zone):
    """Tell node `nid`'s kswapd that memory is short, if there is one."""
    if machine_of(cpu).on_wake_kswapd == U(0):
        return
    if cpu.trail != 0:
        leave_trail(cpu, TRAIL_KSWAPD, nid, 0, highest_zone, 0)
    call_address(machine_of(cpu).on_wake_kswapd, cpu.address, pack_alloc(gfp, order, highest_zone), U(nid))


@kernel("void(cpu_t*, i64, i64, i64, u64, i64)")
def wake_all_kswapds(cpu, gfp, order, nid, nodemask, highest_zone):
    """The kswapd of every node that the allocation may use."""
    machine = machine_of(cpu)
    if machine.on_wake_kswapd == U(0):
        return
    order_of_nodes = zonelist(machine, nid)
    for i in range(MAX_NODES):
        node = order_of_nodes[i]
        if node < 0:
            return
        if (nodemask >> U(node)) & U(1) != U(0) and not (gfp & __GFP_THISNODE and node != nid):
            wakeup_kswapd(cpu, gfp, order, node, highest_zone)


@kernel("void(cpu_t*, zone_t*)")
def wake_for_boost(cpu, zone):
    """A fallback has boosted the zone's watermarks: kswapd shall reach them."""
    if fetch_and(zone, "flags", ~_BOOSTED) & _BOOSTED != U(0):
        wakeup_kswapd(cpu, 0, 0, zone.node, zone.type)


@kernel("i64(cpu_t*, zone_t*, i64, i64, i64)")
def rmqueue_slow(cpu, zone, order, migratetype, alloc_flags):
    """A block from the node itself; a single page only for those whom no list has served and who must not fail."""
    if order == 0 and not alloc_flags & (ALLOC_OOM | ALLOC_NON_BLOCK):
        return 0
    what = pack_zone(zone.number, alloc_flags)
    return request(cpu, actor_of_node(zone.node), MSG_ALLOC, what, order, migratetype)


@kernel("i64(cpu_t*, zone_t*, i64, i64, i64)")
def rmqueue_cold(cpu, zone, migratetype, preferred_node, alloc_flags):
    """As rmqueue_pcplist, from the other end."""
    pcp = pcp_of(machine_of(cpu), cpu.id, zone.number).lists[migratetype]
    if pcp.head == 0 and not take_shelf(cpu, zone, migratetype, preferred_node, alloc_flags):
        return 0
    return take_coldest(machine_of(cpu), pcp)


@hot
def rmqueue(cpu, zone, gfp, order, migratetype, preferred_node, alloc_flags):
    """A block of the zone; its pfn or 0."""
    pfn = 0
    if order == 0:
        if gfp & __GFP_COLD:
            pfn = rmqueue_cold(cpu, zone, migratetype, preferred_node, alloc_flags)
        else:
            pfn = rmqueue_pcplist(cpu, zone, migratetype, preferred_node, alloc_flags)
    if pfn == 0:
        pfn = rmqueue_slow(cpu, zone, order, migratetype, alloc_flags)
    if alloc_flags & ALLOC_KSWAPD and zone.flags & _BOOSTED != U(0):
        wake_for_boost(cpu, zone)
    return pfn


@hot
def nofragment(machine, zone, alloc_flags):
    """alloc_flags_nofragment: mixing types is avoided only where a lower zone lies beside the preferred one."""
    if alloc_flags & ALLOC_NOFRAGMENT and (
        zone.type != ZONE_NORMAL or zone_of(machine, zone.number - 1).managed_pages == 0
    ):
        return alloc_flags & ~ALLOC_NOFRAGMENT
    return alloc_flags


@kernel("bool(cpu_t*, zone_t*, i64, i64, i64, i64, i64)")
def reclaimed_in_place(cpu, zone, preferred, gfp, order, highest, alloc_flags):
    """vm.zone_reclaim_mode: reclaim from a node that is near enough before going on to the next; True if that was enough."""
    machine = machine_of(cpu)
    if machine.on_node_reclaim == U(0) or node_distance(machine, preferred, zone.node) > NODE_RECLAIM_DISTANCE:
        return False  # zone_allows_reclaim
    answer = np.int64(call_address(machine.on_node_reclaim, cpu.address, pack_alloc(gfp, order, 0), U(zone.node)))
    if answer == NODE_RECLAIM_NOSCAN or answer == NODE_RECLAIM_FULL:
        return False
    mark = wmark_pages(zone, alloc_flags & ALLOC_WMARK_MASK)
    return zone_watermark_ok(zone, order, mark, highest, alloc_flags)


@kernel("i64(cpu_t*, i64, i64, i64, u64, i64)")
def walk_zonelist(cpu, gfp, order, nid, nodemask, alloc_flags):
    """The pfn of a block, 0, or AGAIN."""
    machine = machine_of(cpu)
    highest, migratetype = gfp_zone(machine, gfp), gfp_migratetype(machine, gfp)
    order_of_nodes, preferred = zonelist(machine, nid), -1
    for i in range(MAX_NODES):
        node = order_of_nodes[i]
        if node < 0:
            break
        if (nodemask >> U(node)) & U(1) == U(0) or (gfp & __GFP_THISNODE and node != nid):
            continue
        too_dirty = alloc_flags & ALLOC_SPREAD_DIRTY != 0 and not node_dirty_ok(machine, node)
        if too_dirty and cpu.trail != 0:
            leave_trail(cpu, TRAIL_DIRTY, node, 0, highest, 0)
        for kind in range(highest, -1, -1):
            zone = zone_of(machine, node * MAX_NR_ZONES + kind)
            if zone.managed_pages == 0:
                continue
            if preferred < 0:
                preferred, alloc_flags = node, nofragment(machine, zone, alloc_flags)
            if too_dirty:
                break
            if node != preferred and alloc_flags & ALLOC_NOFRAGMENT:
                return AGAIN
            if (
                not alloc_flags & ALLOC_NO_WATERMARKS
                and not zone_watermark_fast(zone, order, highest, alloc_flags)
                and not (
                    node_reclaim_enabled(machine)
                    and reclaimed_in_place(cpu, zone, preferred, gfp, order, highest, alloc_flags)
                )
            ):
                if cpu.trail != 0:
                    held = only_blocks_are_missing(zone, order, highest, alloc_flags)
                    leave_trail(
                        cpu,
                        TRAIL_NO_BLOCK if held else TRAIL_MARK_FAILED,
                        zone.number,
                        alloc_flags,
                        highest,
                        unusable_free(zone, order, alloc_flags),
                    )
                continue
            pfn = rmqueue(cpu, zone, gfp, order, migratetype, preferred, alloc_flags)
            if pfn != 0:
                count_vm_events(machine, cpu.id, PGALLOC_DMA + kind, 1 << order)
                zone_statistics(machine, cpu.id, cpu.node, preferred, node, 1)
                return pfn
            if cpu.trail != 0:
                leave_trail(cpu, TRAIL_NO_PAGE, zone.number, alloc_flags, highest, 0)
    return AGAIN if alloc_flags & ALLOC_NOFRAGMENT else 0


@hot
def page_at_hand(cpu, machine, gfp, nid, nodemask):
    """What the walk comes to nearly always: a page of this CPU's list for nid's highest zone, above low; else 0."""
    if gfp & (__GFP_COLD | __GFP_WRITE) or (nodemask >> U(nid)) & U(1) == U(0):
        return 0
    highest = gfp_zone(machine, gfp)
    kind = highest
    zone = zone_of(machine, nid * MAX_NR_ZONES + kind)
    while zone.managed_pages == 0:
        if kind == 0:
            return 0
        kind -= 1
        zone = zone_of(machine, nid * MAX_NR_ZONES + kind)
    pcp = pcp_of(machine, cpu.id, zone.number).lists[gfp_migratetype(machine, gfp)]
    pfn = pcp.head
    mark = wmark_pages(zone, WMARK_LOW) + zone.lowmem_reserve[highest]
    if pfn == 0 or zone.flags != U(0) or zone.free_pages - zone.nr_free_highatomic <= mark:
        return 0
    pcp.head = page_of(machine, pfn).lru_next
    pcp.count -= 1
    prefetch(page_of(machine, pcp.head).address)
    here = percpu_of(machine, cpu.id)
    here.event[PGALLOC_DMA + kind] += 1
    here.numa[nid].item[NUMA_HIT] += 1
    here.numa[nid].item[NUMA_LOCAL if nid == cpu.node else NUMA_OTHER] += 1
    return pfn


@kernel("i64(cpu_t*, i64, i64, i64, u64, i64)")
def get_page_from_freelist(cpu, gfp, order, nid, nodemask, alloc_flags):
    """Walk nid's zonelist; the pfn of a block, or 0."""
    pfn = walk_zonelist(cpu, gfp, order, nid, nodemask, alloc_flags)
    if pfn == AGAIN:
        pfn = walk_zonelist(cpu, gfp, order, nid, nodemask, alloc_flags & ~ALLOC_NOFRAGMENT)
    return pfn
