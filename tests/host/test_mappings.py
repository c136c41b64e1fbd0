"""Neighbouring mappings of code and constants become one, so that a fork has little to copy."""

import pathlib
import subprocess
import sys

import pytest

from numaemu.compiler.build import JIT, PACKAGE
from numaemu.compiler.stamp import function_stamps
from numaemu.host.mappings import read_only_runs
from numaemu.machine import Machine

MAPS = """\
5000-7000 r-xp 00000000 00:00 0
7000-8000 r--p 00000000 00:00 0
8000-9000 rw-p 00000000 00:00 0
9000-a000 r-xp 00000000 00:00 0
b000-c000 r--p 00000000 00:00 0
c000-e000 r-xp 00000000 00:00 0
e000-f000 r--p 00000000 00:00 0
f000-10000 r--p 00000000 103:02 91 /usr/lib/libc.so.6
10000-11000 r--p 00000000 00:00 0 [vvar]
11000-12000 r-xp 00000000 00:00 0 [vdso]
"""
LINKED = """
import ctypes, mmap, pathlib
from numaemu.host.mappings import _libc, merge_code, read_only_runs

memory = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = bytes(range(64)) * mmap.PAGESIZE
first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for page in range(64):  # as LLVM leaves it
    _libc.mprotect(first + page * mmap.PAGESIZE, mmap.PAGESIZE, mmap.PROT_READ | (page % 2 and mmap.PROT_EXEC))
mine = lambda: [run for run in read_only_runs(pathlib.Path("/proc/self/maps").read_text()) if run[0] <= first < run[1]]
before = mine()
merge_code()
print(len(before), len(mine()), memory[:] == bytes(range(64)) * mmap.PAGESIZE)
"""


@pytest.mark.interpreted
def test_neighbours_without_a_file_that_nobody_may_write():
    assert read_only_runs(MAPS) == [(0x5000, 0x8000), (0xB000, 0xF000)]


@pytest.mark.interpreted
def test_they_become_one_and_hold_what_they_held():
    done = subprocess.run([sys.executable, "-c", LINKED], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1 0 True\n", "")


@pytest.mark.skipif(not JIT, reason="nothing is linked")
def test_processes_of_a_machine_have_the_kernel_in_few_mappings():
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB") as machine:
        for pid in machine.processes.values():
            maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
            linked = [line for line in maps.splitlines() if line.split()[1] == "r-xp" and line.split()[-1] == "0"]
            assert len(linked) < len(function_stamps(PACKAGE)) / 10
