"""A task goes to its memory: task_numa_migrate of Linux's kernel/sched/fair.c, for CPUs that are equal and tasks of equal weight.

A task may leave its CPU only if sched_setaffinity has allowed it several, and does so when its operation (system call, vector of
accesses) is over: it is in the middle of it here. What is counted of a node is how many tasks run on its CPUs.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import cpu_present, task_t
from numaemu.kernel.include.mmzone import node_distance
from numaemu.kernel.include.trace import SCHED_MOVE_NUMA, trace_event
from numaemu.kernel.mm.numa.fault_stats import group_of, group_weight, task_weight
from numaemu.kernel.mm.numa.memory_tiers import NUMA_NO_NODE
from numaemu.kernel.mm.space.mempolicy import current_task
from numaemu.mmu import clock_ns
from numaemu.spec.param import CPU_WORDS

U = np.uint64
NS_PER_MS, NS_PER_S = 1_000_000, 1_000_000_000
SMALLIMP = 30  # improvements below it are none, in thousandths
NO_IMPROVEMENT = -1
IMB_NUMA_NR = 1  # tasks that a node may have before they are balanced
NUMA_IMBALANCE_MIN = 2  # by how many it may have more
SWAP = 1 << 20  # beside the number of a CPU


@hot
def task_may_run_on(task, cpu_number):
    """True if sched_setaffinity has allowed a task this CPU."""
    return (task.cpus_mask[cpu_number // 64] >> U(cpu_number % 64)) & U(1) != U(0)


@hot
def nr_running(cpu):
    """Tasks that run on a CPU or wait for it, as far as another one sees."""
    return (1 if cpu.task != 0 else 0) + load_acquire(cpu, "nr_waiting")


@kernel("i64(machine_t*, i64, bool)")
def node_nr_running(machine, nid, cpus):
    """Tasks on the CPUs of a node; or how many CPUs it has (numa_stats.weight)."""
    count = 0
    for number in range(machine.nr_cpus):
        other = cpu_t.array(machine.cpus)[number]
        if other.node == nid and cpu_present(machine, number):
            count += 1 if cpus else nr_running(other)
    return count


@kernel("i64(cpu_t*, i64)")
def find_idle_cpu(cpu, nid):
    """A CPU of a node without a task, which the running one may go to; -1: there is none."""
    machine, task = machine_of(cpu), current_task(cpu)
    for number in range(machine.nr_cpus):
        other = cpu_t.array(machine.cpus)[number]
        if (
            other.node == nid
            and cpu_present(machine, number)
            and task_may_run_on(task, number)
            and nr_running(other) == 0
        ):
            return number
    return -1


@kernel("i64(cpu_t*, i64, i64, i64)")
def swap_improvement(cpu, number, nid, importance):
    """What is won, in thousandths, if the running task changes places with the one that runs on CPU `number` of node `nid`."""
    machine, task = machine_of(cpu), current_task(cpu)
    other_number = cpu_t.array(machine.cpus)[number].task
    other, distance = task_t.array(machine.tasks)[other_number], node_distance(machine, cpu.node, nid)
    if not task_may_run_on(other, cpu.id):
        return NO_IMPROVEMENT
    theirs = task_weight(machine, other_number, cpu.node, distance) - task_weight(machine, other_number, nid, distance)
    if task.numa_group != 0 and other.numa_group != 0 and task.numa_group != other.numa_group:
        theirs = group_weight(machine, other_number, cpu.node, distance) - group_weight(
            machine, other_number, nid, distance
        )
    gain = importance + theirs
    if task.numa_group != 0 and task.numa_group == other.numa_group:
        gain -= gain // 16  # hysteresis within a group
    if other.numa_preferred_nid == nid:
        gain -= gain // 16
    if other.numa_preferred_nid == cpu.node:
        gain += gain // 8
    return gain


@hot
def may_move(src_running, dst_running, spare):
    """True if a node with `dst_running` tasks, which is to have one more, does not get too many against ours, which is to have one
    less: adjust_numa_imbalance, load_too_imbalanced.
    """
    src, dst = src_running - 1, dst_running + 1
    if spare:
        imbalance = max(dst - src, 0)
        return imbalance == 0 or (dst <= IMB_NUMA_NR and imbalance <= NUMA_IMBALANCE_MIN)
    return abs(dst - src) <= abs(dst_running - src_running)


@kernel("i64(cpu_t*, i64, i64)")
def task_numa_find_cpu(cpu, nid, importance):
    """The CPU of a node that the running task should go to, -1: none. With SWAP the task that is there comes to ours."""
    machine, task = machine_of(cpu), current_task(cpu)
    running = node_nr_running(machine, nid, False)
    spare = running < node_nr_running(machine, nid, True)
    moves = may_move(node_nr_running(machine, cpu.node, False), running, spare)
    idle = find_idle_cpu(cpu, nid)
    if moves and idle >= 0:
        return idle
    best, gain = -1, SMALLIMP - 1
    for number in range(machine.nr_cpus):
        other = cpu_t.array(machine.cpus)[number]
        if other.node != nid or not cpu_present(machine, number) or not task_may_run_on(task, number):
            continue
        if other.task == 0 or other.task == cpu.task:
            continue
        if moves and importance > gain:
            best, gain = number, importance
        same = task_t.array(machine.tasks)[other.task].numa_group == task.numa_group
        improvement = NO_IMPROVEMENT if spare and same else swap_improvement(cpu, number, nid, importance)
        if improvement > gain:
            best, gain = number + SWAP, improvement
    return best


@hot
def importance_of(cpu, task, nid):
    """What the running task, or its group, wins on a node, in thousandths of its faults."""
    machine, distance = machine_of(cpu), node_distance(machine_of(cpu), cpu.node, nid)
    if task.numa_group != 0:
        return group_weight(machine, cpu.task, nid, distance) - group_weight(machine, cpu.task, cpu.node, distance)
    return task_weight(machine, cpu.task, nid, distance) - task_weight(machine, cpu.task, cpu.node, distance)


@kernel("void(cpu_t*)")
def task_numa_migrate(cpu):
    """Look for a CPU near the running task's memory, on its preferred node first. Where it is to go stands in numa_migrate_to."""
    machine, task = machine_of(cpu), current_task(cpu)
    target = task_numa_find_cpu(cpu, task.numa_preferred_nid, importance_of(cpu, task, task.numa_preferred_nid))
    if target < 0 or (task.numa_group != 0 and group_of(machine, task).active_nodes > 1):
        for nid in range(machine.nr_nodes):
            if target < 0 and nid != cpu.node and nid != task.numa_preferred_nid and importance_of(cpu, task, nid) >= 0:
                target = task_numa_find_cpu(cpu, nid, importance_of(cpu, task, nid))
    if task.numa_group != 0:
        task.numa_preferred_nid = cpu.node if target < 0 else cpu_t.array(machine.cpus)[target % SWAP].node
    if target < 0:
        return
    task.numa_migrate_to = target % SWAP + 1
    nodes = cpu.node | cpu_t.array(machine.cpus)[target % SWAP].node << 8
    trace_event(cpu, SCHED_MOVE_NUMA, task.pid, task.tgid, cpu.id, target % SWAP, nodes)
    if target >= SWAP:
        task_t.array(machine.tasks)[cpu_t.array(machine.cpus)[target % SWAP].task].numa_migrate_to = cpu.id + 1


@kernel("void(cpu_t*)")
def numa_migrate_preferred(cpu):
    """Now and then: if the running task is not on the node that it prefers, try to move it there."""
    task = current_task(cpu)
    if task.numa_preferred_nid == NUMA_NO_NODE:
        return
    task.numa_migrate_retry_ns = clock_ns(cpu) + min(NS_PER_S, task.numa_scan_period * NS_PER_MS // 16)
    if cpu.node == task.numa_preferred_nid:
        return
    for word in range(CPU_WORDS):
        if task.cpus_mask[word] != U(0):
            task_numa_migrate(cpu)
            return
