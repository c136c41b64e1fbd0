"""Tiering policies in one file: what they are asked, and what follows from the answer."""

import numpy as np
import pytest

from numaemu.errors import ConfigError
from numaemu.kernel.mm.numa.prot_numa import change_prot_numa
from numaemu.spec.param import PAGE_SIZE
from numaemu.uapi import MPOL_BIND, MPOL_MF_MOVE

pytestmark = pytest.mark.interpreted
SETTINGS = "/sys/kernel/debug/sched/numa_balancing"
SHAPE = {
    "node": [{"memory": "32MiB", "cpus": 1}, {"memory": "32MiB", "cpus": 0}],
    "latency": {"matrix": [[5000, 20000], [20000, 5000]]},
    "bandwidth": {"matrix": [[20000, 5000], [5000, 20000]]},
}
PAGES = 16
EVERY = """
from numaemu.compiler.decorators import callback
from numaemu.kernel.mm.numa.tiering import *
import numpy as np
SAMPLES, INTERVAL_MS = ACCESSED, 1

@callback("u64(u64, u64, u64)")
def decide(sample, _b, _c):
    page = page_sample_t.at(sample)
    page.heat += page.used
    return np.uint64({answer})
"""


@pytest.fixture
def tiered(loopback):
    """A node of CPUs and a slow one: tiered(policy)."""

    def make(policy):
        loop = loopback(SHAPE, kernel={"tiering": policy})
        for name, value in {"scan_delay_ms": 1, "scan_period_min_ms": 1, "scan_period_max_ms": 4}.items():
            loop.write(f"{SETTINGS}/{name}", str(value))
        loop.write("/proc/sys/kernel/numa_balancing", "2")
        return loop

    return make


def slow_pages(loop, pages=PAGES):
    """A task whose pages are on the slow node, though nothing keeps them there."""
    task = loop.task()
    area = task.mmap(pages * PAGE_SIZE)
    area.touch(write=True)
    loop.drain()
    task.move_pages(area.pages(), 1, MPOL_MF_MOVE)
    loop.audit()  # none of them is in a CPU's batch
    return task, area


def run_for(task, area, ms):
    until = task.clock_ns + ms * 1_000_000
    while task.clock_ns < until:
        area.touch(write=True)


def on_node(task, area, node):
    return int((task.move_pages(area.pages()) == node).sum())


def test_frequency_promotes_what_is_used_in_three_intervals(tiered):
    loop = tiered("frequency")
    loop.machine.tiering_interval_ns = 1_000_000
    task, area = slow_pages(loop)
    cold = task.mmap(PAGES * PAGE_SIZE)
    cold.touch(write=True)
    loop.drain()
    task.move_pages(cold.pages(), 1, MPOL_MF_MOVE)
    run_for(task, area, 8)
    assert on_node(task, area, 0) == PAGES and on_node(task, cold, 1) == PAGES
    assert loop.vmstat()["pgpromote_success"] == PAGES
    assert loop.vmstat()["numa_pte_updates"] == 0  # it needs no hinting faults


def test_tpp_promotes_at_the_second_fault(tiered):
    loop = tiered("tpp")
    task, area = slow_pages(loop)
    (vma,) = [vma for vma in loop.vmas(task) if vma.start <= area.addr < vma.end]
    for there in (0, PAGES):
        change_prot_numa(loop.cpu(0), vma, np.uint64(area.addr), np.uint64(area.addr + area.nbytes))
        area.touch(write=True)
        loop.audit()  # nothing is on its way to the active list
        assert on_node(task, area, 0) == there == loop.vmstat()["pgpromote_success"]


def test_a_policy_in_a_file_of_ones_own(tiered, tmp_path):
    """It demotes what it has seen, and keeps a word with each page."""
    path = tmp_path / "mine.py"
    path.write_text(EVERY.format(answer="DEMOTE if page.fast != 0 and page.heat == 2 else STAY"))
    loop = tiered(str(path))
    task = loop.task()
    area = task.mmap(PAGES * PAGE_SIZE)
    area.touch(write=True)
    loop.drain()
    run_for(task, area, 6)
    assert on_node(task, area, 1) == PAGES == loop.vmstat()["pgdemote_direct"]
    loop.audit()


def test_huge_pages_move_whole(tiered, tmp_path):
    path = tmp_path / "up.py"
    path.write_text(EVERY.format(answer="PROMOTE"))
    loop = tiered(str(path))
    loop.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    task = loop.task()
    area = task.mmap(4 << 20)
    task.mbind(area.addr, 4 << 20, MPOL_BIND, [1])
    area.touch(write=True)
    task.mbind(area.addr, 4 << 20, 0)
    loop.drain()
    split = loop.vmstat()["thp_split_pmd"]
    run_for(task, area, 6)
    assert on_node(task, area, 0) == area.nbytes // PAGE_SIZE and loop.vmstat()["thp_split_pmd"] == split
    loop.audit()


def test_a_policy_does_nothing_unless_tiering_is_on(tiered):
    loop = tiered("frequency")
    loop.write("/proc/sys/kernel/numa_balancing", "0")
    loop.machine.tiering_interval_ns = 1_000_000
    task, area = slow_pages(loop)
    run_for(task, area, 8)
    assert on_node(task, area, 1) == PAGES


def test_what_is_refused(loopback, tmp_path):
    with pytest.raises(ConfigError, match="tiering is 'nimble', must be 'frequency' or 'linux' or 'tpp'"):
        loopback(SHAPE, kernel={"tiering": "nimble"})
    with pytest.raises(ConfigError, match="which is no file"):
        loopback(SHAPE, kernel={"tiering": str(tmp_path / "none.py")})
    path = tmp_path / "empty.py"
    path.write_text("SAMPLES = 2\nINTERVAL_MS = 5\n")
    with pytest.raises(ConfigError, match="decide must be a function"):
        loopback(SHAPE, kernel={"tiering": str(path)})
    path.write_text("SAMPLES = 7\n")
    with pytest.raises(ConfigError, match="must be FAULTS or ACCESSED"):
        loopback(SHAPE, kernel={"tiering": str(path)})
