"""What a CPU does for task.kernel: the kernel's own allocators. A part of Operations (operations/base.py)."""

import ctypes
import errno
import os

from numaemu.errors import KernelBug
from numaemu.kernel.core.smp import actor_of_cpu
from numaemu.kernel.include.gfp import __GFP_ZERO as GFP_ZERO
from numaemu.kernel.include.gfp import GFP_BITS, GFP_KERNEL
from numaemu.kernel.include.mmzone import page_zone, zone_of
from numaemu.kernel.mm.reclaim import shrinker as shrinker_calls
from numaemu.kernel.mm.reclaim.list_lru import LIST_HEAD_BYTES, MAX_SHRINKERS, list_lru_node, shrinker_of
from numaemu.kernel.mm.reclaim.shrinker import live_shrinkers
from numaemu.kernel.mm.reclaim.workingset import DEF_PRIORITY
from numaemu.kernel.mm.slab import slab, slab_common
from numaemu.kernel.mm.slab.percpu import UNIT_SIZE, VAR_NAME_BYTES, define_per_cpu
from numaemu.kernel.mm.slab.slub_debug import kmem_cache_flags, take_bug
from numaemu.kernel.syscalls import allocators as kernel_calls
from numaemu.operations.part import Part
from numaemu.process.payload import load_function
from numaemu.spec.param import PAGE_SIZE
from numaemu.spec.units import choice_text


class NewObject:
    """What a constructor gets: an object of a new slab, `nbytes` zeros at kernel address `address`."""

    def __init__(self, machine, address, nbytes):
        self.address, self.nbytes = address, nbytes
        self.host = int(machine.memory) + address - int(machine.paging.page_offset)

    def write(self, offset, data):
        """Write bytes at an offset."""
        if offset < 0 or offset + len(data) > self.nbytes:
            raise ValueError(f"{len(data)} bytes at offset {offset} of an object of {self.nbytes} bytes")
        ctypes.memmove(self.host + offset, bytes(data), len(data))


class Constructors:
    """Calls the functions of caches that have one, in whatever process makes a slab: Linux's setup_object.

    A function lies in kernel memory as pickled by kmem_cache_create, and is loaded here when it is first needed.
    """

    def __init__(self, machine):
        self.machine, self.loaded, self.error = machine, {}, None

    def __call__(self, task_number, address, _):
        try:
            cache = slab.cache_of(self.machine, int(task_number))
            host = int(self.machine.memory) + int(cache.ctor) - int(self.machine.paging.page_offset)
            payload = ctypes.string_at(host, cache.ctor_bytes)
            if payload not in self.loaded:
                self.loaded[payload], _ = load_function(payload)
            self.loaded[payload](NewObject(self.machine, int(address), cache.object_size))
        except Exception as error:
            self.error = error
            return 1
        return 0


class KernelOperations(Part):
    """Needs `machine`, `cpu` and the `address` of the CPU's struct."""

    # -- slab caches and kmalloc

    def no_bug(self):
        """Raise KernelBug if this CPU's kernel has found one."""
        bug = take_bug(self.machine, self.process.cpu_number)
        if bug is None:
            return
        error, self.process.world.constructors.error = self.process.world.constructors.error, None
        if error is not None:
            raise KernelBug(f"{bug}: {error!r}") from error
        raise bug from None

    def checked_nid(self, nid, least=-1):
        """A node number, or -1 for no wish."""
        if not least <= nid < self.machine.nr_nodes:
            raise ValueError(f"node {nid} is not one of 0 to {self.machine.nr_nodes - 1}")
        return nid

    def checked_gfp(self, gfp):
        """Allocation flags, all of which there are."""
        if gfp & ~GFP_BITS:
            raise ValueError(f"gfp {gfp:#x} has bits that are none of __GFP_*, must be flags such as GFP_KERNEL")
        return gfp

    def kmalloc(self, task_number, size, gfp, nid):
        """kmalloc_node(size bytes, gfp, nid): a kernel address, or 0."""
        if not 0 <= size <= slab_common.KMALLOC_MAX_SIZE:
            raise ValueError(f"kmalloc of {size} bytes: at most {slab_common.KMALLOC_MAX_SIZE} (KMALLOC_MAX_SIZE)")
        self.might_alloc(gfp, "kmalloc")
        address = kernel_calls.kernel_kmalloc(self.address, task_number, size, gfp, self.checked_nid(nid))
        self.no_bug()
        return int(address)

    def kfree(self, task_number, address):
        if kernel_calls.kernel_kfree(self.address, task_number, address):
            self.no_bug()

    def ksize(self, task_number, address):
        nbytes = kernel_calls.kernel_ksize(self.address, task_number, address)
        if nbytes < 0:
            raise KernelBug(f"ksize: Invalid object pointer: {address:#x} is not from kmalloc")
        return nbytes

    def kmalloc_waste(self, task_number):
        return slab_common.kmalloc_waste(self.machine)

    def kernel_bytes(self, address, nbytes):
        """Host address of a range of the direct map that has memory behind it."""
        last = address + max(nbytes, 1) - 1
        first_pfn, last_pfn = ((a - int(self.machine.paging.page_offset)) >> 12 for a in (address, last))
        for pfn in (first_pfn, last_pfn):
            zone = zone_of(self.machine, page_zone(self.machine, pfn)) if 0 <= pfn < self.machine.max_pfn else None
            if zone is None or not zone.start_pfn <= pfn < zone.start_pfn + zone.spanned_pages:
                raise KernelBug(f"unable to handle page fault for address {address:#x}: no memory there")
        return int(self.machine.memory) + address - int(self.machine.paging.page_offset)

    def store_ctor(self, task_number, name, size, ctor):
        """A constructor in kernel memory: (its address, bytes of a pickled function or 0)."""
        function = not isinstance(ctor, bytes)
        data = ctor[0] if function else ctor
        if not function and len(data) > size:
            raise ValueError(f"kmem_cache_create: {name}: ctor of {len(data)} bytes for objects of {size}")
        image = self.kmalloc(task_number, len(data) if function else size, GFP_KERNEL | GFP_ZERO, -1)
        if not image:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.kernel_write(task_number, image, data)
        return image, len(data) if function else 0

    def kmem_cache_create(self, task_number, name, size, align, flags, ctor, colour):
        """The new cache's number."""
        if not 0 < len(name.encode()) < slab.CACHE_NAME_BYTES or any(c.isspace() for c in name):
            limit = f"1 to {slab.CACHE_NAME_BYTES - 1} bytes, no spaces"
            raise ValueError(f"kmem_cache_create: name {name!r} must have {limit}")
        if not 0 < size <= slab_common.KMALLOC_MAX_SIZE:
            raise ValueError(f"kmem_cache_create: {name}: {size} bytes, must be 1 to {slab_common.KMALLOC_MAX_SIZE}")
        if align < 0 or align & (align - 1) or align > PAGE_SIZE:
            raise ValueError(f"kmem_cache_create: {name}: align {align} must be a power of two up to {PAGE_SIZE}")
        flags = kmem_cache_flags(flags, name, self.process.world.topology.kernel["slab_debug"] or None)
        image, nbytes = self.store_ctor(task_number, name, size, ctor) if ctor is not None else (0, 0)
        kernel_calls.slab_mutex(self.address, 1)
        cache = 0
        try:
            if any(slab.cache_name(self.machine, n) == name for n in slab.live_caches(self.machine)):
                raise ValueError(f"kmem_cache_create: {name}: there is a cache of this name")
            cache = kernel_calls.get_cache_number(self.address)
            if cache == 0:
                limit = f"at most {slab.MAX_KMEM_CACHES - 1} caches"
                raise OSError(errno.ENOMEM, f"kmem_cache_create: {name}: {limit}")
            try:
                slab_common.init_cache(self.machine, cache, name, size, align, flags, image, nbytes, colour)
            except ValueError:
                kernel_calls.kernel_cache_shutdown(self.address, cache)
                cache = 0
                raise
        finally:
            kernel_calls.slab_mutex(self.address, 0)
            if image and not cache:
                self.kfree(task_number, image)
        return cache

    def live_cache(self, cache):
        if not 0 < cache < slab.MAX_KMEM_CACHES or not slab.cache_of(self.machine, cache).live:
            raise KernelBug(f"cache number {cache}: No such cache")

    def kmem_cache_alloc(self, task_number, cache, gfp, nid):
        """kmem_cache_alloc_node of a cache (a number): a kernel address, or 0."""
        self.live_cache(cache)
        self.might_alloc(gfp, "kmem_cache_alloc")
        address = kernel_calls.kernel_cache_alloc(self.address, task_number, cache, gfp, self.checked_nid(nid))
        self.no_bug()
        return int(address)

    def kmem_cache_free(self, task_number, cache, address):
        self.live_cache(cache)
        if kernel_calls.kernel_cache_free(self.address, task_number, cache, address):
            self.no_bug()

    def kmem_cache_shrink(self, task_number, cache):
        """CPUs that run no operation give their slabs up, then empty slabs go."""
        self.live_cache(cache)
        others = [c for c in self.process.world.topology.cpus if c != self.process.cpu_number]
        for future in [self.process.ask(actor_of_cpu(self.machine, c), "flush_slab", cache) for c in others]:
            future.result()
        kernel_calls.flush_slab(self.address, cache)
        kernel_calls.kernel_cache_shrink(self.address, cache)

    def kmem_cache_destroy(self, task_number, cache):
        """Destroy a cache; KernelBug if objects of it are left, or if its shrinker is registered."""
        self.live_cache(cache)
        if any(shrinker_of(self.machine, n).cache == cache for n in live_shrinkers(self.machine)):
            raise KernelBug(f"cache {slab.cache_name(self.machine, cache)}: its shrinker is still registered")
        name, image = slab.cache_name(self.machine, cache), int(slab.cache_of(self.machine, cache).ctor)
        kernel_calls.slab_mutex(self.address, 1)
        try:
            left = kernel_calls.kernel_cache_shutdown(self.address, cache)
        finally:
            kernel_calls.slab_mutex(self.address, 0)
        if left:
            raise KernelBug(f"cache {name}: {left} objects remaining on kmem_cache_destroy(); the cache stays")
        if image:
            self.kfree(task_number, image)

    # -- shrinkers

    def register_shrinker(self, task_number, cache, link, seeks, batch):
        """The new shrinker's number."""
        self.live_cache(cache)
        kind, name = slab.cache_of(self.machine, cache), slab.cache_name(self.machine, cache)
        if not kind.flags & slab.SLAB_RECLAIM_ACCOUNT:
            raise ValueError(f"register_shrinker: cache {name} is not SLAB_RECLAIM_ACCOUNT")
        if link % 8 or not 0 <= link <= kind.object_size - LIST_HEAD_BYTES:
            limit = f"a multiple of 8, at most {kind.object_size - LIST_HEAD_BYTES}"
            raise ValueError(f"register_shrinker: cache {name}: link is {link}, must be {limit}")
        if seeks < 0 or batch < 1:
            raise ValueError(f"register_shrinker: cache {name}: seeks {seeks}, batch {batch} must be at least 0 and 1")
        shrinker = shrinker_calls.register_shrinker(self.address, cache, link, seeks, batch)
        if shrinker == 0:
            raise OSError(errno.ENOMEM, f"register_shrinker: at most {MAX_SHRINKERS - 1} shrinkers")
        return shrinker

    def live_shrinker(self, shrinker):
        if shrinker not in live_shrinkers(self.machine):
            raise KernelBug(f"shrinker {shrinker}: no such shrinker")

    def unregister_shrinker(self, task_number, shrinker):
        """Give a shrinker up; KernelBug if objects are on its lists."""
        self.live_shrinker(shrinker)
        left = sum(self.list_lru_count(task_number, shrinker, nid) for nid in range(self.machine.nr_nodes))
        if left:
            raise KernelBug(f"shrinker {shrinker}: {left} objects are still on its lists")
        shrinker_calls.unregister_shrinker(self.address, shrinker)

    def on_lru(self, task_number, shrinker, address, call):
        """Do `call` (list_lru_add, list_lru_del) with the object at a kernel address; True if it changed the list."""
        self.live_shrinker(shrinker)
        done = call(self.address, task_number, shrinker, address)
        if done < 0:
            name = slab.cache_name(self.machine, shrinker_of(self.machine, shrinker).cache)
            raise KernelBug(f"list_lru: {address:#x} is no object of cache {name}")
        return bool(done)

    def list_lru_add(self, task_number, shrinker, address):
        return self.on_lru(task_number, shrinker, address, kernel_calls.kernel_lru_add)

    def list_lru_del(self, task_number, shrinker, address):
        return self.on_lru(task_number, shrinker, address, kernel_calls.kernel_lru_del)

    def list_lru_count(self, task_number, shrinker, nid):
        self.live_shrinker(shrinker)
        return list_lru_node(self.machine, shrinker, self.checked_nid(nid, 0)).nr_items

    def shrink_slab(self, task_number, gfp, nid, priority):
        if not 0 <= priority <= DEF_PRIORITY:
            raise ValueError(f"priority {priority} must be 0 to {DEF_PRIORITY} (DEF_PRIORITY)")
        return kernel_calls.kernel_shrink_slab(self.address, self.checked_gfp(gfp), self.checked_nid(nid, 0), priority)

    def drop_slab(self, task_number):
        return kernel_calls.kernel_drop_slab(self.address)

    # -- per-CPU memory

    def alloc_percpu(self, task_number, size, align, gfp):
        if not 0 < size <= UNIT_SIZE or not 0 < align <= PAGE_SIZE or align & (align - 1):
            limit = f"1 to {UNIT_SIZE} bytes, aligned to a power of two up to {PAGE_SIZE}"
            raise ValueError(f"alloc_percpu: {size} bytes, aligned to {align}, must be {limit}")
        return kernel_calls.kernel_alloc_percpu(self.address, task_number, size, align, self.checked_gfp(gfp))

    def free_percpu(self, task_number, handle):
        if not kernel_calls.kernel_free_percpu(self.address, task_number, handle):
            raise KernelBug(f"free_percpu: nothing begins at {handle:#x}")

    def define_per_cpu(self, task_number, name, size, align):
        """DEFINE_PER_CPU: a variable of `size` bytes in the first chunk; its per-CPU address. ENOMEM if there is no
        room.
        """
        if not 0 < len(name.encode()) < VAR_NAME_BYTES:
            raise ValueError(f"per-CPU variable {name!r}: must have 1 to {VAR_NAME_BYTES - 1} bytes")
        if size < 1 or align < 1 or align & (align - 1):
            limit = "must be positive, and a power of two"
            raise ValueError(f"per-CPU variable {name}: {size} bytes, aligned to {align}: {limit}")
        if not kernel_calls.make_first_chunk(self.address):
            raise OSError(errno.ENOMEM, f"per-CPU variable {name}: no memory for the first chunk")
        kernel_calls.pcpu_mutex(self.address, 1)
        try:
            return define_per_cpu(self.machine, name, size, align)
        finally:
            kernel_calls.pcpu_mutex(self.address, 0)

    def valid_handle(self, handle, nbytes=1):
        if kernel_calls.percpu_bytes(self.address, handle) < nbytes:
            raise KernelBug(f"per-CPU memory: no {nbytes} bytes at {handle:#x}")
        return handle

    def per_cpu_ptr(self, task_number, handle, cpu_number):
        if cpu_number not in self.process.world.topology.cpus:
            raise ValueError(f"cpu {cpu_number} is not one of {choice_text(self.process.world.topology.cpus)}")
        return int(kernel_calls.kernel_per_cpu_ptr(self.address, self.valid_handle(handle), cpu_number))

    def this_cpu_add(self, task_number, handle, n):
        kernel_calls.kernel_this_cpu_add(self.address, task_number, self.valid_handle(handle, 8), n)

    def this_cpu_read(self, task_number, handle):
        return int(kernel_calls.kernel_this_cpu_read(self.address, task_number, self.valid_handle(handle, 8)))

    def get_cpu_var(self, task_number, handle):
        """This CPU's copy; no other task runs here until put_cpu_var."""
        address = self.per_cpu_ptr(task_number, handle, self.process.cpu_number)
        self.preempt_disable(task_number)
        return address

    def put_cpu_var(self, task_number):
        self.preempt_enable(task_number)
