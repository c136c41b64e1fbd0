"""What a CPU does for task.kernel in the kernel's address space: accesses in kernel mode, vmalloc. A part of Operations."""
import numpy as np

from numaemu.access import kernel_copy_range
from numaemu.errors import KernelBug
from numaemu.kernel import vmalloc_calls as calls
from numaemu.kernel.vmap_area import vmap_area_of
from numaemu.param import PAGE_SIZE
from numaemu.processor import X86_PF_PROT, X86_PF_WRITE


class KernelSpaceOperations:
    """Needs `machine`, `tasks`, `cpu` and the `address` of the CPU's struct, and `accessing`."""

    # -- accesses in kernel mode

    def kernel_read(self, number, address, nbytes):
        data = np.empty(nbytes, np.uint8)
        self.accessing(number, kernel_copy_range, self.address, address, data.ctypes.data, nbytes, 0)
        return data.tobytes()

    def kernel_write(self, number, address, data):
        data = np.frombuffer(data, np.uint8)
        self.accessing(number, kernel_copy_range, self.address, address, data.ctypes.data, len(data), 1)

    def oops(self, number):
        """The exception for a fault in kernel mode that the kernel could not serve; the log gets it too: show_fault_oops."""
        state = self.cpu.state
        address, code, state.signal = int(state.cr2), int(state.error_code), 0
        how = "write" if code & X86_PF_WRITE else "read"
        why = "permissions violation" if code & X86_PF_PROT else "not-present page"
        self.cpu.printk([f"BUG: unable to handle page fault for address: {address:016x}",
                         f"#PF: supervisor {how} access in kernel mode", f"#PF: error_code({code:#06x}) - {why}"])
        where = f"task {self.tasks[number].pid} on cpu {self.cpu.cpu_number}"
        return KernelBug(f"unable to handle page fault for address {address:#x}: {where}: supervisor {how}, error code "
                         f"{code:#x}, {why}: {self.describe_kernel(address)}")

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

    def vmalloc(self, number, size, gfp, nid):
        return int(calls.kernel_vmalloc(self.address, number, size, PAGE_SIZE, gfp, self.checked_nid(nid),
                                        self.tasks[number].pid))

    def vfree(self, number, address):
        if address % PAGE_SIZE:
            raise KernelBug(f"Trying to vfree() bad address ({address:#x}): it begins no page")
        if not calls.kernel_vfree(self.address, number, address):
            raise KernelBug(f"Trying to vfree() nonexistent vm area ({address:#x})")

    def vmap(self, number, pfns):
        for pfn in pfns:
            self.present(int(pfn), 0)
        pfns = np.ascontiguousarray(pfns, np.int64)
        return int(calls.kernel_vmap(self.address, number, pfns.ctypes.data, len(pfns), self.tasks[number].pid))

    def vunmap(self, number, address):
        if not calls.kernel_vunmap(self.address, number, address):
            raise KernelBug(f"Trying to vunmap() nonexistent vm area ({address:#x})")

    def vm_unmap_aliases(self, number):
        calls.kernel_vm_unmap_aliases(self.address, number)

    def vmalloc_to_page(self, number, address):
        return calls.kernel_virt_to_pfn(self.address, address)
