"""Python's side of lockstep (kernel/core/lockstep.py says who runs next): what waits here waits by blocking its strand.

Each class stands for one that waits freely: StrandBell for a doorbell, StrandLock for a lock, StrandThreads for Threads,
StrandQueue for a CPU's RunQueue. Nothing here is locked, as one strand runs at a time.
"""

import collections
import errno
import heapq
import threading
from concurrent.futures import Future

import numpy as np

from numaemu.host.threads import Threads
from numaemu.kernel.core.lockstep import (
    begin_strand,
    block_strand,
    draw_schedule,
    drop_strand,
    end_strand,
    leave_turn,
    lockstep_now,
    new_strand,
    running_strand,
    sleep_strand,
    wake_strand,
)
from numaemu.kernel.core.sched import enter_turn
from numaemu.kernel.core.strand import AT_RANDOM, BY_PRIORITY, NOBODY
from numaemu.process.runqueue import RunQueue
from numaemu.spec.param import MAX_STRANDS

_own = threading.local()  # turn: (run queue, task) of the function that runs in this thread, between two operations
POLL_NS = 100_000  # between two looks at what nobody tells of; assumed


def set_schedule(lockstep, text):
    """Let a machine file's `schedule` decide who runs next."""
    kind, _, rest = text.partition(":")
    if kind == "clock":
        return
    seed, _, steps = rest.partition(":")
    changes = np.array(sorted(int(step) for step in steps.split(",") if step), np.int64)
    kind = AT_RANDOM if kind == "random" else BY_PRIORITY
    draw_schedule(lockstep, kind, int(seed), changes.ctypes.data, len(changes))


class StrandBell:
    """Ringing it wakes a strand; only that strand waits for it."""

    def __init__(self, lockstep, strand):
        self.lockstep, self.strand = lockstep, strand

    def release(self):
        wake_strand(self.lockstep, self.strand)

    def acquire(self, seconds=None):
        """Wait until it has been rung, however long that takes on the host."""
        block_strand(self.lockstep)


class StrandLock:
    """A lock whose holder may wait."""

    def __init__(self, lockstep):
        self.lockstep, self.held, self.waiting = lockstep, False, collections.deque()

    def acquire(self):
        while self.held:
            self.waiting.append(running_strand(self.lockstep))
            block_strand(self.lockstep)
        self.held = True

    def release(self):
        self.held = False
        while self.waiting:
            wake_strand(self.lockstep, self.waiting.popleft())

    def __enter__(self):
        self.acquire()

    def __exit__(self, *_):
        self.release()


class StrandThreads(Threads):
    """Threads whose functions take turns, each as a strand of its own."""

    def __init__(self, name, lockstep):
        super().__init__(name)
        self.lockstep = lockstep

    def submit(self, function, *args):
        """The Future of function(*args)."""
        number = new_strand(self.lockstep)
        if number == NOBODY:
            raise OSError(errno.EAGAIN, f"{MAX_STRANDS} functions and operations are under way, the limit in lockstep")
        try:
            return super().submit(function, number, *args)
        except OSError:
            drop_strand(self.lockstep, number)
            raise

    def run(self, future, function, args):
        """Call a function when its strand's turn comes; who waits for its result can run when the strand waits or ends."""
        begin_strand(self.lockstep, args[0])
        super().run(future, function, args[1:])
        go_away()
        end_strand(self.lockstep)


class StrandFuture(Future):
    """A Future for which a strand waits by letting others run. A time limit is one of emulated time."""

    def __init__(self, lockstep):
        super().__init__()
        self.lockstep = lockstep

    def result(self, timeout=None):
        wait_for(self.lockstep, self, timeout)
        return super().result(0)

    def let_time_pass(self):
        """Who waits looks again a little later."""
        let_time_pass(self.lockstep)

    def exception(self, timeout=None):
        wait_for(self.lockstep, self, timeout)
        return super().exception(0)


def go_away():
    """The function that runs here is about to wait for others, or to end: its CPU is free."""
    turn = getattr(_own, "turn", None)
    if turn is not None:
        _own.turn = None
        turn[0].free(turn[1])


def wait_for(lockstep, future, seconds=None):
    """Wait until a Future is complete; in emulated time so long at most. False: it is not."""
    if future.done():
        return True
    go_away()
    me, until = running_strand(lockstep), None
    future.add_done_callback(lambda _: wake_strand(lockstep, me))
    if seconds is not None:
        until = lockstep_now(lockstep) + round(seconds * 1e9)
    while not future.done():
        if until is None:
            block_strand(lockstep)
        elif lockstep_now(lockstep) >= until:
            return False
        else:
            sleep_strand(lockstep, until)
    return True


def let_time_pass(lockstep):
    """Wait a little in emulated time: for who looks again and again whether something has happened."""
    go_away()
    sleep_strand(lockstep, lockstep_now(lockstep) + POLL_NS)


class StrandWaiter:
    """A strand in the queue, or a sleeper."""

    def __init__(self, task_key, strand):
        self.task, self.strand, self.woken, self.granted = task_key, strand, False, False


class StrandQueue(RunQueue):
    """The turn of a CPU in lockstep. A task whose function waits for others, or has ended, gives the CPU away at once; one that
    only goes on from operation to operation keeps it until its slice is over.
    """

    def __init__(self, state, lockstep):
        super().__init__(state)
        self.lockstep, self.is_away = lockstep, True  # of `current`: its function waits for others

    def enter(self, task_key):
        """Wait for the turn, and go by the CPU's clock from then on."""
        if not self.busy and (
            not self.queue or self.is_away or task_key == self.current and task_key and not self.slice_over()
        ):
            self.busy, self.current = True, task_key or self.current
        else:
            waiter = self.waiter(task_key)
            self.append(waiter)
            self.wait(waiter)
        enter_turn(self.lockstep, self.address)

    def leave(self, task_key, stays=False):
        """Give the turn up; see RunQueue.leave."""
        self.wake_sleepers()
        if self.queue and (not stays or self.queue[0].task is None or self.slice_over()):
            if task_key is not None:
                self.state.preempted = int(stays)
            self.grant()
            _own.turn = None
        else:
            self.busy, self.turns = False, self.turns + 1
            if not stays and task_key is not None:
                self.current = None
            self.is_away = not (stays and task_key is not None)
            _own.turn = None if self.is_away else (self, task_key)
        leave_turn(self.lockstep)

    def give_way(self, task_key):
        """Wait behind the others; False: there are none."""
        if not self.queue and not self.sleepers:
            return False
        self.wake_sleepers()
        if not self.queue and self.sleepers and task_key is None:
            self.append(self.first_sleeper())
        if not self.queue:
            return False
        if task_key is not None:
            self.state.preempted = 1
        waiter = self.waiter(task_key)
        self.queue.append(waiter)
        self.grant()
        self.wait(waiter)
        enter_turn(self.lockstep, self.address)
        return True

    def sleep(self, task_key, until_ns):
        """Wait until emulated time has come so far; the CPU is free meanwhile, and its clock jumps only if nobody uses it."""
        waiter = self.waiter(task_key)
        heapq.heappush(self.sleepers, (until_ns, next(self.order), waiter))
        self.wake_sleepers()
        self.tell()
        if self.queue:
            self.grant()
        else:
            self.busy, self.is_away, self.turns = False, True, self.turns + 1
        if not waiter.granted:
            sleep_strand(self.lockstep, until_ns)
        if not waiter.granted and self.take_out(waiter):
            if self.busy or self.queue:
                self.put_first(waiter)
            else:
                self.busy, self.current, waiter.granted = True, task_key, True
                self.tell()
        self.wait(waiter)
        enter_turn(self.lockstep, self.address)
        return True

    def free(self, task_key):
        """`task_key`'s function does not go on to its next operation."""
        if not self.busy and self.current == task_key:
            self.is_away = True
            if self.queue:
                self.grant()

    def waiter(self, task_key):
        return StrandWaiter(task_key, running_strand(self.lockstep))

    def wait(self, waiter):
        """Until the turn has been granted."""
        while not waiter.granted:
            block_strand(self.lockstep)

    def grant(self):
        """Hand the turn to the first in the queue."""
        waiter = self.queue.popleft()
        self.tell()
        self.busy, self.turns, self.current = True, self.turns + 1, waiter.task or self.current
        waiter.granted = True
        if waiter.strand != running_strand(self.lockstep):
            wake_strand(self.lockstep, waiter.strand)

    def first_sleeper(self):
        return heapq.heappop(self.sleepers)[2]

    def take_out(self, waiter):
        """Take a sleeper out; False: somebody has done so already."""
        left = [entry for entry in self.sleepers if entry[2] is not waiter]
        found = len(left) < len(self.sleepers)
        heapq.heapify(left)
        self.sleepers = left
        return found

    def put_first(self, waiter):
        """Who has slept comes before those who have not, behind others that have."""
        waiter.woken = True
        place = next((n for n, other in enumerate(self.queue) if not other.woken), len(self.queue))
        self.queue.insert(place, waiter)
        self.tell()
        if not self.busy and self.is_away:
            self.grant()

    def look_after(self):
        """Nobody has to: who gives the CPU away grants it."""

    def pin(self, here):
        """The whole machine is on one CPU of the host already."""
