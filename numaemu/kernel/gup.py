"""Faulting pages in for somebody who does not touch them: Linux's mm/gup.c."""
import numpy as np

from numaemu.compile import kernel
from numaemu.kernel.fault import SERVED, do_user_addr_fault
from numaemu.kernel.mm_types import VM_SHARED, VM_WRITE
from numaemu.kernel.mmap import find_vma
from numaemu.kernel.pgtable import mm_of, pte_offset, ptep_get
from numaemu.kernel.rmap import vma_of
from numaemu.kernel.smp import machine_of

U = np.uint64


@kernel("void(cpu_t*, u64, u64)")
def mm_populate(cpu, start, length):
    """MAP_POPULATE: fault in what is missing of a new mapping, for writing where it is private and writable.

    The first page that cannot be had ends it silently, as on Linux. Mirrors __mm_populate and populate_vma_page_range.
    """
    machine = machine_of(cpu)
    number = find_vma(machine, cpu.mm, start)
    write = number != 0 and vma_of(machine, number).flags & (VM_WRITE | VM_SHARED) == VM_WRITE
    address = start
    while address < start + length:
        ptep = pte_offset(machine, mm_of(machine, cpu.mm), address)
        if ptep == U(0) or ptep_get(ptep) == U(0):
            if do_user_addr_fault(cpu, address, write) != SERVED:
                cpu.signal = 0
                return
        address += U(4096)
