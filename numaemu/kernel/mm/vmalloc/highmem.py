"""High memory, which the direct map of a 32-bit kernel does not reach: Linux's mm/highmem.c.

    pkmap    LAST_PKMAP pages of addresses that all CPUs share: kmap, kunmap, for as long as one likes
    fixmap   KM_MAX_IDX pages for each CPU: kmap_atomic, kunmap_atomic, only while no other task may run there

    pkmap.count   0: nobody maps it     1: mapped but unused: CPUs may still know it     n: n - 1 users

What is unused is taken down all at once, with one flush on all CPUs, when the search comes around (flush_all_zero_pkmaps).
"""

import numpy as np

from numaemu.compiler.decorators import kernel
from numaemu.compiler.pointer import Struct, address_of, i64, u16, u64
from numaemu.hardware.paging import PTE_SHIFT, entry_exchange
from numaemu.kernel.arch.init_mm import KM_MAX_IDX, LAST_PKMAP, PAGE_KERNEL, kernel_entry_offset
from numaemu.kernel.arch.pgtable import pfn_pte
from numaemu.kernel.arch.tlb import flush_tlb_kernel_range
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.mmu import tlb_flush_page

U = np.uint64

# Shared words of pkmap_t: the word | its writer | why a reader may trust it.
# - count, and machine.pkmap_of | Under the lock of pkmap, which is held over the flush. | page_address looks
#   without it, as on Linux: the caller has the page mapped.
# fmt: off
pkmap_t = Struct("pkmap_t", [            # under `lock`
    ("lock", u64),
    ("last_nr", i64),                    # where the search was
    ("flushes", i64),                    # flush_all_zero_pkmaps that had something to do
    ("count", i64, LAST_PKMAP), ("pfn", i64, LAST_PKMAP),
])
# fmt: on


def highmem_blocks(topology, max_pfn):
    """The blocks of shared memory for it: (name, bytes). pkmap_of: u16 by pfn, 1 + its place in pkmap (page_address_map)."""
    return ("pkmap", pkmap_t.nbytes), ("pkmap_of", max_pfn * 2 if topology.zone_layout == "x86-32" else 8)


@kernel("u64(machine_t*, i64)")
def pkmap_addr(machine, nr):
    """PKMAP_ADDR"""
    return machine.pkmap_base + (U(nr) << PTE_SHIFT)


@kernel("u64(machine_t*, i64)")
def page_address_high(machine, pfn):
    """Where kmap has put a page of high memory, 0: nowhere."""
    nr = np.int64(u16.array(machine.pkmap_of)[pfn])
    return pkmap_addr(machine, nr - 1) if nr != 0 else U(0)


@kernel("void(cpu_t*)")
def flush_all_zero_pkmaps(cpu):
    """Take down what nobody uses, and let every CPU forget it. Under the lock."""
    machine = machine_of(cpu)
    pkmap, some = pkmap_t.at(machine.pkmap), False
    for nr in range(LAST_PKMAP):
        if pkmap.count[nr] == 1:
            pkmap.count[nr] = 0
            entry_exchange(kernel_entry_offset(machine, pkmap_addr(machine, nr), PTE_SHIFT), U(0))
            u16.array(machine.pkmap_of)[pkmap.pfn[nr]] = 0
            some = True
    if some:
        pkmap.flushes += 1
        flush_tlb_kernel_range(cpu, pkmap_addr(machine, 0), pkmap_addr(machine, LAST_PKMAP))


@kernel("bool(cpu_t*, i64)")
def map_new_virtual(cpu, pfn):
    """Find an address for a page and map it there; False: all are in use. Under the lock."""
    machine = machine_of(cpu)
    pkmap = pkmap_t.at(machine.pkmap)
    for _ in range(LAST_PKMAP):
        pkmap.last_nr = (pkmap.last_nr + 1) % LAST_PKMAP
        if pkmap.last_nr == 0:
            flush_all_zero_pkmaps(cpu)
        nr = pkmap.last_nr
        if pkmap.count[nr] == 0:
            where = kernel_entry_offset(machine, pkmap_addr(machine, nr), PTE_SHIFT)
            entry_exchange(where, pfn_pte(pfn, PAGE_KERNEL | machine.paging.nx))
            pkmap.count[nr], pkmap.pfn[nr] = 1, pfn
            u16.array(machine.pkmap_of)[pfn] = nr + 1
            return True
    return False


@kernel("u64(cpu_t*, i64)")
def kmap_high(cpu, pfn):
    """The address of a page of high memory, mapped for all; 0: no address is left, the caller has to wait."""
    machine = machine_of(cpu)
    pkmap = pkmap_t.at(machine.pkmap)
    lock = address_of(pkmap, "lock")
    spin_lock(cpu, lock)
    if u16.array(machine.pkmap_of)[pfn] != 0 or map_new_virtual(cpu, pfn):
        pkmap.count[np.int64(u16.array(machine.pkmap_of)[pfn]) - 1] += 1
    address = page_address_high(machine, pfn)
    spin_unlock(lock)
    return address


@kernel("bool(cpu_t*, i64)")
def kunmap_high(cpu, pfn):
    """One user less; the mapping stays until it is flushed. False: nobody has it mapped."""
    machine = machine_of(cpu)
    pkmap = pkmap_t.at(machine.pkmap)
    lock = address_of(pkmap, "lock")
    spin_lock(cpu, lock)
    nr = np.int64(u16.array(machine.pkmap_of)[pfn]) - 1
    mapped = nr >= 0 and pkmap.count[nr] > 1
    if mapped:
        pkmap.count[nr] -= 1
    spin_unlock(lock)
    return mapped


@kernel("u64(cpu_t*, i64)")
def fixmap_addr(cpu, slot):
    """The address of one of this CPU's slots."""
    return machine_of(cpu).fixaddr_top - (U(cpu.id * KM_MAX_IDX + slot + 1) << PTE_SHIFT)


@kernel("u64(cpu_t*, i64, i64)")
def kmap_atomic_slot(cpu, slot, pfn):
    """Map a page in one of this CPU's slots (__kmap_local_pfn_prot). Nobody else knows the address."""
    machine, address = machine_of(cpu), fixmap_addr(cpu, slot)
    where = kernel_entry_offset(machine, address, PTE_SHIFT)
    entry_exchange(where, pfn_pte(pfn, PAGE_KERNEL | machine.paging.nx))
    return address


@kernel("void(cpu_t*, i64)")
def kunmap_atomic_slot(cpu, slot):
    """Clear a slot; only this CPU has to forget it (kunmap_local_indexed)."""
    address = fixmap_addr(cpu, slot)
    entry_exchange(kernel_entry_offset(machine_of(cpu), address, PTE_SHIFT), U(0))
    tlb_flush_page(cpu, address)
