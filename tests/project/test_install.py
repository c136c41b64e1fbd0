"""What an installation carries, how `make` makes one, and an editable one of a clone in a directory called as the package."""

import importlib.util
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

from numaemu.tools import bootstrap

ROOT = pathlib.Path(__file__).parents[2]


def run(where, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COLUMNS")} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installation_is_a_path():
    """What setuptools makes of a `package-dir` of the root alone; else it installs a finder, which is asked last."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"] == {"": "."}


can_build = pytest.mark.skipif(
    importlib.util.find_spec("wheel") is None and importlib.util.find_spec("setuptools.command.bdist_wheel") is None,
    reason="an isolated build would fetch what it needs",
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone's files."""
    where = tmp_path_factory.mktemp("clone")
    for name in ("numaemu", "workloads"):
        shutil.copytree(ROOT / name, where / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, where)
    return where


@can_build
def test_a_wheel_carries_the_workloads_and_runs_without_the_clone(clone, tmp_path):
    run(clone, "-c", f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    package = tmp_path / "site" / "numaemu"
    names = sorted(path.name for path in (ROOT / "workloads").glob("*.py"))
    assert sorted(path.name for path in (package / "workloads").glob("*.py")) == names
    assert (package / "compiler" / "first.txt").exists() and list((package / "spec" / "presets").glob("*.toml"))
    listed = run(tmp_path, "-m", "numaemu", "workloads", PYTHONPATH=str(tmp_path / "site"))
    assert all(f"\n{name.removesuffix('.py')} " in listed for name in names)
    program = "from numaemu.tools import shipped; print(shipped.find('first_touch'))"
    found = run(tmp_path, "-c", program, PYTHONPATH=str(tmp_path / "site"))
    assert found.strip() == str(package / "workloads" / "first_touch.py")


@can_build
def test_a_source_distribution_carries_the_workloads(clone, tmp_path):
    run(clone, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})")
    (archive,) = tmp_path.glob("*.tar.gz")
    names = {name.partition("/")[2] for name in tarfile.open(archive).getnames()}
    for folder in ("workloads", "numaemu/spec/presets", "numaemu/compiler"):
        here = {
            f"{folder}/{path.name}" for path in (ROOT / folder).iterdir() if path.suffix in (".py", ".toml", ".txt")
        }
        assert here and here <= names
    assert "setup.py" in names


# --- the bar of `make` ------------------------------------------------------------------------------
PIP = """Obtaining file:///x
Collecting click>=8.1 (from numaemu==0.1.0)
  Downloading click-8.1-py3-none-any.whl (98 kB)
Collecting posix_ipc>=1.1 (from numaemu==0.1.0)
Requirement already satisfied: rich>=13 in /x (from numaemu==0.1.0) (14.0)
Collecting pygments<3 (from rich>=13->numaemu==0.1.0)
Installing collected packages: click, pygments, posix-ipc, numaemu
""".splitlines(keepends=True)


class Lines:
    """Takes what is shown."""

    def __init__(self):
        self.shown = []

    def show(self, step, done=0, total=0, what=""):
        self.shown.append((step, done, total, what))


def test_the_bar_counts_the_packages_that_the_project_asks_for():
    line = Lines()
    assert bootstrap.follow(PIP, line, {"click", "posix-ipc", "rich"}) == PIP
    assert [(done, total, what) for _, done, total, what in line.shown] == [
        (1, 3, "click"),
        (2, 3, "posix-ipc"),
        (3, 3, "rich"),
        (3, 3, "pygments"),
        (3, 3, "unpacking 4 packages"),
    ]


def test_the_bar_knows_how_many_there_are():
    text = (ROOT / "pyproject.toml").read_text()
    plain, test = bootstrap.direct_requirements(text, []), bootstrap.direct_requirements(text, ["test"])
    assert {"numba", "posix-ipc"} <= plain < test and "pytest" in test


class Terminal(io.StringIO):
    isatty = lambda self: True
    fileno = lambda self: 1


def test_it_says_what_is_being_done(monkeypatch):
    monkeypatch.setattr(bootstrap.os, "get_terminal_size", lambda _: os.terminal_size((61, 24)))
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        line = bootstrap.Line(stream)
        line.show("making a virtual environment")
        line.show("installing", 6, 12, "numba")
        line.show("installing", 7, 12, "numpy")
        line.end()
    assert file.getvalue() == "numaemu: making a virtual environment\nnumaemu: installing\n"
    *_, first, second, end = terminal.getvalue().split("\r\x1b[2K")
    assert "installing: ━━━━━━━━━━━━──────────── 6 of 12  numba" in first and "7 of 12  numpy" in second and end == ""


def test_it_imports_nothing_of_what_it_installs():
    program = (
        "import sys, runpy; runpy.run_path(sys.argv[1], run_name='x'); print([m for m in sys.modules if 'numa' in m])"
    )
    assert run(ROOT, "-I", "-S", "-c", program, str(ROOT / "numaemu" / "tools" / "bootstrap.py")) == "[]\n"


@pytest.mark.parametrize("status", [0, 7])
def test_a_failure_of_pip_is_shown_whole(monkeypatch, capsys, tmp_path, status):
    """With a Python that only pretends."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -m ] || exit 0\necho Collecting click; echo "no matching distribution"\nexit {status}\n'
    )
    python.chmod(0o755)
    assert bootstrap.main(str(tmp_path), ".") == status
    said = capsys.readouterr().err
    assert "numaemu: installing\n" in said
    assert ("no matching distribution\nnumaemu: pip has failed with exit status 7\n" in said) == (status == 7)
    assert ("numaemu: preparing" in said) == (status == 0)


@can_build
def test_a_clone_called_numaemu_works_from_its_parent_directory(tmp_path):
    """There `import numaemu` finds the clone first, which is a directory without __init__.py: what is installed must be a path,
    as only a package on the path is preferred to that.
    """
    clone, site = tmp_path / "numaemu", tmp_path / "site"
    for name in ("numaemu/kernel", "numaemu/spec/presets"):
        (clone / name).mkdir(parents=True)
    (clone / "numaemu" / "__init__.py").write_text('__version__ = "1.0"\n')
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    run(clone, "-c", f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})")
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)
    program = (
        f"import site; site.addsitedir({str(site)!r}); import numaemu; print(numaemu.__version__, numaemu.__file__)"
    )
    assert run(tmp_path, "-S", "-c", program).split() == ["1.0", str(clone / "numaemu" / "__init__.py")]
