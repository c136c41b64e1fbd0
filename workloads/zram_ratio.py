"""What compressed swap saves and costs, by what is in the pages: zram with lz4 and with zstd, against a disk.

Pages of each kind are swapped out (MADV_PAGEOUT) and faulted in again one by one, without readahead. Look for:
  - pages of zeros are only noted, on any kind of area: nothing is stored;
  - text and regular numbers become several times smaller, zstd's result is the smaller one;
  - random bytes do not get smaller: zram keeps the page as it is ("huge"), and saves nothing;
  - a fault from zram costs a decompression, one from the disk waits for the disk.
Ratios are the libraries' own on these bytes (mm_stat: original by compressed bytes); times are emulated.
"""

import numpy as np

from numaemu import MADV_PAGEOUT

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="64MiB")
PAGES = 64  # of each kind
WORDS = (
    "the page of a process that was not used for long goes to swap and comes back when it is needed again while "
    "others stay in memory because they are referenced often enough to be kept on the active list"
).split()


def zeros(rng, nbytes):
    return bytes(nbytes)


def text(rng, nbytes):
    return " ".join(rng.choice(WORDS, nbytes // 3)).encode()[:nbytes]


def numbers(rng, nbytes):
    """A table of small integers that grow slowly, 8 bytes each."""
    return np.cumsum(rng.integers(0, 50, nbytes // 8)).astype(np.int64).tobytes()


def pointers(rng, nbytes):
    """Addresses of 16-byte objects in a heap of 1 MiB, and some lengths between them."""
    words = (0x7F3A_5540_0000 + 16 * rng.integers(0, 1 << 16, nbytes // 8)).astype(np.uint64)
    words[::4] = rng.integers(1, 64, len(words[::4]))
    return words.tobytes()


def random(rng, nbytes):
    return rng.bytes(nbytes)


KINDS = {"zeros": zeros, "text": text, "numbers": numbers, "pointers": pointers, "random": random}


def stored(machine):
    """(original bytes, compressed bytes) that zram keeps."""
    return np.array(machine.read("/sys/block/zram0/mm_stat").split()[:2], int)


def evict(machine, task):
    """Have the swap cache forgotten: as much memory as is free is used for a moment."""
    free = sum(node["meminfo"]["MemFree"] for node in machine.stats()["nodes"])
    task.mmap((free << 10) & -4096).touch().munmap()


def round_trip(machine, task, make):
    """One kind of pages out and in: (ratio or None, emulated ns per fault). Their bytes must be the same afterwards."""
    area = task.mmap(PAGES * 4096)
    contents = make(np.random.default_rng(getattr(machine, "seed", None) or 0), area.nbytes)
    task.write(area.addr, contents)
    before = stored(machine)
    task.madvise(area.addr, area.nbytes, MADV_PAGEOUT)
    original, compressed = stored(machine) - before
    if "/dev/zram" not in machine.read("/proc/swaps"):
        evict(machine, task)
    faults, start = machine.stats()["vmstat"]["pgmajfault"], task.clock_ns
    task.load(area.pages())
    took, faults = task.clock_ns - start, machine.stats()["vmstat"]["pgmajfault"] - faults
    if task.read(area.addr, area.nbytes) != contents:
        raise RuntimeError(f"{make.__name__}: the pages came back changed")
    area.munmap()
    return float(original / compressed) if compressed else None, took / max(faults, 1)


def on_area(machine, kind, algorithm=None):
    """All kinds of pages on one kind of area."""
    if algorithm:
        machine.write("/sys/block/zram0/comp_algorithm", algorithm)
    area, task = machine.swapon("256MiB", kind=kind), machine.task(name=algorithm or kind)
    results = {name: round_trip(machine, task, make) for name, make in KINDS.items()}
    task.exit()
    machine.swapoff(area)
    return results


def main(machine):
    machine.write("/proc/sys/vm/page-cluster", "0")
    lz4, zstd, disk = on_area(machine, "zram", "lz4"), on_area(machine, "zram", "zstd"), on_area(machine, "disk")

    def ratio(figures):
        return "not stored" if figures[0] is None else f"{figures[0]:.2f}"

    return {
        name: {
            "lz4 ratio": ratio(lz4[name]),
            "zstd ratio": ratio(zstd[name]),
            "lz4 us/fault": round(lz4[name][1] / 1e3, 1),
            "zstd us/fault": round(zstd[name][1] / 1e3, 1),
            "disk us/fault": round(disk[name][1] / 1e3, 1),
        }
        for name in KINDS
    }
