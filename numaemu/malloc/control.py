"""The words of a heap that are no block: its bounds, settings and lock; and how it grows.

They stand in pages of the task as the variables of a C library would (`heap` is their address):

    0     KIND  LOCK (0, or its owner's key)  START  END  LIMIT  SOURCE  GROWTH  NODE
    64    MMAP_THRESHOLD  TRIM_THRESHOLD  BIG_LIST  BIG_BYTES  PEAK  POLICY  ROVER  -
    128   PAYLOAD  PEAK_PAYLOAD                kept only for heaps with accounts=True
    256   what a kind keeps: the heads of its lists

START and END bound what brk or the reservation by mmap has given so far.
"""

from numaemu.api.access import cmpxchg_i64, get, put, xadd_i64
from numaemu.compiler.library import far, library
from numaemu.kernel.syscalls.user import bind, brk, discard
from numaemu.malloc.lock import give, take
from numaemu.spec.param import PAGE_SIZE

(KIND, LOCK, START, END, LIMIT, SOURCE, GROWTH, NODE, MMAP_THRESHOLD, TRIM_THRESHOLD, BIG_LIST, BIG_BYTES, PEAK, POLICY,
 ROVER, _, PAYLOAD, PEAK_PAYLOAD) = range(0, 144, 8)  # fmt: skip
OWN = 256  # where a kind's own words begin
CONTROL_BYTES = 3 * PAGE_SIZE

BY_BRK, BY_MMAP = range(2)  # SOURCE
NEVER = 1 << 62  # a threshold that no block reaches
MOST_BYTES = 1 << 46  # of a request that any kind might serve


@library
def lock(cpu, heap):
    """Take the heap's lock."""
    take(cpu, heap + LOCK)


@library
def unlock(cpu, heap):
    """Let others have it."""
    give(cpu, heap + LOCK)


@library
def note_peak(cpu, heap):
    """The most that the heap has held from the kernel."""
    held = get(cpu, heap + END) - get(cpu, heap + START) + get(cpu, heap + BIG_BYTES)
    if held > get(cpu, heap + PEAK):
        put(cpu, heap + PEAK, held)


@far("i64(cpu_t*, i64, i64)")
def morecore(cpu, heap, nbytes):
    """Let the heap grow by so many bytes (negative: shrink): where it ended before, or 0: there is no more.

    By brk nobody else may have moved the break; by mmap the heap lies in a reservation, whose pages cost nothing until they are used.
    """
    end, node = get(cpu, heap + END), get(cpu, heap + NODE)
    new = end + nbytes
    if get(cpu, heap + SOURCE) == BY_BRK:
        if brk(cpu, 0) != end or brk(cpu, new) != new:
            return 0
        if node >= 0 and nbytes > 0:
            first = end & -PAGE_SIZE
            bind(cpu, first, ((new + PAGE_SIZE - 1) & -PAGE_SIZE) - first, node)
    elif new > get(cpu, heap + LIMIT):
        return 0
    elif nbytes < 0:
        first = (new + PAGE_SIZE - 1) & -PAGE_SIZE
        last = (end + PAGE_SIZE - 1) & -PAGE_SIZE
        if first < last:
            discard(cpu, first, last - first)
    put(cpu, heap + END, new)
    note_peak(cpu, heap)
    return end


@far("void(cpu_t*, i64, i64)")
def account(cpu, heap, nbytes):
    """Keep the sum of what is asked for, and its peak."""
    now = xadd_i64(cpu, heap + PAYLOAD, nbytes) + nbytes
    while True:
        peak = get(cpu, heap + PEAK_PAYLOAD)
        if now <= peak or cmpxchg_i64(cpu, heap + PEAK_PAYLOAD, peak, now) == peak:
            return
