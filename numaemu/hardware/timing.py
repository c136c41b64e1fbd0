"""What an access costs on a machine whose file says more of its memory than latencies: caches, rates, overlap.

On other machines (`cpu.timed` is 0) an access costs its pair's latency, by identity (`clock_ns`), and nothing here runs. On such a
one no access finds its page through `l1_hint`'s first half, which leads to an entry that matches nothing; so each goes
through `translate_slow`, which calls `timed_access`, and what it costs is added to `cpu.memory_ns`.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u8
from numaemu.hardware.paging import PAGE_MASK
from numaemu.hardware.processor import X86_PF_WRITE

U = np.uint64
WORD = 8  # bytes that one access of a range moves


@kernel("void(cpu_t*, u64, bool)")
def timed_line(cpu, physical, write):
    """One access to a physical address: what it waits for."""
    cpu.memory_ns += cpu.latency_ns[np.int64(u8.array(cpu.block_node)[np.int64(physical >> U(21))])]


@hot
def timed_access(cpu, slot, address, access):
    """The access through an L1 entry that is about to be counted."""
    physical = (cpu.l1[slot].host & PAGE_MASK) - cpu.memory + (address & ~PAGE_MASK)
    timed_line(cpu, physical, access & X86_PF_WRITE != U(0))


@kernel("void(cpu_t*, u64, i64, bool)")
def timed_rest(cpu, host, nbytes, write):
    """The accesses behind the first of a range that lies in one page, a word each; `host`: host address of its first byte."""
    physical = host - cpu.memory
    for done in range(WORD, nbytes, WORD):
        timed_line(cpu, physical + U(done), write)
