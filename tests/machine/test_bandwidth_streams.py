"""Whole machines with rates: streams of several processes, figures, samples, the command line."""

import json

import numpy as np
import pytest

from numaemu import ConfigError, Machine
from numaemu.api.samples import rates_between
from numaemu.tools.cli import main

SHAPE = dict(nodes=2, memory_per_node="32MiB", latency=[[80, 140], [140, 80]], walk_cache=32)
STREAM = 512 << 10


def stream(task, nbytes):
    """Load each line of a region once: the emulated ns when that began and ended. All begin at 5 ms."""
    region = task.mmap(nbytes)
    region.touch()
    task.sleep(5 - task.clock_ns / 1e6)
    begin = task.clock_ns
    task.load(np.uint64(region.addr) + np.arange(0, nbytes, 64, dtype=np.uint64))
    return begin, task.clock_ns


def test_streams_of_processes_reach_the_rate_together():
    with Machine(
        **SHAPE, cpus_per_node=4, lockstep=True, bandwidth_per_node="5GB/s", cpu={"outstanding": 8}
    ) as machine:
        spans = [handle.result() for handle in [machine.spawn(stream, STREAM, cpu=cpu) for cpu in range(4)]]
        servers = {server["server"]: server for server in machine.stats()["servers"]}
    seconds = (max(end for _, end in spans) - min(begin for begin, _ in spans)) / 1e9
    assert 0.98 <= 4 * STREAM / seconds / 5e9 <= 1.0
    assert servers["node 0"]["bytes"] > 8 * STREAM and servers["node 1"]["bytes"] == 0  # cleared, and loaded
    assert servers["node 0"]["queued_ns"] > 0 and servers["node 0"]["late_requests"] == 0


def test_a_run_with_rates_repeats_in_lockstep():
    seen = []
    for _ in range(2):
        with Machine(
            **SHAPE, cpus_per_node=2, lockstep=True, bandwidth_per_node="2GB/s", link={"bandwidth": "1GB/s"}
        ) as machine:
            handles = [machine.spawn(stream, STREAM // 8, cpu=cpu) for cpu in range(4)]
            seen.append(([handle.result() for handle in handles], machine.stats()))
    assert seen[0] == seen[1]


def load_again_and_again(task, nbytes, times):
    """Load each line of a region so many times."""
    region = task.mmap(nbytes).touch()
    for _ in range(times):
        task.load(np.uint64(region.addr) + np.arange(0, nbytes, 64, dtype=np.uint64))


def test_samples_grow_with_emulated_time():
    with Machine(**SHAPE, cpus_per_node=1, lockstep=True, bandwidth_per_node="1GB/s", sample="500us") as machine:
        machine.run(load_again_and_again, STREAM // 4, 40, cpu=0)
        samples = machine.samples
        end = machine.stats()
    times = [sample["ns"] for sample in samples]
    assert times == sorted(set(times)) and times[-1] > 5e6 and len(samples) > 8
    assert all(500_000 * n <= ns < 500_000 * n + 50_000 for n, ns in enumerate(times))
    assert samples[-1]["faults"] == end["vmstat"]["pgfault"] > samples[0]["faults"]
    rows = rates_between(samples)
    assert max(row["GB/s node 0"] for row in rows) <= 1.01
    assert sum(row["faults"] for row in rows) == samples[-1]["faults"] - samples[0]["faults"]


def test_without_a_rate_no_server_is_shown():
    with Machine(**SHAPE, cpus_per_node=1) as machine:
        assert "servers" not in machine.stats() and machine.samples == []


@pytest.mark.parametrize(
    "sample, message",
    [
        ("often", "sample is 'often', must be a time such as '1ms' or '20us' (Machine)"),
        ("0.5ns", "sample is '0.5ns', must be a whole number of nanoseconds (Machine)"),
        ("10ns", "sample is 10 ns, must be at least 1000 (Machine)"),
        (1.5, "sample is 1.5, must be a whole number (Machine)"),
    ],
)
def test_an_interval_that_is_none_is_refused(sample, message):
    with pytest.raises(ConfigError) as refused:
        Machine(sample=sample)
    assert str(refused.value) == message


WORKLOAD = '''"""Touches memory."""
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="16MiB", bandwidth_per_node="1GB/s")
LOCKSTEP = True


def touch(task):
    task.mmap("1MiB").touch()


def main(machine):
    machine.run(touch)
'''


def test_a_run_says_what_controllers_have_moved(tmp_path, capsys):
    (tmp_path / "touching.py").write_text(WORKLOAD)
    path = tmp_path / "run.json"
    assert main(["run", str(tmp_path / "touching.py"), "--sample", "100us", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "controllers and links" in out and "node 0" in out
    figures = json.loads(path.read_text())
    assert figures["servers"][0]["bytes"] >= 1 << 20
    assert len(figures["samples"]) > 8 and figures["samples"][-1]["servers"]["node 0"]["bytes"] >= 1 << 20
    assert main(["run", str(tmp_path / "touching.py"), "--sample", "1ms"]) == 2
    assert "--sample needs --json" in capsys.readouterr().err
