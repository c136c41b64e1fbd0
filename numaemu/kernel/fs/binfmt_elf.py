"""What an ELF file says about its place in memory: the reading part of Linux's fs/binfmt_elf.c.

Headers are parsed by pyelftools, out of bytes that came through the emulated page cache: `read(offset, nbytes)`.
"""

import collections
import errno
import io
import os

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

from numaemu.spec.param import PAGE_SIZE
from numaemu.uapi import PROT_EXEC, PROT_READ, PROT_WRITE

BINPRM_BUF_SIZE = 256  # bytes of a file that tell its format
MOST_PHDRS_BYTES = 65536
PATH_MAX = 4096
PF_X, PF_W, PF_R = 1, 2, 4
# fmt: off
(AT_NULL, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_FLAGS, AT_ENTRY, AT_UID, AT_EUID, AT_GID, AT_EGID,
 AT_PLATFORM, AT_CLKTCK, AT_SECURE, AT_RANDOM, AT_EXECFN) = (0, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 17, 23, 25, 31)
# fmt: on

Segment = collections.namedtuple("Segment", "vaddr offset filesz memsz prot align")
# What a machine runs: class in bits, e_machine (elf_check_arch), bytes of a program header, AT_PLATFORM (ELF_PLATFORM)
Arch = collections.namedtuple("Arch", "bits machines phdr_bytes platform")
ARCHES = {
    "x86-64": Arch(64, ("EM_X86_64",), 56, b"x86_64\0"),
    "x86-32": Arch(32, ("EM_386", "EM_486", 6), 32, b"i686\0"),
    "arm64": Arch(64, ("EM_AARCH64",), 56, b"aarch64\0"),
}


def arch_of(paging):
    """The Arch of a machine with these page tables."""
    return next(arch for name, arch in ARCHES.items() if paging.startswith(name))


def refused(number, path, why):
    """The OSError of a program that cannot be loaded."""
    return OSError(number, f"{os.strerror(number)} ({why})", path)


class Program:
    """An ELF file's headers: `kind` ET_EXEC or ET_DYN, `entry`, `segments` (PT_LOAD), `interp` (a path or None)."""

    def __init__(self, path, read, arch, bad=errno.ENOEXEC):
        self.path, self.read, self.arch, self.bad = path, read, arch, bad
        header = self.parse_header(read(0, BINPRM_BUF_SIZE))
        self.kind, self.entry, self.phoff, self.phnum = (
            header[key] for key in ("e_type", "e_entry", "e_phoff", "e_phnum")
        )
        self.phdrs = self.parse_phdrs()
        self.segments = [
            Segment(p["p_vaddr"], p["p_offset"], p["p_filesz"], p["p_memsz"], make_prot(p["p_flags"]), p["p_align"])
            for p in self.phdrs
            if p["p_type"] == "PT_LOAD"
        ]
        self.check_segments()
        stack = [p["p_flags"] for p in self.phdrs if p["p_type"] == "PT_GNU_STACK"]
        self.executable_stack = bool(stack and stack[0] & PF_X)

    def refuse(self, why):
        return refused(self.bad, self.path, why)

    def parse_header(self, head):
        """The ELF header, checked as load_elf_binary and elf_check_arch do."""
        if head[:4] != b"\x7fELF":
            raise self.refuse(f"no ELF file: it begins with {head[:4]!r}")
        if head[4:6] != bytes([self.arch.bits // 32, 1]):
            raise self.refuse(f"must be a {self.arch.bits}-bit little-endian ELF file")
        self.structs = ELFStructs(little_endian=True, elfclass=self.arch.bits)
        self.structs.create_basic_structs()
        try:
            header = struct_parse(self.structs.Elf_Ehdr, io.BytesIO(head))
        except ELFError:
            raise self.refuse("its ELF header is cut off") from None
        if header["e_type"] not in ("ET_EXEC", "ET_DYN"):
            raise self.refuse(f"its type is {header['e_type']}, must be ET_EXEC or ET_DYN")
        if header["e_machine"] not in self.arch.machines:
            raise self.refuse(f"it is for {header['e_machine']}, must be {self.arch.machines[0]}")
        each = self.arch.phdr_bytes
        if header["e_phentsize"] != each or not 0 < header["e_phnum"] * each <= MOST_PHDRS_BYTES:
            raise self.refuse(
                f"{header['e_phnum']} program headers of {header['e_phentsize']} bytes, must be 1 to "
                f"{MOST_PHDRS_BYTES // each} of {each}"
            )
        self.structs.create_advanced_structs(header["e_type"], header["e_machine"], header["e_ident"]["EI_OSABI"])
        return header

    def parse_phdrs(self):
        """The program headers; EIO if the file ends within them."""
        each = self.arch.phdr_bytes
        table = self.read(self.phoff, self.phnum * each)
        if len(table) != self.phnum * each:
            raise refused(errno.EIO, self.path, "its program headers are cut off")
        return [struct_parse(self.structs.Elf_Phdr, io.BytesIO(table), stream_pos=i * each) for i in range(self.phnum)]

    def check_segments(self):
        """EINVAL for PT_LOAD segments that elf_map would refuse, or if there are none."""
        for s in self.segments:
            if s.filesz > s.memsz:
                raise refused(
                    errno.EINVAL, self.path, f"a segment has {s.filesz} bytes in the file, {s.memsz} in memory"
                )
            if (s.vaddr - s.offset) % PAGE_SIZE:
                raise refused(
                    errno.EINVAL,
                    self.path,
                    f"a segment at {s.vaddr:#x} comes from byte {s.offset:#x} of the "
                    f"file: not the same place within a page",
                )
        if not self.segments:
            raise refused(errno.EINVAL, self.path, "it has no PT_LOAD segment")

    @property
    def interp(self):
        """The path in PT_INTERP: the program that loads this one; None: there is none."""
        found = next((p for p in self.phdrs if p["p_type"] == "PT_INTERP"), None)
        if found is None:
            return None
        if not 2 <= found["p_filesz"] <= PATH_MAX:
            raise self.refuse(f"the path in PT_INTERP has {found['p_filesz']} bytes, must be 2 to {PATH_MAX}")
        raw = self.read(found["p_offset"], found["p_filesz"])
        if len(raw) != found["p_filesz"] or raw[-1:] != b"\0":
            raise self.refuse("the path in PT_INTERP does not end with 0")
        return raw[:-1].decode(errors="replace")

    @property
    def total_size(self):
        """Bytes from the first segment's page to the last one's end: total_mapping_size."""
        first, last = self.segments[0], self.segments[-1]
        return page_align(last.vaddr + last.memsz - page_start(first.vaddr))

    @property
    def alignment(self):
        """The largest p_align that is a power of two: maximum_alignment."""
        return page_align(max((s.align for s in self.segments if s.align and s.align & (s.align - 1) == 0), default=0))

    def bounds(self):
        """(start_code, end_code, start_data, end_data, end of bss), as the file has them."""
        code = [s for s in self.segments if s.prot & PROT_EXEC]
        return (
            min((s.vaddr for s in code), default=0),
            max((s.vaddr + s.filesz for s in code), default=0),
            max(s.vaddr for s in self.segments),
            max(s.vaddr + s.filesz for s in self.segments),
            max(s.vaddr + s.memsz for s in self.segments),
        )

    def phdr_address(self):
        """Where the program headers lie in memory, as the file has it; 0: in no segment."""
        return next(
            (self.phoff - s.offset + s.vaddr for s in self.segments if s.offset <= self.phoff < s.offset + s.filesz), 0
        )


def make_prot(flags):
    """PROT_* of a segment."""
    return sum(prot for flag, prot in ((PF_R, PROT_READ), (PF_W, PROT_WRITE), (PF_X, PROT_EXEC)) if flags & flag)


def page_start(address):
    return address & -PAGE_SIZE


def page_align(address):
    return address + PAGE_SIZE - 1 & -PAGE_SIZE
