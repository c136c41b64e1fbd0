"""Functions of the driver at intervals of emulated time: machine.every.

The machine keeps one time, at which the first of them is due. A CPU that has come so far says so and waits until they have run.
"""

import threading
import traceback

from numaemu.errors import MachineCheck


class Timer:
    """One of them: how often it was called, and what it has raised, which ends it."""

    def __init__(self, timers, interval_ns, function, due_ns):
        self.timers, self.interval_ns, self.function, self.due_ns = timers, interval_ns, function, due_ns
        self.calls, self.error = 0, None

    def __repr__(self):
        return f"<timer: every {self.interval_ns} ns, {self.calls} calls>"

    def stop(self):
        """It is called no more."""
        self.timers.remove(self)

    def call(self, now_ns):
        """Times that have passed meanwhile are left out."""
        self.calls += 1
        self.due_ns += ((now_ns - self.due_ns) // self.interval_ns + 1) * self.interval_ns
        try:
            self.function(now_ns)
        except Exception as error:
            self.error = error
            traceback.print_exc()
            self.stop()


class Timers:
    """Those of one machine, which is asked with what `weak_ask` refers to: it ends when nobody else has it any more."""

    def __init__(self, weak_ask):
        self.weak_ask, self.lock, self.timers, self.busy = weak_ask, threading.Lock(), [], False

    def ask(self, method, *args):
        """What the machine answers."""
        ask = self.weak_ask()
        if ask is None:
            raise MachineCheck("the machine was closed")
        return ask(method, *args)

    def add(self, interval_ns, function):
        """A new one, due an interval from now."""
        timer = Timer(self, interval_ns, function, self.ask("clock") + interval_ns)
        with self.lock:
            self.timers.append(timer)
            busy = self.busy
        if not busy:
            self.ask("every_at", self.next_ns())
        return timer

    def remove(self, timer):
        """It is due no more; while some are called, the machine hears of it behind them."""
        with self.lock:
            if timer in self.timers:
                self.timers.remove(timer)
            busy = self.busy
        if not busy:
            self.ask("every_at", self.next_ns())

    def next_ns(self):
        """When the first is due; 0: there are none."""
        with self.lock:
            return min((timer.due_ns for timer in self.timers), default=0)

    def begin(self, number, now_ns):
        """A CPU waits for those that are due, in a thread of their own: they may ask the machine."""
        self.busy = True
        threading.Thread(target=self.run, args=(number, now_ns), daemon=True, name="every").start()

    def run(self, number, now_ns):
        """Call those that are due, then let the CPU go on."""
        for timer in sorted(self.timers, key=lambda timer: timer.due_ns):
            if timer.due_ns <= now_ns and timer in self.timers:
                timer.call(now_ns)
        try:
            self.busy = False
            self.ask("every_at", self.next_ns(), number)
        except Exception:  # the machine has ended meanwhile
            pass
