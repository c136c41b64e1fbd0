"""The audit of swap, of a machine that stands still: slots against page tables, the swap cache, what is kept compressed."""
import numpy as np

from numaemu.compile import entry
from numaemu.errors import MachineCheck
from numaemu.kernel.mm_types import (MM_SWAPENTS, SHMEM, PG_buddy, PG_locked, PG_pcp, PG_swapcache, PG_table, machine_t,
                                     pool_t, task_t)
from numaemu.kernel.mmzone import MAX_NR_ZONES, page_of, zone_of
from numaemu.kernel.pgtable import is_swap_entry, mm_of, pte_offset, pte_pfn, pte_to_swp_entry, ptep_get, skip_missing
from numaemu.kernel.rmap import mapping_of
from numaemu.kernel.slab_types import host_of
from numaemu.kernel.stats import task_numbers
from numaemu.kernel.swapfile import (MAX_SWAP_ENTRIES, SWAP_HAS_CACHE, SWP_OFFSET_BITS, SWP_USED, SWP_WRITEOK, swap_cache,
                                     swap_map, swap_of, swp_offset, swp_type)
from numaemu.kernel.swapon import area_name, areas
from numaemu.kernel.vma_index import vma_index, vma_of
from numaemu.kernel.vmstat import fold_node
from numaemu.kernel.xarray import MAX_INDEX, xa_find, xa_is_value, xa_load
from numaemu.kernel.zram import ZRAM_HUGE, zstat_of, ztable
from numaemu.pointer import i64
from numaemu.processor import cpu_t

U = np.uint64
SLOTS_TAKEN, SLOTS_CACHED, KEPT, KEPT_BYTES, KEPT_HUGE, NR_SLOT_COUNTS = range(6)        # what validate_slots counts


@entry("i64(u64, i64, i32[])")
def count_swap_entries(machine_address, mm_number, named):
    """Add an address space's swap entries to `named`, by entry: how many they are, or -(address) - 1 of a wild one."""
    machine = machine_t.at(machine_address)
    mm, n = mm_of(machine, mm_number), 0
    for position in range(mm.map_count):
        vma = vma_of(machine, vma_index(machine, mm_number)[position])
        address = vma.start
        while address < vma.end:
            ptep = pte_offset(machine, mm, address)
            if ptep == U(0):
                address = skip_missing(machine, mm, address)
                continue
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
            address += U(4096)
    return n


@entry("void(u64, i32[])")
def count_object_entries(machine_address, named):
    """Add the swap entries in the trees of shared objects to `named`."""
    machine = machine_t.at(machine_address)
    for number in range(1, pool_t.at(machine.mapping_pool).used + 1):
        mapping, index = mapping_of(machine, number), 0
        while mapping.shared == SHMEM and mapping.host == 0 and mapping.root != U(0) and index >= 0:
            index = xa_find(machine, mapping, index, MAX_INDEX)
            if index >= 0:
                entry = xa_load(machine, mapping, index)
                if xa_is_value(entry) and pte_pfn(entry) < MAX_SWAP_ENTRIES:
                    named[pte_pfn(entry)] += 1
                index += 1


@entry("i64(u64, i64, i32[], i64[])")
def validate_slots(machine_address, kind, named, counts):
    """Walk an area: 0, the first entry whose count is wrong, or -(entry) if it is its page in the swap cache that is."""
    machine = machine_t.at(machine_address)
    table, cache, first = swap_map(machine), swap_cache(machine), kind << SWP_OFFSET_BITS
    for slot in range(first + 1, first + swap_of(machine).info[kind].max):
        if (table[slot] & ~SWAP_HAS_CACHE) != named[slot]:
            return slot
        if table[slot] == 0:
            if ztable(machine)[slot] != U(0):
                return slot
            continue
        counts[SLOTS_TAKEN] += 1
        if table[slot] & SWAP_HAS_CACHE != 0:
            counts[SLOTS_CACHED] += 1
            pfn = cache[slot]
            if pfn <= 0 or pfn >= machine.max_pfn:
                return -slot
            page = page_of(machine, pfn)
            if page.flags & U(PG_swapcache) == U(0) or page.private != slot or page.flags & U(PG_locked) != U(0) or \
                    page.refcount < 1 + page.mapcount or page.flags & U(PG_buddy | PG_pcp | PG_table) != U(0):
                return -slot
        elif cache[slot] > 0:
            return -slot
        if ztable(machine)[slot] != U(0):
            length = i64.array(host_of(cpu_t.array(machine.cpus)[0], ztable(machine)[slot]))[0]
            counts[KEPT] += 1
            counts[KEPT_BYTES] += length
            counts[KEPT_HUGE] += 1 if length == 4096 else 0
            if length != 4096 and (length < 1 or length > ZRAM_HUGE):
                return slot
    return 0


@entry("i64(u64, i64)")
def count_swapcache(machine_address, number):
    """Pages of a zone that say they are in the swap cache."""
    machine = machine_t.at(machine_address)
    zone, n = zone_of(machine, number), 0
    for pfn in range(zone.start_pfn, zone.virgin_pfn):
        if page_of(machine, pfn).flags & U(PG_swapcache) != U(0):
            n += 1
    return n


def slot_text(machine, slot):
    return f"swap {area_name(swap_of(machine).info[swp_type(slot)])}: slot {swp_offset(slot)}"


def audit_entries(machine, named):
    """The swap entries of all page tables, counted in `named`, against each address space's counter."""
    tasks = task_t.array(machine.tasks)
    for mm_number in sorted({tasks[n].mm for n in task_numbers(machine)} - {0}):
        found = count_swap_entries(int(machine.address), mm_number, named)
        if found < 0:
            raise MachineCheck(f"address space {mm_number}: the swap entry at {-found - 1:#x} is in no swap area")
        if found != mm_of(machine, mm_number).rss[MM_SWAPENTS]:
            raise MachineCheck(f"address space {mm_number}: rss says {mm_of(machine, mm_number).rss[MM_SWAPENTS]} swapped pages, "
                               f"its tables have {found} swap entries")


def audit_areas(machine, named):
    """Every slot of every area; what they add up to."""
    total = np.zeros(NR_SLOT_COUNTS, np.int64)
    for info in areas(machine):
        counts = np.zeros(NR_SLOT_COUNTS, np.int64)
        bad = validate_slots(int(machine.address), info.type, named, counts)
        if bad > 0:
            count = swap_map(machine)[bad]
            raise MachineCheck(f"{slot_text(machine, bad)}: swap_map says {count & ~SWAP_HAS_CACHE} references"
                               f"{' and the swap cache' if count & SWAP_HAS_CACHE else ''}, {named[bad]} entries name "
                               f"it, kept compressed at {ztable(machine)[bad]:#x}")
        if bad < 0:
            pfn = swap_cache(machine)[-bad]
            page = page_of(machine, max(pfn, 0))
            raise MachineCheck(f"{slot_text(machine, -bad)}: swap_map is {swap_map(machine)[-bad]:#x}, its word in the swap cache "
                               f"{pfn}; that page: flags {int(page.flags):#x}, entry {page.private}, refcount {page.refcount}, "
                               f"mapcount {page.mapcount}")
        if counts[SLOTS_TAKEN] != info.inuse_pages:
            raise MachineCheck(f"swap {area_name(info)}: inuse_pages is {info.inuse_pages}, {counts[SLOTS_TAKEN]} slots are taken")
        total += counts
    return total


def audit_swap(machine):
    """Slots, swap cache, free slots and compressed pages. Raises MachineCheck."""
    named = np.zeros(MAX_SWAP_ENTRIES if areas(machine) else 1, np.int32)
    audit_entries(machine, named)
    if areas(machine):
        count_object_entries(int(machine.address), named)
    counts = audit_areas(machine, named)
    zones = [n for n in range(machine.nr_nodes * MAX_NR_ZONES) if zone_of(machine, n).present_pages]
    marked = sum(count_swapcache(int(machine.address), number) for number in zones)
    counted = sum(fold_node(machine, node)["nr_swapcached"] for node in range(machine.nr_nodes))
    if not marked == counted == counts[SLOTS_CACHED]:
        raise MachineCheck(f"swap cache: {marked} pages are marked, nr_swapcached is {counted}, {counts[SLOTS_CACHED]} slots have one")
    usable = [info for info in areas(machine) if info.flags & SWP_WRITEOK]
    slots, free = sum(i.max - 1 for i in usable), sum(i.max - 1 - i.inuse_pages for i in usable)
    if (machine.total_swap_pages, machine.nr_swap_pages) != (slots, free):
        raise MachineCheck(f"total_swap_pages and nr_swap_pages are {machine.total_swap_pages} and {machine.nr_swap_pages}, the "
                           f"areas have {slots} slots, {free} of them free")
    stat = zstat_of(machine)
    found, says = tuple(counts[KEPT:].tolist()), (stat.pages, stat.compr_bytes, stat.huge_pages)
    if found != says or stat.orig_bytes != 4096 * stat.pages:
        raise MachineCheck(f"zram: pages, bytes, huge pages are {says} of {stat.orig_bytes} bytes, {found} are kept")
