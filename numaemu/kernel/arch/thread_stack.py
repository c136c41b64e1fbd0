"""Kernel stacks: the stack part of Linux's kernel/fork.c, with CONFIG_VMAP_STACK, and arch/x86/kernel/irq_64.c.

    | guard of the area below, or nothing | stack: thread_size bytes, used from its end down | guard | ...

A stack is an area of vmalloc's range, so who runs off its end meets a page that is not mapped. Linux has such stacks on
64 bits; here they are on 32 bits, too. Each CPU has a cache of NR_CACHED_STACKS stacks for its next tasks. On Linux stacks of
tasks that have ended wait there; here those that boot has made, so that memory is as it was when all tasks have ended.
They and the CPUs' interrupt stacks lie in frames behind all zones.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.native import clear_bytes
from numaemu.compiler.pointer import u64
from numaemu.hardware.paging import PTE_SHIFT, entry_exchange
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.init_mm import PAGE_KERNEL, early_entry
from numaemu.kernel.arch.pgtable import pfn_pte
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import __GFP_ZERO, GFP_KERNEL
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import machine_t, present_cpus
from numaemu.kernel.include.mmzone import charge_clear_pages, page_to_nid, zonelist
from numaemu.kernel.include.vmstat import NR_KERNEL_STACK, mod_node_page_state
from numaemu.kernel.mm.vmalloc.vmalloc import vfree, vmalloc_node_range, vmalloc_to_pfn
from numaemu.kernel.mm.vmalloc.vmap_area import (
    VM_MAP,
    busy_index,
    insert_area,
    position_above,
    va_clip,
    vmap_area_of,
    vmap_of,
)
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
NR_CACHED_STACKS = 2
CALLER_IRQ_STACK, CALLER_TASK_STACK = 0, -1  # vmap_area_t.caller
THREAD_SIZES = {"x86-32": 8 << 10}  # THREAD_SIZE; elsewhere 16 KiB
MAX_STACK_PAGES = 4


def thread_stack_blocks(topology):
    """The blocks of shared memory for it: (name, bytes)."""
    return ("cached_stacks", topology.nr_cpu_ids * NR_CACHED_STACKS * 8), ("irq_stacks", topology.nr_cpu_ids * 8)


@hot
def cached_stack(machine, cpu_number):
    """The places of a CPU's stacks that wait for a task."""
    return u64.array(machine.cached_stacks + U(cpu_number * NR_CACHED_STACKS * 8))


@kernel("void(cpu_t*, u64, i64)")
def account_kernel_stack(cpu, stack, sign):
    """KernelStack, in kB, by the node of each page."""
    machine = machine_of(cpu)
    for i in range(machine.thread_size >> PAGE_SHIFT):
        pfn = vmalloc_to_pfn(machine, stack + (U(i) << PTE_SHIFT))
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_KERNEL_STACK, sign * (PAGE_SIZE >> 10))


@kernel("void(cpu_t*, u64)")
def clear_stack(cpu, stack):
    """What the last task has left is not for the next."""
    machine = machine_of(cpu)
    for i in range(machine.thread_size >> PAGE_SHIFT):
        pfn = vmalloc_to_pfn(machine, stack + (U(i) << PTE_SHIFT))
        clear_bytes(frame_of(machine, pfn), PAGE_SIZE)
        charge_clear_pages(machine, cpu, pfn, 1)


@kernel("u64(cpu_t*)")
def alloc_thread_stack_node(cpu):
    """A stack for a new task: its lowest address, or 0: no memory.

    New ones come from this CPU's node. Linux would ask the task's policy, but its caches are seldom empty.
    """
    machine, stack = machine_of(cpu), U(0)
    for i in range(NR_CACHED_STACKS if cpu.id < machine.nr_cpus else 0):
        stack = exchange(cached_stack(machine, cpu.id), i, U(0))
        if stack != U(0):
            clear_stack(cpu, stack)
            break
    if stack == U(0):
        stack = vmalloc_node_range(
            cpu, machine.thread_size, U(machine.thread_size), GFP_KERNEL | __GFP_ZERO, cpu.node, CALLER_TASK_STACK
        )
    if stack != U(0):
        account_kernel_stack(cpu, stack, 1)
    return stack


@kernel("void(cpu_t*, u64)")
def put_task_stack(cpu, stack):
    """A task has ended: its stack goes, or one of boot's back into a cache, this CPU's if it has room."""
    machine = machine_of(cpu)
    account_kernel_stack(cpu, stack, -1)
    if vmalloc_to_pfn(machine, stack) < machine.max_pfn:
        vfree(cpu, stack)
        return
    places = machine.nr_cpus * NR_CACHED_STACKS
    for i in range(places):  # as many as there are such stacks
        at = (cpu.id * NR_CACHED_STACKS + i) % places
        if compare_exchange(u64.array(machine.cached_stacks), at, U(0), stack) == U(0):
            return


# -- boot --------------------------------------------------------------------------------------------------------


@kernel("u64(machine_t*, i64, u64, i64)")
def early_stack(machine, pfn, align, caller):
    """Map a stack's worth of frames from `pfn` on, before anybody runs: its address."""
    vmap, pages = vmap_of(machine), machine.thread_size >> PAGE_SHIFT
    number = va_clip(machine, (U(pages) << PTE_SHIFT) + U(PAGE_SIZE), align)
    area = vmap_area_of(machine, number)
    area.flags, area.nr_pages, area.caller = VM_MAP, pages, caller
    busy = busy_index(vmap)
    insert_area(busy, vmap.nr_busy, position_above(machine, busy, vmap.nr_busy, area.start), number)
    vmap.nr_busy += 1
    for i in range(pages):
        entry_exchange(
            early_entry(machine, area.start + (U(i) << PTE_SHIFT), PTE_SHIFT),
            pfn_pte(pfn + i, PAGE_KERNEL | machine.paging.nx),
        )
    return area.start


@entry("void(u64, i64, i64)")
def init_stacks_of_cpu(machine_address, cpu_number, pfn):
    """A CPU's interrupt stack (irq_init_percpu_irqstack), and stacks for its first tasks, in frames from `pfn` on."""
    machine = machine_t.at(machine_address)
    pages = machine.thread_size >> PAGE_SHIFT
    u64.array(machine.irq_stacks)[cpu_number] = early_stack(machine, pfn, U(PAGE_SIZE), CALLER_IRQ_STACK)
    for i in range(NR_CACHED_STACKS):
        first = pfn + (i + 1) * pages
        cached_stack(machine, cpu_number)[i] = early_stack(machine, first, U(machine.thread_size), CALLER_TASK_STACK)


def init_stacks(topology, machine, max_pfn, reserved):
    """At boot, near each CPU."""
    machine.thread_size = topology.thread_size or THREAD_SIZES.get(topology.paging, 16 << 10)
    pages, taken = (1 + NR_CACHED_STACKS) * (machine.thread_size >> PAGE_SHIFT), {}
    for number in present_cpus(machine):
        node = zonelist(machine, cpu_t.array(machine.cpus)[number].node)[0]
        end = max_pfn + (node + 1) * reserved - taken.get(node, 0)
        init_stacks_of_cpu(int(machine.address), number, end - pages)
        taken[node] = taken.get(node, 0) + pages
