"""numaemu mlc"""

import sys

import click

import numaemu
from numaemu.spec.topology import load_topology
from numaemu.tools.options import booted_as, check_writable, machine_options, topology_of, write_json

QUANTUM_NS = 50  # so that a CPU finds the queues that the others make, not one that is empty as they have not come yet
PARTS = ("idle", "peak", "bandwidth", "loaded")


@click.command("mlc", context_settings={"max_content_width": 100})
@machine_options
@click.option("--latency-matrix", "idle", is_flag=True, help="Only idle latencies, by the CPU's and the memory's node.")
@click.option("--max-bandwidth", "peak", is_flag=True, help="Only what all CPUs load and store together.")
@click.option(
    "--bandwidth-matrix", "bandwidth", is_flag=True, help="Only bandwidths, by the CPUs' and the memory's node."
)
@click.option("--loaded-latency", "loaded", is_flag=True, help="Only the latency under load.")
@click.option("--json", "json_path", metavar="FILE", help="Write the figures there.")
def command(json_path, idle, peak, bandwidth, loaded, **options):
    """Measure latencies and bandwidths of a machine, in lockstep and emulated time.

    What is printed looks as Intel's Memory Latency Checker prints it; 'numaemu machine import' reads it. The injected delay is in ns,
    once in 8 lines. Without a rate in the machine file there are only latencies.
    """
    from numaemu.tools.mlc import layout
    from numaemu.tools.mlc.measure import measure

    check_writable(json_path)
    asked = [name for name, flag in zip(PARTS, (idle, peak, bandwidth, loaded)) if flag]
    topology = load_topology(topology_of(options), lockstep=True, quantum_ns=QUANTUM_NS)
    with booted_as(topology) as machine:
        found, t = measure(machine, asked or PARTS), machine.topology
    print(f"numaemu mlc - {numaemu.__version__}, machine {t.name}")
    print(layout.text(found))
    if not t.rates.limited and asked != ["idle"]:
        print(layout.NO_RATES, file=sys.stderr)
    if json_path:
        write_json({"numaemu": numaemu.__version__, "machine": t.name, "mlc": found}, json_path)
