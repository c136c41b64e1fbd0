"""ftrace's text, as /sys/kernel/tracing/trace has it."""

from numaemu.kernel.fs.tracefs.ring import HEAD, thread_name


class _Shape:
    """What thread_name looks at."""

    def __init__(self, nr_cpus):
        self.nr_cpus = nr_cpus


def check():
    """Nothing else is needed."""


def line(trace, happened):
    """One event."""
    who = trace.names.get(happened.pid, "<...>") if happened.pid else "<idle>"
    if happened.context >= trace.nr_cpus:
        who = thread_name(_Shape(trace.nr_cpus), happened.context, happened.event.system)
    us = happened.ns // 1000
    head = f"{who[:16]:>16}-{happened.pid:<7} [{happened.context:03d}] ..... {us // 10**6:5d}.{us % 10**6:06d}: "
    return f"{head}{happened.event.name}: {happened.text}\n"


def write(trace, path):
    """The file."""
    contexts = trace.nr_cpus + trace.topology.nr_nodes
    with open(path, "w", encoding="utf-8") as file:
        file.write(HEAD.format(entries=len(trace), written=len(trace) + trace.lost, cpus=contexts))
        for happened in trace.events():
            file.write(line(trace, happened))
