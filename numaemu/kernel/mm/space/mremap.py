"""mremap(2): Linux's mm/mremap.c.

Page-table entries move a leaf table at a time: taken out of the old place, flushed, then put into the new one. So no CPU
writes through the old address to a page that another one already has at the new. All that happens under the lock of
the family, which a walk over the reverse mapping needs: it finds a page at its old place or at its new one.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u64
from numaemu.hardware.paging import PAGE_MASK, entry_exchange, entry_load
from numaemu.kernel.arch.pgalloc import (
    huge_pte_alloc,
    hugetlb_walk,
    pgtable_trans_huge_deposit,
    pgtable_trans_huge_withdraw,
    pmd_lock,
    pmd_trans_huge,
    pmd_unlock,
    pte_alloc,
)
from numaemu.kernel.arch.pgtable import (
    mm_of,
    pmd_addr_end,
    pmd_shift,
    pte_offset,
    ptep_get,
    ptep_get_and_clear,
    ptep_step,
    set_pte,
    skip_missing,
)
from numaemu.kernel.arch.tlb import flush_tlb_mm_range, flush_tlb_mm_stride, mm_tlb_flush_pending
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm import linear_page_index, page_align, vma_pages
from numaemu.kernel.include.mm_types import (
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_SHARED,
)
from numaemu.kernel.mm.fault.rmap import unlink_vma
from numaemu.kernel.mm.huge.hugetlb import put_resv_map
from numaemu.kernel.mm.huge.hugetlb_pool import get_resv_map, hstate_vma, huge_page_shift, huge_page_size
from numaemu.kernel.mm.huge.split import split_huge_pmd
from numaemu.kernel.mm.space.get_unmapped_area import get_unmapped_area
from numaemu.kernel.mm.space.mempolicy import copy_policy
from numaemu.kernel.mm.space.mmap import do_munmap, update_hiwater
from numaemu.kernel.mm.space.util import (
    may_expand_vm,
    mlock_future_ok,
    vm_acct_memory,
    vm_enough_memory,
    vm_stat_account,
)
from numaemu.kernel.mm.space.vma import (
    join_family,
    join_file,
    lock_families,
    merge_at,
    new_vma,
    split_range,
    unlock_families,
)
from numaemu.kernel.mm.space.vma_index import find_position, find_vma, find_vma_intersection, insert_at, vma_of
from numaemu.spec.param import GATHER_PAGES, PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, errno

U = np.uint64
EINVAL, ENOMEM, EFAULT, EAGAIN = errno.EINVAL, errno.ENOMEM, errno.EFAULT, errno.EAGAIN
SPARE_MAPS = 3  # an unmapping may split one VMA into three


# -- page tables ---------------------------------------------------------------------------------------------


@hot
def lift_ptes(old, step, count, new):
    """Take `count` leaf entries out of an old table; they wait, not present for anybody, in the array `new`. How many."""
    found = 0
    for i in range(count):
        new[i] = U(0)
        if ptep_get(old) != U(0):
            new[i] = ptep_get_and_clear(old)
            found += 1
        old += step
    return found


@kernel("void(cpu_t*, i64, u64, u64, u64, i64)")
def move_ptes(cpu, mm_number, address, old, new, count):
    """Move `count` entries at host address `old`, which map `address` on, to `new`."""
    machine = machine_of(cpu)
    waiting, step = u64.array(machine.gather + U(cpu.id * GATHER_PAGES * 8)), ptep_step(machine)
    if lift_ptes(old, step, count, waiting) == 0 and not mm_tlb_flush_pending(mm_of(machine, mm_number)):
        waiting[0] = U(0)
        return
    flush_tlb_mm_range(cpu, mm_number, address, address + U(count * PAGE_SIZE))
    for i in range(count):
        if waiting[i] != U(0):
            set_pte(new, waiting[i])
        new += step
    waiting[0] = U(0)


@kernel("bool(cpu_t*, i64, vma_t*, u64, u64, u64)")
def move_huge_pmd(cpu, mm_number, vma, source, target, length):
    """Move the huge entry of `source`, if there is one, as a whole if that can be, else take it apart; False: no memory.

    It is looked at again under both locks; small entries that stand there by then are the caller's to move. In a mapping of a
    pool's pages the ranges are whole ones (move_hugetlb_page_tables).
    """
    machine = machine_of(cpu)
    mm, shift = mm_of(machine, mm_number), pmd_shift(machine)
    if vma.flags & VM_HUGETLB:
        shift = huge_page_shift(hstate_vma(machine, vma))
    size, where = U(1) << shift, hugetlb_walk(machine, mm, source, shift)
    if where == U(0):
        return True
    place = huge_pte_alloc(cpu, mm, target, shift)
    if place == U(0):
        return False
    if (source | target) & (size - U(1)) != U(0) or length < size or entry_load(place) != U(0):
        split_huge_pmd(cpu, where)
        return True
    pool = vma.flags & VM_HUGETLB != 0
    lock_families(cpu, vma)
    pmd_lock(cpu, where)
    if not pmd_trans_huge(entry_load(where)):  # reclaim has taken it apart meanwhile, or a truncation taken it out
        pmd_unlock(machine, where)
        unlock_families(machine, vma)
        return True
    entry, table = entry_exchange(where, U(0)), 0 if pool else pgtable_trans_huge_withdraw(machine, where)
    pmd_unlock(machine, where)
    flush_tlb_mm_stride(cpu, mm_number, source, source + size, shift)
    pmd_lock(cpu, place)
    entry_exchange(place, entry)
    if not pool:
        pgtable_trans_huge_deposit(machine, place, table)
    pmd_unlock(machine, place)
    unlock_families(machine, vma)
    return True


@kernel("u64(cpu_t*, i64, vma_t*, u64, u64, u64)")
def move_page_tables(cpu, mm_number, vma, old, new, length):
    """Move the entries of [old, old + length) to `new`; how many bytes were moved before memory ran out."""
    machine = machine_of(cpu)
    mm, done = mm_of(machine, mm_number), U(0)
    while done < length:
        source, target = old + done, new + done
        ptep = pte_offset(machine, mm, source)
        if ptep == U(0):
            if not move_huge_pmd(cpu, mm_number, vma, source, target, length - done):
                return done
            done = skip_missing(machine, mm, source) - old
            continue
        extent = min(
            length - done,
            min(pmd_addr_end(machine, source, ~U(0)) - source, pmd_addr_end(machine, target, ~U(0)) - target),
        )
        place = pte_alloc(cpu, mm, target)
        if place == U(0):
            return done
        lock_families(cpu, vma)
        move_ptes(cpu, mm_number, source, ptep, place, np.int64(extent >> U(PAGE_SHIFT)))
        unlock_families(machine, vma)
        done += extent
    return length


# -- moving --------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64, i64, u64, u64, i64)")
def copy_vma(cpu, mm_number, vma_number, start, end, pgoff):
    """A VMA at a new place with the same pages to come, in the index: its number or 0. Mirrors copy_vma."""
    machine = machine_of(cpu)
    of = vma_of(machine, vma_number)
    if of.flags & (VM_SHARED | VM_HUGETLB) == 0 and of.anon_vma == 0 and of.file == 0:
        pgoff = np.int64(start >> U(PAGE_SHIFT))
    number = new_vma(cpu, mm_number, start, end, of.flags, pgoff)
    if number == 0:
        return 0
    vma = vma_of(machine, number)
    copy_policy(vma.policy, of.policy)
    join_file(cpu, number, vma_number)
    join_family(cpu, number, vma_number)
    if of.resv_map != U(0):
        get_resv_map(of.resv_map)
    vma.resv_map, vma.resv_unmapped, vma.hstate = of.resv_map, of.resv_unmapped, of.hstate
    insert_at(machine, mm_number, find_position(machine, mm_number, start), number)
    return number


@hot
def forget_reservation(cpu, vma):
    """Another VMA has taken over what was reserved (clear_vma_resv_huge_pages)."""
    if vma.resv_map != U(0):
        put_resv_map(cpu, vma.resv_map)
        vma.resv_map = U(0)


@kernel("void(cpu_t*, i64, i64, u64, u64)")
def leave_old_vma(cpu, mm_number, vma_number, start, end):
    """MREMAP_DONTUNMAP: the old VMA stays without pages, not locked, and outside the family if all of it was moved.

    What of it was not moved is no longer locked either; Linux forgets to take that off locked_vm.
    """
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    if vma.flags & VM_LOCKED:
        mm_of(machine, mm_number).locked_vm -= vma_pages(vma) - np.int64((end - start) >> U(PAGE_SHIFT))
    vma.flags &= ~VM_LOCKED_MASK
    if vma.start == start and vma.end == end and vma.anon_vma != 0:
        unlink_vma(cpu, vma_number)
        vma.mapping, vma.anon_vma, vma.chained = 0, 0, 0


@kernel("i64(cpu_t*, i64, i64, u64, u64, u64, u64, i64)")
def move_vma(cpu, mm_number, vma_number, old, old_length, new_length, new, flags):
    """Move a part of a VMA to a free place: the new address or a negative errno.

    What is charged for the old place is charged for the new one beside it until the old one is unmapped.
    """
    machine = machine_of(cpu)
    mm, vma = mm_of(machine, mm_number), vma_of(machine, vma_number)
    vm_flags, pages = vma.flags, np.int64(new_length >> U(PAGE_SHIFT))
    old_pages = np.int64(old_length >> U(PAGE_SHIFT))
    if mm.map_count >= machine.max_map_count - SPARE_MAPS:
        return -ENOMEM
    grow = pages if flags & MREMAP_DONTUNMAP else pages - old_pages
    if vm_flags & VM_ACCOUNT and vm_enough_memory(cpu, mm_number, grow) != 0:
        return -ENOMEM
    pgoff = linear_page_index(vma, old)
    number = copy_vma(cpu, mm_number, vma_number, new, new + new_length, pgoff)
    moved = move_page_tables(cpu, mm_number, vma, old, new, old_length) if number != 0 else U(0)
    if number == 0 or moved < old_length:
        if number != 0:
            move_page_tables(cpu, mm_number, vma, new, old, moved)
            forget_reservation(cpu, vma_of(machine, number))
            vm_stat_account(mm, vm_flags, pages)
            if vm_flags & VM_LOCKED:
                mm.locked_vm += pages
            do_munmap(cpu, mm_number, new, new_length)  # gives back what was charged for it
            if vm_flags & VM_ACCOUNT:
                vm_acct_memory(machine, pages - grow)
        elif vm_flags & VM_ACCOUNT:
            vm_acct_memory(machine, -grow)
        return -ENOMEM
    forget_reservation(cpu, vma)
    hiwater = mm.hiwater_vm
    vm_stat_account(mm, vm_flags, pages)
    if flags & MREMAP_DONTUNMAP:
        leave_old_vma(cpu, mm_number, vma_number, old, old + old_length)
    else:
        if vm_flags & VM_ACCOUNT:
            vm_acct_memory(machine, old_pages)
        if vm_flags & VM_LOCKED:
            mm.locked_vm += pages
        if old_length != U(0):
            do_munmap(cpu, mm_number, old, old_length)
    mm.hiwater_vm = hiwater
    merge_at(cpu, mm_number, find_position(machine, mm_number, new), True)
    return np.int64(new)


# -- growing -------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64, i64, u64, u64, u64, i64)")
def vma_to_resize(cpu, mm_number, vma_number, address, old_length, new_length, flags):
    """Whether a part of a VMA may get another length: 0 or a negative errno."""
    machine = machine_of(cpu)
    mm, vma = mm_of(machine, mm_number), vma_of(machine, vma_number)
    if old_length == U(0) and vma.flags & (VM_SHARED | VM_MAYSHARE) == 0:
        return -EINVAL
    if flags & MREMAP_DONTUNMAP and vma.flags & VM_DONTEXPAND:
        return -EINVAL
    if old_length > vma.end - address:
        return -EFAULT
    if new_length == old_length:
        return 0
    if vma.flags & VM_DONTEXPAND:
        return -EFAULT
    if not mlock_future_ok(cpu, mm, vma.flags, new_length - old_length):
        return -EAGAIN
    if not may_expand_vm(cpu, mm, vma.flags, np.int64((new_length - old_length) >> U(PAGE_SHIFT))):
        return -ENOMEM
    return 0


@hot
def vma_expandable(machine, mm_number, vma, delta):
    end, limit = vma.end + delta, machine.paging.task_size
    return end > vma.end and end <= limit and find_vma_intersection(machine, mm_number, vma.end, end) == 0


@kernel("i64(cpu_t*, i64, i64, u64)")
def expand_in_place(cpu, mm_number, vma_number, delta):
    """Let a VMA end later, where nothing is: 0 or -ENOMEM. Mirrors vma_merge_extend."""
    machine = machine_of(cpu)
    mm, vma, pages = mm_of(machine, mm_number), vma_of(machine, vma_number), np.int64(delta >> U(PAGE_SHIFT))
    if vma.flags & VM_ACCOUNT and vm_enough_memory(cpu, mm_number, pages) != 0:
        return -ENOMEM
    vm_stat_account(mm, vma.flags, pages)
    if vma.flags & VM_LOCKED:
        mm.locked_vm += pages
    vma.end += delta
    merge_at(cpu, mm_number, find_position(machine, mm_number, vma.start), True)
    return 0


@kernel("i64(cpu_t*, i64, u64, u64, u64, u64, i64)")
def mremap_to(cpu, mm_number, address, old_length, new_length, new, flags):
    """To a place that the caller names, or that is only looked for: the address or a negative errno."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    limit = machine.paging.task_size
    if new & ~PAGE_MASK != U(0) or new_length > limit or new > limit - new_length:
        return -EINVAL
    if address + old_length > new and new + new_length > address:
        return -EINVAL
    if mm.map_count + 2 >= machine.max_map_count - SPARE_MAPS:
        return -ENOMEM
    if flags & MREMAP_FIXED:
        error = do_munmap(cpu, mm_number, new, new_length)
        if error != 0:
            return error
    if old_length > new_length:
        error = do_munmap(cpu, mm_number, address + new_length, old_length - new_length)
        if error != 0:
            return error
        old_length = new_length
    number = find_vma(machine, mm_number, address)
    if number == 0 or vma_of(machine, number).start > address:
        return -EFAULT
    error = vma_to_resize(cpu, mm_number, number, address, old_length, new_length, flags)
    if error == 0 and vma_of(machine, number).flags & VM_HUGETLB:  # what moves takes its reservation along
        error = split_range(cpu, mm_number, address, address + old_length, True)
        number = find_vma(machine, mm_number, address)
    if error != 0:
        return error
    vma = vma_of(machine, number)
    if flags & MREMAP_DONTUNMAP and not may_expand_vm(cpu, mm, vma.flags, np.int64(old_length >> U(PAGE_SHIFT))):
        return -ENOMEM
    if flags & MREMAP_FIXED == 0:
        new = get_unmapped_area(
            machine, mm_number, new, new_length, vma.file == 0 and vma.flags & VM_SHARED == 0, vma.pgoff
        )
        if new == U(0):
            return -ENOMEM
    return move_vma(cpu, mm_number, number, address, old_length, new_length, new, flags)


@kernel("i64(cpu_t*, i64, i64, u64, u64, u64, i64)")
def mremap_grow(cpu, mm_number, number, address, old_length, new_length, flags):
    """In place if the VMA ends there and there is room, else elsewhere if it may move."""
    machine = machine_of(cpu)
    error = vma_to_resize(cpu, mm_number, number, address, old_length, new_length, flags)
    if error != 0:
        return error
    vma = vma_of(machine, number)
    if old_length == vma.end - address and vma_expandable(machine, mm_number, vma, new_length - old_length):
        return np.int64(address) if expand_in_place(cpu, mm_number, number, new_length - old_length) == 0 else -ENOMEM
    if flags & MREMAP_MAYMOVE == 0:
        return -ENOMEM
    new = get_unmapped_area(
        machine, mm_number, U(0), new_length, vma.file == 0 and vma.flags & VM_SHARED == 0, vma.pgoff
    )
    if new == U(0):
        return -ENOMEM
    return move_vma(cpu, mm_number, number, address, old_length, new_length, new, flags)


@hot
def bad_for_huge_pages(inside, address, old_length, new_length, flags, new):
    """A mapping of huge pages moves by whole ones, and does not grow."""
    return address & inside != U(0) or (flags & MREMAP_FIXED and new & inside != U(0)) or new_length > old_length


@kernel("i64(cpu_t*, i64, u64, u64, u64, i64, u64)")
def do_mremap(cpu, mm_number, address, old_length, new_length, flags, new):
    """mremap(2): the address or a negative errno. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    if (
        flags & ~(MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
        or flags & (MREMAP_FIXED | MREMAP_MAYMOVE) == MREMAP_FIXED
    ):
        return -EINVAL
    if flags & MREMAP_DONTUNMAP and (flags & MREMAP_MAYMOVE == 0 or old_length != new_length):
        return -EINVAL
    old_length, new_length = page_align(old_length), page_align(new_length)
    if address & ~PAGE_MASK != U(0) or new_length == U(0):
        return -EINVAL
    number = find_vma(machine, mm_number, address)
    if number == 0 or vma_of(machine, number).start > address:
        return -EFAULT
    if vma_of(machine, number).flags & VM_HUGETLB:
        inside = huge_page_size(hstate_vma(machine, vma_of(machine, number))) - U(1)
        old_length, new_length = (old_length + inside) & ~inside, (new_length + inside) & ~inside
        if bad_for_huge_pages(inside, address, old_length, new_length, flags, new):
            return -EINVAL
    update_hiwater(mm_of(machine, mm_number))
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return mremap_to(cpu, mm_number, address, old_length, new_length, new, flags)
    if old_length > new_length:
        error = do_munmap(cpu, mm_number, address + new_length, old_length - new_length)
        return np.int64(address) if error == 0 else error
    if old_length == new_length:
        return np.int64(address)
    return mremap_grow(cpu, mm_number, number, address, old_length, new_length, flags)
