"""The thread's cache takes no lock and writes no shared line; arenas lie where they shall."""

import contextlib

import numpy as np
import pytest

from numaemu import PROT_READ, PROT_WRITE, HeapError, SegmentationFault
from numaemu.malloc.control import CONTROL_BYTES, NODE
from numaemu.malloc.ptmalloc import ARENA, ARENAS, CACHE_BYTES, HITS, MISSES, ROOM, THREADS
from numaemu.malloc.replay import play
from numaemu.malloc.trace import FREE, MALLOC
from numaemu.spec.param import PAGE_SIZE


def caches(task, heap):
    """(address of each thread's cache, its arena, hits, misses)"""
    table = task.load(heap.address + THREADS + 8 * np.arange(512), np.int64).reshape(-1, 2)
    found = [int(cache) for number, cache in table if number]
    return [(cache, *task.load([cache + at for at in (ARENA, HITS, MISSES)], np.int64).tolist()) for cache in found]


@contextlib.contextmanager
def no_store_to_shared_words(task, heap):
    """All words that threads share, with the locks, are in pages that nobody may write: the control words, and those of each arena."""
    count = int(task.load([heap.address + ARENAS], np.int64)[0])
    arenas = task.load(heap.address + ARENAS + 8 * np.arange(1, count + 1), np.int64).tolist()
    ranges = [(heap.address, CONTROL_BYTES), *((arena, PAGE_SIZE) for arena in arenas)]
    for at, nbytes in ranges:
        task.mprotect(at, nbytes, PROT_READ)
    yield
    for at, nbytes in ranges:
        task.mprotect(at, nbytes, PROT_READ | PROT_WRITE)


def pairs(task, heap, n, nbytes=100):
    """free + malloc of one size, n times, then free; how many requests that were."""
    requests = np.array([(MALLOC, 0, nbytes), *[(FREE, 0, 0), (MALLOC, 0, nbytes)] * n, (FREE, 0, 0)], np.int64)
    return task.call(play, task.malloc_heap(heap), requests, 1)


def test_eight_threads_free_and_malloc_without_a_lock_and_without_a_shared_line(machine):
    tasks = [machine.task(cpu=0)]
    tasks += [tasks[0].clone(cpu=cpu) for cpu in (1, 2, 3, 0, 1, 2, 3)]
    heap = tasks[0].malloc_heap("ptmalloc")
    for task in tasks:
        pairs(task, heap, 1)  # each has a cache now
    hits = [cache[2] for cache in caches(tasks[0], heap)]
    with no_store_to_shared_words(tasks[0], heap):
        assert [pairs(task, heap, 200) for task in tasks] == [402] * 8
        for task in tasks:
            with pytest.raises(SegmentationFault, match="store to"):
                pairs(task, heap, 1, nbytes=2000)  # which no cache holds: to take the lock is a store
    after = caches(tasks[0], heap)
    assert [cache[2] - n for cache, n in zip(after, hits, strict=True)] == [201] * 8
    lines = [range(cache[0] // 64, (cache[0] + CACHE_BYTES - 1) // 64 + 1) for cache in after]
    assert sum(map(len, lines)) == len(set().union(*lines))
    assert len({cache[1] for cache in after}) == 8
    tasks[0].malloc_heap(heap).check()
    for task in reversed(tasks):
        task.exit()


@pytest.mark.interpreted
def test_a_cache_holds_so_many_blocks_of_a_size(two_nodes):
    task = two_nodes.task()
    heap = task.malloc_heap("ptmalloc")
    blocks = [heap.malloc(40) for _ in range(ROOM + 2)]
    end = heap.malloc(40)
    for block in blocks:
        heap.free(block)
    states = [state for _, _, state, _ in heap.blocks()]
    assert states.count("in a thread's cache") == ROOM and states.count("free") == 1
    with pytest.raises(HeapError, match="it is free already .*in a thread's cache"):
        heap.free(blocks[0])
    assert heap.malloc(36) == blocks[ROOM - 1]  # the one that came last
    assert heap.stats().payload == 40 + 36
    heap.flush()
    assert [state for _, _, state, _ in heap.blocks()].count("in a thread's cache") == 0
    heap.free(end)
    heap.check()


@pytest.mark.interpreted
def test_an_arena_for_each_node_lies_there(two_nodes):
    first = two_nodes.task(cpu=0)
    heap = first.malloc_heap("ptmalloc", arenas="node")
    second = first.clone(cpu=1)
    of = {task.node: task.malloc_heap(heap).malloc(3000) for task in (first, second, first.clone(cpu=1))}
    assert len(caches(first, heap)) == 3
    arenas = {cache[1] for cache in caches(first, heap)}
    assert len(arenas) == 2
    assert sorted(first.load([arena + NODE for arena in arenas], np.int64).tolist()) == [0, 1]
    for node, block in of.items():
        first.store([block], 1)  # from node 0, whatever the block's
        assert first.node_of(block) == node
    second.malloc_heap(heap).free(of[0])  # a thread may free another's block
    first.malloc_heap(heap).check()
