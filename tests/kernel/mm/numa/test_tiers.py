"""Memory tiers on a loopback machine: which node is in which, demotion by reclaim, promotion of what is hot."""

import numpy as np
import pytest

from numaemu import uapi
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.smp import READER
from numaemu.kernel.include.gfp import __GFP_MEMALLOC, __GFP_NOMEMALLOC, __GFP_THISNODE, GFP_TRANSHUGE_LIGHT
from numaemu.kernel.include.mmzone import node_of, page_of
from numaemu.kernel.mm.numa.memory_tiers import MEMTIER_ADISTANCE_DRAM, can_demote, next_demotion_node
from numaemu.kernel.mm.numa.prot_numa import change_prot_numa
from numaemu.kernel.mm.reclaim.demote import is_idle_whole, lock_vma_of_huge
from numaemu.kernel.mm.reclaim.pageout import DEMOTE, KEEP_LOCKED, scan_control_of
from numaemu.spec.param import PAGE_SIZE

TIERS = "/sys/devices/virtual/memory_tiering"
SLOW = [[5000, 8000], [8000, 8000]]  # ns: time passes quickly


def tiered(loopback, memory=("16MiB", "16MiB"), latency=None, bandwidth=None, distance=None):
    """A node with two CPUs, and nodes without, each slower than the one before."""
    slower = range(len(memory))
    row = lambda n: [100 * 4 ** max(n, m) for m in slower]
    machine = {
        "node": [{"memory": size, "cpus": 0 if n else 2} for n, size in enumerate(memory)],
        "latency": {"matrix": latency or [row(n) for n in slower]},
        "bandwidth": {"matrix": bandwidth or [[100_000] * len(memory) for _ in slower]},
    }
    if distance:
        machine["distance"] = {"matrix": distance}
    return loopback(machine)


def counted(loop, *names):
    stats = loop.vmstat()
    return [stats[name] for name in names]


def nodes(loop, task, area):
    return np.bincount(task.move_pages(area.pages()), minlength=loop.machine.nr_nodes).tolist()


def hint(loop, task, area):
    (vma,) = [vma for vma in loop.vmas(task) if vma.start <= area.addr < vma.end]
    return change_prot_numa(loop.cpu(task.cpu), vma, np.uint64(area.addr), np.uint64(area.addr + area.nbytes))


def on_node(loop, task, nid, pages):
    """A mapping whose pages are on a node, with the default policy again; none is in a batch."""
    area = task.mmap(pages * PAGE_SIZE)
    task.mbind(area.addr, area.nbytes, uapi.MPOL_BIND, nid)
    area.touch(write=True)
    task.mbind(area.addr, area.nbytes, uapi.MPOL_DEFAULT)
    loop.drain()
    return area


# -- which tier ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latency", "bandwidth", "adistance"),
    [
        ((100, 400), (102400, 20480), 11520),  # as recorded: memory_tier90
        ((100, 100), (100, 100), 576),
        ((100, 199), (100, 100), 1146),  # each step in whole numbers: 576 * 199 / 100
        ((100, 50), (100, 400), 72),  # memory that is faster than the CPUs' own
    ],
)
def test_abstract_distance(loopback, latency, bandwidth, adistance):
    square = lambda pair: [[pair[max(n, m)] for m in range(2)] for n in range(2)]
    loop = tiered(loopback, latency=square(latency), bandwidth=square(bandwidth))
    assert node_of(loop.machine, 0).adistance == MEMTIER_ADISTANCE_DRAM
    assert node_of(loop.machine, 1).adistance == adistance
    assert loop.read(f"{TIERS}/memory_tier4/nodelist").startswith("0")
    assert "1" in loop.read(f"{TIERS}/memory_tier{adistance >> 7}/nodelist")
    assert node_of(loop.machine, 1).toptier == (adistance >> 7 <= 4)


def test_without_bandwidths_all_memory_is_one_tier(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", memory_only_nodes=1)
    assert loop.read(f"{TIERS}/memory_tier4/nodelist") == "0-1\n"
    loop.write("/sys/kernel/mm/numa/demotion_enabled", "1")
    assert not can_demote(loop.machine, 0)


def test_dram_nodes_that_differ_are_not_believed(loopback):
    """mt_set_default_dram_perf: more than a tenth apart."""
    machine = {
        "node": [{"memory": "16MiB", "cpus": 1}, {"memory": "16MiB", "cpus": 1}],
        "latency": {"matrix": [[100, 200], [200, 120]]},
        "bandwidth": {"matrix": [[100, 50], [50, 100]]},
    }
    loop = loopback(machine)
    assert loop.read(f"{TIERS}/memory_tier4/nodelist") == "0-1\n"


@pytest.mark.interpreted
def test_three_tiers_and_their_targets(loopback):
    distance = [[10, 20, 30, 20], [20, 10, 20, 20], [30, 20, 10, 20], [20, 20, 20, 10]]
    rows = [[[100, 400, 1600, 400][max(n, m) if n != m or n else 0] for m in range(4)] for n in range(4)]
    rows = [[100, 400, 1600, 400]] + rows[1:]
    loop = tiered(loopback, ("16MiB", "8MiB", "8MiB", "8MiB"), latency=rows, distance=distance)
    tiers = [f"{TIERS}/memory_tier{n}/nodelist" for n in (4, 18, 72)]
    assert [loop.read(path) for path in tiers] == ["0\n", "1,3\n", "2\n"]
    assert {next_demotion_node(loop.machine, 0, turn) for turn in range(4)} == {1, 3}  # both are as near
    assert [next_demotion_node(loop.machine, node, 0) for node in (1, 2, 3)] == [2, -1, 2]
    assert [int(node_of(loop.machine, node).lower_tier_mask) for node in range(4)] == [0b1110, 0b100, 0, 0b100]


# -- demotion --------------------------------------------------------------------------------------------------


@pytest.fixture
def demoting(loopback):
    loop = tiered(loopback, ("8MiB", "8MiB"))
    loop.write("/sys/kernel/mm/numa/demotion_enabled", "true")
    return loop


def test_a_full_node_demotes_instead_of_swapping(demoting):
    task = demoting.task()
    task.set_mempolicy(uapi.MPOL_BIND, "0")
    area = task.mmap("11MiB")
    words = np.arange(len(area.pages()), dtype=np.uint64)
    task.store(area.pages(), words)
    assert (task.load(area.pages(), np.uint64) == words).all()
    demoted = sum(counted(demoting, "pgdemote_kswapd", "pgdemote_direct"))
    assert nodes(demoting, task, area)[1] == demoted > 500
    assert counted(demoting, "pgsteal_anon", "pgmigrate_success", "oom_kill") == [demoted, demoted, 0]
    assert "pgdemote_direct" in demoting.read("/sys/devices/system/node/node0/vmstat")
    demoting.audit()


@pytest.mark.interpreted
def test_files_are_demoted_too(demoting):
    demoting.create_file("/f", 6 << 20)
    task = demoting.task()
    task.set_mempolicy(uapi.MPOL_BIND, "0")
    with task.open("/f") as file:
        file.read(6 << 20)
        task.mmap("4MiB").touch(write=True)
        demoted = sum(counted(demoting, "pgdemote_kswapd", "pgdemote_direct"))
        file.seek(0)
        before = counted(demoting, "pgpgin")
        file.read(6 << 20)
    assert demoted > 300 and counted(demoting, "pgpgin") == before  # all of it is still there
    demoting.audit()


def huge_under_pressure(loop, hinder=None):
    """A task's 6 MiB in huge pages of node 0, which is too small for them and what another task takes then: (task, area, words)."""
    loop.write("/sys/kernel/mm/numa/demotion_enabled", "1")
    task, other = loop.task(), loop.task(cpu=1)
    loop.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    area = task.mmap("6MiB")
    words = np.arange(len(area.pages()), dtype=np.uint64)
    task.store(area.pages(), words)
    loop.write("/sys/kernel/mm/transparent_hugepage/enabled", "never")
    assert (nodes(loop, task, area), huge_kib(loop, task)) == ([len(words), 0], 6 << 10)
    if hinder:
        hinder(task)
    other.set_mempolicy(uapi.MPOL_BIND, "0")
    other.mmap("9MiB").touch(write=True)
    return task, area, words


def huge_kib(loop, task):
    """What huge entries map of a task's memory, in KiB."""
    lines = loop.read(f"/proc/{task.pid}/smaps").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


@pytest.mark.interpreted
def test_huge_pages_are_demoted_whole(loopback):
    loop = tiered(loopback)
    task, area, words = huge_under_pressure(loop)
    below = nodes(loop, task, area)[1]
    assert below > 0 and below % 512 == 0 and huge_kib(loop, task) == 6 << 10
    assert counted(loop, "thp_migration_success", "thp_migration_split", "thp_split_pmd") == [below // 512, 0, 0]
    demoted, scanned = (sum(counted(loop, f"{name}_kswapd", f"{name}_direct")) for name in ("pgdemote", "pgscan"))
    assert counted(loop, "pgsteal_anon") == [demoted] and below <= demoted <= scanned
    assert (task.load(area.pages(), np.uint64) == words).all()
    loop.audit()


@pytest.mark.parametrize("hindrance", ["no huge page below", "mmap_lock"])
def test_a_huge_page_is_demoted_in_pieces_where_it_cannot_move_whole(loopback, hindrance):
    loop, lock = tiered(loopback), []

    def hinder(task):
        if hindrance == "mmap_lock":
            lock.append(mm_of(loop.machine, loop.cpu(0).mm))
            lock[0].mmap_lock = READER
        else:
            kernel, blocks = loop.task().kernel, []
            gfp = (GFP_TRANSHUGE_LIGHT & ~__GFP_NOMEMALLOC) | __GFP_MEMALLOC | __GFP_THISNODE
            while (pfn := kernel.alloc_pages(gfp, 8, 1)) is not None:
                blocks.append(pfn)
            for pfn in (pfn for pfn in blocks if pfn & 256):  # half of a huge page each
                kernel.free_pages(pfn, 8)

    task, area, words = huge_under_pressure(loop, hinder)
    for mm in lock:
        mm.mmap_lock -= READER
    below = nodes(loop, task, area)[1]
    assert below > 0 and huge_kib(loop, task) < 6 << 10
    assert counted(loop, "thp_migration_success") == [0]
    assert (task.load(area.pages(), np.uint64) == words).all()
    loop.audit()


@pytest.mark.interpreted
def test_an_address_space_that_ends_keeps_its_huge_pages(loopback):
    """Its last user unmaps without the mmap_lock."""
    loop = tiered(loopback)
    loop.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    task = loop.task()
    area = task.mmap("2MiB").touch(write=True)
    pfn, mm, cpu = task.walk(area.addr)[-1]["pfn"], mm_of(loop.machine, loop.cpu(0).mm), loop.cpu(0)
    family, users = page_of(loop.machine, pfn).mapping, mm.users
    mm.users = 0
    assert (lock_vma_of_huge(cpu, family, pfn), mm.mmap_lock) == (0, 0)
    mm.users = users
    assert lock_vma_of_huge(cpu, family, pfn) > 0 and mm.mmap_lock < 0
    mm.mmap_lock = 0


@pytest.mark.interpreted
def test_of_a_huge_page_that_was_used_no_part_is_demoted(loopback):
    loop = tiered(loopback)
    sc = scan_control_of(loop.cpu(0))
    sc.nr_taken = 4
    for i, (pfn, state) in enumerate(((1024, DEMOTE), (1025, KEEP_LOCKED), (1535, DEMOTE), (1536, DEMOTE))):
        sc.pfn[i], sc.state[i] = pfn, state
    assert not is_idle_whole(sc, 1024, 512)
    assert [sc.state[i] for i in range(4)] == [KEEP_LOCKED, KEEP_LOCKED, KEEP_LOCKED, DEMOTE]
    assert is_idle_whole(sc, 1536, 512)


def test_without_room_below_pages_are_reclaimed(loopback):
    loop = tiered(loopback, ("8MiB", "2MiB"))
    loop.write("/sys/kernel/mm/numa/demotion_enabled", "1")
    loop.create_file("/f", 12 << 20)
    task = loop.task()
    task.set_mempolicy(uapi.MPOL_BIND, "0")
    with task.open("/f") as file:
        file.read(12 << 20)
        file.seek(0)
        before = counted(loop, "pgpgin")[0]
        file.read(12 << 20)
    assert sum(counted(loop, "pgdemote_kswapd", "pgdemote_direct")) > 300
    assert counted(loop, "pgpgin")[0] > before and counted(loop, "oom_kill") == [0]
    loop.audit()


def test_where_demotion_is_off_nothing_is_demoted(demoting):
    demoting.write("/sys/kernel/mm/numa/demotion_enabled", "0")
    demoting.create_file("/f", 7 << 20)
    task = demoting.task()
    task.set_mempolicy(uapi.MPOL_BIND, "0")
    with task.open("/f") as file:
        file.read(7 << 20)
    task.mmap("4MiB").touch(write=True)
    assert counted(demoting, "pgdemote_kswapd", "pgdemote_direct") == [0, 0]
    assert counted(demoting, "pgsteal_file")[0] > 0


# -- promotion -------------------------------------------------------------------------------------------------


@pytest.fixture
def promoting(loopback):
    """Mode 2; every page that is used soon after a scan is hot."""
    loop = tiered(loopback, ("16MiB", "16MiB"), latency=SLOW, bandwidth=[[100, 20], [20, 20]])
    loop.write("/proc/sys/kernel/numa_balancing", "2")
    return loop


@pytest.mark.interpreted
def test_hot_pages_are_promoted_and_fast_ones_are_not_scanned(promoting):
    task = promoting.task()
    fast, slow = on_node(promoting, task, "0", 8), on_node(promoting, task, "1", 8)
    assert hint(promoting, task, fast) == 0 and hint(promoting, task, slow) == 8
    slow.touch(write=True)
    assert nodes(promoting, task, slow) == [8, 0]
    assert counted(promoting, "pgpromote_candidate", "pgpromote_success", "numa_pages_migrated") == [8, 8, 8]
    assert counted(promoting, "pgreuse") == [8]
    promoting.audit()


@pytest.mark.interpreted
def test_a_page_that_is_used_late_is_cold(promoting):
    promoting.write("/sys/kernel/debug/sched/numa_balancing/hot_threshold_ms", "5")
    task = promoting.task()
    slow = on_node(promoting, task, "1", 8)
    hint(promoting, task, slow)
    task.sleep(6)
    slow.touch(write=False)
    assert nodes(promoting, task, slow) == [0, 8]
    assert counted(promoting, "numa_hint_faults", "pgpromote_candidate") == [8, 0]
    hint(promoting, task, slow)
    slow.touch(write=False)
    assert nodes(promoting, task, slow) == [8, 0]


def test_so_many_pages_a_second(promoting):
    promoting.write("/proc/sys/kernel/numa_balancing_promote_rate_limit_MBps", "1")  # 256 pages
    task = promoting.task()
    slow = on_node(promoting, task, "1", 600)
    for promoted in (
        255,
        255,
        511,
    ):  # the page that reaches the limit is a candidate only; a new second begins behind one
        hint(promoting, task, slow)
        slow.touch(write=False)
        assert nodes(promoting, task, slow)[0] == promoted
        promoting.drain()
        if counted(promoting, "numa_hint_faults")[0] > 700:
            task.sleep(1100)


def test_a_full_node_makes_room_for_what_is_promoted(promoting):
    promoting.write("/sys/kernel/mm/numa/demotion_enabled", "1")
    task, cold = promoting.task(cpu=0), promoting.task(cpu=1)
    slow = on_node(promoting, task, "1", 400)
    cold.set_mempolicy(uapi.MPOL_PREFERRED, "0")
    cold.mmap("17MiB").touch(write=True)
    promoting.drain()
    before = counted(promoting, "pgdemote_kswapd")[0]
    for _ in range(6):
        hint(promoting, task, slow)
        slow.touch(write=False)
        promoting.drain()
    assert nodes(promoting, task, slow)[0] == 400
    assert counted(promoting, "pgdemote_kswapd")[0] > before
    promoting.audit()
