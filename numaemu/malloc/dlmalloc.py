"""Doug Lea's malloc (version 2.6.6), as his article "A Memory Allocator" describes it, with chunks of 64 bits.

    chunk        bytes of the chunk before, if that is free       (else the end of its payload)
    chunk + 8    size | 1 if the chunk before is in use           sizes are multiples of 16, the smallest is 32
    chunk + 16   payload; of a free chunk the next one of its bin
    chunk + 24                               and the one before it
    …            the size again: the first word of the chunk behind

    TOP                the chunk that ends the heap: it is used last, and grows
    LAST               what was left of the chunk that was split last, or 0: the next request is tried here, so that neighbours in
                       time are neighbours in memory; it is in no bin
    BIN_MAP, BINS      128 bins: exact up to 1008 bytes, first in first out; above by ranges, sorted by size, so that malloc takes
                       the best fit, and of equals the one that has waited longest

Chunks are joined as they are freed. A request that neither bins nor the top can serve gets a mapping of its own from MMAP_THRESHOLD on.
The top is trimmed when a free makes it larger than TRIM_THRESHOLD. realloc takes the top or free chunks on either side before it
copies elsewhere. The upper 16 bits of a size, which are zeros in Lea's, hold how many bytes of a used chunk nobody asked for.
"""

import numpy as np

from numaemu.api.access import and_i64, get, memcpy, or_i64, put
from numaemu.compiler.bits import lowest_bit
from numaemu.compiler.library import far, library
from numaemu.malloc.big import big_malloc
from numaemu.malloc.check import LISTS_HOLD_ALL
from numaemu.malloc.control import END, GROWTH, MMAP_THRESHOLD, OWN, START, TRIM_THRESHOLD, morecore
from numaemu.malloc.errors import (
    BACK,
    BROKEN,
    ELSEWHERE,
    FREE,
    FREE_TWICE,
    MISALIGNED,
    OVERRUN,
    TOP_CHUNK,
    UNDERRUN,
    UNKNOWN,
    USED,
    WILD,
)
from numaemu.malloc.rows import COLUMNS, complain, put_row
from numaemu.spec.param import PAGE_SIZE

SETTINGS: dict = {}
DEFAULTS = {"growth": 0, "mmap_threshold": 128 << 10, "trim_threshold": 128 << 10}  # growth: Lea's top_pad
OWN_BIG = True  # it decides for itself when a request gets a mapping of its own
RULES = (LISTS_HOLD_ALL,)
ALIGNMENT = 16
TOP, LAST, BIN_MAP, BINS = OWN, OWN + 8, OWN + 16, OWN + 256
NBINS, NSMALLBINS, LEAST = 128, 64, 32
HEAD, FD, BK, PAYLOAD, OVERHEAD = 8, 16, 24, 16, 8
PREV_INUSE, SIZE, SPARE = 1, 0xFFFFFFFFFFF0, 48
LARGEST = 1 << 46


@library
def bin_index(size):
    """The bin for chunks of `size` bytes (largebin_index_64 from 1024 on)."""
    if size < 1024:
        return size >> 4
    if size >> 6 <= 48:
        return 48 + (size >> 6)
    if size >> 9 <= 20:
        return 91 + (size >> 9)
    if size >> 12 <= 10:
        return 110 + (size >> 12)
    if size >> 15 <= 4:
        return 119 + (size >> 15)
    return 124 + (size >> 18) if size >> 18 <= 2 else 126


@library
def bin_at(heap, number):
    """A bin as if it were a chunk: its FD and BK are the first and the last of its chunks, or itself."""
    return heap + BINS + 16 * number - FD


@library
def chunk_size(cpu, chunk):
    return get(cpu, chunk + HEAD) & SIZE


@library
def set_free(cpu, chunk, size):
    """Write the size at both ends of a free chunk; what lies before it is in use."""
    put(cpu, chunk + HEAD, size | PREV_INUSE)
    put(cpu, chunk + size, size)


@library
def set_used(cpu, chunk, size, before, nbytes):
    """Write the head of a used chunk: `before` is 1 if the one before it is in use."""
    put(cpu, chunk + HEAD, size | before | (size - OVERHEAD - nbytes) << SPARE)


@library
def mark_behind(cpu, chunk, size):
    """Tell the chunk behind that this one is in use. Its owner may write the spare bits of its head meanwhile (ptmalloc)."""
    or_i64(cpu, chunk + size + HEAD, PREV_INUSE)


@library
def unlink(cpu, heap, chunk):
    """Take a chunk out of its bin."""
    behind, before = get(cpu, chunk + FD), get(cpu, chunk + BK)
    put(cpu, before + FD, behind)
    put(cpu, behind + BK, before)


@library
def frontlink(cpu, heap, chunk, size):
    """Put a free chunk into its bin: the newest first, or where its size says."""
    number = bin_index(size)
    head = bin_at(heap, number)
    behind = get(cpu, head + FD)
    if behind == head:
        word = heap + BIN_MAP + 8 * (number >> 5)
        put(cpu, word, get(cpu, word) | 1 << (number & 31))
    elif number >= NSMALLBINS:
        while behind != head and size < chunk_size(cpu, behind):
            behind = get(cpu, behind + FD)
    before = get(cpu, behind + BK)
    put(cpu, chunk + FD, behind)
    put(cpu, chunk + BK, before)
    put(cpu, behind + BK, chunk)
    put(cpu, before + FD, chunk)


@library
def setup(cpu, heap):
    """Empty bins, and a top that holds nothing yet."""
    for number in range(NBINS):
        head = bin_at(heap, number)
        put(cpu, head + FD, head)
        put(cpu, head + BK, head)
    put(cpu, heap + TOP, 0)
    return True


@library
def use(cpu, chunk, size, nbytes):
    """Use a whole chunk that is in no bin; its payload."""
    set_used(cpu, chunk, size, PREV_INUSE, nbytes)
    mark_behind(cpu, chunk, size)
    return chunk + PAYLOAD


@library
def split(cpu, heap, chunk, size, wanted, nbytes):
    """Use the front of a chunk that is in no bin; the rest becomes the last remainder, which has gone to its bin before."""
    put(cpu, heap + LAST, chunk + wanted)
    set_free(cpu, chunk + wanted, size - wanted)
    set_used(cpu, chunk, wanted, PREV_INUSE, nbytes)
    return chunk + PAYLOAD


@library
def from_own_bin(cpu, heap, size, nbytes):
    """A chunk of just this size, or up to 16 bytes more: its payload, or 0."""
    if size < 1024:
        for number in range(size >> 4, min((size >> 4) + 2, NSMALLBINS)):
            head = bin_at(heap, number)
            chunk = get(cpu, head + BK)
            if chunk != head:
                unlink(cpu, heap, chunk)
                return use(cpu, chunk, number << 4, nbytes)
        return 0
    head = bin_at(heap, bin_index(size))
    chunk = get(cpu, head + BK)
    while chunk != head:
        have = chunk_size(cpu, chunk)
        if have >= size:
            if have - size >= LEAST:
                return 0
            unlink(cpu, heap, chunk)
            return use(cpu, chunk, have, nbytes)
        chunk = get(cpu, chunk + BK)
    return 0


@library
def from_last(cpu, heap, size, nbytes):
    """From the last remainder: a payload; or 0, and it is in its bin now."""
    chunk = get(cpu, heap + LAST)
    if chunk == 0:
        return 0
    have = chunk_size(cpu, chunk)
    if have - size >= LEAST:
        return split(cpu, heap, chunk, have, size, nbytes)
    put(cpu, heap + LAST, 0)
    if have >= size:
        return use(cpu, chunk, have, nbytes)
    frontlink(cpu, heap, chunk, have)
    return 0


@far("i64(cpu_t*, i64, i64, i64)")
def from_bins(cpu, heap, size, nbytes):
    """The best fit of all bins: a payload, or 0. A bit of a bin that has become empty is cleared when somebody looks there."""
    number = bin_index(size)
    while number < NBINS:
        word = heap + BIN_MAP + 8 * (number >> 5)
        found = get(cpu, word) & (-1 << (number & 31))
        if found == 0:
            number = (number | 31) + 1
            continue
        number = (number & ~31) + lowest_bit(found)
        head = bin_at(heap, number)
        chunk = get(cpu, head + BK)
        if chunk == head:
            put(cpu, word, get(cpu, word) & ~(1 << (number & 31)))
        while chunk != head:
            have = chunk_size(cpu, chunk)
            if have >= size:
                unlink(cpu, heap, chunk)
                if have - size >= LEAST:
                    return split(cpu, heap, chunk, have, size, nbytes)
                return use(cpu, chunk, have, nbytes)
            chunk = get(cpu, chunk + BK)
        number += 1
    return 0


@library
def extend_top(cpu, heap, size):
    """Let the top grow to more than `size` bytes (malloc_extend_top). False: no memory."""
    top, end = get(cpu, heap + TOP), get(cpu, heap + END)
    room = size + get(cpu, heap + GROWTH) + LEAST
    have = end - top if top != 0 else 0
    new_end = (end + room - have + PAGE_SIZE - 1) & -PAGE_SIZE
    at = morecore(cpu, heap, new_end - end)
    if at == 0:
        return False
    if top == 0:
        top = at
        put(cpu, heap + TOP, top)
    put(cpu, top + HEAD, new_end - top | PREV_INUSE)
    return True


@far("i64(cpu_t*, i64, i64, i64)")
def from_top(cpu, heap, size, nbytes):
    """From the top, which grows if it must, or a mapping of its own: a payload, or 0."""
    top = get(cpu, heap + TOP)
    have = chunk_size(cpu, top) if top != 0 else 0
    if have - size < LEAST:
        if nbytes >= get(cpu, heap + MMAP_THRESHOLD):
            block = big_malloc(cpu, heap, nbytes)
            if block != 0:
                return block
        if not extend_top(cpu, heap, size):
            return 0
        top = get(cpu, heap + TOP)
        have = chunk_size(cpu, top)
    set_used(cpu, top, size, PREV_INUSE, nbytes)
    put(cpu, heap + TOP, top + size)
    put(cpu, top + size + HEAD, have - size | PREV_INUSE)
    return top + PAYLOAD


@library
def adjusted(nbytes):
    """The size of the chunk for a request."""
    return max((nbytes + OVERHEAD + 15) & -16, LEAST)


@far("i64(cpu_t*, i64, i64)")
def malloc(cpu, heap, nbytes):
    """A block for `nbytes` bytes: its address, or 0."""
    if nbytes <= 0 or nbytes > LARGEST:
        return 0
    size = adjusted(nbytes)
    block = from_own_bin(cpu, heap, size, nbytes)
    if block == 0:
        block = from_last(cpu, heap, size, nbytes)
    if block == 0:
        block = from_bins(cpu, heap, size, nbytes)
    return block if block != 0 else from_top(cpu, heap, size, nbytes)


@far("i64(cpu_t*, i64, i64)")
def examine(cpu, heap, block):
    """What is wrong with a block that somebody wants to free or resize: 0: nothing."""
    start, top = get(cpu, heap + START), get(cpu, heap + TOP)
    chunk = block - PAYLOAD
    if chunk < start or block >= get(cpu, heap + END):
        return WILD
    if block & 15:
        return MISALIGNED
    if chunk >= top:
        return FREE_TWICE
    size = chunk_size(cpu, chunk)
    if size < LEAST or chunk + size > top:
        return WILD if size == 0 else BROKEN
    behind = get(cpu, chunk + size + HEAD)
    if behind & SIZE < 16 or (behind & SIZE) > get(cpu, heap + END) - chunk - size:
        return OVERRUN
    if behind & PREV_INUSE == 0:
        return FREE_TWICE
    if get(cpu, chunk + HEAD) & PREV_INUSE:
        return 0
    before, room = get(cpu, chunk), chunk - start  # the chunk before is free: does its head say the same?
    if before & 15 or before < LEAST or before > room:
        return UNDERRUN
    return 0 if chunk_size(cpu, chunk - before) == before else UNDERRUN


@library
def trim_top(cpu, heap, keep):
    """Give whole pages of the top back but for `keep` bytes (malloc_trim): how many bytes."""
    top, end = get(cpu, heap + TOP), get(cpu, heap + END)
    if top == 0:
        return 0
    extra = ((end - top - keep - LEAST + PAGE_SIZE - 1) // PAGE_SIZE - 1) * PAGE_SIZE
    if extra < PAGE_SIZE or morecore(cpu, heap, -extra) == 0:
        return 0
    put(cpu, top + HEAD, end - extra - top | PREV_INUSE)
    return extra


@library
def join_top(cpu, heap, chunk, size):
    """A free range before the top becomes part of it."""
    put(cpu, heap + TOP, chunk)
    have = get(cpu, heap + END) - chunk
    put(cpu, chunk + HEAD, have | PREV_INUSE)
    if have >= get(cpu, heap + TRIM_THRESHOLD):
        trim_top(cpu, heap, get(cpu, heap + GROWTH))


@far("void(cpu_t*, i64, i64)")
def release(cpu, heap, chunk):
    """Free a used chunk, joined with its neighbours, into the top or a bin; the last remainder stays what it is."""
    head, last = get(cpu, chunk + HEAD), get(cpu, heap + LAST)
    size, is_last = head & SIZE, False
    behind = chunk + size
    if head & PREV_INUSE == 0:
        before = get(cpu, chunk)
        chunk -= before
        size += before
        is_last = chunk == last
        if not is_last:
            unlink(cpu, heap, chunk)
    if behind == get(cpu, heap + TOP):
        if is_last:
            put(cpu, heap + LAST, 0)
        join_top(cpu, heap, chunk, size)
        return
    next_head = get(cpu, behind + HEAD)
    next_size = next_head & SIZE
    if get(cpu, behind + next_size + HEAD) & PREV_INUSE == 0:
        size += next_size
        if behind == last:
            put(cpu, heap + LAST, chunk)
            is_last = True
        else:
            unlink(cpu, heap, behind)
    else:
        and_i64(cpu, behind + HEAD, ~PREV_INUSE)
    set_free(cpu, chunk, size)
    if not is_last:
        frontlink(cpu, heap, chunk, size)


@far("i64(cpu_t*, i64, i64)")
def free(cpu, heap, block):
    """Give a block back: 0, or what is wrong with it."""
    wrong = examine(cpu, heap, block)
    if wrong == 0:
        release(cpu, heap, block - PAYLOAD)
    return wrong


@library
def usable_size(cpu, heap, block):
    """Bytes of payload that a block has room for."""
    return chunk_size(cpu, block - PAYLOAD) - OVERHEAD


@library
def asked(cpu, heap, block):
    """What was asked for."""
    head = get(cpu, block - PAYLOAD + HEAD)
    return (head & SIZE) - OVERHEAD - (head >> SPARE)


@library
def cut(cpu, heap, chunk, have, size, nbytes):
    """Let a used chunk of `have` bytes have `size`, and free what is too much; its payload."""
    before = get(cpu, chunk + HEAD) & PREV_INUSE
    if have - size < LEAST:
        set_used(cpu, chunk, have, before, nbytes)
        mark_behind(cpu, chunk, have)
    else:
        set_used(cpu, chunk, size, before, nbytes)
        set_used(cpu, chunk + size, have - size, PREV_INUSE, 0)
        mark_behind(cpu, chunk + size, have - size)
        release(cpu, heap, chunk + size)
    return chunk + PAYLOAD


@library
def take_free(cpu, heap, chunk):
    """Take a free chunk out of its bin, or it is the last remainder no more."""
    if chunk == get(cpu, heap + LAST):
        put(cpu, heap + LAST, 0)
    else:
        unlink(cpu, heap, chunk)


@library
def move_down(cpu, target, source, nbytes):
    """Copy to a lower address, where both may overlap."""
    while nbytes > 0:
        n = min(nbytes, source - target)
        memcpy(cpu, target, source, n)
        target, source, nbytes = target + n, source + n, nbytes - n


@library
def grow_in_place(cpu, heap, chunk, have, size):
    """Join the free neighbours of a used chunk that shall have `size` bytes: (chunk, its bytes) then; it may begin before."""
    top, behind = get(cpu, heap + TOP), chunk + have
    head = get(cpu, chunk + HEAD)
    extra = 0
    if behind == top:
        extra = max(get(cpu, heap + END) - top - LEAST, 0)
    elif get(cpu, behind + chunk_size(cpu, behind) + HEAD) & PREV_INUSE == 0:
        extra = chunk_size(cpu, behind)
    before = 0
    if have + extra < size and head & PREV_INUSE == 0:
        before = get(cpu, chunk)
    if before + have + extra < size:
        return chunk, have
    if before != 0 and before + have >= size:
        extra = 0
    if extra != 0 and behind == top:
        extra = size - have - before
        new_top = top + extra
        put(cpu, heap + TOP, new_top)
        put(cpu, new_top + HEAD, get(cpu, heap + END) - new_top | PREV_INUSE)
    elif extra != 0:
        take_free(cpu, heap, behind)
    if before != 0:
        take_free(cpu, heap, chunk - before)
        move_down(cpu, chunk - before + PAYLOAD, chunk + PAYLOAD, have - OVERHEAD)
        chunk -= before
        put(cpu, chunk + HEAD, get(cpu, chunk + HEAD) & PREV_INUSE)
    return chunk, before + have + extra


@far("i64(cpu_t*, i64, i64, i64)")
def realloc(cpu, heap, block, nbytes):
    """The block with another size, in its place or joined with free neighbours if that can be: its address, or 0."""
    if nbytes > LARGEST:
        return 0
    chunk, size = block - PAYLOAD, adjusted(nbytes)
    have = chunk_size(cpu, chunk)
    if have < size:
        chunk, have = grow_in_place(cpu, heap, chunk, have, size)
    if have < size:
        new = malloc(cpu, heap, nbytes)
        if new != 0:
            memcpy(cpu, new, block, have - OVERHEAD)
            release(cpu, heap, chunk)
        return new
    return cut(cpu, heap, chunk, have, size, nbytes)


@far("i64(cpu_t*, i64, i64, i64)")
def aligned_alloc(cpu, heap, alignment, nbytes):
    """A block at a multiple of `alignment`, a power of two (memalign): what lies before and behind it goes back."""
    size = adjusted(nbytes)
    if size + alignment + LEAST > LARGEST:
        return 0
    last = get(cpu, heap + LAST)
    if last != 0:
        put(cpu, heap + LAST, 0)
        frontlink(cpu, heap, last, chunk_size(cpu, last))
    block = from_bins(cpu, heap, size + alignment + LEAST, nbytes)
    if block == 0:
        threshold = get(cpu, heap + MMAP_THRESHOLD)
        put(cpu, heap + MMAP_THRESHOLD, LARGEST)
        block = from_top(cpu, heap, size + alignment + LEAST, nbytes)
        put(cpu, heap + MMAP_THRESHOLD, threshold)
        if block == 0:
            return 0
    chunk = block - PAYLOAD
    have = chunk_size(cpu, chunk)
    if block & (alignment - 1):
        at = ((block + alignment - 1) & -alignment) - PAYLOAD
        if at - chunk < LEAST:
            at += alignment
        set_used(cpu, at, have - (at - chunk), PREV_INUSE, 0)
        put(cpu, chunk + HEAD, at - chunk | get(cpu, chunk + HEAD) & PREV_INUSE)
        have -= at - chunk
        release(cpu, heap, chunk)
        chunk = at
    return cut(cpu, heap, chunk, have, size, nbytes)


@library
def trim(cpu, heap, keep):
    """Give whole pages at the end back but for `keep` bytes: how many bytes."""
    return trim_top(cpu, heap, keep)


@library
def count_chunks(cpu, heap):
    """How many rows `blocks` needs, at most."""
    chunk, top, n = get(cpu, heap + START), get(cpu, heap + TOP), 1
    while chunk < top:
        size = chunk_size(cpu, chunk)
        n, chunk = n + 1, chunk + size
        if size < LEAST or chunk > top:
            break
    return n


@library
def blocks(cpu, heap):
    """A row for each chunk in the order of addresses, the top last; a header that cannot be is the last row."""
    chunk, top, n = get(cpu, heap + START), get(cpu, heap + TOP), 0
    rows = np.zeros((count_chunks(cpu, heap), COLUMNS), np.int64)
    while chunk < top:
        head = get(cpu, chunk + HEAD)
        size = head & SIZE
        if size < LEAST or chunk + size > top:
            put_row(rows, n, chunk + PAYLOAD, max(size, 0), -1, 0, 0, 0)
            return rows[: n + 1].copy()
        if get(cpu, chunk + size + HEAD) & PREV_INUSE:
            put_row(rows, n, chunk + PAYLOAD, size, USED, size - OVERHEAD - (head >> SPARE & 0xFFFF), 0, 0)
        else:
            put_row(rows, n, chunk + PAYLOAD, size, FREE, 0, size, get(cpu, chunk + size))
        n, chunk = n + 1, chunk + size
    if top != 0:
        size, room = chunk_size(cpu, top), get(cpu, heap + END) - top
        put_row(rows, n, top + PAYLOAD, room, TOP_CHUNK if size == room else -1, 0, size, room)
        n += 1
    return rows[:n].copy()


@far("void(cpu_t*, i64, i64, i64)")
def refuse(cpu, heap, wrong, block):
    """HeapError: what is wrong with a block, and where it lies."""
    complain(blocks(cpu, heap), wrong, block)


@library
def is_chunk(cpu, heap, chunk):
    """True if a chunk might begin here: it can be looked at."""
    return chunk & 15 == 0 and get(cpu, heap + START) <= chunk <= get(cpu, heap + END) - LEAST


@library
def lists(cpu, heap):
    """Rows (bin, payload, what is wrong with the entry), the last remainder as if it were bin 1; the last one of a bin may be no chunk."""
    most = (get(cpu, heap + END) - get(cpu, heap + START)) // LEAST + NBINS
    rows, n = np.zeros((most, 3), np.int64), 0
    if get(cpu, heap + LAST) != 0:
        rows[0, 0], rows[0, 1], n = 1, get(cpu, heap + LAST) + PAYLOAD, 1
    for number in range(2, NBINS):
        head = bin_at(heap, number)
        known = get(cpu, heap + BIN_MAP + 8 * (number >> 5)) >> (number & 31) & 1
        before, chunk, size = head, get(cpu, head + FD), LARGEST
        while chunk != head and n < most:
            rows[n, 0], rows[n, 1], n = number, chunk + PAYLOAD, n + 1
            if not is_chunk(cpu, heap, chunk):
                break
            larger, size = size, chunk_size(cpu, chunk)
            if get(cpu, chunk + BK) != before:
                rows[n - 1, 2] = BACK
            elif bin_index(size) != number or size > larger:
                rows[n - 1, 2] = ELSEWHERE
            elif known == 0:
                rows[n - 1, 2] = UNKNOWN
            before, chunk = chunk, get(cpu, chunk + FD)
    return rows[:n].copy()
