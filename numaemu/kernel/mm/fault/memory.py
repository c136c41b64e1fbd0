"""Page faults: Linux's mm/memory.c. Faults in mappings of files are do_fault.py, unmapping is zap.py, the page tables of a
forked child copy_page_range.py.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_PRESENT, _PAGE_RW, _PAGE_USER, PAGE_MASK
from numaemu.hardware.processor import X86_PF_PROT
from numaemu.kernel.arch.pgalloc import HUGE_THERE, pte_alloc
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    _SWP_EXCLUSIVE,
    is_migration_entry,
    is_swap_entry,
    pfn_pte,
    pmd_shift,
    pte_pfn,
    pte_present,
    pte_to_swp_entry,
    ptep_cmpxchg,
    ptep_get,
    ptep_step,
    vm_page_nx,
    vm_page_prot,
)
from numaemu.kernel.arch.tlb import flush_tlb_mm_range, mm_tlb_flush_pending
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import __GFP_ZERO, GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.internal import PF_OOM_ORIGIN
from numaemu.kernel.include.mm import linear_page_index
from numaemu.kernel.include.mm_types import (
    FAULT_AROUND_BYTES,
    MM_ANONPAGES,
    MM_SWAPENTS,
    VM_ACCESS_FLAGS,
    VM_FAULT_MAJOR,
    VM_FAULT_NUMA,
    VM_FAULT_OK,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_HUGETLB,
    VM_LOCKED,
    VM_SHARED,
    VM_WRITE,
    PG_anon,
    PG_anon_exclusive,
    PG_lru,
    PG_mlocked,
    PG_swapcache,
)
from numaemu.kernel.include.mmzone import MIGRATE_MOVABLE, copy_highpage, page_of, page_zone, pcp_of, prefetch_half
from numaemu.kernel.include.vmstat import PGMAJFAULT, PGREUSE, count_vm_events
from numaemu.kernel.mm.cache.shmem import vma_is_shmem
from numaemu.kernel.mm.fault.do_fault import do_fault, wp_page_shared
from numaemu.kernel.mm.fault.rmap import folio_add_anon_rmap, folio_dup_rmap, folio_remove_rmap, rss_counter
from numaemu.kernel.mm.fault.shmem_fault import shmem_fault
from numaemu.kernel.mm.huge.huge_memory import FALLBACK, do_huge_pmd_fault
from numaemu.kernel.mm.huge.hugetlb_fault import hugetlb_fault
from numaemu.kernel.mm.page_alloc.page_alloc import folio_put_refs, get_page, put_page, try_get_page
from numaemu.kernel.mm.reclaim.lru import folio_lock, folio_set, folio_test, folio_trylock, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import folio_add_new_lru, lru_add_drain
from numaemu.kernel.mm.space.mempolicy import vma_alloc_folio
from numaemu.kernel.mm.space.mlock import mlock_folio
from numaemu.kernel.mm.space.vma import anon_vma_prepare, munlock_unless_locked
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.kernel.mm.swap.swap_state import SWAP_PFN, swap_cache_get_vma_hit, swapin_readahead
from numaemu.kernel.mm.swap.swapfile import folio_free_swap, swap_entry_put, vm_swap_full
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
AROUND = U(FAULT_AROUND_BYTES)
COPYING = -1  # in page.private: a copy that becomes writable when all CPUs have forgotten what was there before
_READ_ONLY = _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED
_WRITTEN = _READ_ONLY | _PAGE_RW | _PAGE_DIRTY


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool, u64)")
def do_anonymous_page(cpu, mm, vma_number, address, write, ptep):
    """First touch of private memory: the zero page for a read, a cleared page of its own for a write."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    if not write:
        ptep_cmpxchg(ptep, U(0), pfn_pte(machine.zero_pfn, _READ_ONLY | _PAGE_SPECIAL | vm_page_nx(machine, vma)))
        return VM_FAULT_OK
    if load_acquire(vma, "mapping") == 0 and not anon_vma_prepare(cpu, vma_number):
        return VM_FAULT_OOM
    pfn = vma_alloc_folio(cpu, GFP_HIGHUSER_MOVABLE | __GFP_ZERO, vma, address)
    if pfn == 0:
        return VM_FAULT_OOM
    page = page_of(machine, pfn)
    folio_add_anon_rmap(machine, cpu, page, pfn, vma, address)
    page.flags |= U(PG_anon_exclusive)
    get_page(page)  # for its way to the LRU list; a late try_get_page may come between: atomically
    if mm_tlb_flush_pending(mm):  # of a page that was here (lazyfree) other CPUs must not read any more then
        flush_tlb_mm_range(cpu, vma.mm, address & PAGE_MASK, (address & PAGE_MASK) + U(PAGE_SIZE))
    if not ptep_cmpxchg(ptep, U(0), pfn_pte(pfn, _WRITTEN | vm_page_nx(machine, vma))):
        folio_remove_rmap(machine, cpu, pfn)  # another thread was faster
        put_page(cpu, pfn)
        put_page(cpu, pfn)
        return VM_FAULT_OK
    folio_add_new_lru(cpu, pfn)
    fetch_add(mm.rss, MM_ANONPAGES, 1)
    return VM_FAULT_OK


@hot
def install_copy(cpu, mm, vma, address, ptep, pte, new):
    """Put a copied page in the old one's place and let every CPU forget that one; False if the entry has changed.

    A task that is alone in its address space meets nobody else's TLB, so its copy may be writable at once. The second
    reference is ours until all have forgotten the old frame, so that nobody reuses the copy before; then it goes along
    on the way to the LRU list. Other threads that write meanwhile wait for it: each copying the other's copy they could go on
    so for ever.
    """
    machine = machine_of(cpu)
    page, alone, nx = page_of(machine, new), load_acquire(mm, "users") == 1, vm_page_nx(machine, vma)
    get_page(page)
    if alone:
        page.flags |= U(PG_anon_exclusive)
    else:
        page.private = COPYING
    if not ptep_cmpxchg(ptep, pte, pfn_pte(new, nx | (_WRITTEN if alone else _READ_ONLY))):
        page.private = 0
        put_page(cpu, new)
        return False
    flush_tlb_mm_range(cpu, vma.mm, address, address + U(PAGE_SIZE))
    if not alone:
        folio_set(page, PG_anon_exclusive)
        ptep_cmpxchg(ptep, pfn_pte(new, nx | _READ_ONLY), pfn_pte(new, nx | _WRITTEN))
        store_release(page, "private", 0)
    folio_add_new_lru(cpu, new)
    return True


# Copying waits for the host's memory, and a host's own prefetching has forgotten by the next fault where it was. So while a
# page is copied, the next ones are asked for, half a page at a time: the frame that is to take the next copy, and if pages
# are copied in the order of their addresses, what is to be copied next.


@hot
def prefetch_mapped(machine, address, ptep, pages, half):
    """Half of what is mapped `pages` behind `address`, if the same table says so."""
    if (address + (U(pages) << U(PAGE_SHIFT))) >> pmd_shift(machine) == address >> pmd_shift(machine):
        pte = ptep_get(ptep + U(pages) * ptep_step(machine))
        if pte_present(pte):
            prefetch_half(machine, pte_pfn(pte), half)


@hot
def prefetch_free(machine, cpu, pfn, half):
    """Half of the frame that this CPU takes next from the list that `pfn` came from."""
    prefetch_half(machine, pcp_of(machine, cpu.id, page_zone(machine, pfn)).lists[MIGRATE_MOVABLE].head, half)


@hot
def drop_copied(cpu, mm, vma, old):
    """A copy has taken the place of page `old`: its entry's reference goes, and that of the one who copied."""
    machine = machine_of(cpu)
    page = page_of(machine, old)
    if page.flags & U(PG_anon) == U(0):
        fetch_add(mm.rss, rss_counter(page), -1)
        fetch_add(mm.rss, MM_ANONPAGES, 1)
    folio_remove_rmap(machine, cpu, old)
    if vma.flags & VM_LOCKED and page.flags & U(PG_mlocked) != U(0):
        munlock_unless_locked(cpu, old)
    folio_put_refs(cpu, old, 2)


@kernel("i64(cpu_t*, mm_t*, i64, u64, u64, u64)")
def wp_page_copy(cpu, mm, vma_number, address, ptep, pte):
    """Copy on write. The old frame loses our reference only after every CPU has forgotten it.

    The copy becomes writable only then as well: else one CPU could write to it while another still reads the old one.
    """
    machine = machine_of(cpu)
    vma, old = vma_of(machine, vma_number), pte_pfn(pte)
    special, in_order = pte & _PAGE_SPECIAL != U(0), address >> U(PAGE_SHIFT) == cpu.copied + U(1)
    cpu.copied = address >> U(PAGE_SHIFT)
    if in_order:
        prefetch_mapped(machine, address, ptep, 1, 1)
    if load_acquire(vma, "mapping") == 0 and not anon_vma_prepare(cpu, vma_number):
        return VM_FAULT_OOM
    new = vma_alloc_folio(cpu, GFP_HIGHUSER_MOVABLE | (__GFP_ZERO if special else 0), vma, address)
    if new == 0:
        return VM_FAULT_OOM
    if not special:
        if not try_get_page(page_of(machine, old)):
            put_page(cpu, new)
            return VM_FAULT_RETRY  # it is being moved, or reclaimed
        if ptep_get(ptep) != pte:
            put_page(cpu, old)
            put_page(cpu, new)
            return VM_FAULT_OK
        copy_highpage(machine, cpu, new, old)
        prefetch_free(machine, cpu, new, 0)
    folio_add_anon_rmap(machine, cpu, page_of(machine, new), new, vma, address)
    if not install_copy(cpu, mm, vma, address & PAGE_MASK, ptep, pte, new):
        folio_remove_rmap(machine, cpu, new)
        put_page(cpu, new)
        if not special:
            put_page(cpu, old)
    elif special:
        fetch_add(mm.rss, MM_ANONPAGES, 1)
    else:
        prefetch_free(machine, cpu, new, 1)
        drop_copied(cpu, mm, vma, old)
        if in_order:
            prefetch_mapped(machine, address, ptep, 2, 0)
    return VM_FAULT_OK


@kernel("bool(cpu_t*, i64)")
def wp_can_reuse_anon_folio(cpu, pfn):
    """True, and the page is exclusive from now on, if nobody refers to it but the one entry that maps it and the caller.

    Under the page's lock, so that reclaim is not just writing into a swap entry that it is not exclusive.
    """
    page = page_of(machine_of(cpu), pfn)
    if load_acquire(page, "mapcount") != 1:
        return False
    if load_acquire(page, "refcount") > 2 and not folio_test(page, PG_lru):
        lru_add_drain(cpu)
    if not folio_trylock(page):
        return False
    if folio_test(page, PG_swapcache):
        folio_free_swap(cpu, pfn)
    alone = load_acquire(page, "mapcount") == 1 and load_acquire(page, "refcount") == 2
    if alone:
        folio_set(page, PG_anon_exclusive)
    folio_unlock(page)
    return alone


@hot
def wp_page_reuse(cpu, ptep, pte):
    """Let an entry write to its page, if that is anonymous and nobody else's; False: copy it. The caller has a reference."""
    machine, pfn = machine_of(cpu), pte_pfn(pte)
    page = page_of(machine, pfn)
    if not folio_test(page, PG_anon) or not (folio_test(page, PG_anon_exclusive) or wp_can_reuse_anon_folio(cpu, pfn)):
        return False
    if ptep_cmpxchg(ptep, pte, pte | _PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED):
        count_vm_events(machine, cpu.id, PGREUSE, 1)
    return True


@kernel("i64(cpu_t*, mm_t*, i64, u64, u64, u64)")
def do_wp_page(cpu, mm, vma_number, address, ptep, pte):
    """A write to a page mapped read-only in a writable range: use it again if we are the last sharer, else copy it.

    What a page says of itself counts only with a reference to it, and after a second look at the entry.
    """
    machine = machine_of(cpu)
    vma, old = vma_of(machine, vma_number), pte_pfn(pte)
    special = pte & _PAGE_SPECIAL != U(0)
    if vma.flags & VM_SHARED:
        if vma.i_mapping != 0 and not vma_is_shmem(machine, vma):
            return wp_page_shared(cpu, vma, address, ptep, pte)
        ptep_cmpxchg(ptep, pte, pte | _PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED)
        return VM_FAULT_OK
    page, done = page_of(machine, old), False
    if not special and folio_test(page, PG_anon):
        if not try_get_page(page):
            return VM_FAULT_RETRY  # it is being moved, or has just gone
        if load_acquire(page, "private") == COPYING and not folio_test(page, PG_swapcache):
            put_page(cpu, old)
            return VM_FAULT_RETRY
        done = ptep_get(ptep) != pte or wp_page_reuse(cpu, ptep, pte)
        put_page(cpu, old)
    return VM_FAULT_OK if done else wp_page_copy(cpu, mm, vma_number, address, ptep, pte)


@kernel("i64(cpu_t*, mm_t*, i64, u64, u64, u64, i64, bool)")
def map_swapped_page(cpu, mm, vma_number, address, ptep, pte, pfn, write):
    """Map a locked page of the swap cache in the place of its swap entry; a VM_FAULT_* code."""
    machine = machine_of(cpu)
    page, vma, entry = page_of(machine, pfn), vma_of(machine, vma_number), pte_to_swp_entry(pte)
    if load_acquire(vma, "mapping") == 0 and not anon_vma_prepare(cpu, vma_number):
        return VM_FAULT_OOM
    if load_acquire(page, "mapcount") == 0:
        page.mapping, page.index = vma.mapping, linear_page_index(vma, address)
        folio_set(page, PG_anon)
    get_page(page)
    folio_dup_rmap(machine, cpu, pfn)
    if vma.flags & VM_LOCKED:
        mlock_folio(cpu, pfn)
    exclusive = pte & _SWP_EXCLUSIVE != U(0)
    bits = vm_page_prot(machine, vma, _READ_ONLY)  # swapoff wants any page (unuse_pte)
    if exclusive:
        folio_set(page, PG_anon_exclusive)
        if write:
            bits |= _WRITTEN
        elif vma.flags & VM_WRITE:
            bits |= _PAGE_RW  # the first write makes it dirty, without a fault
    if not ptep_cmpxchg(ptep, pte, pfn_pte(pfn, bits)):
        folio_remove_rmap(machine, cpu, pfn)
        if vma.flags & VM_LOCKED and folio_test(page, PG_mlocked):
            munlock_unless_locked(cpu, pfn)
        put_page(cpu, pfn)
        return VM_FAULT_OK  # another thread was faster
    fetch_add(mm.rss, MM_ANONPAGES, 1)
    fetch_add(mm.rss, MM_SWAPENTS, -1)
    swap_entry_put(cpu, entry, 1)
    if (
        vm_swap_full(machine)
        or vma.flags & VM_LOCKED
        or folio_test(page, PG_mlocked)
        or (write and load_acquire(page, "refcount") == 3)  # the cache, the entry and we
        or cpu.flags & PF_OOM_ORIGIN  # swapoff, at once: reclaim would put it back into its slot (unuse_pte_range)
    ):  # should_try_to_free_swap
        folio_free_swap(cpu, pfn)
    return VM_FAULT_OK


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool, u64, u64)")
def do_swap_page(cpu, mm, vma_number, address, write, ptep, pte):
    """A page that was swapped out: from the swap cache, or read from its slot."""
    machine, code = machine_of(cpu), VM_FAULT_OK
    entry = pte_to_swp_entry(pte)
    vma = vma_of(machine, vma_number)
    pfn = swap_cache_get_vma_hit(cpu, vma, address, entry)
    if pfn == 0:
        pfn = swapin_readahead(cpu, vma, address, entry, ptep) & SWAP_PFN
        if pfn == 0:  # gone meanwhile, by another thread's fault or unmapping: or no memory
            return VM_FAULT_OOM if ptep_get(ptep) == pte else VM_FAULT_OK
        code = VM_FAULT_MAJOR
        if not cpu.flags & PF_OOM_ORIGIN:  # swapoff brings pages back, which is nobody's fault
            count_vm_events(machine, cpu.id, PGMAJFAULT, 1)
    page = page_of(machine, pfn)
    folio_lock(cpu, page)
    if write and not folio_test(page, PG_lru):
        lru_add_drain(cpu)  # a batch's reference would make it look shared
    if folio_test(page, PG_swapcache) and page.private == entry and ptep_get(ptep) == pte:
        answer = map_swapped_page(cpu, mm, vma_number, address, ptep, pte, pfn, write)
        if answer != VM_FAULT_OK:
            code = answer
    folio_unlock(page)
    put_page(cpu, pfn)
    if write and code != VM_FAULT_OOM:
        now = ptep_get(ptep)
        if (
            pte_present(now)
            and now & _PAGE_RW == U(0)
            and do_wp_page(cpu, mm, vma_number, address, ptep, now) == VM_FAULT_OOM
        ):
            return VM_FAULT_OOM
    return code


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool)")
def handle_mm_fault(cpu, mm, vma_number, address, write):
    """Serve a fault in a VMA that allows the access; a VM_FAULT_* code. Mirrors handle_mm_fault, handle_pte_fault."""
    machine = machine_of(cpu)
    if vma_of(machine, vma_number).flags & VM_HUGETLB:
        return hugetlb_fault(cpu, mm, vma_number, address, write)
    if machine.thp_used != 0:
        code = do_huge_pmd_fault(cpu, mm, vma_number, address, write)
        if code != FALLBACK:
            return code
    ptep = pte_alloc(cpu, mm, address)
    if ptep == U(0):
        return VM_FAULT_OOM
    if ptep == HUGE_THERE:  # another thread was faster
        return VM_FAULT_RETRY
    pte = ptep_get(ptep)
    if pte_present(pte):
        cpu.error_code |= X86_PF_PROT
    if pte == U(0):
        vma = vma_of(machine, vma_number)
        if vma.i_mapping != 0 and not vma_is_shmem(machine, vma):
            return do_fault(cpu, mm, vma_number, address, write, ptep)
        if vma.i_mapping != 0 or vma.flags & VM_SHARED:
            return shmem_fault(cpu, mm, vma_number, address, write, ptep)
        return do_anonymous_page(cpu, mm, vma_number, address, write, ptep)
    if is_swap_entry(pte):
        return do_swap_page(cpu, mm, vma_number, address, write, ptep, pte)
    if is_migration_entry(pte):
        return VM_FAULT_RETRY
    if pte & _PAGE_USER == U(0) and vma_of(machine, vma_number).flags & VM_ACCESS_FLAGS != 0:
        return VM_FAULT_NUMA
    if write and pte & _PAGE_RW == U(0):
        return do_wp_page(cpu, mm, vma_number, address, ptep, pte)
    return VM_FAULT_OK  # spurious: another CPU has served it
