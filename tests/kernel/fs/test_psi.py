"""/proc/pressure: what is counted as lost time, how contexts are summed up, and how the averages fade."""

import math
import re

import pytest

from numaemu import Machine
from numaemu.kernel.core import psi
from numaemu.kernel.core.loadavg import FIXED_1
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.kernel.include.mm_types import PG_workingset
from numaemu.kernel.mm.swap import swapon
from numaemu.mmu import clock_ns
from numaemu.spec.param import PAGE_SIZE

pytestmark = pytest.mark.interpreted
LINE = re.compile(r"(some|full) avg10=(\d+\.\d\d) avg60=(\d+\.\d\d) avg300=(\d+\.\d\d) total=(\d+)\n")
SECOND_NS = 1_000_000_000


def totals(text):
    """{'some': microseconds, 'full': …} of a file's text."""
    lines = LINE.findall(text)
    assert [line[0] for line in lines] == ["some", "full"] and text == "".join(m[0] for m in LINE.finditer(text))
    return {name: int(total) for name, *_, total in lines}


def read(two_nodes, name):
    return totals(proc.read(System(two_nodes.machine, two_nodes.topology), f"/proc/pressure/{name}"))


def test_nothing_is_lost_at_first(two_nodes):
    for name in ("cpu", "io", "memory"):
        assert read(two_nodes, name) == {"some": 0, "full": 0}


def test_a_task_alone_that_waits_for_the_disk_stops_its_cpu(two_nodes):
    """All of the wait is `full`; the other CPU was idle, and weighs nothing."""
    two_nodes.create_file("/data", 256 << 10)
    file = two_nodes.task(cpu=0).open("/data")
    file.pread(256 << 10, 0)
    waited = two_nodes.cpus[0].state.iowait_ns // 1000
    assert waited > 0 and read(two_nodes, "io") == {"some": waited, "full": waited}
    assert read(two_nodes, "memory") == {"some": 0, "full": 0}


def test_direct_reclaim_is_time_lost_for_memory(loopback):
    """No kernel thread of a node runs here between two steps of a task, which so has to reclaim by itself."""
    small = loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB")
    swapon.swapon(small.machine, "area", 8 << 20, kind="disk")
    task = small.task(cpu=0)
    memory = task.mmap((int(sum(zone.free_pages for zone in small.zones())) + 100) * PAGE_SIZE)
    task.write(memory.addr, bytes(range(1, 256)) * (memory.nbytes // 255))
    before = small.vmstat()
    lost, of = read(small, "memory"), psi.psi_of(small.cpus[0].state)
    assert sum(n for name, n in before.items() if name.startswith("allocstall")) > 0
    assert 0 < of.mem_some_ns == of.mem_full_ns < task.clock_ns and of.in_memstall == 0
    assert 0 < lost["full"] == lost["some"] <= task.clock_ns // 1000


def test_only_pages_that_were_in_use_are_waited_for_for_want_of_memory(two_nodes):
    cpu = two_nodes.cpus[0].state
    task = two_nodes.task(cpu=0)
    memory = task.mmap("4KiB")
    memory.touch()
    page = two_nodes.page(two_nodes.pfn(task, memory.addr))
    assert not psi.psi_thrashing_start(cpu, page)
    page.flags |= PG_workingset
    entered = psi.psi_thrashing_start(cpu, page)
    assert entered and not psi.psi_memstall_enter(cpu)  # once: the outer one counts
    cpu.clock_base_ns += 5000
    psi.psi_memstall_leave(cpu, False)
    psi.psi_memstall_leave(cpu, entered)
    page.flags ^= PG_workingset
    assert read(two_nodes, "memory") == {"some": 5, "full": 5}


def test_sleeps_that_overlap_count_once(two_nodes):
    """Two tasks of a CPU wait for the disk until 9 and 12 ms; a third one runs until 8."""
    cpu, of = two_nodes.cpus[0].state, psi.psi_of(two_nodes.cpus[0].state)
    start = int(clock_ns(cpu))
    psi.psi_memstall_enter(cpu)
    psi.psi_note_sleep(cpu)
    psi.psi_memstall_leave(cpu, True)
    assert psi.psi_sleep(cpu, start + 9_000_000) == 1  # a page that it had
    cpu.clock_base_ns += 2_000_000
    assert psi.psi_sleep(cpu, start + 12_000_000) == 0  # any other page
    assert "procs_blocked 2\n" in two_nodes.read("/proc/stat")
    cpu.clock_base_ns += 6_000_000
    psi.psi_slept(cpu, 1_000_000, 1)
    psi.psi_slept(cpu, 3_000_000, 0)
    assert "procs_blocked 0\n" in two_nodes.read("/proc/stat")
    assert (of.io_some_ns, of.mem_some_ns, of.mem_full_ns) == (12_000_000, 9_000_000, 1_000_000)
    assert cpu.iowait_ns == 4_000_000 and read(two_nodes, "io") == {"some": 12000, "full": 4000}


def test_contexts_weigh_by_their_time_that_was_not_idle(two_nodes):
    """One CPU lost half of 3 ms, the other nothing of 1: 1.5 * 3/4."""
    for cpu, busy in zip(two_nodes.cpus, (3_000_000, 1_000_000)):
        cpu.state.clock_base_ns += busy - int(clock_ns(cpu.state))
        cpu.state.idle_ns = 0
    psi.psi_of(two_nodes.cpus[0].state).mem_some_ns = 1_500_000
    assert read(two_nodes, "memory")["some"] == 1125
    assert read(two_nodes, "memory")["some"] == 1125  # nothing since


def test_averages_fade_as_told(two_nodes):
    """A quarter of each period is lost, for 60 s; then nothing, seen after 30 s more."""
    machine, group = two_nodes.machine, psi.psi_group_t.at(two_nodes.machine.psi)
    for period in range(1, 31):
        group.total[psi.PSI_MEM_SOME] += SECOND_NS // 2
        psi.update_averages(group, period * psi.PSI_PERIOD_NS)
    averages = [group.avg[psi.PSI_MEM_SOME * psi.AVERAGES + i] / FIXED_1 for i in range(psi.AVERAGES)]
    assert averages == pytest.approx([25 * (1 - math.exp(-60 / s)) for s in (10, 60, 300)], abs=0.3)
    psi.update_averages(group, 60 * SECOND_NS + 30 * SECOND_NS)
    faded = [group.avg[psi.PSI_MEM_SOME * psi.AVERAGES + i] / FIXED_1 for i in range(psi.AVERAGES)]
    assert faded == pytest.approx([a * math.exp(-30 / s) for a, s in zip(averages, (10, 60, 300))], abs=0.3)
    assert group.avg_next_update == 92 * SECOND_NS and machine.psi == group.address


def test_a_cpu_that_passes_the_end_of_a_period_sums_up(two_nodes):
    task, group = two_nodes.task(cpu=0), psi.psi_group_t.at(two_nodes.machine.psi)
    task.sleep(1999)
    assert group.avg_last_update == 0
    task.sleep(2)
    assert 2 * SECOND_NS <= group.avg_last_update <= task.clock_ns and group.avg_next_update == 4 * SECOND_NS


def run_beside(task, ms):
    """Compute so long."""
    task.work(ms * 1e6)
    return task.clock_ns


def test_tasks_that_share_a_cpu_wait_for_it():
    """While two want it one of them waits; when one is left nobody does."""
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB", lockstep=True) as machine:
        assert totals(machine.read("/proc/pressure/cpu")) == {"some": 0, "full": 0}
        tasks = [machine.spawn(run_beside, ms, cpu=0) for ms in (20, 30)]
        ends = [task.result() for task in tasks]
        lost = totals(machine.read("/proc/pressure/cpu"))
        assert lost["full"] == 0 and 0 < lost["some"] <= min(ends) // 1000
