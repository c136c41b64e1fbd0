"""Shared anonymous memory: Linux's mm/shmem.c as far as MAP_SHARED | MAP_ANONYMOUS needs it.

The pages of a shared object hang in its tree (xarray.py). Slots go from 0 to a page once, by compare-exchange; the tree
holds one reference to each page. It is freed with the last VMA that maps it.
"""
import numpy as np

from numaemu.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compile import kernel
from numaemu.kernel.gfp import __GFP_ZERO, GFP_HIGHUSER_MOVABLE
from numaemu.kernel.mempolicy import vma_alloc_folio
from numaemu.kernel.mm_types import PG_swapbacked
from numaemu.kernel.mmzone import page_of, page_to_nid
from numaemu.kernel.page_alloc import put_page, try_get_page
from numaemu.kernel.pgtable import pte_pfn
from numaemu.kernel.rmap import mapping_of, mapping_put
from numaemu.kernel.smp import machine_of, relax
from numaemu.kernel.swap import folio_add_new_lru
from numaemu.kernel.vmstat import NR_FILE_PAGES, NR_SHMEM, mod_node_page_state
from numaemu.kernel.xarray import MAX_INDEX, entry_is_page, page_entry, xa_create, xa_destroy, xa_find, xa_load, xa_slot
from numaemu.pointer import u64

U = np.uint64
AGAIN = -1


@kernel("void(machine_t*, cpu_t*, i64, i64)")
def count_shmem(machine, cpu, pfn, sign):
    node = page_to_nid(machine, pfn)
    mod_node_page_state(machine, cpu.id, node, NR_SHMEM, sign)
    mod_node_page_state(machine, cpu.id, node, NR_FILE_PAGES, sign)


@kernel("i64(cpu_t*, vma_t*, u64, u64, i64)")
def shmem_add_folio(cpu, vma, address, slot, index):
    """A new page of a shared object goes into its empty slot, with one reference for the tree and one for the caller."""
    machine = machine_of(cpu)
    pfn = vma_alloc_folio(cpu, GFP_HIGHUSER_MOVABLE | __GFP_ZERO, vma, address)
    if pfn == 0:
        return 0
    page = page_of(machine, pfn)
    page.mapping, page.index = vma.mapping, index
    page.flags |= U(PG_swapbacked)
    page.refcount = 3                    # the caller's, the tree's, that of its way to the LRU list
    if compare_exchange(u64.array(slot), 0, U(0), page_entry(pfn)) != U(0):
        page.refcount = 1                # another CPU was faster: look again
        put_page(cpu, pfn)
        return AGAIN
    folio_add_new_lru(cpu, pfn)
    count_shmem(machine, cpu, pfn, 1)
    fetch_add(mapping_of(machine, vma.mapping), "nr_pages", 1)
    return pfn


@kernel("i64(cpu_t*, vma_t*, u64)")
def shmem_get_folio(cpu, vma, address):
    """The page of a shared object behind `address`, with a reference taken; allocated if it is not there yet.

    The pfn, or 0: no memory. A page that migration moves at this moment is looked up again.
    """
    machine = machine_of(cpu)
    mapping = mapping_of(machine, vma.mapping)
    index = vma.pgoff + np.int64((address - vma.start) >> U(12))
    slot, tries = xa_create(cpu, mapping, index), 0
    if slot == U(0):
        return 0
    while True:
        entry = load_acquire(u64.array(slot), 0)
        if entry == U(0):
            pfn = shmem_add_folio(cpu, vma, address, slot, index)
            if pfn != AGAIN:
                return pfn
            continue
        pfn = pte_pfn(entry)
        if try_get_page(page_of(machine, pfn)):
            if load_acquire(u64.array(slot), 0) == entry:
                return pfn
            put_page(cpu, pfn)
        tries += 1
        relax(cpu, tries)


@kernel("i64(cpu_t*, mapping_t*, i64)")
def shmem_find_folio(cpu, mapping, index):
    """The page of an object that is there already, with a reference taken; its pfn or 0 (none, or it is moving)."""
    machine = machine_of(cpu)
    slot = xa_slot(machine, mapping, index)
    if slot == U(0):
        return 0
    entry = load_acquire(u64.array(slot), 0)
    if not entry_is_page(entry) or not try_get_page(page_of(machine, pte_pfn(entry))):
        return 0
    if load_acquire(u64.array(slot), 0) != entry:
        put_page(cpu, pte_pfn(entry))
        return 0
    return pte_pfn(entry)


@kernel("void(cpu_t*, i64)")
def shmem_evict(cpu, number):
    """The last VMA of a shared object is gone: free its pages and the object."""
    machine = machine_of(cpu)
    mapping, index = mapping_of(machine, number), 0
    while True:
        index = xa_find(machine, mapping, index, MAX_INDEX)
        if index < 0:
            break
        pfn = pte_pfn(xa_load(machine, mapping, index))
        count_shmem(machine, cpu, pfn, -1)
        put_page(cpu, pfn)
        index += 1
    xa_destroy(cpu, mapping)
    mapping_put(cpu, number)
