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
