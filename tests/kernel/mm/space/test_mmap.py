"""Mappings against a dictionary of pages: what is mapped where, with which permission, in the fewest possible VMAs."""

import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from loopback import SMALL_TLB, Loopback
from naive import Vmas, highest_gap

from numaemu import SegmentationFault
from numaemu.compiler.build import JIT
from numaemu.kernel.fs.exec import MIN_GAP
from numaemu.kernel.include.mm_types import VM_SHARED, pool_t
from numaemu.kernel.mm.space.vma_index import vma_index
from numaemu.spec.formats import FORMATS
from numaemu.spec.param import MAX_VMAS
from numaemu.uapi import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_DEFAULT,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    RLIM_INFINITY,
    RLIMIT_AS,
)

PROTS = [PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC]
ARENA = 0x1000_0000 >> 12  # where MAP_FIXED mappings of the test go: 24 pages from here
STACK_TOP = FORMATS["x86-64-4level"]["stack_top"]
MMAP_BASE = STACK_TOP - int(MIN_GAP)
TOP = MMAP_BASE >> 12
ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS


@st.composite
def ranges(draw):
    start = draw(st.integers(0, 23))
    return ARENA + start, draw(st.integers(1, 24 - start))


class MappingMachine(RuleBasedStateMachine):
    """One task maps, unmaps, protects and binds pages; the twin holds {page: (prot, what, policy)}.

    `what` is 0 for private memory and the number of its object for shared: pages in a row with equal values are
    what one VMA may describe; which do share one, the other twin knows.
    """

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=2, cpus_per_node=1, memory_per_node="8MiB", **SMALL_TLB)
        self.task = self.loop.task()
        self.stack = self.as_runs()
        self.pages, self.objects, self.twin = {}, 0, Vmas()
        self.brk = self.start_brk = self.task.brk()

    def as_runs(self):
        return [(int(v.start) >> 12, int(v.end) >> 12) for v in self.loop.vmas(self.task)]

    def put(self, first, n, prot, shared):
        self.objects += 1
        self.twin.unmap(first, first + n)
        self.twin.map(first, first + n, prot, self.objects if shared else 0)
        for page in range(first, first + n):
            self.pages[page] = (prot, self.objects if shared else 0, None)

    @rule(where=ranges(), prot=st.sampled_from(PROTS), shared=st.booleans(), replace=st.booleans())
    def mmap_fixed(self, where, prot, shared, replace):
        first, n = where
        kind = MAP_SHARED | MAP_ANONYMOUS if shared else ANONYMOUS
        taken = any(page in self.pages for page in range(first, first + n))
        try:
            self.task.mmap(n << 12, prot, kind | (MAP_FIXED if replace else MAP_FIXED_NOREPLACE), addr=first << 12)
            assert replace or not taken
            self.put(first, n, prot, shared)
        except OSError as error:
            assert error.errno == errno.EEXIST and taken and not replace

    @rule(n=st.integers(1, 8), prot=st.sampled_from(PROTS))
    def mmap_anywhere(self, n, prot):
        got = self.task.mmap(n << 12, prot, ANONYMOUS).addr >> 12
        assert got == highest_gap(self.pages, TOP, n)
        self.put(got, n, prot, False)

    @rule(where=ranges())
    def munmap(self, where):
        first, n = where
        self.task.munmap(first << 12, n << 12)
        self.twin.unmap(first, first + n)
        for page in range(first, first + n):
            self.pages.pop(page, None)

    @precondition(lambda self: any(page >= ARENA + 24 for page in self.pages))
    @rule(data=st.data())
    def munmap_elsewhere(self, data):
        page = data.draw(st.sampled_from([p for p in sorted(self.pages) if p >= ARENA + 24]))
        self.task.munmap(page << 12, 4096)
        self.twin.unmap(page, page + 1)
        del self.pages[page]

    def change(self, where, call, partly=False, **change):
        """A call that needs every page of the range mapped, else fails with ENOMEM or EFAULT.

        What lies before the first hole is changed all the same if `partly`, else nothing is.
        """
        first, n = where
        pages = range(first, first + n)
        try:
            call(first << 12, n << 12)
            assert all(page in self.pages for page in pages)
        except OSError as error:
            assert error.errno in (errno.ENOMEM, errno.EFAULT) and not all(page in self.pages for page in pages)
            hole = next(page for page in pages if page not in self.pages)
            pages = range(first, hole) if partly else ()
        if pages and "prot" in change:
            self.twin.protect(first, pages[-1] + 1, change["prot"])
        elif pages and "policy" in change:
            self.twin.bind(first, pages[-1] + 1, change["policy"])
        for page in pages:
            prot, what, policy = self.pages[page]
            self.pages[page] = (change.get("prot", prot), what, change.get("policy", policy))

    @rule(where=ranges(), prot=st.sampled_from(PROTS))
    def mprotect(self, where, prot):
        self.change(where, lambda start, length: self.task.mprotect(start, length, prot), partly=True, prot=prot)

    @rule(where=ranges(), node=st.sampled_from([None, 0, 1]))
    def mbind(self, where, node):
        first, n = where
        mapped = [page for page in range(first, first + n) if page in self.pages]
        if node is not None or not mapped:
            mode = MPOL_DEFAULT if node is None else MPOL_BIND
            self.change(where, lambda start, length: self.task.mbind(start, length, mode, node), policy=node)
            return
        self.task.mbind(first << 12, n << 12, MPOL_DEFAULT)  # passes over holes
        self.twin.bind(first, first + n, None)
        for page in mapped:
            self.pages[page] = (*self.pages[page][:2], None)

    @rule(where=ranges(), offset=st.integers(0, 4095), write=st.booleans())
    def access(self, where, offset, write):
        page = where[0]
        prot = self.pages.get(page, (PROT_NONE,))[0]
        allowed = prot & (PROT_WRITE if write else PROT_READ | PROT_WRITE | PROT_EXEC)
        try:
            if write:
                self.task.write((page << 12) + offset, b"x")
                self.twin.touch(page)
            else:
                self.task.read((page << 12) + offset, 1)
            assert allowed
        except SegmentationFault:
            assert not allowed

    @rule(where=ranges())
    def forget(self, where):
        first, n = where
        self.change(where, lambda start, length: self.task.madvise(start, length, MADV_DONTNEED))

    @rule(grow=st.integers(-9000, 20_000))
    def set_brk(self, grow):
        wanted = self.brk + grow
        got = self.task.brk(wanted)
        old, new = -(-self.brk // 4096), -(-wanted // 4096)
        if wanted < self.start_brk or new < old and not any(page in self.pages for page in range(new, old)):
            assert got == self.brk  # below the heap, or munmap has taken all that would go
            return
        assert got == wanted
        if new > old:
            self.put(old, new - old, PROT_READ | PROT_WRITE, False)
        if new < old:
            self.twin.unmap(new, old)
        for page in range(new, old):
            self.pages.pop(page, None)  # munmap may have taken it already
        self.brk = wanted

    @rule(brk=st.sampled_from([1, 1 << 47, (1 << 64) - 1, (1 << 64) - 4096]))
    def refuse_brk(self, brk):
        assert self.task.brk(brk) == self.brk

    @invariant()
    def vmas_are_those_of_the_twin(self):
        found = {}
        for vma in self.loop.vmas(self.task):
            first, end = int(vma.start) >> 12, int(vma.end) >> 12
            assert first < end
            if (first, end) in self.stack:
                continue
            assert vma.mm and vma.flags & VM_SHARED == (VM_SHARED if self.pages[first][1] else 0)
            found[first, end] = (vma.flags & 7, vma.policy.mode, int(vma.policy.nodes))
        expected = {
            (v["start"], v["end"]): (
                v["prot"],
                MPOL_DEFAULT if v["policy"] is None else MPOL_BIND,
                0 if v["policy"] is None else 1 << v["policy"],
            )
            for v in self.twin.vmas
        }
        assert found == expected
        assert {page for first, end in found for page in range(first, end)} == set(self.pages)
        assert list(found) == sorted(found)
        assert self.loop.mm(self.task).total_vm == len(self.pages) + sum(end - first for first, end in self.stack)

    @invariant()
    def every_frame_is_accounted_for(self):
        self.loop.audit()

    def teardown(self):
        self.task.exit()
        self.loop.drain()
        self.loop.audit()
        assert self.loop.vmstat()["nr_page_table_pages"] == 0
        self.loop.close()


MappingMachine.TestCase.settings = settings(max_examples=30 if JIT else 4, stateful_step_count=40)
TestMappings = pytest.mark.interpreted(MappingMachine.TestCase)


@pytest.mark.interpreted
@pytest.mark.parametrize("address, length, flags, error", [
    (0, 0, ANONYMOUS, errno.EINVAL),                                     # no length
    (0, 4096, MAP_ANONYMOUS, errno.EINVAL),                              # neither shared nor private
    (0x1000_0001, 4096, ANONYMOUS | MAP_FIXED, errno.EINVAL),            # not a page's beginning
    (0, 1 << 47, ANONYMOUS, errno.ENOMEM),                               # more than there is
    (STACK_TOP - 4096, 8192, ANONYMOUS | MAP_FIXED, errno.ENOMEM),  # over the end
    ((1 << 64) - 4096, 8192, ANONYMOUS | MAP_FIXED, errno.ENOMEM),       # around the end of all addresses
    ((1 << 64) - 4096, 4096, ANONYMOUS | MAP_FIXED, errno.ENOMEM),
    (0, (1 << 64) - 1, ANONYMOUS, errno.ENOMEM),
])  # fmt: skip
def test_mmap_refuses(two_nodes, address, length, flags, error):
    task = two_nodes.task()
    with pytest.raises(OSError) as caught:
        task.mmap(length, PROT_READ, flags, addr=address)
    assert caught.value.errno == error
    assert len(two_nodes.vmas(task)) == 1


@pytest.mark.interpreted
def test_a_hint_beyond_user_space_is_ignored(two_nodes):
    task = two_nodes.task()
    assert task.mmap(8192, addr=(1 << 64) - 4096).addr == MMAP_BASE - 8192


@pytest.mark.interpreted
def test_a_hint_is_taken_where_it_is_free(two_nodes):
    task = two_nodes.task()
    assert task.mmap(8192, addr=0x1000_0000).addr == 0x1000_0000
    assert task.mmap(8192, addr=0x1000_1000).addr == MMAP_BASE - 8192


@pytest.mark.interpreted
def test_large_mappings_are_aligned_to_2_mib(two_nodes):
    """As since Linux 6.7: whole multiples of 2 MiB begin at one."""
    task = two_nodes.task()
    task.mmap(4096)
    assert task.mmap("4MiB").addr % (2 << 20) == 0
    assert task.mmap((4 << 20) + 4096).addr % (2 << 20) != 0


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "start, length, error", [(1, 4096, errno.EINVAL), (0x1000_0000, 0, errno.EINVAL), (STACK_TOP, 4096, errno.EINVAL)]
)
def test_munmap_refuses(two_nodes, start, length, error):
    with pytest.raises(OSError) as caught:
        two_nodes.task().munmap(start, length)
    assert caught.value.errno == error


@pytest.mark.interpreted
def test_max_map_count(loopback):
    """As on Linux: a split is refused from vm.max_map_count on, a new mapping only beyond it."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB", sysctl={"vm.max_map_count": 4})
    task = loop.task()  # the stack is the first
    area = task.mmap("12KiB")
    task.munmap(area.addr + 4096, 4096)  # 3 now:  [stack] [a] . [b]
    task.mmap(4096, PROT_READ, ANONYMOUS | MAP_FIXED, addr=0x1000_0000)
    with pytest.raises(OSError, match="Cannot allocate"):
        task.mprotect(0x1000_0000, 4096, PROT_READ)  # changes nothing, so needs nothing
        task.mprotect(STACK_TOP - 8192, 4096, PROT_READ)
    task.mmap(4096, PROT_READ, ANONYMOUS | MAP_FIXED, addr=0x2000_0000)
    with pytest.raises(OSError, match="Cannot allocate"):
        task.mmap(4096, PROT_READ, ANONYMOUS | MAP_FIXED, addr=0x3000_0000)
    assert len(loop.vmas(task)) == 5


@pytest.mark.interpreted
def test_max_map_count_up_to_int_max(loopback):
    """The index of an address space has room for every VMA that there may be: the table of all is the limit then."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB", sysctl={"vm.max_map_count": 2**31 - 1})
    assert loop.read("/proc/sys/vm/max_map_count") == "2147483647\n"
    assert int(vma_index(loop.machine, 2).address) - int(vma_index(loop.machine, 1).address) >= 8 * MAX_VMAS
    task = loop.task()
    pool = pool_t.at(loop.machine.vma_pool)
    pool.capacity = pool.used + 1
    with pytest.raises(OSError, match="Cannot allocate"):
        task.mmap("4KiB", PROT_READ)
    pool.capacity = MAX_VMAS
    task.mmap("4KiB", PROT_READ)


@pytest.mark.interpreted
def test_execute_permission_lets_read_as_on_x86(two_nodes):
    """x86 page tables know no execute-only pages: PROT_EXEC memory can be read, touched before or not."""
    task = two_nodes.task()
    area = task.mmap(8192)
    task.write(area.addr, b"code")
    task.mprotect(area.addr, 8192, PROT_EXEC)
    assert task.read(area.addr, 4) == b"code"
    assert task.read(area.addr + 4096, 4) == bytes(4)


@pytest.mark.interpreted
def test_unmapping_all_gives_the_tables_back(two_nodes):
    """Page tables of a hole between two neighbours are freed, those that still serve one are not.

    | a |        b        | c |      one leaf table serves 2 MiB
    """
    task = two_nodes.task()
    area = task.mmap("8MiB", addr=0x1000_0000)
    area.touch(stride=2 << 20)
    before = two_nodes.mm(task).pgtables
    task.munmap(area.addr + (2 << 20), "4MiB")
    assert two_nodes.mm(task).pgtables == before - 2
    area.munmap()
    assert two_nodes.mm(task).pgtables == 0  # the top-level table is not counted
    two_nodes.audit()


@pytest.mark.parametrize("prot, backed", [(PROT_READ | PROT_WRITE, True), (PROT_READ, False)])
def test_map_populate_faults_everything_in(two_nodes, prot, backed):
    """Writable private memory gets pages of its own, read-only memory the page of zeros (-EFAULT to move_pages)."""
    task = two_nodes.task()
    area = task.mmap("64KiB", prot=prot, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE)
    assert set(area.nodes().tolist()) == ({0} if backed else {-14})
    faults = task.counters()["task_minor_faults"]
    task.load(area.pages())
    assert faults == 16 and task.counters()["task_minor_faults"] == faults
    area.munmap()
    two_nodes.audit()


def refused(error, call, *args, **keywords):
    with pytest.raises(OSError) as caught:
        call(*args, **keywords)
    assert caught.value.errno == error


@pytest.mark.interpreted
def test_a_fixed_mapping_that_is_refused_leaves_the_old_one(loopback):
    """By RLIMIT_AS, by the commit limit, by max_map_count; what is replaced counts for the new one."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    task = loop.task()
    old = task.mmap(8192)
    task.store(old.pages(), [77, 78])
    mm = loop.mm(task)
    task.setrlimit(RLIMIT_AS, int(mm.total_vm) * 4096)
    refused(errno.ENOMEM, task.mmap, 64 << 12, addr=old.addr, flags=ANONYMOUS | MAP_FIXED)
    assert task.load(old.pages()).tolist() == [77, 78]
    charged, total = int(loop.machine.vm_committed_as), int(mm.total_vm)
    task.mmap(4096, addr=old.addr, flags=ANONYMOUS | MAP_FIXED)  # as much as goes
    assert task.load(old.pages()).tolist() == [0, 78]
    assert (loop.machine.vm_committed_as, mm.total_vm) == (charged, total)
    task.setrlimit(RLIMIT_AS, RLIM_INFINITY)
    loop.write("/proc/sys/vm/overcommit_memory", "2")
    for flags in (ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS):
        refused(errno.ENOMEM, task.mmap, 64 << 20, addr=old.addr - (32 << 20), flags=flags | MAP_FIXED)
    assert task.load(old.pages()).tolist() == [0, 78] and loop.machine.vm_committed_as == charged
    loop.write("/proc/sys/vm/overcommit_memory", "0")
    loop.audit()


@pytest.mark.interpreted
def test_at_max_map_count_only_a_hole_is_refused(loopback):
    """munmap may take an end of a mapping, or part of two, as that makes no mapping more."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    task = loop.task()
    low = task.mmap(8 << 12, PROT_READ, addr=ARENA << 12)
    high = task.mmap(8 << 12, addr=(ARENA + 8) << 12)
    task.store(high.pages(), range(8))
    loop.write("/proc/sys/vm/max_map_count", str(int(loop.mm(task).map_count)))
    for hole in (low, high):
        refused(errno.ENOMEM, task.munmap, hole.addr + 4096, 4096)
    refused(errno.ENOMEM, task.mmap, 4096, addr=high.addr + 4096, flags=ANONYMOUS | MAP_FIXED, prot=PROT_READ)
    assert task.load(high.pages()).tolist() == list(range(8))
    task.munmap(low.addr, 4096)
    task.munmap(high.addr + (7 << 12), 4096)
    task.munmap(low.addr + (7 << 12), 8192)
    assert task.load(high.pages()[1:7]).tolist() == list(range(1, 7))
    refused(errno.ENOMEM, task.mprotect, low.addr + 4096, 4096, PROT_NONE)
    loop.audit()
