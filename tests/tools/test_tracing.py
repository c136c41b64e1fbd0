"""Traces of a run in every format, read by the tools that they are for."""

import json
import re
import struct
import subprocess

import pytest
from wanting import need_package, need_program

from numaemu.errors import ConfigError
from numaemu.tools import cli
from numaemu.tools.tracing import collector, trace_dat

WORKLOAD = '''"""Faults, swaps, shoots down."""
MACHINE = {"nodes": 2, "cpus_per_node": 1, "memory_per_node": "16MiB"}

def other(task, addr):
    task.touch(addr, 1 << 20)

def work(task):
    memory = task.mmap("1MiB")
    memory.touch()
    task.clone(other, memory.addr, cpu=1).result()
    task.munmap(memory.addr, memory.nbytes)
    big = task.mmap("40MiB")
    for _ in range(2):
        big.touch()

def main(machine):
    machine.swapon("64MiB")
    machine.run(work, name="worker")
    return machine.stats()["vmstat"]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tracing")
    (path / "w.py").write_text(WORKLOAD)
    return path


def traced(folder, name, events="all"):
    """A run with its events in a file: (the file, its vmstat, what was said)."""
    out, result = folder / name, folder / "r.json"
    words = ["run", str(folder / "w.py"), "-q", "--trace", events, "--trace-out", str(out), "--json", str(result)]
    assert cli.main(words) == 0
    return out, json.loads(result.read_text())["result"]


def test_text(folder, capsys):
    path, vmstat = traced(folder, "t.txt")
    said = capsys.readouterr().err
    lost = int(match[1].replace(",", "")) if (match := re.search(r"([\d,]+) were lost", said)) else 0
    rows = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert int(re.search(r"([\d,]+) events in", said)[1].replace(",", "")) == len(rows)
    faults = sum(": page_fault_end:" in row for row in rows)
    assert faults <= vmstat["pgfault"] <= faults + lost
    assert any(re.match(r" +worker-\d+ +\[000\] \.{5} +\d+\.\d{6}: page_fault_user: address=0x", row) for row in rows)
    for name in (
        "mm_vmscan_kswapd_wake",
        "sched_switch",
        "mm_page_alloc",
        "tlb_flush",
        "mm_vmscan_lru_shrink_inactive",
    ):
        assert lost or any(f": {name}: " in row for row in rows), name
    times = [float(re.search(r"(\d+\.\d{6}): ", row)[1]) for row in rows]
    assert times == sorted(times)


def test_trace_cmd_reads_it(folder, capsys):
    """trace-cmd prints of trace.dat what the text of the same events says."""
    need_program("trace-cmd")
    path, _ = traced(folder, "t.dat", "vmscan,tlb,sched,oom")
    count = int(re.search(r"([\d,]+) events in", capsys.readouterr().err)[1].replace(",", ""))
    done = subprocess.run(["trace-cmd", "report", str(path)], capture_output=True, text=True, timeout=120, check=True)
    rows = [line for line in done.stdout.splitlines() if re.search(r"\[\d{3}\]", line)]
    assert len(rows) == count > 20 and not re.search(r"\[FAILED|bad op|unknown", done.stdout + done.stderr, re.I)
    assert any("mm_vmscan_kswapd_wake: nid=" in " ".join(row.split()) for row in rows)
    assert any(re.search(r"sched_switch: .* worker:\d+", row) for row in rows)  # trace-cmd knows this event itself
    assert any(re.search(r"tlb_flush: +pages=\d+ .*\(4\)", row) for row in rows)


def test_perfetto(folder, capsys):
    need_package("perfetto.trace_builder.proto_builder")
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

    path, vmstat = traced(folder, "t.perfetto", "exceptions,sched,tlb,numaemu,vmscan")
    trace = Trace()
    trace.ParseFromString(path.read_bytes())
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}
    names = {track.name or track.process.process_name for track in tracks.values()}
    assert {"CPU 0", "CPUs", "tasks", "counters", "free memory of node 1, kB"} <= names
    assert any(re.fullmatch(r"worker \d+", name) for name in names)
    events = [p for p in trace.packet if p.HasField("track_event")]
    assert all(p.track_event.track_uuid in tracks for p in events)
    depth, names = {}, []
    for p in events:
        kind = p.track_event.type
        if kind == TrackEvent.TYPE_SLICE_BEGIN:
            depth[p.track_event.track_uuid] = depth.get(p.track_event.track_uuid, 0) + 1
            names.append(p.track_event.name)
        elif kind == TrackEvent.TYPE_SLICE_END:
            depth[p.track_event.track_uuid] -= 1
            assert depth[p.track_event.track_uuid] >= 0
    assert set(depth.values()) == {0} and {"page fault", "shootdown", "kswapd"} <= set(names)
    sent = {flow for p in events for flow in p.track_event.flow_ids}
    assert {flow for p in events for flow in p.track_event.terminating_flow_ids} <= sent and sent


def test_parquet(folder):
    need_package("pandas", "pyarrow")
    import pandas

    path, vmstat = traced(folder, "t.parquet", "page_fault_user page_fault_end")
    frame = pandas.read_parquet(path)
    assert set(frame["event"]) == {"exceptions:page_fault_user", "numaemu:page_fault_end"}
    assert (frame["event"] == "numaemu:page_fault_end").sum() == vmstat["pgfault"]
    assert set(frame["comm"]) == {"worker"} and frame["address"].notna().all()
    assert json.loads(frame["fields"][0])["address"] == frame["address"][0]


def test_a_trace_repeats_in_lockstep(folder):
    """Every event at the same time in the same order, and the figures of the run too."""
    texts = []
    for i in range(2):
        out = folder / f"l{i}.txt"
        words = ["run", str(folder / "w.py"), "-q", "--lockstep", "--trace", "all", "--trace-out", str(out)]
        assert cli.main(words) == 0
        texts.append(out.read_text())
    assert texts[0] == texts[1] and texts[0].count("page_fault_user") > 10_000


@pytest.mark.parametrize(
    "words, said",
    [
        (["--trace", "kmem"], "--trace and --trace-out go together"),
        (["--trace", "kmem", "--trace-out", "t.xyz"], "must end in .perfetto"),
        (["--trace", "kmen:*", "--trace-out", "t.txt"], "--trace has no event 'kmen:*'"),
        (["--trace", "", "--trace-out", "t.txt"], "--trace has no event ''"),
        (["--trace", "all", "--trace-out", "/no/t.txt"], "--trace-out is /no/t.txt, which cannot be written"),
    ],
)
def test_wrong_words_end_in_one_line(folder, capsys, monkeypatch, words, said):
    monkeypatch.chdir(folder)
    assert cli.main(["run", str(folder / "w.py"), *words]) == cli.USAGE
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and said in told


def test_ring_pages_hold_long_times_and_many_records():
    """Entries of trace.dat: a page never overflows, and times add up whatever lies between two events."""
    records = [(i * 3 + (i > 50) * (1 << 40), struct.pack("<HBBi", 300, 0, 0, i) + bytes(16)) for i in range(2000)]
    data, times = trace_dat.pages_of(records), []
    for at in range(0, len(data), 4096):
        now, commit = struct.unpack_from("<QQ", data, at)
        place, end = at + 16, at + 16 + commit
        while place < end:
            (word,) = struct.unpack_from("<I", data, place)
            kind, delta = word & 31, word >> 5
            if kind == 30:
                now += delta + (struct.unpack_from("<I", data, place + 4)[0] << 27)
                place += 8
                continue
            now += delta
            times.append(now)
            place += 4 + 4 * kind
    assert times == [ns for ns, _ in records]


def test_a_writer_for_each_ending():
    for suffix in collector.WRITERS:
        need_package("pandas", "perfetto.trace_builder.proto_builder")
        assert collector.check("all", f"x{suffix}").write
    with pytest.raises(ConfigError, match="must end in"):
        collector.check("all", "x")
