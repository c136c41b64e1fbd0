"""How fast fork shares pages, and what a write to a shared page costs against a first touch.

python benchmarks/fork.py [rounds]
"""

import time

from common import median, repeats

from numaemu import Machine

BYTES = 1 << 30  # resident in the parent
COPIED = 256 << 20  # of it written by the child


def first_touch(task, nbytes):
    """Faults/s on frames that have been used before."""
    rates = []
    for _ in range(4):
        region = task.mmap(nbytes)
        start = time.perf_counter()
        region.touch()
        rates.append(nbytes / 4096 / (time.perf_counter() - start))
        region.munmap()
    return max(rates[1:])


def forks(task, nbytes, copied):
    """(pages/s shared by fork, first-touch faults/s on used frames, write faults/s on shared pages)"""
    touched = first_touch(task, copied)
    region = task.mmap(nbytes).touch()
    shared, written = [], []
    for _ in range(4):
        start = time.perf_counter()
        child = task.fork()
        shared.append(nbytes / 4096 / (time.perf_counter() - start))
        start = time.perf_counter()
        child.touch(region.addr, copied)
        written.append(copied / 4096 / (time.perf_counter() - start))
        child.exit()
    return max(shared[1:]), touched, max(written[1:])


def main():
    rows = []
    for _ in range(repeats()):
        with Machine(nodes=1, cpus_per_node=1, memory_per_node="2GiB") as machine:
            rows.append(machine.run(forks, BYTES, COPIED))
            machine.check()
    shared, touched, written = (median(row[i] for row in rows) / 1e6 for i in range(3))
    ratio = median(row[2] / row[1] for row in rows)
    for what, value, wanted in (
        ("fork, M pages/s shared", shared, 5),
        ("first touch of used frames, M faults/s", touched, 0),
        ("write to a shared page, M faults/s", written, 0),
        ("these two as a ratio", ratio, 0.6),
    ):
        print(
            f"{what:44} {value:8.2f}"
            + (f"   wanted >= {wanted:.2f}" if wanted else "")
            + ("  MISSED" if value < wanted else "")
        )


if __name__ == "__main__":
    main()
