"""Belady's anomaly, on the machine's own pages: with one page frame more, FIFO faults more often.

A small pager decides which pages of a mapping are in memory: it counts frames, and throws a page out by
madvise(MADV_PAGEOUT) when it needs one. Whether a reference faults is what the machine's fault counters say. Look for:
  - FIFO: 9 faults with three frames, 10 with four, on the string 1 2 3 4 1 2 5 1 2 3 4 5;
  - LRU and OPT: what is in memory with three frames is there with four as well, so more frames never hurt;
  - the anomaly is no rarity that one has to construct: strings at random have it, too.
"""

import numpy as np

from numaemu import MADV_PAGEOUT
from numaemu.tools.replacement import fifo, lru, opt

MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="32MiB")
STRING = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
RANDOM_STRINGS, LENGTH, PAGES = 20_000, 20, 6


def faults_so_far(task):
    counters = task.counters()
    return counters["task_minor_faults"] + counters["task_major_faults"]


def page_by_page(task, frames):
    """FIFO with real pages: [(page, what is in memory, True if the reference faulted)]"""
    places, present, story = task.mmap(8 * 4096).pages(), [], []
    for page in STRING:
        if page not in present:
            if len(present) == frames:
                task.madvise(int(places[present.pop(0)]), 4096, MADV_PAGEOUT)
            present.append(page)
        before = faults_so_far(task)
        task.store([places[page]], np.uint64(page))
        story.append((page, list(present), faults_so_far(task) > before))
    return story


def draw(frames, story):
    """A column for each reference: its page, what is in memory, newest on top, * where it faulted."""
    print(f"FIFO, {frames} frames: {sum(fault for *_, fault in story)} faults")
    print("    reference ", *(f" {page}" for page, *_ in story))
    for row in range(frames):
        cells = [present[::-1][row] if row < len(present) else " " for _, present, _ in story]
        print("              ", *(f" {cell}" for cell in cells))
    print("    fault     ", *(" *" if fault else "  " for *_, fault in story))


def anomalies(policy, seed):
    """How many strings at random fault more often with four frames than with three."""
    strings = np.random.default_rng(seed).integers(0, PAGES, (RANDOM_STRINGS, LENGTH))
    return sum(int(policy(string, 4).sum() > policy(string, 3).sum()) for string in strings)


def main(machine):
    machine.swapon("1MiB")
    machine.write("/proc/sys/vm/page-cluster", 0)
    rows = {}
    for frames in (3, 4):
        story = machine.run(page_by_page, frames)
        draw(frames, story)
        rows[f"{frames} frames"] = {"FIFO, the machine": sum(fault for *_, fault in story)} | {
            name: int(policy(STRING, frames).sum()) for name, policy in (("FIFO", fifo), ("LRU", lru), ("OPT", opt))
        }
    seed = getattr(machine, "seed", None) or 0
    rows[f"anomalies in {RANDOM_STRINGS}"] = {
        "FIFO, the machine": "",
        **{name: anomalies(policy, seed) for name, policy in (("FIFO", fifo), ("LRU", lru), ("OPT", opt))},
    }
    print("faults, and how many strings at random have the anomaly:")
    return rows
