"""The kinds of heaps. Each is a file of this room with the same functions, of which nothing is compiled before a heap of it is made.

    setup(cpu, heap)                 make the empty heap; False: no memory
    malloc(cpu, heap, nbytes)        a block's address, or 0
    free(cpu, heap, block)           0, or what is wrong with the block (errors.py)
    realloc(cpu, heap, block, nbytes), aligned_alloc(cpu, heap, alignment, nbytes), usable_size(cpu, heap, block)
    examine(cpu, heap, block)        what is wrong with a block; asked(cpu, heap, block): what was asked for
    trim(cpu, heap, keep)            bytes given back
    blocks(cpu, heap), lists(cpu, heap)     rows for the checker (rows.py)
    refuse(cpu, heap, wrong, block)  raise the HeapError for a block; a far function, which no caller of `free` holds
    SETTINGS, ALIGNMENT              {option: its choices, the default first}, POLICY is the number of the choice; bytes

All are called with the heap's lock held, and malloc and realloc with no request above the heap's MMAP_THRESHOLD. A kind whose OWN_BIG
is True gets every request, one whose OWN_LOCKS is True also without the lock: then it has lock_all, unlock_all and held, too.
"""

from numaemu.malloc import buddy, dlmalloc, explicit, implicit, ptmalloc, segregated

MODULES = {
    "implicit": implicit,
    "explicit": explicit,
    "segregated": segregated,
    "buddy": buddy,
    "dlmalloc": dlmalloc,
    "ptmalloc": ptmalloc,
}
KINDS = tuple(MODULES)


def kind_module(kind):
    """The file of a kind."""
    return MODULES[kind]
