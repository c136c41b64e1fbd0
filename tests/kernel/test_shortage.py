"""What a person reads when nobody could serve: the trail of an allocation, the end of a task, a pool without a page."""

import numpy as np
import pytest

from numaemu import (
    __GFP_MEMALLOC,
    __GFP_NORETRY,
    __GFP_NOWARN,
    GFP_ATOMIC,
    GFP_KERNEL,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MPOL_BIND,
    BusError,
    OutOfMemory,
)
from numaemu.api.explain import alloc_flags_text
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.include.gfp import GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.internal import ALLOC_NO_WATERMARKS, gfp_to_alloc_flags
from numaemu.kernel.mm.page_alloc.report.shortage import shortage_text
from numaemu.uapi import PROT_READ, PROT_WRITE

UNRESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
HUGE = 2 << 20
THREE = {
    "node": [{"memory": "4MiB", "cpus": 1}, {"memory": "5MiB", "cpus": 1}, {"memory": "6MiB", "cpus": 0}, {"memory": 0}]
}


@pytest.mark.interpreted
def test_a_trail_tells_a_missing_block_from_a_watermark(loopback):
    """Eighths of the largest block in use and free in turn: far above every mark, and nothing of order 8."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="6MiB")
    kernel, taken = loop.task().kernel, []
    while (pfn := kernel.alloc_pages(GFP_KERNEL | __GFP_MEMALLOC | __GFP_NORETRY | __GFP_NOWARN, 7)) is not None:
        taken.append(pfn)
    for pfn in taken[::2]:
        kernel.free_pages(pfn, 7)
    pfn, trail = kernel.alloc_pages(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, 8, explain=True)
    first = trail[0]
    assert pfn is None and (first.what, first.mark_name) == ("no block of order 8", "low")
    assert first.free - first.value > first.mark + first.reserve
    text = str(trail)
    assert "ALLOC_WMARK_MIN|ALLOC_CPUSET|ALLOC_KSWAPD" in text and "0x" not in text and "result" not in text
    assert "compaction" in text and "watermark failed" not in text
    _, trail = kernel.alloc_pages(GFP_ATOMIC | __GFP_NOWARN, 8, explain=True)
    assert "ALLOC_WMARK_MIN|ALLOC_NON_BLOCK|ALLOC_MIN_RESERVE|ALLOC_HIGHATOMIC|ALLOC_KSWAPD" in str(trail)
    assert "min lowered to" in str(trail)


@pytest.mark.interpreted
def test_flags_by_their_names():
    assert alloc_flags_text(gfp_to_alloc_flags(GFP_KERNEL, 0)) == "ALLOC_WMARK_MIN|ALLOC_CPUSET|ALLOC_KSWAPD"
    assert alloc_flags_text(ALLOC_NO_WATERMARKS) == "ALLOC_NO_WATERMARKS"


def test_a_victim_is_told_which_nodes_and_why_not_the_others(loopback):
    loop = loopback(THREE)
    task = loop.task(name="asks")
    task.set_mempolicy(MPOL_BIND, [0])
    with pytest.raises(
        OutOfMemory,
        match=r"\(asks\) .*: it asked for memory of nodes 0 and nobody could serve: node 0 has \d+ kB "
        r"free, its watermarks keep \d+ kB; nodes 1-2 \(1\d{4} kB free\) are not in its policy; "
        r"node 3 has no memory",
    ):
        task.mmap("8MiB", flags=UNRESERVED).touch()
    assert not any("watermarks keep" in line for line in loop.actors[0].system.kmsg)  # dmesg is Linux's
    loop.drain()
    loop.audit()


def test_a_victim_is_told_of_its_cpuset(loopback):
    loop = loopback(THREE)
    system, group = loop.actors[0].system, "/sys/fs/cgroup/g"
    loop.write("/sys/fs/cgroup/cgroup.subtree_control", "+cpuset")
    proc.mkdir(system, group)
    loop.write(group + "/cpuset.mems", "0-1")
    task = loop.task(name="asks")
    loop.write(group + "/cgroup.procs", str(task.pid))
    with pytest.raises(
        OutOfMemory,
        match=r"nodes 0-1 have \d+ kB free, their watermarks keep \d+ kB; "
        r"node 2 \(\d+ kB free\) is not in its cpuset; node 3 has no memory",
    ):
        task.mmap("16MiB", flags=UNRESERVED).touch()


@pytest.mark.interpreted
def test_high_memory_does_not_help_the_kernel(loopback):
    loop = loopback({"node": [{"memory": "900MiB", "cpus": 1}], "paging": "x86-32"})
    text = shortage_text(loop.machine, GFP_KERNEL, 0, 1, 1)
    assert text.endswith("; HighMem (4096 kB free) is not for the kernel's own data") and text.startswith("node 0 has ")
    assert "HighMem" not in shortage_text(loop.machine, GFP_HIGHUSER_MOVABLE, 0, 1, 1)
    assert shortage_text(loop.machine, GFP_KERNEL, 0, 1, 0).startswith(
        "there is no node that both its policy and its cpuset allow"
    )


@pytest.mark.interpreted
def test_a_pool_without_a_page_is_told_node_by_node(loopback):
    loop = loopback({"node": [{"memory": "8MiB", "cpus": 1}, {"memory": "16MiB"}, {"memory": 0}]})
    loop.write("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "2")
    task = loop.task()
    area = task.mmap(HUGE, PROT_READ | PROT_WRITE, UNRESERVED | MAP_HUGETLB)
    task.mbind(area.addr, HUGE, MPOL_BIND, [0])
    with pytest.raises(
        BusError,
        match=r"no huge page of the pool is free for it: node 0, which the task may use, has none; "
        r"node 1 \(2 free\) is not in its policy; node 2 has no memory",
    ):
        task.store([area.addr], np.uint8(1))
