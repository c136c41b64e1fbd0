"""`numaemu run workloads/first_touch.py`: seconds with everything compiled, and where nothing has been compiled yet.

    python benchmarks/start.py [rounds]

The second is a first start without its installation, which `time make run` in a fresh clone includes.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from common import median, repeats, report

ROOT = pathlib.Path(__file__).parent.parent
LIMIT_S, FIRST_LIMIT_S = 1.5, 45.0


def seconds(**environment):
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "numaemu", "run", "workloads/first_touch.py"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    return time.perf_counter() - start


def first():
    """In an empty directory for compiled code; the start after it, too, which has what this one needed."""
    with tempfile.TemporaryDirectory() as place:
        return seconds(NUMBA_CACHE_DIR=place), seconds(NUMBA_CACHE_DIR=place)


def main():
    seconds()  # the host's caches
    cached = median(seconds() for _ in range(repeats()))
    fresh, second = (median(column) for column in zip(*(first() for _ in range(repeats()))))
    rows = [
        ("everything compiled", cached, LIMIT_S),
        ("nothing compiled", fresh, FIRST_LIMIT_S),
        ("the start after that", second, LIMIT_S),
    ]
    report([(f"{what}: seconds (limit {limit})", took, limit, took / limit, 1.0, True) for what, took, limit in rows])


if __name__ == "__main__":
    main()
