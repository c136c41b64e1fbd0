"""What a replay looks at: snapshots of a machine, differences between them, where the pages of a range are.

The shapes are those of the recordings: zones by "node0/DMA32", nodes by number as text, regions with run-length codes.
"""

import errno

import numpy as np

PAGE = 4096  # bytes
QUERY_PAGES = 1 << 16  # pages asked for by one move_pages call
RUNS_KEPT = 96  # of a run-length code
FNV_BASIS, FNV_PRIME = 1469598103934665603, 0x100000001B3  # the basis as the recording program had it
ABSENT, EFAULT = -errno.ENOENT, -errno.EFAULT
SWAPPED = -1000  # ours: absent, and on swap as pagemap tells
PM_SWAP = np.uint64(1 << 62)
PLACES = {ABSENT: "absent", EFAULT: "efault", SWAPPED: "swapped"}


def huge_pages(machine, node):
    """A node's part of the pool of huge pages, as sysfs shows it; {} on a machine with another size of them."""
    directory = f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB"
    try:
        return {name: int(machine.read(f"{directory}/{name}")) for name in machine.listdir(directory)}
    except FileNotFoundError:
        return {}


def snapshot(machine):
    """{zones, nodes: {n: numastat}, vmstat} of a running machine."""
    stats = machine.stats()
    zones = {
        f"node{node['node']}/{name}": figures for node in stats["nodes"] for name, figures in node["zones"].items()
    }
    nodes = {
        str(node["node"]): {
            "numastat": node["numastat"],
            "meminfo": node["meminfo"],
            "hugepages_2M": huge_pages(machine, node["node"]),
        }
        for node in stats["nodes"]
    }
    return {"zones": zones, "nodes": nodes, "vmstat": stats["vmstat"]}


def difference(before, after):
    """{counter: after - before} where it is not 0."""
    changes = {name: after[name] - before.get(name, 0) for name in after}
    return {name: change for name, change in changes.items() if change}


def delta(before, after):
    """What changed between two snapshots."""
    return {
        "vmstat": difference(before["vmstat"], after["vmstat"]),
        "nodes": {
            node: {"numastat": difference(before["nodes"][node]["numastat"], figures["numastat"])}
            for node, figures in after["nodes"].items()
        },
        "free_pages": {
            zone: figures["free"] - before["zones"][zone]["free"] for zone, figures in after["zones"].items()
        },
    }


def deltas(snapshots):
    """Between neighbours ("a->b"), then over everything ("first=>last"), in the order in which they were taken."""
    labels = list(snapshots)
    found = {f"{a}->{b}": delta(snapshots[a], snapshots[b]) for a, b in zip(labels, labels[1:])}
    if len(labels) > 1:
        found[f"{labels[0]}=>{labels[-1]}"] = delta(snapshots[labels[0]], snapshots[labels[-1]])
    return found


def page_status(machine, task, address, nbytes):
    """Per page of a range its node, SWAPPED, or -errno: what move_pages(2) answers when it is only asked, and pagemap."""
    addresses = np.arange(address, address + nbytes, PAGE, dtype=np.uint64)
    parts = [task.move_pages(addresses[i : i + QUERY_PAGES]) for i in range(0, len(addresses), QUERY_PAGES)]
    status = np.concatenate(parts)
    status[(status == ABSENT) & (machine.pagemap(task.pid, address, nbytes) & PM_SWAP != 0)] = SWAPPED
    return status


def run_length(status):
    """[(value, how often in a row)]"""
    borders = np.flatnonzero(np.diff(status)) + 1
    starts = np.concatenate(([0], borders))
    lengths = np.diff(np.concatenate((starts, [len(status)])))
    return list(zip(status[starts].tolist(), lengths.tolist()))


def sequence_hash(status):
    """FNV-1a over the pages' statuses as 32-bit words, in hexadecimal."""
    value = FNV_BASIS
    for word in status.astype(np.uint32).tolist():
        value = (value ^ word) * FNV_PRIME & (1 << 64) - 1
    return f"{value:x}"


def region(machine, task, address, nbytes):
    """A region as a dump shows it: pages per place, and their order."""
    status = page_status(machine, task, address, nbytes)
    pages = {f"node{node}": int(np.count_nonzero(status == node)) for node in range(len(machine.nodes))}
    on_nodes = sum(pages.values())
    pages |= {**{name: int(np.count_nonzero(status == value)) for value, name in PLACES.items()}}
    pages |= {"other": len(status) - sum(pages.values()), "present": on_nodes + pages["efault"]}
    runs = [[PLACES.get(value, value), length] for value, length in run_length(status)]
    return {
        "addr": f"{address:#x}",
        "length": nbytes,
        "pages": pages,
        "node_runs": runs[:RUNS_KEPT],
        "node_runs_total": len(runs),
        "node_sequence_hash": sequence_hash(status),
    }


def oom_events(log):
    """The OOM killer's reports in the kernel's log: per kill who asked, the summary, the victim."""
    events = []
    for line in log.splitlines():
        if "invoked oom-killer" in line:
            events.append({"invoked": line})
        elif line.startswith("oom-kill:"):
            events[-1]["summary"] = line
        elif line.startswith("Out of memory: Killed"):
            events[-1]["killed"] = line
    return events


def task_files(machine, pid):
    """What /proc/<pid> says, as far as the machine has it."""
    found = {}
    for name, parse in (
        ("maps", str.splitlines),
        ("status", _status),
        ("smaps_rollup", _status),
        ("oom_score", int),
        ("oom_score_adj", int),
    ):
        try:
            found[name] = parse(machine.read(f"/proc/{pid}/{name}"))
        except FileNotFoundError:
            pass
    return found


def _status(text):
    """/proc/<pid>/status: numbers (kB) as numbers, the rest as text."""
    values = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        values[name] = int(words[0]) if words and words[0].isdigit() else " ".join(words)
    return values
