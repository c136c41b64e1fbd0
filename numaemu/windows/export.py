"""A snapshot of a machine's /proc and /sys below a directory, for tools that take a root:

lstopo --input DIR --if fsroot      lscpu -s DIR      lsmem -s DIR      psutil.PROCFS_PATH = "DIR/proc"
"""

import errno
import os
import pathlib
import shutil

from numaemu.errors import ConfigError
from numaemu.windows.view import TOPS, View

MOST_BYTES = 8 << 20  # of a file; larger ones, with a word for each frame, are left out


def export(machine, directory):
    """Write the tree; how many files and links. What can only be written to becomes an empty file.

    The directory may be there already if it is empty, or holds an export: that is replaced.
    """
    root = pathlib.Path(directory)
    prepare(root)
    view = View(machine)
    return sum(copy(view, f"/{top}", root) for top in TOPS)


def prepare(root):
    """Make an empty directory, or raise ConfigError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in root.iterdir() if path.name not in TOPS]
        if others:
            raise ConfigError(f"export: {root} holds {others[0]!r}, must be empty or hold an export only")
        if any(os.path.ismount(root / top) for top in TOPS):
            raise ConfigError(f"export: something is mounted in {root}")
        for top in TOPS:
            if (root / top).exists():
                shutil.rmtree(root / top)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"export: {root}: {reason.lower()}") from None


def copy(view, path, root):
    """One file, link or directory with all that is in it; how many files and links."""
    kind, what = view.kind(path)
    target = root / path[1:]
    if kind == "dir":
        target.mkdir()
        try:
            names = view.listdir(path)
        except OSError:  # a task's, that has just ended
            return 0
        return sum(copy(view, f"{path}/{name}", root) for name in names)
    if kind == "link":
        target.symlink_to(what)
        return 1
    return write(view, path, target, what) if kind == "file" else 0


def write(view, path, target, rights):
    """One file: 1, or 0 if it cannot be had."""
    data = b""
    if "r" in rights:
        try:
            data = view.read(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH, errno.EFBIG):
                return 0
            raise
    if len(data) > MOST_BYTES:
        return 0
    target.write_bytes(data)
    target.chmod(0o200 if rights == "w" else 0o644 if "w" in rights else 0o444)
    return 1
