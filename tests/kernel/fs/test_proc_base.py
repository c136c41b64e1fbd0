"""/proc/<pid>/stat, auxv, cmdline, environ, comm, limits to the letter; clear_refs."""

import pathlib
import struct

import pytest
from test_binfmt_elf import EM_386, ET_DYN, PT_LOAD, R, W, X, make_elf, make_elf32, phdr, phdr32

from numaemu.kernel.fs import binfmt_elf as elf
from numaemu.kernel.mm.swap import swapon
from numaemu.spec.formats import FORMATS
from numaemu.uapi import MADV_HUGEPAGE, MADV_PAGEOUT, MAP_PRIVATE, PROT_READ, RLIMIT_AS, RLIMIT_NOFILE

pytestmark = pytest.mark.interpreted
PAGE = 4096
PROGRAM = make_elf(
    ET_DYN, [phdr(PT_LOAD, R | X, 0, 0, 0x1800), phdr(PT_LOAD, R | W, 0x1800, 0x3800, 0x400)], 0x100, 0x1C00
)


@pytest.fixture
def machine(two_nodes):
    two_nodes.create_file("/bin/emu", PROGRAM)
    return two_nodes


def read(loop, task, name):
    return loop.read(f"/proc/{task.pid}/{name}")


def test_stat(machine):
    parent = machine.task()
    parent.sleep(30)
    task = parent.fork()
    task.execve("/bin/emu", ["emu", "x"], {"A": "1"})
    task.clone()
    task.touch(task.mmap("64KiB").addr, 64 << 10)
    mm, text = machine.mm(task), read(machine, task, "stat")
    head, fields = text[:-1].split(") ")
    assert text.endswith(" 0\n") and head == f"{task.pid} (emu" and len(fields.split()) == 50
    state, *numbers = fields.split()
    numbers = dict(enumerate((int(n) for n in numbers), 4))  # by the number of proc_pid_stat(5)
    assert state == "R" and numbers.pop(4) == parent.pid and numbers.pop(8) == -1
    assert (
        numbers.pop(10) == task.counters()["task_minor_faults"] >= 16 and numbers.pop(14) == task.clock_ns // 10**7 - 3
    )
    assert (numbers.pop(18), numbers.pop(20), numbers.pop(22)) == (20, 2, 3)
    assert (numbers.pop(23), numbers.pop(24), numbers.pop(25)) == (mm.total_vm * PAGE, sum(mm.rss), 2**64 - 1)
    assert [numbers.pop(n) for n in (26, 27, 28, 45, 46, 47, 48, 49, 50, 51)] == [
        int(word)
        for word in (
            mm.start_code,
            mm.end_code,
            mm.start_stack,
            mm.start_data,
            mm.end_data,
            mm.start_brk,
            mm.arg_start,
            mm.arg_end,
            mm.env_start,
            mm.env_end,
        )
    ]
    assert numbers.pop(38) == 17 and numbers.pop(12) == task.counters()["task_major_faults"]
    assert set(numbers.values()) == {0}  # what is not emulated; cpu 0


def test_stat_of_who_does_not_run(machine):
    task, other = machine.task(cpu=1), machine.task(cpu=1)
    task.clock_ns, other.mmap(PAGE)
    fields = read(machine, task, "stat").split()
    assert (fields[2], fields[34], fields[38]) == ("S", "1", "1") and read(machine, task, "comm") == "task\n"
    assert machine.read(f"/proc/{other.pid}/stat").split()[2] == "R"


def test_arguments_and_environment(machine):
    task = machine.task()
    assert (
        read(machine, task, "cmdline") == "task\0" and read(machine, task, "environ") == ""
    )  # it has never loaded a program
    task.execve("/bin/emu", ["emu", "a b", "\udcff"], {"HOME": "/", "X": ""})
    assert read(machine, task, "cmdline") == "emu\0a b\0\udcff\0"
    assert read(machine, task, "environ") == "HOME=/\0X=\0"
    child = task.fork()
    assert read(machine, child, "cmdline") == read(machine, task, "cmdline")
    mm = machine.mm(task)
    task.write(mm.arg_start, b"EMU")
    assert read(machine, task, "cmdline") == "EMU\0a b\0\udcff\0" and read(machine, child, "cmdline").startswith("emu")
    task.write(mm.arg_start, b"a title longer than what it had\0")  # into the environment
    assert read(machine, task, "cmdline") == "a title longer than what it had\0"[: mm.env_end - mm.arg_start]
    task.munmap(int(mm.start_stack) & -PAGE, PAGE)
    assert read(machine, task, "cmdline") == ""
    machine.audit()


def test_arguments_that_are_swapped_out(machine):
    swapon.swapon(machine.machine, "area", 1 << 20)
    task = machine.task(cpu=1)
    task.execve("/bin/emu", ["emu", "x" * 5000], {"HOME": "/"})
    start = int(machine.mm(task).arg_start) & -PAGE
    for _ in range(2):
        task.madvise(start, 2 * PAGE, MADV_PAGEOUT)
    assert not machine.pte(task, start) & 1
    assert read(machine, task, "cmdline") == "emu\0" + "x" * 5000 + "\0" and machine.pte(task, start) & 1
    assert read(machine, task, "environ") == "HOME=/\0"
    machine.audit()


@pytest.mark.parametrize("paging", ["x86-64-4level", "x86-32", "arm64-48"])
def test_auxv(loopback, paging):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", paging=paging)
    small = elf.arch_of(paging).bits == 32
    program = (
        make_elf32(ET_DYN, [phdr32(PT_LOAD, R | X, 0, 0, 0x800)], machine=EM_386)
        if small
        else make_elf(ET_DYN, [phdr(PT_LOAD, R | X, 0, 0, 0x800)], machine=183 if paging.startswith("arm") else 62)
    )
    loop.create_file("/bin/emu", program)
    task = loop.task()
    word = "I" if small else "Q"
    assert read(loop, task, "auxv") == bytes(2 * struct.calcsize(word))
    task.execve("/bin/emu")
    data = read(loop, task, "auxv")
    pairs = list(struct.iter_unpack(f"<2{word}", data))
    assert pairs[0] == (elf.AT_PAGESZ, PAGE) and pairs[-1] == (elf.AT_NULL, 0)
    sp = int(loop.mm(task).start_stack)
    stack = task.read(sp, FORMATS[paging]["stack_top"] - sp)
    assert data in stack and read(loop, task.fork(), "auxv") == data


def test_who_has_ended_has_no_files(machine):
    task = machine.task()
    task.exit()
    for name in ("stat", "auxv", "cmdline", "environ", "comm"):
        with pytest.raises(FileNotFoundError):
            machine.actors[0].rpc_read(f"/proc/{task.pid}/{name}")


def test_limits(machine):
    """As the host's kernel writes them, but for the values."""
    task = machine.task()
    task.setrlimit(RLIMIT_AS, 1 << 30)
    task.setrlimit(RLIMIT_NOFILE, 100)
    lines, host = read(machine, task, "limits").splitlines(), pathlib.Path("/proc/self/limits").read_text().splitlines()
    assert lines[0] == host[0] and len(lines) == len(host)
    for line, other in zip(lines[1:], host[1:]):
        assert line[:26] == other[:26] and line[68:] == other[68:] and len(line) == len(other)
    assert lines[1].split()[3:] == ["unlimited", "unlimited", "seconds"]
    assert [line[26:68].split() for line in lines if line.startswith(("Max stack", "Max open", "Max address"))] == [
        [str(8 << 20), "unlimited"],
        ["100", "1024"],
        [str(1 << 30), "unlimited"],
    ]


def referenced(machine, task, mapping):
    """kB of a mapping that smaps calls referenced."""
    text = read(machine, task, "smaps")
    part = text[text.index(f"{mapping.addr:x}-") :]
    return int(part[part.index("Referenced:") :].split()[1])


def test_clear_refs_by_kind_of_mapping(machine):
    task = machine.task()
    anon, file = task.mmap("64KiB"), task.mmap(2 * PAGE, PROT_READ, MAP_PRIVATE, task.open("/bin/emu"))
    other = task.mmap("64KiB")
    task.touch(anon.addr, anon.nbytes)
    task.load([file.addr])
    before = referenced(machine, task, file)
    assert referenced(machine, task, anon) == 64 and before > 0
    machine.write(f"/proc/{task.pid}/clear_refs", "3")
    assert (referenced(machine, task, anon), referenced(machine, task, file)) == (64, 0)
    task.load([anon.addr])
    machine.write(f"/proc/{task.pid}/clear_refs", "2")
    assert referenced(machine, task, anon) == 0
    task.load([anon.addr])  # as on x86, nothing is flushed: what the TLB has is not seen
    assert referenced(machine, task, anon) == 0
    task.touch(other.addr, other.nbytes)  # more pages than the TLB holds
    task.load([anon.addr, anon.addr + PAGE])
    task.load([file.addr])
    assert referenced(machine, task, anon) == 8 and referenced(machine, task, file) == 4
    machine.write(f"/proc/{task.pid}/clear_refs", "1\n")
    assert (referenced(machine, task, anon), referenced(machine, task, file)) == (0, 0)
    machine.audit()


def test_clear_refs_of_a_huge_page(machine):
    machine.write("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")
    task = machine.task()
    huge = task.mmap("4MiB")
    task.madvise(huge.addr, huge.nbytes, MADV_HUGEPAGE)
    task.touch(huge.addr, huge.nbytes, stride=2 << 20)
    assert referenced(machine, task, huge) == 4096
    machine.write(f"/proc/{task.pid}/clear_refs", "1")
    assert referenced(machine, task, huge) == 0
    machine.audit()


def test_clear_refs_resets_the_peak(machine):
    task = machine.task()
    task.touch(task.mmap("256KiB").addr, 256 << 10)
    gone = task.mmap("1MiB")
    task.touch(gone.addr, gone.nbytes)
    task.munmap(gone.addr, gone.nbytes)
    assert "VmHWM:\t    1280 kB" in read(machine, task, "status")
    machine.write(f"/proc/{task.pid}/clear_refs", "5")
    assert "VmHWM:\t     256 kB" in read(machine, task, "status")


def test_what_clear_refs_does_not_take(machine):
    task = machine.task()
    for value in ("0", "6", "x", ""):
        with pytest.raises(AssertionError, match="clear_refs takes 1"):
            machine.write(f"/proc/{task.pid}/clear_refs", value)
    with pytest.raises(AssertionError, match="soft-dirty bits are not emulated"):
        machine.write(f"/proc/{task.pid}/clear_refs", "4")
    assert isinstance(read(machine, task, "clear_refs").error, PermissionError)
