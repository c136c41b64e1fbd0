"""What an object looks like: two words, then its fields, of which the first ones are references.

    object        header: flags (bits 0 to 2), age (3 to 6), type (8 to 15), fields (16 to 39), references among them (40 to 62)
    object + 8    a word for the collector: the new address, a count of references, a link
    object + 16   references (0: none), then values of 8 bytes

What is no object between objects is a filler: FILLER and, from bit 16 on, its bytes; so a space can be walked from its start.
"""

from numaemu.api.access import get, memcpy, put
from numaemu.compiler.library import library

MARK, FORWARDED, FILLER = 1, 2, 4
AGE, AGES, TYPE, FIELDS, REFS = 3, 15, 8, 16, 40  # shifts; how many ages there are
AGE_MASK, FIELD_MASK = AGES << AGE, (1 << 24) - 1
LINK, BODY = 8, 16  # from the object
MOST_FIELDS = (1 << 23) - 1


@library
def header_for(kind, refs, values):
    """The header of a new object."""
    return (kind & 255) << TYPE | refs + values << FIELDS | refs << REFS


@library
def size_of(header):
    """Bytes of an object or a filler, by its header."""
    return header >> FIELDS if header & FILLER else BODY + 8 * (header >> FIELDS & FIELD_MASK)


@library
def put_filler(cpu, start, end):
    """Let the bytes between two objects be skipped; they are a multiple of 8."""
    if start < end:
        put(cpu, start, end - start << FIELDS | FILLER)


@library
def move(cpu, target, source, nbytes):
    """Copy an object to another place, which may overlap it from below."""
    if target + nbytes <= source or source + nbytes <= target:
        memcpy(cpu, target, source, nbytes)
    else:
        for at in range(0, nbytes, 8):
            put(cpu, target + at, get(cpu, source + at))
