"""Demotion: reclaim moves what it would take from a node to a slower memory tier instead. demote_folio_list of Linux's mm/vmscan.c.

The batch goes through shrink_folio_list's looks (lock, references) first; what may go moves to the nearest node of the next tier, or
where that is full to any node of a slower one. Pages for which there is no room go through reclaim as without demotion.
"""

import numpy as np

from numaemu.compiler.decorators import kernel
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mmzone import node_of, page_of
from numaemu.kernel.include.vmstat import PGDEMOTE_KSWAPD, mod_node_page_state
from numaemu.kernel.mm.cache.shmem import folio_hold_mapping, release_mapping
from numaemu.kernel.mm.migrate.migrate import DEMOTION, add_to_batch, demotion_batch_of, migrate_pages_batch
from numaemu.kernel.mm.numa.memory_tiers import can_demote, next_demotion_node
from numaemu.kernel.mm.reclaim.lru import folio_unlock
from numaemu.kernel.mm.reclaim.pageout import (
    DEMOTE,
    FREED,
    LOOK_AT,
    reclaimer_offset,
    shrink_folio_list,
    shrink_marked,
    unmap_folio,
)

U = np.uint64


@kernel("i64(cpu_t*, scan_control_t*, i64)")
def demote_folio_list(cpu, sc, node):
    """Move the pages of the batch whose state is DEMOTE, all of one node, to a slower tier: how many. They are freed then; the others
    are to be looked at again, unlocked. What keeps the reverse map alive is a hold on each page's family, as in compaction.
    """
    machine, demoted = machine_of(cpu), 0
    batch, pgdat = demotion_batch_of(machine, cpu), node_of(machine, node)
    batch.nr, batch.target, batch.misplaced = 0, DEMOTION, 0
    batch.demote_nid = next_demotion_node(machine, node, sc.nr_scanned)
    batch.demote_mask = pgdat.lower_tier_mask
    for i in range(sc.nr_taken):
        if sc.state[i] == DEMOTE:
            family = folio_hold_mapping(cpu, sc.pfn[i])
            if family != 0:
                add_to_batch(batch, sc.pfn[i], U(family), i)
            else:  # nobody's any more
                folio_unlock(page_of(machine, sc.pfn[i]))
                sc.state[i] = LOOK_AT
    nr = batch.nr
    if nr > 0:
        migrate_pages_batch(cpu, batch)
    for j in range(nr):
        i = batch.place[j]
        release_mapping(cpu, np.int64(batch.vaddr[j]))
        if batch.new[j] != 0:
            sc.state[i] = FREED
            demoted += 1
        else:
            folio_unlock(page_of(machine, sc.pfn[i]))
            sc.state[i] = LOOK_AT
    mod_node_page_state(machine, cpu.id, node, PGDEMOTE_KSWAPD + reclaimer_offset(sc), demoted)
    return demoted


@kernel("i64(cpu_t*, scan_control_t*, i64)")
def shrink_or_demote(cpu, sc, node):
    """Reclaim what can be had of the batch of isolated pages of a node, by demotion where there is a slower tier: how many are gone."""
    if not can_demote(machine_of(cpu), node) or sc.lumpy_order > 0:
        return shrink_folio_list(cpu, sc)
    sc.demote_pass, sc.tlb_ubc.nr_mms = 1, 0
    for i in range(sc.nr_taken):
        sc.state[i] = unmap_folio(cpu, sc, sc.pfn[i])
    sc.demote_pass = 0
    demoted = demote_folio_list(cpu, sc, node)
    return demoted + shrink_marked(cpu, sc)
