"""Caches of equal objects cut from pages: Linux 6's mm/slub.c. What a slab looks like: slab_types.py.

Only its CPU touches a kmem_cache_cpu_t, inside its turn, so the fast path is plain loads and stores. A cache with
debug flags never gives objects to CPUs: every call goes through the lock, and is checked.
"""
import numpy as np

from numaemu.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compile import hot, kernel
from numaemu.errors import KernelBug
from numaemu.kernel.gfp import (GFP_NOWAIT, __GFP_ACCOUNT, __GFP_HIGHMEM, __GFP_MOVABLE, __GFP_NO_GROW,
                                __GFP_RECLAIMABLE, __GFP_THISNODE, __GFP_ZERO, ___GFP_DIRECT_RECLAIM, ___GFP_NOFAIL,
                                ___GFP_NORETRY, ___GFP_NOWARN)
from numaemu.kernel.mmzone import page_of, page_to_nid, zonelist
from numaemu.kernel.page_alloc import alloc_pages, free_pages, put_page
from numaemu.kernel.slab_debug import (BUG_CTOR, BUG_DOUBLE_FREE, BUG_FREEPOINTER, BUG_NONE, BUG_NOT_AN_OBJECT,
                                       BUG_NO_CACHE, BUG_WRONG_CACHE, bug_found, check_object, init_object, set_track,
                                       slab_bug, slab_bug_of)
from numaemu.kernel.slab_types import (MAX_KMEM_CACHES, SLAB_DEBUG_FLAGS, SLAB_RECLAIM_ACCOUNT, _SLAB, cache_of,
                                       cpu_slab, free_index, free_pointer, get_node, host_of, number_of, object_at,
                                       page_address, set_free_pointer, slab_frozen, slab_inuse, slab_objects,
                                       slab_word, track_t, virt_to_head)
from numaemu.kernel.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.vmstat import NR_SLAB_RECLAIMABLE, NR_SLAB_UNRECLAIMABLE, mod_node_page_state
from numaemu.native import call_address, clear_bytes, copy_bytes
from numaemu.param import MAX_NODES, PAGE_SIZE
from numaemu.pointer import address_of, u64

U = np.uint64


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
    clear_bytes(host_of(cpu, address), cache.object_size)        # what it does not write is the same every time
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


@hot
def free_slab_pages(cpu, pfn):
    page = page_of(machine_of(cpu), pfn)
    order = np.int64(page.order)
    page.flags &= ~_SLAB
    page.mapping, page.private = 0, 0
    if order == 0:
        put_page(cpu, pfn)
    else:
        free_pages(cpu, pfn, order)


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
    page.index = slab_colour(machine, number, pfn, (PAGE_SIZE << order) % cache.size)
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
def discard_slab(cpu, number, pfn):
    """Give the pages of a slab that is empty and on no list back."""
    machine = machine_of(cpu)
    cache, page = cache_of(machine, number), page_of(machine, pfn)
    n = get_node(machine, number, page_to_nid(machine, pfn))
    fetch_add(n, "nr_slabs", -1)
    fetch_add(n, "total_objects", -slab_objects(page.private))
    account_slab(machine, cpu, cache, pfn, -(1 << np.int64(page.order)))
    free_slab_pages(cpu, pfn)


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
    """Make a slab this CPU's, with all its free objects (acquire_slab)."""
    page = page_of(machine, pfn)
    while True:
        word = load_acquire(page, "private")
        objects = slab_objects(word)
        if compare_exchange(page, "private", word, slab_word(0, objects, objects, 1)) == word:
            break
    c.freelist, c.slab, c.offset = object_at(machine, cache, pfn, free_index(word)), pfn, cache.offset
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
        address, following = U(0), 0             # what the list held beyond is lost, as in Linux
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
def on_freelist(cpu, cache, pfn, address):
    """True if the object is on its slab's list of free ones, as far as that can be followed. Under the lock."""
    machine = machine_of(cpu)
    word = page_of(machine, pfn).private
    at = object_at(machine, cache, pfn, free_index(word))
    for _ in range(slab_objects(word)):
        if at == address or not 1 <= number_of(machine, cache, pfn, at) <= slab_objects(word):
            break
        at = free_pointer(cpu, cache, at)
    return at == address


@kernel("i64(cpu_t*, i64, i64, u64)")
def free_debug(cpu, number, pfn, address):
    """Take an object of a cache with debug flags back, if everything is right with it; 0 or BUG_*."""
    machine = machine_of(cpu)
    cache, page = cache_of(machine, number), page_of(machine, pfn)
    n = get_node(machine, number, page_to_nid(machine, pfn))
    lock = address_of(n, "list_lock")
    spin_lock(cpu, lock)
    word, kind, discard = page.private, BUG_NONE, False
    if on_freelist(cpu, cache, pfn, address) or slab_inuse(word) == 0:
        kind = BUG_DOUBLE_FREE
        slab_bug(cpu, kind, number, address, U(0), 0)
    elif not check_object(cpu, cache, number, address, True):
        kind = slab_bug_of(machine, cpu.id).kind
    else:
        first, inuse = free_index(word), slab_inuse(word) - 1
        init_object(cpu, cache, address, False)
        set_track(cpu, cache, address, 1)
        set_free_pointer(cpu, cache, address, object_at(machine, cache, pfn, first))
        page.private = slab_word(number_of(machine, cache, pfn, address), inuse, slab_objects(word), 0)
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


@hot
def find_slab(cpu, number, gfp, nid):
    """Give this CPU, which has none, a slab with free objects: a partial one or a new one. False: no pages."""
    machine = machine_of(cpu)
    if get_partial(cpu, number, gfp, nid):
        return True
    pfn = new_slab(cpu, number, gfp, nid)
    if pfn == 0:
        return False
    if cpu_slab(machine, number, cpu.id).slab != 0:      # reclaim, on the way to the pages, needed objects itself
        deactivate_slab(cpu, number, cpu.id)
    freeze_slab(cpu, machine, cache_of(machine, number), cpu_slab(machine, number, cpu.id), pfn)
    return True


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
    if c.freelist == U(0) and c.slab != 0:
        freeze_slab(cpu, machine, cache, c, c.slab)          # what others have freed meanwhile
        if c.freelist == U(0):
            deactivate_slab(cpu, number, cpu.id)
    if c.freelist == U(0):
        found = find_slab(cpu, number, GFP_NOWAIT | __GFP_THISNODE | gfp & __GFP_NO_GROW, nid) if wish else False
        if not found and (bug_found(cpu) or not find_slab(cpu, number, gfp, nid)):
            return U(0)
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
    which = number_of(machine, cache, pfn, address)
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
        set_free_pointer(cpu, cache, address, object_at(machine, cache, pfn, first))
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
