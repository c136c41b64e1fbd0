"""Shared anonymous memory: Linux's mm/shmem.c as far as MAP_SHARED | MAP_ANONYMOUS needs it.

The pages of a shared object hang in a tree of kernel pages with the layout of page tables (512 slots a level, by
page index), which Linux keeps in an xarray. Slots go from 0 to a page once, by compare-exchange; the tree holds one
reference to each page. It is freed with the last VMA that maps it.
"""
import numpy as np

from numaemu.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compile import hot, kernel
from numaemu.kernel.gfp import GFP_HIGHUSER_MOVABLE, GFP_KERNEL, __GFP_ZERO
from numaemu.kernel.mempolicy import vma_alloc_folio
from numaemu.kernel.mm_inline import folio_test
from numaemu.kernel.mm_types import PG_anon, PG_swapbacked
from numaemu.kernel.mmzone import page_of, page_to_nid
from numaemu.kernel.page_alloc import alloc_pages, put_page, try_get_page
from numaemu.kernel.pgtable import pfn_pte, pte_pfn, table_at
from numaemu.kernel.rmap import mapping_of, mapping_put
from numaemu.kernel.smp import machine_of, relax
from numaemu.kernel.swap import folio_add_new_lru
from numaemu.kernel.vmstat import NR_FILE_PAGES, NR_KERNEL_PAGES, NR_SHMEM, mod_node_page_state
from numaemu.pointer import address_of, u64

U = np.uint64
_SLOT = U(1)                     # an entry that is in use
AGAIN = -1


@kernel("u64(cpu_t*, u64, i64)")
def new_tree_page(cpu, words, index):
    """Make slot `index` of the table at host address `words` point to a new table; the entry, or 0: no memory."""
    machine = machine_of(cpu)
    pfn = alloc_pages(cpu, GFP_KERNEL | __GFP_ZERO, 0, cpu.node, machine.node_mask)
    if pfn == 0:
        return U(0)
    entry = pfn_pte(pfn, _SLOT)
    before = compare_exchange(u64.array(words), index, U(0), entry)
    if before != U(0):
        put_page(cpu, pfn)
        return before
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_KERNEL_PAGES, 1)
    return entry


@kernel("u64(cpu_t*, mapping_t*, i64)")
def shmem_slot(cpu, mapping, index):
    """Host address of the slot of page `index`, making tables as needed; 0: no memory."""
    machine = machine_of(cpu)
    entry = load_acquire(mapping, "root")
    if entry == U(0):
        entry = new_tree_page(cpu, address_of(mapping, "root"), 0)
    for shift in (27, 18, 9):
        if entry == U(0):
            return U(0)
        table, slot = table_at(machine, entry), (index >> shift) & 511
        entry = load_acquire(u64.array(table), slot)
        if entry == U(0):
            entry = new_tree_page(cpu, table, slot)
    if entry == U(0):
        return U(0)
    return table_at(machine, entry) + (U(index & 511) << U(3))


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
    fetch_add(page, "refcount", 2)       # the tree's, that of its way to the LRU list
    if compare_exchange(u64.array(slot), 0, U(0), pfn_pte(pfn, _SLOT)) != U(0):
        fetch_add(page, "refcount", -2)  # another CPU was faster: look again
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
    slot, tries = shmem_slot(cpu, mapping, index), 0
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
def filemap_get_folio(cpu, mapping, index):
    """The page of an object that is there already, with a reference taken; its pfn or 0 (none, or it is moving)."""
    machine = machine_of(cpu)
    entry, slot = load_acquire(mapping, "root"), U(0)
    for shift in (27, 18, 9, 0):
        if entry == U(0):
            return 0
        slot = table_at(machine, entry) + (U((index >> shift) & 511) << U(3))
        entry = load_acquire(u64.array(slot), 0)
    if entry == U(0) or not try_get_page(page_of(machine, pte_pfn(entry))):
        return 0
    if load_acquire(u64.array(slot), 0) != entry:
        put_page(cpu, pte_pfn(entry))
        return 0
    return pte_pfn(entry)


@hot
def free_tree_page(machine, cpu, entry):
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pte_pfn(entry)), NR_KERNEL_PAGES, -1)
    put_page(cpu, pte_pfn(entry))


@hot
def free_leaf_table(cpu, entry):
    """Free the pages that a lowest table holds, then the table."""
    machine = machine_of(cpu)
    for slot in range(512):
        below = load_acquire(u64.array(table_at(machine, entry)), slot)
        if below != U(0):
            count_shmem(machine, cpu, pte_pfn(below), -1)
            put_page(cpu, pte_pfn(below))
    free_tree_page(machine, cpu, entry)


@kernel("void(cpu_t*, u64)")
def free_tree(cpu, root):
    """Free a tree of four levels from the leaves up."""
    machine = machine_of(cpu)
    for i in range(512):
        one = load_acquire(u64.array(table_at(machine, root)), i)
        if one == U(0):
            continue
        for j in range(512):
            two = load_acquire(u64.array(table_at(machine, one)), j)
            if two == U(0):
                continue
            for k in range(512):
                leaf = load_acquire(u64.array(table_at(machine, two)), k)
                if leaf != U(0):
                    free_leaf_table(cpu, leaf)
            free_tree_page(machine, cpu, two)
        free_tree_page(machine, cpu, one)
    free_tree_page(machine, cpu, root)


@kernel("void(cpu_t*, i64)")
def shmem_evict(cpu, number):
    """The last VMA of a shared object is gone: free its pages and the object."""
    entry = load_acquire(mapping_of(machine_of(cpu), number), "root")
    if entry != U(0):
        free_tree(cpu, entry)
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
        if users <= 0:
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
        found = filemap_get_folio(cpu, mapping_of(machine, number), page.index)
        if found != 0:
            put_page(cpu, found)
        if found == pfn:
            return number
    release_mapping(cpu, number)
    return 0
