"""What another CPU does at the worst moment: its step is put in at one point, in place of a function of the kernel.

Compiled functions cannot be replaced, so most of these run with the JIT off only.
"""

import numpy as np
import pytest

from numaemu.compiler.build import JIT
from numaemu.errors import BusError, OutOfMemory
from numaemu.kernel.arch.pgtable import is_migration_entry, pte_offset
from numaemu.kernel.arch.tlb import try_to_unmap_flush
from numaemu.kernel.core import fork
from numaemu.kernel.fs import hugetlbfs
from numaemu.kernel.include.gfp import GFP_HIGHUSER_MOVABLE, GFP_KERNEL
from numaemu.kernel.include.mm_types import BY_FILE, mm_t, task_t, vma_t
from numaemu.kernel.mm.cache import filemap, shmem_file, truncate
from numaemu.kernel.mm.fault import copy_page_range, do_fault, memory, shmem_fault
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.huge import huge_memory, hugetlb, hugetlb_fault, hugetlb_resize, khugepaged
from numaemu.kernel.mm.huge.split import huge_entry_offset, split_huge_pmd
from numaemu.kernel.mm.migrate import compaction, migrate, move_pages
from numaemu.kernel.mm.migrate.compact_control import compact_control_of
from numaemu.kernel.mm.migrate.migrate import batch_of
from numaemu.kernel.mm.page_alloc import page_alloc
from numaemu.kernel.mm.reclaim.lru_batches import folio_add_new_lru
from numaemu.kernel.mm.space import mremap
from numaemu.kernel.mm.swap import swapon
from numaemu.kernel.syscalls import common as syscalls
from numaemu.uapi import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MFD_HUGETLB,
    MPOL_BIND,
    MPOL_MF_MOVE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    O_RDWR,
    PROT_READ,
    PROT_WRITE,
)

PAGE, HUGE, U = 4096, 2 << 20, np.uint64
RW = PROT_READ | PROT_WRITE
NODE_POOL = "/sys/devices/system/node/node{}/hugepages/hugepages-2048kB/nr_hugepages"

pytestmark = pytest.mark.interpreted
replaces = pytest.mark.skipif(JIT, reason="replaces functions of the kernel")


@pytest.fixture
def meanwhile(monkeypatch):
    """meanwhile(module, "function", step): once, `step(answer, *args)` is done after the function, before its caller goes on."""

    def put_in(module, name, step, before=False):
        original, done = getattr(module, name), []

        def function(*args):
            if before and not done:
                done.append(step(None, *args))
            answer = original(*args)
            if not before and not done:
                done.append(0)
                done[0] = step(answer, *args)
            return answer

        monkeypatch.setattr(module, name, function)
        return done

    return put_in


def late_reference(machine, pfn):
    """Another CPU looked the frame up before it was given out anew, and takes a reference only now."""
    assert page_alloc.try_get_page(machine.page(int(pfn)))
    return int(pfn)


def drain(machine, cpu=0):
    syscalls.drain_lru(int(machine.cpu(cpu).address))


# -- counts are added, never stored ------------------------------------------------------------------------------------


@replaces
def test_a_late_reference_to_a_private_copy_of_a_file(loopback, meanwhile):
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    machine.create_file("/f", bytes(8192))
    task = machine.task()
    area = task.mmap(8192, RW, MAP_PRIVATE, file=task.open("/f"))
    late = meanwhile(do_fault, "copy_highpage", lambda _, m, cpu, new, pfn: late_reference(machine, new))
    task.store([area.addr], [7])
    page_alloc.put_page(machine.cpu(1), late[0])
    drain(machine)
    assert machine.pfn(task, area.addr) == late[0] and machine.page(late[0]).refcount == 1
    machine.audit()


@replaces
def test_a_late_reference_to_a_huge_page_that_is_not_used(loopback, meanwhile, monkeypatch):
    """No memory for its table: the huge page goes back, but for the page that somebody looked up late."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    machine.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    task = machine.task()
    area = task.mmap(2 * HUGE)
    late = meanwhile(huge_memory, "alloc_huge_on_node", lambda pfn, *_: late_reference(machine, pfn + 5))
    monkeypatch.setattr(huge_memory, "pte_alloc_one", lambda *_: 0)
    with pytest.raises(OutOfMemory):
        task.store([area.addr], np.uint8(1))
    assert machine.page(late[0]).refcount == 1
    page_alloc.put_page(machine.cpu(1), late[0])
    machine.audit()


@replaces
def test_a_late_reference_to_the_first_page_of_a_huge_one(loopback, meanwhile):
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    machine.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    task = machine.task()
    area = task.mmap(2 * HUGE)
    late = meanwhile(huge_memory, "alloc_pages", lambda pfn, *_: late_reference(machine, pfn))
    task.store([area.addr], np.uint8(1))
    page_alloc.put_page(machine.cpu(1), late[0])
    assert machine.page(late[0]).refcount == 1
    machine.audit()


def test_a_late_reference_to_a_target_of_compaction(loopback):
    """The target is not used: it joins the chain again, or is freed by who looked it up late."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    cpu, cc = machine.cpu(), compact_control_of(machine.machine, 0)
    one, two = (int(page_alloc.alloc_pages(cpu, GFP_HIGHUSER_MOVABLE, 0, 0, U(1))) for _ in range(2))
    late_reference(machine, one)
    cc.freepages = cc.nr_freepages = 0
    for pfn in (one, two):
        migrate.compaction_free(cpu, pfn)
    assert (cc.freepages, cc.nr_freepages, cc.last_freepage, machine.page(one).refcount) == (two, 1, two, 1)
    page_alloc.put_page(machine.cpu(1), one)
    compaction.release_freepages(cpu, cc)
    machine.audit()


@replaces
@pytest.mark.parametrize("name", ["alloc_buddy_hugetlb_folio", "alloc_pages"])
def test_a_late_reference_to_a_page_of_a_pool(loopback, meanwhile, name):
    """Another page is taken: one of the pool has no references but its users'."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="32MiB")

    def step(pfn, *_):
        if name == "alloc_pages":
            return late_reference(machine, pfn)
        assert not page_alloc.try_get_page(machine.page(int(pfn)))  # it is frozen
        return 0

    if name == "alloc_pages":
        late = meanwhile(hugetlb, name, step)
    else:
        late = meanwhile(hugetlb_resize, name, step)
    machine.write("/proc/sys/vm/nr_hugepages", "3")
    assert late
    if late[0]:
        page_alloc.put_page(machine.cpu(1), late[0])
    assert "HugePages_Free:        3" in machine.read("/proc/meminfo")
    machine.audit()


def test_a_late_reference_to_a_slab_and_a_block(loopback):
    """Blocks go back when their last reference goes, whoever has it."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    task = machine.task()
    kernel = task.kernel
    address = kernel.kmalloc(3 * PAGE, GFP_KERNEL)
    pfn = (int(address) - int(machine.machine.paging.page_offset)) >> 12
    late_reference(machine, pfn)
    kernel.kfree(address)
    assert machine.page(pfn).refcount == 1
    page_alloc.put_page(machine.cpu(1), pfn)
    machine.audit()


# -- looked at again, with a lock or a reference -----------------------------------------------------------------------


@replaces
def test_a_huge_entry_that_is_split_while_it_is_about_to_move(loopback, meanwhile):
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="32MiB")
    machine.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    tasks, armed = [machine.task(), machine.task()], []

    def split(*_):
        task, address = armed.pop()
        where = huge_entry_offset(machine.machine, machine.mm(task), U(address))
        assert split_huge_pmd(machine.cpu(), where)  # as try_to_unmap_one does in reclaim

    for n, task in enumerate(tasks):
        area = task.mmap(2 * HUGE)
        task.store([area.addr, area.addr + HUGE], np.uint8([7, 11 * (n + 1)]))
        armed.append((task, area.addr))
        meanwhile(mremap, "huge_pte_alloc", split)
        task.mremap(area.addr, HUGE, HUGE, MREMAP_FIXED | MREMAP_MAYMOVE, area.addr - (3 << 30))
        task.madvise(area.addr + HUGE, PAGE, MADV_NOHUGEPAGE)  # splits the neighbour, which needs a table laid by
        assert not armed and task.load([area.addr - (3 << 30)], np.uint8)[0] == 7
        task.area = area.addr + HUGE
    assert [int(task.load([task.area], np.uint8)[0]) for task in tasks] == [11, 22]
    tasks[1].store([tasks[1].area], np.uint8(33))
    assert tasks[0].load([tasks[0].area], np.uint8)[0] == 11
    machine.audit()


@replaces
def test_a_frame_is_made_exclusive_only_by_who_holds_it(loopback, meanwhile):
    """A thread unmaps the page that a write fault has just looked at: the frame is not another's meanwhile."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    task, other = machine.task(0), machine.task(1)
    page = task.mmap(PAGE)
    task.store([page.addr], [1])
    task.fork(cpu=0).exit(0)
    thread = task.clone(cpu=1)
    theirs = other.mmap(PAGE)
    task.load([page.addr])
    frame, children = machine.pfn(task, page.addr), []

    def step(answer, cpu, pfn):
        thread.madvise(page.addr, PAGE, MADV_DONTNEED)
        other.store([theirs.addr], [100])
        children.append(other.fork(cpu=1))
        return machine.pfn(other, theirs.addr)

    taken = meanwhile(memory, "wp_can_reuse_anon_folio", step)
    task.store([page.addr], [2])
    assert taken[0] != frame
    other.store([theirs.addr], [200])
    assert (other.load([theirs.addr])[0], children[0].load([theirs.addr])[0], task.load([page.addr])[0]) == (
        200,
        100,
        2,
    )
    machine.audit()


@replaces
def test_a_write_to_a_pools_page_that_a_thread_unmaps(loopback, meanwhile):
    """The page is free, perhaps another's, when the fault takes its reference: it looks again."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="32MiB")
    machine.write("/proc/sys/vm/nr_hugepages", "3")
    task = machine.task()
    area = task.mmap(HUGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)
    task.store([area.addr], [1])
    child = task.fork(cpu=0)  # read-only from now on
    child.exit(0)
    thread = task.clone(cpu=1)
    done = meanwhile(
        hugetlb_fault, "hugetlb_wp", lambda *_: thread.madvise(area.addr, HUGE, MADV_DONTNEED), before=True
    )
    task.store([area.addr + 8], [2])
    assert done and task.load([area.addr, area.addr + 8]).tolist() == [0, 2]
    machine.audit()


@replaces
def test_a_shared_page_is_locked_only_by_who_holds_it(loopback, meanwhile):
    """wp_page_shared: the entry is looked at again before the page's lock is taken, which may be another's by then."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    machine.create_file("/f", b"x" * PAGE)
    task = machine.task()
    area = task.mmap(PAGE, RW, MAP_SHARED, file=task.open("/f", O_RDWR))
    task.load([area.addr])
    thread, locked = task.clone(cpu=1), []
    meanwhile(do_fault, "try_get_page", lambda *_: thread.madvise(area.addr, PAGE, MADV_DONTNEED))
    meanwhile(do_fault, "folio_lock", lambda *_: locked.append(True))
    task.store([area.addr], [5])
    assert not locked and task.load([area.addr])[0] == 5
    machine.audit()


@replaces
def test_reading_a_file_of_huge_pages_holds_the_page(loopback, meanwhile):
    machine = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")
    for node in range(2):
        machine.write(NODE_POOL.format(node), "2")
    task, other = machine.task(0), machine.task(1)
    file = task.memfd_create("h", MFD_HUGETLB)
    file.truncate(HUGE)
    area = task.mmap(HUGE, RW, MAP_SHARED, file=file)
    task.store([area.addr], [0x11])
    thread = task.clone(cpu=1)

    def step(*_):
        moved = thread.move_pages([area.addr], [1]).tolist()
        theirs = other.mmap(2 * HUGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)
        other.store([theirs.addr, theirs.addr + HUGE], [0x22, 0x22])
        return moved

    moved = meanwhile(hugetlb_fault, "xa_load", step)
    assert int.from_bytes(bytes(file.pread(8, 0)), "little") == 0x11 and moved
    machine.audit()


@replaces
def test_a_number_of_the_pool_has_no_users(loopback, monkeypatch):
    """No memory for the top-level table: nobody who looks for address spaces finds this one."""
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    machine.task()
    used = {task_t.array(machine.machine.tasks)[n].mm for n in range(1, 4)}
    with monkeypatch.context() as patch:
        patch.setattr(fork, "alloc_pages", lambda *_: 0)
        assert fork.mm_alloc(machine.cpu()) == 0
    for number in range(1, 6):
        if number not in used:
            assert mm_t.array(machine.machine.mms)[number].users == 0 and not fork.mmget_not_zero(machine.cpu(), number)


# -- what stands in a special entry ------------------------------------------------------------------------------------


def test_a_written_page_that_is_unmapped_while_it_moves(loopback):
    """Only the entry knew that a shared page had been written to; then it was a migration entry, which went."""
    machine = loopback(nodes=2, cpus_per_node=1, memory_per_node="16MiB")
    task = machine.task()
    file = task.memfd_create("x")
    file.truncate(PAGE)
    area = task.mmap(PAGE, RW, MAP_SHARED, file=file)
    task.load([area.addr])
    task.store([area.addr], [0x1234])
    drain(machine)
    cpu = machine.cpu()
    ptep, pfn = pte_offset(machine.machine, machine.mm(task), area.addr), machine.pfn(task, area.addr)
    assert migrate.isolate_page(cpu, ptep, U(machine.pte(task, area.addr))) == pfn
    batch = batch_of(machine.machine, cpu)
    batch.nr = batch.tlb_ubc.nr_mms = 0
    batch.mm, batch.target = cpu.mm, 1
    migrate.add_to_batch(batch, pfn, area.addr, 0)
    new = migrate.alloc_migration_target(cpu, batch, 0)
    migrate.rmap_walk(cpu, batch, pfn, 0, True)
    assert is_migration_entry(U(machine.pte(task, area.addr)))
    try_to_unmap_flush(cpu, batch.tlb_ubc)
    task.madvise(area.addr, PAGE, MADV_DONTNEED)
    assert migrate.move_to_new_folio(cpu, pfn, new)
    migrate.rmap_walk(cpu, batch, pfn, new, False)
    folio_add_new_lru(cpu, new)
    migrate.putback_page(cpu, pfn, True)
    batch.nr = 0
    drain(machine)
    swapon.swapon(machine.machine, "swap", 8 << 20, -1, "disk")
    task.load([area.addr])
    drain(machine)
    task.madvise(area.addr, PAGE, MADV_PAGEOUT)
    assert task.load([area.addr])[0] == 0x1234
    machine.audit()


@replaces
def test_a_collapse_beside_a_page_that_is_moving(loopback, meanwhile):
    """The table is away while it is looked through: whoever takes migration entries out of it waits until it is back."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="32MiB")
    task = machine.task()
    area = task.mmap(2 * HUGE)
    base = area.addr + (-area.addr) % HUGE
    task.store(base + PAGE * np.arange(512, dtype=np.uint64), np.arange(512, dtype=np.uint64))
    drain(machine)
    cpu, mover = machine.cpu(0), machine.cpu(1)
    ptep, pfn = pte_offset(machine.machine, machine.mm(task), U(base)), machine.pfn(task, base)
    batch = batch_of(machine.machine, mover)
    batch.nr = batch.tlb_ubc.nr_mms = 0
    batch.mm, batch.target = machine.cpu(0).mm, 0
    held = []

    def begin(*_):  # the other CPU isolates the page and puts its migration entry in
        assert migrate.isolate_page(mover, ptep, U(machine.pte(task, base))) == pfn
        migrate.add_to_batch(batch, pfn, U(base), 0)
        migrate.rmap_walk(mover, batch, pfn, 0, True)
        try_to_unmap_flush(mover, batch.tlb_ubc)

    def end(*_):  # it goes on while the table is away, if it can get the family's lock
        held.append(int(mapping_of(machine.machine, machine.page(pfn).mapping).lock))
        if not held[0]:
            migrate.rmap_walk(mover, batch, pfn, pfn, False)

    meanwhile(khugepaged, "alloc_collapse_pages", begin)
    meanwhile(khugepaged, "__collapse_huge_page_isolate", end, before=True)
    with pytest.raises(OSError):
        task.madvise(base, HUGE, MADV_COLLAPSE)
    if held[0]:
        migrate.rmap_walk(mover, batch, pfn, pfn, False)
    migrate.putback_page(mover, pfn, False)
    batch.nr = 0
    assert task.load([base])[0] == 0 and cpu
    machine.audit()


# -- truncation --------------------------------------------------------------------------------------------------------


@replaces
def test_truncate_unmaps_what_a_fault_has_put_in_meanwhile(loopback, meanwhile, monkeypatch):
    """A fault has looked at the end of the file before it moved, and puts its private copy in after the first unmapping."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    machine.create_file("/f", b"A" * 8192)
    task, other = machine.task(0), machine.task(1)
    cutter = task.open("/f", O_RDWR)
    area = other.mmap(8192, RW, MAP_PRIVATE, file=other.open("/f"))
    cutter.pread(8192, 0)

    def fault(*_):
        with monkeypatch.context() as patch:
            patch.setattr(filemap, "i_pages", lambda _inode: 2)
            other.store([area.addr], [1])

    meanwhile(truncate, "truncate_inode_pages", fault, before=True)
    cutter.truncate(0)
    with pytest.raises(BusError):
        other.load([area.addr])
    machine.audit()


@replaces
@pytest.mark.parametrize("huge", [False, True])
def test_who_finds_an_entry_gone_waits_for_its_flush(loopback, meanwhile, huge):
    """Truncation has taken an entry out and not flushed yet: MADV_DONTNEED of the same range does not return before."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="32MiB")
    machine.write("/proc/sys/vm/nr_hugepages", "4")
    task, other = machine.task(0), machine.task(1)
    size = HUGE if huge else PAGE
    if huge:
        file = other.memfd_create("h", MFD_HUGETLB)
        file.truncate(2 * size)
    else:
        machine.create_file("/f", b"A" * 8192)
        file = other.open("/f", O_RDWR)
    area = other.mmap(2 * size, RW, MAP_SHARED, file=file)
    other.store([area.addr + size], [7])

    def step(*_):
        other.madvise(area.addr, 2 * size, MADV_DONTNEED)
        with pytest.raises(BusError):
            other.load([area.addr + size])
        return True

    cutter = other if huge else task.open("/f", O_RDWR)
    if huge:
        cutter = other.clone(cpu=0)
        done = meanwhile(hugetlbfs, "flush_hugetlb_tlb_range", step, before=True)
        machine.call_op(cutter._number, cutter.pid, "file_truncate", (file.fd, size))
    else:
        done = meanwhile(truncate, "tlb_flush_mmu", step, before=True)
        cutter.truncate(PAGE)
    assert done
    machine.audit()


@replaces
def test_reading_shared_memory_that_is_cut_allocates_nothing(loopback, meanwhile):
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    task = machine.task()
    file = task.memfd_create("m")
    file.truncate(PAGE)
    file.pwrite(b"abc", 0)
    thread = task.clone(cpu=1)
    meanwhile(
        shmem_file, "xa_load", lambda *_: machine.call_op(thread._number, thread.pid, "file_truncate", (file.fd, 0))
    )
    assert bytes(file.pread(PAGE, 0)) == b"" and machine.machine.tmpfs_pages == 0 and machine.vmstat()["nr_shmem"] == 0
    machine.audit()


@replaces
def test_reading_a_file_that_is_cut_ends_where_it_ends(loopback, meanwhile):
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    machine.create_file("/f", b"A" * 8192)
    task = machine.task()
    reader, cutter = task.open("/f"), machine.task(1).open("/f", O_RDWR)
    meanwhile(filemap, "filemap_get_page", lambda *_: cutter.truncate(0), before=True)
    assert bytes(reader.pread(100, 4096)) == b""
    machine.audit()


# -- MADV_REMOVE ---------------------------------------------------------------------------------------------------------


@replaces
@pytest.mark.parametrize("write", [False, True])
def test_a_fault_beside_a_hole_maps_no_page_that_is_gone(loopback, meanwhile, write):
    """Shared memory has no lock against it: the fault looks again after it has mapped what it found."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    task = machine.task()
    area = task.mmap(4 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS)
    task.store(area.pages(), [1, 2, 3, 4])
    task.madvise(area.addr, 4 * PAGE, MADV_DONTNEED)
    other = task.fork(cpu=1)
    done = meanwhile(shmem_fault, "shmem_get_folio_gfp", lambda *_: other.madvise(area.addr, 4 * PAGE, MADV_REMOVE))
    if write:
        task.store([area.addr + 8], [5])
    assert task.load([area.addr])[0] == 0 and done
    task.store([area.addr], [9])
    assert other.load(area.pages()).tolist() == [9, 0, 0, 0]
    machine.audit()


# -- swapping ------------------------------------------------------------------------------------------------------------


@replaces
def test_swapoff_goes_on_until_the_area_is_empty(loopback, meanwhile):
    """A child is made behind the place where swapoff has just looked; the next round finds what it has in swap."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    swapon.swapon(machine.machine, "swap", 8 << 20, -1, "disk")
    task = machine.task()
    area = task.mmap(64 * PAGE)
    task.store(area.pages(), np.arange(64, dtype=np.uint64))
    task.madvise(area.addr, 64 * PAGE, MADV_PAGEOUT)
    children = []
    meanwhile(swapon, "mmget_not_zero", lambda *_: children.append(task.fork(cpu=0)), before=True)
    kind = swapon.swapoff_begin(machine.machine, "swap")
    swapon.try_to_unuse(int(machine.cpu(1).address), kind)
    swapon.swapoff_end(machine.machine, kind)
    assert children[0].load(area.pages()).tolist() == list(range(64))
    machine.audit()


# -- numbers that mean something else by now -------------------------------------------------------------------------------


@replaces
@pytest.mark.parametrize("huge", [False, True])
def test_fork_beside_the_cutting_of_a_file(loopback, meanwhile, huge):
    """Private copies are shared with a child under the lock of their file, and who cuts that comes to parents first."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="32MiB")
    machine.write("/proc/sys/vm/nr_hugepages", "4")
    machine.create_file("/f", bytes(PAGE))
    task = machine.task()
    file = task.memfd_create("h", MFD_HUGETLB) if huge else task.open("/f", O_RDWR)
    area = task.mmap(HUGE if huge else PAGE, RW, MAP_PRIVATE, file=file)
    task.store([area.addr], [1])

    def locks(*_):
        vma = next(v for v in machine.vmas(task) if v.i_mapping)
        return [int(mapping_of(machine.machine, number).lock) != 0 for number in (vma.i_mapping, vma.mapping)]

    done = meanwhile(hugetlb_fault if huge else copy_page_range, "try_get_page", locks)
    child = task.fork(cpu=0)
    assert done == [[True, True]]
    first, second = (next(v for v in machine.vmas(each) if v.i_mapping) for each in (task, child))
    assert vma_t.array(machine.machine.vmas)[first.next[BY_FILE]].address == second.address
    machine.audit()
    file.truncate(0)
    for each in (task, child):
        with pytest.raises(BusError):
            each.load([area.addr])
    machine.audit()


@replaces
def test_a_huge_page_that_is_split_before_it_is_to_move(loopback, meanwhile):
    machine = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")
    machine.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    task = machine.task()
    area = task.mmap(2 * HUGE)
    task.store([area.addr], np.uint8(7))
    done = meanwhile(
        move_pages,
        "huge_is_elsewhere",
        lambda *_: split_huge_pmd(machine.cpu(), huge_entry_offset(machine.machine, machine.mm(task), U(area.addr))),
    )
    task.mbind(area.addr, HUGE, MPOL_BIND, 1, MPOL_MF_MOVE)
    assert done[0] and set(area.nodes().tolist()[:512]) == {1} and task.load([area.addr], np.uint8)[0] == 7
    machine.audit()


def test_a_victim_that_has_ended_costs_nobody_else_his_life(loopback, monkeypatch):
    """The number of its address space is another's by then, and so is the number of the task."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="8MiB")
    victim, oom, later = machine.task(1), machine.actors[0].oom, []
    victim.mmap(64 * PAGE).touch()
    number, free = task_t.array(machine.machine.tasks)[victim._number].mm, [zone.free_pages for zone in machine.zones()]

    def header(_oc):
        for zone, pages in zip(machine.zones(), free, strict=True):
            zone.free_pages = pages
        victim.exit(0)
        later.append(machine.task(1))

    monkeypatch.setattr(oom, "dump_header", header)
    for zone in machine.zones():
        zone.free_pages = 0
    answer, marked = oom.out_of_memory(GFP_KERNEL, 0, 1, 0)
    there = task_t.array(machine.machine.tasks)[later[0]._number]
    assert there.mm == number and (answer, marked) == (0, []) and there.oom_victim != there.pid
    assert mm_t.array(machine.machine.mms)[number].oom_state == 0
    later[0].mmap(PAGE).touch()
    machine.audit()
