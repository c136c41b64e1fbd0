"""Whose a machine is: it ends when nobody in its driver refers to it any more, and a process forked from the driver has none."""
import contextlib
import os
import socket
import weakref

from numaemu.errors import MachineCheck

_owned = weakref.WeakSet()       # what has a `disown` method, for a process that is forked from this one


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
        raise MachineCheck(f"the machine belongs to process {pid}, which has forked this one (process {os.getpid()}): "
                           "use it there, or boot one here")


def _disown():
    for thing in list(_owned):
        thing.disown()


os.register_at_fork(after_in_child=_disown)
