"""zsmalloc against a map of bytes; zswap and zram: what is kept, what is rejected, what goes to the disk."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from loopback import SMALL_TLB, Loopback

from numaemu import MADV_PAGEOUT, MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, Machine
from numaemu.compiler.build import JIT
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.kthread import run_kthreads
from numaemu.kernel.include.mmzone import ZSWAP_SHRINK, node_of
from numaemu.kernel.mm.swap import swapon
from numaemu.kernel.mm.swap.swapfile import SWAP_HAS_CACHE, swap_map, swap_of
from numaemu.kernel.mm.swap.zram import ZRAM, ZS_GFP, zentry_of, zs_pool_of
from numaemu.kernel.mm.swap.zsmalloc import (
    CLASS_SIZES,
    ENOSPC,
    HUGE_CLASS_SIZE,
    ZS_SIZE_CLASSES,
    zs_copy,
    zs_free,
    zs_malloc,
    zspage_of,
)
from numaemu.kernel.mm.swap.zswap import zswap_accept_thr_pages, zswap_max_pages, zswap_total_pages

pytestmark = pytest.mark.interpreted
PARAMETERS, DEBUG = "/sys/module/zswap/parameters", "/sys/kernel/debug/zswap"
UNRESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE


# -- zsmalloc ----------------------------------------------------------------------------------------------------


def test_size_classes_are_linuxs():
    """CONFIG_ZSMALLOC_CHAIN_SIZE=8: from 32 bytes in steps of 16; what would be alike is merged; the first huge class is 3632."""
    assert ZS_SIZE_CLASSES == 255 and CLASS_SIZES[0] == (32, 1, 128) and CLASS_SIZES[-1] == (4096, 1, 1)
    assert len(set(CLASS_SIZES)) == 119 and HUGE_CLASS_SIZE == 3632 - 7
    assert {(3264, 4, 5), (3408, 5, 6), (3632, 8, 9), (2048, 1, 2)} <= set(CLASS_SIZES)
    for number, (size, pages, objs) in enumerate(CLASS_SIZES):
        assert size >= 32 + 16 * number and objs * size <= pages * 4096 and pages <= 8


class ObjectMachine(RuleBasedStateMachine):
    """Objects of random sizes come and go; the twin holds their bytes, and counts the pages that their classes need."""

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB", **SMALL_TLB)
        self.cpu, self.pool = self.loop.cpu(), zs_pool_of(self.loop.machine, ZRAM)
        self.bytes, self.rng = {}, np.random.default_rng(1)

    @rule(size=st.one_of(st.integers(1, 4096), st.sampled_from([24, 25, 2040, 3624, 3625, 4088, 4096])))
    def alloc(self, size):
        handle = int(zs_malloc(self.cpu, self.pool, size, int(ZS_GFP)))
        data = self.rng.integers(0, 256, size).astype(np.uint8)
        assert handle > 0 and handle not in self.bytes
        zs_copy(self.cpu, self.pool, handle, int(data.ctypes.data), size, True)
        self.bytes[handle] = data
        self.look()

    @rule(which=st.integers(0, 1000))
    def free(self, which):
        if self.bytes:
            handle = list(self.bytes)[which % len(self.bytes)]
            self.look(handle)
            zs_free(self.cpu, self.pool, handle)
            del self.bytes[handle]

    def look(self, handle=None):
        for handle in [handle] if handle else list(self.bytes)[-6:]:
            data, found = self.bytes[handle], np.zeros(4096, np.uint8)
            zs_copy(self.cpu, self.pool, handle, int(found.ctypes.data), len(data), False)
            assert (found[: len(data)] == data).all()

    def teardown(self):
        for handle in list(self.bytes):
            self.look(handle)
            zs_free(self.cpu, self.pool, handle)
        assert self.pool.pages_allocated == 0 and self.loop.vmstat()["nr_zspages"] == 0
        self.loop.audit()
        self.loop.close()


TestObjects = ObjectMachine.TestCase
TestObjects.settings = settings(max_examples=20 if JIT else 2, stateful_step_count=30)


def test_objects_fill_the_fullest_zspage(loopback):
    """Six objects of 3400 bytes (class 3408: five pages for six) take five pages, a seventh five more; with the last of a
    zspage its pages go. More than a page is not taken.
    """
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    cpu, pool = loop.cpu(), zs_pool_of(loop.machine, ZRAM)
    handles = [int(zs_malloc(cpu, pool, 3400 - 8, int(ZS_GFP))) for _ in range(7)]
    assert pool.pages_allocated == 10 and len({handle >> 8 for handle in handles}) == 2
    zs_free(cpu, pool, handles[2])
    assert zs_malloc(cpu, pool, 3400 - 8, int(ZS_GFP)) == handles[2]  # the fuller one, not the emptier
    zs_free(cpu, pool, handles[6])
    assert pool.pages_allocated == 5 and zspage_of(loop.machine, handles[0] >> 8).inuse == 6
    assert zs_malloc(cpu, pool, 4097, int(ZS_GFP)) == ENOSPC
    for handle in handles[:6]:
        zs_free(cpu, pool, handle)
    loop.audit()


# -- what is kept ----------------------------------------------------------------------------------------------


def machine_with(loopback, kind="disk", zswap=True, memory="8MiB"):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node=memory)
    swapon.swapon(loop.machine, "area", 16 << 20, kind=kind)
    loop.machine.zswap_enabled = int(zswap)
    swap_of(loop.machine).page_cluster = 0
    return loop, loop.task()


def filled(task, pages, random_words, seed=1):
    """Pages of which so many words are random, the others 1: (mapping, what is in each)."""
    rng, area = np.random.default_rng(seed), task.mmap(pages << 12)
    contents = []
    for page in area.pages():
        words = np.ones(512, np.uint64)
        words[:random_words] = rng.integers(0, 1 << 63, random_words)
        contents.append(words.tobytes())
        task.write(int(page), contents[-1])
    return area, contents


def pageout(loop, task, area):
    task.madvise(area.addr, area.nbytes, MADV_PAGEOUT)
    loop.audit()


def holds(task, area, contents):
    return [task.read(int(page), 4096) for page in area.pages()] == contents


def debug(loop, *names):
    return [int(loop.read(f"{DEBUG}/{name}")) for name in names]


def event(loop, name):
    return loop.vmstat()[name]


def test_zswap_rejects_what_does_not_get_smaller(loopback):
    """Random pages go to the disk (reject_compress_poor); those of which a half is random are kept, two in a page and more."""
    loop, task = machine_with(loopback)
    poor, contents = filled(task, 6, 512)
    pageout(loop, task, poor)
    assert debug(loop, "stored_pages", "reject_compress_poor", "pool_total_size") == [0, 6, 0]
    assert (event(loop, "pswpout"), event(loop, "zswpout")) == (6, 0)
    good, more = filled(task, 34, 200)
    pageout(loop, task, good)
    stored, size = debug(loop, "stored_pages", "pool_total_size")
    assert (
        stored == 34 and 34 * 1600 < size <= 34 * 2048 and (event(loop, "pswpout"), event(loop, "zswpout")) == (6, 34)
    )
    meminfo = dict(line.split(":") for line in loop.read("/proc/meminfo").splitlines())
    assert int(meminfo["Zswapped"].split()[0]) == 4 * 34 and int(meminfo["Zswap"].split()[0]) == size >> 10
    assert event(loop, "nr_zspages") == size >> 12
    assert holds(task, poor, contents) and holds(task, good, more)
    assert debug(loop, "stored_pages", "pool_total_size") == [0, 0]  # loaded: the swap cache alone has them
    pageout(loop, task, good)
    assert debug(loop, "stored_pages") == [34] and holds(task, good, more)
    loop.audit()


def test_zram_keeps_random_pages_as_they_are_in_one_page_each(loopback):
    loop, task = machine_with(loopback, "zram", False)
    area, contents = filled(task, 5, 512)
    same = task.mmap(3 << 12)
    for page in same.pages():
        task.write(int(page), (7).to_bytes(8, "little") * 512)
    pageout(loop, task, area)
    pageout(loop, task, same)
    figures = [int(word) for word in loop.read("/sys/block/zram0/mm_stat").split()]
    assert figures == [8 << 12, 5 << 12, 5 << 12, 0, 5 << 12, 3, 0, 5, 5]  # three of one word need nothing
    assert holds(task, area, contents) and holds(task, same, [(7).to_bytes(8, "little") * 512] * 3)
    loop.audit()
    area.munmap()
    same.munmap()
    assert zs_pool_of(loop.machine, ZRAM).pages_allocated == 0
    loop.audit()


def test_mem_limit_of_zram(loopback):
    """Beyond it pages stay in memory."""
    loop, task = machine_with(loopback, "zram", False)
    loop.write("/sys/block/zram0/mem_limit", "12K")
    area, contents = filled(task, 6, 512)
    pageout(loop, task, area)
    assert zs_pool_of(loop.machine, ZRAM).pages_allocated == 3 and event(loop, "pswpout") == 3
    assert holds(task, area, contents)
    loop.write("/sys/block/zram0/mem_used_max", "0")
    loop.audit()


def test_what_is_kept_remembers_its_compressor(loopback):
    loop, task = machine_with(loopback)
    one, contents = filled(task, 4, 100)
    pageout(loop, task, one)
    loop.write(f"{PARAMETERS}/compressor", "zstd")
    two, more = filled(task, 4, 100, 2)
    pageout(loop, task, two)
    assert loop.read(f"{PARAMETERS}/compressor") == "zstd\n" and debug(loop, "stored_pages") == [8]
    assert holds(task, one, contents) and holds(task, two, more)


# -- the limit, and what goes to the disk -------------------------------------------------------------------------


def shrink(loop):
    run_kthreads(int(cpu_t.array(loop.machine.cpus)[loop.machine.nr_cpus].address))


def test_a_full_pool_rejects_until_it_is_at_the_threshold(loopback):
    """max_pool_percent and accept_threshold_percent; the worker writes back what has waited longest, to the threshold."""
    loop, task = machine_with(loopback)
    machine = loop.machine
    loop.write(f"{PARAMETERS}/max_pool_percent", "1")
    loop.write(f"{PARAMETERS}/accept_threshold_percent", "50")
    assert zswap_max_pages(machine) == machine.total_ram_pages // 100 == 20 and zswap_accept_thr_pages(machine) == 10
    area, contents = filled(task, 60, 240)
    held = loop.run_kthreads
    loop.run_kthreads = lambda: None
    pageout(loop, task, area)
    total, hit, stored = int(zswap_total_pages(machine)), *debug(loop, "pool_limit_hit", "stored_pages")
    assert 20 <= total < 28 and hit > 0 and event(loop, "pswpout") == 60 - stored > 0
    shrink(loop)
    loop.run_kthreads = held
    assert zswap_total_pages(machine) <= 10
    written, left = debug(loop, "written_back_pages", "stored_pages")
    assert written == stored - left == event(loop, "zswpwb") and event(loop, "pswpout") == 60 - left
    loop.audit()
    assert holds(task, area, contents)
    pageout(loop, task, area)
    assert debug(loop, "stored_pages")[0] > 0
    loop.audit()


def test_a_slot_in_the_swap_cache_is_not_written_back(loopback):
    """It has just been read: zswap_writeback_entry leaves it alone, and says so."""
    loop, task = machine_with(loopback)
    area, contents = filled(task, 4, 100)
    pageout(loop, task, area)
    entries = [entry for entry in range(1, 9) if zentry_of(loop.machine, entry).handle]
    for entry in entries:
        swap_map(loop.machine)[entry] |= SWAP_HAS_CACHE  # another CPU is adding it
    loop.write(f"{PARAMETERS}/max_pool_percent", "0")
    for _ in range(2):  # the first look is the second chance
        node_of(loop.machine, 0).kthread_pending = ZSWAP_SHRINK
        shrink(loop)
    assert debug(loop, "stored_pages", "written_back_pages") == [4, 0] and debug(loop, "reject_reclaim_fail")[0] >= 4
    for entry in entries:
        swap_map(loop.machine)[entry] &= ~SWAP_HAS_CACHE
    loop.audit()
    assert holds(task, area, contents)


@pytest.mark.parametrize("file, value", [("max_pool_percent", "-1"), ("accept_threshold_percent", "many"), ("enabled", "maybe"),
                                         ("compressor", "lzo"), ("shrinker_enabled", "Y")])  # fmt: skip
def test_values_that_zswap_refuses(two_nodes, file, value):
    before = two_nodes.read(f"{PARAMETERS}/{file}")
    with pytest.raises(AssertionError, match="Failure.*(must be|not one of)"):
        two_nodes.write(f"{PARAMETERS}/{file}", value)
    assert two_nodes.read(f"{PARAMETERS}/{file}") == before
    assert two_nodes.read(f"{PARAMETERS}/zpool") == "zsmalloc\n"


@pytest.mark.skipif(not JIT, reason="fills a machine's memory: minutes, page by page in Python")
@pytest.mark.parametrize("random_words", [512, 256])
def test_nobody_is_killed_beside_an_empty_disk(random_words):
    """More than memory, of pages that do not compress or only by half, with zswap before a disk that has room for all."""
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB") as machine:
        machine.swapon("32MiB", name="s")
        machine.write(f"{PARAMETERS}/enabled", "Y")
        assert machine.run(overflow, random_words) == "ok"
        stat = dict(line.split() for line in machine.read("/proc/vmstat").splitlines())
        assert int(stat["oom_kill"]) == 0 and int(stat["pswpout"]) > 1000
        assert (int(machine.read(f"{DEBUG}/reject_compress_poor")) > 1000) == (random_words == 512)
        assert (int(stat["zswpout"]) > 100) == (random_words == 256)
        machine.check()


def overflow(task, random_words):
    """20 MiB, written and then read back."""
    area, words = task.mmap("20MiB"), np.arange(random_words, dtype=np.uint64) * np.uint64(8)
    for n, page in enumerate(area.pages()):
        task.store(
            np.uint64(page) + words, np.random.default_rng(n).integers(0, 1 << 63, random_words, dtype=np.uint64)
        )
    for n, page in enumerate(area.pages()):
        expected = np.random.default_rng(n).integers(0, 1 << 63, random_words, dtype=np.uint64)
        if not (task.load(np.uint64(page) + words) == expected).all():
            return f"page {n}"
    return "ok"
