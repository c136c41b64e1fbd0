"""Does half the quantum change what the shipped experiments show? Each runs in lockstep with its quantum, and with half of it.

    python benchmarks/quantum.py [name ...]

Of each experiment it says which figures of its result differ, and by how much at most; texts and shapes must be equal.
"""

import importlib.util
import sys

from numaemu.spec.machine_file import DEFAULT_QUANTUM_NS
from numaemu.tools import shipped
from numaemu.tools.study.figures import columns, run_with


def module_of(name):
    """An experiment's module."""
    spec = importlib.util.spec_from_file_location(f"looked_at_{name}", shipped.find(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def quantum_of(module):
    """The quantum that an experiment states, or the default."""
    stated = getattr(module, "MACHINE", None)
    return stated.get("quantum_ns", DEFAULT_QUANTUM_NS) if isinstance(stated, dict) else DEFAULT_QUANTUM_NS


def compared(name):
    """(how many figures the result has, {figure: (with the quantum, with half of it)} of those that differ)"""
    results, quantum = [], quantum_of(module_of(name))
    for quantum_ns in (quantum, quantum // 2):
        run = run_with(name, {"quantum_ns": quantum_ns, "seed": 0}, lockstep=True)
        results.append(columns("result", run["result"]))
    return len(results[0]), {key: (a, results[1].get(key)) for key, a in results[0].items() if a != results[1].get(key)}


def main(names):
    """A line for each experiment."""
    for name in names or [name for name in shipped.names() if getattr(module_of(name), "LOCKSTEP", False)]:
        number, different = compared(name)
        worst = max(
            (abs(b - a) / max(abs(a), abs(b)) for a, b in different.values() if isinstance(a, (int, float))),
            default=0.0,
        )
        which = ", ".join(list(different)[:3])
        print(f"{name:24} {len(different):4} of {number:4} figures differ, by {worst:.2%} at most  {which}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
