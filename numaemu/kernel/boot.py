"""Making a machine's memory: segments, tables, zones, zonelists, watermarks. Linux's mm/mm_init.c and the boot part
of mm/page_alloc.c. Runs once, in the coordinator, before it forks.
"""

import math

import numpy as np

from numaemu.compiler.pointer import i64, u8
from numaemu.hardware.cacheinfo import init_caches
from numaemu.hardware.paging import set_paging
from numaemu.hardware.processor import cpu_t
from numaemu.hardware.timing import enable_timing
from numaemu.hardware.tlb_sets import init_tlbs
from numaemu.host import shm
from numaemu.kernel.arch.init_mm import init_kernel_space, reserved_pages
from numaemu.kernel.arch.thread_stack import init_stacks
from numaemu.kernel.core.psi import psi_init
from numaemu.kernel.core.rates import init_rates
from numaemu.kernel.core.timer import HPAGE_FRAG_CHECK_INTERVAL_NS
from numaemu.kernel.fs.bio import BIO_BYTES
from numaemu.kernel.fs.disk import disk_space_t
from numaemu.kernel.include.mm_types import cgroup_t, machine_t, pool_t, present_cpus, task_t
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_TYPES,
    MIGRATE_UNMOVABLE,
    PCP_BATCH_SCALE_MAX,
    PCP_HIGH_MAX,
    PCP_PARTS,
    WMARK_HIGH,
    WMARK_LOW,
    WMARK_MIN,
    WMARK_PROMO,
    ZONE_HIGHMEM,
    ZONE_MOVABLE,
    node_t,
    page_of,
    pcp_of,
    zone_of,
)
from numaemu.kernel.layout import control_layout, map_memory
from numaemu.kernel.mm.huge.huge_memory import DEFRAG_MADVISE, THP_NEVER
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at
from numaemu.kernel.mm.numa.memory_tiers import memory_tier_init
from numaemu.kernel.mm.numa.placement import init_numa_topology_type
from numaemu.kernel.mm.page_alloc.free_lists import set_free_lists
from numaemu.kernel.mm.page_alloc.node_side import rmqueue_bulk
from numaemu.kernel.mm.page_alloc.page_alloc import set_alloc_hooks
from numaemu.kernel.mm.page_alloc.zone_layout import HIGHMEM_START, whole_blocks, zone_ranges
from numaemu.kernel.mm.slab.slab import SLAB_HWCACHE_ALIGN, SLAB_RECLAIM_ACCOUNT
from numaemu.kernel.mm.slab.slab_common import init_cache, kmem_cache_init
from numaemu.kernel.mm.swap.swapfile import MAX_SWAPFILES, SWP_OFFSET_BITS, swap_t
from numaemu.kernel.mm.swap.zswap_init import init_zswap
from numaemu.kernel.mm.vmalloc.vmap_area import init_vmap
from numaemu.spec.cmdline import huge_page_sizes
from numaemu.spec.param import (
    CPU_WORDS,
    MAX_FILES,
    MAX_INODES,
    MAX_MAP_COUNT,
    MAX_MMS,
    MAX_NODES,
    MAX_SP_NODES,
    MAX_TASKS,
    MAX_VMAS,
    PAGE_SIZE,
    PAGEBLOCK_ORDER,
    PAGEBLOCK_PAGES,
)

SP_NODE_POOL, NUMA_GROUP_POOL = 8, 9  # their places among the pools
ZERO_PFN = 1  # the shared page of zeros
LOWMEM_RESERVE_RATIO = (256, 256, 32, 0, 0)  # sysctl_lowmem_reserve_ratio, by zone
WATERMARK_SCALE_FACTOR = 10  # of 10,000
FIRST_PID = 100  # tasks are numbered from the next one on
SCHED_BASE_SLICE_NS = 3_000_000  # kernel/sched/fair.c: 0.75 ms, four times that from 8 CPUs on
WATERMARK_BOOST_FACTOR = 15000  # likewise, of the high watermark
OVERCOMMIT_RATIO = 50  # sysctl_overcommit_ratio, percent: mm/util.c
USER_RESERVE_KB, ADMIN_RESERVE_KB = 128 << 10, 8 << 10  # at most, else a 32nd of what is free: mm/mmap.c
# fmt: off
COMPACTION_SYSCTLS = {"extfrag_threshold": 500, "compaction_proactiveness": 20, "compact_unevictable_allowed": 1,
                      "lumpy_reclaim": 0}
# fmt: on
NODE_RECLAIM_SYSCTLS = {
    "zone_reclaim_mode": 0,
    "min_unmapped_ratio": 1,
    "min_slab_ratio": 5,
}  # percent: mm/page_alloc.c
# fmt: off
DIRTY_DEFAULTS = {"dirty_ratio": 20, "dirty_background_ratio": 10, "dirty_bytes": 0, "dirty_background_bytes": 0,
                  "dirty_expire_centisecs": 3000, "dirty_writeback_centisecs": 500}      # mm/page-writeback.c
# fmt: on
# /sys/kernel/debug/sched/numa_balancing: the word in machine_t, (file, default of kernel/sched/fair.c)
NUMA_BALANCING_DEBUGFS = {
    "numa_scan_delay_ms": ("scan_delay_ms", 1000),
    "numa_scan_period_min_ms": ("scan_period_min_ms", 1000),
    "numa_scan_period_max_ms": ("scan_period_max_ms", 60000),
    "numa_scan_size_mb": ("scan_size_mb", 256),
    "numa_hot_threshold_ms": ("hot_threshold_ms", 1000),
}
PROMOTE_RATE_LIMIT = 65536  # MB/s: sysctl_numa_balancing_promote_rate_limit
BUFFER_HEAD_BYTES = 104  # sizeof(struct buffer_head) of this configuration: 39 to a page
NS_PER_CENTISEC, NS_PER_MS = 10_000_000, 1_000_000


def init_pools(machine, blocks):
    """The pools that hand out tasks, address spaces, VMAs, mappings, inodes, files and shared policies by number."""
    for i, (name, capacity) in enumerate(
        (
            ("task", MAX_TASKS),
            ("mm", MAX_MMS),
            ("vma", MAX_VMAS),
            ("mapping", MAX_VMAS),
            ("inode", MAX_INODES),
            ("file", MAX_FILES),
            ("files_struct", MAX_TASKS),
        )
    ):
        pool = pool_t.array(blocks["pools"])[i]
        pool.capacity, pool.returned = capacity, blocks[f"{name}_stack"]
        setattr(machine, f"{name}_pool", pool.address)
    pool = pool_t.array(blocks["pools"])[SP_NODE_POOL]
    pool.capacity, pool.returned, machine.sp_node_pool = MAX_SP_NODES, blocks["sp_node_stack"], pool.address
    pool = pool_t.array(blocks["pools"])[NUMA_GROUP_POOL]
    pool.capacity, pool.returned, machine.numa_group_pool = MAX_TASKS, blocks["numa_group_stack"], pool.address


def zone_batchsize(managed):
    """Pages moved at once between free lists and a CPU's list: Linux's zone_batchsize."""
    batch = max(1, min(managed * PAGE_SIZE // (1 << 22), (1 << 20) // PAGE_SIZE) // 4)
    return max(1, (1 << int(math.log2(batch + batch // 2))) - 1)


def init_zone(machine, node, kind, begin, pages, reserve):
    """One zone: what is in use from the start lies at its bottom, the rest is virgin."""
    zone = zone_of(machine, node * MAX_NR_ZONES + kind)
    first_free = begin
    if begin == 0:  # page 0 is never given out; then comes the page of zeros
        begin, pages, first_free = 1, pages - 1, ZERO_PFN + 1
    managed, free, held = reserve or (pages - (first_free - begin), pages - (first_free - begin), 0)
    zone.start_pfn, zone.spanned_pages, zone.present_pages, zone.managed_pages = begin, pages, pages, managed
    zone.virgin_end = begin + pages
    zone.virgin_pfn = max(begin + pages - free - held, first_free)
    zone.free_pages = zone.virgin_end - zone.virgin_pfn
    zone.pcp_batch = zone_batchsize(managed)


def groups_by_mobility(topology):
    """False if the machine file says so, or if there are hardly more pageblocks than migratetypes (build_all_zonelists)."""
    return (
        topology.kernel["page_group_by_mobility"]
        and topology.memory_bytes >= PAGEBLOCK_PAGES * PAGE_SIZE * MIGRATE_TYPES
    )


def init_zones(topology, machine, reserve):
    """The zones of all nodes, and for each pageblock its node, its zone's type and its mobility type. Mirrors
    free_area_init.
    """
    node_of, zone_type = u8.array(machine.block_node), u8.array(machine.block_zone)
    types = u8.array(machine.block_type)
    for (node, kind), (begin, pages) in sorted(zone_ranges(topology).items()):
        first, last = begin >> PAGEBLOCK_ORDER, (begin + pages + PAGEBLOCK_PAGES - 1) >> PAGEBLOCK_ORDER
        size = last - first
        node_of.as_numpy(last)[first:] = np.full(size, node, np.uint8)
        zone_type.as_numpy(last)[first:] = np.full(size, kind, np.uint8)
        grouped = MIGRATE_UNMOVABLE if machine.page_group_by_mobility_disabled else MIGRATE_MOVABLE
        types.as_numpy(last)[first:] = np.full(size, grouped, np.uint8)
        init_zone(machine, node, kind, begin, pages, reserve.get((node, kind)))
    for node in range(topology.nr_nodes):
        for kind in range(MAX_NR_ZONES):
            zone = zone_of(machine, node * MAX_NR_ZONES + kind)
            zone.node, zone.type, zone.number = node, kind, node * MAX_NR_ZONES + kind


def node_order(topology):
    """Fallback order of every node: by distance; equally far ones by number after it and by load, as Linux does it.

    Mirrors build_zonelists and find_next_best_node: a node that has been chosen first behind a tie weighs more the
    next time, and nodes without CPUs are preferred a little.
    """
    nodes = range(topology.nr_nodes)
    with_memory = [n for n in nodes if topology.nodes[n].memory_bytes > 0]
    load = [0] * topology.nr_nodes
    orders = []
    for local in nodes:
        order, previous = [], local
        while len(order) < len(with_memory):
            if local in with_memory and local not in order:
                best = local
            else:
                best = min(
                    (n for n in with_memory if n not in order),
                    key=lambda n: (
                        (topology.distance[local][n] + (n < local) + bool(topology.nodes[n].cpus)) * MAX_NODES
                        + load[n],
                        n,
                    ),
                )
            if topology.distance[local][best] != topology.distance[local][previous]:
                load[best] += 1
            order.append(best)
            previous = best
        orders.append(order)
    return orders


def build_zonelists(topology, machine):
    """For each node the order of nodes in which it falls back, and the SLIT distances. Mirrors build_all_zonelists."""
    lists = i64.array(machine.zonelists)
    for node, order in enumerate(node_order(topology)):
        for i in range(MAX_NODES):
            lists[node * MAX_NODES + i] = order[i] if i < len(order) else -1
    u8.array(machine.distance).as_numpy(topology.nr_nodes**2)[:] = np.array(topology.distance, np.uint8).ravel()


def setup_node_reclaim(machine, sysctl):
    """The mode, and what node_reclaim leaves of each node: setup_min_unmapped_ratio, setup_min_slab_ratio."""
    machine.node_reclaim_mode = sysctl.get("vm.zone_reclaim_mode", 0)
    for node in range(machine.nr_nodes):
        pgdat, managed = node_t.array(machine.nodes)[node], node_managed_pages(machine, node)
        for name, pages in (("min_unmapped_ratio", "min_unmapped_pages"), ("min_slab_ratio", "min_slab_pages")):
            setattr(pgdat, pages, managed * sysctl.get(f"vm.{name}", NODE_RECLAIM_SYSCTLS[name]) // 100)


def setup_per_zone_lowmem_reserve(machine, ratio):
    """The pages that each zone keeps from allocations which may use higher zones: managed pages above, divided by
    vm.lowmem_reserve_ratio.
    """
    ratio = list(ratio) + list(LOWMEM_RESERVE_RATIO[len(ratio) :])  # those not given keep their default
    for node in range(machine.nr_nodes):
        for kind in range(MAX_NR_ZONES - 1):
            zone = zone_of(machine, node * MAX_NR_ZONES + kind)
            above = 0
            for upper in range(kind + 1, MAX_NR_ZONES):
                above += zone_of(machine, node * MAX_NR_ZONES + upper).managed_pages
                clear = ratio[kind] < 1 or zone.managed_pages == 0
                zone.lowmem_reserve[upper] = 0 if clear else above // ratio[kind]


def node_managed_pages(machine, node):
    return sum(zone_of(machine, node * MAX_NR_ZONES + kind).managed_pages for kind in range(MAX_NR_ZONES))


def calculate_min_free_kbytes(machine):
    """Linux's default: the square root of 16 times the low memory in kB, between 128 kB and 256 MiB."""
    zones = [zone_of(machine, number) for number in range(machine.nr_nodes * MAX_NR_ZONES)]
    lowmem_kbytes = sum(zone.managed_pages for zone in zones if zone.type not in (ZONE_HIGHMEM, ZONE_MOVABLE)) * (
        PAGE_SIZE >> 10
    )
    return max(128, min(math.isqrt(lowmem_kbytes * 16), 262144))


def setup_per_zone_wmarks(machine, sysctl):
    """min, low and high of every zone, and what each keeps back from allocations that could use a higher one."""
    min_kbytes = sysctl.get("vm.min_free_kbytes", calculate_min_free_kbytes(machine))
    factor = sysctl.get("vm.watermark_scale_factor", WATERMARK_SCALE_FACTOR)
    pages_min = min_kbytes >> 2
    zones = [zone_of(machine, number) for number in range(machine.nr_nodes * MAX_NR_ZONES)]
    lowmem = sum(z.managed_pages for z in zones if z.type not in (ZONE_HIGHMEM, ZONE_MOVABLE)) or 1
    for zone in zones:
        share = pages_min * zone.managed_pages // lowmem
        if zone.type in (ZONE_HIGHMEM, ZONE_MOVABLE):
            minimum = max(32, min(zone.managed_pages // 1024, 128)) if zone.managed_pages else 0
        else:
            minimum = share
        gap = max(share >> 2, zone.managed_pages * factor // 10000)
        zone.watermark_boost = 0
        zone.watermark[WMARK_MIN] = minimum
        zone.watermark[WMARK_LOW], zone.watermark[WMARK_HIGH] = minimum + gap, minimum + 2 * gap
        zone.watermark[WMARK_PROMO] = minimum + 3 * gap
    setup_per_zone_lowmem_reserve(machine, sysctl.get("vm.lowmem_reserve_ratio", LOWMEM_RESERVE_RATIO))


def zone_highsize(machine, zone, fraction):
    """Pages a CPU may have of a zone: without vm.percpu_pagelist_high_fraction the longest chain on each of its lists and
    shelves, else its share of that fraction of the zone, at least four batches (and a page for each list and shelf).
    """
    if fraction == 0:
        return PCP_PARTS * min(int(zone.pcp_batch) << PCP_BATCH_SCALE_MAX, PCP_HIGH_MAX)
    local = sum(cpu_t.array(machine.cpus)[number].node == zone.node for number in present_cpus(machine))
    return max(zone.managed_pages // fraction // (local or machine.nr_present_cpus), zone.pcp_batch * 4, PCP_PARTS)


def setup_per_zone_pageset(machine, sysctl):
    """pcp->high of every zone; the batch depends on the zone only."""
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if zone.managed_pages:
            zone.pcp_high = zone_highsize(machine, zone, sysctl.get("vm.percpu_pagelist_high_fraction", 0))
            zone.pcp_list_high = max(zone.pcp_high // PCP_PARTS, 1)
    set_alloc_hooks(machine)


def hold_pages(machine, number, held):
    """Put so many pages of a zone on the lists of its node's CPUs, or of all CPUs, where there are none: on those that are
    hardly ever taken from.
    """
    zone = zone_of(machine, number)
    cpus = [n for n in present_cpus(machine) if cpu_t.array(machine.cpus)[n].node == zone.node] or present_cpus(machine)
    for i, cpu in enumerate(cpus):
        pcp = pcp_of(machine, cpu, number).lists[MIGRATE_RECLAIMABLE]
        pcp.head = rmqueue_bulk(
            machine, zone, held * (i + 1) // len(cpus) - held * i // len(cpus), MIGRATE_MOVABLE, 0, pcp
        )
        pcp.count, pcp.shelf_count = pcp.shelf_count, 0


def init_cpus(topology, machine):
    """CPUs, and behind them the contexts of the nodes' kernel threads, which never access memory as tasks do."""
    nodes = {cpu: node.id for node in topology.nodes for cpu in node.cpus}
    nodes |= {machine.nr_cpus + node: node for node in range(topology.nr_nodes)}
    for number in range(topology.nr_cpu_ids):
        cpu_t.array(machine.cpus)[number].node = -1  # of a number that is no CPU: on no node
    for number, node in nodes.items():
        cpu = cpu_t.array(machine.cpus)[number]
        cpu.id, cpu.node = number, node
        cpu.machine = machine.address
        cpu.memory, cpu.block_node, cpu.kernel_table = machine.memory, machine.block_node, machine.kernel_table
        set_paging(cpu.paging, topology.paging)
        for field in ("vmalloc_start", "vmalloc_end"):
            setattr(cpu.paging, field, getattr(machine.paging, field))
        cpu.asids, cpu.walk_cache_entries = topology.asids, topology.walk_cache
        init_tlbs(cpu, topology.l1, topology.l2)
        cpu.nr_nodes = topology.nr_nodes
        for memory in range(topology.nr_nodes):
            cpu.latency_ns[memory] = topology.latency_ns[node][memory]


def init_commit_limit(topology, machine):
    """How much memory may be promised: init_user_reserve, init_admin_reserve, and the settings the machine file gives."""
    nodes = range(topology.nr_nodes)
    machine.total_ram_pages = sum(node_managed_pages(machine, node) for node in nodes)
    free_kb = sum(zone_of(machine, n).free_pages for n in range(topology.nr_nodes * MAX_NR_ZONES)) * (PAGE_SIZE // 1024)
    given = {
        "vm.overcommit_memory": 0,
        "vm.overcommit_ratio": OVERCOMMIT_RATIO,
        "vm.overcommit_kbytes": 0,
        "vm.user_reserve_kbytes": min(free_kb // 32, USER_RESERVE_KB),
        "vm.admin_reserve_kbytes": min(free_kb // 32, ADMIN_RESERVE_KB),
        **topology.sysctl,
    }
    for name in (
        "overcommit_memory",
        "overcommit_ratio",
        "overcommit_kbytes",
        "user_reserve_kbytes",
        "admin_reserve_kbytes",
    ):
        setattr(machine, name, given[f"vm.{name}"])


def hugetlb_init(topology, machine):
    """Empty pools of huge pages, of the sizes that entries above the lowest tables map (hugetlb_add_hstate)."""
    machine.nr_hstates = len(huge_page_sizes(topology.paging))
    for number in range(machine.nr_hstates):
        h = hstate_at(machine, number)
        h.number, h.order = number, int(machine.paging.table_bits) * (number + 1)
        h.next_nid_to_alloc = h.next_nid_to_free = (
            int(machine.memory_mask) & -int(machine.memory_mask)
        ).bit_length() - 1
    machine.default_hstate = huge_page_sizes(topology.paging).index(topology.hugepages().default)


def hugepage_init(machine):
    """Transparent huge pages: nobody gets any until the setting says so; the others are Linux's (khugepaged_init)."""
    pages = 1 << int(machine.paging.table_bits)
    machine.thp_enabled, machine.thp_defrag, machine.thp_use_zero_page = THP_NEVER, DEFRAG_MADVISE, 1
    machine.khugepaged_pages_to_scan, machine.khugepaged_max_ptes_none = pages * 8, pages - 1
    machine.khugepaged_max_ptes_swap, machine.khugepaged_max_ptes_shared = pages // 8, pages // 2
    machine.khugepaged_scan_sleep_ns, machine.khugepaged_alloc_sleep_ns = 10_000 * NS_PER_MS, 60_000 * NS_PER_MS
    machine.khugepaged_defrag = 1


def init_swap(topology, machine, blocks):
    """No area yet; what reclaim starts from."""
    swap = swap_t.at(blocks["swap"])
    for name in ("swap_map", "swap_cache", "zeromap"):
        setattr(swap, name, blocks[name])
    for kind in range(MAX_SWAPFILES):
        swap.info[kind].type = kind
        swap.info[kind].data = blocks["swap_data"] + (kind << SWP_OFFSET_BITS) * PAGE_SIZE
    swap.enable_vma_readahead = 1
    swap.swapin_readahead_hits, swap.page_cluster = 4, topology.sysctl.get("vm.page-cluster", 3)
    machine.swappiness = topology.sysctl.get("vm.swappiness", 60)
    init_zswap(machine, blocks)


def buffer_init(machine):
    """The slab cache of buffer heads: Linux's function of this name, in fs/buffer.c."""
    pool = pool_t.at(machine.kmem_cache_pool)
    pool.used += 1
    machine.bh_cachep = pool.used
    init_cache(machine, pool.used, "buffer_head", BUFFER_HEAD_BYTES, 0, SLAB_RECLAIM_ACCOUNT)


def init_bio(machine):
    """The slab cache of fs_bio_set's bios: Linux's function of this name, in block/bio.c."""
    pool = pool_t.at(machine.kmem_cache_pool)
    pool.used += 1
    machine.bio_slab = pool.used
    init_cache(machine, pool.used, f"bio-{BIO_BYTES}", BIO_BYTES, 8, SLAB_HWCACHE_ALIGN)


def init_disk(topology, machine):
    """An empty disk, and the settings of writing back to it."""
    spec, space = topology.disk, disk_space_t.at(machine.disk_space)
    machine.disk = shm.shared_block(spec.size)
    machine.disk_read_ns, machine.disk_write_ns = spec.read_latency_us * 1000, spec.write_latency_us * 1000
    machine.disk_bandwidth, machine.disk_page_ns = spec.bandwidth, PAGE_SIZE * 10**9 // spec.bandwidth
    machine.disk_rotational = int(spec.rotational)
    space.nr_pages, space.nr_free = spec.size // PAGE_SIZE, 1
    space.start[0], space.pages[0] = 0, spec.size // PAGE_SIZE
    setup_dirty_limits(machine, topology.sysctl)


def setup_dirty_limits(machine, sysctl):
    """What vm.dirty_* say; bytes that are not 0 stand for their ratio. Whoever dirties a page next looks at the new limits."""
    machine.dirty_poll_interval = 1
    for name in DIRTY_DEFAULTS:
        value = sysctl.get(f"vm.{name}", DIRTY_DEFAULTS[name])
        if name.endswith("_centisecs"):
            setattr(machine, name.replace("centisecs", "ns"), value * NS_PER_CENTISEC)
        else:
            setattr(machine, name if "background" in name else f"vm_{name}", value)


def init_machine(topology, machine, max_pfn, nr_actors):
    """Counts, limits and settings of the machine as a whole."""
    machine.nr_nodes = topology.nr_nodes
    machine.nr_cpus, machine.nr_present_cpus = topology.nr_cpu_ids, topology.nr_cpus
    machine.nr_cpu_ids = topology.nr_cpu_ids + topology.nr_nodes
    for number in topology.cpus:
        machine.cpu_present[number // 64] |= 1 << number % 64
    machine.max_pfn, machine.nr_actors = max_pfn, nr_actors
    machine.node_mask = (1 << topology.nr_nodes) - 1
    set_paging(machine.paging, topology.paging)
    machine.zero_pfn, machine.next_pid = ZERO_PFN, FIRST_PID
    machine.random_seed = topology.kernel["random_seed"]
    machine.randomize_va_space = topology.sysctl.get("kernel.randomize_va_space", 0)
    machine.max_map_count = topology.sysctl.get("vm.max_map_count", MAX_MAP_COUNT)
    machine.sched_base_slice_ns = topology.sysctl.get("kernel.sched_base_slice_ns", SCHED_BASE_SLICE_NS)
    for name, value in topology.cost.items():
        setattr(machine, name, value)
    for name, default in COMPACTION_SYSCTLS.items():
        setattr(machine, name, topology.sysctl.get(f"vm.{name}", default))
    machine.kcompactd_timer_ns = HPAGE_FRAG_CHECK_INTERVAL_NS
    machine.page_group_by_mobility_disabled = not groups_by_mobility(topology)
    machine.highmem = topology.zone_layout == "x86-32"
    machine.watermark_boost_factor = topology.sysctl.get("vm.watermark_boost_factor", WATERMARK_BOOST_FACTOR)


def init_numa_balancing(topology, machine):
    """Memory tiers, and what NUMA balancing goes by."""
    memory_tier_init(topology, machine)
    init_numa_topology_type(topology, machine)
    for name, (_, default) in NUMA_BALANCING_DEBUGFS.items():
        setattr(machine, name, default)
    machine.numa_balancing = topology.sysctl.get("kernel.numa_balancing", 0)
    machine.numa_promote_rate_limit = topology.sysctl.get(
        "kernel.numa_balancing_promote_rate_limit_MBps", PROMOTE_RATE_LIMIT
    )


def boot(topology, reserve=None, free_lists=None):
    """A machine of this shape in shared memory: (machine, addresses of its blocks by name).

    reserve: {(node, zone type): (managed, free, held)} in pages, for a machine that must have as much memory in use at its
    start as a recorded one, and so many pages on the CPUs' lists; default: nothing is in use but the first page and the page
    of zeros.
    free_lists: a FreeLists (spec/buddyinfo.py): the free blocks that each zone has.
    """
    max_pfn = max((start + nbytes) // PAGE_SIZE for ranges in topology.physical_ranges() for start, nbytes in ranges)
    max_pfn = whole_blocks(max_pfn * PAGE_SIZE)
    nr_actors = 1 + topology.nr_nodes + topology.nr_cpu_ids
    blocks = control_layout(topology, max_pfn, nr_actors).place()
    machine = machine_t.at(blocks["machine"])
    for name, address in blocks.items():
        if name in machine_t.kinds:
            setattr(machine, name, address)
    init_machine(topology, machine, max_pfn, nr_actors)
    psi_init(machine, blocks)
    init_pools(machine, blocks)
    map_memory(topology, machine, max_pfn)
    init_zones(topology, machine, reserve or {})
    if free_lists is not None:
        set_free_lists(machine, free_lists)
    init_kernel_space(topology, machine, min(max_pfn, HIGHMEM_START) if machine.highmem else max_pfn)
    init_vmap(machine)
    machine.memory_mask = sum(1 << n for n in range(topology.nr_nodes) if node_managed_pages(machine, n) > 0)
    task_t.array(machine.tasks)[0].mems_allowed = machine.node_mask  # where no task runs
    for word in range(CPU_WORDS):
        cgroup_t.array(machine.cgroups)[0].cpus[word] = machine.cpu_present[word]
    hugetlb_init(topology, machine)
    hugepage_init(machine)
    build_zonelists(topology, machine)
    init_commit_limit(topology, machine)
    setup_per_zone_wmarks(machine, topology.sysctl)
    setup_per_zone_pageset(machine, topology.sysctl)
    setup_node_reclaim(machine, topology.sysctl)
    init_numa_balancing(topology, machine)
    for node in range(topology.nr_nodes):
        machine.il_weights[node] = 1
        node_t.array(machine.nodes)[node].kcompactd_highest_zoneidx = MAX_NR_ZONES - 1
    init_cpus(topology, machine)
    if topology.cache is not None:
        init_caches(topology, blocks, cpu_t.array(machine.cpus))
        for number in topology.cpus:
            enable_timing(cpu_t.array(machine.cpus)[number])
    init_rates(topology, machine, blocks)
    for (node, kind), (_, _, held) in (reserve or {}).items():
        hold_pages(machine, node * MAX_NR_ZONES + kind, held)
    init_stacks(topology, machine, max_pfn, reserved_pages(topology))
    init_disk(topology, machine)
    init_swap(topology, machine, blocks)
    kmem_cache_init(machine, blocks["kmem_cache_stack"], topology.kernel["slab_debug"] or None)
    buffer_init(machine)
    init_bio(machine)
    page = page_of(machine, ZERO_PFN)
    page.refcount = 1
    return machine, blocks
