"""The memory information of a report: Linux's mm/show_mem.c. What the emulator does not have yet is 0.

And the report of an allocation that failed, warn_alloc of mm/page_alloc.c.
"""
from numaemu.kernel.gfp import gfp_text
from numaemu.kernel.hugetlb_pool import hstate_t
from numaemu.kernel.mm_types import task_t
from numaemu.kernel.mmzone import (MAX_NR_ZONES, MIGRATE_HIGHATOMIC, MIGRATE_ISOLATE, MIGRATE_MOVABLE,
                                   MIGRATE_PCPTYPES, MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE, WMARK_HIGH, WMARK_LOW,
                                   WMARK_MIN, ZONE_NAMES, pcp_of)
from numaemu.kernel.node_sysfs import has_memory, list_text
from numaemu.kernel.proc_meminfo import kilobytes
from numaemu.kernel.proc_vmstat import free_blocks, populated_zones, zone_kinds
from numaemu.kernel.stats import task_name
from numaemu.kernel.vmstat import fold_node
from numaemu.param import MAX_NODES, NR_ORDERS
from numaemu.processor import cpu_t

TYPE_LETTERS = {MIGRATE_UNMOVABLE: "U", MIGRATE_MOVABLE: "M", MIGRATE_RECLAIMABLE: "E", MIGRATE_HIGHATOMIC: "H",
                MIGRATE_ISOLATE: "I"}
WARN_BURST = 10                  # reports of failed allocations in full; then each time their number has doubled


def free_pcp(machine, zone):
    """Pages on the per-CPU lists of a zone."""
    return sum(pcp_of(machine, cpu, zone.node * MAX_NR_ZONES + zone.type).lists[kind].count
               for cpu in range(machine.nr_cpu_ids) for kind in range(MIGRATE_PCPTYPES))


def zone_lines(machine, zone):
    """A zone's marks, and what lower zones keep for themselves."""
    marks = " ".join(f"{name}:{kilobytes(zone.watermark[mark])}kB"
                     for name, mark in (("min", WMARK_MIN), ("low", WMARK_LOW), ("high", WMARK_HIGH)))
    return [f"Node {zone.node} {ZONE_NAMES[zone.type]} free:{kilobytes(zone.free_pages)}kB "
            f"boost:{kilobytes(zone.watermark_boost)}kB {marks} "
            f"reserved_highatomic:{kilobytes(zone.nr_reserved_highatomic)}kB present:{kilobytes(zone.present_pages)}kB "
            f"managed:{kilobytes(zone.managed_pages)}kB free_pcp:{kilobytes(free_pcp(machine, zone))}kB",
            "lowmem_reserve[]: " + " ".join(str(zone.lowmem_reserve[kind]) for kind in zone_kinds(machine))]


def buddy_line(zone):
    """Free blocks by size, with the letters of the migratetypes they are free as."""
    blocks, words = free_blocks(zone), []
    for order in range(NR_ORDERS):
        letters = "".join(TYPE_LETTERS[kind] for kind in range(len(blocks)) if blocks[kind][order])
        words.append(f"{blocks[:, order].sum()}*{kilobytes(1 << order)}kB" + (f" ({letters})" if letters else ""))
    total = sum(int(blocks[:, order].sum()) << order for order in range(NR_ORDERS))
    return f"Node {zone.node} {ZONE_NAMES[zone.type]}: {' '.join(words)} = {kilobytes(total)}kB"


def hugetlb_line(machine, node):
    """hugetlb_show_meminfo_node"""
    h = hstate_t.at(machine.hstate)
    return f"Node {node} hugepages_total={h.nr_node[node]} hugepages_free={h.free_node[node]} " \
           f"hugepages_surp={h.surplus_node[node]} hugepages_size={4 << int(machine.paging.table_bits)}kB"


def show_mem(system):
    """The lines from "Mem-Info:" on. Anonymous pages count as active: nothing ages them yet."""
    machine = system.machine
    nodes = range(machine.nr_nodes)
    states = [fold_node(machine, node) for node in nodes]
    zones = [zone for node in nodes for zone in populated_zones(system, node)]
    total = {name: sum(state[name] for state in states) for name in states[0]}
    lines = ["Mem-Info:", f"active_anon:{total['nr_anon_pages']} inactive_anon:0 isolated_anon:0",
             " active_file:0 inactive_file:0 isolated_file:0", " unevictable:0 dirty:0 writeback:0",
             f" slab_reclaimable:0 slab_unreclaimable:{total['nr_kernel_pages']}",
             f" mapped:{total['nr_mapped']} shmem:{total['nr_shmem']} pagetables:{total['nr_page_table_pages']}",
             f" free:{sum(zone.free_pages for zone in zones)} free_pcp:{sum(free_pcp(machine, z) for z in zones)} free_cma:0"]
    lines += [f"Node {node} active_anon:{kilobytes(state['nr_anon_pages'])}kB mapped:{kilobytes(state['nr_mapped'])}kB "
              f"shmem:{kilobytes(state['nr_shmem'])}kB pagetables:{kilobytes(state['nr_page_table_pages'])}kB"
              for node, state in zip(nodes, states)]
    lines += [line for zone in zones for line in zone_lines(machine, zone)]
    lines += [buddy_line(zone) for zone in zones]
    lines += [hugetlb_line(machine, node) for node in nodes]
    present = sum(zone.present_pages for zone in zones)
    return [*lines, f"{total['nr_file_pages']} total pagecache pages", "0 pages in swap cache", "Free swap  = 0kB",
            "Total swap = 0kB", f"{present} pages RAM", "0 pages HighMem/MovableOnly",
            f"{present - sum(zone.managed_pages for zone in zones)} pages reserved", "0 pages hwpoisoned"]


class AllocationWarnings:
    """warn_alloc in the coordinator. Linux limits the reports by time; here their number does."""

    def __init__(self, system):
        self.system, self.failures, self.suppressed = system, 0, 0

    def is_due(self):
        return self.failures <= WARN_BURST or (self.failures & (self.failures - 1)) == 0

    def warn(self, gfp, order, nodemask, cpu_number):
        """Report that an allocation of a CPU has failed."""
        system, machine = self.system, self.system.machine
        self.failures += 1
        if not self.is_due():
            self.suppressed += 1
            return
        if self.suppressed:
            system.kmsg.append(f"warn_alloc: {self.suppressed} callbacks suppressed")
        self.suppressed = 0
        task = task_t.array(machine.tasks)[cpu_t.array(machine.cpus)[cpu_number].task]
        name, (mode, names) = task_name(task) or "swapper", gfp_text(gfp)
        nodes = [node for node in range(MAX_NODES) if nodemask >> node & 1 and int(machine.node_mask) >> node & 1]
        mask = "(null)" if len(nodes) == machine.nr_nodes else list_text(nodes)
        system.kmsg.extend([
            f"{name}: page allocation failure: order:{order}, mode:{mode:#x}({names}), nodemask={mask},cpuset=/,"
            f"mems_allowed={list_text(has_memory(system))}", f"CPU: {cpu_number} UID: 0 PID: {task.pid} Comm: {name}",
            *show_mem(system)])
