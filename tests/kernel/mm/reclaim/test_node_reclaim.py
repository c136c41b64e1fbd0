"""vm.zone_reclaim_mode: what node_reclaim takes from a node before an allocation goes to the next one."""

import numpy as np
import pytest

from numaemu import MAP_SHARED, O_CREAT, O_RDWR, PROT_READ
from numaemu.kernel.include.mmzone import node_of
from numaemu.kernel.include.vmstat import NR_FILE_DIRTY, NR_FILE_PAGES, node_page_state

RECLAIM_ZONE, RECLAIM_WRITE, RECLAIM_UNMAP = 1, 2, 4


def boot(loopback, mode, distance=20, cached=400, **sysctl):
    """Node 0 with 4 MiB, of which the cache has some; the task on it has asked for more than the rest then."""
    loop = loopback(
        nodes=2,
        cpus_per_node=1,
        memory_per_node="4MiB",
        distance=[[10, distance], [distance, 10]],
        sysctl={"vm.zone_reclaim_mode": mode, **{f"vm.{name}": value for name, value in sysctl.items()}},
    )
    loop.create_file("/mnt/f", bytes(cached << 12))
    task = loop.task(cpu=0)
    file = task.open("/mnt/f", O_RDWR)
    file.read(cached << 12)
    return loop, task, file


def touch(loop, task, pages=600):
    """The nodes of so many new pages, and what vmstat says of zone reclaim."""
    nodes = np.bincount(task.mmap(pages << 12).touch().nodes(), minlength=2).tolist()
    stat = dict(line.split() for line in loop.read("/proc/vmstat").splitlines())
    loop.audit()
    return nodes, int(stat["zone_reclaim_success"]), int(stat["zone_reclaim_failed"])


def cached(loop, node=0):
    return node_page_state(loop.machine, node, NR_FILE_PAGES)


@pytest.mark.parametrize("mode", [0, 8, RECLAIM_ZONE])
def test_the_cache_goes_before_another_node_is_used(loopback, mode):
    """Clean, unmapped pages of files. Other bits than Linux's three switch nothing on."""
    loop, task, _ = boot(loopback, mode)
    before = cached(loop)
    nodes, success, failed = touch(loop, task)
    if mode == RECLAIM_ZONE:
        assert nodes == [600, 0] and success > 0 and cached(loop) < before - 20
    else:
        assert nodes[1] > 20 and (success, failed) == (0, 0) and cached(loop) == before


def test_a_node_that_is_too_far_is_gone_to_at_once(loopback):
    """zone_allows_reclaim asks for the distance of a zone from the preferred one: memory of node 1, far away, is not
    reclaimed for node 0; the preferred node is 10 from itself, always near.
    """
    loop, task, _ = boot(loopback, RECLAIM_ZONE, distance=31)
    assert touch(loop, task)[0] == [600, 0]
    loop.machine.node_reclaim_mode = 0
    other = loop.task(cpu=1)
    other.mmap(900 << 12).touch()
    loop.machine.node_reclaim_mode = RECLAIM_ZONE
    events = loop.vmstat()["zone_reclaim_success"] + loop.vmstat()["zone_reclaim_failed"]
    assert events > 0


def test_only_a_node_s_own_cpus_reclaim_from_it(loopback):
    """Node 1 has a CPU, so one of node 0 that has come there goes on: NODE_RECLAIM_NOSCAN."""
    loop, task, _ = boot(loopback, 0)
    other = loop.task(cpu=1)
    loop.create_file("/mnt/g", bytes(400 << 12))
    other.open("/mnt/g").read(400 << 12)
    loop.write("/proc/sys/vm/zone_reclaim_mode", "1")
    before = cached(loop, 1)
    task.set_mempolicy(2, [1])  # MPOL_BIND
    assert touch(loop, task, 550)[1:] == (0, 0)
    assert cached(loop, 1) < before  # kswapd and direct reclaim have done it


@pytest.mark.parametrize("mode, gone", [(RECLAIM_ZONE, False), (RECLAIM_ZONE | RECLAIM_UNMAP, True)])
def test_mapped_pages_go_with_reclaim_unmap_only(loopback, mode, gone):
    loop, task, file = boot(loopback, mode)
    area = task.mmap(400 << 12, PROT_READ, MAP_SHARED, file)
    task.load(area.pages())
    loop.write(f"/proc/{task.pid}/clear_refs", "1")  # else it finds them all in use
    before = cached(loop)
    nodes, success, _ = touch(loop, task, 550)
    assert (success > 0) == gone and (cached(loop) < before) == gone and (nodes[1] == 0) == gone


@pytest.mark.parametrize("mode", [RECLAIM_ZONE, RECLAIM_ZONE | RECLAIM_WRITE])
def test_dirty_pages_do_not_count_without_reclaim_write(loopback, mode):
    """They make the node not worth a look; with RECLAIM_WRITE it is looked at, and the flusher is asked."""
    loop, task, _ = boot(loopback, 0, cached=4, dirty_ratio=100, dirty_background_ratio=99)
    file = task.open("/mnt/new", O_RDWR | O_CREAT)
    file.write(bytes(400 << 12))
    assert node_page_state(loop.machine, 0, NR_FILE_DIRTY) > 300
    loop.write("/proc/sys/vm/zone_reclaim_mode", str(mode))
    _, success, failed = touch(loop, task, 550)
    assert (success + failed > 0) == (mode & RECLAIM_WRITE != 0)


def test_what_the_ratios_leave_alone(loopback):
    loop, task, _ = boot(loopback, RECLAIM_ZONE, min_unmapped_ratio=90, min_slab_ratio=100)
    assert node_of(loop.machine, 0).min_unmapped_pages == loop.zones()[0].managed_pages * 90 // 100
    before = cached(loop)
    nodes, success, failed = touch(loop, task, 550)
    assert nodes[1] > 0 and (success, failed) == (0, 0) and cached(loop) == before
    loop.write("/proc/sys/vm/min_unmapped_ratio", "1")
    nodes, success, _ = touch(loop, task, 60)
    assert nodes[1] == 0 and success > 0


def test_one_cpu_at_a_time(loopback):
    """PGDAT_RECLAIM_LOCKED: who finds another at it goes on."""
    loop, task, _ = boot(loopback, RECLAIM_ZONE)
    node_of(loop.machine, 0).reclaim_locked = 1
    nodes, success, failed = touch(loop, task)
    assert nodes[1] > 0 and (success, failed) == (0, 0)
    node_of(loop.machine, 0).reclaim_locked = 0
    assert touch(loop, task, 100)[1] > 0
