"""Prefetchers: what a CPU brings in before an access asks for it. They see the accesses that miss the first level.

`next-line` brings the line behind the one that was asked for. `stride` follows the last STRIDE_PAGES pages: where the distance between
two accesses to a page comes again, it brings the lines at once and twice that distance ahead. Neither goes beyond the page. A
line comes into the second level (the first where there is no other), at once and without making anybody wait; one that
another CPU owns is left alone.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u64
from numaemu.hardware.cache import LINE_EXCLUSIVE, LINE_PREFETCHED, LINE_SHARED, STRIDE_PAGES
from numaemu.hardware.coherence import OWNED, copies_of_others, hierarchy_of, lock_bank, note_owned, unlock_bank
from numaemu.hardware.controller import prefetch_line
from numaemu.hardware.hierarchy import fill, innermost
from numaemu.spec.cache import PREFETCHERS
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64
STRIDE, NEXT_LINE = (U(1 << PREFETCHERS.index(name)) for name in ("stride", "next-line"))
SURE = 2  # the times that a distance has come in a row before it is followed; assumed
AHEAD = 2  # lines that are brought then; assumed


@hot
def bring_with_lock(cpu, core, line, into):
    """Bring a line into a level and those behind it, unless the CPU has it nearer or others own it. True if it came."""
    hierarchy, at = hierarchy_of(core), innermost(core, line)
    if at <= into:
        return False
    state = LINE_EXCLUSIVE
    if hierarchy.directory != U(0) and copies_of_others(hierarchy, core, line) != U(0):
        if u64.array(hierarchy.directory)[line] & OWNED != U(0):
            return False
        state = LINE_SHARED
    if at == core.nr_levels:
        prefetch_line(cpu, line << core.line_shift)
    fill(cpu, core, at, into, line, state | LINE_PREFETCHED)
    if state == LINE_EXCLUSIVE and into < core.nr_private:
        note_owned(hierarchy, line, True)
    return True


@kernel("void(cpu_t*, core_t*, u64)")
def bring_line(cpu, core, line):
    """Prefetch a line."""
    lock_bank(hierarchy_of(core), line)
    if bring_with_lock(cpu, core, line, 1 if core.nr_levels > 1 else 0):
        core.prefetches += 1
    unlock_bank(hierarchy_of(core), line)


@hot
def same_page(core, line, other):
    shift = U(PAGE_SHIFT) - core.line_shift
    return line >> shift == other >> shift


@hot
def follow_stride(cpu, core, line):
    """Note an access among those of its page, and bring what comes next if the distance is the same again and again."""
    page = line >> (U(PAGE_SHIFT) - core.line_shift)
    seen = core.strides[np.int64(page & U(STRIDE_PAGES - 1))]
    if seen.page != page + U(1):
        seen.page, seen.line, seen.stride, seen.times = page + U(1), np.int64(line), 0, 0
        return
    stride = np.int64(line) - seen.line
    seen.times = seen.times + 1 if stride == seen.stride else 1
    seen.line, seen.stride = np.int64(line), stride
    if seen.times >= SURE and stride != 0:
        for step in range(1, AHEAD + 1):
            ahead = U(np.int64(line) + step * stride)
            if same_page(core, line, ahead):
                bring_line(cpu, core, ahead)


@kernel("void(cpu_t*, core_t*, u64)")
def prefetch_behind(cpu, core, line):
    """What the prefetchers do after an access to a line that the first level had not."""
    if core.prefetchers & STRIDE != U(0):
        follow_stride(cpu, core, line)
    if core.prefetchers & NEXT_LINE != U(0) and same_page(core, line, line + U(1)):
        bring_line(cpu, core, line + U(1))
