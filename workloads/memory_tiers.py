"""The memory tiers of the machines that numaemu ships: which node is in which, and where a full one's pages go.

Linux gives each node an abstract distance from the latency and bandwidth that the firmware tells (HMAT); memory of a CPU's socket
has 576, and each tier is 128 wide. A machine without such a table has one tier, whatever its nodes are.
Look for: the bars, which are the abstract distances, and the tier of each.
  - sockets, near or far, are one tier: there balancing between nodes is what helps, not demotion;
  - memory behind CXL is farther by its latency times its bandwidth: three times slower and a fifth as wide is fifteen times as far;
  - a page is demoted to the next tier only, so in three tiers it goes down step by step.
"""

from numaemu import Machine
from numaemu.spec.topology import list_presets
from numaemu.tools import chart

LOCKSTEP = True
TIERS = "/sys/devices/virtual/memory_tiering"
DRAM, CHUNK = 576, 128  # MEMTIER_ADISTANCE_DRAM, MEMTIER_CHUNK_SIZE


def tiers(machine):
    """{tier: its nodes} as the machine's files say."""
    names = [name for name in machine.listdir(TIERS) if name.startswith("memory_tier") and name != "memory_tiering"]
    found = {int(name.removeprefix("memory_tier")): machine.read(f"{TIERS}/{name}/nodelist").strip() for name in names}
    return dict(sorted(found.items()))


def main(machine):
    rows = {}
    for preset in list_presets():
        with Machine(preset, memory_per_node="64MiB") as shipped:
            rows[preset] = {f"tier {tier}": f"nodes {nodes}" for tier, nodes in tiers(shipped).items()}
    bars = {
        f"{preset}, {nodes}": int(tier.split()[1]) * CHUNK
        for preset, row in rows.items()
        for tier, nodes in row.items()
    }
    print(chart.bars(f"Where each tier begins, in Linux's abstract distance (DRAM has {DRAM})", bars, log=True))
    return {preset: ", ".join(f"{tier}: {nodes}" for tier, nodes in row.items()) for preset, row in rows.items()}
