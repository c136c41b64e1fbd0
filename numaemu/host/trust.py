"""Where compiled code may be read from: it is machine code and pickles, so whoever can write it can do what this user can.

A place or a file is trusted if it belongs to this user or to root, and nobody else may write to it. A symbolic link in a
directory that others may write to, as the temporary one, is not followed.
"""

import os
import stat
import sys

ROOT = 0
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SAID = "NUMAEMU_SAID"  # in the environment, so that a process and those it starts say each thing once
_ALL = "*"  # there: another process says it all


def distrust(status):
    """Why a file or directory with that status is not to be trusted, or ""."""
    if status.st_uid not in (os.getuid(), ROOT):
        return f"it belongs to user {status.st_uid}"
    if status.st_mode & OTHERS_WRITE:
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def distrust_path(path):
    """The same of what lies at a path, or ""; also if nothing does."""
    try:
        link = os.lstat(path)
        if stat.S_ISLNK(link.st_mode) and os.stat(os.path.dirname(os.path.abspath(path))).st_mode & OTHERS_WRITE:
            return "it is a symbolic link in a directory that others may write to"
        return distrust(os.stat(path))
    except OSError:
        return ""


def say_unused(path, why):
    """One line on stderr about a place that is passed over."""
    said = os.environ.get(_SAID, "").split(os.pathsep)
    if not {str(path), _ALL} & set(said):
        os.environ[_SAID] = os.pathsep.join(filter(None, [*said, str(path)]))
        print(f"numaemu: compiled code is not kept in {path}: {why}", file=sys.stderr, flush=True)


def leave_it_to_others():
    """From now on this process says nothing of the kind: one that it has started does."""
    os.environ[_SAID] = _ALL


def usable(path):
    """True if compiled code may lie at a path; one line says why not."""
    if why := distrust_path(path):
        say_unused(path, why)
    return not why


def open_own(path):
    """A file of this user's that nobody else may write to, to append to; made if need be."""
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o644))
