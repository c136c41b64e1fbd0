"""What tools print: `numactl --hardware`, `lscpu -p`, Intel's Memory Latency Checker."""

import re

from numaemu.errors import ConfigError
from numaemu.spec.units import MiB
from numaemu.tools.importer.found import Found, FoundNode

NUMACTL = re.compile(r"^node (\d+) cpus:([\d ]*)$", re.M)
SIZES = re.compile(r"^node (\d+) size: (\d+) MB", re.M)
ROW = re.compile(r"^ *(\d+): +([\d ]+)$", re.M)
LSCPU_HEADER = re.compile(r"^# *(CPU,.*)$", re.M)
MLC_NODES = re.compile(r"^Numa node((?:[ \t]+\d+)+)[ \t]*$", re.M)
MLC_ROW = re.compile(r"^[ \t]*(\d+)((?:[ \t]+(?:\d+(?:\.\d+)?|-))+)[ \t]*$")
IDLE = "idle latencies"
BETWEEN = "Memory Bandwidths between nodes"


def numactl(text, name):
    """`numactl --hardware`"""
    cpus = {int(n): {int(word) for word in rest.split()} for n, rest in NUMACTL.findall(text)}
    sizes = {int(n): int(mb) * MiB for n, mb in SIZES.findall(text)}
    rows = {int(n): [int(word) for word in row.split()] for n, row in ROW.findall(text.partition("node distances:")[2])}
    numbers = sorted(cpus)
    if not numbers or set(sizes) != set(numbers):
        raise ConfigError("numactl's text is not complete: cpus and size of each node must be there")
    distance = None
    if rows:
        distance = [rows.get(n, []) for n in numbers]
        if any(len(row) != len(numbers) for row in distance):
            raise ConfigError(f"numactl's text is not complete: its distances are no {len(numbers)} by {len(numbers)}")
    found = Found(name, [FoundNode(n, sizes[n], cpus[n]) for n in numbers], distance)
    found.notes.append("sizes are whole MB there, a little more than the memory that the kernel had")
    return found


def lscpu(text, name):
    """`lscpu -p`: CPUs and their nodes."""
    header = LSCPU_HEADER.findall(text)[0].split(",")
    rows = [line.split(",") for line in text.splitlines() if line and not line.startswith("#")]
    if "Node" not in header or not rows or any(len(row) != len(header) or not row[0].isdigit() for row in rows):
        raise ConfigError("lscpu's text is not complete: it must have the columns CPU and Node")
    column, nodes = header.index("Node"), {}
    for row in rows:
        nodes.setdefault(int(row[column] or 0), set()).add(int(row[0]))
    found = Found(name, [FoundNode(number, None, cpus) for number, cpus in sorted(nodes.items())])
    cores = {(row[header.index("Core")], row[column]) for row in rows} if "Core" in header else rows
    if len(cores) < len(rows):
        found.notes.append(f"{len(rows)} CPUs are threads of {len(cores)} cores; each is a CPU of its own")
    found.notes.append("sizes of memory and distances are not in it; nor are nodes without CPUs")
    return found


def mlc_matrix(part):
    """(column nodes, {row node: figures}) of the first matrix of a part of mlc's text; None: there is none."""
    header = MLC_NODES.search(part)
    if header is None:
        return None
    columns, rows = [int(word) for word in header[1].split()], {}
    for line in part[header.end() :].splitlines():
        match = MLC_ROW.match(line)
        if match is None:
            if rows:
                break
            continue
        values = [None if word == "-" else float(word) for word in match[2].split()]
        if len(values) != len(columns):
            raise ConfigError(f"mlc's row of node {match[1]} has {len(values)} figures, must have {len(columns)}")
        rows[int(match[1])] = values
    return columns, rows


def square(columns, rows, numbers):
    """Whole numbers by node and node, None where nothing was measured."""
    place = {number: i for i, number in enumerate(columns)}
    found = [[rows[a][place[b]] if a in rows and b in place else None for b in numbers] for a in numbers]
    return [[None if value is None else max(round(value), 1) for value in row] for row in found]


def mlc(text, name):
    """Intel's mlc: the matrices of idle latencies and of bandwidths. Rows are nodes with CPUs, columns nodes with memory."""
    found = mlc_matrix(text[max(text.lower().find(IDLE), 0) :])
    if found is None or not found[1]:
        raise ConfigError("mlc's text has no matrix of idle latencies")
    columns, rows = found
    numbers = sorted({*columns, *rows})
    cpus = {number: {i} for i, number in enumerate(sorted(rows))}
    machine = Found(
        name, [FoundNode(n, None, cpus.get(n, set())) for n in numbers], None, square(columns, rows, numbers)
    )
    if (at := text.find(BETWEEN)) >= 0 and (matrix := mlc_matrix(text[at:])) is not None:
        machine.bandwidth = square(matrix[0], matrix[1], numbers)
    machine.notes.append(
        "CPUs and sizes of memory are not in it: each node with a row has one CPU (--onto MACHINE keeps another's)"
    )
    if "Peak Injection" in text or "Loaded Latencies" in text:
        machine.notes.append("peak bandwidths and loaded latencies are left out")
    return machine
