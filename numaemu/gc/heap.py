"""What a workload holds of a garbage-collected heap: the heap, its mutators (threads), handles of objects."""

import contextlib

import numpy as np

from numaemu.api.arguments import INT_LEAST, INT_MOST, WORD_MOST, Int, Truth
from numaemu.gc import calls
from numaemu.gc.calls import MutatorWord
from numaemu.gc.collectors import COLLECTORS, collector_module
from numaemu.gc.generational import CARDS, CARDS_BYTES_SHIFT, FIRSTS, FIRSTS_BYTES_SHIFT, SURVIVOR
from numaemu.gc.log import collection
from numaemu.gc.objects import FIELD_MASK, FIELDS, MOST_FIELDS, REFS
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
from numaemu.spec.param import PAGE_SIZE
from numaemu.spec.units import KiB, parse_size, shown
from numaemu.uapi import MPOL_BIND

HANDLES_BYTES = 64 * KiB
RECORD_WORDS = 25


class Handle:
    """An object that a workload holds: a root of its own, which follows the object when that moves.

    The references of an object have the numbers from 0 on, its values those behind. A handle is its thread's: `mutator.hold` makes
    another thread's of it.
    """

    def __init__(self, mutator, slot, refs, fields):
        self.mutator, self.slot, self.refs, self.fields = mutator, slot, refs, fields

    def __getstate__(self):
        return {**self.__dict__, "mutator": None}

    def __repr__(self):
        return f"<object at {self.address:#x}>" if self.slot and self.mutator else "<object of a handle that is gone>"

    def _look(self):
        """Complain unless the handle can be used."""
        if self.mutator is None:
            raise TypeError("gc: the handle came from another thread: mutator.hold(handle) is one for this thread")
        if not self.slot:
            raise ValueError("gc: the handle was dropped")

    def _call(self, function, *args):
        self._look()
        return self.mutator._call(function, *args)

    def _field(self, what, i, first, end):
        """The number of a field of one sort. IndexError: the object has none of this number."""
        i = Int("a field's number").take(what, "i", i)
        if not first <= i < end:
            have = f"{first} to {end - 1}" if first < end else "none"
            raise IndexError(f"gc: {what} {i} of an object, which has {have}")
        return i

    @property
    def address(self):
        """Where the object is now."""
        self._look()
        return int(self.mutator.task.load([self.slot], np.int64)[0])

    def ref(self, i):
        """A handle of what reference `i` leads to, or None."""
        i = self._field("reference", i, 0, self.refs)
        return self.mutator._handle(self._call(calls.call_get_ref, self.slot, i))

    def set_ref(self, i, other):
        """Let reference `i` lead to the object of another handle, or to None."""
        i = self._field("reference", i, 0, self.refs)
        if other is not None and not isinstance(other, Handle):
            raise TypeError(f"gc: a reference leads to the object of a handle or to None, not to {shown(other)}")
        if other is not None:
            other._look()
            if other.mutator.heap.address != self.mutator.heap.address:
                raise ValueError(f"gc: the object of {other.mutator.heap!r} is none of {self.mutator.heap!r}")
        self._call(calls.call_set_ref, self.slot, i, 0 if other is None else other.slot)

    def value(self, i):
        """Field `i`, counted with the references, as a value."""
        i = self._field("value", i, self.refs, self.fields)
        return int(self._call(calls.call_value, self.slot, i, False, 0))

    def set_value(self, i, value):
        """Store a value of 64 bits in field `i`."""
        i = self._field("value", i, self.refs, self.fields)
        value = Int().index("set_value", "value", value)
        if not INT_LEAST <= value <= WORD_MOST:
            raise OverflowError(f"gc: value {shown(value)} has more than 64 bits")
        self._call(calls.call_value, self.slot, i, True, value - (1 << 64) if value > INT_MOST else value)

    def drop(self):
        """The handle ends; the object lives as long as others lead to it."""
        self._call(calls.call_drop, self.slot)
        self.slot = 0


class Mutator(MutatorWord):
    """A thread that uses a heap. Passed to a user kernel it stands for the thread's record."""

    def __init__(self, heap, task, address, nbytes):
        super().__init__(address, heap.collector)
        self.heap, self.task, self.nbytes = heap, task, nbytes

    def __getstate__(self):
        return {"address": self.address, "collector": self.collector}

    def _call(self, function, *args):
        if getattr(self, "task", None) is None:
            raise TypeError("gc: the mutator is none of this thread: heap.attach(task) makes one")
        try:
            return self.task.call(function, self, *args)
        except Exception:  # in the middle of something: nobody shall wait for this thread
            with contextlib.suppress(Exception):  # the task may have been killed
                self.task.call(calls.call_abandon, self)
            raise

    def _handle(self, found):
        """The handle for a slot and the header of its object; None: there is no object."""
        slot, header = (int(word) for word in found)
        if slot < 0:
            raise MemoryError(f"gc: all {HANDLES_BYTES // 8} handles are in use; drop() gives one back")
        return Handle(self, slot, header >> REFS, header >> FIELDS & FIELD_MASK) if slot else None

    def run(self, kernel, *args):
        """Run kernel(cpu, mutator, *args), a user kernel that may call `new`, `set_ref` and so on. If it raises, its roots go."""
        self._call(calls.call_enter)
        try:
            result = self._call(kernel, *args)
        except Exception:
            with contextlib.suppress(Exception):  # the task may have been killed
                self.task.call(calls.call_unwind, self)
            raise
        self._call(calls.call_leave)
        return result

    def push_frame(self, n):
        """n more roots on the thread's stack, for user kernels to come."""
        n = Int("a number of roots").take("push_frame", "n", n)
        if n < 0:
            raise ValueError(f"push_frame: n is {n}, must not be negative")
        if not self.run(calls.push_frame, n):
            raise MemoryError(f"gc: the stack of roots has no room for {n} more")

    def pop_frame(self, n):
        """The n newest roots go. GcError: there are fewer."""
        self.run(calls.pop_frame, Int("a number of roots").take("pop_frame", "n", n))

    def new(self, refs=0, values=0, kind=0):
        """A new object with so many references and values, all 0: its Handle. MemoryError: there is no room."""
        refs, values, kind = (
            Int().take("new", name, n) for name, n in (("refs", refs), ("values", values), ("kind", kind))
        )
        for name, n, most in (("refs", refs, MOST_FIELDS), ("values", values, MOST_FIELDS - refs), ("kind", kind, 255)):
            if not 0 <= n <= most:
                raise ValueError(f"new: {name} is {n}, must be 0 to {most}")
        slot = self._call(calls.call_new, kind, refs, values)
        if not slot:
            raise MemoryError(f"gc: no room for an object of {refs} references and {values} values ({self.collector})")
        return self._handle((slot, refs << REFS | (refs + values) << FIELDS))

    def hold(self, handle):
        """A handle of this thread for the object of another thread's handle."""
        if not isinstance(handle, Handle) or not handle.slot:
            raise TypeError(f"hold: handle must be one that was not dropped, not {shown(handle)}")
        slot, header = self._call(calls.call_hold, handle.slot)
        return self._handle((slot or -1, header))

    def detach(self):
        """The thread uses the heap no more: its roots are gone, its handles stay. A thread that ends is detached by the next collection."""
        self._call(calls.call_detach)
        self.task.munmap(self.address & -PAGE_SIZE, self.nbytes)
        self.task = None

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
        nbytes = RECORD_BYTES + parse_size(stack, "attach: stack", least=8) & -8
        record = task.mmap(nbytes)
        roots = record.addr + RECORD_BYTES
        words = {HEAP: self.address, FRAME: roots, ROOTS: roots, ROOTS_END: record.addr + nbytes}
        task.store([record.addr + at for at in words], np.array(list(words.values()), np.int64))
        if not task.call(register, self.address, record.addr):
            record.munmap()
            raise ValueError(
                f"attach: {MOST_THREADS} threads use the heap, which are all it can have; a collection detaches those that have ended"
            )
        return Mutator(self, task, record.addr, nbytes)

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


def new_heap(task, collector, size="16MiB", *, tlab="16KiB", young=None, node=None, local=False, **unknown):
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
    nbytes = parse_size(size, "gc_heap: size", least=64 * KiB) & -PAGE_SIZE
    buffer = parse_size(tlab, "gc_heap: tlab", least=64) & -8
    if unknown:
        raise TypeError(f"gc_heap: a heap has no option {', '.join(unknown)}")
    if young is not None and collector != "generational":
        raise ValueError(f"gc_heap: young is {shown(young)}, which only a generational heap has ({collector})")
    local = Truth("True or False").take("gc_heap", "local", local)
    node = None if node is None else Int("a node's number").take("gc_heap", "node", node)
    if local and node is not None:
        raise ValueError(f"gc_heap: node is {node} and local is true, must be one of them")
    young = 0 if young is None else parse_size(young, "gc_heap: young", least=16 * KiB, most=nbytes // 2)
    parts = {"space": nbytes, "stack": nbytes // 2, "control": CONTROL_BYTES, "log": HANDLES_BYTES + RECORD * RECORDS}
    if collector == "generational":
        parts |= {"cards": (nbytes >> CARDS_BYTES_SHIFT) + 8, "firsts": (nbytes >> FIRSTS_BYTES_SHIFT) + 8}
    areas = {}
    try:
        for name, length in parts.items():
            areas[name] = area = task.mmap(length)
            if node is not None:
                task.mbind(area.addr, area.nbytes, MPOL_BIND, node)
        return _lay_out(
            task, collector, {name: area.addr for name, area in areas.items()}, nbytes, (buffer, young, local)
        )
    except BaseException:
        for area in areas.values():
            area.munmap()
        raise


def _lay_out(task, collector, areas, nbytes, settings):
    """Write the words of a heap whose parts lie at these addresses."""
    heap, space, log = areas["control"], areas["space"], areas["log"]
    buffer, young, local = settings
    words = {
        START: space,
        END: space + nbytes,
        BUFFER: buffer,
        STACK: areas["stack"],
        STACK_END: areas["stack"] + nbytes // 2,
        HANDLES: log,
        HANDLES_END: log,
        LOG: log + HANDLES_BYTES,
        LOCAL: int(local),
    }
    if collector == "generational":
        words |= {SURVIVOR: young, CARDS: areas["cards"], FIRSTS: areas["firsts"]}
    task.store([heap + at for at in words], np.array(list(words.values()), np.int64))
    task.call(collector_module(collector).setup, heap)
    return Heap(heap, collector, nbytes)
