"""kmalloc rounds every size up to its next cache: how much is lost inside, and what would whole pages have cost?

A task asks for objects of many sizes, a few of each, first from kmalloc, then one block of pages each. Look for:
  - the loss is largest just above a cache's size (65 of 96 bytes, 4097 of 8192), and none at it: up to half;
  - the sizes 96 and 192 are there because so much of a kernel's memory lies between 64 and 256 bytes;
  - beyond 8 kB kmalloc is the buddy allocator, and rounds up to a power of two of pages;
  - raw pages for small objects lose nearly everything, which is why there are slabs.
"""

import numaemu

# fmt: off
SIZES = (8, 24, 64, 65, 96, 100, 128, 129, 192, 200, 300, 512, 600, 1024, 1100, 2048,
         2100, 4096, 4097, 8192, 8193, 20000, 40000)
# fmt: on
COUNT = 64  # objects of each size


def pages_in_use(machine):
    return sum(node["meminfo"]["Slab"] for node in machine.stats()["nodes"]) // 4


def percent(part, whole):
    return round(100 * part / whole, 1)


def main(machine):
    task = machine.task(cpu=0, name="kmalloc")
    kernel, rows, before = task.kernel, {}, pages_in_use(machine)
    kept = []
    for size in SIZES:
        addresses = [kernel.kmalloc(size, numaemu.GFP_KERNEL) for _ in range(COUNT)]
        real, order = kernel.ksize(addresses[0]), max((size - 1) // 4096, 0).bit_length()
        rows[f"{size} bytes"] = {
            "asked": size,
            "kmalloc": real,
            "lost %": percent(real - size, real),
            "pages": 4096 << order,
            "pages lost %": percent((4096 << order) - size, 4096 << order),
        }
        kept += addresses
    requested, slabs = COUNT * sum(SIZES), 4096 * (pages_in_use(machine) - before)
    raw = 4096 * COUNT * sum(1 << max((size - 1) // 4096, 0).bit_length() for size in SIZES)
    for address in kept:
        kernel.kfree(address)
    task.exit()
    rows[f"{COUNT} of each, in all"] = {
        "asked": requested,
        "kmalloc": slabs,
        "lost %": percent(slabs - requested, slabs),
        "pages": raw,
        "pages lost %": percent(raw - requested, raw),
    }
    return rows
