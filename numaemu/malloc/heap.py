"""The heap that a workload holds: `task.malloc_heap(kind)`. Its methods run in the process of the CPU that the task is on."""

import errno
from typing import NamedTuple

import numpy as np

from numaemu.api.arguments import INT_MOST, Address, Int, Size, Truth
from numaemu.malloc import calls
from numaemu.malloc.calls import HeapWord
from numaemu.malloc.check import check_headers, check_rows, draw
from numaemu.malloc.control import (
    BIG_BYTES,
    BY_BRK,
    BY_MMAP,
    CONTROL_BYTES,
    END,
    GROWTH,
    KIND,
    LIMIT,
    MMAP_THRESHOLD,
    NEVER,
    NODE,
    PEAK,
    PEAK_PAYLOAD,
    POLICY,
    SOURCE,
    START,
    TRIM_THRESHOLD,
    lock,
    unlock,
)
from numaemu.malloc.errors import BIG, FREE, STATES, TOP_CHUNK, USED, HeapError
from numaemu.malloc.kinds import KINDS, kind_module
from numaemu.malloc.rows import ADDRESS, ASKED, BYTES, STATE
from numaemu.spec.param import PAGE_SIZE
from numaemu.spec.units import GiB, MiB, parse_size, shown
from numaemu.uapi import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, MPOL_BIND, PROT_READ, PROT_WRITE

SOURCES = {"brk": BY_BRK, "mmap": BY_MMAP}
LIMIT_BYTES = 64 * MiB  # of a reservation by mmap, unless it is given
LEAST_GROWTH, MOST_GROWTH = 32, GiB
LOOKS = 3  # at a heap with caches, before it is wrong


class Stats(NamedTuple):
    """A heap in figures, in bytes."""

    payload: int  # what is asked for, of all blocks in use
    used: int  # these blocks, with their tags and what was rounded up
    free: int  # free blocks
    heap: int  # all that the heap holds from the kernel now
    peak_heap: int  # the most that it has held
    blocks: int  # blocks in use
    free_blocks: int  # blocks that are free; the top is one
    largest_free: int  # the largest of them
    peak_payload: int  # the most that was asked for at a time; 0: the heap keeps no accounts

    @property
    def overhead(self):
        """Bytes of the heap that are neither payload nor free."""
        return self.heap - self.payload - self.free

    @property
    def internal_fragmentation(self):
        """The share of the blocks in use that nobody asked for."""
        return 1 - self.payload / self.used if self.used else 0.0

    @property
    def external_fragmentation(self):
        """The share of the free bytes that do not lie in the largest free block."""
        return 1 - self.largest_free / self.free if self.free else 0.0

    @property
    def utilisation(self):
        """Payload by heap, as it is now."""
        return self.payload / self.heap if self.heap else 0.0

    @property
    def peak_utilisation(self):
        """Peak payload by peak heap, as the driver of the malloc lab has it; only of a heap with accounts=True."""
        return self.peak_payload / self.peak_heap if self.peak_heap else 0.0


class Heap(HeapWord):
    """A heap of a process. It may go to other tasks of the process: `task.malloc_heap(heap)` is the same heap for another thread."""

    def __init__(self, task, address, kind, accounts):
        super().__init__(address, kind, accounts)
        self.task = task

    def __getstate__(self):
        return {**self.__dict__, "task": None}

    def __repr__(self):
        return f"<{self.kind} heap at {self.address:#x}>"

    def _call(self, function, *args):
        if self.task is None:
            raise TypeError(f"{self!r} came from another task: task.malloc_heap(heap) is the heap for this one")
        return self.task.call(function, self, *args)

    def _call_kind(self, function, *args):
        """Call a function of the kind, which knows the heap by its address."""
        if self.task is None:
            raise TypeError(f"{self!r} came from another task: task.malloc_heap(heap) is the heap for this one")
        return self.task.call(function, self.address, *args)

    @staticmethod
    def _size(call, name, value):
        """A size as compiled code takes it; as in C, -1 is the largest one."""
        return min(Size().take(call, name, value), INT_MOST)

    @staticmethod
    def _block(call, value):
        """The address of a block, where None is 0."""
        address = 0 if value is None else Address().take(call, "block", value)
        return address - (1 << 64) if address > INT_MOST else address

    def _word(self, *offsets):
        return [int(word) for word in self.task.load([self.address + at for at in offsets], np.int64)]

    # -- what a C library has

    def malloc(self, nbytes):
        """A block of `nbytes` bytes: its address, or None: there is no more, or 0 bytes were asked for."""
        return int(self._call(calls.call_malloc, self._size("malloc", "nbytes", nbytes))) or None

    def calloc(self, number, nbytes):
        """A block for `number` things of `nbytes` bytes, zeroed: its address, or None."""
        number, nbytes = self._size("calloc", "number", number), self._size("calloc", "nbytes", nbytes)
        return int(self._call(calls.call_calloc, number, nbytes)) or None

    def realloc(self, block, nbytes):
        """The block with another size: its address, or None, and the block stays. None as a block is malloc, 0 bytes is free."""
        block, nbytes = self._block("realloc", block), self._size("realloc", "nbytes", nbytes)
        return int(self._call(calls.call_realloc, block, nbytes)) or None

    def aligned_alloc(self, alignment, nbytes):
        """A block at a multiple of `alignment`: its address, or None."""
        power = self._size("aligned_alloc", "alignment", alignment)
        if power < 1 or power & (power - 1):
            raise ValueError(f"aligned_alloc: alignment is {shown(alignment)}, must be a power of two")
        return int(self._call(calls.call_aligned_alloc, power, self._size("aligned_alloc", "nbytes", nbytes))) or None

    def free(self, block):
        """Give a block back. HeapError: it is none."""
        self._call(calls.call_free, self._block("free", block))

    def usable_size(self, block):
        """How many bytes a block has room for; of None 0."""
        return int(self._call(calls.call_usable_size, self._block("usable_size", block)))

    def trim(self, keep=0):
        """Give what is free at the end of the heap back to the kernel, but for `keep` bytes: how many bytes."""
        keep = min(self._size("trim", "keep", keep), NEVER)
        return int(self._locked(lambda: self._call_kind(kind_module(self.kind).trim, keep)))

    def flush(self):
        """Give what this thread's cache holds back to the heap, as a thread does that ends; only ptmalloc has caches."""
        if hasattr(kind_module(self.kind), "flush"):
            self._call_kind(kind_module(self.kind).flush)

    # -- what it looks like

    def _locked(self, look):
        """Run `look` while no thread changes the heap."""
        of = kind_module(self.kind)
        take, give = getattr(of, "lock_all", lock), getattr(of, "unlock_all", unlock)
        self._call_kind(take)
        try:
            return look()
        finally:
            self._call_kind(give)

    def _look(self):
        """The rows of all blocks, and of those with mappings of their own."""
        of = kind_module(self.kind)
        return self._locked(lambda: (self._call_kind(of.blocks), self._call(calls.call_big_blocks)))

    def _look_at_all(self):
        """The same, and the entries of the lists between them."""
        of = kind_module(self.kind)
        return self._locked(
            lambda: (self._call_kind(of.blocks), self._call_kind(of.lists), self._call(calls.call_big_blocks))
        )

    def blocks(self):
        """(address, size, state, bytes asked for) of each block, in the order of addresses; state: "free", "used" …"""
        rows, big = self._look()
        return [
            (int(row[ADDRESS]), int(row[BYTES]), STATES.get(int(row[STATE]), "unknown"), int(row[ASKED]))
            for row in (*rows, *big)
        ]

    def check(self):
        """Walk everything: how many blocks there are. HeapError: tags disagree, two free neighbours, a free block in no list or in
        two, a list entry that is not free.
        """
        of = kind_module(self.kind)
        for looks_left in range(LOOKS if hasattr(of, "flush") else 1, 0, -1):
            rows, lists, big = self._look_at_all()
            try:
                return check_rows(rows, lists, getattr(of, "RULES", ())) + len(big)
            except HeapError:  # other threads' caches, which no lock holds, may change while they are looked at
                if looks_left == 1:
                    raise
        return 0

    def stats(self):
        """The heap in figures: Stats. HeapError: something has written over a header."""
        rows, big = self._look()
        check_headers(rows)
        rows = np.concatenate([rows, big])
        (heap, peak), (most,) = self.held(), self._word(PEAK_PAYLOAD)
        used = rows[(rows[:, STATE] == USED) | (rows[:, STATE] == BIG)]
        free = rows[(rows[:, STATE] == FREE) | (rows[:, STATE] == TOP_CHUNK)][:, BYTES]
        return Stats(
            payload=int(used[:, ASKED].sum()),
            used=int(used[:, BYTES].sum()),
            free=int(free.sum()),
            heap=heap,
            peak_heap=peak,
            blocks=len(used),
            free_blocks=len(free),
            largest_free=int(free.max(initial=0)),
            peak_payload=most,
        )

    def map(self, width=64, lines=16):
        """A picture of the heap: each character stands for the same number of bytes. HeapError: as of `stats`."""
        width, lines = (max(Int().take("map", name, n), 1) for name, n in (("width", width), ("lines", lines)))
        rows, _ = self._look()
        check_headers(rows)
        return draw(rows, width, lines)

    def held(self):
        """(bytes that the heap holds from the kernel, the most that it has held)"""
        start, end, big, peak = self._word(START, END, BIG_BYTES, PEAK)
        of = kind_module(self.kind)
        more, more_peak = self._call_kind(of.held) if hasattr(of, "held") else (0, 0)
        return end - start + big + more, peak + more_peak


def _bytes(name, value, least=0, most=None):
    """A size in an option; None: it is beyond every block."""
    return NEVER if value is None else parse_size(value, f"malloc_heap: {name}", least=least, most=most)


def new_heap(task, kind, **options):
    """A new heap of a task's process; a Heap of another thread is the same heap for this task.

    Options: `fit`, `order` … (SETTINGS of the kind), `source` ("brk" or "mmap"), `limit` (bytes that a heap by mmap reserves), `growth`
    (the least by which it grows), `mmap_threshold` (from where on a block gets a mapping of its own; None: never),
    `trim_threshold`, `node` (where its memory shall be), `accounts` (keep the sum of what is asked for, and its peak).
    """
    if isinstance(kind, HeapWord):
        if options:
            raise TypeError(f"malloc_heap: {kind!r} is there already and takes no option {', '.join(sorted(options))}")
        return Heap(task, kind.address, kind.kind, kind.accounts)
    if not isinstance(kind, str):
        raise TypeError(f"malloc_heap: kind must be one of {', '.join(KINDS)} or a heap, not {shown(kind)}")
    if kind not in KINDS:
        raise ValueError(f"malloc_heap: kind is {shown(kind)}, must be one of {', '.join(KINDS)}")
    return _make(task, kind, *settings_of(kind, options))


def settings_of(kind, options):
    """(the control words of a heap with these options, all options). TypeError, ValueError: there is no such heap."""
    of, options = kind_module(kind), dict(options)
    policy = _policy(kind, of.SETTINGS, options)
    defaults = {"source": "brk", "limit": None, "growth": 4096, "mmap_threshold": None}
    chosen = {**defaults, "node": None, "accounts": False, **getattr(of, "DEFAULTS", {})}
    if wrong := options.keys() - chosen.keys():
        known = ", ".join((*of.SETTINGS, *chosen))
        raise TypeError(f"malloc_heap: a heap of kind {kind} has no option {', '.join(sorted(wrong))}, only {known}")
    chosen.update(options)
    if chosen["source"] not in tuple(SOURCES):
        raise ValueError(f"malloc_heap: source is {shown(chosen['source'])}, must be brk or mmap")
    if chosen["source"] == "brk" and chosen["limit"] is not None:
        raise ValueError(f"malloc_heap: limit is {shown(chosen['limit'])}, which only a heap with source='mmap' has")
    Truth("True or False").take("malloc_heap", "accounts", chosen["accounts"])
    chosen["limit"] = _bytes("limit", LIMIT_BYTES if chosen["limit"] is None else chosen["limit"], least=PAGE_SIZE)
    return _words(kind, chosen, policy), chosen


def _policy(kind, settings, options):
    """The number of the choice of a kind's own option; takes it from the options."""
    for name, choices in settings.items():
        choice = options.pop(name, choices[0])
        if choice not in choices:
            raise ValueError(
                f"malloc_heap: {name} is {shown(choice)}, must be one of {', '.join(choices)} (kind {kind})"
            )
        return choices.index(choice)
    return 0


def _words(kind, chosen, policy):
    """The settings of a heap, as its control words have them."""
    growth = _bytes("growth", chosen["growth"], most=MOST_GROWTH)
    return {
        KIND: KINDS.index(kind),
        SOURCE: SOURCES[chosen["source"]],
        GROWTH: max(growth + 15 & -16, LEAST_GROWTH) if growth else 0,
        NODE: -1,
        MMAP_THRESHOLD: _bytes("mmap_threshold", chosen["mmap_threshold"], least=1),
        TRIM_THRESHOLD: _bytes("trim_threshold", chosen.get("trim_threshold")),
        POLICY: policy,
    }


def within(chosen):
    """The options that bound what a heap may take at first."""
    limit = f"limit {chosen['limit']}, " if chosen["source"] == "mmap" else ""
    return f" ({limit}growth {chosen['growth']})"


def _make(task, kind, words, chosen):
    """Lay out the control words, then let the kind make its empty heap."""
    areas = [task.mmap(CONTROL_BYTES)]
    try:
        if chosen["source"] == "brk":
            start, end = (task.brk() + PAGE_SIZE - 1) & -PAGE_SIZE, 0
            task.brk(start)
        else:  # nothing is promised for it: it costs what is used
            areas += [task.mmap(chosen["limit"], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)]
            start, end = areas[1].addr, areas[1].addr + areas[1].nbytes
        if chosen["node"] is not None:
            words[NODE] = Int("a node's number").take("malloc_heap", "node", chosen["node"])
            for area in areas:
                task.mbind(area.addr, area.nbytes, MPOL_BIND, words[NODE])
        words |= {START: start, END: start, LIMIT: end}
        address = areas[0].addr
        task.store([address + at for at in words], np.array(list(words.values()), np.int64))
        if not task.call(kind_module(kind).setup, address):
            raise OSError(
                errno.ENOMEM, f"malloc_heap: there is no memory for an empty heap of kind {kind}{within(chosen)}"
            )
    except BaseException:
        for area in areas:
            area.munmap()
        raise
    return Heap(task, address, kind, bool(chosen["accounts"]))
