"""What `alloc_pages(..., explain=True)` gives: the steps of one allocation, to look at and to print."""

from numaemu.api.tables import Table, html
from numaemu.kernel.include.gfp import gfp_text

MARKS = ("min", "low", "high", "no mark")
# fmt: off
ALLOC_NAMES = ("ALLOC_NO_WATERMARKS", "ALLOC_OOM", "ALLOC_NON_BLOCK", "ALLOC_MIN_RESERVE", "ALLOC_CPUSET",
               "ALLOC_SPREAD_DIRTY", "ALLOC_NOFRAGMENT", "ALLOC_HIGHATOMIC", "ALLOC_KSWAPD")
COMPACT_RESULTS = ("no zone suits", "skipped, too little is free", "deferred after failures", "no page suits", "goes on",
                   "complete, the whole zone was scanned", "part of the zone was scanned", "given up, others need the lock",
                   "success")                   # by enum compact_result
# fmt: on


def alloc_flags_text(flags):
    """ALLOC_WMARK_MIN|ALLOC_CPUSET: how an allocation goes about its zones."""
    from numaemu.kernel.include import internal  # loads the compiled code's tools, which a driver does without

    mark = (
        ()
        if flags & internal.ALLOC_NO_WATERMARKS
        else (f"ALLOC_WMARK_{MARKS[flags & internal.ALLOC_WMARK_MASK].upper()}",)
    )
    return "|".join([*mark, *(name for name in ALLOC_NAMES if flags & getattr(internal, name))])


class Step:
    """One step: what was done and where; for a zone its free pages, the watermark it had to stay above (mark, of the
    name mark_name, lowered for those who cannot wait) and the lowmem reserve on top; value (pages, a result); cost_ns in
    emulated time.
    """

    def __init__(self, step, before_ns, order):
        self.what, self.where, self.free, self.mark, self.reserve, self.alloc_flags, self.value, clock_ns = step
        self.order = order
        if self.what == "no block" or self.what == "no page" and order:
            self.what = f"no block of order {order}"
        self.mark_name = "no mark" if self.alloc_flags & 4 else MARKS[self.alloc_flags & 3]
        self.cost_ns = clock_ns - before_ns

    def figures(self):
        """What is to be said beside its place."""
        from numaemu.kernel.include import internal

        if self.what.startswith(("watermark", "no ")):
            lowered = " lowered to" if self.alloc_flags & internal.ALLOC_RESERVES else ""
            others = f" - {self.value} not for it" if self.value else ""
            return f"free {self.free}{others}, {self.mark_name}{lowered} {self.mark} + reserve {self.reserve}"
        return {
            "taken": f"pfn {self.value}, free {self.free} left",
            "lower bar": alloc_flags_text(self.alloc_flags),
            "reserves": alloc_flags_text(self.alloc_flags),
            "direct reclaim": f"{self.value} pages",
            "drain": f"{self.value} pages of others",
            "compaction": self.compact_result(),
            "retry": f"no progress {self.value} times",
            "unreserve highatomic": "a pageblock" if self.value else "nothing",
            "OOM killer": "memory may come" if self.value else "no help",
        }.get(self.what, "")

    def compact_result(self):
        return COMPACT_RESULTS[self.value] if 0 <= self.value < len(COMPACT_RESULTS) else str(self.value)

    def __repr__(self):
        return " ".join(word for word in (self.what, self.where, self.figures()) if word)


class Trail:
    """What an allocation did: its pfn (None: nobody could serve it), cost_ns, and the steps in order, as a list."""

    def __init__(self, pfn, gfp, order, steps, lost):
        self.pfn, self.gfp, self.order, self.lost = pfn, gfp, order, lost
        clocks = [step[-1] for step in steps]
        self.steps = [Step(step, before, order) for step, before in zip(steps[1:], clocks)]
        self.cost_ns = clocks[-1] - clocks[0] if clocks else 0

    def __iter__(self):
        return iter(self.steps)

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, i):
        return self.steps[i]

    def headline(self):
        end = f"pfn {self.pfn}" if self.pfn else "failed"
        return f"alloc_pages order {self.order}, {gfp_text(self.gfp)[1]}: {end}, {self.cost_ns} ns"

    def rows(self):
        return [(step.what, step.where, step.figures(), f"{step.cost_ns} ns") for step in self.steps]

    def _repr_html_(self):
        """For a notebook."""
        rows = self.rows() + ([(f"and {self.lost} steps more", "", "", "")] if self.lost else [])
        return html(Table(self.headline(), ("step", "where", "what was seen", "time"), rows), limit=len(rows))

    def __str__(self):
        rows = self.rows()
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
        lines = [self.headline()]
        lines += [
            f"  {what:<{widths[0]}}  {where:<{widths[1]}}  {figures:<{widths[2]}}  {cost:>{widths[3]}}"
            for what, where, figures, cost in rows
        ]
        return "\n".join(lines + ([f"  and {self.lost} steps more"] if self.lost else []))

    __repr__ = __str__
