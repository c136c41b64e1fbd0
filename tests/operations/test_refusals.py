"""What a person reads when a call is refused: the call, the argument, its value, what would be allowed; and no call is silent."""

import errno
import inspect
import re

import numpy as np
import pytest

from numaemu import (
    GFP_KERNEL,
    MADV_DONTNEED,
    MADV_POPULATE_READ,
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MFD_HUGETLB,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_MF_MOVE_ALL,
    MREMAP_FIXED,
    O_CREAT,
    O_RDWR,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    RLIMIT_AS,
    RLIMIT_STACK,
    KernelBug,
    SegmentationFault,
)
from numaemu.api.allocators import KernelCalls, KmemCache, Shrinker
from numaemu.api.arguments import Optional
from numaemu.api.calls import CALLS
from numaemu.api.files import File
from numaemu.api.mapping import Mapping
from numaemu.api.task import Task
from numaemu.operations.base import Operations

pytestmark = pytest.mark.interpreted
PAGE = 4096
ANON = MAP_PRIVATE | MAP_ANONYMOUS
RLIM_INFINITY = (1 << 64) - 1


class World:
    """A task and one of everything that it may hold."""

    def __init__(self, loop):
        self.loop, self.task = loop, loop.task()
        self.kernel = self.task.kernel
        self.area = self.task.mmap(8 * PAGE).touch()
        self.array = self.area.array()
        self.file = self.task.open("/mnt/f", O_RDWR | O_CREAT)
        self.file.write(b"contents")
        self.reader = self.task.open("/mnt/f")
        self.other = loop.task()
        self.cache = self.kernel.kmem_cache_create("c", 64, flags=1 << 17)
        self.handle = self.kernel.alloc_percpu(8)


@pytest.fixture(scope="module")
def world():
    from loopback import SMALL_TLB, Loopback

    with Loopback(nodes=2, cpus_per_node=1, memory_per_node="16MiB", **SMALL_TLB) as loop:
        yield World(loop)


# fmt: off
VALUES = [
    # the call, its errno (or exception), what it says
    (lambda w: w.task.set_mempolicy(MPOL_BIND, 7), "EINVAL", "set_mempolicy: node 7 is not a node of this machine (0-1)"),
    (lambda w: w.task.set_mempolicy(MPOL_BIND, 64), "EINVAL", "set_mempolicy: node 64 is not a node of this machine (0-1)"),
    (lambda w: w.task.set_mempolicy(MPOL_BIND, -1), "EINVAL", "set_mempolicy: node -1 is not a node of this machine (0-1)"),
    (lambda w: w.task.set_mempolicy(MPOL_BIND), "EINVAL", "set_mempolicy: nodes must name a node at least with MPOL_BIND"),
    (lambda w: w.task.set_mempolicy(MPOL_DEFAULT, 0), "EINVAL", "set_mempolicy: nodes [0]: MPOL_DEFAULT takes none"),
    (lambda w: w.task.set_mempolicy(9), "EINVAL", "set_mempolicy: mode 9 is none of MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND"),
    (lambda w: w.task.mbind(w.area.addr, PAGE, MPOL_BIND, 5), "EINVAL", "mbind: node 5 is not a node of this machine (0-1)"),
    (lambda w: w.task.mbind(w.area.addr + 8, PAGE, MPOL_BIND, 0), "EINVAL", "mbind: addr 0x%x is no multiple of the page size (4096)"),
    (lambda w: w.task.mbind(w.area.addr, PAGE, MPOL_BIND, 0, 64), "EINVAL",
     "mbind: flags 0x40: 0x40 is none of MPOL_MF_STRICT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL"),
    (lambda w: w.task.mbind(0x1000_0000, PAGE, MPOL_BIND, 0), "EFAULT", "mbind: nothing is mapped at 0x10000000-0x10001000"),
    (lambda w: w.task.get_mempolicy(0x1000_0000), "EFAULT", "get_mempolicy: nothing is mapped at 0x10000000"),
    (lambda w: w.task.get_mempolicy(w.area.addr, 8), "EINVAL", "get_mempolicy: flags MPOL_F_ADDR | 0x8: 0x8 is none of MPOL_F_NODE"),
    (lambda w: w.task.move_pages([w.area.addr], 7), "ENODEV", "move_pages: node 7 is not a node of this machine (0-1)"),
    (lambda w: w.task.move_pages([w.area.addr], 1, pid=4711), "ESRCH", "move_pages: no task has pid 4711"),
    (lambda w: w.task.move_pages([w.area.addr] * 3, [0, 1]), ValueError, "move_pages: 2 nodes for 3 addresses"),
    (lambda w: w.task.migrate_pages(0, 7), "EINVAL", "migrate_pages: node 7 is not a node of this machine (0-1)"),
    (lambda w: w.task.sched_setaffinity([9]), "EINVAL", "sched_setaffinity: cpu 9 is not a CPU of this machine (0-1)"),
    (lambda w: w.task.sched_setaffinity([]), "EINVAL", "sched_setaffinity: cpus must name a CPU at least"),
    (lambda w: w.task.clone(cpu=9), "EINVAL", "clone: cpu 9 is not a CPU of this machine (0-1)"),
    (lambda w: w.task.fork(cpu=-1), "EINVAL", "fork: cpu -1 is not a CPU of this machine (0-1)"),
    (lambda w: w.task.vfork(cpu=2), "EINVAL", "vfork: cpu 2 is not a CPU of this machine (0-1)"),
    (lambda w: w.task.mmap(0), "EINVAL", "mmap: length is 0, must be at least 1"),
    (lambda w: w.task.mmap(-1), "ENOMEM", "mmap: length 18446744073709551615 is more than an address space has (0x7ffffffff000)"),
    (lambda w: w.task.mmap(1 << 70), "ENOMEM", "mmap: length 18446744073709551615 is more than an address space has"),
    (lambda w: w.task.mmap(PAGE, flags=MAP_ANONYMOUS), "EINVAL", "mmap: flags MAP_ANONYMOUS must have MAP_PRIVATE or MAP_SHARED"),
    (lambda w: w.task.mmap(PAGE, flags=MAP_PRIVATE), "EBADF", "mmap: flags MAP_PRIVATE: without MAP_ANONYMOUS a file must be given"),
    (lambda w: w.task.mmap(PAGE, flags=ANON | MAP_HUGETLB), "ENOMEM", "mmap: length 4KiB: 0 huge pages of 2MiB are to be had"),
    (lambda w: w.task.mmap(PAGE, flags=ANON | MAP_FIXED_NOREPLACE, addr=w.area.addr), "EEXIST", "mmap: something is mapped at 0x%x"),
    (lambda w: w.task.mmap(PAGE, file=w.file, offset=5), "EINVAL", "mmap: offset 5 is no multiple of the page size (4096)"),
    (lambda w: w.task.mmap(PAGE, file=w.reader, flags=MAP_SHARED), "EACCES",
     "mmap: prot PROT_READ | PROT_WRITE needs a file that is open O_RDWR, this one is O_RDONLY"),
    (lambda w: w.task.munmap(w.area.addr, 0), "EINVAL", "munmap: length is 0, must be at least 1"),
    (lambda w: w.task.munmap(w.area.addr, -PAGE), "EINVAL", "munmap: length 18446744073709547520 is more than an address space has"),
    (lambda w: w.task.mprotect(w.area.addr, PAGE, 0x100), "EINVAL", "mprotect: prot 0x100: 0x100 is none of PROT_READ, PROT_WRITE, "),
    (lambda w: w.task.mprotect(0x1000_0000, PAGE, PROT_READ), "ENOMEM", "mprotect: nothing is mapped at 0x10000000-0x10001000"),
    (lambda w: w.task.madvise(w.area.addr, PAGE, 99), "EINVAL", "madvise: advice 99 is none of MADV_NORMAL, MADV_RANDOM"),
    (lambda w: w.task.madvise(w.area.addr, 9 * PAGE, MADV_DONTNEED), "ENOMEM", "madvise: nothing is mapped at 0x"),
    (lambda w: w.task.madvise(w.task.mmap(PAGE, PROT_NONE).addr, PAGE, MADV_POPULATE_READ), "EINVAL",
     "madvise: advice MADV_POPULATE_READ needs PROT_READ: the mapping 0x"),
    (lambda w: w.task.mremap(w.area.addr, PAGE, PAGE, MREMAP_FIXED), "EINVAL", "mremap: flags MREMAP_FIXED needs MREMAP_MAYMOVE"),
    (lambda w: w.task.mremap(0x1000_0000, PAGE, PAGE), "EFAULT", "mremap: nothing is mapped at 0x10000000-0x10001000"),
    (lambda w: w.task.mlock(0x1000_0000, PAGE), "ENOMEM", "mlock: nothing is mapped at 0x10000000-0x10001000"),
    (lambda w: w.task.mlock(w.area.addr, "1GiB"), "ENOMEM", "mlock: "),
    (lambda w: w.task.munlock(0x1000_0000, PAGE), "ENOMEM", "munlock: nothing is mapped at 0x10000000-0x10001000"),
    (lambda w: w.task.mlockall(0), "EINVAL", "mlockall: flags must have MCL_CURRENT or MCL_FUTURE"),
    (lambda w: w.task.mincore(w.area.addr, -1), "ENOMEM", "mincore: length 18446744073709551615 is more than an address space has"),
    (lambda w: w.task.msync(w.area.addr, PAGE, 5), "EINVAL", "msync: refused with addr 0x%x, length 4096, flags MS_ASYNC | MS_SYNC [Invalid argument]"),
    (lambda w: w.task.setrlimit(16, 1), "EINVAL", "setrlimit: which 16 is no limit, must be 0 to 15 (RLIMIT_*)"),
    (lambda w: w.task.setrlimit(RLIMIT_STACK, 2, 1), "EINVAL", "setrlimit: soft limit 2 is above the hard one, 1"),
    (lambda w: w.task.getrlimit(-1), "EINVAL", "getrlimit: which -1 is no limit, must be 0 to 15 (RLIMIT_*)"),
    (lambda w: w.task.setuid(-1), "EINVAL", "setuid: uid -1 must be 0 to 4294967294"),
    (lambda w: w.task.prctl(-1, 0, 0), "EINVAL", "prctl: option -1 is none of PR_SET_MM"),
    (lambda w: w.task.prctl(22, 0, 0), NotImplementedError, "prctl: option 22 is not there, only PR_SET_MM (35)"),
    (lambda w: w.task.sleep(-1), "EINVAL", "sleep: ms is -1, must not be negative"),
    (lambda w: w.task.work(-1), "EINVAL", "work: ns is -1, must not be negative"),
    (lambda w: w.task.wait(4711), "ECHILD", "wait: task %p has no child with pid 4711"),
    (lambda w: w.task.wait(0), NotImplementedError, "wait: pid 0 means a process group, and there are none"),
    (lambda w: w.task.kill(4711, 9), "ESRCH", "kill: no task has pid 4711"),
    (lambda w: w.task.kill(w.other.pid, 2000), "EINVAL", "kill: sig 2000 is no signal, must be 0 to 64"),
    (lambda w: w.task.kill(0, 9), NotImplementedError, "kill: pid 0 means a process group, and there are none"),
    (lambda w: w.task.open("/mnt/none"), "ENOENT", "open: no file has this name (O_CREAT makes one) [No such file or directory]: '/mnt/none'"),
    (lambda w: w.task.open("none"), "ENOENT", "open: path 'none' must begin with /"),
    (lambda w: w.task.open("/" + "x" * 300), "ENAMETOOLONG", "open: a path of 301 bytes, it may have 263"),
    (lambda w: w.task.fdopen(99), "EBADF", "fdopen: descriptor 99 is not open (open: 3-4)"),
    (lambda w: w.task.memfd_create("m" * 250), "EINVAL", "memfd_create: name has 250 bytes, at most 249"),
    (lambda w: w.task.memfd_create("m", MFD_HUGETLB | 16 << 26), "ENODEV", "memfd_create: flags MFD_HUGETLB | 0x40000000: there are huge pages of 2MiB"),
    (lambda w: w.task.execve("/mnt/none"), "ENOENT", "execve: "),
    (lambda w: w.task.load([0x1000_0000]), SegmentationFault, "load from 0x10000000"),
    (lambda w: w.task.load([-8]), SegmentationFault, "load from 0xfffffffffffffff8"),
    (lambda w: w.task.store([w.area.addr] * 2, [1, 2, 3]), ValueError, "store: 3 values for 2 addresses"),
    (lambda w: w.task.touch(w.area.addr, PAGE, 0), ValueError, "touch: stride is 0, must be at least 1"),
    (lambda w: w.array[4096], IndexError, "index 4096 of an array of 4096 elements"),
    (lambda w: w.area.array(offset=-8), ValueError, "array: 4097 elements of 8 bytes from byte -8 on do not fit into the 32768 bytes"),
    (lambda w: w.area.array(length=5000), ValueError, "array: 5000 elements of 8 bytes from byte 0 on do not fit"),
    (lambda w: w.file.pread(1, -1), "EINVAL", "read: offset -1 must not be negative"),
    (lambda w: w.file.read(-1), "EINVAL", "read: nbytes -1 must not be negative"),
    (lambda w: w.file.pwrite(b"x", -1), "EINVAL", "write: offset -1 must not be negative"),
    (lambda w: w.reader.write(b"x"), "EBADF", "write: descriptor 4 is open O_RDONLY"),
    (lambda w: w.reader.truncate(1), "EINVAL", "ftruncate: descriptor 4 is open O_RDONLY, must be O_WRONLY or O_RDWR"),
    (lambda w: w.file.truncate(-1), "EINVAL", "ftruncate: size -1 must not be negative"),
    (lambda w: w.file.truncate(1 << 60), "EFBIG", "ftruncate: size 1152921504606846976: a file may have 64TiB"),
    (lambda w: w.file.seek(0, 7), "EINVAL", "lseek: whence 7 is none of SEEK_SET, SEEK_CUR, SEEK_END"),
    (lambda w: w.file.fadvise(0, 0, 99), "EINVAL", "posix_fadvise: advice 99 is none of POSIX_FADV_NORMAL"),
    (lambda w: w.file.dup(1 << 20), "EBADF", "dup: descriptor 1048576 must be 0 to "),
    (lambda w: w.file.read_through(chunk=0), ValueError, "read: chunk 0 must be at least 1"),
    (lambda w: w.kernel.alloc_pages(GFP_KERNEL, 99), ValueError, "alloc_pages: order 99 must be 0 to 10 (MAX_PAGE_ORDER)"),
    (lambda w: w.kernel.alloc_pages(GFP_KERNEL, 0, 5), ValueError, "alloc_pages: node 5 is not one of 0 to 1"),
    (lambda w: w.kernel.alloc_pages(GFP_KERNEL, nodes=[0, 9]), ValueError, "alloc_pages: node 9 is not one of 0 to 1"),
    (lambda w: w.kernel.alloc_pages(1 << 40), ValueError, "alloc_pages: gfp 0x10000000000 has bits that are none of __GFP_*"),
    (lambda w: w.kernel.alloc_pages(-1, explain=True), ValueError, "alloc_pages: gfp -0x1 has bits that are none of __GFP_*"),
    (lambda w: w.kernel.get_free_pages(GFP_KERNEL, -1), ValueError, "alloc_pages: order -1 must be 0 to 10"),
    (lambda w: w.kernel.free_pages(1 << 30), KernelBug, "no memory there"),
    (lambda w: w.kernel.free_pages(5, 11), ValueError, "free_pages: order 11 must be 0 to 10"),
    (lambda w: w.kernel.page(1 << 40), KernelBug, "no memory there"),
    (lambda w: w.kernel.page(-1), KernelBug, "no memory there"),
    (lambda w: w.kernel.page_address(-1), KernelBug, "no memory there"),
    (lambda w: w.kernel.kmalloc(1 << 30, GFP_KERNEL), ValueError, "kmalloc of 1073741824 bytes: at most"),
    (lambda w: w.kernel.kmalloc(-1, GFP_KERNEL), ValueError, "kmalloc of 18446744073709551615 bytes: at most"),
    (lambda w: w.kernel.kmalloc(8, 1 << 40), ValueError, "kmalloc: gfp 0x10000000000 has bits that are none of __GFP_*"),
    (lambda w: w.kernel.kfree(64), KernelBug, ""),
    (lambda w: w.kernel.ksize(64), KernelBug, "Invalid object pointer"),
    (lambda w: w.kernel.kmem_cache_create("a b", 8), ValueError, "kmem_cache_create: name 'a b' must have 1 to 31 bytes, no spaces"),
    (lambda w: w.kernel.kmem_cache_create("x", 0), ValueError, "kmem_cache_create: x: 0 bytes, must be 1 to"),
    (lambda w: w.kernel.kmem_cache_create("x", 8, align=3), ValueError, "kmem_cache_create: x: align 3 must be a power of two"),
    (lambda w: w.cache.alloc(GFP_KERNEL, 7), ValueError, "kmem_cache_alloc: node 7 is not one of 0 to 1"),
    (lambda w: w.cache.free(64), KernelBug, ""),
    (lambda w: w.kernel.shrink_slab(GFP_KERNEL, 0, 99), ValueError, "shrink_slab: priority 99 must be 0 to 12 (DEF_PRIORITY)"),
    (lambda w: w.kernel.alloc_percpu(0), ValueError, "alloc_percpu: 0 bytes, aligned to 8, must be 1 to 32768 bytes"),
    (lambda w: w.kernel.free_percpu(64), KernelBug, "nothing begins at 0x40"),
    (lambda w: w.kernel.define_per_cpu(""), ValueError, "per-CPU variable ''"),
    (lambda w: w.kernel.per_cpu_ptr(w.handle, 9), ValueError, "per_cpu_ptr: cpu 9 is not one of 0 to 1"),
    (lambda w: w.kernel.this_cpu_add(64), KernelBug, "no 8 bytes at 0x40"),
    (lambda w: w.kernel.this_cpu_read(64), KernelBug, "no 8 bytes at 0x40"),
    (lambda w: w.kernel.get_cpu_var(64).__enter__(), KernelBug, "no 1 bytes at 0x40"),
    (lambda w: w.kernel.vfree(64), KernelBug, "begins no page"),
    (lambda w: w.kernel.vmap([1 << 40]), KernelBug, "no memory there"),
    (lambda w: w.kernel.vunmap(64), KernelBug, "nonexistent vm area"),
    (lambda w: w.kernel.recurse(-1), ValueError, "recurse: depth -1 must not be negative"),
    (lambda w: w.kernel.kmap(-1), KernelBug, "no memory there"),
    (lambda w: w.kernel.kunmap(-1), KernelBug, "no memory there"),
    (lambda w: w.kernel.kmap_atomic(-1), KernelBug, "no memory there"),
    (lambda w: w.kernel.kunmap_atomic(64), KernelBug, ""),
    (lambda w: w.kernel.read(64, 8), KernelBug, "unable to handle page fault for address 0x40"),
    (lambda w: w.kernel.write(64, b"12345678"), KernelBug, "unable to handle page fault for address 0x40"),
]
# fmt: on


def test_a_wrong_value_is_named_with_what_is_allowed(world):
    wrong = []
    for call, kind, text in VALUES:
        text = text.replace("%p", str(world.task.pid))
        expected = re.escape(text).replace("0x%x", "0x[0-9a-f]+")
        try:
            call(world)
            wrong.append(f"{text}: silent")
        except Exception as error:
            if isinstance(kind, str):
                right = isinstance(error, OSError) and error.errno == getattr(errno, kind)
            else:
                right = isinstance(error, kind)
            if not right or not re.search(expected, str(error)):
                wrong.append(f"{text}\n    is {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    assert world.task.get_mempolicy() == (MPOL_DEFAULT, [])


def test_limits_are_named(two_nodes):
    task = two_nodes.task()
    area = task.mmap(4 * PAGE)
    task.setrlimit(RLIMIT_AS, "64MiB")
    with pytest.raises(OSError, match="mmap: RLIMIT_AS allows 64MiB, .* are in use"):
        task.mmap("128MiB")
    two_nodes.machine.max_map_count = two_nodes.mm(task).map_count
    with pytest.raises(OSError, match=r"munmap: .*mappings, vm.max_map_count is"):
        task.munmap(area.addr + PAGE, PAGE)
    other = two_nodes.task()
    task.setuid(65534)
    for call, text in (
        (
            lambda: task.mbind(area.addr, PAGE, MPOL_BIND, 1, MPOL_MF_MOVE_ALL),
            "mbind: flags MPOL_MF_MOVE_ALL is for root, task",
        ),
        (lambda: task.kill(other.pid, 9), f"kill: task {other.pid} is user 0's, task {task.pid} is user 65534"),
        (lambda: task.setuid(0), "setuid: uid 0: only root becomes another user"),
    ):
        with pytest.raises(PermissionError, match=text):
            call()


# -- wrong types -------------------------------------------------------------------------------------------------------------

# fmt: off
TYPES = [
    (lambda w: w.task.mmap(PAGE, "rw"), "mmap: prot must be an integer such as PROT_READ | PROT_WRITE, not 'rw'"),
    (lambda w: w.task.mmap(PAGE, file=3), "mmap: file must be a File, which open and memfd_create give, not 3"),
    (lambda w: w.task.mmap("a lot"), "mmap: length must be a size such as 4096 or '64KiB', not 'a lot'"),
    (lambda w: w.task.load([1.5]), "load: addresses must be integers, not [1.5]"),
    (lambda w: w.task.load([w.area.addr], "what"), "load: dtype must be a dtype such as numpy.uint64, not 'what'"),
    (lambda w: w.task.load([w.area.addr], "u2,u1"), "load: dtype"),
    (lambda w: w.task.store([w.area.addr], "hi"), "store: values must be numbers, or an array of them, not 'hi'"),
    (lambda w: w.task.store([w.area.addr], [1 << 80]), "store: values must be numbers, or an array of them, not [1208925819614629174706176]"),
    (lambda w: w.task.write(w.area.addr, "text"), "write: data must be bytes, not 'text'"),
    (lambda w: w.task.write(w.area.addr, 10), "write: data must be bytes, not 10"),
    (lambda w: w.task.fork(3), "fork: function must be callable, not 3"),
    (lambda w: w.task.clone("f"), "clone: function must be callable, not 'f'"),
    (lambda w: w.task.vfork(3.5), "vfork: function must be callable, not 3.5"),
    (lambda w: w.task.set_mempolicy(MPOL_BIND, "x"), "set_mempolicy: nodes must be a node, several nodes, text like '0,2-3', or None, not 'x'"),
    (lambda w: w.task.set_mempolicy(MPOL_BIND, [1.5]), "set_mempolicy: nodes must be a node, several nodes"),
    (lambda w: w.task.sched_setaffinity("0"), "sched_setaffinity: cpus must be a CPU or several, not '0'"),
    (lambda w: w.task.sleep("1"), "sleep: ms must be a number of milliseconds, not '1'"),
    (lambda w: w.task.work("1"), "work: ns must be a number of nanoseconds, not '1'"),
    (lambda w: w.task.sleep(float("nan")), "sleep: ms must be a number of milliseconds, not nan"),
    (lambda w: w.task.open(3), "open: path must be a path, which is text, not 3"),
    (lambda w: w.task.execve("/bin/ls", "ls"), "execve: argv must be a list of text, not 'ls'"),
    (lambda w: w.array["x"], "array: index must be an integer, a slice or an array of integers, not 'x'"),
    (lambda w: w.array[1.5], "array: index must be an integer, a slice or an array of integers, not 1.5"),
    (lambda w: w.array.__setitem__(0, "hi"), "array: value must be numbers, or an array of them, not 'hi'"),
    (lambda w: w.area.array("what"), "array: dtype must be a dtype such as numpy.uint64, not 'what'"),
    (lambda w: w.area.array(offset="x"), "array: offset must be a size"),
    (lambda w: w.area.touch(stride="x"), "touch: stride must be a size"),
    (lambda w: w.area.msync("x"), "msync: flags must be an integer such as MS_SYNC, not 'x'"),
    (lambda w: w.kernel.kmem_cache_create("x", 8, ctor=3), "kmem_cache_create: ctor must be bytes or a function, not 3"),
    (lambda w: w.kernel.register_shrinker(3), "register_shrinker: cache must be what kmem_cache_create gives, not 3"),
    (lambda w: w.kernel.get_zeroed_page("x"), "get_zeroed_page: gfp must be allocation flags such as GFP_KERNEL, not 'x'"),
]
# fmt: on


def test_a_wrong_type_is_named(world):
    wrong = []
    for call, text in TYPES:
        try:
            call(world)
            wrong.append(f"{text}: silent")
        except TypeError as error:
            if not str(error).startswith(text):
                wrong.append(f"{text}\n    is {error}")
        except Exception as error:
            wrong.append(f"{text}\n    is {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


# arguments by name that are right, for every public call: each in turn becomes something that it cannot be
# fmt: off
RIGHT = {
    "collector": "copying",
    "kind": "implicit","length": PAGE, "addr": 0x1000_0000, "old_len": PAGE, "new_len": PAGE, "addresses": [0x1000_0000], "nbytes": 8, "data": b"x",
         "values": 1, "prot": PROT_READ, "advice": 4, "which": RLIMIT_STACK, "soft": 1, "mode": 0, "nodes": None, "flags": 0, "path": "/mnt/f",
         "name": "n", "size": 64, "gfp": GFP_KERNEL, "order": 0, "nid": 0, "pid": 4711, "sig": 0, "uid": 0, "ms": 0, "pfn": 5, "offset": 0,
         "whence": 0, "old_nodes": 0, "new_nodes": 1, "cpus": 0, "address": 0x4000, "handle": 0x4000, "cpu": 0, "pfns": [5], "depth": 1,
         "priority": 12, "option": 35, "arg": 6, "file": 3, "cache": None}
# fmt: on
ANYTHING = {
    "kernel",
    "args",
    "function",
    "self",
    "ctor",
    "cache",
    "explain",
    "task",
    "into",
    "number",
}  # not of the table, or looked at above
NO_CALLS = {"call", "result", "done"}


def public_calls():
    for owner in (Task, File, Mapping, KernelCalls, KmemCache, Shrinker):
        for name, call in inspect.getmembers(owner, inspect.isfunction):
            if not name.startswith("_") and name not in NO_CALLS:
                yield owner, name, call


def holders(world):
    return {
        Task: world.task,
        File: world.file,
        Mapping: world.area,
        KernelCalls: world.kernel,
        KmemCache: world.cache,
        Shrinker: Shrinker(world.task, 1),
    }


@pytest.mark.parametrize("owner, name, call", list(public_calls()), ids=lambda x: x if isinstance(x, str) else "")
def test_every_argument_of_every_call_says_its_type(world, owner, name, call):
    """An object of no type that anything takes: a TypeError that begins with a call's name and names an argument."""
    signature = inspect.signature(call)
    for argument, parameter in signature.parameters.items():
        if argument in ANYTHING or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        keywords = {
            other: RIGHT[other]
            for other, p in signature.parameters.items()
            if p.default is p.empty and other in RIGHT and p.kind is not p.VAR_POSITIONAL
        }
        if "cache" in keywords:
            keywords["cache"] = world.cache
        keywords[argument] = object()
        with pytest.raises(TypeError, match=r"^\w[\w.]*: \w+ must be .*, not <object") as caught:
            made = getattr(holders(world)[owner], name)(**keywords)
            if hasattr(made, "__enter__"):
                made.__enter__()
        assert argument in str(caught.value) or owner is not Task, caught.value


def test_the_table_has_every_operation_and_its_arguments():
    """What a task asks for is in the table, as its operation takes it."""
    for method, call in CALLS.items():
        parameters = list(inspect.signature(getattr(Operations, method)).parameters)[2:]
        assert len(parameters) == len(call.kinds), method
        for kind in call.kinds.values():
            assert kind.what and (kind.kind.what if isinstance(kind, Optional) else True)


def test_numbers_go_on_as_c_would_hand_them_over(two_nodes):
    task = two_nodes.task()
    task.setrlimit(RLIMIT_STACK, -1)
    assert task.getrlimit(RLIMIT_STACK)[0] == RLIM_INFINITY
    area = task.mmap(np.int64(PAGE), np.int32(PROT_READ | PROT_WRITE), np.uint8(ANON))
    task.store(np.array([area.addr], object), [1.5])
    assert task.load((area.addr,), float)[0] == 1.5
    assert task.load([], np.uint8).size == 0


def test_move_pages_tells_how_many_stayed(two_nodes):
    task = two_nodes.task()
    area = task.mmap(4 * PAGE).touch()
    status = task.move_pages(area.pages(), 1)
    assert status.not_moved == 0 and status.tolist() == [1] * 4
    two_nodes.page(two_nodes.pfn(task, area.addr)).refcount += 1
    status = task.move_pages(area.pages(), 0)
    two_nodes.page(two_nodes.pfn(task, area.addr)).refcount -= 1
    assert status.not_moved == 1 and status.tolist() == [-errno.EBUSY, 0, 0, 0]
