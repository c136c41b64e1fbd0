"""The audit of swap, of a machine that stands still: slots against page tables, the swap cache, what is kept compressed."""

import numpy as np

from numaemu.compiler.decorators import entry, hot
from numaemu.errors import MachineCheck
from numaemu.kernel.arch.pgtable import is_swap_entry, mm_of, next_pte, pte_pfn, pte_to_swp_entry, ptep_get
from numaemu.kernel.audit.files import shared_objects
from numaemu.kernel.audit.page import count_flagged
from numaemu.kernel.core.xarray import MAX_INDEX, xa_find, xa_is_value, xa_load
from numaemu.kernel.fs.sysfs.stats import task_numbers
from numaemu.kernel.include.mm_types import (
    MM_SWAPENTS,
    PG_buddy,
    PG_locked,
    PG_pcp,
    PG_swapcache,
    PG_table,
    machine_t,
    task_t,
)
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, page_of, zone_of
from numaemu.kernel.include.vmstat import fold_node
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.space.vma_index import vma_index, vma_of
from numaemu.kernel.mm.swap.swapfile import (
    MAX_SWAP_ENTRIES,
    SWAP_HAS_CACHE,
    SWAP_ZRAM,
    SWP_OFFSET_BITS,
    SWP_USED,
    SWP_WRITEOK,
    swap_cache,
    swap_map,
    swap_of,
    swp_offset,
    swp_type,
)
from numaemu.kernel.mm.swap.swapon import area_name, areas
from numaemu.kernel.mm.swap.zram import SAME, ZRAM, ZSWAP, zentry_of, zs_pool_of, zstat_of
from numaemu.kernel.mm.swap.zsmalloc import OBJ_BITS, zspage_of
from numaemu.kernel.mm.swap.zswap import zswap_lru_of
from numaemu.spec.param import PAGE_SIZE

U = np.uint64
NR_KEPT = 3  # pages kept compressed, their bytes, those that are not compressed
SLOTS_TAKEN, SLOTS_CACHED, KEPT = range(3)  # what validate_slots counts; KEPT: of zswap, then of zram
NR_SLOT_COUNTS = KEPT + 2 * NR_KEPT


@entry("i64(u64, i64, i32[])")
def count_swap_entries(machine_address, mm_number, named):
    """Add an address space's swap entries to `named`, by entry: how many they are, or -(address) - 1 of a wild one."""
    machine = machine_t.at(machine_address)
    mm, n = mm_of(machine, mm_number), 0
    for position in range(mm.map_count):
        vma = vma_of(machine, vma_index(machine, mm_number)[position])
        address, ptep = next_pte(machine, mm, vma.start, vma.end)
        while ptep != U(0):
            pte = ptep_get(ptep)
            if is_swap_entry(pte):
                slot = pte_to_swp_entry(pte)
                if slot >= MAX_SWAP_ENTRIES:
                    return -np.int64(address) - 1
                info = swap_of(machine).info[swp_type(slot)]
                if info.flags & SWP_USED == 0 or swp_offset(slot) < 1 or swp_offset(slot) >= info.max:
                    return -np.int64(address) - 1
                named[slot] += 1
                n += 1
            address, ptep = next_pte(machine, mm, address + U(PAGE_SIZE), vma.end)
    return n


@entry("void(u64, i64, i32[])")
def count_object_entries(machine_address, number, named):
    """Add the swap entries in a shared object's tree to `named`, by entry."""
    machine, index = machine_t.at(machine_address), 0
    while True:
        index = xa_find(machine, mapping_of(machine, number), index, MAX_INDEX)
        if index < 0:
            return
        value = xa_load(machine, mapping_of(machine, number), index)
        if xa_is_value(value) and pte_pfn(value) < MAX_SWAP_ENTRIES:
            named[pte_pfn(value)] += 1
        index += 1


@hot
def count_kept(machine, kind, slot, counts):
    """Count what is kept compressed of a slot; False: its object is none of its pool's."""
    kept, whose = zentry_of(machine, slot), ZRAM if swap_of(machine).info[kind].kind == SWAP_ZRAM else ZSWAP
    at, length = KEPT + NR_KEPT * whose, np.int64(kept.length)
    counts[at] += 1
    if kept.handle == SAME:
        return whose == ZRAM
    counts[at + 1] += length
    counts[at + 2] += 1 if length == PAGE_SIZE else 0
    zspage, obj = zspage_of(machine, kept.handle >> OBJ_BITS), kept.handle & ((1 << OBJ_BITS) - 1)
    used = zspage.used[obj >> 6] >> U(obj & 63) & U(1) != U(0)
    return used and 0 < length and length <= zs_pool_of(machine, whose).classes[zspage.size_class].size


@entry("i64(u64, i64, i32[], i64[])")
def validate_slots(machine_address, kind, named, counts):
    """Walk an area: 0, the first entry whose count is wrong, or -(entry) if it is its page in the swap cache that is."""
    machine = machine_t.at(machine_address)
    table, cache, first = swap_map(machine), swap_cache(machine), kind << SWP_OFFSET_BITS
    for slot in range(first + 1, first + swap_of(machine).info[kind].max):
        if (table[slot] & ~SWAP_HAS_CACHE) != named[slot]:
            return slot
        if table[slot] == 0:
            if zentry_of(machine, slot).handle != 0:
                return slot
            continue
        counts[SLOTS_TAKEN] += 1
        if table[slot] & SWAP_HAS_CACHE != 0:
            counts[SLOTS_CACHED] += 1
            pfn = cache[slot]
            if pfn <= 0 or pfn >= machine.max_pfn:
                return -slot
            page = page_of(machine, pfn)
            if (
                page.flags & U(PG_swapcache) == U(0)
                or page.private != slot
                or page.flags & U(PG_locked) != U(0)
                or page.refcount < 1 + page.mapcount
                or page.flags & U(PG_buddy | PG_pcp | PG_table) != U(0)
            ):
                return -slot
        elif cache[slot] > 0:
            return -slot
        if zentry_of(machine, slot).handle != 0 and not count_kept(machine, kind, slot, counts):
            return slot
    return 0


def slot_text(machine, slot):
    return f"swap {area_name(swap_of(machine).info[swp_type(slot)])}: slot {swp_offset(slot)}"


def audit_entries(machine, named):
    """The swap entries of all page tables, against each address space's counter, and of all objects, counted in `named`."""
    tasks = task_t.array(machine.tasks)
    for mm_number in sorted({tasks[n].mm for n in task_numbers(machine)} - {0}):
        found = count_swap_entries(int(machine.address), mm_number, named)
        if found < 0:
            raise MachineCheck(f"address space {mm_number}: the swap entry at {-found - 1:#x} is in no swap area")
        if found != mm_of(machine, mm_number).rss[MM_SWAPENTS]:
            raise MachineCheck(
                f"address space {mm_number}: rss says {mm_of(machine, mm_number).rss[MM_SWAPENTS]} swapped pages, "
                f"its tables have {found} swap entries"
            )
    for number in shared_objects(machine):
        count_object_entries(int(machine.address), number, named)


def audit_areas(machine, named):
    """Every slot of every area; what they add up to."""
    total = np.zeros(NR_SLOT_COUNTS, np.int64)
    for info in areas(machine):
        counts = np.zeros(NR_SLOT_COUNTS, np.int64)
        bad = validate_slots(int(machine.address), info.type, named, counts)
        if bad > 0:
            count = swap_map(machine)[bad]
            raise MachineCheck(
                f"{slot_text(machine, bad)}: swap_map says {count & ~SWAP_HAS_CACHE} references"
                f"{' and the swap cache' if count & SWAP_HAS_CACHE else ''}, {named[bad]} entries of page "
                f"tables and objects name it, kept compressed as object {zentry_of(machine, bad).handle:#x}"
            )
        if bad < 0:
            pfn = swap_cache(machine)[-bad]
            page = page_of(machine, max(pfn, 0))
            raise MachineCheck(
                f"{slot_text(machine, -bad)}: swap_map is {swap_map(machine)[-bad]:#x}, its word in the swap cache "
                f"{pfn}; that page: flags {int(page.flags):#x}, entry {page.private}, refcount {page.refcount}, "
                f"mapcount {page.mapcount}"
            )
        if counts[SLOTS_TAKEN] != info.inuse_pages:
            raise MachineCheck(
                f"swap {area_name(info)}: inuse_pages is {info.inuse_pages}, {counts[SLOTS_TAKEN]} slots are taken"
            )
        total += counts
    return total


def audit_kept(machine, whose, name, found):
    """What zswap or zram keeps: `found` in the slots, against its figures, its pool's objects, zswap's LRU lists."""
    stat, pool = zstat_of(machine, whose), zs_pool_of(machine, whose)
    says = stat.pages, stat.compr_bytes, stat.huge_pages
    if found != says:
        raise MachineCheck(f"{name}: pages, bytes, huge pages are {says}, {found} are kept")
    classes = pool.classes.as_numpy()
    objects, pages = int(classes["nr_objs"].sum()), int((classes["nr_zspages"] * classes["pages_per_zspage"]).sum())
    if (objects, pages) != (stat.pages - stat.same_pages, pool.pages_allocated):
        raise MachineCheck(
            f"{name}: {stat.pages - stat.same_pages} objects in {pool.pages_allocated} pages, the size classes "
            f"have {objects} in {pages}"
        )
    if whose == ZSWAP and sum(zswap_lru_of(machine, node).nr_items for node in range(machine.nr_nodes)) != stat.pages:
        raise MachineCheck(f"zswap: {stat.pages} pages are kept, another number is on its lists")


def audit_swap(machine):
    """Slots, swap cache, free slots and compressed pages. Raises MachineCheck."""
    named = np.zeros(MAX_SWAP_ENTRIES if areas(machine) else 1, np.int32)
    audit_entries(machine, named)
    counts = audit_areas(machine, named)
    zones = [n for n in range(machine.nr_nodes * MAX_NR_ZONES) if zone_of(machine, n).present_pages]
    marked = sum(count_flagged(int(machine.address), number, PG_swapcache) for number in zones)
    counted = sum(fold_node(machine, node)["nr_swapcached"] for node in range(machine.nr_nodes))
    if not marked == counted == counts[SLOTS_CACHED]:
        raise MachineCheck(
            f"swap cache: {marked} pages are marked, nr_swapcached is {counted}, {counts[SLOTS_CACHED]} slots have one"
        )
    usable = [info for info in areas(machine) if info.flags & SWP_WRITEOK]
    slots, free = sum(i.max - 1 for i in usable), sum(i.max - 1 - i.inuse_pages for i in usable)
    if (machine.total_swap_pages, machine.nr_swap_pages) != (slots, free):
        raise MachineCheck(
            f"total_swap_pages and nr_swap_pages are {machine.total_swap_pages} and {machine.nr_swap_pages}, the "
            f"areas have {slots} slots, {free} of them free"
        )
    for whose, name in enumerate(("zswap", "zram")):
        audit_kept(machine, whose, name, tuple(counts[KEPT + NR_KEPT * whose :][:NR_KEPT].tolist()))
    pages = sum(fold_node(machine, node)["nr_zspages"] for node in range(machine.nr_nodes))
    if pages != sum(zs_pool_of(machine, whose).pages_allocated for whose in (ZSWAP, ZRAM)):
        raise MachineCheck(f"nr_zspages is {pages}, not what the pools of zswap and zram have")
