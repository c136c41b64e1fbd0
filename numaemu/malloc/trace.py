"""Recorded requests: traces of the public malloc lab (.rep), and the text that `ltrace` and `mtrace` write.

A Trace holds rows (what, block's number, bytes): what is 0 malloc, 1 realloc, 2 free; blocks are numbered in the order of their first
request.
"""

import os
import re
from typing import NamedTuple

import numpy as np

from numaemu.errors import ConfigError
from numaemu.spec.units import shown

MALLOC, REALLOC, FREE = range(3)
MOST_BYTES = 1 << 40  # of a request
MOST_DIGITS = 20

_REP = {"a": MALLOC, "r": REALLOC, "f": FREE}
_HEX = r"(?:0x[0-9a-fA-F]+|\(nil\)|nil|0|NULL)"
_MTRACE = re.compile(rf"^(?:@ \S.*?\s)?([+\-<>])\s+({_HEX})(?:\s+({_HEX}))?\s*$")
_NAMES = (
    r"\b(malloc|calloc|realloc|free|memalign|aligned_alloc|cfree)(?:@\S+?)?"  # and where it lies, as malloc@libc.so.6
)
_WHO = r"^\s*(?:\[pid\s+(\d+)\]|(\d+)\s)?.*?"  # the process or thread, if several are traced
_CALL = re.compile(rf"{_WHO}{_NAMES}\(([^()<]*(?:\(nil\)[^()<]*)*?)\s*(?:\)\s*=\s*(\S+)|<unfinished)")
_RESUMED = re.compile(rf"{_WHO}<\.\.\. {_NAMES} resumed>.*\)\s*=\s*(\S+)")


class Trace(NamedTuple):
    """What a program asked for."""

    name: str
    requests: np.ndarray
    blocks: int  # how many numbers there are
    skipped: int  # lines that say nothing of a request that can be played

    @property
    def peak_payload(self):
        """The most bytes that were asked for and not given back."""
        sizes, now, peak = np.zeros(self.blocks, np.int64), 0, 0
        for what, block, nbytes in self.requests.tolist():
            size = 0 if what == FREE else nbytes
            now += size - sizes[block]
            sizes[block] = size
            peak = max(peak, now)
        return int(peak)


def read_trace(path):
    """The trace in a file, whichever of the three it is. ConfigError: it is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise ConfigError(f"trace {path}: {str(error.strerror).lower()}") from error
    name = os.path.basename(path)
    words = [line.split() for line in lines if line.strip()]
    if len(words) >= 4 and all(len(word) == 1 and word[0].isdecimal() for word in words[:4]):
        return read_rep(name, lines)
    if any(line.startswith(("@ ", "= Start")) for line in lines):
        return _numbered(name, map(mtrace_line, lines))
    return _numbered(name, ltrace_requests(lines))


def read_rep(name, lines):
    """A trace of the malloc lab: suggested heap size, blocks, requests, weight, then a request in each line."""
    rows, header, numbers = [], [], {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(header) < 4:
            header.append(_decimal(name, number, words[0]))
            continue
        what = _REP.get(words[0])
        if what is None or len(words) != (2 if what == FREE else 3):
            raise ConfigError(f"trace {name}, line {number}: {shown(line.strip())} is no request")
        block, nbytes = (_decimal(name, number, word) for word in (words[1], words[2] if what != FREE else "0"))
        if block >= header[1]:
            raise ConfigError(f"trace {name}, line {number}: block {block} of {header[1]} cannot be")
        rows.append((what, numbers.setdefault(block, len(numbers)), nbytes))
    if len(rows) != header[2]:
        raise ConfigError(f"trace {name}: {len(rows)} requests, must be {header[2]} as its header says")
    return _trace(name, rows, len(numbers), 0)


def _decimal(name, number, word):
    """A number of a .rep file."""
    if not (word.isascii() and word.isdecimal() and len(word) <= MOST_DIGITS):
        raise ConfigError(f"trace {name}, line {number}: {shown(word)} is no number of a request")
    return int(word)


def mtrace_line(line):
    """(what, address before, address, bytes) of a line of mtrace, or None. `<` and `>` are the two lines of a realloc."""
    found = _MTRACE.match(line)
    if not found:
        return None
    sign, address, nbytes = found[1], _number(found[2]), _number(found[3] or "0")
    return {
        "+": (MALLOC, 0, address, nbytes),
        "-": (FREE, address, 0, 0),
        "<": ("from", address, 0, 0),
        ">": (REALLOC, None, address, nbytes),
    }[sign]


def ltrace_requests(lines):
    """The same of each line of ltrace. A call that something else cuts in two counts where it returns; a free, where it begins."""
    begun = {}
    for line in lines:
        found = _CALL.search(line)
        if found:
            who, name, words, result = found[1] or found[2], found[3], found[4], found[5]
            if result is None and name not in ("free", "cfree"):
                begun.setdefault((who, name), []).append(words)
            yield ltrace_call(name, words, result) if result or name in ("free", "cfree") else None
            continue
        back = _RESUMED.search(line)
        waiting = begun.get((back[1] or back[2], back[3])) if back else None
        yield ltrace_call(back[3], waiting.pop(), back[4]) if back and waiting else None


def ltrace_call(name, words, result):
    """The same of one call, or None."""
    try:
        numbers = [_number(word.strip()) for word in words.split(",")]
        if name in ("free", "cfree"):
            return FREE, numbers[0], 0, 0
        address = _number(result)
        if name == "realloc":
            return REALLOC, numbers[0], address, numbers[1]
        if name == "calloc":
            return MALLOC, 0, address, numbers[0] * numbers[1]
        return MALLOC, 0, address, numbers[0 if name == "malloc" else 1]
    except (ValueError, IndexError):
        return None


def _number(word):
    """A number as C writes it; a negative one is the word that it is in C."""
    if word in ("(nil)", "nil", "NULL", ""):
        return 0
    number = int(word, 0) if len(word) <= MOST_DIGITS else 1 << 64
    return number if number >= 0 else number + (1 << 64)


def _numbered(name, requests):
    """A trace from requests by address: each address stands for the block that was given out there last."""
    rows, at, skipped, before = [], {}, 0, 0
    blocks = 0
    for request in requests:
        if request is None:
            skipped += 1
            continue
        what, old, new, nbytes = request
        if what == "from":
            before = old
            continue
        if what == REALLOC:
            old, before = before if old is None else old, 0
        if what == FREE or what == REALLOC and old and not nbytes:
            if old in at:
                rows.append((FREE, at.pop(old), 0))
            elif old:
                skipped += 1  # it was given out before the trace begins
        elif not new:
            skipped += 1  # the program got nothing
        elif what == REALLOC and old in at:
            at[new] = at.pop(old)
            rows.append((REALLOC, at[new], nbytes))
        else:
            at[new], blocks = blocks, blocks + 1
            rows.append((MALLOC, at[new], nbytes))
    if not rows:
        raise ConfigError(f"trace {name}: there is no request in it, neither of the malloc lab nor of ltrace or mtrace")
    return _trace(name, rows, blocks, skipped)


def _trace(name, rows, blocks, skipped):
    """Rows that can be played: what is freed or resized is there."""
    live = set()
    if not rows:
        raise ConfigError(f"trace {name}: there is no request in it")
    for number, (what, block, nbytes) in enumerate(rows):
        if nbytes > MOST_BYTES:
            raise ConfigError(f"trace {name}, request {number}: {nbytes} bytes cannot be")
        if (what == MALLOC) == (block in live):
            raise ConfigError(
                f"trace {name}, request {number}: block {block} is {'there already' if block in live else 'not there'}"
            )
        (live.discard if what == FREE else live.add)(block)
    return Trace(name, np.array(rows, np.int64).reshape(-1, 3), blocks, skipped)
