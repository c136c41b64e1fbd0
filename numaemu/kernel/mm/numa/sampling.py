"""Tiering by Accessed bits: once in an interval of emulated time a task that runs looks at all its pages, asks the policy about each and
moves what it says, as damon_do_apply_schemes with DAMOS_MIGRATE_HOT and _COLD does in kernels that have it (6.11 on).
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of, i64, u64
from numaemu.hardware.paging import _PAGE_USER, entry_load
from numaemu.kernel.arch.pgalloc import huge_entry_offset, pmd_trans_huge
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    mm_of,
    pmd_addr_end,
    pmd_size,
    pte_offset,
    pte_pfn,
    pte_present,
    ptep_get,
    ptep_step,
    skip_missing,
)
from numaemu.kernel.arch.tlb import flush_tlb_mm_range
from numaemu.kernel.core.smp import machine_of, write_lock, write_unlock
from numaemu.kernel.include.gfp import GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.mm_types import VM_HUGETLB
from numaemu.kernel.include.mmzone import ZONE_MOVABLE, page_of, page_to_nid
from numaemu.kernel.include.vmstat import (
    NUMA_PAGE_MIGRATE,
    PGDEMOTE_DIRECT,
    PGPROMOTE_SUCCESS,
    count_vm_events,
    mod_node_page_state,
)
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages
from numaemu.kernel.mm.huge.split import is_huge_zero
from numaemu.kernel.mm.migrate.move_pages import do_move_pages, page_node
from numaemu.kernel.mm.numa.accessed import young_huge, young_pte
from numaemu.kernel.mm.numa.cpupid import LAST_CPUPID_MASK, folio_last_cpupid, folio_xchg_last_cpupid
from numaemu.kernel.mm.numa.memory_tiers import NUMA_NO_NODE, next_demotion_node, node_is_toptier
from numaemu.kernel.mm.numa.prot_numa import vma_is_accessible
from numaemu.kernel.mm.numa.tiering import DEMOTE, MOVES, PROMOTE, ask_policy, page_sample_t, room_of, tiering_moves_t
from numaemu.kernel.mm.page_alloc.zonelist import wakeup_kswapd
from numaemu.kernel.mm.space.mempolicy import current_task
from numaemu.kernel.mm.space.vma_index import vma_at
from numaemu.mmu import clock_ns
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import MPOL_MF_MOVE

U = np.uint64
UP, DOWN = 0, 1  # of tiering_moves_t


@kernel("i64(cpu_t*)")
def promotion_target(cpu):
    """The node that pages of the running task are promoted to: its own, or the nearest of the fastest tier; -1: there is none."""
    machine, best = machine_of(cpu), NUMA_NO_NODE
    for node in range(machine.nr_nodes):
        here = (machine.memory_mask >> U(node)) & U(1) != U(0) and node_is_toptier(machine, node)
        if here and (best < 0 or cpu.latency_ns[node] < cpu.latency_ns[best]):
            best = node
    return best


@kernel("void(cpu_t*, i64, i64)")
def move_collected(cpu, mm_number, kind):
    """Move the pages of one kind, and count those that have arrived."""
    machine, moves = machine_of(cpu), tiering_moves_t.array(machine_of(cpu).tiering_moves)[cpu.id]
    nr, moves.nr[kind] = moves.nr[kind], 0
    if nr == 0:
        return
    addresses, nodes = address_of(moves, "vaddr") + U(8 * kind * MOVES), address_of(moves, "node") + U(8 * kind * MOVES)
    status, allowed = address_of(moves, "status"), current_task(cpu).mems_allowed
    sources = i64.array(status)
    for i in range(nr):
        sources[i] = page_node(machine, mm_number, u64.array(addresses)[i])
    moved = 0
    before = i64.array(nodes)[0]
    do_move_pages(
        cpu, mm_number, u64.array(addresses), i64.array(nodes), i64.array(status), nr, MPOL_MF_MOVE, allowed, True
    )
    for i in range(nr):
        if page_node(machine, mm_number, u64.array(addresses)[i]) == i64.array(nodes)[i]:
            moved += 1
    count_vm_events(machine, cpu.id, NUMA_PAGE_MIGRATE, moved)
    mod_node_page_state(machine, cpu.id, before, PGPROMOTE_SUCCESS if kind == UP else PGDEMOTE_DIRECT, moved)


@hot
def heat_of(page):
    heat = folio_last_cpupid(page)
    return 0 if heat == LAST_CPUPID_MASK else heat


@kernel("i64(cpu_t*, i64, u64, i64, i64, bool, i64, i64)")
def consider(cpu, mm_number, address, pfn, pages, used, target, room):
    """Ask the policy about a page, and note what it wants moved: the room that is left on `target`."""
    machine = machine_of(cpu)
    page, node = page_of(machine, pfn), page_to_nid(machine, pfn)
    sample = page_sample_t.array(machine.page_samples)[cpu.id]
    sample.used, sample.latency_ms, sample.heat = 1 if used else 0, 0, heat_of(page)
    answer = ask_policy(cpu, pfn, pages, room)
    folio_xchg_last_cpupid(page, min(max(sample.heat, 0), LAST_CPUPID_MASK - 1))
    cpu.clock_base_ns += machine.numa_scan_ns
    if answer == PROMOTE:
        if node_is_toptier(machine, node):
            return room
        if room < pages:
            wakeup_kswapd(cpu, GFP_HIGHUSER_MOVABLE, 0, target, ZONE_MOVABLE)
            return room
    elif answer == DEMOTE:
        target = next_demotion_node(machine, node, np.int64(address >> U(PAGE_SHIFT)))
        if target < 0:
            return room
    else:
        return room
    kind = UP if answer == PROMOTE else DOWN
    moves = tiering_moves_t.array(machine.tiering_moves)[cpu.id]
    place = kind * MOVES + moves.nr[kind]
    moves.vaddr[place], moves.node[place] = address, target
    moves.nr[kind] += 1
    return room - pages if kind == UP else room


@kernel("void(cpu_t*, i64, u64, u64, i64)")
def sample_range(cpu, mm_number, start, end, target):
    """Look at the pages of [start, end), and move what is to move. Every CPU has forgotten them then."""
    machine, mm = machine_of(cpu), mm_of(machine_of(cpu), mm_number)
    moves, address, step = tiering_moves_t.array(machine.tiering_moves)[cpu.id], start, ptep_step(machine)
    while address < end:
        moves.nr[UP], moves.nr[DOWN], room, seen, begun = 0, 0, room_of(machine, target), 0, address
        while address < end and moves.nr[UP] < MOVES and moves.nr[DOWN] < MOVES:
            ptep = pte_offset(machine, mm, address)
            if ptep != U(0):
                until = pmd_addr_end(machine, address, end)
                while address < until and moves.nr[UP] < MOVES and moves.nr[DOWN] < MOVES:
                    pte = ptep_get(ptep)
                    if pte_present(pte) and pte & _PAGE_USER != U(0) and pte & _PAGE_SPECIAL == U(0):
                        used = young_pte(ptep, True)
                        seen += 1 if used else 0
                        room = consider(cpu, mm_number, address, pte_pfn(pte), 1, used, target, room)
                    address, ptep = address + U(PAGE_SIZE), ptep + step
                continue
            where = huge_entry_offset(machine, mm, address)
            if where == U(0):
                address = skip_missing(machine, mm, address)
                continue
            entry = entry_load(where)
            if pmd_trans_huge(entry) and not is_huge_zero(entry):
                used = young_huge(where, True)
                seen += 1 if used else 0
                room = consider(cpu, mm_number, address, pte_pfn(entry), hpage_pages(machine), used, target, room)
            address = (address | (pmd_size(machine) - U(1))) + U(1)
        if seen > 0:
            flush_tlb_mm_range(cpu, mm_number, begun, min(address, end))
        move_collected(cpu, mm_number, DOWN)
        move_collected(cpu, mm_number, UP)


@kernel("void(cpu_t*)")
def sample_task(cpu):
    """One interval of the running task's memory. The CPU is outside; pages move under the mmap_lock held for writing, so that huge
    pages move whole.
    """
    machine, mm_number, target = machine_of(cpu), current_task(cpu).mm, promotion_target(cpu)
    if target < 0:
        return
    lock, position = address_of(mm_of(machine, mm_number), "mmap_lock"), 0
    write_lock(cpu, lock)
    while position < mm_of(machine, mm_number).map_count:
        vma = vma_at(machine, mm_number, position)
        if vma.flags & VM_HUGETLB == 0 and vma_is_accessible(vma):
            sample_range(cpu, mm_number, vma.start, vma.end, target)
        position += 1
    write_unlock(lock)


@kernel("bool(cpu_t*)")
def sampling_is_due(cpu):
    """True if the running task is to look at its memory now, and no other thread does; when the CPU is to look again is noted."""
    machine, now = machine_of(cpu), clock_ns(cpu)
    mm, interval = mm_of(machine, current_task(cpu).mm), machine.tiering_interval_ns
    due = load_acquire(mm, "numa_next_scan_ns")
    wrong = due - now > 2 * interval  # another CPU's clock is ahead, or it is Linux's first delay
    mine = (due == 0 or now >= due or wrong) and compare_exchange(mm, "numa_next_scan_ns", due, now + interval) == due
    cpu.numa_at_ns = max(load_acquire(mm, "numa_next_scan_ns"), now + 1)
    exchange(cpu, "event_at", 0)
    return mine and not wrong and due != 0
