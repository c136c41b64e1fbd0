"""What an access costs on a machine whose file says more of its memory than latencies: caches, rates, overlap.

On other machines (`cpu.timed` is 0) an access costs its pair's latency, by identity (`clock_ns`), and nothing here runs. On such a
one no access finds its page through `l1_hint`'s first half, which leads to an entry that matches nothing; so each goes
through `translate_slow`, which calls `timed_access`, and what it costs is added to `cpu.memory_ns`.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.bandwidth import LINE_SHIFT
from numaemu.hardware.cache import core_t
from numaemu.hardware.controller import KEPT_PS, PS, fetch_line, use_line, use_table_line, wait_overlapping
from numaemu.hardware.hierarchy import access_line, hit_first_level
from numaemu.hardware.paging import PAGE_MASK
from numaemu.hardware.prefetch import prefetch_behind
from numaemu.hardware.processor import X86_PF_WRITE
from numaemu.hardware.tlb_sets import order_l2
from numaemu.spec.param import L1_ENTRIES_MAX, L1_HINTS, L1_VIEWS

U = np.uint64
WORD = 8  # bytes that one access of a range moves
NO_LINE = ~U(0)
NO_PAGE = L1_ENTRIES_MAX + L1_VIEWS  # the TLB entry that matches nothing


def enable_timing(cpu):
    """From now on each access of a CPU is timed. At boot, before the CPU's first access."""
    cpu.timed, cpu.hint_base = 1, L1_HINTS
    order_l2(cpu)
    for i in range(L1_HINTS):
        cpu.l1_hint[i] = NO_PAGE


@hot
def charge_hit(cpu, ns, write):
    """The first level has a line; accesses that need not wait for each other have it as soon as they begin."""
    if cpu.outstanding > 1 and (write or cpu.overlap != 0):
        cpu.memory_ps += KEPT_PS + cpu.chain_ps
        cpu.chain_ps = 0
    else:
        cpu.memory_ns += ns


@kernel("void(cpu_t*, u64, bool)")
def timed_line(cpu, physical, write):
    """One access to a physical address: what it waits for."""
    if cpu.keeps_lines != U(0):
        cpu.memory_ns += use_line(cpu, physical, write)
        return
    if cpu.caches == U(0):
        cpu.memory_ns += fetch_line(cpu, physical, write)
        return
    core = core_t.at(cpu.caches)
    if hit_first_level(core, physical, write):
        charge_hit(cpu, core.l1_latency_ns, write)
        return
    ns = access_line(cpu, core, physical, write)
    if cpu.outstanding > 1 and (write or cpu.overlap != 0) and ns > 0:
        wait_overlapping(cpu, ns, write)
    else:
        cpu.memory_ns += ns
    if core.prefetchers != U(0) and core.at > 0:
        prefetch_behind(cpu, core, physical >> core.line_shift)


@hot
def charge_walk_hit(cpu, ns):
    """The first level has the line of a page walk."""
    if cpu.overlap == 0 or cpu.outstanding == 1:
        cpu.memory_ns += ns
    else:
        cpu.chain_ps += ns * PS


@kernel("void(cpu_t*, u64)")
def timed_walk_cached(cpu, physical):
    """timed_walk where there are caches, and the first level has not the line."""
    if cpu.overlap == 0 or cpu.outstanding == 1:
        timed_line(cpu, physical, False)
    else:
        ns, ps, cpu.overlap = cpu.memory_ns, cpu.memory_ps, 0
        timed_line(cpu, physical, False)
        cpu.chain_ps += (cpu.memory_ns - ns) * PS + cpu.memory_ps - ps
        cpu.memory_ns, cpu.memory_ps, cpu.overlap = ns, ps, 1


@hot
def timed_walk(cpu, physical, lowest):
    """One load of a page walk: what it waits for. In a vector operation it is the begin of a chain (controller.py)."""
    if cpu.keeps_lines != U(0):
        use_table_line(cpu, physical, lowest)
    elif cpu.caches != U(0) and hit_first_level(core_t.at(cpu.caches), physical, False):
        charge_walk_hit(cpu, core_t.at(cpu.caches).l1_latency_ns)
    else:
        timed_walk_cached(cpu, physical)


@hot
def line_at_hand(cpu, physical):
    """The line of an access that has been timed, if the next one to it of the same kind is sure to find it; else NO_LINE."""
    return physical >> U(LINE_SHIFT) if cpu.keeps_lines != U(0) else NO_LINE


@hot
def timed_again(cpu, physical, write):
    """timed_line for vectors: what a CPU without caches does, and what the first level has, is served here, without a call."""
    if cpu.keeps_lines != U(0):
        cpu.memory_ns += use_line(cpu, physical, write)
    elif cpu.caches == U(0) or not hit_first_level(core_t.at(cpu.caches), physical, write):
        timed_line(cpu, physical, write)
    else:
        charge_hit(cpu, core_t.at(cpu.caches).l1_latency_ns, write)


@hot
def timed_behind(cpu, physical, write, found):
    """timed_again behind so many accesses to the line before, which have found it at hand."""
    cpu.memory_ps += found * KEPT_PS
    timed_again(cpu, physical, write)


@hot
def timed_access(cpu, slot, address, access):
    """The access through an L1 entry that is about to be counted."""
    physical = (cpu.l1[slot].host & PAGE_MASK) - cpu.memory + (address & ~PAGE_MASK)
    timed_line(cpu, physical, access & X86_PF_WRITE != U(0))


@kernel("void(cpu_t*, u64, i64, bool)")
def timed_rest(cpu, host, nbytes, write):
    """The accesses behind the first of a range that lies in one page, a word each; `host`: host address of its first byte."""
    physical, found = host - cpu.memory, 0
    last = line_at_hand(cpu, physical)
    for done in range(WORD, nbytes, WORD):
        if (physical + U(done)) >> U(LINE_SHIFT) == last:
            found += 1
            continue
        timed_behind(cpu, physical + U(done), write, found)
        found, last = 0, line_at_hand(cpu, physical + U(done))
    cpu.memory_ps += found * KEPT_PS
