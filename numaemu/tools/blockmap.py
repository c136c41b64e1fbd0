"""A map of memory: one sign for each pageblock; its shape says how full it is and of which mobility, its colour again.

    ·  free    ░ ▒ ▓ █  movable, filled by quarters    u U  unmovable, below and from half    r R  reclaimable

`block_map` takes what `machine.pageblocks()` returns; `side_by_side` shows the same zones at two moments.
"""

from typing import Any

from numaemu.kernel.include.mmzone import MIGRATE_MOVABLE, MIGRATE_NAMES
from numaemu.spec.param import PAGEBLOCK_PAGES

BLOCK_MIB = PAGEBLOCK_PAGES * 4096 >> 20
MAX_ROWS = 16  # of one zone; more blocks share a sign
FREE, SHADES, LETTERS = "·", "░▒▓█", "u?rhi"  # letters by migratetype; movable has shades
COLOURS = ("red", "green", "yellow", "magenta", "blue")
SHADE_COLOURS = ("green3", "green3", "green4", "dark_green")
FREE_COLOUR = "grey50"


def sign(types, free, pages):
    """(sign, colour) of neighbouring pageblocks shown as one: the least movable of them gives the kind."""
    used = pages - free
    if used <= 0:
        return FREE, FREE_COLOUR
    kind = next((t for t in types if t != MIGRATE_MOVABLE), MIGRATE_MOVABLE)
    if kind == MIGRATE_MOVABLE:
        shade = min(4 * used // pages, 3)
        return SHADES[shade], SHADE_COLOURS[shade]
    letter = LETTERS[kind]
    return letter.upper() if 2 * used >= pages else letter, COLOURS[kind]


def merged(zone, columns):
    """How many pageblocks one sign stands for: 1, 2, 4 …"""
    step = 1
    while len(zone["types"]) > columns * MAX_ROWS * step:
        step *= 2
    return step


def address_label(block):
    mib = block * BLOCK_MIB
    return f"{mib >> 10}.{(mib & 1023) * 10 >> 10} GiB" if mib >= 10240 else f"{mib} MiB"


def zone_rows(zone, columns, step):
    """The lines of a zone: [(address, rich text)]"""
    from rich.text import Text

    rows, count = [], len(zone["types"])
    for start in range(0, count, columns * step):
        line = Text(no_wrap=True)
        for at in range(start, min(start + columns * step, count), step):
            part = slice(at, min(at + step, count))
            line.append(*sign(zone["types"][part], sum(zone["free"][part]), (part.stop - at) * PAGEBLOCK_PAGES))
        rows.append((address_label(zone["first"] + start), line))
    return rows


def zone_title(zone):
    blocks = len(zone["types"])
    empty = sum(free == PAGEBLOCK_PAGES for free in zone["free"])
    return f"node {zone['node']} zone {zone['zone']}: {empty} of {blocks} pageblocks free"


def legend(kinds):
    """What the signs mean: movable ones and those of the other migratetypes that occur."""
    from rich.text import Text

    text = Text(f"{BLOCK_MIB} MiB each:  ", style="dim")
    text.append(FREE, FREE_COLOUR).append(" free   ", "dim")
    for shade, colour in zip(SHADES, SHADE_COLOURS):
        text.append(shade, colour)
    text.append(" movable, by quarters", "dim")
    for kind in kinds:
        letter = LETTERS[kind]
        text.append("   ").append(f"{letter}{letter.upper()}", COLOURS[kind])
        text.append(f" {MIGRATE_NAMES[kind].lower()}", "dim")
    if kinds:
        text.append(" (capital: half full)", "dim")
    return text


def block_map(zones, columns=64):
    """A rich renderable: every zone's map, and a legend."""
    return side_by_side({"": zones}, columns)


def side_by_side(moments, columns=32):
    """{title: zones}: the same zones at several moments, one column each."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    first = next(iter(moments.values()))
    for i, zone in enumerate(first):
        step = merged(zone, columns)
        table = Table(box=None, padding=(0, 1), show_header=any(moments))
        table.add_column("", justify="right", style="dim", no_wrap=True)
        lines = []
        for title, zones in moments.items():
            table.add_column(Text(title, style="bold"), no_wrap=True, min_width=columns)
            lines.append(zone_rows(zones[i], columns, step))
        for row in zip(*lines):
            table.add_row(row[0][0], *(line for _, line in row))
        heads = [zone_title(zones[i]) for zones in moments.values()]
        later = [h.partition(": ")[2].partition(" of ")[0] for h in heads[1:]]
        head = " → ".join([heads[0], *later])
        note = "" if step == 1 else f" (each sign {step * BLOCK_MIB} MiB)"
        parts += [Text(head + note, style="bold"), table, Text()]
    kinds = sorted({kind for zones in moments.values() for zone in zones for kind in zone["types"]} - {MIGRATE_MOVABLE})
    return Group(*parts, legend(kinds))
