"""An allocator for compressed pages: Linux's mm/zsmalloc.c.

Objects of up to a page lie one behind another in a *zspage*, a chain of one to ZS_MAX_PAGES_PER_ZSPAGE pages that need not
be neighbours, so little is wasted and nothing is rounded up to a power of two:

    size class 3264: | page 0     | page 1     | page 2     | page 3     |      5 objects in 4 pages, 64 bytes are lost
                     | obj 0   | obj 1   | obj 2   | obj 3   | obj 4   |.|      an object may cross from page to page

Each size class has lists of its zspages by how full they are; an object goes into the fullest that has room. A zspage whose
last object is freed gives its pages back at once. A handle is zspage << OBJ_BITS | object, never 0.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import copy_bytes
from numaemu.compiler.pointer import Struct, address_of, i64, u64
from numaemu.kernel.core.pool import pool_get, pool_put
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mmdebug import VM_BUG_ON
from numaemu.kernel.include.mmzone import page_to_nid
from numaemu.kernel.include.vmstat import NR_ZSPAGES, mod_node_page_state
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages, put_page
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
ZS_MAX_PAGES_PER_ZSPAGE = 8  # CONFIG_ZSMALLOC_CHAIN_SIZE
ZS_MIN_ALLOC_SIZE, ZS_MAX_ALLOC_SIZE = 32, PAGE_SIZE
ZS_SIZE_CLASS_DELTA = 16  # PAGE_SIZE >> 8
ZS_SIZE_CLASSES = (ZS_MAX_ALLOC_SIZE - ZS_MIN_ALLOC_SIZE) // ZS_SIZE_CLASS_DELTA + 1
ZS_HANDLE_SIZE = 8  # Linux keeps the handle before each object, which is so much larger
OBJ_BITS = 8
NR_FULLNESS = 12  # ZS_INUSE_RATIO_0, _10 … _90, _99, _100
ZS_INUSE_RATIO_0, ZS_INUSE_RATIO_99, ZS_INUSE_RATIO_100 = 0, 10, 11
ENOSPC, NO_MEMORY = -28, 0  # answers of zs_malloc beside a handle

# fmt: off
zspage_t = Struct("zspage_t", [          # under its class's lock
    ("size_class", i64), ("inuse", i64), ("fullness", i64),
    ("next", i64), ("prev", i64),        # zspages of the class that are as full
    ("pfn", i64, ZS_MAX_PAGES_PER_ZSPAGE),
    ("used", u64, 4),                    # a bit for each object
], nbytes=136)

# Shared words of size_class_t: the word | its writer | why a reader may trust it.
# - a class and its zspages | Under the class's lock; an object's bytes by the owner of its slot. | The pages of a
#   zspage stay as long as it has an object.
# - zs_pool_t.pages_allocated | Atomic add. | A limit may be passed by as many pages as CPUs store at once.
size_class_t = Struct("size_class_t", [
    ("lock", u64),
    ("size", i64), ("pages_per_zspage", i64), ("objs_per_zspage", i64),      # set at boot
    ("first", i64, NR_FULLNESS),         # under the lock: number of a zspage, 0: none
    ("nr_zspages", i64), ("nr_objs", i64),
])

zs_pool_t = Struct("zs_pool_t", [        # struct zs_pool
    ("pages_allocated", i64),            # atomically
    ("class_of", i64, ZS_SIZE_CLASSES),  # which class serves a size: classes with equal zspages are merged; set at boot
    ("classes", size_class_t, ZS_SIZE_CLASSES),
])
# fmt: on


# -- size classes, in Python at boot ---------------------------------------------------------------------------


def calculate_zspage_chain_size(size):
    """Pages of a zspage that waste least; a power of two wastes nothing in one."""
    if size & (size - 1) == 0:
        return 1
    return min(range(1, ZS_MAX_PAGES_PER_ZSPAGE + 1), key=lambda pages: (pages * PAGE_SIZE % size, pages))


def class_sizes():
    """[(size, pages of a zspage, objects in it)] by class; a class whose zspages are like the next one's is that one."""
    classes = [None] * ZS_SIZE_CLASSES
    for number in range(ZS_SIZE_CLASSES - 1, -1, -1):
        size = min(ZS_MIN_ALLOC_SIZE + number * ZS_SIZE_CLASS_DELTA, ZS_MAX_ALLOC_SIZE)
        pages = calculate_zspage_chain_size(size)
        found = size, pages, pages * PAGE_SIZE // size
        above = classes[number + 1] if number + 1 < ZS_SIZE_CLASSES else None
        classes[number] = above if above is not None and above[1:] == found[1:] else found
    return classes


CLASS_SIZES = class_sizes()
# zs_huge_class_size: an object of this size or more has a page to itself, so it may as well be stored as it is
HUGE_CLASS_SIZE = max(size for size, pages, objs in CLASS_SIZES if pages != 1 and objs != 1) - (ZS_HANDLE_SIZE - 1)
assert max(objs for _, _, objs in CLASS_SIZES) <= 1 << OBJ_BITS


def zs_create_pool(pool):
    """Fill in the classes of a zs_pool_t of zeros."""
    last = {}
    for number in range(ZS_SIZE_CLASSES - 1, -1, -1):
        at = last.setdefault(CLASS_SIZES[number], number)
        pool.class_of[number] = at
        size_class = pool.classes[at]
        size_class.size, size_class.pages_per_zspage, size_class.objs_per_zspage = CLASS_SIZES[number]


# -- zspages ---------------------------------------------------------------------------------------------------


@hot
def zspage_of(machine, number):
    return zspage_t.array(machine.zspages)[number]


@hot
def get_size_class_index(size):
    index = (size - ZS_MIN_ALLOC_SIZE + ZS_SIZE_CLASS_DELTA - 1) // ZS_SIZE_CLASS_DELTA
    return min(max(index, 0), ZS_SIZE_CLASSES - 1)


@hot
def get_fullness_group(size_class, zspage):
    """The group of a zspage by how many of its objects are in use: empty, tenths, full."""
    if zspage.inuse == 0:
        return ZS_INUSE_RATIO_0
    if zspage.inuse == size_class.objs_per_zspage:
        return ZS_INUSE_RATIO_100
    return 100 * zspage.inuse // size_class.objs_per_zspage // 10 + 1


@hot
def insert_zspage(machine, size_class, number):
    """Put a zspage first on the list of those that are as full."""
    zspage = zspage_of(machine, number)
    fullness = get_fullness_group(size_class, zspage)
    head = size_class.first[fullness]
    zspage.fullness, zspage.next, zspage.prev = fullness, head, 0
    if head != 0:
        zspage_of(machine, head).prev = number
    size_class.first[fullness] = number


@hot
def remove_zspage(machine, size_class, number):
    """Take a zspage off the list of its fullness group."""
    zspage = zspage_of(machine, number)
    if zspage.next != 0:
        zspage_of(machine, zspage.next).prev = zspage.prev
    if zspage.prev != 0:
        zspage_of(machine, zspage.prev).next = zspage.next
    else:
        size_class.first[zspage.fullness] = zspage.next


@kernel("void(cpu_t*, zs_pool_t*, i64)")
def free_zspage(cpu, pool, number):
    """Give the pages of a zspage that is on no list back, as far as it has any."""
    machine = machine_of(cpu)
    zspage = zspage_of(machine, number)
    for i in range(ZS_MAX_PAGES_PER_ZSPAGE):
        if zspage.pfn[i] != 0:
            mod_node_page_state(machine, cpu.id, page_to_nid(machine, zspage.pfn[i]), NR_ZSPAGES, -1)
            fetch_add(pool, "pages_allocated", -1)
            put_page(cpu, zspage.pfn[i])
    pool_put(cpu, machine.zspage_pool, number)


@kernel("i64(cpu_t*, zs_pool_t*, i64, i64)")
def alloc_zspage(cpu, pool, index, gfp):
    """A new, empty zspage of a class: its number, or 0: no memory."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.zspage_pool)
    if number == 0:
        return 0
    zspage = zspage_of(machine, number)
    zspage.size_class, zspage.inuse = index, 0
    for i in range(4):
        zspage.used[i] = U(0)
    for i in range(ZS_MAX_PAGES_PER_ZSPAGE):
        zspage.pfn[i] = 0
    for i in range(pool.classes[index].pages_per_zspage):
        pfn = alloc_pages(cpu, gfp, 0, cpu.node, machine.node_mask)
        if pfn == 0:
            free_zspage(cpu, pool, number)
            return 0
        zspage.pfn[i] = pfn
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_ZSPAGES, 1)
        fetch_add(pool, "pages_allocated", 1)
    return number


@hot
def find_get_zspage(size_class):
    """The fullest zspage with room, or 0."""
    for fullness in range(ZS_INUSE_RATIO_99, ZS_INUSE_RATIO_0, -1):
        if size_class.first[fullness] != 0:
            return size_class.first[fullness]
    return 0


@hot
def obj_malloc(machine, size_class, number):
    """The first free object of a zspage that has one: its handle. Its list is the caller's affair."""
    zspage, found = zspage_of(machine, number), 0
    while zspage.used[found >> 6] >> U(found & 63) & U(1) != U(0):
        found += 1
    VM_BUG_ON(found >= size_class.objs_per_zspage)
    zspage.used[found >> 6] |= U(1) << U(found & 63)
    zspage.inuse += 1
    size_class.nr_objs += 1
    return number << OBJ_BITS | found


# -- objects ---------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, zs_pool_t*, i64, i64)")
def zs_malloc(cpu, pool, size, gfp):
    """Room for `size` bytes: a handle; NO_MEMORY; ENOSPC: nothing so large is stored."""
    machine = machine_of(cpu)
    if size > ZS_MAX_ALLOC_SIZE:
        return ENOSPC
    index = pool.class_of[get_size_class_index(size + ZS_HANDLE_SIZE)]
    size_class = pool.classes[index]
    lock = address_of(size_class, "lock")
    spin_lock(cpu, lock)
    number = find_get_zspage(size_class)
    if number != 0:
        remove_zspage(machine, size_class, number)
    else:
        spin_unlock(lock)  # allocating may take other locks
        number = alloc_zspage(cpu, pool, index, gfp)
        if number == 0:
            return NO_MEMORY
        spin_lock(cpu, lock)
        size_class.nr_zspages += 1
    handle = obj_malloc(machine, size_class, number)
    insert_zspage(machine, size_class, number)
    spin_unlock(lock)
    return handle


@kernel("void(cpu_t*, zs_pool_t*, i64)")
def zs_free(cpu, pool, handle):
    """The object goes, and with the last one of its zspage the pages."""
    machine, number, obj = machine_of(cpu), handle >> OBJ_BITS, handle & ((1 << OBJ_BITS) - 1)
    zspage = zspage_of(machine, number)
    size_class = pool.classes[zspage.size_class]
    lock, bit = address_of(size_class, "lock"), U(1) << U(obj & 63)
    spin_lock(cpu, lock)
    VM_BUG_ON(zspage.used[obj >> 6] & bit == U(0))
    remove_zspage(machine, size_class, number)
    zspage.used[obj >> 6] &= ~bit
    zspage.inuse -= 1
    size_class.nr_objs -= 1
    empty = zspage.inuse == 0
    if empty:
        size_class.nr_zspages -= 1
    else:
        insert_zspage(machine, size_class, number)
    spin_unlock(lock)
    if empty:
        free_zspage(cpu, pool, number)


@kernel("void(cpu_t*, zs_pool_t*, i64, u64, i64, bool)")
def zs_copy(cpu, pool, handle, buffer, length, into):
    """Copy `length` bytes at host address `buffer` into an object, or out of it; piece by piece where it crosses pages.

    Its owner calls this: the object and the pages of its zspage stay.
    """
    machine = machine_of(cpu)
    zspage = zspage_of(machine, handle >> OBJ_BITS)
    offset = (handle & ((1 << OBJ_BITS) - 1)) * pool.classes[zspage.size_class].size
    while length > 0:
        inside = offset & (PAGE_SIZE - 1)
        piece = min(length, PAGE_SIZE - inside)
        place = frame_of(machine, zspage.pfn[offset >> PAGE_SHIFT]) + U(inside)
        if into:
            copy_bytes(place, buffer, piece)
        else:
            copy_bytes(buffer, place, piece)
        buffer += U(piece)
        offset += piece
        length -= piece


@hot
def zs_get_total_pages(pool):
    return pool.pages_allocated
