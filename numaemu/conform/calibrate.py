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
# what took how long on the recorded machines, which were emulated by software; fitted to the times of their steps
COST = {"fault_ns": 6000, "clear_page_ns": 1500, "copy_page_ns": 2000, "syscall_ns": 1500}
# virtio-blk, which counts as a disk that rotates (BLK_FEAT_ROTATIONAL in drivers/block/virtio_blk.c)
DISK = {"read_latency_us": 130, "write_latency_us": 130, "bandwidth": "200MB/s", "rotational": True}
USED = ("FilePages", "AnonPages", "Slab", "PageTables")  # of a node's meminfo
# pages of each node that the recorded kernels used without naming them in meminfo; measured: the least of any first snapshot
# fmt: off
KERNEL_PAGES = {"A": (2020, 2690), "A2": (2020, 1880), "B": (1310, 1110, 1060, 1050), "C": (2590, 2530, 3320),
                "C2": (2590, 2530, 3320)}
# fmt: on
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
        "cost": COST,
        "disk": DISK,
    }
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


def reservations(zones, used):
    """{(node, zone type): (managed, free)} in pages, with `used` pages of each zone left for the scenario itself."""
    found = {}
    for name, zone in zones.items():
        node, _, kind = name.removeprefix("node").partition("/")
        free = min(max(zone["free"] + used.get(name, 0), 0), zone["managed"])
        found[int(node), ZONE_TYPES[kind]] = (zone["managed"], free)
    return found


def cached_pages(meminfo):
    """Pages of files and of swap that a node caches."""
    return (meminfo["FilePages"] - meminfo["Shmem"]) // 4


def other_pages(meminfo):
    """Pages of a node that are neither free nor a task's, nor of a slab: the rest of the kernel's, and those on per-CPU lists."""
    return (meminfo["MemUsed"] - meminfo.get("KernelStack", 0) - sum(meminfo[name] for name in USED)) // 4


def missing_pages(case, ours, reserve):
    """Per zone, how much more memory the scenario must find to have as much free, and as much cached, as recorded.

    What lies in caches could be free as well, and where memory was short which of both it is depends on how much there is.
    There the per-CPU lists have been emptied, too: what lies on them at the snapshot has been the scenario's before.
    """
    linux = first_snapshot(case)
    zones = {name: zone for name, zone in linux["zones"].items() if name in ours["zones"]}
    missing = {name: zone["free"] - ours["zones"][name]["free"] for name, zone in zones.items()}
    reclaimed = any(linux.get("vmstat", {}).get(name, 0) for name in ("pgsteal_kswapd", "pgsteal_direct"))
    kernel = KERNEL_PAGES.get(str(case["machine"].get("id")))
    for node, figures in ours["nodes"].items():
        own = [name for name in zones if name.startswith(f"node{node}/")]
        theirs, mine = linux.get("nodes", {}).get(node, {}).get("meminfo") or {}, figures["meminfo"]
        if not own or not {"MemUsed", "Shmem", *USED} <= theirs.keys():
            continue
        largest = max(own, key=lambda name: zones[name]["managed"])
        missing[largest] += cached_pages(theirs) - cached_pages(mine)
        if reclaimed and kernel:
            reserved = sum(managed - free for (nid, _), (managed, free) in reserve.items() if str(nid) == node)
            missing[largest] += max(other_pages(theirs) - kernel[int(node)], 0) - max(other_pages(mine) - reserved, 0)
    return missing


def calibrate(case, machine):
    """Pages of each zone that the scenario itself uses up to its first snapshot."""
    zones = first_zones(case)
    used = {name: zone["managed"] for name, zone in zones.items()}  # at first: everything is free
    for _ in range(CALIBRATIONS):
        reserve = reservations(zones, used)
        with Machine(machine, reserve=reserve) as emulated:
            snapshots = Replay(emulated, case["steps"]).run(until="snap")["snapshots"]
        missing = missing_pages(case, next(iter(snapshots.values())), reserve)
        used = {
            name: reserve[key][1] + missing[name] - zones[name]["free"]
            for name, key in zip(zones, reserve)
            if name in missing
        }
        if all(abs(pages) <= FREE_TOLERANCE for pages in missing.values()):
            break
    return used


def replay(case):
    """Play a recorded case on a machine of its own: what was observed. Raises NotSupported."""
    check_steps(case["steps"])
    machine, zones = machine_file(case), first_zones(case)
    reserve = reservations(zones, calibrate(case, machine)) if zones else None
    with Machine(machine, reserve=reserve) as emulated:
        return Replay(emulated, case["steps"]).run()
