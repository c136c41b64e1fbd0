"""Marks: a byte for each of some numbers, eight in a word, so that a search compares eight at once and then looks only at likely ones."""

import numpy as np

from numaemu.compiler.decorators import hot

U = np.uint64
WORD_MARKS = 8
MARK_BITS = U(8)
MARK_MASK = U(0xFF)
EACH_BYTE, HIGH_BITS, LOW_BITS = U(0x0101010101010101), U(0x8080808080808080), U(0x7F7F7F7F7F7F7F7F)


@hot
def mark_of(number):
    """Eight bits that tell numbers apart as well as any eight of theirs do, where they differ within 32 bits."""
    bits = number ^ (number >> U(16))
    return (bits ^ (bits >> U(8))) & MARK_MASK


@hot
def mark_words(n):
    """Words for n marks."""
    return (n + WORD_MARKS - 1) // WORD_MARKS


@hot
def put_mark(marks, first, place, mark):
    """Mark the number at a place, of those whose marks begin at word `first`."""
    word, shift = first + (place >> 3), U(place & (WORD_MARKS - 1)) * MARK_BITS
    marks[word] = (marks[word] & ~(MARK_MASK << shift)) | (mark << shift)


@hot
def marked_as(marks, mark):
    """The high bit of each byte of a word that is this mark."""
    unlike = marks ^ (mark * EACH_BYTE)
    return ~(((unlike & LOW_BITS) + LOW_BITS) | unlike) & HIGH_BITS
