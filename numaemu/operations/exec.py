"""execve as a CPU does it for a task: Linux's load_elf_binary, create_elf_tables and bprm_execve, in their order.

The steps inside the kernel stand in kernel/syscalls/exec.py, what an ELF file says in kernel/fs/binfmt_elf.py; here is what
lies between: the program's place, and its arguments on the stack, which are written as the program's own memory.

    end of the stack  a word of 0
                      path (AT_EXECFN), environment, arguments: text, each with a 0
                      the platform ("x86_64"), 16 random bytes
                      auxiliary vector, environment's addresses, 0, arguments' addresses, 0, their number  <- sp
"""

import collections
import errno
import os
import stat
import struct
import typing

import numpy as np

from numaemu.api.access import copy_range
from numaemu.api.files import name_words
from numaemu.errors import BusError, SegmentationFault
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.fs import binfmt_elf as elf
from numaemu.kernel.fs.binfmt_elf import Program, page_align, page_start, refused
from numaemu.kernel.fs.binfmt_script import MOST_INTERPRETERS, is_script, load_script
from numaemu.kernel.fs.sysfs.stats import task_numbers
from numaemu.kernel.include.mm_types import TASK_RUNNING
from numaemu.kernel.syscalls import common as syscalls
from numaemu.kernel.syscalls import exec as calls
from numaemu.operations.files import check
from numaemu.operations.part import Part
from numaemu.spec.param import PAGE_SIZE
from numaemu.uapi import MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_EXEC, PROT_WRITE, RLIMIT_STACK, SIGSEGV

MAX_ARG_STRLEN = 128 << 10  # bytes of one argument; of all, what ARG_LIMIT says
ARG_MAX, ARG_LIMIT = 128 << 10, 6 << 20  # at least so many; at most, and a quarter of RLIMIT_STACK: bprm_stack_limits

Registers = collections.namedtuple("Registers", "ip sp")


class ExecFile:
    """A program's file, open for the kernel."""

    def __init__(self, operations, number, path, opened):
        self.operations, self.number, self.path = operations, number, path
        name = name_words(opened)
        self.fd = check(calls.open_exec(operations.address, number, name.ctypes.data), path)

    def read(self, offset, nbytes):
        """Up to `nbytes` bytes of the file from `offset` on, read without the descriptor's position."""
        data = np.empty(nbytes, np.uint8)
        n = check(
            calls.kernel_read(self.operations.address, self.number, self.fd, offset, data.ctypes.data, nbytes),
            self.path,
        )
        return data[:n].tobytes()

    def close(self):
        calls.close_exec(self.operations.address, self.fd)


def words_of(given):
    """Arguments as bytes, each with its end."""
    given = [f"{key}={value}" for key, value in given.items()] if isinstance(given, dict) else given
    words = [os.fsencode(word) + b"\0" for word in given]
    if any(b"\0" in word[:-1] for word in words):
        raise ValueError("an argument contains a byte 0")
    return words


class Placed(typing.NamedTuple):
    """A program in memory."""

    program: elf.Program
    bias: int  # by how much it lies higher than its file says
    base: int  # the same of its interpreter; 0: it has none


class Strings(typing.NamedTuple):
    """What a new program is given, each string with the byte 0 that ends it."""

    path: bytes
    argv: list
    envp: list

    def from_the_top(self):
        """All of them as they lie on the stack, from the highest address down."""
        return [self.path, *reversed(self.envp), *reversed(self.argv)]


class ExecOperations(Part):
    """The operation execve; `address`, `machine`, `tasks` and `accessing` are those of Operations."""

    def other_threads(self, task_number):
        """(number, pid) of the other threads of a task's process, which exec ends (de_thread)."""
        task = self.tasks[task_number]
        if task.tgid != task.pid:
            raise NotImplementedError(
                f"execve in thread {task.pid} of process {task.tgid}: only its first thread may call it"
            )
        return [
            (n, self.tasks[n].pid)
            for n in task_numbers(self.machine)
            if n != task_number and self.tasks[n].tgid == task.tgid and self.tasks[n].state == TASK_RUNNING
        ]

    def execve(self, task_number, path, argv, envp):
        """A new program in the task: (ip, sp) as it would begin with."""
        argv, envp = words_of(argv) or [b"\0"], words_of(envp)
        files = []
        try:
            program, argv = self.open_script(task_number, path, argv, files)
            self.check_arguments(task_number, path, argv, envp)
            interp = program.interp and self.open_program(task_number, program.interp, files, errno.ELIBBAD)
            check(calls.flush_old_exec(self.address, task_number), path)
            self.process.set_comm(task_number, os.path.basename(path))
            try:
                return self.load_elf_binary(task_number, program, interp, path, argv, envp, files)
            except (OSError, BusError, SegmentationFault) as error:  # the point of no return lies behind us
                syscalls.sys_exit(self.address, task_number, SIGSEGV)
                why = f"{error}; task {self.tasks[task_number].pid} is dead, as its old memory was given up for it"
                raise refused(getattr(error, "errno", errno.EFAULT), path, why) from error
        finally:
            for file in files:
                file.close()

    def check_arguments(self, task_number, path, argv, envp):
        """bprm_stack_limits and the limit of each string."""
        limit = max(min(ARG_LIMIT, int(self.tasks[task_number].rlim[2 * RLIMIT_STACK]) // 4), ARG_MAX)
        strings = [os.fsencode(path) + b"\0", *envp, *argv]
        total = sum(map(len, strings)) + 8 * (len(argv) + len(envp))
        longest = max(map(len, strings))
        if total > limit or longest > MAX_ARG_STRLEN:
            raise refused(
                errno.E2BIG,
                path,
                f"arguments and environment have {total} bytes, the longest of them "
                f"{longest}; at most {limit} and {MAX_ARG_STRLEN}",
            )

    # -- files

    def open_script(self, task_number, path, argv, files):
        """The program of this path, or who runs the script of this path, and its arguments: exec_binprm, load_script."""
        name = path
        for _ in range(MOST_INTERPRETERS + 1):
            head = self.open_file(task_number, name, files).read(0, elf.BINPRM_BUF_SIZE)
            if not is_script(head):
                return Program(name, files[-1].read, self.arch()), argv
            interpreter, argument = load_script(name, head)
            files.pop().close()
            argv = [
                interpreter + b"\0",
                *([argument + b"\0"] if argument is not None else []),
                os.fsencode(name) + b"\0",
                *argv[1:],
            ]
            name = os.fsdecode(interpreter)
        raise refused(errno.ELOOP, path, f"more than {MOST_INTERPRETERS} interpreters are scripts themselves")

    def arch(self):
        """What programs must be made for."""
        return elf.arch_of(self.process.world.topology.paging)

    def open_program(self, task_number, path, files, bad=errno.ENOEXEC):
        """The ELF file of this path, which is not made for this machine or no program at all: errno `bad`."""
        return Program(path, self.open_file(task_number, path, files).read, self.arch(), bad)

    def open_file(self, task_number, path, files):
        """The file of this path on the emulated disk, brought there from the host if it is not, last in `files`."""
        for name in dict.fromkeys((path, os.path.realpath(path))):
            try:
                files.append(ExecFile(self, task_number, path, name))
                break
            except FileNotFoundError:
                pass
        else:
            self.bring_program(path, name)
            files.append(ExecFile(self, task_number, path, name))
        return files[-1]

    def bring_program(self, path, name):
        """Put the host's program on the emulated disk, under its real name; nothing of it is in the page cache then."""
        try:
            mode = os.stat(name).st_mode
            if not stat.S_ISREG(mode):
                raise refused(errno.EACCES, path, "no regular file on the host")
            if not mode & 0o111:
                raise refused(errno.EACCES, path, "not executable on the host")
            with open(name, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise refused(errno.ENOENT, path, "neither on the emulated disk nor on the host") from None
        try:
            self.put_on_disk(name, len(data), data, 0)
        except FileExistsError:
            pass  # another CPU was faster

    # -- memory

    def put_user(self, task_number, addr, data):
        """Write to the program's memory, by the MMU, as copy_to_user does."""
        data = np.frombuffer(data, np.uint8)
        if len(data):
            self.accessing(task_number, copy_range, self.address, addr, data.ctypes.data, len(data), 1)

    def load_elf_binary(self, task_number, program, interp, path, argv, envp, files):
        """Stack, segments, interpreter, heap, arguments. `path` is what execve was asked for."""
        strings, word = Strings(os.fsencode(path) + b"\0", argv, envp), program.arch.bits // 8
        room = word + sum(map(len, strings.from_the_top()))
        top = int(calls.setup_stack(self.address, task_number, room, program.executable_stack))
        if not top:
            check(-errno.ENOMEM, program.path)
        bias = self.load_program(task_number, program, interp, files[0].fd)
        mm = mm_of(self.machine, self.tasks[task_number].mm)
        mm.start_code, mm.end_code, mm.start_data, mm.end_data, end = (bias + at for at in program.bounds())
        mm.start_brk = mm.brk = page_align(end)
        base, entry = 0, bias + program.entry
        if interp:
            base = self.load_segments(task_number, interp, files[1].fd, None)
            entry = base + interp.entry
        sp = self.create_elf_tables(task_number, Placed(program, bias, base), top - word, strings)
        mm.start_stack = sp
        if self.machine.randomize_va_space > 1:
            brk = (
                self.machine.paging.elf_et_dyn_base
                if program.kind == "ET_DYN" and not interp
                else int(mm.brk) + PAGE_SIZE
            )
            mm.start_brk = mm.brk = calls.randomize_brk(self.address, page_align(int(brk)))
        return Registers(entry, sp)

    def load_program(self, task_number, program, interp, fd):
        """Map the program's segments: by how much it lies higher than its file says."""
        first = page_start(program.segments[0].vaddr)
        if program.kind == "ET_EXEC":
            self.load_segments(task_number, program, fd, first)
            return 0
        if not interp:  # a loader, or a static program that moves itself: where mmap puts it
            return self.load_segments(task_number, program, fd, None)
        where = int(self.machine.paging.elf_et_dyn_base) + int(calls.mmap_rnd(self.address))
        return self.load_segments(task_number, program, fd, page_start(where & -max(program.alignment, PAGE_SIZE)))

    def load_segments(self, task_number, program, fd, first):
        """Map the segments, the first one at `first`, or anywhere (None): by how much they lie higher than the file says."""
        bias = None
        for segment in program.segments:
            if bias is None and first is None and program.kind == "ET_DYN":
                where, flags = 0, 0
            elif bias is None and first is not None:
                where, flags = first, MAP_FIXED_NOREPLACE
            else:
                where, flags = (bias or 0) + page_start(segment.vaddr), MAP_FIXED
            total = program.total_size if bias is None and program.kind == "ET_DYN" else 0
            mapped = self.elf_load(task_number, program, fd, segment, where, flags, total)
            if bias is None:
                bias = mapped - page_start(segment.vaddr)
        return bias

    def elf_load(self, task_number, program, fd, segment, where, flags, total):
        """One segment: pages of the file, the rest of the last one cleared, anonymous memory behind it. Where it lies."""
        offset, mapped = segment.vaddr - page_start(segment.vaddr), where
        if segment.filesz:
            length, pgoff = page_align(segment.filesz + offset), page_start(segment.offset) // PAGE_SIZE
            mapped = check(
                calls.elf_map(
                    self.address, task_number, where, length, total, segment.prot, flags | MAP_PRIVATE, fd, pgoff
                ),
                program.path,
            )
        end, zero = mapped + offset + segment.memsz, mapped + offset + segment.filesz
        if segment.memsz > segment.filesz:
            if segment.filesz and segment.prot & PROT_WRITE:
                self.put_user(task_number, zero, bytes(page_align(zero) - zero))
            bss = page_align(zero) if segment.filesz else page_start(zero)
            check(
                calls.vm_brk(self.address, task_number, bss, page_align(end) - bss, bool(segment.prot & PROT_EXEC)),
                program.path,
            )
        return mapped

    # -- the stack

    def put_strings(self, task_number, sp, strings):
        """Strings below each other; the address of each."""
        places = []
        for string in strings:
            sp -= len(string)
            places.append(sp)
        self.put_user(task_number, sp, b"".join(reversed(strings)))
        return places

    def create_elf_tables(self, task_number, placed, sp, strings):
        """What a program finds on its stack: its strings from `sp` down, and where they are. The stack pointer."""
        program, mm, envc = placed.program, mm_of(self.machine, self.tasks[task_number].mm), len(strings.envp)
        places = self.put_strings(task_number, sp, strings.from_the_top())
        execfn, envs, args = places[0], places[1 : 1 + envc][::-1], places[1 + envc :][::-1]
        mm.env_end, mm.arg_start = execfn, places[-1]
        mm.arg_end = mm.env_start = envs[0] if envs else execfn
        sp = int(calls.align_stack(self.address, places[-1]))
        platform, random = self.put_strings(task_number, sp, [program.arch.platform, self.random_bytes()])
        vector = [
            *self.auxiliary_vector(task_number, placed),
            (elf.AT_RANDOM, random),
            (elf.AT_EXECFN, execfn),
            (elf.AT_PLATFORM, platform),
            (elf.AT_NULL, 0),
        ]
        vector = [word for pair in vector for word in pair]
        for i, word in enumerate(vector):
            mm.saved_auxv[i] = word
        words = [len(strings.argv), *args, 0, *envs, 0, *vector]
        data = struct.pack(f"<{len(words)}{'Q' if program.arch.bits == 64 else 'I'}", *words)
        sp = random - len(data) & -16
        self.put_user(task_number, sp, data)
        return sp

    def random_bytes(self):
        """16 of them, for AT_RANDOM."""
        data = np.empty(2, np.uint64)
        calls.get_random_bytes(self.address, data.ctypes.data, len(data))
        return data.tobytes()

    def auxiliary_vector(self, task_number, placed):
        """As much of NEW_AUX_ENT's list as the emulator has something to say about: no vDSO, no feature bits of a CPU."""
        (program, bias, base), uid = placed, self.tasks[task_number].uid
        return (
            (elf.AT_PAGESZ, PAGE_SIZE),
            (elf.AT_CLKTCK, 100),
            (elf.AT_PHDR, bias + program.phdr_address()),
            (elf.AT_PHENT, program.arch.phdr_bytes),
            (elf.AT_PHNUM, program.phnum),
            (elf.AT_BASE, base),
            (elf.AT_FLAGS, 0),
            (elf.AT_ENTRY, bias + program.entry),
            (elf.AT_UID, uid),
            (elf.AT_EUID, uid),
            (elf.AT_GID, 0),
            (elf.AT_EGID, 0),
            (elf.AT_SECURE, 0),
        )
