"""A system call that was refused: its arguments one by one, and the mappings that it is about."""

import types

from numaemu.api.arguments import Address, Choice, Cpus, Flags, Nodes, Offset, Optional, Size
from numaemu.api.calls import FD, PID, PROT, RLIMIT
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.fs.file import FILE, files_of
from numaemu.kernel.fs.inode import file_of
from numaemu.kernel.mm.cache.filemap import MAX_FILE_BYTES
from numaemu.kernel.mm.space.vma_index import find_position, vma_index, vma_of
from numaemu.kernel.syscalls.common import NSIG
from numaemu.spec.param import MAX_OPEN, PAGE_SIZE
from numaemu.spec.units import format_size, list_text
from numaemu.uapi import MAP_HUGETLB, MFD_HUGETLB, O_ACCMODE, RLIM_INFINITY, RLIMIT_NOFILE

MODES = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")


class RefusedCall:
    """A call that was refused, with what there is to know about its task."""

    def __init__(self, operations, number, method, call, args):
        self.machine, self.task, self.number = operations.machine, operations.tasks[number], number
        self.cpus, self.tasks, self.method, self.call = operations.cpus_allowed(number), operations.tasks, method, call
        self.there = operations.process.world.topology.cpus
        self.kinds = {name: kind.kind if isinstance(kind, Optional) else kind for name, kind in call.kinds.items()}
        self.values = dict(zip(call.kinds, args, strict=True))
        self.a = types.SimpleNamespace(**self.values)

    def show(self, argument):
        value = self.values[argument]
        return "None" if value is None else self.kinds[argument].show(value)

    # -- one argument by itself

    def argument(self, name, argument, kind, value):
        """What is wrong with an argument, as far as this errno means it."""
        if isinstance(kind, Nodes) and not isinstance(kind, Cpus):
            return self.bad_node(value) if name in ("EINVAL", "EPERM") else None
        if isinstance(kind, Cpus):
            return self.cpus_text(value) if name == "EINVAL" else None
        if kind is PID:
            return f"no task has pid {value}" if name == "ESRCH" else None
        if kind is FD:
            return self.descriptor(argument, value) if name == "EBADF" else None
        if name == "EINVAL" and self.call.name in ("fork", "clone", "vfork") and argument == "cpu":
            return self.cpus_text([value])
        if kind is RLIMIT and name == "EINVAL" and not 0 <= value < 16:
            return f"{argument} {value} is no limit, must be 0 to 15 (RLIMIT_*)"
        if isinstance(kind, Offset):
            return self.offset(name, argument, value)
        if isinstance(kind, Size):
            return self.size(name, argument, value)
        if isinstance(kind, Address):
            return self.address(name, argument, kind, value)
        if isinstance(kind, Choice) and name in ("EINVAL", "EOPNOTSUPP"):
            return self.choice(argument, kind, value)
        return None

    def choice(self, argument, kind, value):
        """What is wrong with flags, or with one value of a few; None if nothing is."""
        names = [n for n in kind.names if kind.names[n]]
        if isinstance(kind, Flags):
            if kind is not PROT or self.call.name == "mprotect":
                unknown = kind.unknown(value)
                if unknown and not (self.call.name in ("mmap", "memfd_create") and self.sized_only(unknown)):
                    return (
                        f"{argument} {kind.show(value)}: {unknown & ((1 << 64) - 1):#x} is none of {', '.join(names)}"
                    )
            return None
        if argument == "sig":
            return None if 0 <= value <= NSIG else f"{argument} {value} is no signal, must be 0 to {NSIG}"
        if value not in kind.names.values():
            return f"{argument} {value} is none of {', '.join(kind.names)}"
        return None

    def sized_only(self, unknown):
        """Bits of a size of huge pages, in a call that asks for some."""
        huge = self.a.flags & (MAP_HUGETLB if self.call.name == "mmap" else MFD_HUGETLB)
        return huge and not unknown & ~(0x3F << 26)

    def address(self, name, argument, kind, value):
        """What is wrong with an address, for an errno by its name; None if nothing is."""
        if name == "EINVAL" and kind.page and value % PAGE_SIZE:
            return f"{argument} {value:#x} is no multiple of the page size ({PAGE_SIZE})"
        limit = int(self.machine.paging.task_size)
        if name in ("EINVAL", "ENOMEM") and value > limit:
            return f"{argument} {value:#x} is no address of a user, they end at {limit:#x}"
        return None

    def size(self, name, argument, value):
        """What is wrong with a length in bytes, for an errno by its name; None if nothing is."""
        kind, limit = self.kinds[argument], int(self.machine.paging.task_size)
        if name == "EINVAL" and kind.least and value < kind.least:
            return f"{argument} is {value}, must be at least {kind.least}"
        if name in ("EINVAL", "ENOMEM") and value > limit and self.call.name != "setrlimit":
            return f"{argument} {value} is more than an address space has ({limit:#x})"
        return None

    def offset(self, name, argument, value):
        """What is wrong with an offset in a file, for an errno by its name; None if nothing is."""
        if name in ("EINVAL", "EOVERFLOW") and value < 0:
            return f"{argument} {value} must not be negative"
        if name == "EINVAL" and self.call.name == "mmap" and value % PAGE_SIZE:
            return f"{argument} {value} is no multiple of the page size ({PAGE_SIZE})"
        if name in ("EFBIG", "EOVERFLOW") or (name == "EINVAL" and value > MAX_FILE_BYTES):
            return f"{argument} {value}: a file may have {format_size(MAX_FILE_BYTES)} at most"
        return None

    def bad_node(self, value):
        """A node that is not there, has no memory, or is not the task's to use."""
        machine, allowed = self.machine, int(self.task.mems_allowed)
        for node in value:
            if not 0 <= node < machine.nr_nodes:
                return self.no_node(node)
        for node in value:
            if not int(machine.memory_mask) >> node & 1:
                return f"node {node} has no memory ({self.mask_text(int(machine.memory_mask))} have)"
            if not allowed >> node & 1:
                return f"node {node} is not one that the task's cpuset allows ({self.mask_text(allowed)})"
        return None

    def no_node(self, node):
        return f"node {node} is not a node of this machine ({list_text(range(self.machine.nr_nodes))})"

    def mask_text(self, mask):
        return list_text(node for node in range(64) if mask >> node & 1)

    def cpus_text(self, value):
        """Why a task cannot run on these CPUs."""
        for cpu in value:
            if cpu not in self.there:
                return f"cpu {cpu} is not a CPU of this machine ({list_text(self.there)})"
        if not value:
            return "cpus must name a CPU at least"
        return f"cpu {list_text(value)} is not one of the task's cpuset ({list_text(self.cpus)})"

    def descriptor(self, argument, value):
        """What is wrong with a descriptor: not open, out of range, or open for something else; None if nothing is."""
        file = self.open_file(value)
        if file is None:
            table = files_of(self.machine, self.task.files)
            there = list_text(fd for fd in range(min(int(table.nr), MAX_OPEN)) if table.fd[fd] & FILE)
            limit = int(self.task.rlim[2 * RLIMIT_NOFILE])
            if argument == "target":
                return f"descriptor {value} must be 0 to {limit - 1} (RLIMIT_NOFILE)"
            return f"descriptor {value} is not open ({f'open: {there}' if there else 'none is'})"
        return (
            f"descriptor {value} is open {MODES[file.flags & O_ACCMODE]}"
            if self.call.name in ("read", "write")
            else None
        )

    def open_file(self, fd):
        table = files_of(self.machine, self.task.files)
        number = table.fd[fd] & FILE if 0 <= fd < min(int(table.nr), MAX_OPEN) else 0
        return file_of(self.machine, number) if number else None

    # -- mappings

    def range(self):
        """[start, end) in whole pages."""
        length = self.values.get("length", self.values.get("old_len", 1))
        return self.a.addr & -PAGE_SIZE, min(-(-(self.a.addr + length) // PAGE_SIZE) * PAGE_SIZE, 1 << 64)

    def vmas(self):
        mm = self.task.mm
        return [vma_of(self.machine, vma_index(self.machine, mm)[n]) for n in range(mm_of(self.machine, mm).map_count)]

    def hole(self):
        """The first hole in the range, in words; None: there is none."""
        at, end = self.range()
        for vma in self.vmas():
            if vma.end <= at:
                continue
            if vma.start > at:
                return f"nothing is mapped at {at:#x}-{min(int(vma.start), end):#x}"
            at = int(vma.end)
            if at >= end:
                return None
        return f"nothing is mapped at {at:#x}-{end:#x}"

    def vma_at(self, address):
        position = find_position(self.machine, self.task.mm, address)
        found = self.vmas()[position : position + 1]
        return found[0] if found and found[0].start <= address else None

    def limit(self, which):
        value = int(self.task.rlim[2 * which])
        return None if value == RLIM_INFINITY else value
