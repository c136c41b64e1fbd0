"""Booting with the free lists of a real machine."""

import random

import pytest

from numaemu.errors import ConfigError
from numaemu.kernel.fs.proc import vmstat as proc_vmstat
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.kernel.mm.page_alloc.free_lists import place
from numaemu.spec.buddyinfo import TYPES, read_free_lists
from numaemu.spec.param import MAX_ORDER, NR_ORDERS, PAGEBLOCK_ORDER

pytestmark = pytest.mark.interpreted
PAGES = 64 << 10  # of a zone of 256 MiB


def real_counts(rng, share):
    """Counts by order of a zone whose pages were freed at random, in runs of random lengths, and coalesced."""
    free, counts = bytearray(PAGES), [0] * NR_ORDERS
    while sum(free) < share * PAGES:
        start, length = rng.randrange(PAGES), 1 << rng.randrange(11)
        start &= -length
        free[start : start + length] = b"\1" * length
    at = 0
    while at < PAGES:
        if not free[at]:
            at += 1
            continue
        order = MAX_ORDER
        while at & (1 << order) - 1 or not all(free[at : at + (1 << order)]):
            order -= 1
        counts[order] += 1
        at += 1 << order
    return counts


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_what_a_real_zone_has_can_be_placed(seed, share):
    """All blocks that a buddy system of this size has had fit; none overlaps, and no two free buddies lie side by side."""
    counts = real_counts(random.Random(seed), share)
    blocks, types = place(0, PAGES, {"Movable": counts}, {}, "zone")
    found = list(zip(blocks[::3], blocks[1::3], blocks[2::3]))
    assert [sum(order == o for _, order, _ in found) for o in range(NR_ORDERS)] == counts
    free, starts = bytearray(PAGES), {(pfn, order) for pfn, order, _ in found}
    for pfn, order, migratetype in found:
        assert pfn % (1 << order) == 0 and not any(free[pfn : pfn + (1 << order)])
        free[pfn : pfn + (1 << order)] = b"\1" * (1 << order)
        assert order == MAX_ORDER or (pfn ^ 1 << order, order) not in starts
        assert types[pfn >> PAGEBLOCK_ORDER] == migratetype


def test_types_keep_to_their_pageblocks():
    wanted = {"Unmovable": [40, 10, 0, 0, 0, 0, 0, 0, 1, 0, 0], "Movable": [99, 50, 20, 9, 9, 5, 3, 2, 1, 4, 8]}
    blocks, types = place(0, PAGES, wanted, {"Unmovable": 20, "Reclaimable": 3}, "zone")
    for pfn, order, migratetype in zip(blocks[::3], blocks[1::3], blocks[2::3]):
        assert types[pfn >> PAGEBLOCK_ORDER] == migratetype
        assert order <= PAGEBLOCK_ORDER or types[(pfn >> PAGEBLOCK_ORDER) + 1] == migratetype
    numbers = [sum(kind == TYPES.index(name) for kind in types.values()) for name in ("Unmovable", "Reclaimable")]
    assert numbers == [20, 3]


def test_more_than_fits_is_told():
    with pytest.raises(ConfigError, match=r"zone has no room for 65 free blocks of order 10 \(Movable\), only for 64"):
        place(0, PAGES, {"Movable": [0] * 10 + [65]}, {}, "zone")
    with pytest.raises(ConfigError, match="no room for 33000 free blocks of order 0"):
        place(0, PAGES, {"Movable": [33000] + [0] * 10}, {}, "zone")  # every other page


BUDDYINFO = """Node 0, zone      DMA      2      1      3      0      1      0      1      0      1      1      1
Node 0, zone    DMA32    500    300    200    100     50     20     10      5      3      2      4
"""
PAGETYPEINFO = """Page block order: 9
Pages per block:  512

Free pages count per migrate type at order       0      1      2      3      4      5      6      7      8      9     10
Node    0, zone      DMA, type    Unmovable      1      1      3      0      1      0      1      0      1      1      0
Node    0, zone      DMA, type      Movable      1      0      0      0      0      0      0      0      0      0      1
Node    0, zone    DMA32, type    Unmovable    100     50     20      0      0      0      0      0      0      1      0
Node    0, zone    DMA32, type      Movable    400    250    180    100     50     20     10      5      3      1      4
Node    0, zone    DMA32, type      Isolate      0      0      0      0      0      0      0      0      0      0      0

Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic      Isolate
Node 0, zone      DMA            3            5            0            0            0
Node 0, zone    DMA32           10           40            6            0            0
"""


def counts(text):
    return [line.split()[4:] for line in text.splitlines()]


def test_a_machine_boots_with_them(loopback):
    """buddyinfo is what was given, the audit is content, and what is allocated comes from these blocks."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="128MiB", free_lists=read_free_lists(BUDDYINFO))
    assert counts(proc_vmstat.buddyinfo(System(loop.machine, loop.topology))) == counts(BUDDYINFO)
    loop.audit()
    task = loop.task()
    task.mmap("1MiB").touch()
    loop.audit()
    assert counts(proc_vmstat.buddyinfo(System(loop.machine, loop.topology))) != counts(BUDDYINFO)


def test_with_types(loopback):
    lists = read_free_lists(BUDDYINFO, PAGETYPEINFO)
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="128MiB", free_lists=lists)
    shown = [
        " ".join(line.split()) for line in proc_vmstat.pagetypeinfo(System(loop.machine, loop.topology)).splitlines()
    ]
    for line in PAGETYPEINFO.splitlines()[4:8]:
        assert " ".join(line.split()) in shown
    assert "Node 0, zone DMA32 10 40 6 0 0" in shown
    loop.audit()


@pytest.mark.parametrize(
    "text, words",
    [
        ("nothing\n\n", "has no line like"),
        ("Node 0, zone Normal 1 2 3\n\n", "3 counts, must be 11"),
        (BUDDYINFO + BUDDYINFO, "node 0, zone DMA is there twice"),
    ],
)
def test_texts_that_are_none(text, words):
    with pytest.raises(ConfigError, match=words):
        read_free_lists(text)


def test_files_that_are_none(tmp_path):
    (tmp_path / "binary").write_bytes(b"\0" * 100)
    for path, words in (
        (tmp_path / "binary", "no text of the kernel"),
        (tmp_path / "none", "no such file"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_free_lists(path)


def test_zones_that_are_missing(loopback):
    with pytest.raises(ConfigError, match="zone DMA32 of node 0 is missing; it has DMA of node 0"):
        loopback(
            nodes=1,
            cpus_per_node=1,
            memory_per_node="128MiB",
            free_lists=read_free_lists(BUDDYINFO.splitlines()[0] + "\n\n"),
        )
