"""Counters: Linux's mm/vmstat.c. Each CPU counts in its own block, without atomics; readers add the blocks up."""

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, i64
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, lruvec_of, zone_of
from numaemu.spec.param import MAX_NODES

VM_EVENTS = (
    "pgpgin pgpgout pswpin pswpout "
    "pgalloc_dma pgalloc_dma32 pgalloc_normal pgalloc_highmem pgalloc_movable "
    "allocstall_dma allocstall_dma32 allocstall_normal allocstall_highmem allocstall_movable "
    "pgfree pgactivate pgdeactivate pglazyfree pgfault pgmajfault pglazyfreed pgrefill pgreuse "
    "pgsteal_kswapd pgsteal_direct pgsteal_khugepaged pgscan_kswapd pgscan_direct pgscan_khugepaged "
    "pgscan_direct_throttle pgscan_anon pgscan_file "
    "pgsteal_anon pgsteal_file zone_reclaim_success zone_reclaim_failed slabs_scanned kswapd_low_wmark_hit_quickly kswapd_high_wmark_hit_quickly pageoutrun "
    "pgrotated drop_pagecache drop_slab oom_kill pgmigrate_success pgmigrate_fail "
    "compact_migrate_scanned compact_free_scanned compact_isolated compact_stall compact_fail compact_success "
    "compact_daemon_wake compact_daemon_migrate_scanned compact_daemon_free_scanned "
    "htlb_buddy_alloc_success htlb_buddy_alloc_fail "
    "thp_fault_alloc thp_fault_fallback thp_collapse_alloc thp_collapse_alloc_failed thp_split_pmd "
    "thp_zero_page_alloc thp_zero_page_alloc_failed thp_migration_success thp_migration_fail thp_migration_split "
    "unevictable_pgs_culled unevictable_pgs_scanned unevictable_pgs_rescued unevictable_pgs_mlocked "
    "unevictable_pgs_munlocked unevictable_pgs_cleared unevictable_pgs_stranded "
    "nr_tlb_remote_flush nr_tlb_remote_flush_received nr_tlb_local_flush_all nr_tlb_local_flush_one "
    "swap_ra swap_ra_hit swpin_zero swpout_zero zswpin zswpout zswpwb numa_fallback vmalloc_fault "
    "numa_pte_updates numa_huge_pte_updates numa_hint_faults numa_hint_faults_local numa_pages_migrated"
).split()
# fmt: off
(PGPGIN, PGPGOUT, PSWPIN, PSWPOUT,
 PGALLOC_DMA, PGALLOC_DMA32, PGALLOC_NORMAL, PGALLOC_HIGHMEM, PGALLOC_MOVABLE,
 ALLOCSTALL_DMA, ALLOCSTALL_DMA32, ALLOCSTALL_NORMAL, ALLOCSTALL_HIGHMEM, ALLOCSTALL_MOVABLE,
 PGFREE, PGACTIVATE, PGDEACTIVATE, PGLAZYFREE, PGFAULT, PGMAJFAULT, PGLAZYFREED, PGREFILL, PGREUSE,
 PGSTEAL_KSWAPD, PGSTEAL_DIRECT, PGSTEAL_KHUGEPAGED, PGSCAN_KSWAPD, PGSCAN_DIRECT, PGSCAN_KHUGEPAGED,
 PGSCAN_DIRECT_THROTTLE, PGSCAN_ANON, PGSCAN_FILE,
 PGSTEAL_ANON, PGSTEAL_FILE, PGSCAN_ZONE_RECLAIM_SUCCESS, PGSCAN_ZONE_RECLAIM_FAILED, SLABS_SCANNED,
 KSWAPD_LOW_WMARK_HIT_QUICKLY, KSWAPD_HIGH_WMARK_HIT_QUICKLY, PAGEOUTRUN,
 PGROTATED, DROP_PAGECACHE, DROP_SLAB, OOM_KILL, PGMIGRATE_SUCCESS, PGMIGRATE_FAIL,
 COMPACT_MIGRATE_SCANNED, COMPACT_FREE_SCANNED, COMPACT_ISOLATED, COMPACT_STALL, COMPACT_FAIL, COMPACT_SUCCESS,
 COMPACT_DAEMON_WAKE, COMPACT_DAEMON_MIGRATE_SCANNED, COMPACT_DAEMON_FREE_SCANNED,
 HTLB_BUDDY_ALLOC_SUCCESS, HTLB_BUDDY_ALLOC_FAIL,
 THP_FAULT_ALLOC, THP_FAULT_FALLBACK, THP_COLLAPSE_ALLOC, THP_COLLAPSE_ALLOC_FAILED, THP_SPLIT_PMD,
 THP_ZERO_PAGE_ALLOC, THP_ZERO_PAGE_ALLOC_FAILED, THP_MIGRATION_SUCCESS, THP_MIGRATION_FAIL, THP_MIGRATION_SPLIT,
 UNEVICTABLE_PGS_CULLED, UNEVICTABLE_PGS_SCANNED, UNEVICTABLE_PGS_RESCUED, UNEVICTABLE_PGS_MLOCKED,
 UNEVICTABLE_PGS_MUNLOCKED, UNEVICTABLE_PGS_CLEARED, UNEVICTABLE_PGS_STRANDED,
 NR_TLB_REMOTE_FLUSH, NR_TLB_REMOTE_FLUSH_RECEIVED, NR_TLB_LOCAL_FLUSH_ALL, NR_TLB_LOCAL_FLUSH_ONE,
 SWAP_RA, SWAP_RA_HIT, SWPIN_ZERO, SWPOUT_ZERO, ZSWPIN, ZSWPOUT, ZSWPWB, NUMA_FALLBACK, VMALLOC_FAULT,
 NUMA_PTE_UPDATES, NUMA_HUGE_PTE_UPDATES, NUMA_HINT_FAULTS, NUMA_HINT_FAULTS_LOCAL, NUMA_PAGE_MIGRATE) = range(len(VM_EVENTS))
# fmt: on

NUMA_STATS = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
NUMA_HIT, NUMA_MISS, NUMA_FOREIGN, NUMA_INTERLEAVE_HIT, NUMA_LOCAL, NUMA_OTHER = range(6)

# the first five are the lengths of the LRU lists, in the order of LRU_*: the lists count them
NODE_STATS = (
    "nr_inactive_anon nr_active_anon nr_inactive_file nr_active_file nr_unevictable "
    "nr_slab_reclaimable nr_slab_unreclaimable nr_isolated_anon nr_isolated_file "
    "workingset_nodes workingset_refault_anon workingset_refault_file workingset_activate_anon workingset_activate_file "
    "workingset_restore_anon workingset_restore_file workingset_nodereclaim "
    "nr_anon_pages nr_mapped nr_file_pages nr_dirty nr_writeback nr_shmem nr_vmscan_write nr_vmscan_immediate_reclaim "
    "nr_dirtied nr_written nr_kernel_stack nr_page_table_pages nr_swapcached nr_kernel_pages nr_mlock "
    "nr_anon_transparent_hugepages nr_zspages "
    "pgpromote_success pgpromote_candidate pgdemote_kswapd pgdemote_direct pgdemote_khugepaged"
).split()
# fmt: off
(NR_INACTIVE_ANON, NR_ACTIVE_ANON, NR_INACTIVE_FILE, NR_ACTIVE_FILE, NR_UNEVICTABLE,
 NR_SLAB_RECLAIMABLE, NR_SLAB_UNRECLAIMABLE, NR_ISOLATED_ANON, NR_ISOLATED_FILE,
 WORKINGSET_NODES, WORKINGSET_REFAULT_ANON, WORKINGSET_REFAULT_FILE, WORKINGSET_ACTIVATE_ANON, WORKINGSET_ACTIVATE_FILE,
 WORKINGSET_RESTORE_ANON, WORKINGSET_RESTORE_FILE, WORKINGSET_NODERECLAIM,
 NR_ANON_MAPPED, NR_FILE_MAPPED, NR_FILE_PAGES, NR_FILE_DIRTY, NR_WRITEBACK, NR_SHMEM, NR_VMSCAN_WRITE,
 NR_VMSCAN_IMMEDIATE_RECLAIM,
 NR_DIRTIED, NR_WRITTEN, NR_KERNEL_STACK, NR_PAGETABLE, NR_SWAPCACHE, NR_KERNEL_PAGES, NR_MLOCK,
 NR_ANON_THPS, NR_ZSPAGES,
 PGPROMOTE_SUCCESS, PGPROMOTE_CANDIDATE, PGDEMOTE_KSWAPD, PGDEMOTE_DIRECT, PGDEMOTE_KHUGEPAGED) = range(len(NODE_STATS))
# fmt: on

numa_stat_t = Struct("numa_stat_t", [("item", i64, 8)])
node_stat_t = Struct("node_stat_t", [("item", i64, 40)])

# Shared words of percpu_t: the word | its writer | why a reader may trust it.
# - all counters | Their CPU. | Readers fold them: a sum is as old as its first word.
percpu_t = Struct(
    "percpu_t",
    [  # written by its CPU only
        ("event", i64, 128),
        ("numa", numa_stat_t, MAX_NODES),  # by node
        ("node", node_stat_t, MAX_NODES),  # by node: what this CPU added minus what it took away
    ],
)


@hot
def percpu_of(machine, cpu_number):
    """The counters of one CPU."""
    return percpu_t.array(machine.percpu)[cpu_number]


@hot
def count_vm_events(machine, cpu_number, event, n):
    percpu_of(machine, cpu_number).event[event] += n


@hot
def mod_node_page_state(machine, cpu_number, node, item, n):
    """Add to a counter of `node`, on behalf of `cpu_number`."""
    percpu_of(machine, cpu_number).node[node].item[item] += n


@hot
def zone_statistics(machine, cpu_number, cpu_node, preferred_node, node, n):
    """numa_hit, numa_miss, numa_foreign, local_node, other_node for n pages: Linux's function of this name."""
    here = percpu_of(machine, cpu_number)
    if node == preferred_node:
        here.numa[node].item[NUMA_HIT] += n
    else:
        here.numa[node].item[NUMA_MISS] += n
        here.numa[preferred_node].item[NUMA_FOREIGN] += n
    here.numa[node].item[NUMA_LOCAL if node == cpu_node else NUMA_OTHER] += n


@hot
def pgalloc_event(machine, zone):
    """The PGALLOC_* event of a zone number."""
    return PGALLOC_DMA + zone % MAX_NR_ZONES


@kernel("i64(machine_t*, i64, i64)")
def node_page_state(machine, node, item):
    """A counter of a node, all CPUs added up."""
    total = 0
    for cpu in range(machine.nr_cpu_ids):
        total += percpu_of(machine, cpu).node[node].item[item]
    return total


# Memory cgroups count by CPU as well, and their sums are made every two seconds: so what reclaim knows of the lengths of
# the lists, and of refaults, is as old as that (mem_cgroup_flush_stats_ratelimited; the lists themselves are exact).


@kernel("void(machine_t*)")
def do_flush_stats(machine):
    """Bring lruvec_t.state up to date."""
    for node in range(machine.nr_nodes):
        lruvec = lruvec_of(machine, node)
        for lru in range(NR_ACTIVE_FILE + 1):
            lruvec.state[lru] = lruvec.nr[lru]
        for item in range(WORKINGSET_ACTIVATE_ANON, WORKINGSET_ACTIVATE_FILE + 1):
            lruvec.state[item] = node_page_state(machine, node, item)


@hot
def lruvec_page_state(lruvec, item):
    """A counter of a node's lists as of the last flush: NR_INACTIVE_ANON to NR_ACTIVE_FILE, WORKINGSET_ACTIVATE_*."""
    return lruvec.state[item]


def percpu_table(machine):
    """The counters of all CPUs as NumPy has them, a row for each."""
    return percpu_t.array(machine.percpu).as_numpy(machine.nr_cpu_ids)


def fold_vm_events(machine):
    """All CPUs' events added up: {name: count}."""
    return dict(zip(VM_EVENTS, percpu_table(machine)["event"].sum(axis=0).tolist()))


def fold_numa(machine, node):
    """numastat of one node: {name: count}."""
    return dict(zip(NUMA_STATS, percpu_table(machine)["numa"]["item"][:, node].sum(axis=0).tolist()))


def fold_node(machine, node):
    """Page counters of one node: {name: pages}."""
    counts = dict(zip(NODE_STATS, percpu_table(machine)["node"]["item"][:, node].sum(axis=0).tolist()))
    return counts | dict(zip(NODE_STATS, lruvec_of(machine, node).nr.as_numpy().tolist()))


def free_pages(machine, node):
    """NR_FREE_PAGES of one node."""
    return sum(int(zone_of(machine, node * MAX_NR_ZONES + t).free_pages) for t in range(MAX_NR_ZONES))
