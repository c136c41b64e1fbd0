"""Blocks with boundary tags, as Bryant and O'Hallaron's textbook has them (Computer Systems, 9.9): 4-byte header and footer.

    START   pad        4 bytes, so that payloads are aligned to 8
            8 | 1      prologue: header
            8 | 1      prologue: footer
            size | a   header of the first block
            payload …  <- a block's address
            size | a   its footer, which lets the block behind it look back
            …
            0 | 1      epilogue: a header without a block, just before END

`size` is that of the whole block, a multiple of 8, and `a` is 1 while it is in use. Bits 1, 2 and 31 of a tag are to spare, where the
textbook has zeros: here header and footer of a used block hold in five of them how many bytes of its payload nobody has asked for, so
that statistics are exact. No kind leaves more than 23 of them.
"""

import numpy as np

from numaemu.api.access import get, get_u32, put_u32
from numaemu.compiler.library import far, library
from numaemu.malloc.control import END, START, morecore
from numaemu.malloc.errors import BROKEN, FIXED, FREE, FREE_TWICE, MISALIGNED, OVERRUN, UNDERRUN, USED, WILD
from numaemu.malloc.rows import COLUMNS, complain, put_row

WSIZE, DSIZE = 4, 8  # a tag; both tags of a block, and the alignment
IN_USE, SIZE = 1, 0x7FFFFFF8
LARGEST = 0x7FFFFF00  # what fits a tag


@library
def tag_at(cpu, address):
    """The word of a tag."""
    return get_u32(cpu, address)


@library
def size_of(cpu, block):
    """The size of a block, by its header."""
    return get_u32(cpu, block - WSIZE) & SIZE


@library
def set_free(cpu, block, size):
    """Write both tags of a free block."""
    put_u32(cpu, block - WSIZE, size)
    put_u32(cpu, block + size - DSIZE, size)


@library
def set_used(cpu, block, size, asked):
    """Write both tags of a used block."""
    spare = min(size - DSIZE - asked, 31)
    put_u32(cpu, block - WSIZE, size | IN_USE | (spare & 3) << 1 | (spare >> 4) << 31)
    put_u32(cpu, block + size - DSIZE, size | IN_USE | (spare >> 2 & 3) << 1)


@library
def asked_of(size, header, footer):
    """What was asked for, by the tags of a used block."""
    return size - DSIZE - ((header >> 1 & 3) | (footer >> 1 & 3) << 2 | header >> 31 << 4)


@library
def adjusted(nbytes, least):
    """The size of the block for a request: both tags, and a multiple of 8."""
    return max((nbytes + DSIZE + 7) & -8, least)


@library
def init_tags(cpu, heap):
    """An empty heap: prologue and epilogue. False: no memory."""
    start = morecore(cpu, heap, 4 * WSIZE)
    if start == 0:
        return False
    put_u32(cpu, start, 0)
    put_u32(cpu, start + WSIZE, DSIZE | IN_USE)
    put_u32(cpu, start + 2 * WSIZE, DSIZE | IN_USE)
    put_u32(cpu, start + 3 * WSIZE, IN_USE)
    return True


@far("i64(cpu_t*, i64, i64)")
def extend(cpu, heap, size):
    """A new free block of `size` bytes behind the last, with the epilogue behind it; 0: no memory, or the heap would have more than
    the size of one block can tell. It is in no list.
    """
    if get(cpu, heap + END) - get(cpu, heap + START) + size > LARGEST:
        return 0
    block = morecore(cpu, heap, size)
    if block == 0:
        return 0
    set_free(cpu, block, size)
    put_u32(cpu, block + size - WSIZE, IN_USE)
    return block


@far("i64(cpu_t*, i64, i64)")
def examine(cpu, heap, block):
    """What is wrong with a block that somebody wants to free or resize: 0: nothing."""
    start, end = get(cpu, heap + START), get(cpu, heap + END)
    if block < start + 4 * WSIZE or block >= end:
        return WILD
    if block & 7:
        return MISALIGNED
    header = tag_at(cpu, block - WSIZE)
    size = header & SIZE
    if size < 2 * DSIZE or size > end - block:
        return WILD if header & IN_USE == 0 else BROKEN
    if header & IN_USE == 0:
        return FREE_TWICE
    footer, before = tag_at(cpu, block + size - DSIZE), tag_at(cpu, block - DSIZE)
    if footer & (SIZE | IN_USE) != size | IN_USE:
        return OVERRUN
    if before & IN_USE:
        return 0
    room = block - start - 4 * WSIZE  # the block before is free by its footer: does its header say the same?
    return 0 if 0 < before <= room and before & 7 == 0 and tag_at(cpu, block - before - WSIZE) == before else UNDERRUN


@library
def asked(cpu, heap, block):
    """What was asked for when a used block was given out."""
    header = tag_at(cpu, block - WSIZE)
    size = header & SIZE
    return asked_of(size, header, tag_at(cpu, block + size - DSIZE))


@library
def count_blocks(cpu, heap):
    """How many rows `blocks` needs, at most."""
    n, block, end = 1, get(cpu, heap + START) + 4 * WSIZE, get(cpu, heap + END)
    while block < end:
        size = size_of(cpu, block)
        if size < DSIZE or size > end - block:
            return n + 1
        n, block = n + 1, block + size
    return n


@library
def blocks(cpu, heap):
    """A row for each block in the order of addresses, the prologue first; a header that cannot be is the last row."""
    rows = np.zeros((count_blocks(cpu, heap), COLUMNS), np.int64)
    start, end = get(cpu, heap + START), get(cpu, heap + END)
    if start == end:
        return rows[:0]
    put_row(rows, 0, start + 2 * WSIZE, DSIZE, FIXED, 0, tag_at(cpu, start + WSIZE), tag_at(cpu, start + 2 * WSIZE))
    block = start + 4 * WSIZE
    for i in range(1, len(rows)):
        header = tag_at(cpu, block - WSIZE)
        size = header & SIZE
        if size < DSIZE or size > end - block:
            put_row(rows, i, block, size, -1, 0, header, 0)
            break
        footer = tag_at(cpu, block + size - DSIZE)
        used = header & IN_USE
        wanted = asked_of(size, header, footer) if used else 0
        put_row(rows, i, block, size, USED if used else FREE, wanted, header, footer)
        block += size
    return rows


@far("void(cpu_t*, i64, i64, i64)")
def refuse(cpu, heap, wrong, block):
    """HeapError: what is wrong with a block, and where it lies."""
    complain(blocks(cpu, heap), wrong, block)
