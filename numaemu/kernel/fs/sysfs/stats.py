"""The figures of a running machine as plain dictionaries: what `machine.stats()` and the JSON of a run hold."""

from numaemu.hardware.cache import core_t
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.fs.sysfs.servers import server_figures
from numaemu.kernel.include.mm_types import TASK_RUNNING, pool_t, present_cpus, task_name, task_t
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    WMARK_HIGH,
    WMARK_LOW,
    WMARK_MIN,
    ZONE_HIGHMEM,
    ZONE_MOVABLE,
    ZONE_NAMES,
    zone_of,
)
from numaemu.kernel.include.vmstat import VM_EVENTS, fold_node, fold_numa, fold_vm_events, free_pages, percpu_of
from numaemu.kernel.mm.cache.page_writeback import dirty_limit
from numaemu.mmu import clock_ns


def task_numbers(machine):
    """Numbers of the tasks that are alive."""
    used = pool_t.at(machine.task_pool).used
    return [n for n in range(1, used + 1) if task_t.array(machine.tasks)[n].state == TASK_RUNNING]


def _events(machine, number):
    counts = percpu_of(machine, number).as_numpy()["event"]
    return {name: int(counts[i]) for i, name in enumerate(VM_EVENTS)}


def cache_figures(cpu, spec):
    """What a CPU's accesses met in the caches on its way; nothing on a machine without."""
    if spec is None:
        return {}
    core = core_t.at(cpu.caches)
    levels = {
        level.name: {"hits": core.hits[i], "misses": core.misses[i], "write_backs": core.write_backs[i]}
        for i, level in enumerate(spec.levels)
    }
    names = ("invalidations", "transfers", "prefetches", "prefetch_hits")
    return {"caches": {"levels": levels} | {name: getattr(core, name) for name in names}}


def cpu_figures(machine, number, caches=None):
    """One CPU's counters, as the JSON has them. Hits are what is left: each access is a hit or a miss."""
    cpu = cpu_t.array(machine.cpus)[number]
    tick, stores, node = cpu.tick, cpu.stores, cpu.node
    by_node = [int(n) for n in cpu.accesses.as_numpy()[: machine.nr_nodes]]
    events = _events(machine, number)
    return {
        "cpu": number,
        "node": node,
        "loads": tick - stores,
        "stores": stores,
        "l1_tlb_hits": tick - cpu.l2_hits - cpu.walks,
        "l2_tlb_hits": cpu.l2_hits,
        "page_walks": cpu.walks,
        "dirty_assists": cpu.assists,
        "walk_loads": int(cpu.walk_loads.as_numpy().sum()),
        "minor_faults": events["pgfault"] - events["pgmajfault"],
        "major_faults": events["pgmajfault"],
        "shootdowns_received": cpu.shootdowns_received,
        "shootdowns_sent": events["nr_tlb_remote_flush"],
        "local_accesses": by_node[node],
        "remote_accesses": sum(by_node) - by_node[node],
        "accesses_by_node": by_node,
        "clock_ns": clock_ns(cpu),
        "nr_switches": cpu.nr_switches,
        **cache_figures(cpu, caches),
    }


def node_meminfo(machine, node):
    """kB, by Linux's names."""
    pages = fold_node(machine, node)
    slab = pages["nr_kernel_pages"] + pages["nr_slab_reclaimable"] + pages["nr_slab_unreclaimable"]
    managed = sum(zone_of(machine, node * MAX_NR_ZONES + t).managed_pages for t in range(MAX_NR_ZONES))
    free = free_pages(machine, node)
    return {
        "MemTotal": managed * 4,
        "MemFree": free * 4,
        "MemUsed": (managed - free) * 4,
        "FilePages": pages["nr_file_pages"] * 4,
        "Mapped": pages["nr_mapped"] * 4,
        "AnonPages": pages["nr_anon_pages"] * 4,
        "Shmem": pages["nr_shmem"] * 4,
        "PageTables": pages["nr_page_table_pages"] * 4,
        "Slab": slab * 4,
    }


def zone_figures(machine, node):
    """A node's zones: {name: figures in pages}; `protection` for DMA, DMA32, Normal, Movable, Device as on x86-64."""
    zones = {}
    for kind in range(MAX_NR_ZONES):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.present_pages:
            reserve = [int(pages) for pages in zone.lowmem_reserve.as_numpy()]
            protection = [*reserve[:ZONE_HIGHMEM], reserve[ZONE_MOVABLE], reserve[ZONE_MOVABLE]]
            zones[ZONE_NAMES[kind]] = {
                "free": zone.free_pages,
                "min": zone.watermark[WMARK_MIN],
                "low": zone.watermark[WMARK_LOW],
                "high": zone.watermark[WMARK_HIGH],
                "spanned": zone.spanned_pages,
                "present": zone.present_pages,
                "managed": zone.managed_pages,
                "protection": protection,
                "start_pfn": zone.start_pfn,
                "pcp_batch": zone.pcp_batch,
            }
    return zones


def node_figures(machine, topology, node):
    """One node's numastat, memory in kB, and accesses to its memory by the node of the CPU."""
    accesses = [0] * machine.nr_nodes
    for number in present_cpus(machine):
        cpu = cpu_t.array(machine.cpus)[number]
        accesses[cpu.node] += cpu.accesses[node]
    return {
        "node": node,
        "numastat": fold_numa(machine, node),
        "meminfo": node_meminfo(machine, node),
        "accesses_from": accesses,
        "zones": zone_figures(machine, node),
    }


# names in vmstat of what is counted under another
VMSTAT_NAMES = {"interleave_hit": "numa_interleave", "local_node": "numa_local", "other_node": "numa_other"}


def linux_names(counts):
    """Counters of a node under the names that vmstat has for them.

    Pages of the kernel's own trees are pages of a slab cache in Linux (radix_tree_node, SLAB_RECLAIM_ACCOUNT).
    """
    named = {VMSTAT_NAMES.get(name, name): value for name, value in counts.items()}
    if "nr_kernel_pages" in named:
        named["nr_slab_reclaimable"] += named.pop("nr_kernel_pages")
    return named


def vmstat(machine):
    """The counters of /proc/vmstat, and the emulator's own (numa_fallback, vmalloc_fault): {name: value}."""
    totals = {"nr_free_pages": sum(free_pages(machine, n) for n in range(machine.nr_nodes))}
    for node in range(machine.nr_nodes):
        counts = linux_names(fold_node(machine, node)) | linux_names(fold_numa(machine, node))
        for name, value in counts.items():
            totals[name] = totals.get(name, 0) + value
    totals |= {
        "nr_dirty_threshold": dirty_limit(machine, False),
        "nr_dirty_background_threshold": dirty_limit(machine, True),
    }
    return totals | fold_vm_events(machine) | {"oom_kill": machine.oom_kills}


def task_figures(machine, number):
    """One task's counters, as machine.stats() has them."""
    task = task_t.array(machine.tasks)[number]
    return {
        "pid": task.pid,
        "name": task_name(task),
        "cpu": task.cpu,
        "minor_faults": task.min_flt,
        "major_faults": task.maj_flt,
        "voluntary_ctxt_switches": task.nvcsw,
        "nonvoluntary_ctxt_switches": task.nivcsw,
        "sum_exec_runtime_ns": task.sum_exec_runtime,
    }


def collect(machine, topology):
    """Everything: `machine.stats()`."""
    cpus = [cpu_figures(machine, c, topology.cache) for c in topology.cpus]
    servers = server_figures(machine, topology)
    return {
        "emulated_ns": max(c["clock_ns"] for c in cpus),
        "vmstat": vmstat(machine),
        "nodes": [node_figures(machine, topology, n) for n in range(machine.nr_nodes)],
        "cpus": cpus,
        "tasks": [task_figures(machine, n) for n in task_numbers(machine)],
        **({"servers": servers} if servers else {}),
    }
