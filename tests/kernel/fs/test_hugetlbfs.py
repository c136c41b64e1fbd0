"""Files of huge pages (memfd_create with MFD_HUGETLB): mapping, reservations that stay, reading, cutting, the end of files."""

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import SMALL_TLB, Loopback

from numaemu.errors import BusError
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at
from numaemu.uapi import (
    MADV_DONTNEED,
    MADV_REMOVE,
    MAP_ANONYMOUS,
    MAP_HUGE_1GB,
    MAP_HUGETLB,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MFD_HUGETLB,
    MPOL_BIND,
    MPOL_MF_MOVE,
    PROT_READ,
    PROT_WRITE,
)

PAGE, HUGE = 4096, 2 << 20
RW = PROT_READ | PROT_WRITE

pytestmark = pytest.mark.interpreted


@pytest.fixture
def machine(loopback):
    booted = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")
    booted.write("/proc/sys/vm/nr_hugepages", "6")
    return booted


def state(machine):
    """(pages, free, reserved)"""
    h = hstate_at(machine.machine, 0)
    return h.nr_huge_pages, h.free_huge_pages, h.resv_huge_pages


def refused(error, call, *args, **keywords):
    with pytest.raises(OSError) as caught:
        call(*args, **keywords)
    assert caught.value.errno == error


def test_mappings_share_the_file_and_it_grows_with_them(machine):
    task = machine.task()
    file = task.memfd_create("pool", MFD_HUGETLB)
    assert file.size == 0
    one = task.mmap(PAGE, RW, MAP_SHARED, file=file)  # one whole page
    assert file.size == HUGE and one.addr % HUGE == 0 and state(machine) == (6, 6, 1)
    two = task.mmap(HUGE, RW, MAP_SHARED, file=file, offset=HUGE)
    both = task.mmap(2 * HUGE, PROT_READ, MAP_SHARED, file=file)
    assert file.size == 2 * HUGE and state(machine) == (6, 6, 2)
    task.store([one.addr + 5, two.addr + 7], np.uint8([1, 2]))
    assert task.load([both.addr + 5, both.addr + HUGE + 7], np.uint8).tolist() == [1, 2] and state(machine) == (6, 4, 0)
    assert file.pread(3, HUGE + 6) == b"\0\2\0" and len(file.pread(100, 2 * HUGE - 10)) == 10
    machine.audit()
    child = task.fork(cpu=1)
    child.store([two.addr + 8], np.uint8(9))
    assert task.load([both.addr + HUGE + 8], np.uint8)[0] == 9
    task.mbind(one.addr, HUGE, MPOL_BIND, 1, MPOL_MF_MOVE)
    machine.audit()
    child.exit()
    task.munmap(one.addr, HUGE)
    two.munmap()
    both.munmap()
    assert state(machine) == (6, 4, 0)  # the file has its pages
    machine.audit()
    file.close()
    assert state(machine) == (6, 6, 0)
    machine.audit()


def test_reservations_belong_to_the_file(machine):
    task = machine.task()
    file = task.memfd_create("pool", MFD_HUGETLB)
    area = task.mmap(4 * HUGE, RW, MAP_SHARED, file=file)
    assert state(machine) == (6, 6, 4)
    area.munmap()
    assert state(machine) == (6, 6, 4)
    machine.audit()
    refused(errno.ENOMEM, task.mmap, 7 * HUGE, RW, MAP_SHARED, file=file)
    again = task.mmap(5 * HUGE, RW, MAP_SHARED, file=file)  # only one more
    assert state(machine) == (6, 6, 5)
    task.store([again.addr + 2 * HUGE], np.uint8(1))
    task.madvise(again.addr, 5 * HUGE, MADV_DONTNEED)
    assert task.load([again.addr + 2 * HUGE], np.uint8)[0] == 1 and state(machine) == (6, 5, 4)
    file.truncate(HUGE)
    assert state(machine) == (6, 6, 1) and file.size == HUGE
    machine.audit()
    with pytest.raises(BusError, match="the file of huge pages ends before it"):
        task.load([again.addr + HUGE], np.uint8)
    machine.audit()


def test_the_last_mapping_keeps_the_pages(machine):
    task = machine.task()
    file = task.memfd_create("pool", MFD_HUGETLB)
    area = task.mmap(2 * HUGE, RW, MAP_SHARED, file=file)
    task.store([area.addr], np.uint8(4))
    file.close()
    assert task.load([area.addr], np.uint8)[0] == 4 and state(machine) == (6, 5, 1)
    machine.audit()
    area.munmap()
    assert state(machine) == (6, 6, 0)
    machine.audit()


def test_a_private_mapping_shows_the_file_until_it_is_written_to(machine):
    """What the file has is mapped, not writable; the copy comes from the mapping's own reservation, the file stays as it is."""
    task = machine.task()
    file = task.memfd_create("pool", MFD_HUGETLB)
    shared = task.mmap(2 * HUGE, RW, MAP_SHARED, file=file)
    task.store([shared.addr, shared.addr + HUGE], np.uint8([1, 2]))
    own = task.mmap(3 * HUGE, RW, MAP_PRIVATE, file=file)  # makes the file longer, as it may be written to
    assert file.size == 3 * HUGE and state(machine) == (6, 4, 3)
    assert task.load(own.addr + HUGE * np.arange(3, dtype=np.uint64), np.uint8).tolist() == [1, 2, 0]
    assert state(machine) == (6, 3, 2)  # a hole of the file is a page of the mapping's own
    task.store([shared.addr], np.uint8(3))
    assert task.load([own.addr], np.uint8)[0] == 3
    task.store([own.addr, own.addr + 2 * HUGE], np.uint8([4, 5]))
    assert state(machine) == (6, 2, 1) and task.load([shared.addr], np.uint8)[0] == 3
    assert file.pread(1, 0) + file.pread(1, 2 * HUGE) == b"\3\0"
    machine.audit()
    child = task.fork(cpu=1)
    child.store([own.addr + 1], np.uint8(6))  # no reservation of its own: what is free beyond all
    assert child.load([own.addr], np.uint8)[0] == 4 and task.load([own.addr + 1], np.uint8)[0] == 0
    machine.audit()
    task.madvise(own.addr, HUGE, MADV_DONTNEED)
    assert task.load([own.addr], np.uint8)[0] == 3  # the file's again, and reserved again
    machine.audit()
    child.exit()
    own.munmap()
    shared.munmap()
    assert state(machine) == (6, 4, 0)
    file.close()
    assert state(machine) == (6, 6, 0)
    machine.audit()


def test_the_owner_of_a_reservation_takes_the_page_from_its_child(machine):
    task = machine.task()
    file = task.memfd_create("pool", MFD_HUGETLB)
    own = task.mmap(6 * HUGE, RW, MAP_PRIVATE, file=file)
    for i in range(6):
        task.store([own.addr + i * HUGE], np.uint8(i + 1))
    child = task.fork(cpu=1)
    with pytest.raises(BusError):
        child.store([own.addr], np.uint8(9))  # nothing is free for its copy
    child = task.fork(cpu=1)
    task.store([own.addr], np.uint8(7))
    with pytest.raises(BusError):
        child.load([own.addr], np.uint8)
    assert task.load([own.addr, own.addr + HUGE], np.uint8).tolist() == [7, 2]
    machine.audit()
    refused(errno.ENOMEM, task.mmap, HUGE, RW, MAP_PRIVATE, file=file)


def test_cutting_the_file_takes_private_copies_along(machine):
    task = machine.task()
    file = task.memfd_create("pool", MFD_HUGETLB)
    own = task.mmap(3 * HUGE, RW, MAP_PRIVATE, file=file)
    task.store(own.addr + HUGE * np.arange(3, dtype=np.uint64), np.uint8([1, 2, 3]))
    assert state(machine) == (6, 3, 0)
    file.truncate(HUGE)
    assert task.load([own.addr], np.uint8)[0] == 1 and state(machine) == (6, 5, 2)  # reserved for it as before
    with pytest.raises(BusError, match="ends before it"):
        task.load([own.addr + HUGE], np.uint8)
    machine.audit()
    own.munmap()
    assert state(machine) == (6, 6, 0)
    machine.audit()


def test_holes_in_files_of_huge_pages(machine):
    """MADV_REMOVE: whole huge pages go, private copies with them; of others the bytes are cleared."""
    task = machine.task()
    file = task.memfd_create("pool", MFD_HUGETLB)
    area = task.mmap(4 * HUGE, RW, MAP_SHARED, file=file)
    edges = area.addr + HUGE * np.arange(1, 5, dtype=np.uint64) - np.uint64(8)
    task.store(edges, [1, 2, 3, 4])
    own = task.mmap(2 * HUGE, RW, MAP_PRIVATE, file=file)
    task.store([own.addr + HUGE], [7])
    assert state(machine) == (6, 1, 1)
    task.madvise(area.addr + HUGE - PAGE, 2 * HUGE, MADV_REMOVE)  # a page of the first, the second, most of the third
    assert state(machine) == (6, 3, 2) and file.size == 4 * HUGE
    assert task.load(edges).tolist() == [0, 0, 3, 4]
    assert task.load([own.addr + HUGE])[0] == 0
    machine.audit()
    refused(errno.EACCES, task.madvise, own.addr, HUGE, MADV_REMOVE)
    own.munmap()
    loose = task.mmap(HUGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB)
    task.store([loose.addr], [5])
    task.madvise(loose.addr, HUGE, MADV_REMOVE)
    assert task.load([loose.addr])[0] == 0
    machine.audit()


def test_what_is_refused(machine):
    task = machine.task()
    file, small = task.memfd_create("pool", MFD_HUGETLB), task.memfd_create("small")
    refused(errno.ENODEV, task.memfd_create, "odd", MFD_HUGETLB | 34 << 26)
    refused(errno.EINVAL, file.truncate, PAGE)
    refused(errno.EFBIG, file.truncate, 1 << 40)
    refused(errno.EINVAL, file.pwrite, b"x", 0)
    refused(errno.EINVAL, task.mmap, HUGE, RW, MAP_SHARED, file=file, offset=PAGE)
    refused(errno.EINVAL, task.mmap, HUGE, RW, MAP_SHARED | MAP_HUGETLB, file=small)
    gigantic = task.memfd_create("gigantic", MFD_HUGETLB | MAP_HUGE_1GB)
    refused(errno.ENOMEM, task.mmap, PAGE, RW, MAP_SHARED, file=gigantic)
    file.truncate(HUGE)
    loose = task.mmap(HUGE, RW, MAP_SHARED | MAP_NORESERVE, file=file)
    full = task.mmap(6 * HUGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)
    with pytest.raises(BusError, match="no huge page of the pool is free"):
        task.store([loose.addr], np.uint8(1))
    assert full
    machine.audit()


def test_huge_pages_of_shared_memory_are_refused_clearly(machine):
    path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
    machine.write(path, "never")
    with pytest.raises(AssertionError, match="shared memory has no huge pages here"):
        machine.write(path, "always")


def test_threads_cut_and_fault_at_once():
    """Whoever faults behind the end gets a bus error; no page and no reservation is lost."""
    from numaemu.machine import Machine

    with Machine(nodes=2, cpus_per_node=2, memory_per_node="64MiB", sysctl={"vm.nr_hugepages": 8}) as machine:
        task = machine.task()
        file = task.memfd_create("pool", MFD_HUGETLB)
        area = task.mmap(8 * HUGE, RW, MAP_SHARED, file=file)
        tasks = [task.fork(cpu=cpu) for cpu in (1, 2, 3)]
        runs = [machine.spawn(hammer, cpu=1)]
        for i in range(12):
            file.truncate((i % 3) * 2 * HUGE)
            for j, other in enumerate(tasks):
                try:
                    other.store([area.addr + (i + j) % 8 * HUGE], np.uint8(i))
                except BusError:
                    tasks[j] = task.fork(cpu=j + 1)
        for run in runs:
            run.result()
        machine.check()
        for other in tasks:
            other.exit()
        area.munmap()
        file.close()
        machine.check()
        assert machine.read("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages") == "0\n"


def hammer(task):
    """Cut a file of one's own while threads fault in it."""
    file = task.memfd_create("own", MFD_HUGETLB)
    area = task.mmap(2 * HUGE, RW, MAP_SHARED | MAP_NORESERVE, file=file)
    for i in range(30):
        file.truncate(2 * HUGE)
        try:
            task.store([area.addr + i % 2 * HUGE], np.uint8(i))
        except BusError:
            return
        file.truncate(0)


# fmt: off
STEPS = st.lists(st.tuples(st.sampled_from(["map", "unmap", "write", "write", "read", "cut", "fork", "exit", "move", "size"]),
                           st.integers(0, 3), st.integers(0, 3)), max_size=25)
# fmt: on


@given(STEPS)
def test_random_steps_against_a_dictionary(steps):
    with Loopback(None, nodes=2, cpus_per_node=1, memory_per_node="32MiB", **SMALL_TLB) as machine:
        machine.write("/proc/sys/vm/nr_hugepages", "5")
        first = machine.task()
        file = first.memfd_create("pool", MFD_HUGETLB)
        tasks, areas, data, end = [first], [], {}, 0  # areas: task, address, first page, pages
        for what, x, y in steps:
            mine = [area for area in areas if area[0] in tasks]
            if what == "map":
                try:
                    area = first.mmap((1 + y) * HUGE, RW, MAP_SHARED, file=file, offset=x * HUGE)
                    areas.append((first, area.addr, x, 1 + y))
                    end = max(end, x + 1 + y)
                except OSError as error:
                    assert error.errno == errno.ENOMEM
            elif what == "unmap" and mine:
                area = mine[y % len(mine)]
                area[0].munmap(area[1], area[3] * HUGE)
                areas.remove(area)
            elif what in ("write", "read") and mine:
                task, addr, at, pages = mine[(x + y) % len(mine)]
                page, inside = at + y % pages, x * PAGE + y
                try:
                    if what == "write":
                        task.store([addr + (page - at) * HUGE + inside], np.uint8(x * 4 + y + 1))
                        data[page, inside] = x * 4 + y + 1
                    else:
                        assert task.load([addr + (page - at) * HUGE + inside], np.uint8)[0] == data.get(
                            (page, inside), 0
                        )
                    assert page < end
                except BusError:
                    assert page >= end
                    task.exit()
                    tasks.remove(task)
                    if task is first:
                        break
            elif what == "cut":
                end = y
                file.truncate(end * HUGE)
                data = {place: value for place, value in data.items() if place[0] < end}
            elif what == "fork" and len(tasks) < 3:
                child = first.fork(cpu=y % 2)
                tasks.append(child)
                areas += [(child, *area[1:]) for area in areas if area[0] is first]
            elif what == "exit" and len(tasks) > 1:
                tasks.pop().exit()
            elif what == "move":
                first.migrate_pages(x % 2, 1 - x % 2)
            elif what == "size":
                machine.write("/proc/sys/vm/nr_hugepages", str(3 + y))
            machine.audit()
