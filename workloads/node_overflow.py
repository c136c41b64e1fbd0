"""A task fills its node and goes on: where do the next pages come from, and who counts them?

Most of every node is taken away first (blocks the kernel allocates and never touches), so that this is quick on any
machine. Then one task on CPU 0 touches page after page until every node has served it. Look for:
  - the nodes are used in the order of their distance from the task's own (see the machine's distance matrix);
  - numa_hit: served by the node that was wanted; numa_miss: this node served what another one should have;
    numa_foreign: this node should have served, another one did. All misses together are node 0's foreigners.
"""

import numpy as np

import numaemu

LEAVE_KB, CHUNK = 8192, 64  # free memory left on each node; pages touched between two looks
BLOCK_ORDER = 10  # 4 MiB, the largest block


def take_away(task, node, free_kb):
    """Allocate blocks of `node` until about LEAVE_KB are free."""
    gfp = numaemu.GFP_KERNEL | numaemu.__GFP_THISNODE
    blocks = (task.kernel.alloc_pages(gfp, BLOCK_ORDER, nid=node) for _ in range((free_kb - LEAVE_KB) // 4096))
    return [pfn for pfn in blocks if pfn]


def overflow(task, nr_nodes, nr_pages):
    """Touch pages until every node has served some, at most nr_pages; the nodes in the order of their first page."""
    area, order = task.mmap(nr_pages * 4096), []
    for start in range(0, nr_pages, CHUNK):
        pages = area.pages()[start : start + CHUNK]
        task.store(pages, np.uint64(1))
        order += [node for node in dict.fromkeys(task.move_pages(pages).tolist()) if node not in order]
        if len(order) == nr_nodes:
            break
    return order


def free_kb(machine):
    return {node["node"]: node["meminfo"]["MemFree"] for node in machine.stats()["nodes"]}


def main(machine):
    ballast = machine.task(cpu=0, name="ballast")
    blocks = [pfn for node, free in free_kb(machine).items() for pfn in take_away(ballast, node, free)]
    free, before = free_kb(machine), machine.stats()["nodes"]
    used = machine.run(overflow, sum(kb > 0 for kb in free.values()), sum(free.values()) // 4 * 9 // 10)
    grown = {
        f"node {old['node']}": {
            name: new["numastat"][name] - old["numastat"][name] for name in ("numa_hit", "numa_miss", "numa_foreign")
        }
        for old, new in zip(before, machine.stats()["nodes"])
    }
    for pfn in blocks:
        ballast.kernel.free_pages(pfn, BLOCK_ORDER)
    ballast.exit()
    return {
        "nodes in the order they served": used,
        "distances": [machine.nodes[0].distances[n] for n in used],
        "numastat": grown,
    }
