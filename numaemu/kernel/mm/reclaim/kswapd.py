"""kswapd: a node's background reclaim, woken when an allocation fell below the low watermarks. Linux's mm/vmscan.c.

It runs in the node's context of kernel threads (kthread.py), until a zone is above its high watermark again.
"""

import numpy as np

from numaemu.compiler.atomic import exchange
from numaemu.compiler.decorators import callback, kernel
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.psi import psi_memstall_enter, psi_memstall_leave
from numaemu.kernel.core.smp import machine_of, wake_kthread
from numaemu.kernel.include.gfp import __GFP_DIRECT_RECLAIM, GFP_KERNEL
from numaemu.kernel.include.internal import MAX_RECLAIM_RETRIES, PF_KSWAPD, PF_MEMALLOC, unpack_alloc
from numaemu.kernel.include.mmzone import (
    KSWAPD,
    LRU_ACTIVE_ANON,
    LRU_INACTIVE_ANON,
    MAX_NR_ZONES,
    WMARK_HIGH,
    WMARK_PROMO,
    lruvec_of,
    node_of,
    wmark_pages,
    zone_of,
)
from numaemu.kernel.include.trace import (
    MM_VMSCAN_KSWAPD_SLEEP,
    MM_VMSCAN_KSWAPD_WAKE,
    MM_VMSCAN_WAKEUP_KSWAPD,
    trace_event,
)
from numaemu.kernel.include.vmstat import (
    KSWAPD_HIGH_WMARK_HIT_QUICKLY,
    KSWAPD_LOW_WMARK_HIT_QUICKLY,
    PAGEOUTRUN,
    count_vm_events,
)
from numaemu.kernel.mm.migrate.kcompactd import wakeup_kcompactd
from numaemu.kernel.mm.numa.memory_tiers import NUMA_BALANCING_MEMORY_TIERING
from numaemu.kernel.mm.page_alloc.watermark import __zone_watermark_ok
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.reclaim.vmscan import (
    DEF_PRIORITY,
    can_age_anon_pages,
    free_to_zones,
    inactive_is_low,
    init_scan_control,
    shrink_active_list,
    shrink_node,
    snapshot_refaults,
)
from numaemu.kernel.mm.reclaim.workingset import SWAP_CLUSTER_MAX

U = np.uint64


@kernel("bool(machine_t*, i64, i64, i64)")
def pgdat_balanced(machine, node, order, highest_zoneidx):
    """True if a zone of the node can serve an allocation of this order above its high watermark; with memory tiering above the
    higher one that leaves room for promoted pages.
    """
    tiering = machine.numa_balancing & NUMA_BALANCING_MEMORY_TIERING != 0
    for kind in range(highest_zoneidx + 1):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.managed_pages > 0 and __zone_watermark_ok(
            zone, order, wmark_pages(zone, WMARK_PROMO if tiering else WMARK_HIGH), highest_zoneidx, 0, zone.free_pages
        ):
            return True
    return False


@kernel("bool(machine_t*, i64, i64)")
def pgdat_watermark_boosted(machine, node, highest_zoneidx):
    for kind in range(highest_zoneidx + 1):
        if zone_of(machine, node * MAX_NR_ZONES + kind).watermark_boost > 0:
            return True
    return False


@kernel("void(cpu_t*, i64, i64, i64, i64)")
def wakeup_kswapd(cpu, node, gfp, order, highest_zoneidx):
    """Wake a node's kswapd, unless it has given up or there is nothing for it to do. Then an allocation that cannot compact
    itself may still need larger blocks than there are: that is kcompactd's work.
    """
    machine = machine_of(cpu)
    pgdat = node_of(machine, node)
    pgdat.kswapd_highest_zoneidx = max(pgdat.kswapd_highest_zoneidx, highest_zoneidx)
    pgdat.kswapd_order = max(pgdat.kswapd_order, order)
    if pgdat.kswapd_failures >= MAX_RECLAIM_RETRIES or (
        pgdat_balanced(machine, node, order, highest_zoneidx)
        and not pgdat_watermark_boosted(machine, node, highest_zoneidx)
    ):
        if not gfp & __GFP_DIRECT_RECLAIM:
            wakeup_kcompactd(cpu, node, order, highest_zoneidx)
        return
    trace_event(cpu, MM_VMSCAN_WAKEUP_KSWAPD, node, highest_zoneidx, order, gfp, 0)
    wake_kthread(cpu, node, U(KSWAPD))


@callback("u64(u64, u64, u64)")
def wake_kswapd(cpu_address, packed, node):
    """The allocator's way up: an allocation (pack_alloc, with its highest zone) may use this node, which is short."""
    gfp, order, highest_zone = unpack_alloc(packed)
    wakeup_kswapd(cpu_t.at(cpu_address), np.int64(node), gfp, order, highest_zone)
    return U(0)


@kernel("bool(cpu_t*, scan_control_t*, i64)")
def kswapd_shrink_node(cpu, sc, node):
    """Reclaim about as much as the high watermarks are; True if as many pages were at least scanned."""
    machine = machine_of(cpu)
    sc.nr_to_reclaim = 0
    for kind in range(sc.reclaim_idx + 1):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.managed_pages > 0:
            sc.nr_to_reclaim += max(wmark_pages(zone, WMARK_HIGH), SWAP_CLUSTER_MAX)
    shrink_node(cpu, sc, node)
    free_to_zones(cpu, node)
    if sc.order > 0 and sc.nr_reclaimed >= 2 << sc.order:  # compact_gap: the rest is compaction's
        sc.order = 0
    return sc.nr_scanned >= sc.nr_to_reclaim


@kernel("i64(machine_t*, i64, i64)")
def boosted_pages(machine, node, highest_zoneidx):
    """How far the zones' watermarks are boosted, together."""
    pages = 0
    for kind in range(highest_zoneidx + 1):
        pages += zone_of(machine, node * MAX_NR_ZONES + kind).watermark_boost
    return pages


@kernel("i64(cpu_t*, i64, i64, i64, i64)")
def balance_priorities(cpu, node, order, highest_zoneidx, nr_boost_reclaim):
    """The loop of balance_pgdat: harder and harder until the node is balanced. The boost that is left, or -1: start again
    without it.
    """
    machine, sc = machine_of(cpu), scan_control_of(cpu)
    sc.priority = DEF_PRIORITY
    while sc.priority >= 1:
        before, raise_priority = sc.nr_reclaimed, True
        sc.reclaim_idx, sc.nr_scanned = highest_zoneidx, 0
        balanced = pgdat_balanced(machine, node, sc.order, highest_zoneidx)
        if not balanced and nr_boost_reclaim > 0:
            return -1
        if nr_boost_reclaim == 0 and balanced:
            break
        if nr_boost_reclaim > 0 and sc.priority == DEF_PRIORITY - 2:
            raise_priority = False
        sc.may_writepage = sc.may_swap = 0 if nr_boost_reclaim > 0 else 1
        if can_age_anon_pages(machine, node) and inactive_is_low(lruvec_of(machine, node), LRU_INACTIVE_ANON):
            shrink_active_list(cpu, sc, node, LRU_ACTIVE_ANON, SWAP_CLUSTER_MAX)
        if kswapd_shrink_node(cpu, sc, node):
            raise_priority = False
        reclaimed = sc.nr_reclaimed - before
        nr_boost_reclaim -= min(nr_boost_reclaim, reclaimed)
        if nr_boost_reclaim > 0 and reclaimed == 0:
            break
        if raise_priority or reclaimed == 0:
            sc.priority -= 1
    return nr_boost_reclaim


@kernel("void(cpu_t*, i64, i64, i64)")
def balance_pgdat(cpu, node, order, highest_zoneidx):
    """Reclaim until a zone of the node is above its high watermark, or nothing more can be had."""
    machine, sc, pgdat = machine_of(cpu), scan_control_of(cpu), node_of(machine_of(cpu), node)
    count_vm_events(machine, cpu.id, PAGEOUTRUN, 1)
    init_scan_control(machine, sc, GFP_KERNEL, order, machine.node_mask)
    sc.kswapd = 1
    stalled, boost = psi_memstall_enter(cpu), boosted_pages(machine, node, highest_zoneidx)
    left = balance_priorities(cpu, node, order, highest_zoneidx, boost)
    if left < 0:
        balance_priorities(cpu, node, order, highest_zoneidx, 0)
    if sc.nr_reclaimed == 0 and sc.priority < 1 and sc.cache_trim_mode_failed:
        sc.no_cache_trim_mode = 1
        balance_priorities(cpu, node, order, highest_zoneidx, 0)
    if sc.nr_reclaimed == 0 and sc.priority < 1:
        pgdat.kswapd_failures += 1
    if boost > 0:
        for kind in range(highest_zoneidx + 1):  # all of it: what comes meanwhile comes with a wake-up of its own
            exchange(zone_of(machine, node * MAX_NR_ZONES + kind), "watermark_boost", 0)
    snapshot_refaults(machine, node)
    psi_memstall_leave(cpu, stalled)


@kernel("void(cpu_t*, i64)")
def kswapd(cpu, node):
    """What a wake-up of kswapd does: balance the node, and again if it was asked for more meanwhile."""
    machine = machine_of(cpu)
    pgdat = node_of(machine, node)
    flags, cpu.flags = cpu.flags, cpu.flags | PF_MEMALLOC | PF_KSWAPD
    trace_event(cpu, MM_VMSCAN_KSWAPD_WAKE, node, pgdat.kswapd_highest_zoneidx, pgdat.kswapd_order, 0, 0)
    while True:
        order, highest = pgdat.kswapd_order, pgdat.kswapd_highest_zoneidx
        pgdat.kswapd_order = pgdat.kswapd_highest_zoneidx = 0
        if pgdat.kswapd_failures >= MAX_RECLAIM_RETRIES:
            break
        if pgdat_balanced(machine, node, order, highest) and not pgdat_watermark_boosted(machine, node, highest):
            break
        balance_pgdat(cpu, node, order, highest)
        if pgdat.kswapd_order == 0 and pgdat.kswapd_highest_zoneidx == 0:
            balanced = pgdat_balanced(machine, node, order, highest)
            count_vm_events(
                machine, cpu.id, KSWAPD_LOW_WMARK_HIT_QUICKLY if balanced else KSWAPD_HIGH_WMARK_HIT_QUICKLY, 1
            )
            if pgdat_balanced(machine, node, 0, highest):  # it may sleep: the blocks are compaction's work
                wakeup_kcompactd(cpu, node, order, highest)
            elif machine.numa_balancing & NUMA_BALANCING_MEMORY_TIERING:  # promotions wait for room: it may not sleep
                pgdat.kswapd_highest_zoneidx = highest
                continue
            break
    trace_event(cpu, MM_VMSCAN_KSWAPD_SLEEP, node, 0, 0, 0, 0)
    cpu.flags = flags
