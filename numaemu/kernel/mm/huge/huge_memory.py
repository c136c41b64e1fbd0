"""Transparent huge pages: the fault that maps one, copy on write, unmapping, fork, mprotect. Linux's mm/huge_memory.c.

huge/split.py says what a huge page is here. All changes of a huge entry but A and D are made under pmd_lock.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_NX,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_RW,
    _PAGE_USER,
    entry_cmpxchg,
    entry_exchange,
    entry_load,
)
from numaemu.hardware.processor import X86_PF_PROT
from numaemu.kernel.arch.pgalloc import (
    haddr_of,
    pgtable_trans_huge_deposit,
    pmd_alloc,
    pmd_lock,
    pmd_trans_huge,
    pmd_unlock,
    pte_alloc_one,
)
from numaemu.kernel.arch.pgtable import _PAGE_SPECIAL, free_table, mm_of, pfn_pte, pmd_size, pte_pfn, vm_page_nx
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.core.timer import khugepaged_wake_if_due
from numaemu.kernel.include.gfp import (
    __GFP_DIRECT_RECLAIM,
    __GFP_KSWAPD_RECLAIM,
    __GFP_MOVABLE,
    __GFP_NORETRY,
    __GFP_THISNODE,
    __GFP_ZERO,
    GFP_TRANSHUGE,
    GFP_TRANSHUGE_LIGHT,
)
from numaemu.kernel.include.mm import linear_page_index
from numaemu.kernel.include.mm_types import (
    MM_ANONPAGES,
    VM_ACCESS_FLAGS,
    VM_EXEC,
    VM_FAULT_HUGE_NUMA,
    VM_FAULT_OK,
    VM_FAULT_OOM,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_NOHUGEPAGE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    PG_anon_exclusive,
    PG_used,
)
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.include.vmstat import (
    THP_FAULT_ALLOC,
    THP_FAULT_FALLBACK,
    THP_ZERO_PAGE_ALLOC,
    THP_ZERO_PAGE_ALLOC_FAILED,
    count_vm_events,
)
from numaemu.kernel.mm.fault.rmap import folio_add_anon_rmap, folio_dup_rmap, folio_remove_rmap
from numaemu.kernel.mm.huge.hugetlb_pool import hpage_pages
from numaemu.kernel.mm.huge.split import add_huge_mapping, is_huge_zero, remove_huge_mapping, split_huge_pmd
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages, free_pages, get_page, put_page
from numaemu.kernel.mm.reclaim.lru import __page_cache_release, folio_clear, folio_set, folio_test, unlock_lruvec
from numaemu.kernel.mm.reclaim.lru_batches import folio_add_lru_block
from numaemu.kernel.mm.space.mempolicy import alloc_pages_mpol, first_set, get_vma_policy, node_isset
from numaemu.kernel.mm.space.vma import anon_vma_prepare
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.kernel.mm.swap.swapfile import free_swap_cache
from numaemu.spec.param import PAGE_SHIFT
from numaemu.uapi import MPOL_BIND, MPOL_DEFAULT, MPOL_LOCAL, MPOL_PREFERRED

U = np.uint64
THP_NEVER, THP_MADVISE, THP_ALWAYS = range(3)  # machine.thp_enabled
DEFRAG_ALWAYS, DEFRAG_DEFER, DEFRAG_DEFER_MADVISE, DEFRAG_MADVISE, DEFRAG_NEVER = range(5)  # machine.thp_defrag
FALLBACK = -1  # beside VM_FAULT_*: small pages, please
_READ_ONLY = _PAGE_PRESENT | _PAGE_PSE | _PAGE_USER | _PAGE_ACCESSED
_WRITTEN = _READ_ONLY | _PAGE_RW | _PAGE_DIRTY


# -- whether, and from where ----------------------------------------------------------------------------------------


@hot
def thp_vma_suitable(machine, vma, address):
    """True if the huge page of an address lies within a VMA of private memory that is no file's."""
    start = haddr_of(machine, address)
    return (
        vma.flags & (VM_SHARED | VM_HUGETLB | VM_NOHUGEPAGE) == 0
        and vma.file == 0
        and start >= vma.start
        and start + pmd_size(machine) <= vma.end
    )


@hot
def thp_vma_allowable(machine, vma):
    """True if the setting and the VMA's advice ask for huge pages."""
    return machine.thp_enabled == THP_ALWAYS or (machine.thp_enabled == THP_MADVISE and vma.flags & VM_HUGEPAGE != 0)


@kernel("i64(machine_t*, vma_t*)")
def vma_thp_gfp_mask(machine, vma):
    """How much a fault may do for a huge page."""
    advised, defrag = vma.flags & VM_HUGEPAGE != 0, machine.thp_defrag
    if defrag == DEFRAG_ALWAYS:
        return GFP_TRANSHUGE | (0 if advised else __GFP_NORETRY)
    if defrag == DEFRAG_DEFER:
        return GFP_TRANSHUGE_LIGHT | __GFP_KSWAPD_RECLAIM
    if defrag == DEFRAG_DEFER_MADVISE:
        return GFP_TRANSHUGE_LIGHT | (__GFP_DIRECT_RECLAIM if advised else __GFP_KSWAPD_RECLAIM)
    if defrag == DEFRAG_MADVISE:
        return GFP_TRANSHUGE_LIGHT | (__GFP_DIRECT_RECLAIM if advised else 0)
    return GFP_TRANSHUGE_LIGHT


@kernel("void(machine_t*, i64)")
def prep_huge_pages(machine, pfn):
    """A block of the buddy system becomes single pages in one piece, with a reference each (split_page).

    The first one has its reference already, and perhaps a late try_get_page's.
    """
    for i in range(hpage_pages(machine)):
        page = page_of(machine, pfn + i)
        page.flags, page.order, page.lru_next, page.lru_prev = U(PG_used), 0, 0, 0
        if i > 0:
            store_release(page, "refcount", 1)


@kernel("i64(cpu_t*, i64, i64)")
def alloc_huge_on_node(cpu, gfp, nid):
    """Cleared pages in one piece from a node alone, without more effort than compaction; the first pfn or 0."""
    machine = machine_of(cpu)
    pfn = alloc_pages(
        cpu, gfp | __GFP_THISNODE | __GFP_NORETRY, np.int64(machine.paging.table_bits), nid, machine.node_mask
    )
    if pfn != 0:
        prep_huge_pages(machine, pfn)
    return pfn


@kernel("i64(cpu_t*, i64, vma_t*, u64)")
def vma_alloc_huge_pages(cpu, gfp, vma, address):
    """Pages in one piece by the VMA's policy: the local (or preferred) node first, for a remote huge page gains little."""
    machine, policy = machine_of(cpu), get_vma_policy(cpu, vma)
    order = np.int64(machine.paging.table_bits)
    mode, nid = policy.mode, cpu.node
    if mode == MPOL_PREFERRED:
        nid = first_set(policy.nodes)
    if (
        mode == MPOL_DEFAULT
        or mode == MPOL_LOCAL
        or mode == MPOL_PREFERRED
        or (mode == MPOL_BIND and node_isset(policy.nodes, nid))
    ):
        pfn = alloc_huge_on_node(cpu, gfp, nid)
        if pfn != 0 or gfp & __GFP_DIRECT_RECLAIM == 0:
            return pfn
    index = linear_page_index(vma, address) >> order
    pfn = alloc_pages_mpol(cpu, gfp, order, policy, index)
    if pfn != 0:
        prep_huge_pages(machine, pfn)
    return pfn


# -- faults ---------------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*)")
def get_huge_zero_page(cpu):
    """The shared huge page of zeros, made at the first need and kept from then on; its pfn or 0."""
    machine = machine_of(cpu)
    pfn = load_acquire(machine, "huge_zero_pfn")
    if pfn != 0:
        return pfn
    gfp = (GFP_TRANSHUGE | __GFP_ZERO) & ~__GFP_MOVABLE
    pfn = alloc_pages(cpu, gfp, np.int64(machine.paging.table_bits), cpu.node, machine.node_mask)
    if pfn == 0:
        count_vm_events(machine, cpu.id, THP_ZERO_PAGE_ALLOC_FAILED, 1)
        return 0
    before = compare_exchange(machine, "huge_zero_pfn", 0, pfn)
    if before != 0:
        put_page(cpu, pfn)
        return before
    count_vm_events(machine, cpu.id, THP_ZERO_PAGE_ALLOC, 1)
    return pfn


@kernel("i64(cpu_t*, mm_t*, vma_t*, u64)")
def do_huge_zero_page(cpu, mm, vma, where):
    """A first touch that only reads: the huge page of zeros."""
    machine = machine_of(cpu)
    table = pte_alloc_one(cpu, mm)
    if table == 0:
        return VM_FAULT_OOM
    pfn = get_huge_zero_page(cpu)
    if pfn == 0:
        free_table(cpu, mm, table)
        count_vm_events(machine, cpu.id, THP_FAULT_FALLBACK, 1)
        return FALLBACK
    pmd_lock(cpu, where)
    installed = entry_cmpxchg(where, U(0), pfn_pte(pfn, _READ_ONLY | _PAGE_SPECIAL | vm_page_nx(machine, vma))) == U(0)
    if installed:
        pgtable_trans_huge_deposit(machine, where, table)
    pmd_unlock(machine, where)
    if not installed:
        free_table(cpu, mm, table)
    return VM_FAULT_OK


@kernel("void(cpu_t*, vma_t*, u64, i64)")
def add_new_huge_pages(cpu, vma, address, pfn):
    """New pages in one piece become anonymous ones of a VMA, each mapped once, and join the LRU list."""
    machine = machine_of(cpu)
    for i in range(hpage_pages(machine)):
        page = page_of(machine, pfn + i)
        folio_add_anon_rmap(machine, cpu, page, pfn + i, vma, address + (U(i) << U(PAGE_SHIFT)))
        page.flags |= U(PG_anon_exclusive)
    folio_add_lru_block(cpu, pfn, hpage_pages(machine))


@kernel("void(cpu_t*, i64)")
def remove_new_huge_pages(cpu, pfn):
    """Undo it, before anybody has seen an entry."""
    machine = machine_of(cpu)
    for i in range(hpage_pages(machine)):
        folio_remove_rmap(machine, cpu, pfn + i)
        put_page(cpu, pfn + i)


@kernel("void(cpu_t*, i64)")
def release_huge_pages(cpu, pfn):
    """Drop a reference to each page of a huge one. If these are the last, as they mostly are, they go back in one piece."""
    machine, done, locked = machine_of(cpu), 0, -1
    pages = hpage_pages(machine)
    for i in range(pages):
        free_swap_cache(cpu, pfn + i)
    while done < pages and compare_exchange(page_of(machine, pfn + done), "refcount", 1, 0) == 1:
        locked = __page_cache_release(cpu, pfn + done, locked)
        done += 1
    unlock_lruvec(machine, locked)
    if done == pages:
        free_pages(cpu, pfn, np.int64(machine.paging.table_bits))
        return
    for i in range(done):
        free_pages(cpu, pfn + i, 0)
    for i in range(done, pages):
        put_page(cpu, pfn + i)


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool, u64)")
def do_huge_pmd_anonymous_page(cpu, mm, vma_number, address, write, where):
    """First touch of private memory, where a huge page fits: VM_FAULT_*, or FALLBACK."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    if not write and machine.thp_use_zero_page != 0:
        return do_huge_zero_page(cpu, mm, vma, where)
    if load_acquire(vma, "mapping") == 0 and not anon_vma_prepare(cpu, vma_number):
        return VM_FAULT_OOM
    pfn = vma_alloc_huge_pages(cpu, vma_thp_gfp_mask(machine, vma) | __GFP_ZERO, vma, address)
    if pfn == 0:
        count_vm_events(machine, cpu.id, THP_FAULT_FALLBACK, 1)
        return FALLBACK
    table = pte_alloc_one(cpu, mm)
    if table == 0:
        release_huge_pages(cpu, pfn)
        return VM_FAULT_OOM
    add_new_huge_pages(cpu, vma, address, pfn)
    pmd_lock(cpu, where)
    bits = (_WRITTEN if vma.flags & VM_WRITE else _READ_ONLY) | vm_page_nx(machine, vma)
    installed = entry_cmpxchg(where, U(0), pfn_pte(pfn, bits)) == U(0)
    if installed:
        pgtable_trans_huge_deposit(machine, where, table)
        add_huge_mapping(machine, cpu, pfn)
        fetch_add(mm.rss, MM_ANONPAGES, hpage_pages(machine))
        count_vm_events(machine, cpu.id, THP_FAULT_ALLOC, 1)
    pmd_unlock(machine, where)
    if not installed:  # another thread was faster
        free_table(cpu, mm, table)
        remove_new_huge_pages(cpu, pfn)
    return VM_FAULT_OK


@kernel("bool(machine_t*, i64)")
def all_exclusive(machine, pfn):
    """True if every page of a huge one belongs to the one entry that maps it."""
    for i in range(hpage_pages(machine)):
        page = page_of(machine, pfn + i)
        alone = load_acquire(page, "mapcount") == 1 and load_acquire(page, "refcount") == 1
        if not folio_test(page, PG_anon_exclusive) and not alone:
            return False
    return True


@kernel("i64(cpu_t*, u64)")
def do_huge_pmd_wp_page(cpu, where):
    """A write to a huge page mapped read-only: used again if it is ours alone, else taken apart, for a copy of one page."""
    machine = machine_of(cpu)
    pmd_lock(cpu, where)
    entry, reused = entry_load(where), False
    if pmd_trans_huge(entry) and not is_huge_zero(entry) and all_exclusive(machine, pte_pfn(entry)):
        for i in range(hpage_pages(machine)):
            folio_set(page_of(machine, pte_pfn(entry) + i), PG_anon_exclusive)
        entry_cmpxchg(where, entry, entry | _PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED)
        reused = True
    pmd_unlock(machine, where)
    if reused:
        return VM_FAULT_OK
    split_huge_pmd(cpu, where)
    return FALLBACK


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool)")
def do_huge_pmd_fault(cpu, mm, vma_number, address, write):
    """The part of a fault above the lowest tables (__handle_mm_fault): VM_FAULT_*, or FALLBACK to these."""
    machine = machine_of(cpu)
    where = pmd_alloc(cpu, mm, address)
    if where == U(0):
        return VM_FAULT_OOM
    entry, vma = entry_load(where), vma_of(machine, vma_number)
    if entry == U(0):
        if thp_vma_allowable(machine, vma) and thp_vma_suitable(machine, vma, address):
            return do_huge_pmd_anonymous_page(cpu, mm, vma_number, haddr_of(machine, address), write, where)
        return FALLBACK
    if not pmd_trans_huge(entry):
        khugepaged_wake_if_due(cpu)
        return FALLBACK
    cpu.error_code |= X86_PF_PROT
    if entry & _PAGE_USER == U(0) and vma.flags & VM_ACCESS_FLAGS != 0:
        return VM_FAULT_HUGE_NUMA
    if write and entry & _PAGE_RW == U(0):
        return do_huge_pmd_wp_page(cpu, where)
    return VM_FAULT_OK


# -- unmapping, protection, fork ------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, mm_t*, u64)")
def take_huge_pmd(cpu, mm, where):
    """Take a huge entry out, under its pmd_lock: its first pfn, 0 for the page of zeros, -1: there is none.

    The pages' references, and the table that was laid by for it, are the caller's to drop after a flush.
    """
    machine = machine_of(cpu)
    if not pmd_trans_huge(entry_load(where)):
        return -1
    entry, pfn = entry_exchange(where, U(0)), 0
    if not is_huge_zero(entry):
        pfn = pte_pfn(entry)
        remove_huge_mapping(machine, cpu, pfn)
        fetch_add(mm.rss, MM_ANONPAGES, -hpage_pages(machine))
        for i in range(hpage_pages(machine)):
            folio_remove_rmap(machine, cpu, pfn + i)
    return pfn


@kernel("bool(cpu_t*, vma_t*, u64)")
def change_huge_pmd(cpu, vma, where):
    """mprotect of all of a huge page: True if its entry has changed. Writing comes back with the next fault."""
    machine = machine_of(cpu)
    nx, accessible = vm_page_nx(machine, vma), vma.flags & (VM_READ | VM_WRITE | VM_EXEC) != 0
    while True:
        entry = entry_load(where)
        if not pmd_trans_huge(entry):
            return False
        wanted = (entry & ~_PAGE_NX) | nx
        wanted = wanted | _PAGE_USER if accessible else wanted & ~_PAGE_USER
        if vma.flags & VM_WRITE == 0:
            wanted &= ~_PAGE_RW
        if wanted == entry:
            return False
        if entry_cmpxchg(where, entry, wanted) == entry:
            return True


@kernel("i64(cpu_t*, i64, i64, u64, u64)")
def copy_huge_pmd(cpu, parent_number, child_number, address, source):
    """Share a huge page with a child, both without write permission: VM_FAULT_OK, VM_FAULT_OOM, or FALLBACK: it is gone."""
    machine = machine_of(cpu)
    child = mm_of(machine, child_number)
    target, table = pmd_alloc(cpu, child, address), pte_alloc_one(cpu, child)
    if target == U(0) or table == 0:
        if table != 0:
            free_table(cpu, child, table)
        return VM_FAULT_OOM
    pmd_lock(cpu, source)
    entry = entry_load(source)
    while pmd_trans_huge(entry) and entry_cmpxchg(source, entry, entry & ~_PAGE_RW) != entry:
        entry = entry_load(source)
    if not pmd_trans_huge(entry):
        pmd_unlock(machine, source)
        free_table(cpu, child, table)
        return FALLBACK
    if not is_huge_zero(entry):
        pfn = pte_pfn(entry)
        for i in range(hpage_pages(machine)):
            get_page(page_of(machine, pfn + i))
            folio_clear(page_of(machine, pfn + i), PG_anon_exclusive)
            folio_dup_rmap(machine, cpu, pfn + i)
        add_huge_mapping(machine, cpu, pfn)
        fetch_add(child.rss, MM_ANONPAGES, hpage_pages(machine))
    pmd_unlock(machine, source)
    cpu.clock_base_ns += machine.fork_entry_ns
    pmd_lock(cpu, target)
    entry_exchange(target, entry & ~_PAGE_RW)
    pgtable_trans_huge_deposit(machine, target, table)
    pmd_unlock(machine, target)
    return VM_FAULT_OK
