"""Caches and their coherence: against an obvious twin, access by access."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback
from naive_caches import Caches

from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import u8, u64
from numaemu.errors import MachineCheck
from numaemu.hardware.cache import cache_t, core_t, drop_line, find_line, hierarchy_t, put_line
from numaemu.hardware.cacheinfo import nr_banks
from numaemu.hardware.coherence import HOLDER_BITS, OWNED, bank_of, hold
from numaemu.hardware.controller import now_ps
from numaemu.hardware.timing import timed_line
from numaemu.kernel.audit.cache import audit_caches

pytestmark = pytest.mark.interpreted
U = np.uint64
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
    return levels


def directory_of(loop):
    """{line: word} of the whole directory."""
    hierarchy = hierarchy_t.at(loop.blocks["hierarchy"])
    last = max((start + size) // 64 for ranges in loop.topology.physical_ranges() for start, size in ranges)
    words = u64.array(hierarchy.directory).as_numpy(last)
    return {int(line): int(words[line]) for line in np.flatnonzero(words)}


def check_directory(loop, twin):
    """The directory has bits exactly for those who have a line, as the twin finds them."""
    hierarchy = hierarchy_t.at(loop.blocks["hierarchy"])
    shared = [cache for cache in twin.caches if not cache.private]
    holders = [[cache] for cache in shared]
    holders += [[c for c in twin.ways[cpu] if c.private] for node in loop.topology.nodes for cpu in node.cpus]
    wanted = {}
    for number, caches in enumerate(holders):
        for line in {entry[0] for cache in caches for entries in cache.lines for entry in entries if entry}:
            wanted[line] = wanted.get(line, 0) | 1 << number % HOLDER_BITS
    assert hierarchy.nr_holders == len(holders)
    assert {line: word & ~int(OWNED) for line, word in directory_of(loop).items()} == wanted


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cpus", [1, 8])
def test_levels_and_coherence_as_the_twin_has_them(loopback, shape, cpus):
    one = {"nodes": 1, "cpus_per_node": 1, "distance": [[10]], "latency": [[80]], "memory_per_node": "64MiB"}
    c2c = {"cache_to_cache": 40 if cpus == 1 else [[40, 90], [95, 45]]}
    loop = loopback(**MACHINE | (one if cpus == 1 else {"cpus_per_node": 4}), cache=caches(SHAPES[shape]) | c2c)
    rng = random.Random(f"{shape} {cpus}")
    twin = compare(loop, mixture(rng, loop.topology.cpus, 20_000 if JIT else 200))
    if cpus > 1:
        check_directory(loop, twin)
    if JIT:
        sums = twin.counts[0]
        assert all(sums["hits"]) and all(sums["misses"]) and all(sums["write_backs"])
        assert cpus == 1 or (sums["invalidations"] and sums["transfers"])


@pytest.mark.parametrize("shape", ["first only", "three levels", "inclusive clusters"])
def test_more_holders_than_the_directory_has_bits(loopback, shape):
    loop = loopback(**MACHINE | {"cpus_per_node": 40}, cache=caches(SHAPES[shape]))
    twin = compare(loop, mixture(random.Random(shape), loop.topology.cpus, 6_000 if JIT else 150, lines=200))
    check_directory(loop, twin)


@pytest.mark.skipif(not JIT, reason="slow without compiled code")
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.booleans()), max_size=60),
    st.sampled_from(sorted(SHAPES)),
)
@settings(max_examples=60, deadline=None)
def test_any_short_run_of_four_cpus(accesses, shape):
    loop = Loopback(**MACHINE, cache=caches(SHAPES[shape]))
    try:
        twin = compare(loop, [(cpu, line * 16, write) for cpu, line, write in accesses])
        check_directory(loop, twin)
    finally:
        loop.close()


def test_a_machine_without_caches_has_no_words_for_them(loopback):
    loop = loopback(**MACHINE)
    assert not {"hierarchy", "directory", "cache_sets"} & loop.blocks.keys()
    assert all(loop.cpu(n).caches == 0 and loop.cpu(n).timed == 0 for n in loop.topology.cpus)
    assert "caches" not in loop.task().counters()


def test_a_dirty_line_comes_from_its_owner(loopback):
    loop = loopback(**MACHINE, cache=caches({}) | {"cache_to_cache": [[40, 90], [95, 45]]})
    a, b, far = loop.cpu(0), loop.cpu(1), loop.cpu(2)
    assert access(a, 7, True) == 80  # memory of its node
    assert access(a, 7, True) == 1
    assert access(b, 7, False) == 40  # from CPU 0; both share it now, the last level has it dirty
    assert access(a, 7, False) == 1 and access(b, 7, False) == 1
    assert access(far, 7, False) == 95  # from the last level of the other node
    assert access(far, 8, False) == 140
    assert access(a, 7, True) == 90  # until the copy of the other node is gone
    assert access(far, 7, True) == 95
    assert (
        counts_of(far)["transfers"] == 2 and counts_of(a)["invalidations"] == 3
    )  # of CPU 1, CPU 2, and its last level


def test_a_dirty_line_of_another_node_takes_its_turn_on_the_link(loopback):
    slow = {"link": {"bandwidth": "100MB/s"}}  # 640 ns a line
    loop = loopback(**MACHINE, **slow, cache=caches({"l2": None, "llc": None}) | {"cache_to_cache": 60})
    near, same, far = loop.cpu(0), loop.cpu(1), loop.cpu(2)
    for cpu, wanted_ns in ((same, 8 * 60), (far, 7 * 640 + 60)):
        for line in range(8):
            access(near, line, True)
        begin = now_ps(cpu)
        for line in range(8):
            timed_line(cpu, line * 64, False)
        assert wanted_ns <= (now_ps(cpu) - begin) / 1000 <= wanted_ns + 640 * (cpu is far)


def test_false_sharing_costs_what_true_sharing_does(loopback):
    loop = loopback(**MACHINE, cache=caches({}) | {"cache_to_cache": 60})
    one, other = loop.cpu(0), loop.cpu(3)
    for apart, wanted in ((8, 60), (64, 1)):
        for at in range(8):
            timed_line(one, 4096 + at * 0, True)
            timed_line(other, 4096 + apart, True)
        before = one.memory_ns, other.memory_ns
        for _ in range(10):
            timed_line(one, 4096, True)
            timed_line(other, 4096 + apart, True)
        assert (one.memory_ns - before[0], other.memory_ns - before[1]) == (10 * wanted, 10 * wanted)


def figures(cpu):
    core = core_t.at(cpu.caches)
    return core.prefetches, core.prefetch_hits


def test_the_next_line_comes_before_it_is_asked_for(loopback):
    loop = loopback(**MACHINE, cache=caches({}) | {"prefetch": ["next-line"]})
    cpu = loop.cpu(0)
    assert [access(cpu, line, False) for line in range(64)] == [80] + 63 * [5]
    assert figures(cpu) == (63, 63)  # none behind the end of the page
    assert access(cpu, 64, False) == 80
    audit_caches(loop.machine)


@pytest.mark.parametrize("stride", [1, 3, -2])
def test_equal_distances_are_followed(loopback, stride):
    loop = loopback(**MACHINE, cache=caches({}) | {"prefetch": ["stride"]})
    cpu = loop.cpu(0)
    lines = [64 + 20 + i * stride for i in range(8)]
    assert [access(cpu, line, False) for line in lines] == 3 * [80] + 5 * [5]
    assert figures(cpu) == (7, 5)
    assert [access(cpu, line, False) for line in (300, 320, 330, 350, 301)] == 5 * [80]
    assert figures(cpu) == (7, 5)


def test_prefetchers_leave_alone_what_others_own(loopback):
    loop = loopback(**MACHINE, cache=caches({}) | {"prefetch": ["next-line"], "cache_to_cache": 60})
    one, other = loop.cpu(0), loop.cpu(1)
    access(other, 1, True)
    access(one, 0, False)
    assert access(other, 1, True) == 1
    assert figures(one) == (0, 0)


def broken(loop, corrupt):
    """What the audit says of a machine whose CPU 0 has line 7 modified, after a hand has been laid on it."""
    access(loop.cpu(0), 7, True)
    access(loop.cpu(2), 9, False)
    audit_caches(loop.machine)
    hierarchy, core = hierarchy_t.at(loop.blocks["hierarchy"]), core_t.at(loop.cpu(0).caches)
    corrupt(hierarchy, core, cache_t.at(core.level[0]), u64.array(hierarchy.directory))
    with pytest.raises(MachineCheck) as error:
        audit_caches(loop.machine)
    return str(error.value)


def set_word(words, at, value):
    words[at] = value


@pytest.mark.parametrize(
    ("corrupt", "said"),
    [
        (lambda h, c, l1, d: set_word(d, 7, 0), "is there, and the directory does not say so"),
        (
            lambda h, c, l1, d: set_word(d, 7, int(d[7]) & ~int(OWNED)),
            "is owned there, and the directory does not say so",
        ),
        (
            lambda h, c, l1, d: set_word(u64.array(l1.tags), find_line(l1, 7), 8 << 3 | 3),
            "stands in a set that is not its own",
        ),
        (lambda h, c, l1, d: set_word(u64.array(l1.tags), find_line(l1, 7) + 1, 7 << 3 | 3), "stands there twice"),
        (lambda h, c, l1, d: set_word(u64.array(l1.tags), find_line(l1, 7), 7 << 3 | 4), "has no state"),
        (lambda h, c, l1, d: set_word(u8.array(l1.marks), find_line(l1, 7) * 4, 9), "its mark is another's"),
        (lambda h, c, l1, d: hold(h, 1, 11), "the directory has 5 bits set, the lines that they have make it 4"),
        (lambda h, c, l1, d: drop_line(l1, 7), "the directory has 4 bits set, the lines that they have make it 3"),
        (lambda h, c, l1, d: setattr(bank_of(h, 7), "lock", 1), "the lock of bank 7 is held"),
    ],
)
def test_the_audit_sees_what_is_wrong(loopback, corrupt, said):
    loop = loopback(**MACHINE, cache=caches({"l2": None}))
    assert said in broken(loop, corrupt)


def test_the_audit_sees_a_second_owner(loopback):
    loop = loopback(**MACHINE, cache=caches({"l2": None, "llc": None}))

    def corrupt(hierarchy, core, l1, directory):
        other = core_t.at(loop.cpu(1).caches)
        put_line(other, cache_t.at(other.level[0]), bank_of(hierarchy, 7), U(7), U(3))
        hold(hierarchy, other.holder, 7)

    assert "is owned there, and another cache has it, too" in broken(loop, corrupt)


def test_the_audit_sees_a_line_that_is_not_below(loopback):
    loop = loopback(**MACHINE, cache=caches({"l2": None, "llc": {"inclusive": True}}))
    said = broken(loop, lambda h, core, l1, d: drop_line(cache_t.at(core.level[1]), 7))
    assert "is there, and not in the inclusive cache below" in said
