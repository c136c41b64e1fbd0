"""The machine of a recorded case, and its playing.

The machine is built as the recorded one, its watermarks and what it had in use included: the kernel's own memory is
taken out of every zone at boot, so that as much is free at the first snapshot as was free there. What the scenario
itself uses before that is found by playing it up to there first.
"""

from numaemu.conform.replay import Replay, check_steps
from numaemu.errors import ConfigError
from numaemu.machine import Machine

ZONE_TYPES = {"DMA": 0, "DMA32": 1, "Normal": 2, "HighMem": 3, "Movable": 4}
LOW_MEMORY = {"A2": "256MiB"}  # machines whose RAM above that lies above 4 GiB
# what the firmware of a machine told its kernel (HMAT): ns and MB/s from each node's CPUs to each node's memory. Node 2 has no CPUs.
HMAT = {
    "C2": {
        "latency": {"matrix": [[100, 180, 400], [180, 100, 400], [400, 400, 400]]},
        "bandwidth": {"matrix": [[102400, 51200, 20480], [51200, 102400, 20480], [20480, 20480, 20480]]},
    }
}
# numa_scan_ns: f01 scans three times in three seconds, f06, which is smaller, four times; a scan is put off by 32 times what it took.
# A fault took 7.5 to 19 us there, as the times between snapshots say; the disk is virtio-blk, which says that it rotates.
# What the costs of a shootdown, a fork and a move are divided into elsewhere is part of the costs below.
PARTS = ("shootdown_target", "flush_page", "flush_all", "fork_entry", "fork_table", "migrate_page", "lock_handover")
WHOLE = {"shootdown_ns": 1500, **{f"{part}_ns": 0 for part in PARTS}}
# what took how long on the recorded machines, which were emulated by software; fitted to their fastest recordings
COST = WHOLE | {"fault_ns": 6000, "clear_page_ns": 1500, "copy_page_ns": 2000, "syscall_ns": 1500, "numa_scan_ns": 1935}
DISK = {"read_latency_us": 120, "write_latency_us": 120, "bandwidth": "220MB/s", "rotational": True}
# Memory of C2 has latencies, which the recorded machine did not have: what a fault's own accesses take is taken off its cost.
MACHINE_COST = {"C2": {"fault_ns": 4700}}
USED = ("FilePages", "AnonPages", "Slab", "PageTables")  # of a node's meminfo
# OOM reports say how many pages lie on the CPUs' lists (free_pcp): 1460 are left on machine A in each, 514 to 1310 of them on its
# first node.
# pages that a kernel used without naming them in meminfo, of the first node and of all others together; measured on machine A
KERNEL_PAGES = (790, 670)
CALIBRATIONS = 3  # plays up to the first snapshot
FREE_TOLERANCE = 64  # pages between ours and the recorded zone at the first snapshot


def machine_file(case):
    """The recorded machine in a machine file's shape."""
    recorded = case["machine"]
    machine = {
        "name": str(recorded.get("id", "recorded")),
        "node": [
            {"memory": f"{memory}MiB", "cpus": cpus}
            for memory, cpus in zip(recorded["memory_MiB"], recorded["cpus_per_node"])
        ],
        "distance": {"matrix": recorded["distance"]},
        "cost": COST | MACHINE_COST.get(str(recorded.get("id")), {}),
        "disk": DISK,
        "lockstep": True,  # the same replay each time, on any host
    }
    machine |= HMAT.get(str(machine["name"]), {})
    if machine["name"] in LOW_MEMORY:
        machine["low_memory"] = LOW_MEMORY[machine["name"]]
    zones = first_zones(case)
    if zones:
        machine["sysctl"] = {"vm.min_free_kbytes": min_free_kbytes(zones)}
    return machine


def first_snapshot(case):
    """What was recorded first, or {}."""
    return next(iter(case["observed"].get("snapshots", {}).values()), {})


def first_zones(case):
    """The zones of the recorded first snapshot, or {}."""
    return first_snapshot(case).get("zones", {})


def min_free_kbytes(zones):
    """The value that gives every zone its recorded `min`: min(z) = (kbytes / 4) * managed(z) / sum(managed)."""
    total = sum(zone["managed"] for zone in zones.values())
    low = max(-(-zone["min"] * total // zone["managed"]) for zone in zones.values())
    high = min(((zone["min"] + 1) * total - 1) // zone["managed"] for zone in zones.values())
    if low > high:
        raise ConfigError(
            f"no min_free_kbytes gives the recorded min of zones {', '.join(zones)}: one needs "
            f"{low * 4}, another at most {high * 4 + 3}"
        )
    return low * 4


def zone_key(name):
    """(node, zone type) of "node0/DMA32"."""
    node, _, kind = name.removeprefix("node").partition("/")
    return int(node), ZONE_TYPES[kind]


def reservations(zones, used, held=None):
    """{(node, zone type): (managed, free, held)} in pages: `used` pages of each zone are left for the scenario itself, `held`
    ones lie on the lists of CPUs.
    """
    found = {}
    for name, zone in zones.items():
        free = min(max(zone["free"] + used.get(name, 0), 0), zone["managed"])
        found[zone_key(name)] = (zone["managed"], free, min((held or {}).get(name, 0), zone["managed"] - free))
    return found


def cached_pages(meminfo):
    """Pages of files and of swap that a node caches."""
    return (meminfo["FilePages"] - meminfo["Shmem"]) // 4


def other_pages(meminfo):
    """Pages of a node that are neither free nor a task's, nor of a slab: the rest of the kernel's, and those on CPUs' lists."""
    return (meminfo["MemUsed"] - meminfo.get("KernelStack", 0) - sum(meminfo[name] for name in USED)) // 4


def listed_pages(case, ours, reserve):
    """{node: (theirs, ours)}: pages on the CPUs' lists at the first snapshot, as far as meminfo tells; {} if it does not."""
    found, nodes = {}, first_snapshot(case).get("nodes", {})
    for node, figures in ours["nodes"].items():
        theirs = nodes.get(node, {}).get("meminfo") or {}
        if {"MemUsed", "Shmem", *USED} <= theirs.keys():
            kernel = KERNEL_PAGES[0] if node == "0" else KERNEL_PAGES[1] // max(len(nodes) - 1, 1)
            in_use = sum(
                managed - free - held for (nid, _), (managed, free, held) in reserve.items() if str(nid) == node
            )
            found[node] = max(other_pages(theirs) - kernel, 0), max(other_pages(figures["meminfo"]) - in_use, 0)
    return found


def largest_zone(zones, node):
    """The name of a node's largest zone."""
    return max((name for name in zones if name.startswith(f"node{node}/")), key=lambda name: zones[name]["managed"])


def was_reclaimed(case):
    """True if memory was short before the first snapshot."""
    counted = first_snapshot(case).get("vmstat", {})
    return any(counted.get(name, 0) for name in ("pgsteal_kswapd", "pgsteal_direct"))


def missing_pages(case, ours, reserve):
    """Per zone, how much more memory the scenario must find to have as much free, and as much cached, as recorded.

    What lies in caches could be free as well, and where memory was short which of both it is depends on how much there is.
    There the per-CPU lists have been emptied, too: what lies on them at the snapshot has been the scenario's before.
    """
    linux = first_snapshot(case)
    zones = {name: zone for name, zone in linux["zones"].items() if name in ours["zones"]}
    missing = {name: zone["free"] - ours["zones"][name]["free"] for name, zone in zones.items()}
    for node, (theirs, mine) in listed_pages(case, ours, reserve).items():
        if any(name.startswith(f"node{node}/") for name in zones):
            largest = largest_zone(zones, node)
            missing[largest] += cached_pages(linux["nodes"][node]["meminfo"]) - cached_pages(
                ours["nodes"][node]["meminfo"]
            )
            if was_reclaimed(case):
                missing[largest] += theirs - mine
    return missing


def held_pages(case, ours, reserve):
    """Per zone, how many pages lie on the lists of CPUs from the start: those that the recorded machine had there besides the
    ones that the scenario has left on ours. They stay until direct reclaim collects them (drain_all_pages); where it had
    before the first snapshot they count as the scenario's.
    """
    zones, held = first_zones(case), {}
    for node, (theirs, mine) in listed_pages(case, ours, reserve).items() if not was_reclaimed(case) else ():
        if any(name.startswith(f"node{node}/") for name in zones):
            before = sum(pages for (nid, _), (_, _, pages) in reserve.items() if str(nid) == node)
            held[largest_zone(zones, node)] = max(theirs - max(mine - before, 0), 0)
    return held


def calibrate(case, machine):
    """What a machine must have in use at its start (see `reservations`) to be at the first snapshot as the recorded one was."""
    zones = first_zones(case)
    used, held = {name: zone["managed"] for name, zone in zones.items()}, {}  # at first: everything is free
    for _ in range(CALIBRATIONS):
        reserve = reservations(zones, used, held)
        with Machine(machine, reserve=reserve) as emulated:
            snapshots = Replay(emulated, case["steps"]).run(until="snap")["snapshots"]
        ours = next(iter(snapshots.values()))
        missing = missing_pages(case, ours, reserve)
        used = {name: reserve[zone_key(name)][1] + pages - zones[name]["free"] for name, pages in missing.items()}
        held = held_pages(case, ours, reserve)
        if all(abs(pages) <= FREE_TOLERANCE for pages in missing.values()):
            break
    return reservations(zones, used, held)


def replay(case):
    """Play a recorded case on a machine of its own: what was observed. Raises NotSupported."""
    check_steps(case["steps"])
    machine, zones = machine_file(case), first_zones(case)
    reserve = calibrate(case, machine) if zones else None
    with Machine(machine, reserve=reserve) as emulated:
        return Replay(emulated, case["steps"]).run()
