"""Caches and their coherence: against an obvious twin, access by access."""

import random

import pytest
from naive_caches import Caches

from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import u8
from numaemu.hardware.cache import core_t
from numaemu.hardware.cacheinfo import nr_banks
from numaemu.hardware.timing import timed_line
from numaemu.kernel.audit.cache import audit_caches

pytestmark = pytest.mark.interpreted
SMALL = {
    "l1d": {"size": "1KiB", "ways": 2, "latency_ns": 1},
    "l2": {"size": "4KiB", "ways": 4, "latency_ns": 5},
    "llc": {"size": "8KiB", "ways": 4, "latency_ns": 20},
}
MACHINE = {
    "nodes": 2,
    "cpus_per_node": 2,
    "memory_per_node": "32MiB",
    "distance": [[10, 20], [20, 10]],
    "latency": [[80, 140], [140, 80]],
}


def counts_of(cpu):
    """What a CPU has counted, as the twin has it."""
    core = core_t.at(cpu.caches)
    by_level = {n: list(getattr(core, n))[: core.nr_levels] for n in ("hits", "misses", "write_backs")}
    return by_level | {"invalidations": core.invalidations, "transfers": core.transfers}


def access(cpu, line, write):
    """ns of an access to a line."""
    before = cpu.memory_ns
    timed_line(cpu, line * 64, write)
    return cpu.memory_ns - before


def compare(loop, accesses):
    """Play (CPU, line, write) on a machine and on its twin."""
    cpus = {n: loop.cpu(n) for n in loop.topology.cpus}
    node_of = lambda line: int(u8.array(loop.machine.block_node)[line * 64 >> 21])
    twin = Caches(loop.topology, node_of, nr_banks(loop.topology.cache))
    for i, (cpu, line, write) in enumerate(accesses):
        ours, wanted = access(cpus[cpu], line, write), twin.access(cpu, line, write)
        assert ours == wanted, f"access {i} of cpu {cpu} to line {line}, write {write}: {ours} ns, must be {wanted}"
    for number, cpu in cpus.items():
        assert counts_of(cpu) == twin.counts[number], f"cpu {number}"
    audit_caches(loop.machine)
    return twin


def mixture(rng, cpus, n, lines=600):
    """Accesses of several CPUs, near each other and far, to memory of both nodes."""
    for _ in range(n):
        line = rng.choice((rng.randrange(40), rng.randrange(lines), (1 << 19) + rng.randrange(lines)))
        yield rng.choice(cpus), line, rng.random() < 0.4


SHAPES = {
    "three levels": {},
    "first only": {"l2": None, "llc": None},
    "no llc": {"llc": None},
    "no l2": {"l2": None},
    "clusters": {"l2": {"sharing": "cluster:2"}},
    "all of a node": {"l2": {"sharing": "node"}},
    "inclusive": {"llc": {"inclusive": True}},
    "all inclusive": {"l2": {"inclusive": True}, "llc": {"inclusive": True}},
    "inclusive clusters": {"l2": {"sharing": "cluster:2", "inclusive": True}, "llc": {"inclusive": True}},
    "plru": {"l1d": {"replacement": "plru"}, "l2": {"replacement": "plru"}, "llc": {"replacement": "plru"}},
    "random": {"l1d": {"replacement": "random"}, "l2": {"replacement": "random"}, "llc": {"replacement": "random"}},
    "odd": {"l2": {"size": "5376B", "ways": 7}, "llc": {"size": "9KiB", "ways": 3}},
    "one set": {"l1d": {"size": "1KiB", "ways": 16}, "llc": {"size": "8KiB", "ways": 128}},
    "direct": {"l1d": {"size": "1KiB", "ways": 1}, "l2": {"ways": 1}, "llc": {"ways": 1}},
}


def caches(changes):
    """[cache] of a small machine with what a shape changes."""
    levels = {name: SMALL[name] | (changes.get(name) or {}) for name in SMALL if changes.get(name, {}) is not None}
    return levels | {"cache_to_cache": [[40, 90], [95, 45]]}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cpus", [1, 8])
def test_levels_and_coherence_as_the_twin_has_them(loopback, shape, cpus):
    nodes = {"nodes": 1, "cpus_per_node": 1, "distance": [[10]], "latency": [[80]], "memory_per_node": "64MiB"}
    loop = loopback(
        **MACHINE | (nodes if cpus == 1 else {"cpus_per_node": 4}),
        cache=caches(SHAPES[shape]) if cpus > 1 else caches(SHAPES[shape]) | {"cache_to_cache": 40},
    )
    rng = random.Random(f"{shape} {cpus}")
    twin = compare(loop, mixture(rng, loop.topology.cpus, 20_000 if JIT else 200))
    sums = twin.counts[0]
    if not JIT:
        return
    assert all(sums["hits"]) and all(sums["misses"]) and all(sums["write_backs"])
    assert cpus == 1 or (sums["invalidations"] and sums["transfers"])
