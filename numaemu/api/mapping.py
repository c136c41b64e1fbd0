"""A mapped range of a task's memory, and arrays in it whose every access is an emulated one."""

import numpy as np

from numaemu.api.arguments import Int, Offset, Values, loadable
from numaemu.api.words import LOAD, STORE, word_kind
from numaemu.spec.param import PAGE_SIZE
from numaemu.spec.units import shown
from numaemu.uapi import MS_SYNC

OFFSET, LENGTH, VALUES = Offset(), Int(), Values("numbers, or an array of them")


class Mapping:
    """A mapped range: addr and nbytes."""

    stays_here = (
        "pass its address and size (mapping.addr, mapping.nbytes) as arguments, and make Mapping(task, addr, nbytes) "
        "of them there, or task.load and task.store; a task that is forked or cloned from its own has the same memory"
    )

    def __init__(self, task, addr, nbytes):
        self.task, self.addr, self.nbytes = task, addr, nbytes

    def __repr__(self):
        return f"<mapping {self.addr:#x}-{self.addr + self.nbytes:#x}>"

    def array(self, dtype=np.uint64, offset=0, length=None):
        """The range as an array of `dtype`; every element access is an emulated access."""
        dtype, offset = loadable(dtype), OFFSET.take("array", "offset", offset)
        fits = (self.nbytes - offset) // dtype.itemsize
        length = fits if length is None else LENGTH.take("array", "length", length)
        if not 0 <= offset <= self.nbytes or not 0 <= length <= fits:
            raise ValueError(
                f"array: {length} elements of {dtype.itemsize} bytes from byte {offset} on do not fit into the "
                f"{self.nbytes} bytes of the mapping"
            )
        return VirtualArray(self.task, self.addr + offset, dtype, length)

    def touch(self, write=True, stride=PAGE_SIZE):
        """One access per page."""
        self.task.touch(self.addr, self.nbytes, stride, write)
        return self

    def pages(self):
        """The addresses of the pages."""
        return np.arange(self.addr, self.addr + self.nbytes, PAGE_SIZE, dtype=np.uint64)

    def nodes(self):
        """The node of each page, or -errno where there is none."""
        return np.asarray(self.task.move_pages(self.pages()))

    def msync(self, flags=MS_SYNC):
        """msync(2) of the whole range."""
        self.task.msync(self.addr, self.nbytes, flags)

    def munmap(self):
        """Unmap the whole range."""
        self.task.munmap(self.addr, self.nbytes)


class VirtualArray:
    """A one-dimensional array in emulated memory: a[i], a[i:j], a[index_array], and the same to store."""

    stays_here = Mapping.stays_here + "; its values travel as array[:]"

    def __init__(self, task, addr, dtype, length):
        self.task, self.addr, self.dtype, self.length = task, addr, dtype, length
        self.kind = word_kind(dtype)

    def __len__(self):
        return self.length

    def __repr__(self):
        return f"<array of {self.length} {self.dtype} at {self.addr:#x}>"

    def addresses(self, index=slice(None)):
        """Virtual addresses of the elements that `index` picks."""
        if isinstance(index, slice):
            picked = np.arange(*index.indices(self.length), dtype=np.int64)
        else:
            picked = np.asarray(index)
            if picked.dtype.kind not in "iub" and picked.size:
                raise TypeError(f"array: index must be an integer, a slice or an array of integers, not {shown(index)}")
            if picked.dtype == bool:
                picked = np.flatnonzero(picked)
            if picked.size and (picked.min() < -self.length or picked.max() >= self.length):
                bad = picked.max() if picked.max() >= self.length else picked.min()
                raise IndexError(f"index {bad} of an array of {self.length} elements")
            picked = np.where(picked < 0, picked + self.length, picked)
        return np.uint64(self.addr) + picked.astype(np.uint64) * np.uint64(self.dtype.itemsize)

    def _word_address(self, index):
        """The address of the element at an index of Python's; None: it has to be looked at."""
        if type(index) is int and -self.length <= index < self.length:
            return self.addr + (index if index >= 0 else index + self.length) * self.kind.nbytes
        return None

    def __getitem__(self, index):
        if (address := self._word_address(index)) is not None:
            kind = self.kind
            return kind.value(self.task._run("word", (address, kind.nbytes, LOAD, 0)))
        where = self.addresses(index)
        values = self.task.load(np.atleast_1d(where), self.dtype)
        return values if where.ndim else values[0]

    def __setitem__(self, index, values):
        if (address := self._word_address(index)) is not None and (bits := self.kind.bits(values)) is not None:
            self.task._run("word", (address, self.kind.nbytes, STORE, bits))
            return
        where = np.atleast_1d(self.addresses(index))
        values = VALUES.take("array", "value", values).astype(self.dtype)
        if values.size != 1:
            values = np.broadcast_to(values, where.shape)
        self.task.store(where, values)

    def __array__(self, dtype=None, copy=None):
        values = self[:]
        return values if dtype is None else values.astype(dtype)
