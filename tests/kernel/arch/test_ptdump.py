"""Page tables as task.walk shows them: against the tables themselves, and at no cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback

from numaemu.kernel.arch.ptdump import entry_text
from numaemu.spec.formats import FORMATS, LEVEL_NAMES


@pytest.fixture(scope="module", params=FORMATS)
def small(request):
    with Loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", paging=request.param) as machine:
        yield machine


@pytest.fixture(scope="module")
def task(small):
    return small.task()


@pytest.mark.interpreted
def test_a_walk_ends_where_the_tables_end_and_takes_no_time(small, task):
    memory = task.mmap(8192)
    before, ticks = task.clock_ns, small.cpu().tick
    assert [(row["text"], row["pfn"]) for row in task.walk(memory.addr)[-1:]] == [("none", None)]
    memory.touch()
    assert small.cpu().tick == ticks + 2 and before < task.clock_ns
    before = task.clock_ns
    rows = task.walk(memory.addr + 4097)
    assert [row["level"] for row in rows] == list(LEVEL_NAMES[small.topology.paging])
    assert rows[-1]["pfn"] == small.pfn(task, memory.addr + 4096) and rows[-1]["writable"]
    assert [upper["pfn"] << 12 for upper in rows[:-1]] == [lower["table"] for lower in rows[1:]]
    assert task.clock_ns == before


@pytest.mark.interpreted
def test_the_indices_make_up_the_address(small, task):
    @given(st.integers(0, 63))
    def check(page):
        addr = memory.addr + page * 4096
        shape = FORMATS[small.topology.paging]
        shifts = range(shape["pgdir_shift"], 11, -shape["table_bits"])
        found = sum(row["index"] << shift for row, shift in zip(task.walk(addr), shifts, strict=True))
        assert found == addr

    memory = task.mmap(64 * 4096).touch()
    check()


@pytest.mark.interpreted
def test_the_last_fault_says_what_the_hardware_does(task):
    memory = task.mmap(4096)
    task.load([memory.addr + 16])
    assert task.last_fault() == (memory.addr + 16, 0b100)  # user, read, not present
    task.touch(memory.addr + 8, 8)
    assert task.last_fault() == (memory.addr + 8, 0b111)  # the page of zeros is there, but not writable
    fresh = task.mmap(4096).touch()
    assert task.last_fault() == (fresh.addr, 0b110)


def test_entries_in_words():
    assert entry_text(0) == "none" and entry_text(0x1018) == "0x1018 (not present)"
    assert entry_text(0x1400067 | 1 << 63) == "pfn 0x1400 P R/W U/S A D NX"
