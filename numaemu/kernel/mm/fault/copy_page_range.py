"""A child's page tables: the copy_page_range part of Linux's mm/memory.c."""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import kernel
from numaemu.hardware.paging import _PAGE_RW
from numaemu.kernel.arch.pgalloc import huge_entry_offset, pte_alloc
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    _SWP_EXCLUSIVE,
    is_migration_entry,
    is_swap_entry,
    mm_of,
    pmd_addr_end,
    pmd_size,
    pte_offset,
    pte_pfn,
    pte_present,
    pte_to_swp_entry,
    ptep_cmpxchg,
    ptep_get,
    ptep_step,
    set_pte,
    skip_missing,
)
from numaemu.kernel.core.smp import machine_of, relax
from numaemu.kernel.include.mm_types import (
    MM_SWAPENTS,
    VM_FAULT_OK,
    VM_FAULT_OOM,
    VM_HUGETLB,
    VM_SHARED,
    PG_anon_exclusive,
)
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.fault.rmap import folio_dup_rmap, rss_counter
from numaemu.kernel.mm.huge.huge_memory import FALLBACK, copy_huge_pmd
from numaemu.kernel.mm.huge.hugetlb_fault import copy_hugetlb_page_range
from numaemu.kernel.mm.page_alloc.page_alloc import put_page, try_get_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_test
from numaemu.kernel.mm.space.vma import lock_families, unlock_families
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.kernel.mm.swap.swapfile import free_swap_and_cache, swap_duplicate
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64


@kernel("bool(machine_t*, cpu_t*, mm_t*, u64, u64, u64)")
def copy_swap_pte(machine, cpu, child, source, target, pte):
    """Share a swapped-out page with the child (copy_nonpresent_pte). False: look again."""
    entry = pte_to_swp_entry(pte)
    if not swap_duplicate(cpu, entry, 1):
        return False
    shared = pte & ~_SWP_EXCLUSIVE
    if not ptep_cmpxchg(source, pte, shared):
        free_swap_and_cache(cpu, entry)
        return False
    fetch_add(child.rss, MM_SWAPENTS, 1)
    cpu.clock_base_ns += machine.fork_entry_ns
    set_pte(target, shared)
    return True


@kernel("bool(machine_t*, cpu_t*, mm_t*, u64, u64)")
def copy_present_pte(machine, cpu, child, source, target):
    """Share one page with the child: both lose write permission. False: look again.

    The reference comes first, then a second look at the entry: migration may have moved the page in between.
    """
    pte = ptep_get(source)
    if is_swap_entry(pte):
        return copy_swap_pte(machine, cpu, child, source, target, pte)
    if is_migration_entry(pte):
        return False
    if not pte_present(pte):
        return True
    copy = pte & ~_PAGE_RW
    if copy != pte and not ptep_cmpxchg(source, pte, copy):
        return False
    if pte & _PAGE_SPECIAL == U(0):
        page = page_of(machine, pte_pfn(pte))
        if not try_get_page(page):
            return False
        if pte_pfn(ptep_get(source)) != pte_pfn(pte) or not pte_present(ptep_get(source)):
            put_page(cpu, pte_pfn(pte))
            return False
        if folio_test(page, PG_anon_exclusive):
            folio_clear(page, PG_anon_exclusive)
        folio_dup_rmap(machine, cpu, pte_pfn(pte))
        fetch_add(child.rss, rss_counter(page), 1)
    cpu.clock_base_ns += machine.fork_entry_ns
    set_pte(target, copy)  # as dirty as it was: the other entry may go first, and its mark with it
    return True


@kernel("i64(cpu_t*, mm_t*, vma_t*, u64, u64, i64)")
def copy_ptes(cpu, child, vma, source, target, n):
    """Share the pages of n entries with the child; how many came before one that changes, or is being migrated.

    Under the families' locks, as the walks that take entries away: reclaim writes into a swap entry that the page was exclusive,
    which it no longer is once we are here; truncation comes to the child after its parent, and must find what is copied.
    """
    machine, done = machine_of(cpu), 0
    step = ptep_step(machine)
    lock_families(cpu, vma)
    while done < n and copy_present_pte(machine, cpu, child, source, target):
        source, target, done = source + step, target + step, done + 1
    unlock_families(machine, vma)
    return done


@kernel("void(cpu_t*, mm_t*, vma_t*, u64, u64, i64)")
def copy_pte_range(cpu, child, vma, source, target, n):
    """Share the pages of n entries of one table with the child."""
    done, tries, step = 0, 0, ptep_step(machine_of(cpu))
    while done < n:
        done += copy_ptes(cpu, child, vma, source + U(done) * step, target + U(done) * step, n - done)
        if done < n:
            tries += 1
            relax(cpu, tries)


@kernel("i64(cpu_t*, i64, i64, i64)")
def copy_page_range(cpu, parent_number, child_number, vma_number):
    """Share a VMA's pages with a child's page tables; 0 or VM_FAULT_OOM. The caller flushes the parent.

    Entries of a shared object, or of a file of which nothing is private, are not copied (vma_needs_copy): the child's
    faults find the pages.
    """
    machine = machine_of(cpu)
    parent, child = mm_of(machine, parent_number), mm_of(machine, child_number)
    vma = vma_of(machine, vma_number)
    if vma.flags & VM_SHARED or (vma.file != 0 and vma.mapping == 0):
        return VM_FAULT_OK
    if vma.flags & VM_HUGETLB:
        return VM_FAULT_OK if copy_hugetlb_page_range(cpu, parent, child, vma) else VM_FAULT_OOM
    address, step = vma.start, ptep_step(machine)
    while address < vma.end:
        source = pte_offset(machine, parent, address)
        if source == U(0):
            where, code = huge_entry_offset(machine, parent, address), FALLBACK
            if where != U(0):
                code = copy_huge_pmd(cpu, parent_number, child_number, address, where)
                if code == VM_FAULT_OOM:
                    return VM_FAULT_OOM
            address = address + pmd_size(machine) if code == VM_FAULT_OK else skip_missing(machine, parent, address)
            continue
        table_end = pmd_addr_end(machine, address, vma.end)
        while address < table_end and ptep_get(source) == U(0):
            address, source = address + U(PAGE_SIZE), source + step
        if address < table_end:
            target = pte_alloc(cpu, child, address)
            if target == U(0):
                return VM_FAULT_OOM
            copy_pte_range(cpu, child, vma, source, target, np.int64((table_end - address) >> U(PAGE_SHIFT)))
            address = table_end
    return VM_FAULT_OK
