"""What an access costs on a machine whose file says more of its memory than latencies: caches, rates, overlap.

On other machines (`cpu.timed` is 0) an access costs its pair's latency, by identity (`clock_ns`), and nothing here runs. On such a
one no access finds its page through `l1_hint`'s first half, which leads to an entry that matches nothing; so each goes
through `translate_slow`, which calls `timed_access`, and what it costs is added to `cpu.memory_ns`.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.cache import core_t
from numaemu.hardware.controller import fetch_line
from numaemu.hardware.hierarchy import access_line, hit_first_level
from numaemu.hardware.paging import PAGE_MASK
from numaemu.hardware.prefetch import prefetch_behind
from numaemu.hardware.processor import X86_PF_WRITE
from numaemu.spec.param import L1_ENTRIES_MAX, L1_HINTS, L1_VIEWS

U = np.uint64
WORD = 8  # bytes that one access of a range moves
NO_PAGE = L1_ENTRIES_MAX + L1_VIEWS  # the TLB entry that matches nothing


def enable_timing(cpu):
    """From now on each access of a CPU is timed. At boot, before the CPU's first access."""
    cpu.timed, cpu.hint_base = 1, L1_HINTS
    for i in range(L1_HINTS):
        cpu.l1_hint[i] = NO_PAGE


@kernel("void(cpu_t*, u64, bool)")
def timed_line(cpu, physical, write):
    """One access to a physical address: what it waits for."""
    if cpu.caches == U(0):
        cpu.memory_ns += fetch_line(cpu, physical, write)
        return
    core = core_t.at(cpu.caches)
    if hit_first_level(core, physical, write):
        cpu.memory_ns += core.l1_latency_ns
    else:
        cpu.memory_ns += access_line(cpu, core, physical, write)
        if core.prefetchers != U(0) and core.at > 0:
            prefetch_behind(cpu, core, physical >> core.line_shift)


@hot
def timed_access(cpu, slot, address, access):
    """The access through an L1 entry that is about to be counted."""
    physical = (cpu.l1[slot].host & PAGE_MASK) - cpu.memory + (address & ~PAGE_MASK)
    timed_line(cpu, physical, access & X86_PF_WRITE != U(0))


@hot
def timed_again(cpu, physical, write):
    """A further access of a vector: what the first level has is served here, without a call."""
    if cpu.caches == U(0) or not hit_first_level(core_t.at(cpu.caches), physical, write):
        timed_line(cpu, physical, write)
    else:
        cpu.memory_ns += core_t.at(cpu.caches).l1_latency_ns


@kernel("void(cpu_t*, u64, i64, bool)")
def timed_rest(cpu, host, nbytes, write):
    """The accesses behind the first of a range that lies in one page, a word each; `host`: host address of its first byte."""
    physical = host - cpu.memory
    for done in range(WORD, nbytes, WORD):
        timed_line(cpu, physical + U(done), write)
