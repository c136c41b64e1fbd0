"""Machine files, tables and recorded cases that somebody or something has spoilt: whatever is wrong, it is told in one line."""

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_conform import FIRST_TOUCH

from numaemu.conform import calibrate, case_file, judge, replay
from numaemu.conform import command as conform
from numaemu.errors import ConfigError
from numaemu.spec.topology import load_topology
from numaemu.tools import cli

# fmt: off
WHOLE = load_topology("cxl", sysctl={"vm.swappiness": 3, "vm.lowmem_reserve_ratio": "256 32"}, kernelcore="64MiB",
                      kernel={"hugepages": "hugepagesz=2M hugepages=0:3", "slab_debug": "FZ,kmalloc"})
KEYWORDS = {"nodes": 2, "cpus_per_node": 2, "memory_per_node": "64MiB", "memory_only_nodes": 1, "l1": {"entries": 64},
            "sysctl": {"vm.swappiness": 3}, "cost": {"fault_ns": 3}, "kernel": {"hugepages": ""}, "distance": [[10, 21], [21, 10]],
            "latency": [[80, 90], [90, 80]], "name": "x", "paging": "x86-64-4level", "page_size": 4096, "zone_layout": "x86-64",
            "low_memory": "1GiB", "disk": {"size": "1GiB"}, "asids": 3, "walk_cache": 4}
# fmt: on
LONG = "9" * 5000
LONG_HEX = "0x" + "f" * 5000  # as decimal digits Python does not read so many
# what a machine file may have in a value's place, as TOML, and what a dict may have
# fmt: off
TEXTS = [LONG, LONG_HEX, "1e400", "nan", "[]", "{}", "[[]]", "{a=1}", "''", '"a\\nb"', '"\\u0000"', f'"{LONG}"', '"1\u0663MiB"',
         '"\u00b2"', "1.5", "true", "2020-01-01", "-1", "18446744073709551616", '"hugepages=\u00b2"', f'"hugepages=0:{LONG}"',
         f'"256 {LONG}"', '["a"]', f"[{LONG_HEX}]", '"' + "x" * 100_000 + '"', '"\\u202e"', "[[[[]]]]"]
LINES = ["a.b = 1", "[sysctl]", "[kernel]", "[[node]]", "[node]", "\0", "[x", '""=1', "node.x = 1", "sysctl = []", "tlb = {l1 = 3}",
         "'a\\nb' = 2"]
THINGS = [None, [], {}, (), set(), object(), "", b"x", "a\nb", math.nan, math.inf, 10**5000, [10**5000], {10**5000: 1}, True, -1,
          1.5, [[1]], {1: 2}, {(): 1}, "uma", ["uma"], range(3), np.array([1, 2]), np.array(["uma"]), np.array([]), np.int8(3),
          LONG, "1\u0663MiB", {"where": 1}, {"vm": {"swappiness": 1}}]
# fmt: on


def one_line(function, *args):
    """It works, or says in one line of decent length why not."""
    try:
        function(*args)
    except ConfigError as error:
        assert str(error).isprintable() and len(str(error)) < 1500


@st.composite
def spoilt_text(draw):
    """The machine file with values replaced, lines added, doubled, taken out, or a few characters changed."""
    text = WHOLE.to_toml()
    for _ in range(draw(st.integers(1, 3))):
        lines = text.split("\n")
        at = draw(st.integers(0, len(lines) - 1))
        how = draw(st.integers(0, 4))
        if how <= 1 and "=" in lines[at]:
            lines[at] = lines[at].partition("=")[0] + "= " + draw(st.sampled_from(TEXTS))
        elif how <= 2:
            lines.insert(at, draw(st.sampled_from(LINES + lines)))
        elif how == 3:
            del lines[at]
        else:
            cut = draw(st.integers(0, len(lines[at])))
            lines[at] = (
                lines[at][:cut]
                + draw(st.sampled_from(["", "[", "}", '"', "'", "=", "\0", "\r", "\u2028", "#", "-"]))
                + lines[at][cut + draw(st.integers(0, 3)) :]
            )
        text = "\n".join(lines)
    return text


@given(spoilt_text())
def test_a_spoilt_machine_file_is_told_in_a_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "spoilt.toml"
    path.write_text(text, "utf-8", newline="")
    one_line(load_topology, path)


def places(thing, path=()):
    """The paths to everything inside tables and lists."""
    yield path
    items = thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def spoilt(thing, path, value):
    """A copy with a value in one place."""
    if not path:
        return value
    thing = copy.copy(thing)
    thing[path[0]] = spoilt(thing[path[0]], path[1:], value)
    return thing


@pytest.mark.parametrize("path", list(places(KEYWORDS)), ids=lambda path: ".".join(map(str, path)) or "all")
def test_anything_in_any_place_of_machine_is_told_in_a_line(path):
    for value in THINGS:
        one_line(cli.stated_topology, spoilt(KEYWORDS, path, value), "/home/me/story.py")


@given(
    st.sampled_from(list(places(WHOLE.to_dict()))),
    st.sampled_from(THINGS),
    st.sampled_from(["x", 3, None, "a\nb", 10**5000]),
)
@example(("kernel",), {"thread_size": np.array([1, 2])}, "x")
def test_anything_in_any_place_of_a_dict_is_told_in_a_line(path, value, key):
    machine = WHOLE.to_dict()
    one_line(load_topology, spoilt(machine, path, value))
    one_line(load_topology, {**machine, "sysctl": {**machine["sysctl"], key: value}})


def test_the_source_of_an_error_is_the_workload_s_machine():
    with pytest.raises(ConfigError, match=r"^unknown preset 'nosuch'.* \(MACHINE in /home/me/story.py\)$"):
        cli.stated_topology("nosuch", "/home/me/story.py")


@pytest.mark.parametrize(
    "text", ["[sysctl]\nvm.swappiness = 1", "[sysctl.vm]\nswappiness = 1", "sysctl.vm.swappiness = 1"]
)
def test_a_dotted_key_that_is_not_quoted_is_explained(tmp_path, text):
    path = tmp_path / "dotted.toml"
    path.write_text(f"node = [{{memory = '64MiB', cpus = 1}}]\n{text}\n")
    with pytest.raises(ConfigError, match=r'sysctl: vm.swappiness has a dot, quote it: "vm.swappiness" = '):
        load_topology(path)


# -- recorded cases --------------------------------------------------------------------------------------------

# fmt: off
ZONES = {f"node{n}/{kind}": {"min": pages // 20, "low": pages // 16, "high": pages // 12, "managed": pages, "free": pages // 2, "protection": [0, 0, 0]}
         for n, kind, pages in ((0, "DMA", 3840), (0, "DMA32", 12000), (1, "DMA32", 16000))}
CASE = {**FIRST_TOUCH, "name": "small_zones", "repeat": {"unstable": ["dumps/x"], "deltas_run2": {"vmstat": {"pgfault": 3}, "nodes": {}}},
        "observed": {**FIRST_TOUCH["observed"], "oom": [{"summary": "constraint=NONE,task=T0", "killed": "anon-rss:4kB"}],
                     "snapshots": {label: {"zones": ZONES, "nodes": {"0": {"hugepages_2M": {"nr_hugepages": 1}}}}
                                   for label in ("before", "after")}}}
WRONG = [None, True, -1, 0, 3, 1 << 63, 10**4000, 1.5, math.nan, math.inf, "", "x", "a\nb", "3-1", "node9/DMA", [], [[]], {}, {"x": 1}, ["x"],
         "\ud800"]
# fmt: on


def use(case):
    """What `numaemu conform` does with a case, but for the playing: as if nothing had been observed, or all of it."""
    case_file.check_case(case)
    load_topology(calibrate.machine_file(case))
    zones = calibrate.first_zones(case)
    calibrate.reservations(zones, {name: zone["managed"] for name, zone in zones.items()})
    try:
        replay.check_steps(case["steps"])
    except replay.NotSupported as error:
        assert error.op.isprintable()
    for observed in ({}, CASE["observed"]):
        conform.table(judge.judge(case, observed)).encode()


@pytest.fixture
def case_path(tmp_path):
    def write(text):
        path = tmp_path / "case.json"
        path.write_text(text)
        return path

    return write


def test_the_whole_case_is_well_formed(case_path):
    use(case_file.read_case(case_path(json.dumps(CASE))))


def test_every_step_that_can_be_played_has_a_form():
    assert set(replay.KEYS) == set(case_file.NEEDED) and set().union(*replay.KEYS.values()) <= set(case_file.KEYS)


@pytest.mark.parametrize("path", [path for path in places(CASE) if path], ids=lambda path: ".".join(map(str, path)))
def test_anything_in_any_place_of_a_case_is_told_in_a_line(path):
    where = CASE
    for key in path[:-1]:
        where = where[key]
    rest = (
        {k: v for k, v in where.items() if k != path[-1]}
        if isinstance(where, dict)
        else where[: path[-1]] + where[path[-1] + 1 :]
    )
    renamed = {"a\nb": where[path[-1]], **rest} if isinstance(where, dict) else [*where, where[0]]
    for case in [spoilt(CASE, path, value) for value in WRONG] + [
        spoilt(CASE, path[:-1], value) for value in (rest, renamed)
    ]:
        one_line(use, case)


@pytest.mark.parametrize("share", range(0, 100, 4))
def test_a_case_that_is_cut_off_is_told_in_a_line(case_path, share):
    whole = json.dumps(CASE)
    path = case_path(whole[: len(whole) * share // 100])
    with pytest.raises(ConfigError, match=r"case file cannot be read: .*case\.json\)$"):
        case_file.read_case(path)
    assert cli.main(["conform", str(path)]) == cli.USAGE


def test_a_malformed_case_is_wrong_usage(case_path, capsys):
    path = case_path(json.dumps(spoilt(CASE, ("steps", 3, "task"), "T7")))
    assert cli.main(["conform", str(path)]) == cli.USAGE
    assert (
        capsys.readouterr().err
        == f"numaemu: case file is malformed: steps[3] (touch) is of task 'T7', which no earlier step makes ({path})\n"
    )
