"""Where pages come from: policies of tasks and ranges. Facts as Linux 6.12 has them."""

import errno

import pytest

from numaemu.kernel.core.smp import WRITER
from numaemu.uapi import (
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_ADDR,
    MPOL_F_MEMS_ALLOWED,
    MPOL_F_NODE,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
)

pytestmark = pytest.mark.interpreted


@pytest.fixture
def three(loopback):
    """A line of three nodes: 0 - 1 - 2."""
    return loopback(
        nodes=3, cpus_per_node=1, memory_per_node="16MiB", distance=[[10, 20, 30], [20, 10, 20], [30, 20, 10]]
    )


def nodes(task, n=12, **keywords):
    return task.mmap(n << 12, **keywords).touch().nodes().tolist()


@pytest.mark.parametrize("mode, mask, expected", [
    (MPOL_DEFAULT, None, [0] * 6), (MPOL_LOCAL, None, [0] * 6), (MPOL_PREFERRED, None, [0] * 6),
    (MPOL_PREFERRED, 2, [2] * 6), (MPOL_BIND, "1-2", [1] * 6), (MPOL_PREFERRED_MANY, "1,2", [1] * 6)])  # fmt: skip
def test_policy_of_a_task(three, mode, mask, expected):
    """Bind and preferred-many take the nearest of their nodes."""
    task = three.task(cpu=0)
    task.mmap("4KiB").touch()
    task.set_mempolicy(mode, mask)
    assert nodes(task, 6) == expected


def test_interleaving_by_range_goes_by_address(three):
    """Page address / 4096 counts, not the order of touching."""
    task = three.task()
    area = task.mmap("96KiB")
    task.mbind(area.addr, area.nbytes, MPOL_INTERLEAVE, "0,2")
    for page in reversed(area.pages().tolist()):
        task.touch(page, 1)
    assert area.nodes().tolist() == [[0, 2][(page >> 12) % 2] for page in area.pages().tolist()]


def test_interleaving_by_task_counts_table_pages_too(three):
    """The task's own turn: tables that a fault needs take part in it."""
    task = three.task()
    area = task.mmap("96KiB", addr=0x1000_0000)
    task.touch(area.addr, 4096)
    task.set_mempolicy(MPOL_INTERLEAVE, "0-2")
    task.touch(area.addr + 4096, area.nbytes - 4096)
    first = (area.addr >> 12) + 1
    assert area.nodes().tolist()[1:] == [(first + i) % 3 for i in range(23)]


def test_weighted_interleaving(three):
    three.machine.il_weights[0], three.machine.il_weights[2] = 3, 1
    task = three.task()
    area = task.mmap("64KiB", addr=0x1000_0000)
    task.mbind(area.addr, area.nbytes, MPOL_WEIGHTED_INTERLEAVE, "0,2")
    area.touch()
    assert area.nodes().tolist() == [2 if (page >> 12) % 4 == 3 else 0 for page in area.pages().tolist()]


def test_bind_never_leaves_its_nodes_and_preferred_does(loopback):
    loop = loopback(nodes=2, cpus_per_node=1, memory_per_node="4MiB")
    task = loop.task()
    task.set_mempolicy(MPOL_PREFERRED, 1)
    found = nodes(task, 1200)
    assert found[0] == 1 and found[-1] == 0
    task = loop.task(cpu=1)
    task.set_mempolicy(MPOL_BIND, 1)
    with pytest.raises(Exception, match="killed by the OOM killer .* it asked for memory of nodes 1 and"):
        nodes(task, 1200)
    loop.drain()
    loop.audit()


def test_range_before_task_and_child_inherits_both(three):
    task = three.task()
    task.set_mempolicy(MPOL_BIND, 1)
    area = task.mmap("8KiB")
    task.mbind(area.addr, 4096, MPOL_BIND, 2)
    child = task.fork()
    child.touch(area.addr, 8192)
    assert child.move_pages(area.pages()).tolist() == [2, 1]
    assert child.get_mempolicy() == (MPOL_BIND, [1])
    assert child.get_mempolicy(area.addr) == (MPOL_BIND, [2])


@pytest.mark.parametrize("mode, mask", [
    (MPOL_BIND, None), (MPOL_INTERLEAVE, None), (MPOL_DEFAULT, 0), (MPOL_LOCAL, 0), (MPOL_BIND, 9), (7, 0),
    (MPOL_BIND | 1 << 12, 0), (MPOL_BIND | MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES, 0),
    (MPOL_PREFERRED | MPOL_F_STATIC_NODES, None)])  # fmt: skip
def test_refused_as_linux_refuses(three, mode, mask):
    task = three.task()
    with pytest.raises(OSError) as caught:
        task.set_mempolicy(mode, mask)
    assert caught.value.errno == errno.EINVAL
    assert task.get_mempolicy() == (MPOL_DEFAULT, [])


def test_get_mempolicy(three):
    task = three.task()
    assert task.get_mempolicy(flags=MPOL_F_MEMS_ALLOWED) == (0, [0, 1, 2])
    task.set_mempolicy(MPOL_INTERLEAVE, "1-2")
    assert task.get_mempolicy(flags=MPOL_F_NODE) == (1, [1, 2])  # the node of the next page
    area = task.mmap("4KiB")
    assert task.node_of(area.addr) == 0  # the page of zeros
    area.touch()
    assert task.node_of(area.addr) in (1, 2)
    with pytest.raises(OSError) as caught:
        task.get_mempolicy(0x1000)
    assert caught.value.errno == errno.EFAULT


def test_interleave_hits_are_counted(three):
    task = three.task()
    area = task.mmap("48KiB")
    task.mbind(area.addr, area.nbytes, MPOL_INTERLEAVE, "0-2")
    area.touch()
    assert three.vmstat()["numa_interleave"] == 12


@pytest.mark.parametrize("flags", [MPOL_F_ADDR, MPOL_F_ADDR | MPOL_F_NODE])
def test_get_mempolicy_of_an_address_waits_for_who_changes_the_mappings(three, flags):
    """Who unmaps elsewhere frees the tables that it would read."""
    task = three.task(1)
    area = task.mmap("8KiB").touch()
    mm, deliver, waited = three.mm(task), three.deliver, []
    mm.mmap_lock = WRITER

    def finish():
        waited.append(mm.mmap_lock)
        mm.mmap_lock = 0
        deliver()

    three.deliver = finish
    answer = task._op("get_mempolicy", area.addr, flags)[0]
    assert answer == (1 if flags & MPOL_F_NODE else MPOL_DEFAULT)
    assert waited == [WRITER] and mm.mmap_lock == 0
