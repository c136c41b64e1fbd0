"""numaemu mlc: what it measures is what the machine file says; what it prints is laid out as Intel's tool prints it."""

import json

import numpy as np
import pytest

from numaemu import Machine
from numaemu.tools import cli
from numaemu.tools.importer.source import import_machine
from numaemu.tools.mlc import layout, measure

SHAPE = dict(
    nodes=2, cpus_per_node=3, memory_per_node="16MiB", latency=[[80, 140], [140, 80]], lockstep=True, quantum_ns=50
)
RATES = dict(bandwidth_per_node="8GB/s", link={"bandwidth": "4GB/s"}, cpu={"outstanding": 12})
# as Intel(R) Memory Latency Checker - v3.10 printed it on an Ice Lake server: github.com/gjbex/Code-optimization, info/icelake_mlc.txt
PRINTED = """\
Measuring idle latencies for random access (in ns)...
\t\tNuma node
Numa node\t     0\t     1\t
       0\t  89.2\t 142.7\t
       1\t 142.9\t  89.0\t

Measuring Peak Injection Memory Bandwidths for the system
Bandwidths are in MB/sec (1 MB/sec = 1,000,000 Bytes/sec)
Using all the threads from each core if Hyper-threading is enabled
Using traffic with the following read-write ratios
ALL Reads        :\t351762.1\t
3:1 Reads-Writes :\t313084.7\t

Measuring Memory Bandwidths between nodes within system 
Bandwidths are in MB/sec (1 MB/sec = 1,000,000 Bytes/sec)
Using all the threads from each core if Hyper-threading is enabled
Using Read-only traffic type
\t\tNuma node
Numa node\t     0\t     1\t
       0\t175690.9\t55676.8\t
       1\t55692.3\t175912.6\t

Measuring Loaded Latencies for the system
Using all the threads from each core if Hyper-threading is enabled
Using Read-only traffic type
Inject\tLatency\tBandwidth
Delay\t(ns)\tMB/sec
==========================
 00000\t264.04\t 351871.6
 20000\t 91.23\t   2867.0
"""
FIGURES = {
    "idle_latency_ns": [[89.2, 142.7], [142.9, 89.0]],
    "peak_bandwidth_mbs": {"ALL Reads": 351762.1, "3:1 Reads-Writes": 313084.7},
    "bandwidth_mbs": [[175690.9, 55676.8], [55692.3, 175912.6]],
    "loaded_latency": [
        {"inject_delay": 0, "latency_ns": 264.04, "bandwidth_mbs": 351871.6},
        {"inject_delay": 20000, "latency_ns": 91.23, "bandwidth_mbs": 2867.0},
    ],
}


def test_the_layout_is_intel_s():
    assert layout.text(FIGURES) == PRINTED


def test_a_node_without_cpus_is_a_column_alone():
    rows = [[80.0, 250.0], [None, None]]
    assert layout.matrix(rows, "{:6.1f}")[1:] == ["Numa node\t     0\t     1\t", "       0\t  80.0\t 250.0\t"]


@pytest.fixture(scope="module")
def rated():
    with Machine(**SHAPE, **RATES) as machine:
        yield machine


def test_bandwidths_are_the_controllers_and_the_links(rated):
    found = measure.measure(rated, ["bandwidth", "peak"])
    assert np.abs(np.array(found["bandwidth_mbs"]) / [[8000, 4000], [4000, 8000]] - 1).max() < 0.02
    assert np.abs(np.array(list(found["peak_bandwidth_mbs"].values())) / 16000 - 1).max() < 0.02
    rated.check()


def test_latency_grows_under_load(rated):
    rows = {row["inject_delay"]: row for row in measure.measure(rated, ["loaded"], (0, 20000))["loaded_latency"]}
    assert rows[0]["latency_ns"] > 2 * 80 and rows[20000]["latency_ns"] == pytest.approx(80, rel=0.05)
    assert rows[0]["bandwidth_mbs"] > 100 * rows[20000]["bandwidth_mbs"]
    assert list(rows) == [0, 20000]


def test_one_cpu_alone_is_bound_by_its_misses_under_way():
    shape = SHAPE | dict(cpus_per_node=1)
    with Machine(**shape, **RATES | dict(cpu={"outstanding": 4})) as machine:
        found = measure.measure(machine, ["bandwidth"])
    expected = np.array([[4 * 64e3 / 80, 4 * 64e3 / 140]] * 2)
    expected[1] = expected[1][::-1]
    assert np.abs(np.array(found["bandwidth_mbs"]) / expected - 1).max() < 0.02


def test_the_command_prints_what_the_importer_reads(tmp_path, capsys):
    file = tmp_path / "machine.toml"
    with Machine(**SHAPE, **RATES) as machine:
        file.write_text(machine.topology.to_toml())
    assert (
        cli.main(
            [
                "mlc",
                "--latency-matrix",
                "--bandwidth-matrix",
                "--machine",
                str(file),
                "--json",
                str(tmp_path / "m.json"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    (tmp_path / "mlc.txt").write_text(printed)
    topology, _ = import_machine(str(tmp_path / "mlc.txt"))
    assert topology.latency_ns == ((80, 140), (140, 80))
    told = json.loads((tmp_path / "m.json").read_text())
    assert told["mlc"]["idle_latency_ns"] == [[80, 140], [140, 80]] and layout.text(told["mlc"]) in printed


def test_without_rates_it_says_so_instead_of_numbers(capsys):
    assert cli.main(["mlc", "--nodes", "2", "--cpus-per-node", "1", "--memory-per-node", "16MiB"]) == 0
    out, err = capsys.readouterr()
    assert "idle latencies" in out and "Bandwidth" not in out and "Loaded" not in out
    assert "no rates" in err
