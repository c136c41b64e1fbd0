"""Tables that fit: what a terminal is too narrow for is wrapped, turned or divided, and nothing is ever cut off.

rich is imported when it is first needed.
"""

import os
import sys
import textwrap

from numaemu.api.tables import Table, cell, to_the_right

GAP = 2  # blanks between columns
NARROWEST = 20  # characters of a column of text that is wrapped
MOST_TURNED = 12  # rows of a table that may become its columns
TEXT_WIDTH = 100  # of whole sentences; longer lines are hard to read
UNLIMITED = 100_000  # columns of a file


def new_console(**options):
    """A console for stdout: as wide as the terminal, or, if what is printed goes to a file, as wide as it has to be (unless
    COLUMNS says otherwise).
    """
    from rich.console import Console

    if not {"file", "width"} & options.keys() and not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        options["width"] = UNLIMITED
    return Console(highlight=False, **options)


def text_width(console):
    """Columns for sentences and rules."""
    return min(console.width, TEXT_WIDTH)


def new_table(*titles, right=None):
    """A table whose first column is text and whose others are numbers, unless `right` says which are."""
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, show_header=any(map(str, titles))
    )
    for i, title in enumerate(titles):
        to_right = i > 0 if right is None else right[i]
        table.add_column(title, justify="right" if to_right else "left", no_wrap=True)
    return table


def fitted(table, width, dim=frozenset()):
    """The rich tables that show a Table in so many columns: itself, or parts of it one below the other. `dim`: the numbers of
    rows that matter less.
    """
    rows = [[cell(value) for value in row] for row in table.rows]
    header = list(table.header)
    shape = Shape(header, rows, dim)
    if (widths := shape.widths(width)) or len(header) == 1:
        return [shape.drawn(widths or [width])]
    if len(rows) <= MOST_TURNED:
        turned = Shape(
            [header[0], *(row[0] for row in rows)],
            [[title, *(row[i] for row in rows)] for i, title in enumerate(header) if i],
        )
        if any(header) and (widths := turned.widths(width)):
            return [turned.drawn(widths)]
    return [part.drawn(part.widths(width) or part.shrunk(width)) for part in divided(shape, width)]


def divided(shape, width):
    """Several tables, each with the first column and as many of the others as fit."""
    parts, taken = [], []
    for i in range(1, len(shape.header)):
        if taken and not shape.columns([0, *taken, i]).widths(width):
            parts.append(shape.columns([0, *taken]))
            taken = []
        taken.append(i)
    return [*parts, shape.columns([0, *taken])]


class Shape:
    """The texts of a table, and how wide its columns may be."""

    def __init__(self, header, rows, dim=frozenset()):
        from rich.cells import cell_len

        self.header, self.rows, self.dim, self.length = header, rows, dim, cell_len
        self.cells = [[row[i] for row in rows] for i in range(len(header))]
        self.right = [i > 0 and to_the_right(texts) for i, texts in enumerate(self.cells)]
        self.widest = [max(map(self.line_length, texts), default=0) for texts in self.cells]

    def line_length(self, text):
        return max(map(self.length, text.splitlines()), default=0)

    def columns(self, picked):
        return Shape([self.header[i] for i in picked], [[row[i] for i in picked] for row in self.rows], self.dim)

    def widths(self, width):
        """The width of each column, all within `width`: titles in one line if they may, else wrapped between words, then
        columns of text too. None: it cannot be done.
        """
        room = width - GAP * (len(self.header) - 1)
        natural = [max(most, self.line_length(title)) for most, title in zip(self.widest, self.header)]
        if sum(natural) <= room:
            return natural
        words = [max(map(self.length, title.split()), default=0) for title in self.header]
        least = [max(most, word) for most, word in zip(self.widest, words)]
        if sum(least) <= room:
            return shared_out(least, natural, room)
        narrow = [
            most if right or most <= NARROWEST else max(NARROWEST, word)
            for most, right, word in zip(least, self.right, words)
        ]
        return shared_out(narrow, least, room) if sum(narrow) <= room else None

    def shrunk(self, width):
        """Widths where even two columns do not fit: cells break anywhere."""
        room = width - GAP * (len(self.header) - 1)
        share = max(room // len(self.header), 1)
        return [min(most, share) for most in self.widest]

    def drawn(self, widths):
        """The rich table."""
        from rich.text import Text

        titles = ["\n".join(textwrap.wrap(title, max(width, 1))) or title for title, width in zip(self.header, widths)]
        table = new_table(*map(Text, titles), right=self.right)
        for column, width, most in zip(table.columns, widths, self.widest):
            if most > width:
                column.no_wrap, column.overflow, column.width = False, "fold", width
        for number, row in enumerate(self.rows):
            table.add_row(*map(Text, row), style="dim" if number in self.dim else None)
        return table


def shared_out(least, most, room):
    """Widths between two bounds that fill the room as far as they may."""
    widths, left = list(least), room - sum(least)
    while left > 0 and (open_ones := [i for i, width in enumerate(widths) if width < most[i]]):
        i = max(open_ones, key=lambda i: most[i] - widths[i])
        widths[i], left = widths[i] + 1, left - 1
    return widths


def print_blocks(blocks, console, most_rows):
    """Print the tables and texts of a value (api/tables.py), each with its title."""
    from rich.pretty import Pretty
    from rich.text import Text as RichText

    for number, block in enumerate(blocks):
        if block.title:
            console.print(RichText(("\n" if number else "") + block.title, style="italic"))
        elif number:
            console.print()
        if not isinstance(block, Table):
            console.print(Pretty(block.value, max_length=most_rows), width=text_width(console))
            continue
        for part, table in enumerate(fitted(block._replace(rows=block.rows[:most_rows]), console.width)):
            if part:
                console.print()
            console.print(table)
        if len(block.rows) > most_rows:
            console.print(f"and {len(block.rows) - most_rows} more rows (-v shows all)", style="dim")
