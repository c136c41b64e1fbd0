"""The Accessed bits of a range, as a sampler reads them."""

import errno

import numpy as np
import pytest

from numaemu.spec.param import PAGE_SIZE

pytestmark = pytest.mark.interpreted


def test_what_was_used_since_the_bits_were_cleared(loopback):
    """A page that was never used, or not since, is not young, though a TLB held it."""
    task = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB").task()
    area = task.mmap(8 * PAGE_SIZE)
    task.store(area.pages()[:4], np.uint64(1))
    assert task.accessed(area.addr, 8 * PAGE_SIZE, clear=False).tolist() == [True] * 4 + [False] * 4
    assert task.accessed(area.addr, 8 * PAGE_SIZE).sum() == 4
    assert task.accessed(area.addr, 8 * PAGE_SIZE).sum() == 0
    task.load(area.pages()[[1, 3]])
    assert np.flatnonzero(task.accessed(area.addr, 8 * PAGE_SIZE)).tolist() == [1, 3]


def test_a_range_with_holes_and_huge_pages(loopback):
    """Where nothing is mapped nothing was used; a huge page is used as a whole."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="32MiB")
    loop.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    task = loop.task()
    area = task.mmap(8 << 20)
    huge = -(-area.addr // (2 << 20)) * (2 << 20)
    task.store([huge + (2 << 20)], np.uint64(1))
    used = task.accessed(area.addr, 8 << 20)
    first = (huge + (2 << 20) - area.addr) // PAGE_SIZE
    assert used.dtype == bool and np.flatnonzero(used).tolist() == list(range(first, first + 512))
    assert not task.accessed(area.addr, 8 << 20).any()
    before = task.clock_ns
    task.accessed(huge, 16 << 20)
    assert task.clock_ns == before


def test_another_task_and_who_may_ask(loopback):
    """By pid, as move_pages: the same user, or root."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    task, other = loop.task(), loop.task()
    area = task.mmap(2 * PAGE_SIZE)
    task.store(area.pages(), np.uint64(1))
    assert other.accessed(area.addr, 2 * PAGE_SIZE, pid=task.pid).all()
    with pytest.raises(ProcessLookupError):
        other.accessed(area.addr, PAGE_SIZE, pid=9999)
    other.setuid(1000)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EPERM):
        other.accessed(area.addr, PAGE_SIZE, pid=task.pid)
