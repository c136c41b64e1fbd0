"""Values as tables: what a workload has returned, and the figures of a machine. A summary prints them, a notebook shows them.

`blocks` takes a value apart. Whoever shows a block decides how wide it may be (tools/summary/layout.py, `html` below).
"""

import dataclasses
import html as _html
import numbers
import re
from typing import NamedTuple

from numaemu.host.extras import need

MAX_MATRIX = 16  # columns of a matrix; wider ones are shown as Python writes them
MAX_COLUMNS = 12  # of a table of dicts
MAX_WORD = 16  # characters of a cell in a column that stands to the right
MAX_FLAT = 40  # characters of a short list that stands in one cell
_NUMBER = re.compile(r"[-+~<>]?[\d.·]")  # how a cell begins that stands to the right


class Table(NamedTuple):
    """Titles of its columns (all empty: they need none), and rows of values; `title` says which part of a value this is."""

    title: str
    header: tuple
    rows: list


class Text(NamedTuple):
    """A value that is no table."""

    title: str
    value: object


# --- values for JSON ----------------------------------------------------------------------------
def jsonable(value, outer=()):
    """The value as JSON can hold it: NumPy's become Python's; what JSON cannot hold becomes its repr."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and abs(float(value)) < float("inf"):
        return float(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype") and value.dtype.names is None:
        value = value.tolist()
        if not isinstance(value, list):
            return value if isinstance(value, bool) else repr(value)
    if id(value) in outer:
        return repr(value)
    outer = (*outer, id(value))
    value = as_dict(value)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): jsonable(item, outer) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, outer) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(item, outer) for item in value), key=repr)
    return repr(value)


def as_dict(value):
    """The fields of a dataclass or a named tuple; any other value as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value._asdict() if hasattr(value, "_asdict") else value


# --- taking apart -------------------------------------------------------------------------------
def blocks(value, title="", outer=()):
    """The tables and texts that show a value, the outermost figures first. A dict or a list of like dicts is one table, also a
    matrix; what lies deeper in them gets tables of its own, with the keys that lead there as titles.
    """
    value = as_dict(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a number of NumPy's prints as Python's
    if getattr(value, "ndim", 0) == 2 and hasattr(value, "tolist") and 0 < value.shape[1] <= MAX_MATRIX:
        value = value.tolist()
    if id(value) in outer or len(outer) > 6:
        return [Text(title, value)]
    outer = (*outer, id(value))
    if isinstance(value, dict) and value:
        return blocks_of_dict(value, title, outer)
    if isinstance(value, (list, tuple)) and value:
        items = [as_dict(item) for item in value]
        if columns := common_columns(items):
            return blocks_of_rows([("", item) for item in items], columns, title, outer)
        if is_matrix(items):
            return [Table(title, ("", *map(str, range(len(items[0])))), [(i, *row) for i, row in enumerate(items)])]
    return [Text(title, value)]


def blocks_of_dict(value, title, outer):
    """Of a dict: what is flat in it as one table, the rest below."""
    items = {key: as_dict(item) for key, item in value.items()}
    if columns := common_columns(items.values()):
        return blocks_of_rows(list(items.items()), columns, title, outer)
    flat = [(key, item) for key, item in items.items() if is_flat(item)]
    found = [Table(title, ("", ""), flat)] if flat else []
    for key, item in items.items():
        if not is_flat(item):
            found += blocks(item, joined(title, key), outer)
    return found


def blocks_of_rows(named, columns, title, outer):
    """Of dicts with names: one table, with a column for each key whose values are flat; the others' tables below."""
    flat = [key for key in columns if all(is_flat(row.get(key)) for _, row in named)]
    if not flat:
        return [
            block
            for number, (name, row) in enumerate(named)
            for block in blocks(row, joined(title, name if str(name) else number), outer)
        ]
    # Short dicts may stand beside what is flat.
    flat = [key for key in columns if all(is_flat(row.get(key), in_row=True) for _, row in named)]
    deep = [key for key in columns if key not in flat]
    has_names = any(str(name) for name, _ in named)
    header = ("", *map(str, flat)) if has_names else tuple(map(str, flat))
    rows = [(*([name] if has_names else []), *(row.get(key, "") for key in flat)) for name, row in named]
    found = [Table(title, header, rows)]
    for number, (name, row) in enumerate(named):
        for key in deep:
            if key in row:
                found += blocks(row[key], joined(title, name if has_names else number, key), outer)
    return found


def joined(*titles):
    return ", ".join(str(title) for title in titles if str(title))


def is_flat(value, in_row=False):
    """True of what stands in one cell: a number, a text, a short list; in a row of a table also a short dict."""
    if in_row and isinstance(value, dict) and value:
        return all(map(is_scalar, value.values())) and len(cell(value)) <= MAX_FLAT
    if isinstance(value, (dict, set, frozenset)) or getattr(value, "ndim", 0) > 1:
        return False
    if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1:
        return all(is_scalar(item) for item in value) and len(repr(jsonable(value))) <= MAX_FLAT
    return True


def is_scalar(value):
    return value is None or isinstance(value, (str, numbers.Number)) or getattr(value, "ndim", 1) == 0


def is_matrix(items):
    """True of lists of numbers or texts, all of the same length."""
    lists = all(isinstance(item, (list, tuple)) and not hasattr(item, "_asdict") for item in items)
    return (
        lists
        and 0 < len(items[0]) <= MAX_MATRIX
        and all(len(item) == len(items[0]) and all(map(is_scalar, item)) for item in items)
    )


def common_columns(items):
    """The keys of dicts that have most of them in common, in order; None: these are no rows of one table."""
    items = list(items)
    if not items or not all(isinstance(item, dict) and item for item in items):
        return None
    columns = list(dict.fromkeys(key for item in items for key in item))
    if len(columns) > MAX_COLUMNS or any(2 * len(item) < len(columns) for item in items):
        return None
    return columns


# --- one cell -----------------------------------------------------------------------------------
def cell(value):
    """One value in a table."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        number = float(value)
        return f"{number:,.4g}" if abs(number) < 1000 else f"{number:,.1f}"
    if isinstance(value, (list, tuple)) and all(map(is_scalar, value)):
        return ", ".join(map(cell, value)) if value else "none"
    if isinstance(value, dict) and all(map(is_scalar, value.values())):
        return ", ".join(f"{key}: {cell(item)}" for key, item in value.items())
    return repr(jsonable(value))


def to_the_right(cells):
    """True of a column of numbers, among which there may be some words."""
    filled = [text for text in cells if text]
    numbers = [text for text in filled if _NUMBER.match(text)]
    return 2 * len(numbers) >= len(filled) and all(len(text) <= MAX_WORD for text in filled)


# --- HTML ---------------------------------------------------------------------------------------
def html(table, limit=60):
    """A Table as HTML, with its first rows."""
    rows = [[cell(value) for value in row] for row in table.rows[:limit]]
    align = [
        "left" if i == 0 and table.header[0] == "" or not to_the_right([row[i] for row in rows]) else "right"
        for i in range(len(table.header))
    ]
    parts = ["<table>"]
    if table.title:
        parts.append(f'<caption style="text-align: left; font-weight: bold">{_html.escape(table.title)}</caption>')
    if any(table.header):
        parts.append(f"<thead>{_row('th', table.header, align)}</thead>")
    parts.append("<tbody>" + "".join(_row("td", row, align) for row in rows) + "</tbody></table>")
    if len(table.rows) > limit:
        parts.append(f"<p>and {len(table.rows) - limit} more rows</p>")
    return "".join(parts)


def _row(tag, cells, align):
    return (
        "<tr>"
        + "".join(f'<{tag} style="text-align: {how}">{_html.escape(text)}</{tag}>' for text, how in zip(cells, align))
        + "</tr>"
    )


def html_of(value, title=""):
    """Any value as HTML: its tables, and the rest as Python writes it."""
    return "".join(
        html(block)
        if isinstance(block, Table)
        else f"<pre>{_html.escape(joined(block.title, repr(block.value)))}</pre>"
        for block in blocks(value, title)
    )


def rows_of(stats, what):
    """The rows of a DataFrame of figures."""
    if what == "vmstat":
        return [{"counter": name, "value": value} for name, value in stats["vmstat"].items()]
    if what == "zones":
        return [{"node": n["node"], "zone": z, **row} for n in stats["nodes"] for z, row in n["zones"].items()]
    if what == "nodes":
        return [
            {
                "node": n["node"],
                **n["numastat"],
                **n["meminfo"],
                **{f"from_node{i}": a for i, a in enumerate(n["accesses_from"])},
            }
            for n in stats["nodes"]
        ]
    if what in ("cpus", "tasks"):
        return [dict(row) for row in stats[what]]
    raise ValueError(f"to_frame takes cpus, nodes, tasks, zones or vmstat, not {what!r}")


class Figures(dict):
    """What `machine.stats()` returns: a dict as the JSON of a run has it."""

    def to_frame(self, what="cpus"):
        """A pandas DataFrame of "cpus", "nodes" (numastat, memory in kB, accesses), "tasks", "zones" or "vmstat"."""
        pandas = need("pandas", "sweep", "a DataFrame")
        return pandas.DataFrame(rows_of(self, what))

    def _repr_html_(self):
        """For a notebook: CPUs, where pages came from, whose memory was accessed, the tasks."""
        return "".join(map(html, figure_tables(self)))


def figure_tables(stats):
    """The figures of a machine as tables."""
    cpus, nodes, tasks = stats["cpus"], stats["nodes"], stats["tasks"]
    found = [
        Table(
            f"CPUs, after {stats['emulated_ns']:,} ns of emulated time",
            tuple(cpus[0]),
            [tuple(cpu.values()) for cpu in cpus],
        )
    ]
    found.append(
        Table(
            "numastat", ("node", *nodes[0]["numastat"]), [(node["node"], *node["numastat"].values()) for node in nodes]
        )
    )
    found.append(
        Table(
            "accesses, by the CPU's node and the memory's",
            ("CPUs of node", *(f"memory of node {node['node']}" for node in nodes)),
            [(i, *(node["accesses_from"][i] for node in nodes)) for i in range(len(nodes[0]["accesses_from"]))],
        )
    )
    found += blocks(tasks, "tasks") if tasks else []
    return [table for table in found if isinstance(table, Table)]


class Shown:
    """Any value with tables for a notebook."""

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return repr(self.value)

    def _repr_html_(self):
        return html_of(self.value)


def table(value):
    """Show any value as tables in a notebook: what a workload returns, as its summary would print it."""
    return Shown(value)
