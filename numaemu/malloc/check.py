"""Walks a heap by the rows that its kind gives, and draws it. What it finds wrong it names with the neighbours."""

import numpy as np

from numaemu.malloc.errors import (
    BROKEN,
    CACHED,
    ENTRIES,
    FIXED,
    FREE,
    OVERRUN,
    RIGHT,
    STATES,
    TOP_CHUNK,
    WORD,
    HeapError,
    told,
)
from numaemu.malloc.rows import ADDRESS, BYTES, FOOTER, HEADER, STATE

TAG_BITS = ~(6 | 1 << 31)  # of a tag: all but what a used block notes there
NEIGHBOURS_MAY_BE_FREE, LISTS_HOLD_ALL = "neighbours may be free", "lists"  # RULES of a kind
MARKS = {"free": "░", "used": "█", "both": "▒"}


class HeapCheckError(HeapError):
    """What `check` has found, in words."""

    def __init__(self, text):
        Exception.__init__(self, text)
        self.code, self.pointer, self.blocks = BROKEN, 0, []

    def __str__(self):
        return self.args[0]


def about(rows, i):
    """A block and its neighbours in words."""
    parts = [
        f"{name} {told(int(rows[j, ADDRESS]), int(rows[j, BYTES]), int(rows[j, STATE]))}"
        for name, j in (("block", i), ("before it", i - 1), ("behind it", i + 1))
        if 0 <= j < len(rows)
    ]
    return "; ".join(parts)


def check_rows(rows, lists, rules=()):
    """How many blocks there are. HeapError: the first thing that is wrong."""
    for i, row in enumerate(rows):
        if row[STATE] < 0:
            raise HeapCheckError(f"heap: a header is none: {about(rows, i)}")
        if (row[HEADER] ^ row[FOOTER]) & TAG_BITS:
            tags = f"{int(row[HEADER]):#x} and {int(row[FOOTER]):#x}"
            raise found(OVERRUN, rows, i, f"header and footer disagree ({tags})")
        if i and rows[i - 1, STATE] == FREE and row[STATE] in (FREE, TOP_CHUNK) and NEIGHBOURS_MAY_BE_FREE not in rules:
            raise HeapCheckError(f"heap: two free neighbours: {about(rows, i)}")
    check_lists(rows, lists, rules)
    return int((rows[:, STATE] != FIXED).sum())


def found(code, rows, i, text):
    """An error that names a block and its neighbours."""
    error = HeapCheckError(f"heap: {text}: {about(rows, i)}")
    error.code, error.pointer = code, int(rows[i, ADDRESS])
    return error


def check_lists(rows, lists, rules):
    """Every free block stands in exactly one list, and every entry of a list is free. Threads' caches have numbers below 0."""
    where = {int(address): i for i, address in enumerate(rows[:, ADDRESS])}
    seen = {}
    for number, block, fault in lists.tolist():
        i, name = where.get(block), f"list {number}" if number >= 0 else f"the cache of thread {-1 - number}"
        if i is None:
            raise HeapCheckError(f"heap: {name} has an entry {block & WORD:#x}, where no block begins")
        if rows[i, STATE] != (FREE if number >= 0 else CACHED):
            raise HeapCheckError(f"heap: {name} has a block that is {STATES[int(rows[i, STATE])]}: {about(rows, i)}")
        if block in seen:
            both = f"twice in {name}" if seen[block] == name else f"in {seen[block]} and in {name}"
            raise HeapCheckError(f"heap: a free block stands {both}: {about(rows, i)}")
        seen[block] = name
        if fault != RIGHT:
            raise HeapCheckError(f"heap: {name} has an entry {ENTRIES[fault]}: {about(rows, i)}")
    if LISTS_HOLD_ALL in rules:
        for place in np.flatnonzero(rows[:, STATE] == FREE).tolist():
            if int(rows[place, ADDRESS]) not in seen:
                raise HeapCheckError(f"heap: a free block stands in no list: {about(rows, place)}")


def draw(rows, width, lines):
    """Characters for equal parts of the heap: used, free, or both."""
    if not len(rows):
        return "(empty)"
    ends = rows[:, ADDRESS] + rows[:, BYTES]
    areas = np.split(rows, np.flatnonzero(rows[1:, ADDRESS] != ends[:-1]) + 1)  # arenas lie far from each other
    step = max(-(-int(rows[:, BYTES].sum()) // (width * lines)), 8)
    legend = f"{step} bytes a character: {MARKS['used']} used  {MARKS['free']} free  {MARKS['both']} both"
    text = []
    for area in areas:
        marks = draw_area(area, step)
        text += [f"{int(area[0, ADDRESS]):#x}" + (f", {legend}" if not text else "")]
        text += ["".join(marks[i : i + width]) for i in range(0, len(marks), width)]
    return "\n".join(text)


def draw_area(rows, step):
    """The characters of rows that lie one behind the other."""
    start, end = int(rows[0, ADDRESS]), int(rows[-1, ADDRESS] + rows[-1, BYTES])
    cells = -(-(end - start) // step)
    used, free = np.zeros(cells), np.zeros(cells)
    for address, nbytes, state in rows[:, [ADDRESS, BYTES, STATE]].tolist():
        target = free if state in (FREE, TOP_CHUNK) else used
        first, last = (address - start) // step, (address + nbytes - 1 - start) // step
        target[first : last + 1] += 1
    return [
        MARKS["both"] if u and f else MARKS["free"] if f else MARKS["used"] for u, f in zip(used, free, strict=True)
    ]
