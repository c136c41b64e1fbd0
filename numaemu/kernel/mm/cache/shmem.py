"""Shared anonymous memory and the pages of tmpfs files: Linux's mm/shmem.c.

The pages of a shared object hang in its tree (xarray.py), which holds one reference to each. A slot goes from 0 to a
page, from a page to a swap entry and back, by compare-exchange. The tree is freed with the last VMA that maps it; who
looks into it without one (reclaim, compaction) holds the family meanwhile.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u64
from numaemu.kernel.arch.pgtable import pfn_pte, pte_pfn
from numaemu.kernel.core.smp import machine_of, relax
from numaemu.kernel.core.xarray import (
    MAX_INDEX,
    entry_is_page,
    page_entry,
    xa_create,
    xa_destroy,
    xa_find,
    xa_get_page,
    xa_is_value,
    xa_load,
    xa_slot,
)
from numaemu.kernel.include.gfp import __GFP_ZERO, GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.mm import linear_page_index
from numaemu.kernel.include.mm_types import PG_anon, PG_dirty, PG_swapbacked, PG_swapcache
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NR_FILE_PAGES, NR_SHMEM, mod_node_page_state
from numaemu.kernel.mm.fault.rmap import mapping_of, mapping_put
from numaemu.kernel.mm.page_alloc.page_alloc import get_page, put_page
from numaemu.kernel.mm.reclaim.lru import folio_lock, folio_set, folio_test, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import folio_add_new_lru
from numaemu.kernel.mm.space.mempolicy import mpol_free_shared_policy, vma_alloc_folio
from numaemu.kernel.mm.space.util import vm_acct_memory, vm_enough_memory
from numaemu.kernel.mm.swap.swap_state import SWAP_PFN, SWAP_READ, swap_cache_get_hit, swap_cluster_readahead
from numaemu.kernel.mm.swap.swapfile import (
    add_to_swap_cache,
    delete_from_swap_cache,
    folio_alloc_swap,
    free_swap_and_cache,
    swap_duplicate,
    swap_entry_put,
)
from numaemu.uapi import errno

U = np.uint64
AGAIN = -1


@hot
def shmem_object(vma):
    """The object whose pages a VMA shows: that of a tmpfs file, or the VMA's own."""
    return vma.i_mapping if vma.i_mapping != 0 else vma.mapping


@hot
def vma_is_shmem(machine, vma):
    """True if a VMA maps a tmpfs file."""
    return vma.i_mapping != 0 and mapping_of(machine, vma.i_mapping).tmpfs != 0


@kernel("void(machine_t*, cpu_t*, i64, i64)")
def count_shmem(machine, cpu, pfn, sign):
    node = page_to_nid(machine, pfn)
    mod_node_page_state(machine, cpu.id, node, NR_SHMEM, sign)
    mod_node_page_state(machine, cpu.id, node, NR_FILE_PAGES, sign)


@kernel("void(machine_t*, mapping_t*, i64)")
def shmem_unacct_blocks(machine, mapping, pages):
    """Pages of a tmpfs file are gone, and what they were charged; other objects are charged whole."""
    if mapping.tmpfs:
        fetch_add(mapping, "acct", -pages)
        fetch_add(machine, "tmpfs_pages", -pages)
        vm_acct_memory(machine, -pages)


@kernel("bool(cpu_t*, mapping_t*)")
def shmem_acct_block(cpu, mapping):
    """Charge one page more of a tmpfs file; False: the file system, half of the memory, is full, or nothing may be promised."""
    machine = machine_of(cpu)
    if not mapping.tmpfs:
        return True
    if fetch_add(machine, "tmpfs_pages", 1) >= machine.total_ram_pages // 2 or vm_enough_memory(cpu, cpu.mm, 1) != 0:
        fetch_add(machine, "tmpfs_pages", -1)
        return False
    fetch_add(mapping, "acct", 1)
    return True


@kernel("i64(cpu_t*, vma_t*, u64, u64, i64)")
def shmem_add_folio(cpu, vma, address, slot, index):
    """A new page of a shared object goes into its empty slot, with one reference for the tree and one for the caller."""
    machine = machine_of(cpu)
    mapping = mapping_of(machine, shmem_object(vma))
    if not shmem_acct_block(cpu, mapping):
        return -errno.ENOSPC
    pfn = vma_alloc_folio(cpu, GFP_HIGHUSER_MOVABLE | __GFP_ZERO, vma, address)
    if pfn == 0:
        shmem_unacct_blocks(machine, mapping, 1)
        return 0
    page = page_of(machine, pfn)
    page.mapping, page.index = shmem_object(vma), index
    page.flags |= U(PG_swapbacked)
    fetch_add(page, "refcount", 2)  # the tree's, that of its way to the LRU list
    if compare_exchange(u64.array(slot), 0, U(0), page_entry(pfn)) != U(0):
        shmem_unacct_blocks(machine, mapping, 1)
        fetch_add(page, "refcount", -2)  # another CPU was faster: look again
        put_page(cpu, pfn)
        return AGAIN
    folio_add_new_lru(cpu, pfn)
    count_shmem(machine, cpu, pfn, 1)
    fetch_add(mapping, "nr_pages", 1)
    return pfn


@kernel("i64(cpu_t*, vma_t*, u64, u64, i64, u64)")
def shmem_swapin_folio(cpu, vma, address, slot, index, value):
    """A page of a shared object comes back from swap, with a reference taken: its pfn, with SWAP_READ if it was read
    from there; 0: no memory, or AGAIN.
    """
    machine = machine_of(cpu)
    entry, read = pte_pfn(value), 0
    pfn = swap_cache_get_hit(cpu, entry)
    if pfn == 0:
        answer = swap_cluster_readahead(cpu, vma, address, entry)
        if answer == 0:
            return 0 if load_acquire(u64.array(slot), 0) == value else AGAIN
        pfn, read = answer & SWAP_PFN, answer & SWAP_READ
    page = page_of(machine, pfn)
    folio_lock(cpu, page)
    ours = folio_test(page, PG_swapcache) and page.private == entry and load_acquire(u64.array(slot), 0) == value
    if ours:
        page.mapping, page.index = shmem_object(vma), index
        get_page(page)
        ours = compare_exchange(u64.array(slot), 0, value, page_entry(pfn)) == value
        if ours:
            count_shmem(machine, cpu, pfn, 1)
            fetch_add(mapping_of(machine, page.mapping), "nr_pages", 1)
            delete_from_swap_cache(cpu, pfn)
            swap_entry_put(cpu, entry, 1)
            folio_set(page, PG_dirty)
        else:
            put_page(cpu, pfn)
    folio_unlock(page)
    if not ours:
        put_page(cpu, pfn)
        return AGAIN
    return pfn | read


@kernel("i64(cpu_t*, vma_t*, u64)")
def shmem_get_folio_gfp(cpu, vma, address):
    """The page of a shared object behind `address`, with a reference taken; allocated if it is not there yet.

    The pfn (with SWAP_READ if it was read from swap), 0: no memory, or -ENOSPC. A page that migration moves at this moment
    is looked up again.
    """
    machine = machine_of(cpu)
    mapping = mapping_of(machine, shmem_object(vma))
    index = linear_page_index(vma, address)
    slot, tries = xa_create(cpu, mapping, index), 0
    if slot == U(0):
        return 0
    while True:
        entry = load_acquire(u64.array(slot), 0)
        if not entry_is_page(entry):
            pfn = (
                shmem_swapin_folio(cpu, vma, address, slot, index, entry)
                if xa_is_value(entry)
                else shmem_add_folio(cpu, vma, address, slot, index)
            )
            if pfn != AGAIN:
                return pfn
            continue
        pfn = xa_get_page(cpu, slot, entry)
        if pfn != 0:
            return pfn
        tries += 1
        relax(cpu, tries)


@hot
def shmem_get_folio(cpu, vma, address):
    """The same for who does not ask where the page comes from."""
    pfn = shmem_get_folio_gfp(cpu, vma, address)
    return pfn & SWAP_PFN if pfn > 0 else pfn


@kernel("i64(cpu_t*, mapping_t*, i64)")
def shmem_find_folio(cpu, mapping, index):
    """The page of an object that is there already, with a reference taken; its pfn or 0 (none, or it is moving)."""
    machine = machine_of(cpu)
    slot = xa_slot(machine, mapping, index)
    if slot == U(0):
        return 0
    entry = load_acquire(u64.array(slot), 0)
    return xa_get_page(cpu, slot, entry) if entry_is_page(entry) else 0


@kernel("void(cpu_t*, i64)")
def shmem_evict(cpu, number):
    """The last VMA of a shared object is gone, or who held it after that: free its pages, its charge and the object."""
    machine = machine_of(cpu)
    mapping, index = mapping_of(machine, number), 0
    while True:
        index = xa_find(machine, mapping, index, MAX_INDEX)
        if index < 0:
            break
        entry = xa_load(machine, mapping, index)
        if entry_is_page(entry):
            count_shmem(machine, cpu, pte_pfn(entry), -1)
            put_page(cpu, pte_pfn(entry))
        elif xa_is_value(entry):
            free_swap_and_cache(cpu, pte_pfn(entry))
        index += 1
    xa_destroy(cpu, mapping)
    mpol_free_shared_policy(cpu, number)
    if mapping.tmpfs:
        shmem_unacct_blocks(machine, mapping, mapping.acct)
    else:
        vm_acct_memory(machine, -mapping.acct)
    mapping_put(cpu, number)


# -- holding a family: for who moves pages without the mmap_lock of anybody who maps them --------------------------


@kernel("void(cpu_t*, i64)")
def release_mapping(cpu, number):
    """Let a family go; the last holder takes its pages and its number along (free_vma does so for VMAs)."""
    mapping = mapping_of(machine_of(cpu), number)
    if fetch_add(mapping, "users", -1) == 1:
        if mapping.shared:
            shmem_evict(cpu, number)
        else:
            mapping_put(cpu, number)


@hot
def try_hold_mapping(mapping):
    """One more holder, unless the family has gone."""
    while True:
        users = load_acquire(mapping, "users")
        if users == 0:
            return False
        if compare_exchange(mapping, "users", users, users + 1) == users:
            return True


@kernel("i64(cpu_t*, i64)")
def folio_hold_mapping(cpu, pfn):
    """Hold the family of a page, to which the caller has a reference; its number, or 0: the page is nobody's any more.

    The number may be another family's by now; it is the page's own if the page is still mapped, or in the object's
    tree, after the family is held. Mirrors folio_get_anon_vma.
    """
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    number = page.mapping
    if number == 0 or not try_hold_mapping(mapping_of(machine, number)):
        return 0
    if folio_test(page, PG_anon):
        if load_acquire(page, "mapcount") > 0:
            return number
    else:
        found = shmem_find_folio(cpu, mapping_of(machine, number), page.index)
        if found != 0:
            put_page(cpu, found)
        if found == pfn:
            return number
    release_mapping(cpu, number)
    return 0


# -- reclaim: to swap ----------------------------------------------------------------------------------------


@kernel("bool(cpu_t*, i64, i64)")
def shmem_delete_from_page_cache(cpu, pfn, entry):
    """A locked page of an object, whose family the caller holds, leaves the tree: a swap entry (or 0: nothing) stays.

    The tree's reference is the caller's to drop. False: it is not there any more.
    """
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    mapping = mapping_of(machine, page.mapping)
    slot = xa_slot(machine, mapping, page.index)
    value = pfn_pte(entry, U(3)) if entry != 0 else U(0)
    if slot == U(0) or compare_exchange(u64.array(slot), 0, page_entry(pfn), value) != page_entry(pfn):
        return False
    count_shmem(machine, cpu, pfn, -1)
    fetch_add(mapping, "nr_pages", -1)
    if entry == 0:
        shmem_unacct_blocks(machine, mapping, 1)
    return True


@kernel("bool(cpu_t*, i64)")
def shmem_writepage(cpu, pfn):
    """Move a locked, unmapped page of an object from its tree to the swap cache, to be written; False: it stays."""
    machine = machine_of(cpu)
    family = folio_hold_mapping(cpu, pfn)
    if family == 0:
        return False
    entry = folio_alloc_swap(cpu)
    moved = entry != 0 and swap_duplicate(cpu, entry, 1)
    if moved:
        get_page(page_of(machine, pfn))
        add_to_swap_cache(cpu, pfn, entry)
        moved = shmem_delete_from_page_cache(cpu, pfn, entry)
        if moved:
            put_page(cpu, pfn)
        else:
            swap_entry_put(cpu, entry, 1)
            delete_from_swap_cache(cpu, pfn)
    release_mapping(cpu, family)
    return moved
