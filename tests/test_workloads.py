"""Every workload on a small machine: what its docstring claims, exactly."""
import errno
import importlib
import pathlib
import sys

import numpy as np
import pytest

import numaemu
from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, Machine

FOLDER = pathlib.Path(__file__).parent.parent / "workloads"
UNRESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
SMALL = {  # name: keywords of a machine like the preset, with little memory
    "one node": dict(nodes=1, cpus_per_node=4, memory_per_node="24MiB"),
    "two nodes": dict(nodes=2, cpus_per_node=2, memory_per_node="12MiB"),
    "four nodes": dict(nodes=4, cpus_per_node=1, memory_per_node="8MiB"),
}


@pytest.fixture(scope="module", autouse=True)
def workloads():
    """The folder of the workloads is where their modules are found."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def ring():
    with Machine("four-node-ring") as machine:
        yield machine
        machine.check()


@pytest.fixture(scope="module")
def cxl():
    with Machine("cxl") as machine:
        yield machine
        machine.check()


def run(name, machine, *args):
    """What a workload's main returns."""
    argv, sys.argv = sys.argv, [name, *map(str, args)]
    try:
        return importlib.import_module(name).main(machine)
    finally:
        sys.argv = argv


def test_first_touch_puts_each_share_on_its_readers_node(ring):
    for node, (cpu, pages) in zip(ring.nodes, run("first_touch", ring).items(), strict=True):
        assert cpu == f"cpu {node.cpus[0]} on node {node.id}"
        assert [pages[f"pages on node {n.id}"] for n in ring.nodes] == [256 * (n.id == node.id) for n in ring.nodes]


@pytest.mark.parametrize("preset", ["ring", "cxl"])
def test_latency_returns_the_configured_matrix(preset, request):
    machine = request.getfixturevalue(preset)
    measured = run("latency", machine)
    rows = [n.id for n in machine.nodes if n.cpus]
    assert list(measured) == [f"node {n}, ns" for n in rows]
    for n in rows:
        assert list(measured[f"node {n}, ns"].values()) == pytest.approx(machine.topology.latency_ns[n], rel=0.01)


def test_interleave_vs_bind_shows_who_goes_where(ring):
    result = run("interleave_vs_bind", ring)
    loads = 2 * 128 * 4096 // 64                 # of the two CPUs of a node
    assert result["bound to node 0"]["accesses by node"] == [[loads, 0, 0, 0]] * 4
    assert result["interleaved"]["accesses by node"] == [[loads // 4] * 4] * 4
    assert result["first touch"]["accesses by node"] == [[loads * (i == j) for j in range(4)] for i in range(4)]
    bound, spread, local = (case["slowest thread us"] for case in result.values())
    assert bound > spread > local


def test_shootdown_storm_interrupts_every_other_thread_once_per_page(ring):
    table = run("shootdown_storm", ring)
    assert [row["threads"] for row in table] == [1, 2, 3, 4, 8]
    for row in table:
        others = row["threads"] - 1
        assert row["shootdowns sent"] == (row["munmaps"] if others else 0)
        assert row["received"] == row["munmaps"] * others
        assert (row["ns per munmap"] > table[0]["ns per munmap"]) == (others > 0)


@pytest.mark.parametrize("preset", ["ring", "cxl"])
def test_node_overflow_goes_by_distance(preset, request):
    machine = request.getfixturevalue(preset)
    result = run("node_overflow", machine)
    assert sorted(result["nodes in the order they served"]) == [n.id for n in machine.nodes]
    assert result["nodes in the order they served"][0] == 0
    assert result["distances"] == sorted(machine.nodes[0].distances)
    first, *others = result["numastat"].values()
    assert first["numa_miss"] == 0 < first["numa_hit"]
    assert first["numa_foreign"] == sum(node["numa_miss"] for node in others) > 0
    assert all(node["numa_miss"] > 0 == node["numa_foreign"] for node in others)


def test_migration_moves_contents_and_latency(cxl):
    steps = run("migration", cxl)
    assert [step["pages on node"] for step in steps] == [{2: 64}, {0: 64}, {2: 64}]
    assert [step["ns per load"] for step in steps] == [250, 80, 250]
    assert {step["contents"] for step in steps} == {"as written"}


def test_stream_triad_is_as_fast_as_the_latencies_say(ring):
    result = run("stream_triad", ring)
    assert result["local GB/s"] / result["remote GB/s"] == pytest.approx(176 / 80, rel=0.1)


def test_pointer_chase_steps_where_the_tlbs_end(cxl):
    l2, table = cxl.topology.l2, {row["KiB"] // 4: row["ns per load"] for row in run("pointer_chase", cxl)}
    walk = 80 + l2.latency_ns + 4 * 80
    for pages, ns in table.items():
        expected = 80 if pages <= 64 else 80 + l2.latency_ns if pages < l2.entries else walk
        if pages != l2.entries:
            assert ns == expected


def test_policies_place_where_they_say(ring):
    assert list(run("policies", ring).values()) == [
        [240, 0, 0, 0], [240, 0, 0, 0], [0, 0, 0, 240], [0, 0, 0, 240], [0, 0, 0, 240],
        [60, 60, 60, 60], [60, 60, 60, 60]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("machine_name", SMALL)
def test_stress_finds_nothing_when_memory_runs_out(machine_name, seed):
    with Machine(**SMALL[machine_name]) as machine:
        machine.seed = seed
        assert run("stress", machine, 6)["words verified"] > 0


@pytest.mark.parametrize("seed", range(2))
def test_stress_finds_nothing_with_huge_pages(seed):
    """Faults, forks, partial unmapping, mprotect, mremap, migration and swap under khugepaged's feet."""
    with Machine(nodes=2, cpus_per_node=2, memory_per_node="96MiB", kernel={"transparent_hugepage": "always"}) as machine:
        machine.write("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", 1)
        machine.swapon("64MiB")
        machine.seed = seed
        assert run("stress", machine, 3)["words verified"] > 0
        counts = machine.stats()["vmstat"]
        assert counts["thp_fault_alloc"] > 0 and counts["thp_split_pmd"] > 0


def test_stress_finds_nothing_on_a_larger_machine(ring):
    counts = run("stress", ring, 3)
    assert "out of memory" not in counts and counts["pgmigrate_success"] > 0


def test_a_dead_task_does_not_act_as_the_next_one_with_its_number(cxl):
    dead = cxl.task(cpu=0)
    dead.exit()
    next_one = cxl.task(cpu=0)                   # gets the number that is free again
    for action in (lambda: dead.mmap(4096), dead.exit):
        with pytest.raises(OSError) as error:
            action()
        assert error.value.errno == errno.ESRCH
    next_one.mmap(4096).touch()
    next_one.exit()


def give_back_all(task, start, nbytes, stop):
    """Touch a range and give it back, again and again."""
    for _ in range(200):
        task.touch(start, nbytes)
        task.madvise(start, nbytes, numaemu.MADV_DONTNEED)
    task.store([stop], np.uint64(1))


def give_back_first(task, start, stop):
    """How often the first page still held what was written before we gave it back."""
    stale = 0
    while not task.load([stop])[0]:
        task.write(start, b"01234567")
        task.madvise(start, 4096, numaemu.MADV_DONTNEED)
        stale += task.read(start, 8) != bytes(8)
    return stale


def test_pages_two_threads_give_back_at_once_are_forgotten_by_both(ring):
    def story(task):
        area, stop = task.mmap("16MiB"), task.mmap(4096).touch().addr
        first = task.clone(give_back_first, area.addr, stop, cpu=2)
        task.clone(give_back_all, area.addr, area.nbytes, stop, cpu=1).result()
        return first.result()
    assert ring.run(story) == 0


@pytest.mark.parametrize("small", SMALL)
def test_oom_victim_is_chosen_by_points(small):
    with Machine(**SMALL[small]) as machine:
        result = run("oom_victim", machine)
        machine.check()
    assert result["victims"] == ["expendable", "hungry"] and result["survivors"] == ["protected", "modest"]
    assert result["scores"]["protected"] == 0 < result["scores"]["modest"] < result["scores"]["expendable"]
    assert result["free_share"] > 0.4


def test_out_of_memory_ends_one_task_only():
    with Machine(**SMALL["two nodes"]) as machine:
        other = machine.task(cpu=1)
        kept = other.mmap(64 * 4096).array()
        kept[:] = range(len(kept))
        with pytest.raises(numaemu.OutOfMemory):
            machine.run(lambda task: task.mmap("64MiB", flags=UNRESERVED).touch(), cpu=0)
        assert (kept[:] == range(len(kept))).all()
        machine.check()


def test_kmalloc_waste_is_what_the_caches_sizes_make_it():
    with Machine(**SMALL["two nodes"]) as machine:
        result = run("kmalloc_waste", machine)
        machine.check()
    rows, total = result, result["64 of each, in all"]
    assert [rows[f"{n} bytes"]["kmalloc"] for n in (8, 65, 96, 129, 4097, 8193)] == [8, 96, 96, 192, 8192, 16384]
    assert rows["8 bytes"]["lost %"] == 0 and rows["8 bytes"]["pages lost %"] == 99.8
    assert total["asked"] < total["kmalloc"] < total["pages"]


def test_percpu_counter_loses_half_of_what_is_counted_unprotected(cxl):
    assert {way: (row["increments"], row["lost"]) for way, row in run("percpu_counter", cxl).items()} == {
        "load, other task, store": (400, 200), "get_cpu_var, put_cpu_var": (400, 0),
        "a copy per CPU, all CPUs": (20_000 * cxl.topology.nr_cpus, 0)}


def test_slab_vs_buddy_saves_memory_for_small_objects(ring):
    result = run("slab_vs_buddy", ring)
    for size in (16, 64, 256, 1024):
        slab, buddy = result[f"{size} bytes, slab"], result[f"{size} bytes, buddy"]
        assert buddy["pages"] == slab["objects"] == 1000 and buddy["lost %"] == pytest.approx(100 - size / 40.96, abs=0.1)
        assert slab["pages"] * 4096 >= 1000 * size and slab["pages"] < buddy["pages"] and slab["lost %"] < buddy["lost %"]
    assert result["4096 bytes, slab"]["pages"] >= 1000
    assert result["64 bytes, slab"]["ns per pair"] < 1.5 * result["64 bytes, buddy"]["ns per pair"]


def test_compaction_gathers_crumbs():
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="64MiB") as machine:
        result = run("compaction", machine)
        machine.check()
    share = {moment: float(text.rstrip(" %")) for moment, text in result["in 2 MiB blocks"].items()}
    assert share["before"] < 60 and share["after"] > share["before"] + 20
    assert result["contents"]["after"] == "as written" and result["pages moved"]["after"] > 1000


def test_page_cache_spares_the_disk(capsys):
    with Machine(**SMALL["one node"]) as machine:
        result = run("page_cache", machine)
        rows = list(result.values())
        machine.check()
    assert "read back from the disk: intact" in capsys.readouterr().out
    assert [row["pgpgin"] for row in rows] == [8192, 0, 8192, 0, 0]
    cold, warm, random, warm_random = (row["emulated ms"] for row in rows[:4])
    assert random > 5 * cold and cold > 10 * warm and warm_random < cold
    assert (rows[4]["nr_dirtied"], rows[4]["nr_written"], rows[4]["pgpgout"]) == (16, 16, 64)


def test_huge_pages_spare_walks_and_need_memory_in_one_piece():
    module = importlib.import_module("huge_pages")
    with Machine(**module.MACHINE) as machine:
        result = module.main(machine)
        machine.check()
    loads, needs = result["loads"], result["contiguity"]
    assert loads["4 KiB"]["walks per 1000 loads"] > 500
    assert loads["THP"]["walks per 1000 loads"] == loads["hugetlb"]["walks per 1000 loads"] == 0
    assert loads["4 KiB"]["faults"] == 512 * loads["THP"]["faults"] == 512 * loads["hugetlb"]["faults"]
    assert loads["hugetlb"]["page tables kB"] < loads["THP"]["page tables kB"] == loads["4 KiB"]["page tables kB"]
    assert needs["fresh memory"]["%"] == 100 and needs["crumbs, no defrag"]["%"] < 20
    assert needs["crumbs, defrag"]["%"] > 80 and needs["crumbs, the pool"]["%"] > 40


def test_kswapd_watermarks_shows_who_makes_room(capsys):
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="24MiB") as machine:
        result = run("kswapd_watermarks", machine)
        machine.check()
    slow, rush = result["slowly"], result["in a rush"]
    assert slow["kswapd runs"] > 0 and rush["direct reclaims"] > slow["direct reclaims"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[:12].strip()][1:] == ["high", "low", "min", "kswapd", "direct"]
    chart = lines[1:-1]
    assert len({len(line) for line in chart}) == 1 and "k" in chart[-2][14:] and "D" in chart[-1][14:]


def test_zram_ratio_by_what_is_in_the_pages():
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="24MiB") as machine:
        result = run("zram_ratio", machine)
        machine.check()
    assert result["zeros"]["lz4 ratio"] == result["zeros"]["zstd ratio"] == "not stored"
    assert result["random"]["lz4 ratio"] == result["random"]["zstd ratio"] == "1.00"
    for name in ("text", "numbers", "pointers"):
        assert float(result[name]["zstd ratio"]) > float(result[name]["lz4 ratio"]) > 1.5
        assert 20 * result[name]["lz4 us/fault"] < 100 < result[name]["disk us/fault"] < 120
    assert result["zeros"]["disk us/fault"] < 3 and result["random"]["lz4 us/fault"] < result["text"]["lz4 us/fault"]


def test_swap_thrash_has_a_cliff():
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="24MiB") as machine:
        rows = list(run("swap_thrash", machine, 4000).values())
        machine.check()
    for kind in ("disk", "zram"):
        faults = [float(row[f"{kind} faults"]) for row in rows]
        assert faults[0] == 0 and 0.3 < faults[-1] < 0.9 and faults[-1] > faults[3] > 0
    assert rows[-1]["disk ns"] > 100 * rows[0]["disk ns"] and rows[-1]["disk ns"] > 5 * rows[-1]["zram ns"]
