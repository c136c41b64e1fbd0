"""Hits, misses and write-backs by level, against pycachesim on the same physical traces.

pycachesim does not move a line up when a store hits it, and counts no hit then. So a store is played there as a load and a store,
which is what a store is: the line comes in, is used, and becomes dirty. Its outer levels take dirty lines as whole ones
(`write_allocate=False`), as those here do.
"""

import numpy as np
import pytest

from numaemu.compiler.build import JIT
from numaemu.hardware.cache import core_t
from numaemu.hardware.timing import timed_line

pytestmark = pytest.mark.interpreted
cachesim = pytest.importorskip("cachesim", reason="WANTING: pycachesim")
LEVELS = {"l1d": (32 << 10, 8), "l2": (256 << 10, 8), "llc": (2 << 20, 16)}  # bytes, ways
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


def theirs(trace):
    """What pycachesim counts: hits, misses and write-backs by level."""
    outer, levels = None, []
    for name, (size, ways) in reversed(LEVELS.items()):
        inner = {} if outer is None else {"store_to": outer, "load_from": outer}
        outer = cachesim.Cache(name, size // 64 // ways, ways, 64, "LRU", write_allocate=name == "l1d", **inner)
        levels.insert(0, outer)
    memory = cachesim.MainMemory()
    memory.load_to(levels[-1])
    memory.store_from(levels[-1])
    simulator = cachesim.CacheSimulator(levels[0], memory)
    # its load() and store() of one address leave half of that address as it was on their stack; loadstore() takes it whole
    simulator.loadstore([((address,), (address,) if write else None) for address, write in trace])
    stats = [level.stats() for level in levels]
    return [[s[key] for s in stats] for key in ("HIT_count", "MISS_count", "EVICT_count")]


def ours(loop, trace):
    cpu = loop.cpu(0)
    for address, write in trace:
        timed_line(cpu, address, write)
    core = core_t.at(cpu.caches)
    return [list(core.hits), list(core.misses), list(core.write_backs)]


@pytest.mark.parametrize("make", [matrix_product, skewed, sorting])
@pytest.mark.parametrize("cpus", [1, 2])
def test_the_same_hits_and_misses(loopback, make, cpus):
    cache = {name: {"size": size, "ways": ways} for name, (size, ways) in LEVELS.items()}
    loop = loopback(nodes=1, cpus_per_node=cpus, memory_per_node="64MiB", cache=cache)
    trace = list(make())[:ACCESSES]
    assert not JIT or len(trace) >= 100_000
    assert ours(loop, trace) == theirs(trace)
