"""Which VMAs become one and which stay apart, as Linux 6.12 decides it. Each case is drawn: capitals have pages."""

import numpy as np
import pytest

from numaemu.kernel.include.mm_types import VM_ACCOUNT
from numaemu.uapi import (
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_RANDOM,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
)

BASE, PAGE, RW = 0x1000_0000, 4096, PROT_READ | PROT_WRITE
PRIVATE, SHARED = MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS

pytestmark = pytest.mark.interpreted


def put(task, page, pages=1, prot=RW, flags=PRIVATE):
    task.mmap(pages * PAGE, prot, flags | MAP_FIXED, addr=BASE + page * PAGE)


def touch(task, *pages):
    task.store(np.array([BASE + page * PAGE for page in pages], np.uint64), np.uint8(1))


def drawn(loop, task):
    """Sizes of the test's VMAs in pages, by address."""
    return [int(v.end - v.start) // PAGE for v in loop.vmas(task) if BASE <= v.start < BASE + (1 << 24)]


def test_a_gap_is_filled(two_nodes):
    """|a|.|c|  ->  |abc|, whichever side has pages"""
    for left, right in ((False, False), (True, False), (False, True)):
        task = two_nodes.task()
        put(task, 0), put(task, 2)
        touch(task, *[0] * left, *[2] * right)
        put(task, 1)
        assert drawn(two_nodes, task) == [3] if left + right < 2 else [2, 1]


def test_two_with_pages_of_their_own_stay_apart(two_nodes):
    """|A|.|C|  ->  |Ab|C|: what is put between goes to the lower one"""
    task = two_nodes.task()
    put(task, 0), put(task, 2)
    touch(task, 0, 2)
    put(task, 1)
    assert drawn(two_nodes, task) == [2, 1]


def test_a_neighbour_s_anon_vma_is_taken_although_permissions_differ(two_nodes):
    """|A|b|, b read-only until A has pages: both get the same anon_vma, so they become one later"""
    task = two_nodes.task()
    put(task, 0), put(task, 1, prot=PROT_READ)
    touch(task, 0)
    task.mprotect(BASE, PAGE, PROT_READ)
    assert drawn(two_nodes, task) == [1, 1]  # A may not go into b, which has none
    task.mprotect(BASE, PAGE, RW)
    put(task, 1, prot=PROT_READ | 4)
    task.mprotect(BASE + PAGE, PAGE, RW | 4)
    touch(task, 1)  # takes A's
    task.mprotect(BASE + PAGE, PAGE, RW)
    assert drawn(two_nodes, task) == [2]


def test_what_has_pages_does_not_go_into_a_neighbour_without(two_nodes):
    """|a|B| with B's permission changed to a's: two; |A|b| likewise with b's changed: one. So until Linux 6.16."""
    task = two_nodes.task()
    put(task, 0), put(task, 1, prot=RW | 4)
    touch(task, 1)
    task.mprotect(BASE + PAGE, PAGE, RW)
    assert drawn(two_nodes, task) == [1, 1]
    put(task, 4), put(task, 5, prot=RW | 4)
    touch(task, 4)
    task.mprotect(BASE + 5 * PAGE, PAGE, RW)
    assert drawn(two_nodes, task) == [1, 1, 2]


def test_a_forked_vma_takes_no_new_neighbour(two_nodes):
    """|A| forked, then |A|b|: one in the parent, two in the child (list_is_singular)"""
    task = two_nodes.task()
    put(task, 0)
    touch(task, 0)
    child = task.fork()
    put(task, 1), put(child, 1)
    assert (drawn(two_nodes, task), drawn(two_nodes, child)) == ([2], [1, 1])


def test_pieces_are_strangers_after_a_fork(two_nodes):
    """|A A|r|A|: the child's three pieces have three anon_vmas, the parent's one"""
    task = two_nodes.task()
    put(task, 0, 4)
    touch(task, 0, 1, 2, 3)
    task.mprotect(BASE + 2 * PAGE, PAGE, PROT_READ)
    child = task.fork()
    for each in (task, child):
        each.mprotect(BASE + 2 * PAGE, PAGE, RW)
    assert (drawn(two_nodes, task), drawn(two_nodes, child)) == ([4], [2, 1, 1])
    two_nodes.audit()


def test_shared_objects_stay_apart(two_nodes):
    task = two_nodes.task()
    put(task, 0, 2, flags=SHARED), put(task, 2, flags=SHARED)
    task.mprotect(BASE + PAGE, PAGE, PROT_READ)
    task.mprotect(BASE + PAGE, PAGE, RW)
    assert drawn(two_nodes, task) == [2, 1]


def test_advice_splits_and_merges(two_nodes):
    task = two_nodes.task()
    put(task, 0, 4)
    task.madvise(BASE, PAGE, MADV_RANDOM)
    assert drawn(two_nodes, task) == [1, 3]
    task.madvise(BASE, PAGE, MADV_NORMAL)
    assert drawn(two_nodes, task) == [4]
    task.madvise(BASE, PAGE, MADV_NOHUGEPAGE)
    task.madvise(BASE, PAGE, MADV_RANDOM)
    task.madvise(BASE, PAGE, MADV_NORMAL)
    assert drawn(two_nodes, task) == [1, 3]  # NOHUGEPAGE stays
    task.madvise(BASE + 3 * PAGE, PAGE, MADV_DONTFORK)
    assert drawn(two_nodes, task.fork()) == [1, 2]
    task.madvise(BASE + 3 * PAGE, PAGE, MADV_DOFORK)
    assert drawn(two_nodes, task) == [1, 3]


def test_what_is_wiped_on_fork(two_nodes):
    task = two_nodes.task()
    put(task, 0, 2)
    touch(task, 0, 1)
    task.madvise(BASE, PAGE, MADV_WIPEONFORK)
    child = task.fork()
    assert child.load([BASE, BASE + PAGE], np.uint8).tolist() == [0, 1]
    assert task.load([BASE, BASE + PAGE], np.uint8).tolist() == [1, 1]


def test_a_read_only_mapping_is_charged_when_it_becomes_writable(two_nodes):
    """And as long as it was never touched, the charge goes when it is read-only again."""
    task, machine = two_nodes.task(), two_nodes.machine
    before = machine.vm_committed_as
    put(task, 0, 4, prot=PROT_READ)
    assert machine.vm_committed_as == before
    task.mprotect(BASE, 2 * PAGE, RW)
    assert machine.vm_committed_as == before + 2
    task.mprotect(BASE, 2 * PAGE, PROT_READ)
    assert machine.vm_committed_as == before and drawn(two_nodes, task) == [4]
    task.mprotect(BASE, 2 * PAGE, RW)
    touch(task, 0)
    task.mprotect(BASE, 2 * PAGE, PROT_READ)
    assert machine.vm_committed_as == before + 2
    first = next(v for v in two_nodes.vmas(task) if v.start == BASE)
    assert first.flags & VM_ACCOUNT
    task.munmap(BASE, 4 * PAGE)
    assert machine.vm_committed_as == before
