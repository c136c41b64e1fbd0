"""First-touch faults per second against the host's own, and how they scale over the CPUs of a larger machine.

python benchmarks/faults.py [rounds]
"""

import time

from common import c_program, median, repeats, report

from numaemu import Machine


def fresh_then_used(task, nbytes):
    """Faults/s on frames never used, then on the same frames again, on one CPU."""
    rates = []
    for _ in range(3):
        region = task.mmap(nbytes)
        start = time.perf_counter()
        region.touch()
        rates.append(region.nbytes / 4096 / (time.perf_counter() - start))
        region.munmap()
    return rates[0], max(rates[1:])


def touch_share(task, nbytes, rounds):
    """Touch a region and unmap it, `rounds` times: (start, end, faults)."""
    start = time.monotonic()
    for _ in range(rounds):
        task.mmap(nbytes).touch().munmap()
    return start, time.monotonic(), rounds * nbytes // 4096


def together(machine, nbytes, rounds):
    """Faults/s of all CPUs together, each touching its share of `nbytes`."""
    share = nbytes // len(machine.cpus)
    runs = [h.result() for h in [machine.spawn(touch_share, share, rounds, cpu=c.id) for c in machine.cpus]]
    return sum(r[2] for r in runs) / (max(r[1] for r in runs) - min(r[0] for r in runs))


def total_rates(nodes, cpus_per_node, nbytes=512 << 20):
    """Faults/s of a whole machine: (fresh frames, used ones at first, used ones later). The same memory in all, however many CPUs.

    Used frames wander between the CPUs of a node, and the host maps a frame into each process at its first use there:
    the first rounds pay for that and are a figure of their own.
    """
    with Machine(nodes=nodes, cpus_per_node=cpus_per_node, memory_per_node=2 * nbytes // nodes) as machine:
        fresh = together(machine, nbytes, 1)
        early = together(machine, nbytes, 8)
        together(machine, nbytes, 16)
        used = together(machine, nbytes, 8)
        machine.check()
    return fresh, early, used


def main():
    rows = []
    for _ in range(repeats()):
        host = c_program("host", 512, flags=("-O2", "-pthread"))
        with Machine(nodes=1, cpus_per_node=1, memory_per_node="1280MiB") as machine:
            fresh, used = machine.run(fresh_then_used, 1 << 30)
        small, large = total_rates(2, 1), total_rates(4, 2)
        rows.append(
            (
                fresh,
                host["shared_faults"],
                used,
                host["anonymous_faults"],
                large[0],
                small[0],
                large[1],
                small[1],
                large[2],
                small[2],
            )
        )
    figures = [median(r[i] for r in rows) / 1e6 for i in range(10)]
    ratios = [median(r[i] / r[i + 1] for r in rows) for i in (0, 2, 4, 6, 8)]
    report(
        [
            ("first touch of fresh frames, M faults/s", *figures[0:2], ratios[0], 0.8, False),
            ("first touch of used frames, M faults/s", *figures[2:4], ratios[1], 1.5, False),
            ("8 CPUs on 4 nodes (host: 2 CPUs), fresh", *figures[4:6], ratios[2], 0.8, False),
            ("8 CPUs on 4 nodes (host: 2 CPUs), used, at first", *figures[6:8], ratios[3], 0.8, False),
            ("8 CPUs on 4 nodes (host: 2 CPUs), used, later", *figures[8:10], ratios[4], 0.8, False),
        ]
    )


if __name__ == "__main__":
    main()
