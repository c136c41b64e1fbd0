"""execve(2), step by step, for operations/exec.py, which reads the headers and writes the arguments in between."""

import numpy as np

from numaemu.compiler.decorators import entry, hot
from numaemu.compiler.pointer import u64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.random import get_random_u64
from numaemu.kernel.core.smp import machine_of, write_lock, write_unlock
from numaemu.kernel.fs.exec import (
    arch_align_stack,
    arch_mmap_rnd,
    arch_randomize_brk,
    begin_new_exec,
    randomize_stack_top,
    setup_arg_pages,
    vm_brk_flags,
)
from numaemu.kernel.fs.inode import alloc_file, lookup
from numaemu.kernel.include.mm_types import task_t
from numaemu.kernel.mm.cache.filemap import filemap_read
from numaemu.kernel.mm.cache.truncate import fput, iput
from numaemu.kernel.mm.numa.placement import task_numa_free
from numaemu.kernel.mm.space.gup import vm_mmap_pgoff
from numaemu.kernel.mm.space.mmap import do_munmap
from numaemu.kernel.syscalls.common import context_switch, mmap_lock
from numaemu.uapi import O_RDONLY, RLIMIT_STACK

U = np.uint64


@hot
def resumed(cpu_address, task_number):
    """The CPU, with the task running on it; nothing is charged, as these are parts of one system call."""
    cpu = cpu_t.at(cpu_address)
    context_switch(cpu, task_number)
    return cpu


@entry("i64(u64, i64, u64)")
def open_exec(cpu_address, task_number, name):
    """A program's file, open for the kernel: its number, or -errno. It belongs to no descriptor table."""
    cpu = resumed(cpu_address, task_number)
    number = lookup(cpu, name)
    if number < 0:
        return number
    file = alloc_file(cpu, number, O_RDONLY)
    if file < 0:
        iput(cpu, number)
    return file


@entry("void(u64, i64)")
def close_exec(cpu_address, file):
    fput(cpu_t.at(cpu_address), file)


@entry("i64(u64, i64, i64, i64, u64, i64)", nogil=True)
def kernel_read(cpu_address, task_number, file, pos, buffer, nbytes):
    """Bytes of a file, through the page cache, to host address `buffer`: how many, or -errno."""
    return filemap_read(resumed(cpu_address, task_number), file, pos, buffer, nbytes)


@entry("i64(u64, i64)")
def flush_old_exec(cpu_address, task_number):
    """The task gets an empty address space, and new statistics of NUMA balancing: 0, or -ENOMEM. begin_new_exec"""
    cpu = resumed(cpu_address, task_number)
    result = begin_new_exec(cpu, task_number)
    if result == 0:
        task_numa_free(cpu, task_number)
    return result


@entry("u64(u64, i64, i64, bool)")
def setup_stack(cpu_address, task_number, nbytes, executable):
    """The stack, with room for `nbytes` bytes of arguments: its end, or 0: no memory."""
    cpu = resumed(cpu_address, task_number)
    limit = task_t.array(machine_of(cpu).tasks)[task_number].rlim[2 * RLIMIT_STACK]
    top = randomize_stack_top(cpu)
    write_lock(cpu, mmap_lock(cpu))
    start = setup_arg_pages(cpu, cpu.mm, top, U(nbytes), limit, executable)
    write_unlock(mmap_lock(cpu))
    return top if start != U(0) else U(0)


@entry("i64(u64, i64, u64, u64, u64, i64, i64, i64, i64)", nogil=True)
def elf_map(cpu_address, task_number, address, length, total, prot, flags, file, pgoff):
    """Map a segment of a file: where, or -errno. The first one takes the place of all (`total` bytes) before the others."""
    cpu = resumed(cpu_address, task_number)
    where = vm_mmap_pgoff(cpu, address, max(length, total), prot, flags, file, pgoff)
    if where > 0 and total > length:
        write_lock(cpu, mmap_lock(cpu))
        do_munmap(cpu, cpu.mm, U(where) + length, total - length)
        write_unlock(mmap_lock(cpu))
    return where


@entry("i64(u64, i64, u64, u64, bool)")
def vm_brk(cpu_address, task_number, start, length, executable):
    """Anonymous memory at a fixed place: 0 or -errno."""
    cpu = resumed(cpu_address, task_number)
    write_lock(cpu, mmap_lock(cpu))
    result = vm_brk_flags(cpu, cpu.mm, start, length, executable)
    write_unlock(mmap_lock(cpu))
    return result


@entry("u64(u64)")
def mmap_rnd(cpu_address):
    """How far a program that may lie anywhere is moved."""
    return arch_mmap_rnd(cpu_t.at(cpu_address))


@entry("u64(u64, u64)")
def align_stack(cpu_address, pointer):
    return arch_align_stack(cpu_t.at(cpu_address), pointer)


@entry("u64(u64, u64)")
def randomize_brk(cpu_address, brk):
    return arch_randomize_brk(cpu_t.at(cpu_address), brk)


@entry("void(u64, u64, i64)")
def get_random_bytes(cpu_address, target, words):
    """Random words to host address `target`."""
    for i in range(words):
        u64.array(target)[i] = get_random_u64(cpu_t.at(cpu_address))
