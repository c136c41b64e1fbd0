"""Page tables of huge pages from the pool: faults, copy on write, unmapping, fork, mprotect. The second half of Linux's
mm/hugetlb.c.

A page is mapped by entries above the lowest tables only; the head of the compound page has its mapcount, and a reference for
each entry. Faults on one page come one after the other (fault_mutex), so that two do not take two pages of the pool where
one is left. None of these pages is on an LRU list, none is in rss: mm.hugetlb_usage counts what is mapped.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import clear_bytes, copy_bytes
from numaemu.compiler.pointer import address_of, u64
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
from numaemu.kernel.arch.pgalloc import huge_pte_alloc, hugetlb_walk, pmd_trans_huge
from numaemu.kernel.arch.pgtable import mm_of, pfn_pte, pte_pfn, vm_page_nx
from numaemu.kernel.arch.tlb import (
    dec_tlb_flush_pending,
    flush_tlb_mm_stride,
    inc_tlb_flush_pending,
    mm_tlb_flush_pending,
)
from numaemu.kernel.core.smp import machine_of, relax, spin_lock, spin_unlock
from numaemu.kernel.core.xarray import entry_is_page, page_entry, xa_create, xa_load
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import (
    BY_FAMILY,
    VM_FAULT_OK,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_SHARED,
    VM_WRITE,
    PG_anon,
    PG_anon_exclusive,
    PG_used,
)
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import charge_clear_pages, charge_copy_pages, page_of
from numaemu.kernel.mm.fault.rmap import mapping_of, page_address_in_vma
from numaemu.kernel.mm.huge.hugetlb import (
    alloc_hugetlb_folio,
    restore_reserve_on_zap,
    vma_has_reserves,
    vma_hugecache_offset,
)
from numaemu.kernel.mm.huge.hugetlb_pool import (
    NR_FAULT_MUTEXES,
    folio_hstate,
    hstate_is_gigantic,
    hstate_vma,
    huge_page_shift,
    huge_page_size,
    hugetlb_object,
    pages_per_huge_page,
    resv_map_t,
)
from numaemu.kernel.mm.page_alloc.page_alloc import get_page, put_page, try_get_page
from numaemu.kernel.mm.reclaim.lru import folio_set, folio_test
from numaemu.kernel.mm.space.vma import anon_vma_prepare, lock_families, unlock_families
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.spec.param import PAGE_SIZE

U = np.uint64
_READ_ONLY = _PAGE_PRESENT | _PAGE_PSE | _PAGE_USER | _PAGE_ACCESSED
_WRITTEN = _READ_ONLY | _PAGE_RW | _PAGE_DIRTY


@hot
def fault_mutex_at(h, which):
    return address_of(h, "fault_mutex") + U(8 * which)


@hot
def fault_mutex_of(h, vma, index):
    """Address of the lock for faults on one page, of an object or of private memory: hugetlb_fault_mutex_hash"""
    number = hugetlb_object(vma)
    return fault_mutex_at(h, ((number if number != 0 else vma.mm) * 7 + index) % NR_FAULT_MUTEXES)


@hot
def flush_hugetlb_tlb_range(cpu, h, mm_number, start, end):
    """Every CPU forgets [start, end): one translation for each huge page."""
    flush_tlb_mm_stride(cpu, mm_number, start, end, huge_page_shift(h))


@kernel("void(machine_t*, i64, i64)")
def clear_gigantic_page(machine, pfn, pages):
    """Frames that were never given out are zeros already, and the host need not have them."""
    at = 0
    while at < pages:
        first, used = at, page_of(machine, pfn + at).flags & U(PG_used)
        while at < pages and page_of(machine, pfn + at).flags & U(PG_used) == used:
            page_of(machine, pfn + at).flags |= U(PG_used)
            at += 1
        if used != U(0):
            clear_bytes(frame_of(machine, pfn + first), PAGE_SIZE * (at - first))


@kernel("void(cpu_t*, hstate_t*, i64)")
def folio_zero_user(cpu, h, pfn):
    """Clear a huge page."""
    machine = machine_of(cpu)
    if hstate_is_gigantic(h):
        clear_gigantic_page(machine, pfn, pages_per_huge_page(h))
    else:
        clear_bytes(frame_of(machine, pfn), PAGE_SIZE * pages_per_huge_page(h))
    charge_clear_pages(machine, cpu, pfn, pages_per_huge_page(h))


@kernel("void(cpu_t*, hstate_t*, i64, i64)")
def copy_user_large_folio(cpu, h, new, old):
    """Copy a huge page."""
    machine = machine_of(cpu)
    copy_bytes(frame_of(machine, new), frame_of(machine, old), PAGE_SIZE * pages_per_huge_page(h))
    charge_copy_pages(machine, cpu, new, old, pages_per_huge_page(h))
    for i in range(pages_per_huge_page(h) if hstate_is_gigantic(h) else 0):
        page_of(machine, new + i).flags |= U(PG_used)


@hot
def make_huge_pte(machine, vma, pfn, writable):
    return pfn_pte(pfn, (_WRITTEN if writable else _READ_ONLY) | vm_page_nx(machine, vma))


@kernel("void(machine_t*, vma_t*, i64, i64)")
def hugetlb_add_new_anon_rmap(machine, vma, index, pfn):
    """A new private page gets its first entry."""
    page = page_of(machine, pfn)
    page.mapping, page.index, page.mapcount = vma.mapping, index << hstate_vma(machine, vma).order, 1
    page.flags |= U(PG_anon | PG_anon_exclusive)


@kernel("i64(cpu_t*, vma_t*, i64)")
def hugetlb_get_shared_folio(cpu, vma, index):
    """The page of a shared object, with a reference for its entry; its pfn, 0: the pool has none, -1: no memory."""
    machine = machine_of(cpu)
    mapping, h = mapping_of(machine, hugetlb_object(vma)), hstate_vma(machine, vma)
    slot = xa_create(cpu, mapping, index)
    if slot == U(0):
        return -1
    entry = load_acquire(u64.array(slot), 0)
    if entry_is_page(entry):
        pfn = pte_pfn(entry)
        get_page(page_of(machine, pfn))
        return pfn
    pfn = alloc_hugetlb_folio(cpu, vma, index, False)
    if pfn == 0:
        return 0
    folio_zero_user(cpu, h, pfn)
    page = page_of(machine, pfn)
    page.mapping, page.index = hugetlb_object(vma), index << h.order
    get_page(page)  # the first one is the tree's
    compare_exchange(u64.array(slot), 0, U(0), page_entry(pfn))
    fetch_add(mapping, "nr_pages", 1)
    return pfn


@kernel("i64(cpu_t*, i64, i64)")
def filemap_get_hugetlb_folio(cpu, number, index):
    """A page that an object has already, with a reference taken; 0: none. One that is moving is looked up again."""
    machine, tries = machine_of(cpu), 0
    while True:
        entry = xa_load(machine, mapping_of(machine, number), index)
        if not entry_is_page(entry):
            return 0
        pfn = pte_pfn(entry)
        if try_get_page(page_of(machine, pfn)):
            if xa_load(machine, mapping_of(machine, number), index) == entry:
                return pfn
            put_page(cpu, pfn)
        tries += 1
        relax(cpu, tries)


@kernel("i64(cpu_t*, mm_t*, i64, u64, u64)")
def hugetlb_private_page(cpu, mm, vma_number, address, where):
    """Nothing is mapped yet in a private VMA: the page that its file has, not writable, or one of its own: VM_FAULT_*."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    h, number, code = hstate_vma(machine, vma), hugetlb_object(vma), VM_FAULT_OK
    index = vma_hugecache_offset(h, vma, address)
    pfn = filemap_get_hugetlb_folio(cpu, number, index) if number != 0 else 0
    if pfn != 0:
        fetch_add(page_of(machine, pfn), "mapcount", 1)
    elif load_acquire(vma, "mapping") == 0 and not anon_vma_prepare(cpu, vma_number):
        code = VM_FAULT_OOM
    else:
        pfn = alloc_hugetlb_folio(cpu, vma, index, False)
        code = VM_FAULT_SIGBUS if pfn == 0 else VM_FAULT_OK
        if pfn != 0:
            folio_zero_user(cpu, h, pfn)
            hugetlb_add_new_anon_rmap(machine, vma, index, pfn)
    if code == VM_FAULT_OK:
        fetch_add(mm, "hugetlb_usage", pages_per_huge_page(h))
        entry_exchange(where, make_huge_pte(machine, vma, pfn, False))
    return code


@kernel("i64(cpu_t*, mm_t*, vma_t*, u64, u64)")
def hugetlb_shared_page(cpu, mm, vma, address, where):
    """Nothing is mapped yet in a shared VMA: the page of its object, made if need be, at once writable: VM_FAULT_*."""
    machine, h = machine_of(cpu), hstate_vma(machine_of(cpu), vma)
    pfn = hugetlb_get_shared_folio(cpu, vma, vma_hugecache_offset(h, vma, address))
    if pfn <= 0:
        return VM_FAULT_SIGBUS if pfn == 0 else VM_FAULT_OOM
    fetch_add(page_of(machine, pfn), "mapcount", 1)
    fetch_add(mm, "hugetlb_usage", pages_per_huge_page(h))
    entry_exchange(where, make_huge_pte(machine, vma, pfn, vma.flags & VM_WRITE != 0))
    return VM_FAULT_OK


@hot
def behind_the_end(machine, vma, address):
    """True where the file, or the object, of a VMA has ended; its end moves before the fault mutexes are gone through."""
    number = hugetlb_object(vma)
    if number == 0:
        return False
    index = vma_hugecache_offset(hstate_vma(machine, vma), vma, address)
    return index >= load_acquire(resv_map_t.at(mapping_of(machine, number).resv_map), "size")


@kernel("void(cpu_t*, i64)")
def hugetlb_remove_rmap(cpu, pfn):
    """An entry that mapped the page is gone, and flushed: its mapcount and its reference go."""
    page = page_of(machine_of(cpu), pfn)
    before = fetch_add(page, "mapcount", -1)
    VM_BUG_ON_PAGE(before <= 0, page)
    put_page(cpu, pfn)


@kernel("void(cpu_t*, vma_t*, i64)")
def unmap_ref_private(cpu, owner, pfn):
    """The owner of the reservation finds no page for its copy: take the shared one away from the others, its children.

    They find out when they touch it (SIGBUS).
    """
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    mapping, h = mapping_of(machine, page.mapping), folio_hstate(machine, page)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    number = mapping.first_vma
    while number != 0:
        vma = vma_of(machine, number)
        others = vma.address != owner.address and vma.resv_map == U(0)
        address = page_address_in_vma(page, vma) if others else U(0)
        number = vma.next[BY_FAMILY]
        where = hugetlb_walk(machine, mm_of(machine, vma.mm), address, huge_page_shift(h)) if address != U(0) else U(0)
        entry = entry_load(where) if where != U(0) else U(0)
        inc_tlb_flush_pending(mm_of(machine, vma.mm))
        while pmd_trans_huge(entry) and pte_pfn(entry) == pfn:
            before = entry_cmpxchg(where, entry, U(0))
            if before == entry:
                vma.resv_unmapped = 1
                fetch_add(mm_of(machine, vma.mm), "hugetlb_usage", -pages_per_huge_page(h))
                flush_hugetlb_tlb_range(cpu, h, vma.mm, address, address + huge_page_size(h))
                hugetlb_remove_rmap(cpu, pfn)
            entry = before if before != entry else U(0)
        dec_tlb_flush_pending(mm_of(machine, vma.mm))
    spin_unlock(lock)


@kernel("i64(cpu_t*, mm_t*, vma_t*, u64, u64, u64)")
def hugetlb_copy_page(cpu, mm, vma, address, where, entry):
    """Copy on write of a page that an entry maps and to which the caller has a reference; it takes the entry's along."""
    machine, h, old = machine_of(cpu), hstate_vma(machine_of(cpu), vma), pte_pfn(entry)
    index = vma_hugecache_offset(h, vma, address)
    # what was reserved here is used already
    owner = vma.resv_map != U(0) and folio_test(page_of(machine, old), PG_anon)
    reserved = not owner and vma_has_reserves(machine, vma, index)
    new = alloc_hugetlb_folio(cpu, vma, index, owner)
    if new == 0:
        if owner:
            unmap_ref_private(cpu, vma, old)
        return VM_FAULT_RETRY if owner else VM_FAULT_SIGBUS
    copy_user_large_folio(cpu, h, new, old)
    hugetlb_add_new_anon_rmap(machine, vma, index, new)
    if entry_cmpxchg(where, entry, U(0)) != entry:  # it was taken away meanwhile: look again
        page_of(machine, new).mapcount = 0
        if reserved:
            restore_reserve_on_zap(cpu, vma, index, new)
        put_page(cpu, new)
        return VM_FAULT_RETRY
    flush_hugetlb_tlb_range(cpu, h, vma.mm, address, address + huge_page_size(h))
    entry_exchange(where, make_huge_pte(machine, vma, new, True))
    hugetlb_remove_rmap(cpu, old)
    return VM_FAULT_OK


@kernel("i64(cpu_t*, mm_t*, i64, u64, u64, u64)")
def hugetlb_wp(cpu, mm, vma_number, address, where, entry):
    """A write to a page mapped read-only: use it again if nobody else maps it, else copy it. The address is the page's.

    The reference comes first, then a second look at the entry: another thread may have unmapped the page.
    """
    machine, code = machine_of(cpu), VM_FAULT_OK
    vma, old = vma_of(machine, vma_number), pte_pfn(entry)
    page = page_of(machine, old)
    if vma.flags & VM_SHARED:
        entry_cmpxchg(where, entry, entry | _PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED)
        return VM_FAULT_OK
    if not folio_test(page, PG_anon) and load_acquire(vma, "mapping") == 0 and not anon_vma_prepare(cpu, vma_number):
        return VM_FAULT_OOM
    if not try_get_page(page):
        return VM_FAULT_RETRY
    if entry_load(where) != entry:
        code = VM_FAULT_RETRY
    elif load_acquire(page, "mapcount") == 1 and folio_test(page, PG_anon):
        folio_set(page, PG_anon_exclusive)
        entry_cmpxchg(where, entry, entry | _PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED)
    else:
        code = hugetlb_copy_page(cpu, mm, vma, address, where, entry)
    put_page(cpu, old)
    return code


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool, u64)")
def hugetlb_no_page(cpu, mm, vma_number, address, write, where):
    """Nothing is mapped yet. A private page that is written to becomes writable, or is copied, at once."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    if vma.resv_unmapped != 0 or behind_the_end(machine, vma, address):  # taken away: better killed than given zeros
        return VM_FAULT_SIGBUS
    if vma.flags & VM_SHARED:
        return hugetlb_shared_page(cpu, mm, vma, address, where)
    code = hugetlb_private_page(cpu, mm, vma_number, address, where)
    entry = entry_load(where)
    if code == VM_FAULT_OK and write and pmd_trans_huge(entry):
        code = hugetlb_wp(cpu, mm, vma_number, address, where, entry)
    return code


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool)")
def hugetlb_fault(cpu, mm, vma_number, address, write):
    """Serve a fault in a VMA of huge pages from the pool; a VM_FAULT_* code."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    h = hstate_vma(machine, vma)
    start = address & ~(huge_page_size(h) - U(1))
    where = huge_pte_alloc(cpu, mm, start, huge_page_shift(h))
    if where == U(0):
        return VM_FAULT_OOM
    mutex, code = fault_mutex_of(h, vma, vma_hugecache_offset(h, vma, start)), VM_FAULT_OK
    spin_lock(cpu, mutex)
    entry = entry_load(where)
    if entry != U(0):
        cpu.error_code |= X86_PF_PROT
    if entry == U(0):
        code = hugetlb_no_page(cpu, mm, vma_number, start, write, where)
    elif write and entry & _PAGE_RW == U(0):
        code = hugetlb_wp(cpu, mm, vma_number, start, where, entry)
    spin_unlock(mutex)
    return code


# -- unmapping, protection, fork -----------------------------------------------------------------------------------


@kernel("i64(cpu_t*, mm_t*, vma_t*, u64, u64)")
def hugetlb_zap(cpu, mm, vma, address, where):
    """Take the huge entry of an address out: the pfn whose reference the caller drops after a flush, or 0."""
    machine = machine_of(cpu)
    entry = entry_exchange(where, U(0))
    if not pmd_trans_huge(entry):
        return 0
    pfn, h = pte_pfn(entry), hstate_vma(machine, vma)
    page = page_of(machine, pfn)
    fetch_add(mm, "hugetlb_usage", -pages_per_huge_page(h))
    if load_acquire(page, "mapcount") == 1 and folio_test(page, PG_anon):
        restore_reserve_on_zap(cpu, vma, vma_hugecache_offset(h, vma, address), pfn)
    before = fetch_add(page, "mapcount", -1)
    VM_BUG_ON_PAGE(before <= 0, page)
    return pfn


@kernel("void(cpu_t*, vma_t*, u64, u64)")
def hugetlb_change_protection(cpu, vma, start, end):
    """mprotect's work on huge entries: private ones become writable at the next write only."""
    machine = machine_of(cpu)
    mm, nx, h = mm_of(machine, vma.mm), vm_page_nx(machine, vma), hstate_vma(machine, vma)
    accessible = vma.flags & 7 != 0
    address, changed = start, False
    while address < end:
        where = hugetlb_walk(machine, mm, address, huge_page_shift(h))
        entry = entry_load(where) if where != U(0) else U(0)
        if pmd_trans_huge(entry):
            wanted = (entry & ~_PAGE_NX) | nx
            wanted = wanted | _PAGE_USER if accessible else wanted & ~_PAGE_USER
            if vma.flags & VM_WRITE == 0:
                wanted &= ~_PAGE_RW
            elif vma.flags & VM_SHARED:
                wanted |= _PAGE_RW | _PAGE_DIRTY
            if wanted != entry:
                if entry_cmpxchg(where, entry, wanted) != entry:
                    continue
                changed = True
        address += huge_page_size(h)
    if changed or mm_tlb_flush_pending(mm):
        flush_hugetlb_tlb_range(cpu, h, vma.mm, start, end)


@kernel("u64(cpu_t*, u64)")
def hugetlb_get_mapped(cpu, where):
    """What the entry at a host address says, not writable any more, and a reference to its page; 0: nothing is mapped there.

    Under the families' locks: who cuts the file, or has reserved the page, takes entries out at any other moment.
    """
    machine, tries = machine_of(cpu), 0
    while True:
        entry = entry_load(where)
        if not pmd_trans_huge(entry):
            return U(0)
        shared = entry & ~_PAGE_RW
        if entry_cmpxchg(where, entry, shared) == entry and try_get_page(page_of(machine, pte_pfn(entry))):
            if entry_load(where) == shared:
                return shared
            put_page(cpu, pte_pfn(entry))
        tries += 1
        relax(cpu, tries)


@kernel("bool(cpu_t*, mm_t*, mm_t*, vma_t*)")
def copy_hugetlb_page_range(cpu, parent, child, vma):
    """Share a private VMA's pages with a child: both lose write permission. False: no memory for tables."""
    machine = machine_of(cpu)
    address, h = vma.start, hstate_vma(machine, vma)
    while address < vma.end:
        source = hugetlb_walk(machine, parent, address, huge_page_shift(h))
        if source != U(0):
            target = huge_pte_alloc(cpu, child, address, huge_page_shift(h))
            if target == U(0):
                return False
            lock_families(cpu, vma)
            entry = hugetlb_get_mapped(cpu, source)
            if entry != U(0):
                fetch_add(page_of(machine, pte_pfn(entry)), "mapcount", 1)
                fetch_add(child, "hugetlb_usage", pages_per_huge_page(h))
                cpu.clock_base_ns += machine.fork_entry_ns
                entry_exchange(target, entry)
            unlock_families(machine, vma)
        address += huge_page_size(h)
    return True
