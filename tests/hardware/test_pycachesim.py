"""Hits, misses and write-backs by level, against pycachesim on the same physical traces.

pycachesim does not move a line up when a store hits it, and counts no hit then. So a store is played there as a load and a store,
which is what a store is: the line comes in, is used, and becomes dirty. Its outer levels take dirty lines as whole ones
(`write_allocate=False`), as those here do.
"""

import pytest
from cache_traces import ACCESSES, TRACES

from numaemu.compiler.build import JIT
from numaemu.hardware.cache import core_t
from numaemu.hardware.timing import timed_line

pytestmark = pytest.mark.interpreted
cachesim = pytest.importorskip("cachesim", reason="WANTING: pycachesim")
LEVELS = {"l1d": (32 << 10, 8), "l2": (256 << 10, 8), "llc": (2 << 20, 16)}  # bytes, ways


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


@pytest.mark.parametrize("make", TRACES)
@pytest.mark.parametrize("cpus", [1, 2])
def test_the_same_hits_and_misses(loopback, make, cpus):
    cache = {name: {"size": size, "ways": ways} for name, (size, ways) in LEVELS.items()}
    loop = loopback(nodes=1, cpus_per_node=cpus, memory_per_node="64MiB", cache=cache)
    trace = list(make())[:ACCESSES]
    assert not JIT or len(trace) >= 100_000
    assert ours(loop, trace) == theirs(trace)
