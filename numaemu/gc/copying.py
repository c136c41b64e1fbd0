"""Two halves, by Cheney: what is reachable is copied into the other half, where the copies themselves are the queue of what is to be
looked at. Nothing is done for garbage, and half of the memory waits.

    [ START … half )  [ half … END )       FROM and TO, changed at each collection; TOP ends what is in use of FROM
"""

from numaemu.api.access import get, put
from numaemu.compiler.library import far, library
from numaemu.gc.objects import BODY, FORWARDED, LINK, REFS, move, size_of
from numaemu.gc.records import FULL, begin_record, end_record
from numaemu.gc.space import BUFFER, END, OWN, START, TOP, give_buffer, retire_all, root_range, root_ranges

FROM, TO = OWN, OWN + 8


@library
def setup(cpu, heap):
    """Everything is in the first half."""
    start = get(cpu, heap + START)
    put(cpu, heap + FROM, start)
    put(cpu, heap + TO, start + half(cpu, heap))
    put(cpu, heap + TOP, start)


@library
def half(cpu, heap):
    """Bytes of a half."""
    return (get(cpu, heap + END) - get(cpu, heap + START)) >> 1 & -8


@far("bool(cpu_t*, i64, i64, i64)")
def refill(cpu, heap, me, nbytes):
    """A new buffer for a thread with room for `nbytes`. False: the half is full. Under the heap's lock."""
    top, end = get(cpu, heap + TOP), get(cpu, heap + FROM) + half(cpu, heap)
    if top + nbytes > end:
        return False
    room = min(max(nbytes, get(cpu, heap + BUFFER)), end - top)
    put(cpu, heap + TOP, top + room)
    give_buffer(cpu, me, top, top + room)
    return True


@library
def copied(cpu, thing, free):
    """(where an object is in the other half, the end of that half's use)"""
    header = get(cpu, thing)
    if header & FORWARDED:
        return get(cpu, thing + LINK), free
    nbytes = size_of(header)
    move(cpu, free, thing, nbytes)
    put(cpu, thing, header | FORWARDED)
    put(cpu, thing + LINK, free)
    return free, free + nbytes


@far("void(cpu_t*, i64, i64, i64)")
def collect(cpu, heap, cause, everything):
    """Copy what is reachable. The world stands still."""
    retire_all(cpu, heap)
    old, new = get(cpu, heap + FROM), get(cpu, heap + TO)
    log = begin_record(cpu, heap, cause, FULL, get(cpu, heap + TOP) - old, half(cpu, heap))
    free = scan = new
    for i in range(root_ranges(cpu, heap)):
        first, end = root_range(cpu, heap, i)
        for slot in range(first, end, 8):
            thing = get(cpu, slot)
            if thing != 0 and thing & 1 == 0:
                place, free = copied(cpu, thing, free)
                put(cpu, slot, place)
    n = 0
    while scan < free:
        header = get(cpu, scan)
        for field in range(scan + BODY, scan + BODY + 8 * (header >> REFS), 8):
            thing = get(cpu, field)
            if thing != 0:
                place, free = copied(cpu, thing, free)
                put(cpu, field, place)
        n, scan = n + 1, scan + size_of(header)
    put(cpu, heap + FROM, new)
    put(cpu, heap + TO, old)
    put(cpu, heap + TOP, free)
    end_record(cpu, heap, log, free - new, n)


@library
def used(cpu, heap):
    """Bytes that objects and buffers take."""
    return get(cpu, heap + TOP) - get(cpu, heap + FROM)


@library
def region(cpu, heap, i):
    """(start, end) of the spaces that hold objects, one after the other; start 0: there is none."""
    return (get(cpu, heap + FROM), get(cpu, heap + TOP)) if i == 0 else (0, 0)
