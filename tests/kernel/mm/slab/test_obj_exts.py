"""Objects charged to control groups, against a dictionary of who has which; what memory.stat says; the audit of it."""

import numba
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from loopback import SMALL_TLB, Loopback

import numaemu
from numaemu import (
    GFP_KERNEL,
    GFP_KERNEL_ACCOUNT,
    SLAB_ACCOUNT,
    SLAB_POISON,
    SLAB_RECLAIM_ACCOUNT,
    SLAB_RED_ZONE,
    SLAB_STORE_USER,
    KernelBug,
    Machine,
    kmem_cache_alloc,
    kmem_cache_free,
)
from numaemu.compiler.build import JIT
from numaemu.errors import MachineCheck
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.sysfs import cgroup
from numaemu.kernel.include.mm_types import cgroup_t
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.slab.obj_exts import obj_exts
from numaemu.kernel.mm.slab.slab import cache_of, cpu_slab, number_of, slab_obj_exts, virt_to_head
from numaemu.kernel.mm.slab.slub import memcg_slab_post_alloc_hook

ROOT = "/sys/fs/cgroup"
ACCOUNT, RECLAIMABLE, ZERO = numaemu.__GFP_ACCOUNT, numaemu.__GFP_RECLAIMABLE, numaemu.__GFP_ZERO
DEBUG = SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER


def with_groups(loop, *names):
    """The machine, with groups that are charged."""
    loop.system_of = loop.actors[0].system
    loop.write(ROOT + "/cgroup.subtree_control", "+memory")
    for name in names:
        proc.mkdir(loop.system_of, f"{ROOT}/{name}")
    return loop


def move(loop, task, name):
    loop.write(f"{ROOT}/{name}/cgroup.procs".replace("//", "/"), str(task.pid))


def stat(loop, name):
    """{name: bytes} of a group's memory.stat."""
    lines = proc.read(loop.system_of, f"{ROOT}/{name}/memory.stat").splitlines()
    return {key: int(nbytes) for key, nbytes in (line.split() for line in lines)}


def full_size(loop, cache):
    return cache_of(loop.machine, cache.number).size + 8


@pytest.fixture
def loop(two_nodes):
    yield with_groups(two_nodes, "g", "h")
    two_nodes.audit()


# -- single objects ------------------------------------------------------------------------------------------


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "flags", [0, SLAB_ACCOUNT, SLAB_RECLAIM_ACCOUNT, SLAB_ACCOUNT | SLAB_RECLAIM_ACCOUNT, DEBUG, DEBUG | SLAB_ACCOUNT]
)
def test_an_object_is_charged_until_it_is_freed_wherever_its_task_is(loop, flags):
    """Two CPUs, two groups; each is taken off where it was charged, by the other CPU, from another group."""
    first, other = loop.task(0), loop.task(1)
    cache = first.kernel.kmem_cache_create("charged", 100, flags=flags)
    nbytes, kind = full_size(loop, cache), "slab_reclaimable" if flags & SLAB_RECLAIM_ACCOUNT else "slab_unreclaimable"
    gfp = GFP_KERNEL if flags & SLAB_ACCOUNT else GFP_KERNEL_ACCOUNT
    loose = cache.alloc(gfp)  # of the root group
    move(loop, first, "g")
    mine = [cache.alloc(gfp) for _ in range(60)]
    move(loop, first, "h")
    later = [first._op("kmem_cache_alloc", cache.number, gfp | ZERO, 1) for _ in range(5)]
    assert first.kernel.read(later[0], 100) == bytes(100)
    loop.audit()
    assert stat(loop, "g")["slab"] == stat(loop, "g")[kind] == 60 * nbytes
    assert stat(loop, "g")["kernel"] == -(-60 * nbytes // 4096) * 4096
    assert stat(loop, "h")["slab"] == 5 * nbytes and stat(loop, "h")["kernel"] == 4096
    move(loop, first, "")
    for address in mine[:30] + later[:2] + [loose]:
        other._op("kmem_cache_free", cache.number, address)
    assert (stat(loop, "g")[kind], stat(loop, "h")[kind]) == (30 * nbytes, 3 * nbytes)
    loop.audit()
    for address in mine[30:] + later[2:]:
        cache.free(address)
    assert not any(stat(loop, "g").values()) and not any(stat(loop, "h").values())
    loop.audit()
    cache.destroy()


@pytest.mark.interpreted
def test_objects_that_are_not_to_be_charged_are_not(loop):
    task = loop.task(0)
    move(loop, task, "g")
    cache = task.kernel.kmem_cache_create("mixed", 64)
    plain, charged = [cache.alloc(GFP_KERNEL) for _ in range(3)], cache.alloc(GFP_KERNEL_ACCOUNT)
    plain += [cache.alloc(GFP_KERNEL) for _ in range(3)]
    assert stat(loop, "g")["slab"] == 72
    for address in plain:
        cache.free(address)
    assert stat(loop, "g")["slab"] == 72
    cache.free(charged)
    assert stat(loop, "g")["slab"] == 0
    cache.destroy()


@pytest.mark.interpreted
@pytest.mark.parametrize("owner", [0, 1])
def test_who_takes_a_slab_over_looks_who_is_charged(loop, owner):
    """The slab goes back to its node's list, and a CPU takes it; what that CPU frees is taken off."""
    tasks = [loop.task(0), loop.task(1)]
    move(loop, tasks[0], "g")
    cache = tasks[0].kernel.kmem_cache_create("passed", 64)
    charged = [cache.alloc(GFP_KERNEL_ACCOUNT) for _ in range(4)]
    cache.shrink()
    theirs = tasks[owner]._op("kmem_cache_alloc", cache.number, GFP_KERNEL, 0)
    assert cpu_slab(loop.machine, cache.number, owner).slab == virt_to_head(loop.machine, charged[0])
    loop.audit()
    for n, address in enumerate(charged, 1):
        tasks[owner]._op("kmem_cache_free", cache.number, address)
        assert stat(loop, "g")["slab"] == (4 - n) * 72
    tasks[owner]._op("kmem_cache_free", cache.number, theirs)
    cache.destroy()


@pytest.mark.interpreted
def test_kmalloc_takes_caches_of_its_own_for_what_is_charged(loop):
    task = loop.task(0)
    move(loop, task, "g")
    kernel = task.kernel
    objects = [
        kernel.kmalloc(100, GFP_KERNEL_ACCOUNT),
        kernel.kmalloc(100, GFP_KERNEL_ACCOUNT | RECLAIMABLE),
        kernel.kmalloc(100, GFP_KERNEL),
    ]
    lines = {line.split()[0]: line.split() for line in proc.read(loop.system_of, "/proc/slabinfo").splitlines()}
    assert [lines[name][1] for name in ("kmalloc-cg-128", "kmalloc-rcl-128", "kmalloc-128")] == ["1", "1", "1"]
    assert stat(loop, "g") == {"kernel": 4096, "slab_reclaimable": 136, "slab_unreclaimable": 136, "slab": 272}
    large = kernel.kmalloc(20000, GFP_KERNEL_ACCOUNT)
    assert stat(loop, "g") == {
        "kernel": 9 << 12,
        "slab_reclaimable": 136,
        "slab_unreclaimable": (8 << 12) + 136,
        "slab": (8 << 12) + 272,
    }
    loop.audit()
    for address in [*objects, large]:
        kernel.kfree(address)
    assert not any(stat(loop, "g").values())


@pytest.mark.interpreted
def test_the_arrays_go_with_their_slabs(loop):
    task = loop.task(0)
    caches = [
        task.kernel.kmem_cache_create(f"cache{size}", size, flags=flags)
        for size, flags in ((8, 0), (24, SLAB_ACCOUNT), (64, DEBUG), (700, 0))
    ]
    move(loop, task, "g")
    objects = [(cache, cache.alloc(GFP_KERNEL_ACCOUNT)) for cache in caches for _ in range(600)]
    waste = task.kernel.kmalloc_waste()
    assert waste["kmalloc-4k"]["requested"] == 2 * 512 * 8 and waste["kmalloc-2k"]["requested"] == 4 * 170 * 8
    loop.audit()
    for cache, address in objects[::2] + objects[1::2]:
        cache.free(address)
    for cache in caches:
        cache.destroy()
    for number in range(1, 14):
        task._op("kmem_cache_shrink", number)
    assert loop.vmstat()["nr_slab_unreclaimable"] == 0


@pytest.mark.interpreted
def test_arrays_of_a_machine_whose_caches_are_all_checked(loopback):
    loop = with_groups(loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", kernel={"slab_debug": "FZPU"}), "g")
    task = loop.task(0)
    move(loop, task, "g")
    objects = [task.kernel.kmalloc(100, GFP_KERNEL_ACCOUNT) for _ in range(200)]
    assert stat(loop, "g")["slab"] > 200 * 136
    loop.audit()
    for address in objects:
        task.kernel.kfree(address)
    assert stat(loop, "g")["slab"] == 0
    loop.audit()


@pytest.mark.interpreted
def test_general_caches_hold_the_arrays_and_are_not_charged(loop):
    """As in Linux, where KMALLOC_NORMAL has unaccounted objects only: else arrays would need arrays."""
    task = loop.task(0)
    move(loop, task, "g")
    number = next(n for n in range(1, 14) if cache_of(loop.machine, n).size == 64)
    address = task._op("kmem_cache_alloc", number, GFP_KERNEL_ACCOUNT, -1)
    assert stat(loop, "g")["slab"] == 0
    task.kernel.kfree(address)


@pytest.mark.interpreted
@pytest.mark.parametrize("flags", [0, SLAB_ACCOUNT, DEBUG])
def test_a_double_free_does_not_charge_back_twice(loop, flags):
    task = loop.task(0)
    move(loop, task, "g")
    cache = task.kernel.kmem_cache_create("twice", 64, flags=flags)
    kept, address = cache.alloc(GFP_KERNEL_ACCOUNT), cache.alloc(GFP_KERNEL_ACCOUNT)
    cache.free(address)
    with pytest.raises(KernelBug, match="cache twice: Object already free"):
        cache.free(address)
    assert stat(loop, "g")["slab"] == full_size(loop, cache)
    cache.free(kept)
    cache.destroy()


@pytest.mark.interpreted
def test_a_wild_free_pointer_of_a_cache_that_charges_is_named(two_nodes):
    task = two_nodes.task(0)
    cache = task.kernel.kmem_cache_create("wild", 64, flags=SLAB_ACCOUNT)
    address = cache.alloc(GFP_KERNEL)
    cache.free(address)
    task.kernel.write(address + 32, (address + 10**9 * 64).to_bytes(8, "little"))
    with pytest.raises(KernelBug, match=r"cache wild: Freepointer corrupt: object"):
        cache.alloc(GFP_KERNEL)
    cache.free(cache.alloc(GFP_KERNEL))


@pytest.mark.interpreted
def test_an_object_of_a_slab_that_another_cpu_may_own_is_exchanged(loop):
    """What happens if reclaim, on the way to the array, has taken the CPU's slab away."""
    task, other = loop.task(0), loop.task(1)
    move(loop, task, "g")
    cache = task.kernel.kmem_cache_create("moved", 64)
    kept = [cache.alloc(GFP_KERNEL) for _ in range(3)]
    address = kept.pop()
    task._op("kmem_cache_shrink", cache.number)  # CPU 0 gives its slab up, CPU 1 takes it
    theirs = other._op("kmem_cache_alloc", cache.number, GFP_KERNEL, 0)
    pfn = virt_to_head(loop.machine, address)
    assert cpu_slab(loop.machine, cache.number, 1).slab == pfn
    loop.cpu(0).task = task._number
    charged = memcg_slab_post_alloc_hook(loop.cpu(0), cache.number, GFP_KERNEL_ACCOUNT, -1, address)
    assert virt_to_head(loop.machine, charged) != pfn and slab_obj_exts(page_of(loop.machine, pfn)) == 0
    assert stat(loop, "g")["slab"] == 72
    loop.audit()
    for each in [theirs, charged, *kept]:
        other._op("kmem_cache_free", cache.number, each)
    assert stat(loop, "g")["slab"] == 0
    cache.destroy()


@pytest.mark.interpreted
def test_without_memory_for_the_array_an_object_is_not_charged(loop):
    task = loop.task(0)
    move(loop, task, "g")
    cache = task.kernel.kmem_cache_create("poor", 8)
    objects = [cache.alloc(GFP_KERNEL) for _ in range(3)]  # its slab is there, what follows has no pages left
    gfp = numaemu.GFP_ATOMIC | numaemu.__GFP_MEMALLOC
    taken = list(iter(lambda: task.kernel.alloc_page(gfp), None))
    objects.append(cache.alloc(numaemu.GFP_ATOMIC | ACCOUNT))
    assert objects[-1] is not None and stat(loop, "g")["slab"] == 0
    for pfn in taken:
        task.kernel.free_page(pfn)
    objects.append(cache.alloc(numaemu.GFP_ATOMIC | ACCOUNT))
    assert stat(loop, "g")["slab"] == 16
    for address in objects:
        cache.free(address)
    cache.destroy()


@pytest.mark.interpreted
def test_a_group_with_objects_lends_its_number_to_nobody(loop):
    task = loop.task(0)
    move(loop, task, "g")
    address = task.kernel.kmalloc(64, GFP_KERNEL_ACCOUNT)
    move(loop, task, "")
    proc.rmdir(loop.system_of, ROOT + "/g")
    proc.mkdir(loop.system_of, ROOT + "/new")
    assert cgroup.lookup(loop.system_of, ROOT + "/new").number == 3
    loop.audit()
    task.kernel.kfree(address)
    proc.mkdir(loop.system_of, ROOT + "/g")
    assert cgroup.lookup(loop.system_of, ROOT + "/g").number == 1


@pytest.mark.interpreted
def test_the_audit_sees_what_is_charged_wrongly(loop):
    task, machine = loop.task(0), loop.machine
    move(loop, task, "g")
    cache = task.kernel.kmem_cache_create("audited", 64)
    address, loose = cache.alloc(GFP_KERNEL_ACCOUNT), cache.alloc(GFP_KERNEL)
    cache.free(loose)
    pfn = virt_to_head(machine, address)
    exts, of_cache = obj_exts(machine, slab_obj_exts(page_of(machine, pfn))), cache_of(machine, cache.number)
    which, free = (number_of(machine, of_cache, pfn, a) - 1 for a in (address, loose))
    group = cgroup_t.array(machine.cgroups)[1]

    def check(text):
        with pytest.raises(MachineCheck, match=text):
            loop.audit()

    exts[which] = 2
    check("control group 1: slab_unreclaimable is 72, what is charged says 0")
    exts[which], exts[free] = 1, 1
    check(f"cache audited: object {free + 1} of the slab at pfn {pfn} is free, and somebody is charged")
    exts[free], group.large_kmalloc = 0, 1
    check("control group 1: large_kmalloc is 1, what is charged says 0")
    group.large_kmalloc, page_of(machine, pfn).index = 0, int(page_of(machine, pfn).index) + (1 << 30)
    check(f"cache audited: slab at pfn {pfn}: its obj_exts are none")
    page_of(machine, pfn).index -= 1 << 30
    cpu_slab(machine, cache.number, 0).end = 1
    check(f"cache audited: cpu 0 would free objects of the slab at pfn {pfn} without looking")
    cpu_slab(machine, cache.number, 0).end = 0
    cache.free(address)


# -- against a dictionary ------------------------------------------------------------------------------------


class ChargeMachine(RuleBasedStateMachine):
    """Objects of several caches, allocated by four CPUs' tasks in changing groups, freed by any: each has its group."""

    SIZES = {
        "plain": (24, 0),
        "account": (100, SLAB_ACCOUNT),
        "inodes": (600, SLAB_RECLAIM_ACCOUNT),
        "checked": (100, DEBUG),
        "both": (40, DEBUG | SLAB_ACCOUNT | SLAB_RECLAIM_ACCOUNT),
    }
    GROUPS = ("", "g", "h")

    def __init__(self):
        super().__init__()
        self.loop = with_groups(Loopback(nodes=2, cpus_per_node=2, memory_per_node="16MiB", **SMALL_TLB), "g", "h")
        self.tasks, self.group = [self.loop.task(cpu) for cpu in range(4)], [""] * 4
        create = self.tasks[0].kernel.kmem_cache_create
        self.caches = [create(name, size, flags=flags) for name, (size, flags) in self.SIZES.items()]
        self.live = {}  # address: (cache or None, group or None, bytes, reclaimable)
        self.turn = 0

    @rule(cpu=st.integers(0, 3), group=st.sampled_from(GROUPS))
    def move(self, cpu, group):
        move(self.loop, self.tasks[cpu], group)
        self.group[cpu] = group

    @rule(
        cpu=st.integers(0, 3),
        which=st.integers(0, 4),
        times=st.sampled_from([1, 5, 200]),
        nid=st.integers(-1, 1),
        account=st.booleans(),
    )
    def alloc(self, cpu, which, times, nid, account):
        cache, flags = self.caches[which], self.SIZES[self.caches[which].name][1]
        group = self.group[cpu] if account or flags & SLAB_ACCOUNT else ""
        for _ in range(times):
            address = self.tasks[cpu]._op(
                "kmem_cache_alloc", cache.number, GFP_KERNEL | (ACCOUNT if account else 0), nid
            )
            assert address not in self.live
            self.live[address] = cache, group, full_size(self.loop, cache), bool(flags & SLAB_RECLAIM_ACCOUNT)

    @rule(
        cpu=st.integers(0, 3), size=st.sampled_from([1, 100, 8192, 20000]), account=st.booleans(), reclaim=st.booleans()
    )
    def kmalloc(self, cpu, size, account, reclaim):
        gfp = GFP_KERNEL | (ACCOUNT if account else 0) | (RECLAIMABLE if reclaim else 0)
        address = self.tasks[cpu].kernel.kmalloc(size, gfp)
        real = self.tasks[cpu].kernel.ksize(address)
        nbytes = real + (8 if size <= 8192 else 0)
        self.live[address] = None, self.group[cpu] if account else "", nbytes, reclaim and size <= 8192

    @precondition(lambda self: self.live)
    @rule(cpu=st.integers(0, 3), times=st.sampled_from([1, 20, 300]))
    def free(self, cpu, times):
        for _ in range(min(times, len(self.live))):
            self.turn += 7
            self.give_back(self.tasks[cpu], sorted(self.live)[self.turn % len(self.live)])

    def give_back(self, task, address):
        cache = self.live.pop(address)[0]
        if cache is None:
            task.kernel.kfree(address)
        else:
            task._op("kmem_cache_free", cache.number, address)

    @rule(which=st.integers(0, 4))
    def shrink(self, which):
        self.caches[which].shrink()

    @invariant()
    def each_group_has_what_the_dictionary_says(self):
        for group in self.GROUPS[1:]:
            mine = [entry[1:] for entry in self.live.values() if entry[1] == group]
            expected = {
                kind: sum(nbytes for _, nbytes, reclaimable in mine if reclaimable == (kind == "slab_reclaimable"))
                for kind in ("slab_reclaimable", "slab_unreclaimable")
            }
            found = stat(self.loop, group)
            assert {kind: found[kind] for kind in expected} == expected and found["slab"] == sum(expected.values())
            assert found["kernel"] == -(-found["slab"] // 4096) * 4096
        self.loop.audit()

    def teardown(self):
        for address in list(self.live):
            self.give_back(self.tasks[self.turn % 4], address)
        for cache in self.caches:
            cache.destroy()
        self.each_group_has_what_the_dictionary_says()
        self.loop.close()


ChargeMachine.TestCase.settings = settings(max_examples=25 if JIT else 2, stateful_step_count=30)
TestCharges = pytest.mark.interpreted(ChargeMachine.TestCase)


# -- at once, on a real machine ------------------------------------------------------------------------------


@numba.njit(cache=True)
def pass_on(cpu, cache, mine, theirs, rounds, gfp):
    """Put a new object wherever a ring to another CPU has a place, one of two charged; free what lies in one's own."""
    made = 0
    for i in range(rounds):
        slot = np.uint64(i % 512 * 8)
        if numaemu.load_u64(cpu, theirs + slot) == np.uint64(0):
            address = kmem_cache_alloc(cpu, cache, gfp | ACCOUNT if i % 2 else gfp)
            if address == np.uint64(0):
                return -1
            numaemu.store_u64(cpu, theirs + slot, address)
            made += 1
        address = numaemu.load_u64(cpu, mine + slot)
        if address != np.uint64(0):
            numaemu.store_u64(cpu, mine + slot, np.uint64(0))
            kmem_cache_free(cpu, cache, address)
    return made


def pass_on_often(task, cache, mine, theirs, calls, rounds):
    return sum(task.call(pass_on, cache, np.uint64(mine), np.uint64(theirs), rounds, GFP_KERNEL) for _ in range(calls))


def circle(task, caches, calls, rounds):
    """Four threads, each on a CPU of its own, each with a ring to the next one; then what is left is freed."""
    area, made = task.mmap(4 << 12).touch(), 0
    rings = [area.addr + (n << 12) for n in range(4)]
    for cache in caches:
        task.call(pass_on, cache, np.uint64(rings[0]), np.uint64(rings[1]), 0, GFP_KERNEL)
        threads = [
            task.clone(pass_on_often, cache, rings[n], rings[(n + 1) % 4], calls, rounds, cpu=n) for n in (1, 2, 3)
        ]
        made += pass_on_often(task, cache, rings[0], rings[1], calls, rounds) + sum(t.result() for t in threads)
        left = task.load(area.addr + 8 * np.arange(4 * 512, dtype=np.uint64))
        task.store(area.addr + 8 * np.arange(4 * 512, dtype=np.uint64), np.zeros(4 * 512, np.uint64))
        for address in left[left != 0].tolist():
            task._op("kmem_cache_free", cache, address)
    return made


@pytest.mark.skipif(not JIT, reason="compiled user kernels")
def test_all_cpus_charge_while_their_process_changes_groups():
    with Machine(nodes=2, cpus_per_node=2, memory_per_node="64MiB") as machine:
        machine.write(ROOT + "/cgroup.subtree_control", "+memory")
        for name in ("g", "h"):
            machine.mkdir(f"{ROOT}/{name}")
        maker = machine.task(cpu=0)
        caches = [
            maker.kernel.kmem_cache_create(name, 200, flags=flags)
            for name, flags in (("plain", 0), ("account", SLAB_ACCOUNT), ("checked", DEBUG))
        ]
        running = machine.spawn(circle, [cache.number for cache in caches], 40, 5000, cpu=0)
        for n in range(30):
            try:
                machine.write(f"{ROOT}/{'gh'[n % 2]}/cgroup.procs", running.pid)
            except ProcessLookupError:  # it has ended
                break
        assert running.result() >= len(caches) * 4 * 512  # each ring has been full at least
        machine.check()
        for name in ("g", "h"):
            assert "\nslab 0\n" in machine.read(f"{ROOT}/{name}/memory.stat")
        for cache in caches:
            cache.destroy()
        machine.check()
