"""kmalloc rounds every size up to its next cache: how much is lost inside, and what would whole pages have cost?

A task asks for objects of many sizes, a few of each, from kmalloc; the same sizes in whole pages are worked out beside it.
Look for: a bar of kmalloc's is full where a size is that of a cache, and only two thirds or half full just above it.
  - the loss is largest just above a cache's size (65 bytes take 96, 4097 take 8192): up to half;
  - there are caches of 96 and 192 bytes because so much of a kernel's memory lies between 64 and 256 bytes;
  - beyond 8 KiB kmalloc is the buddy allocator, and rounds up to a power of two of pages;
  - whole pages for small objects lose nearly everything, which is why there are slabs.
"""

import numaemu
from numaemu.tools import chart

LOCKSTEP = True
# fmt: off
SIZES = (8, 24, 64, 65, 96, 100, 128, 129, 192, 200, 300, 512, 600, 1024, 1100, 2048,
         2100, 4096, 4097, 8192, 8193, 20000, 40000)
# fmt: on
COUNT = 64  # objects of each size


def pages_in_use(machine):
    return sum(node["meminfo"]["Slab"] for node in machine.stats()["nodes"]) // 4


def percent(part, whole):
    return round(100 * part / whole, 1)


def picture(rows):
    """For each size what part of what it takes is asked for and what is lost."""
    titles = {size: f"{size:>5} bytes take {row['kmalloc bytes']:>5}" for size, row in rows.items()}
    return chart.divided(
        "What kmalloc gives for an object of each size, and the share that is lost",
        {titles[size]: {"asked for": size, "lost": row["kmalloc bytes"] - size} for size, row in rows.items()},
        {titles[size]: f"{row['lost %']:.0f} % lost" for size, row in rows.items()},
        whole=True,
    )


def main(machine):
    task = machine.task(cpu=0, name="kmalloc")
    kernel, rows, before = task.kernel, {}, pages_in_use(machine)
    kept = []
    for size in SIZES:
        addresses = [kernel.kmalloc(size, numaemu.GFP_KERNEL) for _ in range(COUNT)]
        real, order = kernel.ksize(addresses[0]), max((size - 1) // 4096, 0).bit_length()
        rows[f"{size} bytes"] = {
            "asked bytes": size,
            "kmalloc bytes": real,
            "lost %": percent(real - size, real),
            "in pages bytes": 4096 << order,
            "in pages lost %": percent((4096 << order) - size, 4096 << order),
        }
        kept += addresses
    requested, slabs = COUNT * sum(SIZES), 4096 * (pages_in_use(machine) - before)
    raw = 4096 * COUNT * sum(1 << max((size - 1) // 4096, 0).bit_length() for size in SIZES)
    for address in kept:
        kernel.kfree(address)
    task.exit()
    print(picture({size: rows[f"{size} bytes"] for size in SIZES}))
    rows[f"{COUNT} of each, in all"] = {
        "asked bytes": requested,
        "kmalloc bytes": slabs,
        "lost %": percent(slabs - requested, slabs),
        "in pages bytes": raw,
        "in pages lost %": percent(raw - requested, raw),
    }
    return rows
