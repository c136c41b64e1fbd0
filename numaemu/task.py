"""What a workload holds: tasks, their mappings and arrays. The same objects in a CPU's process and in the driver.

A Task does nothing itself: its `site` runs an operation on the CPU the task is on — a plain call if that is this
process, a message if not.
"""
import contextlib
import errno
import time

import numpy as np

from numaemu.errors import NumaemuError, OutOfMemory
from numaemu.files import File
from numaemu.kernel_handles import KernelCalls
from numaemu.mapping import Mapping, loadable
from numaemu.node_mask import node_mask, nodes_of
from numaemu.uapi import (MAP_ANONYMOUS, MAP_PRIVATE, MPOL_F_ADDR, MPOL_F_NODE, MPOL_MF_MOVE, MS_SYNC, O_RDONLY,
                          PROT_READ, PROT_WRITE, PR_SET_MM, SIGKILL, WNOHANG)
from numaemu.units import parse_size

WAIT_POLL_S = 0.002              # between two looks of wait


class Handle:
    """A started task: its pid, and its function's result when it has returned."""

    stays_here = "pass its result()"

    def __init__(self, pid, future, machine=None):
        self.pid, self.future = pid, future
        self._machine = machine                  # in the driver: it lives as long as somebody may wait for this

    def result(self, timeout=None):
        """What the function returned; raises what it raised, TimeoutError after `timeout` seconds."""
        if self._machine is not None:
            self._machine.check_owner()
        return self.future.result(timeout)

    def done(self):
        """True if the function has returned or raised."""
        return self.future.done()


class Task:
    """An emulated thread. Sizes are bytes or text like "64MiB"; addresses are emulated virtual ones."""

    stays_here = "a function gets its own task as its first argument; pass the pid, for kill or move_pages"

    def __init__(self, number, pid, site):
        self._number, self.pid, self._site = number, pid, site
        self._memory_mode = None
        self.kernel = KernelCalls(self)

    def _op(self, method, *args):
        return self._site.call_op(self._number, self.pid, method, args)

    def __repr__(self):
        return f"<task {self.pid}>"

    # -- mappings

    def mmap(self, length, prot=PROT_READ | PROT_WRITE, flags=MAP_PRIVATE | MAP_ANONYMOUS, file=None, offset=0,
             addr=None):
        """Map `length` bytes, of an open file from byte `offset` on if one is given; a Mapping. Mirrors mmap(2)."""
        nbytes = parse_size(length, "mmap length")
        if file is not None:
            if file.task.pid != self.pid:
                file = self.fdopen(file)
            where = self._op("mmap_file", addr or 0, nbytes, prot, flags & ~MAP_ANONYMOUS, file.fd, offset)
            return Mapping(self, where, nbytes)
        return Mapping(self, self._op("mmap", addr or 0, nbytes, prot, flags, offset), nbytes)

    def munmap(self, addr, length):
        """munmap(2)"""
        self._op("munmap", addr, parse_size(length, "munmap length"))

    def mprotect(self, addr, length, prot):
        """mprotect(2)"""
        self._op("mprotect", addr, parse_size(length, "mprotect length"), prot)

    def madvise(self, addr, length, advice, stride=None, each=None):
        """madvise(2); with `stride` one call for `each` bytes at every so many of the range."""
        nbytes = parse_size(length, "madvise length")
        self._op("madvise", addr, nbytes, advice, stride or nbytes, each or nbytes)

    def mremap(self, addr, old_len, new_len, flags=0, new_addr=None):
        """mremap(2): the Mapping as it is then."""
        old, new = parse_size(old_len, "mremap length"), parse_size(new_len, "mremap length")
        return Mapping(self, self._op("mremap", addr, old, new, flags, new_addr or 0), new)

    def mlock(self, addr, length, flags=0):
        """mlock(2), or mlock2(2) with MLOCK_ONFAULT."""
        self._op("mlock2", addr, parse_size(length, "mlock length"), flags)

    def munlock(self, addr, length):
        """munlock(2)"""
        self._op("munlock", addr, parse_size(length, "munlock length"))

    def mlockall(self, flags):
        """mlockall(2) with MCL_*"""
        self._op("mlockall", flags)

    def munlockall(self):
        """munlockall(2)"""
        self._op("munlockall")

    def mincore(self, addr, length):
        """mincore(2): 1 for each page that is in memory, else 0, as an array."""
        return self._op("mincore", addr, parse_size(length, "mincore length"))

    def walk(self, addr):
        """The page-table entries that lead to an address, from the top to the first one that is not present: for each
        level, table (its physical address), index, entry, text (the same in words), pfn and writable. For who looks inside:
        it takes no emulated time, and no fault.
        """
        return self._op("walk", addr)

    def last_fault(self):
        """(CR2, error code) of the last page fault on the CPU the task is on."""
        return self._op("last_fault")

    def setrlimit(self, which, soft, hard=None):
        """setrlimit(2) with RLIMIT_*; bytes, or RLIM_INFINITY. Without `hard` only the soft limit changes."""
        self._op("setrlimit", which, soft, self.getrlimit(which)[1] if hard is None else hard)

    def getrlimit(self, which):
        """getrlimit(2): (soft, hard)"""
        return self._op("getrlimit", which)

    def setuid(self, uid):
        """Become another user: 0 (every task at first) has every capability, others none."""
        self._op("setuid", uid)

    def prctl(self, option, arg, addr):
        """prctl(2), of which there is PR_SET_MM with PR_SET_MM_START_BRK and PR_SET_MM_BRK."""
        if option != PR_SET_MM:
            raise NotImplementedError(f"prctl option {option} is not there, only PR_SET_MM ({PR_SET_MM})")
        self._op("prctl_set_mm", arg, addr)

    def sleep(self, ms):
        """Sleep for `ms` milliseconds of emulated time: other tasks of the CPU run, or else its clock moves on."""
        self._op("sleep", round(ms * 1_000_000))

    def sched_yield(self):
        """sched_yield(2): let the other tasks of the CPU run first."""
        self._op("sched_yield")

    def brk(self, addr=0):
        """Set the end of the heap; the end it has now (0 asks)."""
        return self._op("brk", addr)

    def msync(self, addr, length, flags=MS_SYNC):
        """msync(2): write what shared mappings of files in the range have made dirty."""
        self._op("msync", addr, parse_size(length, "msync length"), flags)

    # -- files

    def open(self, path, flags=O_RDONLY):
        """open(2): a File."""
        return File(self, self._op("open", path, flags), path)

    def fdopen(self, file):
        """What a descriptor means in this task, after fork the parent's files too: a File. `file` is another task's File
        of the same descriptor, or the descriptor's number.
        """
        fd = file.fd if isinstance(file, File) else file
        path = self._op("file_name", fd).removesuffix(" (deleted)")
        if isinstance(file, File) and path != file.path:
            raise OSError(errno.EBADF, f"descriptor {fd} of task {self.pid} is {path}, not {file.path}: it is not inherited")
        return File(self, fd, path)

    def memfd_create(self, name, flags=0):
        """memfd_create(2): a File that lies in memory, and has no name that anybody could open."""
        return File(self, self._op("memfd_create", name, flags), f"/memfd:{name}")

    # -- placement

    def set_mempolicy(self, mode, nodes=None):
        """set_mempolicy(2); `nodes` a node, several, or text like "0,2-3"."""
        self._op("set_mempolicy", mode & 0xFFF, mode & ~0xFFF, node_mask(nodes))

    def mbind(self, addr, length, mode, nodes=None, flags=0):
        """mbind(2)"""
        self._op("mbind", addr, parse_size(length, "mbind length"), mode & 0xFFF, mode & ~0xFFF, node_mask(nodes), flags)

    def get_mempolicy(self, addr=None, flags=0):
        """(mode, nodes); with MPOL_F_NODE a node instead of the mode. An address asks for that range's policy."""
        if addr is not None:
            flags |= MPOL_F_ADDR
        mode, mask = self._op("get_mempolicy", addr or 0, flags)
        return mode, nodes_of(mask)

    def node_of(self, addr):
        """The node whose memory backs an address (touching it first, as get_mempolicy(2) does)."""
        self.load([addr], np.uint8)
        return self._op("get_mempolicy", addr, MPOL_F_ADDR | MPOL_F_NODE)[0]

    def move_pages(self, addresses, nodes=None, flags=MPOL_MF_MOVE, pid=0):
        """move_pages(2): the status of each page: its node, or -errno. nodes=None only asks."""
        return self._op("move_pages", pid, addresses, nodes, flags if nodes is not None else 0)[1]

    def migrate_pages(self, old_nodes, new_nodes, pid=0):
        """migrate_pages(2): how many pages could not be moved."""
        return self._op("migrate_pages", pid, node_mask(old_nodes), node_mask(new_nodes))

    def sched_setaffinity(self, cpus):
        """Move the task to one of `cpus`."""
        return self._op("sched_setaffinity", {int(c) for c in ([cpus] if isinstance(cpus, int) else cpus)})

    # -- accesses

    def load(self, addresses, dtype=np.uint64):
        """The values at an array of addresses, one emulated load each, of 1, 2, 4 or 8 bytes."""
        return self._op("load", addresses, loadable(dtype).str)

    def store(self, addresses, values):
        """Store values (or one for all) at an array of addresses, one emulated store each."""
        values = np.asarray(values)
        loadable(values.dtype)
        self._op("store", addresses, values)

    def read(self, addr, nbytes):
        """`nbytes` bytes from `addr`."""
        return self._op("read", addr, nbytes)

    def write(self, addr, data):
        """Write bytes at `addr`."""
        self._op("write", addr, bytes(data))

    def execute(self, addr):
        """Fetch one instruction at a virtual address; SegmentationFault where execution is not allowed (NX)."""
        self._op("execute", addr)

    def touch(self, addr, nbytes, stride=4096, write=True):
        """One access every `stride` bytes."""
        self._op("touch", addr, nbytes, stride, write)

    def call(self, kernel, *args):
        """Run kernel(cpu, *args), a function compiled with numba.njit that accesses memory through load_u64 and so on."""
        return self._op("call", kernel, args)

    # -- tasks

    def fork(self, function=None, *args, cpu=None):
        """fork(2). With a function: a handle of the child that runs it; without: the child as an interactive task."""
        return self._child("fork", function, args, cpu)

    def clone(self, function=None, *args, cpu=None):
        """A thread that shares the address space: as fork."""
        return self._child("clone", function, args, cpu)

    def vfork(self, function=None, *args, cpu=None):
        """A process of its own in the same address space, as between vfork(2) and exec; the parent does not wait."""
        return self._child("vfork", function, args, cpu)

    def execve(self, path, argv=None, envp=()):
        """execve(2): the task gives its memory up and gets that of the ELF program at `path`, loaded as Linux does it,
        with its interpreter. What is not on the emulated disk is brought there from the host's file of this path. No
        instruction runs; (ip, sp) says where it would begin. `argv` is [path] if not given, `envp` a dict or "K=V"s.
        """
        for number, pid in self._op("other_threads"):
            with contextlib.suppress(OSError, NumaemuError):         # it may just have ended
                self._site.call_op(number, pid, "die", (SIGKILL,))
        return self._op("execve", path, [path] if argv is None else list(argv), envp)

    def _child(self, how, function, args, cpu):
        if cpu is not None:
            self._op("check_cpu", cpu)
        number, pid = self._op(how)
        cpu = self.cpu if cpu is None else cpu
        if function is not None:
            return self._site.start(number, pid, cpu, function, args)
        self._site.call_op(number, pid, "place", (cpu,))
        return Task(number, pid, self._site)

    def exit(self, code=0):
        """End the task: its memory goes back."""
        self._op("exit", code)

    def wait(self, pid=-1, flags=0):
        """waitpid(2): (pid, status) of a child that has ended (threads are none): signal, or exit code << 8.

        With WNOHANG None if none has ended yet; ChildProcessError if there is none to wait for.
        """
        if pid < -1 or pid == 0:
            raise NotImplementedError(f"wait for pid {pid}: process groups are not there")
        while (answer := self._op("wait", pid, flags)) is None and not flags & WNOHANG:
            time.sleep(WAIT_POLL_S)
        return answer

    def kill(self, pid, sig):
        """kill(2): any signal ends the process that task `pid` belongs to, with all its threads; 0 only looks whether it is
        there. Their memory is freed where they run.
        """
        self._op("kill", pid, sig)
        for number, member in self._op("thread_group", pid) if sig else ():
            with contextlib.suppress(ProcessLookupError, OutOfMemory):       # it may just have ended
                self._site.call_op(number, member, "die", (sig,))

    # -- what it is

    @property
    def cpu(self):
        """The CPU the task is on."""
        return self._site.where(self._number)[0]

    @property
    def node(self):
        """The node of that CPU."""
        return self._site.where(self._number)[1]

    @property
    def clock_ns(self):
        """Emulated time of the CPU the task is on."""
        return self._op("clock_ns")

    def counters(self):
        """Figures of the CPU the task is on, and the task's faults, as a dict."""
        return self._op("counters")
