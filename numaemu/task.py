"""What a workload holds: tasks, their mappings and arrays. The same objects in a CPU's process and in the driver.

A Task does nothing itself: its `site` runs an operation on the CPU the task is on — a plain call if that is this
process, a message if not.
"""
import contextlib
import errno
import time

import numpy as np

from numaemu.errors import NumaemuError
from numaemu.explain import Trail
from numaemu.files import File
from numaemu.kernel import gfp as gfp_types
from numaemu.kernel.gfp import GFP_KERNEL
from numaemu.payload import dump_function
from numaemu.uapi import (MAP_ANONYMOUS, MAP_PRIVATE, MPOL_F_ADDR, MPOL_F_NODE, MPOL_MF_MOVE, MS_SYNC, O_RDONLY,
                          PROT_READ, PROT_WRITE, PR_SET_MM, SIGKILL, WNOHANG)
from numaemu.units import parse_size

HIGHMEM, ZERO = (getattr(gfp_types, f"__GFP_{name}") for name in ("HIGHMEM", "ZERO"))     # mangled inside a class

LOWEST_PAGE_OFFSET = 0xC000_0000  # of any page-table format; where pfns are as large, the kernel knows
WAIT_POLL_S = 0.002              # between two looks of wait


def node_mask(nodes):
    """A mask from a node, several nodes, text like "0,2-3", or None for none."""
    if nodes is None:
        return 0
    if isinstance(nodes, str):
        nodes = [n for part in nodes.split(",") if part.strip() for n in _span(part)]
    if isinstance(nodes, (int, np.integer)):
        nodes = [nodes]
    mask = 0
    for node in nodes:
        if not 0 <= int(node) < 64:
            raise ValueError(f"node {node} is not one of 0 to 63")
        mask |= 1 << int(node)
    return mask


def _span(part):
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def loadable(dtype):
    """The dtype, if one access can move it."""
    dtype = np.dtype(dtype)
    if dtype.itemsize not in (1, 2, 4, 8) or dtype.hasobject:
        raise TypeError(f"dtype {dtype} has {dtype.itemsize} bytes, an access moves 1, 2, 4 or 8")
    return dtype


def nodes_of(mask):
    """The nodes of a mask, in order."""
    return [n for n in range(64) if mask >> n & 1]


class Handle:
    """A started task: its pid, and its function's result when it has returned."""

    def __init__(self, pid, future):
        self.pid, self.future = pid, future

    def result(self, timeout=None):
        """What the function returned; raises what it raised, TimeoutError after `timeout` seconds."""
        return self.future.result(timeout)

    def done(self):
        """True if the function has returned or raised."""
        return self.future.done()


class Task:
    """An emulated thread. Sizes are bytes or text like "64MiB"; addresses are emulated virtual ones."""

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
        return Mapping(self, self._op("mmap", addr or 0, nbytes, prot, flags), nbytes)

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
        while (answer := self._op("wait", pid)) is None and not flags & WNOHANG:
            time.sleep(WAIT_POLL_S)
        return answer

    def kill(self, pid, sig):
        """kill(2): any signal ends the task, 0 only looks whether it is there. Its memory is freed where it runs."""
        number = self._op("find", pid)
        if sig:
            self._site.call_op(number, pid, "die", (sig,))

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


class KernelCalls:
    """task.kernel: the kernel's own allocation functions, run by the CPU the task is on."""

    def __init__(self, task):
        self._task = task

    # -- pages, by pfn

    def alloc_pages(self, gfp, order=0, nid=-1, nodes=None, explain=False):
        """2**order pages: the first pfn, or None if nobody could serve it. With `explain` (pfn, trail): the trail is a
        list of the steps that were taken, prints as a table and has pfn and cost_ns.
        """
        mask = node_mask(nodes) if nodes is not None else (1 << 64) - 1
        if not explain:
            return self._task._op("alloc_pages", gfp, order, nid, mask) or None
        pfn, steps, lost = self._task._op("explain_pages", gfp, order, nid, mask)
        return pfn or None, Trail(pfn or None, gfp, order, steps, lost)

    def alloc_page(self, gfp):
        """One page: its pfn, or None."""
        return self.alloc_pages(gfp)

    def alloc_pages_node(self, nid, gfp, order=0):
        """As alloc_pages, near node `nid` (-1: this CPU's)."""
        return self.alloc_pages(gfp, order, nid)

    def free_pages(self, pfn, order=0):
        """Drop a reference to 2**order pages and free them if it was the last, as __free_pages; KernelBug if they are
        free already or a compound page of another order. Also takes an address from get_free_pages, as free_pages.
        """
        self._task._op("free_pages", self._pfn(pfn), order)

    def free_page(self, pfn):
        """Give one page back."""
        self.free_pages(pfn, 0)

    def free_hot_page(self, pfn):
        """Give one page back, to be the next that this CPU takes."""
        self._task._op("free_hot_cold_page", self._pfn(pfn), False)

    def free_cold_page(self, pfn):
        """Give one page back, to be the last of this CPU's list."""
        self._task._op("free_hot_cold_page", self._pfn(pfn), True)

    def page_address(self, pfn):
        """Where a page lies in the kernel's direct map, or where kmap has put it; None: it is unmapped high memory."""
        return self._task._op("page_address", pfn) or None

    def _pfn(self, where):
        """A pfn, from itself or from an address in the direct map."""
        return where if where < LOWEST_PAGE_OFFSET else self._task._op("virt_to_pfn", where)

    # -- pages, by address

    def get_free_pages(self, gfp, order=0):
        """2**order pages: their address in the direct map, or None; never high memory. Mirrors __get_free_pages."""
        pfn = self.alloc_pages(gfp & ~HIGHMEM, order)
        return self.page_address(pfn) if pfn else None

    def get_free_page(self, gfp):
        """One page: its address. Mirrors __get_free_page."""
        return self.get_free_pages(gfp)

    def get_zeroed_page(self, gfp):
        """One page of zeros: its address."""
        return self.get_free_pages(gfp | ZERO)

    def page(self, pfn):
        """What the page struct says: node, zone, flags, counts."""
        return self._task._op("page", pfn)


    def kmalloc(self, size, gfp, nid=-1):
        """`size` bytes of kernel memory: its address, or None if nobody could serve it."""
        return self._task._op("kmalloc", size, gfp, nid) or None

    def kfree(self, address):
        """Give memory from kmalloc back; KernelBug if there is none at this address."""
        self._task._op("kfree", address or 0)

    def ksize(self, address):
        """How many bytes kmalloc really gave."""
        return self._task._op("ksize", address)

    def kmalloc_waste(self):
        """{cache: objects, requested, allocated and wasted bytes} of all kmalloc calls since boot."""
        return self._task._op("kmalloc_waste")

    def kmem_cache_create(self, name, size, align=0, flags=0, ctor=None, colour=False):
        """A cache of objects of `size` bytes.

        `ctor`: bytes that every new object begins with; or a function that is called with each object of a new slab,
        once, before it is given out. That has `address`, `nbytes` and `write(offset, data)`, and holds zeros. It runs
        inside the kernel of the CPU that needs the slab, so it may do nothing else. Objects are freed in this state.
        `colour`: slabs begin at different cache lines, in turn, as far as they have bytes to spare (as Linux's old SLAB).
        """
        if callable(ctor):
            ctor = (dump_function(ctor, ()),)
        return KmemCache(self._task, self._task._op("kmem_cache_create", name, size, align, flags, ctor, colour), name)

    def register_shrinker(self, cache, link=0, seeks=2, batch=128):
        """Let memory pressure free objects of a cache (SLAB_RECLAIM_ACCOUNT) that nobody uses: a Shrinker.

        Objects keep 16 bytes at `link` for it. `seeks`: how dear an object is to make again, 2 as a page of a file.
        """
        return Shrinker(self._task, self._task._op("register_shrinker", cache.number, link, seeks, batch))

    def shrink_slab(self, gfp, nid, priority):
        """What reclaim does on a node: every shrinker frees a share of its objects; how many. Mirrors shrink_slab."""
        return self._task._op("shrink_slab", gfp, nid, priority)

    def drop_slab(self):
        """Free all objects that shrinkers can; how many. What vm.drop_caches = 2 does."""
        return self._task._op("drop_slab")

    def alloc_percpu(self, size, align=8, gfp=GFP_KERNEL):
        """`size` zero bytes for each CPU, on its node: a handle for per_cpu_ptr and its kin; None: no memory."""
        return self._task._op("alloc_percpu", size, align, gfp) or None

    def free_percpu(self, handle):
        """Give memory from alloc_percpu back."""
        self._task._op("free_percpu", handle)

    def define_per_cpu(self, name, size=8, align=8):
        """The handle of a static per-CPU variable: DEFINE_PER_CPU the first time, DECLARE_PER_CPU from then on."""
        return self._task._op("define_per_cpu", name, size, align)

    def per_cpu_ptr(self, handle, cpu):
        """The kernel address of a CPU's copy."""
        return self._task._op("per_cpu_ptr", handle, cpu)

    def this_cpu_add(self, handle, n=1):
        """Add to this CPU's copy, a signed 64-bit word."""
        self._task._op("this_cpu_add", handle, n)

    def this_cpu_read(self, handle):
        """This CPU's copy, a signed 64-bit word."""
        return self._task._op("this_cpu_read", handle)

    @contextlib.contextmanager
    def get_cpu_var(self, handle):
        """The address of this CPU's copy, for a block of operations in which no other task runs on this CPU."""
        address = self._task._op("get_cpu_var", handle)
        try:
            yield address
        except BaseException:
            with contextlib.suppress(OSError, NumaemuError):         # the task may have ended
                self._task._op("put_cpu_var")
            raise
        self._task._op("put_cpu_var")

    # -- the kernel's address space

    def vmalloc(self, size, gfp=GFP_KERNEL, nid=-1):
        """`size` bytes in whole pages, contiguous in virtual addresses only, by the task's policy or from node `nid`: their
        address, or None if nobody could serve it. A guard page follows.
        """
        return self._task._op("vmalloc", parse_size(size, "vmalloc size"), gfp, nid) or None

    def vzalloc(self, size, nid=-1):
        """The same, zeroed."""
        return self.vmalloc(size, GFP_KERNEL | ZERO, nid)

    def vfree(self, address):
        """Give memory from vmalloc back; its addresses only after a purge (vm_unmap_aliases, or when too many wait)."""
        if address:
            self._task._op("vfree", address)

    def vmap(self, pfns):
        """Map pages that one has, given by pfn, one after another: the first address, or None."""
        return self._task._op("vmap", [int(pfn) for pfn in pfns]) or None

    def vunmap(self, address):
        """Undo vmap; the pages stay."""
        self._task._op("vunmap", address)

    def vm_unmap_aliases(self):
        """Let every CPU forget the addresses that have been given back, so that they may be used again."""
        self._task._op("vm_unmap_aliases")

    def use_stack(self, nbytes, irq=False):
        """Local variables of so many bytes on the task's kernel stack (or the CPU's interrupt stack): KernelBug (kernel stack
        overflow) if it has less.
        """
        self._task._op("use_stack", parse_size(nbytes, "use_stack"), irq)

    def recurse(self, depth, frame_bytes=96, irq=False):
        """`depth` nested calls with frames of so many bytes: how many came back."""
        return self._task._op("recurse", depth, frame_bytes, irq)

    def kmap(self, pfn):
        """The address of a page that may be high memory, until kunmap. Waits while all LAST_PKMAP addresses are in use."""
        while (address := self._task._op("kmap", pfn)) is None:
            time.sleep(WAIT_POLL_S)
        return address

    def kunmap(self, pfn):
        """One kmap of a page less."""
        self._task._op("kunmap", pfn)

    def kmap_atomic(self, pfn):
        """The same on this CPU only, which no other task gets until kunmap_atomic; nothing in between may sleep."""
        return self._task._op("kmap_atomic", pfn)

    def kunmap_atomic(self, address):
        """Undo the last kmap_atomic, by its address."""
        self._task._op("kunmap_atomic", address)

    def vmalloc_to_page(self, address):
        """The pfn behind a kernel address as the kernel's page table has it, or None."""
        return self._task._op("vmalloc_to_page", address) or None

    def read(self, address, nbytes):
        """Bytes at a kernel address, loaded in kernel mode; KernelBug (an oops) where nothing is mapped."""
        return self._task._op("kernel_read", address, nbytes)

    def write(self, address, data):
        """Store bytes at a kernel address, in kernel mode."""
        self._task._op("kernel_write", address, bytes(data))


for _name in ("free_pages", "get_free_pages", "get_free_page"):       # Linux's names, which a class would mangle
    setattr(KernelCalls, f"__{_name}", getattr(KernelCalls, _name))


class KmemCache:
    """A slab cache. `number` is what compiled code gives to numaemu.kmem_cache_alloc and kmem_cache_free."""

    def __init__(self, task, number, name):
        self.task, self.number, self.name = task, number, name

    def __repr__(self):
        return f"<kmem_cache {self.name}>"

    def alloc(self, gfp, nid=-1):
        """The address of an object, near node `nid` if given; None if nobody could serve it."""
        return self.task._op("kmem_cache_alloc", self.number, gfp, nid) or None

    def free(self, address):
        """Give an object back."""
        self.task._op("kmem_cache_free", self.number, address)

    def shrink(self):
        """Give empty slabs back to the page allocator."""
        self.task._op("kmem_cache_shrink", self.number)

    def destroy(self):
        """End the cache, which nobody may use any more; KernelBug if objects are left."""
        self.task._op("kmem_cache_destroy", self.number)


class Shrinker:
    """What lets a cache's unused objects go. Compiled code gives `number` to numaemu.list_lru_add and _del."""

    def __init__(self, task, number):
        self.task, self.number = task, number

    def list_lru_add(self, address):
        """Nobody uses an object any more, it may be freed from now on; False if it was on the list."""
        return self.task._op("list_lru_add", self.number, address)

    def list_lru_del(self, address):
        """Use an object again; False if it was not on the list, because it has been freed."""
        return self.task._op("list_lru_del", self.number, address)

    def list_lru_count(self, nid):
        """Objects on a node's list."""
        return self.task._op("list_lru_count", self.number, nid)

    def unregister(self):
        """End the shrinker, whose lists are empty."""
        self.task._op("unregister_shrinker", self.number)


class Mapping:
    """A mapped range: addr and nbytes."""

    def __init__(self, task, addr, nbytes):
        self.task, self.addr, self.nbytes = task, addr, nbytes

    def __repr__(self):
        return f"<mapping {self.addr:#x}-{self.addr + self.nbytes:#x}>"

    def array(self, dtype=np.uint64, offset=0, length=None):
        """The range as an array of `dtype`; every element access is an emulated access."""
        dtype = loadable(dtype)
        length = (self.nbytes - offset) // dtype.itemsize if length is None else length
        return VirtualArray(self.task, self.addr + offset, dtype, length)

    def touch(self, write=True, stride=4096):
        """One access per page."""
        self.task.touch(self.addr, self.nbytes, stride, write)
        return self

    def pages(self):
        """The addresses of the pages."""
        return np.arange(self.addr, self.addr + self.nbytes, 4096, dtype=np.uint64)

    def nodes(self):
        """The node of each page, or -errno where there is none."""
        return self.task.move_pages(self.pages())

    def msync(self, flags=MS_SYNC):
        """msync(2) of the whole range."""
        self.task.msync(self.addr, self.nbytes, flags)

    def munmap(self):
        """Unmap the whole range."""
        self.task.munmap(self.addr, self.nbytes)


class VirtualArray:
    """A one-dimensional array in emulated memory: a[i], a[i:j], a[index_array], and the same to store."""

    def __init__(self, task, addr, dtype, length):
        self.task, self.addr, self.dtype, self.length = task, addr, dtype, length

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
            if picked.dtype == bool:
                picked = np.flatnonzero(picked)
            if picked.size and (picked.min() < -self.length or picked.max() >= self.length):
                bad = picked.max() if picked.max() >= self.length else picked.min()
                raise IndexError(f"index {bad} of an array of {self.length} elements")
            picked = np.where(picked < 0, picked + self.length, picked)
        return np.uint64(self.addr) + picked.astype(np.uint64) * np.uint64(self.dtype.itemsize)

    def __getitem__(self, index):
        where = self.addresses(index)
        values = self.task.load(np.atleast_1d(where), self.dtype)
        return values if where.ndim else values[0]

    def __setitem__(self, index, values):
        where = np.atleast_1d(self.addresses(index))
        values = np.asarray(values, self.dtype)
        if values.size != 1:
            values = np.broadcast_to(values, where.shape)
        self.task.store(where, values)

    def __array__(self, dtype=None, copy=None):
        values = self[:]
        return values if dtype is None else values.astype(dtype)
