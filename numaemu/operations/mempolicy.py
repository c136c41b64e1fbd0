"""What a CPU does for its tasks' memory policies, and moving their pages between nodes."""

import errno

import numpy as np

from numaemu.kernel.fs.sysfs.stats import task_numbers
from numaemu.kernel.syscalls import mempolicy as syscalls
from numaemu.operations.memory import check
from numaemu.operations.part import Part
from numaemu.spec.param import MAX_NODES, PAGE_SIZE

MPOL_MODE = 0xFFF  # of a mode: without its flags


class MempolicyOperations(Part):
    """The operations on memory policies and on the nodes of pages."""

    def nodemask(self, nodes):
        """Nodes as system calls take them; -EINVAL for a node that is in no mask (get_nodes)."""
        if nodes is not None and not all(0 <= node < MAX_NODES for node in nodes):
            check(-errno.EINVAL)
        return sum(1 << node for node in set(nodes or ()))

    def set_mempolicy(self, task_number, mode, nodes):
        """set_mempolicy(2): `mode` with its MPOL_F_* flags, `nodes` a tuple of numbers or None."""
        check(
            syscalls.sys_set_mempolicy(
                self.address, task_number, mode & MPOL_MODE, mode & ~MPOL_MODE, self.nodemask(nodes)
            )
        )

    def mbind(self, task_number, addr, length, mode, nodes, flags):
        """mbind(2): `mode` with its MPOL_F_* flags, `nodes` a tuple of numbers or None."""
        check(
            syscalls.sys_mbind(
                self.address,
                task_number,
                addr,
                length,
                mode & MPOL_MODE,
                mode & ~MPOL_MODE,
                self.nodemask(nodes),
                flags,
            )
        )

    def get_mempolicy(self, task_number, addr, flags):
        """(mode or node, node mask)"""
        answer = np.zeros(2, np.uint64)
        check(syscalls.sys_get_mempolicy(self.address, task_number, addr, flags, answer.ctypes.data))
        return int(answer[0]), int(answer[1])

    def move_pages(self, task_number, pid, addresses, nodes, flags):
        """(return value, status array)"""
        addresses = np.ascontiguousarray(addresses, np.uint64).ravel()
        status = np.zeros(len(addresses), np.int64)
        where = 0
        if nodes is not None:
            if nodes.size not in (1, addresses.size):
                raise ValueError(f"{nodes.size} nodes for {addresses.size} addresses")
            nodes = np.ascontiguousarray(np.broadcast_to(nodes.ravel(), addresses.shape))
            where = nodes.ctypes.data
        result = syscalls.sys_move_pages(
            self.address,
            task_number,
            self.target(task_number, pid),
            addresses.ctypes.data,
            where,
            status.ctypes.data,
            len(addresses),
            flags,
        )
        return check(result), status

    def accessed(self, task_number, addr, nbytes, clear, pid):
        """Per page of [addr, addr + nbytes) whether it was used, as bytes."""
        start = addr & -PAGE_SIZE
        pages = max(-(-(min(addr + nbytes, int(self.machine.paging.task_size)) - start) // PAGE_SIZE), 0)
        used = np.zeros(pages, np.uint8)
        target = self.target(task_number, pid)
        check(syscalls.read_accessed(self.address, task_number, target, start, pages, used.ctypes.data, clear))
        return used

    def migrate_pages(self, task_number, pid, old, new):
        old, new = self.nodemask(old), self.nodemask(new)
        return check(syscalls.sys_migrate_pages(self.address, task_number, self.target(task_number, pid), old, new))

    def target(self, task_number, pid):
        """The number of the task with this pid, or 0; pid 0 means the calling one."""
        return task_number if not pid else self.number_of_pid(pid)

    def number_of_pid(self, pid):
        return next((n for n in task_numbers(self.machine) if self.tasks[n].pid == pid), 0)

    def cpuset_attach(self, task_number, group, mems, old_mems, whole):
        """The task's group, or what it allows, has changed: its memory follows, and it leaves a CPU it may not be on."""
        check(syscalls.sys_cpuset_attach(self.address, task_number, group, mems, old_mems, whole))
        allowed = self.cpus_allowed(task_number)
        if self.tasks[task_number].cpu not in allowed:
            self.sched_setaffinity(task_number, allowed)
