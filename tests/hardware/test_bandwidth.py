"""Servers of controllers and links: against a twin that keeps a set of slots, and against what queueing theory says."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback

from numaemu.compiler.build import JIT
from numaemu.hardware.bandwidth import LATE, SLOTS, pass_line, pass_lines, passage_t, rates_t, take_slot, take_slots
from numaemu.hardware.controller import fetch_line, now_ps
from numaemu.hardware.processor import cpu_t
from numaemu.spec.param import KEPT_LINES, PAGE_SIZE

pytestmark = pytest.mark.interpreted
LINE_PS = 320  # of 200 GB/s


class Hardware:
    """CPUs on node 0 of a machine without a kernel, and one controller."""

    def __init__(self, nr_cpus=1, words=1 << 12, line_ps=LINE_PS, latency_ns=80, outstanding=1, shared=1):
        self.kept = []
        self.rates = rates_t.at(self.block(rates_t.nbytes))
        self.rates.nr_nodes = self.rates.nr_servers = 1
        self.rates.shared = shared
        self.rates.lap_shift, self.rates.ring_mask = words.bit_length() - 1, words - 1
        self.ring = self.block(words * 8)
        self.cpus = [self.cpu(line_ps, latency_ns, outstanding) for _ in range(nr_cpus)]
        self.passage = passage_t.at(self.cpus[0].passages)

    def block(self, nbytes):
        self.kept.append(np.zeros(-(-nbytes // 8) + 8, np.uint64))
        return -(-self.kept[-1].ctypes.data // 64) * 64

    def cpu(self, line_ps, latency_ns, outstanding):
        cpu = cpu_t.at(self.block(cpu_t.nbytes))
        cpu.rates, cpu.passages, cpu.block_node = self.rates.address, self.block(passage_t.nbytes), self.block(64)
        passage = passage_t.at(cpu.passages)
        passage.ring, passage.line_ps, passage.lines_per_ps = self.ring, line_ps, 1 / line_ps
        cpu.timed, cpu.outstanding, cpu.latency_ns[0] = 1, outstanding, latency_ns
        return cpu

    def taken(self, last):
        """All slots up to one that are taken."""
        words = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint64 * (last // SLOTS + 1)).from_address(int(self.ring)))
        return {n * SLOTS + i for n, word in enumerate(words) for i in range(SLOTS) if int(word) >> i & 1}


# -- slots ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 90)), max_size=60), st.integers(0, 1))
def test_slots_are_taken_as_the_twin_takes_them(requests, shared):
    """No slot twice, none that is not asked for, and always the first free ones from the wanted one on, in whatever order."""
    hardware, twin = Hardware(shared=shared), set()
    for first, lines in requests:
        free = [slot for slot in range(first, first + lines + len(twin)) if slot not in twin][:lines]
        if lines == 1:
            last = take_slot(hardware.rates, hardware.passage, first)
        else:
            last = take_slots(hardware.rates, hardware.passage, first, lines)
        assert last == free[-1]
        twin.update(free)
    assert hardware.taken(20_000) == twin
    assert len(twin) == sum(lines for _, lines in requests)


def test_a_time_that_the_ring_has_left_is_late():
    hardware = Hardware(words=4)
    round_trip = 4 * SLOTS
    assert take_slot(hardware.rates, hardware.passage, 5) == 5
    assert take_slot(hardware.rates, hardware.passage, round_trip + 7) == round_trip + 7
    assert take_slot(hardware.rates, hardware.passage, 6) == LATE
    assert take_slots(hardware.rates, hardware.passage, 6, 3) == LATE
    assert take_slot(hardware.rates, hardware.passage, SLOTS) == SLOTS  # the next word is still of that round
    assert take_slot(hardware.rates, hardware.passage, round_trip) == round_trip


def test_late_lines_of_a_cpu_move_no_faster_than_the_rate():
    hardware = Hardware(words=4)
    (cpu,) = hardware.cpus
    pass_line(cpu, 0, 96 * SLOTS * LINE_PS)
    waits = [pass_line(cpu, 0, 1000) for _ in range(4)]
    assert waits == [0, LINE_PS, 2 * LINE_PS, 3 * LINE_PS]
    assert pass_lines(cpu, 0, 1000, 10) == 14 * LINE_PS
    passage = passage_t.at(cpu.passages)
    assert (passage.lines, passage.moves, passage.moved, passage.late) == (15, 1, 10, 5)


def test_many_lines_at_once_take_what_they_take_one_by_one():
    one, many = Hardware(), Hardware()
    for hardware in (one, many):
        for at in (0, 3, 40, 41, 42, 90):
            pass_line(hardware.cpus[0], 0, at * LINE_PS)
    waits = [pass_line(one.cpus[0], 0, 2 * LINE_PS) for _ in range(100)]
    assert pass_lines(many.cpus[0], 0, 2 * LINE_PS, 100) == waits[-1] + LINE_PS
    assert one.taken(1000) == many.taken(1000)
    assert passage_t.at(one.cpus[0].passages).lines == passage_t.at(many.cpus[0].passages).lines == 106


@numba.njit(cache=True)
def waits_of(cpu, arrivals, waits):
    """What each line waits that comes to the controller at a time."""
    for i in range(len(arrivals)):
        waits[i] = pass_line(cpu, 0, arrivals[i])


# -- queueing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_random_arrivals_wait_as_in_the_queue_m_d_1(load):
    """The mean wait is load / (2 - 2 load) lines. A short sample is compared with its own waits, as Lindley has them."""
    n = 1_000_000 if JIT else 8_000
    arrivals = np.cumsum(np.random.default_rng(7).exponential(LINE_PS / load, n)).astype(np.int64)
    hardware = Hardware(words=1 << 10)
    cpu, waits = hardware.cpus[0], np.zeros(n, np.int64)
    waits_of(cpu, arrivals, waits)
    mean = np.mean(waits)
    begins = np.maximum.accumulate(arrivals - np.arange(n) * LINE_PS) + np.arange(n) * LINE_PS
    sample = np.mean(begins - arrivals)
    assert mean == pytest.approx(sample, rel=0.02 if JIT else 0.05)
    if JIT:
        assert mean == pytest.approx(LINE_PS * load / (2 - 2 * load), rel=0.05)
    assert passage_t.at(cpu.passages).queued_ps == round(mean * n)


def test_arrivals_out_of_order_wait_as_long_altogether():
    """Within a quantum the order does not change what the server moves, nor the sum of the waits."""
    rng, n, quantum = np.random.default_rng(3), 4_000, 20_000_000
    arrivals = np.cumsum(rng.exponential(LINE_PS / 0.8, n)).astype(np.int64)
    assert arrivals[-1] < quantum
    waits = []
    for order in (np.arange(n), rng.permutation(n)):
        hardware = Hardware()
        waits.append(sum(pass_line(hardware.cpus[0], 0, at) for at in arrivals[order].tolist()))
    assert waits[0] == waits[1]


def run_in_lockstep(hardware, until_ps, quantum_ps):
    """All CPUs load one line after another until a time, and take turns as lockstep has them. The lines that were moved."""
    cpus = hardware.cpus
    while (cpu := min(cpus, key=now_ps)) and now_ps(cpu) < until_ps:
        least = min((now_ps(other) for other in cpus if other is not cpu), default=until_ps)
        while now_ps(cpu) <= min(least + quantum_ps, until_ps):
            cpu.memory_ns += fetch_line(cpu, 0, False)
    return sum(passage_t.at(cpu.passages).lines for cpu in cpus)


@pytest.mark.parametrize("nr_cpus, outstanding", [(8, 1), (4, 12), (1, 12)])
def test_streams_together_reach_the_rate_and_no_more(nr_cpus, outstanding):
    """10 GB/s: a line takes 6.4 ns, and a CPU alone has one in each 80 / outstanding ns."""
    hardware = Hardware(nr_cpus, line_ps=6400, outstanding=outstanding)
    for cpu in hardware.cpus:
        cpu.overlap = 1
    until_ps = 20_000_000
    lines = run_in_lockstep(hardware, until_ps, 1_000_000)
    possible = min(until_ps / 6400, nr_cpus * outstanding * until_ps / 80_000)
    assert 0.98 <= lines / possible <= 1.0 + 2 * nr_cpus * outstanding / possible  # those under way at the end


def test_a_cpu_that_waits_lets_the_others_have_their_share():
    """Each gets the same part of a server that all want."""
    hardware = Hardware(4, line_ps=6400, outstanding=12)
    run_in_lockstep(hardware, 20_000_000, 1_000_000)
    lines = [passage_t.at(cpu.passages).lines for cpu in hardware.cpus]
    assert max(lines) <= 1.25 * min(lines)


# -- streams of lines in a page ------------------------------------------------------------------------------------

PAGES = 3
runs = st.lists(
    st.tuples(
        st.integers(0, PAGES * 512 - 1),  # the word where it begins
        st.sampled_from([1, 1, 1, 8, 8, 3, -1, -8]),  # words from one to the next
        st.integers(1, 700 if JIT else 60),
    ),
    min_size=1,
    max_size=6,
)


def words_of(runs):
    """Numbers of words, run by run, without those before the first word and behind the last."""
    numbers = np.concatenate([first + step * np.arange(n) for first, step, n in runs])
    return numbers[(numbers >= 0) & (numbers < PAGES * 512)].astype(np.uint64)


@settings(max_examples=40 if JIT else 5, deadline=None)
@given(runs, st.sampled_from(["200GB/s", "1GB/s"]), st.booleans())
def test_a_stream_of_a_vector_costs_what_its_accesses_cost_one_by_one(runs, rate, write):
    """Clock, queueing, lines moved and lines at hand are the same to the picosecond, whether a vector has all accesses or one."""
    words, seen = words_of(runs), []
    for whole in (True, False):
        with Loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB", bandwidth_per_node=rate) as machine:
            task = machine.task()
            mapping = task.mmap(PAGES * PAGE_SIZE)
            task.touch(mapping.addr, PAGES * PAGE_SIZE, write=True)
            addresses = np.uint64(mapping.addr) + np.uint64(8) * words
            for part in [addresses] if whole else addresses.reshape(-1, 1):
                if write:
                    task.store(part, part)
                else:
                    task.load(part)
            cpu = machine.cpu()
            passage = passage_t.at(cpu.passages)
            kept = [int(cpu.kept[(int(cpu.kept_next[0]) + i) % KEPT_LINES]) for i in range(KEPT_LINES)]
            base = min(key for key in kept if key)
            seen.append(
                (now_ps(cpu), passage.lines, passage.queued_ps, passage.late, [max(key - base, -1) for key in kept])
            )
            if write:
                assert (task.load(addresses) == addresses).all()
    assert seen[0] == seen[1]
