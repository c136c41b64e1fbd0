"""Grouping by mobility, against a naive twin; boosts, pageblocks for atomic allocations, isolation."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from loopback import SMALL_TLB, Loopback
from naive import MobilityBuddy

from numaemu import __GFP_NORETRY, __GFP_NOWARN, GFP_HIGHUSER_MOVABLE, GFP_KERNEL
from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import u8
from numaemu.kernel.include.internal import ALLOC_HIGHATOMIC, ALLOC_KSWAPD, ALLOC_NOFRAGMENT, ALLOC_OOM
from numaemu.kernel.include.mmzone import (
    MIGRATE_HIGHATOMIC,
    MIGRATE_ISOLATE,
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_TYPES,
    MIGRATE_UNMOVABLE,
    WMARK_HIGH,
    WMARK_MIN,
    ZONE_BOOSTED_WATERMARK,
    ZONE_NORMAL,
    zone_of,
)
from numaemu.kernel.mm.page_alloc import mobility
from numaemu.kernel.mm.page_alloc.node_side import alloc_block, free_block
from numaemu.spec.param import MAX_ORDER, NR_ORDERS


def block_types(loop):
    zone = loop.zones()[0]
    return u8.array(int(loop.machine.block_type)).as_numpy(zone.virgin_end >> 9)


class MobilityMachine(RuleBasedStateMachine):
    """Blocks of random orders and types taken and freed: each block is the one the twin gives, and so is every list."""

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", **SMALL_TLB)
        self.machine, self.zone = self.loop.machine, self.loop.zones()[0]
        self.naive = MobilityBuddy(int(self.zone.virgin_pfn), int(self.zone.virgin_end), MAX_ORDER)
        self.taken = []

    @rule(
        order=st.sampled_from([0, 0, 1, 2, 3, 5, 8, 9, 10]),
        migratetype=st.integers(0, 2),
        times=st.sampled_from([1, 4, 40]),
        flags=st.sampled_from([0, 0, 0, ALLOC_NOFRAGMENT]),
    )
    def take(self, order, migratetype, times, flags):
        for _ in range(times):
            pfn = alloc_block(self.machine, self.zone.number, order, migratetype, flags)
            assert pfn == self.naive.alloc(order, migratetype, flags != 0)
            if pfn:
                self.taken.append((pfn, order))

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), times=st.sampled_from([1, 1, 20]))
    def give_back(self, data, times):
        for _ in range(min(times, len(self.taken))):
            pfn, order = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
            free_block(self.machine, pfn, order)
            self.naive.free(pfn, order)

    @invariant()
    def the_same_everywhere(self):
        for order in range(NR_ORDERS):
            area = self.zone.free_area[order]
            for kind in range(MIGRATE_TYPES):
                pfn, found = area.head[kind], []
                while pfn:
                    found.append(pfn)
                    pfn = self.loop.page(pfn).lru_next
                assert found == self.naive.lists[kind][order], f"type {kind} order {order}"
        assert list(block_types(self.loop)) == [self.naive.types[block] for block in range(len(block_types(self.loop)))]
        self.loop.audit()

    def teardown(self):
        self.loop.close()


MobilityMachine.TestCase.settings = settings(max_examples=40 if JIT else 4, stateful_step_count=25)
TestMobility = pytest.mark.interpreted(MobilityMachine.TestCase)


# -- boosts --------------------------------------------------------------------------------------------------


def mix(loop, flags=ALLOC_KSWAPD):
    """Take all of a small machine's memory as movable, give back single pages, and ask for an unmovable one."""
    zone = loop.zones()[0]
    pfns = []
    while (pfn := alloc_block(loop.machine, zone.number, 0, MIGRATE_MOVABLE, 0)) != 0:
        pfns.append(pfn)
    for pfn in pfns[::2]:
        free_block(loop.machine, pfn, 0)
    assert alloc_block(loop.machine, zone.number, 0, MIGRATE_UNMOVABLE, flags) != 0
    return zone


@pytest.mark.interpreted
def test_a_fallback_that_mixes_boosts_the_watermarks(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", sysctl={"vm.watermark_boost_factor": 300_000})
    zone = mix(loop)
    most = max(512, zone.watermark[WMARK_HIGH] * 300_000 // 10_000)
    assert zone.watermark_boost == min(512, most) and zone.flags == ZONE_BOOSTED_WATERMARK
    kernel = loop.task().kernel
    _, trail = kernel.alloc_pages(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, explain=True)
    marks = [step.mark for step in trail if step.what == "watermark failed"]
    assert all(mark >= zone.watermark_boost + zone.watermark[WMARK_MIN] for mark in marks)
    loop.actors[0].rpc_write("/proc/sys/vm/min_free_kbytes", "2048")
    assert zone.watermark_boost == 0


@pytest.mark.interpreted
def test_no_boost_with_factor_0(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", sysctl={"vm.watermark_boost_factor": 0})
    assert mix(loop).watermark_boost == 0
    loop.actors[0].rpc_write("/proc/sys/vm/watermark_boost_factor", "20000")
    assert loop.machine.watermark_boost_factor == 20_000


# -- one type for all ----------------------------------------------------------------------------------------


@pytest.mark.interpreted
@pytest.mark.parametrize("options", [dict(memory_per_node="16MiB", kernel={"page_group_by_mobility": False}),
                                     dict(memory_per_node="8MiB")], ids=["switched off", "too small"])  # fmt: skip
def test_without_grouping_everything_is_unmovable(loopback, options):
    loop = loopback(nodes=1, cpus_per_node=1, **options)
    task = loop.task()
    task.mmap("1MiB").touch()
    task.kernel.alloc_pages(GFP_KERNEL, 3)
    task.kernel.alloc_page(GFP_HIGHUSER_MOVABLE)
    assert set(block_types(loop)) == {MIGRATE_UNMOVABLE}
    assert loop.machine.page_group_by_mobility_disabled == 1 and loop.zones()[0].watermark_boost == 0
    loop.audit()


# -- zones above others --------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_rather_a_lower_zone_than_mixed_pageblocks(loopback):
    """Normal has movable pageblocks with holes only: an unmovable page comes from DMA32, until that is as bad."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="64MiB", low_memory="32MiB")
    normal = zone_of(loop.machine, ZONE_NORMAL)
    pfns = []
    while (pfn := alloc_block(loop.machine, normal.number, 0, MIGRATE_MOVABLE, 0)) != 0:
        pfns.append(pfn)
    for pfn in pfns[::2]:
        free_block(loop.machine, pfn, 0)
    kernel = loop.task().kernel
    assert kernel.page(kernel.alloc_pages(GFP_KERNEL))["zone"] == ZONE_NORMAL - 1
    assert alloc_block(loop.machine, normal.number, 0, MIGRATE_UNMOVABLE, ALLOC_NOFRAGMENT) == 0


# -- pageblocks for large atomic allocations -----------------------------------------------------------------


@pytest.fixture
def roomy(loopback):
    """256 MiB: a hundredth is more than a pageblock."""
    return loopback(nodes=1, cpus_per_node=1, memory_per_node="256MiB")


@pytest.mark.interpreted
def test_large_atomic_allocations_reserve_pageblocks(roomy):
    zone = zone_of(roomy.machine, 1)
    pfn = alloc_block(roomy.machine, zone.number, 3, MIGRATE_UNMOVABLE, ALLOC_HIGHATOMIC)
    types = u8.array(int(roomy.machine.block_type))
    assert types[pfn >> 9] == MIGRATE_HIGHATOMIC and zone.nr_reserved_highatomic == 512
    assert zone.nr_free_highatomic == 504
    other = alloc_block(roomy.machine, zone.number, 3, MIGRATE_UNMOVABLE, ALLOC_HIGHATOMIC)
    assert other >> 9 == pfn >> 9 and zone.nr_reserved_highatomic == 512
    for _ in range(4000):
        alloc_block(roomy.machine, zone.number, 3, MIGRATE_UNMOVABLE, ALLOC_HIGHATOMIC)
    share = zone.managed_pages // 100
    assert zone.nr_reserved_highatomic == -(-share // 512) * 512
    roomy.audit()


@pytest.mark.interpreted
def test_the_reserve_is_for_who_cannot_wait_until_others_are_about_to_fail(roomy):
    kernel, zone = roomy.task().kernel, zone_of(roomy.machine, 1)
    one = alloc_block(roomy.machine, zone.number, 0, MIGRATE_UNMOVABLE, ALLOC_HIGHATOMIC)
    while kernel.alloc_pages(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, 10):
        pass
    while alloc_block(roomy.machine, zone.number, 0, MIGRATE_UNMOVABLE, 0):
        pass
    assert zone.free_pages == zone.nr_free_highatomic > 256
    assert alloc_block(roomy.machine, zone.number, 0, MIGRATE_UNMOVABLE, ALLOC_OOM) >> 9 == one >> 9
    roomy.audit()


@pytest.mark.interpreted
def test_pressure_gives_the_reserve_back(roomy):
    """Before the OOM killer every pageblock comes back, the last one too."""
    task, zone = roomy.task(), zone_of(roomy.machine, 1)
    alloc_block(roomy.machine, zone.number, 3, MIGRATE_UNMOVABLE, ALLOC_HIGHATOMIC)
    roomy.machine.on_oom = 0
    found = set()
    while task.kernel.alloc_pages(GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY, 9) is not None:
        pass  # most of memory, in a few steps
    while True:
        pfn, trail = task.kernel.alloc_pages(GFP_KERNEL | __GFP_NOWARN, 3, explain=True)
        found |= {step.what for step in trail}
        if pfn is None:
            break
    assert "unreserve highatomic" in found and zone.nr_reserved_highatomic == 0
    roomy.audit()


# -- isolation -----------------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_isolated_pageblocks_give_nothing_and_take_what_is_freed(two_nodes):
    loop, kernel = two_nodes, two_nodes.task().kernel
    zone = loop.zones()[1]
    held = alloc_block(loop.machine, zone.number, 0, MIGRATE_MOVABLE, 0)
    start, end = zone.start_pfn, zone.start_pfn + zone.spanned_pages
    free = zone.free_pages
    assert mobility.start_isolate_page_range(loop.machine, zone, start, end)
    assert not mobility.start_isolate_page_range(loop.machine, zone, start, end)
    assert (zone.free_pages, zone.nr_isolated) == (0, free)
    assert alloc_block(loop.machine, zone.number, 0, MIGRATE_MOVABLE, 0) == 0
    assert mobility.test_pages_isolated(loop.machine, zone, start, end) == held
    loop.audit()
    loop.page(held).refcount = 1
    kernel.free_pages(held)
    assert mobility.test_pages_isolated(loop.machine, zone, start, end) == 0 and zone.nr_isolated == free + 1
    mobility.undo_isolate_page_range(loop.machine, zone, start, end, MIGRATE_MOVABLE)
    assert (zone.free_pages, zone.nr_isolated) == (free + 1, 0)
    assert set(block_types(loop)) <= {MIGRATE_MOVABLE, MIGRATE_UNMOVABLE, MIGRATE_RECLAIMABLE, MIGRATE_ISOLATE}
    loop.audit()
