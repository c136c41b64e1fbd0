"""Direct reclaim: an allocation frees pages itself. try_to_free_pages and what it calls, of Linux's mm/vmscan.c."""

import numpy as np

from numaemu.compiler.decorators import callback, kernel
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import let_others_run, machine_of, wake_kthread
from numaemu.kernel.include.internal import MAX_RECLAIM_RETRIES, unpack_alloc
from numaemu.kernel.include.mmzone import (
    KSWAPD,
    LRU_ACTIVE_FILE,
    LRU_FILE,
    MAX_NR_ZONES,
    WMARK_MIN,
    ZONE_NORMAL,
    lruvec_of,
    node_of,
    wmark_pages,
    zone_of,
    zonelist,
)
from numaemu.kernel.include.trace import MM_VMSCAN_DIRECT_RECLAIM_BEGIN, MM_VMSCAN_DIRECT_RECLAIM_END, trace_event
from numaemu.kernel.include.vmstat import ALLOCSTALL_DMA, PGSCAN_DIRECT_THROTTLE, count_vm_events
from numaemu.kernel.mm.numa.memory_tiers import can_reclaim_anon_pages
from numaemu.kernel.mm.page_alloc.slowpath import fatal_signal_pending
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.reclaim.reclaim_compaction import compaction_ready
from numaemu.kernel.mm.reclaim.vmscan import free_to_zones, init_scan_control, shrink_node, snapshot_refaults
from numaemu.kernel.mm.reclaim.workingset import DEF_PRIORITY
from numaemu.spec.param import MAX_NODES

U = np.uint64


@kernel("void(cpu_t*, scan_control_t*, i64)")
def shrink_zones(cpu, sc, nid):
    """Reclaim from every node that the allocation may use."""
    machine = machine_of(cpu)
    nodes, nodemask = zonelist(machine, nid), U(sc.nodemask)
    for i in range(MAX_NODES):
        node = nodes[i]
        if node < 0:
            break
        if (nodemask >> U(node)) & U(1) != U(0) and not compaction_ready(machine, sc, node):
            shrink_node(cpu, sc, node)


@kernel("i64(cpu_t*, scan_control_t*, i64)")
def do_try_to_free_pages(cpu, sc, nid):
    """Direct reclaim, ever harder: pages reclaimed."""
    machine = machine_of(cpu)
    count_vm_events(machine, cpu.id, ALLOCSTALL_DMA + sc.reclaim_idx, 1)
    for _ in range(2):
        sc.priority = DEF_PRIORITY
        while sc.priority >= 0:
            sc.nr_scanned = 0
            shrink_zones(cpu, sc, nid)
            if sc.nr_reclaimed >= sc.nr_to_reclaim or sc.compaction_ready:
                break
            sc.priority -= 1
        for node in range(machine.nr_nodes):
            if (U(sc.nodemask) >> U(node)) & U(1) != U(0):
                snapshot_refaults(machine, node)
        if sc.nr_reclaimed == 0 and sc.compaction_ready:
            return 1  # reclaim was not needed: compaction is to try
        if sc.nr_reclaimed > 0 or sc.force_deactivate or not sc.skipped_deactivate:
            break
        sc.force_deactivate, sc.skipped_deactivate = 1, 0
    return sc.nr_reclaimed


@kernel("bool(machine_t*, i64, i64)")
def zone_reclaimable(machine, node, kind):
    """True if a zone has pages on the lists that reclaim could free (zone_reclaimable_pages)."""
    lruvec = lruvec_of(machine, node)
    for lru in range(LRU_ACTIVE_FILE + 1):
        if lru >= LRU_FILE or can_reclaim_anon_pages(machine, node):
            if lruvec.zone_nr[lru * MAX_NR_ZONES + kind] > 0:
                return True
    return False


@kernel("bool(machine_t*, i64)")
def allow_direct_reclaim(machine, node):
    """False if a node is so short that direct reclaimers must not take what kswapd frees (half of the min watermarks)."""
    free = reserve = 0
    for kind in range(ZONE_NORMAL + 1):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.managed_pages > 0 and zone_reclaimable(machine, node, kind):
            reserve += wmark_pages(zone, WMARK_MIN)
            free += zone.free_pages
    return reserve == 0 or free > reserve // 2 or node_of(machine, node).kswapd_failures >= MAX_RECLAIM_RETRIES


@kernel("void(cpu_t*, i64)")
def wait_for_kswapd(cpu, node):
    """Until kswapd has freed what lets direct reclaim go on, or has given up (the wait for pfmemalloc_wait). It must be awake."""
    machine = machine_of(cpu)
    while not allow_direct_reclaim(machine, node) and not fatal_signal_pending(cpu):
        wake_kthread(cpu, node, U(KSWAPD))
        let_others_run(cpu)


@kernel("void(cpu_t*, scan_control_t*, i64)")
def throttle_direct_reclaim(cpu, sc, nid):
    """Let kswapd go first while the first node that may be used is almost empty. Kernel threads never wait: kswapd is one."""
    machine = machine_of(cpu)
    if cpu.id >= machine.nr_cpus:
        return
    nodes = zonelist(machine, nid)
    for i in range(MAX_NODES):
        node = nodes[i]
        if node < 0:
            return
        if (U(sc.nodemask) >> U(node)) & U(1) == U(0):
            continue
        if not allow_direct_reclaim(machine, node):
            count_vm_events(machine, cpu.id, PGSCAN_DIRECT_THROTTLE, 1)
            wait_for_kswapd(cpu, node)
        return


@callback("u64(u64, u64, u64)")
def try_to_free_pages(cpu_address, packed, nodemask):
    """The slow path's way up: reclaim for an allocation (pack_alloc); pages reclaimed."""
    cpu = cpu_t.at(cpu_address)
    machine, sc = machine_of(cpu), scan_control_of(cpu)
    gfp, order, _more = unpack_alloc(packed)
    init_scan_control(machine, sc, gfp, order, nodemask)
    trace_event(cpu, MM_VMSCAN_DIRECT_RECLAIM_BEGIN, order, gfp, 0, 0, 0)
    throttle_direct_reclaim(cpu, sc, cpu.node)
    reclaimed = do_try_to_free_pages(cpu, sc, cpu.node)
    for node in range(machine.nr_nodes):
        if (nodemask >> U(node)) & U(1) != U(0):
            free_to_zones(cpu, node)
    trace_event(cpu, MM_VMSCAN_DIRECT_RECLAIM_END, reclaimed, 0, 0, 0, 0)
    return U(reclaimed)
