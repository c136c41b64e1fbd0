"""The tree of an object's pages, by page index: what Linux keeps in an xarray (lib/xarray.c).

Four levels of kernel pages with 512 slots each, as page tables have them. A slot holds

    0                       nothing
    pfn << 12 | 1           a page; the tree has a reference to it
    anything with bits 1|2  a *value*: a swap entry or the shadow of a page that was reclaimed (xa_is_value)

Tables are made once, by compare-exchange, and freed together with the object, when nobody can look into it any more.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of, u64
from numaemu.kernel.arch.pgtable import pfn_pte, pte_pfn, table_at
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import __GFP_ZERO, GFP_KERNEL
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NR_KERNEL_PAGES, mod_node_page_state
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages, put_page, try_get_page

U = np.uint64
_SLOT, _VALUE = U(1), U(3)
MAX_INDEX = 1 << 36  # pages


@hot
def page_entry(pfn):
    """The entry of a page."""
    return pfn_pte(pfn, _SLOT)


@hot
def xa_is_value(entry):
    return entry & _VALUE == _VALUE


@hot
def entry_is_page(entry):
    return entry & _VALUE == _SLOT


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
def xa_create(cpu, mapping, index):
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


@kernel("u64(machine_t*, mapping_t*, i64)")
def xa_slot(machine, mapping, index):
    """Host address of the slot of page `index`, or 0: its tables are not there."""
    entry = load_acquire(mapping, "root")
    for shift in (27, 18, 9):
        if entry == U(0):
            return U(0)
        entry = load_acquire(u64.array(table_at(machine, entry)), (index >> shift) & 511)
    if entry == U(0):
        return U(0)
    return table_at(machine, entry) + (U(index & 511) << U(3))


@kernel("u64(machine_t*, mapping_t*, i64)")
def xa_load(machine, mapping, index):
    """What stands at `index`."""
    slot = xa_slot(machine, mapping, index)
    return U(0) if slot == U(0) else load_acquire(u64.array(slot), 0)


@kernel("i64(machine_t*, mapping_t*, i64, i64)")
def xa_find(machine, mapping, index, end):
    """The first index in [index, end) whose slot is in use, or -1."""
    end = min(end, MAX_INDEX)
    while index < end:
        entry, shift = load_acquire(mapping, "root"), 36
        while shift > 9 and entry != U(0):
            shift -= 9
            entry = load_acquire(u64.array(table_at(machine, entry)), (index >> shift) & 511)
        if entry == U(0):
            index = ((index >> shift) + 1) << shift
            continue
        leaf, table_end = u64.array(table_at(machine, entry)), min(end, (index | 511) + 1)
        while index < table_end:
            if load_acquire(leaf, index & 511) != U(0):
                return index
            index += 1
    return -1


@hot
def xa_get_page(cpu, slot, entry):
    """Take a reference to the page that `entry` of the slot at a host address names: its pfn; 0: it is leaving or has left."""
    pfn = pte_pfn(entry)
    if not try_get_page(page_of(machine_of(cpu), pfn)):
        return 0
    if load_acquire(u64.array(slot), 0) == entry:
        return pfn
    put_page(cpu, pfn)
    return 0


@hot
def free_tree_page(machine, cpu, entry):
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pte_pfn(entry)), NR_KERNEL_PAGES, -1)
    put_page(cpu, pte_pfn(entry))


@kernel("void(cpu_t*, mapping_t*)")
def xa_destroy(cpu, mapping):
    """Free the tables, from the leaves up; the pages are out already."""
    machine, root = machine_of(cpu), load_acquire(mapping, "root")
    if root == U(0):
        return
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
                    free_tree_page(machine, cpu, leaf)
            free_tree_page(machine, cpu, two)
        free_tree_page(machine, cpu, one)
    free_tree_page(machine, cpu, root)
    mapping.root = U(0)
