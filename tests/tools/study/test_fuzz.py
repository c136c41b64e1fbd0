"""numaemu fuzz: schedules that find what goes wrong only when processes mix in a certain way, and repeat it."""

import pytest

from numaemu.compiler.build import JIT
from numaemu.errors import ConfigError
from numaemu.spec.topology import load_topology
from numaemu.tools import cli
from numaemu.tools.study import fuzz

pytestmark = pytest.mark.skipif(not JIT, reason="machines of processes take long without the JIT")
COUNTER = """
import numba
import numpy as np

from numaemu import MAP_ANONYMOUS, MAP_SHARED, load_u64, store_u64

MACHINE = dict(nodes=1, cpus_per_node=2, memory_per_node="16MiB")


@numba.njit(cache=True)
def up(cpu, address, times):
    for _ in range(times):
        store_u64(cpu, address, load_u64(cpu, address) + np.uint64(1))


def other(task, address, times):
    task.call(up, np.uint64(address), times)


def both(task):
    page = task.mmap(4096, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    child = task.fork(other, page.addr, TIMES, cpu=1)
    task.call(up, np.uint64(page.addr), TIMES if RACY else 0)
    child.result()
    return int(task.load([page.addr])[0])


def main(machine):
    counted = machine.run(both)
    assert counted == (1 + RACY) * TIMES, f"counted {counted}"
"""


@pytest.fixture
def workload(tmp_path):
    def make(racy, times=10):
        path = tmp_path / f"counter_{racy}.py"
        path.write_text(f"TIMES, RACY = {times}, {racy}\n" + COUNTER)
        return str(path)

    return make


def test_a_counter_without_a_lock_is_found_and_the_failure_repeats(workload, capsys):
    path = workload(1)
    assert cli.main(["fuzz", path, "--runs", "30", "--jobs", "1", "-q"]) == cli.RAISED
    told = capsys.readouterr()
    assert "AssertionError: counted " in told.err and told.out.endswith("1 failed\n")
    again = told.err[told.err.index("again: numaemu ") :].split()[2:]
    lines = set()
    for _ in range(2):
        assert cli.main([*again, "-q"]) == cli.RAISED
        lines.add(capsys.readouterr().err.splitlines()[0])
    assert lines == {told.err.splitlines()[0]}


def test_what_is_right_passes_every_schedule(workload, capsys):
    assert cli.main(["fuzz", workload(0), "--runs", "4", "--jobs", "1", "-q"]) == cli.DONE
    assert capsys.readouterr().out == "4 schedules, none failed\n"


def test_change_points_that_are_not_needed_are_left_out():
    def run(schedule):
        return fuzz.Outcome(schedule, "wrong" if "20" in schedule else "", "", 0, 0.0)

    failed = run("priorities:7:3,20,31")
    assert fuzz.minimized(failed, run, lambda text: None).schedule == "priorities:7:20"


def test_a_run_that_does_not_end_has_failed(workload, tmp_path):
    path = tmp_path / "endless.py"
    path.write_text("def main(machine):\n    while True:\n        machine.read('/proc/meminfo')\n")
    topology = load_topology(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    outcome = fuzz.run_once(str(path), [], topology, "random:1", 0, 1.0)
    assert outcome.error == "has not ended within 1 s"


def test_schedules_repeat_and_differ():
    texts = [text for text, _ in zip(fuzz.schedules(3, 2, 100), range(10))]
    assert texts == [text for text, _ in zip(fuzz.schedules(3, 2, 100), range(10))] and len(set(texts)) == 10
    assert {text.partition(":")[0] for text in texts} == {"random", "priorities"}


@pytest.mark.parametrize("schedule", ["", "random", "priorities:x", "priorities:1:", "clock:1", 7])
def test_wrong_schedules_are_refused(schedule):
    with pytest.raises(ConfigError, match="schedule is .*, must be clock, random:SEED"):
        load_topology(nodes=1, lockstep=True, schedule=schedule)


def test_a_schedule_needs_lockstep():
    with pytest.raises(ConfigError, match="must be clock where lockstep is false"):
        load_topology(nodes=1, schedule="random:1")
