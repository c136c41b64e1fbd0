"""madvise(2) and mincore(2): Linux's mm/madvise.c and mm/mincore.c."""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, PAGE_MASK, entry_cmpxchg, entry_load
from numaemu.kernel.arch.pgalloc import covers_huge, haddr_of, huge_entry_offset, pmd_lock, pmd_trans_huge, pmd_unlock
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    is_swap_entry,
    mm_of,
    next_pte,
    pmd_size,
    pte_offset,
    pte_pfn,
    pte_present,
    pte_to_swp_entry,
    ptep_cmpxchg,
    ptep_get,
    skip_missing,
)
from numaemu.kernel.arch.tlb import (
    dec_tlb_flush_pending,
    flush_tlb_mm_range,
    inc_tlb_flush_pending,
    mm_tlb_flush_nested,
)
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock
from numaemu.kernel.core.xarray import xa_find, xa_is_value, xa_load
from numaemu.kernel.fs.disk import io_wait
from numaemu.kernel.fs.hugetlbfs import hugetlbfs_evict_inode, hugetlbfs_punch_hole
from numaemu.kernel.fs.inode import get_file
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.include.mm import linear_page_index, page_align
from numaemu.kernel.include.mm_types import (
    HUGETLB,
    MM_SWAPENTS,
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
    PG_anon,
    PG_dirty,
    PG_referenced,
    PG_swapcache,
)
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.mm.cache.readahead import force_page_cache_ra
from numaemu.kernel.mm.cache.shmem import release_mapping, shmem_object, vma_is_shmem
from numaemu.kernel.mm.cache.truncate import fput, shmem_punch_hole
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.fault.zap import zap_page_range
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages, hstate_vma, huge_page_size, hugetlb_object
from numaemu.kernel.mm.huge.split import flush_huge_pages, is_huge_zero, split_huge_pmd
from numaemu.kernel.mm.page_alloc.page_alloc import put_page, try_get_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_test, folio_trylock, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import (
    folio_deactivate,
    folio_isolate_lru,
    folio_mark_lazyfree,
    lru_add_drain,
)
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.reclaim.vmscan import init_scan_control, reclaim_pages
from numaemu.kernel.mm.reclaim.workingset import SWAP_CLUSTER_MAX
from numaemu.kernel.mm.space.mmap import update_hiwater, wraps
from numaemu.kernel.mm.space.vma import vma_is_anonymous, vma_modify_flags
from numaemu.kernel.mm.space.vma_index import find_position, map_count, vma_at
from numaemu.kernel.mm.swap.swap_state import FROM_DISK, SWAP_PFN, __read_swap_cache_async
from numaemu.kernel.mm.swap.swapfile import folio_free_swap, free_swap_and_cache
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


# -- advice about pages --------------------------------------------------------------------------------------


@hot
def give_up_contents(cpu, pfn):
    """Take slot and dirty mark from a page; False: it is locked, or somebody else's entry still names the slot."""
    page = page_of(machine_of(cpu), pfn)
    if not folio_test(page, PG_swapcache | PG_dirty):
        return True
    if not folio_trylock(page):
        return False
    free = load_acquire(page, "mapcount") == 1 and (not folio_test(page, PG_swapcache) or folio_free_swap(cpu, pfn))
    if free:
        folio_clear(page, PG_dirty)
    folio_unlock(page)
    return free


@hot
def lazy_free(machine, cpu, ptep, pte):
    """Let reclaim drop a page unless it is written again (PG_swapbacked off, entry clean); True if the entry changed.

    Only a page that nobody else maps: for the others it would be more than advice. Mirrors madvise_free_pte_range.
    """
    pfn = pte_pfn(pte)
    page = page_of(machine, pfn)
    if not folio_test(page, PG_anon) or not try_get_page(page):
        return False
    changed = False
    if ptep_get(ptep) == pte and load_acquire(page, "mapcount") == 1:
        if not give_up_contents(cpu, pfn):
            put_page(cpu, pfn)
            return False
        clean = pte & ~(_PAGE_DIRTY | _PAGE_ACCESSED)
        if clean == pte or ptep_cmpxchg(ptep, pte, clean):
            changed = clean != pte
            folio_mark_lazyfree(cpu, pfn)
    put_page(cpu, pfn)
    return changed


@hot
def free_swapped(cpu, mm, ptep, pte):
    """What lies in swap is given up at once: its slot is free, and the page is zeros when it is used again."""
    if ptep_cmpxchg(ptep, pte, U(0)):
        fetch_add(mm.rss, MM_SWAPENTS, -1)
        free_swap_and_cache(cpu, pte_to_swp_entry(pte))


@hot
def make_cold(machine, cpu, ptep, pte):
    """A page that was not used lately, as far as its entry tells, and no active one; True if the entry changed."""
    page = page_of(machine, pte_pfn(pte))
    if load_acquire(page, "mapcount") != 1 or not try_get_page(page):
        return False
    changed = False
    if ptep_get(ptep) == pte:
        changed = pte & _PAGE_ACCESSED != U(0) and ptep_cmpxchg(ptep, pte, pte & ~_PAGE_ACCESSED)
        folio_clear(page, PG_referenced)
        folio_deactivate(cpu, pte_pfn(pte))
    put_page(cpu, pte_pfn(pte))
    return changed


@hot
def isolate_for_pageout(machine, cpu, sc, ptep, pte):
    """Take a page that only this entry maps off its list into the batch; True if it is there."""
    pfn = pte_pfn(pte)
    page = page_of(machine, pfn)
    if load_acquire(page, "mapcount") != 1 or not try_get_page(page):
        return False
    taken = ptep_get(ptep) == pte and folio_isolate_lru(cpu, pfn)
    put_page(cpu, pfn)
    if taken:
        sc.pfn[sc.nr_taken] = pfn
        sc.nr_taken += 1
    return taken


@kernel("void(cpu_t*, i64, u64, u64, bool)")
def madvise_whole_huge(cpu, mm_number, address, where, free):
    """MADV_FREE (`free`) or MADV_COLD for all of a huge page that nobody else maps: it stays one (madvise_free_huge_pmd).

    Under the table's lock reclaim cannot take the entry apart, so its pages stay mapped.
    """
    machine, bits = machine_of(cpu), _PAGE_ACCESSED | (_PAGE_DIRTY if free else U(0))
    pmd_lock(cpu, where)
    entry, changed = entry_load(where), False
    for i in range(hpage_pages(machine) if pmd_trans_huge(entry) else 0):
        pfn = pte_pfn(entry) + i
        if not free:
            folio_clear(page_of(machine, pfn), PG_referenced)
            folio_deactivate(cpu, pfn)
        elif give_up_contents(cpu, pfn):
            folio_mark_lazyfree(cpu, pfn)
    while pmd_trans_huge(entry) and entry & bits != U(0):
        before = entry_cmpxchg(where, entry, entry & ~bits)
        changed = changed or before == entry
        entry = entry & ~bits if before == entry else before
    pmd_unlock(machine, where)
    if changed:
        flush_huge_pages(cpu, mm_number, address, address + pmd_size(machine))


@kernel("u64(cpu_t*, i64, u64, u64, i64)")
def madvise_huge_pmd(cpu, mm_number, address, end, advice):
    """No table has the entry of `address`: there is nothing, or a huge page. Where to go on.

    One that others map too is left alone. Of one that is to be written out, or of which only a part is meant, every page is
    looked at for itself. Mirrors the beginning of madvise_cold_or_pageout_pte_range and madvise_free_pte_range.
    """
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    where, following = huge_entry_offset(machine, mm, address), skip_missing(machine, mm, address)
    if where == U(0):
        return following
    entry = entry_load(where)
    if not pmd_trans_huge(entry):
        return address  # reclaim has just taken it apart
    if is_huge_zero(entry) or load_acquire(page_of(machine, pte_pfn(entry)), "mapcount") != 1:
        return following
    if advice != MADV_PAGEOUT and covers_huge(machine, address, end):
        madvise_whole_huge(cpu, mm_number, address, where, advice == MADV_FREE)
        return following
    if split_huge_pmd(cpu, where):
        flush_huge_pages(cpu, mm_number, haddr_of(machine, address), haddr_of(machine, address) + pmd_size(machine))
    return address


@kernel("void(cpu_t*, i64, u64, u64)")
def madvise_pageout(cpu, mm_number, start, end):
    """MADV_PAGEOUT: reclaim the pages of a range, in batches of one node each."""
    machine = machine_of(cpu)
    mm, sc, address, node = mm_of(machine, mm_number), scan_control_of(cpu), start, -1
    lru_add_drain(cpu)
    init_scan_control(machine, sc, GFP_KERNEL, 0, machine.node_mask)
    sc.nr_taken = 0
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            address = madvise_huge_pmd(cpu, mm_number, address, end, MADV_PAGEOUT)
            continue
        pte = ptep_get(ptep)
        if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
            if sc.nr_taken == SWAP_CLUSTER_MAX or (sc.nr_taken > 0 and page_to_nid(machine, pte_pfn(pte)) != node):
                reclaim_pages(cpu, sc, node)
            if isolate_for_pageout(machine, cpu, sc, ptep, pte):
                node = page_to_nid(machine, pte_pfn(pte))
        address += U(PAGE_SIZE)
    if sc.nr_taken > 0:
        reclaim_pages(cpu, sc, node)
    lru_add_drain(cpu)


@kernel("void(cpu_t*, i64, u64, u64, i64)")
def madvise_pages(cpu, mm_number, start, end, advice):
    """MADV_FREE or MADV_COLD for the pages of a range."""
    machine, free = machine_of(cpu), advice == MADV_FREE
    mm, address, changed = mm_of(machine, mm_number), start, False
    lru_add_drain(cpu)  # only pages on a list can be moved
    inc_tlb_flush_pending(mm)
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            address = madvise_huge_pmd(cpu, mm_number, address, end, advice)
            continue
        pte = ptep_get(ptep)
        if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
            if lazy_free(machine, cpu, ptep, pte) if free else make_cold(machine, cpu, ptep, pte):
                changed = True
        elif free and is_swap_entry(pte):
            free_swapped(cpu, mm, ptep, pte)
        address += U(PAGE_SIZE)
    if changed or mm_tlb_flush_nested(mm):
        flush_tlb_mm_range(cpu, mm_number, start, end)
    dec_tlb_flush_pending(mm)
    lru_add_drain(cpu)


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
