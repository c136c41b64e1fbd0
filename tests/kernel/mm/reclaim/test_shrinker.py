"""Shrinkers and their lists of unused objects, against ordered dictionaries and Linux's arithmetic written down again."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import SMALL_TLB, Loopback

import numaemu
from numaemu import GFP_KERNEL, SLAB_POISON, SLAB_RECLAIM_ACCOUNT, SLAB_RED_ZONE, KernelBug
from numaemu.compiler.build import JIT
from numaemu.errors import MachineCheck
from numaemu.kernel.mm.reclaim.list_lru import list_lru_node, shrinker_of

DEBUG = SLAB_RED_ZONE | SLAB_POISON


class NaiveShrinker:
    """One node of a shrinker: do_shrink_slab of Linux 6.12 with plain numbers and a list, coldest first."""

    def __init__(self, seeks, batch):
        self.seeks, self.batch, self.deferred, self.unused, self.scanned = seeks, batch, 0, [], 0

    def shrink(self, priority):
        freeable, gone = len(self.unused), []
        if freeable == 0:
            return gone
        delta = (freeable >> priority) * 4 // self.seeks if self.seeks else freeable // 2
        deferred, self.deferred = self.deferred, 0
        total, scanned = min((deferred >> priority) + delta, 2 * freeable), 0
        while total > 0 and (total >= self.batch or total >= freeable):
            now = min(self.batch, total)
            gone, self.unused = gone + self.unused[:now], self.unused[now:]
            total, scanned = total - now, scanned + now
        self.deferred = min(max(deferred + delta - scanned, 0), 2 * freeable)
        self.scanned += scanned
        return gone


# fmt: off
STEPS = st.lists(st.one_of(
    st.tuples(st.just("put"), st.integers(0, 1), st.sampled_from([1, 3, 40])),
    st.tuples(st.just("use"), st.integers(0, 1), st.integers(0, 100)),
    st.tuples(st.just("shrink"), st.integers(0, 1), st.sampled_from([0, 1, 2, 5, 12]))), max_size=25)
# fmt: on


@pytest.mark.interpreted
@settings(max_examples=40 if JIT else 4)
@given(steps=STEPS, seeks=st.sampled_from([0, 1, 2, 8]), batch=st.sampled_from([1, 16, 128]),
       flags=st.sampled_from([0, DEBUG]))  # fmt: skip
def test_the_coldest_go_and_as_many_as_linux_takes(steps, seeks, batch, flags):
    with Loopback(nodes=2, cpus_per_node=1, memory_per_node="16MiB", **SMALL_TLB) as loop:
        task = loop.task(0)
        cache = task.kernel.kmem_cache_create("dentry", 192, flags=SLAB_RECLAIM_ACCOUNT | flags)
        shrinker = task.kernel.register_shrinker(cache, link=16, seeks=seeks, batch=batch)
        naive = [NaiveShrinker(seeks, batch) for _ in range(2)]
        for what, nid, n in steps:
            unused = naive[nid].unused
            if what == "put":
                for _ in range(n):
                    address = cache.alloc(GFP_KERNEL, nid=nid)
                    task.kernel.write(address, address.to_bytes(8, "little"))
                    assert shrinker.list_lru_add(address) and not shrinker.list_lru_add(address)
                    unused.append(address)
            elif what == "use" and unused:
                address = unused.pop(n % len(unused))
                assert shrinker.list_lru_del(address) and not shrinker.list_lru_del(address)
                assert task.kernel.read(address, 8) == address.to_bytes(8, "little")
                cache.free(address)
            elif what == "shrink":
                gone = naive[nid].shrink(n)
                assert task.kernel.shrink_slab(GFP_KERNEL, nid, n) == len(gone)
                assert not any(shrinker.list_lru_del(address) for address in gone)
                assert shrinker_of(loop.machine, shrinker.number).nr_deferred[nid] == naive[nid].deferred
            assert [shrinker.list_lru_count(node) for node in range(2)] == [len(n.unused) for n in naive]
            loop.audit()
        assert loop.vmstat()["slabs_scanned"] == sum(n.scanned for n in naive)
        for address in [address for node in naive for address in node.unused]:
            assert shrinker.list_lru_del(address)
            cache.free(address)
        shrinker.unregister()
        cache.destroy()


@pytest.fixture
def task(two_nodes):
    task = two_nodes.task(0)
    yield task
    two_nodes.audit()


@pytest.mark.interpreted
def test_drop_slab_gives_the_pages_back(two_nodes, task):
    cache = task.kernel.kmem_cache_create("inode", 1000, flags=SLAB_RECLAIM_ACCOUNT)
    shrinker = task.kernel.register_shrinker(cache)
    objects = [cache.alloc(GFP_KERNEL, nid=i % 2) for i in range(800)]
    for address in objects[:-3]:
        shrinker.list_lru_add(address)
    before = two_nodes.vmstat()["nr_slab_reclaimable"]
    assert task.kernel.drop_slab() == 797
    after = two_nodes.vmstat()
    assert before >= 200 and after["nr_slab_reclaimable"] <= 2 * 8 * 6 and after["drop_slab"] == 1
    for address in objects[-3:]:
        cache.free(address)
    shrinker.unregister()
    cache.destroy()


@pytest.mark.interpreted
def test_priority_12_takes_a_2048th_when_enough_has_come_together(task):
    cache = task.kernel.kmem_cache_create("dentry", 64, flags=SLAB_RECLAIM_ACCOUNT)
    shrinker = task.kernel.register_shrinker(cache, batch=8)
    for _ in range(4096):
        shrinker.list_lru_add(cache.alloc(GFP_KERNEL, nid=0))
    assert task.kernel.shrink_slab(GFP_KERNEL, 0, 12) == 0  # 2 objects: less than a batch, deferred
    assert task.kernel.shrink_slab(GFP_KERNEL, 0, 9) == 16  # 8 objects * 4 / 2
    assert task.kernel.shrink_slab(GFP_KERNEL, 1, 0) == 0  # nothing is on node 1
    assert task.kernel.drop_slab() == 4080
    shrinker.unregister()
    cache.destroy()


@pytest.mark.interpreted
def test_what_is_wrong_is_said(task):
    kernel = task.kernel
    plain, cache = (
        kernel.kmem_cache_create("plain", 64),
        kernel.kmem_cache_create("dentry", 64, flags=SLAB_RECLAIM_ACCOUNT),
    )
    with pytest.raises(ValueError, match="cache plain is not SLAB_RECLAIM_ACCOUNT"):
        kernel.register_shrinker(plain)
    for link in (-8, 4, 56):
        with pytest.raises(ValueError, match=f"cache dentry: link is {link}, must be a multiple of 8, at most 48"):
            kernel.register_shrinker(cache, link=link)
    shrinker = kernel.register_shrinker(cache)
    address, other = cache.alloc(GFP_KERNEL), plain.alloc(GFP_KERNEL)
    for wrong in (other, address + 8, 0, 1 << 63):
        with pytest.raises(KernelBug, match="is no object of cache dentry"):
            shrinker.list_lru_add(wrong)
    shrinker.list_lru_add(address)
    with pytest.raises(KernelBug, match="1 objects are still on its lists"):
        shrinker.unregister()
    with pytest.raises(KernelBug, match="cache dentry: its shrinker is still registered"):
        cache.destroy()
    with pytest.raises(ValueError, match="node 2 is not one of 0 to 1"):
        kernel.shrink_slab(GFP_KERNEL, 2, 0)
    assert shrinker.list_lru_del(address)
    cache.free(address), plain.free(other), shrinker.unregister(), cache.destroy(), plain.destroy()
    with pytest.raises(KernelBug, match="no such shrinker"):
        shrinker.list_lru_count(0)


@pytest.mark.interpreted
def test_the_audit_sees_a_broken_list(two_nodes, task):
    cache = task.kernel.kmem_cache_create("dentry", 64, flags=SLAB_RECLAIM_ACCOUNT)
    shrinker = task.kernel.register_shrinker(cache)
    objects = [cache.alloc(GFP_KERNEL) for _ in range(2)]
    for address in objects:
        shrinker.list_lru_add(address)
    kept = task.kernel.read(objects[0], 16)
    task.kernel.write(objects[0], bytes(16))  # somebody wrote to an object that he had given up
    with pytest.raises(MachineCheck, match="cache dentry: its list of unused objects on node 0"):
        two_nodes.audit()
    task.kernel.write(objects[0], kept)
    list_lru_node(two_nodes.machine, shrinker.number, 0).nr_items += 1
    with pytest.raises(MachineCheck, match="is broken or not 3 long"):
        two_nodes.audit()
    list_lru_node(two_nodes.machine, shrinker.number, 0).nr_items -= 1
    assert task.kernel.drop_slab() == 2
    shrinker.unregister(), cache.destroy()


# -- processes -----------------------------------------------------------------------------------------------


@numba.njit(cache=True)
def use_and_give_up(cpu, cache, shrinker, ring, rounds, gfp):
    """Keep 64 objects of our own: give one up, use it again if it is still there, else make it anew. How many were."""
    made = 0
    for i in range(rounds):
        slot = ring + np.uint64(i % 64 * 8)
        address = numaemu.load_u64(cpu, slot)
        if address != np.uint64(0) and numaemu.list_lru_del(cpu, shrinker, address) == 1:
            numaemu.kmem_cache_free(cpu, cache, address)
        address = numaemu.kmem_cache_alloc(cpu, cache, gfp)
        if address == np.uint64(0) or numaemu.list_lru_add(cpu, shrinker, address) != 1:
            return -1
        numaemu.store_u64(cpu, slot, address)
        made += 1
    return made


def churn(task, cache, shrinker, rounds):
    return task.call(use_and_give_up, cache, shrinker, np.uint64(task.mmap(4096).touch().addr), rounds, GFP_KERNEL)


def shrink(task, rounds):
    return sum(task.kernel.shrink_slab(GFP_KERNEL, i % 2, i % 4) for i in range(rounds))


@pytest.mark.skipif(not JIT, reason="compiled user kernels")
def test_cpus_use_objects_while_another_shrinks(machine):
    task = machine.task(cpu=0)
    cache = task.kernel.kmem_cache_create("dentry", 192, flags=SLAB_RECLAIM_ACCOUNT)
    shrinker = task.kernel.register_shrinker(cache, batch=4)
    for cpu in range(1, 4):
        assert machine.run(churn, cache.number, shrinker.number, 0, cpu=cpu) == 0  # compiled
    users = [machine.spawn(churn, cache.number, shrinker.number, 20_000, cpu=cpu) for cpu in range(1, 4)]
    machine.run(shrink, 2_000, cpu=0)
    assert [user.result() for user in users] == [20_000] * 3
    machine.check()
    task.kernel.drop_slab()
    shrinker.unregister()
    cache.destroy()
    task.exit()
