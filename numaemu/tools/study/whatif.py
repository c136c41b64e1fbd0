"""What if: two lockstep runs of a workload under other settings, every counter that differs, and where they part. `numaemu diff`."""

from typing import Any, NamedTuple

import numpy as np

from numaemu.api.tables import Table
from numaemu.tools.study.compare import measures, ratio, shown
from numaemu.tools.study.figures import run_with
from numaemu.tools.summary import report
from numaemu.tools.summary.layout import new_console, print_blocks
from numaemu.tools.tracing.collector import Collector
from numaemu.tools.tracing.ftrace import line

BEFORE, AFTER = 3, 3  # events shown that both runs have had, and that each has then
FIELDS = ("context", "what", "a", "b", "c", "d", "e")  # of an event, without its time and its place in the ring


class Run(NamedTuple):
    """One of the two: all its figures, and its events."""

    settings: dict[str, Any]
    figures: dict[str, Any]
    trace: Any

    @classmethod
    def of(cls, workload, args, settings, name):
        """Run the workload in lockstep, and watch every event."""
        collector = Collector("all")
        figures = run_with(workload, settings, args, name, (collector,), lockstep=True)
        return cls(settings, figures, collector.trace())

    def counters(self):
        """{name: value} of everything that a run counts; the host's time is not among it."""
        found = {name: value for name, value in measures(self.figures).items() if name != "wall s"}
        found |= self.figures["vmstat"]
        for node, values in enumerate(self.figures["nodes"]):
            found |= {f"node{node} {name}": value for name, value in values.items() if isinstance(value, (int, float))}
        return found


def differing(a, b):
    """{counter: (A's value, B's value)} where they differ, in the order of the summary."""
    ours, theirs = a.counters(), b.counters()
    pairs = {name: (ours.get(name, 0), theirs.get(name, 0)) for name in [*ours, *(n for n in theirs if n not in ours)]}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def parting(a, b):
    """The number, from 0, of the first event that is another one in B, or has other fields; None: all are equal. Times are not compared."""
    columns = []
    for run in (a, b):
        contexts, rows = run.trace.in_order()
        columns.append([contexts, *(rows[field] for field in FIELDS[1:])])
    both = min(len(columns[0][0]), len(columns[1][0]))
    unequal = np.zeros(both, bool)
    for ours, theirs in zip(*columns, strict=True):
        unequal |= ours[:both] != theirs[:both]
    if unequal.any():
        return int(np.flatnonzero(unequal)[0])
    return None if len(columns[0][0]) == len(columns[1][0]) else both


def events_at(run, first, last):
    """Events number `first` to `last` - 1, as far as there are so many."""
    contexts, rows = run.trace.in_order()
    return [run.trace.happened(c, r) for c, r in zip(contexts[max(first, 0) : last], rows[max(first, 0) : last])]


def parting_lines(a, b, number):
    """The events around the one at which two runs part, as ftrace writes them."""
    lines = [f"both {line(a.trace, happened)}" for happened in events_at(a, number - BEFORE, number)]
    for name, run in (("A", a), ("B", b)):
        lines += [f"{name:4} {line(run.trace, h)}" for h in events_at(run, number, number + AFTER)] or [
            f"{name:4} ends here\n"
        ]
    return "".join(lines)


def print_difference(a, b, console=None):
    """The counters that differ, and where the runs part."""
    console = console or new_console()
    counters = differing(a, b)
    rows = [(name, shown(x), shown(y), ratio(x, y)) for name, (x, y) in counters.items()]
    if rows:
        print_blocks([Table("counters that differ", ("", "A", "B", "B / A"), rows)], console, report.ALL)
    else:
        console.print("no counter differs")
    number = parting(a, b)
    if number is None:
        console.print(f"all {len(a.trace):,} events are equal")
    else:
        console.print(f"\nthe runs part at event {number:,} of {len(a.trace):,} (A) and {len(b.trace):,} (B):\n")
        print(parting_lines(a, b, number), end="")
    for name, run in (("A", a), ("B", b)):
        if run.trace.lost:
            console.print(
                f"{report.plural(run.trace.lost, 'event')} of {name} did not fit into its rings: the runs may part earlier"
            )


def as_json(a, b):
    """The same, for a file."""
    number = parting(a, b)
    at = lambda run: [line(run.trace, happened).strip() for happened in events_at(run, number, number + 1)]
    return {
        "a": {"settings": a.settings, "events": len(a.trace), "lost": a.trace.lost},
        "b": {"settings": b.settings, "events": len(b.trace), "lost": b.trace.lost},
        "counters": {name: list(pair) for name, pair in differing(a, b).items()},
        "part_at": None if number is None else {"event": number, "a": at(a), "b": at(b)},
    }
