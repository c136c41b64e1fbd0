"""The order in which functions are compiled, and the process that sees to it, with compilers that only pretend."""

import contextlib
import os
import select
import threading
from multiprocessing import Pipe

import pytest

from numaemu.compiler import foreman as foreman_module
from numaemu.compiler.foreman import NEVER, WANTED, Agenda, Foreman, ask
from numaemu.compiler.image import COMPLETE, Compiled, Image
from numaemu.compiler.stamp import function_stamps

# fmt: off
CALLS = {"boot": ["map", "walk"], "fault": ["walk", "alloc"], "map": ["alloc", "sqrt"], "walk": [], "alloc": ["buddy"],
         "buddy": [], "oom": []}
# fmt: on


def order(agenda):
    """Everything that is left, as it would be compiled."""
    done = []
    while symbol := agenda.next():
        done.append(symbol)
        agenda.reached(symbol, CALLS[symbol])
    return done


def agenda(done=()):
    made = Agenda(done)
    made.declare(CALLS)
    return made


def test_what_nobody_has_asked_for_comes_as_declared():
    assert order(agenda()) == list(CALLS)


def test_what_is_wanted_comes_first_then_what_it_calls():
    made = agenda()
    made.add("fault", WANTED)
    assert order(made) == ["fault", "walk", "alloc", "buddy", "boot", "map", "oom"]


def test_a_wish_overtakes_what_waits():
    made = agenda()
    made.add("boot", WANTED)
    assert made.next() == "boot"
    made.reached("boot", CALLS["boot"])
    made.add("oom", WANTED)
    made.add("walk", WANTED)
    assert order(made) == ["oom", "walk", "map", "alloc", "buddy", "fault"]


def test_nothing_is_compiled_twice():
    made = agenda(done=["alloc", "walk"])
    made.add("fault", WANTED)
    made.add("alloc", WANTED)
    made.add("alloc", NEVER)
    assert order(made) == ["fault", "boot", "map", "buddy", "oom"]


def test_what_a_first_run_needs_comes_before_what_nobody_has_asked_for():
    """And its callees after it; a name that is out of date does no harm; a wish overtakes it."""
    made = Agenda([], ["oom", "gone", "map"])
    made.declare(CALLS)
    assert made.next() == "oom"
    made.add("walk", WANTED)
    assert order(made) == ["walk", "map", "alloc", "buddy", "boot", "fault"]


def test_the_recording_of_a_first_run_is_mostly_up_to_date():
    first, there = foreman_module.first_functions(), function_stamps(foreman_module.PACKAGE).keys()
    assert len(first) == len(set(first)) > 100
    missing = sorted(set(first) - there)
    assert len(missing) < 0.1 * len(first), f"make first-functions: {missing}"


@pytest.fixture
def looked():
    """An Image class and an event that is set once one of them has been read: what comes afterwards comes after the first look."""
    event = threading.Event()

    class Watched(Image):
        def read(self):
            new = super().read()
            event.set()
            return new

    return Watched, event


def test_who_watches_learns_how_many_a_first_run_lacks(foreman, owner, tmp_path, monkeypatch, looked):
    monkeypatch.setattr(foreman_module, "first_functions", lambda: ["boot", "map", "walk", "alloc"])
    image, told = Image(tmp_path / "test.image"), []
    image.mend()
    image.append("walk", Compiled(b"kept", "walk", (), ()))
    made = foreman(owner[0])
    monkeypatch.setattr(foreman_module, "Image", looked[0])
    watcher = threading.Thread(target=foreman_module.watch_image, args=(image.path, lambda *n: told.append(n)))
    watcher.start()
    looked[1].wait()
    made.run()
    watcher.join()
    assert {total for _, total in told} == {3} and sum(n for n, _ in told) == len(CALLS) - 1


def test_who_waits_for_everything_learns_how_much_there_is(foreman, owner, monkeypatch, looked):
    monkeypatch.setattr(foreman_module, "function_stamps", lambda package: dict.fromkeys(CALLS))
    made, told = foreman(owner[0]), []
    waiter = threading.Thread(
        target=foreman_module.wait_for_all, args=(looked[0](made.image.path), lambda *n: told.append(n))
    )
    waiter.start()
    looked[1].wait()
    made.run()
    waiter.join()
    assert {total for _, total in told} == {len(CALLS)} and sum(n for n, _ in told) == len(CALLS)


def test_wishes_may_come_before_anything_is_known():
    made = Agenda([])
    made.add("walk", WANTED)
    made.declare(CALLS)
    assert made.next() == "walk"


class Pretender:
    """A compiler for CALLS in a thread; it ends, like one that was killed, at a function named in `deadly`."""

    deadly = ()

    def __init__(self, path):
        self.connection, self.theirs = Pipe()
        self.ready = self.idle = False
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self):
        with self.theirs, contextlib.suppress(EOFError, OSError):  # its foreman has gone
            self.theirs.send(list(CALLS))
            while (symbol := self.theirs.recv()) not in self.deadly:
                self.theirs.send((symbol, Compiled(symbol.encode(), symbol, (), ()), CALLS[symbol]))


@pytest.fixture
def foreman(tmp_path, monkeypatch):
    """Makes one with two pretenders: foreman(owner); all have ended afterwards."""
    monkeypatch.setattr(foreman_module, "Compiler", Pretender)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(foreman_module, "own_directory", lambda: tmp_path)
    made = []

    def make(owner, name="test.image"):
        made.append(Foreman(tmp_path / name, owner))
        return made[-1]

    yield make
    for one in made:
        os.close(one.pipe)
        one.hold.close()
        for compiler in one.compilers.values():
            compiler.connection.close()
            compiler.thread.join()


@pytest.fixture
def owner():
    """Both ends of the owner's pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):  # the test has
            os.close(end)


def test_an_image_is_completed(foreman, owner):
    made = foreman(owner[0])
    made.run()
    image = Image(made.image.path)
    assert sorted(image.read()) == sorted([*CALLS, COMPLETE]) and image.read() == []
    assert image.complete and image.functions["walk"].code == b"walk"


def test_one_who_comes_when_all_is_done_adds_nothing(foreman, owner):
    """It has waited for the lock of another, whose pipe it does not see."""
    made = foreman(owner[0])
    made.run()
    made.hold.close()
    late = foreman(owner[0])
    late.run()
    assert late.image.path.stat().st_size == made.image.end


def test_who_has_what_is_there_compiles_the_rest(foreman, owner, tmp_path):
    image = Image(tmp_path / "test.image")
    image.mend()
    image.append("walk", Compiled(b"kept", "walk", (), ()))
    foreman(owner[0]).run()
    image.read()
    assert image.functions["walk"].code == b"kept" and set(image.functions) == {*CALLS, COMPLETE}


def test_it_ends_with_its_owner(foreman, owner):
    made = foreman(owner[0])
    os.close(owner[1])
    made.run()  # takes at most the answers that are there
    assert len(made.image.functions) <= 2


def test_a_compiler_that_ends_ends_it(foreman, owner, monkeypatch):
    monkeypatch.setattr(Pretender, "deadly", ("alloc",))
    made = foreman(owner[0])
    with pytest.raises(EOFError):
        made.run()
    assert not made.image.complete and "alloc" not in made.image.functions


def test_who_asks_learns_whether_anybody_listens(foreman, owner, tmp_path):
    path = tmp_path / "test.image"
    assert not ask(path, "walk")
    made = foreman(owner[0])
    assert ask(path, "oom") and ask(path, "")
    made.take_wishes()
    assert made.agenda.next() == "oom"
    os.close(made.pipe)
    assert not ask(path, "walk")  # its name is still there, as after a kill -9
    made.pipe = os.dup(owner[0])


def test_a_new_image_takes_over_what_a_change_has_not_touched(foreman, owner, tmp_path, monkeypatch):
    monkeypatch.setattr(foreman_module, "function_stamps", lambda package: {symbol: f"of {symbol}" for symbol in CALLS})
    old, other_tools = Image(tmp_path / "release-tools-old.image"), Image(tmp_path / "release-others-old.image")
    for image in (old, other_tools):
        image.mend()
    old.append("walk", Compiled(b"kept", "walk", (), (), "of walk"))
    old.append("alloc", Compiled(b"changed", "alloc", (), (), "of what it was"))
    old.append("oom", Compiled(b"unknown", "oom", (), ()))
    made = foreman(owner[0], "release-tools-new.image")
    made.run()
    image = Image(made.image.path)
    image.read()
    assert image.complete and image.functions["walk"].code == b"kept"
    assert [image.functions[name].code for name in ("alloc", "oom")] == [b"alloc", b"oom"]
    assert image.functions["alloc"].stamp == "of alloc"
    assert not old.path.exists() and other_tools.path.exists()


def test_an_image_that_nobody_can_read_any_more_is_removed(foreman, owner, tmp_path):
    """A clone that is updated may hold an image whose records name a module that has another name now."""
    old = Image(tmp_path / "release-tools-old.image")
    old.mend()
    record = b"cnumaemu.no_such_module\nCompiled\n."
    old.path.write_bytes(old.path.read_bytes() + len(record).to_bytes(8, "little") + record)
    made = foreman(owner[0], "release-tools-new.image")
    made.run()
    assert made.image.complete and not old.path.exists()


def test_a_wish_is_told_again_when_another_listens(tmp_path, monkeypatch):
    """The one that was told has ended before it did anything: no time limit is needed to find out."""
    image, told, listeners = Image(tmp_path / "image"), [], []
    image.mend()

    def step(_seconds):
        """One look of who waits is over."""
        told.append(os.read(listeners[-1], 1000).decode() if select.select([listeners[-1]], [], [], 0)[0] else "")
        if len(told) == 3:  # it ends, and its pipe with it; the next one starts
            os.close(listeners.pop())
            listeners.append(foreman_module.listen(image.path))
        if len(told) == 6:
            image.append("walk", "its code")

    monkeypatch.setattr(foreman_module.time, "sleep", step)
    listeners.append(foreman_module.listen(image.path))
    foreman_module.wait_for(image, "walk")
    os.close(listeners.pop())
    assert told == ["walk\n", "", "", "walk\n", "", ""]
