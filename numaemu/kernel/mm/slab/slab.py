"""What a slab cache is made of: Linux's include/linux/slab.h and mm/slab.h. The structs, and what is read out of them.

A slab is one block of pages. Its head page says whose it is (`mapping`), how full it is, in one word (`private`) that
changes by compare-exchange only, and in another (`index`) how many bytes before its first object are its colour, and
where it is written to whom each object is charged (obj_exts.py):

    63..48   47      46..32    31..16   15..0
    --       frozen  objects   inuse    1 + index of the first free object (0: none)

    frozen: it belongs to one CPU, which holds the rest of its free objects on a list of its own (`kmem_cache_cpu_t`);
            other CPUs' frees go on the slab's list. Those on the CPU's list count as in use here. With SLAB_ACCOUNT
            all stay on the slab's list, from which the CPU takes one at a time.
    else with free objects: on the partial list of its node, under the node's `list_lock`;   full: on no list.
    Whoever makes a slab enter or leave the partial list holds the lock while the word changes.

    63..16                                             15..0
    obj_exts: physical address / 8 of an array, or 0   colour / 64

A free object holds the address of the next one, `offset` bytes from its start. Addresses are those of Linux's direct
map: page_offset + physical.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, i64, u8, u64
from numaemu.kernel.include.mm_types import pool_t
from numaemu.kernel.include.mmzone import page_of, page_zone, zone_of
from numaemu.spec.param import MAX_ORDER, PAGE_SHIFT

U = np.uint64
PG_slab, PG_large_kmalloc = 1 << 24, 1 << 25  # page->flags of a head page
_SLAB, _LARGE = U(PG_slab), U(PG_large_kmalloc)

MAX_KMEM_CACHES = 1024  # assumed; Linux has no limit
COLOUR_UNIT = 64  # colours are multiples of a cache line
CACHE_NAME_BYTES = 32

# include/linux/slab.h
# fmt: off
(SLAB_CONSISTENCY_CHECKS, SLAB_RED_ZONE, SLAB_POISON, SLAB_HWCACHE_ALIGN, SLAB_CACHE_DMA, SLAB_STORE_USER,
 SLAB_RECLAIM_ACCOUNT, SLAB_ACCOUNT) = (1 << bit for bit in (8, 10, 11, 13, 14, 16, 17, 26))
# fmt: on
SLAB_DEBUG_FLAGS = SLAB_CONSISTENCY_CHECKS | SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER

# Shared words of kmem_cache_cpu_t: the word | its writer | why a reader may trust it.
# - all | Its CPU, inside its turn; another CPU only to destroy the cache. | The CPU only.
# fmt: off
kmem_cache_cpu_t = Struct("kmem_cache_cpu_t", [     # its CPU only
    ("freelist", u64),               # first object of this CPU's own list, 0 = empty
    ("base", u64), ("end", u64),     # [base, end) of the slab it owns; both 0 if it owns none, or one with obj_exts
    ("offset", u64),                 # of the free pointer in an object
    ("slab", i64),                   # pfn of the slab it owns, 0 = none
    ("allocs", i64), ("frees", i64), # objects so far
    ("requested", i64),              # bytes asked for through kmalloc so far
    ("large_pages", i64),            # cache 0, which stands for kmalloc straight from the buddy: pages given out so far
    ("_pad", u64, 7),
], nbytes=128)

kmem_cache_node_t = Struct("kmem_cache_node_t", [
    ("list_lock", u64),                                # spin lock
    ("nr_partial", i64), ("first", i64), ("last", i64),     # under it: slabs (pfn) linked by lru_next, lru_prev
    ("nr_slabs", i64), ("total_objects", i64), ("colour_next", i64),     # atomically
    ("_pad", u64),
], nbytes=64)

kmem_cache_t = Struct("kmem_cache_t", [     # written when it is created
    ("live", i64),                          # 1: it may be used
    ("flags", i64), ("allocflags", i64),    # SLAB_*; what is added to the gfp flags of its pages
    ("object_size", i64), ("size", i64),    # bytes as asked for; from one object to the next
    ("align", i64), ("inuse", i64),         # inuse: where an object's metadata begins
    ("offset", u64),                        # of the free pointer
    ("red_left_pad", u64),                  # bytes of red zone before an object
    ("track", u64),                         # of the two track_t, 0 = none
    ("order", i64), ("min_order", i64), ("min_partial", i64),
    ("colour_off", i64),                    # bytes between two colours; 0: all slabs begin alike
    ("exts_cache", i64),                    # the general cache for a slab's obj_exts, 0: its objects are never charged
    ("ctor", u64),                          # address of the bytes that a new object holds, 0 = none;
    ("ctor_bytes", i64),                    # if not 0: of a function, pickled in so many bytes, that makes it
    ("name", u8, CACHE_NAME_BYTES),
])
# fmt: on

track_t = Struct("track_t", [("pid", i64), ("cpu", i64), ("when_ns", i64)])  # who allocated or freed an object


@hot
def cache_of(machine, number):
    return kmem_cache_t.array(machine.kmem_caches)[number]


@hot
def cpu_slab(machine, number, cpu_number):
    """this_cpu_ptr(s->cpu_slab)"""
    return kmem_cache_cpu_t.array(machine.kmem_cache_cpus)[number * machine.nr_cpu_ids + cpu_number]


@hot
def get_node(machine, number, node):
    """s->node[node]"""
    return kmem_cache_node_t.array(machine.kmem_cache_nodes)[number * machine.nr_nodes + node]


# -- addresses -----------------------------------------------------------------------------------------------


@hot
def host_of(cpu, address):
    """Where this process sees a kernel address."""
    return cpu.memory + (address - cpu.paging.page_offset)


@hot
def page_address(machine, pfn):
    return machine.paging.page_offset + (U(pfn) << U(PAGE_SHIFT))


@hot
def free_index(word):
    return word & 0xFFFF


@hot
def slab_inuse(word):
    return (word >> 16) & 0xFFFF


@hot
def slab_objects(word):
    return (word >> 32) & 0x7FFF


@hot
def slab_frozen(word):
    return (word >> 47) & 1


@hot
def slab_word(first, inuse, objects, frozen):
    return first | (inuse << 16) | (objects << 32) | (frozen << 47)


@hot
def slab_index(colour, exts):
    """page->index of a slab."""
    return exts << 13 | colour // COLOUR_UNIT


@hot
def colour_of(page):
    return (page.index & 0xFFFF) * COLOUR_UNIT


@hot
def slab_obj_exts(page):
    """Physical address of the array that says to whom each object of a slab is charged; 0: there is none."""
    return load_acquire(page, "index") >> 16 << 3


@hot
def first_object(machine, cache, pfn):
    return page_address(machine, pfn) + U(colour_of(page_of(machine, pfn))) + cache.red_left_pad


@hot
def object_at(machine, cache, pfn, first):
    """Address of the object with number `first` - 1, 0 for 0."""
    return first_object(machine, cache, pfn) + U((first - 1) * cache.size) if first != 0 else U(0)


@hot
def number_of(machine, cache, pfn, address):
    """1 + the index of the object at an address of the slab, 0 for address 0; -1: none begins there."""
    if address == U(0):
        return 0
    start = first_object(machine, cache, pfn)
    if address < start:
        return -1
    distance = np.int64(address - start)
    return distance // cache.size + 1 if distance % cache.size == 0 else -1


@hot
def free_pointer(cpu, cache, address):
    """get_freepointer"""
    return u64.array(host_of(cpu, address + cache.offset))[0]


@hot
def set_free_pointer(cpu, cache, address, following):
    u64.array(host_of(cpu, address + cache.offset))[0] = following


@kernel("i64(machine_t*, u64)")
def virt_to_head(machine, address):
    """The head page of the slab or large block that a kernel address lies in; 0 if it lies in none."""
    start = machine.paging.page_offset
    if address < start or np.int64((address - start) >> U(PAGE_SHIFT)) >= machine.max_pfn:
        return 0
    pfn = np.int64((address - start) >> U(PAGE_SHIFT))
    zone = zone_of(machine, page_zone(machine, pfn))
    if pfn < zone.start_pfn or pfn >= zone.virgin_pfn:
        return 0
    order = page_of(machine, pfn).order
    if order < 0 or order > MAX_ORDER:
        return 0
    head = np.int64(pfn) & ~((1 << np.int64(order)) - 1)
    page = page_of(machine, head)
    return head if head != 0 and page.order == order and page.flags & (_SLAB | _LARGE) != U(0) else 0


# -- seen from outside ---------------------------------------------------------------------------------------


def cache_name(machine, number):
    if not 0 < number < MAX_KMEM_CACHES:
        return f"number {number}"
    return bytes(cache_of(machine, number).name.as_numpy()).rstrip(b"\0").decode()


def live_caches(machine):
    """Numbers of the caches that may be used."""
    used = pool_t.at(machine.kmem_cache_pool).used
    caches = kmem_cache_t.array(machine.kmem_caches).as_numpy(used + 1)
    return [number for number in range(1, used + 1) if caches["live"][number]]


def cpu_slabs(machine, number):
    """A NumPy array of a cache's kmem_cache_cpu_t, by CPU number."""
    return kmem_cache_cpu_t.array(cpu_slab(machine, number, 0).address).as_numpy(machine.nr_cpu_ids)


def objects_in_use(machine, number):
    slabs = cpu_slabs(machine, number)
    return int((slabs["allocs"] - slabs["frees"]).sum())
