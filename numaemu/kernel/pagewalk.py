"""Walks over page tables from outside, for /proc/<pid>/numa_maps: Linux's mm/pagewalk.c and gather_stats.

No lock is taken. The coordinator reads /proc, and it may wait for no mmap_lock: the writer that holds one may itself
be waiting for the coordinator to pass on its shootdown. Nor would the lock be enough: an address space that ends is
torn down without it, and only a CPU could put back a reference that kept it alive. So the walk trusts nothing it
reads: it follows an upper entry only to a frame that exists and is marked as a page table, and counts a leaf only if
its frame exists and is neither free nor a table. What it finds of an address space that stands still is exact; of one
that is being changed it is a mixture of before and after, as numa_maps is on Linux between two of its batches.
"""
import numpy as np

from numaemu.atomic import load_acquire
from numaemu.compile import entry, hot, kernel
from numaemu.kernel.mm_types import PG_anon, PG_buddy, PG_pcp, PG_table, machine_t
from numaemu.kernel.mmzone import page_of, page_to_nid, page_zone, zone_of
from numaemu.kernel.pgtable import _PAGE_SPECIAL, mm_of, pte_pfn, pte_present, ptep_get, table_at
from numaemu.mmu import _PAGE_DIRTY
from numaemu.param import MAX_NODES
from numaemu.pointer import u64

U = np.uint64
PAGES, DIRTY, ANON, MAPCOUNT_MAX, FIRST_NODE = range(5)      # struct numa_maps; then the pages of each node
NR_COUNTS = FIRST_NODE + MAX_NODES


@kernel("bool(machine_t*, i64)")
def pfn_valid(machine, pfn):
    """True if there is memory at a frame number, which may be any number."""
    if pfn <= 0 or pfn >= machine.max_pfn:
        return False
    zone = zone_of(machine, page_zone(machine, pfn))
    return zone.start_pfn <= pfn and pfn < zone.start_pfn + zone.spanned_pages


@kernel("u64(machine_t*, u64)")
def table_of(machine, word):
    """Host address of the page table that an upper entry (or mm->pgd) points to; 0 if it points to none."""
    pfn = pte_pfn(word)
    if not pfn_valid(machine, pfn) or page_of(machine, pfn).flags & U(PG_table) == U(0):
        return U(0)
    return table_at(machine, word)


@hot
def gather_pte(machine, pte, counts):
    """Count what a leaf entry maps. Mirrors can_gather_numa_stats and gather_stats.

    An anonymous page counts as dirty whatever its entry says: nothing else holds its content, and as long as there
    is no swap Linux never cleans one (fork clears D in a child's entries here, but not there).
    """
    pfn = pte_pfn(pte)
    if not pte_present(pte) or pte & _PAGE_SPECIAL != U(0) or not pfn_valid(machine, pfn):
        return
    page = page_of(machine, pfn)
    flags = page.flags
    if flags & U(PG_buddy | PG_pcp | PG_table) != U(0):
        return
    anon = flags & U(PG_anon) != U(0)
    counts[PAGES] += 1
    if anon:
        counts[ANON] += 1
    if anon or pte & _PAGE_DIRTY != U(0):
        counts[DIRTY] += 1
    counts[MAPCOUNT_MAX] = max(counts[MAPCOUNT_MAX], np.int64(load_acquire(page, "mapcount")))
    counts[FIRST_NODE + page_to_nid(machine, pfn)] += 1


@entry("void(u64, i64, u64, u64, i64[])")
def gather_stats(machine_address, mm_number, start, end, counts):
    """Add the pages that [start, end) of an address space maps to `counts` (NR_COUNTS words)."""
    machine = machine_t.at(machine_address)
    address = start
    while address < end:
        table, shift = table_of(machine, mm_of(machine, mm_number).pgd), 39
        while shift > 12 and table != U(0):
            table = table_of(machine, load_acquire(u64.array(table), np.int64((address >> U(shift)) & U(511))))
            if table != U(0):
                shift -= 9
        if table == U(0):                        # nothing here: on to where the missing table would end
            address = ((address >> U(shift)) + U(1)) << U(shift)
            continue
        table_end = min(end, (address | U(0x1FFFFF)) + U(1))
        while address < table_end:
            gather_pte(machine, ptep_get(table + (((address >> U(12)) & U(511)) << U(3))), counts)
            address += U(4096)
