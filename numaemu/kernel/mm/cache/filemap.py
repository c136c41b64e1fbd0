"""Reading, writing and faulting files in through the page cache: the upper part of Linux's mm/filemap.c."""

import numpy as np

from numaemu.compiler.atomic import store_release
from numaemu.compiler.decorators import kernel
from numaemu.compiler.native import clear_bytes, copy_bytes
from numaemu.compiler.pointer import address_of
from numaemu.kernel.core.psi import psi_memstall_leave, psi_thrashing_start
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock, write_lock, write_unlock
from numaemu.kernel.fs.disk import count_request, io_wait
from numaemu.kernel.fs.inode import extend, file_of, i_pages, inode_of, read_block
from numaemu.kernel.include.gfp import ___GFP_WRITE, GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.mm import PFN_UP, frame_of, offset_in_page
from numaemu.kernel.include.mm_types import (
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_RAND_READ,
    VM_SEQ_READ,
    PG_locked,
    PG_private,
    PG_readahead,
    PG_uptodate,
)
from numaemu.kernel.include.mmzone import charge_copy_buffer, page_of
from numaemu.kernel.include.vmstat import PGMAJFAULT, count_vm_events
from numaemu.kernel.mm.cache.page_writeback import (
    balance_dirty_pages_ratelimited,
    filemap_write_and_wait_range,
    folio_mark_dirty,
)
from numaemu.kernel.mm.cache.pagemap import (
    READ_CPU_BITS,
    create_empty_buffers,
    filemap_add_folio,
    filemap_alloc_folio,
    filemap_get_folio,
    filemap_lock_folio,
    folio_mark_uptodate,
    read_is_pending,
)
from numaemu.kernel.mm.cache.readahead import (
    add_new_folio,
    folio_wait,
    page_cache_async_ra,
    page_cache_ra_around,
    page_cache_sync_ra,
)
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.page_alloc.slowpath import fatal_signal_pending
from numaemu.kernel.mm.reclaim.lru import folio_lock, folio_test, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import folio_mark_accessed
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import errno

U = np.uint64
ENOMEM, EFBIG = errno.ENOMEM, errno.EFBIG
MMAP_LOTSAMISS = 100  # faults that found nothing, less those that did: from there on no read-around
MAX_FILE_BYTES = 1 << 46
MAJOR = 1 << 40  # added to the pfn that filemap_fault answers with: the disk was read
WAITED = 1 << 41  # likewise: a request was started or waited for, so the page's neighbours may be there now


# -- reading -------------------------------------------------------------------------------------------------


@kernel("void(cpu_t*, inode_t*, i64)")
def filemap_read_folio(cpu, inode, pfn):
    """Read one locked page from the disk, and wait for it."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    read_block(cpu, inode, page.index, frame_of(machine, pfn))
    stalled = psi_thrashing_start(cpu, page)
    io_wait(cpu, count_request(cpu, PAGE_SIZE, False))
    psi_memstall_leave(cpu, stalled)
    if cpu.io_defer != 0 and not folio_test(page, PG_private):
        page.private = (cpu.io_until_ns << READ_CPU_BITS) | cpu.id
    folio_mark_uptodate(page)


@kernel("i64(cpu_t*, inode_t*, i64)")
def filemap_create_folio(cpu, inode, index):
    """The page at `index`, read by itself if readahead has not brought it; with a reference taken. 0: no memory."""
    lock = address_of(inode, "invalidate_lock")
    while True:
        pfn = filemap_get_folio(cpu, inode.mapping, index)
        if pfn != 0:
            return pfn
        read_lock(cpu, lock)
        pfn = add_new_folio(cpu, inode, index, GFP_HIGHUSER_MOVABLE)
        if pfn != 0:
            filemap_read_folio(cpu, inode, pfn)
            folio_unlock(page_of(machine_of(cpu), pfn))
            read_unlock(lock)
            return pfn
        there = filemap_get_folio(cpu, inode.mapping, index)
        read_unlock(lock)
        if there == 0:
            return 0
        put_page(cpu, there)


@kernel("i64(cpu_t*, i64, i64, i64)")
def filemap_get_page(cpu, file_number, index, last_index):
    """The page at `index` for a reader up to `last_index`, there and with a reference taken; 0: no memory.

    Mirrors filemap_get_pages, page by page.
    """
    machine = machine_of(cpu)
    inode = inode_of(machine, file_of(machine, file_number).inode)
    pfn = filemap_get_folio(cpu, inode.mapping, index)
    if pfn == 0:
        page_cache_sync_ra(cpu, file_number, index, last_index - index)
        pfn = filemap_create_folio(cpu, inode, index)
        if pfn == 0:
            return 0
    page = page_of(machine, pfn)
    if folio_test(page, PG_readahead):
        page_cache_async_ra(cpu, file_number, pfn, last_index - index)
    if not folio_test(page, PG_uptodate):
        folio_lock(cpu, page)  # another CPU is just reading it
        if not folio_test(page, PG_uptodate) and page.mapping == inode.mapping:
            filemap_read_folio(cpu, inode, pfn)
        folio_unlock(page)
    folio_wait(cpu, pfn)
    return pfn


@kernel("i64(cpu_t*, i64, i64, u64, i64)")
def filemap_read(cpu, file_number, pos, buffer, nbytes):
    """read(2) at `pos` to host address `buffer`: how many bytes came, less than asked for at the end; -ENOMEM."""
    machine, done = machine_of(cpu), 0
    file = file_of(machine, file_number)
    inode, last_pos = inode_of(machine, file.inode), file.prev_pos
    while done < nbytes and not fatal_signal_pending(cpu):
        left = inode.i_size - pos - done
        if left <= 0:
            break
        at, offset = (pos + done) >> PAGE_SHIFT, offset_in_page(pos + done)
        n = min(nbytes - done, left, PAGE_SIZE - offset)
        pfn = filemap_get_page(cpu, file_number, at, PFN_UP(pos + nbytes))
        if pfn == 0:
            return done if done > 0 else -ENOMEM
        n = min(n, inode.i_size - pos - done)  # truncated meanwhile?
        if n <= 0:
            put_page(cpu, pfn)
            break
        if done > 0 or at != (last_pos - 1) >> PAGE_SHIFT:  # several reads of one page count once
            folio_mark_accessed(cpu, pfn)
        copy_bytes(buffer + U(done), frame_of(machine, pfn) + U(offset), n)
        charge_copy_buffer(machine, cpu, pfn, n)
        put_page(cpu, pfn)
        done += n
        file.prev_pos = pos + done
    return done


# -- writing -------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, inode_t*, i64)")
def new_write_folio(cpu, inode, index):
    """A new locked page that is to be written, with a reference taken; 0: no memory, or there is one now."""
    machine, pfn = machine_of(cpu), filemap_alloc_folio(cpu, GFP_HIGHUSER_MOVABLE | ___GFP_WRITE)
    if pfn == 0:
        return 0
    page = page_of(machine, pfn)
    page.private = 0
    page.flags |= U(PG_locked)
    if filemap_add_folio(cpu, inode.mapping, pfn, index, True):
        return pfn
    page.flags &= ~U(PG_locked)
    put_page(cpu, pfn)
    return 0


@kernel("i64(cpu_t*, inode_t*, i64, bool)")
def write_begin(cpu, inode, index, whole):
    """The page to write to, locked, with a reference taken; 0: no memory. Read first if only part is to be written.

    Mirrors __filemap_get_folio(FGP_WRITEBEGIN) and block_write_begin.
    """
    machine = machine_of(cpu)
    while True:
        pfn = filemap_lock_folio(cpu, inode.mapping, index)
        if pfn == 0:
            pfn = new_write_folio(cpu, inode, index)
        if pfn != 0:
            break
        there = filemap_get_folio(cpu, inode.mapping, index)
        if there == 0:
            return 0
        put_page(cpu, there)
    page = page_of(machine, pfn)
    if not whole and not folio_test(page, PG_uptodate):
        if index >= i_pages(inode):
            clear_bytes(frame_of(machine, pfn), PAGE_SIZE)
        else:
            filemap_read_folio(cpu, inode, pfn)
    folio_wait(cpu, pfn)
    if not create_empty_buffers(cpu, page):
        folio_unlock(page)
        put_page(cpu, pfn)
        return 0
    return pfn


@kernel("void(cpu_t*, inode_t*)")
def zero_tail(cpu, inode):
    """The file grows: what a mapping has written behind its old end, in its last page, must not show up."""
    machine, offset = machine_of(cpu), offset_in_page(inode.i_size)
    if offset == 0:
        return
    pfn = filemap_lock_folio(cpu, inode.mapping, inode.i_size >> PAGE_SHIFT)
    if pfn != 0:
        clear_bytes(frame_of(machine, pfn) + U(offset), PAGE_SIZE - offset)
        folio_unlock(page_of(machine, pfn))
        put_page(cpu, pfn)


@kernel("i64(cpu_t*, inode_t*, i64, u64, i64)")
def generic_perform_write(cpu, inode, pos, buffer, nbytes):
    """Write bytes at host address `buffer` to the cache, at `pos`: how many, or -errno. Under i_rwsem."""
    machine, done = machine_of(cpu), 0
    while done < nbytes and not fatal_signal_pending(cpu):
        at, offset = (pos + done) >> PAGE_SHIFT, offset_in_page(pos + done)
        n = min(nbytes - done, PAGE_SIZE - offset)
        pfn = write_begin(cpu, inode, at, n == PAGE_SIZE)
        if pfn == 0:
            return done if done > 0 else -ENOMEM
        page = page_of(machine, pfn)
        copy_bytes(frame_of(machine, pfn) + U(offset), buffer + U(done), n)
        charge_copy_buffer(machine, cpu, pfn, n)
        folio_mark_uptodate(page)
        done += n
        if pos + done > inode.i_size:
            store_release(inode, "i_size", pos + done)
        folio_mark_dirty(cpu, pfn)
        folio_unlock(page)
        put_page(cpu, pfn)
        balance_dirty_pages_ratelimited(cpu)
    return done


@kernel("i64(cpu_t*, i64, i64, u64, i64)")
def generic_file_write(cpu, number, pos, buffer, nbytes):
    """write(2) to an inode: how many bytes, or -errno. At `pos` -1: behind its end (O_APPEND)."""
    inode = inode_of(machine_of(cpu), number)
    lock = address_of(inode, "i_rwsem")
    write_lock(cpu, lock)
    if pos < 0:
        pos = inode.i_size
    result = -EFBIG if pos > MAX_FILE_BYTES - nbytes else extend(cpu, inode, PFN_UP(pos + nbytes), False)
    if result == 0:
        if pos + nbytes > inode.i_size:
            zero_tail(cpu, inode)
        result = generic_perform_write(cpu, inode, pos, buffer, nbytes)
    write_unlock(lock)
    return result


@kernel("i64(cpu_t*, i64)")
def vfs_fsync(cpu, number):
    """fsync(2): write what is dirty of a file, and wait; pages."""
    return filemap_write_and_wait_range(cpu, number, 0, MAX_FILE_BYTES >> PAGE_SHIFT)


# -- faults --------------------------------------------------------------------------------------------------


@kernel("void(cpu_t*, vma_t*, i64)")
def do_sync_mmap_readahead(cpu, vma, index):
    """A fault has found nothing in the cache."""
    file = file_of(machine_of(cpu), vma.file)
    if vma.flags & VM_RAND_READ:
        return
    if vma.flags & VM_SEQ_READ:
        page_cache_sync_ra(cpu, vma.file, index, file.ra_pages)
        return
    if file.mmap_miss < MMAP_LOTSAMISS * 10:
        file.mmap_miss += 1
    if file.mmap_miss <= MMAP_LOTSAMISS:
        page_cache_ra_around(cpu, vma.file, index)


@kernel("bool(cpu_t*, vma_t*, i64)")
def do_async_mmap_readahead(cpu, vma, pfn):
    """A fault has found its page in the cache; True if it is the one that starts the next window."""
    machine = machine_of(cpu)
    file = file_of(machine, vma.file)
    if vma.flags & VM_RAND_READ:
        return False
    if file.mmap_miss > 0:
        file.mmap_miss -= 1
    if not folio_test(page_of(machine, pfn), PG_readahead):
        return False
    page_cache_async_ra(cpu, vma.file, pfn, file.ra_pages)
    return True


@kernel("i64(cpu_t*, vma_t*, i64)")
def filemap_fault(cpu, vma, index):
    """The page at `index` of a mapped file, locked and with a reference taken: its pfn, plus MAJOR if the disk was read and
    WAITED where Linux drops the mmap_lock, waits and tries the fault again. Negative: -VM_FAULT_SIGBUS behind the end of
    the file, -VM_FAULT_OOM.
    """
    machine, flags = machine_of(cpu), 0
    inode = inode_of(machine, file_of(machine, vma.file).inode)
    if index >= i_pages(inode):
        return -VM_FAULT_SIGBUS
    pfn = filemap_get_folio(cpu, inode.mapping, index)
    if pfn != 0:
        if do_async_mmap_readahead(cpu, vma, pfn):
            flags = WAITED
    else:
        count_vm_events(machine, cpu.id, PGMAJFAULT, 1)
        flags = MAJOR | WAITED
        do_sync_mmap_readahead(cpu, vma, index)
    while True:
        if pfn == 0:
            pfn = filemap_create_folio(cpu, inode, index)
            if pfn == 0:
                return -VM_FAULT_OOM
        page = page_of(machine, pfn)
        if read_is_pending(cpu, page):
            flags |= WAITED
        folio_wait(cpu, pfn)
        folio_lock(cpu, page)
        if page.mapping == inode.mapping and page.index == index and folio_test(page, PG_uptodate):
            break
        stale = page.mapping == inode.mapping and page.index == index
        if stale:
            filemap_read_folio(cpu, inode, pfn)
            break
        folio_unlock(page)  # truncated or reclaimed meanwhile
        put_page(cpu, pfn)
        pfn = 0
    if index < i_pages(inode):
        return pfn + flags
    folio_unlock(page)
    put_page(cpu, pfn)
    return -VM_FAULT_SIGBUS
