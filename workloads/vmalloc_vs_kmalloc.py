"""The same loads from memory of kmalloc and of vmalloc: what mapping memory page by page costs.

Both lie in the kernel's address space. kmalloc's memory is a part of the direct map, which is mapped with the largest
entries there are; vmalloc's is scattered pages, each with an entry of its own. A task of the kernel loads words at random.
Look for:
  - kmalloc: one TLB entry maps 2 MiB or 1 GiB, so hardly any load misses, however much memory it is;
  - vmalloc: what fits into the TLB costs nothing either; beyond it nearly every load ends in a walk;
  - a walk for vmalloc loads four entries, where one for the direct map ends at a large entry;
  - for that price vmalloc needs no contiguous memory: kmalloc ends at 4 MiB, so more of it is several pieces.
"""

import numba
import numpy as np

from numaemu import GFP_KERNEL, kernel_load_u64

LOCKSTEP = True
MACHINE = "uma"
PIECE = 4 << 20  # KMALLOC_MAX_SIZE
SIZES = {"256 KiB": 256 << 10, "4 MiB": 4 << 20, "64 MiB": 64 << 20}
LOADS = 200_000


@numba.njit(cache=True)
def load_at_random(cpu, pieces, mask, loads):
    """Loads at random offsets below mask + 1 of memory that lies in pieces of 4 MiB."""
    state, total = np.uint64(88172645463325252), np.uint64(0)
    for _ in range(loads):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        offset = (state >> np.uint64(11)) & mask
        total += kernel_load_u64(cpu, pieces[np.int64(offset >> np.uint64(22))] + (offset & np.uint64(PIECE - 1)))
    return total


def measure(task, pieces, nbytes):
    mask = np.uint64((nbytes - 1) & ~7)
    task.call(load_at_random, pieces, mask, LOADS)  # the TLB is warm
    before, start = task.counters(), task.clock_ns
    task.call(load_at_random, pieces, mask, LOADS)
    after, end = task.counters(), task.clock_ns
    walks, walk_loads = (after[name] - before[name] for name in ("page_walks", "walk_loads"))
    return {
        "L1 misses %": round(100 * (1 - (after["l1_tlb_hits"] - before["l1_tlb_hits"]) / LOADS), 1),
        "walks %": round(100 * walks / LOADS, 1),
        "loads a walk": round(walk_loads / walks, 1) if walks else 0.0,
        "ns a load": round((end - start) / LOADS, 1),
    }


def experiment(task):
    rows = {}
    for name, nbytes in SIZES.items():
        pieces = [task.kernel.kmalloc(min(nbytes, PIECE), GFP_KERNEL) for _ in range(0, nbytes, PIECE)]
        rows[f"kmalloc, {name}"] = measure(task, np.array(pieces, np.uint64), nbytes)
        for address in pieces:
            task.kernel.kfree(address)
        area = task.kernel.vmalloc(nbytes)
        rows[f"vmalloc, {name}"] = measure(task, np.arange(area, area + nbytes, PIECE, dtype=np.uint64), nbytes)
        task.kernel.vfree(area)
    return rows


def main(machine):
    return machine.run(experiment, cpu=0)
