"""Address spaces and their mappings: Linux's mm/mmap.c, mm/vma.c, mm/mprotect.c and mm/madvise.c.

The VMAs of an address space stand in an index sorted by address (numbers into the VMA table), read under its
mmap_lock held for reading, changed under the lock held for writing.
"""
import numpy as np

from numaemu.compile import hot, kernel
from numaemu.kernel.inode import file_of, get_file, inode_of
from numaemu.kernel.memory import (change_protection, free_pgd_range, gather_of, tlb_flush_mmu, unmap_page_range,
                                   zap_page_range)
from numaemu.kernel.mempolicy import copy_policy, same_policy
from numaemu.kernel.mm_types import VM_MAYREAD, VM_MAYSHARE, VM_MAYWRITE, VM_READ, VM_SHARED, VM_WRITE
from numaemu.kernel.pgtable import mm_of
from numaemu.kernel.pool import pool_get, pool_put
from numaemu.kernel.rmap import (link_file_vma, link_vma, mapping_of, mapping_put, new_mapping, unlink_file_vma, unlink_vma,
                                 vma_of)
from numaemu.kernel.shmem import shmem_evict
from numaemu.kernel.smp import machine_of
from numaemu.kernel.truncate import fput
from numaemu.mmu import TASK_SIZE
from numaemu.param import VMA_INDEX_SLOTS
from numaemu.pointer import i64
from numaemu.uapi import (MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_PRIVATE, MAP_SHARED,
                          PROT_EXEC, PROT_READ, PROT_WRITE, errno)

U = np.uint64
EINVAL, ENOMEM, EEXIST, EACCES = errno.EINVAL, errno.ENOMEM, errno.EEXIST, errno.EACCES
PMD_SIZE = U(1) << U(21)
PAGE = U(4096)


# -- the index -----------------------------------------------------------------------------------------------

@hot
def vma_index(machine, mm_number):
    """VMA numbers of an address space, by address."""
    return i64.array(machine.vma_index + U(mm_number * VMA_INDEX_SLOTS * 8))


@kernel("i64(machine_t*, i64, u64)")
def find_position(machine, mm_number, address):
    """Position of the first VMA that ends above `address`; map_count if none."""
    index, low, high = vma_index(machine, mm_number), 0, mm_of(machine, mm_number).map_count
    while low < high:
        middle = (low + high) // 2
        if vma_of(machine, index[middle]).end > address:
            high = middle
        else:
            low = middle + 1
    return low


@kernel("i64(machine_t*, i64, u64)")
def find_vma(machine, mm_number, address):
    """Number of the first VMA that ends above `address`, or 0 (it may begin above it). Linux's find_vma."""
    position = find_position(machine, mm_number, address)
    if position == mm_of(machine, mm_number).map_count:
        return 0
    return vma_index(machine, mm_number)[position]


@kernel("void(machine_t*, i64, i64, i64)")
def insert_at(machine, mm_number, position, vma_number):
    mm, index = mm_of(machine, mm_number), vma_index(machine, mm_number)
    for i in range(mm.map_count, position, -1):
        index[i] = index[i - 1]
    index[position] = vma_number
    mm.map_count += 1


@kernel("void(machine_t*, i64, i64)")
def remove_at(machine, mm_number, position):
    mm, index = mm_of(machine, mm_number), vma_index(machine, mm_number)
    mm.map_count -= 1
    for i in range(position, mm.map_count):
        index[i] = index[i + 1]


# -- making, splitting, merging ------------------------------------------------------------------------------

@kernel("i64(cpu_t*, i64, u64, u64, i64, i64)")
def new_vma(cpu, mm_number, start, end, flags, pgoff):
    """A VMA with no policy and no mapping, not yet in the index; its number or 0: table full."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.vma_pool)
    if number != 0:
        vma = vma_of(machine, number)
        vma.start, vma.end, vma.flags, vma.pgoff, vma.mm = start, end, flags, pgoff, mm_number
        vma.mapping, vma.file, vma.family_next, vma.family_prev = 0, 0, 0, 0
        vma.i_mapping, vma.file_next, vma.file_prev = 0, 0, 0
        vma.policy.mode, vma.policy.flags, vma.policy.nodes = 0, 0, U(0)
    return number


@kernel("i64(cpu_t*, i64, i64, u64)")
def split_vma(cpu, mm_number, position, address):
    """Cut the VMA at `position` in two at `address`, which lies inside it: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    if mm_of(machine, mm_number).map_count >= machine.max_map_count:
        return -ENOMEM
    low_number = vma_index(machine, mm_number)[position]
    low = vma_of(machine, low_number)
    pgoff = low.pgoff + np.int64((address - low.start) >> U(12))
    number = new_vma(cpu, mm_number, address, low.end, low.flags, pgoff)
    if number == 0:
        return -ENOMEM
    high = vma_of(machine, number)
    copy_policy(high.policy, low.policy)
    high.mapping, high.file, high.i_mapping = low.mapping, low.file, low.i_mapping
    if low.file != 0:
        get_file(machine, low.file)
        link_file_vma(cpu, number)
    if low.mapping != 0:
        link_vma(cpu, low.mapping, number)
    low.end = address
    insert_at(machine, mm_number, position + 1, number)
    return 0


@kernel("i64(cpu_t*, i64, u64, u64)")
def split_range(cpu, mm_number, start, end):
    """Make VMA borders at `start` and `end` where they cut a VMA: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    for address in (start, end):
        position = find_position(machine, mm_number, address)
        if position < mm_of(machine, mm_number).map_count:
            vma = vma_of(machine, vma_index(machine, mm_number)[position])
            if vma.start < address:
                error = split_vma(cpu, mm_number, position, address)
                if error != 0:
                    return error
    return 0


@kernel("bool(vma_t*, vma_t*)")
def can_merge(low, high):
    """Two neighbours that differ in nothing: is_mergeable_vma and is_mergeable_anon_vma."""
    if low.end != high.start or low.flags != high.flags or low.file != high.file:
        return False
    if not same_policy(low.policy, high.policy):
        return False
    if low.pgoff + np.int64((low.end - low.start) >> U(12)) != high.pgoff:
        return False
    if low.flags & VM_SHARED:
        return low.mapping == high.mapping
    return low.mapping == high.mapping or low.mapping == 0 or high.mapping == 0


@kernel("void(cpu_t*, i64)")
def release_file(cpu, vma_number):
    """A VMA that goes lets its file go."""
    vma = vma_of(machine_of(cpu), vma_number)
    if vma.file != 0:
        unlink_file_vma(cpu, vma_number)
        fput(cpu, vma.file)


@kernel("bool(cpu_t*, i64, i64)")
def vma_merge(cpu, mm_number, position):
    """Melt the VMA at `position` with the one after it if they can; True if so."""
    machine = machine_of(cpu)
    if position < 0 or position + 1 >= mm_of(machine, mm_number).map_count:
        return False
    index = vma_index(machine, mm_number)
    low_number, high_number = index[position], index[position + 1]
    low, high = vma_of(machine, low_number), vma_of(machine, high_number)
    if not can_merge(low, high):
        return False
    if low.mapping == 0 and high.mapping != 0:
        link_vma(cpu, high.mapping, low_number)
        low.mapping = high.mapping
    low.end = high.end
    release_file(cpu, high_number)
    if high.mapping != 0:
        unlink_vma(cpu, high_number)
    remove_at(machine, mm_number, position + 1)
    pool_put(cpu, machine.vma_pool, high_number)
    return True


@kernel("void(cpu_t*, i64, u64, u64)")
def merge_range(cpu, mm_number, start, end):
    """Melt what has become equal in and around [start, end)."""
    machine = machine_of(cpu)
    position = max(find_position(machine, mm_number, start) - 1, 0)
    while position + 1 < mm_of(machine, mm_number).map_count:
        if vma_of(machine, vma_index(machine, mm_number)[position]).start > end:
            break
        if not vma_merge(cpu, mm_number, position):
            position += 1


# -- mmap ----------------------------------------------------------------------------------------------------

@kernel("u64(machine_t*, i64, u64)")
def topdown_gap(machine, mm_number, length):
    """Start of the highest free piece of `length` bytes below mmap_base, or 0."""
    mm, index = mm_of(machine, mm_number), vma_index(machine, mm_number)
    top = mm.mmap_base
    for position in range(mm.map_count - 1, -1, -1):
        vma = vma_of(machine, index[position])
        if vma.end <= top and top - vma.end >= length:
            return top - length
        top = min(top, vma.start)
    return top - length if top >= length + U(0x10000) else U(0)


@kernel("u64(machine_t*, i64, u64, u64, bool, i64)")
def get_unmapped_area(machine, mm_number, hint, length, anonymous, pgoff):
    """Where a new mapping goes; 0 if nowhere.

    Anonymous ones of whole multiples of 2 MiB are aligned so, as since Linux 6.7; those of files that contain aligned
    2 MiB of the file, so that these are aligned in memory too (thp_get_unmapped_area, which file systems use).
    """
    if hint != U(0) and hint <= TASK_SIZE - length:
        number = find_vma(machine, mm_number, hint)
        if number == 0 or vma_of(machine, number).start >= hint + length:
            return hint
    if anonymous and length >= PMD_SIZE and length & (PMD_SIZE - U(1)) == U(0):
        found = topdown_gap(machine, mm_number, length + PMD_SIZE)
        if found != U(0):
            return (found + PMD_SIZE) & ~(PMD_SIZE - U(1))
    offset = U(pgoff) << U(12)
    aligned = (offset + PMD_SIZE - U(1)) & ~(PMD_SIZE - U(1))
    if not anonymous and offset + length >= aligned + PMD_SIZE:
        found = topdown_gap(machine, mm_number, length + PMD_SIZE)
        if found != U(0):
            shift = (offset - found) & (PMD_SIZE - U(1))
            return found + (shift if shift != U(0) else PMD_SIZE)
    return topdown_gap(machine, mm_number, length)


@hot
def calc_vm_flags(prot, flags):
    vm_flags = VM_MAYREAD | VM_MAYWRITE | (prot & (PROT_READ | PROT_WRITE | PROT_EXEC))
    return vm_flags | VM_SHARED | VM_MAYSHARE if flags & MAP_SHARED else vm_flags


@kernel("i64(cpu_t*, i64, u64, u64, i64, i64, i64)")
def mmap_region(cpu, mm_number, address, length, vm_flags, file, pgoff):
    """Put a new VMA at a free place, melting it with equal neighbours: the address or a negative errno.

    `file` is an open file, 0 for none; `pgoff` the page of it that the VMA begins with.
    """
    machine = machine_of(cpu)
    shared = vm_flags & VM_SHARED != 0 and file == 0
    if file == 0:
        pgoff = 0 if shared else np.int64(address >> U(12))
    number = new_vma(cpu, mm_number, address, address + length, vm_flags, pgoff)
    if number == 0:
        return -ENOMEM
    if shared:
        mapping = new_mapping(cpu, 1)
        if mapping == 0:
            pool_put(cpu, machine.vma_pool, number)
            return -ENOMEM
        vma_of(machine, number).mapping = mapping
        link_vma(cpu, mapping, number)
    if file != 0:
        get_file(machine, file)
        vma = vma_of(machine, number)
        vma.file, vma.i_mapping = file, inode_of(machine, file_of(machine, file).inode).mapping
        link_file_vma(cpu, number)
    insert_at(machine, mm_number, find_position(machine, mm_number, address), number)
    mm_of(machine, mm_number).total_vm += np.int64(length >> U(12))
    merge_range(cpu, mm_number, address, address + length)
    return np.int64(address)


@kernel("void(cpu_t*, i64)")
def free_vma(cpu, vma_number):
    """A VMA that is in no index any more: out of its family, whose last member takes the mapping along."""
    machine = machine_of(cpu)
    mapping = vma_of(machine, vma_number).mapping
    release_file(cpu, vma_number)
    if mapping != 0 and unlink_vma(cpu, vma_number):
        if mapping_of(machine, mapping).shared:
            shmem_evict(cpu, mapping)
        else:
            mapping_put(cpu, mapping)
    pool_put(cpu, machine.vma_pool, vma_number)


@kernel("void(cpu_t*, i64, i64, i64)")
def unmap_region(cpu, mm_number, first, last):
    """Unmap the VMAs at positions [first, last): pages, then tables that nobody else needs, one flush for all."""
    machine = machine_of(cpu)
    mm, index = mm_of(machine, mm_number), vma_index(machine, mm_number)
    start, end = vma_of(machine, index[first]).start, vma_of(machine, index[last - 1]).end
    floor = vma_of(machine, index[first - 1]).end if first > 0 else U(0)
    ceiling = vma_of(machine, index[last]).start if last < mm.map_count else U(1) << U(47)
    gather_of(machine, cpu)[0] = 0
    changed = False
    for position in range(first, last):
        vma = vma_of(machine, index[position])
        if unmap_page_range(cpu, mm_number, vma.start, vma.end):
            changed = True
        mm.total_vm -= np.int64((vma.end - vma.start) >> U(12))
    for _ in range(first, last):
        number = index[first]
        remove_at(machine, mm_number, first)
        free_vma(cpu, number)
    if free_pgd_range(cpu, mm_number, start, end, floor, ceiling):
        changed = True
    if changed:
        tlb_flush_mmu(cpu, mm_number, start, end)


@kernel("i64(cpu_t*, i64, u64, u64)")
def do_munmap(cpu, mm_number, start, length):
    """munmap(2): 0 or a negative errno. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    length = (length + PAGE - U(1)) & ~(PAGE - U(1))
    if start & (PAGE - U(1)) != U(0) or length == U(0) or start > TASK_SIZE or length > TASK_SIZE - start:
        return -EINVAL
    error = split_range(cpu, mm_number, start, start + length)
    if error != 0:
        return error
    first = find_position(machine, mm_number, start)
    last = find_position(machine, mm_number, start + length - U(1))
    if last < mm_of(machine, mm_number).map_count and \
            vma_of(machine, vma_index(machine, mm_number)[last]).start < start + length:
        last += 1
    if last > first:
        unmap_region(cpu, mm_number, first, last)
    return 0


@kernel("i64(cpu_t*, i64, u64, u64, i64, i64, i64, i64)")
def do_mmap(cpu, mm_number, hint, length, prot, flags, file, pgoff):
    """mmap(2) of anonymous memory, or of an open file from page `pgoff` on: the address, or a negative errno.

    The mmap_lock is held for writing.
    """
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    if length == U(0) or flags & (MAP_SHARED | MAP_PRIVATE) == 0 or (flags & MAP_ANONYMOUS != 0) != (file == 0):
        return -EINVAL
    if length > TASK_SIZE or mm.map_count >= machine.max_map_count:
        return -ENOMEM
    length = (length + PAGE - U(1)) & ~(PAGE - U(1))
    address = hint & ~(PAGE - U(1))
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        if hint != address or address == U(0):
            return -EINVAL
        if address > TASK_SIZE - length:
            return -ENOMEM
        blocker = find_vma(machine, mm_number, address)
        if blocker != 0 and vma_of(machine, blocker).start < address + length:
            if flags & MAP_FIXED_NOREPLACE:
                return -EEXIST
            error = do_munmap(cpu, mm_number, address, length)
            if error != 0:
                return error
    else:
        address = get_unmapped_area(machine, mm_number, address, length, file == 0, pgoff)
        if address == U(0):
            return -ENOMEM
    return mmap_region(cpu, mm_number, address, length, calc_vm_flags(prot, flags), file, pgoff)


# -- munmap --------------------------------------------------------------------------------------------------

# -- walks over a range of mappings --------------------------------------------------------------------------

@kernel("bool(machine_t*, i64, u64, u64)")
def range_is_mapped(machine, mm_number, start, end):
    """True if no hole lies in [start, end)."""
    position, at = find_position(machine, mm_number, start), start
    while at < end:
        if position == mm_of(machine, mm_number).map_count:
            return False
        vma = vma_of(machine, vma_index(machine, mm_number)[position])
        if vma.start > at:
            return False
        at = vma.end
        position += 1
    return True


@kernel("i64(cpu_t*, i64, u64, u64, i64)")
def do_mprotect(cpu, mm_number, start, length, prot):
    """mprotect(2): 0 or a negative errno. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    end = start + ((length + PAGE - U(1)) & ~(PAGE - U(1)))
    if start & (PAGE - U(1)) != U(0) or prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC) != 0:
        return -EINVAL
    if length == U(0):
        return 0
    if end <= start or end > TASK_SIZE or not range_is_mapped(machine, mm_number, start, end):
        return -ENOMEM
    error = split_range(cpu, mm_number, start, end)
    if error != 0:
        return error
    position = find_position(machine, mm_number, start)
    while position < mm_of(machine, mm_number).map_count:
        vma = vma_of(machine, vma_index(machine, mm_number)[position])
        if vma.start >= end:
            break
        vma.flags = (vma.flags & ~(VM_READ | VM_WRITE | PROT_EXEC)) | prot
        change_protection(cpu, mm_number, vma.start, vma.end, prot & PROT_WRITE != 0, prot != 0,
                          vma.flags & VM_SHARED == 0)
        position += 1
    merge_range(cpu, mm_number, start, end)
    return 0


@kernel("i64(cpu_t*, i64, u64, u64, i64)")
def do_madvise(cpu, mm_number, start, length, advice):
    """madvise(2) for DONTNEED; NORMAL to WILLNEED change nothing here. The mmap_lock is held for reading."""
    machine = machine_of(cpu)
    end = start + ((length + PAGE - U(1)) & ~(PAGE - U(1)))
    if start & (PAGE - U(1)) != U(0) or end < start or advice < 0 or advice > MADV_DONTNEED:
        return -EINVAL
    if advice == MADV_DONTNEED:
        position = find_position(machine, mm_number, start)
        while position < mm_of(machine, mm_number).map_count:
            vma = vma_of(machine, vma_index(machine, mm_number)[position])
            if vma.start >= end:
                break
            zap_page_range(cpu, mm_number, max(vma.start, start), min(vma.end, end))
            position += 1
    return 0 if range_is_mapped(machine, mm_number, start, end) else -ENOMEM


@kernel("i64(cpu_t*, i64, u64)")
def do_brk(cpu, mm_number, brk):
    """brk(2): the new end of the heap, or the old one if that cannot be. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    if brk < mm.start_brk or brk > TASK_SIZE:
        return np.int64(mm.brk)
    new = (brk + PAGE - U(1)) & ~(PAGE - U(1))
    old = (mm.brk + PAGE - U(1)) & ~(PAGE - U(1))
    if new < old:
        if do_munmap(cpu, mm_number, new, old - new) != 0:
            return np.int64(mm.brk)
    elif new > old:
        blocker = find_vma(machine, mm_number, old)
        if blocker != 0 and vma_of(machine, blocker).start < new + PAGE:
            return np.int64(mm.brk)
        flags = calc_vm_flags(PROT_READ | PROT_WRITE, MAP_PRIVATE)
        if mmap_region(cpu, mm_number, old, new - old, flags, 0, 0) < 0:
            return np.int64(mm.brk)
    mm.brk = brk
    return np.int64(brk)
