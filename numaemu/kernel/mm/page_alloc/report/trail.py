"""The trail of one allocation: what the page allocator did, step by step, for `alloc_pages(..., explain=True)`.

Each CPU has a buffer of its own and writes it only while its `trail` is set, so that nobody else pays for it.
"""

from numaemu.compiler.decorators import kernel
from numaemu.compiler.pointer import Struct, i64
from numaemu.kernel.include.internal import ALLOC_RESERVES, ALLOC_WMARK_MASK
from numaemu.kernel.include.mm_types import machine_t
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, ZONE_NAMES, wmark_pages, zone_of
from numaemu.kernel.mm.page_alloc.watermark import reserve_mark
from numaemu.mmu import clock_ns

TRAIL_STEPS = 250  # what comes after them is only counted

# fmt: off
trail_step_t = Struct("trail_step_t", [
    ("kind", i64), ("zone", i64),                        # TRAIL_*; number of a zone (of a node for TRAIL_KSWAPD, TRAIL_DIRTY), or -1
    ("free", i64), ("mark", i64), ("reserve", i64),      # pages, as they were then
    ("flags", i64), ("value", i64),                      # alloc flags; what the step brought
    ("clock_ns", i64),
])
# fmt: on
# Shared words of trail_t: the word | its writer | why a reader may trust it.
# - all | Their CPU. | The CPU only. slowpath_t likewise; its second one is for what reclaim itself allocates
#   (PF_MEMALLOC).
trail_t = Struct("trail_t", [("count", i64), ("steps", trail_step_t, TRAIL_STEPS)])  # written by its CPU only

# fmt: off
(TRAIL_START, TRAIL_MARK_FAILED, TRAIL_NO_PAGE, TRAIL_TAKEN, TRAIL_KSWAPD, TRAIL_SLOWPATH, TRAIL_RESERVES,
 TRAIL_COMPACT, TRAIL_RECLAIM, TRAIL_DRAIN, TRAIL_UNRESERVE, TRAIL_RETRY, TRAIL_OOM, TRAIL_FAILED, TRAIL_DIRTY,
 TRAIL_NO_BLOCK) = range(16)
TRAIL_TEXTS = ("start", "watermark failed", "no page", "taken", "kswapd woken", "lower bar", "reserves", "compaction",
               "direct reclaim", "drain", "unreserve highatomic", "retry", "OOM killer", "failed", "too dirty", "no block")
# fmt: on


@kernel("void(cpu_t*, i64, i64, i64, i64, i64)")
def leave_trail(cpu, kind, zone_number, flags, highest_zone, value):
    """Note a step; its zone's figures are those of this moment."""
    machine = machine_t.at(cpu.machine)
    trail = trail_t.array(machine.trails)[cpu.id]
    n = trail.count
    trail.count = n + 1
    if n >= TRAIL_STEPS:
        return
    step = trail.steps[n]
    step.kind, step.zone, step.flags, step.value, step.clock_ns = kind, zone_number, flags, value, clock_ns(cpu)
    step.free = step.mark = step.reserve = 0
    if zone_number >= 0 and kind != TRAIL_KSWAPD and kind != TRAIL_DIRTY:
        zone = zone_of(machine, zone_number)
        mark = flags & ALLOC_WMARK_MASK
        step.free = zone.free_pages
        step.mark = wmark_pages(zone, mark) if mark < 3 else 0
        if flags & ALLOC_RESERVES:
            step.mark = reserve_mark(step.mark, flags)
        step.reserve = zone.lowmem_reserve[highest_zone]


def place_text(kind, zone):
    """Where a step happened, as people read it."""
    if zone < 0:
        return ""
    return (
        f"node {zone}"
        if kind in (TRAIL_KSWAPD, TRAIL_DIRTY)
        else f"node {zone // MAX_NR_ZONES} {ZONE_NAMES[zone % MAX_NR_ZONES]}"
    )


def read_trail(machine, cpu_number):
    """The steps a CPU has just left, as tuples (what, where, free, mark, reserve, alloc flags, value, clock_ns), and how
    many there was no room for.
    """
    trail = trail_t.array(machine.trails)[cpu_number]
    kept = min(trail.count, TRAIL_STEPS)
    steps = []
    for n in range(kept):
        step = trail.steps[n]
        steps.append(
            (
                TRAIL_TEXTS[step.kind],
                place_text(step.kind, step.zone),
                step.free,
                step.mark,
                step.reserve,
                step.flags,
                step.value,
                step.clock_ns,
            )
        )
    return steps, trail.count - kept
