"""System calls: what a task asks of the kernel, run by the CPU the task is on. Linux's SYSCALL_DEFINE functions.

Each entry takes the CPU's address and the task's number, makes the task the running one (loading its address space
if another was loaded), takes the locks and calls the function that does the work. Results are values or -errno.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire, store_release
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import address_of, i64, u64
from numaemu.hardware.paging import PAGE_MASK
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.fork import copy_process, do_exit, do_wait, dup_mm, mm_alloc, mmput
from numaemu.kernel.core.sched import context_switch
from numaemu.kernel.core.smp import enter, leave, machine_of, read_lock, read_unlock, write_lock, write_unlock
from numaemu.kernel.core.timer import run_local_timers
from numaemu.kernel.fs.exec import setup_plain_mm
from numaemu.kernel.include.internal import ALLOC_WMARK_LOW
from numaemu.kernel.include.mm import linear_page_index, page_align
from numaemu.kernel.include.mm_types import policy_t, task_t
from numaemu.kernel.include.mmzone import page_of, page_zone
from numaemu.kernel.mm.huge.hugetlb_pool import hugetlb_total_pages
from numaemu.kernel.mm.migrate.move_pages import do_mbind, do_migrate_pages, do_move_pages, lookup_node, page_node
from numaemu.kernel.mm.page_alloc.page_alloc import __free_pages, alloc_pages, free_cold_page, free_page_is_bad
from numaemu.kernel.mm.page_alloc.pcplist import drain_local_pages
from numaemu.kernel.mm.page_alloc.trail import TRAIL_START, TRAIL_TAKEN, leave_trail, trail_t
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain
from numaemu.kernel.mm.space.mempolicy import (
    MPOL_MODE_FLAGS,
    current_task,
    do_set_mempolicy,
    found_policy,
    mpol_new,
    mpol_rebind_policy,
    mpol_shared_policy_lookup,
    next_node_in,
    sanitize_mpol_flags,
    vma_shared_object,
)
from numaemu.kernel.mm.space.mmap import wraps
from numaemu.kernel.mm.space.util import capable
from numaemu.kernel.mm.space.vma_index import find_vma, vma_index, vma_of
from numaemu.mmu import clock_ns
from numaemu.uapi import (
    MPOL_F_ADDR,
    MPOL_F_MEMS_ALLOWED,
    MPOL_F_NODE,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    MPOL_WEIGHTED_INTERLEAVE,
    RLIMIT_STACK,
    WCONTINUED,
    WNOHANG,
    WUNTRACED,
    errno,
)

U = np.uint64
EINVAL, ENOMEM, EFAULT, ESRCH, EPERM = errno.EINVAL, errno.ENOMEM, errno.EFAULT, errno.ESRCH, errno.EPERM
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


@entry("void(u64, i64)")
def begin_access(cpu_address, task_number):
    """Make the task run and go inside emulated accesses (not a system call: nothing is charged)."""
    cpu = cpu_t.at(cpu_address)
    if cpu.task != task_number or cpu.mm == 0 or cpu.mm_id != mm_of(machine_of(cpu), cpu.mm).id:
        context_switch(cpu, task_number)
    enter(cpu)


@entry("void(u64)")
def end_access(cpu_address):
    """Go outside."""
    leave(cpu_t.at(cpu_address))


@entry("i64(u64, i64, i64, i64, u64)")
def sys_set_mempolicy(cpu_address, task_number, mode, flags, nodes):
    return do_set_mempolicy(running(cpu_address, task_number), mode, flags, nodes)


@kernel("i64(cpu_t*, u64, u64, i64, i64, i64)")
def check_mbind(cpu, start, length, mode, mode_flags, flags):
    """What mbind(2) looks at before it looks at the nodes: 0 or a negative errno."""
    error = sanitize_mpol_flags(mode, mode_flags)
    if error != 0:
        return error
    if flags & ~(MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0:
        return -EINVAL
    if flags & MPOL_MF_MOVE_ALL and not capable(cpu):
        return -EPERM
    return -EINVAL if start & ~PAGE_MASK != U(0) or wraps(start, page_align(length)) else 0


@entry("i64(u64, i64, u64, u64, i64, i64, u64, i64)")
def sys_mbind(cpu_address, task_number, start, length, mode, mode_flags, nodes, flags):
    """mbind(2): `mode` and `mode_flags` are MPOL_*, `nodes` is a mask; 0 or a negative errno. Mirrors kernel_mbind."""
    cpu = running(cpu_address, task_number)
    policy = policy_t.array(machine_of(cpu).mpols)[cpu.id]
    result = check_mbind(cpu, start, length, mode, mode_flags, flags)
    if result != 0 or page_align(length) == U(0):
        return result
    result = mpol_new(current_task(cpu).mems_allowed, policy, mode, mode_flags, nodes)
    if result != 0:
        return result
    write_lock(cpu, mmap_lock(cpu))
    result = do_mbind(cpu, cpu.mm, start, length, policy, nodes, flags)
    write_unlock(mmap_lock(cpu))
    return result


@kernel("i64(cpu_t*, policy_t*, i64, u64*)")
def get_policy(cpu, policy, flags, answer):
    """What get_mempolicy(2) says of a policy: 0 or -EINVAL."""
    if flags & MPOL_F_NODE:
        if policy.mode != MPOL_INTERLEAVE and policy.mode != MPOL_WEIGHTED_INTERLEAVE:
            return -EINVAL
        answer[0], answer[1] = U(next_node_in(current_task(cpu).il_prev, policy.nodes)), policy.nodes
        return 0
    stored = policy.flags & MPOL_MODE_FLAGS != 0
    answer[0], answer[1] = U(policy.mode | policy.flags), policy.user_nodes if stored else policy.nodes
    return 0


@kernel("i64(cpu_t*, u64, i64, u64*)")
def get_range_policy(cpu, address, flags, answer):
    """The same of the range at an address, or the node whose memory is there. Under the mmap_lock."""
    machine = machine_of(cpu)
    number = find_vma(machine, cpu.mm, address)
    if number == 0 or vma_of(machine, number).start > address:
        return -EFAULT
    vma = vma_of(machine, number)
    policy, shared = vma.policy, vma_shared_object(machine, vma)
    if shared != 0:
        mpol_shared_policy_lookup(cpu, shared, linear_page_index(vma, address))
        policy = found_policy(cpu)
    if flags & MPOL_F_NODE == 0:
        return get_policy(cpu, policy, flags, answer)
    node = lookup_node(machine, cpu.mm, address)
    answer[0], answer[1] = U(max(node, 0)), policy.nodes
    return min(node, 0)


@entry("i64(u64, i64, u64, i64, u64)")
def sys_get_mempolicy(cpu_address, task_number, address, flags, answer_address):
    """get_mempolicy(2): mode (or a node) and node mask go to the two words at `answer_address`; 0 or -errno."""
    cpu = running(cpu_address, task_number)
    answer = u64.array(answer_address)
    if flags & ~(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED):
        return -EINVAL
    if flags & MPOL_F_MEMS_ALLOWED:
        if flags & (MPOL_F_NODE | MPOL_F_ADDR):
            return -EINVAL
        answer[0], answer[1] = U(0), current_task(cpu).mems_allowed
        return 0
    if flags & MPOL_F_ADDR:
        read_lock(cpu, mmap_lock(cpu))
        error = get_range_policy(cpu, address, flags, answer)
        read_unlock(mmap_lock(cpu))
        return error
    return -EINVAL if address != U(0) else get_policy(cpu, current_task(cpu).policy, flags, answer)


@kernel("i64(cpu_t*, i64)")
def get_task_mm(cpu, target):
    """A task's address space, kept alive until mmput; its number, or 0: it has none (any more)."""
    machine = machine_of(cpu)
    task = task_t.array(machine.tasks)[target]
    number = load_acquire(task, "mm")
    if number == 0:
        return 0
    mm = mm_of(machine, number)
    while True:
        users = load_acquire(mm, "users")
        if users <= 0:
            return 0
        if compare_exchange(mm, "users", users, users + 1) == users:
            break
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


@hot
def migration_lock(cpu, lock):
    """The mmap_lock, for writing (True) where there may be huge pages, which move whole only then."""
    whole = machine_of(cpu).thp_used != 0 or hugetlb_total_pages(machine_of(cpu)) > 0
    if whole:
        write_lock(cpu, lock)
    else:
        read_lock(cpu, lock)
    return whole


@hot
def migration_unlock(lock, whole):
    if whole:
        write_unlock(lock)
    else:
        read_unlock(lock)


@entry("i64(u64, i64, i64, u64, u64, u64, i64, i64)")
def sys_move_pages(cpu_address, task_number, target, addresses, nodes, status, nr, flags):
    """move_pages(2) on a task's memory; host addresses of the arrays, `nodes` 0 asks where the pages are."""
    cpu = running(cpu_address, task_number)
    machine = machine_of(cpu)
    if flags & ~(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        return -EINVAL
    if flags & MPOL_MF_MOVE_ALL and not capable(cpu):
        return -EPERM
    if target == 0:
        return -ESRCH
    if not ptrace_may_access(cpu, target):
        return -EPERM
    mm_number = get_task_mm(cpu, target)
    if mm_number == 0:
        return -EINVAL
    lock = address_of(mm_of(machine, mm_number), "mmap_lock")
    whole = migration_lock(cpu, lock)
    result = 0
    if nodes == U(0):
        for i in range(nr):
            i64.array(status)[i] = page_node(machine, mm_number, u64.array(addresses)[i])
    else:
        allowed = task_t.array(machine.tasks)[target].mems_allowed
        result = do_move_pages(
            cpu, mm_number, u64.array(addresses), i64.array(nodes), i64.array(status), nr, flags, allowed, whole
        )
    migration_unlock(lock, whole)
    mmput(cpu, mm_number)
    return result


@entry("i64(u64, i64, i64, u64, u64)")
def sys_migrate_pages(cpu_address, task_number, target, old, new):
    """migrate_pages(2) on a task's memory: pages that could not be moved, or -errno."""
    cpu = running(cpu_address, task_number)
    machine = machine_of(cpu)
    if target == 0:
        return -ESRCH
    if not ptrace_may_access(cpu, target) or (
        new & ~task_t.array(machine.tasks)[target].mems_allowed != U(0) and not capable(cpu)
    ):
        return -EPERM
    new &= current_task(cpu).mems_allowed
    mm_number = get_task_mm(cpu, target) if new != U(0) else 0
    if mm_number == 0:
        return -EINVAL
    lock = address_of(mm_of(machine, mm_number), "mmap_lock")
    whole = migration_lock(cpu, lock)
    result = do_migrate_pages(
        cpu, mm_number, old & machine.memory_mask, new, MPOL_MF_MOVE_ALL if capable(cpu) else MPOL_MF_MOVE, whole
    )
    migration_unlock(lock, whole)
    mmput(cpu, mm_number)
    return result


@entry("i64(u64, i64, i64, u64, u64, bool)")
def sys_cpuset_attach(cpu_address, task_number, group, mems_allowed, old_mems, whole):
    """A task's control group, or what that allows, has changed: its policies follow, and with `whole` (one thread of
    each process) those of its mappings and its pages, which move from the nodes that were allowed. Not a system call of
    its own: it runs for the task, between two of its operations.

    Mirrors cpuset_change_task_nodemask, mpol_rebind_mm and cpuset_migrate_mm; cgroups of version 2 always migrate.
    """
    cpu = running(cpu_address, task_number)
    machine, task = machine_of(cpu), task_t.array(machine_of(cpu).tasks)[task_number]
    mpol_rebind_policy(task.policy, mems_allowed)
    task.cgroup = group
    store_release(task, "mems_allowed", mems_allowed)
    if not whole:
        return 0
    write_lock(cpu, mmap_lock(cpu))
    for position in range(mm_of(machine, cpu.mm).map_count):
        mpol_rebind_policy(vma_of(machine, vma_index(machine, cpu.mm)[position]).policy, mems_allowed)
    write_unlock(mmap_lock(cpu))
    if old_mems == mems_allowed:
        return 0
    moves_whole = migration_lock(cpu, mmap_lock(cpu))
    do_migrate_pages(cpu, cpu.mm, old_mems, mems_allowed, MPOL_MF_MOVE_ALL, moves_whole)
    migration_unlock(mmap_lock(cpu), moves_whole)
    return 0


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
    machine = machine_of(running(cpu_address, task_number))
    if options & ~WAIT_OPTIONS:
        return -EINVAL
    if pid == INT_MIN:
        return -ESRCH
    return do_wait(machine, task_t.array(machine.tasks)[task_number], pid, i64.array(status_address))


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


@entry("i64(u64, i64, i64, i64, i64, u64)")
def kernel_alloc_pages(cpu_address, task_number, gfp, order, nid, nodes):
    """alloc_pages_node: the pfn of 2**order pages, or 0. nid -1 means this CPU's node."""
    cpu = running(cpu_address, task_number)
    return alloc_pages(cpu, gfp, order, cpu.node if nid < 0 else nid, nodes & machine_of(cpu).node_mask)


@entry("i64(u64, i64, i64, i64, i64, u64)")
def kernel_explain_pages(cpu_address, task_number, gfp, order, nid, nodes):
    """The same, leaving a trail."""
    cpu = running(cpu_address, task_number)
    trail_t.array(machine_of(cpu).trails)[cpu.id].count = 0
    cpu.trail = 1
    leave_trail(cpu, TRAIL_START, -1, 0, 0, 0)
    pfn = alloc_pages(cpu, gfp, order, cpu.node if nid < 0 else nid, nodes & machine_of(cpu).node_mask)
    if pfn != 0:
        leave_trail(cpu, TRAIL_TAKEN, page_zone(machine_of(cpu), pfn), ALLOC_WMARK_LOW, 0, pfn)
    cpu.trail = 0
    return pfn


@entry("i64(u64, i64, i64, bool)")
def kernel_free_hot_cold_page(cpu_address, task_number, pfn, cold):
    """free_hot_page, free_cold_page: 0, or BAD_*."""
    cpu = running(cpu_address, task_number)
    if not cold:
        return __free_pages(cpu, pfn, 0)
    bad = free_page_is_bad(machine_of(cpu), pfn, 0)
    if bad == 0 and fetch_add(page_of(machine_of(cpu), pfn), "refcount", -1) == 1:
        free_cold_page(cpu, pfn)
    return bad


@entry("i64(u64, i64, i64, i64)")
def kernel_free_pages(cpu_address, task_number, pfn, order):
    """__free_pages: 0, or BAD_*."""
    return __free_pages(running(cpu_address, task_number), pfn, order)
