"""What a program does wrong with a heap of objects is told, and nobody waits for a thread that is gone."""

import pytest

from numaemu import SegmentationFault
from numaemu.compiler.build import DEBUG
from numaemu.compiler.library import library
from numaemu.gc import calls, get_ref, get_root, new, push_frame, set_root
from numaemu.gc import heap as gc_heap
from numaemu.gc.collectors import COLLECTORS
from numaemu.gc.space import MOST_THREADS, stop_world
from numaemu.gc.verify import GcError

pytestmark = pytest.mark.interpreted

every_collector = pytest.mark.parametrize("collector", COLLECTORS)


def heap_of(task, collector="mark-compact", size="64KiB", **options):
    heap = task.gc_heap(collector, size, tlab="512B", **options)
    return heap, heap.attach(task)


def two_threads(machine, collector):
    """(heap, Mutator of one thread, another thread, its Mutator)"""
    task = machine.task()
    heap, me = heap_of(task, collector)
    thread = task.clone(cpu=1)
    return heap, me, thread, heap.attach(thread)


def test_a_field_must_be_one_of_the_object(two_nodes):
    _, me = heap_of(two_nodes.task())
    thing = me.new(refs=2, values=1)
    for call in (thing.ref, lambda i: thing.set_ref(i, thing)):
        for i in (-1, 2, 9):
            with pytest.raises(IndexError, match=f"gc: reference {i} of an object, which has 0 to 1"):
                call(i)
    for call in (thing.value, lambda i: thing.set_value(i, 7)):
        for i in (-1, 0, 3):
            with pytest.raises(IndexError, match=f"gc: value {i} of an object, which has 2 to 2"):
                call(i)
    with pytest.raises(IndexError, match="reference 0 of an object, which has none"):
        me.new().ref(0)
    thing.set_ref(1, thing)
    for value, found in ((-5, -5), ((1 << 64) - 1, -1), (1 << 62, 1 << 62)):
        thing.set_value(2, value)
        assert thing.ref(1).value(2) == found
    with pytest.raises(OverflowError, match="gc: value 18446744073709551616 has more than 64 bits"):
        thing.set_value(2, 1 << 64)
    with pytest.raises(TypeError, match="value must be an integer, not 2.5"):
        thing.set_value(2, 2.5)
    assert me.verify()["objects"] == 2


def test_what_cannot_be_made_is_told(two_nodes):
    _, me = heap_of(two_nodes.task())
    for options, message in (
        ({"refs": -1}, "new: refs is -1, must be 0 to 8388607"),
        ({"refs": 1, "values": 1 << 23}, "new: values is 8388608, must be 0 to 8388606"),
        ({"values": (1 << 63) - 1, "refs": 1 << 62}, "new: refs is 4611686018427387904, must be 0 to"),
        ({"kind": 256}, "new: kind is 256, must be 0 to 255"),
        ({"values": "x"}, "new: values must be an integer, not 'x'"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            me.new(**options)
    with pytest.raises(ValueError, match="push_frame: n is -1, must not be negative"):
        me.push_frame(-1)
    with pytest.raises(MemoryError, match="the stack of roots has no room for"):
        me.push_frame(1 << 62)
    me.push_frame(2)
    with pytest.raises(GcError, match="gc: more roots than there are: asked for, there .0x3, 0x2."):
        me.pop_frame(3)
    me.pop_frame(2)
    assert me.new(values=1).value(0) == 0 and me.verify()["objects"] == 1


def test_options_that_cannot_be_are_told(two_nodes):
    task = two_nodes.task()
    before = two_nodes.read(f"/proc/{task.pid}/maps")
    for collector, options, message in (
        ("copying", {"young": "16KiB"}, "young is '16KiB', which only a generational heap has .copying"),
        ("copying", {"colour": 1}, "gc_heap: a heap has no option colour"),
        ("copying", {"local": "no"}, "local must be True or False, not 'no'"),
        ("copying", {"node": 9}, "node 9 is not a node of this machine"),
        ("generational", {"node": "x"}, "node must be a node's number, not 'x'"),
    ):
        with pytest.raises(Exception, match=message):
            task.gc_heap(collector, "64KiB", **options)
    assert two_nodes.read(f"/proc/{task.pid}/maps") == before


def test_a_handle_is_used_by_its_own_and_once(two_nodes):
    task = two_nodes.task()
    _, me = heap_of(task)
    thing, other = me.new(refs=1), me.new(refs=1)
    other.drop()
    for call in (other.drop, lambda: other.ref(0), lambda: other.address, lambda: thing.set_ref(0, other)):
        with pytest.raises(ValueError, match="gc: the handle was dropped"):
            call()
    assert repr(other) == "<object of a handle that is gone>" and repr(thing) == f"<object at {thing.address:#x}>"
    with pytest.raises(TypeError, match="leads to the object of a handle or to None, not to 5"):
        thing.set_ref(0, 5)
    _, foreign = heap_of(task)
    with pytest.raises(ValueError, match="gc: the object of <mark-compact heap .* is none of <mark-compact"):
        thing.set_ref(0, foreign.new())
    assert me.verify()["objects"] == 1


@every_collector
def test_handles_run_out_and_say_so(two_nodes, collector, monkeypatch):
    monkeypatch.setattr(gc_heap, "HANDLES_BYTES", 64)
    _, me = heap_of(two_nodes.task(), collector)
    thing, leaf = me.new(refs=1), me.new(values=1)
    thing.set_ref(0, leaf)
    held = [me.new() for _ in range(6)]
    for call in (me.new, lambda: thing.ref(0), lambda: me.hold(thing)):
        with pytest.raises(MemoryError, match="gc: all 8 handles are in use; drop.. gives one back"):
            call()
    held.pop().drop()
    assert thing.ref(0).address == leaf.address
    assert me.verify()["objects"] == 7


def test_threads_hand_handles_on(two_nodes):
    task = two_nodes.task()
    heap, me = heap_of(task, "copying")
    thing = me.new(values=1)
    thing.set_value(0, 42)
    other = heap.attach(task.clone(cpu=1))
    mine = other.hold(thing)
    thing.drop()
    other.collect()
    assert mine.value(0) == 42 and other.verify()["objects"] == 1
    with pytest.raises(TypeError, match="hold: handle must be one that was not dropped"):
        me.hold(thing)


@library
def raise_in_a_frame(cpu, mutator, n):
    push_frame(cpu, mutator, n)
    set_root(cpu, mutator, 1, new(cpu, mutator, 0, 0, 3))
    raise ValueError("stop")


@every_collector
def test_a_kernel_that_raises_leaves_neither_roots_nor_others_waiting(two_nodes, collector):
    task = two_nodes.task()
    heap, me = heap_of(task, collector)
    other = heap.attach(task.clone(cpu=1))
    me.push_frame(2)
    for _ in range(3):
        with pytest.raises(ValueError, match="stop"):
            me.run(raise_in_a_frame, 5)
    other.collect()
    assert other.verify()["objects"] == 0
    me.pop_frame(2)
    with pytest.raises(GcError, match="more roots than there are"):
        me.pop_frame(1)


# -- threads that are gone


@library
def begin_frame(cpu, mutator):
    """A root that holds an object, and no way back."""
    push_frame(cpu, mutator, 1)
    set_root(cpu, mutator, 0, new(cpu, mutator, 0, 1, 5))


@every_collector
def test_nobody_waits_for_a_thread_that_has_ended(two_nodes, collector):
    heap, me, thread, other = two_threads(two_nodes, collector)
    other.run(begin_frame)
    kept = other.new(values=2)
    other._call(calls.call_enter)  # it is RUNNING
    thread.exit()
    me.collect()
    assert me.verify() == {"objects": 1, "bytes": 32, "garbage": 0}
    assert me.hold(kept).value(0) == 0  # handles belong to the heap


@every_collector
def test_nobody_waits_for_a_collection_whose_thread_has_ended(two_nodes, collector):
    heap, me, thread, other = two_threads(two_nodes, collector)
    kept = me.new(refs=1)
    thread.call(stop_world, heap.address, other.address)
    thread.exit()
    kept.set_ref(0, me.new(values=1))
    me.collect()
    assert me.verify()["objects"] == 2


@every_collector
def test_a_later_thread_with_its_number_does_not_stand_for_one_that_has_ended(two_nodes, collector):
    heap, me, thread, other = two_threads(two_nodes, collector)
    other._call(calls.call_enter)  # it is RUNNING
    thread.call(stop_world, heap.address, other.address)
    thread.exit()
    later = me.task.clone(cpu=1)
    assert later._number == thread._number and later.pid != thread.pid
    kept = me.new(values=1)
    me.collect()
    assert me.verify() == {"objects": 1, "bytes": 24, "garbage": 0} and kept.value(0) == 0


@every_collector
def test_a_fault_in_a_collection_leaves_nobody_waiting(two_nodes, collector):
    task = two_nodes.task()
    heap, me = heap_of(task, collector)
    other = heap.attach(task.clone(cpu=1))
    thing = me.new(refs=1, values=1)
    task.store([thing.address + 16], 0x7000_0000_0000)
    with pytest.raises(GcError if DEBUG else SegmentationFault):
        me.collect()
    for mutator in (me, other):
        with pytest.raises(GcError):
            mutator.verify()
    assert other.new(values=2).value(1) == 0


@every_collector
def test_a_child_by_fork_collects_by_itself(two_nodes, collector):
    """The thread that runs in the parent is none of the child's."""
    task = two_nodes.task()
    heap, me = heap_of(task, collector)
    thing = me.new(values=1)
    thing.set_value(0, 3)
    me._call(calls.call_enter)
    child = task.fork(cpu=1)
    me._call(calls.call_leave)
    mutator = heap.attach(child)
    mutator.collect()
    its = mutator.hold(thing)
    its.set_value(0, 4)
    assert (its.value(0), thing.value(0)) == (4, 3)
    assert mutator.verify()["objects"] == me.verify()["objects"] == 1


def test_threads_attach_and_detach(two_nodes):
    task = two_nodes.task()
    heap, me = heap_of(task)
    others = [heap.attach(task, stack=64) for _ in range(MOST_THREADS - 1)]
    with pytest.raises(ValueError, match=f"attach: {MOST_THREADS} threads use the heap"):
        heap.attach(task)
    others[0].run(begin_frame)
    assert me.verify()["objects"] == 1
    others[0].detach()
    me.collect()
    assert me.verify() == {"objects": 0, "bytes": 0, "garbage": 0}
    with pytest.raises(TypeError, match="gc: the mutator is none of this thread: heap.attach.task. makes one"):
        others[0].new()
    thread = task.clone(cpu=1)
    assert heap.attach(thread).new(values=1).value(0) == 0
    with pytest.raises(ValueError, match="a collection detaches those that have ended"):
        heap.attach(task)
    thread.exit()
    me.collect()
    assert heap.attach(task).new(values=1).value(0) == 0


@library
def beyond(cpu, mutator, i):
    return get_ref(cpu, mutator, get_root(cpu, mutator, 0), i)


@library
def root(cpu, mutator, i):
    return get_root(cpu, mutator, i)


@pytest.mark.skipif(not DEBUG, reason="a check of the debug build")
def test_the_debug_build_looks_at_fields_and_roots(two_nodes):
    _, me = heap_of(two_nodes.task())
    me.run(begin_frame)
    assert me.run(beyond, 0) == 0
    for i in (-1, 1):
        with pytest.raises(GcError, match="gc: a field is none of the object's, or not of this sort"):
            me.run(beyond, i)
        with pytest.raises(GcError, match="gc: more roots than there are"):
            me.run(root, i)
    me.pop_frame(1)


def test_verify_finds_a_count_that_is_wrong(two_nodes):
    task = two_nodes.task()
    _, me = heap_of(task, "refcount")
    thing, leaf = me.new(refs=3), me.new(values=1)
    for i in range(3):
        thing.set_ref(i, leaf)
    assert me.verify()["objects"] == 2
    task.store([leaf.address + 8], 3)  # it would be freed while the handle holds it
    with pytest.raises(
        GcError, match="count is not the number of references to it: object, count, references .*0x3, 0x4"
    ):
        me.verify()
    task.store([leaf.address + 8], 4)
    assert me.verify()["objects"] == 2


def test_verify_finds_a_store_without_its_barrier(two_nodes):
    """An old object that leads to a young one by a plain store: the next young collection would lose that."""
    task = two_nodes.task()
    heap, me = heap_of(task, "generational", "256KiB", young="32KiB")
    old = me.new(refs=80)
    me.collect()
    young = me.new(values=1)
    young.set_value(0, 5)
    assert old.address < heap.bounds(task)[0] + 4096 and young.address >= heap.bounds(task)[1] - (32 << 10)
    old.set_ref(70, young)
    young.drop()
    assert me.verify()["objects"] == 2
    me.new(values=900).drop()
    for _ in range(8):  # young collections
        me.new(values=1700).drop()
    assert old.ref(70).value(0) == 5
    old.set_ref(70, None)
    me.collect()
    young = me.new(values=1)
    task.store([old.address + 16 + 8 * 70], young.address)
    with pytest.raises(GcError, match="a reference to a young object lies in a card that is not marked: .*, 0x46, "):
        me.verify()
