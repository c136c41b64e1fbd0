"""Locks and messages between processors: in every order of their steps, nobody shut out, nobody waiting where others wait for it."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import i64
from numaemu.hardware.mailbox import MAILBOX_SLOTS, fetch, post
from numaemu.kernel.core import smp
from numaemu.kernel.core.smp import (
    FULL,
    MSG_DRAIN,
    PHASE,
    READER_WAITS,
    WRITER,
    WRITER_WAITS,
    mailbox_of,
    read_lock,
    read_trylock,
    read_unlock,
    send,
    write_lock,
    write_unlock,
)

pytestmark = pytest.mark.interpreted
interpreted_only = pytest.mark.skipif(JIT, reason="puts steps of others into a Python function")


@pytest.fixture
def word(monkeypatch):
    """A lock word; nobody who waits for it has a clock."""
    monkeypatch.setattr(smp, "take_over", lambda _cpu, _tries: None)
    memory = np.zeros(1, np.int64)
    yield int(memory.ctypes.data), memory


# -- the lock of readers and writers -------------------------------------------------------------------------


def test_a_lock_is_given_back_by_each_that_has_it(word):
    lock, value = word
    for _ in range(3):
        assert read_trylock(lock) and read_trylock(lock) and value[0] == 2
        read_unlock(lock), read_unlock(lock)
        assert value[0] == 0


@interpreted_only
def test_steady_readers_do_not_starve_a_writer(word, monkeypatch):
    """There is always a reader, as one comes before the last one goes."""
    lock, value = word
    readers, looks = [object()], [0]
    read_lock(None, lock)

    class Turned(Exception):
        pass

    def turned_away(*_):
        raise Turned

    def others(_cpu, tries):
        looks[0] += 1
        assert looks[0] < 2 * smp.PATIENCE, "readers go on coming, and the writer waits for ever"
        monkeypatch.setattr(smp, "relax", turned_away)
        try:
            read_lock(None, lock)
            readers.append(object())
        except Turned:
            pass
        monkeypatch.setattr(smp, "relax", others)
        if readers:
            readers.pop()
            read_unlock(lock)

    monkeypatch.setattr(smp, "relax", others)
    write_lock(None, lock)
    assert value[0] & ~PHASE == WRITER and not readers
    write_unlock(lock)
    assert value[0] & ~PHASE == 0


@interpreted_only
def test_steady_writers_do_not_starve_a_reader(word, monkeypatch):
    """Two writers, each back before the other has gone; the one that finds the reader waiting leaves it the lock."""
    lock, value = word
    looks = [0]
    write_lock(None, lock)
    value[0] += WRITER_WAITS  # the other one has waited for long

    def others(_cpu, tries):
        looks[0] += 1
        assert looks[0] < 2 * smp.PATIENCE, "writers go on coming, and the reader waits for ever"
        if value[0] < 0:
            write_unlock(lock)
        if value[0] >= 0 and value[0] & 0xFFFF == 0:  # the other one's turn, and this one waits again
            value[0] = value[0] | WRITER

    monkeypatch.setattr(smp, "relax", others)
    read_lock(None, lock)
    assert value[0] == 1 + WRITER_WAITS + PHASE


@interpreted_only
def test_a_reader_that_must_not_wait_is_let_in_beside_writers_that_wait(word):
    lock, value = word
    read_lock(None, lock)
    value[0] += WRITER_WAITS
    assert read_trylock(lock)
    value[0] = WRITER
    assert not read_trylock(lock) and value[0] == WRITER


class Steps:
    """Lets one of several threads do its next atomic operation at a time, as a list of choices says."""

    def __init__(self, choices):
        self.choices, self.at = choices, 0
        self.ready, self.running, self.turn = [], 0, threading.Condition()

    def step(self):
        me = threading.get_ident()
        with self.turn:
            self.running -= 1
            self.ready.append(me)
            self.next()
            self.turn.wait_for(lambda: self.allowed == me)
            self.allowed, self.running = None, self.running + 1

    def next(self):
        """When everybody has come to a step, choose one."""
        if self.running == 0 and self.ready:
            choice = self.choices[self.at] if self.at < len(self.choices) else self.at
            self.at += 1
            self.allowed = self.ready.pop(choice % len(self.ready))
            self.turn.notify_all()

    def run(self, functions):
        self.running, self.allowed = len(functions), None

        def live(function):
            function()
            with self.turn:
                self.running -= 1
                self.next()

        threads = [threading.Thread(target=live, args=(function,)) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return not any(thread.is_alive() for thread in threads)


@interpreted_only
@settings(max_examples=25)
@given(kinds=st.lists(st.sampled_from("rw"), min_size=2, max_size=4), choices=st.lists(st.integers(0, 3), max_size=120),
       patience=st.integers(0, 3))  # fmt: skip
def test_in_every_order_of_steps_a_writer_is_alone_and_all_come_to_the_end(kinds, choices, patience):
    memory = np.zeros(1, np.int64)
    lock, inside, wrong, steps = int(memory.ctypes.data), [], [], Steps(choices)

    def stepwise(function):
        def operation(*args):
            steps.step()
            return function(*args)

        return operation

    def live(kind):
        for _ in range(2):
            (read_lock if kind == "r" else write_lock)(None, lock)
            inside.append(kind)
            if "w" in inside and len(inside) > 1:
                wrong.append(list(inside))
            steps.step()
            inside.remove(kind)
            (read_unlock if kind == "r" else write_unlock)(lock)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_acquire", "compare_exchange", "fetch_add"):
            patch.setattr(smp, name, stepwise(getattr(smp, name)))
        patch.setattr(smp, "PATIENCE", patience)
        patch.setattr(smp, "relax", lambda *_: None)
        patch.setattr(smp, "take_over", lambda *_: None)
        ended = steps.run([lambda kind=kind: live(kind) for kind in kinds])
    assert ended and not wrong and memory[0] & ~PHASE == 0


def test_the_fields_of_a_lock_hold_every_context():
    from numaemu.spec.param import MAX_CPUS, MAX_NODES

    assert MAX_CPUS + MAX_NODES < READER_WAITS == WRITER_WAITS // READER_WAITS == PHASE // WRITER_WAITS


# -- messages ------------------------------------------------------------------------------------------------


@interpreted_only
def test_a_cpu_inside_waits_outside_while_a_mailbox_is_full(two_nodes, monkeypatch):
    """A shootdown of it may be what the receiver waits for."""
    machine, cpu = two_nodes.machine, two_nodes.cpu(0)
    node, words = mailbox_of(machine, 1), np.zeros(7, np.int64)
    while post(node, MSG_DRAIN, 0, 0, 0, 0, 0, 0) != FULL:
        pass
    assert node.tail - node.head == MAILBOX_SLOTS
    seen = []

    def one_is_read(*_):
        seen.append(int(cpu.inside))
        if len(seen) == 3:
            fetch(node, i64.array(words.ctypes.data))

    machine.on_wait = two_nodes._callback(one_is_read)
    cpu.inside = 1
    send(cpu, 1, MSG_DRAIN, 0, 7, 0, 0, 0)
    assert seen == [0, 0, 0] and cpu.inside == 1 and node.tail - node.head == MAILBOX_SLOTS
    cpu.inside = 0
    two_nodes.ring(1)
    assert node.tail == node.head
