"""The LRU lists against the pages that say they are on one."""

import numpy as np

from numaemu.compiler.decorators import entry
from numaemu.errors import MachineCheck
from numaemu.kernel.audit.page import count_flagged, page_text
from numaemu.kernel.include.mm_types import PG_buddy, PG_lru, PG_pcp, PG_table, machine_t
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    NR_LRU_LISTS,
    lruvec_of,
    page_of,
    page_to_nid,
    page_zone,
    zone_of,
)
from numaemu.kernel.mm.reclaim.lru import folio_lru_list

U = np.uint64


@entry("i64(u64, i64, i64[])")
def validate_lruvec(machine_address, node, counts):
    """Walk a node's LRU lists: 0 or the pfn of a page that does not belong where it stands. counts: pages of each zone."""
    machine = machine_t.at(machine_address)
    lruvec = lruvec_of(machine, node)
    for lru in range(NR_LRU_LISTS):
        pfn, previous, n = lruvec.head[lru], 0, 0
        while pfn != 0:
            page = page_of(machine, pfn)
            if (
                n > lruvec.nr[lru]
                or page.flags & U(PG_lru) == U(0)
                or page.flags & U(PG_buddy | PG_pcp | PG_table) != U(0)
                or page.refcount <= 0
                or page.lru_prev != previous
                or folio_lru_list(page) != lru
                or page_to_nid(machine, pfn) != node
            ):
                return pfn
            counts[lru * MAX_NR_ZONES + page_zone(machine, pfn) % MAX_NR_ZONES] += 1
            n += 1
            previous, pfn = pfn, page.lru_next
        if n != lruvec.nr[lru] or lruvec.tail[lru] != previous:
            return max(previous, 1)
    return 0


def audit_lru(machine, base):
    """Every LRU list, its counts, and that no page is lost: what says it is on a list is on one."""
    for node in range(machine.nr_nodes):
        counts = np.zeros(NR_LRU_LISTS * MAX_NR_ZONES, np.int64)
        bad = validate_lruvec(base, node, counts)
        lruvec = lruvec_of(machine, node)
        if bad:
            raise MachineCheck(f"node {node}: LRU list inconsistent at {page_text(machine, bad)}")
        if (counts != lruvec.zone_nr.as_numpy()).any():
            raise MachineCheck(
                f"node {node}: LRU pages by list and zone are {counts.tolist()}, counted "
                f"{lruvec.zone_nr.as_numpy().tolist()}"
            )
        zones = [n for n in range(node * MAX_NR_ZONES, (node + 1) * MAX_NR_ZONES) if zone_of(machine, n).present_pages]
        flagged = sum(count_flagged(base, number, PG_lru) for number in zones)
        if flagged != counts.sum():
            raise MachineCheck(f"node {node}: {flagged} pages say they are on an LRU list, {counts.sum()} are")
