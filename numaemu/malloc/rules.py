"""Requests of those traces of the public malloc lab that a rule describes."""

import numpy as np

from numaemu.malloc.trace import FREE, MALLOC, REALLOC, Trace


def trace(name, rows):
    """The Trace of some rows (what, block's number, bytes)."""
    rows = np.array(rows, np.int64)
    return Trace(name, rows, int(rows[:, 1].max()) + 1, 0)


def binary(pairs=2000):
    """binary-bal: small and large blocks in turn, the large ones freed, then larger ones that fit between none of the small ones."""
    rows = [(MALLOC, i, (64, 448)[i % 2]) for i in range(2 * pairs)]
    rows += [(FREE, i, 0) for i in range(1, 2 * pairs, 2)]
    rows += [(MALLOC, 2 * pairs + i, 512) for i in range(pairs)]
    return trace("binary", rows + [(FREE, i, 0) for i in (*range(0, 2 * pairs, 2), *range(2 * pairs, 3 * pairs))])


def coalescing(rounds=2400):
    """coalescing-bal: two blocks, freed; one that only fits both."""
    rows = []
    for i in range(0, 3 * rounds, 3):
        rows += [(MALLOC, i, 4095), (MALLOC, i + 1, 4095), (FREE, i, 0), (FREE, i + 1, 0)]
        rows += [(MALLOC, i + 2, 8190), (FREE, i + 2, 0)]
    return trace("coalescing", rows)


def realloc(rounds=4799):
    """realloc-bal: one block that grows by 128 bytes at a time, with a small one behind it."""
    rows = [(MALLOC, 0, 512), (MALLOC, 1, 128)]
    for i in range(rounds):
        rows += [(REALLOC, 0, 640 + 128 * i), (MALLOC, i + 2, 128), (FREE, i + 1, 0)]
    return trace("realloc", rows + [(FREE, rounds + 1, 0), (FREE, 0, 0)])
