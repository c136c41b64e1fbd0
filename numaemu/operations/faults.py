"""What a task is told of a fault that the kernel has refused: what lies at the address, or why no node has a page for it."""

import numpy as np

from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.fs.inode import file_of, inode_name, inode_of
from numaemu.kernel.include.gfp import GFP_HIGHUSER_MOVABLE
from numaemu.kernel.include.mm_types import VM_EXEC, VM_HUGETLB, VM_MAYSHARE, VM_READ, VM_WRITE
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.page_alloc.report.shortage import pool_text, shortage_text
from numaemu.kernel.mm.space.vma_index import find_position, vma_index, vma_of
from numaemu.operations.part import Part
from numaemu.uapi import MPOL_BIND, MPOL_DEFAULT


def permissions(vma):
    """rwxp, as /proc/<pid>/maps has it."""
    letters = ((VM_READ, "r"), (VM_WRITE, "w"), (VM_EXEC, "x"))
    return "".join(c if vma.flags & bit else "-" for bit, c in letters) + ("s" if vma.flags & VM_MAYSHARE else "p")


class FaultTexts(Part):
    """A part of Operations."""

    def describe(self, mm, address, present):
        """What lies at or nearest to an address."""
        paging = self.machine.paging
        if address >> int(paging.canonical_shift) not in (0, (1 << 64 - int(paging.canonical_shift)) - 1):
            return f"not an address of this machine (not canonical with {self.process.world.topology.paging})"
        if address >= paging.kernel_start:
            return "a kernel address, not for users"
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
        return (
            f"not mapped; nearest is {nearest.start:#x}-{nearest.end:#x} {permissions(nearest)}, "
            f"{min(distance)} bytes {side} it"
        )

    def policy_at(self, number, address):
        """The policy by which the task gets memory for an address."""
        mm = self.tasks[number].mm
        position = find_position(self.machine, mm, np.uint64(address))
        vma = vma_of(self.machine, vma_index(self.machine, mm)[position])
        return self.tasks[number].policy if vma.policy.mode == MPOL_DEFAULT else vma.policy

    def shortage_at(self, number, address):
        """Why no node has a page for an address."""
        policy = self.policy_at(number, address)
        nodes = int(policy.nodes if policy.mode == MPOL_BIND else self.machine.node_mask)
        return shortage_text(self.machine, GFP_HIGHUSER_MOVABLE, 0, nodes, int(self.tasks[number].mems_allowed))

    def beyond_the_end(self, number, mm, address):
        """The file whose end an address lies behind, or the pool that has no page."""
        position = find_position(self.machine, mm, np.uint64(address))
        vma = vma_of(self.machine, vma_index(self.machine, mm)[position])
        if vma.flags & VM_HUGETLB:
            if vma.resv_unmapped:
                return "its huge page was taken away for the copy of the task that had reserved it"
            if (
                vma.file
                and (vma.pgoff << 12) + address - int(vma.start)
                >= inode_of(self.machine, file_of(self.machine, vma.file).inode).i_size
            ):
                return "the file of huge pages ends before it"
            why = pool_text(self.machine, vma, self.policy_at(number, address), int(self.tasks[number].mems_allowed))
            return f"no huge page of the pool is free for it: {why} (mapping {vma.start:#x}-{vma.end:#x})"
        offset = (vma.pgoff << 12) + address - int(vma.start)
        if not vma.file:
            nbytes = mapping_of(self.machine, vma.mapping).size << 12
            return f"byte {offset} of shared memory, which was made with {nbytes}"
        inode = inode_of(self.machine, file_of(self.machine, vma.file).inode)
        return f"byte {offset} of {inode_name(inode)}, which has {inode.i_size}"
