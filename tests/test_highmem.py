"""Machines with the zones of a 32-bit kernel: DMA, Normal up to 896 MiB, HighMem above."""
import re

import pytest

from numaemu import (GFP_ATOMIC, GFP_DMA32, GFP_HIGHUSER, GFP_HIGHUSER_MOVABLE, GFP_KERNEL, __GFP_DMA, __GFP_HIGHMEM,
                     __GFP_NORETRY, __GFP_NOWARN, ConfigError)
from numaemu.kernel.mmzone import (WMARK_MIN, ZONE_DMA, ZONE_HIGHMEM, ZONE_MOVABLE, ZONE_NORMAL, zone_of)
from numaemu.topology import load_topology

pytestmark = pytest.mark.interpreted
SIZES = {ZONE_DMA: 4096 - 1, ZONE_NORMAL: (896 - 16) * 256, ZONE_HIGHMEM: (2048 - 896) * 256}      # pages


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
    assert high.watermark[WMARK_MIN] == 128          # Linux: 1024th of the zone, 32 to 128 pages
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
    assert kernel.page_address(low) == 0xFFFF_8880_0000_0000 + (low << 12)
    address = kernel.get_free_page(GFP_HIGHUSER)
    assert kernel.page(kernel._pfn(address))["zone"] == ZONE_NORMAL


def test_user_pages_fall_downward_and_leave_the_reserve(pc):
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
    kernel = {"page_group_by_mobility": False, "slab_debug": "", "transparent_hugepage": "never"}
    assert (again.zone_layout, again.kernel) == ("x86-32", kernel)
    with pytest.raises(ConfigError, match="transparent_hugepage is 'often', must be one of always, madvise, never"):
        load_topology("x86-32", kernel={"transparent_hugepage": "often"})
