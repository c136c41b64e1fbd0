"""What tasks print, shown where the driver prints, by a thread of its own: its reader may stop for a while (a pager does).

So the thread that reads what the coordinator says is never held up: operations are answered, and a death is told. What has to
come after printed text, a function's result, waits behind it.
"""

import contextlib
import queue
import sys
import threading

from numaemu.process.wire import dumps, send_frame


class Screen:
    """Of the machine at the other end of `link`, to which one frame at a time is sent, under `lock`."""

    def __init__(self, link, lock):
        self.link, self.lock = link, lock
        self.queue, self.thread = queue.Queue(), None

    def show(self, number, text):
        """Print a text in one piece, then tell the coordinator, which may send that CPU's next one."""

        def action():
            with contextlib.suppress(OSError, ValueError):  # nobody may be reading any more
                sys.stdout.write(text)
                sys.stdout.flush()
            with contextlib.suppress(OSError), self.lock:
                send_frame(self.link, dumps((0, dumps(("shown", (number,))))))

        self.put(action)

    def after(self, action):
        """Do something when everything before it has been shown: at once, if it has."""
        if self.queue.unfinished_tasks:
            self.put(action)
        else:
            action()

    def put(self, action):
        self.queue.put(action)
        if self.thread is None:
            self.thread = threading.Thread(target=self.run, daemon=True, name="screen")
            self.thread.start()

    def run(self):
        """The thread: one action after the other, until `end`."""
        ended = False
        while not ended:
            action = self.queue.get()
            ended = action is None
            try:
                if not ended:
                    action()
            finally:
                del action  # it may hold a result, and the queue is waited for
                self.queue.task_done()

    def wait(self, seconds):
        """Until everything has been shown, so long at most."""
        done = self.queue.all_tasks_done
        with done:
            done.wait_for(lambda: not self.queue.unfinished_tasks, seconds)

    def end(self):
        """The thread ends when it has shown everything."""
        if self.thread is not None:
            self.queue.put(None)
