"""What a collection leaves in the heap's log: a record of words, of which `log` makes HotSpot's lines.

0     cause  kind  bytes before  after  total  began (ns)  pause (ns)  objects
64    bytes promoted  threshold of age  then bytes of survivors by age, 1 to 15
"""

from numaemu.api.access import get, put
from numaemu.compiler.library import library
from numaemu.gc.space import COLLECTIONS, LOG
from numaemu.mmu import clock_ns

CAUSE, KIND, BEFORE, AFTER, TOTAL, BEGAN, PAUSE, OBJECTS, PROMOTED, THRESHOLD, BY_AGE = range(0, 88, 8)
RECORD, RECORDS = 256, 1024  # bytes of a record; records, of which the newest are kept
FAILURE, ASKED, CYCLES = range(3)  # CAUSE: no room, somebody called `collect`, counts miss something
FULL, YOUNG = range(2)  # KIND


@library
def record_at(cpu, heap):
    """The record of the next collection."""
    return get(cpu, heap + LOG) + RECORD * (get(cpu, heap + COLLECTIONS) % RECORDS)


@library
def begin_record(cpu, heap, cause, kind, before, total):
    """A collection begins."""
    at = record_at(cpu, heap)
    for word in range(0, RECORD, 8):
        put(cpu, at + word, 0)
    put(cpu, at + CAUSE, cause)
    put(cpu, at + KIND, kind)
    put(cpu, at + BEFORE, before)
    put(cpu, at + TOTAL, total)
    put(cpu, at + BEGAN, clock_ns(cpu))
    return at


@library
def end_record(cpu, heap, at, after, objects):
    """It is over."""
    put(cpu, at + AFTER, after)
    put(cpu, at + OBJECTS, objects)
    put(cpu, at + PAUSE, clock_ns(cpu) - get(cpu, at + BEGAN))
    put(cpu, heap + COLLECTIONS, get(cpu, heap + COLLECTIONS) + 1)
