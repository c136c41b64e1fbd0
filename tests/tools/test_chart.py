"""Charts: lengths that follow the figures, units, legends, and nothing wider than it may be."""

import pytest

from numaemu.tools import chart


def bar_of(line):
    """The bar at the end of a line."""
    return line.split(" ")[-1]


def test_bars_are_as_long_as_their_values_are_large():
    title, local, remote = chart.bars("Time of a load", {"local": 80, "remote": 160}, "ns", width=60).splitlines()
    assert title == "Time of a load" and local.startswith("local    80 ns █") and remote.startswith("remote  160 ns █")
    assert len(remote) == 60 and 2 * len(bar_of(local)) == len(bar_of(remote)) + len(bar_of(remote)) % 2


def test_a_bar_is_drawn_to_an_eighth_and_nothing_has_none():
    assert [chart.bar(length) for length in (0, 0.001, 0.5, 1, 2.25)] == ["", "▏", "▌", "█", "██▎"]
    assert [chart.bar(length, "░") for length in (0, 0.2, 2.4)] == ["", "░", "░░"]


def test_series_stand_below_each_other_each_with_its_mark():
    rows = {"1.0": {"disk": 100, "zram": 50}, "2.0": {"disk": 200, "zram": 0}}
    lines = chart.bars("Mean access", rows, "ns", width=50).splitlines()
    assert lines[1] == "█ disk   ░ zram"
    assert [line[:3].strip() for line in lines[2:]] == ["1.0", "", "2.0", ""]
    assert [line.count("█") for line in lines[2:]] == [
        pytest.approx(lines[4].count("█") / 2, abs=1),
        0,
        lines[4].count("█"),
        0,
    ]
    assert lines[5].rstrip().endswith("0 ns")


def test_a_logarithmic_scale_says_so_and_has_equal_steps():
    lines = chart.bars("Table", {str(n): 10**n for n in range(5)}, "kB", log=True).splitlines()
    assert lines[0] == "Table (bars: logarithmic scale)"
    lengths = [len(bar_of(line)) for line in lines[1:]]
    steps = [later - earlier for earlier, later in zip(lengths, lengths[1:])]
    assert max(steps) - min(steps) <= 1 and lengths[0] > 0
    assert (
        len(bar_of(chart.bars("Table", {"a": 0, "b": 8}, log=True).splitlines()[1])) == 1
    )  # the figure: there is no bar


@pytest.mark.parametrize("log", [False, True])
def test_all_values_may_be_nothing(log):
    assert chart.bars("Faults", {"FIFO": 0, "LRU": 0}, log=log).splitlines()[1:] == ["FIFO  0", "LRU   0"]
    assert chart.bars("Faults", {}, log=log) == "Faults" + chart.LOGARITHMIC * log


def test_a_divided_bar_shows_shares_or_sums():
    rows = {"65": {"asked": 65, "lost": 31}, "64": {"asked": 64, "lost": 0}}
    figures = {"65": "32 %", "64": "0 %"}
    _, legend, lossy, full = chart.divided("Loss", rows, figures, whole=True, width=60).splitlines()
    assert legend == "█ asked   ░ lost" and len(lossy) == len(full) == 60
    room = lossy.count("█") + lossy.count("░")
    assert lossy.count("░") == room - round(room * 65 / 96) and full.count("█") == room
    *_, lossy, full = chart.divided("Loss", rows, figures, width=60).splitlines()
    assert len(bar_of(full)) == round(len(bar_of(lossy)) * 64 / 96)


def test_parts_may_have_marks_of_their_own_and_rounding_adds_nothing():
    rows = {"CPUs": {f"node {n}": 1 for n in range(7)}}
    _, legend, line = chart.divided(
        "Loads", rows, {"CPUs": ""}, marks={f"node {n}": str(n) for n in range(7)}, whole=True
    ).splitlines()
    assert legend.startswith("0 node 0   1 node 1") and len(line) == chart.WIDTH
    assert all(10 <= line.count(str(n)) <= 12 for n in range(7))


def test_strips_fit_the_room_that_they_are_told():
    labels, figures = ["node 0", "node 10"], ["5 pages", "1,000 pages"]
    room = chart.strip_room(labels, figures, width=50)
    lines = chart.strips(
        "Who served", dict.fromkeys(labels, "█" * room), dict(zip(labels, figures)), width=50
    ).splitlines()
    assert [len(line) for line in lines[1:]] == [50, 50]
    assert chart.strips("Who served", {"a": "·█"}).splitlines()[1] == "a  ·█"


def test_a_value_s_form_may_be_a_function():
    assert "4 MiB" in chart.bars("Flat", {"x86-32": 4 << 20}, form=lambda n: f"{n >> 20} MiB")
