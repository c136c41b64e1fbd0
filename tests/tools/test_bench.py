"""`numaemu bench` measures every figure. How large one is, is not a test's business."""

import json
import pathlib
import subprocess
import sys


def test_bench_prints_and_writes_every_figure(tmp_path):
    out = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "numaemu", "bench", "--rounds", "1", "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["bench"]["rows"]
    assert [row["unit"] for row in rows] == ["1/s"] * 5 + ["ns"] * 2
    for row in rows:
        assert row["emulated"] > 0 and row["host"] > 0 and row["ratio"] > 0
        assert row["what"] in done.stdout
