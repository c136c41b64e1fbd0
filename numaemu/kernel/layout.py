"""Where a machine has what in shared memory: one segment of tables, and the segments of its frames and page structs."""

from numaemu.compiler.pointer import u8
from numaemu.hardware.cacheinfo import cache_blocks
from numaemu.hardware.mailbox import mailbox_t
from numaemu.hardware.processor import cpu_t
from numaemu.host import shm
from numaemu.kernel.arch.init_mm import reserved_pages
from numaemu.kernel.arch.thread_stack import thread_stack_blocks
from numaemu.kernel.core.psi import NR_PSI_STATES, psi_group_cpu_t, psi_group_t
from numaemu.kernel.core.rates import rate_blocks
from numaemu.kernel.core.strand import lockstep_t
from numaemu.kernel.fs.bio import bio_queue_t
from numaemu.kernel.fs.disk import disk_space_t
from numaemu.kernel.fs.file import files_struct_t
from numaemu.kernel.fs.inode import file_t, inode_t
from numaemu.kernel.include.mm_types import (
    cgroup_t,
    exit_t,
    machine_t,
    mapping_t,
    mm_t,
    numa_faults_t,
    numa_group_t,
    page_t,
    policy_t,
    pool_t,
    sp_node_t,
    task_t,
    vma_t,
)
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, lruvec_t, node_t, pcp_t, zone_t
from numaemu.kernel.include.trace import trace_t
from numaemu.kernel.include.vmstat import percpu_t
from numaemu.kernel.mm.huge.hugetlb_pool import HUGE_MAX_HSTATE, hstate_t
from numaemu.kernel.mm.huge.khugepaged import collapse_control_t
from numaemu.kernel.mm.migrate.compact_control import compact_control_t
from numaemu.kernel.mm.migrate.migrate import migrate_t
from numaemu.kernel.mm.page_alloc.report.trail import trail_t
from numaemu.kernel.mm.page_alloc.slowpath import slowpath_t
from numaemu.kernel.mm.page_alloc.zone_layout import whole_blocks
from numaemu.kernel.mm.reclaim.lru_batches import cpu_fbatches_t
from numaemu.kernel.mm.reclaim.pageout import scan_control_t
from numaemu.kernel.mm.reclaim.shrinker import shrinker_blocks
from numaemu.kernel.mm.slab.percpu import percpu_blocks
from numaemu.kernel.mm.slab.slab_common import slab_blocks
from numaemu.kernel.mm.swap.swapfile import MAX_SWAP_ENTRIES, swap_t
from numaemu.kernel.mm.swap.zram import ZBUF_BYTES, zstat_t
from numaemu.kernel.mm.swap.zswap_init import zswap_blocks
from numaemu.kernel.mm.vmalloc.highmem import highmem_blocks
from numaemu.kernel.mm.vmalloc.vmap_area import MAX_VMAP_AREAS, vmap_area_t, vmap_t
from numaemu.spec.param import (
    EXIT_RECORDS,
    GATHER_PAGES,
    MAX_CGROUPS,
    MAX_FILES,
    MAX_INODES,
    MAX_MMS,
    MAX_NODES,
    MAX_SP_NODES,
    MAX_TASKS,
    MAX_VMAS,
    OUTBOX_BYTES,
    PAGE_SIZE,
    PAGEBLOCK_ORDER,
    PAGEBLOCK_PAGES,
    VMA_INDEX_SLOTS,
)


class Layout:
    """Addresses of named blocks in one sparse shared segment."""

    def __init__(self):
        self.blocks, self.nbytes = {}, 0

    def add(self, name, nbytes):
        self.blocks[name] = self.nbytes
        self.nbytes += (nbytes + PAGE_SIZE - 1) & -PAGE_SIZE

    def place(self):
        """Map the segment; {name: address}."""
        address = shm.shared_block(self.nbytes)
        return {name: address + offset for name, offset in self.blocks.items()}


def cpu_tables(topology):
    """(name, bytes) of what each CPU has, and the kernel threads of each node: a context each."""
    zones, contexts = topology.nr_nodes * MAX_NR_ZONES, topology.nr_cpu_ids + topology.nr_nodes
    return (
        ("compact", contexts * compact_control_t.nbytes),
        ("cpus", contexts * cpu_t.nbytes),
        ("percpu", contexts * percpu_t.nbytes),
        ("pcps", contexts * zones * pcp_t.nbytes),
        ("pseudo_vmas", contexts * vma_t.nbytes),
        ("cpu_fbatches", contexts * cpu_fbatches_t.nbytes),
        ("mpols", 2 * contexts * policy_t.nbytes),
        ("trails", contexts * trail_t.nbytes),
        ("traces", contexts * trace_t.nbytes),
        ("slowpaths", 2 * contexts * slowpath_t.nbytes),
        ("gather", contexts * GATHER_PAGES * 8),
        ("migrate", 2 * contexts * migrate_t.nbytes),
        ("scan_controls", contexts * scan_control_t.nbytes),
        ("bio_queues", contexts * bio_queue_t.nbytes),
        ("zbufs", contexts * ZBUF_BYTES),
        ("psi", psi_group_t.nbytes),
        ("psi_cpus", contexts * psi_group_cpu_t.nbytes),
        ("psi_seen", contexts * (NR_PSI_STATES + 1) * 8),
        ("collapse_controls", contexts * collapse_control_t.nbytes),
    )


def node_tables(topology, max_pfn):
    """(name, bytes) of what each node, zone and pageblock has."""
    nodes = topology.nr_nodes
    blocks = (max_pfn + nodes * reserved_pages(topology)) // PAGEBLOCK_PAGES + 1
    return (
        ("block_node", blocks),
        ("block_zone", blocks),
        ("block_type", blocks),
        ("block_skip", blocks),
        ("zones", nodes * MAX_NR_ZONES * zone_t.nbytes),
        ("nodes", nodes * node_t.nbytes),
        ("zonelists", nodes * MAX_NODES * 8),
        ("distance", nodes * nodes),
        ("lruvecs", nodes * lruvec_t.nbytes),
    )


def task_tables():
    """(name, bytes) of tasks and their address spaces, and the numbers that their pools have to give."""
    return (
        ("tasks", MAX_TASKS * task_t.nbytes),
        ("mms", MAX_MMS * mm_t.nbytes),
        ("vmas", MAX_VMAS * vma_t.nbytes),
        ("mappings", MAX_VMAS * mapping_t.nbytes),
        ("vma_index", MAX_MMS * VMA_INDEX_SLOTS * 8),
        ("cgroups", MAX_CGROUPS * cgroup_t.nbytes),
        ("exits", EXIT_RECORDS * exit_t.nbytes),
        ("sp_nodes", MAX_SP_NODES * sp_node_t.nbytes),
        ("sp_node_stack", MAX_SP_NODES * 8),
        ("numa_faults_table", MAX_TASKS * numa_faults_t.nbytes),
        ("numa_groups", MAX_TASKS * numa_group_t.nbytes),
        ("numa_group_stack", MAX_TASKS * 8),
        ("pools", 10 * pool_t.nbytes),
        ("task_stack", MAX_TASKS * 8),
        ("mm_stack", MAX_MMS * 8),
        ("vma_stack", MAX_VMAS * 8),
        ("mapping_stack", MAX_VMAS * 8),
    )


def file_tables(topology):
    """(name, bytes) of files, the disk, and swap areas."""
    return (
        ("inodes", MAX_INODES * inode_t.nbytes),
        ("files", MAX_FILES * file_t.nbytes),
        ("inode_stack", MAX_INODES * 8),
        ("file_stack", MAX_FILES * 8),
        ("files_structs", MAX_TASKS * files_struct_t.nbytes),
        ("files_struct_stack", MAX_TASKS * 8),
        ("disk_space", disk_space_t.nbytes),
        ("disk_written", topology.disk.size // PAGE_SIZE // 8 + 8),
        ("swap", swap_t.nbytes),
        ("zstat", 2 * zstat_t.nbytes),
        ("swap_map", MAX_SWAP_ENTRIES * 4),
        ("swap_cache", MAX_SWAP_ENTRIES * 8),
        ("zeromap", MAX_SWAP_ENTRIES),
        ("swap_data", MAX_SWAP_ENTRIES * PAGE_SIZE),
    )


def lockstep_blocks(topology):
    """Who runs next, where that is one at a time."""
    return [("lockstep", lockstep_t.nbytes)] if topology.lockstep else []


def control_layout(topology, max_pfn, nr_actors):
    """All tables that every process shares."""
    layout = Layout()
    for name, nbytes in (
        ("machine", machine_t.nbytes),
        ("mailboxes", nr_actors * mailbox_t.nbytes),
        ("outboxes", nr_actors * OUTBOX_BYTES),
        ("vmap", vmap_t.nbytes),
        ("vmap_areas", MAX_VMAP_AREAS * vmap_area_t.nbytes),
        ("hstate", HUGE_MAX_HSTATE * hstate_t.nbytes),
        *cpu_tables(topology),
        *node_tables(topology, max_pfn),
        *task_tables(),
        *file_tables(topology),
        *zswap_blocks(topology, max_pfn),
        *highmem_blocks(topology, max_pfn),
        *thread_stack_blocks(topology),
        *slab_blocks(topology),
        *shrinker_blocks(topology),
        *percpu_blocks(topology),
        *lockstep_blocks(topology),
        *cache_blocks(topology, max_pfn + topology.nr_nodes * reserved_pages(topology)),
        *rate_blocks(topology),
    ):
        layout.add(name, nbytes)
    return layout


def map_memory(topology, machine, max_pfn):
    """Frames and page structs: one segment a node for each, mapped where its physical addresses lie.

    Behind all memory each node has frames for what boot needs, its page tables and stacks, that are in no zone. The hole
    behind a node that ends within a pageblock has page structs, as on Linux: free ones of no zone.
    """
    reserved, nodes = reserved_pages(topology), topology.nr_nodes
    machine.memory = shm.reserve((max_pfn + nodes * reserved) * PAGE_SIZE)
    shm.Segment(nodes * reserved * PAGE_SIZE).map_once(int(machine.memory) + max_pfn * PAGE_SIZE)
    for node in range(nodes):
        first = (max_pfn + node * reserved) >> PAGEBLOCK_ORDER
        u8.array(machine.block_node).as_numpy(first + (reserved >> PAGEBLOCK_ORDER))[first:] = node
    first = min(n for n in range(nodes) if topology.nodes[n].memory_bytes)
    machine.reserved_pfn = max_pfn + first * reserved
    machine.mem_map = shm.reserve(max_pfn * page_t.nbytes)
    for ranges in topology.physical_ranges():
        if not ranges:  # a node without memory
            continue
        total = sum(nbytes for _, nbytes in ranges)
        frames = shm.Segment(total)
        structs = shm.Segment(whole_blocks(total) * page_t.nbytes)
        offset = 0
        for start, nbytes in ranges:
            frames.map_at(int(machine.memory) + start, nbytes, offset)
            scaled = page_t.nbytes
            structs.map_at(
                int(machine.mem_map) + start // PAGE_SIZE * scaled,
                whole_blocks(nbytes) * scaled,
                offset // PAGE_SIZE * scaled,
            )
            offset += nbytes
        frames.close()
        structs.close()
