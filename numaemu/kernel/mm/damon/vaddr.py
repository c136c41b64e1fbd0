"""Where a task has memory, for DAMON: __damon_va_three_regions of Linux's mm/damon/vaddr.c."""

from numaemu.spec.param import PAGE_SIZE


def three_regions(ranges):
    """[(start, end)] of mappings, in order, as three ranges: what the two largest gaps leave. Fewer, where there are fewer gaps: a
    task here may have fewer mappings than Linux's, whose programs all have a text, a heap, libraries and a stack.
    """
    gaps = [(b[0] - a[1], a[1], b[0]) for a, b in zip(ranges, ranges[1:], strict=False) if b[0] - a[1] >= PAGE_SIZE]
    largest = sorted(sorted(gaps, key=lambda gap: -gap[0])[:2], key=lambda gap: gap[1])
    cuts = [ranges[0][0], *(place for gap in largest for place in gap[1:]), ranges[-1][1]] if ranges else []
    return list(zip(cuts[::2], cuts[1::2], strict=True))
