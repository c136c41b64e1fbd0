"""Page faults, unmapping and copying of page tables: Linux's mm/memory.c."""
import numpy as np

from numaemu.atomic import fetch_add, load_acquire
from numaemu.compile import hot, kernel
from numaemu.kernel.do_fault import do_fault, wp_page_shared
from numaemu.kernel.gfp import GFP_HIGHUSER_MOVABLE, __GFP_ZERO
from numaemu.kernel.huge_memory import (FALLBACK, change_huge_pmd, copy_huge_pmd, do_huge_pmd_fault, release_huge_pages,
                                        take_huge_pmd)
from numaemu.kernel.huge_split import is_hugetlb_entry, split_huge_pmd
from numaemu.kernel.hugetlb_fault import copy_hugetlb_page_range, hugetlb_change_protection, hugetlb_fault, hugetlb_zap
from numaemu.kernel.mempolicy import alloc_table_page, vma_alloc_folio
from numaemu.kernel.mm_inline import folio_clear, folio_lock, folio_set, folio_test, folio_trylock, folio_unlock
from numaemu.kernel.mm_types import (FAULT_AROUND_BYTES, MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES, MM_SWAPENTS,
                                     PG_anon, PG_anon_exclusive, PG_dirty, PG_lru, PG_mlocked, PG_swapbacked,
                                     PG_swapcache, VM_EXEC, VM_FAULT_MAJOR, VM_FAULT_OK, VM_FAULT_OOM, VM_FAULT_RETRY,
                                     VM_HUGETLB, VM_LOCKED, VM_READ, VM_SHARED, VM_WRITE)
from numaemu.kernel.mmzone import MIGRATE_MOVABLE, copy_highpage, page_of, page_zone, pcp_of, prefetch_half
from numaemu.kernel.page_alloc import folio_put_refs, get_page, put_page, release_pages, try_get_page
from numaemu.kernel.page_writeback import folio_mark_dirty
from numaemu.kernel.pgalloc import haddr_of, huge_entry_offset, hugetlb_walk, pmd_trans_huge
from numaemu.kernel.pgtable import (_MIGRATION_ANON, _MIGRATION_FILE, _PAGE_SPECIAL, _SWP_EXCLUSIVE, entry_offset,
                                    free_table, install_table, is_migration_entry, is_swap_entry, mm_of, pfn_pte,
                                    pgd_of, pmd_addr_end, pmd_shift, pmd_size, pte_offset, pte_pfn, pte_present,
                                    pte_to_swp_entry, ptep_cmpxchg, ptep_get, ptep_get_and_clear, ptep_step, set_pte, skip_missing,
                                    table_at, vm_page_nx)
from numaemu.kernel.rmap import folio_add_anon_rmap, folio_dup_rmap, folio_remove_rmap, mapping_of, rss_counter
from numaemu.kernel.shmem import vma_is_shmem
from numaemu.kernel.shmem_fault import shmem_fault
from numaemu.kernel.smp import machine_of, relax, spin_lock, spin_unlock
from numaemu.kernel.swap import folio_add_new_lru, folio_mark_accessed, lru_add_drain
from numaemu.kernel.swap_state import swap_cache_get_hit, swap_cluster_readahead
from numaemu.kernel.swapfile import (folio_free_swap, free_swap_and_cache, free_swap_cache, swap_duplicate,
                                     swap_entry_put, vm_swap_full)
from numaemu.kernel.tlb import flush_tlb_mm_range, flush_tlb_mm_stride
from numaemu.kernel.vma import anon_vma_prepare, munlock_unless_locked
from numaemu.kernel.vma_index import find_vma, vma_of
from numaemu.kernel.vmstat import PGMAJFAULT, PGREUSE, count_vm_events
from numaemu.paging import (PTE_SHIFT, _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_NX, _PAGE_PRESENT, _PAGE_RW, _PAGE_USER,
                            entry_at, entry_exchange, entry_load)
from numaemu.param import GATHER_PAGES
from numaemu.pointer import address_of, i64
from numaemu.processor import X86_PF_PROT

U = np.uint64
HUGE_THERE = U(2)                # of pte_alloc: a huge entry stands in the way
CLEARED_PTES, CLEARED_PMDS, CLEARED_PUDS = 1, 2, 4       # cpu.cleared: small entries, huge ones, gigantic ones
WHOLE = 1 << 50
RELEASE_BATCH = 64               # pages freed under one look at the LRU lists
AROUND = U(FAULT_AROUND_BYTES)
_READ_ONLY = _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED
_WRITTEN = _READ_ONLY | _PAGE_RW | _PAGE_DIRTY


@kernel("u64(cpu_t*, mm_t*, u64)")
def pte_alloc(cpu, mm, address):
    """Host address of the leaf entry of `address`, making tables as needed; 0: no memory; HUGE_THERE."""
    machine = machine_of(cpu)
    table, shift = pgd_of(machine, mm), machine.paging.pgdir_shift
    while shift > PTE_SHIFT:
        where = entry_at(machine.paging, table, address, shift)
        entry = entry_load(where)
        if entry == U(0):
            pfn = alloc_table_page(cpu)
            if pfn == 0:
                return U(0)
            entry = install_table(cpu, mm, where, pfn)
        if pmd_trans_huge(entry):
            return HUGE_THERE
        table = table_at(machine, entry)
        shift -= machine.paging.table_bits
    return entry_at(machine.paging, table, address, shift)


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
    get_page(page)                       # for its way to the LRU list; a late try_get_page may come between: atomically
    if not ptep_cmpxchg(ptep, U(0), pfn_pte(pfn, _WRITTEN | vm_page_nx(machine, vma))):
        folio_remove_rmap(machine, cpu, pfn)       # another thread was faster
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
    on the way to the LRU list.
    """
    machine = machine_of(cpu)
    page, alone, nx = page_of(machine, new), load_acquire(mm, "users") == 1, vm_page_nx(machine, vma)
    get_page(page)
    if alone:
        page.flags |= U(PG_anon_exclusive)
    if not ptep_cmpxchg(ptep, pte, pfn_pte(new, nx | (_WRITTEN if alone else _READ_ONLY))):
        put_page(cpu, new)
        return False
    flush_tlb_mm_range(cpu, vma.mm, address, address + U(4096))
    if not alone:
        folio_set(page, PG_anon_exclusive)
        ptep_cmpxchg(ptep, pfn_pte(new, nx | _READ_ONLY), pfn_pte(new, nx | _WRITTEN))
    folio_add_new_lru(cpu, new)
    return True


# Copying waits for the host's memory, and a host's own prefetching has forgotten by the next fault where it was. So while a
# page is copied, the next ones are asked for, half a page at a time: the frame that is to take the next copy, and if pages
# are copied in the order of their addresses, what is to be copied next.

@hot
def prefetch_mapped(machine, address, ptep, pages, half):
    """Half of what is mapped `pages` behind `address`, if the same table says so."""
    if (address + (U(pages) << U(12))) >> pmd_shift(machine) == address >> pmd_shift(machine):
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
    special, in_order = pte & _PAGE_SPECIAL != U(0), address >> U(12) == cpu.copied + U(1)
    cpu.copied = address >> U(12)
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
            return VM_FAULT_RETRY            # it is being moved, or reclaimed
        if ptep_get(ptep) != pte:
            put_page(cpu, old)
            put_page(cpu, new)
            return VM_FAULT_OK
        copy_highpage(machine, cpu, new, old)
        prefetch_free(machine, cpu, new, 0)
    folio_add_anon_rmap(machine, cpu, page_of(machine, new), new, vma, address)
    if not install_copy(cpu, mm, vma, address & ~U(4095), ptep, pte, new):
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
    """True if the only reference to an anonymous page is that of the one entry that maps it."""
    page = page_of(machine_of(cpu), pfn)
    if load_acquire(page, "mapcount") != 1:
        return False
    if load_acquire(page, "refcount") > 1 and not folio_test(page, PG_lru):
        lru_add_drain(cpu)
    if folio_test(page, PG_swapcache) and folio_trylock(page):
        folio_free_swap(cpu, pfn)
        folio_unlock(page)
    return load_acquire(page, "refcount") == 1


@kernel("i64(cpu_t*, mm_t*, i64, u64, u64, u64)")
def do_wp_page(cpu, mm, vma_number, address, ptep, pte):
    """A write to a page mapped read-only in a writable range: use it again if we are the last sharer, else copy it."""
    machine = machine_of(cpu)
    vma, old = vma_of(machine, vma_number), pte_pfn(pte)
    special = pte & _PAGE_SPECIAL != U(0)
    if vma.flags & VM_SHARED:
        if vma.i_mapping != 0 and not vma_is_shmem(machine, vma):
            return wp_page_shared(cpu, vma, address, ptep, pte)
        ptep_cmpxchg(ptep, pte, pte | _PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED)
        return VM_FAULT_OK
    page = page_of(machine, old)
    if not special and folio_test(page, PG_anon) and (folio_test(page, PG_anon_exclusive) or
                                                      wp_can_reuse_anon_folio(cpu, old)):
        folio_set(page, PG_anon_exclusive)
        if ptep_cmpxchg(ptep, pte, pte | _PAGE_RW | _PAGE_DIRTY | _PAGE_ACCESSED):
            count_vm_events(machine, cpu.id, PGREUSE, 1)
        return VM_FAULT_OK
    return wp_page_copy(cpu, mm, vma_number, address, ptep, pte)


@kernel("i64(cpu_t*, mm_t*, i64, u64, u64, u64, i64, bool)")
def map_swapped_page(cpu, mm, vma_number, address, ptep, pte, pfn, write):
    """Map a locked page of the swap cache in the place of its swap entry; a VM_FAULT_* code."""
    machine = machine_of(cpu)
    page, vma, entry = page_of(machine, pfn), vma_of(machine, vma_number), pte_to_swp_entry(pte)
    if load_acquire(vma, "mapping") == 0 and not anon_vma_prepare(cpu, vma_number):
        return VM_FAULT_OOM
    if load_acquire(page, "mapcount") == 0:
        page.mapping, page.index = vma.mapping, vma.pgoff + np.int64((address - vma.start) >> U(12))
        folio_set(page, PG_anon)
    get_page(page)
    folio_dup_rmap(machine, cpu, pfn)
    exclusive = pte & _SWP_EXCLUSIVE != U(0)
    bits = _READ_ONLY | vm_page_nx(machine, vma)
    if exclusive:
        folio_set(page, PG_anon_exclusive)
        if write:
            bits |= _WRITTEN
    if not ptep_cmpxchg(ptep, pte, pfn_pte(pfn, bits)):
        folio_remove_rmap(machine, cpu, pfn)
        put_page(cpu, pfn)
        return VM_FAULT_OK               # another thread was faster
    fetch_add(mm.rss, MM_ANONPAGES, 1)
    fetch_add(mm.rss, MM_SWAPENTS, -1)
    swap_entry_put(cpu, entry, 1)
    if vm_swap_full(machine) or vma.flags & VM_LOCKED or (write and not exclusive):
        folio_free_swap(cpu, pfn)
    return VM_FAULT_OK


@kernel("i64(cpu_t*, mm_t*, i64, u64, bool, u64, u64)")
def do_swap_page(cpu, mm, vma_number, address, write, ptep, pte):
    """A page that was swapped out: from the swap cache, or read from its slot."""
    machine, code = machine_of(cpu), VM_FAULT_OK
    entry = pte_to_swp_entry(pte)
    pfn = swap_cache_get_hit(cpu, entry)
    if pfn == 0:
        pfn = swap_cluster_readahead(cpu, vma_of(machine, vma_number), address, entry)
        if pfn == 0:                     # gone meanwhile, by another thread's fault or unmapping: or no memory
            return VM_FAULT_OOM if ptep_get(ptep) == pte else VM_FAULT_OK
        code = VM_FAULT_MAJOR
        count_vm_events(machine, cpu.id, PGMAJFAULT, 1)
    page = page_of(machine, pfn)
    folio_lock(cpu, page)
    if folio_test(page, PG_swapcache) and page.private == entry and ptep_get(ptep) == pte:
        answer = map_swapped_page(cpu, mm, vma_number, address, ptep, pte, pfn, write)
        if answer != VM_FAULT_OK:
            code = answer
    folio_unlock(page)
    put_page(cpu, pfn)
    if write and code != VM_FAULT_OOM:
        now = ptep_get(ptep)
        if pte_present(now) and now & _PAGE_RW == U(0) and do_wp_page(cpu, mm, vma_number, address, ptep, now) == VM_FAULT_OOM:
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
    if ptep == HUGE_THERE:               # another thread was faster
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
    if write and pte & _PAGE_RW == U(0):
        return do_wp_page(cpu, mm, vma_number, address, ptep, pte)
    return VM_FAULT_OK           # spurious: another CPU has served it


# -- unmapping -----------------------------------------------------------------------------------------------

# mmu_gather: between taking pages (and tables) out and freeing them lies the flush, so that no CPU still reaches them.
# Word 0 of the CPU's gather array counts; then page numbers (all pages of a huge one: WHOLE more), tables as negative ones.

@hot
def gather_of(machine, cpu):
    """Pages and tables this CPU has taken out and not yet freed."""
    return i64.array(machine.gather + U(cpu.id * GATHER_PAGES * 8))


@hot
def tlb_remove(gather, entry):
    """Remember one; True when the array is full and must be flushed."""
    gather[0] += 1
    gather[gather[0]] = entry
    return gather[0] == GATHER_PAGES - 1


@kernel("void(cpu_t*, i64, u64, u64)")
def tlb_flush_mmu(cpu, mm_number, start, end):
    """Every CPU forgets [start, end), then what was gathered is freed."""
    machine = machine_of(cpu)
    mm, gather = mm_of(machine, mm_number), gather_of(machine, cpu)
    shift = pmd_shift(machine) if cpu.cleared == CLEARED_PMDS else U(12)
    if cpu.cleared == CLEARED_PUDS:
        shift += machine.paging.table_bits
    flush_tlb_mm_stride(cpu, mm_number, start, end, shift)
    cpu.cleared = 0
    lru_add_drain(cpu)
    first, end_of_all = 1, gather[0] + 1
    while first < end_of_all:
        i = first
        while i < end_of_all and i < first + RELEASE_BATCH and 0 < gather[i] < WHOLE:
            i += 1
        for page in range(first, i):
            free_swap_cache(cpu, gather[page])
        release_pages(cpu, gather, first, i)
        if i < end_of_all and gather[i] >= WHOLE:
            release_huge_pages(cpu, gather[i] - WHOLE)
            i += 1
        elif i < end_of_all and gather[i] < 0:
            free_table(cpu, mm, -gather[i])
            i += 1
        first = i
    gather[0] = 0


@hot
def zap_file_pte(cpu, pfn, pte):
    """What the entry knew of a page of a file, the page knows from now on."""
    if pte & _PAGE_DIRTY != U(0):
        folio_mark_dirty(cpu, pfn)
    if pte & _PAGE_ACCESSED != U(0):
        folio_mark_accessed(cpu, pfn)


@kernel("i64(machine_t*, cpu_t*, mm_t*, u64)")
def zap_pte(machine, cpu, mm, pte):
    """A leaf entry has been taken out: account for it; the pfn whose reference is to be dropped, or 0."""
    if is_swap_entry(pte):
        fetch_add(mm.rss, MM_SWAPENTS, -1)
        free_swap_and_cache(cpu, pte_to_swp_entry(pte))
        return 0
    if is_migration_entry(pte):          # the page may be gone by now: the entry itself says of which kind it was
        other = MM_FILEPAGES if pte & _MIGRATION_FILE != U(0) else MM_SHMEMPAGES
        fetch_add(mm.rss, MM_ANONPAGES if pte & _MIGRATION_ANON != U(0) else other, -1)
        return 0
    if not pte_present(pte) or pte & _PAGE_SPECIAL != U(0):
        return 0
    pfn = pte_pfn(pte)
    fetch_add(mm.rss, rss_counter(page_of(machine, pfn)), -1)
    if page_of(machine, pfn).flags & U(PG_anon | PG_swapbacked) == U(0):
        zap_file_pte(cpu, pfn, pte)
    elif pte & _PAGE_DIRTY != U(0) and not folio_test(page_of(machine, pfn), PG_anon | PG_dirty):
        folio_set(page_of(machine, pfn), PG_dirty)       # a shared object's page lives on, and is swapped out with this
    folio_remove_rmap(machine, cpu, pfn)
    return pfn


@hot
def covers_huge(machine, address, end):
    """True if a range covers all of the huge page at its beginning."""
    return address == haddr_of(machine, address) and end - address >= pmd_size(machine)


@kernel("bool(cpu_t*, i64, u64, u64, u64)")
def zap_huge_pud(cpu, mm_number, start, address, end):
    """The same for the entry of a gigantic page, which is never taken apart."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    shift = pmd_shift(machine) + machine.paging.table_bits
    size = U(1) << shift
    where = hugetlb_walk(machine, mm, address, shift) if machine.nr_hstates > 1 else U(0)
    if where == U(0) or address & (size - U(1)) != U(0) or end - address < size:
        return False
    pfn = hugetlb_zap(cpu, mm, vma_of(machine, find_vma(machine, mm_number, address)), address, where)
    cpu.cleared |= CLEARED_PUDS
    if pfn > 0 and tlb_remove(gather_of(machine, cpu), pfn):
        tlb_flush_mmu(cpu, mm_number, start, address + size)
    return pfn > 0


@kernel("bool(cpu_t*, i64, u64, u64, u64)")
def zap_huge_pmd(cpu, mm_number, start, address, end):
    """Take the huge entry of an address out if the range covers all of it, and gather its pages; else take it apart.

    True if the entry is gone. `start`: from where on what is gathered has not been flushed.
    """
    machine = machine_of(cpu)
    mm, gather = mm_of(machine, mm_number), gather_of(machine, cpu)
    where = huge_entry_offset(machine, mm, address)
    if where == U(0):
        return zap_huge_pud(cpu, mm_number, start, address, end)
    entry = entry_load(where)
    if is_hugetlb_entry(machine, entry):
        if not covers_huge(machine, address, end):
            return False
        pfn = hugetlb_zap(cpu, mm, vma_of(machine, find_vma(machine, mm_number, address)), address, where)
    elif covers_huge(machine, address, end):
        pfn = take_huge_pmd(cpu, mm, where)
        cpu.cleared |= CLEARED_PMDS
        if pfn >= 0 and tlb_remove(gather, -np.int64(cpu.scratch)):
            tlb_flush_mmu(cpu, mm_number, start, address + pmd_size(machine))
        pfn += WHOLE if pfn > 0 else 0
    else:
        split_huge_pmd(cpu, where)
        return False
    cpu.cleared |= CLEARED_PMDS
    if pfn > 0 and tlb_remove(gather, pfn):
        tlb_flush_mmu(cpu, mm_number, start, address + pmd_size(machine))
    return pfn >= 0


@kernel("bool(cpu_t*, i64, u64, u64)")
def unmap_page_range(cpu, mm_number, start, end):
    """Take every page out of [start, end) and gather them; True if entries changed. Mirrors unmap_page_range."""
    machine = machine_of(cpu)
    mm, gather = mm_of(machine, mm_number), gather_of(machine, cpu)
    address, changed, step = start, False, ptep_step(machine)
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            if zap_huge_pmd(cpu, mm_number, start, address, end):
                changed = True
            address = skip_missing(machine, mm, address)
            continue
        table_end = pmd_addr_end(machine, address, end)
        while address < table_end:
            if ptep_get(ptep) != U(0):
                changed = True
                cpu.cleared |= CLEARED_PTES
                pfn = zap_pte(machine, cpu, mm, ptep_get_and_clear(ptep))
                if pfn != 0 and tlb_remove(gather, pfn):
                    tlb_flush_mmu(cpu, mm_number, start, address + U(4096))
            address += U(4096)
            ptep += step
    return changed


@kernel("void(cpu_t*, i64, u64, u64)")
def zap_page_range(cpu, mm_number, start, end):
    """Take pages out, flush, free: madvise(MADV_DONTNEED).

    Several threads may do so at once: who finds an entry gone flushes too, since who took it out may not have flushed
    yet (mm_tlb_flush_nested).
    """
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    gather_of(machine, cpu)[0] = 0
    fetch_add(mm, "tlb_flush_pending", 1)
    if unmap_page_range(cpu, mm_number, start, end) or load_acquire(mm, "tlb_flush_pending") > 1:
        tlb_flush_mmu(cpu, mm_number, start, end)
    fetch_add(mm, "tlb_flush_pending", -1)


@kernel("bool(cpu_t*, i64, u64, u64, u64, u64, u64)")
def free_tables_at(cpu, mm_number, shift, start, end, floor, ceiling):
    """Take out and gather the tables hanging in entries of 2**shift bytes each, for [start, end), that cover nothing
    outside [floor, ceiling); True if any. Tables below them must be gone already.
    """
    machine, span = machine_of(cpu), U(1) << shift
    mm, address, changed = mm_of(machine, mm_number), start & ~(span - U(1)), False
    while address < end:
        where = entry_offset(machine, mm, address, shift)
        if where == U(0):                # nothing below: on to where the missing table ends
            address = skip_missing(machine, mm, address)
            continue
        entry = entry_load(where)
        if entry != U(0) and floor <= address and address + span <= ceiling:
            entry_exchange(where, U(0))
            changed = True
            if tlb_remove(gather_of(machine, cpu), -pte_pfn(entry)):
                tlb_flush_mmu(cpu, mm_number, start, end)
        address += span
    return changed


@kernel("bool(cpu_t*, i64, u64, u64, u64, u64)")
def free_pgd_range(cpu, mm_number, start, end, floor, ceiling):
    """Gather the page tables that only served [start, end), from the leaves up; True if any."""
    changed, machine = False, machine_of(cpu)
    shift = pmd_shift(machine)
    while shift <= machine.paging.pgdir_shift:
        if free_tables_at(cpu, mm_number, shift, start, end, floor, ceiling):
            changed = True
        shift += machine.paging.table_bits
    return changed


@kernel("bool(machine_t*, u64)")
def can_change_pte_writable(machine, pte):
    """mprotect may allow writing at once where the page is ours alone."""
    if pte & _PAGE_SPECIAL != U(0):
        return False
    page = page_of(machine, pte_pfn(pte))
    return folio_test(page, PG_anon) and folio_test(page, PG_anon_exclusive)


@kernel("void(cpu_t*, vma_t*, u64, u64)")
def change_protection(cpu, vma, start, end):
    """mprotect's work on the entries of [start, end): take permission away, or give it where nothing is to be copied."""
    machine = machine_of(cpu)
    if vma.flags & VM_HUGETLB:
        hugetlb_change_protection(cpu, vma, start, end)
        return
    mm, nx, flags = mm_of(machine, vma.mm), vm_page_nx(machine, vma), vma.flags
    writable, private = flags & VM_WRITE != 0, flags & VM_SHARED == 0
    accessible = flags & (VM_READ | VM_WRITE | VM_EXEC) != 0
    address, changed = start, False
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            where = huge_entry_offset(machine, mm, address)
            if where != U(0) and not covers_huge(machine, address, end):
                split_huge_pmd(cpu, where)
                changed = True
                continue
            if where != U(0) and change_huge_pmd(cpu, vma, where):
                changed = True
            address = skip_missing(machine, mm, address)
            continue
        pte = ptep_get(ptep)
        wanted = pte
        if pte_present(pte) or is_migration_entry(pte):
            if not writable:
                wanted &= ~_PAGE_RW
            wanted = wanted | _PAGE_USER if accessible else wanted & ~_PAGE_USER
            wanted = (wanted & ~_PAGE_NX) | nx
        if pte_present(pte):
            if writable and private and can_change_pte_writable(machine, pte):
                wanted |= _PAGE_RW
        if wanted != pte:
            if not ptep_cmpxchg(ptep, pte, wanted):
                continue
            changed = True
        address += U(4096)
    if changed:
        flush_tlb_mm_range(cpu, vma.mm, start, end)


# -- fork ----------------------------------------------------------------------------------------------------

@kernel("bool(machine_t*, cpu_t*, mm_t*, u64, u64, u64)")
def copy_swap_pte(machine, cpu, child, source, target, pte):
    """Share a swapped-out page with the child (copy_nonpresent_pte). False: look again."""
    entry = pte_to_swp_entry(pte)
    if not swap_duplicate(cpu, entry, 1):
        return False
    shared = pte & ~_SWP_EXCLUSIVE
    if not ptep_cmpxchg(source, pte, shared):
        free_swap_and_cache(cpu, entry)
        return False
    fetch_add(child.rss, MM_SWAPENTS, 1)
    set_pte(target, shared)
    return True


@kernel("bool(machine_t*, cpu_t*, mm_t*, u64, u64)")
def copy_present_pte(machine, cpu, child, source, target):
    """Share one page with the child: both lose write permission. False: look again.

    The reference comes first, then a second look at the entry: migration may have moved the page in between.
    """
    pte = ptep_get(source)
    if is_swap_entry(pte):
        return copy_swap_pte(machine, cpu, child, source, target, pte)
    if is_migration_entry(pte):
        return False
    if not pte_present(pte):
        return True
    copy = pte & ~_PAGE_RW
    if copy != pte and not ptep_cmpxchg(source, pte, copy):
        return False
    if pte & _PAGE_SPECIAL == U(0):
        page = page_of(machine, pte_pfn(pte))
        if not try_get_page(page):
            return False
        if pte_pfn(ptep_get(source)) != pte_pfn(pte) or not pte_present(ptep_get(source)):
            put_page(cpu, pte_pfn(pte))
            return False
        if folio_test(page, PG_anon_exclusive):
            folio_clear(page, PG_anon_exclusive)
        folio_dup_rmap(machine, cpu, pte_pfn(pte))
        fetch_add(child.rss, rss_counter(page), 1)
    set_pte(target, copy)                # as dirty as it was: the other entry may go first, and its mark with it
    return True


@kernel("i64(cpu_t*, mm_t*, vma_t*, u64, u64, i64)")
def copy_ptes(cpu, child, vma, source, target, n):
    """Share the pages of n entries with the child; how many came before one that changes, or is being migrated.

    Under the family's lock, as the walks that take entries away: reclaim writes into a swap entry that the page was exclusive,
    which it no longer is once we are here.
    """
    machine, done, mapping = machine_of(cpu), 0, vma.mapping
    lock, step = address_of(mapping_of(machine, mapping), "lock"), ptep_step(machine)
    if mapping != 0:
        spin_lock(cpu, lock)
    while done < n and copy_present_pte(machine, cpu, child, source, target):
        source, target, done = source + step, target + step, done + 1
    if mapping != 0:
        spin_unlock(lock)
    return done


@kernel("void(cpu_t*, mm_t*, vma_t*, u64, u64, i64)")
def copy_pte_range(cpu, child, vma, source, target, n):
    """Share the pages of n entries of one table with the child."""
    done, tries, step = 0, 0, ptep_step(machine_of(cpu))
    while done < n:
        done += copy_ptes(cpu, child, vma, source + U(done) * step, target + U(done) * step, n - done)
        if done < n:
            tries += 1
            relax(cpu, tries)


@kernel("i64(cpu_t*, i64, i64, i64)")
def copy_page_range(cpu, parent_number, child_number, vma_number):
    """Share a VMA's pages with a child's page tables; 0 or VM_FAULT_OOM. The caller flushes the parent.

    Entries of a shared object, or of a file of which nothing is private, are not copied (vma_needs_copy): the child's
    faults find the pages.
    """
    machine = machine_of(cpu)
    parent, child = mm_of(machine, parent_number), mm_of(machine, child_number)
    vma = vma_of(machine, vma_number)
    if vma.flags & VM_SHARED or (vma.file != 0 and vma.mapping == 0):
        return VM_FAULT_OK
    if vma.flags & VM_HUGETLB:
        return VM_FAULT_OK if copy_hugetlb_page_range(cpu, parent, child, vma) else VM_FAULT_OOM
    address, step = vma.start, ptep_step(machine)
    while address < vma.end:
        source = pte_offset(machine, parent, address)
        if source == U(0):
            where, code = huge_entry_offset(machine, parent, address), FALLBACK
            if where != U(0):
                code = copy_huge_pmd(cpu, parent_number, child_number, address, where)
                if code == VM_FAULT_OOM:
                    return VM_FAULT_OOM
            address = address + pmd_size(machine) if code == VM_FAULT_OK else skip_missing(machine, parent, address)
            continue
        table_end = pmd_addr_end(machine, address, vma.end)
        while address < table_end and ptep_get(source) == U(0):
            address, source = address + U(4096), source + step
        if address < table_end:
            target = pte_alloc(cpu, child, address)
            if target == U(0):
                return VM_FAULT_OOM
            copy_pte_range(cpu, child, vma, source, target, np.int64((table_end - address) >> U(12)))
            address = table_end
    return VM_FAULT_OK
