"""Tracepoints: what they note agrees with the counters, and the files of /sys/kernel/tracing do as Linux's."""

import errno
import re

import pytest

from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.kernel.fs.tracefs.events import EVENTS, NAMES, layout
from numaemu.kernel.include import trace
from numaemu.kernel.mm.swap import swapon
from numaemu.uapi import MADV_PAGEOUT

pytestmark = pytest.mark.interpreted
ROOT = "/sys/kernel/tracing"
LINE = re.compile(r" *(.+)-(\d+) +\[(\d+)\] \.{5} +(\d+)\.(\d{6}): (\w+): (.*)")


@pytest.fixture
def system(two_nodes):
    return System(two_nodes.machine, two_nodes.topology)


def on(system, events):
    proc.write(system, f"{ROOT}/set_event", events)


def lines(system, name=None):
    """(task, pid, cpu, us, event, text) of what the rings hold."""
    rows = []
    for line in proc.read(system, f"{ROOT}/trace").splitlines():
        if not line.startswith("#"):
            task, pid, cpu, s, us, event, text = LINE.fullmatch(line).groups()
            rows.append((task, int(pid), int(cpu), int(s) * 10**6 + int(us), event, text))
    return [row for row in rows if name in (None, row[4])]


def fields(text):
    return {name: int(value, 0) for name, value in re.findall(r"(\w+)[=:](-?(?:0x)?[0-9a-f]+)\b", text)}


def test_rows_and_numbers_agree():
    """Each number in include/trace.py is the place of its row."""
    numbers = {
        value: name
        for name, value in vars(trace).items()
        if name.isupper() and isinstance(value, int) and name in UPPER
    }
    assert [numbers[i] for i in range(len(EVENTS))] == [event.name.upper() for event in EVENTS]
    assert len({event.name for event in EVENTS}) == len(EVENTS) < 1 << trace.EVENT_BITS


UPPER = {event.name.upper() for event in EVENTS}


def test_pages_are_traced_whatever_the_lists_may_hold(two_nodes, system):
    """Who frees a page looks at one mark only (zone.pcp_free_high): it follows the sysctl, and says so while frees are traced."""
    task, zones = two_nodes.task(), two_nodes.zones()

    def marks():
        return [int(zone.pcp_free_high) for zone in zones], [int(zone.pcp_list_high) for zone in zones]

    def freed():
        before = two_nodes.vmstat()["pgfree"]
        for _ in range(3):
            task.mmap("256KiB").touch().munmap()
        return two_nodes.vmstat()["pgfree"] - before

    assert marks()[0] == marks()[1] and two_nodes.machine.alloc_hooks == 0
    on(system, "kmem:mm_page_free")
    assert set(marks()[0]) == {-1} and two_nodes.machine.alloc_hooks == 0
    assert freed() == sum(1 << fields(row[5])["order"] for row in lines(system, "mm_page_free")) > 0
    for fraction in (8, 0):  # the marks are set anew
        proc.write(system, "/proc/sys/vm/percpu_pagelist_high_fraction", str(fraction))
        assert set(marks()[0]) == {-1}
    on(system, "kmem:mm_page_alloc")
    assert marks()[0] == marks()[1] and two_nodes.machine.alloc_hooks == 1
    proc.write(system, f"{ROOT}/tracing_on", "0")
    assert two_nodes.machine.alloc_hooks == 0
    proc.write(system, f"{ROOT}/tracing_on", "1")
    on(system, "")
    assert marks()[0] == marks()[1] and two_nodes.machine.alloc_hooks == 0


def test_nothing_is_noted_while_events_are_off(two_nodes, system):
    task = two_nodes.task()
    task.mmap("64KiB").touch()
    assert lines(system) == [] and proc.read(system, f"{ROOT}/set_event") == ""
    on(system, "exceptions:*")
    proc.write(system, f"{ROOT}/tracing_on", "0")
    task.mmap("64KiB").touch()
    assert lines(system) == [] and "page_fault_user" in proc.read(system, f"{ROOT}/set_event")


def test_faults_and_pages_are_those_that_are_counted(two_nodes, system):
    """An event for each fault, in its task and with its address; as many pages come and go as vmstat says."""
    task = two_nodes.task(name="T0")
    memory = task.mmap("64KiB")
    on(system, "all")
    before = two_nodes.vmstat()
    memory.touch()
    task.munmap(memory.addr, memory.nbytes)
    after = two_nodes.vmstat()
    faults = lines(system, "page_fault_user")
    assert [fields(row[5])["address"] for row in faults] == [memory.addr + i * 4096 for i in range(16)]
    assert {row[:3] for row in faults} == {("T0", task.pid, 0)}
    assert len(lines(system, "page_fault_end")) == after["pgfault"] - before["pgfault"] == 16
    assert (
        sum(1 << fields(row[5])["order"] for row in lines(system, "mm_page_free")) == after["pgfree"] - before["pgfree"]
    )
    allocated = {fields(row[5])["pfn"] for row in lines(system, "mm_page_alloc")}
    assert {fields(row[5])["pfn"] for row in lines(system, "mm_page_free")} <= allocated and len(allocated) >= 16
    times = [row[3] for row in lines(system)]
    assert times == sorted(times)


def test_switches(two_nodes, system):
    one, two = two_nodes.task(name="one"), two_nodes.task(name="two")
    on(system, "sched")
    one.brk(), two.brk(), one.sleep(5)
    rows = [row[5] for row in lines(system, "sched_switch")]
    assert f"next_comm=one next_pid={one.pid} next_prio=120" in rows[0]
    assert (
        f"prev_comm=one prev_pid={one.pid} prev_prio=120 prev_state=S ==> next_comm=two next_pid={two.pid}" in rows[1]
    )
    assert rows[-1].endswith("==> next_comm=swapper next_pid=0 next_prio=120")
    pid = one.pid
    one.exit()
    assert any(f"next_comm=one next_pid={pid}" in row[5] for row in lines(system, "sched_switch"))  # it has gone


def test_a_shootdown_and_its_answer(two_nodes, system):
    task = two_nodes.task(cpu=0)
    thread = task.clone(cpu=1)
    memory = task.mmap("8KiB")
    memory.touch()
    thread.touch(memory.addr, memory.nbytes)
    on(system, "tlb:*,numaemu:shootdown_end")
    task.munmap(memory.addr, memory.nbytes)
    rows = lines(system)
    sent = [row for row in rows if "remote ipi send (4)" in row[5]]
    assert len(sent) == 1 and sent[0][2] == 0 and [row[4] for row in rows].count("shootdown_end") == 1


def test_reclaim_begins_and_ends(two_nodes, system):
    """kswapd wakes and sleeps, direct reclaim tells what it got, lists are scanned: as vmstat has it."""
    swapon.swapon(two_nodes.machine, "area", 64 << 20)
    task = two_nodes.task()
    on(system, "vmscan,migrate")
    before = two_nodes.vmstat()
    memory = task.mmap("8MiB")
    memory.touch()
    task.madvise(memory.addr, memory.nbytes, MADV_PAGEOUT)
    after = two_nodes.vmstat()
    names = [row[4] for row in lines(system)]
    assert names.count("mm_vmscan_direct_reclaim_begin") == names.count("mm_vmscan_direct_reclaim_end")
    assert names.count("mm_vmscan_kswapd_wake") == names.count("mm_vmscan_kswapd_sleep")
    stolen = sum(fields(row[5])["nr_reclaimed"] for row in lines(system, "mm_vmscan_lru_shrink_inactive"))
    assert stolen == sum(after[f"pgsteal_{who}"] - before[f"pgsteal_{who}"] for who in ("kswapd", "direct"))


def test_compaction(two_nodes, system):
    task = two_nodes.task()
    memory = task.mmap("1MiB")
    memory.touch()
    for i in range(0, 256, 2):
        task.munmap(memory.addr + i * 4096, 4096)
    on(system, "compaction:*,migrate:*")
    before = two_nodes.vmstat()
    two_nodes.write("/proc/sys/vm/compact_memory", "1")
    after = two_nodes.vmstat()
    names = [row[4] for row in lines(system)]
    assert names.count("mm_compaction_begin") == names.count("mm_compaction_end") > 0
    assert (
        sum(fields(row[5])["nr_succeeded"] for row in lines(system, "mm_migrate_pages"))
        == after["pgmigrate_success"] - before["pgmigrate_success"]
    )
    taken = sum(fields(row[5])["nr_taken"] for row in lines(system, "mm_compaction_isolate_migratepages"))
    assert taken == after["compact_isolated"] - before["compact_isolated"]


# -- files ---------------------------------------------------------------------------------------------------


def test_choosing_events(system):
    assert proc.read(system, f"{ROOT}/available_events").split() == NAMES
    on(system, "tlb:tlb_flush sched_switch")
    assert proc.read(system, f"{ROOT}/set_event") == "tlb:tlb_flush\nsched:sched_switch\n"
    on(system, "!sched:*")
    assert proc.read(system, f"{ROOT}/set_event") == "tlb:tlb_flush\n"
    proc.write(system, f"{ROOT}/events/kmem/enable", "1")
    states = [
        proc.read(system, f"{ROOT}/events{place}/enable") for place in ("", "/kmem", "/kmem/mm_page_free", "/vmscan")
    ]
    assert states == ["X\n", "1\n", "1\n", "0\n"]
    proc.write(system, f"{ROOT}/events/enable", "0")
    assert proc.read(system, f"{ROOT}/set_event") == ""
    for path, text in (("set_event", "kmem:nix"), ("tracing_on", "2"), ("options/overwrite", ""), ("set_event_pid", "x"),
                       ("set_event_nodes", "9-x"), ("events/enable", "yes")):  # fmt: skip
        with pytest.raises(OSError) as caught:
            proc.write(system, f"{ROOT}/{path}", text)
        assert caught.value.errno == errno.EINVAL


def test_filters(two_nodes, system):
    one, two = two_nodes.task(cpu=0), two_nodes.task(cpu=1)
    on(system, "exceptions:*")
    proc.write(system, f"{ROOT}/set_event_pid", str(one.pid))
    for task in (one, two):
        task.mmap("8KiB").touch()
    assert {row[1] for row in lines(system)} == {one.pid} and proc.read(
        system, f"{ROOT}/set_event_pid"
    ) == f"{one.pid}\n"
    proc.write(system, f"{ROOT}/set_event_pid", "")
    proc.write(system, f"{ROOT}/trace", "")
    proc.write(system, f"{ROOT}/set_event_nodes", "1")
    for task in (one, two):
        task.mmap("8KiB").touch()
    assert {row[1:3] for row in lines(system)} == {(two.pid, 1)} and proc.read(
        system, f"{ROOT}/set_event_nodes"
    ) == "1\n"


def test_a_full_ring(two_nodes, system):
    """It overwrites its oldest events, or takes no more and says how many were lost."""
    task, ring = two_nodes.task(), trace.trace_t.array(two_nodes.machine.traces)[0]
    memory = task.mmap("64KiB")
    on(system, "exceptions:page_fault_user")
    ring.count = ring.read = trace.TRACE_RECORDS - 4
    memory.touch()
    assert len(lines(system)) == 16 and ring.count == trace.TRACE_RECORDS + 12
    assert "overrun: 12\n" in proc.read(system, f"{ROOT}/per_cpu/cpu0/stats")
    proc.write(system, f"{ROOT}/trace", "")
    proc.write(system, f"{ROOT}/options/overwrite", "0")
    ring.count, ring.read = trace.TRACE_RECORDS - 4, 0
    ring.records.as_numpy()["seq"][:-4] = range(1, trace.TRACE_RECORDS - 3)  # as if they were written
    task.mmap("64KiB").touch()
    assert ring.count == trace.TRACE_RECORDS and ring.lost == 12
    text = proc.read(system, f"{ROOT}/trace_pipe")
    assert text.startswith("CPU:0 [LOST 12 EVENTS]\n") and text.count("\n") == trace.TRACE_RECORDS + 1
    assert proc.read(system, f"{ROOT}/trace_pipe") == ""
    task.mmap("4KiB").touch()
    assert proc.read(system, f"{ROOT}/trace_pipe").count("\n") == 1


def test_a_record_that_is_not_whole_is_left_out(two_nodes, system):
    """And trace_pipe waits for it, so that it is not lost."""
    task, ring = two_nodes.task(), trace.trace_t.array(two_nodes.machine.traces)[0]
    on(system, "exceptions:page_fault_user")
    task.mmap("12KiB").touch()
    ring.records[1].seq = 0  # as if its writer were not done
    assert len(lines(system)) == 2 and proc.read(system, f"{ROOT}/trace_pipe").count("\n") == 1
    ring.records[1].seq = 2
    assert proc.read(system, f"{ROOT}/trace_pipe").count("\n") == 2


@pytest.mark.parametrize("event", EVENTS, ids=NAMES)
def test_formats(system, event):
    """Fields do not overlap, and the text is made of them."""
    text = proc.read(system, f"{ROOT}/events/{event.system}/{event.name}/format")
    found = re.findall(r"field:([^;]+);\toffset:(\d+);\tsize:(\d+);\tsigned:([01]);", text)
    end = 0
    for _, at, size, _ in found:
        assert int(at) >= end and int(at) % min(int(size), 8) == 0
        end = int(at) + int(size)
    assert end <= layout(event)[1]
    names = {declared.split()[-1].partition("[")[0] for declared, *_ in found}
    shown = re.findall(r"REC->(\w+)", text)
    assert set(shown) <= names and len(shown) == len(re.findall(r"%[^%]", event.text))
    assert proc.read(system, f"{ROOT}/events/{event.system}/{event.name}/id") in text.replace("ID: ", "\n")
