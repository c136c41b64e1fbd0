"""Swap areas and their slots: Linux's mm/swapfile.c.

A swap entry is a number, type << SWP_OFFSET_BITS | offset; offset 0 is the area's header and never given out. Three
tables by entry, in shared memory, sparse:

    swap_map     i32   page-table entries (and slots of shared objects) that name the entry, + SWAP_HAS_CACHE
    swap_cache   i64   pfn of its page in the swap cache; or a shadow (negative, workingset.py); or 0
    zeromap      u8    1: the page was all zeros and never written

A slot is taken (0 -> SWAP_HAS_CACHE) under the area's lock and free again when its count becomes 0, which any CPU may
bring about, atomically. A page is in the swap cache while PG_swapcache is set, its entry is in page.private and the
word holds its pfn; PG_locked guards these three.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, address_of, i32, i64, u8, u64
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.mm_types import PG_dirty, PG_swapcache, PG_writeback
from numaemu.kernel.include.mmdebug import VM_BUG_ON
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NR_FILE_PAGES, NR_SWAPCACHE, mod_node_page_state
from numaemu.kernel.mm.page_alloc.page_alloc import put_page, try_get_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_set, folio_test, folio_trylock, folio_unlock
from numaemu.kernel.mm.swap.zram import zram_free_page
from numaemu.kernel.mm.swap.zswap import zswap_invalidate

U = np.uint64
MAX_SWAPFILES = 4
SWP_OFFSET_BITS = 22  # an area has at most 2**22 slots, 16 GiB
MAX_SWAP_ENTRIES = MAX_SWAPFILES << SWP_OFFSET_BITS
SWAP_HAS_CACHE = 1 << 30  # in swap_map: the entry has a page in the swap cache, or is about to
SWAP_BAD = -1  # in swap_map: the slot is being cleaned up
SWAP_NAME_BYTES = 64
SWP_USED, SWP_WRITEOK, SWP_SYNCHRONOUS_IO = 1, 2, 1 << 12  # swap_info_t.flags; the last: memory, as zram
SWAP_DISK, SWAP_ZRAM = 0, 1  # swap_info_t.kind

# Shared words of swap_info_t: the word | its writer | why a reader may trust it.
# - swap_map of an area | From 0 under the area's lock; then counted by compare-exchange. | A count above 0 keeps
#   the slot. The last one leaves SWAP_BAD while it cleans the slot up.
# - the swap_cache word of a slot | The holder of PG_locked. | A reader takes a reference, locks the page and looks
#   again.
# - SWP_OOM_ORIGIN, SWP_OOM_KILLED of flags | Atomic OR and AND: the context that empties the area; the OOM killer,
#   in the coordinator. | Looked at before each page that is brought back: one more page than need be.
# fmt: off
swap_info_t = Struct("swap_info_t", [
    ("lock", u64),                       # spin lock: slots are taken, the area comes and goes
    ("flags", i64), ("prio", i64), ("kind", i64), ("type", i64),
    ("max", i64),                        # slots, the header included
    ("inuse_pages", i64),                # slots that are not free, atomically
    ("cluster_next", i64),               # where the search for a free slot goes on; under the lock
    ("data", u64),                       # host address of the area on the disk
    ("name", u8, SWAP_NAME_BYTES),
    ("nr_reads", i64), ("nr_writes", i64),     # pages that came from its disk and went there, atomically
])

swap_t = Struct("swap_t", [              # what all areas share
    ("info", swap_info_t, MAX_SWAPFILES),
    ("swap_map", u64), ("swap_cache", u64), ("zeromap", u64),                     # tables by entry
    ("swapin_readahead_hits", i64), ("prev_offset", i64), ("last_readahead_pages", i64),       # hints, plain
    ("page_cluster", i64),               # sysctl vm.page-cluster
    ("nr_rotate_swap", i64),             # areas on disks that rotate; by the coordinator
    ("enable_vma_readahead", i64),       # /sys/kernel/mm/swap/vma_ra_enabled; by the coordinator
])
# fmt: on


@hot
def swap_of(machine):
    return swap_t.at(machine.swap)


@hot
def swp_type(entry):
    return entry >> SWP_OFFSET_BITS


@hot
def swp_offset(entry):
    return entry & ((1 << SWP_OFFSET_BITS) - 1)


@hot
def swap_map(machine):
    return i32.array(swap_of(machine).swap_map)


@hot
def swap_cache(machine):
    return i64.array(swap_of(machine).swap_cache)


@hot
def get_nr_swap_pages(machine):
    """Free slots of all areas."""
    return load_acquire(machine, "nr_swap_pages")


@hot
def vm_swap_full(machine):
    """More than half of the slots are taken: then pages that are in memory again give theirs up."""
    return get_nr_swap_pages(machine) * 2 < machine.total_swap_pages


# -- slots ---------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, swap_t*, i64)")
def scan_swap_map_slots(cpu, swap, kind):
    """A free slot of the area, taken for the swap cache: its entry, or 0."""
    info = swap.info[kind]
    table, first = i32.array(swap.swap_map), kind << SWP_OFFSET_BITS
    lock, found = address_of(info, "lock"), 0
    spin_lock(cpu, lock)
    if info.flags & SWP_WRITEOK != 0 and load_acquire(info, "inuse_pages") < info.max - 1:
        offset = info.cluster_next
        for _ in range(info.max):
            if offset >= info.max:
                offset = 1
            if load_acquire(table, first + offset) == 0:
                store_release(table, first + offset, SWAP_HAS_CACHE)
                found = first + offset
                break
            offset += 1
        info.cluster_next = offset + 1
    if found != 0:
        fetch_add(info, "inuse_pages", 1)
        fetch_add(machine_of(cpu), "nr_swap_pages", -1)
    spin_unlock(lock)
    if found != 0:
        u8.array(swap.zeromap)[found] = 0
        swap_cache(machine_of(cpu))[found] = 0
    return found


@kernel("i64(cpu_t*)")
def folio_alloc_swap(cpu):
    """A slot of the area with the highest priority that has one: the entry, or 0."""
    machine = machine_of(cpu)
    swap = swap_of(machine)
    if load_acquire(machine, "nr_swap_pages") <= 0:
        return 0
    tried = 0
    for _ in range(MAX_SWAPFILES):
        best = -1
        for kind in range(MAX_SWAPFILES):
            info = swap.info[kind]
            if (
                info.flags & SWP_WRITEOK != 0
                and (tried >> kind) & 1 == 0
                and (best < 0 or info.prio > swap.info[best].prio)
            ):
                best = kind
        if best < 0:
            return 0
        entry = scan_swap_map_slots(cpu, swap, best)
        if entry != 0:
            return entry
        tried |= 1 << best
    return 0


@kernel("void(cpu_t*, i64)")
def swap_range_free(cpu, entry):
    """Nobody names the entry any more: its slot may be given out again."""
    machine = machine_of(cpu)
    swap = swap_of(machine)
    info = swap.info[swp_type(entry)]
    if info.kind == SWAP_ZRAM:
        zram_free_page(cpu, entry)
    else:
        zswap_invalidate(cpu, entry)
    lock = address_of(info, "lock")
    spin_lock(cpu, lock)
    fetch_add(info, "inuse_pages", -1)
    if info.flags & SWP_WRITEOK != 0:  # else its free slots do not count any more: swapoff
        fetch_add(machine, "nr_swap_pages", 1)
    spin_unlock(lock)


@kernel("i64(cpu_t*, i64, i64)")
def swap_entry_put(cpu, entry, part):
    """Take 1 or SWAP_HAS_CACHE away from an entry's count; what is left. The last one frees the slot (__swap_entry_free).

    A slot whose count is about to be 0 keeps SWAP_BAD meanwhile, so that it is cleaned up before it is given out.
    """
    table = swap_map(machine_of(cpu))
    while True:
        seen = load_acquire(table, entry)
        VM_BUG_ON(seen == 0)
        left = seen - part
        if left != 0:
            if compare_exchange(table, entry, seen, left) == seen:
                return left
        elif compare_exchange(table, entry, seen, SWAP_BAD) == seen:
            swap_range_free(cpu, entry)
            store_release(table, entry, 0)
            return 0


@kernel("bool(cpu_t*, i64, i64)")
def swap_duplicate(cpu, entry, part):
    """Add 1 or SWAP_HAS_CACHE to the count of an entry that is in use; False: it is free, or has a cached page already."""
    table = swap_map(machine_of(cpu))
    while True:
        seen = load_acquire(table, entry)
        if seen == 0 or seen == SWAP_BAD or (part == SWAP_HAS_CACHE and seen & SWAP_HAS_CACHE != 0):
            return False
        if compare_exchange(table, entry, seen, seen + part) == seen:
            return True


@hot
def swap_count(machine, entry):
    """References to an entry but the swap cache's."""
    return load_acquire(swap_map(machine), entry) & ~SWAP_HAS_CACHE


# -- the swap cache ------------------------------------------------------------------------------------------


@kernel("void(cpu_t*, i64, i64)")
def add_to_swap_cache(cpu, pfn, entry):
    """A locked page becomes the entry's page; the cache takes over a reference of the caller."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    page.private = entry
    folio_set(page, PG_swapcache)
    store_release(swap_cache(machine), entry, pfn)
    node = page_to_nid(machine, pfn)
    mod_node_page_state(machine, cpu.id, node, NR_FILE_PAGES, 1)
    mod_node_page_state(machine, cpu.id, node, NR_SWAPCACHE, 1)


@kernel("void(cpu_t*, i64, i64)")
def __delete_from_swap_cache(cpu, pfn, shadow):
    """A locked page leaves the cache, a shadow (or 0) in its place; reference and slot are the caller's to drop."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    store_release(swap_cache(machine), page.private, shadow)
    folio_clear(page, PG_swapcache)
    node = page_to_nid(machine, pfn)
    mod_node_page_state(machine, cpu.id, node, NR_FILE_PAGES, -1)
    mod_node_page_state(machine, cpu.id, node, NR_SWAPCACHE, -1)


@kernel("void(cpu_t*, i64)")
def delete_from_swap_cache(cpu, pfn):
    """A locked page leaves the cache for good: the slot loses it, the cache its reference."""
    entry = page_of(machine_of(cpu), pfn).private
    __delete_from_swap_cache(cpu, pfn, 0)
    swap_entry_put(cpu, entry, SWAP_HAS_CACHE)
    put_page(cpu, pfn)


@kernel("i64(cpu_t*, i64)")
def swap_cache_get_folio(cpu, entry):
    """The page of an entry with a reference taken, or 0. Whoever goes on locks it and looks again whether it is the one."""
    machine = machine_of(cpu)
    while True:
        pfn = load_acquire(swap_cache(machine), entry)
        if pfn <= 0:
            return 0
        if try_get_page(page_of(machine, pfn)):
            if load_acquire(swap_cache(machine), entry) == pfn:
                return pfn
            put_page(cpu, pfn)


@kernel("bool(cpu_t*, i64)")
def folio_free_swap(cpu, pfn):
    """Give the slot of a locked page up, if only the cache names it: the page must be written again before it can go."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    if not folio_test(page, PG_swapcache) or folio_test(page, PG_writeback) or swap_count(machine, page.private) != 0:
        return False
    delete_from_swap_cache(cpu, pfn)
    folio_set(page, PG_dirty)
    return True


@kernel("void(cpu_t*, i64)")
def free_swap_and_cache(cpu, entry):
    """A page-table entry named the swap entry and is gone; with the last one a cached page need not stay."""
    machine = machine_of(cpu)
    if swap_entry_put(cpu, entry, 1) != SWAP_HAS_CACHE:
        return
    pfn = swap_cache_get_folio(cpu, entry)
    if pfn == 0:
        return
    page = page_of(machine, pfn)
    if folio_trylock(page):
        if folio_test(page, PG_swapcache) and page.private == entry and load_acquire(page, "mapcount") == 0:
            folio_free_swap(cpu, pfn)
        folio_unlock(page)
    put_page(cpu, pfn)


@kernel("void(cpu_t*, i64)")
def free_swap_cache(cpu, pfn):
    """The last page-table entry of a page is gone: its slot goes with it, if nobody else names it."""
    page = page_of(machine_of(cpu), pfn)
    if folio_test(page, PG_swapcache) and load_acquire(page, "mapcount") == 0 and folio_trylock(page):
        folio_free_swap(cpu, pfn)
        folio_unlock(page)
