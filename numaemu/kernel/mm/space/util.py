"""How much memory may be promised, and who may map how much: Linux's mm/util.c and the limits of mm/mmap.c.

vm_committed_as counts the pages that private writable mappings and shared objects may come to need. It is one word,
changed atomically; who charges adds first and looks then, so two that come at once cannot both take the last pages.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import (
    VM_EXEC,
    VM_LOCKED,
    VM_NORESERVE,
    VM_SHARED,
    VM_STACK,
    VM_WRITE,
    mm_t,
    task_t,
)
from numaemu.kernel.mm.huge.hugetlb_pool import hugetlb_total_pages
from numaemu.spec.param import PAGE_SHIFT
from numaemu.uapi import (
    OVERCOMMIT_ALWAYS,
    OVERCOMMIT_GUESS,
    RLIM_INFINITY,
    RLIMIT_AS,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
    errno,
)

U = np.uint64
INFINITY = U(RLIM_INFINITY)
KB_SHIFT = 2  # PAGE_SHIFT - 10


@kernel("u64(cpu_t*, i64)")
def rlimit(cpu, which):
    """A soft limit of the running task; a CPU without one has none."""
    if cpu.task == 0:
        return INFINITY
    return task_t.array(machine_of(cpu).tasks)[cpu.task].rlim[2 * which]


@hot
def capable(cpu):
    """True for root, who has every capability but CAP_IPC_LOCK, and for the kernel itself."""
    return cpu.task == 0 or task_t.array(machine_of(cpu).tasks)[cpu.task].uid == 0


@hot
def vm_acct_memory(machine, pages):
    """Charge (or with a negative number of pages, uncharge) what is promised."""
    fetch_add(machine, "vm_committed_as", pages)


@kernel("i64(machine_t*)")
def vm_commit_limit(machine):
    """Pages that may be promised in mode 2."""
    if machine.overcommit_kbytes != 0:
        allowed = machine.overcommit_kbytes >> KB_SHIFT
    else:
        allowed = (machine.total_ram_pages - hugetlb_total_pages(machine)) * machine.overcommit_ratio // 100
    return allowed + machine.total_swap_pages


@kernel("i64(cpu_t*, i64, i64)")
def vm_enough_memory(cpu, mm_number, pages):
    """Charge pages if the mode of vm.overcommit_memory allows it: 0 or -ENOMEM. Mirrors __vm_enough_memory."""
    machine = machine_of(cpu)
    vm_acct_memory(machine, pages)
    mode = machine.overcommit_memory
    if mode == OVERCOMMIT_ALWAYS:
        return 0
    if mode == OVERCOMMIT_GUESS:
        if pages <= machine.total_ram_pages + machine.total_swap_pages:
            return 0
    else:
        allowed = vm_commit_limit(machine)
        if not capable(cpu):
            allowed -= machine.admin_reserve_kbytes >> KB_SHIFT
        allowed -= min(mm_t.array(machine.mms)[mm_number].total_vm // 32, machine.user_reserve_kbytes >> KB_SHIFT)
        if load_acquire(machine, "vm_committed_as") < allowed:
            return 0
    vm_acct_memory(machine, -pages)
    return -errno.ENOMEM


@hot
def is_data_mapping(flags):
    return flags & (VM_WRITE | VM_SHARED | VM_STACK) == VM_WRITE


@hot
def accountable_mapping(flags):
    """Private writable memory is charged, unless MAP_NORESERVE says not to."""
    return flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE


@kernel("void(mm_t*, i64, i64)")
def vm_stat_account(mm, flags, pages):
    """Count `pages` (negative: fewer) with an address space, by the kind that VM_* flags make of them."""
    mm.total_vm += pages
    if flags & (VM_EXEC | VM_WRITE | VM_STACK) == VM_EXEC:
        mm.exec_vm += pages
    elif flags & VM_STACK:
        mm.stack_vm += pages
    elif is_data_mapping(flags):
        mm.data_vm += pages


@kernel("bool(cpu_t*, mm_t*, i64, i64)")
def may_expand_vm(cpu, mm, flags, pages):
    """RLIMIT_AS and RLIMIT_DATA allow `pages` more."""
    if U(mm.total_vm + pages) > rlimit(cpu, RLIMIT_AS) >> U(PAGE_SHIFT):
        return False
    return not is_data_mapping(flags) or U(mm.data_vm + pages) <= rlimit(cpu, RLIMIT_DATA) >> U(PAGE_SHIFT)


@kernel("bool(cpu_t*, mm_t*, i64, u64)")
def mlock_future_ok(cpu, mm, flags, nbytes):
    """RLIMIT_MEMLOCK allows so many more bytes of this kind. It binds every task: nobody here has CAP_IPC_LOCK."""
    if flags & VM_LOCKED == 0:
        return True
    return U(mm.locked_vm) + (nbytes >> U(PAGE_SHIFT)) <= rlimit(cpu, RLIMIT_MEMLOCK) >> U(PAGE_SHIFT)


@hot
def can_do_mlock(cpu):
    return rlimit(cpu, RLIMIT_MEMLOCK) != U(0)
