"""Reading, writing and cutting tmpfs files: the part of Linux's mm/shmem.c that serves files.

Their pages are those of a shared object (shmem.py), which the inode holds: they are swapped, moved and mapped as such.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import clear_bytes, copy_bytes
from numaemu.compiler.pointer import address_of, u64
from numaemu.kernel.arch.pgtable import pte_pfn
from numaemu.kernel.core.smp import machine_of, relax, write_lock, write_unlock
from numaemu.kernel.core.xarray import entry_is_page, page_entry, xa_find, xa_load, xa_slot
from numaemu.kernel.fs.inode import file_of, inode_of
from numaemu.kernel.include.mm import frame_of, offset_in_page
from numaemu.kernel.include.mm_types import VM_SHARED, PG_dirty, vma_t
from numaemu.kernel.include.mmzone import charge_copy_buffer, page_of
from numaemu.kernel.mm.cache.shmem import (
    shmem_delete_from_page_cache,
    shmem_find_folio,
    shmem_get_folio,
    shmem_swapin_folio,
    shmem_unacct_blocks,
)
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.page_alloc.slowpath import fatal_signal_pending
from numaemu.kernel.mm.reclaim.lru import folio_lock, folio_set, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import folio_mark_accessed
from numaemu.kernel.mm.swap.swap_state import SWAP_PFN
from numaemu.kernel.mm.swap.swapfile import free_swap_and_cache
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import errno

U = np.uint64
MAX_TMPFS_BYTES = 1 << 46


@hot
def shmem_pseudo_vma(cpu, number):
    """A VMA of nobody, whose address is the place in an object: for who needs a page of it without mapping it."""
    vma = vma_t.array(machine_of(cpu).pseudo_vmas)[cpu.id]
    vma.start, vma.end, vma.flags, vma.pgoff, vma.mm = U(0), U(MAX_TMPFS_BYTES), VM_SHARED, 0, cpu.mm
    vma.i_mapping, vma.mapping, vma.policy.mode = number, 0, 0
    return vma


@kernel("i64(cpu_t*, i64, i64)")
def shmem_lock_folio(cpu, number, index):
    """The page of an object, made or swapped in if need be, locked and with a reference taken: its pfn, 0 or -ENOSPC."""
    machine = machine_of(cpu)
    while True:
        pfn = shmem_get_folio(cpu, shmem_pseudo_vma(cpu, number), U(index) << U(PAGE_SHIFT))
        if pfn <= 0:
            return pfn
        folio_lock(cpu, page_of(machine, pfn))
        if xa_load(machine, mapping_of(machine, number), index) == page_entry(pfn):
            return pfn
        folio_unlock(page_of(machine, pfn))  # swapped out or moved meanwhile
        put_page(cpu, pfn)


@kernel("i64(cpu_t*, i64, i64)")
def shmem_read_folio(cpu, number, index):
    """The page of an object for who only reads it (SGP_READ), with a reference taken; 0: a hole; -ENOMEM."""
    machine, tries = machine_of(cpu), 0
    mapping = mapping_of(machine, number)
    while True:
        value, pfn = xa_load(machine, mapping, index), 0
        if value == U(0):
            return 0
        if entry_is_page(value):
            pfn = shmem_find_folio(cpu, mapping, index)
        else:
            pfn = shmem_swapin_folio(
                cpu,
                shmem_pseudo_vma(cpu, number),
                U(index) << U(PAGE_SHIFT),
                xa_slot(machine, mapping, index),
                index,
                value,
            )
            if pfn == 0:
                return -errno.ENOMEM
        if pfn > 0:
            return pfn & SWAP_PFN
        tries += 1  # it is moving, or has changed
        relax(cpu, tries)


@kernel("i64(cpu_t*, i64, i64, u64, i64)")
def shmem_file_read(cpu, file_number, pos, buffer, nbytes):
    """read(2) of a tmpfs file: how many bytes, or -ENOMEM. Holes are zeros and stay holes.

    No lock keeps truncation away: where the file ends is looked at when the page is held (shmem_file_read_iter).
    """
    machine, done = machine_of(cpu), 0
    inode = inode_of(machine, file_of(machine, file_number).inode)
    while done < nbytes and pos + done < load_acquire(inode, "i_size") and not fatal_signal_pending(cpu):
        pfn, offset = shmem_read_folio(cpu, inode.object, (pos + done) >> PAGE_SHIFT), offset_in_page(pos + done)
        if pfn < 0:
            return done if done > 0 else pfn
        n = min(nbytes - done, load_acquire(inode, "i_size") - pos - done, PAGE_SIZE - offset)
        if n > 0 and pfn == 0:
            clear_bytes(buffer + U(done), n)
            cpu.clock_base_ns += machine.copy_page_ns * n >> PAGE_SHIFT
        elif n > 0:
            copy_bytes(buffer + U(done), frame_of(machine, pfn) + U(offset), n)
            charge_copy_buffer(machine, cpu, pfn, n)
            if offset == 0:
                folio_mark_accessed(cpu, pfn)
        if pfn != 0:
            put_page(cpu, pfn)
        if n <= 0:
            break
        done += n
    return done


@kernel("i64(cpu_t*, inode_t*, i64, u64, i64)")
def shmem_perform_write(cpu, inode, pos, buffer, nbytes):
    """Write bytes at host address `buffer`: how many, or -errno. Under i_rwsem."""
    machine, done = machine_of(cpu), 0
    while done < nbytes and not fatal_signal_pending(cpu):
        offset = offset_in_page(pos + done)
        n = min(nbytes - done, PAGE_SIZE - offset)
        pfn = shmem_lock_folio(cpu, inode.object, (pos + done) >> PAGE_SHIFT)
        if pfn <= 0:
            return done if done > 0 else pfn if pfn < 0 else -errno.ENOMEM
        folio_mark_accessed(cpu, pfn)
        copy_bytes(frame_of(machine, pfn) + U(offset), buffer + U(done), n)
        charge_copy_buffer(machine, cpu, pfn, n)
        folio_set(page_of(machine, pfn), PG_dirty)
        done += n
        if pos + done > inode.i_size:
            store_release(inode, "i_size", pos + done)
        folio_unlock(page_of(machine, pfn))
        put_page(cpu, pfn)
    return done


@kernel("i64(cpu_t*, i64, i64, u64, i64)")
def shmem_file_write(cpu, number, pos, buffer, nbytes):
    """write(2) to a tmpfs file, at its end if `pos` is -1."""
    inode = inode_of(machine_of(cpu), number)
    lock = address_of(inode, "i_rwsem")
    write_lock(cpu, lock)
    if pos < 0:
        pos = inode.i_size
    result = -errno.EFBIG if pos > MAX_TMPFS_BYTES - nbytes else shmem_perform_write(cpu, inode, pos, buffer, nbytes)
    write_unlock(lock)
    return result


@kernel("bool(cpu_t*, i64, i64, u64)")
def shmem_free_swap(cpu, number, index, value):
    """A swapped-out page of an object is not needed any more; False: look again."""
    machine = machine_of(cpu)
    slot = xa_slot(machine, mapping_of(machine, number), index)
    if slot == U(0) or compare_exchange(u64.array(slot), 0, value, U(0)) != value:
        return False
    free_swap_and_cache(cpu, pte_pfn(value))
    shmem_unacct_blocks(machine, mapping_of(machine, number), 1)
    return True


@kernel("bool(cpu_t*, i64, i64)")
def shmem_truncate_folio(cpu, number, index):
    """Take a page that nobody maps any more out of an object; False: look again."""
    machine = machine_of(cpu)
    pfn = shmem_find_folio(cpu, mapping_of(machine, number), index)
    if pfn == 0:
        return False
    page = page_of(machine, pfn)
    folio_lock(cpu, page)
    gone = load_acquire(page, "mapcount") == 0 and shmem_delete_from_page_cache(cpu, pfn, 0)
    folio_unlock(page)
    put_page(cpu, pfn)
    if gone:
        put_page(cpu, pfn)
    return gone


@kernel("i64(cpu_t*, i64, i64, i64)")
def shmem_truncate_range(cpu, number, first, end):
    """Drop the pages [first, end) of an object: -1, or the first that is mapped.

    The caller has taken them out of all address spaces, but a fork may have copied an entry from a table that was still to
    be looked at into one that had been.
    """
    machine, index, tries = machine_of(cpu), first, 0
    while True:
        index = xa_find(machine, mapping_of(machine, number), index, end)
        if index < 0:
            return -1
        value = xa_load(machine, mapping_of(machine, number), index)
        done = value == U(0) or (
            shmem_truncate_folio(cpu, number, index)
            if entry_is_page(value)
            else shmem_free_swap(cpu, number, index, value)
        )
        if done:
            index += 1
        elif entry_is_page(value) and load_acquire(page_of(machine, pte_pfn(value)), "mapcount") > 0:
            return index
        else:
            tries += 1
            relax(cpu, tries)


@kernel("void(cpu_t*, inode_t*, i64)")
def shmem_zero_tail(cpu, inode, size):
    """Clear the rest of the page that the new end lies in, if there is one."""
    machine, offset = machine_of(cpu), offset_in_page(size)
    if offset == 0 or xa_load(machine, mapping_of(machine, inode.object), size >> PAGE_SHIFT) == U(0):
        return
    pfn = shmem_lock_folio(cpu, inode.object, size >> PAGE_SHIFT)
    if pfn > 0:
        clear_bytes(frame_of(machine, pfn) + U(offset), PAGE_SIZE - offset)
        folio_set(page_of(machine, pfn), PG_dirty)
        folio_unlock(page_of(machine, pfn))
        put_page(cpu, pfn)
