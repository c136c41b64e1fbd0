"""Mark and sweep (McCarthy): what is marked stays where it is, and runs of what is not become chunks of the free lists."""

from numaemu.api.access import get, put
from numaemu.compiler.library import far, library
from numaemu.gc import freelists
from numaemu.gc.freelists import add_chunk, empty_lists
from numaemu.gc.marking import mark_all
from numaemu.gc.objects import MARK, size_of
from numaemu.gc.records import FULL, begin_record, end_record
from numaemu.gc.space import START, TOP, USED, retire_all

setup, refill, used, region = freelists.all_free, freelists.refill, freelists.used, freelists.region


@library
def sweep(cpu, heap):
    """Make the free lists anew out of what has no mark; marks go. The bytes of what stays."""
    thing, end = get(cpu, heap + START), get(cpu, heap + TOP)
    empty_lists(cpu, heap)
    run, live = thing, 0  # `run`: where the garbage before `thing` begins
    while thing < end:
        header = get(cpu, thing)
        nbytes = size_of(header)
        if header & MARK:
            put(cpu, thing, header & ~MARK)
            if run < thing:
                add_chunk(cpu, heap, run, thing - run)
            live += nbytes
            run = thing + nbytes
        thing += nbytes
    if run < end:
        add_chunk(cpu, heap, run, end - run)
    put(cpu, heap + USED, live)
    return live


@far("void(cpu_t*, i64, i64, i64)")
def collect(cpu, heap, cause, everything):
    """Mark, then sweep. The world stands still."""
    retire_all(cpu, heap)
    total = get(cpu, heap + TOP) - get(cpu, heap + START)
    log = begin_record(cpu, heap, cause, FULL, get(cpu, heap + USED), total)
    n = mark_all(cpu, heap)
    live = sweep(cpu, heap)
    end_record(cpu, heap, log, live, n)
