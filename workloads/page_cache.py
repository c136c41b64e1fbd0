"""Files behind a cache: when does a program wait for the disk, and how often does the disk see what it wrote?

A file is read cold and warm, in order and at random, then a small one is rewritten many times. Look for:
  - read in order, the disk's latency is paid once for 128 kB that were read ahead; at random, for every page;
  - the second reading costs a copy, and the disk nothing;
  - pages written a hundred times reach the disk once, when fsync or the flusher comes;
  - what is dropped is clean: nothing is lost.
"""

import numaemu

LOCKSTEP = True
PAGES, REWRITTEN, TIMES = 2048, 16, 100  # pages of the file that is read, of the one that is rewritten; how often
PATH, NOTES = "/mnt/data", "/mnt/notes"
STEP = 1237  # pages from one random read to the next: all once, none beside the last
COUNTED = ("pgpgin", "pgpgout", "nr_dirtied", "nr_written")


def timed(task, function):
    """Emulated ms that a function takes."""
    before = task.clock_ns
    function(task)
    return round((task.clock_ns - before) / 1e6, 2)


def in_order(task):
    """read(2) of 64 kB at a time."""
    with task.open(PATH) as file:
        file.read_through()


def at_random(task):
    """pread(2) of every page once, in no order."""
    with task.open(PATH) as file:
        for i in range(PAGES):
            file.pread(4096, i * STEP % PAGES << 12)


def rewrite(task):
    with task.open(NOTES, numaemu.O_RDWR | numaemu.O_CREAT) as file:
        for i in range(TIMES):
            file.pwrite(bytes([i]) * (REWRITTEN << 12), 0)
        file.fsync()


def main(machine):
    machine.create_file(PATH, PAGES << 12)
    task, rows = machine.task(cpu=0, name="reader"), {}

    def row(name, function):
        before = machine.stats()["vmstat"]
        ms, after = machine.run(timed, function), machine.stats()["vmstat"]
        rows[name] = {"emulated ms": ms, **{counter: after[counter] - before[counter] for counter in COUNTED}}

    row("cold, in order", in_order)
    row("warm, in order", in_order)
    machine.write("/proc/sys/vm/drop_caches", 1)
    row("cold, at random", at_random)
    row("warm, at random", at_random)
    row(f"{TIMES} times {REWRITTEN} pages", rewrite)
    machine.write("/proc/sys/vm/drop_caches", 1)
    with task.open(NOTES) as file:
        intact = file.read() == bytes([TIMES - 1]) * (REWRITTEN << 12)
    task.exit()
    print("read back from the disk:", "intact" if intact else "lost")
    return rows
