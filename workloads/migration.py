"""Pages move to another node and back with move_pages(2), under the same addresses and with the same contents.

Look for:
  - move_pages answers with each page's new node;
  - the same loads cost remote latency before, local latency after the move, and remote again when moved back;
  - a moved page costs two page-table changes, a copy and its part of one shootdown: worth it after how many loads?
"""

import numpy as np

import numaemu

PAGES = 64  # as many as a small L1 TLB holds, so that loads cost latency only


def ns_per_load(task, addresses):
    """Emulated ns of one load, by a warm TLB."""
    task.load(addresses)
    before = task.clock_ns
    for _ in range(10):
        task.load(addresses)
    return (task.clock_ns - before) / (10 * len(addresses))


def migrate(task, near, far):
    """Start on the far node, move near, move back: one line for each step."""
    area, rows = task.mmap(PAGES * 4096), []
    task.mbind(area.addr, area.nbytes, numaemu.MPOL_BIND, far)
    contents = np.random.default_rng(1).bytes(area.nbytes)
    task.write(area.addr, contents)
    for step, node in (("as written", None), ("moved near", near), ("moved back", far)):
        row, before = {"step": step}, task.clock_ns
        if node is not None:
            area.task.move_pages(area.pages(), node)
            row["ns per moved page"] = round((task.clock_ns - before) / PAGES)
        nodes, counts = np.unique(area.nodes(), return_counts=True)
        row["pages on node"] = dict(zip(nodes.tolist(), counts.tolist()))
        row["ns per load"] = round(ns_per_load(task, area.pages()), 1)
        row["contents"] = "as written" if task.read(area.addr, area.nbytes) == contents else "DAMAGED"
        rows.append(row)
    return rows


def main(machine):
    memory, here = [node.id for node in machine.nodes if node.memory_bytes], machine.cpus[0].node
    near = min(memory, key=lambda n: machine.topology.latency_ns[here][n])
    others = [node for node in memory if node != near]
    if not others:
        return "one node only: there is nowhere to move to"
    far = max(others, key=lambda n: machine.topology.latency_ns[near][n])
    return machine.run(migrate, near, far)
