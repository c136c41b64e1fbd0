"""Whole machines with caches: several processes at once, figures, files, the summary, lockstep."""

import json

import numpy as np
import pytest

from numaemu import Machine
from numaemu.tools.cli import main

SMALL = {
    "l1d": {"size": "1KiB", "ways": 2, "latency_ns": 1},
    "l2": {"size": "2KiB", "ways": 4, "latency_ns": 5},
    "llc": {"size": "8KiB", "ways": 8, "latency_ns": 20},
    "cache_to_cache": 60,
}
SHAPES = {
    "three levels": SMALL,
    "inclusive clusters": SMALL
    | {
        "l2": {"size": "2KiB", "ways": 2, "sharing": "cluster:2", "inclusive": True},
        "llc": SMALL["llc"] | {"inclusive": True},
    },
    "one set each": {"l1d": {"size": "1KiB", "ways": 16}, "llc": {"size": "4KiB", "ways": 64, "replacement": "random"}},
    "prefetchers": SMALL | {"prefetch": ["next-line", "stride"]},
}
MACHINE = dict(nodes=2, cpus_per_node=2, memory_per_node="32MiB", latency=[[80, 140], [140, 80]])
LINES = 200
ROUNDS = 25


def work(task, base, seed):
    """Loads and stores of shared lines in random order."""
    rng = np.random.default_rng(seed)
    for _ in range(ROUNDS):
        lines = np.uint64(base) + np.uint64(64) * rng.integers(0, LINES, 400, np.uint64)
        task.load(lines[:300])
        task.store(lines[300:], np.uint64(seed))


def looked_up(cpu):
    """Accesses of a CPU and its walks: each is a hit or a miss of the first level."""
    return cpu["loads"] + cpu["stores"] + cpu["walk_loads"]


@pytest.mark.parametrize("shape", SHAPES)
def test_caches_agree_after_processes_have_fought_for_lines(shape):
    with Machine(**MACHINE, cache=SHAPES[shape]) as machine:
        task = machine.task(cpu=0)
        memory = task.mmap(LINES * 64).touch(write=True)
        children = [task.clone(work, memory.addr, seed, cpu=seed) for seed in range(4)]
        for child in children:
            child.result()
        machine.check()
        cpus = machine.stats()["cpus"]
        for cpu in cpus:
            first = cpu["caches"]["levels"]["l1d"]
            assert first["hits"] + first["misses"] == looked_up(cpu)
        assert sum(cpu["caches"]["invalidations"] for cpu in cpus) > 0
        assert sum(cpu["caches"]["transfers"] for cpu in cpus) > 0


def shared_counter(machine):
    """Four processes fight for a line in lockstep: the figures of all CPUs."""
    task = machine.task(cpu=0)
    memory = task.mmap(LINES * 64).touch(write=True)
    for child in [task.clone(work, memory.addr, seed, cpu=seed) for seed in range(4)]:
        child.result()
    machine.check()
    return machine.stats()["cpus"]


def test_a_run_with_caches_repeats_in_lockstep():
    seen = []
    for _ in range(2):
        with Machine(**MACHINE, lockstep=True, cache=SMALL) as machine:
            seen.append(shared_counter(machine))
    assert seen[0] == seen[1]


def chase(machine):
    """ns of a load in a chase of pointers through 256 KiB."""
    task = machine.task(cpu=0)
    memory = task.mmap("256KiB").touch(write=True)
    ring = np.uint64(memory.addr) + np.uint64(64) * np.random.default_rng(1).permutation(4096).astype(np.uint64)
    task.store(ring, np.roll(ring, -1))
    begin, at = task.clock_ns, ring[0]
    for _ in range(1024):
        at = task.load(at)
    return round((task.clock_ns - begin) / 1024)


FIT = {"l1d": {"size": "512KiB", "ways": 128}, "llc": {"size": "4MiB", "ways": 16}}


@pytest.mark.parametrize(("cache", "ns"), [(None, 80), ({"l1d": {"size": "512B", "ways": 8}}, 80), (FIT, 1)])
def test_a_chase_returns_the_latency_of_where_it_fits(cache, ns):
    with Machine(
        nodes=1, memory_per_node="32MiB", latency=[[80]], l1={"entries": 64, "ways": 64}, cache=cache
    ) as machine:
        assert chase(machine) == ns


def test_the_summary_and_the_json_have_the_caches(tmp_path, capsys):
    machine = (
        '[[node]]\nmemory = "32MiB"\ncpus = 1\n[cache]\nl1d = { size = "1KiB", ways = 2 }\nl2 = { size = "64KiB" }\n'
    )
    (tmp_path / "machine.toml").write_text(machine)
    (tmp_path / "w.py").write_text(
        "def main(machine):\n    machine.task(cpu=0).mmap('64KiB').touch(write=True, stride=64)\n"
    )
    files = [str(tmp_path / name) for name in ("machine.toml", "f.json", "w.py")]
    assert main(["run", "--machine", files[0], "--json", files[1], files[2]]) == 0
    out = capsys.readouterr().out
    assert "caches: hits by level" in out and "prefetched" in out and "l2" in out
    figures = json.loads((tmp_path / "f.json").read_text())
    levels = figures["cpus"][0]["caches"]["levels"]
    assert list(levels) == ["l1d", "l2"] and levels["l2"]["misses"] >= 1024
    assert levels["l1d"]["misses"] == levels["l2"]["hits"] + levels["l2"]["misses"]


def test_the_caches_stand_below_sys():
    with Machine(
        nodes=2, cpus_per_node=3, memory_per_node="32MiB", cache=SMALL | {"l2": {"sharing": "cluster:2"}}
    ) as machine:
        root = "/sys/devices/system/cpu/cpu4/cache"
        files = [
            {
                name: machine.read(f"{root}/index{i}/{name}").strip()
                for name in ("level", "type", "size", "shared_cpu_list")
            }
            for i in range(3)
        ]
        assert files == [
            {"level": "1", "type": "Data", "size": "1K", "shared_cpu_list": "4"},
            {"level": "2", "type": "Unified", "size": "1024K", "shared_cpu_list": "3-4"},
            {"level": "3", "type": "Unified", "size": "8K", "shared_cpu_list": "3-5"},
        ]
        words = ("ways_of_associativity", "coherency_line_size", "number_of_sets", "physical_line_partition", "id")
        assert [machine.read(f"{root}/index2/{word}").strip() for word in words] == ["8", "64", "16", "1", "1"]
