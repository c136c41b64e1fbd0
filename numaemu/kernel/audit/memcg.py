"""The audit of what is charged to control groups: each group's pages and objects against those that say so."""

import numpy as np

from numaemu.compiler.decorators import entry
from numaemu.compiler.pointer import u64
from numaemu.errors import MachineCheck
from numaemu.kernel.include.mm_types import PG_head, cgroup_t, machine_t, page_t
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, page_of, zone_of
from numaemu.kernel.mm.slab.memcontrol import MEMCG_MASK, MEMCG_SHIFT
from numaemu.kernel.mm.slab.obj_exts import obj_exts, obj_full_size
from numaemu.kernel.mm.slab.slab import (
    SLAB_RECLAIM_ACCOUNT,
    PG_large_kmalloc,
    PG_slab,
    cache_name,
    cache_of,
    cpu_slab,
    cpu_slabs,
    free_index,
    live_caches,
    number_of,
    object_at,
    slab_obj_exts,
    slab_objects,
    virt_to_head,
)
from numaemu.spec.param import MAX_CGROUPS

U = np.uint64
COUNTED = ("kernel_pages", "large_kmalloc", "slab_reclaimable", "slab_unreclaimable")  # of cgroup_t


def charged_pages(machine):
    """Pages by group, as the page structs have them, all and those of kmalloc; a compound page is charged to its head."""
    found = np.zeros((2, MAX_CGROUPS), np.int64)
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if zone.present_pages and zone.virgin_pfn > zone.start_pfn:
            pages = page_t.array(page_of(machine, zone.start_pfn).address).as_numpy(zone.virgin_pfn - zone.start_pfn)
            pages = pages[pages["flags"] & MEMCG_MASK != 0]
            weights = np.where(pages["flags"] & U(PG_head) != 0, 1 << pages["order"].astype(np.int64), 1)
            groups = ((pages["flags"] & MEMCG_MASK) >> MEMCG_SHIFT).astype(np.int64)
            np.add.at(found[0], groups, weights)
            np.add.at(found[1], groups, np.where(pages["flags"] & U(PG_large_kmalloc) != 0, weights, 0))
    return found


@entry("i64(u64, i64, i64[])")
def count_charged_objects(machine_address, number, charged):
    """Bytes charged for the objects of a zone's slabs: by group the reclaimable ones, then by group the others.

    0, or the head page of a slab whose array is no object of the general cache for it, or names what is no group.
    """
    machine = machine_t.at(machine_address)
    zone = zone_of(machine, number)
    for pfn in range(zone.start_pfn, zone.virgin_pfn):
        page = page_of(machine, pfn)
        if page.flags & U(PG_slab) == U(0) or slab_obj_exts(page) == 0:
            continue
        cache, address = cache_of(machine, page.mapping), machine.paging.page_offset + U(slab_obj_exts(page))
        home = virt_to_head(machine, address)
        if (
            home == 0
            or cache.exts_cache == 0
            or page_of(machine, home).mapping != cache.exts_cache
            or number_of(machine, cache_of(machine, cache.exts_cache), home, address) < 1
        ):
            return pfn
        for i in range(slab_objects(page.private)):
            memcg = obj_exts(machine, slab_obj_exts(page))[i]
            if memcg < 0 or memcg >= MAX_CGROUPS:
                return pfn
            if memcg != 0:
                charged[memcg if cache.flags & SLAB_RECLAIM_ACCOUNT else MAX_CGROUPS + memcg] += obj_full_size(cache)
    return 0


@entry("i64(u64, i64, u64)")
def free_object_charged(machine_address, pfn, first):
    """The number (from 1) of the first object on a list of free ones of a slab that somebody is still charged for, or 0."""
    machine = machine_t.at(machine_address)
    cache, exts, address = cache_of(machine, page_of(machine, pfn).mapping), slab_obj_exts(page_of(machine, pfn)), first
    while exts != 0 and address != U(0):
        which = number_of(machine, cache, pfn, address)
        if obj_exts(machine, exts)[which - 1] != 0:
            return which
        address = u64.array(machine.memory + (address - machine.paging.page_offset) + cache.offset)[0]
    return 0


def lists_of_free(machine):
    """(pfn, first object) of each list of free objects of a slab that has an array; the lists are known to be sound."""
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if zone.present_pages and zone.virgin_pfn > zone.start_pfn:
            pages = page_t.array(page_of(machine, zone.start_pfn).address).as_numpy(zone.virgin_pfn - zone.start_pfn)
            for at in np.flatnonzero((pages["flags"] & U(PG_slab) != 0) & (pages["index"] >> 16 != 0)):
                pfn = int(zone.start_pfn + at)
                page = page_of(machine, pfn)
                yield pfn, int(object_at(machine, cache_of(machine, page.mapping), pfn, free_index(page.private)))
    for number in live_caches(machine):
        for cpu in np.flatnonzero(cpu_slabs(machine, number)["slab"]).tolist():
            c = cpu_slab(machine, number, cpu)
            if slab_obj_exts(page_of(machine, c.slab)) != 0:
                if c.end != 0:
                    raise MachineCheck(
                        f"cache {cache_name(machine, number)}: cpu {cpu} would free objects of the slab at "
                        f"pfn {c.slab} without looking who is charged for them"
                    )
                yield c.slab, int(c.freelist)


def charged_objects(machine):
    """Bytes charged for objects, by group: of reclaimable caches, of others. Free objects must not be charged."""
    base, charged = int(machine.address), np.zeros(2 * MAX_CGROUPS, np.int64)
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        if zone_of(machine, number).present_pages:
            bad = count_charged_objects(base, number, charged)
            if bad:
                name = cache_name(machine, page_of(machine, bad).mapping)
                raise MachineCheck(f"cache {name}: slab at pfn {bad}: its obj_exts are none, or name what is no group")
    for pfn, first in lists_of_free(machine):
        which = free_object_charged(base, pfn, first)
        if which:
            name = cache_name(machine, page_of(machine, pfn).mapping)
            raise MachineCheck(
                f"cache {name}: object {which} of the slab at pfn {pfn} is free, and somebody is charged for it"
            )
    return charged.reshape(2, MAX_CGROUPS)


def audit_memcg(machine):
    """The counters of each control group against the pages and objects that are charged to it."""
    groups = cgroup_t.array(machine.cgroups).as_numpy(MAX_CGROUPS)
    for name, says in zip(COUNTED, np.concatenate([charged_pages(machine), charged_objects(machine)])):
        for number in np.flatnonzero(groups[name] != says):
            raise MachineCheck(
                f"control group {number}: {name} is {groups[name][number]}, what is charged says {says[number]}"
            )
