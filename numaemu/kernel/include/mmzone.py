"""Zones, free areas, per-CPU page lists and zonelists: Linux's include/linux/mmzone.h."""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot
from numaemu.compiler.native import copy_page, prefetch_l2
from numaemu.compiler.pointer import Struct, i64, u8, u64
from numaemu.hardware.controller import charge_move
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import page_t
from numaemu.spec.param import MAX_NODES, NR_ORDERS, PAGE_SHIFT, PAGE_SIZE

U = np.uint64

ZONE_DMA, ZONE_DMA32, ZONE_NORMAL, ZONE_HIGHMEM, ZONE_MOVABLE = range(5)
MAX_NR_ZONES = 5
ZONE_NAMES = ("DMA", "DMA32", "Normal", "HighMem", "Movable")

MIGRATE_UNMOVABLE, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE = 0, 1, 2
MIGRATE_PCPTYPES = 3  # the types kept on per-CPU lists
PCP_PARTS = 2 * MIGRATE_PCPTYPES  # where a CPU's pages of a zone are: a list and a shelf for each type
MIGRATE_HIGHATOMIC, MIGRATE_ISOLATE = 3, 4
MIGRATE_TYPES = 5
MIGRATE_NAMES = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate")

WMARK_MIN, WMARK_LOW, WMARK_HIGH, WMARK_PROMO, NR_WMARK = range(5)
ZONE_BOOSTED_WATERMARK = 1  # zone->flags: kswapd shall be woken for the boost

PCP_BATCH_SCALE_MAX = 5  # the longest chain a CPU takes at once is batch << this (Kconfig)
PCP_HIGH_MAX = 1024  # pages, likewise; measured

# fmt: off
free_area_t = Struct("free_area_t", [
    ("head", i64, MIGRATE_TYPES), ("tail", i64, MIGRATE_TYPES),     # pfn of the first and last free block, 0 = none
    ("nr_free", i64, MIGRATE_TYPES),                                # blocks
])

# Shared words of zone_t: the word | its writer | why a reader may trust it.
# - counters, watermarks | The node. | Single words: a stale value is a stale watermark, as in Linux.
# - returned | CPUs push (compare-exchange), the node takes all (exchange). | Nobody pops one, so there is no ABA.
# - watermark_boost | The node adds at a fallback, kswapd takes away, both by compare-exchange or atomic add; 0 by a
#   sysctl. | As a watermark.
# - flags | The node sets ZONE_BOOSTED_WATERMARK (atomic OR). | The CPU whose atomic AND clears it wakes kswapd: one
#   waker each time.
# - compact_* | Any context that compacts, without a lock. | Hints: a lost one costs a scan or saves one.
zone_t = Struct("zone_t", [
    # written by the node that owns it only; read by everyone, as single words
    ("free_pages", i64),             # NR_FREE_PAGES: pages on free lists and in the virgin range
    ("_pad0", u64, 7),
    # returned pages: any CPU pushes a chain (compare-exchange on the head), the node takes all (exchange)
    ("returned", i64), ("_pad1", u64, 7),
    # set at boot (watermarks also by sysctl, by the node)
    ("node", i64), ("type", i64),
    ("start_pfn", i64), ("spanned_pages", i64), ("present_pages", i64), ("managed_pages", i64),
    ("watermark", i64, NR_WMARK),
    ("watermark_boost", i64),        # pages on top of each mark: the node adds, kswapd takes away, atomically
    ("lowmem_reserve", i64, MAX_NR_ZONES),
    ("pcp_batch", i64),              # pages of a CPU's first request; doubled while demand goes on
    ("pcp_high", i64),               # what a CPU may have of the zone, on its lists and shelves together
    ("pcp_list_high", i64),          # what one list, and one shelf, may have: their share of it
    ("pcp_free_high", i64),          # the same for who frees a page; -1 while that is traced (page_alloc.set_alloc_hooks)
    ("number", i64),                 # node * MAX_NR_ZONES + type
    # ZONE_*: bits set by the node, cleared by CPUs, atomically
    ("flags", u64),
    # written by the node only
    ("virgin_pfn", i64), ("virgin_end", i64),     # never handed out: not on a list, its page structs not written
    ("nr_reserved_highatomic", i64), ("nr_free_highatomic", i64),      # pages of such pageblocks; those that are free
    ("nr_isolated", i64),            # free pages that nobody may have; not in free_pages
    ("block_counts", i64, 2),        # free and movable pages of the pageblock that is looked at
    ("free_area", free_area_t, NR_ORDERS),
    # by any context that compacts, single words without a lock: hints (compact_control.py)
    ("compact_cached_free_pfn", i64), ("compact_cached_migrate_pfn", i64, 2),      # where to go on: async, sync
    ("compact_init_free_pfn", i64), ("compact_init_migrate_pfn", i64),
    ("compact_considered", i64), ("compact_defer_shift", i64), ("compact_order_failed", i64),
    ("compact_blockskip_flush", i64),
])

# Shared words of pcp_list_t: the word | its writer | why a reader may trust it.
# - shelf | The node stores a chain when it is 0 or -1; the CPU exchanges it with 0. | The context that exchanges
#   owns the chain.
pcp_list_t = Struct("pcp_list_t", [
    # this CPU only
    ("head", i64), ("count", i64),   # pages ready to take or just freed, linked by lru_next, newest first
    ("batch", i64),                  # pages asked for next time; doubles while demand goes on, up to pcp_list_high
    ("asked", i64),                  # 1: a request is on its way (cleared by the CPU when it takes the chain)
    # the hand-off: the node puts a chain here when the word is 0, the CPU takes it by exchange
    ("shelf", i64),                  # pfn of the first page of the chain, 0 = empty, -1 = the node has none to give
    ("shelf_count", i64), ("shelf_ahead", i64),      # by the node before it puts one there; 1: nobody waits for it
    ("_pad", u64),
], nbytes=64)
# fmt: on

pcp_t = Struct(
    "pcp_t",
    [  # struct per_cpu_pages: one for each CPU and zone
        ("lists", pcp_list_t, MIGRATE_PCPTYPES)
    ],
)

# the LRU lists of a node: enum lru_list
LRU_INACTIVE_ANON, LRU_ACTIVE_ANON, LRU_INACTIVE_FILE, LRU_ACTIVE_FILE, LRU_UNEVICTABLE, NR_LRU_LISTS = range(6)
LRU_ACTIVE, LRU_FILE = 1, 2  # LRU_BASE + LRU_ACTIVE + LRU_FILE

# Shared words of lruvec_t: the word | its writer | why a reader may trust it.
# - lists and counts | Under the node's lru_lock. | Counts are also read as single words.
# - state | The CPU whose clock has passed machine.stats_flush_ns, every 2 s; before the first time also a context
#   that reclaims. | Reclaim and refaults: hints by design, as old as Linux's sums of memory cgroups
#   (mem_cgroup_flush_stats_ratelimited).
# fmt: off
lruvec_t = Struct("lruvec_t", [      # struct lruvec; everything under lru_lock, counts also read as single words
    ("lru_lock", u64), ("_pad", u64, 7),
    ("head", i64, NR_LRU_LISTS), ("tail", i64, NR_LRU_LISTS),      # pfn, 0 = empty; pages are added at the head
    ("nr", i64, NR_LRU_LISTS),                                     # pages
    ("zone_nr", i64, NR_LRU_LISTS * MAX_NR_ZONES),                 # by list and zone type: mem_cgroup_per_node.lru_zone_size
    ("anon_cost", i64), ("file_cost", i64),                        # pages whose reclaim was in vain, fading
    ("nonresident_age", i64),        # evictions and activations so far, atomically: the clock of workingset.py
    ("refaults", i64, 2),            # WORKINGSET_ACTIVATE_ANON and _FILE as of the last reclaim; plain, a hint
    # lruvec_stats.state of the root memory cgroup: counts of NODE_STATS as of the last flush (vmstat.py); plain, hints
    ("state", i64, 16),
])
# fmt: on

NODE_RUNS = 32  # pieces of a chain that are made present on the host at once

KSWAPD, KCOMPACTD, KHUGEPAGED, ZSWAP_SHRINK = 1, 2, 4, 8  # work for a node's kernel threads: node_t.kthread_pending

# Shared words of node_t: the word | its writer | why a reader may trust it.
# - map_source, map_target | The node's first thread. | Nobody else reads them.
# - kthread_pending | A context that wakes: atomic OR, then the bell. The thread: exchange with 0. | A bit that is
#   set after the exchange rings again.
# - kthread_wake_ns | A context that wakes, by compare-exchange with a later time. | It only grows.
# - kswapd_* (order, highest zone, failures), kcompactd_* | Contexts that wake the thread raise them, the thread
#   takes them back. | Hints: a lost one is asked for again.
# - proactive_next_ns, proactive_compact_trigger | kcompactd; the trigger is set by the coordinator. | Single words:
#   a stale one is a look too many, or 500 ms later.
# - reclaim_locked | Compare-exchange: one CPU is in node_reclaim of a node. | A CPU that finds it taken goes on to
#   the next zone.
# - nbp_th_start_ms, nbp_rl_start_ms | The CPU that promotes whose compare-exchange wins; the other nbp_* by it. |
#   Hints: a rate, and a threshold.
# - min_unmapped_pages, min_slab_pages | The coordinator. | Single words: an old one is an earlier moment's.
# fmt: off
node_t = Struct("node_t", [          # pg_data_t
    ("nr_runs", i64), ("run_pfn", i64, NODE_RUNS), ("run_pages", i64, NODE_RUNS),      # the node's main thread only
    ("map_source", i64), ("map_target", i64),      # likewise: pfns up to which map_ahead has come
    ("_pad", u64, 5),
    ("kthread_pending", u64),        # set by whoever wakes one, taken by the node's kernel threads; atomically
    ("kthread_running", i64),        # 1 while they work
    ("kthread_wake_ns", i64),        # the latest clock of those that have woken them
    # hints for kswapd: written by CPUs that wake it, reset by it; plain, a lost one is asked for again
    ("kswapd_order", i64), ("kswapd_highest_zoneidx", i64), ("kswapd_failures", i64),
    ("kcompactd_max_order", i64), ("kcompactd_highest_zoneidx", i64),      # for kcompactd, likewise
    ("proactive_next_ns", i64),      # by kcompactd: when it looks at the fragmentation score again
    ("proactive_compact_trigger", i64),      # 1 by a write to the sysctl: at once; 0 by kcompactd
    ("min_unmapped_pages", i64), ("min_slab_pages", i64),      # by the coordinator: what node_reclaim leaves alone
    ("reclaim_locked", i64),         # PGDAT_RECLAIM_LOCKED: a CPU is in node_reclaim; compare-exchange
    # the node's memory tier, set at boot (mm/numa/memory_tiers.py): abstract distance, 1 if it is one of the fastest,
    # where it demotes to first, all nodes of lower tiers
    ("adistance", i64), ("toptier", i64), ("demotion_preferred", u64), ("lower_tier_mask", u64),
    ("nr_present_pages", i64),       # node_present_pages; set at boot
    # promotion to this node, by the CPUs that promote: the hot threshold in force (ms, 0: the default) and when it was adjusted,
    # since when and from which count on the rate is limited
    ("nbp_threshold", i64), ("nbp_th_start_ms", i64), ("nbp_th_nr_cand", i64), ("nbp_rl_start_ms", i64), ("nbp_rl_nr_cand", i64),
])
# fmt: on


@hot
def zone_of(machine, zone):
    """The zone with number node * MAX_NR_ZONES + type."""
    return zone_t.array(machine.zones)[zone]


@hot
def page_of(machine, pfn):
    """pfn_to_page"""
    return page_t.array(machine.mem_map)[pfn]


@hot
def page_to_nid(machine, pfn):
    """The node that owns a frame."""
    return int(u8.array(machine.block_node)[pfn >> 9])


@hot
def charge_clear_pages(machine, cpu, pfn, pages):
    """Clearing pages that lie on one node takes so long, and moves their bytes."""
    charge_move(cpu, -1, page_to_nid(machine, pfn), pages * PAGE_SIZE, pages * machine.clear_page_ns)


@hot
def charge_copy_pages(machine, cpu, new, old, pages):
    """Likewise copying pages."""
    source, target = page_to_nid(machine, old), page_to_nid(machine, new)
    charge_move(cpu, source, target, pages * PAGE_SIZE, pages * machine.copy_page_ns)


@hot
def charge_copy_buffer(machine, cpu, pfn, nbytes):
    """Likewise copying bytes between a page and a buffer, which is no emulated memory."""
    charge_move(cpu, -1, page_to_nid(machine, pfn), nbytes, machine.copy_page_ns * nbytes >> PAGE_SHIFT)


@hot
def copy_highpage(machine, cpu, new, old):
    """The contents of one frame into another."""
    source, target = frame_of(machine, old), frame_of(machine, new)
    load_acquire(u64.array(target), 0)  # a reading host fault maps 16 neighbours, a writing one only this
    copy_page(target, source)
    charge_copy_pages(machine, cpu, new, old, 1)


@hot
def prefetch_half(machine, pfn, half):
    """Ask the host for the first (0) or second (1) half of a frame: about as much as its caches can wait for at once."""
    start = frame_of(machine, pfn) + U(2048 * half)
    for line in range(32):
        prefetch_l2(start + U(64 * line))


@hot
def page_zone(machine, pfn):
    """Number of the zone that a frame lies in: zones begin and end at 2 MiB."""
    return int(u8.array(machine.block_node)[pfn >> 9]) * MAX_NR_ZONES + int(u8.array(machine.block_zone)[pfn >> 9])


@hot
def node_of(machine, node):
    """NODE_DATA"""
    return node_t.array(machine.nodes)[node]


@hot
def lruvec_of(machine, node):
    """The LRU lists of a node."""
    return lruvec_t.array(machine.lruvecs)[node]


@hot
def pcp_of(machine, cpu_number, zone):
    """The per-CPU page lists of one CPU for one zone."""
    return pcp_t.array(machine.pcps)[cpu_number * machine.nr_nodes * MAX_NR_ZONES + zone]


@hot
def zonelist(machine, node):
    """Node numbers in the order in which `node` falls back; -1 ends."""
    return i64.array(machine.zonelists + U(node * MAX_NODES * 8))


@hot
def node_distance(machine, node, other):
    """As the ACPI SLIT has it: 10 is the node itself."""
    return np.int64(u8.array(machine.distance)[node * machine.nr_nodes + other])


@hot
def wmark_pages(zone, mark):
    """A watermark as it is in force: with the boost."""
    return zone.watermark[mark] + zone.watermark_boost


# -- for those who show zones -----------------------------------------------------------------------------------

ZONES = (ZONE_DMA, ZONE_DMA32, ZONE_NORMAL, ZONE_MOVABLE)
ZONES_32 = (ZONE_DMA, ZONE_NORMAL, ZONE_HIGHMEM, ZONE_MOVABLE)


def kilobytes(pages):
    return pages << (PAGE_SHIFT - 10)


def zone_kinds(machine):
    """The zone types of the machine's kernel."""
    return ZONES_32 if machine.highmem else ZONES


def populated_zones(machine, node):
    """The zones of a node that have memory."""
    zones = [zone_of(machine, node * MAX_NR_ZONES + kind) for kind in range(MAX_NR_ZONES)]
    return [zone for zone in zones if zone.present_pages > 0]
