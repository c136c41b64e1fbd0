"""The LRU lists themselves: Linux's include/linux/mm_inline.h.

A page is on the list that its flags name: unevictable, or anonymous or file, active or inactive. PG_lru says that it
is linked. Who clears PG_lru owns the links from then on: under lru_lock, or with a reference to a page that stays
linked until the same CPU takes the lock (folio_isolate_lru).
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, fetch_and, fetch_or, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.kernel.core.smp import machine_of, relax, spin_lock, spin_unlock
from numaemu.kernel.include.list import list_add, list_add_tail, list_del
from numaemu.kernel.include.mm_types import PG_active, PG_locked, PG_lru, PG_swapbacked, PG_unevictable, page_t
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import (
    LRU_ACTIVE,
    LRU_FILE,
    LRU_UNEVICTABLE,
    MAX_NR_ZONES,
    lruvec_of,
    page_of,
    page_to_nid,
    page_zone,
)

U = np.uint64
_LRU, _ACTIVE, _UNEVICTABLE, _SWAPBACKED = U(PG_lru), U(PG_active), U(PG_unevictable), U(PG_swapbacked)


@hot
def folio_test(page, flag):
    """True if one of the flags is set."""
    return load_acquire(page, "flags") & U(flag) != U(0)


@hot
def folio_set(page, flag):
    """Set a flag; True if it was set before."""
    return fetch_or(page, "flags", U(flag)) & U(flag) != U(0)


@hot
def folio_clear(page, flag):
    """Clear a flag; True if it was set before."""
    return fetch_and(page, "flags", ~U(flag)) & U(flag) != U(0)


# -- page locks: include/linux/pagemap.h ---------------------------------------------------------------------


@hot
def folio_trylock(page):
    return not folio_set(page, PG_locked)


@kernel("void(cpu_t*, page_t*)")
def folio_lock(cpu, page):
    """Wait for the page's lock. The holder may wait for memory or for a flush, but never for an mmap_lock."""
    tries = 0
    while folio_set(page, PG_locked):
        tries += 1
        relax(cpu, tries)


@hot
def folio_unlock(page):
    VM_BUG_ON_PAGE(not folio_test(page, PG_locked), page)
    fetch_and(page, "flags", ~U(PG_locked))


@hot
def folio_is_file_lru(page):
    """Pages of files, and anonymous ones that may be thrown away (lazyfree)."""
    return load_acquire(page, "flags") & _SWAPBACKED == U(0)


@hot
def folio_lru_list(page):
    """The list that a page belongs on."""
    flags = load_acquire(page, "flags")
    if flags & _UNEVICTABLE != U(0):
        return LRU_UNEVICTABLE
    return (LRU_FILE if flags & _SWAPBACKED == U(0) else 0) + (LRU_ACTIVE if flags & _ACTIVE != U(0) else 0)


@hot
def workingset_age_nonresident(lruvec, pages):
    """Pages were evicted or activated: what is not resident ages (workingset.py)."""
    fetch_add(lruvec, "nonresident_age", pages)


@hot
def update_lru_size(machine, lruvec, lru, pfn, pages):
    lruvec.nr[lru] += pages
    lruvec.zone_nr[lru * MAX_NR_ZONES + page_zone(machine, pfn) % MAX_NR_ZONES] += pages


@hot
def link_page(machine, lruvec, lru, pfn, to_tail):
    """Put a page at an end of a list."""
    head, tail, pages = lruvec.head[lru], lruvec.tail[lru], page_t.array(machine.mem_map)
    head, tail = list_add_tail(pages, pfn, head, tail) if to_tail else list_add(pages, pfn, head, tail)
    lruvec.head[lru], lruvec.tail[lru] = head, tail


@hot
def lruvec_add_folio(machine, lruvec, pfn, to_tail):
    """Put a page on its list (lruvec_add_folio, lruvec_add_folio_tail). Under lru_lock."""
    page = page_of(machine, pfn)
    VM_BUG_ON_PAGE(page.flags & _LRU != U(0), page)
    lru = folio_lru_list(page)
    link_page(machine, lruvec, lru, pfn, to_tail)
    update_lru_size(machine, lruvec, lru, pfn, 1)
    fetch_or(page, "flags", _LRU)


@hot
def lruvec_del_folio(machine, lruvec, pfn):
    """Take a page off its list. Under lru_lock, by who has cleared PG_lru (its other flags still name the list)."""
    lru = folio_lru_list(page_of(machine, pfn))
    head, tail = list_del(page_t.array(machine.mem_map), pfn, lruvec.head[lru], lruvec.tail[lru])
    lruvec.head[lru], lruvec.tail[lru] = head, tail
    update_lru_size(machine, lruvec, lru, pfn, -1)


@kernel("i64(cpu_t*, i64, i64)")
def relock_lruvec(cpu, pfn, locked):
    """Hold the lru_lock of the page's node instead of `locked` (-1: none); the node (folio_lruvec_relock)."""
    machine = machine_of(cpu)
    node = page_to_nid(machine, pfn)
    if node != locked:
        if locked >= 0:
            spin_unlock(address_of(lruvec_of(machine, locked), "lru_lock"))
        spin_lock(cpu, address_of(lruvec_of(machine, node), "lru_lock"))
    return node


@kernel("void(machine_t*, i64)")
def unlock_lruvec(machine, locked):
    """Release what relock_lruvec holds."""
    if locked >= 0:
        spin_unlock(address_of(lruvec_of(machine, locked), "lru_lock"))


@kernel("i64(cpu_t*, i64, i64)")
def __page_cache_release(cpu, pfn, locked):
    """The last reference is gone: off the LRU list. The node whose lru_lock is held from now on (see relock_lruvec)."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    if load_acquire(page, "flags") & _LRU == U(0):
        return locked
    node = relock_lruvec(cpu, pfn, locked)
    fetch_and(page, "flags", ~_LRU)
    lruvec_del_folio(machine, lruvec_of(machine, node), pfn)
    return node
