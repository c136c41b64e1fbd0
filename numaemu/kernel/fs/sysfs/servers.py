"""What controllers and links have moved so far, as `machine.stats()` and the JSON of a run have it."""

from numaemu.hardware.bandwidth import LINE_BYTES, passage_t
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.rates import servers_of

PS = 1000  # in a ns
COUNTED = ("lines", "moves", "moved", "queued_ps", "late")


def server_figures(machine, topology):
    """A dict of each server: its limit (None: there is none), bytes, busy time, how long requests have waited, and how many were late."""
    contexts = [cpu_t.array(machine.cpus)[n] for n in range(topology.nr_cpu_ids + topology.nr_nodes)]
    found = []
    for number, (name, rate) in enumerate(servers_of(topology) if topology.rates.limited else ()):
        passages = [passage_t.array(cpu.passages)[number] for cpu in contexts]
        moved = {field: sum(getattr(passage, field) for passage in passages) for field in COUNTED}
        found.append(
            {
                "server": name,
                "limit_bytes_per_s": rate,
                "bytes": moved["lines"] * LINE_BYTES,
                "busy_ns": moved["lines"] * LINE_BYTES * 10**9 // rate if rate else 0,
                "requests": moved["lines"] - moved["moved"] + moved["moves"],
                "queued_ns": moved["queued_ps"] // PS,
                "late_requests": moved["late"],
            }
        )
    return found
