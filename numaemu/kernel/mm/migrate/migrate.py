"""Moving pages between nodes: Linux's mm/migrate.c. Which pages, and where to: move_pages.py.

One batch: take the pages (isolate), allocate their targets, replace every page-table entry by a migration entry, let
every CPU forget them with one shootdown, copy, point the entries at the new frames, free the old ones. A CPU that
faults on a migration entry waits until it is replaced. A page that somebody else uses at that moment stays.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, address_of, i64, u64
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_NX, _PAGE_PRESENT, _PAGE_RW, _PAGE_USER
from numaemu.kernel.arch.pgtable import (
    _MIGRATION,
    _MIGRATION_ANON,
    _MIGRATION_FILE,
    _PAGE_SPECIAL,
    is_migration_entry,
    mm_of,
    pfn_pte,
    pte_offset,
    pte_pfn,
    pte_present,
    ptep_cmpxchg,
    ptep_get,
)
from numaemu.kernel.arch.tlb import (
    add_to_ubc,
    mm_tlb_flush_nested,
    set_tlb_ubc_flush_pending,
    tlbflush_unmap_batch_t,
    try_to_unmap_flush,
)
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.core.xarray import page_entry, xa_slot
from numaemu.kernel.include.gfp import (
    __GFP_KSWAPD_RECLAIM,
    __GFP_NOMEMALLOC,
    __GFP_NORETRY,
    __GFP_NOWARN,
    __GFP_RECLAIM,
    __GFP_RETRY_MAYFAIL,
    __GFP_THISNODE,
    GFP_HIGHUSER_MOVABLE,
)
from numaemu.kernel.include.mm_types import (
    VM_ACCESS_FLAGS,
    VM_LOCKED,
    PG_active,
    PG_anon,
    PG_anon_exclusive,
    PG_dirty,
    PG_idle,
    PG_locked,
    PG_mlocked,
    PG_private,
    PG_referenced,
    PG_swapbacked,
    PG_swapcache,
    PG_unevictable,
    PG_uptodate,
    PG_workingset,
    PG_young,
)
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import copy_highpage, page_of, page_to_nid
from numaemu.kernel.include.trace import MM_MIGRATE_PAGES, trace_event
from numaemu.kernel.include.vmstat import (
    NR_FILE_DIRTY,
    NR_FILE_PAGES,
    PGMIGRATE_FAIL,
    PGMIGRATE_SUCCESS,
    THP_MIGRATION_SPLIT,
    count_vm_events,
    mod_node_page_state,
)
from numaemu.kernel.mm.cache.page_writeback import note_dirty
from numaemu.kernel.mm.cache.shmem import count_shmem
from numaemu.kernel.mm.fault.rmap import folio_dup_rmap, folio_remove_rmap, mapping_of, next_vma_of, page_address_in_vma
from numaemu.kernel.mm.huge.split import split_for_page
from numaemu.kernel.mm.migrate.compact_control import compact_control_of
from numaemu.kernel.mm.numa.cpupid import LAST_CPUPID_MASK, folio_xchg_last_cpupid
from numaemu.kernel.mm.numa.memory_tiers import NUMA_BALANCING_MEMORY_TIERING, node_is_toptier
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages, get_page, prep_page, put_page, try_get_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_set, folio_test
from numaemu.kernel.mm.reclaim.lru_batches import (
    count_isolated,
    folio_add_new_lru,
    folio_isolate_lru,
    folio_putback_lru,
)
from numaemu.kernel.mm.space.mempolicy import vma_alloc_folio
from numaemu.kernel.mm.space.mlock import mlock_folio
from numaemu.kernel.mm.space.vma_index import find_vma, vma_of
from numaemu.kernel.mm.swap.swapfile import __delete_from_swap_cache, add_to_swap_cache
from numaemu.uapi import errno

U = np.uint64
ENOMEM = errno.ENOMEM
_KEPT = _PAGE_RW | _PAGE_USER | _PAGE_DIRTY | _PAGE_NX  # of an entry, in the migration entry that stands for it
NR_MAX_BATCHED_MIGRATION = 512  # pages (Linux: HPAGE_PMD_NR)
NR_QUEUED_HUGE = 64
# what a page takes along to its new frame (folio_migrate_flags)
# fmt: off
MIGRATED_FLAGS = U(PG_anon | PG_anon_exclusive | PG_swapbacked | PG_active | PG_referenced | PG_unevictable | PG_mlocked |
                   PG_workingset | PG_dirty | PG_uptodate | PG_private | PG_young | PG_idle)
# fmt: on
BY_POLICY = -1  # target node: ask the VMA's policy
COMPACTION = -2  # target node: take the free scanner's next page
CONTIG_RANGE = -3  # target node: the nearest one (contig.py)
DEMOTION = -4  # target node: of a slower tier (demote.py), whose caller keeps what stays, locked
# fmt: off
EIO, EINVAL, EFAULT, ENOENT, EACCES, EBUSY, ENODEV = (errno.EIO, errno.EINVAL, errno.EFAULT, errno.ENOENT, errno.EACCES,
                                                      errno.EBUSY, errno.ENODEV)

migrate_t = Struct("migrate_t", [        # one for each CPU: the batch it is moving
    ("nr", i64),
    ("mm", i64), ("target", i64),        # whose pages; the node, or BY_POLICY
    ("tlb_ubc", tlbflush_unmap_batch_t),
    ("old", i64, NR_MAX_BATCHED_MIGRATION), ("new", i64, NR_MAX_BATCHED_MIGRATION),
    ("vaddr", u64, NR_MAX_BATCHED_MIGRATION),
    ("place", i64, NR_MAX_BATCHED_MIGRATION),        # the caller's: where its status belongs
    ("demote_nid", i64), ("demote_mask", u64),       # of DEMOTION: the node to try first, all that will do
    ("misplaced", i64),                  # 1: for a hinting fault (MR_NUMA_MISPLACED), which waits for nothing
    # move_pages.py: 1 if huge pages may move whole, the mmap_lock being held for writing; what move_pages(2) has queued
    ("whole", i64), ("nr_huge", i64),
    ("huge_vaddr", u64, NR_QUEUED_HUGE), ("huge_head", i64, NR_QUEUED_HUGE), ("huge_place", i64, NR_QUEUED_HUGE),
])
# fmt: on


@hot
def batch_of(machine, cpu):
    return migrate_t.array(machine.migrate)[cpu.id]


@hot
def demotion_batch_of(machine, cpu):
    """A batch of its own: reclaim may come while a target is allocated for the other."""
    return migrate_t.array(machine.migrate)[machine.nr_cpu_ids + cpu.id]


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
            fetch_add(page, "refcount", -1)  # the reference of its isolation is enough
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


@hot
def is_hinted(batch, vma, pte):
    """True for an entry that NUMA balancing has made inaccessible, in the address space whose mmap_lock the caller's fault holds.
    Its hint has been taken; others keep theirs.
    """
    return batch.misplaced != 0 and vma.mm == batch.mm and pte & _PAGE_USER == U(0) and vma.flags & VM_ACCESS_FLAGS != 0


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
        place = set_tlb_ubc_flush_pending(cpu, batch.tlb_ubc, vma.mm)
        hinted = is_hinted(batch, vma, pte)
        if ptep_cmpxchg(ptep, pte, pfn_pte(pfn, kind | (pte & _KEPT) | (_PAGE_USER if hinted else U(0)))):
            break
    if pte & _PAGE_DIRTY != U(0):
        note_dirty(cpu, pfn)  # the migration entry may be unmapped, and its mark with it
    folio_remove_rmap(machine, cpu, pfn)
    put_page(cpu, pfn)
    if not hinted or mm_tlb_flush_nested(mm_of(machine, vma.mm)):  # no TLB has what is hinted, once that is flushed
        add_to_ubc(batch.tlb_ubc, place, address)


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
    """A target that was not used goes back to the head of the chain, unless a late try_get_page has it, which then frees it."""
    machine = machine_of(cpu)
    cc, page = compact_control_of(machine, cpu.id), page_of(machine, pfn)
    VM_BUG_ON_PAGE(page.mapcount != 0, page)
    if fetch_add(page, "refcount", -1) != 1:
        return
    page.lru_next = cc.freepages
    if cc.freepages == 0:
        cc.last_freepage = pfn
    cc.freepages = pfn
    cc.nr_freepages += 1


@kernel("i64(cpu_t*, migrate_t*)")
def alloc_demote_folio(cpu, batch):
    """A frame for demotion: of the next tier's nearest node, whose kswapd is woken if it is short, else of any slower node."""
    gfp = (GFP_HIGHUSER_MOVABLE & ~__GFP_RECLAIM) | __GFP_NOWARN | __GFP_NOMEMALLOC | __GFP_KSWAPD_RECLAIM
    pfn = alloc_pages(cpu, gfp | __GFP_THISNODE, 0, batch.demote_nid, machine_of(cpu).node_mask)
    return pfn if pfn != 0 else alloc_pages(cpu, gfp, 0, batch.demote_nid, batch.demote_mask)


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
        gfp = GFP_HIGHUSER_MOVABLE | __GFP_RETRY_MAYFAIL  # alloc_migration_target_by_mpol: nobody is killed for it
        return vma_alloc_folio(cpu, gfp, vma_of(machine, number), batch.vaddr[i])
    if batch.target == CONTIG_RANGE:
        return alloc_pages(
            cpu, GFP_HIGHUSER_MOVABLE | __GFP_RETRY_MAYFAIL, 0, page_to_nid(machine, batch.old[i]), machine.node_mask
        )
    if batch.target == DEMOTION:
        return alloc_demote_folio(cpu, batch)
    gfp = GFP_HIGHUSER_MOVABLE | __GFP_THISNODE
    if batch.misplaced != 0:  # alloc_misplaced_dst_folio
        gfp = (gfp | __GFP_NOMEMALLOC | __GFP_NORETRY | __GFP_NOWARN) & ~__GFP_RECLAIM
    return alloc_pages(cpu, gfp, 0, batch.target, machine.node_mask)


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


@hot
def migrate_last_cpupid(machine, page, target, old_nid, new_nid):
    """The new frame knows who used the page last; between tiers the word means something else (folio_migrate_flags)."""
    cpupid = folio_xchg_last_cpupid(page, LAST_CPUPID_MASK)
    tiering = machine.numa_balancing & NUMA_BALANCING_MEMORY_TIERING != 0
    if tiering and node_is_toptier(machine, old_nid) != node_is_toptier(machine, new_nid):
        cpupid = LAST_CPUPID_MASK
    folio_xchg_last_cpupid(target, cpupid)


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
    references = 2 if cached or not anon else 1  # ours, and the tree's or the swap cache's
    if load_acquire(page, "mapcount") != 0 or compare_exchange(page, "refcount", references, 0) != references:
        return False
    target.mapping, target.index = page.mapping, page.index
    target.flags |= page.flags & MIGRATED_FLAGS
    migrate_last_cpupid(machine, page, target, page_to_nid(machine, old), page_to_nid(machine, new))
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
    """Move the batch's pages; `new[i]` is the new frame, or 0 where the page stayed.

    How many stayed; -ENOMEM: the first page without a target, and all behind it, which are not tried and not counted, stayed.
    """
    machine = machine_of(cpu)
    failed = batch.tlb_ubc.nr_mms = 0
    tried, short = batch.nr, False
    for i in range(batch.nr):
        batch.new[i] = 0 if short else alloc_migration_target(cpu, batch, i)
        if batch.new[i] != 0:
            rmap_walk(cpu, batch, batch.old[i], 0, True)
        elif not short:
            tried, short = i + 1, True
    try_to_unmap_flush(cpu, batch.tlb_ubc)
    for i in range(batch.nr):
        old, new = batch.old[i], batch.new[i]
        if new != 0:
            moved = move_to_new_folio(cpu, old, new)
            rmap_walk(cpu, batch, old, new if moved else old, False)
            if moved:
                cpu.clock_base_ns += machine.migrate_page_ns
                folio_add_new_lru(cpu, new)  # the reference of its allocation: the entries hold their own
            else:
                batch.new[i] = 0
                put_target(cpu, batch, new)
        if batch.target != DEMOTION:
            putback_page(cpu, old, batch.new[i] != 0)
        elif batch.new[i] != 0:
            folio_clear(page_of(machine, old), PG_locked)
            put_page(cpu, old)
        if batch.new[i] == 0 and i < tried:
            failed += 1
    trace_event(cpu, MM_MIGRATE_PAGES, tried - failed, failed, 0, 0, 0)
    count_vm_events(machine, cpu.id, PGMIGRATE_SUCCESS, tried - failed)
    count_vm_events(machine, cpu.id, PGMIGRATE_FAIL, failed)
    batch.nr = 0
    return -ENOMEM if short else failed


@kernel("bool(migrate_t*, i64, u64, i64)")
def add_to_batch(batch, pfn, address, place):
    """Put an isolated page into the batch; True when it is full."""
    i = batch.nr
    batch.old[i], batch.vaddr[i], batch.place[i] = pfn, address, place
    batch.nr += 1
    return batch.nr == NR_MAX_BATCHED_MIGRATION
