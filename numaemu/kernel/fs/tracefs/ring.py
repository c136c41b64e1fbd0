"""What the rings of events hold, as records and as lines of text: Linux's kernel/trace/{ring_buffer,trace_output}.c.

Behind the CPUs come the nodes' kernel threads, as CPUs of their own: their clocks are their own, too.
"""

import numpy as np

from numaemu.kernel.fs.proc.task import live_tasks
from numaemu.kernel.fs.tracefs.events import EVENTS, NAMES, UNKNOWN, text_of, values
from numaemu.kernel.include.mm_types import present_cpus, task_name, task_t
from numaemu.kernel.include.trace import EVENT_BITS, TRACE_RECORDS, trace_record_t, trace_t

IDLE = "<idle>"


def ring(machine, context):
    return trace_t.array(machine.traces)[context]


def copy_records(machine, context, first, in_order=False):
    """(a copy of the ring's records from number `first` on that are whole, the number after the last, how many are missing).

    `in_order`: only those before the first one whose writer is not done yet.
    """
    trace = ring(machine, context)
    count = int(trace.count)
    start = max(first, count - TRACE_RECORDS)
    if start >= count:
        return np.empty(0, trace_record_t.dtype), count, 0
    wanted, rows = np.arange(start, count), trace.records.as_numpy()
    places = wanted % TRACE_RECORDS
    copy = rows[places].copy()
    under_way = np.flatnonzero(copy["seq"] <= wanted)
    n = int(under_way[0]) if in_order and len(under_way) else len(wanted)
    whole = (copy["seq"] == wanted + 1) & (rows["seq"][places] == wanted + 1)
    found = copy[:n][whole[:n]]
    return found, start + n, start + n - first - len(found)


def contexts(machine):
    """The numbers of the rings: of CPUs, and of nodes' kernel threads."""
    return [*present_cpus(machine), *range(machine.nr_cpus, machine.nr_cpu_ids)]


def names_of(system):
    """{pid: name} of tasks as far as they are known: those that live, and those that were seen before."""
    tasks = task_t.array(system.machine.tasks)
    _, alive = live_tasks(system.machine)
    system.trace.names |= {int(tasks[n].pid): task_name(tasks[n]) for n in alive.tolist()}
    return system.trace.names


def learn_names(names, records):
    """Names that sched_switch tells: of tasks that have ended since."""
    switch = NAMES.index("sched:sched_switch")
    rows = records[(records["what"] & (1 << EVENT_BITS) - 1) == switch]
    for pid, low, high in {(int(r["b"]), int(r["d"]), int(r["e"])) for r in rows}:
        if pid:
            names.setdefault(
                pid, (low.to_bytes(8, "little") + high.to_bytes(8, "little")).split(b"\0")[0].decode(errors="replace")
            )


def thread_name(machine, context, system_name):
    """Who works in the context of a node's kernel threads."""
    node = context - machine.nr_cpus
    return {"vmscan": f"kswapd{node}", "compaction": f"kcompactd{node}", "huge_memory": "khugepaged"}.get(
        system_name, f"node{node}"
    )


def line(machine, context, record, names):
    """A line of `trace`."""
    what = int(record["what"])
    event, pid = EVENTS[what & (1 << EVENT_BITS) - 1], what >> EVENT_BITS
    who = names.get(pid, UNKNOWN) if pid else IDLE
    if context >= machine.nr_cpus:
        who = thread_name(machine, context, event.system)
    us = int(record["clock_ns"]) // 1000
    task = f"{who[:16]:>16}-{pid:<7}"
    return f"{task} [{context:03d}] ..... {us // 10**6:5d}.{us % 10**6:06d}: {event.name}: {text_of(event, values(event, record, names))}\n"


def lines_of(system, parts):
    """Lines of several contexts' records, by time."""
    names, rows = names_of(system), []
    for context, records in parts:
        learn_names(names, records)
    for context, records in parts:
        rows += [(int(r["clock_ns"]), context, i, r) for i, r in enumerate(records)]
    rows.sort(key=lambda row: row[:3])
    return [line(system.machine, context, record, names) for _, context, _, record in rows]


HEAD = """# tracer: nop
#
# entries-in-buffer/entries-written: {entries}/{written}   #P:{cpus}
#
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""


def show_trace(system):
    """trace: everything that the rings hold, and stays there."""
    parts = [(context, copy_records(system.machine, context, 0)[0]) for context in contexts(system.machine)]
    lines = lines_of(system, parts)
    written = sum(int(ring(system.machine, context).count) for context in contexts(system.machine))
    return HEAD.format(entries=len(lines), written=written, cpus=len(contexts(system.machine))) + "".join(lines)


def clear_trace(system, _text):
    """Whatever is written empties the rings. Events that happen meanwhile may be lost, or stay."""
    mask, system.machine.trace_events = system.machine.trace_events, 0
    for context in contexts(system.machine):
        trace = ring(system.machine, context)
        trace.records.as_numpy()["seq"] = 0
        trace.count = trace.lost = trace.read = 0
    system.machine.trace_events = mask


def drain(system):
    """(parts: [(context, records)] that nobody has taken before, how many were lost); they count as taken then."""
    parts, lost = [], 0
    for context in contexts(system.machine):
        trace = ring(system.machine, context)
        records, trace.read, overwritten = copy_records(system.machine, context, int(trace.read), True)
        lost += overwritten + int(trace.lost)
        trace.lost = 0
        if len(records):
            parts.append((context, records))
    return parts, lost


def show_trace_pipe(system):
    """trace_pipe: what has come since it was last read. It does not wait for more."""
    parts, lost = drain(system)
    return (f"CPU:0 [LOST {lost} EVENTS]\n" if lost else "") + "".join(lines_of(system, parts))
