"""Free memory in crumbs, and the same memory after compaction: pages move, addresses and contents stay.

Pages of two mappings are touched in random order, so that they lie mixed in physical memory; then one mapping goes. Look
for:
  - as much memory is free before as after; before, next to none of it in blocks of 2 MiB, after, nearly all;
  - in the map, used pages gather at the end of their zone, and its start becomes free (·);
  - pages of the kernel (u) cannot move: grouping by mobility has kept them together from the start;
  - every word is where it was, under its old address.
"""

import numpy as np

import numaemu
from numaemu.tools.blockmap import side_by_side

LOCKSTEP = True
KEPT = 0.4  # of the pages touched
FILL = 0.85  # of the memory of the first CPU's node
KERNEL_PAGES = 48
ORDERS = (1, 3, 5, 9, 10)


def fragment(machine, node):
    """(task, its kept pages, the words in them)"""
    rng = np.random.default_rng(getattr(machine, "seed", None) or 0)
    free = next(n for n in machine.stats()["nodes"] if n["node"] == node)["meminfo"]["MemFree"]
    pages = int(free // 4 * FILL)
    task = machine.task(cpu=machine.nodes[node].cpus[0], name="fragmenter")
    kept, gone = task.mmap(pages * 4096), task.mmap(pages * 4096)
    keep = np.flatnonzero(rng.random(pages) < KEPT)
    places = gone.pages()
    places[keep] = kept.pages()[keep]
    words = np.random.default_rng(7).integers(1, 1 << 62, pages).astype(np.uint64)
    for part in np.array_split(np.arange(pages), KERNEL_PAGES):
        task.store(places[part], words[part])
        task.kernel.alloc_pages(numaemu.GFP_KERNEL)
    gone.munmap()
    return task, kept.pages()[keep], words[keep]


def figures(machine, node):
    """Of a node: MiB free, the share of it in blocks of 2 MiB, the unusable free index of some orders."""

    def of_node(path):
        return [line for line in machine.read(path).splitlines() if line.startswith(f"Node {node},")]

    counts = np.array([line.split()[-11:] for line in of_node("/proc/buddyinfo")], int).sum(axis=0)
    sizes = counts << np.arange(11)
    usable = np.cumsum(sizes[::-1])[::-1]
    shares = {f"order {order}": f"{100 * (1 - usable[order] / usable[0]):.1f} %" for order in ORDERS}
    return {"free MiB": int(usable[0]) // 256, "in 2 MiB blocks": f"{100 * usable[9] / usable[0]:.1f} %"} | {
        f"unusable, {name}": share for name, share in shares.items()
    }


def main(machine):
    from rich.console import Console

    node = next(node.id for node in machine.nodes if node.cpus and node.memory_bytes)
    task, pages, words = fragment(machine, node)
    before, rows = [z for z in machine.pageblocks() if z["node"] == node], {"before": figures(machine, node)}
    machine.write(f"/sys/devices/system/node/node{node}/compact", "1")
    after, rows["after"] = [z for z in machine.pageblocks() if z["node"] == node], figures(machine, node)
    Console().print(side_by_side({"before": before, "after": after}))
    moved = machine.stats()["vmstat"]["pgmigrate_success"]
    intact = bool((task.load(pages) == words).all())
    table = {name: {moment: row[name] for moment, row in rows.items()} for name in rows["before"]}
    return table | {
        "pages moved": {"before": 0, "after": moved},
        "contents": {"before": "as written", "after": "as written" if intact else "DAMAGED"},
    }
