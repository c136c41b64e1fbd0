"""/proc/<pid>/clear_refs: which pages are used from now on is seen anew. The clear_refs_write part of Linux's
fs/proc/task_mmu.c.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.paging import _PAGE_ACCESSED, entry_cmpxchg, entry_load
from numaemu.kernel.arch.pgalloc import huge_entry_offset, pmd_trans_huge
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    mm_of,
    pmd_size,
    pte_offset,
    pte_pfn,
    pte_present,
    ptep_cmpxchg,
    ptep_get,
    skip_missing,
)
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock
from numaemu.kernel.include.mm_types import VM_HUGETLB, PG_referenced, PG_young
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.huge.split import is_huge_zero
from numaemu.kernel.mm.reclaim.lru import folio_clear
from numaemu.kernel.mm.space.mmap import get_mm_rss
from numaemu.kernel.mm.space.vma_index import map_count, vma_at
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
# what is written to the file; soft-dirty bits (4) are not emulated
CLEAR_REFS_ALL, CLEAR_REFS_ANON, CLEAR_REFS_MAPPED, CLEAR_REFS_SOFT_DIRTY, CLEAR_REFS_MM_HIWATER_RSS = 1, 2, 3, 4, 5


@hot
def clear_refs_pte(machine, ptep):
    """A leaf entry and its page were not used lately. No flush, as on x86: what a TLB holds is not seen until it walks again."""
    pte = ptep_get(ptep)
    while pte_present(pte) and not ptep_cmpxchg(ptep, pte, pte & ~_PAGE_ACCESSED):
        pte = ptep_get(ptep)
    if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
        folio_clear(page_of(machine, pte_pfn(pte)), PG_referenced | PG_young)


@hot
def clear_refs_huge(machine, where):
    """The same for the entry of a huge page."""
    entry = entry_load(where)
    while pmd_trans_huge(entry):
        before = entry_cmpxchg(where, entry, entry & ~_PAGE_ACCESSED)
        if before == entry:
            break
        entry = before
    if pmd_trans_huge(entry) and not is_huge_zero(entry):
        for i in range(pmd_size(machine) >> U(PAGE_SHIFT)):
            folio_clear(page_of(machine, pte_pfn(entry) + np.int64(i)), PG_referenced | PG_young)


@kernel("void(cpu_t*, mm_t*, u64, u64)")
def clear_refs_range(cpu, mm, start, end):
    """Every page of [start, end). Mirrors clear_refs_pte_range."""
    machine, address = machine_of(cpu), start
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep != U(0):
            clear_refs_pte(machine, ptep)
            address += U(PAGE_SIZE)
            continue
        where = huge_entry_offset(machine, mm, address)
        if where != U(0):
            clear_refs_huge(machine, where)
        address = skip_missing(machine, mm, address)


@kernel("void(cpu_t*, i64, i64)")
def clear_refs_write(cpu, mm_number, kind):
    """What CLEAR_REFS_* asks for, of an address space that the caller holds."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    if kind == CLEAR_REFS_MM_HIWATER_RSS:
        mm.hiwater_rss = get_mm_rss(mm)
        return
    lock = address_of(mm, "mmap_lock")
    read_lock(cpu, lock)
    for position in range(map_count(machine, mm_number)):
        vma = vma_at(machine, mm_number, position)
        wanted = kind == CLEAR_REFS_ALL or (vma.file == 0) == (kind == CLEAR_REFS_ANON)
        if wanted and vma.flags & VM_HUGETLB == 0:
            clear_refs_range(cpu, mm, vma.start, vma.end)
    read_unlock(lock)
