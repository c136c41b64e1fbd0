"""The audit of the kernel's address space: vmalloc's areas tile their range, their pages are mapped, every stack is counted."""

import numpy as np

from numaemu.compiler.decorators import entry
from numaemu.errors import MachineCheck
from numaemu.kernel.arch.init_mm import kernel_pte
from numaemu.kernel.arch.pgtable import pte_pfn, pte_present
from numaemu.kernel.include.mm_types import PG_buddy, PG_pcp, machine_t, pool_t, task_t
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.include.vmstat import fold_node
from numaemu.kernel.mm.vmalloc.vmap_area import VM_ALLOC, busy_index, free_index, vmap_area_of, vmap_of
from numaemu.spec.param import PAGE_SIZE

U = np.uint64


@entry("u64(u64, i64[])")
def validate_vmap_areas(machine_address, counts):
    """Walk the areas in use and their pages: 0, or an address where something is wrong. counts: pages that vmalloc took."""
    machine = machine_t.at(machine_address)
    vmap = vmap_of(machine)
    end = machine.paging.vmalloc_start
    for at in range(vmap.nr_busy):
        area = vmap_area_of(machine, busy_index(vmap)[at])
        if area.start < end or area.start + U(area.nr_pages) * U(PAGE_SIZE) + U(PAGE_SIZE) != area.end:
            return area.start
        for i in range(area.nr_pages):
            pte = kernel_pte(machine, area.start + U(i) * U(PAGE_SIZE))
            pfn = pte_pfn(pte)
            if not pte_present(pte):
                return area.start + U(i) * U(PAGE_SIZE)
            if pfn < machine.max_pfn and page_of(machine, pfn).flags & U(PG_buddy | PG_pcp) != U(0):
                return area.start + U(i) * U(PAGE_SIZE)
        if kernel_pte(machine, area.end - U(PAGE_SIZE)) != U(0):
            return area.end - U(PAGE_SIZE)
        counts[0] += area.nr_pages if area.flags & VM_ALLOC else 0
        end = area.end
    return U(0)


def pieces(machine):
    """Every area, in use, waiting or free: {start: end}."""
    vmap, found = vmap_of(machine), []
    for index, count in ((busy_index(vmap), vmap.nr_busy), (free_index(vmap), vmap.nr_free)):
        found += [vmap_area_of(machine, index[at]) for at in range(count)]
    number = vmap.lazy
    while number:
        found.append(vmap_area_of(machine, number))
        number = found[-1].next
    return {int(area.start): int(area.end) for area in found}


def audit_vmalloc(machine):
    """Areas, their pages and counts; stacks against the tasks."""
    counts, vmap = np.zeros(1, np.int64), vmap_of(machine)
    bad = int(validate_vmap_areas(int(machine.address), counts))
    if bad:
        raise MachineCheck(f"vmalloc: an area or its page is wrong at {bad:#x}")
    if counts[0] != vmap.nr_vmalloc_pages:
        raise MachineCheck(f"vmalloc: {vmap.nr_vmalloc_pages} pages counted, its areas have {counts[0]}")
    at, end, areas = int(machine.paging.vmalloc_start), int(machine.paging.vmalloc_end), pieces(machine)
    while at in areas:
        at = areas.pop(at)
    if at != end or areas:
        raise MachineCheck(f"vmalloc: nobody has the addresses from {at:#x} on, the range ends at {end:#x}")
    tasks = task_t.array(machine.tasks).as_numpy(pool_t.at(machine.task_pool).used + 1)
    wanted = int(np.count_nonzero(tasks["stack"])) * machine.thread_size >> 10
    counted = sum(fold_node(machine, node)["nr_kernel_stack"] for node in range(machine.nr_nodes))
    if counted != wanted:
        raise MachineCheck(f"nr_kernel_stack is {counted} kB, the tasks have {wanted} kB of stacks")
