"""Moving pages between nodes: Linux's mm/migrate.c and the moving half of mm/mempolicy.c.

One batch: take the pages (isolate), allocate their targets, replace every page-table entry by a migration entry, let
every CPU forget them with one shootdown, copy, point the entries at the new frames, free the old ones. A CPU that
faults on a migration entry waits until it is replaced. A page that somebody else uses at that moment stays.
"""
import numpy as np

from numaemu.atomic import compare_exchange, fetch_add, load_acquire, store_release
from numaemu.compile import hot, kernel
from numaemu.kernel.compaction_free import compact_control_of
from numaemu.kernel.gfp import GFP_HIGHUSER_MOVABLE, __GFP_THISNODE
from numaemu.kernel.huge_migrate import migrate_huge_pmd
from numaemu.kernel.huge_split import is_huge_zero, is_hugetlb_entry, split_for_page, split_huge_pmd_address
from numaemu.kernel.mempolicy import copy_policy, node_isset, node_remap, nodes_weight, vma_alloc_folio
from numaemu.kernel.mlock import mlock_folio
from numaemu.kernel.mm_inline import folio_clear, folio_set, folio_test
from numaemu.kernel.mm_types import (VM_LOCKED, PG_active, PG_anon, PG_anon_exclusive, PG_dirty, PG_locked, PG_mlocked,
                                     PG_private, PG_referenced, PG_swapbacked, PG_swapcache, PG_unevictable,
                                     PG_uptodate, PG_workingset)
from numaemu.kernel.mmap import range_is_mapped
from numaemu.kernel.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.mmzone import copy_highpage, page_of, page_to_nid
from numaemu.kernel.page_alloc import alloc_pages, get_page, prep_page, put_page, try_get_page
from numaemu.kernel.pgalloc import haddr_of, huge_entry_offset, pmd_trans_huge
from numaemu.kernel.pgtable import (_MIGRATION, _MIGRATION_ANON, _MIGRATION_FILE, _PAGE_SPECIAL, is_migration_entry,
                                    leaf_of, mm_of, pmd_size, pfn_pte, pte_offset, pte_pfn, pte_present, ptep_cmpxchg,
                                    ptep_get,
                                    skip_missing)
from numaemu.kernel.rmap import folio_dup_rmap, folio_remove_rmap, mapping_of, next_vma_of, page_address_in_vma
from numaemu.kernel.shmem import count_shmem
from numaemu.kernel.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.swap import (count_isolated, folio_add_new_lru, folio_isolate_lru, folio_putback_lru,
                                 lru_add_drain_all)
from numaemu.kernel.swapfile import __delete_from_swap_cache, add_to_swap_cache
from numaemu.kernel.tlb import set_tlb_ubc_flush_pending, tlbflush_unmap_batch_t, try_to_unmap_flush
from numaemu.kernel.vma import merge_range, split_range
from numaemu.kernel.vma_index import find_position, find_vma, vma_index, vma_of
from numaemu.kernel.vmstat import (NR_FILE_DIRTY, NR_FILE_PAGES, PGMIGRATE_FAIL, PGMIGRATE_SUCCESS, THP_MIGRATION_SPLIT,
                                   count_vm_events,                                   mod_node_page_state)
from numaemu.kernel.xarray import page_entry, xa_slot
from numaemu.paging import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_NX, _PAGE_PRESENT, _PAGE_RW, _PAGE_USER, entry_load
from numaemu.pointer import Struct, address_of, i64, u64
from numaemu.uapi import MPOL_DEFAULT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_STRICT, errno

U = np.uint64
_KEPT = _PAGE_RW | _PAGE_USER | _PAGE_DIRTY | _PAGE_NX      # of an entry, in the migration entry that stands for it
NR_MAX_BATCHED_MIGRATION = 512           # pages (Linux: HPAGE_PMD_NR)
# what a page takes along to its new frame (folio_migrate_flags)
MIGRATED_FLAGS = U(PG_anon | PG_anon_exclusive | PG_swapbacked | PG_active | PG_referenced | PG_unevictable | PG_mlocked |
                   PG_workingset | PG_dirty | PG_uptodate | PG_private)
BY_POLICY = -1                           # target node: ask the VMA's policy
COMPACTION = -2                          # target node: take the free scanner's next page
EIO, EINVAL, EFAULT, ENOENT, EACCES, EBUSY, ENODEV = (errno.EIO, errno.EINVAL, errno.EFAULT, errno.ENOENT, errno.EACCES,
                                                      errno.EBUSY, errno.ENODEV)

migrate_t = Struct("migrate_t", [        # one for each CPU: the batch it is moving
    ("nr", i64),
    ("mm", i64), ("target", i64),        # whose pages; the node, or BY_POLICY
    ("tlb_ubc", tlbflush_unmap_batch_t),
    ("old", i64, NR_MAX_BATCHED_MIGRATION), ("new", i64, NR_MAX_BATCHED_MIGRATION),
    ("vaddr", u64, NR_MAX_BATCHED_MIGRATION),
    ("place", i64, NR_MAX_BATCHED_MIGRATION),        # the caller's: where its status belongs
])


@hot
def batch_of(machine, cpu):
    return migrate_t.array(machine.migrate)[cpu.id]


@kernel("i64(cpu_t*, u64, u64)")
def isolate_page(cpu, ptep, pte):
    """Lock the page a present entry maps and take it off its LRU list; its pfn, or 0: it is busy or has just gone."""
    machine, pfn = machine_of(cpu), pte_pfn(pte)
    page = page_of(machine, pfn)
    if not try_get_page(page):
        return 0
    now = ptep_get(ptep)
    if pte_present(now) and pte_pfn(now) == pfn and not folio_set(page, PG_locked):
        if folio_isolate_lru(cpu, pfn):
            fetch_add(page, "refcount", -1)      # the reference of its isolation is enough
            count_isolated(machine, cpu, pfn, 1)
            return pfn
        folio_clear(page, PG_locked)
    put_page(cpu, pfn)
    return 0


@kernel("void(cpu_t*, i64, bool)")
def putback_page(cpu, pfn, moved):
    """Unlock an isolated page: back to its list, or, if its contents have moved, drop the last reference."""
    machine = machine_of(cpu)
    locked = folio_clear(page_of(machine, pfn), PG_locked)
    VM_BUG_ON_PAGE(not locked, page_of(machine, pfn))
    count_isolated(machine, cpu, pfn, -1)
    if moved:
        put_page(cpu, pfn)
    else:
        folio_putback_lru(cpu, pfn)


@kernel("void(cpu_t*, migrate_t*, i64, vma_t*, u64)")
def try_to_migrate_one(cpu, batch, pfn, vma, address):
    """Replace one VMA's entry for the page by a migration entry, if it has one."""
    machine = machine_of(cpu)
    ptep = pte_offset(machine, mm_of(machine, vma.mm), address)
    if ptep == U(0) and split_for_page(cpu, vma.mm, address, pfn):
        count_vm_events(machine, cpu.id, THP_MIGRATION_SPLIT, 1)
        ptep = pte_offset(machine, mm_of(machine, vma.mm), address)
    if ptep == U(0):
        return
    flags, kind = page_of(machine, pfn).flags, _MIGRATION
    if flags & U(PG_anon) != U(0):
        kind |= _MIGRATION_ANON
    elif flags & U(PG_swapbacked) == U(0):
        kind |= _MIGRATION_FILE
    while True:
        pte = ptep_get(ptep)
        if not pte_present(pte) or pte_pfn(pte) != pfn or pte & _PAGE_SPECIAL != U(0):
            return
        if ptep_cmpxchg(ptep, pte, pfn_pte(pfn, kind | (pte & _KEPT))):
            break
    folio_remove_rmap(machine, cpu, pfn)
    put_page(cpu, pfn)
    set_tlb_ubc_flush_pending(cpu, batch.tlb_ubc, vma.mm, address)


@kernel("void(cpu_t*, i64, i64, vma_t*, u64)")
def remove_migration_pte(cpu, old, new, vma, address):
    """Point one VMA's migration entry for `old` at `new`."""
    machine = machine_of(cpu)
    ptep = pte_offset(machine, mm_of(machine, vma.mm), address)
    if ptep == U(0):
        return
    while True:
        pte = ptep_get(ptep)
        if not is_migration_entry(pte) or pte_pfn(pte) != old:
            return
        get_page(page_of(machine, new))
        folio_dup_rmap(machine, cpu, new)
        if ptep_cmpxchg(ptep, pte, pfn_pte(new, _PAGE_PRESENT | _PAGE_ACCESSED | (pte & _KEPT))):
            if vma.flags & VM_LOCKED:
                mlock_folio(cpu, new)
            return
        folio_remove_rmap(machine, cpu, new)
        put_page(cpu, new)


@kernel("void(cpu_t*, migrate_t*, i64, i64, bool)")
def rmap_walk(cpu, batch, old, new, unmapping):
    """Over every VMA that may map page `old`: put migration entries in, or (new != 0) take them out."""
    machine = machine_of(cpu)
    page = page_of(machine, old)
    mapping = mapping_of(machine, page.mapping)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    number = mapping.first_vma
    while number != 0:
        vma = vma_of(machine, number)
        address = page_address_in_vma(page, vma)
        if address != U(0):
            if unmapping:
                try_to_migrate_one(cpu, batch, old, vma, address)
            else:
                remove_migration_pte(cpu, old, new, vma, address)
        number = next_vma_of(mapping, vma)
    spin_unlock(lock)


@kernel("i64(cpu_t*)")
def compaction_alloc(cpu):
    """The next page of the chain that the free scanner has isolated; 0 if it is empty."""
    machine = machine_of(cpu)
    cc = compact_control_of(machine, cpu.id)
    pfn = cc.freepages
    if pfn != 0:
        cc.freepages = page_of(machine, pfn).lru_next
        cc.nr_freepages -= 1
        prep_page(machine, cpu, pfn, 0, GFP_HIGHUSER_MOVABLE).refcount = 1
    return pfn


@kernel("void(cpu_t*, i64)")
def compaction_free(cpu, pfn):
    """A target that was not used, to which nobody else can refer, goes back to the head of the chain."""
    machine = machine_of(cpu)
    cc, page = compact_control_of(machine, cpu.id), page_of(machine, pfn)
    VM_BUG_ON_PAGE(page.refcount != 1 or page.mapcount != 0, page)
    page.refcount, page.lru_next = 0, cc.freepages
    if cc.freepages == 0:
        cc.last_freepage = pfn
    cc.freepages = pfn
    cc.nr_freepages += 1


@kernel("i64(cpu_t*, migrate_t*, i64)")
def alloc_migration_target(cpu, batch, i):
    """The frame that page i of the batch moves to; 0 if there is none on the node."""
    machine = machine_of(cpu)
    if batch.target == COMPACTION:
        return compaction_alloc(cpu)
    if batch.target == BY_POLICY:
        number = find_vma(machine, batch.mm, batch.vaddr[i])
        if number == 0:
            return 0
        return vma_alloc_folio(cpu, GFP_HIGHUSER_MOVABLE, vma_of(machine, number), batch.vaddr[i])
    return alloc_pages(cpu, GFP_HIGHUSER_MOVABLE | __GFP_THISNODE, 0, batch.target, machine.node_mask)


@kernel("void(cpu_t*, i64, i64)")
def migrate_swap_cache(cpu, old, new):
    """The swap cache's reference goes over to the new frame; the old one's count is frozen, so nobody finds it."""
    machine = machine_of(cpu)
    page, entry = page_of(machine, old), page_of(machine, old).private
    get_page(page_of(machine, new))
    __delete_from_swap_cache(cpu, old, 0)
    add_to_swap_cache(cpu, new, entry)
    page.private = 0


@hot
def put_target(cpu, batch, new):
    """Give a target back that was not used."""
    if batch.target == COMPACTION:
        compaction_free(cpu, new)
    else:
        put_page(cpu, new)


@hot
def move_counts(machine, cpu, page, old, new):
    """A page of an object is counted on its new node."""
    if page.flags & U(PG_swapbacked) != U(0):
        count_shmem(machine, cpu, old, -1)
        count_shmem(machine, cpu, new, 1)
        return
    for pfn, sign in ((old, -1), (new, 1)):
        node = page_to_nid(machine, pfn)
        mod_node_page_state(machine, cpu.id, node, NR_FILE_PAGES, sign)
        if page.flags & U(PG_dirty) != U(0):
            mod_node_page_state(machine, cpu.id, node, NR_FILE_DIRTY, sign)


@kernel("bool(cpu_t*, i64, i64)")
def move_to_new_folio(cpu, old, new):
    """Copy contents and identity; a shared object's tree points to the new frame. False: somebody uses the page.

    The reference count is frozen at 0 meanwhile (folio_ref_freeze), so that nobody finds and maps the old frame.
    """
    machine = machine_of(cpu)
    page, target = page_of(machine, old), page_of(machine, new)
    VM_BUG_ON_PAGE(page.flags & U(PG_locked) == U(0), page)
    anon = page.flags & U(PG_anon) != U(0)
    cached = anon and folio_test(page, PG_swapcache)
    references = 2 if cached or not anon else 1      # ours, and the tree's or the swap cache's
    if load_acquire(page, "mapcount") != 0 or \
            compare_exchange(page, "refcount", references, 0) != references:
        return False
    target.mapping, target.index = page.mapping, page.index
    target.flags |= page.flags & MIGRATED_FLAGS
    copy_highpage(machine, cpu, new, old)
    if cached:
        migrate_swap_cache(cpu, old, new)
    if not anon:
        target.private = page.private
        get_page(target)
        slot = xa_slot(machine, mapping_of(machine, page.mapping), page.index)
        store_release(u64.array(slot), 0, page_entry(new))
        move_counts(machine, cpu, page, old, new)
    store_release(page, "refcount", 1)
    return True


@kernel("i64(cpu_t*, migrate_t*)")
def migrate_pages_batch(cpu, batch):
    """Move the batch's pages; `new[i]` is the new frame, or 0 where the page stayed. How many stayed."""
    machine = machine_of(cpu)
    failed = batch.tlb_ubc.nr_mms = 0
    for i in range(batch.nr):
        batch.new[i] = alloc_migration_target(cpu, batch, i)
        if batch.new[i] != 0:
            rmap_walk(cpu, batch, batch.old[i], 0, True)
    try_to_unmap_flush(cpu, batch.tlb_ubc)
    for i in range(batch.nr):
        old, new = batch.old[i], batch.new[i]
        if new != 0:
            moved = move_to_new_folio(cpu, old, new)
            rmap_walk(cpu, batch, old, new if moved else old, False)
            if moved:
                folio_add_new_lru(cpu, new)      # the reference of its allocation: the entries hold their own
            else:
                batch.new[i] = 0
                put_target(cpu, batch, new)
        putback_page(cpu, old, batch.new[i] != 0)
        if batch.new[i] == 0:
            failed += 1
    count_vm_events(machine, cpu.id, PGMIGRATE_SUCCESS, batch.nr - failed)
    count_vm_events(machine, cpu.id, PGMIGRATE_FAIL, failed)
    batch.nr = 0
    return failed


@kernel("bool(migrate_t*, i64, u64, i64)")
def add_to_batch(batch, pfn, address, place):
    """Put an isolated page into the batch; True when it is full."""
    i = batch.nr
    batch.old[i], batch.vaddr[i], batch.place[i] = pfn, address, place
    batch.nr += 1
    return batch.nr == NR_MAX_BATCHED_MIGRATION


# -- by range: mbind(MPOL_MF_MOVE), migrate_pages ------------------------------------------------------------

@kernel("bool(page_t*, i64)")
def page_movable(page, flags):
    """MPOL_MF_MOVE moves what one process maps, MPOL_MF_MOVE_ALL everything."""
    return flags & MPOL_MF_MOVE_ALL != 0 or load_acquire(page, "mapcount") <= 1


@kernel("i64(cpu_t*, migrate_t*, u64, u64, u64, i64)")
def queue_one(cpu, batch, ptep, pte, address, flags):
    """Isolate one page into the batch, moving the batch when it is full: pages that stay.

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


@hot
def migrate_huge_page(cpu, batch, address, end):
    """Move a huge page as a whole: by mbind, which holds the mmap_lock for writing, and if it lies in the range."""
    machine = machine_of(cpu)
    if batch.target != BY_POLICY or address != haddr_of(machine, address) or end - address < pmd_size(machine):
        return False
    number = find_vma(machine, batch.mm, address)
    return migrate_huge_pmd(cpu, batch.mm, vma_of(machine, number), address,
                            huge_entry_offset(machine, mm_of(machine, batch.mm), address))


@kernel("i64(cpu_t*, migrate_t*, u64, u64, u64, bool, i64)")
def queue_pages_range(cpu, batch, start, end, nodes, inside, flags):
    """Move the pages of [start, end) that are on `nodes` (inside) or elsewhere (not inside): pages that stayed.

    With MPOL_MF_STRICT alone the first misplaced page ends it: -EIO. Mirrors queue_pages_range and migrate_pages.
    """
    machine = machine_of(cpu)
    mm, address, failed = mm_of(machine, batch.mm), start, 0
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            if huge_is_elsewhere(machine, batch.mm, address, nodes, inside):
                if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) == 0:
                    return -EIO
                if not migrate_huge_page(cpu, batch, address, end):
                    split_huge_pmd_address(cpu, batch.mm, address)
            elif huge_entry_offset(machine, mm, address) != U(0):
                address = (address | (pmd_size(machine) - U(1))) + U(1)
                continue
            address = skip_missing(machine, mm, address)
            continue
        pte = ptep_get(ptep)
        if pte_present(pte) and pte & _PAGE_SPECIAL == U(0):
            if node_isset(nodes, page_to_nid(machine, pte_pfn(pte))) == inside:
                if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) == 0:
                    return -EIO
                failed += queue_one(cpu, batch, ptep, pte, address, flags)
        address += U(4096)
    if batch.nr > 0:
        failed += migrate_pages_batch(cpu, batch)
    return failed


@kernel("i64(cpu_t*, i64, u64, u64, policy_t*)")
def mbind_range(cpu, mm_number, start, end, policy):
    """Write the policy into the VMAs of [start, end), splitting at the borders: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    error = split_range(cpu, mm_number, start, end)
    if error != 0:
        return error
    position = find_position(machine, mm_number, start)
    while position < mm_of(machine, mm_number).map_count:
        vma = vma_of(machine, vma_index(machine, mm_number)[position])
        if vma.start >= end:
            break
        copy_policy(vma.policy, policy)
        position += 1
    return 0


@kernel("i64(cpu_t*, i64, u64, u64, policy_t*, u64, i64)")
def do_mbind(cpu, mm_number, start, length, policy, nodes, flags):
    """mbind(2) with a checked policy: 0 or a negative errno. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    end = start + ((length + U(4095)) & ~U(4095))
    if flags & ~(MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 or start & U(4095) != U(0) or end < start:
        return -EINVAL
    if policy.mode == MPOL_DEFAULT:
        flags &= ~MPOL_MF_STRICT
    if end == start:
        return 0
    if not range_is_mapped(machine, mm_number, start, end):
        return -EFAULT
    batch = batch_of(machine, cpu)
    batch.nr, batch.mm, batch.target = 0, mm_number, BY_POLICY
    if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        lru_add_drain_all(cpu)
    if flags & MPOL_MF_STRICT and flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) == 0:
        if queue_pages_range(cpu, batch, start, end, nodes, False, flags) < 0:
            return -EIO
    error = mbind_range(cpu, mm_number, start, end, policy)
    if error != 0:
        return error
    failed = 0
    if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        failed = queue_pages_range(cpu, batch, start, end, nodes, False, flags)
    merge_range(cpu, mm_number, start, end)
    return -EIO if failed > 0 and flags & MPOL_MF_STRICT else 0


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


@kernel("i64(cpu_t*, i64, u64, u64, i64)")
def do_migrate_pages(cpu, mm_number, old, new, flags):
    """migrate_pages(2): pages that could not be moved. The mmap_lock is held for reading."""
    machine = machine_of(cpu)
    batch, failed, todo = batch_of(machine, cpu), 0, old
    lru_add_drain_all(cpu)
    while todo != U(0):
        source, target = next_migration(todo, old, new)
        if source < 0:
            break
        todo &= ~(U(1) << U(source))
        batch.nr, batch.mm, batch.target = 0, mm_number, target
        for position in range(mm_of(machine, mm_number).map_count):
            vma = vma_of(machine, vma_index(machine, mm_number)[position])
            failed += queue_pages_range(cpu, batch, vma.start, vma.end, U(1) << U(source), True, flags)
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
    if not pte_present(pte):         # nothing, or swapped out
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


@kernel("i64(cpu_t*, migrate_t*, i64*)")
def store_status(cpu, batch, status):
    """Move what is queued and write each page's node, or -EBUSY, to its place: pages that stayed."""
    nr = batch.nr
    failed = migrate_pages_batch(cpu, batch)
    for i in range(nr):
        status[batch.place[i]] = batch.target if batch.new[i] != 0 else -EBUSY
    return failed


@kernel("i64(cpu_t*, migrate_t*, u64, i64, i64)")
def add_page_for_migration(cpu, batch, address, node, flags):
    """Queue one page for `node`: 1 if queued, else its status."""
    machine = machine_of(cpu)
    here = page_node(machine, batch.mm, address)
    if here < 0 or here == node:
        return here
    split_huge_pmd_address(cpu, batch.mm, address)
    ptep = pte_offset(machine, mm_of(machine, batch.mm), address)
    pte = ptep_get(ptep) if ptep != U(0) else U(0)       # a huge page of the pool is not moved
    if not pte_present(pte) or pte & _PAGE_SPECIAL != U(0):      # it has changed since we looked
        return -EBUSY
    if not page_movable(page_of(machine, pte_pfn(pte)), flags):
        return -EACCES
    pfn = isolate_page(cpu, ptep, pte)
    if pfn == 0:
        return -EBUSY
    add_to_batch(batch, pfn, address, 0)
    return -1000                 # queued


@kernel("i64(cpu_t*, i64, u64*, i64*, i64*, i64, i64, u64)")
def do_move_pages(cpu, mm_number, addresses, nodes, status, nr, flags, allowed):
    """move_pages(2): how many pages stayed, or a negative errno. The mmap_lock is held for reading.

    addresses, nodes and status are arrays of nr words; `allowed` is what the task's cpuset allows; pages in a row with one target move as one batch.
    """
    machine = machine_of(cpu)
    batch, failed = batch_of(machine, cpu), 0
    batch.nr, batch.mm = 0, mm_number
    lru_add_drain_all(cpu)
    for i in range(nr):
        node = nodes[i]
        if node < 0 or node >= machine.nr_nodes or not node_isset(machine.memory_mask & allowed, node):
            if batch.nr > 0:
                store_status(cpu, batch, status)
            there = 0 <= node < machine.nr_nodes and node_isset(machine.memory_mask, node)
            return -EACCES if there else -ENODEV
        if batch.nr > 0 and (node != batch.target or batch.nr == NR_MAX_BATCHED_MIGRATION):
            failed += store_status(cpu, batch, status)
        batch.target = node
        status[i] = add_page_for_migration(cpu, batch, addresses[i], node, flags)
        if status[i] == -1000:
            batch.place[batch.nr - 1] = i
    if batch.nr > 0:
        failed += store_status(cpu, batch, status)
    return failed
