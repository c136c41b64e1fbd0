"""Compressed memory in front of swap areas on disk: storing, loading, limits. Linux's mm/zswap.c; writeback is zswap_writeback.py.

    reclaim -> swap_writepage -> zswap_store: kept, or rejected: the disk has the page at once
    swap-in -> swap_read_folio -> zswap_load: what was kept is gone, the page in the swap cache is dirty: only it has the data

Above max_pool_percent of memory everything is rejected until the pool is at accept_threshold_percent of that again; then
shrink_worker, in the kernel threads of node 0, writes back what has waited longest.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, address_of, i64, u64
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock, wake_kthread
from numaemu.kernel.include.list import list_add_tail, list_del
from numaemu.kernel.include.mmzone import ZSWAP_SHRINK
from numaemu.kernel.mm.swap.zram import (
    ZBUF_BYTES,
    ZS_GFP,
    ZSWAP,
    compress,
    zcomp_read,
    zentry_free,
    zentry_of,
    zentry_set,
    zentry_t,
    zs_pool_of,
    zstat_of,
)
from numaemu.kernel.mm.swap.zsmalloc import ENOSPC, NO_MEMORY, zs_get_total_pages, zs_malloc

U = np.uint64
MAX_POOL_PERCENT, ACCEPT_THR_PERCENT = 20, 90

# fmt: off
zswap_lru_t = Struct("zswap_lru_t", [    # a node's part of zswap_list_lru, under its lock
    ("lock", u64),
    ("first", i64), ("last", i64),       # swap entries, 0: none; the first has waited longest
    ("nr_items", i64),
])
# fmt: on


@hot
def zswap_lru_of(machine, node):
    return zswap_lru_t.array(machine.zswap_lrus)[node]


@kernel("void(machine_t*, i64, i64)")
def lru_insert(machine, node, entry):
    """Put an entry last. Under the list's lock."""
    lru = zswap_lru_of(machine, node)
    lru.first, lru.last = list_add_tail(zentry_t.array(machine.zentries), entry, lru.first, lru.last)
    lru.nr_items += 1


@kernel("void(machine_t*, i64, i64)")
def lru_unlink(machine, node, entry):
    """Take an entry off the list of `node`, whose lock is held."""
    lru = zswap_lru_of(machine, node)
    lru.first, lru.last = list_del(zentry_t.array(machine.zentries), entry, lru.first, lru.last)
    lru.nr_items -= 1


@kernel("void(cpu_t*, i64)")
def zswap_lru_add(cpu, entry):
    """Put an entry on the list of its node, as the one that was stored last. Takes the list's lock."""
    machine = machine_of(cpu)
    node = np.int64(zentry_of(machine, entry).nid)
    lock = address_of(zswap_lru_of(machine, node), "lock")
    spin_lock(cpu, lock)
    lru_insert(machine, node, entry)
    spin_unlock(lock)


@kernel("void(cpu_t*, i64)")
def zswap_lru_del(cpu, entry):
    """Take an entry off the list of its node. Takes the list's lock."""
    machine = machine_of(cpu)
    node = np.int64(zentry_of(machine, entry).nid)
    lock = address_of(zswap_lru_of(machine, node), "lock")
    spin_lock(cpu, lock)
    lru_unlink(machine, node, entry)
    spin_unlock(lock)


# -- limits ------------------------------------------------------------------------------------------------------


@hot
def zswap_total_pages(machine):
    return zs_get_total_pages(zs_pool_of(machine, ZSWAP))


@hot
def zswap_max_pages(machine):
    return machine.total_ram_pages * machine.zswap_max_pool_percent // 100


@hot
def zswap_accept_thr_pages(machine):
    return zswap_max_pages(machine) * machine.zswap_accept_thr_percent // 100


@kernel("bool(machine_t*)")
def zswap_check_limits(machine):
    """True if nothing is accepted now: the pool is full, or was and has not come down far enough yet."""
    stat, pages = zstat_of(machine, ZSWAP), zswap_total_pages(machine)
    if pages >= zswap_max_pages(machine):
        fetch_add(stat, "pool_limit_hit", 1)
        stat.reached_full = 1
    elif stat.reached_full != 0 and pages <= zswap_accept_thr_pages(machine):
        stat.reached_full = 0
    return stat.reached_full != 0


# -- storing and loading -------------------------------------------------------------------------------------


@kernel("void(cpu_t*, i64)")
def zswap_invalidate(cpu, entry):
    """Nobody needs what is kept of the entry's page any more (zswap_entry_free)."""
    if zentry_of(machine_of(cpu), entry).handle != 0:
        zswap_lru_del(cpu, entry)
        zentry_free(cpu, ZSWAP, entry)


@kernel("bool(cpu_t*, i64, u64, i64)")
def zswap_store(cpu, entry, frame, nid):
    """Keep the page at host address `frame`, of node `nid`, as the entry's, of which nothing is kept; False: the disk must."""
    machine = machine_of(cpu)
    stat = zstat_of(machine, ZSWAP)
    if machine.zswap_enabled == 0:
        return False
    if zswap_check_limits(machine):
        wake_kthread(cpu, 0, U(ZSWAP_SHRINK))
        return False
    length = compress(machine, cpu, frame, stat.algorithm)
    if length <= 0:
        fetch_add(stat, "reject_compress_fail", 1)
        return False
    handle = zs_malloc(cpu, zs_pool_of(machine, ZSWAP), length, ZS_GFP)
    if handle == ENOSPC:  # larger than the page
        fetch_add(stat, "reject_compress_poor", 1)
        return False
    if handle == NO_MEMORY:
        fetch_add(stat, "reject_alloc_fail", 1)
        return False
    zentry_set(cpu, ZSWAP, entry, handle, machine.zbufs + U(cpu.id * ZBUF_BYTES), length)
    kept = zentry_of(machine, entry)
    kept.nid, kept.referenced = np.int32(nid), np.int32(1)
    zswap_lru_add(cpu, entry)
    return True


@kernel("bool(cpu_t*, i64, u64)")
def zswap_load(cpu, entry, frame):
    """Fill the frame at host address `frame` with the entry's page; False: it is not kept here. Then only the frame has it."""
    if zentry_of(machine_of(cpu), entry).handle == 0:
        return False
    zcomp_read(cpu, ZSWAP, entry, frame)
    zswap_invalidate(cpu, entry)
    return True
