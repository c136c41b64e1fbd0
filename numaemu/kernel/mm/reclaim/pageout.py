"""What reclaim does with pages it has taken off the lists: the half of Linux's mm/vmscan.c around shrink_folio_list.

A batch of SWAP_CLUSTER_MAX pages (more only in lumpy.py) goes through in three steps, so that one shootdown does for
all of them:

    1  lock, look at accessed bits, give anonymous pages a slot, take the page out of all address spaces
    2  every CPU forgets them (try_to_unmap_flush)
    3  write what is dirty; free what is clean; the rest goes back to the lists (vmscan.py)
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, i64
from numaemu.kernel.arch.tlb import tlbflush_unmap_batch_t, try_to_unmap_flush
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import __GFP_FS, __GFP_IO
from numaemu.kernel.include.mm_types import (
    PG_active,
    PG_anon,
    PG_dirty,
    PG_mlocked,
    PG_reclaim,
    PG_referenced,
    PG_swapbacked,
    PG_swapcache,
    PG_unevictable,
    PG_writeback,
)
from numaemu.kernel.include.mmzone import NR_LRU_LISTS, page_of, page_to_nid
from numaemu.kernel.include.vmstat import (
    NR_VMSCAN_IMMEDIATE_RECLAIM,
    NR_VMSCAN_WRITE,
    PGACTIVATE,
    PGLAZYFREED,
    count_vm_events,
    mod_node_page_state,
)
from numaemu.kernel.mm.cache.page_writeback import note_dirty
from numaemu.kernel.mm.cache.pagemap import remove_mapping
from numaemu.kernel.mm.cache.shmem import (
    folio_hold_mapping,
    release_mapping,
    shmem_delete_from_page_cache,
    shmem_writepage,
)
from numaemu.kernel.mm.fault.rmap import REFERENCED_EXEC, REFERENCED_LOCKED, folio_referenced, try_to_unmap
from numaemu.kernel.mm.page_alloc.page_alloc import free_unref_page, get_page
from numaemu.kernel.mm.reclaim.lru import (
    folio_clear,
    folio_is_file_lru,
    folio_set,
    folio_test,
    folio_trylock,
    folio_unlock,
)
from numaemu.kernel.mm.reclaim.workingset import SWAP_CLUSTER_MAX, shadow_to_entry, workingset_eviction
from numaemu.kernel.mm.swap.page_io import PAGE_KEEP, PAGE_WRITEBACK, swap_writepage
from numaemu.kernel.mm.swap.swap_state import add_to_swap
from numaemu.kernel.mm.swap.swapfile import (
    SWAP_HAS_CACHE,
    __delete_from_swap_cache,
    folio_free_swap,
    swap_entry_put,
    vm_swap_full,
)
from numaemu.spec.param import MAX_ORDER

U = np.uint64
# what becomes of a page of the batch
KEEP, KEEP_LOCKED, ACTIVATE_LOCKED, PAGEOUT, FREE, FREED, WRITTEN = range(7)
LOOK_AT, DEMOTE = 7, 8  # before that: not looked at yet; it may move to a slower tier (demote.py)
FOLIOREF_RECLAIM, FOLIOREF_RECLAIM_CLEAN, FOLIOREF_KEEP, FOLIOREF_ACTIVATE = range(4)

RECLAIM_BATCH = SWAP_CLUSTER_MAX + (1 << MAX_ORDER)  # room for a block around the last page (lumpy.py)

# fmt: off
scan_control_t = Struct("scan_control_t", [      # struct scan_control; its context only
    ("nr_to_reclaim", i64), ("nr_scanned", i64), ("nr_reclaimed", i64),
    ("gfp", i64), ("order", i64), ("priority", i64), ("reclaim_idx", i64), ("nodemask", i64),
    ("kswapd", i64),                 # current_is_kswapd()
    ("khugepaged", i64),             # current_is_khugepaged(): set by khugepaged, whoever reclaims for it
    ("may_writepage", i64), ("may_unmap", i64), ("may_swap", i64),
    ("may_deactivate", i64), ("force_deactivate", i64), ("skipped_deactivate", i64),
    ("cache_trim_mode", i64), ("no_cache_trim_mode", i64), ("cache_trim_mode_failed", i64), ("file_is_tiny", i64),
    ("anon_cost", i64), ("file_cost", i64),
    ("compaction_ready", i64), ("ignore_references", i64),
    ("demote_pass", i64),            # 1: what may go is not unmapped but left for demotion
    ("nr_whole", i64),               # pages of huge ones that were demoted whole, beyond those in the batch
    ("nr", i64, NR_LRU_LISTS), ("targets", i64, NR_LRU_LISTS),
    # the batch
    ("nr_taken", i64), ("pfn", i64, RECLAIM_BATCH), ("state", i64, RECLAIM_BATCH), ("lumpy_order", i64),
    ("nr_pageout", i64), ("nr_dirty", i64), ("nr_unqueued_dirty", i64),
    ("tlb_ubc", tlbflush_unmap_batch_t),
])
# fmt: on


@hot
def scan_control_of(cpu):
    return scan_control_t.array(machine_of(cpu).scan_controls)[cpu.id]


@hot
def reclaimer_offset(sc):
    """Which of the counters pg*_kswapd, pg*_direct and pg*_khugepaged is this reclaim's, from the first on."""
    return 0 if sc.kswapd else 2 if sc.khugepaged else 1


@kernel("i64(cpu_t*, i64)")
def folio_check_references(cpu, pfn):
    """Second chance: an accessed page stays; used more than once it is activated."""
    page, seen = page_of(machine_of(cpu), pfn), folio_referenced(cpu, pfn)
    if seen & REFERENCED_LOCKED:
        return FOLIOREF_ACTIVATE
    referenced_folio = folio_clear(page, PG_referenced)
    entries = seen & 0xFFFFFFFF
    if entries > 0:
        folio_set(page, PG_referenced)
        if referenced_folio or entries > 1 or (seen & REFERENCED_EXEC and folio_is_file_lru(page)):
            return FOLIOREF_ACTIVATE
        return FOLIOREF_KEEP
    return FOLIOREF_RECLAIM_CLEAN if referenced_folio and folio_is_file_lru(page) else FOLIOREF_RECLAIM


@kernel("i64(cpu_t*, scan_control_t*, i64, i64)")
def dirty_folio(cpu, sc, pfn, references):
    """What to do with an unmapped dirty page: files are left to the flusher."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    sc.nr_dirty += 1
    if folio_is_file_lru(page) and not folio_test(page, PG_anon):
        sc.nr_unqueued_dirty += 1
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_VMSCAN_IMMEDIATE_RECLAIM, 1)
        folio_set(page, PG_reclaim)
        return ACTIVATE_LOCKED
    if references == FOLIOREF_RECLAIM_CLEAN or not sc.may_writepage:
        return KEEP_LOCKED
    may_enter_fs = sc.gfp & __GFP_FS or (folio_test(page, PG_swapbacked) and sc.gfp & __GFP_IO)
    return PAGEOUT if may_enter_fs else KEEP_LOCKED


@kernel("i64(cpu_t*, scan_control_t*, i64)")
def unmap_folio(cpu, sc, pfn):
    """Step 1 for one page."""
    page = page_of(machine_of(cpu), pfn)
    if not folio_trylock(page):
        return KEEP
    if folio_test(page, PG_mlocked | PG_unevictable):
        return ACTIVATE_LOCKED
    if not sc.may_unmap and load_acquire(page, "mapcount") > 0:
        return KEEP_LOCKED
    if folio_test(page, PG_writeback):
        folio_set(page, PG_reclaim)
        return ACTIVATE_LOCKED
    references = FOLIOREF_RECLAIM if sc.ignore_references else folio_check_references(cpu, pfn)
    if references == FOLIOREF_ACTIVATE:
        return ACTIVATE_LOCKED
    if references == FOLIOREF_KEEP:
        return KEEP_LOCKED
    if sc.demote_pass:
        return DEMOTE
    anon = folio_test(page, PG_anon)
    if anon and folio_test(page, PG_swapbacked) and not folio_test(page, PG_swapcache):
        if not sc.gfp & __GFP_IO:
            return KEEP_LOCKED
        if not add_to_swap(cpu, pfn):
            return ACTIVATE_LOCKED
    if load_acquire(page, "mapcount") > 0:
        unmapped = try_to_unmap(cpu, sc.tlb_ubc, pfn)
        if sc.tlb_ubc.dirty:
            note_dirty(cpu, pfn)
        if not unmapped:
            return ACTIVATE_LOCKED
    return dirty_folio(cpu, sc, pfn, references) if folio_test(page, PG_dirty) else FREE


@kernel("i64(cpu_t*, scan_control_t*, i64)")
def pageout(cpu, sc, pfn):
    """Write a page: FREE if it may go at once, WRITTEN if the disk still has to say so, ACTIVATE_LOCKED if it cannot be."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    if not folio_test(page, PG_swapcache) and (folio_test(page, PG_anon) or not shmem_writepage(cpu, pfn)):
        return ACTIVATE_LOCKED
    folio_clear(page, PG_dirty)
    folio_set(page, PG_reclaim)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_VMSCAN_WRITE, 1)
    answer = swap_writepage(cpu, pfn)
    if answer == PAGE_KEEP:
        folio_set(page, PG_dirty)
        folio_clear(page, PG_reclaim)
        return ACTIVATE_LOCKED
    sc.nr_pageout += 1
    if answer == PAGE_WRITEBACK:
        return WRITTEN
    folio_clear(page, PG_reclaim)
    return FREE


@hot
def drop_file(cpu, pfn):
    """A clean page of a file leaves the cache."""
    page = page_of(machine_of(cpu), pfn)
    if page.mapping == 0 or load_acquire(page, "refcount") != 2:
        return False
    if not remove_mapping(cpu, pfn, shadow_to_entry(workingset_eviction(cpu, pfn))):
        return False
    return compare_exchange(page, "refcount", 1, 0) == 1  # else who looked it up late frees it: it is nobody's


@hot
def drop_shmem(cpu, pfn):
    """A page of a shared object that nobody has ever written to need not be kept."""
    page = page_of(machine_of(cpu), pfn)
    family = folio_hold_mapping(cpu, pfn)
    if family == 0:
        return False
    gone = compare_exchange(page, "refcount", 2, 0) == 2
    if gone and (folio_test(page, PG_dirty) or not shmem_delete_from_page_cache(cpu, pfn, 0)):
        store_release(page, "refcount", 2)
        gone = False
    release_mapping(cpu, family)
    return gone


@kernel("bool(cpu_t*, i64)")
def __remove_mapping(cpu, pfn):
    """Take a locked page, to which only we and its cache refer, out of the cache, leaving a shadow; False: it is in use.

    Its reference count is 0 then. A page that nobody caches goes if it may be thrown away (lazyfree).
    """
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    if not folio_test(page, PG_swapcache | PG_anon):
        return drop_shmem(cpu, pfn) if folio_test(page, PG_swapbacked) else drop_file(cpu, pfn)
    if not folio_test(page, PG_swapcache):
        if folio_test(page, PG_swapbacked) or compare_exchange(page, "refcount", 1, 0) != 1:
            return False
        count_vm_events(machine, cpu.id, PGLAZYFREED, 1)
        return True
    if compare_exchange(page, "refcount", 2, 0) != 2:
        return False
    if folio_test(page, PG_dirty):
        store_release(page, "refcount", 2)
        return False
    entry = page.private
    __delete_from_swap_cache(cpu, pfn, workingset_eviction(cpu, pfn))
    swap_entry_put(cpu, entry, SWAP_HAS_CACHE)
    return True


@kernel("void(cpu_t*, scan_control_t*, i64)")
def dispose_folio(cpu, sc, i):
    """Step 3 for page i of the batch."""
    machine, pfn = machine_of(cpu), sc.pfn[i]
    page = page_of(machine, pfn)
    state = pageout(cpu, sc, pfn) if sc.state[i] == PAGEOUT else sc.state[i]
    if state == FREE:
        if __remove_mapping(cpu, pfn):
            folio_unlock(page)
            free_unref_page(cpu, pfn)
            sc.state[i] = FREED
            return
        state = KEEP_LOCKED
    if state == ACTIVATE_LOCKED:
        if folio_test(page, PG_swapcache) and (vm_swap_full(machine) or folio_test(page, PG_mlocked)):
            folio_free_swap(cpu, pfn)
        if not folio_test(page, PG_mlocked):
            folio_set(page, PG_active)
            count_vm_events(machine, cpu.id, PGACTIVATE, 1)
    if state == WRITTEN:
        get_page(page)  # until the disk has it
    if state != KEEP:
        folio_unlock(page)
    sc.state[i] = WRITTEN if state == WRITTEN else KEEP


@kernel("i64(cpu_t*, scan_control_t*)")
def shrink_marked(cpu, sc):
    """Reclaim those pages of the batch that are still to be looked at, and let go of the others: how many are freed now."""
    freed = sc.nr_pageout = sc.nr_dirty = sc.nr_unqueued_dirty = sc.tlb_ubc.nr_mms = 0
    for i in range(sc.nr_taken):
        if sc.state[i] == LOOK_AT:
            sc.state[i] = unmap_folio(cpu, sc, sc.pfn[i])
    try_to_unmap_flush(cpu, sc.tlb_ubc)
    for i in range(sc.nr_taken):
        if sc.state[i] != FREED:  # demoted
            dispose_folio(cpu, sc, i)
            freed += 1 if sc.state[i] == FREED else 0
    return freed


@kernel("i64(cpu_t*, scan_control_t*)")
def shrink_folio_list(cpu, sc):
    """Reclaim what can be had of the batch of isolated pages: how many are freed; state[] tells of each."""
    for i in range(sc.nr_taken):
        sc.state[i] = LOOK_AT
    return shrink_marked(cpu, sc)
