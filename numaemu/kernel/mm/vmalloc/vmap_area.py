"""Areas of vmalloc's address range: the vmap_area part of Linux's mm/vmalloc.c.

    | area: pages ... | guard | area | guard |   free   | area: freed, not purged | free ... |

Two sorted indexes hold them by address: what is in use, and what is free (neighbours merged). An area that is given back
waits on a list (lazily): its pages are unmapped, but a CPU's TLB may still know them, so nobody gets these addresses until
a purge has flushed the range of all that wait at once. Everything here is under `vmap.lock`, purges one at a time.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, address_of, i64, u64
from numaemu.kernel.arch.tlb import flush_tlb_kernel_range
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
MAX_VMAP_AREAS = 1 << 17  # assumed; Linux has no limit
LAZY_MAX_PAGES = (32 << 20) // PAGE_SIZE  # for each bit of the number of CPUs: lazy_max_pages
VM_ALLOC, VM_MAP = 2, 4  # include/linux/vmalloc.h

# fmt: off
vmap_area_t = Struct("vmap_area_t", [
    ("start", u64), ("end", u64),            # with the guard page
    ("flags", i64),                          # VM_*
    ("nr_pages", i64),                       # mapped
    ("caller", i64),                         # who asked, a pid or CALLER_*
    ("next", i64),                           # on the list of areas to be purged, or of unused numbers
], nbytes=48)

# Shared words of vmap_t: the word | its writer | why a reader may trust it.
# - areas, both indexes, the list of those that wait | Under lock; one purge at a time under purge_lock. | An area
#   that was taken out of the index belongs to the context that took it out.
vmap_t = Struct("vmap_t", [
    ("lock", u64), ("purge_lock", u64),      # spin locks
    # under `lock`
    ("nr_busy", i64), ("nr_free", i64), ("busy", i64, MAX_VMAP_AREAS), ("free", i64, MAX_VMAP_AREAS),
    ("lazy", i64), ("nr_lazy", i64),         # first area that waits; their pages of address space (vmap_lazy_nr)
    ("unused", i64), ("used", i64),          # numbers: first one that was returned; the highest so far
    # atomically
    ("nr_vmalloc_pages", i64), ("purges", i64),
])
# fmt: on


@hot
def vmap_of(machine):
    return vmap_t.at(machine.vmap)


@hot
def vmap_area_of(machine, number):
    return vmap_area_t.array(machine.vmap_areas)[number]


@hot
def busy_index(vmap):
    """Numbers of the areas in use, by address."""
    return i64.array(address_of(vmap, "busy"))


@hot
def free_index(vmap):
    """Numbers of the free areas, by address."""
    return i64.array(address_of(vmap, "free"))


@hot
def vmap_lock(machine):
    return address_of(vmap_of(machine), "lock")


# -- sorted indexes ----------------------------------------------------------------------------------------------


@kernel("i64(machine_t*, i64*, i64, u64)")
def position_above(machine, index, count, address):
    """Position of the first area of an index that ends above an address."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if vmap_area_of(machine, index[middle]).end > address:
            high = middle
        else:
            low = middle + 1
    return low


@hot
def insert_area(index, count, position, number):
    for i in range(count, position, -1):
        index[i] = index[i - 1]
    index[position] = number


@hot
def remove_area(index, count, position):
    for i in range(position, count - 1):
        index[i] = index[i + 1]


@hot
def new_number(machine):
    """A number for an area, 0: the table is full."""
    vmap = vmap_of(machine)
    number = vmap.unused
    if number != 0:
        vmap.unused = vmap_area_of(machine, number).next
    elif vmap.used + 1 < MAX_VMAP_AREAS:
        vmap.used += 1
        number = vmap.used
    return number


@hot
def put_number(machine, number):
    vmap = vmap_of(machine)
    vmap_area_of(machine, number).next = vmap.unused
    vmap.unused = number


# -- free space --------------------------------------------------------------------------------------------------


@kernel("void(machine_t*, i64)")
def merge_or_add_vmap_area(machine, number):
    """An area becomes free: with its neighbours, if they are. Linux's function of this name."""
    vmap, area = vmap_of(machine), vmap_area_of(machine, number)
    index = free_index(vmap)
    at = position_above(machine, index, vmap.nr_free, area.start)
    if at < vmap.nr_free and vmap_area_of(machine, index[at]).start == area.end:
        after = vmap_area_of(machine, index[at])
        after.start = area.start
        put_number(machine, number)
        if at > 0 and vmap_area_of(machine, index[at - 1]).end == after.start:
            after.start = vmap_area_of(machine, index[at - 1]).start
            put_number(machine, index[at - 1])
            remove_area(index, vmap.nr_free, at - 1)
            vmap.nr_free -= 1
    elif at > 0 and vmap_area_of(machine, index[at - 1]).end == area.start:
        vmap_area_of(machine, index[at - 1]).end = area.end
        put_number(machine, number)
    else:
        insert_area(index, vmap.nr_free, at, number)
        vmap.nr_free += 1


@kernel("i64(machine_t*, u64, u64)")
def va_clip(machine, size, align):
    """Cut the lowest room of `size` bytes out of the free areas: a number, 0: there is none.

    Mirrors find_vmap_lowest_match and va_clip.
    """
    vmap = vmap_of(machine)
    index = free_index(vmap)
    for at in range(vmap.nr_free):
        free_number = index[at]
        free = vmap_area_of(machine, free_number)
        start = (free.start + align - U(1)) & ~(align - U(1))
        if start >= free.end or free.end - start < size:
            continue
        number = new_number(machine)
        rest = new_number(machine) if number != 0 and start != free.start and start + size != free.end else 0
        if number == 0 or rest == 0 and start != free.start and start + size != free.end:
            if number != 0:
                put_number(machine, number)
            return 0
        area = vmap_area_of(machine, number)
        area.start, area.end = start, start + size
        if rest != 0:
            vmap_area_of(machine, rest).start, vmap_area_of(machine, rest).end = start + size, free.end
            insert_area(index, vmap.nr_free, at + 1, rest)
            vmap.nr_free += 1
            free.end = start
        elif start != free.start:
            free.end = start
        elif start + size != free.end:
            free.start = start + size
        else:
            remove_area(index, vmap.nr_free, at)
            vmap.nr_free -= 1
            put_number(machine, free_number)
        return number
    return 0


# -- lazily ------------------------------------------------------------------------------------------------------


@kernel("i64(machine_t*)")
def lazy_max_pages(machine):
    """Pages of address space that may wait: Linux's function of this name."""
    log = 0
    while machine.nr_present_cpus >> log > 0:
        log += 1
    return log * LAZY_MAX_PAGES


@kernel("bool(cpu_t*)")
def purge_vmap_area_lazy(cpu):
    """Every CPU forgets what waits, in one flush, then it is free; False: nothing waited. __purge_vmap_area_lazy."""
    machine = machine_of(cpu)
    vmap = vmap_of(machine)
    purge_lock = address_of(vmap, "purge_lock")
    spin_lock(cpu, purge_lock)
    spin_lock(cpu, vmap_lock(machine))
    first, pages, start, end = vmap.lazy, vmap.nr_lazy, ~U(0), U(0)
    vmap.lazy = 0
    number = first
    while number != 0:
        area = vmap_area_of(machine, number)
        start, end, number = min(start, area.start), max(end, area.end), area.next
    spin_unlock(vmap_lock(machine))
    if first != 0:
        flush_tlb_kernel_range(cpu, start, end)
        spin_lock(cpu, vmap_lock(machine))
        vmap.nr_lazy -= pages
        number = first
        while number != 0:
            after = vmap_area_of(machine, number).next
            merge_or_add_vmap_area(machine, number)
            number = after
        spin_unlock(vmap_lock(machine))
        fetch_add(vmap, "purges", 1)
    spin_unlock(purge_lock)
    return first != 0


# -- areas -------------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, u64, u64, i64, i64)")
def alloc_vmap_area(cpu, size, align, flags, caller):
    """An area of `size` bytes of addresses: its number, or 0 if there is no room even after a purge."""
    machine = machine_of(cpu)
    vmap = vmap_of(machine)
    index = busy_index(vmap)
    while True:
        spin_lock(cpu, vmap_lock(machine))
        number = va_clip(machine, size, align)
        if number != 0:
            area = vmap_area_of(machine, number)
            area.flags, area.nr_pages, area.caller = flags, 0, caller
            insert_area(index, vmap.nr_busy, position_above(machine, index, vmap.nr_busy, area.start), number)
            vmap.nr_busy += 1
        spin_unlock(vmap_lock(machine))
        if number != 0 or not purge_vmap_area_lazy(cpu):
            return number


@hot
def busy_area_at(machine, vmap, address):
    """(place in the index, number) of the area in use that an address lies in; its number is 0 if there is none. Under the lock."""
    index = busy_index(vmap)
    at = position_above(machine, index, vmap.nr_busy, address)
    number = index[at] if at < vmap.nr_busy else 0
    if number != 0 and vmap_area_of(machine, number).start > address:
        number = 0
    return at, number


@kernel("i64(cpu_t*, u64)")
def find_vmap_area(cpu, address):
    """Number of the area in use that an address (or its guard page) lies in, or 0."""
    machine = machine_of(cpu)
    vmap = vmap_of(machine)
    spin_lock(cpu, vmap_lock(machine))
    at, number = busy_area_at(machine, vmap, address)
    spin_unlock(vmap_lock(machine))
    return number


@kernel("i64(cpu_t*, u64)")
def find_unlink_vmap_area(cpu, address):
    """Take the area that begins at an address out of use: its number, or 0. Only one of two callers gets it."""
    machine = machine_of(cpu)
    vmap = vmap_of(machine)
    spin_lock(cpu, vmap_lock(machine))
    at, number = busy_area_at(machine, vmap, address)
    if number != 0 and vmap_area_of(machine, number).start != address:
        number = 0
    if number != 0:
        remove_area(busy_index(vmap), vmap.nr_busy, at)
        vmap.nr_busy -= 1
    spin_unlock(vmap_lock(machine))
    return number


@kernel("void(cpu_t*, i64)")
def free_vmap_area_noflush(cpu, number):
    """An area whose pages are unmapped waits for the next purge, which comes when too much waits."""
    machine = machine_of(cpu)
    vmap, area = vmap_of(machine), vmap_area_of(machine, number)
    spin_lock(cpu, vmap_lock(machine))
    area.next = vmap.lazy
    vmap.lazy = number
    vmap.nr_lazy += np.int64((area.end - area.start) >> U(PAGE_SHIFT))
    spin_unlock(vmap_lock(machine))
    if load_acquire(vmap, "nr_lazy") > lazy_max_pages(machine):
        purge_vmap_area_lazy(cpu)


def init_vmap(machine):
    """At boot: the whole range is free."""
    vmap, paging = vmap_of(machine), machine.paging
    vmap.used, vmap.nr_free, free_index(vmap)[0] = 1, 1, 1
    area = vmap_area_of(machine, 1)
    area.start, area.end = paging.vmalloc_start, paging.vmalloc_end
