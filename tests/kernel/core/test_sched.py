"""Several tasks on one CPU: slices of emulated time, what a switch costs and counts, who gets the CPU next."""

import collections
import heapq
import threading
import time

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback

from numaemu import KernelBug, Machine, cpu, load_u64, store_u64
from numaemu.compiler.build import JIT
from numaemu.kernel.core.sched import clock
from numaemu.kernel.fs.proc.stat import show_stat
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.kernel.mm.swap import swapfile, swapon
from numaemu.process.runqueue import RunQueue, Waiter
from numaemu.uapi import (
    MADV_DONTNEED,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_RANDOM,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
)

SLICE_NS, SWITCH_NS, SYSCALL_NS = 3_000_000, 1000, 100


@pytest.fixture(scope="module")
def small():
    with Loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB") as machine:
        machine.machine.on_schedule = cpu._address_of(cpu.on_schedule)
        for each in machine.cpus:
            cpu._cpus[each.cpu_number] = each
        yield machine


def struct_of(machine, task):
    return machine.cpus[0].operations.tasks[task._number]


def figures(machine, task):
    own = struct_of(machine, task)
    return own.nvcsw, own.nivcsw


# -- counting and cost ---------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_a_switch_is_counted_and_charged_once(small):
    one, two = small.task(), small.task()
    one.brk(), two.brk()
    state = small.cpu()
    for _ in range(3):
        before, switches = one.clock_ns, state.nr_switches
        one.brk()
        assert (one.clock_ns - before, state.nr_switches - switches) == (SYSCALL_NS + SWITCH_NS, 1)
        one.brk()
        assert one.clock_ns - before == 2 * SYSCALL_NS + SWITCH_NS
        two.brk()
    assert figures(small, one) == (4, 0)  # it was never made to leave: the other one asked when it was away
    assert f"ctxt {sum(each.state.nr_switches for each in small.cpus)}\n" in show_stat(
        System(small.machine, small.topology)
    )
    one.exit(), two.exit()


@pytest.mark.interpreted
def test_a_yield_without_anybody_else_is_a_system_call(small):
    task = small.task()
    task.brk()
    before, counted = task.clock_ns, figures(small, task)
    task.sched_yield()
    assert (task.clock_ns - before, figures(small, task)) == (SYSCALL_NS, counted)
    task.exit()


@pytest.mark.interpreted
def test_a_sleep_on_an_idle_cpu_lets_its_clock_jump(small):
    task = small.task()
    task.brk()
    before, counted, ran = task.clock_ns, figures(small, task), struct_of(small, task).sum_exec_runtime
    task.sleep(5)
    task.brk()
    assert task.clock_ns - before == 5_000_000 + 2 * SYSCALL_NS + SWITCH_NS
    assert figures(small, task) == (counted[0] + 1, counted[1])
    assert struct_of(small, task).sum_exec_runtime - ran < 5_000_000
    task.exit()


@pytest.mark.interpreted
def test_a_task_that_moves_is_switched_away_from(small):
    task = small.task()
    task.brk()
    assert task.sched_setaffinity({1}) == 1
    assert figures(small, task) == (1, 0) and small.cpu(0).task == 0
    task.brk()
    assert small.cpu(1).task == task._number
    task.exit()


@pytest.mark.interpreted
def test_a_task_that_holds_its_cpu_may_not_sleep(small):
    task = small.task()
    with task.kernel.get_cpu_var(task.kernel.define_per_cpu("asleep")):
        with pytest.raises(KernelBug, match="scheduling while atomic: task .* may not sleep"):
            task.sleep(1)
        task.sched_yield()  # sched_yield has no effect then
    task.exit()


# -- waiting for the disk ------------------------------------------------------------------------------------


@pytest.mark.interpreted
@pytest.mark.parametrize("advice", [MADV_NORMAL, MADV_RANDOM])
def test_who_waits_for_a_file_sleeps_where_others_want_the_cpu(small, advice):
    small.create_file(f"/mnt/{advice}", 2 << 20)
    task, cost = small.task(), []
    area = task.mmap("2MiB", PROT_READ, MAP_PRIVATE, file=task.open(f"/mnt/{advice}"))
    task.madvise(area.addr, area.nbytes, advice)
    for waiting, addr in ((0, area.addr), (1, area.addr + (1 << 20))):
        task.load([addr])  # the tables, and what is read ahead with it
        small.cpu().nr_waiting = waiting  # as if somebody did
        before, counted, faults = task.clock_ns, figures(small, task), task.counters()["task_major_faults"]
        task.load(addr + np.arange(256, 1024, 256, dtype=np.uint64) * np.uint64(1024))
        cost.append(task.clock_ns - before)
        assert task.counters()["task_major_faults"] - faults == 3
        assert figures(small, task) == (counted[0] + 3 * waiting, counted[1])
        small.cpu().nr_waiting = 0
    assert cost[0] > 3 * small.machine.disk_read_ns and cost[1] - cost[0] == 3 * SWITCH_NS
    task.exit()
    small.audit()


@pytest.mark.interpreted
def test_who_waits_for_swap_sleeps_too(small):
    swapon.swapon(small.machine, "area", 32 << 20)
    swapfile.swap_of(small.machine).page_cluster = 0
    task = small.task()
    area = task.mmap("128KiB").touch()
    task.store(area.pages(), np.uint64(7))
    task.madvise(area.addr, area.nbytes, MADV_PAGEOUT)
    task.mmap(
        "20MiB", flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    ).touch().munmap()  # the swap cache is empty then
    counted, before = figures(small, task), task.clock_ns
    small.cpu().nr_waiting = 1
    assert set(task.load(area.pages()).tolist()) == {7}
    small.cpu().nr_waiting = 0
    assert figures(small, task) == (counted[0] + 32, counted[1])
    assert task.clock_ns - before > 32 * small.machine.disk_read_ns
    task.exit()
    small.audit()


# -- the run queue -------------------------------------------------------------------------------------------


class Clock:
    """Stands for a CPU: the run queue asks for its emulated time only."""

    def __init__(self, state):
        self.state, self.queue = state, RunQueue(state)

    def work(self, ns):
        self.state.clock_base_ns += ns


@pytest.mark.interpreted
def test_sleepers_run_in_the_order_of_their_times(small):
    """Whether they are woken at once or one after the other, and before those that never slept."""
    cpu = Clock(small.cpu(1))

    def waiter(name):
        made = Waiter()
        made.task = name
        return made

    now = clock(cpu.queue.address)
    for order, until in enumerate((200, 100, 300, 200)):
        heapq.heappush(cpu.queue.sleepers, (now + until, order, waiter((until, order))))
    cpu.queue.queue.append(waiter("awake"))
    cpu.work(100)
    cpu.queue.wake_sleepers()
    assert [each.task for each in cpu.queue.queue] == [(100, 1), "awake"]
    cpu.work(200)
    cpu.queue.wake_sleepers()
    assert [each.task for each in cpu.queue.queue] == [(100, 1), (200, 0), (200, 3), (300, 2), "awake"]
    assert not cpu.queue.sleepers


def test_of_two_that_sleep_as_long_the_first_wakes_first(small):
    """The second finds the first asleep until the same time, and lets it go first."""
    cpu, order = Clock(small.cpu(1)), []
    until = clock(cpu.queue.address) + 1000

    def live(me):
        cpu.queue.enter((me, me))
        cpu.queue.sleep((me, me), until)
        cpu.state.clock_base_ns += max(until - clock(cpu.queue.address), 0)
        order.append(me)
        cpu.queue.leave((me, me), stays=False)

    cpu.queue.enter(None)
    threads = [threading.Thread(target=live, args=(me,)) for me in (1, 2)]
    for waiting, thread in enumerate(threads, 1):
        thread.start()
        while len(cpu.queue.queue) < waiting:
            time.sleep(0)
    cpu.queue.leave(None)
    for thread in threads:
        thread.join(60)
    assert order == [1, 2]


STEPS = st.lists(st.tuples(st.sampled_from(["work", "yield", "sleep"]), st.integers(1, 4_000_000)), max_size=6)


@settings(max_examples=60)
@given(scripts=st.lists(STEPS, min_size=1, max_size=5))
def test_whoever_shares_a_cpu_has_it_alone_and_gets_it_in_the_end(small, scripts):
    """Threads run random scripts: nobody is inside with another, everybody comes to the end, no sleep is too short."""
    cpu = Clock(small.cpu(1))
    inside, done, wrong = [], [], []

    def alone(me, function):
        cpu.queue.enter((me, me))
        try:
            inside.append(me)
            if inside != [me]:
                wrong.append(list(inside))
            function()
        finally:
            inside.remove(me)
            cpu.queue.leave((me, me), stays=True)

    def away(me, function, *args):
        inside.remove(me)
        function((me, me), *args)
        inside.append(me)

    def step(me, kind, ns):
        until = int(cpu.state.clock_base_ns) + ns
        if kind == "work":
            cpu.work(ns)
        elif kind == "yield":
            away(me, cpu.queue.give_way)
        else:
            if away(me, cpu.queue.sleep, until) is False or cpu.state.clock_base_ns < until:
                cpu.state.clock_base_ns = max(int(cpu.state.clock_base_ns), until)  # as kernel/core/sched.py does

    def live(me, script):
        for kind, ns in script:
            alone(me, lambda: step(me, kind, ns))
        cpu.queue.enter((me, me))
        cpu.queue.leave((me, me), stays=False)
        done.append(me)

    threads = [threading.Thread(target=live, args=(me + 1, script)) for me, script in enumerate(scripts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == list(range(1, len(scripts) + 1)) and not wrong
    assert not cpu.queue.busy and not cpu.queue.queue and not cpu.queue.sleepers and cpu.state.nr_waiting == 0


def test_a_slice_that_is_over_goes_to_the_first_in_the_queue_and_else_the_task_may_go_on(small):
    """Two tasks always want the CPU; each operation takes a third of a slice."""
    cpu, order, start = Clock(small.cpu(1)), [], threading.Barrier(2)
    cpu.queue.enter(None)  # until both wait

    def live(me):
        start.wait()
        for _ in range(9):
            cpu.queue.enter((me, me))
            if not order or order[-1] != me:
                cpu.state.slice_start_ns = cpu.state.clock_base_ns  # context_switch does that
            order.append(me)
            cpu.work(SLICE_NS // 3)
            while len(cpu.queue.queue) == 0 and order.count(3 - me) < 9:
                pass  # the other one is on its way
            cpu.queue.leave((me, me), stays=len(order) < 18)

    threads = [threading.Thread(target=live, args=(me,)) for me in (1, 2)]
    cpu.state.slice_start_ns = small.cpu(1).clock_base_ns
    for thread in threads:
        thread.start()
    while len(cpu.queue.queue) < 2:
        pass
    cpu.queue.leave(None)
    for thread in threads:
        thread.join(60)
    assert collections.Counter(order) == {1: 9, 2: 9}
    runs = [len(list(run)) for run in np.split(order, np.flatnonzero(np.diff(order)) + 1)]
    assert max(runs) <= 3, order


# -- processes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine():
    with Machine(nodes=1, cpus_per_node=2, memory_per_node="32MiB") as machine:
        yield machine
        machine.check()


@numba.njit(cache=True)
def spin(cpu, address):
    """Say that we are there, and read until somebody else stores."""
    store_u64(cpu, address, np.uint64(1))
    while load_u64(cpu, address) != np.uint64(2):
        pass
    return 0


def spinner(task, address):
    before = task.clock_ns
    task.call(spin, address)
    return before, task.clock_ns


def setter(task, address):
    before = task.clock_ns
    task.store([address], np.uint64(2))
    return before


@pytest.mark.skipif(not JIT, reason="processes")
def test_a_kernel_that_waits_for_another_task_of_its_cpu_loses_it_at_the_end_of_its_slice(machine):
    task = machine.task(cpu=0)
    page = task.mmap(4096).touch()
    for _ in range(3):
        task.store([page.addr], np.uint64(0))
        waits = task.clone(spinner, page.addr, cpu=1)
        while task.load([page.addr])[0] != 1:
            pass
        sets = task.clone(setter, page.addr, cpu=1)
        (began, ended), stored = waits.result(), sets.result()
        assert stored - began >= SLICE_NS
        assert (stored - began) % SLICE_NS < SLICE_NS // 10 or stored - began > 2 * SLICE_NS
        assert ended > stored
    task.exit()


@numba.njit(cache=True)
def count(cpu, address, times):
    for _ in range(times):
        store_u64(cpu, address, load_u64(cpu, address) + np.uint64(1))
    return 0


def adder(task, times):
    page = task.mmap(8192)
    for _ in range(4):
        task.call(count, page.addr + 4093, times)  # a word across two pages: looked up, then loaded or stored as one
        task.call(count, page.addr + 8, times)
    return int.from_bytes(task.read(page.addr + 4093, 8), "little"), int(page.array()[1])


@pytest.mark.skipif(not JIT, reason="processes")
def test_preempted_kernels_lose_no_word(machine):
    machine.write("/proc/sys/kernel/sched_base_slice_ns", 100_000)
    runs = [machine.spawn(adder, 10_000, cpu=1) for _ in range(3)]
    assert [run.result() for run in runs] == [(40_000, 40_000)] * 3
    machine.write("/proc/sys/kernel/sched_base_slice_ns", SLICE_NS)


@numba.njit(cache=True)
def meet(cpu, address, me):
    """Until the other one is there."""
    store_u64(cpu, address + np.uint64(8 * me), np.uint64(1))
    while load_u64(cpu, address + np.uint64(8 - 8 * me)) == np.uint64(0):
        pass
    return 0


def look_through(task, page, me, path):
    area = task.mmap("16MiB", PROT_READ, MAP_PRIVATE, file=task.open(path))
    task.madvise(area.addr, area.nbytes, MADV_RANDOM)
    if page:
        task.call(meet, page, me)
    before = task.clock_ns
    task.touch(area.addr, 200 * 65536, stride=65536, write=False)
    return before, task.clock_ns


@pytest.mark.skipif(not JIT, reason="processes")
def test_two_tasks_wait_for_the_disk_at_the_same_time(machine):
    """Both together take hardly longer than one alone, though they have one CPU."""
    for name in "abc":
        machine.create_file(f"/mnt/{name}", "16MiB")
    parent = machine.task(cpu=0)
    page = parent.mmap(4096, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    began, ended = parent.clone(look_through, 0, 0, "/mnt/a", cpu=1).result()
    assert (alone := ended - began) > 200 * 100_000
    runs = [parent.clone(look_through, page.addr, me, f"/mnt/{name}", cpu=1) for me, name in enumerate("bc")]
    began, ended = zip(*(run.result() for run in runs))
    assert max(ended) - min(began) < 1.3 * alone
    parent.exit()


def sleep_in_faults(task, page, path):
    area = task.mmap("16MiB", PROT_READ, MAP_PRIVATE, file=task.open(path))
    task.madvise(area.addr, area.nbytes, MADV_RANDOM)
    task.store([page], np.uint64(1))
    while True:
        task.touch(area.addr, area.nbytes, write=False)
        task.madvise(area.addr, area.nbytes, MADV_DONTNEED)


@pytest.mark.skipif(not JIT, reason="processes")
def test_a_kill_waits_until_its_victim_does_not_sleep_in_a_fault(machine):
    machine.create_file("/mnt/d", "16MiB")
    parent = machine.task(cpu=0)
    page = parent.mmap(4096, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    victims = [parent.fork(sleep_in_faults, page.addr, "/mnt/d", cpu=1) for _ in range(2)]
    while parent.load([page.addr])[0] != 1:
        pass
    for victim in victims:
        parent.kill(victim.pid, 9)
        with pytest.raises(OSError, match="the task has ended"):
            victim.result()
    parent.exit()
    machine.check()


@pytest.mark.skipif(not JIT, reason="processes")
def test_status_and_stat_show_the_switches(machine):
    one, two = machine.task(cpu=0), machine.task(cpu=0)
    for _ in range(5):
        one.brk(), two.brk()
    lines = dict(line.split(":\t") for line in machine.read(f"/proc/{one.pid}/status").splitlines())
    assert (int(lines["voluntary_ctxt_switches"]), int(lines["nonvoluntary_ctxt_switches"])) == (5, 0)
    stat = dict(line.split(" ", 1) for line in machine.read("/proc/stat").splitlines())
    assert int(stat["ctxt"]) == sum(each["nr_switches"] for each in machine.stats()["cpus"])
    one.exit(), two.exit()


def spin_and_live_on(task, address):
    task.call(spin, address)
    while True:
        task.brk()


@pytest.mark.skipif(not JIT, reason="processes")
def test_a_kill_waits_until_its_victim_is_not_in_the_middle_of_accesses(machine):
    task = machine.task(cpu=0)
    page = task.mmap(4096, flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    victim = task.fork(spin_and_live_on, page.addr, cpu=1)
    while task.load([page.addr])[0] != 1:
        pass
    killer = threading.Thread(target=task.kill, args=(victim.pid, 9))
    killer.start()
    task.store([page.addr], np.uint64(2))
    killer.join()
    with pytest.raises(OSError, match="the task has ended"):
        victim.result()
    task.exit()
