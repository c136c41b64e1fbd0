"""Giving objects of slab caches back, and slabs that are empty: the half of Linux 6's mm/slub.c that slub.py stands on."""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of, u64
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.list import list_add_tail, list_del
from numaemu.kernel.include.mm_types import page_t
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import NR_SLAB_RECLAIMABLE, NR_SLAB_UNRECLAIMABLE, mod_node_page_state
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.slab.obj_exts import memcg_slab_free_hook
from numaemu.kernel.mm.slab.slab import (
    _SLAB,
    MAX_KMEM_CACHES,
    SLAB_DEBUG_FLAGS,
    SLAB_RECLAIM_ACCOUNT,
    cache_of,
    cpu_slab,
    free_index,
    free_pointer,
    get_node,
    host_of,
    number_of,
    object_at,
    set_free_pointer,
    slab_frozen,
    slab_inuse,
    slab_obj_exts,
    slab_objects,
    slab_word,
    virt_to_head,
)
from numaemu.kernel.mm.slab.slub_debug import (
    BUG_DOUBLE_FREE,
    BUG_NO_CACHE,
    BUG_NONE,
    BUG_NOT_AN_OBJECT,
    BUG_WRONG_CACHE,
    check_object,
    init_object,
    set_track,
    slab_bug,
    slab_bug_of,
)

U = np.uint64


# -- partial lists -------------------------------------------------------------------------------------------


@hot
def add_partial(machine, n, pfn):
    """Put a slab last on its node's list of partial ones. Under the list's lock."""
    n.first, n.last = list_add_tail(page_t.array(machine.mem_map), pfn, n.first, n.last)
    n.nr_partial += 1


@hot
def remove_partial(machine, n, pfn):
    """Take a slab off its node's list of partial ones. Under the list's lock."""
    page = page_of(machine, pfn)
    n.first, n.last = list_del(page_t.array(machine.mem_map), pfn, n.first, n.last)
    page.lru_next, page.lru_prev = 0, 0
    n.nr_partial -= 1


# -- slabs ---------------------------------------------------------------------------------------------------


@hot
def account_slab(machine, cpu, cache, pfn, pages):
    item = NR_SLAB_RECLAIMABLE if cache.flags & SLAB_RECLAIM_ACCOUNT else NR_SLAB_UNRECLAIMABLE
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), item, pages)


@hot
def free_slab_pages(cpu, pfn):
    page = page_of(machine_of(cpu), pfn)
    page.flags &= ~_SLAB
    page.mapping, page.private = 0, 0
    put_page(cpu, pfn)


@kernel("void(cpu_t*, i64, i64)")
def free_slab(cpu, number, pfn):
    """The pages of an empty slab go back, but not yet the array that it may have."""
    machine = machine_of(cpu)
    cache, page = cache_of(machine, number), page_of(machine, pfn)
    n = get_node(machine, number, page_to_nid(machine, pfn))
    fetch_add(n, "nr_slabs", -1)
    fetch_add(n, "total_objects", -slab_objects(page.private))
    account_slab(machine, cpu, cache, pfn, -(1 << np.int64(page.order)))
    free_slab_pages(cpu, pfn)


# -- objects -------------------------------------------------------------------------------------------------


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
    """As put_object, of a cache with debug flags: if everything is right with the object."""
    machine = machine_of(cpu)
    cache, page = cache_of(machine, number), page_of(machine, pfn)
    n = get_node(machine, number, page_to_nid(machine, pfn))
    lock = address_of(n, "list_lock")
    spin_lock(cpu, lock)
    word, kind, discard, which = page.private, BUG_NONE, False, number_of(machine, cache, pfn, address)
    if on_freelist(cpu, cache, pfn, address) or slab_inuse(word) == 0:
        kind = BUG_DOUBLE_FREE
        slab_bug(cpu, kind, number, address, U(0), 0)
    elif not check_object(cpu, cache, number, address, True):
        kind = slab_bug_of(machine, cpu.id).kind
    else:
        first, inuse = free_index(word), slab_inuse(word) - 1
        memcg_slab_free_hook(machine, cache, page, which)
        init_object(cpu, cache, address, False)
        set_track(cpu, cache, address, 1)
        set_free_pointer(cpu, cache, address, object_at(machine, cache, pfn, first))
        page.private = slab_word(which, inuse, slab_objects(word), 0)
        cpu_slab(machine, number, cpu.id).frees += 1
        discard = inuse == 0 and n.nr_partial >= cache.min_partial
        if first != 0 and discard:
            remove_partial(machine, n, pfn)
        elif first == 0 and not discard:
            add_partial(machine, n, pfn)
    spin_unlock(lock)
    return pfn if discard else -kind


@kernel("i64(cpu_t*, i64, u64)")
def put_object(cpu, number, address):
    """Give an object back to its slab's list. 0; -BUG_*: it is none; a slab that is to go: it is empty and on no list."""
    machine = machine_of(cpu)
    pfn = virt_to_head(machine, address)
    if number < 1 or number >= MAX_KMEM_CACHES or cache_of(machine, number).live == 0:
        slab_bug(cpu, BUG_NO_CACHE, number, address, U(0), 0)
        return -BUG_NO_CACHE
    cache, c, page = cache_of(machine, number), cpu_slab(machine, number, cpu.id), page_of(machine, pfn)
    if pfn == 0 or page.flags & _SLAB == U(0):
        slab_bug(cpu, BUG_NOT_AN_OBJECT, number, address, U(0), 0)
        return -BUG_NOT_AN_OBJECT
    if page.mapping != number:
        slab_bug(cpu, BUG_WRONG_CACHE, number, address, U(0), 0)
        return -BUG_WRONG_CACHE
    which = number_of(machine, cache, pfn, address)
    if which < 1 or which > slab_objects(page.private):
        slab_bug(cpu, BUG_NOT_AN_OBJECT, number, address, U(0), 0)
        return -BUG_NOT_AN_OBJECT
    if cache.flags & SLAB_DEBUG_FLAGS:
        return free_debug(cpu, number, pfn, address)
    n = get_node(machine, number, page_to_nid(machine, pfn))
    lock = address_of(n, "list_lock")
    while True:
        word = load_acquire(page, "private")
        first, inuse = free_index(word), slab_inuse(word) - 1
        if address == c.freelist or first == which or inuse < 0:
            slab_bug(cpu, BUG_DOUBLE_FREE, number, address, U(0), 0)
            return -BUG_DOUBLE_FREE
        memcg_slab_free_hook(machine, cache, page, which)
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
    discard = locked and inuse == 0 and n.nr_partial >= cache.min_partial
    if locked:
        if first != 0 and discard:
            remove_partial(machine, n, pfn)
        elif first == 0 and not discard:
            add_partial(machine, n, pfn)
        spin_unlock(lock)
    return pfn if discard else 0


@hot
def put_on_cpu(cpu, c, address):
    """On this CPU's list if the object is of its slab, and the slab has no array. Else False."""
    if c.base <= address and address < c.end and address != c.freelist:
        u64.array(host_of(cpu, address + c.offset))[0] = c.freelist
        c.freelist = address
        c.frees += 1
        return True
    return False


@kernel("void(cpu_t*, i64, i64)")
def free_slab_obj_exts(cpu, number, exts):
    """Give the array at a physical address back to general cache `number`, whose own slabs have none."""
    address = cpu.paging.page_offset + U(exts)
    if not put_on_cpu(cpu, cpu_slab(machine_of(cpu), number, cpu.id), address):
        pfn = put_object(cpu, number, address)
        if pfn > 0:
            free_slab(cpu, number, pfn)


@kernel("void(cpu_t*, i64, i64)")
def discard_slab(cpu, number, pfn):
    """Give a slab that is empty and on no list back."""
    exts = slab_obj_exts(page_of(machine_of(cpu), pfn))
    free_slab(cpu, number, pfn)
    if exts != 0:
        free_slab_obj_exts(cpu, cache_of(machine_of(cpu), number).exts_cache, exts)


@kernel("i64(cpu_t*, i64, u64)")
def __slab_free(cpu, number, address):
    """Give an object back that does not go on this CPU's list; 0, or BUG_*: it is none."""
    pfn = put_object(cpu, number, address)
    if pfn > 0:
        discard_slab(cpu, number, pfn)
    return -pfn if pfn < 0 else BUG_NONE


@hot
def slab_free(cpu, number, address):
    """do_slab_free: on this CPU's list if it may go there. 0, or BUG_*."""
    if put_on_cpu(cpu, cpu_slab(machine_of(cpu), number, cpu.id), address):
        return BUG_NONE
    return __slab_free(cpu, number, address)
