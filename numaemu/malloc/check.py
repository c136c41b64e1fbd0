"""Walks a heap by the rows that its kind gives, and draws it. What it finds wrong it names with the neighbours."""

import numpy as np

from numaemu.malloc.errors import BROKEN, FIXED, FREE, OVERRUN, STATES, TOP_CHUNK, HeapError, told
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
    """Every free block stands in exactly one list, and every entry of a list is free."""
    where = {int(address): i for i, address in enumerate(rows[:, ADDRESS])}
    seen = {}
    for number, block in lists.tolist():
        i = where.get(block)
        if i is None:
            raise HeapCheckError(f"heap: list {number} has an entry {block:#x}, where no block begins")
        if rows[i, STATE] != FREE:
            raise HeapCheckError(
                f"heap: list {number} has a block that is {STATES[int(rows[i, STATE])]}: {about(rows, i)}"
            )
        if block in seen:
            raise HeapCheckError(f"heap: a free block stands in lists {seen[block]} and {number}: {about(rows, i)}")
        seen[block] = number
    if LISTS_HOLD_ALL in rules:
        for place in np.flatnonzero(rows[:, STATE] == FREE).tolist():
            if int(rows[place, ADDRESS]) not in seen:
                raise HeapCheckError(f"heap: a free block stands in no list: {about(rows, place)}")


def draw(rows, width, lines):
    """Characters for equal parts of the heap: used, free, or both."""
    if not len(rows):
        return "(empty)"
    start, end = int(rows[0, ADDRESS]), int(rows[-1, ADDRESS] + rows[-1, BYTES])
    step = max(-(-(end - start) // (width * lines)), 8)
    cells = -(-(end - start) // step)
    used, free = np.zeros(cells), np.zeros(cells)
    for address, nbytes, state in rows[:, [ADDRESS, BYTES, STATE]].tolist():
        target = free if state in (FREE, TOP_CHUNK) else used
        first, last = (address - start) // step, (address + nbytes - 1 - start) // step
        target[first : last + 1] += 1
    marks = [
        MARKS["both"] if u and f else MARKS["free"] if f else MARKS["used"] for u, f in zip(used, free, strict=True)
    ]
    text = [f"{start:#x}, {step} bytes a character: {MARKS['used']} used  {MARKS['free']} free  {MARKS['both']} both"]
    return "\n".join(text + ["".join(marks[i : i + width]) for i in range(0, cells, width)])
