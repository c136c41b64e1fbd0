"""Pages that move cost others bandwidth: a CPU streams from its node's memory while other CPUs move pages away from there and back.

Moving a page reads its lines from one controller and writes them to another, which the stream needs, too. Look for:
  - alone the stream gets what its misses under way allow;
  - each CPU that moves pages takes its share of the controller, and the stream keeps the rest;
  - what is moved is as much as before: it does not wait for the stream, but for its own work on page tables.
"""

import numba
import numpy as np

import numaemu
from numaemu import load_many_u64, store_u64
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(
    nodes=2, cpus_per_node=5, memory_per_node="64MiB", latency=[[90, 140], [140, 90]], bandwidth_per_node="10GB/s",
    link={"bandwidth": "10GB/s"}, cpu={"outstanding": 12}, quantum_ns=100,
)  # fmt: skip
LINE, LINES, ROUNDS, CHUNK = 64, 2048, 4, 64  # bytes; of the stream's buffer; how often; that are loaded at a time
PAGES, BATCH = 64, 8  # of each CPU that moves pages; in one call


@numba.njit(cache=True)
def stream(cpu, first, at, values, stop):
    """Load the buffer so often, then tell the others to stop."""
    for start in range(0, ROUNDS * LINES, CHUNK):
        for i in range(CHUNK):
            at[i] = first + np.uint64(LINE * ((start + i) % LINES))
        load_many_u64(cpu, at, values)
    store_u64(cpu, stop, np.uint64(1))


def mover(task, area, stop, near, far):
    """A thread: GB/s that it moves between two nodes until it is told to stop."""
    pages, moved, before = [area + 4096 * i for i in range(PAGES)], 0, task.clock_ns
    while task.load([stop])[0] == 0:
        target = far if (moved // PAGES) % 2 == 0 else near
        at = moved % PAGES
        task.move_pages(pages[at : at + BATCH], target)
        moved += BATCH
    return moved * 4096 / (task.clock_ns - before)


def measure(task, cpus, near, far):
    """(GB/s of the stream, GB/s that all movers move)."""
    control = task.mmap(4096).touch()
    buffer = task.mmap(LINE * LINES)
    task.mbind(buffer.addr, buffer.nbytes, numaemu.MPOL_BIND, [near])
    buffer.touch()
    areas = [task.mmap(PAGES * 4096).touch() for _ in cpus]
    threads = [task.clone(mover, area.addr, control.addr, near, far, cpu=cpu) for area, cpu in zip(areas, cpus)]
    task.work(200_000)  # the others have begun by then
    scratch, before = (np.zeros(CHUNK, np.uint64), np.zeros(CHUNK, np.uint64)), task.clock_ns
    task.call(stream, np.uint64(buffer.addr), *scratch, np.uint64(control.addr))
    rate = ROUNDS * LINES * LINE / (task.clock_ns - before)
    moved = sum(thread.result() for thread in threads)
    for area in (control, buffer, *areas):
        area.munmap()
    return rate, moved


def main(machine):
    home = machine.nodes[machine.cpus[0].node]
    far = [node.id for node in machine.nodes if node.memory_bytes and node.id != home.id]
    if not far:
        print("Pages can move only where there are two nodes with memory.")
        return {}
    counts = [n for n in (0, 1, 2, 3, 4) if n < len(home.cpus)]
    found = {n: machine.run(measure, list(home.cpus[1 : 1 + n]), home.id, far[0], cpu=home.cpus[0]) for n in counts}
    rows = {f"{n} CPUs move pages": {"the stream": rate, "moved": moved} for n, (rate, moved) in found.items()}
    print(
        chart.bars(
            f"What a stream from node {home.id} gets, and what is moved meanwhile, in emulated GB/s",
            rows,
            "GB/s",
            "{:.2f}",
        )
    )
    if not machine.topology.rates.limited:
        print("The machine has no rates (--machine ice-lake has some), so nobody waits for anybody.")
    return {
        label: {f"{name}, GB/s": round(value, 2) for name, value in values.items()} for label, values in rows.items()
    }
