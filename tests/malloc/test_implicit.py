"""The textbook's list: the same addresses as a slow twin, the same utilisation as the lab's table."""

import pytest
from naive_heap import NaiveHeap
from traces import mixed

from numaemu.compiler.build import JIT
from numaemu.malloc.replay import replay
from numaemu.malloc.rules import binary, coalescing, realloc
from numaemu.malloc.trace import FREE, MALLOC

REQUESTS = 400 if JIT else 150


@pytest.mark.parametrize("fit", ["first", "next", "best"])
@pytest.mark.interpreted
def test_blocks_lie_where_a_slow_twin_puts_them(two_nodes, fit):
    task = two_nodes.task()
    heap = task.malloc_heap("implicit", fit=fit, growth=512)
    twin = NaiveHeap(task.brk() - 528, fit, 512)
    mine, other = {}, {}
    for what, block, nbytes in mixed(7, REQUESTS, resize=False).requests.tolist():
        if what == MALLOC:
            mine[block], other[block] = heap.malloc(nbytes), twin.malloc(nbytes)
            assert mine[block] == other[block]
        elif what == FREE:
            heap.free(mine.pop(block))
            twin.free(other.pop(block))
    assert [(at, size, state == "used") for at, size, state, _ in heap.blocks()[1:]] == [tuple(b) for b in twin.blocks]
    assert heap.check() == len(twin.blocks)


@pytest.mark.skipif(not JIT, reason="millions of steps")
@pytest.mark.parametrize(
    ("trace", "percent"),
    [(binary, 54.9), (coalescing, 66.5), (realloc, 26.6)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_utilisation_is_that_of_the_textbook(machine, trace, percent):
    figures = replay(machine, trace(), "implicit", valid=False)
    assert figures.utilisation * 100 == pytest.approx(percent, abs=0.05)


@pytest.mark.interpreted
def test_trim_gives_back_what_is_free_at_the_end(two_nodes):
    task = two_nodes.task()
    heap = task.malloc_heap("implicit", growth=0)
    first, second = heap.malloc(100), heap.malloc(5000)
    assert heap.trim() == 0
    heap.free(second)
    assert heap.trim(keep=1000) == 5008 - 1000
    assert heap.trim() == 1000
    assert heap.held() == (16 + 112, 16 + 112 + 5008)
    assert task.brk() == first + 112
    assert heap.check() == 1
    assert heap.malloc(100) == first + 112
