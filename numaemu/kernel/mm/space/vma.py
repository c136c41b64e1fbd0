"""Making, splitting and merging VMAs: Linux's mm/vma.c, and the first anon_vma of a VMA from mm/rmap.c.

A private VMA's `anon_vma` says whose pages it has: VMAs split from one another have the same, a forked copy gets one of
its own and is `chained`. Its `mapping` is the family of all of them (rmap.py), so equal anon_vmas have equal mappings.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    leaf_of,
    mm_of,
    pmd_size,
    pte_offset,
    pte_pfn,
    pte_present,
    ptep_get,
    skip_missing,
)
from numaemu.kernel.core.pool import pool_get, pool_put
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.fs.inode import file_of, get_file
from numaemu.kernel.include.mm import linear_page_index, vma_pages
from numaemu.kernel.include.mm_types import (
    BY_FAMILY,
    BY_FILE,
    VM_ACCESS_FLAGS,
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_LOCKED,
    VM_SHARED,
    VM_SOFTDIRTY,
)
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.fault.rmap import (
    link_file_vma,
    link_vma,
    mapping_of,
    new_mapping,
    next_vma_of,
    page_address_in_vma,
    unlink_file_vma,
    unlink_vma,
)
from numaemu.kernel.mm.huge.hugetlb_pool import get_resv_map, hstate_vma, huge_page_size
from numaemu.kernel.mm.huge.split import split_huge_pmd_address
from numaemu.kernel.mm.page_alloc.page_alloc import put_page, try_get_page
from numaemu.kernel.mm.space.mempolicy import copy_policy, same_policy
from numaemu.kernel.mm.space.mlock import mlock_folio, munlock_folio
from numaemu.kernel.mm.space.vma_index import find_position, insert_at, map_count, remove_at, vma_at, vma_index, vma_of
from numaemu.spec.param import PAGE_SIZE, VMA_INDEX_SLOTS
from numaemu.uapi import errno

U = np.uint64
ENOMEM, EINVAL = errno.ENOMEM, errno.EINVAL


@hot
def vma_is_anonymous(vma):
    """Private memory of no file (vm_ops = NULL)."""
    return vma.file == 0 and vma.flags & (VM_SHARED | VM_HUGETLB) == 0


@kernel("i64(cpu_t*, i64, u64, u64, i64, i64)")
def new_vma(cpu, mm_number, start, end, flags, pgoff):
    """A VMA with no policy and no mapping, not yet in the index; its number or 0: table full."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.vma_pool)
    if number != 0:
        vma = vma_of(machine, number)
        vma.start, vma.end, vma.flags, vma.pgoff, vma.mm = start, end, flags, pgoff, mm_number
        vma.mapping, vma.file, vma.i_mapping = 0, 0, 0
        for which in (BY_FAMILY, BY_FILE):
            vma.next[which] = vma.prev[which] = 0
        vma.anon_vma, vma.chained, vma.resv_map, vma.resv_unmapped, vma.hstate = 0, 0, U(0), 0, 0
        vma.policy.mode, vma.policy.flags, vma.policy.nodes, vma.policy.user_nodes = 0, 0, U(0), U(0)
        vma.swap_readahead_info, vma.numab.there = U(0), 0
    return number


@kernel("void(cpu_t*, i64, i64)")
def join_family(cpu, vma_number, of_number):
    """Let a VMA have the pages of another: its mapping and anon_vma (anon_vma_clone)."""
    machine = machine_of(cpu)
    vma, of = vma_of(machine, vma_number), vma_of(machine, of_number)
    vma.anon_vma, vma.chained, vma.swap_readahead_info = of.anon_vma, of.chained, of.swap_readahead_info
    if of.mapping != 0:
        link_vma(cpu, of.mapping, vma_number)
        compare_exchange(vma, "mapping", 0, of.mapping)


@kernel("void(cpu_t*, i64, i64)")
def join_file(cpu, vma_number, of_number):
    """Let a VMA map the file that another one maps, if it does."""
    machine = machine_of(cpu)
    vma, of = vma_of(machine, vma_number), vma_of(machine, of_number)
    if of.file != 0:
        vma.file, vma.i_mapping = of.file, of.i_mapping
        get_file(machine, vma.file)
        if vma.i_mapping != 0:
            link_file_vma(cpu, vma_number, of_number)


@kernel("void(cpu_t*, vma_t*)")
def lock_families(cpu, vma):
    """Keep walks over the reverse mapping away from a VMA: its file's lock, then its anonymous pages' one."""
    machine = machine_of(cpu)
    if vma.i_mapping != 0:
        spin_lock(cpu, address_of(mapping_of(machine, vma.i_mapping), "lock"))
    if vma.mapping != 0:
        spin_lock(cpu, address_of(mapping_of(machine, vma.mapping), "lock"))


@hot
def unlock_families(machine, vma):
    if vma.mapping != 0:
        spin_unlock(address_of(mapping_of(machine, vma.mapping), "lock"))
    if vma.i_mapping != 0:
        spin_unlock(address_of(mapping_of(machine, vma.i_mapping), "lock"))


# -- the first page ------------------------------------------------------------------------------------------


@kernel("bool(vma_t*, vma_t*)")
def anon_vma_compatible(low, high):
    """Two neighbours that may become one when their permissions are equal."""
    return (
        low.end == high.start
        and same_policy(low.policy, high.policy)
        and low.file == high.file
        and (low.flags ^ high.flags) & ~(VM_ACCESS_FLAGS | VM_SOFTDIRTY) == 0
        and high.pgoff == low.pgoff + vma_pages(low)
    )


@kernel("i64(machine_t*, i64)")
def find_mergeable_anon_vma(machine, vma_number):
    """A neighbour whose anon_vma a VMA may share, so that both can be merged later; its number or 0."""
    vma = vma_of(machine, vma_number)
    position = find_position(machine, vma.mm, vma.start)
    for place in (position + 1, position - 1):  # the next one first
        if place < 0 or place >= map_count(machine, vma.mm):
            continue
        other = vma_at(machine, vma.mm, place)
        compatible = anon_vma_compatible(vma, other) if place > position else anon_vma_compatible(other, vma)
        if compatible and other.anon_vma != 0 and other.chained == 0:
            return vma_index(machine, vma.mm)[place]
    return 0


@kernel("bool(cpu_t*, i64)")
def anon_vma_prepare(cpu, vma_number):
    """Give an anonymous VMA its family before its first page; several threads may come at once. False: table full."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    lock = address_of(machine, "anon_vma_lock")
    spin_lock(cpu, lock)
    if vma.mapping == 0:
        neighbour = find_mergeable_anon_vma(machine, vma_number)
        if neighbour != 0:
            join_family(cpu, vma_number, neighbour)
        else:
            number = new_mapping(cpu, 0)
            if number != 0:
                link_vma(cpu, number, vma_number)
                vma.anon_vma = fetch_add(machine, "next_anon_vma", 1) + 1
                compare_exchange(vma, "mapping", 0, number)
    spin_unlock(lock)
    return load_acquire(vma, "mapping") != 0


# -- splitting -----------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64, i64, u64)")
def __split_vma(cpu, mm_number, position, address):
    """Cut the VMA at `position` in two at `address`, which lies inside it: 0 or -ENOMEM; -EINVAL inside a huge page.

    Whatever max_map_count says: for who is about to unmap one of both.
    """
    machine = machine_of(cpu)
    if vma_at(machine, mm_number, position).flags & VM_HUGETLB and address & (
        huge_page_size(hstate_vma(machine, vma_at(machine, mm_number, position))) - U(1)
    ) != U(0):
        return -EINVAL  # hugetlb_vm_op_split
    if machine.thp_used != 0 and address & (pmd_size(machine) - U(1)) != U(0):
        split_huge_pmd_address(cpu, mm_number, address)  # vma_adjust_trans_huge
    if map_count(machine, mm_number) == VMA_INDEX_SLOTS:
        return -ENOMEM
    low_number = vma_index(machine, mm_number)[position]
    low = vma_of(machine, low_number)
    pgoff = linear_page_index(low, address)
    number = new_vma(cpu, mm_number, address, low.end, low.flags, pgoff)
    if number == 0:
        return -ENOMEM
    high = vma_of(machine, number)
    copy_policy(high.policy, low.policy)
    join_file(cpu, number, low_number)
    join_family(cpu, number, low_number)
    if low.resv_map != U(0):  # hugetlb_vm_op_open
        get_resv_map(low.resv_map)
    high.resv_map, high.resv_unmapped, high.hstate = low.resv_map, low.resv_unmapped, low.hstate
    low.end = address
    insert_at(machine, mm_number, position + 1, number)
    return 0


@kernel("i64(cpu_t*, i64, i64, u64)")
def split_vma(cpu, mm_number, position, address):
    """The same within max_map_count."""
    machine = machine_of(cpu)
    if map_count(machine, mm_number) >= machine.max_map_count:
        return -ENOMEM
    return __split_vma(cpu, mm_number, position, address)


@kernel("i64(cpu_t*, i64, u64, bool)")
def split_at(cpu, mm_number, address, limited):
    """Make a VMA border at `address` if it cuts a VMA: 0 or a negative errno."""
    machine = machine_of(cpu)
    position = find_position(machine, mm_number, address)
    if position < map_count(machine, mm_number) and vma_at(machine, mm_number, position).start < address:
        if limited:
            return split_vma(cpu, mm_number, position, address)
        return __split_vma(cpu, mm_number, position, address)
    return 0


@kernel("i64(cpu_t*, i64, u64, u64, bool)")
def split_range(cpu, mm_number, start, end, limited):
    """Make VMA borders at `start` and `end` where they cut a VMA, within max_map_count if `limited`: 0 or a negative errno."""
    error = split_at(cpu, mm_number, start, limited)
    return error if error != 0 else split_at(cpu, mm_number, end, limited)


@kernel("i64(cpu_t*, i64, u64, u64)")
def split_for_munmap(cpu, mm_number, start, end):
    """Borders at both ends of what is to be unmapped: 0 or a negative errno, and nothing is unmapped then.

    At max_map_count only a hole inside a VMA is refused: afterwards there would be more of them than before
    (vms_gather_munmap_vmas).
    """
    machine = machine_of(cpu)
    position = find_position(machine, mm_number, start)
    if position < map_count(machine, mm_number) and map_count(machine, mm_number) >= machine.max_map_count:
        vma = vma_at(machine, mm_number, position)
        if vma.start < start and end < vma.end:
            return -ENOMEM
    return split_range(cpu, mm_number, start, end, False)


# -- merging -------------------------------------------------------------------------------------------------


@kernel("bool(vma_t*, vma_t*)")
def is_mergeable_anon_vma(vma, into):
    """The pages of `vma` may become those of its neighbour `into`, but not if that one was forked or has none itself."""
    if vma.anon_vma == into.anon_vma:
        return True
    return vma.anon_vma == 0 and into.chained == 0


@kernel("bool(vma_t*, vma_t*)")
def is_mergeable_vma(low, high):
    """Two neighbours that differ in nothing but whose pages they have; can_vma_merge_before and _after."""
    if (
        low.end != high.start
        or low.flags & VM_DONTEXPAND
        or (low.flags ^ high.flags) & ~VM_SOFTDIRTY != 0
        or low.file != high.file
    ):
        return False
    if low.flags & VM_SHARED and low.mapping != high.mapping:
        return False
    return same_policy(low.policy, high.policy) and low.pgoff + vma_pages(low) == high.pgoff


@kernel("void(cpu_t*, vma_t*, u64, i64)")
def move_start(cpu, vma, start, pgoff):
    """Let a VMA begin elsewhere; under the family's lock, since a walk over the family needs both words."""
    lock_families(cpu, vma)
    vma.start, vma.pgoff = start, pgoff
    unlock_families(machine_of(cpu), vma)


@kernel("void(cpu_t*, i64, i64, bool)")
def swallow(cpu, mm_number, position, keep_high):
    """Make one VMA of those at `position` and behind it; one of them has no pages, or both have the same anon_vma."""
    machine = machine_of(cpu)
    low_number, high_number = vma_index(machine, mm_number)[position], vma_index(machine, mm_number)[position + 1]
    low, high = vma_of(machine, low_number), vma_of(machine, high_number)
    kept, gone = (high, low) if keep_high else (low, high)
    kept_number, gone_number = (high_number, low_number) if keep_high else (low_number, high_number)
    if kept.mapping == 0 and gone.mapping != 0:
        join_family(cpu, kept_number, gone_number)
    if keep_high:
        move_start(cpu, kept, gone.start, gone.pgoff)
    else:
        kept.end = gone.end
    kept.flags |= gone.flags
    if gone.file != 0:  # the one that stays holds it, too
        if gone.i_mapping != 0:
            unlink_file_vma(cpu, gone_number)
        fetch_add(file_of(machine, gone.file), "count", -1)
    if gone.mapping != 0:
        unlink_vma(cpu, gone_number)
    remove_at(machine, mm_number, position if keep_high else position + 1)
    pool_put(cpu, machine.vma_pool, gone_number)


@kernel("i64(cpu_t*, i64, i64, bool)")
def merge_at(cpu, mm_number, position, with_next):
    """Merge a VMA that is new or has changed with its neighbours; the position where it is now.

    A VMA with pages is not merged into a neighbour without any, though the other way round is fine: so until Linux 6.16.
    """
    machine = machine_of(cpu)
    vma, left, right = vma_at(machine, mm_number, position), False, False
    if position > 0:
        low = vma_at(machine, mm_number, position - 1)
        left = is_mergeable_vma(low, vma) and is_mergeable_anon_vma(vma, low)
    if with_next and position + 1 < map_count(machine, mm_number):
        high = vma_at(machine, mm_number, position + 1)
        right = is_mergeable_vma(vma, high) and is_mergeable_anon_vma(vma, high)
        if left and right:
            low = vma_at(machine, mm_number, position - 1)
            right = low.anon_vma == high.anon_vma or low.anon_vma == 0 or high.anon_vma == 0
    if right:
        swallow(cpu, mm_number, position, True)
    if left:
        swallow(cpu, mm_number, position - 1, False)
        return position - 1
    return position


@kernel("void(cpu_t*, i64, u64, u64)")
def merge_range(cpu, mm_number, start, end):
    """Merge the VMAs of [start, end) that have changed, from the lowest on, each with those before it."""
    machine = machine_of(cpu)
    position = find_position(machine, mm_number, start)
    while position < map_count(machine, mm_number):
        vma = vma_at(machine, mm_number, position)
        if vma.start >= end:
            break
        position = merge_at(cpu, mm_number, position, vma.end >= end) + 1


@kernel("i64(cpu_t*, i64, i64, u64, u64, i64)")
def vma_modify_flags(cpu, mm_number, position, start, end, flags):
    """Give [start, end) of the VMA at `position` new flags: the position it has then, after splits and merges, or -errno."""
    machine = machine_of(cpu)
    if vma_at(machine, mm_number, position).start < start:
        error = split_vma(cpu, mm_number, position, start)
        if error != 0:
            return error
        position += 1
    if vma_at(machine, mm_number, position).end > end:
        error = split_vma(cpu, mm_number, position, end)
        if error != 0:
            return error
    vma_at(machine, mm_number, position).flags = flags
    return merge_at(cpu, mm_number, position, True)


# -- locked pages --------------------------------------------------------------------------------------------


@hot
def maps_page(machine, vma, pfn):
    """True if the VMA has a page-table entry for the page."""
    address = page_address_in_vma(page_of(machine, pfn), vma)
    pte = leaf_of(machine, mm_of(machine, vma.mm), address) if address != U(0) else U(0)
    return pte_present(pte) and pte_pfn(pte) == pfn


@kernel("void(cpu_t*, i64)")
def munlock_unless_locked(cpu, pfn):
    """A VMA that locked the page does so no longer: unlock it unless another one still does. The caller has a reference."""
    machine = machine_of(cpu)
    mapping = mapping_of(machine, page_of(machine, pfn).mapping)
    lock, locked = address_of(mapping, "lock"), False
    spin_lock(cpu, lock)
    number = mapping.first_vma
    while number != 0 and not locked:
        vma = vma_of(machine, number)
        locked = vma.flags & VM_LOCKED != 0 and maps_page(machine, vma, pfn)
        number = next_vma_of(mapping, vma)
    if not locked:
        munlock_folio(cpu, pfn)
    spin_unlock(lock)


@kernel("void(cpu_t*, vma_t*, u64, u64)")
def mlock_vma_pages_range(cpu, vma, start, end):
    """Lock or unlock the pages that a VMA maps already, as its flags (set before) say."""
    machine = machine_of(cpu)
    mm, address = mm_of(machine, vma.mm), start
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            split_huge_pmd_address(cpu, vma.mm, address)
            address = skip_missing(machine, mm, address)
            continue
        pte = ptep_get(ptep)
        if pte_present(pte) and pte & _PAGE_SPECIAL == U(0) and try_get_page(page_of(machine, pte_pfn(pte))):
            if ptep_get(ptep) == pte:
                if vma.flags & VM_LOCKED:
                    mlock_folio(cpu, pte_pfn(pte))
                else:
                    munlock_unless_locked(cpu, pte_pfn(pte))
            put_page(cpu, pte_pfn(pte))
        address += U(PAGE_SIZE)
