"""Tracepoints: what each context (a CPU, a node's kernel threads) did when, in emulated time. Linux's include/trace/events.

Each context has a ring of its own. An event that is off costs a load and a branch. What an event's words mean, and its text, stand
in kernel/fs/tracefs/events.py.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, i64, u64
from numaemu.kernel.include.mm_types import machine_t, task_t
from numaemu.mmu import clock_ns

U = np.uint64
TRACE_RECORDS = 1 << 16  # of a context's ring, a power of 2; the ring is 4 MiB, which the host gives as it fills
EVENT_BITS = 8  # of a record's `what`: the event's number; the bits above are the pid

# fmt: off
(PAGE_FAULT_USER, MM_PAGE_ALLOC, MM_PAGE_FREE, MM_PAGE_ALLOC_EXTFRAG, TLB_FLUSH,
 MM_VMSCAN_WAKEUP_KSWAPD, MM_VMSCAN_KSWAPD_WAKE, MM_VMSCAN_KSWAPD_SLEEP, MM_VMSCAN_DIRECT_RECLAIM_BEGIN,
 MM_VMSCAN_DIRECT_RECLAIM_END, MM_VMSCAN_LRU_ISOLATE, MM_VMSCAN_LRU_SHRINK_INACTIVE,
 MM_COMPACTION_BEGIN, MM_COMPACTION_END, MM_COMPACTION_ISOLATE_MIGRATEPAGES, MM_COMPACTION_KCOMPACTD_WAKE,
 MM_MIGRATE_PAGES, SCHED_SWITCH, SCHED_WAKEUP, SCHED_MOVE_NUMA, MARK_VICTIM, MM_COLLAPSE_HUGE_PAGE, WRITEBACK_PAGES_WRITTEN,
 NODE_MESSAGE, PAGE_FAULT_END, SHOOTDOWN_END) = range(26)      # places of the rows of events.EVENTS

TLB_REMOTE_SHOOTDOWN, TLB_REMOTE_SEND_IPI = 1, 4               # enum tlb_flush_reason

trace_record_t = Struct("trace_record_t", [
    ("clock_ns", i64), ("what", i64),          # the context's clock; pid << EVENT_BITS | event
    ("a", u64), ("b", u64), ("c", u64), ("d", u64), ("e", u64),
    ("seq", i64),                              # which of the ring's records this is, from 1; written last
], nbytes=64)
# fmt: on

# Shared words of trace_t: the word | its writer | why a reader may trust it.
# - count | Atomic add, by its context and by the node's process, which is not the one of its kernel threads. | A hint; whose a
#   record is says its `seq`.
# - a record | The context that got its number from count. | Its seq (release) is that number: else it is not written yet, or
#   was overwritten. A reader looks at it before and behind its copy.
# - lost | Atomic add. | A count.
# - read | The coordinator: how many trace_pipe has handed out. | For a ring that stops when it is full.
trace_t = Struct(
    "trace_t",
    [("count", i64), ("lost", i64), ("read", i64), ("_pad", u64, 5), ("records", trace_record_t, TRACE_RECORDS)],
)


@kernel("void(cpu_t*, i64, u64, u64, u64, u64, u64)")
def trace_record(cpu, event, a, b, c, d, e):
    """Note an event that is on, unless a filter leaves it out or a full ring takes no more."""
    machine = machine_t.at(cpu.machine)
    pid = task_t.array(machine.tasks)[cpu.task].pid if cpu.task != 0 else 0
    if machine.trace_pid != 0 and machine.trace_pid != pid:
        return
    if (machine.trace_nodes >> U(cpu.node)) & U(1) == U(0):
        return
    trace = trace_t.array(machine.traces)[cpu.id]
    if machine.trace_stop != 0 and trace.count - trace.read >= TRACE_RECORDS:
        fetch_add(trace, "lost", 1)
        return
    number = fetch_add(trace, "count", 1)
    record = trace.records[number & (TRACE_RECORDS - 1)]
    store_release(record, "seq", 0)
    record.clock_ns, record.what = clock_ns(cpu), (pid << EVENT_BITS) | event
    record.a, record.b, record.c, record.d, record.e = a, b, c, d, e
    store_release(record, "seq", number + 1)


@hot
def trace_on(cpu, event):
    """True if an event is on."""
    return (machine_t.at(cpu.machine).trace_events >> U(event)) & U(1) != U(0)


@hot
def trace_event(cpu, event, a, b, c, d, e):
    """A tracepoint."""
    if trace_on(cpu, event):
        trace_record(cpu, event, U(a), U(b), U(c), U(d), U(e))
