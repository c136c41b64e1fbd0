"""Traces of other tools: reading each format, files that are none, and what a replay does."""

import gzip
import json
import lzma
import random
import re
import subprocess

import numpy as np
import pytest
import zstandard
from wanting import need_program

from numaemu.tools import cli
from numaemu.tools.study import compare
from numaemu.tools.traces import formats
from numaemu.tools.traces.record import ACCESS, FETCH, LOAD, MODIFY, STORE
from numaemu.tools.traces.replay import MOST_RANGES, Survey, merged, parse_policy, replay

TASK_SIZE = (1 << 47) - 4096
LACKEY = b"""==7== Lackey, an example Valgrind tool
==7==
I  04001092,3
 L 1ffeffe7a8,8
 S 1ffeffe7b0,4
 M 04222caf,1
 X 1234,8
 L 12g4,8
 L 1234,0
 S 0421e000,16
"""


def rows(path, kind=None):
    """(addr, size, thread, kind) of a trace."""
    return [tuple(row)[:4] for part in formats.read(str(path), kind) for row in part.tolist()]


def naive_lackey(data):
    """The slow, obvious twin of the compiled reader."""
    found = []
    for line in data.split(b"\n"):
        match = re.fullmatch(rb"(I | [LSM]) +([0-9a-f]+),(\d+)", line)
        if match and 1 <= int(match[3]) <= 4096 and line[2:3] == b" ":
            found.append((int(match[2], 16), int(match[3]), 0, b"LSIM".index(match[1].strip())))
    return found


def test_lackey(tmp_path):
    (tmp_path / "t").write_bytes(LACKEY)
    assert formats.guess(str(tmp_path / "t")) == "lackey"
    expected = [(0x4001092, 3, 0, FETCH), (0x1FFEFFE7A8, 8, 0, LOAD), (0x1FFEFFE7B0, 4, 0, STORE), (0x4222CAF, 1, 0, MODIFY),
                (0x421E000, 16, 0, STORE)]  # fmt: skip
    assert rows(tmp_path / "t") == naive_lackey(LACKEY) == expected
    (tmp_path / "t").write_bytes(LACKEY[:-1])  # without the last line's end
    assert rows(tmp_path / "t") == expected


@pytest.mark.parametrize("seed", range(5))
def test_lackey_in_pieces(tmp_path, monkeypatch, seed):
    """Lines are cut anywhere, some of them are broken: the compiled reader and its twin agree."""
    rng, lines = random.Random(seed), []
    for _ in range(400):
        line = f"{rng.choice(['I ', ' L', ' S', ' M'])} {rng.randrange(1 << rng.randrange(1, 48)):x},{rng.randrange(1, 70)}"
        if rng.random() < 0.2:
            i = rng.randrange(len(line))
            line = line[:i] + rng.choice(" ,xI9f") + line[i + 1 :]
        lines.append(line)
    data = "\n".join(lines).encode() + b"\n"
    (tmp_path / "t").write_bytes(data)
    monkeypatch.setattr(formats, "pieces", lambda path, nbytes=0: (data[i : i + 97] for i in range(0, len(data), 97)))
    assert rows(tmp_path / "t", "lackey") == naive_lackey(data)


def champsim(n=3):
    records = np.zeros(n, formats.INSTRUCTION)
    records["ip"] = 0x400000 + 4 * np.arange(n)
    records["loads"][:, 0], records["stores"][1:, 1] = 0x7000_0000, 0x7000_1000
    return records.tobytes()


@pytest.mark.parametrize("pack", [lambda data: data, lzma.compress, gzip.compress, zstandard.compress])
def test_champsim(tmp_path, pack):
    (tmp_path / "t").write_bytes(pack(champsim()))
    assert formats.guess(str(tmp_path / "t")) == "champsim"
    assert rows(tmp_path / "t") == [(0x400000, 4, 0, FETCH), (0x7000_0000, 8, 0, LOAD),
                                    (0x400004, 4, 0, FETCH), (0x7000_0000, 8, 0, LOAD), (0x7000_1000, 8, 0, STORE),
                                    (0x400008, 4, 0, FETCH), (0x7000_0000, 8, 0, LOAD), (0x7000_1000, 8, 0, STORE)]  # fmt: skip


DRMEMTRACE = b"""Output format:
<--record#-> <--instr#->: <---tid---> <record details>
           1           0:      342625 <marker: version 3>
           7           1:      342625 ifetch       3 byte(s) @ 0x00007f5ce8f12810 non-branch
           8           1:      342626 write        8 byte(s) @ 0x00007ffc5d5c9708 by PC 0x00007f5ce8f12813
"""
PERF = b"""           ls   1234 [001]  5678.901234:   1  cpu/mem-loads,ldlat=30/P:     7f3a90001040 |OP LOAD
  1235  cpu/mem-stores/P:  7f3a90002000
  1236  cpu/mem-stores/P:  0
"""
CSV = b"addr,size,op,tid\n0x10000,4,R,5\n65544,,w,6\n"


@pytest.mark.parametrize(
    "data, kind, expected",
    [
        (DRMEMTRACE, "drmemtrace", [(0x7F5CE8F12810, 3, 342625, FETCH), (0x7FFC5D5C9708, 8, 342626, STORE)]),
        (PERF, "perf", [(0x7F3A90001040, 8, 1234, LOAD), (0x7F3A90002000, 8, 1235, STORE)]),
        (CSV, "csv", [(0x10000, 4, 5, LOAD), (0x10008, 8, 6, STORE)]),
    ],
)
def test_texts(tmp_path, data, kind, expected):
    (tmp_path / "t").write_bytes(data)
    assert formats.guess(str(tmp_path / "t")) == kind and rows(tmp_path / "t") == expected


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "it is empty"),
        (b"hello\n" * 9, "is no trace of"),
        (b"\x7fELF" + b"\1\0" * 4000, "is no trace of"),
        (lzma.compress(champsim(5000))[:-40], "cut off"),
        (gzip.compress(LACKEY)[:-9], "cut off"),
        (zstandard.compress(LACKEY * 99)[:40], "is no trace|decompressed|empty"),
        (b"addr,op\n0x10000,R\nx,R\n", "line 3: 'x,R' is no access"),
        (b"addr,op\n0x10000,Q\n", "line 2: '0x10000,Q' is no access"),
        (b"addr\n99999999999999999999999\n", "does not make sense"),
        (LACKEY + b" L 12" * 5000, "has a line of more than"),
        (b" L 10,8\n", "holds no access that a task could do"),
    ],
)  # fmt: skip
def test_what_is_no_trace_ends_in_one_line(tmp_path, capsys, data, words):
    (tmp_path / "t").write_bytes(data)
    assert cli.main(["replay", str(tmp_path / "t"), "-q"]) == cli.USAGE
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and re.search(words, told) and str(tmp_path / "t") in told, told


def test_a_file_cut_within_a_record(tmp_path, capsys):
    (tmp_path / "t.champsim").write_bytes(champsim(9)[:-30])
    assert cli.main(["replay", str(tmp_path / "t.champsim"), "-q"]) == cli.USAGE
    assert "is cut off: 34 bytes behind the last record of 64" in capsys.readouterr().err


def test_wrong_words(tmp_path, capsys):
    (tmp_path / "t").write_bytes(LACKEY)
    for options, words in (
        (["--policy", "best"], "--policy is 'best', must be one of local"),
        (["--policy", "bind"], "must have nodes, as in bind:0-1"),
        (["--format", "elf"], "--format is 'elf', must be one of lackey"),
        (["--against", "nodes"], "--against has 'nodes', must be KEY=VALUE"),
        (["--against", "nodse=2"], "unknown key 'nodse'"),
        (["--against", "threads=all"], "threads is 'all', must be one or by-id"),
    ):
        assert cli.main(["replay", str(tmp_path / "t"), *options]) == cli.USAGE
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and words in told, told


def test_ranges_of_pages():
    assert merged(np.array([5, 6, 7, 9, 100], np.uint64)) == [(5, 8), (9, 10), (100, 101)]
    many = np.unique(np.cumsum(np.random.default_rng(0).integers(2, 50, 3 * MOST_RANGES))).astype(np.uint64)
    ranges = merged(many)
    assert len(ranges) <= MOST_RANGES
    assert (
        all(a[1] < b[0] for a, b in zip(ranges, ranges[1:]))
        and ranges[0][0] == many[0]
        and ranges[-1][1] == many[-1] + 1
    )


def access(*found):
    return np.array([(*row, 0) for row in found], ACCESS)


def write_csv(path, accesses):
    lines = [
        f"{row['addr']},{row['size']},{'RWIM'[row['kind']] if row['kind'] != 2 else 'f'},{row['thread']}"
        for row in accesses
    ]
    path.write_text("\n".join(["addr,size,op,tid", *lines]) + "\n")


def test_a_replay_does_what_the_trace_says(machine, tmp_path):
    """Loads and stores word by word, pages faulted in where they are, kernel addresses left out."""
    first, second = 0x7F00_0000_0000, 0x10_0000
    write_csv(tmp_path / "t", access((first, 8, 3, LOAD), (first + 4, 8, 3, STORE), (second, 32, 9, STORE), (second + 4095, 2, 9, MODIFY),
                                     (1 << 60, 8, 3, LOAD), (16, 8, 3, LOAD)))  # fmt: skip
    before = machine.stats()
    with Survey(str(tmp_path / "t"), None, TASK_SIZE, True) as survey:
        assert survey.figures() == {
            "format": "csv",
            "loads": 1,
            "stores": 2,
            "fetches": 0,
            "modifies": 1,
            "threads": 2,
            "pages": 3,
            "left_out": 2,
        }
        assert replay(machine, survey) == 4
        after = machine.stats()
        done = {key: sum(a[key] - b[key] for a, b in zip(after["cpus"], before["cpus"])) for key in ("loads", "stores")}
        assert done == {
            "loads": 1 + 2,
            "stores": 2 + 4 + 2,
        }  # a store of 8 at 4 lies in two words, and so does one of 2 at 4095
        assert after["vmstat"]["pgfault"] - before["vmstat"]["pgfault"] >= 3
        assert replay(machine, survey, parse_policy("bind:1"), True) == 4
        bound = machine.stats()
        assert bound["nodes"][1]["numastat"]["numa_hit"] - after["nodes"][1]["numastat"]["numa_hit"] >= 3
        spool = survey.spool.path
        survey.spool.close()  # as if the accesses were too many to be kept
        assert replay(machine, survey) == 4
    import os

    assert not os.path.exists(spool)


def test_replay_from_the_command_line(tmp_path, capsys):
    rng = random.Random(1)
    lines = [f" {rng.choice('LS')} {0x4000_0000 + rng.randrange(1 << 16) * 8:x},8" for _ in range(5000)]
    (tmp_path / "t").write_text("\n".join(lines) + "\n")
    out = tmp_path / "j.json"
    arguments = [
        "replay",
        str(tmp_path / "t"),
        "--nodes",
        "2",
        "--memory-per-node",
        "64MiB",
        "--against",
        "policy=bind:1",
        "--json",
        str(out),
    ]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "remote accesses %" in text and "page walks" in text and "numa_other" in text
    a, b = json.loads(out.read_text())
    assert a["result"] == b["result"] and a["result"]["accesses"] == 5000
    assert (
        compare.measures(a)["remote accesses %"] == 0 and compare.measures(b)["remote accesses %"] > 95
    )  # the page of zeros is on node 0
    assert b["emulated_ns"] > a["emulated_ns"]


def test_a_real_trace_of_valgrind(machine, tmp_path):
    need_program("valgrind")
    subprocess.run(
        ["valgrind", "--tool=lackey", "--trace-mem=yes", f"--log-file={tmp_path}/t", "/bin/true"], check=True
    )
    with Survey(f"{tmp_path}/t", None, TASK_SIZE, False) as survey:
        assert (
            survey.kind == "lackey" and survey.outside == 0 and survey.counts[LOAD] > 1000 and survey.counts[FETCH] == 0
        )
        assert replay(machine, survey) == survey.accesses
