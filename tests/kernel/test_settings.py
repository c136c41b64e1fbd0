"""Every writable file of /proc/sys and /sys: what each class of its values does, or that it is refused.

The files are asked of the machine, so that a new one without a row fails. What a row looks at is never the file itself: either
what the mechanism does, or the word of shared memory that compiled code reads (and some kernel file does read each of them).
"""

import errno
import pathlib
import re

import pytest
from loopback import SMALL_TLB, Loopback

import numaemu.kernel
from numaemu import GFP_KERNEL, MPOL_WEIGHTED_INTERLEAVE
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.include.mm_types import cgroup_t, task_t
from numaemu.kernel.include.mmzone import KHUGEPAGED, node_of
from numaemu.kernel.mm.cache.page_writeback import dirty_limit
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at
from numaemu.kernel.mm.reclaim.oom_kill import OomControl, Panic
from numaemu.kernel.mm.space.util import vm_commit_limit
from numaemu.kernel.mm.swap.swapfile import swap_of
from numaemu.kernel.mm.swap.zram import ZRAM, ZSWAP, zs_pool_of, zstat_of
from numaemu.process.wire import Failure

pytestmark = pytest.mark.interpreted
THP, ZSWAP_PARAMETERS, GROUP = "/sys/kernel/mm/transparent_hugepage", "/sys/module/zswap/parameters", "/sys/fs/cgroup"
INT_MAX, UINT_MAX, HUGE = 2**31 - 1, 2**32 - 1, 2**64
INVALID = errno.EINVAL
WORDS = set()  # of machine_t, that rows look at


# -- the machine ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop():
    """Two nodes, a task on each, a control group: /sys/fs/cgroup/g with one more in it."""
    with Loopback(nodes=2, cpus_per_node=1, memory_per_node="24MiB", **SMALL_TLB) as made:
        made.tasks = [made.task(cpu=0, name="small"), made.task(cpu=1, name="big")]
        made.tasks[1].mmap("64KiB").touch()
        made.actors[0].rpc_mkdir(f"{GROUP}/g")
        attempt(made, f"{GROUP}/cgroup.subtree_control", "+cpuset +memory")
        attempt(made, f"{GROUP}/g/cgroup.subtree_control", "+cpuset")
        made.actors[0].rpc_mkdir(f"{GROUP}/g/inner")
        made.compacted = []
        made.actors[0].system.compact_nodes = lambda nodes: made.compacted.append(list(nodes))
        yield made


def attempt(loop, path, text, writer=0):
    """Write to a file: 0, or the errno of the refusal."""
    answers = []
    loop.actors[0].serve("write", (path, text, writer), answers.append)
    while loop.world.waiting:
        action, done = loop.world.waiting.pop(0)
        done.set_result(action())
    if not isinstance(answers[0], Failure):
        return 0
    assert isinstance(answers[0].error, OSError), answers[0]
    return answers[0].error.errno


def writable(loop):
    """Paths of all files of /proc/sys and /sys that can be written to, but for tracefs, which has tests of its own."""
    system = loop.actors[0].system
    return sorted(
        {
            path
            for path in proc.paths(system)
            if path.startswith(("/proc/sys/", "/sys/"))
            and not path.startswith("/sys/kernel/tracing/")
            and (proc.find(system, path) or (None, None))[1]  # not a link
        }
    )


# -- what rows look at ---------------------------------------------------------------------------------------


def word(name):
    WORDS.add(name)
    return lambda loop: int(getattr(loop.machine, name))


def zone_sum(field):
    def look(loop):
        values = [getattr(zone, field) for zone in loop.zones()]
        return sum(sum(v.as_numpy().tolist()) if hasattr(v, "as_numpy") else v for v in values)

    return look


def watermarks(loop):
    """(min of all zones, the gaps between min, low and high)"""
    marks = [zone.watermark.as_numpy().tolist() for zone in loop.zones()]
    return sum(m[0] for m in marks), sum(m[2] - m[0] for m in marks)


def maps(*sizes):
    """Which of so many bytes can be mapped privately."""

    def look(loop):
        found = []
        for size in sizes:
            try:
                loop.tasks[0].mmap(size).munmap()
                found.append(True)
            except OSError as failed:
                assert failed.errno == errno.ENOMEM
                found.append(False)
        return found

    return look


def several_maps(loop):
    """Whether a task may have another three mappings."""
    try:
        for mapping in [loop.tasks[0].mmap(4096, prot=prot) for prot in (0, 1, 3)]:
            mapping.munmap()
    except OSError as failed:
        assert failed.errno == errno.ENOMEM
        return False
    return True


def commit_limit(loop):
    return int(vm_commit_limit(loop.machine))


def cached_after_read(loop):
    """Pages of files in memory; a file is read anew for the next look."""
    left = loop.vmstat()["nr_file_pages"]
    if "/mnt/f" not in loop.actors[0].rpc_files():
        loop.create_file("/mnt/f", bytes(3 << 12))
    loop.tasks[0].open("/mnt/f").read(3 << 12)
    return left


def background(loop):
    """Where the flusher begins, in pages, or in percent of what could be dirty."""
    machine = loop.machine
    machine.vm_dirty_bytes, machine.vm_dirty_ratio = 0, 100
    pages = dirty_limit(machine, True)
    return pages if machine.dirty_background_bytes else round(100 * pages / dirty_limit(machine, False))


def oom(loop):
    oom = loop.actors[0].oom
    return oom, OomControl(oom.system, GFP_KERNEL, 0, 3, 0)


def panics(loop):
    killer, control = oom(loop)
    try:
        killer.check_panic_on_oom(control)
    except Panic:
        return True
    return False


def dumps_tasks(loop):
    killer, control = oom(loop)
    killer.system.kmsg.clear()
    killer.dump_header(control)
    return any("Tasks state" in line for line in killer.system.kmsg)


def who_is_killed(loop):
    """Whose address space the OOM killer takes when the small task asks: nothing is done to it."""
    killer, _ = oom(loop)
    chosen = []
    killer.oom_kill_process = lambda oc: chosen.append(oc.chosen) or (0, [])
    free, cpu = [zone.free_pages for zone in loop.zones()], loop.cpu(0)
    before, cpu.task = cpu.task, loop.tasks[0]._number
    for zone in loop.zones():
        zone.free_pages = 0
    killer.out_of_memory(GFP_KERNEL, 0, 3, 0)
    for zone, pages in zip(loop.zones(), free):
        zone.free_pages = pages
    cpu.task = before
    del killer.oom_kill_process
    return "asker" if chosen == [loop.tasks[0]._number] else "largest"


def pool(number, field):
    def look(loop):
        found = getattr(hstate_at(loop.machine, number), field)
        return found.as_numpy().tolist()[:2] if hasattr(found, "as_numpy") else int(found)

    return look


def proactive(loop):
    trigger = [int(node_of(loop.machine, node).proactive_compact_trigger) for node in range(2)]
    for node in range(2):
        node_of(loop.machine, node).proactive_compact_trigger = 0
    WORDS.add("compaction_proactiveness")
    return int(loop.machine.compaction_proactiveness), trigger


def compacted(loop):
    found, loop.compacted[:] = list(loop.compacted), []
    return found


def khugepaged_sleep(name):
    """(the setting in ms, whether the thread is woken out of the sleep that has begun)"""
    WORDS.add(name)

    def look(loop):
        woken = loop.machine.khugepaged_next_ns == 0 and bool(node_of(loop.machine, 0).kthread_pending & KHUGEPAGED)
        node_of(loop.machine, 0).kthread_pending = 0
        loop.machine.khugepaged_next_ns = 10**18
        return int(getattr(loop.machine, name)) // 10**6, woken

    return look


def node_field(field):
    return lambda loop: [int(getattr(node_of(loop.machine, node), field)) for node in range(2)]


def spread(loop):
    """How weighted interleave spreads twelve pages."""
    task = loop.tasks[0]
    area = task.mmap(12 << 12)
    task.mbind(area.addr, area.nbytes, MPOL_WEIGHTED_INTERLEAVE, [0, 1])
    nodes = area.touch().nodes().tolist()
    area.munmap()
    return nodes.count(0), nodes.count(1)


def group_of_big(loop):
    return int(task_t.array(loop.machine.tasks)[loop.tasks[1]._number].cgroup)


def pid_of_big(loop):
    return str(task_t.array(loop.machine.tasks)[loop.tasks[1]._number].pid)


def controlled(loop):
    """Files of the group below that a controller gives."""
    return sorted(name for name in loop.actors[0].rpc_listdir(f"{GROUP}/g") if name in ("cpuset.mems", "memory.stat"))


def inner_files(loop):
    return sorted(
        name for name in loop.actors[0].rpc_listdir(f"{GROUP}/g/inner") if name in ("cpuset.mems", "memory.stat")
    )


def allowed(loop):
    """(CPUs, nodes) of the group as its tasks have them."""
    read = loop.actors[0].rpc_read
    assert cgroup_t.array(loop.machine.cgroups)[1] is not None
    return read(f"{GROUP}/g/inner/cpuset.cpus.effective").strip(), read(
        f"{GROUP}/g/inner/cpuset.mems.effective"
    ).strip()


# -- the table -----------------------------------------------------------------------------------------------


def row(look, effects, refused=None):
    """`effects`: what `look` finds after each value, in this order; `refused`: the errno of each value that is not taken."""
    return look, effects, refused or {}


def number(look, effects, *refused):
    """A sysctl's number: what is none is refused as well."""
    return row(look, effects, dict.fromkeys(("", "many", "-1", *map(str, refused)), INVALID))


def zero_or_one(name):
    return number(word(name), {"1": 1, "0": 0}, 2)


MANAGED = 2 * 24 * 256 - 2  # pages; page 0 and that of zeros are in no zone
THREE = dict.fromkeys(("-1", "many", ""), INVALID)
NO_PAGES = {"-1": INVALID, "many": INVALID, "1" * 5000: INVALID}
# fmt: off
ROWS = {
    r"/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds": row(
        lambda loop: len(loop.actors[0].rpc_listdir("/sys/kernel/mm/damon/admin/kdamonds")) - 1,
        {"1": 1, "3": 3, "0": 0}, dict.fromkeys(("", "many", "-1", "2147483648"), INVALID)),
    r"/proc/sys/kernel/numa_balancing": number(word("numa_balancing"), {"1": 1, "2": 2, "3": 3, "4": 4, "0": 0}, 5),
    r"/proc/sys/kernel/numa_balancing_promote_rate_limit_MBps": number(
        word("numa_promote_rate_limit"), {"0": 0, "2": 2, "65536": 65536}, INT_MAX + 1),
    **{rf"/sys/kernel/debug/sched/numa_balancing/{name}_ms": number(word(f"numa_{name}_ms"), {"1": 1, "1000": 1000}, 2**32)
       for name in ("hot_threshold", "scan_delay", "scan_period_min", "scan_period_max")},
    r"/sys/kernel/debug/sched/numa_balancing/scan_size_mb": number(word("numa_scan_size_mb"), {"1": 1, "256": 256}, 0, 2**32),
    r"/sys/kernel/mm/numa/demotion_enabled": row(word("demotion_enabled"), {"1": 1, "false": 0, "true": 1, "0": 0},
                                                 dict.fromkeys(("", "maybe", "2"), INVALID)),
    r"/proc/sys/kernel/randomize_va_space": number(word("randomize_va_space"), {"1": 1, "2": 2, "0": 0}, 3),
    r"/(proc/sys/kernel/sched_|sys/kernel/debug/sched/)base_slice_ns": number(word("sched_base_slice_ns"), {"100000": 100_000, "1000000000": 10**9,
                                                                                 "3000000": 3_000_000}, 99_999, 10**9 + 1),
    r"/proc/sys/vm/admin_reserve_kbytes": number(word("admin_reserve_kbytes"), {"0": 0, "512": 512}, 2**63),
    r"/proc/sys/vm/user_reserve_kbytes": number(word("user_reserve_kbytes"), {"0": 0, "512": 512}, 2**63),
    r"/proc/sys/vm/overcommit_memory": number(maps("30MiB", "64MiB"), {"0": [True, False], "1": [True, True],
                                                                      "2": [False, False], "00": [True, False]}, 3),
    r"/proc/sys/vm/overcommit_ratio": number(commit_limit, {"0": 0, "100": MANAGED, "50": MANAGED // 2}, INT_MAX + 1),
    r"/proc/sys/vm/overcommit_kbytes": number(commit_limit, {"4096": 1024, "8": 2}, 2**63),
    r"/proc/sys/vm/max_map_count": number(several_maps, {"1": False, str(INT_MAX): True, "65530": True}, INT_MAX + 1),
    r"/proc/sys/vm/min_free_kbytes": number(lambda loop: watermarks(loop)[0] // 8, {"0": 0, "4096": 127, "1024": 31},
                                            INT_MAX + 1),
    r"/proc/sys/vm/watermark_scale_factor": number(lambda loop: watermarks(loop)[1] // 64, {"3000": 115, "1000": 38, "10": 1},
                                                   0, 3001),
    r"/proc/sys/vm/watermark_boost_factor": number(word("watermark_boost_factor"), {"0": 0, str(INT_MAX): INT_MAX,
                                                                                   "15000": 15000}, INT_MAX + 1),
    r"/proc/sys/vm/percpu_pagelist_high_fraction": number(
        lambda loop: int(loop.zones()[0].pcp_high), {"8": 4094 // 8, "100000": 6, "0": 192}, 7, INT_MAX + 1),
    r"/proc/sys/vm/lowmem_reserve_ratio": row(
        lambda loop: loop.zones()[0].lowmem_reserve[1], {"1": 2048, "256 32 8": 8, "0": 0, "256": 8},
        {"": INVALID, "256 x": INVALID, str(INT_MAX + 1): INVALID}),
    r"/proc/sys/vm/swappiness": number(word("swappiness"), {"0": 0, "200": 200, "0x3c": 60}, 201),
    r"/proc/sys/vm/page-cluster": number(lambda loop: swap_of(loop.machine).page_cluster, {"0": 0, "31": 31, "3": 3}, 32),
    r"/proc/sys/vm/zone_reclaim_mode": number(word("node_reclaim_mode"), {"7": 7, "1": 1, "0": 0}, INT_MAX + 1),
    r"/proc/sys/vm/min_unmapped_ratio": number(node_field("min_unmapped_pages"), {"0": [0, 0], "100": [6142, 6144],
                                                                                 "1": [61, 61]}, 101),
    r"/proc/sys/vm/min_slab_ratio": number(node_field("min_slab_pages"), {"0": [0, 0], "100": [6142, 6144],
                                                                         "5": [307, 307]}, 101),
    r"/proc/sys/vm/dirty_ratio": number(lambda loop: dirty_limit(loop.machine, False) > 5000, {"0": False, "100": True,
                                                                                              "20": False}, 101),
    r"/proc/sys/vm/dirty_bytes": number(lambda loop: dirty_limit(loop.machine, False), {"8192": 2, "40960": 10}, 1, 8191, HUGE),
    r"/proc/sys/vm/dirty_background_ratio": number(background, {"0": 0, "9": 9}, 101),
    r"/proc/sys/vm/dirty_background_bytes": number(background, {"1": 1, "20480": 5}, 0, HUGE),
    r"/proc/sys/vm/dirty_expire_centisecs": number(word("dirty_expire_ns"), {"0": 0, "3000": 30 * 10**9}, INT_MAX + 1),
    r"/proc/sys/vm/dirty_writeback_centisecs": number(word("dirty_writeback_ns"), {"0": 0, "500": 5 * 10**9}, INT_MAX + 1),
    r"/proc/sys/vm/drop_caches": row(cached_after_read, {"4": 3, "2": 3, "1": 0, "3": 0},
                                     dict.fromkeys(("", "0", "5", "-1", "many"), INVALID)),
    r"/proc/sys/vm/stat_refresh": row(lambda loop: None, {"1": None, "": None}),      # every counter is exact when it is read
    r"/sys/kernel/mm/page_idle/bitmap": row(lambda loop: None, {}, {"1": INVALID}),  # machine.pwrite: test_page_idle.py
    r"/proc/sys/vm/compact_memory": row(compacted, {"1": [[0, 1]]}, dict.fromkeys(("", "0", "2", "many"), INVALID)),
    r"/proc/sys/vm/compaction_proactiveness": number(proactive, {"100": (100, [1, 1]), "0": (0, [0, 0]), "20": (20, [1, 1])}, 101),
    r"/proc/sys/vm/extfrag_threshold": number(word("extfrag_threshold"), {"0": 0, "1000": 1000, "500": 500}, 1001),
    r"/proc/sys/vm/compact_unevictable_allowed": zero_or_one("compact_unevictable_allowed"),
    r"/proc/sys/vm/lumpy_reclaim": zero_or_one("lumpy_reclaim"),
    r"/proc/sys/vm/panic_on_oom": number(panics, {"1": True, "2": True, "0": False}, 3),
    r"/proc/sys/vm/oom_dump_tasks": number(dumps_tasks, {"0": False, "1": True}, INT_MAX + 1),
    r"/proc/sys/vm/oom_kill_allocating_task": number(who_is_killed, {"1": "asker", "0": "largest"}, INT_MAX + 1),
    r"/proc/sys/vm/nr_hugepages": row(pool(0, "nr_huge_pages"), {"2": 2, "0": 0}, {**NO_PAGES, str(HUGE): INVALID}),
    r"/proc/sys/vm/nr_hugepages_mempolicy": row(pool(0, "nr_huge_pages"), {"2": 2, "0": 0}, {**NO_PAGES, str(HUGE): INVALID}),
    r"/proc/sys/vm/nr_overcommit_hugepages": row(pool(0, "nr_overcommit_huge_pages"), {"3": 3, "0": 0},
                                                 {**NO_PAGES, str(HUGE): INVALID}),
    r"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages(_mempolicy)?":
        row(pool(0, "nr_node"), {"2": [1, 1], "0": [0, 0]}, {"-1": INVALID, str(HUGE): errno.ERANGE}),
    r"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages":
        row(pool(0, "nr_overcommit_huge_pages"), {"4": 4, "0": 0}, {"-1": INVALID, str(HUGE): errno.ERANGE}),
    r"/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages(_mempolicy)?":       # no GiB is there: as many as are to be had
        row(pool(1, "nr_huge_pages"), {"1": 0, str(2**63): 0, "0": 0}, {"-1": INVALID, str(HUGE): errno.ERANGE}),
    r"/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_overcommit_hugepages":
        row(pool(1, "nr_overcommit_huge_pages"), {}, {"1": INVALID, "-1": INVALID, str(HUGE): errno.ERANGE}),
    r"/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages":
        row(pool(0, "nr_node"), {"2": [2, 0], "0": [0, 0]}, {"many": INVALID, str(HUGE): errno.ERANGE}),
    r"/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages":
        row(pool(0, "nr_node"), {"1": [0, 1], "0": [0, 0]}, {"many": INVALID, str(HUGE): errno.ERANGE}),
    r"/sys/devices/system/node/node[01]/hugepages/hugepages-1048576kB/nr_hugepages":
        row(pool(1, "nr_node"), {"1": [0, 0], "0": [0, 0]}, {"many": INVALID, str(HUGE): errno.ERANGE}),
    r"/sys/devices/system/node/node0/compact": row(compacted, {"1": [[0]], "anything": [[0]]}),
    r"/sys/devices/system/node/node1/compact": row(compacted, {"1": [[1]]}),
    r"/sys/kernel/mm/lru_gen/enabled": row(lambda loop: None, {"0": None, "n": None}, {"1": INVALID, "y": INVALID, "": INVALID}),
    r"/sys/kernel/mm/mempolicy/weighted_interleave/node0": row(spread, {"3": (9, 3), "0": (6, 6), "": (6, 6)},
                                                               dict.fromkeys(("256", "-1", "many"), INVALID)),
    r"/sys/kernel/mm/mempolicy/weighted_interleave/node1": row(spread, {"3": (3, 9), "0": (6, 6)}, {"256": INVALID}),
    rf"{THP}/enabled": row(word("thp_enabled"), {"always": 2, "madvise": 1, "never": 0}, dict.fromkeys(("", "1", "often"), INVALID)),
    rf"{THP}/defrag": row(word("thp_defrag"), {"always": 0, "defer": 1, "defer+madvise": 2, "never": 4, "madvise": 3},
                          dict.fromkeys(("", "1", "often"), INVALID)),
    rf"{THP}/shmem_enabled": row(lambda loop: None, {"never": None, "deny": None},
                                 dict.fromkeys(("always", "advise", "force", "1"), INVALID)),
    rf"{THP}/use_zero_page": row(word("thp_use_zero_page"), {"0": 0, "1": 1}, {"2": INVALID, "-1": INVALID, "y": INVALID}),
    rf"{THP}/khugepaged/defrag": row(word("khugepaged_defrag"), {"0": 0, "1": 1}, {"2": INVALID, "y": INVALID}),
    rf"{THP}/khugepaged/pages_to_scan": row(word("khugepaged_pages_to_scan"), {"1": 1, str(UINT_MAX): UINT_MAX, "4096": 4096},
                                            {**THREE, "0": INVALID, str(UINT_MAX + 1): INVALID}),
    **{rf"{THP}/khugepaged/max_ptes_{what}": row(word(f"khugepaged_max_ptes_{what}"), {"0": 0, "511": 511, "100": 100},
                                                 {**THREE, "512": INVALID}) for what in ("none", "swap", "shared")},
    **{rf"{THP}/khugepaged/{what}_sleep_millisecs": row(khugepaged_sleep(f"khugepaged_{what}_sleep_ns"),
                                                        {"0": (0, True), "10000": (10_000, True)},
                                                        {**THREE, str(UINT_MAX + 1): INVALID, str(HUGE): INVALID})
       for what in ("scan", "alloc")},
    "/sys/kernel/mm/swap/vma_ra_enabled": row(lambda loop: swap_of(loop.machine).enable_vma_readahead,
                                              {"false": 0, "true": 1, "0": 0, "1": 1}, {"maybe": INVALID, "": INVALID}),
    rf"{ZSWAP_PARAMETERS}/enabled": row(word("zswap_enabled"), {"Y": 1, "0": 0, "1": 1, "n": 0}, {"maybe": INVALID, "": INVALID}),
    rf"{ZSWAP_PARAMETERS}/max_pool_percent": row(word("zswap_max_pool_percent"), {"0": 0, "200": 200, "20": 20},
                                                 {**THREE, str(UINT_MAX + 1): INVALID}),
    rf"{ZSWAP_PARAMETERS}/accept_threshold_percent": row(word("zswap_accept_thr_percent"), {"0": 0, "90": 90},
                                                         {**THREE, str(UINT_MAX + 1): INVALID}),
    rf"{ZSWAP_PARAMETERS}/compressor": row(lambda loop: zstat_of(loop.machine, ZSWAP).algorithm, {"zstd": 1, "lz4": 0},
                                           {"lzo": INVALID, "": INVALID}),
    rf"{ZSWAP_PARAMETERS}/zpool": row(lambda loop: None, {"zsmalloc": None}, {"zbud": errno.ENOENT}),
    rf"{ZSWAP_PARAMETERS}/shrinker_enabled": row(lambda loop: None, {"N": None}, {"Y": INVALID, "maybe": INVALID}),
    r"/sys/block/zram0/comp_algorithm": row(lambda loop: zstat_of(loop.machine, ZRAM).algorithm, {"zstd": 1, "lz4": 0},
                                            {"lzo": INVALID, "": INVALID}),
    r"/sys/block/zram0/mem_limit": row(lambda loop: zstat_of(loop.machine, ZRAM).limit_pages,
                                       {"64M": 16384, "4097": 2, "1g": 1 << 18, "0": 0}, {"many": INVALID, "-1": INVALID, "": INVALID}),
    r"/sys/block/zram0/mem_used_max": row(
        lambda loop: zstat_of(loop.machine, ZRAM).max_used_pages - zs_pool_of(loop.machine, ZRAM).pages_allocated, {"0": 0},
        {"1": INVALID, "": INVALID}),
    rf"{GROUP}/cgroup.subtree_control": row(controlled, {"-memory": ["cpuset.mems"], "+memory": ["cpuset.mems", "memory.stat"]},
                                            {"cpuset": INVALID, "+io": INVALID}),
    rf"{GROUP}/g/cgroup.subtree_control": row(inner_files, {"+memory": ["cpuset.mems", "memory.stat"], "-memory": ["cpuset.mems"],
                                                          "-cpuset": [], "+cpuset": ["cpuset.mems"]},
                                              {"+io": INVALID}),
    rf"{GROUP}/g/cpuset.cpus": row(lambda loop: allowed(loop)[0], {"1": "1", "0-1": "0-1", "": "0-1"},
                                   {"2": INVALID, "x": INVALID, "70000": errno.ERANGE}),
    rf"{GROUP}/g/cpuset.mems": row(lambda loop: allowed(loop)[1], {"1": "1", "0,1": "0-1", "": "0-1"},
                                   {"2": INVALID, "1-0": INVALID, "70000": errno.ERANGE}),
    rf"{GROUP}/g/inner/cpuset.cpus": row(lambda loop: allowed(loop)[0], {"0": "0", "": "0-1"}, {"2": INVALID}),
    rf"{GROUP}/g/inner/cpuset.mems": row(lambda loop: allowed(loop)[1], {"0": "0", "": "0-1"}, {"2": INVALID}),
    rf"{GROUP}/g/inner/cgroup.subtree_control": row(lambda loop: None, {"+cpuset": None, "-cpuset": None},
                                                    {"+io": INVALID, "+memory": errno.ENOENT}),
    rf"{GROUP}/g/inner/cgroup.procs": row(group_of_big, {pid_of_big: 2}, {"99999": errno.ESRCH, "x": INVALID}),
    rf"{GROUP}/g/cgroup.procs": row(group_of_big, {}, {pid_of_big: errno.EBUSY, "99999": errno.ESRCH}),      # an inner group
    rf"{GROUP}/cgroup.procs": row(group_of_big, {pid_of_big: 0}, {"99999": errno.ESRCH, "x": INVALID}),
}
# fmt: on


# -- the tests -----------------------------------------------------------------------------------------------


def test_every_writable_file_has_a_row_and_every_row_a_file(loop):
    files = writable(loop)
    for path in files:
        rows = [pattern for pattern in ROWS if re.fullmatch(pattern, path)]
        assert len(rows) == 1, f"{path}: {len(rows)} rows in the table of settings"
    for pattern in ROWS:
        assert any(re.fullmatch(pattern, path) for path in files), f"the row of {pattern} is for no file"


@pytest.mark.parametrize("pattern", ROWS)
def test_a_value_has_its_effect_or_is_refused(loop, pattern):
    """Refused values leave everything as it was."""
    look, effects, refused = ROWS[pattern]
    for path in [path for path in writable(loop) if re.fullmatch(pattern, path)]:
        read = proc.find(loop.actors[0].system, path)[0]
        look(loop)
        for value, expected in effects.items():
            text = value(loop) if callable(value) else value
            assert attempt(loop, path, text) == 0, f"{path}: {text!r}"
            assert look(loop) == expected, f"{path}: {text!r}"
        for value, number in refused.items():
            text, before = value(loop) if callable(value) else value, read and read(loop.actors[0].system)
            assert attempt(loop, path, text) == number, f"{path}: {text[:40]!r}"
            assert before == (read and read(loop.actors[0].system))
    assert effects or refused


def test_every_word_that_is_set_is_read_by_the_kernel(loop):
    """A setting that no compiled code looks at would have no effect."""
    setters = {"sysctl.py", "thp.py", "zswap_init.py", "boot.py", "mm_types.py"}
    sources = [
        path.read_text()
        for path in pathlib.Path(numaemu.kernel.__path__[0]).rglob("*.py")
        if path.name not in setters and path.parts[-2:] != ("sysfs", "zswap.py")
    ]
    for name in sorted(WORDS):
        assert any(
            f"machine.{name}" in text or f'machine, "{name}"' in text or f"machine_of(cpu).{name}" in text
            for text in sources
        ), f"no kernel file reads machine.{name}"


def test_the_machine_stands_after_all_of_it(loop):
    loop.audit()
