"""Memory lands on the node of the CPU that touches it first, not of the one that maps it.

One task maps a shared area and touches nothing. Then one reader per node reads its share, page by page. Look for:
  - each share lies wholly on its reader's node, although CPU 0 made the mapping;
  - a node without CPUs gets nothing: nobody runs there, so nobody touches first.
"""

import numaemu

LOCKSTEP = True
PAGES = 256  # of each reader's share


def touch_share(task, start):
    """Read one word of every page of a share; the node of each page afterwards."""
    task.touch(start, PAGES * 4096, write=False)
    return task.move_pages(range(start, start + PAGES * 4096, 4096))


def touch_shares(task, cpus):
    area = task.mmap(len(cpus) * PAGES * 4096, flags=numaemu.MAP_SHARED | numaemu.MAP_ANONYMOUS)
    readers = [task.fork(touch_share, area.addr + i * PAGES * 4096, cpu=cpu) for i, cpu in enumerate(cpus)]
    return [list(reader.result()) for reader in readers]


def main(machine):
    readers = {node.cpus[0]: node.id for node in machine.nodes if node.cpus}
    shares = machine.run(touch_shares, list(readers))
    return {
        f"cpu {cpu} on node {node}": {f"pages on node {n.id}": nodes.count(n.id) for n in machine.nodes}
        for (cpu, node), nodes in zip(readers.items(), shares)
    }
