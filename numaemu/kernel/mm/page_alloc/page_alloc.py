"""The page allocator as a CPU sees it: allocating, freeing, references, compound pages. Linux's mm/page_alloc.c.

Single pages come from the CPU's own lists (pcplist.py), larger blocks from the node that owns the zone (page_alloc/node_side.py); which
zone may serve is page_alloc/zonelist.py, what happens when none may slowpath.py.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import clear_bytes
from numaemu.compiler.pointer import address_of, i32, u64
from numaemu.errors import KernelBug
from numaemu.kernel.core.cpuset import cpuset_current_mems_allowed
from numaemu.kernel.core.smp import MSG_FREE, actor_of_node, machine_of, send
from numaemu.kernel.include.gfp import __GFP_ACCOUNT, __GFP_COMP, __GFP_KSWAPD_RECLAIM, __GFP_WRITE, __GFP_ZERO
from numaemu.kernel.include.internal import (
    ALLOC_KSWAPD,
    ALLOC_NOFRAGMENT,
    ALLOC_SPREAD_DIRTY,
    ALLOC_WMARK_LOW,
    PF_MEMALLOC,
    is_compound,
)
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import PG_buddy, PG_head, PG_hugetlb, PG_pcp, PG_tail, PG_used
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    MIGRATE_ISOLATE,
    MIGRATE_MOVABLE,
    MIGRATE_PCPTYPES,
    charge_clear_pages,
    page_of,
    page_to_nid,
    page_zone,
    pcp_of,
    zone_of,
)
from numaemu.kernel.include.refcount import refcount_inc_not_zero
from numaemu.kernel.include.trace import MM_PAGE_ALLOC, MM_PAGE_FREE, trace_event
from numaemu.kernel.include.vmstat import PGFREE, count_vm_events
from numaemu.kernel.mm.huge.hugetlb_pool import free_huge_folio
from numaemu.kernel.mm.page_alloc.free_area import get_pageblock_migratetype
from numaemu.kernel.mm.page_alloc.pcplist import put_coldest, trim_pcp
from numaemu.kernel.mm.page_alloc.slowpath import __alloc_pages_slowpath, slowpath_t
from numaemu.kernel.mm.page_alloc.zonelist import get_page_from_freelist, page_at_hand
from numaemu.kernel.mm.reclaim.lru import __page_cache_release, unlock_lruvec
from numaemu.kernel.mm.slab.memcontrol import MEMCG_MASK, memcg_kmem_charge_page, memcg_kmem_uncharge_page
from numaemu.spec.param import MAX_ORDER, PAGE_SIZE

U = np.uint64
_BUDDY, _PCP, _USED = U(PG_buddy), U(PG_pcp), U(PG_used)
_HEAD, _TAIL, _HUGETLB = U(PG_head), U(PG_tail), U(PG_hugetlb)
_SPECIAL = _BUDDY | _PCP | _HEAD | _TAIL

# what __free_pages may find wrong with a page: Linux's bad_page
BAD_NONE, BAD_FREE, BAD_TAIL, BAD_ORDER, BAD_MAPCOUNT, BAD_REFCOUNT = range(6)
# fmt: off
BAD_TEXTS = ("", "it is free already (double free)", "it is a tail page of a compound page, only the head can be freed",
             "it is a compound page of another order", "nonzero mapcount", "nonzero _refcount")
# fmt: on


# -- allocating ----------------------------------------------------------------------------------------------


@hot
def prep_page(machine, cpu, pfn, order, gfp):
    """One page fit for use; a frame that was never given out is zero already and needs no clearing."""
    page = page_of(machine, pfn)
    VM_BUG_ON_PAGE(page.flags & _BUDDY != U(0) or page.refcount != 0 or page.mapcount != 0, page)
    if gfp & __GFP_ZERO:
        frame = frame_of(machine, pfn)
        load_acquire(u64.array(frame), 0)  # a reading host fault maps 16 neighbours, a writing one only this
        if (page.flags & _USED) != U(0):
            clear_bytes(frame, PAGE_SIZE)
        charge_clear_pages(machine, cpu, pfn, 1)
    page.flags = _USED
    page.mapping, page.index, page.private = 0, 0, 0
    page.order = order
    return page


@kernel("void(cpu_t*, i64, i64, i64)")
def prep_block(cpu, pfn, order, gfp):
    """A larger block: only its first page has a reference; with __GFP_COMP the others know their head."""
    machine = machine_of(cpu)
    for i in range(1 << order):
        page = prep_page(machine, cpu, pfn + i, order, gfp)
        if gfp & __GFP_COMP and i > 0:
            page.flags = _USED | _TAIL
            page.lru_next = pfn
    head = page_of(machine, pfn)
    if gfp & __GFP_COMP:
        head.flags = _USED | _HEAD
    head.refcount = 1


@kernel("i64(cpu_t*, i64, i64, i64, u64)")
def alloc_pages_slow(cpu, gfp, order, nid, nodemask):
    """The slow path, with a state of its own for allocations that reclaim itself makes."""
    machine = machine_of(cpu)
    inner = 1 if cpu.flags & PF_MEMALLOC else 0
    state = slowpath_t.array(machine.slowpaths)[2 * cpu.id + inner]
    return __alloc_pages_slowpath(cpu, gfp, order, nid, nodemask, state)


@kernel("i64(cpu_t*, i64, i64, i64, u64, u64)")
def alloc_pages_from(cpu, gfp, order, nid, nodemask, wanted):
    """2**order pages that are not at hand: get_page_from_freelist, or else the slow path, which asks for `wanted` nodes."""
    machine = machine_of(cpu)
    if order > MAX_ORDER:
        return 0
    flags = ALLOC_WMARK_LOW | ALLOC_NOFRAGMENT | (ALLOC_KSWAPD if gfp & __GFP_KSWAPD_RECLAIM else 0)
    if gfp & __GFP_WRITE:
        flags |= ALLOC_SPREAD_DIRTY
    pfn = get_page_from_freelist(cpu, gfp, order, nid, nodemask, flags)
    if pfn == 0:
        pfn = alloc_pages_slow(cpu, gfp, order, nid, wanted)
        if pfn == 0:
            return 0
    if order == 0:
        prep_page(machine, cpu, pfn, 0, gfp).refcount = 1
    else:
        prep_block(cpu, pfn, order, gfp)
    if gfp & __GFP_ACCOUNT:
        memcg_kmem_charge_page(cpu, pfn, order, is_compound(gfp, order))
    return pfn


@hot
def take_page_at_hand(cpu, machine, gfp, order, nid, nodemask):
    """A single page of this CPU's lists, fit for use; or 0."""
    if order == 0 and not gfp & __GFP_ACCOUNT:
        pfn = page_at_hand(cpu, machine, gfp, nid, nodemask)
        if pfn != 0:
            prep_page(machine, cpu, pfn, 0, gfp).refcount = 1
            return pfn
    return 0


@kernel("i64(cpu_t*, i64, i64, i64, u64)")
def alloc_pages_hooked(cpu, gfp, order, nid, nodemask):
    """alloc_pages where there are cpusets, or it is traced (or both)."""
    machine, wanted = machine_of(cpu), nodemask
    if machine.cpusets_enabled != 0:
        nodemask &= cpuset_current_mems_allowed(cpu)
    pfn = take_page_at_hand(cpu, machine, gfp, order, nid, nodemask)
    if pfn == 0:
        pfn = alloc_pages_from(cpu, gfp, order, nid, nodemask, wanted)
    if pfn != 0:
        trace_event(cpu, MM_PAGE_ALLOC, pfn, order, gfp, 0, 0)
    return pfn


@kernel("i64(cpu_t*, i64, i64, i64, u64)")
def alloc_pages(cpu, gfp, order, nid, nodemask):
    """2**order pages near node `nid`, from `nodemask` only; the first pfn, or 0: nobody can serve.

    Mirrors __alloc_pages_noprof.
    """
    machine = machine_of(cpu)
    if machine.alloc_hooks != 0:
        return alloc_pages_hooked(cpu, gfp, order, nid, nodemask)
    pfn = take_page_at_hand(cpu, machine, gfp, order, nid, nodemask)
    return pfn if pfn != 0 else alloc_pages_from(cpu, gfp, order, nid, nodemask, nodemask)


def set_alloc_hooks(machine):
    """What alloc_pages and free_unref_page look at anyway says if there is more to do: so a tracepoint that is off costs them nothing.
    For who changes cpusets_enabled, trace_events or a zone's pcp_list_high: the coordinator.
    """
    events = int(machine.trace_events)
    machine.alloc_hooks = int(machine.cpusets_enabled != 0 or events >> MM_PAGE_ALLOC & 1)
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        zone.pcp_free_high = -1 if events >> MM_PAGE_FREE & 1 else zone.pcp_list_high


# -- freeing -------------------------------------------------------------------------------------------------


@kernel("void(cpu_t*, i64)")
def free_special_page(cpu, pfn):
    """A single page of a pageblock that has no per-CPU list goes to its node."""
    machine = machine_of(cpu)
    send(cpu, actor_of_node(page_to_nid(machine, pfn)), MSG_FREE, 0, pfn, 0, 0, 0)


@kernel("void(cpu_t*, i64, i64, i64)")
def after_free(cpu, zone_number, migratetype, pfn):
    """A page has come on a CPU's list: what is too much goes back to its node, coldest first. The tracepoint."""
    machine = machine_of(cpu)
    zone, pcp = zone_of(machine, zone_number), pcp_of(machine, cpu.id, zone_number).lists[migratetype]
    if pcp.count > zone.pcp_list_high:
        trim_pcp(cpu, zone, pcp, pcp.count // 2)
    trace_event(cpu, MM_PAGE_FREE, pfn, 0, 0, 0, 0)


@kernel("void(cpu_t*, i64)")
def free_unref_page(cpu, pfn):
    """A single page nobody refers to goes on this CPU's list; what is too much goes back to its node, coldest first."""
    machine = machine_of(cpu)
    page, zone = page_of(machine, pfn), zone_of(machine, page_zone(machine, pfn))
    VM_BUG_ON_PAGE(page.flags & (_BUDDY | _PCP) != U(0) or page.refcount != 0 or page.mapcount != 0, page)
    if page.flags & MEMCG_MASK != U(0):
        memcg_kmem_uncharge_page(machine, pfn, 0)
    count_vm_events(machine, cpu.id, PGFREE, 1)
    migratetype = get_pageblock_migratetype(machine, pfn)
    if migratetype >= MIGRATE_PCPTYPES:
        if migratetype == MIGRATE_ISOLATE:
            free_special_page(cpu, pfn)
            trace_event(cpu, MM_PAGE_FREE, pfn, 0, 0, 0, 0)
            return
        migratetype = MIGRATE_MOVABLE
    pcp = pcp_of(machine, cpu.id, zone.number).lists[migratetype]
    page.flags = _USED | _PCP
    page.lru_next = pcp.head
    pcp.head = pfn
    pcp.count += 1
    if pcp.count > zone.pcp_free_high:
        after_free(cpu, zone.number, migratetype, pfn)


@kernel("void(cpu_t*, i64)")
def free_cold_page(cpu, pfn):
    """As free_unref_page, to the end of the list from which pages are taken last (Linux 4.14)."""
    machine = machine_of(cpu)
    page, migratetype = page_of(machine, pfn), get_pageblock_migratetype(machine, pfn)
    if migratetype >= MIGRATE_PCPTYPES:
        free_unref_page(cpu, pfn)
        return
    zone = zone_of(machine, page_zone(machine, pfn))
    memcg_kmem_uncharge_page(machine, pfn, 0)
    trace_event(cpu, MM_PAGE_FREE, pfn, 0, 0, 0, 0)
    page.flags = _USED | _PCP
    count_vm_events(machine, cpu.id, PGFREE, 1)
    pcp = pcp_of(machine, cpu.id, zone.number).lists[migratetype]
    put_coldest(machine, pcp, pfn)
    if pcp.count > zone.pcp_list_high:
        trim_pcp(cpu, zone, pcp, pcp.count // 2)


@kernel("void(cpu_t*, i64, i64)")
def free_pages(cpu, pfn, order):
    """Give 2**order pages back (their last reference is gone)."""
    if order == 0:
        free_unref_page(cpu, pfn)
        return
    machine = machine_of(cpu)
    memcg_kmem_uncharge_page(machine, pfn, order)
    trace_event(cpu, MM_PAGE_FREE, pfn, order, 0, 0, 0)
    count_vm_events(machine, cpu.id, PGFREE, 1 << order)
    send(cpu, actor_of_node(page_to_nid(machine, pfn)), MSG_FREE, 0, pfn, order, 0, 0)


@kernel("i64(machine_t*, i64, i64)")
def free_page_is_bad(machine, pfn, order):
    """Why this block cannot be freed, as far as its page structs tell: BAD_*."""
    head = page_of(machine, pfn)
    if head.flags & (_BUDDY | _PCP) != U(0) or head.refcount <= 0 and head.flags & _TAIL == U(0):
        return BAD_FREE
    if head.flags & _TAIL != U(0):
        return BAD_TAIL
    if head.flags & _HEAD != U(0) and head.order != order:
        return BAD_ORDER
    for i in range(1 << order):
        page = page_of(machine, pfn + i)
        if page.mapcount != 0 and head.refcount == 1:
            return BAD_MAPCOUNT
        if i > 0 and page.refcount != 0:
            return BAD_REFCOUNT
        if i > 0 and page.flags & (_BUDDY | _PCP) != U(0):
            return BAD_FREE
    return BAD_NONE


@kernel("i64(cpu_t*, i64, i64)")
def __free_pages(cpu, pfn, order):
    """Drop a reference to a block; the last one frees it. 0, or BAD_*: nothing was done.

    If somebody else holds the first page of a block that is not compound, the others are freed without it.
    """
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    plain = order == 0 and page.refcount > 0 and page.mapcount == 0 and page.flags & _SPECIAL == U(0)
    bad = BAD_NONE if plain else free_page_is_bad(machine, pfn, order)
    while bad == BAD_NONE:
        seen = load_acquire(page, "refcount")
        if seen <= 0:
            return BAD_FREE
        if compare_exchange(page, "refcount", seen, seen - 1) == seen:
            if seen == 1 and order == 0:
                free_unref_page(cpu, pfn)
            elif seen == 1:
                free_pages(cpu, pfn, order)
            elif page.flags & _HEAD == U(0):
                while order > 0:
                    order -= 1
                    free_pages(cpu, pfn + (1 << order), order)
            break
    return bad


# in compiled code of a user


@hot
def alloc_page(cpu, gfp):
    """One page near this CPU: its pfn, or 0: no memory."""
    return alloc_pages(cpu, gfp, 0, cpu.node, machine_of(cpu).node_mask)


@hot
def free_page(cpu, pfn):
    """Drop a reference to one page; the last one frees it."""
    if __free_pages(cpu, pfn, 0) != BAD_NONE:
        raise KernelBug("Bad page state: free already, or part of a larger block: pfn, order", pfn, 0)


# -- references ----------------------------------------------------------------------------------------------


@hot
def compound_head(machine, pfn):
    """The first page of the compound page that `pfn` belongs to, else itself."""
    page = page_of(machine, pfn)
    return page.lru_next if page.flags & _TAIL != U(0) else pfn


@hot
def compound_order(page):
    """The order of a compound page by its head; 0 for any other page."""
    return np.int64(page.order) if page.flags & _HEAD != U(0) else 0


@hot
def get_page(page):
    """One more reference to a page that has one."""
    fetch_add(page, "refcount", 1)


@kernel("bool(page_t*)")
def try_get_page(page):
    """Take a reference to a page that may go at any moment: not if it is free, or frozen by migration.

    The caller looks again afterwards whether it still is the page it meant.
    """
    return refcount_inc_not_zero(i32.array(address_of(page, "refcount")))


@hot
def free_folio(cpu, page, pfn):
    """The last reference is gone: to the pool of huge pages, or back to where it came from, a compound page as a whole."""
    if page.flags & _HUGETLB == U(0) or not free_huge_folio(cpu, pfn):
        free_pages(cpu, pfn, compound_order(page))


@hot
def drop_references(cpu, pfn, refs):
    """The last reference frees a page, a compound one as a whole."""
    page = page_of(machine_of(cpu), pfn)
    before = fetch_add(page, "refcount", -refs)
    VM_BUG_ON_PAGE(before < refs, page)
    if before == refs:
        unlock_lruvec(machine_of(cpu), __page_cache_release(cpu, pfn, -1))
        free_folio(cpu, page, pfn)


@kernel("void(cpu_t*, i64)")
def put_page(cpu, pfn):
    """Drop a reference."""
    drop_references(cpu, pfn, 1)


@kernel("void(cpu_t*, i64, i64)")
def folio_put_refs(cpu, pfn, refs):
    """Drop several references at once."""
    drop_references(cpu, pfn, refs)


@kernel("void(cpu_t*, i64*, i64, i64)")
def release_pages(cpu, pfns, first, end):
    """Drop a reference to each of pfns[first:end]; what is free then goes, taking each lru_lock as seldom as may be."""
    machine, locked = machine_of(cpu), -1
    for i in range(first, end):
        page = page_of(machine, pfns[i])
        before = fetch_add(page, "refcount", -1)
        VM_BUG_ON_PAGE(before <= 0, page)
        if before == 1:
            locked = __page_cache_release(cpu, pfns[i], locked)
        else:
            pfns[i] = 0
    unlock_lruvec(machine, locked)
    for i in range(first, end):
        if pfns[i] != 0:
            free_folio(cpu, page_of(machine, pfns[i]), pfns[i])
