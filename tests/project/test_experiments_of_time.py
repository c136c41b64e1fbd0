"""The experiments of caches, rates and costs: what their docstrings claim, on the machines that they ask for, and on poorer ones."""

import importlib
import pathlib

import pytest

from numaemu import Machine

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "workloads"


@pytest.fixture(autouse=True)
def workloads(monkeypatch):
    """The folder of the workloads is where their modules are found."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def run():
    """run(name, …): what a workload's main returns on its own machine, changed by keywords."""

    def call(name, **keywords):
        workload = importlib.import_module(name)
        with Machine(**workload.MACHINE | keywords, lockstep=True) as machine:
            result = workload.main(machine)
            machine.check()
        return result

    return call


def test_the_staircase_has_the_levels_latencies(shown):
    told = shown("cache_staircase").result
    assert [told[f"{kib} KiB"] for kib in (16, 24, 32, 64, 128, 256)] == [1, 1, 1, 5, 5, 5]
    assert 20 <= told["512 KiB"] < 23 and 20 <= told["1,024 KiB"] < 24
    assert 90 <= told["8,192 KiB"] < 97
    assert list(told.values()) == sorted(told.values())


def test_words_of_one_line_cost_a_transfer_each_and_words_of_their_own_none(shown):
    told, counts = shown("false_sharing").result, importlib.import_module("false_sharing").COUNTS
    alone = told["1 thread of one node"]["in a line each, ns"]
    for name, row in told.items():
        assert row["in a line each, ns"] < 1.02 * alone and row["in a line each, transfers"] < 10
        if not name.startswith("1 thread"):
            threads = int(name.split()[0])
            assert 0.9 * threads * counts < row["in one line, transfers"] <= threads * (counts + 1)
            assert row["in one line, ns"] > 4 * alone
    assert told["2 threads of two nodes"]["in one line, ns"] > told["2 threads of one node"]["in one line, ns"]


def test_stream_grows_to_the_controller_and_to_the_link(shown):
    told = shown("stream_knee").result
    last = {name: list(rates.values())[-1] for name, rates in told.items()}
    assert 0.95 * 40 < last["local"] <= 40 and 0.95 * 15 < last["remote"] <= 15
    assert last["remote"] < last["interleaved"] <= 30
    for name, rates in told.items():
        first, second = list(rates.values())[:2]
        assert second == pytest.approx(2 * first, rel=0.1), name


def test_loads_wait_where_the_controller_has_no_time_left(shown):
    told = shown("loaded_latency").result
    rows = [row for row in told.values() if isinstance(row, dict)]
    assert told["idle ns"] == pytest.approx(90, rel=0.01)
    assert rows[0]["ns per load"] < 1.1 * 90 and rows[-1]["ns per load"] > 3 * 90
    assert [row["GB/s"] for row in rows] == sorted(row["GB/s"] for row in rows)
    assert 0.97 * 20 < rows[-1]["GB/s"] <= 20


def test_pages_that_move_take_bandwidth_from_a_stream(shown):
    rows = list(shown("migration_bandwidth").result.values())
    streams, moved = ([row[f"{name}, GB/s"] for row in rows] for name in ("the stream", "moved"))
    assert streams == sorted(streams, reverse=True) and moved == sorted(moved) and moved[0] == 0
    assert streams[-1] < streams[0] / 2
    assert all(a + b <= 10 for a, b in zip(streams, moved))


def test_what_others_have_measured_is_on_the_page_and_near(monkeypatch):
    """The table is of a run of docs.tools.published; what a load takes under full load may differ more."""
    monkeypatch.syspath_prepend(str(ROOT))
    from docs.tools.published import FIGURES, PAGE

    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines() if line[:2] == "| "
    ]
    found = {(row[0], row[1]): row for row in rows if len(row) == 6}
    for preset, figures in FIGURES.items():
        for what, _, unit, published, source in figures:
            _, _, theirs, ours, difference, who = found[f"`{preset}`", what]
            assert (theirs, who) == (f"{published:g} {unit}", source)
            percent = 100 * (float(ours.split()[0]) / published - 1)
            assert float(difference.split()[0]) == pytest.approx(percent, abs=0.1)
            assert abs(percent) < (20 if "full load" in what else 10), (preset, what)


@pytest.mark.parametrize(
    "name", ["stream_knee", "loaded_latency", "migration_bandwidth", "false_sharing", "cache_staircase"]
)
def test_each_says_what_a_machine_lacks(run, name, capsys):
    shape = dict(cache=None, bandwidth_per_node=None, link=None, cpus_per_node=2, cpu=None)
    run(name, **shape)
    printed = capsys.readouterr().out
    assert "The machine has no" in printed or "caches: none" in printed
