"""Swap cache look-ups and readahead: Linux's mm/swap_state.c."""

import numpy as np

from numaemu.compiler.atomic import exchange, fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.arch.pgtable import is_swap_entry, pmd_shift, pte_to_swp_entry, ptep_get, ptep_step
from numaemu.kernel.core.psi import psi_memstall_leave, psi_thrashing_start
from numaemu.kernel.core.smp import machine_of, relax
from numaemu.kernel.fs.disk import io_wait
from numaemu.kernel.include.gfp import GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.mm import PAGE_MASK, PAGE_SHIFT
from numaemu.kernel.include.mm_types import PG_dirty, PG_locked, PG_readahead, PG_swapbacked
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.include.vmstat import SWAP_RA, SWAP_RA_HIT, count_vm_events
from numaemu.kernel.mm.page_alloc.page_alloc import get_page, put_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_set, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import folio_add_new_lru, lru_add_drain
from numaemu.kernel.mm.reclaim.workingset import workingset_refault
from numaemu.kernel.mm.space.mempolicy import vma_alloc_folio
from numaemu.kernel.mm.swap.page_io import swap_read_folio
from numaemu.kernel.mm.swap.swapfile import (
    SWAP_HAS_CACHE,
    SWP_SYNCHRONOUS_IO,
    add_to_swap_cache,
    folio_alloc_swap,
    swap_cache,
    swap_cache_get_folio,
    swap_count,
    swap_duplicate,
    swap_of,
    swp_offset,
    swp_type,
)

U = np.uint64
# how a page was come by, beside its number
SWAP_READ, FROM_DISK = 1 << 50, 1 << 51  # read from its slot, not found in the cache; and the disk was asked
SWAP_PFN = SWAP_READ - 1
SWAP_RA_ORDER_CEILING = 5  # of vm.page-cluster, by addresses
SWAP_RA_WIN_SHIFT, SWAP_RA_HITS_MAX = 6, 63
FIRST_HITS = 4


@kernel("bool(cpu_t*, i64)")
def add_to_swap(cpu, pfn):
    """Give a locked anonymous page a slot and make it the slot's page in the swap cache; False: no slot is free."""
    machine = machine_of(cpu)
    entry = folio_alloc_swap(cpu)
    if entry == 0:
        return False
    page = page_of(machine, pfn)
    get_page(page)
    add_to_swap_cache(cpu, pfn, entry)
    folio_set(page, PG_dirty)  # it must be written, whether a page-table entry says so or not
    return True


@kernel("i64(cpu_t*, vma_t*, u64, i64)")
def __read_swap_cache_async(cpu, vma, address, entry):
    """The page of an entry, with a reference: found in the cache, or new and read from the slot (+ SWAP_READ, and
    FROM_DISK if the disk was asked); 0: gone, or no memory.

    `address` is where the fault is, whose policy places the page.
    """
    machine = machine_of(cpu)
    new, tries = 0, 0
    while True:
        pfn = swap_cache_get_folio(cpu, entry)
        if pfn != 0 or swap_count(machine, entry) <= 0:
            if new != 0:
                put_page(cpu, new)
            return pfn
        if new == 0:
            new = vma_alloc_folio(cpu, GFP_HIGHUSER_MOVABLE, vma, address)
            if new == 0:
                return 0
        if swap_duplicate(cpu, entry, SWAP_HAS_CACHE):
            break
        tries += 1
        relax(cpu, tries)  # somebody else is just adding it, or taking it away
    page, shadow = page_of(machine, new), swap_cache(machine)[entry]
    page.flags |= U(PG_locked | PG_swapbacked)
    fetch_add(page, "refcount", 2)  # the cache's, that of its way to the LRU list
    add_to_swap_cache(cpu, new, entry)
    if shadow < 0:
        workingset_refault(cpu, new, shadow)
    folio_add_new_lru(cpu, new)
    asked = swap_read_folio(cpu, new)
    folio_unlock(page)
    return new | SWAP_READ | (FROM_DISK if asked else 0)


# -- how much to read ahead --------------------------------------------------------------------------------------


@hot
def __swapin_nr_pages(prev, now, hits, most, prev_win):
    """A window of pages: more while readahead is right, one where it is not and faults jump."""
    pages = hits + 2
    if pages == 2:
        if now != prev + 1 and now != prev - 1:
            pages = 1
    else:
        roundup = 4
        while roundup < pages:
            roundup <<= 1
        pages = roundup
    return max(min(pages, most), prev_win // 2)


@kernel("i64(machine_t*, i64)")
def swapin_nr_pages(machine, offset):
    """How many slots around `offset` to read."""
    swap = swap_of(machine)
    most = 1 << swap.page_cluster
    if most <= 1:
        return 1
    hits = exchange(swap, "swapin_readahead_hits", 0)
    pages = __swapin_nr_pages(swap.prev_offset, offset, hits, most, swap.last_readahead_pages)
    if hits == 0:
        swap.prev_offset = offset
    swap.last_readahead_pages = pages
    return pages


# vma->swap_readahead_info: | page of the last fault | pages of its window (6 bits) | hits since (6 bits) |


@hot
def swap_ra_val(page_address, window, hits):
    """SWAP_RA_VAL"""
    return (page_address & PAGE_MASK) | U(window << SWAP_RA_WIN_SHIFT) | U(hits)


@hot
def swap_ra_of(vma):
    """GET_SWAP_RA_VAL: a VMA begins with hits, so that the first window is small, but one."""
    value = vma.swap_readahead_info
    return value if value != U(0) else U(FIRST_HITS)


@hot
def swap_ra_window(value):
    """SWAP_RA_WIN"""
    return np.int64((value & ~PAGE_MASK) >> U(SWAP_RA_WIN_SHIFT))


@hot
def swap_ra_hits(value):
    """SWAP_RA_HITS"""
    return np.int64(value & U(SWAP_RA_HITS_MAX))


@kernel("bool(machine_t*)")
def swap_use_vma_readahead(machine):
    """By addresses rather than by slots, unless an area lies on a disk that rotates."""
    swap = swap_of(machine)
    return swap.enable_vma_readahead != 0 and swap.nr_rotate_swap == 0


@kernel("i64(cpu_t*, vma_t*, u64)")
def swap_vma_ra_win(cpu, vma, address):
    """How many pages around `address` to read, which is remembered."""
    machine = machine_of(cpu)
    most, value = 1 << min(swap_of(machine).page_cluster, SWAP_RA_ORDER_CEILING), swap_ra_of(vma)
    if most == 1:
        return 1
    page, prev = np.int64(address >> U(PAGE_SHIFT)), np.int64(value >> U(PAGE_SHIFT))
    window = __swapin_nr_pages(prev, page, swap_ra_hits(value), most, swap_ra_window(value))
    vma.swap_readahead_info = swap_ra_val(address, window, 0)
    return window


# -- look-ups ----------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64)")
def swap_cache_get_hit(cpu, entry):
    """swap_cache_get_folio for a fault in a shared object: readahead learns that it was right."""
    machine = machine_of(cpu)
    pfn = swap_cache_get_folio(cpu, entry)
    if pfn != 0 and folio_clear(page_of(machine, pfn), PG_readahead):
        count_vm_events(machine, cpu.id, SWAP_RA_HIT, 1)
        swap_of(machine).swapin_readahead_hits += 1
    return pfn


@kernel("i64(cpu_t*, vma_t*, u64, i64)")
def swap_cache_get_vma_hit(cpu, vma, address, entry):
    """The same for a fault in private memory: where readahead goes by addresses, the VMA learns it."""
    machine = machine_of(cpu)
    if not swap_use_vma_readahead(machine):
        return swap_cache_get_hit(cpu, entry)
    pfn = swap_cache_get_folio(cpu, entry)
    if pfn == 0:
        return 0
    value = swap_ra_of(vma)
    hits = swap_ra_hits(value)
    if folio_clear(page_of(machine, pfn), PG_readahead):
        count_vm_events(machine, cpu.id, SWAP_RA_HIT, 1)
        hits = min(hits + 1, SWAP_RA_HITS_MAX)
    vma.swap_readahead_info = swap_ra_val(address, swap_ra_window(value), hits)
    return pfn


# -- reading -----------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, vma_t*, u64, i64, bool)")
def read_ahead(cpu, vma, address, entry, wanted):
    """One page of a window: where it came from, SWAP_READ and FROM_DISK. Only the wanted one is read for its own sake."""
    machine = machine_of(cpu)
    answer = __read_swap_cache_async(cpu, vma, address, entry)
    if answer == 0:
        return 0
    if not wanted and answer & SWAP_READ:
        folio_set(page_of(machine, answer & SWAP_PFN), PG_readahead)
        count_vm_events(machine, cpu.id, SWAP_RA, 1)
    put_page(cpu, answer & SWAP_PFN)
    return answer & (SWAP_READ | FROM_DISK if wanted else FROM_DISK)


@kernel("i64(cpu_t*, vma_t*, u64, i64, i64)")
def read_wanted(cpu, vma, address, entry, come_by):
    """The wanted page after its window, by which it may have come: as from __read_swap_cache_async."""
    answer = __read_swap_cache_async(cpu, vma, address, entry)
    if (answer | come_by) & FROM_DISK:
        stalled = answer != 0 and psi_thrashing_start(cpu, page_of(machine_of(cpu), answer & SWAP_PFN))
        io_wait(cpu, machine_of(cpu).disk_read_ns)  # once: they are one request
        psi_memstall_leave(cpu, stalled)
    return answer | come_by if answer != 0 else 0


@kernel("i64(cpu_t*, vma_t*, u64, i64)")
def swap_cluster_readahead(cpu, vma, address, entry):
    """Read the slots around an entry into the cache, as many as seem worth it; the entry's page as from
    __read_swap_cache_async.
    """
    machine = machine_of(cpu)
    offset, info = swp_offset(entry), swap_of(machine).info[swp_type(entry)]
    mask, come_by = swapin_nr_pages(machine, offset) - 1, 0
    if mask > 0:
        for near in range(max(offset & ~mask, 1), min(offset | mask, info.max - 1) + 1):
            come_by |= read_ahead(cpu, vma, address, entry - offset + near, near == offset)
        lru_add_drain(cpu)
    return read_wanted(cpu, vma, address, entry, come_by)


@kernel("i64(cpu_t*, vma_t*, u64, i64, u64)")
def swap_vma_readahead(cpu, vma, address, entry, ptep):
    """Read what is swapped out around an address, whose page-table entry is at `ptep`, as many pages as seem worth it and
    lie in the same table: towards where the faults go, or on both sides.
    """
    machine, value = machine_of(cpu), swap_ra_of(vma)
    page, prev = np.int64(address >> U(PAGE_SHIFT)), np.int64(value >> U(PAGE_SHIFT))
    window, come_by = swap_vma_ra_win(cpu, vma, address), 0
    if window > 1:
        table = np.int64(1 << pmd_shift(machine) - PAGE_SHIFT)
        left = page if page == prev + 1 else page - window + 1 if prev == page + 1 else page - (window - 1) // 2
        first = max(left, np.int64(vma.start >> U(PAGE_SHIFT)), page // table * table)
        end = min(left + window, np.int64(vma.end >> U(PAGE_SHIFT)), page // table * table + table)
        step = ptep_step(machine)
        for near in range(first, end):
            pte = ptep_get(ptep + U(near - page) * step if near >= page else ptep - U(page - near) * step)
            if is_swap_entry(pte):
                come_by |= read_ahead(cpu, vma, U(near) << U(PAGE_SHIFT), pte_to_swp_entry(pte), near == page)
        lru_add_drain(cpu)
    return read_wanted(cpu, vma, address, entry, come_by)


@kernel("i64(cpu_t*, vma_t*, u64, i64, u64)")
def swapin_readahead(cpu, vma, address, entry, ptep):
    """The page of an entry for a fault at `address`, whose page-table entry is at `ptep`, and some around it; as from
    __read_swap_cache_async.

    From zram only the page itself, unless others name its slot: reading ahead saves no latency there.
    """
    machine = machine_of(cpu)
    if swap_of(machine).info[swp_type(entry)].flags & SWP_SYNCHRONOUS_IO and swap_count(machine, entry) == 1:
        return read_wanted(cpu, vma, address, entry, 0)
    if swap_use_vma_readahead(machine):
        return swap_vma_readahead(cpu, vma, address, entry, ptep)
    return swap_cluster_readahead(cpu, vma, address, entry)
