"""The LRU lists against naive ones, and pages that go to swap and come back."""

import errno

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from loopback import SMALL_TLB, Loopback

from numaemu import (
    GFP_KERNEL,
    MADV_FREE,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    O_CREAT,
    O_RDWR,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    Machine,
    MachineCheck,
    SegmentationFault,
)
from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import u64
from numaemu.kernel.arch.pgtable import pte_offset
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.kernel.include.internal import PF_OOM_ORIGIN
from numaemu.kernel.include.mm_types import MM_SWAPENTS, PG_dirty, PG_swapbacked, PG_swapcache
from numaemu.kernel.include.mmzone import LRU_ACTIVE, LRU_FILE, LRU_INACTIVE_ANON, lruvec_of
from numaemu.kernel.mm.reclaim import lru_batches as swap
from numaemu.kernel.mm.swap import swapfile, swapon
from numaemu.kernel.mm.swap.zram import ZRAM, ZSWAP, zstat_of
from numaemu.spec.param import FOLIO_BATCH_SIZE

UNRESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE


# -- the lists -----------------------------------------------------------------------------------------------


class NaiveLru:
    """Pages of one CPU on lists of Python, the newest first; a batch is a list of what waits."""

    def __init__(self):
        self.lists = {lru: [] for lru in range(4)}
        self.batches = {kind: [] for kind in range(swap.NR_FBATCHES)}
        self.active, self.referenced, self.file, self.isolated = set(), set(), set(), set()

    def list_of(self, pfn):
        return self.lists[(LRU_FILE if pfn in self.file else 0) + (LRU_ACTIVE if pfn in self.active else 0)]

    def on_list(self, pfn):
        return any(pfn in pages for pages in self.lists.values())

    def take_off(self, pfn):
        for pages in self.lists.values():
            if pfn in pages:
                pages.remove(pfn)

    def queue(self, kind, pfn):
        self.batches[kind].append(pfn)
        if len(self.batches[kind]) == FOLIO_BATCH_SIZE:
            self.drain_one(kind)

    def drain_one(self, kind):
        pages, self.batches[kind] = self.batches[kind], []
        for pfn in pages:
            if kind != swap.LRU_ADD and not self.on_list(pfn):
                continue
            if (
                kind == swap.LRU_ACTIVATE
                and pfn in self.active
                or kind == swap.LRU_DEACTIVATE
                and pfn not in self.active
            ):
                continue
            self.take_off(pfn)
            if kind == swap.LRU_ACTIVATE:
                self.active.add(pfn)
            if kind in (swap.LRU_MOVE_TAIL, swap.LRU_DEACTIVATE):
                self.active.discard(pfn)
            if kind == swap.LRU_DEACTIVATE:
                self.referenced.discard(pfn)
            self.list_of(pfn).insert(len(self.list_of(pfn)) if kind == swap.LRU_MOVE_TAIL else 0, pfn)

    def drain(self):
        for kind in range(swap.NR_FBATCHES):
            if self.batches[kind]:
                self.drain_one(kind)

    def activate(self, pfn):
        if pfn not in self.active and self.on_list(pfn):
            self.queue(swap.LRU_ACTIVATE, pfn)

    def mark_accessed(self, pfn):
        if pfn not in self.referenced:
            self.referenced.add(pfn)
            return
        if pfn in self.active:
            return
        if self.on_list(pfn):
            self.activate(pfn)
        elif pfn in self.batches[swap.LRU_ADD]:
            self.active.add(pfn)
        self.referenced.discard(pfn)


class LruMachine(RuleBasedStateMachine):
    """Pages of one task's kernel allocations, moved through the lists by hand."""

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB", **SMALL_TLB)
        self.task, self.cpu, self.naive, self.pages = self.loop.task(), self.loop.cpu(), NaiveLru(), []
        swap.lru_add_drain(self.cpu)  # what the new task has touched goes out of the way
        self.before = self.lists()

    def lists(self):
        """The four evictable lists, from the head."""
        lruvec, found = lruvec_of(self.loop.machine, 0), {}
        for lru in range(4):
            pages, pfn = [], lruvec.head[lru]
            while pfn:
                pages.append(pfn)
                pfn = self.loop.page(pfn).lru_next
            found[lru] = pages
        return found

    @rule(file=st.booleans())
    def add(self, file):
        pfn = self.task.kernel.alloc_pages(GFP_KERNEL, 0)
        if file:
            self.naive.file.add(pfn)
        else:
            self.loop.page(pfn).flags |= PG_swapbacked
        self.pages.append(pfn)
        swap.folio_add_lru(self.cpu, pfn)
        self.naive.queue(swap.LRU_ADD, pfn)

    def pick(self, data):
        return data.draw(st.sampled_from(self.pages))

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def mark_accessed(self, data):
        pfn = self.pick(data)
        swap.folio_mark_accessed(self.cpu, pfn)
        self.naive.mark_accessed(pfn)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def activate(self, data):
        pfn = self.pick(data)
        swap.folio_activate(self.cpu, pfn)
        self.naive.activate(pfn)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def deactivate(self, data):
        pfn = self.pick(data)
        swap.folio_deactivate(self.cpu, pfn)
        if pfn in self.naive.active and self.naive.on_list(pfn):
            self.naive.queue(swap.LRU_DEACTIVATE, pfn)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def rotate(self, data):
        pfn = self.pick(data)
        swap.folio_rotate_reclaimable(self.cpu, pfn)
        if self.naive.on_list(pfn):
            self.naive.queue(swap.LRU_MOVE_TAIL, pfn)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def isolate_or_put_back(self, data):
        pfn = self.pick(data)
        if pfn in self.naive.isolated:
            swap.folio_putback_lru(self.cpu, pfn)
            self.naive.isolated.discard(pfn)
            self.naive.queue(swap.LRU_ADD, pfn)
        else:
            taken = swap.folio_isolate_lru(self.cpu, pfn)
            assert bool(taken) == self.naive.on_list(pfn)
            if taken:
                self.naive.take_off(pfn)
                self.naive.isolated.add(pfn)

    @rule()
    def drain(self):
        swap.lru_add_drain(self.cpu)
        self.naive.drain()

    @invariant()
    def lists_agree(self):
        ours = self.lists()
        for lru in range(4):
            known = [pfn for pfn in ours[lru] if pfn not in self.before[lru]]
            assert known == self.naive.lists[lru]
            assert lruvec_of(self.loop.machine, 0).nr[lru] == len(ours[lru])

    def teardown(self):
        for pfn in list(self.naive.isolated):
            swap.folio_putback_lru(self.cpu, pfn)
        swap.lru_add_drain(self.cpu)
        self.loop.audit()
        self.loop.close()


TestLru = LruMachine.TestCase
TestLru.settings = settings(max_examples=30 if JIT else 5, stateful_step_count=60)
pytestmark = []
TestLru.pytestmark = [pytest.mark.interpreted]


# -- swap ----------------------------------------------------------------------------------------------------


def system(loop):
    return System(loop.machine, loop.topology)


def patterned(task, size, seed):
    """A mapping larger than memory may be, and what each page's first word holds."""
    mapping = task.mmap(size, flags=UNRESERVED)
    values = np.arange(1, len(mapping.pages()) + 1, dtype=np.uint64) * np.uint64(seed)
    task.store(mapping.pages(), values)
    return mapping, values


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", ["disk", "zram"])
@pytest.mark.skipif(not JIT, reason="reclaim of a full machine takes minutes interpreted")
def test_what_does_not_fit_comes_back_as_it_was(loopback, kind):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB")
    swapon.swapon(loop.machine, "area", 16 << 20, kind=kind)
    task = loop.task()
    mapping, values = patterned(task, "6MiB", 7)
    assert (task.load(mapping.pages()) == values).all()
    counted = loop.vmstat()
    assert counted["pswpout"] > 400 and counted["pswpin"] > 400 and counted["pgmajfault"] > 0
    assert counted["pgsteal_anon"] == counted["pgsteal_kswapd"] + counted["pgsteal_direct"]
    assert counted["workingset_refault_anon"] >= counted["pswpin"] > 0
    loop.audit()


@pytest.mark.interpreted
def test_pageout_leaves_the_page_in_the_swap_cache_until_it_is_reclaimed(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20)
    task = loop.task()
    mapping, values = patterned(task, "256KiB", 3)
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    assert not any(loop.pte(task, int(address)) & 1 for address in mapping.pages())
    counted = loop.vmstat()
    assert counted["pswpout"] == counted["nr_swapcached"] == len(values) and counted["pgmajfault"] == 0
    assert (task.load(mapping.pages()) == values).all()
    counted = loop.vmstat()
    assert counted["pgmajfault"] == counted["pswpin"] == 0, "the pages were still in memory"
    loop.audit()


@pytest.mark.interpreted
def test_a_write_gives_the_slot_up_and_a_read_leaves_the_page_writable(loopback):
    """should_try_to_free_swap: who writes alone to a page of the swap cache needs its slot no more. A page that was read and
    belongs to nobody else is mapped writable at once: its first write is no fault.
    """
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20)
    task = loop.task()
    mapping, values = patterned(task, "256KiB", 3)
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    task.store(mapping.pages()[:32], values[:32])
    assert loop.vmstat()["nr_swapcached"] == 32
    assert (task.load(mapping.pages()[32:]) == values[32:]).all() and loop.vmstat()["nr_swapcached"] == 32
    before = task.counters()["task_minor_faults"]
    task.store(mapping.pages()[32:], values[32:] + np.uint64(1))
    assert task.counters()["task_minor_faults"] == before
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    assert (task.load(mapping.pages()[32:]) == values[32:] + np.uint64(1)).all()
    loop.audit()


@pytest.mark.interpreted
def test_what_reclaim_knows_of_the_lists_is_as_old_as_the_last_flush(loopback):
    """The sums of memory cgroups are made every two seconds, and lruvec_page_state reads them."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    task, lruvec = loop.task(), lruvec_of(loop.machine, 0)
    task.mmap("1MiB").touch()
    loop.drain()
    assert lruvec.nr[LRU_INACTIVE_ANON] >= 200 and lruvec.state[LRU_INACTIVE_ANON] == 0
    task.sleep(2000)
    area = task.mmap("1MiB")
    known = lruvec.state[LRU_INACTIVE_ANON]
    assert known == lruvec.nr[LRU_INACTIVE_ANON]
    area.touch()
    loop.drain()
    assert lruvec.nr[LRU_INACTIVE_ANON] >= known + 200 and lruvec.state[LRU_INACTIVE_ANON] == known


@pytest.mark.interpreted
def test_reclaim_on_a_young_machine_makes_the_sums_first(loopback):
    """They would be 0 until two seconds have passed, and no list would ever seem low."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20)
    task, lruvec = loop.task(), lruvec_of(loop.machine, 0)
    area = task.mmap("16MiB")
    pages = area.pages()
    for first in range(0, len(pages), 16):
        task.store(pages[first : first + 16], np.uint64(1))
        if loop.vmstat()["pgscan_direct"] + loop.vmstat()["pgscan_kswapd"] > 0:
            break
    assert task.clock_ns < 2_000_000_000 and loop.vmstat()["pgscan_anon"] > 0
    assert lruvec.state[LRU_INACTIVE_ANON] + lruvec.state[LRU_INACTIVE_ANON + 1] > 500


@pytest.mark.interpreted
def test_pages_of_zeros_are_noted_not_written(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20)
    task = loop.task()
    mapping = task.mmap("64KiB")
    task.store(mapping.pages(), np.uint64(0))
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    counted = loop.vmstat()
    assert counted["swpout_zero"] == 16 and counted["pswpout"] == 0 and counted["nr_swapcached"] == 0
    assert set(task.load(mapping.pages()).tolist()) == {0}
    assert loop.vmstat()["swpin_zero"] == 16
    loop.audit()


@pytest.mark.interpreted
def test_a_child_shares_what_is_swapped_out_and_each_side_writes_its_own(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20)
    task = loop.task()
    mapping, values = patterned(task, "64KiB", 5)
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    child = task.fork()
    child.store(mapping.pages()[:8], np.uint64(99))
    assert (task.load(mapping.pages()) == values).all()
    task.store(mapping.pages()[8:], np.uint64(77))
    assert child.load(mapping.pages()).tolist() == [99] * 8 + values[8:].tolist()
    loop.audit()
    task.exit()
    assert child.load(mapping.pages()).tolist() == [99] * 8 + values[8:].tolist()
    child.exit()
    assert swapon.areas(loop.machine)[0].inuse_pages == 0
    loop.audit()


@pytest.mark.interpreted
def test_slots_go_with_what_named_them(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20)
    task = loop.task()
    mapping, _ = patterned(task, "64KiB", 5)
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    area = swapon.areas(loop.machine)[0]
    assert area.inuse_pages == 16 and loop.machine.nr_swap_pages == 4095 - 16
    task.munmap(mapping.addr, mapping.nbytes)
    assert area.inuse_pages == 0 and loop.machine.nr_swap_pages == 4095
    loop.audit()


@pytest.mark.interpreted
def test_what_is_written_after_it_came_back_outlives_the_writer(loopback):
    """The slot holds the old words; only the parent's entry is dirty, until fork gives the child an entry as dirty."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20, kind="zram")
    task = loop.task()
    mapping, values = patterned(task, "64KiB", 5)
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    assert (task.load(mapping.pages()) == values).all()
    task.store(mapping.pages(), values + np.uint64(1))
    child = task.fork()
    task.exit()
    child.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    assert (child.load(mapping.pages()) == values + np.uint64(1)).all()
    loop.audit()


@pytest.mark.interpreted
def test_pages_whose_slot_somebody_needs_are_not_given_up(loopback):
    """MADV_FREE of a page of the swap cache that the child's entry still names: its words must still be written."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20)
    task = loop.task()
    mapping, values = patterned(task, "64KiB", 5)
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    child = task.fork()
    assert (task.load(mapping.pages()) == values).all()
    pages = [loop.page(loop.pfn(task, int(address))) for address in mapping.pages()]
    for page in pages:
        page.flags |= PG_dirty  # as if it could not be written
    task.madvise(mapping.addr, mapping.nbytes, MADV_FREE)
    assert all(page.flags & PG_dirty for page in pages)
    assert (child.load(mapping.pages()) == values).all()
    loop.audit()


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", ["disk", "zram"])
def test_a_page_that_is_compressed_again_replaces_what_was_kept(loopback, kind):
    """zram, or zswap before a disk: one copy of each page, counted once; and none is left when the disk has the page."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20, kind=kind)
    loop.machine.zswap_enabled = 1
    task, stat = loop.task(), zstat_of(loop.machine, ZRAM if kind == "zram" else ZSWAP)
    mapping, values = patterned(task, "64KiB", 5)
    for n in range(3):
        task.store(mapping.pages(), values + np.uint64(n))
        task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
        assert stat.pages == 16
        assert (task.load(mapping.pages()) == values + np.uint64(n)).all()
        assert stat.pages == (16 if kind == "zram" else 0)  # from zswap it has moved to the swap cache
    if kind == "disk":
        loop.machine.zswap_enabled = 0
        task.store(mapping.pages(), values + np.uint64(9))
        for _ in range(2):
            task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
        swap.lru_add_drain(loop.cpu())
        task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
        assert stat.pages == 0
        assert (task.load(mapping.pages()) == values + np.uint64(9)).all()
    mapping.munmap()
    assert stat.pages == 0 == stat.compr_bytes
    loop.audit()


@pytest.mark.interpreted
@pytest.mark.parametrize("kind", ["disk", "zram"])
def test_only_a_disk_is_waited_for(loopback, kind):
    """A fault from zram costs a decompression, one from the disk its latency; a page of zeros neither."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20, kind=kind)
    task = loop.task()
    mapping, _ = patterned(task, "64KiB", 5)
    task.store(mapping.pages()[8:], np.uint64(0))
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    task.mmap("12MiB", flags=UNRESERVED).touch().munmap()  # nothing of it is left in the swap cache
    swapfile.swap_of(loop.machine).page_cluster = 0
    times = []
    for part in (mapping.pages()[:8], mapping.pages()[8:]):
        before = task.clock_ns
        task.load(part)
        times.append(task.clock_ns - before)
    latency = loop.machine.disk_read_ns
    assert times[1] < latency
    assert times[0] > latency if kind == "disk" else 8 * loop.machine.decompress_ns < times[0] < latency
    loop.audit()


@pytest.mark.interpreted
def test_shared_objects_in_swap_are_accounted_for_and_come_back_at_swapoff(two_nodes):
    """Their swap entries stand in their trees, not in page tables: of shared memory, and of a tmpfs file nobody maps."""
    swapon.swapon(two_nodes.machine, "area", 1 << 20, kind="disk")
    task = two_nodes.task()
    shared = task.mmap("16KiB", flags=MAP_SHARED | MAP_ANONYMOUS)
    with task.open("/dev/shm/x", O_RDWR | O_CREAT) as file:
        file.truncate(8192)
        mapped = task.mmap("8KiB", flags=MAP_SHARED, file=file)
    for area in (shared, mapped):
        task.store(area.pages(), np.arange(area.nbytes // 4096, dtype=np.uint64) + np.uint64(7))
        task.madvise(area.addr, area.nbytes, MADV_PAGEOUT)
    mapped.munmap()
    assert two_nodes.vmstat()["pswpout"] == 6
    two_nodes.audit()
    kind = swapon.swapoff_begin(two_nodes.machine, "area")
    swapon.try_to_unuse(int(two_nodes.cpu().address), kind)
    swapon.swapoff_end(two_nodes.machine, kind)
    assert task.load(shared.pages()).tolist() == [7, 8, 9, 10]
    with task.open("/dev/shm/x") as file:
        assert file.read(8, 4096) == (8).to_bytes(8, "little")
    two_nodes.audit()


@pytest.mark.interpreted
def test_names_of_areas(two_nodes):
    """The next device of a kind; swapoff of what is not there is ENOENT, of what is no area EINVAL."""
    machine = two_nodes.machine
    names = [swapon.swapon(machine, None, 1 << 20, kind=kind) for kind in ("disk", "zram", "disk", "zram")]
    assert names == ["/dev/vdb", "/dev/zram0", "/dev/vdc", "/dev/zram1"]
    two_nodes.task().open("/mnt/f", O_RDWR | O_CREAT)
    for name, number in (("/dev/none", errno.ENOENT), ("/mnt/f", errno.EINVAL), ("/dev/vda", errno.EINVAL)):
        with pytest.raises(OSError, match="swapoff: .*not a swap area") as caught:
            swapon.swapoff_begin(machine, name)
        assert caught.value.errno == number and caught.value.filename == name
    with pytest.raises(OSError, match="swapon: priority 40000 must be 0 to 32767"):
        swapon.swapon(machine, None, 1 << 20, 40000)


@pytest.mark.interpreted
@pytest.mark.parametrize("prot", [PROT_NONE, PROT_READ])
def test_swapoff_brings_a_page_back_under_the_protection_of_its_mapping(two_nodes, prot):
    swapon.swapon(two_nodes.machine, "area", 1 << 20, kind="zram")
    task = two_nodes.task()
    area = task.mmap("8KiB")
    task.write(area.addr, b"secret")
    task.mprotect(area.addr, 4096, prot)
    task.madvise(area.addr, 4096, MADV_PAGEOUT)
    before = two_nodes.vmstat()
    kind = swapon.swapoff_begin(two_nodes.machine, "area")
    swapon.try_to_unuse(int(two_nodes.cpu().address), kind)
    swapon.swapoff_end(two_nodes.machine, kind)
    after = two_nodes.vmstat()
    assert after["pgmajfault"] == before["pgmajfault"] and after["pswpin"] > before["pswpin"]
    assert two_nodes.pte(task, area.addr) & 1
    if prot == PROT_NONE:
        with pytest.raises(SegmentationFault):
            task.read(area.addr, 6)
    with pytest.raises(SegmentationFault):
        task.write(area.addr, b"X")
    two_nodes.audit()
    task.mprotect(area.addr, 4096, PROT_READ | PROT_WRITE)
    assert task.read(area.addr, 6) == b"secret"
    task.write(area.addr, b"public")
    assert task.read(area.addr, 6) == b"public"


@pytest.mark.interpreted
@pytest.mark.parametrize("processes", [1, 3])
def test_swapoff_reads_each_page_once_though_the_area_holds_more_than_memory(loopback, processes):
    """A page that is back gives its slot up at once, and has come back to all processes that share it: otherwise reclaim puts
    it into the slot again while others come back, and with shared pages that goes on for ever.
    """
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB")
    loop.write("/proc/sys/vm/nr_hugepages", "1")  # less than 2 MiB are left, of which most are locked
    task, other = loop.task(), loop.task()
    locked = other.mmap("1200KiB")
    other.mlock(locked.addr, locked.nbytes)
    swapon.swapon(loop.machine, "first", 8 << 20, 5)
    area = task.mmap("1MiB")
    values = np.arange(area.nbytes // 4096, dtype=np.uint64) + np.uint64(7)
    task.store(area.pages(), values)
    swapon.swapon(loop.machine, "second", 64 << 20, 1)
    tasks = [task, *(task.fork() for _ in range(processes - 1))]
    first, before = swapfile.swap_of(loop.machine).info[0], loop.vmstat()
    held = int(first.inuse_pages)
    assert held > 2 * (before["nr_active_anon"] + before["nr_inactive_anon"])
    kind = swapon.swapoff_begin(loop.machine, "first")
    loop.cpu().flags |= PF_OOM_ORIGIN  # as try_to_unuse does around its rounds, of which this is one
    assert swapon.unuse_all(loop.cpu(), kind) and first.inuse_pages == 0
    loop.cpu().flags &= ~PF_OOM_ORIGIN
    swapon.swapoff_end(loop.machine, kind)
    assert loop.vmstat()["pswpin"] - before["pswpin"] < 2 * held
    for each in tasks:
        assert (each.load(area.pages()) == values).all()
    loop.audit()


def test_swapoff_brings_everything_back():
    with Machine(nodes=1, cpus_per_node=2, memory_per_node="32MiB") as machine:
        machine.swapon("64MiB", name="first", priority=5)
        machine.swapon("64MiB", name="second")
        task = machine.task()
        mapping, values = patterned(task, "1MiB", 9)
        task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
        lines = machine.read("/proc/swaps").splitlines()
        assert lines[1].split() == ["first", "partition", "65532", "1024", "5"]
        assert lines[2].split() == ["second", "partition", "65532", "0", "-2"]
        machine.swapoff("first")
        assert [line.split()[0] for line in machine.read("/proc/swaps").splitlines()[1:]] == ["second"]
        assert (task.load(mapping.pages()) == values).all()
        machine.check()


def test_swap_area_errors():
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB") as machine:
        machine.swapon("8MiB", name="a")
        with pytest.raises(OSError, match="in use: 'a'") as caught:
            machine.swapon("8MiB", name="a")
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(ValueError, match="4096 bytes, must be 8 KiB to 16 GiB"):
            machine.swapon("4KiB", name="b")
        with pytest.raises(ValueError, match="kind 'tape' is not one of disk, zram"):
            machine.swapon("1MiB", name="b", kind="tape")
        with pytest.raises(OSError, match="not a swap area: 'c'"):
            machine.swapoff("c")


def churn(task, size, seed, rounds):
    """Write half of the pages of a range at random, again and again, and look at what was there; errors found."""
    rng, mapping = np.random.default_rng(seed), task.mmap(size, flags=UNRESERVED)
    pages = mapping.pages()
    shadow, wrong = np.zeros(len(pages), np.uint64), 0
    for _ in range(rounds):
        picked = rng.permutation(len(pages))[: len(pages) // 2]
        places = pages[picked] + np.uint64(8) * (picked.astype(np.uint64) % np.uint64(512))
        wrong += int((task.load(places) != shadow[picked]).sum())
        shadow[picked] = rng.integers(1, 1 << 60, len(picked)).astype(np.uint64)
        task.store(places, shadow[picked])
    return wrong


@pytest.mark.parametrize("kind", ["disk", "zram"])
def test_all_cpus_at_many_times_the_memory(kind):
    """Four CPUs on two nodes, each with more memory than the machine has."""
    with Machine(nodes=2, cpus_per_node=2, memory_per_node="16MiB") as machine:
        area = machine.swapon("256MiB", kind=kind)
        handles = [machine.spawn(churn, "40MiB", cpu, 4, cpu=cpu) for cpu in range(4)]
        assert [handle.result() for handle in handles] == [0] * 4
        counted = machine.stats()["vmstat"]
        assert counted["pswpout"] > 0 and counted["pswpin"] > 0 and counted["oom_kill"] == 0
        machine.check()
        machine.swapoff(area)  # every slot can be given back
        machine.check()


# -- the audit ---------------------------------------------------------------------------------------------------


def slot_of(loop, task, mapping, n):
    return loop.pfn(task, int(mapping.pages()[n]))


def break_reference(loop, task, mapping):
    swapfile.swap_map(loop.machine)[slot_of(loop, task, mapping, 3)] += 1


def break_cache(loop, task, mapping):
    loop.page(swapfile.swap_cache(loop.machine)[slot_of(loop, task, mapping, 2)]).private += 1


def break_mark(loop, task, mapping):
    loop.page(loop.pfn(task, int(mapping.pages()[-1]))).flags |= PG_swapcache


def break_inuse(loop, task, mapping):
    swapon.areas(loop.machine)[0].inuse_pages += 1


def break_free(loop, task, mapping):
    loop.machine.nr_swap_pages -= 2


def break_rss(loop, task, mapping):
    loop.mm(task).rss[MM_SWAPENTS] += 1


def break_zram(loop, task, mapping):
    zstat_of(loop.machine, ZSWAP).compr_bytes += 8


def break_wild(loop, task, mapping):
    u64.array(int(pte_offset(loop.machine, loop.mm(task), int(mapping.pages()[5]))))[0] += np.uint64(1 << 40)


@pytest.mark.interpreted
@pytest.mark.parametrize("harm, line", [
    (break_reference, "slot 4: swap_map says 2 references and the swap cache, 1 entries of page tables and objects name it"),
    (break_cache, "slot 3: swap_map is 0x40000001, its word in the swap cache .*, entry 4, refcount 1"),
    (break_mark, "swap cache: 17 pages are marked, nr_swapcached is 16, 16 slots have one"),
    (break_inuse, "swap area: inuse_pages is 17, 16 slots are taken"),
    (break_free, "nr_swap_pages are 4095 and 4077, the areas have 4095 slots, 4079 of them free"),
    (break_rss, "rss says 17 swapped pages, its tables have 16 swap entries"),
    (break_zram, r"zswap: pages, bytes, huge pages are \(16, .* are kept"),
    (break_wild, "the swap entry at 0x.* is in no swap area"),
])  # fmt: skip
def test_the_audit_sees(loopback, harm, line):
    """One wrong word, one clear line. Of 17 pages 16 have slots, and are still in the swap cache."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20)
    task = loop.task()
    mapping, _ = patterned(task, "68KiB", 3)
    task.madvise(mapping.addr, 16 << 12, MADV_PAGEOUT)
    if harm is break_zram:
        loop.machine.zswap_enabled = 1
        task.store(mapping.pages(), np.uint64(1))
        task.madvise(mapping.addr, 16 << 12, MADV_PAGEOUT)
    loop.audit()
    harm(loop, task, mapping)
    with pytest.raises(MachineCheck, match=line):
        loop.audit()


@pytest.mark.parametrize("kind, ahead", [("disk", True), ("zram", False)])
def test_nothing_is_read_ahead_from_memory(loopback, kind, ahead):
    """SWP_SYNCHRONOUS_IO: a fault from zram brings one page; what a child names too goes through readahead as ever."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20, kind=kind)
    task = loop.task()
    mapping, values = patterned(task, "256KiB", 5)
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    task.mmap("12MiB", flags=UNRESERVED).touch().munmap()  # nothing of it is left in the swap cache
    before = loop.vmstat()
    assert (task.load(mapping.pages()) == values).all()
    counts = {name: n - before[name] for name, n in loop.vmstat().items()}
    assert counts["pswpin"] == 64 and (counts["swap_ra"] > 0) == ahead
    assert ahead or counts["pgmajfault"] == 64
    loop.audit()


@pytest.mark.interpreted
def test_what_is_swapped_in_to_a_locked_range_is_locked(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    swapon.swapon(loop.machine, "swap", 8 << 20, -1, "disk")
    task = loop.task()
    area = task.mmap(64 << 12)
    task.store(area.pages(), np.arange(64, dtype=np.uint64))
    task.madvise(area.addr, 64 << 12, MADV_PAGEOUT)
    assert loop.mm(task).rss[MM_SWAPENTS] > 0
    task.mlock(area.addr, 64 << 12)
    assert loop.vmstat()["nr_mlock"] == 64
    loop.audit()
    assert loop.vmstat()["nr_unevictable"] == 64
    task.munlock(area.addr, 64 << 12)
    assert loop.vmstat()["nr_mlock"] == 0 and task.load(area.pages()).tolist() == list(range(64))
    loop.audit()


@pytest.mark.interpreted
def test_pages_that_two_processes_use_go_to_swap_where_no_file_is_cached(loopback):
    """All of them become active at reclaim's first look. Then it must make them inactive though the sums of the lists, two
    seconds old, say that enough are: where files are cached, Linux's loop over the lists sees to it.
    """
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB")
    swapon.swapon(loop.machine, "area", 8 << 20)
    task = loop.task()
    area = task.mmap(800 << 12)
    task.store(area.pages(), np.arange(800, dtype=np.uint64))
    child = task.fork()
    for one in (task, child):
        one.load(area.pages()[:780])
    pages = [task.kernel.alloc_pages(GFP_KERNEL, 0) for _ in range(400)]
    assert None not in pages and loop.vmstat()["oom_kill"] == 0 and loop.vmstat()["pswpout"] > 0
    assert child.load(area.pages()).tolist() == list(range(800))
    for pfn in pages:
        task.kernel.free_pages(pfn, 0)
    loop.audit()
