"""Page-table formats: entries in memory as the manuals lay them out, walks against a dictionary, tasks in every format."""

import contextlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import SMALL_TLB, Loopback

from numaemu import ConfigError, SegmentationFault
from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import u32, u64
from numaemu.hardware.paging import (
    _PAGE_ACCESSED,
    _PAGE_DIRTY,
    _PAGE_GLOBAL,
    _PAGE_NX,
    _PAGE_PRESENT,
    _PAGE_PSE,
    _PAGE_RW,
    _PAGE_SOFTW1,
    _PAGE_TABLE,
    _PAGE_USER,
    decode,
    encode,
)
from numaemu.hardware.processor import EXEC, LEAF_SHIFT, READ, WRITE
from numaemu.hardware.walk import walk
from numaemu.kernel.arch.pgtable import pte_offset
from numaemu.spec.formats import FORMATS, LEVEL_NAMES
from numaemu.spec.topology import load_topology
from numaemu.uapi import (
    MADV_COLLAPSE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

BITS = [int(b) for b in (_PAGE_RW, _PAGE_USER, _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_GLOBAL, _PAGE_SOFTW1, _PAGE_NX)]
PRESENT, USER, RW = int(_PAGE_PRESENT), int(_PAGE_USER), int(_PAGE_RW)
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
@given(pfn=st.integers(0, (1 << 20) - 1), bits=st.lists(st.sampled_from(BITS)), table=st.booleans(), huge=st.booleans())
def test_entries_come_back_as_they_were(name, pfn, bits, table, huge):
    """Whatever an entry says survives memory, in every format; what a format cannot say (NX on 32 bits) is lost."""
    pte = pfn << 12 | PRESENT
    for bit in bits:
        pte |= bit
    if huge and table:
        pte |= int(_PAGE_PSE)
    elif table:
        pte = pfn << 12 | int(_PAGE_TABLE)
    where = FORMATS[name]["table_format" if table else "pte_format"]
    if where == 0:
        return
    if name == "x86-32":
        pte &= 0xFFFF_FFFF
    assert int(decode(encode(np.uint64(pte), np.uint64(where)), np.uint64(where))) == pte


@pytest.mark.interpreted
@pytest.mark.parametrize("where", [1, 2])
@given(entry=st.integers(1, (1 << 24) - 1), exclusive=st.booleans())
def test_swap_entries_come_back(where, entry, exclusive):
    pte = entry << 12 | 1 << 3 | exclusive << 4
    raw = int(encode(np.uint64(pte), np.uint64(where)))
    assert raw & 1 == 0 and (where == 2 or raw < 1 << 32)
    assert int(decode(np.uint64(raw), np.uint64(where))) == pte


# bits of a descriptor: Arm Architecture Reference Manual, VMSAv8-64; Linux's arch/arm64/include/asm/pgtable-hwdef.h
@pytest.mark.interpreted
@pytest.mark.parametrize(("pte", "raw"), [
    (0x1000 | PRESENT | USER | int(_PAGE_ACCESSED), 0x1000 | 3 | 1 << 6 | 1 << 7 | 3 << 8 | 1 << 10 | 1 << 11 | 1 << 53),
    (0x1000 | PRESENT | USER | RW, 0x1000 | 3 | 1 << 6 | 1 << 7 | 3 << 8 | 1 << 11 | 1 << 51 | 1 << 53),
    (0x1000 | PRESENT | USER | RW | int(_PAGE_DIRTY), 0x1000 | 3 | 1 << 6 | 3 << 8 | 1 << 11 | 1 << 51 | 1 << 53),
    (0x1000 | PRESENT | USER | int(_PAGE_NX), 0x1000 | 3 | 1 << 6 | 1 << 7 | 3 << 8 | 1 << 11 | 1 << 53 | 1 << 54),
    (0x20_0000 | PRESENT | int(_PAGE_PSE) | int(_PAGE_GLOBAL), 0x20_0000 | 1 | 1 << 7 | 3 << 8 | 1 << 54),
])  # fmt: skip
def test_arm64_descriptors(pte, raw):
    where = np.uint64(FORMATS["arm64-48"]["table_format" if pte & int(_PAGE_PSE) else "pte_format"])
    assert hex(encode(np.uint64(pte), where)) == hex(raw)


def small(loopback, name, **keywords):
    return loopback(nodes=1, cpus_per_node=1, memory_per_node="32MiB", paging=name, **keywords)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
def test_a_task_lives_in_every_format(loopback, name):
    """Memory keeps its contents; tables appear level by level, and all go again."""
    machine = small(loopback, name)
    task = machine.task()
    mm = machine.mm(task)
    before = mm.pgtables
    mapping = task.mmap(64 << 10)
    words = mapping.array()
    words[:] = np.arange(8192, dtype=np.uint64)
    assert words[4097] == 4097 and mapping.addr + mapping.nbytes <= FORMATS[name]["stack_top"]
    most = mm.pgtables
    assert most - before == len(LEVEL_NAMES[name]) - 1
    assert machine.cpu().walk_loads[0] > 0
    mapping.munmap()
    assert mm.pgtables < most
    machine.audit()


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
def test_fork_and_copy_on_write_in_every_format(loopback, name):
    machine = small(loopback, name)
    parent = machine.task()
    mapping = parent.mmap(16 << 10)
    parent.write(mapping.addr, b"parent")
    child = parent.fork()
    child.write(mapping.addr, b"child!")
    assert (parent.read(mapping.addr, 6), child.read(mapping.addr, 6)) == (b"parent", b"child!")
    child.exit()
    machine.audit()


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
def test_the_words_in_memory_are_the_architectures(loopback, name):
    machine = small(loopback, name)
    task = machine.task()
    addr = task.mmap(4096).addr
    task.store(np.array([addr]), np.array([7], np.uint64))
    ptep = int(pte_offset(machine.machine, machine.mm(task), np.uint64(addr)))
    if name == "x86-32":
        raw = int(u32.array(ptep & ~3)[0])
        assert raw & 0xFFF == 0b0110_0111  # D A U/S R/W P
    else:
        raw = int(u64.array(ptep & ~7)[0])
        arm = 3 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11 | 1 << 51 | 1 << 53 | 1 << 54
        assert raw & ~0x0000_FFFF_FFFF_F000 == (arm if "arm64" in name else 1 << 63 | 0b0110_0111)


pages = st.dictionaries(
    st.integers(0, 300),
    st.tuples(st.sampled_from([PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC, PROT_NONE])),
    max_size=8,
)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25 if JIT else 4, deadline=None)
@given(mapped=pages, stride=st.sampled_from([1, 7, 512, 1024, 40_000]))
def test_walks_against_a_flat_map(name, mapped, stride):
    """Pages of all kinds, near and far from one another: loads, stores and fetches succeed exactly where the map says so."""
    with Loopback(nodes=1, cpus_per_node=1, memory_per_node="32MiB", paging=name, **SMALL_TLB) as machine:
        task, flat = machine.task(), {}
        for place, (prot,) in mapped.items():
            addr = 0x1000_0000 + place * stride * 4096
            if addr + 4096 > FORMATS[name]["stack_top"] - (256 << 20):
                continue
            task.mmap(4096, PROT_READ | PROT_WRITE, PRIVATE | MAP_FIXED, addr=addr)
            task.write(addr, place.to_bytes(8, "little"))
            task.mprotect(addr, 4096, prot)
            flat[addr] = (prot, place)
        cpu = machine.cpu()
        for addr, (prot, place) in flat.items():
            readable = prot != PROT_NONE
            assert bool(walk(cpu, np.uint64(addr), READ)) == readable
            if readable:
                assert int.from_bytes(task.read(addr, 8), "little") == place
            assert bool(walk(cpu, np.uint64(addr), WRITE)) == bool(prot & PROT_WRITE)
            executable = bool(prot & PROT_EXEC) or readable and not FORMATS[name]["nx"]
            assert bool(walk(cpu, np.uint64(addr), EXEC)) == executable
            assert int(walk(cpu, np.uint64(addr), READ)) >> int(LEAF_SHIFT) & 7 == 0
        for addr in [0x0FFF_F000, 0x1000_0000 + 301 * stride * 4096]:
            assert not walk(cpu, np.uint64(addr), READ)
        machine.audit()


PROTECTIONS = (PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC, PROT_NONE)


class FlatMap:
    """Three huge pages of addresses in each of two places far apart, and what should be there: {page: [prot, word]}."""

    def __init__(self, machine, name):
        self.machine, self.task, self.flat, self.nx = machine, machine.task(), {}, FORMATS[name]["nx"]
        self.huge = (4 << 20 if name == "x86-32" else 2 << 20) // 4096
        self.places = [start + self.huge * n for start in (0x1000_0000 // 4096, 0x9000_0000 // 4096) for n in range(3)]
        for place in self.places:
            self.mmap(place, self.huge, PROT_READ | PROT_WRITE)

    def pages(self, rng):
        """Where something is done: whole huge pages, parts of them, single ones; mapped or not."""
        first = rng.choice(self.places) + rng.choice((0, 0, 1, self.huge // 2, rng.randrange(self.huge)))
        return first, rng.choice((1, 1, 7, self.huge // 2, self.huge, self.huge + 1))

    def mmap(self, first, n, prot):
        self.task.mmap(n * 4096, prot, PRIVATE | MAP_FIXED, addr=first * 4096)
        self.flat.update({page: [prot, 0] for page in range(first, first + n)})

    def munmap(self, first, n, _prot):
        self.task.munmap(first * 4096, n * 4096)
        for page in range(first, first + n):
            self.flat.pop(page, None)

    def mprotect(self, first, n, prot):
        if all(page in self.flat for page in range(first, first + n)):
            self.task.mprotect(first * 4096, n * 4096, prot)
            for page in range(first, first + n):
                self.flat[page][0] = prot

    def write(self, first, n, _prot):
        """The first and last page of the range, if they may be written."""
        for page in {first, first + n - 1}:
            if self.flat.get(page, [0])[0] & PROT_WRITE:
                self.task.write(page * 4096 + 8, page.to_bytes(8, "little"))
                self.flat[page][1] = page
            else:
                with pytest.raises(SegmentationFault):
                    self.task.write(page * 4096 + 8, b"?")

    def collapse(self, first, _n, _prot):
        with contextlib.suppress(OSError):
            self.task.madvise(first // self.huge * self.huge * 4096, self.huge * 4096, MADV_COLLAPSE)

    def look(self, page):
        """The page by loads and by a walk of its own: how many levels up its entry stands."""
        prot, word = self.flat.get(page, (None, 0))
        if not prot:
            with pytest.raises(SegmentationFault):
                self.task.read(page * 4096, 8)
            return 0
        assert int.from_bytes(self.task.read(page * 4096 + 8, 8), "little") == word
        cpu, address = self.machine.cpu(), np.uint64(page * 4096)
        if not prot & PROT_WRITE:
            assert not walk(cpu, address, WRITE)
        assert bool(walk(cpu, address, EXEC)) == bool(prot & PROT_EXEC or not self.nx)
        return int(walk(cpu, address, READ)) >> int(LEAF_SHIFT) & 7


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
def test_mapping_and_unmapping_against_a_flat_map(name):
    """map, unmap, protect, write and collapse at random, over borders of huge entries and tables."""
    rng, levels = random.Random(name), set()
    for _ in range(6 if JIT else 1):
        with Loopback(nodes=1, cpus_per_node=1, memory_per_node="48MiB", paging=name, **SMALL_TLB) as machine:
            machine.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
            flat = FlatMap(machine, name)
            for _ in range(120 if JIT else 40):
                what = rng.choice((flat.mmap, flat.munmap, flat.mprotect, flat.write, flat.write, flat.collapse))
                first, n = flat.pages(rng)
                what(first, n, rng.choice(PROTECTIONS))
                levels |= {flat.look(page) for page in (first - 1, first, first + n - 1, first + n, flat.pages(rng)[0])}
            machine.audit()
            flat.task.exit()
            machine.audit()
    assert levels == {0, 1}


@pytest.mark.interpreted
@pytest.mark.parametrize(("name", "address", "text"), [
    ("x86-64-4level", 0x0000_8000_0000_0000, "not an address of this machine"),
    ("x86-64-4level", 0xFFFF_8880_0000_0000, "a kernel address"),
    ("x86-32", 1 << 32, "not an address of this machine"),
    ("x86-32", 0xC010_0000, "a kernel address"),
    ("arm64-39", 1 << 39, "not an address of this machine"),
    ("arm64-48", 0xFFFF_0000_0000_0000, "a kernel address"),
    ("x86-64-5level", 1 << 60, "not an address of this machine"),
])  # fmt: skip
def test_addresses_that_are_none(loopback, name, address, text):
    task = small(loopback, name).task()
    with pytest.raises(SegmentationFault, match=text):
        task.read(address, 1)


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("prot", "access", "code"),
    [(PROT_READ, "write", 0x7), (PROT_NONE, "read", 0x4), (PROT_READ | PROT_WRITE, "execute", 0x15)],
)
def test_the_error_code_says_what_was_wrong(loopback, prot, access, code):
    """Bits: 1 protection, 2 write, 4 user, 16 instruction fetch."""
    machine = small(loopback, "x86-64-4level")
    task = machine.task()
    addr = task.mmap(4096).addr
    task.write(addr, b"x")
    task.mprotect(addr, 4096, prot)
    argument = {"write": (b"y",), "read": (1,), "execute": ()}[access]
    with pytest.raises(SegmentationFault, match=rf"error code {code:#x}\)"):
        getattr(task, access)(addr, *argument)
    assert (int(machine.cpu().cr2), int(machine.cpu().error_code)) == (addr, code)


@pytest.mark.interpreted
def test_what_may_be_executed_is(loopback):
    task = small(loopback, "x86-64-4level").task()
    addr = task.mmap(4096, PROT_READ | PROT_EXEC).addr
    task.execute(addr)
    task = small(loopback, "x86-32").task()
    addr = task.mmap(4096, PROT_READ | PROT_WRITE).addr
    task.execute(addr)  # no NX bit: what may be read may be executed


@pytest.mark.interpreted
def test_five_levels_use_the_upper_half_only_for_who_asks(loopback):
    task = small(loopback, "x86-64-5level").task()
    assert task.mmap(4096).addr < 1 << 47
    high = task.mmap(4096, addr=1 << 50)
    assert high.addr == 1 << 50
    task.write(high.addr, b"far away")
    assert task.read(high.addr, 8) == b"far away"


@pytest.mark.interpreted
def test_a_walk_cache_saves_loads_and_changes_nothing_else(loopback):
    figures = []
    for entries in (0, 8):
        machine = small(
            loopback, "x86-64-4level", walk_cache=entries, l1={"entries": 2, "ways": 1}, l2={"entries": 2, "ways": 1}
        )
        task = machine.task()
        mapping = task.mmap(64 * 4096)
        mapping.touch()
        words = mapping.array()
        before = int(machine.cpu().walk_loads[0]), int(machine.cpu().walks)
        for i in range(0, 64 * 512, 512):
            words[i] = i
        assert [int(words[i]) for i in range(0, 64 * 512, 512)] == list(range(0, 64 * 512, 512))
        figures.append((int(machine.cpu().walk_loads[0]) - before[0], int(machine.cpu().walks) - before[1]))
    (loads, walks), (cached_loads, cached_walks) = figures
    assert walks == cached_walks and loads == 4 * walks
    assert cached_loads < 1.2 * walks


@pytest.mark.interpreted
def test_address_space_ids_keep_translations_over_a_switch(loopback):
    walks = []
    for asids in (0, 2):
        machine = small(loopback, "x86-64-4level", asids=asids)
        tasks = [machine.task(), machine.task()]
        addrs = [task.mmap(4096).addr for task in tasks]
        for task, addr in zip(tasks, addrs, strict=True):
            task.write(addr, b"%d" % task.pid)
        before = int(machine.cpu().walks)
        for _ in range(5):
            for task, addr in zip(tasks, addrs, strict=True):
                assert task.read(addr, 3) == b"%d" % task.pid
        walks.append(int(machine.cpu().walks) - before)
        tasks[0].mprotect(addrs[0], 4096, PROT_NONE)  # what a waiting address space lost is not found again
        assert tasks[1].read(addrs[1], 3) == b"%d" % tasks[1].pid
        with pytest.raises(SegmentationFault):
            tasks[0].read(addrs[0], 1)
        machine.audit()
    assert walks == [10, 0]


@pytest.mark.interpreted
@pytest.mark.parametrize("asids", [1, 2, 6])
def test_an_address_space_id_that_is_taken_from_the_loaded_address_space_knows_nothing_of_it(loopback, asids):
    """There is one address space more than there are ids, and the last comes while the first is loaded."""
    machine = small(loopback, "x86-64-4level", asids=asids)
    tasks = [machine.task() for _ in range(asids + 1)]
    (addr,) = {task.mmap(4096).addr for task in tasks}
    for task in tasks[:asids]:
        task.write(addr, b"%4d" % task.pid)
    tasks[0].read(addr, 4)
    assert tasks[asids].read(addr, 4) == bytes(4)
    tasks[asids].write(addr, b"last")
    assert [task.read(addr, 4) for task in tasks] == [b"%4d" % task.pid for task in tasks[:asids]] + [b"last"]
    machine.audit()


def test_paging_must_be_known():
    with pytest.raises(ConfigError, match="paging is 'vax', must be 'x86-64-4level' or"):
        load_topology(paging="vax")
    with pytest.raises(ConfigError, match="zone_layout is 'x86-64', must be 'x86-32' with paging 'x86-32'"):
        load_topology(paging="x86-32", zone_layout="x86-64")
