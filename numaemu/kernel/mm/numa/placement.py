"""What a task learns from its hinting faults: which node it prefers, how often to scan, with whom it shares memory. task_numa_fault,
task_numa_placement, task_numa_group and update_task_scan_period of Linux's kernel/sched/fair.c.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of, i64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.pool import pool_get, pool_put
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.mm_types import (
    NR_NUMA_HINT_FAULT_STATS,
    NUMA_CPU,
    NUMA_CPUBUF,
    NUMA_MEM,
    NUMA_MEMBUF,
    numa_group_t,
    task_t,
)
from numaemu.kernel.include.mmzone import node_distance
from numaemu.kernel.include.refcount import refcount_inc_not_zero
from numaemu.kernel.mm.numa.cpupid import LAST_CPUPID_MASK, cpupid_match_pid, cpupid_to_cpu
from numaemu.kernel.mm.numa.fault_stats import (
    ACTIVE_NODE_FRACTION,
    LOCAL_DISTANCE,
    NUMA_BACKPLANE,
    NUMA_DIRECT,
    NUMA_GLUELESS_MESH,
    faults_of,
    group_faults,
    group_faults_cpu,
    group_of,
    group_weight,
    numa_is_active_node,
    task_faults_idx,
    task_scan_max,
    task_scan_min,
)
from numaemu.kernel.mm.numa.memory_tiers import NUMA_BALANCING_MEMORY_TIERING, NUMA_NO_NODE, node_is_toptier
from numaemu.kernel.mm.numa.should_migrate import cpupid_valid
from numaemu.kernel.mm.numa.task_migrate import numa_migrate_preferred
from numaemu.kernel.mm.space.mempolicy import current_task
from numaemu.mmu import clock_ns

U = np.uint64
TNF_MIGRATED, TNF_NO_GROUP, TNF_SHARED, TNF_FAULT_LOCAL, TNF_MIGRATE_FAIL = 1, 2, 4, 8, 16
NUMA_PERIOD_SLOTS, NUMA_PERIOD_THRESHOLD = 10, 7
NS_PER_MS = 1_000_000
LOOK_AT_CLOCK = 16  # faults between two looks at the clock, within a scan
LOAD_AVG_MAX = 47742  # kernel/sched/sched-pelt.h


# -- scan period -----------------------------------------------------------------------------------------------


@hot
def period_change(slots, period):
    """How much longer a period gets with so many tenths."""
    return max(slots - NUMA_PERIOD_THRESHOLD, 1) * -(-period // NUMA_PERIOD_SLOTS)


@kernel("void(cpu_t*, i64, i64)")
def update_task_scan_period(cpu, shared, private):
    """Scan more slowly where most faults are private or local, faster where memory should move."""
    machine, task = machine_of(cpu), current_task(cpu)
    remote, local, period = task.numa_faults_locality[0], task.numa_faults_locality[1], task.numa_scan_period
    if local + shared == 0 or task.numa_faults_locality[2] != 0:
        task.numa_scan_period = min(task.numa_scan_period_max, period << 1)
        mm_of(machine, task.mm).numa_next_scan_ns = clock_ns(cpu) + task.numa_scan_period * NS_PER_MS
        return
    lr_ratio = local * NUMA_PERIOD_SLOTS // max(local + remote, 1)
    ps_ratio = private * NUMA_PERIOD_SLOTS // max(private + shared, 1)
    if ps_ratio >= NUMA_PERIOD_THRESHOLD:
        change = period_change(ps_ratio, period)
    elif lr_ratio >= NUMA_PERIOD_THRESHOLD:
        change = period_change(lr_ratio, period)
    else:
        change = -(NUMA_PERIOD_THRESHOLD - max(lr_ratio, ps_ratio)) * -(-period // NUMA_PERIOD_SLOTS)
    least, most = task_scan_min(machine, task), task_scan_max(machine, task)
    task.numa_scan_period = min(max(period + change, least), most)
    for i in range(3):
        task.numa_faults_locality[i] = 0


# -- the preferred node ------------------------------------------------------------------------------------------


@kernel("void(machine_t*, numa_group_t*)")
def numa_group_count_active_nodes(machine, group):
    """How many nodes a group really runs on. Under its lock."""
    most = active = 0
    for nid in range(machine.nr_nodes):
        most = max(most, group_faults_cpu(machine, group, nid))
    for nid in range(machine.nr_nodes):
        if group_faults_cpu(machine, group, nid) * ACTIVE_NODE_FRACTION > most:
            active += 1
    group.max_faults_cpu, group.active_nodes = most, active


@kernel("i64(machine_t*, task_t*, i64)")
def preferred_group_of_backplane(machine, task, nid):
    """Node groups within node groups: at each distance, down to the nearest, the group with most faults."""
    nodes = machine.node_mask
    for distance in range(machine.max_numa_distance, LOCAL_DISTANCE, -1):
        most, group, left = 0, U(0), nodes
        for a in range(machine.nr_nodes):
            if (left >> U(a)) & U(1) == U(0):
                continue
            faults, this = 0, U(0)
            for b in range(machine.nr_nodes):
                if (left >> U(b)) & U(1) != U(0) and node_distance(machine, a, b) < distance:
                    faults += group_faults(machine, task, b)
                    this |= U(1) << U(b)
            left &= ~this
            if faults > most:
                most, group, nid = faults, this, a
        if most == 0:
            break
        nodes = group
    return nid


@kernel("i64(cpu_t*, i64)")
def preferred_group_nid(cpu, nid):
    """The node that a group prefers, where not all nodes are as far from each other."""
    machine = machine_of(cpu)
    if machine.numa_topology_type == NUMA_DIRECT:
        return nid
    if machine.numa_topology_type == NUMA_BACKPLANE:
        return preferred_group_of_backplane(machine, current_task(cpu), nid)
    most = 0
    for node in range(machine.nr_nodes):
        score = group_weight(machine, cpu.task, node, machine.max_numa_distance)
        if score > most:
            most, nid = score, node
    return nid


@kernel("i64(machine_t*, i64)")
def numa_nearest_node(machine, nid):
    """The nearest node with CPUs."""
    found, least = nid, 1 << 30
    for number in range(machine.nr_cpus):
        node = cpu_t.array(machine.cpus)[number].node
        if nid >= 0 and node >= 0 and node_distance(machine, nid, node) < least:
            found, least = node, node_distance(machine, nid, node)
    return found


@hot
def numa_get_avg_runtime(cpu, task):
    """(ns that the task has run, ns that have passed) since its last placement."""
    runtime, now = task.sum_exec_runtime + clock_ns(cpu) - cpu.exec_start_ns, clock_ns(cpu)
    delta = period = LOAD_AVG_MAX  # of a task that has always run
    if task.last_task_numa_placement_ns != 0:
        delta, period = runtime - task.last_sum_exec_runtime, max(now - task.last_task_numa_placement_ns, 0)
    task.last_sum_exec_runtime, task.last_task_numa_placement_ns = runtime, now
    return delta, period


@kernel("i64(cpu_t*, i64, i64, i64, i64)")
def fold_faults(cpu, nid, priv, runtime, period):
    """Let this window's faults of a kind into the averages of a node, by half: faults of the task, or its group, there."""
    machine, task = machine_of(cpu), current_task(cpu)
    faults, total = faults_of(machine, cpu.task), task.numa_faults_locality[0] + task.numa_faults_locality[1]
    mem, membuf = task_faults_idx(machine, NUMA_MEM, nid, priv), task_faults_idx(machine, NUMA_MEMBUF, nid, priv)
    at, buffer = task_faults_idx(machine, NUMA_CPU, nid, priv), task_faults_idx(machine, NUMA_CPUBUF, nid, priv)
    diff = faults[membuf] - faults[mem] // 2
    weight = (runtime << 16) // (period + 1) * faults[buffer] // (total + 1)
    cpu_diff = weight - faults[at] // 2
    faults[membuf] = faults[buffer] = 0
    faults[mem] += diff
    faults[at] += cpu_diff
    task.total_numa_faults += diff
    if task.numa_group == 0:
        return faults[mem]
    group = group_of(machine, task)
    group.faults[mem] += diff
    group.faults[at] += cpu_diff
    group.total_faults += diff
    return group.faults[mem]


@kernel("void(cpu_t*)")
def task_numa_placement(cpu):
    """After a whole scan: fade the statistics, choose the node with most faults, adapt the period."""
    machine, task = machine_of(cpu), current_task(cpu)
    if task.numa_scan_seq == mm_of(machine, task.mm).numa_scan_seq:
        return
    task.numa_scan_seq = mm_of(machine, task.mm).numa_scan_seq
    task.numa_scan_period_max = task_scan_max(machine, task)
    runtime, period = numa_get_avg_runtime(cpu, task)
    most, max_nid, shared, private = 0, NUMA_NO_NODE, 0, 0
    faults, grouped = faults_of(machine, cpu.task), task.numa_group != 0
    if grouped:
        spin_lock(cpu, address_of(group_of(machine, task), "lock"))
    for nid in range(machine.nr_nodes):
        shared += faults[task_faults_idx(machine, NUMA_MEMBUF, nid, 0)]
        private += faults[task_faults_idx(machine, NUMA_MEMBUF, nid, 1)]
        there = fold_faults(cpu, nid, 0, runtime, period) + fold_faults(cpu, nid, 1, runtime, period)
        if there > most:
            most, max_nid = there, nid
    max_nid = numa_nearest_node(machine, max_nid)
    if grouped:
        numa_group_count_active_nodes(machine, group_of(machine, task))
        spin_unlock(address_of(group_of(machine, task), "lock"))
        max_nid = preferred_group_nid(cpu, max_nid)
    if most != 0:
        task.numa_preferred_nid = max_nid
    update_task_scan_period(cpu, shared, private)


# -- groups ------------------------------------------------------------------------------------------------------


@hot
def nr_group_stats(machine):
    return NR_NUMA_HINT_FAULT_STATS * machine.nr_nodes


@kernel("bool(cpu_t*)")
def new_numa_group(cpu):
    """A group of the running task alone; False: the table is full."""
    machine, task = machine_of(cpu), current_task(cpu)
    number = pool_get(cpu, machine.numa_group_pool)
    if number == 0:
        return False
    group = numa_group_t.array(machine.numa_groups)[number]
    group.refcount, group.nr_tasks, group.gid, group.active_nodes, group.max_faults_cpu = 1, 1, task.pid, 1, 0
    for i in range(nr_group_stats(machine)):
        group.faults[i] = faults_of(machine, cpu.task)[i]
    group.total_faults, task.numa_group = task.total_numa_faults, number
    return True


@kernel("void(cpu_t*, i64)")
def put_numa_group(cpu, number):
    """One reference less; the last one gives the number back."""
    machine = machine_of(cpu)
    if fetch_add(numa_group_t.array(machine.numa_groups)[number], "refcount", -1) == 1:
        pool_put(cpu, machine.numa_group_pool, number)


@kernel("void(cpu_t*, i64, i64, i64)")
def move_to_group(cpu, number, group_number, sign):
    """Add a task's faults to a group's, or (-1) take them away."""
    machine = machine_of(cpu)
    task, group = task_t.array(machine.tasks)[number], numa_group_t.array(machine.numa_groups)[group_number]
    spin_lock(cpu, address_of(group, "lock"))
    for i in range(nr_group_stats(machine)):
        group.faults[i] += sign * faults_of(machine, number)[i]
    group.total_faults += sign * task.total_numa_faults
    group.nr_tasks += sign
    spin_unlock(address_of(group, "lock"))


@kernel("i64(cpu_t*, i64, i64)")
def task_numa_group(cpu, cpupid, flags):
    """Another task has used this page: share a group with it if it runs still. 1 if the fault is private all the same, by a pid
    that only looks alike; 0, or -1: unknown.
    """
    machine, task = machine_of(cpu), current_task(cpu)
    if task.numa_group == 0 and not new_numa_group(cpu):
        return -1
    if not cpupid_valid(machine, cpupid):
        return -1
    other = task_t.array(machine.tasks)[cpu_t.array(machine.cpus)[cpupid_to_cpu(cpupid)].task]
    mine, theirs = task.numa_group, other.numa_group
    if not cpupid_match_pid(other.pid, cpupid) or theirs == 0 or theirs == mine:
        return -1
    my_group, group = group_of(machine, task), numa_group_t.array(machine.numa_groups)[theirs]
    if my_group.nr_tasks > group.nr_tasks or (my_group.nr_tasks == group.nr_tasks and mine > theirs):
        return -1
    if other.mm != task.mm and flags & TNF_SHARED == 0:
        return 1
    if not refcount_inc_not_zero(i64.array(address_of(group, "refcount"))):
        return 0
    move_to_group(cpu, cpu.task, mine, -1)
    move_to_group(cpu, cpu.task, theirs, 1)
    task.numa_group = theirs
    put_numa_group(cpu, mine)
    return 0


@kernel("void(cpu_t*, i64)")
def task_numa_free(cpu, number):
    """A task ends, or begins another program: its statistics go."""
    machine = machine_of(cpu)
    task = task_t.array(machine.tasks)[number]
    if task.numa_faults == 0:
        return
    if task.numa_group != 0:
        group, task.numa_group = task.numa_group, 0
        move_to_group(cpu, number, group, -1)
        put_numa_group(cpu, group)
    task.numa_faults = task.total_numa_faults = 0


# -- a fault -------------------------------------------------------------------------------------------------------


@kernel("void(cpu_t*)")
def alloc_numa_faults(cpu):
    """The running task's statistics begin."""
    machine, task = machine_of(cpu), current_task(cpu)
    faults = faults_of(machine, cpu.task)
    for i in range(2 * nr_group_stats(machine)):
        faults[i] = 0
    for i in range(3):
        task.numa_faults_locality[i] = 0
    task.numa_faults, task.total_numa_faults = 1, 0


@hot
def placement_may_be_due(machine, task, local):
    """True if a scan is over, and else now and then: the clock costs more than the rest of a fault's statistics."""
    return (
        task.numa_scan_seq != mm_of(machine, task.mm).numa_scan_seq
        or task.numa_faults_locality[local] % LOOK_AT_CLOCK == 0
    )


@kernel("void(cpu_t*, i64, i64, i64, i64)")
def task_numa_fault(cpu, last_cpupid, mem_node, pages, flags):
    """Count a hinting fault of the running task on a page that is on `mem_node` now."""
    machine, task = machine_of(cpu), current_task(cpu)
    if machine.numa_balancing == 0 or cpu.task == 0:
        return
    tiering = machine.numa_balancing & NUMA_BALANCING_MEMORY_TIERING != 0
    if not node_is_toptier(machine, mem_node) and (tiering or not cpupid_valid(machine, last_cpupid)):
        return
    if task.numa_faults == 0:
        alloc_numa_faults(cpu)
    private = 1
    if last_cpupid != LAST_CPUPID_MASK and not cpupid_match_pid(task.pid, last_cpupid):
        private = max(task_numa_group(cpu, last_cpupid, flags), 0) if flags & TNF_NO_GROUP == 0 else 0
    local = 1 if flags & TNF_FAULT_LOCAL else 0
    if private == 0 and local == 0 and task.numa_group != 0 and group_of(machine, task).active_nodes > 1:
        group = group_of(machine, task)
        if numa_is_active_node(machine, cpu.node, group) and numa_is_active_node(machine, mem_node, group):
            local = 1
    if placement_may_be_due(machine, task, local) and clock_ns(cpu) > task.numa_migrate_retry_ns:
        task_numa_placement(cpu)
        numa_migrate_preferred(cpu)
    if flags & TNF_MIGRATED:
        task.numa_pages_migrated += pages
    if flags & TNF_MIGRATE_FAIL:
        task.numa_faults_locality[2] += pages
    faults = faults_of(machine, cpu.task)
    faults[task_faults_idx(machine, NUMA_MEMBUF, mem_node, private)] += pages
    faults[task_faults_idx(machine, NUMA_CPUBUF, cpu.node, private)] += pages
    task.numa_faults_locality[local] += pages


# -- at boot -------------------------------------------------------------------------------------------------------


def init_numa_topology_type(topology, machine):
    """How the nodes with CPUs lie to each other: all as far, in a mesh, or in groups behind a backplane."""
    nodes, distance = [n.id for n in topology.nodes if n.cpus], topology.distance
    pairs = [(a, b) for a in nodes for b in nodes]
    most = machine.max_numa_distance = max(distance[a][b] for a, b in pairs)
    machine.numa_topology_type = NUMA_DIRECT
    if len({distance[a][b] for a, b in pairs}) > 2:
        far = next((a, b) for a, b in pairs if distance[a][b] >= most)
        between = any(max(distance[end][c] for end in far) < most for c in nodes)
        machine.numa_topology_type = NUMA_GLUELESS_MESH if between else NUMA_BACKPLANE
