"""Schedules a second of the interpreted build's search for faults (tests/schedules.py): two CPUs with 200 operations each.

    python benchmarks/schedules.py [schedules]

The operations are loads, stores, and calls that change the address space which both share, as tests of schedules have them.
"""

import os
import pathlib
import random
import sys
import time

OPERATIONS, WANTED = 200, 5.0
PAGES, PAGE = 8, 4096


def threads(stage):
    """Two threads of a process, and pages of their own for each."""
    task = stage.task(cpu=0)
    thread = task.clone(cpu=1)
    area = task.mmap(2 * PAGES * PAGE).touch()
    return {"first": steps(task, area.addr, 1), "second": steps(thread, area.addr + PAGES * PAGE, 2)}


def steps(task, addr, seed):
    """A context: so many operations on its pages."""

    def run():
        draw = random.Random(seed)
        for _ in range(OPERATIONS):
            at = addr + draw.randrange(PAGES) * PAGE
            kind = draw.random()
            if kind < 0.45:
                task.load(at)
            elif kind < 0.9:
                task.store(at, seed)
            elif kind < 0.95:
                task.madvise(at, PAGE, 4)  # MADV_DONTNEED
            else:
                task.mprotect(at, PAGE, 1)
                task.mprotect(at, PAGE, 3)

    return run


def main(schedules):
    """Print how many schedules a second one core goes through."""
    from schedules import Exploration, Stage

    stage = Stage(nodes=1, cpus_per_node=2, memory_per_node="4MiB")
    contexts = threads(stage)
    exploration = Exploration(stage, lambda stage: (contexts, None))
    exploration.seeds(range(2), 3)
    before, begin = exploration.runs, time.process_time()
    exploration.seeds(range(2, 2 + schedules), 3)
    seconds, schedules = time.process_time() - begin, exploration.runs - before
    stage.close()
    print(f"{schedules / seconds:.2f} schedules of 2 x {OPERATIONS} operations a second and core ({WANTED} wanted)")


if __name__ == "__main__":
    if os.environ.get("NUMBA_DISABLE_JIT") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "NUMBA_DISABLE_JIT": "1"})
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
