"""What people see, printed into a recording console from figures made by hand. No machine is booted here."""

import ast
import collections
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from numaemu.spec.topology import load_topology
from numaemu.tools import shipped
from numaemu.tools.summary import notes, report
from numaemu.tools.summary.progress import Progress, live_line

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


def test_figures_are_not_cut_on_a_narrow_terminal():
    text = printed(report.print_summary, figures(load_topology("eight-socket"), {0, 9, 31}), width=48)
    assert "…" not in text and max(map(len, text.splitlines())) <= 80  # a note's line may be longer
    assert all(word in text for word in ("interleave_hit", "other_node", "3.2 ms", "mem 0"))


def test_one_node_no_matrix():
    assert "mem 0" not in printed(report.print_summary, figures(load_topology("uma"), {0}))


def test_a_machine_on_which_nothing_ran_gets_no_tables_of_zeros():
    """As one whose workload has booted machines of its own."""
    text = printed(report.print_summary, figures(load_topology("two-socket"), set(), {"pages": 3}))
    assert "numa_hit" not in text and "walks" not in text and "accesses" not in text
    assert "pages  3" in text and "wall time 2 s; on this machine itself nothing ran" in text


DOC = """A story in one line.

More of it, which is for those who read the file. Look
for:
  - the first thing, in a sentence that is too long for one line of a narrow terminal and so
    goes on in the next;
  - [not markup].
Text below.
"""


def test_header_says_what_there_is_to_see():
    text = printed(report.print_summary, figures(load_topology("uma"), {0}, {"pages": 3}), DOC, width=60)
    assert text.index("A story") < text.index("look for") < text.index("- the first thing") < text.index("pages  3")
    assert text.index("pages  3") < text.index("numa_hit") < text.index("emulated time")
    assert "\n    goes on in the next;\n" in text.replace("so goes", "so\n    goes") and "  - [not markup]." in text
    assert "Text below" not in text and "More of it" not in text


def test_a_verbose_header_is_the_whole_docstring():
    told = figures(load_topology("uma"), {0}, {"pages": 3})
    text = printed(lambda *args, console: report.print_summary(*args, console=console, verbose=True), told, DOC)
    assert DOC.partition("\n")[2].strip() in text and text.count("A story in one line.") == 1


@pytest.mark.parametrize("doc, items", [
    ("x. Look for:\n  - a\n    b\n  - c\n\nmore", ["a b", "c"]), ("Look for two steps:\n  - a;\n  - b", ["a;", "b"]),
    ("x\n\nLook for: `v` words,\nand others.\n\nmore", ["`v` words, and others."]), ("Nothing. Look: for", []), ("", []), (None, []),
])  # fmt: skip
def test_what_to_look_for(doc, items):
    assert report.look_for(doc) == items


def test_every_workload_says_what_to_look_for():
    for name in shipped.names():
        doc = ast.get_docstring(ast.parse((shipped.folder() / f"{name}.py").read_text()))
        assert report.look_for(doc), name
        assert 20 < len(report.first_line(doc)) < 130, name


def test_the_header_comes_before_what_a_run_prints(capsys):
    told = figures(load_topology("uma"), {0}) | {"workload": "story.py"}
    with report.Header(told, DOC) as header:
        assert not header.shown
        print("a picture")
        print("another")
    print("after it")
    out = capsys.readouterr().out
    assert out.index("story.py on uma") < out.index("look for") < out.index("a picture\nanother\nafter it")
    assert header.wrote and out.count("story.py") == 1
    with report.Header(told, DOC) as header:
        pass
    assert capsys.readouterr().out == "" and not header.wrote  # as of a run that has failed
    header.show()
    assert "story.py on uma" in capsys.readouterr().out


def test_verbose_shows_everything():
    topology = load_topology(None, nodes=16, cpus_per_node=4)
    shown = figures(topology, set(range(40)), [{"i": i} for i in range(50)]) | {
        "vmstat": {"pgfault": 12345, "pgfree": 0}
    }
    text = printed(lambda *args, console: report.print_summary(*args, console=console, verbose=True), shown)
    assert "left out: the least busy 8 memory nodes" in text  # of 80 columns' matrix
    assert text.count("left out") == 1 and "more rows" not in text and all(f"\n{cpu:<3} " in text for cpu in range(64))
    assert "pgfault 12,345" in text and "pgfree" not in text


def test_no_accesses_no_matrix():
    assert "mem 0" not in printed(report.print_summary, figures(load_topology("two-socket"), set()))


@pytest.mark.parametrize("busy, left_out", [
    (set(range(16, 26)), "left out: 54 idle"), (set(range(40)), "left out: 24 less busy and 24 idle"),
])  # fmt: skip
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


def test_notes_about_the_host_come_once_a_week(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert notes.due(["a", "b"]) == ["a", "b"] and notes.due(["a", "b", "c"]) == ["c"]
    monkeypatch.setattr(notes.socket, "gethostname", lambda: "another")
    assert notes.due(["a"]) == ["a"]  # of a host that shares the home directory
    later = notes.time.time() + notes.WEEK_S + 60
    monkeypatch.setattr(notes.time, "time", lambda: later)
    assert notes.due(["a"]) == ["a"]


def test_notes_come_each_time_where_nothing_can_be_kept(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert notes.due(["a"]) == notes.due(["a"]) == ["a"]


def test_summary_has_notes_once_and_with_verbose(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(report.shm, "huge_pages_setting", lambda: "never")
    told = figures(load_topology("uma"), {0}) | {"compiled": 3}
    texts = [printed(report.print_summary, told) for _ in range(2)]
    texts.append(printed(lambda *args, console: report.print_summary(*args, console=console, verbose=True), told))
    assert ["no huge pages" in text for text in texts] == [True, False, True]
    assert all("3 functions of the kernel were compiled" in text for text in texts)


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


WIDE = {f"case {i}": {f"pages of node {n}, in all": 10**i * n for n in range(12)} for i in range(3)}
NESTED = {
    "loads": {"4 KiB": {"faults": 512, "walks": 0.5}, "2 MiB": {"faults": 1, "walks": 0}},
    "found": {"fresh memory": {"pages": 2}, "used memory": {"pages": 0}},
    "seconds": 1.5,
    "matrix": [[1, 2], [3, 4]],
}


def test_nested_results_are_tables():
    lines = [line.rstrip() for line in printed(report.print_result, NESTED).splitlines()]
    assert lines[0].split() == ["seconds", "1.5"]
    for title, row in (("loads", "2 MiB       1      0"), ("found", "fresh memory      2"), ("matrix", "1  3  4")):
        assert row in lines[lines.index(title) : lines.index(title) + 6]
    assert not any("{" in line for line in lines)


def test_a_matrix_in_each_row_is_a_table_below():
    text = printed(
        report.print_result,
        {"bound": {"us": 3, "by node": np.eye(2, dtype=int)}, "spread": {"us": 1, "by node": np.ones((2, 2))}},
    )
    assert "bound    3" in text and "spread, by node" in text and "array" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160, 300])
@pytest.mark.parametrize(
    "result", [WIDE, NESTED, {"a key": "words of a text " * 12, "another": 3}, [{"x" * 50: 1, "y" * 50: 2}]]
)
def test_nothing_is_cut_however_narrow_the_terminal(result, width):
    text = printed(report.print_result, result, width=width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    flat = "".join(text.split())
    for block in report.blocks(result):
        for row in block.rows:
            for value in row:
                words = report.cell(value).split()
                assert "".join(words) in flat or all(word in text for word in words), value


def test_a_table_that_is_too_wide_is_wrapped_or_turned():
    text = printed(report.print_result, WIDE, width=64)
    assert [line.split() for line in text.splitlines()][0] == ["case", "0", "case", "1", "case", "2"]  # turned
    assert "pages of node 11, in all      11     110   1,100" in text
    narrow = {"a": {"pages on node 0": 1, "pages on node 1": 2}, "b": {"pages on node 0": 3, "pages on node 1": 4}}
    lines = [line.split() for line in printed(report.print_result, narrow, width=24).splitlines()]
    assert lines[:2] == [["pages", "on", "pages", "on"], ["node", "0", "node", "1"]]  # its titles are wrapped


def test_a_file_gets_lines_as_long_as_they_have_to_be(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    report.print_result(WIDE)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].count("in all") == 12
    monkeypatch.setenv("COLUMNS", "80")
    report.print_result(WIDE)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


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


# --- progress -------------------------------------------------------------------------------------
def test_no_control_characters_where_no_terminal_is():
    stream = io.StringIO()
    with Progress(stream=stream) as progress:
        for i in range(1, 4):
            progress.compiled(i, 6)
    assert stream.getvalue() == (
        "numaemu: compiling what is needed of the kernel for the first time; this takes some seconds\n"
    )
    assert progress.kernels == 6


def test_progress_says_how_far_the_compilers_are():
    progress = Progress(stream=io.StringIO())
    assert "compiling" not in progress.view().plain
    progress.compiled(50, 200)
    assert "compiling, once: ━━━━━━──────────────────  50 of 200 functions".replace("  ", " ") in progress.view().plain
    progress.compiled(160, 200)  # this run needs more than a first one
    assert "compiling, once: 210 functions" in progress.view().plain
    progress.compiled_at -= 60
    assert "compiling" not in progress.view().plain


def test_quiet_progress_says_nothing():
    stream = io.StringIO()
    with Progress(quiet=True, stream=stream) as progress:
        progress.compiled(1)
    assert stream.getvalue() == ""


def test_live_line():
    line = live_line(figures(load_topology("uma"), {0, 1}))
    assert "emulated 1.26 ms" in line and "accesses 3,000" in line and "faults 300" in line


def test_bench_table():
    rows = [
        {"what": "loads", "against": "a compiled loop", "unit": "1/s", "emulated": 5e8, "host": 1e9, "ratio": 0.5},
        {"what": "munmap", "against": "semaphores", "unit": "ns", "emulated": 2e4, "host": 5e3, "ratio": 4.0},
    ]
    text = printed(report.print_bench, {"rows": rows})
    assert "500M/s" in text and "0.50" in text and "20 us" in text and "4.00" in text


def test_workloads_table():
    text = printed(report.print_workloads, shipped.summaries(), width=80)
    assert "first_touch" in text and "Memory lands on the node" in text and "numaemu run NAME" in text
    assert max(map(len, text.splitlines())) <= 80


def test_machines_table():
    text = printed(report.print_machines, {"uma": (load_topology("uma"), "A desktop.")})
    assert "uma" in text and "1GiB" in text and "A desktop." in text
