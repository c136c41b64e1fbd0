"""Kernel memory that is charged to a control group: __GFP_ACCOUNT. The part of Linux's mm/memcontrol.c for whole pages.

A page knows its group by eight bits of its flags (Linux: page->memcg_data), so that it is taken off where it was
charged, wherever the task is by then. The root group is not charged. Objects of slabs: obj_exts.py.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import cgroup_t, task_t
from numaemu.kernel.include.mmzone import page_of
from numaemu.spec.param import MAX_CGROUPS

U = np.uint64
MEMCG_SHIFT = U(32)  # page->flags: from this bit on the number of the group, 0 = not charged
MEMCG_MASK = U(MAX_CGROUPS - 1) << MEMCG_SHIFT


@hot
def current_memcg(cpu):
    """The number of the group that is charged for what the running task asks for; 0: none is. Mirrors current_obj_cgroup."""
    machine = machine_of(cpu)
    if cpu.task == 0:
        return 0
    return cgroup_t.array(machine.cgroups)[task_t.array(machine.tasks)[cpu.task].cgroup].memcg


@hot
def page_memcg(page):
    return np.int64((page.flags & MEMCG_MASK) >> MEMCG_SHIFT)


@kernel("void(cpu_t*, i64, i64, i64)")
def memcg_kmem_charge_page(cpu, pfn, order, is_compound):
    """Charge a block to the running task's group. Each page of a block that is not compound may be freed by itself."""
    machine, memcg = machine_of(cpu), current_memcg(cpu)
    if memcg == 0:
        return
    fetch_add(cgroup_t.array(machine.cgroups)[memcg], "kernel_pages", 1 << order)
    for i in range(1 if is_compound else 1 << order):
        page_of(machine, pfn + i).flags |= U(memcg) << MEMCG_SHIFT


@kernel("void(machine_t*, i64, i64)")
def memcg_kmem_uncharge_page(machine, pfn, order):
    """Take a block off that goes back to the page allocator."""
    page = page_of(machine, pfn)
    memcg = page_memcg(page)
    if memcg != 0:
        page.flags &= ~MEMCG_MASK
        fetch_add(cgroup_t.array(machine.cgroups)[memcg], "kernel_pages", -(1 << order))


@kernel("void(machine_t*, i64, i64)")
def mod_large_kmalloc(machine, pfn, pages):
    """A block that kmalloc has got from the page allocator counts as slab memory of its group (lruvec_stat_mod_folio)."""
    memcg = page_memcg(page_of(machine, pfn))
    if memcg != 0:
        fetch_add(cgroup_t.array(machine.cgroups)[memcg], "large_kmalloc", pages)
