"""The page-fault exception: Linux's arch/x86/mm/fault.c. The MMU calls it through the CPU's `on_fault` address."""

import numpy as np

from numaemu.compiler.atomic import exchange, fetch_add, load_acquire
from numaemu.compiler.decorators import callback, hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.processor import X86_PF_INSTR, X86_PF_PROT, X86_PF_USER, X86_PF_WRITE, cpu_t
from numaemu.hardware.walk import peek
from numaemu.kernel.arch.init_mm import vmalloc_fault
from numaemu.kernel.arch.pgtable import mm_of, pmd_size
from numaemu.kernel.core.psi import psi_of
from numaemu.kernel.core.smp import let_others_run, machine_of, read_lock, read_unlock, write_lock, write_unlock
from numaemu.kernel.fs.disk import io_wait_until
from numaemu.kernel.include.mm_types import (
    VM_EXEC,
    VM_FAULT_HUGE_NUMA,
    VM_FAULT_MAJOR,
    VM_FAULT_NUMA,
    VM_FAULT_OK,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_GROWSDOWN,
    VM_READ,
    VM_WRITE,
)
from numaemu.kernel.include.trace import PAGE_FAULT_END, PAGE_FAULT_USER, trace_event
from numaemu.kernel.include.vmstat import PGFAULT, count_vm_events
from numaemu.kernel.mm.fault.memory import AROUND, handle_mm_fault
from numaemu.kernel.mm.fault.zap import zap_page_range
from numaemu.kernel.mm.numa.numa_fault import do_huge_pmd_numa_page, do_numa_page
from numaemu.kernel.mm.page_alloc.slowpath import fatal_signal_pending
from numaemu.kernel.mm.space.mempolicy import current_task
from numaemu.kernel.mm.space.mmap import expand_downwards
from numaemu.kernel.mm.space.vma_index import find_vma, vma_of
from numaemu.uapi import SIGBUS, SIGKILL, SIGSEGV

U = np.uint64
NS_PER_ACCESS = (
    64  # what an access costs at least, roughly: by so much earlier the next event comes after a fault (sched.py)
)
SERVED = U(1)  # the answer to the MMU: try again; anything else (0 from a crashed kernel too) is a failure
FAILED = U(2)  # cpu.cr2, error_code and signal say why


@kernel("u64(cpu_t*, u64, u64, i64)")
def bad_area(cpu, address, access, signal):
    """Leave word for whoever reports it: CR2, and the error code as the exception gives it."""
    code = access
    if signal == SIGSEGV and peek(cpu, address) != U(0):
        code |= X86_PF_PROT
    cpu.cr2, cpu.error_code, cpu.signal = address, code, signal
    return FAILED


@hot
def access_error(paging, vma, access):
    """True if the VMA does not allow the access; whatever else a page allows, x86 page tables let it be read.

    Where entries have no NX bit, what may be read may be executed.
    """
    if access & X86_PF_WRITE != U(0):
        return vma.flags & VM_WRITE == 0
    if access & X86_PF_INSTR != U(0) and paging.nx != U(0):
        return vma.flags & VM_EXEC == 0
    return vma.flags & (VM_READ | VM_WRITE | VM_EXEC) == 0


@kernel("bool(cpu_t*, i64, u64)")
def expand_stack(cpu, mm_number, address):
    """Let the stack that begins above `address` grow down to it; True if something is mapped there now."""
    machine = machine_of(cpu)
    lock = address_of(mm_of(machine, mm_number), "mmap_lock")
    write_lock(cpu, lock)
    number, grown = find_vma(machine, mm_number, address), False
    if number != 0:
        vma = vma_of(machine, number)
        grown = vma.start <= address or (vma.flags & VM_GROWSDOWN != 0 and expand_downwards(cpu, number, address) == 0)
    write_unlock(lock)
    return grown


@kernel("u64(cpu_t*, u64, u64)")
def do_kern_addr_fault(cpu, address, access):
    """A fault at a kernel address: on 32 bits perhaps only the task's top-level table lacks an entry of the kernel's.

    Else nothing is mapped there, or not for this access. Kernel code has gone wrong then (page_fault_oops), which its caller
    raises. A user's task is told, but not what is mapped there: to it everything is forbidden (set_signal_archinfo).
    """
    if access & X86_PF_USER != U(0):
        return bad_area(cpu, address, access | X86_PF_PROT, SIGSEGV)
    if vmalloc_fault(cpu, address):
        return SERVED
    return bad_area(cpu, address, access, SIGSEGV)


@kernel("void(cpu_t*, i64, u64)")
def huge_hinting_fault(cpu, mm_number, address):
    """NUMA balancing has made a huge page inaccessible: with the mmap_lock for writing it may move."""
    machine = machine_of(cpu)
    lock = address_of(mm_of(machine, mm_number), "mmap_lock")
    write_lock(cpu, lock)
    number = find_vma(machine, mm_number, address)
    if number != 0 and vma_of(machine, number).start <= address:
        do_huge_pmd_numa_page(cpu, mm_number, number, address)
    write_unlock(lock)


@hot
def handle_fault(cpu, mm, number, address, write):
    """handle_mm_fault, hinting faults on small pages included."""
    code = handle_mm_fault(cpu, mm, number, address, write)
    return do_numa_page(cpu, mm, number, address) if code == VM_FAULT_NUMA else code


@hot
def bring_event_nearer(cpu, ns):
    """A fault takes longer than next_event assumes: NUMA balancing and the driver's functions are due in time (sched.py)."""
    if machine_of(cpu).numa_balancing != 0 or load_acquire(machine_of(cpu), "every_at_ns") != 0:
        fetch_add(cpu, "event_at", -(ns // NS_PER_ACCESS))


@hot
def mm_account_fault(cpu, task, address, code):
    """A fault has been served."""
    if code == VM_FAULT_MAJOR:
        task.maj_flt += 1
    else:
        task.min_flt += 1
    count_vm_events(machine_of(cpu), cpu.id, PGFAULT, 1)
    trace_event(cpu, PAGE_FAULT_END, address, code, 0, 0, 0)


@hot
def do_user_addr_fault(cpu, address, access):
    """Serve a fault of the running task: SERVED, or FAILED with the reason left in the CPU's words."""
    machine, write = machine_of(cpu), access & X86_PF_WRITE != U(0)
    mm_number = cpu.mm
    mm, task = mm_of(machine, mm_number), current_task(cpu)
    lock = address_of(mm, "mmap_lock")
    charged_before = cpu.clock_base_ns
    trace_event(cpu, PAGE_FAULT_USER, address, access, 0, 0, 0)
    cpu.clock_base_ns += machine.fault_ns
    cpu.cr2, cpu.error_code = address, access  # handle_mm_fault or bad_area adds X86_PF_PROT
    while True:
        read_lock(cpu, lock)
        number = find_vma(machine, mm_number, address) if address < machine.paging.task_size else 0
        if number != 0 and vma_of(machine, number).start > address and vma_of(machine, number).flags & VM_GROWSDOWN:
            read_unlock(lock)
            grown = expand_stack(cpu, mm_number, address)
            read_lock(cpu, lock)
            number = find_vma(machine, mm_number, address) if grown else 0
        if (
            number == 0
            or vma_of(machine, number).start > address
            or access_error(machine.paging, vma_of(machine, number), access)
        ):
            answer = bad_area(cpu, address, access, SIGSEGV)
            read_unlock(lock)
            return answer
        code = VM_FAULT_OOM
        if not fatal_signal_pending(cpu):  # a victim's memory is being taken away: nothing more for it
            code = handle_fault(cpu, mm, number, address, write)
            if fatal_signal_pending(cpu):  # chosen meanwhile: the reaper may have passed by, and another thread
                code = VM_FAULT_OOM  # would go on with this page without a fault
                vma = vma_of(machine, number)  # as far as fault-around, or a huge page, may have mapped
                span = AROUND if machine.thp_used == 0 else pmd_size(machine)
                zap_page_range(
                    cpu,
                    mm_number,
                    max(address & ~(span - U(1)), vma.start),
                    min((address | (span - U(1))) + U(1), vma.end),
                )
        read_unlock(lock)
        if code == VM_FAULT_HUGE_NUMA:
            huge_hinting_fault(cpu, mm_number, address)
            code = VM_FAULT_OK
        if code != VM_FAULT_RETRY:
            break
        let_others_run(cpu)  # the page is being moved
    if code == VM_FAULT_OOM:
        return bad_area(cpu, address, access, SIGKILL)
    if code == VM_FAULT_SIGBUS:
        return bad_area(cpu, address, access, SIGBUS)
    if code != VM_FAULT_OK and code != VM_FAULT_MAJOR:
        return bad_area(cpu, address, access, SIGSEGV)
    mm_account_fault(cpu, task, address, code)
    bring_event_nearer(cpu, cpu.clock_base_ns - charged_before)
    if cpu.nr_waiting != 0:
        exchange(cpu, "event_at", 0)  # the slice may be over: a fault takes longer than next_event assumes (sched.py)
    return SERVED


@callback("u64(u64, u64, u64)")
def exc_page_fault(cpu_address, address, access):
    """The exception's entry: CR2, and the error code as far as the access tells it."""
    cpu = cpu_t.at(cpu_address)
    if address >= cpu.paging.kernel_start or cpu.mm == 0:
        return do_kern_addr_fault(cpu, address, access)
    cpu.io_defer = 1 if cpu.nr_waiting != 0 and cpu.task != 0 else 0
    answer = do_user_addr_fault(cpu, address, access)
    cpu.io_defer = 0
    if cpu.io_until_ns != 0:
        if answer == SERVED:
            exchange(cpu, "event_at", 0)  # the access looks there before it is tried again: io_schedule
        else:
            until, cpu.io_until_ns, psi_of(cpu).sleep_memstall = cpu.io_until_ns, 0, 0
            io_wait_until(cpu, until)
    return answer
