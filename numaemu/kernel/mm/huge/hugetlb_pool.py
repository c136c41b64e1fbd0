"""The pools of huge pages: struct hstate, the free lists and the reservation maps of Linux's mm/hugetlb.c.

There is a pool for each size: what an entry above the lowest tables maps (2 MiB), and, where the format has it, what one of
the level above maps (1 GiB): *gigantic* pages, more than the buddy system has in one piece (contig.py finds them).

A page of a pool is a compound page with PG_hugetlb in its head. Until it is handed out its head's refcount is 0, so that
nobody who looks it up late can have it; the free heads of a node hang in a list, newest first. Everything in hstate_t is
changed under its lock. A page whose last
reference goes comes back here (free_huge_folio), unless its node has more than it should (surplus): then it is the
buddy system's again.

    nr_huge_pages = persistent + surplus_huge_pages          free_huge_pages >= resv_huge_pages

A *reservation map* belongs to a shared object, or to the private VMA that mmap made (and those split from it). Of a
shared object a bit says: reserved, or there. Of a private VMA it says: the reservation has been used.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, fetch_and, fetch_or, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, address_of, i64, u64
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.mm_types import VM_SHARED, PG_head, PG_hugetlb, PG_restore_reserve, PG_used
from numaemu.kernel.include.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.spec.param import MAX_NODES, MAX_ORDER, PAGE_SHIFT
from numaemu.uapi import MAP_HUGE_MASK, MAP_HUGE_SHIFT, errno

U = np.uint64
NR_FAULT_MUTEXES = 16
HUGE_MAX_HSTATE = 2

# Shared words of hstate_t: the word | its writer | why a reader may trust it.
# - counts and free lists of a pool | Under its lock. Whose turn it is among the nodes: the context that sizes the
#   pool (CPU 0). | Counts are also read as single words.
# - a huge page of a pool that moves | Under the mmap_lock for writing and its fault mutex, if one entry maps it and
#   nobody else holds it: its count is frozen at 0 while its contents and its slot go over. | Others who have its
#   object wait for the mutex, or (read) look it up again. The reservation is by index and stays.
# - fault_mutex | Compare-exchange; held over the allocation and the clearing of a page, never by a context that
#   frees one. | Its waiters are outside.
# fmt: off
hstate_t = Struct("hstate_t", [
    ("lock", u64),                               # hugetlb_lock: of everything below
    ("order", i64), ("number", i64),             # of its pages; its place in the table; set at boot
    # pages of this size
    ("nr_huge_pages", i64), ("free_huge_pages", i64), ("resv_huge_pages", i64), ("surplus_huge_pages", i64),
    ("max_huge_pages", i64), ("nr_overcommit_huge_pages", i64),
    ("next_nid_to_alloc", i64), ("next_nid_to_free", i64),
    ("nr_node", i64, MAX_NODES), ("free_node", i64, MAX_NODES), ("surplus_node", i64, MAX_NODES),
    ("freelist", i64, MAX_NODES),                # pfn of the first free head, linked by lru_next; 0: none
    ("fault_mutex", u64, NR_FAULT_MUTEXES),      # spin locks: one fault at a time for each page (hugetlb_fault_mutex_table)
])

# Shared words of resv_map_t: the word | its writer | why a reader may trust it.
# - bits | Atomic OR and AND: the fault that uses a reservation up, under the page's fault mutex; the context that
#   zaps the page. | The map is held by a count, the VMAs' or the object's.
# - size, of a file of huge pages | The holder of i_rwsem, which then takes every fault mutex once. | A fault, also
#   in a private mapping, reads it under its page's mutex: no fault that has seen the old end is under way when
#   pages are dropped.
resv_map_t = Struct("resv_map_t", [              # then the bits, in words
    ("refs", i64),                               # VMAs that have it, atomically
    ("first", i64), ("pages", i64),              # the huge page of the object that bit 0 is about; how many bits
    ("size", i64),                               # huge pages that the object has: faults behind them get SIGBUS
])
# fmt: on
RESV_HEADER = resv_map_t.nbytes


@hot
def hstate_at(machine, number):
    """A pool by its number."""
    return hstate_t.array(machine.hstate)[number]


@hot
def hstate_vma(machine, vma):
    """The pool that a VMA's pages come from."""
    return hstate_at(machine, vma.hstate)


@hot
def hugetlb_object(vma):
    """The object that a VMA shows: its file's, or its own, if it is shared and maps no file; 0: all its pages are private."""
    if vma.i_mapping != 0:
        return vma.i_mapping
    return vma.mapping if vma.flags & VM_SHARED else 0


@hot
def default_hstate(machine):
    """The pool of who asks for no size."""
    return hstate_at(machine, machine.default_hstate)


@hot
def huge_page_shift(h):
    return U(h.order + PAGE_SHIFT)


@hot
def huge_page_size(h):
    """Bytes."""
    return U(1) << huge_page_shift(h)


@hot
def pages_per_huge_page(h):
    return 1 << h.order


@hot
def hstate_is_gigantic(h):
    return h.order > MAX_ORDER


@kernel("i64(machine_t*, i64)")
def size_to_hstate(machine, order):
    """Number of the pool whose pages have this order, or -1."""
    for number in range(machine.nr_hstates):
        if hstate_at(machine, number).order == order:
            return number
    return -1


@kernel("i64(machine_t*, i64)")
def hstate_sizelog(machine, flags):
    """Number of the pool that the flags of mmap or memfd_create ask for; -EINVAL: there is none of this size."""
    shift = (flags >> MAP_HUGE_SHIFT) & MAP_HUGE_MASK
    number = machine.default_hstate if shift == 0 else size_to_hstate(machine, shift - PAGE_SHIFT)
    return number if number >= 0 else -errno.EINVAL


@hot
def folio_hstate(machine, page):
    """The pool that a page of one belongs to, by its head."""
    return hstate_at(machine, max(size_to_hstate(machine, np.int64(page.order)), 0))


@hot
def hpage_pages(machine):
    """Small pages in a transparent huge one."""
    return np.int64(U(1) << machine.paging.table_bits)


@kernel("i64(machine_t*)")
def hugetlb_total_pages(machine):
    """Small pages that the pools have taken away from everybody else."""
    total = 0
    for number in range(machine.nr_hstates):
        h = hstate_at(machine, number)
        total += h.nr_huge_pages * pages_per_huge_page(h)
    return total


# -- the free lists; under the lock --------------------------------------------------------------------------------


@hot
def enqueue_hugetlb_folio(machine, h, pfn):
    """Put a huge page on its node's free list."""
    page, node = page_of(machine, pfn), page_to_nid(machine, pfn)
    page.lru_next = h.freelist[node]
    h.freelist[node] = pfn
    h.free_huge_pages += 1
    h.free_node[node] += 1


@kernel("i64(machine_t*, hstate_t*, i64)")
def dequeue_hugetlb_folio_node(machine, h, node):
    """A free page of a node; 0: it has none."""
    pfn = h.freelist[node]
    if pfn != 0:
        page = page_of(machine, pfn)
        VM_BUG_ON_PAGE(page.refcount != 0 or page.mapcount != 0, page)
        h.freelist[node] = page.lru_next
        h.free_huge_pages -= 1
        h.free_node[node] -= 1
    return pfn


@hot
def account_new_hugetlb_folio(machine, h, pfn):
    """A page joins the pool."""
    page_of(machine, pfn).flags |= U(PG_hugetlb)
    h.nr_huge_pages += 1
    h.nr_node[page_to_nid(machine, pfn)] += 1


@kernel("void(machine_t*, hstate_t*, i64, bool)")
def remove_hugetlb_folio(machine, h, pfn, surplus):
    """A page that is on no list leaves the pool; the caller frees it."""
    page, node = page_of(machine, pfn), page_to_nid(machine, pfn)
    page.flags = U(PG_used | PG_head)
    h.nr_huge_pages -= 1
    h.nr_node[node] -= 1
    if surplus:
        h.surplus_huge_pages -= 1
        h.surplus_node[node] -= 1


@kernel("bool(cpu_t*, i64)")
def free_huge_folio(cpu, pfn):
    """The last reference to a page of the pool is gone: True if it is free again, False if the buddy system gets it."""
    machine = machine_of(cpu)
    page, node = page_of(machine, pfn), page_to_nid(machine, pfn)
    h = folio_hstate(machine, page)
    VM_BUG_ON_PAGE(page.mapcount != 0, page)
    lock = address_of(h, "lock")
    spin_lock(cpu, lock)
    if page.flags & U(PG_restore_reserve) != U(0):
        h.resv_huge_pages += 1
    page.flags = U(PG_used | PG_head | PG_hugetlb)
    page.mapping, page.index = 0, 0
    surplus = h.surplus_node[node] > 0
    if surplus:
        remove_hugetlb_folio(machine, h, pfn, True)
    else:
        enqueue_hugetlb_folio(machine, h, pfn)
    spin_unlock(lock)
    return not surplus


# -- reservation maps ----------------------------------------------------------------------------------------------


@hot
def resv_bits(map_address):
    return u64.array(map_address + U(RESV_HEADER))


@hot
def resv_bytes(pages):
    return RESV_HEADER + (pages + 63) // 64 * 8


@kernel("bool(u64, i64)")
def resv_test(map_address, index):
    """What the map at a host address says of a huge page of the object."""
    at = index - resv_map_t.at(map_address).first
    return (load_acquire(resv_bits(map_address), at // 64) >> U(at % 64)) & U(1) != U(0)


@kernel("void(u64, i64, bool)")
def resv_set(map_address, index, value):
    """Set or clear the bit of a huge page (by its index in the object) in a reservation map."""
    at = index - resv_map_t.at(map_address).first
    if value:
        fetch_or(resv_bits(map_address), at // 64, U(1) << U(at % 64))
    else:
        fetch_and(resv_bits(map_address), at // 64, ~(U(1) << U(at % 64)))


@kernel("i64(u64, i64, i64)")
def region_count(map_address, start, end):
    """How many bits are set for the huge pages [start, end)."""
    n = 0
    for index in range(start, end):
        if resv_test(map_address, index):
            n += 1
    return n


@hot
def get_resv_map(map_address):
    fetch_add(resv_map_t.at(map_address), "refs", 1)
