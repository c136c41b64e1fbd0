"""Values that people write: sizes in binary units, whole numbers, tables of known keys.

Each function answers with the value or raises a ConfigError of one line.  `what` names the value
in it, `where` the file or other place it stands in.
"""

import difflib
import re
import reprlib
from collections.abc import Collection, Iterable, Sequence
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
SIZE_TEXT = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE | re.ASCII)

MOST_SHOWN = 80  # characters of a wrong value that a message repeats
MOST_DIGITS = 40  # a longer number is told by its length, which Python's str() limits to 4,300


class _Shown(reprlib.Repr):
    """repr() for messages: short, of one line, and of numbers of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = MOST_SHOWN

    def repr_int(self, x: int, level: int) -> str:
        digits = x.bit_length() * 30103 // 100000 + 1
        return str(x) if digits <= MOST_DIGITS else f"a number of about {digits} digits"


def shown(value: Any) -> str:
    """A value as a message repeats it."""
    text = " ".join(_Shown().repr(value).split())
    return text if len(text) <= 2 * MOST_SHOWN else text[: 2 * MOST_SHOWN] + "..."


def decimal(word: str) -> int | str:
    """The number that a word is, or the word itself: then parse_int() refuses it."""
    return int(word) if word.isdecimal() and len(word) <= MOST_DIGITS else word


def parse_size(
    value: int | str, what: str = "size", where: str = "", *, least: int = 0, most: int | None = None, block: int = 1
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
        text = format_size(size) if size.bit_length() <= 64 else shown(size)
        raise ConfigError.at(where, f"{what} is {text}, must be {limit}")
    return size


def _read_size(value: int | str, what: str, where: str) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool):
        if value < 0:
            raise ConfigError.at(where, f"{what} is {shown(value)}, must not be negative")
        return int(value)
    match = SIZE_TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        hint = "must be a size such as '512MiB' or '1.5GiB'"
        raise ConfigError.at(where, f"{what} is {shown(value)}, {hint}")
    number, unit = match.groups(default="")
    nbytes = Fraction(number) * UNITS[unit.lower()]
    if nbytes.denominator != 1:
        raise ConfigError.at(where, f"{what} is {shown(value)}, must be a whole number of bytes")
    return int(nbytes)


def format_size(nbytes: int) -> str:
    """Text of a size in the largest unit that needs at most one decimal; parse_size() reads it
    back to the same number of bytes."""
    for name, unit in (("TiB", TiB), ("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        tenths, rest = divmod(nbytes * 10, unit)
        if tenths >= 10 and rest == 0:
            whole, tenth = divmod(tenths, 10)
            return f"{whole}.{tenth}{name}" if tenth else f"{whole}{name}"
    return f"{nbytes}B"


def list_text(numbers: Iterable[int]) -> str:
    """Linux's %*pbl: "0-2,5"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def choice_text(numbers: Sequence[int]) -> str:
    """The numbers from 0 on that there are, for an error message: "0 to 3", or with gaps "0-3,8-11"."""
    if len(numbers) == numbers[-1] + 1:
        return f"0 to {numbers[-1]}"
    return list_text(numbers)


def parse_int(value: Any, what: str, where: str, least: int, most: int, unit: str = "") -> int:
    """A whole number from `least` to `most`; text, bools, fractions, nan and inf are none."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ConfigError.at(where, f"{what} is {shown(value)}, must be a whole number")
    number = int(value)
    if not least <= number <= most:
        limit = f"at least {least}" if number < least else f"at most {most}"
        raise ConfigError.at(where, f"{what} is {shown(value)}{unit}, must be {limit}")
    return number


def check_table(table: Any, known: Collection[str], what: str, where: str) -> dict[str, Any]:
    """The table itself, which has no key but the known ones."""
    if not isinstance(table, dict):
        raise ConfigError.at(where, f"{what} is {shown(table)}, must be a table")
    for key in table:
        if key not in known:
            dotted = _dotted(key, table[key])
            if dotted in known:
                raise ConfigError.at(where, f'{what}: {dotted} has a dot, quote it: "{dotted}" = …')
            hint = nearest(key, known) or f", must be one of {', '.join(known)}"
            raise ConfigError.at(where, f"{what}: unknown key {shown(key)}{hint}")
    return table


def parse_choice(value: Any, known: Collection[str], what: str, where: str, more: str = "") -> str:
    """One of a few words; an array is none of them."""
    if not isinstance(value, str) or value not in known:
        raise ConfigError.at(where, f"{what} is {shown(value)}, must be {' or '.join(map(repr, known))}{more}")
    return value


def _dotted(key: Any, value: Any) -> str:
    """What TOML has taken apart: the key a.b, not quoted, is a table a with a key b."""
    while isinstance(key, str) and isinstance(value, dict) and value:
        inner, value = next(iter(value.items()))
        if not isinstance(inner, str):
            return ""
        key = f"{key}.{inner}"
    return key if isinstance(key, str) else ""


def check_list(values: Any, length: int, what: str, where: str) -> list[Any]:
    """A copy of the list (or tuple or array), which has one entry for each of `length` nodes."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise ConfigError.at(where, f"{what} is {shown(values)}, must be a list")
    if len(values) != length:
        text = f"{what} has {len(values)} entries, must be {length}, one per node"
        raise ConfigError.at(where, text)
    return list(values)


def nearest(word: Any, known: Collection[str]) -> str:
    """What the writer probably meant, as the end of a message; empty when nothing is near."""
    matches = difflib.get_close_matches(str(word)[:MOST_SHOWN], known, 1) if isinstance(word, str) else []
    return f", did you mean {matches[0]!r}?" if matches else ""
