"""What a CPU does with files: for the tasks on it, and for the driver, which has no CPU of its own."""

import errno
import os

import numpy as np

from numaemu.api.files import name_words
from numaemu.kernel.fs.inode import inode_name, inode_of
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_sizelog
from numaemu.kernel.mm.huge.hugetlb_resize import set_max_huge_pages
from numaemu.kernel.mm.reclaim.page_idle import page_idle_bitmap_read, page_idle_bitmap_write
from numaemu.kernel.syscalls import allocators as kernel_calls
from numaemu.kernel.syscalls import file as calls
from numaemu.operations.part import Part
from numaemu.spec.param import MAX_OPEN, PAGE_SIZE
from numaemu.uapi import (
    MAP_HUGE_MASK,
    MAP_HUGE_SHIFT,
    MFD_ALLOW_SEALING,
    MFD_CLOEXEC,
    MFD_EXEC,
    MFD_HUGETLB,
    MFD_NOEXEC_SEAL,
    O_CLOEXEC,
    O_RDWR,
)

READ_MOST = 1 << 30  # bytes of one read
MFD_ALL_FLAGS = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_NOEXEC_SEAL | MFD_EXEC
_EXEC = MFD_EXEC | MFD_NOEXEC_SEAL  # one of them at most
MFD_NAME_MAX_LEN = 249  # NAME_MAX without "memfd:"


def check(result, what=None):
    """A system call's result, or OSError."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), *([what] if what else []))
    return result


class FileOperations(Part):
    """The operations of one CPU on files; `self.address` is that of its cpu_t."""

    def descriptor(self, fd):
        """A number that the kernel may look at."""
        return fd if 0 <= fd < MAX_OPEN else -1

    def open(self, task_number, path, flags):
        name = name_words(path)
        return check(calls.sys_open(self.address, task_number, name.ctypes.data, flags), path)

    def memfd_create(self, task_number, name, flags):
        """memfd_create(2): a descriptor. MFD_HUGETLB chooses a pool of huge pages."""
        sizes = MAP_HUGE_MASK << MAP_HUGE_SHIFT if flags & MFD_HUGETLB else 0
        if flags & ~(MFD_ALL_FLAGS | sizes) or flags & _EXEC == _EXEC or len(os.fsencode(name)) > MFD_NAME_MAX_LEN:
            check(-errno.EINVAL)
        hstate = hstate_sizelog(self.machine, flags) if flags & MFD_HUGETLB else -1
        if hstate < -1:
            check(-errno.ENODEV)
        words, flags = name_words(f"/memfd:{name}"), O_RDWR | (O_CLOEXEC if flags & MFD_CLOEXEC else 0)
        return check(calls.sys_memfd_create(self.address, task_number, words.ctypes.data, flags, hstate))

    def file_close(self, task_number, fd):
        check(calls.sys_close(self.address, task_number, self.descriptor(fd)))

    def fstat(self, task_number, fd):
        """(size, inode number)"""
        answer = np.zeros(2, np.int64)
        check(calls.sys_fstat(self.address, task_number, self.descriptor(fd), answer))
        return answer.tolist()

    def file_size(self, task_number, fd):
        return self.fstat(task_number, fd)[0]

    def file_name(self, task_number, fd):
        """What /proc/<pid>/fd/<fd> would link to."""
        return inode_name(inode_of(self.machine, self.fstat(task_number, fd)[1]))

    def dup(self, task_number, fd, target):
        if target is not None and self.descriptor(target) < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return check(calls.sys_dup(self.address, task_number, self.descriptor(fd), -1 if target is None else target))

    def position(self, offset):
        """A place in a file, None for where it stands; one before the beginning is refused before anything else."""
        if offset is not None and offset < 0:
            check(-errno.EINVAL)
        return calls.AT_F_POS if offset is None else offset

    def file_read(self, task_number, fd, offset, nbytes):
        """read(2), or pread(2) with an offset: bytes, at most `nbytes` of them."""
        where = self.position(offset)
        size = self.file_size(task_number, fd)
        nbytes = min(size if nbytes is None else nbytes, size, READ_MOST)
        data = self.buffer(max(nbytes, 0))
        n = check(calls.sys_read(self.address, task_number, self.descriptor(fd), where, data.ctypes.data, nbytes))
        return data[:n].tobytes()

    def file_read_through(self, task_number, fd, nbytes, chunk):
        """Read `nbytes` bytes by read(2) of `chunk` bytes at a time and forget them: how many there were."""
        if chunk < 1:
            raise ValueError(f"chunk {chunk} must be at least 1")
        chunk = min(chunk, READ_MOST, max(self.file_size(task_number, fd), 1))
        data = self.buffer(chunk)
        return check(
            calls.read_through(self.address, task_number, self.descriptor(fd), data.ctypes.data, chunk, nbytes)
        )

    def file_write(self, task_number, fd, offset, data):
        """write(2), or pwrite(2) with an offset: how many bytes were written."""
        data = np.frombuffer(data, np.uint8)
        where = self.position(offset)
        return check(
            calls.sys_write(self.address, task_number, self.descriptor(fd), where, data.ctypes.data, len(data))
        )

    def file_seek(self, task_number, fd, offset, whence):
        return check(calls.sys_lseek(self.address, task_number, self.descriptor(fd), offset, whence))

    def file_fsync(self, task_number, fd):
        check(calls.sys_fsync(self.address, task_number, self.descriptor(fd)))

    def file_fadvise(self, task_number, fd, offset, length, advice):
        check(calls.sys_fadvise(self.address, task_number, self.descriptor(fd), offset, length, advice))

    def file_truncate(self, task_number, fd, size):
        check(calls.sys_ftruncate(self.address, task_number, self.descriptor(fd), size))

    def mmap_file(self, task_number, addr, length, prot, flags, fd, offset):
        """mmap(2) of an open file: the address."""
        return check(
            calls.sys_mmap_file(
                self.address, task_number, addr, length, prot, flags, self.descriptor(fd), offset & (1 << 64) - 1
            )
        )

    def msync(self, task_number, addr, length, flags):
        check(calls.sys_msync(self.address, task_number, addr, length, flags))

    def put_on_disk(self, path, size, data, seed):
        """A new file with its contents; found under its name only when it is complete."""
        if path.startswith("/dev/shm/"):
            raise ValueError(f"{path} lies in memory, not on the disk: a task makes it, with open and O_CREAT")
        name = name_words(path)
        inode = check(calls.make_file(self.address, size, seed), path)
        if data is not None:
            contents, bounce = np.frombuffer(data, np.uint8), np.empty(PAGE_SIZE, np.uint8)
            calls.fill_file(self.address, inode, contents.ctypes.data, len(contents), bounce.ctypes.data)
        check(calls.link_file(self.address, inode, name.ctypes.data), path)

    # -- for the driver: in this CPU's turn, with no task

    def system(self, method, args):
        """One of the methods below."""
        with self.process.turn:
            return getattr(self, f"system_{method}")(*args)

    def system_create_file(self, path, size, data, seed):
        """A file that has always been on the disk."""
        self.put_on_disk(path, size, data, seed)

    def system_unlink(self, path):
        name = name_words(path)
        check(calls.sys_unlink(self.address, name.ctypes.data), path)

    def system_set_max_huge_pages(self, hstate, count, nid, nodes):
        """The size of a pool of huge pages: of a mask of nodes (nid -1; 0: all), or of one."""
        set_max_huge_pages(self.address, hstate, count, nid, nodes)

    def system_sync(self):
        return calls.sys_sync(self.address)

    def system_page_idle_read(self, first, words):
        """Bytes of /sys/kernel/mm/page_idle/bitmap."""
        found = np.zeros(words, np.uint64)
        page_idle_bitmap_read(self.address, first, words, found.ctypes.data)
        return found.tobytes()

    def system_page_idle_write(self, first, data):
        """The same the other way round: how many bytes."""
        words = np.frombuffer(data, np.uint64)
        page_idle_bitmap_write(self.address, first, len(words), words.ctypes.data)
        return len(data)

    def system_drop_caches(self, what=1):
        """1: clean pages of files, 2: unused objects of slab caches, 3: both."""
        pages = calls.sys_drop_caches(self.address) if what & 1 else 0
        if what & 2:
            kernel_calls.kernel_drop_slab(self.address)
        return pages
