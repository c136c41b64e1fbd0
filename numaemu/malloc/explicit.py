"""An explicit free list: free blocks are linked with each other, so malloc looks at free blocks only.

Blocks have boundary tags as in `implicit`, and a free one begins with two links, so the smallest has 24 bytes:

    block       the next free block, or 0        at OWN: the first free block
    block + 8   the one before it, or 0

POLICY is the order of the list: the block freed last comes first (a constant time to free), or the list follows the addresses (free
walks to its place, first fit then comes close to best fit). The search is first fit, and a block
that grows takes a free one behind it, so that realloc copies only where it must.
"""

import numpy as np

from numaemu.api.access import get, memcpy, put, put_u32
from numaemu.compiler.library import far, library
from numaemu.malloc import tags
from numaemu.malloc.check import LISTS_HOLD_ALL
from numaemu.malloc.control import END, GROWTH, OWN, POLICY, START, morecore
from numaemu.malloc.errors import BACK, ELSEWHERE
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

SETTINGS = {"order": ("lifo", "address")}
LIFO, ADDRESS = range(2)  # POLICY
RULES = (LISTS_HOLD_ALL,)
NEXT, PREV = 0, 8
LEAST = 24  # bytes of the smallest block: tags and links
ALIGNMENT = 8

blocks, asked, refuse = tags.blocks, tags.asked, tags.refuse


@library
def unlink(cpu, heap, block):
    """Take a block out of the list."""
    behind, before = get(cpu, block + NEXT), get(cpu, block + PREV)
    if before != 0:
        put(cpu, before + NEXT, behind)
    else:
        put(cpu, heap + OWN, behind)
    if behind != 0:
        put(cpu, behind + PREV, before)


@library
def link(cpu, heap, block):
    """Put a free block into the list, where its order says."""
    before, behind = 0, get(cpu, heap + OWN)
    if get(cpu, heap + POLICY) == ADDRESS:
        while behind != 0 and behind < block:
            before, behind = behind, get(cpu, behind + NEXT)
    put(cpu, block + NEXT, behind)
    put(cpu, block + PREV, before)
    if before != 0:
        put(cpu, before + NEXT, block)
    else:
        put(cpu, heap + OWN, block)
    if behind != 0:
        put(cpu, behind + PREV, block)


@library
def release(cpu, heap, block, size):
    """Make a range a free block, joined with free neighbours, in the list; the block."""
    before, behind = tag_at(cpu, block - DSIZE), tag_at(cpu, block + size - WSIZE)
    if behind & IN_USE == 0:
        unlink(cpu, heap, block + size)
        size += behind & SIZE
    if before & IN_USE == 0:
        block -= before & SIZE
        unlink(cpu, heap, block)
        size += before & SIZE
    set_free(cpu, block, size)
    link(cpu, heap, block)
    return block


@library
def setup(cpu, heap):
    """Make the empty heap. False: no memory."""
    if not init_tags(cpu, heap):
        return False
    growth = get(cpu, heap + GROWTH)
    if growth == 0:
        return True
    block = extend(cpu, heap, growth)
    return block != 0 and release(cpu, heap, block, growth) != 0


@library
def find_fit(cpu, heap, size):
    """The first block of the list that is large enough, or 0."""
    block = get(cpu, heap + OWN)
    while block != 0 and size_of(cpu, block) < size:
        block = get(cpu, block + NEXT)
    return block


@library
def place(cpu, heap, block, whole, size, nbytes):
    """Use a range of `whole` bytes that is in no list; what is too much becomes a free block behind."""
    if whole - size >= LEAST:
        set_used(cpu, block, size, nbytes)
        release(cpu, heap, block + size, whole - size)
    else:
        set_used(cpu, block, whole, nbytes)


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
        block = release(cpu, heap, block, room)
    whole = size_of(cpu, block)
    unlink(cpu, heap, block)
    place(cpu, heap, block, whole, size, nbytes)
    return block


@far("i64(cpu_t*, i64, i64)")
def free(cpu, heap, block):
    """Give a block back: 0, or what is wrong with it."""
    wrong = examine(cpu, heap, block)
    if wrong == 0:
        release(cpu, heap, block, size_of(cpu, block))
    return wrong


@library
def usable_size(cpu, heap, block):
    """Bytes of payload that a block has room for."""
    return size_of(cpu, block) - DSIZE


@far("i64(cpu_t*, i64, i64, i64)")
def realloc(cpu, heap, block, nbytes):
    """The block with another size, in its place if it shrinks or a free block behind it suffices: its address, or 0."""
    if nbytes > LARGEST:
        return 0
    whole, size = size_of(cpu, block), adjusted(nbytes, LEAST)
    if size > whole:
        behind = tag_at(cpu, block + whole - WSIZE)
        if behind & IN_USE or whole + (behind & SIZE) < size:
            new = malloc(cpu, heap, nbytes)
            if new != 0:
                memcpy(cpu, new, block, whole - DSIZE)
                release(cpu, heap, block, whole)
            return new
        unlink(cpu, heap, block + whole)
        whole += behind & SIZE
    place(cpu, heap, block, whole, size, nbytes)
    return block


@far("i64(cpu_t*, i64, i64, i64)")
def aligned_alloc(cpu, heap, alignment, nbytes):
    """A block at a multiple of `alignment`, a power of two: what lies before and behind it in a larger block goes back."""
    size = adjusted(nbytes, LEAST)
    block = malloc(cpu, heap, size + alignment + LEAST)
    if block == 0:
        return 0
    whole, at = size_of(cpu, block), block
    if block & (alignment - 1):
        at = (block + LEAST + alignment - 1) & -alignment
        set_used(cpu, at, whole - (at - block), nbytes)
        release(cpu, heap, block, at - block)
    place(cpu, heap, at, whole - (at - block), size, nbytes)
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
    unlink(cpu, heap, block)
    if morecore(cpu, heap, left - tag) == 0:
        left = tag
    else:
        put_u32(cpu, block + left - WSIZE, IN_USE)
    if left > 0:
        release(cpu, heap, block, left)
    return tag - left


@library
def lists(cpu, heap):
    """Rows (list, block, what is wrong with the entry); the last one may be no block."""
    start, end, sorted_list = get(cpu, heap + START), get(cpu, heap + END), get(cpu, heap + POLICY) == ADDRESS
    rows, n = np.zeros(((end - start) // LEAST + 1, 3), np.int64), 0
    before, block = 0, get(cpu, heap + OWN)
    while block != 0 and n < len(rows):
        rows[n, 1], n = block, n + 1
        if block & 7 or block < start or block + LEAST > end:
            break
        if get(cpu, block + PREV) != before:
            rows[n - 1, 2] = BACK
        elif sorted_list and block < before:
            rows[n - 1, 2] = ELSEWHERE
        before, block = block, get(cpu, block + NEXT)
    return rows[:n].copy()
