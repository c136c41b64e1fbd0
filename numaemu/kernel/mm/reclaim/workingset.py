"""Refaults: Linux's mm/workingset.c. When a page is reclaimed, a shadow of it stays where it was cached: the node, and
the node's clock of evictions and activations. When it comes back, the distance says whether it would still be here,
had the inactive list been longer by the active one; if so, it is part of a working set and joins the active list.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.mm_types import PG_active, PG_workingset
from numaemu.kernel.include.mmzone import lruvec_of, page_of, page_to_nid
from numaemu.kernel.include.vmstat import (
    NR_ACTIVE_ANON,
    NR_ACTIVE_FILE,
    NR_INACTIVE_ANON,
    NR_INACTIVE_FILE,
    WORKINGSET_ACTIVATE_ANON,
    WORKINGSET_REFAULT_ANON,
    WORKINGSET_RESTORE_ANON,
    lruvec_page_state,
    mod_node_page_state,
)
from numaemu.kernel.mm.reclaim.lru import folio_is_file_lru, folio_set, folio_test, workingset_age_nonresident
from numaemu.kernel.mm.swap.swapfile import get_nr_swap_pages

U = np.uint64
SWAP_CLUSTER_MAX = 32
DEF_PRIORITY = 12  # a list is gone through in parts of 1 / 2**priority
SHADOW = 1 << 62  # a shadow is a negative number: -(SHADOW | ...)
NODE_SHIFT, WORKINGSET_BIT, EVICTION_MASK = 6, 1, (1 << 48) - 1


@hot
def pack_shadow(node, eviction, workingset):
    return -(SHADOW | (((eviction & EVICTION_MASK) << NODE_SHIFT | node) << WORKINGSET_BIT | workingset))


@hot
def shadow_to_entry(shadow):
    """A shadow as a value in the tree of a file (xarray.py)."""
    return U((-shadow & ~SHADOW) << 2) | U(3)


@hot
def entry_to_shadow(entry):
    return -(SHADOW | np.int64(entry >> U(2)))


@kernel("i64(cpu_t*, i64)")
def workingset_eviction(cpu, pfn):
    """The shadow of a page that is being reclaimed."""
    machine = machine_of(cpu)
    node = page_to_nid(machine, pfn)
    eviction = fetch_add(lruvec_of(machine, node), "nonresident_age", 1)
    return pack_shadow(node, eviction, 1 if folio_test(page_of(machine, pfn), PG_workingset) else 0)


@kernel("void(cpu_t*, lruvec_t*, bool, i64, i64)")
def lru_note_cost(cpu, lruvec, file, nr_io, nr_rotated):
    """Reclaim from these lists has cost something; it fades as the lists are gone through."""
    cost = nr_io * SWAP_CLUSTER_MAX + nr_rotated
    if cost == 0:
        return
    lock = address_of(lruvec, "lru_lock")
    spin_lock(cpu, lock)
    if file:
        lruvec.file_cost += cost
    else:
        lruvec.anon_cost += cost
    pages = (
        lruvec_page_state(lruvec, NR_INACTIVE_ANON)
        + lruvec_page_state(lruvec, NR_ACTIVE_ANON)
        + lruvec_page_state(lruvec, NR_INACTIVE_FILE)
        + lruvec_page_state(lruvec, NR_ACTIVE_FILE)
    )
    if lruvec.file_cost + lruvec.anon_cost > pages // 4:
        lruvec.file_cost //= 2
        lruvec.anon_cost //= 2
    spin_unlock(lock)


@kernel("bool(machine_t*, i64, bool)")
def workingset_test_recent(machine, shadow, file):
    """True if the page would still be in memory, had the lists that compete with its own been empty."""
    word = (-shadow & ~SHADOW) >> WORKINGSET_BIT
    lruvec = lruvec_of(machine, word & ((1 << NODE_SHIFT) - 1))
    distance = (load_acquire(lruvec, "nonresident_age") - (word >> NODE_SHIFT)) & EVICTION_MASK
    pages = lruvec_page_state(lruvec, NR_ACTIVE_FILE)
    if not file:
        pages += lruvec_page_state(lruvec, NR_INACTIVE_FILE)
    if get_nr_swap_pages(machine) > 0:
        pages += lruvec_page_state(lruvec, NR_ACTIVE_ANON)
        if file:
            pages += lruvec_page_state(lruvec, NR_INACTIVE_ANON)
    return distance <= pages


@kernel("void(cpu_t*, i64, i64)")
def workingset_refault(cpu, pfn, shadow):
    """A page comes back whose shadow was found in its place. The caller holds its lock and adds it to the lists later."""
    machine = machine_of(cpu)
    page, node = page_of(machine, pfn), page_to_nid(machine, pfn)
    file = 1 if folio_is_file_lru(page) else 0
    mod_node_page_state(machine, cpu.id, node, WORKINGSET_REFAULT_ANON + file, 1)
    if not workingset_test_recent(machine, shadow, file):
        return
    folio_set(page, PG_active)
    workingset_age_nonresident(lruvec_of(machine, node), 1)
    mod_node_page_state(machine, cpu.id, node, WORKINGSET_ACTIVATE_ANON + file, 1)
    if -shadow & WORKINGSET_BIT:
        folio_set(page, PG_workingset)
        lru_note_cost(cpu, lruvec_of(machine, node), file, 1, 0)
        mod_node_page_state(machine, cpu.id, node, WORKINGSET_RESTORE_ANON + file, 1)
