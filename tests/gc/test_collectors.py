"""What every collector must do: keep what is reachable, byte for byte, and free the rest."""

import pytest

from numaemu.compiler.build import JIT
from numaemu.gc.collectors import COLLECTORS, collector_module
from numaemu.gc.exercise import NO_MEMORY, NOTHING, churn, make_tree
from numaemu.gc.verify import GcError

STEPS = 20_000 if JIT else 300

every_collector = pytest.mark.parametrize("collector", COLLECTORS)


def heap_of(task, collector, size, **options):
    if collector == "generational":
        options.setdefault("young", "16KiB")
    heap = task.gc_heap(collector, size, tlab="512B", **options)
    return heap, heap.attach(task)


@every_collector
@pytest.mark.interpreted
def test_a_random_walk_agrees_with_its_model(two_nodes, collector):
    task = two_nodes.task()
    heap, mutator = heap_of(task, collector, "256KiB" if JIT else "64KiB")
    assert mutator.run(churn, STEPS, 24, 17) == NOTHING
    mutator.verify()
    if JIT:
        assert heap.collections(task)
    mutator.collect()
    assert mutator.verify() == {"objects": 0, "bytes": 0, "garbage": 0}
    assert heap.used(task) == 0


@every_collector
@pytest.mark.interpreted
def test_handles_follow_what_they_hold(two_nodes, collector):
    task = two_nodes.task()
    _, mutator = heap_of(task, collector, "64KiB")
    chain = [mutator.new(refs=1, values=2) for _ in range(5)]
    for number, node in enumerate(chain):
        node.set_value(2, number * 7)
        if number:
            node.set_ref(0, chain[number - 1])
    for node in chain[:-1]:
        node.drop()
    for _ in range(30):
        mutator.new(values=300).drop()
    mutator.collect()
    assert mutator.verify() == {"objects": 5, "bytes": 5 * 40, "garbage": 0}
    node, values = chain[-1], []
    while node is not None:
        values.append(node.value(2))
        node = node.ref(0)
    assert values == [28, 21, 14, 7, 0]
    chain[-1].set_ref(0, None)
    mutator.new(refs=0).drop()


@every_collector
@pytest.mark.interpreted
def test_a_full_heap_says_so_and_goes_on(two_nodes, collector):
    task = two_nodes.task()
    heap, mutator = heap_of(task, collector, "64KiB")
    held = []
    with pytest.raises(
        MemoryError, match=f"gc: no room for an object of 0 references and 250 values \\({collector}\\)"
    ):
        while True:
            held.append(mutator.new(values=250))
    assert len(held) >= (14 if collector == "copying" else 24)
    for number, handle in enumerate(held):
        handle.set_value(0, number)
    held.pop(1).drop()
    again = mutator.new(values=250)
    assert [handle.value(0) for handle in held] == [0, *range(2, len(held) + 1)]
    again.drop()
    mutator.verify()


@every_collector
@pytest.mark.interpreted
def test_a_cycle_goes(two_nodes, collector):
    """Counts miss it; the backup tracer does not."""
    task = two_nodes.task()
    heap, mutator = heap_of(task, collector, "64KiB")
    one, other = mutator.new(refs=1, values=1), mutator.new(refs=1, values=1)
    one.set_ref(0, other)
    other.set_ref(0, one)
    one.drop()
    other.drop()
    assert mutator.verify() == {"objects": 0, "bytes": 0, "garbage": 64}
    mutator.collect()
    assert mutator.verify()["garbage"] == 0
    assert heap.collections(task)[-1].before >= 64 and heap.collections(task)[-1].after == 0


@every_collector
@pytest.mark.interpreted
def test_a_reference_to_no_object_is_found(two_nodes, collector):
    task = two_nodes.task()
    _, mutator = heap_of(task, collector, "64KiB")
    node = mutator.new(refs=1, values=4)
    task.store([node.address + 16], node.address + 24)
    with pytest.raises(GcError, match="gc: a reference leads to no object"):
        mutator.verify()
    task.store([node.address], (1 << 40) - 1)
    with pytest.raises(GcError, match="gc: a space cannot be walked"):
        mutator.verify()


def work(task, heap, seed):
    mutator = heap.attach(task)
    return mutator.run(churn, 15_000, 16, seed)


def threads(task, collector, cpus):
    heap, mutator = heap_of(task, collector, "1MiB")
    others = [task.clone(work, heap, 31 + cpu, cpu=cpu) for cpu in cpus]
    found = {mutator.run(churn, 15_000, 16, 3), *(other.result() for other in others)}
    mutator.collect()
    return found, mutator.verify(), len(heap.collections(task))


# In the debug build, which compares what is reachable before and after each collection: those whose threads do more at a store than
# to store. The others' threads run what these run, too: buffers of their own, safe points, the stop of the world.
BARRIERS = [
    pytest.param(name, marks=pytest.mark.concurrent)
    for name in COLLECTORS
    if hasattr(collector_module(name), "write_ref")
]
PLAIN = [name for name in COLLECTORS if not hasattr(collector_module(name), "write_ref")]


@pytest.mark.parametrize("collector", [*BARRIERS, *PLAIN])
def test_threads_share_a_heap(machine, collector):
    found, left, collections = machine.run(threads, collector, [1, 2, 3])
    assert found == {NOTHING}
    assert left == {"objects": 0, "bytes": 0, "garbage": 0}
    assert collections > 1


@every_collector
@pytest.mark.interpreted
def test_a_tree_survives_while_its_roots_hold_it(two_nodes, collector):
    task = two_nodes.task()
    _, mutator = heap_of(task, collector, "64KiB")
    mutator.push_frame(1)
    assert mutator.run(make_tree, 5)
    mutator.new(values=900).drop()
    mutator.collect()
    assert mutator.verify()["objects"] == 63
    mutator.pop_frame(1)
    mutator.collect()
    assert mutator.verify() == {"objects": 0, "bytes": 0, "garbage": 0}


def test_a_heap_says_what_it_does_not_know(two_nodes):
    task = two_nodes.task()
    with pytest.raises(ValueError, match="gc_heap: collector is 'zgc', must be one of refcount, mark-sweep"):
        task.gc_heap("zgc")


def test_a_thread_without_memory_is_told(two_nodes):
    _, mutator = heap_of(two_nodes.task(), "mark-sweep", "64KiB")
    assert mutator.run(churn, 10, 1 << 20, 1) == NO_MEMORY


@every_collector
@pytest.mark.interpreted
@pytest.mark.parametrize("local", [False, True])
def test_buffers_may_lie_on_the_node_of_their_thread(two_nodes, collector, local):
    """What a thread of node 0 has used before lies there for ever, unless buffers are local."""
    first = two_nodes.task(cpu=0)
    heap = first.gc_heap(collector, "128KiB", tlab="16KiB", local=local)
    for _ in range(2):  # both halves, where there are two
        mutator = heap.attach(first)
        for _ in range(25):
            mutator.new(values=500).drop()
        mutator.collect()
    thread = first.clone(cpu=1)
    mutator = heap.attach(thread)
    held = [mutator.new(values=500) for _ in range(8)]
    pages = {handle.address + 2048 & -4096 for handle in held}  # in the middle of an object of a page's size
    nodes = thread.move_pages(sorted(pages))
    inside = [node for node in nodes if node >= 0]
    assert (sum(inside) > len(inside) // 2) == local and len(inside) == len(pages)
    assert mutator.verify()["objects"] == 8


def test_a_heap_is_on_one_node_or_local(two_nodes):
    with pytest.raises(ValueError, match="gc_heap: node is 1 and local is true"):
        two_nodes.task().gc_heap("copying", "64KiB", node=1, local=True)
