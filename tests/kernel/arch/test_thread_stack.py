"""Kernel stacks: of tasks and of interrupts, their guard pages, what they cost, the CPUs' caches."""

import contextlib
import re

import pytest

from numaemu import KernelBug, OutOfMemory
from numaemu.compiler.build import JIT
from numaemu.kernel.include.mm_types import task_t
from numaemu.spec.formats import FORMATS

pytestmark = pytest.mark.interpreted


def stack_of(machine, task):
    return int(task_t.array(machine.machine.tasks)[task._number].stack)


def kernel_stack_kb(machine, node=None):
    path = "/proc/meminfo" if node is None else f"/sys/devices/system/node/node{node}/meminfo"
    return int(re.search(r"KernelStack: +(\d+) kB", machine.actors[0].rpc_read(path))[1])


@pytest.mark.parametrize("name", FORMATS)
def test_a_stack_holds_what_it_has_and_no_more(loopback, name):
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", paging=name)
    size = machine.machine.thread_size
    assert size == (8 << 10 if name == "x86-32" else 16 << 10)
    task, other = machine.task(name="deep"), machine.task()
    stack = stack_of(machine, task)
    assert stack % size == 0 and stack != stack_of(machine, other)
    task.kernel.use_stack(size)
    assert task.kernel.recurse(size // 96) == size // 96
    text = f"kernel stack overflow: task {task.pid} on cpu 0: TASK stack guard page was hit at 0x[0-9a-f]+ \\(stack is {stack:#x}"
    with pytest.raises(KernelBug, match=text):
        task.kernel.recurse(size // 96 + 1)
    with pytest.raises(KernelBug, match=f"guard page was hit at {stack - 64:#x}"):
        task.kernel.use_stack(size + 64)
    assert (
        f"BUG: TASK stack guard page was hit at {stack - 64:#x} (stack is {stack:#x}..{stack + size:#x})"
        in machine.actors[0].system.kmsg
    )
    assert other.kernel.recurse(10) == 10
    machine.audit()


def test_an_interrupt_has_a_stack_of_its_cpu(loopback):
    machine = loopback(nodes=1, cpus_per_node=2, memory_per_node="16MiB")
    tasks = [machine.task(0), machine.task(1)]
    for task in tasks:
        assert task.kernel.recurse(100, irq=True) == 100
        with pytest.raises(KernelBug, match="IRQ stack guard page was hit"):
            task.kernel.use_stack("17KiB", irq=True)
    stacks = [cpu.operations.irq_stack() for cpu in machine.cpus]
    assert len(set(stacks)) == 2
    tasks[0].kernel.recurse(3, irq=True)  # the word below the return address of the first call
    assert tasks[1].kernel.read(stacks[0] + 16384 - 8, 8) == (1).to_bytes(8, "little")


@pytest.mark.parametrize(("option", "pages"), [("4KiB", 1), ("8KiB", 2)])
def test_one_or_two_pages(loopback, option, pages):
    machine = loopback(
        nodes=1, cpus_per_node=1, memory_per_node="16MiB", paging="x86-32", kernel={"thread_size": option}
    )
    task = machine.task()
    assert kernel_stack_kb(machine) == 4 * pages == machine.vmstat()["nr_kernel_stack"]
    task.kernel.use_stack(4096 * pages)
    with pytest.raises(KernelBug, match="kernel stack overflow"):
        task.kernel.use_stack(4096 * pages + 1)


def test_what_stacks_cost(two_nodes):
    """The first two tasks of a CPU find a stack in its cache; further ones take pages, and give them back."""
    before = [zone.free_pages for zone in two_nodes.zones()]
    tasks = [two_nodes.task() for _ in range(5)]
    assert kernel_stack_kb(two_nodes) == kernel_stack_kb(two_nodes, 0) == 80 and kernel_stack_kb(two_nodes, 1) == 0
    info = two_nodes.actors[0].rpc_read("/proc/vmallocinfo")
    assert len(re.findall(r"dup_task_struct pages=4 vmalloc N0=4", info)) == 3
    thread, child = tasks[0].clone(), tasks[0].fork()
    assert len({stack_of(two_nodes, task) for task in (*tasks, thread, child)}) == 7
    for task in (*tasks, thread, child):
        task.exit()
    assert kernel_stack_kb(two_nodes) == 0
    two_nodes.drain()
    assert [zone.free_pages for zone in two_nodes.zones()] == before
    two_nodes.audit()


def test_boots_stacks_stay_in_caches(two_nodes):
    """Wherever their tasks end: of four, two on either CPU, none is lost, and the machine uses no page for the first four."""
    for _ in range(3):
        tasks = [two_nodes.task(cpu) for cpu in (0, 0, 1, 1)]
        for task in tasks:
            task.sched_setaffinity({0})
            task.exit()
    assert len(re.findall("dup_task_struct pages=4 vmap", two_nodes.actors[0].rpc_read("/proc/vmallocinfo"))) == 4
    tasks = [two_nodes.task(cpu) for cpu in (0, 0, 1, 1)]
    assert (
        "vmalloc" not in two_nodes.actors[0].rpc_read("/proc/vmallocinfo")
        and len({stack_of(two_nodes, t) for t in tasks}) == 4
    )


def test_a_stack_from_the_cache_is_clean(loopback):
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    task = machine.task()
    stack = stack_of(machine, task)
    task.kernel.use_stack("16KiB")
    task.exit()
    again = machine.task()
    assert stack_of(machine, again) == stack and again.kernel.read(stack, 16384) == bytes(16384)


@pytest.mark.skipif(not JIT, reason="takes long in plain Python")
def test_no_stack_no_task(loopback):
    """Threads until memory is full of stacks: the OOM killer ends them all, and their stacks come back."""
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    task, tasks = machine.task(), []
    with pytest.raises((OSError, OutOfMemory)):
        while True:
            tasks.append(task.clone())
    assert 300 < len(tasks) < 512
    for thread in tasks:
        with contextlib.suppress(OSError, OutOfMemory):
            thread.exit()
    fresh = [machine.task() for _ in range(10)]
    assert fresh[-1].kernel.recurse(1) == 1 and kernel_stack_kb(machine) == 160
    machine.audit()
