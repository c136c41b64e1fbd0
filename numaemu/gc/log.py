"""Collections in the lines of HotSpot's unified log: [time][info][gc] GC(n) Pause Young (Allocation Failure) 24M->4M(256M) 2.345ms

HotSpot shows these sizes in M always. Here those below 10 MiB are shown in K, as small heaps would be 0M else.
"""

from typing import NamedTuple

from numaemu.gc.objects import AGES
from numaemu.gc.records import ASKED, CYCLES, FAILURE, FULL, YOUNG

CAUSES = {FAILURE: "Allocation Failure", ASKED: "System.gc()", CYCLES: "Cycles"}
KINDS = {FULL: "Pause Full", YOUNG: "Pause Young"}


class Collection(NamedTuple):
    """One collection. Bytes, and ns of emulated time."""

    number: int  # of the collection, from 0
    kind: str  # "Pause Full" or "Pause Young"
    cause: str  # "Allocation Failure", "System.gc()"
    before: int  # bytes that objects and buffers took
    after: int  # the same behind it
    total: int  # bytes that there are
    began_ns: int  # on the clock of the CPU that collected
    pause_ns: int  # how long it took
    objects: int  # that live
    promoted: int  # bytes that went to the old generation
    threshold: int  # of age, for the next one; 0: there are no generations
    by_age: tuple  # bytes of survivors of age 1, 2, …

    def lines(self, details=False):
        """Its line; before it, with details, those of -Xlog:gc+age=trace and one of what was promoted."""
        time, number, lines = f"[{(self.began_ns + self.pause_ns) / 1e9:.3f}s]", f"GC({self.number})", []
        if details and self.kind == KINDS[YOUNG]:
            trace, total = f"{time}[trace][gc,age] {number}", 0
            lines.append(f"{trace} Age table with threshold {self.threshold} (max threshold {AGES})")
            for age, nbytes in enumerate(self.by_age, 1):
                total += nbytes
                if nbytes:
                    lines.append(f"{trace} - age {age:3}: {nbytes:10} bytes, {total:10} total")
            lines.append(f"{time}[debug][gc,promotion] {number} Promoted {self.promoted} bytes")
        sizes = f"{amount(self.before)}->{amount(self.after)}({amount(self.total)})"
        lines.append(f"{time}[info][gc] {number} {self.kind} ({self.cause}) {sizes} {self.pause_ns / 1e6:.3f}ms")
        return lines


def amount(nbytes):
    """In K or M, rounded down as HotSpot does."""
    return f"{nbytes >> 20}M" if nbytes >= 10 << 20 else f"{nbytes >> 10}K"


def collection(number, words):
    """A Collection from the words of its record."""
    cause, kind, before, after, total, began, pause, objects, promoted, threshold, *ages = (int(word) for word in words)
    while ages and ages[-1] == 0:
        ages.pop()
    return Collection(
        number,
        KINDS[kind],
        CAUSES[cause],
        before,
        after,
        total,
        began,
        pause,
        objects,
        promoted,
        threshold,
        tuple(ages[:15]),
    )
