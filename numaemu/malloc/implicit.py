"""An implicit free list: all blocks lie one behind the other, and malloc looks at each until one is free and large enough.

The textbook's allocator (Bryant and O'Hallaron, Computer Systems, 9.9.12): boundary tags, immediate coalescing with both neighbours,
growth by at least GROWTH bytes, realloc by copying. POLICY chooses the fit: the first block that is large enough, the best one, or
the next one behind where the last search ended (ROVER).
"""

import numpy as np

from numaemu.api.access import get, memcpy, put, put_u32
from numaemu.compiler.library import far, library
from numaemu.malloc import tags
from numaemu.malloc.control import END, GROWTH, POLICY, ROVER, START, morecore
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

SETTINGS = {"fit": ("first", "next", "best")}
FIRST, NEXT, BEST = range(3)  # POLICY
LEAST = 2 * DSIZE  # bytes of the smallest block
ALIGNMENT = 8

blocks, asked, refuse = tags.blocks, tags.asked, tags.refuse


@library
def coalesce(cpu, heap, block, size):
    """Join a free block with its free neighbours; the block that this makes."""
    before, behind = tag_at(cpu, block - DSIZE), tag_at(cpu, block + size - WSIZE)
    first = block
    if behind & IN_USE == 0:
        size += behind & SIZE
    if before & IN_USE == 0:
        first -= before & SIZE
        size += before & SIZE
    set_free(cpu, first, size)
    rover = get(cpu, heap + ROVER)
    if first < rover < first + size:
        put(cpu, heap + ROVER, first)
    return first


@library
def setup(cpu, heap):
    """Make the empty heap. False: no memory."""
    if not init_tags(cpu, heap):
        return False
    put(cpu, heap + ROVER, get(cpu, heap + START) + 4 * WSIZE)
    growth = get(cpu, heap + GROWTH)
    return growth == 0 or extend(cpu, heap, growth) != 0


@library
def search(cpu, block, end, size):
    """The first free block of at least `size` bytes from `block` on and before `end` (0: the epilogue); 0: none."""
    while block != end:
        tag = tag_at(cpu, block - WSIZE)
        if tag & SIZE == 0:
            return 0
        if tag & IN_USE == 0 and tag >= size:
            return block
        block += tag & SIZE
    return 0


@library
def best(cpu, block, size):
    """The smallest free block of at least `size` bytes, the first of these; 0: none."""
    found, least = 0, LARGEST + 1
    while True:
        tag = tag_at(cpu, block - WSIZE)
        if tag & SIZE == 0 or least == size:
            return found
        if tag & IN_USE == 0 and size <= tag < least:
            found, least = block, tag
        block += tag & SIZE


@library
def find_fit(cpu, heap, size):
    """A free block for `size` bytes by the heap's policy, or 0."""
    policy, first = get(cpu, heap + POLICY), get(cpu, heap + START) + 4 * WSIZE
    if policy == BEST:
        return best(cpu, first, size)
    if policy == FIRST:
        return search(cpu, first, 0, size)
    rover = get(cpu, heap + ROVER)
    block = search(cpu, rover, 0, size)
    if block == 0:
        block = search(cpu, first, rover, size)
    if block != 0:
        put(cpu, heap + ROVER, block)
    return block


@library
def place(cpu, block, size, asked):
    """Use a free block, and leave what it has too much as a free block behind it."""
    whole = size_of(cpu, block)
    if whole - size >= LEAST:
        set_used(cpu, block, size, asked)
        set_free(cpu, block + size, whole - size)
    else:
        set_used(cpu, block, whole, asked)


@far("i64(cpu_t*, i64, i64)")
def malloc(cpu, heap, nbytes):
    """A block for `nbytes` bytes: its address, or 0."""
    if nbytes <= 0 or nbytes > LARGEST:
        return 0
    size = adjusted(nbytes, LEAST)
    block = find_fit(cpu, heap, size)
    if block == 0:
        room = max(size, get(cpu, heap + GROWTH))
        block = extend(cpu, heap, room)
        if block == 0:  # the last bytes that there are
            room = size
            block = extend(cpu, heap, room)
        if block == 0:
            return 0
        block = coalesce(cpu, heap, block, room)
    place(cpu, block, size, nbytes)
    return block


@far("i64(cpu_t*, i64, i64)")
def free(cpu, heap, block):
    """Give a block back: 0, or what is wrong with it."""
    wrong = examine(cpu, heap, block)
    if wrong == 0:
        size = size_of(cpu, block)
        set_free(cpu, block, size)
        coalesce(cpu, heap, block, size)
    return wrong


@library
def usable_size(cpu, heap, block):
    """Bytes of payload that a block has room for."""
    return size_of(cpu, block) - DSIZE


@far("i64(cpu_t*, i64, i64, i64)")
def realloc(cpu, heap, block, nbytes):
    """A new block with the contents of the old one, which is freed: its address, or 0 (and the old one stays)."""
    new = malloc(cpu, heap, nbytes)
    if new != 0:
        memcpy(cpu, new, block, min(nbytes, usable_size(cpu, heap, block)))
        free(cpu, heap, block)
    return new


@far("i64(cpu_t*, i64, i64, i64)")
def aligned_alloc(cpu, heap, alignment, nbytes):
    """A block at a multiple of `alignment`, a power of two: what lies before it in a larger block goes back."""
    size = adjusted(nbytes, LEAST)
    block = malloc(cpu, heap, size + alignment + LEAST)
    if block == 0:
        return 0
    whole = size_of(cpu, block)
    at = block if block & (alignment - 1) == 0 else (block + LEAST + alignment - 1) & -alignment
    left = whole - (at - block)
    set_used(cpu, at, size, nbytes)
    set_free(cpu, at + size, left - size)
    coalesce(cpu, heap, at + size, left - size)
    if at != block:
        set_free(cpu, block, at - block)
        coalesce(cpu, heap, block, at - block)
    return at


@library
def trim(cpu, heap, keep):
    """Give back what is free at the end but for `keep` bytes: how many bytes."""
    end = get(cpu, heap + END)
    tag = tag_at(cpu, end - DSIZE)
    left = (max(keep, LEAST) + 7) & -8 if keep > 0 else 0
    if tag & IN_USE or tag <= left:
        return 0
    block = end - tag
    if morecore(cpu, heap, left - tag) == 0:
        return 0
    if left > 0:
        set_free(cpu, block, left)
    put_u32(cpu, block + left - WSIZE, IN_USE)
    if get(cpu, heap + ROVER) > block:
        put(cpu, heap + ROVER, block)
    return tag - left


@library
def lists(cpu, heap):
    """Rows (list, block, what is wrong with the entry): there is no list."""
    return np.zeros((0, 3), np.int64)
