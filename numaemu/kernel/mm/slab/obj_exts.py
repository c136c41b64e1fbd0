"""To whom objects of slabs are charged: __GFP_ACCOUNT and SLAB_ACCOUNT. Of Linux's mm/memcontrol.c and mm/slab.h (obj_exts).

A slab of which an object was charged once has an array, obj_exts, that goes with the slab: the number of the group of each
object, 0 = not charged. So an object is taken off where it was charged, whoever frees it, wherever the task is by then.
The arrays come from the general caches, whose own objects are therefore never charged (Linux: KMALLOC_NORMAL): kmalloc
with __GFP_ACCOUNT takes those of KMALLOC_CGROUP, kmalloc-cg-*.

An array comes to a slab while the slab is the CPU's whose object it is, and that CPU forgets the slab's bounds, as does
every one that owns it later. So no free of one of its objects takes the fast path, which does not look for the array.
Charged is what Linux charges, at once: it has a page in advance on each CPU (obj_stock), of which nothing is kept here.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import i64
from numaemu.kernel.include.mm_types import cgroup_t
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.slab.slab import SLAB_RECLAIM_ACCOUNT, colour_of, slab_index, slab_obj_exts

U = np.uint64
OBJ_EXT_BYTES = 8  # sizeof(struct slabobj_ext): a word for each object


@hot
def obj_full_size(cache):
    """What is charged for an object: its share of the slab, and of the array."""
    return cache.size + OBJ_EXT_BYTES


@hot
def obj_exts(machine, exts):
    """The array at a physical address."""
    return i64.array(machine.memory + U(exts))


@hot
def set_obj_exts(page, exts):
    """Give a slab its array. False: another CPU was first, which can be if the cache has debug flags."""
    colour = colour_of(page)
    return compare_exchange(page, "index", slab_index(colour, 0), slab_index(colour, exts)) == slab_index(colour, 0)


@hot
def mod_objcg_state(machine, cache, memcg, nbytes):
    """Charge bytes to a group, or take them off."""
    group = cgroup_t.array(machine.cgroups)[memcg]
    if cache.flags & SLAB_RECLAIM_ACCOUNT:
        fetch_add(group, "slab_reclaimable", nbytes)
    else:
        fetch_add(group, "slab_unreclaimable", nbytes)


@kernel("void(machine_t*, kmem_cache_t*, i64, i64, i64)")
def charge_object(machine, cache, pfn, which, memcg):
    """Charge object `which` (from 1) of a slab that has an array. It is the caller's, and not charged."""
    obj_exts(machine, slab_obj_exts(page_of(machine, pfn)))[which - 1] = memcg
    mod_objcg_state(machine, cache, memcg, obj_full_size(cache))


@kernel("void(machine_t*, kmem_cache_t*, i64, i64)")
def __memcg_slab_free_hook(machine, cache, exts, which):
    memcg = obj_exts(machine, exts)[which - 1]
    if memcg != 0:
        obj_exts(machine, exts)[which - 1] = 0
        mod_objcg_state(machine, cache, memcg, -obj_full_size(cache))


@hot
def memcg_slab_free_hook(machine, cache, page, which):
    """Take object `which` of a slab, which is about to be free, off the group that it was charged to, if it was."""
    exts = slab_obj_exts(page)
    if exts != 0:
        __memcg_slab_free_hook(machine, cache, exts, which)
