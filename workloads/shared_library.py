"""One library in many tasks: one copy in memory, counted whole in every RSS and once, by shares, in all PSS together.

Tasks on all CPUs map the same library, code (r-x) and data (rw-, private), and use all of it.
Look for: the bars of RSS grow with every task, while the bars of PSS stay as long as what is really in memory.
  - the pages in the cache are those of one library, however many tasks map it, and the disk is read once;
  - a task that writes to its data gets a copy of each page that it writes to, which is then its own, dirty, and in its PSS in
    full; all else stays shared, and the file on the disk stays as it was;
  - the library stays in the page cache even when its last user has exited.
"""

from numaemu import MAP_FIXED, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE
from numaemu.tools import chart
from numaemu.tools.memmap import ABSENT, FILE, OWN, areas

LOCKSTEP = True
CODE, DATA = 1 << 20, 64 << 10  # bytes of the library: its code, behind it its data
WRITTEN = 3  # pages of the data that one task writes
LIBRARY = "/lib/libshared.so"
FIGURES = {  # of smaps_rollup
    "Rss": "pages mapped, RSS",
    "Pss": "its share of them, PSS",
    "Pss_Anon": "of PSS: its own pages",
    "Pss_File": "of PSS: the file's pages",
    "Shared_Clean": "also mapped by others, clean",
    "Private_Dirty": "mapped by it alone, dirty",
}


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
    sums = {
        f"sum of {name} kB": sum(kilobytes(machine, task)[key] for task in tasks)
        for name, key in (("RSS", "Rss"), ("PSS", "Pss"))
    }
    cached, stat = machine.files()[LIBRARY]["cached"], machine.stats()["vmstat"]
    return {
        "tasks": len(tasks),
        **sums,
        "library in cache kB": 4 * cached,
        "anonymous kB": 4 * stat["nr_anon_pages"],
        "read from disk kB": stat["pgpgin"],
    }


def data_pages(machine, task, data):
    """A sign for each page of a task's mapping of the data."""
    return "".join(next(area for area in areas(machine, task.pid) if area.start == data.addr).kinds)


def picture(table, data):
    """What the tasks seem to have and have; and the pages of the data of the task that wrote and of another one."""
    rows = {
        name: {"sum of all RSS": figures["sum of RSS kB"], "sum of all PSS": figures["sum of PSS kB"]}
        for name, figures in table.items()
        if figures["tasks"]
    }
    title = f"The pages of the data afterwards: {OWN} the task's own copy, {FILE} the library's in the cache, {ABSENT} not there"
    return (
        chart.bars("Memory of all tasks together, as RSS and as PSS count it", rows, "kB")
        + "\n\n"
        + chart.strips(title, data)
    )


def main(machine):
    machine.create_file(LIBRARY, CODE + DATA)
    tasks, mapped, table = [], [], {}
    for count in (1, 2, 4, 8):
        while len(tasks) < count:
            tasks.append(machine.task(cpu=machine.cpus[len(tasks) % len(machine.cpus)].id, name=f"user{len(tasks)}"))
            mapped.append(map_library(tasks[-1]))
            use(tasks[-1], *mapped[-1])
        table[f"{count} {'uses' if count == 1 else 'use'} it"] = row(machine, tasks)
    moments = {"any, before": kilobytes(machine, tasks[0])}
    tasks[0].touch(mapped[0][1].addr, WRITTEN << 12)
    table[f"one writes {WRITTEN} pages"] = row(machine, tasks)
    data = {}
    for name, which in (("the writer", 0), ("another one", 1)):
        moments[name] = kilobytes(machine, tasks[which])
        data[name] = data_pages(machine, tasks[which], mapped[which][1])
    print(picture(table, data))
    for task in tasks:
        task.exit()
    table["no task uses it"] = row(machine, [])
    one = {text: {name: figures[key] for name, figures in moments.items()} for key, text in FIGURES.items()}
    return {"all tasks": table, "one task's smaps, kB": one}
