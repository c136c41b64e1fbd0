"""A machine that has lost a process, or has panicked: each use of it says why, in an error of its own, and nothing else does."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import pytest

from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, MachineCheck
from numaemu.compiler.build import JIT
from numaemu.machine import Machine, fork_server

pytestmark = pytest.mark.skipif(not JIT, reason="processes")


def spin(task, started=None):
    region = task.mmap("1MiB")
    while True:
        region.touch()


def sleep(task, seconds):
    time.sleep(seconds)


def small():
    return Machine(nodes=1, cpus_per_node=2, memory_per_node="16MiB")


def uses(machine, task, handle):
    """Ways to use a machine."""
    return [
        lambda: machine.run(spin),
        lambda: machine.spawn(spin),
        machine.task,
        lambda: machine.read("/proc/meminfo"),
        lambda: task.mmap(4096),
        lambda: task.cpu,
        task.counters,
        machine.check,
        machine.stats,
        machine.settle,
        handle.result,
        handle.result,
        lambda: machine.create_file("/mnt/a", 4096),
    ]


def assert_dead(machine, task, handle, text):
    """Each use raises an error of its own, no longer than the last one, that names the cause."""
    seen, lengths = [], set()
    for _ in range(2):
        for use in uses(machine, task, handle):
            with pytest.raises(MachineCheck, match=text) as caught:
                use()
            assert "\n" not in str(caught.value)
            seen.append(caught.value)
        lengths.add(len("".join(traceback.format_exception(seen[-1]))))
    assert len(lengths) == 1
    assert len({id(error) for error in seen}) >= len(seen) - 3  # one for a handle's function, however often asked
    assert "dead: " in repr(machine) and str(machine.death) in repr(machine)


@pytest.mark.parametrize("victim", ["cpu 1", "node 0", "coordinator", "fork server"])
def test_a_dead_machine_says_why_each_time_it_is_used(victim, capfd):
    machine = small()
    try:
        task, handle = machine.task(), machine.spawn(spin, cpu=1)
        text = rf"emulator process '{victim}' .pid \d+. died: signal 9"
        if victim == "fork server":
            os.kill(fork_server.process.pid, signal.SIGKILL)
            text = r"emulator process 'coordinator' .pid \d+. died: (the fork server died: )?signal 9"
        else:
            os.kill(machine.processes[victim], signal.SIGKILL)
        with pytest.raises(MachineCheck, match=text):
            handle.result(30)
        assert_dead(machine, task, handle, text)
    finally:
        machine.close()
    assert "dead: " in repr(machine)
    assert capfd.readouterr() == ("", "")
    with small() as another:  # a new fork server, if need be
        assert another.read("/proc/meminfo")


def fill(task):
    task.mmap("64MiB", flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE).touch()


def test_a_panic_is_what_every_later_use_names(capfd):
    machine = small()
    task, handle = machine.task(), machine.spawn(sleep, 600, cpu=1)
    machine.write("/proc/sys/vm/panic_on_oom", 1)
    with pytest.raises(
        MachineCheck, match="Kernel panic - not syncing: Out of memory: system-wide panic_on_oom is enabled"
    ):
        machine.run(fill)
    assert_dead(machine, task, handle, "Kernel panic - not syncing: Out of memory")
    machine.close()
    assert capfd.readouterr() == ("", "")


def test_whom_a_cpu_ran_is_said_also_between_operations():
    """Nothing has been done for the emulated machine yet, or no operation is under way."""
    for tasks, text in (
        (0, r"no task was running on it"),
        (1, r"between operations of task \d+ .sleep."),
        (5, r"between operations of tasks (\d+ .sleep., ){2}\d+ .sleep. and 2 more"),
    ):
        machine = small()
        handles = [machine.spawn(sleep, 600, cpu=1) for _ in range(tasks)]
        os.kill(machine.processes["cpu 1"], signal.SIGKILL)
        with pytest.raises(MachineCheck, match=rf"'cpu 1' .* died: signal 9 .{text}."):
            (handles[0] if handles else machine.spawn(sleep, 600)).result(30)
        machine.close()


def test_threads_that_wait_each_get_an_error_of_their_own():
    machine = small()
    handle, seen = machine.spawn(spin), []

    def ask():
        try:
            while True:
                machine.read("/proc/meminfo")
        except MachineCheck as error:
            seen.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    os.kill(machine.processes["node 0"], signal.SIGKILL)
    for thread in threads:
        thread.join(30)
    with pytest.raises(MachineCheck, match="node 0"):
        handle.result(30)
    assert len({id(error) for error in seen}) == 4 and len({str(error) for error in seen}) == 1
    machine.close()


# -- printing ------------------------------------------------------------------------------------------------

PRINTING = """
    import sys
    from numaemu import Machine
    def talk(task, n):
        for i in range(n):
            print(task.pid, "x" * 40)
        return n
    if __name__ == "__main__":
        with Machine(nodes=1, cpus_per_node=2, memory_per_node="16MiB") as machine:
            runs = [machine.spawn(talk, 20000, cpu=cpu % 2) for cpu in range(4)]
            print("now", file=sys.stderr, flush=True)
            reads = 0
            while not all(run.done() for run in runs) or reads < 20:
                machine.read("/proc/meminfo")
                reads += 1
            print("done", sum(run.result() for run in runs), file=sys.stderr, flush=True)
            machine.check()
"""


def test_a_flood_of_printed_lines_hangs_nobody_and_loses_none(tmp_path):
    """Nobody reads at first: the tasks wait, the machine answers nobody in the end, but all goes on when somebody reads."""
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(PRINTING))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as driver:
        assert driver.stderr.readline() == "now\n"
        lines = driver.stdout.read().splitlines()
        assert driver.stderr.read() == "done 80000\n" and driver.wait(60) == 0
    assert len(lines) == 80000 and len(set(lines)) == 4


def talk(task, text, n):
    for _ in range(n):
        print(text)


def test_what_was_printed_is_there_before_the_result(capfd):
    with small() as machine:
        for n in (1, 3000):
            machine.run(talk, "here", n, cpu=1)
            assert capfd.readouterr().out == "here\n" * n
