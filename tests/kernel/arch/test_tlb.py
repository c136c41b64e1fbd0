"""Shootdowns: who is told, what is forgotten, who acknowledges."""

import numpy as np
import pytest

from numaemu import MachineCheck
from numaemu.api.vectors import LOAD_MANY
from numaemu.compiler.atomic import exchange
from numaemu.compiler.build import JIT
from numaemu.hardware.paging import entry_exchange
from numaemu.hardware.processor import TAG_VALID
from numaemu.kernel.arch import tlb
from numaemu.kernel.arch.pgtable import pte_offset
from numaemu.kernel.arch.tlb import TLB_SINGLE_PAGE_FLUSH_CEILING, answer_ipi, flush_tlb_mm_range
from numaemu.kernel.audit.tlb import audit_tlbs
from numaemu.kernel.syscalls import common as syscalls
from numaemu.uapi import PROT_READ

pytestmark = pytest.mark.interpreted
LARGE_TLB = dict(l1={"entries": 64, "ways": 4}, l2={"entries": 128, "ways": 4})


@pytest.fixture
def four(loopback):
    """Two nodes, four CPUs, TLBs that hold 64 pages."""
    return loopback(nodes=2, cpus_per_node=2, memory_per_node="16MiB", **LARGE_TLB)


def held(loop, cpu, area):
    """Which pages of a mapping a CPU's L1 TLB holds, by number."""
    state, pages = loop.cpu(cpu), []
    tags = {int(state.l1[i].tag) for i in range(int(state.l1_sets) * state.l1_ways)}
    for i, address in enumerate(area.pages().tolist()):
        if address | int(TAG_VALID) in tags:
            pages.append(i)
    return pages


def received(loop):
    return [loop.cpu(cpu).shootdowns_received for cpu in range(4)]


def events(loop, name):
    return loop.vmstat()[f"nr_tlb_{name}"]


def load_and_stay_inside(loop, task, area):
    """A CPU in the middle of its accesses: between two of them, for the test."""
    cpu = loop.cpu(task.cpu)
    syscalls.begin_access(cpu.address, task._number)
    pages, values = area.pages(), np.zeros(len(area.pages()), np.uint64)
    LOAD_MANY[8](cpu.address, pages.ctypes.data, values.ctypes.data, len(pages))


@pytest.mark.parametrize(
    "pages, single", [(1, True), (TLB_SINGLE_PAGE_FLUSH_CEILING, True), (TLB_SINGLE_PAGE_FLUSH_CEILING + 1, False)]
)
def test_up_to_33_pages_are_flushed_one_by_one(four, pages, single):
    task = four.task()
    other = task.mmap("4KiB").touch()
    area = task.mmap(pages << 12).touch()
    before = events(four, "local_flush_one"), events(four, "local_flush_all")
    area.munmap()
    ones, alls = events(four, "local_flush_one") - before[0], events(four, "local_flush_all") - before[1]
    assert (ones, alls) == ((pages, 0) if single else (0, 1))
    assert held(four, 0, area) == []
    assert held(four, 0, other) == ([0] if single else [])


def test_a_cpu_inside_answers_between_two_accesses(four):
    """CPU 0 unmaps one of two pages, CPU 3 runs a thread: it forgets that page only, and is the only one asked."""
    task = four.task()
    area = task.mmap("8KiB").touch()
    thread = task.clone(cpu=3)
    load_and_stay_inside(four, thread, area)
    assert held(four, 3, area) == [0, 1]
    task.munmap(area.addr, 4096)
    assert held(four, 3, area) == [1]
    assert received(four) == [0, 0, 0, 1]
    assert four.cpu(0).flush_acks == 0
    syscalls.end_access(four.cpu(3).address)


def test_the_coordinator_answers_for_a_cpu_outside(four):
    """CPU 1 has the address space loaded but accesses nothing: nobody waits for it, it catches up on its way in."""
    task = four.task()
    area = task.mmap("8KiB").touch()
    thread = task.clone(cpu=1)
    thread.load(area.pages())
    task.munmap(area.addr, 4096)
    assert received(four) == [0, 0, 0, 0]
    assert four.cpu(0).flush_acks == 0 and int(four.cpu(1).ipi_from[0]) == 0
    assert held(four, 1, area) == [0, 1]  # still there, and never used again:
    with pytest.raises(Exception, match="not mapped"):
        thread.load([area.addr])
    assert held(four, 1, area) == []  # one generation behind: everything went


@pytest.mark.skipif(JIT, reason="looks into the coordinator's loop, which is compiled")
def test_nobody_goes_on_before_the_coordinator_is_done(four, monkeypatch):
    """It reads flush_mask until its loop ends: an initiator that goes on earlier would change it under its hands.

    Each CPU that is told answers at once, before the coordinator looks at the next one.
    """
    task = four.task()
    area = task.mmap("8KiB").touch()
    thread = task.clone(cpu=3)
    load_and_stay_inside(four, thread, area)
    acks = []

    def exchange_and_answer(struct, name, value):
        before = exchange(struct, name, value)
        if name == "ipi_pending" and value == 1:
            answer_ipi(four.cpu(3).address, 0, 0)
            acks.append(int(four.cpu(0).flush_acks))
        return before

    monkeypatch.setattr(tlb, "exchange", exchange_and_answer)
    task.munmap(area.addr, 4096)
    assert received(four) == [0, 0, 0, 1]
    assert acks == [1] and four.cpu(0).flush_acks == 0
    syscalls.end_access(four.cpu(3).address)


def test_only_cpus_that_loaded_the_address_space_are_told(four):
    """A process on each CPU; one of them has threads on CPUs 0 and 2. The others hear nothing."""
    tasks = [four.task(cpu) for cpu in range(4)]
    area = tasks[0].mmap("4KiB").touch()
    thread = tasks[0].clone(cpu=2)
    thread.load([area.addr])
    assert int(four.mm(tasks[0]).cpumask[0]) == 0b101
    areas = [task.mmap("4KiB").touch() for task in (tasks[1], tasks[3])]
    syscalls.begin_access(four.cpu(1).address, tasks[1]._number)
    load_and_stay_inside(four, thread, area)
    tasks[0].mprotect(area.addr, 4096, PROT_READ)
    assert received(four) == [0, 0, 1, 0]
    assert held(four, 1, areas[0]) == [0] and held(four, 3, areas[1]) == [0]


def test_a_cpu_that_missed_a_flush_forgets_everything(four):
    """Generations 2 and 3 pass while CPU 1 is outside; told of the third alone it cannot trust single pages."""
    task = four.task()
    area = task.mmap("12KiB").touch()
    thread = task.clone(cpu=1)
    thread.load(area.pages())
    task.munmap(area.addr, 4096)
    four.cpu(1).inside = 1  # comes in without looking: what the next flush must survive
    task.munmap(area.addr + 4096, 4096)
    assert held(four, 1, area) == []
    assert four.cpu(1).tlb_gen == four.mm(task).tlb_gen
    four.cpu(1).inside = 0


def test_switching_to_another_task_takes_the_cpu_out_of_the_mask(four):
    one, two = four.task(0), four.task(0)
    area = one.mmap("4KiB").touch()
    assert int(four.mm(one).cpumask[0]) == 1
    two.mmap("4KiB", addr=0x1000_0000).touch()
    assert int(four.mm(one).cpumask[0]) == 0 and int(four.mm(two).cpumask[0]) == 1
    assert held(four, 0, area) == []


def test_one_message_for_a_batch(four):
    """munmap of 64 pages with two other CPUs on them: one request, one answer each."""
    task = four.task()
    area = task.mmap("256KiB").touch()
    threads = [task.clone(cpu=cpu) for cpu in (1, 2)]
    for thread in threads:
        load_and_stay_inside(four, thread, area)
    before = events(four, "remote_flush")
    area.munmap()
    assert events(four, "remote_flush") - before == 1
    assert received(four) == [0, 1, 1, 0]
    assert held(four, 1, area) == held(four, 2, area) == []


def test_frames_are_not_free_before_the_acknowledgement(four):
    """While the flush waits for CPU 1, the unmapped frame is in nobody's free list."""
    task = four.task()
    area = task.mmap("4KiB").touch()
    pfn = four.pfn(task, area.addr)
    thread = task.clone(cpu=1)
    load_and_stay_inside(four, thread, area)
    seen, deliver = [], four.deliver

    def look():
        seen.append(four.page(pfn).refcount)
        deliver()

    four.deliver = look
    area.munmap()
    assert seen and min(seen) > 0 and four.page(pfn).refcount == 0


def test_flush_of_an_address_space_that_is_loaded_elsewhere_only(four):
    """The initiator does not run the address space (migrate_pages of another process): it keeps its own TLB."""
    mine, other = four.task(0), four.task(1)
    kept, area = mine.mmap("4KiB").touch(), other.mmap("4KiB").touch()
    load_and_stay_inside(four, other, area)
    number = four.cpu(1).mm
    flush_tlb_mm_range(four.cpu(0), number, np.uint64(area.addr), np.uint64(area.addr + 4096))
    assert held(four, 0, kept) == [0] and held(four, 1, area) == []


# -- the audit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["l1", "l2"])
@pytest.mark.parametrize("wrong", ["frame", "writable", "gone", "waiting"])
def test_the_audit_holds_tlb_entries_against_page_tables(loopback, level, wrong):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", asids=2, **LARGE_TLB)
    task, other = loop.task(), loop.task()
    area = task.mmap("8KiB").touch()
    task.mprotect(area.addr, 4096, PROT_READ)
    task.load(area.pages())
    if wrong == "waiting":
        other.mmap("4KiB").touch()
    loop.audit()
    entries = getattr(loop.cpu(), level)
    slots = [entries[i] for i in range(128 if level == "l2" else 64)]
    entry = next(slot for slot in slots if slot.tag >> 12 == area.addr >> 12)
    if wrong in ("frame", "waiting"):
        entry.host += 4096
    elif wrong == "writable":
        entry.wtag = entry.tag
    else:
        entry_exchange(pte_offset(loop.machine, loop.mm(task), np.uint64(area.addr)), np.uint64(0))
    with pytest.raises(MachineCheck, match=f"CPU 0: its TLB translates {area.addr:#x}"):
        audit_tlbs(loop.machine)


def test_the_audit_finds_a_table_in_the_page_walk_cache_that_has_gone(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", walk_cache=8, **LARGE_TLB)
    task = loop.task()
    task.mmap("8KiB").touch()
    loop.audit()
    loop.cpu().walk_cache[0].table += 4096
    with pytest.raises(MachineCheck, match="CPU 0: its page-walk cache leads from"):
        loop.audit()


def test_the_audit_finds_a_flush_that_never_came(four):
    four.mm(four.task()).tlb_flush_pending += 1
    with pytest.raises(MachineCheck, match="1 flushes are still to come"):
        four.audit()
