"""Lockstep: the rule by which strands are picked, and that a whole machine goes the same way each time."""

import os
import signal
import subprocess
import sys
import threading
import time

import numba
import numpy as np
import pytest

from numaemu import MAP_ANONYMOUS, MAP_SHARED, Machine, load_u64, store_u64
from numaemu.compiler.build import JIT
from numaemu.errors import ConfigError, MachineCheck
from numaemu.hardware.processor import cpu_t
from numaemu.host import shm
from numaemu.kernel.core import lockstep as ls

SHAPE = dict(nodes=2, cpus_per_node=2, memory_per_node="32MiB", lockstep=True)
only_processes = pytest.mark.skipif(not JIT, reason="a machine of processes takes long without the JIT")


# -- the rule


class Rule:
    """A lockstep_t of its own, with strands that go by clocks of their own."""

    def __init__(self, quantum_ns=100, seed=0):
        self.address = shm.shared_block(ls.lockstep_t.nbytes)
        ls.init_lockstep(self.address, 4, quantum_ns, seed)
        self.lockstep = ls.lockstep_t.at(self.address)
        self.wait(ls.DRIVER)

    def go(self, number, ns):
        """A strand goes by a clock that says `ns`."""
        strand = self.lockstep.strands[number]
        ls.set_waiting(self.lockstep, number)
        strand.clocked, strand.clock_ns = 1, ns
        ls.set_ready(self.lockstep, number)

    def serve(self, number):
        ls.set_waiting(self.lockstep, number)
        self.lockstep.strands[number].clocked = 0
        ls.set_ready(self.lockstep, number)

    def wait(self, number):
        ls.set_waiting(self.lockstep, number)

    def pick(self):
        return ls.pick(self.lockstep)


def test_the_least_clock_is_first_and_the_lower_number_of_equal_ones():
    rule = Rule()
    assert rule.pick() == ls.NOBODY
    rule.go(2, 50), rule.go(3, 40)
    assert rule.pick() == 3
    rule = Rule()
    rule.go(3, 40), rule.go(2, 40)
    assert rule.pick() == 2


def test_who_has_the_slice_goes_on_until_it_is_a_quantum_ahead():
    rule = Rule(quantum_ns=100)
    rule.go(2, 0), rule.go(3, 10)
    assert rule.pick() == 2 and rule.lockstep.until_ns == 110
    for ns, first in ((109, 2), (110, 2), (111, 3)):
        rule.go(2, ns)
        assert rule.pick() == first
    assert rule.lockstep.until_ns == 211


def test_the_slice_ends_where_its_strand_waits():
    rule = Rule()
    rule.go(2, 0), rule.go(3, 10)
    assert rule.pick() == 2
    rule.wait(2)
    assert rule.pick() == 3 and rule.lockstep.until_ns == ls.FAR


def test_those_that_serve_come_first_and_take_nobody_s_slice():
    rule = Rule(quantum_ns=100)
    rule.go(2, 50), rule.go(3, 0)
    assert rule.pick() == 3
    rule.go(3, 120)  # still within its quantum
    rule.serve(1)
    assert rule.pick() == 1
    rule.wait(1)
    assert rule.pick() == 3


def test_others_run_for_a_moment_only_while_one_spins():
    rule = Rule(quantum_ns=1_000_000)
    rule.go(2, 0), rule.go(3, 500)
    rule.lockstep.strands[3].spins = 1
    assert rule.pick() == 2 and rule.lockstep.until_ns == 500 + ls.SPIN_NS


def test_a_seed_draws_who_is_first_of_equal_ones():
    firsts = set()
    for seed in range(1, 20):
        rule = Rule(seed=seed)
        rule.go(2, 7), rule.go(3, 7)
        firsts.add(rule.pick())
        assert rule.pick() == rule.pick()
    assert firsts == {2, 3}


def test_a_strand_s_number_is_given_away_again():
    rule = Rule()
    rule.lockstep.running = ls.DRIVER
    first, second = ls.new_strand(rule.address), ls.new_strand(rule.address)
    assert (first, second) == (4, 5)
    ls.drop_strand(rule.address, first)
    assert ls.new_strand(rule.address) == first


# -- a whole machine


@numba.njit(cache=True)
def count_up(cpu, address, times):
    for _ in range(times):
        store_u64(cpu, address, load_u64(cpu, address) + np.uint64(1))
    return 0


def count(task, address, times):
    task.call(count_up, np.uint64(address), times)
    return task.clock_ns


def family(task, seed):
    """A parent whose children on every CPU count up one word without any lock, and what came out of it."""
    page = task.mmap(1 << 20, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    children = [task.fork(count, page.addr, 3000, cpu=cpu) for cpu in range(4)]
    clocks = [child.result() for child in children]
    private = task.mmap("24MiB").touch()
    task.fork(lambda child, at: child.store([at], np.uint64(seed)), private.addr, cpu=3).result()
    return clocks, int(task.load([page.addr])[0]), task.clock_ns


def story(**keywords):
    with Machine(**{**SHAPE, **keywords}) as machine:
        machine.swapon("64MiB")
        handles = [machine.spawn(family, cpu, cpu=cpu) for cpu in (0, 2)]
        results = [handle.result() for handle in handles]
        shown = [machine.read(f"/proc/{name}") for name in ("vmstat", "zoneinfo", "stat", "meminfo", "slabinfo")]
        machine.check()
        return results, repr(machine.stats()), shown


@only_processes
def test_the_same_run_twice():
    assert story() == story()


@only_processes
def test_the_quantum_decides_how_counts_mix():
    """A counter without a lock loses what two CPUs add at once: the finer they mix, the more, up to a point."""
    (fine, *_), (coarse, *_) = story(quantum_ns=20_000), story(quantum_ns=1_000_000_000)
    assert {words for _, words, _ in coarse} == {12000}
    assert all(words < 12000 for _, words, _ in fine)


@only_processes
def test_clocks_are_coupled():
    """A child begins after its parent's fork, and its parent goes on after the child's end; kswapd after who woke it."""

    def parent(task):
        task.sleep(100)
        before = task.clock_ns
        began, ended = task.fork(lambda child: (child.clock_ns, child.sleep(50) or child.clock_ns), cpu=3).result()
        return before, began, ended, task.clock_ns

    with Machine(**SHAPE) as machine:
        before, began, ended, after = machine.run(parent)
        assert 100_000_000 <= before <= began and began + 50_000_000 <= ended <= after


@only_processes
def test_a_sleeper_lets_the_other_tasks_of_its_cpu_run_in_its_time():
    def sleeper(task):
        began = task.clock_ns
        task.sleep(10)
        return began, task.clock_ns

    def worker(task):
        area = task.mmap("4MiB")
        area.touch()
        return task.clock_ns

    with Machine(**SHAPE) as machine:
        handles = [machine.spawn(sleeper), machine.spawn(worker)]
        (began, ended), worked = [handle.result() for handle in handles]
        assert worked < ended and ended - began < 10_100_000


@only_processes
def test_sleepers_wake_in_the_order_of_their_times():
    def sleeper(task, ms, page):
        task.sleep(ms)
        return task.clock_ns

    with Machine(**SHAPE) as machine:
        handles = [machine.spawn(sleeper, ms, 0, cpu=cpu) for ms, cpu in ((9, 0), (3, 0), (6, 1), (1, 1))]
        ends = [handle.result() for handle in handles]
        assert ends[3] < ends[1] < ends[2] < ends[0]


@only_processes
def test_the_machine_stands_still_while_its_driver_does_something_else():
    with Machine(**SHAPE) as machine:
        handle = machine.spawn(family, 1)
        first = machine.read("/proc/vmstat")
        time.sleep(0.05)  # not for luck: whatever the machine did meanwhile would show
        assert machine.read("/proc/vmstat") == first
        handle.result()


@only_processes
def test_a_driver_that_waits_only_so_long_goes_on():
    def forever(task):
        page = task.mmap(4096).touch()
        while True:
            task.touch(page.addr, 4096)

    with Machine(**SHAPE) as machine:
        handle = machine.spawn(forever)
        with pytest.raises(TimeoutError):
            handle.result(timeout=0.2)
        assert machine.read("/proc/meminfo").startswith("MemTotal")
        other = machine.task(cpu=2)
        assert other.mmap(4096).touch()


@only_processes
def test_a_second_thread_of_the_driver_may_look():
    """As a notebook or the line of `numaemu run` does while the first one waits."""
    with Machine(**SHAPE) as machine:
        seen, done = [], threading.Event()

        def look():
            while not done.is_set():
                seen.append(machine.stats()["emulated_ns"])

        thread = threading.Thread(target=look)
        thread.start()
        results = machine.run(family, 1)
        done.set()
        thread.join()
        assert seen
    with Machine(**SHAPE) as machine:
        assert machine.run(family, 1) == results


@only_processes
def test_a_task_may_wait_for_its_children():
    def parent(task):
        pids = [task.fork(lambda child: child.sleep(5), cpu=cpu).pid for cpu in (0, 0, 3)]
        return [task.wait()[0] in pids for _ in pids], task.clock_ns

    with Machine(**SHAPE) as machine:
        first = machine.run(parent)
        assert first[0] == [True] * 3
    with Machine(**SHAPE) as machine:
        assert machine.run(parent) == first


@only_processes
def test_what_tasks_print_comes_in_one_order(capfd):
    def talker(task, name):
        for i in range(3):
            task.sleep(1)
            print(name, i)

    texts = set()
    for _ in range(2):
        with Machine(**SHAPE) as machine:
            for handle in [machine.spawn(talker, f"cpu {cpu}", cpu=cpu) for cpu in range(4)]:
                handle.result()
        texts.add(capfd.readouterr().out)
    assert len(texts) == 1 and texts.pop().count("\n") == 12


@only_processes
def test_the_death_of_a_process_is_told_and_ends_the_machine():
    machine = Machine(**SHAPE)
    handle = machine.spawn(lambda task: [task.sleep(1000) for _ in range(10**9)])
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.1)
    os.kill(machine.processes["cpu 1"], signal.SIGKILL)
    with pytest.raises(MachineCheck, match="'cpu 1'.*died: signal 9"):
        handle.result()
    machine.close()


@only_processes
def test_an_oom_kill_and_an_exception_end_as_they_do_freely():
    def eat(task):
        for _ in range(8):
            task.mmap("12MiB").touch()

    def fail(task):
        raise KeyError("mine")

    with Machine(**SHAPE) as machine:
        from numaemu.errors import OutOfMemory

        with pytest.raises(OutOfMemory):
            machine.run(eat)
        with pytest.raises(KeyError, match="mine"):
            machine.run(fail, cpu=3)
        assert machine.dmesg().count("Out of memory: Killed process") == 1
        machine.check()


@only_processes
def test_nothing_depends_on_hash_seeds_or_on_the_first_run(tmp_path):
    (tmp_path / "w.py").write_text(
        "LOCKSTEP = True\nMACHINE = dict(nodes=2, cpus_per_node=1, memory_per_node='16MiB')\n"
        "def work(task, n):\n    area = task.mmap('12MiB').touch()\n"
        "    return task.fork(lambda t: t.clock_ns, cpu=1 - n).result(), task.clock_ns\n"
        "def main(machine):\n"
        "    return [h.result() for h in [machine.spawn(work, cpu, cpu=cpu) for cpu in (0, 1)]], machine.read('/proc/vmstat')\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-m", "numaemu", "run", "-q", str(tmp_path / "w.py")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            timeout=100,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize(
    "keywords, text",
    [
        (dict(lockstep="yes"), "lockstep is 'yes', must be true or false"),
        (dict(quantum_ns=0), "quantum_ns is 0"),
        (dict(schedule_seed=-1), "schedule_seed is -1"),
    ],
)
def test_wrong_settings_are_refused_by_name(keywords, text):
    with pytest.raises(ConfigError, match=text):
        Machine(nodes=1, **keywords)


def test_clocks_only_go_forward():
    cpu = cpu_t.at(shm.shared_block(cpu_t.nbytes))
    for ns, clock in ((100, 100), (50, 100), (200, 200)):
        ls.advance_clock(cpu, ns)
        assert ls.clock_ns(cpu) == clock


@only_processes
def test_the_machine_stands_still_while_functions_of_the_driver_run():
    """machine.every: what they read is what the machine was at that moment, each time the same."""

    def curve():
        seen = []
        with Machine(**SHAPE) as machine:
            machine.every(200_000, lambda now_ns: seen.append((now_ns, machine.read("/proc/vmstat"))))
            results = [handle.result() for handle in [machine.spawn(family, cpu, cpu=cpu) for cpu in (0, 2)]]
        return results, seen

    first = curve()
    assert len(first[1]) > 10 and curve() == first
