"""/proc/meminfo and a node's meminfo: Linux's fs/proc/meminfo.c and node_read_meminfo.

Every line of a Linux 6.12 with swap, zswap, huge pages and memory failure handling is there; what the emulator does
not have yet is 0, as on a machine that does not use it. Lines that are sums are made from their parts.
"""

import numpy as np

from numaemu.hardware.paging import ENTRY_4_BYTES, ENTRY_ARM64
from numaemu.kernel.boot import node_managed_pages
from numaemu.kernel.include.mmzone import (
    LRU_ACTIVE,
    LRU_FILE,
    MAX_NR_ZONES,
    WMARK_HIGH,
    WMARK_LOW,
    ZONE_HIGHMEM,
    kilobytes,
    lruvec_of,
    zone_of,
    zone_t,
)
from numaemu.kernel.include.vmstat import fold_node, free_pages
from numaemu.kernel.mm.huge.hugetlb_pool import default_hstate, hugetlb_total_pages
from numaemu.kernel.mm.slab.percpu import pcpu_nr_pages
from numaemu.kernel.mm.space.util import vm_commit_limit
from numaemu.kernel.mm.swap.zram import ZSWAP, zstat_of
from numaemu.kernel.mm.swap.zswap import zswap_total_pages
from numaemu.kernel.mm.vmalloc.vmap_area import vmap_of
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64


def state_kb(machine, nodes):
    """The page counters of some nodes together, in kB."""
    folded = [fold_node(machine, node) for node in nodes]
    return {name: kilobytes(sum(counts[name] for counts in folded)) for name in folded[0]}


def totalreserve_pages(machine):
    """What the kernel does not let user space have: calculate_totalreserve_pages"""
    zones = zone_t.array(machine.zones).as_numpy(machine.nr_nodes * MAX_NR_ZONES)
    above = np.arange(MAX_NR_ZONES) >= zones["type"][:, None]  # what allocations for zones from its own on leave alone
    reserve = np.where(above, zones["lowmem_reserve"], 0).max(axis=1) + zones["watermark"][:, WMARK_HIGH]
    return int(np.minimum(reserve + zones["watermark_boost"], zones["managed_pages"]).sum())


def si_mem_available(machine, free):
    """Pages that could be had without swapping: free ones less the reserve, and most of the page cache. Nothing else can
    be shrunk yet.
    """
    low = int(zone_t.array(machine.zones).as_numpy(machine.nr_nodes * MAX_NR_ZONES)["watermark"][:, WMARK_LOW].sum())
    lruvecs = [lruvec_of(machine, node) for node in range(machine.nr_nodes)]
    cache = sum(lruvec.nr[LRU_FILE] + lruvec.nr[LRU_FILE + LRU_ACTIVE] for lruvec in lruvecs)
    return max(free - totalreserve_pages(machine) + cache - min(cache // 2, low), 0)


def line(name, value_kb):
    return f"{name + ':':<15} {value_kb:8d} kB"


def zeros(names):
    return [line(name, 0) for name in names.split()]


def slab_lines(state):
    """Kernel pages that belong to an object (the trees of shared objects) are Linux's cache radix_tree_node."""
    reclaimable, unreclaimable = state["nr_kernel_pages"] + state["nr_slab_reclaimable"], state["nr_slab_unreclaimable"]
    return [
        line("KReclaimable", reclaimable),
        line("Slab", reclaimable + unreclaimable),
        line("SReclaimable", reclaimable),
        line("SUnreclaim", unreclaimable),
    ]


def swap_lines(machine):
    """Slots, free ones; the pages of zswap's pool, and what is in them."""
    return [
        line("SwapTotal", kilobytes(machine.total_swap_pages)),
        line("SwapFree", kilobytes(max(machine.nr_swap_pages, 0))),
        line("Zswap", kilobytes(int(zswap_total_pages(machine)))),
        line("Zswapped", kilobytes(zstat_of(machine, ZSWAP).pages)),
    ]


def stack_line(state):
    """The one counter that is in kB already (NR_KERNEL_STACK_KB)."""
    return line("KernelStack", state["nr_kernel_stack"] >> (PAGE_SHIFT - 10))


def hugetlb_lines(machine):
    """hugetlb_report_meminfo: the default pool, and what all of them have."""
    h = default_hstate(machine)
    counts = {
        "Total": h.nr_huge_pages,
        "Free": h.free_huge_pages,
        "Rsvd": h.resv_huge_pages,
        "Surp": h.surplus_huge_pages,
    }
    return [
        *(f"HugePages_{what + ':':<8} {n:5d}" for what, n in counts.items()),
        line("Hugepagesize", 4 << int(h.order)),
        line("Hugetlb", kilobytes(int(hugetlb_total_pages(machine)))),
    ]


def huge_lines(machine, state):
    """Transparent huge pages, which are counted one by one; only anonymous memory has any."""
    return [
        line("AnonHugePages", state["nr_anon_transparent_hugepages"] << int(machine.paging.table_bits)),
        *zeros("ShmemHugePages ShmemPmdMapped FileHugePages FilePmdMapped Unaccepted"),
    ]


def lru_lines(state):
    """The LRU lists, and pages locked into memory."""
    anon, file = (
        (state["nr_active_anon"], state["nr_inactive_anon"]),
        (state["nr_active_file"], state["nr_inactive_file"]),
    )
    return [
        line("Active", anon[0] + file[0]),
        line("Inactive", anon[1] + file[1]),
        line("Active(anon)", anon[0]),
        line("Inactive(anon)", anon[1]),
        line("Active(file)", file[0]),
        line("Inactive(file)", file[1]),
        line("Unevictable", state["nr_unevictable"]),
        line("Mlocked", state["nr_mlock"]),
    ]


def high_lines(machine):
    """Memory that the kernel reaches directly and memory that it does not, where there is such."""
    if not machine.highmem:
        return []
    parts = [
        [
            zone_of(machine, number)
            for number in range(machine.nr_nodes * MAX_NR_ZONES)
            if (zone_of(machine, number).type >= ZONE_HIGHMEM) == high
        ]
        for high in (True, False)
    ]
    return [
        line(f"{name}{what}", kilobytes(sum(getattr(zone, field) for zone in zones)))
        for name, zones in zip(("High", "Low"), parts, strict=True)
        for what, field in (("Total", "managed_pages"), ("Free", "free_pages"))
    ]


def vmalloc_lines(machine):
    """VMALLOC_TOTAL (on x86-64 the last byte is left out), and the pages that vmalloc has taken."""
    paging = machine.paging
    total = int(paging.vmalloc_end - paging.vmalloc_start) - (paging.pte_format == U(0))
    return [
        line("VmallocTotal", total >> 10),
        line("VmallocUsed", kilobytes(vmap_of(machine).nr_vmalloc_pages)),
        *zeros("VmallocChunk"),
    ]


def direct_map_lines(machine):
    """The direct map by size of entry, which Linux tells on x86: arch_report_meminfo."""
    small, large, huge = (machine.direct_map[up] >> 10 for up in range(3))
    if machine.paging.pte_format == ENTRY_4_BYTES:
        return [line("DirectMap4k", small), line("DirectMap4M", large)]
    if machine.paging.pte_format == ENTRY_ARM64:
        return []
    return [line("DirectMap4k", small), line("DirectMap2M", large), line("DirectMap1G", huge)]


def meminfo(system):
    """/proc/meminfo: meminfo_proc_show"""
    machine, nodes = system.machine, range(system.machine.nr_nodes)
    state = state_kb(machine, nodes)
    total = sum(node_managed_pages(machine, node) for node in nodes)
    free = sum(free_pages(machine, node) for node in nodes)
    lines = [
        line("MemTotal", kilobytes(total)),
        line("MemFree", kilobytes(free)),
        line("MemAvailable", kilobytes(si_mem_available(machine, free))),
        *zeros("Buffers"),
        line("Cached", state["nr_file_pages"] - state["nr_swapcached"]),
        line("SwapCached", state["nr_swapcached"]),
        *lru_lines(state),
        *high_lines(machine),
        *swap_lines(machine),
        line("Dirty", state["nr_dirty"]),
        line("Writeback", state["nr_writeback"]),
        line("AnonPages", state["nr_anon_pages"]),
        line("Mapped", state["nr_mapped"]),
        line("Shmem", state["nr_shmem"]),
        *slab_lines(state),
        stack_line(state),
        line("PageTables", state["nr_page_table_pages"]),
        *zeros("SecPageTables NFS_Unstable Bounce WritebackTmp"),
        line("CommitLimit", kilobytes(int(vm_commit_limit(machine)))),
        line("Committed_AS", kilobytes(max(machine.vm_committed_as, 0))),
        *vmalloc_lines(machine),
        line("Percpu", kilobytes(pcpu_nr_pages(machine))),
        f"HardwareCorrupted: {0:5d} kB",
        *huge_lines(machine, state),
        *hugetlb_lines(machine),
        *direct_map_lines(machine),
    ]
    return "\n".join(lines) + "\n"


def node_meminfo(system, node):
    """/sys/devices/system/node/nodeN/meminfo: node_read_meminfo"""
    machine = system.machine
    state = state_kb(machine, [node])
    total, free = node_managed_pages(machine, node), free_pages(machine, node)
    h = default_hstate(machine)
    lines = [
        line("MemTotal", kilobytes(total)),
        line("MemFree", kilobytes(free)),
        line("MemUsed", kilobytes(total - free)),
        line("SwapCached", state["nr_swapcached"]),
        *lru_lines(state),
        line("Dirty", state["nr_dirty"]),
        line("Writeback", state["nr_writeback"]),
        line("FilePages", state["nr_file_pages"]),
        line("Mapped", state["nr_mapped"]),
        line("AnonPages", state["nr_anon_pages"]),
        line("Shmem", state["nr_shmem"]),
        stack_line(state),
        line("PageTables", state["nr_page_table_pages"]),
        *zeros("SecPageTables NFS_Unstable Bounce WritebackTmp"),
        *slab_lines(state),
        *huge_lines(machine, state),
        f"HugePages_Total: {h.nr_node[node]:5d}",
        f"HugePages_Free:  {h.free_node[node]:5d}",
        f"HugePages_Surp:  {h.surplus_node[node]:5d}",
    ]
    return "".join(f"Node {node} {text}\n" for text in lines)


FILES = {"/proc/meminfo": meminfo}
