"""Functions that are compiled when they are first called: in a small package of its own, in fresh processes."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
from floors import copy_floors

import numaemu
from numaemu.compiler.build import JIT
from numaemu.compiler.image import COMPLETE, Image

pytestmark = pytest.mark.skipif(not JIT, reason="nothing is compiled")
PACKAGE = pathlib.Path(numaemu.__file__).parent
WIDE = """
from numaemu.compiler.decorators import entry, hot, kernel

@kernel("f64(i64, i64, i64, i64, i64, i64, i64, i64, f64, f64)")
def wide(a, b, c, d, e, f, g, h, x, y):
    return a + 10 * b + 100 * c + 1000 * d + 10000 * e + 100000 * f + 1000000 * g + 10000000 * h + x / y

@kernel("i64(i64)")
def unused(a):
    return a

@entry("f64(f64)")
def through(x):
    return wide(1, 2, 3, 4, 5, 6, 7, 8, x, 4.0)

@kernel("i64(i64)")
def wrong(a):
    return a.nothing

@entry("i64(i64)")
def into_wrong(a):
    return wrong(a) + unused(a)

@entry("i64(i64)")
def wrong_itself(a):
    return a.nothing
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the floors below the kernel, with one file of functions above them."""
    copy_floors(tmp_path / "numaemu", "compiler", "host", "errors.py")
    (tmp_path / "numaemu" / "wide.py").write_text(WIDE)
    (tmp_path / "numaemu" / "coordinator.py").write_text("import numaemu.wide\n")  # all that an image holds here
    return tmp_path


def start(where, program):
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "NUMAEMU_"))}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=where,
        env={**keep, "PYTHONPATH": str(where)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(where, program):
    """(what it prints, what it says on stderr, exit status)"""
    process = start(where, program)
    out, err = process.communicate(timeout=120)
    return out.strip(), err, process.returncode


THROUGH = "from numaemu.wide import through; print(through(2.0))"
HELD = "; from numaemu.compiler.link import LINKER; print(sorted(LINKER.image.functions))"


def test_a_stub_passes_every_argument_on(package):
    assert run(package, THROUGH) == ("87654321.5", "", 0)
    out, err, status = run(package, THROUGH + HELD)  # the same from the image
    assert (err, status) == ("", 0) and out.startswith("87654321.5\n") and "numaemu.wide.wide" in out


def test_called_from_python_and_again(package):
    program = "from numaemu.wide import wide, through; print(wide.py_func(*range(1, 9), 1.0, 4.0), through(1.0), through(3.0))"
    assert run(package, program) == ("87654321.25 87654321.25 87654321.75", "", 0)


def test_everything_can_be_had_at_once(package):
    shutil.rmtree(package / "numaemu" / "__pycache__", ignore_errors=True)
    (package / "numaemu" / "wide.py").write_text(WIDE.replace("a.nothing", "a"))
    program = "from numaemu.compiler.link import compile_everything; compile_everything()"
    assert run(package, program) == ("", "", 0)
    out, err, status = run(package, "import numaemu.wide" + HELD)
    assert (err, status) == ("", 0)
    names = ("into_wrong", "through", "unused", "wide", "wrong", "wrong_itself")
    assert out == str(["", *(f"numaemu.wide.{name}" for name in names)])


def test_what_cannot_be_compiled_ends_who_calls_it(package):
    out, err, status = run(package, "from numaemu.wide import into_wrong; print(into_wrong(1))")
    assert (out, status) == ("", 70)
    assert "numaemu.wide.wrong cannot be compiled" in err and "nothing" in err


def test_python_gets_an_exception_instead(package):
    program = (
        "from numaemu.wide import through, wrong_itself\n"
        "try:\n    wrong_itself(1)\nexcept RuntimeError as error:\n    print('nothing' in str(error))\nprint(through(2.0))"
    )
    assert run(package, program) == ("True\n87654321.5", "", 0)


def test_compilers_that_die_each_time_are_given_up(package):
    """As LLVM ends its process where it meets what it cannot do."""
    path = package / "numaemu" / "compiler/worker.py"
    path.write_text(
        path.read_text().replace(
            "    try:\n        return declared", "    sys.exit(9)\n    try:\n        return declared"
        )
    )
    out, err, status = run(package, "from numaemu.compiler.link import compile_everything; compile_everything()")
    assert status == 1 and "the kernel cannot be compiled: its compilers have ended 3 times" in err
    out, err, status = run(package, THROUGH)
    assert status == 1 and "numaemu.wide.through cannot be compiled: its compilers have ended 3 times" in err


def test_a_changed_file_is_noticed_by_the_compilers(package):
    """A process that began before the change would get code of after it."""
    program = (
        "import numaemu.wide, pathlib, shutil, time\n"
        "from numaemu.compiler import foreman\n"
        "from numaemu.compiler.link import LINKER\n"
        "foreman.stop()\n"
        "path = pathlib.Path(numaemu.wide.__file__)\n"
        "path.write_text(path.read_text() + '# changed')\n"
        "LINKER.image.functions.clear()\n"
        "LINKER.image.path.unlink()\n"
        "numaemu.wide.through(2.0)"
    )
    out, err, status = run(package, program)
    assert status == 1 and "numaemu's files have changed since this run began: begin it again" in err
    assert "its compilers have ended 3 times" in err


def titled(process, title):
    """Those of its descendants that are called so."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [child] * (" ".join(child.cmdline()).strip() == title)
    return found


def wait_until(condition):
    """True as soon as it holds; the suite's own limit ends what never comes."""
    while not condition():
        psutil.wait_procs([], 0.01)
    return True


@pytest.mark.parametrize("title", ["numaemu: compiler", "numaemu: compiling"])
def test_compilers_that_are_killed_are_started_again(package, title):
    """One of those that compile, or the one who hands work to them."""
    process = start(package, THROUGH)
    wait_until(lambda: titled(process, title) or process.poll() is not None)
    for compiler in titled(process, title)[:1]:
        compiler.send_signal(signal.SIGKILL)
    out, _, status = *process.communicate(timeout=120), process.returncode
    assert (out.strip(), status) == ("87654321.5", 0)


def test_compilers_end_with_who_has_started_them(package):
    process = start(package, THROUGH + "; import time; time.sleep(600)")
    wait_until(lambda: titled(process, "numaemu: compiler") or process.poll() is not None)
    compilers = titled(process, "numaemu: compiler") + titled(process, "numaemu: compiling")
    process.kill()
    process.communicate()
    assert wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in compilers))


def test_a_place_that_cannot_be_written_serves_if_it_is_complete(tmp_path, monkeypatch):
    """As after an installation by root: incomplete, it is left for the user's own place."""
    from numaemu.compiler import link

    installed, own = tmp_path / "installed", tmp_path / "own"
    monkeypatch.setattr(link, "places", lambda: [installed, own])
    monkeypatch.setattr("os.access", lambda path, _: path == own)  # root may write everywhere
    assert link.image_path() == own / link.image_name()
    image = Image(installed / link.image_name())
    image.mend()
    assert link.image_path() == own / link.image_name()
    image.append(COMPLETE, None)
    assert link.image_path() == image.path
    monkeypatch.setattr("os.access", lambda path, _: False)
    monkeypatch.setattr(link, "places", lambda: [own])
    with pytest.raises(RuntimeError, match="compiled code can be kept in none of .*own"):
        link.image_path()
