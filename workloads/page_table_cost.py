"""What page tables cost: the same process of 8 MiB in every format of page tables, against one flat table.

The process has 4 MiB at the bottom of its address space and 4 MiB of stack at the top, all of it in use. A machine of each
format is started for it.
Look for: real page tables need some tens of KiB, while one flat table grows with the address space beyond any memory.
  - 32 bits: three tables, 12 KiB: the directory, and one table of 1024 entries for each 4 MiB;
  - one flat table would have an entry for every page there could be: 4 MiB on 32 bits, 512 GiB on 48;
  - more levels: more tables on the way down to so little memory, and one more load for each TLB miss;
  - VmPTE counts the tables below the top one, as Linux does; unmapping gives them all back (`after unmapping` is 0).
"""

from numaemu import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE, Machine
from numaemu.spec.formats import FORMATS, LEVEL_NAMES
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = "uma"
PART = 4 << 20  # bytes at the bottom, and at the top
BOTTOM = 0x0800_0000  # where programs of 32 bits begin, nearly
MISSES = 512


def kilobytes(machine, path, name):
    """A figure of a file of /proc."""
    line = next(line for line in machine.read(path).splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def readable(nbytes):
    """Bytes in a unit that fits."""
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        nbytes /= 1024
        if nbytes < 1024:
            return f"{nbytes:g} {unit}"
    return f"{nbytes / 1024:g} PiB"


def process(machine, paging):
    """The row of one format."""
    figures, task = FORMATS[paging], machine.task(cpu=0, name="8 MiB")
    tables = kilobytes(machine, "/proc/meminfo", "PageTables")
    fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    stack_top = (figures["stack_top"] & -PART) - PART
    parts = [task.mmap(PART, PROT_READ | PROT_WRITE, fixed, addr=addr).touch() for addr in (BOTTOM, stack_top - PART)]
    pte = kilobytes(machine, f"/proc/{task.pid}/status", "VmPTE")
    grown = kilobytes(machine, "/proc/meminfo", "PageTables") - tables
    before = task.counters()
    for part in parts:
        task.touch(part.addr, part.nbytes, write=False)
    walks, loads = (task.counters()[name] - before[name] for name in ("page_walks", "walk_loads"))
    for part in parts:
        part.munmap()
    task.exit()
    left = kilobytes(machine, "/proc/meminfo", "PageTables") - tables
    levels = len(LEVEL_NAMES[paging])
    flat = 1 << levels * figures["table_bits"] + figures["entry_shift"]
    return {
        "levels": levels,
        "tables": pte // 4 + 1,
        "tables KiB": pte + 4,
        "VmPTE kB": pte,
        "PageTables kB": grown,
        "after unmapping kB": left,
        "loads per TLB miss": loads / walks,
        "one flat table": readable(flat),
        "flat bytes": flat,
    }


def picture(rows):
    return chart.bars(
        "Memory for the page tables of a process of 8 MiB",
        {
            f"{name}, {row['levels']} levels": {
                "the format's tables": row["tables KiB"] * 1024,
                "one flat table": row["flat bytes"],
            }
            for name, row in rows.items()
        },
        form=readable,
        log=True,
    )


def main(machine):
    rows = {}
    for paging in ("x86-32", "arm64-39", "arm64-48", "x86-64-4level", "x86-64-5level"):
        with Machine(
            nodes=1,
            cpus_per_node=1,
            memory_per_node="64MiB",
            paging=paging,
            l1={"entries": 16, "ways": 4},
            l2={"entries": 64, "ways": 4},
        ) as small:
            rows[paging] = process(small, paging)
    print(picture(rows))
    return {name: {key: value for key, value in row.items() if key != "flat bytes"} for name, row in rows.items()}
