"""Sliding compaction (LISP2): marked objects move together at the start of the heap and keep their order.

After marking, three passes over the heap: each live object is told its new place (LINK); all references are set to the new places; the
objects move. It needs no second half, and touches the heap three times.
"""

from numaemu.api.access import get, put
from numaemu.compiler.library import far, library
from numaemu.gc.marking import mark_all
from numaemu.gc.objects import BODY, LINK, MARK, REFS, move, size_of
from numaemu.gc.records import FULL, begin_record, end_record
from numaemu.gc.space import BUFFER, END, START, TOP, give_buffer, retire_all, root_range, root_ranges


@library
def setup(cpu, heap):
    """Everything is free."""
    put(cpu, heap + TOP, get(cpu, heap + START))


@far("bool(cpu_t*, i64, i64, i64)")
def refill(cpu, heap, me, nbytes):
    """A new buffer for a thread with room for `nbytes`. False: the heap is full. Under the heap's lock."""
    top, end = get(cpu, heap + TOP), get(cpu, heap + END)
    if top + nbytes > end:
        return False
    room = min(max(nbytes, get(cpu, heap + BUFFER)), end - top)
    put(cpu, heap + TOP, top + room)
    give_buffer(cpu, me, top, top + room)
    return True


@library
def update_roots(cpu, heap):
    """Roots lead to the new places."""
    for i in range(root_ranges(cpu, heap)):
        first, end = root_range(cpu, heap, i)
        for slot in range(first, end, 8):
            thing = get(cpu, slot)
            if thing != 0 and thing & 1 == 0:
                put(cpu, slot, get(cpu, thing + LINK))


@library
def assign_places(cpu, thing, top, free):
    """First pass: each live object of a space goes where `free` is; the end of what they take."""
    while thing < top:
        header = get(cpu, thing)
        nbytes = size_of(header)
        if header & MARK:
            put(cpu, thing + LINK, free)
            free += nbytes
        thing += nbytes
    return free


@library
def update_fields(cpu, thing, top):
    """Second pass: the references of a space's live objects lead to the new places."""
    while thing < top:
        header = get(cpu, thing)
        if header & MARK:
            for field in range(thing + BODY, thing + BODY + 8 * (header >> REFS), 8):
                child = get(cpu, field)
                if child != 0:
                    put(cpu, field, get(cpu, child + LINK))
        thing += size_of(header)


@library
def slide(cpu, thing, top):
    """Third pass: the live objects of a space move, and lose their mark."""
    while thing < top:
        header = get(cpu, thing)
        nbytes = size_of(header)
        if header & MARK:
            place = get(cpu, thing + LINK)
            if place != thing:
                move(cpu, place, thing, nbytes)
            put(cpu, place, header & ~MARK)
        thing += nbytes


@far("void(cpu_t*, i64, i64, i64)")
def collect(cpu, heap, cause, everything):
    """Mark, then slide. The world stands still."""
    retire_all(cpu, heap)
    start, top = get(cpu, heap + START), get(cpu, heap + TOP)
    log = begin_record(cpu, heap, cause, FULL, top - start, get(cpu, heap + END) - start)
    n = mark_all(cpu, heap)
    free = assign_places(cpu, start, top, start)
    update_roots(cpu, heap)
    update_fields(cpu, start, top)
    slide(cpu, start, top)
    put(cpu, heap + TOP, free)
    end_record(cpu, heap, log, free - start, n)


@library
def used(cpu, heap):
    """Bytes that objects and buffers take."""
    return get(cpu, heap + TOP) - get(cpu, heap + START)


@library
def region(cpu, heap, i):
    """(start, end) of the spaces that hold objects, one after the other; start 0: there is none."""
    return (get(cpu, heap + START), get(cpu, heap + TOP)) if i == 0 else (0, 0)
