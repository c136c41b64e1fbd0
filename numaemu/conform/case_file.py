"""A recorded case as a file: what has to stand in it, and of which kind, before anything is played or compared.

A file that was cut off or spoilt is refused in one line that names the place, as `observed.deltas.a->b.vmstat`. A form
below is a function of a value and its place, which raises ConfigError; keys that nobody reads may hold anything.

A case lies in a file NAME.json, or compressed in NAME.json.zst or NAME.json.gz. The cases that the project keeps are those
of the directory conformance/cases beside the package.
"""

import gzip
import io
import json
import pathlib
import re
import zlib
from typing import Any

import zstandard

from numaemu.errors import ConfigError
from numaemu.spec.units import check_list, parse_int, shown

KEPT = pathlib.Path(__file__).resolve().parents[2] / "conformance" / "cases"
SUFFIXES = (".json", ".json.zst", ".json.gz")
MOST_BYTES = 1 << 28  # of a case file, unpacked
MOST = (1 << 63) - 1  # of any number
MOST_MIB = 1 << 24  # of a node's memory
MOST_ACCESSES = 1 << 28  # of one step
PAGES_PER_MIB, PAGE = 256, 4096
ZONE = re.compile(r"node(\d{1,3})/(DMA|DMA32|Normal|HighMem|Movable)")
SPAN = re.compile(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", re.ASCII)


# -- forms ---------------------------------------------------------------------------------------------------


def number(least=-MOST, most=MOST):
    """A whole number."""
    return lambda value, place: parse_int(value, place, "", least, most)


def text(value, place):
    """A line of text."""
    if not isinstance(value, str) or not value.isprintable():
        raise ConfigError(f"{place} is {shown(value)}, must be a line of text")


def spans(value, place):
    """Numbers of CPUs or nodes: 0, "0,2-3", [0, 2]; a string of words is none."""
    for part in map(str, value if isinstance(value, list) else str(value).split(",")):
        span = SPAN.fullmatch(part)
        if (
            isinstance(value, (dict, float, bool))
            or (part.strip() and not span)
            or (span and span[2] and int(span[2]) < int(span[1]))
        ):
            raise ConfigError(f"{place} is {shown(value)}, must be numbers such as '0,2-3'")


def hexadecimal(value, place):
    """An address as text."""
    text(value, place)
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{1,16}", value):
        raise ConfigError(f"{place} is {shown(value)}, must be an address such as '0x7d0000000000'")


def maps_line(value, place):
    """A line of /proc/<pid>/maps."""
    text(value, place)
    if not re.match(r"[0-9a-f]{1,16}-[0-9a-f]{1,16} ", value):
        raise ConfigError(f"{place} is {shown(value)}, must be a line of /proc/<pid>/maps")


def optional(form):
    """The form, or null."""
    return lambda value, place: None if value is None else form(value, place)


def any_of(*forms):
    """Whichever form it has; the last one explains."""

    def check(value, place):
        for form in forms[:-1]:
            try:
                return form(value, place)
            except ConfigError:
                continue
        return forms[-1](value, place)

    return check


def many(form):
    """A list of such."""

    def check(value, place):
        if not isinstance(value, list):
            raise ConfigError(f"{place} is {shown(value)}, must be a list")
        for index, item in enumerate(value):
            form(item, f"{place}[{index}]")

    return check


def table(form):
    """An object with such values under any names."""

    def check(value, place):
        _be_object(value, place)
        for key, item in value.items():
            text(key, f"a name in {place}")
            form(item, f"{place}.{key}")

    return check


def record(needed, known=None):
    """An object that has the needed keys; those and the known ones have their forms."""

    def check(value, place):
        _be_object(value, place)
        missing = next((key for key in needed if key not in value), None)
        if missing is not None:
            raise ConfigError(f"{place} has no {missing!r}")
        for key, form in (needed | (known or {})).items():
            if key in value:
                form(value[key], f"{place}.{key}")

    return check


def run(value, place):
    """[place, pages] of a run-length code."""
    if not isinstance(value, list) or len(value) != 2:
        raise ConfigError(f"{place} is {shown(value)}, must be a place and a number of pages")
    any_of(number(0), text)(value[0], f"{place}[0]")
    number(0)(value[1], f"{place}[1]")


def _be_object(value, place):
    if not isinstance(value, dict):
        raise ConfigError(f"{place} is {shown(value)}, must be an object")


# -- what stands where ---------------------------------------------------------------------------------------

COUNTERS = table(number())
NODES = table(record({}, {"numastat": COUNTERS, "meminfo": optional(COUNTERS), "hugepages_2M": optional(COUNTERS)}))
# fmt: off
MACHINE = record({"memory_MiB": many(number(1, MOST_MIB)), "cpus_per_node": many(number(0, 1024)), "distance": many(many(number(0)))},
                 {"id": any_of(number(0), text)})
# fmt: on
FIRST_ZONE = record({"min": number(0), "managed": number(1), "free": number(0)})
# fmt: off
SNAPSHOT = record({}, {"zones": table(record({}, {"protection": many(number(0)), **dict.fromkeys(
    ("min", "low", "high", "managed", "free", "pcp_batch"), number(0))})), "nodes": NODES})
# fmt: on
REGION = record(
    {"addr": hexadecimal, "length": number(0)},
    {"pages": COUNTERS, "node_runs": many(run), "node_runs_total": number(0)},
)
DUMP = record({"regions": table(REGION)}, {"maps": many(maps_line), "oom_score": number()})
# fmt: off
RESULT = record({"op": text}, {**dict.fromkeys(("step", "minflt", "majflt"), number(0)), "ret": number(), "errno": number(0, 4096),
                               "state": text, "sig": number(0, 64)})
OBSERVED = record({}, {
    "step_results": many(RESULT), "snapshots": table(SNAPSHOT), "dumps": table(table(DUMP)),
    "deltas": table(record({"vmstat": COUNTERS}, {"nodes": NODES})),
    "oom": many(record({}, {"summary": optional(text), "killed": optional(text)})),
    "final": table(record({}, {"dead": number(0, 1), "sig": number(0, 64)}))})
# fmt: on
AGAIN = record({}, {"vmstat": COUNTERS, "nodes": NODES})
# fmt: off
CASE = record({"machine": MACHINE, "steps": many(record({"op": text})), "observed": OBSERVED},
              {"name": text, "class": text, "kernel": text,
               "repeat": optional(record({}, {"unstable": many(text), "deltas_run2": optional(AGAIN), "deltas_run3": optional(AGAIN)}))})
# fmt: on

SIZE, FLAG = number(0), number(0, 1)
# fmt: off
KEYS = {  # of steps
    **dict.fromkeys(("task", "child", "region", "new_region", "as", "label", "path", "cmd", "kind", "share", "mode", "order", "prot",
                     "policy", "advice", "flags", "target"), text),
    **dict.fromkeys(("cpu", "cpus", "nodes", "from", "to"), spans),
    **dict.fromkeys(("size", "new_size", "length", "offset", "addr", "new_addr", "fileoff"), SIZE),
    **dict.fromkeys(("stride", "each", "chunk", "repeat"), number(1)), "align": number(PAGE, 1 << 40), "delta": number(),
    **dict.fromkeys(("ms", "pause_ms", "duration_ms"), number(0, 1 << 31)), "sig": number(0, 64), "code": number(0, 255),
    **dict.fromkeys(("populate", "noreserve", "locked", "fixed_replace", "maymove", "dontunmap", "onfault", "next_node", "async",
                     "capture", "all", "fsync", "random_adv"), FLAG),
    "oom_score_adj": number(-1000, 1000), "value": any_of(number(), text)}
# fmt: on
RANGED = ("region",)
# fmt: off
NEEDED = {  # by op, besides the task; ops that are not here are not supported, which is told later
    "spawn": ("cpu",), "fork": ("child",), "exit": (), "setcpu": ("cpus",), "mmap": ("region", "size"), "read_file": ("path",),
    "write_file": ("path", "size"), "fadvise_dontneed": ("path",), "write_proc": ("path", "value"),
    "munmap": RANGED, "munmap_stride": RANGED, "mprotect": ("region", "prot"), "madvise": ("region", "advice"),
    "mremap": RANGED, "mlock": RANGED, "munlock": RANGED, "brk": (), "kill": (), "join": (), "touch": RANGED,
    "set_mempolicy": ("policy",), "mbind": ("region", "policy"), "get_mempolicy": (), "move_pages": ("region", "nodes"),
    "migrate_pages": ("from", "to"), "cgroup_attach": ("path",), "dump": ("label",), "nop": (),
    "write": ("path", "value"), "readf": ("path",), "sleep": ("ms",), "snap": ("label",), "sh": ("cmd",)}
# fmt: on
OF_NO_TASK = ("write", "readf", "sleep", "snap", "sh")


# -- checks that need more than one place ----------------------------------------------------------------------


def check_machine(machine, place):
    nodes = len(machine["memory_MiB"])
    for key in ("cpus_per_node", "distance"):
        check_list(machine[key], nodes, f"{place}.{key}", "")


def check_steps(steps, place):
    """Each step has the keys it needs, and is about a task and a region that an earlier one made."""
    tasks, regions = set(), set()
    for index, step in enumerate(steps):
        where = f"{place}[{index}] ({step['op']})"
        for key in step:
            text(key, f"a name in {where}")
        if step["op"] in NEEDED:
            check_step(step, where, tasks, regions)
        tasks.update(step[key] for key, op in (("task", "spawn"), ("child", "fork")) if step["op"] == op)
        if step["op"] in ("mmap", "brk", "mremap"):
            regions.update(step[key] for key in ("region", "new_region", "as") if key in step)


def check_step(step, where, tasks, regions):
    """One step: its keys are known, and it speaks of tasks and regions that earlier steps have made. ConfigError names
    what is wrong.
    """
    op, of_task = step["op"], step["op"] not in OF_NO_TASK
    record(dict.fromkeys((*NEEDED[op], *(("task",) if of_task else ())), lambda value, place: None), KEYS)(step, where)
    if not of_task and "task" in step:
        raise ConfigError(f"{where} has a task, but is not a task's")
    if of_task and op != "spawn" and step["task"] not in tasks:
        raise ConfigError(f"{where} is of task {step['task']!r}, which no earlier step makes")
    if "region" in step and op not in ("mmap", "brk") and step["region"] not in regions:
        raise ConfigError(f"{where} is about region {step['region']!r}, which no earlier step makes")
    accesses = step.get("length", 0) // step.get("stride", PAGE) * step.get("repeat", 1)
    if accesses > MOST_ACCESSES:
        raise ConfigError(f"{where} has {accesses} accesses, must be at most {MOST_ACCESSES}")
    if op in ("spawn", "setcpu") and not str(step["cpu" if op == "spawn" else "cpus"]).strip("[] "):
        raise ConfigError(f"{where} names no cpu")


def check_first_zones(case):
    """By the zones of the first snapshot the machine is filled: each must fit into its node."""
    for label, snapshot in list(case["observed"].get("snapshots", {}).items())[:1]:
        for name, zone in snapshot.get("zones", {}).items():
            place = f"observed.snapshots.{label}.zones.{name}"
            FIRST_ZONE(zone, place)
            match, memory = ZONE.fullmatch(name), case["machine"]["memory_MiB"]
            if match is None or int(match[1]) >= len(memory):
                raise ConfigError(f"{place}: {shown(name)} must be a zone such as 'node0/DMA32'")
            if zone["managed"] > memory[int(match[1])] * PAGES_PER_MIB:
                raise ConfigError(f"{place}: managed is {zone['managed']} pages, which the node does not have")


def check_results(case):
    """What a result of Linux's has by its kind."""
    for index, result in enumerate(case["observed"].get("step_results", [])):
        if ("minflt" in result) != ("majflt" in result):
            raise ConfigError(f"observed.step_results[{index}] has only one of 'minflt' and 'majflt'")


def check_case(case):
    """Raise ConfigError unless a case can be played and compared, as far as its form says."""
    CASE(case, "case")
    check_machine(case["machine"], "machine")
    check_steps(case["steps"], "steps")
    check_first_zones(case)
    check_results(case)


# -- files ---------------------------------------------------------------------------------------------------


def case_name(path):
    """The name of a case file without its suffix."""
    name = pathlib.Path(path).name
    return next((name.removesuffix(suffix) for suffix in SUFFIXES[::-1] if name.endswith(suffix)), name)


def kept_cases():
    """The files of the cases that the project keeps, by name; [] where the package is installed without them."""
    return sorted(path for path in KEPT.glob("*") if path.name.endswith(SUFFIXES))


def find_case(given):
    """The file that a case is given by: its path, or the name of one that the project keeps."""
    if not pathlib.Path(given).exists() and "/" not in str(given):
        for suffix in SUFFIXES:
            if (KEPT / f"{given}{suffix}").is_file():
                return KEPT / f"{given}{suffix}"
    return pathlib.Path(given)


def read_text(path):
    """The text of a plain or compressed file."""
    with open(path, "rb") as file:
        if str(path).endswith(".zst"):
            unpacked: Any = zstandard.ZstdDecompressor().stream_reader(file)
        else:
            unpacked = gzip.GzipFile(fileobj=file) if str(path).endswith(".gz") else file
        with io.BufferedReader(unpacked) as reader:
            data = reader.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    return data.decode("utf-8")


def read_case(path):
    """A recorded case from its file."""
    try:
        case = json.loads(read_text(path))
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, zstandard.ZstdError) as error:
        raise ConfigError.at(str(path), f"case file cannot be read: {error}") from None
    try:
        check_case(case)
    except ConfigError as error:
        raise ConfigError.at(str(path), f"case file is malformed: {error}") from None
    return case
