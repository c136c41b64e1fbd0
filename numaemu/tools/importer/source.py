"""From a file, stdin, a directory or this host to a machine: finds out what it is."""

import os
import sys

from numaemu.errors import ConfigError
from numaemu.spec.topology import Topology, load_topology
from numaemu.tools.importer import hwloc, linux_tree, texts
from numaemu.tools.importer.found import machine_dict

MOST_BYTES = 64 << 20  # of a description; the largest of hwloc's own tests has 3 MB
KINDS = "hwloc's XML, numactl --hardware, lscpu -p, mlc, or a directory with proc and sys"


def read_text(path):
    """The text of a file or of stdin (-)."""
    try:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: has more than {MOST_BYTES >> 20} MiB, which no description of a machine has")
    if b"\0" in data:
        raise ConfigError(f"{path}: is binary, must be one of {KINDS}")
    return data.decode("utf-8", errors="replace")


def reader_of(text):
    """The function that reads a text, or None."""
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        return hwloc.read
    if texts.LSCPU_HEADER.search(text):
        return texts.lscpu
    if texts.NUMACTL.search(text):
        return texts.numactl
    if texts.MLC_NODES.search(text):
        return texts.mlc
    return None


def find(source, name=None):
    """A Found of whatever `source` names."""
    if source == "this":
        return linux_tree.read("/", name or "this")
    if os.path.isdir(source):
        return linux_tree.read(source, name or os.path.basename(os.path.abspath(source)))
    text = read_text(source)
    read = reader_of(text)
    if read is None:
        raise ConfigError(f"{source}: is none of {KINDS}")
    stem = "stdin" if source == "-" else os.path.splitext(os.path.basename(source))[0]
    return read(text, name or stem)


def import_machine(source, name=None, scale=1.0, onto=None):
    """(Topology, notes). `onto`: a machine whose other properties stay, with the sizes and CPUs of nodes that were not told."""
    try:
        found = find(source, name)
        machine, notes = machine_dict(found, scale)
    except ConfigError as error:
        raise error if source in str(error) else ConfigError.at(source, str(error)) from None
    if onto is not None:
        base = load_topology(onto).to_dict()
        if len(base["node"]) != len(machine["node"]):
            raise ConfigError(
                f"{source}: has {len(machine['node'])} nodes, {onto} has {len(base['node'])}: must be as many"
            )
        told = all("memory" in node for node in machine["node"])
        machine = base | {key: value for key, value in machine.items() if key != "node" or told}
    elif any("memory" not in node for node in machine["node"]):
        default = load_topology().to_dict()["node"][0]["memory"]
        notes.append(f"each node gets {default} of memory")
        machine["node"] = [{"memory": default} | node for node in machine["node"]]
    return Topology.from_dict(machine, source), notes
