"""Two lockstep runs under other settings: what differs, and where they part."""

import json

import numpy as np
import pytest

from numaemu.kernel.include.trace import trace_record_t
from numaemu.tools import cli
from numaemu.tools.study import whatif

WORKLOAD = """import sys

MACHINE = {"nodes": 2, "cpus_per_node": 1, "memory_per_node": "32MiB"}

def work(task, pages):
    task.mmap(pages * 4096).touch()

def main(machine):
    machine.run(work, int(sys.argv[2]) if len(sys.argv) > 2 else 100)
"""


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    path = tmp_path_factory.mktemp("whatif") / "w.py"
    path.write_text(WORKLOAD)
    return str(path)


def diff(workload, capsys, tmp_path, *words):
    path = tmp_path / "d.json"
    assert cli.main(["diff", workload, "-q", "--json", str(path), *words]) == 0
    return capsys.readouterr().out, json.loads(path.read_text())


def test_the_same_twice_has_no_difference(workload, capsys, tmp_path):
    text, found = diff(workload, capsys, tmp_path)
    assert "no counter differs" in text and "events are equal" in text
    assert found["counters"] == {} and found["part_at"] is None and found["a"]["events"] == found["b"]["events"] > 100


def test_more_pages_part_the_runs(workload, capsys, tmp_path):
    text, found = diff(workload, capsys, tmp_path, "--b", "args.pages=150")
    assert found["counters"]["pgfault"][1] - found["counters"]["pgfault"][0] == 50
    assert found["part_at"]["event"] < found["a"]["events"] and found["part_at"]["a"] != found["part_at"]["b"]
    assert "page_fault_user" in found["part_at"]["a"][0]  # of another address: the larger mapping begins lower
    assert "the runs part at event" in text and "pgfault" in text and text.count("both ") == whatif.BEFORE


def test_a_wrong_setting_is_told(workload, capsys):
    assert cli.main(["diff", workload, "-q", "--b", "vm.swapiness=10"]) != 0
    assert "--b: unknown key 'vm.swapiness', did you mean 'vm.swappiness'" in capsys.readouterr().err


class Recorded:
    """The trace of a run, made up: [(context, time, kind)]."""

    def __init__(self, *events):
        self.events, self.trace = events, self

    def in_order(self):
        rows = np.zeros(len(self.events), trace_record_t.dtype)
        rows["clock_ns"] = [ns for _, ns, _ in self.events]
        rows["what"] = [what for _, _, what in self.events]
        return np.array([context for context, _, _ in self.events], int), rows


def test_where_two_runs_part():
    first = Recorded((0, 10, 1), (1, 20, 2), (0, 30, 3))
    assert whatif.parting(first, first) is None
    assert whatif.parting(first, Recorded((0, 11, 1), (1, 21, 2), (0, 31, 3))) is None  # only later
    assert whatif.parting(first, Recorded((0, 10, 1), (0, 20, 2), (0, 30, 3))) == 1  # on another CPU
    assert whatif.parting(first, Recorded((0, 10, 1), (1, 20, 2))) == 2
    assert whatif.parting(Recorded(), first) == 0
