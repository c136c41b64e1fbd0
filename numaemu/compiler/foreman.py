"""Compiling the kernel while it runs: a function is compiled when it is first needed, then kept in the image.

Functions call each other through linker symbols, so each can be compiled without its callees. Whoever calls one that the image
lacks asks for it through a named pipe, and waits until it is there. A process of its own reads that pipe
and hands work to compilers, one for each CPU of the host: first what somebody waits for, then what every first run needs
(first.txt), then what those functions call, then the rest, until the image is complete. They are started by the first who asks,
and end with that process.

    python -m numaemu.compiler.foreman IMAGE OWNER       (OWNER: a pipe's number; its end of stream is the owner's end)

first.txt is a recording, made by `make first-functions`: the functions that a run with an empty image has waited for, in that
order. It decides the order of compiling and the length of the progress bar, nothing else: a name that is out of date does no harm.
"""

import contextlib
import fcntl
import functools
import hashlib
import heapq
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pipe
from multiprocessing.connection import wait

import setproctitle

from numaemu.compiler.image import COMPLETE, Compiled, Failed, Image
from numaemu.compiler.stamp import function_stamps
from numaemu.host.trust import open_own, usable

MOST = 8  # compilers; each needs about 400 MB
COMPILING = "NUMAEMU_COMPILING"  # set in a compiler: it declares every function and compiles those it is told
COMPILER = "import sys; from numaemu.compiler.worker import work; work(int(sys.argv[1]), sys.argv[2])"
POLL_S = 0.002  # how often who waits looks at the image
WATCH_S = 0.1  # how often the image is looked at while it grows
FIRST_TIME = "numaemu: compiling what is needed of the kernel for the first time; this takes some seconds"
STARTS = 3  # of compilers that come to nothing, before who waits gives up
WANTED, FIRST, NEVER = 0, 1, 1 << 30  # how soon: what somebody waits for, first.txt's, what nobody has called
RECORD = os.environ.get("NUMAEMU_RECORD")  # a file that gets the name of each function that somebody has waited for

PACKAGE = pathlib.Path(__file__).parents[1]
_started = []  # (process, our end of its pipe): kept until this process ends


# --- who needs a function ---------------------------------------------------------------------------


def wait_for(image, symbol):
    """What the image holds of a function, compiled now if need be. RuntimeError: it cannot be.

    It is asked for once of each who listens: a wish that went to one that has ended meanwhile is told the next.
    """
    tries, asked = 0, None
    if RECORD:
        with open(RECORD, "a") as file:
            file.write(f"{symbol}\n")
    while symbol not in image.functions and (not image.grown() or symbol not in image.read()):
        listener = ask(image.path, "")
        if listener is None and (image.complete or tries == STARTS):
            raise RuntimeError(
                f"{symbol} cannot be compiled: "
                + (f"its compilers have ended {tries} times" if tries else "the compilers do not know it")
            )
        if listener is None:
            tries += 1
            start(image.path)
        else:
            if listener != asked:
                asked = ask(image.path, symbol)
            time.sleep(POLL_S)
    if isinstance(thing := image.functions[symbol], Failed):
        raise RuntimeError(f"{symbol} cannot be compiled:\n{thing.text}")
    return thing


def wait_for_all(image, progress):
    """Return when the image is complete. `progress(n, total)` is told when n more functions are there, of so many that were
    missing. RuntimeError: one cannot be compiled.
    """
    image.read()
    tries, total = 0, 0 if image.complete else len(function_stamps(PACKAGE).keys() - image.functions.keys())
    while not image.complete:
        if not ask(image.path, ""):
            if tries == STARTS:
                raise RuntimeError(f"the kernel cannot be compiled: its compilers have ended {tries} times")
            tries += 1
            start(image.path)
        time.sleep(10 * POLL_S)
        if new := image.read():
            tries = 0
            progress(len(new) - image.complete, total)  # its last record is no function
    for symbol in image.functions:
        wait_for(image, symbol)


def ask(path, symbol):
    """Say that a function is wanted (none: only look). Who has been told, a listener's own word; None: nobody, or there is no room
    for it now.
    """
    try:
        pipe = os.open(_pipe(path), os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # no such pipe, or nobody reads it
        return None
    try:
        if symbol:
            os.write(pipe, f"{symbol}\n".encode())  # whole, as it is short
        this = os.fstat(pipe)
        return this.st_ino, this.st_ctime_ns
    except (BlockingIOError, BrokenPipeError):
        return None
    finally:
        os.close(pipe)


def start(path):
    """Let compilers work at an image until it is complete or this process ends. Returns when they listen."""
    with open(own_directory() / "start.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # others who want to start some wait here
        if ask(path, ""):
            return
        theirs, ours = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "numaemu.compiler.foreman", str(path), str(theirs)],
            pass_fds=[theirs],
            start_new_session=True,
            env=_environment(),
        )
        os.close(theirs)
        _started.append((process, ours))
        while process.poll() is None and not ask(path, ""):
            time.sleep(POLL_S)


def stop():
    """End the compilers that this process has started."""
    while _started:
        process, ours = _started.pop()
        os.close(ours)
        with contextlib.suppress(ChildProcessError):
            process.wait()


def own_directory():
    """A directory of this user's for files that need not last, on a file system that has pipes: in the temporary directory, or
    where that is not to be trusted beside the user's other caches.
    """
    for path in (pathlib.Path(tempfile.gettempdir(), f"numaemu-{os.getuid()}"), user_directory() / "run"):
        with contextlib.suppress(OSError):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if usable(path):
                return path
    raise RuntimeError("there is no place for the pipes of compilers; TMPDIR can name one")


def user_directory():
    """Where this user's compiled code lies that cannot lie beside the sources."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "numaemu")


@functools.cache  # who waits asks hundreds of times a second
def _pipe(path):
    """Where functions of the image at `path` are asked for."""
    return own_directory() / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]}.wanted"


def _environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def first_functions():
    """The functions that a first run needs, in the order in which it does."""
    return (PACKAGE / "compiler" / "first.txt").read_text().split()


def watch_image(path, progress):
    """Tell `progress(n, total)` each time n functions have been compiled, until the image is complete; total: how many a first
    run still lacked when this began.
    """
    image = Image(path)
    image.read()
    total = len(set(first_functions()) - image.functions.keys())
    while not image.complete:
        time.sleep(WATCH_S)
        if image.grown() and (new := len(image.read()) - image.complete):  # its last record is no function
            progress(new, total)


# --- who sees to it ---------------------------------------------------------------------------------


class Agenda:
    """What is to be compiled: the nearest to what somebody waits for first, by calls; otherwise as it is declared. `first`: the
    functions that are likely to be waited for soon.
    """

    def __init__(self, done, first=()):
        self.distance, self.heap, self.number, self.first = {}, [], itertools.count(), first
        self.begun, self.symbols = set(done), None

    def declare(self, symbols):
        """What there is, the order of declaration."""
        if self.symbols is None:
            self.symbols = set(symbols)
            for symbol in self.first:
                if symbol in self.symbols:
                    self.add(symbol, FIRST)
            for symbol in symbols:
                self.add(symbol, NEVER)

    def add(self, symbol, distance):
        if distance < self.distance.get(symbol, NEVER + 1):
            self.distance[symbol] = distance
            heapq.heappush(self.heap, (distance, next(self.number), symbol))

    def reached(self, symbol, callees):
        """A function has been compiled: what it calls is as near as it is, and one more."""
        for callee in callees:
            if callee in self.symbols:
                self.add(callee, min(self.distance[symbol] + 1, NEVER))

    def next(self):
        """The function to be compiled next, or None."""
        while self.heap:
            _, _, symbol = heapq.heappop(self.heap)
            if symbol not in self.begun:
                self.begun.add(symbol)
                return symbol
        return None


class Compiler:
    """A process that compiles one function after the other."""

    def __init__(self, path):
        self.connection, theirs = Pipe()
        self.ready = self.idle = False  # it has said what there is; it has nothing to do
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMPILER, str(theirs.fileno()), str(path)],
            pass_fds=[theirs.fileno()],
            env={**_environment(), COMPILING: "1"},
        )
        theirs.close()


def listen(path):
    """The pipe through which functions are asked for."""
    pipe = _pipe(path)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    return os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # for writing too: so it has no end of stream


class Foreman:
    """The one who appends to an image, which it holds locked."""

    def __init__(self, path, owner):
        self.image, self.owner, self.hold = Image(path), owner, open_own(path)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self.hold, fcntl.LOCK_EX)  # another container may share the tree
        self.image.mend()
        self.stamps = function_stamps(PACKAGE)
        self.take_over()
        self.pipe, self.agenda = listen(path), Agenda(self.image.functions, first_functions())
        self.compilers = {}
        for _ in range(min(len(os.sched_getaffinity(0)), MOST)):
            compiler = Compiler(path)
            self.compilers[compiler.connection] = compiler

    def take_over(self):
        """Into a new image: what those of other sources hold that would be compiled as it is. They are removed."""
        prefix = self.image.path.name.rpartition("-")[0]
        for path in sorted(self.image.path.parent.glob(f"{prefix}-*.image"), key=os.path.getmtime, reverse=True):
            if path == self.image.path:
                continue
            old = Image(path)
            with contextlib.suppress(
                Exception
            ):  # a version before this one may have kept what nobody can read any more
                old.read()
            for symbol in old.functions:
                if (
                    old.holds(symbol)
                    and symbol not in self.image.functions
                    and old.functions[symbol].stamp == self.stamps.get(symbol, "")
                ):
                    self.image.append(symbol, old.functions[symbol])
            path.unlink(missing_ok=True)

    def run(self):
        """Until the image is complete, the owner has gone, or a compiler has ended: then whoever needs it starts anew."""
        while not all(compiler.idle for compiler in self.compilers.values()):
            for thing in wait([self.owner, self.pipe, *self.compilers]):
                if thing == self.owner:
                    return
                if thing == self.pipe:
                    self.take_wishes()
                else:
                    self.take_answer(self.compilers[thing])
            self.hand_out()
        if not self.image.complete:
            self.image.append(COMPLETE, None)

    def take_wishes(self):
        for symbol in os.read(self.pipe, 1 << 16).decode().split():
            self.agenda.add(symbol, WANTED)

    def take_answer(self, compiler):
        """What a compiler says: first which functions there are, then one compiled function with what it calls."""
        answer = compiler.connection.recv()
        if compiler.ready:
            symbol, thing, callees = answer
            if isinstance(thing, Compiled):
                thing = thing._replace(stamp=self.stamps.get(symbol))
            self.image.append(symbol, thing)
            self.agenda.reached(symbol, callees)
        else:
            self.agenda.declare(answer)
            compiler.ready = True
        compiler.idle = True

    def hand_out(self):
        """Work for who has none, if there is any."""
        for compiler in self.compilers.values():
            if compiler.idle and (symbol := self.agenda.next()):
                compiler.connection.send(symbol)
                compiler.idle = False


def main(path, owner):
    """The foreman's process: fill the image at `path` until it is complete or the process behind `owner` (a file
    number) has ended.
    """
    setproctitle.setproctitle("numaemu: compiling")
    foreman = Foreman(path, owner)
    try:
        foreman.run()
    except (EOFError, ConnectionError):
        sys.exit(1)  # a compiler has ended, and has said why
    finally:
        _pipe(path).unlink(missing_ok=True)
        for compiler in foreman.compilers.values():
            compiler.process.kill()
            compiler.process.wait()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
