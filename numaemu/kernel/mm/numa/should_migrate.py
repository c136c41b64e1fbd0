"""Where a page that takes a hinting fault should be: mpol_misplaced of Linux's mm/mempolicy.c, should_numa_migrate_memory of
kernel/sched/fair.c.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm import linear_page_index
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.mm.numa.cpupid import (
    cpu_pid_to_cpupid,
    cpupid_match_pid,
    cpupid_pid_unset,
    cpupid_to_cpu,
    folio_xchg_last_cpupid,
)
from numaemu.kernel.mm.numa.fault_stats import ACTIVE_NODE_FRACTION, group_faults, group_faults_cpu, group_of
from numaemu.kernel.mm.numa.memory_tiers import NUMA_BALANCING_MEMORY_TIERING, NUMA_NO_NODE, node_is_toptier
from numaemu.kernel.mm.numa.promotion import should_promote
from numaemu.kernel.mm.space.mempolicy import (
    current_task,
    found_policy,
    get_vma_policy,
    mpol_shared_policy_lookup,
    node_isset,
    vma_shared_object,
)
from numaemu.uapi import MPOL_DEFAULT, MPOL_F_NUMA_BALANCING

U = np.uint64
EARLY_SCANS = 4  # two passes of the two-stage filter


@kernel("bool(cpu_t*, vma_t*)")
def vma_policy_mof(cpu, vma):
    """True if hinting faults may move the pages of a VMA (MPOL_F_MOF): by default, and with policies that say so."""
    shared = vma_shared_object(machine_of(cpu), vma)
    if shared != 0:
        mpol_shared_policy_lookup(cpu, shared, vma.pgoff)
        return found_policy(cpu).flags & MPOL_F_NUMA_BALANCING != 0
    policy = get_vma_policy(cpu, vma)
    return policy.mode == MPOL_DEFAULT or policy.flags & MPOL_F_NUMA_BALANCING != 0


@hot
def cpupid_valid(machine, cpupid):
    """False for a time, which a page of a slow tier may have kept from when tiering was on."""
    return cpupid_to_cpu(cpupid) < machine.nr_cpus


@kernel("bool(cpu_t*, i64, i64)")
def shared_fault_migrates(cpu, src_nid, dst_nid):
    """A page that several tasks use moves as its group has memory and CPUs on both nodes."""
    machine, task = machine_of(cpu), current_task(cpu)
    if task.numa_group == 0:
        return True
    group = group_of(machine, task)
    here, there = group_faults_cpu(machine, group, dst_nid), group_faults_cpu(machine, group, src_nid)
    if here > there * ACTIVE_NODE_FRACTION:
        return True
    return here * group_faults(machine, task, src_nid) * 3 > there * group_faults(machine, task, dst_nid) * 4


@kernel("bool(cpu_t*, i64, i64, i64)")
def should_numa_migrate_memory(cpu, pfn, pages, src_nid):
    """True if a page (or huge page) of another node is to come to this CPU's: the two-stage filter, and the others."""
    machine, task, dst_nid = machine_of(cpu), current_task(cpu), cpu.node
    if not node_isset(machine.memory_mask, dst_nid):
        return False
    tiering, toptier = machine.numa_balancing & NUMA_BALANCING_MEMORY_TIERING != 0, node_is_toptier(machine, src_nid)
    if tiering and not toptier:
        return should_promote(cpu, pfn, pages, dst_nid)
    last = folio_xchg_last_cpupid(page_of(machine, pfn), cpu_pid_to_cpupid(cpu.id, task.pid))
    if not tiering and not toptier and not cpupid_valid(machine, last):
        return False
    private = cpupid_match_pid(task.pid, last)
    early = task.numa_preferred_nid == NUMA_NO_NODE or task.numa_scan_seq <= EARLY_SCANS
    if early and (cpupid_pid_unset(last) or private):
        return True
    if not cpupid_pid_unset(last) and cpu_t.array(machine.cpus)[cpupid_to_cpu(last)].node != dst_nid:
        return False
    return private or shared_fault_migrates(cpu, src_nid, dst_nid)


@kernel("i64(cpu_t*, vma_t*, u64, i64, i64)")
def mpol_misplaced(cpu, vma, address, pfn, pages):
    """The node that a page at an address should move to, or NUMA_NO_NODE: it is well where it is.

    Here MPOL_F_MOF and MPOL_F_MORON go together, so the node is always that of the CPU.
    """
    machine = machine_of(cpu)
    shared, policy, nid = vma_shared_object(machine, vma), get_vma_policy(cpu, vma), page_to_nid(machine, pfn)
    if shared != 0:
        mpol_shared_policy_lookup(cpu, shared, linear_page_index(vma, address))
        policy = found_policy(cpu) if found_policy(cpu).mode != MPOL_DEFAULT else current_task(cpu).policy
    if policy.mode == MPOL_DEFAULT:
        if nid == cpu.node:
            return NUMA_NO_NODE
    elif policy.flags & MPOL_F_NUMA_BALANCING == 0 or not node_isset(policy.nodes, cpu.node):
        return NUMA_NO_NODE
    if not should_numa_migrate_memory(cpu, pfn, pages, nid):
        return NUMA_NO_NODE
    return cpu.node if cpu.node != nid else NUMA_NO_NODE
