"""Page-table entries and tables: Linux's pgtable.h and the table part of mm/memory.c.

Tables lie in emulated frames. An upper entry goes from 0 to a table once, by compare-exchange, and back to 0 only
under the mmap_lock held for writing; a leaf entry changes at any time, by compare-exchange or exchange only.
A leaf that is not present and not 0 is one of two. A *migration entry*: pfn << 12 | _MIGRATION | the old R/W, U/S and
D bits, and _MIGRATION_ANON if the page is anonymous, _MIGRATION_FILE if it is a file's. A *swap entry*: swap entry << 12 |
_SWAP, and _SWP_EXCLUSIVE if the page belonged to this address space alone.
"""
import numpy as np

from numaemu.atomic import compare_exchange, exchange, fetch_add, load_acquire
from numaemu.compile import hot, kernel
from numaemu.kernel.mm_types import PG_table, mm_t
from numaemu.kernel.mmzone import page_of, page_to_nid
from numaemu.kernel.page_alloc import put_page
from numaemu.kernel.smp import machine_of
from numaemu.kernel.vmstat import NR_PAGETABLE, mod_node_page_state
from numaemu.mmu import PTE_PFN_MASK, _PAGE_ACCESSED, _PAGE_PRESENT, _PAGE_RW, _PAGE_USER
from numaemu.pointer import u64

U = np.uint64
_PAGE_SPECIAL = U(1 << 9)        # software bit: the zero page, no struct page to count
_MIGRATION, _MIGRATION_ANON, _MIGRATION_FILE = U(1 << 10), U(1 << 11), U(1 << 8)
_SWAP, _SWP_EXCLUSIVE = U(1 << 3), U(1 << 4)
_PAGE_TABLE = _PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED
ADDRESS_SPACE = U(1) << U(47)


@hot
def pte_pfn(pte):
    return np.int64((pte & PTE_PFN_MASK) >> U(12))


@hot
def pfn_pte(pfn, bits):
    return (U(pfn) << U(12)) | bits


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
def table_at(machine, entry):
    """Host address of the table that an upper entry points to."""
    return machine.memory + (entry & PTE_PFN_MASK)


@kernel("u64(machine_t*, mm_t*, u64)")
def pte_offset(machine, mm, address):
    """Host address of the leaf entry of `address`, or 0 if a table on the way is missing."""
    table = machine.memory + mm.pgd
    for shift in (39, 30, 21):
        entry = load_acquire(u64.array(table), np.int64((address >> U(shift)) & U(511)))
        if entry == U(0):
            return U(0)
        table = table_at(machine, entry)
    return table + (((address >> U(12)) & U(511)) << U(3))


@kernel("u64(machine_t*, mm_t*, u64)")
def skip_missing(machine, mm, address):
    """The next address above `address` whose leaf table may exist, for walks over sparse ranges."""
    table = machine.memory + mm.pgd
    for shift in (39, 30, 21):
        entry = load_acquire(u64.array(table), np.int64((address >> U(shift)) & U(511)))
        if entry == U(0):
            return ((address >> U(shift)) + U(1)) << U(shift)
        table = table_at(machine, entry)
    return address


@hot
def ptep_get(ptep):
    return load_acquire(u64.array(ptep), 0)


@hot
def ptep_cmpxchg(ptep, old, new):
    """Change a leaf entry if it is still `old`; success."""
    return compare_exchange(u64.array(ptep), 0, old, new) == old


@hot
def ptep_get_and_clear(ptep):
    return exchange(u64.array(ptep), 0, U(0))


@kernel("void(cpu_t*, mm_t*, i64, i64)")
def account_table(cpu, mm, pfn, sign):
    """Count a page-table page in or out."""
    machine = machine_of(cpu)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_PAGETABLE, sign)
    fetch_add(mm, "pgtables", sign)


@kernel("u64(cpu_t*, mm_t*, u64, i64, i64)")
def install_table(cpu, mm, table, index, pfn):
    """Hang a new, cleared table page into an upper entry; if another CPU was faster, free it. The entry that stands."""
    machine = machine_of(cpu)
    page_of(machine, pfn).flags |= U(PG_table)
    entry = pfn_pte(pfn, _PAGE_TABLE)
    before = compare_exchange(u64.array(table), index, U(0), entry)
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
