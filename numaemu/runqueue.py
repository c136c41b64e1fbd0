"""Who has a CPU's turn: the run queue in the CPU's process, beside kernel/sched.py. One lock whose holders are of two kinds.

A *task* holds the turn for an operation. When it is over the task may begin its next one at once, before those who wait,
as long as its slice of emulated time is not over: so it keeps its TLB while its function goes on from operation to
operation, as on a CPU that runs it. But its function is Python, which takes no emulated time and may never come back
(it waits for another task, or for a person at a prompt). So whoever is first in the queue is rung at the end of each
operation and takes the CPU if nobody has it then: the task that went is taken to sleep. When its slice is over, or it
yields, the turn goes to the first in the queue and the task behind the last.

The *kernel* itself (a new task, an audit that holds all CPUs) waits in the same queue, but gets the turn at the end of
the operation that runs.
"""
import collections
import heapq
import itertools
import threading

from numaemu.kernel.sched import clock, set_nr_waiting, slice_left, switch_thread
from numaemu.native import Semaphore, sem_post

_own = threading.local()             # waiter: this thread's, as a thread waits for one thing at a time


class Waiter:
    """A thread in the queue, or a sleeper: asleep on `gate` until it is rung. The fields: under the queue's mutex."""

    def __init__(self):
        self.gate = Semaphore()
        self.task, self.granted, self.rung = None, False, False

    def ring(self):
        """Let it look; the gate's address if that is still to be posted, else 0."""
        gate, self.rung = 0 if self.rung else self.gate.address, True
        return gate


def waiter_of(task):
    """This thread's waiter, for a task."""
    waiter = getattr(_own, "waiter", None)
    if waiter is None:
        waiter = _own.waiter = Waiter()
    waiter.task, waiter.granted = task, False
    return waiter


class RunQueue:
    """The turn of the CPU whose cpu_t is `state`. A task is named by (number, pid), the kernel by None."""

    def __init__(self, state):
        self.state, self.address = state, int(state.address)
        self.mutex, self.busy, self.queue = threading.Lock(), False, collections.deque()
        self.current = None                              # the task that had the turn last and may go on
        self.sleepers, self.order = [], itertools.count()        # (until_ns, order, waiter), a heap

    def __enter__(self):
        self.enter(None)

    def __exit__(self, *_):
        self.leave(None)

    def enter(self, task):
        """Wait for the turn."""
        with self.mutex:
            if not self.busy and (not self.queue or task is not None and task == self.current and not self.slice_over()):
                self.busy, self.current = True, task or self.current
                return
            waiter = self.append(waiter_of(task))
            gate = 0 if self.busy else self.queue[0].ring()
        self.wait(waiter, gate)

    def try_enter(self):
        """Take the turn, for the kernel, if nobody has it."""
        with self.mutex:
            free = not self.busy
            self.busy = True
        return free

    def leave(self, task, stays=False):
        """Give the turn up; a task that `stays` on this CPU may come back for the rest of its slice."""
        with self.mutex:
            self.wake_sleepers()
            if self.queue and (not stays or self.queue[0].task is None or self.slice_over()):
                if task is not None:
                    self.state.preempted = int(stays)
                gate = self.grant()
            else:
                self.busy = False
                if not stays and task is not None:
                    self.current = None
                first = self.first()
                gate = first.ring() if first else 0
        if gate:
            sem_post(gate)

    def give_way(self, task):
        """sched_yield, or the end of a slice inside an operation: wait behind the others. False: there are none."""
        if not self.queue and not self.sleepers:
            return False
        with self.mutex:
            self.wake_sleepers()
            if not self.queue:
                return False
            if task is not None:
                self.state.preempted = 1
            waiter = waiter_of(task)
            self.queue.append(waiter)
            gate = self.grant()
        self.wait(waiter, gate)
        return True

    def sleep(self, task, until_ns):
        """Wait until the CPU's clock says `until_ns`, while others run; False: nobody wants to, the clock may jump."""
        with self.mutex:
            self.wake_sleepers()
            if not self.queue:
                return False
            waiter = waiter_of(task)
            heapq.heappush(self.sleepers, (until_ns, next(self.order), waiter))
            gate = self.grant()
        self.wait(waiter, gate)
        return True

    # -- with the mutex held

    def slice_over(self):
        return slice_left(self.address) <= 0

    def append(self, waiter):
        self.queue.append(waiter)
        set_nr_waiting(self.address, len(self.queue))
        return waiter

    def grant(self):
        """Hand the turn to the first in the queue; the gate to post."""
        waiter = self.queue.popleft()
        set_nr_waiting(self.address, len(self.queue))
        self.busy, waiter.granted = True, True
        if waiter.task is not None:
            self.current = waiter.task
        return waiter.ring()

    def wake_sleepers(self):
        """Those whose time has come want to run."""
        while self.sleepers and self.sleepers[0][0] <= clock(self.address):
            self.append(heapq.heappop(self.sleepers)[2])

    def first(self):
        """Who gets an idle CPU."""
        return self.queue[0] if self.queue else self.sleepers[0][2] if self.sleepers else None

    # -- without it

    def wait(self, waiter, gate):
        """Post a gate, and wait until the turn is granted, or nobody has it and we are the first."""
        while True:
            switch_thread(gate, waiter.gate.address)
            with self.mutex:
                waiter.rung = False
                if not waiter.granted and not self.busy and self.first() is waiter:
                    self.take(waiter)
                if waiter.granted:
                    return
            gate = 0

    def take(self, waiter):
        """The CPU is idle. A sleeper lets its clock jump (its operation does that)."""
        if self.queue:
            self.queue.popleft()
            set_nr_waiting(self.address, len(self.queue))
        else:
            heapq.heappop(self.sleepers)
        self.busy, waiter.granted, self.current = True, True, waiter.task or self.current
