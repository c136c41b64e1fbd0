"""Belady's anomaly, on the machine's own pages: with one page frame more, FIFO faults more often.

A small pager decides which pages of a mapping are in memory: it counts frames, and throws a page out by
madvise(MADV_PAGEOUT) when it needs one. Whether a reference faults is what the machine's fault counters say. The string of
pages, the numbers of frames and the pager's policy are arguments: `numaemu run belady -- --help` lists them.
Look for: the lower picture has a frame more than the upper one, and more faults (*).
  - FIFO: 9 faults with three frames, 10 with four, on the string 1 2 3 4 1 2 5 1 2 3 4 5;
  - LRU and OPT: what is in memory with three frames is there with four as well, so more frames never hurt;
  - the anomaly is no rarity that one has to construct: strings at random have it, too.
"""

import argparse

import numpy as np

from numaemu import MADV_PAGEOUT
from numaemu.tools.replacement import fifo, lru, opt

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="32MiB")
STRING = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
POLICIES = {"FIFO": fifo, "LRU": lru, "OPT": opt}
MOST_PAGES = 200  # that the machine's swap has room for
WIDTH = 80


def arguments():
    parser = argparse.ArgumentParser(
        prog="numaemu run belady --",
        description="Which references of a string of pages fault, on the machine and under FIFO, LRU and OPT.",
    )
    parser.add_argument(
        "page", type=int, nargs="*", help=f"the string, page by page (default {' '.join(map(str, STRING))})"
    )
    parser.add_argument(
        "--frames", type=int, nargs="+", default=[3, 4], metavar="N", help="numbers of frames (default 3 4)"
    )
    parser.add_argument("--policy", choices=POLICIES, default="FIFO", help="of the pager on the machine (default FIFO)")
    parser.add_argument(
        "--random", type=int, default=20_000, metavar="N", help="strings at random to look at (default 20000)"
    )
    parser.add_argument("--length", type=int, default=20, metavar="N", help="references of each of these (default 20)")
    parser.add_argument("--pages", type=int, default=6, metavar="N", help="pages of each of these (default 6)")
    given = parser.parse_args()
    given.string = given.page or STRING
    for what, numbers, least in (
        ("a page is", given.string, 0),
        ("--frames is", given.frames, 1),
        ("--pages is", [given.pages], 1),
    ):
        if wrong := [number for number in numbers if not least <= number < MOST_PAGES]:
            parser.error(f"{what} {wrong[0]}, must be from {least} to {MOST_PAGES - 1}")
    if min(given.random, given.length) < 0:
        parser.error("--random and --length must not be negative")
    return given


def faults_so_far(task):
    counters = task.counters()
    return counters["task_minor_faults"] + counters["task_major_faults"]


def victim(policy, present, coming):
    """The page that goes: the first one, unless it is known which one is needed last."""
    if policy == "OPT":
        return max(present, key=lambda page: coming.index(page) if page in coming else len(coming))
    return present[0]


def page_by_page(task, string, frames, policy):
    """The pager with real pages: [(page, what is in memory, True if the reference faulted)]"""
    places, present, story = task.mmap((max(string) + 1) * 4096).pages(), [], []
    for number, page in enumerate(string):
        if page not in present:
            if len(present) == frames:
                gone = victim(policy, present, string[number + 1 :])
                present.remove(gone)
                task.madvise(int(places[gone]), 4096, MADV_PAGEOUT)
            present.append(page)
        elif policy == "LRU":
            present.remove(page)
            present.append(page)
        before = faults_so_far(task)
        task.store([places[page]], np.uint64(page))
        story.append((page, list(present), faults_so_far(task) > before))
    return story


def draw(policy, frames, story):
    """A column for each reference: its page, what is in memory, the latest on top, * where it faulted."""
    print(f"{policy}, {frames} frames: {sum(fault for *_, fault in story)} faults")
    wide = max(len(str(page)) for page, *_ in story) + 2
    columns = (WIDTH - 14) // wide
    for start in range(0, len(story), columns):
        part = story[start : start + columns]
        rows = {"reference": [page for page, *_ in part]}
        for row in range(frames):
            held = [present[::-1] for _, present, _ in part]
            rows[f"in memory {row}"] = [pages[row] if row < len(pages) else "" for pages in held]
        rows["fault"] = ["*" if fault else "" for *_, fault in part]
        for name, cells in rows.items():
            label = name if name in ("reference", "in memory 0", "fault") else ""
            print(f"    {label.removesuffix(' 0'):10}" + "".join(f"{cell:>{wide}}" for cell in cells).rstrip())
    print()


def anomalies(policy, strings, frames):
    """How many of the strings fault more often with some number of frames than with a smaller one."""
    return sum(bool((np.diff([policy(string, n).sum() for n in frames]) > 0).any()) for string in strings)


def main(machine):
    given = arguments()
    frames, rows = sorted(set(given.frames)), {}
    machine.swapon("1MiB")
    machine.write("/proc/sys/vm/page-cluster", 0)
    for n in frames:
        story = machine.run(page_by_page, given.string, n, given.policy)
        draw(given.policy, n, story)
        rows[f"{n} frames"] = {f"{given.policy}, the machine": sum(fault for *_, fault in story)} | {
            name: int(policy(given.string, n).sum()) for name, policy in POLICIES.items()
        }
    result = {"faults of the string": rows}
    if given.random and len(frames) > 1:
        rng = np.random.default_rng(getattr(machine, "seed", None) or 0)
        strings = rng.integers(0, given.pages, (given.random, given.length))
        title = f"of {given.random} strings at random, how many fault more often with more frames"
        result[title] = {name: anomalies(policy, strings, frames) for name, policy in POLICIES.items()}
    return result
