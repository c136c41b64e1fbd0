"""The calls of a task, in one table: by operation, the name that messages give the call, and what its arguments must be.

`take` is asked where somebody calls (Task._op), so that a wrong type is told before anything is done.
"""

import numpy as np

from numaemu import uapi
from numaemu.api.arguments import (
    Address,
    Anything,
    Bytes,
    Choice,
    Cpus,
    Dtype,
    Flags,
    Int,
    Integers,
    Nodes,
    Number,
    Offset,
    Optional,
    Path,
    Size,
    Strings,
    Text,
    Truth,
    Values,
    Word,
    constants,
)


class Call:
    """A call by the name that messages give it, and its arguments in the order of its operation."""

    def __init__(self, name, /, **kinds):
        self.name, self.kinds = name, kinds


PAGE_ADDRESS, ANY_ADDRESS, RANGE, LENGTH = Address(page=True), Address(), Size(least=1), Size()
PROT = Flags("PROT_READ | PROT_WRITE", constants("PROT_"))
# fmt: off
MAP = Flags("MAP_PRIVATE | MAP_ANONYMOUS", {name: value for name, value in constants("MAP_").items()
                                           if name not in ("MAP_TYPE", "MAP_HUGE_SHIFT", "MAP_HUGE_MASK",
                                                           "MAP_HUGE_2MB", "MAP_HUGE_1GB", "MAP_UNINITIALIZED")})
# fmt: on
ADVICE = Choice("MADV_DONTNEED", constants("MADV_"))
MODE = Int(
    "an integer such as MPOL_BIND",
    {name: value for name, value in constants("MPOL_").items() if not name.startswith(("MPOL_F_", "MPOL_MF_"))},
)
MBIND_FLAGS = Flags("MPOL_MF_MOVE", constants("MPOL_MF_"))
MOVE_FLAGS = Flags("MPOL_MF_MOVE", constants("MPOL_MF_MOVE"))
RLIMIT = Choice("RLIMIT_STACK", {name: value for name, value in constants("RLIMIT_").items()})
OPEN = Flags("O_RDWR | O_CREAT", {name: value for name, value in constants("O_").items() if name != "O_ACCMODE"})
PID, FD, NODE, CPU = (
    Int("a pid, which is an integer"),
    Int("a descriptor, which is an integer"),
    Int("a node's number"),
    Int("a CPU's number"),
)
GFP = Int("allocation flags such as GFP_KERNEL")
ORDER, PFN = Int("an order, which is an integer"), Int("a page frame number, which is an integer")
KERNEL_ADDRESS = Address()
NODES = Nodes()
COUNT = Int()

# fmt: off
CALLS = {
    # mappings
    "mmap": Call("mmap", addr=PAGE_ADDRESS, length=RANGE, prot=PROT, flags=MAP, offset=Word()),
    "mmap_file": Call("mmap", addr=PAGE_ADDRESS, length=RANGE, prot=PROT, flags=MAP, fd=FD, offset=Offset()),
    "munmap": Call("munmap", addr=PAGE_ADDRESS, length=RANGE),
    "mprotect": Call("mprotect", addr=PAGE_ADDRESS, length=LENGTH, prot=PROT),
    "madvise": Call("madvise", addr=PAGE_ADDRESS, length=LENGTH, advice=ADVICE, stride=Optional(RANGE), each=Optional(RANGE)),
    "mremap": Call("mremap", addr=PAGE_ADDRESS, old_len=LENGTH, new_len=RANGE,
                   flags=Flags("MREMAP_MAYMOVE", constants("MREMAP_")), new_addr=PAGE_ADDRESS),
    "mlock2": Call("mlock", addr=ANY_ADDRESS, length=LENGTH, flags=Flags("MLOCK_ONFAULT", constants("MLOCK_"))),
    "munlock": Call("munlock", addr=ANY_ADDRESS, length=LENGTH),
    "mlockall": Call("mlockall", flags=Flags("MCL_CURRENT | MCL_FUTURE", constants("MCL_"))),
    "munlockall": Call("munlockall"),
    "mincore": Call("mincore", addr=PAGE_ADDRESS, length=LENGTH),
    "brk": Call("brk", addr=ANY_ADDRESS),
    "msync": Call("msync", addr=PAGE_ADDRESS, length=LENGTH, flags=Flags("MS_SYNC", constants("MS_"))),
    "prctl": Call("prctl", option=Choice("PR_SET_MM", {"PR_SET_MM": uapi.PR_SET_MM}),
                  arg=Choice("PR_SET_MM_BRK", constants("PR_SET_MM_")), addr=ANY_ADDRESS),
    "setrlimit": Call("setrlimit", which=RLIMIT, soft=LENGTH, hard=Optional(LENGTH)),
    "getrlimit": Call("getrlimit", which=RLIMIT),
    "walk": Call("walk", addr=ANY_ADDRESS),
    "last_fault": Call("last_fault"),
    # placement
    "set_mempolicy": Call("set_mempolicy", mode=MODE, nodes=NODES),
    "mbind": Call("mbind", addr=PAGE_ADDRESS, length=LENGTH, mode=MODE, nodes=NODES, flags=MBIND_FLAGS),
    "get_mempolicy": Call("get_mempolicy", addr=ANY_ADDRESS, flags=Flags("MPOL_F_NODE", {
        name: value for name, value in constants("MPOL_F_").items() if value <= uapi.MPOL_F_MEMS_ALLOWED})),
    "move_pages": Call("move_pages", pid=PID, addresses=Integers("integers", np.uint64),
                       nodes=Optional(Integers("a node or one for each page", np.int64)), flags=MOVE_FLAGS),
    "accessed": Call("accessed", addr=ANY_ADDRESS, nbytes=LENGTH, clear=Truth("True or False"), pid=PID),
    "migrate_pages": Call("migrate_pages", pid=PID, old_nodes=NODES, new_nodes=NODES),
    "sched_setaffinity": Call("sched_setaffinity", cpus=Cpus()),
    # accesses
    "load": Call("load", addresses=Integers("integers", np.uint64), dtype=Dtype("a dtype")),
    "store": Call("store", addresses=Integers("integers", np.uint64),
                  values=Values("numbers, or an array of them")),
    "read": Call("read", addr=ANY_ADDRESS, nbytes=LENGTH),
    "write": Call("write", addr=ANY_ADDRESS, data=Bytes("bytes")),
    "execute": Call("execute", addr=ANY_ADDRESS),
    "touch": Call("touch", addr=ANY_ADDRESS, nbytes=LENGTH, stride=RANGE, write=Truth("True or False")),
    "call": Call("call", kernel=Anything("a function compiled with numba.njit"), args=Anything("its arguments")),
    # files
    "open": Call("open", path=Path("a path, which is text"), flags=OPEN),
    "memfd_create": Call("memfd_create", name=Path("a name, which is text"), flags=Flags("MFD_HUGETLB", constants("MFD_"))),
    "file_name": Call("fdopen", file=FD),
    "file_read": Call("read", fd=FD, offset=Optional(Offset()), nbytes=Optional(Offset())),
    "file_read_through": Call("read", fd=FD, nbytes=Offset(), chunk=Offset()),
    "file_write": Call("write", fd=FD, offset=Optional(Offset()), data=Bytes("bytes")),
    "file_seek": Call("lseek", fd=FD, offset=Offset(), whence=Choice("SEEK_SET", constants("SEEK_"))),
    "file_size": Call("fstat", fd=FD),
    "file_fadvise": Call("posix_fadvise", fd=FD, offset=Offset(), length=Offset(),
                         advice=Choice("POSIX_FADV_WILLNEED", constants("POSIX_FADV_"))),
    "file_fsync": Call("fsync", fd=FD),
    "file_truncate": Call("ftruncate", fd=FD, size=Offset()),
    "dup": Call("dup", fd=FD, target=Optional(FD)),
    "file_close": Call("close", fd=FD),
    # tasks
    "fork": Call("fork", cpu=Optional(CPU)), "clone": Call("clone", cpu=Optional(CPU)), "vfork": Call("vfork", cpu=Optional(CPU)),
    "execve": Call("execve", path=Path("a path, which is text"), argv=Strings("a list of text"),
                   envp=Strings("a dict, or a list of 'NAME=value'")),
    "other_threads": Call("execve"),
    "exit": Call("exit", code=COUNT),
    "wait": Call("wait", pid=PID, flags=Flags("WNOHANG", constants("WNOHANG", "WUNTRACED", "WCONTINUED"))),
    "kill": Call("kill", pid=PID, sig=Choice("SIGKILL", constants("SIG"))),
    "thread_group": Call("kill", pid=PID),
    "setuid": Call("setuid", uid=Int("a user's number")),
    "sleep": Call("sleep", ms=Number("a number of milliseconds")),
    "work": Call("work", ns=Number("a number of nanoseconds")),
    "sched_yield": Call("sched_yield"),
    "clock_ns": Call("clock_ns"),
    "counters": Call("counters"),
    # task.kernel: pages
    "alloc_pages": Call("alloc_pages", gfp=GFP, order=ORDER, nid=NODE, nodes=NODES),
    "explain_pages": Call("alloc_pages", gfp=GFP, order=ORDER, nid=NODE, nodes=NODES),
    "free_pages": Call("free_pages", pfn=PFN, order=ORDER),
    "free_hot_cold_page": Call("free_hot_cold_page", pfn=PFN, cold=Truth("True or False")),
    "page_address": Call("page_address", pfn=PFN),
    "virt_to_pfn": Call("free_pages", address=KERNEL_ADDRESS),
    "page": Call("page", pfn=PFN),
    # task.kernel: objects
    "kmalloc": Call("kmalloc", size=LENGTH, gfp=GFP, nid=NODE),
    "kfree": Call("kfree", address=KERNEL_ADDRESS),
    "ksize": Call("ksize", address=KERNEL_ADDRESS),
    "kmalloc_waste": Call("kmalloc_waste"),
    "kmem_cache_create": Call("kmem_cache_create", name=Text("text"), size=LENGTH, align=LENGTH, flags=Int(
        "flags such as SLAB_HWCACHE_ALIGN"), ctor=Anything("bytes or a function"), colour=Truth("True or False")),
    "kmem_cache_alloc": Call("kmem_cache_alloc", cache=COUNT, gfp=GFP, nid=NODE),
    "kmem_cache_free": Call("kmem_cache_free", cache=COUNT, address=KERNEL_ADDRESS),
    "kmem_cache_shrink": Call("kmem_cache_shrink", cache=COUNT),
    "kmem_cache_destroy": Call("kmem_cache_destroy", cache=COUNT),
    "register_shrinker": Call("register_shrinker", cache=COUNT, link=COUNT, seeks=COUNT, batch=COUNT),
    "unregister_shrinker": Call("unregister_shrinker", shrinker=COUNT),
    "list_lru_add": Call("list_lru_add", shrinker=COUNT, address=KERNEL_ADDRESS),
    "list_lru_del": Call("list_lru_del", shrinker=COUNT, address=KERNEL_ADDRESS),
    "list_lru_count": Call("list_lru_count", shrinker=COUNT, nid=NODE),
    "shrink_slab": Call("shrink_slab", gfp=GFP, nid=NODE, priority=COUNT),
    "drop_slab": Call("drop_slab"),
    "alloc_percpu": Call("alloc_percpu", size=LENGTH, align=LENGTH, gfp=GFP),
    "free_percpu": Call("free_percpu", handle=COUNT),
    "define_per_cpu": Call("define_per_cpu", name=Text("text"), size=LENGTH, align=LENGTH),
    "per_cpu_ptr": Call("per_cpu_ptr", handle=COUNT, cpu=CPU),
    "this_cpu_add": Call("this_cpu_add", handle=COUNT, n=COUNT),
    "this_cpu_read": Call("this_cpu_read", handle=COUNT),
    "get_cpu_var": Call("get_cpu_var", handle=COUNT),
    "put_cpu_var": Call("put_cpu_var"),
    # task.kernel: its address space
    "vmalloc": Call("vmalloc", size=LENGTH, gfp=GFP, nid=NODE),
    "vfree": Call("vfree", address=KERNEL_ADDRESS),
    "vmap": Call("vmap", pfns=Integers("integers", np.int64)),
    "vunmap": Call("vunmap", address=KERNEL_ADDRESS),
    "vm_unmap_aliases": Call("vm_unmap_aliases"),
    "use_stack": Call("use_stack", nbytes=LENGTH, irq=Truth("True or False")),
    "recurse": Call("recurse", depth=COUNT, frame_bytes=COUNT, irq=Truth("True or False")),
    "kmap": Call("kmap", pfn=PFN), "kunmap": Call("kunmap", pfn=PFN),
    "kmap_atomic": Call("kmap_atomic", pfn=PFN), "kunmap_atomic": Call("kunmap_atomic", address=KERNEL_ADDRESS),
    "vmalloc_to_page": Call("vmalloc_to_page", address=KERNEL_ADDRESS),
    "kernel_read": Call("kernel.read", address=KERNEL_ADDRESS, nbytes=LENGTH),
    "kernel_write": Call("kernel.write", address=KERNEL_ADDRESS, data=Bytes("bytes")),
}
# fmt: on


def take(method, args):
    """The arguments of an operation, as they go on to the CPU."""
    call = CALLS[method]
    return tuple(
        [kind.take(call.name, name, value) for (name, kind), value in zip(call.kinds.items(), args, strict=True)]
    )
