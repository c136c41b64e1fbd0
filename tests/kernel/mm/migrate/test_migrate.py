"""Moving pages: contents survive, statuses are Linux's, nobody keeps an old translation."""

import errno

import numpy as np
import pytest

from numaemu.uapi import (
    MAP_ANONYMOUS,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

pytestmark = pytest.mark.interpreted


def filled(task, pages, **keywords):
    """A mapping whose page i holds the word i + 1 at its end."""
    area = task.mmap(pages << 12, **keywords)
    task.store(area.pages() + np.uint64(4088), np.arange(1, pages + 1, dtype=np.uint64))
    return area


def holds(task, area):
    return task.load(area.pages() + np.uint64(4088)).tolist() == list(range(1, len(area.pages()) + 1))


def test_move_pages_statuses(two_nodes):
    """moved, there already, never touched, the page of zeros, not mapped, mapped by two processes, busy twice."""
    task = two_nodes.task()
    area = filled(task, 2)
    shared = filled(task, 1)
    task.fork(cpu=1)
    area.touch()  # copied: ours alone again
    holes = task.mmap("8KiB")
    task.load([holes.addr + 4096])
    asked = [area.addr, area.addr + 4096, holes.addr, holes.addr + 4096, 0x1000, shared.addr]
    assert task.move_pages(asked, [1, 0, 1, 1, 1, 1]).tolist() == [
        1,
        0,
        -errno.ENOENT,
        -errno.EFAULT,
        -errno.EFAULT,
        -errno.EACCES,
    ]
    assert task.move_pages(asked).tolist() == [1, 0, -errno.ENOENT, -errno.EFAULT, -errno.EFAULT, 0]
    assert task.move_pages([shared.addr], 1, flags=MPOL_MF_MOVE_ALL).tolist() == [1]
    assert task.move_pages([area.addr, area.addr], 0).tolist() == [0, -errno.EBUSY]
    assert holds(task, area) and holds(task, shared)
    two_nodes.audit()


@pytest.mark.parametrize("node", [-1, 2, 64])
def test_a_node_that_does_not_exist(two_nodes, node):
    """-ENODEV; pages before it in the list have moved."""
    task = two_nodes.task()
    area = filled(task, 2)
    with pytest.raises(OSError) as caught:
        task.move_pages(area.pages(), [1, node])
    assert caught.value.errno == errno.ENODEV
    assert area.nodes().tolist() == [1, 0]


def test_more_pages_than_a_batch(loopback):
    """1300 pages are three batches of at most 512; every word survives, the counters add up."""
    loop = loopback(nodes=2, cpus_per_node=1, memory_per_node="16MiB")
    task = loop.task()
    area = filled(task, 1300)
    assert set(task.move_pages(area.pages(), 1).tolist()) == {1}
    assert holds(task, area)
    assert loop.vmstat()["pgmigrate_success"] == 1300
    loop.audit()


@pytest.mark.parametrize("call", ["move_pages", "migrate_pages", "mbind"])
def test_a_full_node_takes_what_fits(loopback, call):
    """Node 1 has room for less than asked: -ENOMEM at the first page without a target, and no further page is tried."""
    loop = loopback(nodes=2, cpus_per_node=1, memory_per_node="4MiB")
    task = loop.task(cpu=0)
    area = filled(task, 600)
    task.set_mempolicy(MPOL_BIND, 1)
    filled(task, 700)
    before = loop.vmstat()
    with pytest.raises(OSError) as caught:
        if call == "move_pages":
            task.move_pages(area.pages(), 1)
        elif call == "migrate_pages":
            task.migrate_pages(0, 1)
        else:
            task.mbind(area.addr, area.nbytes, MPOL_BIND, 1, MPOL_MF_MOVE | MPOL_MF_STRICT)
    assert caught.value.errno == (errno.EIO if call == "mbind" else errno.ENOMEM)
    after = loop.vmstat()
    assert set(area.nodes()) == {0, 1}
    assert after["pgmigrate_fail"] - before["pgmigrate_fail"] == 1
    assert after["pgmigrate_success"] - before["pgmigrate_success"] == int((area.nodes() == 1).sum())
    assert holds(task, area)
    loop.audit()


def test_migrate_pages_keeps_relative_order(loopback):
    """From nodes 0,1 to 1,2: what was on 0 goes to 1, what was on 1 to 2, and nothing moves twice."""
    loop = loopback(nodes=3, cpus_per_node=1, memory_per_node="16MiB")
    task = loop.task()
    one, two = task.mmap("32KiB"), task.mmap("32KiB", addr=0x1000_0000)
    task.mbind(two.addr, two.nbytes, MPOL_BIND, 1)
    one.touch()
    two.touch()
    assert task.migrate_pages("0,1", "1,2") == 0
    assert set(one.nodes()) == {1} and set(two.nodes()) == {2}
    loop.audit()


def test_migrate_pages_of_another_process(two_nodes):
    task, other = two_nodes.task(0), two_nodes.task(1)
    area = filled(other, 8)
    assert set(area.nodes()) == {1}
    assert task.migrate_pages(1, 0, pid=other.pid) == 0
    assert set(area.nodes()) == {0} and holds(other, area)
    two_nodes.audit()


def test_shared_memory_moves_under_all_its_users(two_nodes):
    """Three processes map it; MOVE leaves it, MOVE_ALL moves it; all of them read on."""
    task = two_nodes.task()
    area = filled(task, 4, flags=MAP_SHARED | MAP_ANONYMOUS)
    children = [task.fork(cpu=cpu) for cpu in (0, 1)]
    for child in children:
        assert holds(child, area)
    assert set(task.move_pages(area.pages(), 1).tolist()) == {-errno.EACCES}
    assert set(task.move_pages(area.pages(), 1, flags=MPOL_MF_MOVE_ALL).tolist()) == {1}
    children[0].write(area.addr, b"moved")
    assert task.read(area.addr, 5) == children[1].read(area.addr, 5) == b"moved"
    two_nodes.audit()


def test_permissions_survive_a_move(two_nodes):
    """Read-only stays read-only, no access stays no access, and what was shared by fork is still copied on write."""
    task = two_nodes.task()
    area = filled(task, 3)
    task.mprotect(area.addr, 4096, PROT_READ)
    task.mprotect(area.addr + 4096, 4096, PROT_NONE)
    child = task.fork()
    assert set(task.move_pages(area.pages(), 1, flags=MPOL_MF_MOVE_ALL).tolist()) == {1}
    with pytest.raises(Exception, match="does not allow it"):
        task.write(area.addr, b"x")
    with pytest.raises(Exception, match="does not allow it"):
        task.read(area.addr + 4096, 1)
    child.write(area.addr + 8192, b"child")
    assert task.read(area.addr + 8192, 5) == bytes(5)
    task.mprotect(area.addr, area.nbytes, PROT_READ | PROT_WRITE)
    assert holds(task, area)
    two_nodes.audit()


def test_mbind_strict_and_move(two_nodes):
    """STRICT alone finds misplaced pages (EIO), MOVE moves them, new pages follow the policy."""
    task = two_nodes.task()
    area = filled(task, 4)
    with pytest.raises(OSError) as caught:
        task.mbind(area.addr, area.nbytes, MPOL_BIND, 1, MPOL_MF_STRICT)
    assert caught.value.errno == errno.EIO
    assert task.get_mempolicy(area.addr) == (0, [])
    task.mbind(area.addr, area.nbytes, MPOL_BIND, 1, MPOL_MF_STRICT | MPOL_MF_MOVE)
    assert set(area.nodes()) == {1} and holds(task, area)
    task.mbind(area.addr, area.nbytes, MPOL_INTERLEAVE, "0,1", MPOL_MF_MOVE)
    assert set(area.nodes()) == {1}  # every page lies on a node of the policy already
    two_nodes.audit()


def test_mbind_strict_move_leaves_shared_pages_where_they_are(two_nodes):
    """Pages of two processes do not move without MOVE_ALL; choosing not to is no failure, and the policy stands."""
    task = two_nodes.task()
    area = filled(task, 4)
    task.fork()
    task.mbind(area.addr, area.nbytes, MPOL_BIND, 1, MPOL_MF_STRICT | MPOL_MF_MOVE)
    assert task.get_mempolicy(area.addr) == (MPOL_BIND, [1])
    assert set(area.nodes()) == {0}
    two_nodes.audit()


def test_a_moved_page_is_not_read_at_its_old_place(two_nodes):
    """CPU 1 holds the translation; after the move its store lands where CPU 0 reads."""
    task = two_nodes.task(0)
    area = filled(task, 1)
    thread = task.clone(cpu=1)
    thread.write(area.addr, b"before")
    task.move_pages(area.pages(), 1)
    thread.write(area.addr, b"after!")
    assert task.read(area.addr, 6) == b"after!"
