"""Files as a workload holds them: open files of a task, and what a seeded file contains."""

import errno
import os

import numpy as np

from numaemu.spec.units import shown
from numaemu.uapi import SEEK_CUR, SEEK_SET

NAME_BYTES = 264  # of a path, its end included: "/memfd:" and 249 bytes more fit
READ_CHUNK = 64 << 10  # bytes of a read(2) of `read_through`


def seeded_bytes(seed, offset, nbytes):
    """What a file made with `seed` contains from byte `offset` on, until somebody writes to it: splitmix64."""
    first, last = offset // 8, (offset + nbytes + 7) // 8
    with np.errstate(over="ignore"):
        z = (np.uint64(seed) + np.arange(first + 1, last + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    data = (z ^ (z >> np.uint64(31))).tobytes()
    return data[offset - first * 8 :][:nbytes]


def name_words(path):
    """A path as the kernel takes it: an array of NAME_BYTES. What no file can be called: ENOENT, ENAMETOOLONG."""
    raw = os.fsencode(path)
    if not raw.startswith(b"/") or b"\0" in raw:
        raise OSError(errno.ENOENT, f"path {shown(path)} must begin with /", path)
    if len(raw) >= NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"a path of {len(raw)} bytes, it may have {NAME_BYTES - 1}", path)
    return np.frombuffer(raw.ljust(NAME_BYTES, b"\0"), np.uint8)


class File:
    """An open file of a task, closed with the task's process at the latest. `task.mmap(file=…)` maps it. A child has it, too,
    with the same position: `child.fdopen(file)`.
    """

    stays_here = "pass its descriptor (file.fd) to a task that has inherited it, which calls task.fdopen, or its path"

    def __init__(self, task, fd, path):
        self.task, self.fd, self.path = task, fd, path

    def __repr__(self):
        return f"<file {self.path} of task {self.task.pid}>"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def read(self, nbytes=None, offset=None, into=None):
        """The next bytes, up to the end without `nbytes`; from `offset` as pread(2) does. With `into`, an emulated
        address, they are written there and their number is the answer.
        """
        data = self.task._op("file_read", self.fd, offset, nbytes)
        if into is None:
            return data
        self.task.write(into, data)
        return len(data)

    def pread(self, nbytes, offset):
        """pread(2)"""
        return self.read(nbytes, offset)

    def read_through(self, nbytes=None, chunk=READ_CHUNK):
        """Read the next bytes in pieces of `chunk` and throw them away: how many there were."""
        return self.task._op("file_read_through", self.fd, self.size if nbytes is None else nbytes, chunk)

    def write(self, data, offset=None):
        """Write bytes, at `offset` as pwrite(2) does; how many."""
        return self.task._op("file_write", self.fd, offset, data)

    def pwrite(self, data, offset):
        """pwrite(2)"""
        return self.write(data, offset)

    def seek(self, offset, whence=SEEK_SET):
        """lseek(2): the new position."""
        return self.task._op("file_seek", self.fd, offset, whence)

    def tell(self):
        """The position."""
        return self.seek(0, SEEK_CUR)

    @property
    def size(self):
        """Bytes."""
        return self.task._op("file_size", self.fd)

    def fsync(self):
        """Write what is dirty to the disk, and wait for it."""
        self.task._op("file_fsync", self.fd)

    def fadvise(self, offset, length, advice):
        """posix_fadvise(2): what this file, or `length` bytes of it (0: to its end), will be needed for: POSIX_FADV_*."""
        self.task._op("file_fadvise", self.fd, offset, length, advice)

    def truncate(self, size):
        """ftruncate(2)"""
        self.task._op("file_truncate", self.fd, size)

    def dup(self, fd=None):
        """dup(2), or dup2(2) to descriptor `fd`: another File, with the same position."""
        return File(self.task, self.task._op("dup", self.fd, fd), self.path)

    def close(self):
        """close(2)"""
        self.task._op("file_close", self.fd)
