"""Values taken apart into tables, and as HTML."""

import collections

import numpy as np
import pytest

import numaemu
from numaemu.api.tables import Figures, Table, Text, blocks, cell, html, html_of, to_the_right

pytestmark = pytest.mark.interpreted
Point = collections.namedtuple("Point", "x y")
ROWS = {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 4}}
TABLE = Table("", ("", "x", "y"), [("a", 1, 2), ("b", 3, 4)])


@pytest.mark.parametrize("value, expected", [
    (ROWS, [TABLE]), ({"t": ROWS}, [TABLE._replace(title="t")]), ({"a": Point(1, 2), "b": Point(3, 4)}, [TABLE]),
    ({"x": 1, "y": "z"}, [Table("", ("", ""), [("x", 1), ("y", "z")])]),
    ([{"x": 1}, {"x": 2}], [Table("", ("x",), [(1,), (2,)])]), ([[1, 2], [3, 4]], [Table("", ("", "0", "1"), [(0, 1, 2), (1, 3, 4)])]),
    (np.eye(2, dtype=int), [Table("", ("", "0", "1"), [(0, 1, 0), (1, 0, 1)])]), (3, [Text("", 3)]), (np.float32(0.5), [Text("", 0.5)]), ({}, [Text("", {})]),
    ([1, 2], [Text("", [1, 2])]), ({"n": 1, "t": ROWS}, [Table("", ("", ""), [("n", 1)]), TABLE._replace(title="t")]),
    ({"a": {"x": 1, "y": 2}, "b": {"x": 3}}, [TABLE._replace(rows=[("a", 1, 2), ("b", 3, "")])]),
    ({"a": {"x": 1}, "b": {"y": 2, "z": 3}}, [Table("a", ("", ""), [("x", 1)]), Table("b", ("", ""), [("y", 2), ("z", 3)])]),
    ({"a": {"x": 1, "m": [[1, 2]]}}, [Table("", ("", "x"), [("a", 1)]), Table("a, m", ("", "0", "1"), [(0, 1, 2)])]),
    ([{"x": 1, "d": {"n": 2}}], [Table("", ("x", "d"), [(1, {"n": 2})])]),
    ([[1, 2], [3]], [Text("", [[1, 2], [3]])]), (np.zeros((2, 99)).tolist(), [Text("", np.zeros((2, 99)).tolist())]),
])  # fmt: skip
def test_values_become_tables(value, expected):
    assert blocks(value) == expected


def test_what_contains_itself_comes_to_an_end():
    loop = {"n": 1}
    loop["loop"] = loop
    deep = {"n": 1}
    for _ in range(100):
        deep = {"n": 1, "deep": deep}
    assert len(blocks(loop)) == 2 and 2 < len(blocks(deep)) < 20


@pytest.mark.parametrize("value, text", [
    (1234567, "1,234,567"), (0.123456, "0.1235"), (12345.678, "12,345.7"), (True, "True"), (None, "None"), ("x", "x"),
    ([1, 2000], "1, 2,000"), ([], "none"), ({1: 64}, "1: 64"), (np.int64(5), "5"), (b"x", "\"b'x'\""),
])  # fmt: skip
def test_cells(value, text):
    assert cell(value) == text


def test_numbers_stand_to_the_right():
    assert to_the_right(["1", "2.5 %", "", "as written"]) and to_the_right([])
    assert not to_the_right(["a", "b", "1"]) and not to_the_right(["0x1000", "waits, and its address is none"])


def test_html_is_escaped_and_limited():
    text = html(Table("<t>", ("", "<x>"), [("<a>", 1)] * 70))
    assert "&lt;t&gt;" in text and "&lt;x&gt;" in text and text.count("&lt;a&gt;") == 60 and "and 10 more rows" in text
    assert "<pre>[1, &#x27;&lt;&#x27;]</pre>" == html_of([1, "<"])
    assert html_of({"n": 1, "t": ROWS}).count("<table>") == 2


def test_anything_can_be_shown_as_a_table():
    shown = numaemu.table(ROWS)
    assert repr(shown) == repr(ROWS) and shown._repr_html_() == html(TABLE)


def test_figures_are_a_dict_and_several_tables():
    cpu = {"cpu": 0, "node": 0, "loads": 5, "clock_ns": 1000}
    node = {"node": 0, "numastat": {"numa_hit": 7}, "accesses_from": [12]}
    figures = Figures(
        {"emulated_ns": 1000, "vmstat": {}, "nodes": [node], "cpus": [cpu], "tasks": [{"pid": 100, "name": "story"}]}
    )
    text = figures._repr_html_()
    assert figures["emulated_ns"] == 1000 and isinstance(figures, dict)
    assert text.count("<table>") == 4 and "numa_hit" in text and "memory of node 0" in text and "story" in text
