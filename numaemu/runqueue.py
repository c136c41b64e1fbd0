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

from numaemu.atomic import exchange
from numaemu.kernel import sched


class Waiter:
    """Somebody in the queue, or a sleeper: asleep on `gate` until it is rung."""

    def __init__(self, task):
        self.task, self.gate, self.granted, self.rung = task, threading.Lock(), False, False
        self.gate.acquire()

    def ring(self):
        if not self.rung:
            self.rung = True
            self.gate.release()


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
            waiter = self.append(Waiter(task))
            if not self.busy:
                self.queue[0].ring()
        self.wait(waiter)

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
                self.grant()
                return
            self.busy = False
            if not stays and task is not None:
                self.current = None
            if self.queue:
                self.queue[0].ring()
            elif self.sleepers:
                self.sleepers[0][2].ring()

    def give_way(self, task):
        """sched_yield, or the end of a slice inside an operation: wait behind the others. False: there are none."""
        with self.mutex:
            self.wake_sleepers()
            if not self.queue:
                return False
            if task is not None:
                self.state.preempted = 1
            waiter = self.append(Waiter(task))
            self.grant()
        self.wait(waiter)
        return True

    def sleep(self, task, until_ns):
        """Wait until the CPU's clock says `until_ns`, while others run; False: nobody wants to, the clock may jump."""
        with self.mutex:
            self.wake_sleepers()
            if not self.queue:
                return False
            waiter = Waiter(task)
            heapq.heappush(self.sleepers, (until_ns, next(self.order), waiter))
            self.grant()
        self.wait(waiter)
        return True

    # -- with the mutex held

    def slice_over(self):
        return sched.slice_left(self.address) <= 0

    def append(self, waiter):
        """Into the queue: the CPU, which may be inside accesses, is to look."""
        self.queue.append(waiter)
        self.state.nr_waiting = len(self.queue)
        exchange(self.state, "event_at", 0)
        return waiter

    def grant(self):
        """Hand the turn to the first in the queue."""
        waiter = self.queue.popleft()
        self.state.nr_waiting = len(self.queue)
        self.busy, waiter.granted = True, True
        if waiter.task is not None:
            self.current = waiter.task
        waiter.ring()

    def wake_sleepers(self):
        """Those whose time has come want to run."""
        while self.sleepers and self.sleepers[0][0] <= sched.clock(self.address):
            self.append(heapq.heappop(self.sleepers)[2])

    # -- without it

    def wait(self, waiter):
        """Until the turn is granted, or nobody has it and we are the first."""
        while True:
            waiter.gate.acquire()
            with self.mutex:
                waiter.rung = False
                if waiter.granted:
                    return
                if not self.busy and self.first() is waiter:
                    self.take(waiter)
                    return

    def first(self):
        return self.queue[0] if self.queue else self.sleepers[0][2] if self.sleepers else None

    def take(self, waiter):
        """The CPU is idle. A sleeper lets its clock jump (its operation does that)."""
        if self.queue:
            self.grant()
        else:
            heapq.heappop(self.sleepers)
            self.busy, self.current = True, waiter.task
