"""Lumpy reclaim: whole blocks by eviction, where compaction would have moved their pages."""

import numpy as np
import pytest
from test_compaction import fragmented, intact

from numaemu import MAP_ANONYMOUS, MAP_SHARED, Machine
from numaemu.api.files import seeded_bytes
from numaemu.kernel.arch.pgtable import pte_pfn
from numaemu.kernel.include.gfp import __GFP_NOWARN, GFP_HIGHUSER_MOVABLE, GFP_KERNEL
from numaemu.kernel.include.mm_types import PG_active, PG_lru
from numaemu.kernel.mm.reclaim.lru_batches import folio_activate, lru_add_drain
from numaemu.kernel.mm.reclaim.lumpy import isolate_block
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.reclaim.vmscan import init_scan_control, move_folios_to_lru
from numaemu.kernel.mm.swap import swapon

U = np.uint64
PAGES = 14000  # of 16384
HUGE = GFP_HIGHUSER_MOVABLE | __GFP_NOWARN


def crumbled(loopback, lumpy, **keywords):
    """A machine whose memory is free in single pages, with swap: (loop, task, addresses, words)"""
    loop = loopback(
        nodes=1,
        cpus_per_node=1,
        memory_per_node="64MiB",
        sysctl={"vm.min_free_kbytes": 256, "vm.lumpy_reclaim": lumpy},
        **keywords,
    )
    swapon.swapon(loop.machine, "area", 64 << 20)
    task, addresses, words = fragmented(loop, PAGES)
    while task.kernel.alloc_pages(HUGE & ~GFP_KERNEL, 9):  # what is free in large blocks is not there to be had
        pass
    return loop, task, addresses, words


@pytest.mark.parametrize("lumpy", [0, 1])
def test_blocks_by_eviction_or_by_moving(loopback, lumpy):
    loop, task, addresses, words = crumbled(loopback, lumpy)
    before = loop.vmstat()
    blocks = [task.kernel.alloc_pages(HUGE, 9) for _ in range(8)]
    counts = {name: n - before[name] for name, n in loop.vmstat().items()}
    assert all(blocks) and not any(pfn & 511 for pfn in blocks)
    if lumpy:
        assert counts["pswpout"] > 8 * 200 and counts["pgmigrate_success"] == counts["compact_stall"] == 0
        assert counts["pgsteal_direct"] + counts["pgsteal_kswapd"] == counts["pgsteal_anon"] >= counts["pswpout"]
    else:
        assert counts["pswpout"] < 1000 < counts["pgmigrate_success"] and counts["compact_success"] > 0
    assert loop.vmstat()["nr_isolated_anon"] == 0
    loop.audit()
    for pfn in blocks:
        task.kernel.free_pages(pfn, 9)
    assert intact(task, addresses, words)
    loop.audit()


def block_of(loop, task, address):
    """(scan_control ready for a lumpy pass, the frame of an address, the used frames of its block)"""
    sc = scan_control_of(loop.cpu())
    init_scan_control(loop.machine, sc, GFP_HIGHUSER_MOVABLE, 5, loop.machine.node_mask)
    sc.lumpy_order, sc.nr_taken = 5, 0
    pfn = int(pte_pfn(U(loop.pte(task, int(address)))))
    block = range(pfn & ~31, (pfn & ~31) + 32)
    return sc, pfn, [p for p in block if p != pfn and loop.page(p).flags & U(PG_lru)]


@pytest.fixture
def small(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB", sysctl={"vm.min_free_kbytes": 256})
    swapon.swapon(loop.machine, "area", 16 << 20)
    return loop, *fragmented(loop, 3000)


@pytest.mark.interpreted
def test_block_is_taken_from_active_lists_too_but_free_pages_are_passed_over(small):
    loop, task, addresses, words = small
    sc, tag, used = block_of(loop, task, addresses[500])
    for pfn in used[::3]:
        folio_activate(loop.cpu(), pfn)
    lru_add_drain(loop.cpu())
    assert all(loop.page(pfn).flags & U(PG_active) for pfn in used[::3])
    assert isolate_block(loop.cpu(), sc, tag) == len(used) > 8
    taken = [sc.pfn[i] for i in range(sc.nr_taken)]
    assert taken == used
    assert not any(loop.page(pfn).flags & U(PG_lru) for pfn in taken)
    for i in range(sc.nr_taken):
        sc.state[i] = 0  # KEEP
    move_folios_to_lru(loop.cpu(), sc, 0)
    assert intact(task, addresses, words)
    loop.audit()


@pytest.mark.interpreted
def test_block_ends_where_a_page_cannot_go(small):
    loop, task, addresses, words = small
    sc, tag, used = block_of(loop, task, addresses[500])
    stuck = used[len(used) // 2]
    loop.page(stuck).flags &= ~U(PG_lru)  # somebody else has isolated it
    assert isolate_block(loop.cpu(), sc, tag) == used.index(stuck)
    loop.page(stuck).flags |= U(PG_lru)
    for i in range(sc.nr_taken):
        sc.state[i] = 0
    move_folios_to_lru(loop.cpu(), sc, 0)
    assert intact(task, addresses, words)
    loop.audit()


def test_single_pages_are_reclaimed_as_ever(loopback):
    """For order 0 the mode changes nothing: no page goes that was used lately just because of where it lies."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB", sysctl={"vm.lumpy_reclaim": 1})
    swapon.swapon(loop.machine, "area", 32 << 20)
    task = loop.task()
    area = task.mmap("12MiB")
    words = np.arange(1, len(area.pages()) + 1, dtype=U)
    task.store(area.pages(), words)
    assert scan_control_of(loop.cpu()).lumpy_order == 0
    assert (task.load(area.pages()) == words).all() and loop.vmstat()["pswpout"] > 0
    loop.audit()


def listed(loop, kind):
    """Pages of a kind on LRU lists."""
    loop.audit()  # what waits for its list is on it
    return sum(loop.vmstat()[f"nr_{which}_{kind}"] for which in ("active", "inactive"))


def test_pages_of_files_go_with_the_others_and_are_counted_as_such(loopback):
    loop = loopback(
        nodes=1, cpus_per_node=1, memory_per_node="64MiB", sysctl={"vm.min_free_kbytes": 256, "vm.lumpy_reclaim": 1}
    )
    swapon.swapon(loop.machine, "area", 64 << 20)
    task = loop.task()
    loop.create_file("/mnt/f", 20 << 20, 3)
    area, file = task.mmap("35MiB"), task.open("/mnt/f")
    pages, words = area.pages(), np.arange(1, (35 << 8) + 1, dtype=U)
    for i in range(0, 20 << 8, 8):  # 12 pages of memory, 8 of the file, and so on
        task.store(pages[i * 12 // 8 :][:12], words[i * 12 // 8 :][:12])
        file.pread(8 << 12, i << 12)
    while task.kernel.alloc_pages(HUGE & ~GFP_KERNEL, 9):
        pass
    before, anon, of_file = loop.vmstat(), listed(loop, "anon"), listed(loop, "file")
    blocks = [task.kernel.alloc_pages(HUGE, 9) for _ in range(8)]
    gone = anon - listed(loop, "anon"), of_file - listed(loop, "file")
    counts = {name: n - before[name] for name, n in loop.vmstat().items()}
    assert all(blocks) and min(gone) > 500
    assert (counts["pgsteal_anon"], counts["pgsteal_file"]) == gone
    assert counts["pgscan_anon"] >= gone[0] and counts["pgscan_file"] >= gone[1]
    for name, kinds in (("pgsteal", ("direct", "kswapd")), ("pgscan", ("direct", "kswapd"))):
        assert sum(counts[f"{name}_{who}"] for who in kinds) == counts[f"{name}_anon"] + counts[f"{name}_file"]
    assert loop.vmstat()["nr_isolated_anon"] == loop.vmstat()["nr_isolated_file"] == 0
    for pfn in blocks:
        task.kernel.free_pages(pfn, 9)
    assert (task.load(pages[:7680]) == words[:7680]).all()
    assert file.pread(20 << 20, 0) == seeded_bytes(3, 0, 20 << 20)
    loop.audit()


def test_huge_pages_are_split_and_go(loopback):
    """A huge mapping is no obstacle: whoever is taken from it splits it."""
    loop = loopback(
        nodes=1, cpus_per_node=1, memory_per_node="64MiB", sysctl={"vm.min_free_kbytes": 256, "vm.lumpy_reclaim": 1}
    )
    swapon.swapon(loop.machine, "area", 64 << 20)
    loop.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    task = loop.task()
    area = task.mmap("54MiB")
    words = np.arange(1, (54 << 8) + 1, dtype=U)
    task.store(area.pages(), words)
    assert loop.vmstat()["nr_anon_transparent_hugepages"] > 20
    while task.kernel.alloc_pages(HUGE & ~GFP_KERNEL, 9):
        pass
    blocks = [pfn for pfn in (task.kernel.alloc_pages(HUGE, 9) for _ in range(8)) if pfn]
    counts = loop.vmstat()
    assert len(blocks) >= 6 and counts["thp_split_pmd"] > 0 and counts["pgmigrate_success"] == 0
    loop.audit()
    for pfn in blocks:
        task.kernel.free_pages(pfn, 9)
    assert intact(task, area.pages(), words)
    loop.audit()


def test_without_swap_nothing_is_taken(loopback):
    loop = loopback(
        nodes=1, cpus_per_node=1, memory_per_node="16MiB", sysctl={"vm.min_free_kbytes": 256, "vm.lumpy_reclaim": 1}
    )
    task, addresses, words = fragmented(loop, 3400)
    sc, tag, _ = block_of(loop, task, addresses[500])
    assert isolate_block(loop.cpu(), sc, tag) == 0
    while task.kernel.alloc_pages(HUGE, 9):
        pass
    assert loop.vmstat()["pgmigrate_success"] == 0 and intact(task, addresses, words)
    loop.audit()


def test_setting(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    assert loop.machine.lumpy_reclaim == 0
    loop.write("/proc/sys/vm/lumpy_reclaim", "1")
    assert loop.machine.lumpy_reclaim == 1
    with pytest.raises(AssertionError, match="must be 0 to 1"):
        loop.write("/proc/sys/vm/lumpy_reclaim", "2")


def worker(task, seed, rounds):
    """Write and verify a private and a shared mapping, a child with copies and a request for a block each round.

    Others may be in the way of any one request, so the rounds go on, up to 60, until a block has come.
    (errors found, blocks that came)
    """
    rng, wrong, came = np.random.default_rng(seed), 0, 0
    areas = [task.mmap("36MiB"), task.mmap("1MiB", flags=MAP_SHARED | MAP_ANONYMOUS)]
    shadows = [np.zeros(len(area.pages()), U) for area in areas]
    for i in range(60):
        if i >= rounds and came:
            break
        for area, shadow in zip(areas, shadows):
            picked = rng.permutation(len(shadow))[: len(shadow) // 2]
            wrong += int((task.load(area.pages()[picked]) != shadow[picked]).sum())
            shadow[picked] = rng.integers(1, 1 << 60, len(picked)).astype(U)
            task.store(area.pages()[picked], shadow[picked])
        child = task.fork(lambda child, at, words: int((child.load(at) != words).sum()), areas[0].pages(), shadows[0])
        pfn = task.kernel.alloc_pages(HUGE, 9)
        if pfn:
            came += 1
            task.kernel.free_pages(pfn, 9)
        wrong += child.result()
    return wrong, came


def test_while_every_cpu_uses_its_pages():
    """Blocks are evicted under the feet of tasks on other CPUs that write and verify."""
    with Machine(nodes=2, cpus_per_node=2, memory_per_node="16MiB", sysctl={"vm.lumpy_reclaim": 1}) as machine:
        machine.swapon("256MiB")
        results = [handle.result() for handle in [machine.spawn(worker, cpu, 4, cpu=cpu) for cpu in range(4)]]
        assert [wrong for wrong, _ in results] == [0] * 4 and sum(came for _, came in results) > 0
        counts = machine.stats()["vmstat"]
        assert counts["pswpout"] > 0 and counts["compact_stall"] == counts["compact_daemon_wake"] == 0
        machine.check()
