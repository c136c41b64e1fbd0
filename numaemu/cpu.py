"""A CPU's process: it runs tasks, translates, handles its own page faults, answers shootdowns.

Each spawned function has a thread of its own; an operation (a system call, a vector of accesses, a kernel) takes the
CPU's turn (runqueue.py), so tasks on one CPU share it in slices of emulated time. The main thread serves the mailbox: it
starts tasks and passes on operations of tasks that are driven from elsewhere. A CPU that waits inside an
operation (for its node, the coordinator, a lock) sleeps on its *wait bell*, which has nothing to do with the mailbox.
"""

import ctypes
import functools
import io
import itertools
import os
import signal
import sys
import threading
import time
import traceback
import weakref

import posix_ipc

from numaemu.api.task import Handle, Task
from numaemu.compiler import user_kernels
from numaemu.compiler.build import JIT
from numaemu.compiler.native import PythonCallback
from numaemu.hardware.processor import cpu_t
from numaemu.host.where import Running
from numaemu.kernel.arch.fault import exc_page_fault
from numaemu.kernel.arch.tlb import answer_ipi
from numaemu.kernel.core.sched import clock, handle_event, sleep_until
from numaemu.kernel.core.smp import FOR_BELL, FOR_OTHERS, NOT_WOKEN, actor_of_cpu, ring
from numaemu.kernel.include.mm_types import TASK_NAME_BYTES, task_t
from numaemu.kernel.mm.cache.truncate import iput_from_below
from numaemu.kernel.mm.migrate.compaction import direct_compact
from numaemu.kernel.mm.migrate.kcompactd import compact_node_now
from numaemu.kernel.mm.numa.scan import task_tick
from numaemu.kernel.mm.reclaim.direct_reclaim import try_to_free_pages
from numaemu.kernel.mm.reclaim.kswapd import wake_kswapd
from numaemu.kernel.mm.reclaim.node_reclaim import node_reclaim
from numaemu.kernel.mm.reclaim.oom_kill import alloc_pages_may_oom
from numaemu.kernel.mm.swap.swapon import try_to_unuse
from numaemu.kernel.syscalls import allocators as kernel_calls
from numaemu.kernel.syscalls import common as syscalls
from numaemu.operations.allocators import Constructors
from numaemu.operations.base import Operations, kill_task
from numaemu.operations.refusals import full_table
from numaemu.process import lines, zcomp
from numaemu.process.actor import COORDINATOR, LONGEST, Actor, mailbox_of_python
from numaemu.process.payload import dump_function, load_function
from numaemu.process.runqueue import RunQueue
from numaemu.process.strands import StrandQueue, let_time_pass
from numaemu.process.wire import Failure, Sealed, dumps, failure, in_words, opened, sealed, settle
from numaemu.tiering.install import install_tiering

PRINT_BYTES = 1 << 20  # of one CPU's tasks wait at most to be shown, then who prints waits; assumed
WAIT_S = 0.2  # how long a CPU sleeps at most before it looks again; if it finds what it waits for, a bell is missing:
GRACE_S = 1.0  # how long it may still be on its way, before it counts as lost (World.lost); assumed
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
_installed = []  # ctypes callbacks must outlive the machine
_cpus = {}  # those of this process: one, but for tests


def _address_of(function):
    """The address that compiled code calls for a Python function."""
    if not JIT:
        return PythonCallback(function).address
    callback = _CALLBACK(function)
    _installed.append(callback)
    return ctypes.cast(callback, ctypes.c_void_p).value


def install_bells(world):
    """Before the children fork: how any of them rings another and waits. (lockstep.py has its own.)"""
    machine = world.machine

    def on_wait(cpu_number, what, _c):
        """For FOR_BELL: 1 if it has not rung."""
        if what == FOR_OTHERS:
            os.sched_yield()
            return 0
        try:
            world.wait_bells[cpu_number].acquire(WAIT_S if what == FOR_BELL else GRACE_S)
        except posix_ipc.SignalError:
            pass
        except posix_ipc.BusyError:
            world.lost[cpu_number] += what == NOT_WOKEN
            return 1
        return 0

    for number, bell in world.bells.items():
        mailbox_of_python(machine, number).bell = bell.address
    for number, bell in world.wait_bells.items():
        cpu_t.array(machine.cpus)[number].wait_bell = bell.address
    machine.on_ring = machine.on_wake = ring.address
    machine.on_wait = _address_of(on_wait)


def install_callbacks(world):
    """What else compiled code may call in any process."""
    machine = world.machine
    machine.on_schedule = _address_of(on_schedule)
    world.constructors = Constructors(machine)
    machine.on_ctor = _address_of(world.constructors)
    for number in world.topology.cpus:
        install_entries(cpu_t.array(machine.cpus)[number])
    install_ways_up(machine)
    install_tiering(machine, world.topology.kernel["tiering"])


def on_schedule(cpu_number, task_number, until_ns):
    """Compiled code of a task lets those that wait for the CPU run; the task comes back when it has the turn again."""
    try:
        _cpus[cpu_number].operations.schedule(int(task_number), int(until_ns))
    except BaseException:  # it must not come up inside compiled code
        traceback.print_exc()
        os._exit(70)
    return 0


def install_entries(cpu):
    """What the hardware calls: page fault, shootdown, the event check of accesses."""
    cpu.on_fault, cpu.on_ipi, cpu.on_event = exc_page_fault.address, answer_ipi.address, handle_event.address


def install_ways_up(machine):
    """What lies above the page allocator, and the libraries that compress."""
    machine.on_compress, machine.on_decompress = _address_of(zcomp.on_compress), _address_of(zcomp.on_decompress)
    machine.on_oom, machine.on_compact = alloc_pages_may_oom.address, direct_compact.address
    machine.on_reclaim, machine.on_wake_kswapd = try_to_free_pages.address, wake_kswapd.address
    machine.on_node_reclaim = node_reclaim.address
    machine.on_task_tick = task_tick.address
    machine.on_iput = iput_from_below.address


class Printer(io.TextIOBase):
    """What a task prints appears where the driver prints, by whole lines: lines of different tasks never mix.

    One message of a CPU is under way at a time; what is printed meanwhile comes with the next. So the machine is never
    flooded, and who prints more than is shown waits for it.
    """

    def __init__(self, cpu):
        self.cpu, self.begun = cpu, threading.local()
        self.changed = threading.Condition()
        self.text, self.under_way = "", False

    def writable(self):
        return True

    def write(self, text):
        """Take text, and pass on its whole lines; the rest of the last line waits for more from the same thread."""
        lines, newline, rest = (getattr(self.begun, "text", "") + text).rpartition("\n")
        self.begun.text = rest
        if newline:
            self.put(lines + newline)
        return len(text)

    def flush(self):
        text, self.begun.text = getattr(self.begun, "text", ""), ""
        if text:
            self.put(text)
        self.wait(lambda: not self.text and not self.under_way)

    def put(self, text):
        """Queue whole lines for the driver. The caller waits while PRINT_BYTES wait to be shown; MemoryError if they
        are too long for a message.
        """
        if len(text) > LONGEST // 4:
            raise MemoryError(f"{len(text)} characters are too long to be printed at once: {LONGEST // 4} at most")
        self.wait(lambda: len(self.text) < PRINT_BYTES)
        with self.changed:
            self.text += text
        self.send()

    def wait(self, condition):
        """The thread that serves the mailbox, through which the answer comes, cannot wait; in lockstep nobody has to."""
        if threading.get_ident() != self.cpu.server and not self.cpu.lockstep:
            with self.changed:
                self.changed.wait_for(condition)

    def send(self):
        """Whole lines of what is to be shown, unless a message is under way."""
        if self.cpu.lockstep:
            text, self.text = self.text, ""
            self.cpu.tell(COORDINATOR, "printed", text)
            return
        with self.changed:
            if self.under_way or not self.text:
                return
            self.under_way = True
            cut = self.text.rfind("\n", 0, PRINT_BYTES) + 1 or self.text.find("\n") + 1 or len(self.text)
            lines, self.text = self.text[:cut], self.text[cut:]
        self.cpu.ask(COORDINATOR, "printed", lines).add_done_callback(self.shown)

    def shown(self, _):
        with self.changed:
            self.under_way = False
            self.changed.notify_all()
        self.send()


class Cpu(Actor):
    """CPU `cpu_number`."""

    def __init__(self, world, cpu_number):
        super().__init__(world, actor_of_cpu(world.machine, cpu_number))
        self.cpu_number = cpu_number
        self.state = cpu_t.array(world.machine.cpus)[cpu_number]
        self.turn = StrandQueue(self.state, self.lockstep) if self.lockstep else RunQueue(self.state)
        _cpus[cpu_number] = self
        self.operations = Operations(self)
        self.runs, self.run_numbers = {}, itertools.count(1)  # functions that tasks here have started elsewhere
        self.ended_ns = weakref.WeakKeyDictionary()  # when those have ended whose results nobody has taken yet
        self.threads, self.running = self.new_threads("op"), Running()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout = Printer(self)
        if JIT:
            user_kernels.watch(functools.partial(self.tell, COORDINATOR, "compiled"))
        try:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except OSError:
            pass  # only a matter of speed

    # -- tasks

    def start_task(self, name):
        """A new task on this CPU: its number."""
        with self.turn:
            number = syscalls.create_task(self.state.address)
        if number < 0:
            raise OSError(-number, full_table(self.machine) or os.strerror(-number))
        self.set_comm(number, name)
        return number

    def run_every(self, now_ns):
        """What the driver does at intervals (machine.every), while this CPU stands still; 0: another CPU sees to it."""
        if now_ns:
            self.ask(COORDINATOR, "every", now_ns).result()

    def set_comm(self, task_number, name):
        """task->comm: at most 15 bytes."""
        task = task_t.array(self.machine.tasks)[task_number]
        raw = (name or "task").encode()[: TASK_NAME_BYTES - 1].ljust(TASK_NAME_BYTES, b"\0")
        for i, byte in enumerate(raw):
            task.comm[i] = byte

    def pid_of(self, task_number):
        return task_t.array(self.machine.tasks)[task_number].pid

    # A new task waits for the CPU's turn, and who has it may wait for this thread to serve the mailbox (a drain of
    # all page lists): so it waits in a thread of its own.

    def rpc_new_task(self, name):
        return self.threads.submit(self.new_task, name)

    def new_task(self, name):
        number = self.start_task(name)
        return number, self.pid_of(number)

    def rpc_spawn(self, owner, run, name, payload):
        """Run a pickled (function, args) as a new task; its result goes to `owner` as run `run`."""
        return self.threads.submit(self.spawn, owner, run, name, payload)

    def spawn(self, owner, run, name, payload):
        """Make a task and run a pickled function as it, in a thread of its own; (its number, its pid)."""
        number, pid = self.new_task(name)
        try:
            self.threads.submit(self.run_task, owner, run, number, pid, payload)
        except OSError:
            kill_task(Task(number, pid, self))
            raise
        return number, pid

    def rpc_adopt(self, owner, run, task_number, payload, now_ns=0, keep=False):
        """Run a function as a task that fork or clone has made on another CPU, whose clock said `now_ns`."""
        task_t.array(self.machine.tasks)[task_number].cpu = self.cpu_number
        pid = self.pid_of(task_number)
        self.threads.submit(self.run_task, owner, run, task_number, pid, payload, now_ns, keep)
        return task_number, pid

    def go_on_at(self, ns):
        """Tasks here go on at `ns` at the earliest: one has waited for what another CPU did then."""
        if ns > clock(self.state.address) and not self.operations.preempt_count:
            with self.turn:
                sleep_until(self.state.address, ns)

    def run_task(self, owner, run, task_number, pid, payload, now_ns=0, keep=False):
        """The thread of a spawned function: call it, end the task unless it is to be kept, report."""
        task = Task(task_number, pid, self)
        self.go_on_at(now_ns)
        self.running.begin(task_number, pid)
        try:
            function, args = load_function(payload)
            answer = function(task, *args)
        except BaseException as error:
            answer = failure(error)
        self.running.end()
        try:
            killed = None if keep else kill_task(task)
            if killed and not isinstance(answer, Failure):
                answer = failure(killed)  # it was dead already when it returned
            sys.stdout.flush()
        except BaseException as error:
            answer = failure(error)
        answer = sealed(answer)
        try:
            self.tell(owner, "finished", run, answer, clock(self.state.address))
        except Exception as error:
            answer = sealed(failure(type(error)(f"{answer.what} cannot be sent: {in_words(error)}")))
            self.tell(owner, "finished", run, answer, clock(self.state.address))

    def rpc_whereabouts(self):
        """(pid, name, where) of each task whose function runs in this process."""
        tasks = task_t.array(self.machine.tasks)
        return [
            (pid, bytes(tasks[number].comm.as_numpy()).rstrip(b"\0").decode(errors="replace"), where)
            for (number, pid), where in self.running.lines()
        ]

    def rpc_op(self, task_number, pid, method, args):
        """An operation of a task that is driven from elsewhere; it may take long, so it gets a thread."""
        return self.threads.submit(self.do_op, task_number, pid, method, args)

    def do_op(self, task_number, pid, method, args):
        """What a user gave, and gets, travels sealed."""
        if not isinstance(args, Sealed):
            return self.operations.run(task_number, pid, method, args)
        try:
            return sealed(self.operations.run(task_number, pid, method, opened(args)))
        except BaseException as error:
            return sealed(failure(error))

    def rpc_line(self, name):
        """The driver lays a direct line to this CPU."""
        lines.connect(name, functools.partial(lines.serve, self))

    # -- the Task object's side

    def call_op(self, task_number, pid, method, args):
        """Run an operation of a task of this process: here, or on the CPU it has moved to."""
        if method == "word" and (bits := self.operations.word_at_once(task_number, pid, *args)) is not None:
            return bits
        cpu = self.operations.tasks[task_number].cpu
        if cpu == self.cpu_number:
            return self.operations.run(task_number, pid, method, args)
        args = Sealed(dumps(args), f"the arguments of {method}")
        return opened(self.ask(actor_of_cpu(self.machine, cpu), "op", task_number, pid, method, args).result())

    def where(self, task_number):
        """(cpu, node) of a task."""
        cpu = task_t.array(self.machine.tasks)[task_number].cpu
        return cpu, self.world.topology.node_of_cpu(cpu)

    def start(self, task_number, pid, cpu_number, function, args):
        """Run a function as a task that was just made, on a CPU; its handle."""
        run, future = next(self.run_numbers), self.new_future()
        self.runs[run] = future
        payload = dump_function(function, args)
        try:
            now_ns = clock(self.state.address)
            to = actor_of_cpu(self.machine, cpu_number)
            self.ask(to, "adopt", self.number, run, task_number, payload, now_ns).result()
        except BaseException:
            del self.runs[run]
            raise
        return Handle(pid, future, after=self.go_on_after)

    def go_on_after(self, future):
        """A task here has waited for a function's result."""
        self.go_on_at(self.ended_ns.pop(future, 0))

    def rpc_finished(self, run, answer, now_ns):
        """A function that a task here has started is done, at `now_ns` of its CPU's clock."""
        future = self.runs.pop(run)
        self.ended_ns[future] = now_ns
        settle(future, answer)

    def pause(self, seconds):
        """A function of a task here looks again later: after so long on the host, or in lockstep in emulated time."""
        if self.lockstep:
            let_time_pass(self.lockstep)
        else:
            time.sleep(seconds)

    def printk(self, lines):
        """Lines for the kernel's log."""
        self.tell(COORDINATOR, "printk", lines)

    # -- for the coordinator

    def rpc_drain(self):
        """Return this CPU's unused pages, if no operation is running."""
        if not self.turn.try_enter():
            return False
        try:
            syscalls.drain_pages(self.state.address)
        finally:
            self.turn.__exit__()
        return True

    def rpc_drain_lru(self):
        """Empty this CPU's LRU batches, if no operation is running."""
        if self.turn.try_enter():
            try:
                syscalls.drain_lru(self.state.address)
            finally:
                self.turn.__exit__()

    def rpc_system(self, method, *args):
        """What the driver does with files; it waits for this CPU's turn, so it gets a thread."""
        return self.threads.submit(self.operations.system, method, args)

    def rpc_flush_slab(self, cache_number):
        """Give this CPU's slab of a cache up, if no operation is running."""
        if self.turn.try_enter():
            try:
                kernel_calls.flush_slab(self.state.address, cache_number)
            finally:
                self.turn.__exit__()

    def rpc_oom_exit(self, numbers):
        """End the OOM killer's victims among this CPU's tasks: at once, or after the operation that is running."""
        if not self.turn.try_enter():
            self.threads.submit(self.oom_exit, numbers)
            return False
        try:
            self.operations.oom_exit(numbers)
        finally:
            self.turn.__exit__()
        return True

    def oom_exit(self, numbers):
        with self.turn:
            self.operations.oom_exit(numbers)

    def rpc_compact_node(self, node):
        """Compact a node, if no operation is running; False if one is."""
        return self.threads.submit(self.compact_node, node) if self.turn.try_enter() else False

    def compact_node(self, node):
        """Compact a node in the turn that rpc_compact_node has taken, and give the turn back."""
        try:
            compact_node_now(self.state.address, node)
        finally:
            self.turn.__exit__()
        return True

    def rpc_unuse(self, kind):
        """Bring what a swap area holds back into memory, between two operations."""
        return self.threads.submit(self.unuse, kind)

    def unuse(self, kind):
        with self.turn:
            try_to_unuse(self.state.address, kind)

    def rpc_hold(self):
        """Let no operation run until `release`; what waited for its LRU list is on it by then."""
        return self.threads.submit(self.hold)

    def hold(self):
        self.turn.__enter__()
        syscalls.drain_lru(self.state.address)

    def rpc_release(self):
        self.turn.__exit__()
