"""A compiler: a process that has declared every function of the package and compiles those it is told (compiler/foreman.py)."""

import gc
import pathlib
import signal
import sys
import traceback
from multiprocessing.connection import Connection

import setproctitle

from numaemu.compiler.image import Failed
from numaemu.host.shm import die_with_parent


def work(number, path):
    """Say what there is, then compile, through the connection with that file number, for the image at `path`."""
    setproctitle.setproctitle("numaemu: compiler")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    gc.disable()  # a tenth of the time, and it ends soon
    import numaemu.coordinator  # noqa: F401  (declares every function)
    from numaemu.compiler.decorators import declared
    from numaemu.compiler.link import image_name, mute_lock_events

    mute_lock_events()
    if image_name() != pathlib.Path(path).name:
        sys.exit("numaemu's files have changed since this run began: begin it again")
    connection = Connection(number)
    connection.send(list(declared))
    while True:
        try:
            symbol = connection.recv()
        except EOFError:
            return
        connection.send((symbol, *compile_one(declared, symbol)))


def compile_one(declared, symbol):
    """What the image keeps of a function, and the names of what it calls."""
    try:
        return declared[symbol]()
    except Exception:
        return Failed(traceback.format_exc()), []
