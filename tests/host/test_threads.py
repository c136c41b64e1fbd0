"""Functions that wait have a thread each, however many they are; the host's limit is named."""

import collections
import os
import threading
import time

import pytest

from numaemu.compiler.build import JIT
from numaemu.host.threads import KEEP, Threads, current_cpu
from numaemu.machine import Machine
from numaemu.uapi import SIGKILL


@pytest.mark.interpreted
def test_functions_that_wait_for_each_other_all_run():
    threads, gate = Threads("test"), threading.Barrier(2 * KEEP)
    for _ in range(2):  # the second time in threads that are there
        done = [threads.submit(lambda n=n: gate.wait(30) and n or n) for n in range(2 * KEEP)]
        assert [future.result(30) for future in done] == list(range(2 * KEEP))
    assert threads.started <= 4 * KEEP


@pytest.mark.interpreted
def test_threads_are_used_again_and_not_all_are_kept():
    threads = Threads("test")
    for _ in range(3):
        threads.submit(threading.get_ident).result(30)
        while not threads.idle:
            time.sleep(0)
    assert threads.started == 1
    gate = threading.Event()
    done = [threads.submit(gate.wait) for _ in range(KEEP + 5)]
    gate.set()
    for future in done:
        future.result(30)
    while threads.started > KEEP:
        time.sleep(0)
    assert len(threads.idle) <= KEEP


@pytest.mark.interpreted
def test_what_a_function_raises_is_in_its_future():
    with pytest.raises(SystemExit):
        Threads("test").submit(exit).result(30)


@pytest.mark.interpreted
def test_the_host_s_limit_is_named(monkeypatch):
    threads = Threads("test")
    gate = threading.Event()
    threads.submit(gate.wait)

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="the host allows no thread beside the 1 .*RLIMIT_NPROC, pids.max"):
        threads.submit(len, "")
    gate.set()


# -- a machine -----------------------------------------------------------------------------------------------

FUNCTIONS = 300
began = []  # in the CPU's process


def child(task):
    return task.pid


def parent(task, n):
    """Wait until all are there: none of them has ended, and each needs one thread more for its child."""
    began.append(1)
    while len(began) < n:
        time.sleep(0.05)
    return task.fork(child).result()


def no_thread_more(task):
    """As if the host allowed none from now on: what a fork says, and what has become of the child."""
    start, threads = threading.Thread.start, task._site.threads

    def refuse(_):
        raise RuntimeError("can't start new thread")

    threading.Thread.start = refuse
    threads.idle = collections.deque(maxlen=0)  # those that have just finished are not kept either
    try:
        return task.fork(child).result()
    except OSError as error:
        return str(error), task.wait()[1]
    finally:
        threading.Thread.start = start


def cannot_be_pickled(task):
    try:
        return task.fork(child, threading.Lock())
    except TypeError as error:
        return str(error), task.wait()[1]


@pytest.mark.skipif(not JIT, reason="processes")
def test_a_cpu_has_as_many_functions_as_are_started():
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="256MiB") as machine:
        handles = [machine.spawn(parent, FUNCTIONS) for _ in range(FUNCTIONS)]
        assert len({handle.result(60) for handle in handles}) == FUNCTIONS
        text, status = machine.run(no_thread_more)
        assert "the host allows no thread beside" in text and status == SIGKILL
        text, status = machine.run(cannot_be_pickled)
        assert "cannot pickle" in text and status == SIGKILL
        machine.check()


def test_the_cpu_of_the_host_is_known():
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            assert current_cpu() == cpu
    finally:
        os.sched_setaffinity(0, allowed)
