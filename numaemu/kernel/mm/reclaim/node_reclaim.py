"""Reclaim from one node before an allocation goes to the next one (vm.zone_reclaim_mode): node_reclaim of Linux's mm/vmscan.c.

get_page_from_freelist asks for it where a zone near enough is below its watermark (page_alloc/zonelist.py).
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, store_release
from numaemu.compiler.decorators import callback, hot, kernel
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.psi import psi_memstall_enter, psi_memstall_leave
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import __GFP_DIRECT_RECLAIM
from numaemu.kernel.include.internal import (
    NODE_RECLAIM_FULL,
    NODE_RECLAIM_NOSCAN,
    NODE_RECLAIM_SOME,
    NODE_RECLAIM_SUCCESS,
    PF_MEMALLOC,
    RECLAIM_UNMAP,
    RECLAIM_WRITE,
    unpack_alloc,
)
from numaemu.kernel.include.mmzone import LRU_ACTIVE_FILE, LRU_INACTIVE_FILE, lruvec_of, node_of
from numaemu.kernel.include.vmstat import (
    NR_FILE_DIRTY,
    NR_FILE_MAPPED,
    NR_FILE_PAGES,
    NR_KERNEL_PAGES,
    NR_SLAB_RECLAIMABLE,
    PGSCAN_ZONE_RECLAIM_FAILED,
    PGSCAN_ZONE_RECLAIM_SUCCESS,
    count_vm_events,
    node_page_state,
)
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.reclaim.vmscan import free_to_zones, init_scan_control, shrink_node
from numaemu.kernel.mm.reclaim.workingset import SWAP_CLUSTER_MAX

U = np.uint64
NODE_RECLAIM_PRIORITY = 4  # a sixteenth of each list at first


@kernel("i64(machine_t*, i64)")
def node_pagecache_reclaimable(machine, node):
    """Pages of files that may go under the mode: without RECLAIM_UNMAP unmapped ones, without RECLAIM_WRITE clean ones."""
    if machine.node_reclaim_mode & RECLAIM_UNMAP:
        pages = node_page_state(machine, node, NR_FILE_PAGES)
    else:
        lruvec = lruvec_of(machine, node)
        cached = lruvec.nr[LRU_INACTIVE_FILE] + lruvec.nr[LRU_ACTIVE_FILE]
        pages = max(cached - node_page_state(machine, node, NR_FILE_MAPPED), 0)
    if machine.node_reclaim_mode & RECLAIM_WRITE == 0:
        pages -= min(node_page_state(machine, node, NR_FILE_DIRTY), pages)
    return pages


@kernel("bool(machine_t*, i64)")
def worth_reclaiming(machine, node):
    """True if the node has more such pages, or slab pages, than vm.min_unmapped_ratio and vm.min_slab_ratio leave it."""
    pgdat = node_of(machine, node)
    if node_pagecache_reclaimable(machine, node) > pgdat.min_unmapped_pages:
        return True
    slab = node_page_state(machine, node, NR_SLAB_RECLAIMABLE) + node_page_state(machine, node, NR_KERNEL_PAGES)
    return slab > pgdat.min_slab_pages


@kernel("bool(cpu_t*, i64, i64, i64)")
def __node_reclaim(cpu, node, gfp, order):
    """Reclaim ever harder until as many pages as are asked for have come; True if they have."""
    machine, sc, before, stalled = machine_of(cpu), scan_control_of(cpu), cpu.flags, psi_memstall_enter(cpu)
    cpu.flags = before | PF_MEMALLOC
    init_scan_control(machine, sc, gfp, order, U(1) << U(node))
    sc.nr_to_reclaim, sc.priority = max(1 << order, SWAP_CLUSTER_MAX), NODE_RECLAIM_PRIORITY
    sc.may_writepage = 1 if machine.node_reclaim_mode & RECLAIM_WRITE else 0
    sc.may_unmap = 1 if machine.node_reclaim_mode & RECLAIM_UNMAP else 0
    if worth_reclaiming(machine, node):
        while True:
            shrink_node(cpu, sc, node)
            sc.priority -= 1
            if sc.nr_reclaimed >= 1 << order or sc.priority < 0:
                break
        free_to_zones(cpu, node)
    cpu.flags = before
    psi_memstall_leave(cpu, stalled)
    return sc.nr_reclaimed >= 1 << order


@hot
def has_cpu(machine, node):
    """node_state(node, N_CPU)"""
    for number in range(machine.nr_cpus):
        if cpu_t.array(machine.cpus)[number].node == node:
            return True
    return False


@kernel("i64(cpu_t*, i64, i64, i64)")
def try_node_reclaim(cpu, node, gfp, order):
    """NODE_RECLAIM_*: only its own CPUs reclaim from a node, or any if it has none, one at a time."""
    machine = machine_of(cpu)
    if not worth_reclaiming(machine, node):
        return NODE_RECLAIM_FULL
    if not gfp & __GFP_DIRECT_RECLAIM or cpu.flags & PF_MEMALLOC:
        return NODE_RECLAIM_NOSCAN
    if node != cpu.node and has_cpu(machine, node):
        return NODE_RECLAIM_NOSCAN
    pgdat = node_of(machine, node)
    if compare_exchange(pgdat, "reclaim_locked", 0, 1) != 0:
        return NODE_RECLAIM_NOSCAN
    enough = __node_reclaim(cpu, node, gfp, order)
    store_release(pgdat, "reclaim_locked", 0)
    count_vm_events(machine, cpu.id, PGSCAN_ZONE_RECLAIM_SUCCESS if enough else PGSCAN_ZONE_RECLAIM_FAILED, 1)
    return NODE_RECLAIM_SUCCESS if enough else NODE_RECLAIM_SOME


@callback("u64(u64, u64, u64)")
def node_reclaim(cpu_address, packed, node):
    """The allocator's way up: reclaim from a node for an allocation (pack_alloc); NODE_RECLAIM_*."""
    gfp, order, _more = unpack_alloc(packed)
    return U(try_node_reclaim(cpu_t.at(cpu_address), np.int64(node), gfp, order))
