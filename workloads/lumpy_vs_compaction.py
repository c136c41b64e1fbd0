"""Large blocks from crumbs: evicted whole (lumpy reclaim, Linux up to 3.4) or cleared by moving pages (compaction).

Twice the same: of nearly all memory half the pages, here and there, are a task's and the rest is free, nothing of it in
large blocks; then the kernel is asked for blocks of 2 MiB. Look for:
  - both modes give the blocks asked for;
  - lumpy reclaim writes what lies in them to swap, most of it for nothing: the task reads it back when it goes on;
  - compaction writes (next to) nothing: it moves those pages to the free ones elsewhere, and the task notices no more
    than a TLB miss;
  - so a block costs the time of hundreds of disk writes, or of as many copies.
"""
import numpy as np

import numaemu

BLOCKS = 16                      # asked for, or an eighth of the node's memory if that is less
FILL = 0.9                       # of the node's free memory
HUGE = numaemu.GFP_TRANSHUGE | numaemu.__GFP_THISNODE       # without kswapd and kcompactd: who asks does the work
MACHINE = {"name": "one-node", "nodes": 1, "cpus_per_node": 1, "memory_per_node": "256MiB"}


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


def take_large_blocks(task):
    """Blocks that are there without any effort are not what we want to see: [pfn, …]"""
    blocks, quietly = [], HUGE & ~numaemu.__GFP_RECLAIM
    while pfn := task.kernel.alloc_pages(quietly, 9):
        blocks.append(pfn)
    return blocks


def measure(machine, node, lumpy):
    """One mode: a row of the table."""
    machine.write("/proc/sys/vm/lumpy_reclaim", int(lumpy))
    task, pages, words = fragment(machine, node)
    there = take_large_blocks(task)
    wanted = min(BLOCKS, machine.nodes[node].memory_bytes >> 24)
    before, start = machine.stats()["vmstat"], task.clock_ns
    blocks = [pfn for pfn in (task.kernel.alloc_pages(HUGE, 9) for _ in range(wanted)) if pfn]
    elapsed, after = task.clock_ns - start, machine.stats()["vmstat"]
    for pfn in blocks + there:
        task.kernel.free_pages(pfn, 9)
    start = task.clock_ns
    intact = bool((task.load(pages) == words).all())
    again = task.clock_ns - start
    swapped_in = machine.stats()["vmstat"]["pswpin"] - after["pswpin"]
    task.exit()

    def counted(name):
        return after[name] - before[name]
    return {"blocks asked for": wanted, "blocks obtained": len(blocks), "pages written to swap": counted("pswpout"),
            "pages moved": counted("pgmigrate_success"), "us per block": round(elapsed / 1000 / max(len(blocks), 1)),
            "pages read back": swapped_in, "us to read all words": round(again / 1000),
            "contents": "as written" if intact else "DAMAGED"}


def main(machine):
    node = machine.cpus[0].node
    memory = machine.nodes[node].memory_bytes
    area = machine.swapon(memory, name="/dev/vdl")
    rows = {"lumpy reclaim": measure(machine, node, True), "compaction": measure(machine, node, False)}
    machine.write("/proc/sys/vm/lumpy_reclaim", 0)
    machine.swapoff(area)
    return {name: {mode: row[name] for mode, row in rows.items()} for name in rows["compaction"]}
