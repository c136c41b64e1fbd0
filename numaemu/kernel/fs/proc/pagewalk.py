"""Walks over page tables from outside, for /proc/<pid>/numa_maps: Linux's mm/pagewalk.c and gather_stats.

No lock is taken. The coordinator reads /proc, and it may wait for no mmap_lock: the writer that holds one may itself
be waiting for the coordinator to pass on its shootdown. Nor would the lock be enough: an address space that ends is
torn down without it, and only a CPU could put back a reference that kept it alive. So the walk trusts nothing it
reads: it follows an upper entry only to a frame that exists and is marked as a page table, and counts a leaf only if
its frame exists and is neither free nor a table. What it finds of an address space that stands still is exact; of one
that is being changed it is a mixture of before and after, as numa_maps is on Linux between two of its batches.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import u64
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_PSE, PAGE_MASK, PTE_SHIFT, entry_at, entry_load
from numaemu.kernel.arch.pgalloc import pmd_trans_huge
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    is_swap_entry,
    mm_of,
    pmd_size,
    pte_pfn,
    pte_present,
    pte_to_swp_entry,
    table_at,
)
from numaemu.kernel.core.xarray import xa_is_value
from numaemu.kernel.include.mm_types import (
    PG_active,
    PG_anon,
    PG_buddy,
    PG_dirty,
    PG_hugetlb,
    PG_pcp,
    PG_referenced,
    PG_swapbacked,
    PG_swapcache,
    PG_table,
    PG_tail,
    PG_unevictable,
    PG_writeback,
    PG_young,
    machine_t,
    mapping_t,
)
from numaemu.kernel.include.mmzone import page_of, page_to_nid, page_zone, zone_of
from numaemu.kernel.mm.page_alloc.page_alloc import compound_head
from numaemu.kernel.mm.swap.swapfile import MAX_SWAP_ENTRIES, swap_count
from numaemu.spec.param import MAX_NODES, PAGE_SIZE

U = np.uint64
# struct numa_maps; then the pages of each node
PAGES, DIRTY, ANON, MAPCOUNT_MAX, ACTIVE, SWAPCACHE, WRITEBACK, FIRST_NODE = range(8)
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


# what /proc/<pid>/smaps counts of a range: bytes, of which the shares (PSS) are 4096 / mapcount per page
# fmt: off
(RSS, PSS, PSS_DIRTY, PSS_ANON, PSS_FILE, PSS_SHMEM, SHARED_CLEAN, SHARED_DIRTY, PRIVATE_CLEAN, PRIVATE_DIRTY,
 REFERENCED, ANONYMOUS, LAZYFREE, SWAP, SWAP_PSS, ANON_THP, SHARED_HUGETLB, PRIVATE_HUGETLB, NR_SMAPS) = range(19)
# fmt: on
PSS_SHIFT = 12

# a word of /proc/<pid>/pagemap
PM_SOFT_DIRTY, PM_MMAP_EXCLUSIVE, PM_FILE, PM_SWAP, PM_PRESENT = (U(1 << bit) for bit in (55, 56, 61, 62, 63))


@hot
def mapped_page(machine, pte):
    """The frame that a leaf entry maps and that counts as the task's, or 0."""
    pfn = pte_pfn(pte)
    if (
        not pte_present(pte)
        or pte & _PAGE_SPECIAL != U(0)
        or not pfn_valid(machine, pfn)
        or page_of(machine, pfn).flags & U(PG_buddy | PG_pcp | PG_table) != U(0)
    ):
        return 0
    return pfn


@hot
def is_dirty(flags, pte):
    """An anonymous page counts as dirty whatever its entry says, unless it may be dropped (MADV_FREE) or swap has it, too.

    Nothing else holds its content, and Linux never cleans one (fork clears D in a child's entries here, but not there).
    """
    return (
        pte & _PAGE_DIRTY != U(0)
        or flags & U(PG_dirty) != U(0)
        or flags & U(PG_anon | PG_swapbacked | PG_swapcache) == U(PG_anon | PG_swapbacked)
    )


@hot
def gather_pte(machine, pte, counts):
    """Count what a leaf entry maps, for numa_maps. Mirrors can_gather_numa_stats and gather_stats."""
    pfn = mapped_page(machine, pte)
    if pfn == 0:
        return
    page = page_of(machine, pfn)
    if page.flags & U(PG_tail) != U(0):  # of a huge page from the pool, which counts once
        return
    counts[PAGES] += 1
    if page.flags & U(PG_anon) != U(0):
        counts[ANON] += 1
    if is_dirty(page.flags, pte):
        counts[DIRTY] += 1
    if page.flags & U(PG_active | PG_unevictable) != U(0):
        counts[ACTIVE] += 1
    if page.flags & U(PG_swapcache) != U(0):
        counts[SWAPCACHE] += 1
    if page.flags & U(PG_writeback) != U(0):
        counts[WRITEBACK] += 1
    counts[MAPCOUNT_MAX] = max(counts[MAPCOUNT_MAX], np.int64(load_acquire(page, "mapcount")))
    counts[FIRST_NODE + page_to_nid(machine, pfn)] += 1


@kernel("i64(machine_t*, i64)")
def swappers(machine, entry):
    """Page-table entries that name a swap entry, which may be any number; at least 1. Mirrors swp_swapcount."""
    return max(np.int64(swap_count(machine, entry)), 1) if 0 < entry < MAX_SWAP_ENTRIES else 1


@hot
def smaps_hugetlb(flags, sharers, nbytes, counts):
    """A huge page from the pool counts apart, by its head. Mirrors smaps_hugetlb_range."""
    if flags & U(PG_hugetlb) != U(0):
        counts[SHARED_HUGETLB if sharers > 1 else PRIVATE_HUGETLB] += nbytes


@hot
def smaps_pte(machine, pte, counts):
    """Count what a leaf entry maps, for smaps. Mirrors smaps_pte_entry and smaps_account."""
    if is_swap_entry(pte):
        counts[SWAP] += PAGE_SIZE
        counts[SWAP_PSS] += (PAGE_SIZE << PSS_SHIFT) // swappers(machine, pte_to_swp_entry(pte))
        return
    pfn = mapped_page(machine, pte)
    if pfn == 0:
        return
    page = page_of(machine, pfn)
    flags, sharers = page.flags, max(np.int64(load_acquire(page, "mapcount")), 1)
    if flags & U(PG_hugetlb | PG_tail) != U(0):
        smaps_hugetlb(flags, sharers, PAGE_SIZE << np.int64(page.order), counts)
        return
    anon, dirty, share = flags & U(PG_anon) != U(0), is_dirty(flags, pte), (PAGE_SIZE << PSS_SHIFT) // sharers
    counts[RSS] += PAGE_SIZE
    counts[PSS] += share
    counts[PSS_ANON if anon else PSS_SHMEM if flags & U(PG_swapbacked) != U(0) else PSS_FILE] += share
    if dirty:
        counts[PSS_DIRTY] += share
        counts[PRIVATE_DIRTY if sharers == 1 else SHARED_DIRTY] += PAGE_SIZE
    else:
        counts[PRIVATE_CLEAN if sharers == 1 else SHARED_CLEAN] += PAGE_SIZE
    if pte & _PAGE_ACCESSED != U(0) or flags & U(PG_referenced | PG_young) != U(0):
        counts[REFERENCED] += PAGE_SIZE
    if anon:
        counts[ANONYMOUS] += PAGE_SIZE
        if pte & _PAGE_PSE != U(0):
            counts[ANON_THP] += PAGE_SIZE
        if not dirty and flags & U(PG_swapbacked) == U(0):
            counts[LAZYFREE] += PAGE_SIZE


@hot
def pagemap_word(machine, pte):
    """What pagemap says of a leaf entry. Mirrors pte_to_pagemap_entry; the page of zeros is nobody's, so has no flags."""
    if pte == U(0):
        return U(0)
    if not pte_present(pte):
        return PM_SWAP
    word, pfn = PM_PRESENT | U(pte_pfn(pte)), mapped_page(machine, pte)
    if pfn != 0:
        page = page_of(machine, compound_head(machine, pfn))
        if page.flags & U(PG_anon) == U(0):
            word |= PM_FILE
        if load_acquire(page, "mapcount") == 1:
            word |= PM_MMAP_EXCLUSIVE
    return word


@kernel("u64(machine_t*, i64, u64)")
def missing_shift(machine, mm_number, address):
    """12 if an address has a leaf table or a huge entry; else the shift of the upper entry that has none below it."""
    table, shift = table_of(machine, mm_of(machine, mm_number).pgd), machine.paging.pgdir_shift
    while shift > PTE_SHIFT and table != U(0):
        entry = entry_load(entry_at(machine.paging, table, address, shift))
        if pmd_trans_huge(entry):
            return PTE_SHIFT
        table = table_of(machine, entry)
        if table != U(0):
            shift -= machine.paging.table_bits
    return shift


@kernel("u64(machine_t*, i64, u64)")
def leaf_entry(machine, mm_number, address):
    """The leaf entry of an address, made of a huge one where one maps it; 0 if there is no table for it (any more)."""
    table, shift = table_of(machine, mm_of(machine, mm_number).pgd), machine.paging.pgdir_shift
    while table != U(0) and shift > PTE_SHIFT:
        entry = entry_load(entry_at(machine.paging, table, address, shift))
        if pmd_trans_huge(entry):
            return entry | (address & ((U(1) << shift) - U(1)) & PAGE_MASK)
        table = table_of(machine, entry)
        shift -= machine.paging.table_bits
    return entry_load(entry_at(machine.paging, table, address, shift)) if table != U(0) else U(0)


@hot
def next_present(machine, mm_number, address):
    """The next address from this one on that has a leaf table."""
    shift = missing_shift(machine, mm_number, address)
    return address if shift == PTE_SHIFT else ((address >> shift) + U(1)) << shift


@entry("void(u64, i64, u64, u64, i64[], bool)")
def walk_page_range(machine_address, mm_number, start, end, counts, smaps):
    """Add the pages that [start, end) of an address space maps to `counts`: NR_SMAPS words for smaps, else NR_COUNTS."""
    machine = machine_t.at(machine_address)
    address = start
    while address < end:
        if address & (pmd_size(machine) - U(1)) == U(0) or address == start:
            there = next_present(machine, mm_number, address)
            if there != address:
                address = there
                continue
        pte = leaf_entry(machine, mm_number, address)
        if smaps:
            smaps_pte(machine, pte, counts)
        else:
            gather_pte(machine, pte, counts)
        address += U(PAGE_SIZE)


@kernel("u64(machine_t*, i64, i64)")
def object_entry(machine, mapping_number, index):
    """What stands in an object's tree, which may be freed meanwhile: as xa_load, but each table is looked at before."""
    entry = load_acquire(mapping_t.array(machine.mappings)[mapping_number], "root")
    for shift in (27, 18, 9, 0):
        if entry == U(0) or not pfn_valid(machine, pte_pfn(entry)):
            return U(0)
        entry = load_acquire(u64.array(table_at(machine, entry)), (index >> shift) & 511)
    return entry


@entry("i64(u64, i64, i64, i64)")
def shmem_swap_usage(machine_address, mapping_number, first, pages):
    """Bytes of a shared object that are swapped out, of `pages` pages from `first` on."""
    machine, swapped = machine_t.at(machine_address), 0
    for index in range(first, first + pages):
        if xa_is_value(object_entry(machine, mapping_number, index)):
            swapped += PAGE_SIZE
    return swapped


@entry("i64(u64, i64, i64, i64, u64, i64)")
def shmem_swap_holes(machine_address, mm_number, mapping_number, first, start, pages):
    """The same of the addresses from `start` on, as far as nothing is mapped there."""
    machine, swapped = machine_t.at(machine_address), 0
    for i in range(pages):
        if leaf_entry(machine, mm_number, start + U(i * PAGE_SIZE)) == U(0) and xa_is_value(
            object_entry(machine, mapping_number, first + i)
        ):
            swapped += PAGE_SIZE
    return swapped


@entry("void(u64, i64, u64, u64[])")
def pagemap_read(machine_address, mm_number, start, words):
    """The words of /proc/<pid>/pagemap for the pages from `start` on, without the bits that only the VMA knows."""
    machine = machine_t.at(machine_address)
    for i in range(len(words)):
        words[i] = pagemap_word(machine, leaf_entry(machine, mm_number, start + U(i * PAGE_SIZE)))
