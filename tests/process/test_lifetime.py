"""When a machine ends: with its last reference in the driver; and what a process that the driver forks may do with it."""

import gc
import os
import subprocess
import sys
import textwrap
import weakref

import psutil
import pytest
from test_machine import alive, until

from numaemu import machine as machine_module
from numaemu.machine import Machine

SMALL = {"nodes": 1, "cpus_per_node": 1, "memory_per_node": "16MiB"}


def where(task):
    return task.cpu


def forget_one():
    machine = Machine(**SMALL)
    assert machine.run(where) == 0
    return list(machine.processes.values())


def test_a_machine_that_is_forgotten_ends():
    pids = forget_one()
    until(lambda: not alive(pids))


def test_one_whose_name_is_given_to_another_ends():
    """As when a cell of a notebook is run again."""
    machine = Machine(**SMALL)
    old = list(machine.processes.values())
    machine = Machine(**SMALL)
    until(lambda: not alive(old))
    assert machine.run(where) == 0 and alive(machine.processes.values())
    machine.close()


def test_one_in_a_cycle_ends_with_the_next_collection():
    machine = Machine(**SMALL)
    machine.itself, pids, gone = machine, list(machine.processes.values()), weakref.ref(machine)
    del machine
    gc.collect()
    assert gone() is None
    until(lambda: not alive(pids))


@pytest.mark.parametrize("hold", [lambda m: m.task(), lambda m: m.task().mmap(4096), lambda m: m.task().mmap(4096).array(),
                                  lambda m: m.task().open("/dev/shm/x", os.O_CREAT | os.O_RDWR), lambda m: m.spawn(where)])  # fmt: skip
def test_whatever_belongs_to_a_machine_keeps_it(hold):
    machine = Machine(**SMALL)
    pids = list(machine.processes.values())
    held, gone = hold(machine), weakref.ref(machine)
    del machine
    gc.collect()
    assert gone() is not None and len(alive(pids)) == 3
    if hasattr(held, "result"):
        assert held.result(60) == 0
    del held
    gc.collect()
    until(lambda: not alive(pids))


FORKS = """
    import os, sys, time, warnings
    from numaemu import Machine, MachineCheck
    warnings.simplefilter("ignore")

    def where(task):
        return task.cpu

    def attempt(what, call):
        try:
            print(what, call(), flush=True)
        except MachineCheck as error:
            print(what, "refused" if f"process {os.getppid()}, which has forked this one" in str(error) else error, flush=True)

    if __name__ == "__main__":
        machine = Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
        task, handle = machine.task(), machine.spawn(where)
        child = os.fork()
        if child == 0:
            for what, call in [("run", lambda: machine.run(where)), ("read", lambda: machine.read("/proc/meminfo")),
                               ("task", task.getrlimit), ("cpu", lambda: task.cpu), ("result", handle.result),
                               ("close", machine.close)]:
                attempt(what, call if what != "task" else lambda: task.brk())
            OWN
            sys.exit(0)
        os.waitpid(child, 0)
        print("parent", machine.run(where), task.cpu, handle.result(), flush=True)
"""


def run_script(tmp_path, text):
    script = tmp_path / "forks.py"
    script.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_a_forked_child_of_the_driver_is_refused_at_once_and_the_driver_goes_on(tmp_path):
    own = 'with Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB") as own: print("own", own.run(where), flush=True)'
    lines, err = run_script(tmp_path, FORKS.replace("OWN", own))
    assert lines == [
        *(f"{what} refused" for what in ("run", "read", "task", "cpu", "result")),
        "close None",
        "own 0",
        "parent 0 0 0",
    ]
    assert err == ""


def test_a_forked_child_does_not_keep_the_driver_s_machine(tmp_path):
    """It has the driver's descriptors, but not the stream to the coordinator."""
    script = """
        import os, time
        from numaemu import Machine
        machine = Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
        print(*machine.processes.values(), flush=True)
        child = os.fork()
        if child == 0:
            os.close(1), os.close(2)
            time.sleep(600)
        print(child, flush=True)
        os._exit(0)
    """
    lines, _ = run_script(tmp_path, script)
    until(lambda: not alive(map(int, lines[0].split())))
    os.kill(int(lines[1]), 9)


# -- forking where no thread is ------------------------------------------------------------------------------


def test_who_forks_has_no_threads():
    """Python warns from 3.12 on of a fork where there are some, of which it reads the number from a word of stat."""
    with Machine(**SMALL):
        server = machine_module.fork_server.process.pid
        assert psutil.Process(server).num_threads() == 1
        with open(f"/proc/{server}/stat") as file:
            assert file.read().split(" ")[19] == "1"
