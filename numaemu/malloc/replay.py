"""Plays a trace on a heap of a kind: first with contents that are looked at, then once more for the figures."""

import contextlib
import time
from typing import NamedTuple

import numpy as np

from numaemu.api.access import load_u8, store_u8
from numaemu.compiler.library import library
from numaemu.errors import OutOfMemory
from numaemu.malloc.calls import free, malloc, realloc
from numaemu.malloc.errors import HeapError
from numaemu.malloc.trace import FREE, MALLOC

OUT_OF_MEMORY, WRONG_BYTE = -1, -2
EDGE = 64  # bytes at both ends of a block that are looked at, and one of each page between
STRIDE = 4093


class Figures(NamedTuple):
    """What a replay has measured; the names of `numaemu malloc --json`."""

    trace: str  # its name
    kind: str  # of heap
    valid: bool  # false: bytes were lost, memory ran out, or the heap does not check
    why: str  # what of these
    utilisation: float  # peak payload by peak heap
    operations: int  # requests of the trace
    ns_per_operation: float  # of emulated time
    accesses_per_operation: float  # loads and stores
    tlb_misses_per_operation: float  # page walks
    faults_per_operation: float  # page faults
    peak_payload: int  # the most bytes that the trace asks for at a time
    peak_heap: int  # the most that the heap has held
    operations_per_s: float  # on the host
    skipped: int  # lines of the trace that are left out


@library
def play(cpu, heap, requests, blocks):
    """Play requests: OUT_OF_MEMORY, or how many were played."""
    at = np.zeros(blocks, np.int64)
    for i in range(len(requests)):
        what, block, nbytes = requests[i, 0], requests[i, 1], requests[i, 2]
        if what == FREE:
            free(cpu, heap, at[block])
            at[block] = 0
        else:
            new = malloc(cpu, heap, nbytes) if what == MALLOC else realloc(cpu, heap, at[block], nbytes)
            if new == 0 and nbytes > 0:
                return OUT_OF_MEMORY
            at[block] = new
    return len(requests)


@library
def step_from(i, nbytes):
    """The next byte of a block that is looked at."""
    return (
        i + 1 if i < EDGE - 1 or i >= nbytes - EDGE else min(i + STRIDE, nbytes - EDGE) if nbytes > 2 * EDGE else i + 1
    )


@library
def fill(cpu, at, nbytes, block):
    """Write what the block's number says."""
    i = 0
    while i < nbytes:
        store_u8(cpu, at + i, (block * 31 + i) & 255)
        i = step_from(i, nbytes)


@library
def agrees(cpu, at, nbytes, written, block):
    """True if the bytes that were written for a size of `written` are there, as far as `nbytes`."""
    i = 0
    while i < written:
        if i < nbytes and load_u8(cpu, at + i) != (block * 31 + i) & 255:
            return False
        i = step_from(i, written)
    return True


@library
def play_with_contents(cpu, heap, requests, blocks):
    """The same, with bytes that are written and looked at; WRONG_BYTE - number of the request: a block has lost some."""
    at, size = np.zeros(blocks, np.int64), np.zeros(blocks, np.int64)
    for i in range(len(requests)):
        what, block, nbytes = requests[i, 0], requests[i, 1], requests[i, 2]
        old = size[block]
        if what != MALLOC and not agrees(cpu, at[block], old, old, block):
            return WRONG_BYTE - i
        if what == FREE:
            free(cpu, heap, at[block])
            at[block], size[block] = 0, 0
            continue
        new = malloc(cpu, heap, nbytes) if what == MALLOC else realloc(cpu, heap, at[block], nbytes)
        if new == 0 and nbytes > 0:
            return OUT_OF_MEMORY
        if what != MALLOC and not agrees(cpu, new, min(old, nbytes), old, block):
            return WRONG_BYTE - i
        fill(cpu, new, nbytes, block)
        at[block], size[block] = new, nbytes
    return len(requests)


@library
def play_random(cpu, heap, count, live, seed):
    """`count` random requests with up to `live` blocks at a time, with bytes that are looked at; then all is freed. How many were
    played, OUT_OF_MEMORY, or WRONG_BYTE - number of the request.
    """
    at, size, state = np.zeros(live, np.int64), np.zeros(live, np.int64), seed
    for i in range(count):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        slot, what = (state >> 8) % live, state >> 4 & 7
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        nbytes = 1 + (state >> 8) % (16 << 2 * (state >> 28 & 3)) * (1 + (state >> 20 & 7))
        mark = slot + seed
        if size[slot] > 0 and not agrees(cpu, at[slot], size[slot], size[slot], mark):
            return WRONG_BYTE - i
        if size[slot] == 0:
            at[slot] = malloc(cpu, heap, nbytes)
        elif what > 1:
            free(cpu, heap, at[slot])
            size[slot] = 0
            continue
        else:
            at[slot] = realloc(cpu, heap, at[slot], nbytes)
            if at[slot] != 0 and not agrees(cpu, at[slot], min(size[slot], nbytes), size[slot], mark):
                return WRONG_BYTE - i
        if at[slot] == 0:
            return OUT_OF_MEMORY
        size[slot] = nbytes
        fill(cpu, at[slot], nbytes, mark)
    for slot in range(live):
        if size[slot] > 0:
            free(cpu, heap, at[slot])
    return count


def validate(task, trace, kind, options):
    """ "" or what is wrong: bytes that were lost, a block that is out of line, a heap that does not check."""
    heap = task.malloc_heap(kind, **options)
    try:
        answer = task.call(play_with_contents, heap, trace.requests, trace.blocks)
        heap.check()
    except (HeapError, OutOfMemory) as error:
        return str(error)
    if answer == OUT_OF_MEMORY:
        return "out of memory"
    return "" if answer == len(trace.requests) else f"request {WRONG_BYTE - answer}: a block has lost what it held"


def replay(machine, trace, kind, cpu=0, valid=True, **options):
    """Play a trace: its Figures. The heap begins anew, in a process of its own."""
    why = ""
    if valid:
        task = machine.task(cpu=cpu, name="malloc")
        why = validate(task, trace, kind, options)
        with contextlib.suppress(ProcessLookupError):  # it was killed
            task.exit()
    task = machine.task(cpu=cpu, name="malloc")
    heap = task.malloc_heap(kind, **options)
    task.call(play, heap, trace.requests[:0], 1)  # compiled, or taken from the cache
    before, start = task.counters(), time.perf_counter()
    try:
        answer = task.call(play, heap, trace.requests, trace.blocks)
    except (HeapError, OutOfMemory) as error:
        n, peak = len(trace.requests), trace.peak_payload
        return Figures(
            trace.name, kind, False, why or str(error), 0.0, n, 0.0, 0.0, 0.0, 0.0, peak, 0, 0.0, trace.skipped
        )
    host_s, after = time.perf_counter() - start, task.counters()
    peak_heap = heap.held()[1]
    task.exit()
    if answer == OUT_OF_MEMORY:
        why = why or "out of memory"
    n = len(trace.requests)
    ns, walks, faults, loads, stores = (
        (after[name] - before[name]) / max(n, 1)
        for name in ("clock_ns", "page_walks", "task_minor_faults", "loads", "stores")
    )
    return Figures(
        trace.name,
        kind,
        not why,
        why,
        trace.peak_payload / peak_heap if peak_heap and not why else 0.0,
        n,
        ns,
        loads + stores,
        walks,
        faults,
        trace.peak_payload,
        peak_heap,
        n / host_s,
        trace.skipped,
    )
