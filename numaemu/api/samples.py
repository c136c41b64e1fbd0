"""Curves of a run: figures of the machine each so often of emulated time, `Machine(sample="1ms")` and `numaemu run --sample 1ms`."""

import contextlib
import re
import weakref

from numaemu.errors import ConfigError, MachineCheck
from numaemu.spec.units import parse_int, shown

TIME_TEXT = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?\s*(ns|us|ms|s)", re.ASCII)
TIME_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
MIN_INTERVAL_NS, MAX_INTERVAL_NS = 1_000, 10**15
COUNTERS = {"faults": "pgfault", "migrations": "pgmigrate_success"}  # of vmstat
SERVER = ("bytes", "queued_ns", "busy_ns")


def parse_interval(value, what, where):
    """Nanoseconds of "1ms", "20us", "0.5s" or a plain number of them."""
    if isinstance(value, str):
        match = TIME_TEXT.fullmatch(value.strip())
        if match is None:
            raise ConfigError.at(where, f"{what} is {shown(value)}, must be a time such as '1ms' or '20us'")
        whole, part, unit = match.groups(default="")
        value, rest = divmod(int(whole + part) * TIME_UNITS[unit], 10 ** len(part))
        if rest:
            raise ConfigError.at(where, f"{what} is {shown(match[0])}, must be a whole number of nanoseconds")
    return parse_int(value, what, where, MIN_INTERVAL_NS, MAX_INTERVAL_NS, " ns")


def cache_totals(cpus):
    """Hits and misses of each level, of all CPUs."""
    totals: dict[str, dict[str, int]] = {}
    for cpu in cpus:
        for name, level in cpu["caches"]["levels"].items():
            total = totals.setdefault(name, {"hits": 0, "misses": 0})
            for key in total:
                total[key] += level[key]
    return totals


def sample_of(stats):
    """One sample, as plain numbers: totals since boot, so that differences of two are rates."""
    sample = {
        "ns": stats["emulated_ns"],
        "free_pages": [node["meminfo"]["MemFree"] // 4 for node in stats["nodes"]],
        **{name: stats["vmstat"].get(counter, 0) for name, counter in COUNTERS.items()},
    }
    if "servers" in stats:
        sample["servers"] = {server["server"]: {key: server[key] for key in SERVER} for server in stats["servers"]}
    if "caches" in stats["cpus"][0]:
        sample["caches"] = cache_totals(stats["cpus"])
    return sample


def rates_between(samples):
    """Rows for a table or a pandas.DataFrame: the bytes a second of each server, faults and migrations, between two samples each."""
    rows = []
    for before, after in zip(samples, samples[1:]):
        seconds = (after["ns"] - before["ns"]) / 1e9
        row = {"ms": after["ns"] / 1e6} | {f"free_pages_node{n}": pages for n, pages in enumerate(after["free_pages"])}
        row |= {name: after[name] - before[name] for name in COUNTERS}
        for name, level in after.get("caches", {}).items():
            hits, misses = (level[key] - before["caches"][name][key] for key in ("hits", "misses"))
            row[f"hits % {name}"] = 100 * hits / (hits + misses) if hits + misses else 0.0
        for name, server in after.get("servers", {}).items():
            row[f"GB/s {name}"] = (server["bytes"] - before["servers"][name]["bytes"]) / seconds / 1e9
        rows.append(row)
    return rows


class Samples:
    """Takes samples of a machine while it runs, into `rows`. Within a `with` block, or from `start` to `stop`."""

    def __init__(self, interval_ns):
        self.interval_ns, self.rows, self.timer = interval_ns, [], None

    @contextlib.contextmanager
    def of(self, machine):
        """Samples within a `with` block, the last one at its end."""
        self.start(machine)
        try:
            yield self
        finally:
            self.stop(machine)

    def start(self, machine):
        """The first sample, and then one each interval of emulated time."""
        self.take(machine)
        weak = weakref.ref(machine)  # it ends when nobody else has it any more
        self.timer = machine.every(self.interval_ns, lambda now_ns: self.take(weak()))

    def stop(self, machine):
        """The last sample, while the machine is there."""
        with contextlib.suppress(MachineCheck):
            if self.timer is not None:
                self.timer.stop()
            self.take(machine)

    def take(self, machine):
        """A sample, unless no time has passed."""
        sample = sample_of(machine.stats())
        if not self.rows or sample["ns"] > self.rows[-1]["ns"]:
            self.rows.append(sample)
