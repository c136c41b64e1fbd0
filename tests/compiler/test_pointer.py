"""Struct pointers: the same lines in Python and in compiled code, over the same bytes."""

import itertools
import multiprocessing
import subprocess
import sys

import numba
import numpy as np
import pytest

from numaemu.compiler import structs
from numaemu.compiler.atomic import (
    compare_exchange,
    exchange,
    fetch_add,
    fetch_and,
    fetch_or,
    load_acquire,
    store_release,
    store_seq_cst,
)
from numaemu.compiler.build import DEBUG, JIT
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import Struct, f64, i32, i64, u8, u16, u64
from numaemu.host import shm

pytestmark = pytest.mark.interpreted

#   0      8   12          16      32        64      72     80
#   | word | n | small, pad | inner | many[2] | bytes | real |
pair_t = Struct("test_pair_t", [("a", i64), ("b", u64)], nbytes=16)
# fmt: off
thing_t = Struct("test_thing_t", [("word", u64), ("n", i32), ("small", u16), ("inner", pair_t), ("many", pair_t, 2),
                                  ("bytes", u8, 8), ("real", f64)], nbytes=80)
# fmt: on


@pytest.fixture
def thing():
    return thing_t.at(shm.shared_block(4096))


def test_layout_is_that_of_c():
    assert thing_t.offsets == {"word": 0, "n": 8, "small": 12, "inner": 16, "many": 32, "bytes": 64, "real": 72}


@kernel("void(test_thing_t*)")
def fill(thing):
    thing.word, thing.n, thing.small, thing.real = np.uint64(1 << 63), -5, 65535, 0.5
    thing.inner.a, thing.many[1].b = -7, np.uint64(8)
    thing.bytes[3] = 200
    thing.n += 1


@kernel("i64(test_thing_t*)")
def sum_up(thing):
    return thing.n + thing.inner.a + thing.many[1].a + np.int64(thing.bytes[3]) + np.int64(thing.small)


def test_what_a_kernel_writes_python_reads(thing):
    fill(thing)
    assert (thing.word, thing.n, thing.small, thing.real) == (1 << 63, -4, 65535, 0.5)
    assert (thing.inner.a, thing.many[1].b, thing.bytes[3]) == (-7, 8, 200)
    record = thing.as_numpy()
    assert record["many"][1]["b"] == 8 and record["bytes"].tolist() == [0, 0, 0, 200, 0, 0, 0, 0]


def test_what_python_writes_a_kernel_reads(thing):
    thing.n, thing.inner.a, thing.many[1].a, thing.bytes[3], thing.small = 1, 10, 100, 99, 1000
    assert sum_up(thing) == 1210


def test_unsigned_words_are_numpy_and_signed_ones_are_int(thing):
    assert type(thing.word) is np.uint64 and type(thing.n) is int and type(thing.many[0].a) is int


def test_what_interpreted_code_keeps_is_bounded_and_may_be_forgotten(thing, monkeypatch):
    monkeypatch.setattr(structs, "_MOST_KEPT", 100)
    monkeypatch.setattr(structs, "_kept", itertools.count(1))
    pairs, first = pair_t.array(thing.address), pair_t.array(thing.address)[0]
    for n in range(250):
        pairs[n].b = n
    assert sum(map(len, structs.Kept.every)) <= 100
    assert [pairs[n].b for n in range(250)] == list(range(250)) and pairs[0].address == first.address


def test_arrays_of_structs_are_no_dictionaries(thing):
    pairs = thing.many
    assert pairs and [pair.address - thing.address for pair in pairs] == [32, 48]
    assert pairs != pair_t.array(thing.many.address, 2) and len({pairs, thing.many}) == 1
    with pytest.raises(TypeError, match="struct test_pair_t is written field by field"):
        pairs[0] = pairs[1]
    with pytest.raises(IndexError, match="index -1 of 2 test_pair_t"):
        pairs[-1]


def test_arrays_of_structs_lie_one_after_another(thing):
    pairs = pair_t.array(thing.address)
    pairs[3].b = 77
    assert u64.array(thing.address)[7] == 77
    assert pair_t.array(thing.address, 4).as_numpy()["b"].tolist() == [0, 0, 0, 77]


def test_a_pointer_has_only_its_fields(thing):
    with pytest.raises(AttributeError, match="'test_thing_t' object has no attribute 'wrod'"):
        thing.wrod = 1
    with pytest.raises(AttributeError, match="no field wrod"):
        thing.wrod


@pytest.mark.parametrize("name", ["address", "struct"])
def test_no_field_is_called_like_a_pointers_own(name):
    with pytest.raises(AssertionError, match=name):
        Struct("test_bad_t", [(name, u64)])


def test_a_changed_size_is_seen():
    with pytest.raises(AssertionError, match="is 8 bytes, must be 16"):
        Struct("test_bad_t", [("a", u64)], nbytes=16)


# -- atomics -------------------------------------------------------------------------------------------------


@entry("void(u64, i64[])")
def all_atomics(address, answers):
    """Each atomic once on the field `n` and once on words[1]; what it answered."""
    thing, words = thing_t.at(address), i64.array(address)
    answers[0] = fetch_add(thing, "n", 5)
    answers[1] = fetch_or(thing, "n", 8)
    answers[2] = fetch_and(thing, "n", 12)
    answers[3] = exchange(thing, "n", -1)
    answers[4] = compare_exchange(thing, "n", -1, 3)
    answers[5] = compare_exchange(thing, "n", -1, 4)
    answers[6] = load_acquire(thing, "n")
    store_release(thing, "n", 9)
    answers[7] = thing.n
    store_seq_cst(words, 2, 41)
    answers[8] = fetch_add(words, 2, 1)
    answers[9] = words[2]


@pytest.mark.parametrize("compiled", [True, False])
def test_atomics_answer_with_the_word_before(thing, compiled):
    """1 +5 -> 6, |8 -> 14, &12 -> 12, xchg -1, cas to 3 succeeds, cas fails; from Python they are the same."""
    answers = np.zeros(10, np.int64)
    thing.n = 1
    function = all_atomics if compiled else getattr(all_atomics, "py_func", all_atomics)
    function(int(thing.address), answers)
    assert answers.tolist() == [1, 6, 14, 12, -1, 3, 3, 9, 41, 42]


@entry("void(u64, i64)")
def count_to(address, n):
    thing = thing_t.at(address)
    for _ in range(n):
        fetch_add(thing, "word", np.uint64(1))
        fetch_add(thing, "n", 1)


def test_two_processes_lose_no_count(thing):
    n = 200_000 if JIT else 5_000
    count_to(int(thing.address), 0)  # compiled before they fork
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=count_to, args=(int(thing.address), n)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert (thing.word, thing.n) == (2 * n, 2 * n)


# -- bounds --------------------------------------------------------------------------------------------------


@numba.njit
def many_at(thing, i):
    return thing.many[i].a


@pytest.mark.parametrize("index", [2, -1, 1 << 40])
def test_bounds_are_checked_in_python_and_in_the_debug_build(thing, index):
    if DEBUG or not JIT:
        with pytest.raises(IndexError):
            many_at(thing, index)
    with pytest.raises(IndexError, match="of 2 test_pair_t"):
        thing.many[index]


@hot
def same(pointer):
    return pointer


@pytest.mark.parametrize(
    "make", [lambda thing: thing, lambda thing: thing.many, lambda thing: u64.array(thing.address)]
)
def test_pointers_travel_into_compiled_code_and_back(thing, make):
    there = make(thing)
    back = same(there)
    assert back.address == there.address and type(back) is type(there)


def test_the_debug_build_checks_what_the_release_build_does_not():
    """Run with the JIT on, whatever this process is."""
    code = (
        "from numaemu.compiler.pointer import *; from numaemu.host import shm; import numba\n"
        "t = Struct('t', [('a', i64, 2)]); f = numba.njit(lambda t, i: t.a[i])\n"
        "p = t.at(shm.shared_block(4096)); u64.array(p.address)[2] = 5\n"
        "try:\n    print(f(p, 2))\nexcept IndexError as error:\n    print(error)"
    )
    for debug, expected in (("0", "5"), ("1", "index outside of int64[2]")):
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ":".join(sys.path), "NUMAEMU_DEBUG": debug},
        )
        assert run.stdout.strip() == expected
