"""Reading traces, in pieces: each reader yields arrays of ACCESS. Files may be compressed with gzip, xz or zstd.

A new format is a function here, its name in READERS, and a line of `guess`.
"""

import csv
import gzip
import io
import lzma
import os
import re
import zlib

import numpy as np

from numaemu.errors import ConfigError
from numaemu.tools.traces.lackey import parse
from numaemu.tools.traces.record import ACCESS, FETCH, LOAD, MODIFY, STORE

PIECE = 8 << 20  # bytes that are read at a time
LINES = 50_000  # of a text that are collected before they are handed on
LONGEST_LINE = 4096
LOOK = 1 << 16  # bytes by which a format is recognised
MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class BadTrace(ConfigError):
    """A file is no trace, or a damaged one."""


def opened(path):
    """A binary stream of a file's contents."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except (OSError, ValueError) as error:
        raise BadTrace(f"{path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from None
    kind = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if kind == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(open(path, "rb"), closefd=True)
    if kind is None:
        return open(path, "rb")
    return gzip.open(path, "rb") if kind == "gzip" else lzma.open(path, "rb")


DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error)


def pieces(path, nbytes=PIECE):
    """The contents of a file, so many bytes at a time."""
    with opened(path) as stream:
        while True:
            try:
                piece = stream.read(nbytes)
            except DAMAGED as error:
                raise BadTrace(f"{path}: is damaged or cut off: {str(error).lower()}") from None
            except Exception as error:  # zstandard's own
                raise BadTrace(f"{path}: cannot be decompressed: {str(error).lower()}") from None
            if not piece:
                return
            yield piece


# -- valgrind ------------------------------------------------------------------------------------------------


def read_lackey(path):
    """valgrind --tool=lackey --trace-mem=yes --log-file=FILE"""
    rest = b""
    for piece in pieces(path):
        text = np.frombuffer(rest + piece, np.uint8)
        if len(text) > LONGEST_LINE and not (text[-LONGEST_LINE:] == ord("\n")).any():
            raise BadTrace(f"{path}: has a line of more than {LONGEST_LINE} bytes, which lackey does not write")
        out = np.empty(len(text) // 7 + 1, ACCESS)
        n, end, _ = parse(text, out)
        rest = text[end:].tobytes()
        yield out[:n]
    if rest:
        out = np.empty(1, ACCESS)
        n, _, _ = parse(np.frombuffer(rest + b"\n", np.uint8), out)
        yield out[:n]


# -- ChampSim ------------------------------------------------------------------------------------------------

INSTRUCTION = np.dtype([("ip", "<u8"), ("is_branch", "u1"), ("taken", "u1"), ("out", "u1", 2), ("in", "u1", 4),
                        ("stores", "<u8", 2), ("loads", "<u8", 4)])  # fmt: skip


def read_champsim(path):
    """ChampSim's records of 64 bytes. An instruction is fetched, its loads come before its stores; sizes are not told: 8."""
    size, rest = INSTRUCTION.itemsize, b""
    for piece in pieces(path, PIECE // size * size):
        whole = rest + piece
        n = len(whole) // size
        rest = whole[n * size :]
        records = np.frombuffer(whole, INSTRUCTION, n)
        out = np.zeros((n, 7), ACCESS)
        out["addr"] = np.hstack([records["ip"][:, None], records["loads"], records["stores"]])
        out["size"], out["kind"] = 8, [FETCH] + [LOAD] * 4 + [STORE] * 2
        out["size"][:, 0] = 4
        yield out[out["addr"] != 0]
    if rest:
        raise BadTrace(f"{path}: is cut off: {len(rest)} bytes behind the last record of {size}")


# -- text, a line for each access ----------------------------------------------------------------------------

# drrun -t drmemtrace -tool view:     "3   1  T342625  read  8 byte(s) @ 0x00007ffc5d5c9708 by PC 0x…"
DRMEMTRACE = re.compile(rb"T?(\d+)\s+(?:<[^>]*>\s+)?(ifetch|read|write)\s+(\d+) byte\(s\) @ 0x([0-9a-f]+)")
# perf script -F tid,event,addr and the like:     "  1234  cpu/mem-stores/P:  7f3a90001040"
PERF = re.compile(
    rb"(?:^|\s)(\d+)(?:/(\d+))?\s+(?:\[\d+\]\s+)?(?:[\d.]+:\s+)?(?:\d+\s+)?\S*?(mem-loads|mem-stores|LOADS|STORES|loads|stores)\S*\s+"
    rb"(?:0x)?([0-9a-f]+)\b"
)
TEXT_KINDS = {b"ifetch": FETCH, b"read": LOAD, b"write": STORE}


def drmemtrace_row(line):
    match = DRMEMTRACE.search(line)
    return match and (int(match[4], 16), int(match[3]), int(match[1]) & 0xFFFF_FFFF, TEXT_KINDS[match[2]], 0)


def perf_row(line):
    match = PERF.search(line)
    if match is None or int(match[4], 16) == 0:  # a sample without an address
        return None
    return int(match[4], 16), 8, int(match[2] or match[1]), STORE if b"stores" in match[3].lower() else LOAD, 0


def read_lines(path, row):
    """Accesses of the lines that are some."""
    found, rest = [], b""
    for piece in pieces(path, 1 << 20):
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise BadTrace(f"{path}: has a line of more than {LONGEST_LINE} bytes")
        found += [access for line in lines if (access := row(line))]
        if len(found) >= LINES:
            yield as_array(path, found)
            found = []
    yield as_array(path, found + ([access] if (access := row(rest)) else []))


def as_array(path, rows):
    try:
        return np.array(rows, ACCESS)
    except (OverflowError, ValueError) as error:
        raise BadTrace(f"{path}: an access does not make sense: {str(error).lower()}") from None


def read_drmemtrace(path):
    """What the view tool of DynamoRIO's drmemtrace prints."""
    return read_lines(path, drmemtrace_row)


def read_perf(path):
    """What perf script prints of perf mem record: loads and stores with their addresses."""
    return read_lines(path, perf_row)


# -- CSV -----------------------------------------------------------------------------------------------------

COLUMNS = {  # names of columns, and which of ours each is
    **dict.fromkeys(("addr", "address", "vaddr"), "addr"),
    **dict.fromkeys(("size", "bytes", "nbytes"), "size"),
    **dict.fromkeys(("thread", "tid", "cpu"), "thread"),
    **dict.fromkeys(("kind", "type", "op", "rw"), "kind"),
}
KIND_WORDS = {
    **dict.fromkeys(("l", "r", "load", "read", "0", ""), LOAD),
    **dict.fromkeys(("s", "w", "store", "write", "1"), STORE),
    **dict.fromkeys(("i", "f", "fetch", "ifetch", "2"), FETCH),
    **dict.fromkeys(("m", "rmw", "modify", "3"), MODIFY),
}


def csv_header(line):
    """{our name: column} of a header line, or None: it is none."""
    names = [word.strip().lower() for word in line.split(",")]
    found = {COLUMNS[name]: i for i, name in enumerate(names) if name in COLUMNS}
    return found if "addr" in found else None


def read_csv(path):
    """A CSV whose first line names its columns: addr, and size, kind and thread if wanted."""
    with io.TextIOWrapper(opened(path), encoding="utf-8", errors="replace") as text:
        columns = csv_header(text.readline(LONGEST_LINE))
        if columns is None:
            raise BadTrace(f"{path}: the first line of a CSV must name a column addr")
        found, number = [], 1
        for number, row in enumerate(csv.reader(text), 2):
            if row:
                found.append(csv_access(path, number, row, columns))
            if len(found) == LINES:
                yield as_array(path, found)
                found = []
        yield as_array(path, found)


def csv_access(path, number, row, columns):
    """One row."""
    try:
        cell = {name: row[i].strip() for name, i in columns.items()}
        kind = KIND_WORDS[cell.get("kind", "l").lower()]
        return int(cell["addr"], 0), int(cell.get("size") or 8), int(cell.get("thread") or 0), kind, 0
    except (ValueError, IndexError, KeyError):
        raise BadTrace(f"{path}, line {number}: {','.join(row)[:60]!r} is no access") from None


# -- which ---------------------------------------------------------------------------------------------------

READERS = {
    "lackey": read_lackey,
    "champsim": read_champsim,
    "drmemtrace": read_drmemtrace,
    "perf": read_perf,
    "csv": read_csv,
}
LACKEY_LINE = re.compile(rb"^(?:I  | [LSM] )[0-9a-f]+,\d+$", re.M)


def guess(path):
    """The name of a file's format; BadTrace if it is none."""
    head = next(pieces(path, LOOK), b"")
    if LACKEY_LINE.search(head):
        return "lackey"
    if DRMEMTRACE.search(head):
        return "drmemtrace"
    if csv_header(head[:LONGEST_LINE].partition(b"\n")[0].decode(errors="replace")):
        return "csv"
    if PERF.search(head):
        return "perf"
    named = re.search(r"champsim|\.trace(\.\w+)?$", os.path.basename(path))
    if named or b"\0" in head and len(head) % INSTRUCTION.itemsize == 0 and plausible(head):
        return "champsim"
    raise BadTrace(
        f"{path}: is no trace of {', '.join(READERS)}"
        + (" (is it cut off, or another file?)" if head else ": it is empty")
    )


def plausible(head):
    """True if bytes look like ChampSim's records: the words for taken and not taken branches are 0 or 1, and there are addresses."""
    records = np.frombuffer(head, INSTRUCTION)
    return bool((records["is_branch"] <= 1).all() and (records["taken"] <= 1).all() and (records["ip"] != 0).any())


def read(path, kind=None):
    """Arrays of ACCESS of a trace."""
    return READERS[kind or guess(path)](path)
