"""Who has a CPU's turn: the run queue in the CPU's process, beside kernel/core/sched.py. One lock whose holders are of two kinds.

A *task* holds the turn for an operation. When it is over the task may begin its next one at once, before those who wait,
as long as its slice of emulated time is not over: so it keeps its TLB while its function goes on from operation to
operation, as on a CPU that runs it. But its function is Python, which takes no emulated time and may never come back
(it waits for another task, or for a person at a prompt). So when others wait, a thread looks after AWAY_S whether it has
come back, and gives the CPU to the first in the queue if not: the task is taken to sleep. When its slice is over, or it
yields, the turn goes to the first in the queue at once and the task behind the last. Only here does the host's time
matter: it says which of two tasks that do nothing for the emulated machine goes first.

The *kernel* itself (a new task, an audit that holds all CPUs) waits in the same queue, but gets the turn at the end of
the operation that runs.
"""

import collections
import heapq
import itertools
import os
import threading
import time
from typing import Any

from numaemu.compiler.native import Semaphore, sem_post
from numaemu.kernel.core.sched import clock, set_nr_waiting, slice_left, switch_thread

AWAY_S = 50e-6  # that a task's function may take between two operations without losing the CPU; assumed

_own = threading.local()  # waiter: this thread's, as a thread waits for one thing at a time


class Waiter:
    """A thread in the queue, or a sleeper: asleep on `gate` until it is given the turn."""

    def __init__(self):
        self.gate, self.task, self.woken = Semaphore(), None, False


def waiter_of(task_key):
    """This thread's waiter, for a task."""
    waiter = getattr(_own, "waiter", None)
    if waiter is None:
        waiter = _own.waiter = Waiter()
    waiter.task, waiter.woken = task_key, False
    return waiter


class RunQueue:
    """The turn of the CPU whose cpu_t is `state`. A task is named by (number, pid), the kernel by None."""

    def __init__(self, state):
        self.state, self.address = state, int(state.address)
        self.host_cpus = sorted(os.sched_getaffinity(0))
        self.home = {self.host_cpus[state.id % len(self.host_cpus)]}
        self.mutex, self.busy, self.queue = threading.Lock(), False, collections.deque()
        self.current = None  # the task that had the turn last and may go on
        self.sleepers, self.order = [], itertools.count()  # (until_ns, order, waiter), a heap
        self.turns, self.watched = 0, False  # turns so far; a thread looks after an idle CPU
        self.watch: Any = None  # the semaphore that it waits for

    def __enter__(self):
        self.enter(None)

    def __exit__(self, *_):
        self.leave(None)

    def enter(self, task_key):
        """Wait for the turn."""
        with self.mutex:
            if not self.busy and (
                not self.queue or task_key is not None and task_key == self.current and not self.slice_over()
            ):
                self.busy, self.current = True, task_key or self.current
                if getattr(_own, "pinned", False) and not self.queue:
                    self.pin(False)
                return
            waiter = waiter_of(task_key)
            self.append(waiter)
            if not self.busy:
                self.look_after()
        if not getattr(_own, "pinned", False):
            self.pin(True)
        switch_thread(0, waiter.gate.address)

    def try_enter(self):
        """Take the turn, for the kernel, if nobody has it."""
        with self.mutex:
            free = not self.busy
            self.busy = True
        return free

    def leave(self, task_key, stays=False):
        """Give the turn up; a task that `stays` on this CPU may come back for the rest of its slice."""
        with self.mutex:
            self.wake_sleepers()
            if self.queue and (not stays or self.queue[0].task is None or self.slice_over()):
                if task_key is not None:
                    self.state.preempted = int(stays)
                sem_post(self.grant())
                return
            self.busy, self.turns = False, self.turns + 1
            if not stays and task_key is not None:
                self.current = None
            if self.queue or self.sleepers:
                self.look_after()

    def give_way(self, task_key):
        """sched_yield, or the end of a slice inside an operation: wait behind the others. False: there are none."""
        if not self.queue and not self.sleepers:
            return False
        with self.mutex:
            self.wake_sleepers()
            if not self.queue and self.sleepers and task_key is None:  # the kernel waits for one of them
                self.append(heapq.heappop(self.sleepers)[2])
            if not self.queue:
                return False
            if task_key is not None:
                self.state.preempted = 1
            waiter = waiter_of(task_key)
            self.queue.append(waiter)
            gate = self.grant()
        if not getattr(_own, "pinned", False):
            self.pin(True)
        switch_thread(gate, waiter.gate.address)
        return True

    def pin(self, here):
        """Keep this thread on one CPU of the host while several tasks share ours: who is woken need not be woken on
        another, idle one, which takes three times as long. `here` False: let it go anywhere again.
        """
        os.sched_setaffinity(0, self.home if here else self.host_cpus)
        _own.pinned = here

    def sleep(self, task_key, until_ns):
        """Wait until the CPU's clock says `until_ns`, while others run; False: nobody wants to, the clock may jump.

        If only sleepers are left the first of them is woken, and lets the clock jump to its own time.
        """
        with self.mutex:
            self.wake_sleepers()
            if not self.queue and self.sleepers and self.sleepers[0][0] <= until_ns:
                self.append(heapq.heappop(self.sleepers)[2])
            if not self.queue:
                return False
            waiter = waiter_of(task_key)
            heapq.heappush(self.sleepers, (until_ns, next(self.order), waiter))
            gate = self.grant()
        switch_thread(gate, waiter.gate.address)
        return True

    # -- with the mutex held

    def slice_over(self):
        return slice_left(self.address) <= 0

    def append(self, waiter):
        self.queue.append(waiter)
        self.tell()

    def tell(self):
        """Tell the CPU who waits. Sleepers count: when the first one's time has come, whoever runs gives way."""
        first = self.sleepers[0][0] if self.sleepers else 0
        set_nr_waiting(self.address, len(self.queue) + len(self.sleepers), len(self.queue), first)

    def grant(self):
        """Hand the turn to the first in the queue; the gate to post."""
        waiter = self.queue.popleft()
        self.tell()
        self.busy, self.turns, self.current = True, self.turns + 1, waiter.task or self.current
        return waiter.gate.address

    def wake_sleepers(self):
        """Those whose time has come want to run, and come first: in the order of their times, also behind earlier ones."""
        if not self.sleepers or self.sleepers[0][0] > clock(self.address):
            return
        place = next((n for n, waiter in enumerate(self.queue) if not waiter.woken), len(self.queue))
        while self.sleepers and self.sleepers[0][0] <= clock(self.address):
            waiter = heapq.heappop(self.sleepers)[2]
            waiter.woken = True
            self.queue.insert(place, waiter)
            place += 1
        self.tell()

    def look_after(self):
        """Nobody has the CPU though somebody waits: let the idle thread look whether it stays so."""
        if not self.watched:
            self.watched = True
            if self.watch is None:
                self.watch = Semaphore()
                threading.Thread(target=self.idle, daemon=True, name="idle").start()
            self.watch.post()

    # -- without it

    def idle(self):
        """The thread that gives an idle CPU to who waits, or to the sleeper whose time comes first: its operation lets
        the clock jump.
        """
        while True:
            switch_thread(0, self.watch.address)
            while True:
                turns = self.turns
                time.sleep(AWAY_S)
                with self.mutex:
                    if self.busy or not self.queue and not self.sleepers:
                        self.watched = False
                        break
                    if self.turns == turns:
                        if not self.queue:
                            self.append(heapq.heappop(self.sleepers)[2])
                        sem_post(self.grant())
                        self.watched = False
                        break
