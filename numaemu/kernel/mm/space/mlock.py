"""Pages that are locked into memory: the page's side of Linux's mm/mlock.c.

PG_mlocked is set and cleared atomically, and whoever changes it counts NR_MLOCK. Linux counts the locked VMAs of a page
in its mlock_count; here the last one of them is found by a look at the page's family (rmap.py).
"""

import numpy as np

from numaemu.compiler.atomic import fetch_and, fetch_or, load_acquire
from numaemu.compiler.decorators import kernel
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import PG_active, PG_lru, PG_mlocked, PG_unevictable
from numaemu.kernel.include.mmzone import lruvec_of, page_of, page_to_nid
from numaemu.kernel.include.vmstat import (
    NR_MLOCK,
    UNEVICTABLE_PGS_CULLED,
    UNEVICTABLE_PGS_MLOCKED,
    UNEVICTABLE_PGS_MUNLOCKED,
    UNEVICTABLE_PGS_RESCUED,
    count_vm_events,
    mod_node_page_state,
)
from numaemu.kernel.mm.reclaim.lru import (
    folio_clear,
    folio_test,
    lruvec_add_folio,
    lruvec_del_folio,
    relock_lruvec,
    unlock_lruvec,
)

U = np.uint64


@kernel("void(cpu_t*, i64, bool)")
def move_lru(cpu, pfn, unevictable):
    """A page that is on an LRU list joins the unevictable one, or leaves it (__mlock_folio, __munlock_folio)."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    if folio_test(page, PG_unevictable) == unevictable or not folio_clear(page, PG_lru):
        return  # who has isolated it, or adds it, looks at PG_mlocked
    node = relock_lruvec(cpu, pfn, -1)
    lruvec_del_folio(machine, lruvec_of(machine, node), pfn)
    if unevictable:
        fetch_and(page, "flags", ~U(PG_active))
        fetch_or(page, "flags", U(PG_unevictable))
    else:
        fetch_and(page, "flags", ~U(PG_unevictable))
    lruvec_add_folio(machine, lruvec_of(machine, node), pfn, False)
    unlock_lruvec(machine, node)
    count_vm_events(machine, cpu.id, UNEVICTABLE_PGS_CULLED if unevictable else UNEVICTABLE_PGS_RESCUED, 1)


@kernel("void(cpu_t*, i64)")
def munlock_folio(cpu, pfn):
    """Take the mark away: no VM_LOCKED VMA maps the page any more."""
    machine = machine_of(cpu)
    if fetch_and(page_of(machine, pfn), "flags", ~U(PG_mlocked)) & U(PG_mlocked) != U(0):
        move_lru(cpu, pfn, False)
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_MLOCK, -1)
        count_vm_events(machine, cpu.id, UNEVICTABLE_PGS_MUNLOCKED, 1)


@kernel("void(cpu_t*, i64)")
def mlock_folio(cpu, pfn):
    """Mark a page that a VM_LOCKED VMA maps. Its last entry may just have gone: who looks later sees the other's word."""
    machine = machine_of(cpu)
    if fetch_or(page_of(machine, pfn), "flags", U(PG_mlocked)) & U(PG_mlocked) == U(0):
        move_lru(cpu, pfn, True)
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_MLOCK, 1)
        count_vm_events(machine, cpu.id, UNEVICTABLE_PGS_MLOCKED, 1)
    if load_acquire(page_of(machine, pfn), "mapcount") == 0:
        munlock_folio(cpu, pfn)
