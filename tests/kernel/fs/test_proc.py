"""The emulated /proc and /sys: Linux's formats to the letter, and figures that agree with each other and with the tasks."""

import errno
import re

import pytest

from numaemu import Machine
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.proc.task import mpol_to_str
from numaemu.kernel.fs.sysfs.node import list_text, mask_text
from numaemu.kernel.fs.sysfs.sysctl import System, strtoul
from numaemu.uapi import (
    MAP_ANONYMOUS,
    MAP_SHARED,
    MPOL_BIND,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
    PROT_NONE,
    PROT_READ,
)

NODE = "/sys/devices/system/node"
ZONE = r"Node (\d+), zone +(DMA|DMA32|Normal|Movable|Device)"


@pytest.fixture(scope="module")
def machine():
    with Machine(nodes=2, cpus_per_node=2, memory_per_node="64MiB") as machine:
        yield machine


@pytest.fixture(scope="module")
def still():
    """A machine on which nothing goes on between two reads."""
    with Machine(nodes=2, cpus_per_node=2, memory_per_node="64MiB", lockstep=True) as machine:
        yield machine


@pytest.fixture
def task(machine):
    task = machine.task(cpu=1, name="T0")
    yield task
    task.exit()


def lines_of(machine, path):
    text = machine.read(path)
    assert text.endswith("\n")
    return text[:-1].split("\n")


def numbers(machine, path, pattern):
    """{name: value} of a file each of whose lines matches (name) … (value)."""
    matches = [re.fullmatch(pattern, line) for line in lines_of(machine, path)]
    assert all(matches), [line for line, m in zip(lines_of(machine, path), matches) if not m]
    return {m[1]: int(m[2]) for m in matches}


def vmstat(machine, node=None):
    return numbers(machine, "/proc/vmstat" if node is None else f"{NODE}/node{node}/vmstat", r"(\w+) (\d+)")


def ranges(machine, pid):
    """numa_maps: {start: the rest of the line}"""
    matches = [re.fullmatch(r"([0-9a-f]{8,}) (.*)", line) for line in lines_of(machine, f"/proc/{pid}/numa_maps")]
    return {int(m[1], 16): m[2] for m in matches}


# -- free memory ---------------------------------------------------------------------------------------------


def buddyinfo(machine):
    """{(node, zone): free pages}"""
    free = {}
    for line in lines_of(machine, "/proc/buddyinfo"):
        assert re.fullmatch(r"Node \d, zone .{8} ([ \d]{6} ){11}", line), line
        node, zone, counts = re.fullmatch(rf"{ZONE} ((?: *\d+ ){{11}})", line).groups()
        free[int(node), zone] = sum(int(n) << order for order, n in enumerate(counts.split()))
    return free


def test_buddyinfo_adds_up_to_free_memory(machine, task):
    task.mmap("3MiB").touch()
    free = buddyinfo(machine)
    assert sorted(free) == [(0, "DMA"), (0, "DMA32"), (1, "DMA32")]
    assert sum(free.values()) == vmstat(machine)["nr_free_pages"]
    for node in (0, 1):
        assert sum(n for (nid, _), n in free.items() if nid == node) == vmstat(machine, node)["nr_free_pages"]


def test_pagetypeinfo(still):
    """Free blocks by type add up to buddyinfo; every 2 MiB of a zone has one type."""
    text = still.read("/proc/pagetypeinfo")
    types = ["Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate"]
    head = "Page block order: 9\nPages per block:  512\n\nFree pages count per migrate type at order  "
    assert text.startswith(head) and text.count(head) == 2
    assert f"\n\n{'Number of blocks type ':23}" + "".join(f"{t:>12} " for t in types) + "\nNode 0, zone " in text
    free = dict.fromkeys(buddyinfo(still), 0)
    found = re.findall(r"^Node +(\d), zone +(\w+), type +(\w+) ((?: *\d+ ){11})$", text, re.M)
    assert [t for *_, t, _ in found] == types * 3
    for node, zone, _, counts in found:
        free[int(node), zone] += sum(int(n) << order for order, n in enumerate(counts.split()))
    assert free == buddyinfo(still)
    blocks = re.findall(rf"^{ZONE} ((?:[ \d]{{12}} ){{5}})$", text, re.M)
    assert [(int(node), zone, sum(map(int, counts.split()))) for node, zone, counts in blocks] == [
        (0, "DMA", 8),
        (0, "DMA32", 24),
        (1, "DMA32", 32),
    ]


ZONEINFO = re.compile(r"""Node (\d), zone +(\w+)
(?:  per-node stats
(?:      \w+ +\d+
)+)?  pages free     (\d+)
        boost    (\d+)
        min      (\d+)
        low      (\d+)
        high     (\d+)
        promo    (\d+)
        spanned  (\d+)
        present  (\d+)
        managed  (\d+)
        cma      (\d+)
        protection: \((\d+(?:, \d+){4})\)
(?:(      nr_free_pages \d+
  pagesets
(?:    cpu: \d+
              count:    \d+
              high:     \d+
              batch:    \d+
  vm stats threshold: \d+
){4}  node_unreclaimable:  0
  start_pfn:           \d+
))?""")
FIELDS = "free boost min low high promo spanned present managed cma".split()


def zoneinfo(machine):
    """{(node, zone): {field: pages}} of all zones; the whole file must match."""
    text, zones, at = machine.read("/proc/zoneinfo"), {}, 0
    while at < len(text):
        match = ZONEINFO.match(text, at)
        assert match, text[at : at + 2000]
        zone = {name: int(value) for name, value in zip(FIELDS, match.groups()[2:])}
        zone["protection"] = [int(n) for n in match[13].split(", ")]
        zone["pcp"] = sum(map(int, re.findall(r"count: +(\d+)", match[14] or "")))
        assert (match[14] is not None) == (zone["present"] > 0)
        zones[int(match[1]), match[2]] = zone
        at = match.end()
    return zones


def test_zoneinfo(machine, task):
    task.mmap("1MiB").touch()
    zones = zoneinfo(machine)
    assert [zone for node, zone in zones if node == 0] == ["DMA", "DMA32", "Normal", "Movable", "Device"]
    assert {key: zone["free"] for key, zone in zones.items() if zone["present"]} == buddyinfo(machine)
    dma, dma32 = zones[0, "DMA"], zones[0, "DMA32"]
    assert dma["spanned"] == 4095 and dma32["present"] == dma32["managed"] == 12288
    assert dma["protection"] == [0] + [dma32["managed"] // 256] * 4
    for zone in zones.values():
        assert zone["high"] - zone["low"] == zone["low"] - zone["min"] == zone["promo"] - zone["high"]
    assert zones[0, "DMA32"]["pcp"] > 0  # the CPU that touched holds pages ready
    text = machine.read("/proc/zoneinfo")
    assert text.count("  per-node stats\n") == 2


# -- meminfo and counters ------------------------------------------------------------------------------------

MEMINFO = """MemTotal MemFree MemAvailable Buffers Cached SwapCached Active Inactive Active(anon) Inactive(anon)
Active(file) Inactive(file) Unevictable Mlocked SwapTotal SwapFree Zswap Zswapped Dirty Writeback AnonPages Mapped Shmem
KReclaimable Slab SReclaimable SUnreclaim KernelStack PageTables SecPageTables NFS_Unstable Bounce WritebackTmp
CommitLimit Committed_AS VmallocTotal VmallocUsed VmallocChunk Percpu HardwareCorrupted AnonHugePages ShmemHugePages
ShmemPmdMapped FileHugePages FilePmdMapped Unaccepted HugePages_Total HugePages_Free HugePages_Rsvd HugePages_Surp
Hugepagesize Hugetlb DirectMap4k DirectMap2M DirectMap1G""".split()
NODE_MEMINFO = """MemTotal MemFree MemUsed SwapCached Active Inactive Active(anon) Inactive(anon) Active(file) Inactive(file)
Unevictable Mlocked Dirty Writeback FilePages Mapped AnonPages Shmem KernelStack PageTables SecPageTables NFS_Unstable
Bounce WritebackTmp KReclaimable Slab SReclaimable SUnreclaim AnonHugePages ShmemHugePages ShmemPmdMapped
FileHugePages FilePmdMapped Unaccepted HugePages_Total HugePages_Free HugePages_Surp""".split()


def test_meminfo(machine, task):
    task.mmap("2MiB").touch()
    task.mmap("1MiB", flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    for line in lines_of(machine, "/proc/meminfo"):
        assert re.fullmatch(r"\S+: +\d+( kB)?", line)
        name, value = line.split(":")
        width = 17 if name == "VmallocTotal" else 26 - len(name)
        assert len(value) == (width if line.endswith("kB") else 23 - len(name)), line
    info = numbers(machine, "/proc/meminfo", r"(\S+): +(\d+)(?: kB)?")
    assert list(info) == MEMINFO
    zones, counts = zoneinfo(machine).values(), vmstat(machine)
    assert info["MemTotal"] == sum(zone["managed"] for zone in zones) * 4
    assert info["MemFree"] == counts["nr_free_pages"] * 4
    reserved = sum(min(max(z["protection"]) + z["high"], z["managed"]) for z in zones)
    assert info["MemAvailable"] == info["MemFree"] - reserved * 4
    assert info["Cached"] == info["Shmem"] == info["Mapped"] == counts["nr_shmem"] * 4 == 1024
    assert info["AnonPages"] == counts["nr_anon_pages"] * 4 == 2048
    assert info["PageTables"] == counts["nr_page_table_pages"] * 4 > 0
    assert info["CommitLimit"] == info["MemTotal"] // 4 // 2 * 4
    assert info["VmallocTotal"] == 34359738367


def test_node_meminfo_adds_up(still):
    task = still.task(cpu=1)
    a = task.mmap("1MiB")
    task.mbind(a.addr, a.nbytes, MPOL_BIND, 1)
    a.touch()
    whole = numbers(still, "/proc/meminfo", r"(\S+): +(\d+)(?: kB)?")
    nodes = []
    for node in (0, 1):
        for line in lines_of(still, f"{NODE}/node{node}/meminfo"):
            pattern = (
                rf"Node {node} HugePages_\w+: +\d+" if "HugePages_" in line else rf"Node {node} .{{16}}[ \d]{{8}} kB"
            )
            assert re.fullmatch(pattern, line), line
        nodes.append(numbers(still, f"{NODE}/node{node}/meminfo", rf"Node {node} (\S+): +(\d+)(?: kB)?"))
        assert list(nodes[-1]) == NODE_MEMINFO
        assert nodes[-1]["MemUsed"] == nodes[-1]["MemTotal"] - nodes[-1]["MemFree"]
    assert nodes[1]["AnonPages"] == 1024
    for name in set(NODE_MEMINFO) & set(MEMINFO):
        assert nodes[0][name] + nodes[1][name] == whole[name], name


def test_vmstat_and_numastat(machine, task):
    task.mmap("1MiB").touch()
    while (counts := vmstat(machine)) != vmstat(machine):  # a node fills a CPU's shelf ahead
        pass
    order = [
        "nr_free_pages",
        "numa_hit",
        "numa_miss",
        "numa_foreign",
        "numa_interleave",
        "numa_local",
        "numa_other",
        "nr_anon_pages",
        "nr_mapped",
        "nr_file_pages",
        "nr_shmem",
        "nr_page_table_pages",
        "pgalloc_dma",
        "pgalloc_dma32",
        "pgalloc_normal",
        "pgalloc_movable",
        "pgfree",
        "pgfault",
        "pgmajfault",
        "pgreuse",
        "pgmigrate_success",
        "nr_unstable",
    ]
    assert [name for name in counts if name in order] == order
    stats = machine.stats()["vmstat"]
    assert counts == {name: stats.get(name, 0) for name in counts}
    by_node = [vmstat(machine, node) for node in (0, 1)]
    for name in by_node[0]:
        assert by_node[0][name] + by_node[1][name] == counts[name], name
    for node in (0, 1):
        numastat = numbers(machine, f"{NODE}/node{node}/numastat", r"(\w+) (\d+)")
        assert list(numastat) == ["numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node"]
        assert numastat["interleave_hit"] == by_node[node]["numa_interleave"]
        assert numastat["numa_hit"] + numastat["numa_miss"] == numastat["local_node"] + numastat["other_node"]


def test_node_directory(machine):
    assert machine.read(f"{NODE}/node0/distance") == "10 21\n"
    assert machine.read(f"{NODE}/node1/distance") == "21 10\n"
    assert machine.read(f"{NODE}/node1/cpulist") == "2-3\n"
    assert machine.read(f"{NODE}/node1/cpumap") == "c\n"
    for name in ("online", "possible", "has_cpu", "has_memory", "has_normal_memory"):
        assert machine.read(f"{NODE}/{name}") == "0-1\n"
    assert machine.listdir(f"{NODE}/node0") == [
        "access0",
        "compact",
        "cpu0",
        "cpu1",
        "cpulist",
        "cpumap",
        "distance",
        "hugepages",
        "meminfo",
        "memory0",
        "numastat",
        "vmstat",
    ]
    assert {"node0", "node1", "online"} <= set(machine.listdir(NODE + "/"))


def test_node_without_cpus_and_movable_memory():
    with Machine(nodes=2, cpus_per_node=1, memory_per_node="64MiB", memory_only_nodes=1, kernelcore="96MiB") as machine:
        assert machine.read(f"{NODE}/has_cpu") == "0-1\n" and machine.read(f"{NODE}/online") == "0-2\n"
        assert machine.read(f"{NODE}/node2/cpulist") == "\n" and machine.read(f"{NODE}/node2/cpumap") == "0\n"
        assert zoneinfo_zones(machine) == {"DMA", "DMA32", "Movable"}


def zoneinfo_zones(machine):
    return {zone for _, zone in buddyinfo(machine)}


# -- tasks ---------------------------------------------------------------------------------------------------


def test_maps(machine, task):
    brk = task.brk()
    task.brk(brk + 0x8000)
    private, shared = task.mmap("64KiB"), task.mmap("32KiB", flags=MAP_SHARED | MAP_ANONYMOUS, prot=PROT_READ)
    hidden = task.mmap("16KiB", prot=PROT_NONE)
    lines = lines_of(machine, f"/proc/{task.pid}/maps")
    starts = [int(line.split("-")[0], 16) for line in lines]
    assert starts == sorted(starts)
    found = dict(zip(starts, lines))
    pad = " " * 25
    assert found[brk] == f"{brk:08x}-{brk + 0x8000:08x} rw-p 00000000 00:00 0 {pad}[heap]"
    assert found[private.addr] == f"{private.addr:x}-{private.addr + private.nbytes:x} rw-p 00000000 00:00 0 "
    assert found[hidden.addr].split()[1] == "---p"
    assert re.fullmatch(
        rf"{shared.addr:x}-[0-9a-f]{{12}} r--s 00000000 00:01 \d+ +/dev/zero \(deleted\)", found[shared.addr]
    )
    assert found[shared.addr].index("/dev/zero") == found[brk].index("[heap]") == 73
    assert lines[-1] == f"7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 {pad}[stack]"
    middle = shared.addr + 0x4000
    task.munmap(shared.addr, 0x4000)
    assert [
        line.split()[2] for line in lines_of(machine, f"/proc/{task.pid}/maps") if line.startswith(f"{middle:x}-")
    ] == ["00004000"]


def test_numa_maps_tells_where_pages_are(machine, task):
    brk = task.brk()
    task.brk(brk + 0x8000)
    task.touch(brk, 0x4000)
    spread, plain, zeros = task.mmap("128KiB"), task.mmap("64KiB"), task.mmap("64KiB", prot=PROT_READ)
    task.mbind(spread.addr, spread.nbytes, MPOL_INTERLEAVE, "0-1")
    task.mbind(plain.addr, plain.nbytes, MPOL_BIND, 1)
    spread.touch(), plain.touch(), zeros.touch(write=False)
    found = ranges(machine, task.pid)
    assert found[brk] == "default heap anon=4 dirty=4 active=0 N0=4 kernelpagesize_kB=4"
    assert found[spread.addr] == "interleave:0-1 anon=32 dirty=32 active=0 N0=16 N1=16 kernelpagesize_kB=4"
    assert found[plain.addr] == "bind:1 anon=16 dirty=16 active=0 N1=16 kernelpagesize_kB=4"
    assert found[zeros.addr] == "default"
    assert found[0x7FFFFFFDE000] == "default stack"
    task.move_pages(plain.pages()[:5], 0)
    assert found[spread.addr].count("N0=16") == list(spread.nodes()).count(0) // 16
    assert ranges(machine, task.pid)[plain.addr] == "bind:1 anon=16 dirty=16 active=0 N0=5 N1=11 kernelpagesize_kB=4"


def test_numa_maps_of_shared_pages(machine, task):
    private, shared = task.mmap("32KiB").touch(), task.mmap("32KiB", flags=MAP_SHARED | MAP_ANONYMOUS)
    task.touch(shared.addr, 0x4000)
    task.touch(shared.addr + 0x4000, 0x4000, write=False)
    file = r"default file=/dev/zero\040(deleted)"
    assert ranges(machine, task.pid)[shared.addr] == f"{file} dirty=4 mapped=8 active=0 N0=8 kernelpagesize_kB=4"
    child = task.fork()
    assert "N0" not in ranges(machine, child.pid)[shared.addr]  # shared mappings are not copied, but faulted in
    child.touch(shared.addr, 0x4000)
    child.touch(shared.addr + 0x4000, 0x4000, write=False)
    for pid in (task.pid, child.pid):
        found = ranges(machine, pid)
        assert found[private.addr] == "default anon=8 dirty=8 mapmax=2 active=0 N0=8 kernelpagesize_kB=4"
        assert found[shared.addr] == f"{file} dirty=4 mapped=8 mapmax=2 active=0 N0=8 kernelpagesize_kB=4"
    child.exit()
    assert "mapmax" not in ranges(machine, task.pid)[private.addr]


@pytest.mark.parametrize("mode, nodes, text", [
    (MPOL_BIND, "1", "bind:1"), (MPOL_INTERLEAVE, "0-1", "interleave:0-1"), (MPOL_PREFERRED, "1", "prefer:1"),
    (MPOL_PREFERRED_MANY, "0-1", "prefer (many):0-1"), (MPOL_LOCAL, None, "local"),
    (MPOL_WEIGHTED_INTERLEAVE, "0-1", "weighted interleave:0-1"),
    (MPOL_BIND | MPOL_F_STATIC_NODES, "0", "bind=static:0"),
])  # fmt: skip
def test_policy_of_a_range_and_of_a_task(machine, task, mode, nodes, text):
    mine, others = task.mmap("4KiB"), task.mmap("2MiB")
    task.mbind(mine.addr, mine.nbytes, mode, nodes)
    found = ranges(machine, task.pid)
    assert (found[mine.addr], found[others.addr]) == (text, "default")
    task.mbind(mine.addr, mine.nbytes, MPOL_BIND, 0)
    task.set_mempolicy(mode, nodes)
    found = ranges(machine, task.pid)
    assert (found[mine.addr], found[others.addr], found[0x7FFFFFFDE000]) == ("bind:0", text, text + " stack")


def test_policy_text():
    assert mpol_to_str(MPOL_WEIGHTED_INTERLEAVE, 0, 0b1101) == "weighted interleave:0,2-3"


STATUS = """Name State Tgid Ngid Pid PPid TracerPid Uid VmPeak VmSize VmLck VmPin VmHWM VmRSS RssAnon RssFile RssShmem VmData VmStk VmExe VmLib
VmPTE VmSwap HugetlbPages Threads Cpus_allowed Cpus_allowed_list Mems_allowed Mems_allowed_list
voluntary_ctxt_switches nonvoluntary_ctxt_switches""".split()


def test_status(machine, task):
    task.mmap("2MiB").touch()
    task.mmap("1MiB", prot=PROT_READ)
    task.mmap("64KiB", flags=MAP_SHARED | MAP_ANONYMOUS).touch()
    thread = task.clone()
    status = dict(line.split(":\t") for line in lines_of(machine, f"/proc/{task.pid}/status"))
    assert list(status) == STATUS
    kb = {
        name: int(re.fullmatch(r"([ \d]{8}) kB", value)[1]) for name, value in status.items() if value.endswith(" kB")
    }
    assert list(kb) == [name for name in STATUS if re.match("Vm|Rss|Huge", name)]
    assert status["Name"] == "T0" and status["Pid"] == status["Tgid"] == str(task.pid) and status["Threads"] == "2"
    assert kb["VmSize"] == 2048 + 1024 + 64 + 132 and kb["VmData"] == 2048 and kb["VmStk"] == 132
    assert kb["VmRSS"] == kb["RssAnon"] + kb["RssFile"] + kb["RssShmem"] == 2048 + 64
    assert kb["VmPTE"] % 4 == 0 and kb["VmPTE"] >= 12
    assert (status["Cpus_allowed"], status["Cpus_allowed_list"]) == ("2", "1")
    assert (status["Mems_allowed"], status["Mems_allowed_list"]) == ("00000000,00000003", "0-1")
    other = dict(line.split(":\t") for line in lines_of(machine, f"/proc/{thread.pid}/status"))
    assert (other["Tgid"], other["Pid"], other["VmSize"]) == (status["Pid"], str(thread.pid), status["VmSize"])
    assert str(thread.pid) not in machine.listdir("/proc")
    thread.exit()


def test_a_task_that_has_ended_has_no_files(machine):
    task = machine.task(cpu=2)
    assert machine.listdir(f"/proc/{task.pid}") == [
        "auxv",
        "cgroup",
        "clear_refs",
        "cmdline",
        "comm",
        "environ",
        "io",
        "limits",
        "maps",
        "numa_maps",
        "oom_score",
        "oom_score_adj",
        "pagemap",
        "sched",
        "smaps",
        "smaps_rollup",
        "stat",
        "statm",
        "status",
        "task",
    ]
    assert machine.read(f"/proc/{task.pid}/stat").startswith(f"{task.pid} (task) ")
    assert machine.read(f"/proc/{task.pid}/cmdline") == "task\0"
    assert str(task.pid) in machine.listdir("/proc")
    task.exit()
    for name in ("maps", "numa_maps", "status", "stat", "cmdline"):
        with pytest.raises(FileNotFoundError):
            machine.read(f"/proc/{task.pid}/{name}")
    assert str(task.pid) not in machine.listdir("/proc")


def churn(task, rounds):
    for i in range(rounds):
        m = task.mmap("256KiB")
        task.mprotect(m.addr + 0x10000, 0x10000, PROT_READ)
        m.task.touch(m.addr, 0x10000)
        m.munmap()
    return rounds


def test_reading_while_a_task_maps_and_unmaps(machine):
    handle, reads = machine.spawn(churn, 300, cpu=3), 0
    while not handle.done():
        try:
            for line in lines_of(machine, f"/proc/{handle.pid}/numa_maps"):
                assert re.fullmatch(r"[0-9a-f]{8,} default( stack)?( anon=\d+ .*N1=\d+ kernelpagesize_kB=4)?", line), (
                    line
                )
            reads += 1
        except FileNotFoundError:
            break
    assert handle.result() == 300 and reads > 0


# -- settings ------------------------------------------------------------------------------------------------


@pytest.fixture
def restore(machine):
    """Settings as they were."""
    paths = [
        f"/proc/sys/vm/{name}"
        for name in (
            "min_free_kbytes",
            "watermark_scale_factor",
            "lowmem_reserve_ratio",
            "max_map_count",
            "swappiness",
            "zone_reclaim_mode",
        )
    ]
    before = {path: machine.read(path) for path in paths}
    yield
    for path, text in before.items():
        machine.write(path, text)


def test_watermarks_follow_their_settings(machine, restore):
    """As recorded of Linux 6.12: min = share of min_free_kbytes, gap = max(min / 4, managed * factor / 10000)."""
    for kbytes, factor in ((1024, 10), (16384, 10), (4096, 1), (4096, 1000)):
        machine.write("/proc/sys/vm/min_free_kbytes", str(kbytes))
        machine.write("/proc/sys/vm/watermark_scale_factor", f"{factor}\n")
        assert machine.read("/proc/sys/vm/min_free_kbytes") == f"{kbytes}\n"
        zones = {key: zone for key, zone in zoneinfo(machine).items() if zone["managed"]}
        total = sum(zone["managed"] for zone in zones.values())
        for zone in zones.values():
            low = kbytes // 4 * zone["managed"] // total
            gap = max(low // 4, zone["managed"] * factor // 10000)
            assert (zone["min"], zone["low"], zone["high"]) == (low, low + gap, low + 2 * gap)


def test_lowmem_reserve_ratio(machine, restore):
    path = "/proc/sys/vm/lowmem_reserve_ratio"
    assert machine.read(path) == "256\t256\t32\t0\t0\n"
    machine.write(path, "1 1")
    assert machine.read(path) == "1\t1\t32\t0\t0\n"
    assert zoneinfo(machine)[0, "DMA"]["protection"] == [0, 12288, 12288, 12288, 12288]
    machine.write(path, "-3")
    assert machine.read(path) == "0\t1\t32\t0\t0\n"
    assert zoneinfo(machine)[0, "DMA"]["protection"] == [0] * 5


def test_other_settings(machine, task, restore):
    for name, value in (
        ("overcommit_memory", 0),
        ("swappiness", 60),
        ("zone_reclaim_mode", 0),
        ("max_map_count", 65530),
    ):
        assert machine.read(f"/proc/sys/vm/{name}") == f"{value}\n"
    assert machine.read("/proc/sys/kernel/numa_balancing") == "0\n"
    machine.write("/proc/sys/vm/swappiness", 0x64)
    assert machine.read("/proc/sys/vm/swappiness") == "100\n"
    machine.write("/proc/sys/vm/max_map_count", 1)
    with pytest.raises(OSError) as caught:
        task.mmap("4KiB"), task.mmap("4KiB", prot=PROT_READ)
    assert caught.value.errno == errno.ENOMEM
    machine.write("/proc/sys/vm/stat_refresh", "1")
    for value in "123":
        machine.write("/proc/sys/vm/drop_caches", value)
    machine.write("/proc/sys/kernel/numa_balancing", "0")


def test_interleave_weights(machine, task):
    path = "/sys/kernel/mm/mempolicy/weighted_interleave/node1"
    assert machine.listdir("/sys/kernel/mm/mempolicy/weighted_interleave") == ["node0", "node1"]
    assert machine.read(path) == "1\n"
    machine.write(path, 3)
    assert machine.read(path) == "3\n"
    m = task.mmap("64KiB")
    task.mbind(m.addr, m.nbytes, MPOL_WEIGHTED_INTERLEAVE, "0-1")
    m.touch()
    assert ranges(machine, task.pid)[m.addr].endswith(" N0=4 N1=12 kernelpagesize_kB=4")
    machine.write(path, "0\n")  # back to the default, as in Linux 6.12
    assert machine.read(path) == "1\n"


def test_transparent_hugepages(machine):
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    assert machine.read(path) == "always madvise [never]\n"
    free = machine.read("/proc/sys/vm/min_free_kbytes")
    machine.write(path, "madvise\n")
    assert machine.read(path) == "always [madvise] never\n"
    assert int(machine.read("/proc/sys/vm/min_free_kbytes")) > int(free)  # pageblocks are kept free for them
    machine.write(path, "never\n")
    assert machine.read("/proc/sys/vm/min_free_kbytes") == free
    assert machine.read("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size") == "2097152\n"
    scan = "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs"
    assert machine.read(scan) == "10000\n"


@pytest.mark.parametrize("path, value", [
    ("/proc/sys/vm/min_free_kbytes", "-1"), ("/proc/sys/vm/min_free_kbytes", "much"), ("/proc/sys/vm/min_free_kbytes", ""),
    ("/proc/sys/vm/min_free_kbytes", "2147483648"), ("/proc/sys/vm/watermark_scale_factor", "0"),
    ("/proc/sys/vm/watermark_scale_factor", "3001"), ("/proc/sys/vm/swappiness", "201"),
    ("/proc/sys/vm/lowmem_reserve_ratio", "256 x"), ("/proc/sys/vm/max_map_count", "2147483648"),
    ("/proc/sys/vm/drop_caches", "5"), ("/proc/sys/vm/overcommit_memory", "3"), ("/proc/sys/kernel/numa_balancing", "5"),
    ("/sys/kernel/mm/mempolicy/weighted_interleave/node0", "256"), ("/sys/kernel/mm/transparent_hugepage/enabled", "sometimes"),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none", "512"), ("/proc/sys/vm/nr_hugepages", "-1"),
    ("/proc/sys/vm/nr_hugepages", str(2**64)), ("/proc/sys/vm/nr_overcommit_hugepages", str(2**64)),
    ("/proc/sys/vm/nr_hugepages_mempolicy", "1" * 300),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan", "0"),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan", str(2**32)),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", str(2**64)),
    ("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "always"),
    ("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_overcommit_hugepages", "1"),
])  # fmt: skip
def test_values_out_of_range_are_refused(machine, path, value):
    before = machine.read(path) if not path.endswith("drop_caches") else None
    with pytest.raises(OSError) as caught:
        machine.write(path, value)
    assert caught.value.errno == errno.EINVAL
    assert before is None or machine.read(path) == before


@pytest.mark.parametrize("path, near", [
    ("/proc/memfree", "/proc/meminfo"), ("/proc/sys/vm/swapines", "/proc/sys/vm/swappiness"), ("/proc/nr_hugepages", "/proc/sys/vm/nr_hugepages"),
    ("/proc/sys/vn/swappiness", "/proc/sys/vm/swappiness"), (f"{NODE}/node2/meminfo", f"{NODE}/node0/meminfo"), ("/prc/stat", "/proc/stat")])  # fmt: skip
def test_the_nearest_names_are_told(machine, path, near):
    for ask in (machine.read, machine.listdir, lambda path: machine.write(path, "1")):
        with pytest.raises(
            FileNotFoundError, match=rf"No such file or directory \(nearest: .*{near}[,)].*: '{path}'"
        ) as caught:
            ask(path)
        assert caught.value.emulated_traceback == ""


def test_files_that_are_not_there(machine):
    for path in (
        "/proc/iomem",
        "/proc/1/maps",
        "/proc/999999/status",
        f"{NODE}/node2/meminfo",
        f"{NODE}/node0/nothing",
        "/sys/kernel/mm/mempolicy/weighted_interleave/node2",
        "/proc/sys/vm/nothing",
        "buddyinfo",
    ):
        with pytest.raises(FileNotFoundError, match=re.escape(path)):
            machine.read(path)
        with pytest.raises(FileNotFoundError):
            machine.write(path, "1")
    with pytest.raises(FileNotFoundError):
        machine.listdir("/proc/scsi")
    with pytest.raises(NotADirectoryError):
        machine.listdir("/proc/meminfo")
    with pytest.raises(IsADirectoryError):
        machine.read(NODE)
    with pytest.raises(PermissionError):
        machine.write("/proc/meminfo", "1")
    with pytest.raises(PermissionError):
        machine.read("/proc/sys/vm/drop_caches")


def test_numbers_lists_and_masks_as_the_kernel_writes_them():
    assert [strtoul(word) for word in ("12", "-7", "0x1F", "010", "0", "1k", "", "08", "+1")] == [
        12,
        -7,
        31,
        8,
        0,
        None,
        None,
        None,
        None,
    ]
    assert [list_text(n) for n in ([], [3], [0, 1, 2, 5, 7, 8])] == ["", "3", "0-2,5,7-8"]
    assert (
        mask_text([], 6) == "00"
        and mask_text([0, 33], 40) == "02,00000001"
        and mask_text([63], 64) == "80000000,00000000"
    )


def test_vmpte_counts_the_tables_below_the_top_level(machine):
    """One touched page needs a pud, a pmd and a leaf table: 12 kB; a task that touched nothing has none."""
    task = machine.task()
    assert "VmPTE:\t       0 kB" in machine.read(f"/proc/{task.pid}/status")
    task.mmap(4096).touch()
    assert "VmPTE:\t      12 kB" in machine.read(f"/proc/{task.pid}/status")
    task.exit()


def test_dirty_limits_stand_for_one_another(two_nodes):
    """Written in bytes the limit in per cent becomes 0, and the other way round, as dirty_bytes_handler has it."""
    system = System(two_nodes.machine, two_nodes.topology)
    assert [
        proc.read(system, f"/proc/sys/vm/{name}") for name in ("dirty_ratio", "dirty_background_ratio", "dirty_bytes")
    ] == ["20\n", "10\n", "0\n"]
    proc.write(system, "/proc/sys/vm/dirty_bytes", "8192")
    assert proc.read(system, "/proc/sys/vm/dirty_ratio") == "0\n" and two_nodes.machine.vm_dirty_bytes == 8192
    proc.write(system, "/proc/sys/vm/dirty_ratio", "30")
    assert proc.read(system, "/proc/sys/vm/dirty_bytes") == "0\n" and two_nodes.machine.vm_dirty_ratio == 30
    proc.write(system, "/proc/sys/vm/dirty_expire_centisecs", "100")
    assert two_nodes.machine.dirty_expire_ns == 10**9
    with pytest.raises(OSError, match="must be 8192 to"):
        proc.write(system, "/proc/sys/vm/dirty_bytes", "4095")


def test_drop_caches_is_work_for_a_cpu(two_nodes):
    """The page cache and unused slab objects are dropped by a CPU."""
    system = System(two_nodes.machine, two_nodes.topology)
    assert [proc.write(system, "/proc/sys/vm/drop_caches", value) for value in "123"] == [
        ("drop_caches", 1),
        ("drop_caches", 2),
        ("drop_caches", 3),
    ]
