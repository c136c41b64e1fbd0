"""One word at a time: what `task.load([address])`, `array[i]` and their stores hand over instead of arrays.

A word travels as its bits in an int. What is not plain here (another kind of index, a value that is no number of Python's) takes the
way of arrays, where it is looked at closely.
"""

import struct

import numpy as np

from numaemu.api.arguments import loadable

LOAD, STORE = 0, 1
_ALL = (1 << 64) - 1
_FLOATS = {("f", 8): struct.Struct("<d"), ("f", 4): struct.Struct("<f")}
_kinds: dict = {}  # by whatever names a dtype: a program uses a few


class WordKind:
    """How values of a dtype become bits, and bits values."""

    def __init__(self, dtype):
        self.dtype, self.nbytes = dtype, dtype.itemsize
        self.mask, self.sign = (1 << 8 * self.nbytes) - 1, 1 << 8 * self.nbytes - 1
        self.integer = dtype.kind in "ui" and dtype.isnative
        self.unsigned, self.scalar = dtype.kind == "u", dtype.type
        self.float = _FLOATS.get((dtype.kind, self.nbytes)) if dtype.isnative else None

    def value(self, bits):
        """The value as NumPy's scalar."""
        if self.integer:
            return self.scalar(bits if self.unsigned or bits < self.sign else bits - (self.sign << 1))
        return self.array(bits)[0]

    def array(self, bits):
        """The value in an array of its own."""
        return np.frombuffer(bytearray(bits.to_bytes(self.nbytes, "little")), self.dtype)

    def bits(self, value):
        """The bits of a number of Python's; None: it is something else, or fits no word."""
        if self.integer and type(value) is int and -self.sign <= value <= self.mask:
            return value & self.mask
        if self.float is not None and type(value) is float and self.nbytes == 8:
            return int.from_bytes(self.float.pack(value), "little")
        return None


def word_kind(dtype):
    """The WordKind of what one access moves; None: it has to be looked at."""
    try:
        return _kinds[dtype]
    except (KeyError, TypeError):
        pass
    try:
        kind = _kinds[dtype] = WordKind(loadable(dtype))
    except TypeError:
        return None
    return kind


def one_address(addresses):
    """The address, if it is the only one of a list or a one-dimensional array; else None."""
    if type(addresses) is list:
        if len(addresses) == 1 and type(address := addresses[0]) is int and 0 <= address <= _ALL:
            return address
    elif type(addresses) is np.ndarray and addresses.shape == (1,) and addresses.dtype.kind == "u":
        return int(addresses[0])
    return None


INT, FLOAT = WordKind(np.dtype(np.int64)), WordKind(np.dtype(np.float64))  # what Python's numbers are in memory


def stored(values):
    """(bytes, bits) of a number of Python's as `task.store` puts it into memory; None: it is something else."""
    if type(values) is int:
        return (8, values & _ALL) if -(1 << 63) <= values <= _ALL else None
    return (8, FLOAT.bits(values)) if type(values) is float else None
