"""The collectors. Each is a file of this room with the same functions, of which nothing is compiled before a heap of it is made.

setup(cpu, heap)                   lay out the spaces between START and END
refill(cpu, heap, me, nbytes)      a buffer for a thread with room for an object; False: there is none (with LOCK held)
collect(cpu, heap, cause, everything)     with the world stopped; `everything`: not only a part of the heap
used(cpu, heap), region(cpu, heap, i)     bytes; the spaces that hold objects
write_ref(cpu, heap, field, value)        what a store of a reference does beside it, if anything; write_root: to a frame or a handle
examine(cpu, heap)                 what is wrong with what it keeps beside the objects, if anything: raises a GcError
"""

from numaemu.gc import copying, generational, mark_compact, mark_sweep, refcount

MODULES = {
    "refcount": refcount,
    "mark-sweep": mark_sweep,
    "mark-compact": mark_compact,
    "copying": copying,
    "generational": generational,
}
COLLECTORS = tuple(MODULES)


def collector_module(name):
    """The file of a collector."""
    return MODULES[name]
