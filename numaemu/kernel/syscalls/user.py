"""System calls from compiled code in user mode: what a memory allocator of a task asks of the kernel in the middle of its accesses.

    brk     with (cpu, 0)           where the break is
    mmap    with (cpu, length)      anonymous private memory; `bind` keeps it on one node

The CPU goes outside for the call, as between two operations of a task, and inside again behind it.
"""

import numpy as np

from numaemu.compiler.atomic import exchange
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.core.smp import enter, leave, let_others_run, machine_of, read_lock, read_unlock
from numaemu.kernel.include.mm_types import TASK_RUNNING, task_t
from numaemu.kernel.mm.space.gup import vm_mmap_pgoff
from numaemu.kernel.mm.space.madvise import do_madvise
from numaemu.kernel.syscalls.common import mmap_lock, running
from numaemu.kernel.syscalls.mempolicy import kernel_mbind
from numaemu.kernel.syscalls.mm import vm_brk, vm_mremap, vm_munmap
from numaemu.spec.param import MAX_TASKS
from numaemu.uapi import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, MPOL_BIND, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE

U = np.uint64
SPINS = 50  # looks at a word before who waits yields
NUMBER_BITS = 20  # of a thread's key: the number of its task + 1


@kernel("void(cpu_t*)")
def sched_yield(cpu):
    """sched_yield(2) in the middle of a loop that waits for another thread: the host's processor goes to another process, and
    the emulated CPU to another task if this one's slice is over.
    """
    running(cpu.address, cpu.task)
    let_others_run(cpu)
    if cpu.nr_waiting != 0:
        exchange(cpu, "event_at", 0)  # the access to come looks whether the slice is over (core/sched.py)


@hot
def relax(cpu, tries):
    """In such a loop: yield once in SPINS tries, as a lock does that has spun for a while."""
    if tries % SPINS == SPINS - 1:
        sched_yield(cpu)


@hot
def thread_key(cpu):
    """What tells the running thread from others: its pid, and its task's number + 1, which a later thread may have again. Never 0."""
    return task_t.array(machine_of(cpu).tasks)[cpu.task].pid << NUMBER_BITS | cpu.task + 1


@hot
def number_in(key):
    """The number of the task in a thread's key."""
    return (key & (1 << NUMBER_BITS) - 1) - 1


@hot
def thread_lives(cpu, key):
    """True if a key is that of a thread of the running task's process, as tgkill(2) with signal 0 tells; it writes nothing."""
    number = number_in(key)
    if not 0 <= number < MAX_TASKS:
        return False
    tasks = task_t.array(machine_of(cpu).tasks)
    if tasks[number].pid != key >> NUMBER_BITS:
        return False
    return tasks[number].mm == tasks[cpu.task].mm and tasks[number].state == TASK_RUNNING


@kernel("i64(cpu_t*, i64)")
def brk(cpu, address):
    """brk(2): where the break is then; 0 asks."""
    leave(cpu)
    result = vm_brk(running(cpu.address, cpu.task), U(address))
    enter(cpu)
    return result


@kernel("i64(cpu_t*, i64)")
def mmap(cpu, length):
    """mmap(2) of anonymous private memory: its address, or a negative errno."""
    leave(cpu)
    task = running(cpu.address, cpu.task)
    result = vm_mmap_pgoff(task, U(0), U(length), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0)
    enter(cpu)
    return result


@kernel("i64(cpu_t*, i64, i64)")
def munmap(cpu, start, length):
    """munmap(2): 0 or a negative errno."""
    leave(cpu)
    result = vm_munmap(running(cpu.address, cpu.task), U(start), U(length))
    enter(cpu)
    return result


@kernel("i64(cpu_t*, i64, i64, i64)")
def mremap(cpu, start, length, new_length):
    """mremap(2) with MREMAP_MAYMOVE: where the mapping is then, or a negative errno."""
    leave(cpu)
    task = running(cpu.address, cpu.task)
    result = vm_mremap(task, U(start), U(length), U(new_length), MREMAP_MAYMOVE, U(0))
    enter(cpu)
    return result


@kernel("i64(cpu_t*, i64, i64)")
def discard(cpu, start, length):
    """madvise(2) with MADV_DONTNEED: give the pages of a range back, keep the mapping; 0 or a negative errno."""
    leave(cpu)
    task = running(cpu.address, cpu.task)
    read_lock(task, mmap_lock(task))
    result = do_madvise(task, task.mm, U(start), U(length), MADV_DONTNEED)
    read_unlock(mmap_lock(task))
    enter(cpu)
    return result


@kernel("i64(cpu_t*, i64, i64, i64)")
def bind(cpu, start, length, node):
    """mbind(2) of a range to one node: 0 or a negative errno."""
    leave(cpu)
    nodes = U(1) << U(node)
    result = kernel_mbind(running(cpu.address, cpu.task), U(start), U(length), MPOL_BIND, 0, nodes, 0)
    enter(cpu)
    return result
