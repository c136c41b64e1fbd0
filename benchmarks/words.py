"""How many one-word operations and reads of small files a second: from the driver, inside a task's function, through a mount.

    python benchmarks/words.py [rounds, 7]

Each figure is the median of so many rounds; the best one is beside it, as what else the host does only adds. Inside a task's function
the time is that of its thread on the host's CPU.
"""

import pathlib
import sys
import tempfile
import time

from common import median

from numaemu import Machine

DRIVER, INSIDE_US, READ, FUSE = 10_000, 3.0, 3_000, 300  # wanted: a second, us for each, a second, a second
FILES = ("/proc/uptime", "/proc/loadavg", "/proc/sys/vm/swappiness", "/proc/buddyinfo", "/proc/meminfo", "/proc/vmstat")


def seconds(function, times, rounds, clock=time.perf_counter):
    """Seconds of one call: (median, least) of so many rounds."""
    function()
    took = []
    for _ in range(rounds):
        began = clock()
        for _ in range(times):
            function()
        took.append((clock() - began) / times)
    return median(took), min(took)


def words(task):
    """(name, function) of each operation of one word."""
    area = task.mmap("64KiB").touch()
    array, address = area.array(), [area.addr]

    def store():
        array[0] = 5

    return [
        ("task.load([address])", lambda: task.load(address)),
        ("task.store([address], 7)", lambda: task.store(address, 7)),
        ("array[0]", lambda: array[0]),
        ("array[0] = 5", store),
    ]


def inside(task, rounds):
    return [(name, seconds(function, 2000, rounds, time.thread_time)) for name, function in words(task)]


def rates(what, pair, wanted):
    middle, best = (1 / took for took in pair)
    print(
        f"{what:56} {middle:10,.0f} /s (best {best:10,.0f}) {wanted:8,} wanted {'' if middle >= wanted else ' MISSED'}"
    )


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with Machine() as machine:
        task = machine.task()
        for name, function in words(task):
            rates(f"driver: {name}", seconds(function, 500, rounds), DRIVER)
        for name, (middle, best) in machine.run(inside, rounds):
            middle, best = middle * 1e6, best * 1e6
            missed = "" if middle <= INSIDE_US else " MISSED"
            print(f"function: {name:46} {middle:10.2f} us (best {best:10.2f}) {INSIDE_US:8} wanted {missed}")
        for path in FILES:
            rates(f"machine.read({path})", seconds(lambda path=path: machine.read(path), 300, rounds), READ)
        try:
            with tempfile.TemporaryDirectory() as directory, machine.mount(directory):
                file = pathlib.Path(directory, "proc/uptime")
                rates("through FUSE: /proc/uptime", seconds(file.read_text, 100, rounds), FUSE)
        except Exception as error:
            print(f"through FUSE: not measured: {error}")


if __name__ == "__main__":
    main()
