"""Accesses of every width at every offset around a page border, whatever the second page is like, against a byte array."""

import numpy as np
import pytest

from numaemu import SegmentationFault
from numaemu.api import access
from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import SCALARS, bits_of, value_of
from numaemu.kernel.arch.pgtable import pte_offset, ptep_get
from numaemu.kernel.arch.tlb import try_to_unmap_flush
from numaemu.kernel.mm.migrate.migrate import batch_of, isolate_page, putback_page, rmap_walk
from numaemu.kernel.mm.swap import swapon
from numaemu.kernel.syscalls import common as syscalls
from numaemu.uapi import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    O_CREAT,
    O_RDWR,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

RW, PAGE, HUGE = PROT_READ | PROT_WRITE, 4096, 2 << 20
SHARED, PRIVATE = MAP_SHARED | MAP_ANONYMOUS, MAP_PRIVATE | MAP_ANONYMOUS
# what is stored: words whose bytes all differ, as bits of every kind
# fmt: off
VALUES = {"u8": 0xC3, "u16": 0xC35A, "u32": 0xC35A1E87, "u64": 0xAABBCCDDEEFF0011, "i32": -1 - 0x1F2E3D4C,
          "i64": -1 - 0x1F2E3D4C5B6A7988, "f32": -1.2345678e10, "f64": -1.23456789012345e200}
# fmt: on


class Pair:
    """Two pages of a task, the second of a kind; `again` makes it so once more, `model` is what both hold."""

    def __init__(self, loop, kind):
        self.loop, self.kind, self.task = loop, kind, loop.task()
        self.model = bytearray(2 * PAGE)
        self.addr = getattr(self, "make_" + kind)()
        self.task.write(self.addr, self.fill(PAGE, 1))

    def fill(self, nbytes, seed):
        data = bytes((i * 7 + seed) % 251 for i in range(nbytes))
        self.model[:nbytes] = data
        return data

    def both(self):
        """Two pages with contents, for kinds that begin with some."""
        addr = self.task.mmap(2 * PAGE).addr
        self.task.write(addr, self.fill(2 * PAGE, 3))
        return addr

    def make_there(self):
        return self.both()

    def make_untouched(self):
        return self.task.mmap(2 * PAGE).addr

    make_zero_page = make_untouched
    make_swapped = make_migrated = both

    def make_cow(self):
        self.twin = self.task.fork()
        return self.both()

    def make_shared(self):
        return self.task.mmap(2 * PAGE, flags=SHARED).addr

    def make_swapped_shared(self):
        return self.task.mmap(2 * PAGE, flags=SHARED).addr

    def file(self, path):
        file = self.task.open(path, O_RDWR | O_CREAT)
        file.pwrite(self.fill(2 * PAGE, 5), 0)
        return self.task.mmap(2 * PAGE, flags=MAP_SHARED, file=file).addr

    def make_tmpfs(self):
        return self.file("/dev/shm/pair")

    def make_file(self):
        self.loop.create_file("/mnt/pair", 2 * PAGE)
        return self.file("/mnt/pair")

    def make_private_file(self):
        self.loop.create_file("/mnt/private", self.fill(2 * PAGE, 5))
        return self.task.mmap(2 * PAGE, flags=MAP_PRIVATE, file=self.task.open("/mnt/private", O_RDWR)).addr

    def make_huge(self):
        area = self.task.mmap(3 * HUGE).addr
        border = (area + 2 * HUGE) & ~(HUGE - 1)
        self.task.write(border, b"\1")
        self.task.madvise(border, HUGE, MADV_COLLAPSE)
        self.task.write(border, b"\0")
        return border - PAGE

    def make_pool(self):
        self.loop.write("/proc/sys/vm/nr_hugepages", "1")
        pool = self.task.mmap(HUGE, flags=PRIVATE | MAP_HUGETLB).addr
        return self.task.mmap(PAGE, RW, PRIVATE | 0x10, addr=pool - PAGE).addr

    def again(self):
        """The second page as its kind says; what it held may be gone."""
        second = self.addr + PAGE
        if self.kind in ("untouched", "zero_page", "shared", "tmpfs", "file", "private_file"):
            self.task.madvise(second, PAGE, MADV_DONTNEED)
        if self.kind in ("untouched", "zero_page"):
            self.model[PAGE:] = bytes(PAGE)
        if self.kind == "private_file":
            self.model[PAGE:] = bytes((i * 7 + 5) % 251 for i in range(PAGE, 2 * PAGE))
        if self.kind == "zero_page":
            self.task.load([second])
        elif self.kind == "cow":
            self.twin.exit()
            self.twin = self.task.fork()
        elif self.kind in ("swapped", "swapped_shared"):
            self.task.madvise(second, PAGE, MADV_PAGEOUT)
        elif self.kind == "migrated":
            if hasattr(self, "finish"):  # the access before did not come to this page
                self.finish()
            self.migrate(second)

    def migrate(self, address):
        """Another CPU begins to move the page, and gives it back when somebody waits for it."""
        loop, cpu = self.loop, self.loop.cpu(1)
        for number in range(2):
            syscalls.drain_lru(int(loop.cpu(number).address))
        ptep = pte_offset(loop.machine, loop.mm(self.task), np.uint64(address))
        pfn, batch = isolate_page(cpu, ptep, ptep_get(ptep)), batch_of(loop.machine, cpu)
        assert pfn != 0
        batch.tlb_ubc.nr_mms = 0
        rmap_walk(cpu, batch, pfn, 0, 1)
        try_to_unmap_flush(cpu, batch.tlb_ubc)

        def finish():
            del loop.deliver, self.finish
            rmap_walk(cpu, batch, pfn, pfn, 0)
            putback_page(cpu, pfn, 0)

        loop.deliver = self.finish = finish


KINDS = [name.removeprefix("make_") for name in vars(Pair) if name.startswith("make_")]


def at_border(cpu, name, address, value=None):
    """One access as a compiled function of a user makes it."""
    if value is None:
        return getattr(access, "load_" + name)(cpu, address)
    return getattr(access, "store_" + name)(cpu, address, value)


@pytest.fixture
def machine(loopback):
    """One with swap, room for huge pages, and a second CPU."""
    loop = loopback(nodes=1, cpus_per_node=2, memory_per_node="32MiB")
    swapon.swapon(loop.machine, "area", 4 << 20)
    return loop


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", KINDS)
def test_every_width_at_every_offset_around_a_page_border(machine, kind):
    if kind == "huge" and not JIT:
        pytest.skip("clears and copies a huge page")
    pair = Pair(machine, kind)
    cpu = machine.cpu()
    for name in SCALARS if JIT or kind == "there" else ("u64", "f32"):
        scalar = SCALARS[name]
        for offset in range(PAGE - scalar.nbytes, PAGE + 1):
            place, value = pair.addr + offset, VALUES[name]
            pair.again()
            syscalls.begin_access(int(cpu.address), pair.task._number)
            at_border(cpu, name, place, value)
            syscalls.end_access(int(cpu.address))
            pair.model[offset : offset + scalar.nbytes] = int(bits_of(scalar, value)).to_bytes(8, "little")[
                : scalar.nbytes
            ]
            assert pair.task.read(pair.addr, 2 * PAGE) == pair.model, (name, offset)
            pair.again()
            syscalls.begin_access(int(cpu.address), pair.task._number)
            got = at_border(cpu, name, place)
            syscalls.end_access(int(cpu.address))
            want = int.from_bytes(pair.model[offset : offset + scalar.nbytes], "little")
            assert bits_of(scalar, got) == want, (name, offset)
            if name.startswith("u"):
                pair.again()
                assert pair.task.load([place], scalar.dtype)[0] == want
    machine.audit()


@pytest.mark.interpreted
@pytest.mark.parametrize("first, second", [(RW, PROT_NONE), (RW, PROT_READ), (PROT_READ, RW), (PROT_NONE, RW)])
def test_a_store_across_a_border_that_one_page_forbids_stores_nothing(machine, first, second):
    task = machine.task()
    area = task.mmap(2 * PAGE)
    before = bytes(range(256)) * 32
    task.write(area.addr, before)
    task.mprotect(area.addr, PAGE, first)
    task.mprotect(area.addr + PAGE, PAGE, second)
    for nbytes in (2, 4, 8):
        for offset in range(PAGE - nbytes + 1, PAGE):
            with pytest.raises(SegmentationFault):
                task.store([area.addr + offset], np.dtype(f"u{nbytes}").type(0))
    task.mprotect(area.addr, 2 * PAGE, PROT_READ)
    assert task.read(area.addr, 2 * PAGE) == before


@pytest.mark.interpreted
def test_a_value_and_its_bits():
    for name, scalar in SCALARS.items():
        bits = bits_of(scalar, VALUES[name])
        stored = np.zeros(8, np.uint8)
        scalar.array(stored.ctypes.data)[0] = VALUES[name]
        assert bits == stored.view(np.uint64)[0] and value_of(scalar, bits) == scalar.array(stored.ctypes.data)[0]
