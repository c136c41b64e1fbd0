"""What a CPU does for the tasks on it: each public method is one operation, run in the CPU's turn.

Called with the task's number, by `Task` in the same process or by message. Results are plain values; a failed system
call raises OSError with Linux's errno, an access that the kernel refuses raises SegmentationFault or OutOfMemory.
"""
import ctypes
import errno
import os
import sys

import numpy as np

from numaemu.access import LOAD_MANY, STORE_MANY, copy_range, touch_range
from numaemu.errors import BusError, KernelBug, OutOfMemory, SegmentationFault
from numaemu.kernel import slab
from numaemu.kernel import sys as syscalls
from numaemu.kernel.gfp import __GFP_ZERO as GFP_ZERO
from numaemu.kernel.gfp import GFP_KERNEL
from numaemu.kernel.inode import file_of, inode_name, inode_of
from numaemu.kernel.mm_types import TASK_DEAD, TASK_RUNNING, VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, task_t
from numaemu.kernel.mmap import find_position, vma_index
from numaemu.kernel.mmzone import MAX_NR_ZONES, page_of, page_zone, zone_of
from numaemu.kernel.oom_kill import epitaph, is_zombie, oom_exit, release_task
from numaemu.kernel.pgtable import mm_of
from numaemu.kernel.rmap import vma_of
from numaemu.kernel.smp import actor_of_cpu
from numaemu.kernel.stats import cpu_figures, task_numbers
from numaemu.mmu import X86_PF_PROT, X86_PF_WRITE
from numaemu.operations_file import FileOperations
from numaemu.param import PAGE_SIZE
from numaemu.uapi import SIGBUS, SIGKILL

BUFFER_BYTES = 1 << 20           # results from this size on come from a buffer that is kept


def check(result):
    """A system call's result, or OSError."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def kill_task(task):
    """End a task if it is still alive (its function has returned); the OutOfMemory it has not been told of, if any."""
    try:
        task.exit(0)
    except OSError:
        pass
    except OutOfMemory as error:
        return error
    return None


def permissions(vma):
    """rwxp, as /proc/<pid>/maps has it."""
    letters = ((VM_READ, "r"), (VM_WRITE, "w"), (VM_EXEC, "x"))
    return "".join(c if vma.flags & bit else "-" for bit, c in letters) + ("s" if vma.flags & VM_SHARED else "p")


def release_gil(function):
    """Let a user's kernel, before it is first compiled, run without Python's lock: this process must serve its mailbox
    even while a kernel spins until somebody else stores a word.
    """
    options = getattr(function, "targetoptions", None)
    if options is not None and not function.overloads:
        options["nogil"] = True


class Operations(FileOperations):
    """The operations of one CPU."""

    def __init__(self, cpu):
        self.cpu, self.machine, self.address = cpu, cpu.machine, int(cpu.state.address)
        self.tasks = task_t.array(self.machine.tasks)
        self.spare = None

    def run(self, number, pid, method, args):
        """One operation of task `pid`, in this CPU's turn. Its number may be another's by now, if it was killed."""
        with self.cpu.turn:
            task = self.tasks[number]
            if is_zombie(task, pid):
                raise self.oom_killed(number)
            if task.state == TASK_DEAD or task.pid != pid:
                raise OSError(errno.ESRCH, "the task has ended")
            try:
                answer = getattr(self, method)(number, *args)
            except Exception:
                if task.oom_victim == pid and task.pid == pid and task.state != TASK_DEAD:
                    raise self.oom_killed(number) from None
                raise
            if task.oom_victim == pid and task.pid == pid and task.state != TASK_DEAD:
                if method in ("fork", "clone"):
                    self.die(answer[0], SIGKILL)         # nobody will ever hold it
                raise self.oom_killed(number)
            return answer

    def oom_exit(self, numbers):
        """Victims of the OOM killer end between two operations; their next one tells them."""
        for number in numbers:
            task = self.tasks[number]
            if task.cpu == self.cpu.cpu_number and task.state == TASK_RUNNING and task.oom_victim == task.pid:
                oom_exit(self.address, number)

    def oom_killed(self, number):
        """The exception for a victim, which is gone after it."""
        task = self.tasks[number]
        if task.state == TASK_RUNNING:
            oom_exit(self.address, number)
        error = OutOfMemory(epitaph(self.machine, task))
        release_task(self.address, number)
        return error

    # -- mappings

    def mmap(self, number, addr, length, prot, flags):
        return check(syscalls.sys_mmap(self.address, number, addr, length, prot, flags))

    def munmap(self, number, addr, length):
        check(syscalls.sys_munmap(self.address, number, addr, length))

    def mprotect(self, number, addr, length, prot):
        check(syscalls.sys_mprotect(self.address, number, addr, length, prot))

    def madvise(self, number, addr, length, advice):
        check(syscalls.sys_madvise(self.address, number, addr, length, advice))

    def brk(self, number, addr):
        return syscalls.sys_brk(self.address, number, addr)

    # -- policies and placement

    def set_mempolicy(self, number, mode, flags, nodes):
        check(syscalls.sys_set_mempolicy(self.address, number, mode, flags, nodes))

    def mbind(self, number, addr, length, mode, mode_flags, nodes, flags):
        check(syscalls.sys_mbind(self.address, number, addr, length, mode, mode_flags, nodes, flags))

    def get_mempolicy(self, number, addr, flags):
        """(mode or node, node mask)"""
        answer = np.zeros(2, np.uint64)
        check(syscalls.sys_get_mempolicy(self.address, number, addr, flags, answer.ctypes.data))
        return int(answer[0]), int(answer[1])

    def move_pages(self, number, pid, addresses, nodes, flags):
        """(return value, status array)"""
        addresses = np.ascontiguousarray(addresses, np.uint64)
        status = np.zeros(len(addresses), np.int64)
        where = 0
        if nodes is not None:
            nodes = np.ascontiguousarray(np.broadcast_to(np.asarray(nodes, np.int64), addresses.shape))
            where = nodes.ctypes.data
        result = syscalls.sys_move_pages(self.address, number, self.target(number, pid), addresses.ctypes.data, where,
                                         status.ctypes.data, len(addresses), flags)
        return check(result), status

    def migrate_pages(self, number, pid, old, new):
        return check(syscalls.sys_migrate_pages(self.address, number, self.target(number, pid), old, new))

    def target(self, number, pid):
        """The number of the task with this pid; 0 means the calling one."""
        return number if not pid else self.number_of_pid(pid)

    def number_of_pid(self, pid):
        for number in task_numbers(self.machine):
            if self.tasks[number].pid == pid:
                return number
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))

    # -- memory accesses

    def accessing(self, number, function, *args):
        """Run compiled code that accesses memory, inside; name the fault if the kernel refuses one."""
        syscalls.begin_access(self.address, number)
        try:
            return function(*args)
        except SegmentationFault as error:
            if not self.cpu.state.signal:
                raise
            raise self.fault(number) from (error if error.args else None)
        except KernelBug:
            self.no_bug()
            raise
        finally:
            syscalls.end_access(self.address)

    def load(self, number, addresses, dtype):
        addresses = np.ascontiguousarray(addresses, np.uint64)
        dtype = np.dtype(dtype)
        values = self.buffer(addresses.size * dtype.itemsize).view(dtype).reshape(addresses.shape)
        self.accessing(number, LOAD_MANY[dtype.itemsize], self.address, addresses.ctypes.data, values.ctypes.data,
                       addresses.size)
        return values

    def buffer(self, nbytes):
        """Bytes for a result. A large buffer that nobody holds any more is used again: the host's first touch of new
        memory would cost more than the emulated loads.
        """
        if nbytes < BUFFER_BYTES:
            return np.empty(nbytes, np.uint8)
        spare = self.spare
        if spare is None or len(spare) < nbytes or sys.getrefcount(spare) > 3:      # ours, `spare`, the argument
            spare = self.spare = np.empty(nbytes, np.uint8)
        return spare[:nbytes]

    def store(self, number, addresses, values):
        addresses = np.ascontiguousarray(addresses, np.uint64)
        values = np.ascontiguousarray(values)
        step = 1 if values.size == addresses.size else 0
        if step == 0 and values.size != 1:
            raise ValueError(f"{values.size} values for {addresses.size} addresses")
        self.accessing(number, STORE_MANY[values.dtype.itemsize], self.address, addresses.ctypes.data, values.ctypes.data,
                       addresses.size, step)

    def read(self, number, addr, nbytes):
        data = np.empty(nbytes, np.uint8)
        self.accessing(number, copy_range, self.address, addr, data.ctypes.data, nbytes, 0)
        return data.tobytes()

    def write(self, number, addr, data):
        data = np.frombuffer(data, np.uint8)
        self.accessing(number, copy_range, self.address, addr, data.ctypes.data, len(data), 1)

    def touch(self, number, addr, nbytes, stride, write):
        self.accessing(number, touch_range, self.address, addr, addr + nbytes, stride, int(write))

    def call(self, number, function, args):
        """A user's compiled kernel: function(cpu, *args)."""
        release_gil(function)
        return self.accessing(number, function, self.cpu.state, *args)

    def fault(self, number):
        """The exception for the fault that the kernel has just refused."""
        state, task = self.cpu.state, self.tasks[number]
        address, signal, pid, mm = int(state.cr2), state.signal, task.pid, task.mm
        what = "store to" if state.error_code & X86_PF_WRITE else "load from"
        name = bytes(task.comm.as_numpy()).rstrip(b"\0").decode()
        state.signal = 0
        who = f"task {pid} ({name}) on cpu {self.cpu.cpu_number}"
        if signal == SIGKILL:
            syscalls.end_access(self.address)
            if task.oom_victim == pid:           # `run` tells it
                return OutOfMemory("killed by the OOM killer")
            rss = int(mm_of(self.machine, mm).rss[1]) * 4
            syscalls.sys_exit(self.address, number, SIGKILL)
            return OutOfMemory(f"{who}: no node it may use can serve a {what.split()[0]} at {address:#x}; it was killed "
                               f"with {rss} kB resident")
        if signal == SIGBUS:
            return BusError(f"{who}: {what} {address:#x}: {self.beyond_the_end(mm, address)}")
        present = bool(state.error_code & X86_PF_PROT)
        return SegmentationFault(f"{who}: {what} {address:#x}: {self.describe(mm, address, present)}")

    def describe(self, mm, address, present):
        """What lies at or nearest to an address."""
        index, count = vma_index(self.machine, mm), mm_of(self.machine, mm).map_count
        position = find_position(self.machine, mm, np.uint64(address))
        around = [vma_of(self.machine, index[p]) for p in (position - 1, position) if 0 <= p < count]
        for vma in around:
            if vma.start <= address < vma.end:
                return f"the mapping {vma.start:#x}-{vma.end:#x} {permissions(vma)} does not allow it"
        if not around:
            return "nothing is mapped"
        distance = [address - int(v.end) + 1 if v.end <= address else int(v.start) - address for v in around]
        nearest = around[int(np.argmin(distance))]
        side = "above the end of" if nearest.end <= address else "below"
        return f"not mapped; nearest is {nearest.start:#x}-{nearest.end:#x} {permissions(nearest)}, " \
               f"{min(distance)} bytes {side} it"

    def beyond_the_end(self, mm, address):
        """The file whose end an address lies behind."""
        position = find_position(self.machine, mm, np.uint64(address))
        vma = vma_of(self.machine, vma_index(self.machine, mm)[position])
        inode = inode_of(self.machine, file_of(self.machine, vma.file).inode)
        offset = (vma.pgoff << 12) + address - int(vma.start)
        return f"byte {offset} of {inode_name(inode)}, which has {inode.i_size}"

    # -- the task

    def fork(self, number):
        """(child's task number, pid)"""
        child = check(syscalls.sys_fork(self.address, number))
        return child, self.tasks[child].pid

    def clone(self, number):
        child = check(syscalls.sys_clone(self.address, number))
        return child, self.tasks[child].pid

    def exit(self, number, code):
        syscalls.sys_exit(self.address, number, 0)

    def find(self, number, pid):
        """The number of the task with this pid, for kill."""
        return self.number_of_pid(pid)

    def die(self, number, signal):
        """A signal that ends the task, on the CPU it is on."""
        syscalls.sys_exit(self.address, number, signal)

    def sched_setaffinity(self, number, cpus):
        """Move the task to the first of `cpus`, unless it is on one of them; the CPU it is on now."""
        cpus = sorted(cpus)
        if not cpus or cpus[0] < 0 or cpus[-1] >= self.machine.nr_cpus:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        task = self.tasks[number]
        if task.cpu not in cpus:
            task.cpu = cpus[0]
        return task.cpu

    def place(self, number, cpu):
        """Put a new child on a CPU."""
        self.tasks[number].cpu = cpu

    def clock_ns(self, number):
        return syscalls.read_clock(self.address)

    def counters(self, number):
        """This CPU's figures and the task's faults."""
        task = self.tasks[number]
        return {**cpu_figures(self.machine, self.cpu.cpu_number), "task_minor_faults": task.min_flt,
                "task_major_faults": task.maj_flt}

    # -- task.kernel

    def alloc_pages(self, number, gfp, order, nid, nodes):
        return syscalls.kernel_alloc_pages(self.address, number, gfp, order, nid, nodes)

    def free_pages(self, number, pfn, order):
        syscalls.kernel_free_pages(self.address, number, pfn, order)

    def page(self, number, pfn):
        """Node, zone and counts of a page, for who looks inside."""
        page, zone = page_of(self.machine, pfn), page_zone(self.machine, pfn)
        return {"pfn": pfn, "node": zone // MAX_NR_ZONES, "zone": zone % MAX_NR_ZONES, "flags": int(page.flags),
                "refcount": page.refcount, "mapcount": page.mapcount}

    # -- slab caches and kmalloc

    def no_bug(self):
        """Raise KernelBug if this CPU's kernel has found one."""
        bug = slab.take_bug(self.machine, self.cpu.cpu_number)
        if bug is not None:
            raise bug from None

    def kmalloc(self, number, size, gfp, nid):
        if not 0 <= size <= slab.KMALLOC_MAX_SIZE:
            raise ValueError(f"kmalloc of {size} bytes: at most {slab.KMALLOC_MAX_SIZE} (KMALLOC_MAX_SIZE)")
        address = syscalls.kernel_kmalloc(self.address, number, size, gfp, nid)
        self.no_bug()
        return int(address)

    def kfree(self, number, address):
        if syscalls.kernel_kfree(self.address, number, address):
            self.no_bug()

    def ksize(self, number, address):
        nbytes = syscalls.kernel_ksize(self.address, number, address)
        if nbytes < 0:
            raise KernelBug(f"ksize: Invalid object pointer: {address:#x} is not from kmalloc")
        return nbytes

    def kmalloc_waste(self, number):
        return slab.kmalloc_waste(self.machine)

    def kernel_bytes(self, address, nbytes):
        """Host address of a range of the direct map that has memory behind it."""
        last = address + max(nbytes, 1) - 1
        first_pfn, last_pfn = ((a - int(slab.PAGE_OFFSET)) >> 12 for a in (address, last))
        for pfn in (first_pfn, last_pfn):
            zone = zone_of(self.machine, page_zone(self.machine, pfn)) if 0 <= pfn < self.machine.max_pfn else None
            if zone is None or not zone.start_pfn <= pfn < zone.start_pfn + zone.spanned_pages:
                raise KernelBug(f"unable to handle page fault for address {address:#x}: no memory there")
        return int(self.machine.memory) + address - int(slab.PAGE_OFFSET)

    def kernel_read(self, number, address, nbytes):
        return ctypes.string_at(self.kernel_bytes(address, nbytes), nbytes)

    def kernel_write(self, number, address, data):
        ctypes.memmove(self.kernel_bytes(address, len(data)), data, len(data))

    def kmem_cache_create(self, number, name, size, align, flags, ctor):
        """The new cache's number."""
        if not 0 < len(name.encode()) < slab.CACHE_NAME_BYTES or any(c.isspace() for c in name):
            raise ValueError(f"kmem_cache_create: name {name!r} must have 1 to {slab.CACHE_NAME_BYTES - 1} bytes, no spaces")
        if not 0 < size <= slab.KMALLOC_MAX_SIZE:
            raise ValueError(f"kmem_cache_create: {name}: {size} bytes, must be 1 to {slab.KMALLOC_MAX_SIZE}")
        if align < 0 or align & (align - 1) or align > PAGE_SIZE:
            raise ValueError(f"kmem_cache_create: {name}: align {align} must be a power of two up to {PAGE_SIZE}")
        if ctor is not None and len(ctor) > size:
            raise ValueError(f"kmem_cache_create: {name}: ctor of {len(ctor)} bytes for objects of {size}")
        image = 0
        if ctor is not None:
            image = self.kmalloc(number, size, GFP_KERNEL | GFP_ZERO, -1)
            if not image:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            self.kernel_write(number, image, ctor)
        syscalls.slab_mutex(self.address, 1)
        cache = 0
        try:
            if any(slab.cache_name(self.machine, n) == name for n in slab.live_caches(self.machine)):
                raise ValueError(f"kmem_cache_create: {name}: there is a cache of this name")
            cache = syscalls.get_cache_number(self.address)
            if cache == 0:
                raise OSError(errno.ENOMEM, f"kmem_cache_create: {name}: at most {slab.MAX_KMEM_CACHES - 1} caches")
            try:
                slab.init_cache(self.machine, cache, name, size, align, flags, image)
            except ValueError:
                syscalls.kernel_cache_shutdown(self.address, cache)
                cache = 0
                raise
        finally:
            syscalls.slab_mutex(self.address, 0)
            if image and not cache:
                self.kfree(number, image)
        return cache

    def live_cache(self, cache):
        if not 0 < cache < slab.MAX_KMEM_CACHES or not slab.cache_of(self.machine, cache).live:
            raise KernelBug(f"cache number {cache}: No such cache")

    def kmem_cache_alloc(self, number, cache, gfp, nid):
        self.live_cache(cache)
        address = syscalls.kernel_cache_alloc(self.address, number, cache, gfp, nid)
        self.no_bug()
        return int(address)

    def kmem_cache_free(self, number, cache, address):
        self.live_cache(cache)
        if syscalls.kernel_cache_free(self.address, number, cache, address):
            self.no_bug()

    def kmem_cache_shrink(self, number, cache):
        """CPUs that run no operation give their slabs up, then empty slabs go."""
        self.live_cache(cache)
        others = [c for c in range(self.machine.nr_cpus) if c != self.cpu.cpu_number]
        for future in [self.cpu.ask(actor_of_cpu(self.machine, c), "flush_slab", cache) for c in others]:
            future.result()
        syscalls.flush_slab(self.address, cache)
        syscalls.kernel_cache_shrink(self.address, cache)

    def kmem_cache_destroy(self, number, cache):
        self.live_cache(cache)
        name, image = slab.cache_name(self.machine, cache), int(slab.cache_of(self.machine, cache).ctor)
        syscalls.slab_mutex(self.address, 1)
        try:
            left = syscalls.kernel_cache_shutdown(self.address, cache)
        finally:
            syscalls.slab_mutex(self.address, 0)
        if left:
            raise KernelBug(f"cache {name}: {left} objects remaining on kmem_cache_destroy(); the cache stays")
        if image:
            self.kfree(number, image)
