"""Large blocks from crumbs: evicted whole (lumpy reclaim, Linux up to 3.4) or cleared by moving pages (compaction).

The same start each time, on a machine of its own: of nearly all memory half the pages, here and there, are a task's and the
rest is free; blocks that are there without effort are taken away. Then the kernel is asked for the same memory once in
blocks of 64 KiB (order 4) and once of 2 MiB (order 9), by lumpy reclaim and by compaction (`moved`). At the end the task
reads all its pages. Look for:
  - both give (nearly) all blocks asked for;
  - lumpy reclaim takes all pages of such a block from the task and writes them to swap; the task faults and reads them
    back when it goes on (refaults: they were needed);
  - compaction reclaims (next to) nothing: it moves those pages to free ones elsewhere, and the task notices no more than a
    TLB miss;
  - so a block costs the time of as many disk writes as it had pages in use, or of as many copies;
  - a single page of the kernel in a block spoils it for both; lumpy reclaim has evicted some of it in vain by then.
"""

import numpy as np

import numaemu

BYTES = 32 << 20  # asked for, or an eighth of the node's memory if that is less
ORDERS = {4: "64 KiB", 9: "2 MiB"}
FILL = 0.9  # of the node's free memory
HUGE = numaemu.GFP_TRANSHUGE | numaemu.__GFP_THISNODE  # without kswapd and kcompactd: who asks does the work
LOCKSTEP = True
MACHINE = {"name": "one-node", "nodes": 1, "cpus_per_node": 1, "memory_per_node": "256MiB"}
SWITCH = "/proc/sys/vm/lumpy_reclaim"
COUNTED = {"pages reclaimed": "pgsteal_direct", "written to swap": "pswpout", "pages moved": "pgmigrate_success"}
CAUSED = {"read back from swap": "pswpin", "refaults": "workingset_refault_anon", "major faults": "pgmajfault"}


def fragment(machine, node):
    """(task, the pages it keeps, the words in them): two mappings touched in random turn, one of which goes."""
    free = next(n for n in machine.stats()["nodes"] if n["node"] == node)["meminfo"]["MemFree"]
    pages, rng = int(free // 4 * FILL), np.random.default_rng(7)
    task = machine.task(cpu=machine.nodes[node].cpus[0], name="fragmenter")
    kept, gone = task.mmap(pages * 4096), task.mmap(pages * 4096)
    keep, words = rng.random(pages) < 0.5, rng.integers(1, 1 << 62, pages).astype(np.uint64)
    task.store(np.where(keep, kept.pages(), gone.pages()), words)
    gone.munmap()
    return task, kept.pages()[keep], words[keep]


def take_blocks(task, order):
    """Blocks that are there without any effort are not what we want to see: [pfn, …]"""
    blocks, quietly = [], HUGE & ~numaemu.__GFP_RECLAIM
    while pfn := task.kernel.alloc_pages(quietly, order):
        blocks.append(pfn)
    return blocks


def measure(machine, order, lumpy):
    """One mode, one size of blocks: a column of the table."""
    node = next(node.id for node in machine.nodes if node.cpus and node.memory_bytes)
    machine.swapon(machine.nodes[node].memory_bytes, name="/dev/vdl")
    machine.write(SWITCH, int(lumpy))
    task, pages, words = fragment(machine, node)
    there = take_blocks(task, order)
    wanted = min(BYTES, machine.nodes[node].memory_bytes >> 3) >> 12 + order
    before, start = machine.stats()["vmstat"], task.clock_ns
    blocks = [pfn for pfn in (task.kernel.alloc_pages(HUGE, order) for _ in range(wanted)) if pfn]
    elapsed, after = task.clock_ns - start, machine.stats()["vmstat"]
    for pfn in blocks + there:
        task.kernel.free_pages(pfn, order)
    start = task.clock_ns
    intact = bool((task.load(pages) == words).all())
    again, end = task.clock_ns - start, machine.stats()["vmstat"]
    task.exit()
    machine.check()
    return {
        "blocks asked for": wanted,
        "blocks obtained": len(blocks),
        **{title: after[name] - before[name] for title, name in COUNTED.items()},
        "us per block": round(elapsed / 1000 / max(len(blocks), 1), 1),
        **{title: end[name] - after[name] for title, name in CAUSED.items()},
        "ms to read all": round(again / 1e6, 1),
        "contents": "as written" if intact else "DAMAGED",
    }


def main(machine):
    rows = {}
    for order, size in ORDERS.items():
        for mode in ("lumpy", "moved"):
            with numaemu.Machine(machine.topology) as own:
                rows[f"{size}, {mode}"] = measure(own, order, mode == "lumpy")
    return {name: {mode: row[name] for mode, row in rows.items()} for name in rows["2 MiB, lumpy"]}
