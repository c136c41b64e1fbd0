"""Memory policies: Linux's mm/mempolicy.c. Which node a page should come from, per task and per range."""

import numpy as np

from numaemu.compiler.atomic import load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.kernel.core.pool import pool_get, pool_put
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.gfp import ___GFP_DIRECT_RECLAIM, GFP_PGTABLE_USER
from numaemu.kernel.include.mm import linear_page_index
from numaemu.kernel.include.mm_types import VM_HUGETLB, VM_SHARED, mapping_t, policy_t, sp_node_t, task_t
from numaemu.kernel.include.mmzone import page_to_nid
from numaemu.kernel.include.vmstat import NUMA_INTERLEAVE_HIT, percpu_of
from numaemu.kernel.mm.page_alloc.page_alloc import alloc_pages
from numaemu.uapi import (
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_NUMA_BALANCING,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
    errno,
)

U = np.uint64
NO_INTERLEAVE_INDEX = -1  # not a page of a range: interleave by the task's own turn
MPOL_USER_NODEMASK_FLAGS = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES  # one of them at most
MPOL_MODE_FLAGS = MPOL_USER_NODEMASK_FLAGS | MPOL_F_NUMA_BALANCING
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


@kernel("void(policy_t*, policy_t*)")
def copy_policy(to, of):
    to.mode, to.flags, to.nodes, to.user_nodes = of.mode, of.flags, of.nodes, of.user_nodes


# -- policies of shared objects ------------------------------------------------------------------------------


@hot
def sp_node_of(machine, number):
    return sp_node_t.array(machine.sp_nodes)[number]


@hot
def found_policy(cpu):
    """Where a policy of a shared object is copied to when it has been looked up: this CPU's own words."""
    machine = machine_of(cpu)
    return policy_t.array(machine.mpols)[machine.nr_cpu_ids + cpu.id]


@hot
def vma_shared_object(machine, vma):
    """The shared memory or tmpfs file whose policies a VMA goes by, whoever has set them; 0: it goes by its own."""
    if vma.i_mapping != 0:
        mapping = mapping_t.array(machine.mappings)[vma.i_mapping]
        return vma.i_mapping if mapping.tmpfs != 0 or mapping.host == 0 else 0  # not a file of the disk
    return vma.mapping if vma.flags & (VM_SHARED | VM_HUGETLB) == VM_SHARED else 0


@kernel("void(cpu_t*, i64, i64)")
def mpol_shared_policy_lookup(cpu, number, index):
    """Copy an object's policy of a page (MPOL_DEFAULT: it has none) to where `found_policy` finds it."""
    machine = machine_of(cpu)
    mapping, found = mapping_t.array(machine.mappings)[number], found_policy(cpu)
    found.mode, found.flags, found.nodes, found.user_nodes = MPOL_DEFAULT, 0, U(0), U(0)
    if load_acquire(mapping, "first_policy") == 0:
        return
    lock = address_of(mapping, "policy_lock")
    spin_lock(cpu, lock)
    at = mapping.first_policy
    while at != 0:
        node = sp_node_of(machine, at)
        if node.start <= index and index < node.end:
            copy_policy(found, node.policy)
            break
        at = node.next
    spin_unlock(lock)


@kernel("i64(cpu_t*, mapping_t*, i64, i64, i64)")
def shared_policy_replace(cpu, mapping, first, end, spare):
    """Take policies out of [first, end), cutting those that reach beyond; 1 if `spare` became the second half of one."""
    machine = machine_of(cpu)
    before, at = 0, mapping.first_policy
    while at != 0:
        node = sp_node_of(machine, at)
        following = node.next
        if node.start < first and node.end > end:
            half = sp_node_of(machine, spare)
            half.start, half.end, half.next = end, node.end, following
            copy_policy(half.policy, node.policy)
            node.end, node.next = first, spare
            return 1
        if node.start >= first and node.end <= end:
            if before == 0:
                mapping.first_policy = following
            else:
                sp_node_of(machine, before).next = following
            pool_put(cpu, machine.sp_node_pool, at)
        else:
            if node.start < first and node.end > first:
                node.end = first
            elif node.end > end and node.start < end:
                node.start = end
            before = at
        at = following
    return 0


@kernel("i64(cpu_t*, i64, i64, i64, policy_t*)")
def mpol_set_shared_policy(cpu, number, first, end, policy):
    """Give the pages [first, end) of an object a policy, or with MPOL_DEFAULT none: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    mapping, pool = mapping_t.array(machine.mappings)[number], machine.sp_node_pool
    new, spare = 0, pool_get(cpu, pool)
    if spare == 0:
        return -errno.ENOMEM
    if policy.mode != MPOL_DEFAULT:
        new = pool_get(cpu, pool)
        if new == 0:
            pool_put(cpu, pool, spare)
            return -errno.ENOMEM
    lock = address_of(mapping, "policy_lock")
    spin_lock(cpu, lock)
    used = shared_policy_replace(cpu, mapping, first, end, spare)
    if new != 0:
        node = sp_node_of(machine, new)
        node.start, node.end, node.next = first, end, mapping.first_policy
        copy_policy(node.policy, policy)
        store_release(mapping, "first_policy", new)
    spin_unlock(lock)
    if used == 0:
        pool_put(cpu, pool, spare)
    return 0


@kernel("void(cpu_t*, i64)")
def mpol_free_shared_policy(cpu, number):
    """An object goes, and its policies: nobody else can reach it any more."""
    machine = machine_of(cpu)
    mapping = mapping_t.array(machine.mappings)[number]
    while mapping.first_policy != 0:
        at = mapping.first_policy
        mapping.first_policy = sp_node_of(machine, at).next
        pool_put(cpu, machine.sp_node_pool, at)


@kernel("i64(cpu_t*, i64, i64, i64)")
def shmem_alloc_folio(cpu, gfp, number, index):
    """A page of a shared object, by its policy for this page or the task's; the pfn or 0.

    A policy that binds to nodes which the task's cpuset does not allow binds nobody (policy_nodemask).
    """
    mpol_shared_policy_lookup(cpu, number, index)
    policy, task = found_policy(cpu), current_task(cpu)
    if policy.mode == MPOL_BIND and policy.nodes & task.mems_allowed == U(0):
        policy.mode = MPOL_LOCAL
    return alloc_pages_mpol(cpu, gfp, 0, policy if policy.mode != MPOL_DEFAULT else task.policy, index)


@kernel("i64(cpu_t*, i64, vma_t*, u64)")
def vma_alloc_folio(cpu, gfp, vma, address):
    """A page for `address` of a VMA, by its policy, its object's or its task's; the pfn or 0."""
    index, shared = linear_page_index(vma, address), vma_shared_object(machine_of(cpu), vma)
    if shared != 0:
        return shmem_alloc_folio(cpu, gfp, shared, index)
    return alloc_pages_mpol(cpu, gfp, 0, get_vma_policy(cpu, vma), index)


@kernel("i64(cpu_t*)")
def alloc_table_page(cpu):
    """A cleared page for a page table: kernel memory, by the task's policy; the pfn or 0."""
    return alloc_pages_mpol(cpu, GFP_PGTABLE_USER, 0, current_task(cpu).policy, NO_INTERLEAVE_INDEX)


@hot
def sanitize_mpol_flags(mode, flags):
    """0, or -EINVAL for a mode, or flags of a mode, that are not there."""
    bad = mode < 0 or mode > MPOL_WEIGHTED_INTERLEAVE or flags & ~MPOL_MODE_FLAGS != 0
    bad = bad or flags & MPOL_USER_NODEMASK_FLAGS == MPOL_USER_NODEMASK_FLAGS
    if flags & MPOL_F_NUMA_BALANCING and mode != MPOL_BIND and mode != MPOL_PREFERRED_MANY:
        bad = True
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
    user_nodes = nodes if flags & MPOL_USER_NODEMASK_FLAGS else mems_allowed
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
    stored = policy.flags & MPOL_USER_NODEMASK_FLAGS != 0
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
    return (
        one.mode == other.mode
        and one.flags == other.flags
        and one.nodes == other.nodes
        and (one.flags & MPOL_USER_NODEMASK_FLAGS == 0 or one.user_nodes == other.user_nodes)
    )


@kernel("i64(cpu_t*, i64, i64, u64)")
def do_set_mempolicy(cpu, mode, flags, nodes):
    """set_mempolicy(2) for the running task: 0 or -EINVAL."""
    task = current_task(cpu)
    error = mpol_new(task.mems_allowed, task.policy, mode, flags, nodes)
    if error == 0 and (mode == MPOL_INTERLEAVE or mode == MPOL_WEIGHTED_INTERLEAVE):
        task.il_prev, task.il_weight = 63, 0
    return error
