"""What one load takes between each two nodes, measured: chains of pointers that are followed in emulated time.

The chains lie in so few pages that the first-level TLB holds them, and their lines are new to all caches, so what a load takes is what the
memory takes.
"""

import numba
import numpy as np

from numaemu.api.access import load_u64
from numaemu.uapi import MPOL_BIND

MOST_PAGES = 16  # of a chain
FIRST = 192  # bytes: the first place in a page
APART = 256  # bytes from place to place, so that no prefetcher brings the next one


@numba.njit(cache=True)
def follow(cpu, address, loads):
    """Load a pointer, go where it points, and so on."""
    for _ in range(loads):
        address = load_u64(cpu, address)
    return address


def zigzag(n):
    """0, n - 1, 1, n - 2, …: no distance comes twice, so that nothing looks like a stride."""
    return [i // 2 if i % 2 == 0 else n - 1 - i // 2 for i in range(n)]


def write_chain(task, node, pages):
    """(mapping, places) of a chain through pages of a node, from page to page in random order, and back to its begin."""
    area, random = task.mmap(pages * 4096), np.random.default_rng(1 + node)
    task.mbind(area.addr, area.nbytes, MPOL_BIND, [node])
    offsets = np.arange(FIRST, 4096, APART, dtype=np.uint64)
    order = np.concatenate([random.permutation(area.pages()) + offsets[i] for i in zigzag(len(offsets))])
    task.store(order, np.roll(order, -1))
    return area, order


def load_lines(task, nbytes, line):
    """Load so many bytes of other memory, after which no cache has what was there before."""
    area = task.mmap(nbytes).touch()
    task.load(np.arange(area.addr, area.addr + nbytes, line, dtype=np.uint64))
    area.munmap()


def chain_ns(task, nodes, pages, cached, line, idle_ns):
    """Emulated ns of one load from each of the nodes, and the time at the end; `cached`: bytes that all caches hold; `idle_ns`:
    when others have stopped using the memory.
    """
    task.sleep(max(0, idle_ns - task.clock_ns) / 1e6)
    chains, found = [write_chain(task, node, pages) for node in nodes], []
    if cached:
        load_lines(task, -(-2 * cached // 4096) * 4096, line)
    for area, order in chains:
        task.load(area.pages())  # the TLB has them from now on
        before = task.clock_ns
        task.call(follow, order[0], len(order))
        found.append((task.clock_ns - before) / len(order))
    for area, _ in chains:
        area.munmap()
    return found, task.clock_ns


def latency_matrix(machine):
    """Of a machine: rows are the nodes of CPUs, columns those of memory; nan where a node has no CPU or no memory."""
    t = machine.topology
    memory = [node.id for node in t.nodes if node.memory_bytes]
    levels = t.cache.levels if t.cache is not None else ()
    cached, line = sum(level.size for level in levels), levels[0].line if levels else 64
    pages = max(1, min(MOST_PAGES, t.l1.entries // 2))
    matrix, ended = np.full((t.nr_nodes, t.nr_nodes), np.nan), 0
    for node in t.nodes:
        if node.cpus:
            shape = memory, pages, cached, line, ended
            matrix[node.id, memory], ended = machine.run(chain_ns, *shape, cpu=node.cpus[0])
    return matrix
