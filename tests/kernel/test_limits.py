"""Each table of a machine is bounded: a call that finds it full names its limit, and leaves everything as it was."""

import errno

import pytest

from numaemu.kernel.include.mm_types import pool_t
from numaemu.spec.param import MAX_CGROUPS
from numaemu.uapi import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, O_CREAT, O_RDONLY, O_RDWR, PROT_READ

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize("table, text, call", [
    ("task", "all 32767 tasks .MAX_TASKS.", lambda loop, task: task.fork()),
    ("task", "all 32767 tasks .MAX_TASKS.", lambda loop, task: task.clone()),
    ("task", "all 32767 tasks .MAX_TASKS.", lambda loop, task: loop.task()),
    ("mm", "all 8191 address spaces .MAX_MMS.", lambda loop, task: task.fork()),
    ("mm", "all 8191 address spaces .MAX_MMS.", lambda loop, task: loop.task()),
    ("files_struct", "all 32767 processes with descriptors", lambda loop, task: task.fork()),
    ("vma", "all 1048575 mappings of all tasks together .MAX_VMAS.",
     lambda loop, task: task.mmap(8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS)),
    ("mapping", "all 1048575 families of mappings", lambda loop, task: task.mmap(8192, flags=MAP_SHARED | MAP_ANONYMOUS)),
    ("inode", "all 4095 files .MAX_INODES.", lambda loop, task: task.open("/mnt/new", O_CREAT | O_RDWR)),
    ("file", "all 8191 open files .MAX_FILES.", lambda loop, task: task.open("/mnt/there", O_RDONLY)),
])  # fmt: skip
def test_a_full_table_is_named(two_nodes, table, text, call):
    two_nodes.create_file("/mnt/there", 4096)
    task = two_nodes.task()
    pool = pool_t.at(getattr(two_nodes.machine, f"{table}_pool"))
    used, returned = pool.used, pool.nr_returned
    pool.used, pool.nr_returned = pool.capacity - 1, 0
    with pytest.raises(OSError, match=text) as caught:
        call(two_nodes, task)
    assert caught.value.errno in (errno.ENOMEM, errno.ENFILE)
    assert pool.used == pool.capacity - 1 and pool.nr_returned == 0
    pool.used, pool.nr_returned = used, returned
    call(two_nodes, task)  # there is room again
    two_nodes.audit()


def test_a_group_too_many_is_told_the_limit(two_nodes):
    answers = []
    for n in range(MAX_CGROUPS):
        two_nodes.actors[0].serve("mkdir", (f"/sys/fs/cgroup/g{n}",), answers.append)
    assert answers[:-1] == [None] * (MAX_CGROUPS - 1)  # the root is one of them
    error = answers[-1].error
    assert error.errno == errno.EAGAIN and "all 256 groups (MAX_CGROUPS)" in str(error)
