"""Demotion: reclaim moves what it would take from a node to a slower memory tier instead. demote_folio_list of Linux's mm/vmscan.c.

The batch goes through shrink_folio_list's looks (lock, references) first; what may go moves to the nearest node of the next tier, or
where that is full to any node of a slower one. Pages for which there is no room go through reclaim as without demotion.

A huge page moves whole where one reference is all that it has, the slower tier has a huge page free, and nobody has its mmap_lock:
huge pages move under that lock (large_folio.py), which reclaim only tries for, since who has it may be waiting for reclaim.
Elsewhere its pages move one by one.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.paging import entry_load
from numaemu.kernel.arch.pgalloc import haddr_of, huge_entry_offset
from numaemu.kernel.arch.pgtable import mm_of, pte_pfn
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock, write_trylock, write_unlock
from numaemu.kernel.include.gfp import __GFP_THISNODE, GFP_TRANSHUGE_LIGHT
from numaemu.kernel.include.mm_types import PG_anon
from numaemu.kernel.include.mmzone import node_of, page_of
from numaemu.kernel.include.vmstat import (
    PGDEMOTE_KSWAPD,
    THP_MIGRATION_FAIL,
    THP_MIGRATION_SPLIT,
    count_vm_events,
    mod_node_page_state,
)
from numaemu.kernel.mm.cache.shmem import folio_hold_mapping, release_mapping
from numaemu.kernel.mm.fault.rmap import mapping_of, next_vma_of, page_address_in_vma
from numaemu.kernel.mm.huge.huge_memory import prep_huge_pages
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages
from numaemu.kernel.mm.huge.split import huge_entry_of_page, split_huge_pmd
from numaemu.kernel.mm.migrate.large_folio import HUGE_MOVED, may_move_whole, move_huge_pmd_to
from numaemu.kernel.mm.migrate.migrate import DEMOTION, add_to_batch, demotion_batch_of, migrate_pages_batch
from numaemu.kernel.mm.numa.memory_tiers import can_demote, next_demotion_node
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages
from numaemu.kernel.mm.reclaim.lru import folio_test, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import folio_putback_lru, lru_add_drain
from numaemu.kernel.mm.reclaim.pageout import (
    DEMOTE,
    FREED,
    KEEP_LOCKED,
    LOOK_AT,
    reclaimer_offset,
    shrink_folio_list,
    shrink_marked,
    unmap_folio,
)
from numaemu.kernel.mm.space.vma_index import vma_of

U = np.uint64


@kernel("i64(cpu_t*, scan_control_t*, i64)")
def demote_folio_list(cpu, sc, node):
    """Move the pages of the batch whose state is DEMOTE, all of one node, to a slower tier: how many. They are freed then; the others
    are to be looked at again, unlocked. What keeps the reverse map alive is a hold on each page's family, as in compaction.
    """
    machine, demoted = machine_of(cpu), 0
    batch, pgdat = demotion_batch_of(machine, cpu), node_of(machine, node)
    batch.nr, batch.target, batch.misplaced = 0, DEMOTION, 0
    batch.demote_nid = next_demotion_node(machine, node, sc.nr_scanned)
    batch.demote_mask = pgdat.lower_tier_mask
    for i in range(sc.nr_taken):
        if sc.state[i] == DEMOTE:
            family = folio_hold_mapping(cpu, sc.pfn[i])
            if family != 0:
                add_to_batch(batch, sc.pfn[i], U(family), i)
            else:  # nobody's any more
                folio_unlock(page_of(machine, sc.pfn[i]))
                sc.state[i] = LOOK_AT
    nr = batch.nr
    if nr > 0:
        migrate_pages_batch(cpu, batch)
    for j in range(nr):
        i = batch.place[j]
        release_mapping(cpu, np.int64(batch.vaddr[j]))
        if batch.new[j] != 0:
            sc.state[i] = FREED
            demoted += 1
        else:
            folio_unlock(page_of(machine, sc.pfn[i]))
            sc.state[i] = LOOK_AT
    mod_node_page_state(machine, cpu.id, node, PGDEMOTE_KSWAPD + reclaimer_offset(sc), demoted)
    return demoted


# -- huge pages, whole -----------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64, i64)")
def lock_vma_of_huge(cpu, family, pfn):
    """The VMA that maps a page of a family by a huge entry, its mmap_lock taken for writing; 0: none does, or somebody has the lock.

    The family's lock keeps the VMA on its list until the mmap_lock is taken. The last user of an address space unmaps without that
    lock; so who has it looks for users, and the last one looks for a writer when there are none: one of them sees the other.
    """
    machine, found = machine_of(cpu), 0
    mapping, page = mapping_of(machine, family), page_of(machine, pfn)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    number = mapping.first_vma
    while number != 0:
        vma = vma_of(machine, number)
        mm, address = mm_of(machine, vma.mm), page_address_in_vma(page, vma)
        if address != U(0) and huge_entry_of_page(machine, mm, address, pfn) != U(0):
            if write_trylock(address_of(mm, "mmap_lock")):
                found = number if load_acquire(mm, "users") != 0 else 0
                if found == 0:
                    write_unlock(address_of(mm, "mmap_lock"))
            break
        number = next_vma_of(mapping, vma)
    spin_unlock(lock)
    return found


@hot
def is_of_huge(sc, i, head, pages):
    """True if page i of the batch is one of a huge page's."""
    return head <= sc.pfn[i] < head + pages


@kernel("bool(scan_control_t*, i64, i64)")
def is_idle_whole(sc, head, pages):
    """True if all pages of a huge one that are in the batch may go. If not, none of them may: it has been used, or not, as a whole."""
    for i in range(sc.nr_taken):
        if is_of_huge(sc, i, head, pages) and sc.state[i] != DEMOTE:
            for j in range(sc.nr_taken):
                if is_of_huge(sc, j, head, pages) and sc.state[j] == DEMOTE:
                    sc.state[j] = KEEP_LOCKED
            return False
    return True


@kernel("i64(cpu_t*, scan_control_t*, i64, i64)")
def give_back(cpu, sc, head, pages):
    """The pages of a huge one that are in the batch go back to their list, and are nothing to the batch any more: how many."""
    machine, given = machine_of(cpu), 0
    for i in range(sc.nr_taken):
        if is_of_huge(sc, i, head, pages):
            folio_unlock(page_of(machine, sc.pfn[i]))
            folio_putback_lru(cpu, sc.pfn[i])
            sc.state[i] = FREED
            given += 1
    lru_add_drain(cpu)
    return given


@kernel("i64(cpu_t*, i64, i64)")
def alloc_demote_huge(cpu, nid, mask):
    """Pages in one piece for demotion: of the node to try first, else of any of the mask; the first pfn or 0. Nobody is woken for it."""
    machine = machine_of(cpu)
    order = np.int64(machine.paging.table_bits)
    pfn = alloc_pages(cpu, GFP_TRANSHUGE_LIGHT | __GFP_THISNODE, order, nid, machine.node_mask)
    if pfn == 0:
        pfn = alloc_pages(cpu, GFP_TRANSHUGE_LIGHT, order, nid, mask)
    if pfn != 0:
        prep_huge_pages(machine, pfn)
    return pfn


@kernel("i64(cpu_t*, scan_control_t*, i64, vma_t*, i64)")
def demote_huge_of(cpu, sc, node, vma, pfn):
    """demote_huge with the VMA's mmap_lock: pages that moved."""
    machine, pages = machine_of(cpu), hpage_pages(machine_of(cpu))
    address = haddr_of(machine, page_address_in_vma(page_of(machine, pfn), vma))
    where = huge_entry_offset(machine, mm_of(machine, vma.mm), address)
    if where == U(0) or not may_move_whole(machine, entry_load(where)):
        return 0
    head = pte_pfn(entry_load(where))
    if not head <= pfn < head + pages:
        return 0  # another reclaimer has just taken it apart
    if not is_idle_whole(sc, head, pages):
        return 0
    new = alloc_demote_huge(
        cpu, next_demotion_node(machine, node, sc.nr_scanned), node_of(machine, node).lower_tier_mask
    )
    if new == 0:
        count_vm_events(machine, cpu.id, THP_MIGRATION_FAIL, 1)
        count_vm_events(machine, cpu.id, THP_MIGRATION_SPLIT, 1)
        return 0
    given = give_back(cpu, sc, head, pages)
    if move_huge_pmd_to(cpu, vma.mm, vma, address, where, new) != HUGE_MOVED:
        split_huge_pmd(cpu, where)  # one of its pages is busy: the next scan is not to stop at it
        return 0
    sc.nr_whole += pages - given
    return pages


@kernel("i64(cpu_t*, scan_control_t*, i64, i64)")
def demote_huge(cpu, sc, node, pfn):
    """Demote the huge page that a page of the batch, marked DEMOTE, is a part of: pages that moved. Those left DEMOTE are for
    demote_folio_list.
    """
    machine, moved = machine_of(cpu), 0
    page = page_of(machine, pfn)
    if not folio_test(page, PG_anon) or load_acquire(page, "mapcount") != 1:
        return 0
    family = folio_hold_mapping(cpu, pfn)
    if family == 0:
        return 0
    number = lock_vma_of_huge(cpu, family, pfn)
    if number != 0:
        vma = vma_of(machine, number)
        moved = demote_huge_of(cpu, sc, node, vma, pfn)
        write_unlock(address_of(mm_of(machine, vma.mm), "mmap_lock"))
    release_mapping(cpu, family)
    return moved


@kernel("i64(cpu_t*, scan_control_t*, i64)")
def demote_huge_pages(cpu, sc, node):
    """Demote whole what can be of the batch: pages that moved."""
    machine, moved = machine_of(cpu), 0
    for i in range(sc.nr_taken):
        if sc.state[i] == DEMOTE:
            moved += demote_huge(cpu, sc, node, sc.pfn[i])
    mod_node_page_state(machine, cpu.id, node, PGDEMOTE_KSWAPD + reclaimer_offset(sc), moved)
    return moved


@kernel("i64(cpu_t*, scan_control_t*, i64)")
def shrink_or_demote(cpu, sc, node):
    """Reclaim what can be had of the batch of isolated pages of a node, by demotion where there is a slower tier: how many are gone."""
    machine, sc.nr_whole = machine_of(cpu), 0
    if not can_demote(machine, node) or sc.lumpy_order > 0:
        return shrink_folio_list(cpu, sc)
    sc.demote_pass, sc.tlb_ubc.nr_mms = 1, 0
    for i in range(sc.nr_taken):
        sc.state[i] = unmap_folio(cpu, sc, sc.pfn[i])
    sc.demote_pass = 0
    demoted = demote_huge_pages(cpu, sc, node) if machine.thp_used != 0 else 0
    demoted += demote_folio_list(cpu, sc, node)
    return demoted + shrink_marked(cpu, sc)
