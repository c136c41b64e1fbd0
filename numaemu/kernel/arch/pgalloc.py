"""Tables for huge entries: the way down to the entry that maps a huge page, and tables laid by for when it is split.

An entry above the lowest tables is 0, a table, or huge (_PAGE_PSE). It becomes huge, or a table instead, under the lock of the
table that it stands in (pmd_lock, a word of that table's page struct). A huge entry of anonymous memory has a table laid
by (pgtable_trans_huge_deposit), so that it can be split where no memory can be had. A and D of a huge entry are set by any
CPU's walker, so it is changed by compare-exchange or exchange, and looked at again, even under that lock.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.paging import _PAGE_PRESENT, _PAGE_PSE, PTE_SHIFT, entry_at, entry_load
from numaemu.kernel.arch.pgtable import (
    account_table,
    entry_offset,
    install_table,
    pgd_of,
    pmd_shift,
    pmd_size,
    table_at,
)
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.mm_types import PG_table
from numaemu.kernel.include.mmdebug import VM_BUG_ON
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.space.mempolicy import alloc_table_page
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64
_HUGE = _PAGE_PRESENT | _PAGE_PSE
HUGE_THERE = U(2)  # of pte_alloc: a huge entry stands in the way


@hot
def pmd_trans_huge(entry):
    """True for an entry that maps a huge page."""
    return entry & _HUGE == _HUGE


@kernel("u64(cpu_t*, mm_t*, u64, u64)")
def huge_pte_alloc(cpu, mm, address, last):
    """Host address of the entry of `address` that covers 2**last bytes, making tables above it as needed.

    0: there is no memory for them; HUGE_THERE: an entry above it maps a huge page.
    """
    machine = machine_of(cpu)
    table, shift = pgd_of(machine, mm), machine.paging.pgdir_shift
    while shift > last:
        where = entry_at(machine.paging, table, address, shift)
        entry = entry_load(where)
        if entry == U(0):
            pfn = alloc_table_page(cpu)
            if pfn == 0:
                return U(0)
            entry = install_table(cpu, mm, where, pfn)
        if pmd_trans_huge(entry):
            return HUGE_THERE
        table = table_at(machine, entry)
        shift -= machine.paging.table_bits
    return entry_at(machine.paging, table, address, shift)


@hot
def pte_alloc(cpu, mm, address):
    """Host address of the leaf entry of `address`; 0: no memory for tables; HUGE_THERE."""
    return huge_pte_alloc(cpu, mm, address, PTE_SHIFT)


@hot
def pmd_alloc(cpu, mm, address):
    """Host address of the entry that maps a huge page or the lowest table of `address`; 0: no memory for tables above it."""
    return huge_pte_alloc(cpu, mm, address, pmd_shift(machine_of(cpu)))


@kernel("u64(machine_t*, mm_t*, u64, u64)")
def hugetlb_walk(machine, mm, address, shift):
    """Host address of the huge entry of 2**shift bytes that maps `address`; 0: there is none."""
    where = entry_offset(machine, mm, address, shift)
    return where if where != U(0) and pmd_trans_huge(entry_load(where)) else U(0)


@kernel("u64(machine_t*, mm_t*, u64)")
def huge_entry_offset(machine, mm, address):
    """The same of the size right above small pages, which transparent huge pages have."""
    where = entry_offset(machine, mm, address, pmd_shift(machine))
    return where if where != U(0) and pmd_trans_huge(entry_load(where)) else U(0)


@hot
def haddr_of(machine, address):
    """Where the huge page of an address begins."""
    return address & ~(pmd_size(machine) - U(1))


@hot
def covers_huge(machine, address, end):
    """True if a range covers all of the huge page at its beginning."""
    return address == haddr_of(machine, address) and end - address >= pmd_size(machine)


# -- the lock of the table that an entry stands in, and the tables laid by there ------------------------------------


@hot
def table_page_of(machine, where):
    """The page struct of the table that the entry at a host address stands in."""
    return page_of(machine, np.int64((where - machine.memory) >> U(PAGE_SHIFT)))


@kernel("void(cpu_t*, u64)")
def pmd_lock(cpu, where):
    spin_lock(cpu, address_of(table_page_of(machine_of(cpu), where), "private"))


@hot
def pmd_unlock(machine, where):
    spin_unlock(address_of(table_page_of(machine, where), "private"))


@kernel("i64(cpu_t*, mm_t*)")
def pte_alloc_one(cpu, mm):
    """A table that hangs nowhere yet, counted already; its pfn or 0."""
    pfn = alloc_table_page(cpu)
    if pfn != 0:
        page_of(machine_of(cpu), pfn).flags |= U(PG_table)
        account_table(cpu, mm, pfn, 1)
    return pfn


@hot
def pgtable_trans_huge_deposit(machine, where, pfn):
    """Lay a table by for the huge entry at `where`. Under pmd_lock."""
    holder = table_page_of(machine, where)
    page_of(machine, pfn).lru_next = holder.lru_next
    holder.lru_next = pfn


@hot
def pgtable_trans_huge_withdraw(machine, where):
    """Take one back. Under pmd_lock."""
    holder = table_page_of(machine, where)
    pfn = holder.lru_next
    VM_BUG_ON(pfn == 0)
    holder.lru_next = page_of(machine, pfn).lru_next
    return pfn
