"""What a load takes while other CPUs load from the same memory controller more and more.

One CPU follows a chain of dependent loads; the others load lines that do not depend on each other, and compute a while after every
eight of them (half as long as the table says to half as long again), which sets the load. `numaemu mlc` measures the same. Look for:
  - as long as the controller has time left a load takes little more than the idle latency;
  - the curve bends near the controller's rate and then goes up steeply;
  - at the end no more bandwidth comes, only more waiting: a load waits behind all misses that the others may have under way.
"""

from numaemu.tools import chart
from numaemu.tools.mlc.measure import PLACES, Bench

LOCKSTEP = True
MACHINE = dict(
    nodes=1, cpus_per_node=8, memory_per_node="64MiB", latency=[[90]], bandwidth_per_node="20GB/s",
    cpu={"outstanding": 12}, quantum_ns=6,
)  # fmt: skip
PAUSES = (5000, 2000, 1000, 700, 500, 400, 300, 250, 200, 150, 100, 0)  # ns


def measure(task, cpus, node):
    """(ns of a load by the first CPU, MB/s of the others) for each pause, and of the first CPU alone."""
    bench = Bench(task, cpus, [node], PLACES)
    where = dict.fromkeys(cpus, node)
    alone = bench.loaded({cpus[0]: node}, cpus[0], 0)
    return alone, [bench.loaded(where, cpus[0], pause) for pause in PAUSES]


def main(machine):
    home = machine.nodes[machine.cpus[0].node]
    if not machine.topology.rates.limited:
        print("The machine has no rates (--machine ice-lake has some), so nobody waits for anybody.")
        return {}
    (idle, _), points = machine.run(measure, list(home.cpus), home.id, cpu=home.cpus[0])
    rows = {f"{rate / 1000:6.2f} GB/s": {"idle latency": idle, "waiting": max(ns - idle, 0)} for ns, rate in points}
    figures = {label: f"{ns:.0f} ns" for label, (ns, _) in zip(rows, points)}
    print(chart.divided(f"Time of one load beside {len(home.cpus) - 1} CPUs that load, in emulated ns", rows, figures))
    return {"idle ns": round(idle, 1)} | {
        f"pause of {pause} ns": {"GB/s": round(rate / 1000, 2), "ns per load": round(ns, 1)}
        for pause, (ns, rate) in zip(PAUSES, points)
    }
