"""A Perfetto trace (ui.perfetto.dev, which runs offline too).

Tracks: one for each CPU with the task that runs, one for each task with its faults and reclaim, one for each node's kernel threads, and
counters: free memory of each node, faults and reclaimed pages. A shootdown is a slice, with arrows to the CPUs that answered.
"""

from numaemu.host.extras import need

SEQUENCE = 1
CPU_PID, TASK_PID, NODE_PID, COUNTER_PID = range(1_000_001, 1_000_005)  # processes that only group tracks
# what begins and ends on the track of who does it: event: (name, begins?)
SLICES = {
    "page_fault_user": ("page fault", True),
    "page_fault_end": ("page fault", False),
    "mm_vmscan_direct_reclaim_begin": ("direct reclaim", True),
    "mm_vmscan_direct_reclaim_end": ("direct reclaim", False),
    "mm_vmscan_kswapd_wake": ("kswapd", True),
    "mm_vmscan_kswapd_sleep": ("kswapd", False),
    "mm_compaction_begin": ("compaction", True),
    "mm_compaction_end": ("compaction", False),
    "shootdown_end": ("shootdown", False),
}
COUNTED = {
    "page_fault_end": "page faults",
    "mm_vmscan_direct_reclaim_end": "pages reclaimed directly",
    "mm_migrate_pages": "pages migrated",
}
REMOTE_SEND_IPI, REMOTE_SHOOTDOWN = 4, 1


def check():
    need("perfetto.trace_builder.proto_builder", "trace", "a trace for Perfetto")


class Builder:
    """Writes packets; a track is described before its first event."""

    def __init__(self, trace, file):
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

        self.trace, self.kinds, self.out = trace, TrackEvent, StreamingTraceProtoBuilder(file)
        self.tracks, self.open, self.running, self.sums = {}, {}, {}, {}

    def packet(self, ns=None):
        """A packet to be filled, of an event if it has a time."""
        packet = self.out.create_packet()
        if ns is not None:
            packet.timestamp = ns
            packet.trusted_packet_sequence_id = SEQUENCE
        return packet

    def track(self, key, name, group, group_name, counter=False):
        """The number of a track; groups are processes of their own."""
        if key in self.tracks:
            return self.tracks[key]
        if group not in self.tracks:
            self.tracks[group] = len(self.tracks) + 1
            packet = self.packet()
            packet.track_descriptor.uuid = self.tracks[group]
            packet.track_descriptor.process.pid = group
            packet.track_descriptor.process.process_name = group_name
            self.out.write_packet(packet)
        self.tracks[key] = len(self.tracks) + 1
        packet = self.packet()
        packet.track_descriptor.uuid = self.tracks[key]
        packet.track_descriptor.parent_uuid = self.tracks[group]
        packet.track_descriptor.name = name
        if counter:
            packet.track_descriptor.counter.SetInParent()
        self.out.write_packet(packet)
        return self.tracks[key]

    def event(self, ns, track, kind, name=None, fields=None, flow=None, ends=None):
        """A slice's begin or end, or an instant."""
        packet = self.packet(ns)
        packet.track_event.type = kind
        packet.track_event.track_uuid = track
        if name is not None:
            packet.track_event.name = name
        if flow is not None:
            packet.track_event.flow_ids.append(flow)
        if ends is not None:
            packet.track_event.terminating_flow_ids.append(ends)
        for key, value in (fields or {}).items():
            note = packet.track_event.debug_annotations.add()
            note.name, note.string_value = key, hex(value) if key in ("address", "pfn") else str(value)
        self.out.write_packet(packet)

    def count(self, ns, name, value):
        """A counter has this value from now on."""
        track = self.track(("counter", name), name, COUNTER_PID, "counters", True)
        packet = self.packet(ns)
        packet.track_event.type = self.kinds.TYPE_COUNTER
        packet.track_event.track_uuid = track
        packet.track_event.counter_value = value
        self.out.write_packet(packet)

    def cpu_track(self, context):
        group = (CPU_PID, "CPUs") if context < self.trace.nr_cpus else (NODE_PID, "kernel threads of nodes")
        return self.track(("context", context), self.trace.context_name(context), *group)

    def own_track(self, happened):
        """Of the task; without one, of the context."""
        if happened.pid and happened.context < self.trace.nr_cpus:
            name = f"{self.trace.name_of(happened.pid)} {happened.pid}"
            return self.track(("task", happened.pid), name, TASK_PID, "tasks")
        return self.cpu_track(happened.context)

    # -- events ----------------------------------------------------------------------------------------------

    def switch(self, happened):
        """The task on a CPU's track."""
        track = self.cpu_track(happened.context)
        if self.running.pop(happened.context, None):
            self.event(happened.ns, track, self.kinds.TYPE_SLICE_END)
        if pid := happened.fields["next_pid"]:
            self.running[happened.context] = pid
            self.event(happened.ns, track, self.kinds.TYPE_SLICE_BEGIN, f"{happened.fields['next_comm']} {pid}")

    def flush(self, happened):
        """A shootdown begins, or a CPU answers one."""
        fields = happened.fields
        flow = (fields["initiator"] + 1) << 40 | fields["flush"]
        if fields["reason"] == REMOTE_SEND_IPI:
            self.begin(happened, self.own_track(happened), "shootdown", flow=flow)
        elif fields["reason"] == REMOTE_SHOOTDOWN:
            self.event(
                happened.ns, self.cpu_track(happened.context), self.kinds.TYPE_INSTANT, "flush", fields, ends=flow
            )

    def begin(self, happened, track, name, flow=None):
        self.open.setdefault(track, []).append(name)
        self.event(happened.ns, track, self.kinds.TYPE_SLICE_BEGIN, name, happened.fields, flow)

    def end(self, happened, track, name):
        """Close a slice, if its begin is known; a fault that failed has none of its own."""
        stack = self.open.get(track, [])
        while name in stack:
            self.event(happened.ns, track, self.kinds.TYPE_SLICE_END)
            if stack.pop() == name:
                break

    def add(self, happened):
        """One event."""
        name = happened.event.name
        if name in COUNTED:
            amount = next((happened.fields[key] for key in ("nr_reclaimed", "succeeded") if key in happened.fields), 1)
            self.sums[name] = self.sums.get(name, 0) + amount
            self.count(happened.ns, COUNTED[name], self.sums[name])
        if name == "sched_switch":
            self.switch(happened)
        elif name == "tlb_flush":
            self.flush(happened)
        elif name in SLICES:
            what, begins = SLICES[name]
            (self.begin if begins else self.end)(happened, self.own_track(happened), what)
        else:
            self.event(happened.ns, self.own_track(happened), self.kinds.TYPE_INSTANT, name, happened.fields)

    def finish(self, ns):
        """Close what is open."""
        for track, stack in self.open.items():
            for _ in stack:
                self.event(ns, track, self.kinds.TYPE_SLICE_END)
        for context in self.running:
            self.event(ns, self.cpu_track(context), self.kinds.TYPE_SLICE_END)


def write(trace, path):
    """The file."""
    with open(path, "wb") as file:
        builder, last = Builder(trace, file), 0
        for ns, free in trace.memory:
            for node, kb in free.items():
                builder.count(ns, f"free memory of node {node}, kB", kb)
        for happened in trace.events():
            builder.add(happened)
            last = happened.ns
        builder.finish(last)
