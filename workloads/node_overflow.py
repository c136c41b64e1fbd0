"""A task fills its node and goes on: where do the next pages come from, and which node counts them?

Most of every node is taken away first (blocks that the kernel allocates and never touches), so that this is quick on any
machine. Then one task on CPU 0 touches page after page until every node has served it.
Look for: the picture is a staircase, from the task's own node to ever more distant ones.
  - the nodes are used in the order of their distance from the task's own (see the machine's distance matrix);
  - each node serves down to its low watermark. When all have come so far, the allocator wakes kswapd and begins again at the
    nearest node, this time down to its min watermark: a second staircase;
  - numa_hit: this node served and was wanted; numa_miss: this node served although another one was wanted; numa_foreign:
    this node was wanted and another one served. All misses together are the foreign pages of node 0.
"""

import numpy as np

import numaemu
from numaemu.tools import chart

LOCKSTEP = True
LEAVE_KB, CHUNK = 8192, 64  # memory left on each node above its watermarks; pages touched between two looks
LAST = 1024  # pages of the last node, and then it is enough
BLOCK_ORDER = 10  # 4 MiB, the largest block


def take_away(task, node):
    """Allocate blocks of `node` (a part of machine.stats()) until little is free above its watermarks."""
    gfp = numaemu.GFP_KERNEL | numaemu.__GFP_THISNODE
    leave = LEAVE_KB + sum(zone["high"] for zone in node["zones"].values()) * 4
    wanted = max(node["meminfo"]["MemFree"] - leave, 0) // 4 >> BLOCK_ORDER
    blocks = (task.kernel.alloc_pages(gfp, BLOCK_ORDER, nid=node["node"]) for _ in range(wanted))
    return [pfn for pfn in blocks if pfn]


def overflow(task, nr_nodes, nr_pages):
    """Touch pages until every node has served some and the last one LAST, at most nr_pages: the node of each page."""
    area, nodes = task.mmap(nr_pages * 4096), []
    for start in range(0, nr_pages, CHUNK):
        pages = area.pages()[start : start + CHUNK]
        task.store(pages, np.uint64(1))
        nodes += task.move_pages(pages).tolist()
        order = list(dict.fromkeys(nodes))
        if len(order) == nr_nodes and nodes.count(order[-1]) >= LAST:
            break
    return nodes


def staircase(nodes, distances):
    """A row for each node, a sign for each piece of the pages in the order in which they were touched."""
    order = list(dict.fromkeys(nodes))
    labels = {node: f"node {node}, distance {distances[node]}" for node in order}
    figures = {labels[node]: f"{nodes.count(node):,} pages" for node in order}
    room = chart.strip_room(labels.values(), figures.values())
    pieces = np.array_split(np.array(nodes), min(room, len(nodes)))
    rows = {
        labels[node]: "".join(
            "█" if (served := (piece == node).mean()) == 1 else "▒" if served else "·" for piece in pieces
        )
        for node in order
    }
    title = f"Which node serves the pages, from the first (left) to the last: █ all, ▒ some, · none of {len(pieces[0])} pages"
    return chart.strips(title, rows, figures)


def free_kb(machine):
    return {node["node"]: node["meminfo"]["MemFree"] for node in machine.stats()["nodes"]}


def main(machine):
    ballast = machine.task(cpu=0, name="ballast")
    blocks = [pfn for node in machine.stats()["nodes"] for pfn in take_away(ballast, node)]
    free, before = free_kb(machine), machine.stats()["nodes"]
    nodes = machine.run(overflow, sum(kb > 0 for kb in free.values()), sum(free.values()) // 4 * 9 // 10)
    grown = {
        f"node {old['node']}": {
            name: new["numastat"][name] - old["numastat"][name] for name in ("numa_hit", "numa_miss", "numa_foreign")
        }
        for old, new in zip(before, machine.stats()["nodes"])
    }
    for pfn in blocks:
        ballast.kernel.free_pages(pfn, BLOCK_ORDER)
    ballast.exit()
    print(staircase(nodes, machine.nodes[0].distances))
    order = list(dict.fromkeys(nodes))
    return {
        "nodes in the order they served": order,
        "distances": [machine.nodes[0].distances[n] for n in order],
        "numastat, pages": grown,
    }
