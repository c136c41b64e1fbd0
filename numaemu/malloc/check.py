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
    """A HeapError whose words are those of `check`: what it has found, at which block."""

    def __init__(self, text, code=BROKEN, pointer=0, blocks=()):
        Exception.__init__(self, text, code, pointer, blocks)
        self.code, self.pointer, self.blocks = code, pointer, list(blocks)

    def __str__(self):
        return self.args[0]


def row_of(rows, j):
    """(address, size, state in words) of a row, or None."""
    if not 0 <= j < len(rows):
        return None
    return int(rows[j, ADDRESS]), int(rows[j, BYTES]), STATES.get(int(rows[j, STATE]), "unknown")


def found(text, rows, i, code=BROKEN):
    """An error that names a block and its neighbours."""
    blocks = [row_of(rows, j) for j in (i - 1, i, i + 1)]
    named = [("block", blocks[1]), ("before it", blocks[0]), ("behind it", blocks[2])]
    about = "; ".join(f"{name} {told(*block)}" for name, block in named if block)
    return HeapCheckError(f"heap: {text}: {about}", code, int(rows[i, ADDRESS]), blocks)


def check_headers(rows):
    """HeapError: a header cannot be one, so nobody knows what lies behind it."""
    for i in np.flatnonzero(rows[:, STATE] < 0).tolist():  # the last of its arena
        raise found("a header is none", rows, i)


def check_rows(rows, lists, rules=()):
    """How many blocks there are. HeapError: the first thing that is wrong."""
    for i, row in enumerate(rows):
        if row[STATE] < 0:
            check_headers(rows)
        if (row[HEADER] ^ row[FOOTER]) & TAG_BITS:
            tags = f"{int(row[HEADER]):#x} and {int(row[FOOTER]):#x}"
            raise found(f"header and footer disagree ({tags})", rows, i, OVERRUN)
        if i and rows[i - 1, STATE] == FREE and row[STATE] in (FREE, TOP_CHUNK) and NEIGHBOURS_MAY_BE_FREE not in rules:
            raise found("two free neighbours", rows, i)
    check_lists(rows, lists, rules)
    return int((rows[:, STATE] != FIXED).sum())


def check_lists(rows, lists, rules):
    """Every free block stands in exactly one list, and every entry of a list is free. Threads' caches have numbers below 0."""
    where = {int(address): i for i, address in enumerate(rows[:, ADDRESS])}
    seen = {}
    for number, block, fault in lists.tolist():
        i, name = where.get(block), f"list {number}" if number >= 0 else f"the cache of thread {-1 - number}"
        if i is None:
            raise HeapCheckError(f"heap: {name} has an entry {block & WORD:#x}, where no block begins")
        if rows[i, STATE] != (FREE if number >= 0 else CACHED):
            raise found(f"{name} has a block that is {STATES[int(rows[i, STATE])]}", rows, i)
        if block in seen:
            both = f"twice in {name}" if seen[block] == name else f"in {seen[block]} and in {name}"
            raise found(f"a free block stands {both}", rows, i)
        seen[block] = name
        if fault != RIGHT:
            raise found(f"{name} has an entry {ENTRIES[fault]}", rows, i)
    if LISTS_HOLD_ALL in rules:
        for place in np.flatnonzero(rows[:, STATE] == FREE).tolist():
            if int(rows[place, ADDRESS]) not in seen:
                raise found("a free block stands in no list", rows, place)


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
