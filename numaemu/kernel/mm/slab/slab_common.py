"""Making, shrinking and destroying slab caches, and kmalloc: Linux's mm/slab_common.c, and the sizes from mm/slub.c."""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.gfp import ___GFP_COMP, __GFP_ACCOUNT, __GFP_DMA, __GFP_RECLAIMABLE
from numaemu.kernel.include.mm_types import pool_t
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NR_SLAB_UNRECLAIMABLE, mod_node_page_state
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages, put_page
from numaemu.kernel.mm.slab.memcontrol import mod_large_kmalloc
from numaemu.kernel.mm.slab.obj_exts import OBJ_EXT_BYTES
from numaemu.kernel.mm.slab.slab import (
    _LARGE,
    _SLAB,
    CACHE_NAME_BYTES,
    COLOUR_UNIT,
    MAX_KMEM_CACHES,
    SLAB_ACCOUNT,
    SLAB_CACHE_DMA,
    SLAB_HWCACHE_ALIGN,
    SLAB_POISON,
    SLAB_RECLAIM_ACCOUNT,
    SLAB_RED_ZONE,
    SLAB_STORE_USER,
    cache_name,
    cache_of,
    cpu_slab,
    get_node,
    kmem_cache_cpu_t,
    kmem_cache_node_t,
    kmem_cache_t,
    page_address,
    slab_inuse,
    track_t,
    virt_to_head,
)
from numaemu.kernel.mm.slab.slub import deactivate_slab, slab_alloc_node
from numaemu.kernel.mm.slab.slub_debug import BUG_NONE, BUG_NOT_AN_OBJECT, kmem_cache_flags, slab_bug, slab_bug_t
from numaemu.kernel.mm.slab.slub_free import discard_slab, remove_partial, slab_free
from numaemu.spec.param import MAX_ORDER, PAGE_SIZE

U = np.uint64
SLUB_MAX_ORDER = 3  # slub_max_order: PAGE_ALLOC_COSTLY_ORDER
MIN_PARTIAL, MAX_PARTIAL = 5, 10  # empty slabs kept by a node: between these, by object size
MAX_OBJS_PER_PAGE = 32767
CACHE_LINE = 64

KMALLOC_SIZES = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
KMALLOC_MAX_CACHE_SIZE = KMALLOC_SIZES[-1]
KMALLOC_MAX_SIZE = PAGE_SIZE << MAX_ORDER
ZERO_SIZE_PTR = U(16)
_KINDS = len(KMALLOC_SIZES)
# fmt: off
KMALLOC_TYPES = (("kmalloc", 0), ("kmalloc-rcl", SLAB_RECLAIM_ACCOUNT), ("dma-kmalloc", SLAB_CACHE_DMA),
                 ("kmalloc-cg", SLAB_ACCOUNT))
# fmt: on


@kernel("void(cpu_t*, i64)")
def kmem_cache_shrink(cpu, number):
    """Give all empty slabs back (CPUs have given their slabs up before)."""
    machine = machine_of(cpu)
    for node in range(machine.nr_nodes):
        n = get_node(machine, number, node)
        lock = address_of(n, "list_lock")
        spin_lock(cpu, lock)
        pfn, empty = n.first, 0
        while pfn != 0:
            page = page_of(machine, pfn)
            following = page.lru_next
            if slab_inuse(load_acquire(page, "private")) == 0:  # nobody holds an object, so it stays so
                remove_partial(machine, n, pfn)
                page.lru_next = empty
                empty = pfn
            pfn = following
        spin_unlock(lock)
        while empty != 0:
            following = page_of(machine, empty).lru_next
            discard_slab(cpu, number, empty)
            empty = following


@kernel("i64(cpu_t*, i64)")
def kmem_cache_shutdown(cpu, number):
    """Take every CPU's slab away and give empty slabs back; objects that are left. Nobody may use the cache."""
    machine = machine_of(cpu)
    left = 0
    for owner in range(machine.nr_cpu_ids):
        deactivate_slab(cpu, number, owner)
        c = cpu_slab(machine, number, owner)
        left += c.allocs - c.frees
    kmem_cache_shrink(cpu, number)
    if left == 0:
        for node in range(machine.nr_nodes):  # slabs whose lists somebody destroyed
            left += get_node(machine, number, node).total_objects
    if left == 0:
        cache_of(machine, number).live = 0
        for owner in range(machine.nr_cpu_ids):
            c = cpu_slab(machine, number, owner)
            c.allocs, c.frees, c.requested = 0, 0, 0
    return left


def align_up(value, align):
    return -(-value // align) * align


def calc_slab_order(size, min_order, fraction):
    """The smallest order that leaves at most 1/fraction of it unused."""
    for order in range(min_order, SLUB_MAX_ORDER + 1):
        if (PAGE_SIZE << order) % size <= (PAGE_SIZE << order) // fraction:
            return order
    return SLUB_MAX_ORDER + 1


def get_order(nbytes):
    """The order of the smallest block that holds so many bytes."""
    return max((nbytes - 1) // PAGE_SIZE, 0).bit_length()


def calculate_order(size, nr_cpus):
    """Pages per slab: enough objects for the number of CPUs, little waste at the end (Linux's function of this name)."""
    max_objects = max((PAGE_SIZE << SLUB_MAX_ORDER) // size, 1)
    min_objects = min(4 * (nr_cpus.bit_length() + 1), max_objects)
    min_order = get_order(min_objects * size)
    if (PAGE_SIZE << min_order) // size > MAX_OBJS_PER_PAGE:
        return get_order(size * MAX_OBJS_PER_PAGE) - 1
    for fraction in (16, 8, 4, 2):
        order = calc_slab_order(size, min_order, fraction)
        if order <= SLUB_MAX_ORDER:
            return order
    return get_order(size)


def calculate_sizes(cache, nr_cpus):
    """Where an object's parts lie (slub_debug.py has a picture), and how many pages a slab has."""
    flags, object_size, align = cache.flags, cache.object_size, cache.align
    size = align_up(object_size, 8)
    if flags & SLAB_RED_ZONE and size == object_size:
        size += 8
    cache.inuse = size
    if flags & SLAB_POISON or cache.ctor or flags & SLAB_RED_ZONE and object_size < 8:
        cache.offset, size = size, size + 8  # the free pointer may not lie in the object
    else:
        cache.offset = object_size // 2 // 8 * 8
    if flags & SLAB_STORE_USER:
        cache.track, size = size, size + 2 * track_t.nbytes
    if flags & SLAB_RED_ZONE:
        cache.red_left_pad = align_up(8, align)
        size += 8 + align_up(8, align)
    cache.size = size = align_up(size, align)
    order = calculate_order(size, nr_cpus)
    if order > MAX_ORDER:
        raise ValueError(f"kmem_cache_create: {size} bytes for an object with its metadata, at most {KMALLOC_MAX_SIZE}")
    cache.order, cache.min_order = order, get_order(size)
    cache.min_partial = min(max((size.bit_length() - 1) // 2, MIN_PARTIAL), MAX_PARTIAL)
    cache.allocflags = (
        (___GFP_COMP if order else 0)
        | (__GFP_DMA if flags & SLAB_CACHE_DMA else 0)
        | (__GFP_RECLAIMABLE if flags & SLAB_RECLAIM_ACCOUNT else 0)
    )


def calculate_alignment(flags, align, size):
    """The alignment of a cache's objects in bytes: a cache line or a part of it with SLAB_HWCACHE_ALIGN, 8 at least."""
    if flags & SLAB_HWCACHE_ALIGN:
        line = CACHE_LINE
        while size <= line // 2:
            line //= 2
        align = max(align, line)
    return align_up(max(align, 8), 8)


def exts_cache(number, objects):
    """The general cache for arrays of so many obj_exts; 0 for the general caches themselves."""
    nbytes = objects * OBJ_EXT_BYTES
    return 0 if number <= _KINDS else 1 + next(i for i, size in enumerate(KMALLOC_SIZES) if size >= nbytes)


def init_cache(machine, number, name, size, align, flags, ctor=0, ctor_bytes=0, colour=False):
    """Write a cache's struct; it may be used from then on."""
    cache, raw = cache_of(machine, number), name.encode()[: CACHE_NAME_BYTES - 1].ljust(CACHE_NAME_BYTES, b"\0")
    for field in cache.struct.kinds:
        if field != "name":
            setattr(cache, field, 0)
    for i, byte in enumerate(raw):
        cache.name[i] = byte
    cache.flags, cache.object_size, cache.ctor, cache.ctor_bytes = flags, size, ctor, ctor_bytes
    cache.align = calculate_alignment(flags, align, size)
    cache.colour_off = max(COLOUR_UNIT, cache.align) if colour else 0
    calculate_sizes(cache, machine.nr_present_cpus)
    cache.exts_cache = exts_cache(number, (PAGE_SIZE << cache.order) // cache.size)
    cache.live = 1


def slab_blocks(topology):
    """The blocks of shared memory that caches need: (name, bytes)."""
    contexts = topology.nr_cpu_ids + topology.nr_nodes
    return (
        ("kmem_caches", MAX_KMEM_CACHES * kmem_cache_t.nbytes),
        ("kmem_cache_cpus", MAX_KMEM_CACHES * contexts * kmem_cache_cpu_t.nbytes),
        ("kmem_cache_nodes", MAX_KMEM_CACHES * topology.nr_nodes * kmem_cache_node_t.nbytes),
        ("slab_bugs", contexts * slab_bug_t.nbytes),
        ("kmem_cache_pool", pool_t.nbytes),
        ("kmem_cache_stack", MAX_KMEM_CACHES * 8),
    )


def size_name(size):
    return f"{size // 1024}k" if size >= 1024 else str(size)


def kmem_cache_init(machine, stack, slab_debug):
    """At boot: the table of caches, and those of kmalloc as numbers 1, 2, …, type by type."""
    pool = pool_t.at(machine.kmem_cache_pool)
    pool.capacity, pool.returned = MAX_KMEM_CACHES, stack
    for kind, (prefix, flags) in enumerate(KMALLOC_TYPES):
        for i, size in enumerate(KMALLOC_SIZES):
            name = f"{prefix}-{size_name(size)}"
            given = kmem_cache_flags(flags, name, slab_debug)
            init_cache(machine, 1 + kind * _KINDS + i, name, size, size & -size, given)
    pool.used = len(KMALLOC_TYPES) * _KINDS


# -- kmalloc -------------------------------------------------------------------------------------------------


@hot
def kmalloc_cache(size, gfp):
    """kmalloc_slab: the number of the general cache for so many bytes."""
    index, limit = 0, 8
    if size > 192:
        index, limit = 7, 256
        while limit < size:
            index, limit = index + 1, limit * 2
    elif size > 64:
        index = 4 if size <= 96 else 5 if size <= 128 else 6
    else:
        while limit < size:
            index, limit = index + 1, limit * 2
    kind = 2 if gfp & __GFP_DMA else 1 if gfp & __GFP_RECLAIMABLE else 3 if gfp & __GFP_ACCOUNT else 0
    return 1 + kind * _KINDS + index


@hot
def order_of(size):
    order = 0
    while (PAGE_SIZE << order) < size:
        order += 1
    return order


@kernel("u64(cpu_t*, i64, i64, i64)")
def kmalloc_large(cpu, size, gfp, node):
    """More than the largest cache has: a block of pages. Mirrors ___kmalloc_large_node."""
    machine = machine_of(cpu)
    order = order_of(size)
    if order > MAX_ORDER:
        return U(0)
    pfn = alloc_pages(cpu, gfp | ___GFP_COMP, order, cpu.node if node < 0 else node, machine.node_mask)
    if pfn == 0:
        return U(0)
    page_of(machine, pfn).flags |= _LARGE
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_SLAB_UNRECLAIMABLE, 1 << order)
    mod_large_kmalloc(machine, pfn, 1 << order)
    c = cpu_slab(machine, 0, cpu.id)
    c.allocs += 1
    c.requested += size
    c.large_pages += 1 << order
    return page_address(machine, pfn)


@kernel("u64(cpu_t*, i64, i64, i64)")
def kmalloc_node(cpu, size, gfp, node):
    """`size` bytes of kernel memory, or 0. Mirrors __kmalloc_node."""
    if size == 0:
        return ZERO_SIZE_PTR
    if size > KMALLOC_MAX_CACHE_SIZE:
        return kmalloc_large(cpu, size, gfp, node)
    number = kmalloc_cache(size, gfp)
    address = slab_alloc_node(cpu, number, gfp, node)
    if address != U(0):
        cpu_slab(machine_of(cpu), number, cpu.id).requested += size
    return address


@kernel("i64(cpu_t*, u64)")
def kfree(cpu, address):
    """Give memory from kmalloc (or a cache) back; 0 or BUG_*."""
    if address <= ZERO_SIZE_PTR:
        return BUG_NONE
    machine = machine_of(cpu)
    pfn = virt_to_head(machine, address)
    page = page_of(machine, pfn)
    if pfn != 0 and page.flags & _SLAB != U(0):
        return slab_free(cpu, page.mapping, address)
    if pfn == 0 or address != page_address(machine, pfn):
        slab_bug(cpu, BUG_NOT_AN_OBJECT, 0, address, U(0), 0)
        return BUG_NOT_AN_OBJECT
    order = np.int64(page.order)
    page.flags &= ~_LARGE
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_SLAB_UNRECLAIMABLE, -(1 << order))
    mod_large_kmalloc(machine, pfn, -(1 << order))
    cpu_slab(machine, 0, cpu.id).frees += 1
    put_page(cpu, pfn)
    return BUG_NONE


@kernel("i64(cpu_t*, u64)")
def ksize(cpu, address):
    """How many bytes lie behind an address from kmalloc; -1: it is none."""
    if address <= ZERO_SIZE_PTR:
        return 0
    machine = machine_of(cpu)
    pfn = virt_to_head(machine, address)
    if pfn == 0:
        return -1
    page = page_of(machine, pfn)
    large = page.flags & _LARGE != U(0)
    return PAGE_SIZE << np.int64(page.order) if large else cache_of(machine, page.mapping).object_size


def kmalloc_waste(machine):
    """Bytes asked for against bytes given out since boot, by general cache; "large": straight from the buddy."""
    waste = {}
    for number in range(len(KMALLOC_TYPES) * _KINDS + 1):
        cpus = [cpu_slab(machine, number, c) for c in range(machine.nr_cpu_ids)]
        objects, requested = sum(c.allocs for c in cpus), sum(c.requested for c in cpus)
        if objects:
            large = sum(c.large_pages for c in cpus) * PAGE_SIZE
            given = objects * cache_of(machine, number).object_size if number else large
            waste[cache_name(machine, number) if number else "large"] = {
                "objects": objects,
                "requested": requested,
                "allocated": given,
                "wasted": given - requested,
            }
    return waste
