"""Direct lines between a driver and its CPUs (process/lines.py), and what has to go by the coordinator all the same."""

import contextlib
import os
import pickle
import signal
import socket
import threading

import numba
import numpy as np
import pytest

from numaemu import MachineCheck, SegmentationFault, load_u64
from numaemu.compiler.build import JIT
from numaemu.hardware.mailbox import post
from numaemu.kernel.core.smp import MSG_NONE, MSG_WARN_ALLOC
from numaemu.machine import Machine
from numaemu.process.actor import COORDINATOR, Message
from numaemu.process.lines import Reader
from numaemu.process.wire import dumps, is_plain, send_frame

needs_processes = pytest.mark.skipif(not JIT, reason="processes")
PAGE = 4096


def line_of(machine, cpu):
    return machine._lines.lines.get(f"cpu {cpu}")


def asked(machine, monkeypatch):
    """What the driver asks the coordinator for from now on."""
    methods, request = [], machine._request

    def noted(method, *args):
        methods.append(method)
        return request(method, *args)

    monkeypatch.setattr(machine, "_request", noted)
    return methods


@needs_processes
def test_operations_do_not_go_by_the_coordinator(machine, monkeypatch):
    task = machine.task(cpu=1)
    area = task.mmap(2 * PAGE)
    methods = asked(machine, monkeypatch)
    array = area.array()
    array[3] = 7
    array[:3] = 1, 2, 3
    assert array[3] == 7 and array[:4].tolist() == [1, 2, 3, 7]
    assert task.read(area.addr, 8) == (1).to_bytes(8, "little")
    with pytest.raises(SegmentationFault, match=r"load from 0x10: .*"):
        task.load([16])
    with pytest.raises(TypeError, match="cannot pickle"):
        task.call(lambda cpu, lock: 0, threading.Lock())
    assert methods == [] and line_of(machine, 1) is not None and line_of(machine, 1) is line_of(machine, 1)
    task.exit()


@needs_processes
def test_a_task_is_found_where_it_has_moved(machine):
    task = machine.task(cpu=0)
    array = task.mmap(PAGE).array()
    array[0] = 5
    for cpu in (1, 3, 0, 2):
        task.sched_setaffinity([cpu])
        assert array[0] == 5 and task.cpu == cpu
        assert array[0] == 5 and machine._lines.cpus[task._number] == cpu
    task.exit()


@numba.njit
def wait_for_word(cpu, address):
    while load_u64(cpu, address) == 0:
        pass
    return 1


@needs_processes
def test_a_line_in_use_keeps_nobody_waiting(machine):
    """One thread's task spins until another one's, on the same CPU, has stored a word."""
    task = machine.task(cpu=2)
    area = task.mmap(PAGE).touch()
    other, answers = task.clone(cpu=2), []
    thread = threading.Thread(target=lambda: answers.append(task.call(wait_for_word, area.addr)))
    thread.start()
    while not line_of(machine, 2).lock.locked() and thread.is_alive():
        os.sched_yield()
    other.store([area.addr], 1)
    thread.join()
    assert answers == [1]
    other.exit()
    task.exit()


@needs_processes
def test_an_interrupted_operation_leaves_its_line(machine):
    task = machine.task(cpu=3)
    area = task.mmap("8MiB")
    task.load([area.addr])
    left = line_of(machine, 3)

    def interrupt(payload):
        send_frame(left.sock, payload)
        raise KeyboardInterrupt

    left.call = interrupt
    with pytest.raises(KeyboardInterrupt):
        area.touch()
    assert task.load([area.addr])[0] == 0  # before or behind the operation that goes on
    assert line_of(machine, 3) is not left and left.sock.fileno() == -1
    for _ in range(100_000):
        if task.counters()["task_minor_faults"] >= area.nbytes // PAGE:
            break
    else:
        pytest.fail("the interrupted operation was not done")
    task.exit()


@pytest.mark.interpreted
def test_what_an_operation_has_told_the_coordinator_is_done_before_the_next_request(two_nodes, monkeypatch):
    """The coordinator takes up a request of the driver's behind the mail that was there when it came, and before later mail."""
    coordinator, order = two_nodes.actors[COORDINATOR], []
    monkeypatch.setattr(coordinator, "on_warn_alloc", lambda message: order.append(message.a))
    monkeypatch.setitem(coordinator.handlers, MSG_WARN_ALLOC, coordinator.on_warn_alloc)
    mail = [coordinator.mailbox, MSG_WARN_ALLOC, 0, 0]
    post(*mail, 1, 0, 0, 0)
    post(*mail, 2, 0, 0, 0)
    coordinator.queue(lambda answer: order.append((7, answer)), pickle.dumps(("handovers", ())))
    post(*mail, 3, 0, 0, 0)
    while coordinator.fetch() != MSG_NONE:
        coordinator.dispatch(Message(*coordinator._words.tolist()))
    assert order == [1, 2, (7, 0), 3]


@needs_processes
def test_a_forked_process_has_no_line(machine):
    task = machine.task(cpu=0)
    array = task.mmap(PAGE).array()
    array[0] = 3
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            array[0] = 4
        except MachineCheck as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert b"belongs to process" in os.read(reader, 1 << 12)
    os.close(reader)
    os.close(writer)
    assert array[0] == 3
    task.exit()


@needs_processes
@pytest.mark.parametrize("victim", ["cpu 0", "cpu 1", "coordinator"])
def test_a_machine_that_dies_in_an_operation_says_why(victim):
    with Machine(nodes=1, cpus_per_node=2, memory_per_node="16MiB") as machine:
        task = machine.task(cpu=0)
        task.load([task.mmap(PAGE).addr])
        pid, call = machine.processes[victim], machine._lines.lines["cpu 0"].call

        def die_meanwhile(payload):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return call(payload)

        machine._lines.lines["cpu 0"].call = die_meanwhile
        with pytest.raises(MachineCheck, match=f"process '{victim}' .* died: signal 9"):
            while True:
                task.clock_ns


@needs_processes
def test_where_no_line_can_be_laid_the_coordinator_does_it(machine, monkeypatch):
    def refused(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(machine, "_lines", type(machine._lines)())
    monkeypatch.setattr(socket, "socket", refused)
    task = machine.task(cpu=1)
    assert task.load([task.mmap(PAGE).addr])[0] == 0 and line_of(machine, 1) is None
    task.exit()


@needs_processes
def test_files_are_read_on_a_line_of_their_own(machine, monkeypatch):
    """What is refused there is told as ever; while one thread's question is under way another one's goes by the link."""
    machine.read("/proc/uptime")
    methods = asked(machine, monkeypatch)
    assert machine.read("/proc/sys/vm/swappiness") == "60\n" and machine.files() == {}
    with pytest.raises(FileNotFoundError, match="nearest"):
        machine.read("/proc/nothing")
    with pytest.raises(TypeError, match="cannot be unpickled here"):
        machine._ask("read", Unreadable())
    assert methods == []
    with machine._lines.lines["coordinator"].lock:
        assert machine.read("/proc/sys/vm/swappiness") == "60\n"
    assert methods == ["read"]


class Unreadable:
    def __reduce__(self):
        return int, ("no number",)


@pytest.mark.interpreted
def test_frames_come_whole_however_the_host_cuts_them():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames = [b"", b"a", bytes(range(256)) * 700, b"last"]
        thread = threading.Thread(target=lambda: [send_frame(ours, frame) for frame in frames])
        thread.start()
        reader = Reader(theirs)
        assert [reader.next() for _ in frames] == frames
        thread.join()
        ours.sendall((1 << 40).to_bytes(8, "big") + b"cut off")
        ours.close()
        assert reader.next() is None


@pytest.mark.interpreted
def test_what_is_plain_is_what_python_pickles_as_it_is():
    class Number(int):
        pass

    assert all(
        map(is_plain, [1, 1.5, "a", b"b", None, True, (1, ("x", np.zeros(3))), [1, 2], np.zeros((2, 2), np.uint8)])
    )
    for odd in (Number(1), {1: 2}, len, np.uint64(1), np.zeros(2, object), [[[[1]]]], list(range(100)), lambda: 0):
        assert not is_plain(odd)
        assert dumps(odd)
