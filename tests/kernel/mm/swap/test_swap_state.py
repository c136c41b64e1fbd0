"""Swap readahead: by addresses, against a naive twin; by slots where the disk rotates; what settings say of it."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from numaemu import MADV_PAGEOUT
from numaemu.compiler.build import JIT
from numaemu.kernel.mm.swap import swapfile, swapon

PAGE, PMD_PAGES = 4096, 512
COUNTERS = ("pgmajfault", "swap_ra", "swap_ra_hit", "swpin_zero")


class NaiveVma:
    """What swap_vma_readahead reads of pages that are all swapped out, as Linux 6.12 has it."""

    def __init__(self, first, pages, page_cluster):
        self.first, self.end, self.most = first, first + pages, 1 << min(page_cluster, 5)
        self.out, self.cached = set(range(first, self.end)), set()  # swap entries; pages in the swap cache, marked
        self.last, self.window, self.hits = 0, 0, 4
        self.counts = dict.fromkeys(COUNTERS, 0)

    def next_window(self, page):
        """__swapin_nr_pages"""
        pages = self.hits + 2
        if pages == 2:
            pages = 2 if page in (self.last + 1, self.last - 1) else 1
        else:
            pages = next(n for n in (4, 8, 16, 32, 64, 128) if n >= pages)
        return max(min(pages, self.most), self.window // 2)

    def fault(self, page):
        if page not in self.out:
            return
        self.out.remove(page)
        if page in self.cached:
            self.cached.remove(page)
            self.counts["swap_ra_hit"] += 1
            self.last, self.hits = page, min(self.hits + 1, 63)
            return
        self.counts["pgmajfault"] += 1
        self.counts["swpin_zero"] += 1
        if self.most == 1:
            return
        window = self.next_window(page)
        if page == self.last + 1:
            left = page
        elif page == self.last - 1:
            left = page - window + 1
        else:
            left = page - (window - 1) // 2
        self.last, self.window, self.hits = page, window, 0
        if window == 1:
            return
        table = page // PMD_PAGES * PMD_PAGES
        for near in range(max(left, self.first, table), min(left + window, self.end, table + PMD_PAGES)):
            if near in self.out and near not in self.cached:
                self.cached.add(near)
                self.counts["swap_ra"] += 1
                self.counts["swpin_zero"] += 1


def swapped_out(loop, pages, address):
    """A mapping of zeros, which leave memory at once and need no disk."""
    if not swapon.areas(loop.machine):
        swapon.swapon(loop.machine, "area", 8 << 20)
    task = loop.task()
    mapping = task.mmap(pages * PAGE, addr=address)
    task.store(mapping.pages(), np.uint64(0))
    task.madvise(mapping.addr, mapping.nbytes, MADV_PAGEOUT)
    assert loop.vmstat()["nr_anon_pages"] < pages
    return task, mapping


def counted(loop, task, places):
    before = loop.vmstat()
    for place in places:
        assert task.load([place])[0] == 0
    return {name: loop.vmstat()[name] - before[name] for name in COUNTERS}


@pytest.mark.interpreted
@settings(max_examples=25 if JIT else 3)
@given(
    pages=st.integers(1, 60),
    skew=st.integers(0, 59),
    page_cluster=st.sampled_from([0, 1, 2, 3, 3, 5, 7]),
    order=st.lists(st.integers(0, 59), min_size=1, max_size=40),
    runs=st.booleans(),
)
def test_readahead_by_addresses_is_as_a_naive_one(loopback, pages, skew, page_cluster, order, runs):
    """Any order of faults, around the border between two tables, with any window."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    address = (0x7000_0000_0000 // PAGE + PMD_PAGES - min(skew, pages)) * PAGE
    task, mapping = swapped_out(loop, pages, address)
    swapfile.swap_of(loop.machine).page_cluster = page_cluster
    wanted = [page % pages for page in order]
    if runs:  # so that hits come up
        wanted = [(page + step) % pages for page in wanted for step in range(5)]
    naive = NaiveVma(address // PAGE, pages, page_cluster)
    for page in wanted:
        naive.fault(address // PAGE + page)
    assert counted(loop, task, [address + page * PAGE for page in wanted]) == naive.counts
    loop.audit()


@pytest.mark.interpreted
@pytest.mark.parametrize("rotational, setting, majors", [(False, "true", 3), (False, "false", 16), (True, "true", 16)])
def test_what_it_goes_by(loopback, rotational, setting, majors):
    """Pages that were swapped out in an order far from that of their addresses: neighbours in memory are none on the disk."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB", disk={"rotational": rotational})
    loop.write("/sys/kernel/mm/swap/vma_ra_enabled", setting)
    assert loop.read("/sys/kernel/mm/swap/vma_ra_enabled") == setting + "\n"
    swapon.swapon(loop.machine, "area", 8 << 20)
    task = loop.task()
    mapping = task.mmap(256 * PAGE, addr=0x7000_0000_0000)
    task.store(mapping.pages(), np.uint64(0))
    for n in range(256):
        task.madvise(mapping.addr + n % 16 * 16 * PAGE + n // 16 * PAGE, PAGE, MADV_PAGEOUT)
    swapfile.swap_of(loop.machine).page_cluster = 4
    assert counted(loop, task, mapping.pages()[:16])["pgmajfault"] == majors
    loop.audit()


@pytest.mark.interpreted
def test_a_fork_and_a_split_inherit_what_is_known(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    task, mapping = swapped_out(loop, 32, 0x7000_0000_0000)
    counted(loop, task, mapping.pages()[:8])
    known = [vma for vma in loop.vmas(task) if vma.start == mapping.addr][0].swap_readahead_info
    child = task.fork()
    task.munmap(mapping.addr + 16 * PAGE, PAGE)
    for one, start in ((child, mapping.addr), (task, mapping.addr), (task, mapping.addr + 17 * PAGE)):
        assert [vma for vma in loop.vmas(one) if vma.start == start][0].swap_readahead_info == known != 0


@pytest.mark.interpreted
def test_areas_that_rotate_are_counted(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB", disk={"rotational": True})
    swap = swapfile.swap_of(loop.machine)
    swapon.swapon(loop.machine, "a", 1 << 20)
    swapon.swapon(loop.machine, "b", 1 << 20)
    swapon.swapon(loop.machine, "c", 1 << 20, kind="zram")
    assert swap.nr_rotate_swap == 2
    for name in ("a", "c"):
        swapon.swapoff_end(loop.machine, swapon.swapoff_begin(loop.machine, name))
    assert swap.nr_rotate_swap == 1
