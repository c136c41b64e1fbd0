"""One word at a time (operations/words.py): the same values, figures and errors as an array of one, which takes the long way."""

import errno
import itertools

import numpy as np
import pytest

from numaemu import BusError, OutOfMemory, SegmentationFault
from numaemu.api.words import one_address, stored, word_kind
from numaemu.uapi import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, O_CREAT, O_RDWR, PROT_NONE, SIGKILL

pytestmark = pytest.mark.interpreted
PAGE = 4096
DTYPES = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "?", ">u4", ">i8", ">f8"]
OFFSETS = [0, 8, 3, PAGE - 8, PAGE - 1, PAGE - 3, PAGE - 5]
FIGURES = ("accesses", "stores", "l1_hits", "l2_hits", "walks", "clock_ns", "task_minor_faults")


def the_long_way(task, addresses, dtype):
    return task._op("load", addresses, dtype)


def figures(task):
    found = task.counters()
    return {name: found[name] for name in FIGURES if name in found}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_word_has_the_value_of_an_array_of_one(two_nodes, dtype):
    task = two_nodes.task()
    area = task.mmap(2 * PAGE)
    task.write(area.addr, bytes((i * 37 + 11) % 256 for i in range(2 * PAGE)))
    for offset in OFFSETS:
        long_way = the_long_way(task, [area.addr + offset], dtype)
        for addresses in ([area.addr + offset], np.array([area.addr + offset], np.uint64)):
            at_once = task.load(addresses, dtype)
            assert at_once.dtype == long_way.dtype and at_once.shape == (1,) and at_once.flags.writeable
            assert at_once.tobytes() == long_way.tobytes()
    array = area.array(dtype)
    assert type(array[3]) is type(array[3:4][0]) and array[3].tobytes() == array[3:4][0].tobytes()
    assert array[-1].tobytes() == array[-1:][0].tobytes()


def test_a_stored_word_is_what_numpy_makes_of_the_value(two_nodes):
    task = two_nodes.task()
    area = task.mmap(PAGE)
    values = [0, 1, -1, 300, (1 << 63) - 1, 1 << 63, 0.5, -2.5e300, True, np.float32(1.5), np.int8(-3)]
    for dtype, value in itertools.product(DTYPES, values):
        task.write(area.addr, bytes(64))
        array = area.array(dtype, length=8)
        with np.errstate(all="ignore"):
            array[5] = value
            assert array[5:6].tobytes() == np.asarray(value).astype(dtype).tobytes(), (dtype, value)
        assert not array[:5].any() and not array[6:].any()  # nothing beside it


def test_store_takes_the_bytes_that_a_value_has(two_nodes):
    task = two_nodes.task()
    area = task.mmap(PAGE)
    for value in [0, 7, -7, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 2.5, np.uint16(77), True]:
        for offset in (16, PAGE - 4 - np.asarray(value).nbytes):
            task.store([area.addr + offset], value)
            assert task.read(area.addr + offset, np.asarray(value).nbytes) == np.asarray(value).tobytes()
    with pytest.raises((TypeError, OverflowError)):
        task.store([area.addr], 1 << 64)


@pytest.mark.parametrize("shape", [{}, {"cache": {"l1d": {"size": "4KiB"}}}, {"bandwidth_per_node": "20GB/s"}])
def test_it_costs_what_an_array_of_one_costs(loopback, shape):
    """Two tasks on machines of the same kind, of which one takes the long way: equal figures after each access."""
    tasks = [loopback(nodes=2, cpus_per_node=1, memory_per_node="16MiB", **shape).task() for _ in range(2)]
    starts = [task.mmap(8 * PAGE).addr for task in tasks]
    for offset in [0, 8, 5 * PAGE, PAGE - 4, 8, 7 * PAGE - 3, 3 * PAGE]:
        tasks[0].load([starts[0] + offset])
        the_long_way(tasks[1], [starts[1] + offset], np.uint64)
        assert figures(tasks[0]) == figures(tasks[1]), offset
        tasks[0].store([starts[0] + offset], 3)
        tasks[1]._op("store", [starts[1] + offset], 3)
        assert figures(tasks[0]) == figures(tasks[1]), offset


def test_a_refused_word_is_told_as_any_access(two_nodes):
    task = two_nodes.task()
    closed = task.mmap(PAGE, PROT_NONE)
    file = task.open("/dev/shm/f", O_RDWR | O_CREAT)
    file.write(bytes(PAGE))
    short = task.mmap(2 * PAGE, flags=MAP_SHARED, file=file)
    cases = [
        (closed.addr, SegmentationFault),
        (0, SegmentationFault),
        (1 << 63, SegmentationFault),
        (short.addr + PAGE, BusError),
    ]
    for address, kind in cases:
        texts = []
        for access in (task.load, lambda addresses: the_long_way(task, addresses, np.uint64)):
            with pytest.raises(kind) as caught:
                access([address])
            texts.append(str(caught.value))
        assert texts[0] == texts[1] and f"{address:#x}" in texts[0]
        with pytest.raises(kind, match="store to"):
            task.store([address], 1)
    assert task.load([short.addr])[0] == 0  # and the CPU goes on


def test_a_task_that_has_ended_has_no_words(two_nodes):
    task, other = two_nodes.task(), two_nodes.task()
    area = task.mmap(PAGE)
    array = area.array()
    array[0] = 5
    other.kill(task.pid, SIGKILL)
    for access in (lambda: task.load([area.addr]), lambda: task.store([area.addr], 1), lambda: array[0]):
        with pytest.raises(OSError, match="the task has ended") as caught:
            access()
        assert caught.value.errno == errno.ESRCH


def test_a_word_that_memory_is_short_for_kills_the_task(loopback):
    machine = loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB")
    task = machine.task()
    area = task.mmap("64MiB", flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    with pytest.raises(OutOfMemory, match="killed"):
        for address in range(area.addr, area.addr + area.nbytes, PAGE):
            task.store([address], 1)
    with pytest.raises(OSError, match="the task has ended"):
        task.load([area.addr])
    machine.audit()


def test_words_while_preemption_is_disabled(two_nodes):
    """An operation between get_cpu_var and put_cpu_var takes no turn of its own."""
    task = two_nodes.task()
    area = task.mmap(PAGE)
    handle = task.kernel.define_per_cpu("n", 8, 8)
    with task.kernel.get_cpu_var(handle):
        task.store([area.addr], 9)
        assert task.load([area.addr])[0] == 9
    assert task.load([area.addr])[0] == 9


def test_what_is_no_plain_word_goes_the_long_way(two_nodes):
    assert one_address([1 << 64]) is None and one_address([-1]) is None and one_address([True]) is None
    assert one_address([1, 2]) is None and one_address(np.zeros((1, 1), np.uint64)) is None
    assert stored(1 << 64) is None and stored([1]) is None and stored(True) is None
    assert word_kind("no dtype") is None and word_kind([]) is None and word_kind("S8") is not None
    task = two_nodes.task()
    array = task.mmap(PAGE).array()
    for index in (512, -513):
        with pytest.raises(IndexError):
            array[index]
        with pytest.raises(IndexError):
            array[index] = 1
