"""Page-table entries and tables: Linux's pgtable.h and the table part of mm/memory.c.

Tables lie in emulated frames. An upper entry goes from 0 to a table once, by compare-exchange, and back to 0 only
under the mmap_lock held for writing; a leaf entry changes at any time, by compare-exchange or exchange only.
An entry is in the common form of paging.py wherever it is not in memory; `ptep` is the host address of one, with its format.
A leaf that is not present and not 0 is one of two. A *migration entry*: pfn << 12 | _MIGRATION | the old R/W, U/S and
D bits, and _MIGRATION_ANON if the page is anonymous, _MIGRATION_FILE if it is a file's. A *swap entry*: swap entry << 12 |
_SWAP, and _SWP_EXCLUSIVE if the page belonged to this address space alone.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import (
    _MIGRATION,
    _PAGE_GLOBAL,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_SOFTW1,
    _PAGE_SOFTW3,
    _PAGE_TABLE,
    _PAGE_USER,
    _SWAP,
    PAGE_MASK,
    PTE_PFN_MASK,
    PTE_SHIFT,
    entry_at,
    entry_cmpxchg,
    entry_exchange,
    entry_load,
)
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import VM_ACCESS_FLAGS, VM_EXEC, PG_table, mm_t
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NR_PAGETABLE, mod_node_page_state
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64
_PAGE_SPECIAL = _PAGE_SOFTW1  # the zero page, no struct page to count
_MIGRATION_ANON, _MIGRATION_FILE = _PAGE_SOFTW3, _PAGE_GLOBAL
_SWP_EXCLUSIVE = U(1 << 4)


@hot
def pte_pfn(pte):
    return np.int64((pte & PTE_PFN_MASK) >> U(PAGE_SHIFT))


@hot
def pfn_pte(pfn, bits):
    return (U(pfn) << U(PAGE_SHIFT)) | bits


@hot
def pte_present(pte):
    return (pte & _PAGE_PRESENT) != U(0)


@hot
def is_migration_entry(pte):
    return (pte & (_PAGE_PRESENT | _MIGRATION)) == _MIGRATION


@hot
def is_swap_entry(pte):
    return (pte & (_PAGE_PRESENT | _MIGRATION | _SWAP)) == _SWAP


@hot
def pte_to_swp_entry(pte):
    return pte_pfn(pte)


@hot
def swp_entry_to_pte(entry, bits):
    return pfn_pte(entry, _SWAP | bits)


@hot
def mm_of(machine, number):
    return mm_t.array(machine.mms)[number]


@hot
def vm_page_nx(machine, vma):
    """The NX bit for entries of a VMA, if the format has one."""
    return machine.paging.nx if vma.flags & VM_EXEC == 0 else U(0)


@hot
def vm_page_prot(machine, vma, bits):
    """An entry's bits for a page that comes to a VMA without a fault of its users: nobody may use it if that is PROT_NONE."""
    return (bits if vma.flags & VM_ACCESS_FLAGS else bits & ~_PAGE_USER) | vm_page_nx(machine, vma)


@hot
def table_at(machine, entry):
    """Host address of the table that an upper entry points to."""
    return machine.memory + (entry & PTE_PFN_MASK)


@hot
def pgd_of(machine, mm):
    """Host address of an address space's top-level table."""
    return machine.memory + mm.pgd


@hot
def pmd_shift(machine):
    """Address bits that the entries above the lowest tables map: 21, on 32 bits 22."""
    return PTE_SHIFT + machine.paging.table_bits


@hot
def pmd_size(machine):
    """Bytes that one of the lowest tables maps."""
    return U(1) << pmd_shift(machine)


@hot
def pmd_addr_end(machine, address, end):
    """Where the lowest table of `address` ends, or `end` if that comes first."""
    return min(end, (address | (pmd_size(machine) - U(1))) + U(1))


@hot
def users_end(machine):
    """Where the last top-level entry ends that maps addresses of users."""
    span = U(1) << machine.paging.pgdir_shift
    return (machine.paging.task_size + span - U(1)) & ~(span - U(1))


@hot
def ptep_step(machine):
    """Bytes from an entry to the next one of its table."""
    return U(1) << machine.paging.entry_shift


@hot
def entry_below(machine, table, address, level):
    """Host address of the entry of `address` that covers 2**level bytes, below a top-level table; 0: no table for it."""
    shift = machine.paging.pgdir_shift
    while shift > level:
        entry = entry_load(entry_at(machine.paging, table, address, shift))
        if entry & (_PAGE_PRESENT | _PAGE_PSE) != _PAGE_PRESENT:
            return U(0)
        table = table_at(machine, entry)
        shift -= machine.paging.table_bits
    return entry_at(machine.paging, table, address, shift)


@kernel("u64(machine_t*, mm_t*, u64, u64)")
def entry_offset(machine, mm, address, level):
    """The same of an address space."""
    return entry_below(machine, pgd_of(machine, mm), address, level)


@hot
def pte_offset(machine, mm, address):
    """Host address of the leaf entry of `address`, or 0 if a table on the way is missing."""
    return entry_offset(machine, mm, address, PTE_SHIFT)


@kernel("u64(machine_t*, mm_t*, u64)")
def leaf_of(machine, mm, address):
    """What maps an address, in the form of a leaf entry of its own page, huge (_PAGE_PSE) or not; 0: nothing."""
    ptep = pte_offset(machine, mm, address)
    if ptep != U(0):
        return entry_load(ptep)
    shift = pmd_shift(machine)
    while shift <= machine.paging.pgdir_shift:
        where = entry_offset(machine, mm, address, shift)
        entry = entry_load(where) if where != U(0) else U(0)
        if entry & (_PAGE_PRESENT | _PAGE_PSE) == _PAGE_PRESENT | _PAGE_PSE:
            return entry | (address & ((U(1) << shift) - U(1)) & PAGE_MASK)
        if where != U(0):
            return U(0)
        shift += machine.paging.table_bits
    return U(0)


@kernel("u64(machine_t*, mm_t*, u64)")
def skip_missing(machine, mm, address):
    """The next address above `address` whose leaf table may exist, for walks over sparse ranges."""
    table, shift = pgd_of(machine, mm), machine.paging.pgdir_shift
    while shift > PTE_SHIFT:
        entry = entry_load(entry_at(machine.paging, table, address, shift))
        if entry & (_PAGE_PRESENT | _PAGE_PSE) != _PAGE_PRESENT:
            return ((address >> shift) + U(1)) << shift
        table = table_at(machine, entry)
        shift -= machine.paging.table_bits
    return address


@hot
def next_pte(machine, mm, address, end):
    """For walks over sparse ranges: (the first page from `address` on that has a leaf table, the host address of its entry), or
    the second is 0 if no page below `end` has one.
    """
    ptep = U(0)
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep != U(0):
            break
        address = skip_missing(machine, mm, address)
    return address, ptep


@hot
def ptep_get(ptep):
    return entry_load(ptep)


@hot
def ptep_cmpxchg(ptep, old, new):
    """Change a leaf entry if it is still `old`; success."""
    return entry_cmpxchg(ptep, old, new) == old


@hot
def ptep_get_and_clear(ptep):
    return entry_exchange(ptep, U(0))


@hot
def set_pte(ptep, pte):
    """Write an entry that nobody else writes to."""
    entry_exchange(ptep, pte)


@kernel("void(cpu_t*, mm_t*, i64, i64)")
def account_table(cpu, mm, pfn, sign):
    """Count a page-table page in or out."""
    machine = machine_of(cpu)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_PAGETABLE, sign)
    fetch_add(mm, "pgtables", sign)


@kernel("u64(cpu_t*, mm_t*, u64, i64)")
def install_table(cpu, mm, where, pfn):
    """Hang a new, cleared table page into an upper entry; if another CPU was faster, free it. The entry that stands."""
    machine = machine_of(cpu)
    page_of(machine, pfn).flags |= U(PG_table)
    page_of(machine, pfn).lru_next = 0  # no table is laid by here (pgalloc.py)
    entry = pfn_pte(pfn, _PAGE_TABLE)
    before = entry_cmpxchg(where, U(0), entry)
    if before != U(0):
        page_of(machine, pfn).flags &= ~U(PG_table)
        put_page(cpu, pfn)
        return before
    account_table(cpu, mm, pfn, 1)
    return entry


@kernel("void(cpu_t*, i64)")
def pgd_free(cpu, pfn):
    """Free a table page that is not accounted for: Linux counts no top-level tables before 6.14."""
    machine = machine_of(cpu)
    page_of(machine, pfn).flags &= ~U(PG_table)
    put_page(cpu, pfn)


@kernel("void(cpu_t*, mm_t*, i64)")
def free_table(cpu, mm, pfn):
    """Free a table that hung in an upper one."""
    account_table(cpu, mm, pfn, -1)
    pgd_free(cpu, pfn)
