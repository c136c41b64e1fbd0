"""Dirty pages: counted once, limited, written back late and together, by expiry, by sync, by the flusher."""

import numpy as np
import pytest

from numaemu.api.files import seeded_bytes
from numaemu.compiler.build import JIT
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import pte_pfn
from numaemu.kernel.core.xarray import xa_load
from numaemu.kernel.fs.inode import inode_of
from numaemu.kernel.include.gfp import __GFP_THISNODE, __GFP_WRITE, GFP_KERNEL
from numaemu.kernel.include.mm_types import PG_locked
from numaemu.kernel.include.vmstat import NR_FILE_DIRTY, node_page_state
from numaemu.kernel.mm.cache import page_writeback
from numaemu.kernel.mm.cache.dirty import node_dirty_limit
from numaemu.kernel.mm.cache.page_writeback import dirty_limit, wb_workfn
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.uapi import MAP_SHARED, O_CREAT, O_RDWR, PROT_READ, PROT_WRITE

pytestmark = pytest.mark.interpreted
DISK = {"write_latency_us": 100, "bandwidth": 4096_000_000}  # a page takes 1 us
LATENCY_NS, PAGE_NS = 100_000, 1000
FREE = {"copy_page_ns": 0, "clear_page_ns": 0, "syscall_ns": 0, "fault_ns": 0, "message_ns": 0}


def boot(loopback, **sysctl):
    return loopback(
        nodes=2,
        cpus_per_node=1,
        memory_per_node="16MiB",
        disk=DISK,
        cost=FREE,
        sysctl={f"vm.{name}": value for name, value in sysctl.items()},
    )


def figures(loop):
    stat = loop.vmstat()
    return tuple(stat[name] for name in ("nr_dirtied", "nr_dirty", "nr_written", "pgpgout"))


def test_rewrites_reach_the_disk_once(loopback):
    loop = boot(loopback)
    task = loop.task()
    file = task.open("/mnt/new", O_RDWR | O_CREAT)
    for _ in range(10):
        file.write(b"x" * 8192, 0)
    assert figures(loop) == (2, 2, 0, 0)
    file.fsync()
    assert figures(loop) == (2, 0, 2, 8)
    file.fsync()
    assert figures(loop) == (2, 0, 2, 8)
    loop.system("drop_caches")
    assert file.read(8192, 0) == b"x" * 8192
    loop.audit()


def test_neighbours_are_one_request(loopback):
    """fsync pays one latency for pages that lie in a row on the disk."""
    loop = boot(loopback)
    task = loop.task()
    file = task.open("/mnt/new", O_RDWR | O_CREAT)
    file.write(bytes(8 << 12))
    before = task.clock_ns
    file.fsync()
    assert task.clock_ns - before == LATENCY_NS + 8 * PAGE_NS
    file.write(b"a", 0)
    file.write(b"b", 5 << 12)
    before = task.clock_ns
    file.fsync()
    assert task.clock_ns - before == 2 * (LATENCY_NS + PAGE_NS)


def test_pages_to_write_come_from_a_node_within_its_limit(loopback):
    """__GFP_WRITE: node 0 has as many dirty pages as it may, so the next ones come from node 1; other pages do not."""
    loop = boot(loopback, dirty_bytes=512 << 12, dirty_background_bytes=511 << 12)
    task = loop.task(cpu=0)
    limit = node_dirty_limit(loop.machine, 0)
    assert 200 < limit < 300  # half of it: the nodes are alike
    file = task.open("/mnt/new", O_RDWR | O_CREAT)
    file.write(bytes(400 << 12))
    dirty = [node_page_state(loop.machine, node, NR_FILE_DIRTY) for node in (0, 1)]
    assert abs(dirty[0] - limit) < 10 and sum(dirty) == 400
    pfn, trail = task.kernel.alloc_pages(GFP_KERNEL | __GFP_WRITE, explain=True)
    assert task.kernel.page(pfn)["node"] == 1 and trail[0].what == "too dirty" and trail[0].where == "node 0"
    assert task.kernel.page(task.kernel.alloc_page(GFP_KERNEL))["node"] == 0
    pfn, trail = task.kernel.alloc_pages(GFP_KERNEL | __GFP_WRITE | __GFP_THISNODE, explain=True)
    assert task.kernel.page(pfn)["node"] == 0 and "lower bar" in [
        step.what for step in trail
    ]  # the slow path takes any
    file.fsync()
    assert task.kernel.page(task.kernel.alloc_page(GFP_KERNEL | __GFP_WRITE))["node"] == 0


def test_above_the_background_limit_the_flusher_writes(loopback):
    """On its own clock: the context of node 0's threads. Dirty pages never stay above the limit."""
    loop = boot(loopback, dirty_background_bytes=64 << 12, dirty_bytes=1024 << 12)
    task = loop.task()
    file, before = task.open("/mnt/new", O_RDWR | O_CREAT), task.clock_ns
    file.write(bytes(512 << 12))
    dirtied, dirty, written, _ = figures(loop)
    assert dirtied == 512 and dirty <= 64 + 32 and written == 512 - dirty
    assert task.clock_ns == before
    assert cpu_t.array(loop.machine.cpus)[loop.machine.nr_cpus].clock_base_ns > 0
    loop.audit()


def test_near_the_limit_writers_wait(loopback):
    """A writer that is ahead of the disk by the middle of both limits is as slow as the disk."""
    loop = boot(loopback, dirty_background_bytes=16 << 12, dirty_bytes=32 << 12)
    task = loop.task()
    file, before = task.open("/mnt/new", O_RDWR | O_CREAT), task.clock_ns
    file.write(bytes(320 << 12))
    assert (320 - 32) * PAGE_NS <= task.clock_ns - before <= 320 * PAGE_NS


@pytest.mark.parametrize(
    "limits",
    [{"dirty_background_bytes": 16 << 12, "dirty_bytes": 32 << 12}, {"dirty_background_ratio": 0, "dirty_ratio": 1}],
)
@pytest.mark.parametrize("how", ["write", "mapping"])
def test_nobody_dirties_beyond_the_limit_while_another_cpu_writes(loopback, limits, how):
    """Another CPU is the flusher, and has its work only half done: the writer waits for it, and no longer than for it."""
    loop = boot(loopback, **limits)
    task, machine, deliver = loop.task(), loop.machine, loop.deliver
    loop.create_file("/mnt/f", bytes(120 << 12))
    file, most, waits = task.open("/mnt/f", O_RDWR), [], []

    def another_goes_on():
        most.append(figures(loop)[1] - dirty_limit(machine, 0))
        waits.append(1)
        if len(waits) % 5 == 0 and machine.wb_lock == 99:
            machine.wb_lock = 0  # the other has come so far that the lock is free
        deliver()

    machine.wb_lock = 99
    loop.deliver = another_goes_on
    if how == "write":
        file.write(bytes(120 << 12), 0)
    else:
        area = task.mmap(120 << 12, PROT_READ | PROT_WRITE, MAP_SHARED, file)
        task.store(area.pages(), np.uint64(1))
    assert len(waits) == 5 and machine.wb_lock == 0
    assert max(most) <= 0 and figures(loop)[1] <= dirty_limit(machine, 0)
    loop.deliver = deliver
    loop.audit()


def test_memory_full_of_dirty_pages_is_written_not_killed_for(loopback):
    """No swap, the limits far away: reclaim finds nothing but dirty pages, and has all of them written at once, whether or
    not anything gives the flusher time. The page that the writer itself has locked is left out.
    """
    loop = loopback(
        nodes=1,
        cpus_per_node=1,
        memory_per_node="4MiB",
        disk=DISK,
        cost=FREE,
        sysctl={"vm.dirty_background_ratio": 99, "vm.dirty_ratio": 100, "vm.overcommit_memory": 1},
        reserve={(0, 0): (1000, 320, 0)},
    )
    loop.run_kthreads = lambda: None  # the host gives kswapd no time
    task = loop.task()
    file = task.open("/mnt/new", O_RDWR | O_CREAT)
    file.write(bytes(140 << 12))
    locked = loop.page(loop_pfn(loop, file, 0))
    locked.flags |= np.uint64(PG_locked)
    assert figures(loop)[1] == 140
    before = task.clock_ns
    task.mmap(190 << 12).touch()
    locked.flags &= ~np.uint64(PG_locked)
    stat = loop.vmstat()
    assert stat["oom_kill"] == 0 and stat["nr_written"] == 139 and stat["nr_dirty"] == 1
    assert task.clock_ns - before >= LATENCY_NS + 32 * PAGE_NS  # VMSCAN_THROTTLE_WRITEBACK
    del loop.run_kthreads
    loop.audit()


def loop_pfn(loop, file, index):
    """The frame of a cached page."""
    inode = inode_of(loop.machine, loop.open_file(file).inode)
    return int(pte_pfn(xa_load(loop.machine, mapping_of(loop.machine, inode.mapping), index)))


def test_old_dirty_pages_are_written(loopback):
    """After dirty_expire, when dirty_writeback has passed: the next use of a file wakes the flusher."""
    loop = boot(loopback, dirty_expire_centisecs=3000, dirty_writeback_centisecs=500)
    task = loop.task()
    file = task.open("/mnt/new", O_RDWR | O_CREAT)
    file.write(b"x")
    loop.cpu().clock_base_ns += 10 * 10**9
    file.read(1, 0)
    assert figures(loop)[1] == 1
    loop.cpu().clock_base_ns += 30 * 10**9
    file.read(1, 0)
    assert figures(loop)[1:3] == (0, 1)


def test_the_flusher_works_alone(loopback):
    loop = boot(loopback, dirty_background_bytes=4096, dirty_writeback_centisecs=0)
    task = loop.task()
    task.open("/mnt/new", O_RDWR | O_CREAT).write(bytes(20 << 12))
    loop.machine.wb_lock = 1
    assert wb_workfn(loop.cpu()) == 0 and figures(loop)[1] == 20
    loop.machine.wb_lock = 0
    assert wb_workfn(loop.cpu()) == 20 and figures(loop)[1] == 0


def test_limits_follow_ratios_and_bytes(loopback):
    loop = boot(loopback)
    machine = loop.machine
    assert dirty_limit(machine, 0) == loop.vmstat()["nr_dirty_threshold"]
    assert 0.19 < dirty_limit(machine, 0) / loop.vmstat()["nr_free_pages"] < 0.2
    machine.vm_dirty_bytes = 5 * 4096 + 1
    assert dirty_limit(machine, 0) == 6
    assert dirty_limit(machine, 1) == 3  # never more than half of it


def test_a_write_through_a_mapping_makes_the_page_dirty_again(loopback):
    """Writing back takes the permission away; on all CPUs."""
    loop = boot(loopback)
    loop.create_file("/mnt/f", 4 << 12, 5)
    one, two = loop.task(0), loop.task(1)
    areas = [task.mmap(4 << 12, PROT_READ | PROT_WRITE, MAP_SHARED, task.open("/mnt/f", O_RDWR)) for task in (one, two)]
    assert one.read(areas[0].addr, 4 << 12) == seeded_bytes(5, 0, 4 << 12)
    assert figures(loop)[:2] == (0, 0)
    for round_ in (1, 2, 3):
        for task, area in zip((one, two), areas):
            task.store([area.addr + 8 * task.cpu], np.uint64(round_))
        assert figures(loop)[:3] == (round_, 1, round_ - 1)
        areas[0].msync()
        assert figures(loop)[1:3] == (0, round_)
        assert not loop.pte(one, areas[0].addr) & 0x42 and not loop.pte(two, areas[1].addr) & 0x42
    loop.system("drop_caches")
    assert two.open("/mnt/f").read(16) == (3).to_bytes(8, "little") * 2
    loop.audit()


def test_unmapping_leaves_the_page_dirty(loopback):
    loop = boot(loopback)
    loop.create_file("/mnt/f", 4096, 5)
    task = loop.task()
    file = task.open("/mnt/f", O_RDWR)
    area = task.mmap(4096, PROT_READ | PROT_WRITE, MAP_SHARED, file)
    task.write(area.addr, b"mapped")
    area.munmap()
    assert figures(loop)[1] == 1
    loop.system("sync")
    loop.system("drop_caches")
    assert file.read(6) == b"mapped"


def test_what_is_deleted_is_never_written(loopback):
    loop = boot(loopback)
    task = loop.task()
    with task.open("/mnt/new", O_RDWR | O_CREAT) as file:
        file.write(bytes(8 << 12))
        loop.system("unlink", "/mnt/new")
        assert figures(loop)[1] == 8  # still open
    assert figures(loop) == (8, 0, 0, 0)
    assert loop.vmstat()["nr_file_pages"] == 0
    loop.audit()


@pytest.mark.skipif(JIT, reason="replaces functions of the kernel")
@pytest.mark.interpreted
def test_who_waits_for_the_flusher_goes_by_the_limits_of_now(two_nodes, monkeypatch):
    """Memory was short when the task began to wait, and is not any more: the flusher, who looks anew, has nothing to do."""
    looks = []

    def limit(machine, background):
        looks.append(background)
        return (40 if background else 80) if len(looks) > 2 else (4 if background else 8)

    monkeypatch.setattr(page_writeback, "dirty_limit", limit)
    monkeypatch.setattr(page_writeback, "nr_dirty_pages", lambda machine: 20)
    monkeypatch.setattr(page_writeback, "wakeup_flusher", lambda cpu: 0)
    monkeypatch.setattr(
        page_writeback,
        "let_others_run",
        lambda cpu: looks.append(None) or len(looks) < 50 or pytest.fail("waits for ever"),
    )
    page_writeback.balance_dirty_pages(two_nodes.cpus[0].state)
    assert looks[:3] == [False, True, None]
