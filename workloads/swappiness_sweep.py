"""What goes when memory is short, pages of files or the tasks' own? `vm.swappiness` from 0 to 200 says.

Each time a file is read twice and as much memory is filled, both a third of what there is; then another task needs half of
it all.
Look for: the share of the tasks' own pages grows from none at 0 to nearly all at 200.
  - at 0 only the file's pages go, and at 200 only the tasks' own, as long as there are any;
  - in between the share of the tasks' own pages grows. At 100 both are scanned alike; still more of the file goes, since
    memory that was written after it is not yet the coldest;
  - what was dropped or swapped and is used again has to be read: the last two columns, in pages.
"""

from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE
from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="128MiB", quantum_ns=1000)
STEPS = (0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200)
PATH = "/mnt/data"
COUNTED = ("pgsteal_anon", "pgsteal_file", "pswpin", "workingset_refault_file")


def counters(machine):
    counted = machine.stats()["vmstat"]
    return {name: counted[name] for name in COUNTED}


def fill(task, pages):
    """Memory of which every page has been written."""
    area = task.mmap(pages << 12, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    task.store(area.pages(), area.pages())
    return area


def pressure(machine, free):
    """One round: what was reclaimed when another task came, and what had to come back for the first one."""
    owner, other = machine.task(name="owner"), machine.task(name="other")
    with owner.open(PATH) as file:
        for _ in range(2):
            file.seek(0)
            file.read_through()
        area = fill(owner, free // 3)
        before = counters(machine)
        fill(other, free // 2)
        machine.settle()
        between = counters(machine)
        other.exit()
        owner.load(area.pages())
        file.seek(0)
        file.read_through()
    after = counters(machine)
    owner.exit()
    machine.write("/proc/sys/vm/drop_caches", 1)
    gone = {name: between[name] - before[name] for name in COUNTED[:2]}
    return gone | {name: after[name] - between[name] for name in COUNTED[2:]}


def main(machine):
    machine.swapon("1GiB")
    free = machine.stats()["nodes"][0]["meminfo"]["MemFree"] // 4
    machine.create_file(PATH, free // 3 << 12)
    rows = {}
    for swappiness in STEPS:
        machine.write("/proc/sys/vm/swappiness", swappiness)
        round_ = pressure(machine, free)
        anon, file = round_["pgsteal_anon"], round_["pgsteal_file"]
        share = anon / max(anon + file, 1)
        rows[f"swappiness {swappiness}"] = {
            "own": anon,
            "of files": file,
            "own share": round(share, 2),
            "swapped in": round_["pswpin"],
            "file refaults": round_["workingset_refault_file"],
        }
    print(
        chart.divided(
            "The pages that were reclaimed",
            {name: {"the tasks' own": row["own"], "of files": row["of files"]} for name, row in rows.items()},
            {name: f"{row['own share']:.0%} own" for name, row in rows.items()},
            whole=True,
        )
    )
    return rows
