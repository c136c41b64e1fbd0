"""Running a command in namespaces where /proc and /sys are a machine's: `numaemu shell`. What happens there is in `enter`."""

import array
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading

from numaemu.errors import ConfigError
from numaemu.windows import enter
from numaemu.windows.export import export
from numaemu.windows.mount import SIGNALS, is_there, libfuse_leaves_signals, operations

INSTEAD = "without: numaemu run --mount DIR shows a machine's files below DIR, numaemu export DIR copies them"


def run(machine, command, env=None, output=None):
    """Run a command and wait for it: its exit status. The files are live if mfusepy is there, else a snapshot.
    `output`: a file that gets what it prints, errors included.
    """
    live = is_there()
    served = operations(machine) if live else None
    ours, theirs = socket.socketpair()
    with theirs:
        child = start(theirs, live, command, env, output)
    try:
        if live:
            serve(served, ours)
        else:
            send_files(machine, ours)
        expect_start(ours)
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # is the command's
                continue
    finally:
        ours.close()  # tells a program that has begun that it is over
        child.wait()


def start(link, live, command, env, output):
    """Start numaemu/windows/enter.py."""
    program = [sys.executable, "-I", "-S", enter.__file__, str(link.fileno()), "live" if live else "snapshot", *command]
    return subprocess.Popen(program, pass_fds=[link.fileno()], env=env, stdout=output, stderr=output)


def received(link):
    """The descriptor of /dev/fuse that comes with the first message; what else comes is why there is none."""
    message, descriptors, _, _ = link.recvmsg(1 << 16, socket.CMSG_SPACE(4))
    if message[:1] != b"F" or not descriptors:
        raise refused(message)
    return array.array("i", descriptors[0][2])[0]


def refused(message):
    """The error for a message that says why, or for none."""
    why = message[1:].decode(errors="replace") if message[:1] == b"E" else "the program that makes namespaces has ended"
    return ConfigError(f"a shell with the machine's /proc and /sys is not to be had: {why}; {INSTEAD}")


def serve(served, link):
    """Serve the file system in a thread until its last user has gone."""
    mfusepy, files = served
    descriptor, saved = received(link), {number: signal.getsignal(number) for number in SIGNALS}
    here, begun = os.open(".", os.O_PATH), threading.Event()
    first = files.init

    def init(*args):
        begun.set()
        return first(*args)

    files.init = init
    place = f"/dev/fd/{descriptor}"
    options = {"foreground": True, "nothreads": True, "direct_io": True}
    thread = threading.Thread(
        target=quietly, args=(mfusepy.FUSE, files, place, options, begun), daemon=True, name="fuse"
    )
    thread.start()
    begun.wait()
    os.fchdir(here)  # libfuse goes to /
    os.close(here)
    libfuse_leaves_signals(saved)
    if not thread.is_alive():
        raise ConfigError(f"libfuse does not serve a file system that is mounted already; {INSTEAD}")
    link.sendall(b"R")


def quietly(serve_files, files, place, options, begun):
    """libfuse's loop; its end is that of the namespace."""
    try:
        serve_files(files, place, **options)
    except RuntimeError:
        pass  # libfuse's number: nothing is mounted any more
    finally:
        begun.set()


def send_files(machine, link):
    """A snapshot, as a tar."""
    message = link.recv(1 << 16)
    if message != b"T":
        raise refused(message)
    with tempfile.TemporaryDirectory() as directory:
        export(machine, pathlib.Path(directory) / "tree")
        with link.makefile("wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            for top in ("proc", "sys"):
                tar.add(pathlib.Path(directory) / "tree" / top, top)


def expect_start(link):
    """Wait until the command starts."""
    message = link.recv(1 << 16)
    if message[:1] != b"G":
        raise refused(message)
