"""Moving a huge page as a whole: what migrate_pages of Linux's mm/migrate.c does with a large folio, for mbind.

Only under the mmap_lock held for writing: nobody's fault can then find the place empty. The entry goes (under the family's
lock, so that no walk over the reverse mapping is at it), every CPU forgets it, the pages are taken off their lists, copied, and
the entry comes back with the new ones. khugepaged takes small pages over in the same way.
"""
import numpy as np

from numaemu.atomic import load_acquire
from numaemu.compile import kernel
from numaemu.kernel.gfp import GFP_TRANSHUGE
from numaemu.kernel.huge_memory import add_new_huge_pages, free_huge_pages, vma_alloc_huge_pages
from numaemu.kernel.huge_split import add_huge_mapping, flush_huge_pages, is_huge_zero, remove_huge_mapping
from numaemu.kernel.hugetlb_pool import hpage_pages
from numaemu.kernel.mm_inline import folio_test, folio_trylock, folio_unlock
from numaemu.kernel.mm_types import PG_swapcache
from numaemu.kernel.mmzone import page_of
from numaemu.kernel.page_alloc import put_page
from numaemu.kernel.pgalloc import pmd_lock, pmd_trans_huge, pmd_unlock
from numaemu.kernel.pgtable import pfn_pte, pmd_size, pte_pfn
from numaemu.kernel.rmap import folio_remove_rmap, mapping_of
from numaemu.kernel.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.swap import count_isolated, folio_isolate_lru, folio_putback_lru, lru_add_drain
from numaemu.kernel.swapfile import free_swap_cache
from numaemu.kernel.vmstat import (PGMIGRATE_FAIL, PGMIGRATE_SUCCESS, THP_MIGRATION_FAIL, THP_MIGRATION_SUCCESS,
                                   count_vm_events)
from numaemu.native import copy_bytes
from numaemu.paging import PTE_PFN_MASK, entry_exchange, entry_load
from numaemu.pointer import address_of

U = np.uint64
# why small pages do not become a huge one: enum scan_result
(SCAN_SUCCEED, SCAN_PMD_NULL, SCAN_PMD_MAPPED, SCAN_EXCEED_NONE_PTE, SCAN_EXCEED_SWAP_PTE, SCAN_EXCEED_SHARED_PTE,
 SCAN_PTE_NON_PRESENT, SCAN_PAGE_RO, SCAN_LACK_REFERENCED_PAGE, SCAN_PAGE_NULL, SCAN_PAGE_COUNT, SCAN_PAGE_LRU,
 SCAN_PAGE_LOCK, SCAN_ALLOC_HUGE_PAGE_FAIL) = range(14)


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


@kernel("bool(cpu_t*, i64, vma_t*, u64, u64)")
def migrate_huge_pmd(cpu, mm_number, vma, address, where):
    """Move the huge page that the entry at `where` maps to where the VMA's policy wants it; False: it stays as it is.

    Only a page that nobody else maps. The mmap_lock is held for writing.
    """
    machine = machine_of(cpu)
    entry = entry_load(where)
    if not pmd_trans_huge(entry) or is_huge_zero(entry) or load_acquire(page_of(machine, pte_pfn(entry)), "mapcount") > 1:
        return False
    old, new, nbytes = pte_pfn(entry), vma_alloc_huge_pages(cpu, GFP_TRANSHUGE, vma, address), hpage_pages(machine) * 4096
    if new == 0:
        return False
    family = address_of(mapping_of(machine, vma.mapping), "lock")
    spin_lock(cpu, family)
    pmd_lock(cpu, where)
    entry = entry_exchange(where, U(0))
    pmd_unlock(machine, where)
    flush_huge_pages(cpu, mm_number, address, address + pmd_size(machine))
    spin_unlock(family)
    if not pmd_trans_huge(entry) or pte_pfn(entry) != old or isolate_huge_page(cpu, old) == 0:
        entry_exchange(where, entry)
        free_huge_pages(cpu, new)
        count_vm_events(machine, cpu.id, THP_MIGRATION_FAIL, 1)
        count_vm_events(machine, cpu.id, PGMIGRATE_FAIL, nbytes >> 12)
        return False
    copy_bytes(machine.memory + (U(new) << U(12)), machine.memory + (U(old) << U(12)), nbytes)
    cpu.clock_base_ns += machine.copy_page_ns * (nbytes >> 12)
    add_new_huge_pages(cpu, vma, address, new)
    add_huge_mapping(machine, cpu, new)
    remove_huge_mapping(machine, cpu, old)
    for i in range(nbytes >> 12):
        folio_remove_rmap(machine, cpu, old + i)
        putback_small_page(cpu, old + i)
        free_swap_cache(cpu, old + i)
        put_page(cpu, old + i)
    entry_exchange(where, pfn_pte(new, entry & ~PTE_PFN_MASK))
    lru_add_drain(cpu)
    count_vm_events(machine, cpu.id, THP_MIGRATION_SUCCESS, 1)
    count_vm_events(machine, cpu.id, PGMIGRATE_SUCCESS, nbytes >> 12)
    return True
