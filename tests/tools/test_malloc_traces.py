"""`numaemu malloc`: the table, the JSON, and what it refuses."""

import json

import pytest

from numaemu.tools import cli

SHORT = "20000\n6\n12\n1\n" + "".join(
    f"{line}\n" for line in "a 0 2040,a 1 2040,f 1,a 2 48,a 3 4072,f 3,a 4 4072,f 0,f 2,a 5 4072,f 4,f 5".split(",")
)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "short1-bal.rep"
    path.write_text(SHORT)
    return str(path)


def test_a_trace_on_two_kinds(trace, tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert cli.main(["malloc", trace, "--kind", "implicit", "--kind", "segregated", "--json", str(path)]) == cli.DONE
    rows = json.loads(path.read_text())
    assert [(row["trace"], row["kind"], row["valid"], row["operations"]) for row in rows] == [
        ("short1-bal.rep", "implicit", True, 12),
        ("short1-bal.rep", "segregated", True, 12),
    ]
    assert rows[0]["utilisation"] == pytest.approx(0.6619, abs=1e-4)  # the textbook's
    assert all(row["ns_per_operation"] > 0 and row["faults_per_operation"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "66.2 %" in printed and printed.count("yes") == 2


def test_options_reach_the_heap(trace, capsys):
    assert cli.main(["malloc", trace, "--kind", "implicit", "--option", "growth=0"]) == cli.DONE
    assert "66.2 %" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--kind", "hoard"],
            "--kind is 'hoard', must be one of implicit, explicit, segregated, buddy, dlmalloc, ptmalloc",
        ),
        (
            ["--kind", "dlmaloc"],
            "--kind is 'dlmaloc', must be one of implicit, explicit, segregated, buddy, dlmalloc, ptmalloc, did you mean 'dlmalloc'?",
        ),
        (["--option", "colour=red"], "malloc_heap: a heap of kind implicit has no option colour"),
        (["--option", "growth=much"], "malloc_heap: growth is 'much', must be a size such as"),
        (["--option", "node=9", "--kind", "buddy"], "mbind: node 9 is not a node of this machine"),
        (["--option", "growth"], "--option is 'growth', must be name=value"),
        (["--option", "colour=red", "--kind", "buddy"], "malloc_heap: a heap of kind buddy has no option colour"),
        (
            ["--option", "fit=worst", "--kind", "implicit"],
            "malloc_heap: fit is 'worst', must be one of first, next, best",
        ),
    ],
)
def test_wrong_usage_is_one_line(trace, capsys, arguments, message):
    assert cli.main(["malloc", trace, *arguments]) == cli.USAGE
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"numaemu: {message}")


def test_kinds_that_have_the_options_are_played(trace, tmp_path):
    path = tmp_path / "rows.json"
    options = ["--option", "fit=best", "--option", "accounts=true"]
    assert cli.main(["malloc", trace, *options, "--json", str(path)]) == cli.DONE
    assert [row["kind"] for row in json.loads(path.read_text())] == ["implicit"]


def test_a_process_that_is_killed_is_not_valid(tmp_path, capsys):
    """Blocks that the machine has no memory for: 20 of 2 MiB on 32 MiB, with bytes written."""
    path = tmp_path / "large.rep"
    path.write_text("0\n20\n20\n1\n" + "".join(f"a {i} 2097152\n" for i in range(20)))
    small = tmp_path / "small.toml"
    small.write_text('[[node]]\nmemory = "32MiB"\ncpus = [0]\n')
    options = ["--kind", "dlmalloc", "--option", "source=mmap", "--option", "mmap_threshold=1TiB"]
    assert cli.main(["malloc", str(path), "--machine", str(small), *options]) == cli.RAISED
    out = capsys.readouterr().out
    assert "large.rep, dlmalloc: task " in out and "killed by the OOM killer" in out


def test_a_heap_that_runs_out_of_memory_is_not_valid(tmp_path, capsys):
    path = tmp_path / "large.rep"
    path.write_text("0\n1\n1\n1\na 0 200000\n")
    options = ["--option", "source=mmap", "--option", "limit=65536"]
    assert cli.main(["malloc", str(path), "--kind", "implicit", *options]) == cli.RAISED
    assert "large.rep, implicit: out of memory" in capsys.readouterr().out


def test_a_narrow_terminal_sees_every_figure(tmp_path, capsys, monkeypatch):
    """What is too wide is turned, not cut. Lines that cannot be played are counted."""
    path = tmp_path / "small.ltrace"
    path.write_text(
        "malloc(100) = 0x5000\nfree(0x7777)\nmalloc(12) = nil\nmalloc(30) = 0x6000\nfree(0x5000) = <void>\nfree(0x60"
    )
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["malloc", str(path), str(path), "--kind", "implicit"]) == cli.DONE
    printed = capsys.readouterr().out
    table = printed.partition("small.ltrace: ")[0]
    assert max(map(len, table.splitlines())) <= 80 and "…" not in printed and "small.ltrace" in table
    for title in ("kind", "valid", "utilisation", "operations", "each", "accesses", "TLB misses", "faults"):
        assert title in printed
    assert "small.ltrace: 3 lines are left out" in printed
