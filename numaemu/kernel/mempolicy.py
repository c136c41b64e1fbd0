"""Memory policies: Linux's mm/mempolicy.c. Which node a page should come from, per task and per range."""
import numpy as np

from numaemu.compile import hot, kernel
from numaemu.kernel.gfp import GFP_PGTABLE_USER, ___GFP_DIRECT_RECLAIM
from numaemu.kernel.mm_types import task_t
from numaemu.kernel.mmzone import page_to_nid
from numaemu.kernel.page_alloc import alloc_pages
from numaemu.kernel.smp import machine_of
from numaemu.kernel.vmstat import NUMA_INTERLEAVE_HIT, percpu_of
from numaemu.uapi import (MPOL_BIND, MPOL_DEFAULT, MPOL_F_RELATIVE_NODES, MPOL_F_STATIC_NODES, MPOL_INTERLEAVE,
                          MPOL_LOCAL, MPOL_PREFERRED, MPOL_PREFERRED_MANY, MPOL_WEIGHTED_INTERLEAVE, errno)

U = np.uint64
NO_INTERLEAVE_INDEX = -1         # not a page of a range: interleave by the task's own turn
MPOL_MODE_FLAGS = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES      # one of them at most
EINVAL = errno.EINVAL


@hot
def current_task(cpu):
    return task_t.array(machine_of(cpu).tasks)[cpu.task]


@hot
def node_isset(nodes, node):
    return (nodes >> U(node)) & U(1) != U(0)


@kernel("i64(u64)")
def first_set(nodes):
    """The lowest node of a mask, or -1."""
    for node in range(64):
        if node_isset(nodes, node):
            return node
    return -1


@kernel("i64(i64, u64)")
def next_node_in(node, nodes):
    """The next node of the mask after `node`, around the end (nodes is not empty)."""
    while True:
        node = (node + 1) % 64
        if node_isset(nodes, node):
            return node


@kernel("i64(i64, u64, u64)")
def node_remap(node, old, new):
    """The node of `new` with the rank that `node` has in `old`, modulo its size (bitmap_bitremap)."""
    rank = total = 0
    for n in range(64):
        if n < node and node_isset(old, n):
            rank += 1
        if node_isset(new, n):
            total += 1
    if total == 0 or not node_isset(old, node):
        return node
    rank %= total
    for n in range(64):
        if node_isset(new, n):
            if rank == 0:
                return n
            rank -= 1
    return node


@kernel("i64(u64)")
def nodes_weight(nodes):
    weight = 0
    for n in range(64):
        weight += np.int64((nodes >> U(n)) & U(1))
    return weight


@kernel("u64(u64, u64, u64)")
def nodes_remap(nodes, old, new):
    """Each node of a mask by node_remap."""
    mapped = U(0)
    for node in range(64):
        if node_isset(nodes, node):
            mapped |= U(1) << U(node_remap(node, old, new))
    return mapped


@kernel("u64(u64, u64)")
def mpol_relative_nodemask(nodes, allowed):
    """MPOL_F_RELATIVE_NODES: node n of the mask is the n-th of those allowed, around the end."""
    every, weight, mapped = (U(1) << U(63)) | ((U(1) << U(63)) - U(1)), nodes_weight(allowed), U(0)
    for node in range(64):
        if node_isset(nodes, node):
            mapped |= U(1) << U(node_remap(node % weight, every, allowed))
    return mapped


@kernel("i64(machine_t*, i64, u64, i64)")
def interleave_nid(machine, mode, nodes, index):
    """Static interleaving: the node of page `index` of a range (plain or weighted)."""
    weighted, total = mode == MPOL_WEIGHTED_INTERLEAVE, 0
    for node in range(machine.nr_nodes):
        if node_isset(nodes, node):
            total += machine.il_weights[node] if weighted else 1
    left = index % total
    for node in range(machine.nr_nodes):
        if node_isset(nodes, node):
            left -= machine.il_weights[node] if weighted else 1
            if left < 0:
                return node
    return 0


@kernel("i64(machine_t*, task_t*, i64, u64)")
def interleave_nodes(machine, task, mode, nodes):
    """The task's next turn (interleave_nodes, weighted_interleave_nodes)."""
    if mode == MPOL_INTERLEAVE:
        task.il_prev = next_node_in(task.il_prev, nodes)
        return task.il_prev
    if task.il_weight == 0 or not node_isset(nodes, task.il_prev):
        task.il_prev = next_node_in(task.il_prev, nodes)
        task.il_weight = machine.il_weights[task.il_prev]
    task.il_weight -= 1
    return task.il_prev


@kernel("i64(cpu_t*, i64, i64, policy_t*, i64)")
def alloc_pages_mpol(cpu, gfp, order, policy, index):
    """Allocate by a policy; `index` is the page's place for interleaving, or NO_INTERLEAVE_INDEX. The pfn or 0."""
    machine = machine_of(cpu)
    mode, nodes = policy.mode, policy.nodes
    if mode == MPOL_DEFAULT or mode == MPOL_LOCAL:
        return alloc_pages(cpu, gfp, order, cpu.node, machine.node_mask)
    if mode == MPOL_PREFERRED:
        return alloc_pages(cpu, gfp, order, first_set(nodes), machine.node_mask)
    if mode == MPOL_BIND:
        return alloc_pages(cpu, gfp, order, cpu.node, nodes)
    if mode == MPOL_PREFERRED_MANY:
        pfn = alloc_pages(cpu, gfp & ~___GFP_DIRECT_RECLAIM, order, cpu.node, nodes)
        return pfn if pfn != 0 else alloc_pages(cpu, gfp, order, cpu.node, machine.node_mask)
    if index == NO_INTERLEAVE_INDEX:
        nid = interleave_nodes(machine, current_task(cpu), mode, nodes)
    else:
        nid = interleave_nid(machine, mode, nodes, index)
    pfn = alloc_pages(cpu, gfp, order, nid, machine.node_mask)
    if pfn != 0 and mode == MPOL_INTERLEAVE and page_to_nid(machine, pfn) == nid:
        percpu_of(machine, cpu.id).numa[nid].item[NUMA_INTERLEAVE_HIT] += 1
    return pfn


@hot
def get_vma_policy(cpu, vma):
    """The range's policy, or the task's where it has none."""
    return vma.policy if vma.policy.mode != MPOL_DEFAULT else current_task(cpu).policy


@kernel("i64(cpu_t*, i64, vma_t*, u64)")
def vma_alloc_folio(cpu, gfp, vma, address):
    """A page for `address` of a VMA, by its policy or its task's; the pfn or 0."""
    index = vma.pgoff + np.int64((address - vma.start) >> U(12))
    return alloc_pages_mpol(cpu, gfp, 0, get_vma_policy(cpu, vma), index)


@kernel("i64(cpu_t*)")
def alloc_table_page(cpu):
    """A cleared page for a page table: kernel memory, by the task's policy; the pfn or 0."""
    return alloc_pages_mpol(cpu, GFP_PGTABLE_USER, 0, current_task(cpu).policy, NO_INTERLEAVE_INDEX)


@hot
def sanitize_mpol_flags(mode, flags):
    """0, or -EINVAL for a mode, or flags of a mode, that are not there."""
    bad = mode < 0 or mode > MPOL_WEIGHTED_INTERLEAVE or flags & ~MPOL_MODE_FLAGS != 0 or flags == MPOL_MODE_FLAGS
    return -EINVAL if bad else 0


@kernel("i64(u64, policy_t*, i64, i64, u64)")
def mpol_new(mems_allowed, policy, mode, flags, nodes):
    """Check and write a policy as Linux's mpol_new and mpol_set_nodemask do, for a task whose cpuset allows these nodes:
    0 or -EINVAL.
    """
    if sanitize_mpol_flags(mode, flags) != 0:
        return -EINVAL
    if mode == MPOL_DEFAULT:
        if nodes != U(0):
            return -EINVAL
        policy.mode, policy.flags, policy.nodes, policy.user_nodes = MPOL_DEFAULT, 0, U(0), U(0)
        return 0
    if mode == MPOL_PREFERRED and nodes == U(0):
        if flags != 0:
            return -EINVAL
        mode = MPOL_LOCAL
    elif mode == MPOL_LOCAL:
        if nodes != U(0) or flags != 0:
            return -EINVAL
    elif nodes == U(0):
        return -EINVAL
    user_nodes = nodes if flags != 0 else mems_allowed
    if mode == MPOL_LOCAL:
        user_nodes = U(0)
    else:
        nodes = mpol_relative_nodemask(nodes, mems_allowed) if flags & MPOL_F_RELATIVE_NODES else nodes & mems_allowed
        if nodes == U(0):
            return -EINVAL
        if mode == MPOL_PREFERRED:
            nodes = U(1) << U(first_set(nodes))
    policy.mode, policy.flags, policy.nodes, policy.user_nodes = mode, flags, nodes, user_nodes
    return 0


@kernel("void(policy_t*, u64)")
def mpol_rebind_policy(policy, mems_allowed):
    """The cpuset allows other nodes: those of the policy follow, by rank unless they are static."""
    stored = policy.flags & MPOL_MODE_FLAGS != 0
    if policy.mode == MPOL_DEFAULT or policy.mode == MPOL_LOCAL or not stored and policy.user_nodes == mems_allowed:
        return
    if policy.mode == MPOL_PREFERRED:
        if not stored:
            policy.user_nodes = mems_allowed
        return
    if policy.flags & MPOL_F_STATIC_NODES:
        nodes = policy.user_nodes & mems_allowed
    elif policy.flags & MPOL_F_RELATIVE_NODES:
        nodes = mpol_relative_nodemask(policy.user_nodes, mems_allowed)
    else:
        nodes = nodes_remap(policy.nodes, policy.user_nodes, mems_allowed)
        policy.user_nodes = mems_allowed
    policy.nodes = nodes if nodes != U(0) else mems_allowed


@kernel("bool(policy_t*, policy_t*)")
def same_policy(one, other):
    """mpol_equal"""
    return one.mode == other.mode and one.flags == other.flags and one.nodes == other.nodes and \
        (one.flags & MPOL_MODE_FLAGS == 0 or one.user_nodes == other.user_nodes)


@kernel("void(policy_t*, policy_t*)")
def copy_policy(to, of):
    to.mode, to.flags, to.nodes, to.user_nodes = of.mode, of.flags, of.nodes, of.user_nodes


@kernel("i64(cpu_t*, i64, i64, u64)")
def do_set_mempolicy(cpu, mode, flags, nodes):
    """set_mempolicy(2) for the running task: 0 or -EINVAL."""
    task = current_task(cpu)
    error = mpol_new(task.mems_allowed, task.policy, mode, flags, nodes)
    if error == 0 and (mode == MPOL_INTERLEAVE or mode == MPOL_WEIGHTED_INTERLEAVE):
        task.il_prev, task.il_weight = 63, 0
    return error
