"""What lockstep costs: accesses and faults of one and of eight CPUs, over the same in free mode; and a hand-over.

    python benchmarks/lockstep.py [rounds]

Each round runs the modes one after the other; the median of the rounds' ratios counts. Free mode has all CPUs of the host.
"""

import sys
import time

import numpy as np
from common import median

from numaemu import Machine

ACCESSES, SPAN, SMALL_SPAN, FAULTS = 2_000_000, 4 << 20, 64 << 10, 20_000
MODES = {
    "free": {},
    "1 ms": dict(lockstep=True, quantum_ns=1_000_000),
    "100 us": dict(lockstep=True, quantum_ns=100_000),
}
GOALS = {(1, "1 ms"): 0.95, (1, "100 us"): 0.95, (8, "1 ms"): 0.42, (8, "100 us"): 0.3}


def accesses(task, seed, span=SPAN):
    """Random loads of a mapping that is there already."""
    area = task.mmap(span).touch()
    addresses = np.uint64(area.addr) + np.uint64(8) * np.random.default_rng(seed).integers(
        0, span // 8, ACCESSES
    ).astype(np.uint64)
    task.load(addresses)


def faults(task, seed):
    """Touch new pages, and give them back."""
    for _ in range(4):
        area = task.mmap(FAULTS * 4096)
        area.touch()
        task.munmap(area.addr, FAULTS * 4096)


def seconds(work, cpus, mode):
    """How long `work` takes on so many CPUs at once, behind one round that warms everything up."""
    with Machine(nodes=2, cpus_per_node=max(cpus // 2, 1), memory_per_node="1GiB", **MODES[mode]) as machine:
        took = 0
        for _ in range(2):
            start = time.perf_counter()
            handles = [machine.spawn(work, cpu, cpu=cpu) for cpu in range(cpus)]
            for handle in handles:
                handle.result()
            took = time.perf_counter() - start
        return took


def handover_us(span):
    """Two CPUs that take turns all the time: how long one of the turns takes, beyond what the accesses take alone. What each reads
    in between, `span` bytes, pushes the other's out of the host's caches if it is large.
    """
    took = {}
    for quantum in (2_000, 1_000_000_000):
        with Machine(nodes=1, cpus_per_node=2, memory_per_node="256MiB", lockstep=True, quantum_ns=quantum) as machine:
            for _ in range(2):
                before = machine._ask("handovers")
                start = time.perf_counter()
                for handle in [machine.spawn(accesses, cpu, span, cpu=cpu) for cpu in range(2)]:
                    handle.result()
                took[quantum] = time.perf_counter() - start, machine._ask("handovers") - before
    (many_s, many), (few_s, few) = took.values()
    return (many_s - few_s) / (many - few) * 1e6


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for work in (accesses, faults):
        for cpus in (1, 8):
            rates = {mode: [] for mode in MODES}
            for _ in range(rounds):
                for mode in MODES:
                    rates[mode].append(seconds(work, cpus, mode))
            for mode in list(MODES)[1:]:
                ratio = median([free / slow for free, slow in zip(rates["free"], rates[mode])])
                print(
                    f"{work.__name__:9} {cpus} CPUs, quantum {mode:6}: {ratio:.2f} of free, at least {GOALS[cpus, mode]}"
                )
    for span, goal in (SMALL_SPAN, ", at most 6"), (SPAN, ""):
        us = median([handover_us(span) for _ in range(rounds)])
        print(f"a hand-over between two CPUs that read {span >> 10} KiB each: {us:.1f} us{goal}")


if __name__ == "__main__":
    main()
