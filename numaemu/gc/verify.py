"""Looks whether a heap is what it should be: every reference leads to an object, and what is reachable survives, byte for byte.

A survey walks the spaces, then the graph from the roots. It numbers objects in the order in which it meets them, and mixes types, sizes,
values and the numbers of what they refer to into one figure: two surveys of the same graph agree wherever its objects lie.
It keeps its own lists in the host's memory; what it reads of the heap are accesses as any.
"""

import numpy as np

from numaemu.api.access import get
from numaemu.compiler.library import library
from numaemu.errors import NumaemuError
from numaemu.gc.objects import BODY, FIELD_MASK, FIELDS, FILLER, REFS, TYPE, put_filler, size_of
from numaemu.gc.space import THREAD_TABLE, THREADS, TLAB, TLAB_END, root_range, root_ranges

NO_OBJECT, LOST, WALK = range(1, 4)  # what a GcError is about
COUNT, BYTES, FIGURE, GARBAGE = range(
    4
)  # of a survey: reachable objects, their bytes, what they mix to, bytes not reachable
HALF, PRIME = (1 << 31) - 1, 16777619  # a figure is two halves, whose products fit a word

_FOUND = {
    NO_OBJECT: "a reference leads to no object",
    LOST: "what is reachable is not what it was before the collection",
    WALK: "a space cannot be walked: no header",
}


class GcError(NumaemuError):
    """A heap is not what it should be: what, where, and two words that say more."""

    def __init__(self, code, *words):
        super().__init__(int(code), *map(int, words))
        self.code, self.words = int(code), tuple(map(int, words))

    def __str__(self):
        return f"gc: {_FOUND.get(self.code, 'wrong')} ({', '.join(map(hex, self.words))})"


@library
def mixed(figure, word):
    """A figure with one more word."""
    low = ((figure ^ word) & HALF) * PRIME & HALF
    high = ((figure >> 31 ^ word >> 31 ^ low) & HALF) * PRIME & HALF
    return high << 31 | low


@library
def starts_of(cpu, rows):
    """The addresses of all objects of the spaces, in their order."""
    n = 0
    for i in range(len(rows)):
        thing = rows[i, 0]
        while thing < rows[i, 1]:
            header = get(cpu, thing)
            if size_of(header) < 8 or thing + size_of(header) > rows[i, 1]:
                raise GcError(WALK, thing, header)
            n += 1 if header & FILLER == 0 else 0
            thing += size_of(header)
    starts = np.zeros(n, np.int64)
    n = 0
    for i in range(len(rows)):
        thing = rows[i, 0]
        while thing < rows[i, 1]:
            header = get(cpu, thing)
            if header & FILLER == 0:
                starts[n] = thing
                n += 1
            thing += size_of(header)
    starts.sort()
    return starts


@library
def number_of(starts, thing, holder):
    """The place of an object in the list."""
    i = np.searchsorted(starts, thing)
    if i == len(starts) or starts[i] != thing:
        raise GcError(NO_OBJECT, thing, holder)
    return i


@library
def survey(cpu, heap, rows, buffers):
    """(reachable objects, their bytes, their figure, bytes of what is not reachable) of a stopped heap; `buffers`: threads hold some."""
    if buffers:
        for i in range(get(cpu, heap + THREADS)):
            thread = get(cpu, heap + THREAD_TABLE + 8 * i)
            put_filler(cpu, get(cpu, thread + TLAB), get(cpu, thread + TLAB_END))
    starts = starts_of(cpu, rows)
    seen, queue = np.full(len(starts), -1, np.int64), np.zeros(len(starts), np.int64)
    n, figure = 0, 0
    for i in range(root_ranges(cpu, heap)):
        first, end = root_range(cpu, heap, i)
        for slot in range(first, end, 8):
            thing = get(cpu, slot)
            if thing != 0 and thing & 1 == 0:
                place = number_of(starts, thing, slot)
                if seen[place] < 0:
                    seen[place], queue[n] = n, thing
                    n += 1
                figure = mixed(figure, seen[place])
    done, nbytes = 0, 0
    while done < n:
        thing = queue[done]
        header = get(cpu, thing)
        refs, fields = header >> REFS, header >> FIELDS & FIELD_MASK
        figure = mixed(figure, refs << 32 | fields << 8 | (header >> TYPE & 255))
        for i in range(fields):
            word = get(cpu, thing + BODY + 8 * i)
            if i < refs and word != 0:
                place = number_of(starts, word, thing)
                if seen[place] < 0:
                    seen[place], queue[n] = n, word
                    n += 1
                word = seen[place] + 1
            figure = mixed(figure, word)
        done, nbytes = done + 1, nbytes + size_of(header)
    total = 0
    for i in range(len(starts)):
        total += size_of(get(cpu, starts[i]))
    return n, nbytes, figure, total - nbytes


@library
def compare(before, after):
    """Raise unless two surveys say the same of what is reachable."""
    if before[COUNT] != after[COUNT] or before[BYTES] != after[BYTES] or before[FIGURE] != after[FIGURE]:
        raise GcError(LOST, before[COUNT], after[COUNT], before[BYTES], after[BYTES])
