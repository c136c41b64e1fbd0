"""What travels between processes as bytes: pickled things, answers that may be failures, frames on a socket."""

import collections
import importlib
import io
import pickle
import socket
import struct
import sys
import threading
import traceback
from concurrent.futures import InvalidStateError
from typing import NamedTuple

import cloudpickle
import numpy as np

from numaemu.compiler.user_kernels import compiled_anew, itself
from numaemu.errors import note


class Failure(NamedTuple):
    """What a call that raised answers with: the exception and where it happened, for the other side."""

    error: BaseException
    where: str


class StaysHere(TypeError):
    """Something of an emulated machine is about to be pickled that means nothing in another process."""


class Pickler(cloudpickle.Pickler):
    """cloudpickle, with Numba functions by name where they can be imported and by their source elsewhere."""

    def __init__(self, file, outer=()):
        super().__init__(file, protocol=5)
        self.outer = outer  # ids of the compiled functions whose contents this is

    def reducer_override(self, thing):
        """Compiled functions travel by name where that finds them, else as their Python function. StaysHere for what
        belongs to one process.
        """
        if advice := getattr(type(thing), "stays_here", None):
            raise StaysHere(
                f"{thing!r} cannot go to another process, as what a function uses, an argument or a result: {advice}"
            )
        if type(thing).__module__.startswith("numba.") and hasattr(thing, "py_func"):
            function = thing.py_func
            module = sys.modules.get(function.__module__)
            if function.__module__ != "__main__" and getattr(module, function.__qualname__, None) is thing:
                return _by_name, (function.__module__, function.__qualname__)
            options = {k: v for k, v in thing.targetoptions.items() if k not in ("cache", "nopython", "nogil")}
            if id(thing) in self.outer:  # it calls itself
                return itself, (function, options)
            return compiled_anew, (dumps(function, {*self.outer, id(thing)}), options)
        return super().reducer_override(thing)


def _by_name(module, name):
    return getattr(importlib.import_module(module), name)


_PLAIN = {type(None), bool, int, float, str, bytes}
PLAIN_ITEMS = 16  # of a tuple or list that is looked at; assumed


def is_plain(thing, depth=2):
    """True for what Python's own pickler takes as it is, at a glance: numbers, texts, arrays of numbers, a few of these together."""
    kind = type(thing)
    if kind in _PLAIN:
        return True
    if kind is tuple or kind is list:
        if depth == 0 or len(thing) > PLAIN_ITEMS:
            return False
        for item in thing:
            if not is_plain(item, depth - 1):
                return False
        return True
    return kind is np.ndarray and thing.dtype.kind in "uifb" or kind is Sealed


def dumps(thing, outer=()):
    """Pickle anything that may travel: also functions of a notebook, and compiled ones."""
    if is_plain(thing):
        return pickle.dumps(thing, protocol=5)
    buffer = io.BytesIO()
    try:
        Pickler(buffer, outer).dump(thing)
    except StaysHere as error:
        raise TypeError(str(error)) from None  # where in the pickler does not matter
    return buffer.getvalue()


class Sealed(NamedTuple):
    """Arguments or an answer of a user's on their way, pickled: only who they are for opens them."""

    body: bytes
    what: str

    def open(self):
        """What is inside, or the Failure to find out."""
        try:
            return pickle.loads(self.body)
        except BaseException as error:
            return failure(RuntimeError(f"{self.what} (it cannot be unpickled here: {in_words(error)})"))


def sealed(answer):
    """Anything as Sealed; what cannot be pickled is a Failure that says so."""
    if isinstance(answer, Sealed):
        return answer
    what = in_words(answer.error) if isinstance(answer, Failure) else f"an answer of type {type(answer).__name__}"
    try:
        return Sealed(dumps(answer), what)
    except BaseException as error:
        return sealed(failure(RuntimeError(f"{what} (it cannot be pickled: {in_words(error)})")))


def opened(thing):
    """The value of what came sealed, or not; raises what a Failure holds."""
    answer = thing.open() if isinstance(thing, Sealed) else thing
    if isinstance(answer, Failure):
        note(answer.error, emulated_traceback=answer.where)
        raise answer.error
    return answer


def in_words(error):
    """Type and text of an exception, also of one whose text cannot be had."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return f"{type(error).__name__}, whose text cannot be had"


def failure(error):
    """An exception as an answer; one that does not survive pickling, or takes no attribute, is told in words."""
    where = getattr(error, "emulated_traceback", None) or "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(dumps(error))
        if not isinstance(copy, BaseException):
            raise TypeError("an exception that unpickles to something else")
        note(copy, emulated_traceback=where)
    except BaseException:
        error = RuntimeError(in_words(error))
    return Failure(error, where)


def settle(future, answer):
    """Complete a Future with an answer, unless it is complete already."""
    if isinstance(answer, Sealed):
        answer = answer.open()
    try:
        if isinstance(answer, Failure):
            note(answer.error, emulated_traceback=answer.where)
            future.set_exception(answer.error)
        else:
            future.set_result(answer)
    except InvalidStateError:
        pass  # the machine has died meanwhile


def outcome(future):
    """The answer that a finished Future holds."""
    error = future.exception()
    return future.result() if error is None else failure(error)


_frame = struct.Struct("!Q")


def send_frame(sock, payload):
    """One length-prefixed frame on a stream socket."""
    sock.sendall(_frame.pack(len(payload)) + payload)


class Outlet:
    """Frames for a reader that may stay away for a while (its own output may be stopped): whoever sends here never waits.

    What the socket does not take at once a thread sends, in order. `gone` is called when nobody will read any more.
    """

    def __init__(self, sock, gone):
        self.sock, self.gone = sock, gone
        self.late, self.changed, self.thread = collections.deque(), threading.Condition(), None

    def send(self, payload):
        """Send a frame, or queue what the socket does not take now; never waits."""
        data = memoryview(_frame.pack(len(payload)) + payload)
        with self.changed:
            if not self.late:
                data = data[self.take(data) :]
            if data:
                self.late.append(data)
                self.changed.notify_all()
                if self.thread is None:
                    self.thread = threading.Thread(target=self.send_late, daemon=True, name="outlet")
                    self.thread.start()

    def take(self, data):
        """How much the socket takes at once."""
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self.gone()
            return len(data)

    def send_late(self):
        """The thread that sends what was queued, in order."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.late)
            try:
                self.sock.sendall(self.late[0])
            except OSError:
                self.gone()
            with self.changed:
                self.late.popleft()
                self.changed.notify_all()

    def flush_above(self, most):
        """Wait while more than `most` frames are queued, as long as it takes."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.late) <= most)

    def flush(self, seconds):
        """Wait until everything has been sent, so long at most."""
        with self.changed:
            self.changed.wait_for(lambda: not self.late, seconds)


def receive_frame(sock):
    """The next frame, or None at the end of the stream."""
    header = receive(sock, _frame.size)
    return None if header is None else receive(sock, _frame.unpack(header)[0])


def receive(sock, nbytes):
    """Exactly `nbytes` bytes from a stream socket; None if it ends before."""
    parts = bytearray()
    while len(parts) < nbytes:
        try:
            part = sock.recv(min(nbytes - len(parts), 1 << 20))
        except ConnectionError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)
