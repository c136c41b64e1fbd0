"""zswap gives pages to the disk: shrink_worker and zswap_writeback_entry of Linux's mm/zswap.c."""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import kernel
from numaemu.compiler.pointer import address_of
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.fs.bio import blk_wait
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.include.internal import MAX_RECLAIM_RETRIES, PF_MEMALLOC
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import PG_locked, PG_reclaim, PG_swapbacked, PG_uptodate
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.include.vmstat import ZSWPWB, count_vm_events
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages, put_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_set, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import folio_add_new_lru, folio_rotate_reclaimable
from numaemu.kernel.mm.swap.page_io import end_swap_write, write_to_disk
from numaemu.kernel.mm.swap.swapfile import SWAP_HAS_CACHE, add_to_swap_cache, delete_from_swap_cache, swap_duplicate
from numaemu.kernel.mm.swap.zram import ZSWAP, zcomp_read, zentry_of, zstat_of
from numaemu.kernel.mm.swap.zswap import (
    lru_insert,
    lru_unlink,
    zswap_accept_thr_pages,
    zswap_invalidate,
    zswap_lru_of,
    zswap_total_pages,
)

U = np.uint64
WRITTEN_BACK, IN_SWAP_CACHE, FAILED = range(3)  # answers of zswap_writeback_entry


@kernel("i64(cpu_t*, i64)")
def zswap_writeback_entry(cpu, entry):
    """Write what is kept of an entry's page to the disk, through a page of the swap cache, which reclaim takes next.

    An entry that is in the swap cache, or is not in use any more, is left alone: it has just become hot, or is gone.
    """
    machine = machine_of(cpu)
    pfn = alloc_pages(cpu, GFP_KERNEL, 0, cpu.node, machine.node_mask)
    if pfn == 0:
        return FAILED
    if not swap_duplicate(cpu, entry, SWAP_HAS_CACHE):
        put_page(cpu, pfn)
        return IN_SWAP_CACHE
    page = page_of(machine, pfn)
    page.flags |= U(PG_locked | PG_swapbacked)
    fetch_add(page, "refcount", 2)  # the cache's, that of its way to the LRU list
    add_to_swap_cache(cpu, pfn, entry)
    folio_add_new_lru(cpu, pfn)
    done = zentry_of(machine, entry).handle != 0
    if done:  # the slot is ours while its page is locked: nobody swaps in, nobody frees it
        zcomp_read(cpu, ZSWAP, entry, frame_of(machine, pfn))
        count_vm_events(machine, cpu.id, ZSWPWB, 1)
        zswap_invalidate(cpu, entry)
        folio_set(page, PG_uptodate)
        folio_set(page, PG_reclaim)
        write_to_disk(cpu, pfn)
        blk_wait(cpu)
        end_swap_write(cpu, pfn)
        if folio_clear(page, PG_reclaim):
            folio_rotate_reclaimable(cpu, pfn)
    else:  # the slot was freed, and used again for a page that the disk has
        delete_from_swap_cache(cpu, pfn)
    folio_unlock(page)
    put_page(cpu, pfn)
    return WRITTEN_BACK if done else FAILED


@kernel("i64(cpu_t*, i64)")
def zswap_shrink_node(cpu, node):
    """Look at the entry of a node that has waited longest: write it back, or give it a second chance. Its answer, -1: there
    is none, or it has had its chance (shrink_memcg_cb).
    """
    machine = machine_of(cpu)
    lru, stat = zswap_lru_of(machine, node), zstat_of(machine, ZSWAP)
    lock = address_of(lru, "lock")
    spin_lock(cpu, lock)
    entry, referenced = lru.first, False
    if entry != 0:
        kept = zentry_of(machine, entry)
        referenced, kept.referenced = kept.referenced != 0, np.int32(0)
        lru_unlink(machine, node, entry)
        lru_insert(machine, node, entry)  # to the end, so that the next look is at another one
    spin_unlock(lock)
    if entry == 0 or referenced:
        return -1
    answer = zswap_writeback_entry(cpu, entry)
    if answer == WRITTEN_BACK:
        fetch_add(stat, "written_back_pages", 1)
    else:
        fetch_add(stat, "reject_reclaim_fail", 1)
    return answer


@kernel("void(cpu_t*)")
def shrink_worker(cpu):
    """The pool is full: write back, a page of each node in turn, until it is at the threshold where it accepts again."""
    machine, failures, before = machine_of(cpu), 0, cpu.flags
    cpu.flags = before | PF_MEMALLOC  # it frees more than it takes, and must not wait for reclaim
    while zswap_total_pages(machine) > zswap_accept_thr_pages(machine) and failures < MAX_RECLAIM_RETRIES:
        looked = 0
        for node in range(machine.nr_nodes):
            if zswap_lru_of(machine, node).nr_items > 0:
                looked += 1
                if zswap_shrink_node(cpu, node) > WRITTEN_BACK:
                    failures += 1
        if looked == 0:
            break
    cpu.flags = before
