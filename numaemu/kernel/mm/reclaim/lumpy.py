"""Lumpy reclaim, of Linux 2.6.23 to 3.4 (there in mm/vmscan.c): large blocks by evicting what lies around a cold page.

Off unless the sysctl vm.lumpy_reclaim, which is our own, is 1; then nobody compacts for allocations, as before there
was compaction. Reclaim for an allocation of several pages takes, with a page from the cold end of an inactive list, the
pages of its naturally aligned block from whatever list they are on, used or not, and waits until the disk has them.
"""

from numaemu.compiler.atomic import fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.fs.bio import blk_wait
from numaemu.kernel.include.internal import PAGE_ALLOC_COSTLY_ORDER
from numaemu.kernel.include.mm_types import PG_active, PG_lru, PG_reclaim, PG_swapbacked, PG_swapcache, PG_unevictable
from numaemu.kernel.include.mmzone import lruvec_of, page_of, page_to_nid, page_zone, zone_of
from numaemu.kernel.include.vmstat import PGDEACTIVATE, count_vm_events
from numaemu.kernel.mm.page_alloc.page_alloc import put_page, try_get_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_is_file_lru, folio_test, lruvec_del_folio
from numaemu.kernel.mm.reclaim.pageout import FREED, WRITTEN, shrink_folio_list
from numaemu.kernel.mm.reclaim.workingset import DEF_PRIORITY
from numaemu.kernel.mm.swap.page_io import end_swap_write
from numaemu.kernel.mm.swap.swapfile import get_nr_swap_pages


@hot
def set_reclaim_mode(machine, sc):
    """sc.lumpy_order: the order if this pass is a lumpy one, else 0. Small orders only once reclaim has become hard."""
    lumpy = sc.order > PAGE_ALLOC_COSTLY_ORDER or sc.priority < DEF_PRIORITY - 2
    sc.lumpy_order = sc.order if machine.lumpy_reclaim != 0 and lumpy else 0


@hot
def should_reclaim_stall(sc, reclaimed):
    """True if an allocation waits for the disk and tries the rest of the batch again; kswapd never does."""
    patience = DEF_PRIORITY if sc.order > PAGE_ALLOC_COSTLY_ORDER else DEF_PRIORITY // 3
    return sc.lumpy_order > 0 and sc.kswapd == 0 and reclaimed < sc.nr_taken and sc.priority <= patience


@hot
def take(machine, sc, pfn):
    """Isolate a page of the batch's node into the batch, on whichever list it is; False: it cannot be had."""
    page = page_of(machine, pfn)
    if not folio_test(page, PG_lru) or folio_test(page, PG_unevictable) or not try_get_page(page):
        return False
    if not folio_clear(page, PG_lru):
        fetch_add(page, "refcount", -1)  # its isolator has a reference: this is not the last one
        return False
    lruvec_del_folio(machine, lruvec_of(machine, page_to_nid(machine, pfn)), pfn)
    sc.pfn[sc.nr_taken] = pfn
    sc.nr_taken += 1
    return True


@kernel("i64(cpu_t*, scan_control_t*, i64)")
def isolate_block(cpu, sc, tag):
    """Take the pages around `tag` in its block of the wanted order, free ones aside: how many. Under lru_lock.

    The first page that cannot go ends it, since the block will not be free then.
    """
    machine, before = machine_of(cpu), sc.nr_taken
    zone = zone_of(machine, page_zone(machine, tag))
    start = tag & ~((1 << sc.lumpy_order) - 1)
    for pfn in range(start, start + (1 << sc.lumpy_order)):
        if pfn == tag:
            continue
        if (
            pfn < zone.start_pfn
            or pfn >= zone.start_pfn + zone.spanned_pages
            or page_zone(machine, pfn) != page_zone(machine, tag)
        ):
            break
        page = page_of(machine, pfn)
        if folio_test(page, PG_swapbacked) and not folio_test(page, PG_swapcache) and get_nr_swap_pages(machine) <= 0:
            break
        if not take(machine, sc, pfn) and load_acquire(page, "refcount") > 0:
            break
    return sc.nr_taken - before


@kernel("i64(cpu_t*, scan_control_t*)")
def clear_active_flags(cpu, sc):
    """Active pages of the batch are inactive from now on; how many of all are pages of files."""
    machine, active, files = machine_of(cpu), 0, 0
    for i in range(sc.nr_taken):
        page = page_of(machine, sc.pfn[i])
        active += 1 if folio_clear(page, PG_active) else 0
        files += 1 if folio_is_file_lru(page) else 0
    count_vm_events(machine, cpu.id, PGDEACTIVATE, active)
    return files


@hot
def files_kept(machine, sc):
    """How many pages of the batch that are not freed are pages of files."""
    files = 0
    for i in range(sc.nr_taken):
        files += 1 if sc.state[i] != FREED and folio_is_file_lru(page_of(machine, sc.pfn[i])) else 0
    return files


@kernel("i64(cpu_t*, scan_control_t*)")
def shrink_again(cpu, sc):
    """The disk has what was written: a second try with what is left of the batch. Pages freed."""
    machine, left, written = machine_of(cpu), 0, sc.nr_pageout
    blk_wait(cpu)
    for i in range(sc.nr_taken):
        pfn, state = sc.pfn[i], sc.state[i]
        if state == FREED:
            continue
        if state == WRITTEN:
            end_swap_write(cpu, pfn)
            folio_clear(page_of(machine, pfn), PG_reclaim)
            put_page(cpu, pfn)
        folio_clear(page_of(machine, pfn), PG_active)
        sc.pfn[left] = pfn
        left += 1
    sc.nr_taken = left
    freed = shrink_folio_list(cpu, sc)
    sc.nr_pageout += written
    return freed
