"""The workloads that come along with numaemu: in an installation inside the package, in a clone beside it."""

import ast
import pathlib

import numaemu
from numaemu.spec.units import nearest

PACKAGE = pathlib.Path(numaemu.__file__).parent


def folder():
    """Where they lie; a clone's own come first."""
    beside = PACKAGE.parent / "workloads"
    return beside if (PACKAGE.parent / "pyproject.toml").exists() and beside.is_dir() else PACKAGE / "workloads"


def names():
    return sorted(path.stem for path in folder().glob("*.py"))


def find(given):
    """The path of the workload of that name, with or without its .py; None: there is none."""
    name = given.removesuffix(".py")
    return str(folder() / f"{name}.py") if name in names() else None


def advice(given):
    """What somebody may have meant who has named a workload that is not there."""
    return nearest(given, names()) or "; 'numaemu workloads' lists those that come along"


def summaries():
    """{name: the first line of its docstring}"""
    found = {}
    for name in names():
        tree = ast.parse((folder() / f"{name}.py").read_text(encoding="utf-8"))
        found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found
