"""Policies of shared memory and tmpfs files are the object's: whoever maps it, reads it or writes to it goes by them."""

import pytest

from numaemu import MADV_DONTNEED, MADV_HUGEPAGE
from numaemu.kernel.include.mm_types import pool_t
from numaemu.uapi import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_PREFERRED,
)

pytestmark = pytest.mark.interpreted
PAGE = 4096


def free_nodes(loop):
    """Policies of objects that nobody has."""
    pool = pool_t.at(loop.machine.sp_node_pool)
    return pool.used - pool.nr_returned


def test_a_policy_of_shared_memory_is_seen_by_who_maps_it(two_nodes):
    parent = two_nodes.task(cpu=0)
    area = parent.mmap(8 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS)
    child = parent.fork()
    child.set_mempolicy(MPOL_PREFERRED, 0)
    parent.mbind(area.addr + 2 * PAGE, 4 * PAGE, MPOL_BIND, 1)
    assert [child.get_mempolicy(area.addr + n * PAGE) for n in (1, 2, 5, 6)] == [
        (MPOL_DEFAULT, []),
        (MPOL_BIND, [1]),
        (MPOL_BIND, [1]),
        (MPOL_DEFAULT, []),
    ]
    child.touch(area.addr, area.nbytes)
    assert child.move_pages(area.pages()).tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    child.mbind(area.addr + 3 * PAGE, 2 * PAGE, MPOL_DEFAULT)  # the middle: what is left are two pieces
    assert [parent.get_mempolicy(area.addr + n * PAGE)[0] for n in range(8)] == [0, 0, 2, 0, 0, 2, 0, 0]
    assert free_nodes(two_nodes) == 2
    line = two_nodes.read(f"/proc/{parent.pid}/numa_maps")
    assert "bind:1" in line
    child.exit()
    parent.munmap(area.addr, area.nbytes)
    assert free_nodes(two_nodes) == 0
    two_nodes.audit()


def test_a_policy_of_a_file_in_memory_is_for_reads_and_writes_too(two_nodes):
    task, other = two_nodes.task(cpu=0), two_nodes.task(cpu=0)
    file = task.open("/dev/shm/f", 0o102)
    file.truncate(6 * PAGE)
    view = task.mmap(6 * PAGE, flags=MAP_SHARED, file=file)
    task.mbind(view.addr, 3 * PAGE, MPOL_BIND, 1)
    file.pwrite(b"x" * 6 * PAGE, 0)
    assert view.touch().nodes().tolist() == [1, 1, 1, 0, 0, 0]
    task.munmap(view.addr, view.nbytes)  # the file keeps it
    theirs = other.open("/dev/shm/f", 2)
    theirs.truncate(0)
    theirs.truncate(6 * PAGE)
    again = other.mmap(6 * PAGE, flags=MAP_SHARED, file=theirs, offset=0)
    assert again.touch().nodes().tolist() == [1, 1, 1, 0, 0, 0]
    private = other.mmap(6 * PAGE, flags=MAP_PRIVATE, file=theirs).touch()
    assert private.nodes().tolist() == [1, 1, 1, 0, 0, 0]  # copies go where the object wants them as well
    disk = task.mmap(PAGE, flags=MAP_SHARED, file=task.open("/mnt/f", 0o102))
    task.mbind(disk.addr, PAGE, MPOL_BIND, 1)  # a file of the disk has no policies: its mapping has
    assert task.get_mempolicy(disk.addr) == (MPOL_BIND, [1]) and free_nodes(two_nodes) == 1


def test_pages_of_shared_memory_move_to_where_its_policy_wants_them(loopback):
    loop = loopback(nodes=2, cpus_per_node=1, memory_per_node="16MiB")
    task = loop.task(cpu=0)
    area = task.mmap(4 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    task.mbind(area.addr, area.nbytes, MPOL_BIND, 1, MPOL_MF_MOVE)
    assert area.nodes().tolist() == [1] * 4
    task.mbind(area.addr, area.nbytes, MPOL_INTERLEAVE, [0, 1])
    task.madvise(area.addr, area.nbytes, MADV_DONTNEED)  # still in the object
    assert area.touch().nodes().tolist() == [1] * 4
    loop.audit()


def test_a_full_table_of_policies_is_no_memory(two_nodes):
    task = two_nodes.task()
    area = task.mmap(4 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS)
    pool = pool_t.at(two_nodes.machine.sp_node_pool)
    capacity, pool.capacity = pool.capacity, pool.used + 2
    with pytest.raises(OSError, match="mbind: .*Cannot allocate memory"):
        task.mbind(area.addr, PAGE, MPOL_BIND, 1)
    pool.capacity = capacity
    assert free_nodes(two_nodes) == 0 and task.get_mempolicy(area.addr) == (MPOL_DEFAULT, [])


def test_a_part_of_a_huge_page_moves_it_whole(loopback):
    """mbind of a piece in the middle, of one that begins in it, and of one that ends in it: the folio moves, then it is cut."""
    huge = 2 << 20
    loop = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")
    task = loop.task(cpu=0)
    area = task.mmap(2 * huge)
    start = (area.addr + huge - 1) & -huge
    task.madvise(area.addr, area.nbytes, MADV_HUGEPAGE)
    loop.write("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")
    task.store([start], 7)
    before = loop.vmstat()
    task.mbind(start + 10 * PAGE, PAGE, MPOL_BIND, 1, MPOL_MF_MOVE)
    after = loop.vmstat()
    pages = [start + n * PAGE for n in (0, 9, 10, 11, 511)]
    assert task.move_pages(pages).tolist() == [1] * 5 and task.load([start])[0] == 7
    assert after["thp_migration_success"] - before["thp_migration_success"] == 1
    assert after["pgmigrate_success"] - before["pgmigrate_success"] == 512
    assert task.get_mempolicy(start) == (MPOL_DEFAULT, [])
    loop.audit()
