"""Segregated free lists: one list for each class of sizes, so that malloc looks at blocks of about the right size only.

Blocks have boundary tags as in `implicit`. A free block begins with two links, 4 bytes each, that count from START, so the
smallest has 16 bytes:

    block       the next free block of the class       at OWN: for each class the first block
    block + 4   the one before it                      at MAP: a bit for each class that has blocks

Up to 512 bytes each size has a class of its own; above there are four for each power of two. The search is first fit within
the request's class, then the first block of the next class that has any: the map tells which. What is cut from a free block comes
from its front if it is small and from its end if it is large, so that large neighbours that are freed make room for what is larger
still. A heap grows by GROWTH bytes for a small request; for a large one by what the free block at its end lacks. realloc grows in place
where it can.
"""

import numpy as np

from numaemu.api.access import get, get_u32, memcpy, put, put_u32
from numaemu.compiler.bits import highest_bit, lowest_bit
from numaemu.compiler.library import far, library
from numaemu.malloc import tags
from numaemu.malloc.check import LISTS_HOLD_ALL
from numaemu.malloc.control import END, GROWTH, OWN, START, morecore
from numaemu.malloc.errors import BACK, ELSEWHERE, UNKNOWN
from numaemu.malloc.tags import (
    DSIZE,
    IN_USE,
    LARGEST,
    SIZE,
    WSIZE,
    adjusted,
    examine,
    extend,
    init_tags,
    set_free,
    set_used,
    size_of,
    tag_at,
)

SETTINGS: dict = {}
DEFAULTS = {"growth": 16384}
RULES = (LISTS_HOLD_ALL,)
NEXT, PREV = 0, 4
LEAST = 16  # bytes of the smallest block: tags and links
ALIGNMENT = 8
EXACT, EXACT_CLASSES = 512, 63  # sizes up to here have classes of their own: 16, 24, … 512
CLASSES = EXACT_CLASSES + 4 * 23
MAP = OWN + 8 * CLASSES  # three words of 64 bits, of which 62 are used
PER_WORD = 62
FRONT = 104  # blocks below this size are cut from the front
SMALL = 1024  # requests up to this size let the heap grow by GROWTH

blocks, asked, refuse = tags.blocks, tags.asked, tags.refuse


@library
def class_of(size):
    """The class of a block of `size` bytes."""
    if size <= EXACT:
        return (size >> 3) - 2
    top = highest_bit(size)
    return EXACT_CLASSES + 4 * (top - 9) + (size >> (top - 2) & 3)


@library
def unlink(cpu, heap, start, block, size):
    """Take a block of `size` bytes out of its list."""
    behind, before = get_u32(cpu, block + NEXT), get_u32(cpu, block + PREV)
    if behind != 0:
        put_u32(cpu, start + behind + PREV, before)
    if before != 0:
        put_u32(cpu, start + before + NEXT, behind)
        return
    number = class_of(size)
    put(cpu, heap + OWN + 8 * number, behind)
    if behind == 0:
        word = heap + MAP + 8 * (number // PER_WORD)
        put(cpu, word, get(cpu, word) & ~(1 << number % PER_WORD))


@library
def link(cpu, heap, start, block, size):
    """Put a free block of `size` bytes at the front of its list."""
    number = class_of(size)
    head = heap + OWN + 8 * number
    behind = get(cpu, head)
    put_u32(cpu, block + NEXT, behind)
    put_u32(cpu, block + PREV, 0)
    put(cpu, head, block - start)
    if behind != 0:
        put_u32(cpu, start + behind + PREV, block - start)
    else:
        word = heap + MAP + 8 * (number // PER_WORD)
        put(cpu, word, get(cpu, word) | 1 << number % PER_WORD)


@library
def release(cpu, heap, start, block, size):
    """Make a range a free block, joined with free neighbours, in its list; the block."""
    before, behind = tag_at(cpu, block - DSIZE), tag_at(cpu, block + size - WSIZE)
    if behind & IN_USE == 0:
        unlink(cpu, heap, start, block + size, behind & SIZE)
        size += behind & SIZE
    if before & IN_USE == 0:
        block -= before & SIZE
        unlink(cpu, heap, start, block, before & SIZE)
        size += before & SIZE
    set_free(cpu, block, size)
    link(cpu, heap, start, block, size)
    return block


@library
def setup(cpu, heap):
    """Make the empty heap. False: no memory."""
    return init_tags(cpu, heap)


@library
def find_fit(cpu, heap, start, size):
    """A free block of at least `size` bytes, or 0."""
    number = class_of(size)
    block = get(cpu, heap + OWN + 8 * number)
    while block != 0:
        if number < EXACT_CLASSES or size_of(cpu, start + block) >= size:
            return start + block
        block = get_u32(cpu, start + block + NEXT)
    number += 1
    i, bit = number // PER_WORD, number % PER_WORD
    while i <= CLASSES // PER_WORD:
        found = get(cpu, heap + MAP + 8 * i) & (-1 << bit)
        if found != 0:
            return start + get(cpu, heap + OWN + 8 * (i * PER_WORD + lowest_bit(found)))
        i, bit = i + 1, 0
    return 0


@library
def grow(cpu, heap, start, size):
    """A free block of at least `size` bytes at the end of the heap, or 0: no memory."""
    tag = tag_at(cpu, get(cpu, heap + END) - DSIZE)
    need = max(size if tag & IN_USE else size - (tag & SIZE), LEAST)
    room = max(need, get(cpu, heap + GROWTH)) if size <= SMALL else need
    block = extend(cpu, heap, room)
    if block == 0 and room > need:  # the last bytes that there are
        room = need
        block = extend(cpu, heap, room)
    return 0 if block == 0 else release(cpu, heap, start, block, room)


@library
def place(cpu, heap, start, block, whole, size, nbytes):
    """Use `size` bytes of a range of `whole` that is in no list, from its front; the rest becomes a free block."""
    if whole - size >= LEAST:
        set_used(cpu, block, size, nbytes)
        release(cpu, heap, start, block + size, whole - size)
    else:
        set_used(cpu, block, whole, nbytes)


@far("i64(cpu_t*, i64, i64)")
def malloc(cpu, heap, nbytes):
    """A block for `nbytes` bytes: its address, or 0."""
    if nbytes <= 0 or nbytes > LARGEST:
        return 0
    size, start = adjusted(nbytes, LEAST), get(cpu, heap + START)
    block = find_fit(cpu, heap, start, size)
    if block == 0:
        block = grow(cpu, heap, start, size)
        if block == 0:
            return 0
    whole = size_of(cpu, block)
    unlink(cpu, heap, start, block, whole)
    left = whole - size
    if left < LEAST:
        set_used(cpu, block, whole, nbytes)
    elif size < FRONT:  # its neighbours are in use: the rest is a block of its own
        set_used(cpu, block, size, nbytes)
        set_free(cpu, block + size, left)
        link(cpu, heap, start, block + size, left)
    else:
        set_free(cpu, block, left)
        link(cpu, heap, start, block, left)
        block += left
        set_used(cpu, block, size, nbytes)
    return block


@far("i64(cpu_t*, i64, i64)")
def free(cpu, heap, block):
    """Give a block back: 0, or what is wrong with it."""
    wrong = examine(cpu, heap, block)
    if wrong == 0:
        release(cpu, heap, get(cpu, heap + START), block, size_of(cpu, block))
    return wrong


@library
def usable_size(cpu, heap, block):
    """Bytes of payload that a block has room for."""
    return size_of(cpu, block) - DSIZE


@library
def room_behind(cpu, heap, start, block, whole, size):
    """Take in the free block behind one of `whole` bytes that shall have `size`, and grow the heap if it is the last; the size then."""
    behind = tag_at(cpu, block + whole - WSIZE)
    last = block + whole == get(cpu, heap + END)
    if behind & IN_USE == 0 and whole + behind < size:
        last = block + whole + behind == get(cpu, heap + END)
    if last:
        missing = size - whole - (0 if behind & IN_USE else behind)
        new = extend(cpu, heap, max(missing, LEAST))
        if new == 0:
            return whole
        release(cpu, heap, start, new, max(missing, LEAST))
        behind = tag_at(cpu, block + whole - WSIZE)
    if behind & IN_USE or whole + behind < size:
        return whole
    unlink(cpu, heap, start, block + whole, behind & SIZE)
    return whole + (behind & SIZE)


@far("i64(cpu_t*, i64, i64, i64)")
def realloc(cpu, heap, block, nbytes):
    """The block with another size, in its place if that can be: its address, or 0."""
    if nbytes > LARGEST:
        return 0
    start, whole, size = get(cpu, heap + START), size_of(cpu, block), adjusted(nbytes, LEAST)
    before = whole
    if size > whole:
        whole = room_behind(cpu, heap, start, block, whole, size)
        if whole < size:
            new = malloc(cpu, heap, nbytes)
            if new != 0:
                memcpy(cpu, new, block, before - DSIZE)
                release(cpu, heap, start, block, before)
            return new
    place(cpu, heap, start, block, whole, size, nbytes)
    return block


@far("i64(cpu_t*, i64, i64, i64)")
def aligned_alloc(cpu, heap, alignment, nbytes):
    """A block at a multiple of `alignment`, a power of two: what lies before and behind it in a larger block goes back."""
    size, start = adjusted(nbytes, LEAST), get(cpu, heap + START)
    block = malloc(cpu, heap, size + alignment + LEAST)
    if block == 0:
        return 0
    whole, at = size_of(cpu, block), block
    if block & (alignment - 1):
        at = (block + LEAST + alignment - 1) & -alignment
        set_used(cpu, at, whole - (at - block), nbytes)
        release(cpu, heap, start, block, at - block)
    place(cpu, heap, start, at, whole - (at - block), size, nbytes)
    return at


@library
def trim(cpu, heap, keep):
    """Give back what is free at the end but for `keep` bytes: how many bytes."""
    end, start = get(cpu, heap + END), get(cpu, heap + START)
    tag = tag_at(cpu, end - DSIZE)
    left = (max(keep, LEAST) + 7) & -8 if keep > 0 else 0
    if tag & IN_USE or tag <= left:
        return 0
    block = end - tag
    unlink(cpu, heap, start, block, tag)
    if morecore(cpu, heap, left - tag) == 0:
        left = tag
    else:
        put_u32(cpu, block + left - WSIZE, IN_USE)
    if left > 0:
        release(cpu, heap, start, block, left)
    return tag - left


@library
def lists(cpu, heap):
    """Rows (class, block, what is wrong with the entry); the last one of a class may be no block."""
    start, end = get(cpu, heap + START), get(cpu, heap + END)
    rows, n = np.zeros(((end - start) // LEAST + CLASSES, 3), np.int64), 0
    for number in range(CLASSES):
        before, block = 0, get(cpu, heap + OWN + 8 * number)
        known = get(cpu, heap + MAP + 8 * (number // PER_WORD)) >> number % PER_WORD & 1
        while block != 0 and n < len(rows):
            rows[n, 0], rows[n, 1], n = number, start + block, n + 1
            if block & 7 or block < 0 or start + block + LEAST > end:
                break
            if get_u32(cpu, start + block + PREV) != before:
                rows[n - 1, 2] = BACK
            elif class_of(size_of(cpu, start + block)) != number:
                rows[n - 1, 2] = ELSEWHERE
            elif known == 0:
                rows[n - 1, 2] = UNKNOWN
            before, block = block, get_u32(cpu, start + block + NEXT)
    return rows[:n].copy()
