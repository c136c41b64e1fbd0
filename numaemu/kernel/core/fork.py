"""Tasks and their address spaces: Linux's kernel/fork.c, exit.c and the fork part of mm/mmap.c."""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of, i64
from numaemu.kernel.arch.init_mm import clone_kernel_range
from numaemu.kernel.arch.pgtable import mm_of, pgd_free, pgd_of
from numaemu.kernel.arch.thread_stack import alloc_thread_stack_node, put_task_stack
from numaemu.kernel.arch.tlb import drop_mm, flush_tlb_mm_range
from numaemu.kernel.core.pool import pool_get, pool_put
from numaemu.kernel.core.smp import machine_of, relax, write_lock, write_unlock
from numaemu.kernel.core.strand import advance_clock
from numaemu.kernel.fs.file import copy_files, put_files_struct
from numaemu.kernel.include.gfp import GFP_PGTABLE_USER
from numaemu.kernel.include.mm import vma_pages
from numaemu.kernel.include.mm_types import (
    AT_VECTOR_SIZE,
    NR_MM_COUNTERS,
    OOM_NONE,
    TASK_DEAD,
    TASK_RUNNING,
    TASK_ZOMBIE,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_FAULT_OK,
    VM_LOCKED_MASK,
    VM_SHARED,
    VM_WIPEONFORK,
    PG_table,
    exit_t,
    pool_t,
    task_t,
)
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.include.refcount import refcount_inc_not_zero
from numaemu.kernel.include.task_io_accounting_ops import NR_IOAC
from numaemu.kernel.mm.fault.copy_page_range import copy_page_range
from numaemu.kernel.mm.numa.placement import task_numa_free
from numaemu.kernel.mm.numa.scan import init_numa_balancing
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages
from numaemu.kernel.mm.space.mempolicy import copy_policy
from numaemu.kernel.mm.space.mmap import unmap_region
from numaemu.kernel.mm.space.util import vm_acct_memory, vm_enough_memory, vm_stat_account
from numaemu.kernel.mm.space.vma import join_family, join_file, new_vma
from numaemu.kernel.mm.space.vma_index import insert_at, vma_index, vma_of
from numaemu.mmu import clock_ns
from numaemu.spec.param import CPU_WORDS, EXIT_RECORDS, MAX_OPEN, PAGE_SHIFT
from numaemu.uapi import RLIM_INFINITY, RLIM_NLIMITS, RLIMIT_NOFILE, RLIMIT_STACK, errno

U = np.uint64
_STK_LIM, INFINITY = U(8 << 20), U(RLIM_INFINITY)  # RLIMIT_STACK of init


@kernel("i64(cpu_t*)")
def mm_alloc(cpu):
    """An empty address space with a top-level table; its number, or 0: no memory."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.mm_pool)
    if number == 0:
        return 0
    mm = mm_of(machine, number)
    mm.mmap_lock, mm.tlb_gen, mm.pgtables = 0, 1, 0  # tlb_flush_pending stays what it is
    mm.oom_state, mm.hugetlb_usage = OOM_NONE, 0
    for word in range(CPU_WORDS):
        mm.cpumask[word] = U(0)
    for counter in range(NR_MM_COUNTERS):
        mm.rss[counter] = 0
    mm.map_count, mm.total_vm, mm.hiwater_rss, mm.hiwater_vm = 0, 0, 0, 0
    mm.data_vm, mm.stack_vm, mm.exec_vm, mm.locked_vm, mm.def_flags = 0, 0, 0, 0, 0
    mm.mmap_base, mm.start_brk, mm.brk, mm.start_stack = U(0), U(0), U(0), U(0)  # exec.py gives it its layout
    mm.start_code, mm.end_code, mm.start_data, mm.end_data = U(0), U(0), U(0), U(0)
    mm.arg_start, mm.arg_end, mm.env_start, mm.env_end = U(0), U(0), U(0), U(0)
    mm.saved_auxv[0], mm.saved_auxv[1] = U(0), U(0)
    mm.numa_next_scan_ns, mm.numa_scan_offset, mm.numa_scan_seq = 0, U(0), 0
    mm.id = fetch_add(machine, "next_mm_id", 1) + 1
    pfn = alloc_pages(cpu, GFP_PGTABLE_USER, 0, cpu.node, machine.node_mask)
    if pfn == 0:
        pool_put(cpu, machine.mm_pool, number)
        return 0
    page_of(machine, pfn).flags |= U(PG_table)
    page_of(machine, pfn).lru_next = 0
    mm.pgd = U(pfn) << U(PAGE_SHIFT)
    clone_kernel_range(machine, pgd_of(machine, mm))
    store_release(mm, "users", 1)  # last: who looks for address spaces may hold it from now on
    return number


@kernel("i64(cpu_t*, i64, i64)")
def dup_vma(cpu, child_number, parent_vma):
    """A copy of a parent's VMA at the end of the child's index: its number or 0. Mirrors anon_vma_fork too.

    Locks are not inherited; a copy has an anon_vma of its own, and what is wiped on fork none.
    """
    machine = machine_of(cpu)
    of = vma_of(machine, parent_vma)
    if of.flags & VM_ACCOUNT and vm_enough_memory(cpu, child_number, vma_pages(of)) != 0:
        return 0
    number = new_vma(cpu, child_number, of.start, of.end, of.flags & ~VM_LOCKED_MASK, of.pgoff)
    if number == 0:
        if of.flags & VM_ACCOUNT:
            vm_acct_memory(machine, -vma_pages(of))
        return 0
    vma = vma_of(machine, number)
    vma.hstate = of.hstate
    copy_policy(vma.policy, of.policy)
    join_file(cpu, number, parent_vma)
    if of.flags & VM_WIPEONFORK == 0:
        join_family(cpu, number, parent_vma)
        if vma.mapping != 0 and vma.flags & VM_SHARED == 0:
            vma.anon_vma, vma.chained = fetch_add(machine, "next_anon_vma", 1) + 1, 1
    insert_at(machine, child_number, mm_of(machine, child_number).map_count, number)
    vm_stat_account(mm_of(machine, child_number), vma.flags, vma_pages(vma))
    return number


@kernel("i64(cpu_t*, i64, i64)")
def dup_mmap(cpu, parent_number, child_number):
    """Copy the mappings and share the pages with copy on write: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    parent, child = mm_of(machine, parent_number), mm_of(machine, child_number)
    child.mmap_base, child.start_brk, child.brk = parent.mmap_base, parent.start_brk, parent.brk
    child.start_stack, child.start_code, child.end_code = parent.start_stack, parent.start_code, parent.end_code
    child.start_data, child.end_data = parent.start_data, parent.end_data
    child.arg_start, child.arg_end = parent.arg_start, parent.arg_end
    child.env_start, child.env_end = parent.env_start, parent.env_end
    for word in range(AT_VECTOR_SIZE):
        child.saved_auxv[word] = parent.saved_auxv[word]
    error = 0
    for position in range(parent.map_count):
        of_number = vma_index(machine, parent_number)[position]
        flags = vma_of(machine, of_number).flags
        if flags & VM_DONTCOPY:
            continue
        number = dup_vma(cpu, child_number, of_number)
        if number == 0 or (
            flags & VM_WIPEONFORK == 0 and copy_page_range(cpu, parent_number, child_number, number) != VM_FAULT_OK
        ):
            error = -errno.ENOMEM
            break
    cpu.clock_base_ns += child.pgtables * machine.fork_table_ns
    flush_tlb_mm_range(cpu, parent_number, U(0), machine.paging.task_size)
    return error


@kernel("void(cpu_t*, i64)")
def mmput(cpu, mm_number):
    """One user less; the last one takes the address space along (exit_mmap). `pgd` is 0 when its pages are free."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    if fetch_add(mm, "users", -1) != 1:
        return
    tries, mmap_lock = 0, i64.array(address_of(mm, "mmap_lock"))
    while load_acquire(mmap_lock, 0) < 0:  # demotion has it, and came before users was 0 (demote.py)
        tries += 1
        relax(cpu, tries)
    if mm.map_count > 0:
        unmap_region(cpu, mm_number, 0, mm.map_count)
    drop_mm(cpu, mm_number)
    pgd_free(cpu, np.int64(mm.pgd >> U(PAGE_SHIFT)))
    store_release(mm, "pgd", 0)
    pool_put(cpu, machine.mm_pool, mm_number)


@kernel("bool(cpu_t*, i64)")
def mmget_not_zero(cpu, mm_number):
    """One more user of an address space that has any."""
    return refcount_inc_not_zero(i64.array(address_of(mm_of(machine_of(cpu), mm_number), "users")))


@kernel("i64(cpu_t*, i64)")
def dup_mm(cpu, parent_number):
    """A copy-on-write copy of an address space; its number, or 0: no memory."""
    machine = machine_of(cpu)
    child = mm_alloc(cpu)
    if child == 0:
        return 0
    lock = address_of(mm_of(machine, parent_number), "mmap_lock")
    write_lock(cpu, lock)
    error = dup_mmap(cpu, parent_number, child)
    write_unlock(lock)
    if error != 0:
        mmput(cpu, child)
        return 0
    return child


@kernel("i64(cpu_t*, i64, i64, i64, bool)")
def alloc_task(cpu, mm_number, files, parent, thread):
    """A task that runs in an address space; policy and name from its parent (0: none), of whose process it is a `thread`, or
    whose child. Its number or 0. Its state comes last: from then on others find it.
    """
    machine = machine_of(cpu)
    stack = alloc_thread_stack_node(cpu)
    if stack == U(0):
        return 0
    number = pool_get(cpu, machine.task_pool)
    if number == 0:
        put_task_stack(cpu, stack)
        return 0
    task, tasks = task_t.array(machine.tasks)[number], task_t.array(machine.tasks)
    task.pid = fetch_add(machine, "next_pid", 1) + 1
    task.tgid, task.ppid, task.mm, task.cpu, task.files = task.pid, 0, mm_number, cpu.id, files
    task.leader, task.live, task.holders = number, 1, 1
    task.policy.mode, task.policy.flags, task.policy.nodes, task.policy.user_nodes = 0, 0, U(0), U(0)
    task.cgroup, task.mems_allowed, task.stack = 0, machine.memory_mask, stack
    task.il_prev, task.il_weight, task.min_flt, task.maj_flt = 0, 0, 0, 0
    task.start_time_ns = clock_ns(cpu)
    task.exit_signal, task.exit_code, task.oom_score_adj, task.clock_ns, task.uid = 0, 0, 0, 0, 0
    task.nvcsw, task.nivcsw, task.sum_exec_runtime, task.preempted = 0, 0, 0, 0
    for i in range(NR_IOAC):
        task.ioac[i], task.signal_ioac[i] = 0, 0
    for i in range(2 * RLIM_NLIMITS):
        task.rlim[i] = INFINITY
    task.rlim[2 * RLIMIT_STACK] = _STK_LIM
    task.rlim[2 * RLIMIT_NOFILE] = task.rlim[2 * RLIMIT_NOFILE + 1] = U(MAX_OPEN)
    if parent != 0:
        of = tasks[parent]
        copy_policy(task.policy, of.policy)
        task.ppid, task.il_prev, task.il_weight = of.tgid, of.il_prev, of.il_weight
        task.oom_score_adj, task.uid = of.oom_score_adj, of.uid
        task.cgroup, task.mems_allowed = of.cgroup, of.mems_allowed
        for i in range(2 * RLIM_NLIMITS):
            task.rlim[i] = of.rlim[i]
        for i in range(16):
            task.comm[i] = of.comm[i]
        if thread:
            task.tgid, task.ppid, task.leader = of.tgid, of.ppid, of.leader
            fetch_add(tasks[of.leader], "holders", 1)
            fetch_add(tasks[of.leader], "live", 1)  # from 1 at least: its parent lives
    init_numa_balancing(cpu, number, parent, parent != 0 and tasks[parent].mm == mm_number)
    store_release(task, "state", TASK_RUNNING)
    return number


@kernel("i64(cpu_t*, i64, i64, bool)")
def copy_process(cpu, mm_number, parent, thread):
    """alloc_task, with its parent's descriptors (CLONE_THREAD | CLONE_FILES) or a copy of them."""
    tasks = task_t.array(machine_of(cpu).tasks)
    files = copy_files(cpu, tasks[parent].files if parent != 0 else 0, thread)
    if files == 0:
        return 0
    number = alloc_task(cpu, mm_number, files, parent, thread)
    if number == 0:
        put_files_struct(cpu, files)
    return number


@kernel("void(cpu_t*, i64)")
def exit_files(cpu, task_number):
    """A task leaves its descriptors; with the last one of its process they are closed."""
    task = task_t.array(machine_of(cpu).tasks)[task_number]
    files, task.files = task.files, 0
    if files != 0:
        put_files_struct(cpu, files)


@kernel("void(cpu_t*, task_t*)")
def exit_notify(cpu, task):
    """Leave word for a parent that waits, when the last task of a process has ended; `task` was its first one.

    So a process whose first task has ended may still run, and nobody can wait for it (delay_group_leader).
    """
    machine = machine_of(cpu)
    slot = fetch_add(machine, "next_exit", 1) % EXIT_RECORDS
    record = exit_t.array(machine.exits)[slot]
    store_release(record, "pid", 0)
    record.ppid, record.status = task.ppid, task.exit_signal | (task.exit_code & 255) << 8
    record.clock_ns = clock_ns(cpu)
    store_release(record, "pid", task.pid)


@kernel("i64(cpu_t*, task_t*, i64, i64*)")
def do_wait(cpu, parent, pid, status):
    """wait4(2) for one child (pid > 0) or any: its pid and status[0], 0 if none has ended yet, or -ECHILD. The CPU goes on
    at the time of the child's end at the earliest.
    """
    machine = machine_of(cpu)
    tasks = task_t.array(machine.tasks)
    alive = False
    for number in range(1, pool_t.at(machine.task_pool).used + 1):  # first, so that nobody ends unseen in between
        task = tasks[number]
        if task.state == TASK_RUNNING and task.ppid == parent.tgid and (pid == -1 or pid == task.tgid):
            alive = True
    for slot in range(EXIT_RECORDS):
        record = exit_t.array(machine.exits)[slot]
        found = load_acquire(record, "pid")
        if found != 0 and record.ppid == parent.tgid and (pid == -1 or pid == found):
            status[0] = record.status
            ended_ns = record.clock_ns
            if compare_exchange(record, "pid", found, 0) == found:
                advance_clock(cpu, ended_ns)
                return found
    return 0 if alive else -errno.ECHILD


@hot
def leader_of(cpu, task_number):
    """The first task of a task's process."""
    tasks = task_t.array(machine_of(cpu).tasks)
    return tasks[tasks[task_number].leader]


@kernel("void(cpu_t*, i64, i64)")
def exit_mm(cpu, task_number, signal):
    """A task leaves its address space; nobody runs it any more, but its number stays its own."""
    task, leader = task_t.array(machine_of(cpu).tasks)[task_number], leader_of(cpu, task_number)
    mm_number = task.mm
    task.exit_signal, task.mm = signal, 0
    if signal != 0:  # it is the whole process's: group_exit_code
        leader.exit_signal, leader.exit_code = signal, 0
    for i in range(NR_IOAC):  # task_io_accounting_add
        fetch_add(leader.signal_ioac, i, task.ioac[i])
        task.ioac[i] = 0
    if fetch_add(leader, "live", -1) == 1 and leader.ppid != 0:
        exit_notify(cpu, leader)
    task.state = TASK_ZOMBIE
    if mm_number != 0:
        mmput(cpu, mm_number)
    exit_files(cpu, task_number)
    task_numa_free(cpu, task_number)
    if cpu.task == task_number:
        cpu.task = 0
    stack, task.stack = task.stack, U(0)
    put_task_stack(cpu, stack)


@kernel("void(cpu_t*, i64)")
def release_task(cpu, task_number):
    """The number of a task that has ended may be used again; that of a process's first task when no other has one."""
    machine = machine_of(cpu)
    task, leader = task_t.array(machine.tasks)[task_number], leader_of(cpu, task_number)
    leader_number = task.leader
    task.state = TASK_DEAD
    if task_number != leader_number:
        pool_put(cpu, machine.task_pool, task_number)
    if fetch_add(leader, "holders", -1) == 1:
        pool_put(cpu, machine.task_pool, leader_number)


@kernel("void(cpu_t*, i64, i64)")
def do_exit(cpu, task_number, signal):
    """A task ends: its share of the address space goes, then its number may be used again."""
    exit_mm(cpu, task_number, signal)
    release_task(cpu, task_number)
