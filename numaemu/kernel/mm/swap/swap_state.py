"""Swap cache look-ups and readahead: Linux's mm/swap_state.c."""

import numpy as np

from numaemu.compiler.atomic import exchange, fetch_add
from numaemu.compiler.decorators import kernel
from numaemu.kernel.core.smp import machine_of, relax
from numaemu.kernel.fs.disk import io_wait
from numaemu.kernel.include.gfp import GFP_HIGHUSER_MOVABLE
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


@kernel("i64(cpu_t*, i64)")
def swap_cache_get_hit(cpu, entry):
    """swap_cache_get_folio for a fault: readahead learns that it was right."""
    machine = machine_of(cpu)
    pfn = swap_cache_get_folio(cpu, entry)
    if pfn != 0 and folio_clear(page_of(machine, pfn), PG_readahead):
        count_vm_events(machine, cpu.id, SWAP_RA_HIT, 1)
        swap_of(machine).swapin_readahead_hits += 1
    return pfn


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


@kernel("i64(machine_t*, i64)")
def swapin_nr_pages(machine, offset):
    """How many slots around `offset` to read: more while readahead is right, one where it is not and faults jump."""
    swap = swap_of(machine)
    most = 1 << swap.page_cluster
    if most <= 1:
        return 1
    hits = exchange(swap, "swapin_readahead_hits", 0)
    pages = hits + 2
    if pages == 2:
        if offset != swap.prev_offset + 1 and offset != swap.prev_offset - 1:
            pages = 1
    else:
        roundup = 4
        while roundup < pages:
            roundup <<= 1
        pages = roundup
    pages = max(min(pages, most), swap.last_readahead_pages // 2)
    if hits == 0:
        swap.prev_offset = offset
    swap.last_readahead_pages = pages
    return pages


@kernel("i64(cpu_t*, vma_t*, u64, i64)")
def swap_cluster_readahead(cpu, vma, address, entry):
    """Read the slots around an entry into the cache, as many as seem worth it; the entry's page as from
    __read_swap_cache_async.

    From zram only the page itself, unless others name its slot: reading ahead saves no latency there (SWP_SYNCHRONOUS_IO).
    """
    machine = machine_of(cpu)
    offset, info = swp_offset(entry), swap_of(machine).info[swp_type(entry)]
    alone = info.flags & SWP_SYNCHRONOUS_IO != 0 and swap_count(machine, entry) == 1
    mask, come_by = 0 if alone else swapin_nr_pages(machine, offset) - 1, 0
    if mask > 0:
        first, from_disk = entry - offset, 0
        for near in range(max(offset & ~mask, 1), min(offset | mask, info.max - 1) + 1):
            answer = __read_swap_cache_async(cpu, vma, address, first + near)
            if answer == 0:
                continue
            from_disk |= answer & FROM_DISK
            if near == offset:
                come_by = answer & SWAP_READ
            elif answer & SWAP_READ:
                folio_set(page_of(machine, answer & SWAP_PFN), PG_readahead)
                count_vm_events(machine, cpu.id, SWAP_RA, 1)
            put_page(cpu, answer & SWAP_PFN)
        lru_add_drain(cpu)
        come_by |= from_disk
    answer = __read_swap_cache_async(cpu, vma, address, entry)
    if (answer | come_by) & FROM_DISK:
        io_wait(cpu, machine.disk_read_ns)  # once: they are one request
    return answer | come_by if answer != 0 else 0
