"""The memory information of a report: Linux's mm/show_mem.c, as far as the emulator has it.

And the report of an allocation that failed, warn_alloc of mm/page_alloc.c.
"""

from numaemu.hardware.processor import cpu_t
from numaemu.kernel.include.gfp import gfp_text
from numaemu.kernel.include.internal import MAX_RECLAIM_RETRIES
from numaemu.kernel.include.mm_types import task_name, task_t
from numaemu.kernel.include.mmzone import (
    LRU_ACTIVE_ANON,
    LRU_ACTIVE_FILE,
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    LRU_UNEVICTABLE,
    MAX_NR_ZONES,
    MIGRATE_HIGHATOMIC,
    MIGRATE_ISOLATE,
    MIGRATE_MOVABLE,
    MIGRATE_PCPTYPES,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    WMARK_HIGH,
    WMARK_LOW,
    WMARK_MIN,
    ZONE_NAMES,
    kilobytes,
    lruvec_of,
    node_of,
    pcp_of,
    populated_zones,
    zone_kinds,
)
from numaemu.kernel.include.vmstat import fold_node
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at
from numaemu.kernel.mm.page_alloc.report.pageblocks import free_blocks
from numaemu.kernel.mm.slab.slab import (
    SLAB_RECLAIM_ACCOUNT,
    cache_name,
    cache_of,
    get_node,
    live_caches,
    objects_in_use,
)
from numaemu.spec.param import MAX_NODES, NR_ORDERS
from numaemu.spec.units import list_text

# fmt: off
TYPE_LETTERS = {MIGRATE_UNMOVABLE: "U", MIGRATE_MOVABLE: "M", MIGRATE_RECLAIMABLE: "E", MIGRATE_HIGHATOMIC: "H",
                MIGRATE_ISOLATE: "I"}
LISTS = (("active_anon", LRU_ACTIVE_ANON), ("inactive_anon", LRU_INACTIVE_ANON), ("active_file", LRU_ACTIVE_FILE),
         ("inactive_file", LRU_INACTIVE_FILE), ("unevictable", LRU_UNEVICTABLE))
# fmt: on
LRU_COUNTERS = (*(f"nr_{name}" for name, _ in LISTS), "nr_isolated_anon", "nr_isolated_file")
WARN_BURST = 10  # reports of failed allocations in full; then each time their number has doubled


def free_pcp(machine, zone):
    """Pages on the per-CPU lists of a zone."""
    return sum(
        pcp_of(machine, cpu, zone.node * MAX_NR_ZONES + zone.type).lists[kind].count
        for cpu in range(machine.nr_cpu_ids)
        for kind in range(MIGRATE_PCPTYPES)
    )


def zone_lines(machine, zone):
    """A zone's marks and LRU lists, and what lower zones keep for themselves."""
    marks = " ".join(
        f"{name}:{kilobytes(zone.watermark[mark])}kB"
        for name, mark in (("min", WMARK_MIN), ("low", WMARK_LOW), ("high", WMARK_HIGH))
    )
    lengths = lruvec_of(machine, zone.node).zone_nr
    lists = " ".join(f"{name}:{kilobytes(lengths[lru * MAX_NR_ZONES + zone.type])}kB" for name, lru in LISTS)
    return [
        f"Node {zone.node} {ZONE_NAMES[zone.type]} free:{kilobytes(zone.free_pages)}kB "
        f"boost:{kilobytes(zone.watermark_boost)}kB {marks} "
        f"reserved_highatomic:{kilobytes(zone.nr_reserved_highatomic)}kB {lists} present:{kilobytes(zone.present_pages)}kB "
        f"managed:{kilobytes(zone.managed_pages)}kB free_pcp:{kilobytes(free_pcp(machine, zone))}kB",
        "lowmem_reserve[]: " + " ".join(str(zone.lowmem_reserve[kind]) for kind in zone_kinds(machine)),
    ]


def buddy_line(zone):
    """Free blocks by size, with the letters of the migratetypes they are free as."""
    blocks, words = free_blocks(zone), []
    for order in range(NR_ORDERS):
        letters = "".join(TYPE_LETTERS[kind] for kind in range(len(blocks)) if blocks[kind][order])
        words.append(f"{blocks[:, order].sum()}*{kilobytes(1 << order)}kB" + (f" ({letters})" if letters else ""))
    total = sum(int(blocks[:, order].sum()) << order for order in range(NR_ORDERS))
    return f"Node {zone.node} {ZONE_NAMES[zone.type]}: {' '.join(words)} = {kilobytes(total)}kB"


def slab_reclaimable(state):
    """Linux takes the nodes of its trees from a slab cache."""
    return state["nr_slab_reclaimable"] + state["nr_kernel_pages"]


def total_lines(machine, total, zones):
    """The pages of the machine by use."""
    return [
        f"active_anon:{total['nr_active_anon']} inactive_anon:{total['nr_inactive_anon']} "
        f"isolated_anon:{total['nr_isolated_anon']}",
        f" active_file:{total['nr_active_file']} inactive_file:{total['nr_inactive_file']} "
        f"isolated_file:{total['nr_isolated_file']}",
        f" unevictable:{total['nr_unevictable']} dirty:{total['nr_dirty']} writeback:{total['nr_writeback']}",
        f" slab_reclaimable:{slab_reclaimable(total)} slab_unreclaimable:{total['nr_slab_unreclaimable']}",
        f" mapped:{total['nr_mapped']} shmem:{total['nr_shmem']} pagetables:{total['nr_page_table_pages']}",
        f" free:{sum(zone.free_pages for zone in zones)} free_pcp:{sum(free_pcp(machine, z) for z in zones)} free_cma:0",
    ]


def node_line(machine, node, state):
    """The pages of a node by use."""
    pages = {
        "active_anon": "nr_active_anon",
        "inactive_anon": "nr_inactive_anon",
        "active_file": "nr_active_file",
        "inactive_file": "nr_inactive_file",
        "unevictable": "nr_unevictable",
        "isolated(anon)": "nr_isolated_anon",
        "isolated(file)": "nr_isolated_file",
        "mapped": "nr_mapped",
        "dirty": "nr_dirty",
        "writeback": "nr_writeback",
        "shmem": "nr_shmem",
        "pagetables": "nr_page_table_pages",
    }
    hopeless = node_of(machine, node).kswapd_failures >= MAX_RECLAIM_RETRIES
    return (
        f"Node {node} "
        + " ".join(f"{name}:{kilobytes(state[item])}kB" for name, item in pages.items())
        + f" all_unreclaimable? {'yes' if hopeless else 'no'}"
    )


def show_swap_cache_info(machine, total):
    """Three lines: pages in the swap cache, free and total swap in kB."""
    return [
        f"{total['nr_swapcached']} pages in swap cache",
        f"Free swap  = {kilobytes(machine.nr_swap_pages)}kB",
        f"Total swap = {kilobytes(machine.total_swap_pages)}kB",
    ]


def hugetlb_line(h, node):
    """hugetlb_show_meminfo_node"""
    return (
        f"Node {node} hugepages_total={h.nr_node[node]} hugepages_free={h.free_node[node]} "
        f"hugepages_surp={h.surplus_node[node]} hugepages_size={4 << int(h.order)}kB"
    )


def show_mem(system):
    """The lines from "Mem-Info:" on."""
    machine = system.machine
    nodes = range(machine.nr_nodes)
    states = [fold_node(machine, node) for node in nodes]
    zones = [zone for node in nodes for zone in populated_zones(machine, node)]
    total = {name: sum(state[name] for state in states) for name in states[0]}
    lines = ["Mem-Info:", *total_lines(machine, total, zones)]
    lines += [node_line(machine, node, state) for node, state in zip(nodes, states)]
    lines += [line for zone in zones for line in zone_lines(machine, zone)]
    lines += [buddy_line(zone) for zone in zones]
    lines += [hugetlb_line(hstate_at(machine, number), node) for node in nodes for number in range(machine.nr_hstates)]
    present = sum(zone.present_pages for zone in zones)
    return [
        *lines,
        f"{total['nr_file_pages']} total pagecache pages",
        *show_swap_cache_info(machine, total),
        f"{present} pages RAM",
        "0 pages HighMem/MovableOnly",
        f"{present - sum(zone.managed_pages for zone in zones)} pages reserved",
        "0 pages hwpoisoned",
    ]


def dump_unreclaimable_slab(system):
    """A line for each slab cache that cannot shrink, if those have more memory than all pages on the LRU lists."""
    machine = system.machine
    total = {}
    for node in range(machine.nr_nodes):
        for name, pages in fold_node(machine, node).items():
            total[name] = total.get(name, 0) + pages
    if total["nr_slab_unreclaimable"] <= sum(total[name] for name in LRU_COUNTERS):
        return []
    lines = ["Unreclaimable slab info:", "Name                      Used          Total"]
    for number in reversed(live_caches(machine)):
        cache = cache_of(machine, number)
        objects = sum(get_node(machine, number, node).total_objects for node in range(machine.nr_nodes))
        if not cache.flags & SLAB_RECLAIM_ACCOUNT and objects > 0:
            used, size = objects_in_use(machine, number) * cache.size // 1024, objects * cache.size // 1024
            lines.append(f"{cache_name(machine, number):<17} {used:10d}KB {size:10d}KB")
    return lines


def css_of(system, task, controller):
    """The task's control group, or the nearest one upward, that has a controller of its own; None: there are no groups."""
    group = system.cgroups[task.cgroup] if system.cgroups is not None else None
    while group is not None and group.parent is not None and controller not in group.controllers:
        group = group.parent
    return group


def cpuset_name(system, task):
    """The last name of the task's cpuset, as reports print it."""
    group = css_of(system, task, "cpuset")
    return group.name if group is not None else "/"


def memcg_path(system, task):
    """The path of the group that the task's memory would be charged to."""
    group = css_of(system, task, "memory")
    return group.path if group is not None else "/"


def mems_allowed(task):
    """The nodes that a task's cpuset allows."""
    return [node for node in range(MAX_NODES) if int(task.mems_allowed) >> node & 1]


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
        system.kmsg.extend(
            [
                f"{name}: page allocation failure: order:{order}, mode:{mode:#x}({names}), nodemask={mask},"
                f"cpuset={cpuset_name(system, task)},"
                f"mems_allowed={list_text(mems_allowed(task))}",
                f"CPU: {cpu_number} UID: 0 PID: {task.pid} Comm: {name}",
                *show_mem(system),
            ]
        )
