"""What every kind of heap must do: no block overlaps another, contents stay, misuse is told."""

import random

import numpy as np
import pytest
from traces import mixed

from numaemu.api.access import load_u64, store_u64
from numaemu.compiler.build import JIT
from numaemu.compiler.library import library
from numaemu.malloc import HeapError, calloc, free, usable_size
from numaemu.malloc.kinds import KINDS, kind_module
from numaemu.malloc.replay import play_random, play_with_contents, replay
from numaemu.malloc.trace import FREE

REQUESTS = 3000 if JIT else 60

OWN_LOCKS = "ptmalloc"

every_kind = pytest.mark.parametrize("kind", KINDS)


def live_bytes(trace):
    """What a trace leaves in use."""
    live = {}
    for what, block, nbytes in trace.requests.tolist():
        live[block] = nbytes if what != FREE else 0
    return sum(live.values())


@every_kind
@pytest.mark.interpreted
def test_no_byte_is_lost(two_nodes, kind):
    task = two_nodes.task()
    heap = task.malloc_heap(kind, accounts=kind == "segregated")
    trace = mixed(1, REQUESTS)
    assert task.call(play_with_contents, heap, trace.requests, trace.blocks) == REQUESTS
    stats = heap.stats()
    assert heap.check() >= stats.blocks > 0
    assert stats.payload == live_bytes(trace)
    assert stats.peak_payload == (trace.peak_payload if heap.accounts else 0)
    assert stats.payload <= stats.used and stats.used + stats.free <= stats.heap <= stats.peak_heap


@every_kind
@pytest.mark.interpreted
def test_the_calls_do_what_c_says(two_nodes, kind):
    task = two_nodes.task()
    heap = task.malloc_heap(kind)
    align = kind_module(kind).ALIGNMENT
    first = heap.malloc(100)
    assert first % align == 0 and heap.usable_size(first) >= 100
    task.write(first, bytes(range(100)))
    grown = heap.realloc(first, 1000)
    assert task.read(grown, 100) == bytes(range(100))
    shrunk = heap.realloc(grown, 10)
    assert task.read(shrunk, 10) == bytes(range(10))
    heap.free(shrunk)
    zeroed = heap.calloc(25, 40)
    assert task.read(zeroed, 1000) == bytes(1000)
    for alignment in (8, 64, 4096):
        block = heap.aligned_alloc(alignment, 100)
        assert block % alignment == 0
        heap.check()
        heap.free(block)
    assert heap.realloc(zeroed, 0) is None
    assert heap.realloc(None, 8) % 8 == 0
    assert heap.malloc(0) is None and heap.malloc(1 << 50) is None
    heap.free(None)
    heap.check()


@every_kind
@pytest.mark.interpreted
def test_misuse_names_the_block(two_nodes, kind):
    task = two_nodes.task()
    heap = task.malloc_heap(kind)
    blocks = [heap.malloc(200) for _ in range(4)]
    heap.free(blocks[1])
    for call in (heap.free, heap.usable_size, lambda block: heap.realloc(block, 5)):
        with pytest.raises(HeapError, match=f"block {blocks[1]:#x}: .*free"):
            call(blocks[1])
        for wild in (0x1000, blocks[2] + 16, blocks[2] + 4):
            with pytest.raises(HeapError, match=f"block {wild:#x}: "):
                call(wild)
    assert heap.check() >= 3


@every_kind
@pytest.mark.interpreted
def test_an_overrun_is_found(two_nodes, kind):
    task = two_nodes.task()
    heap = task.malloc_heap(kind)
    blocks = [heap.malloc(200) for _ in range(4)]
    if not getattr(kind_module(kind), "TAGS_BETWEEN", True):
        pytest.skip("nothing of the heap's own lies between its blocks")
    task.write(blocks[1], b"\xff" * (heap.usable_size(blocks[1]) + 8))
    with pytest.raises(HeapError, match="heap: "):
        heap.check()
    with pytest.raises(HeapError, match="heap: block"):
        for block in blocks[1:3]:
            heap.free(block)


@every_kind
@pytest.mark.interpreted
def test_big_blocks_have_mappings_of_their_own(two_nodes, kind):
    task = two_nodes.task()
    heap = task.malloc_heap(kind, mmap_threshold=16384)
    small, big = heap.malloc(200), heap.malloc(20000)
    before = heap.held()[0]
    assert abs(big - small) > 1 << 20 and heap.usable_size(big) >= 20000
    task.write(big, b"x" * 20000)
    again = heap.realloc(big, 40000)
    assert task.read(again, 20000) == b"x" * 20000
    small_again = heap.realloc(again, 100)
    assert task.read(small_again, 100) == b"x" * 100
    assert heap.held()[0] < before
    with pytest.raises(HeapError):
        heap.free(again)
    heap.check()


@every_kind
@pytest.mark.interpreted
def test_a_heap_by_mmap_ends_at_its_limit_and_lies_on_its_node(two_nodes, kind):
    task = two_nodes.task()
    heap = task.malloc_heap(kind, source="mmap", limit="256KiB", node=1)
    blocks = []
    while block := heap.malloc(3000):
        blocks.append(block)
    assert 40 <= len(blocks) <= 90
    task.write(blocks[0], b"1")
    assert task.node_of(blocks[0]) == 1
    for block in blocks:
        heap.free(block)
    heap.check()
    assert heap.malloc(3000) is not None


def test_a_heap_says_what_it_does_not_know(two_nodes):
    task = two_nodes.task()
    with pytest.raises(ValueError, match="malloc_heap: kind is 'hoard', must be one of implicit, "):
        task.malloc_heap("hoard")
    with pytest.raises(ValueError, match="malloc_heap: fit is 'worst', must be one of first, next, best"):
        task.malloc_heap("implicit", fit="worst")
    with pytest.raises(TypeError, match="a heap of kind implicit has no option colour"):
        task.malloc_heap("implicit", colour=1)
    with pytest.raises(ValueError, match="alignment is 12, must be a power of two"):
        task.malloc_heap("implicit").aligned_alloc(12, 100)


@library
def chain(cpu, heap, n):
    """A list of n nodes, then its sum and its end: `malloc` in a user kernel."""
    first, total = 0, 0
    for i in range(n):
        node = calloc(cpu, heap, 2, 8)
        store_u64(cpu, node, i)
        store_u64(cpu, node + 8, first)
        first = node
    while first != 0:
        behind = np.int64(load_u64(cpu, first + 8))
        total += np.int64(load_u64(cpu, first)) + usable_size(cpu, heap, first) // 1000
        free(cpu, heap, first)
        first = behind
    return total


@pytest.mark.interpreted
def test_user_kernels_call_malloc(two_nodes):
    task = two_nodes.task()
    heap = task.malloc_heap("implicit")
    assert task.call(chain, heap, 40) == 780
    assert heap.stats().payload == 0


def thread(task, heap, seed):
    trace = mixed(seed, 1500)
    return task.call(play_with_contents, task.malloc_heap(heap), trace.requests, trace.blocks)


def threads(task, kind, cpus):
    """Several threads of a process on one heap: (requests that each has played, bytes asked for that are left)."""
    heap = task.malloc_heap(kind)
    others = [task.clone(thread, heap, 77 + cpu, cpu=cpu) for cpu in cpus]
    played = {thread(task, heap, 5), *(other.result() for other in others)}
    heap.check()
    return played, heap.stats().payload


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.concurrent) if kind == OWN_LOCKS else kind for kind in KINDS]
)
def test_threads_share_a_heap(machine, kind):
    """In the debug build, which has no check in a heap's own code, one kind: that which has more locks than one, and lists without."""
    left = sum(live_bytes(mixed(seed, 1500)) for seed in (5, 78, 79, 80))
    assert machine.run(threads, kind, [1, 2, 3]) == ({1500}, left)


@pytest.mark.interpreted
def test_random_requests_find_what_they_wrote(two_nodes):
    task = two_nodes.task()
    heap = task.malloc_heap("segregated", source="mmap", limit="4MiB")
    count = 20_000 if JIT else 100
    assert task.call(play_random, heap, count, 30, 1) == count
    heap.check()
    assert heap.stats().payload == 0


def test_a_replay_says_what_it_took(machine):
    figures = replay(machine, mixed(3, 300), "implicit")
    assert figures.valid and figures.why == "" and figures.operations == 300
    assert 0.3 < figures.utilisation < 1
    assert figures.ns_per_operation > figures.accesses_per_operation > 4
    assert 0 < figures.faults_per_operation < 0.1


@every_kind
@pytest.mark.interpreted
def test_trim_gives_back_free_memory_at_the_end(two_nodes, kind):
    task = two_nodes.task()
    heap = task.malloc_heap(kind)
    first, second = heap.malloc(40), heap.malloc(30000)
    task.write(second, bytes(30000))
    assert heap.trim() < 20000
    heap.free(second)
    held = heap.held()[0]
    given = heap.trim(keep=5000)
    assert held - heap.held()[0] == given > 10000
    assert heap.stats().free >= 5000
    heap.check()
    heap.trim()
    assert heap.stats().free < 4096
    assert heap.malloc(30000) and heap.usable_size(first) >= 40
    heap.check()


def filled(nbytes, seed):
    return bytes((seed * 7 + i) % 251 for i in range(nbytes))


@every_kind
@pytest.mark.interpreted
def test_every_step_of_a_random_walk_leaves_a_heap_that_checks(two_nodes, kind):
    task, rng, live = two_nodes.task(), random.Random(11), {}
    heap = task.malloc_heap(kind, growth=512, mmap_threshold=6000)
    for step in range(400 if JIT else 70):
        nbytes, pick = rng.randrange(1, rng.choice((20, 200, 3000, 8000))), rng.random()
        if live and pick < 0.55:
            block = rng.choice(list(live))
            held = live.pop(block)
            assert task.read(block, len(held)) == held
            if pick < 0.15:
                block = heap.realloc(block, nbytes)
                kept = min(nbytes, len(held))
                assert task.read(block, kept) == held[:kept]
            else:
                heap.free(block)
                block = None
        elif pick < 0.8:
            block = heap.malloc(nbytes)
        elif pick < 0.9:
            block = heap.aligned_alloc(1 << rng.randrange(4, 9), nbytes)
        else:
            block = heap.calloc(nbytes, 1)
            assert task.read(block, nbytes) == bytes(nbytes)
        if block:
            assert block not in live
            live[block] = filled(nbytes, step)
            task.write(block, live[block])
        if pick < 0.02:
            heap.trim(keep=1000)
        heap.check()
    stats = heap.stats()
    assert stats.payload == sum(map(len, live.values()))
    assert stats.blocks == len(live)
    for block, held in live.items():
        assert task.read(block, len(held)) == held
        heap.free(block)
    heap.check()
    assert heap.stats().blocks == 0
