"""What a task asks the kernel's own allocators for (task.kernel), as syscalls/common.py has the system calls."""

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import entry
from numaemu.compiler.pointer import address_of
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.pool import pool_get, pool_put
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.internal import ALLOC_WMARK_LOW
from numaemu.kernel.include.mmzone import page_of, page_zone
from numaemu.kernel.mm.page_alloc.page_alloc import __free_pages, alloc_pages, free_cold_page, free_page_is_bad
from numaemu.kernel.mm.page_alloc.report.trail import TRAIL_START, TRAIL_TAKEN, leave_trail, trail_t
from numaemu.kernel.mm.reclaim.list_lru import list_lru_add, list_lru_del
from numaemu.kernel.mm.reclaim.shrinker import drop_slab, shrink_slab
from numaemu.kernel.mm.slab.percpu import (
    CHUNK_LIVE,
    FREE,
    MAX_CHUNKS,
    PCPU_MIN_ALLOC_SIZE,
    REST,
    UNIT_SHIFT,
    UNIT_SIZE,
    UNIT_SLOTS,
    alloc_percpu,
    chunk_of,
    first_chunk,
    free_percpu,
    per_cpu_ptr,
    this_cpu_add,
    this_cpu_read,
)
from numaemu.kernel.mm.slab.slab_common import kfree, kmalloc_node, kmem_cache_shrink, kmem_cache_shutdown, ksize
from numaemu.kernel.mm.slab.slub import deactivate_slab, slab_alloc_node
from numaemu.kernel.mm.slab.slub_free import slab_free
from numaemu.kernel.syscalls.common import running


@entry("u64(u64, i64, i64, i64, i64)")
def kernel_kmalloc(cpu_address, task_number, size, gfp, nid):
    """kmalloc_node: an address, or 0."""
    return kmalloc_node(running(cpu_address, task_number), size, gfp, nid)


@entry("i64(u64, i64, u64)")
def kernel_kfree(cpu_address, task_number, address):
    """0, or a BUG_* that is noted."""
    return kfree(running(cpu_address, task_number), address)


@entry("i64(u64, i64, u64)")
def kernel_ksize(cpu_address, task_number, address):
    return ksize(running(cpu_address, task_number), address)


@entry("u64(u64, i64, i64, i64, i64)")
def kernel_cache_alloc(cpu_address, task_number, number, gfp, nid):
    """kmem_cache_alloc_node: an address, or 0."""
    return slab_alloc_node(running(cpu_address, task_number), number, gfp, nid)


@entry("i64(u64, i64, i64, u64)")
def kernel_cache_free(cpu_address, task_number, number, address):
    """kmem_cache_free: 0, or a BUG_* that is noted."""
    return slab_free(running(cpu_address, task_number), number, address)


@entry("void(u64, i64)")
def flush_slab(cpu_address, number):
    """This CPU gives its slab of a cache up."""
    cpu = cpu_t.at(cpu_address)
    deactivate_slab(cpu, number, cpu.id)


@entry("void(u64, i64)")
def kernel_cache_shrink(cpu_address, number):
    kmem_cache_shrink(cpu_t.at(cpu_address), number)


@entry("i64(u64, i64)")
def kernel_cache_shutdown(cpu_address, number):
    """The objects that are left; if none, the cache is gone."""
    cpu = cpu_t.at(cpu_address)
    left = kmem_cache_shutdown(cpu, number)
    if left == 0:
        pool_put(cpu, machine_of(cpu).kmem_cache_pool, number)
    return left


@entry("i64(u64)")
def get_cache_number(cpu_address):
    """A number for a new cache, or 0."""
    cpu = cpu_t.at(cpu_address)
    return pool_get(cpu, machine_of(cpu).kmem_cache_pool)


@entry("void(u64, bool)")
def slab_mutex(cpu_address, lock):
    """Take or release the lock under which caches are made and destroyed."""
    cpu = cpu_t.at(cpu_address)
    word = address_of(machine_of(cpu), "slab_mutex")
    if lock:
        spin_lock(cpu, word)
    else:
        spin_unlock(word)


@entry("i64(u64, i64, i64, u64)")
def kernel_lru_add(cpu_address, task_number, number, address):
    """list_lru_add: 1, 0 or -1."""
    return list_lru_add(running(cpu_address, task_number), number, address)


@entry("i64(u64, i64, i64, u64)")
def kernel_lru_del(cpu_address, task_number, number, address):
    """list_lru_del: 1 or 0."""
    return list_lru_del(running(cpu_address, task_number), number, address)


@entry("i64(u64, i64, i64, i64)")
def kernel_shrink_slab(cpu_address, gfp, nid, priority):
    return shrink_slab(cpu_t.at(cpu_address), gfp, nid, priority)


@entry("i64(u64)")
def kernel_drop_slab(cpu_address):
    return drop_slab(cpu_t.at(cpu_address))


@entry("i64(u64, i64, i64, i64, i64)")
def kernel_alloc_percpu(cpu_address, task_number, size, align, gfp):
    """alloc_percpu_gfp: a handle, or 0."""
    return alloc_percpu(running(cpu_address, task_number), size, align, gfp)


@entry("i64(u64, i64, i64)")
def kernel_free_percpu(cpu_address, task_number, handle):
    """1, or 0: nothing begins there."""
    return free_percpu(running(cpu_address, task_number), handle)


@entry("i64(u64)")
def make_first_chunk(cpu_address):
    return first_chunk(cpu_t.at(cpu_address))


@entry("u64(u64, i64, i64)")
def kernel_per_cpu_ptr(cpu_address, handle, cpu_number):
    return per_cpu_ptr(cpu_t.at(cpu_address), handle, cpu_number)


@entry("void(u64, i64, i64, i64)")
def kernel_this_cpu_add(cpu_address, task_number, handle, n):
    this_cpu_add(running(cpu_address, task_number), handle, n)


@entry("i64(u64, i64, i64)")
def kernel_this_cpu_read(cpu_address, task_number, handle):
    return this_cpu_read(running(cpu_address, task_number), handle)


@entry("i64(u64, i64)")
def percpu_bytes(cpu_address, handle):
    """Bytes behind a handle, up to the end of its area; 0: there is no area."""
    machine = machine_of(cpu_t.at(cpu_address))
    number, at = handle >> UNIT_SHIFT, handle & (UNIT_SIZE - 1)
    if number < 1 or number >= MAX_CHUNKS or chunk_of(machine, number).state != CHUNK_LIVE:
        return 0
    slot, kinds = at // PCPU_MIN_ALLOC_SIZE, chunk_of(machine, number).map
    if kinds[slot] == FREE:
        return 0
    end = slot + 1
    while end < UNIT_SLOTS and kinds[end] == REST:
        end += 1
    return end * PCPU_MIN_ALLOC_SIZE - at


@entry("void(u64, bool)")
def pcpu_mutex(cpu_address, lock):
    """Take or release the lock under which static variables are laid out."""
    cpu = cpu_t.at(cpu_address)
    word = address_of(machine_of(cpu), "pcpu_lock")
    if lock:
        spin_lock(cpu, word)
    else:
        spin_unlock(word)


# -- pages ---------------------------------------------------------------------------------------------------


@entry("i64(u64, i64, i64, i64, i64, u64)")
def kernel_alloc_pages(cpu_address, task_number, gfp, order, nid, nodes):
    """alloc_pages_node: the pfn of 2**order pages, or 0. nid -1 means this CPU's node."""
    cpu = running(cpu_address, task_number)
    return alloc_pages(cpu, gfp, order, cpu.node if nid < 0 else nid, nodes & machine_of(cpu).node_mask)


@entry("i64(u64, i64, i64, i64, i64, u64)")
def kernel_explain_pages(cpu_address, task_number, gfp, order, nid, nodes):
    """The same, leaving a trail."""
    cpu = running(cpu_address, task_number)
    trail_t.array(machine_of(cpu).trails)[cpu.id].count = 0
    cpu.trail = 1
    leave_trail(cpu, TRAIL_START, -1, 0, 0, 0)
    pfn = alloc_pages(cpu, gfp, order, cpu.node if nid < 0 else nid, nodes & machine_of(cpu).node_mask)
    if pfn != 0:
        leave_trail(cpu, TRAIL_TAKEN, page_zone(machine_of(cpu), pfn), ALLOC_WMARK_LOW, 0, pfn)
    cpu.trail = 0
    return pfn


@entry("i64(u64, i64, i64, bool)")
def kernel_free_hot_cold_page(cpu_address, task_number, pfn, cold):
    """free_hot_page, free_cold_page: 0, or BAD_*."""
    cpu = running(cpu_address, task_number)
    if not cold:
        return __free_pages(cpu, pfn, 0)
    bad = free_page_is_bad(machine_of(cpu), pfn, 0)
    if bad == 0 and fetch_add(page_of(machine_of(cpu), pfn), "refcount", -1) == 1:
        free_cold_page(cpu, pfn)
    return bad


@entry("i64(u64, i64, i64, i64)")
def kernel_free_pages(cpu_address, task_number, pfn, order):
    """__free_pages: 0, or BAD_*."""
    return __free_pages(running(cpu_address, task_number), pfn, order)
