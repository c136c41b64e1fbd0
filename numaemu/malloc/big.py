"""Blocks with a mapping of their own: requests from MMAP_THRESHOLD on, whatever the heap's kind.

    mapping   next  prev  bytes of the mapping  bytes asked for  <- 32 bytes, in the list that begins at BIG_LIST
    + 32      payload

A block that is freed is unmapped at once; one that gets another size is moved by mremap, which copies nothing.
"""

from numaemu.api.access import get, put
from numaemu.compiler.library import far, library
from numaemu.kernel.syscalls.user import bind, mmap, mremap, munmap
from numaemu.malloc.control import BIG_BYTES, BIG_LIST, NODE, note_peak
from numaemu.malloc.errors import BIG
from numaemu.malloc.rows import put_row
from numaemu.spec.param import PAGE_SIZE

NEXT, PREV, NBYTES, ASKED = range(0, 32, 8)
BEFORE = 32  # bytes of the header


@far("i64(cpu_t*, i64, i64)")
def big_malloc(cpu, heap, nbytes):
    """A mapping for one block: the block's address, or 0."""
    length = (nbytes + BEFORE + PAGE_SIZE - 1) & -PAGE_SIZE
    at = mmap(cpu, length)
    if at < 0:
        return 0
    node, first = get(cpu, heap + NODE), get(cpu, heap + BIG_LIST)
    if node >= 0:
        bind(cpu, at, length, node)
    put(cpu, at + NEXT, first)
    put(cpu, at + NBYTES, length)
    put(cpu, at + ASKED, nbytes)
    if first != 0:
        put(cpu, first + PREV, at)
    put(cpu, heap + BIG_LIST, at)
    put(cpu, heap + BIG_BYTES, get(cpu, heap + BIG_BYTES) + length)
    note_peak(cpu, heap)
    return at + BEFORE


@far("bool(cpu_t*, i64, i64)")
def is_big(cpu, heap, block):
    """True if a block stands in the list."""
    at = get(cpu, heap + BIG_LIST)
    while at != 0 and at + BEFORE != block:
        at = get(cpu, at + NEXT)
    return at != 0


@library
def big_asked(cpu, block):
    """What was asked for."""
    return get(cpu, block - BEFORE + ASKED)


@library
def big_usable(cpu, block):
    """The payload that a block has room for."""
    return get(cpu, block - BEFORE + NBYTES) - BEFORE


@far("void(cpu_t*, i64, i64)")
def big_free(cpu, heap, block):
    """Unmap a block of the list."""
    at = block - BEFORE
    behind, before, length = get(cpu, at + NEXT), get(cpu, at + PREV), get(cpu, at + NBYTES)
    if before != 0:
        put(cpu, before + NEXT, behind)
    else:
        put(cpu, heap + BIG_LIST, behind)
    if behind != 0:
        put(cpu, behind + PREV, before)
    put(cpu, heap + BIG_BYTES, get(cpu, heap + BIG_BYTES) - length)
    munmap(cpu, at, length)


@far("i64(cpu_t*, i64, i64, i64)")
def big_realloc(cpu, heap, block, nbytes):
    """The block with another size: its address, or 0. The header moves along, so its neighbours in the list are told."""
    at, length = block - BEFORE, get(cpu, block - BEFORE + NBYTES)
    new_length = (nbytes + BEFORE + PAGE_SIZE - 1) & -PAGE_SIZE
    if new_length != length:
        at = mremap(cpu, at, length, new_length)
        if at < 0:
            return 0
        behind, before = get(cpu, at + NEXT), get(cpu, at + PREV)
        put(cpu, at + NBYTES, new_length)
        put(cpu, before + NEXT if before != 0 else heap + BIG_LIST, at)
        if behind != 0:
            put(cpu, behind + PREV, at)
        put(cpu, heap + BIG_BYTES, get(cpu, heap + BIG_BYTES) + new_length - length)
        note_peak(cpu, heap)
    put(cpu, at + ASKED, nbytes)
    return at + BEFORE


@library
def big_blocks(cpu, heap, rows):
    """Put a row for each block of the list, as far as there is room: how many there are."""
    n, at = 0, get(cpu, heap + BIG_LIST)
    while at != 0:
        length = get(cpu, at + NBYTES)
        if n < len(rows):
            put_row(rows, n, at + BEFORE, length, BIG, get(cpu, at + ASKED), length, length)
        n, at = n + 1, get(cpu, at + NEXT)
    return n
