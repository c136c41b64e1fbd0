"""What a workload holds: tasks, their mappings and arrays. The same objects in a CPU's process and in the driver.

A Task does nothing itself: its `site` runs an operation on the CPU the task is on — a plain call if that is this
process, a message if not.
"""

import contextlib
import errno
import importlib

import numpy as np

from numaemu.api.allocators import KernelCalls
from numaemu.api.arguments import runnable
from numaemu.api.calls import ANY_ADDRESS, take
from numaemu.api.failure import show_own_frames
from numaemu.api.files import File
from numaemu.api.mapping import Mapping
from numaemu.api.tables import Table, html, html_of
from numaemu.api.words import LOAD, STORE, one_address, stored, word_kind
from numaemu.errors import NumaemuError, OutOfMemory
from numaemu.spec.node_mask import nodes_of
from numaemu.spec.param import PAGE_SIZE
from numaemu.spec.units import shown
from numaemu.uapi import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MPOL_F_ADDR,
    MPOL_F_NODE,
    MPOL_MF_MOVE,
    MS_SYNC,
    O_RDONLY,
    PROT_READ,
    PROT_WRITE,
    SIGKILL,
    WNOHANG,
)

WAIT_POLL_S = 0.002  # between two looks of wait


class Handle:
    """A started task: its pid, and its function's result when it has returned."""

    stays_here = "pass its result()"

    def __init__(self, pid, future, machine=None, after=None):
        self.pid, self.future = pid, future
        self._after = after  # in a CPU's process: called when somebody has waited
        self._machine = machine  # in the driver: it lives as long as somebody may wait for this

    def result(self, timeout=None):
        """What the function returned; raises what it raised, TimeoutError after `timeout` seconds."""
        if self._machine is not None:
            self._machine.check_owner()
            self._machine.let_run(self.future)
        error = self.future.exception(timeout)
        if self._after is not None:
            self._after(self.future)
        if error is not None:
            if self._machine is not None:
                show_own_frames(error)
            raise error.with_traceback(None)  # else it would grow each time it is asked for
        return self.future.result()

    def done(self):
        """True if the function has returned or raised. In lockstep a little emulated time goes by if not: who asks asks again."""
        if not self.future.done():
            if self._machine is not None:
                self._machine.pass_time()
            elif let_time_pass := getattr(self.future, "let_time_pass", None):
                let_time_pass()  # a StrandFuture, in a CPU's process
        return self.future.done()

    def _repr_html_(self):
        """For a notebook: how it stands, and what the function returned."""
        if not self.future.done():
            return html(Table("", ("", ""), [("task", self.pid), ("state", "running")]))
        if error := self.future.exception():
            return html(Table("", ("", ""), [("task", self.pid), ("raised", f"{type(error).__name__}: {error}")]))
        return html_of(self.future.result(), f"task {self.pid} returned")


class PageWalk(list):
    """What `walk` returns: a dict for each level."""

    def _repr_html_(self):
        """For a notebook: a table, with addresses and entries in hexadecimal."""
        rows = [
            (step["level"], f"{step['table']:#x}", step["index"], f"{step['entry']:#x}", step["text"]) for step in self
        ]
        return html(Table("", ("level", "table at", "index", "entry", "which is"), rows))


class PageStatus(np.ndarray):
    """What move_pages says of each page; `not_moved` is how many could not be moved."""

    not_moved = None  # of a part of it nobody knows

    def __array_wrap__(self, array, context=None, return_scalar=False):
        """A sum or a comparison of it is a plain value."""
        return array[()] if array.ndim == 0 else np.asarray(array)

    def __reduce__(self):
        reduced = super().__reduce__()
        return reduced[0], reduced[1], (reduced[2], self.not_moved)

    def __setstate__(self, state):
        super().__setstate__(state[0])
        self.not_moved = state[1]


class Task:
    """An emulated thread. Sizes are bytes or text like "64MiB"; addresses are emulated virtual ones."""

    stays_here = "a function gets its own task as its first argument; pass the pid, for kill or move_pages"

    def __init__(self, number, pid, site):
        self._number, self.pid, self._site = number, pid, site
        self._memory_mode = None
        self.kernel = KernelCalls(self)

    def _op(self, method, *args):
        """Run an operation, after its arguments have been looked at (calls.py)."""
        return self._run(method, take(method, args))

    def _run(self, method, args):
        """Run an operation in the process of the CPU that the task is on. Its arguments have been looked at."""
        return self._site.call_op(self._number, self.pid, method, args)

    def __repr__(self):
        return f"<task {self.pid}>"

    # -- mappings

    def mmap(
        self, length, prot=PROT_READ | PROT_WRITE, flags=MAP_PRIVATE | MAP_ANONYMOUS, file=None, offset=0, addr=None
    ):
        """Map `length` bytes, of an open file from byte `offset` on if one is given; a Mapping. Mirrors mmap(2)."""
        addr = 0 if addr is None else addr
        if file is not None:
            self._mine("mmap", file)
            addr, length, prot, flags, fd, offset = take("mmap_file", (addr, length, prot, flags, file.fd, offset))
            args = addr, length, prot, flags & ~MAP_ANONYMOUS, fd, offset
            return Mapping(self, self._run("mmap_file", args), length)
        args = addr, length, prot, flags, offset = take("mmap", (addr, length, prot, flags, offset))
        return Mapping(self, self._run("mmap", args), length)

    def _mine(self, call, file):
        """Raise unless a File is one of this task, or inherited."""
        if not isinstance(file, File):
            raise TypeError(f"{call}: file must be a File, which open and memfd_create give, not {shown(file)}")
        if file.task.pid != self.pid:
            self.fdopen(file)

    def munmap(self, addr, length):
        """munmap(2)"""
        self._op("munmap", addr, length)

    def mprotect(self, addr, length, prot):
        """mprotect(2)"""
        self._op("mprotect", addr, length, prot)

    def madvise(self, addr, length, advice, stride=None, each=None):
        """madvise(2); with `stride` one call for `each` bytes at every so many of the range."""
        self._op("madvise", addr, length, advice, stride, each)

    def mremap(self, addr, old_len, new_len, flags=0, new_addr=None):
        """mremap(2): the Mapping as it is then."""
        args = take("mremap", (addr, old_len, new_len, flags, 0 if new_addr is None else new_addr))
        return Mapping(self, self._run("mremap", args), args[2])

    def mlock(self, addr, length, flags=0):
        """mlock(2), or mlock2(2) with MLOCK_ONFAULT."""
        self._op("mlock2", addr, length, flags)

    def munlock(self, addr, length):
        """munlock(2)"""
        self._op("munlock", addr, length)

    def mlockall(self, flags):
        """mlockall(2) with MCL_*"""
        self._op("mlockall", flags)

    def munlockall(self):
        """munlockall(2)"""
        self._op("munlockall")

    def mincore(self, addr, length):
        """mincore(2): 1 for each page that is in memory, else 0, as an array."""
        return self._op("mincore", addr, length)

    def walk(self, addr):
        """The page-table entries that lead to an address, from the top to the first one that is not present: for each
        level, table (its physical address), index, entry, text (the same in words), pfn and writable. For who looks inside:
        it takes no emulated time, and no fault.
        """
        return PageWalk(self._op("walk", addr))

    def last_fault(self):
        """(CR2, error code) of the last page fault on the CPU the task is on."""
        return self._op("last_fault")

    def setrlimit(self, which, soft, hard=None):
        """setrlimit(2) with RLIMIT_*; bytes, or RLIM_INFINITY. Without `hard` only the soft limit changes."""
        self._op("setrlimit", which, soft, hard)

    def getrlimit(self, which):
        """getrlimit(2): (soft, hard)"""
        return self._op("getrlimit", which)

    def setuid(self, uid):
        """Become another user: 0 (every task at first) has every capability, others none."""
        self._op("setuid", uid)

    def prctl(self, option, arg, addr):
        """prctl(2), of which there is PR_SET_MM with PR_SET_MM_START_BRK and PR_SET_MM_BRK."""
        self._op("prctl", option, arg, addr)

    def sleep(self, ms):
        """Sleep for `ms` milliseconds of emulated time: other tasks of the CPU run, or else its clock moves on."""
        self._op("sleep", ms)

    def work(self, ns):
        """Compute for `ns` nanoseconds of emulated time: the CPU is busy, and accesses nothing."""
        self._op("work", ns)

    def sched_yield(self):
        """sched_yield(2): let the other tasks of the CPU run first."""
        self._op("sched_yield")

    def brk(self, addr=0):
        """Set the end of the heap; the end it has now (0 asks)."""
        return self._op("brk", addr)

    def msync(self, addr, length, flags=MS_SYNC):
        """msync(2): write what shared mappings of files in the range have made dirty."""
        self._op("msync", addr, length, flags)

    # -- files

    def open(self, path, flags=O_RDONLY):
        """open(2): a File."""
        path, flags = take("open", (path, flags))
        return File(self, self._op("open", path, flags), path)

    def fdopen(self, file):
        """What a descriptor means in this task, after fork the parent's files too: a File. `file` is another task's File
        of the same descriptor, or the descriptor's number.
        """
        fd = file.fd if isinstance(file, File) else file
        path = self._op("file_name", fd).removesuffix(" (deleted)")
        if isinstance(file, File) and path != file.path:
            raise OSError(
                errno.EBADF, f"descriptor {fd} of task {self.pid} is {path}, not {file.path}: it is not inherited"
            )
        return File(self, fd, path)

    def memfd_create(self, name, flags=0):
        """memfd_create(2): a File that lies in memory, and has no name that anybody could open."""
        name, flags = take("memfd_create", (name, flags))
        return File(self, self._op("memfd_create", name, flags), f"/memfd:{name}")

    # -- placement

    def set_mempolicy(self, mode, nodes=None):
        """set_mempolicy(2); `nodes` a node, several, or text like "0,2-3"."""
        self._op("set_mempolicy", mode, nodes)

    def mbind(self, addr, length, mode, nodes=None, flags=0):
        """mbind(2)"""
        self._op("mbind", addr, length, mode, nodes, flags)

    def get_mempolicy(self, addr=None, flags=0):
        """(mode, nodes); with MPOL_F_NODE a node instead of the mode. An address asks for that range's policy."""
        address, flags = take("get_mempolicy", (0 if addr is None else addr, flags))
        mode, mask = self._op("get_mempolicy", address, flags if addr is None else flags | MPOL_F_ADDR)
        return mode, nodes_of(mask)

    def node_of(self, addr):
        """The node whose memory backs an address (touching it first, as get_mempolicy(2) does)."""
        addr = ANY_ADDRESS.take("node_of", "addr", addr)
        self.load([addr], np.uint8)
        return self._op("get_mempolicy", addr, MPOL_F_ADDR | MPOL_F_NODE)[0]

    def move_pages(self, addresses, nodes=None, flags=MPOL_MF_MOVE, pid=0):
        """move_pages(2): the status of each page: its node, or -errno. nodes=None only asks.

        The array has `not_moved`: how many pages could not be moved, which is what the call itself returns.
        """
        not_moved, status = self._op("move_pages", pid, addresses, nodes, flags)
        status = status.view(PageStatus)
        status.not_moved = not_moved
        return status

    def accessed(self, addr, nbytes, clear=True, pid=0):
        """Which pages of a range were used since their Accessed bits were cleared last: an array of bool, as a sampler wants it.

        `clear` clears them, and every CPU forgets the range, so that no later access is missed. It takes no emulated time.
        """
        return self._op("accessed", addr, nbytes, clear, pid).view(bool)

    def migrate_pages(self, old_nodes, new_nodes, pid=0):
        """migrate_pages(2): how many pages could not be moved."""
        return self._op("migrate_pages", pid, old_nodes, new_nodes)

    def sched_setaffinity(self, cpus):
        """Move the task to one of `cpus`."""
        return self._op("sched_setaffinity", cpus)

    # -- accesses

    def load(self, addresses, dtype=np.uint64):
        """The values at an array of addresses, one emulated load each, of 1, 2, 4 or 8 bytes."""
        if (address := one_address(addresses)) is not None and (kind := word_kind(dtype)) is not None:
            return kind.array(self._run("word", (address, kind.nbytes, LOAD, 0)))
        return self._op("load", addresses, dtype)

    def store(self, addresses, values):
        """Store values (or one for all) at an array of addresses, one emulated store each."""
        if (address := one_address(addresses)) is not None and (word := stored(values)) is not None:
            self._run("word", (address, word[0], STORE, word[1]))
        else:
            self._op("store", addresses, values)

    def read(self, addr, nbytes):
        """`nbytes` bytes from `addr`."""
        return self._op("read", addr, nbytes)

    def write(self, addr, data):
        """Write bytes at `addr`."""
        self._op("write", addr, data)

    def execute(self, addr):
        """Fetch one instruction at a virtual address; SegmentationFault where execution is not allowed (NX)."""
        self._op("execute", addr)

    def touch(self, addr, nbytes, stride=PAGE_SIZE, write=True):
        """One access every `stride` bytes."""
        self._op("touch", addr, nbytes, stride, write)

    def call(self, kernel, *args):
        """Run kernel(cpu, *args), a function compiled with numba.njit that accesses memory through load_u64 and so on."""
        return self._op("call", kernel, args)

    def malloc_heap(self, kind, **options):
        """A heap in user mode on the task's memory (numaemu.malloc): `kind` is "implicit", "explicit", "segregated", "buddy",
        "dlmalloc" or "ptmalloc", or the Heap of another thread of the process. The guide on heaps lists the options.
        """
        return importlib.import_module("numaemu.malloc.heap").new_heap(self, kind, **options)

    def gc_heap(self, collector, size="16MiB", **options):
        """A garbage-collected heap in user mode on the task's memory (numaemu.gc): `collector` is "refcount", "mark-sweep",
        "mark-compact", "copying" or "generational". The guide on heaps lists the options.
        """
        return importlib.import_module("numaemu.gc.heap").new_heap(self, collector, size, **options)

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
        args = take("execve", (path, [path] if argv is None else argv, envp))
        for number, pid in self._op("other_threads"):
            with contextlib.suppress(OSError, NumaemuError):  # it may just have ended
                self._site.call_op(number, pid, "die", (SIGKILL,))
        return self._op("execve", *args)

    def _child(self, how, function, args, cpu):
        if function is not None:
            runnable(how, function)
        number, pid = self._op(how, cpu)
        cpu = self.cpu if cpu is None else cpu
        if function is not None:
            try:
                return self._site.start(number, pid, cpu, function, args)
            except BaseException:  # it cannot be pickled, or has no thread there: nobody would ever end the child
                with contextlib.suppress(OSError, NumaemuError):
                    self._site.call_op(number, pid, "die", (SIGKILL,))
                raise
        self._site.call_op(number, pid, "place", (cpu,))
        return Task(number, pid, self._site)

    def exit(self, code=0):
        """End the task: its memory goes back."""
        self._op("exit", code)

    def wait(self, pid=-1, flags=0):
        """waitpid(2): (pid, status) of a child that has ended (threads are none): signal, or exit code << 8.

        With WNOHANG None if none has ended yet; ChildProcessError if there is none to wait for.
        """
        pid, flags = take("wait", (pid, flags))
        while (answer := self._op("wait", pid, flags)) is None and not flags & WNOHANG:
            self._site.pause(WAIT_POLL_S)
        return answer

    def kill(self, pid, sig):
        """kill(2): any signal ends the process that task `pid` belongs to, with all its threads; 0 only looks whether it is
        there. Their memory is freed where they run.
        """
        pid, sig = take("kill", (pid, sig))
        self._op("kill", pid, sig)
        for number, member in self._op("thread_group", pid) if sig else ():
            with contextlib.suppress(ProcessLookupError, OutOfMemory):  # it may just have ended
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
