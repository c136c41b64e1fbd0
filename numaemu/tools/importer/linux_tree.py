"""A Linux system's /proc and /sys: of this host, or below a directory (numaemu export, lstopo --if fsroot, a support archive)."""

import pathlib
import re

from numaemu.errors import ConfigError
from numaemu.spec.machine_file import KNOWN_SYSCTLS, THP_OPTIONS
from numaemu.spec.units import KiB
from numaemu.tools.importer.found import Found, FoundNode

NODES = "sys/devices/system/node"
# settings that a study of memory depends on, as far as they are not sized by the machine
SYSCTLS = (
    "vm.swappiness",
    "vm.zone_reclaim_mode",
    "vm.overcommit_memory",
    "vm.overcommit_ratio",
    "vm.watermark_scale_factor",
)
MOST = 1 << 20  # bytes of a file that are read


def text_of(path):
    """A file's text, or "": it is not there."""
    try:
        with open(path, errors="replace") as file:
            return file.read(MOST)
    except OSError:
        return ""


def cpulist(text):
    """The numbers of "0-3,8"."""
    found = set()
    for part in text.strip().split(",") if text.strip() else ():
        low, _, high = part.partition("-")
        if not low.isdigit() or high and not high.isdigit() or int(high or low) > 1 << 20:
            raise ConfigError(f"a list of CPUs is {text.strip()[:40]!r}")
        found |= set(range(int(low), int(high or low) + 1))
    return found


def total(text):
    """Bytes of MemTotal."""
    match = re.search(r"MemTotal:\s+(\d+) kB", text)
    return int(match[1]) * KiB if match else 0


def read(root, name):
    """A Found."""
    root = pathlib.Path(root)
    places = sorted((root / NODES).glob("node[0-9]*"), key=lambda path: int(path.name[4:]))
    notes = ["MemTotal is what the kernel manages, a little less than there is"]
    if not places:
        cpus = cpulist(text_of(root / "sys/devices/system/cpu/online"))
        memory = total(text_of(root / "proc/meminfo"))
        if not cpus or not memory:
            raise ConfigError(f"{root} has neither {NODES} nor sys/devices/system/cpu/online and proc/meminfo")
        return Found(
            name, [FoundNode(0, memory, cpus)], extra=settings(root), notes=[*notes, "the kernel there knows no nodes"]
        )
    nodes = [
        FoundNode(int(place.name[4:]), total(text_of(place / "meminfo")), cpulist(text_of(place / "cpulist")))
        for place in places
    ]
    rows = [[int(word) for word in text_of(place / "distance").split() if word.isdigit()] for place in places]
    distance = rows if all(len(row) == len(places) for row in rows) else None
    if distance is None:
        notes.append("distances are not complete and are left out")
    latency, bandwidth = (access(places, nodes, f"read_{what}") for what in ("latency", "bandwidth"))
    found = Found(name, nodes, distance, latency, bandwidth, settings(root), notes)
    if any((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        notes.append("caches are left out")
    if siblings := text_of(root / "sys/devices/system/cpu/cpu0/topology/thread_siblings_list").strip():
        if len(cpulist(siblings)) > 1:
            notes.append(f"cores have {len(cpulist(siblings))} threads; each is a CPU of its own")
    return found


def access(places, nodes, name):
    """A figure of access0/initiators: from the nearest CPUs to each memory."""
    rows: list[list[int | None]] = [[None] * len(nodes) for _ in nodes]
    number = {node.number: i for i, node in enumerate(nodes)}
    for column, place in enumerate(places):
        text = text_of(place / "access0/initiators" / name).strip()
        for initiator in (place / "access0/initiators").glob("node[0-9]*"):
            row = number.get(int(initiator.name[4:]))
            if text.isdigit() and int(text) and row is not None and nodes[row].cpus:
                rows[row][column] = int(text)
    return rows if any(ns is not None for row in rows for ns in row) else None


def settings(root):
    """Tables sysctl and kernel of a machine file."""
    sysctl = {}
    for key in SYSCTLS:
        text = text_of(root / "proc/sys" / key.replace(".", "/")).strip()
        least, most = KNOWN_SYSCTLS[key]
        if text.isdigit() and least <= int(text) <= most:
            sysctl[key] = int(text)
    chosen = re.search(r"\[(\w+)\]", text_of(root / "sys/kernel/mm/transparent_hugepage/enabled"))
    extra = {"sysctl": sysctl} if sysctl else {}
    return extra | ({"kernel": {"transparent_hugepage": chosen[1]}} if chosen and chosen[1] in THP_OPTIONS else {})
