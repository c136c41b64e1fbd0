"""Reading ahead of a reader: Linux's mm/readahead.c.

    |<----------- size ----------->|
    |          |<-- async_size --->|     the window of an open file; the page at the beginning of async_size is marked
    start                                PG_readahead: who reads it starts the next window, before it needs it

A window is read by one request of the disk. Who starts it only waits, in emulated time, when it comes to a page that
is not there yet (folio_wait_read); a file's requests follow one another.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_or
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.kernel.core.psi import psi_memstall_leave, psi_thrashing_start
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock
from numaemu.kernel.core.xarray import entry_is_page, xa_load
from numaemu.kernel.fs.disk import count_request, disk_time
from numaemu.kernel.fs.inode import FMODE_RANDOM, file_of, i_pages, inode_of, read_block
from numaemu.kernel.include.gfp import ___GFP_NORETRY, ___GFP_NOWARN, GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import PG_locked, PG_readahead, PG_writeback
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.cache.pagemap import (
    READ_CPU_BITS,
    filemap_add_folio,
    filemap_alloc_folio,
    folio_mark_uptodate,
    folio_wait_read,
)
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_test, folio_unlock
from numaemu.mmu import clock_ns
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64
IO_PAGES = 320  # bdi->io_pages: 1280 KiB, of a disk that sets no limit itself (BLK_DEF_MAX_SECTORS_CAP)
READAHEAD_GFP = GFP_HIGHUSER_MOVABLE | ___GFP_NORETRY | ___GFP_NOWARN
NOTHING = -1  # page_cache_prev_miss: all of it is cached, down to page 0


@hot
def longest_wait(machine):
    """No page is waited for longer than two requests take: what a file's clock says is another CPU's, perhaps."""
    return 2 * disk_time(machine, IO_PAGES << PAGE_SHIFT, False)


@kernel("void(cpu_t*, i64)")
def folio_wait(cpu, pfn):
    """Wait until a page that is being read is there (folio_wait_locked)."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    stalled = psi_thrashing_start(cpu, page)
    folio_wait_read(cpu, page, longest_wait(machine))
    psi_memstall_leave(cpu, stalled)


@kernel("i64(cpu_t*, file_t*, i64)")
def submit_request(cpu, file, nbytes):
    """Ask the disk for bytes, behind the file's last request: when they will be there, as page.private has it."""
    machine, now = machine_of(cpu), clock_ns(cpu)
    begin = max(now, min(file.busy_ns, now + longest_wait(machine)))
    file.busy_ns = begin + count_request(cpu, nbytes, False)
    return (file.busy_ns << READ_CPU_BITS) | cpu.id


@kernel("void(cpu_t*, file_t*, inode_t*, i64, i64)")
def read_pages(cpu, file, inode, pfn, nr):
    """One request: fill `nr` locked pages, linked by page.private from `pfn` on; unlock them and drop our references."""
    machine, due = machine_of(cpu), submit_request(cpu, file, nr << PAGE_SHIFT)
    while pfn != 0:
        page = page_of(machine, pfn)
        following, page.private = page.private, due
        read_block(cpu, inode, page.index, frame_of(machine, pfn))
        folio_mark_uptodate(page)
        folio_unlock(page)
        put_page(cpu, pfn)
        pfn = following


@kernel("i64(cpu_t*, inode_t*, i64, i64)")
def add_new_folio(cpu, inode, index, gfp):
    """A new locked page at `index` of a file, with a reference taken: its pfn; 0: no memory, or there is one."""
    machine, pfn = machine_of(cpu), filemap_alloc_folio(cpu, gfp)
    if pfn == 0:
        return 0
    page = page_of(machine, pfn)
    page.private = 0
    page.flags |= U(PG_locked)
    if not filemap_add_folio(cpu, inode.mapping, pfn, index, False):
        page.flags &= ~U(PG_locked)
        put_page(cpu, pfn)
        return 0
    return pfn


@kernel("void(cpu_t*, i64, i64, i64, i64)")
def do_page_cache_ra(cpu, file_number, index, nr, lookahead):
    """Read what is not cached of `nr` pages from `index` on, as far as the file goes; mark the page `lookahead` pages
    before the end. Mirrors do_page_cache_ra and page_cache_ra_unbounded.
    """
    machine = machine_of(cpu)
    file = file_of(machine, file_number)
    inode = inode_of(machine, file.inode)
    mapping, lock = mapping_of(machine, inode.mapping), address_of(inode, "invalidate_lock")
    read_lock(cpu, lock)
    nr = min(nr, i_pages(inode) - index)
    mark, first, last, length = index + nr - lookahead, 0, 0, 0
    for at in range(index, index + nr):
        there = entry_is_page(xa_load(machine, mapping, at))
        pfn = 0 if there else add_new_folio(cpu, inode, at, READAHEAD_GFP)
        if pfn == 0:
            if length > 0:
                read_pages(cpu, file, inode, first, length)
            first, length = 0, 0
            if there:
                continue
            break
        if at == mark and lookahead > 0:
            fetch_or(page_of(machine, pfn), "flags", U(PG_readahead))
        if length == 0:
            first = pfn
        else:
            page_of(machine, last).private = pfn
        last, length = pfn, length + 1
    if length > 0:
        read_pages(cpu, file, inode, first, length)
    read_unlock(lock)


@kernel("void(cpu_t*, i64, i64, i64)")
def force_page_cache_ra(cpu, file_number, index, nr):
    """Read so many pages from `index` on into the cache, whether they are wanted or not; no more than one request takes."""
    do_page_cache_ra(cpu, file_number, index, min(nr, IO_PAGES), 0)


@hot
def roundup_pow_of_two(n):
    power = 1
    while power < n:
        power *= 2
    return power


@hot
def get_init_ra_size(size, most):
    """The first window: 4 or 2 times what is read, or the largest."""
    new = roundup_pow_of_two(size)
    return new * 4 if new <= most // 32 else new * 2 if new <= most // 4 else most


@hot
def get_next_ra_size(size, most):
    """The next window, twice or four times the last."""
    return 4 * size if size < most // 16 else 2 * size if size <= most // 2 else most


@hot
def page_cache_prev_miss(machine, mapping, index, most):
    """The last page at or before `index`, of at most `most`, that is not cached; NOTHING: cached from the beginning."""
    for at in range(index, max(index - most, -1), -1):
        if not entry_is_page(xa_load(machine, mapping, at)):
            return at
    return NOTHING if index - most < 0 else index - most


@hot
def page_cache_next_miss(machine, mapping, index, most):
    """The first page at or after `index`, of at most `most`, that is not cached."""
    for at in range(index, index + most):
        if not entry_is_page(xa_load(machine, mapping, at)):
            return at
    return index + most


@hot
def ractl_max_pages(file, req_count):
    """The largest window of a file, or what is asked for at once, if the disk takes so much in one request."""
    return max(file.ra_pages, min(req_count, IO_PAGES))


@kernel("void(cpu_t*, i64, i64, i64)")
def page_cache_sync_ra(cpu, file_number, index, req_count):
    """A reader of `req_count` pages from `index` on has found nothing there."""
    machine = machine_of(cpu)
    file = file_of(machine, file_number)
    if file.f_mode & FMODE_RANDOM:
        force_page_cache_ra(cpu, file_number, index, req_count)
        return
    most = ractl_max_pages(file, req_count)
    mapping = mapping_of(machine, inode_of(machine, file.inode).mapping)
    jump = index - (file.prev_pos >> PAGE_SHIFT)
    if index == 0 or req_count > most or jump == 0 or jump == 1:
        size = get_init_ra_size(req_count, most)
        file.start, file.size = index, size
        file.async_size = size - req_count if size > req_count else size >> 1
    else:
        miss = page_cache_prev_miss(machine, mapping, index - 1, most)
        contiguous = index - miss - 1
        if contiguous <= req_count:  # a small random read
            do_page_cache_ra(cpu, file_number, index, req_count, 0)
            return
        if miss == NOTHING:  # a reader of the whole file
            contiguous *= 2
        file.start, file.size, file.async_size = index, min(contiguous + req_count, most), 1
    do_page_cache_ra(cpu, file_number, file.start, file.size, file.async_size)


@kernel("void(cpu_t*, i64, i64, i64)")
def page_cache_async_ra(cpu, file_number, pfn, req_count):
    """A reader of `req_count` pages has come to the marked page: read the next window."""
    machine = machine_of(cpu)
    file, page = file_of(machine, file_number), page_of(machine, pfn)
    if folio_test(page, PG_writeback) or not folio_clear(page, PG_readahead):
        return
    index, size, most = page.index, file.size, ractl_max_pages(file, req_count)
    if index == file.start + size - file.async_size:  # as expected
        file.start += size
        size = get_next_ra_size(size, most)
    else:  # several readers of one file: look how far the window goes
        mapping = mapping_of(machine, inode_of(machine, file.inode).mapping)
        start = page_cache_next_miss(machine, mapping, index + 1, most)
        if start - index > most:
            return
        file.start = start
        size = get_next_ra_size(start - index + req_count, most)
    file.size = file.async_size = size
    do_page_cache_ra(cpu, file_number, file.start, size, size)


@kernel("void(cpu_t*, i64, i64)")
def page_cache_ra_around(cpu, file_number, index):
    """A fault has found nothing: read the window around it (the read-around of do_sync_mmap_readahead)."""
    file = file_of(machine_of(cpu), file_number)
    file.start = max(index - file.ra_pages // 2, 0)
    file.size, file.async_size = file.ra_pages, file.ra_pages // 4
    do_page_cache_ra(cpu, file_number, file.start, file.size, file.async_size)
