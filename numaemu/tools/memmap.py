"""A map of an address space: its mappings from the stack down, what of them is in memory, and the gaps between.

    █  a page of the task's own    ▒  of a file or a shared object, as everybody sees it    ·  not there    s  swapped

`memory_map` takes what `areas` makes of /proc/<pid>/maps and pagemap; a sign stands for one page or, in large mappings, for
as many as ×2, ×4 … behind the row says.
"""

import collections
import re
from typing import Any

import numpy as np

PAGE = 4096
MAX_SIGNS = 16  # of one mapping; more pages share a sign
NAME_WIDTH = 18  # so that a line fits 80 columns
PM_PRESENT, PM_SWAP, PM_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
ABSENT, OWN, FILE, SWAPPED = "·", "█", "▒", "s"
COLOURS = {ABSENT: "grey50", OWN: "red", FILE: "green3", SWAPPED: "magenta"}
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)")

Area = collections.namedtuple("Area", "start end permissions offset name kinds")


def areas(machine, pid):
    """The mappings of a task, from the lowest on, with the kind of each page."""
    found = []
    for line in machine.read(f"/proc/{pid}/maps").splitlines():
        fields = _LINE.fullmatch(line)
        if fields is None:
            raise ValueError(f"/proc/{pid}/maps: {line!r} is no mapping")
        start, end, permissions, offset, name = fields.groups()
        start, end = int(start, 16), int(end, 16)
        found.append(
            Area(start, end, permissions, int(offset, 16), name, kinds(machine.pagemap(pid, start, end - start)))
        )
    return found


def kinds(words):
    """A sign for each word of pagemap. The page of zeros, which no flag tells from a page of one's own, counts as that."""
    there, file, swapped = (words & bit != 0 for bit in (PM_PRESENT, PM_FILE, PM_SWAP))
    return np.where(there & file, FILE, np.where(there, OWN, np.where(swapped, SWAPPED, ABSENT)))


def resident(area):
    """(pages of its own, pages of a file) in memory."""
    return int((area.kinds == OWN).sum()), int((area.kinds == FILE).sum())


def size_text(nbytes):
    """Bytes in the largest unit that leaves at least 1, cut after one decimal."""
    unit = 0
    while nbytes >= 1024 << 10 * unit and unit < len(UNITS) - 1:
        unit += 1
    tenths = 10 * nbytes >> 10 * unit
    return f"{tenths // 10}{'' if tenths % 10 == 0 or unit == 0 else f'.{tenths % 10}'} {UNITS[unit]}"


def bar(area):
    """A sign for each page, or for several: the most telling kind of them."""
    from rich.text import Text

    step = 1
    while len(area.kinds) > MAX_SIGNS * step:
        step *= 2
    text = Text(no_wrap=True)
    for at in range(0, len(area.kinds), step):
        part = set(area.kinds[at : at + step].tolist())
        sign = next(kind for kind in (OWN, SWAPPED, FILE, ABSENT) if kind in part)
        text.append(sign, COLOURS[sign])
    return text if step == 1 else text.append(f" ×{step}", "dim")


def legend():
    """What each sign of the map means, as a rich text."""
    from rich.text import Text

    text = Text()
    meanings = {OWN: "the task's own", FILE: "of a file, shared", ABSENT: "not in memory", SWAPPED: "swapped"}
    for sign, meaning in meanings.items():
        text.append(sign, COLOURS[sign]).append(f" {meaning}   ", "dim")
    return text


def short(name):
    """A path's last part, or what else maps calls the mapping."""
    return name.rsplit("/", 1)[-1] if name.startswith("/") else name or "anonymous"


def memory_map(found, top=None):
    """A rich renderable: a line for each mapping, the highest first, and one for each gap; up to `top` if given."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table: Any = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for title, justify in (
        ("from", "left"),
        ("", "left"),
        ("size", "right"),
        ("what", "left"),
        ("in memory", "right"),
        ("pages", "left"),
    ):
        table.add_column(Text(title, style="bold"), no_wrap=True, justify=justify)
    names = table.columns[3]
    names.no_wrap, names.overflow, names.max_width = False, "fold", NAME_WIDTH  # a longer name goes on in the next line
    above = top
    for area in reversed(found):
        if above is not None and above > area.end:
            table.add_row("", "", Text(size_text(above - area.end), "dim"), Text("gap", "dim"))
        table.add_row(
            f"{area.start:012x}",
            area.permissions,
            size_text(area.end - area.start),
            Text(short(area.name)),
            f"{sum(resident(area))}/{len(area.kinds)}",
            bar(area),
        )
        above = area.start
    table.add_row("", "", Text(size_text(above or 0), "dim"), Text("gap down to 0", "dim"))
    return Group(table, legend())
