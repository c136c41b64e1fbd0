"""malloc and its like in user kernels: malloc(cpu, heap, nbytes), where `heap` is the Heap that the kernel was called with.

Compiled code knows a heap as its address and, in the type, its kind; so a user kernel holds the calls of the kinds that it is
called with, and no others are compiled.
"""

import functools
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import NativeValue, models, overload, register_model, typeof_impl, unbox

from numaemu.api.access import get, memclear, memcpy
from numaemu.compiler.build import JIT
from numaemu.compiler.library import library
from numaemu.compiler.pipeline import Short
from numaemu.compiler.pointer import compiled_twin
from numaemu.malloc.big import big_asked, big_blocks, big_free, big_malloc, big_realloc, big_usable, is_big
from numaemu.malloc.control import BIG_LIST, MMAP_THRESHOLD, MOST_BYTES, account, lock, unlock
from numaemu.malloc.errors import WILD
from numaemu.malloc.kinds import kind_module
from numaemu.malloc.rows import COLUMNS

FRONT: Any = dict(
    pipeline_class=Short, no_cpython_wrapper=True, no_cfunc_wrapper=True
)  # of what only compiled code calls


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


@library
def no_lock(cpu, heap):
    """For kinds that lock for themselves."""


def locks_of(of):
    """What takes and gives the lock of a heap around a call of a kind."""
    return (no_lock, no_lock) if getattr(of, "OWN_LOCKS", False) else (lock, unlock)


def big_locks_of(of):
    """What takes and gives the lock that keeps the list of big blocks, where that is not taken already."""
    return (lock, unlock) if getattr(of, "OWN_LOCKS", False) else (no_lock, no_lock)


def part(function):
    """A front that another one calls: compiled with it."""
    return numba.njit(**FRONT, nogil=True, error_model="numpy")(function) if JIT else function


@functools.cache
def malloc_of(kind, accounts):
    """`malloc` of one kind of heap."""
    of = kind_module(kind)
    take, give = locks_of(of)
    kind_malloc, own_big = of.malloc, getattr(of, "OWN_BIG", False)

    def malloc(cpu, heap, nbytes):
        at = word_of(heap)
        take(cpu, at)
        if not own_big and nbytes >= get(cpu, at + MMAP_THRESHOLD):
            block = big_malloc(cpu, at, nbytes)
        else:
            block = kind_malloc(cpu, at, nbytes)
        give(cpu, at)
        if accounts and block != 0:
            account(cpu, at, nbytes)
        return block

    return malloc


@functools.cache
def aligned_alloc_of(kind, accounts):
    """`aligned_alloc` of one kind of heap."""
    of = kind_module(kind)
    take, give = locks_of(of)
    kind_aligned, natural, kind_malloc = of.aligned_alloc, of.ALIGNMENT, part(malloc_of(kind, accounts))

    def aligned_alloc(cpu, heap, alignment, nbytes):
        if alignment < 1 or alignment & (alignment - 1) != 0 or max(alignment, nbytes) > MOST_BYTES or nbytes <= 0:
            return 0
        if alignment <= natural:
            return kind_malloc(cpu, heap, nbytes)
        at = word_of(heap)
        take(cpu, at)
        block = kind_aligned(cpu, at, alignment, nbytes)
        give(cpu, at)
        if accounts and block != 0:
            account(cpu, at, nbytes)
        return block

    return aligned_alloc


@functools.cache
def free_of(kind, accounts):
    """`free` of one kind of heap."""
    of = kind_module(kind)
    take, give = locks_of(of)
    big_take, big_give = big_locks_of(of)
    kind_free, refuse, kind_examine, kind_asked = of.free, of.refuse, of.examine, of.asked

    def free(cpu, heap, block):
        at, wrong, nbytes = word_of(heap), 0, 0
        if block == 0:
            return
        take(cpu, at)
        if accounts:
            wrong = kind_examine(cpu, at, block)
            if wrong == 0:
                nbytes = kind_asked(cpu, at, block)
        if wrong == 0:
            wrong = kind_free(cpu, at, block)
        if wrong == WILD:
            big_take(cpu, at)
            if is_big(cpu, at, block):
                nbytes, wrong = big_asked(cpu, block), 0
                big_free(cpu, at, block)
            big_give(cpu, at)
        give(cpu, at)
        if wrong != 0:
            refuse(cpu, at, wrong, block)
        if accounts:
            account(cpu, at, -nbytes)

    return free


@functools.cache
def usable_size_of(kind):
    """`usable_size` of one kind of heap."""
    of = kind_module(kind)
    take, give = locks_of(of)
    big_take, big_give = big_locks_of(of)
    kind_usable, refuse, kind_examine = of.usable_size, of.refuse, of.examine

    def usable_size(cpu, heap, block):
        at = word_of(heap)
        if block == 0:
            return 0
        take(cpu, at)
        wrong, size = kind_examine(cpu, at, block), 0
        if wrong == 0:
            size = kind_usable(cpu, at, block)
        elif wrong == WILD:
            big_take(cpu, at)
            if is_big(cpu, at, block):
                wrong, size = 0, big_usable(cpu, block)
            big_give(cpu, at)
        give(cpu, at)
        if wrong != 0:
            refuse(cpu, at, wrong, block)
        return size

    return usable_size


@functools.cache
def realloc_of(kind, accounts):
    """`realloc` of one kind of heap."""
    of = kind_module(kind)
    take, give = locks_of(of)
    big_take, big_give = big_locks_of(of)
    kind_realloc, kind_examine, kind_asked = of.realloc, of.examine, of.asked
    new_block, old_size = part(malloc_of(kind, accounts)), part(usable_size_of(kind))
    free_block, own_big = part(free_of(kind, accounts)), getattr(of, "OWN_BIG", False)

    def realloc(cpu, heap, block, nbytes):
        at, new, before = word_of(heap), -1, 0
        if block == 0:
            return new_block(cpu, heap, nbytes)
        if nbytes == 0:
            free_block(cpu, heap, block)
        if nbytes <= 0:
            return 0
        take(cpu, at)
        threshold = get(cpu, at + MMAP_THRESHOLD)
        wrong = kind_examine(cpu, at, block)
        if wrong == 0 and (own_big or nbytes < threshold):
            before = kind_asked(cpu, at, block) if accounts else 0
            new = kind_realloc(cpu, at, block, nbytes)
        elif wrong == WILD and nbytes >= threshold:
            big_take(cpu, at)
            if is_big(cpu, at, block):
                before = big_asked(cpu, block)
                new = big_realloc(cpu, at, block, nbytes)
            big_give(cpu, at)
        give(cpu, at)
        if new < 0:  # from or to a mapping of its own, or no block
            room = old_size(cpu, heap, block)
            new = new_block(cpu, heap, nbytes)
            if new != 0:
                memcpy(cpu, new, block, min(nbytes, room))
                free_block(cpu, heap, block)
        elif accounts and new != 0:
            account(cpu, at, nbytes - before)
        return new

    return realloc


def malloc(cpu, heap, nbytes):
    """`nbytes` bytes of the heap: the block's address, or 0: there is no more, or nothing was asked for."""
    return malloc_of(heap.kind, heap.accounts)(cpu, heap, nbytes)


def free(cpu, heap, block):
    """Give a block back; of 0 nothing happens. HeapError: it is none."""
    free_of(heap.kind, heap.accounts)(cpu, heap, block)


def realloc(cpu, heap, block, nbytes):
    """The block with another size, perhaps elsewhere: its address, or 0 (and the block stays as it is; 0 bytes: it is freed)."""
    return realloc_of(heap.kind, heap.accounts)(cpu, heap, block, nbytes)


def aligned_alloc(cpu, heap, alignment, nbytes):
    """As malloc, at a multiple of `alignment`; 0 if that is no power of two."""
    return aligned_alloc_of(heap.kind, heap.accounts)(cpu, heap, alignment, nbytes)


def usable_size(cpu, heap, block):
    """How many bytes a block has room for, malloc_usable_size; of 0 none."""
    return usable_size_of(heap.kind)(cpu, heap, block)


def calloc(cpu, heap, number, nbytes):
    """As malloc for `number` things of `nbytes` bytes, zeroed; 0 if the product is more than there can be."""
    if number < 0 or nbytes <= 0 or number > MOST_BYTES // nbytes:
        return 0
    block = malloc(cpu, heap, number * nbytes)
    if block != 0:
        memclear(cpu, block, number * nbytes)
    return block


@overload(malloc, jit_options=FRONT)
def _(cpu, heap, nbytes):
    return malloc_of(heap.kind, heap.accounts) if isinstance(heap, HeapType) else None


@overload(free, jit_options=FRONT)
def _(cpu, heap, block):
    return free_of(heap.kind, heap.accounts) if isinstance(heap, HeapType) else None


@overload(realloc, jit_options=FRONT)
def _(cpu, heap, block, nbytes):
    return realloc_of(heap.kind, heap.accounts) if isinstance(heap, HeapType) else None


@overload(aligned_alloc, jit_options=FRONT)
def _(cpu, heap, alignment, nbytes):
    return aligned_alloc_of(heap.kind, heap.accounts) if isinstance(heap, HeapType) else None


@overload(usable_size, jit_options=FRONT)
def _(cpu, heap, block):
    return usable_size_of(heap.kind) if isinstance(heap, HeapType) else None


@overload(calloc, jit_options=FRONT)
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
    rows = np.zeros(
        (0 if get(cpu, at + BIG_LIST) == 0 else big_blocks(cpu, at, np.zeros((0, COLUMNS), np.int64)), COLUMNS),
        np.int64,
    )
    big_blocks(cpu, at, rows)
    return rows
