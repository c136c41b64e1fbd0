"""Unmapping: pages taken out of page tables, and tables that serve nothing any more. The zap and free_pgtables part of Linux's
mm/memory.c; what is taken out is freed by mmu_gather.py.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import kernel
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, entry_exchange, entry_load
from numaemu.kernel.arch.pgalloc import (
    covers_huge,
    huge_entry_offset,
    hugetlb_walk,
    pgtable_trans_huge_withdraw,
    pmd_lock,
    pmd_unlock,
)
from numaemu.kernel.arch.pgtable import (
    _MIGRATION_ANON,
    _MIGRATION_FILE,
    _PAGE_SPECIAL,
    entry_offset,
    is_migration_entry,
    is_swap_entry,
    mm_of,
    next_pte,
    pmd_addr_end,
    pmd_shift,
    pmd_size,
    pte_offset,
    pte_pfn,
    pte_present,
    pte_to_swp_entry,
    ptep_cmpxchg,
    ptep_get,
    ptep_get_and_clear,
    ptep_step,
    skip_missing,
)
from numaemu.kernel.arch.tlb import dec_tlb_flush_pending, inc_tlb_flush_pending, mm_tlb_flush_nested
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    MM_SWAPENTS,
    PG_anon,
    PG_swapbacked,
)
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.fault.mmu_gather import (
    CLEARED_DIRTY,
    CLEARED_PMDS,
    CLEARED_PTES,
    CLEARED_PUDS,
    DELAY_RMAP,
    WHOLE,
    gather_of,
    mark_mapped_dirty,
    tlb_flush_mmu,
    tlb_remove,
)
from numaemu.kernel.mm.fault.rmap import folio_remove_rmap, rss_counter
from numaemu.kernel.mm.huge.huge_memory import take_huge_pmd
from numaemu.kernel.mm.huge.hugetlb_fault import hugetlb_zap
from numaemu.kernel.mm.huge.split import is_hugetlb_entry, split_huge_pmd
from numaemu.kernel.mm.reclaim.lru import folio_test
from numaemu.kernel.mm.reclaim.lru_batches import folio_mark_accessed
from numaemu.kernel.mm.space.vma_index import find_vma, vma_of
from numaemu.kernel.mm.swap.swapfile import free_swap_and_cache
from numaemu.spec.param import PAGE_SIZE

U = np.uint64


@kernel("i64(machine_t*, cpu_t*, mm_t*, u64)")
def zap_pte(machine, cpu, mm, pte):
    """A leaf entry has been taken out: account for it; the pfn whose reference is to be dropped, or 0.

    + DELAY_RMAP if the page lives on and was written to: until the flush it may be written to again.
    """
    if is_swap_entry(pte):
        fetch_add(mm.rss, MM_SWAPENTS, -1)
        free_swap_and_cache(cpu, pte_to_swp_entry(pte))
        return 0
    if is_migration_entry(pte):  # the page may be gone by now: the entry itself says of which kind it was
        other = MM_FILEPAGES if pte & _MIGRATION_FILE != U(0) else MM_SHMEMPAGES
        fetch_add(mm.rss, MM_ANONPAGES if pte & _MIGRATION_ANON != U(0) else other, -1)
        return 0
    if not pte_present(pte) or pte & _PAGE_SPECIAL != U(0):
        return 0
    pfn = pte_pfn(pte)
    fetch_add(mm.rss, rss_counter(page_of(machine, pfn)), -1)
    page = page_of(machine, pfn)
    if page.flags & U(PG_anon | PG_swapbacked) == U(0) and pte & _PAGE_ACCESSED != U(0):
        folio_mark_accessed(cpu, pfn)
    if pte & _PAGE_DIRTY != U(0) and page.flags & U(PG_anon) == U(0):
        mark_mapped_dirty(cpu, page, pfn)
        cpu.cleared |= CLEARED_DIRTY
        return pfn | DELAY_RMAP
    folio_remove_rmap(machine, cpu, pfn)
    return pfn


@kernel("bool(cpu_t*, i64, u64, u64, u64)")
def zap_huge_pud(cpu, mm_number, start, address, end):
    """The same for the entry of a gigantic page, which is never taken apart."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    shift = pmd_shift(machine) + machine.paging.table_bits
    size = U(1) << shift
    where = hugetlb_walk(machine, mm, address, shift) if machine.nr_hstates > 1 else U(0)
    if where == U(0) or address & (size - U(1)) != U(0) or end - address < size:
        return False
    pfn = hugetlb_zap(cpu, mm, vma_of(machine, find_vma(machine, mm_number, address)), address, where)
    cpu.cleared |= CLEARED_PUDS
    if pfn > 0 and tlb_remove(gather_of(machine, cpu), pfn):
        tlb_flush_mmu(cpu, mm_number, start, address + size)
    return pfn > 0


@kernel("bool(cpu_t*, i64, u64, u64, u64)")
def zap_huge_pmd(cpu, mm_number, start, address, end):
    """Take the huge entry of an address out if the range covers all of it, and gather its pages; else take it apart.

    True if the entry is gone. `start`: from where on what is gathered has not been flushed.
    """
    machine = machine_of(cpu)
    mm, gather = mm_of(machine, mm_number), gather_of(machine, cpu)
    where = huge_entry_offset(machine, mm, address)
    if where == U(0):
        return zap_huge_pud(cpu, mm_number, start, address, end)
    entry = entry_load(where)
    if is_hugetlb_entry(machine, entry):
        if not covers_huge(machine, address, end):
            return False
        pfn = hugetlb_zap(cpu, mm, vma_of(machine, find_vma(machine, mm_number, address)), address, where)
    elif covers_huge(machine, address, end):
        pmd_lock(cpu, where)
        pfn = take_huge_pmd(cpu, mm, where)
        table = pgtable_trans_huge_withdraw(machine, where) if pfn >= 0 else 0
        pmd_unlock(machine, where)
        cpu.cleared |= CLEARED_PMDS
        if pfn >= 0 and tlb_remove(gather, -table):
            tlb_flush_mmu(cpu, mm_number, start, address + pmd_size(machine))
        pfn += WHOLE if pfn > 0 else 0
    else:
        split_huge_pmd(cpu, where)
        return False
    cpu.cleared |= CLEARED_PMDS
    if pfn > 0 and tlb_remove(gather, pfn):
        tlb_flush_mmu(cpu, mm_number, start, address + pmd_size(machine))
    return pfn >= 0


@kernel("bool(cpu_t*, i64, u64, u64)")
def unmap_page_range(cpu, mm_number, start, end):
    """Take every page out of [start, end) and gather them; True if entries changed. Mirrors unmap_page_range."""
    machine = machine_of(cpu)
    mm, gather = mm_of(machine, mm_number), gather_of(machine, cpu)
    address, changed, step = start, False, ptep_step(machine)
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            if zap_huge_pmd(cpu, mm_number, start, address, end):
                changed = True
            address = skip_missing(machine, mm, address)
            continue
        table_end = pmd_addr_end(machine, address, end)
        while address < table_end:
            if ptep_get(ptep) != U(0):
                changed = True
                cpu.cleared |= CLEARED_PTES
                pfn = zap_pte(machine, cpu, mm, ptep_get_and_clear(ptep))
                if pfn != 0 and tlb_remove(gather, pfn):
                    tlb_flush_mmu(cpu, mm_number, start, address + U(PAGE_SIZE))
            address += U(PAGE_SIZE)
            ptep += step
    return changed


@kernel("bool(cpu_t*, i64, u64, u64)")
def unmap_shared_range(cpu, mm_number, start, end):
    """unmap_page_range for pages of a file or shared object only: a private VMA keeps its copies (even_cows is 0)."""
    machine = machine_of(cpu)
    mm, gather = mm_of(machine, mm_number), gather_of(machine, cpu)
    changed = False
    address, ptep = next_pte(machine, mm, start, end)
    while ptep != U(0):
        pte = ptep_get(ptep)
        if pte_present(pte):
            shared = pte & _PAGE_SPECIAL == U(0) and not folio_test(page_of(machine, pte_pfn(pte)), PG_anon)
        else:
            shared = is_migration_entry(pte) and pte & _MIGRATION_ANON == U(0)
        if shared:
            if not ptep_cmpxchg(ptep, pte, U(0)):
                continue
            changed = True
            cpu.cleared |= CLEARED_PTES
            pfn = zap_pte(machine, cpu, mm, pte)
            if pfn != 0 and tlb_remove(gather, pfn):
                tlb_flush_mmu(cpu, mm_number, start, address + U(PAGE_SIZE))
        address, ptep = next_pte(machine, mm, address + U(PAGE_SIZE), end)
    return changed


@kernel("void(cpu_t*, i64, u64, u64)")
def zap_page_range(cpu, mm_number, start, end):
    """Take pages out, flush, free: madvise(MADV_DONTNEED).

    Several CPUs may do so at once: who finds an entry gone flushes too, since who took it out may not have flushed
    yet (mm_tlb_flush_nested).
    """
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    gather_of(machine, cpu)[0] = 0
    inc_tlb_flush_pending(mm)
    if unmap_page_range(cpu, mm_number, start, end) or mm_tlb_flush_nested(mm):
        tlb_flush_mmu(cpu, mm_number, start, end)
    dec_tlb_flush_pending(mm)


@kernel("bool(cpu_t*, i64, u64, u64, u64, u64, u64)")
def free_tables_at(cpu, mm_number, shift, start, end, floor, ceiling):
    """Take out and gather the tables hanging in entries of 2**shift bytes each, for [start, end), that cover nothing
    outside [floor, ceiling); True if any. Tables below them must be gone already.
    """
    machine, span = machine_of(cpu), U(1) << shift
    mm, address, changed = mm_of(machine, mm_number), start & ~(span - U(1)), False
    while address < end:
        where = entry_offset(machine, mm, address, shift)
        if where == U(0):  # nothing below: on to where the missing table ends
            address = skip_missing(machine, mm, address)
            continue
        entry = entry_load(where)
        if entry != U(0) and floor <= address and address + span <= ceiling:
            entry_exchange(where, U(0))
            changed = True
            if tlb_remove(gather_of(machine, cpu), -pte_pfn(entry)):
                tlb_flush_mmu(cpu, mm_number, start, end)
        address += span
    return changed


@kernel("bool(cpu_t*, i64, u64, u64, u64, u64)")
def free_pgd_range(cpu, mm_number, start, end, floor, ceiling):
    """Gather the page tables that only served [start, end), from the leaves up; True if any."""
    changed, machine = False, machine_of(cpu)
    shift = pmd_shift(machine)
    while shift <= machine.paging.pgdir_shift:
        if free_tables_at(cpu, mm_number, shift, start, end, floor, ceiling):
            changed = True
        shift += machine.paging.table_bits
    return changed
