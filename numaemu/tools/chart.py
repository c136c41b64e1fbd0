"""Charts of characters, for workloads to print: each has a title, a legend where it is needed, figures with units, and bars.

    print(bars("Time of a load", {"local": 80, "remote": 176}, "ns"))

    Time of a load
    local    80 ns ████████████████████████████▌
    remote  176 ns ███████████████████████████████████████████████████████████████

They need no colour and no more than 80 columns, and are plain text: what they show, main(machine) returns as figures.
"""

import math
import textwrap

WIDTH = 80
LEAST_BAR = 10  # characters
EIGHTHS = " ▏▎▍▌▋▊▉"
MARKS = "█░▒▓"  # of the series, or of the parts of a bar
LOGARITHMIC = " (bars: logarithmic scale)"


def bars(title, rows, unit="", form="{:,.0f}", log=False, width=WIDTH):
    """A bar for each row. `rows`: {label: value} or {label: {series: value}}, each series with a mark of its own; `form`: how
    a value is written, a format or a function; a logarithmic scale begins at half of the least value.
    """
    series = series_of(rows)
    if not series:
        lines = [(label, written(value, unit, form), value, None) for label, value in rows.items()]
    else:
        marks = dict(zip(series, MARKS, strict=False))
        lines = [
            (label if first else "", written(value, unit, form), value, marks[name])
            for label, values in rows.items()
            for first, (name, value) in flagged(values.items())
        ]
    length = scale([value for *_, value, _ in lines], log)
    texts = [
        (label, figure, lambda room, v=value, m=mark: bar(length(v) * room, m)) for label, figure, value, mark in lines
    ]
    return drawn(title + LOGARITHMIC * log, legend(series, MARKS), aligned(texts, width), width)


def divided(title, rows, figures=None, marks=MARKS, whole=False, explain=True, width=WIDTH):
    """A bar for each row, divided into parts. `rows`: {label: {part: value}}; `figures`: {label: text}; `marks`: a sign for
    each part, or {part: sign}; `whole`: all bars are as long as there is room, and show shares; `explain`: say in a line what
    the marks mean.
    """
    figures = figures or dict.fromkeys(rows, "")
    parts = series_of(rows)
    if not isinstance(marks, dict):
        marks = dict(zip(parts, marks, strict=False))
    most = max((sum(values.values()) for values in rows.values()), default=0)
    texts = [
        (label, figures[label], lambda room, v=values: pieces(v, marks, room, sum(v.values()) if whole else most))
        for label, values in rows.items()
    ]
    return drawn(title, legend(parts, marks) if explain else "", aligned(texts, width), width)


def strips(title, rows, figures=None, width=WIDTH):
    """A line of signs for each row: {label: signs}, no more of them than `strip_room` says."""
    figures = figures or dict.fromkeys(rows, "")
    texts = [(label, figures[label], lambda _, s=signs: s) for label, signs in rows.items()]
    return drawn(title, "", aligned(texts, width), width)


def strip_room(labels, figures=("",), width=WIDTH):
    """How many signs a line of `strips` has room for."""
    return width - sum(max(map(len, texts), default=0) + 1 for texts in (labels, figures)) - 1


# --- the parts of a chart -----------------------------------------------------------------------
def drawn(title, explained, lines, width):
    """The whole chart; title and legend are wrapped."""
    return "\n".join([*textwrap.wrap(title, width), *textwrap.wrap(explained, width), *lines])


def series_of(rows):
    """The names of the series or parts, in the order they first occur; none: each row has one value."""
    return list(dict.fromkeys(name for values in rows.values() if isinstance(values, dict) for name in values))


def flagged(items):
    """(True for the first, else False; item)"""
    return ((number == 0, item) for number, item in enumerate(items))


def legend(names, marks):
    """Says which mark is which."""
    marks = marks if isinstance(marks, dict) else dict(zip(names, marks, strict=False))
    return "   ".join(f"{marks[name]} {name}" for name in names)


def written(value, unit, form):
    text = form(value) if callable(form) else form.format(value)
    return f"{text} {unit}".rstrip()


def aligned(texts, width):
    """A line for each (label, figure, function of the room for a bar that draws it)."""
    labels = max((len(label) for label, *_ in texts), default=0)
    figures = max((len(figure) for _, figure, _ in texts), default=0)
    room = max(width - labels - figures - (3 if figures else 2), LEAST_BAR)
    return [
        (f"{label:{labels}}  " + (f"{figure:>{figures}} " if figures else "") + draw(room)).rstrip()
        for label, figure, draw in texts
    ]


def scale(values, log):
    """A function from a value to its share of the longest bar."""
    most = max(values, default=0)
    if most <= 0:
        return lambda value: 0
    if not log:
        return lambda value: max(value, 0) / most
    least = min(value for value in values if value > 0) / 2
    return lambda value: math.log(value / least) / math.log(most / least) if value > 0 else 0


def bar(length, mark=None):
    """A bar of so many characters, drawn to an eighth unless a mark is given; what is more than nothing shows."""
    if length <= 0:
        return ""
    if mark:
        return mark * max(round(length), 1)
    eighths = max(round(length * 8), 1)
    return (MARKS[0] * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()


def pieces(values, marks, room, whole):
    """The parts of a bar one after the other: each ends where the sum so far does, so that the bar is as long as its sum."""
    if whole <= 0:
        return ""
    line, total = "", 0
    for name, value in values.items():
        total += value
        line += marks[name] * (round(total / whole * room) - len(line))
    return line
