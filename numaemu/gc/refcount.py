"""Reference counting: each object counts the references to it (LINK), from fields, frames and handles, and goes when none is left.

Its memory is free at once, without a pause, but every store of a reference costs two counts. Objects that refer to each other in a cycle
never reach 0; the backup tracer finds them when memory runs out or somebody asks: it marks, counts anew what lives, and sweeps the rest.
Two threads that store to one field at the same time each take another old value; but a thread that reads a reference must keep it
from being dropped meanwhile, as with C++'s shared_ptr. A new object that nobody stores waits for the tracer.
"""

import numpy as np

from numaemu.api.access import cmpxchg_i64, get, put, xadd_i64
from numaemu.compiler.library import far, library
from numaemu.gc import freelists
from numaemu.gc.freelists import add_chunk
from numaemu.gc.mark_sweep import sweep
from numaemu.gc.marking import mark_all
from numaemu.gc.objects import BODY, LINK, MARK, REFS, size_of
from numaemu.gc.records import FULL, begin_record, end_record
from numaemu.gc.space import LOCK, OWN, START, TOP, USED, retire_all, root_range, root_ranges
from numaemu.gc.verify import COUNTED, GcError, place_of, starts_of
from numaemu.malloc.lock import give, take

RELEASED = OWN + 400  # how many objects were freed by their counts

setup, refill, used, region = freelists.all_free, freelists.refill, freelists.used, freelists.region


@far("void(cpu_t*, i64, i64)")
def release(cpu, heap, thing):
    """Free an object that nothing refers to, and what only it referred to; their LINKs chain what is still to be done."""
    take(cpu, heap + LOCK)
    put(cpu, thing + LINK, 0)
    n = 0
    while thing != 0:
        todo, header = get(cpu, thing + LINK), get(cpu, thing)
        for field in range(thing + BODY, thing + BODY + 8 * (header >> REFS), 8):
            child = get(cpu, field)
            if child != 0 and xadd_i64(cpu, child + LINK, -1) == 1:
                put(cpu, child + LINK, todo)
                todo = child
        add_chunk(cpu, heap, thing, size_of(header))
        put(cpu, heap + USED, get(cpu, heap + USED) - size_of(header))
        n, thing = n + 1, todo
    put(cpu, heap + RELEASED, get(cpu, heap + RELEASED) + n)
    give(cpu, heap + LOCK)


@library
def write_ref(cpu, heap, field, value):
    """Store a reference: count the new one, then uncount the old one."""
    if value != 0:
        xadd_i64(cpu, value + LINK, 1)
    old = get(cpu, field)
    while cmpxchg_i64(cpu, field, old, value) != old:
        old = get(cpu, field)
    if old != 0 and xadd_i64(cpu, old + LINK, -1) == 1:
        release(cpu, heap, old)


write_root = write_ref


@library
def count_anew(cpu, heap):
    """Counts of all marked objects, from what roots and marked objects refer to."""
    thing, end = get(cpu, heap + START), get(cpu, heap + TOP)
    while thing < end:
        header = get(cpu, thing)
        if header & MARK:
            put(cpu, thing + LINK, 0)
        thing += size_of(header)
    for i in range(root_ranges(cpu, heap)):
        first, last = root_range(cpu, heap, i)
        for slot in range(first, last, 8):
            child = get(cpu, slot)
            if child != 0 and child & 1 == 0:
                put(cpu, child + LINK, get(cpu, child + LINK) + 1)
    thing = get(cpu, heap + START)
    while thing < end:
        header = get(cpu, thing)
        if header & MARK:
            for field in range(thing + BODY, thing + BODY + 8 * (header >> REFS), 8):
                child = get(cpu, field)
                if child != 0:
                    put(cpu, child + LINK, get(cpu, child + LINK) + 1)
        thing += size_of(header)


@far("void(cpu_t*, i64)")
def examine(cpu, heap):
    """Look whether each count is the number of references, from roots and from objects that live or wait for the tracer."""
    ends = np.array([get(cpu, heap + START), get(cpu, heap + TOP)])
    n, _ = starts_of(cpu, ends, np.zeros(0, np.int64))
    starts, counts = np.zeros(n, np.int64), np.zeros(n, np.int64)
    starts_of(cpu, ends, starts)
    for i in range(root_ranges(cpu, heap)):
        first, last = root_range(cpu, heap, i)
        for slot in range(first, last, 8):
            child = get(cpu, slot)
            if child != 0 and child & 1 == 0:
                counts[place_of(starts, child)] += 1
    for i in range(n):
        for field in range(starts[i] + BODY, starts[i] + BODY + 8 * (get(cpu, starts[i]) >> REFS), 8):
            place = place_of(starts, get(cpu, field))
            if place >= 0:
                counts[place] += 1
    for i in range(n):
        if counts[i] != get(cpu, starts[i] + LINK):
            raise GcError(COUNTED, starts[i], get(cpu, starts[i] + LINK), counts[i])


@far("void(cpu_t*, i64, i64, i64)")
def collect(cpu, heap, cause, everything):
    """The backup tracer: mark, count, sweep. The world stands still."""
    retire_all(cpu, heap)
    total = get(cpu, heap + TOP) - get(cpu, heap + START)
    log = begin_record(cpu, heap, cause, FULL, get(cpu, heap + USED), total)
    n = mark_all(cpu, heap)
    count_anew(cpu, heap)
    live = sweep(cpu, heap)
    end_record(cpu, heap, log, live, n)
