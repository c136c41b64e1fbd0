"""Compressed memory: what zram (Linux's drivers/block/zram) and zswap (mm/zswap.c) have in common.

A page is compressed by a library (lz4 or zstd, zcomp.py) and kept in kernel memory from kmalloc, behind a header of one
word: its length. The table holds its address by swap entry. Whoever owns the entry at that moment (reclaim before it is
in a page table, swap-in under the page's lock, the last reference when it is freed) writes the word; nobody else looks.
"""
import numpy as np

from numaemu.atomic import exchange, fetch_add, load_acquire
from numaemu.compile import hot, kernel
from numaemu.kernel.gfp import ___GFP_NOWARN, GFP_NOWAIT
from numaemu.kernel.slab_common import kfree, kmalloc_node
from numaemu.kernel.slab_types import host_of
from numaemu.kernel.smp import machine_of
from numaemu.native import call_address, copy_bytes
from numaemu.pointer import Struct, i64, u64

U = np.uint64
ZBUF_BYTES = 8192                        # room for a page that does not get smaller
ZRAM_HUGE = 4096 * 7 // 8                # a page that stays larger than this is kept as it is (huge_class_size)
HEADER = 8
LZ4, ZSTD = range(2)
ALGORITHMS = ("lz4", "zstd")

zstat_t = Struct("zstat_t", [            # atomically, by who compresses or frees; of all pages that are kept compressed
    ("pages", i64), ("orig_bytes", i64), ("compr_bytes", i64), ("huge_pages", i64), ("failed", i64),
    ("algorithm", i64),
])


@hot
def ztable(machine):
    return u64.array(machine.ztable)


@hot
def zstat_of(machine):
    return zstat_t.at(machine.zstat)


@kernel("void(cpu_t*, i64)")
def zs_free(cpu, entry):
    """Nobody needs what is kept of the entry's page any more."""
    machine = machine_of(cpu)
    if load_acquire(ztable(machine), entry) == U(0):
        return
    address = exchange(ztable(machine), entry, U(0))
    if address == U(0):
        return
    stat, length = zstat_of(machine), i64.array(host_of(cpu, address))[0]
    kfree(cpu, address)
    fetch_add(stat, "pages", -1)
    fetch_add(stat, "orig_bytes", -4096)
    fetch_add(stat, "compr_bytes", -length)
    if length == 4096:
        fetch_add(stat, "huge_pages", -1)


@kernel("bool(cpu_t*, i64, u64)")
def zs_store(cpu, entry, frame):
    """Compress the page at host address `frame` and keep it as the entry's, which has none; False: no memory for it."""
    machine = machine_of(cpu)
    stat, buffer = zstat_of(machine), machine.zbufs + U(cpu.id * ZBUF_BYTES)
    length = np.int64(call_address(machine.on_compress, frame, buffer, U(stat.algorithm)))
    if length <= 0 or length > ZRAM_HUGE:
        length, buffer = 4096, frame
    address = kmalloc_node(cpu, length + HEADER, GFP_NOWAIT | ___GFP_NOWARN, cpu.node)
    if address == U(0):
        fetch_add(stat, "failed", 1)
        return False
    place = host_of(cpu, address)
    i64.array(place)[0] = length
    copy_bytes(place + U(HEADER), buffer, length)
    cpu.clock_base_ns += machine.compress_ns
    ztable(machine)[entry] = address
    fetch_add(stat, "pages", 1)
    fetch_add(stat, "orig_bytes", 4096)
    fetch_add(stat, "compr_bytes", length)
    if length == 4096:
        fetch_add(stat, "huge_pages", 1)
    return True


@kernel("bool(cpu_t*, i64, u64)")
def zs_load(cpu, entry, frame):
    """Decompress the entry's page into the frame at host address `frame`; False: it is not kept here."""
    machine = machine_of(cpu)
    address = ztable(machine)[entry]
    if address == U(0):
        return False
    place = host_of(cpu, address)
    length = i64.array(place)[0]
    if length == 4096:
        copy_bytes(frame, place + U(HEADER), 4096)
    else:
        call_address(machine.on_decompress, place, frame, U(zstat_of(machine).algorithm))
        cpu.clock_base_ns += machine.decompress_ns
    return True
