"""Allocation flags and the slow path: what each flag lets an allocation do, in Linux's order, and the trail that shows it."""

import numba
import numpy as np
import pytest

import numaemu
from numaemu import (
    __GFP_COLD,
    __GFP_COMP,
    __GFP_HIGH,
    __GFP_KSWAPD_RECLAIM,
    __GFP_MEMALLOC,
    __GFP_MOVABLE,
    __GFP_NO_GROW,
    __GFP_NOFAIL,
    __GFP_NOMEMALLOC,
    __GFP_NORETRY,
    __GFP_NOWARN,
    __GFP_RECLAIM,
    __GFP_RECLAIMABLE,
    __GFP_REPEAT,
    __GFP_RETRY_MAYFAIL,
    __GFP_THISNODE,
    __GFP_WAIT,
    __GFP_ZERO,
    GFP_ATOMIC,
    GFP_DMA,
    GFP_DMA32,
    GFP_HIGHUSER,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_NOFS,
    GFP_NOIO,
    GFP_NOWAIT,
    GFP_TRANSHUGE,
    GFP_TRANSHUGE_LIGHT,
    GFP_USER,
    KernelBug,
    OutOfMemory,
    alloc_page,
    free_page,
)
from numaemu.compiler.pointer import u8
from numaemu.kernel.include import gfp
from numaemu.kernel.include.gfp import gfp_text
from numaemu.kernel.include.internal import COMPACT_DONE, MAX_RECLAIM_RETRIES, PF_MEMALLOC, pack_alloc
from numaemu.kernel.include.mm_types import task_t
from numaemu.kernel.include.mmzone import (
    MIGRATE_RECLAIMABLE,
    WMARK_LOW,
    WMARK_MIN,
    ZONE_DMA,
    ZONE_DMA32,
    ZONE_MOVABLE,
    pcp_of,
)
from numaemu.kernel.include.vmstat import NR_ISOLATED_ANON, percpu_of
from numaemu.kernel.syscalls.allocators import kernel_alloc_pages

pytestmark = pytest.mark.interpreted
ALL = (
    "WAIT HIGH IO FS COLD NOWARN REPEAT RETRY_MAYFAIL NOFAIL NORETRY NO_GROW COMP ZERO THISNODE HARDWALL MOVABLE "
    "RECLAIMABLE MEMALLOC NOMEMALLOC DMA DMA32 HIGHMEM DIRECT_RECLAIM KSWAPD_RECLAIM RECLAIM WRITE ACCOUNT"
).split()
TYPES = (
    "ATOMIC NOWAIT NOIO NOFS KERNEL KERNEL_ACCOUNT USER HIGHUSER HIGHUSER_MOVABLE DMA DMA32 TRANSHUGE TRANSHUGE_LIGHT"
).split()


# -- names ---------------------------------------------------------------------------------------------------


def test_every_name_is_there_for_users():
    for name in [f"__GFP_{n}" for n in ALL] + [f"GFP_{n}" for n in TYPES]:
        assert getattr(numaemu, name) == getattr(gfp, name) != 0
    assert (__GFP_WAIT, __GFP_REPEAT) == (__GFP_RECLAIM, __GFP_RETRY_MAYFAIL)


@pytest.mark.parametrize("mask, value, text", [
    (GFP_KERNEL, 0xCC0, "GFP_KERNEL"), (GFP_ATOMIC, 0x820, "GFP_ATOMIC"), (GFP_NOWAIT, 0x2800, "GFP_NOWAIT"),
    (GFP_NOFS, 0xC40, "GFP_NOFS"), (GFP_NOIO, 0xC00, "GFP_NOIO"), (GFP_KERNEL | GFP_DMA, 0xCC1, "GFP_KERNEL|GFP_DMA"),
    (GFP_HIGHUSER_MOVABLE | __GFP_ZERO, 0x100DCA, "GFP_HIGHUSER_MOVABLE|__GFP_ZERO"),
    (GFP_TRANSHUGE, 0x1C24CA, "GFP_TRANSHUGE"), (GFP_TRANSHUGE_LIGHT, 0x1C20CA, "GFP_TRANSHUGE_LIGHT"),
    (GFP_KERNEL | __GFP_COLD, 0xCC0, "GFP_KERNEL|__GFP_COLD"), (0, 0, "none")])  # fmt: skip
def test_values_and_texts_are_linuxs(mask, value, text):
    assert gfp_text(mask) == (value, text)


# -- zones, migratetypes, lists ------------------------------------------------------------------------------


def test_zones(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="64MiB", movablecore="16MiB")
    kernel = loop.task().kernel

    def zone(mask):
        return kernel.page(kernel.alloc_page(mask))["zone"]

    assert zone(GFP_KERNEL | GFP_DMA) == ZONE_DMA
    assert zone(GFP_KERNEL | GFP_DMA32) == zone(GFP_KERNEL) == zone(GFP_USER) == zone(GFP_HIGHUSER) == ZONE_DMA32
    assert zone(GFP_KERNEL | __GFP_MOVABLE) == ZONE_DMA32  # ZONE_MOVABLE needs __GFP_HIGHMEM beside it
    assert zone(GFP_HIGHUSER_MOVABLE) == ZONE_MOVABLE


def test_reclaimable_pages_get_pageblocks_of_their_own(two_nodes):
    loop, kernel = two_nodes, two_nodes.task().kernel
    types = u8.array(int(loop.machine.block_type))
    reclaimable, not_so = kernel.alloc_page(GFP_KERNEL | __GFP_RECLAIMABLE), kernel.alloc_page(GFP_KERNEL)
    assert types[reclaimable >> 9] == MIGRATE_RECLAIMABLE != types[not_so >> 9]


def test_cold_pages_come_from_the_other_end(two_nodes):
    kernel = two_nodes.task().kernel
    hot, cold = kernel.alloc_page(GFP_KERNEL), kernel.alloc_page(GFP_KERNEL)
    kernel.free_hot_page(hot)
    kernel.free_cold_page(cold)
    assert kernel.alloc_page(GFP_KERNEL | __GFP_COLD) == cold
    assert kernel.alloc_page(GFP_KERNEL) == hot
    two_nodes.audit()


def test_thisnode_stays(two_nodes):
    kernel = two_nodes.task(cpu=0).kernel
    pfns = fill(kernel, GFP_KERNEL | __GFP_THISNODE | __GFP_NORETRY | __GFP_NOWARN, node=1)
    assert {kernel.page(pfn)["node"] for pfn in pfns} == {1}


# -- how far down --------------------------------------------------------------------------------------------


def fill(kernel, mask, node=-1, order=0):
    """Allocate until nothing comes: the pfns."""
    pfns = []
    while (pfn := kernel.alloc_pages(mask, order, node)) is not None:
        pfns.append(pfn)
    return pfns


def left(loop, kernel, mask):
    """Free pages, those on lists included, when an allocation of this kind finds nothing more."""
    fill(kernel, mask)
    loop.drain()
    zone = loop.zones()[0]
    return zone.free_pages


@pytest.fixture
def one(loopback):
    """One node of 16 MiB: zone DMA, min 1024 pages."""
    return loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", sysctl={"vm.min_free_kbytes": 4096})


@pytest.mark.parametrize("mask, share", [
    (GFP_KERNEL | __GFP_NORETRY, 1), (GFP_NOWAIT, 1), (GFP_NOIO | __GFP_NORETRY, 1), (GFP_NOFS | __GFP_NORETRY, 1),
    (GFP_NOIO | __GFP_NORETRY | __GFP_HIGH, 1 / 2),
    (GFP_ATOMIC, 3 / 8), (GFP_ATOMIC | __GFP_NOMEMALLOC, 1 / 2), (GFP_KERNEL | __GFP_MEMALLOC | __GFP_NORETRY, 0)])  # fmt: skip
def test_how_far_below_min_an_allocation_goes(one, mask, share):
    """min; half of it with __GFP_HIGH; three eighths if it cannot wait either; all with __GFP_MEMALLOC."""
    kernel, zone = one.task().kernel, one.zones()[0]
    found = left(one, kernel, mask | __GFP_NOWARN)
    lowest = zone.watermark[WMARK_MIN] * share
    assert lowest - zone.pcp_list_high <= found <= lowest + zone.pcp_list_high


def test_who_reclaims_reaches_everything(one):
    """PF_MEMALLOC: no watermark, and no way up again."""
    kernel = one.task().kernel
    fill(kernel, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)
    one.cpu().flags |= PF_MEMALLOC
    assert kernel.alloc_page(GFP_KERNEL)
    assert kernel.alloc_page(GFP_KERNEL | __GFP_NOMEMALLOC | __GFP_NOWARN) is None
    assert one.vmstat()["oom_kill"] == 0
    one.cpu().flags = 0


def test_a_victim_reaches_half_of_the_reserve(one):
    task, zone = one.task(), one.zones()[0]
    fill(task.kernel, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)
    struct = task_t.array(one.machine.tasks)[task._number]
    struct.oom_victim = struct.pid
    pages = 0
    while kernel_alloc_pages(int(one.cpu().address), task._number, GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY, 0, 0, 1):
        pages += 1
    assert abs(zone.watermark[WMARK_MIN] // 2 - pages) <= zone.pcp_list_high
    struct.oom_victim = 0


# -- the way up ----------------------------------------------------------------------------------------------

CALLS = []


def recorder(answer):
    """A function for machine.on_reclaim and the like that notes its calls, and its address."""
    from numaemu.cpu import _address_of

    def function(cpu, what, third):
        CALLS.append((what, third))
        return answer

    return _address_of(function)


@pytest.fixture
def full(one):
    """The same, with nothing left above min; `kernel` is that of a task there."""
    CALLS.clear()
    one.kernel = one.task(name="asks").kernel
    for order in (6, 3, 0):  # large blocks first: the same, in fewer steps
        fill(one.kernel, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, order=order)
    CALLS.clear()
    return one


def steps(kernel, mask, order=0):
    pfn, trail = kernel.alloc_pages(mask, order, explain=True)
    return pfn, [step.what for step in trail]


def test_direct_reclaim_is_asked_with_the_mask(full):
    kernel = full.kernel
    full.machine.on_reclaim = recorder(0)
    assert kernel.alloc_page(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN) is None
    assert CALLS == [(pack_alloc(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, 0, 0), 1)]


@pytest.mark.parametrize("mask", [GFP_ATOMIC, GFP_NOWAIT, GFP_KERNEL & ~__GFP_RECLAIM])
def test_who_cannot_wait_never_reclaims(full, mask):
    kernel = full.kernel
    fill(kernel, mask | __GFP_NOWARN)
    full.machine.on_reclaim = full.machine.on_compact = recorder(0)
    pfn, found = steps(kernel, mask | __GFP_NOWARN)
    assert pfn is None and CALLS == [] and not {"direct reclaim", "drain", "OOM killer", "retry"} & set(found)


def test_kswapd_is_woken_only_by_who_may(full):
    kernel = full.kernel
    full.machine.on_wake_kswapd = recorder(0)
    kernel.alloc_page(GFP_KERNEL & ~__GFP_KSWAPD_RECLAIM | __GFP_NORETRY | __GFP_NOWARN)
    assert CALLS == []
    kernel.alloc_pages(GFP_NOWAIT, 1)
    assert CALLS[0] == (pack_alloc(GFP_NOWAIT, 1, 2), 0)  # highest zone: Normal; node 0


def test_the_order_of_the_slow_path(full):
    """Lower bar, reclaim, retry while reclaim gets somewhere, OOM killer; NORETRY stops before it."""
    kernel = full.kernel
    full.machine.on_reclaim = recorder(0)
    pfn, found = steps(kernel, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)
    assert pfn is None
    assert (
        found == ["watermark failed", "lower bar", "watermark failed", "watermark failed", "direct reclaim", "failed"]
        or found[:2] == ["watermark failed", "lower bar"]
        and found[-1] == "failed"
        and "OOM killer" not in found
    )


def test_costly_orders_compact_first_and_are_not_killed_for(full):
    kernel = full.kernel
    full.machine.on_reclaim, full.machine.on_compact = recorder(1), recorder(1)  # progress; COMPACT_SKIPPED
    pfn, found = steps(kernel, GFP_KERNEL | __GFP_NOWARN, 5)
    assert pfn is None and found.index("compaction") < found.index("direct reclaim") and "OOM killer" not in found
    assert found.count("direct reclaim") == 1
    full.machine.on_compact = recorder(COMPACT_DONE)  # 4 times more for costly orders, says Linux
    pfn, found = steps(kernel, GFP_HIGHUSER_MOVABLE | __GFP_RETRY_MAYFAIL | __GFP_NOWARN, 5)
    assert pfn is None and found.count("direct reclaim") == 5 and "OOM killer" not in found
    assert full.vmstat()["compact_stall"] == full.vmstat()["compact_fail"] == 6  # one before all reclaim


def test_norefail_of_a_costly_order_gives_up_when_compaction_is_skipped(full):
    kernel = full.kernel
    full.machine.on_reclaim, full.machine.on_compact = recorder(1), recorder(1)
    pfn, found = steps(kernel, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, 5)
    assert pfn is None and "compaction" in found and "direct reclaim" not in found


@pytest.mark.parametrize("mask", [GFP_NOIO, GFP_NOIO | __GFP_NORETRY, GFP_NOIO | __GFP_RETRY_MAYFAIL])
def test_a_costly_order_that_may_not_compact_reclaims_once(full, mask):
    """gfp_compaction_allowed: without __GFP_IO it is not given up because compaction was skipped, and nobody compacts."""
    full.machine.on_reclaim, full.machine.on_compact = recorder(1), recorder(1)
    pfn, found = steps(full.kernel, mask | __GFP_NOWARN, 5)
    assert pfn is None and "compaction" not in found and found.count("direct reclaim") == 1


def test_rounds_in_vain_while_others_hold_pages_are_no_attempts(full):
    """kswapd has just taken pages off the lists, and the host gives it no time: nobody is killed meanwhile."""
    kernel, zone, deliver, waits = full.kernel, full.zones()[0], full.deliver, []
    full.machine.on_reclaim = recorder(0)
    isolated = percpu_of(full.machine, full.machine.nr_cpus).node[0].item
    isolated[NR_ISOLATED_ANON] = 32

    def host_runs_kswapd_at_last():
        waits.append(1)
        if len(waits) == 3 * MAX_RECLAIM_RETRIES:
            isolated[NR_ISOLATED_ANON] = 0
            zone.watermark[WMARK_MIN] = zone.watermark[WMARK_LOW] = 0  # as good as freeing them
        deliver()

    full.deliver = host_runs_kswapd_at_last
    pfn, found = steps(kernel, GFP_KERNEL)
    assert pfn and found.count("retry") > 2 * MAX_RECLAIM_RETRIES and "OOM killer" not in found
    full.deliver = deliver


@pytest.mark.parametrize("mask", [GFP_NOFS, GFP_NOIO])
def test_without_fs_it_tries_again_until_others_free_and_nobody_dies(full, mask):
    """Linux gives such allocations no end: nobody is killed for them, and they do not fail."""
    from numaemu.cpu import _address_of

    zone, low = full.zones()[0], 0

    def reclaim(cpu, what, third):
        CALLS.append(what)
        if len(CALLS) == 20:  # somebody has freed: as good as a lower mark
            zone.watermark[WMARK_MIN] = low
        return 0

    full.machine.on_reclaim = _address_of(reclaim)
    pfn, found = steps(full.kernel, mask)
    assert pfn and len(CALLS) - 1 == found.count("retry") == 19 > MAX_RECLAIM_RETRIES and "OOM killer" not in found
    assert full.vmstat()["oom_kill"] == 0 and not full.actors[0].system.kmsg


def test_nofail_gets_pages_from_the_reserves(full):
    kernel = full.kernel
    assert kernel.alloc_page(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN) is None
    assert kernel.alloc_page(GFP_KERNEL | __GFP_NORETRY | __GFP_NOFAIL)
    assert full.vmstat()["oom_kill"] == 0


def test_nofail_kills(one):
    """Without NORETRY somebody dies for it."""
    big, asks = one.task(name="big"), one.task(name="asks")
    big.mmap("8MiB").touch()
    held = fill(asks.kernel, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)
    assert held and asks.kernel.alloc_page(GFP_KERNEL | __GFP_NOFAIL)
    assert one.vmstat()["oom_kill"] == 1
    with pytest.raises(OutOfMemory):
        big.mmap(4096)


# -- the report of a failure ---------------------------------------------------------------------------------


def log(loop):
    return list(loop.actors[0].system.kmsg)


def test_a_failure_is_reported_with_the_memory(full):
    kernel = full.kernel
    assert kernel.alloc_pages(GFP_KERNEL | __GFP_NORETRY, 2) is None
    lines = log(full)
    assert lines[0] == (
        "asks: page allocation failure: order:2, mode:0x10cc0(GFP_KERNEL|__GFP_NORETRY), nodemask=(null),"
        "cpuset=/,mems_allowed=0"
    )
    assert lines[1].startswith("CPU: 0 UID: 0 PID: ") and lines[2] == "Mem-Info:"
    assert any(line.startswith("Node 0 DMA free:") and "reserved_highatomic:0kB" in line for line in lines)


def test_nowarn_says_nothing_and_reports_are_limited_by_number(full):
    kernel = full.kernel
    kernel.alloc_pages(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)
    kernel.alloc_pages(GFP_NOWAIT)
    assert log(full) == []
    for _ in range(16):
        assert kernel.alloc_pages(GFP_KERNEL | __GFP_NORETRY) is None
    headers = [line for line in log(full) if "page allocation failure" in line]
    assert len(headers) == 11 and "warn_alloc: 5 callbacks suppressed" in log(full)


# -- the trail -----------------------------------------------------------------------------------------------


def test_a_trail_of_the_fast_path(two_nodes):
    kernel = two_nodes.task().kernel
    kernel.alloc_page(GFP_KERNEL)
    pfn, trail = kernel.alloc_pages(GFP_KERNEL, explain=True)
    assert [step.what for step in trail] == ["taken"] and trail[0].value == pfn == trail.pfn
    assert trail.cost_ns == 0 and str(trail).splitlines()[0] == f"alloc_pages order 0, GFP_KERNEL: pfn {pfn}, 0 ns"
    assert two_nodes.cpu().trail == 0


def test_a_trail_of_a_failure_names_marks_and_costs(full):
    kernel, zone = full.kernel, full.zones()[0]
    pfn, trail = kernel.alloc_pages(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, explain=True)
    first = trail[0]
    assert (first.what, first.where, first.mark_name, first.mark) == (
        "watermark failed",
        "node 0 DMA",
        "low",
        zone.watermark[WMARK_LOW],
    )
    assert pfn is None and first.free <= first.mark + first.reserve
    assert not any(step.what == "drain" for step in trail)  # reclaim has brought nothing
    assert trail.cost_ns == sum(step.cost_ns for step in trail) and "failed" in str(trail)
    full.machine.on_reclaim = recorder(1)
    pfn, trail = kernel.alloc_pages(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, explain=True)
    drains = [step for step in trail if step.what == "drain"]
    assert pfn is None and len(drains) == 1 and drains[0].cost_ns == full.machine.message_ns


def test_idle_lists_are_collected_where_reclaim_brings_something(loopback):
    """What lies on other CPUs' lists of other types, where no such allocation finds it, serves it after direct reclaim."""
    loop = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB", reserve={(0, 0): (4000, 3000, 500)})
    zone, kernel = loop.zones()[0], loop.task().kernel
    lists = [pcp_of(loop.machine, number, zone.number).lists[2] for number in range(2)]
    loop.machine.on_reclaim = recorder(0)
    fill(kernel, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)
    assert [pcp.count for pcp in lists] == [250, 250]  # nothing came of reclaim: they stay
    loop.machine.on_reclaim = recorder(1)
    fill(kernel, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)
    assert [pcp.count for pcp in lists] == [0, 0]
    loop.audit()


# -- blocks, addresses, compound pages -----------------------------------------------------------------------


def test_addresses_in_the_direct_map(two_nodes):
    kernel = two_nodes.task().kernel
    address = kernel.get_free_pages(GFP_KERNEL, 2)
    kernel.write(address, b"abc")
    assert kernel.read(address, 3) == b"abc"
    kernel.free_pages(address, 2)
    zeroed = kernel.get_zeroed_page(GFP_KERNEL)
    assert kernel.read(zeroed, 4096) == bytes(4096)
    kernel.free_page(zeroed)
    one = getattr(kernel, "__get_free_page")(GFP_KERNEL)
    getattr(kernel, "__free_pages")(one, 0)
    two_nodes.audit()


def test_compound_pages_are_freed_by_their_head_and_order(two_nodes):
    loop, kernel = two_nodes, two_nodes.task().kernel
    loop.drain()
    before = loop.buddyinfo()
    pfn = kernel.alloc_pages(GFP_KERNEL | __GFP_COMP, 3)
    assert kernel.page(pfn)["compound_order"] == 3
    assert all(kernel.page(pfn + i)["compound_head"] == pfn for i in range(8))
    with pytest.raises(
        KernelBug, match=rf"pfn {pfn} order 2: it is a compound page of another order, allocated with order 3"
    ):
        kernel.free_pages(pfn, 2)
    with pytest.raises(KernelBug, match=rf"pfn {pfn + 1} order 0: it is a tail page"):
        kernel.free_pages(pfn + 1)
    assert any("BUG: Bad page state in process" in line for line in log(loop))
    kernel.free_pages(pfn, 3)
    loop.drain()
    assert loop.buddyinfo() == before
    loop.audit()


@pytest.mark.parametrize("order", [0, 3])
def test_a_double_free_is_caught(two_nodes, order):
    kernel = two_nodes.task().kernel
    pfn = kernel.alloc_pages(GFP_KERNEL, order)
    kernel.free_pages(pfn, order)
    with pytest.raises(KernelBug, match=rf"Bad page state: pfn {pfn} order {order}: .*double free"):
        kernel.free_pages(pfn, order)
    with pytest.raises(KernelBug, match="no memory there"):
        kernel.free_pages(1 << 40, order)
    two_nodes.audit()


@numba.njit(cache=True)
def take_and_free(cpu, mask, held):
    for i in range(held.size):
        held[i] = alloc_page(cpu, mask)
    for i in range(held.size):
        free_page(cpu, held[i])


@numba.njit(cache=True)
def free_twice(cpu, mask):
    pfn = alloc_page(cpu, mask)
    free_page(cpu, pfn)
    free_page(cpu, pfn)


def test_pages_in_a_users_kernel(two_nodes):
    task, held = two_nodes.task(), np.zeros(100, np.int64)
    before = two_nodes.vmstat()
    task.call(take_and_free, GFP_KERNEL, held)
    assert len(set(held.tolist())) == 100 and all(held)
    after = two_nodes.vmstat()
    assert {
        name: after[name] - before[name] for name in ("pgalloc_dma", "pgfree", "numa_hit", "numa_local")
    } == dict.fromkeys(("pgalloc_dma", "pgfree", "numa_hit", "numa_local"), 100)
    with pytest.raises(KernelBug, match="Bad page state"):
        task.call(free_twice, GFP_KERNEL)
    two_nodes.audit()


def test_no_grow_takes_what_the_slabs_have(two_nodes):
    """__GFP_NO_GROW: the objects of the slabs that are there, then none; the cache is as large as before."""
    kernel = two_nodes.task().kernel
    cache = kernel.kmem_cache_create("fixed", 512)
    assert cache.alloc(GFP_KERNEL | __GFP_NO_GROW) is None
    first = cache.alloc(GFP_KERNEL)
    before = two_nodes.vmstat()["nr_slab_unreclaimable"]
    taken = list(iter(lambda: cache.alloc(GFP_KERNEL | __GFP_NO_GROW), None))
    assert len(taken) == 15 and first not in taken  # 16 to a slab
    assert cache.alloc(GFP_KERNEL | __GFP_NO_GROW, 1) is None
    assert two_nodes.vmstat()["nr_slab_unreclaimable"] == before
    assert cache.alloc(GFP_KERNEL)


def test_more_than_was_allocated_cannot_be_freed(two_nodes):
    kernel = two_nodes.task().kernel
    pfns = [kernel.alloc_pages(GFP_KERNEL, 1) for _ in range(2)]
    low = min(pfns)
    if low & 3 == 0 and max(pfns) == low + 2:
        with pytest.raises(KernelBug, match="nonzero _refcount"):
            kernel.free_pages(low, 2)
