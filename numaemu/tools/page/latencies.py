"""How long faults, reclaim, compaction and shootdowns took in a run: counts by duration, of the events that mark their begin and end.

Events are folded into counts as they come, so that a long run needs no room for them.
"""

import bisect
import contextlib

from numaemu.kernel.fs.tracefs.events import EVENTS
from numaemu.kernel.include.trace import EVENT_BITS
from numaemu.tools.tracing.collector import Collector

REMOTE_SEND_IPI = 4  # reason of a tlb_flush: a shootdown begins, not an answer to one
EDGES = [step * 10**power for power in range(10) for step in (1, 2, 5)]  # ns; in steps of about the same ratio


class Kind:
    """What lasts: the events that begin and end it, what a figure of it is called, and what it means."""

    def __init__(self, begin, end, title, text):
        self.begin, self.end, self.title, self.text = begin, end, title, text


KINDS = (
    Kind(
        "page_fault_user",
        "page_fault_end",
        "How long page faults took",
        "From the access that found no page to its retry, all work for the page included: a wide gap between two groups is that "
        "between pages at hand and pages that had to be read, reclaimed for, or put together.",
    ),
    Kind(
        "mm_vmscan_direct_reclaim_begin",
        "mm_vmscan_direct_reclaim_end",
        "How long direct reclaim took",
        "A task that finds memory below the low watermark has to free pages itself before it gets one; kswapd is there to spare it "
        "that.",
    ),
    Kind(
        "mm_compaction_begin",
        "mm_compaction_end",
        "How long compaction took",
        "One pass of the two scanners over a zone, which moves pages until free memory is in one piece: for huge pages, mostly.",
    ),
    Kind(
        "tlb_flush",
        "shootdown_end",
        "How long shootdowns took",
        "From the message to other CPUs that they must forget a translation until the last one has answered; the CPU that asks "
        "waits meanwhile.",
    ),
)
NUMBERS = {event.name: number for number, event in enumerate(EVENTS)}
BEGINS = {NUMBERS[kind.begin]: i for i, kind in enumerate(KINDS)}
ENDS = {NUMBERS[kind.end]: i for i, kind in enumerate(KINDS)}
CHOSEN = " ".join(f"{EVENTS[NUMBERS[name]].system}:{name}" for kind in KINDS for name in (kind.begin, kind.end))


class Latencies:
    """Counts by duration of each of KINDS. `fold` takes records, of one context in the order in which it wrote them."""

    def __init__(self):
        self.counts = [[0] * (len(EDGES) + 1) for _ in KINDS]
        self.longest, self.open, self.lost = [0] * len(KINDS), {}, 0

    def fold(self, context, rows):
        """Take records. One that begins and does not end, as of a fault that failed, is forgotten when the next one begins."""
        mask = (1 << EVENT_BITS) - 1
        for what, ns, reason in zip(rows["what"].tolist(), rows["clock_ns"].tolist(), rows["b"].tolist()):
            number, who = what & mask, (context, what >> EVENT_BITS)
            if (kind := BEGINS.get(number)) is not None:
                if KINDS[kind].begin != "tlb_flush" or reason == REMOTE_SEND_IPI:
                    self.open[who, kind] = ns
            elif (kind := ENDS.get(number)) is not None:
                begin = self.open.pop((who, kind), None)
                if begin is not None:
                    self.add(kind, max(ns - begin, 0))

    def add(self, kind, ns):
        self.counts[kind][bisect.bisect_right(EDGES, ns)] += 1
        self.longest[kind] = max(self.longest[kind], ns)

    def total(self, kind):
        return sum(self.counts[kind])

    def bins(self, kind):
        """(least ns, end ns, count) from the first duration that occurred to the last one."""
        found = [i for i, count in enumerate(self.counts[kind]) if count]
        edges = [0, *EDGES, 10 * EDGES[-1]]
        return [(edges[i], edges[i + 1], self.counts[kind][i]) for i in range(found[0], found[-1] + 1)] if found else []


class LatencyCollector(Collector):
    """Traces the events of KINDS only, and keeps none of them."""

    def __init__(self, latencies):
        super().__init__(CHOSEN)
        self.latencies = latencies

    def take(self):
        with contextlib.suppress(OSError):
            parts, self.latencies.lost = self.drained(), self.lost
            for context, rows in parts:
                self.latencies.fold(context, rows)
