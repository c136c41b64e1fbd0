"""Threads for what has to wait: as many as there is work under way, and no pool with a limit.

In a pool those that have a thread may wait for one that has none (a function for the child that it has forked), and all wait
for ever. The limit here is the host's, and who meets it is told so.
"""

import ctypes
import errno
import itertools
import queue
import threading
from concurrent.futures import Future

KEEP = 32  # idle threads that wait for more; assumed


class Threads:
    """`submit` runs a function in a thread of its own; threads that have finished are used again."""

    def __init__(self, name):
        self.name, self.numbers = name, itertools.count()
        self.lock, self.idle, self.started = threading.Lock(), [], 0

    def submit(self, function, *args):
        """The Future of function(*args). OSError (EAGAIN): the host allows no thread more."""
        future = Future()
        with self.lock:
            work = self.idle.pop() if self.idle else None
        if work is None:
            work = self.start()
        work.put((future, function, args))
        return future

    def start(self):
        """A new thread: the queue through which it gets its work."""
        work = queue.SimpleQueue()
        thread = threading.Thread(
            target=self.serve, args=(work,), daemon=True, name=f"{self.name} {next(self.numbers)}"
        )
        with self.lock:
            self.started += 1
        try:
            thread.start()
        except RuntimeError:
            with self.lock:
                self.started -= 1
            raise OSError(
                errno.EAGAIN,
                f"the host allows no thread beside the {self.started} that this process has for "
                f"functions under way (RLIMIT_NPROC, pids.max of its control group)",
            ) from None
        return work

    def run(self, future, function, args):
        """Call a function and complete a Future with its result or its exception."""
        try:
            value = function(*args)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    def serve(self, work):
        """A thread: one function after the other."""
        while True:
            self.run(*work.get())
            with self.lock:
                if len(self.idle) >= KEEP:
                    self.started -= 1
                    return
                self.idle.append(work)


def current_cpu():
    """The number of the host's CPU on which this thread runs now."""
    return ctypes.CDLL(None).sched_getcpu()
