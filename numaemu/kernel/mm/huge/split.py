"""Taking a huge mapping of anonymous memory apart: __split_huge_pmd of Linux's mm/huge_memory.c.

A transparent huge page here is 512 pages (on 32 bits 1024) in one piece, each with its own refcount, mapcount and place on
the LRU list; what is huge is the entry that maps them. Such an entry counts in the mapcount of every one of its pages, as 512
entries would, so it is taken apart by writing a table of 512 entries (the one laid by) and nothing else: no page changes, no
memory is needed, and another address space goes on with its huge entry. Linux has one reference and one mapcount for the
whole folio, and splits that too (thp_split_page) before it can take a single page; here that is nothing to be done.

`order` of the first page counts the huge entries that map it (Linux: entire_mapcount).
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import _PAGE_PSE, _PAGE_TABLE, PTE_PFN_MASK, PTE_SHIFT, entry_at, entry_cmpxchg, entry_load
from numaemu.kernel.arch.pgalloc import (
    haddr_of,
    huge_entry_offset,
    pgtable_trans_huge_withdraw,
    pmd_lock,
    pmd_trans_huge,
    pmd_unlock,
)
from numaemu.kernel.arch.pgtable import _PAGE_SPECIAL, mm_of, pfn_pte, pmd_shift, pte_pfn, set_pte
from numaemu.kernel.arch.tlb import flush_tlb_mm_stride
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import PG_anon, PG_head, PG_hugetlb
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NR_ANON_THPS, THP_SPLIT_PMD, count_vm_events, mod_node_page_state
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64


@hot
def flush_huge_pages(cpu, mm_number, start, end):
    """Every CPU forgets [start, end), where only huge entries have changed: one translation for each huge page."""
    flush_tlb_mm_stride(cpu, mm_number, start, end, pmd_shift(machine_of(cpu)))


@hot
def add_huge_mapping(machine, cpu, pfn):
    """One more huge entry maps a huge page."""
    if fetch_add(page_of(machine, pfn), "order", 1) == 0:
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_ANON_THPS, 1)


@hot
def remove_huge_mapping(machine, cpu, pfn):
    """A huge entry is gone, or has been taken apart."""
    if fetch_add(page_of(machine, pfn), "order", -1) == 1:
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_ANON_THPS, -1)


@hot
def is_huge_mapped(machine, pfn):
    """True if a huge entry maps the page (a hint, without a lock)."""
    head = page_of(machine, pfn - pfn % hpage_pages(machine))
    return head.order > 0 and head.flags & U(PG_anon | PG_head) == U(PG_anon)


@hot
def is_huge_zero(entry):
    return entry & _PAGE_SPECIAL != U(0)


@hot
def is_hugetlb_entry(machine, entry):
    """True if a huge entry maps a page of the pool."""
    return not is_huge_zero(entry) and page_of(machine, pte_pfn(entry)).flags & U(PG_hugetlb) != U(0)


@kernel("void(machine_t*, u64, i64)")
def fill_split_table(machine, entry, table_pfn):
    """A table of the entries that together say what a huge entry says; the huge page of zeros becomes small ones."""
    bits, pfn, table = entry & ~(_PAGE_PSE | PTE_PFN_MASK), pte_pfn(entry), frame_of(machine, table_pfn)
    for i in range(hpage_pages(machine)):
        target = machine.zero_pfn if is_huge_zero(entry) else pfn + i
        set_pte(entry_at(machine.paging, table, U(i) << PTE_SHIFT, PTE_SHIFT), pfn_pte(target, bits))


@kernel("bool(cpu_t*, u64)")
def split_huge_pmd(cpu, where):
    """Put a table in the place of the huge entry at a host address; False: it is none, or of the pool.

    No TLB is flushed: the old translation says the same, and whoever changes one of the new entries flushes its address,
    which forgets what translates it in any size.
    """
    machine = machine_of(cpu)
    pmd_lock(cpu, where)
    entry = entry_load(where)
    if not pmd_trans_huge(entry) or is_hugetlb_entry(machine, entry):
        pmd_unlock(machine, where)
        return False
    table = pgtable_trans_huge_withdraw(machine, where)
    while True:
        fill_split_table(machine, entry, table)
        before = entry_cmpxchg(where, entry, pfn_pte(table, _PAGE_TABLE))
        if before == entry:
            break
        entry = before  # a walker has set A or D
    if not is_huge_zero(entry):
        remove_huge_mapping(machine, cpu, pte_pfn(entry))
    count_vm_events(machine, cpu.id, THP_SPLIT_PMD, 1)
    pmd_unlock(machine, where)
    return True


@kernel("bool(cpu_t*, i64, u64)")
def split_huge_pmd_address(cpu, mm_number, address):
    """Take the huge entry of an address apart; False: there is none."""
    machine = machine_of(cpu)
    where = huge_entry_offset(machine, mm_of(machine, mm_number), address)
    return where != U(0) and split_huge_pmd(cpu, where)


@kernel("u64(machine_t*, mm_t*, u64, i64)")
def huge_entry_of_page(machine, mm, address, pfn):
    """Host address of the huge entry that maps this page at this address, or 0."""
    where = huge_entry_offset(machine, mm, address)
    if where == U(0):
        return U(0)
    entry = entry_load(where)
    inside = np.int64((address - haddr_of(machine, address)) >> U(PAGE_SHIFT))
    if not pmd_trans_huge(entry) or is_huge_zero(entry) or pte_pfn(entry) + inside != pfn:
        return U(0)
    return where


@kernel("bool(cpu_t*, i64, u64, i64)")
def split_for_page(cpu, mm_number, address, pfn):
    """Take the huge entry that maps a page at an address apart; False: none does."""
    machine = machine_of(cpu)
    if machine.thp_used == 0:
        return False
    where = huge_entry_of_page(machine, mm_of(machine, mm_number), address, pfn)
    return where != U(0) and split_huge_pmd(cpu, where)
