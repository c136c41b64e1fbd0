"""The kernel's own page table: Linux's init_mm and swapper_pg_dir, arch/x86/mm/init_64.c and init_32.c.

    x86-64   user | hole | direct map of all memory ... | vmalloc ... |
    x86-32   user (3 GiB) | direct map, at most 896 MiB | 8 MiB | vmalloc ... | pkmap | fixmap |
    arm64    user (TTBR0)   and   direct map ... | vmalloc ... | (TTBR1)

Boot makes it in frames behind all zones, so nobody has less memory for it: the direct map with the largest entries that fit,
and the top-level entries of vmalloc's range where Linux makes them ahead (x86-64). Every task's top-level table has a
copy of the kernel's half, which then never changes, but on 32 bits: there a new entry is copied by the fault that
misses it (vmalloc_fault; Linux since 5.8 copies it into all tables at once, and has the fault for what comes too early).
On arm64 there is nothing to be copied. Tables that later mappings need come from the page allocator and stay for ever.
"""

import numpy as np

from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.native import copy_bytes
from numaemu.hardware.paging import (
    _KERNPG_TABLE,
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_GLOBAL,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_RW,
    ENTRY_4_BYTES,
    ENTRY_ARM64,
    PTE_SHIFT,
    entry_at,
    entry_cmpxchg,
    entry_exchange,
    entry_load,
)
from numaemu.kernel.arch.pgtable import entry_below, pfn_pte, pmd_shift, pte_present, table_at
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import __GFP_ZERO, GFP_KERNEL
from numaemu.kernel.include.mm_types import PG_table, machine_t
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NR_PAGETABLE, VMALLOC_FAULT, count_vm_events, mod_node_page_state
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages, put_page
from numaemu.kernel.mm.vmalloc.vmap_area import lazy_max_pages
from numaemu.spec.param import PAGE_SIZE, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES

U = np.uint64
GFP_PGTABLE_KERNEL = GFP_KERNEL | __GFP_ZERO
PAGE_KERNEL = _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY | _PAGE_GLOBAL  # and the format's NX

# 32 bits: arch/x86/include/asm/pgtable_32_areas.h, fixmap.h
FIXADDR_TOP = 0xFFFF_F000
KM_MAX_IDX = 16  # pages of high memory that one CPU may map for a moment
LAST_PKMAP = 1024  # and that all CPUs together may map for longer: one table's worth
VMALLOC_OFFSET = 8 << 20  # between the direct map and vmalloc
PKMAP_SPAN = LAST_PKMAP * PAGE_SIZE
RESERVED_STACKS = 12  # frames for each CPU's stacks: thread_stack.py
RESERVED_TABLES = 768  # frames for tables at boot: 2 for each of 128 pieces of memory, 64 + 144 for vmalloc, a few


# -- layout ------------------------------------------------------------------------------------------------------


def reserved_pages(topology):
    """Frames behind the zones, for each node: tables and interrupt stacks; whole 2 MiB."""
    most = RESERVED_TABLES + RESERVED_STACKS * topology.nr_cpus  # one node's memory may have to serve all CPUs
    return -(-most // PAGEBLOCK_PAGES) * PAGEBLOCK_PAGES


def init_layout_32(machine):
    """Where the windows of a 32-bit kernel lie: from the top down the fixmap, pkmap, vmalloc."""
    paging = machine.paging
    fixaddr_start = FIXADDR_TOP - machine.nr_cpu_ids * KM_MAX_IDX * PAGE_SIZE
    machine.fixaddr_top = FIXADDR_TOP
    machine.pkmap_base = (fixaddr_start & ~(PKMAP_SPAN - 1)) - PKMAP_SPAN
    paging.vmalloc_start = int(paging.page_offset) + machine.high_memory * PAGE_SIZE + VMALLOC_OFFSET
    paging.vmalloc_end = int(machine.pkmap_base) - 2 * PAGE_SIZE


# -- tables ------------------------------------------------------------------------------------------------------


@kernel("u64(machine_t*, u64, u64)")
def kernel_entry_offset(machine, address, level):
    """Host address of the kernel's entry of `address` that covers 2**level bytes; 0 if there is no table for it."""
    return entry_below(machine, machine.kernel_table, address, level)


@kernel("u64(machine_t*, u64)")
def kernel_pte(machine, address):
    """The kernel's leaf entry of a 4 KiB page, 0 if there is none."""
    where = kernel_entry_offset(machine, address, PTE_SHIFT)
    return entry_load(where) if where != U(0) else U(0)


@hot
def early_table(machine):
    """A frame for a table while nobody else runs; frames are zero."""
    machine.reserved_pfn += 1
    return machine.reserved_pfn - 1


@hot
def early_entry(machine, address, level):
    """Boot's way to the entry of `address` that covers 2**level bytes, making tables as needed."""
    table, shift = machine.kernel_table, machine.paging.pgdir_shift
    while shift > level:
        where = entry_at(machine.paging, table, address, shift)
        if entry_load(where) == U(0):
            entry_exchange(where, pfn_pte(early_table(machine), _KERNPG_TABLE | _PAGE_DIRTY))
        table = table_at(machine, entry_load(where))
        shift -= machine.paging.table_bits
    return entry_at(machine.paging, table, address, shift)


@kernel("u64(cpu_t*, u64, u64, i64)")
def install_kernel_table(cpu, where, shift, pfn):
    """Hang a new table into an upper entry, unless another CPU was faster. Linux counts no leaf tables of the kernel."""
    machine = machine_of(cpu)
    page_of(machine, pfn).flags |= U(PG_table)
    before = entry_cmpxchg(where, U(0), pfn_pte(pfn, _KERNPG_TABLE | _PAGE_DIRTY))
    if before != U(0):
        page_of(machine, pfn).flags &= ~U(PG_table)
        put_page(cpu, pfn)
        return before
    if shift > pmd_shift(machine):
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_PAGETABLE, 1)
    return pfn_pte(pfn, _KERNPG_TABLE)


@kernel("u64(cpu_t*, u64)")
def pte_alloc_kernel(cpu, address):
    """Host address of the kernel's leaf entry of `address`, making tables as needed; 0: no memory."""
    machine = machine_of(cpu)
    table, shift = machine.kernel_table, machine.paging.pgdir_shift
    while shift > PTE_SHIFT:
        where = entry_at(machine.paging, table, address, shift)
        entry = entry_load(where)
        if entry == U(0):
            pfn = alloc_pages(cpu, GFP_PGTABLE_KERNEL, 0, cpu.node, machine.node_mask)
            if pfn == 0:
                return U(0)
            entry = install_kernel_table(cpu, where, shift, pfn)
        table = table_at(machine, entry)
        shift -= machine.paging.table_bits
    return entry_at(machine.paging, table, address, shift)


@kernel("void(machine_t*, u64)")
def clone_kernel_range(machine, pgd):
    """A new top-level table shares the kernel's half (clone_pgd_range); on arm64 it has none."""
    paging = machine.paging
    if paging.pte_format == ENTRY_ARM64:
        return
    first = (paging.kernel_start >> paging.pgdir_shift) & paging.table_mask
    skip = first << paging.entry_shift
    copy_bytes(
        pgd + skip, machine.kernel_table + skip, np.int64(((paging.table_mask + U(1)) << paging.entry_shift) - skip)
    )


@kernel("bool(cpu_t*, u64)")
def vmalloc_fault(cpu, address):
    """On 32 bits: copy the kernel's top-level entry of a vmalloc address into the loaded table; False: it is no such fault."""
    paging, machine = cpu.paging, machine_of(cpu)
    if (
        paging.pte_format != ENTRY_4_BYTES
        or cpu.cr3 == U(0)
        or address < paging.vmalloc_start
        or address >= paging.vmalloc_end
    ):
        return False
    entry = entry_load(entry_at(paging, machine.kernel_table, address, paging.pgdir_shift))
    where = entry_at(paging, cpu.cr3, address, paging.pgdir_shift)
    if not pte_present(entry) or entry_cmpxchg(where, U(0), entry) != U(0):
        return False
    count_vm_events(machine, cpu.id, VMALLOC_FAULT, 1)
    cpu.clock_base_ns += machine.fault_ns
    return True


# -- boot --------------------------------------------------------------------------------------------------------


@hot
def largest_entry(machine, pfn, end_pfn):
    """How many levels above the lowest an entry may stand that maps frames from `pfn` on."""
    up = 1 if machine.paging.pte_format == ENTRY_4_BYTES else 2
    while up > 0:
        pages = 1 << (up * np.int64(machine.paging.table_bits))
        if pfn & (pages - 1) == 0 and pfn + pages <= end_pfn:
            break
        up -= 1
    return up


@entry("void(u64, i64, i64)")
def init_memory_mapping(machine_address, start_pfn, end_pfn):
    """Map the frames of one node into the direct map with the largest entries that fit."""
    machine = machine_t.at(machine_address)
    paging, pfn = machine.paging, start_pfn
    while pfn < end_pfn:
        up = largest_entry(machine, pfn, end_pfn)
        shift = PTE_SHIFT + U(up) * paging.table_bits
        where = early_entry(machine, paging.page_offset + (U(pfn) << PTE_SHIFT), shift)
        entry_exchange(where, pfn_pte(pfn, PAGE_KERNEL | paging.nx | (_PAGE_PSE if up > 0 else U(0))))
        pages = 1 << np.int64(shift - PTE_SHIFT)
        machine.direct_map[up] += pages * PAGE_SIZE
        pfn += pages


@entry("void(u64)")
def preallocate_vmalloc_pages(machine_address):
    """Linux's function of this name: x86-64 shares vmalloc's top-level entries from the start.

    But on 32 bits, leaf tables for as many addresses as may wait for a purge are made now, so that tasks which come and go,
    each with a stack, do not make the kernel take more and more pages for them.
    """
    machine = machine_t.at(machine_address)
    paging = machine.paging
    address = paging.vmalloc_start
    if paging.pte_format != ENTRY_4_BYTES:
        for _ in range(np.int64(lazy_max_pages(machine)) >> PAGEBLOCK_ORDER):
            early_entry(machine, address, PTE_SHIFT)
            address += U(1) << pmd_shift(machine)
    address = paging.vmalloc_start
    if paging.pte_format == U(0):
        while address < paging.vmalloc_end:
            early_entry(machine, address, paging.pgdir_shift - paging.table_bits)
            address += U(1) << paging.pgdir_shift
    elif paging.pte_format == ENTRY_4_BYTES:  # page_table_range_init: pkmap and fixmap
        address = machine.pkmap_base
        while address < machine.fixaddr_top:
            early_entry(machine, address, PTE_SHIFT)
            address += U(1) << paging.pgdir_shift


def init_kernel_space(topology, machine, high_memory):
    """The kernel's page table, at boot; the direct map ends at pfn `high_memory`."""
    machine.high_memory = high_memory
    machine.kernel_table = int(machine.memory) + machine.reserved_pfn * PAGE_SIZE
    machine.reserved_pfn += 1
    if machine.paging.pte_format == ENTRY_4_BYTES:
        init_layout_32(machine)
    for start, nbytes in (part for node in topology.physical_ranges() for part in node):
        init_memory_mapping(int(machine.address), start // PAGE_SIZE, min((start + nbytes) // PAGE_SIZE, high_memory))
    preallocate_vmalloc_pages(int(machine.address))
