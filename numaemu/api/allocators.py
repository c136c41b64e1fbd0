"""What a workload holds of the kernel's own allocators: `task.kernel`, slab caches, shrinkers."""

import contextlib

from numaemu.api.calls import GFP, take
from numaemu.api.explain import Trail
from numaemu.errors import NumaemuError
from numaemu.kernel.include import gfp as gfp_types
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.process.payload import dump_function
from numaemu.spec.units import shown

HIGHMEM, ZERO = (getattr(gfp_types, f"__GFP_{name}") for name in ("HIGHMEM", "ZERO"))  # mangled inside a class

LOWEST_PAGE_OFFSET = 0xC000_0000  # of any page-table format; where pfns are as large, the kernel knows
KMAP_POLL_S = 0.002  # between two tries of kmap


class KernelCalls:
    """task.kernel: the kernel's own allocation functions, run by the CPU the task is on."""

    def __init__(self, task):
        self._task = task

    # -- pages, by pfn

    def alloc_pages(self, gfp, order=0, nid=-1, nodes=None, explain=False):
        """2**order pages: the first pfn, or None if nobody could serve it. With `explain` (pfn, trail): the trail is a
        list of the steps that were taken, prints as a table and has pfn and cost_ns.
        """
        if not explain:
            return self._task._op("alloc_pages", gfp, order, nid, nodes) or None
        pfn, steps, lost = self._task._op("explain_pages", gfp, order, nid, nodes)
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
        [where] = take("virt_to_pfn", [where])
        return where if where < LOWEST_PAGE_OFFSET else self._task._op("virt_to_pfn", where)

    # -- pages, by address

    def get_free_pages(self, gfp, order=0):
        """2**order pages: their address in the direct map, or None; never high memory. Mirrors __get_free_pages."""
        pfn = self.alloc_pages(GFP.take("get_free_pages", "gfp", gfp) & ~HIGHMEM, order)
        return self.page_address(pfn) if pfn else None

    def get_free_page(self, gfp):
        """One page: its address. Mirrors __get_free_page."""
        return self.get_free_pages(gfp)

    def get_zeroed_page(self, gfp):
        """One page of zeros: its address."""
        return self.get_free_pages(GFP.take("get_zeroed_page", "gfp", gfp) | ZERO)

    def page(self, pfn):
        """What the page struct says: node, zone, flags, counts."""
        return self._task._op("page", pfn)

    def kmalloc(self, size, gfp, nid=-1):
        """`size` bytes of kernel memory: its address, or None if nobody could serve it."""
        return self._task._op("kmalloc", size, gfp, nid) or None

    def kfree(self, address):
        """Give memory from kmalloc back; KernelBug if there is none at this address."""
        self._task._op("kfree", 0 if address is None else address)

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
        if ctor is not None and not callable(ctor) and not isinstance(ctor, bytes):
            raise TypeError(f"kmem_cache_create: ctor must be bytes or a function, not {shown(ctor)}")
        if callable(ctor):
            ctor = (dump_function(ctor, ()),)
        return KmemCache(self._task, self._task._op("kmem_cache_create", name, size, align, flags, ctor, colour), name)

    def register_shrinker(self, cache, link=0, seeks=2, batch=128):
        """Let memory pressure free objects of a cache (SLAB_RECLAIM_ACCOUNT) that nobody uses: a Shrinker.

        Objects keep 16 bytes at `link` for it. `seeks`: how dear an object is to make again, 2 as a page of a file.
        """
        if not isinstance(cache, KmemCache):
            raise TypeError(f"register_shrinker: cache must be what kmem_cache_create gives, not {shown(cache)}")
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
            with contextlib.suppress(OSError, NumaemuError):  # the task may have ended
                self._task._op("put_cpu_var")
            raise
        self._task._op("put_cpu_var")

    # -- the kernel's address space

    def vmalloc(self, size, gfp=GFP_KERNEL, nid=-1):
        """`size` bytes in whole pages, contiguous in virtual addresses only, by the task's policy or from node `nid`: their
        address, or None if nobody could serve it. A guard page follows.
        """
        return self._task._op("vmalloc", size, gfp, nid) or None

    def vzalloc(self, size, nid=-1):
        """The same, zeroed."""
        return self.vmalloc(size, GFP_KERNEL | ZERO, nid)

    def vfree(self, address):
        """Give memory from vmalloc back; its addresses only after a purge (vm_unmap_aliases, or when too many wait)."""
        if address is not None and address != 0:
            self._task._op("vfree", address)

    def vmap(self, pfns):
        """Map pages that one has, given by pfn, one after another: the first address, or None."""
        return self._task._op("vmap", pfns) or None

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
        self._task._op("use_stack", nbytes, irq)

    def recurse(self, depth, frame_bytes=96, irq=False):
        """`depth` nested calls with frames of so many bytes: how many came back."""
        return self._task._op("recurse", depth, frame_bytes, irq)

    def kmap(self, pfn):
        """The address of a page that may be high memory, until kunmap. Waits while all LAST_PKMAP addresses are in use."""
        while (address := self._task._op("kmap", pfn)) is None:
            self._task._site.pause(KMAP_POLL_S)
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
        self._task._op("kernel_write", address, data)


for _name in ("free_pages", "get_free_pages", "get_free_page"):  # Linux's names, which a class would mangle
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
