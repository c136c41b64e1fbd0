"""What is read out of an ELF file, of hand-made ones that lie, and of the host's own."""

import errno
import os
import struct
import sys

import pytest

from numaemu.kernel.fs.binfmt_elf import Program, Segment, arch_of
from numaemu.spec.formats import FORMATS
from numaemu.uapi import PROT_EXEC, PROT_READ, PROT_WRITE

PT_LOAD, PT_INTERP, PT_GNU_STACK = 1, 3, 0x6474E551
ET_EXEC, ET_DYN, EM_386, EM_X86_64, EM_AARCH64 = 2, 3, 3, 62, 183
R, W, X = 4, 2, 1


def phdr(kind, flags, offset, vaddr, filesz, memsz=None, align=4096):
    return struct.pack(
        "<IIQQQQQQ", kind, flags, offset, vaddr, vaddr, filesz, filesz if memsz is None else memsz, align
    )


def phdr32(kind, flags, offset, vaddr, filesz, memsz=None, align=4096):
    return struct.pack(
        "<IIIIIIII", kind, offset, vaddr, vaddr, filesz, filesz if memsz is None else memsz, flags, align
    )


def make_elf32(kind, phdrs, entry=0, size=0, machine=EM_386):
    """As make_elf, of 32 bits."""
    head = (
        b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
        + struct.pack("<HHIIIIIHHHHHH", kind, machine, 1, entry, 52, 0, 0, 52, 32, len(phdrs), 40, 0, 0)
        + b"".join(phdrs)
    )
    return head + bytes((i // 256 + i) % 255 + 1 for i in range(len(head), size))


def make_elf(kind, phdrs, entry=0, size=0, machine=EM_X86_64, ident=b"\x7fELF\x02\x01\x01", phentsize=56, phnum=None):
    """An ELF file of these program headers, behind its header; the rest, up to `size` bytes, tells each byte's place."""
    head = ident.ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH",
        kind,
        machine,
        1,
        entry,
        64,
        0,
        0,
        64,
        phentsize,
        len(phdrs) if phnum is None else phnum,
        64,
        0,
        0,
    )
    head += b"".join(phdrs)
    return head + bytes((i // 256 + i) % 255 + 1 for i in range(len(head), size))


def load(data, paging="x86-64-4level"):
    return Program("/p", lambda offset, nbytes: data[offset : offset + nbytes], arch_of(paging))


LOADS = [
    phdr(PT_LOAD, R, 0, 0x1000, 0x800),
    phdr(PT_LOAD, R | X, 0x1800, 0x2800, 0x900, align=0x4000),
    phdr(PT_LOAD, R | W, 0x3000, 0x5000, 0x10, 0x3010, align=3),
]


def test_segments_and_bounds():
    program = load(
        make_elf(ET_DYN, [phdr(PT_INTERP, R, 400, 0, 6), *LOADS, phdr(PT_GNU_STACK, R | W | X, 0, 0, 0)], 0x2900).ljust(
            400, b"\0"
        )
        + b"/ld.so"[:5]
        + b"\0"
    )
    assert program.segments == [
        Segment(0x1000, 0, 0x800, 0x800, PROT_READ, 4096),
        Segment(0x2800, 0x1800, 0x900, 0x900, PROT_READ | PROT_EXEC, 0x4000),
        Segment(0x5000, 0x3000, 0x10, 0x3010, PROT_READ | PROT_WRITE, 3),
    ]
    assert (program.kind, program.entry, program.interp, program.executable_stack) == ("ET_DYN", 0x2900, "/ld.s", True)
    assert program.bounds() == (0x2800, 0x3100, 0x5000, 0x5010, 0x8010)
    assert (program.total_size, program.alignment, program.phdr_address()) == (0x8000, 0x4000, 0x1040)


def test_without_interpreter_and_with_a_stack_as_usual():
    program = load(make_elf(ET_EXEC, [*LOADS[1:], phdr(PT_GNU_STACK, R | W, 0, 0, 0)]))
    assert (program.kind, program.interp, program.executable_stack, program.phdr_address()) == (
        "ET_EXEC",
        None,
        False,
        0,
    )


@pytest.mark.parametrize(("data", "number", "why"), [
    (b"", errno.ENOEXEC, "no ELF file: it begins with b''"),
    (b"#!/bin/sh\n", errno.ENOEXEC, "no ELF file: it begins with b'#!/b'"),
    (b"\x7fELF\x02\x01\x01", errno.ENOEXEC, "its ELF header is cut off"),
    (make_elf(ET_DYN, LOADS, ident=b"\x7fELF\x01\x01\x01"), errno.ENOEXEC, "must be a 64-bit little-endian ELF file"),
    (make_elf(1, LOADS), errno.ENOEXEC, "its type is ET_REL, must be ET_EXEC or ET_DYN"),
    (make_elf(0xFEED, LOADS), errno.ENOEXEC, "its type is 65261, must be ET_EXEC or ET_DYN"),
    (make_elf(ET_DYN, LOADS, machine=183), errno.ENOEXEC, "it is for EM_AARCH64, must be EM_X86_64"),
    (make_elf(ET_DYN, LOADS, phentsize=32), errno.ENOEXEC, "3 program headers of 32 bytes, must be 1 to 1170 of 56"),
    (make_elf(ET_DYN, []), errno.ENOEXEC, "0 program headers of 56 bytes, must be 1 to 1170 of 56"),
    (make_elf(ET_DYN, LOADS, phnum=5), errno.EIO, "its program headers are cut off"),
    (make_elf(ET_DYN, [phdr(PT_INTERP, R, 0, 0, 1)]), errno.EINVAL, "it has no PT_LOAD segment"),
    (make_elf(ET_DYN, [phdr(PT_LOAD, R, 0, 0, 9, 8)]), errno.EINVAL, "a segment has 9 bytes in the file, 8 in memory"),
    (make_elf(ET_DYN, [phdr(PT_LOAD, R, 1, 0, 9)]), errno.EINVAL,
     "a segment at 0x0 comes from byte 0x1 of the file: not the same place within a page"),
])  # fmt: skip
def test_what_is_refused(data, number, why):
    with pytest.raises(OSError) as error:
        load(data)
    assert (error.value.errno, error.value.filename) == (number, "/p")
    assert error.value.strerror == f"{os.strerror(number)} ({why})"


@pytest.mark.parametrize(
    ("offset", "nbytes", "why"),
    [(400, 1, "has 1 bytes, must be 2 to 4096"), (400, 4, "does not end with 0"), (9000, 4, "does not end with 0")],
)
def test_a_bad_path_of_an_interpreter_is_refused(offset, nbytes, why):
    program = load(make_elf(ET_DYN, [*LOADS, phdr(PT_INTERP, R, offset, 0, nbytes)]).ljust(400, b"\0") + b"/ld.so\0")
    with pytest.raises(OSError, match=why) as error:
        program.interp
    assert error.value.errno == errno.ENOEXEC


def test_the_hosts_own_program():
    if os.uname().machine != "x86_64":
        pytest.skip("the host's programs are for another machine")
    with open(os.path.realpath(sys.executable), "rb") as file:
        program = load(file.read())
    start_code, end_code, _, end_data, end = program.bounds()
    assert start_code <= program.entry < end_code and end_data <= end
    assert program.interp is None or os.path.exists(program.interp)


def test_a_program_of_32_bits():
    data = make_elf32(
        ET_DYN, [phdr32(PT_LOAD, R | X, 0, 0x1000, 0x800, 0x900, 4), phdr32(PT_GNU_STACK, R | W, 0, 0, 0)], 0x1040
    )
    program = load(data, "x86-32")
    assert (program.kind, program.entry, program.phdr_address(), program.executable_stack) == (
        "ET_DYN",
        0x1040,
        0x1034,
        False,
    )
    assert program.segments == [Segment(0x1000, 0, 0x800, 0x900, PROT_READ | PROT_EXEC, 4)]
    with pytest.raises(OSError, match="2 program headers of 56 bytes, must be 1 to 2048 of 32"):
        load(data[:42] + struct.pack("<H", 56) + data[44:], "x86-32")


PROGRAMS = {
    "x86-64": make_elf(ET_DYN, LOADS),
    "x86-32": make_elf32(ET_DYN, [phdr32(PT_LOAD, R, 0, 0, 8)]),
    "arm64": make_elf(ET_DYN, LOADS, machine=EM_AARCH64),
}


@pytest.mark.parametrize("paging", FORMATS)
@pytest.mark.parametrize("made_for", PROGRAMS)
def test_a_machine_runs_programs_made_for_it(paging, made_for):
    if paging.startswith(made_for):
        assert load(PROGRAMS[made_for], paging).segments
        return
    with pytest.raises(OSError, match="must be") as error:
        load(PROGRAMS[made_for], paging)
    assert error.value.errno == errno.ENOEXEC
    if made_for == "arm64" and paging != "x86-32":
        assert "it is for EM_AARCH64, must be EM_X86_64" in error.value.strerror
