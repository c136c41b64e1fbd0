"""Overcommit and limits: what may be promised, and to whom."""

import errno

import numpy as np
import pytest

from numaemu import KernelBug, MachineCheck, SegmentationFault
from numaemu.kernel.include.mm_types import PG_mlocked
from numaemu.kernel.mm.swap.swapon import swapon
from numaemu.spec.formats import FORMATS
from numaemu.uapi import (
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MCL_CURRENT,
    MCL_FUTURE,
    MLOCK_ONFAULT,
    MS_ASYNC,
    MS_INVALIDATE,
    MS_SYNC,
    O_RDWR,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    RLIM_INFINITY,
    RLIMIT_AS,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
    RLIMIT_STACK,
)

BASE, PAGE, RW = 0x1000_0000, 4096, PROT_READ | PROT_WRITE
PRIVATE, SHARED = MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS
STACK = FORMATS["x86-64-4level"]["stack_top"]

pytestmark = pytest.mark.interpreted


@pytest.fixture
def loop(two_nodes):
    return two_nodes


def sysctl(loop, name, value):
    loop.actors[0].rpc_write(f"/proc/sys/vm/{name}", str(value))


def kilobytes(loop, name):
    lines = loop.actors[0].rpc_read("/proc/meminfo").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def refused(error, call, *args, **keywords):
    with pytest.raises(OSError) as caught:
        call(*args, **keywords)
    assert caught.value.errno == error


# -- overcommit ----------------------------------------------------------------------------------------------


def test_mode_0_refuses_only_what_is_more_than_all_memory(loop):
    task, total = loop.task(), loop.machine.total_ram_pages * PAGE
    for _ in range(3):
        task.mmap(total - PAGE)
    refused(errno.ENOMEM, task.mmap, total + PAGE)
    task.mmap(total + PAGE, flags=PRIVATE | MAP_NORESERVE)
    task.mmap(total + PAGE, prot=PROT_READ)
    refused(errno.ENOMEM, task.mmap, total + PAGE, flags=SHARED)


def test_mode_1_refuses_nothing(loop):
    task, total = loop.task(), loop.machine.total_ram_pages * PAGE
    sysctl(loop, "overcommit_memory", 1)
    task.mmap(10 * total)


def test_mode_2_counts(loop):
    """CommitLimit less a 32nd of what the process has mapped is there to be promised; MAP_NORESERVE means nothing."""
    task = loop.task()
    sysctl(loop, "overcommit_memory", 2)
    limit, promised = kilobytes(loop, "CommitLimit") // 4, loop.machine.vm_committed_as
    assert limit == loop.machine.total_ram_pages * 50 // 100 and kilobytes(loop, "Committed_AS") == promised * 4
    left = limit - promised - 33 // 32
    refused(errno.ENOMEM, task.mmap, left * PAGE)
    refused(errno.ENOMEM, task.mmap, left * PAGE, flags=PRIVATE | MAP_NORESERVE)
    area = task.mmap((left - 1) * PAGE)
    refused(errno.ENOMEM, task.mmap, PAGE)
    refused(errno.ENOMEM, task.fork)
    readonly = task.mmap(PAGE, prot=PROT_READ)
    refused(errno.ENOMEM, task.mprotect, readonly.addr, PAGE, RW)
    refused(errno.ENOMEM, task.mremap, area.addr, area.nbytes, area.nbytes + 200 * PAGE, 1)
    brk = task.brk()
    assert task.brk(brk + PAGE) == brk
    area.munmap()
    task.mmap(PAGE)


def test_the_limit_in_kilobytes_and_the_reserves(loop):
    task = loop.task()
    sysctl(loop, "overcommit_memory", 2)
    sysctl(loop, "overcommit_kbytes", 2048)
    assert kilobytes(loop, "CommitLimit") == 2048
    assert loop.actors[0].rpc_read("/proc/sys/vm/overcommit_ratio") == "0\n"
    sysctl(loop, "user_reserve_kbytes", 0)
    sysctl(loop, "admin_reserve_kbytes", 1024)
    task.mmap("1500KiB").munmap()
    task.setuid(1000)
    refused(errno.ENOMEM, task.mmap, "1500KiB")
    sysctl(loop, "overcommit_ratio", 80)
    assert kilobytes(loop, "CommitLimit") == loop.machine.total_ram_pages * 80 // 100 * 4


def test_every_way_gives_back_what_it_took(loop):
    task, machine = loop.task(), loop.machine
    start = machine.vm_committed_as
    area = task.mmap("1MiB").touch()
    shared = task.mmap("256KiB", flags=SHARED)
    task.brk(task.brk() + 10 * PAGE)
    assert machine.vm_committed_as == start + 256 + 64 + 10
    child = task.fork()
    assert machine.vm_committed_as == 2 * (start + 256 + 10) + 64
    task.munmap(area.addr + PAGE, 10 * PAGE)
    task.madvise(area.addr, PAGE, MADV_DONTNEED)
    task.brk(task.brk() - 4 * PAGE)
    shared.munmap()
    task.mmap(4 * PAGE, flags=PRIVATE | MAP_FIXED, addr=area.addr + 20 * PAGE)
    assert machine.vm_committed_as == 2 * (start + 256 + 10) + 64 - 14
    child.exit()
    assert machine.vm_committed_as == start + 256 + 10 - 14
    task.exit()
    assert machine.vm_committed_as == 0


# -- limits --------------------------------------------------------------------------------------------------


def test_address_space_and_data(loop):
    task = loop.task()
    task.setrlimit(RLIMIT_AS, 33 * PAGE + 10 * PAGE)
    refused(errno.ENOMEM, task.mmap, 11 * PAGE)
    task.mmap(10 * PAGE).munmap()
    task.setrlimit(RLIMIT_AS, RLIM_INFINITY)
    task.setrlimit(RLIMIT_DATA, 4 * PAGE)
    task.mmap(8 * PAGE, prot=PROT_READ)
    refused(errno.ENOMEM, task.mmap, 5 * PAGE)
    brk = task.brk()
    assert task.brk(brk + 5 * PAGE) == brk and task.brk(brk + 4 * PAGE) == brk + 4 * PAGE
    assert task.clone().getrlimit(RLIMIT_DATA) == task.fork().getrlimit(RLIMIT_DATA) == (4 * PAGE, RLIM_INFINITY)


def test_who_may_raise_a_limit(loop):
    task = loop.task()
    thread = task.clone()
    task.setrlimit(RLIMIT_STACK, PAGE, 2 * PAGE)
    assert thread.getrlimit(RLIMIT_STACK) == (PAGE, 2 * PAGE)
    task.setrlimit(RLIMIT_STACK, PAGE, 3 * PAGE)
    task.setuid(1)
    refused(errno.EPERM, task.setrlimit, RLIMIT_STACK, PAGE, 4 * PAGE)
    refused(errno.EINVAL, task.setrlimit, RLIMIT_STACK, 4 * PAGE, 3 * PAGE)
    refused(errno.EINVAL, task.setrlimit, 16, 0, 0)


# -- stacks --------------------------------------------------------------------------------------------------


def stack_of(loop, task):
    return loop.vmas(task)[-1]


def test_the_stack_grows_down_to_a_fault(loop):
    task = loop.task()
    before = loop.machine.vm_committed_as
    task.store([STACK - (1 << 20)], np.uint8(1))
    assert stack_of(loop, task).start == STACK - (1 << 20) and loop.mm(task).stack_vm == 256
    assert loop.machine.vm_committed_as == before + 256 - 33
    assert task.load([STACK - (1 << 19)], np.uint8).tolist() == [0]


def test_the_stack_s_limit(loop):
    task = loop.task()
    with pytest.raises(SegmentationFault):
        task.store([STACK - (8 << 20) - 1], np.uint8(1))
    task.store([STACK - (8 << 20)], np.uint8(1))
    small = loop.task()
    small.setrlimit(RLIMIT_STACK, 256 << 10)
    small.store([STACK - (256 << 10)], np.uint8(1))
    with pytest.raises(SegmentationFault):
        small.store([STACK - (257 << 10)], np.uint8(1))


def test_the_guard_gap(loop):
    """1 MiB above a mapping the stack stops, unless that one cannot be accessed or is a stack itself."""
    for prot, stops in ((RW, True), (PROT_NONE, False)):
        task = loop.task()
        below = STACK - (4 << 20)
        task.mmap(PAGE, prot, PRIVATE | MAP_FIXED, addr=below)
        edge = below + PAGE + (256 * PAGE)
        task.store([edge], np.uint8(1))
        if stops:
            with pytest.raises(SegmentationFault):
                task.store([edge - 1], np.uint8(1))
        else:
            task.store([edge - 1], np.uint8(1))


def test_a_mapping_that_grows_down(loop):
    task = loop.task()
    area = task.mmap(4 * PAGE, flags=PRIVATE | MAP_GROWSDOWN | MAP_FIXED, addr=BASE)
    task.store([BASE - 5 * PAGE], np.uint8(1))
    assert loop.vmas(task)[0].start == BASE - 5 * PAGE
    refused(errno.EINVAL, task.mmap, PAGE, flags=SHARED | MAP_GROWSDOWN)
    assert task.mmap(PAGE, addr=BASE - 10 * PAGE).addr != BASE - 10 * PAGE  # the gap below it is kept
    task.munmap(area.addr - 5 * PAGE, 9 * PAGE)
    loop.audit()


# -- locked memory -------------------------------------------------------------------------------------------


def locked(loop, task):
    return loop.mm(task).locked_vm, loop.vmstat()["nr_mlock"]


def test_mlock_brings_pages_in_and_counts_them(loop):
    task = loop.task()
    area = task.mmap(8 * PAGE)
    task.mlock(area.addr + 1, 3 * PAGE)
    assert locked(loop, task) == (4, 4) and task.mincore(area.addr, 8 * PAGE).tolist() == [1] * 4 + [0] * 4
    task.munlock(area.addr, PAGE)
    assert locked(loop, task) == (3, 3)
    assert [int(v.end - v.start) // PAGE for v in loop.vmas(task)[:-1]] == [1, 3, 4]
    task.munlockall()
    assert locked(loop, task) == (0, 0)
    assert len(loop.vmas(task)) == 3  # pages do not go into a neighbour without: see test_vma
    stat = loop.vmstat()
    assert stat["unevictable_pgs_mlocked"] == stat["unevictable_pgs_munlocked"] == 4


def test_mlock_on_fault(loop):
    task = loop.task()
    area = task.mmap(4 * PAGE)
    task.mlock(area.addr, 4 * PAGE, MLOCK_ONFAULT)
    assert locked(loop, task) == (4, 0)
    task.store([area.addr], np.uint8(1))
    assert locked(loop, task) == (4, 1)
    refused(errno.EINVAL, task.mlock, area.addr, PAGE, 2)


def test_a_page_is_locked_as_long_as_somebody_locks_it(loop):
    task = loop.task()
    area = task.mmap(2 * PAGE, flags=SHARED).touch()
    child = task.fork()
    task.mlock(area.addr, 2 * PAGE)
    child.mlock(area.addr, 2 * PAGE)
    task.munlock(area.addr, 2 * PAGE)
    assert locked(loop, task) == (0, 2) and locked(loop, child) == (2, 2)
    child.exit()
    assert locked(loop, task) == (0, 0)


def test_a_locked_page_is_copied_on_write_locked(loop):
    task = loop.task()
    area = task.mmap(2 * PAGE)
    task.mlock(area.addr, 2 * PAGE)
    child = task.fork()
    assert locked(loop, child) == (0, 2)
    task.store([area.addr], np.uint8(1))  # the copy is locked, the child's page not any more
    assert locked(loop, task) == (2, 2)
    child.store([area.addr + PAGE], np.uint8(1))
    assert locked(loop, task) == (2, 2)
    task.migrate_pages(0, 1)
    assert locked(loop, task) == (2, 2)
    child.exit()
    task.exit()
    assert loop.vmstat()["nr_mlock"] == 0
    loop.audit()


def test_mlockall_and_map_locked(loop):
    task = loop.task()
    area = task.mmap(4 * PAGE)
    task.mlockall(MCL_CURRENT | MCL_FUTURE)
    assert locked(loop, task) == (4 + 33, 4 + 33)
    later = task.mmap(4 * PAGE)
    assert task.mincore(later.addr, 4 * PAGE).tolist() == [1] * 4
    task.brk(task.brk() + 2 * PAGE)
    assert locked(loop, task) == (43, 43)
    task.munlockall()
    assert locked(loop, task) == (0, 0)
    task.mmap(PAGE, flags=PRIVATE | MAP_LOCKED)
    assert locked(loop, task) == (1, 1)
    refused(errno.EINVAL, task.mlockall, 0)
    refused(errno.EINVAL, task.madvise, task.mmap(PAGE, flags=PRIVATE | MAP_LOCKED).addr, PAGE, MADV_DONTNEED)
    area.munmap()


def test_the_limit_of_locked_memory(loop):
    task = loop.task()
    area = task.mmap(8 * PAGE)
    task.setrlimit(RLIMIT_MEMLOCK, 4 * PAGE)
    refused(errno.ENOMEM, task.mlock, area.addr, 5 * PAGE)
    task.mlock(area.addr, 4 * PAGE)
    task.mlock(area.addr, 4 * PAGE)  # counted once
    refused(errno.ENOMEM, task.mlock, area.addr + PAGE, 4 * PAGE)
    refused(errno.EAGAIN, task.mmap, PAGE, flags=PRIVATE | MAP_LOCKED)
    refused(errno.ENOMEM, task.mlockall, MCL_CURRENT)
    task.setrlimit(RLIMIT_MEMLOCK, 0)
    refused(errno.EPERM, task.mlock, area.addr, PAGE)
    refused(errno.EPERM, task.mmap, PAGE, flags=PRIVATE | MAP_LOCKED)


def test_holes_and_forbidden_pages(loop):
    task = loop.task()
    task.mmap(2 * PAGE, addr=BASE)
    refused(errno.ENOMEM, task.mlock, BASE, 3 * PAGE)
    assert loop.mm(task).locked_vm == 2  # up to the hole
    hidden = task.mmap(PAGE, prot=PROT_NONE)
    refused(errno.ENOMEM, task.mlock, hidden.addr, PAGE)
    refused(errno.ENOMEM, task.munlock, BASE + 2 * PAGE, PAGE)


def test_pages_of_files_are_locked(loop):
    """By whoever maps them locked, until the last one goes; the file may be cut short meanwhile."""
    loop.create_file("/mnt/f", 8 * PAGE, 1)
    tasks = [loop.task(cpu=cpu) for cpu in (0, 1)]
    areas = [task.mmap(8 * PAGE, flags=MAP_SHARED, file=task.open("/mnt/f", O_RDWR)) for task in tasks]
    tasks[0].mlock(areas[0].addr, 4 * PAGE)
    assert locked(loop, tasks[0]) == (4, 4)
    tasks[1].mmap(8 * PAGE, PROT_READ, MAP_PRIVATE | MAP_LOCKED, file=tasks[1].open("/mnt/f"))
    assert loop.vmstat()["nr_mlock"] == 8
    areas[0].munmap()
    loop.audit()
    assert loop.vmstat()["nr_mlock"] == 8
    with tasks[0].open("/mnt/f", O_RDWR) as file:
        file.truncate(2 * PAGE)
    loop.audit()
    assert loop.vmstat()["nr_mlock"] == 2
    areas[1].touch(write=False, stride=8 * PAGE)
    tasks[1].exit()
    loop.audit()
    assert loop.vmstat()["nr_mlock"] == 0 and loop.vmstat()["unevictable_pgs_munlocked"] == 8


def test_mincore_knows_caches(loop):
    """What is in a file's cache, in a shared object or in the swap cache is in memory, whoever has brought it there."""
    loop.create_file("/mnt/f", 64 * PAGE, 1)
    swapon(loop.machine, "/dev/vdb", 1 << 20, None, "disk")
    task, other = loop.task(), loop.task(cpu=1)
    area = task.mmap(64 * PAGE, flags=MAP_PRIVATE, file=task.open("/mnt/f"))
    assert task.mincore(area.addr, 64 * PAGE).sum() == 0
    with other.open("/mnt/f") as file:
        file.pread(PAGE, 0)
    cached = loop.vmstat()["nr_file_pages"]
    assert task.mincore(area.addr, 64 * PAGE).tolist() == [1] * cached + [0] * (64 - cached)
    shared = task.mmap(4 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS)
    child = task.fork()
    child.store([shared.addr], np.uint8(1))
    child.load([shared.addr + PAGE], np.uint8)
    assert task.mincore(shared.addr, 4 * PAGE).tolist() == [1, 1, 0, 0]
    own = task.mmap(4 * PAGE)
    task.store(own.pages()[:2], np.uint8(1))
    task.madvise(own.addr, PAGE, MADV_PAGEOUT)
    swapped = task.mincore(own.addr, 4 * PAGE).tolist()
    assert swapped[1:] == [1, 0, 0] and task.mincore(own.addr, 0).tolist() == []
    loop.audit()


@pytest.mark.parametrize("length", [1 << 40, 1 << 46, (1 << 64) - 4096])
def test_a_range_of_terabytes_is_checked_before_room_for_it_is_taken(loop, length, monkeypatch):
    """Its answer would be larger than this host's memory, or at least take a while."""
    task, most = loop.task(), 1 << 26
    for name in ("empty", "zeros"):
        made = getattr(np, name)
        monkeypatch.setattr(
            np, name, lambda n, *args, made=made: made(n, *args) if np.prod(n) <= most else pytest.fail("so much")
        )
    area = task.mmap(4 * PAGE)
    task.write(area.addr, b"here")
    refused(errno.ENOMEM, task.mincore, area.addr, length)
    refused(errno.EINVAL, task.mincore, area.addr + 1, length)
    with pytest.raises(SegmentationFault, match=f"load from {area.addr + 4 * PAGE:#x}: "):
        task.read(area.addr, length)
    with pytest.raises(KernelBug, match="unable to handle page fault"):
        task.kernel.read(task.kernel.page_address(loop.machine.max_pfn - 1), length)
    loop.create_file("/mnt/data", b"contents")
    with task.open("/mnt/data") as file:
        assert file.read_through(length, chunk=length) == 8 and file.pread(length, 0) == b"contents"


def test_mincore_and_msync_refuse(loop):
    task = loop.task()
    area = task.mmap(2 * PAGE)
    assert task.mincore(area.addr, 2 * PAGE).tolist() == [0, 0]
    refused(errno.EINVAL, task.mincore, area.addr + 1, PAGE)
    refused(errno.ENOMEM, task.mincore, BASE, PAGE)
    task.msync(area.addr, 2 * PAGE, MS_SYNC | MS_INVALIDATE)
    refused(errno.EINVAL, task.msync, area.addr, PAGE, MS_SYNC | MS_ASYNC)
    refused(errno.EINVAL, task.msync, area.addr, PAGE, 8)
    refused(errno.ENOMEM, task.msync, BASE, PAGE, MS_SYNC)
    task.mlock(area.addr, PAGE)
    refused(errno.EBUSY, task.msync, area.addr, PAGE, MS_INVALIDATE)


@pytest.mark.parametrize("what", ["locked_vm", "total_vm", "vm_committed_as", "nr_mlock"])
def test_the_audit_sees_a_wrong_count(loop, what):
    task = loop.task()
    area = task.mmap(2 * PAGE)
    task.mlock(area.addr, PAGE)
    loop.audit()
    if what == "nr_mlock":
        loop.page(loop.pfn(task, area.addr)).flags &= ~np.uint64(PG_mlocked)
    else:
        holder = loop.machine if what == "vm_committed_as" else loop.mm(task)
        setattr(holder, what, getattr(holder, what) + 1)
    with pytest.raises(MachineCheck, match=what):
        loop.audit()


def test_mprotect_keeps_what_is_promised_for_other_than_untouched_anonymous_memory(loopback):
    """Memory of a file that was writable stays promised; huge pages of the pool are reserved, and never are."""
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="32MiB")
    machine.create_file("/mnt/f", b"file")
    machine.write("/proc/sys/vm/nr_hugepages", "1")
    task = machine.task()
    start = machine.machine.vm_committed_as
    with task.open("/mnt/f", O_RDWR) as file:
        own = task.mmap(PAGE, RW, MAP_PRIVATE, file)
    assert machine.machine.vm_committed_as == start + 1
    task.mprotect(own.addr, PAGE, PROT_READ)
    assert machine.machine.vm_committed_as == start + 1
    anonymous = task.mmap(PAGE)
    task.mprotect(anonymous.addr, PAGE, PROT_READ)
    huge = task.mmap("2MiB", PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)
    task.mprotect(huge.addr, "2MiB", RW)
    assert machine.machine.vm_committed_as == start + 1
    machine.audit()
