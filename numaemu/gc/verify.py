"""Looks whether a heap is what it should be: every reference leads to an object, and what is reachable survives, byte for byte.

A survey walks the spaces, then the graph from the roots. It numbers objects in the order in which it meets them, and mixes types, sizes,
values and the numbers of what they refer to into one figure: two surveys of the same graph agree wherever its objects lie.
It keeps its own lists in the host's memory; what it reads of the heap are accesses as any.
"""

import numpy as np

from numaemu.api.access import get
from numaemu.compiler.library import far, library
from numaemu.errors import NumaemuError
from numaemu.gc.objects import BODY, FIELD_MASK, FIELDS, FILLER, REFS, TYPE, put_filler, size_of
from numaemu.gc.space import THREAD_TABLE, THREADS, TLAB, TLAB_END, root_range, root_ranges

NO_OBJECT, LOST, WALK, NO_FIELD, NO_ROOT, COUNTED, CARD = range(1, 8)  # what a GcError is about
# of a survey: reachable objects, their bytes, what they mix to, bytes that are not reachable; what is wrong
COUNT, BYTES, FIGURE, GARBAGE, WRONG = range(5)
HALF, PRIME = (1 << 31) - 1, 16777619  # a figure is two halves, whose products fit a word

_FOUND = {
    NO_OBJECT: "a reference leads to no object",
    LOST: "what is reachable is not what it was before the collection",
    WALK: "a space cannot be walked: no header",
    NO_FIELD: "a field is none of the object's, or not of this sort: object, field, references, fields",
    NO_ROOT: "more roots than there are: asked for, there",
    COUNTED: "an object's count is not the number of references to it: object, count, references",
    CARD: "a reference to a young object lies in a card that is not marked: object, field, reference",
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
def starts_of(cpu, ends, starts):
    """Put the addresses of all objects of the spaces into `starts`, as far as there is room: (how many, 0), or (0, where no header is)."""
    n = 0
    for i in range(0, len(ends), 2):
        thing = ends[i]
        while thing < ends[i + 1]:
            header = get(cpu, thing)
            if size_of(header) < 8 or thing + size_of(header) > ends[i + 1]:
                return 0, thing
            if header & FILLER == 0:
                if n < len(starts):
                    starts[n] = thing
                n += 1
            thing += size_of(header)
    return n, 0


@library
def place_of(starts, thing):
    """The place of an object in the list, or -1."""
    i = np.searchsorted(starts, thing)
    return i if i < len(starts) and starts[i] == thing else -1


@library
def fill_buffers(cpu, heap):
    """Let what threads have not used of their buffers be skipped; they keep it."""
    for i in range(get(cpu, heap + THREADS)):
        thread = get(cpu, heap + THREAD_TABLE + 8 * i)
        put_filler(cpu, get(cpu, thread + TLAB), get(cpu, thread + TLAB_END))


@library
def meet(starts, seen, queue, thing, n):
    """(how many objects have been met, the number of this one): -1 where there is no object."""
    place = place_of(starts, thing)
    if place < 0:
        return n, -1
    if seen[place] < 0:
        seen[place], queue[n] = n, thing
        n += 1
    return n, seen[place]


@library
def wrong(code, word, other):
    """A survey that has found something wrong."""
    return 0, 0, 0, 0, code, word, other


@library
def walk(cpu, heap, ends, buffers):
    """(reachable objects, their bytes, their figure, bytes of what is not reachable, what is wrong, two words about that) of a
    stopped heap; `ends`: the first address and the end of each space; `buffers`: threads hold some.
    """
    if buffers:
        fill_buffers(cpu, heap)
    count, where = starts_of(cpu, ends, np.zeros(0, np.int64))
    if where != 0:
        return wrong(WALK, where, get(cpu, where))
    starts = np.zeros(count, np.int64)
    starts_of(cpu, ends, starts)
    starts.sort()
    seen, queue = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    n, figure = 0, 0
    for i in range(root_ranges(cpu, heap)):
        first, end = root_range(cpu, heap, i)
        for slot in range(first, end, 8):
            thing = get(cpu, slot)
            if thing != 0 and thing & 1 == 0:
                n, number = meet(starts, seen, queue, thing, n)
                if number < 0:
                    return wrong(NO_OBJECT, thing, slot)
                figure = mixed(figure, number)
    done, nbytes = 0, 0
    while done < n:
        thing = queue[done]
        header = get(cpu, thing)
        refs, fields = header >> REFS, header >> FIELDS & FIELD_MASK
        figure = mixed(figure, refs << 32 | fields << 8 | (header >> TYPE & 255))
        for i in range(fields):
            word = get(cpu, thing + BODY + 8 * i)
            if i < refs and word != 0:
                n, number = meet(starts, seen, queue, word, n)
                if number < 0:
                    return wrong(NO_OBJECT, word, thing)
                word = number + 1
            figure = mixed(figure, word)
        done, nbytes = done + 1, nbytes + size_of(header)
    total = 0
    for i in range(count):
        total += size_of(get(cpu, starts[i]))
    return n, nbytes, figure, total - nbytes, 0, 0, 0


@far("void(cpu_t*, i64, i64[], i64, i64[])")
def put_survey(cpu, heap, ends, buffers, found):
    """Put a survey into `found`: compiled once, not in every function that may collect."""
    n, nbytes, figure, garbage, code, word, other = walk(cpu, heap, ends, buffers != 0)
    found[COUNT], found[BYTES], found[FIGURE], found[GARBAGE] = n, nbytes, figure, garbage
    found[WRONG], found[WRONG + 1], found[WRONG + 2] = code, word, other


@library
def survey(cpu, heap, ends, buffers):
    """What `walk` finds, in a row."""
    found = np.zeros(WRONG + 3, np.int64)
    put_survey(cpu, heap, ends, 1 if buffers else 0, found)
    return found


@library
def complain(found):
    """Raise what a survey has found."""
    if found[WRONG] != 0:
        raise GcError(found[WRONG], found[WRONG + 1], found[WRONG + 2])


@library
def compare(before, after):
    """Raise unless two surveys say the same of what is reachable."""
    complain(after)
    if before[COUNT] != after[COUNT] or before[BYTES] != after[BYTES] or before[FIGURE] != after[FIGURE]:
        raise GcError(LOST, before[COUNT], after[COUNT], before[BYTES], after[BYTES])
