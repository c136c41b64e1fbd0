"""Where a new mapping goes: Linux's get_unmapped_area, of mm/mmap.c, arch/x86/kernel/sys_x86_64.c and mm/huge_memory.c."""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import ENTRY_ARM64, PAGE_MASK
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at, huge_page_size
from numaemu.kernel.mm.space.vma_index import find_vma, find_vma_intersection, vm_start_gap, vma_at, vma_of
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import MAP_FIXED, MAP_FIXED_NOREPLACE, errno

U = np.uint64
EINVAL, ENOMEM, EEXIST, EPERM = errno.EINVAL, errno.ENOMEM, errno.EEXIST, errno.EPERM
PMD_SIZE = U(1) << U(21)
MMAP_MIN_ADDR = U(0x10000)  # dac_mmap_min_addr
MOST_PGOFF = 1 << 50  # no file is as long


@hot
def mmap_address_hint_valid(machine, hint, length):
    """True if a range lies among the users' addresses, and does not lie across the end of the usual window."""
    limit, window = machine.paging.task_size, machine.paging.stack_top
    return hint <= limit - length and (hint > window) == (hint + length > window)


@hot
def above_window(machine, hint):
    """How much higher than usual a place may be looked for: with five levels, if the hint asks for it."""
    window = machine.paging.stack_top  # DEFAULT_MAP_WINDOW
    return machine.paging.task_size - window if hint > window else U(0)


@kernel("u64(machine_t*, i64, u64, u64)")
def topdown_gap(machine, mm_number, length, above):
    """Start of the highest free piece of `length` bytes below mmap_base + `above`, or 0. Mirrors unmapped_area_topdown."""
    mm = mm_of(machine, mm_number)
    top = mm.mmap_base + above
    for position in range(mm.map_count - 1, -1, -1):
        vma = vma_at(machine, mm_number, position)
        if vma.end <= top and top - vma.end >= length:
            return top - length
        top = min(top, vm_start_gap(vma))
    return top - length if top >= length + MMAP_MIN_ADDR else U(0)


@kernel("u64(machine_t*, i64, u64, u64, bool, i64)")
def get_unmapped_area(machine, mm_number, hint, length, anonymous, pgoff):
    """Where a new mapping goes; 0 if nowhere.

    Anonymous ones of whole multiples of 2 MiB are aligned so, as since Linux 6.7; those of files that contain aligned
    2 MiB of the file, so that these are aligned in memory too (thp_get_unmapped_area, which file systems use).
    """
    limit, mobile = machine.paging.task_size, machine.paging.table_bits == U(9)  # 32-bit Linux does not align
    if length > limit:
        return U(0)
    above = above_window(machine, hint)
    if hint != U(0) and mmap_address_hint_valid(machine, hint, length):
        number = find_vma(machine, mm_number, hint)
        if number == 0 or vm_start_gap(vma_of(machine, number)) >= hint + length:
            return hint
    if mobile and anonymous and length >= PMD_SIZE and length & (PMD_SIZE - U(1)) == U(0):
        found = topdown_gap(machine, mm_number, length + PMD_SIZE, above)
        if found != U(0):
            return (found + PMD_SIZE) & ~(PMD_SIZE - U(1))
    offset = U(min(pgoff, MOST_PGOFF)) << U(PAGE_SHIFT)
    aligned = (offset + PMD_SIZE - U(1)) & ~(PMD_SIZE - U(1))
    if mobile and not anonymous and pgoff < MOST_PGOFF and offset + length >= aligned + PMD_SIZE:
        found = topdown_gap(machine, mm_number, length + PMD_SIZE, above)
        if found != U(0):
            shift = (offset + PMD_SIZE - (found & (PMD_SIZE - U(1)))) & (PMD_SIZE - U(1))
            return found + (shift if shift != U(0) else PMD_SIZE)
    return topdown_gap(machine, mm_number, length, above)


@kernel("i64(machine_t*, i64, u64, u64, i64, i64)")
def hugetlb_get_unmapped_area(machine, mm_number, hint, length, flags, hstate):
    """Where a mapping of a pool's pages goes, as an address, or a negative errno."""
    size, limit = huge_page_size(hstate_at(machine, hstate)), machine.paging.task_size
    if length > limit:
        return -ENOMEM
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        if hint > limit - length:
            return -ENOMEM
        if hint & (size - U(1)) != U(0):
            return -EINVAL  # prepare_hugepage_range
        if hint < MMAP_MIN_ADDR:
            return -EPERM
        if flags & MAP_FIXED_NOREPLACE and find_vma_intersection(machine, mm_number, hint, hint + length) != 0:
            return -EEXIST
        return np.int64(hint)
    if machine.paging.pte_format == ENTRY_ARM64 and hint <= ~size:
        hint += size - U(1)  # other architectures round down
    hint &= ~(size - U(1))
    if hint != U(0) and mmap_address_hint_valid(machine, hint, length):
        number = find_vma(machine, mm_number, hint)
        if number == 0 or vm_start_gap(vma_of(machine, number)) >= hint + length:
            return np.int64(hint)
    span = length + size - U(PAGE_SIZE)  # room for any alignment
    found = topdown_gap(machine, mm_number, span, above_window(machine, hint))
    return np.int64((found + span - length) & ~(size - U(1))) if found != U(0) else -ENOMEM


@kernel("i64(cpu_t*, i64, u64, u64, i64, i64, i64, i64)")
def place_mapping(cpu, mm_number, hint, length, flags, file, pgoff, hstate):
    """Where mmap puts it, as an address, or a negative errno: MAP_FIXED, MAP_FIXED_NOREPLACE or a free place."""
    machine = machine_of(cpu)
    address = hint & PAGE_MASK
    if hstate >= 0:
        return hugetlb_get_unmapped_area(machine, mm_number, hint, length, flags, hstate)
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) == 0:
        if address != U(0):
            address = max(address, MMAP_MIN_ADDR)  # round_hint_to_min
        address = get_unmapped_area(machine, mm_number, address, length, file == 0, pgoff)
        return np.int64(address) if address != U(0) else -ENOMEM
    if length > machine.paging.task_size or address > machine.paging.task_size - length:
        return -ENOMEM
    if hint != address:
        return -EINVAL
    if address < MMAP_MIN_ADDR:
        return -EPERM
    if flags & MAP_FIXED_NOREPLACE and find_vma_intersection(machine, mm_number, address, address + length) != 0:
        return -EEXIST
    return np.int64(address)
