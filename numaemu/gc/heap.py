"""What a workload holds of a garbage-collected heap: the heap, its mutators (threads), handles of objects."""

import contextlib

import numpy as np

from numaemu.gc import calls
from numaemu.gc.calls import MutatorWord
from numaemu.gc.collectors import COLLECTORS, collector_module
from numaemu.gc.generational import CARDS, CARDS_BYTES_SHIFT, FIRSTS, FIRSTS_BYTES_SHIFT, SURVIVOR
from numaemu.gc.log import collection
from numaemu.gc.records import RECORD, RECORDS
from numaemu.gc.space import (
    BUFFER,
    COLLECTIONS,
    CONTROL_BYTES,
    END,
    FRAME,
    HANDLES,
    HANDLES_END,
    HEAP,
    LOCAL,
    LOG,
    MOST_THREADS,
    RECORD_BYTES,
    ROOTS,
    ROOTS_END,
    STACK,
    STACK_END,
    START,
    register,
)
from numaemu.gc.verify import BYTES, COUNT, GARBAGE
from numaemu.spec.units import KiB, parse_size, shown
from numaemu.uapi import MPOL_BIND

HANDLES_BYTES = 64 * KiB
RECORD_WORDS = 25


class Handle:
    """An object that a workload holds: a root of its own, which follows the object when that moves."""

    def __init__(self, mutator, slot):
        self.mutator, self.slot = mutator, slot

    def __repr__(self):
        return f"<object at {self.address:#x}>"

    @property
    def address(self):
        """Where the object is now."""
        return int(self.mutator.task.load([self.slot], np.int64)[0])

    def ref(self, i):
        """A handle of what reference `i` leads to, or None."""
        slot = self.mutator._call(calls.call_get_ref, self.slot, i)
        return Handle(self.mutator, slot) if slot else None

    def set_ref(self, i, other):
        """Let reference `i` lead to the object of another handle, or to None."""
        self.mutator._call(calls.call_set_ref, self.slot, i, 0 if other is None else other.slot)

    def value(self, i):
        """Field `i`, counted with the references, as a value."""
        return self.mutator._call(calls.call_value, self.slot, i, False, 0)

    def set_value(self, i, value):
        """Store a value in field `i`."""
        self.mutator._call(calls.call_value, self.slot, i, True, value)

    def drop(self):
        """The handle ends; the object lives as long as others lead to it."""
        self.mutator._call(calls.call_drop, self.slot)
        self.slot = 0


class Mutator(MutatorWord):
    """A thread that uses a heap. Passed to a user kernel it stands for the thread's record."""

    def __init__(self, heap, task, address):
        super().__init__(address, heap.collector)
        self.heap, self.task = heap, task

    def __getstate__(self):
        return {"address": self.address, "collector": self.collector}

    def _call(self, function, *args):
        return self.task.call(function, self, *args)

    def run(self, kernel, *args):
        """Run kernel(cpu, mutator, *args), a user kernel that may call `new`, `set_ref` and so on."""
        self._call(calls.call_enter)
        try:
            return self._call(kernel, *args)
        finally:
            with contextlib.suppress(OSError):  # the task may have been killed
                self._call(calls.call_leave)

    def push_frame(self, n):
        """n more roots on the thread's stack, for user kernels to come."""
        if not self.run(calls.push_frame, n):
            raise MemoryError(f"gc: the stack of roots has no room for {n} more")

    def pop_frame(self, n):
        """The n newest roots go."""
        self.run(calls.pop_frame, n)

    def new(self, refs=0, values=0, kind=0):
        """A new object with so many references and values, all 0: its Handle. MemoryError: there is no room."""
        slot = self._call(calls.call_new, kind, refs, values)
        if not slot:
            raise MemoryError(f"gc: no room for an object of {refs} references and {values} values ({self.collector})")
        return Handle(self, slot)

    def collect(self):
        """Collect everything now."""
        self._call(calls.call_collect)

    def verify(self):
        """Stop the world and look at everything: {objects, bytes, garbage} that are reachable, or not. GcError: something is wrong."""
        found = self._call(calls.call_survey)
        return {"objects": int(found[COUNT]), "bytes": int(found[BYTES]), "garbage": int(found[GARBAGE])}


class Heap:
    """A garbage-collected heap of a process. It may go to other tasks of the process, which attach themselves."""

    def __init__(self, address, collector, nbytes):
        self.address, self.collector, self.nbytes = address, collector, nbytes

    def __repr__(self):
        return f"<{self.collector} heap of {self.nbytes} bytes at {self.address:#x}>"

    def attach(self, task, stack="64KiB"):
        """Let a task of the process use the heap: a Mutator with a stack of roots of so many bytes."""
        nbytes = RECORD_BYTES + parse_size(stack, "attach: stack")
        record = task.mmap(nbytes)
        roots = record.addr + RECORD_BYTES
        words = {HEAP: self.address, FRAME: roots, ROOTS: roots, ROOTS_END: record.addr + nbytes}
        task.store([record.addr + at for at in words], np.array(list(words.values()), np.int64))
        if not task.call(register, self.address, record.addr):
            raise ValueError(f"attach: {MOST_THREADS} threads use the heap, which are all it can have")
        return Mutator(self, task, record.addr)

    def used(self, task):
        """Bytes that objects and threads' buffers take."""
        return task.call(collector_module(self.collector).used, self.address)

    def bounds(self, task):
        """(where the memory of its objects begins, where it ends)"""
        return tuple(int(word) for word in task.load([self.address + START, self.address + END], np.int64))

    def collections(self, task):
        """The newest collections, as a list of Collection."""
        number, log = (int(word) for word in task.load([self.address + COLLECTIONS, self.address + LOG], np.int64))
        newest = range(max(0, number - RECORDS), number)
        places = [log + RECORD * (i % RECORDS) + 8 * word for i in newest for word in range(RECORD_WORDS)]
        rows = task.load(places, np.int64).reshape(-1, RECORD_WORDS) if places else []
        return [collection(i, words) for i, words in zip(newest, rows, strict=True)]

    def log(self, task, details=False):
        """The newest collections, in the lines of HotSpot's unified log."""
        return "\n".join(line for each in self.collections(task) for line in each.lines(details))


def new_heap(task, collector, size="16MiB", *, tlab="16KiB", young=None, node=None, local=False):
    """A heap of so many bytes in the process of a task.

    `tlab`: the bytes that a thread takes at a time; `young`: the size of the young generation (generational; else a third of the heap);
    `node`: where its memory shall be; `local`: the pages of a buffer come from the node of its thread, each time that one takes it,
    which costs a system call and page faults.
    """
    if not isinstance(collector, str):
        raise TypeError(f"gc_heap: collector must be one of {', '.join(COLLECTORS)}, not {shown(collector)}")
    if not isinstance(size, (int, str)):
        raise TypeError(f"gc_heap: size must be bytes or text like 16MiB, not {shown(size)}")
    if collector not in COLLECTORS:
        raise ValueError(f"gc_heap: collector is {shown(collector)}, must be one of {', '.join(COLLECTORS)}")
    nbytes, buffer = (
        parse_size(size, "gc_heap: size", least=64 * KiB) & -4096,
        parse_size(tlab, "gc_heap: tlab", least=64) & -8,
    )
    if local and node is not None:
        raise ValueError(f"gc_heap: node is {node} and local is true, must be one of them")
    young = 0 if young is None else parse_size(young, "gc_heap: young", least=16 * KiB, most=nbytes // 2)
    parts = {"space": nbytes, "stack": nbytes // 2, "control": CONTROL_BYTES, "log": HANDLES_BYTES + RECORD * RECORDS}
    areas = {name: task.mmap(length) for name, length in parts.items()}
    if node is not None:
        for area in areas.values():
            task.mbind(area.addr, area.nbytes, MPOL_BIND, node)
    heap, space, log = areas["control"].addr, areas["space"].addr, areas["log"].addr
    words = {
        START: space,
        END: space + nbytes,
        BUFFER: buffer,
        STACK: areas["stack"].addr,
        STACK_END: areas["stack"].addr + nbytes // 2,
        HANDLES: log,
        HANDLES_END: log,
        LOG: log + HANDLES_BYTES,
        LOCAL: int(local),
    }
    if collector == "generational":
        words |= {SURVIVOR: young, CARDS: task.mmap((nbytes >> CARDS_BYTES_SHIFT) + 8).addr}
        words |= {FIRSTS: task.mmap((nbytes >> FIRSTS_BYTES_SHIFT) + 8).addr}
    task.store([heap + at for at in words], np.array(list(words.values()), np.int64))
    task.call(collector_module(collector).setup, heap)
    return Heap(heap, collector, nbytes)
