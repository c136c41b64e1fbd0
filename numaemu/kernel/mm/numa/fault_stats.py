"""Statistics of hinting faults, of a task and of the group of tasks that share its memory, and the scan periods that follow from
them. From the NUMA part of Linux's kernel/sched/fair.c.

A task's row has four averages and this window's counts for each node and kind of fault: by the node of the memory (NUMA_MEM) and of
the CPU (NUMA_CPU), shared (0) and private (1).
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.include.mm_types import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    NR_NUMA_HINT_FAULT_TYPES,
    NUMA_CPU,
    NUMA_MEM,
    numa_faults_t,
    numa_group_t,
    task_t,
)
from numaemu.kernel.include.mmzone import node_distance
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64
MAX_SCAN_WINDOW = 2560  # MB that are scanned in a second at most
ACTIVE_NODE_FRACTION = 3  # a node with more than a third of the most faults is active
NUMA_DIRECT, NUMA_GLUELESS_MESH, NUMA_BACKPLANE = range(3)  # machine.numa_topology_type
LOCAL_DISTANCE = 10


@hot
def faults_of(machine, number):
    """A task's row (task->numa_faults)."""
    return numa_faults_t.array(machine.numa_faults_table)[number].faults


@hot
def group_of(machine, task):
    """The task's numa_group_t: only if task.numa_group is not 0."""
    return numa_group_t.array(machine.numa_groups)[task.numa_group]


@hot
def task_faults_idx(machine, stat, nid, priv):
    return NR_NUMA_HINT_FAULT_TYPES * (stat * machine.nr_nodes + nid) + priv


@hot
def task_faults(machine, number, task, nid):
    """Faults of a task on memory of a node, as they have faded."""
    if task.numa_faults == 0:
        return 0
    faults, at = faults_of(machine, number), task_faults_idx(machine, NUMA_MEM, nid, 0)
    return faults[at] + faults[at + 1]


@hot
def group_faults(machine, task, nid):
    """Likewise of its group."""
    if task.numa_group == 0:
        return 0
    faults, at = group_of(machine, task).faults, task_faults_idx(machine, NUMA_MEM, nid, 0)
    return faults[at] + faults[at + 1]


@hot
def group_faults_cpu(machine, group, nid):
    """Faults that a group has taken on CPUs of a node."""
    at = task_faults_idx(machine, NUMA_CPU, nid, 0)
    return group.faults[at] + group.faults[at + 1]


@hot
def group_faults_kind(machine, group, priv):
    """group_faults_shared (0), group_faults_priv (1)"""
    faults = 0
    for nid in range(machine.nr_nodes):
        faults += group.faults[task_faults_idx(machine, NUMA_MEM, nid, priv)]
    return faults


@hot
def numa_is_active_node(machine, nid, group):
    return group_faults_cpu(machine, group, nid) * ACTIVE_NODE_FRACTION > group.max_faults_cpu


# -- weights -------------------------------------------------------------------------------------------------


@kernel("i64(machine_t*, i64, task_t*, i64, i64, bool)")
def score_nearby_nodes(machine, number, task, nid, lim_dist, own):
    """What faults on nodes near `nid` add to its own, where not all nodes are as far from each other; the task's `own`, or its group's."""
    score, most = 0, machine.max_numa_distance
    if machine.numa_topology_type == NUMA_DIRECT:
        return 0
    for node in range(machine.nr_nodes):
        distance = node_distance(machine, nid, node)
        if distance >= most or node == nid:
            continue
        if machine.numa_topology_type == NUMA_BACKPLANE and distance >= lim_dist:
            continue
        faults = task_faults(machine, number, task, node) if own else group_faults(machine, task, node)
        if machine.numa_topology_type == NUMA_GLUELESS_MESH:
            faults = faults * (most - distance) // (most - LOCAL_DISTANCE)
        score += faults
    return score


@kernel("i64(machine_t*, i64, i64, i64)")
def task_weight(machine, number, nid, distance):
    """The thousandths of a task's faults that are on a node."""
    task = task_t.array(machine.tasks)[number]
    if task.numa_faults == 0 or task.total_numa_faults == 0:
        return 0
    faults = task_faults(machine, number, task, nid) + score_nearby_nodes(machine, number, task, nid, distance, True)
    return 1000 * faults // task.total_numa_faults


@kernel("i64(machine_t*, i64, i64, i64)")
def group_weight(machine, number, nid, distance):
    """The thousandths of its group's faults."""
    task = task_t.array(machine.tasks)[number]
    if task.numa_group == 0 or group_of(machine, task).total_faults == 0:
        return 0
    faults = group_faults(machine, task, nid) + score_nearby_nodes(machine, number, task, nid, distance, False)
    return 1000 * faults // group_of(machine, task).total_faults


# -- scan periods, in ms ---------------------------------------------------------------------------------------


@kernel("i64(machine_t*, task_t*)")
def task_nr_scan_windows(machine, task):
    """How many pieces of scan_size_mb its resident memory has."""
    pages, mm = machine.numa_scan_size_mb << (20 - PAGE_SHIFT), mm_of(machine, task.mm)
    rss = load_acquire(mm.rss, MM_ANONPAGES) + load_acquire(mm.rss, MM_FILEPAGES) + load_acquire(mm.rss, MM_SHMEMPAGES)
    return max((rss + pages - 1) // pages, 1)


@kernel("i64(machine_t*, task_t*)")
def task_scan_min(machine, task):
    """The shortest period: the whole memory in scan_period_min_ms, but no more than MAX_SCAN_WINDOW a second."""
    windows = MAX_SCAN_WINDOW // machine.numa_scan_size_mb if machine.numa_scan_size_mb < MAX_SCAN_WINDOW else 1
    return max(1000 // windows, machine.numa_scan_period_min_ms // task_nr_scan_windows(machine, task))


@hot
def shared_period(machine, group, period):
    """A period as much longer as the group's memory is shared."""
    shared, private = group_faults_kind(machine, group, 0), group_faults_kind(machine, group, 1)
    return period * load_acquire(group, "refcount") * (shared + 1) // max(private + shared + 1, 1)


@kernel("i64(machine_t*, task_t*)")
def task_scan_start(machine, task):
    """The period that a task begins with."""
    least = task_scan_min(machine, task)
    return max(least, shared_period(machine, group_of(machine, task), least)) if task.numa_group != 0 else least


@kernel("i64(machine_t*, task_t*)")
def task_scan_max(machine, task):
    """The longest period."""
    least = task_scan_min(machine, task)
    most = machine.numa_scan_period_max_ms // task_nr_scan_windows(machine, task)
    if task.numa_group != 0:
        most = max(most, shared_period(machine, group_of(machine, task), most))
    return max(least, most)
