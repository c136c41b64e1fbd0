"""Takes the events of a running machine out of its rings, before they overwrite each other, and hands them to a writer."""

import contextlib
import importlib
import threading
from typing import NamedTuple

import numpy as np

from numaemu.errors import ConfigError, MachineCheck
from numaemu.kernel.fs.tracefs.events import EVENTS, NAMES, SYSTEMS, text_of, values
from numaemu.kernel.fs.tracefs.files import ROOT, chosen
from numaemu.kernel.include.trace import EVENT_BITS, trace_record_t
from numaemu.spec.units import nearest

INTERVAL_S = 0.02  # between two times that rings are emptied
INTERVAL_NS = 1_000_000  # the same in lockstep, by emulated time
WRITERS = {".perfetto": "perfetto", ".pftrace": "perfetto", ".dat": "trace_dat", ".txt": "ftrace", ".parquet": "table"}


class Happened(NamedTuple):
    """An event that has happened."""

    ns: int
    context: int
    pid: int
    event: object  # of EVENTS
    fields: dict

    @property
    def text(self):
        return text_of(self.event, self.fields)


class Trace:
    """The events of a run, by time, and what a writer has to know: the machine's shape, names of tasks, how many were lost."""

    def __init__(self, topology, names, records, lost, memory=()):
        self.topology, self.names, self.records, self.lost, self.memory = topology, names, records, lost, memory

    @property
    def nr_cpus(self):
        return self.topology.nr_cpu_ids

    def name_of(self, pid):
        return self.names.get(pid, f"task {pid}") if pid else "idle"

    def context_name(self, context):
        return f"CPU {context}" if context < self.nr_cpus else f"node {context - self.nr_cpus} kernel threads"

    def __len__(self):
        return sum(len(rows) for rows in self.records.values())

    def in_order(self):
        """(contexts, records) of all events, by their clocks, then by context."""
        contexts = np.concatenate([np.full(len(rows), c) for c, rows in self.records.items()] or [np.empty(0, int)])
        rows = np.concatenate([*self.records.values()] or [np.empty(0, trace_record_t.dtype)])
        order = np.lexsort((np.arange(len(rows)), contexts, rows["clock_ns"]))
        return contexts[order], rows[order]

    def happened(self, context, row):
        """A record, as a Happened."""
        what = int(row["what"])
        event = EVENTS[what & (1 << EVENT_BITS) - 1]
        return Happened(int(row["clock_ns"]), int(context), what >> EVENT_BITS, event, values(event, row, self.names))

    def events(self):
        """Happened, one after the other by their clocks."""
        yield from map(self.happened, *self.in_order())


def check(events, path):
    """The writer's module, or ConfigError: before a run rather than after it."""
    suffix = next((suffix for suffix in WRITERS if str(path).endswith(suffix)), None)
    if suffix is None:
        raise ConfigError(f"--trace-out is {path}, must end in {', '.join(WRITERS)}")
    for word in events.replace(",", " ").split() or [""]:
        try:
            chosen(word.removeprefix("!"))
        except OSError:
            known = [*NAMES, *SYSTEMS, *(event.name for event in EVENTS)]
            raise ConfigError(
                f"--trace has no event {word!r}{nearest(word, known)}; 'all' means all of {', '.join(SYSTEMS)}"
            ) from None
    writer = importlib.import_module(f"numaemu.tools.tracing.{WRITERS[suffix]}")
    writer.check()
    return writer


class Collector:
    """Traces a machine within a `with` block; for a file, if there is a path."""

    def __init__(self, events, path=None, latencies=None):
        self.latencies = latencies  # of the page of the run, which gets the same events
        self.chosen, self.path, self.writer = events, path, check(events, path) if path else None
        self.parts, self.lost, self.names, self.memory, self.ended = {}, 0, {}, [], threading.Event()

    @contextlib.contextmanager
    def of(self, machine):
        """Switch the events on, and off at the end."""
        self.machine, self.topology = machine, machine.topology
        machine.write(f"{ROOT}/options/overwrite", "0")
        machine.write(f"{ROOT}/trace", "")
        machine.write(f"{ROOT}/set_event", self.chosen)
        timer = thread = None
        if machine.topology.lockstep:
            timer = machine.every(INTERVAL_NS, lambda now_ns: self.take())
        else:
            thread = threading.Thread(target=self.run, daemon=True, name="tracing")
            thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            with contextlib.suppress(MachineCheck):
                if thread is not None:
                    thread.join()
                if timer is not None:
                    timer.stop()
            with contextlib.suppress(MachineCheck, OSError):
                machine.write(f"{ROOT}/set_event", "")
                self.take()

    def run(self):
        """The thread."""
        with contextlib.suppress(MachineCheck, OSError):
            while not self.ended.wait(INTERVAL_S):
                self.take()

    def drained(self):
        """Empty the rings: [(context, records)]"""
        parts, lost, names = self.machine._ask("trace")
        self.lost += lost
        self.names |= names
        return [(context, np.frombuffer(data, trace_record_t.dtype)) for context, data in parts]

    def take(self):
        """Empty the rings, and note each node's free memory."""
        parts = self.drained()
        for context, rows in parts:
            self.parts.setdefault(context, []).append(rows)
            if self.latencies is not None:
                self.latencies.fold(context, rows)
        if parts:
            newest = max(int(rows[-1][-1]["clock_ns"]) for rows in self.parts.values())
            free = {int(node): int(kb) for node, kb in enumerate(self.free_kb())}
            self.memory.append((newest, free))

    def free_kb(self):
        for node in range(self.topology.nr_nodes):
            text = self.machine.read(f"/sys/devices/system/node/node{node}/meminfo")
            yield text.split("MemFree:")[1].split()[0]

    def trace(self):
        """What there was."""
        records = {context: np.concatenate(rows) for context, rows in self.parts.items()}
        return Trace(self.topology, self.names, records, self.lost, self.memory)

    def write(self):
        """Write the file: what it says of itself, in a line."""
        trace = self.trace()
        assert self.writer is not None, "made without a path"
        try:
            self.writer.write(trace, self.path)
        except OSError as error:
            raise ConfigError(f"--trace-out is {self.path}: {str(error.strerror or error).lower()}") from None
        return f"{len(trace):,} events in {self.path}" + (f", {self.lost:,} were lost" if self.lost else "")
