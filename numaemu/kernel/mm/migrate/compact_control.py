"""What a compaction is about, and what compaction remembers of a zone: struct compact_control of Linux's mm/internal.h, and
the hints and the deferring of mm/compaction.c.
"""

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, i64, u8
from numaemu.kernel.include.mmzone import zone_t  # noqa: F401  (the type in signatures)
from numaemu.spec.param import PAGEBLOCK_ORDER, PAGEBLOCK_PAGES

COMPACT_CLUSTER_MAX = 32  # SWAP_CLUSTER_MAX
COMPACT_MAX_DEFER_SHIFT = 6  # compaction is skipped at most 64 times in a row

# enum migrate_mode
MIGRATE_ASYNC, MIGRATE_SYNC_LIGHT, MIGRATE_SYNC = range(3)
COMPACT_ALL = -1  # order: everything (is_via_compact_memory)

# Shared words of compact_control_t: the word | its writer | why a reader may trust it.
# - all | Its context. free_pfn, the chain of free pages and the free scanner's counts are written by the node while
#   the context waits for its reply. | Request and reply order them.
# - zone, migrate_pfn, free_pfn, read to map frames ahead | As above. | Hints: an old place maps frames that have
#   moved already, or that nobody needs. Only frames in use or used before are touched.
# fmt: off
compact_control_t = Struct("compact_control_t", [       # struct compact_control: one for each context
    # by the context that compacts
    ("zone", i64),                       # number
    ("order", i64), ("gfp", i64), ("mode", i64), ("migratetype", i64), ("highest_zoneidx", i64),
    ("direct_compaction", i64), ("whole_zone", i64), ("ignore_skip_hint", i64), ("ignore_block_suitable", i64),
    ("proactive_compaction", i64), ("finish_pageblock", i64), ("contended", i64),
    ("alloc_contig", i64),               # everything has to leave a range: what cannot be reclaimed and huge pages, too
    ("migrate_pfn", i64),                # the migrate scanner's place
    ("cluster", i64),                    # pages to isolate at a time
    ("nr_migratepages", i64),            # pages that want a target
    ("total_migrate_scanned", i64),
    # by the zone's node while the context waits for its answer, else by the context
    ("free_pfn", i64),                   # the free scanner's place
    ("freepages", i64), ("last_freepage", i64), ("nr_freepages", i64),      # the chain, linked by lru_next; 0 = none
    ("total_free_scanned", i64), ("free_isolated", i64),
])
# fmt: on


@hot
def compact_control_of(machine, number):
    return compact_control_t.array(machine.compact)[number]


@hot
def pageblock_start(pfn):
    return pfn & ~(PAGEBLOCK_PAGES - 1)


@hot
def pageblock_end(pfn):
    return (pfn & ~(PAGEBLOCK_PAGES - 1)) + PAGEBLOCK_PAGES


# -- hints: single words that any context writes without a lock, as in Linux; a lost one costs a scan or saves one -----


@hot
def get_pageblock_skip(machine, pfn):
    return u8.array(machine.block_skip)[pfn >> PAGEBLOCK_ORDER] != 0


@hot
def set_pageblock_skip(machine, pfn, skip):
    u8.array(machine.block_skip)[pfn >> PAGEBLOCK_ORDER] = skip


@hot
def isolation_suitable(machine, cc, pfn):
    """False if an earlier scan found nothing in this pageblock."""
    return cc.ignore_skip_hint != 0 or not get_pageblock_skip(machine, pfn)


@kernel("void(zone_t*, i64)")
def defer_compaction(zone, order):
    """Compaction was in vain: the next attempts are skipped, twice as many as last time."""
    zone.compact_considered = 0
    zone.compact_defer_shift = min(zone.compact_defer_shift + 1, COMPACT_MAX_DEFER_SHIFT)
    zone.compact_order_failed = min(zone.compact_order_failed, order)


@kernel("bool(zone_t*, i64)")
def compaction_deferred(zone, order):
    """True if this attempt is to be skipped."""
    if order < zone.compact_order_failed:
        return False
    limit = 1 << zone.compact_defer_shift
    zone.compact_considered += 1
    if zone.compact_considered >= limit:
        zone.compact_considered = limit
        return False
    return True


@kernel("void(zone_t*, i64, bool)")
def compaction_defer_reset(zone, order, alloc_success):
    """Compaction has led to a block, or is expected to."""
    if alloc_success:
        zone.compact_considered = zone.compact_defer_shift = 0
    if order >= zone.compact_order_failed:
        zone.compact_order_failed = order + 1


@hot
def compaction_restarting(zone, order):
    """True after the longest row of skipped attempts."""
    return (
        order >= zone.compact_order_failed
        and zone.compact_defer_shift == COMPACT_MAX_DEFER_SHIFT
        and zone.compact_considered >= 1 << zone.compact_defer_shift
    )
