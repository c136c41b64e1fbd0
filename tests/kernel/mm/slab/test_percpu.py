"""The per-CPU allocator against one that looks at every byte; placement, sharing the CPU, counters without atomics."""

import re
import threading

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import SMALL_TLB, Loopback

import numaemu
from numaemu import GFP_ATOMIC, GFP_KERNEL, KernelBug
from numaemu.compiler.build import JIT
from numaemu.errors import MachineCheck
from numaemu.kernel.mm.slab.percpu import MAX_CHUNKS, STATIC_SIZE, UNIT_SIZE, chunk_of


class NaivePercpu:
    """First fit over sets of bytes: the lowest aligned place of the first chunk where 4-byte slots are free."""

    def __init__(self):
        self.used = {}  # chunk: its slots in use

    def find(self, size, align):
        slots, align = -(-size // 4), max(align // 4, 1)
        for chunk in sorted(self.used):
            for at in range(0, UNIT_SIZE // 4 - slots + 1, align):
                if self.used[chunk].isdisjoint(range(at, at + slots)):
                    return chunk, at, slots
        chunk = next(n for n in range(1, MAX_CHUNKS) if n not in self.used)
        self.used[chunk] = set(range(STATIC_SIZE // 4)) if chunk == 1 else set()
        return self.find(size, align * 4)

    def alloc(self, size, align):
        chunk, at, slots = self.find(size, align)
        self.used[chunk] |= set(range(at, at + slots))
        return chunk * UNIT_SIZE + at * 4

    def free(self, handle, size):
        chunk, at = handle // UNIT_SIZE, handle % UNIT_SIZE // 4
        self.used[chunk] -= set(range(at, at - (-size // 4)))
        empty = [n for n in self.used if n > 1 and not self.used[n]]
        if len(empty) > 1 and chunk in empty:
            del self.used[chunk]


# fmt: off
STEPS = st.lists(st.one_of(
    st.tuples(st.just("alloc"), st.sampled_from([1, 4, 6, 100, 1000, 9000, UNIT_SIZE - STATIC_SIZE, UNIT_SIZE]),
              st.sampled_from([1, 4, 8, 64, 4096])),
    st.tuples(st.just("free"), st.integers(0, 1000), st.just(0))), max_size=25)
# fmt: on


@pytest.mark.interpreted
@settings(max_examples=50 if JIT else 2)
@given(steps=STEPS)
def test_areas_lie_where_first_fit_puts_them(steps):
    with Loopback(nodes=2, cpus_per_node=1, memory_per_node="16MiB", **SMALL_TLB) as loop:
        task, naive, live = loop.task(0), NaivePercpu(), {}
        for what, n, align in steps:
            if what == "alloc":
                handle = task.kernel.alloc_percpu(n, align)
                assert handle == naive.alloc(n, align) and handle not in live
                for cpu in range(2):
                    address = task.kernel.per_cpu_ptr(handle, cpu)
                    assert address % align == 0 and task.kernel.read(address, n) == bytes(n)
                    task.kernel.write(address, (handle * 2 + cpu).to_bytes(4, "little") * (n // 4))
                live[handle] = n
            elif live:
                handle = sorted(live)[n % len(live)]
                naive.free(handle, live.pop(handle))
                task.kernel.free_percpu(handle)
        for handle, n in live.items():
            for cpu in range(2):
                expected = (handle * 2 + cpu).to_bytes(4, "little") * (n // 4)
                assert task.kernel.read(task.kernel.per_cpu_ptr(handle, cpu), len(expected)) == expected
        loop.audit()


@pytest.fixture
def task(two_nodes):
    task = two_nodes.task(0)
    yield task
    two_nodes.audit()


@pytest.mark.interpreted
def test_each_copy_is_on_its_cpus_node(two_nodes, task):
    handle = task.kernel.alloc_percpu(16)
    pfns = [(task.kernel.per_cpu_ptr(handle, cpu) - 0xFFFF_8880_0000_0000) >> 12 for cpu in range(2)]
    assert [task.kernel.page(pfn)["node"] for pfn in pfns] == [0, 1]
    task.kernel.free_percpu(handle)


@pytest.mark.interpreted
def test_this_cpu_is_the_cpu_the_task_is_on(two_nodes, task):
    other, handle = two_nodes.task(1), task.kernel.alloc_percpu(8)
    task.kernel.this_cpu_add(handle, 5)
    other.kernel.this_cpu_add(handle, -1)
    assert task.kernel.this_cpu_read(handle) == 5 and other.kernel.this_cpu_read(handle) == -1
    task.sched_setaffinity({1})
    task.kernel.this_cpu_add(handle)
    assert task.kernel.this_cpu_read(handle) == 0
    task.kernel.free_percpu(handle)


@pytest.mark.interpreted
def test_static_variables_are_found_by_name(two_nodes, task):
    first, second = task.kernel.define_per_cpu("runqueue", 20), task.kernel.define_per_cpu("hits")
    assert second == first + 24 and two_nodes.task(1).kernel.define_per_cpu("runqueue", 20) == first
    task.kernel.this_cpu_add(second, 3)
    assert task.kernel.read(task.kernel.per_cpu_ptr(first, 0), 32) == bytes(24) + (3).to_bytes(8, "little")
    with pytest.raises(ValueError, match="per-CPU variable hits has 8 bytes, not 4"):
        task.kernel.define_per_cpu("hits", 4)
    with pytest.raises(ValueError, match="per-CPU variable huge: 4096 bytes at 32, the static area has 4096"):
        task.kernel.define_per_cpu("huge", 4096)
    with pytest.raises(KernelBug, match="nothing begins at"):
        task.kernel.free_percpu(second)


@pytest.mark.interpreted
def test_what_is_wrong_is_said(task):
    handle = task.kernel.alloc_percpu(8)
    for wrong in (0, handle + 4, handle + 8, 300 << 15, -1):
        with pytest.raises(KernelBug, match="nothing begins at"):
            task.kernel.free_percpu(wrong)
    task.kernel.free_percpu(handle)
    for function in (task.kernel.free_percpu, task.kernel.this_cpu_read, lambda h: task.kernel.per_cpu_ptr(h, 0)):
        with pytest.raises(KernelBug):
            function(handle)
    for size, align in ((0, 8), (UNIT_SIZE + 1, 8), (8, 3), (8, 8192)):
        with pytest.raises(
            ValueError, match=f"alloc_percpu: {size} bytes, aligned to {align}, must be 1 to 32768 bytes"
        ):
            task.kernel.alloc_percpu(size, align)
    with pytest.raises(ValueError, match="cpu 2 is not one of 0 to 1"):
        task.kernel.per_cpu_ptr(task.kernel.define_per_cpu("x"), 2)
    with pytest.raises(KernelBug, match="preemption is not disabled"):
        task._op("put_cpu_var")


@pytest.mark.interpreted
def test_meminfo_counts_units_and_one_empty_chunk_is_kept(two_nodes, task):
    def percpu_kb():
        from numaemu.kernel.fs.proc.meminfo import meminfo
        from numaemu.kernel.fs.sysfs.sysctl import System

        return int(re.search(r"^Percpu: +(\d+) kB$", meminfo(System(two_nodes.machine, two_nodes.topology)), re.M)[1])

    assert percpu_kb() == 0
    handles = [task.kernel.alloc_percpu(UNIT_SIZE) for _ in range(3)]
    assert percpu_kb() == 4 * 2 * 32  # the first chunk has the static area, so it did not fit there
    for handle in handles:
        task.kernel.free_percpu(handle)
    assert percpu_kb() == 2 * 2 * 32


@pytest.mark.interpreted
def test_without_memory_nothing_is_left_half_made(loopback):
    loop = loopback(nodes=2, cpus_per_node=1, memory_per_node="4MiB")
    task = loop.task(0)
    while task.kernel.alloc_percpu(UNIT_SIZE, gfp=GFP_ATOMIC):
        pass
    assert {int(chunk_of(loop.machine, n).state) for n in range(1, MAX_CHUNKS)} == {0, 2}
    loop.audit()


@pytest.mark.interpreted
def test_the_audit_sees_a_wrong_map(two_nodes, task):
    handle = task.kernel.alloc_percpu(8)
    chunk, at = chunk_of(two_nodes.machine, 1), handle % UNIT_SIZE // 4
    chunk.map[at] = 0
    with pytest.raises(MachineCheck, match="per-CPU chunk 1"):
        two_nodes.audit()
    chunk.map[at] = 1


@pytest.mark.interpreted
def test_a_task_may_not_leave_its_cpu_between_get_and_put(two_nodes, task):
    handle = task.kernel.alloc_percpu(8)
    with task.kernel.get_cpu_var(handle):
        with task.kernel.get_cpu_var(handle):
            with pytest.raises(KernelBug, match="scheduling while atomic: task .* may not leave cpu 0"):
                task.sched_setaffinity({1})
        assert two_nodes.cpus[0].turn.busy
    assert not two_nodes.cpus[0].turn.busy
    assert task.sched_setaffinity({1}) == 1


@pytest.mark.interpreted
def test_a_task_that_ends_between_get_and_put_gives_the_cpu_back(two_nodes, task):
    victim = two_nodes.task(1)
    handle = task.kernel.alloc_percpu(8)
    with pytest.raises(ZeroDivisionError):
        with victim.kernel.get_cpu_var(handle):
            victim.exit()
            1 / 0
    assert not two_nodes.cpus[1].turn.busy
    two_nodes.task(1).mmap(4096).touch()


# -- processes -----------------------------------------------------------------------------------------------


def add_apart(task, handle, rounds):
    """Load and store as two operations, between which another task of the CPU could run."""
    for _ in range(rounds):
        with task.kernel.get_cpu_var(handle) as address:
            value = int.from_bytes(task.kernel.read(address, 8), "little")
            task.kernel.write(address, (value + 1).to_bytes(8, "little"))


@pytest.mark.skipif(not JIT, reason="processes")
def test_tasks_of_a_cpu_take_turns_at_what_lies_between_get_and_put(machine):
    task = machine.task(cpu=1)
    handle = task.kernel.alloc_percpu(8)
    for handle_of_task in [machine.spawn(add_apart, handle, 300, cpu=1) for _ in range(4)]:
        handle_of_task.result()
    assert task.kernel.this_cpu_read(handle) == 1200
    with task.kernel.get_cpu_var(handle) as address:
        others = [
            threading.Thread(target=machine.run, args=(add_apart, handle, 1), kwargs={"cpu": 1}),
            threading.Thread(target=machine.check),
        ]  # neither gets the CPU before we give it up
        for other in others:
            other.start()
        for _ in range(100):
            assert int.from_bytes(task.kernel.read(address, 8), "little") == 1200
        assert all(other.is_alive() for other in others)
    for other in others:
        other.join()
    assert task.kernel.this_cpu_read(handle) == 1201
    task.kernel.free_percpu(handle), task.exit()


@numba.njit(cache=True)
def count_up(cpu, handle, rounds):
    for _ in range(rounds):
        numaemu.this_cpu_add(cpu, handle, 1)
    return numaemu.this_cpu_read(cpu, handle)


@pytest.mark.skipif(not JIT, reason="compiled user kernels")
def test_all_cpus_count_at_once_without_atomics(machine):
    task = machine.task(cpu=0)
    handle = task.kernel.alloc_percpu(8)
    runs = [machine.spawn(lambda t, h: int(t.call(count_up, h, 200_000)), handle, cpu=cpu) for cpu in range(4)]
    assert [run.result() for run in runs] == [200_000] * 4
    copies = [task.kernel.read(task.kernel.per_cpu_ptr(handle, cpu), 8) for cpu in range(4)]
    assert [int(np.frombuffer(copy, np.uint64)[0]) for copy in copies] == [200_000] * 4
    assert task.kernel.alloc_percpu(8, gfp=GFP_KERNEL) != handle
    task.exit()
