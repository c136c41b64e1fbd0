"""Compaction in the background and on demand: kcompactd, compact_memory. Part of Linux's mm/compaction.c.

All of it runs in the context of a node's kernel threads (kthread.py).
"""

import numpy as np

from numaemu.compiler.decorators import entry, kernel
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.psi import psi_memstall_enter, psi_memstall_leave
from numaemu.kernel.core.smp import MSG_DRAIN_ALL, machine_of, request, wake_kthread
from numaemu.kernel.core.timer import HPAGE_FRAG_CHECK_INTERVAL_NS
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.include.internal import COMPACT_COMPLETE, COMPACT_CONTINUE, COMPACT_DONE, COMPACT_PARTIAL_SKIPPED
from numaemu.kernel.include.mmzone import KCOMPACTD, MAX_NR_ZONES, node_of, zone_of
from numaemu.kernel.include.trace import MM_COMPACTION_KCOMPACTD_WAKE, trace_event
from numaemu.kernel.include.vmstat import (
    COMPACT_DAEMON_FREE_SCANNED,
    COMPACT_DAEMON_MIGRATE_SCANNED,
    COMPACT_DAEMON_WAKE,
    count_vm_events,
)
from numaemu.kernel.mm.migrate.compact_control import (
    COMPACT_ALL,
    COMPACT_MAX_DEFER_SHIFT,
    MIGRATE_SYNC,
    MIGRATE_SYNC_LIGHT,
    compact_control_of,
    compaction_defer_reset,
    compaction_deferred,
    defer_compaction,
)
from numaemu.kernel.mm.migrate.compaction import (
    compact_zone,
    compaction_suit_allocation_order,
    fragmentation_score_wmark,
    fragmentation_score_zone,
    init_control,
    kswapd_is_running,
)
from numaemu.kernel.mm.page_alloc.pcplist import drain_local_pages
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain
from numaemu.mmu import clock_ns

U = np.uint64


@kernel("i64(machine_t*, i64)")
def fragmentation_score_node(machine, node):
    """The same for a node: its zones' scores by their size."""
    present = score = 0
    for kind in range(MAX_NR_ZONES):
        present += zone_of(machine, node * MAX_NR_ZONES + kind).present_pages
    for kind in range(MAX_NR_ZONES):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        score += zone.present_pages * fragmentation_score_zone(zone) // (present + 1)
    return score


@kernel("void(cpu_t*, i64, bool)")
def compact_node(cpu, node, proactive):
    """Compact all zones of a node, wholly or (proactive) until the score is low enough."""
    machine = machine_of(cpu)
    cc = compact_control_of(machine, cpu.id)
    for kind in range(MAX_NR_ZONES):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.present_pages == 0:
            continue
        init_control(cc, COMPACT_ALL, GFP_KERNEL, MIGRATE_SYNC_LIGHT if proactive else MIGRATE_SYNC, kind)
        cc.zone, cc.whole_zone, cc.ignore_skip_hint = zone.number, 1, 1
        cc.proactive_compaction = 1 if proactive else 0
        compact_zone(cpu, cc)
        if proactive:
            count_vm_events(machine, cpu.id, COMPACT_DAEMON_MIGRATE_SCANNED, cc.total_migrate_scanned)
            count_vm_events(machine, cpu.id, COMPACT_DAEMON_FREE_SCANNED, cc.total_free_scanned)
    lru_add_drain(cpu)
    drain_local_pages(cpu)


@kernel("bool(machine_t*, i64)")
def kcompactd_node_suitable(machine, node):
    """True if compaction of a zone could serve what is asked of kcompactd."""
    n = node_of(machine, node)
    for kind in range(n.kcompactd_highest_zoneidx + 1):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if (
            zone.managed_pages > 0
            and compaction_suit_allocation_order(machine, zone, n.kcompactd_max_order, n.kcompactd_highest_zoneidx)
            == COMPACT_CONTINUE
        ):
            return True
    return False


@kernel("void(cpu_t*, i64, i64, i64)")
def wakeup_kcompactd(cpu, node, order, highest_zoneidx):
    """Let kcompactd make blocks of this order in the background."""
    machine = machine_of(cpu)
    n = node_of(machine, node)
    if order == 0 or machine.lumpy_reclaim != 0:
        return
    n.kcompactd_max_order = max(n.kcompactd_max_order, order)
    n.kcompactd_highest_zoneidx = min(n.kcompactd_highest_zoneidx, highest_zoneidx)
    if kcompactd_node_suitable(machine, node):
        wake_kthread(cpu, node, U(KCOMPACTD))


@kernel("void(cpu_t*, i64)")
def kcompactd_do_work(cpu, node):
    """What kcompactd does when it is woken, in its node's context."""
    machine = machine_of(cpu)
    n, cc = node_of(machine, node), compact_control_of(machine, cpu.id)
    order, highest = n.kcompactd_max_order, n.kcompactd_highest_zoneidx
    count_vm_events(machine, cpu.id, COMPACT_DAEMON_WAKE, 1)
    trace_event(cpu, MM_COMPACTION_KCOMPACTD_WAKE, node, order, highest, 0, 0)
    for kind in range(highest + 1):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if (
            zone.managed_pages == 0
            or compaction_deferred(zone, order)
            or compaction_suit_allocation_order(machine, zone, order, highest) != COMPACT_CONTINUE
        ):
            continue
        init_control(cc, order, GFP_KERNEL, MIGRATE_SYNC_LIGHT, highest)
        cc.zone = zone.number
        result = compact_zone(cpu, cc)
        if result == COMPACT_DONE:
            compaction_defer_reset(zone, order, False)
        elif result == COMPACT_PARTIAL_SKIPPED or result == COMPACT_COMPLETE:
            request(cpu, 0, MSG_DRAIN_ALL, -1, 0, 0)
            defer_compaction(zone, order)
        count_vm_events(machine, cpu.id, COMPACT_DAEMON_MIGRATE_SCANNED, cc.total_migrate_scanned)
        count_vm_events(machine, cpu.id, COMPACT_DAEMON_FREE_SCANNED, cc.total_free_scanned)
    if n.kcompactd_max_order <= order:
        n.kcompactd_max_order = 0
    if n.kcompactd_highest_zoneidx >= highest:
        n.kcompactd_highest_zoneidx = MAX_NR_ZONES - 1


@kernel("bool(machine_t*, i64)")
def should_proactive_compact_node(machine, node):
    """True if the node is more fragmented than the high mark says, and memory is not short."""
    if machine.compaction_proactiveness == 0 or machine.lumpy_reclaim != 0 or kswapd_is_running(machine, node):
        return False
    return fragmentation_score_node(machine, node) > fragmentation_score_wmark(machine, False)


@kernel("bool(cpu_t*, i64, i64)")
def proactive_compact_node(cpu, node, now_ns):
    """What kcompactd does without being asked: compact the node if it is time to, and its score too high.

    Looked at each 500 ms, in vain 64 times as seldom. True if it has compacted.
    """
    machine = machine_of(cpu)
    n = node_of(machine, node)
    triggered, n.proactive_compact_trigger = n.proactive_compact_trigger, 0
    if not triggered and now_ns < n.proactive_next_ns:
        return False
    n.proactive_next_ns = now_ns + HPAGE_FRAG_CHECK_INTERVAL_NS
    if not should_proactive_compact_node(machine, node):
        return False
    before = fragmentation_score_node(machine, node)
    compact_node(cpu, node, True)
    if fragmentation_score_node(machine, node) >= before:
        n.proactive_next_ns = now_ns + (HPAGE_FRAG_CHECK_INTERVAL_NS << COMPACT_MAX_DEFER_SHIFT)
    return True


@kernel("void(cpu_t*, i64)")
def kcompactd(cpu, node):
    """A wake-up of kcompactd: what it was asked for, or what it does of itself, by the clock of the CPU that is furthest."""
    machine, now_ns = machine_of(cpu), 0
    n = node_of(machine, node)
    for number in range(machine.nr_cpus):
        now_ns = max(now_ns, clock_ns(cpu_t.array(machine.cpus)[number]))
    if n.kcompactd_max_order > 0:
        stalled = psi_memstall_enter(cpu)
        kcompactd_do_work(cpu, node)
        psi_memstall_leave(cpu, stalled)
        n.proactive_next_ns = now_ns + HPAGE_FRAG_CHECK_INTERVAL_NS
    proactive_compact_node(cpu, node, now_ns)


@entry("void(u64, i64)", nogil=True)
def compact_node_now(cpu_address, node):
    """compact_memory, and a node's `compact`, on a context that runs nothing else."""
    compact_node(cpu_t.at(cpu_address), node, False)
