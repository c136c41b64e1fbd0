"""Where compiled code may lie: nobody else may have written it."""

import os
import pathlib
import stat
import subprocess
import sys
import textwrap

import pytest

from numaemu.compiler import foreman, link
from numaemu.compiler.build import JIT
from numaemu.compiler.image import COMPLETE, Image
from numaemu.host import trust

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.delenv("NUMAEMU_SAID", raising=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where NUMBA_CACHE_DIR says; the other places are there, too."""
    named = tmp_path / "named"
    named.mkdir(mode=0o700)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(named))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(link, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir(mode=0o700)
    return named


def image_in(place):
    image = Image(place / link.image_name())
    image.mend()
    image.append(COMPLETE, None)
    return image


def test_a_place_of_this_user_s_alone_is_used(place, capfd):
    assert link.image_path() == image_in(place).path
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o777, 0o1777])
@pytest.mark.parametrize("what", ["place", "image"])
def test_what_others_may_write_to_is_not_used(place, capfd, mode, what):
    path = image_in(place).path
    refused = place if what == "place" else path
    refused.chmod(mode)
    for _ in range(2):
        assert link.image_path().parent == place.parent / "package" / "__pycache__"
    assert (
        capfd.readouterr().err
        == f"numaemu: compiled code is not kept in {refused}: others may write to it (mode {mode:o})\n"
    )
    if what == "image":
        assert Image(path).read() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("what", ["place", "image"])
def test_what_another_user_owns_is_not_used(place, capfd, what):
    path = image_in(place).path
    os.chown(place if what == "place" else path, 12345, -1)
    assert link.image_path().parent == place.parent / "package" / "__pycache__"
    assert capfd.readouterr().err.endswith(": it belongs to user 12345\n")


def test_a_symbolic_link_in_the_temporary_directory_is_not_followed(place, capfd):
    """It would lead this user's compilers where somebody else has laid something for them."""
    temporary, elsewhere = place.parent / "tmp", place.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    temporary.chmod(0o1777)
    (temporary / f"numaemu-{os.getuid()}").symlink_to(elsewhere)
    assert foreman.own_directory() == place.parent / "cache" / "numaemu" / "run"
    assert "is a symbolic link in a directory that others may write to" in capfd.readouterr().err
    assert not list(elsewhere.iterdir())


def test_an_image_is_made_so_that_nobody_else_may_write_to_it(place):
    old = os.umask(0)
    try:
        image = image_in(place)
    finally:
        os.umask(old)
    assert stat.S_IMODE(image.path.stat().st_mode) == 0o644 and not trust.distrust_path(image.path)


KERNEL = """
    import numba
    import numaemu.compiler.build

    @numba.njit(cache=True)
    def f(x):
        return x + 1

    print(f(1), f.stats.cache_path, sum(f.stats.cache_hits.values()))
"""


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_neither_are_a_user_s_own_kernels_read_from_there(place, tmp_path):
    script = tmp_path / "kernel.py"
    script.write_text(textwrap.dedent(KERNEL))
    for mode, there, hits in ((0o700, True, 0), (0o700, True, 1), (0o777, False, 0)):
        place.chmod(mode)
        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert (str(place) in done.stdout, int(done.stdout.split()[-1])) == (there, hits), done.stderr
        assert ("others may write to it" in done.stderr) == (not there)
