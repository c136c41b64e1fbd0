"""Compiled functions that no file holds: each is compiled once in the life of a driver, whoever needs it."""

import os
import pathlib
import pickle
import subprocess
import sys
import warnings

import numba
import pytest

from numaemu.compiler import user_kernels
from numaemu.compiler.build import JIT
from numaemu.errors import CompiledAgainWarning
from numaemu.process import lifetime
from numaemu.process.wire import dumps

ROOT = pathlib.Path(__file__).parents[2]
READER = """
import pickle, sys
import numaemu.compiler.build
from numaemu.compiler import user_kernels
from numaemu.process import wire
compiled = []
user_kernels.watch(lambda name, where: compiled.append(name))
for argument in sys.argv[2:]:
    with open(sys.argv[1], "rb") as file:
        print(pickle.load(file)(int(argument)))
print(compiled)
"""
compiling = pytest.mark.skipif(not JIT, reason="nothing is compiled")


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """The directory that a fork server would make."""
    monkeypatch.delenv(user_kernels.DIRECTORY, raising=False)
    user_kernels.make_directory(tmp_path)
    yield pathlib.Path(os.environ[user_kernels.DIRECTORY])
    user_kernels.remove_directory()
    assert not list(tmp_path.glob("kernels.*"))


@pytest.fixture
def read(shared, tmp_path):
    """What processes print that get a pickled function, each of them with some arguments, all at once."""

    def run(function, *calls):
        path = tmp_path / "function"
        path.write_bytes(dumps(function))
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", READER, str(path), *map(str, call)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            for call in calls
        ]
        return [process.communicate(timeout=120)[0].splitlines() for process in processes]

    return run


def make(step):
    """A closure, as a notebook's cell is none of any file."""

    @numba.njit
    def helper(x):
        return x + step

    @numba.njit
    def kernel(x):
        return 2 * helper(x)

    return kernel


def make_recursive():
    @numba.njit
    def factorial(n):
        return n * factorial(n - 1) if n > 1 else 1

    return factorial


@compiling
def test_processes_that_need_it_at_once_compile_it_once(read):
    answers = read(make(1), [1, 2], [3], [4])
    assert [answer[:-1] for answer in answers] == [["4", "6"], ["8"], ["10"]]
    names = [answer[-1] for answer in answers]
    assert sorted(names, key=len) == ["[]", "[]", "['make.<locals>.helper', 'make.<locals>.kernel']"]
    assert read(make(1), [5])[0] == ["12", "[]"]  # made anew by the same code, with the same contents
    assert read(make(2), [5])[0][0] == "14"  # others: not the same function


@compiling
def test_one_that_calls_itself(read):
    assert [answer[0] for answer in read(make_recursive(), [5], [6])] == ["120", "720"]


@compiling
def test_a_process_makes_it_once(shared):
    one, other = (pickle.loads(dumps(make(1))) for _ in range(2))
    assert one is other and one is not pickle.loads(dumps(make(3)))


def test_what_killed_fork_servers_have_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.delenv(user_kernels.DIRECTORY, raising=False)
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid in (gone.pid, os.getppid()):
        (tmp_path / f"kernels.{pid}").mkdir()
    user_kernels.make_directory(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"kernels.{os.getppid()}", f"kernels.{os.getpid()}"}
    user_kernels.remove_directory()


def test_there_is_a_word_about_one_that_is_compiled_a_third_time(monkeypatch):
    monkeypatch.setattr(lifetime, "_warned", set())
    lifetime.compiled.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            lifetime.compiled["chase", "story.py, line 3"] += 1
            lifetime.warn_of_compiling()
    lifetime.compiled["chase", "story.py, line 3"] += 1
    lifetime.compiled["ol_min.<locals>.impl", "/lib/numba/cpython/builtins.py, line 630"] = (
        3  # a part of somebody's function
    )
    with pytest.warns(CompiledAgainWarning, match=r"^chase \(story.py, line 3\) has been compiled 3 times") as caught:
        lifetime.warn_of_compiling()
        lifetime.warn_of_compiling()
    assert len(caught) == 1
