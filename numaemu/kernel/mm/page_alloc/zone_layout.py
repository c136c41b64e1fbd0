"""Which frames each zone has: by address, with ZONE_MOVABLE cut from the top of each node. The first half of Linux's
mm/mm_init.c. Nodes and zones begin at pageblocks; a node may end within one.
"""

from numaemu.kernel.include.mmzone import ZONE_DMA, ZONE_DMA32, ZONE_HIGHMEM, ZONE_MOVABLE, ZONE_NORMAL
from numaemu.spec.param import PAGE_SIZE, PAGEBLOCK_PAGES

HIGHMEM_START = (896 << 20) // PAGE_SIZE  # pfn; what a 32-bit kernel maps directly ends here
DMA_END, DMA32_END = (16 << 20) // PAGE_SIZE, (4 << 30) // PAGE_SIZE  # pfn
ZONE_BORDERS = {  # zone type, first pfn, end
    "x86-64": ((ZONE_DMA, 0, DMA_END), (ZONE_DMA32, DMA_END, DMA32_END), (ZONE_NORMAL, DMA32_END, 1 << 60)),
    "x86-32": ((ZONE_DMA, 0, DMA_END), (ZONE_NORMAL, DMA_END, HIGHMEM_START), (ZONE_HIGHMEM, HIGHMEM_START, 1 << 60)),
}


def whole_blocks(nbytes):
    """Frames of so much memory, and of the hole up to the next pageblock."""
    return -(-nbytes // (PAGEBLOCK_PAGES * PAGE_SIZE)) * PAGEBLOCK_PAGES


def with_movable(topology, ranges):
    """kernelcore= or movablecore=: the kernel keeps its share of every node, ZONE_MOVABLE gets the rest."""
    if topology.kernelcore is None and topology.movablecore is None:
        return ranges
    total = topology.memory_bytes
    core = topology.kernelcore if topology.kernelcore is not None else max(total - topology.movablecore, 0)
    for node in range(topology.nr_nodes):
        movable = int(topology.nodes[node].memory_bytes * (1 - min(core / total, 1))) // PAGE_SIZE
        top = max((kind for n, kind in ranges if n == node), default=None)
        if top is None:
            continue
        begin, pages = ranges[node, top]
        start, end = begin + pages - min(movable, pages), begin + pages
        start += -start % PAGEBLOCK_PAGES
        if start >= end:
            continue
        ranges[node, ZONE_MOVABLE], ranges[node, top] = (start, end - start), (begin, start - begin)
        if start == begin:
            del ranges[node, top]
    return ranges


def zone_ranges(topology):
    """{(node, zone type): (first pfn, pages)}: by address, with ZONE_MOVABLE cut from the top of each node."""
    ranges = {}
    for node, parts in enumerate(topology.physical_ranges()):
        for start, nbytes in parts:
            first, last = start // PAGE_SIZE, (start + nbytes) // PAGE_SIZE
            for kind, low, high in ZONE_BORDERS[topology.zone_layout]:
                begin, end = max(first, low), min(last, high)
                if begin < end:
                    ranges[node, kind] = (begin, end - begin)
    return with_movable(topology, ranges)
