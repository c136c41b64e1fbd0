"""What an argument of a call may be: each kind takes a value over, or raises a TypeError that names call, argument and value.

Numbers go on as a program in C would hand them over, in 64 bits: -1 as a length is the largest one, and a number that no
word holds is the largest that one does. So it is the kernel that refuses wrong values, in its order; refusals.py says why.
"""

import operator
import os

import numpy as np

from numaemu import uapi
from numaemu.errors import ConfigError
from numaemu.spec.units import parse_size, shown

INT_LEAST, INT_MOST, WORD_MOST = -(1 << 63), (1 << 63) - 1, (1 << 64) - 1
MOST_NODES = 1024  # that a text may span


def constants(*prefixes):
    """{name: value} of those of uapi.py that begin so."""
    return {name: value for name, value in vars(uapi).items() if name.startswith(prefixes)}


class Kind:
    """What an argument must be."""

    def __init__(self, what):
        self.what = what

    def wrong(self, call, name, value):
        return TypeError(f"{call}: {name} must be {self.what}, not {shown(value)}")

    def show(self, value):
        """A value in a message."""
        return shown(value)


class Int(Kind):
    """A signed number; `names` are constants that it is one of (or, as flags, made of)."""

    def __init__(self, what="an integer", names=None):
        super().__init__(what)
        self.names = names or {}

    def take(self, call, name, value):
        return min(max(self.index(call, name, value), INT_LEAST), INT_MOST)

    def index(self, call, name, value):
        """The value as an int; TypeError for what is no whole number, and for a bool."""
        if type(value) is int:
            return value
        try:
            if not isinstance(value, bool):
                return operator.index(value)
        except TypeError:
            pass
        raise self.wrong(call, name, value)


class Choice(Int):
    """One of some constants."""

    def __init__(self, example, names):
        super().__init__(f"an integer such as {example}", names)

    def show(self, value):
        return next((name for name, known in self.names.items() if known == value), str(value))


class Flags(Choice):
    """A union of some constants."""

    def show(self, value):
        """The value as its names, joined by |; bits without a name in hexadecimal."""
        found, rest = [], value
        for name, known in sorted(self.names.items(), key=lambda item: -item[1].bit_count()):
            if known and value >= 0 and rest & known == known:
                found.append(name)
                rest &= ~known
        return " | ".join(found + ([f"{rest:#x}"] if rest or not found else []))

    def unknown(self, value):
        """The bits that have no name."""
        for known in self.names.values():
            value &= ~known
        return value


class Word(Int):
    """An unsigned number; a negative one is the word that it is in C."""

    def take(self, call, name, value):
        value = self.index(call, name, value)
        return max(value, INT_LEAST) + (1 << 64) if value < 0 else min(value, WORD_MOST)


class Address(Word):
    """An emulated address, where `page` says so of a page."""

    def __init__(self, page=False):
        super().__init__("an address, which is an integer")
        self.page = page

    def show(self, value):
        return f"{value:#x}"


class Size(Word):
    """A number of bytes, or text such as 64KiB; 0 is refused if `least` is 1."""

    def __init__(self, least=0):
        super().__init__("a size such as 4096 or '64KiB'")
        self.least = least

    def take(self, call, name, value):
        return super().take(call, name, self.text(call, name, value))

    def text(self, call, name, value):
        """Text such as "64MiB" as bytes; anything else unchanged."""
        if not isinstance(value, str):
            return value
        try:
            return parse_size(value)
        except ConfigError:
            raise self.wrong(call, name, value) from None


class Offset(Size):
    """A place in a file, or its size: signed."""

    def take(self, call, name, value):
        return Int.take(self, call, name, self.text(call, name, value))


class Optional(Kind):
    """None, or what another kind is."""

    def __init__(self, kind):
        super().__init__(f"{kind.what}, or None")
        self.kind = kind

    def take(self, call, name, value):
        return None if value is None else self.kind.take(call, name, value)

    def show(self, value):
        return "None" if value is None else self.kind.show(value)


class Number(Kind):
    """A number, whole or not."""

    def take(self, call, name, value):
        if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and value == value:
            return float(max(min(value, 1e300), -1e300))
        raise self.wrong(call, name, value)


class Truth(Kind):
    """True or False."""

    def take(self, call, name, value):
        if isinstance(value, (bool, np.bool_)) or (type(value) is int and value in (0, 1)):
            return bool(value)
        raise self.wrong(call, name, value)


class Nodes(Kind):
    """A tuple of node numbers, whatever they are; None for none."""

    def __init__(self):
        super().__init__("a node, several nodes, text like '0,2-3', or None")

    def take(self, call, name, value):
        """Node numbers as a tuple, from one number, several, or text as "0,2-3"; None stays None."""
        if value is None:
            return None
        try:
            if isinstance(value, str):
                return tuple(node for part in value.split(",") if part.strip() for node in self.span(part))
            return tuple(operator.index(node) for node in (value if np.ndim(value) else [value]) if self.is_node(node))
        except (TypeError, ValueError):
            raise self.wrong(call, name, value) from None

    def is_node(self, node):
        if isinstance(node, (bool, np.bool_)):
            raise TypeError
        return True

    def span(self, part):
        first, _, last = part.partition("-")
        first = int(first)
        last = int(last or first)
        return (first, *range(first + 1, last + 1)) if last - first < MOST_NODES else (first, last)

    def show(self, value):
        return "None" if value is None else "[" + ", ".join(map(str, value)) + "]"


class Cpus(Nodes):
    """CPU numbers."""

    def __init__(self):
        Kind.__init__(self, "a CPU or several")

    def take(self, call, name, value):
        if value is None or isinstance(value, str):
            raise self.wrong(call, name, value)
        return super().take(call, name, list(value) if isinstance(value, (set, frozenset, range)) else value)


class Text(Kind):
    """A name."""

    def take(self, call, name, value):
        """The text itself, which holds no byte 0."""
        if isinstance(value, str):
            if "\0" in value:
                raise ValueError(f"{call}: {name} {shown(value)} has a byte 0, which ends names")
            return value
        raise self.wrong(call, name, value)


class Path(Text):
    """The name of a file."""

    def take(self, call, name, value):
        return super().take(call, name, os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else value)


class Bytes(Kind):
    """Bytes, or whatever shows its bytes (an array)."""

    def take(self, call, name, value):
        try:
            return bytes(memoryview(value))
        except TypeError:
            raise self.wrong(call, name, value) from None


class Strings(Kind):
    """Arguments or environment of a program: several names, or a dict of them."""

    def take(self, call, name, value):
        """A list of words, from any iterable of them or from a dict of KEY=WORD (an environment)."""
        words = [f"{key}={word}" for key, word in value.items()] if isinstance(value, dict) else value
        if isinstance(words, (str, bytes)) or not np.iterable(words):
            raise self.wrong(call, name, value)
        words = list(words)
        if not all(isinstance(word, (str, bytes, os.PathLike)) for word in words):
            raise self.wrong(call, name, value)
        return words


class Integers(Kind):
    """An array of numbers: addresses, pages, nodes; `dtype` is what the kernel takes."""

    def __init__(self, what, dtype):
        super().__init__(what)
        self.dtype = np.dtype(dtype)

    def take(self, call, name, value):
        """An array of `dtype`, from whole numbers in any shape; a number that does not fit raises OverflowError."""
        if not isinstance(value, np.ndarray):
            try:
                value = np.asarray(list(value) if isinstance(value, (set, range)) else value)
            except (ValueError, OverflowError):
                raise self.wrong(call, name, value) from None
        kind = value.dtype.kind
        if kind == "u" or kind == "i":
            return value.astype(self.dtype, copy=False)
        if value.size == 0:
            return np.zeros(value.shape, self.dtype)
        if kind != "O":
            raise self.wrong(call, name, value.tolist())
        one = Word() if self.dtype.kind == "u" else Int()
        try:
            return np.array([one.take(call, name, n) for n in value.flat], self.dtype).reshape(value.shape)
        except TypeError:
            raise self.wrong(call, name, value.tolist()) from None


class Dtype(Kind):
    """What one access moves; as its text."""

    def take(self, call, name, value):
        return loadable(value, call, name).str


class Values(Kind):
    """An array of numbers that accesses can move."""

    def take(self, call, name, value):
        """An array of values that memory can hold: numbers and bools, no text and no objects."""
        try:
            value = np.asarray(value)
        except ValueError:
            raise self.wrong(call, name, value) from None
        if value.dtype.kind in "USO" or value.dtype.hasobject:
            raise self.wrong(call, name, value.tolist())
        loadable(value.dtype, call, name)
        return value


class Anything(Kind):
    """What is not looked at here."""

    def take(self, call, name, value):
        return value


def loadable(dtype, call="array", name="dtype"):
    """The dtype, if one access can move it."""
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{call}: {name} must be a dtype such as numpy.uint64, not {shown(dtype)}") from None
    if dtype.itemsize not in (1, 2, 4, 8) or dtype.hasobject:
        raise TypeError(f"{call}: {name} {dtype} has {dtype.itemsize} bytes, an access moves 1, 2, 4 or 8")
    return dtype


def runnable(call, value):
    """A function that a task is to run."""
    if not callable(value):
        raise TypeError(f"{call}: function must be callable, not {shown(value)}")
    return value
