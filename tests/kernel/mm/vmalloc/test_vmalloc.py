"""vmalloc: areas against a naive list, contents against bytes, guard pages, lazy purges, the fault of 32 bits."""

import re

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from loopback import SMALL_TLB, Loopback

from numaemu import GFP_KERNEL, MPOL_INTERLEAVE, KernelBug, MachineCheck
from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import u32, u64
from numaemu.hardware.paging import decode
from numaemu.kernel.arch.init_mm import kernel_entry_offset
from numaemu.kernel.mm.vmalloc.vmap_area import LAZY_MAX_PAGES, vmap_area_of, vmap_of
from numaemu.spec.formats import FORMATS

GUARD = 4096


def lines(machine):
    return machine.actors[0].rpc_read("/proc/vmallocinfo").splitlines()


class NaiveSpace:
    """Addresses as a sorted list of (start, end, state): the lowest room that fits, given back only by a purge."""

    def __init__(self, start, end, taken):
        self.start, self.end, self.taken, self.lazy = start, end, list(taken), []

    def alloc(self, nbytes):
        for _ in range(2):
            at = self.start
            for start, end in [*sorted(self.taken + self.lazy), (self.end, self.end)]:
                if start - at >= nbytes:
                    self.taken.append((at, at + nbytes))
                    return at
                at = end
            self.lazy = []
        return None

    def free(self, at):
        area = next(area for area in self.taken if area[0] == at)
        self.taken.remove(area)
        self.lazy.append(area)


class VmallocMachine(RuleBasedStateMachine):
    """Several tasks on two CPUs take, write, read and give back areas."""

    paging = "x86-64-4level"

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=1, cpus_per_node=2, memory_per_node="32MiB", paging=self.paging, **SMALL_TLB)
        self.tasks = [self.loop.task(cpu) for cpu in (0, 1)]
        vmap, paging = vmap_of(self.loop.machine), self.loop.machine.paging
        taken = [vmap_area_of(self.loop.machine, vmap.busy[i]) for i in range(vmap.nr_busy)]
        self.space = NaiveSpace(
            int(paging.vmalloc_start), int(paging.vmalloc_end), [(int(a.start), int(a.end)) for a in taken]
        )
        self.areas = {}

    @rule(pages=st.integers(1, 40), less=st.integers(0, 4095), task=st.integers(0, 1))
    def vmalloc(self, pages, less, task):
        nbytes = pages * 4096 - less
        address = self.tasks[task].kernel.vzalloc(nbytes)
        assert address == self.space.alloc(pages * 4096 + GUARD)
        self.areas[address] = bytearray(nbytes)

    @precondition(lambda self: self.areas)
    @rule(data=st.data(), text=st.binary(min_size=1, max_size=6000), task=st.integers(0, 1))
    def write(self, data, text, task):
        address = data.draw(st.sampled_from(sorted(self.areas)))
        contents = self.areas[address]
        at = data.draw(st.integers(0, len(contents) - 1))
        text = text[: len(contents) - at]
        self.tasks[task].kernel.write(address + at, text)
        contents[at : at + len(text)] = text

    @precondition(lambda self: self.areas)
    @rule(data=st.data(), task=st.integers(0, 1))
    def read(self, data, task):
        address = data.draw(st.sampled_from(sorted(self.areas)))
        assert self.tasks[task].kernel.read(address, len(self.areas[address])) == self.areas[address]
        end = address + -(-len(self.areas[address]) // 4096) * 4096
        with pytest.raises(KernelBug, match="0 bytes past the end"):
            self.tasks[task].kernel.read(end, 1)

    @precondition(lambda self: self.areas)
    @rule(data=st.data(), task=st.integers(0, 1))
    def vfree(self, data, task):
        address = data.draw(st.sampled_from(sorted(self.areas)))
        self.tasks[task].kernel.vfree(address)
        del self.areas[address]
        self.space.free(address)

    @rule(task=st.integers(0, 1))
    def purge(self, task):
        self.tasks[task].kernel.vm_unmap_aliases()
        self.space.lazy = []

    @invariant()
    def the_lists_agree(self):
        shown = [tuple(int(x, 16) for x in re.match("0x(\\w+)-0x(\\w+)", line).groups()) for line in lines(self.loop)]
        assert shown[: len(self.space.taken)] == sorted(self.space.taken)
        assert sorted(shown[len(self.space.taken) :]) == sorted(self.space.lazy)
        pages = sum(-(-len(contents) // 4096) for contents in self.areas.values())
        assert vmap_of(self.loop.machine).nr_vmalloc_pages == pages

    def teardown(self):
        for address in self.areas:
            self.tasks[0].kernel.vfree(address)
        self.loop.audit()
        self.loop.close()


class VmallocMachine32(VmallocMachine):
    paging = "x86-32"


TestVmalloc, TestVmalloc32 = VmallocMachine.TestCase, VmallocMachine32.TestCase
for case in (TestVmalloc, TestVmalloc32):
    case.settings = settings(max_examples=25 if JIT else 3, stateful_step_count=25 if JIT else 12, deadline=None)
    case.pytestmark = [pytest.mark.interpreted]
del case


@pytest.fixture
def uma(loopback):
    return loopback(nodes=1, cpus_per_node=1, memory_per_node="32MiB")


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
def test_scattered_pages_at_one_range_of_addresses(loopback, name):
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="32MiB", paging=name)
    kernel = machine.task().kernel
    address = kernel.vmalloc("40KiB")
    assert int(machine.machine.paging.vmalloc_start) <= address < int(machine.machine.paging.vmalloc_end)
    pfns = [kernel.vmalloc_to_page(address + 4096 * i) for i in range(10)]
    assert len(set(pfns)) == 10 and None not in pfns and kernel.vmalloc_to_page(address + 40960) is None
    kernel.write(address, bytes(range(256)) * 160)
    for i, pfn in enumerate(pfns):
        if kernel.page_address(pfn):
            assert kernel.read(kernel.page_address(pfn), 256) == bytes(range(256)), i
    kernel.vfree(address)
    assert all(kernel.page(pfn)["refcount"] == 0 for pfn in pfns)
    machine.audit()


@pytest.mark.interpreted
def test_who_asks_is_told_what_is_wrong(uma):
    kernel = uma.task().kernel
    assert kernel.vmalloc(0) is None and kernel.vmalloc("1GiB") is None
    assert kernel.vmalloc("33MiB") is None  # more than there is; what it had is free again
    address = kernel.vmalloc(4096)
    with pytest.raises(KernelBug, match="bad address"):
        kernel.vfree(address + 5)
    kernel.vfree(address)
    with pytest.raises(KernelBug, match="nonexistent vm area"):
        kernel.vfree(address)
    uma.audit()


@pytest.mark.interpreted
def test_an_area_that_cannot_be_filled_leaves_nothing(loopback):
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    kernel = machine.task().kernel
    kernel.vfree(kernel.vmalloc(4096))
    before = vmap_of(machine.machine).nr_vmalloc_pages, vmap_of(machine.machine).nr_busy
    assert kernel.vmalloc("7900KiB", GFP_KERNEL | 1 << 15) is None  # __GFP_NORETRY
    assert (vmap_of(machine.machine).nr_vmalloc_pages, vmap_of(machine.machine).nr_busy) == before
    machine.audit()


@pytest.mark.interpreted
def test_vmap_shows_pages_a_second_time(uma):
    kernel = uma.task().kernel
    pfns = [kernel.alloc_page(GFP_KERNEL) for _ in range(3)]
    address = kernel.vmap(pfns[::-1])
    kernel.write(kernel.page_address(pfns[2]), b"the last comes first")
    assert kernel.read(address, 20) == b"the last comes first"
    kernel.vunmap(address)
    with pytest.raises(KernelBug, match="nonexistent"):
        kernel.vunmap(address)
    assert kernel.read(kernel.page_address(pfns[2]), 8) == b"the last"
    for pfn in pfns:
        kernel.free_page(pfn)
    uma.audit()


@pytest.mark.interpreted
def test_pages_by_node_and_by_policy(two_nodes):
    task = two_nodes.task()
    far = task.kernel.vmalloc("32KiB", nid=1)
    assert {task.kernel.page(task.kernel.vmalloc_to_page(far + 4096 * i))["node"] for i in range(8)} == {1}
    task.set_mempolicy(MPOL_INTERLEAVE, [0, 1])
    both = task.kernel.vmalloc("32KiB")
    assert sorted(task.kernel.page(task.kernel.vmalloc_to_page(both + 4096 * i))["node"] for i in range(8)) == 4 * [
        0
    ] + 4 * [1]
    assert re.search(
        rf"0x{both:016x}-\S+ +36864 task:{task.pid} pages=8 vmalloc N0=4 N1=4", "\n".join(lines(two_nodes))
    )


@pytest.mark.interpreted
def test_a_purge_comes_when_too_much_waits_and_flushes_once(loopback):
    """Two CPUs: fls(2) times 32 MiB of addresses may wait. An idle CPU hears of the flush when it enters again."""
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="32MiB")
    one, other = machine.task(0), machine.task(1)
    pfn = one.kernel.alloc_page(GFP_KERNEL)
    first = one.kernel.vmap([pfn])
    for task in (one, other):
        task.kernel.read(first, 1)
    one.kernel.vunmap(first)
    vmap, size = vmap_of(machine.machine), 1023 if JIT else 4095
    for _ in range(2 * LAZY_MAX_PAGES // (size + 1) - 1):
        one.kernel.vunmap(one.kernel.vmap([pfn] * size))
        assert vmap.purges == 0
    assert one.kernel.vmap([pfn]) != first  # nobody gets an address that a TLB may still know
    sent = machine.vmstat()["nr_tlb_remote_flush"]
    one.kernel.vunmap(one.kernel.vmap([pfn] * size))
    assert (vmap.purges, vmap.nr_lazy, vmap.lazy) == (1, 0, 0)
    assert machine.vmstat()["nr_tlb_remote_flush"] == sent + 1
    again = one.kernel.alloc_page(GFP_KERNEL)
    one.kernel.write(one.kernel.page_address(again), b"new")
    assert one.kernel.vmap([again]) == first
    assert one.kernel.read(first, 3) == other.kernel.read(first, 3) == b"new"
    machine.audit()


@pytest.mark.interpreted
def test_no_room_makes_a_purge(loopback):
    machine = loopback(nodes=1, cpus_per_node=4, memory_per_node="40MiB", paging="x86-32")
    kernel = machine.task().kernel
    pfn = kernel.alloc_page(GFP_KERNEL)
    vmap, size = vmap_of(machine.machine), 8191
    machine.machine.paging.vmalloc_end = int(machine.machine.paging.vmalloc_start) + (48 << 20)
    vmap_area_of(machine.machine, vmap.free[vmap.nr_free - 1]).end = machine.machine.paging.vmalloc_end
    area = kernel.vmap([pfn] * size)
    kernel.vunmap(area)
    assert kernel.vmap([pfn] * size) == area and vmap.purges == 1
    assert kernel.vmap([pfn] * size) is None


@pytest.mark.interpreted
def test_the_fault_of_32_bits_copies_an_entry_of_the_kernels_table(loopback):
    """A task that was there before the table: its first access faults, the fault copies, and no later one does."""
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="32MiB", paging="x86-32")
    old, maker = machine.task(), machine.task()
    span = 4 << 20
    size = span // 4096 - 1
    pfn = maker.kernel.alloc_page(GFP_KERNEL)
    far = [maker.kernel.vmap([pfn] * size) for _ in range(3)][-1]  # in a table that nobody has had before
    maker.kernel.write(maker.kernel.page_address(pfn), b"hello")

    def entry(table):
        raw = u32.array(int(table))[far // span]
        return int(decode(np.uint64(raw), np.uint64(1)))

    mine, kernels = machine.machine.memory + machine.mm(old).pgd, machine.machine.kernel_table
    assert entry(mine) == 0 != entry(kernels)
    faults = machine.vmstat()["vmalloc_fault"]
    assert old.kernel.read(far, 5) == b"hello"
    assert machine.vmstat()["vmalloc_fault"] == faults + 1 and entry(mine) & ~0xFFF == entry(kernels) & ~0xFFF
    old.kernel.read(far + 8 * 4096, 5)
    assert machine.vmstat()["vmalloc_fault"] == faults + 1
    new = machine.task()  # has it from the start
    new.kernel.read(far, 5)
    assert machine.vmstat()["vmalloc_fault"] == faults + 1
    with pytest.raises(KernelBug, match="guard page"):
        old.kernel.read(far + size * 4096, 1)
    machine.audit()


@pytest.mark.interpreted
def test_64_bits_know_no_such_fault(uma):
    old, maker = uma.task(), uma.task()
    pfn = maker.kernel.alloc_page(GFP_KERNEL)
    far = [maker.kernel.vmap([pfn] * 511) for _ in range(2)][-1]
    old.kernel.read(far, 1)
    assert uma.vmstat()["vmalloc_fault"] == 0


def take_and_give_back(task, seed, rounds):
    """Areas of several sizes; each keeps what was written to it while others come and go."""
    random, held = np.random.default_rng(seed), []
    for _ in range(rounds):
        if len(held) < 6 and random.integers(2):
            address, nbytes = None, int(random.integers(1, 9)) * 4096
            address = task.kernel.vmalloc(nbytes)
            words = random.integers(1, 1 << 62, nbytes // 8).astype(np.uint64).tobytes()
            task.kernel.write(address, words)
            held.append((address, words))
        elif held:
            address, words = held.pop(int(random.integers(len(held))))
            assert task.kernel.read(address, len(words)) == words
            task.kernel.vfree(address)
        if not random.integers(20):
            task.kernel.vm_unmap_aliases()
    for address, words in held:
        assert task.kernel.read(address, len(words)) == words
        task.kernel.vfree(address)
    return True


def test_all_cpus_at_once(machine):
    """Purges of one CPU meet accesses, frees and allocations of the others; forks take and return stacks meanwhile."""
    runs = [machine.spawn(take_and_give_back, cpu, 150, cpu=cpu) for cpu in range(4)]
    forker = machine.task(cpu=0)
    for _ in range(20):
        forker.fork().exit()
    assert all(run.result(timeout=300) for run in runs)
    forker.exit()
    machine.check()
    assert machine.read("/proc/meminfo").split("VmallocUsed:")[1].split()[0] in {str(16 * n) for n in range(9)}


@pytest.mark.interpreted
def test_the_audit_finds_what_is_wrong(uma):
    kernel = uma.task().kernel
    address = kernel.vmalloc(8192)
    vmap = vmap_of(uma.machine)
    uma.audit()
    vmap.nr_vmalloc_pages += 1
    with pytest.raises(MachineCheck, match="3 pages counted, its areas have 2"):
        uma.audit()
    vmap.nr_vmalloc_pages -= 1
    ptep = kernel_entry_offset(uma.machine, np.uint64(address + 4096), np.uint64(12))
    kept = u64.array(ptep)[0]
    u64.array(ptep)[0] = 0
    with pytest.raises(MachineCheck, match=f"wrong at {address + 4096:#x}"):
        uma.audit()
    u64.array(ptep)[0] = kept
    vmap_area_of(uma.machine, vmap.free[0]).start += 4096
    with pytest.raises(MachineCheck, match="nobody has the addresses"):
        uma.audit()
