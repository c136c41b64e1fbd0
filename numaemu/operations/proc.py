"""What a CPU does for who reads /proc/<pid>/cmdline and environ, which lie in the task's memory (Linux's fs/proc/base.c), or
writes to clear_refs.
"""

import errno
import os

import numpy as np

from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.include.mm_types import task_name
from numaemu.kernel.syscalls import mm as sys_mm
from numaemu.operations.part import Part
from numaemu.spec.param import PAGE_SIZE


class ProcOperations(Part):
    """For the driver, in this CPU's turn, with no task. Needs `machine`, `tasks` and the `address` of the CPU's struct."""

    def access_remote_vm(self, task_number, pid, address, end):
        """A task's bytes of [address, end), as far as they can be had."""
        data = np.empty(max(end - address, 0), np.uint8)
        n = sys_mm.read_remote(self.address, task_number, pid, address, data.ctypes.data, len(data))
        if n < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"/proc/{pid}")
        return data[:n].tobytes()

    def system_clear_refs(self, task_number, pid, kind):
        if sys_mm.clear_refs_remote(self.address, task_number, pid, kind) != 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"/proc/{pid}")

    def system_damon(self, task_number, pid, addresses, clear):
        """A byte for each page of a task, by its address: 1 if it was used; with `clear` none is any more. None: it has ended."""
        where, used = np.array(addresses, np.uint64), np.zeros(len(addresses), np.uint8)
        pointers = where.ctypes.data, len(where), used.ctypes.data
        done = sys_mm.damon_sample(self.address, task_number, pid, *pointers, clear)
        return None if done != 0 else used.tobytes()

    def system_cmdline(self, task_number, pid):
        """The arguments, each with its 0; or what the program has written over them, up to its 0: get_mm_cmdline.

        A task that never called execve has its name there, so that tools which list command lines show what it is.
        """
        mm = mm_of(self.machine, self.tasks[task_number].mm)
        start, end, env_end = int(mm.arg_start), int(mm.arg_end), int(mm.env_end)
        if not env_end or start >= end:
            return task_name(self.tasks[task_number]) + "\0"
        text = self.access_remote_vm(task_number, pid, start, end)
        if text[-1:] not in (b"", b"\0"):  # setproctitle
            title = self.access_remote_vm(task_number, pid, start, start + min(PAGE_SIZE, max(env_end, end) - start))
            text = title[: title.find(b"\0") + 1 or None]
        return os.fsdecode(text)

    def system_environ(self, task_number, pid):
        """The environment as execve left it, each string with its 0."""
        mm = mm_of(self.machine, self.tasks[task_number].mm)
        return os.fsdecode(self.access_remote_vm(task_number, pid, int(mm.env_start), int(mm.env_end)))
