"""smaps, smaps_rollup and pagemap: Linux's lines, and figures that follow from what a task did."""

import errno
import re

import numpy as np
import pytest

from numaemu.kernel.fs.proc.pagewalk import shmem_swap_usage, swappers
from numaemu.kernel.include.mm_types import mapping_t
from numaemu.kernel.mm.swap.swapon import swapon
from numaemu.spec.formats import FORMATS
from numaemu.uapi import (
    MADV_DONTFORK,
    MADV_FREE,
    MADV_PAGEOUT,
    MADV_RANDOM,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    O_RDWR,
    PROT_READ,
)

PAGE = 4096
NAMES = """Size KernelPageSize MMUPageSize Rss Pss Pss_Dirty Shared_Clean Shared_Dirty Private_Clean Private_Dirty Referenced
Anonymous KSM LazyFree AnonHugePages ShmemPmdMapped FilePmdMapped Shared_Hugetlb Private_Hugetlb Swap SwapPss
Locked""".split()

pytestmark = pytest.mark.interpreted


def read(loop, task, name):
    return loop.actors[0].rpc_read(f"/proc/{task.pid}/{name}")


def smaps(loop, task):
    """{start: ({name: kB}, flags)}"""
    found = {}
    for line in read(loop, task, "smaps").splitlines():
        if match := re.match(r"([0-9a-f]{8,})-", line):
            found[int(match[1], 16)] = fields = {}
        elif line.startswith("VmFlags: "):
            fields["VmFlags"] = line[9:]
        elif match := re.fullmatch(r"(\w+): +(\d+) kB", line):
            assert line == f"{match[1] + ':':<16}{int(match[2]):8d} kB"
            fields[match[1]] = int(match[2])
        else:
            assert line == "THPeligible:           0"
    return found


def test_what_a_range_holds(two_nodes):
    task = two_nodes.task()
    area, shared = task.mmap(8 * PAGE), task.mmap(4 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS)
    task.store(area.pages()[:6], np.uint8(1))
    task.load(area.pages()[6:], np.uint8)  # the page of zeros is nobody's
    task.store(shared.pages()[:2], np.uint8(1))
    task.load(shared.pages()[2:3], np.uint8)
    child = task.fork()
    child.store(area.pages()[:2], np.uint8(2))
    task.mlock(area.addr, 0)
    fields = smaps(two_nodes, task)[area.addr]
    assert list(fields) == [*NAMES, "VmFlags"]
    assert fields["Rss"] == fields["Anonymous"] == 24 and fields["Pss"] == fields["Pss_Dirty"] == 2 * 4 + 4 * 2
    assert fields["Private_Dirty"] == 8 and fields["Shared_Dirty"] == 16
    assert fields["VmFlags"] == "rd wr mr mw me ac sd "
    fields = smaps(two_nodes, task)[shared.addr]
    assert (fields["Rss"], fields["Private_Dirty"], fields["Private_Clean"], fields["Anonymous"]) == (12, 8, 4, 0)
    assert fields["VmFlags"] == "rd wr sh mr mw me ms sd "
    assert (
        smaps(two_nodes, task)[FORMATS["x86-64-4level"]["stack_top"] - 33 * PAGE]["VmFlags"]
        == "rd wr mr mw me gd ac sd "
    )


def test_flags_and_marks(two_nodes):
    task = two_nodes.task()
    area = task.mmap(4 * PAGE).touch()
    task.madvise(area.addr, PAGE, MADV_FREE)
    task.mlock(area.addr + 2 * PAGE, 2 * PAGE)
    task.madvise(area.addr + 2 * PAGE, 2 * PAGE, MADV_RANDOM)
    task.madvise(area.addr + 2 * PAGE, 2 * PAGE, MADV_DONTFORK)
    first, second = smaps(two_nodes, task)[area.addr], smaps(two_nodes, task)[area.addr + 2 * PAGE]
    assert (first["LazyFree"], first["Private_Clean"], first["Referenced"], first["Locked"]) == (4, 4, 4, 0)
    assert second["Locked"] == 8 and second["VmFlags"] == "rd wr mr mw me lo rr dc ac sd "


def test_rollup_is_the_sum(two_nodes):
    task = two_nodes.task()
    task.mmap(8 * PAGE).touch()
    task.mmap(4 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    task.fork()
    head, *lines = read(two_nodes, task, "smaps_rollup").splitlines()
    assert re.fullmatch(r"[0-9a-f]{12}-7ffffffff000 ---p 00000000 00:00 0 +\[rollup\]", head)
    rollup = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    parts = smaps(two_nodes, task).values()
    for name in NAMES[3:]:
        assert rollup[name] == sum(fields[name] for fields in parts)
    assert (rollup["Pss_Anon"], rollup["Pss_File"], rollup["Pss_Shmem"]) == (16, 0, 16)
    assert list(rollup)[:7] == ["Rss", "Pss", "Pss_Dirty", "Pss_Anon", "Pss_File", "Pss_Shmem", "Shared_Clean"]


def test_statm_and_status(two_nodes):
    task = two_nodes.task()
    area = task.mmap(8 * PAGE).touch()
    task.mmap(4 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    assert read(two_nodes, task, "statm") == f"{8 + 4 + 33} 12 4 0 0 {8 + 33} 0\n"
    task.mlock(area.addr, 2 * PAGE)
    area.munmap()
    status = dict(line.split(":\t") for line in read(two_nodes, task, "status").splitlines())
    kb = {name: int(value.split()[0]) for name, value in status.items() if value.endswith(" kB")}
    assert (kb["VmPeak"], kb["VmSize"], kb["VmHWM"], kb["VmRSS"]) == (4 * 45, 4 * 37, 48, 16)
    assert kb["VmLck"] == 0 and status["Uid"] == "0\t0\t0\t0"


def test_pagemap_is_not_read_as_a_whole(two_nodes):
    task = two_nodes.task()
    error = two_nodes.read(f"/proc/{task.pid}/pagemap").error
    assert error.errno == errno.EFBIG and f"machine.pagemap({task.pid}, addr, nbytes)" in str(error)


def test_pagemap(two_nodes):
    task = two_nodes.task()
    area = task.mmap(4 * PAGE)
    shared = task.mmap(PAGE, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    task.store(area.pages()[:2], np.uint8(1))
    task.load(area.pages()[2:3], np.uint8)
    child = task.fork()
    child.store(area.pages()[:1], np.uint8(1))
    words = two_nodes.actors[0].rpc_pagemap(task.pid, area.addr - PAGE, 5 * PAGE).tolist()
    frame = two_nodes.pfn(task, area.addr + PAGE)
    assert words[2] == 1 << 63 | 1 << 55 | frame and words[1] >> 55 == 1 << 8 | 2 | 1
    assert words[3] == 1 << 63 | 1 << 55 | two_nodes.machine.zero_pfn and words[4] == 1 << 55
    word = int(two_nodes.actors[0].rpc_pagemap(task.pid, shared.addr, PAGE)[0])
    assert word >> 55 == (1 << 8 | 1 << 6 | 1 << 1 | 1)
    readonly = task.mmap(PAGE, prot=PROT_READ)
    readonly.munmap()
    assert two_nodes.actors[0].rpc_pagemap(task.pid, 0x1000_0000, 2 * PAGE).tolist() == [0, 0]
    with pytest.raises(FileNotFoundError):
        two_nodes.actors[0].rpc_pagemap(99999, 0, PAGE)


def test_pages_of_a_file(two_nodes):
    """Clean ones of everybody, a private copy that is anonymous, a dirty shared one."""
    two_nodes.create_file("/mnt/f", 8 * PAGE, 3)
    tasks = [two_nodes.task(cpu=cpu) for cpu in (0, 1)]
    private = [task.mmap(8 * PAGE, flags=MAP_PRIVATE, file=task.open("/mnt/f")) for task in tasks]
    for area in private:
        area.touch(write=False)
    private[0].array()[0] = 1
    fields = smaps(two_nodes, tasks[0])[private[0].addr]
    assert (fields["Rss"], fields["Anonymous"], fields["Private_Dirty"], fields["Shared_Clean"]) == (32, 4, 4, 28)
    assert fields["Pss"] == 4 + 28 // 2 and fields["Pss_Dirty"] == 4
    assert smaps(two_nodes, tasks[1])[private[1].addr]["Pss"] == 4 + 28 // 2
    rollup = {
        line.split(":")[0]: line.split()[1] for line in read(two_nodes, tasks[0], "smaps_rollup").splitlines()[1:]
    }
    assert (rollup["Pss_Anon"], rollup["Pss_File"], rollup["Pss_Shmem"]) == ("4", "14", "0")
    shared = tasks[1].mmap(8 * PAGE, flags=MAP_SHARED, file=tasks[1].open("/mnt/f", O_RDWR))
    shared.array()[:512] = 2
    fields = smaps(two_nodes, tasks[1])[shared.addr]
    assert (fields["Rss"], fields["Shared_Dirty"], fields["Pss_Dirty"], fields["Anonymous"]) == (4, 4, 2, 0)


def test_what_is_swapped_out(two_nodes):
    kernel_swapon(two_nodes)
    task = two_nodes.task()
    area, shared = task.mmap(4 * PAGE).touch(), task.mmap(4 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    task.madvise(area.addr, 2 * PAGE, MADV_PAGEOUT)
    child = task.fork()
    fields = smaps(two_nodes, task)[area.addr]
    assert (fields["Swap"], fields["SwapPss"], fields["Rss"]) == (8, 4, 8)
    child.exit()
    assert smaps(two_nodes, task)[area.addr]["SwapPss"] == 8
    task.madvise(shared.addr, 4 * PAGE, MADV_PAGEOUT)
    fields = smaps(two_nodes, task)[shared.addr]
    assert (fields["Swap"], fields["SwapPss"], fields["Rss"]) == (16, 0, 0)
    task.load(area.pages(), np.uint8)  # read again: swap has the bytes, too
    fields = smaps(two_nodes, task)[area.addr]
    assert (fields["Swap"], fields["Rss"], fields["Private_Clean"]) == (0, 16, 8)
    line = next(line for line in read(two_nodes, task, "numa_maps").splitlines() if line.startswith(f"{area.addr:x} "))
    assert " anon=4 dirty=2 swapcache=2 active=" in line


def kernel_swapon(loop):
    swapon(loop.machine, "/dev/vdb", 1 << 20, None, "disk")


def test_active_pages_in_numa_maps(two_nodes):
    task = two_nodes.task()
    area = task.mmap(4 * PAGE).touch()
    task.mlock(area.addr, 3 * PAGE)
    two_nodes.audit()  # what waits in batches is on a list then
    locked, other = read(two_nodes, task, "numa_maps").splitlines()[:2]
    assert "active" not in locked and " active=0 " in other  # all of them are, none of them is


def test_swap_entries_that_are_nonsense_are_not_looked_up(two_nodes):
    """The walk trusts nothing: what it reads may have been freed and used for something else."""
    machine = two_nodes.machine
    assert [swappers(machine, entry) for entry in (-5, 0, 1 << 50, 3)] == [1, 1, 1, 1]
    task = two_nodes.task()
    shared = task.mmap(PAGE, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    mapping = mapping_t.array(machine.mappings)[two_nodes.vmas(task)[0].mapping]
    assert two_nodes.vmas(task)[0].start == shared.addr
    mapping.root, before = np.uint64(1 << 48), mapping.root
    assert shmem_swap_usage(int(machine.address), two_nodes.vmas(task)[0].mapping, 0, 1) == 0
    mapping.root = before
    two_nodes.audit()
