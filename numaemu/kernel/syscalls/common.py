"""System calls: what a task asks of the kernel, run by the CPU the task is on. Linux's SYSCALL_DEFINE functions.

Each entry takes the CPU's address and the task's number, makes the task the running one (loading its address space
if another was loaded), takes the locks and calls the function that does the work. Results are values or -errno.
"""

from errno import EINVAL, ENOMEM, EPERM, ESRCH

import numpy as np

from numaemu.compiler.atomic import exchange, fetch_add, load_acquire
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import address_of, i64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.fork import copy_process, do_exit, do_wait, dup_mm, mm_alloc, mmget_not_zero, mmput
from numaemu.kernel.core.sched import context_switch
from numaemu.kernel.core.smp import enter, leave, machine_of
from numaemu.kernel.core.timer import run_local_timers
from numaemu.kernel.fs.exec import setup_plain_mm
from numaemu.kernel.include.mm_types import task_t
from numaemu.kernel.mm.page_alloc.pcplist import drain_local_pages
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain
from numaemu.kernel.mm.space.util import capable
from numaemu.mmu import clock_ns
from numaemu.uapi import RLIMIT_STACK, WCONTINUED, WNOHANG, WUNTRACED

U = np.uint64
NSIG = 64  # the last signal
INVALID_UID = (1 << 32) - 1
INT_MIN = -1 << 31
WAIT_OPTIONS = WNOHANG | WUNTRACED | WCONTINUED | 7 << 29  # with __WNOTHREAD, __WALL and __WCLONE


@hot
def running(cpu_address, task_number):
    """The CPU, with the task running on it and a system call charged."""
    cpu = cpu_t.at(cpu_address)
    if cpu.task != task_number or cpu.mm == 0 or cpu.mm_id != mm_of(machine_of(cpu), cpu.mm).id:
        context_switch(cpu, task_number)
    cpu.clock_base_ns += machine_of(cpu).syscall_ns
    run_local_timers(cpu)
    return cpu


@hot
def mmap_lock(cpu):
    return address_of(mm_of(machine_of(cpu), cpu.mm), "mmap_lock")


@hot
def go_inside(cpu, task_number):
    """Make the task run and go inside emulated accesses (not a system call: nothing is charged)."""
    if cpu.task != task_number or cpu.mm == 0 or cpu.mm_id != mm_of(machine_of(cpu), cpu.mm).id:
        context_switch(cpu, task_number)
    if machine_of(cpu).numa_balancing != 0 or load_acquire(machine_of(cpu), "every_at_ns") != 0:
        exchange(cpu, "event_at", 0)  # time may have passed since the last access
    enter(cpu)


@entry("void(u64, i64)")
def begin_access(cpu_address, task_number):
    go_inside(cpu_t.at(cpu_address), task_number)


@entry("void(u64)")
def end_access(cpu_address):
    """Go outside."""
    leave(cpu_t.at(cpu_address))


@kernel("i64(cpu_t*, i64)")
def get_task_mm(cpu, target):
    """A task's address space, kept alive until mmput; its number, or 0: it has none (any more)."""
    machine = machine_of(cpu)
    task = task_t.array(machine.tasks)[target]
    number = load_acquire(task, "mm")
    if number == 0:
        return 0
    if not mmget_not_zero(cpu, number):
        return 0
    if load_acquire(task, "mm") != number:
        mmput(cpu, number)
        return 0
    return number


@kernel("bool(cpu_t*, i64)")
def ptrace_may_access(cpu, target):
    """True if the running task may look at another one's memory: root may, and the same user."""
    tasks = task_t.array(machine_of(cpu).tasks)
    caller, other = tasks[cpu.task], tasks[target]
    return caller.tgid == other.tgid or capable(cpu) or caller.uid == other.uid


# -- tasks ---------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*)")
def new_task(cpu):
    """A task with an address space of its own, as init starts one: its number, or -ENOMEM."""
    mm = mm_alloc(cpu)
    if mm == 0:
        return -ENOMEM
    number = copy_process(cpu, mm, 0, False)
    if number == 0:
        mmput(cpu, mm)
        return -ENOMEM
    if setup_plain_mm(cpu, mm, task_t.array(machine_of(cpu).tasks)[number].rlim[2 * RLIMIT_STACK]) != 0:
        do_exit(cpu, number, 0)
        return -ENOMEM
    return number


@entry("i64(u64)")
def create_task(cpu_address):
    """A task with an address space of its own (what init's fork and exec would give): its number, or -ENOMEM."""
    cpu = cpu_t.at(cpu_address)
    current, cpu.task = cpu.task, 0  # its allocations are nobody's yet
    number = new_task(cpu)
    cpu.task = current
    return number


@entry("i64(u64, i64)")
def sys_fork(cpu_address, task_number):
    """fork(2): the child's task number (it runs when its CPU first runs it), or -ENOMEM."""
    cpu = running(cpu_address, task_number)
    mm = dup_mm(cpu, cpu.mm)
    if mm == 0:
        return -ENOMEM
    number = copy_process(cpu, mm, task_number, False)
    if number == 0:
        mmput(cpu, mm)
        return -ENOMEM
    return number


@hot
def share_mm(cpu, task_number, thread):
    """A task in the caller's address space, a thread of the caller or a process of its own; its number, or -ENOMEM."""
    fetch_add(mm_of(machine_of(cpu), cpu.mm), "users", 1)
    number = copy_process(cpu, cpu.mm, task_number, thread)
    if number == 0:
        mmput(cpu, cpu.mm)
        return -ENOMEM
    return number


@entry("i64(u64, i64)")
def sys_clone(cpu_address, task_number):
    """clone(2) with CLONE_VM | CLONE_FILES | CLONE_THREAD: a task that shares the address space; its number, or -ENOMEM."""
    return share_mm(running(cpu_address, task_number), task_number, True)


@entry("i64(u64, i64)")
def sys_vfork(cpu_address, task_number):
    """clone(2) with CLONE_VM alone: a process of its own in the same address space; its number, or -ENOMEM."""
    return share_mm(running(cpu_address, task_number), task_number, False)


@entry("i64(u64, i64, i64, i64)")
def sys_kill(cpu_address, task_number, target, signal):
    """What kill(2) asks before it sends a signal: 0 or -errno. `target` is a task's number, 0: there is none."""
    cpu = running(cpu_address, task_number)
    tasks = task_t.array(machine_of(cpu).tasks)
    if target == 0:
        return -ESRCH
    if signal < 0 or signal > NSIG:
        return -EINVAL
    allowed = (
        tasks[task_number].tgid == tasks[target].tgid or capable(cpu) or tasks[task_number].uid == tasks[target].uid
    )
    return 0 if allowed else -EPERM  # check_kill_permission


@entry("i64(u64, i64, i64)")
def sys_setuid(cpu_address, task_number, uid):
    """setuid(2): 0, -EINVAL or -EPERM. From another user than root there is no way back."""
    cpu = running(cpu_address, task_number)
    machine = machine_of(cpu)
    tasks = task_t.array(machine.tasks)
    if uid < 0 or uid >= INVALID_UID:
        return -EINVAL
    if not capable(cpu) and uid != tasks[task_number].uid:
        return -EPERM
    tasks[task_number].uid = uid
    return 0


@entry("i64(u64, i64, i64, i64, u64)")
def sys_wait4(cpu_address, task_number, pid, options, status_address):
    """wait4(2) without waiting: a child that has ended, 0 or a negative errno; its status goes to the host address given."""
    cpu = running(cpu_address, task_number)
    if options & ~WAIT_OPTIONS:
        return -EINVAL
    if pid == INT_MIN:
        return -ESRCH
    return do_wait(cpu, task_t.array(machine_of(cpu).tasks)[task_number], pid, i64.array(status_address))


@entry("i64(u64, i64)")
def sys_schedule(cpu_address, task_number):
    """A system call that will give the CPU up, until the run queue (runqueue.py) is asked: the clock then."""
    return clock_ns(running(cpu_address, task_number))


@entry("void(u64, i64, i64)")
def sys_exit(cpu_address, task_number, signal):
    do_exit(running(cpu_address, task_number), task_number, signal)


@entry("void(u64)")
def drain_pages(cpu_address):
    """Give everything on this CPU's page lists back (a CPU that is asked to, between two operations)."""
    cpu = cpu_t.at(cpu_address)
    lru_add_drain(cpu)
    drain_local_pages(cpu)


@entry("void(u64)")
def drain_lru(cpu_address):
    """Empty this CPU's LRU batches (a CPU that is asked to, between two operations)."""
    lru_add_drain(cpu_t.at(cpu_address))


@entry("i64(u64)")
def read_clock(cpu_address):
    """The CPU's emulated time in ns."""
    return clock_ns(cpu_t.at(cpu_address))


# -- task.kernel ---------------------------------------------------------------------------------------------
