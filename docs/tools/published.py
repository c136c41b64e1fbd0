"""What others have measured on machines that are presets, and what `numaemu mlc` measures there: the table of docs/fidelity.md.

    python -m docs.tools.published            measures, and writes the table into the page
    python -m docs.tools.published NAME …     measures these presets and prints their rows

Each figure names its source; the presets say more about them.
"""

import pathlib
import re
import sys
import warnings

from numaemu import Machine
from numaemu.spec.topology import load_topology
from numaemu.tools.commands.mlc import QUANTUM_NS
from numaemu.tools.mlc.measure import measure

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fidelity.md"
PLACE = re.compile(r"(<!-- measured: published -->\n).*?(<!-- end of measured -->)", re.DOTALL)
LEUVEN = "[Intel's mlc at KU Leuven](https://github.com/gjbex/Code-optimization/blob/master/info/icelake_mlc.txt)"
DRAMHIT = "[Intel's mlc, DRAMHiT](https://github.com/mars-research/DRAMHiT)"
CHEESE_KNL = "[Chips and Cheese](https://chipsandcheese.com/p/knights-landing-atom-with-avx-512)"
CHEESE_GH = "[Chips and Cheese](https://chipsandcheese.com/p/grace-hopper-nvidias-halfway-apu)"
KTH = "KTH's study of Grace Hopper (2024)"
FIGURES = {  # preset: (what, where `measure` has it, unit, published, source)
    "ice-lake": [
        ("a load from the own node", ("idle_latency_ns", 0, 0), "ns", 89.2, LEUVEN),
        ("a load from the other node", ("idle_latency_ns", 0, 1), "ns", 142.7, LEUVEN),
        ("reads of all CPUs, own memory", ("peak_bandwidth_mbs", "ALL Reads"), "GB/s", 351.8, LEUVEN),
        ("like STREAM's triad, all CPUs, own memory", ("peak_bandwidth_mbs", "Stream-triad like"), "GB/s", 320.2, LEUVEN),
        ("reads of a node from its own memory", ("bandwidth_mbs", 0, 0), "GB/s", 175.7, LEUVEN),
        ("reads of a node from the other's memory", ("bandwidth_mbs", 0, 1), "GB/s", 55.7, LEUVEN),
        ("a load under full load", ("loaded_latency", 0, "latency_ns"), "ns", 264.0, LEUVEN),
    ],
    "epyc-nps4": [
        ("a load from the own node", ("idle_latency_ns", 0, 0), "ns", 105.6, DRAMHIT),
        ("a load from the nearest node", ("idle_latency_ns", 0, 1), "ns", 113.1, DRAMHIT),
        ("a load from the farthest node", ("idle_latency_ns", 0, 2), "ns", 118.6, DRAMHIT),
        ("reads of all CPUs, own memory", ("peak_bandwidth_mbs", "ALL Reads"), "GB/s", 369.3, DRAMHIT),
    ],
    "knights-landing": [
        ("a load from DDR4", ("idle_latency_ns", 0, 0), "ns", 147, CHEESE_KNL),
        ("a load from MCDRAM", ("idle_latency_ns", 0, 1), "ns", 176, CHEESE_KNL),
        ("reads from DDR4", ("bandwidth_mbs", 0, 0), "GB/s", 78, CHEESE_KNL),
        ("reads from MCDRAM", ("bandwidth_mbs", 0, 1), "GB/s", 350, CHEESE_KNL),
    ],
    "grace-hopper": [
        ("a load from LPDDR5X (“over 200 ns”)", ("idle_latency_ns", 0, 0), "ns", 207, CHEESE_GH),
        ("a load from the GPU's HBM3 (“nearly 800 ns”)", ("idle_latency_ns", 0, 1), "ns", 799, CHEESE_GH),
        ("STREAM, LPDDR5X", ("peak_bandwidth_mbs", "Stream-triad like"), "GB/s", 486, KTH),
        ("moved from HBM3 to the CPU's side", ("bandwidth_mbs", 0, 1), "GB/s", 297, KTH),
    ],
}  # fmt: skip


def measured(name):
    """What `numaemu mlc` finds on a preset, without pauses in the load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the host has less memory; little of it is touched
        with Machine(load_topology(name, lockstep=True, quantum_ns=QUANTUM_NS)) as machine:
            return measure(machine, ("idle", "peak", "bandwidth", "loaded"), (0,))


def rows_of(name):
    """The rows of a preset, as cells."""
    found = measured(name)
    for what, path, unit, published, source in FIGURES[name]:
        value = found
        for step in path:
            value = value[step]
        ours = value / 1000 if unit == "GB/s" else value
        yield (
            f"`{name}`",
            what,
            f"{published:g} {unit}",
            f"{ours:.1f} {unit}",
            f"{100 * (ours / published - 1):+.1f} %",
            source,
        )


def main(names):
    rows = [("preset", "what", "published", "here", "difference", "who measured it")]
    for name in names or FIGURES:
        rows += rows_of(name)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("---" for _ in rows[0]) + " |")
    table = "\n".join(lines)
    if names:
        print(table)
        return
    text, count = PLACE.subn(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", PAGE.read_text())
    if count != 1:
        raise SystemExit(f"{PAGE} has {count} places for the table, must have 1")
    PAGE.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
