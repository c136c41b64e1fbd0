"""Making entries inaccessible, so that the next access to their pages takes a hinting fault: change_prot_numa of Linux's
mm/mempolicy.c, with the MM_CP_PROT_NUMA parts of mm/mprotect.c and mm/huge_memory.c.

Such an entry is present, but no user may use it (no U/S bit), nor write (Linux: PAGE_NONE). What it could do before is found out anew
by the fault. Under the mmap_lock held for reading: each entry changes by compare-exchange.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import _PAGE_RW, _PAGE_USER, entry_cmpxchg, entry_load
from numaemu.kernel.arch.pgalloc import covers_huge, huge_entry_offset, pmd_lock, pmd_trans_huge, pmd_unlock
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    mm_of,
    pmd_addr_end,
    pmd_size,
    pte_offset,
    pte_pfn,
    pte_present,
    ptep_cmpxchg,
    ptep_get,
    ptep_step,
    skip_missing,
)
from numaemu.kernel.arch.tlb import dec_tlb_flush_pending, flush_tlb_mm_range, inc_tlb_flush_pending
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import VM_ACCESS_FLAGS, VM_MAYWRITE, VM_SHARED, PG_dirty
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NUMA_HUGE_PTE_UPDATES, NUMA_PTE_UPDATES, count_vm_events
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages
from numaemu.kernel.mm.huge.split import is_huge_zero
from numaemu.kernel.mm.numa.cpupid import folio_xchg_access_time
from numaemu.kernel.mm.numa.memory_tiers import (
    NUMA_BALANCING_NORMAL,
    NUMA_NO_NODE,
    folio_use_access_time,
    node_is_toptier,
)
from numaemu.kernel.mm.reclaim.lru import folio_is_file_lru, folio_test
from numaemu.mmu import clock_ns
from numaemu.spec.param import PAGE_SIZE

U = np.uint64
NS_PER_MS = 1_000_000


@hot
def pte_protnone(pte):
    """True for a present entry that no user may use. In a VMA that allows access it is a hint."""
    return pte_present(pte) and pte & _PAGE_USER == U(0)


@hot
def vma_is_accessible(vma):
    return vma.flags & VM_ACCESS_FLAGS != 0


@hot
def jiffies_ms(cpu):
    """Emulated time in ms, where Linux says jiffies_to_msecs(jiffies)."""
    return clock_ns(cpu) // NS_PER_MS


@kernel("bool(cpu_t*, vma_t*, u64, i64)")
def passed_over(cpu, vma, pte, target_node):
    """True for a present entry that gets no hint; the page of another in a slow tier gets the time."""
    machine = machine_of(cpu)
    if pte & _PAGE_USER == U(0) or pte & _PAGE_SPECIAL != U(0):
        return True
    page, nid = page_of(machine, pte_pfn(pte)), page_to_nid(machine, pte_pfn(pte))
    if vma.flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE and load_acquire(page, "mapcount") > 1:
        return True  # shared copy on write
    if folio_is_file_lru(page) and folio_test(page, PG_dirty):
        return True  # cannot be moved without waiting
    if nid == target_node:
        return True
    if machine.numa_balancing & NUMA_BALANCING_NORMAL == 0 and node_is_toptier(machine, nid):
        return True
    if folio_use_access_time(machine, nid):
        folio_xchg_access_time(page, jiffies_ms(cpu))
    return False


@kernel("i64(cpu_t*, vma_t*, u64, u64, u64, i64)")
def change_pte_range(cpu, vma, address, end, ptep, target_node):
    """Hint the entries of [address, end), all in one table, whose first is at `ptep`: how many."""
    machine, updated, seen = machine_of(cpu), 0, 0
    step = ptep_step(machine)
    while address < end:
        pte = ptep_get(ptep)
        if pte_present(pte) and not passed_over(cpu, vma, pte, target_node):
            if not ptep_cmpxchg(ptep, pte, pte & ~(_PAGE_USER | _PAGE_RW)):
                continue
            updated += 1
        seen += 1 if pte_present(pte) else 0
        address, ptep = address + U(PAGE_SIZE), ptep + step
    cpu.clock_base_ns += seen * machine.numa_scan_ns
    return updated


@kernel("i64(cpu_t*, u64)")
def change_huge_pmd_numa(cpu, where):
    """Hint a huge entry: its pages, or 0."""
    machine, done = machine_of(cpu), 0
    pmd_lock(cpu, where)
    entry = entry_load(where)
    while pmd_trans_huge(entry) and entry & _PAGE_USER != U(0) and not is_huge_zero(entry) and done == 0:
        nid = page_to_nid(machine, pte_pfn(entry))
        if machine.numa_balancing & NUMA_BALANCING_NORMAL == 0 and node_is_toptier(machine, nid):
            break
        if folio_use_access_time(machine, nid):
            folio_xchg_access_time(page_of(machine, pte_pfn(entry)), jiffies_ms(cpu))
        if entry_cmpxchg(where, entry, entry & ~(_PAGE_USER | _PAGE_RW)) == entry:
            done = hpage_pages(machine)
        entry = entry_load(where)
    pmd_unlock(machine, where)
    cpu.clock_base_ns += machine.numa_scan_ns
    return done


@kernel("i64(cpu_t*, vma_t*, u64, u64)")
def change_prot_numa(cpu, vma, start, end):
    """Hint what is mapped in [start, end) of a VMA: how many small pages. Every CPU has forgotten them when it returns.

    A task alone in its address space gets none for what is on its own node.
    """
    machine = machine_of(cpu)
    mm, address, updated, huge = mm_of(machine, vma.mm), start, 0, 0
    target_node = cpu.node if vma.flags & VM_SHARED == 0 and load_acquire(mm, "users") == 1 else NUMA_NO_NODE
    inc_tlb_flush_pending(mm)
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep != U(0):
            until = pmd_addr_end(machine, address, end)
            updated += change_pte_range(cpu, vma, address, until, ptep, target_node)
            address = until
            continue
        where = huge_entry_offset(machine, mm, address)
        if where != U(0):
            if covers_huge(machine, address, end) and change_huge_pmd_numa(cpu, where) > 0:
                updated += hpage_pages(machine)
                huge += 1
            address = (address | (pmd_size(machine) - U(1))) + U(1)
        else:
            address = skip_missing(machine, mm, address)
    if updated > 0:
        flush_tlb_mm_range(cpu, vma.mm, start, end)
        count_vm_events(machine, cpu.id, NUMA_PTE_UPDATES, updated)
        count_vm_events(machine, cpu.id, NUMA_HUGE_PTE_UPDATES, huge)
    dec_tlb_flush_pending(mm)
    return updated
