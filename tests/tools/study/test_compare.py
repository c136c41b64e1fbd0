"""Runs side by side."""

import json

import pytest

from numaemu.tools import cli
from numaemu.tools.study import compare


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of a workload, on one node and on two."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "w.py").write_text(
        "def work(task):\n    task.mmap('1MiB').touch()\n\ndef main(machine):\n    machine.run(work)\n"
    )
    for name, nodes in (("one", 1), ("two", 2)):
        arguments = [
            "run",
            str(folder / "w.py"),
            "--nodes",
            str(nodes),
            "--memory-per-node",
            "32MiB",
            "-q",
            "--json",
            str(folder / f"{name}.json"),
        ]
        assert cli.main(arguments) == 0
    return folder


def test_two_runs(runs, capsys):
    assert cli.main(["compare", str(runs / "one.json"), str(runs / "two.json"), "--json", str(runs / "c.json")]) == 0
    text = capsys.readouterr().out
    assert "emulated ms" in text and "one" in text and "B / A" in text and "nr_free_pages" in text
    both = json.loads((runs / "c.json").read_text())
    assert both["one"]["accesses"] == both["two"]["accesses"] == 256
    assert cli.main(["compare", *[str(runs / f"{name}.json") for name in ("one", "two", "one")]]) == 0  # three of them
    assert "B / A" not in capsys.readouterr().out


def test_ratios():
    assert [compare.ratio(*pair) for pair in ((2, 2), (2, 3), (0, 1), (4, 1))] == ["=", "x 1.5", "new", "x 0.25"]


@pytest.mark.parametrize(
    "text, words",
    [("{", "is no JSON"), ("[1]", "'machine' is missing"), ("{}", "'machine' is missing"), ("\0", "is no JSON")],
)
def test_what_is_no_run_ends_in_one_line(runs, tmp_path, capsys, text, words):
    (tmp_path / "x.json").write_text(text)
    assert cli.main(["compare", str(runs / "one.json"), str(tmp_path / "x.json")]) == cli.USAGE
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and words in told
