"""What a task asks of the kernel's address space (task.kernel): vmalloc and its kin, as syscalls/allocators.py has the rest."""

from numaemu.compiler.decorators import entry
from numaemu.compiler.pointer import i64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.mm.vmalloc.highmem import (
    kmap_atomic_slot,
    kmap_high,
    kunmap_atomic_slot,
    kunmap_high,
    page_address_high,
)
from numaemu.kernel.mm.vmalloc.vmalloc import slow_virt_to_pfn, vfree, vmalloc_node_range, vmap, vunmap
from numaemu.kernel.mm.vmalloc.vmap_area import find_vmap_area, purge_vmap_area_lazy
from numaemu.kernel.syscalls.common import running


@entry("u64(u64, i64, i64, u64, i64, i64, i64)")
def kernel_vmalloc(cpu_address, task_number, size, align, gfp, nid, pid):
    """An address, or 0."""
    return vmalloc_node_range(running(cpu_address, task_number), size, align, gfp, nid, pid)


@entry("bool(u64, i64, u64)")
def kernel_vfree(cpu_address, task_number, address):
    return vfree(running(cpu_address, task_number), address)


@entry("u64(u64, i64, u64, i64, i64)")
def kernel_vmap(cpu_address, task_number, pfns, count, pid):
    """`pfns`: the host address of so many. An address, or 0."""
    return vmap(running(cpu_address, task_number), i64.array(pfns), count, pid)


@entry("bool(u64, i64, u64)")
def kernel_vunmap(cpu_address, task_number, address):
    return vunmap(running(cpu_address, task_number), address)


@entry("bool(u64, i64)")
def kernel_vm_unmap_aliases(cpu_address, task_number):
    """Purge what waits: vm_unmap_aliases."""
    return purge_vmap_area_lazy(running(cpu_address, task_number))


@entry("i64(u64, u64)")
def kernel_virt_to_pfn(cpu_address, address):
    """slow_virt_to_phys, in pages."""
    return slow_virt_to_pfn(machine_of(cpu_t.at(cpu_address)), address)


@entry("i64(u64, u64)")
def area_at(cpu_address, address):
    """Number of the area in use at an address, or 0."""
    return find_vmap_area(cpu_t.at(cpu_address), address)


@entry("u64(u64, i64, i64)")
def kernel_kmap(cpu_address, task_number, pfn):
    """An address, or 0: wait."""
    return kmap_high(running(cpu_address, task_number), pfn)


@entry("bool(u64, i64, i64)")
def kernel_kunmap(cpu_address, task_number, pfn):
    return kunmap_high(running(cpu_address, task_number), pfn)


@entry("u64(u64, i64, i64, i64)")
def kernel_kmap_atomic(cpu_address, task_number, slot, pfn):
    return kmap_atomic_slot(running(cpu_address, task_number), slot, pfn)


@entry("void(u64, i64)")
def kernel_kunmap_atomic(cpu_address, slot):
    kunmap_atomic_slot(cpu_t.at(cpu_address), slot)


@entry("u64(u64, i64)")
def kernel_page_address_high(cpu_address, pfn):
    """Where kmap has put a page of high memory, or 0."""
    return page_address_high(machine_of(cpu_t.at(cpu_address)), pfn)
