"""What a CPU does for the tasks on it: each public method is one operation, run in the CPU's turn.

Called with the task's number, by `Task` in the same process or by message. Results are plain values; a failed system
call raises OSError with Linux's errno, an access that the kernel refuses raises SegmentationFault or OutOfMemory.
"""

import errno
import sys

import numpy as np

from numaemu.api.access import copy_range, execute_at, touch_range
from numaemu.api.overlap import work_ns
from numaemu.api.vectors import loops_of
from numaemu.errors import BusError, KernelBug, OutOfMemory, SegmentationFault
from numaemu.hardware.processor import PF_UNALIGNED, X86_PF_INSTR, X86_PF_PROT, X86_PF_WRITE
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.sched import (
    DUE,
    EVERY,
    GONE,
    HERE,
    VICTIM,
    WANTED,
    ZOMBIE,
    claim_every,
    deactivate,
    new_slice,
    sleep_until,
    task_standing,
)
from numaemu.kernel.fs.sysfs.stats import cpu_figures, task_numbers
from numaemu.kernel.include.mm_types import TASK_RUNNING, cgroup_t, task_t
from numaemu.kernel.mm.numa.scan import set_task_cpu
from numaemu.kernel.mm.reclaim.oom_kill import epitaph, oom_exit, oom_release
from numaemu.kernel.syscalls import common as syscalls
from numaemu.kernel.syscalls.common import INT_MIN
from numaemu.operations.allocators import KernelOperations
from numaemu.operations.exec import ExecOperations
from numaemu.operations.faults import FaultTexts
from numaemu.operations.files import FileOperations
from numaemu.operations.kernel_space import KernelSpaceOperations
from numaemu.operations.memory import MmOperations, check
from numaemu.operations.mempolicy import MempolicyOperations
from numaemu.operations.pages import PageOperations
from numaemu.operations.proc import ProcOperations
from numaemu.operations.refusals import explained
from numaemu.operations.words import WordOperations
from numaemu.spec.param import CPU_WORDS, PAGE_SIZE
from numaemu.uapi import SIGBUS, SIGKILL

BUFFER_BYTES = 1 << 20  # results from this size on come from a buffer that is kept
PIECE_BYTES = 1 << 20  # of a read that must fail
KTIME_MAX = 1 << 62  # ns: nobody sleeps longer


def cpu_words(cpus):
    """The words of a mask of CPUs."""
    mask = sum(1 << cpu for cpu in cpus)
    return [mask >> 64 * word & (1 << 64) - 1 for word in range(CPU_WORDS)]


def kill_task(task):
    """End a task if it is still alive (its function has returned); the OutOfMemory it has not been told of, if any."""
    try:
        task.exit(0)
    except OSError:
        pass
    except OutOfMemory as error:
        return error
    return None


def release_gil(function):
    """Let a user kernel, before it is first compiled, run without Python's lock: this process must serve its mailbox
    even while a kernel spins until somebody else stores a word.
    """
    options = getattr(function, "targetoptions", None)
    if options is not None and not function.overloads:
        options["nogil"] = True


class Operations(
    KernelOperations,
    KernelSpaceOperations,
    PageOperations,
    MmOperations,
    MempolicyOperations,
    ExecOperations,
    FileOperations,
    ProcOperations,
    WordOperations,
    FaultTexts,
):
    """The operations of one CPU."""

    def __init__(self, process):
        self.process, self.machine, self.address = process, process.machine, int(process.state.address)
        self.tasks = task_t.array(self.machine.tasks)
        self.spare = None
        self.preempt_count, self.running_alone = 0, None  # (number, pid) of the task that keeps the turn
        self.kmap_slots = []  # addresses that it has mapped by kmap_atomic
        self.prepare_words()

    def run(self, task_number, pid, method, args):
        """One operation of task `pid`, in this CPU's turn. Its number may be another's by now, if it was killed."""
        if (
            self.running_alone != (task_number, pid) or method == "die"
        ):  # a kill waits until its victim may be preempted
            self.process.turn.enter((task_number, pid))
        try:
            return self.run_in_turn(task_number, pid, method, args)
        finally:
            self.end_turn(task_number, pid)

    def end_turn(self, task_number, pid):
        """An operation is over: give the turn up, unless the task may not be preempted."""
        standing = task_standing(self.address, task_number, pid)
        if standing & WANTED and standing & HERE and self.preempt_count == 0:
            self.numa_migrate(task_number)
            standing = task_standing(self.address, task_number, pid)
        here = standing & HERE
        if self.preempt_count == 0 or not here:
            self.preempt_count, self.running_alone = 0, None
            while self.kmap_slots:  # it has ended in between
                self.kunmap_last()
            self.process.turn.leave((task_number, pid), here)
            if standing & DUE:
                self.process.run_every(claim_every(self.address))

    def preempt_disable(self, task_number):
        """Keep the turn after this operation, for this task's next ones."""
        self.preempt_count += 1
        self.running_alone = task_number, self.tasks[task_number].pid

    def give_way(self, task_number, pid):
        """Let the tasks that wait for this CPU run; back when this one has the turn again. False: there are none."""
        return self.preempt_count == 0 and self.process.turn.give_way((task_number, pid))

    def schedule(self, task_number, until_ns):
        """A task in the middle of accesses has had its slice (0), or waits for the driver's functions (EVERY), or sleeps until
        the disk has done what it asked for.
        """
        key = task_number, self.tasks[task_number].pid
        if until_ns == EVERY:
            self.process.turn.leave(key, stays=True)
            self.process.run_every(claim_every(self.address))
            self.process.turn.enter(key)
        elif not until_ns:
            self.give_way(*key)
        elif self.preempt_count == 0:
            self.process.turn.sleep(key, until_ns)

    def preempt_enable(self, task_number):
        if self.preempt_count == 0:
            raise KernelBug("preempt_enable: preemption is not disabled on this CPU")
        self.preempt_count -= 1

    def run_in_turn(self, task_number, pid, method, args):
        """One operation, while this CPU's turn is held. What fails is told with its reason; a task that was OOM-killed
        raises OutOfMemory.
        """
        standing = task_standing(self.address, task_number, pid)
        if standing & ZOMBIE:
            raise self.oom_killed(task_number)
        if standing & GONE:
            raise OSError(errno.ESRCH, "the task has ended")
        try:
            answer = getattr(self, method)(task_number, *args)
        except Exception as error:
            if task_standing(self.address, task_number, pid) & VICTIM:
                raise self.oom_killed(task_number) from None
            if type(error) is ValueError or isinstance(error, OSError):
                raise explained(self, task_number, method, args, error) from None
            raise
        if task_standing(self.address, task_number, pid) & VICTIM:
            if method in ("fork", "clone", "vfork"):
                self.die(answer[0], SIGKILL)  # nobody will ever hold it
            raise self.oom_killed(task_number)
        return answer

    def oom_exit(self, numbers):
        """Victims of the OOM killer end while none of them runs, be it in the middle of accesses; what they do next tells them."""
        for number in numbers:
            task = self.tasks[number]
            if task.cpu == self.process.cpu_number and task.state == TASK_RUNNING and task.oom_victim == task.pid:
                oom_exit(self.address, number)

    def oom_killed(self, task_number):
        """The exception for a victim, which is gone after it."""
        task = self.tasks[task_number]
        if task.state == TASK_RUNNING:
            oom_exit(self.address, task_number)
        error = OutOfMemory(epitaph(self.machine, task))
        oom_release(self.address, task_number)
        return error

    # -- memory accesses

    def accessing(self, task_number, function, *args):
        """Run compiled code that accesses memory, inside; name the fault if the kernel refuses one."""
        syscalls.begin_access(self.address, task_number)
        try:
            return function(*args)
        except (SegmentationFault, KernelBug) as error:
            told = self.refused(task_number, error)
            if told is error:
                raise
            raise told from (error if error.args else None)
        finally:
            syscalls.end_access(self.address)

    def refused(self, task_number, error):
        """What compiled code has raised, as the exception that names the fault, if the kernel has refused one."""
        if isinstance(error, KernelBug):
            self.no_bug()
        if not self.process.state.signal:
            return error
        return self.oops(task_number) if isinstance(error, KernelBug) else self.fault(task_number)

    def load(self, task_number, addresses, dtype):
        """The values at virtual addresses, as an array of `dtype` in the shape of `addresses`."""
        addresses = np.ascontiguousarray(addresses, np.uint64)
        dtype = np.dtype(dtype)
        values = self.buffer(addresses.size * dtype.itemsize).view(dtype).reshape(addresses.shape)
        self.accessing(
            task_number,
            loops_of(self.process.state)[0][dtype.itemsize],
            self.address,
            addresses.ctypes.data,
            values.ctypes.data,
            addresses.size,
        )
        return values

    def buffer(self, nbytes):
        """Bytes for a result. A large buffer that nobody holds any more is used again: the host's first touch of new
        memory would cost more than the emulated loads.
        """
        if nbytes < BUFFER_BYTES:
            return np.empty(nbytes, np.uint8)
        spare = self.spare
        if spare is None or len(spare) < nbytes or sys.getrefcount(spare) > 3:  # ours, `spare`, the argument
            spare = self.spare = np.empty(nbytes, np.uint8)
        return spare[:nbytes]

    def store(self, task_number, addresses, values):
        """Store values at virtual addresses, one each, or one value at all of them."""
        addresses = np.ascontiguousarray(addresses, np.uint64)
        values = np.ascontiguousarray(values)
        step = 1 if values.size == addresses.size else 0
        if step == 0 and values.size != 1:
            raise ValueError(f"{values.size} values for {addresses.size} addresses")
        self.accessing(
            task_number,
            loops_of(self.process.state)[1][values.dtype.itemsize],
            self.address,
            addresses.ctypes.data,
            values.ctypes.data,
            addresses.size,
            step,
        )

    def read(self, task_number, addr, nbytes):
        mapped = int(mm_of(self.machine, self.tasks[task_number].mm).total_vm) * PAGE_SIZE
        return self.copy_out(task_number, copy_range, addr, nbytes, mapped)

    def copy_out(self, task_number, copy, addr, nbytes, mapped):
        """`nbytes` bytes. Of more than all that is mapped some are not: they are read in pieces that nobody keeps, to the fault."""
        if nbytes > mapped:
            piece = np.empty(PIECE_BYTES, np.uint8)
            for at in range(addr, addr + nbytes, PIECE_BYTES):
                self.accessing(
                    task_number, copy, self.address, at, piece.ctypes.data, min(PIECE_BYTES, addr + nbytes - at), 0
                )
        data = np.empty(nbytes, np.uint8)
        self.accessing(task_number, copy, self.address, addr, data.ctypes.data, nbytes, 0)
        return data.tobytes()

    def write(self, task_number, addr, data):
        data = np.frombuffer(data, np.uint8)
        self.accessing(task_number, copy_range, self.address, addr, data.ctypes.data, len(data), 1)

    def execute(self, task_number, addr):
        """One instruction fetch."""
        self.accessing(task_number, execute_at, self.address, addr)

    def touch(self, task_number, addr, nbytes, stride, write):
        if stride < 1:
            raise ValueError("stride is 0, must be at least 1")
        self.accessing(task_number, touch_range, self.address, addr, addr + nbytes, stride, int(write))

    def call(self, task_number, function, args):
        """A user kernel: function(cpu, *args)."""
        release_gil(function)
        return self.accessing(task_number, function, self.process.state, *args)

    def fault(self, task_number):
        """The exception for the fault that the kernel has just refused."""
        state, task = self.process.state, self.tasks[task_number]
        address, signal, pid, mm = int(state.cr2), state.signal, task.pid, task.mm
        code = int(state.error_code)
        what = "store to" if code & X86_PF_WRITE else "execution at" if code & X86_PF_INSTR else "load from"
        name = bytes(task.comm.as_numpy()).rstrip(b"\0").decode()
        state.signal = 0
        who = f"task {pid} ({name}) on cpu {self.process.cpu_number}"
        if signal == SIGKILL:
            syscalls.end_access(self.address)
            if task.oom_victim == pid:  # `run` tells it
                return OutOfMemory("killed by the OOM killer")
            rss, why = int(mm_of(self.machine, mm).rss[1]) * 4, self.shortage_at(task_number, address)
            syscalls.sys_exit(self.address, task_number, SIGKILL)
            return OutOfMemory(
                f"{who}: no node it may use can serve a {what.split()[0]} at {address:#x}: {why}; it was "
                f"killed with {rss} kB resident"
            )
        if signal == SIGBUS:
            return BusError(f"{who}: {what} {address:#x}: {self.beyond_the_end(task_number, mm, address)}")
        if code & PF_UNALIGNED:
            return SegmentationFault(
                f"{who}: {what} {address:#x}: not a multiple of the size of a word, as what a library stores is: "
                "something has written over a link"
            )
        where = self.describe(mm, address, bool(code & X86_PF_PROT))
        return SegmentationFault(f"{who}: {what} {address:#x}: {where} (error code {code:#x})")

    # -- the task

    def fork(self, task_number, cpu_number):
        """(child's task number, pid); it is to be on this CPU, or (None) on its parent's."""
        self.check_cpu(task_number, cpu_number)
        child = check(syscalls.sys_fork(self.address, task_number))
        return child, self.tasks[child].pid

    def clone(self, task_number, cpu_number):
        self.check_cpu(task_number, cpu_number)
        child = check(syscalls.sys_clone(self.address, task_number))
        return child, self.tasks[child].pid

    def vfork(self, task_number, cpu_number):
        self.check_cpu(task_number, cpu_number)
        child = check(syscalls.sys_vfork(self.address, task_number))
        return child, self.tasks[child].pid

    def setuid(self, task_number, uid):
        check(syscalls.sys_setuid(self.address, task_number, uid))

    def sleep(self, task_number, ms):
        """Other tasks of this CPU run meanwhile; if none wants to, its clock jumps."""
        if ms < 0:
            check(-errno.EINVAL)
        until = min(syscalls.sys_schedule(self.address, task_number) + round(ms * 1_000_000), KTIME_MAX)
        if self.preempt_count:
            raise KernelBug(
                f"scheduling while atomic: task {self.tasks[task_number].pid} may not sleep before put_cpu_var"
            )
        self.process.turn.sleep((task_number, self.tasks[task_number].pid), until)
        sleep_until(self.address, until)

    def work(self, task_number, ns):
        """The task has the CPU meanwhile."""
        if ns < 0:
            check(-errno.EINVAL)
        self.accessing(task_number, work_ns, self.address, min(round(ns), KTIME_MAX))

    def sched_yield(self, task_number):
        """To the end of the CPU's run queue."""
        syscalls.sys_schedule(self.address, task_number)
        if not self.give_way(task_number, self.tasks[task_number].pid):
            new_slice(self.address)

    def wait(self, task_number, pid, options):
        """(pid, status) of a child that has ended, or None: none has."""
        if INT_MIN < pid < -1 or pid == 0:
            raise NotImplementedError(f"wait: pid {pid} means a process group, and there are none")
        status = np.zeros(1, np.int64)
        found = check(syscalls.sys_wait4(self.address, task_number, pid, options, status.ctypes.data))
        return (found, int(status[0])) if found else None

    def exit(self, task_number, code):
        self.tasks[task_number].exit_code = code
        syscalls.sys_exit(self.address, task_number, 0)

    def kill(self, task_number, pid, signal):
        """Raise unless the caller may send the signal."""
        if INT_MIN < pid <= 0:
            raise NotImplementedError(f"kill: pid {pid} means a process group, and there are none")
        check(syscalls.sys_kill(self.address, task_number, self.number_of_pid(pid), signal))

    def thread_group(self, task_number, pid):
        """(number, pid) of the living threads of the process that task `pid` belongs to, the caller last."""
        tgid = self.tasks[self.number_of_pid(pid)].tgid
        members = [n for n in task_numbers(self.machine) if self.tasks[n].tgid == tgid]
        return [(n, self.tasks[n].pid) for n in sorted(members, key=lambda n: n == task_number)]

    def die(self, task_number, signal):
        """A signal that ends the task, on the CPU it is on, and not in the middle of its accesses."""
        while self.tasks[task_number].preempted and self.process.turn.give_way(None):
            pass
        syscalls.sys_exit(self.address, task_number, signal)

    def sched_setaffinity(self, task_number, cpus):
        """Move the task to the first of `cpus` that it may be on, unless it is on one of them; the CPU it is on now. Among several
        NUMA balancing may move it.

        CPUs that the machine does not have are passed over, as bits behind the last CPU of a mask are.
        """
        cpus = sorted(self.cpus_allowed(task_number) & set(cpus))
        if not cpus:
            check(-errno.EINVAL)
        task = self.tasks[task_number]
        if task.cpu not in cpus:
            if self.preempt_count:
                where = f"task {task.pid} may not leave cpu {task.cpu} before put_cpu_var"
                raise KernelBug(f"scheduling while atomic: {where}")
            deactivate(self.address)
            set_task_cpu(self.address, task_number, cpus[0])
        for word, mask in enumerate(cpu_words(cpus if len(cpus) > 1 else ())):
            task.cpus_mask[word] = mask
        return task.cpu

    def numa_migrate(self, task_number):
        """NUMA balancing wants the task on another CPU, which its affinity allows: it goes there (migrate_task_to)."""
        task = self.tasks[task_number]
        target, task.numa_migrate_to = task.numa_migrate_to - 1, 0
        if target != task.cpu and target in self.cpus_allowed(task_number):
            deactivate(self.address)
            set_task_cpu(self.address, task_number, target)

    def cpus_allowed(self, task_number):
        """The CPUs that the task's cpuset allows (cpuset_cpus_allowed)."""
        words = cgroup_t.array(self.machine.cgroups)[self.tasks[task_number].cgroup].cpus
        return {cpu for cpu in range(self.machine.nr_cpus) if int(words[cpu // 64]) >> cpu % 64 & 1}

    def check_cpu(self, task_number, cpu_number):
        """Raise unless a child of the task may be put on this CPU."""
        if cpu_number is not None and cpu_number not in self.cpus_allowed(task_number):
            check(-errno.EINVAL)

    def place(self, task_number, cpu_number):
        """Put a new child on a CPU."""
        self.tasks[task_number].cpu = cpu_number

    def clock_ns(self, task_number):
        return syscalls.read_clock(self.address)

    def counters(self, task_number):
        """This CPU's figures and the task's faults."""
        task = self.tasks[task_number]
        return {
            **cpu_figures(self.machine, self.process.cpu_number, self.process.world.topology.cache),
            "task_minor_faults": task.min_flt,
            "task_major_faults": task.maj_flt,
        }
