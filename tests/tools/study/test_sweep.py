"""One run as a row, and many of them: grids, restarts, failures, and nothing that stays."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from wanting import need_package

import numaemu
from numaemu.errors import ConfigError
from numaemu.tools import cli
from numaemu.tools.study import settings, sweep

WORKLOAD = '''"""Touches pages."""
import argparse
MACHINE = {"nodes": 1, "cpus_per_node": 1, "memory_per_node": "32MiB"}

def work(task, pages):
    task.mmap(pages << 12).touch()

def main(machine):
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--wait", default="")
    options = parser.parse_args()
    if options.pages == 13:
        raise ValueError("thirteen\\nof them")
    if options.wait:
        import time
        open(options.wait, "a").write("x")
        while True:
            time.sleep(0.1)
    machine.run(work, options.pages)
    print("a word that a row does not have")
    return {"pages": options.pages, "seed": machine.seed, "deep": {"x": 1.5}, "list": [1, 2]}
'''


@pytest.fixture
def workload(tmp_path):
    (tmp_path / "touching.py").write_text(WORKLOAD)
    return str(tmp_path / "touching.py")


# -- a row ---------------------------------------------------------------------------------------------------


def test_a_run_is_a_row(workload, capsys):
    argv, path = list(sys.argv), list(sys.path)
    row = numaemu.figures(workload, {"nodes": 2, "args.pages": 50, "vm.swappiness": 10}, seed=3)
    assert row["accesses"] == row["vmstat.pgfault"] == row["minor_faults"] == 50 and row["emulated_ns"] > 0
    assert (row["result.pages"], row["result.seed"], row["result.deep.x"]) == (50, 3, 1.5) and "result.list" not in row
    assert all(isinstance(value, (int, float, str)) for value in row.values())
    assert (sys.argv, sys.path, capsys.readouterr().out) == (argv, path, "")
    full = numaemu.figures(workload, args=["--pages", "7"], flat=False)
    assert full["result"]["pages"] == 7 and len(full["machine"]["node"]) == 1  # as the workload states it
    assert numaemu.figures(lambda machine: machine.topology.nr_nodes, nodes=3, memory_per_node="16MiB")["result"] == 3


def test_what_a_workload_raises_comes_as_it_is(workload):
    with pytest.raises(ValueError, match="thirteen"):
        numaemu.figures(workload, {"args.pages": 13})
    with pytest.raises(ConfigError, match=r"figures: unknown key 'vm\.swapiness'.*vm\.swappiness"):
        numaemu.figures(workload, {"vm.swapiness": 1})


def test_frames(machine):
    need_package("pandas")
    stats = machine.stats()
    assert list(stats.to_frame()["cpu"]) == [0, 1, 2, 3] and stats.to_frame("nodes").shape[0] == 2
    frame = stats.to_frame("vmstat").set_index("counter")["value"]
    assert frame["nr_free_pages"] == stats["vmstat"]["nr_free_pages"]
    assert set(stats.to_frame("zones")["zone"]) >= {"DMA"}
    with pytest.raises(ValueError, match="to_frame takes cpus"):
        stats.to_frame("disks")


# -- settings and grids --------------------------------------------------------------------------------------


def test_settings_in_a_word():
    given = settings.parse("nodes=2 memory-per-node=16MiB vm.swappiness=7 cost.fault_ns=9 policy=bind:0", ("policy",))
    assert given == {"nodes": 2, "memory_per_node": "16MiB", "vm.swappiness": 7, "cost.fault_ns": 9, "policy": "bind:0"}
    topology = settings.topology_of(given)
    assert (topology.nr_nodes, topology.sysctl["vm.swappiness"], topology.cost["fault_ns"]) == (2, 7, 9)
    for text, words in (
        ("nodes", "must be KEY=VALUE"),
        ("nodes=x", "must be a whole number"),
        ("a='b", "no closing quotation"),
    ):
        with pytest.raises(ConfigError, match=words):
            settings.parse(text)


def test_axes_and_grids():
    assert sweep.axis("nodes=1,2,4") == ("nodes", [1, 2, 4])
    assert sweep.axis("vm.swappiness=0:200:50") == ("vm.swappiness", [0, 50, 100, 150, 200])
    assert sweep.axis("args.x=0.5:1:0.25,a") == ("args.x", [0.5, 0.75, 1.0, "a"])
    assert sweep.axis("memory-per-node=64MiB,1GiB") == ("memory_per_node", ["64MiB", "1GiB"])
    assert sweep.grid([("a", [1, 2]), ("b", [3, 4])]) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]
    assert sweep.repeated([{"a": 1}], 2, 5) == [{"a": 1, "seed": 5}, {"a": 1, "seed": 6}]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--vary", "nodes"], "must be KEY=VALUES"),
        (["--vary", "nodse=1"], "unknown key 'nodse'"),
        (["--vary", "nodes=a"], "must be a whole number"),
        (["--vary", "vm.swappiness=5:1:1"], "must be LOW:HIGH:STEP"),
        (["--vary", "nodes=1", "--vary", "nodes=2"], "names 'nodes' twice"),
        ([], "say --vary or --points"),
        (["--vary", "nodes=1", "--out", "x.xls"], "must end in .parquet"),
        (["--vary", "seed=0:99999:1", "--repeat", "9"], "900000 runs, must be at most 100000"),
        (["--points", "none.csv"], "no such file"),
        (["--vary", "nodes=1", "--scheduler", "tcp://127.0.0.1:1"], "which does not answer"),
    ],
)
def test_wrong_words_end_in_one_line(workload, tmp_path, capsys, monkeypatch, options, words):
    if "--scheduler" in options:
        need_package("distributed")
        import distributed

        def refused(*_, **__):
            raise OSError("connection refused")

        monkeypatch.setattr(distributed, "Client", refused)
    out = [] if "--out" in options else ["--out", str(tmp_path / "t.csv")]
    assert cli.main(["sweep", workload, *options, *out, "-q"]) == cli.USAGE
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and words in told, told


def test_workers_share_the_hosts_cpus():
    assert sweep.shares_of([0, 1, 4, 5], 2) == {0: [0, 4], 1: [1, 5]} and sweep.shares_of([3], 2) == {0: [3], 1: [3]}
    assert sweep.shares_of([0, 1, 2], 2) == {0: [0, 2], 1: [1]} and sweep.shares_of([0, 1], 3) == {
        0: [0],
        1: [1],
        2: [0],
    }


WHERE = """import os
def main(machine):
    machine.run(lambda task: task.clock_ns)
    with open(f"/proc/{machine.processes['coordinator']}/status") as file:
        return {"cpus": next(line.split()[1] for line in file if line.startswith("Cpus_allowed_list"))}
"""


def test_a_worker_and_its_machines_stay_on_its_share(tmp_path):
    need_package("distributed", "pandas")
    (tmp_path / "where.py").write_text(WHERE)
    points = [{"nodes": 1, "cpus_per_node": 1, "seed": seed} for seed in range(4)]
    notebook = sweep.Notebook(str(tmp_path / "t.csv"), WHERE, [])
    rows = sweep.sweep(str(tmp_path / "where.py"), [], points, notebook, jobs=2)
    shares = sweep.shares_of(sorted(os.sched_getaffinity(0)), 2)
    allowed = {",".join(map(str, share)) for share in shares.values()}
    assert {str(row["result.cpus"]) for row in rows} <= allowed, rows


def test_points_from_files(tmp_path):
    (tmp_path / "p.csv").write_text("nodes,vm.swappiness\n1,10\n2,\n")
    assert sweep.points_of_file(tmp_path / "p.csv") == [{"nodes": 1, "vm.swappiness": 10}, {"nodes": 2}]
    (tmp_path / "p.json").write_text('[{"nodes": 1}]')
    assert sweep.points_of_file(str(tmp_path / "p.json")) == [{"nodes": 1}]
    for text in ("[]", "{", "[1]", '{"nodes": 1}', '[{"nodse": 1}]'):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(ConfigError):
            sweep.points_of_file(str(tmp_path / "p.json"))


# -- sweeps --------------------------------------------------------------------------------------------------


def run(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "numaemu", "sweep", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=250,
        **options,
    )


def test_a_sweep_goes_on_where_it_was(workload, tmp_path):
    """Two workers, one point that fails; a second call runs only what is new, and a line that was cut off again."""
    need_package("distributed", "pandas", "pyarrow")
    import pandas

    out = tmp_path / "t.parquet"
    grid = ["--vary", "args.pages=5,13,20", "--vary", "nodes=1,2", "--out", out, "--jobs", "2"]
    done = run(workload, *grid)
    assert done.returncode == 1 and "6 runs in" in done.stdout and "2 of them failed" in done.stdout, done
    assert "numaemu: ValueError: thirteen of them" in done.stderr and "6 of 6 runs" not in done.stdout
    frame = pandas.read_parquet(out)
    assert list(frame["args.pages"]) == [5, 5, 13, 13, 20, 20] and list(frame["nodes"]) == [1, 2] * 3
    good = frame[frame["error"].isna()]
    assert list(good["accesses"]) == [5, 5, 20, 20] and set(frame["error"].dropna()) == {"ValueError: thirteen of them"}
    lines = (tmp_path / "t.parquet.runs").read_text().splitlines()
    assert len(lines) == 6
    (tmp_path / "t.parquet.runs").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:50])
    done = run(
        workload, "--vary", "args.pages=5,13,20", "--vary", "nodes=1,2", "--out", out, "--jobs", "1", "--repeat", "1"
    )
    assert "6 runs in" in done.stdout
    assert len([line for line in (tmp_path / "t.parquet.runs").read_text().splitlines() if line.endswith("}")]) == 6
    assert list(pandas.read_parquet(out)["took_s"].notna()) == [True] * 6


def test_nothing_stays_when_a_sweep_is_killed(workload, tmp_path):
    """Workers and their machines end with it; a run that had not ended is not written down."""
    need_package("distributed", "pandas")
    mark, out = tmp_path / "mark", tmp_path / "t.csv"
    words = [sys.executable, "-m", "numaemu", "sweep", workload, "--vary", "args.pages=1,2", "--out", str(out), "--jobs", "2", "-q",
             "--", "--wait", str(mark)]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        wait_for(lambda: mark.exists() and len(mark.read_text()) == 2, driver)
        processes = psutil.Process(driver.pid).children(recursive=True)
        assert len(processes) >= 4
        driver.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive, [p.cmdline() for p in alive]
    assert not (tmp_path / "t.csv.runs").exists()


def wait_for(condition, process):
    """Until a condition holds, or the process has ended."""
    import time

    while not condition():
        assert process.poll() is None
        time.sleep(0.05)


def test_the_notebook_knows_what_was_run(tmp_path):
    book = sweep.Notebook(tmp_path / "t", "text", ["a"])
    book.add({"x": 1}, {"x": 1, "y": 2})
    again = sweep.Notebook(tmp_path / "t", "text", ["a"])
    assert again.rows == {again.key({"x": 1}): {"x": 1, "y": 2}}
    assert sweep.Notebook(tmp_path / "t", "other text", ["a"]).key({"x": 1}) not in again.rows
    assert json.loads((tmp_path / "t.runs").read_text())[sweep.KEY] == again.key({"x": 1})
