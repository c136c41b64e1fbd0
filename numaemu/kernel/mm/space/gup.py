"""Faulting pages in for somebody who does not touch them: Linux's mm/gup.c."""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import copy_bytes
from numaemu.compiler.pointer import address_of
from numaemu.hardware.paging import _PAGE_RW, PAGE_MASK
from numaemu.hardware.processor import READ, WRITE
from numaemu.kernel.arch.fault import SERVED, do_user_addr_fault
from numaemu.kernel.arch.pgtable import leaf_of, mm_of, pte_pfn, pte_present
from numaemu.kernel.core.smp import let_others_run, machine_of, read_lock, read_unlock, relax, write_lock, write_unlock
from numaemu.kernel.include.mm import frame_of, page_align
from numaemu.kernel.include.mm_types import (
    VM_ACCESS_FLAGS,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.fault.memory import handle_mm_fault
from numaemu.kernel.mm.page_alloc.page_alloc import put_page, try_get_page
from numaemu.kernel.mm.space.mmap import do_mmap
from numaemu.kernel.mm.space.vma_index import find_vma, vma_of
from numaemu.spec.param import PAGE_SIZE
from numaemu.uapi import MAP_POPULATE, SIGKILL, errno

U = np.uint64
ENOMEM, EFAULT, EINVAL = errno.ENOMEM, errno.EFAULT, errno.EINVAL


@hot
def vma_above(cpu, at):
    """(start, end, flags) of the first VMA that ends above `at`, copied under the lock; all 0 if there is none."""
    machine = machine_of(cpu)
    lock = address_of(mm_of(machine, cpu.mm), "mmap_lock")
    start, end, flags = U(0), U(0), 0
    read_lock(cpu, lock)
    number = find_vma(machine, cpu.mm, at)
    if number != 0:
        vma = vma_of(machine, number)
        start, end, flags = vma.start, vma.end, vma.flags
    read_unlock(lock)
    return start, end, flags


@hot
def needs_fault(machine, mm_number, address, write):
    """True if nothing is mapped at an address, or not for writing."""
    pte = leaf_of(machine, mm_of(machine, mm_number), address)
    return not pte_present(pte) or (write and pte & _PAGE_RW == U(0))


@kernel("i64(cpu_t*, u64, u64, bool)")
def faultin_page_range(cpu, start, end, write):
    """Fault in what is missing of a range: 0, -ENOMEM, or -EFAULT where the mapping does not allow it."""
    machine, address, access = machine_of(cpu), start, WRITE if write else READ
    while address < end:
        if needs_fault(machine, cpu.mm, address, write) and do_user_addr_fault(cpu, address, access) != SERVED:
            signal, cpu.signal = cpu.signal, 0
            return -ENOMEM if signal == SIGKILL else -EFAULT
        address += U(PAGE_SIZE)
    return 0


@kernel("i64(cpu_t*, u64, u64, i64)")
def populate_vma_page_range(cpu, start, end, flags):
    """Fault in a part of a VMA with these flags, for writing where it is private and writable: 0 or a negative errno."""
    if flags & VM_LOCKONFAULT:
        return 0
    if flags & VM_ACCESS_FLAGS == 0:
        return -EFAULT
    return faultin_page_range(cpu, start, end, flags & (VM_WRITE | VM_SHARED) == VM_WRITE)


@kernel("i64(cpu_t*, u64, u64, bool, bool)")
def mm_populate(cpu, start, end, ignore_errors, only_locked):
    """MAP_POPULATE and mlock: fault in what is mapped of a range: 0 or a negative errno. Mirrors __mm_populate.

    Between two VMAs nothing is locked; the mapping may change meanwhile, and a fault looks again.
    """
    at = start
    while at < end:
        first, last, flags = vma_above(cpu, at)
        if last == U(0) or first >= end:
            return 0
        if not only_locked or flags & VM_LOCKED:
            error = populate_vma_page_range(cpu, max(at, first), min(last, end), flags)
            if error != 0 and not ignore_errors:
                return error
        at = last
    return 0


@kernel("i64(cpu_t*, u64, u64, bool)")
def madvise_populate(cpu, start, length, write):
    """MADV_POPULATE_READ and _WRITE of a checked range: 0 or a negative errno."""
    at, end = start, start + page_align(length)
    while at < end:
        first, last, flags = vma_above(cpu, at)
        if last == U(0) or first > at:
            return -ENOMEM
        if flags & (VM_WRITE if write else VM_READ) == 0:  # check_vma_flags
            return -EINVAL
        until = min(last, end)
        error = faultin_page_range(cpu, at, until, write)
        if error != 0:
            return error
        at = until
    return 0


@kernel("i64(cpu_t*, i64, u64)")
def get_remote_page(cpu, mm_number, address):
    """The page at an address of any address space, faulted in if need be, with a reference taken unless it is the page of
    zeros: its pfn; 0: not to be had.

    Under the mmap_lock, for reading, which is let go of while a page is being moved. Mirrors get_user_page_vma_remote.
    """
    machine, tries = machine_of(cpu), 0
    mm = mm_of(machine, mm_number)
    while True:
        number = find_vma(machine, mm_number, address)
        if (
            number == 0
            or vma_of(machine, number).start > address
            or vma_of(machine, number).flags & VM_ACCESS_FLAGS == 0
            or vma_of(machine, number).flags & VM_HUGETLB
        ):
            return 0
        pte = leaf_of(machine, mm, address)
        if pte_present(pte):
            pfn = pte_pfn(pte)
            if pfn == machine.zero_pfn:
                return pfn
            if try_get_page(page_of(machine, pfn)):
                if leaf_of(machine, mm, address) == pte:
                    return pfn
                put_page(cpu, pfn)
            tries += 1
            relax(cpu, tries)  # it is being moved, or has just gone
            continue
        code = handle_mm_fault(cpu, mm, number, address, False)
        if code == VM_FAULT_OOM or code == VM_FAULT_SIGBUS:
            return 0
        if code == VM_FAULT_RETRY:
            read_unlock(address_of(mm, "mmap_lock"))
            let_others_run(cpu)
            read_lock(cpu, address_of(mm, "mmap_lock"))


@kernel("i64(cpu_t*, i64, u64, u64, i64)")
def access_remote_vm(cpu, mm_number, address, buffer, nbytes):
    """Copy bytes of any address space, which the caller holds, to host address `buffer`: how many could be had."""
    machine, done = machine_of(cpu), 0
    lock = address_of(mm_of(machine, mm_number), "mmap_lock")
    read_lock(cpu, lock)
    while done < nbytes:
        at = address + U(done)
        offset = at & ~PAGE_MASK
        n = min(nbytes - done, PAGE_SIZE - np.int64(offset))
        pfn = get_remote_page(cpu, mm_number, at & PAGE_MASK)
        if pfn == 0:
            break
        copy_bytes(buffer + U(done), frame_of(machine, pfn) + offset, n)
        if pfn != machine.zero_pfn:
            put_page(cpu, pfn)
        done += n
    read_unlock(lock)
    return done


@kernel("i64(cpu_t*, u64, u64, i64, i64, i64, i64)")
def vm_mmap_pgoff(cpu, hint, length, prot, flags, file, pgoff):
    """mmap(2) of a file from page `pgoff` on, or of nothing (file 0), and what shall be there at once: an address or -errno."""
    machine = machine_of(cpu)
    lock = address_of(mm_of(machine, cpu.mm), "mmap_lock")
    write_lock(cpu, lock)
    result = do_mmap(cpu, cpu.mm, hint, length, prot, flags, file, pgoff)
    locked = result > 0 and vma_of(machine, find_vma(machine, cpu.mm, U(result))).flags & VM_LOCKED != 0
    write_unlock(lock)
    if result > 0 and (locked or flags & MAP_POPULATE):
        mm_populate(cpu, U(result), U(result) + page_align(length), True, False)
    return result
