"""Which pages nobody has used since a watcher last marked them: Linux's mm/page_idle.c, /sys/kernel/mm/page_idle/bitmap.

A watcher marks pages as idle, waits, and looks which ones still are. An access is seen by the Accessed bits of the entries that map
the page; they are taken back at each look, and PG_young tells reclaim that there was one. Pages on no LRU list are never idle.
Addresses that a TLB holds are used unnoticed for a while, as on x86.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_and, fetch_or, load_acquire
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import u64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import PG_idle, PG_lru, PG_tail, PG_young
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.fault.rmap import REFERENCED_EXEC, REFERENCED_LOCKED, folio_clear_young_ptes
from numaemu.kernel.mm.page_alloc.page_alloc import put_page, try_get_page
from numaemu.kernel.mm.reclaim.lru import folio_test, folio_trylock, folio_unlock

U = np.uint64
BITMAP_CHUNK_BITS = 64  # pages of a word


@hot
def is_user_folio(page):
    """A page on an LRU list, and no tail of one."""
    return load_acquire(page, "flags") & U(PG_lru | PG_tail) == U(PG_lru)


@kernel("bool(machine_t*, i64)")
def page_idle_get_folio(machine, pfn):
    """Hold the page that a frame holds, if it is one that could be idle. Mirrors page_idle_get_folio."""
    page = page_of(machine, pfn)
    return is_user_folio(page) and try_get_page(page)


@kernel("void(cpu_t*, i64)")
def page_idle_clear_pte_refs(cpu, pfn):
    """Take back what entries say of accesses: after one the page is not idle, and reclaim is to know. A page that somebody else has
    locked is left as it is.
    """
    page = page_of(machine_of(cpu), pfn)
    if not folio_trylock(page):
        return
    if folio_clear_young_ptes(cpu, pfn) & ~(REFERENCED_LOCKED | REFERENCED_EXEC) != 0:
        fetch_and(page, "flags", ~U(PG_idle))
        fetch_or(page, "flags", U(PG_young))
    folio_unlock(page)


@kernel("u64(cpu_t*, i64)")
def idle_word(cpu, first):
    """A bit for each of 64 frames: it holds a page that is idle."""
    machine, word = machine_of(cpu), U(0)
    for i in range(min(BITMAP_CHUNK_BITS, machine.max_pfn - first)):
        page = page_of(machine, first + i)
        if not folio_test(page, PG_idle) or not page_idle_get_folio(machine, first + i):
            continue
        page_idle_clear_pte_refs(cpu, first + i)
        if is_user_folio(page) and folio_test(page, PG_idle):
            word |= U(1) << U(i)
        put_page(cpu, first + i)
    return word


@kernel("void(cpu_t*, i64, u64)")
def set_idle_word(cpu, first, word):
    """Mark pages as idle from now on; a bit that is 0 changes nothing."""
    machine = machine_of(cpu)
    for i in range(min(BITMAP_CHUNK_BITS, machine.max_pfn - first)):
        if (word >> U(i)) & U(1) == U(0) or not page_idle_get_folio(machine, first + i):
            continue
        page = page_of(machine, first + i)
        page_idle_clear_pte_refs(cpu, first + i)
        if is_user_folio(page):
            fetch_or(page, "flags", U(PG_idle))
        put_page(cpu, first + i)


@entry("void(u64, i64, i64, u64)", nogil=True)
def page_idle_bitmap_read(cpu_address, first, nr_words, out):
    """Words of 64 frames each from frame `first` on, into host memory at `out`."""
    words = u64.array(out)
    for i in range(nr_words):
        words[i] = idle_word(cpu_t.at(cpu_address), first + i * BITMAP_CHUNK_BITS)


@entry("void(u64, i64, i64, u64)", nogil=True)
def page_idle_bitmap_write(cpu_address, first, nr_words, source):
    """The same the other way round: frames whose bit is 1 are idle."""
    words = u64.array(source)
    for i in range(nr_words):
        set_idle_word(cpu_t.at(cpu_address), first + i * BITMAP_CHUNK_BITS, words[i])
