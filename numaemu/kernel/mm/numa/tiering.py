"""A tiering policy of one's own (numaemu/tiering): what it is told about a page, and what it may answer.

    SAMPLES = FAULTS      it is asked at each hinting fault on a page of a slow tier, instead of Linux's should_promote
    SAMPLES = ACCESSED    it is asked about each page of a running task once in an interval, with the Accessed bit: sampling.py

Both while kernel.numa_balancing has 2.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import call_address
from numaemu.compiler.pointer import Struct, i64, u64
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import PG_active
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, WMARK_HIGH, page_of, page_to_nid, wmark_pages, zone_of
from numaemu.kernel.mm.numa.memory_tiers import NUMA_BALANCING_MEMORY_TIERING, node_is_toptier
from numaemu.kernel.mm.numa.prot_numa import jiffies_ms
from numaemu.kernel.mm.reclaim.lru import folio_is_file_lru, folio_test
from numaemu.kernel.mm.reclaim.lru_batches import folio_activate

U = np.uint64
STAY, PROMOTE, DEMOTE, MARK = range(4)  # what a policy answers; MARK: it stays, and joins the active list
LINUX, FAULTS, ACCESSED = range(3)  # machine.tiering_samples
MOVES = 512  # pages of each kind that a CPU collects before they move

page_sample_t = Struct(
    "page_sample_t",
    [  # what a policy is told
        ("now_ms", i64),  # emulated time
        ("node", i64),
        ("fast", i64),  # where the page is; 1: in the fastest tier
        ("pages", i64),  # 1, or those of a huge page
        ("used", i64),  # ACCESSED: 1 if it was used in the last interval
        ("latency_ms", i64),  # FAULTS: since it was scanned (numa_hint_fault_latency)
        ("active", i64),
        ("file", i64),  # 1: it is on the active list; of a file
        ("room", i64),  # pages that the node has free above its high watermark where it would be promoted to
        ("heat", i64),  # ACCESSED: 21 bits that the policy keeps with the page; 0 of a page that is new in its tier
    ],
)
tiering_moves_t = Struct(
    "tiering_moves_t",
    [  # what a CPU has collected: pages to promote, and to demote
        ("nr", i64, 2),
        ("vaddr", u64, 2 * MOVES),
        ("node", i64, 2 * MOVES),
        ("status", i64, MOVES),
    ],
)


@hot
def samples_accessed(machine):
    """True if a policy that goes by Accessed bits is at work."""
    return machine.tiering_samples == ACCESSED and machine.numa_balancing & NUMA_BALANCING_MEMORY_TIERING != 0


@kernel("i64(machine_t*, i64)")
def room_of(machine, node):
    """Pages that a node has free above its high watermarks."""
    room = 0
    for kind in range(MAX_NR_ZONES):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.managed_pages > 0:
            room += max(0, zone.free_pages - wmark_pages(zone, WMARK_HIGH))
    return room


@kernel("i64(cpu_t*, i64, i64, i64)")
def ask_policy(cpu, pfn, pages, room):
    """The policy's answer for a page; the caller has filled in what only it knows."""
    machine, page = machine_of(cpu), page_of(machine_of(cpu), pfn)
    sample = page_sample_t.array(machine.page_samples)[cpu.id]
    sample.now_ms, sample.pages, sample.room, sample.node = jiffies_ms(cpu), pages, room, page_to_nid(machine, pfn)
    sample.fast = 1 if node_is_toptier(machine, sample.node) else 0
    sample.active = 1 if folio_test(page, PG_active) else 0
    sample.file = 1 if folio_is_file_lru(page) else 0
    return np.int64(call_address(machine.on_tiering, sample.address, U(0), U(0)))


@kernel("bool(cpu_t*, i64, i64, i64, i64)")
def policy_promotes(cpu, pfn, pages, node, latency_ms):
    """The policy's answer at a hinting fault."""
    machine = machine_of(cpu)
    sample = page_sample_t.array(machine.page_samples)[cpu.id]
    sample.used, sample.latency_ms, sample.heat = 1, latency_ms, 0
    answer = ask_policy(cpu, pfn, pages, room_of(machine, node))
    if answer == MARK:
        folio_activate(cpu, pfn)
    return answer == PROMOTE
