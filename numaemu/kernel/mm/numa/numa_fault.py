"""Hinting faults: do_numa_page and do_huge_pmd_numa_page of Linux's mm/memory.c and mm/huge_memory.c, migrate_misplaced_folio of
mm/migrate.c.

do_user_addr_fault comes here when handle_mm_fault has met an entry without the U/S bit in a VMA that allows access. The entry becomes
what it was, or the page moves to the node of the CPU, if that has room.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_or, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_RW, _PAGE_USER, entry_cmpxchg, entry_load
from numaemu.kernel.arch.pgalloc import haddr_of, huge_entry_offset
from numaemu.kernel.arch.pgtable import mm_of, pte_offset, pte_pfn, ptep_cmpxchg, ptep_get
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.mm_types import (
    VM_EXEC,
    VM_FAULT_OK,
    VM_FAULT_RETRY,
    VM_SHARED,
    VM_WRITE,
    PG_anon,
    PG_anon_exclusive,
    PG_dirty,
)
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    WMARK_HIGH,
    ZONE_MOVABLE,
    page_of,
    page_to_nid,
    wmark_pages,
    zone_of,
)
from numaemu.kernel.include.vmstat import (
    NUMA_HINT_FAULTS,
    NUMA_HINT_FAULTS_LOCAL,
    NUMA_PAGE_MIGRATE,
    PGPROMOTE_SUCCESS,
    count_vm_events,
    mod_node_page_state,
)
from numaemu.kernel.mm.cache.shmem import vma_is_shmem
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages
from numaemu.kernel.mm.huge.split import is_huge_zero
from numaemu.kernel.mm.migrate.large_folio import HUGE_MOVED, migrate_huge_pmd
from numaemu.kernel.mm.migrate.migrate import add_to_batch, batch_of, isolate_page, migrate_pages_batch
from numaemu.kernel.mm.numa.cpupid import LAST_CPUPID_MASK, folio_last_cpupid
from numaemu.kernel.mm.numa.memory_tiers import (
    NUMA_BALANCING_MEMORY_TIERING,
    NUMA_NO_NODE,
    folio_use_access_time,
    node_is_toptier,
)
from numaemu.kernel.mm.numa.placement import (
    TNF_FAULT_LOCAL,
    TNF_MIGRATE_FAIL,
    TNF_MIGRATED,
    TNF_NO_GROUP,
    TNF_SHARED,
    task_numa_fault,
)
from numaemu.kernel.mm.numa.prot_numa import pte_protnone, vma_is_accessible
from numaemu.kernel.mm.numa.scan import pid_bit
from numaemu.kernel.mm.numa.should_migrate import mpol_misplaced
from numaemu.kernel.mm.page_alloc.page_alloc import put_page, try_get_page
from numaemu.kernel.mm.page_alloc.watermark import zone_watermark_ok
from numaemu.kernel.mm.page_alloc.zonelist import wakeup_kswapd
from numaemu.kernel.mm.reclaim.lru import folio_is_file_lru, folio_test
from numaemu.kernel.mm.space.mempolicy import current_task
from numaemu.kernel.mm.space.vma_index import vma_of

U = np.uint64


@kernel("bool(machine_t*, i64, i64)")
def migrate_balanced_pgdat(machine, node, pages):
    """True if a node stays above its high watermark with so many pages more, so that kswapd need not make room for them."""
    for kind in range(MAX_NR_ZONES - 1, -1, -1):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.managed_pages > 0 and zone_watermark_ok(
            zone, 0, wmark_pages(zone, WMARK_HIGH) + pages, ZONE_MOVABLE, 0
        ):
            return True
    return False


@kernel("bool(cpu_t*, vma_t*, i64, i64, i64)")
def may_migrate_misplaced(cpu, vma, pfn, pages, node):
    """The part of migrate_misplaced_folio_prepare that only looks: True if a page may go to a node. Where it would be promoted to
    a full one kswapd makes room.
    """
    machine, page = machine_of(cpu), page_of(machine_of(cpu), pfn)
    if folio_is_file_lru(page):
        if vma.flags & VM_EXEC and load_acquire(page, "mapcount") > 1:
            return False  # a shared library
        if folio_test(page, PG_dirty):
            return False
    if migrate_balanced_pgdat(machine, node, pages):
        return True
    if machine.numa_balancing & NUMA_BALANCING_MEMORY_TIERING:
        order = 0 if pages == 1 else np.int64(machine.paging.table_bits)
        wakeup_kswapd(cpu, GFP_HIGHUSER_MOVABLE, order, node, ZONE_MOVABLE)
    return False


@hot
def count_numa_migrate(cpu, old_nid, node, pages):
    """Pages have moved because of hinting faults."""
    machine = machine_of(cpu)
    count_vm_events(machine, cpu.id, NUMA_PAGE_MIGRATE, pages)
    tiering = machine.numa_balancing & NUMA_BALANCING_MEMORY_TIERING != 0
    if tiering and not node_is_toptier(machine, old_nid) and node_is_toptier(machine, node):
        mod_node_page_state(machine, cpu.id, node, PGPROMOTE_SUCCESS, pages)


@kernel("bool(cpu_t*, vma_t*, u64, u64, u64, i64)")
def migrate_misplaced_folio(cpu, vma, address, ptep, pte, node):
    """Move the page of a hinted entry to a node; False: it stays."""
    machine, pfn = machine_of(cpu), pte_pfn(pte)
    old_nid = page_to_nid(machine, pfn)
    if not may_migrate_misplaced(cpu, vma, pfn, 1, node) or isolate_page(cpu, ptep, pte) == 0:
        return False
    batch = batch_of(machine, cpu)
    batch.nr, batch.mm, batch.target, batch.whole, batch.misplaced = 0, vma.mm, node, 0, 1
    add_to_batch(batch, pfn, address, 0)
    moved = migrate_pages_batch(cpu, batch) == 0
    batch.misplaced = 0
    if moved:
        count_numa_migrate(cpu, old_nid, node, 1)
    return moved


@hot
def numa_flags(machine, vma, page, nid, cpu_node, writable):
    """What a hinting fault says about sharing: TNF_*."""
    flags = 0 if writable else TNF_NO_GROUP
    if load_acquire(page, "mapcount") > 1 and vma.flags & VM_SHARED:
        flags |= TNF_SHARED
    return flags | (TNF_FAULT_LOCAL if nid == cpu_node else 0)


@hot
def count_hint_fault(machine, cpu, vma, nid):
    """Count a hinting fault, and note that the running task uses the VMA (vma_set_access_pid_bit)."""
    bit = pid_bit(current_task(cpu).pid)
    if vma.numab.there != 0 and load_acquire(vma.numab.pids_active, 1) & bit == U(0):
        fetch_or(vma.numab.pids_active, 1, bit)
    count_vm_events(machine, cpu.id, NUMA_HINT_FAULTS, 1)
    if nid == cpu.node:
        count_vm_events(machine, cpu.id, NUMA_HINT_FAULTS_LOCAL, 1)


@hot
def last_cpupid_of(machine, page, nid):
    """Who used a page last; nobody that is known, where the word is a time."""
    return LAST_CPUPID_MASK if folio_use_access_time(machine, nid) else folio_last_cpupid(page)


@hot
def can_write(machine, vma, page, pte):
    """True if an entry may become writable without a write fault (can_change_pte_writable)."""
    if vma.flags & VM_WRITE == 0:
        return False
    if vma.flags & VM_SHARED == 0:
        return folio_test(page, PG_anon) and folio_test(page, PG_anon_exclusive)
    return vma_is_shmem(machine, vma) and pte & _PAGE_DIRTY != U(0)


@kernel("i64(cpu_t*, mm_t*, i64, u64)")
def do_numa_page(cpu, mm, vma_number, address):
    """A user has come to an entry that scanning has made inaccessible: a VM_FAULT_* code. The mmap_lock is held for reading."""
    machine, vma = machine_of(cpu), vma_of(machine_of(cpu), vma_number)
    ptep = pte_offset(machine, mm, address)
    pte = ptep_get(ptep) if ptep != U(0) else U(0)
    if not pte_protnone(pte):
        return VM_FAULT_OK  # another thread was faster
    pfn = pte_pfn(pte)
    page, nid = page_of(machine, pfn), page_to_nid(machine, pfn)
    if not try_get_page(page):
        return VM_FAULT_RETRY
    if ptep_get(ptep) != pte:
        put_page(cpu, pfn)
        return VM_FAULT_OK
    writable, last = can_write(machine, vma, page, pte), last_cpupid_of(machine, page, nid)
    flags = numa_flags(machine, vma, page, nid, cpu.node, writable)
    count_hint_fault(machine, cpu, vma, nid)
    target = mpol_misplaced(cpu, vma, address, pfn, 1)
    put_page(cpu, pfn)  # the page is isolated with the entry as it is, or not at all
    if target != NUMA_NO_NODE:
        if migrate_misplaced_folio(cpu, vma, address, ptep, pte, target):
            nid, flags = target, flags | TNF_MIGRATED
        else:
            flags |= TNF_MIGRATE_FAIL
    if flags & TNF_MIGRATED == 0:
        ptep_cmpxchg(ptep, pte, pte | _PAGE_USER | _PAGE_ACCESSED | (_PAGE_RW if writable else U(0)))
    task_numa_fault(cpu, last, nid, 1, flags)
    return VM_FAULT_OK


@kernel("void(cpu_t*, i64, i64, u64)")
def do_huge_pmd_numa_page(cpu, mm_number, vma_number, address):
    """The same of a huge entry. The mmap_lock is held for writing, since a huge page moves only then (large_folio.py)."""
    machine, vma = machine_of(cpu), vma_of(machine_of(cpu), vma_number)
    where = huge_entry_offset(machine, mm_of(machine, mm_number), address)
    entry = entry_load(where) if where != U(0) else U(0)
    if not pte_protnone(entry) or is_huge_zero(entry) or not vma_is_accessible(vma):
        return
    pfn, pages, address = pte_pfn(entry), hpage_pages(machine), haddr_of(machine, address)
    page, nid = page_of(machine, pfn), page_to_nid(machine, pfn)
    writable, last = can_write(machine, vma, page, entry), last_cpupid_of(machine, page, nid)
    flags = numa_flags(machine, vma, page, nid, cpu.node, writable)
    count_hint_fault(machine, cpu, vma, nid)
    target = mpol_misplaced(cpu, vma, address, pfn, pages)
    if target != NUMA_NO_NODE:
        flags |= TNF_MIGRATE_FAIL
        if may_migrate_misplaced(cpu, vma, pfn, pages, target):
            if migrate_huge_pmd(cpu, mm_number, vma, address, where, target, True) == HUGE_MOVED:
                count_numa_migrate(cpu, nid, target, pages)
                nid, flags = target, (flags & ~TNF_MIGRATE_FAIL) | TNF_MIGRATED
    entry = entry_load(where)
    while pte_protnone(entry):
        wanted = entry | _PAGE_USER | _PAGE_ACCESSED
        if writable and flags & TNF_MIGRATED == 0:
            wanted |= _PAGE_RW
        entry = wanted if entry_cmpxchg(where, entry, wanted) == entry else entry_load(where)
    task_numa_fault(cpu, last, nid, pages, flags)
