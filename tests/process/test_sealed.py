"""What travels between processes: whatever users raise and return arrives, or an error that names it does."""

import _thread
import copyreg
import threading
from concurrent.futures import Future

import pytest

from numaemu.compiler.build import JIT
from numaemu.host import shm
from numaemu.machine import Machine
from numaemu.process import actor
from numaemu.process.actor import Outbox
from numaemu.process.wire import Failure, Sealed, failure, opened, sealed, settle


class TwoWords(Exception):
    """Pickles, and cannot be unpickled."""

    def __init__(self, one, two):
        super().__init__("two words")


class WithLock(Exception):
    def __init__(self):
        super().__init__("with a lock")
        self.lock = _thread.allocate_lock()


class Textless(Exception):
    def __init__(self):
        super().__init__()
        self.lock = _thread.allocate_lock()

    def __str__(self):
        raise ValueError("no text")


class Changeling(Exception):
    """Unpickles to something that is no exception."""

    def __reduce__(self):
        return int, ()


class Refuses(Exception):
    """Unpickles only in the process that made it; else it would end the one that tries."""

    def __reduce__(self):
        return exit, ()


# fmt: off
ODD = [(TwoWords, (1, 2), "TwoWords: two words"), (WithLock, (), "WithLock: with a lock"), (Textless, (), "Textless"),
       (Changeling, (), "Changeling"), (Refuses, (), "Refuses")]
# fmt: on


def settled(answer):
    future = Future()
    settle(future, answer)
    return future


@pytest.mark.interpreted
@pytest.mark.parametrize("kind, args, text", ODD)
def test_an_exception_that_cannot_travel_is_told_in_words(kind, args, text, monkeypatch):
    monkeypatch.delitem(copyreg.dispatch_table, kind, raising=False)  # Dask, where it runs, teaches it to travel
    future = settled(sealed(failure(kind(*args))))
    with pytest.raises(RuntimeError, match=text):
        future.result()
    assert kind.__name__ in future.exception().emulated_traceback


@pytest.mark.interpreted
def test_an_exception_that_can_travel_arrives():
    error = settled(sealed(failure(KeyError("a", 1)))).exception()
    assert type(error) is KeyError and error.args == ("a", 1) and "KeyError" in error.emulated_traceback


@pytest.mark.interpreted
def test_an_answer_that_cannot_be_pickled_says_so():
    with pytest.raises(RuntimeError, match="an answer of type lock .it cannot be pickled: TypeError: cannot pickle"):
        opened(sealed(threading.Lock()))
    with pytest.raises(RuntimeError, match="the arguments of load .it cannot be unpickled here"):
        opened(Sealed(b"no pickle", "the arguments of load"))
    with pytest.raises(RuntimeError, match="KeyError: 'known only there' .it cannot be unpickled here"):
        opened(Sealed(b"no pickle", sealed(failure(KeyError("known only there"))).what))


@pytest.mark.interpreted
def test_an_answer_that_comes_too_late_changes_nothing():
    future = settled(1)
    settle(future, 2)
    settle(future, Failure(ValueError(), ""))
    assert future.result() == 1


# -- the outbox ----------------------------------------------------------------------------------------------


@pytest.fixture
def outbox(monkeypatch):
    """A small one: (Outbox, function that hands back the block at an offset)."""
    monkeypatch.setattr(actor, "OUTBOX_BYTES", 4096)
    address = shm.shared_block(8192)

    def take(offset):
        actor.store_release(actor.i64.array(address + offset), 1, 1)

    return Outbox(address), take


@pytest.mark.interpreted
def test_a_full_outbox_waits_for_room_and_an_empty_one_takes_all_that_fits(outbox):
    box, take = outbox
    first, second = box.put(b"x" * 1000), box.put(b"x" * 1000)
    assert box.put(b"y" * 2500) is None  # not now
    take(second)
    assert box.put(b"y" * 2500) is None  # blocks come back in order
    take(first)
    whole = box.put(b"z" * (4096 - actor._HEADER))
    assert whole == 0 and box.put(b"") is None
    take(whole)
    assert box.put(b"") == 0


# -- a machine -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine():
    if not JIT:
        pytest.skip("processes")
    with Machine(nodes=1, cpus_per_node=2, memory_per_node="16MiB") as machine:
        yield machine
        machine.check()


def raise_odd(task, number):
    kind, args, _ = ODD[number]
    raise kind(*args)


def child_raises(task, number):
    return task.fork(raise_odd, number, cpu=1).result()


@pytest.mark.parametrize("function", [raise_odd, child_raises])
@pytest.mark.parametrize("number", range(len(ODD)))
def test_whatever_a_function_raises_comes_to_its_caller(machine, function, number):
    with pytest.raises(RuntimeError, match=ODD[number][2]):
        machine.run(function, number)


def give_lock(task):
    return threading.Lock()


def test_a_result_that_cannot_be_pickled_is_an_error_and_the_machine_lives(machine):
    with pytest.raises(RuntimeError, match="an answer of type lock .it cannot be pickled"):
        machine.run(give_lock)
    task = machine.task()

    def odd(cpu, number):
        raise_odd(None, number)

    for number, (_, _, text) in enumerate(ODD):
        with pytest.raises(RuntimeError, match=text):
            task.call(odd, number)
    with pytest.raises(RuntimeError, match="an answer of type lock .it cannot be pickled"):
        task.call(lambda cpu: threading.Lock())
    with pytest.raises(TypeError, match="cannot pickle"):
        task.call(lambda cpu, lock: 0, threading.Lock())
    task.exit()


class Bad:
    """Pickles in the driver, and cannot be unpickled anywhere."""

    def __reduce__(self):
        return int, ("no number",)


def test_arguments_that_cannot_be_unpickled_are_an_error_and_the_machine_lives(machine):
    task = machine.task()
    with pytest.raises(RuntimeError, match="the arguments of call .it cannot be unpickled here: ValueError"):
        task.call(len, Bad())
    with pytest.raises(TypeError, match="the arguments cannot be unpickled here: ValueError"):
        machine._ask("read", Bad())
    with pytest.raises(ValueError, match="no number"):
        machine.run(len, Bad())
    task.exit()


def give(cpu, nbytes):
    return bytes(nbytes)


def test_an_answer_that_is_too_long_names_the_limit(machine):
    """As if OUTBOX_BYTES were 1 MiB in the CPU's process."""

    def limit(cpu, nbytes):
        actor.LONGEST = nbytes

    task = machine.task(cpu=1)
    task.call(limit, 1 << 20)
    text = r"an answer of type bytes cannot be sent: MemoryError: 2097\d+ bytes are too long .* 1048576 at most .OUTBOX_BYTES"
    assert len(task.call(give, 2 << 20)) == 2 << 20  # it comes on the task's direct line, which has no outbox
    with pytest.raises(MemoryError, match=text):
        machine.run(give, 2 << 20, cpu=1)
    assert len(machine.run(give, 1 << 19, cpu=1)) == 1 << 19
    task.call(limit, actor.LONGEST)
    task.exit()
