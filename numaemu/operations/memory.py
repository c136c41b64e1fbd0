"""What a CPU does for its tasks' address spaces: the part of Operations that asks kernel/syscalls/mm.py."""

import errno
import os

import numpy as np

from numaemu.kernel.arch import ptdump
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.syscalls import mm as sys_mm
from numaemu.kernel.syscalls import user  # noqa: F401  (declared with the rest; user kernels call it)
from numaemu.operations.part import Part
from numaemu.spec.param import PAGE_SIZE
from numaemu.uapi import PR_SET_MM, RLIM_NLIMITS

PR_LAST = 78  # the highest option that Linux 6.12 has, but for a few far above


def check(result):
    """A system call's result, or OSError."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


class MmOperations(Part):
    """The operations on mappings; `address` and `tasks` are those of Operations."""

    def mmap(self, task_number, addr, length, prot, flags, offset):
        return check(sys_mm.sys_mmap(self.address, task_number, addr, length, prot, flags, offset))

    def munmap(self, task_number, addr, length):
        check(sys_mm.sys_munmap(self.address, task_number, addr, length))

    def mprotect(self, task_number, addr, length, prot):
        check(sys_mm.sys_mprotect(self.address, task_number, addr, length, prot))

    def madvise(self, task_number, addr, length, advice, stride, each):
        """One call, or with a stride one for each of its steps."""
        if stride is None:
            check(sys_mm.sys_madvise(self.address, task_number, addr, length, advice))
            return
        for start in range(addr, addr + length, max(stride, 1)):
            part = min(length if each is None else each, addr + length - start)
            check(sys_mm.sys_madvise(self.address, task_number, start, part, advice))

    def mremap(self, task_number, addr, old_len, new_len, flags, new_addr):
        return check(sys_mm.sys_mremap(self.address, task_number, addr, old_len, new_len, flags, new_addr))

    def brk(self, task_number, addr):
        return sys_mm.sys_brk(self.address, task_number, addr)

    def prctl(self, task_number, option, arg, addr):
        if option != PR_SET_MM and 0 < option <= PR_LAST:
            raise NotImplementedError(f"prctl: option {option} is not there, only PR_SET_MM ({PR_SET_MM})")
        check(sys_mm.sys_prctl_set_mm(self.address, task_number, arg, addr) if option == PR_SET_MM else -errno.EINVAL)

    def mlock2(self, task_number, addr, length, flags):
        check(sys_mm.sys_mlock2(self.address, task_number, addr, length, flags))

    def munlock(self, task_number, addr, length):
        check(sys_mm.sys_munlock(self.address, task_number, addr, length))

    def mlockall(self, task_number, flags):
        check(sys_mm.sys_mlockall(self.address, task_number, flags))

    def munlockall(self, task_number):
        check(sys_mm.sys_munlockall(self.address, task_number))

    def mincore(self, task_number, addr, length):
        """A byte per page. Where there are more of them than mapped ones, there is no need to look, nor room for the answer."""
        pages = -(-length // PAGE_SIZE)
        if pages > mm_of(self.machine, self.tasks[task_number].mm).total_vm:
            check(-errno.EINVAL if addr % PAGE_SIZE else -errno.ENOMEM)
        answer = np.zeros(pages, np.uint8)
        check(sys_mm.sys_mincore(self.address, task_number, addr, length, answer.ctypes.data))
        return answer

    def walk(self, task_number, addr):
        """What the page tables say of an address, level by level."""
        paging = self.process.world.topology.paging
        return ptdump.walk(self.address, self.tasks[task_number].mm, addr, paging)

    def last_fault(self, task_number):
        """(CR2, error code) of the last page fault on this CPU."""
        return int(self.process.state.cr2), int(self.process.state.error_code)

    def setrlimit(self, task_number, which, soft, hard):
        hard = self.getrlimit(task_number, which)[1] if hard is None else hard
        check(sys_mm.sys_setrlimit(self.address, task_number, which, soft, hard))

    def getrlimit(self, task_number, which):
        """(soft, hard)"""
        if not 0 <= which < RLIM_NLIMITS:
            check(-errno.EINVAL)
        rlim = self.tasks[task_number].rlim
        return int(rlim[2 * which]), int(rlim[2 * which + 1])
