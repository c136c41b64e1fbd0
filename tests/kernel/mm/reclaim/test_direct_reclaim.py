"""Direct reclaim waits for kswapd while a node is almost empty, and kswapd works beside the tasks that wait for it."""

import numpy as np
import pytest

from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, Machine
from numaemu.compiler.build import JIT
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.include.gfp import __GFP_DMA, GFP_HIGHUSER_MOVABLE, GFP_KERNEL
from numaemu.kernel.include.internal import ALLOC_WMARK_MIN, MAX_RECLAIM_RETRIES
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    MIGRATE_MOVABLE,
    WMARK_MIN,
    ZONE_DMA,
    ZONE_DMA32,
    node_of,
    page_zone,
    pcp_of,
    zone_of,
)
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages, put_page
from numaemu.kernel.mm.page_alloc.pcplist import drain_local_pages
from numaemu.kernel.mm.page_alloc.slowpath import would_fit, zone_reclaimable_pages
from numaemu.kernel.mm.reclaim.direct_reclaim import allow_direct_reclaim, throttle_direct_reclaim
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.reclaim.vmscan import init_scan_control, trim_reclaimed
from numaemu.kernel.mm.swap import swapon

WAITS = 40


class Short:
    """One node whose min watermark is far above what is free, until somebody has waited `WAITS` times."""

    def __init__(self, loopback):
        self.loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
        swapon.swapon(self.loop.machine, "area", 16 << 20)
        self.machine, self.waits = self.loop.machine, 0
        self.loop.task().mmap("1MiB").touch()
        self.loop.system("drop_caches", 1)  # pages leave the CPU's batches
        self.zones = [zone_of(self.machine, kind) for kind in range(MAX_NR_ZONES)]
        self.marks = [int(zone.watermark[WMARK_MIN]) for zone in self.zones]
        self.machine.on_wait = self.loop._callback(self.wait)
        self.set_marks(1 << 20)

    def set_marks(self, pages):
        for zone in self.zones:
            zone.watermark[WMARK_MIN] = pages

    def wait(self, *_):
        self.waits += 1
        if self.waits == WAITS:
            for zone, mark in zip(self.zones, self.marks):
                zone.watermark[WMARK_MIN] = mark

    def throttle(self, context):
        cpu = cpu_t.array(self.machine.cpus)[context]
        sc = scan_control_of(cpu)
        init_scan_control(self.machine, sc, 0, 0, self.machine.node_mask)
        throttle_direct_reclaim(cpu, sc, 0)
        return self.waits


def test_a_reclaimer_waits_until_kswapd_has_freed_enough(loopback):
    short = Short(loopback)
    assert not allow_direct_reclaim(short.machine, 0)
    assert short.throttle(0) == WAITS and allow_direct_reclaim(short.machine, 0)
    assert short.loop.vmstat()["pgscan_direct_throttle"] == 1


def test_kernel_threads_do_not_wait_for_kswapd(loopback):
    short = Short(loopback)
    assert short.throttle(short.machine.nr_cpus) == 0
    assert short.loop.vmstat()["pgscan_direct_throttle"] == 0


def test_nobody_waits_for_a_kswapd_that_has_given_up(loopback):
    short = Short(loopback)
    node_of(short.machine, 0).kswapd_failures = MAX_RECLAIM_RETRIES
    assert short.throttle(0) == 0


def test_only_zones_with_something_to_reclaim_count(loopback):
    """ZONE_DMA has no page on a list: that much of it is free lets nobody go on."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="24MiB")
    swapon.swapon(loop.machine, "area", 16 << 20)
    loop.task().mmap("1MiB").touch()
    loop.system("drop_caches", 1)
    dma, largest = (zone_of(loop.machine, kind) for kind in (ZONE_DMA, ZONE_DMA32))
    assert dma.free_pages > 2000 and allow_direct_reclaim(loop.machine, 0)
    largest.watermark[WMARK_MIN] = 2 * largest.free_pages + 2
    assert not allow_direct_reclaim(loop.machine, 0)


@pytest.mark.skipif(not JIT, reason="a machine of processes takes long without the JIT")
def test_kswapd_frees_page_by_page_while_a_task_goes_on():
    """In lockstep: what a run of kswapd frees is there when its clock has come so far, not all at once when it is woken."""
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="64MiB", lockstep=True) as machine:
        machine.swapon("32MiB")
        task = machine.task()
        pages = task.mmap("80MiB", flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE).pages()
        at = machine.stats()["nodes"][0]["meminfo"]["MemFree"] // 4 - 400
        task.store(pages[:at], np.uint64(1))
        freed = [machine.stats()["vmstat"]["pgsteal_kswapd"]]
        while freed[-1] < freed[0] + 1000:
            task.store(pages[at : at + 1], np.uint64(1))
            task.sleep(0.05)
            at += 1
            freed.append(machine.stats()["vmstat"]["pgsteal_kswapd"])
        assert max(np.diff(freed)) < 250, max(np.diff(freed))


def test_kswapd_keeps_four_batches_of_what_it_frees(loopback):
    """As nr_pcp_high says of a zone that is being reclaimed: the rest is free for everybody."""
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB").machine
    kthreads = cpu_t.array(machine.cpus)[machine.nr_cpus]
    pages = [alloc_pages(kthreads, GFP_HIGHUSER_MOVABLE, 0, 0, machine.node_mask) for _ in range(300)]
    drain_local_pages(kthreads)
    for pfn in pages:
        put_page(kthreads, pfn)
    zone = zone_of(machine, page_zone(machine, pages[0]))
    lists, free = pcp_of(machine, kthreads.id, zone.number).lists, zone.free_pages
    assert lists[MIGRATE_MOVABLE].count > zone.pcp_batch << 2
    given = lists[MIGRATE_MOVABLE].count - (zone.pcp_batch << 2)
    trim_reclaimed(kthreads, 0)
    assert lists[MIGRATE_MOVABLE].count == zone.pcp_batch << 2 and zone.free_pages == free + given


@pytest.mark.interpreted
def test_what_could_be_reclaimed_is_counted_in_the_zones_that_would_serve(loopback):
    """should_reclaim_retry: the node has a full cache in zone DMA32, which gives an allocation from zone DMA no hope."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="64MiB")
    loop.create_file("/f", 8 << 20)
    loop.task().open("/f").read(8 << 20)
    loop.drain()
    dma = zone_of(loop.machine, ZONE_DMA)
    assert loop.vmstat()["nr_inactive_file"] >= 2048 and zone_reclaimable_pages(loop.machine, dma) == 0
    free, dma.free_pages = dma.free_pages, 0
    cpu, one = loop.cpu(), np.uint64(1)
    assert not would_fit(cpu, GFP_KERNEL | __GFP_DMA, 0, one, ALLOC_WMARK_MIN, False)
    assert would_fit(cpu, GFP_KERNEL, 0, one, ALLOC_WMARK_MIN, False)
    dma.free_pages = free
