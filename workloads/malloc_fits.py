"""A heap over a day's requests, under each fit: how it is fragmented in the evening, and what the search cost.

A server allocates small blocks for requests, larger ones for sessions and a few buffers; most go again within the day. Each kind of
heap plays the same day, and a map of its blocks is drawn at midnight, when little is left in use.
Look for: the maps have large free pieces where the fit leaves the end of the heap alone.
  - first fit keeps the start of the heap dense, and its end is free in large pieces; each search walks over that dense start;
  - next fit searches least of the three, and spreads blocks over the whole heap: the most memory, and many small holes;
  - best fit takes the least memory, and looks at every block for it;
  - an explicit list visits free blocks only: by address it is nearly as good as first fit, last in first out is quick and loose.
"""

import random

import numpy as np

from numaemu.malloc.replay import play
from numaemu.malloc.trace import FREE, MALLOC
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="64MiB")
HEAPS = {
    "first fit": ("implicit", {"fit": "first"}),
    "next fit": ("implicit", {"fit": "next"}),
    "best fit": ("implicit", {"fit": "best"}),
    "list, lifo": ("explicit", {"order": "lifo"}),
    "list, address": ("explicit", {"order": "address"}),
}
HOURS, BUSIEST = 24, 600  # requests in the hour of noon
KINDS = (
    (0.80, 16, 400, 0.3),
    (0.17, 500, 4000, 3),
    (0.03, 8000, 30000, 6),
)  # share, bytes from, to, mean hours of life


def day(seed):
    """(requests of a day, number of blocks): rows as `play` takes them."""
    rng, events, blocks = random.Random(seed), [], 0
    for hour in range(HOURS):
        for _ in range(int(BUSIEST * (1 - abs(hour - 12) / 13))):
            _, least, most, hours = rng.choices(KINDS, [kind[0] for kind in KINDS])[0]
            begin = hour + rng.random()
            events.append((begin, MALLOC, blocks, rng.randrange(least, most)))
            events.append((begin + rng.expovariate(1 / hours), FREE, blocks, 0))
            blocks += 1
    events.sort()
    return np.array([event[1:] for event in events if event[0] < HOURS], np.int64), blocks


def evening(task, kind, options, requests, blocks):
    """Play the day: (figures, map at midnight)."""
    heap = task.malloc_heap(kind, **options)
    task.call(play, heap, requests[:0], 1)
    before = task.counters()
    task.call(play, heap, requests, blocks)
    after = task.counters()
    heap.check()
    stats = heap.stats()
    accesses = sum(after[name] - before[name] for name in ("loads", "stores"))
    return {
        "heap KiB": stats.peak_heap // 1024,
        "in use at midnight KiB": stats.payload // 1024,
        "free blocks": stats.free_blocks,
        "external fragmentation %": round(100 * stats.external_fragmentation),
        "accesses an operation": round(accesses / len(requests)),
        "ns an operation": round((after["clock_ns"] - before["clock_ns"]) / len(requests)),
    }, heap.map(width=76, lines=5)


def main(machine):
    requests, blocks = day(getattr(machine, "seed", None) or 1)
    rows = {}
    for name, (kind, options) in HEAPS.items():
        rows[name], picture = machine.run(evening, kind, options, requests, blocks, name="malloc")
        print(f"{name} at midnight, from {picture}\n")
    print(chart.bars("Emulated ns an operation", {name: row["ns an operation"] for name, row in rows.items()}, "ns"))
    print(chart.bars("The most that the heap has held", {name: row["heap KiB"] for name, row in rows.items()}, "KiB"))
    return rows
