"""Counters: Linux's mm/vmstat.c. Each CPU counts in its own block, without atomics; readers add the blocks up."""
from numaemu.compile import hot
from numaemu.kernel.mmzone import MAX_NR_ZONES, zone_of
from numaemu.param import MAX_NODES
from numaemu.pointer import Struct, i64

VM_EVENTS = ("pgalloc_dma", "pgalloc_dma32", "pgalloc_normal", "pgalloc_highmem", "pgalloc_movable", "pgfree",
             "pgfault", "pgmajfault", "pgreuse", "pgmigrate_success", "pgmigrate_fail", "allocstall", "numa_fallback",
             "nr_tlb_remote_flush", "nr_tlb_remote_flush_received", "nr_tlb_local_flush_all",
             "nr_tlb_local_flush_one", "oom_kill")
(PGALLOC_DMA, PGALLOC_DMA32, PGALLOC_NORMAL, PGALLOC_HIGHMEM, PGALLOC_MOVABLE, PGFREE, PGFAULT, PGMAJFAULT, PGREUSE,
 PGMIGRATE_SUCCESS, PGMIGRATE_FAIL, ALLOCSTALL, NUMA_FALLBACK, NR_TLB_REMOTE_FLUSH, NR_TLB_REMOTE_FLUSH_RECEIVED,
 NR_TLB_LOCAL_FLUSH_ALL, NR_TLB_LOCAL_FLUSH_ONE, OOM_KILL) = range(len(VM_EVENTS))

NUMA_STATS = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
NUMA_HIT, NUMA_MISS, NUMA_FOREIGN, NUMA_INTERLEAVE_HIT, NUMA_LOCAL, NUMA_OTHER = range(6)

NODE_STATS = ("nr_anon_pages", "nr_mapped", "nr_file_pages", "nr_shmem", "nr_page_table_pages", "nr_kernel_pages",
              "nr_slab_reclaimable", "nr_slab_unreclaimable")
(NR_ANON_MAPPED, NR_FILE_MAPPED, NR_FILE_PAGES, NR_SHMEM, NR_PAGETABLE, NR_KERNEL_PAGES, NR_SLAB_RECLAIMABLE,
 NR_SLAB_UNRECLAIMABLE) = range(8)

numa_stat_t = Struct("numa_stat_t", [("item", i64, 8)])
node_stat_t = Struct("node_stat_t", [("item", i64, 8)])

percpu_t = Struct("percpu_t", [         # written by its CPU only
    ("event", i64, 64),
    ("numa", numa_stat_t, MAX_NODES),   # by node
    ("node", node_stat_t, MAX_NODES),   # by node: what this CPU added minus what it took away
])


@hot
def percpu_of(machine, cpu):
    """The counters of one CPU."""
    return percpu_t.array(machine.percpu)[cpu]


@hot
def count_vm_events(machine, cpu, event, n):
    percpu_of(machine, cpu).event[event] += n


@hot
def mod_node_page_state(machine, cpu, node, item, n):
    """Add to a counter of `node`, on behalf of `cpu`."""
    percpu_of(machine, cpu).node[node].item[item] += n


@hot
def zone_statistics(machine, cpu, cpu_node, preferred_node, node, n):
    """numa_hit, numa_miss, numa_foreign, local_node, other_node for n pages: Linux's function of this name."""
    here = percpu_of(machine, cpu)
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


def fold_vm_events(machine):
    """All CPUs' events added up: {name: count}."""
    total = sum(percpu_of(machine, c).as_numpy()["event"] for c in range(machine.nr_cpus))
    return {name: int(total[i]) for i, name in enumerate(VM_EVENTS)}


def fold_numa(machine, node):
    """numastat of one node: {name: count}."""
    total = sum(percpu_of(machine, c).as_numpy()["numa"][node]["item"] for c in range(machine.nr_cpus))
    return {name: int(total[i]) for i, name in enumerate(NUMA_STATS)}


def fold_node(machine, node):
    """Page counters of one node: {name: pages}."""
    total = sum(percpu_of(machine, c).as_numpy()["node"][node]["item"] for c in range(machine.nr_cpus))
    return {name: int(total[i]) for i, name in enumerate(NODE_STATS)}


def free_pages(machine, node):
    """NR_FREE_PAGES of one node."""
    return sum(int(zone_of(machine, node * MAX_NR_ZONES + t).free_pages) for t in range(MAX_NR_ZONES))
