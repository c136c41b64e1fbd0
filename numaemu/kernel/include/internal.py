"""What the page allocator, reclaim and compaction say to each other: Linux's mm/internal.h and compaction.h."""

import numpy as np

from numaemu.compiler.decorators import hot
from numaemu.kernel.include.gfp import (
    __GFP_COMP,
    __GFP_DIRECT_RECLAIM,
    __GFP_HIGH,
    __GFP_IO,
    __GFP_KSWAPD_RECLAIM,
    __GFP_MEMALLOC,
    __GFP_NOMEMALLOC,
)

U = np.uint64

# how an allocation may go about its zones; the two lowest bits name the watermark it has to respect
ALLOC_WMARK_MIN, ALLOC_WMARK_LOW, ALLOC_WMARK_HIGH, ALLOC_WMARK_MASK = 0, 1, 2, 3
ALLOC_NO_WATERMARKS = 0x004
ALLOC_OOM = 0x008  # a dying task: half of what is left of the reserve
ALLOC_NON_BLOCK = 0x010  # it cannot wait: with MIN_RESERVE a quarter more of the reserve
ALLOC_MIN_RESERVE = 0x020  # __GFP_HIGH: half of the reserve below min
ALLOC_CPUSET = 0x040
ALLOC_SPREAD_DIRTY = 0x080  # ac->spread_dirty_pages: from a node within its dirty limit only
ALLOC_NOFRAGMENT = 0x100  # rather a lower zone than another migratetype's pageblock
ALLOC_HIGHATOMIC = 0x200  # may use pageblocks kept for large atomic allocations
ALLOC_AHEAD = 0x400  # the emulator's own: a chain asked for before it is needed
ALLOC_KSWAPD = 0x800  # may wake kswapd
ALLOC_RESERVES = ALLOC_NON_BLOCK | ALLOC_MIN_RESERVE | ALLOC_HIGHATOMIC | ALLOC_OOM


# -- words that hold several small numbers, in messages to a node and in calls upward (machine.on_*) -----------------

ALLOC_BITS = 12  # of all flags above, below the zone's number
ALLOC_MASK = (1 << ALLOC_BITS) - 1
ORDER_BITS = 4
ORDER_MASK = (1 << ORDER_BITS) - 1


@hot
def pack_zone(zone_number, what):
    """A zone's number and what is wanted of it, below ALLOC_MASK, in one i64."""
    return zone_number << ALLOC_BITS | what


@hot
def unpack_zone(word):
    """(zone's number, what is wanted of it)"""
    return word >> ALLOC_BITS, word & ALLOC_MASK


@hot
def pack_alloc(gfp, order, more):
    """An allocation in one u64: its flags, its order, and a third number up to ORDER_MASK."""
    return U((gfp << ORDER_BITS | more) << ORDER_BITS | order)


@hot
def unpack_alloc(word):
    """(gfp, order, the third number)"""
    packed = np.int64(word)
    return packed >> 2 * ORDER_BITS, packed & ORDER_MASK, (packed >> ORDER_BITS) & ORDER_MASK


PAGE_ALLOC_COSTLY_ORDER = 3
MAX_RECLAIM_RETRIES = 16
MAX_COMPACT_RETRIES = 16

# vm.zone_reclaim_mode, what node_reclaim answers (Linux's values plus 2), and how far away a zone may be for it
RECLAIM_ZONE, RECLAIM_WRITE, RECLAIM_UNMAP = 1, 2, 4
NODE_RECLAIM_NOSCAN, NODE_RECLAIM_FULL, NODE_RECLAIM_SOME, NODE_RECLAIM_SUCCESS = range(4)
NODE_RECLAIM_DISTANCE = 30  # node_reclaim_distance, RECLAIM_DISTANCE of include/linux/topology.h

# cpu.flags: what its context is about
PF_MEMALLOC = 0x800  # it reclaims or compacts: its own allocations may use every page
PF_OOM_ORIGIN = 1 << 40  # in cpu.flags: it empties a swap area (Linux: oom_flag_origin)
PF_KSWAPD = 0x20000  # it is kswapd

# enum compact_result
# fmt: off
(COMPACT_NOT_SUITABLE_ZONE, COMPACT_SKIPPED, COMPACT_DEFERRED, COMPACT_NO_SUITABLE_PAGE, COMPACT_CONTINUE,
 COMPACT_COMPLETE, COMPACT_PARTIAL_SKIPPED, COMPACT_CONTENDED, COMPACT_DONE) = range(9)      # the last: COMPACT_SUCCESS
# fmt: on
# enum compact_priority
COMPACT_PRIO_SYNC_FULL, COMPACT_PRIO_SYNC_LIGHT, COMPACT_PRIO_ASYNC = range(3)
MIN_COMPACT_PRIORITY, MIN_COMPACT_COSTLY_PRIORITY = COMPACT_PRIO_SYNC_FULL, COMPACT_PRIO_SYNC_LIGHT
DEF_COMPACT_PRIORITY, INIT_COMPACT_PRIORITY = COMPACT_PRIO_SYNC_LIGHT, COMPACT_PRIO_ASYNC


@hot
def gfp_to_alloc_flags(gfp, order):
    """How the slow path begins: down to min, further for those who cannot wait."""
    flags = ALLOC_WMARK_MIN | ALLOC_CPUSET
    if gfp & __GFP_HIGH:
        flags |= ALLOC_MIN_RESERVE
    if gfp & __GFP_KSWAPD_RECLAIM:
        flags |= ALLOC_KSWAPD
    if gfp & __GFP_DIRECT_RECLAIM:
        return flags
    if not gfp & __GFP_NOMEMALLOC:
        flags |= ALLOC_NON_BLOCK
        if order > 0 and flags & ALLOC_MIN_RESERVE:
            flags |= ALLOC_HIGHATOMIC
    if flags & ALLOC_MIN_RESERVE:
        flags &= ~ALLOC_CPUSET
    return flags


@hot
def gfp_pfmemalloc_flags(gfp, cpu_flags, is_victim):
    """__gfp_pfmemalloc_flags: who may go below the watermarks."""
    if gfp & __GFP_NOMEMALLOC:
        return 0
    if gfp & __GFP_MEMALLOC or cpu_flags & PF_MEMALLOC:
        return ALLOC_NO_WATERMARKS
    return ALLOC_OOM if is_victim else 0


@hot
def gfp_compaction_allowed(gfp):
    return gfp & __GFP_IO != 0


@hot
def node_reclaim_enabled(machine):
    return machine.node_reclaim_mode & (RECLAIM_ZONE | RECLAIM_WRITE | RECLAIM_UNMAP) != 0


@hot
def is_compound(gfp, order):
    return order > 0 and gfp & __GFP_COMP != 0
