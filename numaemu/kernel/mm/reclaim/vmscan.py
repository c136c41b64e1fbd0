"""Reclaim: which pages go, and how many. Linux's mm/vmscan.c with the active and inactive lists (classic LRU).

allocation below low  -> wakeup_kswapd -> coordinator -> kswapd of the node (kswapd.py): balance_pgdat
allocation below min  -> try_to_free_pages, by the CPU that asks (direct reclaim)
            both      -> shrink_node -> shrink_lruvec -> shrink_inactive_list -> shrink_folio_list (pageout.py)
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.kernel.core.lockstep import cond_resched
from numaemu.kernel.core.smp import MSG_DRAIN, actor_of_node, machine_of, request, spin_lock, spin_unlock
from numaemu.kernel.core.timer import mem_cgroup_flush_stats_ratelimited
from numaemu.kernel.fs.bio import blk_wait
from numaemu.kernel.include.mm_types import PG_active, PG_lru, PG_reclaim, PG_unevictable, PG_workingset
from numaemu.kernel.include.mmzone import (
    LRU_ACTIVE,
    LRU_ACTIVE_ANON,
    LRU_ACTIVE_FILE,
    LRU_FILE,
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    MAX_NR_ZONES,
    MIGRATE_RECLAIMABLE,
    WMARK_HIGH,
    lruvec_of,
    node_of,
    page_of,
    page_zone,
    pcp_of,
    wmark_pages,
    zone_of,
)
from numaemu.kernel.include.trace import MM_VMSCAN_LRU_ISOLATE, MM_VMSCAN_LRU_SHRINK_INACTIVE, trace_event
from numaemu.kernel.include.vmstat import (
    NR_INACTIVE_FILE,
    NR_ISOLATED_ANON,
    NR_ISOLATED_FILE,
    PGDEACTIVATE,
    PGREFILL,
    PGSCAN_ANON,
    PGSCAN_FILE,
    PGSCAN_KSWAPD,
    PGSTEAL_ANON,
    PGSTEAL_FILE,
    PGSTEAL_KSWAPD,
    WORKINGSET_ACTIVATE_ANON,
    count_vm_events,
    lruvec_page_state,
    mod_node_page_state,
)
from numaemu.kernel.mm.cache.page_writeback import wakeup_flusher_threads
from numaemu.kernel.mm.fault.rmap import REFERENCED_EXEC, folio_referenced
from numaemu.kernel.mm.numa.memory_tiers import can_demote, can_reclaim_anon_pages
from numaemu.kernel.mm.page_alloc.page_alloc import free_unref_page, put_page, try_get_page
from numaemu.kernel.mm.page_alloc.pcplist import drain_local_pages, trim_pcp
from numaemu.kernel.mm.page_alloc.watermark import gfp_zone
from numaemu.kernel.mm.reclaim.demote import shrink_or_demote
from numaemu.kernel.mm.reclaim.lru import (
    folio_clear,
    folio_is_file_lru,
    folio_set,
    folio_test,
    link_page,
    lruvec_add_folio,
    lruvec_del_folio,
    workingset_age_nonresident,
)
from numaemu.kernel.mm.reclaim.lru_batches import folio_rotate_reclaimable, lru_add_drain
from numaemu.kernel.mm.reclaim.lumpy import (
    clear_active_flags,
    files_kept,
    isolate_block,
    set_reclaim_mode,
    should_reclaim_stall,
    shrink_again,
)
from numaemu.kernel.mm.reclaim.pageout import KEEP, WRITTEN, reclaimer_offset, shrink_folio_list
from numaemu.kernel.mm.reclaim.reclaim_compaction import should_continue_reclaim
from numaemu.kernel.mm.reclaim.shrinker import shrink_slab
from numaemu.kernel.mm.reclaim.workingset import DEF_PRIORITY, SWAP_CLUSTER_MAX, lru_note_cost
from numaemu.kernel.mm.swap.page_io import end_swap_write
from numaemu.kernel.mm.swap.swapfile import get_nr_swap_pages

U = np.uint64
SWAP_CLUSTER_MAX_SKIPPED = SWAP_CLUSTER_MAX << 10  # pages of zones that do not help, passed over at once
MAX_SWAPPINESS = 200
DEACTIVATE_ANON, DEACTIVATE_FILE = 1, 2  # scan_control_t.may_deactivate
SCAN_EQUAL, SCAN_FRACT, SCAN_ANON, SCAN_FILE = range(4)


# -- lists ---------------------------------------------------------------------------------------------------


@kernel("i64(lruvec_t*, i64, i64)")
def lruvec_lru_size(lruvec, lru, zone_idx):
    """Pages of a list in zones up to zone_idx."""
    pages = 0
    for kind in range(zone_idx + 1):
        pages += lruvec.zone_nr[lru * MAX_NR_ZONES + kind]
    return max(pages, 0)


@kernel("bool(lruvec_t*, i64)")
def inactive_is_low(lruvec, inactive):
    """True if the inactive list is short against the active one: by memory size, 1:1 up to 1 GiB, 1:3 at 10 GiB, ..."""
    idle, active = lruvec_page_state(lruvec, inactive), lruvec_page_state(lruvec, inactive + LRU_ACTIVE)
    gigabytes = (idle + active) >> 18
    ratio = np.int64(np.sqrt(10.0 * gigabytes)) if gigabytes > 0 else 1
    return idle * ratio < active


@hot
def move_to_head(machine, lruvec, lru, pfn):
    """Put a page of a list first (list_move)."""
    page = page_of(machine, pfn)
    if page.lru_prev == 0:
        return
    page_of(machine, page.lru_prev).lru_next = page.lru_next
    if page.lru_next != 0:
        page_of(machine, page.lru_next).lru_prev = page.lru_prev
    else:
        lruvec.tail[lru] = page.lru_prev
    link_page(machine, lruvec, lru, pfn, False)


@kernel("i64(cpu_t*, scan_control_t*, i64, i64, i64)")
def isolate_lru_folios(cpu, sc, node, lru, nr_to_scan):
    """Take up to nr_to_scan pages from the cold end into the batch; how many were looked at. Under lru_lock.

    Pages of zones above reclaim_idx, which count too, and pages that somebody else is taking off, go to the head of the list.
    """
    machine = machine_of(cpu)
    lruvec, scanned, skipped = lruvec_of(machine, node), 0, 0
    sc.nr_taken = 0
    left = lruvec.nr[lru]
    while scanned < nr_to_scan and left > 0 and skipped < SWAP_CLUSTER_MAX_SKIPPED:
        pfn = lruvec.tail[lru]
        page = page_of(machine, pfn)
        left -= 1
        if page_zone(machine, pfn) % MAX_NR_ZONES > sc.reclaim_idx:
            skipped += 1
            move_to_head(machine, lruvec, lru, pfn)
            continue
        scanned += 1
        if (not sc.may_unmap and page.mapcount > 0) or not try_get_page(page):
            move_to_head(machine, lruvec, lru, pfn)
        elif not folio_clear(page, PG_lru):
            fetch_add(page, "refcount", -1)  # its isolator has a reference: this is not the last one
            move_to_head(machine, lruvec, lru, pfn)
        else:
            lruvec_del_folio(machine, lruvec, pfn)
            sc.pfn[sc.nr_taken] = pfn
            sc.nr_taken += 1
            if sc.lumpy_order > 0:
                scanned += isolate_block(cpu, sc, pfn)
                left = min(left, lruvec.nr[lru])
    where = sc.reclaim_idx | max(sc.order, 0) << 8 | lru << 16
    trace_event(cpu, MM_VMSCAN_LRU_ISOLATE, where, nr_to_scan, scanned + skipped, skipped, sc.nr_taken)
    return scanned + skipped


@kernel("void(cpu_t*, scan_control_t*, i64)")
def move_folios_to_lru(cpu, sc, node):
    """Put what is left of the batch back on the node's lists and drop the references of its isolation."""
    machine = machine_of(cpu)
    lruvec = lruvec_of(machine, node)
    lock = address_of(lruvec, "lru_lock")
    spin_lock(cpu, lock)
    for i in range(sc.nr_taken):
        if sc.state[i] != KEEP and sc.state[i] != WRITTEN:
            continue
        pfn = sc.pfn[i]
        page = page_of(machine, pfn)
        if folio_test(page, PG_active):
            workingset_age_nonresident(lruvec, 1)
        lruvec_add_folio(machine, lruvec, pfn, False)
        if fetch_add(page, "refcount", -1) == 1:  # everybody else has let go of it meanwhile
            folio_clear(page, PG_lru)
            lruvec_del_folio(machine, lruvec, pfn)
            sc.state[i] = -1
    spin_unlock(lock)
    for i in range(sc.nr_taken):
        if sc.state[i] == -1:
            free_unref_page(cpu, sc.pfn[i])


@kernel("void(cpu_t*, scan_control_t*)")
def end_writes(cpu, sc):
    """The disk has what this batch has written: these pages are clean, and the next ones to go."""
    for i in range(sc.nr_taken):
        if sc.state[i] == WRITTEN:
            pfn = sc.pfn[i]
            end_swap_write(cpu, pfn)
            if folio_clear(page_of(machine_of(cpu), pfn), PG_reclaim):
                folio_rotate_reclaimable(cpu, pfn)
            put_page(cpu, pfn)


@kernel("i64(cpu_t*, scan_control_t*)")
def count_whole(cpu, sc):
    """Pages that were not in the batch, but have gone with those that were, as parts of huge pages: they count as scanned."""
    machine = machine_of(cpu)
    count_vm_events(machine, cpu.id, PGSCAN_KSWAPD + reclaimer_offset(sc), sc.nr_whole)
    count_vm_events(machine, cpu.id, PGSCAN_ANON, sc.nr_whole)
    sc.nr_scanned += sc.nr_whole
    return sc.nr_whole


@kernel("i64(cpu_t*, scan_control_t*, i64, i64, i64)")
def shrink_inactive_list(cpu, sc, node, lru, nr_to_scan):
    """Reclaim from the cold end of an inactive list: pages freed."""
    machine = machine_of(cpu)
    lruvec, file = lruvec_of(machine, node), 1 if lru >= LRU_FILE else 0
    lock = address_of(lruvec, "lru_lock")
    lru_add_drain(cpu)
    set_reclaim_mode(machine, sc)
    spin_lock(cpu, lock)
    scanned = isolate_lru_folios(cpu, sc, node, lru, nr_to_scan)
    spin_unlock(lock)
    count_vm_events(machine, cpu.id, PGSCAN_KSWAPD + reclaimer_offset(sc), scanned)
    files = clear_active_flags(cpu, sc) if sc.lumpy_order > 0 else file * sc.nr_taken
    anons, sc.ignore_references = sc.nr_taken - files, 1 if sc.lumpy_order > 0 else 0
    count_vm_events(machine, cpu.id, PGSCAN_ANON, anons if file else scanned - files)
    count_vm_events(machine, cpu.id, PGSCAN_FILE, scanned - anons if file else files)
    sc.nr_scanned += sc.nr_taken
    if sc.nr_taken == 0:
        return 0
    mod_node_page_state(machine, cpu.id, node, NR_ISOLATED_ANON, anons)
    mod_node_page_state(machine, cpu.id, node, NR_ISOLATED_FILE, files)
    reclaimed = shrink_or_demote(cpu, sc, node)
    if sc.nr_whole > 0:
        scanned += count_whole(cpu, sc)
    if should_reclaim_stall(sc, reclaimed):
        reclaimed += shrink_again(cpu, sc)
    files_freed = files - files_kept(machine, sc) if sc.lumpy_order > 0 else file * reclaimed
    move_folios_to_lru(cpu, sc, node)
    mod_node_page_state(machine, cpu.id, node, NR_ISOLATED_ANON, -anons)
    mod_node_page_state(machine, cpu.id, node, NR_ISOLATED_FILE, -files)
    blk_wait(cpu)
    end_writes(cpu, sc)
    count_vm_events(machine, cpu.id, PGSTEAL_KSWAPD + reclaimer_offset(sc), reclaimed)
    count_vm_events(machine, cpu.id, PGSTEAL_ANON, reclaimed - files_freed)
    count_vm_events(machine, cpu.id, PGSTEAL_FILE, files_freed)
    where = node | file << 8 | max(sc.priority, 0) << 16
    trace_event(
        cpu, MM_VMSCAN_LRU_SHRINK_INACTIVE, where, files + anons, reclaimed, sc.nr_unqueued_dirty, sc.nr_pageout
    )
    lru_note_cost(cpu, lruvec, file, sc.nr_pageout, scanned - reclaimed)
    if sc.nr_unqueued_dirty == sc.nr_taken:  # nothing but dirty pages of files: only the flusher can help
        wakeup_flusher_threads(cpu, sc.kswapd == 0)
    return reclaimed


@kernel("void(cpu_t*, scan_control_t*, i64, i64, i64)")
def shrink_active_list(cpu, sc, node, lru, nr_to_scan):
    """Move pages from the cold end of an active list to the inactive one; executable file pages in use stay."""
    machine = machine_of(cpu)
    lruvec, rotated, deactivated = lruvec_of(machine, node), 0, 0
    lock, sc.lumpy_order = address_of(lruvec, "lru_lock"), 0
    lru_add_drain(cpu)
    spin_lock(cpu, lock)
    scanned = isolate_lru_folios(cpu, sc, node, lru, nr_to_scan)
    spin_unlock(lock)
    count_vm_events(machine, cpu.id, PGREFILL, scanned)
    for i in range(sc.nr_taken):
        pfn = sc.pfn[i]
        page = page_of(machine, pfn)
        sc.state[i] = KEEP
        if folio_test(page, PG_unevictable):
            continue
        seen = folio_referenced(cpu, pfn)
        if seen & REFERENCED_EXEC and folio_is_file_lru(page):
            rotated += 1
            continue
        folio_clear(page, PG_active)
        folio_set(page, PG_workingset)
        deactivated += 1
    move_folios_to_lru(cpu, sc, node)
    count_vm_events(machine, cpu.id, PGDEACTIVATE, deactivated)
    if rotated > 0:
        lru_note_cost(cpu, lruvec, 1 if lru >= LRU_FILE else 0, 0, rotated)


@kernel("i64(cpu_t*, scan_control_t*, i64)")
def reclaim_pages(cpu, sc, node):
    """Reclaim the isolated pages of the batch, all of one node, whether they were used or not: pages freed. What it writes may
    still be under way (blk_wait).
    """
    sc.ignore_references = 1
    freed = shrink_folio_list(cpu, sc)
    move_folios_to_lru(cpu, sc, node)
    end_writes(cpu, sc)
    sc.nr_taken = 0
    return freed


@hot
def can_age_anon_pages(machine, node):
    """True if pages may leave the active anonymous list: where swap or a slower tier can take them."""
    return get_nr_swap_pages(machine) > 0 or can_demote(machine, node)


# -- how much of which list ----------------------------------------------------------------------------------


@kernel("void(cpu_t*, scan_control_t*, i64)")
def prepare_scan_control(cpu, sc, node):
    """Look at costs, refaults and lengths before a pass over a node."""
    machine = machine_of(cpu)
    mem_cgroup_flush_stats_ratelimited(cpu)
    lruvec = lruvec_of(machine, node)
    sc.anon_cost, sc.file_cost = lruvec.anon_cost, lruvec.file_cost
    sc.may_deactivate = DEACTIVATE_ANON | DEACTIVATE_FILE
    if not sc.force_deactivate:
        for file in range(2):
            refaults = lruvec_page_state(lruvec, WORKINGSET_ACTIVATE_ANON + file)
            if refaults == lruvec.refaults[file] and not inactive_is_low(lruvec, LRU_FILE * file):
                sc.may_deactivate &= ~(DEACTIVATE_ANON << file)
    inactive_file = lruvec.nr[LRU_INACTIVE_FILE]
    sc.cache_trim_mode = 0
    if (
        lruvec_page_state(lruvec, NR_INACTIVE_FILE) >> sc.priority > 0
        and sc.may_deactivate & DEACTIVATE_FILE == 0
        and not sc.no_cache_trim_mode
    ):
        sc.cache_trim_mode = 1
    high = free = 0
    for kind in range(MAX_NR_ZONES):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.managed_pages > 0:
            high += wmark_pages(zone, WMARK_HIGH)
            free += zone.free_pages
    tiny = lruvec.nr[LRU_ACTIVE_FILE] + inactive_file + free <= high
    sc.file_is_tiny = 0
    if tiny and sc.may_deactivate & DEACTIVATE_ANON == 0 and lruvec.nr[LRU_INACTIVE_ANON] >> sc.priority > 0:
        sc.file_is_tiny = 1


@hot
def scan_balance(machine, sc, node):
    """Which kinds of pages to scan: by what there is and the sysctl vm.swappiness."""
    if not sc.may_swap or not can_reclaim_anon_pages(machine, node):
        return SCAN_FILE
    if sc.priority == 0 and machine.swappiness > 0:
        return SCAN_EQUAL
    if sc.file_is_tiny:
        return SCAN_ANON
    return SCAN_FILE if sc.cache_trim_mode else SCAN_FRACT


@kernel("void(cpu_t*, scan_control_t*, i64)")
def get_scan_count(cpu, sc, node):
    """sc.nr[]: how many pages of each list to scan in this pass."""
    machine = machine_of(cpu)
    balance = scan_balance(machine, sc, node)
    total = 2 * (sc.anon_cost + sc.file_cost) + sc.anon_cost + sc.file_cost
    anon_cost, file_cost = 2 * sc.anon_cost + sc.file_cost, sc.anon_cost + 2 * sc.file_cost
    anon = machine.swappiness * (total + 1) // (anon_cost + 1)
    file = (MAX_SWAPPINESS - machine.swappiness) * (total + 1) // (file_cost + 1)
    for lru in range(LRU_ACTIVE_FILE + 1):
        scan = lruvec_lru_size(lruvec_of(machine, node), lru, sc.reclaim_idx) >> sc.priority
        if balance == SCAN_FRACT:
            scan = scan * (file if lru >= LRU_FILE else anon) // (anon + file)
        elif (balance == SCAN_FILE and lru < LRU_FILE) or (balance == SCAN_ANON and lru >= LRU_FILE):
            scan = 0
        sc.nr[lru] = sc.targets[lru] = scan


@kernel("i64(cpu_t*, scan_control_t*, i64, i64, i64)")
def shrink_list(cpu, sc, node, lru, nr_to_scan):
    """One piece of one list: pages freed."""
    if lru & LRU_ACTIVE == 0:
        return shrink_inactive_list(cpu, sc, node, lru, nr_to_scan)
    if sc.may_deactivate & (DEACTIVATE_FILE if lru >= LRU_FILE else DEACTIVATE_ANON):
        shrink_active_list(cpu, sc, node, lru, nr_to_scan)
    else:
        sc.skipped_deactivate = 1
    return 0


@hot
def stop_smaller(sc):
    """Enough is reclaimed: leave the kind of which less is left, and scan as much of the other in proportion.

    False: one of them is done.
    """
    nr_anon = sc.nr[LRU_INACTIVE_ANON] + sc.nr[LRU_ACTIVE_ANON]
    nr_file = sc.nr[LRU_INACTIVE_FILE] + sc.nr[LRU_ACTIVE_FILE]
    if nr_anon == 0 or nr_file == 0:
        return False
    less, more, left = (0, LRU_FILE, nr_anon) if nr_file > nr_anon else (LRU_FILE, 0, nr_file)
    percentage = left * 100 // (sc.targets[less] + sc.targets[less + LRU_ACTIVE] + 1)
    sc.nr[less] = sc.nr[less + LRU_ACTIVE] = 0
    for lru in range(more, more + LRU_ACTIVE + 1):
        done = sc.targets[lru] - sc.nr[lru]
        wanted = sc.targets[lru] * (100 - percentage) // 100
        sc.nr[lru] = wanted - min(wanted, done)
    return True


@hot
def nothing_cached(machine, node):
    """True if a node's lists hold no page of a file, as no running Linux has it."""
    lruvec = lruvec_of(machine, node)
    return lruvec.nr[LRU_ACTIVE_FILE] + lruvec.nr[LRU_INACTIVE_FILE] == 0


@kernel("void(cpu_t*, i64)")
def trim_reclaimed(cpu, node):
    """While kswapd works, its lists hold four batches of a zone at most: what it frees is to be had at once (nr_pcp_high)."""
    machine = machine_of(cpu)
    for kind in range(MAX_NR_ZONES):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        for migratetype in range(MIGRATE_RECLAIMABLE + 1):
            trim_pcp(cpu, zone, pcp_of(machine, cpu.id, zone.number).lists[migratetype], zone.pcp_batch << 2)


@kernel("void(cpu_t*, scan_control_t*, i64)")
def shrink_lruvec(cpu, sc, node):
    """One pass over a node's lists.

    Linux's loop goes on for files or for inactive pages, and takes active anonymous pages along. Where nothing else is listed
    they keep it going here: else a pass would come to nothing for two seconds, while the sums of the lists are old.
    """
    machine, active_alone = machine_of(cpu), nothing_cached(machine_of(cpu), node)
    get_scan_count(cpu, sc, node)
    proportional, reclaimed = sc.kswapd == 0 and sc.priority == DEF_PRIORITY, 0
    while (
        sc.nr[LRU_INACTIVE_ANON] > 0
        or sc.nr[LRU_ACTIVE_FILE] > 0
        or sc.nr[LRU_INACTIVE_FILE] > 0
        or (active_alone and sc.nr[LRU_ACTIVE_ANON] > 0)
    ):
        for lru in range(LRU_ACTIVE_FILE + 1):
            if sc.nr[lru] > 0:
                piece = min(sc.nr[lru], SWAP_CLUSTER_MAX)
                sc.nr[lru] -= piece
                reclaimed += shrink_list(cpu, sc, node, lru, piece)
        if sc.kswapd:
            trim_reclaimed(cpu, node)
            cond_resched(cpu)
        if reclaimed >= sc.nr_to_reclaim and not proportional and not stop_smaller(sc):
            break
    sc.nr_reclaimed += reclaimed
    if can_age_anon_pages(machine, node) and inactive_is_low(lruvec_of(machine, node), LRU_INACTIVE_ANON):
        shrink_active_list(cpu, sc, node, LRU_ACTIVE_ANON, SWAP_CLUSTER_MAX)


@kernel("void(cpu_t*, scan_control_t*, i64)")
def shrink_node(cpu, sc, node):
    """Reclaim from a node."""
    before = sc.nr_reclaimed
    while True:
        round_before = sc.nr_reclaimed
        prepare_scan_control(cpu, sc, node)
        shrink_lruvec(cpu, sc, node)
        shrink_slab(cpu, sc.gfp, node, sc.priority)
        if not should_continue_reclaim(machine_of(cpu), sc, node, sc.nr_reclaimed - round_before):
            break
    if sc.nr_reclaimed > before:
        node_of(machine_of(cpu), node).kswapd_failures = 0
    elif sc.cache_trim_mode:
        sc.cache_trim_mode_failed = 1


@kernel("void(machine_t*, i64)")
def snapshot_refaults(machine, node):
    """Remember the refaults so far: more of them before the next pass let it deactivate."""
    lruvec = lruvec_of(machine, node)
    for file in range(2):
        lruvec.refaults[file] = lruvec_page_state(lruvec, WORKINGSET_ACTIVATE_ANON + file)


@kernel("void(cpu_t*, i64)")
def free_to_zones(cpu, node):
    """What this context has freed goes to the free lists, and is counted there when this returns."""
    machine = machine_of(cpu)
    drain_local_pages(cpu)
    for kind in range(MAX_NR_ZONES):
        if zone_of(machine, node * MAX_NR_ZONES + kind).returned != 0:
            request(cpu, actor_of_node(node), MSG_DRAIN, node * MAX_NR_ZONES + kind, 0, 0)


@kernel("void(machine_t*, scan_control_t*, i64, i64, u64)")
def init_scan_control(machine, sc, gfp, order, nodemask):
    """A scan_control as reclaim begins with it."""
    sc.nr_to_reclaim, sc.nr_scanned, sc.nr_reclaimed = SWAP_CLUSTER_MAX, 0, 0
    sc.gfp, sc.order, sc.priority, sc.reclaim_idx = gfp, order, DEF_PRIORITY, gfp_zone(machine, gfp)
    sc.nodemask, sc.kswapd = np.int64(nodemask), 0
    sc.may_writepage, sc.may_unmap, sc.may_swap = 1, 1, 1
    sc.force_deactivate, sc.skipped_deactivate, sc.ignore_references = 0, 0, 0
    sc.no_cache_trim_mode, sc.cache_trim_mode_failed, sc.compaction_ready = 0, 0, 0
