"""Pages move to another node and back with move_pages(2), under the same addresses and with the same contents.

Look for: a load costs what its page's node costs, so it is slow before the move, fast after it, and slow again after the way back.
  - moving a page costs two changes of its page-table entry, a copy and its part of one TLB shootdown;
  - the line below the bars says after how many loads of a page that is earned back.
"""

import numpy as np

import numaemu
from numaemu.tools import chart

LOCKSTEP = True
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
        row, before = {"step": step, "ns per moved page": ""}, task.clock_ns
        if node is not None:
            area.task.move_pages(area.pages(), node)
            row["ns per moved page"] = round((task.clock_ns - before) / PAGES)
        nodes, counts = np.unique(area.nodes(), return_counts=True)
        row |= {f"pages on node {node}": 0 for node in (near, far)}
        row |= {f"pages on node {node}": int(n) for node, n in zip(nodes, counts)}
        row["ns per load"] = round(ns_per_load(task, area.pages()), 1)
        row["contents"] = "as written" if task.read(area.addr, area.nbytes) == contents else "DAMAGED"
        rows.append(row)
    return rows


def told(rows, near, far):
    """The bars, and when the move pays."""
    labels = (f"as written, on node {far}", f"moved to node {near}", f"moved back to node {far}")
    before, after, _ = (row["ns per load"] for row in rows)
    cost = rows[1]["ns per moved page"]
    return (
        chart.bars(
            "Time of one load, in emulated ns",
            {label: row["ns per load"] for label, row in zip(labels, rows)},
            "ns",
            "{:.0f}",
        )
        + f"\n\nMoving a page takes {cost} ns and spares {before - after:g} ns in each load that follows:"
        + f"\nit pays for pages that are loaded from at least {int(-(-cost // (before - after)))} times."
    )


def main(machine):
    memory, here = [node.id for node in machine.nodes if node.memory_bytes], machine.cpus[0].node
    near = min(memory, key=lambda n: machine.topology.latency_ns[here][n])
    far = max(memory, key=lambda n: machine.topology.latency_ns[here][n])
    if machine.topology.latency_ns[here][near] == machine.topology.latency_ns[here][far]:
        return "all memory is equally near: there is nowhere to move to"
    rows = machine.run(migrate, near, far)
    print(told(rows, near, far))
    return rows
