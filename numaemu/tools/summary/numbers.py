"""Numbers and rows as the tables of a summary have them."""

ALL = 1 << 30  # rows, where somebody wants to see everything


def count(value):
    """A count in at most five characters: 9,999 or 12.3M."""
    if value < 9_999.5:
        return f"{value:,.0f}"
    for unit in ("k", "M", "G", "T", "P"):
        value /= 1000
        if value < 999.5 or unit == "P":
            return f"{value:.3g}{unit}" if value < 99.95 else f"{value:.0f}{unit}"


def duration(ns):
    """Nanoseconds for people, in at most seven characters: 740 ns, 1.26 ms, 200 s, 20 min."""
    for unit, size in (("ns", 1), ("us", 1e3), ("ms", 1e6), ("s", 1e9)):
        if ns < 999.5 * size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns / 60e9:.0f} min"


def percent(part, whole):
    """A share, or a dot if there is nothing to share."""
    if not whole:
        return "·"
    share = 100 * part / whole
    return f"{share:.0f}%" if share >= 99.95 or share == 0 else f"{share:.1f}%"


def busiest(rows, work, limit):
    """The rows to show, in their order, and a line about those left out: (rows, line)."""
    busy = [row for row in rows if work(row)]
    shown = rows if len(rows) <= limit else sorted(sorted(busy, key=work, reverse=True)[:limit], key=rows.index)
    idle, quieter = len(rows) - len(busy), len(busy) - len(shown)
    words = [f"{quieter} less busy" if quieter > 0 else "", f"{idle} idle" if idle else ""]
    return shown, "" if len(shown) == len(rows) else f"left out: {' and '.join(filter(None, words))}"


def dimmed(note):
    """A line below a table, if there is something to say."""
    from rich.text import Text

    return [Text(note, style="dim")] if note else []
