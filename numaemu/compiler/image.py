"""The compiled functions as one file, which grows: a record for each function that has been compiled.

The file begins with a random number, by which it is known again. A record is its length and a pickled (symbol, Compiled
or Failed). One process appends (compiler/foreman.py), each record with one write; who reads takes whole records only, and looks
again when it needs a function that is not there yet. The last record of an image says that it is complete. The file's name
carries the stamps of the tools and of all sources; a new image begins with what the one before it holds and a change has not touched.
"""

import os
import pickle
import typing

from numaemu.host.trust import distrust, open_own

COMPLETE = ""  # the symbol of the last record
_IDENTITY, _LENGTH = 16, 8  # bytes


class Compiled(typing.NamedTuple):
    """One function: its object code, the name in it that is called, and Numba's environment of it."""

    code: bytes
    name: str
    environments: tuple  # names of the words that point to it, and to those of what was inlined
    constants: tuple  # what it holds
    stamp: str | None = None  # of what it was compiled from (stamp.py); None: it is compiled anew after any change


class Failed(typing.NamedTuple):
    """A function that the compiler refused."""

    text: str


class Image:
    """An image as far as it has been read: `functions`, {symbol: Compiled or Failed}."""

    def __init__(self, path):
        self.path, self.functions = path, {}
        self.end, self.identity = _IDENTITY, b""  # bytes that have been read, of which file

    @property
    def complete(self):
        return COMPLETE in self.functions

    def read(self):
        """Take in the records that have been added; their symbols. From a file that others may have written nothing is taken."""
        try:
            with open(self.path, "rb") as file:
                if distrust(os.fstat(file.fileno())):
                    return []
                if (identity := file.read(_IDENTITY)) != self.identity:  # it has been removed and made again
                    self.end, self.identity = _IDENTITY, identity
                file.seek(self.end)
                data, at, new = file.read(), 0, []
        except FileNotFoundError:
            return []
        while len(data) >= (begin := at + _LENGTH) and len(data) >= (
            end := begin + int.from_bytes(data[at:begin], "little")
        ):
            symbol, thing = pickle.loads(data[begin:end])
            self.functions[symbol] = thing
            new.append(symbol)
            at = end
        self.end += at
        return new

    def holds(self, symbol):
        """True if a function has been compiled (and not refused), as far as this has been read."""
        return isinstance(self.functions.get(symbol), Compiled)

    def grown(self):
        """True if there is something in the file that has not been read."""
        try:
            return os.stat(self.path).st_size != self.end
        except FileNotFoundError:
            return False

    def mend(self):
        """Read it, made if need be, and cut off what a process that was killed left of its last record."""
        with open_own(self.path) as file:
            if file.tell() < _IDENTITY:
                file.truncate(0)
                file.write(os.urandom(_IDENTITY))
        self.read()
        os.truncate(self.path, self.end)

    def append(self, symbol, thing):
        """Add a record, as the only process that does. FileNotFoundError: somebody has removed it."""
        if symbol in self.functions:
            raise AssertionError(f"{symbol} is compiled twice")
        record = pickle.dumps((symbol, thing))
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            file.write(len(record).to_bytes(_LENGTH, "little") + record)
        self.functions[symbol] = thing
        self.end += _LENGTH + len(record)
