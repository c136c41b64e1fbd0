"""Reverse mapping: from a page to every page-table entry that maps it. Linux's mm/rmap.c and anon_vma.

A *mapping* (mapping_t) is the family of VMAs that may map the same pages: an anonymous VMA gets one at its first
fault and its forked copies join it; a shared object has one from its start. A page knows its mapping and its index
in it, so its address in a member VMA is vma.start + (index - vma.pgoff) * 4096. The list is guarded by the mapping's
spin lock; a VMA leaves it before its page tables are freed, so a walker under the lock may look into them.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, fetch_and, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, entry_cmpxchg, entry_load
from numaemu.kernel.arch.pgalloc import pmd_trans_huge
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    _SWP_EXCLUSIVE,
    mm_of,
    pte_offset,
    pte_pfn,
    pte_present,
    ptep_cmpxchg,
    ptep_get,
    swp_entry_to_pte,
)
from numaemu.kernel.arch.tlb import add_to_ubc, set_tlb_ubc_flush_pending
from numaemu.kernel.core.pool import pool_get, pool_put
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.mm import linear_page_index
from numaemu.kernel.include.mm_types import (
    BY_FAMILY,
    BY_FILE,
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    MM_SWAPENTS,
    VM_EXEC,
    VM_LOCKED,
    PG_anon,
    PG_anon_exclusive,
    PG_idle,
    PG_mlocked,
    PG_swapbacked,
    PG_swapcache,
    PG_young,
    mapping_t,
)
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NR_ANON_MAPPED, NR_FILE_MAPPED, mod_node_page_state
from numaemu.kernel.mm.huge.split import huge_entry_of_page, split_for_page
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_set, folio_test
from numaemu.kernel.mm.space.mlock import mlock_folio, munlock_folio
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.kernel.mm.swap.swapfile import swap_duplicate, swap_entry_put
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64
UNMAP_TRIES = 4  # at an entry that changes as we look
REFERENCED_LOCKED = 1 << 40  # folio_referenced: a VMA that maps the page is mlocked
REFERENCED_EXEC = 1 << 41  # one is executable


@hot
def mapping_of(machine, number):
    return mapping_t.array(machine.mappings)[number]


@kernel("i64(cpu_t*, i64)")
def new_mapping(cpu, shared):
    """An empty family; its number or 0."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.mapping_pool)
    if number != 0:
        mapping = mapping_of(machine, number)
        mapping.users, mapping.first_vma, mapping.shared = 0, 0, shared  # not the lock: a late walker may hold it
        mapping.root, mapping.nr_pages, mapping.host, mapping.acct, mapping.tmpfs = U(0), 0, 0, 0, 0
        mapping.size, mapping.holes, mapping.resv_map, mapping.hstate, mapping.first_policy = 0, 0, U(0), 0, 0
    return number


@kernel("void(cpu_t*, i64, i64, i64, i64)")
def list_vma(cpu, which, mapping_number, vma_number, after):
    """Put a VMA on the list of a mapping (BY_FAMILY or BY_FILE): behind VMA `after`, or first if that is 0. Takes the mapping's lock."""
    machine = machine_of(cpu)
    mapping, vma = mapping_of(machine, mapping_number), vma_of(machine, vma_number)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    following = vma_of(machine, after).next[which] if after != 0 else mapping.first_vma
    vma.prev[which], vma.next[which] = after, following
    if following != 0:
        vma_of(machine, following).prev[which] = vma_number
    if after != 0:
        vma_of(machine, after).next[which] = vma_number
    else:
        mapping.first_vma = vma_number
    fetch_add(mapping, "users", 1)
    spin_unlock(lock)


@kernel("bool(cpu_t*, i64, i64, i64)")
def unlist_vma(cpu, which, mapping_number, vma_number):
    """Take a VMA off the list of a mapping; True if nobody uses the mapping any more. Takes the mapping's lock."""
    machine = machine_of(cpu)
    mapping, vma = mapping_of(machine, mapping_number), vma_of(machine, vma_number)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    before, following = vma.prev[which], vma.next[which]
    if before != 0:
        vma_of(machine, before).next[which] = following
    else:
        mapping.first_vma = following
    if following != 0:
        vma_of(machine, following).prev[which] = before
    last = fetch_add(mapping, "users", -1) == 1
    spin_unlock(lock)
    return last


@hot
def link_vma(cpu, mapping_number, vma_number):
    """Let a VMA join a family."""
    list_vma(cpu, BY_FAMILY, mapping_number, vma_number, 0)


@hot
def unlink_vma(cpu, vma_number):
    """Let a VMA leave its family; True if it was the last one (the caller frees the mapping and its pages)."""
    return unlist_vma(cpu, BY_FAMILY, vma_of(machine_of(cpu), vma_number).mapping, vma_number)


@hot
def link_file_vma(cpu, vma_number, after):
    """Let a VMA join those that map its file (__vma_link_file): behind VMA `after`, which it is a copy of, or (0) somewhere.

    So truncation comes to a forked child after its parent, and finds there what fork has still copied.
    """
    list_vma(cpu, BY_FILE, vma_of(machine_of(cpu), vma_number).i_mapping, vma_number, after)


@hot
def unlink_file_vma(cpu, vma_number):
    """Let a VMA leave those that map its file; the file's inode keeps the mapping."""
    unlist_vma(cpu, BY_FILE, vma_of(machine_of(cpu), vma_number).i_mapping, vma_number)


@hot
def next_vma_of(mapping, vma):
    """The next VMA of a mapping's list, for walks from mapping.first_vma under its lock: a file's has links of its own."""
    return vma.next[BY_FILE if mapping.host != 0 else BY_FAMILY]


@kernel("u64(page_t*, vma_t*)")
def page_address_in_vma(page, vma):
    """Where a page of the family would lie in this VMA; 0 if outside."""
    offset = page.index - vma.pgoff
    if offset < 0:
        return U(0)
    address = vma.start + (U(offset) << U(PAGE_SHIFT))
    return address if address < vma.end else U(0)


@hot
def folio_add_anon_rmap(machine, cpu, page, pfn, vma, address):
    """A new anonymous page gets its first page-table entry (folio_add_new_anon_rmap)."""
    page.mapping = vma.mapping
    page.index = linear_page_index(vma, address)
    page.mapcount = 1
    page.flags |= U(PG_anon | PG_swapbacked)
    if vma.flags & VM_LOCKED:
        mlock_folio(cpu, pfn)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_ANON_MAPPED, 1)


@kernel("void(machine_t*, cpu_t*, i64)")
def folio_dup_rmap(machine, cpu, pfn):
    """One more page-table entry maps the page; its reference is the caller's to take before (get_page, try_get_page)."""
    page = page_of(machine, pfn)
    if fetch_add(page, "mapcount", 1) == 0:
        anon = page.flags & U(PG_anon) != U(0)
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_ANON_MAPPED if anon else NR_FILE_MAPPED, 1)


@kernel("void(machine_t*, cpu_t*, i64)")
def folio_remove_rmap(machine, cpu, pfn):
    """A page-table entry that mapped the page is gone (its reference is not dropped here)."""
    page = page_of(machine, pfn)
    before = fetch_add(page, "mapcount", -1)
    VM_BUG_ON_PAGE(before <= 0, page)
    if before == 1:
        if page.flags & U(PG_mlocked) != U(0):
            munlock_folio(cpu, pfn)
        anon = page.flags & U(PG_anon) != U(0)
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_ANON_MAPPED if anon else NR_FILE_MAPPED, -1)


@hot
def rss_counter(page):
    """Which of an address space's counters the page belongs to."""
    if page.flags & U(PG_anon) != U(0):
        return MM_ANONPAGES
    return MM_SHMEMPAGES if page.flags & U(PG_swapbacked) != U(0) else MM_FILEPAGES


@kernel("void(cpu_t*, i64)")
def mapping_put(cpu, number):
    """Free a family's number (nobody is in it any more)."""
    pool_put(cpu, machine_of(cpu).mapping_pool, number)


# -- from a page to the entries that map it ------------------------------------------------------------------


@hot
def folio_pte(machine, pfn, vma):
    """Host address of the entry of this VMA that maps the page, or 0."""
    address = page_address_in_vma(page_of(machine, pfn), vma)
    if address == U(0):
        return U(0)
    ptep = pte_offset(machine, mm_of(machine, vma.mm), address)
    if ptep == U(0):
        return U(0)
    pte = ptep_get(ptep)
    return ptep if pte_present(pte) and pte_pfn(pte) == pfn and pte & _PAGE_SPECIAL == U(0) else U(0)


@kernel("i64(machine_t*, i64, vma_t*, i64)")
def huge_referenced(machine, pfn, vma, answer):
    """folio_referenced for a huge entry, which says it of all its pages at once."""
    address = page_address_in_vma(page_of(machine, pfn), vma)
    where = huge_entry_of_page(machine, mm_of(machine, vma.mm), address, pfn) if address != U(0) else U(0)
    if where == U(0):
        return answer
    if vma.flags & VM_LOCKED:
        answer |= REFERENCED_LOCKED
    entry = entry_load(where)
    if (
        pmd_trans_huge(entry)
        and entry & _PAGE_ACCESSED != U(0)
        and entry_cmpxchg(where, entry, entry & ~_PAGE_ACCESSED) == entry
    ):
        answer += 1
        if vma.flags & VM_EXEC:
            answer |= REFERENCED_EXEC
    return answer


@kernel("i64(cpu_t*, i64)")
def folio_clear_young_ptes(cpu, pfn):
    """How many entries say that the page was accessed, which they forget; + REFERENCED_LOCKED, REFERENCED_EXEC.

    No TLB is flushed for it: as on x86 a CPU whose TLB holds the page may use it again unnoticed for a while.
    """
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    if page.mapping == 0 or load_acquire(page, "mapcount") == 0:
        return 0
    mapping, answer = mapping_of(machine, page.mapping), 0
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    number = mapping.first_vma
    while number != 0:
        vma = vma_of(machine, number)
        ptep = folio_pte(machine, pfn, vma)
        if ptep == U(0) and machine.thp_used != 0:
            answer = huge_referenced(machine, pfn, vma, answer)
        while ptep != U(0):
            if vma.flags & VM_LOCKED:
                answer |= REFERENCED_LOCKED
            pte = ptep_get(ptep)
            if not pte_present(pte) or pte_pfn(pte) != pfn or pte & _PAGE_ACCESSED == U(0):
                break
            if ptep_cmpxchg(ptep, pte, pte & ~_PAGE_ACCESSED):
                answer += 1
                if vma.flags & VM_EXEC:
                    answer |= REFERENCED_EXEC
                break
        number = next_vma_of(mapping, vma)
    spin_unlock(lock)
    return answer


@kernel("i64(cpu_t*, i64)")
def folio_referenced(cpu, pfn):
    """The same for reclaim: an access that only a watcher of idle pages has seen counts once, and the page is idle no more."""
    page, answer = page_of(machine_of(cpu), pfn), folio_clear_young_ptes(cpu, pfn)
    if page.flags & U(PG_young | PG_idle) != U(0) and load_acquire(page, "mapcount") != 0:
        if answer & ~(REFERENCED_LOCKED | REFERENCED_EXEC) != 0:
            fetch_and(page, "flags", ~U(PG_idle))
        if fetch_and(page, "flags", ~U(PG_young)) & U(PG_young) != U(0):
            answer += 1
    return answer


@kernel("bool(cpu_t*, i64, vma_t*, u64, u64)")
def unmap_anon_one(cpu, pfn, vma, ptep, pte):
    """Put a swap entry in the place of an entry that maps an anonymous page; False: look again, or leave it."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    if not folio_test(page, PG_swapbacked):  # lazyfree: to be thrown away, unless it has been written to again
        if pte & _PAGE_DIRTY != U(0):
            folio_set(page, PG_swapbacked)
            return False
        return ptep_cmpxchg(ptep, pte, U(0))
    if not folio_test(page, PG_swapcache):
        return False
    bits = _SWP_EXCLUSIVE if folio_test(page, PG_anon_exclusive) else U(0)
    if not swap_duplicate(cpu, page.private, 1):
        return False
    if not ptep_cmpxchg(ptep, pte, swp_entry_to_pte(page.private, bits)):
        swap_entry_put(cpu, page.private, 1)
        return False
    fetch_add(mm_of(machine, vma.mm).rss, MM_SWAPENTS, 1)
    return True


@kernel("bool(cpu_t*, tlbflush_unmap_batch_t*, i64, vma_t*)")
def try_to_unmap_one(cpu, ubc, pfn, vma):
    """Take one VMA's entry for the page away, to be flushed with the batch; False: it stays."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    for _ in range(UNMAP_TRIES):
        ptep = folio_pte(machine, pfn, vma)
        if (
            ptep == U(0)
            and vma.flags & VM_LOCKED == 0
            and split_for_page(cpu, vma.mm, page_address_in_vma(page, vma), pfn)
        ):
            ptep = folio_pte(machine, pfn, vma)
        if ptep == U(0):
            return True
        if vma.flags & VM_LOCKED:
            return False
        pte, anon = ptep_get(ptep), folio_test(page, PG_anon)
        if not pte_present(pte) or pte_pfn(pte) != pfn:
            continue
        place = set_tlb_ubc_flush_pending(cpu, ubc, vma.mm)
        if not (unmap_anon_one(cpu, pfn, vma, ptep, pte) if anon else ptep_cmpxchg(ptep, pte, U(0))):
            continue
        if pte & _PAGE_DIRTY != U(0):
            ubc.dirty = 1
        add_to_ubc(ubc, place, page_address_in_vma(page, vma))
        fetch_add(mm_of(machine, vma.mm).rss, rss_counter(page), -1)
        folio_remove_rmap(machine, cpu, pfn)
        put_page(cpu, pfn)
        return True
    return False


@kernel("bool(cpu_t*, tlbflush_unmap_batch_t*, i64)")
def try_to_unmap(cpu, ubc, pfn):
    """Take a locked, isolated page out of all address spaces; True if nothing maps it any more.

    The caller flushes `ubc` before it uses or writes the frame; `ubc.dirty` says whether the page has been written to.
    """
    machine = machine_of(cpu)
    ubc.dirty = 0
    page = page_of(machine, pfn)
    mapping = mapping_of(machine, page.mapping)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    number = mapping.first_vma
    while number != 0 and load_acquire(page, "mapcount") > 0:
        vma = vma_of(machine, number)
        number = next_vma_of(mapping, vma)
        if not try_to_unmap_one(cpu, ubc, pfn, vma):
            break
    spin_unlock(lock)
    if load_acquire(page, "mapcount") > 0:
        return False
    folio_clear(page, PG_anon_exclusive)
    return True
