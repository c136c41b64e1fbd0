"""The audit of a machine that stands still: every frame accounted for, every count right. Raises on the first mismatch."""
import numpy as np

from numaemu.compile import entry
from numaemu.errors import MachineCheck
from numaemu.kernel.buddy import page_is_buddy
from numaemu.kernel.mm_types import PG_anon, PG_buddy, PG_pcp, PG_table, machine_t, task_t
from numaemu.kernel.mmap import vma_index
from numaemu.kernel.mmzone import MAX_NR_ZONES, MIGRATE_PCPTYPES, MIGRATE_TYPES, ZONE_NAMES, page_of, pcp_of, zone_of
from numaemu.kernel.pgtable import (_PAGE_SPECIAL, is_migration_entry, mm_of, pte_offset, pte_pfn, pte_present,
                                    ptep_get, skip_missing)
from numaemu.kernel.rmap import vma_of
from numaemu.kernel.stats import task_numbers
from numaemu.param import MAX_ORDER, NR_ORDERS

U = np.uint64
FREE, PCP, TABLE, USED, BAD = range(5)       # what validate_zone counts, and where it found something wrong


@entry("i64(u64, i64, i64[])")
def validate_zone(machine_address, number, counts):
    """Walk a zone's frames from the first to the virgin range: 0, or the pfn of the first one that is in two states."""
    machine = machine_t.at(machine_address)
    zone = zone_of(machine, number)
    pfn = zone.start_pfn
    while pfn < zone.virgin_pfn:
        page = page_of(machine, pfn)
        flags, step = page.flags, 1
        if flags & U(PG_buddy) != U(0):
            step = 1 << page.private
            if flags & U(PG_pcp) != U(0) or page.private > MAX_ORDER or pfn & (step - 1) != 0:
                return pfn
            if page.private < MAX_ORDER and page_is_buddy(machine, zone, pfn ^ step, page.private):
                return pfn
            counts[FREE] += step
        elif flags & U(PG_pcp) != U(0):
            if page.refcount != 0 or page.mapcount != 0:
                return pfn
            counts[PCP] += 1
        elif flags & U(PG_table) != U(0):
            counts[TABLE] += 1
        elif page.refcount < 0 or page.mapcount < 0 or page.mapcount > page.refcount:
            return pfn
        else:
            counts[USED] += 1
        pfn += step
    return 0


@entry("i64(u64, i64, i64[])")
def validate_free_lists(machine_address, number, counts):
    """Walk a zone's free lists: 0 or the pfn of a block that does not belong where it stands."""
    machine = machine_t.at(machine_address)
    zone = zone_of(machine, number)
    for order in range(NR_ORDERS):
        for migratetype in range(MIGRATE_TYPES):
            area = zone.free_area[order]
            pfn, previous, n = area.head[migratetype], 0, 0
            while pfn != 0:
                page = page_of(machine, pfn)
                if page.flags & U(PG_buddy) == U(0) or page.private != order or page.lru_prev != previous:
                    return pfn
                n += 1
                counts[0] += 1 << order
                previous, pfn = pfn, page.lru_next
            if n != area.nr_free[migratetype] or area.tail[migratetype] != previous:
                return max(previous, 1)
    return 0


@entry("i64(u64, i64, i64[])")
def count_pcp(machine_address, number, counts):
    """Pages on CPUs' lists and shelves and on their way back for one zone: 0, or the pfn of a broken chain."""
    machine = machine_t.at(machine_address)
    zone = zone_of(machine, number)
    for cpu in range(machine.nr_cpus):
        for migratetype in range(MIGRATE_PCPTYPES):
            pcp = pcp_of(machine, cpu, number).lists[migratetype]
            pfn, n = pcp.head, 0
            while pfn != 0:
                n += 1
                pfn = page_of(machine, pfn).lru_next
            if n != pcp.count:
                return max(pcp.head, 1)
            counts[0] += n
            pfn = pcp.shelf
            while pfn > 0:
                counts[0] += 1
                pfn = page_of(machine, pfn).lru_next
    pfn = zone.returned
    while pfn > 0:
        counts[0] += 1
        pfn = page_of(machine, pfn).lru_next
    return 0


@entry("i64(u64, i64, i32[], i64[])")
def count_mapped(machine_address, mm_number, mapcounts, rss):
    """Add an address space's page-table entries to `mapcounts` by pfn and `rss` (anonymous, shared); 0 or an address."""
    machine = machine_t.at(machine_address)
    mm = mm_of(machine, mm_number)
    for position in range(mm.map_count):
        vma = vma_of(machine, vma_index(machine, mm_number)[position])
        address = vma.start
        while address < vma.end:
            ptep = pte_offset(machine, mm, address)
            if ptep == U(0):
                address = skip_missing(machine, mm, address)
                continue
            pte = ptep_get(ptep)
            if is_migration_entry(pte):
                return np.int64(address)
            if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
                mapcounts[pte_pfn(pte)] += 1
                page = page_of(machine, pte_pfn(pte))
                rss[0 if page.flags & U(PG_anon) != U(0) else 1] += 1
                if page.mapping != vma.mapping or \
                        page.index != vma.pgoff + np.int64((address - vma.start) >> U(12)):
                    return np.int64(address)
            address += U(4096)
    return 0


@entry("i64(u64, i64, i32[])")
def compare_mapcounts(machine_address, number, mapcounts):
    """Every page of a zone is mapped as often as it says: 0 or the pfn of the first that is not."""
    machine = machine_t.at(machine_address)
    zone = zone_of(machine, number)
    for pfn in range(zone.start_pfn, zone.virgin_pfn):
        page = page_of(machine, pfn)
        if page.flags & U(PG_buddy | PG_pcp | PG_table) == U(0) and page.mapcount != mapcounts[pfn]:
            return pfn
    return 0


def page_text(machine, pfn):
    page = page_of(machine, pfn)
    return f"pfn {pfn}: flags {int(page.flags):#x}, refcount {page.refcount}, mapcount {page.mapcount}, " \
           f"order {page.private}, mapping {page.mapping}, index {page.index}"


def audit_mappings(machine, base):
    """Map counts and rss against the page tables of all address spaces."""
    mapcounts = np.zeros(machine.max_pfn, np.int32)
    tasks = task_t.array(machine.tasks)
    for mm_number in sorted({tasks[n].mm for n in task_numbers(machine)}):
        rss = np.zeros(2, np.int64)
        bad = count_mapped(base, mm_number, mapcounts, rss)
        if bad:
            raise MachineCheck(f"address space {mm_number}: the page at {bad:#x} does not know that it is mapped there")
        mm = mm_of(machine, mm_number)
        if (mm.rss[1], mm.rss[3]) != tuple(rss):
            raise MachineCheck(f"address space {mm_number}: rss says {mm.rss[1]} anonymous and {mm.rss[3]} shared pages, "
                               f"its tables map {rss[0]} and {rss[1]}")
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        if zone_of(machine, number).present_pages:
            bad = compare_mapcounts(base, number, mapcounts)
            if bad:
                raise MachineCheck(f"{page_text(machine, bad)}: {mapcounts[bad]} page-table entries map it")


def audit_zone(machine, base, number, zone):
    where = f"node {zone.node} zone {ZONE_NAMES[zone.type]}"
    counts, listed, pcp = np.zeros(5, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    for function, array in ((validate_zone, counts), (validate_free_lists, listed), (count_pcp, pcp)):
        bad = function(base, number, array)
        if bad:
            raise MachineCheck(f"{where}: {function.__name__}: inconsistent at {page_text(machine, bad)}")
    virgin = zone.virgin_end - zone.virgin_pfn
    if counts[FREE] != listed[0] or counts[FREE] + virgin != zone.free_pages:
        raise MachineCheck(f"{where}: {counts[FREE]} pages marked free, {listed[0]} on free lists, {virgin} untouched, but "
                           f"free_pages says {zone.free_pages}")
    if counts[PCP] != pcp[0]:
        raise MachineCheck(f"{where}: {counts[PCP]} pages marked as on per-CPU lists, {pcp[0]} found there")
    return {"free": int(zone.free_pages), "pcp": int(pcp[0]), "tables": int(counts[TABLE]), "used": int(counts[USED])}


def audit(machine):
    """Check everything; {zone name: {free, pcp, tables, used}} in pages. Raises MachineCheck."""
    base, report = int(machine.address), {}
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if zone.present_pages:
            report[f"node{zone.node}/{ZONE_NAMES[zone.type]}"] = audit_zone(machine, base, number, zone)
    audit_mappings(machine, base)
    return report

