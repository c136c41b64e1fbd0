"""TLBs, page walk and the emulated clock, on page tables written by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback
from naive import Mmu

from numaemu.api.vectors import LOAD_MANY, STORE_MANY, expected_place
from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import u64
from numaemu.errors import SegmentationFault
from numaemu.hardware.paging import _PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_PRESENT, _PAGE_PSE, _PAGE_RW, _PAGE_USER
from numaemu.hardware.processor import READ, WRITE, cpu_t
from numaemu.hardware.tlb_sets import disordered_set, order_l2
from numaemu.hardware.walk import walk
from numaemu.mmu import clock_ns, tlb_flush_all, tlb_flush_page

PRESENT = int(_PAGE_PRESENT | _PAGE_USER)
RW, ACCESSED, DIRTY, PSE = int(_PAGE_RW), int(_PAGE_ACCESSED), int(_PAGE_DIRTY), int(_PAGE_PSE)
U = np.uint64
NODE_PAGES = 1024  # of each node in these machines
BASE = 0x40_0000  # virtual address whose leaf table is written


class Tables:
    """A page table in the first frames of a machine; pages are virtual page numbers.

    frame   8: pgd    9: pud    10: pmd    11: leaf table of BASE    from 16 on: data, `node` picks the node
    """

    def __init__(self, machine, table_nodes=(0, 0, 0, 0)):
        self.machine, self.table_nodes = machine, table_nodes
        self.frames = [node * NODE_PAGES + 8 + level for level, node in enumerate(table_nodes)]
        machine.cpu().cr3 = self.host(self.frames[0])
        for level in range(3):
            index = BASE >> (39 - 9 * level) & 511
            self.words(self.frames[level])[index] = self.frames[level + 1] << 12 | PRESENT | RW
        machine.cpu().on_fault = machine._callback(lambda *_: None)  # answers 0: not served

    def host(self, frame):
        return int(self.machine.machine.memory) + (frame << 12)

    def words(self, frame):
        return u64.array(self.host(frame))

    def entry(self, page):
        return int(self.words(self.frames[3])[page & 511])

    def map(self, page, frame, writable=True):
        self.words(self.frames[3])[page & 511] = frame << 12 | PRESENT | (RW if writable else 0)


def machine_of(**keywords):
    return Loopback(nodes=2, cpus_per_node=1, memory_per_node="4MiB", latency=[[80, 140], [140, 80]], **keywords)


def access(machine, addresses, write):
    """One vector of 8-byte accesses; how many were done before a fault."""
    cpu = machine.cpu()
    before = cpu.tick
    addresses, values = np.array(addresses, np.uint64), np.zeros(len(addresses), np.uint64)
    try:
        if write:
            STORE_MANY[8](cpu.address, addresses.ctypes.data, values.ctypes.data, len(addresses), 1)
        else:
            LOAD_MANY[8](cpu.address, addresses.ctypes.data, values.ctypes.data, len(addresses))
    except SegmentationFault:
        pass
    return cpu.tick - before


def figures(cpu):
    return {
        "l1_hits": cpu.tick - cpu.l2_hits - cpu.walks,
        "l2_hits": cpu.l2_hits,
        "walks": cpu.walks,
        "assists": cpu.assists,
        "walk_loads": sum(cpu.walk_loads.as_numpy().tolist()),
        "clock_ns": clock_ns(cpu),
    }


@st.composite
def geometries(draw, most_sets, most_ways=4):
    ways = draw(st.integers(1, most_ways))
    return {"entries": ways * draw(st.integers(1, most_sets)), "ways": ways, "latency_ns": draw(st.integers(0, 5))}


PAGES = 24
# fmt: off
steps = st.lists(st.tuples(st.sampled_from(["load", "store", "load", "store", "flush page", "flush all"]),
                           st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=6)), max_size=60)
# fmt: on


@pytest.mark.interpreted
@settings(max_examples=200 if JIT else 20)
@given(geometries(5), st.one_of(geometries(9), geometries(2, 18)),
       st.lists(st.sampled_from(["none", "ro", "rw", "rw"]), min_size=PAGES, max_size=PAGES), steps, st.booleans())  # fmt: skip
def test_two_levels_count_as_the_naive_mmu(l1, l2, kinds, todo, ordered):
    """Any geometry, any order of loads, stores and flushes: every figure and the clock are exactly the twin's."""
    with machine_of(l1=l1, l2=l2) as machine:
        tables, cpu, twin_pages = Tables(machine), machine.cpu(), {}
        first = BASE >> 12
        if ordered:
            order_l2(cpu)
        for i, kind in enumerate(kinds):
            node = i % 2
            twin_pages[first + i, 0] = {"tables": [0] * 4, "dirty": False, "writable": kind == "rw"}
            if kind != "none":
                tables.map(first + i, node * NODE_PAGES + 16 + i, kind == "rw")
                twin_pages[first + i, 0]["node"] = node
        twin = Mmu(
            (l1["entries"], l1["ways"]),
            (l2["entries"], l2["ways"]),
            twin_pages,
            [80, 140],
            l1["latency_ns"],
            l2["latency_ns"],
        )
        for what, offsets in todo:
            pages = [first + i for i in offsets]
            if what == "flush all":
                tlb_flush_all(cpu)
                twin.l1.forget_all()
                twin.l2.forget_all()
            elif what == "flush page":
                tlb_flush_page(cpu, np.uint64(pages[0] << 12))
                twin.l1.forget((pages[0], 0))
                twin.l2.forget((pages[0], 0))
            else:
                expected = 0
                while expected < len(pages) and twin.access(pages[expected], what == "store"):
                    expected += 1
                assert access(machine, [page << 12 for page in pages], what == "store") == expected
            assert figures(cpu) == {name: getattr(twin, name) for name in figures(cpu)}
            assert disordered_set(cpu) < 0


HUGE = BASE + (2 << 20)  # two huge pages follow the table of BASE
places = st.one_of(st.integers(0, 4), st.integers(512, 512 + 1023))  # pages behind BASE: small ones, huge ones
# fmt: off
mixed = st.lists(st.tuples(st.sampled_from(["load", "store", "load", "store", "flush page", "flush all"]),
                           st.lists(places, min_size=1, max_size=8)), max_size=40)
# fmt: on


@pytest.mark.interpreted
@settings(max_examples=150 if JIT else 15)
@given(
    geometries(4),
    st.one_of(geometries(6), geometries(2, 9)),
    st.lists(st.sampled_from(["ro", "rw"]), min_size=2, max_size=2),
    mixed,
    st.booleans(),
)
def test_huge_entries_among_small_ones_count_as_the_naive_mmu(l1, l2, kinds, todo, ordered):
    """2 MiB entries in the same sets as 4 KiB ones: hits, LRU, assists, walks of three levels, flushes through any address."""
    with machine_of(l1=l1, l2=l2) as machine:
        tables, cpu, first = Tables(machine), machine.cpu(), BASE >> 12
        if ordered:
            order_l2(cpu)
        twin_pages = {
            (first + i, 0): {"tables": [0] * 4, "dirty": False, "writable": True, "node": 0} for i in range(5)
        }
        for i in range(5):
            tables.map(first + i, 16 + i)
        for i, kind in enumerate(kinds):
            writable = RW if kind == "rw" else 0
            tables.words(tables.frames[2])[(HUGE >> 21) + i & 511] = (
                (i * NODE_PAGES + 512) << 12 | PRESENT | PSE | writable
            )
            twin_pages[(HUGE >> 21) + i, 1] = {"tables": [0] * 3, "dirty": False, "writable": kind == "rw", "node": i}
        twin = Mmu(
            (l1["entries"], l1["ways"]),
            (l2["entries"], l2["ways"]),
            twin_pages,
            [80, 140],
            l1["latency_ns"],
            l2["latency_ns"],
        )
        for what, offsets in todo:
            pages = [first + i for i in offsets]
            if what == "flush all":
                tlb_flush_all(cpu)
                twin.l1.forget_all()
                twin.l2.forget_all()
            elif what == "flush page":
                tlb_flush_page(cpu, np.uint64(pages[0] << 12))
                twin.l1.forget(twin.page_of(pages[0]))
                twin.l2.forget(twin.page_of(pages[0]))
            else:
                expected = 0
                while expected < len(pages) and twin.access(pages[expected], what == "store"):
                    expected += 1
                assert access(machine, [page << 12 for page in pages], what == "store") == expected
            assert figures(cpu) == {name: getattr(twin, name) for name in figures(cpu)}
            assert disordered_set(cpu) < 0


@pytest.mark.interpreted
def test_a_huge_page_is_one_piece_of_memory():
    """What is stored through one address lies where the frame lies; every 4 KiB of it is found by one entry."""
    with machine_of() as machine:
        tables, cpu = Tables(machine), machine.cpu()
        tables.words(tables.frames[2])[HUGE >> 21 & 511] = 512 << 12 | PRESENT | PSE | RW
        addresses = [HUGE + 4096 * i + 8 * (i % 512) for i in range(512)]
        assert access(machine, addresses, True) == 512
        assert figures(cpu)["walks"] == 1
        store = np.arange(512, dtype=np.uint64) + 7
        where = np.array(addresses, np.uint64)
        STORE_MANY[8](cpu.address, where.ctypes.data, store.ctypes.data, 512, 1)
        assert [int(u64.array(tables.host(512 + i))[i % 512]) for i in range(512)] == store.tolist()


@pytest.mark.interpreted
@given(
    st.dictionaries(st.integers(0, 511), st.tuples(st.integers(16, 900), st.booleans()), max_size=20),
    st.lists(st.tuples(st.integers(0, 511), st.booleans()), max_size=30),
)
def test_walk_finds_what_the_table_says(mapped, walks):
    """The walk against a dictionary: the frame, permission, and A and D set by exactly the walks that may."""
    with machine_of() as machine:
        tables, cpu = Tables(machine), machine.cpu()
        first = BASE >> 12
        bits = {}
        for page, (frame, writable) in mapped.items():
            tables.map(first + page, frame, writable)
            bits[page] = frame << 12 | PRESENT | (RW if writable else 0)
        for page, write in walks:
            got = int(walk(cpu, np.uint64((first + page) << 12 | 0x123), WRITE if write else READ))
            if page not in mapped or write and not mapped[page][1]:
                assert got == 0
            else:
                bits[page] |= ACCESSED | (DIRTY if write else 0)
                assert got == bits[page]
        assert {page: tables.entry(first + page) for page in mapped} == bits


@pytest.mark.interpreted
def test_an_upper_entry_that_forbids_writing_holds_below():
    with machine_of() as machine:
        tables = Tables(machine)
        tables.map(BASE >> 12, 16)
        pmd = tables.words(tables.frames[2])
        pmd[BASE >> 21 & 511] = int(pmd[BASE >> 21 & 511]) & ~RW
        assert access(machine, [BASE], True) == 0
        assert access(machine, [BASE], False) == 1
        assert tables.entry(BASE >> 12) & DIRTY == 0


@pytest.mark.interpreted
def test_kernel_pages_are_not_for_users():
    with machine_of() as machine:
        tables = Tables(machine)
        tables.words(tables.frames[3])[BASE >> 12 & 511] = 16 << 12 | int(_PAGE_PRESENT) | RW
        assert access(machine, [BASE], False) == 0


# an access that hits in the L1 costs L1 + memory; in the L2 besides its latency; a walk besides one load a table
COSTS = {"l1": 1 + 0, "l2": 1 + 7, "walk": 1 + 7}


@pytest.mark.interpreted
@pytest.mark.parametrize("level", COSTS)
@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("table_nodes", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1)])
def test_exact_cost_of_one_load(level, node, table_nodes):
    """CPU 0 loads from `node`; the tables lie on `table_nodes`."""
    latency = [80, 140]
    with machine_of(
        l1={"entries": 1, "ways": 1, "latency_ns": 1}, l2={"entries": 2, "ways": 2, "latency_ns": 7}
    ) as machine:
        tables, cpu = Tables(machine, table_nodes), machine.cpu()
        page = BASE >> 12
        tables.map(page, node * NODE_PAGES + 16)
        tables.map(page + 1, 17)
        if level != "walk":
            access(machine, [BASE], False)
        if level == "l2":
            access(machine, [BASE + 4096], False)  # pushes the page out of the L1
        before = clock_ns(cpu)
        access(machine, [BASE], False)
        expected = COSTS[level] + latency[node]
        if level == "walk":
            expected += sum(latency[n] for n in table_nodes)
        assert clock_ns(cpu) - before == expected


@pytest.mark.interpreted
def test_what_a_vector_asks_the_host_for_follows_the_tables_behind_a_flush():
    with machine_of() as machine:
        tables, cpu = Tables(machine), machine.cpu()
        tables.map(BASE >> 12, 16)
        assert expected_place(cpu, U(BASE + 8)) == tables.host(16) + 8
        assert expected_place(cpu, U(BASE + (1 << 21))) == 0
        tables.map(BASE >> 12, 17)  # the table is known, its entry is looked at each time
        assert expected_place(cpu, U(BASE)) == tables.host(17)
        other = 18
        tables.words(other)[(BASE >> 12) & 511] = 19 << 12 | PRESENT | RW
        tables.words(tables.frames[2])[(BASE >> 21) & 511] = other << 12 | PRESENT | RW
        tlb_flush_page(cpu, U(BASE))
        assert expected_place(cpu, U(BASE)) == tables.host(19)


@pytest.mark.interpreted
def test_accesses_of_a_vector_to_one_page_cost_like_single_ones():
    with machine_of() as machine:
        tables, cpu = Tables(machine), machine.cpu()
        tables.map(BASE >> 12, 16)
        access(machine, [BASE + 8 * i for i in range(10)], False)
        assert figures(cpu) | {"clock_ns": 0} == {
            "l1_hits": 9,
            "l2_hits": 0,
            "walks": 1,
            "assists": 0,
            "walk_loads": 4,
            "clock_ns": 0,
        }


def test_cpu_struct_keeps_contended_words_in_lines_of_their_own():
    for field in ("ipi_pending", "reply_value", "inside", "tick", "l1", "l2"):
        assert cpu_t.offsets[field] % 64 == 0, field
    assert cpu_t.nbytes % 64 == 0
