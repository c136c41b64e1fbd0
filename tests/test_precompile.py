"""Making an image: shares are claimed whole and once, what fails leaves none, nothing is kept running."""
import os
import pickle
import subprocess
import sys

import pytest

from numaemu import image, precompile
from numaemu.build import JIT
from numaemu.image import Compiled

pytestmark = pytest.mark.skipif(not JIT, reason="nothing is compiled")


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """open_image in a directory of its own, with three workers that run some Python; the list of those that were started.

    The Python sees `n` (which worker), `claims` (the pipe's number) and `part` (its file).
    """
    started = []

    def start(code):
        def start_worker(claims, output, part):
            started.append(part)
            source = f"n, claims, part = {len(started) - 1}, {claims}, {str(part)!r}\n" + code
            return subprocess.Popen([sys.executable, "-c", source], stdout=output, pass_fds=[claims])
        monkeypatch.setattr(precompile, "start_worker", start_worker)
        return started
    monkeypatch.setattr(image, "places", lambda: [tmp_path / "cache"])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    return start


SHARES = """
import pickle
import os; os.write(1, f"m.f{n}".encode() + bytes([10]))
open(part, "wb").write(pickle.dumps({f"m.f{n}": ()}))
"""


def test_an_image_is_made_once_of_all_shares(workers, tmp_path):
    started, told = workers(SHARES), []
    made = precompile.open_image(told.append)
    assert len(started) == 3 and sorted(told) == sorted(made.functions) == ["m.f0", "m.f1", "m.f2"] and "m.f1" in made
    again = precompile.open_image(told.append)
    assert len(started) == 3 and len(told) == 3 and again.functions == made.functions
    assert len(list((tmp_path / "cache").glob("*.image"))) == 1


def test_an_image_of_other_sources_makes_room(workers, tmp_path, monkeypatch):
    workers(SHARES)
    precompile.open_image(lambda _: None)
    monkeypatch.setattr(image, "stamp", lambda: "changed")
    precompile.open_image(lambda _: None)
    assert [p.name for p in (tmp_path / "cache").glob("*.image")] == [f"{image.FLAVOUR}-changed.image"]


def test_a_process_that_fails_leaves_no_image(workers, tmp_path):
    started = workers("import sys; sys.exit(n)")
    assert precompile.open_image(lambda _: None) is None
    assert len(started) == 3 and not list((tmp_path / "cache").glob("*.image"))


def test_where_nothing_can_be_written_there_is_no_image(workers, monkeypatch):
    started = workers(SHARES)
    monkeypatch.setattr(image, "places", list)
    assert precompile.open_image(lambda _: None) is None and not started


def test_nothing_is_kept_running_when_the_driver_goes(workers, tmp_path):
    workers("import time; print('begun', flush=True); time.sleep(600)")

    def gone(_):
        raise SystemExit(0)
    with pytest.raises(SystemExit):
        precompile.open_image(gone)          # returns at once, its workers waited for
    assert not list((tmp_path / "cache").glob("*.image"))


@pytest.mark.parametrize("order", [[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]])
def test_every_function_is_exactly_one_shares(order):
    """Two processes declare the same functions, in turns of a chunk and a half."""
    claims, write = os.pipe()
    os.write(write, b"".join(i.to_bytes(2, "little") for i in range(50)))
    os.close(write)
    n = 6 * precompile.CHUNK
    shares, mine = [precompile.Share(claims) for _ in range(2)], [[], []]
    for who in order * n:
        while shares[who].declared < n:
            number = shares[who].declared
            if shares[who].is_mine():
                mine[who].append(number)
            if number % (precompile.CHUNK * 3 // 2) == 0:
                break
    os.close(claims)
    assert sorted(mine[0] + mine[1]) == list(range(n)) and mine[0] and mine[1]


def test_a_function_declared_twice_is_an_error():
    share = precompile.Share(None)
    share.add("m.f", Compiled(b"", "f", (), ()))
    with pytest.raises(AssertionError, match=r"m\.f is declared twice"):
        share.add("m.f", Compiled(b"", "f", (), ()))


def test_the_image_of_this_package_holds_every_function():
    """What was declared here was linked from the image, in which nothing else lies."""
    from numaemu.compile import IMAGE, Kernel
    from numaemu.kernel import page_alloc
    assert isinstance(page_alloc.alloc_pages, Kernel) and not hasattr(page_alloc.alloc_pages, "compiled")
    assert all(symbol.startswith("numaemu.") for symbol in IMAGE.functions)
    assert len(pickle.dumps(IMAGE.functions)) < 16 << 20
