"""Slab caches, shrinkers and per-CPU memory against the pages and the lists that they have."""

import numpy as np

from numaemu.compiler.decorators import entry, hot
from numaemu.compiler.pointer import u64
from numaemu.errors import MachineCheck
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.audit.page import page_text
from numaemu.kernel.include.mm_types import PG_buddy, PG_pcp, PG_table, machine_t
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, page_of, page_zone, zone_of
from numaemu.kernel.include.vmstat import fold_node
from numaemu.kernel.mm.reclaim.list_lru import list_lru_node, shrinker_of
from numaemu.kernel.mm.reclaim.shrinker import live_shrinkers, validate_list_lru
from numaemu.kernel.mm.slab.percpu import validate_percpu
from numaemu.kernel.mm.slab.slab import (
    MAX_KMEM_CACHES,
    SLAB_DEBUG_FLAGS,
    SLAB_RECLAIM_ACCOUNT,
    PG_large_kmalloc,
    PG_slab,
    cache_name,
    cache_of,
    cpu_slab,
    free_index,
    get_node,
    live_caches,
    number_of,
    object_at,
    objects_in_use,
    slab_frozen,
    slab_inuse,
    slab_objects,
)

U = np.uint64
# what validate_slabs counts of each cache; of the pages of each node (reclaimable, unreclaimable) in another array
SLABS, OBJECTS, SLAB_FREE, SLAB_PARTIAL, SLAB_FROZEN, NR_SLAB_COUNTS = range(6)


@hot
def count_free(machine, cache, pfn, address):
    """Length of a list of free objects of one slab, from `address` on; -1: it leaves the slab or has no end."""
    objects, n = slab_objects(page_of(machine, pfn).private), 0
    while address != U(0):
        which = number_of(machine, cache, pfn, address)
        n += 1
        if which < 1 or which > objects or n > objects:
            return -1
        address = u64.array(machine.memory + (address - machine.paging.page_offset) + cache.offset)[0]
    return n


@entry("i64(u64, i64, i64[], i64[])")
def validate_slabs(machine_address, number, counts, pages):
    """Walk a zone's slabs and their lists of free objects: 0 or the head page of a wrong one."""
    machine = machine_t.at(machine_address)
    zone = zone_of(machine, number)
    for pfn in range(zone.start_pfn, zone.virgin_pfn):
        page = page_of(machine, pfn)
        if page.flags & U(PG_slab | PG_large_kmalloc) == U(0):
            continue
        if (
            page.flags & U(PG_buddy | PG_pcp | PG_table) != U(0)
            or page.mapcount != 0
            or pfn & ((1 << page.order) - 1) != 0
        ):
            return pfn
        if page.flags & U(PG_large_kmalloc) != U(0):
            pages[2 * zone.node + 1] += 1 << page.order
            continue
        which = page.mapping
        if which < 1 or which >= MAX_KMEM_CACHES or cache_of(machine, which).live == 0:
            return pfn
        cache, word, at = cache_of(machine, which), page.private, which * NR_SLAB_COUNTS
        free = count_free(machine, cache, pfn, object_at(machine, cache, pfn, free_index(word)))
        if free < 0 or free != slab_objects(word) - slab_inuse(word):
            return pfn
        counts[at + SLABS] += 1
        counts[at + OBJECTS] += slab_objects(word)
        counts[at + SLAB_FREE] += free
        counts[at + SLAB_FROZEN] += slab_frozen(word)
        counts[at + SLAB_PARTIAL] += 1 if free > 0 and slab_frozen(word) == 0 else 0
        pages[2 * zone.node + (0 if cache.flags & SLAB_RECLAIM_ACCOUNT else 1)] += 1 << page.order
    return 0


@entry("i64(u64, i64, i64[])")
def validate_partial(machine_address, number, counts):
    """Walk a cache's partial lists and what its CPUs hold, counted as above: 0 or the head page of a wrong slab."""
    machine = machine_t.at(machine_address)
    cache = cache_of(machine, number)
    for node in range(machine.nr_nodes):
        n = get_node(machine, number, node)
        pfn, previous, length = n.first, 0, 0
        while pfn != 0:
            page = page_of(machine, pfn)
            length += 1
            if (
                page.flags & U(PG_slab) == U(0)
                or page.mapping != number
                or page.lru_prev != previous
                or slab_frozen(page.private)
                or free_index(page.private) == 0
                or page_zone(machine, pfn) // MAX_NR_ZONES != node
            ):
                return pfn
            previous, pfn = pfn, page.lru_next
        if length != n.nr_partial or n.last != previous or n.list_lock != U(0):
            return max(previous, 1)
        counts[SLABS] += n.nr_slabs
        counts[OBJECTS] += n.total_objects
        counts[SLAB_PARTIAL] += length
    for cpu in range(machine.nr_cpu_ids):
        c = cpu_slab(machine, number, cpu)
        if c.slab == 0:
            if c.freelist != U(0):
                return 1
            continue
        page = page_of(machine, c.slab)
        free = count_free(machine, cache, c.slab, c.freelist)
        if page.mapping != number or slab_frozen(page.private) == 0 or free < 0:
            return c.slab
        counts[SLAB_FREE] += free
        counts[SLAB_FROZEN] += 1
    return 0


def audit_shrinkers(machine):
    """Every list of unused objects."""
    for number in live_shrinkers(machine):
        bad = validate_list_lru(int(cpu_t.array(machine.cpus)[0].address), number)
        if bad:
            name, lru = cache_name(machine, shrinker_of(machine, number).cache), list_lru_node(machine, number, bad - 1)
            raise MachineCheck(
                f"cache {name}: its list of unused objects on node {bad - 1} is broken or not {lru.nr_items} long"
            )


def audit_percpu(machine):
    """The maps of all per-CPU chunks."""
    bad = validate_percpu(int(cpu_t.array(machine.cpus)[0].address), np.zeros(3, np.int64))
    if bad:
        raise MachineCheck(f"per-CPU chunk {bad}: its map, its counts and its units do not agree")


def audit_slabs(machine, base):
    """Every slab page, list and count of every cache; slab pages against the nodes' counters."""
    found, pages = np.zeros(MAX_KMEM_CACHES * NR_SLAB_COUNTS, np.int64), np.zeros(2 * machine.nr_nodes, np.int64)
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        if zone_of(machine, number).present_pages:
            bad = validate_slabs(base, number, found, pages)
            if bad:
                raise MachineCheck(
                    f"slab of cache {cache_name(machine, page_of(machine, bad).mapping)}: inconsistent at "
                    f"{page_text(machine, bad)}, word {page_of(machine, bad).private:#x}"
                )
    for number in live_caches(machine):
        counts, expected = np.zeros(NR_SLAB_COUNTS, np.int64), found[number * NR_SLAB_COUNTS :][:NR_SLAB_COUNTS]
        bad = validate_partial(base, number, counts)
        name = f"cache {cache_name(machine, number)}"
        if bad:
            raise MachineCheck(f"{name}: partial list or CPU's list inconsistent at {page_text(machine, bad)}")
        on_cpus, counts[SLAB_FREE] = counts[SLAB_FREE], expected[SLAB_FREE]
        if (counts != expected).any():
            raise MachineCheck(
                f"{name}: slabs, objects, free, partial, frozen: its pages say {expected.tolist()}, its "
                f"counters and lists {counts.tolist()}"
            )
        live = int(expected[OBJECTS] - expected[SLAB_FREE] - on_cpus)
        if live != objects_in_use(machine, number) and not cache_of(machine, number).flags & SLAB_DEBUG_FLAGS:
            raise MachineCheck(
                f"{name}: {live} objects in use in its slabs, {objects_in_use(machine, number)} handed out"
            )
    for node in range(machine.nr_nodes):
        counted = fold_node(machine, node)
        counted = counted["nr_slab_reclaimable"], counted["nr_slab_unreclaimable"]
        if counted != tuple(pages[2 * node : 2 * node + 2]):
            raise MachineCheck(
                f"node {node}: {counted} pages counted in slabs (reclaimable, not), "
                f"{tuple(pages[2 * node : 2 * node + 2])} found"
            )
