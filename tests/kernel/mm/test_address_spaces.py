"""Address spaces of several processes and threads against dictionaries of bytes: all that mm offers, in any order."""

import errno
import random

import numpy as np
import pytest
from loopback import SMALL_TLB, Loopback, if_there_is_room
from naive_mm import PAGE, Bus, Failed, Object, Segfault, Space

from numaemu import BusError, SegmentationFault
from numaemu.api.files import seeded_bytes
from numaemu.compiler.build import JIT
from numaemu.kernel.include.mm_types import VM_GROWSDOWN, VM_LOCKED, VM_SHARED
from numaemu.kernel.mm.swap import swapon
from numaemu.uapi import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_MF_MOVE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    O_CREAT,
    O_RDWR,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    RLIMIT_MEMLOCK,
)

BASE = 0x1000_0000 // PAGE
RW = PROT_READ | PROT_WRITE
FILE, TMPFS = "/mnt/file", "/dev/shm/file"
FILE_PAGES, MEMLOCK = 8, 1 << 20
# fmt: off
ADVICE = {"DONTNEED": MADV_DONTNEED, "FREE": MADV_FREE, "COLD": MADV_COLD, "PAGEOUT": MADV_PAGEOUT,
          "DONTFORK": MADV_DONTFORK, "DOFORK": MADV_DOFORK, "WIPEONFORK": MADV_WIPEONFORK, "KEEPONFORK": MADV_KEEPONFORK,
          "HUGEPAGE": MADV_HUGEPAGE, "NOHUGEPAGE": MADV_NOHUGEPAGE}
# fmt: on
RULES = {}  # {name: (weight, {argument: how it is drawn})}
ZEROED = (
    "nr_anon_pages",
    "nr_mapped",
    "nr_page_table_pages",
    "nr_mlock",
    "nr_anon_transparent_hugepages",
    "nr_swapcached",
)


def rule(weight=1, **arguments):
    """A thing that may be done; each argument is drawn from a list, or called with the random numbers."""

    def note(method):
        RULES[method.__name__] = weight, arguments
        return method

    return note


def draw(rng, kinds):
    return {name: kind(rng) if callable(kind) else rng.choice(kind) for name, kind in kinds.items()}


def story(seed, n):
    """Random steps: (rule, arguments)."""
    rng, names = random.Random(seed), list(RULES)
    chosen = rng.choices(names, [RULES[name][0] for name in names], k=n)
    return [(name, draw(rng, RULES[name][1])) for name in chosen]


class Process:
    """A task and its twin. Threads have the same twin; `heap` is the first page of it."""

    def __init__(self, task, space=None, heap=None):
        self.task, self.space = task, space or Space()
        self.heap = heap or -(-task.brk() // PAGE)


class Spaces:
    """Processes and threads on two CPUs do what they like in a window of `WINDOW` pages, and where mremap takes them."""

    WINDOW, LENGTHS, MEMORY, THP, LOCKS, MOST = 24, (1, 1, 2, 3, 5, 9), "8MiB", "never", 9, 5

    def __init__(self):
        self.loop = Loopback(nodes=2, cpus_per_node=1, memory_per_node=self.MEMORY, **SMALL_TLB)
        swapon.swapon(self.loop.machine, "swap", 64 << 20, -1, "disk")
        self.loop.write("/sys/kernel/mm/transparent_hugepage/enabled", self.THP)
        self.loop.create_file(FILE, FILE_PAGES * PAGE, 5)
        self.processes, self.steps = [Process(self.loop.task())], 0
        self.objects = [Object(FILE_PAGES, seeded_bytes(5, 0, FILE_PAGES * PAGE), FILE), Object(FILE_PAGES, path=TMPFS)]
        task = self.processes[0].task
        with task.open(TMPFS, O_RDWR | O_CREAT) as file:
            file.truncate(FILE_PAGES * PAGE)
        task.setrlimit(RLIMIT_MEMLOCK, MEMLOCK)
        task.setuid(1000)  # whom the limit holds for

    who, cpus, node, yes = range(12), (0, 1), (0, 1), (True, False)
    place, length = range(16001), range(101)

    def data(rng):
        return rng.randbytes(rng.randint(1, 40))

    # -- what is done, and where

    def pick(self, who, cpu=None):
        process = self.processes[who % len(self.processes)]
        if cpu is not None:
            process.task.sched_setaffinity(cpu)
        return process

    def page(self, process, place, heap=True):
        """A page: of the window, or one that is mapped."""
        mapped = sorted(n for n in process.space.pages if heap or n < process.heap or n > process.heap + 64)
        if place % 4 and mapped:
            return mapped[place // 4 % len(mapped)]
        return BASE + place // 4 % self.WINDOW

    def pages(self, length):
        return self.LENGTHS[length % len(self.LENGTHS)]

    def locked(self, process):
        return {
            n
            for vma in self.loop.vmas(process.task)
            if vma.flags & VM_LOCKED
            for n in range(vma.start // PAGE, vma.end // PAGE)
        }

    def one_vma(self, process, at, n):
        """Whether one VMA covers the pages, and where it ends."""
        for vma in self.loop.vmas(process.task):
            if vma.start // PAGE <= at < vma.end // PAGE:
                return at + n <= vma.end // PAGE, vma.end // PAGE
        return False, 0

    def same(self, real, twin):
        """Both succeed, or both fail alike; True: they did it."""
        try:
            twin()
            expected = None
        except Failed as failed:
            expected = str(failed)
        try:
            real()
            found = None
        except OSError as error:
            found = errno.errorcode[error.errno]
        assert found == expected
        return found is None

    def read_back(self, process, address, nbytes):
        """Read, as far as it may be read, and compare: every byte."""
        parts, fault = [], None
        try:
            for part in process.space.access(address, nbytes, PROT_READ):
                parts.append(part)
        except Segfault as error:
            fault = BusError if isinstance(error, Bus) else SegmentationFault
        readable = sum(n for *_, n in parts)
        if fault is not None:
            with pytest.raises(fault):
                process.task.read(address, readable + 1)
        found = process.task.read(address, readable) if readable else b""
        for page, offset, done, n in parts:
            assert page.seen(offset, found[done : done + n]), (
                f"{address + done:#x}: not {bytes(page.contents()[0][offset : offset + 8])}, "
                f"but {found[done : done + 8]}"
            )

    # -- accesses

    @rule(12, who=who, place=place, length=length, offset=range(4096), data=data, cpu=cpus)
    def write(self, who, place, length, offset, data, cpu):
        process = self.pick(who, cpu)
        address = self.page(process, place) * PAGE + offset
        data = (data * -(-self.pages(length) * PAGE // len(data)))[: (self.pages(length) - 1) * PAGE + len(data)]
        fault = None
        try:
            for page, at, done, n in process.space.access(address, len(data), PROT_WRITE):
                page.write(at, data[done : done + n])
        except Segfault as error:
            fault = BusError if isinstance(error, Bus) else SegmentationFault
        if fault is None:
            process.task.write(address, data)
        else:
            with pytest.raises(fault):
                process.task.write(address, data)

    @rule(5, who=who, place=place, length=length, cpu=cpus)
    def read(self, who, place, length, cpu):
        process = self.pick(who, cpu)
        self.read_back(process, self.page(process, place) * PAGE, self.pages(length) * PAGE)

    @rule(3, which=(0, 1), offset=range((FILE_PAGES - 1) * PAGE), data=data, who=who)
    def write_to_a_file(self, which, offset, data, who):
        object = self.objects[which]
        with self.pick(who).task.open(object.path, O_RDWR) as file:
            file.pwrite(data, offset)
        for i, byte in enumerate(data):
            object.pages[(offset + i) // PAGE][(offset + i) % PAGE] = byte

    # -- mappings

    @rule(
        8,
        who=who,
        place=place,
        length=length,
        kind=["private", "private", "shared", "file", "tmpfs", "own file"],
        index=range(FILE_PAGES),
        prot=[RW, RW, RW, PROT_READ],
    )
    def mmap(self, who, place, length, kind, index, prot):
        process, n = self.pick(who), self.pages(length)
        at = self.page(process, place, heap=False)
        shared = kind in ("shared", "file", "tmpfs")
        flags = (MAP_SHARED if shared else MAP_PRIVATE) | MAP_FIXED | MAP_NORESERVE
        if kind in ("private", "shared"):
            process.task.mmap(n * PAGE, prot, flags | MAP_ANONYMOUS, addr=at * PAGE)
            process.space.mmap(at, n, prot, shared)
            return
        object = self.objects[kind == "tmpfs"]
        with process.task.open(object.path, O_RDWR) as file:
            process.task.mmap(n * PAGE, prot, flags, file=file, offset=index * PAGE, addr=at * PAGE)
        process.space.mmap(at, n, prot, shared, object, index)

    @rule(2, who=who, place=place, length=length)
    def munmap(self, who, place, length):
        process, n = self.pick(who), self.pages(length)
        at = self.page(process, place, heap=False)
        process.task.munmap(at * PAGE, n * PAGE)
        process.space.munmap(at, n)

    @rule(4, who=who, place=place, length=length, prot=[RW, RW, PROT_READ, PROT_NONE])
    def mprotect(self, who, place, length, prot):
        process, n = self.pick(who), self.pages(length)
        at = self.page(process, place)
        self.same(lambda: process.task.mprotect(at * PAGE, n * PAGE, prot), lambda: process.space.mprotect(at, n, prot))

    @rule(6, who=who, place=place, length=length, advice=sorted(ADVICE), cpu=cpus)
    def madvise(self, who, place, length, advice, cpu):
        process, n = self.pick(who, cpu), self.pages(length)
        at, locked = self.page(process, place, heap="FORK" not in advice), self.locked(process)
        locked = () if "HUGE" in advice or "FORK" in advice else locked
        self.same(
            lambda: process.task.madvise(at * PAGE, n * PAGE, ADVICE[advice]),
            lambda: process.space.madvise(at, n, advice, locked),
        )

    @rule(2, who=who, place=place, length=length, lock=yes)
    def mlock(self, who, place, length, lock):
        process, n = self.pick(who), self.pages(length)
        if lock:
            n = min(n, self.LOCKS)
        at = self.page(process, place)
        try:
            (process.task.mlock if lock else process.task.munlock)(at * PAGE, n * PAGE)
        except OSError as error:
            assert not lock or error.errno in (errno.ENOMEM, errno.EAGAIN)

    @rule(4, who=who, place=place, to=place, old=length, new=length, keep=yes)
    def mremap_to(self, who, place, to, old, new, keep):
        """To a place of the window, with MREMAP_FIXED."""
        process, old, new = self.pick(who), self.pages(old), self.pages(new)
        at, to, new = self.page(process, place, heap=False), BASE + to % self.WINDOW, old if keep else new
        space = process.space

        def twin():
            if at not in space.pages:
                raise Failed("EFAULT")
            if at + old > to and to + new > at:
                raise Failed("EINVAL")
            space.munmap(to, new)
            space.munmap(at + new, max(old - new, 0))
            if not whole:
                raise Failed("EFAULT")
            if at in locked and new > old and len(locked & set(space.pages)) + new - old > MEMLOCK // PAGE:
                raise Failed("EAGAIN")
            space.move(at, min(old, new), new, to, keep)

        (whole, _), locked = self.one_vma(process, at, min(old, new)), self.locked(process)
        flags = MREMAP_FIXED | MREMAP_MAYMOVE | (MREMAP_DONTUNMAP if keep else 0)
        self.same(lambda: process.task.mremap(at * PAGE, old * PAGE, new * PAGE, flags, to * PAGE), twin)

    @rule(4, who=who, place=place, old=length, new=length, may_move=yes)
    def mremap(self, who, place, old, new, may_move):
        """Longer or shorter, here or where there is room."""
        process, old, new = self.pick(who), self.pages(old), self.pages(new)
        at, space = self.page(process, place, heap=False), process.space
        whole, end = self.one_vma(process, at, old)
        room = at + old == end and not any(n in space.pages for n in range(end, at + new))
        expected = None
        if at not in space.pages:
            expected = errno.EFAULT
        elif new > old and not whole:
            expected = errno.EFAULT
        elif new > old and not room and not may_move:
            expected = errno.ENOMEM
        try:
            got = process.task.mremap(at * PAGE, old * PAGE, new * PAGE, MREMAP_MAYMOVE if may_move else 0).addr // PAGE
        except OSError as error:
            assert error.errno == expected or error.errno == errno.EAGAIN
            return
        assert expected is None and (got == at or not room and new > old)
        if new < old:
            space.munmap(at + new, old - new)
        elif new > old:
            space.move(at, old, new, got, False)

    @rule(2, who=who, pages=range(13))
    def brk(self, who, pages):
        process = self.pick(who)
        before, end = -(-process.task.brk() // PAGE), process.heap + pages
        assert process.task.brk(end * PAGE) == end * PAGE
        if end > before:
            process.space.mmap(before, end - before, RW)
        process.space.munmap(end, max(before - end, 0))

    # -- where pages lie

    @rule(3, who=who, place=place, length=length, node=cpus, how=["move_pages", "mbind", "migrate", "default"])
    def move(self, who, place, length, node, how):
        process, n = self.pick(who), self.pages(length)
        at = self.page(process, place)
        n = process.space.run(at, n)
        if how == "migrate":
            with if_there_is_room():
                process.task.migrate_pages([1 - node], [node])
        elif how == "move_pages" and n:
            with if_there_is_room():
                process.task.move_pages((at + np.arange(n, dtype=np.uint64)) * np.uint64(PAGE), node)
        elif n:
            mode = MPOL_BIND if how == "mbind" else MPOL_DEFAULT
            process.task.mbind(at * PAGE, n * PAGE, mode, node if how == "mbind" else None, MPOL_MF_MOVE)

    @rule(2, who=who, place=place, length=length, cpu=cpus)
    def collapse(self, who, place, length, cpu):
        """As many huge pages as the range has, if they can be had."""
        process = self.pick(who, cpu)
        try:
            process.task.madvise(self.page(process, place) * PAGE, self.pages(length) * PAGE, MADV_COLLAPSE)
        except OSError as error:
            assert error.errno in (errno.EINVAL, errno.EAGAIN, errno.ENOMEM, errno.EBUSY)

    @rule(1, who=who)
    def khugepaged(self, who):
        """Time passes, in which kernel threads look around."""
        self.pick(who).task.sleep(30_000)
        self.loop.run_kthreads()

    @rule(1)
    def compact(self):
        self.loop.write("/proc/sys/vm/compact_memory", "1")

    @rule(1)
    def drop_caches(self):
        self.loop.system("drop_caches")

    # -- processes

    @rule(3, who=who, cpu=cpus, thread=yes)
    def fork(self, who, cpu, thread):
        process = self.pick(who)
        if len(self.processes) == self.MOST:
            return
        if thread:
            self.processes.append(Process(process.task.clone(cpu=cpu), process.space, process.heap))
        else:
            self.processes.append(Process(process.task.fork(cpu=cpu), process.space.fork(), process.heap))

    @rule(2, who=who)
    def exit(self, who):
        if len(self.processes) == 1:
            return
        process = self.pick(who)
        process.task.exit()
        self.processes.remove(process)

    def look(self):
        """After each step: at a page that is not always the same, and at all frames from time to time."""
        self.steps += 1
        for process in self.processes:
            mapped = {
                n: (vma.flags & RW, vma.flags & VM_SHARED != 0)
                for vma in self.loop.vmas(process.task)
                if not vma.flags & VM_GROWSDOWN
                for n in range(vma.start // PAGE, vma.end // PAGE)
            }
            assert mapped == {n: (page.prot, page.shared) for n, page in process.space.pages.items()}
        process = self.pick(self.steps)
        self.read_back(process, self.page(process, self.steps * 7 | 1) * PAGE, 64)
        if self.steps % 3 == 0:
            self.loop.audit()

    def end(self):
        """Compare everything, end everybody: nothing may be left."""
        for process in self.processes:
            for number in sorted(process.space.pages):
                self.read_back(process, number * PAGE, PAGE)
        self.loop.audit()
        for process in self.processes:
            process.task.exit()
        self.loop.system("unlink", TMPFS)
        self.loop.drain()
        self.loop.audit()
        counted = self.loop.vmstat()
        assert {name: counted[name] for name in ZEROED} == dict.fromkeys(ZEROED, 0)
        assert counted["oom_kill"] == 0 and self.loop.machine.vm_committed_as == 0
        self.loop.close()


class HugeSpaces(Spaces):
    """The same with transparent huge pages, in ranges as large, in less memory than all together have."""

    WINDOW, LENGTHS, MEMORY, THP, LOCKS, MOST = 2048, (1, 2, 17, 130, 511, 512, 513, 700), "16MiB", "always", 17, 4

    def page(self, process, place, heap=True):
        """Often where a huge page begins."""
        page = super().page(process, place, heap)
        return page // 512 * 512 if place % 3 == 0 and page // 512 * 512 in process.space.pages else page


def run(machine, steps):
    """Do the steps; an error says which one was it."""
    try:
        for name, arguments in steps:
            getattr(machine, name)(**arguments)
            machine.look()
    except BaseException as error:
        error.add_note(f"{name}({arguments})")
        raise
    machine.end()


@pytest.mark.interpreted
@pytest.mark.parametrize("seed", range(16 if JIT else 2))
def test_random_steps_against_a_dictionary(seed):
    run(Spaces(), story(seed, 150 if JIT else 40))


@pytest.mark.skipif(not JIT, reason="too much memory to fill without the JIT")
@pytest.mark.parametrize("seed", range(4))
def test_random_steps_with_huge_pages(seed):
    """Collapse, split, reclaim, compaction and migration among forks, writes and the rest."""
    run(HugeSpaces(), story(1000 + seed, 120))
