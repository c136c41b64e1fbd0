"""Using a kernel stack: stores from its end downward in kernel mode, as calls and large local variables make them."""

import numpy as np

from numaemu.api.access import kernel_load, kernel_store
from numaemu.compiler.decorators import entry
from numaemu.compiler.pointer import u64
from numaemu.hardware.processor import cpu_t

U = np.uint64
CACHE_LINE = 64


@entry("void(u64, u64, i64)", nogil=True)
def use_stack(cpu_address, top, nbytes):
    """Local variables of `nbytes`: a store to each cache line, downward."""
    cpu = cpu_t.at(cpu_address)
    for used in range(CACHE_LINE, nbytes + CACHE_LINE, CACHE_LINE):
        kernel_store(cpu, top - U(min(used, nbytes)) & ~U(7), U(used), u64)


@entry("i64(u64, u64, i64, i64)", nogil=True)
def recurse(cpu_address, top, depth, frame_bytes):
    """`depth` nested calls, each with a frame whose last word is the return address; how many returned where they should."""
    cpu = cpu_t.at(cpu_address)
    for level in range(1, depth + 1):
        frame = top - U((level - 1) * frame_bytes)
        kernel_store(cpu, frame - U(8), U(level), u64)
        kernel_store(cpu, frame - U(frame_bytes), ~U(level), u64)
    returned = 0
    for level in range(depth, 0, -1):
        if kernel_load(cpu, top - U((level - 1) * frame_bytes) - U(8), u64) == U(level):
            returned += 1
    return returned
