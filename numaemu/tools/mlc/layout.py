"""How `numaemu mlc` prints what was measured: line by line as Intel's Memory Latency Checker 3.x does."""

UNITS = "Bandwidths are in MB/sec (1 MB/sec = 1,000,000 Bytes/sec)"
THREADS = "Using all the threads from each core if Hyper-threading is enabled"
NO_RATES = (
    "numaemu: the machine has no rates: neither a [[node]] bandwidth nor [link] says what it moves at most, so bandwidths "
    "and loaded latencies would mean nothing"
)


def matrix(rows, form):
    """Rows of nodes that have CPUs, columns of nodes that have memory."""
    columns = [n for n in range(len(rows)) if any(row[n] is not None for row in rows)]
    lines = ["\t\tNuma node", "Numa node" + "".join(f"\t{n:6}" for n in columns) + "\t"]
    for n, row in enumerate(rows):
        if any(value is not None for value in row):
            lines.append(f"{n:8}" + "".join(f"\t{form.format(row[c])}" for c in columns) + "\t")
    return lines


def text(found):
    """All sections that were measured."""
    lines = []
    if "idle_latency_ns" in found:
        lines += [
            "Measuring idle latencies for random access (in ns)...",
            *matrix(found["idle_latency_ns"], "{:6.1f}"),
            "",
        ]
    if "peak_bandwidth_mbs" in found:
        lines += ["Measuring Peak Injection Memory Bandwidths for the system", UNITS, THREADS]
        lines += ["Using traffic with the following read-write ratios"]
        lines += [f"{name:17}:\t{rate:.1f}\t" for name, rate in found["peak_bandwidth_mbs"].items()]
        lines += [""]
    if "bandwidth_mbs" in found:
        lines += [
            "Measuring Memory Bandwidths between nodes within system ",
            UNITS,
            THREADS,
            "Using Read-only traffic type",
        ]
        lines += [*matrix(found["bandwidth_mbs"], "{:7.1f}"), ""]
    if "loaded_latency" in found:
        lines += ["Measuring Loaded Latencies for the system", THREADS, "Using Read-only traffic type"]
        lines += ["Inject\tLatency\tBandwidth", "Delay\t(ns)\tMB/sec", "=========================="]
        for row in found["loaded_latency"]:
            lines.append(f" {row['inject_delay']:05}\t{row['latency_ns']:6.2f}\t{row['bandwidth_mbs']:9.1f}")
        lines += [""]
    return "\n".join(lines)
