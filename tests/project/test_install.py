"""An editable installation of a clone that lies in a directory called as the package."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(where, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installation_is_a_path():
    """What setuptools makes of a `package-dir` of the root alone; else it installs a finder, which is asked last."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"] == {"": "."}


@pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("wheel") is None,
    reason="an isolated build would fetch them",
)
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
