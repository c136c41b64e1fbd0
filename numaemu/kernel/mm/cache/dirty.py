"""How many pages of a node may be dirty: what the page allocator asks of Linux's mm/page-writeback.c."""

from numaemu.compiler.decorators import kernel
from numaemu.kernel.include.mm import PFN_UP
from numaemu.kernel.include.mmzone import LRU_ACTIVE, LRU_FILE, MAX_NR_ZONES, WMARK_HIGH, lruvec_of, zone_of
from numaemu.kernel.include.vmstat import NR_FILE_DIRTY, NR_WRITEBACK, node_page_state


@kernel("i64(machine_t*, i64)")
def node_dirtyable_memory(machine, node):
    """Pages of a node that could be dirty: free ones above what is kept back, and those of files."""
    free = reserve = 0
    for kind in range(MAX_NR_ZONES):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        most = 0
        for upper in range(kind, MAX_NR_ZONES):
            most = max(most, zone.lowmem_reserve[upper])
        reserve += min(most + zone.watermark[WMARK_HIGH] + zone.watermark_boost, zone.managed_pages)
        free += zone.free_pages
    lruvec = lruvec_of(machine, node)
    return max(free - reserve, 0) + lruvec.nr[LRU_FILE] + lruvec.nr[LRU_FILE + LRU_ACTIVE]


@kernel("i64(machine_t*)")
def global_dirtyable_memory(machine):
    """The same of all nodes."""
    pages = 0
    for node in range(machine.nr_nodes):
        pages += node_dirtyable_memory(machine, node)
    return pages


@kernel("i64(machine_t*, i64)")
def node_dirty_limit(machine, node):
    """The node's share of the limit, in pages: by what it could hold."""
    pages = node_dirtyable_memory(machine, node)
    if machine.vm_dirty_bytes > 0:
        return PFN_UP(machine.vm_dirty_bytes) * pages // max(global_dirtyable_memory(machine), 1)
    return machine.vm_dirty_ratio * pages // 100


@kernel("bool(machine_t*, i64)")
def node_dirty_ok(machine, node):
    """True if a page that is about to become dirty may come from this node (__GFP_WRITE)."""
    dirty = node_page_state(machine, node, NR_FILE_DIRTY) + node_page_state(machine, node, NR_WRITEBACK)
    return dirty <= node_dirty_limit(machine, node)
