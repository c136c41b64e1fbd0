"""Dirty pages of files and writing them back: Linux's mm/page-writeback.c and the part of fs/fs-writeback.c it needs.

A page is dirty from the first write until it is copied to the disk: what is rewritten meanwhile is written once. A
shared mapping can be written to only after a fault that makes the page dirty (page_mkwrite); writing back takes that
permission away again (folio_mkclean). PG_dirty changes atomically, and who changed it counts; it goes from set to clear
for writing only under the page's lock.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import call_address, clear_bytes
from numaemu.compiler.pointer import address_of
from numaemu.hardware.paging import _PAGE_DIRTY, _PAGE_RW
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of, pte_offset, pte_pfn, pte_present, ptep_cmpxchg, ptep_get
from numaemu.kernel.arch.tlb import dec_tlb_flush_pending, flush_tlb_mm_range, inc_tlb_flush_pending
from numaemu.kernel.core.psi import account_iowait, psi_of
from numaemu.kernel.core.smp import let_others_run, machine_of, spin_lock, spin_unlock
from numaemu.kernel.core.xarray import MAX_INDEX, entry_is_page, xa_find, xa_load
from numaemu.kernel.fs.disk import count_request, disk_time, disk_write_page, io_wait
from numaemu.kernel.fs.inode import bmap, host_of, igrab, inode_of
from numaemu.kernel.include.mm import PFN_UP, frame_of
from numaemu.kernel.include.mm_types import (
    VM_SHARED,
    PG_anon,
    PG_dirty,
    PG_locked,
    PG_reclaim,
    PG_swapbacked,
    PG_writeback,
    pool_t,
)
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.task_io_accounting_ops import task_io_account_write
from numaemu.kernel.include.trace import WRITEBACK_PAGES_WRITTEN, trace_event
from numaemu.kernel.include.vmstat import (
    NR_DIRTIED,
    NR_FILE_DIRTY,
    NR_WRITEBACK,
    NR_WRITTEN,
    mod_node_page_state,
    percpu_of,
)
from numaemu.kernel.mm.cache.dirty import global_dirtyable_memory
from numaemu.kernel.mm.cache.pagemap import filemap_get_folio
from numaemu.kernel.mm.fault.rmap import mapping_of, next_vma_of, page_address_in_vma
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.page_alloc.slowpath import fatal_signal_pending
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_lock, folio_set, folio_test, folio_trylock, folio_unlock
from numaemu.kernel.mm.reclaim.lru_batches import folio_rotate_reclaimable
from numaemu.kernel.mm.reclaim.workingset import SWAP_CLUSTER_MAX
from numaemu.kernel.mm.space.mempolicy import current_task
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.mmu import clock_ns
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
RATELIMIT_PAGES = 32  # pages a task dirties between two looks at the limits, at most (ratelimit_pages)
WRITEBACK_TIMEOUT_NS = 100_000_000  # HZ / 10, of VMSCAN_THROTTLE_WRITEBACK
MIN_WRITEBACK_PAGES = 1024  # written of one file before the next one comes
NOTHING_LEFT = 1 << 62


# -- limits --------------------------------------------------------------------------------------------------


@kernel("i64(machine_t*, i64)")
def global_node_page_state(machine, item):
    """A counter of all nodes: what each CPU has added and taken away."""
    total = 0
    for cpu in range(machine.nr_cpu_ids):
        for node in range(machine.nr_nodes):
            total += percpu_of(machine, cpu).node[node].item[item]
    return total


@kernel("i64(machine_t*, bool)")
def dirty_limit(machine, background):
    """Dirty pages from which on the flusher writes (`background`), or writers have to wait. Mirrors domain_dirty_limits."""
    available = global_dirtyable_memory(machine)
    limit = machine.vm_dirty_ratio * PAGE_SIZE // 100 * available >> PAGE_SHIFT
    if machine.vm_dirty_bytes > 0:
        limit = PFN_UP(machine.vm_dirty_bytes)
    if not background:
        return limit
    lower = machine.dirty_background_ratio * PAGE_SIZE // 100 * available >> PAGE_SHIFT
    if machine.dirty_background_bytes > 0:
        lower = PFN_UP(machine.dirty_background_bytes)
    return lower if lower < limit else limit // 2


@hot
def nr_dirty_pages(machine):
    """Dirty, or being written."""
    return global_node_page_state(machine, NR_FILE_DIRTY) + global_node_page_state(machine, NR_WRITEBACK)


# -- becoming dirty and clean --------------------------------------------------------------------------------


@kernel("bool(cpu_t*, i64)")
def folio_mark_dirty(cpu, pfn):
    """A page is changed; True if it was clean. The caller holds its lock or maps it.

    Mirrors filemap_dirty_folio. Pages of shared memory only get the flag: they are not written to a file.
    """
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    number = load_acquire(page, "mapping")
    if number == 0 or folio_set(page, PG_dirty):
        return False
    if folio_test(page, PG_swapbacked):
        return True
    node, inode = page_to_nid(machine, pfn), host_of(machine, number)
    if fetch_add(inode, "nr_dirty", 1) == 0:
        inode.dirtied_when = clock_ns(cpu)
    mod_node_page_state(machine, cpu.id, node, NR_FILE_DIRTY, 1)
    mod_node_page_state(machine, cpu.id, node, NR_DIRTIED, 1)
    current_task(cpu).nr_dirtied += 1
    task_io_account_write(cpu)
    return True


@hot
def note_dirty(cpu, pfn):
    """An entry that was taken away says that the page has been written to."""
    page = page_of(machine_of(cpu), pfn)
    if folio_test(page, PG_anon | PG_swapbacked):
        folio_set(page, PG_dirty)
    else:
        folio_mark_dirty(cpu, pfn)


@kernel("bool(cpu_t*, i64)")
def folio_cancel_dirty(cpu, pfn):
    """A locked page of a file is clean from now on; True if it was dirty. What is in it is the caller's affair."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    if not folio_clear(page, PG_dirty):
        return False
    fetch_add(host_of(machine, page.mapping), "nr_dirty", -1)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_FILE_DIRTY, -1)
    return True


@hot
def page_mkclean_one(cpu, pfn, vma, address):
    """Take write permission and the D bit from one entry, if it maps the page; True if it had them."""
    machine = machine_of(cpu)
    mm, changed = mm_of(machine, vma.mm), False
    ptep = pte_offset(machine, mm, address)
    pte = ptep_get(ptep) if ptep != U(0) else U(0)
    inc_tlb_flush_pending(mm)
    while pte_present(pte) and pte_pfn(pte) == pfn and pte & (_PAGE_RW | _PAGE_DIRTY) != U(0) and not changed:
        changed = ptep_cmpxchg(ptep, pte, pte & ~(_PAGE_RW | _PAGE_DIRTY))
        if changed:
            flush_tlb_mm_range(cpu, vma.mm, address, address + U(PAGE_SIZE))
        else:
            pte = ptep_get(ptep)
    dec_tlb_flush_pending(mm)
    return changed


@kernel("bool(cpu_t*, i64)")
def folio_mkclean(cpu, pfn):
    """Nobody may write to a locked page through a shared mapping without a fault any more; True if somebody might have."""
    machine, cleaned = machine_of(cpu), False
    page = page_of(machine, pfn)
    if load_acquire(page, "mapcount") == 0:
        return False
    mapping = mapping_of(machine, page.mapping)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    number = mapping.first_vma
    while number != 0:
        vma = vma_of(machine, number)
        address = page_address_in_vma(page, vma)
        if address != U(0) and vma.flags & VM_SHARED and page_mkclean_one(cpu, pfn, vma, address):
            cleaned = True
        number = next_vma_of(mapping, vma)
    spin_unlock(lock)
    return cleaned


@kernel("bool(cpu_t*, i64)")
def folio_clear_dirty_for_io(cpu, pfn):
    """Make a locked page clean in order to write it: every later write makes it dirty again. True if it was dirty."""
    VM_BUG_ON_PAGE(not folio_test(page_of(machine_of(cpu), pfn), PG_locked), page_of(machine_of(cpu), pfn))
    if folio_mkclean(cpu, pfn):
        folio_mark_dirty(cpu, pfn)
    return folio_cancel_dirty(cpu, pfn)


# -- writing -------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64)")
def writepage(cpu, pfn):
    """Copy a locked page that folio_clear_dirty_for_io has made clean to its place: the disk page. Time is the caller's."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    inode, node = host_of(machine, page.mapping), page_to_nid(machine, pfn)
    place, data = bmap(inode, page.index), frame_of(machine, pfn)
    VM_BUG_ON_PAGE(place < 0, page)
    folio_set(page, PG_writeback)
    mod_node_page_state(machine, cpu.id, node, NR_WRITEBACK, 1)
    inside = load_acquire(inode, "i_size") - (page.index << PAGE_SHIFT)
    if inside < PAGE_SIZE:  # what a mapping has written behind the end never shows
        clear_bytes(data + U(max(inside, 0)), PAGE_SIZE - max(inside, 0))
    disk_write_page(cpu, place, data)
    mod_node_page_state(machine, cpu.id, node, NR_WRITEBACK, -1)
    mod_node_page_state(machine, cpu.id, node, NR_WRITTEN, 1)
    folio_clear(page, PG_writeback)
    if folio_clear(page, PG_reclaim):
        folio_rotate_reclaimable(cpu, pfn)
    return place


@hot
def charge_write(cpu, pages):
    """One request of so many pages has been waited for."""
    if pages > 0:
        ns = count_request(cpu, pages << PAGE_SHIFT, True)
        account_iowait(cpu, ns)


@hot
def next_dirty(machine, mapping, index, end):
    """The first index in [index, end) whose page says that it is dirty, or -1."""
    while True:
        index = xa_find(machine, mapping, index, end)
        if index < 0:
            return -1
        entry = xa_load(machine, mapping, index)
        if entry_is_page(entry) and folio_test(page_of(machine, pte_pfn(entry)), PG_dirty):
            return index
        index += 1


@kernel("i64(cpu_t*, i64, i64, i64, i64, bool)")
def write_cache_pages(cpu, number, start, end, nr_to_write, wait):
    """Write up to `nr_to_write` dirty pages in [start, end) of a file that the caller holds; how many.

    Neighbours on the disk are one request. writeback_index is where the next call may go on. Pages that somebody else has
    locked are waited for, or left out.
    """
    machine = machine_of(cpu)
    inode = inode_of(machine, number)
    mapping, written, run, last, index = mapping_of(machine, inode.mapping), 0, 0, -2, start
    while written < nr_to_write:
        index = next_dirty(machine, mapping, index, end)
        if index < 0:
            break
        pfn = filemap_get_folio(cpu, inode.mapping, index)
        if pfn != 0:
            page = page_of(machine, pfn)
            if not wait and not folio_trylock(page):
                put_page(cpu, pfn)
                index += 1
                continue
            if wait:
                folio_lock(cpu, page)
            if page.mapping == inode.mapping and page.index == index and folio_clear_dirty_for_io(cpu, pfn):
                place = writepage(cpu, pfn)
                if place != last + 1:
                    charge_write(cpu, run)
                    run = 0
                last, run, written = place, run + 1, written + 1
            folio_unlock(page)
            put_page(cpu, pfn)
        index += 1
    charge_write(cpu, run)
    inode.writeback_index = max(index, 0)
    return written


@kernel("i64(cpu_t*, i64, i64, i64)")
def filemap_write_and_wait_range(cpu, number, start, end):
    """Write every dirty page in [start, end) of a file and wait for it; how many (fsync, msync)."""
    return write_cache_pages(cpu, number, start, end, NOTHING_LEFT, True)


# -- the flusher ---------------------------------------------------------------------------------------------


@hot
def wb_over_bg_thresh(machine):
    return global_node_page_state(machine, NR_FILE_DIRTY) > dirty_limit(machine, True)


@kernel("i64(machine_t*, i64)")
def oldest_dirty_inode(machine, before):
    """The file that became dirty first, before emulated time `before`; 0: none."""
    found, when = 0, before
    for number in range(1, pool_t.at(machine.inode_pool).used + 1):
        inode = inode_of(machine, number)
        if load_acquire(inode, "nr_dirty") > 0 and inode.dirtied_when < when:
            found, when = number, inode.dirtied_when
    return found


@kernel("i64(cpu_t*, i64, i64, bool)")
def writeback_inode(cpu, number, nr_to_write, wait):
    """Write some of a file's dirty pages, from where the last time ended, around the end; how many.

    What is still dirty then counts as dirty since now. The caller holds the inode.
    """
    inode = inode_of(machine_of(cpu), number)
    begin = inode.writeback_index
    written = write_cache_pages(cpu, number, begin, MAX_INDEX, nr_to_write, wait)
    if written < nr_to_write and begin > 0:
        written += write_cache_pages(cpu, number, 0, begin, nr_to_write - written, wait)
    inode.dirtied_when = clock_ns(cpu)
    return written


@kernel("i64(cpu_t*)")
def wb_workfn(cpu):
    """The flusher's work: files dirty for longer than dirty_expire, when dirty_writeback has passed since it last looked;
    then until no more pages are dirty than the background limit. How many pages it wrote; 0 too if another is at it.
    """
    machine = machine_of(cpu)
    if compare_exchange(machine, "wb_lock", U(0), U(cpu.id + 1)) != U(0):
        return 0
    now, total = clock_ns(cpu), 0
    expired = machine.dirty_writeback_ns > 0 and now - machine.wb_last_ns >= machine.dirty_writeback_ns
    if expired:
        machine.wb_last_ns = now
    while True:
        over = wb_over_bg_thresh(machine)
        if not over and not expired:
            break
        number = oldest_dirty_inode(machine, NOTHING_LEFT if over else now - machine.dirty_expire_ns)
        if number == 0:
            break
        if not igrab(cpu, number):
            let_others_run(cpu)  # it is going, and its dirty pages with it
            continue
        written = writeback_inode(cpu, number, MIN_WRITEBACK_PAGES if over else NOTHING_LEFT, True)
        call_address(machine.on_iput, cpu.address, U(number), U(0))
        total += written
        if written == 0:
            break
    store_release(machine, "wb_lock", U(0))
    if total > 0:
        trace_event(cpu, WRITEBACK_PAGES_WRITTEN, total, 0, 0, 0, 0)
    return total


@kernel("i64(cpu_t*)")
def wb_start_all(cpu):
    """Every file's dirty pages; how many. Of a page or an inode that somebody else holds at this moment nothing is waited
    for: whoever reclaims may hold it. So this may also go on beside a flusher.
    """
    machine, total = machine_of(cpu), 0
    for number in range(1, pool_t.at(machine.inode_pool).used + 1):
        if load_acquire(inode_of(machine, number), "nr_dirty") > 0 and igrab(cpu, number):
            total += writeback_inode(cpu, number, NOTHING_LEFT, False)
            call_address(machine.on_iput, cpu.address, U(number), U(0))
    return total


@hot
def times_of(cpu):
    """What a CPU does as the flusher changes: clock_base_ns, iowait_ns, and what it has counted of waiting."""
    of = psi_of(cpu)
    return cpu.clock_base_ns, cpu.iowait_ns, of.io_some_ns, of.io_until_ns


@hot
def give_time_to_flusher(cpu, before):
    """What this CPU has just done as the flusher was on the flusher's clock: the context of node 0. `before`: times_of before."""
    of = psi_of(cpu)
    fetch_add(
        cpu_t.array(machine_of(cpu).cpus)[machine_of(cpu).nr_cpus], "clock_base_ns", cpu.clock_base_ns - before[0]
    )
    cpu.clock_base_ns, cpu.iowait_ns, of.io_some_ns, of.io_until_ns = before


@kernel("i64(cpu_t*)")
def wakeup_flusher(cpu):
    """The flusher works, at once, on its own clock; pages. Whoever wakes it does its work, so that nobody waits for the
    host to give it time.
    """
    before = times_of(cpu)
    written = wb_workfn(cpu)
    give_time_to_flusher(cpu, before)
    return written


@kernel("i64(cpu_t*, bool)")
def wakeup_flusher_threads(cpu, throttle):
    """Reclaim has found nothing but dirty pages (WB_REASON_VMSCAN): all of them are written now; pages.

    Direct reclaim waits in emulated time until the disk has a batch of them (VMSCAN_THROTTLE_WRITEBACK).
    """
    before = times_of(cpu)
    written = wb_start_all(cpu)
    give_time_to_flusher(cpu, before)
    if throttle and written > 0:
        io_wait(
            cpu,
            min(disk_time(machine_of(cpu), min(written, SWAP_CLUSTER_MAX) << PAGE_SHIFT, True), WRITEBACK_TIMEOUT_NS),
        )
    return written


@kernel("void(cpu_t*)")
def wb_timer(cpu):
    """Wake the flusher when dirty_writeback has passed; called where files are used."""
    machine = machine_of(cpu)
    if machine.dirty_writeback_ns > 0 and clock_ns(cpu) - machine.wb_last_ns >= machine.dirty_writeback_ns:
        wakeup_flusher(cpu)


# -- who makes pages dirty waits -----------------------------------------------------------------------------


@hot
def dirty_poll_interval(machine, limit, background):
    """Pages a task may dirty between two looks: all CPUs together half of what lies between both limits."""
    return min(max((limit - background) // (2 * machine.nr_cpus), 1), RATELIMIT_PAGES)


@kernel("void(cpu_t*)")
def balance_dirty_pages(cpu):
    """Above the background limit the flusher works. Above the middle of both limits (the freerun ceiling), from where all CPUs
    together do not come beyond the limit before their next look, the task waits until it, or another's, has written; and as
    long as the disk, by this CPU's clock, has more than that before it.
    """
    machine = machine_of(cpu)
    limit, background = dirty_limit(machine, False), dirty_limit(machine, True)
    machine.dirty_poll_interval = dirty_poll_interval(machine, limit, background)
    if nr_dirty_pages(machine) <= background:
        return
    written, freerun = wakeup_flusher(cpu), (limit + background) // 2
    while nr_dirty_pages(machine) > freerun and not fatal_signal_pending(cpu):
        let_others_run(cpu)
        written += wakeup_flusher(cpu)
        freerun = (
            dirty_limit(machine, False) + dirty_limit(machine, True)
        ) // 2  # it follows what is free, as the flusher's does
    now = clock_ns(cpu)
    cpu.wb_until_ns = max(cpu.wb_until_ns, now) + written * machine.disk_page_ns
    room = freerun - nr_dirty_pages(machine)
    if cpu.wb_until_ns - now > room * machine.disk_page_ns:
        io_wait(cpu, cpu.wb_until_ns - now - max(room, 0) * machine.disk_page_ns)


@kernel("void(cpu_t*)")
def balance_dirty_pages_ratelimited(cpu):
    """A task has made pages dirty: from time to time look at the limits. It holds no page and no inode's lock but i_rwsem."""
    machine, task = machine_of(cpu), current_task(cpu)
    if task.nr_dirtied < machine.dirty_poll_interval:
        return
    task.nr_dirtied = 0
    wb_timer(cpu)
    balance_dirty_pages(cpu)
