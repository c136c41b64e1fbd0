"""Caches of equal objects cut from pages: Linux 6's mm/slub.c. What a slab looks like: slab.py; frees: slub_free.py.

Only its CPU touches a kmem_cache_cpu_t, inside its turn, so the fast path is plain loads and stores. A cache with
debug flags never gives objects to CPUs: every call goes through the lock, and is checked.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import call_address, clear_bytes, copy_bytes
from numaemu.compiler.pointer import address_of, u64
from numaemu.errors import KernelBug
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.gfp import (
    ___GFP_DIRECT_RECLAIM,
    ___GFP_NOFAIL,
    ___GFP_NORETRY,
    ___GFP_NOWARN,
    __GFP_ACCOUNT,
    __GFP_DMA,
    __GFP_HIGHMEM,
    __GFP_MOVABLE,
    __GFP_NO_GROW,
    __GFP_RECLAIMABLE,
    __GFP_THISNODE,
    __GFP_ZERO,
    GFP_NOWAIT,
)
from numaemu.kernel.include.mmzone import page_of, page_to_nid, zonelist
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages
from numaemu.kernel.mm.slab.memcontrol import current_memcg
from numaemu.kernel.mm.slab.obj_exts import OBJ_EXT_BYTES, charge_object, set_obj_exts
from numaemu.kernel.mm.slab.slab import (
    _SLAB,
    MAX_KMEM_CACHES,
    SLAB_ACCOUNT,
    SLAB_DEBUG_FLAGS,
    cache_of,
    cpu_slab,
    free_index,
    free_pointer,
    get_node,
    host_of,
    number_of,
    object_at,
    page_address,
    set_free_pointer,
    slab_index,
    slab_inuse,
    slab_obj_exts,
    slab_objects,
    slab_word,
    track_t,
    virt_to_head,
)
from numaemu.kernel.mm.slab.slub_debug import (
    BUG_CTOR,
    BUG_FREEPOINTER,
    BUG_NO_CACHE,
    BUG_NONE,
    bug_found,
    check_object,
    init_object,
    set_track,
    slab_bug,
)
from numaemu.kernel.mm.slab.slub_free import (
    __slab_free,
    account_slab,
    add_partial,
    discard_slab,
    free_slab_obj_exts,
    free_slab_pages,
    remove_partial,
    slab_free,
)
from numaemu.spec.param import MAX_NODES, PAGE_SIZE

U = np.uint64
OBJCGS_CLEAR_MASK = __GFP_DMA | __GFP_RECLAIMABLE | __GFP_ACCOUNT | ___GFP_NOFAIL  # what an array is not asked for with


# -- slabs ---------------------------------------------------------------------------------------------------


@hot
def setup_object(cpu, cache, number, address):
    """Make an object of a new slab: its red zones and poison, then its constructor. False: that raised an exception."""
    if cache.flags & SLAB_DEBUG_FLAGS:
        if cache.track != U(0):
            clear_bytes(host_of(cpu, address + cache.track), 2 * track_t.nbytes)
        init_object(cpu, cache, address, False)
    if cache.ctor == U(0):
        return True
    if cache.ctor_bytes == 0:
        copy_bytes(host_of(cpu, address), host_of(cpu, cache.ctor), cache.object_size)
        return True
    clear_bytes(host_of(cpu, address), cache.object_size)  # what it does not write is the same every time
    if call_address(machine_of(cpu).on_ctor, U(number), address, U(0)) == U(0):
        return True
    slab_bug(cpu, BUG_CTOR, number, address, U(0), 0)
    return False


@hot
def slab_colour(machine, number, pfn, left_over):
    """Bytes before the first object: the node's next colour, taken in turn; 0: the cache is not coloured."""
    cache = cache_of(machine, number)
    if cache.colour_off == 0 or left_over < cache.colour_off:
        return 0
    turn = fetch_add(get_node(machine, number, page_to_nid(machine, pfn)), "colour_next", 1)
    return turn % (left_over // cache.colour_off + 1) * cache.colour_off


@kernel("i64(cpu_t*, i64, i64, i64)")
def new_slab(cpu, number, gfp, nid):
    """A slab of free objects that is on no list; its pfn, or 0: no pages, its constructor failed, or the cache must not grow
    (__GFP_NO_GROW).

    Mirrors allocate_slab.
    """
    machine = machine_of(cpu)
    cache = cache_of(machine, number)
    if gfp & __GFP_NO_GROW:
        return 0
    gfp = (gfp & ~(__GFP_ACCOUNT | __GFP_ZERO | __GFP_MOVABLE | __GFP_HIGHMEM | __GFP_RECLAIMABLE)) | cache.allocflags
    order, pfn = cache.order, 0
    if order > cache.min_order:  # the larger block only if it is easily had
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
    page.index = slab_index(slab_colour(machine, number, pfn, (PAGE_SIZE << order) % cache.size), 0)
    for i in range(1, objects + 1):
        address = object_at(machine, cache, pfn, i)
        if not setup_object(cpu, cache, number, address):
            free_slab_pages(cpu, pfn)
            return 0
        set_free_pointer(cpu, cache, address, object_at(machine, cache, pfn, i + 1 if i < objects else 0))
    page.private = slab_word(1, 0, objects, 0)
    n = get_node(machine, number, page_to_nid(machine, pfn))
    fetch_add(n, "nr_slabs", 1)
    fetch_add(n, "total_objects", objects)
    account_slab(machine, cpu, cache, pfn, 1 << order)
    return pfn


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
            set_free_pointer(cpu, cache, tail, object_at(machine, cache, pfn, first))
            first = number_of(machine, cache, pfn, c.freelist)
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
    """Make a slab this CPU's, with all its free objects (acquire_slab), which with SLAB_ACCOUNT stay on its list."""
    page, charges = page_of(machine, pfn), cache.flags & SLAB_ACCOUNT
    while True:
        word = load_acquire(page, "private")
        objects = slab_objects(word)
        new = (
            slab_word(free_index(word), slab_inuse(word), objects, 1) if charges else slab_word(0, objects, objects, 1)
        )
        if compare_exchange(page, "private", word, new) == word:
            break
    first = 0 if charges else free_index(word)
    c.freelist, c.slab, c.offset, c.base, c.end = object_at(machine, cache, pfn, first), pfn, cache.offset, U(0), U(0)
    if not charges and slab_obj_exts(page) == 0:
        c.base = page_address(machine, pfn)
        c.end = c.base + (U(PAGE_SIZE) << U(page.order))


@kernel("i64(cpu_t*, i64, i64, i64)")
def partial_nid(cpu, number, gfp, nid):
    """The node whose partial slabs shall serve: nid, or if others will do, the nearest that has plenty; -1: none.

    Mirrors get_any_partial. Nothing is locked: what was there may be gone.
    """
    machine = machine_of(cpu)
    if get_node(machine, number, nid).nr_partial > 0:
        return nid
    if gfp & __GFP_THISNODE:
        return -1
    order, plenty = zonelist(machine, nid), cache_of(machine, number).min_partial
    for i in range(MAX_NODES):
        if order[i] < 0 or get_node(machine, number, order[i]).nr_partial > plenty:
            return order[i]
    return -1


@kernel("bool(cpu_t*, i64, i64, i64)")
def get_partial(cpu, number, gfp, nid):
    """Make a partial slab this CPU's (get_partial_node)."""
    machine = machine_of(cpu)
    node = partial_nid(cpu, number, gfp, nid)
    if node < 0:
        return False
    n = get_node(machine, number, node)
    lock = address_of(n, "list_lock")
    spin_lock(cpu, lock)
    pfn = n.first
    if pfn != 0:
        remove_partial(machine, n, pfn)
        freeze_slab(cpu, machine, cache_of(machine, number), cpu_slab(machine, number, cpu.id), pfn)
    spin_unlock(lock)
    return pfn != 0


# -- objects -------------------------------------------------------------------------------------------------


@hot
def lock_partial(cpu, number, gfp, nid):
    """A node with a partial slab, its list locked; -1: there are no pages."""
    machine = machine_of(cpu)
    while True:
        node, fresh = partial_nid(cpu, number, gfp, nid), 0
        if node < 0:
            fresh = new_slab(cpu, number, gfp, nid)
            if fresh == 0:
                return -1
            node = page_to_nid(machine, fresh)
        n = get_node(machine, number, node)
        spin_lock(cpu, address_of(n, "list_lock"))
        if fresh != 0:
            add_partial(machine, n, fresh)
        if n.first != 0:
            return node
        spin_unlock(address_of(n, "list_lock"))


@kernel("u64(cpu_t*, i64, i64, i64)")
def alloc_debug(cpu, number, gfp, nid):
    """An object of a cache with debug flags, checked. 0: no memory, or somebody wrote to a free object."""
    machine = machine_of(cpu)
    node = lock_partial(cpu, number, gfp, nid)
    if node < 0:
        return U(0)
    cache, n = cache_of(machine, number), get_node(machine, number, node)
    pfn = n.first
    page = page_of(machine, pfn)
    word = page.private
    address = object_at(machine, cache, pfn, free_index(word))
    following = number_of(machine, cache, pfn, free_pointer(cpu, cache, address))
    if following < 0 or following > slab_objects(word):
        slab_bug(cpu, BUG_FREEPOINTER, number, address, address + cache.offset, 0)
        address, following = U(0), 0  # what the list held beyond is lost, as in Linux
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
    spin_unlock(address_of(n, "list_lock"))
    return address


@hot
def find_slab(cpu, number, gfp, nid):
    """Give this CPU, which has none, a slab with free objects: a partial one or a new one. False: no pages."""
    machine = machine_of(cpu)
    if get_partial(cpu, number, gfp, nid):
        return True
    pfn = new_slab(cpu, number, gfp, nid)
    if pfn == 0:
        return False
    if cpu_slab(machine, number, cpu.id).slab != 0:  # reclaim, on the way to the pages, needed objects itself
        deactivate_slab(cpu, number, cpu.id)
    freeze_slab(cpu, machine, cache_of(machine, number), cpu_slab(machine, number, cpu.id), pfn)
    return True


@kernel("u64(cpu_t*, i64, i64)")
def take_object(cpu, number, pfn):
    """The first object on the list of a slab that this CPU owns, on which others only put some; 0: it is empty."""
    machine = machine_of(cpu)
    cache, page = cache_of(machine, number), page_of(machine, pfn)
    while True:
        word = load_acquire(page, "private")
        first, objects = free_index(word), slab_objects(word)
        if first == 0:
            return U(0)
        address = object_at(machine, cache, pfn, first)
        following = number_of(machine, cache, pfn, free_pointer(cpu, cache, address))
        if following < 0 or following > objects:
            slab_bug(cpu, BUG_FREEPOINTER, number, address, address + cache.offset, 0)
            address, following = U(0), 0
        inuse = slab_inuse(word) + 1 if address != U(0) else objects  # as alloc_debug: what the list held is lost
        if compare_exchange(page, "private", word, slab_word(following, inuse, objects, 1)) == word:
            return address


@hot
def next_object(cpu, number):
    """The next free object of the slab that this CPU owns; 0: none is free, or it owns no slab."""
    machine = machine_of(cpu)
    cache, c = cache_of(machine, number), cpu_slab(machine, number, cpu.id)
    if c.slab == 0:
        return U(0)
    if cache.flags & SLAB_ACCOUNT:
        return take_object(cpu, number, c.slab)
    if c.freelist == U(0):
        freeze_slab(cpu, machine, cache, c, c.slab)  # what others have freed meanwhile
    address = c.freelist
    if address != U(0):
        c.freelist = free_pointer(cpu, cache, address)
    return address


@kernel("u64(cpu_t*, i64, i64, i64)")
def __slab_alloc(cpu, number, gfp, node):
    """An object when this CPU's list is empty or of the wrong node: the rest of its slab, a partial one, a new one.

    A node that is wished for (not demanded, by __GFP_THISNODE) is tried first without waiting for it.
    """
    machine = machine_of(cpu)
    if number < 1 or number >= MAX_KMEM_CACHES or cache_of(machine, number).live == 0:
        slab_bug(cpu, BUG_NO_CACHE, number, U(0), U(0), 0)
        return U(0)
    cache, c = cache_of(machine, number), cpu_slab(machine, number, cpu.id)
    if node >= machine.nr_nodes or node < 0 or (machine.memory_mask >> U(max(node, 0))) & U(1) == U(0):
        node = -1
    nid, wish = cpu.node if node < 0 else node, node >= 0 and not gfp & __GFP_THISNODE
    if cache.flags & SLAB_DEBUG_FLAGS:
        address = alloc_debug(cpu, number, GFP_NOWAIT | __GFP_THISNODE | gfp & __GFP_NO_GROW, nid) if wish else U(0)
        return alloc_debug(cpu, number, gfp, nid) if address == U(0) and not bug_found(cpu) else address
    if c.slab != 0 and node >= 0 and page_to_nid(machine, c.slab) != node:
        deactivate_slab(cpu, number, cpu.id)
    address = next_object(cpu, number)
    if address == U(0) and not bug_found(cpu):
        deactivate_slab(cpu, number, cpu.id)
        found = find_slab(cpu, number, GFP_NOWAIT | __GFP_THISNODE | gfp & __GFP_NO_GROW, nid) if wish else False
        if not found and (bug_found(cpu) or not find_slab(cpu, number, gfp, nid)):
            return U(0)
        address = next_object(cpu, number)
    c.allocs += 1 if address != U(0) else 0
    return address


# -- charging ------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, kmem_cache_t*, i64, i64)")
def alloc_slab_obj_exts(cpu, cache, gfp, nid):
    """The physical address of an empty array for any slab of a cache; 0: no memory."""
    address = __slab_alloc(cpu, cache.exts_cache, gfp & ~OBJCGS_CLEAR_MASK, nid)
    if address == U(0):
        return 0
    nbytes = (PAGE_SIZE << cache.order) // cache.size * OBJ_EXT_BYTES
    cpu_slab(machine_of(cpu), cache.exts_cache, cpu.id).requested += nbytes
    clear_bytes(host_of(cpu, address), nbytes)
    return np.int64(address - cpu.paging.page_offset)


@kernel("u64(cpu_t*, i64, i64, i64, u64)")
def memcg_slab_post_alloc_hook(cpu, number, gfp, node, address):
    """Charge an object that the running task has just got to its group; the object, or another in its place, or 0.

    If there is no memory for the array it stays uncharged, as in Linux. If this CPU has lost the slab on the way to the
    array, by what reclaim needed itself, another CPU may own it and free by the fast path: then it must be another object.
    """
    machine, memcg = machine_of(cpu), current_memcg(cpu)
    cache, c, pfn = cache_of(machine, number), cpu_slab(machine, number, cpu.id), virt_to_head(machine, address)
    if memcg == 0 or cache.exts_cache == 0:
        return address
    if slab_obj_exts(page_of(machine, pfn)) == 0:
        exts = alloc_slab_obj_exts(cpu, cache, gfp, page_to_nid(machine, pfn))
        if exts == 0:
            return address
        if c.slab != pfn and not cache.flags & SLAB_DEBUG_FLAGS:
            __slab_free(cpu, number, address)
            address = __slab_alloc(cpu, number, gfp, node)
            pfn = c.slab
        if address == U(0) or not set_obj_exts(page_of(machine, pfn), exts):
            free_slab_obj_exts(cpu, cache.exts_cache, exts)
        if address == U(0):
            return address
        c.base, c.end = U(0), U(0)
    charge_object(machine, cache, pfn, number_of(machine, cache, pfn, address), memcg)
    return address


@kernel("u64(cpu_t*, i64, i64, i64)")
def slab_alloc_slow(cpu, number, gfp, node):
    """__slab_alloc, charged if the cache says so; what `gfp` says is its caller's (slab_post_alloc_hook)."""
    address = __slab_alloc(cpu, number, gfp, node)
    if address != U(0) and not gfp & __GFP_ACCOUNT and cache_of(machine_of(cpu), number).flags & SLAB_ACCOUNT:
        address = memcg_slab_post_alloc_hook(cpu, number, gfp, node, address)
    return address


@kernel("u64(cpu_t*, i64, i64, i64, u64)")
def slab_post_alloc_hook(cpu, number, gfp, node, address):
    """What `gfp` wants done with an object: charged, zeroed. The object, or another in its place, or 0."""
    if gfp & __GFP_ACCOUNT:
        address = memcg_slab_post_alloc_hook(cpu, number, gfp, node, address)
    if gfp & __GFP_ZERO and address != U(0):
        clear_bytes(host_of(cpu, address), cache_of(machine_of(cpu), number).object_size)
    return address


# -- objects for everybody -----------------------------------------------------------------------------------


@hot
def slab_alloc(cpu, number, gfp):
    """slab_alloc_node's fast path: the first object of this CPU's list."""
    c = cpu_slab(machine_of(cpu), number, cpu.id)
    address = c.freelist
    if address == U(0):
        return slab_alloc_slow(cpu, number, gfp, -1)
    c.freelist = u64.array(host_of(cpu, address + c.offset))[0]
    c.allocs += 1
    return address


@kernel("u64(cpu_t*, i64, i64, i64)")
def slab_alloc_node(cpu, number, gfp, node):
    """An object near `node`; -1: near this CPU."""
    if number < 1 or number >= MAX_KMEM_CACHES:
        return __slab_alloc(cpu, number, gfp, node)
    machine = machine_of(cpu)
    c = cpu_slab(machine, number, cpu.id)
    if c.freelist == U(0) or node >= 0 and page_to_nid(machine, c.slab) != node:
        address = slab_alloc_slow(cpu, number, gfp, node)
    else:
        address = slab_alloc(cpu, number, gfp)
    if address != U(0) and gfp & (__GFP_ACCOUNT | __GFP_ZERO):
        address = slab_post_alloc_hook(cpu, number, gfp, node, address)
    return address


@hot
def kmem_cache_alloc(cpu, number, gfp):
    """The address of an object of cache `number`, or 0: no memory."""
    address = slab_alloc(cpu, number, gfp) if 0 < number < MAX_KMEM_CACHES else __slab_alloc(cpu, number, gfp, -1)
    if address == U(0):
        if bug_found(cpu):
            raise KernelBug
    elif gfp & (__GFP_ACCOUNT | __GFP_ZERO):
        address = slab_post_alloc_hook(cpu, number, gfp, -1, address)
    return address


@hot
def kmem_cache_free(cpu, number, address):
    """Give an object of cache `number` back."""
    if not 0 < number < MAX_KMEM_CACHES or slab_free(cpu, number, address) != BUG_NONE:
        raise KernelBug
