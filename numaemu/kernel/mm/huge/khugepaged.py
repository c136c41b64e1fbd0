"""Making one huge mapping of many small ones: khugepaged, and madvise(MADV_COLLAPSE). Linux's mm/khugepaged.c.

Under the mmap_lock held for writing, and so without faults: the table goes away from above the entries and every CPU forgets
it; then its pages cannot change. They are taken off their lists and copied into new pages in one piece, and the empty table is
laid by for the day of a split. A page that somebody else uses at that moment ends the attempt, and the table comes back. The
family's lock is held until it is back, or all its pages are locked: a walk over the reverse mapping would miss its entry, and
one that has migration entries to take out must not.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import clear_bytes
from numaemu.compiler.pointer import Struct, address_of, i64
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_RW, PTE_SHIFT, entry_at, entry_exchange, entry_load
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgalloc import haddr_of, pgtable_trans_huge_deposit, pmd_lock, pmd_trans_huge, pmd_unlock
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    entry_offset,
    is_swap_entry,
    mm_of,
    pfn_pte,
    pmd_shift,
    pmd_size,
    pte_pfn,
    pte_present,
    ptep_get,
    ptep_step,
    set_pte,
    table_at,
    vm_page_prot,
)
from numaemu.kernel.arch.tlb import flush_tlb_mm_range
from numaemu.kernel.core.fork import mmget_not_zero, mmput
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock, spin_lock, spin_unlock, write_lock, write_unlock
from numaemu.kernel.include.gfp import GFP_TRANSHUGE, GFP_TRANSHUGE_LIGHT
from numaemu.kernel.include.internal import NODE_RECLAIM_DISTANCE, node_reclaim_enabled
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import MM_ANONPAGES, VM_WRITE, PG_anon, PG_lru, PG_referenced, PG_swapcache, pool_t
from numaemu.kernel.include.mmzone import charge_clear_pages, copy_highpage, node_distance, page_of, page_to_nid
from numaemu.kernel.include.trace import MM_COLLAPSE_HUGE_PAGE, trace_event
from numaemu.kernel.include.vmstat import THP_COLLAPSE_ALLOC, THP_COLLAPSE_ALLOC_FAILED, count_vm_events
from numaemu.kernel.mm.fault.memory import handle_mm_fault
from numaemu.kernel.mm.fault.rmap import folio_remove_rmap, mapping_of
from numaemu.kernel.mm.huge.huge_memory import (
    _READ_ONLY,
    _WRITTEN,
    THP_NEVER,
    add_new_huge_pages,
    prep_huge_pages,
    release_huge_pages,
    thp_vma_allowable,
    thp_vma_suitable,
)
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages
from numaemu.kernel.mm.huge.split import add_huge_mapping
from numaemu.kernel.mm.migrate.large_folio import (
    SCAN_ALLOC_HUGE_PAGE_FAIL,
    SCAN_EXCEED_NONE_PTE,
    SCAN_EXCEED_SHARED_PTE,
    SCAN_EXCEED_SWAP_PTE,
    SCAN_LACK_REFERENCED_PAGE,
    SCAN_PAGE_COUNT,
    SCAN_PAGE_LOCK,
    SCAN_PAGE_LRU,
    SCAN_PAGE_NULL,
    SCAN_PAGE_RO,
    SCAN_PMD_MAPPED,
    SCAN_PMD_NULL,
    SCAN_PTE_NON_PRESENT,
    SCAN_SCAN_ABORT,
    SCAN_SUCCEED,
    isolate_small_page,
    putback_small_page,
)
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages, put_page
from numaemu.kernel.mm.reclaim.lru import folio_test
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain, lru_add_drain_all
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.space.vma_index import find_vma, vma_of
from numaemu.kernel.mm.swap.swapfile import free_swap_cache
from numaemu.mmu import clock_ns
from numaemu.spec.param import MAX_NODES, PAGE_SIZE
from numaemu.uapi import errno

U = np.uint64
EINVAL, ENOMEM, EAGAIN = errno.EINVAL, errno.ENOMEM, errno.EAGAIN
ROUNDS = 1000  # of scanning at once, however long nobody has looked; assumed

# fmt: off
collapse_control_t = Struct("collapse_control_t", [      # one for each context
    ("is_khugepaged", i64),              # 0: MADV_COLLAPSE, which the max_ptes_* settings do not bind
    ("node_load", i64, MAX_NODES),       # pages found on each node
    ("none_or_zero", i64), ("unmapped", i64), ("shared", i64), ("referenced", i64), ("writable", i64),
])
# fmt: on


@hot
def collapse_control_of(machine, cpu):
    return collapse_control_t.array(machine.collapse_controls)[cpu.id]


# -- looking --------------------------------------------------------------------------------------------------------


@hot
def scan_absent(machine, cc, pte):
    """An entry without a page of its own: what it counts as, within the limits."""
    if pte != U(0) and not pte_present(pte):
        cc.unmapped += 1
        if not is_swap_entry(pte):
            return SCAN_PTE_NON_PRESENT
        return (
            SCAN_EXCEED_SWAP_PTE
            if cc.is_khugepaged and cc.unmapped > machine.khugepaged_max_ptes_swap
            else SCAN_SUCCEED
        )
    cc.none_or_zero += 1
    limit = machine.khugepaged_max_ptes_none
    return SCAN_EXCEED_NONE_PTE if cc.is_khugepaged and cc.none_or_zero > limit else SCAN_SUCCEED


@hot
def scan_page(machine, cc, pte):
    """A page that an entry maps: why it cannot be collapsed, or SCAN_SUCCEED."""
    page = page_of(machine, pte_pfn(pte))
    mapcount = np.int64(load_acquire(page, "mapcount"))
    if pte & _PAGE_RW != U(0):
        cc.writable += 1
    if mapcount > 1:
        cc.shared += 1
        if cc.is_khugepaged and cc.shared > machine.khugepaged_max_ptes_shared:
            return SCAN_EXCEED_SHARED_PTE
    cc.node_load[page_to_nid(machine, pte_pfn(pte))] += 1
    if not folio_test(page, PG_anon) or not folio_test(page, PG_lru):
        return SCAN_PAGE_LRU
    if np.int64(load_acquire(page, "refcount")) != mapcount + (1 if folio_test(page, PG_swapcache) else 0):
        return SCAN_PAGE_COUNT
    if pte & _PAGE_ACCESSED != U(0) or folio_test(page, PG_referenced):
        cc.referenced += 1
    return SCAN_SUCCEED


@hot
def scan_abort(machine, cc, nid):
    """hpage_collapse_scan_abort: with vm.zone_reclaim_mode pages of nodes far from each other do not become one."""
    if not node_reclaim_enabled(machine) or cc.node_load[nid] > 1:
        return False  # a second page of its node: it was near enough at the first
    for node in range(machine.nr_nodes):
        if cc.node_load[node] > 0 and node_distance(machine, nid, node) > NODE_RECLAIM_DISTANCE:
            return True
    return False


@kernel("i64(cpu_t*, i64, u64)")
def hpage_collapse_scan_pmd(cpu, mm_number, address):
    """Whether the small pages from `address` on can become a huge one: SCAN_*."""
    machine = machine_of(cpu)
    cc, pages = collapse_control_of(machine, cpu), hpage_pages(machine)
    cc.none_or_zero = cc.unmapped = cc.shared = cc.referenced = cc.writable = 0
    for node in range(machine.nr_nodes):
        cc.node_load[node] = 0
    where = entry_offset(machine, mm_of(machine, mm_number), address, pmd_shift(machine))
    entry = entry_load(where) if where != U(0) else U(0)
    if entry == U(0):
        return SCAN_PMD_NULL
    if pmd_trans_huge(entry):
        return SCAN_PMD_MAPPED
    ptep = entry_at(machine.paging, table_at(machine, entry), address, PTE_SHIFT)
    for _ in range(pages):
        pte = ptep_get(ptep)
        present = pte_present(pte) and pte & _PAGE_SPECIAL == U(0)
        result = scan_page(machine, cc, pte) if present else scan_absent(machine, cc, pte)
        if present and scan_abort(machine, cc, page_to_nid(machine, pte_pfn(pte))):
            result = SCAN_SCAN_ABORT
        if result != SCAN_SUCCEED:
            return result
        ptep += ptep_step(machine)
    if cc.none_or_zero + cc.unmapped == pages and cc.unmapped == 0:
        return SCAN_PAGE_NULL
    if cc.writable == 0 and cc.unmapped == 0:
        return SCAN_PAGE_RO
    if cc.is_khugepaged and (cc.referenced == 0 or (cc.unmapped > 0 and cc.referenced < pages // 2)):
        return SCAN_LACK_REFERENCED_PAGE
    return SCAN_SUCCEED


# -- collapsing -----------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*)")
def alloc_collapse_pages(cpu):
    """Pages in one piece on the node where most of the small ones are; the first pfn or 0."""
    machine = machine_of(cpu)
    cc, node = collapse_control_of(machine, cpu), 0
    for other in range(machine.nr_nodes):
        if cc.node_load[other] > cc.node_load[node]:
            node = other
    gfp = GFP_TRANSHUGE if not cc.is_khugepaged or machine.khugepaged_defrag else GFP_TRANSHUGE_LIGHT
    pfn = alloc_pages(cpu, gfp, np.int64(machine.paging.table_bits), node, U(1) << U(node))
    count_vm_events(machine, cpu.id, THP_COLLAPSE_ALLOC if pfn != 0 else THP_COLLAPSE_ALLOC_FAILED, 1)
    if pfn != 0:
        prep_huge_pages(machine, pfn)
    return pfn


@kernel("i64(cpu_t*, u64)")
def __collapse_huge_page_isolate(cpu, first):
    """Isolate every page of a table whose first entry is at a host address; SCAN_*, and all are back if it is no success."""
    machine = machine_of(cpu)
    ptep, done, result = first, 0, SCAN_SUCCEED
    while done < hpage_pages(machine) and result == SCAN_SUCCEED:
        pte = ptep_get(ptep)
        if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
            result = isolate_small_page(cpu, pte_pfn(pte))
        elif pte != U(0) and not pte_present(pte):
            result = SCAN_PTE_NON_PRESENT
        if result == SCAN_SUCCEED:
            done += 1
            ptep += ptep_step(machine)
    if result != SCAN_SUCCEED:
        ptep = first
        for _ in range(done):
            pte = ptep_get(ptep)
            if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
                putback_small_page(cpu, pte_pfn(pte))
            ptep += ptep_step(machine)
    return result


@kernel("i64(cpu_t*, u64, i64)")
def __collapse_huge_page_copy(cpu, ptep, new):
    """Copy what the entries map, empty them, and let the old pages go; how many pages of zeros were none before."""
    machine = machine_of(cpu)
    added = 0
    for i in range(hpage_pages(machine)):
        pte, target = ptep_get(ptep), frame_of(machine, new + i)
        set_pte(ptep, U(0))
        if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
            old = pte_pfn(pte)
            copy_highpage(machine, cpu, new + i, old)
            folio_remove_rmap(machine, cpu, old)
            putback_small_page(cpu, old)
            free_swap_cache(cpu, old)
            put_page(cpu, old)
        else:
            clear_bytes(target, PAGE_SIZE)
            charge_clear_pages(machine, cpu, new + i, 1)
            added += 1
        ptep += ptep_step(machine)
    return added


@kernel("i64(cpu_t*, i64, i64, u64)")
def collapse_huge_page(cpu, mm_number, vma_number, address):
    """Make one huge mapping of the small ones from `address` on: SCAN_*. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    mm, vma = mm_of(machine, mm_number), vma_of(machine, vma_number)
    new = alloc_collapse_pages(cpu)
    if new == 0:
        return SCAN_ALLOC_HUGE_PAGE_FAIL
    where = entry_offset(machine, mm, address, pmd_shift(machine))
    family = address_of(mapping_of(machine, vma.mapping), "lock")
    spin_lock(cpu, family)
    pmd_lock(cpu, where)
    entry = entry_exchange(where, U(0))
    pmd_unlock(machine, where)
    flush_tlb_mm_range(cpu, mm_number, address, address + pmd_size(machine))
    first = entry_at(machine.paging, table_at(machine, entry), address, PTE_SHIFT)
    result = __collapse_huge_page_isolate(cpu, first)
    if result != SCAN_SUCCEED:
        entry_exchange(where, entry)
    spin_unlock(family)
    if result != SCAN_SUCCEED:
        release_huge_pages(cpu, new)
        trace_event(cpu, MM_COLLAPSE_HUGE_PAGE, mm_number, 0, result, 0, 0)
        return result
    added = __collapse_huge_page_copy(cpu, first, new)
    add_new_huge_pages(cpu, vma, address, new)
    fetch_add(mm.rss, MM_ANONPAGES, added)
    add_huge_mapping(machine, cpu, new)
    bits = vm_page_prot(machine, vma, _WRITTEN if vma.flags & VM_WRITE else _READ_ONLY)
    pmd_lock(cpu, where)
    pgtable_trans_huge_deposit(machine, where, pte_pfn(entry))
    entry_exchange(where, pfn_pte(new, bits))
    pmd_unlock(machine, where)
    lru_add_drain(cpu)
    trace_event(cpu, MM_COLLAPSE_HUGE_PAGE, mm_number, 1, SCAN_SUCCEED, 0, 0)
    return SCAN_SUCCEED


@kernel("void(cpu_t*, i64, i64, u64)")
def collapse_swapin(cpu, mm_number, vma_number, address):
    """Bring what is swapped out back first (__collapse_huge_page_swapin). The mmap_lock is held."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    for i in range(hpage_pages(machine)):
        at = address + U(i * PAGE_SIZE)
        ptep = entry_offset(machine, mm, at, PTE_SHIFT)
        if ptep != U(0) and is_swap_entry(ptep_get(ptep)):
            handle_mm_fault(cpu, mm, vma_number, at, False)
    lru_add_drain(cpu)


@kernel("i64(cpu_t*, i64, i64, u64)")
def try_collapse(cpu, mm_number, vma_number, address):
    """Look again, under the mmap_lock held for writing, and collapse: SCAN_*."""
    machine = machine_of(cpu)
    lru_add_drain(cpu)
    result = hpage_collapse_scan_pmd(cpu, mm_number, address)
    if result == SCAN_SUCCEED and collapse_control_of(machine, cpu).unmapped > 0:
        collapse_swapin(cpu, mm_number, vma_number, address)
        result = hpage_collapse_scan_pmd(cpu, mm_number, address)
    return collapse_huge_page(cpu, mm_number, vma_number, address) if result == SCAN_SUCCEED else result


# -- madvise(MADV_COLLAPSE) ------------------------------------------------------------------------------------------


@hot
def madvise_collapse_errno(result):
    if result == SCAN_ALLOC_HUGE_PAGE_FAIL:
        return -ENOMEM
    return -EAGAIN if result >= SCAN_PAGE_COUNT and result <= SCAN_PAGE_LOCK else -EINVAL


@kernel("i64(cpu_t*, i64, u64, u64)")
def collapse_vma(cpu, number, start, end):
    """Every huge page in [start, end) of a VMA: 0 or -errno. -EINVAL if the VMA has no room for one, or if the range lies
    inside the place of a single one. Mirrors madvise_collapse.
    """
    machine, size = machine_of(cpu), pmd_size(machine_of(cpu))
    vma = vma_of(machine, number)
    address, last = haddr_of(machine, start + size - U(1)), haddr_of(machine, end)
    if vma.end < size or not thp_vma_suitable(machine, vma, vma.end - size) or address > last:
        return -EINVAL
    failed = 0
    while address < last:
        result = try_collapse(cpu, cpu.mm, number, address)
        if result != SCAN_SUCCEED and result != SCAN_PMD_MAPPED:
            failed = madvise_collapse_errno(result)
        address += size
    return failed


@kernel("i64(cpu_t*, u64, u64)")
def collapse_range(cpu, start, end):
    """Every huge page in [start, end), whatever the settings: 0 or -errno. The mmap_lock is held for writing."""
    machine, at, unmapped = machine_of(cpu), start, 0
    machine.thp_used = 1
    collapse_control_of(machine, cpu).is_khugepaged = 0
    lru_add_drain_all(cpu)
    while at < end:
        number = find_vma(machine, cpu.mm, at)
        if number == 0 or vma_of(machine, number).start >= end:
            return -ENOMEM
        if vma_of(machine, number).start > at:
            at, unmapped = vma_of(machine, number).start, -ENOMEM
        until = min(vma_of(machine, number).end, end)
        error = collapse_vma(cpu, number, at, until)
        if error != 0:
            return error
        at = until
    return unmapped


# -- the thread -----------------------------------------------------------------------------------------------------


@kernel("u64(cpu_t*, i64, u64)")
def next_suitable(cpu, mm_number, address):
    """The first place from `address` on where a huge page may be wanted, or 0: there is none."""
    machine, size = machine_of(cpu), pmd_size(machine_of(cpu))
    while True:
        number = find_vma(machine, mm_number, address)
        if number == 0:
            return U(0)
        vma = vma_of(machine, number)
        at = haddr_of(machine, max(address, vma.start) + size - U(1))
        if vma.mapping != 0 and thp_vma_allowable(machine, vma) and thp_vma_suitable(machine, vma, at) and at < vma.end:
            return at
        address = vma.end


@kernel("i64(cpu_t*, i64)")
def khugepaged_look(cpu, mm_number):
    """Look at the next place of an address space, and collapse it: SCAN_*, or -1: none is left."""
    machine = machine_of(cpu)
    lock = address_of(mm_of(machine, mm_number), "mmap_lock")
    read_lock(cpu, lock)
    at, result = next_suitable(cpu, mm_number, machine.khugepaged_address), -1
    if at != U(0):
        lru_add_drain(cpu)
        result = hpage_collapse_scan_pmd(cpu, mm_number, at)
    read_unlock(lock)
    if result == SCAN_SUCCEED:
        write_lock(cpu, lock)
        if next_suitable(cpu, mm_number, at) == at:
            result = try_collapse(cpu, mm_number, find_vma(machine, mm_number, at), at)
            if result == SCAN_SUCCEED:
                machine.khugepaged_pages_collapsed += 1
        write_unlock(lock)
    machine.khugepaged_address = at + pmd_size(machine)
    return result


@kernel("bool(cpu_t*, i64)")
def khugepaged_do_scan(cpu, pages):
    """Look at so many pages, going on where the last look ended; at every address space once at most.

    False: there was no huge page to be had.
    """
    machine = machine_of(cpu)
    collapse_control_of(machine, cpu).is_khugepaged = 1
    lru_add_drain_all(cpu)
    wrapped = 0
    while pages > 0 and wrapped < 2:
        number = machine.khugepaged_mm
        if number > pool_t.at(machine.mm_pool).used:
            machine.khugepaged_mm, machine.khugepaged_address = 1, U(0)
            machine.khugepaged_full_scans += 1
            wrapped += 1
            continue
        result = -1
        if number > 0 and mmget_not_zero(cpu, number):
            result = khugepaged_look(cpu, number)
            mmput(cpu, number)
        if result < 0:
            machine.khugepaged_mm, machine.khugepaged_address = number + 1, U(0)
            pages -= 1
            continue
        pages -= hpage_pages(machine)
        if result == SCAN_ALLOC_HUGE_PAGE_FAIL:
            return False
    return True


@kernel("i64(machine_t*)")
def latest_ns(machine):
    """Emulated time, as far as any CPU has come."""
    now_ns = 0
    for number in range(machine.nr_cpus):
        now_ns = max(now_ns, clock_ns(cpu_t.array(machine.cpus)[number]))
    return now_ns


@kernel("void(cpu_t*)")
def khugepaged(cpu):
    """The thread, in node 0's context: the rounds that are due, one each scan_sleep of emulated time."""
    machine = machine_of(cpu)
    if machine.thp_enabled == THP_NEVER:
        return
    now_ns, next_ns = latest_ns(machine), load_acquire(machine, "khugepaged_next_ns")
    due = now_ns - next_ns if next_ns != 0 else 0  # 0: woken, for one round
    if due < 0:
        return
    sleep = max(machine.khugepaged_scan_sleep_ns, 1)
    if compare_exchange(machine, "khugepaged_next_ns", next_ns, now_ns + sleep) != next_ns:
        return  # a new setting has come, and with it a wake-up
    scan_control_of(cpu).khugepaged = 1
    found = khugepaged_do_scan(cpu, machine.khugepaged_pages_to_scan * min(1 + due // sleep, ROUNDS))
    scan_control_of(cpu).khugepaged = 0
    if not found:
        compare_exchange(machine, "khugepaged_next_ns", now_ns + sleep, now_ns + machine.khugepaged_alloc_sleep_ns)
