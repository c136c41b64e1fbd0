"""The audit of a machine that stands still: every frame accounted for, every count right. Raises on the first mismatch."""

import numpy as np

from numaemu.compiler.decorators import entry, hot
from numaemu.errors import MachineCheck
from numaemu.hardware.paging import entry_load
from numaemu.kernel.arch.pgalloc import haddr_of, huge_entry_offset, hugetlb_walk
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    is_migration_entry,
    mm_of,
    pte_offset,
    pte_pfn,
    pte_present,
    ptep_get,
    skip_missing,
)
from numaemu.kernel.audit.cache import audit_caches
from numaemu.kernel.audit.files import audit_files, live_inodes
from numaemu.kernel.audit.huge import audit_huge_entries, audit_hugetlb
from numaemu.kernel.audit.lru import audit_lru
from numaemu.kernel.audit.memcg import audit_memcg
from numaemu.kernel.audit.page import page_text
from numaemu.kernel.audit.slab import audit_percpu, audit_shrinkers, audit_slabs
from numaemu.kernel.audit.swap import audit_swap
from numaemu.kernel.audit.tlb import audit_tlbs
from numaemu.kernel.audit.vmalloc import audit_vmalloc
from numaemu.kernel.fs.inode import inode_of
from numaemu.kernel.fs.sysfs.stats import task_numbers
from numaemu.kernel.include.mm import linear_page_index
from numaemu.kernel.include.mm_types import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    NR_MM_COUNTERS,
    VM_ACCOUNT,
    VM_EXEC,
    VM_HUGETLB,
    VM_LOCKED,
    VM_SHARED,
    VM_STACK,
    VM_WRITE,
    PG_anon,
    PG_buddy,
    PG_hugetlb,
    PG_mlocked,
    PG_pcp,
    PG_table,
    machine_t,
    page_t,
    pool_t,
    task_t,
    vma_t,
)
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    MIGRATE_PCPTYPES,
    MIGRATE_TYPES,
    ZONE_NAMES,
    page_of,
    pcp_of,
    zone_of,
)
from numaemu.kernel.include.vmstat import fold_node
from numaemu.kernel.mm.fault.rmap import mapping_of, rss_counter
from numaemu.kernel.mm.huge.hugetlb_pool import (
    hpage_pages,
    hstate_vma,
    huge_page_shift,
    huge_page_size,
    hugetlb_object,
    pages_per_huge_page,
)
from numaemu.kernel.mm.huge.split import is_huge_zero, is_hugetlb_entry
from numaemu.kernel.mm.page_alloc.free_area import get_pageblock_migratetype, must_stay_apart, page_is_buddy
from numaemu.kernel.mm.space.vma_index import vma_index, vma_of
from numaemu.spec.param import MAX_ORDER, NR_ORDERS, PAGE_SHIFT, PAGE_SIZE

U = np.uint64
FREE, PCP, TABLE, USED, BAD = range(5)  # what validate_zone counts, and where it found something wrong


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
            if (
                page.private < MAX_ORDER
                and page_is_buddy(machine, zone, pfn ^ step, page.private)
                and not must_stay_apart(machine, pfn ^ step, page.private, get_pageblock_migratetype(machine, pfn))
            ):
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
    for cpu in range(machine.nr_cpu_ids):
        for migratetype in range(MIGRATE_PCPTYPES):
            pcp = pcp_of(machine, cpu, number).lists[migratetype]
            pfn, n = pcp.head, 0
            while pfn != 0 and n <= pcp.count:
                n += 1
                pfn = page_of(machine, pfn).lru_next
            if n != pcp.count:
                return max(pcp.head, 1)
            counts[0] += n
            pfn, n = pcp.shelf, 0
            while pfn > 0 and n <= pcp.shelf_count:
                n += 1
                pfn = page_of(machine, pfn).lru_next
            counts[0] += n
    pfn = zone.returned
    while pfn > 0 and counts[0] <= zone.spanned_pages:
        counts[0] += 1
        pfn = page_of(machine, pfn).lru_next
    return 0


@hot
def count_huge(machine, mm, vma, address, mapcounts, rss):
    """The same for the huge entry of an address, if there is one; False: its page does not belong there."""
    where = huge_entry_offset(machine, mm, address)
    if vma.flags & VM_HUGETLB:
        where = hugetlb_walk(machine, mm, address, huge_page_shift(hstate_vma(machine, vma)))
    if where == U(0):
        return True
    entry = entry_load(where)
    pfn = pte_pfn(entry)
    if is_huge_zero(entry):
        return address == haddr_of(machine, address)
    if not is_hugetlb_entry(machine, entry):
        rss[NR_MM_COUNTERS + 1] += 1
        for i in range(hpage_pages(machine)):
            page = page_of(machine, pfn + i)
            mapcounts[pfn + i] += 1
            rss[MM_ANONPAGES] += 1
            if (
                page.mapping != vma.mapping
                or page.flags & U(PG_anon) == U(0)
                or page.index != linear_page_index(vma, address) + i
            ):
                return False
        return address == haddr_of(machine, address) and page_of(machine, pfn).order > 0
    page, h = page_of(machine, pfn), hstate_vma(machine, vma)
    mapcounts[pfn] += 1
    rss[NR_MM_COUNTERS] += pages_per_huge_page(h)
    family = vma.mapping if page.flags & U(PG_anon) != U(0) else hugetlb_object(vma)
    return (
        page.flags & U(PG_hugetlb) != U(0)
        and vma.flags & VM_HUGETLB != 0
        and page.mapping == family
        and page.index == linear_page_index(vma, address)
        and np.int64(page.order) == h.order
        and address & (huge_page_size(h) - U(1)) == U(0)
    )


@entry("i64(u64, i64, i32[], i64[])")
def count_mapped(machine_address, mm_number, mapcounts, rss):
    """Add an address space's page-table entries to `mapcounts` by pfn and `rss`; 0 or an address.

    rss: MM_*, then the huge entries of the pool and of anonymous memory.
    """
    machine = machine_t.at(machine_address)
    mm = mm_of(machine, mm_number)
    for position in range(mm.map_count):
        vma = vma_of(machine, vma_index(machine, mm_number)[position])
        address = vma.start
        while address < vma.end:
            ptep = pte_offset(machine, mm, address)
            if ptep == U(0):
                if not count_huge(machine, mm, vma, address, mapcounts, rss):
                    return np.int64(address)
                address = skip_missing(machine, mm, address)
                continue
            pte = ptep_get(ptep)
            if is_migration_entry(pte):
                return np.int64(address)
            if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
                mapcounts[pte_pfn(pte)] += 1
                page = page_of(machine, pte_pfn(pte))
                rss[rss_counter(page)] += 1
                family = vma.mapping if page.flags & U(PG_anon) != U(0) or vma.i_mapping == 0 else vma.i_mapping
                if page.mapping != family or page.index != linear_page_index(vma, address):
                    return np.int64(address)
            address += U(PAGE_SIZE)
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


def audit_mappings(machine, base):
    """Map counts and rss against the page tables of all address spaces."""
    mapcounts, huge_entries = np.zeros(machine.max_pfn, np.int32), 0
    tasks = task_t.array(machine.tasks)
    for mm_number in sorted({tasks[n].mm for n in task_numbers(machine)}):
        rss = np.zeros(NR_MM_COUNTERS + 2, np.int64)
        bad = count_mapped(base, mm_number, mapcounts, rss)
        if bad:
            raise MachineCheck(f"address space {mm_number}: the page at {bad:#x} does not know that it is mapped there")
        mm = mm_of(machine, mm_number)
        if mm.hugetlb_usage != rss[NR_MM_COUNTERS]:
            raise MachineCheck(
                f"address space {mm_number}: hugetlb_usage is {mm.hugetlb_usage}, its tables map "
                f"{rss[NR_MM_COUNTERS]} small pages of huge ones of the pools"
            )
        huge_entries += int(rss[NR_MM_COUNTERS + 1])
        kinds = MM_ANONPAGES, MM_SHMEMPAGES, MM_FILEPAGES
        if any(mm.rss[kind] != rss[kind] for kind in kinds):
            raise MachineCheck(
                f"address space {mm_number}: rss says {[mm.rss[kind] for kind in kinds]} anonymous, shared and "
                f"file pages, its tables map {[int(rss[kind]) for kind in kinds]}"
            )
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        if zone_of(machine, number).present_pages:
            bad = compare_mapcounts(base, number, mapcounts)
            if bad:
                raise MachineCheck(f"{page_text(machine, bad)}: {mapcounts[bad]} page-table entries map it")
    audit_huge_entries(machine, huge_entries)


def vm_pages(vmas):
    """What an address space's counters must be, from its VMAs, in pages: vm_stat_account, VM_LOCKED, VM_ACCOUNT."""
    flags, pages = vmas["flags"], ((vmas["end"] - vmas["start"]) >> U(PAGE_SHIFT)).astype(np.int64)
    executable, stack = flags & (VM_EXEC | VM_WRITE | VM_STACK) == VM_EXEC, flags & VM_STACK != 0
    data = flags & (VM_WRITE | VM_SHARED | VM_STACK) == VM_WRITE
    parts = {
        "total_vm": flags >= 0,
        "exec_vm": executable,
        "stack_vm": stack & ~executable,
        "data_vm": data & ~executable,
        "locked_vm": flags & VM_LOCKED != 0,
        "charged": flags & VM_ACCOUNT != 0,
    }
    return {name: int(pages[which].sum()) for name, which in parts.items()}


def audit_accounts(machine):
    """The counters of address spaces and the commit charge against the VMAs, nr_mlock against the pages' marks."""
    tasks, charged, objects = task_t.array(machine.tasks), 0, set()
    table = vma_t.array(machine.vmas).as_numpy(pool_t.at(machine.vma_pool).used + 1)
    for mm_number in sorted({tasks[n].mm for n in task_numbers(machine)} - {0}):
        mm = mm_of(machine, mm_number)
        vmas = table[vma_index(machine, mm_number).as_numpy(mm.map_count)]
        wanted = vm_pages(vmas)
        charged += wanted.pop("charged")
        objects |= set(vmas["mapping"][vmas["flags"] & VM_SHARED != 0].tolist())
        for name, pages in wanted.items():
            if getattr(mm, name) != pages:
                raise MachineCheck(
                    f"address space {mm_number}: {name} is {getattr(mm, name)}, its VMAs have {pages} pages"
                )
    objects |= {inode_of(machine, number).object for number in live_inodes(machine)} - {0}
    charged += sum(mapping_of(machine, number).acct for number in objects - {0})
    if charged != machine.vm_committed_as:
        raise MachineCheck(f"vm_committed_as is {machine.vm_committed_as}, all VMAs are charged {charged} pages")
    for node in range(machine.nr_nodes):
        zones = [zone_of(machine, node * MAX_NR_ZONES + kind) for kind in range(MAX_NR_ZONES)]
        flags = [
            page_t.array(page_of(machine, z.start_pfn).address).as_numpy(z.virgin_pfn - z.start_pfn)["flags"]
            for z in zones
            if z.present_pages
        ]
        marked, counted = (
            sum(int(np.count_nonzero(f & U(PG_mlocked))) for f in flags),
            fold_node(machine, node)["nr_mlock"],
        )
        if marked != counted:
            raise MachineCheck(f"node {node}: nr_mlock is {counted}, {marked} pages are marked")


def audit_zone(machine, base, number, zone):
    """A zone's page structs against its free lists, per-CPU lists and free_pages; {kind: pages}. MachineCheck shows
    both sides.
    """
    where = f"node {zone.node} zone {ZONE_NAMES[zone.type]}"
    counts, listed, pcp = np.zeros(5, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64)
    for function, array in ((validate_zone, counts), (validate_free_lists, listed), (count_pcp, pcp)):
        bad = function(base, number, array)
        if bad:
            raise MachineCheck(f"{where}: {function.__name__}: inconsistent at {page_text(machine, bad)}")
    virgin = zone.virgin_end - zone.virgin_pfn
    if counts[FREE] != listed[0] or counts[FREE] + virgin - zone.nr_isolated != zone.free_pages:
        raise MachineCheck(
            f"{where}: {counts[FREE]} pages marked free, {listed[0]} on free lists, {virgin} untouched, but "
            f"free_pages says {zone.free_pages}"
        )
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
    audit_tlbs(machine)
    audit_caches(machine)
    audit_accounts(machine)
    audit_slabs(machine, base)
    audit_shrinkers(machine)
    audit_percpu(machine)
    audit_lru(machine, base)
    audit_hugetlb(machine)
    audit_vmalloc(machine)
    audit_swap(machine)
    audit_files(machine)
    audit_memcg(machine)
    return report
