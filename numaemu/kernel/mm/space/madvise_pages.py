"""Advice about pages that are in memory: MADV_FREE, MADV_COLD and MADV_PAGEOUT of Linux's mm/madvise.c."""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, entry_cmpxchg, entry_load
from numaemu.kernel.arch.pgalloc import covers_huge, haddr_of, huge_entry_offset, pmd_lock, pmd_trans_huge, pmd_unlock
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    is_swap_entry,
    mm_of,
    pmd_size,
    pte_offset,
    pte_pfn,
    pte_present,
    pte_to_swp_entry,
    ptep_cmpxchg,
    ptep_get,
    skip_missing,
)
from numaemu.kernel.arch.tlb import (
    dec_tlb_flush_pending,
    flush_tlb_mm_range,
    inc_tlb_flush_pending,
    mm_tlb_flush_nested,
)
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.fs.bio import blk_wait
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.include.mm_types import MM_SWAPENTS, PG_anon, PG_dirty, PG_referenced, PG_swapcache
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages
from numaemu.kernel.mm.huge.split import flush_huge_pages, is_huge_zero, split_huge_pmd
from numaemu.kernel.mm.page_alloc.page_alloc import put_page, try_get_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_test, folio_trylock, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import (
    folio_deactivate,
    folio_isolate_lru,
    folio_mark_lazyfree,
    lru_add_drain,
)
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.reclaim.vmscan import init_scan_control, reclaim_pages
from numaemu.kernel.mm.reclaim.workingset import SWAP_CLUSTER_MAX
from numaemu.kernel.mm.swap.swapfile import folio_free_swap, free_swap_and_cache
from numaemu.spec.param import PAGE_SIZE
from numaemu.uapi import MADV_FREE, MADV_PAGEOUT

U = np.uint64


@hot
def give_up_contents(cpu, pfn):
    """Take slot and dirty mark from a page; False: it is locked, or somebody else's entry still names the slot."""
    page = page_of(machine_of(cpu), pfn)
    if not folio_test(page, PG_swapcache | PG_dirty):
        return True
    if not folio_trylock(page):
        return False
    free = load_acquire(page, "mapcount") == 1 and (not folio_test(page, PG_swapcache) or folio_free_swap(cpu, pfn))
    if free:
        folio_clear(page, PG_dirty)
    folio_unlock(page)
    return free


@hot
def lazy_free(machine, cpu, ptep, pte):
    """Let reclaim drop a page unless it is written again (PG_swapbacked off, entry clean); True if the entry changed.

    Only a page that nobody else maps: for the others it would be more than advice. Mirrors madvise_free_pte_range.
    """
    pfn = pte_pfn(pte)
    page = page_of(machine, pfn)
    if not folio_test(page, PG_anon) or not try_get_page(page):
        return False
    changed = False
    if ptep_get(ptep) == pte and load_acquire(page, "mapcount") == 1:
        if not give_up_contents(cpu, pfn):
            put_page(cpu, pfn)
            return False
        clean = pte & ~(_PAGE_DIRTY | _PAGE_ACCESSED)
        if clean == pte or ptep_cmpxchg(ptep, pte, clean):
            changed = clean != pte
            folio_mark_lazyfree(cpu, pfn)
    put_page(cpu, pfn)
    return changed


@hot
def free_swapped(cpu, mm, ptep, pte):
    """What lies in swap is given up at once: its slot is free, and the page is zeros when it is used again."""
    if ptep_cmpxchg(ptep, pte, U(0)):
        fetch_add(mm.rss, MM_SWAPENTS, -1)
        free_swap_and_cache(cpu, pte_to_swp_entry(pte))


@hot
def make_cold(machine, cpu, ptep, pte):
    """A page that was not used lately, as far as its entry tells, and no active one; True if the entry changed."""
    page = page_of(machine, pte_pfn(pte))
    if load_acquire(page, "mapcount") != 1 or not try_get_page(page):
        return False
    changed = False
    if ptep_get(ptep) == pte:
        changed = pte & _PAGE_ACCESSED != U(0) and ptep_cmpxchg(ptep, pte, pte & ~_PAGE_ACCESSED)
        folio_clear(page, PG_referenced)
        folio_deactivate(cpu, pte_pfn(pte))
    put_page(cpu, pte_pfn(pte))
    return changed


@hot
def isolate_for_pageout(machine, cpu, sc, ptep, pte):
    """Take a page that only this entry maps off its list into the batch; True if it is there."""
    pfn = pte_pfn(pte)
    page = page_of(machine, pfn)
    if load_acquire(page, "mapcount") != 1 or not try_get_page(page):
        return False
    taken = ptep_get(ptep) == pte and folio_isolate_lru(cpu, pfn)
    put_page(cpu, pfn)
    if taken:
        sc.pfn[sc.nr_taken] = pfn
        sc.nr_taken += 1
    return taken


@kernel("void(cpu_t*, i64, u64, u64, bool)")
def madvise_whole_huge(cpu, mm_number, address, where, free):
    """MADV_FREE (`free`) or MADV_COLD for all of a huge page that nobody else maps: it stays one (madvise_free_huge_pmd).

    Under the table's lock reclaim cannot take the entry apart, so its pages stay mapped.
    """
    machine, bits = machine_of(cpu), _PAGE_ACCESSED | (_PAGE_DIRTY if free else U(0))
    pmd_lock(cpu, where)
    entry, changed = entry_load(where), False
    for i in range(hpage_pages(machine) if pmd_trans_huge(entry) else 0):
        pfn = pte_pfn(entry) + i
        if not free:
            folio_clear(page_of(machine, pfn), PG_referenced)
            folio_deactivate(cpu, pfn)
        elif give_up_contents(cpu, pfn):
            folio_mark_lazyfree(cpu, pfn)
    while pmd_trans_huge(entry) and entry & bits != U(0):
        before = entry_cmpxchg(where, entry, entry & ~bits)
        changed = changed or before == entry
        entry = entry & ~bits if before == entry else before
    pmd_unlock(machine, where)
    if changed:
        flush_huge_pages(cpu, mm_number, address, address + pmd_size(machine))


@kernel("u64(cpu_t*, i64, u64, u64, i64)")
def madvise_huge_pmd(cpu, mm_number, address, end, advice):
    """No table has the entry of `address`: there is nothing, or a huge page. Where to go on.

    One that others map too is left alone. Of one that is to be written out, or of which only a part is meant, every page is
    looked at for itself. Mirrors the beginning of madvise_cold_or_pageout_pte_range and madvise_free_pte_range.
    """
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    where, following = huge_entry_offset(machine, mm, address), skip_missing(machine, mm, address)
    if where == U(0):
        return following
    entry = entry_load(where)
    if not pmd_trans_huge(entry):
        return address  # reclaim has just taken it apart
    if is_huge_zero(entry) or load_acquire(page_of(machine, pte_pfn(entry)), "mapcount") != 1:
        return following
    if advice != MADV_PAGEOUT and covers_huge(machine, address, end):
        madvise_whole_huge(cpu, mm_number, address, where, advice == MADV_FREE)
        return following
    if split_huge_pmd(cpu, where):
        flush_huge_pages(cpu, mm_number, haddr_of(machine, address), haddr_of(machine, address) + pmd_size(machine))
    return address


@kernel("void(cpu_t*, i64, u64, u64)")
def madvise_pageout(cpu, mm_number, start, end):
    """MADV_PAGEOUT: reclaim the pages of a range, in batches of one node each. Linux's call returns while the disk works on the
    last of them; here reclaim's own work takes no emulated time, and the disk's, for which it waits at the end, stands for both.
    """
    machine = machine_of(cpu)
    mm, sc, address, node = mm_of(machine, mm_number), scan_control_of(cpu), start, -1
    lru_add_drain(cpu)
    init_scan_control(machine, sc, GFP_KERNEL, 0, machine.node_mask)
    sc.nr_taken = 0
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            address = madvise_huge_pmd(cpu, mm_number, address, end, MADV_PAGEOUT)
            continue
        pte = ptep_get(ptep)
        if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
            if sc.nr_taken == SWAP_CLUSTER_MAX or (sc.nr_taken > 0 and page_to_nid(machine, pte_pfn(pte)) != node):
                reclaim_pages(cpu, sc, node)
            if isolate_for_pageout(machine, cpu, sc, ptep, pte):
                node = page_to_nid(machine, pte_pfn(pte))
        address += U(PAGE_SIZE)
    if sc.nr_taken > 0:
        reclaim_pages(cpu, sc, node)
    blk_wait(cpu)
    lru_add_drain(cpu)


@kernel("void(cpu_t*, i64, u64, u64, i64)")
def madvise_pages(cpu, mm_number, start, end, advice):
    """MADV_FREE or MADV_COLD for the pages of a range."""
    machine, free = machine_of(cpu), advice == MADV_FREE
    mm, address, changed = mm_of(machine, mm_number), start, False
    lru_add_drain(cpu)  # only pages on a list can be moved
    inc_tlb_flush_pending(mm)
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            address = madvise_huge_pmd(cpu, mm_number, address, end, advice)
            continue
        pte = ptep_get(ptep)
        if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
            if lazy_free(machine, cpu, ptep, pte) if free else make_cold(machine, cpu, ptep, pte):
                changed = True
        elif free and is_swap_entry(pte):
            free_swapped(cpu, mm, ptep, pte)
        address += U(PAGE_SIZE)
    if changed or mm_tlb_flush_nested(mm):
        flush_tlb_mm_range(cpu, mm_number, start, end)
    dec_tlb_flush_pending(mm)
    lru_add_drain(cpu)
