"""What the kernel's work costs in emulated time: each cost scales with what is done."""

import numpy as np
import pytest

from numaemu.compiler.build import JIT
from numaemu.kernel.core import smp
from numaemu.kernel.core.smp import read_lock, spin_lock, write_lock
from numaemu.spec.machine_file import DEFAULT_COST

pytestmark = pytest.mark.interpreted
FREE = dict.fromkeys(DEFAULT_COST, 0)
MILLION = (
    1_000_000  # far above what the accesses of an operation take together: the quotient says how often it was paid
)


@pytest.fixture
def priced(loopback):
    """A machine on which nothing costs anything but what is named."""

    def make(**costs):
        return loopback(nodes=2, cpus_per_node=2, memory_per_node="32MiB", cost=FREE | costs)

    return make


def huge_pages(loop, task, nbytes):
    """Address of a mapping that gets huge pages."""
    loop.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    return task.mmap(nbytes).addr  # whole multiples of 2 MiB are aligned


def paid(loop, work, price=MILLION, cpu=0):
    """How often a price was paid while something is done on a CPU."""
    before = loop.cpu(cpu).clock_base_ns
    work()
    return (loop.cpu(cpu).clock_base_ns - before) // price


@pytest.mark.parametrize("targets", [0, 1, 2, 3])
def test_a_shootdown_costs_its_sender_for_each_target(priced, targets):
    loop = priced(shootdown_ns=100 * MILLION, shootdown_target_ns=MILLION)
    task = loop.task()
    area = task.mmap("4KiB").touch()
    for cpu in range(1, 1 + targets):
        task.clone(cpu=cpu).load([area.addr])
    assert paid(loop, lambda: task.munmap(area.addr, 4096)) == (100 + targets if targets else 0)


def test_a_flush_costs_its_pages_or_all(priced):
    loop = priced(flush_page_ns=MILLION, flush_all_ns=1000 * MILLION)
    task = loop.task()
    assert paid(loop, lambda: task.mmap("4KiB").touch().munmap()) == 1
    assert paid(loop, lambda: task.mmap("32KiB").touch().munmap()) == 8
    assert paid(loop, lambda: task.mmap("256KiB").touch().munmap()) == 1000  # more than 33 pages: the whole TLB


def test_a_huge_page_is_flushed_as_one(priced):
    loop = priced(flush_page_ns=MILLION, flush_all_ns=1000 * MILLION)
    task = loop.task()
    huge = huge_pages(loop, task, 4 << 20)
    task.touch(huge, 2 << 20)
    assert paid(loop, lambda: task.munmap(huge, 2 << 20)) == 1


def test_fork_costs_an_entry_for_each_page_that_is_there(priced):
    loop = priced(fork_entry_ns=MILLION)
    task = loop.task()
    empty = paid(loop, task.fork)
    task.mmap("64KiB").touch()
    task.mmap("64KiB")  # nothing is there yet
    assert paid(loop, task.fork) == empty + 16


def test_fork_costs_a_table_for_each_that_it_makes(priced):
    loop = priced(fork_table_ns=MILLION)
    task = loop.task()
    child = task.fork()
    assert paid(loop, task.fork) == loop.mm(child).pgtables
    area = task.mmap("4MiB")
    task.store([area.addr, area.addr + (2 << 20)], 1)
    child = task.fork()
    assert paid(loop, task.fork) == loop.mm(child).pgtables >= 2


def test_fork_of_huge_pages_costs_an_entry_for_512(priced):
    loop = priced(fork_entry_ns=MILLION)
    task = loop.task()
    empty = paid(loop, task.fork)
    huge = huge_pages(loop, task, 4 << 20)
    task.touch(huge, 4 << 20)
    assert loop.vmstat()["thp_fault_alloc"] == 2
    assert paid(loop, task.fork) == empty + 2


def test_clearing_a_huge_page_costs_512_times_a_small_one(priced):
    loop = priced(clear_page_ns=MILLION)
    task = loop.task()
    huge = huge_pages(loop, task, 4 << 20)
    tables = paid(loop, lambda: task.touch(huge, 4096))
    assert 512 <= tables <= 512 + 3  # with the table that is laid by, and those above it


def test_each_page_that_moves_costs_beyond_its_copy(priced):
    loop = priced(migrate_page_ns=MILLION, copy_page_ns=1000 * MILLION)
    task = loop.task()
    area = task.mmap("64KiB").touch()
    pages = area.pages().tolist()
    assert paid(loop, lambda: task.move_pages(pages[:5], 1)) == 5 * 1001
    assert paid(loop, lambda: task.move_pages(pages[:5], 1)) == 0  # they are there
    assert task.node_of(pages[4]) == 1


@pytest.mark.skipif(JIT, reason="puts a step of another CPU into a Python function")
@pytest.mark.parametrize("take", [spin_lock, read_lock, write_lock])
def test_a_lock_costs_only_a_cpu_that_had_to_wait(priced, monkeypatch, take):
    loop = priced(lock_handover_ns=MILLION)
    cpu, memory = loop.cpu(0), np.zeros(1, np.int64)
    word = int(memory.ctypes.data)
    assert paid(loop, lambda: take(cpu, word)) == 0
    memory[0] = -1 << 63 if take is not spin_lock else 2  # somebody else has it

    def gone(_cpu, _tries):
        memory[0] = 0

    monkeypatch.setattr(smp, "relax", gone)
    assert paid(loop, lambda: take(cpu, word)) == 1
