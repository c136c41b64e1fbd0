"""The VMAs of an address space by address: what Linux keeps in a maple tree (mm->mm_mt).

They stand in a sorted index (numbers into the VMA table), read under the mmap_lock held for reading, changed under the
lock held for writing.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import i64
from numaemu.kernel.include.mm_types import VM_GROWSDOWN, mm_t, vma_t
from numaemu.spec.param import PAGE_SHIFT, VMA_INDEX_SLOTS

U = np.uint64
STACK_GUARD_GAP = U(256 << PAGE_SHIFT)  # stack_guard_gap


@hot
def vma_of(machine, number):
    return vma_t.array(machine.vmas)[number]


@hot
def map_count(machine, mm_number):
    return mm_t.array(machine.mms)[mm_number].map_count


@hot
def vma_index(machine, mm_number):
    """VMA numbers of an address space, by address."""
    return i64.array(machine.vma_index + U(mm_number * VMA_INDEX_SLOTS * 8))


@hot
def vma_at(machine, mm_number, position):
    return vma_of(machine, vma_index(machine, mm_number)[position])


@kernel("i64(machine_t*, i64, u64)")
def find_position(machine, mm_number, address):
    """Position of the first VMA that ends above `address`; map_count if none."""
    index, low, high = vma_index(machine, mm_number), 0, map_count(machine, mm_number)
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
    if position == map_count(machine, mm_number):
        return 0
    return vma_index(machine, mm_number)[position]


@kernel("i64(machine_t*, i64, u64, u64)")
def find_vma_intersection(machine, mm_number, start, end):
    """Number of the first VMA that has a part of [start, end), or 0."""
    number = find_vma(machine, mm_number, start)
    return number if number != 0 and vma_of(machine, number).start < end else 0


@kernel("i64(machine_t*, i64, u64, u64, i64)")
def pages_between(machine, mm_number, start, end, flag):
    """Pages of [start, end) that are mapped by VMAs with a flag (0: by any). Mirrors count_vma_pages_range."""
    position, pages = find_position(machine, mm_number, start), 0
    while position < map_count(machine, mm_number) and vma_at(machine, mm_number, position).start < end:
        vma = vma_at(machine, mm_number, position)
        if vma.flags & flag == flag:
            pages += np.int64((min(vma.end, end) - max(vma.start, start)) >> U(PAGE_SHIFT))
        position += 1
    return pages


@kernel("void(machine_t*, i64, i64, i64)")
def insert_at(machine, mm_number, position, vma_number):
    """Put a VMA into the index of an address space at `position`; those behind it move up."""
    mm, index = mm_t.array(machine.mms)[mm_number], vma_index(machine, mm_number)
    for i in range(mm.map_count, position, -1):
        index[i] = index[i - 1]
    index[position] = vma_number
    mm.map_count += 1


@kernel("void(machine_t*, i64, i64)")
def remove_at(machine, mm_number, position):
    mm, index = mm_t.array(machine.mms)[mm_number], vma_index(machine, mm_number)
    mm.map_count -= 1
    for i in range(position, mm.map_count):
        index[i] = index[i + 1]


@hot
def vm_start_gap(vma):
    """Where a VMA begins with the gap that a stack needs below it."""
    gap = STACK_GUARD_GAP if vma.flags & VM_GROWSDOWN else U(0)
    return vma.start - gap if vma.start > gap else U(0)


@kernel("bool(machine_t*, i64, u64, u64)")
def range_is_mapped(machine, mm_number, start, end):
    """True if no hole lies in [start, end)."""
    position, at = find_position(machine, mm_number, start), start
    while at < end:
        if position == map_count(machine, mm_number):
            return False
        vma = vma_at(machine, mm_number, position)
        if vma.start > at:
            return False
        at = vma.end
        position += 1
    return True
