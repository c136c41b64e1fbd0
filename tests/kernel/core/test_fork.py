"""Processes: fork, vfork, threads, their ends, kill and wait."""

import errno

import numpy as np
import pytest

from numaemu import SegmentationFault
from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import i64
from numaemu.kernel.include.mm_types import pool_t
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.fault import copy_page_range
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.spec.param import EXIT_RECORDS
from numaemu.uapi import MAP_ANONYMOUS, MAP_SHARED, SIGKILL, SIGTERM, WNOHANG

pytestmark = pytest.mark.interpreted


def test_wait_tells_how_a_child_ended(two_nodes):
    task = two_nodes.task()
    children = [task.fork(cpu=n % 2) for n in range(3)]
    assert task.wait(flags=WNOHANG) is None
    children[1].exit(7)
    assert task.wait(children[0].pid, WNOHANG) is None
    assert task.wait() == (children[1].pid, 7 << 8)
    task.kill(children[2].pid, SIGTERM)
    task.kill(children[0].pid, 0)  # only looks
    children[0].kill(children[0].pid, SIGKILL)
    assert sorted([task.wait(), task.wait()]) == [(children[0].pid, SIGKILL), (children[2].pid, SIGTERM)]
    with pytest.raises(ChildProcessError):
        task.wait()
    with pytest.raises(OSError) as caught:
        task.kill(children[0].pid, 0)
    assert caught.value.errno == errno.ESRCH


def test_a_thread_is_no_child_but_its_children_are_the_process_s(two_nodes):
    task = two_nodes.task()
    thread = task.clone()
    child = thread.fork()
    child.exit(1)
    assert thread.wait(child.pid) == (child.pid, 1 << 8)
    other = thread.fork()
    thread.exit()
    other.exit(2)
    assert task.wait() == (other.pid, 2 << 8)
    with pytest.raises(ChildProcessError):
        task.wait()


def test_a_process_ends_with_its_last_thread(two_nodes):
    """delay_group_leader: a first task that ends before its threads is waited for with them; the status is still its own."""
    task = two_nodes.task()
    pool = pool_t.at(two_nodes.machine.task_pool)
    for last in ("thread", "leader"):
        child = task.fork(cpu=1)
        thread = child.clone(cpu=0)
        first, other = (child, thread) if last == "thread" else (thread, child)
        first.exit(3 if last == "thread" else 4)
        assert task.wait(flags=WNOHANG) is None and task.wait(child.pid, WNOHANG) is None
        area = other.mmap(4096).touch()  # the other one still runs
        with pytest.raises(ProcessLookupError):
            first.brk()
        if last == "thread":
            stranger = two_nodes.task()  # the number of the first is not given out again meanwhile
            assert stranger._number != child._number
            stranger.exit()
        assert other.load([area.addr]).tolist() == [0]
        other.exit(4 if last == "thread" else 3)
        assert task.wait() == (child.pid, 3 << 8)
        with pytest.raises(ChildProcessError):
            task.wait()
    returned = {int(i64.array(pool.returned)[n]) for n in range(pool.nr_returned)}
    assert {child._number, thread._number} <= returned and len(returned) == pool.nr_returned


@pytest.mark.parametrize("aim", ["leader", "thread"])
def test_a_signal_ends_a_process_with_all_its_threads(two_nodes, aim):
    task = two_nodes.task()
    child = task.fork()
    threads = [child.clone(cpu=cpu) for cpu in (0, 1)]
    if aim == "thread":
        child.exit(3)  # the signal is the process's status all the same
    task.kill(threads[1].pid if aim == "thread" else child.pid, SIGTERM)
    assert task.wait() == (child.pid, SIGTERM)
    for each in (child, *threads):
        with pytest.raises(ProcessLookupError):
            each.brk()
    child = task.fork()
    thread = child.clone()
    thread.kill(child.pid, SIGKILL)  # its own process: it comes last
    assert task.wait() == (child.pid, SIGKILL)
    task.exit()
    two_nodes.audit()


def test_children_that_nobody_waits_for_are_forgotten(two_nodes):
    task = two_nodes.task()
    machine = two_nodes.machine
    task.fork().exit(1)
    machine.next_exit += EXIT_RECORDS - 1  # as if so many had ended meanwhile
    last = task.fork()
    last.exit(2)
    assert task.wait() == (last.pid, 2 << 8)
    with pytest.raises(ChildProcessError):
        task.wait()


def test_vfork_shares_the_address_space(two_nodes):
    """The child is a process of its own: its end leaves the parent's memory, and the other way round."""
    task = two_nodes.task()
    area = task.mmap("64KiB").touch()
    child = task.vfork(cpu=1)
    child.store([area.addr], np.uint64(5))
    more = child.mmap("64KiB").touch()
    assert task.load([area.addr]).tolist() == [5] and two_nodes.mm(task).users == 2
    assert two_nodes.vmstat()["nr_anon_pages"] == 32
    task.exit()
    assert child.load([area.addr]).tolist() == [5]
    child.munmap(more.addr, more.nbytes)
    child.exit()
    assert two_nodes.vmstat()["nr_anon_pages"] == 0 and two_nodes.machine.vm_committed_as == 0
    two_nodes.audit()


def test_the_end_of_one_sharer_leaves_the_others_pages(two_nodes):
    task = two_nodes.task()
    private, shared = task.mmap("64KiB").touch(), task.mmap("64KiB", flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    child, thread = task.fork(cpu=1), task.clone(cpu=1)
    child.load(shared.pages())
    task.store(private.pages(), np.uint64(3))
    with pytest.raises(SegmentationFault):
        thread.load([0x1000])
    task.exit()
    assert thread.load(private.pages()).tolist() == [3] * 16
    assert 3 not in child.load(private.pages()).tolist()
    thread.exit()
    two_nodes.audit()
    child.exit()
    assert two_nodes.vmstat()["nr_shmem"] == 0 and two_nodes.machine.vm_committed_as == 0


def test_a_copy_may_be_written_at_once_only_without_other_threads(two_nodes):
    """Both ways of wp_page_copy leave one page each, writable and dirty."""
    for threads in (0, 1):
        task = two_nodes.task()
        area = task.mmap(4096).touch()
        child = task.fork()
        others = [child.clone(cpu=1) for _ in range(threads)]
        child.store([area.addr], np.uint64(9))
        assert two_nodes.pte(child, area.addr) & 0x42 == 0x42
        assert task.load([area.addr]).tolist() != [9]
        for each in (*others, child, task):
            each.exit()
        two_nodes.audit()


def test_sleep_moves_the_clock(two_nodes):
    task = two_nodes.task()
    before = task.clock_ns
    task.sleep(2.5)
    assert 2_500_000 <= task.clock_ns - before < 2_600_000


@pytest.mark.skipif(JIT, reason="looks into the kernel while it forks")
def test_nobody_takes_an_entry_away_while_fork_shares_its_page(two_nodes, monkeypatch):
    """Reclaim would put down in the parent's swap entry that the page is exclusive, though the child maps it by then: both
    would write to it. It holds the family's lock, and so does fork, from the parent's entry to the child's.
    """
    task, looks = two_nodes.task(), []
    task.mmap("64KiB").touch()
    share, install = copy_page_range.folio_dup_rmap, copy_page_range.set_pte

    def family_lock(pfn):
        return mapping_of(two_nodes.machine, page_of(two_nodes.machine, pfn).mapping).lock

    def watched_share(machine, cpu, pfn):
        looks.append(family_lock(pfn))
        share(machine, cpu, pfn)

    def watched_install(ptep, pte):
        looks.append(family_lock(copy_page_range.pte_pfn(pte)))
        install(ptep, pte)

    monkeypatch.setattr(copy_page_range, "folio_dup_rmap", watched_share)
    monkeypatch.setattr(copy_page_range, "set_pte", watched_install)
    task.fork()
    assert len(looks) == 32 and all(looks)
