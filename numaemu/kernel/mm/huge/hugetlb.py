"""Huge pages from a pool: its size, reservations, and the allocation of a page. Linux's mm/hugetlb.c.

mmap reserves: what it promises is free in the pool from then on (hugetlb_acct_memory), so a fault of the mapping that
owns the reservation finds a page. Who has none (MAP_NORESERVE, a forked child) takes what is free beyond all
reservations, or up to nr_overcommit_huge_pages from the buddy system (surplus), or gets SIGBUS.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, fetch_or, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.kernel.arch.pgtable import pte_pfn
from numaemu.kernel.core.cpuset import cpuset_current_mems_allowed, cpuset_nodemask
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.core.xarray import MAX_INDEX, entry_is_page, xa_destroy, xa_find, xa_load
from numaemu.kernel.include.gfp import (
    __GFP_COMP,
    __GFP_NOWARN,
    __GFP_RETRY_MAYFAIL,
    __GFP_ZERO,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
)
from numaemu.kernel.include.internal import ALLOC_CPUSET
from numaemu.kernel.include.mm import linear_page_index
from numaemu.kernel.include.mm_types import HUGETLB, VM_NORESERVE, VM_SHARED, PG_restore_reserve
from numaemu.kernel.include.mmzone import page_of, page_to_nid, zonelist
from numaemu.kernel.include.vmstat import HTLB_BUDDY_ALLOC_FAIL, HTLB_BUDDY_ALLOC_SUCCESS, count_vm_events
from numaemu.kernel.mm.fault.rmap import link_vma, mapping_of, mapping_put, new_mapping
from numaemu.kernel.mm.huge.hugetlb_pool import (
    account_new_hugetlb_folio,
    dequeue_hugetlb_folio_node,
    enqueue_hugetlb_folio,
    free_huge_folio,
    hstate_at,
    hstate_is_gigantic,
    hstate_vma,
    huge_page_shift,
    hugetlb_object,
    region_count,
    remove_hugetlb_folio,
    resv_bytes,
    resv_map_t,
    resv_set,
    resv_test,
)
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages, free_pages, put_page
from numaemu.kernel.mm.slab.slab import host_of
from numaemu.kernel.mm.slab.slab_common import kfree, kmalloc_node
from numaemu.kernel.mm.space.mempolicy import (
    current_task,
    first_set,
    get_vma_policy,
    interleave_nid,
    next_node_in,
    node_isset,
)
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.uapi import (
    MPOL_BIND,
    MPOL_INTERLEAVE,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
    errno,
)

U = np.uint64
ENOMEM = errno.ENOMEM
HTLB_ALLOC_MASK = GFP_HIGHUSER_MOVABLE  # pages of this size can be migrated: hugepage_movable_supported


@hot
def hugetlb_lock(h):
    return address_of(h, "lock")


@hot
def vma_hugecache_offset(h, vma, address):
    """Which huge page of the object lies at an address."""
    return linear_page_index(vma, address) >> h.order


# -- pages from the buddy system ------------------------------------------------------------------------------------


@hot
def free_pool_folio(cpu, h, pfn):
    """A page that is in no pool any more, without references, goes to the buddy system."""
    free_pages(cpu, pfn, h.order)


@kernel("i64(cpu_t*, hstate_t*, i64, i64, u64)")
def alloc_buddy_hugetlb_folio(cpu, h, gfp, nid, nodes):
    """A page for a pool, without references and not yet counted; its pfn or 0.

    One that somebody who looked it up late has a reference to is given up, and another one tried, once.
    """
    machine, gfp = machine_of(cpu), gfp | __GFP_COMP | __GFP_NOWARN | __GFP_RETRY_MAYFAIL
    for _ in range(2):
        pfn = alloc_pages(cpu, gfp, h.order, nid, nodes)
        if pfn == 0 or compare_exchange(page_of(machine, pfn), "refcount", 1, 0) == 1:
            break
        put_page(cpu, pfn)
        pfn = 0
    count_vm_events(machine, cpu.id, HTLB_BUDDY_ALLOC_SUCCESS if pfn != 0 else HTLB_BUDDY_ALLOC_FAIL, 1)
    return pfn


@kernel("i64(cpu_t*, hstate_t*, i64, u64)")
def alloc_surplus_hugetlb_folio(cpu, h, nid, nodes):
    """A page beyond the pool's size, without references, as long as nr_overcommit_huge_pages allows it; its pfn or 0."""
    machine, lock = machine_of(cpu), hugetlb_lock(h)
    if hstate_is_gigantic(h) or h.surplus_huge_pages >= h.nr_overcommit_huge_pages:
        return 0
    pfn = alloc_buddy_hugetlb_folio(cpu, h, HTLB_ALLOC_MASK, nid, nodes)
    if pfn == 0:
        return 0
    spin_lock(cpu, lock)
    allowed = h.surplus_huge_pages < h.nr_overcommit_huge_pages  # others may have been faster
    if allowed:
        account_new_hugetlb_folio(machine, h, pfn)
        h.surplus_huge_pages += 1
        h.surplus_node[page_to_nid(machine, pfn)] += 1
    spin_unlock(lock)
    if not allowed:
        free_pool_folio(cpu, h, pfn)
        return 0
    return pfn


# -- taking pages out of a pool; its size is hugetlb_resize.py ------------------------------------------------------


@kernel("i64(hstate_t*, u64, bool)")
def hstate_next_node(h, nodes, freeing):
    """The next node in turn to give or to take a page (hstate_next_node_to_alloc, _to_free)."""
    nid = h.next_nid_to_free if freeing else h.next_nid_to_alloc
    if not node_isset(nodes, nid):
        nid = next_node_in(nid, nodes)
    following = next_node_in(nid, nodes)
    if freeing:
        h.next_nid_to_free = following
    else:
        h.next_nid_to_alloc = following
    return nid


@kernel("i64(machine_t*, hstate_t*, u64, bool)")
def remove_pool_hugetlb_folio(machine, h, nodes, surplus):
    """Take a free page out of the pool, from the nodes in turn; its pfn or 0. Under the lock."""
    for node in range(machine.nr_nodes):
        if not node_isset(nodes, node):
            continue
        nid = hstate_next_node(h, nodes, True)
        if (not surplus or h.surplus_node[nid] > 0) and h.freelist[nid] != 0:
            pfn = dequeue_hugetlb_folio_node(machine, h, nid)
            remove_hugetlb_folio(machine, h, pfn, surplus)
            return pfn
    return 0


# -- reserving ------------------------------------------------------------------------------------------------------


@hot
def allowed_nodes(cpu):
    """Where the running task may take huge pages from: what its cpuset allows, of that a bound one only its nodes."""
    machine = machine_of(cpu)
    nodes = machine.node_mask
    if machine.cpusets_enabled != 0:
        nodes &= cpuset_current_mems_allowed(cpu)
    if cpu.task != 0 and current_task(cpu).policy.mode == MPOL_BIND and nodes & current_task(cpu).policy.nodes != U(0):
        nodes &= current_task(cpu).policy.nodes
    return nodes


@kernel("i64(cpu_t*, hstate_t*)")
def allowed_mems_nr(cpu, h):
    """Free pages where the running task may take them from."""
    machine, nodes, total = machine_of(cpu), allowed_nodes(cpu), 0
    for node in range(machine.nr_nodes):
        if node_isset(nodes, node):
            total += h.free_node[node]
    return total


@kernel("i64(cpu_t*, hstate_t*)")
def alloc_surplus_anywhere(cpu, h):
    """A surplus page from the first node that the running task may use and that has one."""
    machine, nodes = machine_of(cpu), allowed_nodes(cpu)
    for node in range(machine.nr_nodes):
        if node_isset(nodes & machine.memory_mask, node):
            pfn = alloc_surplus_hugetlb_folio(cpu, h, node, machine.node_mask)
            if pfn != 0:
                return pfn
    return 0


@kernel("void(cpu_t*, hstate_t*, i64, i64)")
def put_chain(cpu, h, first, keep):
    """Of new pages linked by lru_next the first `keep` become free pages of the pool, the others surplus ones again."""
    machine, lock = machine_of(cpu), hugetlb_lock(h)
    while first != 0:
        following = page_of(machine, first).lru_next
        if keep > 0:
            spin_lock(cpu, lock)
            enqueue_hugetlb_folio(machine, h, first)
            spin_unlock(lock)
            keep -= 1
        elif not free_huge_folio(cpu, first):
            free_pool_folio(cpu, h, first)
        first = following


@kernel("bool(cpu_t*, hstate_t*, i64)")
def gather_surplus_pages(cpu, h, delta):
    """Reserve `delta` pages, if need be with surplus pages that become free ones; False: not that many can be had."""
    machine, lock, first, got = machine_of(cpu), hugetlb_lock(h), 0, 0
    while True:
        spin_lock(cpu, lock)
        needed = h.resv_huge_pages + delta - h.free_huge_pages
        if needed <= got:
            h.resv_huge_pages += delta
        spin_unlock(lock)
        if needed <= got:
            put_chain(cpu, h, first, max(needed, 0))
            return True
        pfn = alloc_surplus_anywhere(cpu, h)
        if pfn == 0:
            put_chain(cpu, h, first, 0)
            return False
        page_of(machine, pfn).lru_next = first
        first, got = pfn, got + 1


@kernel("void(cpu_t*, hstate_t*, i64)")
def return_unused_surplus_pages(cpu, h, pages):
    """Take a reservation back, and with it surplus pages that nobody needs any more."""
    machine, lock = machine_of(cpu), hugetlb_lock(h)
    spin_lock(cpu, lock)
    h.resv_huge_pages -= pages
    spin_unlock(lock)
    for _ in range(pages):
        spin_lock(cpu, lock)
        pfn = 0
        if h.surplus_huge_pages > 0 and h.free_huge_pages > h.resv_huge_pages:
            pfn = remove_pool_hugetlb_folio(machine, h, machine.memory_mask, True)
        spin_unlock(lock)
        if pfn == 0:
            break
        free_pool_folio(cpu, h, pfn)


@kernel("bool(cpu_t*, hstate_t*, i64)")
def hugetlb_acct_memory(cpu, h, pages):
    """Reserve pages; False: there are not as many, or not where the task may use them."""
    if pages > 0:
        if not gather_surplus_pages(cpu, h, pages):
            return False
        if pages > allowed_mems_nr(cpu, h):
            return_unused_surplus_pages(cpu, h, pages)
            return False
    return True


@kernel("u64(cpu_t*, i64, i64)")
def resv_map_alloc(cpu, first, pages):
    """A reservation map for so many huge pages, no bit set: its host address, or 0: no memory."""
    address = kmalloc_node(cpu, resv_bytes(pages), GFP_KERNEL | __GFP_ZERO, -1)
    if address == U(0):
        return U(0)
    where = host_of(cpu, address)
    resv = resv_map_t.at(where)
    resv.refs, resv.first, resv.pages, resv.size = 1, first, pages, first + pages
    for index in range(first, first + pages):
        resv_set(where, index, False)
    return where


@hot
def resv_map_release(cpu, where):
    kfree(cpu, where - cpu.memory + cpu.paging.page_offset)


@kernel("void(cpu_t*, u64)")
def put_resv_map(cpu, where):
    if fetch_add(resv_map_t.at(where), "refs", -1) == 1:
        resv_map_release(cpu, where)


@kernel("i64(cpu_t*, i64)")
def hugetlb_reserve_pages(cpu, vma_number):
    """What mmap promises to a new VMA of huge pages that is private or has no file; the object of a shared one. 0 or -ENOMEM."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    h = hstate_vma(machine, vma)
    pages = np.int64((vma.end - vma.start) >> huge_page_shift(h))
    shared, reserve = vma.flags & VM_SHARED != 0, vma.flags & VM_NORESERVE == 0
    if not shared and not reserve:
        return 0
    where = resv_map_alloc(cpu, vma_hugecache_offset(h, vma, vma.start), pages)
    if where == U(0):
        return -ENOMEM
    mapping = new_mapping(cpu, HUGETLB) if shared else 0
    if (shared and mapping == 0) or (reserve and not hugetlb_acct_memory(cpu, h, pages)):
        if mapping != 0:
            mapping_put(cpu, mapping)
        resv_map_release(cpu, where)
        return -ENOMEM
    if not shared:
        vma.resv_map = where
        return 0
    for index in range(pages if reserve else 0):
        resv_set(where, index, True)
    mapping_of(machine, mapping).resv_map, mapping_of(machine, mapping).hstate = where, vma.hstate
    vma.mapping = mapping
    link_vma(cpu, mapping, vma_number)
    return 0


@kernel("void(cpu_t*, vma_t*)")
def hugetlb_vm_op_close(cpu, vma):
    """A VMA goes, its pages are out already: what it had reserved and not used is free again."""
    machine = machine_of(cpu)
    where = vma.resv_map
    if where == U(0):
        return
    h = hstate_vma(machine, vma)
    start = vma_hugecache_offset(h, vma, vma.start)
    end = vma_hugecache_offset(h, vma, vma.end)
    return_unused_surplus_pages(cpu, h, end - start - region_count(where, start, end))
    vma.resv_map = U(0)
    put_resv_map(cpu, where)


@kernel("void(cpu_t*, i64)")
def hugetlb_evict(cpu, number):
    """The last VMA of a shared object is gone: its pages and what it had reserved (hugetlbfs_evict_inode)."""
    machine = machine_of(cpu)
    mapping, index, freed = mapping_of(machine, number), 0, 0
    while True:
        index = xa_find(machine, mapping, index, MAX_INDEX)
        if index < 0:
            break
        entry = xa_load(machine, mapping, index)
        if entry_is_page(entry):
            put_page(cpu, pte_pfn(entry))
            freed += 1
        index += 1
    xa_destroy(cpu, mapping)
    where = mapping.resv_map
    reserved = region_count(where, 0, resv_map_t.at(where).pages) - freed
    return_unused_surplus_pages(cpu, hstate_at(machine, mapping.hstate), reserved)
    resv_map_release(cpu, where)
    mapping.resv_map = U(0)
    mapping_put(cpu, number)


# -- a page for a fault ---------------------------------------------------------------------------------------------


@hot
def resv_map_of(machine, vma):
    """The reservation map that a VMA's faults look at: its object's, its own, or none (0)."""
    return mapping_of(machine, hugetlb_object(vma)).resv_map if vma.flags & VM_SHARED else vma.resv_map


@kernel("bool(machine_t*, vma_t*, i64)")
def vma_has_reserves(machine, vma, index):
    """True if a page has been reserved for this fault (vma_needs_reservation and vma_has_reserves)."""
    where = resv_map_of(machine, vma)
    if where == U(0):
        return False
    return resv_test(where, index) if vma.flags & VM_SHARED else not resv_test(where, index)


@kernel("i64(cpu_t*, hstate_t*, i64, u64)")
def dequeue_hugetlb_folio_nodemask(cpu, h, nid, nodes):
    """A free page of the nearest of the nodes, seen from `nid`, that the cpuset allows; its pfn or 0. Under the lock."""
    machine = machine_of(cpu)
    order = zonelist(machine, nid)
    if machine.cpusets_enabled != 0:
        nodes = cpuset_nodemask(cpu, HTLB_ALLOC_MASK, ALLOC_CPUSET, nodes)
    for i in range(machine.nr_nodes):
        if order[i] < 0:
            break
        if node_isset(nodes, order[i]):
            pfn = dequeue_hugetlb_folio_node(machine, h, order[i])
            if pfn != 0:
                return pfn
    return 0


@hot
def huge_node(cpu, vma, index):
    """By its policy: the node to look at first, and the nodes that may serve (huge_node, policy_nodemask)."""
    machine, policy = machine_of(cpu), get_vma_policy(cpu, vma)
    mode, nid, nodes = policy.mode, cpu.node, machine.node_mask
    if mode == MPOL_PREFERRED:
        nid = first_set(policy.nodes)
    elif mode == MPOL_BIND:
        nodes = policy.nodes
    elif mode == MPOL_INTERLEAVE or mode == MPOL_WEIGHTED_INTERLEAVE:
        nid = interleave_nid(machine, mode, policy.nodes, index)
    return nid, nodes


@kernel("i64(cpu_t*, vma_t*, i64, bool)")
def dequeue_hugetlb_folio_vma(cpu, vma, index, use_reserves):
    """A free page by the VMA's policy: only what nobody has reserved, unless it has itself; its pfn or 0. Under the lock."""
    machine = machine_of(cpu)
    h = hstate_vma(machine, vma)
    if not use_reserves and h.free_huge_pages <= h.resv_huge_pages:
        return 0
    nid, nodes = huge_node(cpu, vma, index)
    policy, pfn = get_vma_policy(cpu, vma), 0
    if policy.mode == MPOL_PREFERRED_MANY:
        pfn = dequeue_hugetlb_folio_nodemask(cpu, h, nid, policy.nodes)
    return pfn if pfn != 0 else dequeue_hugetlb_folio_nodemask(cpu, h, nid, nodes)


@kernel("i64(cpu_t*, vma_t*, i64, bool)")
def alloc_hugetlb_folio(cpu, vma, index, avoid_reserve):
    """A page of the pool for huge page `index` of the VMA's object, with one reference; its pfn, or 0: SIGBUS.

    `avoid_reserve`: a copy for the owner, who must not use up what it has reserved for other pages.
    """
    machine = machine_of(cpu)
    h = hstate_vma(machine, vma)
    lock = hugetlb_lock(h)
    reserved = not avoid_reserve and vma_has_reserves(machine, vma, index)
    spin_lock(cpu, lock)
    pfn = dequeue_hugetlb_folio_vma(cpu, vma, index, reserved)
    if pfn != 0 and reserved:
        h.resv_huge_pages -= 1
    spin_unlock(lock)
    if pfn == 0:
        nid, nodes = huge_node(cpu, vma, index)
        pfn = alloc_surplus_hugetlb_folio(cpu, h, nid, nodes)
        if pfn != 0 and reserved:
            spin_lock(cpu, lock)
            h.resv_huge_pages -= 1
            spin_unlock(lock)
    if pfn == 0:
        return 0
    store_release(page_of(machine, pfn), "refcount", 1)
    where = resv_map_of(machine, vma)
    if where != U(0):
        resv_set(where, index, True)
    return pfn


@kernel("void(cpu_t*, vma_t*, i64, i64)")
def restore_reserve_on_zap(cpu, vma, index, pfn):
    """A private page is taken out of the VMA that owns the reservation: when it is free it is reserved again."""
    machine = machine_of(cpu)
    if vma.resv_map != U(0) and hstate_vma(machine, vma).surplus_huge_pages == 0 and resv_test(vma.resv_map, index):
        fetch_or(page_of(machine, pfn), "flags", U(PG_restore_reserve))
        resv_set(vma.resv_map, index, False)
