"""Small objects from a slab cache, and each from a page of its own: memory, emulated time, waste.

A task allocates the same number of objects both ways, then frees them all. Look for:
  - pages: a slab holds many objects, so small ones need a small part of the pages; from 4096 bytes on nothing is saved;
  - lost: what of those pages no object uses. In slabs it is what is left at the end of each, and the last, half-empty
    ones; in whole pages it is nearly all;
  - time: single pages and objects both come from a list of this CPU, so what is left is the two calls. But a slab of
    several pages is asked of the node with a message, and large objects need such a slab often.
"""

from numaemu import GFP_KERNEL

LOCKSTEP = True
SIZES = (16, 64, 256, 1024, 4096)
COUNT = 1000  # objects of each size


def slab_pages(machine):
    return sum(node["meminfo"]["Slab"] for node in machine.stats()["nodes"]) // 4


def row(size, pages, elapsed_ns):
    lost = 100 * (1 - COUNT * size / (pages * 4096))
    return {"objects": COUNT, "pages": pages, "lost %": round(lost, 1), "ns per pair": round(elapsed_ns / COUNT)}


def from_slabs(machine, task, size):
    cache, before, start = (
        task.kernel.kmem_cache_create(f"slab_vs_buddy-{size}", size),
        slab_pages(machine),
        task.clock_ns,
    )
    objects = [cache.alloc(GFP_KERNEL) for _ in range(COUNT)]
    elapsed, pages = task.clock_ns - start, slab_pages(machine) - before
    start = task.clock_ns
    for address in objects:
        cache.free(address)
    elapsed += task.clock_ns - start
    cache.destroy()
    return row(size, pages, elapsed)


def from_pages(task, size):
    start = task.clock_ns
    pages = [task.kernel.alloc_pages(GFP_KERNEL) for _ in range(COUNT)]
    for pfn in pages:
        task.kernel.free_pages(pfn)
    return row(size, len(pages), task.clock_ns - start)


def main(machine):
    task, rows = machine.task(cpu=0, name="slab_vs_buddy"), {}
    for size in SIZES:
        rows[f"{size} bytes, slab"] = from_slabs(machine, task, size)
        rows[f"{size} bytes, buddy"] = from_pages(task, size)
    task.exit()
    return rows
