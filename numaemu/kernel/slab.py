"""Caches of equal objects cut from pages: Linux 6's mm/slub.c, with mm/slab_common.c's kmalloc on top.

A slab is one block of pages. Its head page says whose it is (`mapping`) and how full, in one word (`private`) that
changes by compare-exchange only:

    63..48   47      46..32    31..16   15..0
    --       frozen  objects   inuse    1 + index of the first free object (0: none)

    frozen: it belongs to one CPU, which holds the rest of its free objects on a list of its own (`kmem_cache_cpu_t`);
            other CPUs' frees go on the slab's list. Those on the CPU's list count as in use here.
    else with free objects: on the partial list of its node, under the node's `list_lock`;   full: on no list.
    Whoever makes a slab enter or leave the partial list holds the lock while the word changes.

A free object holds the address of the next one, `offset` bytes from its start. Addresses are those of Linux's direct
map: PAGE_OFFSET + physical. Only its CPU touches a kmem_cache_cpu_t, inside its turn, so the fast path is plain loads
and stores. A cache with debug flags never gives objects to CPUs: every call goes through the lock, and is checked.
"""
import numpy as np

from numaemu.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compile import hot, kernel
from numaemu.errors import KernelBug
from numaemu.kernel.gfp import (___GFP_COMP, ___GFP_DIRECT_RECLAIM, ___GFP_NOFAIL, ___GFP_NORETRY, ___GFP_NOWARN,
                                __GFP_DMA, __GFP_HIGHMEM, __GFP_MOVABLE, __GFP_RECLAIMABLE, __GFP_THISNODE, __GFP_ZERO)
from numaemu.kernel.mm_types import pool_t, task_t
from numaemu.kernel.mmzone import page_of, page_to_nid, page_zone, zone_of, zonelist
from numaemu.kernel.page_alloc import alloc_pages, free_pages, put_page
from numaemu.kernel.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.vmstat import NR_SLAB_RECLAIMABLE, NR_SLAB_UNRECLAIMABLE, mod_node_page_state
from numaemu.mmu import clock_ns
from numaemu.native import clear_bytes, copy_bytes
from numaemu.param import MAX_NODES, MAX_ORDER, PAGE_SIZE
from numaemu.pointer import Struct, address_of, i64, u8, u64

U = np.uint64
PAGE_OFFSET = U(0xFFFF_8880_0000_0000)      # where the kernel sees physical address 0
PG_slab, PG_large_kmalloc = 1 << 24, 1 << 25     # page->flags of a head page
_SLAB, _LARGE = U(PG_slab), U(PG_large_kmalloc)

MAX_KMEM_CACHES = 1024                      # assumed; Linux has no limit
CACHE_NAME_BYTES = 32
SLUB_MAX_ORDER = 3                          # slub_max_order: PAGE_ALLOC_COSTLY_ORDER
MIN_PARTIAL, MAX_PARTIAL = 5, 10            # empty slabs kept by a node: between these, by object size
MAX_OBJS_PER_PAGE = 32767
CACHE_LINE = 64

# include/linux/slab.h
(SLAB_RED_ZONE, SLAB_POISON, SLAB_HWCACHE_ALIGN, SLAB_CACHE_DMA, SLAB_STORE_USER, SLAB_RECLAIM_ACCOUNT) = \
    (1 << bit for bit in (10, 11, 13, 14, 16, 17))
SLAB_DEBUG_FLAGS = SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER

# include/linux/poison.h
SLUB_RED_INACTIVE, SLUB_RED_ACTIVE, POISON_INUSE, POISON_FREE, POISON_END = 0xBB, 0xCC, 0x5A, 0x6B, 0xA5

KMALLOC_SIZES = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
KMALLOC_MAX_CACHE_SIZE = KMALLOC_SIZES[-1]
KMALLOC_MAX_SIZE = PAGE_SIZE << MAX_ORDER
ZERO_SIZE_PTR = U(16)
_KINDS = len(KMALLOC_SIZES)
KMALLOC_TYPES = (("kmalloc", 0), ("kmalloc-rcl", SLAB_RECLAIM_ACCOUNT), ("dma-kmalloc", SLAB_CACHE_DMA))

kmem_cache_cpu_t = Struct("kmem_cache_cpu_t", [     # its CPU only
    ("freelist", u64),               # first object of this CPU's own list, 0 = empty
    ("base", u64), ("end", u64),     # [base, end) of the slab it owns; both 0 if it owns none
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
    ("nr_slabs", i64), ("total_objects", i64),         # atomically
    ("_pad", u64, 2),
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
    ("ctor", u64),                          # address of the bytes that a new object holds, 0 = none
    ("name", u8, CACHE_NAME_BYTES),
])

track_t = Struct("track_t", [("pid", i64), ("cpu", i64), ("when_ns", i64)])      # who allocated or freed an object

# what may be wrong; the texts are Linux's
(BUG_NONE, BUG_NO_CACHE, BUG_NOT_AN_OBJECT, BUG_WRONG_CACHE, BUG_DOUBLE_FREE, BUG_LEFT_REDZONE, BUG_RIGHT_REDZONE,
 BUG_POISON, BUG_FREEPOINTER) = range(9)
BUG_TEXTS = ("", "No such cache", "Invalid object pointer", "Object of another cache", "Object already free",
             "Left Redzone overwritten", "Right Redzone overwritten", "Poison overwritten", "Freepointer corrupt")

slab_bug_t = Struct("slab_bug_t", [         # the last bug this CPU has found; its CPU only
    ("kind", i64), ("cache", i64),
    ("object", u64), ("where", u64),        # the object; the first wrong byte
    ("found", i64), ("expected", i64),
    ("pid", i64), ("tracked", i64),         # who found it; 1: the parties are known
    ("alloc", track_t), ("free", track_t),
])


@hot
def cache_of(machine, number):
    return kmem_cache_t.array(machine.kmem_caches)[number]


@hot
def cpu_slab(machine, number, cpu_number):
    """this_cpu_ptr(s->cpu_slab)"""
    return kmem_cache_cpu_t.array(machine.kmem_cache_cpus)[number * machine.nr_cpus + cpu_number]


@hot
def get_node(machine, number, node):
    """s->node[node]"""
    return kmem_cache_node_t.array(machine.kmem_cache_nodes)[number * machine.nr_nodes + node]


@hot
def slab_bug_of(machine, cpu_number):
    return slab_bug_t.array(machine.slab_bugs)[cpu_number]


# -- addresses -----------------------------------------------------------------------------------------------

@hot
def host_of(cpu, address):
    """Where this process sees a kernel address."""
    return cpu.memory + (address - PAGE_OFFSET)


@hot
def page_address(pfn):
    return PAGE_OFFSET + (U(pfn) << U(12))


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
def object_at(cache, pfn, first):
    """Address of the object with number `first` - 1, 0 for 0."""
    return page_address(pfn) + cache.red_left_pad + U((first - 1) * cache.size) if first != 0 else U(0)


@hot
def number_of(cache, pfn, address):
    """1 + the index of the object at an address of the slab, 0 for address 0; -1: none begins there."""
    if address == U(0):
        return 0
    start = page_address(pfn) + cache.red_left_pad
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
    if address < PAGE_OFFSET or np.int64((address - PAGE_OFFSET) >> U(12)) >= machine.max_pfn:
        return 0
    pfn = np.int64((address - PAGE_OFFSET) >> U(12))
    zone = zone_of(machine, page_zone(machine, pfn))
    if pfn < zone.start_pfn or pfn >= zone.virgin_pfn:
        return 0
    order = page_of(machine, pfn).order
    if order < 0 or order > MAX_ORDER:
        return 0
    head = np.int64(pfn) & ~((1 << np.int64(order)) - 1)
    page = page_of(machine, head)
    return head if head != 0 and page.order == order and page.flags & (_SLAB | _LARGE) != U(0) else 0


# -- reports -------------------------------------------------------------------------------------------------

@hot
def current_pid(cpu):
    return task_t.array(machine_of(cpu).tasks)[cpu.task].pid if cpu.task != 0 else 0


@kernel("void(cpu_t*, i64, i64, u64, u64, i64)")
def slab_bug(cpu, kind, number, address, where, expected):
    """Note what is wrong with an object, and who had it, for the exception that the caller gets."""
    machine = machine_of(cpu)
    bug, valid = slab_bug_of(machine, cpu.id), 0 < number < MAX_KMEM_CACHES
    bug.kind, bug.cache, bug.object, bug.where = kind, number, address, where
    bug.expected, bug.found, bug.tracked = expected, 0, 0
    bug.pid = current_pid(cpu)
    if where != U(0):
        bug.found = np.int64(u8.array(host_of(cpu, where))[0])
    if valid and kind >= BUG_DOUBLE_FREE and cache_of(machine, number).track != U(0):
        tracks = track_t.array(host_of(cpu, address + cache_of(machine, number).track))
        bug.tracked = 1
        bug.alloc.pid, bug.alloc.cpu, bug.alloc.when_ns = tracks[0].pid, tracks[0].cpu, tracks[0].when_ns
        bug.free.pid, bug.free.cpu, bug.free.when_ns = tracks[1].pid, tracks[1].cpu, tracks[1].when_ns


# -- debug bytes ---------------------------------------------------------------------------------------------

@hot
def fill_bytes(host, nbytes, value):
    for i in range(nbytes):
        u8.array(host)[i] = value


@hot
def wrong_byte(host, nbytes, value):
    """Index of the first byte that is not `value`, or -1."""
    for i in range(nbytes):
        if np.int64(u8.array(host)[i]) != value:
            return i
    return -1


@kernel("void(cpu_t*, kmem_cache_t*, u64, bool)")
def init_object(cpu, cache, address, active):
    """Red zones and poison of an object that is free or in use."""
    host = host_of(cpu, address)
    red = SLUB_RED_ACTIVE if active else SLUB_RED_INACTIVE
    if cache.flags & SLAB_RED_ZONE:
        fill_bytes(host - cache.red_left_pad, np.int64(cache.red_left_pad), red)
        fill_bytes(host + U(cache.object_size), cache.inuse - cache.object_size, red)
    if cache.flags & SLAB_POISON and not active and cache.ctor == U(0):
        fill_bytes(host, cache.object_size - 1, POISON_FREE)
        u8.array(host)[cache.object_size - 1] = POISON_END
    elif cache.flags & SLAB_POISON and active and cache.ctor == U(0):
        fill_bytes(host, cache.object_size, POISON_INUSE)


@kernel("bool(cpu_t*, kmem_cache_t*, i64, u64, bool)")
def check_object(cpu, cache, number, address, active):
    """True if nobody wrote where he must not; else it is noted, and the bytes are restored."""
    host = host_of(cpu, address)
    red = SLUB_RED_ACTIVE if active else SLUB_RED_INACTIVE
    kind, where, expected = BUG_NONE, U(0), red
    if cache.flags & SLAB_RED_ZONE:
        bad = wrong_byte(host - cache.red_left_pad, np.int64(cache.red_left_pad), red)
        if bad >= 0:
            kind, where = BUG_LEFT_REDZONE, address - cache.red_left_pad + U(bad)
        bad = wrong_byte(host + U(cache.object_size), cache.inuse - cache.object_size, red)
        if kind == BUG_NONE and bad >= 0:
            kind, where = BUG_RIGHT_REDZONE, address + U(cache.object_size + bad)
    if kind == BUG_NONE and not active and cache.flags & SLAB_POISON and cache.ctor == U(0):
        bad = wrong_byte(host, cache.object_size - 1, POISON_FREE)
        if bad >= 0:
            kind, where, expected = BUG_POISON, address + U(bad), POISON_FREE
        elif np.int64(u8.array(host)[cache.object_size - 1]) != POISON_END:
            kind, where, expected = BUG_POISON, address + U(cache.object_size - 1), POISON_END
    if kind == BUG_NONE:
        return True
    slab_bug(cpu, kind, number, address, where, expected)
    if active:                                   # the contents are the owner's
        fill_bytes(host - cache.red_left_pad, np.int64(cache.red_left_pad), red)
        fill_bytes(host + U(cache.object_size), cache.inuse - cache.object_size, red)
    else:
        init_object(cpu, cache, address, False)
    return False


@hot
def set_track(cpu, cache, address, freed):
    """Who allocated (0) or freed (1) an object."""
    if cache.track != U(0):
        track = track_t.array(host_of(cpu, address + cache.track))[freed]
        track.pid, track.cpu, track.when_ns = current_pid(cpu), cpu.id, clock_ns(cpu)


# -- partial lists -------------------------------------------------------------------------------------------

@hot
def add_partial(machine, n, pfn):
    """To the tail; under the lock."""
    page = page_of(machine, pfn)
    page.lru_next, page.lru_prev = 0, n.last
    if n.last != 0:
        page_of(machine, n.last).lru_next = pfn
    else:
        n.first = pfn
    n.last = pfn
    n.nr_partial += 1


@hot
def remove_partial(machine, n, pfn):
    """Under the lock."""
    page = page_of(machine, pfn)
    if page.lru_prev != 0:
        page_of(machine, page.lru_prev).lru_next = page.lru_next
    else:
        n.first = page.lru_next
    if page.lru_next != 0:
        page_of(machine, page.lru_next).lru_prev = page.lru_prev
    else:
        n.last = page.lru_prev
    page.lru_next, page.lru_prev = 0, 0
    n.nr_partial -= 1


# -- slabs ---------------------------------------------------------------------------------------------------

@hot
def account_slab(machine, cpu, cache, pfn, pages):
    item = NR_SLAB_RECLAIMABLE if cache.flags & SLAB_RECLAIM_ACCOUNT else NR_SLAB_UNRECLAIMABLE
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), item, pages)


@kernel("i64(cpu_t*, i64, i64, i64)")
def new_slab(cpu, number, gfp, node):
    """A slab of free objects that is on no list; its pfn, or 0: there are no pages. Mirrors allocate_slab."""
    machine = machine_of(cpu)
    cache = cache_of(machine, number)
    gfp = (gfp & ~(__GFP_ZERO | __GFP_MOVABLE | __GFP_HIGHMEM | __GFP_RECLAIMABLE)) | cache.allocflags
    nid, order = cpu.node if node < 0 else node, cache.order
    pfn = 0
    if order > cache.min_order:          # the larger block only if it is easily had
        easy = (gfp | ___GFP_NOWARN | ___GFP_NORETRY) & ~(___GFP_NOFAIL | ___GFP_DIRECT_RECLAIM)
        pfn = alloc_pages(cpu, easy, order, nid, machine.node_mask)
        if pfn == 0:
            order = cache.min_order
    if pfn == 0:
        pfn = alloc_pages(cpu, gfp, order, nid, machine.node_mask)
    if pfn == 0:
        return 0
    page, objects = page_of(machine, pfn), (PAGE_SIZE << order) // cache.size
    page.flags |= _SLAB
    page.mapping, page.lru_next, page.lru_prev = number, 0, 0
    for i in range(1, objects + 1):
        address = object_at(cache, pfn, i)
        if cache.flags & SLAB_DEBUG_FLAGS:
            if cache.track != U(0):
                clear_bytes(host_of(cpu, address + cache.track), 2 * track_t.nbytes)
            init_object(cpu, cache, address, False)
        if cache.ctor != U(0):
            copy_bytes(host_of(cpu, address), host_of(cpu, cache.ctor), cache.object_size)
        set_free_pointer(cpu, cache, address, object_at(cache, pfn, i + 1 if i < objects else 0))
    page.private = slab_word(1, 0, objects, 0)
    n = get_node(machine, number, page_to_nid(machine, pfn))
    fetch_add(n, "nr_slabs", 1)
    fetch_add(n, "total_objects", objects)
    account_slab(machine, cpu, cache, pfn, 1 << order)
    return pfn


@kernel("void(cpu_t*, i64, i64)")
def discard_slab(cpu, number, pfn):
    """Give the pages of a slab that is empty and on no list back."""
    machine = machine_of(cpu)
    cache, page = cache_of(machine, number), page_of(machine, pfn)
    n, order = get_node(machine, number, page_to_nid(machine, pfn)), np.int64(page.order)
    fetch_add(n, "nr_slabs", -1)
    fetch_add(n, "total_objects", -slab_objects(page.private))
    account_slab(machine, cpu, cache, pfn, -(1 << order))
    page.flags &= ~_SLAB
    page.mapping, page.private = 0, 0
    if order == 0:
        put_page(cpu, pfn)
    else:
        free_pages(cpu, pfn, order)


@kernel("void(cpu_t*, i64, i64)")
def deactivate_slab(cpu, number, owner):
    """Take the slab of CPU `owner` away, with the objects on its list. Another's only when nobody uses the cache."""
    machine = machine_of(cpu)
    cache, c = cache_of(machine, number), cpu_slab(machine, number, owner)
    pfn = c.slab
    if pfn == 0:
        return
    count, tail, at = 0, U(0), c.freelist
    while at != U(0):
        count, tail, at = count + 1, at, free_pointer(cpu, cache, at)
    page, n = page_of(machine, pfn), get_node(machine, number, page_to_nid(machine, pfn))
    lock = address_of(n, "list_lock")
    spin_lock(cpu, lock)
    while True:
        word = load_acquire(page, "private")
        first, inuse = free_index(word), slab_inuse(word) - count
        if count > 0:
            set_free_pointer(cpu, cache, tail, object_at(cache, pfn, first))
            first = number_of(cache, pfn, c.freelist)
        if compare_exchange(page, "private", word, slab_word(first, inuse, slab_objects(word), 0)) == word:
            break
    discard = inuse == 0 and n.nr_partial >= cache.min_partial
    if first != 0 and not discard:
        add_partial(machine, n, pfn)
    spin_unlock(lock)
    c.freelist, c.base, c.end, c.slab = U(0), U(0), U(0), 0
    if discard:
        discard_slab(cpu, number, pfn)


@hot
def freeze_slab(cpu, machine, cache, c, pfn):
    """Make a slab this CPU's, with all its free objects (acquire_slab)."""
    page = page_of(machine, pfn)
    while True:
        word = load_acquire(page, "private")
        objects = slab_objects(word)
        if compare_exchange(page, "private", word, slab_word(0, objects, objects, 1)) == word:
            break
    c.freelist, c.slab, c.offset = object_at(cache, pfn, free_index(word)), pfn, cache.offset
    c.base = page_address(pfn)
    c.end = c.base + (U(PAGE_SIZE) << U(page.order))


@kernel("bool(cpu_t*, i64, i64, i64)")
def get_partial_node(cpu, number, node, beyond):
    """Take the first partial slab of a node that has more than `beyond` of them."""
    machine = machine_of(cpu)
    n = get_node(machine, number, node)
    if n.nr_partial <= beyond:
        return False
    lock = address_of(n, "list_lock")
    spin_lock(cpu, lock)
    pfn = n.first
    if pfn != 0:
        remove_partial(machine, n, pfn)
        freeze_slab(cpu, machine, cache_of(machine, number), cpu_slab(machine, number, cpu.id), pfn)
    spin_unlock(lock)
    return pfn != 0


@kernel("bool(cpu_t*, i64, i64, i64)")
def get_partial(cpu, number, gfp, node):
    """A partial slab of the node wanted; if any will do, another's that has plenty (get_any_partial)."""
    machine = machine_of(cpu)
    if get_partial_node(cpu, number, cpu.node if node < 0 else node, 0):
        return True
    if node >= 0 or gfp & __GFP_THISNODE:
        return False
    order = zonelist(machine, cpu.node)
    for i in range(MAX_NODES):
        if order[i] < 0:
            return False
        if order[i] != cpu.node and get_partial_node(cpu, number, order[i], cache_of(machine, number).min_partial):
            return True
    return False


# -- objects -------------------------------------------------------------------------------------------------

@kernel("u64(cpu_t*, i64, i64, i64)")
def alloc_debug(cpu, number, gfp, node):
    """An object of a cache with debug flags, checked. 0: no memory, or somebody wrote to a free object."""
    machine = machine_of(cpu)
    cache = cache_of(machine, number)
    nid, fresh = cpu.node if node < 0 else node, 0
    while True:
        n = get_node(machine, number, nid)
        lock = address_of(n, "list_lock")
        spin_lock(cpu, lock)
        if fresh != 0:
            add_partial(machine, n, fresh)
        pfn = n.first
        if pfn != 0:
            break
        spin_unlock(lock)
        fresh = new_slab(cpu, number, gfp, node)
        if fresh == 0:
            return U(0)
        nid = page_to_nid(machine, fresh)
    page = page_of(machine, pfn)
    word = page.private
    address = object_at(cache, pfn, free_index(word))
    following = number_of(cache, pfn, free_pointer(cpu, cache, address))
    if following < 0 or following > slab_objects(word):
        slab_bug(cpu, BUG_FREEPOINTER, number, address, address + cache.offset, 0)
        address = U(0)
        following = 0                            # what the list held beyond is lost, as in Linux
        page.private = slab_word(0, slab_objects(word), slab_objects(word), 0)
        remove_partial(machine, n, pfn)
    elif not check_object(cpu, cache, number, address, False):
        address = U(0)
    else:
        page.private = slab_word(following, slab_inuse(word) + 1, slab_objects(word), 0)
        if following == 0:
            remove_partial(machine, n, pfn)
        init_object(cpu, cache, address, True)
        set_track(cpu, cache, address, 0)
        cpu_slab(machine, number, cpu.id).allocs += 1
    spin_unlock(lock)
    return address


@kernel("i64(cpu_t*, i64, i64, u64)")
def free_debug(cpu, number, pfn, address):
    """Take an object of a cache with debug flags back, if everything is right with it; 0 or BUG_*."""
    machine = machine_of(cpu)
    cache, page = cache_of(machine, number), page_of(machine, pfn)
    n = get_node(machine, number, page_to_nid(machine, pfn))
    lock = address_of(n, "list_lock")
    spin_lock(cpu, lock)
    word, kind, discard = page.private, BUG_NONE, False
    at, steps = object_at(cache, pfn, free_index(word)), 0
    while at != U(0) and at != address and steps < slab_objects(word) and number_of(cache, pfn, at) > 0:
        at, steps = free_pointer(cpu, cache, at), steps + 1
    if at == address or slab_inuse(word) == 0:
        kind = BUG_DOUBLE_FREE
        slab_bug(cpu, kind, number, address, U(0), 0)
    elif not check_object(cpu, cache, number, address, True):
        kind = slab_bug_of(machine, cpu.id).kind
    else:
        first, inuse = free_index(word), slab_inuse(word) - 1
        init_object(cpu, cache, address, False)
        set_track(cpu, cache, address, 1)
        set_free_pointer(cpu, cache, address, object_at(cache, pfn, first))
        page.private = slab_word(number_of(cache, pfn, address), inuse, slab_objects(word), 0)
        cpu_slab(machine, number, cpu.id).frees += 1
        discard = inuse == 0 and n.nr_partial >= cache.min_partial
        if first != 0 and discard:
            remove_partial(machine, n, pfn)
        elif first == 0 and not discard:
            add_partial(machine, n, pfn)
    spin_unlock(lock)
    if discard:
        discard_slab(cpu, number, pfn)
    return kind


@kernel("u64(cpu_t*, i64, i64, i64)")
def __slab_alloc(cpu, number, gfp, node):
    """An object when this CPU's list is empty or of the wrong node: the rest of its slab, a partial one, a new one."""
    machine = machine_of(cpu)
    if number < 1 or number >= MAX_KMEM_CACHES or cache_of(machine, number).live == 0:
        slab_bug(cpu, BUG_NO_CACHE, number, U(0), U(0), 0)
        return U(0)
    cache, c = cache_of(machine, number), cpu_slab(machine, number, cpu.id)
    if node >= machine.nr_nodes or node < 0 or (machine.memory_mask >> U(max(node, 0))) & U(1) == U(0):
        node = -1
    if cache.flags & SLAB_DEBUG_FLAGS:
        return alloc_debug(cpu, number, gfp, node)
    if c.slab != 0 and node >= 0 and page_to_nid(machine, c.slab) != node:
        deactivate_slab(cpu, number, cpu.id)
    if c.freelist == U(0) and c.slab != 0:
        freeze_slab(cpu, machine, cache, c, c.slab)          # what others have freed meanwhile
        if c.freelist == U(0):
            deactivate_slab(cpu, number, cpu.id)
    if c.freelist == U(0) and not get_partial(cpu, number, gfp, node):
        pfn = new_slab(cpu, number, gfp, node)
        if pfn == 0:
            return U(0)
        freeze_slab(cpu, machine, cache, c, pfn)
    address = c.freelist
    c.freelist = free_pointer(cpu, cache, address)
    c.allocs += 1
    return address


@kernel("i64(cpu_t*, i64, u64)")
def __slab_free(cpu, number, address):
    """Give an object back to a slab that is not this CPU's; 0, or BUG_*: it is none."""
    machine = machine_of(cpu)
    pfn = virt_to_head(machine, address)
    if number < 1 or number >= MAX_KMEM_CACHES or cache_of(machine, number).live == 0:
        slab_bug(cpu, BUG_NO_CACHE, number, address, U(0), 0)
        return BUG_NO_CACHE
    cache, c, page = cache_of(machine, number), cpu_slab(machine, number, cpu.id), page_of(machine, pfn)
    if pfn == 0 or page.flags & _SLAB == U(0):
        slab_bug(cpu, BUG_NOT_AN_OBJECT, number, address, U(0), 0)
        return BUG_NOT_AN_OBJECT
    if page.mapping != number:
        slab_bug(cpu, BUG_WRONG_CACHE, number, address, U(0), 0)
        return BUG_WRONG_CACHE
    which = number_of(cache, pfn, address)
    if which < 1 or which > slab_objects(page.private):
        slab_bug(cpu, BUG_NOT_AN_OBJECT, number, address, U(0), 0)
        return BUG_NOT_AN_OBJECT
    if cache.flags & SLAB_DEBUG_FLAGS:
        return free_debug(cpu, number, pfn, address)
    n = get_node(machine, number, page_to_nid(machine, pfn))
    lock = address_of(n, "list_lock")
    while True:
        word = load_acquire(page, "private")
        first, inuse = free_index(word), slab_inuse(word) - 1
        if pfn == c.slab or first == which or inuse < 0:     # its own slab's: the head of its list once more
            slab_bug(cpu, BUG_DOUBLE_FREE, number, address, U(0), 0)
            return BUG_DOUBLE_FREE
        set_free_pointer(cpu, cache, address, object_at(cache, pfn, first))
        locked = slab_frozen(word) == 0 and (first == 0 or inuse == 0)
        if locked:
            spin_lock(cpu, lock)
        new = slab_word(which, inuse, slab_objects(word), slab_frozen(word))
        if compare_exchange(page, "private", word, new) == word:
            break
        if locked:
            spin_unlock(lock)
    c.frees += 1
    if locked:
        discard = inuse == 0 and n.nr_partial >= cache.min_partial
        if first != 0 and discard:
            remove_partial(machine, n, pfn)
        elif first == 0 and not discard:
            add_partial(machine, n, pfn)
        spin_unlock(lock)
        if discard:
            discard_slab(cpu, number, pfn)
    return BUG_NONE


@hot
def slab_alloc(cpu, number, gfp):
    """slab_alloc_node's fast path: the first object of this CPU's list."""
    c = cpu_slab(machine_of(cpu), number, cpu.id)
    address = c.freelist
    if address == U(0):
        return __slab_alloc(cpu, number, gfp, -1)
    c.freelist = u64.array(host_of(cpu, address + c.offset))[0]
    c.allocs += 1
    return address


@hot
def slab_free(cpu, number, address):
    """do_slab_free: on this CPU's list if the object is of its slab. 0, or BUG_*."""
    c = cpu_slab(machine_of(cpu), number, cpu.id)
    if c.base <= address and address < c.end and address != c.freelist:
        u64.array(host_of(cpu, address + c.offset))[0] = c.freelist
        c.freelist = address
        c.frees += 1
        return BUG_NONE
    return __slab_free(cpu, number, address)


@hot
def zero_object(cpu, number, gfp, address):
    if gfp & __GFP_ZERO and address != U(0):
        clear_bytes(host_of(cpu, address), cache_of(machine_of(cpu), number).object_size)


@kernel("u64(cpu_t*, i64, i64, i64)")
def slab_alloc_node(cpu, number, gfp, node):
    """An object near `node`; -1: near this CPU."""
    if number < 1 or number >= MAX_KMEM_CACHES:
        return __slab_alloc(cpu, number, gfp, node)
    machine = machine_of(cpu)
    c = cpu_slab(machine, number, cpu.id)
    if c.freelist == U(0) or node >= 0 and page_to_nid(machine, c.slab) != node:
        address = __slab_alloc(cpu, number, gfp, node)
    else:
        address = slab_alloc(cpu, number, gfp)
    zero_object(cpu, number, gfp, address)
    return address


@kernel("bool(cpu_t*)")
def bug_found(cpu):
    return slab_bug_of(machine_of(cpu), cpu.id).kind != BUG_NONE


# in compiled code of a user

@hot
def kmem_cache_alloc(cpu, number, gfp):
    """The address of an object of cache `number`, or 0: no memory."""
    address = slab_alloc(cpu, number, gfp) if 0 < number < MAX_KMEM_CACHES else __slab_alloc(cpu, number, gfp, -1)
    if address == U(0):
        if bug_found(cpu):
            raise KernelBug
    elif gfp & __GFP_ZERO:
        zero_object(cpu, number, gfp, address)
    return address


@hot
def kmem_cache_free(cpu, number, address):
    """Give an object of cache `number` back."""
    if not 0 < number < MAX_KMEM_CACHES or slab_free(cpu, number, address) != BUG_NONE:
        raise KernelBug


# -- caches --------------------------------------------------------------------------------------------------

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
            if slab_inuse(load_acquire(page, "private")) == 0:       # nobody holds an object, so it stays so
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
    for owner in range(machine.nr_cpus):
        deactivate_slab(cpu, number, owner)
        c = cpu_slab(machine, number, owner)
        left += c.allocs - c.frees
    kmem_cache_shrink(cpu, number)
    if left == 0:
        cache_of(machine, number).live = 0
        for owner in range(machine.nr_cpus):
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
    """Where an object's parts lie, and how many pages a slab has:

        [red zone, red_left_pad] object, object_size [red zone, to inuse] [free pointer] [track_t, 2] [red zone, 8]
    """
    flags, object_size, align = cache.flags, cache.object_size, cache.align
    size = align_up(object_size, 8)
    if flags & SLAB_RED_ZONE and size == object_size:
        size += 8
    cache.inuse = size
    if flags & SLAB_POISON or cache.ctor or flags & SLAB_RED_ZONE and object_size < 8:
        cache.offset, size = size, size + 8      # the free pointer may not lie in the object
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
    cache.allocflags = ((___GFP_COMP if order else 0) | (__GFP_DMA if flags & SLAB_CACHE_DMA else 0)
                        | (__GFP_RECLAIMABLE if flags & SLAB_RECLAIM_ACCOUNT else 0))


def calculate_alignment(flags, align, size):
    if flags & SLAB_HWCACHE_ALIGN:
        line = CACHE_LINE
        while size <= line // 2:
            line //= 2
        align = max(align, line)
    return align_up(max(align, 8), 8)


def init_cache(machine, number, name, size, align, flags, ctor=0):
    """Write a cache's struct; it may be used from then on."""
    cache, raw = cache_of(machine, number), name.encode()[:CACHE_NAME_BYTES - 1].ljust(CACHE_NAME_BYTES, b"\0")
    for field in cache.struct.kinds:
        if field != "name":
            setattr(cache, field, 0)
    for i, byte in enumerate(raw):
        cache.name[i] = byte
    cache.flags, cache.object_size, cache.ctor = flags, size, ctor
    cache.align = calculate_alignment(flags, align, size)
    calculate_sizes(cache, machine.nr_cpus)
    cache.live = 1


def cache_name(machine, number):
    if not 0 < number < MAX_KMEM_CACHES:
        return f"number {number}"
    return bytes(cache_of(machine, number).name.as_numpy()).rstrip(b"\0").decode()


def live_caches(machine):
    """Numbers of the caches that may be used."""
    used = pool_t.at(machine.kmem_cache_pool).used
    return [n for n in range(1, used + 1) if cache_of(machine, n).live]


def objects_in_use(machine, number):
    return sum(cpu_slab(machine, number, c).allocs - cpu_slab(machine, number, c).frees for c in range(machine.nr_cpus))


def slab_blocks(topology):
    """The blocks of shared memory that caches need: (name, bytes)."""
    return (("kmem_caches", MAX_KMEM_CACHES * kmem_cache_t.nbytes),
            ("kmem_cache_cpus", MAX_KMEM_CACHES * topology.nr_cpus * kmem_cache_cpu_t.nbytes),
            ("kmem_cache_nodes", MAX_KMEM_CACHES * topology.nr_nodes * kmem_cache_node_t.nbytes),
            ("slab_bugs", topology.nr_cpus * slab_bug_t.nbytes),
            ("kmem_cache_pool", pool_t.nbytes), ("kmem_cache_stack", MAX_KMEM_CACHES * 8))


def size_name(size):
    return f"{size // 1024}k" if size >= 1024 else str(size)


def kmem_cache_init(machine, stack):
    """At boot: the table of caches, and those of kmalloc as numbers 1, 2, …, type by type."""
    pool = pool_t.at(machine.kmem_cache_pool)
    pool.capacity, pool.returned = MAX_KMEM_CACHES, stack
    for kind, (prefix, flags) in enumerate(KMALLOC_TYPES):
        for i, size in enumerate(KMALLOC_SIZES):
            init_cache(machine, 1 + kind * _KINDS + i, f"{prefix}-{size_name(size)}", size, size & -size, flags)
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
    kind = 2 if gfp & __GFP_DMA else 1 if gfp & __GFP_RECLAIMABLE else 0
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
    c = cpu_slab(machine, 0, cpu.id)
    c.allocs += 1
    c.requested += size
    c.large_pages += 1 << order
    return page_address(pfn)


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
    if pfn == 0 or address != page_address(pfn):
        slab_bug(cpu, BUG_NOT_AN_OBJECT, 0, address, U(0), 0)
        return BUG_NOT_AN_OBJECT
    order = np.int64(page.order)
    page.flags &= ~_LARGE
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_SLAB_UNRECLAIMABLE, -(1 << order))
    cpu_slab(machine, 0, cpu.id).frees += 1
    free_pages(cpu, pfn, order)
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
    return PAGE_SIZE << np.int64(page.order) if page.flags & _LARGE != U(0) else cache_of(machine, page.mapping).object_size


def kmalloc_waste(machine):
    """Bytes asked for against bytes given out since boot, by general cache; "large": straight from the buddy."""
    waste = {}
    for number in range(len(KMALLOC_TYPES) * _KINDS + 1):
        cpus = [cpu_slab(machine, number, c) for c in range(machine.nr_cpus)]
        objects, requested = sum(c.allocs for c in cpus), sum(c.requested for c in cpus)
        if objects:
            given = objects * cache_of(machine, number).object_size if number else sum(c.large_pages for c in cpus) * PAGE_SIZE
            waste[cache_name(machine, number) if number else "large"] = {
                "objects": objects, "requested": requested, "allocated": given, "wasted": given - requested}
    return waste


# -- what is said about a bug --------------------------------------------------------------------------------

def who(track):
    return f"pid {track.pid} on cpu {track.cpu} at {track.when_ns} ns"


def take_bug(machine, cpu_number):
    """The exception for the bug that a CPU has found last, or None; it is forgotten."""
    bug = slab_bug_of(machine, cpu_number)
    if bug.kind == BUG_NONE:
        return None
    name = f"cache {cache_name(machine, bug.cache)}" if bug.cache else "kfree"
    text = f"{name}: {BUG_TEXTS[bug.kind]}: object {int(bug.object):#x}"
    if bug.where:
        text += f", byte {int(bug.where) - int(bug.object):+d} is {bug.found:#04x}, must be {bug.expected:#04x}"
    if bug.tracked:
        text += f"; allocated by {who(bug.alloc)}" + (f"; freed by {who(bug.free)}" if bug.free.when_ns else "; not freed yet")
    bug.kind = BUG_NONE
    return KernelBug(f"{text}; found by pid {bug.pid} on cpu {cpu_number}")
