"""What a CPU does for task.kernel in the kernel's address space: accesses in kernel mode, vmalloc. A part of Operations."""

import numpy as np

from numaemu.api.access import kernel_copy_range
from numaemu.api.stack import recurse, use_stack
from numaemu.compiler.pointer import u64
from numaemu.errors import KernelBug
from numaemu.hardware.processor import X86_PF_PROT, X86_PF_WRITE
from numaemu.kernel.arch.init_mm import KM_MAX_IDX
from numaemu.kernel.include.gfp import __GFP_DIRECT_RECLAIM as GFP_DIRECT_RECLAIM
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, ZONE_HIGHMEM, page_zone
from numaemu.kernel.mm.vmalloc.vmap_area import vmap_area_of
from numaemu.kernel.syscalls import vmalloc as calls
from numaemu.operations.part import Part
from numaemu.spec.param import PAGE_SIZE

MOST_FRAME = 1 << 20  # bytes: more than any kernel stack has


class KernelSpaceOperations(Part):
    """Needs `machine`, `tasks`, `cpu` and the `address` of the CPU's struct, and `accessing`."""

    on_stack = False  # an operation is using a kernel stack

    # -- accesses in kernel mode

    def kernel_read(self, task_number, address, nbytes):
        return self.copy_out(task_number, kernel_copy_range, address, nbytes, self.machine.max_pfn * PAGE_SIZE)

    def kernel_write(self, task_number, address, data):
        data = np.frombuffer(data, np.uint8)
        self.accessing(task_number, kernel_copy_range, self.address, address, data.ctypes.data, len(data), 1)

    def oops(self, task_number):
        """The exception for a fault in kernel mode that the kernel could not serve; the log gets it too: show_fault_oops."""
        state, task = self.process.state, self.tasks[task_number]
        address, code, state.signal = int(state.cr2), int(state.error_code), 0
        how = "write" if code & X86_PF_WRITE else "read"
        why = "permissions violation" if code & X86_PF_PROT else "not-present page"
        self.process.printk(
            [
                f"BUG: unable to handle page fault for address: {address:016x}",
                f"#PF: supervisor {how} access in kernel mode",
                f"#PF: error_code({code:#06x}) - {why}",
            ]
        )
        where = f"task {task.pid} on cpu {self.process.cpu_number}"
        overflow = self.stack_overflow(task, address) if self.on_stack else None
        if overflow:
            self.process.printk([f"BUG: {overflow}"])
            return KernelBug(f"kernel stack overflow: {where}: {overflow}")
        return KernelBug(
            f"unable to handle page fault for address {address:#x}: {where}: supervisor {how}, error code "
            f"{code:#x}, {why}: {self.describe_kernel(address)}"
        )

    def stack_overflow(self, task, address):
        """If an address lies in the page below a stack that is in use here: Linux's words for it (handle_stack_overflow)."""
        size = self.machine.thread_size
        for kind, stack in (("TASK", int(task.stack)), ("IRQ", self.irq_stack())):
            if stack - PAGE_SIZE <= address < stack:
                return f"{kind} stack guard page was hit at {address:#x} (stack is {stack:#x}..{stack + size:#x})"
        return None

    def irq_stack(self):
        return int(u64.array(self.machine.irq_stacks)[self.process.cpu_number])

    def top_of_stack(self, task_number, irq):
        stack = self.irq_stack() if irq else int(self.tasks[task_number].stack)
        return stack + self.machine.thread_size

    def with_stack(self, task_number, irq, function, *args):
        """Run what uses a stack; the page below it may be another area's guard as well, so an oops shall know."""
        self.on_stack = True
        try:
            return self.accessing(task_number, function, self.address, self.top_of_stack(task_number, irq), *args)
        finally:
            self.on_stack = False

    def use_stack(self, task_number, nbytes, irq):
        self.with_stack(task_number, irq, use_stack, nbytes)

    def recurse(self, task_number, depth, frame_bytes, irq):
        """Call a function within itself `depth` times on the task's kernel stack, each frame `frame_bytes` large, or on
        the interrupt stack.
        """
        if frame_bytes < 16 or frame_bytes % 8 or frame_bytes > MOST_FRAME:
            raise ValueError(f"a frame of {frame_bytes} bytes: must be a multiple of 8, 16 to {MOST_FRAME}")
        if depth < 0:
            raise ValueError(f"depth {depth} must not be negative")
        return self.with_stack(task_number, irq, recurse, depth, frame_bytes)

    def describe_kernel(self, address):
        """What lies at a kernel address that cannot be accessed."""
        paging = self.machine.paging
        if address < paging.kernel_start:
            return "no address of the kernel"
        direct = int(paging.page_offset)
        if direct <= address < direct + (self.machine.high_memory << 12):
            return "no memory there"
        area = calls.area_at(self.address, address)
        if not area:
            return "nothing is mapped there"
        area = vmap_area_of(self.machine, area)
        end = int(area.end) - PAGE_SIZE
        return f"{address - end} bytes past the end of the area {area.start:#x}-{end:#x}: its guard page"

    # -- vmalloc

    def vmalloc(self, task_number, size, gfp, nid):
        """vmalloc_node(size bytes, gfp, nid): a kernel address, or 0."""
        self.might_sleep("vmalloc")
        self.checked_gfp(gfp)
        return int(
            calls.kernel_vmalloc(
                self.address, task_number, size, PAGE_SIZE, gfp, self.checked_nid(nid), self.tasks[task_number].pid
            )
        )

    def vfree(self, task_number, address):
        if address % PAGE_SIZE:
            raise KernelBug(f"Trying to vfree() bad address ({address:#x}): it begins no page")
        if not calls.kernel_vfree(self.address, task_number, address):
            raise KernelBug(f"Trying to vfree() nonexistent vm area ({address:#x})")

    def vmap(self, task_number, pfns):
        """vmap(pages): a kernel address, or 0."""
        for pfn in pfns:
            self.present(int(pfn), 0)
        pfns = np.ascontiguousarray(pfns, np.int64)
        return int(
            calls.kernel_vmap(self.address, task_number, pfns.ctypes.data, len(pfns), self.tasks[task_number].pid)
        )

    def vunmap(self, task_number, address):
        if not calls.kernel_vunmap(self.address, task_number, address):
            raise KernelBug(f"Trying to vunmap() nonexistent vm area ({address:#x})")

    def vm_unmap_aliases(self, task_number):
        calls.kernel_vm_unmap_aliases(self.address, task_number)

    def vmalloc_to_page(self, task_number, address):
        return calls.kernel_virt_to_pfn(self.address, address)

    # -- high memory

    def might_sleep(self, what):
        """Raise where no other task may run, so that nothing may be waited for: might_sleep."""
        if self.preempt_count:
            raise KernelBug(
                f"sleeping function called from invalid context: {what} on cpu {self.process.cpu_number}, between "
                "kmap_atomic or get_cpu_var and its end"
            )

    def might_alloc(self, gfp, what):
        """The same for an allocation that may reclaim memory: might_alloc."""
        self.checked_gfp(gfp)
        if gfp & GFP_DIRECT_RECLAIM:
            self.might_sleep(what)

    def high(self, pfn, what):
        """True for a page that needs a mapping."""
        self.present(pfn, 0)
        if page_zone(self.machine, pfn) % MAX_NR_ZONES != ZONE_HIGHMEM:
            return False
        if not self.machine.pkmap_base:
            raise KernelBug(f"{what}: paging {self.process.world.topology.paging} has no addresses for high memory")
        return True

    def kmap(self, task_number, pfn):
        """An address; None: all are in use."""
        self.might_sleep("kmap")
        if not self.high(pfn, "kmap"):
            return self.page_address(task_number, pfn)
        return int(calls.kernel_kmap(self.address, task_number, pfn)) or None

    def kunmap(self, task_number, pfn):
        if self.high(pfn, "kunmap") and not calls.kernel_kunmap(self.address, task_number, pfn):
            raise KernelBug(f"kunmap: pfn {pfn} is not mapped")

    def kmap_atomic(self, task_number, pfn):
        """Map a page of high memory into this CPU's next fixed slot and disable preemption: its kernel address."""
        high = self.high(pfn, "kmap_atomic")
        if high and len(self.kmap_slots) == KM_MAX_IDX:
            raise KernelBug(
                f"kmap_atomic: all {KM_MAX_IDX} slots of cpu {self.process.cpu_number} are in use (KM_MAX_IDX)"
            )
        self.preempt_disable(task_number)
        if not high:
            return self.page_address(task_number, pfn)
        address = int(calls.kernel_kmap_atomic(self.address, task_number, len(self.kmap_slots), pfn))
        self.kmap_slots.append(address)
        return address

    def kunmap_atomic(self, task_number, address):
        """Undo the last kmap_atomic and enable preemption; KernelBug if `address` is another."""
        fixmap = int(self.machine.fixaddr_top)
        if fixmap - self.machine.nr_cpu_ids * KM_MAX_IDX * PAGE_SIZE <= address < fixmap:
            last = self.kmap_slots[-1] if self.kmap_slots else 0
            if address & ~(PAGE_SIZE - 1) != last:
                raise KernelBug(
                    f"kunmap_atomic: {address:#x} is not what was mapped last on cpu {self.process.cpu_number} "
                    f"({f'{last:#x}' if last else 'nothing is'})"
                )
            self.kunmap_last()
        self.preempt_enable(task_number)

    def kunmap_last(self):
        self.kmap_slots.pop()
        calls.kernel_kunmap_atomic(self.address, len(self.kmap_slots))
