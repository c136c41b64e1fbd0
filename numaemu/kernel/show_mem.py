"""The memory information of a report: Linux's mm/show_mem.c. What the emulator does not have yet is 0."""
from numaemu.kernel.mmzone import (MAX_NR_ZONES, MIGRATE_MOVABLE, MIGRATE_PCPTYPES, MIGRATE_RECLAIMABLE,
                                   MIGRATE_UNMOVABLE, NR_ORDERS, WMARK_HIGH, WMARK_LOW, WMARK_MIN, ZONE_NAMES, pcp_of)
from numaemu.kernel.proc_meminfo import kilobytes
from numaemu.kernel.proc_vmstat import ZONES, free_blocks, populated_zones
from numaemu.kernel.vmstat import fold_node

TYPE_LETTERS = {MIGRATE_UNMOVABLE: "U", MIGRATE_MOVABLE: "M", MIGRATE_RECLAIMABLE: "E"}


def free_pcp(machine, zone):
    """Pages on the per-CPU lists of a zone."""
    return sum(pcp_of(machine, cpu, zone.node * MAX_NR_ZONES + zone.type).lists[kind].count
               for cpu in range(machine.nr_cpu_ids) for kind in range(MIGRATE_PCPTYPES))


def zone_lines(machine, zone):
    """A zone's marks, and what lower zones keep for themselves."""
    marks = " ".join(f"{name}:{kilobytes(zone.watermark[mark])}kB"
                     for name, mark in (("min", WMARK_MIN), ("low", WMARK_LOW), ("high", WMARK_HIGH)))
    return [f"Node {zone.node} {ZONE_NAMES[zone.type]} free:{kilobytes(zone.free_pages)}kB "
            f"boost:{kilobytes(zone.watermark_boost)}kB {marks} present:{kilobytes(zone.present_pages)}kB "
            f"managed:{kilobytes(zone.managed_pages)}kB free_pcp:{kilobytes(free_pcp(machine, zone))}kB",
            "lowmem_reserve[]: " + " ".join(str(zone.lowmem_reserve[kind]) for kind in ZONES)]


def buddy_line(zone):
    """Free blocks by size, with the letters of the migratetypes they are free as."""
    blocks, words = free_blocks(zone), []
    for order in range(NR_ORDERS):
        letters = "".join(TYPE_LETTERS.get(kind, "H") for kind in range(len(blocks)) if blocks[kind][order])
        words.append(f"{blocks[:, order].sum()}*{kilobytes(1 << order)}kB" + (f" ({letters})" if letters else ""))
    total = sum(int(blocks[:, order].sum()) << order for order in range(NR_ORDERS))
    return f"Node {zone.node} {ZONE_NAMES[zone.type]}: {' '.join(words)} = {kilobytes(total)}kB"


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
    present = sum(zone.present_pages for zone in zones)
    return [*lines, f"{total['nr_file_pages']} total pagecache pages", "0 pages in swap cache", "Free swap  = 0kB",
            "Total swap = 0kB", f"{present} pages RAM", "0 pages HighMem/MovableOnly",
            f"{present - sum(zone.managed_pages for zone in zones)} pages reserved", "0 pages hwpoisoned"]
