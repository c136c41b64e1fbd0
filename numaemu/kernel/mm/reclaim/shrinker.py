"""Caches give objects up that nobody uses, in proportion to what reclaim takes of pages: Linux's mm/shrinker.c.

A shrinker belongs to a slab cache (SLAB_RECLAIM_ACCOUNT: its pages count as reclaimable). Its users put objects that
they could do without on its lists (list_lru.py), as Linux does with dentries and inodes; here the coldest are freed.
Empty slabs go back to the page allocator as kmem_cache_free gives them back: all but `min_partial` a node.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, fetch_add
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import address_of, i64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import machine_of, relax
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.include.refcount import refcount_inc_not_zero
from numaemu.kernel.include.vmstat import DROP_SLAB, SLABS_SCANNED, count_vm_events
from numaemu.kernel.mm.page_alloc.slowpath import fatal_signal_pending
from numaemu.kernel.mm.reclaim.list_lru import (
    MAX_SHRINKERS,
    links,
    list_lru_isolate,
    list_lru_node,
    list_lru_node_t,
    shrinker_of,
    shrinker_t,
)
from numaemu.kernel.mm.slab.slub_debug import BUG_NONE
from numaemu.kernel.mm.slab.slub_free import slab_free

U = np.uint64
DEFAULT_SEEKS = 2  # what an object costs to make again, against a page's; Linux's number
SHRINK_BATCH = 128


@hot
def shrinker_try_get(shrinker):
    """A reference that keeps the shrinker registered; False: it is not."""
    return refcount_inc_not_zero(i64.array(address_of(shrinker, "users")))


@kernel("i64(cpu_t*, i64, i64, i64)")
def scan_objects(cpu, number, nid, count):
    """Free up to `count` of a node's coldest objects; how many."""
    shrinker, freed = shrinker_of(machine_of(cpu), number), 0
    item = list_lru_isolate(cpu, number, nid, count)
    while item != U(0):
        following = links(cpu, item)[0]
        freed += 1 if slab_free(cpu, shrinker.cache, item - shrinker.link) == BUG_NONE else 0
        item = following
    return freed


@kernel("i64(cpu_t*, i64, i64, i64)")
def do_shrink_slab(cpu, nid, number, priority):
    """Free a share of a shrinker's objects on a node: 4 / seeks of all of them >> priority; objects freed.

    What is too little for a batch, or could not be done, is left for the next time (nr_deferred).
    """
    machine = machine_of(cpu)
    shrinker = shrinker_of(machine, number)
    freeable = list_lru_node(machine, number, nid).nr_items
    if freeable == 0:
        return 0
    deferred = exchange(shrinker.nr_deferred, nid, 0)
    delta = (freeable >> priority) * 4 // shrinker.seeks if shrinker.seeks != 0 else freeable // 2
    total_scan = min((deferred >> priority) + delta, 2 * freeable)
    freed, scanned = 0, 0
    while total_scan > 0 and (total_scan >= shrinker.batch or total_scan >= freeable):
        count = min(shrinker.batch, total_scan)
        freed += scan_objects(cpu, number, nid, count)
        count_vm_events(machine, cpu.id, SLABS_SCANNED, count)
        total_scan -= count
        scanned += count
    left = min(max(deferred + delta - scanned, 0), 2 * freeable)
    if left != 0:
        fetch_add(shrinker.nr_deferred, nid, left)
    return freed


@kernel("i64(cpu_t*, i64, i64, i64)")
def shrink_slab(cpu, gfp, nid, priority):
    """Ask every shrinker to free some of its objects on a node; objects freed. The lower the priority, the more.

    No shrinker of the emulator enters a file system, so none minds gfp flags without __GFP_FS.
    """
    machine, freed = machine_of(cpu), 0
    for number in range(1, MAX_SHRINKERS):
        shrinker = shrinker_of(machine, number)
        if shrinker.users > 0 and shrinker_try_get(shrinker):
            freed += do_shrink_slab(cpu, nid, number, priority)
            fetch_add(shrinker, "users", -1)
    return freed


@kernel("i64(cpu_t*)")
def drop_slab(cpu):
    """Free all that shrinkers can, until a round frees too little to matter (vm.drop_caches = 2); objects freed."""
    machine, total, shift = machine_of(cpu), 0, 0
    count_vm_events(machine, cpu.id, DROP_SLAB, 1)
    while True:
        freed = 0
        for nid in range(machine.nr_nodes):
            if fatal_signal_pending(cpu):
                return total
            freed += shrink_slab(cpu, GFP_KERNEL, nid, 0)
        total += freed
        if freed >> shift <= 1:
            return total
        shift += 1


@entry("i64(u64, i64, u64, i64, i64)")
def register_shrinker(cpu_address, cache, link, seeks, batch):
    """A shrinker for a cache: its number, or 0: there are too many. Mirrors shrinker_register."""
    machine = machine_of(cpu_t.at(cpu_address))
    for number in range(1, MAX_SHRINKERS):
        shrinker = shrinker_of(machine, number)
        if compare_exchange(shrinker, "users", 0, -1) == 0:  # nobody else takes the slot, nobody shrinks it yet
            shrinker.cache, shrinker.link, shrinker.seeks, shrinker.batch = cache, link, seeks, batch
            for nid in range(machine.nr_nodes):
                shrinker.nr_deferred[nid] = 0
                lru = list_lru_node(machine, number, nid)
                lru.lock, lru.first, lru.last, lru.nr_items = U(0), U(0), U(0), 0
            exchange(shrinker, "users", 1)
            return number
    return 0


@entry("void(u64, i64)")
def unregister_shrinker(cpu_address, number):
    """End a shrinker, when no CPU shrinks it any more (shrinker_free). Its users have emptied its lists."""
    cpu = cpu_t.at(cpu_address)
    shrinker, tries = shrinker_of(machine_of(cpu), number), 0
    while compare_exchange(shrinker, "users", 1, 0) != 1:
        tries += 1
        relax(cpu, tries)


@entry("i64(u64, i64)")
def validate_list_lru(cpu_address, number):
    """0, or 1 + the node whose list is broken or lies about its length. Nothing runs meanwhile."""
    cpu = cpu_t.at(cpu_address)
    machine = machine_of(cpu)
    for nid in range(machine.nr_nodes):
        lru = list_lru_node(machine, number, nid)
        item, previous, count = lru.first, U(0), 0
        while item != U(0) and count <= lru.nr_items and links(cpu, item)[1] == previous:
            previous, item, count = item, links(cpu, item)[0], count + 1
        if item != U(0) or count != lru.nr_items or lru.last != previous or lru.lock != U(0):
            return 1 + nid
    return 0


def live_shrinkers(machine):
    return [n for n in range(1, MAX_SHRINKERS) if shrinker_of(machine, n).users > 0]


def shrinker_blocks(topology):
    """The blocks of shared memory that shrinkers need: (name, bytes)."""
    return (
        ("shrinkers", MAX_SHRINKERS * shrinker_t.nbytes),
        ("list_lrus", MAX_SHRINKERS * topology.nr_nodes * list_lru_node_t.nbytes),
    )
