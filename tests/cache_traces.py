"""Traces of accesses for caches: pairs of an address and whether it is stored to. For tests, and for benchmarks/caches.py."""

import numpy as np

from numaemu.compiler.build import JIT

ACCESSES = 120_000 if JIT else 3000


def matrix_product(n=48):
    """The addresses of C = A · B, row by row; C is stored."""
    a, b, c = 0, 8 * 200 * 200, 16 * 200 * 200
    for i in range(n):
        for j in range(n):
            for k in range(n // 2):
                yield a + 8 * (200 * i + k), False
                yield b + 8 * (200 * k + j), False
            yield c + 8 * (200 * i + j), True


def skewed(rng=None):
    """Few lines often, many seldom, over 16 MiB; one access in three is a store."""
    rng = np.random.default_rng(1)
    line = (rng.zipf(1.2, ACCESSES) * 2654435761 % (16 << 20)) & ~7
    return zip(line.tolist(), (rng.random(ACCESSES) < 1 / 3).tolist())


def sorting():
    """Passes of a merge sort over 3 MiB: two streams are read, a third one is written."""
    rng, size, half = np.random.default_rng(2), 3 << 20, 4 << 20
    place = [0, size // 2]
    for step in range(ACCESSES // 2):
        source = int(rng.integers(2))
        yield place[source] % size, False
        place[source] += 8 * int(rng.integers(1, 16))
        yield half + step * 64 % size, True


TRACES = (matrix_product, skewed, sorting)
