"""Machines as they also come: nodes without memory, nodes that end within a pageblock, gaps in the numbers of CPUs, many CPUs."""

import errno

import numpy as np
import pytest

from numaemu import (
    __GFP_NORETRY,
    __GFP_NOWARN,
    __GFP_THISNODE,
    GFP_KERNEL,
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_MEMS_ALLOWED,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_MF_MOVE,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
    Machine,
)
from numaemu.errors import ConfigError
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.include.mmzone import MIGRATE_HIGHATOMIC, MIGRATE_MOVABLE
from numaemu.kernel.mm.page_alloc.free_area import get_pageblock_migratetype
from numaemu.kernel.mm.page_alloc.mobility import reserve_highatomic_pageblock, start_isolate_page_range
from numaemu.kernel.mm.page_alloc.watermark import has_block
from numaemu.spec.topology import load_topology
from numaemu.spec.units import KiB, MiB

NODES = "/sys/devices/system/node"
GROUPS = "/sys/fs/cgroup"
# fmt: off
ODD = {"node": [                     # a cut node with a gap, none, one page, a cut node without CPUs, a cut one far away
    {"memory": "5004KiB", "cpus": "0-1,4"}, {"memory": 0, "cpus": "6"}, {"memory": "4KiB"}, {"memory": "28676KiB"},
    {"memory": "12292KiB", "cpus": [9]}]}
# fmt: on
BLOCK = 512


@pytest.fixture
def odd(loopback):
    return loopback(ODD)


def refused(number, function, *args, **keywords):
    with pytest.raises(OSError) as caught:
        function(*args, **keywords)
    assert caught.value.errno == number


# -- what a machine file may say -----------------------------------------------------------------------------


def test_a_machine_comes_back_from_its_own_text(tmp_path):
    machine = load_topology(ODD)
    assert machine.cpus == (0, 1, 4, 6, 9) and machine.nr_cpus == 5 and machine.nr_cpu_ids == 10
    path = tmp_path / "odd.toml"
    path.write_text(machine.to_toml())
    again = load_topology(str(path))
    assert (again.nodes, again.physical_ranges()) == (machine.nodes, machine.physical_ranges())
    with pytest.raises(ValueError, match="cpu 5 does not exist, cpus are 0-1,4,6,9"):
        machine.node_of_cpu(5)


def test_every_node_begins_at_a_pageblock():
    starts = [start for node in load_topology(ODD).physical_ranges() for start, _ in node]
    assert starts == [0, 6 * MiB, 8 * MiB, 38 * MiB] and load_topology(ODD).physical_ranges()[1] == []
    assert load_topology({"node": [{"memory": "64307MiB", "cpus": 1}]}).memory_bytes == 64307 * MiB


def test_holes_count_where_addresses_are_short():
    nodes = [{"memory": "4100KiB", "cpus": 1}, {"memory": "3067MiB"}]
    with pytest.raises(ConfigError, match="machine has 3GiB of memory, must be at most 3GiB|must be at most 3GiB"):
        load_topology({"node": [*nodes, {"memory": "4KiB"}], "paging": "x86-32"})


def test_keywords_leave_nodes_without_memory_alone():
    machine = load_topology(ODD, memory_per_node="16MiB")
    assert [node.memory_bytes for node in machine.nodes] == [16 * MiB, 0, 16 * MiB, 16 * MiB, 16 * MiB]
    machine = load_topology({"node": [{"memory": 0, "cpus": 1}, {"memory": "8MiB"}]}, memory_only_nodes=1)
    assert [node.memory_bytes for node in machine.nodes] == [0, 8 * MiB, 8 * MiB]


def test_zone_movable_begins_at_a_pageblock(loopback):
    loop = loopback({"node": [{"memory": "21504KiB", "cpus": 1}], "movablecore": "6MiB"})
    normal, movable = loop.zones()
    assert movable.start_pfn % BLOCK == 0 and movable.present_pages == 5376 - 8 * BLOCK
    assert normal.start_pfn + normal.spanned_pages == movable.start_pfn
    loop.audit()


# -- nodes without memory ------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_files_of_the_nodes(odd):
    wanted = {
        "possible": "0-4",
        "online": "0-4",
        "has_cpu": "0-1,4",
        "has_memory": "0,2-4",
        "has_normal_memory": "0,2-4",
    }
    assert {name: odd.read(f"{NODES}/{name}").strip() for name in wanted} == wanted
    assert odd.read(f"{NODES}/node0/cpulist") == "0-1,4\n" and odd.read(f"{NODES}/node0/cpumap") == "013\n"
    assert odd.read(f"{NODES}/node1/cpulist") == "6\n" and odd.read(f"{NODES}/node2/cpulist") == "\n"
    assert odd.read(f"{NODES}/node1/meminfo").startswith("Node 1 MemTotal:              0 kB\n")
    assert odd.read(f"{NODES}/node1/numastat").startswith("numa_hit 0\nnuma_miss 0\nnuma_foreign 0\n")
    zoneinfo = odd.read("/proc/zoneinfo")
    for node in range(5):
        assert zoneinfo.count(f"Node {node}, zone ") == 5
    assert [line.split()[1] for line in zoneinfo.splitlines() if line.startswith("    cpu: ")][:5] == [
        "0",
        "1",
        "4",
        "6",
        "9",
    ]
    assert "Node 1," not in odd.read("/proc/buddyinfo") + odd.read("/proc/pagetypeinfo")
    assert [cpu["cpu"] for cpu in odd.actors[0].rpc_stats()["cpus"]] == [0, 1, 4, 6, 9]


@pytest.mark.interpreted
def test_memory_comes_along_the_zonelist_and_is_a_hit_there(odd):
    """zone_statistics: the preferred zone is the first of the list; numa_node_id() is the node that has none."""
    task = odd.task(cpu=6)
    assert task.node == 1 and set(task.mmap("64KiB").touch().nodes().tolist()) == {3}
    stat = dict(line.split() for line in odd.read(f"{NODES}/node3/numastat").splitlines())
    assert int(stat["numa_hit"]) == int(stat["other_node"]) > 16
    assert stat["numa_miss"] == stat["numa_foreign"] == stat["local_node"] == "0"
    kernel = task.kernel
    assert kernel.page(kernel.alloc_pages(GFP_KERNEL, 0, nid=1))["node"] == 3
    assert kernel.kmalloc(100, GFP_KERNEL, nid=1)
    odd.audit()


@pytest.mark.interpreted
def test_an_allocation_that_has_no_zone_fails_at_once(odd):
    """__alloc_pages_slowpath: nopage if first_zones_zonelist finds none; not even reclaim is tried."""
    pfn, trail = odd.task().kernel.alloc_pages(GFP_KERNEL | __GFP_THISNODE | __GFP_NOWARN, nid=1, explain=True)
    assert pfn is None and [step.what for step in trail] == ["lower bar", "failed"]


@pytest.mark.interpreted
def test_policies_name_nodes_with_memory(odd):
    task = odd.task(cpu=6)
    area = task.mmap("64KiB").touch()
    for mode in (MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED, MPOL_PREFERRED_MANY, MPOL_WEIGHTED_INTERLEAVE):
        refused(errno.EINVAL, task.set_mempolicy, mode, [1])
        refused(errno.EINVAL, task.mbind, area.addr, area.nbytes, mode, [1])
        task.set_mempolicy(mode, [1, 4])
        assert task.get_mempolicy() == (mode, [4])
    refused(errno.EINVAL, task.set_mempolicy, MPOL_INTERLEAVE | MPOL_F_STATIC_NODES, [1])
    task.set_mempolicy(MPOL_INTERLEAVE | MPOL_F_STATIC_NODES, [1, 4])
    assert task.get_mempolicy() == (MPOL_INTERLEAVE | MPOL_F_STATIC_NODES, [1, 4])
    assert task.mmap("8KiB").touch().nodes().tolist() == [4, 4]
    task.set_mempolicy(MPOL_LOCAL, None)
    assert task.mmap("8KiB").touch().nodes().tolist() == [3, 3]
    task.set_mempolicy(MPOL_DEFAULT, None)
    assert task.get_mempolicy(flags=MPOL_F_MEMS_ALLOWED)[1] == [0, 2, 3, 4]
    task.mbind(area.addr, area.nbytes, MPOL_BIND, [1, 4], MPOL_MF_MOVE)
    assert set(area.nodes().tolist()) == {4}
    odd.audit()


@pytest.mark.interpreted
def test_nothing_moves_to_a_node_without_memory(odd):
    task = odd.task(cpu=6)
    area = task.mmap("16KiB").touch()
    refused(errno.ENODEV, task.move_pages, area.pages(), nodes=1)
    refused(errno.ENODEV, task.move_pages, area.pages(), nodes=5)
    refused(errno.EINVAL, task.migrate_pages, 3, 1)
    assert task.migrate_pages([3], [1, 4]) == 0 and set(area.nodes().tolist()) == {4}
    assert task.migrate_pages([1], [3]) == 0 and set(area.nodes().tolist()) == {4}
    odd.audit()


@pytest.mark.interpreted
def test_cpusets_take_a_node_without_memory_and_no_cpu_that_is_missing(odd):
    """Version 2: any possible node or CPU; one without memory allows nothing, alone it leaves what the parent has."""
    system, group = odd.actors[0].system, GROUPS + "/g"
    odd.write(GROUPS + "/cgroup.subtree_control", "+cpuset")
    proc.mkdir(system, group)
    for written, effective in (("1", "0,2-4"), ("1,4", "4"), ("0-4", "0,2-4")):
        odd.write(group + "/cpuset.mems", written)
        assert (odd.read(group + "/cpuset.mems"), odd.read(group + "/cpuset.mems.effective")) == (
            written + "\n",
            effective + "\n",
        )
    for name, wrong in (("mems", "5"), ("cpus", "5"), ("cpus", "6-9")):
        refused(errno.EINVAL, proc.write, system, f"{group}/cpuset.{name}", wrong)
    odd.write(group + "/cpuset.mems", "1,4")
    odd.write(group + "/cpuset.cpus", "9")
    task = odd.task(cpu=6)
    area = task.mmap("16KiB").touch()
    odd.write(group + "/cgroup.procs", str(task.pid))
    assert task.cpu == 9 and set(area.nodes().tolist()) == {4}
    refused(errno.EACCES, task.move_pages, area.pages(), nodes=0)
    refused(errno.EINVAL, task.set_mempolicy, MPOL_BIND, [0, 1])
    odd.audit()


def test_pools_and_the_whole_machines_files_go_past_it(odd):
    pool = "hugepages/hugepages-2048kB/nr_hugepages"
    for node, got in ((1, 0), (2, 0), (4, 2)):
        odd.write(f"{NODES}/node{node}/{pool}", "2")
        assert odd.read(f"{NODES}/node{node}/{pool}") == f"{got}\n"
    odd.write("/proc/sys/vm/nr_hugepages", "5")
    assert odd.read("/proc/sys/vm/nr_hugepages") == "5\n" and odd.read(f"{NODES}/node1/{pool}") == "0\n"
    odd.write("/proc/sys/vm/nr_hugepages", "0")
    for node in range(5):
        odd.write(f"{NODES}/node{node}/compact", "1")
    odd.write("/proc/sys/vm/compact_memory", "1")
    odd.write("/proc/sys/vm/drop_caches", "3")
    odd.audit()


@pytest.mark.interpreted
def test_the_first_node_may_be_the_one_without(loopback):
    """Boot, node 0's kernel threads, the pools' first turn."""
    loop = loopback({"node": [{"memory": 0, "cpus": "0,3"}, {"memory": "9MiB", "cpus": 0}]})
    loop.write("/proc/sys/vm/nr_hugepages", "1")
    task = loop.task(cpu=3)
    assert set(task.mmap("64KiB").touch().nodes().tolist()) == {1} and loop.read("/proc/sys/vm/nr_hugepages") == "1\n"
    assert loop.read(f"{NODES}/has_normal_memory") == "1\n"
    loop.audit()


# -- gaps in the numbers of CPUs -----------------------------------------------------------------------------


@pytest.mark.interpreted
def test_a_missing_cpu_is_named(odd):
    task = odd.task(cpu=0)
    assert task.sched_setaffinity({2, 3, 5, 4000, 6}) == 6 and task.sched_setaffinity({5, 9}) == 9
    refused(errno.EINVAL, task.sched_setaffinity, {5, 7})
    for start in (task.fork, task.clone):
        with pytest.raises(OSError, match=r"cpu 5 is not a CPU of this machine \(0-1,4,6,9\)") as caught:
            start(cpu=5)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match="cpu 5 is not one of 0-1,4,6,9"):
        odd.actors[0].rpc_new_task(5, "nobody")
    status = odd.read(f"/proc/{task.pid}/status")
    assert "Cpus_allowed:\t200\n" in status and "Cpus_allowed_list:\t9\n" in status


@pytest.mark.interpreted
def test_what_is_per_cpu_is_per_cpu_that_there_is(odd):
    task = odd.task(cpu=9)
    kernel = task.kernel
    counter = kernel.alloc_percpu(8, 8)
    assert odd.read("/proc/meminfo").split("Percpu:")[1].split()[0] == str(5 * 32)
    with pytest.raises(ValueError, match="cpu 5 is not one of 0-1,4,6,9"):
        kernel.per_cpu_ptr(counter, 5)
    kernel.free_percpu(counter)
    odd.audit()


@pytest.mark.interpreted
def test_the_kernels_addresses_are_flushed_where_there_are_cpus(loopback):
    """One CPU with a high number has nobody to tell; a missing one is never a target."""
    for cpus, sent in (("0", 0), ("0,70", 1)):
        loop = loopback({"node": [{"memory": "8MiB", "cpus": cpus}]})
        kernel = loop.task(cpu=int(cpus.split(",")[-1])).kernel
        before = loop.vmstat()["nr_tlb_remote_flush"]
        kernel.vfree(kernel.vmalloc(8192))
        kernel.vm_unmap_aliases()
        assert loop.vmstat()["nr_tlb_remote_flush"] - before == sent


@pytest.mark.interpreted
def test_a_number_that_is_no_cpu_is_on_no_node(loopback):
    """Node 0 has no CPU, although the missing one is the first that is looked at: who asks for N_CPU is told so."""
    loop = loopback({"node": [{"memory": "8MiB"}, {"memory": "8MiB", "cpus": "0,2"}]})
    assert [cpu_t.array(loop.machine.cpus)[number].node for number in range(5)] == [1, -1, 1, 0, 1]
    assert loop.read(f"{NODES}/has_cpu") == "1\n"


# -- nodes that end within a pageblock -----------------------------------------------------------------------


@pytest.mark.interpreted
@pytest.mark.parametrize("kib", [4096 + 4, 4096 + 2044, 6144 + 1028])
def test_a_cut_zone_gives_all_it_has_and_takes_it_back(loopback, kib):
    loop = loopback({"node": [{"memory": f"{kib}KiB", "cpus": 1}]}, sysctl={"vm.min_free_kbytes": 128})
    kernel, (zone,) = loop.task().kernel, loop.zones()
    assert zone.start_pfn + zone.spanned_pages == kib // 4
    taken, gfp = [], GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN
    for order in (10, 9, 5, 2):
        while (pfn := kernel.alloc_pages(gfp, order)) is not None:
            taken.append((pfn, order))
    assert max(pfn + (1 << order) for pfn, order in taken) <= kib // 4
    assert sum(1 << order for _, order in taken) > zone.managed_pages - 2 * zone.watermark[1] - 64
    loop.audit()
    for pfn, order in taken:
        kernel.free_pages(pfn, order)
    loop.drain()
    loop.audit()


@pytest.mark.interpreted
def test_untouched_memory_holds_a_block_only_where_it_is_aligned(loopback):
    """1023 pages from pfn 2 on: no block of order 9 lies in the last, cut pageblock."""
    loop = loopback({"node": [{"memory": "4096KiB", "cpus": 1}, {"memory": "2044KiB"}]})
    zone = loop.zones()[1]
    assert zone.present_pages == BLOCK - 1 and not has_block(zone, 9, 0) and has_block(zone, 8, 0)
    zone = loop.zones()[0]
    zone.virgin_pfn = 300  # 724 pages, but only one pageblock among them
    assert has_block(zone, 9, 0) and not has_block(zone, 10, 0)
    zone.virgin_pfn = 513
    assert not has_block(zone, 9, 0)


@pytest.mark.interpreted
def test_a_cut_pageblock_keeps_its_type(loopback):
    """move_freepages_block refuses it (zone_spans_pfn): it is neither kept for atomic allocations nor isolated."""
    loop = loopback({"node": [{"memory": f"{220 * MiB // KiB + 1024}KiB", "cpus": 1}]})
    machine, zone = loop.machine, loop.zones()[-1]
    last = zone.start_pfn + zone.spanned_pages - 1
    reserve_highatomic_pageblock(machine, zone, last, 2)
    assert zone.nr_reserved_highatomic == 0 and get_pageblock_migratetype(machine, last) == MIGRATE_MOVABLE
    assert not start_isolate_page_range(machine, zone, last & -BLOCK, (last & -BLOCK) + BLOCK)
    reserve_highatomic_pageblock(machine, zone, last - BLOCK, 2)
    assert (
        zone.nr_reserved_highatomic == BLOCK and get_pageblock_migratetype(machine, last - BLOCK) == MIGRATE_HIGHATOMIC
    )


@pytest.mark.interpreted
def test_pagetypeinfo_and_the_map_of_blocks_know_the_cut_one(odd):
    blocks = {(zone["node"], zone["zone"]): zone for zone in odd.actors[0].rpc_pageblocks()}
    assert len(blocks[0, "DMA"]["free"]) == 3 and blocks[0, "DMA"]["free"][-1] == 5004 // 4 - 2 * BLOCK
    assert blocks[2, "DMA"]["free"] == [1] and blocks[4, "DMA32"]["free"][-1] == 1
    odd.audit()


# -- shapes of real machines, with a 64th of their memory ------------------------------------------------------


def bits(mask):
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]


# fmt: off
SHAPES = {                           # name: (bytes, mask of CPUs) of each node
    "eight nodes, every sixth number a CPU": [(size, 1 << 6 * node) for node, size in enumerate(
        [8587735040, 17179869184, 8589934592, 17179869184] + 2 * [8589934592, 17179869184])],
    "numbers in turn": [(19316633600, 0x555555), (19327348736, 0xAAAAAA)],
    "two kinds of memory, CPUs in eights": [
        *((1 << 30, 0x000F_000F_000F_000F << 4 * node) for node in range(4)), *((2 << 30, 0) for _ in range(4))],
    "eighty CPUs, by fours": [(size, int(digit * 20, 16)) for size, digit in zip(
        (397816131584, 399527780352, 399527772160, 399526719488), "1248")],
    "some CPUs and nodes cut off": [(0, 0x3), (8 << 30, 0xC), (8 << 30, 0x20), (8 << 30, 0x40), (8 << 30, 0), (8 << 30, 0),
                                    (0, 0x3000), (0, 0xC000)],
}
# fmt: on


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_a_real_machine(loopback, name):
    loop = loopback(
        {"node": [{"memory": size // 4096 // 64 * 4096, "cpus": bits(cpus)} for size, cpus in SHAPES[name]]}
    )
    assert (
        sum(node.memory_bytes for node in loop.topology.nodes)
        == sum(zone.present_pages for zone in loop.zones()) * 4096 + 4096
    )
    with_memory = {node.id for node in loop.topology.nodes if node.memory_bytes}
    for cpu in loop.topology.cpus[::7] + loop.topology.cpus[-1:]:
        task = loop.task(cpu=cpu)
        nodes = set(task.mmap("8KiB").touch().nodes().tolist())
        assert nodes == {task.node} if task.node in with_memory else nodes < with_memory
    loop.drain()
    loop.audit()


# -- with processes ----------------------------------------------------------------------------------------------


def fill_and_read(task, nbytes):
    """Under pressure: more than the near nodes have, all of it read again."""
    words = task.mmap(nbytes).array()
    words[::512] = np.arange(len(words) // 512)
    return task.cpu, task.node, bool((words[::512] == np.arange(len(words) // 512)).all())


def test_an_odd_machine_at_work():
    """Shootdowns, fallback, reclaim and compaction between CPUs with gaps and nodes that are cut or empty."""
    with Machine(ODD) as machine:
        assert [cpu.id for cpu in machine.cpus] == [0, 1, 4, 6, 9] and machine.nodes[1].memory_bytes == 0
        with pytest.raises(ValueError, match="cpu 5 is not one of 0-1,4,6,9"):
            machine.spawn(fill_and_read, 4096, cpu=5)
        machine.swapon("64MiB")
        handles = [machine.spawn(fill_and_read, "12MiB", cpu=cpu.id) for cpu in machine.cpus]
        assert [handle.result() for handle in handles] == [(cpu.id, cpu.node, True) for cpu in machine.cpus]
        machine.write("/proc/sys/vm/compact_memory", "1")
        machine.check()


def where(task):
    return task.cpu, task.node, int(task.mmap("4KiB").touch().nodes()[0])


def test_many_cpus_at_the_end_of_the_numbers():
    """The last words of every mask; the highest number there may be."""
    with Machine({"node": [{"memory": "16MiB", "cpus": "0"}, {"memory": "8MiB", "cpus": "320-322,1023"}]}) as machine:
        assert [machine.run(where, cpu=cpu.id) for cpu in machine.cpus] == [
            (cpu.id, cpu.node, cpu.node) for cpu in machine.cpus
        ]
        assert machine.read(f"{NODES}/node1/cpulist") == "320-322,1023\n"
        threads, task = [], machine.task(cpu=1023)
        area = task.mmap("16KiB").touch()
        for cpu in (0, 320, 322):
            threads.append(task.clone(cpu=cpu))
            threads[-1].load(area.pages())
        before = machine.stats()["vmstat"]["nr_tlb_remote_flush"]
        area.munmap()
        assert machine.stats()["vmstat"]["nr_tlb_remote_flush"] > before
        machine.check()
