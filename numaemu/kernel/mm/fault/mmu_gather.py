"""What unmapping frees: Linux's mm/mmu_gather.c.

Between taking pages (and tables) out and freeing them lies the flush, so that no CPU still reaches them. Word 0 of the CPU's
gather array counts; then page numbers (all pages of a huge one: WHOLE more), tables as negative ones.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import i64
from numaemu.kernel.arch.pgtable import free_table, mm_of, pmd_shift
from numaemu.kernel.arch.tlb import flush_tlb_mm_stride
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import PG_dirty, PG_swapbacked
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.cache.page_writeback import folio_mark_dirty
from numaemu.kernel.mm.fault.rmap import folio_remove_rmap
from numaemu.kernel.mm.huge.huge_memory import release_huge_pages
from numaemu.kernel.mm.page_alloc.page_alloc import release_pages
from numaemu.kernel.mm.reclaim.lru import folio_set, folio_test
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain
from numaemu.kernel.mm.swap.swapfile import free_swap_cache
from numaemu.spec.param import GATHER_PAGES

U = np.uint64
WHOLE = 1 << 50
DELAY_RMAP = 1 << 49  # beside a page's number: it counts as mapped until after the flush
# cpu.cleared: small entries, huge ones, gigantic ones; dirty ones of files and shared objects
CLEARED_PTES, CLEARED_PMDS, CLEARED_PUDS, CLEARED_DIRTY = 1, 2, 4, 8
RELEASE_BATCH = 64  # pages freed under one look at the LRU lists


@hot
def gather_of(machine, cpu):
    """Pages and tables this CPU has taken out and not yet freed."""
    return i64.array(machine.gather + U(cpu.id * GATHER_PAGES * 8))


@hot
def tlb_remove(gather, entry):
    """Remember one; True when the array is full and must be flushed."""
    gather[0] += 1
    gather[gather[0]] = entry
    return gather[0] == GATHER_PAGES - 1


@hot
def mark_mapped_dirty(cpu, page, pfn):
    """A page of a file or shared object, which counts as mapped, was dirty in an entry."""
    if page.flags & U(PG_swapbacked) == U(0):
        folio_mark_dirty(cpu, pfn)
    elif not folio_test(page, PG_dirty):
        folio_set(page, PG_dirty)  # it is swapped out with this


@hot
def tlb_flush_rmap(cpu, pfn):
    """Such an entry has been taken out and all CPUs have forgotten it. Until now its page could be written to through a TLB,
    by whoever still had it, after somebody had copied it to the disk: so it is dirty, and not mapped any more only now.
    """
    machine = machine_of(cpu)
    mark_mapped_dirty(cpu, page_of(machine, pfn), pfn)
    folio_remove_rmap(machine, cpu, pfn)


@kernel("void(cpu_t*, i64, u64, u64)")
def tlb_flush_mmu(cpu, mm_number, start, end):
    """Every CPU forgets [start, end), then what was gathered is freed."""
    machine = machine_of(cpu)
    mm, gather = mm_of(machine, mm_number), gather_of(machine, cpu)
    shift = pmd_shift(machine) if cpu.cleared == CLEARED_PMDS else U(12)
    if cpu.cleared == CLEARED_PUDS:
        shift += machine.paging.table_bits
    flush_tlb_mm_stride(cpu, mm_number, start, end, shift)
    cpu.cleared = 0
    lru_add_drain(cpu)
    first, end_of_all = 1, gather[0] + 1
    while first < end_of_all:
        i = first
        while i < end_of_all and i < first + RELEASE_BATCH and 0 < gather[i] < WHOLE:
            i += 1
        for page in range(first, i):
            if gather[page] & DELAY_RMAP:
                gather[page] &= ~DELAY_RMAP
                tlb_flush_rmap(cpu, gather[page])
            free_swap_cache(cpu, gather[page])
        release_pages(cpu, gather, first, i)
        if i < end_of_all and gather[i] >= WHOLE:
            release_huge_pages(cpu, gather[i] - WHOLE)
            i += 1
        elif i < end_of_all and gather[i] < 0:
            free_table(cpu, mm, -gather[i])
            i += 1
        first = i
    gather[0] = 0
