"""Two runs side by side: `numaemu compare`, `numaemu replay --against`."""

import json
import os

from numaemu.api.tables import Table
from numaemu.errors import ConfigError
from numaemu.tools.summary import report

MOST_BYTES = 256 << 20  # of the JSON of a run
MOST_COUNTERS = 40  # of vmstat that are shown, those that differ most first
NEEDED = ("machine", "workload", "emulated_ns", "wall_s", "vmstat", "nodes", "cpus", "result")


def load(path):
    """The figures in a file that `numaemu run --json` has written."""
    try:
        if os.path.getsize(path) > MOST_BYTES:
            raise ConfigError(f"{path}: has more than {MOST_BYTES >> 20} MiB, which no run writes")
        with open(path, encoding="utf-8") as file:
            figures = json.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {str(error.strerror).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON: {str(error).lower()}") from None
    missing = [key for key in NEEDED if key not in figures] if isinstance(figures, dict) else NEEDED
    if missing:
        raise ConfigError(f"{path}: is not what numaemu run --json writes: {missing[0]!r} is missing")
    return figures


def measures(figures):
    """{what: value} of a run: sums over its CPUs; shares are per cent."""
    sums = {
        key: sum(cpu[key] for cpu in figures["cpus"])
        for key in figures["cpus"][0]
        if isinstance(figures["cpus"][0][key], int)
    }
    accesses = sums["loads"] + sums["stores"]
    share = lambda part: 100 * part / accesses if accesses else 0.0
    return {
        "emulated ms": figures["emulated_ns"] / 1e6,
        "wall s": figures["wall_s"],
        "accesses": accesses,
        "stores": sums["stores"],
        "L1 TLB hits %": share(sums["l1_tlb_hits"]),
        "L2 TLB hits %": share(sums["l2_tlb_hits"]),
        "page walks": sums["page_walks"],
        "walk loads": sums["walk_loads"],
        "minor faults": sums["minor_faults"],
        "major faults": sums["major_faults"],
        "remote accesses %": share(sums["remote_accesses"]),
        "shootdowns received": sums["shootdowns_received"],
    }


def shown(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"


def ratio(a, b):
    """b as a multiple of a."""
    return "=" if a == b else f"x {b / a:.3g}" if a else "new"


def table(names, runs):
    """The measures of runs, and of two the ratio."""
    columns = [measures(run) for run in runs]
    rows = []
    for what in columns[0]:
        values = [column[what] for column in columns]
        rows.append((what, *map(shown, values), *([ratio(*values)] if len(values) == 2 else [])))
    return Table("runs", ("", *names, *(["B / A"] if len(runs) == 2 else [])), rows)


def counters(names, runs):
    """vmstat counters that differ, those that differ most first."""
    counts = [run["vmstat"] for run in runs]
    keys = [key for key in counts[0] if len({count.get(key, 0) for count in counts}) > 1]
    values = {key: [count.get(key, 0) for count in counts] for key in keys}
    spread = {key: (max(v) - min(v)) / (max(map(abs, v)) or 1) for key, v in values.items()}
    keys = sorted(keys, key=lambda key: (-spread[key], key))[:MOST_COUNTERS]
    rows = [(key, *map(shown, values[key]), *([ratio(*values[key])] if len(runs) == 2 else [])) for key in keys]
    return Table("vmstat: counters that differ", ("", *names, *(["B / A"] if len(runs) == 2 else [])), rows)


def print_comparison(names, runs, console=None):
    """The table of runs, and their counters."""
    from numaemu.tools.summary.layout import new_console, print_blocks

    console = console or new_console()
    blocks = [table(names, runs)]
    if (differing := counters(names, runs)).rows:
        blocks.append(differing)
    print_blocks(blocks, console, report.ALL)
