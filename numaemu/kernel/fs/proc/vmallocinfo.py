"""/proc/vmallocinfo: vmalloc_info_show of Linux's mm/vmalloc.c. Where Linux names the caller's function, the task stands."""

import numpy as np

from numaemu.compiler.decorators import entry
from numaemu.kernel.include.mm_types import machine_t
from numaemu.kernel.include.mmzone import page_to_nid
from numaemu.kernel.mm.vmalloc.vmalloc import vmalloc_to_pfn
from numaemu.kernel.mm.vmalloc.vmap_area import VM_ALLOC, vmap_area_of, vmap_of
from numaemu.spec.param import MAX_NODES, PAGE_SIZE

U = np.uint64
CALLERS = {0: "irq_init_percpu_irqstack", -1: "dup_task_struct"}


@entry("void(u64, i64, i64[])")
def count_nodes(machine_address, number, counts):
    """Pages of an area by node."""
    machine = machine_t.at(machine_address)
    area = vmap_area_of(machine, number)
    for i in range(area.nr_pages):
        pfn = vmalloc_to_pfn(machine, area.start + U(i) * U(PAGE_SIZE))
        if pfn != 0:
            counts[page_to_nid(machine, pfn)] += 1


def area_text(machine, number):
    """The line of one area: addresses, bytes, who made it, pages, and how many lie on each node."""
    area, counts = vmap_area_of(machine, number), np.zeros(MAX_NODES, np.int64)
    count_nodes(int(machine.address), number, counts)
    caller = CALLERS.get(area.caller, f"task:{area.caller}")
    nodes = "".join(f" N{node}={n}" for node, n in enumerate(counts) if n)
    kind = "vmalloc" if area.flags & VM_ALLOC else "vmap"
    return f"0x{area.start:016x}-0x{area.end:016x} {int(area.end - area.start):7d} {caller} pages={area.nr_pages} {kind}{nodes}\n"


def vmallocinfo(system):
    """Every area in use, by address, then those that wait for a purge."""
    machine = system.machine
    vmap, lines = vmap_of(machine), []
    for at in range(vmap.nr_busy):
        lines.append(area_text(machine, vmap.busy[at]))
    number = vmap.lazy
    while number:
        area = vmap_area_of(machine, number)
        lines.append(f"0x{area.start:016x}-0x{area.end:016x} {int(area.end - area.start):7d} unpurged vm_area\n")
        number = area.next
    return "".join(lines)


FILES = {"/proc/vmallocinfo": vmallocinfo}
