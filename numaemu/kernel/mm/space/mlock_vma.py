"""mlock, mlock2, munlock, mlockall and munlockall: the address space's side of Linux's mm/mlock.c."""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import PAGE_MASK
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm import page_align
from numaemu.kernel.include.mm_types import VM_HUGETLB, VM_LOCKED, VM_LOCKED_MASK, VM_LOCKONFAULT
from numaemu.kernel.mm.space.mmap import wraps
from numaemu.kernel.mm.space.util import can_do_mlock, rlimit
from numaemu.kernel.mm.space.vma import mlock_vma_pages_range, vma_modify_flags
from numaemu.kernel.mm.space.vma_index import find_position, map_count, vma_at
from numaemu.spec.param import PAGE_SHIFT
from numaemu.uapi import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, MLOCK_ONFAULT, RLIMIT_MEMLOCK, errno

U = np.uint64
EINVAL, ENOMEM, EPERM = errno.EINVAL, errno.ENOMEM, errno.EPERM


@kernel("i64(cpu_t*, i64, i64, u64, u64, i64)")
def mlock_fixup(cpu, mm_number, position, start, end, locked):
    """Give [start, end) of a VMA the flags `locked` of VM_LOCKED_MASK: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    old = vma_at(machine, mm_number, position).flags
    new, pages = (old & ~VM_LOCKED_MASK) | locked, np.int64((end - start) >> U(PAGE_SHIFT))
    if new == old or old & VM_HUGETLB:  # huge pages of the pool are never reclaimed
        return 0
    position = vma_modify_flags(cpu, mm_number, position, start, end, new)
    if position < 0:
        return position
    if new & VM_LOCKED != 0 and old & VM_LOCKED == 0:
        mm_of(machine, mm_number).locked_vm += pages
    elif old & VM_LOCKED != 0 and new & VM_LOCKED == 0:
        mm_of(machine, mm_number).locked_vm -= pages
    if new & old & VM_LOCKED == 0:
        mlock_vma_pages_range(cpu, vma_at(machine, mm_number, position), start, end)
    return 0


@kernel("i64(cpu_t*, i64, u64, u64, i64)")
def apply_vma_lock_flags(cpu, mm_number, start, end, locked):
    """The same for all VMAs of a range, up to the first hole: 0 or -ENOMEM."""
    machine, at = machine_of(cpu), start
    while at < end:
        position = find_position(machine, mm_number, at)
        if position >= map_count(machine, mm_number) or vma_at(machine, mm_number, position).start > at:
            return -ENOMEM
        until = min(vma_at(machine, mm_number, position).end, end)
        if mlock_fixup(cpu, mm_number, position, at, until, locked) != 0:
            return -ENOMEM
        at = until
    return 0


@kernel("i64(machine_t*, i64, u64, u64)")
def count_mm_mlocked_page_nr(machine, mm_number, start, end):
    """How many pages of a range are locked already."""
    position, pages = find_position(machine, mm_number, start), 0
    while position < map_count(machine, mm_number) and vma_at(machine, mm_number, position).start < end:
        vma = vma_at(machine, mm_number, position)
        if vma.flags & VM_LOCKED:
            pages += np.int64((min(vma.end, end) - max(vma.start, start)) >> U(PAGE_SHIFT))
        position += 1
    return pages


@hot
def bytes_of_pages(start, length):
    """How long the pages are that a range touches; 0 also if that is more than a word holds."""
    inside = start & ~PAGE_MASK
    return page_align(length + inside) if length <= ~inside else U(0)


@kernel("i64(cpu_t*, i64, u64, u64, i64)")
def do_mlock(cpu, mm_number, start, length, flags):
    """mlock2(2) without bringing pages in: 0 or a negative errno. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    if flags & ~MLOCK_ONFAULT:
        return -EINVAL
    if not can_do_mlock(cpu):
        return -EPERM
    nbytes = bytes_of_pages(start, length)
    start &= PAGE_MASK
    limit, pages = rlimit(cpu, RLIMIT_MEMLOCK) >> U(PAGE_SHIFT), np.int64(nbytes >> U(PAGE_SHIFT))
    if U(mm.locked_vm + pages) > limit and not wraps(start, nbytes):
        pages -= count_mm_mlocked_page_nr(machine, mm_number, start, start + nbytes)
    if U(mm.locked_vm + pages) > limit:
        return -ENOMEM
    if wraps(start, nbytes):
        return -EINVAL
    return apply_vma_lock_flags(
        cpu, mm_number, start, start + nbytes, VM_LOCKED_MASK if flags & MLOCK_ONFAULT else VM_LOCKED
    )


@kernel("i64(cpu_t*, i64, u64, u64)")
def do_munlock(cpu, mm_number, start, length):
    """munlock(2): 0 or a negative errno. The mmap_lock is held for writing."""
    nbytes = bytes_of_pages(start, length)
    start &= PAGE_MASK
    return -EINVAL if wraps(start, nbytes) else apply_vma_lock_flags(cpu, mm_number, start, start + nbytes, 0)


@kernel("void(cpu_t*, i64, i64)")
def apply_mlockall_flags(cpu, mm_number, flags):
    """What mlockall(2) says of mappings to come and of those there are; a VMA that cannot be changed stays as it is."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    mm.def_flags &= ~VM_LOCKED_MASK
    onfault = VM_LOCKONFAULT if flags & MCL_ONFAULT else 0
    if flags & MCL_FUTURE:
        mm.def_flags |= VM_LOCKED | onfault
        if flags & MCL_CURRENT == 0:
            return
    locked = VM_LOCKED | onfault if flags & MCL_CURRENT else 0
    at = U(0)
    while True:
        position = find_position(machine, mm_number, at)
        if position >= map_count(machine, mm_number):
            return
        vma = vma_at(machine, mm_number, position)
        at = vma.end
        mlock_fixup(cpu, mm_number, position, vma.start, vma.end, locked)


@kernel("i64(cpu_t*, i64, i64)")
def do_mlockall(cpu, mm_number, flags):
    """mlockall(2) without bringing pages in: 0 or a negative errno. The mmap_lock is held for writing."""
    if flags == 0 or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        return -EINVAL
    if not can_do_mlock(cpu):
        return -EPERM
    if flags & MCL_CURRENT and U(mm_of(machine_of(cpu), mm_number).total_vm) > rlimit(cpu, RLIMIT_MEMLOCK) >> U(
        PAGE_SHIFT
    ):
        return -ENOMEM
    apply_mlockall_flags(cpu, mm_number, flags)
    return 0
