"""The audit of the TLBs and page-walk caches: what a CPU may use without a walk, the page tables allow.

A CPU that has missed a flush while it was outside, or of an address space that waits under its ASID, forgets what it knows before
it uses it: such entries are left out.
"""

import numpy as np

from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import u8
from numaemu.errors import MachineCheck
from numaemu.hardware.paging import _PAGE_DIRTY, _PAGE_NX, _PAGE_PSE, _PAGE_RW, _PAGE_USER, PAGE_MASK, entry_load
from numaemu.hardware.processor import HOST_NX, NODE_MASK, TAG_ASID, TAG_KERNEL, TAG_SIZE, TAG_VALID, cpu_t, level_shift
from numaemu.hardware.tlb_sets import disordered_set
from numaemu.kernel.arch.init_mm import kernel_pte
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    entry_offset,
    leaf_of,
    mm_of,
    pmd_size,
    pte_pfn,
    pte_present,
    table_at,
)
from numaemu.kernel.arch.ptdump import entry_text
from numaemu.kernel.include.mm_types import machine_t, pool_t
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages
from numaemu.spec.param import L1_ENTRIES_MAX, L1_VIEWS, PAGE_SHIFT, PAGE_SIZE

U = np.uint64


@kernel("i64(machine_t*, i64)")
def mm_of_id(machine, mm_id):
    """Number of the address space with an id, or 0: it has ended."""
    for number in range(1, pool_t.at(machine.mm_pool).used + 1):
        if mm_of(machine, number).id == mm_id and mm_of(machine, number).users > 0:
            return number
    return 0


@kernel("i64(machine_t*, cpu_t*, u64)")
def owner_of(machine, cpu, tag):
    """The address space whose page table an entry with this tag has to agree with; 0: none, it is forgotten before its use."""
    if tag & TAG_VALID != U(0):
        mm = mm_of(machine, cpu.mm)  # its number may have gone to another one since: context_switch looks at the id
        return cpu.mm if cpu.mm != 0 and cpu.mm_id == mm.id and mm.users > 0 and cpu.tlb_gen == mm.tlb_gen else 0
    asid = np.int64(tag & TAG_ASID)
    number = mm_of_id(machine, cpu.asid_mm_id[asid]) if asid != 0 else 0
    return number if number != 0 and cpu.asid_gen[asid] == mm_of(machine, number).tlb_gen else 0


@hot
def both_zero(machine, host, leaf):
    """True if a huge mapping of zeros has been taken apart, which flushes nothing: the entry means the small page of zeros."""
    pfn = np.int64(((host & PAGE_MASK) - machine.memory) >> U(PAGE_SHIFT)) - machine.huge_zero_pfn
    return leaf & _PAGE_SPECIAL != U(0) and machine.huge_zero_pfn != 0 and 0 <= pfn < hpage_pages(machine)


@hot
def gives_more(machine, host, writable, leaf):
    """True if a translation to a frame's `host` word allows what a leaf entry does not."""
    if pte_present(leaf) and both_zero(machine, host, leaf):
        return writable
    if not pte_present(leaf) or U(pte_pfn(leaf)) << U(PAGE_SHIFT) != (host & PAGE_MASK) - machine.memory:
        return True
    if writable and leaf & (_PAGE_RW | _PAGE_DIRTY) != _PAGE_RW | _PAGE_DIRTY:
        return True
    node = U(u8.array(machine.block_node)[pte_pfn(leaf) >> 9])
    return node != host & NODE_MASK or (host & HOST_NX == U(0) and leaf & _PAGE_NX != U(0))


@kernel("u64(machine_t*, i64, u64, u64, u64, bool)")
def stale_at(machine, mm_number, address, size, host, writable):
    """The first address of a user's translation that its page table does not allow; 1: none."""
    at = address
    while at < address + size:
        leaf = leaf_of(machine, mm_of(machine, mm_number), at)
        if leaf & _PAGE_USER == U(0) or gives_more(machine, host + (at - address), writable, leaf):
            return at
        at += (
            pmd_size(machine) if leaf & _PAGE_PSE != U(0) and at & (pmd_size(machine) - U(1)) == U(0) else U(PAGE_SIZE)
        )
    return U(1)


@kernel("u64(machine_t*, cpu_t*, tlb_entry_t*)")
def stale_entry(machine, cpu, slot):
    """Where a TLB entry is wrong, or 1."""
    tag = slot.tag
    if tag == U(0):
        return U(1)
    size = U(1) << level_shift(cpu, np.int64((tag & TAG_SIZE) >> U(9)))
    address = tag & ~(size - U(1))
    if tag & TAG_KERNEL != U(0):  # what vmalloc has given back may stay until the next flush of everything
        leaf = kernel_pte(machine, address) if cpu.kernel_tlb_gen == machine.kernel_tlb_gen else U(0)
        wrong = pte_present(leaf) and gives_more(machine, slot.host, slot.wtag != U(0), leaf)
        return address if wrong else U(1)
    owner = owner_of(machine, cpu, tag)
    if owner == 0:
        return U(1)
    return stale_at(machine, owner, address, size, slot.host, slot.wtag != U(0))


@kernel("u64(machine_t*, cpu_t*, i64)")
def stale_walk(machine, cpu, i):
    """The same for an entry of the page-walk cache."""
    tag = cpu.walk_cache[i].tag
    shift = level_shift(cpu, np.int64(tag & ~PAGE_MASK))
    address = tag & ~((U(1) << shift) - U(1))
    if tag == U(0) or address >= cpu.paging.kernel_start or owner_of(machine, cpu, TAG_VALID) == 0:
        return U(1)
    where = entry_offset(machine, mm_of(machine, cpu.mm), address, shift)
    if where == U(0) or table_at(machine, entry_load(where)) != cpu.walk_cache[i].table:
        return address
    return U(1)


@hot
def nth_entry(cpu, i, l1):
    """Those of the first level, the views of huge ones, those of the second level."""
    if i < l1:
        return cpu.l1[i]
    if i < l1 + L1_VIEWS:
        return cpu.l1[L1_ENTRIES_MAX + i - l1]
    return cpu.l2[i - l1 - L1_VIEWS]


@entry("u64(u64, i64, u64[])")
def validate_tlb(machine_address, number, found):
    """The first address that a CPU would translate otherwise than its page tables do, or 1; found: tag, host word."""
    machine = machine_t.at(machine_address)
    cpu = cpu_t.array(machine.cpus)[number]
    l1, l2 = np.int64(cpu.l1_sets) * cpu.l1_ways, np.int64(cpu.l2_sets) * cpu.l2_ways
    for i in range(l1 + L1_VIEWS + l2):
        slot = nth_entry(cpu, i, l1)
        bad = stale_entry(machine, cpu, slot)
        if bad != U(1):
            found[0], found[1] = slot.tag, slot.host
            return bad
    found[0] = U(0)
    for i in range(cpu.walk_cache_entries):
        bad = stale_walk(machine, cpu, i)
        if bad != U(1):
            return bad
    return U(1)


@entry("i64(u64, i64)")
def disordered_set_of(machine_address, number):
    return disordered_set(cpu_t.array(machine_t.at(machine_address).cpus)[number])


def wrong_order(machine, number):
    """The first set of a CPU's second-level TLB whose order or marks are wrong, or -1."""
    return int(disordered_set_of(int(machine.address), number))


def audit_tlbs(machine):
    """Every CPU's TLB and page-walk cache; and nobody owes a flush."""
    found = np.zeros(2, np.uint64)
    for number in range(machine.nr_cpus):
        bad, disordered = int(validate_tlb(int(machine.address), number, found)), wrong_order(machine, number)
        if disordered >= 0:
            raise MachineCheck(
                f"CPU {number}: set {disordered} of its second-level TLB has not the order of its entries"
            )
        if bad == 1:
            continue
        cpu, tag, host = cpu_t.array(machine.cpus)[number], int(found[0]), int(found[1])
        if not tag:
            raise MachineCheck(
                f"CPU {number}: its page-walk cache leads from {bad:#x} to a table that is not there any more"
            )
        mm = cpu.mm if tag & TAG_VALID else mm_of_id(machine, cpu.asid_mm_id[tag & TAG_ASID])
        leaf = kernel_pte(machine, U(bad)) if tag & TAG_KERNEL else leaf_of(machine, mm_of(machine, mm), U(bad))
        raise MachineCheck(
            f"CPU {number}: its TLB translates {bad:#x} of address space {mm} by an entry with tag {tag:#x} and "
            f"host word {host:#x}; the page table has {entry_text(int(leaf))}"
        )
    for number in range(1, pool_t.at(machine.mm_pool).used + 1):
        if mm_of(machine, number).tlb_flush_pending:
            raise MachineCheck(
                f"address space {number}: {mm_of(machine, number).tlb_flush_pending} flushes are still to come"
            )
