"""execve: hand-made programs against a flat map of their bytes, the address space line by line, what survives."""

import errno
import os
import struct
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import SMALL_TLB, Loopback
from test_binfmt_elf import (
    EM_AARCH64,
    ET_DYN,
    ET_EXEC,
    PT_GNU_STACK,
    PT_INTERP,
    PT_LOAD,
    R,
    W,
    X,
    make_elf,
    make_elf32,
    phdr,
    phdr32,
)

from numaemu import SegmentationFault
from numaemu.kernel.fs import binfmt_elf as elf
from numaemu.kernel.fs.exec import MIN_GAP
from numaemu.kernel.include.mm_types import task_t
from numaemu.spec.formats import FORMATS
from numaemu.uapi import O_CLOEXEC, O_RDWR, RLIMIT_STACK, SIGKILL

pytestmark = pytest.mark.interpreted

PAGE, LD = 4096, "/lib/ld-emu.so.1"
LAYOUT = FORMATS["x86-64-4level"]
PIE, TOP, BRK_RND = LAYOUT["elf_et_dyn_base"], LAYOUT["stack_top"], LAYOUT["brk_rnd"]
MMAP_BASE = TOP - int(MIN_GAP)
LOADER = make_elf(
    ET_DYN, [phdr(PT_LOAD, R | X, 0, 0, 0x1800), phdr(PT_LOAD, R | W, 0x1800, 0x3800, 0x400)], 0x100, 0x1C00
)
# fmt: off
PROGRAM = make_elf(ET_DYN, [
    phdr(PT_INTERP, R, 0x1FE0, 0, len(LD) + 1), phdr(PT_LOAD, R, 0, 0, 0x800), phdr(PT_LOAD, R | X, 0x1000, 0x1000, 0x1200),
    phdr(PT_LOAD, R | W, 0x2E00, 0x4E00, 0x300, 0x2300), phdr(PT_GNU_STACK, R | W, 0, 0, 0)], 0x1010, 0x3200)
# fmt: on
PROGRAM = PROGRAM[:0x1FE0] + LD.encode() + b"\0" + PROGRAM[0x1FE0 + len(LD) + 1 :]
MAPS = """\
555555554000-555555555000 r--p 00000000 fe:00 1                          /bin/emu
555555555000-555555557000 r-xp 00001000 fe:00 1                          /bin/emu
555555558000-55555555a000 rw-p 00002000 fe:00 1                          /bin/emu
55555555a000-55555555c000 rw-p 00000000 00:00 0 
7ffff7ffb000-7ffff7ffd000 r-xp 00000000 fe:00 2                          /lib/ld-emu.so.1
7ffff7ffe000-7ffff7fff000 rw-p 00001000 fe:00 2                          /lib/ld-emu.so.1
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]
"""


def read(loop, task, name):
    return loop.actors[0].rpc_read(f"/proc/{task.pid}/{name}")


def areas(loop, task):
    """[(start, end, permissions, name)] of maps."""
    rows = [line.split(maxsplit=5) for line in read(loop, task, "maps").splitlines()]
    return [(*(int(edge, 16) for edge in row[0].split("-")), row[1], row[5] if len(row) > 5 else "") for row in rows]


@pytest.fixture
def machine(two_nodes):
    two_nodes.create_file("/bin/emu", PROGRAM)
    two_nodes.create_file(LD, LOADER)
    return two_nodes


def test_maps_of_a_program_and_its_loader(machine):
    task = machine.task()
    assert tuple(task.execve("/bin/emu")) == (0x7FFFF7FFB100, machine.mm(task).start_stack)
    assert read(machine, task, "maps") == MAPS
    task.brk(task.brk() + 2 * PAGE)  # it is one with bss, as nothing lies between
    assert (0x55555555A000, 0x55555555E000, "rw-p", "[heap]") in areas(machine, task)
    status = dict(line.split(":", 1) for line in read(machine, task, "status").splitlines())
    figures = {name: int(status[name].split()[0]) for name in ("VmExe", "VmLib", "VmData", "VmStk", "VmSize")}
    assert figures == {"VmExe": 8, "VmLib": 8, "VmData": 8 + 8 + 4 + 8, "VmStk": 132, "VmSize": 180}
    assert status["Name"].strip() == "emu" and read(machine, task, "statm").split()[3] == "2"
    mm = machine.mm(task)
    assert [int(word) - PIE for word in (mm.start_code, mm.end_code, mm.start_data, mm.end_data, mm.start_brk)] == [
        0x1000,
        0x2200,
        0x4E00,
        0x5100,
        0x8000,
    ]
    machine.audit()


def test_another_program_has_new_statistics_of_numa_balancing(machine):
    task = machine.task()
    of = task_t.array(machine.machine.tasks)[task._number]
    of.numa_faults, of.total_numa_faults = 1, 5
    task.execve("/bin/emu")
    assert (of.numa_faults, of.total_numa_faults) == (0, 0)


def test_what_lies_where_and_who_may_write(machine):
    task = machine.task()
    task.execve("/bin/emu")
    assert task.read(PIE, 0x1000) == PROGRAM[:0x1000]  # whole pages: what follows in the file shows, too
    assert task.read(PIE + 0x1000, 0x2000) == PROGRAM[0x1000:0x3000]
    assert task.read(PIE + 0x4000, 0x1100) == PROGRAM[0x2000:0x3100]
    assert task.read(PIE + 0x5100, 0x2F00) == bytes(0x2F00)  # and zeros from the end of the data on, bss and its page
    with pytest.raises(SegmentationFault, match="r-xp does not allow it"):
        task.write(PIE + 0x1000, b"!")
    task.write(PIE + 0x4E00, b"own")
    with task.open("/bin/emu") as file:
        assert file.read() == PROGRAM  # the file itself has not changed
    assert task.read(0x7FFFF7FFB000, 0x1800) == LOADER[:0x1800]
    machine.audit()


def stack_words(task, registers):
    """(arguments, environment, auxiliary vector) as a program finds them from its stack pointer on."""
    words = list(np.frombuffer(task.read(registers.sp, TOP - registers.sp), "<u8"))

    def texts(count):
        places = [int(words.pop(0)) for _ in range(count)]
        return [task.read(place, min(200, TOP - place)).split(b"\0")[0].decode() for place in places]

    args = texts(int(words.pop(0)))
    assert words.pop(0) == 0
    envs = texts(words.index(0))
    words.pop(0)
    vector = {}
    while words[0] != elf.AT_NULL:
        key, value = int(words.pop(0)), int(words.pop(0))
        vector[key] = value
    return args, envs, vector


def test_arguments_on_the_stack(machine):
    task = machine.task()
    task.setuid(7)
    registers = task.execve("/bin/emu", ["emu", "", "a b"], {"HOME": "/root", "X": "1"})
    assert registers.sp % 16 == 0
    args, envs, vector = stack_words(task, registers)
    assert (args, envs) == (["emu", "", "a b"], ["HOME=/root", "X=1"])
    assert vector[elf.AT_PHDR] == PIE + 64 and vector[elf.AT_PHNUM] == 5 and vector[elf.AT_UID] == 7
    assert vector[elf.AT_ENTRY] == PIE + 0x1010 and vector[elf.AT_BASE] == 0x7FFFF7FFB000
    assert task.read(vector[elf.AT_EXECFN], 9) == b"/bin/emu\0" and task.read(vector[elf.AT_PLATFORM], 7) == b"x86_64\0"
    assert task.read(vector[elf.AT_RANDOM], 16) != bytes(16) and task.read(TOP - 8, 8) == bytes(8)
    mm = machine.mm(task)
    assert task.read(mm.arg_start, mm.arg_end - mm.arg_start) == b"emu\0\0a b\0"
    assert task.read(mm.env_start, mm.env_end - mm.env_start) == b"HOME=/root\0X=1\0"


def test_many_arguments_make_the_stack_longer(machine):
    task, long = machine.task(), "x" * 9000
    registers = task.execve("/bin/emu", [long, "y"])
    assert areas(machine, task)[-1][:2] == (TOP - (128 << 10) - 3 * PAGE, TOP)
    assert task.read(machine.mm(task).arg_start, 9003) == long.encode() + b"\0y\0"
    assert struct.unpack("<Q", task.read(registers.sp, 8)) == (2,)
    for argv in (["x" * (128 << 10)], ["x" * 60_000] * 40):
        with pytest.raises(OSError, match="Argument list too long") as error:
            task.execve("/bin/emu", argv)
        assert error.value.errno == errno.E2BIG
    assert areas(machine, task)[-1][:2] == (TOP - (128 << 10) - 3 * PAGE, TOP)


def test_a_static_program_lies_where_it_says(machine):
    machine.create_file(
        "/bin/static",
        make_elf(
            ET_EXEC,
            [
                phdr(PT_LOAD, R | X, 0, 0x400000, 0x1000),
                phdr(PT_LOAD, R | W, 0x1000, 0x600000, 0, 0x5000),
                phdr(PT_GNU_STACK, R | W | X, 0, 0, 0),
            ],
            0x400200,
            0x2000,
        ),
    )
    task = machine.task()
    assert task.execve("/bin/static").ip == 0x400200
    assert areas(machine, task) == [
        (0x400000, 0x401000, "r-xp", "/bin/static"),
        (0x600000, 0x605000, "rw-p", ""),
        (TOP - 33 * PAGE, TOP, "rwxp", "[stack]"),
    ]
    assert task.brk() == 0x605000


def test_a_loader_alone_lies_where_mmap_puts_it(machine):
    task = machine.task()
    task.execve(LD)
    assert areas(machine, task)[0][:2] == (MMAP_BASE - 4 * PAGE, MMAP_BASE - 2 * PAGE)
    machine.write("/proc/sys/kernel/randomize_va_space", "2")
    task.execve(LD)
    assert 0 <= task.brk() - PIE - PAGE < BRK_RND  # its heap is moved to where programs begin


def test_files_memory_and_names_of_before(machine):
    task = machine.task()
    stays, goes = task.open("/bin/emu", O_RDWR), task.open("/bin/emu", O_CLOEXEC)
    area = task.mmap("64KiB").touch()
    policy = task.set_mempolicy(2, [1]) or task.get_mempolicy()
    before = task.clock_ns
    task.execve("/bin/emu")
    assert task.clock_ns > before and task.get_mempolicy() == policy
    assert stays.read(4) == b"\x7fELF"
    with pytest.raises(OSError, match="Bad file descriptor"):
        goes.read(4)
    with pytest.raises(SegmentationFault):
        task.load([area.addr])
    task.exit()
    machine.drain()
    assert machine.vmstat()["nr_anon_pages"] == 0 and not any(zone["tables"] for zone in machine.audit().values())


def test_threads_end_and_a_vforked_child_leaves_its_parents_memory(machine):
    task = machine.task()
    area = task.mmap(PAGE).touch()
    thread, child = task.clone(cpu=1), task.vfork(cpu=1)
    file = task.open("/bin/emu")
    with pytest.raises(NotImplementedError, match="only its first thread may call it"):
        thread.execve("/bin/emu")
    child.execve("/bin/emu")
    child.store([PIE + 0x4E00], np.uint64(1))
    assert task.load([area.addr])[0] == area.array()[0] and thread.counters() and file.read(4) == b"\x7fELF"
    task.execve("/bin/emu")
    with pytest.raises(OSError, match="the task has ended"):
        thread.counters()
    assert child.load([PIE + 0x4E00])[0] == 1 != task.load([PIE + 0x4E00])[0]
    task.kill(child.pid, SIGKILL)
    machine.audit()


@pytest.mark.parametrize(("path", "number"), [
    ("/bin/nothing-here", errno.ENOENT), ("/etc/passwd", errno.EACCES), ("/tmp", errno.EACCES), ("/bin/text", errno.ENOEXEC),
    ("/bin/lost", errno.ENOENT), ("/bin/wrong", errno.ELIBBAD)])  # fmt: skip
def test_what_cannot_be_executed_changes_nothing(machine, path, number):
    def with_interp(name):
        headers = [phdr(PT_INTERP, R, 300, 0, len(name) + 1), phdr(PT_LOAD, R, 0, 0, 100)]
        return make_elf(ET_DYN, headers).ljust(300) + name + b"\0"

    machine.create_file("/bin/text", b"hello, I am a text\n")
    machine.create_file("/bin/lost", with_interp(b"/lib/nothing-here"))
    machine.create_file("/bin/wrong", with_interp(b"/bin/text"))
    task = machine.task()
    area = task.mmap(PAGE)
    area.array()[:] = 5
    before = read(machine, task, "maps")
    with pytest.raises(OSError) as error:
        task.execve(path)
    assert error.value.errno == number and "\n" not in str(error.value)
    assert read(machine, task, "maps") == before and area.array()[0] == 5


@pytest.mark.parametrize("broken", ["cut off", "above the last address"])
def test_a_program_that_breaks_half_way_kills_the_task(machine, broken):
    """Linux has given up the old address space by then, and sends SIGSEGV."""
    if broken == "cut off":
        data = make_elf(ET_EXEC, [phdr(PT_LOAD, R | W, 0, 0x400000, 0x2010, 0x3000)], 0x400000, 0x1000)
    else:
        data = make_elf(ET_EXEC, [phdr(PT_LOAD, R, 0, 0x7FFF_FFFF_F000, 0x1000)], 0, 0x1000)
    machine.create_file("/bin/broken", data)
    parent = machine.task()
    task = parent.fork()
    with pytest.raises(OSError, match=f"task {task.pid} is dead, as its old memory was given up for it") as error:
        task.execve("/bin/broken")
    assert error.value.errno == (errno.EFAULT if broken == "cut off" else errno.ENOMEM)
    assert parent.wait(task.pid) == (task.pid, 11)
    machine.audit()


def test_a_limited_stack(machine):
    task = machine.task()
    task.setrlimit(RLIMIT_STACK, 40 << 10)
    task.execve("/bin/emu")
    assert areas(machine, task)[-1][:2] == (TOP - (40 << 10), TOP)
    with pytest.raises(SegmentationFault):
        task.load([TOP - (40 << 10) - 8])
    task.setrlimit(RLIMIT_STACK, 256 << 20, 256 << 20)
    task.execve("/bin/emu")
    assert areas(machine, task)[-2][1] == TOP - (256 << 20) - 256 * PAGE  # the gap is kept free, too


def layout(seed, level):
    """(program, end of heap's start, ld.so, end of stack) of two programs, and a plain task's (mmap, heap, stack)."""
    with Loopback(
        nodes=1,
        cpus_per_node=1,
        memory_per_node="16MiB",
        kernel={"random_seed": seed},
        sysctl={"kernel.randomize_va_space": level},
        **SMALL_TLB,
    ) as loop:
        loop.create_file("/bin/emu", PROGRAM)
        loop.create_file(LD, LOADER)
        found = []
        for _ in range(2):
            task = loop.task()
            found.append((task.mmap(PAGE).addr + PAGE, task.brk(), areas(loop, task)[-1][1]))
            task.execve("/bin/emu")
            rows = areas(loop, task)
            assert rows[1][0] == rows[0][0] + PAGE and rows[-1][3] == "[stack]"
            found.append((rows[0][0], task.brk(), rows[4][0], rows[-1][1]))
        loop.audit()
        return found


def test_randomisation_by_seed():
    plain = layout(5, 0)
    assert plain == layout(6, 0) and plain[0] == plain[2] == (MMAP_BASE, PIE + 0x5000, TOP)
    for level in (1, 2):
        one, again, other = layout(5, level), layout(5, level), layout(6, level)
        assert one == again
        places = [place for figures in (*one, *other) for place in figures]
        assert len(set(places)) == len(places)  # nothing lies twice at the same place
        for program, brk, _, stack in (one[1], one[3], other[1], other[3]):
            assert 0 <= program - PIE < 1 << 40 and 0 <= TOP - stack < 1 << 34
            assert brk == program + 0x8000 if level == 1 else 0 <= brk - program - 0x9000 < BRK_RND


@st.composite
def segments(draw):
    """Program headers of a position-independent program that Linux would load, and its file's size."""
    rows, vaddr, offset = [], 0, 0
    for _ in range(draw(st.integers(1, 4))):
        vaddr += draw(st.integers(0, 3 * PAGE))
        offset = (offset & -PAGE) + draw(st.integers(0, 2)) * PAGE + vaddr % PAGE
        filesz = draw(st.integers(1, 2 * PAGE))
        memsz = filesz + draw(st.sampled_from([0, 0, 100, 5000]))
        flags = R | draw(st.sampled_from([0, W, X])) if memsz == filesz else R | W
        rows.append((flags, offset, vaddr, filesz, memsz))
        vaddr, offset = vaddr + memsz + PAGE & -PAGE, offset + filesz
    return rows, offset + PAGE


@given(segments())
def test_memory_is_what_the_headers_say(drawn):
    rows, size = drawn
    data = make_elf(ET_DYN, [phdr(PT_LOAD, *row) for row in rows], 0, size)
    with Loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB", **SMALL_TLB) as loop:
        loop.create_file("/bin/drawn", data)
        task = loop.task()
        task.execve("/bin/drawn")
        bias = areas(loop, task)[0][0] - (rows[0][2] & -PAGE)
        for flags, offset, vaddr, filesz, memsz in rows:
            assert task.read(bias + vaddr, memsz) == data[offset : offset + filesz] + bytes(memsz - filesz)
            if flags & W:
                task.write(bias + vaddr, b"w" * memsz)
            else:
                with pytest.raises(SegmentationFault):
                    task.write(bias + vaddr, b"w")
        with task.open("/bin/drawn") as file:
            assert file.read() == data
        loop.audit()


def test_the_hosts_own_program(machine):
    path = os.path.realpath(sys.executable)
    if os.uname().machine != "x86_64" or len(path) > 127:
        pytest.skip("the host's programs are for another machine")
    task = machine.task()
    task.execve(path)
    with open(path, "rb") as file:
        data = file.read()
    start = next(start for start, _, _, name in areas(machine, task) if name == path)
    assert task.read(start, 2 * PAGE) == data[: 2 * PAGE]


# -- other architectures, scripts ------------------------------------------------------------------------------

MAPS_32 = """\
00400000-00401000 r-xp 00000000 fe:00 1                                  /bin/emu
00401000-00403000 rw-p 00001000 fe:00 1                                  /bin/emu
00403000-00405000 rw-p 00000000 00:00 0 
b7ffe000-b8000000 r-xp 00000000 fe:00 2                                  /lib/ld-emu.so.1
bffdf000-c0000000 rw-p 00000000 00:00 0                                  [stack]
"""
MAPS_ARM64 = """\
aaaaaaaaa000-aaaaaaaac000 r-xp 00000000 fe:00 1                          /bin/emu
aaaaaaaac000-aaaaaaaae000 rw-p 00001000 fe:00 1                          /bin/emu
fffff7ffe000-fffff8000000 r-xp 00000000 fe:00 2                          /lib/ld-emu.so.1
fffffffdf000-1000000000000 rw-p 00000000 00:00 0                         [stack]
"""


def with_loader(program, at):
    return program[:at] + LD.encode() + b"\0" + program[at + len(LD) + 1 :]


def test_a_32_bit_program(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", paging="x86-32")
    loop.create_file(
        "/bin/emu",
        with_loader(
            make_elf32(
                ET_DYN,
                [
                    phdr32(PT_INTERP, R, 0xF00, 0, len(LD) + 1),
                    phdr32(PT_LOAD, R | X, 0, 0, 0x1000),
                    phdr32(PT_LOAD, R | W, 0x1000, 0x1000, 0x1800, 0x3800),
                    phdr32(PT_GNU_STACK, R | W, 0, 0, 0),
                ],
                0x40,
                0x3000,
            ),
            0xF00,
        ),
    )
    loop.create_file(LD, make_elf32(ET_DYN, [phdr32(PT_LOAD, R | X, 0, 0, 0x1800)], 0x100, 0x1800))
    task = loop.task()
    registers = task.execve("/bin/emu", ["emu", "x"], {"HOME": "/"})
    assert registers.ip == 0xB7FFE100 and registers.sp % 16 == 0 and read(loop, task, "maps") == MAPS_32
    words = struct.unpack("<9I", task.read(registers.sp, 36))
    assert words[0] == 2 and words[3] == 0 and words[5] == 0 and words[6:] == (elf.AT_PAGESZ, 4096, elf.AT_CLKTCK)
    assert task.read(words[1], 6) == b"emu\0x\0" and task.read(words[4], 7) == b"HOME=/\0"
    vector = dict(struct.iter_unpack("<2I", loop.read(f"/proc/{task.pid}/auxv")))
    assert (
        task.read(vector[elf.AT_PLATFORM], 5) == b"i686\0"
        and vector[elf.AT_PHENT] == 32
        and vector[elf.AT_BASE] == 0xB7FFE000
    )
    assert vector[elf.AT_PHDR] == 0x400034 and task.read(0xC0000000 - 4, 4) == bytes(4)
    assert task.read(0x402800, 0x1800) == bytes(0x1800)  # bss
    loop.audit()


@pytest.mark.parametrize("paging", ["arm64-48", "arm64-39"])
def test_an_arm64_program(loopback, paging):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", paging=paging)
    loop.create_file(
        "/bin/emu",
        with_loader(
            make_elf(
                ET_DYN,
                [
                    phdr(PT_INTERP, R, 0xF00, 0, len(LD) + 1),
                    phdr(PT_LOAD, R | X, 0, 0, 0x1800),
                    phdr(PT_LOAD, R | W, 0x1800, 0x2800, 0x1000, 0x1800),
                ],
                0x40,
                0x3000,
                EM_AARCH64,
            ),
            0xF00,
        ),
    )
    loop.create_file(LD, make_elf(ET_DYN, [phdr(PT_LOAD, R | X, 0, 0, 0x1800)], 0x100, 0x1800, EM_AARCH64))
    task = loop.task()
    registers = task.execve("/bin/emu", ["emu"])
    assert registers.sp % 16 == 0
    if paging == "arm64-48":
        assert read(loop, task, "maps") == MAPS_ARM64
    vector = dict(struct.iter_unpack("<2Q", loop.read(f"/proc/{task.pid}/auxv")))
    assert task.read(vector[elf.AT_PLATFORM], 8) == b"aarch64\0"
    assert vector[elf.AT_ENTRY] - 0x40 == FORMATS[paging]["elf_et_dyn_base"]
    with pytest.raises(OSError, match="it is for EM_X86_64, must be EM_AARCH64"):
        loop.create_file("/bin/other", PROGRAM)
        task.execve("/bin/other")
    loop.audit()


def test_a_script(machine):
    machine.create_file("/bin/script", b"#!/bin/emu  -x y \necho\n")
    machine.create_file("/bin/outer", b"#!/bin/script\n")
    task = machine.task()
    args, _, vector = stack_words(task, task.execve("/bin/script", ["script", "1", "2"]))
    assert args == ["/bin/emu", "-x y", "/bin/script", "1", "2"]
    assert task.read(vector[elf.AT_EXECFN], 12) == b"/bin/script\0" and read(machine, task, "comm") == "script\n"
    assert areas(machine, task)[0][3] == "/bin/emu"
    args, _, _ = stack_words(task, task.execve("/bin/outer", []))
    assert args == ["/bin/emu", "-x y", "/bin/script", "/bin/outer"]
    machine.audit()


def test_scripts_run_by_scripts_come_to_an_end(machine):
    for i in range(6):
        machine.create_file(f"/bin/s{i}", f"#!/bin/s{i - 1}\n".encode() if i else b"#!/bin/emu\n")
    task = machine.task()
    task.execve("/bin/s4")
    with pytest.raises(OSError, match="more than 5 interpreters are scripts themselves") as error:
        task.execve("/bin/s5")
    assert error.value.errno == errno.ELOOP
    machine.create_file("/bin/nobody", b"#!/bin/does-not-exist\n")
    with pytest.raises(FileNotFoundError, match="/bin/does-not-exist"):
        task.execve("/bin/nobody")
    machine.audit()


def test_without_arguments_there_is_an_empty_one(machine):
    task = machine.task()
    assert stack_words(task, task.execve("/bin/emu", []))[0] == [""]
