"""Pages of swap kept compressed in memory: the table that zram and zswap share, and zram (Linux's drivers/block/zram).

A page is compressed by a library (lz4 or zstd, zcomp.py) and kept as an object of a zsmalloc pool, of which each of the two
has one. The table has a record for each swap entry. Whoever owns the entry at that moment (reclaim before it is in a page
table, swap-in and writeback under the lock of its page in the swap cache, the last reference when it is freed) writes the
record; only its links of zswap's LRU list are under the list's lock.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import call_address
from numaemu.compiler.pointer import Struct, i32, i64, u64
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import ___GFP_NOWARN, GFP_NOWAIT
from numaemu.kernel.mm.swap.zsmalloc import (
    HUGE_CLASS_SIZE,
    NO_MEMORY,
    zs_copy,
    zs_free,
    zs_get_total_pages,
    zs_malloc,
    zs_pool_t,
)
from numaemu.spec.param import PAGE_SIZE

U = np.uint64
ZBUF_BYTES = 8192  # room for a page that becomes larger
ZSWAP, ZRAM = range(2)  # whose pool and figures
LZ4, ZSTD = range(2)
ALGORITHMS = ("lz4", "zstd")
SAME = -1  # zentry_t.handle: every word of the page is `element` (ZRAM_SAME)
ZS_GFP = GFP_NOWAIT | ___GFP_NOWARN

# Shared words of zentry_t: the word | its writer | why a reader may trust it.
# - a slot's record | The context that fills or frees the slot, or writes it back, under the lock of its page in the
#   swap cache, or with the last count. | Nobody else knows the slot at those moments. zswap's writeback takes
#   SWAP_HAS_CACHE first, then looks again whether anything is kept.
# - its links and referenced, zswap_lru_t | Under the list's lock. | nr_items without it: a hint.
# - zstat_t | Atomic add; reached_full, max_used_pages plain. | A limit may be passed by as many pages as CPUs store
#   at once.
# fmt: off
zentry_t = Struct("zentry_t", [          # what is kept of a swap entry's page
    ("handle", i64),                     # of the object; 0: nothing is kept; or SAME
    ("element", u64),
    ("length", i32), ("algorithm", i32), # bytes of the object, PAGE_SIZE: not compressed; what can decompress it
    # zswap: its place on the LRU list of a node, under the list's lock
    ("referenced", i32), ("nid", i32), ("lru_next", i64), ("lru_prev", i64),
], nbytes=48)

zstat_t = Struct("zstat_t", [            # of zswap, of zram: atomically, by who compresses or frees
    ("pages", i64), ("compr_bytes", i64),            # kept; their bytes
    ("same_pages", i64), ("huge_pages", i64),        # of one word; not compressed
    ("huge_pages_since", i64), ("max_used_pages", i64),      # ever; a hint
    ("algorithm", i64), ("limit_pages", i64),        # by the coordinator; 0: no limit
    # zswap's
    ("reached_full", i64),               # a hint
    ("pool_limit_hit", i64), ("reject_compress_poor", i64), ("reject_compress_fail", i64), ("reject_alloc_fail", i64),
    ("reject_reclaim_fail", i64), ("written_back_pages", i64),
])
# fmt: on


@hot
def zentry_of(machine, entry):
    return zentry_t.array(machine.zentries)[entry]


@hot
def zstat_of(machine, whose):
    return zstat_t.array(machine.zstat)[whose]


@hot
def zs_pool_of(machine, whose):
    return zs_pool_t.array(machine.zs_pools)[whose]


@hot
def compress(machine, cpu, frame, algorithm):
    """Compress the page at host address `frame` into this CPU's buffer: bytes, which may be more than a page; 0: it failed."""
    cpu.clock_base_ns += machine.compress_ns
    return np.int64(call_address(machine.on_compress, frame, machine.zbufs + U(cpu.id * ZBUF_BYTES), U(algorithm)))


@kernel("void(cpu_t*, i64, i64, u64)")
def zcomp_read(cpu, whose, entry, frame):
    """Fill the frame at host address `frame` with what is kept of an entry's page."""
    machine = machine_of(cpu)
    kept = zentry_of(machine, entry)
    if kept.handle == SAME:
        for i in range(512):
            u64.array(frame)[i] = kept.element
        return
    length = np.int64(kept.length)
    if length == PAGE_SIZE:
        zs_copy(cpu, zs_pool_of(machine, whose), kept.handle, frame, length, False)
        return
    buffer = machine.zbufs + U(cpu.id * ZBUF_BYTES)
    zs_copy(cpu, zs_pool_of(machine, whose), kept.handle, buffer, length, False)
    call_address(machine.on_decompress, buffer, frame, U(length << 8 | np.int64(kept.algorithm)))
    cpu.clock_base_ns += machine.decompress_ns


@kernel("void(cpu_t*, i64, i64)")
def zentry_free(cpu, whose, entry):
    """Nothing is kept of the entry's page any more."""
    machine = machine_of(cpu)
    kept, stat = zentry_of(machine, entry), zstat_of(machine, whose)
    handle, length, kept.handle = kept.handle, np.int64(kept.length), 0
    fetch_add(stat, "pages", -1)
    if handle == SAME:
        fetch_add(stat, "same_pages", -1)
        return
    fetch_add(stat, "compr_bytes", -length)
    if length == PAGE_SIZE:
        fetch_add(stat, "huge_pages", -1)
    zs_free(cpu, zs_pool_of(machine, whose), handle)


@kernel("void(cpu_t*, i64, i64, i64, u64, i64)")
def zentry_set(cpu, whose, entry, handle, source, length):
    """Keep `length` bytes at host address `source` in an object as the entry's page, of which nothing is kept yet."""
    machine = machine_of(cpu)
    kept, stat = zentry_of(machine, entry), zstat_of(machine, whose)
    zs_copy(cpu, zs_pool_of(machine, whose), handle, source, length, True)
    kept.length, kept.algorithm = np.int32(length), np.int32(stat.algorithm)
    kept.handle = handle
    fetch_add(stat, "pages", 1)
    fetch_add(stat, "compr_bytes", length)
    if length == PAGE_SIZE:
        fetch_add(stat, "huge_pages", 1)
        fetch_add(stat, "huge_pages_since", 1)


# -- zram ------------------------------------------------------------------------------------------------------


@hot
def page_same_filled(frame):
    """True if every word of the page is as its first; the last is looked at first."""
    words = u64.array(frame)
    first = words[0]
    if words[511] != first:
        return False
    for i in range(1, 511):
        if words[i] != first:
            return False
    return True


@kernel("void(cpu_t*, i64)")
def zram_free_page(cpu, entry):
    if zentry_of(machine_of(cpu), entry).handle != 0:
        zentry_free(cpu, ZRAM, entry)


@kernel("bool(cpu_t*, i64, u64)")
def zram_write_page(cpu, entry, frame):
    """Keep the page at host address `frame` as the entry's; False: no memory for it, or mem_limit is reached.

    Pages of one word need no memory. What would be in the class of a whole page is kept as it is (huge_class_size).
    """
    machine = machine_of(cpu)
    stat, pool = zstat_of(machine, ZRAM), zs_pool_of(machine, ZRAM)
    zram_free_page(cpu, entry)
    if page_same_filled(frame):
        kept = zentry_of(machine, entry)
        kept.handle, kept.element = SAME, u64.array(frame)[0]
        fetch_add(stat, "pages", 1)
        fetch_add(stat, "same_pages", 1)
        return True
    length, source = compress(machine, cpu, frame, stat.algorithm), machine.zbufs + U(cpu.id * ZBUF_BYTES)
    if length <= 0:
        return False
    if length >= HUGE_CLASS_SIZE:
        length, source = PAGE_SIZE, frame
    handle = zs_malloc(cpu, pool, length, ZS_GFP)
    if handle == NO_MEMORY:
        return False
    if stat.limit_pages != 0 and zs_get_total_pages(pool) > stat.limit_pages:
        zs_free(cpu, pool, handle)
        return False
    stat.max_used_pages = max(stat.max_used_pages, zs_get_total_pages(pool))
    zentry_set(cpu, ZRAM, entry, handle, source, length)
    return True


@kernel("bool(cpu_t*, i64, u64)")
def zram_read_page(cpu, entry, frame):
    """Fill the frame at host address `frame` with the entry's page, which zram goes on keeping; False: it has none."""
    if zentry_of(machine_of(cpu), entry).handle == 0:
        return False
    zcomp_read(cpu, ZRAM, entry, frame)
    return True
