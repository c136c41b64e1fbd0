"""Every workload on a small machine: what its docstring claims, exactly."""

import errno
import importlib
import pathlib
import sys

import numpy as np
import pytest
from test_exec import LD, LOADER, PROGRAM

import numaemu
from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, Machine
from numaemu.tools.replacement import POLICIES

FOLDER = pathlib.Path(__file__).parents[2] / "workloads"
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


def test_interleave_vs_bind_shows_who_goes_where(ring, capsys):
    result = run("interleave_vs_bind", ring)
    loads = 2 * 128 * 4096 // 64  # of the two CPUs of a node
    matrix = {name: [list(row.values()) for row in case["loads"].values()] for name, case in result.items()}
    assert matrix["bound to node 0"] == [[loads, 0, 0, 0]] * 4
    assert matrix["interleaved"] == [[loads // 4] * 4] * 4
    assert matrix["first touch"] == [[loads * (i == j) for j in range(4)] for i in range(4)]
    printed = capsys.readouterr().out.splitlines()
    signs = {line[:32].strip(): line[32:].strip() for line in printed if "CPUs of" in line}
    assert set(signs["bound to node 0, CPUs of node 3"]) == {"0"} and set(signs["first touch, CPUs of node 3"]) == {"3"}
    assert list(dict.fromkeys(signs["interleaved, CPUs of node 1"])) == ["0", "1", "2", "3"]
    bound, spread, local = (case["slowest thread us"] for case in result.values())
    assert bound > spread > local


def test_vmalloc_misses_the_tlb_where_kmalloc_does_not(ring):
    table = run("vmalloc_vs_kmalloc", ring)
    assert all(row["L1 misses %"] < 1 for name, row in table.items() if name.startswith("kmalloc"))
    small, middle, large = (table[f"vmalloc, {size}"] for size in ("256 KiB", "4 MiB", "64 MiB"))
    assert small["L1 misses %"] < 1 < 90 < middle["L1 misses %"] and middle["walks %"] < 1
    assert large["walks %"] > 85 and large["loads a walk"] == 4
    assert large["ns a load"] > 3 * table["kmalloc, 64 MiB"]["ns a load"]


def test_page_table_cost_of_eight_megabytes(ring, capsys):
    table = run("page_table_cost", ring)
    assert {name: (row["tables"], row["one flat table"]) for name, row in table.items()} == {
        "x86-32": (3, "4 MiB"),
        "arm64-39": (7, "1 GiB"),
        "arm64-48": (9, "512 GiB"),
        "x86-64-4level": (9, "512 GiB"),
        "x86-64-5level": (10, "256 TiB"),
    }
    for row in table.values():
        assert row["VmPTE kB"] == row["PageTables kB"] == row["tables KiB"] - 4 and row["after unmapping kB"] == 0
        assert row["loads per TLB miss"] == row["levels"]
    assert "arm64-39, 3 levels        28 KiB █" in capsys.readouterr().out


def test_kmap_waits_for_an_address():
    with Machine("x86-32") as machine:
        steps = run("kmap", machine)
        machine.check()
    assert steps["a page of high memory"] == "none" and steps["... after kmap"] == "0xff801000"
    assert steps["1024 pages mapped"] == "0xff800000 to 0xffbff000, 1 flush of the window"
    address, _, page_8 = steps["... after a kunmap"].partition(", which was page 8's: ")
    assert address == page_8 and steps["kmap_atomic, twice"] == "0xffffe000, 0xffffd000"


def test_shootdown_storm_interrupts_every_other_thread_once_per_page(ring):
    table = run("shootdown_storm", ring)
    assert [row["threads"] for row in table] == [1, 2, 3, 4, 8]
    of_target = [(row["ns per munmap"] - table[1]["ns per munmap"]) / (row["threads"] - 2) for row in table[2:]]
    assert of_target == [ring.topology.cost["shootdown_target_ns"]] * 3
    for row in table:
        others = row["threads"] - 1
        assert row["shootdowns sent"] == (row["munmaps"] if others else 0)
        assert row["received"] == row["munmaps"] * others
        assert (row["ns per munmap"] > table[0]["ns per munmap"]) == (others > 0)
        cost = ring.topology.cost
        assert row["ns per answer"] == (cost["ipi_ns"] + cost["flush_page_ns"] if others else 0)
        assert row["ns of all CPUs per munmap"] == row["ns per munmap"] + others * row["ns per answer"]


@pytest.mark.parametrize("preset", ["ring", "cxl"])
def test_node_overflow_goes_by_distance(preset, request, capsys):
    machine = request.getfixturevalue(preset)
    result = run("node_overflow", machine)
    assert sorted(result["nodes in the order they served"]) == [n.id for n in machine.nodes]
    assert result["nodes in the order they served"][0] == 0
    assert result["distances"] == sorted(machine.nodes[0].distances)
    first, *others = result["numastat, pages"].values()
    assert first["numa_miss"] == 0 < first["numa_hit"]
    assert first["numa_foreign"] == sum(node["numa_miss"] for node in others) > 0
    assert all(node["numa_miss"] > 0 == node["numa_foreign"] for node in others)
    stairs = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("node ")]
    begins = [len(signs) - len(signs.lstrip("·")) for signs in stairs]
    assert len(stairs) == len(machine.nodes) and begins[0] == 0 and begins == sorted(set(begins))


def test_migration_moves_contents_and_latency(cxl, capsys):
    steps = run("migration", cxl)
    assert [(step["pages on node 2"], step["pages on node 0"]) for step in steps] == [(64, 0), (0, 64), (64, 0)]
    assert [step["ns per load"] for step in steps] == [250, 80, 250]
    assert {step["contents"] for step in steps} == {"as written"}
    cost = steps[1]["ns per moved page"]
    assert f"Moving a page takes {cost} ns and spares 170 ns in each load" in (printed := capsys.readouterr().out)
    assert f"at least {-(-cost // 170)} times" in printed


def test_stream_triad_is_as_fast_as_the_latencies_say(shown):
    result = shown("stream_triad").result
    assert result["local GB/s"] / result["remote GB/s"] == pytest.approx(176 / 80, rel=0.1)
    for row in result["by node"].values():
        assert row["local GB/s"] / row["remote GB/s"] == pytest.approx(
            row["remote latency ns"] / row["local latency ns"], rel=0.1
        )


def test_pointer_chase_steps_where_the_tlbs_end(cxl, capsys):
    l2, table = cxl.topology.l2, {row["KiB"] // 4: row["ns per load"] for row in run("pointer_chase", cxl)}
    walk = 80 + l2.latency_ns + 4 * 80
    for pages, ns in table.items():
        expected = 80 if pages <= 64 else 80 + l2.latency_ns if pages < l2.entries else walk
        if pages != l2.entries:
            assert ns == expected
    bars = capsys.readouterr().out.splitlines()[-len(table) :]
    assert "░" not in bars[0] and "beyond both TLBs" in bars[-1]
    assert bars[-1].count("░") / bars[-1].count("█") == pytest.approx(walk / 80 - 1, rel=0.15)


def test_policies_place_where_they_say(ring):
    assert list(run("policies", ring).values()) == [
        [240, 0, 0, 0],
        [240, 0, 0, 0],
        [0, 0, 0, 240],
        [0, 0, 0, 240],
        [0, 0, 0, 240],
        [60, 60, 60, 60],
        [60, 60, 60, 60],
    ]


@pytest.mark.concurrent
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("machine_name", SMALL)
def test_stress_finds_nothing_when_memory_runs_out(machine_name, seed):
    with Machine(**SMALL[machine_name]) as machine:
        machine.seed = seed
        assert run("stress", machine, 6)["words verified"] > 0


@pytest.mark.concurrent
@pytest.mark.parametrize("seed", range(2))
def test_stress_finds_nothing_with_huge_pages(seed):
    """Faults, forks, partial unmapping, mprotect, mremap, migration and swap under khugepaged's feet."""
    with Machine(
        nodes=2, cpus_per_node=2, memory_per_node="96MiB", kernel={"transparent_hugepage": "always"}
    ) as machine:
        machine.write("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", 1)
        machine.swapon("64MiB")
        machine.seed = seed
        assert run("stress", machine, 3)["words verified"] > 0
        counts = machine.stats()["vmstat"]
        assert counts["thp_fault_alloc"] > 0 and counts["thp_split_pmd"] > 0


@pytest.mark.concurrent
def test_stress_finds_nothing_on_a_larger_machine(ring):
    counts = run("stress", ring, 3)
    assert "out of memory" not in counts and counts["pgmigrate_success"] > 0


def test_a_dead_task_does_not_act_as_the_next_one_with_its_number(cxl):
    dead = cxl.task(cpu=0)
    dead.exit()
    next_one = cxl.task(cpu=0)  # gets the number that is free again
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


def test_kmalloc_waste_is_what_the_caches_sizes_make_it(shown):
    result = shown("kmalloc_waste").result
    rows, total = result, result["64 of each, in all"]
    assert [rows[f"{n} bytes"]["kmalloc bytes"] for n in (8, 65, 96, 129, 4097, 8193)] == [8, 96, 96, 192, 8192, 16384]
    assert rows["8 bytes"]["lost %"] == 0 and rows["8 bytes"]["in pages lost %"] == 99.8
    assert total["asked bytes"] < total["kmalloc bytes"] < total["in pages bytes"]
    printed = shown("kmalloc_waste").printed
    assert "   65 bytes take    96  32 % lost █" in printed and "   64 bytes take    64   0 % lost █" in printed


def test_percpu_counter_loses_half_of_what_is_counted_unprotected(shown, cxl):
    assert {way: (row["increments"], row["lost"]) for way, row in shown("percpu_counter").result.items()} == {
        "load, other task, store": (400, 200),
        "get_cpu_var, put_cpu_var": (400, 0),
        "a copy per CPU, all CPUs": (20_000 * cxl.topology.nr_cpus, 0),
    }


def test_slab_vs_buddy_saves_memory_for_small_objects(shown):
    result = shown("slab_vs_buddy").result
    for size in (16, 64, 256, 1024):
        slab, buddy = result[f"{size} bytes, slab"], result[f"{size} bytes, buddy"]
        assert buddy["pages"] == slab["objects"] == 1000 and buddy["lost %"] == pytest.approx(
            100 - size / 40.96, abs=0.1
        )
        assert (
            slab["pages"] * 4096 >= 1000 * size and slab["pages"] < buddy["pages"] and slab["lost %"] < buddy["lost %"]
        )
    assert result["4096 bytes, slab"]["pages"] >= 1000
    assert result["64 bytes, slab"]["ns per pair"] < 1.5 * result["64 bytes, buddy"]["ns per pair"]


def test_compaction_gathers_crumbs(shown):
    result = shown("compaction").result
    share = {moment: float(text.rstrip(" %")) for moment, text in result["in 2 MiB blocks"].items()}
    assert share["before"] < 60 and share["after"] > share["before"] + 20
    assert result["contents"]["after"] == "as written" and result["pages moved"]["after"] > 1000


def test_page_cache_spares_the_disk(shown):
    rows = list(shown("page_cache").result.values())
    assert "read back from the disk: intact" in shown("page_cache").printed
    assert [row["pgpgin"] for row in rows] == [8192, 0, 8192, 0, 0]
    cold, warm, random, warm_random = (row["emulated ms"] for row in rows[:4])
    assert random > 5 * cold and cold > 10 * warm and warm_random < cold
    assert (rows[4]["nr_dirtied"], rows[4]["nr_written"], rows[4]["pgpgout"]) == (16, 16, 64)


def test_huge_pages_spare_walks_and_need_memory_in_one_piece(shown):
    result = shown("huge_pages").result
    loads, needs = result["loads"], result["contiguity"]
    assert loads["4 KiB"]["walks per 1000 loads"] > 500
    assert loads["THP"]["walks per 1000 loads"] == loads["hugetlb"]["walks per 1000 loads"] == 0
    assert loads["4 KiB"]["faults"] == 512 * loads["THP"]["faults"] == 512 * loads["hugetlb"]["faults"]
    assert loads["hugetlb"]["page tables kB"] < loads["THP"]["page tables kB"] == loads["4 KiB"]["page tables kB"]
    assert needs["fresh memory"]["got %"] == 100 and needs["crumbs, no defrag"]["got %"] < 20
    assert needs["crumbs, defrag"]["got %"] > 80 and needs["crumbs, the pool"]["got %"] > 40
    lines = {line.split("  ")[0]: line for line in shown("huge_pages").printed.splitlines() if "█" in line}
    assert "░" in lines["4 KiB"] and "░" not in lines["THP"] + lines["hugetlb"]
    assert "·" not in lines["fresh memory"] and lines["crumbs, no defrag"].count("·") > 4 * lines[
        "crumbs, no defrag"
    ].count("█")


def test_gigantic_pages_spare_more_and_stand_where_nothing_stays(shown):
    result = shown("gigantic_pages").result
    loads, found = result["loads"], result["found"]
    assert loads["2 MiB"]["faults"] == 256 and loads["1 GiB"]["faults"] == 1
    assert loads["1 GiB"]["walks per 1000 loads"] == loads["1 GiB"]["L2 TLB hits per 1000 loads"] == 0
    assert loads["2 MiB"]["walks per 1000 loads"] == 0 and loads["2 MiB"]["L2 TLB hits per 1000 loads"] > 500
    assert found["fresh memory"] == {"pages of 1 GiB": 2, "small pages moved": 0}
    assert found["a task's pages"]["pages of 1 GiB"] == 2 and found["a kernel's block in each"]["pages of 1 GiB"] == 0
    lines = {line.split("  ")[0]: line for line in shown("gigantic_pages").printed.splitlines()}
    assert "·" not in lines["fresh memory"] + lines["a task's pages"] and "█" not in lines["a kernel's block in each"]


def test_kswapd_watermarks_shows_who_makes_room(shown):
    result = shown("kswapd_watermarks").result
    slow, rush = result["slowly"], result["in a rush"]
    assert slow["dropped"] > 0 and rush["swapped"] > slow["swapped"]
    assert slow["kswapd runs"] > 0 and rush["direct"] > slow["direct"]
    lines = shown("kswapd_watermarks").printed.partition("\n           least free")[0].splitlines()
    assert [line.split()[0] for line in lines if line[:12].strip()][1:] == [
        "high",
        "low",
        "min",
        "files",
        "swapped",
        "kswapd",
        "direct",
    ]
    chart = lines[1:-1]
    assert len({len(line) for line in chart}) == 1 and "k" in chart[-2][14:] and "D" in chart[-1][14:]


def test_swappiness_sweep_shows_whose_pages_go(shown):
    result = shown("swappiness_sweep").result
    shares = [row["own share"] for row in result.values()]
    assert shares[0] == 0 and shares[-1] > 0.9 and max(shares[:3]) < 0.2
    assert all(later >= earlier - 0.25 for earlier, later in zip(shares, shares[1:]))
    for row in result.values():
        assert row["own"] + row["of files"] > 0
        assert abs(row["file refaults"] - row["of files"]) <= 0.25 * row["of files"] + 300
    bars = [line for line in shown("swappiness_sweep").printed.splitlines() if "own █" in line or "own ░" in line]
    assert len(bars) == len(shares) and bars[0].count("█") == 0 and bars[-1].count("░") <= 4


def test_zram_ratio_by_what_is_in_the_pages(shown):
    result = shown("zram_ratio").result
    assert result["zeros"]["lz4 ratio"] == result["zeros"]["zstd ratio"] == "not stored"
    assert result["random"]["lz4 ratio"] == result["random"]["zstd ratio"] == "1.00"
    for name in ("text", "numbers", "pointers"):
        assert float(result[name]["zstd ratio"]) > float(result[name]["lz4 ratio"]) > 1.5
        assert 20 * result[name]["lz4 us/fault"] < 100 < result[name]["disk us/fault"] < 120
    assert result["zeros"]["disk us/fault"] < 3 and result["random"]["lz4 us/fault"] < result["text"]["lz4 us/fault"]


def test_swap_thrash_has_a_cliff(shown):
    rows = list(shown("swap_thrash").result.values())
    for kind in ("disk", "zram"):
        faults = [float(row[f"{kind}, major faults per access"]) for row in rows]
        assert faults[0] == 0 and 0.3 < faults[-1] < 0.9 and faults[-1] > faults[3] > 0
    disk, zram = ([row[f"{kind}, ns per access"] for row in rows] for kind in ("disk", "zram"))
    assert disk[-1] > 100 * disk[0] and disk[-1] > 5 * zram[-1]


def test_swap_thrash_takes_sizes_of_one_s_own():
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="24MiB") as machine:
        rows = run("swap_thrash", machine, 1000, "--shares", 0.3, 1.6)
    assert list(rows) == ["0.30", "1.60"]
    assert (
        float(rows["0.30"]["disk, major faults per access"]) == 0 < float(rows["1.60"]["disk, major faults per access"])
    )


def test_elf_map_draws_a_program(capsys):
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="64MiB") as machine:
        machine.create_file("/bin/emu", PROGRAM)
        machine.create_file(LD, LOADER)
        moments = run("elf_map", machine, "/bin/emu")
        machine.check()
    assert moments["after execve"] == {"mappings": 7, "pages": 43, "own": 2, "of files": 0}
    assert [row["mappings"] for row in moments.values()] == [7, 8, 8]
    assert moments["everything used once"]["of files"] == 1 + 2 + 2
    lines = capsys.readouterr().out.splitlines()
    assert "7ffffffde000 rw-p   132 KiB [stack]" in lines[2] and "1/33" in lines[2]
    assert all(len(line) <= 80 for line in lines)
    first = lines[2 : lines.index("") - 1]
    assert [line.split()[-1] for line in first if "gap" not in line][-3:] == ["·█", "··", "·"]


def test_shared_library_is_in_memory_once(shown):
    result = shown("shared_library").result
    rows, one = list(result["all tasks"].values()), result["one task's smaps, kB"]
    size = 1088
    assert [row["sum of RSS kB"] for row in rows] == [size, 2 * size, 4 * size, 8 * size, 8 * size, 0]
    assert [row["sum of PSS kB"] for row in rows[:4]] == [size] * 4 and size < rows[4]["sum of PSS kB"] <= size + 12
    assert {row["library in cache kB"] for row in rows} == {row["read from disk kB"] for row in rows} == {size}
    assert [row["anonymous kB"] for row in rows] == [0, 0, 0, 0, 12, 0]
    before, writer, other = ([row[who] for row in one.values()] for who in ("any, before", "the writer", "another one"))
    assert before == [1088, 136, 0, 136, 1088, 0] == other and writer[2] == writer[5] == 12
    assert (
        "\nthe writer   " + "█" * 3 + "▒" * 13 + "\nanother one  " + "▒" * 16 + "\n" in shown("shared_library").printed
    )


def test_replacement_policies_has_nobody_better_than_opt_and_the_machine_near_its_model(shown):
    rows = shown("replacement_policies").result["pages fetched again"]
    for row in rows.values():
        assert row["OPT"] == min(fetched for fetched in row.values() if fetched != "")
        assert row["Linux"] < row["FIFO"]
    (machine_s,) = [row for row in rows.values() if row["the machine"] != ""]
    assert 0.8 < machine_s["the machine"] / machine_s["Linux"] < 1.25
    assert f"the machine  {machine_s['the machine']:,} pages █" in shown("replacement_policies").printed


def test_replacement_policies_takes_a_string_of_one_s_own(tmp_path):
    string = tmp_path / "string"
    string.write_text("7 8 9 10\n7 8 11 7 8 9 10 11\n" * 3)
    with Machine(**importlib.import_module("replacement_policies").MACHINE) as machine:
        result = run("replacement_policies", machine, "--string", string, "--frames", 3, 4)
        machine.check()
    written, again = list(range(5)), [0, 1, 2, 3, 0, 1, 4, 0, 1, 2, 3, 4] * 3
    for n, row in zip((3, 4, 5), result["pages fetched again"].values(), strict=True):
        for name in ("FIFO", "LRU", "OPT"):
            assert row[name] == POLICIES[name](written + again, n)[5:].sum()
    assert row["the machine"] == 0 == row["LRU"]  # there is room for all five


def test_belady_s_anomaly_is_there_for_fifo_alone(shown):
    rows, random = shown("belady").result.values()
    assert [list(rows[f"{n} frames"].values()) for n in (3, 4)] == [[9, 9, 10, 7], [10, 10, 8, 6]]
    assert {name: number > 0 for name, number in random.items()} == {"FIFO": True, "LRU": False, "OPT": False}
    assert "FIFO, 4 frames: 10 faults" in shown("belady").printed


@pytest.mark.parametrize("policy", ["FIFO", "LRU", "OPT"])
def test_belady_follows_strings_and_policies_of_one_s_own(policy, capsys):
    string = np.random.default_rng(len(policy)).integers(0, 12, 40).tolist()
    with Machine(**importlib.import_module("belady").MACHINE) as machine:
        (rows,) = run("belady", machine, *string, "--frames", 2, 5, 3, "--policy", policy, "--random", 0).values()
        machine.check()
    assert list(rows) == ["2 frames", "3 frames", "5 frames"]
    for row in rows.values():
        assert row[f"{policy}, the machine"] == row[policy]
    printed = capsys.readouterr().out
    assert f"{policy}, 5 frames: {rows['5 frames'][policy]} faults" in printed
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_thrashing_sets_in_when_the_working_sets_pass_memory(shown):
    rows = {
        name: {what: float(value) for what, value in row.items()} for name, row in shown("thrashing").result.items()
    }
    work, long, faults = (
        [row[what] for row in rows.values()]
        for what in ("accesses/us, 3 ms", "accesses/us, 300 ms", "faults/1000, 3 ms")
    )
    assert list(rows) == ["1 task", *(f"{n} tasks" for n in range(2, 7))] and faults[:3] == [0, 0, 0]
    assert work[5] < 0.5 * work[0] and work[5] < long[5] < long[0]


def test_thrashing_takes_tasks_shares_and_slices_of_one_s_own(capsys):
    with Machine(**importlib.import_module("thrashing").MACHINE) as machine:
        rows = run("thrashing", machine, 20, "--tasks", 2, "--share", 0.1, "--slices", 5)
    assert [list(row) for row in rows.values()] == [["accesses/us, 5 ms", "faults/1000, 5 ms"]] * 2
    assert "working set is 10% of memory" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["belady", "replacement_policies", "thrashing", "swap_thrash", "elf_map", "stress"])
def test_workloads_with_arguments_say_so(name, capsys):
    with pytest.raises(SystemExit) as end:
        run(name, None, "--help")
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: numaemu run {name} -- [-h]")
    assert f"`numaemu run {name} -- --help`" in sys.modules[name].__doc__


@pytest.mark.parametrize("name, wrong, words", [
    ("belady", ["1", "200"], "a page is 200, must be from 0 to 199"),
    ("belady", ["--frames", "0"], "--frames is 0, must be from 1 to 199"),
    ("belady", ["--random", "-1"], "must not be negative"),
    ("replacement_policies", ["--string", "/nowhere"], "--string is /nowhere: "),
    ("replacement_policies", ["--frames", "0"], "must be at least 1"),
    ("thrashing", ["--share", "2"], "at most 1"),
    ("swap_thrash", ["--shares", "9"], "at most 6"),
    ("stress", ["many"], "invalid int value: 'many'"),
])  # fmt: skip
def test_wrong_arguments_of_workloads(name, wrong, words, capsys):
    with pytest.raises(SystemExit) as end:
        run(name, None, *wrong)
    assert end.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


def test_fork_cow_copies_what_is_shared_and_reuses_what_is_left(capsys):
    with Machine(**importlib.import_module("fork_cow").MACHINE) as machine:
        told = run("fork_cow", machine)
    assert told == {"pages shared by fork": 3, "copied": 2, "made writable again": 3, "faults": 5}
    printed = capsys.readouterr().out
    lines = {line[:44].strip(): line[44:].split() for line in printed.splitlines()}
    parent, child, *counts = lines["fork"]
    assert parent == child and counts == ["2", "2", "no", "0", "faults"]
    assert lines["the child exits"][1:] == ["-", "1", "1", "no", "0", "faults"]
    assert "the parent reads [11, 21, 3], the child [10, 20, 3]" in printed


def test_page_fault_life_tells_every_kind_of_fault(capsys):
    with Machine(**importlib.import_module("page_fault_life").MACHINE) as machine:
        rows = run("page_fault_life", machine)
        machine.check()
    kinds = {name: (row["minor"], row["major"], row["SIGSEGV"]) for name, row in rows.items()}
    assert kinds == {
        "load": (1, 0, "no"),
        "store": (1, 0, "no"),
        "store again": (0, 0, "no"),
        "pageout": (0, 0, "no"),
        "pressure": (0, 0, "no"),
        "load from swap": (0, 1, "no"),
        "outside": (0, 0, "yes"),
    }
    assert rows["load from swap"]["cost ns"] > 20 * rows["store"]["cost ns"] > 20 * rows["store again"]["cost ns"]
    told = capsys.readouterr().out
    for words in (
        "error code 0x4 (page not present, read, user)",
        "error code 0x7 (protection, write, user)",
        "the shared page of zeros",
        "the TLB had it",
        "(not present)  ->  pfn",
    ):
        assert words in told


def test_lumpy_reclaim_writes_what_compaction_moves(shown):
    result = shown("lumpy_vs_compaction").result
    for size, asked in (("64 KiB", 512), ("2 MiB", 16)):
        lumpy, moved = ({name: row[f"{size}, {mode}"] for name, row in result.items()} for mode in ("lumpy", "moved"))
        assert lumpy["contents"] == moved["contents"] == "as written"
        assert lumpy["blocks asked for"] == asked and lumpy["blocks obtained"] >= asked * 0.8
        assert moved["blocks obtained"] >= asked * 0.8
        assert lumpy["pages moved"] == 0 and lumpy["written to swap"] == lumpy["pages reclaimed"] > 1000
        assert moved["pages moved"] > 1000 and moved["pages reclaimed"] <= moved["written to swap"] < 100
        assert lumpy["refaults"] == lumpy["read back from swap"] > 1000 > 100 > moved["refaults"]
        assert (
            lumpy["us per block"] > 2.5 * moved["us per block"]
            and lumpy["ms to read all"] > 2 * moved["ms to read all"]
        )


@pytest.mark.parametrize("mix", ["desktop", "stress"])
def test_anti_fragmentation_grouping_keeps_huge_blocks(shown, mix):
    rows = shown("anti_fragmentation").result
    grouped, mixed = rows[f"{mix}, grouped"], rows[f"{mix}, not grouped"]
    share, share_mixed = (float(row["in huge blocks"].rstrip(" %")) for row in (grouped, mixed))
    assert share > 50 and share > 5 * share_mixed
    assert all(float(row["memory taken"].split()[0]) > 3 for row in (grouped, mixed))


def test_anti_fragmentation_draws_its_maps(monkeypatch, capsys):
    module = importlib.import_module("anti_fragmentation")
    monkeypatch.setattr(module, "MIXES", {name: mix._replace(rounds=12) for name, mix in module.MIXES.items()})
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="64MiB") as machine:
        table = module.main(machine)
    assert list(table) == ["desktop, grouped", "desktop, not grouped", "stress, grouped", "stress, not grouped"]
    assert [row["published"] for row in table.values()] == ["60 to 70 %", "under 1 %", "about 80 %", "8 to 12 %"]
    printed = capsys.readouterr().out
    assert all(f"{name}: {row['in huge blocks']} of memory in huge blocks" in printed for name, row in table.items())
    assert printed.count("applications have ended") == 8  # a map for each zone


def test_fits_trade_memory_for_search(shown):
    table = shown("malloc_fits").result
    first, next_fit, best = (table[f"{name} fit"] for name in ("first", "next", "best"))
    assert best["heap KiB"] < first["heap KiB"] < next_fit["heap KiB"]
    assert best["ns an operation"] > 2 * first["ns an operation"] > 4 * next_fit["ns an operation"]
    assert table["list, lifo"]["ns an operation"] < table["list, address"]["ns an operation"]
    assert len({row["in use at midnight KiB"] for row in table.values()}) == 1
    assert shown("malloc_fits").printed.count("at midnight, from") == 5


def test_arenas_keep_blocks_where_their_thread_runs(shown):
    table = shown("malloc_arenas").result
    assert table["segregated, one lock"]["remote %"] > 25
    assert table["ptmalloc, by thread"]["remote %"] < 10 and table["ptmalloc, by node"]["remote %"] < 10
    times = [row["ns an operation"] for row in table.values()]
    assert times[0] > times[1] > 1.3 * max(times[2:])
    assert table["ptmalloc, by thread"]["heap KiB"] > table["ptmalloc, by node"]["heap KiB"]


def test_collectors_differ_in_pauses_and_in_the_program(shown):
    table = shown("gc_trees").result
    assert table["refcount"]["collections"] == 0 and table["refcount"]["longest pause us"] == 0
    program = {name: row["ns an object"] - row["of these in pauses"] for name, row in table.items()}
    assert program["refcount"] > 2 * max(time for name, time in program.items() if name != "refcount")
    assert table["copying"]["collections"] > 2 * table["mark-sweep"]["collections"]
    assert table["mark-sweep"]["of these in pauses"] < table["mark-compact"]["of these in pauses"]
    assert min(table, key=lambda name: table[name]["of these in pauses"] or 1 << 30) == "generational"


def test_counts_miss_rings_and_nothing_else(shown):
    table = shown("gc_cycle").result
    rings = {f"round {i}": i * 100 * 8 * 32 for i in range(1, 7)}
    assert table["refcount, chains"] == {**dict.fromkeys(rings, 0), "collected": 0}
    for name in ("refcount, rings", "mark-sweep, chains", "mark-sweep, rings"):
        assert table[name] == {**rings, "collected": 0}


def test_a_large_eden_promotes_nothing(shown):
    table = shown("gc_eden").result
    promoted = [row["promoted KiB"] for row in table.values()]
    assert promoted == sorted(promoted, reverse=True) and promoted[0] > 1000 and promoted[-1] == 0
    pauses = [row["pauses %"] for row in table.values()]
    assert pauses == sorted(pauses, reverse=True)
    assert "[gc] GC(0) Pause Young (Allocation Failure)" in shown("gc_eden").printed


def test_a_collector_that_walks_a_swapped_heap_thrashes(shown):
    table = shown("gc_swap").result
    faults = {name: row["major faults"] for name, row in table.items()}
    assert faults["mark-sweep"] > 3 * faults["generational"] and faults["copying"] > 3 * faults["generational"]
    assert table["mark-sweep"]["longest pause us"] > 100 * table["generational"]["longest pause us"]


def test_pages_follow_a_task_only_with_balancing(shown):
    rows = shown("following_pages").result
    assert rows["balancing off"]["pages near at the end"] == 0
    assert rows["balancing on"]["pages near at the end"] > 900
    assert rows["balancing on"]["ns at the end"] < 0.5 * rows["balancing off"]["ns at the end"]


def test_private_memory_of_a_hash_join_comes_to_its_thread(shown):
    rows = shown("hash_join").result
    assert (
        rows["balancing off"]["private pages that are local, %"] == 12
    )  # those of the thread that read them, one of eight
    assert rows["balancing on"]["private pages that are local, %"] > 90
    assert rows["balancing on"]["private, ns"] < rows["balancing off"]["private, ns"]


def test_tiers_of_the_presets(shown, ring):
    rows = shown("memory_tiers").result
    assert rows["uma"] == "tier 4: nodes 0" and rows["four-node-ring"] == "tier 4: nodes 0-3"
    assert rows["three-tier"] == "tier 4: nodes 0, tier 56: nodes 1, tier 1080: nodes 2"


def test_tiering_brings_a_hot_set_back(shown):
    rows = shown("wandering_hot_set").result
    still, frequency = rows["first touch"], rows["by frequency"]
    assert still["promoted"] == still["demoted"] == 0 and still["at place 2"] > 240
    assert frequency["mean ns"] < rows["Linux tiering"]["mean ns"] < 1.05 * still["mean ns"]
    assert frequency["promoted"] > 3000 and rows["Linux tiering"]["promoted"] > 1000


def test_nothing_is_won_where_everything_is_hot(shown):
    rows = shown("tier_pingpong").result
    times = [row["ns of a load"] for row in rows.values()]
    assert max(times) < 1.1 * min(times) and rows["tiering off"]["promoted"] == 0
