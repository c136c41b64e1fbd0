"""One program's references, and which policy would have let how many of them fault. The program really ran short of memory.

An index and its records do not fit into memory. Each query is a binary search through the index and a read of the
record it finds; a few records are asked for often. Now and then a report reads all records in order. Every emulated
access is written down while it happens: this reference string is then replayed under each policy. A string of one's own and
the numbers of frames are arguments: `numaemu run replacement_policies -- --help` lists them.
Look for: each policy's bar against the one of OPT, which knows the future, and the machine's against that of Linux.
  - OPT is the least that is possible; no policy comes near it, as no other one sees a report coming;
  - with few frames a report sweeps out everything under LRU, clock and FIFO alike; the more there are, the more it helps
    to know what was used: LRU is ahead of clock, and clock of FIFO;
  - Linux's two lists keep what was used twice, so a report costs less;
  - the working set has a window that needs as many frames on the average, but sometimes more, sometimes fewer;
  - the machine itself, for the same accesses and with the frames that the program had at the end: close to the model of
    what it does.
"""

import argparse
import pathlib

import numba
import numpy as np

from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, load_u64
from numaemu.tools import chart
from numaemu.tools.replacement import POLICIES, window_for, working_set

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
KEYS_PER_PAGE = 512
INDEX_PAGES, RECORDS = 64, 5000  # a record is a page
REPORTS, QUERIES = 3, 12_000
MOST_PAGES = 15_000  # of a string of one's own: what memory and swap hold
SHARES = (0.4, 0.6, 0.8)  # of the program's pages, as page frames
SKEW = 0.8  # of the popularity of records (Zipf)


def arguments():
    parser = argparse.ArgumentParser(
        prog="numaemu run replacement_policies --",
        description="How many references of a string fault under each policy, and on the machine.",
    )
    parser.add_argument("queries", type=int, nargs="?", default=QUERIES, help=f"of the program (default {QUERIES})")
    parser.add_argument(
        "--string",
        metavar="FILE",
        help="instead of the program: numbers of pages, separated by blanks or lines. All pages are written once, in the "
        "order of their numbers, and then loaded as the string says",
    )
    parser.add_argument(
        "--frames",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of page frames (default 40, 60 and 80 percent of the pages)",
    )
    given = parser.parse_args()
    if given.queries < 1 or min(given.frames or [1]) < 1:
        parser.error("queries and --frames must be at least 1")
    if given.string:
        try:
            given.pages = [int(word) for word in pathlib.Path(given.string).read_text().split()]
        except (OSError, ValueError) as error:
            parser.error(f"--string is {given.string}: {error}")
        if not 0 < len(set(given.pages)) <= MOST_PAGES:
            parser.error(f"{given.string} has {len(set(given.pages))} pages, must have 1 to {MOST_PAGES}")
    return given


@numba.njit(cache=True)
def note(trace, address):
    """The next reference of the string, unless it is to the same page as the last one."""
    page = np.int64(address >> np.uint64(12))
    if trace[trace[0]] != page:
        trace[0] += 1
        trace[trace[0]] = page


@numba.njit(cache=True)
def query(cpu, index, nr_keys, records, key, trace):
    """Find a key in the sorted index, and read its record."""
    low, high = np.int64(0), nr_keys
    while low + 1 < high:
        middle = (low + high) // 2
        address = index + np.uint64(middle * 8)
        note(trace, address)
        if np.int64(load_u64(cpu, address)) <= key:
            low = middle
        else:
            high = middle
    record = records + np.uint64(low // (nr_keys // RECORDS) * 4096)
    note(trace, record)
    return load_u64(cpu, record)


@numba.njit(cache=True)
def serve(cpu, index, nr_keys, records, keys, trace):
    """Many queries; the sum of what they read."""
    total = np.uint64(0)
    for i in range(len(keys)):
        total += query(cpu, index, nr_keys, records, keys[i], trace)
    return total


@numba.njit(cache=True)
def report(cpu, records, trace):
    """Read every record once."""
    total = np.uint64(0)
    for i in range(RECORDS):
        address = records + np.uint64(i * 4096)
        note(trace, address)
        total += load_u64(cpu, address)
    return total


def popular_keys(rng, nr_keys, n):
    """Keys whose records are popular as Zipf has it, scattered over the index."""
    weights = 1 / np.arange(1, RECORDS + 1) ** SKEW
    picked = rng.permutation(RECORDS)[rng.choice(RECORDS, n, p=weights / weights.sum())]
    return picked * (nr_keys // RECORDS)


def program(task, queries, seed):
    """(the reference string, which begins with the filling; major faults; pages resident at the end)"""
    rng, nr_keys = np.random.default_rng(seed), INDEX_PAGES * KEYS_PER_PAGE // RECORDS * RECORDS
    index, records = task.mmap(INDEX_PAGES * 4096), task.mmap(RECORDS * 4096)
    index.array()[:nr_keys] = np.arange(nr_keys)
    records.array()[::512] = np.arange(RECORDS)
    filled = np.concatenate([index.pages(), records.pages()]) >> np.uint64(12)
    trace, right = np.zeros(2 + queries * 20 + REPORTS * RECORDS, np.int64), True
    before = task.counters()["task_major_faults"]
    for part in np.array_split(popular_keys(rng, nr_keys, queries), REPORTS):
        total = task.call(serve, np.uint64(index.addr), nr_keys, np.uint64(records.addr), part, trace)
        right = right and total == (part // (nr_keys // RECORDS)).sum()
        right = right and task.call(report, np.uint64(records.addr), trace) == RECORDS * (RECORDS - 1) // 2
    if not right:
        raise RuntimeError("a page came back changed")
    resident = task.mincore(index.addr, index.nbytes).sum() + task.mincore(records.addr, records.nbytes).sum()
    string = np.concatenate([filled.astype(np.int64), trace[1 : trace[0] + 1]])
    return string, task.counters()["task_major_faults"] - before, int(resident), len(filled)


def own_string(task, pages):
    """The same of a string of one's own: its pages are written in their order, then loaded one by one."""
    names, places = np.unique(pages, return_inverse=True)
    where = task.mmap(len(names) * 4096, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE).pages()
    task.store(where, where)
    before = task.counters()["task_major_faults"]
    if not (task.load(where[places]) == where[places]).all():
        raise RuntimeError("a page came back changed")
    major = task.counters()["task_major_faults"] - before
    resident = task.mincore(int(where[0]), len(names) * 4096).sum()
    return np.concatenate([np.arange(len(names)), places]), major, int(resident), len(names)


def fetched(string, filled, frames):
    """{policy: faults after the filling}"""
    faults = {name: int(policy(string, frames)[filled:].sum()) for name, policy in POLICIES.items()}
    return faults | {"working set": int(working_set(string, window_for(string, frames))[filled:].sum())}


def main(machine):
    given = arguments()
    machine.write("/proc/sys/vm/page-cluster", 0)
    machine.swapon("64MiB")
    seed = getattr(machine, "seed", None) or 0
    story, what = (own_string, (given.pages,)) if given.string else (program, (given.queries, seed))
    string, major, resident, filled = machine.run(story, *what)
    print(
        f"{len(string) - filled:,} references to {filled:,} pages; the machine had {resident:,} of them in memory at the end.\n"
    )
    counts = sorted({*(given.frames or [max(int(filled * share), 1) for share in SHARES]), resident})
    rows = {f"{n} frames": fetched(string, filled, n) | {"the machine": major if n == resident else ""} for n in counts}
    print(
        chart.bars(
            f"Pages fetched again, with the {resident:,} frames that the machine had",
            rows[f"{resident} frames"],
            "pages",
        )
    )
    return {"pages fetched again": rows}
