"""A machine of 1 TiB, 8 nodes and 64 CPUs: boot, one touched page per node, shutdown; seconds and memory.

python benchmarks/boot.py
"""

import time

import psutil
from common import report

from numaemu import Machine


def touch_one(task):
    task.mmap(4096).touch()
    return task.node


def resident(machine):
    """GiB resident in all processes of the machine together (shared pages counted once: PSS)."""
    return sum(psutil.Process(pid).memory_full_info().pss for pid in machine.processes.values()) / 2**30


def main():
    Machine(nodes=1, cpus_per_node=1, memory_per_node="64MiB").close()  # compiled code is cached and loaded
    start = time.perf_counter()
    with Machine(nodes=8, cpus_per_node=8, memory_per_node="128GiB") as machine:
        for node in machine.nodes:
            assert machine.run(touch_one, cpu=node.cpus[0]) == node.id
        ready = time.perf_counter() - start
        gib = resident(machine)
        paused = time.perf_counter() - start - ready
    seconds = time.perf_counter() - start - paused
    report(
        [
            ("1 TiB, 8 nodes, 64 CPUs: seconds (limit 5)", seconds, 5.0, seconds / 5.0, 1.0, True),
            ("resident in all processes, GiB (limit 1.5)", gib, 1.5, gib / 1.5, 1.0, True),
        ]
    )


if __name__ == "__main__":
    main()
