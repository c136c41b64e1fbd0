"""Playing recorded scenarios: placement, what a dump says, what is not supported, and that a difference is seen."""

import copy
import gzip
import json

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from numaemu.conform import calibrate, case_file, judge, observe, replay
from numaemu.conform import command as conform
from numaemu.conform.replay import XORSHIFT_SEED, NotSupported
from numaemu.conform.touch import touch_order
from numaemu.errors import ConfigError, MachineCheck
from numaemu.tools import cli

MIB = 1 << 20
MACHINE = {"id": "small", "nodes": 2, "memory_MiB": [64, 64], "cpus_per_node": [1, 1], "distance": [[10, 21], [21, 10]]}
# fmt: off
ON_NODE_1 = {"addr": "0x7ffff77d0000", "length": MIB, "pages": {"node0": 0, "node1": 256},
             "node_runs": [[1, 256]], "node_runs_total": 1}
FIRST_TOUCH = {
    "name": "first_touch", "class": "quiet", "machine": MACHINE,
    "steps": [{"op": "spawn", "task": "T0", "cpu": "1"},
              {"op": "mmap", "task": "T0", "region": "a", "size": MIB},
              {"op": "snap", "label": "before"},
              {"op": "touch", "task": "T0", "region": "a"},
              {"op": "snap", "label": "after"},
              {"op": "dump", "task": "T0", "label": "end"},
              {"op": "exit", "task": "T0", "code": 0}],
    "observed": {
        "step_results": [{"step": 3, "op": "touch", "ret": 256, "errno": 0, "minflt": 256, "majflt": 0},
                         {"step": 6, "op": "exit", "state": "DEAD", "sig": 0}],
        "dumps": {"end": {"T0": {"regions": {"a": ON_NODE_1}}}},
        "deltas": {"before=>after": {"vmstat": {"pgfault": 256, "nr_anon_pages": 256},
                                     "nodes": {"1": {"numastat": {"numa_hit": 257, "local_node": 257}}}}},
        "final": {"T0": {"dead": 1, "sig": 0}}}}
# fmt: on


def case(*steps, **observed):
    """FIRST_TOUCH's machine with other steps."""
    return {"name": "small", "machine": MACHINE, "steps": list(steps), "observed": observed}


@pytest.fixture(scope="module")
def observed():
    """FIRST_TOUCH, played once."""
    return conform.replay(FIRST_TOUCH)


@pytest.fixture
def written(tmp_path):
    """A function that writes a case to a file."""

    def write(record, name="case.json"):
        path, text = tmp_path / name, json.dumps(record).encode()
        pack = {".zst": zstandard.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
        path.write_bytes(pack(text))
        return path

    return write


# -- placement -----------------------------------------------------------------------------------------------


def test_first_touch_is_local(observed):
    verdict = judge.judge(FIRST_TOUCH, observed)
    assert verdict.agrees, conform.table(verdict)
    region = observed["dumps"]["end"]["T0"]["regions"]["a"]
    assert region["pages"]["node1"] == 256 and region["node_runs"] == [[1, 256]]
    assert region["addr"] == ON_NODE_1["addr"]  # right below the log buffer


def test_deltas_are_between_neighbours_and_over_everything(observed):
    assert list(observed["deltas"]) == ["before->after", "before=>after"]
    assert observed["deltas"]["before->after"] == observed["deltas"]["before=>after"]
    assert observed["deltas"]["before=>after"]["vmstat"]["nr_anon_pages"] == 256


def test_shared_pages_stay_where_they_are():
    spawn, mmap = FIRST_TOUCH["steps"][:2]
    seen = conform.replay(
        case(
            spawn,
            mmap,
            {"op": "mmap", "task": "T0", "region": "b", "size": MIB},
            {"op": "mbind", "task": "T0", "region": "a", "policy": "interleave", "nodes": "0-1", "length": MIB // 2},
            {"op": "touch", "task": "T0", "region": "a", "order": "reverse"},
            {"op": "touch", "task": "T0", "region": "b"},
            {"op": "fork", "task": "T0", "child": "T1", "cpu": "0"},
            {"op": "touch", "task": "T1", "region": "a", "length": MIB // 4},
            {"op": "move_pages", "task": "T0", "region": "a", "offset": MIB // 2, "nodes": "0"},
            {"op": "mbind", "task": "T0", "region": "b", "policy": "bind", "nodes": "0", "flags": "move|strict"},
            {"op": "mbind", "task": "T1", "region": "b", "policy": "bind", "nodes": "0", "flags": "strict"},
            {"op": "dump", "task": "T0", "label": "end"},
            {"op": "dump", "task": "T1", "label": "end"},
        )
    )
    parent, child = (seen["dumps"]["end"][name]["regions"] for name in ("T0", "T1"))
    assert parent["a"]["pages"]["node0"] == 64 and parent["a"]["node_runs"][:2] == [[0, 1], [1, 1]]
    assert child["a"]["pages"]["node0"] == child["a"]["pages"]["node1"] - 128  # copied by the policy of the range
    assert parent["b"]["pages"]["node1"] == child["b"]["pages"]["node1"] == 256
    move, bind, strict = seen["step_results"][8:11]
    assert move["ret"] == 0 and bind["ret"] == 0 and (strict["ret"], strict["errno"]) == (-1, 5)


def play(*steps):
    """Results of steps that follow the first two of FIRST_TOUCH, and all that was seen."""
    seen = conform.replay(case(*FIRST_TOUCH["steps"][:2], *steps))
    return seen["step_results"][2:], seen


def test_calls_on_address_spaces():
    t0 = {"task": "T0", "region": "a"}
    results, seen = play(
        {"op": "touch", **t0},
        {"op": "madvise", **t0, "advice": "dontneed", "stride": 8192, "each": 4096},
        {"op": "mlock", **t0, "length": 8192},
        {"op": "munlock", **t0, "length": 8192},
        {"op": "mmap", "task": "T0", "region": "b", "size": MIB, "align": 4 * MIB, "noreserve": 1},
        {"op": "mremap", **t0, "size": 2 * MIB, "maymove": 1},
        {"op": "mremap", **t0, "size": 4 * MIB},
        {"op": "brk", "task": "T0", "region": "heap", "size": 8192},
        {"op": "touch", "task": "T0", "region": "heap"},
        {"op": "mlock", "task": "T0", "region": "b", "length": 4096},
        {"op": "dump", "task": "T0", "label": "end"},
    )
    assert [r["ret"] for r in results[:4]] == [256, 128, 0, 0]
    assert results[4]["ret"] % (4 * MIB) == 0 and results[5]["ret"] > 0 and results[8]["ret"] == 2
    assert results[6]["ret"] > 0 or results[6]["errno"] == 12
    regions = seen["dumps"]["end"]["T0"]["regions"]
    assert regions["a"]["pages"]["node1"] == 128 + 1  # mlock brought one in again
    assert regions["heap"]["pages"]["node1"] == 2 and int(regions["heap"]["addr"], 16) == 0x4CC000 + 58 * 4096
    files = seen["dumps"]["end"]["T0"]
    assert files["status"]["VmLck"] == 4 and files["smaps_rollup"]["Rss"] == files["status"]["VmRSS"]


def test_mremap_moves_unless_it_may_not_and_names_what_results():
    t0 = {"task": "T0", "region": "a"}
    results, seen = play(
        {"op": "touch", **t0},
        {"op": "mmap", "task": "T0", "region": "b", "size": MIB, "addr": 0x7D0000000000},
        {"op": "mmap", "task": "T0", "region": "wall", "size": MIB, "addr": 0x7D0000000000 + MIB},
        {"op": "touch", "task": "T0", "region": "b"},
        {"op": "mremap", "task": "T0", "region": "b", "new_size": 2 * MIB, "maymove": 0},
        {"op": "mremap", "task": "T0", "region": "b", "new_size": 2 * MIB, "as": "c"},
        {"op": "mremap", **t0, "dontunmap": 1, "as": "d"},
        {"op": "mremap", "task": "T0", "region": "d", "new_addr": 0x7D1000000000, "as": "e"},
        {"op": "munmap_stride", "task": "T0", "region": "e", "stride": 16384, "each": 4096},
        {"op": "dump", "task": "T0", "label": "end"},
    )
    assert (results[4]["ret"], results[4]["errno"]) == (-1, 12) and results[5]["ret"] > 0
    assert results[6]["ret"] > 0 and results[7]["ret"] == 0x7D1000000000 and results[8]["ret"] == 64
    regions = seen["dumps"]["end"]["T0"]["regions"]
    assert {name: region["pages"]["node1"] for name, region in regions.items()} == {
        "a": 0,
        "b": 0,
        "wall": 0,
        "c": 256,
        "d": 0,
        "e": 192,
    }
    assert regions["a"]["pages"]["absent"] == 256  # the old place is still mapped, and empty


def test_policies_with_flags_and_the_pages_of_another_task():
    t0 = {"task": "T0", "region": "a"}
    results, seen = play(
        {"op": "set_mempolicy", "task": "T0", "policy": "interleave|relative", "nodes": "0-1"},
        {"op": "get_mempolicy", "task": "T0"},
        {"op": "touch", **t0},
        {"op": "spawn", "task": "T1", "cpu": "0"},
        {"op": "migrate_pages", "task": "T1", "from": "0", "to": "1", "target": "T0"},
        {"op": "migrate_pages", "task": "T1", "from": "0", "to": "1", "target": "T7"},
        {"op": "mbind", **t0, "policy": "bind|static", "nodes": "1"},
        {"op": "get_mempolicy", **t0},
        {"op": "fork", "task": "T0", "child": "T2"},
        {"op": "move_pages", **t0, "nodes": "0"},
        {"op": "move_pages", **t0, "nodes": "0", "all": 1},
        {"op": "dump", "task": "T0", "label": "end"},
    )
    assert results[1]["ret"] == 3 << 16 | 1 << 14 | 3 and results[7]["ret"] == 2 << 16 | 1 << 15 | 2
    assert results[4]["ret"] >= 0 and (results[5]["ret"], results[5]["errno"]) == (-1, 3)
    assert results[9]["ret"] < 1_000_000 and results[10]["ret"] == 256_000_000
    assert seen["dumps"]["end"]["T0"]["regions"]["a"]["pages"]["node0"] == 256
    with pytest.raises(NotSupported, match="policy=bind.nearest"):
        conform.replay(case({"op": "set_mempolicy", "task": "T0", "policy": "bind|nearest", "nodes": "1"}))


def test_what_a_task_does_that_never_came_to_be_disagrees():
    results, seen = play(
        {"op": "touch", "task": "T9", "region": "a"},
        {"op": "kill", "task": "T9"},
        {"op": "mprotect", "task": "T0", "region": "never", "prot": "r"},
        {"op": "munmap", "task": "T0", "region": "never"},
        {"op": "dump", "task": "T9", "label": "end"},
    )
    linux = {"step_results": [{"step": 2, "op": "touch", "ret": 256, "errno": 0}], "final": {"T9": {"dead": 0}}}
    verdict = judge.judge(case(**linux), seen)
    assert len(verdict.failures["steps"]) == 1 and not verdict.agrees
    assert [r.get("errno") for r in results[2:4]] == [0, 22]  # what a call about no bytes at all answers


def test_files_are_read_as_the_steps_say():
    t0 = {"task": "T0", "path": "/mnt/f64"}
    results, seen = play(
        {"op": "sh", "cmd": "mount -t ext4 -o noatime /dev/vda /mnt"},
        {"op": "snap", "label": "before"},
        {"op": "read_file", **t0, "length": 2 * MIB, "random_adv": 1},
        {"op": "snap", "label": "random"},
        {"op": "fadvise_dontneed", **t0},
        {"op": "snap", "label": "dropped"},
        {"op": "read_file", **t0, "offset": 8 * MIB, "length": MIB, "chunk": 262144, "pause_ms": 1},
        {"op": "write_file", "task": "T0", "path": "/mnt/new", "size": MIB, "fsync": 1},
        {"op": "write_proc", "task": "T0", "path": "/proc/self/oom_score_adj", "value": "7"},
        {"op": "snap", "label": "end"},
    )
    deltas = {label: delta["vmstat"] for label, delta in seen["deltas"].items()}
    assert [results[i]["ret"] for i in (2, 4, 6, 7, 8)] == [2 * MIB, 0, MIB, MIB, 1]
    assert deltas["before->random"]["nr_file_pages"] == 512  # nothing is read ahead
    assert deltas["random->dropped"]["nr_file_pages"] == -512
    assert deltas["dropped->end"]["nr_written"] == 256 and deltas["dropped->end"].get("nr_dirty", 0) == 0


def test_touching_in_portions_for_a_while():
    results, _ = play(
        {"op": "touch", "task": "T0", "region": "a", "chunk": 65536, "pause_ms": 4},
        {"op": "touch", "task": "T0", "region": "a", "mode": "read", "duration_ms": 1},
        {"op": "touch", "task": "T0", "region": "a", "repeat": 3, "order": "random"},
    )
    assert (results[0]["ret"], results[0]["minflt"]) == (256, 256)
    assert results[1]["ret"] > 256 and results[1]["ret"] % 256 == 0 and results[1]["minflt"] == 0
    assert results[2]["ret"] == 768


def test_touching_meanwhile_and_a_kill():
    results, seen = play(
        {"op": "touch", "task": "T0", "region": "a", "async": 1},
        {"op": "join", "task": "T0"},
        {"op": "fork", "task": "T0", "child": "T1"},
        {"op": "touch", "task": "T1", "region": "a", "async": 1},
        {"op": "kill", "task": "T1", "sig": 9},
        {"op": "nop", "task": "T1"},
        {"op": "touch", "task": "T0", "region": "a"},
    )
    assert "ret" not in results[0] and (results[1]["ret"], results[1]["minflt"]) == (256, 256)
    assert (results[4]["ret"], results[5]["state"], results[6]["ret"]) == (0, "DEAD", 256)
    assert seen["final"]["T1"]["sig"] == 9 and seen["final"]["T0"]["dead"] == 0


def test_a_task_that_finds_no_memory_is_killed():
    spawn = FIRST_TOUCH["steps"][0]
    seen = conform.replay(
        case(
            spawn,
            {"op": "mmap", "task": "T0", "region": "a", "size": 80 * MIB},
            {"op": "set_mempolicy", "task": "T0", "policy": "bind", "nodes": "1"},
            {"op": "touch", "task": "T0", "region": "a"},
            {"op": "dump", "task": "T0", "label": "end"},
        )
    )
    assert (seen["step_results"][3]["state"], seen["step_results"][3]["sig"]) == ("DEAD", 9)
    assert seen["dumps"] == {} and seen["final"]["T0"]["dead"] == 1


# -- the machine as recorded ---------------------------------------------------------------------------------


def test_zones_are_as_full_as_recorded():
    zones = {
        "node0/DMA": {"managed": 3840, "free": 3700},
        "node0/DMA32": {"managed": 11000, "free": 9000},
        "node1/DMA32": {"managed": 15000, "free": 8000},
    }
    for zone in zones.values():
        zone["min"] = 500 * zone["managed"] // 29840
    steps = [{**step, "task": "T0"} for step in FIRST_TOUCH["steps"][:2]] + [FIRST_TOUCH["steps"][3]]
    ours = conform.replay(case(*steps, {"op": "snap", "label": "base"}, snapshots={"base": {"zones": zones}}))
    for name, zone in ours["snapshots"]["base"]["zones"].items():
        assert abs(zone["free"] - zones[name]["free"]) <= calibrate.FREE_TOLERANCE
        assert (zone["managed"], zone["min"]) == (zones[name]["managed"], zones[name]["min"])


@given(st.lists(st.integers(1000, 10**7), min_size=1, max_size=6), st.integers(100, 10**6))
def test_min_free_kbytes_gives_back_the_marks(managed, pages_min):
    zones = {str(i): {"managed": m, "min": pages_min * m // sum(managed)} for i, m in enumerate(managed)}
    found = calibrate.min_free_kbytes(zones) // 4
    assert [found * m // sum(managed) for m in managed] == [zone["min"] for zone in zones.values()]


def test_marks_that_fit_no_min_free_kbytes():
    with pytest.raises(ConfigError, match="no min_free_kbytes gives"):
        calibrate.min_free_kbytes({"a": {"managed": 1000, "min": 1}, "b": {"managed": 1000, "min": 9}})


# -- the order of touches, the form of dumps -----------------------------------------------------------------


def test_random_order_goes_on_where_it_stopped():
    once, state = touch_order(100, "random", 2, XORSHIFT_SEED)
    assert once.max() < 100 and len(once) == 200
    first, between = touch_order(100, "random", 1, XORSHIFT_SEED)
    second, end = touch_order(100, "random", 1, between)
    assert [*first, *second] == [*once] and end == state


def test_reverse_order():
    assert touch_order(3, "reverse", 2, 1)[0].tolist() == [2, 1, 0, 2, 1, 0]


@given(st.lists(st.sampled_from([0, 1, -2, -14]), min_size=1, max_size=50))
def test_run_length_code_unfolds_to_the_sequence(status):
    runs = observe.run_length(np.array(status))
    assert [value for value, length in runs for _ in range(length)] == status
    assert all(a[0] != b[0] for a, b in zip(runs, runs[1:]))


def test_hash_of_a_sequence():
    assert observe.sequence_hash(np.zeros(4, np.int64)) == "315446a086a23133"
    assert observe.sequence_hash(np.full(4, observe.ABSENT)) == "b61879aa86a23133"


# -- what cannot be played, and what differs -----------------------------------------------------------------


@pytest.mark.parametrize("step, op", [
    ({"op": "sh", "cmd": "numactl -H"}, "sh numactl -H"),
    ({"op": "mmap", "task": "T0", "region": "a", "size": MIB, "kind": "device"}, "mmap kind=device"),
    ({"op": "touch", "task": "T0", "region": "a", "order": "spiral"}, "touch order=spiral"),
    ({"op": "mbind", "task": "T0", "region": "a", "policy": "bind", "flags": "lazy"}, "mbind flags=lazy")])  # fmt: skip
def test_not_supported_is_found_before_anything_starts(step, op):
    with pytest.raises(NotSupported) as raised:
        replay.check_steps([*FIRST_TOUCH["steps"], step])
    assert raised.value.op == op


def test_not_supported_file(written, tmp_path, capsys):
    path = written(case({"op": "write", "path": "/proc/sys/vm/no_such_setting", "value": "1"}))
    assert conform.main([path], tmp_path / "out.json") == conform.NOT_SUPPORTED
    op = "write /proc/sys/vm/no_such_setting"
    assert capsys.readouterr().out == f"not supported: {op}\n"
    assert json.loads((tmp_path / "out.json").read_text()) == {"not_supported": op}


def test_a_disagreement_is_reported(written, tmp_path, capsys):
    wrong = copy.deepcopy(FIRST_TOUCH)
    wrong["observed"]["dumps"]["end"]["T0"]["regions"]["a"]["pages"] = {"node0": 256, "node1": 0}
    assert conform.main([written(wrong)], tmp_path / "out.json") == conform.DISAGREES
    text = capsys.readouterr().out
    assert "dump end/T0/a: pages: is {'node1': 256}, Linux {'node0': 256}" in text
    assert "first_touch: disagrees with Linux" in text
    assert "observed" in json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize("part, change", [
    ("steps", lambda o: o["step_results"][0].update(ret=255)),
    ("steps", lambda o: o["step_results"][0].update(minflt=300)),
    ("dumps", lambda o: o["dumps"]["end"]["T0"]["regions"]["a"].update(node_runs=[[1, 128], [0, 128]])),
    ("deltas", lambda o: o["deltas"]["before=>after"]["vmstat"].update(nr_anon_pages=400)),
    ("deltas", lambda o: o["deltas"]["before=>after"]["nodes"]["1"]["numastat"].update(numa_hit=500)),
    ("oom", lambda o: o["final"]["T0"].update(sig=9))])  # fmt: skip
def test_the_judge_sees(observed, part, change):
    other = copy.deepcopy(FIRST_TOUCH)
    change(other["observed"])
    verdict = judge.judge(other, observed)
    assert [group for group in judge.GROUPS if verdict.failures[group]] == [part]


def test_a_case_file_that_is_none(tmp_path):
    (tmp_path / "case.json").write_text("[]")
    with pytest.raises(ConfigError, match="case file is malformed: case is .*, must be an object"):
        case_file.read_case(tmp_path / "case.json")


# -- several cases, and files that are packed -------------------------------------------------------------------


def test_a_packed_case_is_read_like_a_plain_one(written):
    for name in ("case.json", "case.json.zst", "case.json.gz"):
        path = written(FIRST_TOUCH, name)
        assert case_file.read_case(path) == FIRST_TOUCH and case_file.case_name(path) == "case"


@pytest.mark.parametrize("suffix", [".zst", ".gz"])
def test_a_packed_case_that_is_cut_off_or_no_archive(written, suffix):
    path = written(FIRST_TOUCH, f"case.json{suffix}")
    whole = path.read_bytes()
    for spoilt in (whole[: len(whole) // 2], whole[:10], b"", b"{}", whole[:20] + b"\xff" * 40 + whole[60:]):
        path.write_bytes(spoilt)
        with pytest.raises(ConfigError, match="case file cannot be read"):
            case_file.read_case(path)


def test_a_packed_case_of_endless_length_is_refused(written, monkeypatch):
    monkeypatch.setattr(case_file, "MOST_BYTES", 100)
    with pytest.raises(ConfigError, match="has more than 100 bytes"):
        case_file.read_case(written(FIRST_TOUCH, "case.json.zst"))


def test_every_kept_case_is_well_formed():
    paths = case_file.kept_cases()
    assert len(paths) >= 69
    for path in paths:
        case = case_file.read_case(path)
        assert case["name"] == case_file.case_name(path) and case_file.find_case(case["name"]) == path


def told(answers):
    """A stand-in for the playing of cases: by name what the replay answers, each time another; or what it raises."""

    def replay_case(case):
        answer = answers[case["name"]].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return replay_case


def named(name, **changes):
    return {**FIRST_TOUCH, "name": name, **changes}


@pytest.fixture
def other(observed):
    """What FIRST_TOUCH would show with one fault more."""
    wrong = copy.deepcopy(observed)
    wrong["step_results"][3]["ret"] = 255
    return wrong


def test_several_cases_make_a_table(written, observed, other, tmp_path, capsys, monkeypatch):
    paths = [written(named(name), f"{name}.json.zst") for name in ("right", "wrong", "later", "dead")]
    dead = MachineCheck("cpu 0 died")
    monkeypatch.setattr(conform, "replay", told({
        "right": [observed], "wrong": [other], "later": [NotSupported("sh numactl")], "dead": [dead]}))  # fmt: skip
    said = []
    status = conform.main(paths, tmp_path / "out.json", markdown_path=tmp_path / "page.md", say=said.append)
    assert status == conform.DISAGREES and said == ["1 of 4: right", "2 of 4: wrong", "3 of 4: later", "4 of 4: dead"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["case", "result", "seconds"] and lines[1].split()[:2] == ["right", "agrees"]
    assert lines[2].split()[:2] == ["wrong", "differs"] and lines[2].endswith("step 3 touch: result: is 255, Linux 256")
    assert lines[3].endswith("sh numactl") and lines[4].endswith("the machine: is dead (cpu 0 died), Linux alive")
    assert lines[5] == "of 4 cases 1 agree, 2 differ, 1 not supported"
    rows = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert [row["result"] for row in rows] == ["agrees", "differs", "not supported", "differs"]
    assert [row["played"] for row in rows] == [1, 1, 0, 1]
    page = (tmp_path / "page.md").read_text()
    assert page.startswith(conform.GENERATED) and page.count("\n| ") == 6
    assert "| wrong |  | small | differs | " in page


def test_a_case_agrees_if_it_does_every_time(written, observed, other, capsys, monkeypatch):
    paths = [written(named(name), f"{name}.json") for name in ("steady", "moody")]
    monkeypatch.setattr(conform, "replay", told({"steady": [observed] * 2, "moody": [observed, other]}))
    assert conform.main(paths, times=2) == conform.DISAGREES
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["steady", "agrees", "2/2"] and lines[2].split()[:3] == ["moody", "differs", "1/2"]


def test_what_cannot_be_played_does_not_disagree(written, observed, monkeypatch):
    paths = [written(named(name), f"{name}.json") for name in ("right", "later")]
    monkeypatch.setattr(conform, "replay", told({"right": [observed], "later": [NotSupported("op")]}))
    assert conform.main(paths) == conform.DONE


def test_all_plays_the_kept_cases(written, observed, tmp_path, capsys, monkeypatch):
    written(named("kept"), "kept.json.zst")
    monkeypatch.setattr(case_file, "KEPT", tmp_path)
    monkeypatch.setattr(conform, "replay", told({"kept": [observed, observed]}))
    assert cli.main(["conform", "--all"]) == 0
    assert "of 1 cases 1 agree" in capsys.readouterr().out
    assert cli.main(["conform", "kept"]) == 0  # by its name


@pytest.mark.parametrize("words", [
    [], ["--all", "case.json"], ["--all", "--repeat", "0"], ["nosuch"], ["--all", "--markdown", "/no/such/place.md"]])  # fmt: skip
def test_wrong_usage_is_a_line(words, capsys):
    assert cli.main(["conform", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_kept_cases(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(case_file, "KEPT", tmp_path)
    assert cli.main(["conform", "--all"]) == 2
    assert "this installation has no recorded cases" in capsys.readouterr().err


def test_faults_of_a_case_of_numa_balancing_are_not_compared(observed, other):
    more = copy.deepcopy(observed)
    more["step_results"][3]["minflt"] = 5000
    assert (
        judge.judge(named("f00", **{"class": "balancing"}), more).agrees and not judge.judge(FIRST_TOUCH, more).agrees
    )
