"""Which parts of a task's memory are in use when: machine.heatmap.

At each interval of emulated time the Accessed bits of the task's pages are looked at and cleared, whole (not one page for a region, as
DAMON guesses): a cell is the number of a piece's pages that were used since the last look. It takes no emulated time. Two maps of the
same pages at once take the bits from each other.
"""

import json
import re
import zlib

from numaemu.api.tables import Table, html
from numaemu.errors import SegmentationFault
from numaemu.host.extras import need
from numaemu.spec.param import PAGE_SIZE
from numaemu.spec.units import format_size

SHADES = " .:-=+*#%@"
MOST_ROWS, MOST_COLUMNS = 40, 72  # of a drawing
_MAPS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+)", re.M)


class HeatMap:
    """Samples of one task's memory; `stop()` ends them. `samples`: (ns, {first address of a piece: pages used})."""

    def __init__(self, machine, task, interval_ns, addr=None, nbytes=None, piece=None):
        self.machine, self.task, self.interval_ns = machine, task, interval_ns
        self.range = None if addr is None else (addr, addr + nbytes)
        self.piece, self.pieces, self.samples = piece, {}, []
        self.look(clear_only=True)
        self.timer = machine.every(interval_ns, self.sample)

    def stop(self):
        """No more samples."""
        self.timer.stop()
        return self

    def ranges(self):
        """[(first, end)] of what is looked at: the range that was given, or the task's mappings as they are now."""
        if self.range is not None:
            return [self.range]
        text = self.machine.read(f"/proc/{self.task.pid}/maps")
        return [(int(first, 16), int(end, 16)) for first, end, rights in _MAPS.findall(text) if rights[:3] != "---"]

    def look(self, clear_only=False):
        """{piece: pages used} since the last look."""
        found = {}
        for first, end in self.ranges():
            used = self.task.accessed(first, end - first)
            if clear_only:
                continue
            size = self.piece or max(-(-(end - first) // (MOST_ROWS * PAGE_SIZE)), 1) * PAGE_SIZE
            for at in range(first, end, size):
                piece = used[(at - first) // PAGE_SIZE : (min(at + size, end) - first) // PAGE_SIZE]
                self.pieces[at] = len(piece)
                found[at] = int(piece.sum())
        return found

    def sample(self, now_ns):
        """What the machine calls."""
        try:
            self.samples.append((now_ns, self.look()))
        except (OSError, SegmentationFault):  # the task has ended, or the range has gone
            self.timer.stop()

    # -- showing it ------------------------------------------------------------------------------------------

    def rows(self):
        """[{ns, addr, pages, used}]"""
        return [
            {"ns": ns, "addr": at, "pages": self.pieces[at], "used": used}
            for ns, seen in self.samples
            for at, used in sorted(seen.items())
        ]

    def to_frame(self):
        """The samples as a pandas DataFrame."""
        return need("pandas", "sweep", "a DataFrame").DataFrame(self.rows(), columns=["ns", "addr", "pages", "used"])

    def text(self):
        """A drawing: addresses from top to bottom, time from left to right, darker where more pages were used."""
        if not self.samples:
            return "no samples\n"
        step = -(-len(self.samples) // MOST_COLUMNS)
        columns = [self.samples[i : i + step] for i in range(0, len(self.samples), step)]
        used = sorted({at for _, seen in self.samples for at, n in seen.items() if n})
        lines = [f"{self.samples[0][0]:,} to {self.samples[-1][0]:,} ns, a column is {step * self.interval_ns:,} ns"]
        for at in used:
            cells = ""
            for column in columns:
                share = max(seen.get(at, 0) for _, seen in column) / self.pieces[at]
                cells += SHADES[min(-(-int(share * 1000) * (len(SHADES) - 1) // 1000), len(SHADES) - 1)]
            lines.append(f"{at:014x} {format_size(self.pieces[at] * PAGE_SIZE):>8} |{cells}|")
        return "\n".join(lines) + "\n"

    def __repr__(self):
        return f"<heat map of task {self.task.pid}: {len(self.samples)} samples, {len(self.pieces)} pieces>"

    def _repr_html_(self):
        """For a notebook: pages used by piece, a column for each sample, the last ones."""
        last = self.samples[-12:]
        rows = [(hex(at), *(seen.get(at, 0) for _, seen in last)) for at in sorted(self.pieces)]
        return html(Table("pages used", ("from", *(f"{ns:,} ns" for ns, _ in last)), rows))

    def write_damon(self, path):
        """A record that DAMON's user-space tool reads: damo report heatmap --input PATH; each piece is a region, each look one
        aggregation of one sample.
        """
        us = f"{max(self.interval_ns // 1000, 1)} us"
        record = {
            "kdamond_idx": 0,
            "context_idx": 0,
            "intervals": {"sample_us": us, "aggr_us": us, "ops_update_us": us},
            "scheme_idx": None,
            "target_id": 0,
            "scheme_filters": [],
            "snapshots": [self.snapshot(ns, seen) for ns, seen in self.samples],
        }
        with open(path, "wb") as file:
            file.write(zlib.compress(json.dumps([record]).encode()))

    def snapshot(self, ns, seen):
        """One look, as damo has it: a region that was used at all counts one access."""
        regions = [
            {
                "start": str(at),
                "end": str(at + self.pieces[at] * PAGE_SIZE),
                "nr_accesses": {"samples": str(int(used > 0)), "percent": None},
                "age": {"usec": None, "aggr_intervals": "0"},
            }
            for at, used in sorted(seen.items())
        ]
        total = sum(self.pieces[at] * PAGE_SIZE for at in seen)
        return {
            "start_time": f"{ns - self.interval_ns} ns",
            "end_time": f"{ns} ns",
            "regions": regions,
            "total_bytes": str(total),
        }
