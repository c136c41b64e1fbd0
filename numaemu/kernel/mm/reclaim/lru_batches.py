"""Pages on their way to the LRU lists: Linux's mm/swap.c.

Each CPU collects FOLIO_BATCH_SIZE pages before it takes a node's lru_lock. A page in a batch has a reference of the
batch's own, so it is not freed while it waits there. Batches belong to their CPU: others ask it to drain
(lru_add_drain_all, by the coordinator), and a page that is in one meanwhile cannot be isolated.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_and, fetch_or
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, i64
from numaemu.kernel.core.smp import MSG_LRU_DRAIN_ALL, machine_of, request
from numaemu.kernel.include.mm_types import (
    PG_active,
    PG_anon,
    PG_dirty,
    PG_idle,
    PG_lru,
    PG_mlocked,
    PG_referenced,
    PG_swapbacked,
    PG_swapcache,
    PG_unevictable,
)
from numaemu.kernel.include.mmzone import lruvec_of, page_of, page_to_nid
from numaemu.kernel.include.vmstat import (
    NR_ISOLATED_ANON,
    NR_ISOLATED_FILE,
    PGACTIVATE,
    PGDEACTIVATE,
    PGLAZYFREE,
    PGROTATED,
    UNEVICTABLE_PGS_CULLED,
    UNEVICTABLE_PGS_RESCUED,
    count_vm_events,
    mod_node_page_state,
)
from numaemu.kernel.mm.page_alloc.page_alloc import get_page, put_page
from numaemu.kernel.mm.reclaim.lru import (
    folio_clear,
    folio_is_file_lru,
    folio_set,
    folio_test,
    lruvec_add_folio,
    lruvec_del_folio,
    relock_lruvec,
    unlock_lruvec,
    workingset_age_nonresident,
)
from numaemu.spec.param import FOLIO_BATCH_SIZE

U = np.uint64
# what a batch does with its pages when it is drained
LRU_ADD, LRU_MOVE_TAIL, LRU_DEACTIVATE_FILE, LRU_DEACTIVATE, LRU_LAZYFREE, LRU_ACTIVATE, NR_FBATCHES = range(7)

folio_batch_t = Struct("folio_batch_t", [("nr", i64), ("pfn", i64, FOLIO_BATCH_SIZE)])
# Shared words of cpu_fbatches_t: the word | its writer | why a reader may trust it.
# - all | Their CPU, inside its turn; each entry holds a reference. | lru_add_drain_all asks the other CPUs, which
#   do it between two operations.
cpu_fbatches_t = Struct("cpu_fbatches_t", [("batch", folio_batch_t, NR_FBATCHES)])  # its CPU only


@hot
def batch_of(machine, cpu, kind):
    return cpu_fbatches_t.array(machine.cpu_fbatches)[cpu.id].batch[kind]


@hot
def lru_add(machine, cpu, lruvec, pfn):
    """A page joins its list: the unevictable one if it is locked into memory."""
    page = page_of(machine, pfn)
    was_unevictable = folio_test(page, PG_unevictable)
    if not folio_test(page, PG_mlocked):
        if was_unevictable:
            fetch_and(page, "flags", ~U(PG_unevictable))
            count_vm_events(machine, cpu.id, UNEVICTABLE_PGS_RESCUED, 1)
    elif not was_unevictable:
        fetch_and(page, "flags", ~U(PG_active))
        fetch_or(page, "flags", U(PG_unevictable))
        count_vm_events(machine, cpu.id, UNEVICTABLE_PGS_CULLED, 1)
    lruvec_add_folio(machine, lruvec, pfn, False)


@hot
def lru_deactivate_file(machine, cpu, lruvec, pfn):
    """Invalidation found the page in use: let reclaim look at it soon."""
    page = page_of(machine, pfn)
    active = folio_test(page, PG_active)
    lruvec_del_folio(machine, lruvec, pfn)
    fetch_and(page, "flags", ~U(PG_active | PG_referenced))
    lruvec_add_folio(machine, lruvec, pfn, not folio_test(page, PG_dirty))
    if active:
        count_vm_events(machine, cpu.id, PGDEACTIVATE, 1)


@hot
def lru_lazyfree(machine, cpu, lruvec, pfn):
    """madvise(MADV_FREE): an anonymous page that need not be written becomes one that reclaim may throw away."""
    page = page_of(machine, pfn)
    lruvec_del_folio(machine, lruvec, pfn)
    fetch_and(page, "flags", ~U(PG_active | PG_referenced | PG_swapbacked))
    lruvec_add_folio(machine, lruvec, pfn, False)
    count_vm_events(machine, cpu.id, PGLAZYFREE, 1)


@hot
def move_folio(machine, cpu, lruvec, pfn, kind):
    """What a batch of this kind does with a page on a list, whose PG_lru the caller has cleared. Under lru_lock."""
    page = page_of(machine, pfn)
    if folio_test(page, PG_unevictable):
        fetch_or(page, "flags", U(PG_lru))
        return
    if kind == LRU_ACTIVATE and not folio_test(page, PG_active):
        lruvec_del_folio(machine, lruvec, pfn)
        fetch_or(page, "flags", U(PG_active))
        lruvec_add_folio(machine, lruvec, pfn, False)
        count_vm_events(machine, cpu.id, PGACTIVATE, 1)
    elif kind == LRU_MOVE_TAIL:
        lruvec_del_folio(machine, lruvec, pfn)
        fetch_and(page, "flags", ~U(PG_active))
        lruvec_add_folio(machine, lruvec, pfn, True)
        count_vm_events(machine, cpu.id, PGROTATED, 1)
    elif kind == LRU_DEACTIVATE and folio_test(page, PG_active):
        lruvec_del_folio(machine, lruvec, pfn)
        fetch_and(page, "flags", ~U(PG_active | PG_referenced))
        lruvec_add_folio(machine, lruvec, pfn, False)
        count_vm_events(machine, cpu.id, PGDEACTIVATE, 1)
    elif kind == LRU_DEACTIVATE_FILE:
        lru_deactivate_file(machine, cpu, lruvec, pfn)
    elif (
        kind == LRU_LAZYFREE
        and folio_test(page, PG_anon)
        and folio_test(page, PG_swapbacked)
        and not folio_test(page, PG_swapcache)
    ):
        lru_lazyfree(machine, cpu, lruvec, pfn)
    else:
        fetch_or(page, "flags", U(PG_lru))


@kernel("void(cpu_t*, i64)")
def folio_batch_move_lru(cpu, kind):
    """Empty one batch of this CPU into the lists, then drop its references."""
    machine, locked = machine_of(cpu), -1
    batch = batch_of(machine, cpu, kind)
    for i in range(batch.nr):
        pfn = batch.pfn[i]
        if kind != LRU_ADD and not folio_clear(page_of(machine, pfn), PG_lru):
            continue  # somebody has isolated it
        locked = relock_lruvec(cpu, pfn, locked)
        lruvec = lruvec_of(machine, locked)
        if kind == LRU_ADD:
            lru_add(machine, cpu, lruvec, pfn)
        else:
            move_folio(machine, cpu, lruvec, pfn, kind)
    unlock_lruvec(machine, locked)
    nr, batch.nr = batch.nr, 0
    for i in range(nr):
        put_page(cpu, batch.pfn[i])


@hot
def folio_batch_add_and_move(cpu, pfn, kind):
    """Put a page, whose reference the batch takes over, into a batch."""
    batch = batch_of(machine_of(cpu), cpu, kind)
    batch.pfn[batch.nr] = pfn
    batch.nr += 1
    if batch.nr == FOLIO_BATCH_SIZE:
        folio_batch_move_lru(cpu, kind)


@hot
def folio_add_new_lru(cpu, pfn):
    """folio_add_lru for a page that nobody else knows yet and whose reference count already has one for the batch."""
    folio_batch_add_and_move(cpu, pfn, LRU_ADD)


@kernel("void(cpu_t*, i64, i64)")
def folio_add_lru_block(cpu, pfn, pages):
    """Pages in one piece of one node go to their list at once, as a large folio does: no batch, no reference."""
    machine = machine_of(cpu)
    node = relock_lruvec(cpu, pfn, -1)
    for i in range(pages):
        lru_add(machine, cpu, lruvec_of(machine, node), pfn + i)
    unlock_lruvec(machine, node)


@kernel("void(cpu_t*, i64)")
def folio_add_lru(cpu, pfn):
    """A page goes to its LRU list, by way of a batch."""
    get_page(page_of(machine_of(cpu), pfn))
    folio_batch_add_and_move(cpu, pfn, LRU_ADD)


@kernel("void(cpu_t*)")
def lru_add_drain(cpu):
    """Empty all batches of this CPU."""
    for kind in range(NR_FBATCHES):
        if batch_of(machine_of(cpu), cpu, kind).nr > 0:
            folio_batch_move_lru(cpu, kind)


@kernel("bool(machine_t*, i64)")
def cpu_needs_drain(machine, cpu_number):
    """True if a CPU has pages in a batch (a hint, where it is another's)."""
    for kind in range(NR_FBATCHES):
        if cpu_fbatches_t.array(machine.cpu_fbatches)[cpu_number].batch[kind].nr > 0:
            return True
    return False


@kernel("void(cpu_t*)")
def lru_add_drain_all(cpu):
    """Every CPU empties its batches, if it runs no operation at this moment."""
    machine = machine_of(cpu)
    lru_add_drain(cpu)
    for number in range(machine.nr_cpus):
        if number != cpu.id and cpu_needs_drain(machine, number):
            request(cpu, 0, MSG_LRU_DRAIN_ALL, cpu.id, 0, 0)
            return


@kernel("void(cpu_t*, i64, i64)")
def queue_folio(cpu, pfn, kind):
    """Let a batch of this kind move a page that is on a list."""
    if folio_test(page_of(machine_of(cpu), pfn), PG_lru):
        get_page(page_of(machine_of(cpu), pfn))
        folio_batch_add_and_move(cpu, pfn, kind)


@kernel("void(cpu_t*, i64)")
def folio_activate(cpu, pfn):
    """A page that is used again joins the active list."""
    page = page_of(machine_of(cpu), pfn)
    if not folio_test(page, PG_active | PG_unevictable):
        queue_folio(cpu, pfn, LRU_ACTIVATE)


@kernel("void(cpu_t*, i64)")
def __lru_cache_activate_folio(cpu, pfn):
    """Activate a page that waits in this CPU's batch: on its list it will be an active one."""
    machine = machine_of(cpu)
    batch = batch_of(machine, cpu, LRU_ADD)
    for i in range(batch.nr - 1, -1, -1):
        if batch.pfn[i] == pfn:
            fetch_or(page_of(machine, pfn), "flags", U(PG_active))
            return


@kernel("void(cpu_t*, i64)")
def folio_mark_accessed(cpu, pfn):
    """inactive, unreferenced -> inactive, referenced -> active."""
    page = page_of(machine_of(cpu), pfn)
    if folio_test(page, PG_idle):
        fetch_and(page, "flags", ~U(PG_idle))
    if not folio_set(page, PG_referenced) or folio_test(page, PG_unevictable | PG_active):
        return
    if folio_test(page, PG_lru):
        folio_activate(cpu, pfn)
    else:
        __lru_cache_activate_folio(cpu, pfn)
    workingset_age_nonresident(lruvec_of(machine_of(cpu), page_to_nid(machine_of(cpu), pfn)), 1)
    fetch_and(page, "flags", ~U(PG_referenced))


@kernel("void(cpu_t*, i64)")
def folio_rotate_reclaimable(cpu, pfn):
    """A page whose writing has ended is the next one to be reclaimed."""
    page = page_of(machine_of(cpu), pfn)
    if not folio_test(page, PG_dirty | PG_unevictable):
        queue_folio(cpu, pfn, LRU_MOVE_TAIL)


@kernel("void(cpu_t*, i64)")
def folio_deactivate(cpu, pfn):
    """madvise(MADV_COLD): an active page joins the inactive list."""
    page = page_of(machine_of(cpu), pfn)
    if folio_test(page, PG_active) and not folio_test(page, PG_unevictable):
        queue_folio(cpu, pfn, LRU_DEACTIVATE)


@kernel("void(cpu_t*, i64)")
def folio_mark_lazyfree(cpu, pfn):
    """madvise(MADV_FREE)"""
    page = page_of(machine_of(cpu), pfn)
    if (
        folio_test(page, PG_anon)
        and folio_test(page, PG_swapbacked)
        and not folio_test(page, PG_swapcache | PG_unevictable)
    ):
        queue_folio(cpu, pfn, LRU_LAZYFREE)


# -- isolation: mm/vmscan.c has these two, and everything that takes pages off the lists uses them -----------------


@kernel("bool(cpu_t*, i64)")
def folio_isolate_lru(cpu, pfn):
    """Take a page, to which the caller has a reference, off its list; one more reference goes with it."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    if not folio_clear(page, PG_lru):
        return False
    get_page(page)
    node = relock_lruvec(cpu, pfn, -1)
    lruvec_del_folio(machine, lruvec_of(machine, node), pfn)
    unlock_lruvec(machine, node)
    return True


@kernel("void(cpu_t*, i64)")
def folio_putback_lru(cpu, pfn):
    """Put an isolated page back and drop the reference of its isolation."""
    folio_add_lru(cpu, pfn)
    put_page(cpu, pfn)


@hot
def count_isolated(machine, cpu, pfn, n):
    """NR_ISOLATED_ANON or _FILE of the page's node."""
    file = folio_is_file_lru(page_of(machine, pfn))
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_ISOLATED_FILE if file else NR_ISOLATED_ANON, n)
