"""Real machines, end to end: processes, shared memory, shootdowns and migration under load, and their end."""

import os
import signal

import numpy as np
import psutil
import pytest

from numaemu import MachineCheck, SegmentationFault
from numaemu.machine import Machine
from numaemu.uapi import MAP_ANONYMOUS, MAP_SHARED, MPOL_MF_MOVE_ALL


def fill(task, addr, pages, seed):
    """Write a pattern, read it back through an array of indices."""
    where = np.uint64(addr) + np.arange(pages, dtype=np.uint64) * np.uint64(4096)
    task.store(where, np.arange(pages, dtype=np.uint64) * np.uint64(1000) + np.uint64(seed))
    return where


def right(task, where, seed):
    return task.load(where).tolist() == [1000 * i + seed for i in range(len(where))]


def churn(task, rounds):
    """Map, fill, verify and unmap again and again; wrong words."""
    wrong = 0
    for i in range(rounds):
        area = task.mmap("256KiB")
        where = fill(task, area.addr, 64, i)
        wrong += not right(task, where, i)
        area.munmap()
    return wrong


def test_every_cpu_at_once(machine):
    handles = [machine.spawn(churn, 20, cpu=cpu) for cpu in range(4)]
    assert [handle.result(60) for handle in handles] == [0] * 4
    machine.check()


def share(task):
    """Threads on every other CPU rewrite their part of one mapping while this one moves its pages to and fro."""
    area = task.mmap("128KiB", flags=MAP_SHARED | MAP_ANONYMOUS)
    threads = [task.clone(rewrite, area.addr + cpu * 32768, cpu, cpu=cpu) for cpu in (1, 2, 3)]
    for i in range(20):
        task.move_pages(area.pages(), i % 2, flags=MPOL_MF_MOVE_ALL)
    return [thread.result(60) for thread in threads]


def rewrite(task, addr, seed):
    wrong = 0
    for i in range(20):
        wrong += not right(task, fill(task, addr, 8, seed + i), seed + i)
    return wrong


def test_pages_move_under_their_writers(machine):
    assert machine.run(share, cpu=0) == [0, 0, 0]
    machine.check()


def test_a_shootdown_reaches_a_thread_on_another_cpu(machine):
    task = machine.task(cpu=0)
    area = task.mmap("8KiB").touch()
    thread = task.clone(cpu=3)
    thread.load(area.pages())
    task.munmap(area.addr, 4096)
    with pytest.raises(SegmentationFault, match="not mapped"):
        thread.load([area.addr])
    assert thread.load([area.addr + 4096]).tolist() == [0]
    thread.exit()
    task.exit()


def test_an_interactive_fork_copies_on_write(machine):
    task = machine.task(cpu=0)
    area = task.mmap("4KiB")
    task.write(area.addr, b"parent")
    child = task.fork(cpu=2)
    child.write(area.addr, b"child!")
    assert (task.read(area.addr, 6), child.read(area.addr, 6)) == (b"parent", b"child!")
    child.exit()
    task.exit()
    machine.check()


def test_two_machines_do_not_disturb_each_other(machine):
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB") as other:
        tasks = [machine.task(cpu=0), other.task(cpu=0)]
        areas = [task.mmap("4KiB") for task in tasks]
        for i, (task, area) in enumerate(zip(tasks, areas)):
            task.write(area.addr, bytes([i + 1]))
        assert [task.read(area.addr, 1) for task, area in zip(tasks, areas)] == [b"\1", b"\2"]
        other.check()
    tasks[0].exit()


@pytest.mark.parametrize("victim", ["cpu 0", "node 1", "coordinator"])
def test_a_killed_process_ends_the_machine_and_is_named(victim):
    machine = Machine(nodes=2, cpus_per_node=1, memory_per_node="16MiB")
    processes = [psutil.Process(pid) for pid in machine.processes.values()]
    task = machine.task(cpu=0)
    os.kill(machine.processes[victim], signal.SIGKILL)
    with pytest.raises(MachineCheck, match=victim):
        while True:
            task.mmap("4KiB").touch()
    machine.close()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
