"""Replaying a trace: tasks touch what it says, at the addresses that stand there.

A first pass finds out which pages and threads there are. All pages are mapped, private and anonymous, before the first access; then
each thread's task does its own accesses, in their order, in its CPU's process. It finds them in a file that the first pass has
left (Spool), unless they would be too many for one: then it reads the trace again.
"""

import os
import tempfile

import numba
import numpy as np

from numaemu import MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, load_u64, store_u64
from numaemu.errors import ConfigError
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.tools.traces.formats import BadTrace, guess, read
from numaemu.tools.traces.record import ACCESS, FETCH, KINDS
from numaemu.uapi import (
    MPOL_BIND,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
)

LOWEST = 65536  # vm.mmap_min_addr: nothing is mapped below
MOST_RANGES = 20_000  # mappings; ranges that are near each other become one until there are no more
MOST_THREADS = 1024
SPOOL_BYTES = 2 << 30  # of accesses that are kept between the passes
AT_ONCE = 1 << 18  # accesses between two looks whether the task is to end
POLICIES = {
    "local": MPOL_LOCAL,
    "bind": MPOL_BIND,
    "preferred": MPOL_PREFERRED,
    "preferred-many": MPOL_PREFERRED_MANY,
    "interleave": MPOL_INTERLEAVE,
    "weighted-interleave": MPOL_WEIGHTED_INTERLEAVE,
}


def parse_policy(text):
    """(mode, nodes) of "interleave:0-1", "local", or None."""
    if text is None:
        return None
    name, _, nodes = text.partition(":")
    if name not in POLICIES:
        raise ConfigError(f"--policy is {text!r}, must be one of {', '.join(POLICIES)}, with nodes as in bind:0-1")
    if (name != "local") != bool(nodes):
        raise ConfigError(
            f"--policy is {text!r}, must {'have nodes, as in ' + name + ':0-1' if name != 'local' else 'have no nodes'}"
        )
    return POLICIES[name], nodes or None


class Spool:
    """A temporary file with the accesses of a trace, as they lie in memory; `path` is None once they are too many."""

    def __init__(self):
        self.path: str | None
        handle, self.path = tempfile.mkstemp(prefix="numaemu-trace-")
        self.file, self.nbytes = os.fdopen(handle, "wb"), 0

    def add(self, part):
        """Keep accesses, if there is room."""
        if self.path is None:
            return
        self.nbytes += part.nbytes
        if self.nbytes > SPOOL_BYTES:
            self.close()
        else:
            part.tofile(self.file)

    def close(self):
        """The file goes."""
        if self.path is not None:
            self.file.close()
            os.unlink(self.path)
            self.path = None


def spooled(path):
    """The accesses of a spool, piece by piece."""
    accesses = np.memmap(path, ACCESS, "r")
    for start in range(0, len(accesses), AT_ONCE):
        yield accesses[start : start + AT_ONCE]


# -- the first pass ------------------------------------------------------------------------------------------


class Survey:
    """What a trace holds: accesses by kind, threads in the order of their first access, ranges of pages."""

    def __init__(self, path, kind, task_size, fetches, progress=lambda accesses: None):
        self.path, self.kind, self.fetches, self.task_size = path, kind or guess(path), fetches, task_size
        self.counts, self.threads, self.outside = [0, 0, 0, 0], {}, 0
        self.spool = Spool()
        try:
            self.nr_pages, self.ranges = self.read(progress)
            self.spool.file.flush()
        except BaseException:
            self.spool.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.spool.close()

    def read(self, progress):
        """The first pass: (pages, their ranges)."""
        path, task_size, fetches, pages = self.path, self.task_size, self.fetches, np.empty(0, np.uint64)
        for part in read(path, self.kind):
            usable = chosen(part, task_size, fetches)
            self.outside += int((~inside(part, task_size)).sum())
            self.counts = [n + int((usable["kind"] == k).sum()) for k, n in enumerate(self.counts)]
            for thread in np.unique(usable["thread"]).tolist():
                self.threads.setdefault(thread, len(self.threads))
            pages = np.union1d(pages, touched(usable))
            self.spool.add(np.ascontiguousarray(usable))
            progress(self.accesses)
        if not self.accesses:
            raise BadTrace(f"{path}: holds no access that a task could do")
        if len(self.threads) > MOST_THREADS:
            raise BadTrace(f"{path}: has {len(self.threads)} threads, must be at most {MOST_THREADS}")
        return len(pages), merged(pages)

    @property
    def accesses(self):
        return sum(self.counts)

    def figures(self):
        """For the result of a replay."""
        return {"format": self.kind, **dict(zip(KINDS, self.counts)), "threads": len(self.threads), "pages": self.nr_pages,
                "left_out": self.outside}  # fmt: skip


def inside(part, task_size):
    """Accesses that lie in user addresses."""
    last = part["addr"] + part["size"].astype(np.uint64)
    return (part["addr"] >= LOWEST) & (last <= np.uint64(task_size)) & (last > part["addr"])


def chosen(part, task_size, fetches):
    """The accesses that are replayed."""
    wanted = inside(part, task_size)
    return part[wanted if fetches else wanted & (part["kind"] != FETCH)]


def touched(part):
    """Page numbers of accesses, first and last bytes, each once."""
    first = part["addr"] >> np.uint64(PAGE_SHIFT)
    last = (part["addr"] + np.maximum(part["size"], 8).astype(np.uint64) - np.uint64(1)) >> np.uint64(PAGE_SHIFT)
    return np.unique(np.concatenate([np.unique(first), np.unique(last)]))


def merged(pages):
    """Ranges (first, end) of page numbers; the widest gaps stay between them, MOST_RANGES at most."""
    gaps = np.diff(pages)
    least = 1
    if (gaps > 1).sum() >= MOST_RANGES:
        least = int(np.partition(gaps, -MOST_RANGES)[-MOST_RANGES])
    cuts = np.flatnonzero(gaps > least)
    firsts, lasts = pages[np.concatenate([[0], cuts + 1])], pages[np.concatenate([cuts, [len(pages) - 1]])]
    return [(int(first), int(last) + 1) for first, last in zip(firsts, lasts)]


# -- in the CPUs' processes ----------------------------------------------------------------------------------


@numba.njit(cache=True)
def do_accesses(cpu, part, thread):
    """Loads and stores of whole words; what is stored is of no interest. thread: whose accesses, or -1: everybody's."""
    done = 0
    for i in range(len(part)):
        if thread >= 0 and part[i]["thread"] != thread:
            continue
        address = part[i]["addr"] & ~np.uint64(7)
        words = (np.int64(part[i]["addr"] - address) + np.int64(part[i]["size"]) + 7) // 8
        kind = part[i]["kind"]
        for _ in range(words if words > 1 else 1):
            if kind != 1:
                load_u64(cpu, address)
            if kind == 1 or kind == 3:
                store_u64(cpu, address, address)
            address += np.uint64(8)
        done += 1
    return done


def map_ranges(task, ranges, policy):
    """A task's memory: all that the trace touches, and the policy by which it gets frames."""
    if policy is not None:
        task.set_mempolicy(*policy)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
    for first, end in ranges:
        task.mmap((end - first) * PAGE_SIZE, flags=flags, addr=first * PAGE_SIZE)


def replay_thread(task, spool, path, kind, task_size, fetches, thread):
    """One thread's accesses (-1: all), from the first to the last; how many."""
    parts = spooled(spool) if spool else (chosen(part, task_size, fetches) for part in read(path, kind))
    return sum(task.call(do_accesses, np.asarray(part), thread) for part in parts)


def replay_all(task, survey, policy, by_id):
    """A whole trace, as a process whose threads are the trace's: accesses done. The first thread is the process itself."""
    map_ranges(task, survey["ranges"], policy)
    arguments = (survey["spool"], survey["path"], survey["kind"], survey["task_size"], survey["fetches"])
    if not by_id:
        return replay_thread(task, *arguments, -1)
    cpus, (own, *others) = survey["cpus"], survey["threads"]
    handles = [
        task.clone(replay_thread, *arguments, thread, cpu=cpus[(i + 1) % len(cpus)]) for i, thread in enumerate(others)
    ]
    return replay_thread(task, *arguments, own) + sum(handle.result() for handle in handles)


def replay(machine, survey, policy=None, by_id=False):
    """Replay a trace on a machine: accesses done."""
    words = {"spool": survey.spool.path, "path": survey.path, "kind": survey.kind, "task_size": survey.task_size, "fetches": survey.fetches,
             "ranges": survey.ranges, "threads": list(survey.threads), "cpus": list(machine.topology.cpus)}  # fmt: skip
    return machine.run(replay_all, words, policy, by_id, cpu=machine.topology.cpus[0], name="replay")
