"""More memory in one piece than the buddy system has: alloc_contig_pages of Linux's mm/page_alloc.c.

A range is looked for that holds nothing that could not be moved. Its pageblocks are isolated, so that whatever is freed there
stays free (page_isolation.py, by the node); what is in use moves away (migrate.py); if then all of it is free, it is ours.
Of untouched memory nothing but the list of free blocks changes, so that a gigantic page costs the host nothing before its use.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.core.smp import MSG_RANGE, actor_of_node, machine_of, request
from numaemu.kernel.include.gfp import GFP_HIGHUSER
from numaemu.kernel.include.internal import pack_zone
from numaemu.kernel.include.mm_types import PG_buddy, PG_head, PG_hugetlb, PG_lru, PG_pcp, PG_reserved, PG_tail, PG_used
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, page_of, zone_of
from numaemu.kernel.mm.cache.shmem import release_mapping
from numaemu.kernel.mm.migrate.compact_control import COMPACT_ALL, MIGRATE_SYNC, compact_control_of, pageblock_end
from numaemu.kernel.mm.migrate.compaction import init_control
from numaemu.kernel.mm.migrate.migrate import CONTIG_RANGE, NR_MAX_BATCHED_MIGRATION, batch_of, migrate_pages_batch
from numaemu.kernel.mm.migrate.migrate_scanner import isolate_migratepages_block
from numaemu.kernel.mm.page_alloc.page_isolation import ISOLATE_RANGE, TAKE_RANGE, UNDO_RANGE
from numaemu.kernel.mm.page_alloc.slowpath import drain_all_pages
from numaemu.kernel.mm.page_alloc.watermark import gfp_zone
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain_all
from numaemu.spec.param import MAX_ORDER

U = np.uint64
MIGRATE_TRIES, TAKE_TRIES = 5, 3  # Linux has 5 and 1; there who frees a page to a list is waited for


@kernel("i64(machine_t*, zone_t*, i64, i64)")
def has_unmovable_pages(machine, zone, start, end):
    """The first page of [start, end) that is neither free nor can be moved, or 0. No lock: a hint.

    Pages of the pools are such, as in Linux's pfn_range_valid_contig; a page without any flag is in use since boot.
    """
    pfn = start
    while pfn < end:
        if zone.virgin_pfn <= pfn < zone.virgin_end:
            pfn = zone.virgin_end
            continue
        page = page_of(machine, pfn)
        flags, order = page.flags, page.private
        if flags & U(PG_buddy) != U(0):
            pfn += 1 << order if 0 <= order <= MAX_ORDER else 1
            continue
        if flags & U(PG_hugetlb | PG_reserved) != U(0) or (
            flags & U(PG_lru | PG_pcp) == U(0) and (flags == U(0) or load_acquire(page, "refcount") != 0)
        ):
            return pfn
        pfn += 1
    return 0


@kernel("bool(cpu_t*, i64, i64, i64)")
def __alloc_contig_migrate_range(cpu, zone_number, start, end):
    """Move everything out of [start, end); False: something stayed after some tries."""
    machine = machine_of(cpu)
    cc, batch = compact_control_of(machine, cpu.id), batch_of(machine, cpu)
    init_control(cc, COMPACT_ALL, GFP_HIGHUSER, MIGRATE_SYNC, MAX_NR_ZONES - 1)
    cc.zone, cc.ignore_skip_hint, cc.alloc_contig, cc.cluster = zone_number, 1, 1, NR_MAX_BATCHED_MIGRATION
    pfn, tries = start, 0
    while pfn < end:
        batch.nr = 0
        stop = isolate_migratepages_block(cpu, cc, pfn, min(pageblock_end(pfn), end))
        nr, batch.target = batch.nr, CONTIG_RANGE
        failed = migrate_pages_batch(cpu, batch) if nr > 0 else 0
        for i in range(nr):
            release_mapping(cpu, batch.place[i])
        tries = tries + 1 if failed > 0 else 0
        if tries == MIGRATE_TRIES or failed < 0:
            return False
        pfn = stop if failed == 0 else pfn
    return True


@hot
def ask_range(cpu, zone, step, start, pages):
    """Let the zone's node do one of page_isolation.py's steps."""
    return request(cpu, actor_of_node(zone.node), MSG_RANGE, pack_zone(zone.number, step), start, pages)


@kernel("bool(cpu_t*, zone_t*, i64, i64)")
def alloc_contig_range(cpu, zone, start, end):
    """Make [start, end), whole pageblocks of a zone, ours; False: something in it stays in use."""
    if ask_range(cpu, zone, ISOLATE_RANGE, start, end - start) == 0:
        return False
    drain_all_pages(cpu)
    __alloc_contig_migrate_range(cpu, zone.number, start, end)
    for _ in range(TAKE_TRIES):
        drain_all_pages(cpu)
        if ask_range(cpu, zone, TAKE_RANGE, start, end - start) == 0:
            return True
    ask_range(cpu, zone, UNDO_RANGE, start, end - start)
    return False


@kernel("void(machine_t*, i64, i64)")
def prep_compound_gigantic_page(machine, pfn, order):
    """A compound page without references. What was never given out stays known as such (PG_used)."""
    for at in range(pfn, pfn + (1 << order)):
        page = page_of(machine, at)
        page.flags = (page.flags & U(PG_used)) | U(PG_tail)
        page.lru_next, page.lru_prev, page.mapping, page.index, page.private = pfn, 0, 0, 0, 0
        page.refcount, page.mapcount, page.order = 0, 0, order
    head = page_of(machine, pfn)
    head.flags = (head.flags & U(PG_used)) | U(PG_head)
    head.lru_next = 0


@kernel("i64(cpu_t*, i64, i64)")
def alloc_contig_pages(cpu, order, nid):
    """2**order pages of a node as a compound page, aligned to their size, without references; the first pfn, or 0: there is
    no such range.

    They are never moved again, so the zone of movable pages has none for them.
    """
    machine, pages = machine_of(cpu), 1 << order
    lru_add_drain_all(cpu)
    for kind in range(gfp_zone(machine, GFP_HIGHUSER), -1, -1):
        zone = zone_of(machine, nid * MAX_NR_ZONES + kind)
        pfn = (zone.start_pfn + pages - 1) & ~(pages - 1)
        while zone.present_pages > 0 and pfn + pages <= zone.start_pfn + zone.spanned_pages:
            if has_unmovable_pages(machine, zone, pfn, pfn + pages) == 0 and alloc_contig_range(
                cpu, zone, pfn, pfn + pages
            ):
                prep_compound_gigantic_page(machine, pfn, order)
                return pfn
            pfn += pages
    return 0
