"""Moving a huge page as a whole: what migrate_pages of Linux's mm/migrate.c does with a large folio, and with one of a pool.

Only under the mmap_lock held for writing: nobody's fault can then find the place empty. The entry goes (under the family's
lock, so that no walk over the reverse mapping is at it), every CPU forgets it, the pages are taken off their lists, copied, and
the entry comes back with the new ones. khugepaged takes small pages over in the same way.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import copy_bytes
from numaemu.compiler.pointer import address_of, u64
from numaemu.hardware.paging import _PAGE_USER, PTE_PFN_MASK, entry_exchange, entry_load
from numaemu.kernel.arch.pgalloc import hugetlb_walk, pmd_lock, pmd_trans_huge, pmd_unlock
from numaemu.kernel.arch.pgtable import mm_of, pfn_pte, pmd_size, pte_pfn, vm_page_prot
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.core.xarray import page_entry, xa_slot
from numaemu.kernel.include.gfp import __GFP_THISNODE, GFP_TRANSHUGE, GFP_TRANSHUGE_LIGHT
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import PG_anon, PG_anon_exclusive, PG_swapcache
from numaemu.kernel.include.mmzone import charge_copy_pages, page_of, page_to_nid
from numaemu.kernel.include.vmstat import (
    PGMIGRATE_FAIL,
    PGMIGRATE_SUCCESS,
    THP_MIGRATION_FAIL,
    THP_MIGRATION_SPLIT,
    THP_MIGRATION_SUCCESS,
    count_vm_events,
)
from numaemu.kernel.mm.fault.rmap import folio_remove_rmap, mapping_of
from numaemu.kernel.mm.huge.huge_memory import (
    add_new_huge_pages,
    alloc_huge_on_node,
    release_huge_pages,
    vma_alloc_huge_pages,
)
from numaemu.kernel.mm.huge.hugetlb import (
    HTLB_ALLOC_MASK,
    alloc_buddy_hugetlb_folio,
    dequeue_hugetlb_folio_nodemask,
    free_pool_folio,
    huge_node,
    hugetlb_lock,
    vma_hugecache_offset,
)
from numaemu.kernel.mm.huge.hugetlb_fault import copy_user_large_folio, fault_mutex_of, flush_hugetlb_tlb_range
from numaemu.kernel.mm.huge.hugetlb_pool import (
    account_new_hugetlb_folio,
    free_huge_folio,
    hpage_pages,
    hstate_is_gigantic,
    hstate_vma,
    huge_page_shift,
    huge_page_size,
    pages_per_huge_page,
    remove_hugetlb_folio,
)
from numaemu.kernel.mm.huge.split import add_huge_mapping, flush_huge_pages, is_huge_zero, remove_huge_mapping
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.reclaim.lru import folio_test, folio_trylock, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import count_isolated, folio_isolate_lru, folio_putback_lru, lru_add_drain
from numaemu.kernel.mm.swap.swapfile import free_swap_cache
from numaemu.spec.param import PAGE_SIZE

U = np.uint64
TEMPORARY = 1 << 50  # beside a pfn: folio_test_hugetlb_temporary
HUGE_MOVED, HUGE_STAYED, HUGE_SPLIT = range(3)  # HUGE_SPLIT: only its small pages can be moved
# why small pages do not become a huge one: enum scan_result
# fmt: off
(SCAN_SUCCEED, SCAN_PMD_NULL, SCAN_PMD_MAPPED, SCAN_EXCEED_NONE_PTE, SCAN_EXCEED_SWAP_PTE, SCAN_EXCEED_SHARED_PTE,
 SCAN_PTE_NON_PRESENT, SCAN_PAGE_RO, SCAN_LACK_REFERENCED_PAGE, SCAN_PAGE_NULL, SCAN_PAGE_COUNT, SCAN_PAGE_LRU,
 SCAN_PAGE_LOCK, SCAN_ALLOC_HUGE_PAGE_FAIL, SCAN_SCAN_ABORT) = range(15)
# fmt: on


@kernel("i64(cpu_t*, i64)")
def isolate_small_page(cpu, pfn):
    """Lock a page that only page tables (and the swap cache) refer to and take it off its list: SCAN_*."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    if not folio_trylock(page):
        return SCAN_PAGE_LOCK
    expected = np.int64(load_acquire(page, "mapcount")) + (1 if folio_test(page, PG_swapcache) else 0)
    result = SCAN_SUCCEED
    if np.int64(load_acquire(page, "refcount")) != expected:
        result = SCAN_PAGE_COUNT
    elif not folio_isolate_lru(cpu, pfn):
        result = SCAN_PAGE_LRU
    if result != SCAN_SUCCEED:
        folio_unlock(page)
    else:
        count_isolated(machine, cpu, pfn, 1)
    return result


@kernel("void(cpu_t*, i64)")
def putback_small_page(cpu, pfn):
    """An isolated page goes back to its list."""
    machine = machine_of(cpu)
    count_isolated(machine, cpu, pfn, -1)
    folio_unlock(page_of(machine, pfn))
    folio_putback_lru(cpu, pfn)


@kernel("i64(cpu_t*, i64)")
def isolate_huge_page(cpu, pfn):
    """Isolate every page of a huge one; how many of them, or 0: one is busy, and all are back."""
    machine = machine_of(cpu)
    pages = hpage_pages(machine)
    for i in range(pages):
        if isolate_small_page(cpu, pfn + i) != SCAN_SUCCEED:
            for j in range(i):
                putback_small_page(cpu, pfn + j)
            return 0
    return pages


@hot
def may_move_whole(machine, entry):
    """True for an entry of a huge page that nobody else maps."""
    return (
        pmd_trans_huge(entry)
        and not is_huge_zero(entry)
        and load_acquire(page_of(machine, pte_pfn(entry)), "mapcount") <= 1
    )


@kernel("u64(cpu_t*, i64, vma_t*, u64, u64, i64)")
def take_huge_pmd(cpu, mm_number, vma, address, where, pfn):
    """Take the entry away that maps a huge page, from all CPUs: what it was, or 0: reclaim has taken it apart, a table stays where it is."""
    machine = machine_of(cpu)
    family = address_of(mapping_of(machine, vma.mapping), "lock")
    spin_lock(cpu, family)
    pmd_lock(cpu, where)
    entry = entry_load(where)
    same = pmd_trans_huge(entry) and pte_pfn(entry) == pfn
    if same:
        entry = entry_exchange(where, U(0))
    pmd_unlock(machine, where)
    if same:
        flush_huge_pages(cpu, mm_number, address, address + pmd_size(machine))
    spin_unlock(family)
    return entry if same else U(0)


@kernel("i64(cpu_t*, i64, vma_t*, u64, u64, i64)")
def move_huge_pmd_to(cpu, mm_number, vma, address, where, new):
    """Move the huge page that the entry at `where` maps, and nobody else, to new pages in one piece: HUGE_MOVED, or HUGE_STAYED and
    these are free again. The mmap_lock is held for writing.
    """
    machine = machine_of(cpu)
    old, pages = pte_pfn(entry_load(where)), hpage_pages(machine)
    entry = take_huge_pmd(cpu, mm_number, vma, address, where, old)
    if entry == U(0) or isolate_huge_page(cpu, old) == 0:
        if entry != U(0):
            entry_exchange(where, entry)
        release_huge_pages(cpu, new)
        count_vm_events(machine, cpu.id, THP_MIGRATION_FAIL, 1)
        count_vm_events(machine, cpu.id, PGMIGRATE_FAIL, pages)
        return HUGE_STAYED
    copy_bytes(frame_of(machine, new), frame_of(machine, old), pages * PAGE_SIZE)
    charge_copy_pages(machine, cpu, new, old, pages)
    cpu.clock_base_ns += machine.migrate_page_ns
    add_new_huge_pages(cpu, vma, address, new)
    add_huge_mapping(machine, cpu, new)
    remove_huge_mapping(machine, cpu, old)
    for i in range(pages):
        folio_remove_rmap(machine, cpu, old + i)
        putback_small_page(cpu, old + i)
        free_swap_cache(cpu, old + i)
        put_page(cpu, old + i)
    entry_exchange(where, pfn_pte(new, (entry & ~PTE_PFN_MASK) | vm_page_prot(machine, vma, _PAGE_USER)))
    lru_add_drain(cpu)
    count_vm_events(machine, cpu.id, THP_MIGRATION_SUCCESS, 1)
    count_vm_events(machine, cpu.id, PGMIGRATE_SUCCESS, pages)
    return HUGE_MOVED


@kernel("i64(cpu_t*, i64, vma_t*, u64, u64, i64, bool)")
def migrate_huge_pmd(cpu, mm_number, vma, address, where, target, misplaced):
    """Move the huge page that the entry at `where` maps to a node, or (below 0) to where the VMA's policy wants it: HUGE_*.

    As a whole only where a page in one piece is to be had, and nobody else maps it. The mmap_lock is held for writing. For a
    hinting fault (`misplaced`) nothing is compacted.
    """
    machine = machine_of(cpu)
    if not may_move_whole(machine, entry_load(where)):
        return HUGE_SPLIT
    if target < 0:
        new = vma_alloc_huge_pages(cpu, GFP_TRANSHUGE, vma, address)
    else:
        new = alloc_huge_on_node(cpu, GFP_TRANSHUGE_LIGHT if misplaced else GFP_TRANSHUGE, target)
    if new != 0:
        return move_huge_pmd_to(cpu, mm_number, vma, address, where, new)
    count_vm_events(machine, cpu.id, THP_MIGRATION_FAIL, 1)
    if misplaced:
        return HUGE_STAYED
    count_vm_events(machine, cpu.id, THP_MIGRATION_SPLIT, 1)
    return HUGE_SPLIT


# -- pages of the pools ---------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, vma_t*, i64, i64)")
def alloc_hugetlb_folio_nodemask(cpu, vma, index, target):
    """A page of the VMA's pool to move to, of a node, or (below 0) by the policy, without references; its pfn or 0.
    + TEMPORARY if it is no page of the pool's size yet: then the old one leaves the pool.
    """
    machine, h = machine_of(cpu), hstate_vma(machine_of(cpu), vma)
    nid, nodes = huge_node(cpu, vma, index)
    if target >= 0:
        nid, nodes = target, U(1) << U(target)
    lock, pfn = hugetlb_lock(h), 0
    spin_lock(cpu, lock)
    if h.free_huge_pages > h.resv_huge_pages:
        pfn = dequeue_hugetlb_folio_nodemask(cpu, h, nid, nodes)
    spin_unlock(lock)
    if pfn != 0 or hstate_is_gigantic(h):
        return pfn
    pfn = alloc_buddy_hugetlb_folio(cpu, h, HTLB_ALLOC_MASK | (__GFP_THISNODE if target >= 0 else 0), nid, nodes)
    if pfn == 0:
        return 0
    spin_lock(cpu, lock)
    account_new_hugetlb_folio(machine, h, pfn)
    spin_unlock(lock)
    return pfn | TEMPORARY


@kernel("void(cpu_t*, hstate_t*, i64, bool)")
def put_pool_folio(cpu, h, pfn, temporary):
    """A page of a pool that has no references is free again; a temporary one is the buddy system's."""
    machine, lock = machine_of(cpu), hugetlb_lock(h)
    if not temporary:
        if not free_huge_folio(cpu, pfn):
            free_pool_folio(cpu, h, pfn)
        return
    page = page_of(machine, pfn)
    page.mapping, page.index = 0, 0
    spin_lock(cpu, lock)
    remove_hugetlb_folio(machine, h, pfn, False)
    spin_unlock(lock)
    free_pool_folio(cpu, h, pfn)


@kernel("void(cpu_t*, hstate_t*, i64, i64)")
def move_hugetlb_state(cpu, h, old, new):
    """The pool has one page more on the new node and one less on the old one: so it is with those beyond its size."""
    machine, lock = machine_of(cpu), hugetlb_lock(h)
    before, after = page_to_nid(machine, old), page_to_nid(machine, new)
    spin_lock(cpu, lock)
    if before != after and h.surplus_node[before] > 0:
        h.surplus_node[before] -= 1
        h.surplus_node[after] += 1
    spin_unlock(lock)


@hot
def hugetlb_folio_migrate(cpu, vma, index, old, new):
    """Contents and identity of a page that one entry maps; of an object also the reference in its tree. False: somebody else
    has it. The old page's count is frozen at 0, so that nobody finds it any more.
    """
    machine, page, target = machine_of(cpu), page_of(machine_of(cpu), old), page_of(machine_of(cpu), new)
    expected = 1 if folio_test(page, PG_anon) else 2  # the entry's, the tree's
    if load_acquire(page, "mapcount") != 1 or compare_exchange(page, "refcount", expected, 0) != expected:
        return False
    copy_user_large_folio(cpu, hstate_vma(machine, vma), new, old)
    cpu.clock_base_ns += machine.migrate_page_ns
    target.mapping, target.index, target.mapcount = page.mapping, page.index, 1
    target.flags |= page.flags & U(PG_anon | PG_anon_exclusive)
    store_release(target, "refcount", expected)
    if not folio_test(page, PG_anon):
        store_release(u64.array(xa_slot(machine, mapping_of(machine, page.mapping), index)), 0, page_entry(new))
    page.mapcount = 0
    return True


@kernel("i64(cpu_t*, i64, vma_t*, u64, i64)")
def migrate_hugetlb_page(cpu, mm_number, vma, address, target):
    """Move a page of a pool that is mapped at an address of a VMA, as migrate_huge_pmd does: HUGE_MOVED or HUGE_STAYED.

    Its fault mutex keeps others who have the object away from it (unmap_and_move_huge_page).
    """
    machine, h = machine_of(cpu), hstate_vma(machine_of(cpu), vma)
    address &= ~(huge_page_size(h) - U(1))
    where = hugetlb_walk(machine, mm_of(machine, mm_number), address, huge_page_shift(h))
    index = vma_hugecache_offset(h, vma, address)
    if where == U(0):
        return HUGE_MOVED
    old, pages = pte_pfn(entry_load(where)), pages_per_huge_page(h)
    alone = load_acquire(page_of(machine, old), "mapcount") == 1
    new = alloc_hugetlb_folio_nodemask(cpu, vma, index, target) if alone else 0
    if new == 0:
        count_vm_events(machine, cpu.id, PGMIGRATE_FAIL, pages)
        return HUGE_STAYED
    new, temporary, mutex = new & (TEMPORARY - 1), new & TEMPORARY != 0, fault_mutex_of(h, vma, index)
    spin_lock(cpu, mutex)
    entry, moved = entry_exchange(where, U(0)), False
    flush_hugetlb_tlb_range(cpu, h, mm_number, address, address + huge_page_size(h))
    if pmd_trans_huge(entry) and pte_pfn(entry) == old and hugetlb_folio_migrate(cpu, vma, index, old, new):
        if temporary:
            move_hugetlb_state(cpu, h, old, new)
        entry, moved = pfn_pte(new, entry & ~PTE_PFN_MASK), True
    entry_exchange(where, entry)
    spin_unlock(mutex)
    put_pool_folio(cpu, h, old if moved else new, temporary)
    count_vm_events(machine, cpu.id, PGMIGRATE_SUCCESS if moved else PGMIGRATE_FAIL, pages)
    return HUGE_MOVED if moved else HUGE_STAYED
