"""Why the kernel has refused a call: which argument it was, its value, and what would be allowed.

A refused call comes as an errno. Here the call's arguments (calls.py) and the task's state are looked at once more, as they
are a moment later, and the first reason that fits the errno becomes the text of the OSError. `errno` stays what it was.
"""

import errno
import os
from typing import Any

from numaemu.api.calls import CALLS
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.fs.sysfs.stats import task_numbers
from numaemu.kernel.include.mm_types import VM_SHARED, pool_t
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at, hstate_sizelog
from numaemu.kernel.mm.space.get_unmapped_area import MMAP_MIN_ADDR
from numaemu.operations.refused_call import MODES, RefusedCall
from numaemu.spec.param import MAX_OPEN, PAGE_SIZE
from numaemu.spec.units import format_size, list_text
from numaemu.uapi import (
    MADV_COLLAPSE,
    MADV_POPULATE_READ,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_TYPE,
    MCL_ONFAULT,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_LOCAL,
    MPOL_MF_MOVE_ALL,
    MPOL_PREFERRED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    O_ACCMODE,
    O_RDONLY,
    PR_SET_MM,
    PROT_WRITE,
    RLIMIT_AS,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
    RLIMIT_NOFILE,
)

# fmt: off
TABLES = {"task": "tasks (MAX_TASKS)", "mm": "address spaces (MAX_MMS)", "vma": "mappings of all tasks together (MAX_VMAS)",
          "mapping": "families of mappings (MAX_VMAS)", "inode": "files (MAX_INODES)", "file": "open files (MAX_FILES)",
          "files_struct": "processes with descriptors (MAX_TASKS)"}
# fmt: on


def full_table(machine):
    """The first of the machine's tables that has no number left, with its limit; None: there is room in all."""
    for name, what in TABLES.items():
        pool = pool_t.at(getattr(machine, f"{name}_pool"))
        if pool.used + 1 >= pool.capacity and pool.nr_returned == 0:
            return f"all {pool.capacity - 1} {what} that a machine may have are in use"
    return None


def explained(operations, number, method, args, error):
    """The exception again: the call's name, why, and in brackets what the errno means."""
    call = CALLS.get(method)
    if call is None:
        return error
    if not isinstance(error, OSError):
        text = str(error)
        return error if text.startswith(f"{call.name}: ") else type(error)(f"{call.name}: {text}")
    text = error.strerror or ""
    if error.errno is None or text.startswith(f"{call.name}: "):
        return error
    plain = os.strerror(error.errno)
    if text == plain:
        text = f"{Refusal(operations, number, method, call, args).reason(error.errno)} [{plain}]"
    return OSError(error.errno, f"{call.name}: {text}", *([error.filename] if error.filename is not None else []))


class Refusal(RefusedCall):
    """Why a call was refused, by errno."""

    def reason(self, code):
        """The first reason that fits an errno, or all arguments with their values."""
        name = "EOPNOTSUPP" if code == errno.EOPNOTSUPP else errno.errorcode.get(code, "")
        for argument, kind in self.kinds.items():
            value = self.values[argument]
            text = self.argument(name, argument, kind, value) if value is not None else None
            if text:
                return text
        if code in (errno.ENOMEM, errno.ENFILE) and (full := full_table(self.machine)):
            return full
        for rule in (getattr(self, f"{name}_{self.method}", None), getattr(self, name, None)):
            text = rule() if rule else None
            if text:
                return text
        shown = ", ".join(f"{argument} {self.show(argument)}" for argument in self.values)
        return f"refused with {shown}" if shown else "refused"

    # -- by errno, and by errno and operation

    def EINVAL(self):
        """A range that ends behind the addresses of users, in any call."""
        if (
            "addr" in self.values
            and "length" in self.values
            and self.a.addr + self.a.length > int(self.machine.paging.task_size)
        ):
            limit = int(self.machine.paging.task_size)
            return f"addr {self.a.addr:#x} and length {self.a.length} go beyond the addresses of users, which end at {limit:#x}"
        return None

    def EINVAL_mmap(self):
        """Flags that exclude each other, an offset within a page, no pool of that size."""
        kind = self.a.flags & MAP_TYPE
        private = "MAP_PRIVATE or MAP_SHARED" + (" or MAP_SHARED_VALIDATE" if self.method == "mmap_file" else "")
        if kind not in (MAP_PRIVATE, MAP_SHARED) + ((MAP_SHARED_VALIDATE,) if self.method == "mmap_file" else ()):
            return f"flags {self.show('flags')} must have {private}"
        if self.values.get("offset", 0) % PAGE_SIZE:
            return f"offset {self.a.offset} is no multiple of the page size ({PAGE_SIZE})"
        if self.a.flags & MAP_GROWSDOWN and (kind != MAP_PRIVATE or self.method == "mmap_file"):
            return f"flags {self.show('flags')}: only private memory of no file may have MAP_GROWSDOWN"
        if self.a.flags & MAP_HUGETLB:
            if self.method == "mmap_file":
                return "flags MAP_HUGETLB: the file has no huge pages"
            return f"flags {self.show('flags')}: {self.pools()}"
        return None

    EINVAL_mmap_file = EINVAL_mmap

    def pools(self):
        sizes = [
            format_size(PAGE_SIZE << int(hstate_at(self.machine, n).order)) for n in range(self.machine.nr_hstates)
        ]
        return f"there are huge pages of {' and '.join(sizes)}" if sizes else "there are no huge pages"

    def EINVAL_mremap(self):
        """Flags that need others, ranges that overlap, an old length of 0 for private memory."""
        flags = self.a.flags
        if flags & MREMAP_FIXED and not flags & MREMAP_MAYMOVE:
            return "flags MREMAP_FIXED needs MREMAP_MAYMOVE"
        if flags & MREMAP_DONTUNMAP and not flags & MREMAP_MAYMOVE:
            return "flags MREMAP_DONTUNMAP needs MREMAP_MAYMOVE"
        if flags & MREMAP_DONTUNMAP and self.a.old_len != self.a.new_len:
            return f"old_len {self.a.old_len} and new_len {self.a.new_len} must be equal with MREMAP_DONTUNMAP"
        vma = self.vma_at(self.a.addr)
        if self.a.old_len == 0 and vma is not None and not vma.flags & VM_SHARED:
            return "old_len 0 means a second mapping, which only shared memory may have"
        if (
            flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)
            and self.a.new_addr < self.a.addr + self.a.old_len
            and self.a.addr < self.a.new_addr + self.a.new_len
        ):
            return f"new_addr {self.a.new_addr:#x} lies in the old range"
        return None

    def EINVAL_madvise(self):
        """Advice that the mapping at the start does not take."""
        start, end = self.range()
        vma = self.vma_at(start)
        if self.a.advice == MADV_COLLAPSE:
            return f"no huge page fits into {start:#x}-{end:#x}, or into the mapping there"
        if vma is not None:
            need = " needs PROT_READ" if self.a.advice == MADV_POPULATE_READ else ""
            return f"advice {self.show('advice')}{need}: the mapping {vma.start:#x}-{vma.end:#x} does not allow it"
        return None

    def EINVAL_mlockall(self):
        return "flags must have MCL_CURRENT or MCL_FUTURE" if self.a.flags in (0, MCL_ONFAULT) else None

    def EINVAL_setrlimit(self):
        hard = int(self.task.rlim[2 * self.a.which + 1]) if self.a.hard is None else self.a.hard
        return f"soft limit {self.a.soft} is above the hard one, {hard}" if self.a.soft > hard else None

    def EINVAL_set_mempolicy(self):
        """A mode that there is not, flags that exclude each other, nodes where there must be none or some."""
        mode = self.a.mode & 0xFFF
        names = self.kinds["mode"].names
        if mode not in names.values():
            return f"mode {self.a.mode} is none of {', '.join(names)}"
        name = next(n for n in names if names[n] == mode)
        if self.a.mode & ~0xFFF & ~(3 << 14) or self.a.mode & 3 << 14 == 3 << 14:
            return f"mode {name} | {self.a.mode & ~0xFFF:#x}: MPOL_F_STATIC_NODES or MPOL_F_RELATIVE_NODES may be added, not both"
        if mode in (MPOL_DEFAULT, MPOL_LOCAL) and self.a.nodes:
            return f"nodes {self.show('nodes')}: {name} takes none"
        if not self.a.nodes:
            return (
                f"nodes must name a node at least with {name}"
                if mode != MPOL_PREFERRED
                else "MPOL_PREFERRED without nodes takes no flags"
            )
        return None

    EINVAL_mbind = EINVAL_set_mempolicy

    def EINVAL_get_mempolicy(self):
        return (
            f"flags {self.show('flags')}, addr {self.a.addr:#x} do not go together, or the policy does not interleave"
        )

    def EINVAL_memfd_create(self):
        """A name that is too long, or flags that exclude each other."""
        nbytes = len(os.fsencode(self.a.name))
        return (
            f"name has {nbytes} bytes, at most 249"
            if nbytes > 249
            else "flags MFD_EXEC and MFD_NOEXEC_SEAL exclude each other"
        )

    def EINVAL_setuid(self):
        return f"uid {self.a.uid} must be 0 to {(1 << 32) - 2}"

    def EINVAL_sleep(self):
        return f"ms is {self.a.ms:g}, must not be negative"

    def EINVAL_work(self):
        return f"ns is {self.a.ns:g}, must not be negative"

    def EINVAL_prctl(self):
        if self.a.option != PR_SET_MM:
            return f"option {self.a.option} is none of Linux's; here is PR_SET_MM ({PR_SET_MM})"
        return f"addr {self.a.addr:#x} must be {int(MMAP_MIN_ADDR):#x} to {int(self.machine.paging.task_size):#x}"

    def EINVAL_file_truncate(self):
        file = self.open_file(self.a.fd)
        if file is not None and file.flags & O_ACCMODE == O_RDONLY:
            return f"descriptor {self.a.fd} is open O_RDONLY, must be O_WRONLY or O_RDWR"
        return None

    def EFAULT(self):
        return self.hole() if "addr" in self.values else None

    def EFAULT_mremap(self):
        return self.hole() or f"old_len {self.a.old_len}: the range does not lie in one mapping that may grow"

    def EFAULT_mbind(self):
        return self.hole()

    def ENOMEM(self):
        """A hole, or the limit that was met."""
        if self.call.name in ("munlock", "mlock", "mprotect", "mincore", "msync", "madvise"):
            hole = self.hole()
            if hole:
                return hole
        mm = mm_of(self.machine, self.task.mm)
        nbytes: Any = self.values.get("length", self.values.get("new_len", 0))
        if self.call.name == "mmap" and self.values["flags"] & MAP_HUGETLB:
            return self.pool_is_empty(nbytes)
        for which, name, used in (
            (RLIMIT_AS, "RLIMIT_AS", mm.total_vm),
            (RLIMIT_DATA, "RLIMIT_DATA", mm.data_vm),
            (RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK", mm.locked_vm),
        ):
            limit, locks = self.limit(which), self.call.name in ("mlock", "mlockall")
            if limit is not None and (which == RLIMIT_MEMLOCK) == locks and int(used) * PAGE_SIZE + nbytes > limit:
                return f"{name} allows {format_size(limit)}, {format_size(int(used) * PAGE_SIZE)} are in use"
        if mm.map_count >= self.machine.max_map_count:
            return f"the task has {mm.map_count} mappings, vm.max_map_count is {self.machine.max_map_count}"
        return None

    def pool_is_empty(self, nbytes):
        """How many huge pages of the size that was asked for are to be had; None if there is no such pool."""
        number = hstate_sizelog(self.machine, self.a.flags)
        if number < 0:
            return None
        h = hstate_at(self.machine, number)
        free = int(h.free_huge_pages) - int(h.resv_huge_pages)
        nodes = int(self.machine.node_mask) & int(self.task.mems_allowed)
        if self.task.policy.mode == MPOL_BIND:
            nodes = nodes & int(self.task.policy.nodes) or nodes
        allowed, where = sum(int(h.free_node[node]) for node in range(self.machine.nr_nodes) if nodes >> node & 1), ""
        if allowed < free:
            free, where = allowed, f" on the nodes that the task may use ({self.mask_text(nodes)})"
        size = format_size(PAGE_SIZE << int(h.order))
        return f"length {format_size(nbytes)}: {free} huge pages of {size} are to be had{where}"

    def EOPNOTSUPP_mmap_file(self):
        return f"flags {self.show('flags')}: MAP_SHARED_VALIDATE takes no flags that this file does not know"

    def EAGAIN_mmap(self):
        locked = format_size(int(mm_of(self.machine, self.task.mm).locked_vm) * PAGE_SIZE)
        return f"RLIMIT_MEMLOCK allows {format_size(self.limit(RLIMIT_MEMLOCK) or 0)}, {locked} are locked"

    def EACCES_mmap_file(self):
        file = self.open_file(self.a.fd)
        mode = MODES[file.flags & O_ACCMODE] if file is not None else "closed"
        need = "O_RDWR" if self.a.prot & PROT_WRITE and self.a.flags & MAP_SHARED else "O_RDONLY or O_RDWR"
        return f"prot {self.show('prot')} needs a file that is open {need}, this one is {mode}"

    def EACCES_mprotect(self):
        vma = self.vma_at(self.a.addr)
        where = f"{vma.start:#x}-{vma.end:#x}" if vma is not None else "there"
        return f"prot {self.show('prot')}: the file of the mapping {where} was not opened for it"

    def EACCES_move_pages(self):
        return (
            f"a node of nodes is not one that the task's cpuset allows ({self.mask_text(int(self.task.mems_allowed))})"
        )

    def ENOMEM_move_pages(self):
        nodes = sorted(set(self.a.nodes.ravel().tolist()))
        return f"node {list_text(nodes)} is full: pages before the first without room have moved"

    def ENOMEM_migrate_pages(self):
        return "a target node is full: pages before the first without room have moved"

    def ENODEV_move_pages(self):
        """The first target that is no node, or a node without memory."""
        for node in self.a.nodes.ravel().tolist():
            if not 0 <= node < self.machine.nr_nodes:
                return self.no_node(node)
            if not int(self.machine.memory_mask) >> node & 1:
                return f"node {node} has no memory ({self.mask_text(int(self.machine.memory_mask))} have)"
        return None

    def ENODEV_memfd_create(self):
        return f"flags {self.show('flags')}: {self.pools()}"

    def EBADF_mmap(self):
        return f"flags {self.show('flags')}: without MAP_ANONYMOUS a file must be given"

    def EPERM(self):
        """Only root may, as a rule."""
        if self.values.get("flags", 0) == MAP_LOCKED or self.call.name in ("mlock", "mlockall"):
            return "RLIMIT_MEMLOCK is 0"
        if self.task.uid != 0:
            return f"{self.only_root()}, task {self.task.pid} is user {self.task.uid}"
        return None

    def only_root(self):
        """What only root may do of this call: EPERM."""
        if self.call.name in ("mbind", "move_pages") and self.a.flags & MPOL_MF_MOVE_ALL:
            return "flags MPOL_MF_MOVE_ALL is for root"
        if "pid" in self.values:
            other = next((n for n in task_numbers(self.machine) if self.tasks[n].pid == self.a.pid), 0)
            return (
                f"task {self.a.pid} is user {self.tasks[other].uid}'s"
                if other
                else f"pid {self.a.pid} is another user's"
            )
        if self.call.name == "setuid":
            return f"uid {self.a.uid}: only root becomes another user"
        return "only root may"

    def EPERM_mmap(self):
        if self.a.flags & MAP_LOCKED and self.limit(RLIMIT_MEMLOCK) == 0:
            return "flags MAP_LOCKED: RLIMIT_MEMLOCK is 0"
        return f"addr {self.a.addr:#x} must be at least {int(MMAP_MIN_ADDR):#x} (vm.mmap_min_addr)"

    def EPERM_setrlimit(self):
        if self.a.which == RLIMIT_NOFILE and (self.a.hard or 0) > MAX_OPEN:
            return f"hard limit {self.a.hard}: a process may have {MAX_OPEN} descriptors (fs.nr_open)"
        return f"hard limit {self.a.hard} is above the old one, which only root may do; task {self.task.pid} is user {self.task.uid}"

    def EEXIST_mmap(self):
        return f"something is mapped at {self.a.addr:#x}-{self.a.addr + self.a.length:#x}"

    EEXIST_mmap_file = EEXIST_mmap

    def EIO_mbind(self):
        return "pages of the range lie on other nodes and could not be, or were not to be, moved (MPOL_MF_STRICT)"

    def ECHILD(self):
        return f"task {self.task.pid} has no child" + (f" with pid {self.a.pid}" if self.a.pid > 0 else "")

    def ENXIO(self):
        return f"offset {self.a.offset} is not before the end of the file, or no more data follows"

    def EMFILE(self):
        return f"RLIMIT_NOFILE allows {int(self.task.rlim[2 * RLIMIT_NOFILE])} descriptors, all below are open"

    def ENOENT(self):
        return "no file has this name (O_CREAT makes one)" if self.call.name == "open" else None

    def EEXIST(self):
        return "a file has this name (flags O_CREAT | O_EXCL)" if self.call.name == "open" else None
