"""Recorded requests: traces of the public malloc lab (.rep), and the text that `ltrace` and `mtrace` write.

A Trace holds rows (what, block's number, bytes): what is 0 malloc, 1 realloc, 2 free; blocks are numbered in the order of their first
request.
"""

import os
import re
from typing import NamedTuple

import numpy as np

from numaemu.errors import ConfigError

MALLOC, REALLOC, FREE, ALIGNED = range(4)
MOST_BYTES = 1 << 40  # of a request

_REP = {"a": MALLOC, "r": REALLOC, "f": FREE}
_HEX = r"(?:0x[0-9a-fA-F]+|\(nil\)|nil|0|NULL)"
_MTRACE = re.compile(rf"^@ \S.*?([+\-<>])\s+({_HEX})(?:\s+({_HEX}))?\s*$")
_LTRACE = re.compile(
    rf"\b(malloc|calloc|realloc|free|memalign|aligned_alloc|cfree)\(([^)<]*(?:\(nil\))?[^)<]*)\)\s*=\s*(<void>|{_HEX})"
)


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
    if any(line.startswith("@ ") for line in lines):
        return _numbered(name, map(mtrace_line, lines))
    return _numbered(name, map(ltrace_line, lines))


def read_rep(name, lines):
    """A trace of the malloc lab: suggested heap size, blocks, requests, weight, then a request in each line."""
    rows, header = [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(header) < 4:
            header.append(int(words[0]))
            continue
        what = _REP.get(words[0])
        if what is None or len(words) != (2 if what == FREE else 3) or not all(w.isdecimal() for w in words[1:]):
            raise ConfigError(f"trace {name}, line {number}: {line.strip()!r} is no request")
        rows.append((what, int(words[1]), int(words[2]) if what != FREE else 0))
    if len(rows) != header[2]:
        raise ConfigError(f"trace {name}: {len(rows)} requests, must be {header[2]} as its header says")
    return _trace(name, rows, header[1], 0)


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


def ltrace_line(line):
    """The same of a line of ltrace; a call that another thread has cut in two is none."""
    found = _LTRACE.search(line)
    if not found:
        return None
    name, result = found[1], _number(found[3]) if found[3] != "<void>" else 0
    words = [word.strip() for word in found[2].split(",")]
    try:
        numbers = [_number(word) for word in words]
    except ValueError:
        return None
    if name in ("free", "cfree"):
        return FREE, numbers[0], 0, 0
    if name == "realloc":
        return REALLOC, numbers[0], result, numbers[1]
    if name == "calloc":
        return MALLOC, 0, result, numbers[0] * numbers[1]
    return MALLOC, 0, result, numbers[-1]


def _number(word):
    """A number as C writes it."""
    return 0 if word in ("(nil)", "nil", "NULL", "") else int(word, 0)


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
    for number, (what, block, nbytes) in enumerate(rows):
        if block >= blocks or nbytes > MOST_BYTES:
            limit = f"block {block} of {blocks}" if block >= blocks else f"{nbytes} bytes"
            raise ConfigError(f"trace {name}, request {number}: {limit} cannot be")
        if (what == MALLOC) == (block in live):
            raise ConfigError(
                f"trace {name}, request {number}: block {block} is {'there already' if block in live else 'not there'}"
            )
        (live.discard if what == FREE else live.add)(block)
    return Trace(name, np.array(rows, np.int64).reshape(-1, 3), blocks, skipped)
