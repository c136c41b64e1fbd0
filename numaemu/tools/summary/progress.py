"""What a run that goes on shows: a line on the terminal that is written over."""

import math
import sys
import threading
import time

from numaemu.compiler.foreman import FIRST_TIME
from numaemu.tools.summary.layout import new_console
from numaemu.tools.summary.numbers import count, duration
from numaemu.tools.summary.report import accesses

COMPILING_S = 3.0  # after that long without a new function, nothing is being compiled
BAR = 24  # characters
POLL_S = 0.5  # how often the figures of a running machine are looked at …
POLL_SHARE = 50  # … but never more than a 50th of the time


class Progress:
    """A live line on stderr while a run goes on, if that is a terminal; a context manager.

    A thread asks the machine for its figures twice a second at most. What is printed meanwhile appears above the line.
    """

    def __init__(self, quiet=False, stream=None):
        self.stream = stream or sys.stderr
        self.quiet, self.live = quiet, not quiet and self.stream.isatty()
        self.start, self.text = time.monotonic(), "starting"
        self.kernels, self.total = 0, 0  # functions compiled meanwhile, and how many there will be, as far as is known
        self.compiled_at = -math.inf  # when the last one was
        self.display = self.watcher = None
        self.done = threading.Event()

    def __enter__(self):
        if self.live:
            from rich.live import Live

            both = sys.stdout.isatty()  # printed text must go around the line if it goes to the same screen
            self.display = Live(
                console=new_console(file=self.stream),
                get_renderable=self.view,
                transient=True,
                refresh_per_second=4,
                redirect_stdout=both,
                redirect_stderr=True,
            )
            self.display.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        if self.display is not None:
            sys.stdout.flush()  # the redirected streams hold what is not yet a line
            sys.stderr.flush()
            self.display.stop()

    def view(self):
        """The line, now."""
        from rich.text import Text

        now = time.monotonic()
        compiling = f"{self.compiling()}  " if now - self.compiled_at < COMPILING_S else ""
        return Text(
            f"{now - self.start:5.0f} s  {compiling}{self.text}", style="cyan", no_wrap=True, overflow="ellipsis"
        )

    def compiling(self):
        """How far the compilers are, with a bar if it is known how far they have to go."""
        if self.kernels > self.total:
            return f"compiling, once: {self.kernels} functions"
        full = BAR * self.kernels // self.total
        return f"compiling, once: {'━' * full}{'─' * (BAR - full)} {self.kernels} of {self.total} functions"

    def compiled(self, functions, total=0):
        """So many functions of the kernel have been compiled, of so many in all that will be, as far as is known."""
        self.total = total
        if not self.kernels and not self.live and not self.quiet:
            print(FIRST_TIME, file=self.stream, flush=True)
        self.kernels, self.compiled_at = self.kernels + functions, time.monotonic()

    def say(self, text):
        """What goes on."""
        self.text = text

    def watch(self, machine):
        """From now on show how far the machine is."""
        self.text = "running"
        if self.live:
            self.watcher = threading.Thread(target=self._poll, args=(machine,), daemon=True, name="progress")
            self.watcher.start()

    def _poll(self, machine):
        pause = POLL_S
        while not self.done.wait(pause):
            asked = time.monotonic()
            try:
                stats = machine.stats()
            except Exception:  # the machine has ended; who runs it will say so
                return
            self.text = live_line(stats)
            pause = max(POLL_S, POLL_SHARE * (time.monotonic() - asked))


def live_line(stats):
    """How far a running machine is."""
    cpus = stats["cpus"]
    return (
        f"emulated {duration(stats['emulated_ns'])}  accesses {count(sum(map(accesses, cpus)))}  "
        f"faults {count(sum(c['minor_faults'] + c['major_faults'] for c in cpus))}  "
        f"tasks {len(stats['tasks'])}"
    )
