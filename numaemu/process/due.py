"""What is due at a time of emulated time: DAMON's samples, and functions of the driver (machine.every).

The machine keeps one time, at which the first of them is due; a CPU that has come so far says so, and waits until all is done.
"""

from concurrent.futures import Future
from typing import Any

from numaemu.compiler.atomic import exchange
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.fs.sysfs.damon import damon_of
from numaemu.kernel.include.mm_types import task_t
from numaemu.process.requests import Requests


class Due(Requests):
    """A part of the Coordinator."""

    shows: dict[int, Future]  # what the driver has been told and has not answered yet, by number
    show_numbers: Any  # the next number
    driver: Any  # lockstep.Driver, or None
    driver_every_ns: int  # when functions of the driver are due; 0: there are none
    tell_driver: Any
    cpu_actor: Any

    def rpc_every(self, now_ns):
        """A CPU has come to a time at which something is due: DAMON's, or functions of the driver's. The answer comes when that is done."""
        yield from damon_of(self.system).sample(now_ns, self.damon_look)
        if 0 < self.driver_every_ns <= now_ns:
            yield self.call_driver(now_ns)
        self.set_every()

    def damon_look(self, target, addresses, marked):
        """DAMON looks at pages of a task, on the CPU where that is; or marks them as not used."""
        cpu = task_t.array(self.machine.tasks)[target.number].cpu
        args = target.number, target.pid, addresses or marked, not addresses
        return self.ask(self.cpu_actor(cpu), "system", "damon", *args)

    def call_driver(self, now_ns):
        """The Future of its functions, which are due."""
        number, future = next(self.show_numbers), Future()
        self.shows[number], self.driver_every_ns = future, 0  # until it says when the next are due
        self.tell_driver("every", number, now_ns)
        if self.driver:
            self.driver.call(number)
        return future

    def rpc_every_at(self, at_ns, number=0):
        """They are due at this time next; 0: there are none. What CPU has waited for goes on."""
        self.driver_every_ns = at_ns
        if number:
            self.shows.pop(number).set_result(None)
            if self.driver:
                self.driver.called(number)
        else:
            self.set_every()

    def set_every(self):
        """CPUs are to say when they have come to the time at which something is due next; 0: nothing is."""
        due = [at for at in (self.driver_every_ns, damon_of(self.system).next_ns()) if at]
        self.machine.every_at_ns = min(due, default=0)
        for cpu in self.cpus:
            exchange(cpu_t.array(self.machine.cpus)[cpu], "event_at", 0)
