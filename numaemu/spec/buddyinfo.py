"""The free lists of a real machine, from its /proc/buddyinfo and /proc/pagetypeinfo: what a machine may boot with."""

import os
import re
from dataclasses import dataclass, field

from numaemu.errors import ConfigError
from numaemu.spec.param import NR_ORDERS
from numaemu.spec.units import shown

MOST_BYTES = 16 << 20  # of such a file
TYPES = ("Unmovable", "Movable", "Reclaimable", "HighAtomic")  # by number: MIGRATE_*; the others must be 0
MOVABLE = "Movable"
_BUDDY = re.compile(r"^Node (\d+), zone +(\w+) ((?: *\d+)+) *$", re.M)
_TYPED = re.compile(r"^Node +(\d+), zone +(\w+), type +(\w+) ((?: *>?\d+)+) *$", re.M)
_BLOCKS = re.compile(r"^Node (\d+), zone +(\w+) ((?: *\d+)+) *$", re.M)
_HEADER = re.compile(r"^Number of blocks type +(.*)$", re.M)


@dataclass
class FreeLists:
    """Of each zone, (node, name): free blocks {type: counts by order}, and how many pageblocks each type has, if known."""

    free: dict[tuple[int, str], dict[str, list[int]]]
    pageblocks: dict[tuple[int, str], dict[str, int]] = field(default_factory=dict)


def text_of(source, what):
    """The text of a file, or a text itself (it has several lines), and its name for errors."""
    if isinstance(source, str) and "\n" in source:
        return source, what
    try:
        with open(source, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{what} is {shown(os.fspath(source) if hasattr(source, '__fspath__') else source)}: {reason.lower()}"
        ) from None
    if len(data) > MOST_BYTES or b"\0" in data:
        raise ConfigError(f"{what} is {shown(str(source))}, which is no text of the kernel")
    return data.decode("utf-8", errors="replace"), str(source)


def counts_of(words, place, where):
    """Counts by order."""
    counts = [int(word.lstrip(">")) for word in words.split()]
    if len(counts) != NR_ORDERS:
        raise ConfigError.at(
            where, f"{place}: {len(counts)} counts, must be {NR_ORDERS}, of orders 0 to {NR_ORDERS - 1}"
        )
    if max(counts) > 1 << 40:
        raise ConfigError.at(where, f"{place}: a count is {max(counts)}, which no machine has")
    return counts


def read_free_lists(buddyinfo, pagetypeinfo=None):
    """A FreeLists from files or texts. Without pagetypeinfo all free memory is movable."""
    text, where = text_of(buddyinfo, "buddyinfo")
    free = {}
    for node, zone, words in _BUDDY.findall(text):
        place = f"node {node}, zone {zone}"
        if (int(node), zone) in free:
            raise ConfigError.at(where, f"{place} is there twice")
        free[int(node), zone] = {MOVABLE: counts_of(words, place, where)}
    if not free:
        raise ConfigError.at(where, "buddyinfo has no line like 'Node 0, zone Normal 1 2 3 …'")
    lists = FreeLists(free)
    if pagetypeinfo is not None:
        add_types(lists, *text_of(pagetypeinfo, "pagetypeinfo"))
    return lists


def add_types(lists, text, where):
    """Divide the free blocks as pagetypeinfo does. Both files are from one moment, or nearly: pagetypeinfo decides."""
    typed = {}
    for node, zone, kind, words in _TYPED.findall(text):
        counts = counts_of(words, f"node {node}, zone {zone}, type {kind}", where)
        if kind not in TYPES and any(counts):
            raise ConfigError.at(
                where, f"node {node}, zone {zone}: there are free blocks of type {kind}, which is not emulated"
            )
        if kind in TYPES:
            typed.setdefault((int(node), zone), {})[kind] = counts
    if not typed:
        raise ConfigError.at(where, "pagetypeinfo has no line like 'Node 0, zone Normal, type Movable 1 2 3 …'")
    lists.free |= {key: kinds for key, kinds in typed.items() if key in lists.free}
    for header, part in zip(_HEADER.findall(text), _HEADER.split(text)[2::2]):
        names = header.split()
        for node, zone, words in _BLOCKS.findall(part):
            numbers = [int(word) for word in words.split()]
            if len(numbers) == len(names):
                lists.pageblocks[int(node), zone] = {n: c for n, c in zip(names, numbers) if n in TYPES}
