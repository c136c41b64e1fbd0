"""The machine as a whole, from the driver's side: tasks, errors, deaths, two at once."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest

from numaemu import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    PROT_READ,
    MachineCheck,
    OutOfMemory,
    SegmentationFault,
)
from numaemu.machine import Machine


@pytest.fixture(scope="module")
def machine():
    with Machine("two-socket", memory_per_node="32MiB") as machine:
        yield machine
        machine.check()


def until(condition, seconds=10.0):
    """Poll a condition that other processes bring about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


# -- tasks ---------------------------------------------------------------------------------------------------


def where_am_i(task, n):
    region = task.mmap("1MiB").touch()
    return n, task.cpu, task.node, set(region.nodes().tolist()), os.getpid()


def test_functions_run_in_the_process_of_their_cpu(machine):
    handles = [machine.spawn(where_am_i, c.id, cpu=c.id) for c in machine.cpus]
    for cpu, handle in zip(machine.cpus, handles):
        assert handle.result(30) == (cpu.id, cpu.id, cpu.node, {cpu.node}, machine.processes[f"cpu {cpu.id}"])


def test_an_interactive_task_is_the_same_from_the_driver(machine):
    task = machine.task(cpu=3, name="T0")
    array = task.mmap("64KiB").array(np.float64)
    array[:] = np.arange(len(array))
    assert array[10] == 10 and array[5:8].tolist() == [5, 6, 7] and array[[1, -1]].tolist() == [1, len(array) - 1]
    assert task.sched_setaffinity({0, 1}) == 0 and (task.cpu, task.node) == (0, 0)
    assert array[10] == 10
    task.exit()
    with pytest.raises(ProcessLookupError):
        task.mmap(4096)


def test_fork_and_clone_from_the_driver(machine):
    parent = machine.task(cpu=0)
    private, shared = parent.mmap(8192), parent.mmap(8192, flags=MAP_SHARED | MAP_ANONYMOUS)
    private.array()[0], shared.array()[0] = 1, 1
    child, thread = parent.fork(), parent.clone(cpu=2)
    child.store([private.addr, shared.addr], np.array([7, 8], np.uint64))
    assert parent.load([private.addr, shared.addr]).tolist() == [1, 8]
    thread.store([private.addr], np.uint64(9))
    assert parent.load([private.addr]).tolist() == [9] and child.load([private.addr]).tolist() == [7]
    for task in (child, thread, parent):
        task.exit()
    machine.check()


def echo(task, thing):
    return thing


def test_large_things_travel(machine):
    sent = np.arange(3_000_000, dtype=np.int64)
    assert (machine.run(echo, sent, cpu=1) == sent).all()


def test_many_tasks_share_a_cpu(machine):
    handles = [machine.spawn(where_am_i, n, cpu=1) for n in range(20)]
    assert [h.result(60)[0] for h in handles] == list(range(20))


def move_away(task):
    region = task.mmap(8192)
    region.array()[0] = 5
    task.sched_setaffinity(3)
    return task.cpu, int(region.array()[0]), region.touch().nodes().tolist()


def test_a_task_moves_with_its_memory_staying(machine):
    assert machine.run(move_away, cpu=0) == (3, 5, [0, 1])


# -- errors --------------------------------------------------------------------------------------------------


def write_read_only(task):
    region = task.mmap(8192, prot=PROT_READ)
    task.load([region.addr])
    task.store([region.addr + 8], np.uint64(1))


def load_beyond(task):
    region = task.mmap(4096)
    task.load([region.addr + 4096 * 100])


@pytest.mark.parametrize("function, text", [
    (write_read_only, r"task \d+ \(write_read_only\) on cpu 2: store to 0x[0-9a-f]+: the mapping 0x\w+-0x\w+ r--p does not"),
    (load_beyond, r"task \d+ \(load_beyond\) on cpu 2: load from 0x[0-9a-f]+: not mapped; nearest is 0x\w+-0x\w+ rw-p, \d+ "),
])  # fmt: skip
def test_a_segmentation_fault_names_address_access_and_mapping(machine, function, text):
    with pytest.raises(SegmentationFault) as caught:
        machine.run(function, cpu=2)
    assert re.match(text, str(caught.value))


def fail(task):
    raise KeyError("of the workload's own")


def test_what_a_function_raises_arrives_with_its_traceback(machine):
    with pytest.raises(KeyError) as caught:
        machine.run(fail)
    assert "in fail" in caught.value.emulated_traceback


def eat(task, nodes):
    task.set_mempolicy(MPOL_BIND, nodes)
    task.mmap("128MiB", flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE).touch()


def keep(task):
    region = task.mmap("1MiB")
    region.array()[:] = 3
    return int(region.array()[:].sum())


def test_out_of_memory_ends_one_task_and_harms_nobody(machine):
    free = machine.check()
    other = machine.task(cpu=2)
    array = other.mmap("2MiB").array()
    array[:] = 11
    for nodes in ([1], [0, 1]):
        with pytest.raises(OutOfMemory, match=r"\(eat\) on cpu 0: killed by the OOM killer .* it asked for memory"):
            machine.run(eat, nodes, cpu=0)
        assert machine.run(keep, cpu=0) == 3 * (1 << 17)
    assert (array[:] == 11).all()
    other.exit()
    after = machine.check()
    assert all(after[z]["used"] == free[z]["used"] for z in free)


def test_bad_arguments_are_refused(machine):
    with pytest.raises(ValueError, match="cpu 9 is not one of 0 to 3"):
        machine.task(cpu=9)
    task = machine.task()
    with pytest.raises(OSError) as caught:
        task.munmap(123, 4096)
    assert caught.value.errno == 22
    with pytest.raises(ProcessLookupError):
        task.kill(1, 9)
    task.exit()


def test_kill_ends_a_task_on_another_cpu(machine):
    victim, killer = machine.task(cpu=3), machine.task(cpu=0)
    victim.mmap("1MiB").touch()
    killer.kill(victim.pid, 9)
    with pytest.raises(ProcessLookupError):
        victim.brk()
    killer.exit()
    machine.check()


# -- sharing across CPUs -------------------------------------------------------------------------------------


def write_pattern(task, addr, n, seed):
    values = np.random.default_rng(seed).integers(1, 1 << 60, n, dtype=np.uint64)
    task.store(np.uint64(addr) + np.arange(n, dtype=np.uint64) * np.uint64(8), values)


def read_pattern(task, addr, n, seed):
    values = np.random.default_rng(seed).integers(1, 1 << 60, n, dtype=np.uint64)
    return bool((task.load(np.uint64(addr) + np.arange(n, dtype=np.uint64) * np.uint64(8)) == values).all())


def share_between_cpus(task, nr_cpus):
    region, n = task.mmap("256KiB", flags=MAP_SHARED | MAP_ANONYMOUS), 8192
    quarter = region.nbytes // nr_cpus
    part = n // 2 // nr_cpus
    for handle in [task.fork(write_pattern, region.addr + c * quarter, part, c, cpu=c) for c in range(nr_cpus)]:
        handle.result()
    results = [
        task.clone(read_pattern, region.addr + c * quarter, part, c, cpu=(c + 1) % nr_cpus) for c in range(nr_cpus)
    ]
    assert all(h.result() for h in results)
    region.touch(write=False)
    task.move_pages(region.pages(), 1)
    assert set(region.nodes().tolist()) == {1}
    assert read_pattern(task, region.addr, part, 0)
    task.madvise(region.addr, region.nbytes, MADV_DONTNEED)  # shared memory keeps its contents
    return read_pattern(task, region.addr + quarter, part, 1)


def test_every_cpu_reads_what_another_wrote(machine):
    assert machine.run(share_between_cpus, 4)


# -- deaths --------------------------------------------------------------------------------------------------


def spin(task):
    region = task.mmap("1MiB")
    while True:
        region.touch()


def alive(pids):
    """Which of these processes are still there, zombies aside."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [pid] * (psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return found


@pytest.mark.parametrize("victim", ["node 0", "node 1", "cpu 0", "cpu 2", "coordinator"])
def test_any_death_ends_the_machine_and_names_the_process(victim):
    machine = Machine("two-socket", memory_per_node="16MiB")
    handles = [machine.spawn(spin, cpu=c) for c in (0, 1)]
    os.kill(machine.processes[victim], signal.SIGKILL)
    for handle in handles:
        with pytest.raises(MachineCheck, match=rf"'{victim}' \(pid {machine.processes[victim]}\) died: signal 9"):
            handle.result(30)
    with pytest.raises(MachineCheck, match=victim):
        machine.read("/proc/buddyinfo")
    until(lambda: not alive(machine.processes.values()))
    machine.close()


DRIVER = """
    import sys, time
    from numaemu import Machine
    def spin(task):
        while True:
            task.mmap("1MiB").touch()
    if __name__ == "__main__":
        machine = Machine("two-socket", memory_per_node="16MiB")
        machine.spawn(spin)
        print(*machine.processes.values(), flush=True)
        time.sleep(600)
"""


def test_the_death_of_the_driver_leaves_nothing(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as driver:
        pids = [int(word) for word in driver.stdout.readline().split()]
        assert len(alive(pids)) == 7
        driver.kill()
    until(lambda: not alive(pids))


def test_two_machines_do_not_disturb_each_other():
    with Machine("uma", memory_per_node="16MiB") as one, Machine("two-socket", memory_per_node="16MiB") as two:
        arrays = [m.task().mmap("64KiB").array() for m in (one, two)]
        arrays[0][:], arrays[1][:] = 1, 2
        assert (arrays[0][:] == 1).all() and (arrays[1][:] == 2).all()
        os.kill(one.processes["cpu 0"], signal.SIGKILL)
        until(lambda: not alive(one.processes.values()))
        assert (arrays[1][:] == 2).all()
        two.check()


def test_a_busy_machine_closes_and_a_closed_one_says_so():
    machine = Machine("two-socket", memory_per_node="16MiB")
    handle = machine.spawn(spin)
    machine.close()
    with pytest.raises(MachineCheck, match="closed"):
        handle.result(10)
    with pytest.raises(MachineCheck, match="closed"):
        machine.stats()
    until(lambda: not alive(machine.processes.values()))
