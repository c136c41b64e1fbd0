"""Rows that describe a heap: what the `blocks` of every kind answers with, for the checker, the map and messages."""

from numaemu.compiler.library import library
from numaemu.malloc.errors import BROKEN, FREE, FREE_TWICE, MISALIGNED, USED, WILD, HeapError

ADDRESS, BYTES, STATE, ASKED, HEADER, FOOTER = range(6)
COLUMNS = 6


@library
def put_row(rows, i, address, size, state, asked, header, footer):
    """A block: where its payload begins, its whole size, what it is (errors.py), the bytes asked for, its tags."""
    rows[i, 0], rows[i, 1], rows[i, 2] = address, size, state
    rows[i, 3], rows[i, 4], rows[i, 5] = asked, header, footer


@library
def block_of(rows, i):
    """Address, size and state of a row; there is none: state -1."""
    if i < 0 or i >= len(rows):
        return 0, 0, -1
    return rows[i, 0], rows[i, 1], rows[i, 2]


@library
def by_its_place(code, pointer, address, state):
    """What is wrong with a pointer, now that it is known in which block it lies. A block that was joined with its neighbour when it was
    freed still has the tags that it had; and what looks like a free block inside of one in use is none.
    """
    if state == FREE and pointer != address and code != WILD and code != MISALIGNED:
        return FREE_TWICE
    if state == USED and pointer != address and code == FREE_TWICE:
        return WILD
    return BROKEN if state < 0 and pointer == address and code == WILD else code


@library
def complain(rows, code, pointer):
    """Raise the error for a pointer, with the block that it lies in and the neighbours of that."""
    here = -1
    for i in range(len(rows)):
        if rows[i, 0] <= pointer < rows[i, 0] + max(rows[i, 1], 1):
            here = i
    row = block_of(rows, here)
    code = by_its_place(code, pointer, row[0], row[2]) if here >= 0 else code
    before, behind = block_of(rows, here - 1 if here >= 0 else -1), block_of(rows, here + 1 if here >= 0 else -1)
    raise HeapError(
        code, pointer, before[0], before[1], before[2], row[0], row[1], row[2], behind[0], behind[1], behind[2]
    )
