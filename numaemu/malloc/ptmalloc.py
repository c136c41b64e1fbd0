"""Wolfram Gloger's ptmalloc, as glibc has it: several arenas of Doug Lea's kind, and a cache for each thread in front of them.

    heap            the main arena, which grows as the heap does; its words are those of `dlmalloc`
    heap + ARENAS   how many more there are, and where each lies: a mapping with a page of such words, then chunks
    heap + THREADS  (key, its cache) by the task's number, 256 of them: what a C library keeps in the thread's own registers
    cache           its arena, hits, misses, then for each size from 32 to 1040 bytes how many blocks it holds (CACHED at most)
                    and the first of them; a cached block holds the next one and, as a mark, the cache

A request that the thread's cache can serve, and a block that it has room for, take no lock and write no word that another thread
reads. Else the thread locks its arena, for malloc, or that of the block, for free. POLICY: an arena for each thread, one for each node
(its memory is bound there), or the main arena only. If an arena is full the main arena serves. A block that has gone
through a cache counts what was asked for anew: an atomic instruction writes that, as the lock does not protect the head.
"""

import numpy as np

from numaemu.api.access import get, memcpy, put, xadd_i64
from numaemu.compiler.library import far, library
from numaemu.kernel.syscalls.user import bind, mmap, number_in, thread_key
from numaemu.malloc import dlmalloc
from numaemu.malloc.big import big_malloc
from numaemu.malloc.check import LISTS_HOLD_ALL
from numaemu.malloc.control import (
    BY_MMAP,
    END,
    GROWTH,
    LIMIT,
    MMAP_THRESHOLD,
    NEVER,
    NODE,
    PEAK,
    POLICY,
    SOURCE,
    START,
    TRIM_THRESHOLD,
    lock,
    unlock,
)
from numaemu.malloc.dlmalloc import FREE_TWICE, HEAD, LEAST, OVERHEAD, PAYLOAD, PREV_INUSE, SPARE, adjusted, chunk_size
from numaemu.malloc.errors import CACHED, FIXED, RIGHT, UNKNOWN, UNMARKED, WILD
from numaemu.malloc.rows import ADDRESS, COLUMNS, STATE, complain
from numaemu.spec.param import PAGE_SIZE

SETTINGS = {"arenas": ("thread", "node", "main")}
THREAD, ON_NODE, MAIN = range(3)  # POLICY
DEFAULTS = dlmalloc.DEFAULTS
OWN_BIG = OWN_LOCKS = True
RULES = (LISTS_HOLD_ALL,)
ALIGNMENT = 16
ARENAS, MOST_ARENAS = PAGE_SIZE, 63
FIRST_TAKEN = ARENAS + 8 * (MOST_ARENAS + 1)
CHOICE = FIRST_TAKEN + 64  # a control block whose LOCK is taken while a thread chooses its arena
THREADS, NR_THREADS = 2 * PAGE_SIZE, 256
ARENA_BYTES, LEAST_ARENA = 64 << 20, 1 << 20
SIZES, ROOM = 64, 7  # of a cache: how many sizes, and how many blocks of each (TCACHE_MAX_BINS, TCACHE_FILL_COUNT)
ARENA, HITS, MISSES, COUNTS = 0, 8, 16, 64
HEADS = COUNTS + 8 * SIZES
CACHE_BYTES = HEADS + 8 * SIZES
NEXT, MARK = 0, 8  # words of a cached block


@library
def setup(cpu, heap):
    """Make the main arena."""
    return dlmalloc.setup(cpu, heap)


@library
def new_arena(cpu, heap, node):
    """A mapping with an arena, bound to a node if that is not -1: its address, or 0: no memory."""
    length, at = ARENA_BYTES, -1
    while at < 0 and length >= LEAST_ARENA:
        at = mmap(cpu, length)
        if at < 0:
            length >>= 1
    if at < 0:
        return 0
    if node >= 0:
        bind(cpu, at, length, node)
    put(cpu, at + START, at + PAGE_SIZE)
    put(cpu, at + END, at + PAGE_SIZE)
    put(cpu, at + LIMIT, at + length)
    put(cpu, at + SOURCE, BY_MMAP)
    put(cpu, at + NODE, node)
    put(cpu, at + GROWTH, get(cpu, heap + GROWTH))
    put(cpu, at + MMAP_THRESHOLD, NEVER)
    put(cpu, at + TRIM_THRESHOLD, get(cpu, heap + TRIM_THRESHOLD))
    dlmalloc.setup(cpu, at)
    return at


@library
def choose_arena(cpu, heap):
    """The arena of a new thread, under a lock of its own."""
    policy, n, bound = get(cpu, heap + POLICY), get(cpu, heap + ARENAS), get(cpu, heap + NODE)
    if policy == MAIN:
        return heap
    if policy == THREAD and get(cpu, heap + FIRST_TAKEN) == 0:  # the first thread has the main arena
        put(cpu, heap + FIRST_TAKEN, 1)
        return heap
    if policy == ON_NODE:
        for i in range(1, n + 1):
            arena = get(cpu, heap + ARENAS + 8 * i)
            if get(cpu, arena + NODE) == cpu.node:
                return arena
    if n == MOST_ARENAS:
        return get(cpu, heap + ARENAS + 8 * (1 + cpu.task % MOST_ARENAS))
    arena = new_arena(cpu, heap, cpu.node if policy == ON_NODE else bound)
    if arena == 0:
        return heap
    put(cpu, heap + ARENAS + 8 * (n + 1), arena)
    put(cpu, heap + ARENAS, n + 1)
    return arena


@library
def slot_of(cpu, heap):
    """Where the table of threads has this one, one that had its number before, or the first free place; 0: it is full."""
    i = cpu.task % NR_THREADS
    for _ in range(NR_THREADS):
        slot = heap + THREADS + 16 * i
        key = get(cpu, slot)
        if key == 0 or number_in(key) == cpu.task:
            return slot
        i = (i + 1) % NR_THREADS
    return 0


@library
def arena_of(cpu, heap, block):
    """The arena that a block lies in, or 0."""
    if get(cpu, heap + START) + PAYLOAD <= block < get(cpu, heap + END):
        return heap
    for i in range(1, get(cpu, heap + ARENAS) + 1):
        arena = get(cpu, heap + ARENAS + 8 * i)
        if arena + PAGE_SIZE + PAYLOAD <= block < get(cpu, arena + LIMIT):
            return arena if block < get(cpu, arena + END) else 0
    return 0


@far("void(cpu_t*, i64, i64)")
def empty_cache(cpu, heap, cache):
    """Give what a cache holds back to the arenas."""
    for number in range(SIZES):
        put(cpu, cache + COUNTS + 8 * number, 0)
        block = get(cpu, cache + HEADS + 8 * number)
        put(cpu, cache + HEADS + 8 * number, 0)
        while block != 0:
            behind, arena = get(cpu, block + NEXT), arena_of(cpu, heap, block)
            lock(cpu, arena)
            dlmalloc.free(cpu, arena, block)
            unlock(cpu, arena)
            block = behind


@library
def make_cache(cpu, arena):
    """An empty cache in lines of its own; 0: no memory."""
    lock(cpu, arena)
    cache = dlmalloc.aligned_alloc(cpu, arena, 64, CACHE_BYTES)
    unlock(cpu, arena)
    if cache != 0:
        for at in range(0, CACHE_BYTES, 8):
            put(cpu, cache + at, 0)
        put(cpu, cache + ARENA, arena)
    return cache


@far("i64(cpu_t*, i64, i64)")
def new_cache(cpu, heap, slot):
    """The cache of a thread that calls for the first time; 0: no memory. It takes over what a thread has left that had its number,
    unless that lies on another node and arenas are by node.
    """
    old = get(cpu, slot + 8)
    if old != 0:
        if get(cpu, heap + POLICY) != ON_NODE or get(cpu, get(cpu, old + ARENA) + NODE) == cpu.node:
            put(cpu, slot, thread_key(cpu))
            return old
        empty_cache(cpu, heap, old)
        arena = get(cpu, old + ARENA)
        lock(cpu, arena)
        dlmalloc.free(cpu, arena, old)
        unlock(cpu, arena)
    lock(cpu, heap + CHOICE)
    arena = choose_arena(cpu, heap)
    unlock(cpu, heap + CHOICE)
    cache = make_cache(cpu, arena)
    put(cpu, slot + 8, cache)
    put(cpu, slot, thread_key(cpu) if cache != 0 else 0)
    return cache


@library
def cache_of(cpu, heap):
    """This thread's cache; 0: there is none, and no memory for one."""
    slot = slot_of(cpu, heap)
    if slot == 0:
        return 0
    return get(cpu, slot + 8) if get(cpu, slot) == thread_key(cpu) else new_cache(cpu, heap, slot)


@library
def take_cached(cpu, cache, number, nbytes):
    """A block of the cache, which has one of this size."""
    block = get(cpu, cache + HEADS + 8 * number)
    put(cpu, cache + HEADS + 8 * number, get(cpu, block + NEXT))
    put(cpu, cache + COUNTS + 8 * number, get(cpu, cache + COUNTS + 8 * number) - 1)
    put(cpu, cache + HITS, get(cpu, cache + HITS) + 1)
    put(cpu, block + MARK, 0)
    head = get(cpu, block - PAYLOAD + HEAD)
    spare = LEAST + 16 * number - OVERHEAD - nbytes
    if head >> SPARE != spare:
        xadd_i64(cpu, block - PAYLOAD + HEAD, (spare - (head >> SPARE)) << SPARE)
    return block


@far("i64(cpu_t*, i64, i64)")
def malloc(cpu, heap, nbytes):
    """A block for `nbytes` bytes: its address, or 0."""
    if nbytes <= 0 or nbytes > dlmalloc.LARGEST:
        return 0
    cache, number = cache_of(cpu, heap), (adjusted(nbytes) - LEAST) >> 4
    arena = heap
    if cache != 0:
        arena = get(cpu, cache + ARENA)
        if number < SIZES and get(cpu, cache + COUNTS + 8 * number) > 0:
            return take_cached(cpu, cache, number, nbytes)
        put(cpu, cache + MISSES, get(cpu, cache + MISSES) + 1)
    if nbytes >= get(cpu, heap + MMAP_THRESHOLD):
        lock(cpu, heap)
        block = big_malloc(cpu, heap, nbytes)
        unlock(cpu, heap)
        return block
    lock(cpu, arena)
    block = dlmalloc.malloc(cpu, arena, nbytes)
    unlock(cpu, arena)
    if block == 0 and arena != heap:
        lock(cpu, heap)
        block = dlmalloc.malloc(cpu, heap, nbytes)
        unlock(cpu, heap)
    return block


@library
def looks_like_a_cache(cpu, heap, address):
    """True if a used block of a cache's size and alignment is there, so that its words can be looked at."""
    if address & 63 or arena_of(cpu, heap, address) == 0:
        return False
    size = chunk_size(cpu, address - PAYLOAD)
    return CACHE_BYTES + OVERHEAD <= size < CACHE_BYTES + OVERHEAD + 2 * LEAST


@library
def is_cached(cpu, heap, mine, block):
    """True if a cache holds a block, this thread's (`mine`) or another's: its mark says which, and then the list of that cache."""
    cache, number = get(cpu, block + MARK), (chunk_size(cpu, block - PAYLOAD) - LEAST) >> 4
    if cache == 0 or number >= SIZES or cache != mine and not looks_like_a_cache(cpu, heap, cache):
        return False
    entry, n = get(cpu, cache + HEADS + 8 * number), 0
    while entry != 0 and entry != block and n < ROOM and entry & 15 == 0 and arena_of(cpu, heap, entry) != 0:
        entry, n = get(cpu, entry + NEXT), n + 1
    return entry == block


@far("i64(cpu_t*, i64, i64)")
def examine(cpu, heap, block):
    """What is wrong with a block that somebody wants to free or resize: 0: nothing."""
    arena = arena_of(cpu, heap, block)
    if arena == 0:
        return WILD
    lock(cpu, arena)
    wrong = dlmalloc.examine(cpu, arena, block)
    unlock(cpu, arena)
    return FREE_TWICE if wrong == 0 and is_cached(cpu, heap, cache_of(cpu, heap), block) else wrong


@library
def looks_used(cpu, arena, block):
    """True if a head says that a block is a used one; to be asked without a lock of what lies in an arena."""
    size = chunk_size(cpu, block - PAYLOAD)
    behind = block - PAYLOAD + size + HEAD
    return LEAST <= size < LEAST + 16 * SIZES and behind < get(cpu, arena + END) and get(cpu, behind) & PREV_INUSE != 0


@far("i64(cpu_t*, i64, i64)")
def free(cpu, heap, block):
    """Give a block back: 0, or what is wrong with it."""
    arena = arena_of(cpu, heap, block)
    if arena == 0:
        return WILD
    cache = cache_of(cpu, heap)
    if cache != 0 and block & 15 == 0 and looks_used(cpu, arena, block):
        if is_cached(cpu, heap, cache, block):
            return FREE_TWICE
        number = (chunk_size(cpu, block - PAYLOAD) - LEAST) >> 4
        count = get(cpu, cache + COUNTS + 8 * number)
        if count < ROOM:
            put(cpu, block + NEXT, get(cpu, cache + HEADS + 8 * number))
            put(cpu, block + MARK, cache)
            put(cpu, cache + HEADS + 8 * number, block)
            put(cpu, cache + COUNTS + 8 * number, count + 1)
            return 0
    lock(cpu, arena)
    wrong = dlmalloc.free(cpu, arena, block)
    unlock(cpu, arena)
    return wrong


@library
def usable_size(cpu, heap, block):
    """Bytes of payload that a block has room for."""
    return chunk_size(cpu, block - PAYLOAD) - OVERHEAD


@library
def asked(cpu, heap, block):
    """What was asked for."""
    return dlmalloc.asked(cpu, heap, block)


@far("i64(cpu_t*, i64, i64, i64)")
def realloc(cpu, heap, block, nbytes):
    """The block with another size, in its arena or copied elsewhere: its address, or 0."""
    arena, threshold = arena_of(cpu, heap, block), get(cpu, heap + MMAP_THRESHOLD)
    if nbytes < threshold:
        lock(cpu, arena)
        new = dlmalloc.realloc(cpu, arena, block, nbytes)
        unlock(cpu, arena)
        if new != 0:
            return new
    new = malloc(cpu, heap, nbytes)
    if new != 0:
        memcpy(cpu, new, block, min(nbytes, usable_size(cpu, heap, block)))
        free(cpu, heap, block)
    return new


@far("i64(cpu_t*, i64, i64, i64)")
def aligned_alloc(cpu, heap, alignment, nbytes):
    """A block at a multiple of `alignment`, a power of two, from the thread's arena."""
    cache = cache_of(cpu, heap)
    arena = get(cpu, cache + ARENA) if cache != 0 else heap
    lock(cpu, arena)
    block = dlmalloc.aligned_alloc(cpu, arena, alignment, nbytes)
    unlock(cpu, arena)
    if block == 0 and arena != heap:
        lock(cpu, heap)
        block = dlmalloc.aligned_alloc(cpu, heap, alignment, nbytes)
        unlock(cpu, heap)
    return block


@library
def flush(cpu, heap):
    """Give what this thread's cache holds back to the arenas, as glibc does when a thread ends."""
    cache = cache_of(cpu, heap)
    if cache != 0:
        empty_cache(cpu, heap, cache)


@library
def trim(cpu, heap, keep):
    """Give whole pages at the end of each arena back but for `keep` bytes: how many bytes."""
    given = dlmalloc.trim(cpu, heap, keep)
    for i in range(1, get(cpu, heap + ARENAS) + 1):
        given += dlmalloc.trim(cpu, get(cpu, heap + ARENAS + 8 * i), keep)
    return given


@library
def lock_all(cpu, heap):
    """Keep every arena as it is."""
    lock(cpu, heap)
    for i in range(1, get(cpu, heap + ARENAS) + 1):
        lock(cpu, get(cpu, heap + ARENAS + 8 * i))


@library
def unlock_all(cpu, heap):
    """Let the arenas go on."""
    for i in range(1, get(cpu, heap + ARENAS) + 1):
        unlock(cpu, get(cpu, heap + ARENAS + 8 * i))
    unlock(cpu, heap)


@library
def held(cpu, heap):
    """(bytes that the arenas beside the main one hold, the most that each has held, together)"""
    now, peak = 0, 0
    for i in range(1, get(cpu, heap + ARENAS) + 1):
        arena = get(cpu, heap + ARENAS + 8 * i)
        now += get(cpu, arena + END) - get(cpu, arena + START)
        peak += get(cpu, arena + PEAK)
    return now, peak


@library
def set_state(rows, block, state):
    """Say what a block is, in its row."""
    i = np.searchsorted(rows[:, ADDRESS], block)
    if i < len(rows) and rows[i, ADDRESS] == block:
        rows[i, STATE] = state


@library
def mark_cached(cpu, heap, rows, cache):
    """Mark the row of a cache, and those of what it holds."""
    set_state(rows, cache, FIXED)
    for number in range(SIZES):
        block, n = get(cpu, cache + HEADS + 8 * number), 0
        while n < ROOM and block & 15 == 0 and arena_of(cpu, heap, block) != 0:
            set_state(rows, block, CACHED)
            block, n = get(cpu, block + NEXT), n + 1


@library
def cached(cpu, heap, cache, number):
    """Rows (number, block, what is wrong with the entry) of what a cache holds, for each size up to an entry that is no block."""
    rows, n = np.zeros((SIZES * (ROOM + 1), 3), np.int64), 0
    for size in range(SIZES):
        block, left = get(cpu, cache + HEADS + 8 * size), get(cpu, cache + COUNTS + 8 * size)
        while block != 0 or left > 0:
            rows[n, 0], rows[n, 1], rows[n, 2] = number, block, RIGHT if left > 0 else UNKNOWN
            n, left = n + 1, left - 1
            if left < 0 or block & 15 or arena_of(cpu, heap, block) == 0:
                break
            if get(cpu, block + MARK) != cache:
                rows[n - 1, 2] = UNMARKED
            block = get(cpu, block + NEXT)
    return rows[:n].copy()


@library
def blocks(cpu, heap):
    """The rows of all arenas, in the order of addresses."""
    rows = dlmalloc.blocks(cpu, heap)
    for i in range(1, get(cpu, heap + ARENAS) + 1):
        more = dlmalloc.blocks(cpu, get(cpu, heap + ARENAS + 8 * i))
        rows = np.concatenate((rows, more))
    rows = rows[np.argsort(rows[:, ADDRESS])].copy().reshape((-1, COLUMNS))
    for i in range(NR_THREADS):
        if get(cpu, heap + THREADS + 16 * i) != 0:
            mark_cached(cpu, heap, rows, get(cpu, heap + THREADS + 16 * i + 8))
    return rows


@far("void(cpu_t*, i64, i64, i64)")
def refuse(cpu, heap, wrong, block):
    """HeapError: what is wrong with a block, and where it lies."""
    complain(blocks(cpu, heap), wrong, block)


@library
def lists(cpu, heap):
    """Rows (bin, payload, what is wrong with the entry) of all arenas, then of the threads' caches, whose lists have numbers below 0."""
    rows = dlmalloc.lists(cpu, heap)
    for i in range(1, get(cpu, heap + ARENAS) + 1):
        more = dlmalloc.lists(cpu, get(cpu, heap + ARENAS + 8 * i))
        rows = np.concatenate((rows, more))
    for i in range(NR_THREADS):
        if get(cpu, heap + THREADS + 16 * i) != 0:
            rows = np.concatenate((rows, cached(cpu, heap, get(cpu, heap + THREADS + 16 * i + 8), -1 - i)))
    return rows
