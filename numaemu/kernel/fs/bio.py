"""Requests that write pages of swap to the disk: Linux's block/bio.c, and what of block/blk-mq.c gathers them.

    bio_alloc      a bio for each page, from the slab cache of fs_bio_set
    submit_bio     plug: bios for neighbouring slots join one request, up to BLK_MAX_SEGMENTS of them
    blk_flush_plug the request goes to the disk, which does one after the other
    bio_endio      the disk is done with a request: its bios go back to their cache

So as many bios are in use as pages are under way: MADV_PAGEOUT of a large range needs one for each page of it before the first
is done. Each context has its own queue, whose time is its own clock's, as the flusher's is (page_writeback.py).

A bio is an object of 200 bytes; of its words these are used:

    0 bi_next: the next bio of its request    1 the next request    2 emulated ns when the disk is done with the request
                                              `----------- of the first bio of a request -----------'
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, i64, u64
from numaemu.kernel.core.psi import account_iowait
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import __GFP_DIRECT_RECLAIM, __GFP_NOMEMALLOC, __GFP_NORETRY, __GFP_NOWARN, GFP_NOIO
from numaemu.kernel.mm.slab.slab import host_of
from numaemu.kernel.mm.slab.slub import slab_alloc_node
from numaemu.kernel.mm.slab.slub_free import slab_free
from numaemu.mmu import clock_ns

U = np.uint64
BIO_BYTES = 200  # struct bio of Linux 6.12 as distributions configure it, and BIO_INLINE_VECS (4) of 16 bytes
BLK_MAX_SEGMENTS = 128  # of a request, one for each bio: include/linux/blkdev.h
GFP_MEMPOOL = (
    (GFP_NOIO & ~__GFP_DIRECT_RECLAIM) | __GFP_NOMEMALLOC | __GFP_NORETRY | __GFP_NOWARN
)  # mempool_alloc's first try
_BI_NEXT, _NEXT_REQUEST, _END_NS = range(3)

# Shared words of bio_queue_t: the word | its writer | why a reader may trust it.
# - all | Its context. | The context only.
# fmt: off
bio_queue_t = Struct("bio_queue_t", [
    ("plug", u64), ("plug_last", u64),     # the request that is gathered: its first and last bio, 0: none
    ("plug_pages", i64),                   # its pages; some may have no bio
    ("plug_next", i64),                    # the swap entry that would continue it
    ("issued", u64), ("issued_last", u64), # requests that the disk has not done yet
    ("until_ns", i64),                     # when it is done with all, by the context's clock
    ("_pad", u64),
])
# fmt: on


@hot
def bio_queue_of(cpu):
    return bio_queue_t.array(machine_of(cpu).bio_queues)[cpu.id]


@hot
def bio_words(cpu, bio):
    return u64.array(host_of(cpu, bio))


@kernel("void(cpu_t*, u64)")
def bio_endio(cpu, bio):
    """The disk is done with a request: bio_put for each of its bios."""
    while bio != U(0):
        following = bio_words(cpu, bio)[_BI_NEXT]
        slab_free(cpu, machine_of(cpu).bio_slab, bio)
        bio = following


@kernel("void(cpu_t*)")
def blk_complete(cpu):
    """End the requests that the disk has done by now."""
    queue = bio_queue_of(cpu)
    while queue.issued != U(0) and bio_words(cpu, queue.issued)[_END_NS] <= U(clock_ns(cpu)):
        request = queue.issued
        queue.issued = bio_words(cpu, request)[_NEXT_REQUEST]
        bio_endio(cpu, request)


@kernel("void(cpu_t*)")
def blk_flush_plug(cpu):
    """Give the disk what has been gathered; it begins when it is done with what it had."""
    queue = bio_queue_of(cpu)
    if queue.plug_pages == 0:
        return
    queue.until_ns = max(queue.until_ns, clock_ns(cpu)) + queue.plug_pages * machine_of(cpu).disk_page_ns
    if queue.plug != U(0):
        bio_words(cpu, queue.plug)[_END_NS] = U(queue.until_ns)
        if queue.issued == U(0):
            queue.issued = queue.plug
        else:
            bio_words(cpu, queue.issued_last)[_NEXT_REQUEST] = queue.plug
        queue.issued_last = queue.plug
    queue.plug, queue.plug_pages = U(0), 0


@kernel("void(cpu_t*)")
def blk_wait(cpu):
    """Wait until the disk has all that this context has given it."""
    queue = bio_queue_of(cpu)
    blk_flush_plug(cpu)
    left_ns = queue.until_ns - clock_ns(cpu)
    if left_ns > 0:
        account_iowait(cpu, left_ns)
    blk_complete(cpu)


@kernel("u64(cpu_t*)")
def bio_alloc(cpu):
    """A bio. Where there is no memory it waits for those under way, and goes without one, as with an element of the mempool, if
    there is none even then (0).
    """
    bio = slab_alloc_node(cpu, machine_of(cpu).bio_slab, GFP_MEMPOOL, -1)
    if bio == U(0):
        blk_wait(cpu)
        bio = slab_alloc_node(cpu, machine_of(cpu).bio_slab, GFP_MEMPOOL, -1)
    return bio


@kernel("void(cpu_t*, i64)")
def submit_bio(cpu, entry):
    """The disk is to have the page of a swap entry; `blk_wait` ends it."""
    queue, bio = bio_queue_of(cpu), bio_alloc(cpu)
    if entry != queue.plug_next or queue.plug_pages >= BLK_MAX_SEGMENTS:
        blk_flush_plug(cpu)
    if bio != U(0):
        words = bio_words(cpu, bio)
        words[_BI_NEXT] = words[_NEXT_REQUEST] = U(0)
        if queue.plug == U(0):
            queue.plug = bio
        else:
            bio_words(cpu, queue.plug_last)[_BI_NEXT] = bio
        queue.plug_last = bio
    queue.plug_pages += 1
    queue.plug_next = entry + 1
    blk_complete(cpu)
