"""What system calls answer to arguments that are wrong, as Linux 6.12 does: the errno of each, and which comes first."""

import errno

import numpy as np
import pytest

from numaemu import uapi
from numaemu.uapi import (
    MADV_COLLAPSE,
    MADV_NORMAL,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MFD_EXEC,
    MFD_HUGETLB,
    MFD_NOEXEC_SEAL,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    O_CREAT,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    PR_SET_MM,
    PR_SET_MM_BRK,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_NONE,
    PROT_READ,
    PROT_SEM,
    PROT_WRITE,
    RLIMIT_NOFILE,
    RLIMIT_STACK,
    SEEK_DATA,
    SEEK_HOLE,
    WNOHANG,
)

pytestmark = pytest.mark.interpreted
PAGE = 4096
TOP = 1 << 64
ANON = MAP_PRIVATE | MAP_ANONYMOUS
NOBODY = 65534


def refused(name, call, *args, **keywords):
    """Raises OSError of this errno and no other."""
    with pytest.raises(OSError) as caught:
        call(*args, **keywords)
    assert caught.value.errno == getattr(errno, name), caught.value
    return str(caught.value)


@pytest.fixture
def task(two_nodes):
    return two_nodes.task()


# fmt: off
MMAP = [
    ("EINVAL", dict(length=0)), ("ENOMEM", dict(length=TOP - 1)), ("ENOMEM", dict(length=TOP - PAGE)),
    ("ENOMEM", dict(length=1 << 47)), ("EINVAL", dict(flags=MAP_ANONYMOUS)), ("EINVAL", dict(flags=MAP_ANONYMOUS | 0xF)),
    ("EINVAL", dict(flags=MAP_SHARED_VALIDATE | MAP_ANONYMOUS)), ("EBADF", dict(flags=MAP_PRIVATE)),
    ("EINVAL", dict(offset=1)), ("EINVAL", dict(flags=MAP_PRIVATE, offset=1)),
    ("EINVAL", dict(addr=0x1000_0001, flags=ANON | MAP_FIXED)), ("ENOMEM", dict(addr=TOP - PAGE, flags=ANON | MAP_FIXED)),
    ("EINVAL", dict(flags=MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN)),
    ("EINVAL", dict(flags=ANON | MAP_HUGETLB | 16 << uapi.MAP_HUGE_SHIFT)), ("ENOMEM", dict(flags=ANON | MAP_HUGETLB)),
]
# fmt: on


@pytest.mark.parametrize("name, arguments", MMAP)
def test_mmap(task, name, arguments):
    refused(name, task.mmap, **{"length": PAGE, **arguments})


# fmt: off
FILE_MMAP = [
    ("EOPNOTSUPP", dict(flags=MAP_SHARED_VALIDATE | 1 << 57)), ("EOPNOTSUPP", dict(flags=MAP_SHARED_VALIDATE | uapi.MAP_SYNC)),
    ("EOVERFLOW", dict(offset=(1 << 63) - PAGE)), ("EOVERFLOW", dict(offset=-PAGE)), ("EINVAL", dict(offset=100)),
    ("EINVAL", dict(flags=0)), ("EINVAL", dict(flags=7)), ("EINVAL", dict(length=0)),
    ("EINVAL", dict(flags=MAP_PRIVATE | MAP_GROWSDOWN)), ("EINVAL", dict(flags=MAP_SHARED | MAP_HUGETLB)),
]
# fmt: on


@pytest.mark.parametrize("name, arguments", FILE_MMAP)
@pytest.mark.parametrize("memory", [True, False])
def test_mmap_of_a_file(task, name, arguments, memory):
    file = task.memfd_create("m") if memory else task.open("/mnt/f", O_RDWR | O_CREAT)
    refused(name, task.mmap, **{"length": PAGE, "flags": MAP_SHARED, "file": file, **arguments})


def test_mmap_asks_for_the_mode_of_a_file_last(task):
    file = task.open("/mnt/f", O_WRONLY | O_CREAT)
    refused("EACCES", task.mmap, PAGE, PROT_READ, MAP_PRIVATE, file=file)
    refused("EINVAL", task.mmap, 0, PROT_READ, MAP_PRIVATE, file=file)
    refused("EACCES", task.mmap, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file=task.open("/mnt/f", O_RDONLY))
    task.mmap(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE, file=task.open("/mnt/f", O_RDWR))
    file.close()
    refused("EBADF", task.mmap, PAGE, PROT_READ, MAP_PRIVATE, file=file)


def test_calls_on_ranges(task):
    area = task.mmap(4 * PAGE).touch()
    a, hole = area.addr, 0x1000_0000
    for arguments in ((a + 1, PAGE), (a, 0), (TOP - PAGE, PAGE), (a, TOP - 1), (a, 1 << 47)):
        refused("EINVAL", task.munmap, *arguments)
    refused("EINVAL", task.mprotect, a + 1, PAGE, PROT_READ)
    refused("EINVAL", task.mprotect, a, PAGE, 0x100)
    refused("EINVAL", task.mprotect, a, PAGE, PROT_READ | PROT_GROWSDOWN)
    refused("ENOMEM", task.mprotect, a, TOP - 1, 0x100)
    refused("ENOMEM", task.mprotect, hole, PAGE, PROT_READ)
    task.mprotect(a, 0, 0x100)  # nothing to do comes before what it should be
    task.mprotect(a, PAGE, PROT_READ | PROT_WRITE | PROT_SEM)
    for advice in (-1, 5, 7, 99, 1 << 40, uapi.MADV_MERGEABLE):
        refused("EINVAL", task.madvise, a, PAGE, advice)
    for advice in (MADV_NORMAL, MADV_POPULATE_READ, MADV_COLLAPSE, uapi.MADV_DONTNEED):
        refused("EINVAL", task.madvise, a + 1, PAGE, advice)
        refused("EINVAL", task.madvise, a, TOP - 1, advice)
        refused("ENOMEM", task.madvise, hole, PAGE, advice)
        task.madvise(hole, 0, advice)
    refused("EINVAL", task.mincore, a + 1, PAGE)
    refused("ENOMEM", task.mincore, a, TOP - 1)
    refused("ENOMEM", task.mincore, a, TOP - PAGE)
    refused("ENOMEM", task.mincore, hole, PAGE)
    refused("EINVAL", task.msync, a, PAGE, uapi.MS_SYNC | uapi.MS_ASYNC)
    refused("EINVAL", task.msync, a, PAGE, 8)
    refused("EINVAL", task.msync, a + 1, PAGE)
    refused("ENOMEM", task.msync, hole, PAGE)
    refused("EINVAL", task.mlock, a, PAGE, 2)
    refused("ENOMEM", task.mlock, hole, PAGE)
    refused("ENOMEM", task.munlock, hole, PAGE)
    for flags in (0, uapi.MCL_ONFAULT, 8, -1):
        refused("EINVAL", task.mlockall, flags)


def test_mremap(task):
    area = task.mmap(4 * PAGE)
    a = area.addr
    refused("EINVAL", task.mremap, a, PAGE, PAGE, 8)
    refused("EINVAL", task.mremap, a, PAGE, PAGE, MREMAP_FIXED, a + 64 * PAGE)
    refused("EINVAL", task.mremap, a, PAGE, PAGE, MREMAP_DONTUNMAP)
    refused("EINVAL", task.mremap, a, PAGE, 2 * PAGE, MREMAP_DONTUNMAP | MREMAP_MAYMOVE)
    refused("EINVAL", task.mremap, a + 1, PAGE, PAGE)
    refused("EINVAL", task.mremap, a, PAGE, 0)
    refused("EINVAL", task.mremap, a, PAGE, TOP - 1)
    refused("EINVAL", task.mremap, a, 0, PAGE, MREMAP_MAYMOVE)
    refused("EFAULT", task.mremap, 0x1000_0000, PAGE, PAGE)
    refused("EFAULT", task.mremap, a, 8 * PAGE, 16 * PAGE, MREMAP_MAYMOVE)
    refused("EINVAL", task.mremap, a, PAGE, PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, a + 1)
    refused("EINVAL", task.mremap, a, 2 * PAGE, 2 * PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, a + PAGE)
    refused("ENOMEM", task.mremap, a + PAGE, PAGE, 2 * PAGE)


def test_populate_asks_for_permission(task):
    """MADV_POPULATE_READ needs PROT_READ, _WRITE needs PROT_WRITE."""
    for prot, readable, writable in ((PROT_NONE, 0, 0), (PROT_WRITE, 0, 1), (PROT_EXEC, 0, 0), (PROT_READ, 1, 0)):
        area = task.mmap(PAGE, prot)
        for advice, may in ((MADV_POPULATE_READ, readable), (MADV_POPULATE_WRITE, writable)):
            if may:
                task.madvise(area.addr, PAGE, advice)
            else:
                refused("EINVAL", task.madvise, area.addr, PAGE, advice)


def test_collapse_needs_room_for_a_huge_page(task):
    huge = 2 << 20
    area = task.mmap(3 * huge)
    start = (area.addr + huge - 1) & -huge
    refused("EINVAL", task.madvise, start + PAGE, PAGE, MADV_COLLAPSE)
    refused("EINVAL", task.madvise, start + PAGE, huge - 2 * PAGE, MADV_COLLAPSE)
    task.madvise(start + PAGE, huge, MADV_COLLAPSE)  # across a border, with nothing whole on either side
    small = task.mmap(16 * PAGE)
    refused("EINVAL", task.madvise, small.addr, small.nbytes, MADV_COLLAPSE)
    task.munmap(start, PAGE)
    refused("EINVAL", task.madvise, start + PAGE, huge - 2 * PAGE, MADV_COLLAPSE)


def test_mprotect_down_to_where_a_stack_begins(task):
    stack = task.mmap(4 * PAGE, flags=ANON | MAP_GROWSDOWN).touch()
    task.mprotect(stack.addr + 2 * PAGE, PAGE, PROT_READ | PROT_GROWSDOWN)
    for page in range(3):
        with pytest.raises(Exception, match="does not allow it"):
            task.store([stack.addr + page * PAGE], 1)
    task.store([stack.addr + 3 * PAGE], np.uint64(1))


def test_memory_policies(task):
    area = task.mmap(4 * PAGE).touch()
    a = area.addr
    refused("EINVAL", task.set_mempolicy, 7, 0)
    refused("EINVAL", task.set_mempolicy, -1)
    refused("EINVAL", task.set_mempolicy, MPOL_BIND, 7)
    refused("EINVAL", task.mbind, a, PAGE, 7, 0)
    refused("EINVAL", task.mbind, a, PAGE, MPOL_BIND, 0, 8)
    refused("EINVAL", task.mbind, a + 1, PAGE, MPOL_BIND, 0)
    refused("EINVAL", task.mbind, a, TOP - 1 - PAGE, MPOL_BIND, 0)
    refused("EFAULT", task.mbind, 0x1000_0000, PAGE, MPOL_BIND, 0)
    task.mbind(a, 0, MPOL_BIND, None)  # an empty range comes before empty nodes
    refused("EINVAL", task.mbind, a, 0, 7, None)
    refused("EINVAL", task.get_mempolicy, a, 8)
    refused("EFAULT", task.get_mempolicy, 0x1000_0000)
    refused("EINVAL", task.move_pages, [a], 1, 1)
    refused("ENODEV", task.move_pages, [a], 7)
    refused("ENODEV", task.move_pages, [a], -1)
    refused("ESRCH", task.move_pages, [a], 1, pid=99999)
    refused("ESRCH", task.migrate_pages, 0, 1, pid=99999)
    refused("EINVAL", task.migrate_pages, 0, 7)


def test_mbind_default_passes_over_holes(task):
    """Without a policy to give, holes do not matter, but a range that is nothing else (queue_pages_test_walk)."""
    area = task.mmap(8 * PAGE)
    a = area.addr
    task.mbind(a, area.nbytes, MPOL_BIND, 1)
    task.munmap(a + 2 * PAGE, PAGE)
    task.munmap(a + 5 * PAGE, PAGE)
    for first, end in ((0, 8), (2, 4), (1, 3), (4, 6)):
        refused("EFAULT", task.mbind, a + first * PAGE, (end - first) * PAGE, MPOL_BIND, 0)
    assert task.get_mempolicy(a) == (MPOL_BIND, [1])
    task.mbind(a + 2 * PAGE, 4 * PAGE, MPOL_DEFAULT)
    assert [task.get_mempolicy(a + n * PAGE)[0] for n in (0, 1, 3, 4, 6, 7)] == [2, 2, 0, 0, 2, 2]
    refused("EFAULT", task.mbind, a + 2 * PAGE, PAGE, MPOL_DEFAULT)
    task.mbind(a, area.nbytes, MPOL_DEFAULT, None, MPOL_MF_MOVE)
    assert task.get_mempolicy(a + 7 * PAGE) == (MPOL_DEFAULT, [])


def test_another_user_than_root(two_nodes):
    root, task, other = two_nodes.task(), two_nodes.task(), two_nodes.task()
    area = task.mmap(4 * PAGE).touch()
    task.setuid(NOBODY)
    other.setuid(NOBODY + 1)
    refused("EPERM", task.setuid, 0)
    refused("EPERM", task.setuid, NOBODY + 1)
    task.setuid(NOBODY)
    refused("EPERM", task.mbind, area.addr, PAGE, MPOL_BIND, 1, MPOL_MF_MOVE_ALL)
    refused("EINVAL", task.mbind, area.addr, PAGE, MPOL_BIND, 1, 8 | MPOL_MF_MOVE_ALL)
    refused("EPERM", task.move_pages, area.pages(), 1, MPOL_MF_MOVE_ALL)
    refused("EPERM", task.move_pages, area.pages(), 1, MPOL_MF_MOVE_ALL, 99999)
    refused("ESRCH", task.move_pages, area.pages(), 1, pid=99999)
    for somebody in (root, other):
        refused("EPERM", task.move_pages, area.pages(), None, pid=somebody.pid)
        refused("EPERM", task.migrate_pages, 0, 1, pid=somebody.pid)
        for signal in (0, 9):
            refused("EPERM", task.kill, somebody.pid, signal)
        refused("EINVAL", task.kill, somebody.pid, 65)
    refused("EPERM", task.migrate_pages, 0, [1, 7])  # not a node of its cpuset, which only root may name
    refused("EPERM", task.prctl, PR_SET_MM, PR_SET_MM_BRK, area.addr)
    task.kill(task.pid, 0)
    child = task.fork()
    task.kill(child.pid, 9)
    assert task.wait(child.pid) == (child.pid, 9)
    root.kill(other.pid, 9)


def test_migrate_pages_leaves_shared_pages_to_root(two_nodes):
    root, task = two_nodes.task(), two_nodes.task()
    area = task.mmap(4 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    child = task.fork()
    child.store(area.pages()[:2], 1)
    task.setuid(NOBODY)
    assert task.migrate_pages(0, 1) == 0  # a page that is not chosen is no failure
    assert area.nodes().tolist() == [0, 0, 1, 1]
    root.migrate_pages(0, 1, pid=task.pid)
    assert area.nodes().tolist() == [1, 1, 1, 1]


def test_processes(task):
    refused("EINVAL", task.kill, task.pid, 2000)
    refused("EINVAL", task.kill, task.pid, -1)
    refused("ESRCH", task.kill, 99999, 2000)
    refused("EINVAL", task.wait, -1, 0x100)
    refused("ECHILD", task.wait, -1, WNOHANG)
    refused("ECHILD", task.wait, 99999)
    for which in (16, -1):
        refused("EINVAL", task.getrlimit, which)
        refused("EINVAL", task.setrlimit, which, 1, 1)
    refused("EINVAL", task.setrlimit, RLIMIT_STACK, 2, 1)
    refused("EPERM", task.setrlimit, RLIMIT_NOFILE, 1, 1 << 40)
    refused("EINVAL", task.setuid, -1)
    refused("EINVAL", task.setuid, (1 << 32) - 1)
    refused("EINVAL", task.prctl, PR_SET_MM, 99, 0x1000_0000)
    refused("EINVAL", task.prctl, PR_SET_MM, PR_SET_MM_BRK, 0)


def test_files(two_nodes):
    task = two_nodes.task()
    file = task.open("/mnt/f", O_RDWR | O_CREAT)
    file.write(b"0123456789")
    reader, writer = task.open("/mnt/f"), task.open("/mnt/f", O_WRONLY)
    refused("ENOENT", task.open, "/mnt/none")
    refused("EINVAL", reader.truncate, 1)
    refused("EINVAL", file.truncate, -1)
    refused("EINVAL", reader.truncate, -1)
    refused("EFBIG", file.truncate, 1 << 62)
    for whence in (7, -1, 5):
        refused("EINVAL", file.seek, 0, whence)
    refused("EINVAL", file.seek, -1)
    refused("EINVAL", file.pread, 1, -1)
    refused("EINVAL", writer.pread, 1, -1)
    refused("EINVAL", file.pwrite, b"x", -1)
    refused("EBADF", writer.read, 1)
    refused("EBADF", reader.write, b"x")
    refused("EFBIG", file.pwrite, b"x", (1 << 63) - 1)
    assert (file.seek(3, SEEK_DATA), file.seek(3, SEEK_HOLE)) == (3, 10)
    refused("ENXIO", file.seek, 10, SEEK_DATA)
    refused("EBADF", file.dup, -1)
    refused("EBADF", file.dup, 1 << 40)
    file.close()
    for call in (file.close, file.fsync, file.dup, file.tell):
        refused("EBADF", call)
    refused("EBADF", file.truncate, 0)
    refused("EINVAL", file.truncate, -1)
    refused("EINVAL", file.pread, 1, -1)


def test_holes_of_a_file_in_memory(task):
    file = task.memfd_create("holes")
    file.pwrite(b"x", 3 * PAGE + 5)
    file.truncate(8 * PAGE)
    assert [file.seek(n, SEEK_DATA) for n in (0, 3 * PAGE, 3 * PAGE + 7)] == [3 * PAGE, 3 * PAGE, 3 * PAGE + 7]
    assert [file.seek(n, SEEK_HOLE) for n in (0, 3 * PAGE, 5 * PAGE)] == [0, 4 * PAGE, 5 * PAGE]
    refused("ENXIO", file.seek, 4 * PAGE, SEEK_DATA)


def test_memfd_create(two_nodes):
    task = two_nodes.task()
    for flags in (32, 1 << 20, MFD_EXEC | MFD_NOEXEC_SEAL, MFD_HUGETLB | 1 << 24, -1):
        refused("EINVAL", task.memfd_create, "m", flags)
    refused("ENODEV", task.memfd_create, "m", MFD_HUGETLB | 16 << uapi.MAP_HUGE_SHIFT)
    refused("EINVAL", task.memfd_create, "m" * 250)
    file = task.memfd_create("é" * 124 + "x", uapi.MFD_CLOEXEC | uapi.MFD_ALLOW_SEALING)
    file.write(b"both")
    assert file.pread(4, 0) == b"both"
    task.mmap(PAGE, file=file, flags=MAP_SHARED)
    assert f"/memfd:{'é' * 124}x (deleted)" in two_nodes.read(f"/proc/{task.pid}/maps")


@pytest.mark.parametrize("paging, high", [("x86-64-5level", True), ("x86-64-4level", False)])
def test_hints_above_128_tib(loopback, paging, high):
    """With five levels a hint above the usual window lets the whole address space be looked through, taken or not; -1 is one."""
    task = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", paging=paging).task()
    window, hint = (1 << 47) - PAGE, 1 << 50
    low = task.mmap(PAGE).addr
    first, second, last = (task.mmap(PAGE, addr=where).addr for where in (hint, hint, -1))
    assert low < window and (first == hint) == high
    assert [address > window for address in (first, second, last)] == [high] * 3
    across = task.mmap(4 * PAGE, addr=window - PAGE).addr  # a hint that lies across is none
    assert across + 4 * PAGE <= window
    task.store([last], np.uint64(1))
