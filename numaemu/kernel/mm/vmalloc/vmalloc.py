"""Memory that is contiguous in virtual addresses only, mapped page by page: Linux's mm/vmalloc.c.

A guard page that is never mapped ends every area, so that who runs over the end of one meets a page fault (an oops).
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import kernel
from numaemu.hardware.paging import _PAGE_PSE, PTE_PFN_MASK, PTE_SHIFT, entry_exchange, entry_load
from numaemu.kernel.arch.init_mm import PAGE_KERNEL, kernel_entry_offset, kernel_pte, pte_alloc_kernel
from numaemu.kernel.arch.pgtable import pfn_pte, pte_pfn, pte_present
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import __GFP_DMA, __GFP_DMA32, __GFP_HIGHMEM, __GFP_NOWARN
from numaemu.kernel.include.mm import PFN_UP
from numaemu.kernel.mm.page_alloc.page_alloc import __free_pages, alloc_pages
from numaemu.kernel.mm.page_alloc.slowpath import fatal_signal_pending
from numaemu.kernel.mm.space.mempolicy import NO_INTERLEAVE_INDEX, alloc_pages_mpol, current_task
from numaemu.kernel.mm.vmalloc.vmap_area import (
    VM_ALLOC,
    VM_MAP,
    alloc_vmap_area,
    find_unlink_vmap_area,
    free_vmap_area_noflush,
    vmap_area_of,
    vmap_of,
)
from numaemu.spec.param import PAGE_SIZE

U = np.uint64


@kernel("i64(cpu_t*, i64, i64)")
def alloc_area_page(cpu, gfp, nid):
    """A page for an area: from node `nid`, or by the task's policy (-1)."""
    if nid >= 0 or cpu.task == 0:
        return alloc_pages(cpu, gfp, 0, cpu.node if nid < 0 else nid, machine_of(cpu).node_mask)
    return alloc_pages_mpol(cpu, gfp, 0, current_task(cpu).policy, NO_INTERLEAVE_INDEX)


@kernel("bool(cpu_t*, u64, i64)")
def vmap_page(cpu, address, pfn):
    """Map one page at an address of the kernel; False: no memory for a table. Nothing was mapped there."""
    ptep = pte_alloc_kernel(cpu, address)
    if ptep == U(0):
        return False
    entry_exchange(ptep, pfn_pte(pfn, PAGE_KERNEL | machine_of(cpu).paging.nx))
    return True


@kernel("void(cpu_t*, i64, bool)")
def remove_vm_area(cpu, number, free):
    """Unmap the pages of an area that is out of use, and free them if they are its own; then it waits for a purge."""
    machine = machine_of(cpu)
    area = vmap_area_of(machine, number)
    for i in range(area.nr_pages):
        ptep = kernel_entry_offset(machine, area.start + (U(i) << PTE_SHIFT), PTE_SHIFT)
        pte = entry_exchange(ptep, U(0))
        if free:
            __free_pages(cpu, pte_pfn(pte), 0)
    if free:
        fetch_add(vmap_of(machine), "nr_vmalloc_pages", -area.nr_pages)
    area.nr_pages = 0
    free_vmap_area_noflush(cpu, number)


@kernel("bool(cpu_t*, i64, i64, i64, i64)")
def vm_area_alloc_pages(cpu, number, pages, gfp, nid):
    """Give an area its pages, one by one; False: some could not be had."""
    machine = machine_of(cpu)
    area = vmap_area_of(machine, number)
    for i in range(pages):
        pfn = 0 if fatal_signal_pending(cpu) else alloc_area_page(cpu, gfp, nid)
        if pfn == 0:
            return False
        if not vmap_page(cpu, area.start + (U(i) << PTE_SHIFT), pfn):
            __free_pages(cpu, pfn, 0)
            return False
        area.nr_pages += 1
        fetch_add(vmap_of(machine), "nr_vmalloc_pages", 1)
    return True


@kernel("u64(cpu_t*, i64, u64, i64, i64, i64)")
def vmalloc_node_range(cpu, size, align, gfp, nid, caller):
    """`size` bytes of memory in whole pages: their address, or 0. Mirrors __vmalloc_node_range_noprof."""
    machine = machine_of(cpu)
    pages = PFN_UP(size)
    if size <= 0 or pages > machine.total_ram_pages:
        return U(0)
    if gfp & (__GFP_DMA | __GFP_DMA32) == 0:
        gfp |= __GFP_HIGHMEM
    number = alloc_vmap_area(cpu, (U(pages) << PTE_SHIFT) + U(PAGE_SIZE), align, VM_ALLOC, caller)
    if number == 0:
        return U(0)
    start = vmap_area_of(machine, number).start
    if not vm_area_alloc_pages(cpu, number, pages, gfp | __GFP_NOWARN, nid):
        find_unlink_vmap_area(cpu, start)
        remove_vm_area(cpu, number, True)
        return U(0)
    return start


@kernel("u64(cpu_t*, i64*, i64, i64)")
def vmap(cpu, pfns, count, caller):
    """Map pages that somebody has at one range of addresses: the first one, or 0."""
    if count <= 0 or count > machine_of(cpu).total_ram_pages:
        return U(0)
    number = alloc_vmap_area(cpu, (U(count) << PTE_SHIFT) + U(PAGE_SIZE), U(PAGE_SIZE), VM_MAP, caller)
    if number == 0:
        return U(0)
    area = vmap_area_of(machine_of(cpu), number)
    for i in range(count):
        if not vmap_page(cpu, area.start + (U(i) << PTE_SHIFT), pfns[i]):
            find_unlink_vmap_area(cpu, area.start)
            remove_vm_area(cpu, number, False)
            return U(0)
        area.nr_pages += 1
    return area.start


@kernel("bool(cpu_t*, u64)")
def vunmap(cpu, address):
    """Unmap an area; its pages stay whose they are. False: no area begins there."""
    number = find_unlink_vmap_area(cpu, address)
    if number != 0:
        remove_vm_area(cpu, number, False)
    return number != 0


@kernel("bool(cpu_t*, u64)")
def vfree(cpu, address):
    """Unmap an area and free its pages, which vmalloc gave it. False: no area begins there."""
    number = find_unlink_vmap_area(cpu, address)
    if number != 0:
        remove_vm_area(cpu, number, vmap_area_of(machine_of(cpu), number).flags & VM_ALLOC != 0)
    return number != 0


@kernel("i64(machine_t*, u64)")
def vmalloc_to_pfn(machine, address):
    """The page behind an address that vmalloc or vmap gave, 0: there is none."""
    pte = kernel_pte(machine, address)
    return pte_pfn(pte) if pte_present(pte) else 0


@kernel("i64(machine_t*, u64)")
def slow_virt_to_pfn(machine, address):
    """The page behind any address of the kernel, through entries of all sizes; 0: nothing is mapped (slow_virt_to_phys)."""
    level = machine.paging.pgdir_shift
    while True:
        where = kernel_entry_offset(machine, address, level)
        pte = entry_load(where) if where != U(0) else U(0)
        if not pte_present(pte):
            return 0
        if level == PTE_SHIFT or pte & _PAGE_PSE != U(0):
            inside = (address & ((U(1) << level) - U(1))) >> PTE_SHIFT
            return np.int64(((pte & PTE_PFN_MASK) >> PTE_SHIFT) + inside)
        level -= machine.paging.table_bits
