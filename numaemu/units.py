"""Values that people write: sizes in binary units, whole numbers, tables of known keys.

Each function answers with the value or raises a ConfigError of one line.  `what` names the value
in it, `where` the file or other place it stands in.
"""

import difflib
import re
from collections.abc import Collection
from fractions import Fraction
from numbers import Integral
from typing import Any

from numaemu.errors import ConfigError

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40

UNITS = {"": 1, "k": KiB, "m": MiB, "g": GiB, "t": TiB}

# A number (20 digits hold every 64-bit size), then B, or K M G T alone, with B or with iB.
SIZE_TEXT = re.compile(
    r"(\d{1,20}(?:\.\d{1,20})?)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE | re.ASCII
)


def parse_size(
    value: int | str,
    what: str = "size",
    where: str = "",
    *,
    least: int = 0,
    most: int | None = None,
    block: int = 1,
) -> int:
    """Bytes of "512MiB", "1.5GiB", "64K", "4096B" or a plain number of bytes.

    All units are binary and case does not matter, as with Linux's memparse().  The size must lie
    between `least` and `most` and be a multiple of `block`, all in bytes.
    """
    size = _read_size(value, what, where)
    limit = ""
    if size < least:
        limit = f"at least {format_size(least)}"
    elif most is not None and size > most:
        limit = f"at most {format_size(most)}"
    elif size % block:
        limit = f"a multiple of {format_size(block)}"
    if limit:
        raise ConfigError.at(where, f"{what} is {format_size(size)}, must be {limit}")
    return size


def _read_size(value: int | str, what: str, where: str) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool):
        if value < 0:
            raise ConfigError.at(where, f"{what} is {value}, must not be negative")
        return int(value)
    match = SIZE_TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        hint = "must be a size such as '512MiB' or '1.5GiB'"
        raise ConfigError.at(where, f"{what} is {value!r}, {hint}")
    number, unit = match.groups(default="")
    nr_bytes = Fraction(number) * UNITS[unit.lower()]
    if nr_bytes.denominator != 1:
        raise ConfigError.at(where, f"{what} is {value!r}, must be a whole number of bytes")
    return int(nr_bytes)


def format_size(nr_bytes: int) -> str:
    """Text of a size in the largest unit that needs at most one decimal; parse_size() reads it
    back to the same number of bytes."""
    for name, unit in (("TiB", TiB), ("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        tenths, rest = divmod(nr_bytes * 10, unit)
        if tenths >= 10 and rest == 0:
            whole, tenth = divmod(tenths, 10)
            return f"{whole}.{tenth}{name}" if tenth else f"{whole}{name}"
    return f"{nr_bytes}B"


def parse_int(value: Any, what: str, where: str, least: int, most: int, unit: str = "") -> int:
    """A whole number from `least` to `most`; text, bools, fractions, nan and inf are none."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ConfigError.at(where, f"{what} is {value!r}, must be a whole number")
    if not least <= value <= most:
        limit = f"at least {least}" if value < least else f"at most {most}"
        raise ConfigError.at(where, f"{what} is {value}{unit}, must be {limit}")
    return int(value)


def check_table(table: Any, known: Collection[str], what: str, where: str) -> dict[str, Any]:
    """The table itself, which has no key but the known ones."""
    if not isinstance(table, dict):
        raise ConfigError.at(where, f"{what} is {table!r}, must be a table")
    for key in table:
        if key not in known:
            hint = nearest(key, known) or f", must be one of {', '.join(known)}"
            raise ConfigError.at(where, f"{what}: unknown key {key!r}{hint}")
    return table


def check_list(values: Any, length: int, what: str, where: str) -> list[Any]:
    """A copy of the list (or tuple or array), which has one entry for each of `length` nodes."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise ConfigError.at(where, f"{what} is {values!r}, must be a list")
    if len(values) != length:
        text = f"{what} has {len(values)} entries, must be {length}, one per node"
        raise ConfigError.at(where, text)
    return list(values)


def nearest(word: Any, known: Collection[str]) -> str:
    """What the writer probably meant, as the end of a message; empty when nothing is near."""
    matches = difflib.get_close_matches(str(word), known, 1)
    return f", did you mean {matches[0]!r}?" if matches else ""
