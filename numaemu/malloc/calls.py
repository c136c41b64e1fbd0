"""malloc and its like in user kernels: malloc(cpu, heap, nbytes), where `heap` is the Heap that the kernel was called with.

Compiled code knows a heap as its address and, in the type, its kind; so a user kernel holds the calls of the kinds that it is
called with, and no others are compiled.
"""

import functools
import types as python_types

import numpy as np
from numba import types
from numba.extending import NativeValue, models, overload, register_model, typeof_impl, unbox

from numaemu.api.access import get, memclear, memcpy
from numaemu.compiler.library import library
from numaemu.compiler.pointer import compiled_twin
from numaemu.malloc.big import big_asked, big_blocks, big_free, big_malloc, big_usable, is_big
from numaemu.malloc.control import BIG_LIST, MMAP_THRESHOLD, account, lock, unlock
from numaemu.malloc.errors import WILD
from numaemu.malloc.kinds import kind_module
from numaemu.malloc.rows import COLUMNS, complain


class HeapWord:
    """What compiled code is told of a heap: where its control words lie, its kind, and whether it keeps accounts."""

    def __init__(self, address, kind, accounts):
        self.address, self.kind, self.accounts = address, kind, accounts


class HeapType(types.Type):
    """A heap in compiled code: one address."""

    def __init__(self, kind, accounts):
        self.kind, self.accounts = kind, accounts
        super().__init__(name=f"Heap({kind}{', accounts' if accounts else ''})")


@register_model(HeapType)
class _HeapModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, dmm.lookup(types.int64).get_value_type())


typeof_impl.register(HeapWord)(lambda value, context: HeapType(value.kind, value.accounts))


@unbox(HeapType)
def _(typ, obj, c):
    address = c.pyapi.object_getattr_string(obj, "address")
    value = c.pyapi.long_as_longlong(address)
    c.pyapi.decref(address)
    return NativeValue(value)


def word_of(heap):
    """Where the control words of a heap lie."""
    return heap.address


@compiled_twin(word_of)
def _(heap):
    if isinstance(heap, HeapType):
        return types.int64, lambda context, builder, sig, args: args[0]


@functools.cache
def front(kind, accounts):
    """The calls of one kind of heap."""
    of = kind_module(kind)
    own_locks = getattr(of, "OWN_LOCKS", False)
    kind_malloc, kind_free, kind_realloc, kind_blocks = of.malloc, of.free, of.realloc, of.blocks
    kind_aligned, kind_usable, kind_examine, kind_asked = of.aligned_alloc, of.usable_size, of.examine, of.asked
    alignment_of_all = of.ALIGNMENT

    def malloc(cpu, heap, nbytes):
        at = word_of(heap)
        if own_locks:
            block = kind_malloc(cpu, at, nbytes)
        else:
            lock(cpu, at)
            if nbytes >= get(cpu, at + MMAP_THRESHOLD):
                block = big_malloc(cpu, at, nbytes)
            else:
                block = kind_malloc(cpu, at, nbytes)
            unlock(cpu, at)
        if accounts and block != 0:
            account(cpu, at, nbytes)
        return block

    def aligned_alloc(cpu, heap, alignment, nbytes):
        if alignment <= alignment_of_all:
            return malloc_here(cpu, heap, nbytes)
        at = word_of(heap)
        if not own_locks:
            lock(cpu, at)
        block = kind_aligned(cpu, at, alignment, nbytes)
        if not own_locks:
            unlock(cpu, at)
        if accounts and block != 0:
            account(cpu, at, nbytes)
        return block

    def free(cpu, heap, block):
        at, wrong, nbytes = word_of(heap), 0, 0
        if block == 0:
            return
        if not own_locks:
            lock(cpu, at)
        if accounts:
            wrong = kind_examine(cpu, at, block)
            if wrong == 0:
                nbytes = kind_asked(cpu, at, block)
        if wrong == 0:
            wrong = kind_free(cpu, at, block)
        if wrong == WILD and is_big(cpu, at, block):
            nbytes, wrong = big_asked(cpu, block), 0
            big_free(cpu, at, block)
        if not own_locks:
            unlock(cpu, at)
        if wrong != 0:
            complain(kind_blocks(cpu, at), wrong, block)
        if accounts:
            account(cpu, at, -nbytes)

    def usable_size(cpu, heap, block):
        at = word_of(heap)
        if not own_locks:
            lock(cpu, at)
        wrong, size = kind_examine(cpu, at, block), 0
        if wrong == 0:
            size = kind_usable(cpu, at, block)
        elif wrong == WILD and is_big(cpu, at, block):
            wrong, size = 0, big_usable(cpu, block)
        if not own_locks:
            unlock(cpu, at)
        if wrong != 0:
            complain(kind_blocks(cpu, at), wrong, block)
        return size

    def realloc(cpu, heap, block, nbytes):
        at = word_of(heap)
        if block == 0:
            return malloc_here(cpu, heap, nbytes)
        if nbytes <= 0:
            free_here(cpu, heap, block)
            return 0
        if own_locks:
            wrong, new, before = kind_examine(cpu, at, block), -1, 0
            if wrong == 0:
                before = kind_asked(cpu, at, block)
                new = kind_realloc(cpu, at, block, nbytes)
        else:
            lock(cpu, at)
            wrong, new, before = kind_examine(cpu, at, block), -1, 0
            if wrong == 0 and nbytes < get(cpu, at + MMAP_THRESHOLD):
                before = kind_asked(cpu, at, block)
                new = kind_realloc(cpu, at, block, nbytes)
            unlock(cpu, at)
        if wrong == 0 and new >= 0:
            if accounts and new != 0:
                account(cpu, at, nbytes - before)
            return new
        room = usable_here(cpu, heap, block)  # from or to a mapping of its own
        new = malloc_here(cpu, heap, nbytes)
        if new != 0:
            memcpy(cpu, new, block, min(nbytes, room))
            free_here(cpu, heap, block)
        return new

    malloc_here, free_here, usable_here = (library_part(f) for f in (malloc, free, usable_size))
    return python_types.SimpleNamespace(
        malloc=malloc, free=free, realloc=realloc, aligned_alloc=aligned_alloc, usable_size=usable_size
    )


def library_part(function):
    """A front that another one calls: compiled with it."""
    import numba

    from numaemu.compiler.build import JIT

    return numba.njit(nogil=True, error_model="numpy")(function) if JIT else function


def malloc(cpu, heap, nbytes):
    """`nbytes` bytes of the heap: the block's address, or 0: there is no more, or nothing was asked for."""
    return front(heap.kind, heap.accounts).malloc(cpu, heap, nbytes)


def free(cpu, heap, block):
    """Give a block back; of 0 nothing happens. HeapError: it is none."""
    front(heap.kind, heap.accounts).free(cpu, heap, block)


def realloc(cpu, heap, block, nbytes):
    """The block with another size, perhaps elsewhere: its address, or 0 (and the block stays as it is)."""
    return front(heap.kind, heap.accounts).realloc(cpu, heap, block, nbytes)


def aligned_alloc(cpu, heap, alignment, nbytes):
    """As malloc, at a multiple of `alignment`, which is a power of two."""
    return front(heap.kind, heap.accounts).aligned_alloc(cpu, heap, alignment, nbytes)


def usable_size(cpu, heap, block):
    """How many bytes a block has room for, malloc_usable_size."""
    return front(heap.kind, heap.accounts).usable_size(cpu, heap, block)


def calloc(cpu, heap, number, nbytes):
    """As malloc for `number` things of `nbytes` bytes, zeroed."""
    block = malloc(cpu, heap, number * nbytes)
    if block != 0:
        memclear(cpu, block, number * nbytes)
    return block


@overload(malloc)
def _(cpu, heap, nbytes):
    return front(heap.kind, heap.accounts).malloc if isinstance(heap, HeapType) else None


@overload(free)
def _(cpu, heap, block):
    return front(heap.kind, heap.accounts).free if isinstance(heap, HeapType) else None


@overload(realloc)
def _(cpu, heap, block, nbytes):
    return front(heap.kind, heap.accounts).realloc if isinstance(heap, HeapType) else None


@overload(aligned_alloc)
def _(cpu, heap, alignment, nbytes):
    return front(heap.kind, heap.accounts).aligned_alloc if isinstance(heap, HeapType) else None


@overload(usable_size)
def _(cpu, heap, block):
    return front(heap.kind, heap.accounts).usable_size if isinstance(heap, HeapType) else None


@overload(calloc)
def _(cpu, heap, number, nbytes):
    return calloc if isinstance(heap, HeapType) else None


# -- the same for the object that a workload holds, one user kernel each


@library
def call_malloc(cpu, heap, nbytes):
    return malloc(cpu, heap, nbytes)


@library
def call_calloc(cpu, heap, number, nbytes):
    return calloc(cpu, heap, number, nbytes)


@library
def call_realloc(cpu, heap, block, nbytes):
    return realloc(cpu, heap, block, nbytes)


@library
def call_aligned_alloc(cpu, heap, alignment, nbytes):
    return aligned_alloc(cpu, heap, alignment, nbytes)


@library
def call_free(cpu, heap, block):
    free(cpu, heap, block)


@library
def call_usable_size(cpu, heap, block):
    return usable_size(cpu, heap, block)


@library
def call_big_blocks(cpu, heap):
    """A row for each block with a mapping of its own."""
    at = word_of(heap)
    rows = np.zeros((0 if get(cpu, at + BIG_LIST) == 0 else big_blocks(cpu, at, np.zeros((0, COLUMNS), np.int64)), COLUMNS), np.int64)
    big_blocks(cpu, at, rows)
    return rows


@library
def call_lock(cpu, heap):
    lock(cpu, word_of(heap))


@library
def call_unlock(cpu, heap):
    unlock(cpu, word_of(heap))
