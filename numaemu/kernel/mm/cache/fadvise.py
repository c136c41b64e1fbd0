"""posix_fadvise(2): Linux's mm/fadvise.c."""

import numpy as np

from numaemu.compiler.decorators import kernel
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.core.xarray import MAX_INDEX
from numaemu.kernel.fs.inode import FMODE_RANDOM, RA_PAGES, file_of, inode_of
from numaemu.kernel.include.mm import PFN_UP, offset_in_page
from numaemu.kernel.mm.cache.page_writeback import filemap_write_and_wait_range
from numaemu.kernel.mm.cache.readahead import force_page_cache_ra
from numaemu.kernel.mm.cache.truncate import invalidate_mapping_pages
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain, lru_add_drain_all
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import (
    POSIX_FADV_DONTNEED,
    POSIX_FADV_NORMAL,
    POSIX_FADV_RANDOM,
    POSIX_FADV_SEQUENTIAL,
    POSIX_FADV_WILLNEED,
    errno,
)

U = np.uint64
EINVAL = errno.EINVAL
NO_END = 1 << 62


@kernel("void(cpu_t*, i64, i64, i64)")
def fadvise_dontneed(cpu, number, offset, endbyte):
    """Write what is dirty of an inode between two bytes, and drop its whole pages, as far as nobody uses them.

    The last page of the file is whole however long it is. Linux only starts the writing, and what is being written stays.
    """
    inode = inode_of(machine_of(cpu), number)
    filemap_write_and_wait_range(cpu, number, offset >> PAGE_SHIFT, min((endbyte >> PAGE_SHIFT) + 1, MAX_INDEX))
    start, end = PFN_UP(offset), endbyte >> PAGE_SHIFT
    if offset_in_page(endbyte) != PAGE_SIZE - 1 and endbyte != inode.i_size - 1:
        end -= 1
    if end < start:
        return
    lru_add_drain(cpu)
    end = min(end + 1, MAX_INDEX)
    if invalidate_mapping_pages(cpu, number, start, end) < 0:  # some wait in another CPU's batch, perhaps
        lru_add_drain_all(cpu)
        invalidate_mapping_pages(cpu, number, start, end)


@kernel("i64(cpu_t*, i64, i64, i64, i64)")
def generic_fadvise(cpu, file_number, offset, length, advice):
    """posix_fadvise(2) about an open file: 0 or -EINVAL. Files in memory ignore it."""
    file = file_of(machine_of(cpu), file_number)
    if length < 0 or advice < POSIX_FADV_NORMAL or advice > POSIX_FADV_DONTNEED + 1:
        return -EINVAL
    if inode_of(machine_of(cpu), file.inode).object != 0:
        return 0
    endbyte = NO_END if length == 0 or offset > NO_END - length else offset + length - 1
    if advice == POSIX_FADV_RANDOM:
        file.f_mode |= FMODE_RANDOM
    elif advice == POSIX_FADV_NORMAL or advice == POSIX_FADV_SEQUENTIAL:
        file.ra_pages = RA_PAGES if advice == POSIX_FADV_NORMAL else 2 * RA_PAGES
        file.f_mode &= ~FMODE_RANDOM
    elif advice == POSIX_FADV_WILLNEED:
        force_page_cache_ra(
            cpu, file_number, offset >> PAGE_SHIFT, (endbyte >> PAGE_SHIFT) - (offset >> PAGE_SHIFT) + 1
        )
    elif advice == POSIX_FADV_DONTNEED:
        fadvise_dontneed(cpu, file.inode, offset, endbyte)
    return 0
