"""madvise(2) and mincore(2): Linux's mm/madvise.c and mm/mincore.c."""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.paging import PAGE_MASK
from numaemu.kernel.arch.pgtable import is_swap_entry, mm_of, next_pte, pte_pfn, pte_to_swp_entry, ptep_get
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock
from numaemu.kernel.core.xarray import xa_find, xa_is_value, xa_load
from numaemu.kernel.fs.disk import io_wait
from numaemu.kernel.fs.hugetlbfs import hugetlbfs_evict_inode, hugetlbfs_punch_hole
from numaemu.kernel.fs.inode import get_file
from numaemu.kernel.include.mm import linear_page_index, page_align
from numaemu.kernel.include.mm_types import (
    HUGETLB,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WIPEONFORK,
)
from numaemu.kernel.mm.cache.readahead import force_page_cache_ra
from numaemu.kernel.mm.cache.shmem import release_mapping, shmem_object, vma_is_shmem
from numaemu.kernel.mm.cache.truncate import fput, shmem_punch_hole
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.fault.zap import zap_page_range
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_vma, huge_page_size, hugetlb_object
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain
from numaemu.kernel.mm.space.madvise_pages import madvise_pageout, madvise_pages
from numaemu.kernel.mm.space.mmap import update_hiwater, wraps
from numaemu.kernel.mm.space.vma import vma_is_anonymous, vma_modify_flags
from numaemu.kernel.mm.space.vma_index import find_position, map_count, vma_at
from numaemu.kernel.mm.swap.swap_state import FROM_DISK, SWAP_PFN, __read_swap_cache_async
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_PAGEOUT,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    errno,
)

U = np.uint64
EINVAL, ENOMEM, EAGAIN, EACCES, EOPNOTSUPP = errno.EINVAL, errno.ENOMEM, errno.EAGAIN, errno.EACCES, errno.EOPNOTSUPP


@hot
def changes_flags(advice):
    """True if the advice is kept in the VMA's flags, which takes the mmap_lock for writing (madvise_need_mmap_write)."""
    return (
        advice <= MADV_SEQUENTIAL
        or advice == MADV_DONTFORK
        or advice == MADV_DOFORK
        or (advice >= MADV_HUGEPAGE and advice <= MADV_KEEPONFORK)
    )


@hot
def madvise_behavior_valid(advice):
    """What madvise(2) can do. Not there: memory failure; MERGEABLE needs KSM. Of gup.py and khugepaged.py: POPULATE_*
    and COLLAPSE.
    """
    return advice >= 0 and (
        advice <= MADV_DONTNEED
        or advice == MADV_FREE
        or advice == MADV_REMOVE
        or changes_flags(advice)
        or (advice >= MADV_COLD and advice <= MADV_COLLAPSE)
    )


@kernel("i64(u64, u64, i64)")
def check_madvise(start, length, advice):
    """What madvise(2) looks at before it looks at the mappings: 0 or -EINVAL."""
    nbytes = page_align(length)
    bad = (
        not madvise_behavior_valid(advice)
        or start & ~PAGE_MASK != U(0)
        or wraps(start, nbytes)
        or (length != U(0) and nbytes == U(0))
    )
    return -EINVAL if bad else 0


# -- advice kept in the flags --------------------------------------------------------------------------------


@hot
def advised_flags(flags, advice):
    """The flags that a VMA has after the advice."""
    if advice <= MADV_SEQUENTIAL:
        flags &= ~(VM_RAND_READ | VM_SEQ_READ)
        if advice == MADV_RANDOM:
            flags |= VM_RAND_READ
        elif advice == MADV_SEQUENTIAL:
            flags |= VM_SEQ_READ
    elif advice == MADV_DONTFORK:
        flags |= VM_DONTCOPY
    elif advice == MADV_DOFORK:
        flags &= ~VM_DONTCOPY
    elif advice == MADV_WIPEONFORK:
        flags |= VM_WIPEONFORK
    elif advice == MADV_KEEPONFORK:
        flags &= ~VM_WIPEONFORK
    elif advice == MADV_DONTDUMP:
        flags |= VM_DONTDUMP
    elif advice == MADV_DODUMP:
        flags &= ~VM_DONTDUMP
    elif advice == MADV_HUGEPAGE:
        flags = (flags & ~VM_NOHUGEPAGE) | VM_HUGEPAGE
    else:
        flags = (flags & ~VM_HUGEPAGE) | VM_NOHUGEPAGE
    return flags


@kernel("i64(cpu_t*, i64, i64, u64, u64, i64)")
def madvise_update_vma(cpu, mm_number, position, start, end, advice):
    """0 or a negative errno"""
    vma = vma_at(machine_of(cpu), mm_number, position)
    flags = vma.flags
    if advice == MADV_WIPEONFORK and (vma.file != 0 or flags & VM_SHARED):
        return -EINVAL
    new = advised_flags(flags, advice)
    if new == flags:
        return 0
    return -EAGAIN if vma_modify_flags(cpu, mm_number, position, start, end, new) < 0 else 0


# -- reading ahead -------------------------------------------------------------------------------------------


@kernel("bool(cpu_t*, vma_t*, u64, i64)")
def read_ahead_entry(cpu, vma, address, entry):
    """Bring what a swap entry names into the swap cache; True if the disk was asked for it."""
    answer = __read_swap_cache_async(cpu, vma, address, entry)
    if answer != 0:
        put_page(cpu, answer & SWAP_PFN)
    return answer & FROM_DISK != 0


@kernel("bool(cpu_t*, vma_t*, u64, u64)")
def swapin_walk(cpu, vma, start, end):
    """What anonymous memory has in swap of [start, end); True if the disk was asked. Mirrors swapin_walk_pmd_entry."""
    machine, asked = machine_of(cpu), False
    mm = mm_of(machine, vma.mm)
    address, ptep = next_pte(machine, mm, start, end)
    while ptep != U(0):
        pte = ptep_get(ptep)
        if is_swap_entry(pte) and read_ahead_entry(cpu, vma, address, pte_to_swp_entry(pte)):
            asked = True
        address, ptep = next_pte(machine, mm, address + U(PAGE_SIZE), end)
    return asked


@kernel("bool(cpu_t*, vma_t*, u64, u64)")
def shmem_swapin_range(cpu, vma, start, end):
    """What a shared object has in swap of the pages in [start, end); True if the disk was asked."""
    machine, asked = machine_of(cpu), False
    mapping = mapping_of(machine, shmem_object(vma))
    index, last = linear_page_index(vma, start), linear_page_index(vma, end)
    while True:
        index = xa_find(machine, mapping, index, last)
        if index < 0:
            return asked
        entry = xa_load(machine, mapping, index)
        address = vma.start + (U(index - vma.pgoff) << U(PAGE_SHIFT))
        if xa_is_value(entry) and read_ahead_entry(cpu, vma, address, pte_pfn(entry)):
            asked = True
        index += 1


@kernel("void(cpu_t*, vma_t*, u64, u64)")
def madvise_willneed(cpu, vma, start, end):
    """MADV_WILLNEED: from swap into its cache, or from a file into the page cache; nothing is mapped.

    What a file's pages wait for the disk, their reader waits later. A page of swap cannot tell when it is there: who asks
    waits for the disk once, as where a fault reads the slots around it.
    """
    machine = machine_of(cpu)
    if vma.flags & VM_HUGETLB:
        return  # is in memory always
    if vma.file != 0 and not vma_is_shmem(machine, vma):
        force_page_cache_ra(cpu, vma.file, linear_page_index(vma, start), np.int64((end - start) >> U(PAGE_SHIFT)))
        return
    shared = vma.file != 0 or vma.flags & VM_SHARED != 0
    asked = shmem_swapin_range(cpu, vma, start, end) if shared else swapin_walk(cpu, vma, start, end)
    if asked:
        io_wait(cpu, machine.disk_read_ns)
    lru_add_drain(cpu)


# -- holes in objects ----------------------------------------------------------------------------------------


@hot
def put_object(cpu, number):
    """Let a shared object go that was held without a VMA."""
    mapping = mapping_of(machine_of(cpu), number)
    if mapping.shared == HUGETLB:
        hugetlbfs_evict_inode(cpu, number)
    else:
        release_mapping(cpu, number)


@kernel("i64(cpu_t*, i64, vma_t*, u64, u64)")
def madvise_remove(cpu, mm_number, vma, start, end):
    """MADV_REMOVE: cut the pages of [start, end) out of the object behind a VMA: 0 or a negative errno.

    The mmap_lock is let go of meanwhile: the object's locks come before it. It is held by a file, or by itself. The disk's file
    system cannot make holes.
    """
    machine = machine_of(cpu)
    lock, huge = address_of(mm_of(machine, mm_number), "mmap_lock"), vma.flags & VM_HUGETLB != 0
    if vma.flags & VM_LOCKED or vma_is_anonymous(vma):
        return -EINVAL
    if vma.flags & (VM_SHARED | VM_MAYWRITE) != VM_SHARED | VM_MAYWRITE:
        return -EACCES
    if vma.file != 0 and not huge and not vma_is_shmem(machine, vma):
        return -EOPNOTSUPP
    file, number, first = vma.file, hugetlb_object(vma) if huge else shmem_object(vma), linear_page_index(vma, start)
    last = first + np.int64((end - start) >> U(PAGE_SHIFT))
    if file != 0:
        get_file(machine, file)
    fetch_add(mapping_of(machine, number), "users", 1)
    read_unlock(lock)
    if huge:
        hugetlbfs_punch_hole(cpu, number, first << PAGE_SHIFT, last << PAGE_SHIFT)
    else:
        shmem_punch_hole(cpu, number, first, last)
    put_object(cpu, number)
    if file != 0:
        fput(cpu, file)
    read_lock(cpu, lock)
    return 0


# -- all of them ---------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64, vma_t*, u64, u64, i64)")
def madvise_hugetlb(cpu, mm_number, vma, start, end, advice):
    """Huge pages of the pool can only be dropped, from the start of one and as far as whole ones go: 0 or -EINVAL."""
    inside = huge_page_size(hstate_vma(machine_of(cpu), vma)) - U(1)
    if (advice != MADV_DONTNEED and advice != MADV_DONTNEED_LOCKED) or start & inside != U(0):
        return -EINVAL
    if end & ~inside > start:
        zap_page_range(cpu, mm_number, start, end & ~inside)
    return 0


@kernel("i64(cpu_t*, i64, i64, u64, u64, i64)")
def madvise_vma_behavior(cpu, mm_number, position, start, end, advice):
    """One VMA's part of an advice: 0 or a negative errno."""
    machine = machine_of(cpu)
    if changes_flags(advice):
        return madvise_update_vma(cpu, mm_number, position, start, end, advice)
    if advice == MADV_WILLNEED:
        madvise_willneed(cpu, vma_at(machine, mm_number, position), start, end)
        return 0
    if advice == MADV_REMOVE:
        return madvise_remove(cpu, mm_number, vma_at(machine, mm_number, position), start, end)
    flags = vma_at(machine, mm_number, position).flags
    if flags & VM_HUGETLB:
        return madvise_hugetlb(cpu, mm_number, vma_at(machine, mm_number, position), start, end, advice)
    if flags & VM_LOCKED and advice != MADV_DONTNEED_LOCKED:
        return -EINVAL
    if advice == MADV_PAGEOUT:
        madvise_pageout(cpu, mm_number, start, end)
    elif advice == MADV_COLD:
        madvise_pages(cpu, mm_number, start, end, advice)
    elif advice == MADV_FREE:
        if not vma_is_anonymous(vma_at(machine, mm_number, position)):
            return -EINVAL
        madvise_pages(cpu, mm_number, start, end, advice)
    else:
        update_hiwater(mm_of(machine, mm_number))
        zap_page_range(cpu, mm_number, start, end)
    return 0


@kernel("i64(cpu_t*, i64, u64, u64, i64)")
def do_madvise(cpu, mm_number, start, length, advice):
    """madvise(2), checked: 0 or a negative errno; holes are passed over and told of in the end.

    The mmap_lock is held, for writing if changes_flags(advice).
    """
    machine = machine_of(cpu)
    at, end, unmapped = start, start + page_align(length), 0
    while at < end:
        position = find_position(machine, mm_number, at)
        if position >= map_count(machine, mm_number) or vma_at(machine, mm_number, position).start >= end:
            return -ENOMEM
        vma = vma_at(machine, mm_number, position)
        if vma.start > at:
            at, unmapped = vma.start, -ENOMEM
        until = min(vma.end, end)
        error = madvise_vma_behavior(cpu, mm_number, position, at, until, advice)
        if error != 0:
            return error
        at = until
    return unmapped
