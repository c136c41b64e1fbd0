"""What page structs say, one by one: for the audits of everything that pages are part of."""

import numpy as np

from numaemu.compiler.decorators import entry
from numaemu.kernel.include.mm_types import machine_t
from numaemu.kernel.include.mmzone import page_of, zone_of

U = np.uint64


@entry("i64(u64, i64, i64)")
def count_flagged(machine_address, zone_number, flag):
    """How many pages of a zone have a PG_* flag."""
    machine = machine_t.at(machine_address)
    zone, n = zone_of(machine, zone_number), 0
    for pfn in range(zone.start_pfn, zone.virgin_pfn):
        if page_of(machine, pfn).flags & U(flag) != U(0):
            n += 1
    return n


def page_text(machine, pfn):
    """What a page struct says, for an error message."""
    page = page_of(machine, pfn)
    return (
        f"pfn {pfn}: flags {int(page.flags):#x}, refcount {page.refcount}, mapcount {page.mapcount}, "
        f"order {page.private}, mapping {page.mapping}, index {page.index}"
    )
