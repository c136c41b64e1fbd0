"""mremap: where the mapping is then, what is in it, what it costs, and what Linux refuses."""

import errno

import numba
import numpy as np
import pytest

from numaemu import GFP_KERNEL, BusError, SegmentationFault, load_u64, store_u64
from numaemu.compiler.build import JIT
from numaemu.kernel.include.mm_types import VM_ACCOUNT, VM_LOCKED
from numaemu.uapi import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)

BASE, ELSEWHERE = 0x1000_0000, 0x2000_0000
RW, PRIVATE, SHARED = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS
PAGE = 4096

pytestmark = pytest.mark.interpreted


def fill(task, pages, addr=BASE, flags=PRIVATE):
    """A mapping whose page i holds the byte i + 1."""
    area = task.mmap(pages * PAGE, RW, flags, addr=addr)
    task.store(area.pages(), np.arange(1, pages + 1, dtype=np.uint8))
    return area


def ranges(loop, task):
    return [(int(v.start), int(v.end)) for v in loop.vmas(task) if int(v.start) < 1 << 46]


def committed(loop):
    return loop.machine.vm_committed_as


def test_growing_where_there_is_room(two_nodes):
    """| a |....   ->   | a     |"""
    task = two_nodes.task()
    fill(task, 2)
    before = committed(two_nodes)
    area = task.mremap(BASE, 2 * PAGE, 5 * PAGE)
    assert area.addr == BASE and ranges(two_nodes, task) == [(BASE, BASE + 5 * PAGE)]
    assert task.load(area.pages(), np.uint8).tolist() == [1, 2, 0, 0, 0]
    assert committed(two_nodes) == before + 3


def test_growing_up_to_an_equal_neighbour_merges(two_nodes):
    """| a |..| b |   ->   | a      |      but two if only a has pages: Linux 6.12 looks for an anon_vma in b"""
    task = two_nodes.task()
    task.mmap(2 * PAGE, RW, addr=BASE)
    task.mmap(PAGE, RW, addr=BASE + 4 * PAGE)
    task.mremap(BASE, 2 * PAGE, 4 * PAGE)
    assert ranges(two_nodes, task) == [(BASE, BASE + 5 * PAGE)]
    fill(task, 2, ELSEWHERE)
    task.mmap(PAGE, RW, addr=ELSEWHERE + 4 * PAGE)
    task.mremap(ELSEWHERE, 2 * PAGE, 4 * PAGE)
    assert ranges(two_nodes, task)[1:] == [
        (ELSEWHERE, ELSEWHERE + 4 * PAGE),
        (ELSEWHERE + 4 * PAGE, ELSEWHERE + 5 * PAGE),
    ]


def test_no_room_and_no_leave_to_move(two_nodes):
    task = two_nodes.task()
    fill(task, 2)
    task.mmap(PAGE, PROT_READ, addr=BASE + 2 * PAGE)
    with pytest.raises(OSError) as caught:
        task.mremap(BASE, 2 * PAGE, 3 * PAGE)
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_moving_to_grow(two_nodes, flags):
    """The pages come along, the frames stay, no fault is served again, and nothing is left at the old place."""
    task = two_nodes.task()
    area = fill(task, 3, flags=flags)
    task.mmap(PAGE, PROT_READ, addr=BASE + 3 * PAGE)
    frames = [two_nodes.pfn(task, int(a)) for a in area.pages()]
    before, faults = committed(two_nodes), task.counters()["task_minor_faults"]
    moved = task.mremap(BASE, 3 * PAGE, 6 * PAGE, MREMAP_MAYMOVE)
    assert moved.addr != BASE
    assert [two_nodes.pfn(task, int(a)) for a in moved.pages()[:3]] == frames
    assert task.load(moved.pages()[:3], np.uint8).tolist() == [1, 2, 3]
    assert task.counters()["task_minor_faults"] == faults
    assert committed(two_nodes) == before + (3 if flags == PRIVATE else 0)
    with pytest.raises(SegmentationFault):
        task.load([BASE], np.uint8)
    two_nodes.audit()


def test_shrinking(two_nodes):
    task = two_nodes.task()
    fill(task, 4)
    before = committed(two_nodes)
    assert task.mremap(BASE, 4 * PAGE, PAGE).addr == BASE
    assert ranges(two_nodes, task) == [(BASE, BASE + PAGE)] and committed(two_nodes) == before - 3
    assert two_nodes.mm(task).rss[1] == 1


def test_to_a_fixed_place_out_of_the_middle(two_nodes):
    """| a b c d |   | x x |   ->   | a |  | d |   | b c |"""
    task = two_nodes.task()
    fill(task, 4)
    fill(task, 2, ELSEWHERE)
    before = committed(two_nodes)
    moved = task.mremap(BASE + PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, ELSEWHERE)
    assert moved.addr == ELSEWHERE and task.load(moved.pages(), np.uint8).tolist() == [2, 3]
    assert ranges(two_nodes, task) == [
        (BASE, BASE + PAGE),
        (BASE + 3 * PAGE, BASE + 4 * PAGE),
        (ELSEWHERE, ELSEWHERE + 2 * PAGE),
    ]
    assert committed(two_nodes) == before - 2 and two_nodes.mm(task).total_vm == 33 + 4
    two_nodes.audit()


def test_back_to_the_old_place_merges_again(two_nodes):
    """The pages keep their number in the family, so the three parts are one mapping again."""
    task = two_nodes.task()
    fill(task, 3)
    task.mremap(BASE + PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, ELSEWHERE)
    task.mremap(ELSEWHERE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + PAGE)
    assert ranges(two_nodes, task) == [(BASE, BASE + 3 * PAGE)]
    assert task.load([BASE, BASE + PAGE, BASE + 2 * PAGE], np.uint8).tolist() == [1, 2, 3]


def test_dontunmap_leaves_an_empty_mapping(two_nodes):
    task = two_nodes.task()
    fill(task, 2)
    before = committed(two_nodes)
    moved = task.mremap(BASE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
    assert task.load(moved.pages(), np.uint8).tolist() == [1, 2]
    assert task.load([BASE, BASE + PAGE], np.uint8).tolist() == [0, 0]
    assert committed(two_nodes) == before + 2
    task.store([BASE], np.uint8(9))
    assert task.load([moved.addr], np.uint8).tolist() == [1]
    two_nodes.audit()


def test_over_several_leaf_tables(two_nodes):
    """8 MiB to a place that is not a multiple of 2 MiB off."""
    task = two_nodes.task()
    pages = 2048
    task.mmap(pages * PAGE, RW, addr=BASE)
    where = np.arange(0, pages, 37, dtype=np.uint64) * np.uint64(PAGE)
    task.store(np.uint64(BASE) + where, np.arange(len(where), dtype=np.uint16))
    new = ELSEWHERE + 5 * PAGE
    task.mremap(BASE, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, new)
    assert task.load(np.uint64(new) + where, np.uint16).tolist() == list(range(len(where)))
    two_nodes.audit()


def test_a_forked_copy_keeps_its_place(two_nodes):
    """The parent moves, the child does not; both still find their common pages, also when they migrate."""
    task = two_nodes.task()
    area = fill(task, 2)
    child = task.fork()
    moved = task.mremap(BASE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, ELSEWHERE)
    task.migrate_pages(0, 1)
    child.migrate_pages(0, 1)
    assert child.load(area.pages(), np.uint8).tolist() == task.load(moved.pages(), np.uint8).tolist() == [1, 2]
    task.store(moved.pages(), np.uint8(7))
    assert child.load(area.pages(), np.uint8).tolist() == [1, 2]
    two_nodes.audit()


def test_an_empty_range_of_a_shared_mapping_is_duplicated(two_nodes):
    task = two_nodes.task()
    area = fill(task, 2, flags=SHARED)
    copy = task.mremap(BASE, 0, 2 * PAGE, MREMAP_MAYMOVE)
    assert task.load(copy.pages(), np.uint8).tolist() == [1, 2]
    task.store(copy.pages(), np.uint8(5))
    assert task.load(area.pages(), np.uint8).tolist() == [5, 5]


def test_locked_memory_stays_locked_and_present(two_nodes):
    task = two_nodes.task()
    fill(task, 2)
    task.mlock(BASE, 2 * PAGE)
    moved = task.mremap(BASE, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, ELSEWHERE)
    assert two_nodes.mm(task).locked_vm == 4 and two_nodes.vmstat()["nr_mlock"] == 4
    assert task.mincore(moved.addr, 4 * PAGE).tolist() == [1, 1, 1, 1]
    vma = next(v for v in two_nodes.vmas(task) if int(v.start) == ELSEWHERE)
    assert vma.flags & (VM_LOCKED | VM_ACCOUNT) == VM_LOCKED | VM_ACCOUNT
    task.munmap(moved.addr, 4 * PAGE)
    assert two_nodes.mm(task).locked_vm == 0 and two_nodes.vmstat()["nr_mlock"] == 0


@pytest.mark.parametrize("args, error", [
    ((BASE, PAGE, PAGE, 8), errno.EINVAL),                                                     # no such flag
    ((BASE, PAGE, PAGE, MREMAP_FIXED, ELSEWHERE), errno.EINVAL),                               # fixed without move
    ((BASE, PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP), errno.EINVAL),                 # another length
    ((BASE + 1, PAGE, PAGE), errno.EINVAL),
    ((BASE, PAGE, 0), errno.EINVAL),
    ((BASE, 0, PAGE, MREMAP_MAYMOVE), errno.EINVAL),                                           # private: nothing to double
    ((BASE - PAGE, PAGE, PAGE), errno.EFAULT),                                                 # not mapped
    ((BASE, 5 * PAGE, 6 * PAGE, MREMAP_MAYMOVE), errno.EFAULT),                                # beyond the VMA
    ((BASE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + PAGE), errno.EINVAL),    # overlaps
    ((BASE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, ELSEWHERE + 1), errno.EINVAL),
    ((BASE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, 1 << 47), errno.EINVAL),
    ((BASE, 2 * PAGE, 1 << 47, MREMAP_MAYMOVE), errno.ENOMEM),
])  # fmt: skip
def test_refused(two_nodes, args, error):
    task = two_nodes.task()
    fill(task, 4)
    before = committed(two_nodes)
    with pytest.raises(OSError) as caught:
        task.mremap(*args)
    assert caught.value.errno == error
    assert ranges(two_nodes, task) == [(BASE, BASE + 4 * PAGE)] and committed(two_nodes) == before


def test_without_memory_for_tables_all_is_as_before(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    task, hog = loop.task(), loop.task()
    fill(task, 4)
    before = committed(loop)
    held, loop.machine.on_oom = [], 0  # nobody is killed: allocations fail
    while (pfn := hog.kernel.alloc_pages(GFP_KERNEL)) is not None:
        held.append(pfn)
    with pytest.raises(OSError) as caught:
        task.mremap(BASE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, 1 << 40)
    assert caught.value.errno == errno.ENOMEM
    for pfn in held:
        hog.kernel.free_pages(pfn)
    assert task.load(np.arange(BASE, BASE + 4 * PAGE, PAGE), np.uint8).tolist() == [1, 2, 3, 4]
    assert committed(loop) == before and loop.mm(task).total_vm == 33 + 4
    loop.audit()


@numba.njit(cache=True)
def write_on(cpu, address, flag):
    """Store rising numbers at one address until the flag is set; the last one."""
    number = 0
    while load_u64(cpu, flag) == 0:
        number += 1
        store_u64(cpu, address, np.uint64(number))
    return number


@pytest.mark.skipif(not JIT, reason="a kernel that runs on another CPU meanwhile")
def test_nobody_writes_through_the_old_address(machine):
    """A thread stores without end; its page is moved away below it. What was moved does not change any more."""
    task = machine.task(cpu=0)
    flag, area = task.mmap(PAGE, flags=SHARED).touch(), task.mmap(PAGE).touch()
    thread = task.clone(run_writer, area.addr, flag.addr, cpu=2)
    moved = []
    while len(moved) < 50:
        if task.load([area.addr])[0]:
            place = task.mremap(area.addr, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP).addr
            moved.append((place, task.load([place])[0]))
    task.store([flag.addr], np.uint64(1))
    last = thread.result(60)
    numbers = [number for _, number in moved]
    assert numbers == [task.load([place])[0] for place, _ in moved]
    assert numbers == sorted(numbers) and 0 < numbers[0] and numbers[-1] <= last
    task.exit()


def run_writer(task, address, flag):
    return task.call(write_on, address, flag)


def test_shared_memory_does_not_grow_with_its_mapping(two_nodes):
    """mremap makes room in the address space only: behind the object's end there is nothing, as behind a file's."""
    task = two_nodes.task()
    area = task.mmap(2 * PAGE, flags=SHARED)
    task.write(area.addr, b"here")
    longer = task.mremap(area.addr, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE)
    task.write(longer.addr + PAGE, b"still")
    for access in (lambda: task.write(longer.addr + 2 * PAGE, b"x"), lambda: task.read(longer.addr + 3 * PAGE, 1)):
        with pytest.raises(BusError, match="of shared memory, which was made with 8192"):
            access()
    assert task.read(longer.addr, 4) == b"here"
    two_nodes.audit()
