"""mbind(MPOL_MF_MOVE), migrate_pages, move_pages: the moving half of Linux's mm/mempolicy.c and the end of mm/migrate.c.

Small pages move in batches (migrate.py) under the mmap_lock held for reading. Huge ones, transparent or of a pool, move
whole, each by itself (large_folio.py), and only under that lock held for writing: then no fault can find their place empty.
A transparent one for which the target has no piece as large is taken apart, as on Linux, and its small pages move.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import _PAGE_PSE, entry_load
from numaemu.kernel.arch.pgalloc import haddr_of, huge_entry_offset, pmd_trans_huge
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    is_migration_entry,
    leaf_of,
    mm_of,
    pmd_size,
    pte_offset,
    pte_pfn,
    pte_present,
    ptep_get,
    skip_missing,
)
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm import page_align, vma_pages
from numaemu.kernel.include.mm_types import VM_HUGETLB
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_vma, huge_page_size
from numaemu.kernel.mm.huge.split import is_huge_zero, is_hugetlb_entry, split_huge_pmd_address
from numaemu.kernel.mm.migrate.large_folio import (
    HUGE_MOVED,
    HUGE_SPLIT,
    HUGE_STAYED,
    migrate_huge_pmd,
    migrate_hugetlb_page,
)
from numaemu.kernel.mm.migrate.migrate import (
    BY_POLICY,
    NR_MAX_BATCHED_MIGRATION,
    NR_QUEUED_HUGE,
    add_to_batch,
    batch_of,
    isolate_page,
    migrate_pages_batch,
)
from numaemu.kernel.mm.page_alloc.page_alloc import compound_head
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain_all
from numaemu.kernel.mm.space.mempolicy import (
    copy_policy,
    found_policy,
    mpol_set_shared_policy,
    node_isset,
    node_remap,
    nodes_weight,
    vma_shared_object,
)
from numaemu.kernel.mm.space.vma import merge_range, split_range
from numaemu.kernel.mm.space.vma_index import (
    find_position,
    find_vma,
    find_vma_intersection,
    range_is_mapped,
    vma_index,
    vma_of,
)
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import MPOL_DEFAULT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_STRICT, errno

U = np.uint64
# fmt: off
EIO, EINVAL, EFAULT, ENOENT, EACCES, EBUSY, ENODEV = (errno.EIO, errno.EINVAL, errno.EFAULT, errno.ENOENT, errno.EACCES,
                                                      errno.EBUSY, errno.ENODEV)
# fmt: on
QUEUED = -1000  # beside a page's status: it is to be moved


# -- by range: mbind(MPOL_MF_MOVE), migrate_pages ------------------------------------------------------------


@kernel("bool(page_t*, i64)")
def page_movable(page, flags):
    """MPOL_MF_MOVE moves what one process maps, MPOL_MF_MOVE_ALL everything."""
    return flags & MPOL_MF_MOVE_ALL != 0 or load_acquire(page, "mapcount") <= 1


@kernel("i64(cpu_t*, migrate_t*, u64, u64, u64, i64)")
def queue_one(cpu, batch, ptep, pte, address, flags):
    """Isolate one page into the batch, moving the batch when it is full: pages that stay; -ENOMEM: the target is full.

    Choosing not to move a shared page is not counted as a failure (migrate_folio_add).
    """
    machine = machine_of(cpu)
    if not page_movable(page_of(machine, pte_pfn(pte)), flags):
        return 0
    pfn = isolate_page(cpu, ptep, pte)
    if pfn == 0:
        return 1
    if add_to_batch(batch, pfn, address, 0):
        return migrate_pages_batch(cpu, batch)
    return 0


@kernel("bool(machine_t*, i64, u64, u64, bool)")
def huge_is_elsewhere(machine, mm_number, address, nodes, inside):
    """True if an anonymous huge page is mapped at an address and is on `nodes` (inside), or elsewhere (not inside)."""
    where = huge_entry_offset(machine, mm_of(machine, mm_number), address)
    entry = entry_load(where) if where != U(0) else U(0)
    if not pmd_trans_huge(entry) or is_huge_zero(entry) or is_hugetlb_entry(machine, entry):
        return False
    return node_isset(nodes, page_to_nid(machine, pte_pfn(entry))) == inside


@kernel("i64(cpu_t*, migrate_t*, u64, u64, i64)")
def migrate_huge_page(cpu, batch, address, end, flags):
    """Move a transparent huge page as a whole, if all of it lies before `end`: HUGE_*. HUGE_SPLIT: it is small pages now."""
    machine = machine_of(cpu)
    where = huge_entry_offset(machine, mm_of(machine, batch.mm), address)
    if where == U(0):
        return HUGE_SPLIT  # reclaim has just taken it apart
    head = pte_pfn(entry_load(where))
    if not page_movable(page_of(machine, head), flags):
        return HUGE_MOVED  # not chosen, which is no failure
    result = HUGE_SPLIT
    if batch.whole != 0 and address == haddr_of(machine, address) and end - address >= pmd_size(machine):
        vma = vma_of(machine, find_vma(machine, batch.mm, address))
        result = migrate_huge_pmd(cpu, batch.mm, vma, address, where, batch.target, False)
    if result == HUGE_SPLIT:
        split_huge_pmd_address(cpu, batch.mm, address)
    return result


@kernel("i64(cpu_t*, migrate_t*, vma_t*, u64, u64, bool, i64)")
def queue_folios_hugetlb(cpu, batch, vma, address, nodes, inside, flags):
    """Move the page of a pool at an address, if it is where it should not be: pages that stayed; -EIO: only asked."""
    machine = machine_of(cpu)
    leaf = leaf_of(machine, mm_of(machine, batch.mm), address)
    if not pte_present(leaf) or node_isset(nodes, page_to_nid(machine, pte_pfn(leaf))) != inside:
        return 0
    if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) == 0:
        return -EIO
    if not page_movable(page_of(machine, compound_head(machine, pte_pfn(leaf))), flags):
        return 0
    if batch.whole == 0 or migrate_hugetlb_page(cpu, batch.mm, vma, address, batch.target) != HUGE_MOVED:
        return 1
    return 0


@kernel("i64(cpu_t*, migrate_t*, u64, u64, u64, bool, i64)")
def queue_pages_range(cpu, batch, start, end, nodes, inside, flags):
    """Move the pages of [start, end) that are on `nodes` (inside) or elsewhere (not inside): pages that stayed.

    -ENOMEM: the first page without a target, and those behind it, stayed. With MPOL_MF_STRICT alone the first misplaced
    page ends it: -EIO. Mirrors queue_pages_range and migrate_pages.
    """
    machine = machine_of(cpu)
    mm, address, failed = mm_of(machine, batch.mm), start, 0
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            number = find_vma(machine, batch.mm, address)
            if number != 0 and vma_of(machine, number).flags & VM_HUGETLB and vma_of(machine, number).start <= address:
                stayed = queue_folios_hugetlb(cpu, batch, vma_of(machine, number), address, nodes, inside, flags)
                if stayed < 0:
                    return stayed
                failed += stayed
                address = (address | (huge_page_size(hstate_vma(machine, vma_of(machine, number))) - U(1))) + U(1)
                continue
            if huge_is_elsewhere(machine, batch.mm, address, nodes, inside):
                if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) == 0:
                    return -EIO
                result = migrate_huge_page(cpu, batch, address, end, flags)
                failed += 1 if result == HUGE_STAYED else 0
                if result == HUGE_SPLIT:
                    continue
            if huge_entry_offset(machine, mm, address) != U(0):
                address = (address | (pmd_size(machine) - U(1))) + U(1)
                continue
            address = skip_missing(machine, mm, address)
            continue
        pte = ptep_get(ptep)
        if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
            if node_isset(nodes, page_to_nid(machine, pte_pfn(pte))) == inside:
                if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) == 0:
                    return -EIO
                stayed = queue_one(cpu, batch, ptep, pte, address, flags)
                if stayed < 0:
                    return stayed
                failed += stayed
        address += U(PAGE_SIZE)
    stayed = migrate_pages_batch(cpu, batch) if batch.nr > 0 else 0
    return failed + stayed if stayed >= 0 else stayed


@kernel("i64(cpu_t*, i64, u64, u64, policy_t*)")
def mbind_range(cpu, mm_number, start, end, policy):
    """Write the policy into the VMAs of [start, end), splitting at the borders: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    error = split_range(cpu, mm_number, start, end, True)
    if error != 0:
        return error
    position = find_position(machine, mm_number, start)
    while position < mm_of(machine, mm_number).map_count:
        vma = vma_of(machine, vma_index(machine, mm_number)[position])
        if vma.start >= end:
            break
        shared = vma_shared_object(machine, vma)
        if shared != 0:  # shmem_set_policy
            error = mpol_set_shared_policy(cpu, shared, vma.pgoff, vma.pgoff + vma_pages(vma), policy)
            if error != 0:
                return error
        copy_policy(vma.policy, policy)
        position += 1
    return 0


@kernel("void(cpu_t*, migrate_t*, u64, policy_t*, u64, i64)")
def move_huge_page_of_border(cpu, batch, address, policy, nodes, flags):
    """A border of mbind's range cuts a huge page that is elsewhere: it moves whole, as queue_folios_pmd takes it whole, to where
    the new policy wants it. Then the VMA may be cut, and the entry with it. The mmap_lock is held for writing.
    """
    machine = machine_of(cpu)
    number = find_vma(machine, batch.mm, address)
    if (
        address == haddr_of(machine, address)
        or number == 0
        or vma_of(machine, number).start > address
        or not huge_is_elsewhere(machine, batch.mm, address, nodes, False)
    ):
        return
    start, own = haddr_of(machine, address), vma_of(machine, number).policy
    where = huge_entry_offset(machine, mm_of(machine, batch.mm), start)
    if not page_movable(page_of(machine, pte_pfn(entry_load(where))), flags):
        return
    old = found_policy(cpu)  # nobody looks a shared policy up meanwhile: this memory is private
    copy_policy(old, own)
    copy_policy(own, policy)
    migrate_huge_pmd(cpu, batch.mm, vma_of(machine, number), start, where, batch.target, False)
    copy_policy(own, old)


@kernel("i64(cpu_t*, i64, u64, u64, policy_t*, u64, i64)")
def do_mbind(cpu, mm_number, start, length, policy, nodes, flags):
    """mbind(2) with a checked policy and a checked range: 0 or a negative errno. The mmap_lock is held for writing.

    A range may have holes where it is to have no policy any more.
    """
    machine, end = machine_of(cpu), start + page_align(length)
    if policy.mode == MPOL_DEFAULT:
        flags &= ~MPOL_MF_STRICT
        if find_vma_intersection(machine, mm_number, start, end) == 0:
            return -EFAULT
    elif not range_is_mapped(machine, mm_number, start, end):
        return -EFAULT
    batch = batch_of(machine, cpu)
    batch.nr, batch.mm, batch.target, batch.whole = 0, mm_number, BY_POLICY, 1
    if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        lru_add_drain_all(cpu)
    if flags & MPOL_MF_STRICT and flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) == 0:
        if queue_pages_range(cpu, batch, start, end, nodes, False, flags) < 0:
            return -EIO
    if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        move_huge_page_of_border(cpu, batch, start, policy, nodes, flags)
        move_huge_page_of_border(cpu, batch, end, policy, nodes, flags)
    error = mbind_range(cpu, mm_number, start, end, policy)
    if error != 0:
        return error
    failed = 0
    if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        failed = queue_pages_range(cpu, batch, start, end, nodes, False, flags)
    merge_range(cpu, mm_number, start, end)
    return -EIO if failed != 0 and flags & MPOL_MF_STRICT else 0


@hot
def next_migration(todo, old, new):
    """The pair (source, target) to move next: a target that is no source left over, if there is one. Linux's loop."""
    source, target = -1, 0
    for s in range(64):
        if not node_isset(todo, s):
            continue
        if nodes_weight(old) != nodes_weight(new) and node_isset(new, s):
            continue
        d = node_remap(s, old, new)
        if s == d:
            continue
        source, target = s, d
        if not node_isset(todo, target):
            break
    return source, target


@kernel("i64(cpu_t*, i64, u64, u64, i64, bool)")
def do_migrate_pages(cpu, mm_number, old, new, flags, whole):
    """migrate_pages(2): pages that could not be moved; -ENOMEM: a node is full. The mmap_lock is held for reading, or (`whole`) for writing."""
    machine = machine_of(cpu)
    batch, failed, todo = batch_of(machine, cpu), 0, old
    lru_add_drain_all(cpu)
    while todo != U(0):
        source, target = next_migration(todo, old, new)
        if source < 0:
            break
        todo &= ~(U(1) << U(source))
        batch.nr, batch.mm, batch.target, batch.whole = 0, mm_number, target, 1 if whole else 0
        for position in range(mm_of(machine, mm_number).map_count):
            vma = vma_of(machine, vma_index(machine, mm_number)[position])
            stayed = queue_pages_range(cpu, batch, vma.start, vma.end, U(1) << U(source), True, flags)
            if stayed < 0:
                return stayed
            failed += stayed
    return failed


# -- page by page: move_pages --------------------------------------------------------------------------------


@kernel("i64(machine_t*, i64, u64)")
def page_node(machine, mm_number, address):
    """Node of the page at `address`, -ENOENT if none is there, -EFAULT for the zero page or no mapping."""
    number = find_vma(machine, mm_number, address)
    if number == 0 or vma_of(machine, number).start > address:
        return -EFAULT
    pte = leaf_of(machine, mm_of(machine, mm_number), address)
    if is_migration_entry(pte):
        return page_to_nid(machine, pte_pfn(pte))
    if not pte_present(pte):  # nothing, or swapped out
        return -ENOENT
    if pte & _PAGE_SPECIAL != U(0):
        return -EFAULT
    return page_to_nid(machine, pte_pfn(pte))


@kernel("i64(machine_t*, i64, u64)")
def lookup_node(machine, mm_number, address):
    """Node of whatever frame is mapped at `address`, be it the page of zeros; -EFAULT if none is."""
    pte = leaf_of(machine, mm_of(machine, mm_number), address)
    if not pte_present(pte) and not is_migration_entry(pte):
        return -EFAULT
    return page_to_nid(machine, pte_pfn(pte))


@kernel("i64(cpu_t*, migrate_t*, u64, i64)")
def move_huge_page(cpu, batch, address, flags):
    """Move the huge page at an address whole, or what it is taken apart into: pages that stayed."""
    machine = machine_of(cpu)
    vma, start = vma_of(machine, find_vma(machine, batch.mm, address)), haddr_of(machine, address)
    if vma.flags & VM_HUGETLB:
        return 0 if migrate_hugetlb_page(cpu, batch.mm, vma, address, batch.target) == HUGE_MOVED else 1
    return queue_pages_range(
        cpu, batch, start, start + pmd_size(machine), U(1) << U(batch.target), False, flags | MPOL_MF_MOVE
    )


@kernel("i64(cpu_t*, migrate_t*, i64*, i64)")
def store_status(cpu, batch, status, flags):
    """Move what is queued and write each page's node, or -EBUSY, to its place: pages that stayed.

    -ENOMEM: the node is full; as in Linux no page of the queue has a status then, though some have moved.
    """
    machine, nr = machine_of(cpu), batch.nr
    failed = migrate_pages_batch(cpu, batch) if nr > 0 else 0
    if failed < 0:
        batch.nr_huge = 0
        return failed
    for i in range(nr):
        status[batch.place[i]] = batch.target if batch.new[i] != 0 else -EBUSY
    for i in range(batch.nr_huge):
        stayed = move_huge_page(cpu, batch, batch.huge_vaddr[i], flags)
        if stayed < 0:
            batch.nr_huge = 0
            return stayed
        failed += stayed
        there = page_node(machine, batch.mm, batch.huge_vaddr[i])
        status[batch.huge_place[i]] = there if there == batch.target else -EBUSY
    batch.nr_huge = 0
    return failed


@kernel("i64(cpu_t*, migrate_t*, u64, i64, i64)")
def queue_huge_page(cpu, batch, address, pfn, flags):
    """Queue the huge page that an address lies in: QUEUED or its status. Once is enough: it is busy then."""
    machine = machine_of(cpu)
    head = compound_head(machine, pfn)
    if head == pfn:
        head -= np.int64((address - haddr_of(machine, address)) >> U(PAGE_SHIFT))
    if not page_movable(page_of(machine, head), flags):
        return -EACCES
    for i in range(batch.nr_huge):
        if batch.huge_head[i] == head:
            return -EBUSY
    batch.huge_head[batch.nr_huge], batch.huge_vaddr[batch.nr_huge] = head, address
    batch.nr_huge += 1
    return QUEUED


@kernel("i64(cpu_t*, migrate_t*, u64, i64, i64)")
def add_page_for_migration(cpu, batch, address, node, flags):
    """Queue one page for `node`: QUEUED, else its status."""
    machine = machine_of(cpu)
    here = page_node(machine, batch.mm, address)
    if here < 0 or here == node:
        return here
    leaf = leaf_of(machine, mm_of(machine, batch.mm), address)
    if pte_present(leaf) and leaf & _PAGE_PSE != U(0) and batch.whole != 0:
        return queue_huge_page(cpu, batch, address, pte_pfn(leaf), flags)
    split_huge_pmd_address(cpu, batch.mm, address)
    ptep = pte_offset(machine, mm_of(machine, batch.mm), address)
    pte = ptep_get(ptep) if ptep != U(0) else U(0)
    if not pte_present(pte) or pte & _PAGE_SPECIAL != U(0):  # it has changed since we looked
        return -EBUSY
    if not page_movable(page_of(machine, pte_pfn(pte)), flags):
        return -EACCES
    pfn = isolate_page(cpu, ptep, pte)
    if pfn == 0:
        return -EBUSY
    add_to_batch(batch, pfn, address, 0)
    return QUEUED


@hot
def queue_is_full(batch):
    return batch.nr == NR_MAX_BATCHED_MIGRATION or batch.nr_huge == NR_QUEUED_HUGE


@kernel("i64(cpu_t*, i64, u64*, i64*, i64*, i64, i64, u64, bool)")
def do_move_pages(cpu, mm_number, addresses, nodes, status, nr, flags, allowed, whole):
    """move_pages(2): how many pages stayed, or a negative errno. The mmap_lock is held for reading, or (`whole`) for writing.

    addresses, nodes and status are arrays of nr words; `allowed` is what the task's cpuset allows. Pages in a row with one
    target move as one batch, which ends at a page that is not to be moved.
    """
    machine = machine_of(cpu)
    batch, failed = batch_of(machine, cpu), 0
    batch.nr, batch.nr_huge, batch.mm, batch.whole = 0, 0, mm_number, 1 if whole else 0
    lru_add_drain_all(cpu)
    for i in range(nr):
        node = nodes[i]
        if node < 0 or node >= machine.nr_nodes or not node_isset(machine.memory_mask & allowed, node):
            store_status(cpu, batch, status, flags)
            there = 0 <= node < machine.nr_nodes and node_isset(machine.memory_mask, node)
            return -EACCES if there else -ENODEV
        if node != batch.target or queue_is_full(batch):
            stayed = store_status(cpu, batch, status, flags)
            if stayed < 0:
                return stayed
            failed += stayed
        batch.target, huge = node, batch.nr_huge
        status[i] = add_page_for_migration(cpu, batch, addresses[i], node, flags)
        if status[i] != QUEUED:
            stayed = store_status(cpu, batch, status, flags)
            if stayed < 0:
                return stayed
            failed += stayed
        elif batch.nr_huge > huge:
            batch.huge_place[huge] = i
        else:
            batch.place[batch.nr - 1] = i
    stayed = store_status(cpu, batch, status, flags)
    return failed + stayed if stayed >= 0 else stayed
