"""System calls on memory policies, and those that move pages between nodes. Linux's mm/mempolicy.c and the end of mm/migrate.c."""

from errno import EFAULT, EINVAL, EPERM, ESRCH

import numpy as np

from numaemu.compiler.atomic import store_release
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import address_of, i64, u8, u64
from numaemu.hardware.paging import PAGE_MASK
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.fork import mmput
from numaemu.kernel.core.sched import context_switch
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock, write_lock, write_unlock
from numaemu.kernel.include.mm import linear_page_index, page_align
from numaemu.kernel.include.mm_types import policy_t, task_t
from numaemu.kernel.mm.huge.hugetlb_pool import hugetlb_total_pages
from numaemu.kernel.mm.migrate.move_pages import do_mbind, do_migrate_pages, do_move_pages, lookup_node, page_node
from numaemu.kernel.mm.numa.accessed import harvest_accessed
from numaemu.kernel.mm.space.mempolicy import (
    MPOL_USER_NODEMASK_FLAGS,
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
from numaemu.kernel.syscalls.common import get_task_mm, mmap_lock, ptrace_may_access, running
from numaemu.uapi import (
    MPOL_F_ADDR,
    MPOL_F_MEMS_ALLOWED,
    MPOL_F_NODE,
    MPOL_INTERLEAVE,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    MPOL_WEIGHTED_INTERLEAVE,
)

U = np.uint64


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


@kernel("i64(cpu_t*, u64, u64, i64, i64, u64, i64)")
def kernel_mbind(cpu, start, length, mode, mode_flags, nodes, flags):
    """Set the policy of a range: `mode` and `mode_flags` are MPOL_*, `nodes` is a mask; 0 or a negative errno."""
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


@entry("i64(u64, i64, u64, u64, i64, i64, u64, i64)")
def sys_mbind(cpu_address, task_number, start, length, mode, mode_flags, nodes, flags):
    """mbind(2)"""
    return kernel_mbind(running(cpu_address, task_number), start, length, mode, mode_flags, nodes, flags)


@kernel("i64(cpu_t*, policy_t*, i64, u64*)")
def get_policy(cpu, policy, flags, answer):
    """What get_mempolicy(2) says of a policy: 0 or -EINVAL."""
    if flags & MPOL_F_NODE:
        if policy.mode != MPOL_INTERLEAVE and policy.mode != MPOL_WEIGHTED_INTERLEAVE:
            return -EINVAL
        answer[0], answer[1] = U(next_node_in(current_task(cpu).il_prev, policy.nodes)), policy.nodes
        return 0
    stored = policy.flags & MPOL_USER_NODEMASK_FLAGS != 0
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


@entry("i64(u64, i64, i64, u64, i64, u64, bool)")
def read_accessed(cpu_address, task_number, target, start, pages, used, clear):
    """The Accessed bits of a task's pages, a byte for each at the host's address `used`: how many are set. No system call."""
    cpu = cpu_t.at(cpu_address)
    if target == 0:
        return -ESRCH
    if cpu.task != task_number:
        context_switch(cpu, task_number)
    if not ptrace_may_access(cpu, target):
        return -EPERM
    mm_number = get_task_mm(cpu, target)
    if mm_number == 0:
        return -EINVAL
    lock = address_of(mm_of(machine_of(cpu), mm_number), "mmap_lock")
    read_lock(cpu, lock)
    found = harvest_accessed(cpu, mm_number, start, pages, u8.array(used), clear)
    read_unlock(lock)
    mmput(cpu, mm_number)
    return found


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
