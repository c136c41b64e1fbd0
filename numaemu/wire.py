"""What travels between processes as bytes: pickled things, answers that may be failures, frames on a socket."""
import importlib
import io
import pickle
import struct
import sys
import traceback
from typing import NamedTuple

import cloudpickle


class Failure(NamedTuple):
    """What a call that raised answers with: the exception and where it happened, for the other side."""

    error: BaseException
    where: str


class StaysHere(TypeError):
    """Something of an emulated machine is about to be pickled that means nothing in another process."""


class Pickler(cloudpickle.Pickler):
    """cloudpickle, with Numba functions by name where they can be imported and by their source elsewhere."""

    def reducer_override(self, thing):
        if advice := getattr(type(thing), "stays_here", None):
            raise StaysHere(f"{thing!r} cannot go to another process, as what a function uses, an argument or a result: {advice}")
        if type(thing).__module__.startswith("numba.") and hasattr(thing, "py_func"):
            function = thing.py_func
            module = sys.modules.get(function.__module__)
            if function.__module__ != "__main__" and getattr(module, function.__qualname__, None) is thing:
                return _by_name, (function.__module__, function.__qualname__)
            return _compiled_anew, (function, {k: v for k, v in thing.targetoptions.items() if k != "cache"})
        return super().reducer_override(thing)


def _by_name(module, name):
    return getattr(importlib.import_module(module), name)


def _compiled_anew(function, options):
    import numba
    return numba.njit(**{k: v for k, v in options.items() if k != "nopython"})(function)


def dumps(thing):
    """Pickle anything that may travel: also functions of a notebook, and compiled ones."""
    buffer = io.BytesIO()
    try:
        Pickler(buffer, protocol=5).dump(thing)
    except StaysHere as error:
        raise TypeError(str(error)) from None        # where in the pickler does not matter
    return buffer.getvalue()


def failure(error):
    """An exception as an answer; one that does not survive pickling is told in words."""
    where = "".join(traceback.format_exception(error))
    try:
        pickle.loads(dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return Failure(error, where)


def settle(future, answer):
    """Complete a Future with an answer."""
    if isinstance(answer, Failure):
        answer.error.emulated_traceback = answer.where
        future.set_exception(answer.error)
    else:
        future.set_result(answer)


def outcome(future):
    """The answer that a finished Future holds."""
    error = future.exception()
    if error is None:
        return future.result()
    return Failure(error, getattr(error, "emulated_traceback", ""))


_frame = struct.Struct("!Q")


def send_frame(sock, payload):
    """One length-prefixed frame on a stream socket."""
    sock.sendall(_frame.pack(len(payload)) + payload)


def receive_frame(sock):
    """The next frame, or None at the end of the stream."""
    header = _receive(sock, _frame.size)
    return None if header is None else _receive(sock, _frame.unpack(header)[0])


def _receive(sock, nbytes):
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
