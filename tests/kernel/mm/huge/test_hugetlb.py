"""Huge pages from the pool: its size on every node, reservations, faults, copy on write, what Linux refuses."""

import errno
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu.errors import BusError
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at
from numaemu.uapi import (
    MADV_COLD,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGE_1GB,
    MAP_HUGE_2MB,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_STRICT,
    MPOL_PREFERRED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)

PAGE, HUGE = 4096, 2 << 20
RW = PROT_READ | PROT_WRITE
PRIVATE, SHARED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB
NODE_POOL = "/sys/devices/system/node/node{}/hugepages/hugepages-2048kB/nr_hugepages"

pytestmark = pytest.mark.interpreted


@pytest.fixture
def pool(loopback):
    """Two nodes of 32 MiB; pool(4, 2) fills them with so many huge pages."""
    machine = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")

    def fill(*pages):
        for node, n in enumerate(pages):
            machine.write(NODE_POOL.format(node), str(n))
        return machine

    return fill


def state(machine):
    """(pages, free, reserved, surplus)"""
    h = hstate_at(machine.machine, 0)
    return h.nr_huge_pages, h.free_huge_pages, h.resv_huge_pages, h.surplus_huge_pages


def by_node(machine):
    h = hstate_at(machine.machine, 0)
    return [h.nr_node[n] for n in range(2)], [h.free_node[n] for n in range(2)]


def refused(error, call, *args):
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno == error


def test_pool_grows_and_shrinks_over_nodes_in_turn(pool):
    machine = pool()
    machine.write("/proc/sys/vm/nr_hugepages", "5")
    assert by_node(machine)[0] == [3, 2]
    machine.write("/proc/sys/vm/nr_hugepages", "2")
    assert by_node(machine)[0] == [1, 1]
    machine.write(NODE_POOL.format(1), "4")
    assert by_node(machine) == ([1, 4], [1, 4])
    assert machine.vmstat()["htlb_buddy_alloc_success"] == 8
    machine.write("/proc/sys/vm/nr_hugepages", "0")
    assert state(machine) == (0, 0, 0, 0)
    machine.audit()


def test_pool_gets_what_there_is(pool):
    machine = pool()
    machine.write(NODE_POOL.format(1), "1000")
    got = by_node(machine)[0][1]
    assert 8 <= got <= 16 and by_node(machine)[0][0] == 0
    assert machine.vmstat()["htlb_buddy_alloc_fail"] == 1
    machine.audit()


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_mmap_reserves_and_faults_use_it_up(pool, flags):
    machine = pool(3, 1)
    task = machine.task(cpu=1)
    area = task.mmap(3 * HUGE, RW, flags)
    assert area.addr % HUGE == 0 and state(machine) == (4, 4, 3, 0)
    task.store([area.addr], np.uint8(7))
    task.store([area.addr + HUGE + 5 * PAGE], np.uint8(8))
    assert state(machine) == (4, 2, 1, 0)
    assert by_node(machine)[1] == [2, 0]  # its own node first
    assert task.load([area.addr, area.addr + HUGE, area.addr + HUGE + 5 * PAGE], np.uint8).tolist() == [7, 0, 8]
    assert task.counters()["task_minor_faults"] == 2
    assert task.move_pages(np.uint64([area.addr, area.addr + HUGE, area.addr + 2 * HUGE])).tolist() == [
        1,
        0,
        -errno.ENOENT,
    ]
    machine.audit()
    area.munmap()
    assert state(machine) == (4, 4, 0, 0)
    machine.audit()


def test_mmap_fails_when_not_enough_is_free(pool):
    machine = pool(2, 0)
    task = machine.task()
    one = task.mmap(HUGE, RW, PRIVATE)
    refused(errno.ENOMEM, task.mmap, 2 * HUGE, RW, PRIVATE)
    refused(errno.ENOMEM, task.mmap, 2 * HUGE, RW, SHARED)
    one.munmap()
    task.set_mempolicy(MPOL_BIND, 1)
    refused(errno.ENOMEM, task.mmap, HUGE, RW, PRIVATE)  # its node has none
    assert state(machine) == (2, 2, 0, 0)
    machine.audit()


def test_what_linux_refuses(pool):
    machine = pool(4, 0)
    task = machine.task()
    refused(errno.EINVAL, task.mmap, HUGE, RW, PRIVATE | 34 << MAP_HUGE_SHIFT)
    refused(errno.ENOMEM, task.mmap, HUGE, RW, PRIVATE | MAP_HUGE_1GB)  # this pool is empty
    small = task.mmap(PAGE, RW, PRIVATE | MAP_HUGE_2MB)  # one whole page
    refused(errno.EINVAL, small.munmap)
    task.munmap(small.addr, HUGE)
    area = task.mmap(2 * HUGE, RW, PRIVATE)
    refused(errno.EINVAL, task.munmap, area.addr + PAGE, PAGE)
    refused(errno.EINVAL, task.munmap, area.addr, HUGE + PAGE)
    refused(errno.EINVAL, task.mprotect, area.addr, PAGE, PROT_READ)
    refused(errno.EINVAL, task.madvise, area.addr + PAGE, HUGE, MADV_DONTNEED)
    refused(errno.EINVAL, task.madvise, area.addr, HUGE, MADV_COLD)
    refused(errno.EINVAL, task.mremap, area.addr, HUGE, 2 * HUGE, MREMAP_MAYMOVE)
    refused(errno.EINVAL, lambda: task.mmap(HUGE, RW, PRIVATE | MAP_FIXED, addr=area.addr + PAGE))
    machine.audit()


def test_sigbus_without_a_reservation(pool):
    machine = pool(2, 0)
    task, other = machine.task(), machine.task()
    area = task.mmap(2 * HUGE, RW, PRIVATE | MAP_NORESERVE)
    other.mmap(HUGE, RW, PRIVATE)
    task.store([area.addr], np.uint8(1))
    with pytest.raises(BusError, match="no huge page of the pool is free"):
        task.store([area.addr + HUGE], np.uint8(1))
    machine.audit()


def test_surplus_pages_come_and_go(pool):
    machine = pool(1, 0)
    machine.write("/proc/sys/vm/nr_overcommit_hugepages", "2")
    task = machine.task()
    area = task.mmap(3 * HUGE, RW, PRIVATE)
    assert state(machine) == (3, 3, 3, 2)
    area.touch(stride=HUGE)
    assert state(machine) == (3, 0, 0, 2)
    refused(errno.ENOMEM, task.mmap, HUGE, RW, PRIVATE)
    machine.audit()
    area.munmap()
    assert state(machine) == (1, 1, 0, 0)
    machine.audit()


def test_shrinking_below_what_is_used_makes_surplus(pool):
    machine = pool(3, 0)
    task = machine.task()
    area = task.mmap(2 * HUGE, RW, PRIVATE).touch(stride=HUGE)
    machine.write("/proc/sys/vm/nr_hugepages", "0")
    assert state(machine) == (2, 0, 0, 2)
    area.munmap()
    assert state(machine) == (0, 0, 0, 0)
    machine.audit()


def test_fork_copies_on_write(pool):
    machine = pool(4, 0)
    task = machine.task()
    area = task.mmap(HUGE, RW, PRIVATE)
    task.store([area.addr, area.addr + HUGE - 1], np.uint8([1, 2]))
    child = task.fork()
    child.store([area.addr], np.uint8(9))
    assert child.last_fault() == (area.addr, 0b111)
    assert child.load([area.addr, area.addr + HUGE - 1], np.uint8).tolist() == [9, 2]
    assert task.load([area.addr], np.uint8).tolist() == [1]
    assert state(machine)[1] == 2
    task.store([area.addr], np.uint8(3))  # the last one that maps it: used again
    assert state(machine)[1] == 2
    machine.audit()
    child.exit()
    assert state(machine)[1] == 3
    machine.audit()


def test_owner_takes_the_page_away_from_its_child(pool):
    machine = pool(1, 0)
    task = machine.task()
    area = task.mmap(HUGE, RW, PRIVATE)
    task.store([area.addr], np.uint8(1))
    child = task.fork()
    task.store([area.addr], np.uint8(2))
    assert task.load([area.addr], np.uint8).tolist() == [2]
    with pytest.raises(BusError, match="taken away"):
        child.load([area.addr], np.uint8)
    machine.audit()


def test_shared_pages_are_shared(pool):
    machine = pool(2, 0)
    task = machine.task()
    area = task.mmap(2 * HUGE, RW, SHARED)
    child = task.fork(cpu=1)
    child.store([area.addr + 7], np.uint8(5))
    assert task.load([area.addr + 7], np.uint8).tolist() == [5]
    assert state(machine) == (2, 1, 1, 0)
    area.munmap()
    assert state(machine) == (2, 1, 1, 0)  # the child still maps the object
    child.exit()
    assert state(machine) == (2, 2, 0, 0)
    machine.audit()


def test_dontneed_restores_the_reservation(pool):
    machine = pool(2, 0)
    task = machine.task()
    area = task.mmap(2 * HUGE, RW, PRIVATE).touch(stride=HUGE)
    task.madvise(area.addr, HUGE + PAGE, MADV_DONTNEED)  # as far as whole pages go
    assert state(machine) == (2, 1, 1, 0)
    assert task.load([area.addr], np.uint8).tolist() == [0]
    task.munmap(area.addr, HUGE)
    assert state(machine) == (2, 1, 0, 0)
    machine.audit()


def test_mprotect_and_populate(pool):
    machine = pool(2, 0)
    task = machine.task()
    area = task.mmap(2 * HUGE, RW, PRIVATE | MAP_POPULATE)
    assert state(machine) == (2, 0, 0, 0)
    task.store([area.addr], np.uint8(4))
    task.mprotect(area.addr, HUGE, PROT_READ)
    with pytest.raises(Exception, match="does not allow"):
        task.fork().store([area.addr], np.uint8(1))
    task.mprotect(area.addr, HUGE, RW)
    task.store([area.addr + 1], np.uint8(5))
    assert task.load([area.addr, area.addr + 1], np.uint8).tolist() == [4, 5]
    machine.audit()


def test_mremap_moves_pages_and_reservation(pool):
    machine = pool(3, 0)
    task = machine.task()
    area = task.mmap(3 * HUGE, RW, PRIVATE)
    task.store([area.addr], np.uint8(6))
    free = task.mmap(8 * HUGE)
    target = (free.addr + HUGE - 1) // HUGE * HUGE
    free.munmap()
    moved = task.mremap(area.addr, 2 * HUGE, 2 * HUGE, MREMAP_FIXED | MREMAP_MAYMOVE, target)
    assert moved.addr == target and task.load([target], np.uint8).tolist() == [6]
    assert state(machine) == (3, 2, 2, 0)
    machine.audit()
    task.store([target + HUGE], np.uint8(1))
    task.munmap(target, 2 * HUGE)
    assert state(machine) == (3, 3, 1, 0)
    machine.audit()


def test_policies_say_where_from(pool):
    machine = pool(4, 4)
    task = machine.task()
    area = task.mmap(4 * HUGE, RW, PRIVATE)
    task.mbind(area.addr, 4 * HUGE, MPOL_INTERLEAVE, [0, 1])
    area.touch(stride=HUGE)
    assert task.move_pages(np.uint64(area.addr + HUGE * np.arange(4))).tolist() == [0, 1, 0, 1]
    task.set_mempolicy(MPOL_PREFERRED, 1)
    more = task.mmap(2 * HUGE, RW, PRIVATE).touch(stride=HUGE)
    assert task.move_pages(np.uint64(more.addr + HUGE * np.arange(2))).tolist() == [1, 1]
    machine.audit()


def nodes_of(task, area, pages):
    return task.move_pages(np.uint64(area.addr + HUGE * np.arange(pages))).tolist()


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_pages_of_the_pool_move_and_the_nodes_keep_their_counts(pool, flags):
    machine = pool(3, 1)
    task = machine.task()
    area = task.mmap(2 * HUGE, RW, flags)
    task.store([area.addr + 5, area.addr + HUGE + 5], np.uint8([1, 2]))
    assert nodes_of(task, area, 2) == [0, 0]
    task.mbind(area.addr, HUGE, MPOL_BIND, 1, MPOL_MF_MOVE)  # to the free page there
    assert nodes_of(task, area, 2) == [1, 0] and by_node(machine) == ([3, 1], [2, 0])
    machine.audit()
    places = np.uint64([area.addr + HUGE + PAGE, area.addr + HUGE, area.addr + HUGE])
    assert task.move_pages(places, [1, 1, 1]).tolist() == [
        1,
        -errno.EBUSY,
        1,
    ]  # none is free: a new one, the old one goes
    assert by_node(machine) == ([2, 2], [2, 0]) and state(machine) == (4, 2, 0, 0)
    machine.audit()
    assert task.migrate_pages(1, 0) == 0 and nodes_of(task, area, 2) == [0, 0]
    assert by_node(machine) == ([2, 2], [0, 2])
    assert task.load([area.addr + 5, area.addr + HUGE + 5], np.uint8).tolist() == [1, 2]
    assert machine.vmstat()["pgmigrate_success"] == 4 * 512
    task.store([area.addr + 6], np.uint8(3))
    machine.audit()
    area.munmap()
    assert state(machine) == (4, 4, 0, 0)
    machine.audit()


def test_what_a_move_of_pool_pages_leaves_alone(pool):
    machine = pool(2, 2)
    task = machine.task()
    area, promised = task.mmap(HUGE, RW, PRIVATE), task.mmap(3 * HUGE, RW, PRIVATE)
    task.store([area.addr], np.uint8(1))
    child = task.fork()
    assert task.move_pages(np.uint64([area.addr]), [1]).tolist() == [-errno.EACCES]
    task.mbind(area.addr, HUGE, MPOL_BIND, 1, MPOL_MF_MOVE | MPOL_MF_STRICT)  # two have it: not chosen, and no failure
    assert nodes_of(task, area, 1) == [0]
    child.exit()
    refused(errno.EIO, task.mbind, area.addr, HUGE, MPOL_BIND, 1, MPOL_MF_STRICT)
    assert task.migrate_pages(0, 1) == 0 and nodes_of(task, area, 1) == [1]
    assert by_node(machine) == ([1, 3], [1, 2]) and promised  # what is promised is not taken: it was a new one
    machine.audit()


def test_surplus_moves_along(pool):
    machine = pool(1, 0)
    machine.write("/proc/sys/vm/nr_overcommit_hugepages", "1")
    task = machine.task()
    area = task.mmap(2 * HUGE, RW, PRIVATE).touch(stride=HUGE)
    h = hstate_at(machine.machine, 0)
    assert h.surplus_node[0] == 1
    task.mbind(area.addr, 2 * HUGE, MPOL_BIND, 1, MPOL_MF_MOVE)
    assert by_node(machine)[0] == [0, 2] and [h.surplus_node[0], h.surplus_node[1]] == [0, 1]
    machine.audit()
    area.munmap()
    assert by_node(machine)[0] == [0, 1]
    machine.audit()


def test_threads_that_want_the_last_pages_at_once():
    """As many pages as the mapping has: whoever comes second finds the first one's, and nobody a bus error."""
    from numaemu.machine import Machine

    with Machine(nodes=2, cpus_per_node=2, memory_per_node="64MiB") as machine:
        machine.write("/proc/sys/vm/nr_hugepages", 8)
        task = machine.task()
        for flags in (PRIVATE, SHARED):
            area = task.mmap(8 * HUGE, RW, flags)
            threads = [task.clone(write_all, area.addr, cpu, cpu=cpu) for cpu in range(1, 4)]
            write_all(task, area.addr, 0)
            for thread in threads:
                thread.result()
            places = np.uint64(area.addr + HUGE * np.arange(8))
            assert all((task.load(places + np.uint64(8 * cpu)) == cpu + 1).all() for cpu in range(4))
            machine.check()
            area.munmap()
        assert machine.read("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") == "8\n"
        machine.check()


@pytest.mark.parametrize("kind", ["private", "shared", "thp"])
def test_huge_pages_move_under_threads_that_write_them(kind):
    """Each thread adds to words of its own on every page while all pages move from node to node: nothing is lost."""
    from numaemu.machine import Machine

    with Machine(nodes=2, cpus_per_node=2, memory_per_node="64MiB") as machine:
        flags = {"private": PRIVATE, "shared": SHARED, "thp": MAP_PRIVATE | MAP_ANONYMOUS}[kind]
        if kind == "thp":
            machine.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
        else:
            machine.write("/proc/sys/vm/nr_hugepages", 8)
        task = machine.task()
        area = task.mmap(4 * HUGE, RW, flags)
        threads = [task.clone(add_to_all, area.addr, cpu, cpu=cpu) for cpu in range(1, 4)]
        for i in range(12):
            task.migrate_pages(i % 2, 1 - i % 2)
        for thread in threads:
            thread.result()
        places = np.uint64(area.addr + HUGE * np.arange(4))
        assert all((task.load(places + np.uint64(8 * cpu)) == 200).all() for cpu in range(1, 4))
        machine.check()
        task.exit()
        machine.check()


def add_to_all(task, addr, cpu):
    places = np.uint64(addr + HUGE * np.arange(4) + 8 * cpu)
    for _ in range(200):
        task.store(places, task.load(places) + np.uint64(1))


def lines_of(text, *names):
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith(names)]


def test_what_proc_shows_of_huge_pages():
    from numaemu.machine import Machine

    with Machine(
        nodes=2,
        cpus_per_node=1,
        memory_per_node="64MiB",
        sysctl={"vm.nr_hugepages": 4},
        kernel={"transparent_hugepage": "always"},
    ) as machine:
        task = machine.task()
        pool, shared = task.mmap(2 * HUGE, RW, PRIVATE), task.mmap(HUGE, RW, SHARED)
        task.store([pool.addr, shared.addr], np.uint8(1))
        child, large = task.fork(cpu=1), task.mmap(2 * HUGE)
        child.load([shared.addr], np.uint8)
        task.store([large.addr], np.uint8(1))
        proc = f"/proc/{task.pid}"
        parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", machine.read(f"{proc}/smaps"), flags=re.M)
        smaps = {part.split("-")[0]: part for part in parts}
        one, two, three = (smaps[f"{area.addr:08x}"] for area in (pool, shared, large))
        assert "/anon_hugepage (deleted)" in one and "/anon_hugepage (deleted)" in two
        assert lines_of(one, "Rss", "KernelPageSize", "MMUPageSize", "Shared_Hugetlb", "Private_Hugetlb") == [
            "KernelPageSize: 2048 kB",
            "MMUPageSize: 2048 kB",
            "Rss: 0 kB",
            "Shared_Hugetlb: 2048 kB",
            "Private_Hugetlb: 0 kB",
        ]
        assert " ht " in one and lines_of(two, "Shared_Hugetlb") == ["Shared_Hugetlb: 2048 kB"]
        assert lines_of(three, "Rss", "AnonHugePages", "THPeligible") == [
            "Rss: 2048 kB",
            "AnonHugePages: 2048 kB",
            "THPeligible: 1",
        ]
        numa = {line.split()[0]: line for line in machine.read(f"{proc}/numa_maps").splitlines()}
        assert (
            numa[f"{pool.addr:08x}"]
            == f"{pool.addr:08x} default file=/anon_hugepage\\040(deleted) huge anon=1 dirty=1 "
            "mapmax=2 active=0 N0=1 kernelpagesize_kB=2048"
        )
        assert numa[f"{large.addr:08x}"].endswith("anon=512 dirty=512 active=0 N0=512 kernelpagesize_kB=4")
        assert lines_of(machine.read(f"{proc}/status"), "HugetlbPages", "VmRSS")[1] == "HugetlbPages: 4096 kB"
        assert lines_of(machine.read("/proc/meminfo"), "AnonHuge", "HugePages", "Hugetlb") == [
            "AnonHugePages: 2048 kB",
            "HugePages_Total: 4",
            "HugePages_Free: 2",
            "HugePages_Rsvd: 1",
            "HugePages_Surp: 0",
            "Hugetlb: 8192 kB",
        ]
        assert "Node 0 HugePages_Total:     2\nNode 0 HugePages_Free:      0" in machine.read(
            "/sys/devices/system/node/node0/meminfo"
        )
        child.exit()
        machine.check()


def write_all(task, addr, cpu):
    for i in range(8):
        task.store([addr + i * HUGE + 8 * cpu], np.uint64(cpu + 1))


# fmt: off
STEPS = st.lists(st.tuples(st.sampled_from(["map", "share", "write", "read", "fork", "unmap", "drop", "exit", "size"]),
                           st.integers(0, 7), st.integers(0, 7)), max_size=25)
# fmt: on


@given(STEPS)
def test_random_steps_against_dictionaries(steps):
    """Bytes by task and address, and the audit after every step; SIGBUS and ENOMEM end nothing but their step."""
    from loopback import SMALL_TLB, Loopback

    with Loopback(None, nodes=2, cpus_per_node=1, memory_per_node="32MiB", **SMALL_TLB) as machine:
        machine.write("/proc/sys/vm/nr_hugepages", "6")
        tasks, areas = [(machine.task(), {})], []
        for what, x, y in steps:
            task, memory = tasks[x % len(tasks)]
            mine = [a for a in areas if a[0] is memory]
            if what in ("map", "share") and x % len(tasks) == 0:
                try:
                    area = task.mmap((1 + y % 3) * HUGE, RW, SHARED if what == "share" else PRIVATE)
                    areas += [(memory, area.addr + i * HUGE, what) for i in range(1 + y % 3)]
                except OSError as error:
                    assert error.errno == errno.ENOMEM
            elif what in ("write", "read", "unmap", "drop") and mine:
                _, start, kind = mine[y % len(mine)]
                where = start + 3 * PAGE + x
                try:
                    if what == "write":
                        task.store([where], np.uint8(x * 8 + y + 1))
                        for _, other in tasks if kind == "share" else [(task, memory)]:
                            other[where] = x * 8 + y + 1
                    elif what == "read":
                        assert task.load([where], np.uint8)[0] == memory.get(where, 0)
                    else:
                        if what == "unmap":
                            task.munmap(start, HUGE)
                            areas.remove((memory, start, kind))
                        else:
                            task.madvise(start, HUGE, MADV_DONTNEED)
                        if kind != "share":
                            for gone in [a for a in memory if start <= a < start + HUGE]:
                                del memory[gone]
                except BusError:
                    tasks.remove((task, memory))
                    areas = [a for a in areas if a[0] is not memory]
                    task.exit()
                    if not tasks:
                        break
            elif what == "fork" and len(tasks) < 4:
                child = task.fork(cpu=y % 2), dict(memory)
                tasks.append(child)
                areas += [(child[1], start, kind) for _, start, kind in mine]
            elif what == "exit" and len(tasks) > 1:
                tasks.remove((task, memory))
                areas = [a for a in areas if a[0] is not memory]
                task.exit()
            elif what == "size":
                machine.write("/proc/sys/vm/nr_hugepages", str(x))
            machine.audit()
