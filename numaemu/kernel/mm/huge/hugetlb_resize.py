"""The size of a pool of huge pages: what a write to nr_hugepages does. From Linux's mm/hugetlb.c.

The nodes give and take a page in turn. Gigantic pages are looked for (contig.py), all others come from the buddy system.
"""

import numpy as np

from numaemu.compiler.decorators import entry, kernel
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.gfp import __GFP_THISNODE
from numaemu.kernel.mm.huge.hugetlb import (
    HTLB_ALLOC_MASK,
    alloc_buddy_hugetlb_folio,
    free_pool_folio,
    hstate_next_node,
    hugetlb_lock,
    remove_pool_hugetlb_folio,
)
from numaemu.kernel.mm.huge.hugetlb_pool import (
    account_new_hugetlb_folio,
    enqueue_hugetlb_folio,
    hstate_at,
    hstate_is_gigantic,
)
from numaemu.kernel.mm.page_alloc.contig import alloc_contig_pages
from numaemu.kernel.mm.space.mempolicy import node_isset

U = np.uint64


@kernel("bool(cpu_t*, hstate_t*, u64)")
def alloc_pool_huge_folio(cpu, h, nodes):
    """One page more in a pool, from the next of the nodes that has one; False: none has."""
    machine, lock = machine_of(cpu), hugetlb_lock(h)
    for node in range(machine.nr_nodes):
        if not node_isset(nodes, node):
            continue
        nid = hstate_next_node(h, nodes, False)
        if hstate_is_gigantic(h):
            pfn = alloc_contig_pages(cpu, h.order, nid)
        else:
            pfn = alloc_buddy_hugetlb_folio(cpu, h, HTLB_ALLOC_MASK | __GFP_THISNODE, nid, machine.node_mask)
        if pfn != 0:
            spin_lock(cpu, lock)
            account_new_hugetlb_folio(machine, h, pfn)
            enqueue_hugetlb_folio(machine, h, pfn)
            spin_unlock(lock)
            return True
    return False


@kernel("bool(machine_t*, hstate_t*, u64, i64)")
def adjust_pool_surplus(machine, h, nodes, delta):
    """A page of some node is surplus from now on (1), or no longer (-1); False: there is none. Under the lock."""
    for node in range(machine.nr_nodes):
        if not node_isset(nodes, node):
            continue
        nid = hstate_next_node(h, nodes, delta > 0)
        if h.surplus_node[nid] > 0 if delta < 0 else h.surplus_node[nid] < h.nr_node[nid]:
            h.surplus_huge_pages += delta
            h.surplus_node[nid] += delta
            return True
    return False


@kernel("void(cpu_t*, hstate_t*, u64, i64)")
def shrink_pool(cpu, h, nodes, count):
    """Give pages back until `count` are left that are not surplus; those in use become surplus."""
    machine, lock = machine_of(cpu), hugetlb_lock(h)
    while True:
        spin_lock(cpu, lock)
        least = max(count, h.resv_huge_pages + h.nr_huge_pages - h.free_huge_pages)
        pfn = 0
        if h.nr_huge_pages - h.surplus_huge_pages > least:
            pfn = remove_pool_hugetlb_folio(machine, h, nodes, False)
        spin_unlock(lock)
        if pfn == 0:
            break
        free_pool_folio(cpu, h, pfn)
    spin_lock(cpu, lock)
    while h.nr_huge_pages - h.surplus_huge_pages > count and adjust_pool_surplus(machine, h, nodes, 1):
        pass
    spin_unlock(lock)


@entry("void(u64, i64, i64, i64, u64)")
def set_max_huge_pages(cpu_address, number, count, nid, nodes):
    """Write nr_hugepages of a pool: of `nodes` in turn (nid -1; 0: all that have memory), or of one. As many pages as there
    are to be had.
    """
    cpu = cpu_t.at(cpu_address)
    machine = machine_of(cpu)
    h = hstate_at(machine, number)
    lock, nodes = hugetlb_lock(h), nodes if nodes != U(0) else machine.memory_mask
    if nid >= 0:
        nodes = U(1) << U(nid)
        count += h.nr_huge_pages - h.surplus_huge_pages - (h.nr_node[nid] - h.surplus_node[nid])
    spin_lock(cpu, lock)
    while (
        h.surplus_huge_pages > 0
        and count > h.nr_huge_pages - h.surplus_huge_pages
        and adjust_pool_surplus(machine, h, nodes, -1)
    ):
        pass
    spin_unlock(lock)
    while count > h.nr_huge_pages - h.surplus_huge_pages and alloc_pool_huge_folio(cpu, h, nodes):
        pass
    if count < h.nr_huge_pages - h.surplus_huge_pages:
        shrink_pool(cpu, h, nodes, count)
    h.max_huge_pages = h.nr_huge_pages - h.surplus_huge_pages
