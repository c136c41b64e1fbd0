"""The driver's side of the fork server (numaemu/forkserver.py), which forks the coordinators of its machines."""

import collections
import contextlib
import itertools
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import Any

from numaemu.compiler import foreman
from numaemu.errors import MachineCheck
from numaemu.host import shm, trust
from numaemu.process.wire import receive_frame

END_S = 5.0  # how long an ending machine is waited for before its processes are killed
_said = []  # once it has been said that functions are being compiled


class ForkServer:
    """The process that forks this driver's coordinators; started with the first machine."""

    def __init__(self):
        self.lock, self.pid, self.ready = threading.Lock(), None, False
        self.process: Any = None

    def disown(self):
        """In a process that was forked from the driver: that one's is none of this one's."""
        self.lock = threading.Lock()  # a thread that is not here may have held it
        if self.process is not None:
            self.socket.close()
            self.process.returncode = 0  # not a child of this process
            self.process = None

    def launch(self):
        """Start it unless it runs, without waiting until it has loaded the kernel."""
        if self.process is not None and self.pid == os.getpid() and self.process.poll() is None:
            return
        shm.sweep()
        self.ready = False
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "numaemu.forkserver", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env=_environment(),
        )
        trust.leave_it_to_others()
        theirs.close()
        self.socket, self.pid, self.numbers = ours, os.getpid(), itertools.count()
        self.forked, self.ended = {}, collections.defaultdict(Future)

    def start(self, progress=None):
        """Start it unless it runs; from then on `progress(n, total)` is told of functions of the kernel that are compiled
        (compiler/foreman.py, watch_image).
        """
        self.launch()
        while not self.ready:
            frame = receive_frame(self.socket)
            if frame is None:
                raise MachineCheck(
                    f"the fork server ended while it loaded the compiled functions, {describe(self.process.wait())}"
                )
            kind, *words = pickle.loads(frame)
            if kind == "image":
                watch = threading.Thread(
                    target=foreman.watch_image, args=(*words, progress or say_compiling), daemon=True, name="image"
                )
                watch.start()
            elif kind == "ready":
                self.ready = True
                threading.Thread(
                    target=self.read, args=(self.process, self.socket, self.forked, self.ended), daemon=True
                ).start()

    @staticmethod
    def read(process, ours, forked, ended):
        """The thread that takes what a server says: who was forked, who has ended. All of them, when it has itself."""
        while (frame := receive_frame(ours)) is not None:
            kind, number, value = pickle.loads(frame)
            if kind == "forked":
                forked.pop(number).set_result(value)
            elif kind == "refused":
                forked.pop(number).set_exception(MachineCheck(value))
            elif not ended[number].done():
                ended[number].set_result(describe(value))
        ours.close()
        died = f"the fork server died: {describe(process.wait())}"
        for future in [*forked.values()]:
            if not future.done():
                future.set_exception(MachineCheck(died))
        for future in [*ended.values()]:
            if not future.done():
                future.set_result(died)

    def stop(self):
        """End it, at the end of the driver."""
        if self.process is None or self.pid != os.getpid():
            return
        if not self.ready:  # it compiles and does not listen
            self.process.kill()
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has gone already
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def fork(self, topology, reserve, progress=None):
        """A new coordinator: (socket to it, its pid)."""
        with self.lock:
            self.start(progress)
            ours, theirs = socket.socketpair()
            number = next(self.numbers)
            future = self.forked[number] = Future()
            frame = pickle.dumps((number, topology, reserve, sys.path))
            socket.send_fds(self.socket, [len(frame).to_bytes(8, "big")], [theirs.fileno()])
            self.socket.sendall(frame)
            theirs.close()
            ended = self.ended
        pid = future.result()
        ended[pid].add_done_callback(lambda _: _shut(ours))
        return ours, pid, ended[pid]


def _shut(link):
    """A coordinator has ended: who reads from it comes to the end, after what it has sent. Its own hanging up may be late."""
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RD)


def _environment():
    """The environment of emulator processes: they find the package where the driver found it, and NumPy's BLAS starts no
    threads as it is imported, because who forks must have none. (An emulated CPU is one thread's worth anyway.)
    """
    root = str(pathlib.Path(__file__).parents[2])
    path = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": root + (os.pathsep + path if path else ""), "OPENBLAS_NUM_THREADS": "1"}


def say_compiling(functions, total):
    """Tell a person who has not asked for progress, once, why the first machine takes longer than others will."""
    if not _said:
        _said.append(True)
        print(foreman.FIRST_TIME, file=sys.stderr, flush=True)


def describe(status):
    """How a process has ended, from its status: by which signal, or with which exit status."""
    if status >= 0:
        return f"exit status {status}"
    text = f"signal {-status}"
    if status == -7:
        text += " (bus error: is /dev/shm full?)"
    return text
