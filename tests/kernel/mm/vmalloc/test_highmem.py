"""Machines with the zones of a 32-bit kernel: DMA, Normal up to 896 MiB, HighMem above."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import SMALL_TLB, Loopback

from numaemu import (
    __GFP_DMA,
    __GFP_HIGHMEM,
    __GFP_NORETRY,
    __GFP_NOWARN,
    GFP_ATOMIC,
    GFP_DMA32,
    GFP_HIGHUSER,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    ConfigError,
    KernelBug,
    SegmentationFault,
)
from numaemu.compiler.build import JIT
from numaemu.kernel.arch.init_mm import KM_MAX_IDX, LAST_PKMAP
from numaemu.kernel.include.mmzone import WMARK_MIN, ZONE_DMA, ZONE_HIGHMEM, ZONE_MOVABLE, ZONE_NORMAL, zone_of
from numaemu.kernel.mm.vmalloc.highmem import pkmap_t
from numaemu.spec.topology import load_topology

pytestmark = pytest.mark.interpreted
SIZES = {ZONE_DMA: 4096 - 1, ZONE_NORMAL: (896 - 16) * 256, ZONE_HIGHMEM: (2048 - 896) * 256}  # pages


@pytest.fixture
def pc(loopback):
    return loopback("x86-32")


def test_zones_and_reserves(pc):
    zones = {zone.type: zone for zone in pc.zones()}
    assert {kind: zone.present_pages for kind, zone in zones.items()} == SIZES
    dma, normal, high = (zones[kind] for kind in (ZONE_DMA, ZONE_NORMAL, ZONE_HIGHMEM))
    assert dma.lowmem_reserve[ZONE_NORMAL] == normal.managed_pages // 256
    assert dma.lowmem_reserve[ZONE_HIGHMEM] == (normal.managed_pages + high.managed_pages) // 256
    assert normal.lowmem_reserve[ZONE_HIGHMEM] == high.managed_pages // 32
    assert high.watermark[WMARK_MIN] == 128  # Linux: 1024th of the zone, 32 to 128 pages
    text = pc.actors[0].rpc_read("/proc/zoneinfo")
    assert re.findall(r"zone +(\w+)", text) == ["DMA", "Normal", "HighMem", "Movable"]


def test_who_gets_high_memory(pc):
    kernel = pc.task().kernel

    def zone(mask):
        return kernel.page(kernel.alloc_page(mask))["zone"]

    assert zone(GFP_HIGHUSER) == zone(GFP_HIGHUSER_MOVABLE) == zone(GFP_KERNEL | __GFP_HIGHMEM) == ZONE_HIGHMEM
    assert zone(GFP_KERNEL) == zone(GFP_ATOMIC) == zone(GFP_KERNEL | GFP_DMA32) == ZONE_NORMAL
    assert zone(GFP_KERNEL | __GFP_DMA) == ZONE_DMA


def test_high_pages_have_no_address(pc):
    kernel = pc.task().kernel
    assert kernel.page_address(kernel.alloc_page(GFP_HIGHUSER)) is None
    low = kernel.alloc_page(GFP_KERNEL)
    assert kernel.page_address(low) == 0xC000_0000 + (low << 12)
    address = kernel.get_free_page(GFP_HIGHUSER)
    assert kernel.page(kernel._pfn(address))["zone"] == ZONE_NORMAL


def test_user_pages_fall_downward_and_leave_the_reserve(loopback):
    pc = loopback("x86-32", memory_per_node="1GiB")  # 128 MiB of it are high
    kernel = pc.task().kernel
    seen = []
    while (pfn := kernel.alloc_pages(GFP_HIGHUSER | __GFP_NORETRY | __GFP_NOWARN, 10)) is not None:
        zone = kernel.page(pfn)["zone"]
        if zone not in seen:
            seen.append(zone)
    assert seen == [ZONE_HIGHMEM, ZONE_NORMAL, ZONE_DMA]
    normal = zone_of(pc.machine, ZONE_NORMAL)
    assert normal.free_pages >= normal.lowmem_reserve[ZONE_HIGHMEM]
    assert kernel.page(kernel.alloc_pages(GFP_KERNEL, 10))["zone"] == ZONE_NORMAL
    pc.audit()


def test_tasks_run_in_high_memory(pc):
    task = pc.task()
    memory = task.mmap("64KiB").touch()
    assert memory.array()[:].sum() == 0 and zone_of(pc.machine, ZONE_MOVABLE).managed_pages == 0
    pc.audit()


def test_what_is_not_there_is_said():
    with pytest.raises(ConfigError, match="zone_layout is 'arm', must be 'x86-64' or 'x86-32'"):
        load_topology("x86-32", zone_layout="arm")
    with pytest.raises(ConfigError, match="128GiB of memory, must be at most 3GiB with zone_layout 'x86-32'"):
        load_topology("x86-32", memory_per_node="128GiB")
    with pytest.raises(ConfigError, match="page_group_by_mobility is 1, must be true or false"):
        load_topology("x86-32", kernel={"page_group_by_mobility": 1})
    again = load_topology(load_topology("x86-32", kernel={"page_group_by_mobility": False}))
    kernel = {
        "page_group_by_mobility": False,
        "slab_debug": "",
        "random_seed": 0,
        "thread_size": "",
        "transparent_hugepage": "never",
        "hugepages": "",
        "tiering": "linux",
    }
    assert (again.zone_layout, again.kernel) == ("x86-32", kernel)
    with pytest.raises(ConfigError, match="transparent_hugepage is 'often', must be 'always' or 'madvise' or 'never'"):
        load_topology("x86-32", kernel={"transparent_hugepage": "often"})


# -- kmap: the window of all CPUs, and the slots of each --------------------------------------------------------

PKMAP_BASE, FIXADDR_TOP = 0xFF80_0000, 0xFFFF_F000


def high_pages(kernel, count):
    return [kernel.alloc_page(GFP_HIGHUSER) for _ in range(count)]


def test_kmap_gives_high_memory_an_address(pc):
    """Everybody sees the page there, and only kernel mode; a second kmap gives the same address."""
    one, other = pc.task(0), pc.task(1)
    page, another = high_pages(one.kernel, 2)
    address = one.kernel.kmap(page)
    assert address == PKMAP_BASE + 4096 == one.kernel.page_address(page) == other.kernel.kmap(page)
    one.kernel.write(address, b"high")
    assert other.kernel.read(address, 4) == b"high" and one.kernel.kmap(another) == address + 4096
    with pytest.raises(SegmentationFault, match="a kernel address"):
        one.read(address, 1)
    one.kernel.kunmap(page)
    assert other.kernel.read(address, 4) == b"high"
    other.kernel.kunmap(page)
    with pytest.raises(KernelBug, match=f"pfn {page} is not mapped"):
        other.kernel.kunmap(page)
    low = one.kernel.alloc_page(GFP_KERNEL)
    assert one.kernel.kmap(low) == one.kernel.page_address(low) == 0xC000_0000 + (low << 12)
    one.kernel.kunmap(low)


def test_what_is_unused_is_flushed_at_once(pc):
    """An address is not used again before every CPU has forgotten it; that happens once a round."""
    one, other = pc.task(0), pc.task(1)
    pages = high_pages(one.kernel, 2)
    address = one.kernel.kmap(pages[0])
    one.kernel.write(address, b"old")
    assert other.kernel.read(address, 3) == b"old"
    one.kernel.kunmap(pages[0])
    pkmap = pkmap_t.at(pc.machine.pkmap)
    pkmap.last_nr = LAST_PKMAP - 2  # as if as many pages had come and gone
    assert one.kernel.kmap(pages[1]) == PKMAP_BASE + 4096 * (LAST_PKMAP - 1)
    one.kernel.kunmap(pages[1])
    assert one.kernel.page_address(pages[0]) == address and pkmap.flushes == 0
    third = high_pages(one.kernel, 1)[0]
    one.kernel.kmap(third)  # comes around
    assert pkmap.flushes == 1 and one.kernel.page_address(pages[0]) is None
    fourth = high_pages(one.kernel, 1)[0]
    assert one.kernel.kmap(fourth) == address
    one.kernel.write(address, b"new")
    assert other.kernel.read(address, 3) == b"new"
    pc.audit()


@settings(max_examples=20 if JIT else 3, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("mu"), st.integers(0, 11), st.integers(0, 1)), max_size=60))
def test_kmap_against_a_dictionary(steps):
    """A window of a few addresses; contents stay with their pages."""
    with Loopback("x86-32", **SMALL_TLB) as machine:
        pkmap = pkmap_t.at(machine.machine.pkmap)
        for nr in range(8, LAST_PKMAP):
            pkmap.count[nr] = 2  # somebody's, for ever
        tasks = [machine.task(0), machine.task(1)]
        pages, users = high_pages(tasks[0].kernel, 12), {}
        for what, which, cpu in steps:
            kernel, page = tasks[cpu].kernel, pages[which]
            if what == "u" and users.get(page):
                users[page] -= 1
                kernel.kunmap(page)
            elif what == "m":
                address = kernel._task._op("kmap", page)
                full = sum(count > 0 for count in users.values()) == 8
                assert (address is None) == (full and not users.get(page))
                if address is None:
                    continue
                if page in users:
                    assert int.from_bytes(kernel.read(address, 8), "little") == page
                kernel.write(address, page.to_bytes(8, "little"))
                users[page] = users.get(page, 0) + 1
        seen = [machine.cpus[0].operations.page_address(0, page) for page, count in users.items() if count]
        assert len(set(seen)) == len(seen)


def test_who_finds_the_window_full_waits_for_kunmap():
    from numaemu.machine import Machine

    with Machine("x86-32") as machine:
        task = machine.task(cpu=0)
        pages = task.kernel.alloc_pages(GFP_HIGHUSER, 10), task.kernel.alloc_page(GFP_HIGHUSER)
        for page in range(pages[0], pages[0] + LAST_PKMAP):
            task.kernel.kmap(page)
        waiter = machine.spawn(map_and_write, pages[1], cpu=0)
        assert task.kernel.page_address(pages[1]) is None and not waiter.done()
        task.kernel.kunmap(pages[0] + 5)
        assert waiter.result(timeout=120) == PKMAP_BASE + 6 * 4096
        task.kernel.kunmap(pages[1])
        machine.check()


def map_and_write(task, page):
    address = task.kernel.kmap(page)
    task.kernel.write(address, b"at last")
    return address


def test_kmap_atomic_has_slots_of_its_cpu(pc):
    one, other = pc.task(0), pc.task(1)
    pages = high_pages(one.kernel, KM_MAX_IDX + 1)
    mine, others = [one.kernel.kmap_atomic(page) for page in pages[:2]], other.kernel.kmap_atomic(pages[0])
    assert mine == [FIXADDR_TOP - 4096, FIXADDR_TOP - 8192] and others == FIXADDR_TOP - 4096 * (KM_MAX_IDX + 1)
    one.kernel.write(mine[0], b"quickly")
    assert other.kernel.read(others, 7) == b"quickly"
    with pytest.raises(KernelBug, match="not what was mapped last"):
        one.kernel.kunmap_atomic(mine[0])
    with pytest.raises(KernelBug, match="sleeping function called from invalid context: kmap on cpu 0"):
        one.kernel.kmap(pages[2])
    with pytest.raises(KernelBug, match="sleeping function called from invalid context: vmalloc"):
        one.kernel.vmalloc(4096)
    for call in (one.kernel.alloc_page, lambda gfp: one.kernel.kmalloc(64, gfp)):
        assert call(GFP_ATOMIC)
        with pytest.raises(KernelBug, match="sleeping function called from invalid context: (alloc_pages|kmalloc)"):
            call(GFP_KERNEL)
    with pytest.raises(KernelBug, match="scheduling while atomic"):
        one.sched_setaffinity({1})
    for address in mine[::-1]:
        one.kernel.kunmap_atomic(address)
    with pytest.raises(KernelBug, match="nothing is mapped there"):
        one.kernel.read(mine[0], 1)  # this CPU has forgotten it
    again = one.kernel.kmap_atomic(pages[5])
    assert again == mine[0] and one.kernel.read(again, 7) == bytes(7)
    one.kernel.kunmap_atomic(again)
    other.kernel.kunmap_atomic(others)
    one.kernel.kmap(pages[2])


def test_the_slots_are_few_and_free_again_when_their_task_ends(pc):
    task = pc.task(0)
    pages = high_pages(task.kernel, KM_MAX_IDX)
    for page in pages:
        task.kernel.kmap_atomic(page)
    with pytest.raises(KernelBug, match=f"all {KM_MAX_IDX} slots of cpu 0"):
        task.kernel.kmap_atomic(pages[0])
    task.exit()
    fresh = pc.task(0)
    page = high_pages(fresh.kernel, 1)[0]
    assert fresh.kernel.kmap_atomic(page) == FIXADDR_TOP - 4096
    fresh.kernel.kunmap_atomic(FIXADDR_TOP - 4096)


def test_on_64_bits_kmap_is_page_address(two_nodes):
    kernel = two_nodes.task().kernel
    page = kernel.alloc_page(GFP_HIGHUSER)
    assert kernel.kmap(page) == kernel.page_address(page) == kernel.kmap_atomic(page)
    kernel.kunmap_atomic(kernel.page_address(page))
    kernel.kunmap(page)


def test_high_memory_needs_addresses_for_it(loopback):
    kernel = loopback("x86-32", paging="x86-64-4level").task().kernel
    with pytest.raises(KernelBug, match="paging x86-64-4level has no addresses for high memory"):
        kernel.kmap(kernel.alloc_page(GFP_HIGHUSER))


def test_meminfo_tells_high_from_low(pc):
    text = pc.actors[0].rpc_read("/proc/meminfo")
    assert re.search(rf"HighTotal: +{SIZES[ZONE_HIGHMEM] * 4} kB\nHighFree: +\d+ kB\nLowTotal: +\d+ kB\nLowFree:", text)
    assert re.search(r"DirectMap4k: +0 kB\nDirectMap4M: +917504 kB\n", text) and "DirectMap2M" not in text
