"""The page walk of one CPU, and its page-walk cache.

The walk knows no format by itself: `paging.py` says how many levels there are and brings entries into one form. It ends
at the first entry that maps a page: at the lowest level, or above it with PS set (2 MiB, 1 GiB, on 32 bits 4 MiB).
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.bits import lowest_bit
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u8, u64
from numaemu.hardware.marks import WORD_MARKS, mark_of, mark_words, marked_as, put_mark
from numaemu.hardware.paging import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_NX,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_RW,
    _PAGE_USER,
    ENTRY_4_BYTES,
    ENTRY_ARM64,
    PAGE_MASK,
    PTE_PFN_MASK,
    PTE_SHIFT,
    entry_at,
    entry_cmpxchg,
    entry_load,
)
from numaemu.hardware.processor import LEAF_SHIFT, X86_PF_INSTR, X86_PF_USER, X86_PF_WRITE, level_shift
from numaemu.hardware.timing import timed_walk

U = np.uint64


@hot
def first_table(cpu, address):
    """Host address of the table a walk begins with, 0 if the address is none (not canonical) or nothing is loaded."""
    top = address >> cpu.paging.canonical_shift
    if top != U(0):
        if cpu.paging.pte_format == ENTRY_4_BYTES or top != (~U(0)) >> cpu.paging.canonical_shift:
            return U(0)
        if cpu.paging.pte_format == ENTRY_ARM64:  # TTBR1
            return cpu.kernel_table
    return cpu.cr3 if cpu.cr3 != U(0) else cpu.kernel_table


@kernel("i64(cpu_t*, u64)")
def walk_cache_find(cpu, address):
    """The entry of the page-walk cache that leads farthest down, or -1."""
    up, shift = 1, level_shift(cpu, 1)
    while shift <= cpu.paging.pgdir_shift:
        tag, mark = ((address >> shift) << shift) | U(up), mark_of(address >> shift)
        for word in range(mark_words(cpu.walk_cache_entries)):
            likely = marked_as(cpu.walk_marks[word], mark)
            while likely != U(0):
                entry = cpu.walk_cache[word * WORD_MARKS + (lowest_bit(likely) >> 3)]
                if entry.tag == tag:
                    entry.age = cpu.tick + 1
                    cpu.walk_cache_hits += 1
                    return word * WORD_MARKS + (lowest_bit(likely) >> 3)
                likely &= likely - U(1)
        up, shift = up + 1, shift + cpu.paging.table_bits
    return -1


@kernel("void(cpu_t*, u64, i64, u64, u64)")
def walk_cache_fill(cpu, address, up, table, rights):
    """Remember where an upper entry led, in the place of the one not used for longest."""
    victim = 0
    for i in range(cpu.walk_cache_entries):
        if cpu.walk_cache[i].tag == U(0):
            victim = i
            break
        if cpu.walk_cache[i].age < cpu.walk_cache[victim].age:
            victim = i
    entry, shift = cpu.walk_cache[victim], level_shift(cpu, up)
    entry.tag, entry.table, entry.rights, entry.age = ((address >> shift) << shift) | U(up), table, rights, cpu.tick + 1
    put_mark(cpu.walk_marks, 0, victim, mark_of(address >> shift))


@hot
def count_walk_load(cpu, where, lowest):
    """One load of the walk, charged where the entry lies: in a lowest table, or above."""
    cpu.walk_loads[u8.array(cpu.block_node)[np.int64((where - cpu.memory) >> U(21))]] += 1
    if cpu.timed != U(0):
        timed_walk(cpu, where - cpu.memory, lowest)


@hot
def next_where(cpu, table, address, shift, foreign):
    """Host address of an entry on the way; `foreign` is known when compiled, and False means x86-64's 512 plain words."""
    if foreign:
        return entry_at(cpu.paging, table, address, shift)
    return table + (((address >> shift) & U(511)) << U(3))


@hot
def load_entry(where, foreign):
    return entry_load(where) if foreign else load_acquire(u64.array(where), 0)


@hot
def walk_down(cpu, address, access, foreign):
    """The walk (see there) from the top table, or from where the walk cache says; it is kept for plain formats, too, by
    the `foreign` one.
    """
    table, shift, bits = first_table(cpu, address), cpu.paging.pgdir_shift, cpu.paging.table_bits if foreign else U(9)
    if table == U(0):
        return U(0)
    write, needed, allowed, forbidden = access & X86_PF_WRITE != U(0), _PAGE_PRESENT, ~U(0), U(0)
    if access & X86_PF_USER != U(0) or address < cpu.paging.kernel_start:
        needed |= _PAGE_USER
    if foreign and cpu.walk_cache_entries > 0:
        known = walk_cache_find(cpu, address)
        if known >= 0:
            table, allowed = cpu.walk_cache[known].table, cpu.walk_cache[known].rights
            forbidden = allowed & _PAGE_NX
            shift = PTE_SHIFT + ((cpu.walk_cache[known].tag & ~PAGE_MASK) - U(1)) * bits
    while True:
        where = next_where(cpu, table, address, shift, foreign)
        count_walk_load(cpu, where, shift == PTE_SHIFT)
        entry = load_entry(where, foreign)
        if entry & needed != needed:
            return U(0)
        leaf = shift == PTE_SHIFT or entry & _PAGE_PSE != U(0)
        if leaf and (
            (write and allowed & entry & _PAGE_RW == U(0))
            or (access & X86_PF_INSTR != U(0) and (forbidden | entry) & _PAGE_NX != U(0))
        ):
            return U(0)
        wanted = entry | _PAGE_ACCESSED | (_PAGE_DIRTY if leaf and write else U(0))
        if entry != wanted and entry_cmpxchg(where, entry, wanted) != entry:
            continue  # it changed under our hands: load it again
        allowed, forbidden = allowed & entry, forbidden | entry
        if leaf:
            up = U(0) if shift == PTE_SHIFT else (shift - PTE_SHIFT) // bits
            return (wanted & (allowed | ~_PAGE_RW)) | (forbidden & _PAGE_NX) | (up << LEAF_SHIFT)
        table = cpu.memory + (entry & PTE_PFN_MASK)
        if foreign and cpu.walk_cache_entries > 0:
            walk_cache_fill(
                cpu,
                address,
                np.int64((shift - PTE_SHIFT) // bits),
                table,
                (allowed & (_PAGE_RW | _PAGE_USER)) | (forbidden & _PAGE_NX),
            )
        shift -= bits


@kernel("u64(cpu_t*, u64, u64)")
def walk(cpu, address, access):
    """Walk the levels for `address`; the leaf entry with A (and D) set, and how far up it stands; 0: page fault.

    What every entry on the way allows is allowed, what one forbids is forbidden. A and D are set where missing by
    compare-exchange of the whole entry, as hardware does: other CPUs change the same words, and bits must not land in an
    entry that has just been cleared.
    """
    if cpu.paging.pte_format == U(0) and cpu.walk_cache_entries == 0:
        return walk_down(cpu, address, access, False)
    return walk_down(cpu, address, access, True)


@kernel("u64(cpu_t*, u64)")
def lowest_table(cpu, address):
    """Host address of the table with the 4 KiB entry of an address, 0 if there is none or the format is not x86-64's."""
    table, shift = first_table(cpu, address), cpu.paging.pgdir_shift
    if cpu.paging.pte_format != U(0):
        return U(0)
    while table != U(0) and shift > PTE_SHIFT:
        entry = load_entry(next_where(cpu, table, address, shift, False), False)
        if entry & _PAGE_PRESENT == U(0) or entry & _PAGE_PSE != U(0):
            return U(0)
        table = cpu.memory + (entry & PTE_PFN_MASK)
        shift -= U(9)
    return table


@hot
def peek_down(cpu, address, foreign):
    """The leaf for an address without any cost or trace, as `walk_down` would find it, with its level from LEAF_SHIFT
    on; 0 if there is none.
    """
    table, shift, bits = first_table(cpu, address), cpu.paging.pgdir_shift, cpu.paging.table_bits if foreign else U(9)
    while table != U(0):
        entry = load_entry(next_where(cpu, table, address, shift, foreign), foreign)
        if entry & _PAGE_PRESENT == U(0):
            return U(0)
        if shift == PTE_SHIFT or entry & _PAGE_PSE != U(0):
            hidden = address < cpu.paging.kernel_start and entry & _PAGE_USER == U(0)
            return U(0) if hidden else entry | (((shift - PTE_SHIFT) // bits) << LEAF_SHIFT)
        table = cpu.memory + (entry & PTE_PFN_MASK)
        shift -= bits
    return U(0)


@kernel("u64(cpu_t*, u64)")
def peek(cpu, address):
    """What a walk would end with, for software that only wants to know: nothing is counted or set. 0: nothing is mapped.

    A user's page without the U/S bit is one of PROT_NONE, which Linux makes not present.
    """
    if cpu.paging.pte_format == U(0):
        return peek_down(cpu, address, False)
    return peek_down(cpu, address, True)
