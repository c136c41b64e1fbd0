"""What /proc and /sys say of the machine as a whole: times of CPUs, disks, frames, the shape of the machine; symbolic links."""

import errno

import numpy as np
import pytest

from numaemu.kernel.core import loadavg
from numaemu.kernel.fs.proc import page as proc_page
from numaemu.kernel.fs.proc import stat as proc_stat
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.sysfs import memory as memory_sysfs
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.spec.units import GiB, MiB
from numaemu.uapi import O_RDWR

pytestmark = pytest.mark.interpreted
CPU, NODE, MEMORY = (f"/sys/devices/system/{name}" for name in ("cpu", "node", "memory"))
TICK_NS = 10_000_000


@pytest.fixture
def system(two_nodes):
    return System(two_nodes.machine, two_nodes.topology)


def cpu_lines(system):
    """{name: ticks} of /proc/stat."""
    lines = [line.split() for line in proc.read(system, "/proc/stat").splitlines()]
    return {name: [int(word) for word in words] for name, *words in lines if name.startswith("cpu")}


def test_the_times_of_a_cpu_are_its_clock(two_nodes, system):
    """A task that sleeps leaves its CPU idle, one that waits for the disk makes iowait, accesses are the user's time."""
    two_nodes.create_file("/data", 256 << 10)
    task = two_nodes.task()
    task.sleep(50)
    file = task.open("/data")
    file.pread(256 << 10, 0)
    task.mmap("64KiB").touch()
    cpu = two_nodes.cpus[0].state
    now = proc_stat.now_ns(system.machine)
    user, kernel, idle, iowait = proc_stat.cpu_times(cpu, now)
    assert user + kernel + idle + iowait == now == task.clock_ns
    assert idle == cpu.idle_ns == 50_000_000 - 0 and user > 0 and kernel > 16 * 500
    assert iowait == cpu.iowait_ns > 0
    other = proc_stat.cpu_times(two_nodes.cpus[1].state, now)
    assert sum(other) == now and other[2] > now - 1_000_000


def test_stat_uptime_and_loadavg_agree(two_nodes, system):
    task = two_nodes.task()
    task.sleep(120)
    lines = cpu_lines(system)
    assert set(lines) == {"cpu", "cpu0", "cpu1"} and lines["cpu0"][3] == 12
    uptime, idle = (float(word) for word in proc.read(system, "/proc/uptime").split())
    assert uptime == round(task.clock_ns / 1e9, 2) and abs(idle - 0.24) <= 0.011
    text = proc.read(system, "/proc/stat")
    assert f"btime {system.boot_time}\n" in text and "procs_running 0\n" in text  # it has given its CPU away
    assert proc.read(system, "/proc/loadavg") == f"0.00 0.00 0.00 0/1 {task.pid}\n"
    task.mmap("4KiB").touch()
    assert proc.read(system, "/proc/loadavg") == f"0.00 0.00 0.00 1/1 {task.pid}\n"


def test_load_averages_are_those_of_linux():
    """calc_load_n: n looks at once come to what n looks one by one do."""
    load = once = 0
    active = 3 << loadavg.FSHIFT
    for _ in range(12):
        load = loadavg.calc_load(load, proc_stat.EXP[0], active)
    once = loadavg.calc_load_n(0, proc_stat.EXP[0], active, 12)
    assert abs(load - once) <= 12 and 1.8 < load / loadavg.FIXED_1 < 2.0  # 1 - 1/e of 3


def test_the_load_of_a_busy_machine_rises(two_nodes, system):
    """One of two CPUs busy for a minute: the averages come near to what they are told was the mean."""
    system.load_seen_ns, system.load_busy_ns = -60_000_000_000, -60_000_000_000
    two_nodes.task().mmap("4KiB").touch()
    first = float(proc.read(system, "/proc/loadavg").split()[0])
    assert 0.55 < first < 0.7


def test_the_disk_is_counted_in_requests_and_sectors(two_nodes, system):
    two_nodes.create_file("/data", 128 << 10)
    task = two_nodes.task()
    file = task.open("/data", O_RDWR)
    file.pread(128 << 10, 0)
    file.pwrite(b"x" * 8192, 0)
    file.fsync()
    words = proc.read(system, "/proc/diskstats").split()
    assert words[:3] == ["254", "0", "vda"]
    reads, _, read_sectors, _, writes, _, written_sectors, *_ = map(int, words[3:])
    assert reads >= 1 and read_sectors == 256 and writes == 1 and written_sectors == 16
    assert proc.read(system, "/sys/block/vda/stat").split() == words[3:]
    assert proc.read(system, "/sys/block/vda/size") == f"{two_nodes.topology.disk.size // 512}\n"


def test_frames_have_flags_and_counts(two_nodes, system):
    """What a task has just mapped is anonymous, mapped once, on a list; where there is no memory the flags say so."""
    task = two_nodes.task()
    memory = task.mmap("64KiB")
    memory.touch()
    pfns = [two_nodes.pfn(task, memory.addr + (i << 12)) for i in range(16)]
    flags = np.frombuffer(proc.read(system, "/proc/kpageflags"), "<u8")
    counts = np.frombuffer(proc.read(system, "/proc/kpagecount"), "<u8")
    assert len(flags) == len(counts) == two_nodes.machine.max_pfn
    for pfn in pfns:
        assert flags[pfn] >> 12 & 1 and flags[pfn] >> 11 & 1 and not flags[pfn] >> 10 & 1 and counts[pfn] == 1
    assert flags[0] == 1 << proc_page.KPF_NOPAGE
    part = proc.pread(system, "/proc/kpageflags", 32, 8 * pfns[0])
    assert part == flags[pfns[0] : pfns[0] + 4].tobytes()
    with pytest.raises(OSError) as caught:
        proc.pread(system, "/proc/kpageflags", 4, 0)
    assert caught.value.errno == errno.EINVAL


def test_pagemap_is_read_by_ranges(two_nodes, system):
    task = two_nodes.task()
    memory = task.mmap("16KiB")
    memory.touch()
    words = np.frombuffer(proc.pread(system, f"/proc/{task.pid}/pagemap", 32, memory.addr >> 12 << 3), "<u8")
    assert all(words >> 63 == 1) and int(words[0] & (1 << 55) - 1) == two_nodes.pfn(task, memory.addr)


def test_links_are_followed(system):
    assert proc.kind(system, f"{CPU}/cpu1/node1") == ("link", "../../node/node1")
    assert proc.read(system, f"{CPU}/cpu1/node1/cpulist") == "1\n"
    assert proc.read(system, f"{NODE}/node0/cpu0/topology/core_id") == "0\n"
    assert "meminfo" in proc.listdir(system, f"{MEMORY}/memory0/node0")
    assert proc.kind(system, f"{CPU}/cpu1") == ("dir", "") and proc.kind(system, f"{CPU}/cpu9") == ("", "")
    assert proc.kind(system, "/proc/stat") == ("file", "r")
    assert proc.kind(system, "/proc/sys/vm/compact_memory") == ("file", "w")


def test_the_shape_of_the_machine(system):
    assert proc.read(system, f"{CPU}/online") == "0-1\n"
    assert proc.read(system, f"{CPU}/cpu1/topology/physical_package_id") == "1\n"
    assert proc.read(system, f"{MEMORY}/block_size_bytes") == "8000000\n"
    assert proc.read(system, f"{NODE}/node1/access0/initiators/read_latency") == "80\n"
    assert proc.read(system, "/proc/cpuinfo").count("processor\t: ") == 2


def test_large_machines_have_large_blocks(loopback):
    """probe_memory_block_size: from 64 GiB on the largest block that divides the end of memory."""
    small, large = (loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB") for _ in range(2))

    def size(*ranges):
        topology = type("Shape", (), {"paging": "x86-64-4level", "physical_ranges": lambda self: [list(ranges)]})()
        return memory_sysfs.memory_block_size(type("S", (), {"topology": topology})())

    assert small.topology.paging == large.topology.paging
    assert size((0, 3 * GiB), (4 * GiB, 9 * GiB)) == 128 * MiB
    assert size((0, 3 * GiB), (4 * GiB, 124 * GiB)) == 2 * GiB
    assert size((0, 3 * GiB), (4 * GiB, 124 * GiB + 256 * MiB)) == 256 * MiB


def test_threads_have_directories(two_nodes, system):
    task = two_nodes.task(name="main")
    thread = task.clone()
    assert proc.listdir(system, f"/proc/{task.pid}/task") == sorted([str(task.pid), str(thread.pid)])
    assert proc.read(system, f"/proc/{task.pid}/task/{thread.pid}/comm") == "main\n"
    assert proc.find(system, f"/proc/{thread.pid}/task/{task.pid}/comm") is None
    assert "nr_switches" in proc.read(system, f"/proc/{task.pid}/sched")


def test_the_times_of_a_cpu_are_its_clock_in_lockstep():
    """A CPU that begins later has been idle until then."""
    from numaemu import Machine

    with Machine(nodes=1, cpus_per_node=2, memory_per_node="32MiB", lockstep=True) as machine:
        first = machine.task(cpu=0)
        first.sleep(40)
        second = machine.task(cpu=1)
        second.mmap("64KiB").touch()
        lines = [line.split() for line in machine.read("/proc/stat").splitlines() if line.startswith("cpu")]
        for _, user, _, kernel, idle, *_ in lines[1:]:
            assert int(idle) in (3, 4) and int(user) + int(kernel) == 0
