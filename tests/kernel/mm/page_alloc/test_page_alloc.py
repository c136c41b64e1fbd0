"""The buddy allocator against a map of free pages; watermarks, zonelists and numastat against facts of real Linux."""

import pathlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from loopback import SMALL_TLB, Loopback
from naive import Buddy

from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import u8
from numaemu.kernel.boot import node_order, zone_batchsize
from numaemu.kernel.include.gfp import (
    ___GFP_NORETRY,
    __GFP_DMA,
    __GFP_MOVABLE,
    __GFP_RECLAIMABLE,
    __GFP_THISNODE,
    __GFP_ZERO,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
)
from numaemu.kernel.include.internal import ALLOC_AHEAD
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    WMARK_HIGH,
    WMARK_LOW,
    WMARK_MIN,
    ZONE_DMA,
    ZONE_DMA32,
    ZONE_MOVABLE,
    ZONE_NAMES,
    ZONE_NORMAL,
    pcp_of,
    zone_of,
    zonelist,
)
from numaemu.kernel.mm.page_alloc.node_side import alloc_block, fill_shelf, free_block
from numaemu.spec.param import MAX_ORDER, NR_ORDERS
from numaemu.spec.topology import load_topology


def orders_of(text):
    """{(node, zone): blocks by order} of /proc/buddyinfo."""
    lines = re.findall(r"Node (\d+), zone +(\w+) +(.*)", text)
    return {(int(node), zone): [int(n) for n in counts.split()] for node, zone, counts in lines}


class BuddyMachine(RuleBasedStateMachine):
    """Blocks of random orders and mobility, taken and given back in any order, in zone DMA of 16 MiB.

    After each step the free lists cover exactly the free pages of the naive map, coalesced as far as that goes.
    """

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", **SMALL_TLB)
        self.machine = self.loop.machine
        self.zone = self.loop.zones()[0]
        self.naive = Buddy(self.zone.virgin_pfn, self.zone.virgin_end, MAX_ORDER)
        self.start = self.loop.buddyinfo()
        self.taken = []

    @rule(order=st.integers(0, MAX_ORDER), migratetype=st.integers(0, 2), times=st.sampled_from([1, 1, 8]))
    def take(self, order, migratetype, times):
        for _ in range(times):
            pfn = alloc_block(self.machine, self.zone.number, order, migratetype, 0)
            assert (pfn != 0) == self.naive.can_serve(order), f"order {order} migratetype {migratetype}: pfn {pfn}"
            if pfn != 0:
                self.naive.take(pfn, order)
                self.taken.append((pfn, order))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data):
        pfn, order = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        free_block(self.machine, pfn, order)
        self.naive.give_back(pfn, order)

    @invariant()
    def the_lists_hold_what_is_free(self):
        assert self.zone.free_pages == self.naive.nr_free()
        assert orders_of(self.loop.buddyinfo())[0, "DMA"] == self.naive.blocks()

    @invariant()
    def the_audit_agrees(self):
        self.loop.audit()

    def teardown(self):
        for pfn, order in self.taken:
            free_block(self.machine, pfn, order)
        assert self.loop.buddyinfo() == self.start
        self.loop.audit()
        self.loop.close()


BuddyMachine.TestCase.settings = settings(max_examples=40 if JIT else 4, stateful_step_count=30)
TestBuddy = pytest.mark.interpreted(BuddyMachine.TestCase)


@pytest.mark.interpreted
@given(st.lists(st.tuples(st.sampled_from("tf"), st.integers(0, 1), st.integers(0, 1), st.integers(0, 3)), max_size=40))
def test_pages_come_home_through_every_cpu(steps):
    """Pages taken on one CPU and freed on another, by every node's zones: drained, all is as it was."""
    with Loopback(nodes=2, cpus_per_node=1, memory_per_node="16MiB", **SMALL_TLB) as loop:
        kernel = [loop.task(cpu).kernel for cpu in (0, 1)]
        loop.drain()
        start, held, seen = loop.buddyinfo(), [], set()
        for what, cpu, node, order in steps:
            if what == "t":
                pfn = kernel[cpu].alloc_pages(GFP_KERNEL, order, node)
                block = set(range(pfn, pfn + (1 << order)))
                assert not block & seen
                seen |= block
                held.append((pfn, order))
            elif held:
                pfn, order = held.pop(node % len(held))
                kernel[cpu].free_pages(pfn, order)
                seen -= set(range(pfn, pfn + (1 << order)))
            loop.audit()
        for pfn, order in held:
            kernel[0].free_pages(pfn, order)
        loop.drain()
        assert loop.buddyinfo() == start
        loop.audit()


@pytest.mark.interpreted
@pytest.mark.parametrize("order", range(NR_ORDERS))
def test_the_first_block_of_any_order_comes_from_untouched_memory(loopback, order):
    """Untouched memory begins with small blocks (pages 2, 4, 8, … of zone DMA): they do not hide the large ones."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    pfn = alloc_block(loop.machine, loop.zones()[0].number, order, 1, 0)
    assert pfn != 0 and pfn % (1 << order) == 0


@pytest.mark.interpreted
def test_buddyinfo_adds_up(loopback):
    """Untouched, the blocks of every zone add up to its free pages."""
    loop = loopback(nodes=2, cpus_per_node=1, memory_per_node="3GiB")
    found = orders_of(loop.buddyinfo())
    assert set(found) == {(0, "DMA"), (0, "DMA32"), (1, "Normal")}
    for zone in loop.zones():
        blocks = found[zone.node, ZONE_NAMES[zone.type]]
        assert sum(n << order for order, n in enumerate(blocks)) == zone.free_pages


@pytest.mark.interpreted
def test_untouched_memory_costs_the_host_nothing(loopback):
    """64 GiB of frames and 1 GiB of page structs: after boot nearly none of them has been written."""
    loop = loopback(nodes=4, cpus_per_node=1, memory_per_node="16GiB")
    for base, nbytes in ((loop.machine.memory, 64 << 30), (loop.machine.mem_map, 1 << 30)):
        assert resident_bytes(int(base), nbytes) <= 4 << 20  # a huge page of the host's or two
    task = loop.task()
    task.mmap("4KiB").touch()
    assert resident_bytes(int(loop.machine.mem_map), 1 << 30) <= 16 << 20


def resident_bytes(start, nbytes):
    """How much of [start, start + nbytes) of this process the host has in memory."""
    total, inside = 0, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        border = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if border:
            low, high = (int(word, 16) for word in border.groups())
            inside = start <= low and high <= start + nbytes
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


# -- watermarks ----------------------------------------------------------------------------------------------

# A two-node machine of 2 x 512 MiB under Linux 6.12, min_free_kbytes 3834: (managed pages; min, low, high in zoneinfo)
RECORDED = {
    (0, ZONE_DMA): (3840, [14, 17, 20]),
    (0, ZONE_DMA32): (115_291, [445, 560, 675]),
    (1, ZONE_DMA32): (128_808, [497, 625, 753]),
}


@pytest.mark.interpreted
def test_watermarks_of_a_recorded_machine(loopback):
    loop = loopback(
        nodes=2,
        cpus_per_node=1,
        memory_per_node="512MiB",
        sysctl={"vm.min_free_kbytes": 3834},
        reserve={zone: (managed, managed, 0) for zone, (managed, _) in RECORDED.items()},
    )
    for (node, kind), (managed, marks) in RECORDED.items():
        zone = zone_of(loop.machine, node * MAX_NR_ZONES + kind)
        assert zone.managed_pages == managed
        assert [zone.watermark[i] for i in (WMARK_MIN, WMARK_LOW, WMARK_HIGH)] == marks


@pytest.mark.interpreted
@pytest.mark.parametrize("factor", [10, 100, 1000])
def test_watermark_formula(loopback, factor):
    """min(z) = pages_min * managed(z) / managed of all; gap = max(min / 4, managed * factor / 10000)."""
    loop = loopback(
        nodes=3,
        cpus_per_node=1,
        memory_per_node="2GiB",
        sysctl={"vm.min_free_kbytes": 8192, "vm.watermark_scale_factor": factor},
    )
    total = sum(zone.managed_pages for zone in loop.zones())
    for zone in loop.zones():
        lowest = 8192 // 4 * zone.managed_pages // total
        gap = max(lowest // 4, zone.managed_pages * factor // 10_000)
        assert [zone.watermark[i] for i in (WMARK_MIN, WMARK_LOW, WMARK_HIGH)] == [
            lowest,
            lowest + gap,
            lowest + 2 * gap,
        ]


@pytest.mark.interpreted
def test_lowmem_reserve_formula(loopback):
    """What a zone keeps from allocations that may use a higher one: managed pages above it / ratio (256, 256, 32)."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="6GiB")
    dma, dma32, normal = (zone_of(loop.machine, kind) for kind in (ZONE_DMA, ZONE_DMA32, ZONE_NORMAL))
    assert [dma.lowmem_reserve[k] for k in (ZONE_DMA, ZONE_DMA32, ZONE_NORMAL)] == [
        0,
        dma32.managed_pages // 256,
        (dma32.managed_pages + normal.managed_pages) // 256,
    ]
    assert [dma32.lowmem_reserve[k] for k in (ZONE_DMA, ZONE_DMA32, ZONE_NORMAL)] == [0, 0, normal.managed_pages // 256]


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "managed, batch", [(1000, 1), (16_384, 3), (40_960, 15), (65_536, 31), (131_072, 31), (262_144, 63), (4 << 20, 63)]
)
def test_pcp_batch_formula(managed, batch):
    """batch = max(1, 2^floor(log2(1.5 b)) - 1) with b = max(1, min(managed / 1024, 256) / 4): 1, 7, 15, 31, 63 were seen."""
    b = max(1, min(managed // 1024, 256) // 4)
    assert zone_batchsize(managed) == max(1, (1 << (b * 3 // 2).bit_length() - 1) - 1)
    assert zone_batchsize(managed) in (1, 3, 7, 15, 31, 63)


# -- zonelists -----------------------------------------------------------------------------------------------

A = {"nodes": 2}
RING = {"nodes": 4, "distance": [[10, 16, 22, 16], [16, 10, 16, 22], [22, 16, 10, 16], [16, 22, 16, 10]]}
CXL = {"nodes": 2, "memory_only_nodes": 1, "distance": [[10, 21, 31], [21, 10, 31], [31, 31, 10]]}


@pytest.mark.interpreted
@pytest.mark.parametrize("shape, orders", [
    (A, [[0, 1], [1, 0]]),
    (RING, [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]]),
    (CXL, [[0, 1, 2], [1, 0, 2], [2, 0, 1]])], ids=["A", "B ring", "C memory-only"])  # fmt: skip
def test_fallback_order_is_that_of_linux(loopback, shape, orders):
    """'Fallback order for Node n' of Linux 6.12 on machines of these shapes."""
    assert node_order(load_topology(None, **shape)) == orders
    loop = loopback(cpus_per_node=1, memory_per_node="16MiB", **shape)
    for node, order in enumerate(orders):
        found = zonelist(loop.machine, node)
        assert [found[i] for i in range(len(order) + 1)] == [*order, -1]


@pytest.mark.interpreted
def test_overflow_goes_along_the_zonelist(loopback):
    """The ring's node 0 fills up: pages come from 1, then 3, then 2; the counters say so."""
    loop = loopback(cpus_per_node=1, memory_per_node="16MiB", **RING)
    task = loop.task(cpu=0)
    loop.task(cpu=1)
    nodes = []
    while True:
        pfn = task.kernel.alloc_pages(GFP_HIGHUSER_MOVABLE | ___GFP_NORETRY, 3)  # nobody is to be killed
        if pfn is None:
            break
        nodes.append(task.kernel.page(pfn)["node"])
    firsts = [n for i, n in enumerate(nodes) if n not in nodes[:i]]
    assert firsts == [0, 1, 3, 2]
    assert set(nodes[-3:]) <= {0, 1, 2, 3}
    loop.audit()


@pytest.mark.interpreted
def test_numastat_of_a_miss(two_nodes):
    """THISNODE is a hit where it was asked for; a page from elsewhere is a miss there and foreign here."""
    loop, task = two_nodes, two_nodes.task(cpu=0)
    before = loop.vmstat()
    task.kernel.alloc_pages(GFP_KERNEL | __GFP_THISNODE, 0, 1)
    after = loop.vmstat()
    assert {k: after[k] - before[k] for k in ("numa_hit", "numa_miss", "numa_foreign", "numa_other", "numa_local")} == {
        "numa_hit": 1,
        "numa_miss": 0,
        "numa_foreign": 0,
        "numa_other": 1,
        "numa_local": 0,
    }


@pytest.mark.interpreted
def test_zone_modifiers(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="64MiB", movablecore="16MiB")
    kernel = loop.task().kernel
    assert kernel.page(kernel.alloc_pages(GFP_KERNEL | __GFP_DMA))["zone"] == ZONE_DMA
    assert kernel.page(kernel.alloc_pages(GFP_KERNEL))["zone"] == ZONE_DMA32
    assert kernel.page(kernel.alloc_pages(GFP_HIGHUSER_MOVABLE))["zone"] == ZONE_MOVABLE


@pytest.mark.interpreted
def test_zeroed_pages_are_zero_also_after_use(two_nodes):
    loop, kernel = two_nodes, two_nodes.task().kernel
    pfn = kernel.alloc_pages(GFP_KERNEL)
    frame = u8.array(int(loop.machine.memory) + (pfn << 12)).as_numpy(4096)
    frame[:] = 0xAA
    kernel.free_pages(pfn)
    assert kernel.alloc_pages(GFP_KERNEL | __GFP_ZERO) == pfn  # the hottest page of the CPU's list
    assert not frame.any()


@pytest.mark.interpreted
def test_a_pageblock_changes_hands_when_a_type_runs_out(two_nodes):
    """Kernel memory on a machine of movable blocks claims whole ones, so that types mix little."""
    loop = two_nodes
    zone = loop.zones()[0]
    types = u8.array(int(loop.machine.block_type)).as_numpy(zone.virgin_end >> 9)
    assert set(types[: zone.virgin_end >> 9]) == {1}
    pfns = [alloc_block(loop.machine, zone.number, 0, 0, 0) for _ in range(600)]
    assert len({pfn >> 9 for pfn in pfns}) <= 3
    assert all(types[pfn >> 9] == 0 for pfn in pfns)


# -- per-CPU lists -------------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_a_checked_chain_is_given_whole_one_asked_for_ahead_stays_above_high(two_nodes):
    """rmqueue_bulk looks at no watermark: the CPU has done so."""
    loop, zone = two_nodes, two_nodes.zones()[0]
    while zone.free_pages > zone.watermark[WMARK_HIGH] + 8:
        alloc_block(loop.machine, zone.number, 0, 1, 0)
    assert fill_shelf(loop.machine, zone.number, 1, 32, 0, ALLOC_AHEAD) == 8
    loop.drain()
    assert fill_shelf(loop.machine, zone.number, 1, 32, 0, 0) == 32
    loop.drain()
    loop.audit()


@pytest.mark.interpreted
def test_pages_that_lie_on_lists_from_the_start_stay_until_direct_reclaim_collects_them(loopback):
    loop = loopback(nodes=1, cpus_per_node=3, memory_per_node="16MiB", reserve={(0, 0): (3000, 2000, 500)})
    zone = loop.zones()[0]
    lists = [pcp_of(loop.machine, number, zone.number).lists[2] for number in range(3)]
    assert (zone.managed_pages, zone.free_pages) == (3000, 2000) and [pcp.count for pcp in lists] == [166, 167, 167]
    loop.audit()
    task = loop.task(cpu=0)
    task.mmap("4MiB").touch()
    assert [pcp.count for pcp in lists] == [166, 167, 167]
    loop.drain()
    assert [pcp.count for pcp in lists] == [0, 0, 0]
    loop.audit()


@pytest.mark.interpreted
def test_shelves_hold_nothing_while_the_zone_is_short(loopback):
    """What a CPU has not asked for itself is as good as free: it goes back before the zone falls below its high mark."""
    loop = loopback(nodes=1, cpus_per_node=3, memory_per_node="16MiB")
    zone, machine = loop.zones()[0], loop.machine
    shelves = [pcp_of(machine, number, zone.number).lists[1] for number in range(3)]
    loop.drain()
    assert fill_shelf(machine, zone.number, 1, 20, 1, ALLOC_AHEAD) == 20
    assert fill_shelf(machine, zone.number, 1, 20, 2, 0) == 20  # this CPU waits for it
    while zone.free_pages > zone.watermark[WMARK_HIGH] + 8:
        alloc_block(machine, zone.number, 0, 1, 0)
    assert [shelf.shelf > 0 for shelf in shelves] == [False, True, True]
    free = zone.free_pages
    assert fill_shelf(machine, zone.number, 1, 8, 0, 0) == 8 and shelves[1].shelf > 0  # it stays above high
    shelves[0].shelf = 0
    assert fill_shelf(machine, zone.number, 1, 9, 0, 0) == 9
    assert [shelf.shelf > 0 for shelf in shelves] == [True, False, True] and zone.free_pages == free - 8 + 20 - 9


@pytest.mark.interpreted
@pytest.mark.parametrize("fraction, high", [(8, 4094 // 8 // 2), (100, 4094 // 100 // 2), (100_000, 6), (0, 192)])
def test_percpu_pagelist_high_fraction(loopback, fraction, high):
    """A CPU's share of managed / fraction, at least four batches and a page for each list and shelf; the batch stays. What a
    CPU has, of all types and on its shelves, is never more.
    """
    loop = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    zone, write = loop.zones()[0], loop.actors[0].rpc_write
    assert (zone.managed_pages, zone.pcp_batch, zone.pcp_high) == (4094, 1, 192)
    kernel = loop.task().kernel
    for pfn in [kernel.alloc_pages(GFP_KERNEL) for _ in range(100)]:
        kernel.free_pages(pfn)
    loop.write("/proc/sys/vm/percpu_pagelist_high_fraction", str(fraction))
    assert (zone.pcp_batch, zone.pcp_high) == (1, high)
    with pytest.raises(OSError, match="must be 0 or at least 8"):
        write("/proc/sys/vm/percpu_pagelist_high_fraction", "7")
    kinds = GFP_KERNEL, GFP_KERNEL | __GFP_MOVABLE, GFP_KERNEL | __GFP_RECLAIMABLE

    def count():
        lists = [pcp_of(loop.machine, 0, zone.number).lists[kind] for kind in range(3)]
        return sum(pcp.count + (pcp.shelf_count if pcp.shelf > 0 else 0) for pcp in lists)

    assert count() <= high  # a shorter list is cut at once
    held, most = [], 0
    for i in range(240):
        held.append(kernel.alloc_pages(kinds[i % 3]))
        most = max(most, count())
    for pfn in held:
        kernel.free_pages(pfn)
        most = max(most, count())
    assert min(high // 4, 40) <= most <= high
    text = loop.read("/proc/zoneinfo")
    assert f"              high:     {high}\n              batch:    1\n" in text
    loop.audit()
