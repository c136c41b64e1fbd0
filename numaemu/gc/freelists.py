"""Free memory of collectors that do not move objects: chunks in lists by size, out of which threads get their buffers.

    chunk       FILLER and its bytes, as of any filler
    chunk + 8   the next chunk of its list       at CLASSES: for each power of two the first chunk that is at least as large

A chunk of 8 bytes is in no list: it waits for a neighbour to die.
"""

from numaemu.api.access import get, put
from numaemu.compiler.bits import highest_bit
from numaemu.compiler.library import far, library
from numaemu.gc.objects import FIELDS, FILLER, put_filler, size_of
from numaemu.gc.space import BUFFER, END, OWN, START, TOP, USED, give_buffer

CLASSES, LINK, LEAST = OWN, 8, 16


@library
def empty_lists(cpu, heap):
    """No list has a chunk."""
    for number in range(48):
        put(cpu, heap + CLASSES + 8 * number, 0)


@library
def add_chunk(cpu, heap, chunk, nbytes):
    """Put a chunk into its list."""
    put_filler(cpu, chunk, chunk + nbytes)
    if nbytes >= LEAST:
        head = heap + CLASSES + 8 * highest_bit(nbytes)
        put(cpu, chunk + LINK, get(cpu, head))
        put(cpu, head, chunk)


@far("void(cpu_t*, i64)")
def all_free(cpu, heap):
    """The whole heap is one chunk."""
    start, end = get(cpu, heap + START), get(cpu, heap + END)
    empty_lists(cpu, heap)
    put(cpu, heap + TOP, end)
    put(cpu, heap + USED, 0)
    add_chunk(cpu, heap, start, end - start)


@library
def take_from(cpu, heap, number, nbytes):
    """The first chunk of a list that has room for `nbytes`, or 0."""
    before = heap + CLASSES + 8 * number
    chunk = get(cpu, before)
    while chunk != 0 and size_of(get(cpu, chunk)) < nbytes:
        before, chunk = chunk + LINK, get(cpu, chunk + LINK)
    if chunk != 0:
        put(cpu, before, get(cpu, chunk + LINK))
    return chunk


@library
def take_chunk(cpu, heap, nbytes, wanted):
    """A chunk of at least `wanted` bytes if there is one, else of at least `nbytes`; 0: none."""
    for number in range(highest_bit(wanted) + 1, 48):
        if get(cpu, heap + CLASSES + 8 * number) != 0:
            return take_from(cpu, heap, number, nbytes)
    for number in range(highest_bit(wanted), highest_bit(nbytes) - 1, -1):
        chunk = take_from(cpu, heap, number, nbytes)
        if chunk != 0:
            return chunk
    return 0


@far("bool(cpu_t*, i64, i64, i64)")
def refill(cpu, heap, me, nbytes):
    """A new buffer for a thread with room for `nbytes`. False: no chunk is large enough. Under the heap's lock."""
    wanted = max(nbytes, get(cpu, heap + BUFFER))
    chunk = take_chunk(cpu, heap, nbytes, wanted)
    if chunk == 0:
        return False
    have = size_of(get(cpu, chunk))
    if have >= wanted + LEAST:
        add_chunk(cpu, heap, chunk + wanted, have - wanted)
        have = wanted
    put(cpu, heap + USED, get(cpu, heap + USED) + have)
    give_buffer(cpu, me, chunk, chunk + have)
    return True


@library
def used(cpu, heap):
    """Bytes that objects and buffers take."""
    return get(cpu, heap + USED)


@library
def region(cpu, heap, i):
    """(start, end) of the spaces that hold objects, one after the other; start 0: there is none."""
    return (get(cpu, heap + START), get(cpu, heap + TOP)) if i == 0 else (0, 0)


@library
def largest_chunk(cpu, heap):
    """Bytes of the largest chunk."""
    most = 0
    for number in range(48):
        chunk = get(cpu, heap + CLASSES + 8 * number)
        while chunk != 0:
            most = max(most, get(cpu, chunk) >> FIELDS if get(cpu, chunk) & FILLER else 0)
            chunk = get(cpu, chunk + LINK)
    return most
