"""Taking pages out of the cache: Linux's mm/truncate.c, fs/drop_caches.c, and the end of inodes and open files."""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire, store_release
from numaemu.compiler.decorators import callback, hot, kernel
from numaemu.compiler.native import clear_bytes
from numaemu.compiler.pointer import address_of
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.arch.tlb import dec_tlb_flush_pending, inc_tlb_flush_pending, mm_tlb_flush_nested
from numaemu.kernel.core.pool import pool_put
from numaemu.kernel.core.smp import machine_of, relax, spin_lock, spin_unlock, write_lock, write_unlock
from numaemu.kernel.core.xarray import MAX_INDEX, xa_destroy, xa_find
from numaemu.kernel.fs.hugetlbfs import hugetlbfs_evict_inode, hugetlbfs_setattr, is_hugetlbfs
from numaemu.kernel.fs.inode import (
    EFBIG,
    ENOENT,
    I_FREEING,
    I_LIVE,
    destroy_inode,
    extend,
    file_of,
    find_inode,
    igrab,
    inode_of,
    put_inode,
    shrink_extents,
)
from numaemu.kernel.include.mm import PFN_UP, frame_of, offset_in_page, vma_pages
from numaemu.kernel.include.mm_types import PG_dirty, PG_lru, PG_unevictable, PG_writeback, pool_t
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.include.task_io_accounting_ops import task_io_account_cancelled_write
from numaemu.kernel.include.vmstat import DROP_PAGECACHE, count_vm_events
from numaemu.kernel.mm.cache.filemap import MAX_FILE_BYTES, filemap_create_folio, zero_tail
from numaemu.kernel.mm.cache.page_writeback import filemap_write_and_wait_range, folio_cancel_dirty, folio_mark_dirty
from numaemu.kernel.mm.cache.pagemap import clear_shadow_entry, filemap_get_folio, filemap_remove_folio, remove_mapping
from numaemu.kernel.mm.cache.shmem import release_mapping
from numaemu.kernel.mm.cache.shmem_file import shmem_truncate_range, shmem_zero_tail
from numaemu.kernel.mm.fault.mmu_gather import gather_of, tlb_flush_mmu
from numaemu.kernel.mm.fault.rmap import mapping_of, next_vma_of
from numaemu.kernel.mm.fault.zap import unmap_page_range, unmap_shared_range
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.reclaim.lru import folio_lock, folio_test, folio_trylock, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import LRU_DEACTIVATE_FILE, lru_add_drain_all, queue_folio
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import errno

U = np.uint64


@kernel("void(cpu_t*, i64, u64, u64, bool)")
def unmap_mapping_range_vma(cpu, mm_number, start, end, even_cows):
    """unmap_mapping_range for a part of one VMA. Who finds an entry gone meanwhile, in a call of its own task, flushes too."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    gather_of(machine, cpu)[0] = 0
    inc_tlb_flush_pending(mm)
    changed = (
        unmap_page_range(cpu, mm_number, start, end) if even_cows else unmap_shared_range(cpu, mm_number, start, end)
    )
    if changed or mm_tlb_flush_nested(mm):
        tlb_flush_mmu(cpu, mm_number, start, end)
    dec_tlb_flush_pending(mm)


@kernel("void(cpu_t*, i64, i64, i64, bool)")
def unmap_mapping_range(cpu, mapping_number, first, end, even_cows):
    """Take the pages [first, end) of a file or object out of every address space, and private copies with them (even_cows).

    The mapping's lock keeps its VMAs, and so their page tables, where they are.
    """
    machine = machine_of(cpu)
    mapping = mapping_of(machine, mapping_number)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    number = mapping.first_vma
    while number != 0:
        vma = vma_of(machine, number)
        low, high = max(first, vma.pgoff), min(end, vma.pgoff + vma_pages(vma))
        if low < high:
            start, end_here = (
                vma.start + (U(low - vma.pgoff) << U(PAGE_SHIFT)),
                vma.start + (U(high - vma.pgoff) << U(PAGE_SHIFT)),
            )
            unmap_mapping_range_vma(cpu, vma.mm, start, end_here, even_cows)
        number = next_vma_of(mapping, vma)
    spin_unlock(lock)


@kernel("void(cpu_t*, i64, i64)")
def unmap_mapping_pages(cpu, mapping_number, first):
    """Take page `first` of a file and all behind it out of every address space, private copies too (unmap_mapping_range)."""
    unmap_mapping_range(cpu, mapping_number, first, MAX_INDEX, True)


@kernel("void(cpu_t*, i64, i64)")
def truncate_inode_pages(cpu, number, first):
    """Drop page `first` of a file and all behind it from the cache, whatever is in them. Nobody can add any meanwhile."""
    machine = machine_of(cpu)
    inode = inode_of(machine, number)
    mapping, index = mapping_of(machine, inode.mapping), first
    while True:
        index = xa_find(machine, mapping, index, MAX_INDEX)
        if index < 0:
            return
        pfn = filemap_get_folio(cpu, inode.mapping, index)
        if pfn != 0:
            page, tries = page_of(machine, pfn), 0
            folio_lock(cpu, page)
            if page.mapping == inode.mapping and page.index == index:
                while load_acquire(page, "mapcount") > 0:  # forked meanwhile, or just being unmapped
                    unmap_mapping_pages(cpu, inode.mapping, index)
                    tries += 1
                    relax(cpu, tries)
                if folio_cancel_dirty(cpu, pfn):
                    task_io_account_cancelled_write(cpu)
                filemap_remove_folio(cpu, pfn)
            folio_unlock(page)
            put_page(cpu, pfn)
        else:
            clear_shadow_entry(cpu, mapping, index)
        index += 1


@kernel("void(cpu_t*, i64, i64)")
def truncate_pagecache(cpu, number, first):
    """Drop page `first` of a file and all behind it, from address spaces and from the cache.

    A fault that has looked at the file's end before it moved may put its private copy in after the first round: under the
    lock of the page that it copies, so no more once that page is out of the cache. The second round finds it.
    """
    mapping = inode_of(machine_of(cpu), number).mapping
    unmap_mapping_pages(cpu, mapping, first)
    truncate_inode_pages(cpu, number, first)
    unmap_mapping_pages(cpu, mapping, first)


@kernel("i64(cpu_t*, inode_t*, i64)")
def truncate_partial_page(cpu, inode, size):
    """Zero the rest of the page that the new end lies in: 0 or -ENOMEM."""
    machine, offset = machine_of(cpu), offset_in_page(size)
    if offset == 0:
        return 0
    pfn = filemap_create_folio(cpu, inode, size >> PAGE_SHIFT)
    if pfn == 0:
        return -errno.ENOMEM
    page = page_of(machine, pfn)
    folio_lock(cpu, page)
    clear_bytes(frame_of(machine, pfn) + U(offset), PAGE_SIZE - offset)
    folio_mark_dirty(cpu, pfn)
    folio_unlock(page)
    put_page(cpu, pfn)
    return 0


@kernel("void(cpu_t*, i64, i64, i64, bool)")
def shmem_drop_range(cpu, number, first, end, even_cows):
    """Take the pages [first, end) of an object out of all address spaces, and drop them."""
    tries = 0
    while first >= 0:
        unmap_mapping_range(cpu, number, first, end, even_cows)
        first = shmem_truncate_range(cpu, number, first, end)
        tries += 1
        relax(cpu, tries)


@kernel("void(cpu_t*, i64, i64, i64)")
def shmem_punch_hole(cpu, number, first, end):
    """Drop the pages [first, end) of an object whose size stays (the FALLOC_FL_PUNCH_HOLE of shmem_fallocate).

    A tmpfs file's locks keep faults away. Shared memory without a file has none: a fault that has looked a page up maps it
    perhaps when it is dropped already. So the drop is counted, then everything is unmapped again; a fault that finds the
    count changed after it has mapped the page looks again itself (shmem_fault.py).
    """
    machine = machine_of(cpu)
    mapping = mapping_of(machine, number)
    if mapping.host != 0:
        inode = inode_of(machine, mapping.host)
        write_lock(cpu, address_of(inode, "i_rwsem"))
        write_lock(cpu, address_of(inode, "invalidate_lock"))
        shmem_drop_range(cpu, number, first, end, False)
        write_unlock(address_of(inode, "invalidate_lock"))
        write_unlock(address_of(inode, "i_rwsem"))
        return
    shmem_drop_range(cpu, number, first, end, False)
    fetch_add(mapping, "holes", 1)
    unmap_mapping_range(cpu, number, first, end, False)


@kernel("i64(cpu_t*, i64, i64)")
def shmem_setattr(cpu, number, size):
    """truncate(2) of a tmpfs file: 0."""
    inode, first = inode_of(machine_of(cpu), number), PFN_UP(size)
    lock, invalidate = address_of(inode, "i_rwsem"), address_of(inode, "invalidate_lock")
    write_lock(cpu, lock)
    smaller = size < inode.i_size
    store_release(inode, "i_size", size)
    if smaller:
        write_lock(cpu, invalidate)
        shmem_drop_range(cpu, inode.object, first, MAX_INDEX, True)
        shmem_zero_tail(cpu, inode, size)
        write_unlock(invalidate)
    write_unlock(lock)
    return 0


@kernel("i64(cpu_t*, i64, i64)")
def do_truncate(cpu, number, size):
    """truncate(2) of a file that the caller holds: 0 or -errno."""
    inode = inode_of(machine_of(cpu), number)
    if is_hugetlbfs(machine_of(cpu), inode):
        return hugetlbfs_setattr(cpu, number, size)
    if inode.object != 0 and size <= MAX_FILE_BYTES:
        return shmem_setattr(cpu, number, size)
    lock, invalidate = address_of(inode, "i_rwsem"), address_of(inode, "invalidate_lock")
    pages, error = PFN_UP(size), 0
    if size > MAX_FILE_BYTES:
        return -EFBIG
    write_lock(cpu, lock)
    if size >= inode.i_size:
        error = extend(cpu, inode, pages, True)
        if error == 0:
            zero_tail(cpu, inode)
            store_release(inode, "i_size", size)
    else:
        error = truncate_partial_page(cpu, inode, size)
        if error == 0:
            store_release(inode, "i_size", size)
            write_lock(cpu, invalidate)
            truncate_pagecache(cpu, number, pages)
            inode.seed_bytes = min(inode.seed_bytes, size)
            shrink_extents(cpu, inode, pages)
            write_unlock(invalidate)
    write_unlock(lock)
    return error


# -- the end of inodes and open files ------------------------------------------------------------------------


@kernel("void(cpu_t*, i64)")
def evict_inode(cpu, number):
    """A file without a name and without users: its pages, its place on the disk, its place in the table."""
    machine = machine_of(cpu)
    inode = inode_of(machine, number)
    if is_hugetlbfs(machine, inode):
        hugetlbfs_evict_inode(cpu, inode.object)
    elif inode.object != 0:
        release_mapping(cpu, inode.object)
    truncate_inode_pages(cpu, number, 0)
    xa_destroy(cpu, mapping_of(machine, inode.mapping))
    shrink_extents(cpu, inode, 0)
    destroy_inode(cpu, number)


@kernel("void(cpu_t*, i64)")
def iput(cpu, number):
    """Let go of an inode."""
    if put_inode(cpu, number):
        evict_inode(cpu, number)


@callback("u64(u64, u64, u64)")
def iput_from_below(cpu_address, number, _c):
    """iput, for the flusher."""
    iput(cpu_t.at(cpu_address), np.int64(number))
    return U(0)


@kernel("void(cpu_t*, i64)")
def fput(cpu, number):
    """One user of an open file less: a descriptor, a VMA, a system call."""
    machine = machine_of(cpu)
    file = file_of(machine, number)
    if fetch_add(file, "count", -1) == 1:
        inode = file.inode
        pool_put(cpu, machine.file_pool, number)
        iput(cpu, inode)


@kernel("i64(cpu_t*, u64)")
def do_unlink(cpu, name):
    """unlink(2): 0 or -ENOENT. The file goes with its last user."""
    machine = machine_of(cpu)
    lock = address_of(machine, "inode_lock")
    spin_lock(cpu, lock)
    number, last = find_inode(machine, name), False
    if number != 0:
        inode = inode_of(machine, number)
        inode.nlink -= 1
        last = inode.count == 0
        if last:
            inode.state = I_FREEING
    spin_unlock(lock)
    if last:
        evict_inode(cpu, number)
    return 0 if number != 0 else -ENOENT


# -- sync and drop_caches ------------------------------------------------------------------------------------


@kernel("i64(cpu_t*)")
def ksys_sync(cpu):
    """sync(2): write every dirty page of every file; how many."""
    machine, written = machine_of(cpu), 0
    for number in range(1, pool_t.at(machine.inode_pool).used + 1):
        inode = inode_of(machine, number)
        if inode.state == I_LIVE and load_acquire(inode, "nr_dirty") > 0 and igrab(cpu, number):
            written += filemap_write_and_wait_range(cpu, number, 0, MAX_INDEX)
            iput(cpu, number)
    return written


@hot
def mapping_evict_folio(cpu, inode, pfn, index):
    """Drop a page that is clean and that nobody uses, if nobody holds its lock; True if it has gone."""
    page = page_of(machine_of(cpu), pfn)
    if folio_test(page, PG_dirty | PG_writeback) or load_acquire(page, "mapcount") > 0 or not folio_trylock(page):
        return False
    gone = page.mapping == inode.mapping and page.index == index and remove_mapping(cpu, pfn, U(0))
    folio_unlock(page)
    return gone


@kernel("i64(cpu_t*, i64, i64, i64)")
def invalidate_mapping_pages(cpu, number, start, end):
    """Drop the pages [start, end) of a file that the caller holds, as far as they are clean and unused: how many, or -1 if
    a page that waits in a CPU's batch could not be dropped.
    """
    machine, index, dropped, failed = machine_of(cpu), start, 0, False
    inode = inode_of(machine, number)
    mapping = mapping_of(machine, inode.mapping)
    while True:
        index = xa_find(machine, mapping, index, end)
        if index < 0:
            return -1 if failed else dropped
        pfn = filemap_get_folio(cpu, inode.mapping, index)
        if pfn != 0:
            if mapping_evict_folio(cpu, inode, pfn, index):
                dropped += 1
            elif not folio_test(page_of(machine, pfn), PG_unevictable):
                failed |= not folio_test(page_of(machine, pfn), PG_lru)
                queue_folio(cpu, pfn, LRU_DEACTIVATE_FILE)  # it is of no more interest
            put_page(cpu, pfn)
        else:
            clear_shadow_entry(cpu, mapping, index)
        index += 1


@kernel("i64(cpu_t*)")
def drop_pagecache(cpu):
    """Drop what can be dropped of every file; pages (drop_pagecache_sb for each file)."""
    machine, dropped = machine_of(cpu), 0
    lru_add_drain_all(cpu)
    for number in range(1, pool_t.at(machine.inode_pool).used + 1):
        inode = inode_of(machine, number)
        if inode.state == I_LIVE and mapping_of(machine, inode.mapping).root != U(0) and igrab(cpu, number):
            dropped += max(invalidate_mapping_pages(cpu, number, 0, MAX_INDEX), 0)
            iput(cpu, number)
    count_vm_events(machine, cpu.id, DROP_PAGECACHE, 1)
    return dropped
