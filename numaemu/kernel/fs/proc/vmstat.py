"""buddyinfo, pagetypeinfo, zoneinfo and vmstat as text: the /proc files of Linux's mm/vmstat.c.

Zones are shown as a 64-bit kernel has them, with the (empty) zone of device memory last, or as one of 32 bits with HighMem.
Only counters that the emulator keeps are printed, under Linux's names and in Linux's order.
"""

import numpy as np

from numaemu.compiler.pointer import u8
from numaemu.kernel.fs.sysfs import stats
from numaemu.kernel.include.mm_types import present_cpus
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    MIGRATE_NAMES,
    MIGRATE_PCPTYPES,
    WMARK_HIGH,
    WMARK_LOW,
    WMARK_MIN,
    WMARK_PROMO,
    ZONE_NAMES,
    pcp_of,
    populated_zones,
    zone_kinds,
    zone_of,
)
from numaemu.kernel.include.vmstat import fold_node, fold_numa, free_pages
from numaemu.kernel.mm.page_alloc.fragmentation import fragmentation_index, unusable_free_index
from numaemu.kernel.mm.page_alloc.report.pageblocks import free_blocks
from numaemu.spec.param import NR_ORDERS, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES

# vmstat_text of Linux 6.12, as far as it may come to matter; what is not counted is not printed
NODE_ITEMS = (
    "nr_inactive_anon nr_active_anon nr_inactive_file nr_active_file nr_unevictable nr_slab_reclaimable "
    "nr_slab_unreclaimable nr_isolated_anon nr_isolated_file workingset_nodes workingset_refault_anon "
    "workingset_refault_file workingset_activate_anon workingset_activate_file workingset_restore_anon "
    "workingset_restore_file workingset_nodereclaim nr_anon_pages nr_mapped nr_file_pages nr_dirty nr_writeback "
    "nr_shmem nr_anon_transparent_hugepages nr_vmscan_write nr_vmscan_immediate_reclaim nr_dirtied nr_written "
    "nr_kernel_misc_reclaimable nr_kernel_stack nr_page_table_pages nr_sec_page_table_pages nr_swapcached "
    "pgpromote_success pgpromote_candidate pgdemote_kswapd pgdemote_direct pgdemote_khugepaged nr_hugetlb"
).split()
ZONE_ITEMS = ("nr_free_pages", "nr_zspages")  # Linux counts these by zone
DIRTY_LIMITS = ("nr_dirty_threshold", "nr_dirty_background_threshold")
NUMA_ITEMS = "numa_hit numa_miss numa_foreign numa_interleave numa_local numa_other".split()
EVENTS = (
    "pgpgin pgpgout pswpin pswpout pgalloc_dma pgalloc_dma32 pgalloc_normal pgalloc_movable allocstall_dma "
    "allocstall_dma32 allocstall_normal allocstall_movable pgskip_dma pgskip_dma32 pgskip_normal pgskip_movable pgfree "
    "pgactivate pgdeactivate pglazyfree pgfault pgmajfault pglazyfreed pgrefill pgreuse pgsteal_kswapd pgsteal_direct "
    "pgsteal_khugepaged pgscan_kswapd pgscan_direct pgscan_khugepaged pgscan_direct_throttle pgscan_anon pgscan_file "
    "pgsteal_anon pgsteal_file zone_reclaim_success zone_reclaim_failed pginodesteal slabs_scanned kswapd_inodesteal "
    "kswapd_low_wmark_hit_quickly kswapd_high_wmark_hit_quickly pageoutrun pgrotated drop_pagecache drop_slab oom_kill "
    "numa_pte_updates numa_huge_pte_updates numa_hint_faults numa_hint_faults_local numa_pages_migrated "
    "pgmigrate_success pgmigrate_fail thp_migration_success thp_migration_fail thp_migration_split "
    "compact_migrate_scanned compact_free_scanned compact_isolated compact_stall compact_fail compact_success "
    "compact_daemon_wake compact_daemon_migrate_scanned compact_daemon_free_scanned htlb_buddy_alloc_success "
    "htlb_buddy_alloc_fail unevictable_pgs_culled unevictable_pgs_scanned unevictable_pgs_rescued "
    "unevictable_pgs_mlocked unevictable_pgs_munlocked unevictable_pgs_cleared unevictable_pgs_stranded "
    "thp_fault_alloc thp_fault_fallback thp_collapse_alloc thp_collapse_alloc_failed thp_split_page thp_split_pmd "
    "thp_zero_page_alloc thp_zero_page_alloc_failed nr_tlb_remote_flush nr_tlb_remote_flush_received nr_tlb_local_flush_all "
    "nr_tlb_local_flush_one swap_ra swap_ra_hit swpin_zero swpout_zero zswpin zswpout zswpwb"
).split()


def in_order(names, values):
    """ "name value" lines of the counters there are."""
    return [f"{name} {values[name]}" for name in names if name in values]


def vmstat(system):
    """/proc/vmstat: vmstat_show; the last line is a counter that old programs look for."""
    values = stats.vmstat(system.machine)
    lines = in_order([*ZONE_ITEMS, *NUMA_ITEMS, *NODE_ITEMS, *DIRTY_LIMITS, *EVENTS], values)
    return "\n".join([*lines, "nr_unstable 0"]) + "\n"


def node_vmstat(system, node):
    """/sys/devices/system/node/nodeN/vmstat: node_read_vmstat"""
    machine = system.machine
    values = {
        "nr_free_pages": free_pages(machine, node),
        **stats.linux_names(fold_numa(machine, node)),
        **stats.linux_names(fold_node(machine, node)),
    }
    return "\n".join(in_order([*ZONE_ITEMS, *NUMA_ITEMS, *NODE_ITEMS], values)) + "\n"


# -- free blocks ---------------------------------------------------------------------------------------------


def zone_title(zone, width=0):
    return f"Node {zone.node:{width}d}, zone {ZONE_NAMES[zone.type]:>8}"


def buddyinfo(system):
    """/proc/buddyinfo: frag_show_print"""
    lines = [
        zone_title(zone) + " " + "".join(f"{n:6d} " for n in free_blocks(zone).sum(axis=0))
        for node in range(system.machine.nr_nodes)
        for zone in populated_zones(system.machine, node)
    ]
    return "\n".join(lines) + "\n"


def block_counts(machine, zone):
    """Page blocks of each migratetype: pagetypeinfo_showblockcount_print"""
    first, last = zone.start_pfn >> PAGEBLOCK_ORDER, (zone.start_pfn + zone.spanned_pages - 1) >> PAGEBLOCK_ORDER
    return np.bincount(u8.array(machine.block_type).as_numpy(last + 1)[first:], minlength=len(MIGRATE_NAMES))


def pagetypeinfo(system):
    """/proc/pagetypeinfo: pagetypeinfo_show, once for every node with memory"""
    lines = []
    for node in range(system.machine.nr_nodes):
        zones = populated_zones(system.machine, node)
        if not zones:
            continue
        lines += [f"Page block order: {PAGEBLOCK_ORDER}", f"Pages per block:  {PAGEBLOCK_PAGES}", ""]
        lines.append(
            f"{'Free pages count per migrate type at order':<43} " + "".join(f"{o:6d} " for o in range(NR_ORDERS))
        )
        for zone in zones:
            lines += [
                f"{zone_title(zone, 4)}, type {name:>12} " + "".join(f"{n:6d} " for n in row)
                for name, row in zip(MIGRATE_NAMES, free_blocks(zone))
            ]
        lines += ["", f"{'Number of blocks type ':<23}" + "".join(f"{name:>12} " for name in MIGRATE_NAMES)]
        lines += [
            zone_title(zone) + " " + "".join(f"{n:12d} " for n in block_counts(system.machine, zone)) for zone in zones
        ]
    return "\n".join(lines) + "\n"


# -- fragmentation: /sys/kernel/debug/extfrag ------------------------------------------------------------------


def c_thousandths(index, width):
    """How C prints index / 1000 and index % 1000, both cut towards 0."""
    whole, rest = abs(index) // 1000, abs(index) % 1000
    sign = -1 if index < 0 else 1
    return f"{sign * whole:{width}d}.{sign * rest:03d} "


def extfrag_lines(system, index, width):
    """A line for each populated zone with an index for each order; `index(zone, order)` is in thousandths. Mirrors
    extfrag_show_print.
    """
    lines = [
        zone_title(zone) + " " + "".join(c_thousandths(index(zone, order), width) for order in range(NR_ORDERS))
        for node in range(system.machine.nr_nodes)
        for zone in populated_zones(system.machine, node)
    ]
    return "\n".join(lines) + "\n"


def unusable_index(system):
    """unusable_show_print"""
    return extfrag_lines(system, unusable_free_index, 1)


def extfrag_index(system):
    """extfrag_show_print"""
    return extfrag_lines(system, fragmentation_index, 2)


# -- zoneinfo ------------------------------------------------------------------------------------------------


def device_zone(node):
    """ZONE_DEVICE, which is always empty here."""
    names = ("boost", "min", "low", "high", "promo", "spanned", "present", "managed", "cma")
    return [
        f"Node {node}, zone {'Device':>8}",
        "  pages free     0",
        *(f"        {name:<8} 0" for name in names),
        "        protection: (0, 0, 0, 0, 0)",
    ]


def protection(machine, zone):
    """lowmem_reserve by the kernel's zones; device memory, of 64 bits only, adds nothing to what lies above."""
    reserve = [zone.lowmem_reserve[kind] for kind in zone_kinds(machine)]
    return ", ".join(str(pages) for pages in reserve + reserve[-1:] * (not machine.highmem))


def zone_marks(machine, zone):
    """Pages free, watermarks, sizes."""
    values = {
        "boost": zone.watermark_boost,
        "min": zone.watermark[WMARK_MIN],
        "low": zone.watermark[WMARK_LOW],
        "high": zone.watermark[WMARK_HIGH],
        "promo": zone.watermark[WMARK_PROMO],
        "spanned": zone.spanned_pages,
        "present": zone.present_pages,
        "managed": zone.managed_pages,
        "cma": 0,
    }
    return [
        f"  pages free     {zone.free_pages}",
        *(f"        {name:<8} {value}" for name, value in values.items()),
        f"        protection: ({protection(machine, zone)})",
    ]


def node_stats(system, node):
    values = stats.linux_names(fold_node(system.machine, node))
    return [f"      {name:<12} {values[name]}" for name in NODE_ITEMS if name in values]


def pagesets(machine, zone):
    """The CPUs' page lists (what lies on a CPU's shelf is its own, too): together never more than high. The counters of a zone are never behind, so
    the threshold up to which Linux lets a CPU's part differ is 0; kswapd never gives up a node yet.
    """
    lines = ["  pagesets"]
    for cpu in present_cpus(machine):
        lists = [pcp_of(machine, cpu, zone.number).lists[kind] for kind in range(MIGRATE_PCPTYPES)]
        count = sum(pcp.count + (pcp.shelf_count if pcp.shelf > 0 else 0) for pcp in lists)
        lines += [
            f"    cpu: {cpu}",
            f"              count:    {count}",
            f"              high:     {zone.pcp_high}",
            f"              batch:    {min(zone.pcp_batch, zone.pcp_list_high)}",
            "  vm stats threshold: 0",
        ]
    return [*lines, "  node_unreclaimable:  0", f"  start_pfn:           {zone.start_pfn}"]


def zoneinfo(system):
    """/proc/zoneinfo: zoneinfo_show_print for every zone, populated or not"""
    lines = []
    for node in range(system.machine.nr_nodes):
        with_node_stats = True
        for kind in zone_kinds(system.machine):
            zone = zone_of(system.machine, node * MAX_NR_ZONES + kind)
            lines.append(zone_title(zone))
            if zone.present_pages > 0 and with_node_stats:
                lines += ["  per-node stats", *node_stats(system, node)]
                with_node_stats = False
            lines += zone_marks(system.machine, zone)
            if zone.present_pages > 0:
                lines += [f"      {'nr_free_pages':<12} {zone.free_pages}", *pagesets(system.machine, zone)]
        if not system.machine.highmem:
            lines += device_zone(node)
    return "\n".join(lines) + "\n"


# fmt: off
FILES = {"/proc/buddyinfo": buddyinfo, "/proc/pagetypeinfo": pagetypeinfo, "/proc/zoneinfo": zoneinfo,
         "/proc/vmstat": vmstat, "/sys/kernel/debug/extfrag/extfrag_index": extfrag_index,
         "/sys/kernel/debug/extfrag/unusable_index": unusable_index}
# fmt: on
