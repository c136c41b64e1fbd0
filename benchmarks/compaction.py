"""Pages moved per second by compact_memory, contents copied, against a bare compiled copy of as many pages.

    python benchmarks/compaction.py [rounds]

Every other page of most of a node is used, so half of them move. Where a second CPU has the same address space loaded,
each batch costs a shootdown through the coordinator.
"""

import ctypes
import os
import shutil
import tempfile
import time

import numba
import numpy as np
from common import median, repeats, report

from numaemu import Machine
from numaemu.compiler.native import copy_bytes
from numaemu.host import shm
from numaemu.uapi import MADV_DONTNEED

NBYTES = 768 << 20
SIGN = np.uint64(0x9E3779B97F4A7C15)


@numba.njit
def copy_pages(target, source, pages):
    """Page by page, every other one, as compaction finds them."""
    for i in range(pages):
        copy_bytes(target + np.uint64(i * 8192), source + np.uint64(i * 8192 + 4096), 4096)


def bare_copy():
    """Pages/s between two pieces of shared memory that are mapped already."""
    nbytes = NBYTES // 2
    blocks, times = [shm.shared_block(nbytes) for _ in range(2)], []
    for block in blocks:
        ctypes.memset(block, 1, nbytes)
    for _ in range(6):
        start = time.perf_counter()
        copy_pages(np.uint64(blocks[0]), np.uint64(blocks[1]), nbytes // 8192)
        times.append(time.perf_counter() - start)
    for block in blocks:
        shm._libc.munmap(block, nbytes)
    return nbytes // 8192 / median(times[1:])


def hold(task, folder, with_thread):
    """Keep every other page, each with a word of its own, until the folder is gone; True if all words are right then."""
    area = task.mmap(NBYTES).touch()
    addresses = area.pages()
    for address in addresses[::2]:
        task.madvise(int(address), 4096, MADV_DONTNEED)
    kept = addresses[1::2]
    task.store(kept + np.uint64(8), kept * SIGN)
    if with_thread:
        task.clone(load_first, kept, cpu=1).result()
    os.mkdir(f"{folder}/ready")
    while os.path.exists(folder):
        time.sleep(0.05)
    return bool((task.load(kept + np.uint64(8)) == kept * SIGN).all())


def load_first(task, kept):
    task.load(kept[:1])


def compact_memory(machine):
    """Pages/s of one compact_memory."""
    start = time.perf_counter()
    machine.write("/proc/sys/vm/compact_memory", "1")
    seconds = time.perf_counter() - start
    return moved(machine) / seconds


def kcompactd(machine):
    """Pages/s of the node's own thread, from a write of the sysctl until it has nothing more to do.

    Nobody asks for statistics meanwhile: the coordinator, which shootdowns need, would be busy with them. Nor does the
    first call that a node's process answers count, for which it loads and copies a good deal of Python's memory.
    """
    machine.settle()
    start = time.perf_counter()
    machine.write("/proc/sys/vm/compaction_proactiveness", "100")
    machine.settle()
    seconds = time.perf_counter() - start
    return moved(machine) / seconds


def moved(machine):
    return machine.stats()["vmstat"]["pgmigrate_success"]


def per_second(measure, with_thread=False):
    """What `measure` finds on a fragmented machine, whose contents are looked at afterwards."""
    with Machine(nodes=1, cpus_per_node=2, memory_per_node="1GiB") as machine, tempfile.TemporaryDirectory() as folder:
        handle = machine.spawn(hold, folder, with_thread, cpu=0)
        while not os.path.exists(f"{folder}/ready") and not handle.done():
            time.sleep(0.05)
        rate = measure(machine)
        shutil.rmtree(folder)
        assert handle.result()
        machine.check()
        os.mkdir(folder)
    return rate


def main():
    rows = []
    for _ in range(repeats()):
        host = bare_copy()
        rows.append((per_second(compact_memory), per_second(compact_memory, True), per_second(kcompactd), host))
    host = median(row[-1] for row in rows)
    names = "compact_memory, M pages/s", "with shootdowns, M pages/s", "kcompactd, M pages/s"
    report(
        [
            (
                what,
                median(row[i] for row in rows) / 1e6,
                host / 1e6,
                median(row[i] / row[-1] for row in rows),
                0.3,
                False,
            )
            for i, what in enumerate(names)
        ]
    )


if __name__ == "__main__":
    main()
