"""The trail of one allocation: what the page allocator did, step by step, for `alloc_pages(..., explain=True)`.

Each CPU has a buffer of its own and writes it only while its `trail` is set, so that nobody else pays for it.
"""
from numaemu.compile import kernel
from numaemu.kernel.gfp import gfp_text
from numaemu.kernel.internal import ALLOC_WMARK_MASK
from numaemu.kernel.mm_types import machine_t
from numaemu.kernel.mmzone import MAX_NR_ZONES, ZONE_NAMES, wmark_pages, zone_of
from numaemu.mmu import clock_ns
from numaemu.pointer import Struct, i64

TRAIL_STEPS = 250                # what comes after them is only counted

trail_step_t = Struct("trail_step_t", [
    ("kind", i64), ("zone", i64),                        # TRAIL_*; number of a zone (of a node for TRAIL_KSWAPD), or -1
    ("free", i64), ("mark", i64), ("reserve", i64),      # pages, as they were then
    ("flags", i64), ("value", i64),                      # alloc flags; what the step brought
    ("clock_ns", i64),
])
trail_t = Struct("trail_t", [("count", i64), ("steps", trail_step_t, TRAIL_STEPS)])      # written by its CPU only

(TRAIL_START, TRAIL_MARK_FAILED, TRAIL_NO_PAGE, TRAIL_TAKEN, TRAIL_KSWAPD, TRAIL_SLOWPATH, TRAIL_RESERVES,
 TRAIL_COMPACT, TRAIL_RECLAIM, TRAIL_DRAIN, TRAIL_UNRESERVE, TRAIL_RETRY, TRAIL_OOM, TRAIL_FAILED) = range(14)
TRAIL_TEXTS = ("start", "watermark failed", "no page", "taken", "kswapd woken", "lower bar", "reserves", "compaction",
               "direct reclaim", "drain", "unreserve highatomic", "retry", "OOM killer", "failed")
_MARKS = ("min", "low", "high", "none")


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
    if zone_number >= 0 and kind != TRAIL_KSWAPD:
        zone = zone_of(machine, zone_number)
        mark = flags & ALLOC_WMARK_MASK
        step.free = zone.free_pages
        step.mark = wmark_pages(zone, mark) if mark < 3 else 0
        step.reserve = zone.lowmem_reserve[highest_zone]


def place_text(step):
    if step["zone"] < 0:
        return ""
    if step["kind"] == TRAIL_KSWAPD:
        return f"node {step['zone']}"
    return f"node {step['zone'] // MAX_NR_ZONES} {ZONE_NAMES[step['zone'] % MAX_NR_ZONES]}"


class Step:
    """One step of a trail: what, where (zone), free pages, watermark (mark_name), reserve, value, cost_ns."""

    def __init__(self, step, before_ns):
        self.kind, self.what, self.where = int(step["kind"]), TRAIL_TEXTS[step["kind"]], place_text(step)
        self.free, self.mark, self.reserve = int(step["free"]), int(step["mark"]), int(step["reserve"])
        self.mark_name = _MARKS[step["flags"] & ALLOC_WMARK_MASK]
        self.alloc_flags, self.value = int(step["flags"]), int(step["value"])
        self.cost_ns = int(step["clock_ns"]) - before_ns

    def figures(self):
        """What is to be said about it beside its place."""
        if self.kind in (TRAIL_MARK_FAILED, TRAIL_NO_PAGE, TRAIL_TAKEN):
            sign = ">" if self.free > self.mark + self.reserve else "<="
            return f"free {self.free} {sign} {self.mark_name} {self.mark} + reserve {self.reserve}" + \
                (f", pfn {self.value}" if self.kind == TRAIL_TAKEN else "")
        if self.kind in (TRAIL_RECLAIM, TRAIL_DRAIN):
            return f"{self.value} pages"
        if self.kind == TRAIL_SLOWPATH:
            return f"alloc flags {self.alloc_flags:#x}"
        return {TRAIL_COMPACT: f"result {self.value}", TRAIL_RETRY: f"no progress {self.value} times",
                TRAIL_OOM: "memory may come" if self.value else "nobody to kill",
                TRAIL_UNRESERVE: "a pageblock" if self.value else "nothing"}.get(self.kind, "")

    def __repr__(self):
        return " ".join(word for word in (self.what, self.where, self.figures()) if word)


class Trail:
    """What an allocation did: its pfn (None: nobody could serve it) and the steps, in order."""

    def __init__(self, pfn, gfp, order, steps, lost):
        self.pfn, self.gfp, self.order, self.lost = pfn, gfp, order, lost
        clocks = [int(step["clock_ns"]) for step in steps]
        self.steps = [Step(step, before) for step, before in zip(steps[1:], clocks)]
        self.cost_ns = clocks[-1] - clocks[0] if clocks else 0

    def __iter__(self):
        return iter(self.steps)

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, i):
        return self.steps[i]

    def __str__(self):
        rows = [(step.what, step.where, step.figures(), f"{step.cost_ns} ns") for step in self.steps]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
        lines = [f"alloc_pages order {self.order} {gfp_text(self.gfp)[1]}: "
                 + (f"pfn {self.pfn}" if self.pfn else "failed") + f", {self.cost_ns} ns"]
        lines += [f"  {what:<{widths[0]}}  {where:<{widths[1]}}  {figures:<{widths[2]}}  {cost:>{widths[3]}}".rstrip()
                  for what, where, figures, cost in rows]
        return "\n".join(lines + ([f"  and {self.lost} steps more"] if self.lost else []))

    __repr__ = __str__


def read_trail(machine, cpu_number, pfn, gfp, order):
    """The trail that a CPU has just left."""
    trail = trail_t.array(machine.trails)[cpu_number]
    kept = min(trail.count, TRAIL_STEPS)
    return Trail(pfn or None, gfp, order, trail.as_numpy()["steps"][:kept].copy(), trail.count - kept)
