"""Few mappings instead of thousands, for a process that others are forked from.

LLVM gives each object file that it links a page or more of code and a page of constants. Code may be executed and constants may not,
so the host keeps a mapping for each, and a fork copies them one by one: with the whole kernel linked that is half of what it costs.
"""

import ctypes
import mmap
import pathlib

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_READ_ONLY = ("r-xp", "r--p")  # protections that linked code and its constants have


def read_only_runs(maps):
    """[(first address, end)] of neighbouring mappings without a file that nobody may write, if they are more than one; `maps` is
    the text of /proc/<pid>/maps.
    """
    runs = []  # [first address, end, how many]
    for line in maps.splitlines():
        where, protection, *_, inode = line.split()[:5]
        if protection not in _READ_ONLY or inode != "0" or len(line.split()) > 5:
            continue
        start, end = (int(address, 16) for address in where.split("-"))
        if runs and runs[-1][1] == start:
            runs[-1][1:] = end, runs[-1][2] + 1
        else:
            runs.append([start, end, 1])
    return [(start, end) for start, end, number in runs if number > 1]


def merge_code():
    """Let constants between linked functions be executable as these are: the host then keeps one mapping for all of them. A host that
    refuses keeps what it has.
    """
    for start, end in read_only_runs(pathlib.Path("/proc/self/maps").read_text()):
        _libc.mprotect(start, end - start, mmap.PROT_READ | mmap.PROT_EXEC)
