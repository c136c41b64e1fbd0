"""What accesses cost, to the picosecond, where misses overlap and controllers and links have rates; what moves pages costs them too."""

import numba
import numpy as np
import pytest

from numaemu import MPOL_BIND, O_CREAT, O_RDWR, load_f64, load_many_f64, load_u64, work, xadd_i64
from numaemu.hardware.bandwidth import passage_t
from numaemu.hardware.controller import now_ps
from numaemu.kernel.core.rates import servers_of
from numaemu.kernel.fs.sysfs.stats import cpu_figures
from numaemu.mmu import clock_ns
from numaemu.spec.param import PAGE_SIZE

pytestmark = pytest.mark.interpreted
LOCAL, REMOTE, KEPT_PS = 80, 140, 250
MACHINE = {
    "nodes": 2,
    "cpus_per_node": 1,
    "memory_per_node": "32MiB",
    "latency": [[LOCAL, REMOTE], [REMOTE, LOCAL]],
    "l1": {"entries": 64, "ways": 4},
    "l2": {"entries": 64, "ways": 4},
}
LINES = PAGE_SIZE // 64


def lines(loop):
    """Lines that each server has moved, by its name."""
    moved = {}
    for i, (name, _) in enumerate(servers_of(loop.topology)):
        moved[name] = sum(passage_t.array(cpu.state.passages)[i].lines for cpu in loop.present)
    return moved


def page(task, node, size=PAGE_SIZE):
    """A mapping on a node, all of whose pages are there and in the TLB, and none of its lines at hand."""
    mapping = task.mmap(2 * size)
    task.mbind(mapping.addr, 2 * size, MPOL_BIND, [node])
    task.touch(mapping.addr, 2 * size)
    task.load(mapping.addr + size + np.arange(0, PAGE_SIZE, 64, dtype=np.uint64))
    task.load(mapping.addr + np.arange(0, size, PAGE_SIZE, dtype=np.uint64))
    task.load(mapping.addr + size + np.arange(0, PAGE_SIZE, 64, dtype=np.uint64))
    return mapping.addr


def took(cpu, function, *args):
    """Emulated ps of a call."""
    begin = now_ps(cpu)
    function(*args)
    return now_ps(cpu) - begin


def first_words(address, n):
    """Addresses of the first words of n lines."""
    return address + np.arange(0, 64 * n, 64, dtype=np.uint64)


@numba.njit(cache=True)
def negative_work(cpu):
    work(cpu, -1)


@numba.njit(cache=True)
def gather(cpu, addresses, values):
    load_many_f64(cpu, addresses, values)


@numba.njit(cache=True)
def one_by_one(cpu, addresses, values):
    for i in range(len(addresses)):
        values[i] = load_f64(cpu, addresses[i])


@pytest.mark.parametrize("node, latency", [(0, LOCAL), (1, REMOTE)])
@pytest.mark.parametrize("outstanding", [1, 2, 12])
def test_a_vector_overlaps_as_many_misses_as_the_cpu_may_have(loopback, outstanding, node, latency):
    rate = "10TB/s" if outstanding == 1 else None  # else nothing is timed
    loop = loopback(**MACHINE, cpu={"outstanding": outstanding}, bandwidth_per_node=rate)
    task, cpu = loop.task(), loop.cpu(0)
    for n in (1, outstanding, outstanding + 1, 40):
        address = page(task, node)
        rounds = -(-n // outstanding)
        assert took(cpu, task.load, first_words(address, n)) == rounds * latency * 1000


@pytest.mark.parametrize("outstanding", [1, 12])
def test_a_chain_of_loads_takes_the_latency_of_each(loopback, outstanding):
    """As a pointer chase on an idle machine, of any rate."""
    loop = loopback(
        **MACHINE, cpu={"outstanding": outstanding}, bandwidth_per_node="20GB/s", link={"bandwidth": "10GB/s"}
    )
    task, cpu = loop.task(), loop.cpu(0)
    for node, latency in ((0, LOCAL), (1, REMOTE)):
        address = page(task, node)

        def chase(address=address):
            for word in first_words(address, LINES):
                load_u64(cpu, word)

        assert took(cpu, chase) == LINES * latency * 1000


def test_stores_wait_for_a_place_only(loopback):
    loop = loopback(**MACHINE, cpu={"outstanding": 4})
    task, cpu = loop.task(), loop.cpu(0)
    address = page(task, 0)
    assert took(cpu, task.store, first_words(address, 4), np.uint64(1)) == 0
    assert took(cpu, task.store, first_words(address + 1024, 4), np.uint64(1)) == LOCAL * 1000
    assert took(cpu, task.load, address + 2048) == 2 * LOCAL * 1000  # places are free when the stores are done


def test_a_locked_word_waits_for_all_stores(loopback):
    loop = loopback(**MACHINE, cpu={"outstanding": 8})
    task, cpu = loop.task(), loop.cpu(0)
    address = page(task, 0)
    task.store(first_words(address, 4), np.uint64(1))
    task.work(30)
    assert took(cpu, xadd_i64, cpu, address + 1024, 1) == LOCAL * 1000  # its own line is the last to come
    task.store(first_words(address + 2048, 4), np.uint64(1))
    assert took(cpu, xadd_i64, cpu, address + 1024, 1) == LOCAL * 1000


def test_words_of_a_line_are_one_transfer(loopback):
    loop = loopback(**MACHINE, bandwidth_per_node="200GB/s")
    task, cpu = loop.task(), loop.cpu(0)
    address = page(task, 0)
    before = lines(loop)["node 0"]
    words = address + np.arange(0, PAGE_SIZE, 8, dtype=np.uint64)
    assert took(cpu, task.load, words) == LINES * (LOCAL * 1000 + 7 * KEPT_PS)
    assert lines(loop)["node 0"] - before == LINES
    assert took(cpu, task.store, words, np.uint64(1)) == LINES * (LOCAL * 1000 + 7 * KEPT_PS)  # and back to memory
    assert lines(loop)["node 0"] - before == 2 * LINES


def test_three_streams_at_once_move_each_line_once(loopback):
    loop = loopback(**MACHINE, bandwidth_per_node="200GB/s")
    task = loop.task()
    arrays = [page(task, 0) for _ in range(3)]
    before = lines(loop)["node 0"]
    mixed = np.stack([a + np.arange(0, PAGE_SIZE, 8, dtype=np.uint64) for a in arrays], axis=1).ravel()
    task.load(mixed)
    assert lines(loop)["node 0"] - before == 3 * LINES


def test_one_stream_has_the_rate_of_the_slowest_on_its_way(loopback):
    loop = loopback(**MACHINE, cpu={"outstanding": 64}, bandwidth_per_node="20GB/s", link={"bandwidth": "5GB/s"})
    task, cpu = loop.task(), loop.cpu(0)
    for node, rate in ((0, 20), (1, 5)):
        size = 16 * PAGE_SIZE
        address = page(task, node, size)
        before = lines(loop)
        ps = took(cpu, task.load, first_words(address, size // 64))
        assert size * 1000 / ps == pytest.approx(rate, rel=0.1)
        moved = {name: n - before[name] for name, n in lines(loop).items()}
        assert moved[f"node {node}"] == pytest.approx(size // 64, abs=8)  # and lines of page tables
        assert moved["link 1>0"] == (size // 64 if node == 1 else 0) and moved["link 0>1"] == 0


def test_an_access_that_fails_ends_the_overlap(loopback):
    from numaemu import SegmentationFault

    loop = loopback(**MACHINE, cpu={"outstanding": 12})
    task, cpu = loop.task(), loop.cpu(0)
    address = page(task, 0)
    with pytest.raises(SegmentationFault):
        task.load(np.array([address, 4096], np.uint64))
    assert cpu.overlap == 0
    assert took(cpu, load_u64, cpu, address + 64) == LOCAL * 1000


def test_pages_that_are_cleared_and_copied_move_their_lines(loopback):
    """A page fault, copy on write, and migration from node 0 to node 1."""
    loop = loopback(**MACHINE, bandwidth_per_node="20GB/s", link={"bandwidth": "10GB/s"})
    task = loop.task()
    mapping = task.mmap(16 * PAGE_SIZE)
    before = lines(loop)
    task.touch(mapping.addr, 16 * PAGE_SIZE)
    assert 16 * LINES <= lines(loop)["node 0"] - before["node 0"] < 24 * LINES
    before = lines(loop)
    task.move_pages(mapping.pages(), [1] * 16)
    moved = {name: n - before[name] for name, n in lines(loop).items()}
    assert moved["node 1"] >= 16 * LINES and moved["node 0"] >= 16 * LINES and moved["link 0>1"] >= 16 * LINES
    assert moved["link 1>0"] < LINES


def test_a_slow_controller_makes_clearing_longer(loopback):
    """Clearing a page takes a CPU 150 ns, and a controller 0.4, 205 or 4096 ns: the longer of both counts."""
    seen = []
    for rate in ("10TB/s", "20GB/s", "1GB/s"):
        loop = loopback(**MACHINE, bandwidth_per_node=rate)
        task, cpu = loop.task(), loop.cpu(0)
        mapping = task.mmap(64 * PAGE_SIZE)
        task.touch(mapping.addr, 8 * PAGE_SIZE)
        begin = clock_ns(cpu)
        task.touch(mapping.addr + 8 * PAGE_SIZE, 8 * PAGE_SIZE)
        seen.append((clock_ns(cpu) - begin) / 8)
    assert seen[1] - seen[0] == pytest.approx(205 - 150, abs=5)
    assert seen[2] - seen[0] == pytest.approx(4096 - 150, abs=70)  # the fault's own lines wait, too


def test_a_disk_moves_lines_too(loopback):
    loop = loopback(**MACHINE, bandwidth_per_node="20GB/s")
    task = loop.task()
    file = task.open("/data", O_CREAT | O_RDWR)
    file.write(b"x" * (4 * PAGE_SIZE))
    before = lines(loop)["node 0"]
    file.fsync()
    assert lines(loop)["node 0"] - before >= 4 * LINES


def test_without_rates_and_overlap_nothing_is_timed(loopback):
    loop = loopback(**MACHINE)
    task, cpu = loop.task(), loop.cpu(0)
    task.touch(task.mmap(16 * PAGE_SIZE).addr, 16 * PAGE_SIZE)
    assert (cpu.timed, cpu.rates, cpu.memory_ns, cpu.memory_ps, cpu.outstanding) == (0, 0, 0, 0, 1)
    assert not any(name.startswith("rate") for name in loop.blocks)


def test_computing_takes_time_and_misses_go_on_meanwhile(loopback):
    loop = loopback(**MACHINE, cpu={"outstanding": 4})
    task, cpu = loop.task(), loop.cpu(0)
    address = page(task, 0)
    task.store(first_words(address, 4), np.uint64(1))
    assert took(cpu, task.work, 50) == 50_000
    assert (
        took(cpu, task.store, address + 1024, np.uint64(1)) == 30_000
    )  # the first of the four is there 80 ns after it began
    assert took(cpu, work, cpu, 20_000) == 20_000_000
    assert took(cpu, task.work, 3_000_000.4) == 3_000_000_000
    with pytest.raises(ValueError, match="work: ns must not be negative"):
        task.call(negative_work)


def test_load_many_overlaps_what_a_loop_of_loads_does_not(loopback):
    loop = loopback(**MACHINE, cpu={"outstanding": 12})
    task, cpu = loop.task(), loop.cpu(0)
    address = page(task, 0)
    task.store(first_words(address, 24), np.arange(24, dtype=np.uint64))
    task.work(1000)
    values = np.zeros(24)
    address = page(task, 0)
    assert took(cpu, task.call, gather, first_words(address, 24), values) == 2 * LOCAL * 1000
    address = page(task, 0)
    assert took(cpu, task.call, one_by_one, first_words(address, 24), values) == 24 * LOCAL * 1000


CACHES = {
    "l1d": {"size": "4KiB", "ways": 8, "latency_ns": 1},
    "llc": {"size": "64KiB", "ways": 16, "latency_ns": 20, "sharing": "node"},
    "cache_to_cache": 60,
}


def cached(loopback, outstanding):
    """A machine with caches and rates, and a mapping of 16 pages that the last level has."""
    loop = loopback(
        **MACHINE, cache=CACHES, cpu={"outstanding": outstanding}, bandwidth_per_node="10TB/s", walk_cache=16
    )
    task, cpu = loop.task(), loop.cpu(0)
    address = task.mmap(8 * PAGE_SIZE).touch().addr
    for _ in range(2):
        task.load(first_words(address, 8 * LINES))
    return loop, task, cpu, address


@pytest.mark.parametrize("outstanding, ns", [(1, 12 * 20), (4, 3 * 20), (12, 20)])
def test_what_outer_caches_have_overlaps_as_misses_do(loopback, outstanding, ns):
    loop, task, cpu, address = cached(loopback, outstanding)
    before = lines(loop)["node 0"]
    assert took(cpu, task.load, first_words(address + 7 * PAGE_SIZE, 12)) <= 12 * 1000  # the first level has them
    task.work(1000)
    assert took(cpu, task.load, first_words(address, 12)) == pytest.approx(ns * 1000, abs=3000)
    assert lines(loop)["node 0"] == before

    def chase():
        for word in first_words(address + PAGE_SIZE, 12):
            load_u64(cpu, word)

    task.load(address + PAGE_SIZE + 2048)  # its translation
    task.work(1000)
    assert took(cpu, chase) == 12 * 20 * 1000


def test_caches_move_what_they_miss_and_what_they_write_back(loopback):
    loop, task, cpu, _ = cached(loopback, 12)
    address = task.mmap(64 * PAGE_SIZE).touch().addr
    task.load(first_words(address, 64 * LINES))
    before, figures = (
        lines(loop)["node 0"],
        cpu_figures(loop.machine, 0, loop.topology.cache)["caches"]["levels"]["llc"],
    )
    task.store(first_words(address, 64 * LINES), np.uint64(1))
    task.load(first_words(address, 64 * LINES))
    after = cpu_figures(loop.machine, 0, loop.topology.cache)["caches"]["levels"]["llc"]
    moved = {key: after[key] - figures[key] for key in ("misses", "write_backs")}
    assert moved["write_backs"] >= 48 * LINES and moved["misses"] >= 2 * 48 * LINES
    assert lines(loop)["node 0"] - before == moved["misses"] + moved["write_backs"]


@pytest.mark.parametrize("more", [{"bandwidth_per_node": "20GB/s"}, {"cpu": {"outstanding": 4}}, {"cache": CACHES}])
def test_what_is_due_in_the_middle_of_a_vector_is_done_there(loopback, more):
    """A shootdown, or the end of a quantum: before the access at which it is due, on whatever page."""
    loop = loopback(**MACHINE, **more)
    task, cpu = loop.task(), loop.cpu(0)
    address = task.mmap(4 * PAGE_SIZE).touch().addr
    served = []

    def serve(_cpu, _b, _c):
        served.append(cpu.tick)
        cpu.event_at = cpu.tick + 100
        return 0

    usual, cpu.on_event = cpu.on_event, loop._callback(serve)
    cpu.event_at = begin = cpu.tick + 7
    task.load(first_words(address, 4 * LINES))
    cpu.on_event = usual
    assert served == [begin, begin + 100, begin + 200]
