"""Slab caches and kmalloc against a dictionary of what was written; the debug options; the audit after each step."""

import re

import numba
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from loopback import SMALL_TLB, Loopback

import numaemu
from numaemu import (
    GFP_ATOMIC,
    GFP_KERNEL,
    SLAB_HWCACHE_ALIGN,
    SLAB_POISON,
    SLAB_RECLAIM_ACCOUNT,
    SLAB_RED_ZONE,
    SLAB_STORE_USER,
    KernelBug,
    kmem_cache_alloc,
    kmem_cache_free,
)
from numaemu.compiler.build import JIT
from numaemu.errors import MachineCheck
from numaemu.kernel.fs.proc.slabinfo import slabinfo
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.kernel.mm.slab.slab import cache_of, cpu_slab, get_node
from numaemu.kernel.mm.slab.slab_common import KMALLOC_SIZES, calculate_order
from numaemu.kernel.mm.slab.slub_debug import kmem_cache_flags

GFP_ZERO = numaemu.__GFP_ZERO
DEBUG = SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER
PAGE_OFFSET = 0xFFFF_8880_0000_0000


def pfn_of(address):
    return (address - PAGE_OFFSET) >> 12


class SlabMachine(RuleBasedStateMachine):
    """Objects of several caches and of kmalloc, on four CPUs, freed on any: contents survive, nothing overlaps."""

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=2, cpus_per_node=2, memory_per_node="16MiB", **SMALL_TLB)
        self.tasks = [self.loop.task(cpu) for cpu in range(4)]
        self.loop.drain()
        self.start = [zone.free_pages for zone in self.loop.zones()]
        create = self.tasks[0].kernel.kmem_cache_create
        self.caches = [
            create("small", 24),
            create("aligned", 200, flags=SLAB_HWCACHE_ALIGN),
            create("inodes", 600, flags=SLAB_RECLAIM_ACCOUNT),
            create("checked", 100, flags=DEBUG),
            create("large", 5000),
            create("made", 40, ctor=b"constructed"),
        ]
        self.live = {}  # address: (cache or None, bytes)
        self.seed = 0

    def put(self, task, cache, address, size):
        self.seed += 1
        data = (self.seed * 2654435761 % 2**32).to_bytes(4, "little") * (-(-size // 4))
        task.kernel.write(address, data[:size])
        self.live[address] = cache, data[:size]

    @rule(cpu=st.integers(0, 3), which=st.integers(0, 5), times=st.sampled_from([1, 5, 60]), nid=st.integers(-1, 1))
    def alloc(self, cpu, which, times, nid):
        cache, task = self.caches[which], self.tasks[cpu]
        for _ in range(times):
            address = task._op("kmem_cache_alloc", cache.number, GFP_KERNEL, nid)
            assert address and address not in self.live
            if cache.name == "aligned":
                assert address % 64 == 0
            if cache.name == "made":
                assert task.kernel.read(address, 11) == b"constructed"
            self.put(task, which, address, (24, 200, 600, 100, 5000, 40)[which])

    @rule(
        cpu=st.integers(0, 3),
        size=st.sampled_from([1, 8, 65, 96, 100, 192, 193, 4096, 8192, 8193, 70000]),
        zero=st.booleans(),
    )
    def kmalloc(self, cpu, size, zero):
        task = self.tasks[cpu]
        address = task.kernel.kmalloc(size, GFP_KERNEL | (GFP_ZERO if zero else 0))
        assert task.kernel.ksize(address) >= size and address not in self.live
        if zero:
            assert task.kernel.read(address, size) == bytes(size)
        self.put(task, None, address, size)

    @precondition(lambda self: self.live)
    @rule(cpu=st.integers(0, 3), times=st.sampled_from([1, 8, 100]), data=st.data())
    def free(self, cpu, times, data):
        for _ in range(min(times, len(self.live))):
            position = data.draw(st.integers(0, len(self.live) - 1)) if times == 1 else self.seed % len(self.live)
            address = sorted(self.live)[position]
            self.seed += 7
            self.give_back(self.tasks[cpu], address)

    def give_back(self, task, address):
        which, contents = self.live.pop(address)
        assert task.kernel.read(address, len(contents)) == contents
        if which is not None and self.caches[which].name == "made":  # freed in its constructed state
            task.kernel.write(address, b"constructed")
        if which is None:
            task.kernel.kfree(address)
        else:
            task._op("kmem_cache_free", self.caches[which].number, address)

    @rule(which=st.integers(0, 5))
    def shrink(self, which):
        self.caches[which].shrink()

    @invariant()
    def nothing_overlaps(self):
        end = 0
        for address in sorted(self.live):
            assert address >= end
            end = address + len(self.live[address][1])

    @invariant()
    def the_audit_agrees(self):
        self.loop.audit()

    def teardown(self):
        for address in list(self.live):
            self.give_back(self.tasks[0], address)
        for cache in self.caches:
            cache.destroy()
        for number in range(1, len(KMALLOC_SIZES) + 1):
            self.tasks[0]._op("kmem_cache_shrink", number)
        self.loop.drain()
        assert [zone.free_pages for zone in self.loop.zones()] == self.start
        vmstat = self.loop.vmstat()
        assert vmstat["nr_slab_reclaimable"] == vmstat["nr_slab_unreclaimable"] == 0
        self.loop.audit()
        self.loop.close()


SlabMachine.TestCase.settings = settings(max_examples=25 if JIT else 2, stateful_step_count=30)
TestSlab = pytest.mark.interpreted(SlabMachine.TestCase)


@pytest.fixture
def task(two_nodes):
    task = two_nodes.task(0)
    yield task
    two_nodes.audit()


def checked(task, **keywords):
    return task.kernel.kmem_cache_create("checked", 100, flags=DEBUG, **keywords)


@pytest.mark.interpreted
@pytest.mark.parametrize("offset, what", [(100, "Right Redzone overwritten"), (-1, "Left Redzone overwritten")])
def test_overrun_is_caught_when_the_object_is_freed(two_nodes, task, offset, what):
    cache = checked(task)
    address = cache.alloc(GFP_KERNEL)
    task.kernel.write(address + offset, b"\x11")
    freer = two_nodes.task(1)
    with pytest.raises(
        KernelBug,
        match=f"cache checked: {what}: object {address:#x}, byte [+]?{offset} is 0x11, must be "
        f"0xcc; allocated by pid {task.pid} on cpu 0 .*; found by pid {freer.pid} on cpu 1",
    ):
        freer._op("kmem_cache_free", cache.number, address)
    cache.free(address)  # the red zone is whole again, the object was not freed
    cache.destroy()


@pytest.mark.interpreted
def test_double_free_names_both_parties(two_nodes, task):
    cache, other = checked(task), two_nodes.task(1)
    address = cache.alloc(GFP_KERNEL)
    other._op("kmem_cache_free", cache.number, address)
    with pytest.raises(
        KernelBug,
        match=f"Object already free: .*allocated by pid {task.pid} on cpu 0 .*freed by pid {other.pid} on cpu 1 ",
    ):
        cache.free(address)
    cache.destroy()


@pytest.mark.interpreted
def test_use_after_free_is_caught_by_the_next_to_get_the_object(task):
    cache = checked(task)
    address = cache.alloc(GFP_KERNEL)
    cache.free(address)
    task.kernel.write(address + 7, b"\0")
    with pytest.raises(KernelBug, match=rf"Poison overwritten: object {address:#x}, byte \+7 is 0x00, must be 0x6b"):
        cache.alloc(GFP_KERNEL)
    assert cache.alloc(GFP_KERNEL) == address
    cache.free(address)
    cache.destroy()


@pytest.mark.interpreted
def test_double_free_of_the_last_object_is_caught_without_debug_options(task):
    address = task.kernel.kmalloc(100, GFP_ATOMIC)
    task.kernel.kfree(address)
    with pytest.raises(KernelBug, match="cache kmalloc-128: Object already free"):
        task.kernel.kfree(address)


@pytest.mark.interpreted
def test_what_is_not_an_object_is_refused(task):
    cache, other = task.kernel.kmem_cache_create("one", 64), task.kernel.kmem_cache_create("two", 64)
    address = cache.alloc(GFP_KERNEL)
    with pytest.raises(KernelBug, match="cache two: Object of another cache"):
        other.free(address)
    for wrong in (12345, 0xFFFF_8880_0000_0000, 0xFFFF_8880_4000_0000, 1 << 63):
        with pytest.raises(KernelBug, match="Invalid object pointer"):
            task.kernel.kfree(wrong)
    cache.free(address)
    cache.destroy()
    with pytest.raises(KernelBug, match="No such cache"):
        cache.alloc(GFP_KERNEL)
    with pytest.raises(ValueError, match="there is a cache of this name"):
        task.kernel.kmem_cache_create("two", 8)


@pytest.mark.interpreted
def test_destroy_with_objects_left_names_cache_and_count(task):
    cache = task.kernel.kmem_cache_create("leaky", 64)
    left = [cache.alloc(GFP_KERNEL) for _ in range(3)]
    with pytest.raises(KernelBug, match="cache leaky: 3 objects remaining"):
        cache.destroy()
    for address in left:
        cache.free(address)
    cache.destroy()


@pytest.mark.interpreted
def test_kmalloc_sizes_and_limits(task):
    kernel = task.kernel
    for size, real in (
        (1, 8),
        (65, 96),
        (97, 128),
        (129, 192),
        (193, 256),
        (8192, 8192),
        (8193, 16384),
        (4 << 20, 4 << 20),
    ):
        address = kernel.kmalloc(size, GFP_KERNEL)
        assert kernel.ksize(address) == real
        kernel.kfree(address)
    with pytest.raises(ValueError, match="kmalloc of 4194305 bytes: at most 4194304"):
        kernel.kmalloc((4 << 20) + 1, GFP_KERNEL)
    assert kernel.ksize(kernel.kmalloc(0, GFP_KERNEL)) == 0
    kernel.kfree(None)
    waste = kernel.kmalloc_waste()
    assert waste["kmalloc-96"] == {"objects": 1, "requested": 65, "allocated": 96, "wasted": 31}
    assert waste["large"]["allocated"] == 16384 + (4 << 20)


@pytest.mark.interpreted
def test_kmem_cache_alloc_node_places_objects(two_nodes, task):
    cache = task.kernel.kmem_cache_create("placed", 256)
    for nid in (1, 0, 1):
        objects = [cache.alloc(GFP_KERNEL, nid=nid) for _ in range(40)]
        assert {task.kernel.page(pfn_of(address))["node"] for address in objects} == {nid}
        two_nodes.audit()
        for address in objects:
            cache.free(address)
    cache.destroy()


@pytest.mark.interpreted
@pytest.mark.parametrize("flags", [0, DEBUG])
def test_a_node_without_memory_does_not_cost_a_slab_per_object(two_nodes, task, flags):
    taken = list(iter(lambda: task.kernel.alloc_pages(GFP_ATOMIC | numaemu.__GFP_THISNODE, nid=1), None))
    cache = task.kernel.kmem_cache_create("homeless", 64, flags=flags)
    objects = [cache.alloc(GFP_KERNEL, nid=1) for _ in range(100)]
    slabs = sum(get_node(two_nodes.machine, cache.number, n).nr_slabs for n in range(2))
    assert slabs < 10  # Linux takes another node's partial slab if there are more than min_partial
    for address in objects:
        cache.free(address)
    for pfn in taken:
        task.kernel.free_pages(pfn)
    cache.destroy()


@pytest.mark.interpreted
def test_a_node_that_does_not_exist_is_refused(task):
    cache = task.kernel.kmem_cache_create("placed", 8)
    for function in (lambda: task.kernel.kmalloc(20000, GFP_KERNEL, nid=2), lambda: cache.alloc(GFP_KERNEL, nid=2)):
        with pytest.raises(ValueError, match="node 2 is not one of 0 to 1"):
            function()
    cache.destroy()


@pytest.mark.interpreted
def test_a_wild_free_pointer_is_named_and_not_followed(two_nodes, task):
    cache = task.kernel.kmem_cache_create("wild", 64, flags=SLAB_RED_ZONE)  # its free pointer lies in the object
    kept, address = cache.alloc(GFP_KERNEL), cache.alloc(GFP_KERNEL)
    cache.free(address)
    wild = address + 10**9 * cache_of(two_nodes.machine, cache.number).size  # one would begin there, were it a slab
    task.kernel.write(address + 32, wild.to_bytes(8, "little"))
    cache.free(kept)
    assert cache.alloc(GFP_KERNEL) == kept
    with pytest.raises(KernelBug, match=rf"Freepointer corrupt: object {address:#x}, byte \+32 is 0x..; found by"):
        cache.alloc(GFP_KERNEL)
    cache.free(kept)
    with pytest.raises(KernelBug, match="46 objects remaining"):  # those of the slab whose list is lost
        cache.destroy()


def list_head(new):
    """An empty list of Linux: both links point to itself."""
    new.write(8, 2 * new.address.to_bytes(8, "little"))


@pytest.mark.interpreted
@pytest.mark.parametrize("flags", [0, DEBUG])
def test_a_constructor_is_called_once_for_each_object_of_a_new_slab(two_nodes, task, flags):
    calls = []
    cache = task.kernel.kmem_cache_create("heads", 24, flags=flags, ctor=list_head)
    per_slab = 4096 // cache_of(two_nodes.machine, cache.number).size
    two_nodes.world.constructors.loaded.clear()
    first = cache.alloc(GFP_KERNEL)
    ((payload, function),) = two_nodes.world.constructors.loaded.items()
    two_nodes.world.constructors.loaded[payload] = lambda new: (calls.append(new.address), function(new))
    objects = [first] + [cache.alloc(GFP_KERNEL) for _ in range(2 * per_slab)]
    assert len(calls) == len(set(calls)) == 2 * per_slab and set(objects[per_slab:]) <= set(calls)
    for address in objects:
        assert task.kernel.read(address, 24) == bytes(8) + 2 * address.to_bytes(8, "little")
        cache.free(address)
    cache.free(cache.alloc(GFP_KERNEL))
    assert len(calls) == 2 * per_slab
    cache.destroy()


@pytest.mark.interpreted
def test_a_constructor_that_raises_costs_nothing(two_nodes, task):
    cache = task.kernel.kmem_cache_create("clumsy", 24, ctor=lambda new: new.write(20, b"12345"))
    for nid in (-1, 1):
        with pytest.raises(
            KernelBug, match="cache clumsy: Constructor failed: .*5 bytes at offset 20 of an object of 24"
        ):
            cache.alloc(GFP_KERNEL, nid=nid)
    assert get_node(two_nodes.machine, cache.number, 0).nr_slabs == 0
    two_nodes.audit()
    cache.destroy()


@pytest.mark.interpreted
@pytest.mark.parametrize("flags, object_size", [(0, 600), (DEBUG, 1100)])
def test_colours_shift_the_slabs_of_a_cache_by_cache_lines(two_nodes, task, flags, object_size):
    cache = task.kernel.kmem_cache_create("coloured", object_size, flags=flags, colour=True)
    size, nbytes = (
        cache_of(two_nodes.machine, cache.number).size,
        4096 << cache_of(two_nodes.machine, cache.number).order,
    )
    colours = nbytes % size // 64 + 1
    per_slab = nbytes // size
    objects = [cache.alloc(GFP_KERNEL) for _ in range(2 * colours * per_slab)]
    firsts = [objects[i] % nbytes for i in range(0, len(objects), per_slab)]
    assert colours > 1 and [first - firsts[0] for first in firsts] == [64 * i for i in range(colours)] * 2
    two_nodes.audit()
    for address in objects:
        cache.free(address)
    cache.destroy()


# fmt: off
SLAB_DEBUG_CASES = {  # the option: its flags for kmalloc-64, kmalloc-8, kmalloc-rcl-64
    None: (0, 0, 0), "": (0x10D00, 0x10D00, 0x10D00), "FZ": (0x500, 0x500, 0x500), "-": (0, 0, 0),
    "Z,kmalloc-64": (0x400, 0, 0), ",kmalloc-rcl*": (0, 0, 0x10D00), "p,kmalloc-8,x;U": (0x10000, 0x800, 0x10000),
    "Z;-,kmalloc-8": (0x400, 0, 0x400)}
# fmt: on


@pytest.mark.interpreted
@pytest.mark.parametrize("option, expected", SLAB_DEBUG_CASES.items())
def test_slab_debug_chooses_flags_by_name(option, expected):
    assert (
        tuple(kmem_cache_flags(0, name, option) for name in ("kmalloc-64", "kmalloc-8", "kmalloc-rcl-64")) == expected
    )


@pytest.mark.interpreted
def test_slab_debug_of_the_machine_file_finds_an_overrun(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB", kernel={"slab_debug": "FZPU,kmalloc-64,mine"})
    kernel = loop.task(0).kernel
    mine, plain, other = (
        kernel.kmem_cache_create("mine", 64),
        kernel.kmalloc(64, GFP_KERNEL),
        kernel.kmalloc(96, GFP_KERNEL),
    )
    for address, free in ((mine.alloc(GFP_KERNEL), mine.free), (plain, kernel.kfree)):
        kernel.write(address + 64, b"!")
        with pytest.raises(KernelBug, match="Right Redzone overwritten: .*allocated by pid"):
            free(address)
    kernel.kfree(other)
    loop.audit()


@pytest.mark.interpreted
def test_orders_are_those_of_linux():
    """calculate_order on a machine of 4 CPUs; 16 objects at least, at most 1/16 of a slab unused if that can be."""
    assert {size: calculate_order(size, 4) for size in (8, 64, 192, 256, 512, 1024, 4096, 8192, 5000)} == {
        8: 0,
        64: 0,
        192: 0,
        256: 0,
        512: 1,
        1024: 2,
        4096: 3,
        8192: 3,
        5000: 3,
    }


@pytest.mark.interpreted
def test_slabinfo_has_linux_format(two_nodes, task):
    cache = task.kernel.kmem_cache_create("shown", 512)
    objects = [cache.alloc(GFP_KERNEL) for _ in range(20)]
    lines = slabinfo(System(two_nodes.machine, two_nodes.topology)).splitlines()
    assert lines[0] == "slabinfo - version: 2.1" and lines[1].startswith("# name            <active_objs>")
    assert re.fullmatch(r"shown +20 +24 +512 +8 +1 : tunables +0 +0 +0 : slabdata +3 +3 +0", lines[2]) or re.fullmatch(
        r"shown +20 +32 +512 +16 +2 : tunables +0 +0 +0 : slabdata +2 +2 +0", lines[2]
    )
    assert any(line.startswith("kmalloc-96 ") for line in lines)
    for address in objects:
        cache.free(address)
    cache.destroy()


@pytest.mark.interpreted
def test_the_audit_sees_a_broken_list(two_nodes):
    task = two_nodes.task(0)
    address = task.kernel.kmalloc(8, GFP_KERNEL)
    c = cpu_slab(two_nodes.machine, 1, 0)
    kept = c.freelist
    c.freelist = int(kept) + 1
    with pytest.raises(MachineCheck, match="cache kmalloc-8"):
        two_nodes.audit()
    c.freelist = kept
    task.kernel.kfree(address)
    two_nodes.audit()


# -- processes -----------------------------------------------------------------------------------------------


@numba.njit(cache=True)
def produce(cpu, cache, ring, rounds, gfp):
    """Allocate, and put the addresses into a ring of words in shared memory from which another CPU frees them."""
    for i in range(rounds):
        slot = ring + np.uint64(i % 512 * 8)
        while numaemu.load_u64(cpu, slot) != np.uint64(0):
            pass
        address = kmem_cache_alloc(cpu, cache, gfp)
        if address == np.uint64(0):
            return i
        numaemu.store_u64(cpu, slot, address)
    return rounds


@numba.njit(cache=True)
def consume(cpu, cache, ring, rounds):
    for i in range(rounds):
        slot = ring + np.uint64(i % 512 * 8)
        address = numaemu.load_u64(cpu, slot)
        while address == np.uint64(0):
            address = numaemu.load_u64(cpu, slot)
        numaemu.store_u64(cpu, slot, np.uint64(0))
        kmem_cache_free(cpu, cache, address)
    return rounds


def produce_on(task, cache, ring, rounds):
    return task.call(produce, cache, np.uint64(ring), rounds, GFP_KERNEL)


def consume_on(task, cache, ring, rounds):
    return task.call(consume, cache, np.uint64(ring), rounds)


@pytest.mark.skipif(not JIT, reason="compiled user kernels")
def test_all_cpus_allocate_on_one_and_free_on_another(machine):
    def story(task, number, rounds):
        task.call(produce, number, np.uint64(0), 0, GFP_KERNEL), task.call(consume, number, np.uint64(0), 0)
        rings = [task.mmap(4096).touch().addr for _ in range(2)]
        consumers = [task.clone(consume_on, number, ring, rounds, cpu=cpu) for ring, cpu in zip(rings, (3, 1))]
        producer = task.clone(produce_on, number, rings[0], rounds, cpu=2)
        done = [produce_on(task, number, rings[1], rounds), producer.result()]
        return done + [c.result() for c in consumers]

    task = machine.task(cpu=0)
    for name, size, flags, rounds in (("fast", 64, 0, 200_000), ("checked", 64, DEBUG, 5_000)):
        cache = task.kernel.kmem_cache_create(name, size, flags=flags)
        assert machine.run(story, cache.number, rounds, cpu=0) == [rounds] * 4
        machine.check()
        assert re.search(rf"^{name} +0 ", machine.read("/proc/slabinfo"), re.M)
        cache.shrink()
        cache.destroy()
    task.exit()
    assert "SUnreclaim:            0 kB" in machine.read("/proc/meminfo")


@numba.njit(cache=True)
def free_twice(cpu, cache, gfp):
    address = kmem_cache_alloc(cpu, cache, gfp)
    kmem_cache_free(cpu, cache, address)
    kmem_cache_free(cpu, cache, address)


@pytest.mark.skipif(not JIT, reason="compiled user kernels")
def test_a_bug_in_a_compiled_kernel_is_raised_in_its_task(machine):
    task = machine.task(cpu=1)
    cache = task.kernel.kmem_cache_create("twice", 64, flags=DEBUG)
    with pytest.raises(KernelBug, match="cache twice: Object already free"):
        machine.run(lambda t, n: t.call(free_twice, n, GFP_KERNEL), cache.number, cpu=2)
    cache.destroy()
    task.exit()


def first_words(task, number):
    """What two new objects hold, and where they lie."""
    objects = [task._op("kmem_cache_alloc", number, GFP_KERNEL, -1) for _ in range(2)]
    found = [(address, task.kernel.read(address, 24)) for address in objects]
    for address in objects:
        task._op("kmem_cache_free", number, address)
    return found


@pytest.mark.skipif(not JIT, reason="processes")
def test_every_process_calls_a_constructor(machine):
    task = machine.task(cpu=0)
    cache = task.kernel.kmem_cache_create("everywhere", 24, ctor=list_head)
    for cpu in range(4):
        for address, contents in machine.run(first_words, cache.number, cpu=cpu):
            assert contents == bytes(8) + 2 * address.to_bytes(8, "little")
    cache.destroy()
    broken = task.kernel.kmem_cache_create("broken", 8, ctor=lambda new: 1 / 0)
    with pytest.raises(KernelBug, match="cache broken: Constructor failed.*division by zero"):
        machine.run(lambda t, number: t._op("kmem_cache_alloc", number, GFP_KERNEL, -1), broken.number, cpu=3)
    broken.destroy()
    task.exit()
