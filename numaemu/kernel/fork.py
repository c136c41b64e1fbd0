"""Tasks and their address spaces: Linux's kernel/fork.c, exit.c and the fork part of mm/mmap.c."""
import numpy as np

from numaemu.atomic import fetch_add
from numaemu.compile import kernel
from numaemu.kernel.gfp import GFP_PGTABLE_USER
from numaemu.kernel.inode import get_file
from numaemu.kernel.memory import VM_FAULT_OK, copy_page_range
from numaemu.kernel.mempolicy import copy_policy
from numaemu.kernel.mm_types import (NR_MM_COUNTERS, OOM_NONE, TASK_DEAD, TASK_RUNNING, TASK_ZOMBIE, VM_GROWSDOWN,
                                     PG_table, task_t)
from numaemu.kernel.mmap import calc_vm_flags, insert_at, mmap_region, new_vma, unmap_region, vma_index
from numaemu.kernel.mmzone import page_of
from numaemu.kernel.page_alloc import alloc_pages
from numaemu.kernel.pgtable import mm_of, pgd_free
from numaemu.kernel.pool import pool_get, pool_put
from numaemu.kernel.rmap import link_file_vma, link_vma, vma_of
from numaemu.kernel.smp import machine_of, write_lock, write_unlock
from numaemu.kernel.tlb import drop_mm, flush_tlb_mm_range
from numaemu.kernel.truncate import close_files
from numaemu.mmu import TASK_SIZE
from numaemu.param import CPU_WORDS
from numaemu.pointer import address_of
from numaemu.uapi import MAP_PRIVATE, PROT_READ, PROT_WRITE, errno

U = np.uint64
MMAP_BASE = U(0x7FFF_F7FF_F000)          # as without address randomisation, below 128 MiB for the stack
START_BRK = U(0x5555_5555_9000)          # of a small position-independent program
STACK_TOP, STACK_BYTES = U(0x7FFF_FFFF_F000), U(132 << 10)


@kernel("i64(cpu_t*)")
def mm_alloc(cpu):
    """An empty address space with a top-level table; its number, or 0: no memory."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.mm_pool)
    if number == 0:
        return 0
    mm = mm_of(machine, number)
    mm.mmap_lock, mm.users, mm.tlb_gen, mm.pgtables, mm.tlb_flush_pending = 0, 1, 1, 0, 0
    mm.oom_state, mm.open_files = OOM_NONE, 0
    for word in range(CPU_WORDS):
        mm.cpumask[word] = U(0)
    for counter in range(NR_MM_COUNTERS):
        mm.rss[counter] = 0
    mm.map_count, mm.total_vm, mm.hiwater_rss = 0, 0, 0
    mm.mmap_base, mm.start_brk, mm.brk, mm.start_stack = MMAP_BASE, START_BRK, START_BRK, STACK_TOP - U(0x1000)
    mm.id = fetch_add(machine, "next_mm_id", 1) + 1
    pfn = alloc_pages(cpu, GFP_PGTABLE_USER, 0, cpu.node, machine.node_mask)
    if pfn == 0:
        pool_put(cpu, machine.mm_pool, number)
        return 0
    page_of(machine, pfn).flags |= U(PG_table)
    mm.pgd = U(pfn) << U(12)
    return number


@kernel("i64(cpu_t*, i64)")
def setup_arg_pages(cpu, mm_number):
    """The stack of a new program: 0 or a negative errno."""
    flags = calc_vm_flags(PROT_READ | PROT_WRITE, MAP_PRIVATE) | VM_GROWSDOWN
    return min(mmap_region(cpu, mm_number, STACK_TOP - STACK_BYTES, STACK_BYTES, flags, 0, 0), 0)


@kernel("i64(cpu_t*, i64, i64)")
def dup_vma(cpu, child_number, parent_vma):
    """A copy of a parent's VMA at the end of the child's index: its number or 0."""
    machine = machine_of(cpu)
    of = vma_of(machine, parent_vma)
    number = new_vma(cpu, child_number, of.start, of.end, of.flags, of.pgoff)
    if number == 0:
        return 0
    vma = vma_of(machine, number)
    copy_policy(vma.policy, of.policy)
    vma.mapping, vma.file, vma.i_mapping = of.mapping, of.file, of.i_mapping
    if vma.file != 0:
        get_file(machine, vma.file)
        link_file_vma(cpu, number)
    if vma.mapping != 0:
        link_vma(cpu, vma.mapping, number)
    insert_at(machine, child_number, mm_of(machine, child_number).map_count, number)
    return number


@kernel("i64(cpu_t*, i64, i64)")
def dup_mmap(cpu, parent_number, child_number):
    """Copy the mappings and share the pages with copy on write: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    parent, child = mm_of(machine, parent_number), mm_of(machine, child_number)
    child.mmap_base, child.start_brk, child.brk = parent.mmap_base, parent.start_brk, parent.brk
    child.start_stack, child.total_vm = parent.start_stack, parent.total_vm
    error = 0
    for position in range(parent.map_count):
        number = dup_vma(cpu, child_number, vma_index(machine, parent_number)[position])
        if number == 0 or copy_page_range(cpu, parent_number, child_number, number) != VM_FAULT_OK:
            error = -errno.ENOMEM
            break
    flush_tlb_mm_range(cpu, parent_number, U(0), TASK_SIZE)
    return error


@kernel("void(cpu_t*, i64)")
def mmput(cpu, mm_number):
    """One user less; the last one takes the address space along (exit_mmap)."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    if fetch_add(mm, "users", -1) != 1:
        return
    if mm.map_count > 0:
        unmap_region(cpu, mm_number, 0, mm.map_count)
    if mm.open_files > 0:
        close_files(cpu, mm_number, mm.id)
    drop_mm(cpu, mm_number)
    pgd_free(cpu, np.int64(mm.pgd >> U(12)))
    mm.pgd = U(0)
    pool_put(cpu, machine.mm_pool, mm_number)


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


@kernel("i64(cpu_t*, i64, i64)")
def alloc_task(cpu, mm_number, parent):
    """A task that runs in an address space; policy and name from its parent (0: none). Its number or 0."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.task_pool)
    if number == 0:
        return 0
    task, tasks = task_t.array(machine.tasks)[number], task_t.array(machine.tasks)
    task.pid = fetch_add(machine, "next_pid", 1) + 1
    task.tgid, task.ppid, task.mm, task.cpu, task.state = task.pid, 0, mm_number, cpu.id, TASK_RUNNING
    task.policy.mode, task.policy.flags, task.policy.nodes = 0, 0, U(0)
    task.il_prev, task.il_weight, task.min_flt, task.maj_flt = 0, 0, 0, 0
    task.exit_signal, task.oom_score_adj, task.clock_ns = 0, 0, 0
    if parent != 0:
        of = tasks[parent]
        copy_policy(task.policy, of.policy)
        task.ppid, task.il_prev, task.il_weight = of.pid, of.il_prev, of.il_weight
        task.oom_score_adj = of.oom_score_adj
        for i in range(16):
            task.comm[i] = of.comm[i]
    return number


@kernel("void(cpu_t*, i64, i64)")
def exit_mm(cpu, task_number, signal):
    """A task leaves its address space; nobody runs it any more, but its number stays its own."""
    task = task_t.array(machine_of(cpu).tasks)[task_number]
    mm_number = task.mm
    task.state, task.exit_signal, task.mm = TASK_ZOMBIE, signal, 0
    if mm_number != 0:
        mmput(cpu, mm_number)
    if cpu.task == task_number:
        cpu.task = 0


@kernel("void(cpu_t*, i64, i64)")
def do_exit(cpu, task_number, signal):
    """A task ends: its share of the address space goes, then its number may be used again."""
    machine = machine_of(cpu)
    exit_mm(cpu, task_number, signal)
    task_t.array(machine.tasks)[task_number].state = TASK_DEAD
    pool_put(cpu, machine.task_pool, task_number)
