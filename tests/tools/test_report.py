"""What people see, printed into a recording console from figures made by hand. No machine is booted here."""

import collections
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from numaemu.spec.topology import load_topology
from numaemu.tools import report

pytestmark = pytest.mark.interpreted


def figures(topology, busy_cpus, result=None):
    """Figures of a run in which CPU n of `busy_cpus` did 1000 * (n + 1) loads of its own and one other node."""
    cpus, from_node = [], [[0] * topology.nr_nodes for _ in topology.nodes]
    for cpu in topology.cpus:
        node, loads = topology.node_of_cpu(cpu), 1000 * (cpu + 1) if cpu in busy_cpus else 0
        from_node[node][node] += loads * 3 // 4
        from_node[(node + 1) % topology.nr_nodes][node] += loads // 4
        cpus.append(
            {
                "cpu": cpu,
                "node": node,
                "loads": loads,
                "stores": 0,
                "l1_tlb_hits": loads // 2,
                "l2_tlb_hits": loads // 8,
                "page_walks": 3 * loads // 8,
                "minor_faults": loads // 10,
                "major_faults": 0,
                "shootdowns_sent": 7,
                "shootdowns_received": 9,
                "clock_ns": loads * 100,
            }
        )
    nodes = [
        {"node": n, "numastat": dict.fromkeys(report.NUMASTAT, n), "accesses_from": from_node[n]}
        for n in range(topology.nr_nodes)
    ]
    return {
        "numaemu": "0",
        "machine": topology.to_dict(),
        "workload": "dir/story.py",
        "mode": "free",
        "seed": 0,
        "wall_s": 2.0,
        "compiled": 0,
        "emulated_ns": 1_260_000,
        "result": result,
        "vmstat": {},
        "nodes": nodes,
        "cpus": cpus,
        "tasks": [],
    }


def printed(function, *args, width=80):
    """The plain text that a printing function prints on a terminal of that width."""
    console = Console(file=io.StringIO(), width=width, record=True, highlight=False, force_terminal=True)
    function(*args, console=console)
    return console.export_text()


# --- the summary ----------------------------------------------------------------------------------
def test_summary_says_what_ran_and_what_came_out():
    text = printed(
        report.print_summary, figures(load_topology("two-socket"), {0, 2}, {"pages": 12345}), "A story.\nMore."
    )
    for words in (
        "story.py on two-socket",
        "A story.",
        "2 nodes, 4 CPUs, 1GiB, a load takes 80 to 140 ns",
        "12,345",
        "numa_hit",
        "interleave_hit",
        "emulated time 1.26 ms",
        "wall time 2 s",
        "4,000 accesses",
        "2,000 accesses/s",
    ):
        assert words in text, words
    assert "More." not in text


def test_summary_names_a_memory_only_node():
    text = printed(report.print_summary, figures(load_topology("cxl"), {0}))
    assert "3 nodes, 4 CPUs, 2GiB, no CPUs in 1 node (2)" in text


def test_cpu_table_shows_rates():
    row = next(
        line
        for line in printed(report.print_summary, figures(load_topology("uma"), {0})).splitlines()
        if line.startswith("0 ")
    )
    assert row.split() == ["0", "0", "1,000", "0", "50.0%", "25.0%", "375", "100", "7", "9", "100", "us"]


def test_access_matrix_is_readable_without_colour():
    text = printed(report.print_summary, figures(load_topology("two-socket"), {0, 1, 2}))
    rows = [line.split() for line in text.splitlines() if line.startswith("node ") and "%" in line]
    assert rows == [["node", "0", "75.0%", "25.0%", "3,000"], ["node", "1", "25.0%", "75.0%", "3,000"]]


def test_no_accesses_no_matrix():
    assert "mem 0" not in printed(report.print_summary, figures(load_topology("two-socket"), set()))


@pytest.mark.parametrize("busy, left_out", [
    (set(range(16, 26)), "left out: 54 idle"), (set(range(40)), "left out: 24 less busy and 24 idle"),
    (set(), "left out: 64 idle")])  # fmt: skip
def test_big_machine_shows_the_busiest(busy, left_out):
    topology = load_topology(None, nodes=16, cpus_per_node=4)
    text = printed(report.print_summary, figures(topology, busy))
    assert left_out in text
    assert len(text.splitlines()) < 75
    assert all(f"\n{cpu:<3} " in text for cpu in sorted(busy)[-10:])


@pytest.mark.parametrize("preset", ["uma", "eight-socket"])
def test_summary_fits_80_columns(preset):
    topology = load_topology(preset)
    shown = figures(topology, set(topology.cpus))
    for cpu in shown["cpus"]:  # the widest numbers there are
        cpu |= dict.fromkeys(
            ("loads", "stores", "page_walks", "minor_faults", "shootdowns_sent", "shootdowns_received", "clock_ns"),
            12_345_678,
        ) | {"l1_tlb_hits": 20_000_000, "l2_tlb_hits": 1_000_000}
    text = printed(report.print_summary, shown)
    assert max(len(line) for line in text.splitlines() if not line.lstrip().startswith("help:")) <= 80
    assert "…" not in text


def test_hints_only_where_they_help(monkeypatch):
    monkeypatch.setattr(report.os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(report.shm, "huge_pages_setting", lambda: "advise")
    assert report.hints(4) == []
    assert "5 emulated CPUs on 4 cores" in report.hints(5)[0]
    assert "17 functions of the kernel were compiled" in report.hints(4, 17)[0]
    monkeypatch.setattr(report.shm, "huge_pages_setting", lambda: "never")
    assert "echo advise" in report.hints(4)[0]
    monkeypatch.setattr(report.shm, "huge_pages_setting", lambda: "")
    assert "host kernel" in report.hints(4)[0]


# --- results --------------------------------------------------------------------------------------
Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Measured:
    node: int
    ns: float


LOOP = []
LOOP.append(LOOP)


@pytest.mark.parametrize("value, expected", [
    (np.int32(3), 3), (np.float32(0.5), 0.5), (np.True_, True), (np.arange(3), [0, 1, 2]), ((1, 2), [1, 2]), ({3, 1}, [1, 3]),
    ({1: np.uint64(2**63)}, {"1": 2**63}), (float("nan"), "nan"), ([np.float64("inf")], ["inf"]),
    (np.array([1.0, np.nan]), [1.0, "nan"]), (Point(1, 2), {"x": 1, "y": 2}), (Measured(0, 80.5), {"node": 0, "ns": 80.5}),
    (b"x", "b'x'"), (1j, "1j"), (None, None), (LOOP, ["[[...]]"]), (np.zeros((2, 1)), [[0.0], [0.0]]),
])  # fmt: skip
def test_results_become_json(value, expected):
    if expected == "nan":
        assert report.jsonable(value) == expected
        return
    got = report.jsonable(value)
    assert got == expected
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize("result, words", [
    ({"local": 80.1234, "remote": 140}, ["local", "80.12", "140"]),
    ([{"cpu": 0, "ns": 1}, {"cpu": 1, "ns": 2}], ["cpu  ns", "1     2"]),
    ({"a": {"x": 1}, "b": {"x": 2}}, ["x", "a  1", "b  2"]), (np.eye(2), ["1  0", "0  1"]),
    ("[not markup]", ["[not markup]"]), ([1, [2]], ["[1, [2]]"]), (list(range(1000)), ["+960"]),
    ([{"i": i} for i in range(50)], ["and 10 more rows"]), ({"text": "[red]x"}, ["[red]x"]),
])  # fmt: skip
def test_results_are_printed_readably(result, words):
    text = printed(report.print_result, result)
    for word in words:
        assert word in text


def test_nothing_is_printed_for_none():
    assert printed(report.print_result, None) == ""


# --- numbers --------------------------------------------------------------------------------------
@pytest.mark.parametrize("value, text", [(0, "0"), (9_999, "9,999"), (16_384, "16.4k"), (1_640_000, "1.64M"),
                                         (999_499, "999k"), (999_600, "1M"), (123e9, "123G")])  # fmt: skip
def test_counts(value, text):
    assert report.count(value) == text


@pytest.mark.parametrize("ns, text", [(0, "0 ns"), (740, "740 ns"), (1260, "1.26 us"), (2.82e6, "2.82 ms"), (12.3e9, "12.3 s"),
                                      (200e9, "200 s"), (7200e9, "120 min")])  # fmt: skip
def test_durations(ns, text):
    assert report.duration(ns) == text


def test_percent_never_rounds_a_miss_away():
    assert [report.percent(p, 1000) for p in (0, 1, 500, 999, 1000)] == ["0%", "0.1%", "50.0%", "99.9%", "100%"]
    assert report.percent(0, 0) == "·"
    assert math.isclose(float(report.percent(1, 3)[:-1]), 33.3)


# --- errors ---------------------------------------------------------------------------------------
def test_own_frames_keeps_the_users_lines():
    text = (
        f'Traceback (most recent call last):\n  File "{report.PACKAGE}cpu.py", line 1, in run_task\n    answer = f()\n'
        '             ^^^\n  File "/home/me/w.py", line 4, in bad\n    return helper(task)\n           ^^^^^^\n'
        f'  File "{report.PACKAGE}task.py", line 9, in load\n    return self._op()\nValueError: a\nb\n'
    )
    assert report.own_frames(text) == (
        'Traceback (most recent call last):\n  File "/home/me/w.py", line 4, in bad\n    return helper(task)\n'
        "           ^^^^^^\nValueError: a\nb\n"
    )


def test_failure_text_shows_the_tasks_own_traceback():
    error = ValueError("x")
    error.emulated_traceback = "Traceback (most recent call last):\nValueError: x\n"
    text = report.failure_text(error)
    assert "in a task on a CPU of the machine:\nTraceback (most recent call last):\n" in text
    assert text.count("ValueError: x") == 1


def test_failure_text_shows_no_traceback_of_the_emulator_alone():
    error = ValueError("x")
    error.emulated_traceback = (
        f'Traceback (most recent call last):\n  File "{report.__file__}", line 1, in f\n    x\nValueError: x\n'
    )
    assert report.failure_text(error) == "ValueError: x\n"


def test_an_error_of_one_line_names_the_workload_s_line(tmp_path):
    error = FileNotFoundError(2, "No such file (nearest: a)", "/proc/nope")
    error.one_line = True
    try:
        exec(compile("raise error", str(tmp_path / "story.py"), "exec"), {"error": error})
    except OSError as raised:
        text = report.failure_text(raised)
    assert text.startswith("numaemu: [Errno 2] No such file (nearest: a): '/proc/nope' (") and text.count("\n") == 1


# --- progress -------------------------------------------------------------------------------------
def test_no_control_characters_where_no_terminal_is():
    stream = io.StringIO()
    with report.Progress(stream=stream) as progress:
        for i in range(1, 4):
            progress.compiled(i)
    assert stream.getvalue() == (
        "numaemu: compiling what is needed of the kernel for the first time; this takes some seconds\n"
    )
    assert progress.kernels == 6


def test_quiet_progress_says_nothing():
    stream = io.StringIO()
    with report.Progress(quiet=True, stream=stream) as progress:
        progress.compiled(1)
    assert stream.getvalue() == ""


def test_live_line():
    line = report.live_line(figures(load_topology("uma"), {0, 1}))
    assert "emulated 1.26 ms" in line and "accesses 3,000" in line and "faults 300" in line


def test_bench_table():
    rows = [
        {"what": "loads", "against": "a compiled loop", "unit": "1/s", "emulated": 5e8, "host": 1e9, "ratio": 0.5},
        {"what": "munmap", "against": "semaphores", "unit": "ns", "emulated": 2e4, "host": 5e3, "ratio": 4.0},
    ]
    text = printed(report.print_bench, {"rows": rows})
    assert "500M/s" in text and "0.50" in text and "20 us" in text and "4.00" in text


def test_machines_table():
    text = printed(report.print_machines, {"uma": (load_topology("uma"), "A desktop.")})
    assert "uma" in text and "1GiB" in text and "A desktop." in text
