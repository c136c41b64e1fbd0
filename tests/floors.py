"""A copy of the lower floors of the package, for tests that change its files or add some."""

import pathlib
import shutil

import numaemu

PACKAGE = pathlib.Path(numaemu.__file__).parent


def copy_floors(where, *rooms):
    """Make the package `where` of some rooms and files of this one, without anything compiled."""
    where.mkdir()
    (where / "__init__.py").touch()
    for room in rooms:
        if (PACKAGE / room).is_dir():
            shutil.copytree(PACKAGE / room, where / room, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PACKAGE / room, where)
    one_compiler(where / "compiler" / "foreman.py")


def one_compiler(foreman):
    """A copy has a handful of functions: one compiler has them before a second one has begun. That several share what there is to do
    is looked at in test_foreman.py and, with the whole kernel, in test_cli.py.
    """
    text = foreman.read_text()
    assert "\nMOST = 8 " in text
    foreman.write_text(text.replace("\nMOST = 8 ", "\nMOST = 1 "))
