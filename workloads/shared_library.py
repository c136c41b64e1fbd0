"""One library in many tasks: one copy in memory, counted whole in every RSS and once, by shares, in all PSS together.

Tasks on all CPUs map the same library, code (r-x) and data (rw-, private), and use all of it. Look for:
  - the pages in the cache are those of one library, however many tasks map it, and the disk is read once;
  - the sum of RSS grows with every task, the sum of PSS stays what is really in memory: that is what PSS is for;
  - a task that writes to its data gets a copy of that page alone: its own, dirty, in its PSS in full; all else stays
    shared, and the file on the disk stays as it was;
  - the library leaves memory no earlier than with its last user, and not even then: it stays in the page cache.
"""

from numaemu import MAP_FIXED, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE

CODE, DATA = 1 << 20, 64 << 10  # bytes of the library: its code, behind it its data
WRITTEN = 3  # pages of the data that one task writes
LIBRARY = "/lib/libshared.so"
KB = ("Rss", "Pss", "Pss_Anon", "Pss_File", "Shared_Clean", "Private_Dirty")


def map_library(task):
    """What ld.so does: room for all of it at once, then its data over its end. (code, data)"""
    with task.open(LIBRARY) as file:
        code = task.mmap(CODE + DATA, PROT_READ | PROT_EXEC, MAP_PRIVATE, file=file)
        where = code.addr + CODE
        return code, task.mmap(
            DATA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file=file, offset=CODE, addr=where
        )


def use(task, code, data):
    task.touch(code.addr, CODE, write=False)
    task.touch(data.addr, DATA, write=False)


def kilobytes(machine, task):
    """smaps_rollup of a task."""
    lines = machine.read(f"/proc/{task.pid}/smaps_rollup").splitlines()[1:]
    return {name: int(text.split()[0]) for name, text in (line.split(":") for line in lines)}


def row(machine, tasks):
    """Sums over the tasks, and what is really there, in kB."""
    sums = {f"sum of {name}": sum(kilobytes(machine, task)[name] for task in tasks) for name in ("Rss", "Pss")}
    cached, stat = machine.files()[LIBRARY]["cached"], machine.stats()["vmstat"]
    return {
        "tasks": len(tasks),
        **sums,
        "library in cache": 4 * cached,
        "anonymous": 4 * stat["nr_anon_pages"],
        "read from disk": stat["pgpgin"],
    }


def main(machine):
    machine.create_file(LIBRARY, CODE + DATA)
    tasks, mapped, table = [], [], {}
    for count in (1, 2, 4, 8):
        while len(tasks) < count:
            tasks.append(machine.task(cpu=machine.cpus[len(tasks) % len(machine.cpus)].id, name=f"user{len(tasks)}"))
            mapped.append(map_library(tasks[-1]))
            use(tasks[-1], *mapped[-1])
        table[f"{count} use it"] = row(machine, tasks)
    before = kilobytes(machine, tasks[0])
    tasks[0].touch(mapped[0][1].addr, WRITTEN << 12)
    table[f"one writes {WRITTEN} pages"] = row(machine, tasks)
    print("kB of", "".join(f"{name:>15}" for name in KB))
    writer, other = (kilobytes(machine, task) for task in tasks[:2])
    for title, figures in (("before", before), ("writer", writer), ("other", other)):
        print(f"{title:6}", "".join(f"{figures[name]:15}" for name in KB))
    for task in tasks:
        task.exit()
    table["nobody uses it"] = row(machine, [])
    return table
