"""Marking: everything that roots lead to gets its MARK, by a stack of objects that lies in emulated memory, too."""

from numaemu.api.access import get, put
from numaemu.compiler.library import far, library
from numaemu.gc.objects import BODY, MARK, REFS
from numaemu.gc.space import STACK, root_range, root_ranges


@library
def mark_from(cpu, base, root):
    """Mark an object and all that it leads to: how many were new."""
    header = get(cpu, root)
    if header & MARK:
        return 0
    put(cpu, root, header | MARK)
    put(cpu, base, root)
    top, n = base + 8, 1
    while top > base:
        top -= 8
        thing = get(cpu, top)
        for field in range(thing + BODY, thing + BODY + 8 * (get(cpu, thing) >> REFS), 8):
            child = get(cpu, field)
            if child != 0:
                header = get(cpu, child)
                if header & MARK == 0:
                    put(cpu, child, header | MARK)
                    n += 1
                    if header >> REFS:
                        put(cpu, top, child)
                        top += 8
    return n


@far("i64(cpu_t*, i64)")
def mark_all(cpu, heap):
    """Mark what all roots lead to: how many objects."""
    base, n = get(cpu, heap + STACK), 0
    for i in range(root_ranges(cpu, heap)):
        first, end = root_range(cpu, heap, i)
        for slot in range(first, end, 8):
            root = get(cpu, slot)
            if root != 0 and root & 1 == 0:
                n += mark_from(cpu, base, root)
    return n
