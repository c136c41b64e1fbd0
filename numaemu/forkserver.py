"""The fork server: one fresh process per driver that has loaded the compiled functions and forks coordinators.

The driver may have threads, so it is never forked itself. It starts `python -m numaemu.forkserver FD` once, with a
Unix socket; each machine is one request with a socket of its own. The server ends with the driver (end of
stream), the coordinators with the server, nodes and CPUs with their coordinator.
"""

import gc
import os
import pickle
import signal
import socket
import sys
import traceback

from numaemu.compiler import foreman, user_kernels
from numaemu.host.children import ended_children
from numaemu.host.mappings import merge_code
from numaemu.host.shm import adopt_orphans, die_with_parent, entitle
from numaemu.process.wire import receive


def preload(control):
    """Import everything compiled; the driver is told at once if some of that is yet to be compiled."""
    gc.disable()  # nothing that is loaded is garbage; `main` freezes all of it
    from numaemu.compiler.link import LINKER, mute_lock_events

    if LINKER and not LINKER.image.complete:
        tell(control, "image", LINKER.image.path)
    mute_lock_events()
    import numaemu.coordinator  # noqa: F401  (imports every kernel)


def tell(control, *thing):
    """A frame to the driver; False if it has gone (then `serve` comes to the end of the stream and ends everything)."""
    payload = pickle.dumps(thing)
    try:
        control.sendall(len(payload).to_bytes(8, "big") + payload)
    except OSError:
        return False
    return True


def serve(control, coordinator_main):
    """Fork a coordinator for each request; tell the driver of each that ended."""
    coordinators = []
    while True:
        try:
            size, fds, _, _ = socket.recv_fds(control, 8, 1)  # the link comes with the frame's size
        except ConnectionError:
            size = b""
        if not size or (frame := receive(control, int.from_bytes(size, "big"))) is None:
            end(coordinators)
        number, topology, reserve, path = pickle.loads(frame)
        try:
            pid = os.fork()
        except OSError as error:
            os.close(fds[0])
            tell(control, "refused", number, f"the host allows no process for a coordinator: {error}")
            continue
        if pid == 0:
            sys.path[:] = path
            become_coordinator(control, fds[0], topology, reserve, coordinator_main)
        os.close(fds[0])
        coordinators.append(pid)
        tell(control, "forked", number, pid)


def end(coordinators):
    """The driver has gone: end its machines, wait for every process of theirs, end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    foreman.stop()
    user_kernels.remove_directory()
    for pid in coordinators:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        os._exit(0)


def become_coordinator(control, fd, topology, reserve, coordinator_main):
    """The forked child's part."""
    try:
        die_with_parent()
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        coordinator_main(socket.socket(fileno=fd), topology, reserve)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def main():
    """Load the compiled functions once, say so, then fork a coordinator for each machine that the driver asks for."""
    entitle("numaemu: fork server")
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    adopt_orphans()
    preload(control)
    user_kernels.make_directory(foreman.own_directory())
    from numaemu.coordinator import main as coordinator_main

    def reap(*_):
        for pid, status in ended_children():
            tell(control, "ended", pid, status)

    signal.signal(signal.SIGCHLD, reap)
    tell(control, "ready")
    merge_code()
    gc.freeze()
    gc.enable()
    serve(control, coordinator_main)


if __name__ == "__main__":
    main()
