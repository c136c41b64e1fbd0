"""What a driver keeps in mind of its machines. Whose one is: it ends when nobody here refers to it any more, and a process that
is forked from the driver has none. What they have compiled.
"""

import collections
import contextlib
import os
import socket
import warnings
import weakref

from numaemu.errors import CompiledAgainWarning, MachineCheck

OFTEN = 2  # times that a user's function may be compiled before there is a word about it

compiled = collections.Counter()  # (name, where) of users' functions, by all machines
_warned = set()
_owned = weakref.WeakSet()  # what has a `disown` method, for a process that is forked from this one


def hang_up(link):
    """Close the stream to a coordinator: it ends, and its machine with it. Takes no lock, so that a collector may call it."""
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)


def end_with(machine, link):
    """Hang up when the machine is collected. At the end of the driver itself machines are closed in good order."""
    weakref.finalize(machine, hang_up, link).atexit = False


def own(thing):
    """`thing.disown()` is called in every process that is forked from this one."""
    _owned.add(thing)
    return thing


def check_owner(pid):
    """Raise unless this process is the one with that pid, which has booted a machine."""
    if pid != os.getpid():
        raise MachineCheck(
            f"the machine belongs to process {pid}, which has forked this one (process {os.getpid()}): "
            "use it there, or boot one here"
        )


def warn_of_compiling():
    """Say so, once for each, of users' functions that were compiled more than twice; Numba's own parts of them are not theirs."""
    for (name, where), times in list(compiled.items()):
        if times > OFTEN and (name, where) not in _warned and f"{os.sep}numba{os.sep}" not in where:
            _warned.add((name, where))
            warnings.warn(
                f"{name} ({where}) has been compiled {times} times, some tenths of a second each: one that is made inside "
                "another function is new each time, one called with other kinds of arguments is another one, and one "
                "in a file is kept for all CPUs by numba.njit(cache=True)",
                CompiledAgainWarning,
                stacklevel=3,
            )


def _disown():
    for thing in list(_owned):
        thing.disown()


os.register_at_fork(after_in_child=_disown)
