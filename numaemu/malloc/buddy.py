"""Buddies in user mode: blocks of 2^order bytes, each at a multiple of its size from START, split and joined in halves.

    header     order (6 bits), 1 if in use (bit 6), MARK (bits 8 to 15), bytes asked for (above)   <- 8 bytes
    header + 8 payload; of a free block the next free one of its order, or 0
    header + 16         the one before it
    at OWN: for each order the first free block (the addresses of headers)

A block that is freed is joined with its buddy while that is free and whole. An aligned block may lie inside of a larger one: the word
before its payload is then no header, but ASIDE and the way back to it. The heap grows by GROWTH bytes at least, in blocks
that keep the rule of multiples.
"""

import numpy as np

from numaemu.api.access import get, memcpy, put
from numaemu.compiler.bits import highest_bit, lowest_bit
from numaemu.compiler.library import far, library
from numaemu.malloc.check import LISTS_HOLD_ALL, NEIGHBOURS_MAY_BE_FREE
from numaemu.malloc.control import END, GROWTH, OWN, START, morecore
from numaemu.malloc.errors import BACK, BROKEN, ELSEWHERE, FREE, FREE_TWICE, MISALIGNED, USED, WILD
from numaemu.malloc.rows import COLUMNS, complain, put_row

SETTINGS: dict = {}
RULES = (LISTS_HOLD_ALL, NEIGHBOURS_MAY_BE_FREE)
ALIGNMENT = 8
HEADER, NEXT, PREV = 8, 8, 16  # bytes of a header; links, from the header
LEAST, MOST = 5, 40  # orders
IN_USE, ORDER, MARK, MARK_BITS, ASKED = 1 << 6, 63, 0xB5 << 8, 0xFF << 8, 16
ASIDE = 0xA5 << 8  # in place of MARK: the bytes back to the header stand above
LARGEST = 1 << 38


@library
def order_for(nbytes):
    """The order of the block for a request."""
    return max(highest_bit(nbytes + HEADER - 1) + 1, LEAST)


@library
def unlink(cpu, heap, block, order):
    """Take a free block out of its list."""
    behind, before = get(cpu, block + NEXT), get(cpu, block + PREV)
    if before != 0:
        put(cpu, before + NEXT, behind)
    else:
        put(cpu, heap + OWN + 8 * order, behind)
    if behind != 0:
        put(cpu, behind + PREV, before)


@library
def link(cpu, heap, block, order):
    """Make a block free, the first of its list."""
    behind = get(cpu, heap + OWN + 8 * order)
    put(cpu, block, order | MARK)
    put(cpu, block + NEXT, behind)
    put(cpu, block + PREV, 0)
    put(cpu, heap + OWN + 8 * order, block)
    if behind != 0:
        put(cpu, behind + PREV, block)


@library
def is_free(cpu, heap, block, order):
    """True if a free block of this order begins here."""
    return block + (1 << order) <= get(cpu, heap + END) and get(cpu, block) == order | MARK


@library
def release(cpu, heap, block, order):
    """Free a block, joined with its buddy as long as that is free."""
    start = get(cpu, heap + START)
    while order < MOST:
        buddy = start + ((block - start) ^ 1 << order)
        if not is_free(cpu, heap, buddy, order):
            break
        unlink(cpu, heap, buddy, order)
        put(cpu, block, order | MARK)  # freed again it is known to be free
        block = min(block, buddy)
        order += 1
    link(cpu, heap, block, order)


@library
def split(cpu, heap, block, order, wanted):
    """Halve a block until it has the wanted order; the upper halves become free."""
    while order > wanted:
        order -= 1
        link(cpu, heap, block + (1 << order), order)


@library
def order_at(offset, most):
    """The order of a block that is added so far behind START."""
    return most if offset == 0 else min(lowest_bit(offset), most)


@library
def grow(cpu, heap, wanted):
    """Add free blocks at the end, all at once, up to one of this order. False: no memory, and the heap is as it was."""
    start, end = get(cpu, heap + START), get(cpu, heap + END)
    most = max(wanted, highest_bit(max(get(cpu, heap + GROWTH), 1 << LEAST)))
    new, order = end, LEAST - 1
    while order < wanted:
        order = order_at(new - start, most)
        new += 1 << order
    if morecore(cpu, heap, new - end) == 0:
        return False
    block = end
    while block < new:  # what lies there is no header
        put(cpu, block, 0)
        block += 1 << order_at(block - start, most)
    block = end
    while block < new:
        order = order_at(block - start, most)
        release(cpu, heap, block, order)
        block += 1 << order
    return True


@library
def setup(cpu, heap):
    """The empty heap needs nothing."""
    return True


@far("i64(cpu_t*, i64, i64)")
def malloc(cpu, heap, nbytes):
    """A block for `nbytes` bytes: its address, or 0."""
    if nbytes <= 0 or nbytes > LARGEST:
        return 0
    wanted = order_for(nbytes)
    order = wanted
    while get(cpu, heap + OWN + 8 * order) == 0:
        order += 1
        if order > MOST:
            if not grow(cpu, heap, wanted):
                return 0
            order = wanted
    block = get(cpu, heap + OWN + 8 * order)
    unlink(cpu, heap, block, order)
    split(cpu, heap, block, order, wanted)
    put(cpu, block, wanted | IN_USE | MARK | nbytes << ASKED)
    return block + HEADER


@library
def header_of(cpu, block):
    """Where the header of a block lies; it may be aside."""
    word = get(cpu, block - HEADER)
    return block - (word >> ASKED) if word & 0xFFFF == ASIDE else block - HEADER


@far("i64(cpu_t*, i64, i64)")
def examine(cpu, heap, block):
    """What is wrong with a block that somebody wants to free or resize: 0: nothing."""
    start, end = get(cpu, heap + START), get(cpu, heap + END)
    if block < start + HEADER or block >= end:
        return WILD
    if block & 7:
        return MISALIGNED
    head = header_of(cpu, block)
    if head < start or head >= block:
        return WILD
    word = get(cpu, head)
    order = word & ORDER
    if word & MARK_BITS != MARK or order < LEAST or order > MOST:
        return WILD if word == 0 else BROKEN
    if (head - start) & ((1 << order) - 1) or head + (1 << order) > end:
        return WILD
    return 0 if word & IN_USE else FREE_TWICE


@far("i64(cpu_t*, i64, i64)")
def free(cpu, heap, block):
    """Give a block back: 0, or what is wrong with it."""
    wrong = examine(cpu, heap, block)
    if wrong == 0:
        head = header_of(cpu, block)
        release(cpu, heap, head, get(cpu, head) & ORDER)
    return wrong


@library
def usable_size(cpu, heap, block):
    """Bytes of payload that a block has room for."""
    head = header_of(cpu, block)
    return head + (1 << (get(cpu, head) & ORDER)) - block


@library
def asked(cpu, heap, block):
    """What was asked for."""
    return get(cpu, header_of(cpu, block)) >> ASKED


@far("i64(cpu_t*, i64, i64, i64)")
def realloc(cpu, heap, block, nbytes):
    """The block with another size, in its place if it or its upper buddies suffice: its address, or 0."""
    if nbytes > LARGEST:
        return 0
    start, head = get(cpu, heap + START), header_of(cpu, block)
    order, wanted = get(cpu, head) & ORDER, order_for(nbytes + (block - head) - HEADER)
    reached = order
    while (
        reached < wanted and (head - start) & 1 << reached == 0 and is_free(cpu, heap, head + (1 << reached), reached)
    ):
        reached += 1
    if reached >= wanted:
        for joined in range(order, reached):
            unlink(cpu, heap, head + (1 << joined), joined)
        put(cpu, head, wanted | IN_USE | MARK | nbytes << ASKED)
        for part in range(wanted, reached):  # what shrinks leaves upper halves, which may have free buddies
            release(cpu, heap, head + (1 << part), part)
        return block
    room = usable_size(cpu, heap, block)
    new = malloc(cpu, heap, nbytes)
    if new != 0:
        memcpy(cpu, new, block, room)
        release(cpu, heap, head, order)
    return new


@far("i64(cpu_t*, i64, i64, i64)")
def aligned_alloc(cpu, heap, alignment, nbytes):
    """A block at a multiple of `alignment`, a power of two: it may lie aside of its header."""
    block = malloc(cpu, heap, nbytes + alignment)
    if block == 0:
        return 0
    at, head = (block + alignment - 1) & -alignment, block - HEADER
    put(cpu, head, (get(cpu, head) & 0xFFFF) | nbytes << ASKED)
    if at != block:
        put(cpu, at - HEADER, ASIDE | (at - head) << ASKED)
    return at


@library
def rows_of(cpu, heap, rows):
    """Put a row for each block, as far as there is room: how many there are, where the last begins, and how many bytes are free
    at the end.
    """
    n, block, end, last, tail = 0, get(cpu, heap + START), get(cpu, heap + END), 0, 0
    while block < end:
        word = get(cpu, block)
        order, last = word & ORDER, block
        good = word & MARK_BITS == MARK and LEAST <= order <= MOST and block + (1 << order) <= end
        good = good and (block - get(cpu, heap + START)) & ((1 << order) - 1) == 0
        if n < len(rows):
            state = (USED if word & IN_USE else FREE) if good else -1
            size = 1 << order if good else HEADER
            put_row(rows, n, block + HEADER, size, state, word >> ASKED if state == USED else 0, 0, 0)
        n += 1
        if not good:
            break
        tail = 0 if word & IN_USE else tail + (1 << order)
        block += 1 << order
    return n, last, tail


@library
def blocks(cpu, heap):
    """A row for each block in the order of addresses; a header that cannot be is the last row."""
    n, _, _ = rows_of(cpu, heap, np.zeros((0, COLUMNS), np.int64))
    rows = np.zeros((n, COLUMNS), np.int64)
    rows_of(cpu, heap, rows)
    return rows


@far("void(cpu_t*, i64, i64, i64)")
def refuse(cpu, heap, wrong, block):
    """HeapError: what is wrong with a block, and where it lies."""
    complain(blocks(cpu, heap), wrong, block)


@library
def trim(cpu, heap, keep):
    """Give free blocks at the end back, or upper halves of them, while `keep` bytes stay: how many bytes."""
    given = 0
    while True:
        _, last, tail = rows_of(cpu, heap, np.zeros((0, COLUMNS), np.int64))
        if tail - max(keep, 0) < 1 << LEAST:
            return given
        order = get(cpu, last) & ORDER
        unlink(cpu, heap, last, order)
        while tail - (1 << order) < keep:
            order -= 1
            link(cpu, heap, last, order)
            last += 1 << order
        if morecore(cpu, heap, -(1 << order)) == 0:
            release(cpu, heap, last, order)
            return given
        given += 1 << order


@library
def lists(cpu, heap):
    """Rows (order, block, what is wrong with the entry), by the address of the payload as in `blocks`; the last one of an order may
    be no block.
    """
    start, end = get(cpu, heap + START), get(cpu, heap + END)
    rows, n = np.zeros((((end - start) >> LEAST) + MOST + 1, 3), np.int64), 0
    for order in range(MOST + 1):
        before, block = 0, get(cpu, heap + OWN + 8 * order)
        while block != 0 and n < len(rows):
            rows[n, 0], rows[n, 1], n = order, block + HEADER, n + 1
            if block & 7 or block < start or block + (1 << LEAST) > end:
                break
            if get(cpu, block + PREV) != before:
                rows[n - 1, 2] = BACK
            elif get(cpu, block) & ORDER != order:
                rows[n - 1, 2] = ELSEWHERE
            before, block = block, get(cpu, block + NEXT)
    return rows[:n].copy()
