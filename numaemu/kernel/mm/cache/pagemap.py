"""The page cache itself: pages of files by index. The lowest part of Linux's mm/filemap.c and include/linux/pagemap.h.

A page is in the cache from filemap_add_folio to filemap_remove_folio. The cache has one reference to it; page.mapping
and page.index say where it stands. Both change only under the page's lock (PG_locked), so who holds the lock and finds
page.mapping as it should be may trust it. `page.private` is when the page's read from the disk is done, in emulated
time of one CPU: ns << 9 | that CPU (see folio_wait_read); the bytes themselves are there before PG_uptodate is. With
PG_private it is the page's buffer head instead (its physical address), which a page has from its first write on.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, fetch_or, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u64
from numaemu.kernel.core.smp import machine_of, relax
from numaemu.kernel.core.xarray import entry_is_page, page_entry, xa_create, xa_get_page, xa_is_value, xa_slot
from numaemu.kernel.fs.disk import io_wait_until
from numaemu.kernel.include.gfp import __GFP_RECLAIMABLE, GFP_NOFS
from numaemu.kernel.include.mm_types import PG_dirty, PG_locked, PG_private, PG_uptodate, PG_writeback
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NR_FILE_PAGES, WORKINGSET_NODES, mod_node_page_state
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.page_alloc.page_alloc import get_page, put_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_lock, folio_set, folio_test, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import folio_add_lru
from numaemu.kernel.mm.reclaim.workingset import entry_to_shadow, workingset_refault
from numaemu.kernel.mm.slab.slub import slab_alloc_node
from numaemu.kernel.mm.slab.slub_free import slab_free
from numaemu.kernel.mm.space.mempolicy import NO_INTERLEAVE_INDEX, alloc_pages_mpol, current_task
from numaemu.mmu import clock_ns
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64
READ_CPU_BITS = 9  # of page.private: a CPU's number


@kernel("void(cpu_t*, page_t*, i64)")
def folio_wait_read(cpu, page, longest_ns):
    """Wait, in emulated time, until the disk has read a page that this CPU has asked for; at most `longest_ns`.

    Clocks of different CPUs cannot be compared: a page that another CPU has asked for counts as there. Who is going to
    sleep until then leaves word for the other tasks of the CPU.
    """
    if not folio_test(page, PG_uptodate):
        return  # it is being read, and its `private` leads to the next one of the request
    due = page.private
    if due != 0 and due & ((1 << READ_CPU_BITS) - 1) == cpu.id and not folio_test(page, PG_private):
        if cpu.io_defer == 0:
            page.private = 0
        io_wait_until(cpu, min(due >> READ_CPU_BITS, clock_ns(cpu) + longest_ns))


@hot
def read_is_pending(cpu, page):
    """True if this CPU would have to wait for the page's read, longer than the fault under way is going to sleep anyway."""
    due = page.private
    if due == 0 or due & ((1 << READ_CPU_BITS) - 1) != cpu.id or folio_test(page, PG_private):
        return False
    return due >> READ_CPU_BITS > max(clock_ns(cpu), cpu.io_until_ns if cpu.io_defer != 0 else 0)


@kernel("bool(cpu_t*, page_t*)")
def create_empty_buffers(cpu, page):
    """A locked page is going to be written: it gets a buffer head, as pages of file systems on a disk have one for each
    of their blocks. False: no memory. Nothing is in it here, but it costs what it costs on Linux.
    """
    if folio_test(page, PG_private):
        return True
    head = slab_alloc_node(cpu, machine_of(cpu).bh_cachep, GFP_NOFS | __GFP_RECLAIMABLE, -1)
    if head == U(0):
        return False
    page.private = np.int64(head - cpu.paging.page_offset)
    folio_set(page, PG_private)
    return True


@hot
def drop_buffers(cpu, page):
    """A page leaves the cache: its buffer head goes (try_to_free_buffers)."""
    if folio_clear(page, PG_private):
        slab_free(cpu, machine_of(cpu).bh_cachep, U(page.private) + cpu.paging.page_offset)


@kernel("i64(cpu_t*, i64)")
def filemap_alloc_folio(cpu, gfp):
    """A page for the cache, by the task's policy; the pfn or 0."""
    return alloc_pages_mpol(cpu, gfp, 0, current_task(cpu).policy, NO_INTERLEAVE_INDEX)


@kernel("i64(cpu_t*, i64, i64)")
def filemap_get_folio(cpu, mapping_number, index):
    """The page at `index` of a file, with a reference taken; 0: none. One that is moving is waited for."""
    machine = machine_of(cpu)
    slot, tries = xa_slot(machine, mapping_of(machine, mapping_number), index), 0
    if slot == U(0):
        return 0
    while True:
        entry = load_acquire(u64.array(slot), 0)
        if not entry_is_page(entry):
            return 0
        pfn = xa_get_page(cpu, slot, entry)
        if pfn != 0:
            return pfn
        tries += 1
        relax(cpu, tries)


@kernel("i64(cpu_t*, i64, i64)")
def filemap_lock_folio(cpu, mapping_number, index):
    """filemap_get_folio, locked and still there; 0: none."""
    machine = machine_of(cpu)
    while True:
        pfn = filemap_get_folio(cpu, mapping_number, index)
        if pfn == 0:
            return 0
        page = page_of(machine, pfn)
        folio_lock(cpu, page)
        if page.mapping == mapping_number and page.index == index:
            return pfn
        folio_unlock(page)
        put_page(cpu, pfn)


VALUES_SHIFT = 32  # page.private of a leaf of a file's tree: pages in it, and from this bit on values


@hot
def only_shadows(word):
    return word & (1 << VALUES_SHIFT) - 1 == 0 and word >> VALUES_SHIFT > 0


@kernel("void(cpu_t*, u64, i64, i64)")
def workingset_update_node(cpu, slot, pages, values):
    """So many pages and shadows more lie in the leaf that the slot at this host address belongs to: leaves that have
    nothing but shadows are counted (WORKINGSET_NODES). One atomic word holds both counts, so each change is seen once.
    """
    machine = machine_of(cpu)
    pfn = np.int64((slot - machine.memory) >> U(PAGE_SHIFT))
    delta = pages + (values << VALUES_SHIFT)
    before = fetch_add(page_of(machine, pfn), "private", delta)
    change = (1 if only_shadows(before + delta) else 0) - (1 if only_shadows(before) else 0)
    if change != 0:
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), WORKINGSET_NODES, change)


@kernel("void(cpu_t*, mapping_t*, i64)")
def clear_shadow_entry(cpu, mapping, index):
    """A page that is not in the cache need not be known any more."""
    machine = machine_of(cpu)
    slot = xa_slot(machine, mapping, index)
    if slot == U(0):
        return
    entry = load_acquire(u64.array(slot), 0)
    if xa_is_value(entry) and compare_exchange(u64.array(slot), 0, entry, U(0)) == entry:
        workingset_update_node(cpu, slot, 0, -1)


@kernel("bool(cpu_t*, i64, i64, i64, bool)")
def filemap_add_folio(cpu, mapping_number, pfn, index, write):
    """A new page, locked and nobody else's, joins the cache and the LRU list; False: no memory, or another is there.

    Mirrors filemap_add_folio; a page that is about to be overwritten (`write`) is no refault.
    """
    machine = machine_of(cpu)
    mapping, page = mapping_of(machine, mapping_number), page_of(machine, pfn)
    slot = xa_create(cpu, mapping, index)
    if slot == U(0):
        return False
    page.mapping, page.index = mapping_number, index
    get_page(page)
    while True:
        old = load_acquire(u64.array(slot), 0)
        if entry_is_page(old):
            page.mapping = 0
            fetch_add(page, "refcount", -1)
            return False
        if compare_exchange(u64.array(slot), 0, old, page_entry(pfn)) == old:
            break
    workingset_update_node(cpu, slot, 1, -1 if xa_is_value(old) else 0)
    fetch_add(mapping, "nr_pages", 1)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_FILE_PAGES, 1)
    if xa_is_value(old) and not write:
        workingset_refault(cpu, pfn, entry_to_shadow(old))
    folio_add_lru(cpu, pfn)
    return True


@kernel("void(cpu_t*, i64, u64)")
def __filemap_remove_folio(cpu, pfn, shadow):
    """Take a locked, clean page out of the cache; `shadow` or 0 stays in its slot. The cache's reference is the caller's."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    VM_BUG_ON_PAGE(not folio_test(page, PG_locked) or folio_test(page, PG_dirty | PG_writeback), page)
    mapping = mapping_of(machine, page.mapping)
    slot = xa_slot(machine, mapping, page.index)
    store_release(u64.array(slot), 0, shadow)
    workingset_update_node(cpu, slot, -1, 1 if shadow != U(0) else 0)
    drop_buffers(cpu, page)
    page.mapping, page.private = 0, 0
    fetch_add(mapping, "nr_pages", -1)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_FILE_PAGES, -1)


@kernel("void(cpu_t*, i64)")
def filemap_remove_folio(cpu, pfn):
    """Take a locked, clean, unmapped page out of the cache and drop the cache's reference. The caller has one, too."""
    __filemap_remove_folio(cpu, pfn, U(0))
    put_page(cpu, pfn)


@kernel("bool(cpu_t*, i64, u64)")
def remove_mapping(cpu, pfn, shadow):
    """Take a locked page out of the cache if nobody uses it but the cache and the caller, and it is clean; success.

    Mirrors remove_mapping: the reference count is frozen meanwhile, so that nobody finds the page. The caller keeps its
    reference, which is the last one then. `shadow` (a value, or 0) stays in the slot.
    """
    page = page_of(machine_of(cpu), pfn)
    if page.mapping == 0 or compare_exchange(page, "refcount", 2, 0) != 2:
        return False
    if folio_test(page, PG_dirty | PG_writeback):
        store_release(page, "refcount", 2)
        return False
    __filemap_remove_folio(cpu, pfn, shadow)
    store_release(page, "refcount", 1)
    return True


@hot
def folio_mark_uptodate(page):
    fetch_or(page, "flags", U(PG_uptodate))
