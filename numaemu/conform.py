"""python -m numaemu conform CASE.json: play what was recorded on a real Linux, and say whether the emulator agrees.

The machine is built as the recorded one, its watermarks and what it had in use included: the kernel's own memory is
taken out of every zone at boot, so that as much is free at the first snapshot as was free there. What the scenario
itself uses before that is found by playing it up to there first.
"""
import json
import pathlib

from numaemu import judge
from numaemu.case_file import read_case
from numaemu.errors import ConfigError
from numaemu.machine import Machine
from numaemu.replay import NotSupported, Replay, check_steps

ZONE_TYPES = {"DMA": 0, "DMA32": 1, "Normal": 2, "HighMem": 3, "Movable": 4}
LOW_MEMORY = {"A2": "256MiB"}    # machines whose RAM above that lies above 4 GiB
CALIBRATIONS = 2                 # plays up to the first snapshot
FREE_TOLERANCE = 64              # pages between ours and the recorded zone at the first snapshot
SHOWN = 5                        # disagreements of one group
AGREES, DISAGREES, NOT_SUPPORTED = 0, 1, 3


# -- the machine ---------------------------------------------------------------------------------------------

def machine_file(case):
    """The recorded machine in a machine file's shape."""
    recorded = case["machine"]
    machine = {
        "name": str(recorded.get("id", "recorded")),
        "node": [{"memory": f"{memory}MiB", "cpus": cpus}
                 for memory, cpus in zip(recorded["memory_MiB"], recorded["cpus_per_node"])],
        "distance": {"matrix": recorded["distance"]}}
    if machine["name"] in LOW_MEMORY:
        machine["low_memory"] = LOW_MEMORY[machine["name"]]
    zones = first_zones(case)
    if zones:
        machine["sysctl"] = {"vm.min_free_kbytes": min_free_kbytes(zones)}
    return machine


def first_zones(case):
    """The zones of the recorded first snapshot, or {}."""
    return next(iter(case["observed"].get("snapshots", {}).values()), {}).get("zones", {})


def min_free_kbytes(zones):
    """The value that gives every zone its recorded `min`: min(z) = (kbytes / 4) * managed(z) / sum(managed)."""
    total = sum(zone["managed"] for zone in zones.values())
    low = max(-(-zone["min"] * total // zone["managed"]) for zone in zones.values())
    high = min(((zone["min"] + 1) * total - 1) // zone["managed"] for zone in zones.values())
    if low > high:
        raise ConfigError(f"no min_free_kbytes gives the recorded min of zones {', '.join(zones)}: one needs "
                          f"{low * 4}, another at most {high * 4 + 3}")
    return low * 4


def reservations(zones, used):
    """{(node, zone type): (managed, free)} in pages, with `used` pages of each zone left for the scenario itself."""
    found = {}
    for name, zone in zones.items():
        node, _, kind = name.removeprefix("node").partition("/")
        free = min(max(zone["free"] + used.get(name, 0), 0), zone["managed"])
        found[int(node), ZONE_TYPES[kind]] = (zone["managed"], free)
    return found


def calibrate(case, machine):
    """Pages of each zone that the scenario itself uses up to its first snapshot."""
    zones = first_zones(case)
    used = {name: zone["managed"] for name, zone in zones.items()}       # at first: everything is free
    for _ in range(CALIBRATIONS):
        reserve = reservations(zones, used)
        with Machine(machine, reserve=reserve) as emulated:
            snapshots = Replay(emulated, case["steps"]).run(until="snap")["snapshots"]
        ours = next(iter(snapshots.values()))["zones"]
        missing = {name: zone["free"] - ours[name]["free"] for name, zone in zones.items() if name in ours}
        used = {name: reserve[key][1] + missing[name] - zones[name]["free"]
                for name, key in zip(zones, reserve) if name in missing}
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


# -- the report ----------------------------------------------------------------------------------------------

def table(verdict):
    """A line for each group with checks, then its first disagreements."""
    lines = [f"{'group':<12}{'checks':>8}{'agree':>8}{'differ':>8}"]
    for group in judge.GROUPS:
        checks, failures = verdict.checks[group], verdict.failures[group]
        if checks:
            lines.append(f"{group:<12}{checks:>8}{checks - len(failures):>8}{len(failures):>8}")
            lines += [f"    {failure}" for failure in failures[:SHOWN]]
            if len(failures) > SHOWN:
                lines.append(f"    … and {len(failures) - SHOWN} more")
    return "\n".join(lines)


def main(case_path, json_path=None):
    """Play a case file and print how it compares; the exit status: 0 agrees, 1 disagrees, 3 not supported."""
    case = read_case(case_path)
    name = case.get("name", pathlib.Path(case_path).stem)
    try:
        observed = replay(case)
    except NotSupported as error:
        print(f"not supported: {error.op}")
        write_json(json_path, {"not_supported": error.op})
        return NOT_SUPPORTED
    write_json(json_path, {"observed": observed})
    verdict = judge.judge(case, observed)
    print(table(verdict))
    print(f"{name}: {'agrees' if verdict.agrees else 'disagrees'} with {case.get('kernel', 'Linux')}")
    return AGREES if verdict.agrees else DISAGREES


def write_json(path, answer):
    if path:
        pathlib.Path(path).write_text(json.dumps(answer, indent=1) + "\n", "utf-8")
