"""Shared memory and doorbells: made with posix_ipc, unlinked at once, inherited by fork.

One process (the coordinator) makes everything before it forks the others, so that every address is the same in
every process of a machine and may itself stand in shared memory. A segment is sparse: what nobody writes costs
the host nothing. Names are `/numaemu.<pid>.<number>` for the microseconds until they are unlinked; `sweep` removes
what a process killed in exactly that moment left.
"""

import ctypes
import mmap
import os
import pathlib
import re

import posix_ipc
import setproctitle

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.sem_open.restype = ctypes.c_void_p
_libc.sem_open.argtypes = [ctypes.c_char_p, ctypes.c_int]

_MAP_FAILED = ctypes.c_void_p(-1).value
_PROT_NONE = 0
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MADV_REMOVE, _MADV_HUGEPAGE = 9, 14
_NAME = re.compile(r"(?:sem\.)?numaemu\.(\d+)\.\d+$")
_HUGE = 2 << 20
_counter = iter(range(1 << 62))


def _new_name():
    return f"/numaemu.{os.getpid()}.{next(_counter)}"


def _mmap(address, nbytes, protection, flags, fd=-1, offset=0):
    got = _libc.mmap(address, nbytes, protection, flags, fd, offset)
    if got == _MAP_FAILED:
        error = ctypes.get_errno()
        raise OSError(error, f"mmap of {nbytes} bytes: {os.strerror(error)}")
    return got


def reserve(nbytes):
    """An address range of this process that nothing else will use, aligned to 2 MiB; its first address."""
    nbytes = (nbytes + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
    address = _mmap(None, nbytes + _HUGE, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    aligned = (address + _HUGE - 1) & ~(_HUGE - 1)
    for start, end in ((address, aligned), (aligned + nbytes, address + nbytes + _HUGE)):
        if start < end:
            _libc.munmap(start, end - start)  # a rest that stayed would keep the range from being used again
    return aligned


class Segment:
    """A nameless piece of shared memory of `nbytes`, until `map_at` has put it where it belongs and `close`."""

    def __init__(self, nbytes):
        self.nbytes = nbytes
        segment = posix_ipc.SharedMemory(_new_name(), posix_ipc.O_CREX, size=nbytes)
        segment.unlink()
        self.fd = segment.fd

    def map_at(self, address, nbytes=None, offset=0):
        """Map [offset, offset + nbytes) at exactly `address`, asking for huge host pages."""
        nbytes = nbytes or self.nbytes
        flags = mmap.MAP_SHARED | _MAP_FIXED | _MAP_NORESERVE
        _mmap(address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, self.fd, offset)
        _libc.madvise(address, nbytes, _MADV_HUGEPAGE)  # refused where the host has it off: then small pages
        return address

    def map_once(self, address):
        """Map the whole segment at `address`, the only place it will have."""
        self.map_at(address)
        self.close()

    def close(self):
        os.close(self.fd)


def shared_block(nbytes):
    """Map a new segment anywhere; its address."""
    segment = Segment(nbytes)
    address = segment.map_at(reserve(nbytes))
    segment.close()
    return address


def punch(address, nbytes):
    """Give the host back what lies in [address, address + nbytes): it reads as zeros again."""
    _libc.madvise(address, nbytes, _MADV_REMOVE)


class Doorbell(posix_ipc.Semaphore):
    """A semaphore without a name, for the process that waits and all that ring; `address`, of its sem_t, for compiled code."""


def doorbell():
    """A new Doorbell."""
    name = _new_name()
    bell = Doorbell(name, posix_ipc.O_CREX)
    bell.address = _libc.sem_open(name.encode(), 0)
    bell.unlink()
    if not bell.address:
        error = ctypes.get_errno()
        raise OSError(error, f"sem_open of {name}: {os.strerror(error)}")
    return bell


def sweep():
    """Remove names that machines killed between creating and unlinking left behind."""
    for path in pathlib.Path("/dev/shm").glob("*numaemu.*"):
        match = _NAME.match(path.name)
        if match and not os.path.exists(f"/proc/{match.group(1)}"):
            path.unlink(missing_ok=True)


def huge_pages_setting():
    """The host's setting of huge pages for shared memory: 'always', 'advise', 'never', … or '' if unknown."""
    try:
        text = pathlib.Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text()
    except OSError:
        return ""
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else ""


def entitle(title):
    """Call this process so, before it forks. In /proc/<pid>/stat its name has no blanks: Python counts words there to find how
    many threads a process has that forks (from 3.12 on), and would warn of some that there are not.
    """
    setproctitle.setproctitle(title)
    setproctitle.setthreadtitle(title.replace(" ", ""))


def adopt_orphans():
    """Processes whose parent dies become children of this one (prctl PR_SET_CHILD_SUBREAPER): it can wait for them."""
    _libc.prctl(36, 1, 0, 0, 0)


def die_with_parent():
    """Ask the host to kill this process when its parent ends (prctl PR_SET_PDEATHSIG)."""
    parent = os.getppid()
    _libc.prctl(1, 9, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
