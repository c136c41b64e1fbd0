"""System calls on the running task's address space; how they are entered stands in syscalls/common.py."""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import address_of, u8, u64
from numaemu.hardware.paging import PAGE_MASK
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import is_swap_entry, leaf_of, mm_of, pte_pfn, pte_to_swp_entry
from numaemu.kernel.core.fork import mmput
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock, write_lock, write_unlock
from numaemu.kernel.core.xarray import xa_is_value, xa_load
from numaemu.kernel.fs.proc.clear_refs import clear_refs_write
from numaemu.kernel.include.mm import linear_page_index, page_align
from numaemu.kernel.include.mm_types import (
    TASK_RUNNING,
    VM_HUGETLB,
    VM_LOCKED,
    VM_SHARED,
    PG_swapbacked,
    PG_uptodate,
    pool_t,
    task_t,
)
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_vma
from numaemu.kernel.mm.huge.khugepaged import collapse_range
from numaemu.kernel.mm.numa.accessed import harvest_accessed
from numaemu.kernel.mm.reclaim.lru import folio_test
from numaemu.kernel.mm.space.get_unmapped_area import MMAP_MIN_ADDR
from numaemu.kernel.mm.space.gup import access_remote_vm, madvise_populate, mm_populate, vm_mmap_pgoff
from numaemu.kernel.mm.space.madvise import changes_flags, check_madvise, do_madvise
from numaemu.kernel.mm.space.mlock_vma import apply_mlockall_flags, bytes_of_pages, do_mlock, do_mlockall, do_munlock
from numaemu.kernel.mm.space.mmap import do_brk, do_munmap
from numaemu.kernel.mm.space.mprotect import do_mprotect
from numaemu.kernel.mm.space.mremap import do_mremap
from numaemu.kernel.mm.space.util import capable
from numaemu.kernel.mm.space.vma_index import find_vma, range_is_mapped, vma_of
from numaemu.kernel.mm.swap.swapfile import swap_cache
from numaemu.kernel.syscalls.common import get_task_mm, mmap_lock, running
from numaemu.spec.param import MAX_OPEN, PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import (
    MADV_COLLAPSE,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_ANONYMOUS,
    MCL_CURRENT,
    PR_SET_MM_BRK,
    PR_SET_MM_START_BRK,
    PROT_WRITE,
    RLIM_NLIMITS,
    RLIMIT_NOFILE,
    errno,
)

U = np.uint64
# fmt: off
EINVAL, ENOMEM, EFAULT, EPERM, EAGAIN, EBADF = (errno.EINVAL, errno.ENOMEM, errno.EFAULT, errno.EPERM, errno.EAGAIN,
                                                errno.EBADF)
# fmt: on


@entry("i64(u64, i64, u64, u64, i64, i64, u64)")
def sys_mmap(cpu_address, task_number, hint, length, prot, flags, offset):
    """mmap(2) of anonymous memory."""
    if offset & ~PAGE_MASK != U(0):
        return -EINVAL
    if flags & MAP_ANONYMOUS == 0:
        return -EBADF  # it would be of a file, and there is none
    return vm_mmap_pgoff(running(cpu_address, task_number), hint, length, prot, flags, 0, 0)


@kernel("i64(cpu_t*, u64, u64)")
def vm_munmap(cpu, start, length):
    """Take mappings away, under the lock: 0 or a negative errno."""
    write_lock(cpu, mmap_lock(cpu))
    result = do_munmap(cpu, cpu.mm, start, length)
    write_unlock(mmap_lock(cpu))
    return result


@entry("i64(u64, i64, u64, u64)")
def sys_munmap(cpu_address, task_number, start, length):
    """munmap(2): 0 or a negative errno."""
    return vm_munmap(running(cpu_address, task_number), start, length)


@entry("i64(u64, i64, u64, u64, i64)")
def sys_mprotect(cpu_address, task_number, start, length, prot):
    """mprotect(2): 0 or a negative errno."""
    cpu = running(cpu_address, task_number)
    write_lock(cpu, mmap_lock(cpu))
    result = do_mprotect(cpu, cpu.mm, start, length, prot)
    locked = mm_of(machine_of(cpu), cpu.mm).locked_vm > 0
    write_unlock(mmap_lock(cpu))
    if result == 0 and locked and prot & PROT_WRITE:  # pages of its own for what is locked and was read-only
        mm_populate(cpu, start, start + page_align(length), True, True)
    return result


@kernel("i64(cpu_t*, u64, u64, u64, i64, u64)")
def vm_mremap(cpu, address, old_length, new_length, flags, new_address):
    """Change a mapping, under the lock: its address, or a negative errno. What grows in locked memory is populated."""
    machine, locked = machine_of(cpu), False
    write_lock(cpu, mmap_lock(cpu))
    result = do_mremap(cpu, cpu.mm, address, old_length, new_length, flags, new_address)
    if result > 0:
        number = find_vma(machine, cpu.mm, U(result))
        locked = vma_of(machine, number).flags & VM_LOCKED != 0
    write_unlock(mmap_lock(cpu))
    if locked and page_align(new_length) > page_align(old_length):
        mm_populate(cpu, U(result) + page_align(old_length), U(result) + page_align(new_length), True, False)
    return result


@entry("i64(u64, i64, u64, u64, u64, i64, u64)")
def sys_mremap(cpu_address, task_number, address, old_length, new_length, flags, new_address):
    """mremap(2): the new address, or a negative errno."""
    return vm_mremap(running(cpu_address, task_number), address, old_length, new_length, flags, new_address)


@kernel("i64(cpu_t*, u64, u64)")
def madvise_collapse(cpu, start, length):
    write_lock(cpu, mmap_lock(cpu))
    result = collapse_range(cpu, start, start + page_align(length))
    write_unlock(mmap_lock(cpu))
    return result


@entry("i64(u64, i64, u64, u64, i64)")
def sys_madvise(cpu_address, task_number, start, length, advice):
    """madvise(2): 0 or a negative errno. Advice that changes VMAs takes the mmap lock for writing. Mirrors do_madvise."""
    cpu = running(cpu_address, task_number)
    error = check_madvise(start, length, advice)
    if error != 0 or length == U(0):
        return error
    if advice == MADV_POPULATE_READ or advice == MADV_POPULATE_WRITE:
        return madvise_populate(cpu, start, length, advice == MADV_POPULATE_WRITE)
    if advice == MADV_COLLAPSE:
        return madvise_collapse(cpu, start, length)
    if changes_flags(advice):
        write_lock(cpu, mmap_lock(cpu))
        result = do_madvise(cpu, cpu.mm, start, length, advice)
        write_unlock(mmap_lock(cpu))
        return result
    read_lock(cpu, mmap_lock(cpu))
    result = do_madvise(cpu, cpu.mm, start, length, advice)
    read_unlock(mmap_lock(cpu))
    return result


@kernel("i64(cpu_t*, u64)")
def vm_brk(cpu, brk):
    """Move the end of the heap, under the lock: where it ends then. New locked memory is populated."""
    mm = mm_of(machine_of(cpu), cpu.mm)
    write_lock(cpu, mmap_lock(cpu))
    old = mm.brk
    result = do_brk(cpu, cpu.mm, brk)
    locked = mm.def_flags & VM_LOCKED != 0
    write_unlock(mmap_lock(cpu))
    if locked and U(result) > old:
        mm_populate(cpu, page_align(old), page_align(U(result)), True, False)
    return result


@entry("i64(u64, i64, u64)")
def sys_brk(cpu_address, task_number, brk):
    """brk(2): where the heap ends then."""
    return vm_brk(running(cpu_address, task_number), brk)


@entry("i64(u64, i64, i64, u64)")
def sys_prctl_set_mm(cpu_address, task_number, option, address):
    """prctl(PR_SET_MM) for the bounds of the heap: 0 or a negative errno."""
    cpu = running(cpu_address, task_number)
    mm = mm_of(machine_of(cpu), cpu.mm)
    if not capable(cpu):
        return -EPERM
    if (
        address >= machine_of(cpu).paging.task_size
        or address < MMAP_MIN_ADDR
        or (option != PR_SET_MM_START_BRK and option != PR_SET_MM_BRK)
    ):
        return -EINVAL
    write_lock(cpu, mmap_lock(cpu))
    if option == PR_SET_MM_START_BRK:
        mm.start_brk = address
    else:
        mm.brk = address
    write_unlock(mmap_lock(cpu))
    return 0


# -- locked memory -------------------------------------------------------------------------------------------


@hot
def posix_mlock_error(error):
    """What a failed population is to mlock's caller: __mlock_posix_error_return"""
    return -ENOMEM if error == -EFAULT else -EAGAIN if error == -ENOMEM else error


@entry("i64(u64, i64, u64, u64, i64)")
def sys_mlock2(cpu_address, task_number, start, length, flags):
    """mlock2(2): lock a range and bring its pages in; 0 or a negative errno."""
    cpu = running(cpu_address, task_number)
    write_lock(cpu, mmap_lock(cpu))
    result = do_mlock(cpu, cpu.mm, start, length, flags)
    write_unlock(mmap_lock(cpu))
    if result == 0:
        first = start & PAGE_MASK
        result = posix_mlock_error(mm_populate(cpu, first, first + bytes_of_pages(start, length), False, False))
    return result


@entry("i64(u64, i64, u64, u64)")
def sys_munlock(cpu_address, task_number, start, length):
    """munlock(2): 0 or a negative errno."""
    cpu = running(cpu_address, task_number)
    write_lock(cpu, mmap_lock(cpu))
    result = do_munlock(cpu, cpu.mm, start, length)
    write_unlock(mmap_lock(cpu))
    return result


@entry("i64(u64, i64, i64)")
def sys_mlockall(cpu_address, task_number, flags):
    """mlockall(2), `flags` MCL_*: 0 or a negative errno."""
    cpu = running(cpu_address, task_number)
    write_lock(cpu, mmap_lock(cpu))
    result = do_mlockall(cpu, cpu.mm, flags)
    write_unlock(mmap_lock(cpu))
    if result == 0 and flags & MCL_CURRENT:
        mm_populate(cpu, U(0), machine_of(cpu).paging.task_size, True, False)
    return result


@entry("i64(u64, i64)")
def sys_munlockall(cpu_address, task_number):
    """munlockall(2): always 0."""
    cpu = running(cpu_address, task_number)
    write_lock(cpu, mmap_lock(cpu))
    apply_mlockall_flags(cpu, cpu.mm, 0)
    write_unlock(mmap_lock(cpu))
    return 0


@kernel("bool(machine_t*, i64, u64)")
def mincore_unmapped(machine, mm_number, address):
    """True if a page that is not mapped at an address is in memory: in the cache of the file or object behind it."""
    vma = vma_of(machine, find_vma(machine, mm_number, address))
    mapping = vma.i_mapping if vma.i_mapping != 0 else vma.mapping if vma.flags & VM_SHARED else 0
    if mapping == 0:
        return False
    index, huge = linear_page_index(vma, address), vma.flags & VM_HUGETLB != 0
    if huge:
        index >>= hstate_vma(machine, vma).order
    entry = xa_load(machine, mapping_of(machine, mapping), index)
    if xa_is_value(entry):
        return load_acquire(swap_cache(machine), pte_pfn(entry)) > 0
    return entry != U(0) and (
        vma.i_mapping == 0 or huge or folio_test(page_of(machine, pte_pfn(entry)), PG_uptodate | PG_swapbacked)
    )


@kernel("bool(machine_t*, i64, u64)")
def mincore_page(machine, mm_number, address):
    """True if the page at an address is in memory. Mirrors mincore_pte_range."""
    pte = leaf_of(machine, mm_of(machine, mm_number), address)
    if is_swap_entry(pte):
        return load_acquire(swap_cache(machine), pte_to_swp_entry(pte)) > 0
    return pte != U(0) or mincore_unmapped(machine, mm_number, address)


@hot
def access_ok(machine, start, length):
    """True if a range lies below the kernel's addresses."""
    return length <= machine.paging.task_size and start <= machine.paging.task_size - length


@entry("i64(u64, i64, u64, u64, u64)")
def sys_mincore(cpu_address, task_number, start, length, answer_address):
    """mincore(2): a byte per page, 1 if it is in memory, at the host address of the answer; 0 or a negative errno."""
    cpu = running(cpu_address, task_number)
    machine = machine_of(cpu)
    if start & ~PAGE_MASK != U(0):
        return -EINVAL
    if not access_ok(machine, start, length):
        return -ENOMEM
    result, end = 0, start + page_align(length)
    read_lock(cpu, mmap_lock(cpu))
    if not range_is_mapped(machine, cpu.mm, start, end):
        result = -ENOMEM
    for i in range(np.int64((end - start) >> U(PAGE_SHIFT)) if result == 0 else 0):
        u8.array(answer_address)[i] = 1 if mincore_page(machine, cpu.mm, start + U(i * PAGE_SIZE)) else 0
    read_unlock(mmap_lock(cpu))
    return result


@entry("i64(u64, i64, i64, u64, u64)")
def sys_setrlimit(cpu_address, task_number, which, soft, hard):
    """setrlimit(2), for every thread of the process: 0 or a negative errno."""
    cpu = running(cpu_address, task_number)
    machine = machine_of(cpu)
    tasks = task_t.array(machine.tasks)
    caller = tasks[task_number]
    if which < 0 or which >= RLIM_NLIMITS or soft > hard:
        return -EINVAL
    if which == RLIMIT_NOFILE and hard > U(MAX_OPEN):  # sysctl_nr_open
        return -EPERM
    if hard > caller.rlim[2 * which + 1] and not capable(cpu):
        return -EPERM
    for number in range(1, pool_t.at(machine.task_pool).used + 1):
        other = tasks[number]
        if other.state == TASK_RUNNING and other.tgid == caller.tgid:
            other.rlim[2 * which], other.rlim[2 * which + 1] = soft, hard
    return 0


@kernel("i64(cpu_t*, i64, i64)")
def get_mm_of_pid(cpu, target, pid):
    """A task's address space, held, for who reads or writes /proc/<pid>; 0: it has ended."""
    mm_number = get_task_mm(cpu, target)
    if mm_number != 0 and task_t.array(machine_of(cpu).tasks)[target].pid != pid:
        mmput(cpu, mm_number)
        return 0
    return mm_number


@entry("i64(u64, i64, i64, u64, u64, i64)", nogil=True)
def read_remote(cpu_address, target, pid, address, buffer, nbytes):
    """Bytes of a task's memory to host address `buffer`: how many; -ESRCH: it has ended."""
    cpu = cpu_t.at(cpu_address)
    mm_number = get_mm_of_pid(cpu, target, pid)
    if mm_number == 0:
        return -errno.ESRCH
    result = access_remote_vm(cpu, mm_number, address, buffer, nbytes)
    mmput(cpu, mm_number)
    return result


@entry("i64(u64, i64, i64, u64, i64, u64, bool)", nogil=True)
def damon_sample(cpu_address, target, pid, addresses, n, used, clear):
    """DAMON looks at pages of a task: a byte for each of n addresses at the host's address `used`; with `clear` each counts as not used
    from now on. 0; -ESRCH: the task has ended. Nothing is charged.
    """
    cpu = cpu_t.at(cpu_address)
    mm_number = get_mm_of_pid(cpu, target, pid)
    if mm_number == 0:
        return -errno.ESRCH
    lock = address_of(mm_of(machine_of(cpu), mm_number), "mmap_lock")
    read_lock(cpu, lock)
    for i in range(n):
        harvest_accessed(cpu, mm_number, u64.array(addresses)[i], 1, u8.array(used + U(i)), clear)
    read_unlock(lock)
    mmput(cpu, mm_number)
    return 0


@entry("i64(u64, i64, i64, i64)", nogil=True)
def clear_refs_remote(cpu_address, target, pid, kind):
    """/proc/<pid>/clear_refs: 0; -ESRCH: it has ended."""
    cpu = cpu_t.at(cpu_address)
    mm_number = get_mm_of_pid(cpu, target, pid)
    if mm_number == 0:
        return -errno.ESRCH
    clear_refs_write(cpu, mm_number, kind)
    mmput(cpu, mm_number)
    return 0
