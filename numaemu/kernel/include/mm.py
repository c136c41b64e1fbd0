"""Bytes, pages and addresses, and how one is made the other: Linux's include/linux/mm.h, pfn.h, pagemap.h and asm/page.h.

A page number, a count and an offset in a file are signed, an address is not. So an address takes U(PAGE_SIZE), U(PAGE_SHIFT) and
PAGE_MASK (a u64 with the bits of a page's address), everything else PAGE_SIZE and PAGE_SHIFT.
"""

import numpy as np

from numaemu.compiler.decorators import hot
from numaemu.hardware.paging import PAGE_MASK
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64


@hot
def PFN_UP(nbytes):
    """How many pages hold so many bytes."""
    return (nbytes + (PAGE_SIZE - 1)) >> PAGE_SHIFT


@hot
def offset_in_page(pos):
    """How far into its page a place in a file is, in bytes."""
    return pos & (PAGE_SIZE - 1)


@hot
def page_align(length):
    """A u64 rounded up to whole pages; 0 if that is more than a word holds. Mirrors PAGE_ALIGN."""
    return (length + ~PAGE_MASK) & PAGE_MASK if length <= PAGE_MASK else U(0)


@hot
def vma_pages(vma):
    """How many pages a VMA has."""
    return np.int64((vma.end - vma.start) >> U(PAGE_SHIFT))


@hot
def linear_page_index(vma, address):
    """The page of what a VMA maps (a file, shared memory) that lies at an address."""
    return vma.pgoff + np.int64((address - vma.start) >> U(PAGE_SHIFT))


@hot
def frame_of(machine, pfn):
    """Where the host has a frame."""
    return machine.memory + (U(pfn) << U(PAGE_SHIFT))
