"""Why nobody could serve: which nodes an allocation may use, what they have, and what keeps it from the others.

For the exceptions that tasks meet (OutOfMemory, BusError); the kernel's log has Linux's own words.
"""

from numaemu.kernel.include.mm_types import OOM_TEXT_BYTES
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, WMARK_MIN, ZONE_NAMES, kilobytes, wmark_pages, zone_of
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at
from numaemu.kernel.mm.page_alloc.watermark import gfp_zone
from numaemu.spec.units import list_text
from numaemu.uapi import MPOL_BIND


def those(nodes):
    """ "node 1", "nodes 0-2"."""
    return f"node{'s' if len(nodes) > 1 else ''} {list_text(nodes)}"


def verb(nodes, one, many):
    return many if len(nodes) > 1 else one


def parted(machine, policy_nodes, cpuset_nodes):
    """(usable, without memory, kept out by the policy, by the cpuset): lists of nodes."""
    parts = [], [], [], []
    for node in range(machine.nr_nodes):
        if not int(machine.memory_mask) >> node & 1:
            parts[1].append(node)
        elif not policy_nodes >> node & 1:
            parts[2].append(node)
        else:
            parts[0 if cpuset_nodes >> node & 1 else 3].append(node)
    return parts


def others_text(parts, having):
    """Why the nodes that may not be used did not help; having(nodes) says what they have of what is short."""
    _, bare, policy, cpuset = parts
    words = []
    if policy:
        words.append(f"{those(policy)} ({having(policy)}) {verb(policy, 'is', 'are')} not in its policy")
    if cpuset:
        words.append(f"{those(cpuset)} ({having(cpuset)}) {verb(cpuset, 'is', 'are')} not in its cpuset")
    if bare:
        words.append(f"{those(bare)} {verb(bare, 'has', 'have')} no memory")
    return words


def free_pages_of(machine, nodes, kinds):
    return sum(zone_of(machine, node * MAX_NR_ZONES + kind).free_pages for node in nodes for kind in kinds)


def shortage_text(machine, gfp, order, policy_nodes, cpuset_nodes):
    """Why an allocation of pages got none."""
    parts, highest = parted(machine, policy_nodes, cpuset_nodes), gfp_zone(machine, gfp)
    usable, may, above = parts[0], range(highest + 1), range(highest + 1, MAX_NR_ZONES)
    if usable:
        kept = sum(
            wmark_pages(zone, WMARK_MIN) + zone.lowmem_reserve[highest]
            for node in usable
            for kind in may
            for zone in [zone_of(machine, node * MAX_NR_ZONES + kind)]
            if zone.managed_pages
        )
        free = free_pages_of(machine, usable, may)
        words = [
            f"{those(usable)} {verb(usable, 'has', 'have')} {kilobytes(free)} kB free, "
            f"{verb(usable, 'its', 'their')} watermarks keep {kilobytes(kept)} kB"
            + (f", and no block of order {order}" if order and free > kept else "")
        ]
    else:
        words = ["there is no node that both its policy and its cpuset allow"]
    zones = [kind for kind in above if free_pages_of(machine, usable, [kind])]
    if zones:
        names, free = " and ".join(ZONE_NAMES[kind] for kind in zones), free_pages_of(machine, usable, zones)
        words.append(f"{names} ({kilobytes(free)} kB free) {verb(zones, 'is', 'are')} not for the kernel's own data")
    words += others_text(parts, lambda nodes: f"{kilobytes(free_pages_of(machine, nodes, may))} kB free")
    return "; ".join(words)


def pool_text(machine, vma, policy, cpuset_nodes):
    """Why there is no huge page of the pool for a page of this VMA."""
    h = hstate_at(machine, int(vma.hstate))
    bound = int(policy.nodes) if policy.mode == MPOL_BIND else int(machine.node_mask)
    parts = parted(machine, bound, cpuset_nodes)
    usable = parts[0]
    free = sum(int(h.free_node[node]) for node in usable)
    words = [
        f"{those(usable)}, which the task may use, {verb(usable, 'has', 'have')} "
        + (f"{free} free, all reserved for others" if free else "none")
        if usable
        else "there is no node that both its policy and its cpuset allow"
    ]
    return "; ".join(words + others_text(parts, lambda nodes: f"{sum(int(h.free_node[n]) for n in nodes)} free"))


def write_text(task, text):
    """Leave a victim the reason for its end."""
    raw = text.encode()[:OOM_TEXT_BYTES].ljust(OOM_TEXT_BYTES, b"\0")
    task.oom_text.as_numpy()[:] = list(raw)


def read_text(task):
    return bytes(task.oom_text.as_numpy()).rstrip(b"\0").decode(errors="ignore")
