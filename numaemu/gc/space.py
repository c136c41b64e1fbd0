"""A heap's own words, its threads and its roots; and how the world stops.

Words of a heap (`heap` is their address):

    0     LOCK  WORLD  STOP  THREADS  START  END  TOP  BUFFER
    64    STACK  STACK_END  HANDLES  HANDLES_END  FREE_HANDLE  COLLECTIONS  LOG  USED
    128   ALLOCATED  LOCAL
    256   up to 1023 what a collector keeps
    1024  the records of the threads

Words of a thread (`me` is their address, in pages of its own):

    0     HEAP  STATE  TLAB  TLAB_END  FRAME  ROOTS  ROOTS_END  POLLS
    64    OWNER (its key)  ENTRY (FRAME when it began to run a user kernel)
    256   its stack of roots, from ROOTS up to FRAME

The world stops so: the thread that collects takes WORLD, sets STOP, and waits until no other thread is RUNNING. A thread looks at STOP
when it allocates and where it polls; there it is STOPPED until STOP is 0 again. OUTSIDE user kernels it holds no references but
in roots, and need not be waited for. Nobody waits for a thread that has ended: the next collection takes it out of the table, with
its roots. A thread of the parent is none of a child by fork.
"""

from numaemu.api.access import cmpxchg_i64, get, put, xadd_i64
from numaemu.compiler.library import library
from numaemu.gc.objects import put_filler
from numaemu.kernel.syscalls.user import discard, relax, thread_key, thread_lives
from numaemu.malloc.lock import LOOKS, give, take_now
from numaemu.spec.param import PAGE_SIZE

(LOCK, WORLD, STOP, THREADS, START, END, TOP, BUFFER, STACK, STACK_END, HANDLES, HANDLES_END, FREE_HANDLE, COLLECTIONS,
 LOG, USED, ALLOCATED, LOCAL) = range(0, 144, 8)  # fmt: skip
OWN = 256  # where a collector's own words begin
THREAD_TABLE, MOST_THREADS = 1024, 128
CONTROL_BYTES = 4096

HEAP, STATE, TLAB, TLAB_END, FRAME, ROOTS, ROOTS_END, POLLS, OWNER, ENTRY = range(0, 80, 8)
RECORD_BYTES = 256
OUTSIDE, RUNNING, STOPPED = range(3)  # STATE


# -- buffers


@library
def retire(cpu, me):
    """A thread's buffer ends: the rest of it is skipped."""
    put_filler(cpu, get(cpu, me + TLAB), get(cpu, me + TLAB_END))
    put(cpu, me + TLAB, 0)
    put(cpu, me + TLAB_END, 0)


@library
def retire_all(cpu, heap):
    """Before a collection: every space can be walked then."""
    for i in range(get(cpu, heap + THREADS)):
        retire(cpu, get(cpu, heap + THREAD_TABLE + 8 * i))


@library
def give_buffer(cpu, me, start, end):
    """A new buffer for a thread. If buffers are to lie on their threads' nodes (LOCAL), the pages that it has for itself are given
    back first: the thread's first access brings others, near it.
    """
    retire(cpu, me)
    if get(cpu, get(cpu, me + HEAP) + LOCAL) != 0:
        first, last = (start + PAGE_SIZE - 1) & -PAGE_SIZE, end & -PAGE_SIZE
        if first < last:
            discard(cpu, first, last - first)
    put(cpu, me + TLAB, start)
    put(cpu, me + TLAB_END, end)


# -- threads that are no more


@library
def remove(cpu, heap, i):
    """A thread leaves the table, with its roots; the rest of its buffer is skipped. No collection goes on but this thread's."""
    last = get(cpu, heap + THREADS) - 1
    retire(cpu, get(cpu, heap + THREAD_TABLE + 8 * i))
    put(cpu, heap + THREAD_TABLE + 8 * i, get(cpu, heap + THREAD_TABLE + 8 * last))
    put(cpu, heap + THREADS, last)


@library
def remove_ended(cpu, heap):
    """All threads that have ended leave the table, with their roots: how many. The world stands still."""
    i, n = 0, get(cpu, heap + THREADS)
    while i < get(cpu, heap + THREADS):
        if thread_lives(cpu, get(cpu, get(cpu, heap + THREAD_TABLE + 8 * i) + OWNER)):
            i += 1
        else:
            remove(cpu, heap, i)
    return n - i


# -- safe points


@library
def start_world(cpu, heap):
    """Let the other threads go on."""
    put(cpu, heap + STOP, 0)
    give(cpu, heap + WORLD)


@library
def await_zero(cpu, heap, word):
    """Wait until STOP or WORLD is 0. If the thread that collects has ended the others go on."""
    tries = 0
    while get(cpu, word) != 0:
        relax(cpu, tries)
        tries += 1
        owner = get(cpu, heap + WORLD) if tries % LOOKS == 0 else 0
        if owner != 0 and not thread_lives(cpu, owner):
            if cmpxchg_i64(cpu, heap + WORLD, owner, thread_key(cpu)) == owner:
                start_world(cpu, heap)


@library
def run(cpu, me, state):
    """From OUTSIDE or STOPPED into RUNNING, when no collection goes on."""
    heap = get(cpu, me + HEAP)
    while True:
        cmpxchg_i64(cpu, me + STATE, state, RUNNING)  # an instruction that locks: STOP is looked at behind it
        if get(cpu, heap + STOP) == 0:
            return
        put(cpu, me + STATE, state)
        await_zero(cpu, heap, heap + STOP)


@library
def park(cpu, me):
    """Wait at a safe point until the collection is over."""
    put(cpu, me + POLLS, get(cpu, me + POLLS) + 1)
    put(cpu, me + STATE, STOPPED)
    run(cpu, me, STOPPED)


@library
def poll(cpu, me):
    """A safe point."""
    if get(cpu, get(cpu, me + HEAP) + STOP) != 0:
        park(cpu, me)


@library
def await_safe_point(cpu, thread):
    """Wait until a thread is not RUNNING, or has ended."""
    tries = 0
    while get(cpu, thread + STATE) == RUNNING:
        relax(cpu, tries)
        tries += 1
        if tries % LOOKS == 0 and not thread_lives(cpu, get(cpu, thread + OWNER)):
            put(cpu, thread + STATE, OUTSIDE)


@library
def stop_world(cpu, heap, me):
    """Stop the other threads; False: another thread has just collected instead."""
    if not take_now(cpu, heap + WORLD):
        put(cpu, me + STATE, STOPPED)
        await_zero(cpu, heap, heap + WORLD)
        run(cpu, me, STOPPED)
        return False
    xadd_i64(cpu, heap + STOP, 1)
    for i in range(get(cpu, heap + THREADS)):
        thread = get(cpu, heap + THREAD_TABLE + 8 * i)
        if thread != me:
            await_safe_point(cpu, thread)
    return True


@library
def abandon(cpu, me):
    """The thread is OUTSIDE, whatever it was in the middle of: what it had taken is free."""
    heap, key = get(cpu, me + HEAP), thread_key(cpu)
    if get(cpu, heap + LOCK) == key:
        give(cpu, heap + LOCK)
    if get(cpu, heap + WORLD) == key:
        start_world(cpu, heap)
    put(cpu, me + STATE, OUTSIDE)


# -- threads


@library
def begin_change(cpu, heap):
    """The table of threads is to change: no collection goes on."""
    while not take_now(cpu, heap + WORLD):
        await_zero(cpu, heap, heap + WORLD)


@library
def register(cpu, heap, thread):
    """One more thread, the one that runs. False: there is no room for it."""
    begin_change(cpu, heap)
    n = get(cpu, heap + THREADS)
    if n < MOST_THREADS:
        put(cpu, thread + OWNER, thread_key(cpu))
        put(cpu, heap + THREAD_TABLE + 8 * n, thread)
        put(cpu, heap + THREADS, n + 1)
    give(cpu, heap + WORLD)
    return n < MOST_THREADS


@library
def unregister(cpu, heap, thread):
    """One thread less, which has no roots any more. False: it was none."""
    begin_change(cpu, heap)
    n, found = get(cpu, heap + THREADS), False
    for i in range(n):
        if not found and get(cpu, heap + THREAD_TABLE + 8 * i) == thread:
            remove(cpu, heap, i)
            found = True
    give(cpu, heap + WORLD)
    return found


# -- roots


@library
def root_ranges(cpu, heap):
    """How many ranges of slots there are: one for each thread, and the handles."""
    return get(cpu, heap + THREADS) + 1


@library
def root_range(cpu, heap, i):
    """(first slot, end) of a range; a slot holds a reference or 0, a free handle an odd word."""
    if i == 0:
        return get(cpu, heap + HANDLES), get(cpu, heap + HANDLES_END)
    thread = get(cpu, heap + THREAD_TABLE + 8 * (i - 1))
    return get(cpu, thread + ROOTS), get(cpu, thread + FRAME)


@library
def new_handle(cpu, heap, value):
    """A slot outside of all frames that holds a reference; 0: there is no room."""
    slot = get(cpu, heap + FREE_HANDLE)
    if slot != 0:
        put(cpu, heap + FREE_HANDLE, get(cpu, slot) & ~1)
    else:
        slot = get(cpu, heap + HANDLES_END)
        if slot >= get(cpu, heap + LOG):  # where the room for handles ends
            return 0
        put(cpu, heap + HANDLES_END, slot + 8)
    put(cpu, slot, value)
    return slot


@library
def drop_handle(cpu, heap, slot):
    """Give a slot back."""
    put(cpu, slot, get(cpu, heap + FREE_HANDLE) | 1)
    put(cpu, heap + FREE_HANDLE, slot)
