"""The tables of zswap and zram, made at boot: zswap_setup of Linux's mm/zswap.c, zs_create_pool."""

from numaemu.kernel.include.mm_types import pool_t
from numaemu.kernel.mm.swap.swapfile import MAX_SWAP_ENTRIES
from numaemu.kernel.mm.swap.zram import ZRAM, ZSWAP, zentry_t, zs_pool_of
from numaemu.kernel.mm.swap.zsmalloc import zs_create_pool, zs_pool_t, zspage_t
from numaemu.kernel.mm.swap.zswap import ACCEPT_THR_PERCENT, MAX_POOL_PERCENT, zswap_lru_t

ZSPAGE_POOL = 7  # of the pool_t of boot


def zspage_capacity(max_pfn):
    """As many zspages as there may be pages, or objects; number 0 is none."""
    return min(max_pfn, MAX_SWAP_ENTRIES) + 1


def zswap_blocks(topology, max_pfn):
    """{name: bytes}"""
    return (
        ("zentries", MAX_SWAP_ENTRIES * zentry_t.nbytes),
        ("zs_pools", 2 * zs_pool_t.nbytes),
        ("zspages", zspage_capacity(max_pfn) * zspage_t.nbytes),
        ("zspage_stack", zspage_capacity(max_pfn) * 8),
        ("zswap_lrus", topology.nr_nodes * zswap_lru_t.nbytes),
    )


def init_zswap(machine, blocks):
    """Make the pools of zspages for zswap and zram, and set zswap's limits to their defaults (percent of memory)."""
    pool = pool_t.array(blocks["pools"])[ZSPAGE_POOL]
    pool.capacity, pool.returned = zspage_capacity(machine.max_pfn), blocks["zspage_stack"]
    machine.zspage_pool = pool.address
    for whose in (ZSWAP, ZRAM):
        zs_create_pool(zs_pool_of(machine, whose))
    machine.zswap_max_pool_percent, machine.zswap_accept_thr_percent = MAX_POOL_PERCENT, ACCEPT_THR_PERCENT
