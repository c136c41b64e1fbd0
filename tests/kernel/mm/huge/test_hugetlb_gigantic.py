"""Gigantic pages: how they are found, mapped, copied and given back, and what is said of them."""

import errno
import re

import numpy as np
import pytest
from loopback import Loopback

from numaemu.errors import BusError, ConfigError
from numaemu.kernel.fs.proc.tree import open_file, read
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.kernel.include.mm_types import PG_lru, page_t
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, zone_of
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at
from numaemu.spec.cmdline import parse_hugepages
from numaemu.spec.topology import load_topology
from numaemu.uapi import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGE_1GB,
    MAP_HUGETLB,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_MF_MOVE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)

PAGE, HUGE, GIGANTIC = 4096, 2 << 20, 1 << 30
RW = PROT_READ | PROT_WRITE
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_1GB
SHARED = MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_1GB
POOL = "/sys/kernel/mm/hugepages/hugepages-1048576kB"
NODE_POOL = "/sys/devices/system/node/node{}/hugepages/hugepages-1048576kB"


@pytest.fixture
def machine():
    """Two nodes of 2 GiB: of the first one GiB begins and ends at whole ones, of the second both."""
    with Loopback(None, nodes=2, cpus_per_node=1, memory_per_node="2GiB") as booted:
        yield booted


def state(machine):
    """(pages, free, reserved, surplus)"""
    h = hstate_at(machine.machine, 1)
    return h.nr_huge_pages, h.free_huge_pages, h.resv_huge_pages, h.surplus_huge_pages


def by_node(machine):
    h = hstate_at(machine.machine, 1)
    return [h.nr_node[n] for n in range(2)]


def text(machine, path):
    return read(System(machine.machine, machine.topology), path)


def refused(error, call, *args):
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == error


def whole_ranges(machine, node):
    """A slow twin of the search: aligned GiB of a node's zones."""
    found = []
    for kind in range(MAX_NR_ZONES):
        zone = zone_of(machine.machine, node * MAX_NR_ZONES + kind)
        for gib in range(16):
            if (
                zone.present_pages
                and zone.start_pfn <= gib << 18
                and gib + 1 << 18 <= zone.start_pfn + zone.spanned_pages
            ):
                found.append(gib)
    return found


def test_a_pool_takes_whole_ranges_and_gives_them_back(machine):
    free = [zone.free_pages for zone in machine.zones()]
    machine.write(f"{POOL}/nr_hugepages", "100")
    assert by_node(machine) == [len(whole_ranges(machine, 0)), len(whole_ranges(machine, 1))] == [1, 2]
    assert text(machine, f"{NODE_POOL.format(1)}/free_hugepages") == "2\n"
    assert machine.vmstat()["htlb_buddy_alloc_fail"] == 0
    machine.audit()
    machine.write(f"{NODE_POOL.format(1)}/nr_hugepages", "1")
    assert by_node(machine) == [1, 1]
    machine.audit()
    machine.write(f"{POOL}/nr_hugepages", "0")
    machine.drain()
    assert [zone.free_pages for zone in machine.zones()] == free
    machine.audit()


def movable_ranges(machine, node):
    """A slow twin of has_unmovable_pages: the whole ranges in which every page in use is on an LRU list."""
    found = []
    for gib in whole_ranges(machine, node):
        pages = page_t.array(machine.machine.mem_map).as_numpy(gib + 1 << 18)[gib << 18 :]
        if not ((pages["refcount"] > 0) & (pages["flags"] & np.uint64(PG_lru) == 0)).any():
            found.append(gib)
    return found


@pytest.mark.parametrize("thp", ["never", "always"])
def test_what_is_in_the_way_moves_or_forbids(machine, thp):
    machine.write("/sys/kernel/mm/transparent_hugepage/enabled", thp)
    task = machine.task(cpu=1)
    area = task.mmap(64 << 20)
    task.store(area.pages(), np.arange(area.nbytes // PAGE, dtype=np.uint64))
    task.mlock(area.addr, 1 << 20)
    node = int(area.nodes()[0])
    machine.audit()
    allowed = movable_ranges(machine, node)
    frames = {int(machine.pfn(task, int(at))) >> 18 for at in area.pages()[::64]} if thp == "never" else set()
    machine.write(f"{NODE_POOL.format(node)}/nr_hugepages", "100")
    assert by_node(machine)[node] == len(allowed) > 0
    assert machine.vmstat()["pgmigrate_success"] > 0 or not frames & set(allowed)
    assert (task.load(area.pages()) == np.arange(area.nbytes // PAGE)).all()
    machine.audit()
    task.exit()
    machine.write(f"{POOL}/nr_hugepages", "0")
    machine.audit()


@pytest.mark.parametrize("paging", ["x86-64-4level", "x86-64-5level", "arm64-39", "arm64-48"])
def test_one_entry_maps_it(paging):
    with Loopback(None, nodes=1, cpus_per_node=1, memory_per_node="2GiB", paging=paging) as machine:
        machine.write(f"{POOL}/nr_hugepages", "1")
        task = machine.task()
        area = task.mmap(GIGANTIC, RW, PRIVATE)
        assert area.addr % GIGANTIC == 0 and state(machine) == (1, 1, 1, 0)
        places = area.addr + np.uint64([0, 5 * PAGE, 700 * HUGE // 2 + 8, GIGANTIC - 8])
        before = task.counters()
        task.store(places, np.uint64([1, 2, 3, 4]))
        assert task.counters()["task_minor_faults"] - before["task_minor_faults"] == 1
        start = task.counters()
        assert task.load(places).tolist() == [1, 2, 3, 4] and task.load(places[:3] + np.uint64(16)).sum() == 0
        assert task.counters()["page_walks"] == start["page_walks"]  # one translation for all
        assert machine.mm(task).hugetlb_usage == 1 << 18 and state(machine) == (1, 0, 0, 0)
        machine.audit()
        area.munmap()
        assert state(machine) == (1, 1, 0, 0) and machine.mm(task).hugetlb_usage == 0
        machine.audit()
        again = task.mmap(GIGANTIC, RW, PRIVATE)
        assert task.load(again.addr + places - np.uint64(area.addr)).tolist() == [0, 0, 0, 0]  # cleared
        machine.audit()


def test_no_gigantic_pages_on_32_bits():
    with Loopback(None, nodes=1, cpus_per_node=1, memory_per_node="64MiB", paging="x86-32") as machine:
        refused(errno.EINVAL, machine.task().mmap, HUGE, RW, PRIVATE)
        assert machine.machine.nr_hstates == 1


def test_reservations_and_a_bus_error(machine):
    machine.write(f"{NODE_POOL.format(1)}/nr_hugepages", "1")
    task, other = machine.task(), machine.task()
    area = task.mmap(PAGE, RW, PRIVATE)  # one whole page
    refused(errno.ENOMEM, other.mmap, GIGANTIC, RW, PRIVATE)
    loose = other.mmap(GIGANTIC, RW, PRIVATE | MAP_NORESERVE)
    with pytest.raises(BusError, match="no huge page of the pool is free"):
        other.store([loose.addr], np.uint8(1))
    task.store([area.addr + HUGE], np.uint8(1))
    assert task.move_pages(np.uint64([area.addr])).tolist() == [1]
    assert (
        task.migrate_pages(1, 0) == 1 and machine.vmstat()["pgmigrate_fail"] == 1 << 18
    )  # no page there, none is made
    refused(errno.EINVAL, task.munmap, area.addr, HUGE)
    refused(errno.EINVAL, task.mprotect, area.addr, HUGE, PROT_READ)
    refused(errno.EINVAL, task.madvise, area.addr + HUGE, GIGANTIC, MADV_DONTNEED)
    refused(errno.EINVAL, lambda: task.mmap(GIGANTIC, RW, PRIVATE | MAP_FIXED, addr=area.addr + HUGE))
    refused(errno.EINVAL, task.mremap, area.addr, GIGANTIC, 2 * GIGANTIC, MREMAP_MAYMOVE)
    task.mprotect(area.addr, GIGANTIC, PROT_READ)
    assert task.load([area.addr + HUGE], np.uint8)[0] == 1
    task.madvise(area.addr, GIGANTIC, MADV_DONTNEED)
    assert state(machine) == (1, 1, 1, 0)
    machine.audit()


def test_shared_by_fork_moved_and_freed(machine):
    machine.write(f"{POOL}/nr_hugepages", "3")
    task = machine.task()
    area = task.mmap(GIGANTIC, RW, SHARED)
    child = task.fork(cpu=1)
    child.store([area.addr + 7], np.uint8(5))
    assert task.load([area.addr + 7], np.uint8)[0] == 5 and state(machine) == (3, 2, 0, 0)
    machine.audit()
    target = area.addr - 8 * GIGANTIC
    moved = task.mremap(area.addr, GIGANTIC, GIGANTIC, MREMAP_FIXED | MREMAP_MAYMOVE, target)
    assert task.load([moved.addr + 7], np.uint8)[0] == 5
    machine.audit()
    child.exit()
    task.munmap(moved.addr, GIGANTIC)
    assert state(machine) == (3, 3, 0, 0)
    machine.audit()


def test_copy_on_write_and_another_node(machine):
    machine.write(f"{POOL}/nr_hugepages", "3")
    task = machine.task(cpu=1)
    area = task.mmap(GIGANTIC, RW, PRIVATE)
    task.store([area.addr, area.addr + GIGANTIC - 1], np.uint8([1, 2]))
    child = task.fork()
    child.store([area.addr], np.uint8(9))
    assert child.load([area.addr, area.addr + GIGANTIC - 1], np.uint8).tolist() == [9, 2]
    assert task.load([area.addr], np.uint8)[0] == 1 and state(machine)[1] == 1
    machine.audit()
    child.exit()
    assert state(machine)[1] == 2
    here = int(task.move_pages(np.uint64([area.addr]))[0])
    task.mbind(area.addr, GIGANTIC, MPOL_BIND, 1 - here, MPOL_MF_MOVE)
    assert task.move_pages(np.uint64([area.addr])).tolist() == [1 - here] and by_node(machine) == [1, 2]
    assert task.load([area.addr, area.addr + GIGANTIC - 1], np.uint8).tolist() == [1, 2]
    machine.audit()
    task.exit()
    assert state(machine) == (3, 3, 0, 0)
    machine.audit()


def test_what_is_said_of_them(machine):
    machine.write(f"{POOL}/nr_hugepages", "2")
    machine.write("/proc/sys/vm/nr_hugepages", "3")
    task = machine.task()
    area = task.mmap(GIGANTIC, RW, PRIVATE)
    task.store([area.addr], np.uint8(1))
    meminfo = text(machine, "/proc/meminfo")
    assert re.search(r"HugePages_Total: +3\n", meminfo) and re.search(r"Hugepagesize: +2048 kB\n", meminfo)
    assert re.search(rf"Hugetlb: +{2 * (1 << 20) + 3 * 2048} kB\n", meminfo)
    smaps = text(machine, f"/proc/{task.pid}/smaps").split(f"{area.addr:08x}-")[1]
    assert re.search(r"KernelPageSize: +1048576 kB", smaps) and re.search(r"Private_Hugetlb: +1048576 kB", smaps)
    assert (
        f"{area.addr:08x} default file=/anon_hugepage\\040(deleted) huge anon=1 dirty=1 active=0 "
        in text(machine, f"/proc/{task.pid}/numa_maps").replace(" N0=1", "").replace(" N1=1", "") + " "
    )
    assert "kernelpagesize_kB=1048576" in text(machine, f"/proc/{task.pid}/numa_maps")
    assert re.search(r"HugetlbPages:\s+1048576 kB", text(machine, f"/proc/{task.pid}/status"))
    refused(
        errno.EINVAL,
        open_file(System(machine.machine, machine.topology), f"{POOL}/nr_overcommit_hugepages", 1),
        System(machine.machine, machine.topology),
        "1",
    )
    machine.audit()


def test_the_writers_policy_says_where(machine):
    task = machine.task()
    path = "/proc/sys/vm/nr_hugepages_mempolicy"
    machine.write(path, "2", task)
    h = hstate_at(machine.machine, 0)
    assert [h.nr_node[0], h.nr_node[1]] == [1, 1]  # no policy: all nodes in turn
    task.set_mempolicy(MPOL_BIND, 1)
    machine.write(path, "5", task)
    assert [h.nr_node[0], h.nr_node[1]] == [1, 4]
    machine.write(f"{POOL}/nr_hugepages_mempolicy", "1", task)
    assert by_node(machine) == [0, 1]
    machine.audit()


def test_words_of_the_command_line():
    asked = parse_hugepages(
        "hugepages=3 hugepagesz=1G hugepages=0:1,1:2 default_hugepagesz=1G hugepages=4", "x86-64-4level", 2
    )
    assert asked.default == GIGANTIC
    assert asked.pools == [(HUGE, None, 3), (GIGANTIC, 0, 1), (GIGANTIC, 1, 2), (GIGANTIC, None, 4)]
    for words, match in (
        ("hugepagesz=3M", "hugepagesz is '3M', must be 2MiB or 1GiB"),
        ("hugepages=2:1", "node"),
        ("hugepages=many", "hugepages"),
        ("hugepage=1", "'hugepage=1', must be"),
    ):
        with pytest.raises(ConfigError, match=match):
            load_topology(None, nodes=2, kernel={"hugepages": words})
    with pytest.raises(ConfigError, match="must be 4MiB with paging 'x86-32'"):
        load_topology("x86-32", kernel={"hugepages": "hugepagesz=1G hugepages=1"})


def test_a_machine_that_boots_with_them():
    from numaemu.machine import Machine

    words = "default_hugepagesz=1G hugepages=1:1 hugepagesz=2M hugepages=3"
    with Machine(nodes=2, cpus_per_node=1, memory_per_node="2GiB", kernel={"hugepages": words}) as machine:
        assert machine.read(f"{POOL}/nr_hugepages") == "1\n" == machine.read("/proc/sys/vm/nr_hugepages")
        assert machine.read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") == "3\n"
        task = machine.task()
        area = task.mmap(PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)  # without a size
        threads = [task.clone(write_one, area.addr, cpu, cpu=cpu) for cpu in range(2)]
        for thread in threads:
            thread.result()
        assert task.load(area.addr + np.uint64([0, HUGE])).tolist() == [1, 2]
        machine.check()
        task.exit()
        machine.check()


def write_one(task, addr, cpu):
    task.store([addr + cpu * HUGE], np.uint64(cpu + 1))
