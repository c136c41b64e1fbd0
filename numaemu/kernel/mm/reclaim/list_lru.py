"""Lists of objects that nobody uses but that are kept for their next user: Linux's mm/list_lru.c.

One list a node for each shrinker. The links lie in the objects, `link` bytes from their start, as a struct list_head:
the address of the next one's links, then of the previous one's; 0 ends. Both are written under the list's lock only.

    head: just added                            tail: the coldest, the next to go
    object -------- next --------> object ----------> object
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, address_of, i64, u64
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.mm.slab.slab import _SLAB, cache_of, host_of, number_of, slab_objects, virt_to_head
from numaemu.spec.param import MAX_NODES

U = np.uint64
MAX_SHRINKERS = 64  # assumed; Linux has no limit
LIST_HEAD_BYTES = 16

# Shared words of shrinker_t: the word | its writer | why a reader may trust it.
# - users | Compare-exchange from 0 (slot taken: -1, registered: 1), atomic add. | A context that shrinks holds one,
#   so the shrinker is not unregistered meanwhile.
# - links of unused objects, list_lru_node_t | Any CPU under the list's lock. | nr_items without it: a hint how much
#   to scan.
# fmt: off
shrinker_t = Struct("shrinker_t", [
    ("users", i64),              # atomically; 1 for being registered, 1 for each CPU that shrinks; 0: the slot is free
    # written before `users`
    ("cache", i64), ("link", u64),           # whose objects, and where their links are
    ("seeks", i64), ("batch", i64),
    ("nr_deferred", i64, MAX_NODES),         # atomically, by node: objects that should have been scanned before
])

list_lru_node_t = Struct("list_lru_node_t", [
    ("lock", u64),                                           # spin lock
    ("first", u64), ("last", u64), ("nr_items", i64),        # under it; nr_items is read without, as a hint
    ("_pad", u64, 4),
], nbytes=64)
# fmt: on


@hot
def shrinker_of(machine, number):
    return shrinker_t.array(machine.shrinkers)[number]


@hot
def list_lru_node(machine, number, nid):
    return list_lru_node_t.array(machine.list_lrus)[number * machine.nr_nodes + nid]


@hot
def links(cpu, item):
    """next and prev of a struct list_head."""
    return u64.array(host_of(cpu, item))


@kernel("i64(cpu_t*, i64, u64)")
def nid_of_object(cpu, number, address):
    """The node of an object of a shrinker's cache; -1: there is none at this address."""
    machine = machine_of(cpu)
    if number < 1 or number >= MAX_SHRINKERS or shrinker_of(machine, number).users <= 0:
        return -1
    pfn, cache = virt_to_head(machine, address), shrinker_of(machine, number).cache
    if pfn == 0 or page_of(machine, pfn).flags & _SLAB == U(0) or page_of(machine, pfn).mapping != cache:
        return -1
    which = number_of(machine, cache_of(machine, cache), pfn, address)
    if which < 1 or which > slab_objects(page_of(machine, pfn).private):
        return -1
    return page_to_nid(machine, pfn)


@kernel("bool(cpu_t*, i64, list_lru_node_t*, u64)")
def on_list(cpu, number, lru, item):
    """True if links belong to the list; they may hold anything if not. Under the lock."""
    previous = links(cpu, item)[1]
    if previous == U(0):
        return lru.first == item
    there = previous - shrinker_of(machine_of(cpu), number).link
    return nid_of_object(cpu, number, there) >= 0 and links(cpu, previous)[0] == item


@hot
def unlink(cpu, lru, item):
    """Under the lock."""
    following, previous = links(cpu, item)[0], links(cpu, item)[1]
    if previous != U(0):
        links(cpu, previous)[0] = following
    else:
        lru.first = following
    if following != U(0):
        links(cpu, following)[1] = previous
    else:
        lru.last = previous
    links(cpu, item)[0], links(cpu, item)[1] = U(0), U(0)
    lru.nr_items -= 1


@kernel("i64(cpu_t*, i64, u64)")
def list_lru_add(cpu, number, address):
    """Nobody uses an object any more: it may be freed from now on. 1; 0: it was on the list; -1: it is no object."""
    nid = nid_of_object(cpu, number, address)
    if nid < 0:
        return -1
    machine = machine_of(cpu)
    lru, item = list_lru_node(machine, number, nid), address + shrinker_of(machine, number).link
    lock = address_of(lru, "lock")
    spin_lock(cpu, lock)
    add = not on_list(cpu, number, lru, item)
    if add:
        links(cpu, item)[0], links(cpu, item)[1] = lru.first, U(0)
        if lru.first != U(0):
            links(cpu, lru.first)[1] = item
        else:
            lru.last = item
        lru.first = item
        lru.nr_items += 1
    spin_unlock(lock)
    return 1 if add else 0


@kernel("i64(cpu_t*, i64, u64)")
def list_lru_del(cpu, number, address):
    """An object is needed again: 1, it is the caller's; 0: it was not on the list, or has been freed."""
    nid = nid_of_object(cpu, number, address)
    if nid < 0:
        return 0
    machine = machine_of(cpu)
    lru, item = list_lru_node(machine, number, nid), address + shrinker_of(machine, number).link
    lock = address_of(lru, "lock")
    spin_lock(cpu, lock)
    found = on_list(cpu, number, lru, item)
    if found:
        unlink(cpu, lru, item)
    spin_unlock(lock)
    return 1 if found else 0


@kernel("u64(cpu_t*, i64, i64, i64)")
def list_lru_isolate(cpu, number, nid, count):
    """Take up to `count` of the coldest objects off: a chain of links, coldest first, through their first word."""
    machine = machine_of(cpu)
    lru = list_lru_node(machine, number, nid)
    lock = address_of(lru, "lock")
    spin_lock(cpu, lock)
    chain, end = U(0), U(0)
    for _ in range(count):
        item = lru.last
        if item == U(0):
            break
        unlink(cpu, lru, item)
        if end == U(0):
            chain = item
        else:
            links(cpu, end)[0] = item
        end = item
    spin_unlock(lock)
    return chain
