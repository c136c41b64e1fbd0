"""When no zone is above its low watermark: __alloc_pages_slowpath and its helpers, of Linux's mm/page_alloc.c.

Reclaim, compaction and the OOM killer lie above and are called through addresses in machine_t (0: not there).
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import call_address
from numaemu.compiler.pointer import Struct, i64, u64
from numaemu.kernel.core.cpuset import cpuset_current_mems_allowed, cpuset_nodemask
from numaemu.kernel.core.psi import psi_memstall_enter, psi_memstall_leave
from numaemu.kernel.core.smp import (
    MSG_DRAIN_ALL,
    MSG_UNRESERVE,
    MSG_WARN_ALLOC,
    actor_of_node,
    let_others_run,
    machine_of,
    request,
    send,
)
from numaemu.kernel.include.gfp import (
    __GFP_DIRECT_RECLAIM,
    __GFP_DMA,
    __GFP_FS,
    __GFP_HARDWALL,
    __GFP_NOFAIL,
    __GFP_NOMEMALLOC,
    __GFP_NORETRY,
    __GFP_NOWARN,
    __GFP_RETRY_MAYFAIL,
    __GFP_THISNODE,
)
from numaemu.kernel.include.internal import (
    ALLOC_CPUSET,
    ALLOC_KSWAPD,
    ALLOC_MIN_RESERVE,
    ALLOC_NO_WATERMARKS,
    ALLOC_OOM,
    ALLOC_WMARK_HIGH,
    COMPACT_DEFERRED,
    COMPACT_DONE,
    COMPACT_SKIPPED,
    DEF_COMPACT_PRIORITY,
    INIT_COMPACT_PRIORITY,
    MAX_COMPACT_RETRIES,
    MAX_RECLAIM_RETRIES,
    MIN_COMPACT_COSTLY_PRIORITY,
    MIN_COMPACT_PRIORITY,
    PAGE_ALLOC_COSTLY_ORDER,
    PF_MEMALLOC,
    gfp_compaction_allowed,
    gfp_pfmemalloc_flags,
    gfp_to_alloc_flags,
    pack_alloc,
)
from numaemu.kernel.include.mm_types import task_t
from numaemu.kernel.include.mmzone import (
    LRU_ACTIVE_FILE,
    LRU_FILE,
    MAX_NR_ZONES,
    MIGRATE_MOVABLE,
    WMARK_LOW,
    WMARK_MIN,
    ZONE_DMA,
    ZONE_NORMAL,
    lruvec_of,
    page_zone,
    wmark_pages,
    zone_of,
)
from numaemu.kernel.include.vmstat import (
    ALLOCSTALL_DMA,
    COMPACT_FAIL,
    COMPACT_STALL,
    COMPACT_SUCCESS,
    NR_ISOLATED_ANON,
    NR_ISOLATED_FILE,
    count_vm_events,
    node_page_state,
    percpu_of,
)
from numaemu.kernel.mm.migrate.compact_control import compaction_defer_reset
from numaemu.kernel.mm.numa.memory_tiers import can_reclaim_anon_pages
from numaemu.kernel.mm.page_alloc.pcplist import drain_local_pages
from numaemu.kernel.mm.page_alloc.report.trail import (
    TRAIL_COMPACT,
    TRAIL_DRAIN,
    TRAIL_FAILED,
    TRAIL_OOM,
    TRAIL_RECLAIM,
    TRAIL_RESERVES,
    TRAIL_RETRY,
    TRAIL_SLOWPATH,
    TRAIL_UNRESERVE,
    leave_trail,
)
from numaemu.kernel.mm.page_alloc.watermark import __zone_watermark_ok, gfp_migratetype, gfp_zone
from numaemu.kernel.mm.page_alloc.zonelist import get_page_from_freelist, wake_all_kswapds
from numaemu.mmu import clock_ns

U = np.uint64
DRAIN_INTERVAL_NS = 50_000_000  # of emulated time, at least, if not for need; assumed
ISOLATED_ROUNDS = 1000  # at most: who holds the pages may wait for what we hold; assumed

# what the slow path keeps between its rounds, on each CPU; reclaim that allocates itself uses the next one
# fmt: off
slowpath_t = Struct("slowpath_t", [
    ("no_progress_loops", i64), ("compaction_retries", i64),
    ("isolated_rounds", i64),    # that were in vain while others had pages isolated
    ("compact_priority", i64), ("compact_result", i64),
    ("progress", i64),           # pages reclaimed, or 1: the OOM killer may have freed some
    ("nodemask", u64),           # as the caller gave it, without what its cpuset forbids
])
# fmt: on


@hot
def fatal_signal_pending(cpu):
    """True if the OOM killer has chosen the running task."""
    task = task_t.array(machine_of(cpu).tasks)[cpu.task]
    return cpu.task != 0 and load_acquire(task, "oom_victim") == task.pid


@hot
def may_compact(machine):
    """False where nobody compacts for allocations: lumpy reclaim is in its place (lumpy.py)."""
    return machine.on_compact != U(0) and machine.lumpy_reclaim == 0


@hot
def note(cpu, kind, flags, value):
    """A step of the trail that belongs to no zone."""
    if cpu.trail != 0:
        leave_trail(cpu, kind, -1, flags, 0, value)


# -- finding more memory -------------------------------------------------------------------------------------


@kernel("void(cpu_t*)")
def drain_all_pages(cpu):
    """Collect unused pages from everybody's lists and shelves."""
    machine_of(cpu).drained_ns = clock_ns(cpu)
    drain_local_pages(cpu)
    note(cpu, TRAIL_DRAIN, 0, request(cpu, 0, MSG_DRAIN_ALL, cpu.id, 0, 0))


@kernel("bool(cpu_t*, i64, u64, bool)")
def unreserve_highatomic(cpu, gfp, nodemask, force):
    """Ask the nodes in turn to give up a pageblock kept for large atomic allocations; True if one did."""
    machine = machine_of(cpu)
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if (
            (nodemask >> U(zone.node)) & U(1) == U(0)
            or zone.type > gfp_zone(machine, gfp)
            or zone.nr_reserved_highatomic == 0
        ):
            continue
        given = request(cpu, actor_of_node(zone.node), MSG_UNRESERVE, number, gfp_migratetype(machine, gfp), force)
        note(cpu, TRAIL_UNRESERVE, 0, given)
        if given:
            return True
    return False


@kernel("i64(cpu_t*, i64, i64, u64)")
def __perform_reclaim(cpu, gfp, order, nodemask):
    """Direct reclaim: pages reclaimed."""
    machine, before = machine_of(cpu), cpu.flags
    if machine.on_reclaim == U(0):
        count_vm_events(machine, cpu.id, ALLOCSTALL_DMA + gfp_zone(machine, gfp), 1)
        return 0
    if machine.cpusets_enabled != 0:
        nodemask = cpuset_nodemask(cpu, __GFP_HARDWALL, ALLOC_CPUSET, nodemask)
    cpu.flags = before | PF_MEMALLOC
    stalled = psi_memstall_enter(cpu)
    pages = np.int64(call_address(machine.on_reclaim, cpu.address, pack_alloc(gfp, order, 0), nodemask))
    psi_memstall_leave(cpu, stalled)
    cpu.flags = before
    note(cpu, TRAIL_RECLAIM, 0, pages)
    return pages


@hot
def drain_is_due(cpu):
    """True if nobody has collected pages for a while (clocks of two CPUs may be apart)."""
    return abs(clock_ns(cpu) - machine_of(cpu).drained_ns) >= DRAIN_INTERVAL_NS


@kernel("i64(cpu_t*, i64, i64, i64, u64, i64, slowpath_t*)")
def __alloc_pages_direct_reclaim(cpu, gfp, order, nid, nodemask, alloc_flags, state):
    """Reclaim, then try; what it brought may lie on CPUs' lists, so these are collected once. The pfn or 0.

    On Linux that is so nearly every time, as the first try finds the zone below its mark and what was freed on this CPU's list.
    Here reclaim gives that back to the zones, and to ask all others takes long: it is done now and then. Where reclaim brought
    nothing the lists of others stay as they are: at an OOM kill thousands of pages may lie there (free_pcp of its report).
    """
    state.progress = __perform_reclaim(cpu, gfp, order, nodemask)
    if state.progress > 0 and drain_is_due(cpu):
        drain_all_pages(cpu)
    pfn = get_page_from_freelist(cpu, gfp, order, nid, nodemask, alloc_flags)
    if pfn == 0 and state.progress > 0:
        unreserve_highatomic(cpu, gfp, nodemask, False)
        drain_all_pages(cpu)
        pfn = get_page_from_freelist(cpu, gfp, order, nid, nodemask, alloc_flags)
    return pfn


@kernel("i64(cpu_t*, i64, i64, i64, u64, i64, slowpath_t*)")
def __alloc_pages_direct_compact(cpu, gfp, order, nid, nodemask, alloc_flags, state):
    """Compact, then try. The pfn or 0."""
    machine, before = machine_of(cpu), cpu.flags
    if order == 0 or not may_compact(machine) or not gfp_compaction_allowed(gfp):
        return 0
    cpu.flags = before | PF_MEMALLOC
    what, stalled = pack_alloc(gfp, order, state.compact_priority), psi_memstall_enter(cpu)
    state.compact_result = np.int64(call_address(machine.on_compact, cpu.address, what, nodemask))
    psi_memstall_leave(cpu, stalled)
    cpu.flags = before
    note(cpu, TRAIL_COMPACT, 0, state.compact_result)
    if state.compact_result == COMPACT_SKIPPED:
        return 0
    count_vm_events(machine, cpu.id, COMPACT_STALL, 1)
    pfn = get_page_from_freelist(cpu, gfp, order, nid, nodemask, alloc_flags)
    count_vm_events(machine, cpu.id, COMPACT_SUCCESS if pfn != 0 else COMPACT_FAIL, 1)
    if pfn != 0:
        compaction_defer_reset(zone_of(machine, page_zone(machine, pfn)), order, True)
    return pfn


@kernel("i64(cpu_t*, i64, i64, i64, u64, slowpath_t*)")
def __alloc_pages_may_oom(cpu, gfp, order, nid, nodemask, state):
    """A last try under the high watermark, then the OOM killer for allocations that Linux kills for. The pfn or 0.

    Without __GFP_FS nobody is killed, and the allocation tries again until others have freed memory: reclaim that may
    not touch files was no fair attempt (out_of_memory).
    """
    machine = machine_of(cpu)
    state.progress = 0
    walled = cpuset_nodemask(cpu, __GFP_HARDWALL, ALLOC_CPUSET, nodemask)
    pfn = get_page_from_freelist(
        cpu, (gfp | __GFP_HARDWALL) & ~__GFP_DIRECT_RECLAIM, order, nid, walled, ALLOC_WMARK_HIGH | ALLOC_CPUSET
    )
    if pfn != 0 or order > PAGE_ALLOC_COSTLY_ORDER or gfp & (__GFP_RETRY_MAYFAIL | __GFP_THISNODE):
        return pfn
    if gfp_zone(machine, gfp) < ZONE_NORMAL or machine.on_oom == U(0):
        return 0
    again = True
    if gfp & __GFP_FS:
        again = call_address(machine.on_oom, cpu.address, pack_alloc(gfp, order, 0), state.nodemask) != U(0)
        note(cpu, TRAIL_OOM, 0, 1 if again else 0)
    else:
        let_others_run(cpu)
    state.progress = 1 if again or fatal_signal_pending(cpu) else 0  # a victim tries again, with ALLOC_OOM
    if again and gfp & __GFP_NOFAIL:
        return get_page_from_freelist(cpu, gfp, order, nid, nodemask, ALLOC_NO_WATERMARKS)
    return 0


# -- once more? ----------------------------------------------------------------------------------------------


@kernel("i64(machine_t*, zone_t*)")
def zone_reclaimable_pages(machine, zone):
    """Pages of a zone that reclaim could free: file pages, and anonymous ones where there is swap or a slower tier."""
    lruvec, anon, pages = lruvec_of(machine, zone.node), can_reclaim_anon_pages(machine, zone.node), 0
    for lru in range(LRU_ACTIVE_FILE + 1):
        if lru >= LRU_FILE or anon:
            pages += lruvec.zone_nr[lru * MAX_NR_ZONES + zone.type]
    return pages


@kernel("bool(cpu_t*, i64, i64, u64, i64, bool)")
def would_fit(cpu, gfp, order, nodemask, alloc_flags, for_compaction):
    """True if a zone could serve with all that is reclaimable freed; for compaction: could be compacted then."""
    machine = machine_of(cpu)
    highest = gfp_zone(machine, gfp)
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if (nodemask >> U(zone.node)) & U(1) == U(0) or zone.type > highest or zone.managed_pages == 0:
            continue
        reclaimable = zone_reclaimable_pages(machine, zone)
        if for_compaction:
            mark = WMARK_LOW if order > PAGE_ALLOC_COSTLY_ORDER else WMARK_MIN
            if __zone_watermark_ok(
                zone, 0, wmark_pages(zone, mark) + (2 << order), highest, 0, reclaimable // order + zone.free_pages
            ):
                return True
        elif __zone_watermark_ok(
            zone, order, wmark_pages(zone, WMARK_MIN), highest, alloc_flags, reclaimable + zone.free_pages
        ):
            return True
    return False


@kernel("bool(cpu_t*, u64)")
def others_isolate(cpu, nodemask):
    """True if others have pages of these nodes off the lists, which may be free as soon as the host lets them go on.

    What this CPU itself has taken off (a migration that allocates) it has counted itself.
    """
    machine, pages = machine_of(cpu), 0
    for node in range(machine.nr_nodes):
        if (nodemask >> U(node)) & U(1) != U(0):
            own = percpu_of(machine, cpu.id).node[node]
            pages += node_page_state(machine, node, NR_ISOLATED_ANON) + node_page_state(machine, node, NR_ISOLATED_FILE)
            pages -= own.item[NR_ISOLATED_ANON] + own.item[NR_ISOLATED_FILE]
    return pages > 0


@kernel("bool(cpu_t*, i64, i64, u64, i64, slowpath_t*)")
def should_reclaim_retry(cpu, gfp, order, nodemask, alloc_flags, state):
    """Again while reclaim gets somewhere, or a zone could serve if everything reclaimable were free.

    A round in vain while others hold pages that they have just taken off the lists is no attempt: in emulated time they are
    gone or back in a moment (VMSCAN_THROTTLE_ISOLATED), only the host may keep kswapd or another CPU from it.
    """
    if state.progress <= 0 and state.isolated_rounds < ISOLATED_ROUNDS and others_isolate(cpu, nodemask):
        state.isolated_rounds += 1
        let_others_run(cpu)
        return True
    if state.progress > 0 and order <= PAGE_ALLOC_COSTLY_ORDER:
        state.no_progress_loops = 0
    else:
        state.no_progress_loops += 1
    if state.no_progress_loops <= MAX_RECLAIM_RETRIES and would_fit(cpu, gfp, order, nodemask, alloc_flags, False):
        let_others_run(cpu)
        return True
    return unreserve_highatomic(cpu, gfp, nodemask, True)


@kernel("bool(cpu_t*, i64, i64, u64, i64, slowpath_t*)")
def should_compact_retry(cpu, gfp, order, nodemask, alloc_flags, state):
    """Again with more effort, as long as compaction may still succeed."""
    if order == 0 or fatal_signal_pending(cpu) or not may_compact(machine_of(cpu)):
        return False
    if state.compact_result == COMPACT_SKIPPED:
        return would_fit(cpu, gfp, order, nodemask, alloc_flags, True)
    costly = order > PAGE_ALLOC_COSTLY_ORDER
    if state.compact_result == COMPACT_DONE:
        state.compaction_retries += 1
        if state.compaction_retries <= (MAX_COMPACT_RETRIES // 4 if costly else MAX_COMPACT_RETRIES):
            return True
    if state.compact_priority > (MIN_COMPACT_COSTLY_PRIORITY if costly else MIN_COMPACT_PRIORITY):
        state.compact_priority -= 1
        state.compaction_retries = 0
        return True
    return False


@kernel("bool(cpu_t*, i64, i64, u64, i64, slowpath_t*)")
def should_retry(cpu, gfp, order, nodemask, alloc_flags, state):
    """After a round of reclaim and compaction that brought no page: is another one worth it?"""
    progress = state.progress
    if should_reclaim_retry(cpu, gfp, order, nodemask, alloc_flags, state):
        return True
    return (
        progress > 0
        and gfp_compaction_allowed(gfp)
        and should_compact_retry(cpu, gfp, order, nodemask, alloc_flags, state)
    )


# -- the slow path -------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64, i64, i64, u64, i64, slowpath_t*)")
def compact_first(cpu, gfp, order, nid, nodemask, alloc_flags, state):
    """Before any reclaim, where compaction is likely enough to help. The pfn, 0, or -1: give up at once."""
    machine = machine_of(cpu)
    costly = order > PAGE_ALLOC_COSTLY_ORDER
    if not gfp & __GFP_DIRECT_RECLAIM or not gfp_compaction_allowed(gfp):
        return 0
    if not (costly or order > 0 and gfp_migratetype(machine, gfp) != MIGRATE_MOVABLE):
        return 0
    if gfp_pfmemalloc_flags(gfp, cpu.flags, fatal_signal_pending(cpu)) or not may_compact(machine):
        return 0
    state.compact_priority = INIT_COMPACT_PRIORITY
    pfn = __alloc_pages_direct_compact(cpu, gfp, order, nid, nodemask, alloc_flags, state)
    state.compact_priority = DEF_COMPACT_PRIORITY
    if pfn == 0 and costly and gfp & __GFP_NORETRY:
        if state.compact_result == COMPACT_SKIPPED or state.compact_result == COMPACT_DEFERRED:
            return -1
        state.compact_priority = INIT_COMPACT_PRIORITY
    return pfn


@kernel("i64(cpu_t*, i64, i64, i64, u64, i64, slowpath_t*)")
def one_round(cpu, gfp, order, nid, nodemask, alloc_flags, state):
    """What the slow path repeats: the lists, reclaim, compaction, the OOM killer. The pfn; 0: again; -1: give up."""
    pfn = get_page_from_freelist(cpu, gfp, order, nid, nodemask, alloc_flags)
    if pfn != 0:
        return pfn
    if not gfp & __GFP_DIRECT_RECLAIM or cpu.flags & PF_MEMALLOC:
        return -1
    pfn = __alloc_pages_direct_reclaim(cpu, gfp, order, nid, nodemask, alloc_flags, state)
    if pfn == 0:
        progress = state.progress
        pfn = __alloc_pages_direct_compact(cpu, gfp, order, nid, nodemask, alloc_flags, state)
        state.progress = progress
    if pfn != 0:
        return pfn
    if gfp & __GFP_NORETRY:
        return -1
    if order > PAGE_ALLOC_COSTLY_ORDER and not (gfp_compaction_allowed(gfp) and gfp & __GFP_RETRY_MAYFAIL):
        return -1
    if should_retry(cpu, gfp, order, nodemask, alloc_flags, state):
        return 0
    pfn = __alloc_pages_may_oom(cpu, gfp, order, nid, nodemask, state)
    if pfn != 0:
        return pfn
    if fatal_signal_pending(cpu) and (alloc_flags & ALLOC_OOM or gfp & __GFP_NOMEMALLOC):
        return -1
    if state.progress > 0:
        state.no_progress_loops = 0
        return 0
    return -1


@kernel("void(cpu_t*, i64, i64, u64)")
def warn_alloc(cpu, gfp, order, nodemask):
    """Say in the kernel's log that an allocation has failed, unless it was expected to."""
    if gfp & __GFP_NOWARN or (gfp & __GFP_DMA and zone_of(machine_of(cpu), ZONE_DMA).managed_pages == 0):
        return
    send(cpu, 0, MSG_WARN_ALLOC, 0, gfp, order, np.int64(nodemask), cpu.id)


@kernel("bool(machine_t*, i64, i64, u64)")
def has_zone(machine, gfp, nid, nodemask):
    """first_zones_zonelist: is there any zone that the allocation may ask? A node without memory has none of its own."""
    if gfp & __GFP_THISNODE:
        nodemask &= U(1) << U(nid)
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if (nodemask >> U(zone.node)) & U(1) != U(0) and zone.type <= gfp_zone(machine, gfp) and zone.managed_pages > 0:
            return True
    return False


@kernel("i64(cpu_t*, i64, i64, i64, u64, slowpath_t*)")
def __alloc_pages_slowpath(cpu, gfp, order, nid, nodemask, state):
    """The pfn, or 0 after every means has failed (never with __GFP_NOFAIL, if it may reclaim)."""
    machine = machine_of(cpu)
    highest, wanted, mems_allowed = gfp_zone(machine, gfp), nodemask, cpuset_current_mems_allowed(cpu)
    state.nodemask = wanted
    state.no_progress_loops = state.compaction_retries = state.progress = state.isolated_rounds = 0
    state.compact_result, state.compact_priority = COMPACT_SKIPPED, DEF_COMPACT_PRIORITY
    alloc_flags = gfp_to_alloc_flags(gfp, order)
    nodemask = cpuset_nodemask(cpu, gfp, alloc_flags, wanted)
    note(cpu, TRAIL_SLOWPATH, alloc_flags, 0)
    pfn = 0 if has_zone(machine, gfp, nid, wanted) else -1
    if pfn == 0 and alloc_flags & ALLOC_KSWAPD:
        wake_all_kswapds(cpu, gfp, order, nid, nodemask, highest)
    if pfn == 0:
        pfn = get_page_from_freelist(cpu, gfp, order, nid, nodemask, alloc_flags)
    if pfn == 0:
        pfn = compact_first(cpu, gfp, order, nid, nodemask, alloc_flags, state)
    while pfn == 0:
        if alloc_flags & ALLOC_KSWAPD:
            wake_all_kswapds(cpu, gfp, order, nid, nodemask, highest)
        reserve_flags = gfp_pfmemalloc_flags(gfp, cpu.flags, fatal_signal_pending(cpu))
        if reserve_flags:
            alloc_flags = reserve_flags | (alloc_flags & ALLOC_KSWAPD)
            note(cpu, TRAIL_RESERVES, alloc_flags, 0)
        if reserve_flags or not alloc_flags & ALLOC_CPUSET:
            nodemask = state.nodemask = machine.node_mask
        pfn = one_round(cpu, gfp, order, nid, nodemask, alloc_flags, state)
        if pfn < 0 and gfp & __GFP_NOFAIL and gfp & __GFP_DIRECT_RECLAIM:
            pfn = get_page_from_freelist(cpu, gfp, order, nid, nodemask, ALLOC_MIN_RESERVE)
            let_others_run(cpu)
        if pfn < 0 and cpuset_current_mems_allowed(cpu) != mems_allowed:  # check_retry_cpuset
            mems_allowed, pfn = cpuset_current_mems_allowed(cpu), 0
            nodemask = cpuset_nodemask(cpu, gfp, alloc_flags, wanted)
        if pfn == 0:
            note(cpu, TRAIL_RETRY, alloc_flags, state.no_progress_loops)
    if pfn > 0:
        return pfn
    note(cpu, TRAIL_FAILED, alloc_flags, 0)
    warn_alloc(cpu, gfp, order, wanted)
    return 0
