"""Faults in mappings of shared memory and of tmpfs files: shmem_fault of Linux's mm/shmem.c, and what mm/memory.c does then.

A private mapping of a tmpfs file shows the file's page, not writable, until it is written to.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_PRESENT, _PAGE_RW, _PAGE_USER
from numaemu.kernel.arch.pgtable import pfn_pte, pte_pfn, pte_present, ptep_cmpxchg, ptep_get, ptep_step, vm_page_nx
from numaemu.kernel.arch.tlb import flush_tlb_mm_range
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock
from numaemu.kernel.core.xarray import page_entry, xa_load
from numaemu.kernel.fs.inode import file_of, i_pages, inode_of
from numaemu.kernel.include.gfp import GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.mm import linear_page_index
from numaemu.kernel.include.mm_types import (
    MM_SHMEMPAGES,
    VM_FAULT_MAJOR,
    VM_FAULT_OK,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_LOCKED,
    VM_SHARED,
    VM_WRITE,
    PG_dirty,
    PG_mlocked,
)
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.include.vmstat import PGMAJFAULT, count_vm_events
from numaemu.kernel.mm.cache.shmem import shmem_find_folio, shmem_get_folio_gfp, shmem_object
from numaemu.kernel.mm.fault.do_fault import AROUND, finish_cow_fault
from numaemu.kernel.mm.fault.rmap import folio_dup_rmap, folio_remove_rmap, mapping_of
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.reclaim.lru import folio_set, folio_test
from numaemu.kernel.mm.space.mempolicy import vma_alloc_folio
from numaemu.kernel.mm.space.mlock import mlock_folio
from numaemu.kernel.mm.space.vma import anon_vma_prepare, munlock_unless_locked
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.kernel.mm.swap.swap_state import SWAP_PFN, SWAP_READ
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
_READ_ONLY = _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED


@kernel("void(cpu_t*, mm_t*, vma_t*, i64, u64, u64)")
def set_shared_pte(cpu, mm, vma, pfn, ptep, dirty):
    """Map a shared object's page unless another thread was faster, writable if the mapping is and shares what is written.

    The entry takes over the caller's reference to the page.
    """
    machine = machine_of(cpu)
    bits = _READ_ONLY | dirty | vm_page_nx(machine, vma)
    if vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED:
        bits |= _PAGE_RW
    folio_dup_rmap(machine, cpu, pfn)
    if vma.flags & VM_LOCKED:
        mlock_folio(cpu, pfn)
    if ptep_cmpxchg(ptep, U(0), pfn_pte(pfn, bits)):
        fetch_add(mm.rss, MM_SHMEMPAGES, 1)
    else:
        folio_remove_rmap(machine, cpu, pfn)
        if vma.flags & VM_LOCKED and folio_test(page_of(machine, pfn), PG_mlocked):
            munlock_unless_locked(cpu, pfn)
        put_page(cpu, pfn)


@kernel("void(cpu_t*, mm_t*, vma_t*, u64, u64)")
def do_fault_around(cpu, mm, vma, address, ptep):
    """A read fault maps what else is there already of the 64 KiB around it. Linux's function and filemap_map_pages."""
    machine = machine_of(cpu)
    start = max(address & ~(AROUND - U(1)), vma.start)
    end = min((address | (AROUND - U(1))) + U(1), vma.end)
    mapping = mapping_of(machine, shmem_object(vma))
    near, step = start, ptep_step(machine)
    entry = ptep - ((address - start) >> U(PAGE_SHIFT)) * step
    while near < end:
        if ptep_get(entry) == U(0):
            pfn = shmem_find_folio(cpu, mapping, linear_page_index(vma, near))
            if pfn != 0:
                set_shared_pte(cpu, mm, vma, pfn, entry, U(0))
        near += U(PAGE_SIZE)
        entry += step


@kernel("void(cpu_t*, mm_t*, vma_t*, u64, u64)")
def unmap_dropped(cpu, mm, vma, address, ptep):
    """Pages have been cut out of a shared object while a fault mapped some around an address: what is no longer its goes."""
    machine = machine_of(cpu)
    start = max(address & ~(AROUND - U(1)), vma.start)
    end = min((address | (AROUND - U(1))) + U(1), vma.end)
    mapping, near, step = mapping_of(machine, shmem_object(vma)), start, ptep_step(machine)
    entry = ptep - ((address - start) >> U(PAGE_SHIFT)) * step
    while near < end:
        pte, index = ptep_get(entry), linear_page_index(vma, near)
        if pte_present(pte) and xa_load(machine, mapping, index) != page_entry(pte_pfn(pte)):
            if not ptep_cmpxchg(entry, pte, U(0)):
                continue
            flush_tlb_mm_range(cpu, vma.mm, near, near + U(PAGE_SIZE))
            if pte & _PAGE_DIRTY != U(0):
                folio_set(page_of(machine, pte_pfn(pte)), PG_dirty)  # it may only have gone to swap
            folio_remove_rmap(machine, cpu, pte_pfn(pte))
            fetch_add(mm.rss, MM_SHMEMPAGES, -1)
            put_page(cpu, pte_pfn(pte))
        near += U(PAGE_SIZE)
        entry += step


@hot
def shmem_fault_code(cpu, answer):
    """Whether the page that shmem_get_folio_gfp has given came from swap."""
    if answer & SWAP_READ == 0:
        return VM_FAULT_OK
    count_vm_events(machine_of(cpu), cpu.id, PGMAJFAULT, 1)
    return VM_FAULT_MAJOR


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool, u64)")
def do_shared_fault(cpu, mm, vma_number, address, write, ptep):
    """Touch of a shared object, or a look at one through a private mapping: its page, allocated by whoever comes first."""
    vma = vma_of(machine_of(cpu), vma_number)
    mapping = mapping_of(machine_of(cpu), shmem_object(vma))
    holes = load_acquire(mapping, "holes")
    answer = shmem_get_folio_gfp(cpu, vma, address)
    if answer <= 0:
        return VM_FAULT_OOM if answer == 0 else VM_FAULT_SIGBUS
    pfn, code = answer & SWAP_PFN, shmem_fault_code(cpu, answer)
    set_shared_pte(cpu, mm, vma, pfn, ptep, _PAGE_DIRTY if write else U(0))
    if not write:
        do_fault_around(cpu, mm, vma, address, ptep)
    if load_acquire(mapping, "holes") != holes:
        unmap_dropped(cpu, mm, vma, address, ptep)
    return code


@kernel("i64(cpu_t*, mm_t*, i64, u64, u64)")
def shmem_cow_fault(cpu, mm, vma_number, address, ptep):
    """A write to a private mapping of a page that is not mapped yet: a copy of the file's page, which is made if need be.

    do_cow_fault for tmpfs. A reference keeps the page's contents where they are, so it need not be locked.
    """
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    if load_acquire(vma, "mapping") == 0 and not anon_vma_prepare(cpu, vma_number):
        return VM_FAULT_OOM
    new = vma_alloc_folio(cpu, GFP_HIGHUSER_MOVABLE, vma, address)
    if new == 0:
        return VM_FAULT_OOM
    answer = shmem_get_folio_gfp(cpu, vma, address)
    if answer <= 0:
        put_page(cpu, new)
        return VM_FAULT_OOM if answer == 0 else VM_FAULT_SIGBUS
    pfn, code = answer & SWAP_PFN, shmem_fault_code(cpu, answer)
    finish_cow_fault(cpu, mm, vma, address, ptep, new, pfn)
    put_page(cpu, pfn)
    return code


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool, u64)")
def shmem_fault(cpu, mm, vma_number, address, write, ptep):
    """Touch of a shared object: not behind its end, which of a tmpfs file cannot change meanwhile, of others never does."""
    machine = machine_of(cpu)
    vma, code = vma_of(machine, vma_number), VM_FAULT_SIGBUS
    index = linear_page_index(vma, address)
    if vma.file == 0:
        inside = index < mapping_of(machine, shmem_object(vma)).size
        return do_shared_fault(cpu, mm, vma_number, address, write, ptep) if inside else code
    inode = inode_of(machine, file_of(machine, vma.file).inode)
    read_lock(cpu, address_of(inode, "invalidate_lock"))
    if index < i_pages(inode):
        if write and vma.flags & VM_SHARED == 0:
            code = shmem_cow_fault(cpu, mm, vma_number, address, ptep)
        else:
            code = do_shared_fault(cpu, mm, vma_number, address, write, ptep)
    read_unlock(address_of(inode, "invalidate_lock"))
    return code
