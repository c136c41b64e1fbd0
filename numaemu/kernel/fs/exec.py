"""A new program in a task: Linux's fs/exec.c, and where its address space has what (arch/x86/mm/mmap.c).

    0x5555_5555_4000   a position-independent program; [heap] behind it     + 28 random bits of pages
    mmap_base          ld.so, then mmap, downwards                          - 28 random bits of pages
                       at least 128 MiB (or RLIMIT_STACK), and a guard gap
    0x7fff_ffff_f000   end of [stack], which grows down                     - 22 random bits of pages

kernel.randomize_va_space = 0 (the default here) leaves out what is random, 2 also moves the heap away from the program.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire, store_release
from numaemu.compiler.decorators import kernel
from numaemu.hardware.paging import ENTRY_ARM64, PAGE_MASK
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.arch.tlb import switch_mm
from numaemu.kernel.core.fork import mm_alloc, mmput
from numaemu.kernel.core.random import get_random_u64, randomize_page
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.fs.file import close_range, dup_fd, files_of, put_files_struct
from numaemu.kernel.include.mm import page_align
from numaemu.kernel.include.mm_types import VM_ACCOUNT, VM_EXEC, VM_GROWSDOWN, VM_SOFTDIRTY, task_t
from numaemu.kernel.mm.space.mmap import calc_vm_flags, do_munmap, insert_region, mmap_region
from numaemu.kernel.mm.space.util import may_expand_vm, vm_acct_memory, vm_enough_memory
from numaemu.kernel.mm.space.vma_index import STACK_GUARD_GAP
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE, RLIMIT_STACK, errno

U = np.uint64
STACK_EXPAND = U(128 << 10)  # of a new stack, behind its arguments
MIN_GAP = U(128 << 20)  # from mmap_base to the top, as long as nothing is randomised and stacks are small
PLAIN_BRK = U(0x5000)  # from there to the heap, in a task that has never loaded a program; assumed


# -- layout --------------------------------------------------------------------------------------------------


@kernel("u64(cpu_t*)")
def arch_mmap_rnd(cpu):
    """How far mappings are moved, in bytes; 0 if nothing is randomised."""
    machine = machine_of(cpu)
    if machine.randomize_va_space == 0:
        return U(0)
    return (get_random_u64(cpu) & ((U(1) << machine.paging.mmap_rnd_bits) - U(1))) << U(PAGE_SHIFT)


@kernel("u64(cpu_t*)")
def randomize_stack_top(cpu):
    """Where a new stack ends."""
    machine = machine_of(cpu)
    if machine.randomize_va_space == 0:
        return machine.paging.stack_top
    return machine.paging.stack_top - ((get_random_u64(cpu) & machine.paging.stack_rnd_mask) << U(PAGE_SHIFT))


@kernel("u64(cpu_t*, u64)")
def arch_align_stack(cpu, pointer):
    """A stack pointer, up to 8 KiB lower (on arm64 4 KiB), at 16 bytes."""
    machine = machine_of(cpu)
    if machine.randomize_va_space != 0:
        pointer -= get_random_u64(cpu) % (U(PAGE_SIZE) if machine.paging.pte_format == ENTRY_ARM64 else U(8192))
    return pointer & ~U(15)


@kernel("u64(cpu_t*, u64)")
def arch_randomize_brk(cpu, brk):
    """Where the heap begins that would begin at `brk`."""
    machine = machine_of(cpu)
    return randomize_page(cpu, brk, machine.paging.brk_rnd) if machine.randomize_va_space > 1 else brk


@kernel("void(cpu_t*, mm_t*, u64)")
def arch_pick_mmap_layout(cpu, mm, stack_limit):
    """mmap_base: below the room that the stack may take."""
    paging, pad = machine_of(cpu).paging, STACK_GUARD_GAP
    if machine_of(cpu).randomize_va_space != 0:
        pad += paging.stack_rnd_mask << U(PAGE_SHIFT)
    gap = stack_limit + pad if stack_limit + pad > stack_limit else stack_limit
    mm.mmap_base = page_align(
        paging.stack_top - min(max(gap, MIN_GAP), paging.stack_top // U(6) * U(5)) - arch_mmap_rnd(cpu)
    )


@kernel("u64(cpu_t*, i64, u64, u64, u64, bool)")
def setup_arg_pages(cpu, mm_number, top, nbytes, stack_limit, executable):
    """The stack of a new program below `top`, with its first `nbytes` bytes and 128 KiB more where the limit allows that.
    Its start, or 0: no memory.
    """
    used = page_align(nbytes)
    size = max(min(used + STACK_EXPAND, stack_limit & PAGE_MASK), used)
    flags = calc_vm_flags(PROT_READ | PROT_WRITE | (PROT_EXEC if executable else 0), MAP_PRIVATE) | VM_GROWSDOWN
    return U(max(mmap_region(cpu, mm_number, top - size, size, flags, 0, 0, 0), 0))


@kernel("i64(cpu_t*, i64, u64)")
def setup_plain_mm(cpu, mm_number, stack_limit):
    """The address space of a task that runs no program: a stack, and where heap and mappings would be. 0 or -ENOMEM."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    arch_pick_mmap_layout(cpu, mm, stack_limit)
    top = randomize_stack_top(cpu)
    mm.start_stack = top - U(PAGE_SIZE)
    mm.start_brk = arch_randomize_brk(cpu, machine.paging.elf_et_dyn_base + arch_mmap_rnd(cpu) + PLAIN_BRK)
    mm.brk = mm.start_brk
    return 0 if setup_arg_pages(cpu, mm_number, top, U(PAGE_SIZE), stack_limit, False) != U(0) else -errno.ENOMEM


# -- the new address space -----------------------------------------------------------------------------------


@kernel("bool(cpu_t*, task_t*)")
def unshare_files(cpu, task):
    """Who executes a program has descriptors of its own, of which those with O_CLOEXEC are closed; False: no room."""
    machine, old = machine_of(cpu), task.files
    if load_acquire(files_of(machine, old), "count") > 1:
        new = dup_fd(cpu, old)
        if new == 0:
            return False
        task.files = new
        put_files_struct(cpu, old)
    close_range(cpu, task.files, True)
    return True


@kernel("i64(cpu_t*, i64)")
def begin_new_exec(cpu, task_number):
    """The running task leaves its address space for an empty one: 0, or -ENOMEM, and nothing has changed."""
    machine = machine_of(cpu)
    task = task_t.array(machine.tasks)[task_number]
    old, new = task.mm, mm_alloc(cpu)
    if new == 0:
        return -errno.ENOMEM
    arch_pick_mmap_layout(cpu, mm_of(machine, new), task.rlim[2 * RLIMIT_STACK])
    if not unshare_files(cpu, task):
        mmput(cpu, new)
        return -errno.ENOMEM
    store_release(task, "mm", new)
    switch_mm(cpu, new)
    mmput(cpu, old)
    return 0


@kernel("i64(cpu_t*, i64, u64, u64, bool)")
def vm_brk_flags(cpu, mm_number, start, length, executable):
    """Anonymous memory at a fixed place, as a program's bss: 0 or a negative errno. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    mm, length = mm_of(machine, mm_number), page_align(length)
    if length == U(0):
        return 0
    if start > machine.paging.task_size or length > machine.paging.task_size - start:
        return -errno.ENOMEM
    flags = calc_vm_flags(PROT_READ | PROT_WRITE, MAP_PRIVATE) | VM_ACCOUNT | VM_SOFTDIRTY | mm.def_flags
    if executable:
        flags |= VM_EXEC
    error, pages = do_munmap(cpu, mm_number, start, length), np.int64(length >> U(PAGE_SHIFT))
    if error != 0:
        return error
    if (
        not may_expand_vm(cpu, mm, flags, pages)
        or mm.map_count > machine.max_map_count
        or vm_enough_memory(cpu, mm_number, pages) != 0
    ):
        return -errno.ENOMEM
    if insert_region(cpu, mm_number, start, length, flags, 0, 0, 0) != 0:
        vm_acct_memory(machine, -pages)
        return -errno.ENOMEM
    return 0
