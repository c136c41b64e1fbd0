"""Faults in mappings of files: the part of Linux's mm/memory.c around do_fault.

An entry for a page of a file is made under the page's lock, so truncation and writing back, which hold it too, either
see the entry or come first. A private mapping shows the cache's page until it is written to; a shared one is writable
only while its page is dirty.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_PRESENT, _PAGE_RW, _PAGE_USER
from numaemu.kernel.arch.pgtable import pfn_pte, pmd_addr_end, pte_pfn, ptep_cmpxchg, ptep_get, ptep_step, vm_page_nx
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.fs.inode import file_of, i_pages, inode_of
from numaemu.kernel.include.gfp import GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.mm import linear_page_index
from numaemu.kernel.include.mm_types import (
    FAULT_AROUND_BYTES,
    MM_ANONPAGES,
    MM_FILEPAGES,
    VM_FAULT_MAJOR,
    VM_FAULT_OK,
    VM_FAULT_OOM,
    VM_LOCKED,
    VM_SHARED,
    PG_anon_exclusive,
    PG_locked,
    PG_mlocked,
    PG_readahead,
    PG_uptodate,
    PG_workingset,
)
from numaemu.kernel.include.mmzone import copy_highpage, page_of
from numaemu.kernel.mm.cache.filemap import MAJOR, WAITED, filemap_fault
from numaemu.kernel.mm.cache.page_writeback import balance_dirty_pages_ratelimited, folio_mark_dirty
from numaemu.kernel.mm.cache.pagemap import create_empty_buffers, filemap_get_folio, read_is_pending
from numaemu.kernel.mm.fault.rmap import folio_add_anon_rmap, folio_dup_rmap, folio_remove_rmap
from numaemu.kernel.mm.page_alloc.page_alloc import folio_put_refs, get_page, put_page, try_get_page
from numaemu.kernel.mm.reclaim.lru import folio_lock, folio_test, folio_trylock, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import folio_add_new_lru
from numaemu.kernel.mm.space.mempolicy import vma_alloc_folio
from numaemu.kernel.mm.space.mlock import mlock_folio
from numaemu.kernel.mm.space.vma import anon_vma_prepare, munlock_unless_locked
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
AROUND = U(FAULT_AROUND_BYTES)
_READ_ONLY = _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED
_WRITTEN = _READ_ONLY | _PAGE_RW | _PAGE_DIRTY


@kernel("bool(cpu_t*, mm_t*, vma_t*, i64, u64, u64)")
def set_file_pte(cpu, mm, vma, pfn, ptep, bits):
    """Map a locked page of a file unless another thread was faster. The entry takes over the caller's reference."""
    machine = machine_of(cpu)
    folio_dup_rmap(machine, cpu, pfn)
    if vma.flags & VM_LOCKED:
        mlock_folio(cpu, pfn)
    if ptep_cmpxchg(ptep, U(0), pfn_pte(pfn, bits | vm_page_nx(machine, vma))):
        fetch_add(mm.rss, MM_FILEPAGES, 1)
        return True
    folio_remove_rmap(machine, cpu, pfn)
    if vma.flags & VM_LOCKED and folio_test(page_of(machine, pfn), PG_mlocked):
        munlock_unless_locked(cpu, pfn)
    put_page(cpu, pfn)
    return False


@hot
def next_uptodate_folio(cpu, inode, index):
    """The page at `index`, locked and with a reference taken, if it may be mapped without waiting; else 0."""
    machine = machine_of(cpu)
    pfn = filemap_get_folio(cpu, inode.mapping, index)
    if pfn == 0:
        return 0
    page = page_of(machine, pfn)
    if (
        folio_test(page, PG_uptodate)
        and not folio_test(page, PG_readahead | PG_locked)
        and not read_is_pending(cpu, page)
    ):
        if folio_trylock(page):
            if page.mapping == inode.mapping and page.index == index and index < i_pages(inode):
                return pfn
            folio_unlock(page)
    put_page(cpu, pfn)
    return 0


@kernel("void(cpu_t*, mm_t*, vma_t*, u64, u64)")
def filemap_map_pages(cpu, mm, vma, address, ptep):
    """Map what is in the cache already of the 64 KiB around a read fault (do_fault_around and filemap_map_pages).

    Where a VMA begins inside them they are counted from there. What is there speaks for reading ahead, mapped or not.
    """
    machine = machine_of(cpu)
    file = file_of(machine, vma.file)
    inode, hits = inode_of(machine, file.inode), 0
    near = max(address & ~(AROUND - U(1)), vma.start)
    end = pmd_addr_end(machine, address, min(near + AROUND, vma.end))
    step = ptep_step(machine)
    entry = ptep - ((address - near) >> U(PAGE_SHIFT)) * step
    while near < end:
        pfn = next_uptodate_folio(cpu, inode, linear_page_index(vma, near))
        if pfn != 0:
            page = page_of(machine, pfn)
            if not folio_test(page, PG_workingset):
                hits += 1
            if ptep_get(entry) == U(0):
                set_file_pte(cpu, mm, vma, pfn, entry, _READ_ONLY)
                folio_unlock(page)
            else:
                folio_unlock(page)
                put_page(cpu, pfn)
        near += U(PAGE_SIZE)
        entry += step
    file.mmap_miss = max(file.mmap_miss - hits, 0)


@hot
def fault_code(pfn):
    return VM_FAULT_MAJOR if pfn & MAJOR else VM_FAULT_OK


@hot
def file_holds(machine, vma, pfn, index):
    """True if a locked page is that at `index` of the file that a VMA maps, and inside it."""
    page = page_of(machine, pfn)
    inode = inode_of(machine, file_of(machine, vma.file).inode)
    return page.mapping == inode.mapping and page.index == index and index < i_pages(inode)


@kernel("i64(cpu_t*, mm_t*, vma_t*, u64, u64)")
def do_read_fault(cpu, mm, vma, address, ptep):
    """The page of the file, not writable.

    Who has waited for the disk tries again: the other pages of the request are there now, too, and are mapped with it.
    """
    machine = machine_of(cpu)
    filemap_map_pages(cpu, mm, vma, address, ptep)
    if ptep_get(ptep) != U(0):
        return VM_FAULT_OK
    found = filemap_fault(cpu, vma, linear_page_index(vma, address))
    if found < 0:
        return -found
    pfn = found & (MAJOR - 1)
    if found & WAITED:
        folio_unlock(page_of(machine, pfn))
        filemap_map_pages(cpu, mm, vma, address, ptep)
        if ptep_get(ptep) != U(0):
            put_page(cpu, pfn)
            return fault_code(found)
        folio_lock(cpu, page_of(machine, pfn))
        if not file_holds(machine, vma, pfn, linear_page_index(vma, address)):
            folio_unlock(page_of(machine, pfn))  # truncated or reclaimed meanwhile: the access faults again
            put_page(cpu, pfn)
            return fault_code(found)
    set_file_pte(cpu, mm, vma, pfn, ptep, _READ_ONLY)
    folio_unlock(page_of(machine, pfn))
    return fault_code(found)


@kernel("void(cpu_t*, mm_t*, vma_t*, u64, u64, i64, i64)")
def finish_cow_fault(cpu, mm, vma, address, ptep, new, pfn):
    """Map the new page `new` with the contents of page `pfn`, to which the caller has a reference."""
    machine = machine_of(cpu)
    copy = page_of(machine, new)
    copy_highpage(machine, cpu, new, pfn)
    folio_add_anon_rmap(machine, cpu, copy, new, vma, address)
    copy.flags |= U(PG_anon_exclusive)
    get_page(copy)  # for its way to the LRU list; atomically, as a late try_get_page may come between
    if ptep_cmpxchg(ptep, U(0), pfn_pte(new, _WRITTEN | vm_page_nx(machine, vma))):
        folio_add_new_lru(cpu, new)
        fetch_add(mm.rss, MM_ANONPAGES, 1)
    else:
        folio_remove_rmap(machine, cpu, new)  # another thread was faster
        folio_put_refs(cpu, new, 2)


@kernel("i64(cpu_t*, mm_t*, i64, u64, u64)")
def do_cow_fault(cpu, mm, vma_number, address, ptep):
    """A write to a private mapping of a page that is not mapped yet: a copy of it."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    if load_acquire(vma, "mapping") == 0 and not anon_vma_prepare(cpu, vma_number):
        return VM_FAULT_OOM
    new = vma_alloc_folio(cpu, GFP_HIGHUSER_MOVABLE, vma, address)
    if new == 0:
        return VM_FAULT_OOM
    found = filemap_fault(cpu, vma, linear_page_index(vma, address))
    if found < 0:
        put_page(cpu, new)
        return -found
    pfn = found & (MAJOR - 1)
    finish_cow_fault(cpu, mm, vma, address, ptep, new, pfn)
    folio_unlock(page_of(machine, pfn))
    put_page(cpu, pfn)
    return fault_code(found)


@kernel("i64(cpu_t*, mm_t*, vma_t*, u64, u64)")
def do_shared_file_fault(cpu, mm, vma, address, ptep):
    """A write to a shared mapping of a page that is not mapped yet: dirty and writable (do_shared_fault)."""
    machine = machine_of(cpu)
    found = filemap_fault(cpu, vma, linear_page_index(vma, address))
    if found < 0:
        return -found
    pfn = found & (MAJOR - 1)
    page = page_of(machine, pfn)
    if not create_empty_buffers(cpu, page):
        folio_unlock(page)
        put_page(cpu, pfn)
        return VM_FAULT_OOM
    folio_mark_dirty(cpu, pfn)
    set_file_pte(cpu, mm, vma, pfn, ptep, _WRITTEN)
    folio_unlock(page)
    balance_dirty_pages_ratelimited(cpu)
    return fault_code(found)


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool, u64)")
def do_fault(cpu, mm, vma_number, address, write, ptep):
    """A fault in a mapping of a file, where nothing is mapped."""
    vma = vma_of(machine_of(cpu), vma_number)
    if not write:
        return do_read_fault(cpu, mm, vma, address, ptep)
    if vma.flags & VM_SHARED:
        return do_shared_file_fault(cpu, mm, vma, address, ptep)
    return do_cow_fault(cpu, mm, vma_number, address, ptep)


@kernel("i64(cpu_t*, vma_t*, u64, u64, u64)")
def wp_page_shared(cpu, vma, address, ptep, pte):
    """A write through a shared mapping whose page is clean: it becomes dirty, the entry writable (page_mkwrite)."""
    machine, pfn = machine_of(cpu), pte_pfn(pte)
    page = page_of(machine, pfn)
    if not try_get_page(page):
        return VM_FAULT_OK  # it has just gone: the access faults again
    if ptep_get(ptep) != pte:  # it may be another page by now, which is not ours to lock
        put_page(cpu, pfn)
        return VM_FAULT_OK
    folio_lock(cpu, page)
    if not create_empty_buffers(cpu, page):
        folio_unlock(page)
        put_page(cpu, pfn)
        return VM_FAULT_OOM
    if (
        page.mapping == vma.i_mapping
        and page.index == linear_page_index(vma, address)
        and pte_pfn(ptep_get(ptep)) == pfn
    ):
        folio_mark_dirty(cpu, pfn)
        ptep_cmpxchg(ptep, pte, pte | _PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED)
    folio_unlock(page)
    put_page(cpu, pfn)
    balance_dirty_pages_ratelimited(cpu)
    return VM_FAULT_OK
