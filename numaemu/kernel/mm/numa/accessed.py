"""The Accessed bits of a range of pages in one go, for who samples them: a sensor, as damon_young and damon_mkold of Linux's
mm/damon/vaddr.c are. Nothing is charged.

A bit that is cleared is set again by the next walk of the tables, so every CPU forgets the range: Linux's sensors spare that, and
miss what a TLB still holds.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import _PAGE_ACCESSED, entry_cmpxchg, entry_load
from numaemu.kernel.arch.pgalloc import huge_entry_offset, pmd_trans_huge
from numaemu.kernel.arch.pgtable import (
    mm_of,
    pmd_addr_end,
    pte_offset,
    pte_present,
    ptep_cmpxchg,
    ptep_get,
    ptep_step,
    skip_missing,
)
from numaemu.kernel.arch.tlb import flush_tlb_mm_range
from numaemu.kernel.core.smp import machine_of
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64


@hot
def young_pte(ptep, clear):
    """Whether a leaf entry is present and used; it is not any more if it is cleared."""
    pte = ptep_get(ptep)
    if not pte_present(pte) or pte & _PAGE_ACCESSED == U(0):
        return False
    while clear and pte_present(pte) and not ptep_cmpxchg(ptep, pte, pte & ~_PAGE_ACCESSED):
        pte = ptep_get(ptep)
    return True


@hot
def young_huge(where, clear):
    """The same of a huge entry."""
    entry = entry_load(where)
    if not pmd_trans_huge(entry) or entry & _PAGE_ACCESSED == U(0):
        return False
    while clear and pmd_trans_huge(entry):
        before = entry_cmpxchg(where, entry, entry & ~_PAGE_ACCESSED)
        if before == entry:
            break
        entry = before
    return True


@kernel("i64(cpu_t*, i64, u64, i64, u8*, bool)")
def harvest_accessed(cpu, mm_number, start, pages, used, clear):
    """A byte for each of the pages from `start` on, which are 0 so far: 1 if it was used. How many were. Under the mmap_lock."""
    machine = machine_of(cpu)
    mm, address, found = mm_of(machine, mm_number), start, 0
    end, step = start + U(pages * PAGE_SIZE), ptep_step(machine)
    while address < end:
        ptep = pte_offset(machine, mm, address)
        until = pmd_addr_end(machine, address, end)
        i, last = np.int64((address - start) >> U(PAGE_SHIFT)), np.int64((until - start) >> U(PAGE_SHIFT))
        if ptep != U(0):
            while i < last:
                if young_pte(ptep, clear):
                    used[i] = np.uint8(1)
                    found += 1
                i, ptep = i + 1, ptep + step
            address = until
            continue
        where = huge_entry_offset(machine, mm, address)
        if where == U(0):
            address = skip_missing(machine, mm, address)
            continue
        if young_huge(where, clear):
            found += last - i
            while i < last:
                used[i] = np.uint8(1)
                i += 1
        address = until
    if clear and found > 0:
        flush_tlb_mm_range(cpu, mm_number, start, end)
    return found
