"""The few commands that recorded scenarios give to a shell."""

import contextlib
import errno
import fnmatch
import re
import shlex

# files that the recorded disk holds
FILES = {"/mnt/f64": 64 << 20, "/mnt/f256": 256 << 20, "/mnt/f600": 600 << 20}


def shell_mount(machine):
    """The disk's files can be seen."""
    for path, size in FILES.items():
        machine.create_file(path, size)


def shell_sync(machine):
    machine.sync()


def shell_rm(machine, path):
    machine.unlink(path)


def shell_swapon(machine, device):
    machine.swapon("1GiB", name=device)


def shell_mkdir(machine, path):
    machine.mkdir(path)


def shell_grep(machine, _pattern, path):
    """`grep . PATH` shows files with a star in their path; here they only have to be there."""
    if not matching(machine, path):
        raise OSError(errno.ENOENT, path)


def matching(machine, pattern):
    """Paths of files of /sys that a pattern with stars matches, a directory at a time."""
    found = [""]
    for part in pattern.strip("/").split("/"):
        found = [f"{path}/{name}" for path in found for name in entries(machine, path, part)]
    return found


def entries(machine, path, part):
    """The names in a directory that a part of a pattern matches."""
    if "*" not in part:
        return [part]
    try:
        return fnmatch.filter(machine.listdir(path), part)
    except OSError:
        return []


def shell_show(machine, *patterns):
    """`for f in PATTERNS; do [ -f $f ] && echo $f $(cat $f); done`"""
    for path in (path for pattern in patterns for path in matching(machine, pattern)):
        with contextlib.suppress(OSError):  # a directory
            machine.read(path)


def shell_echo(machine, text, path):
    machine.write(path, text)


SHOW_LOOP = re.compile(r"for f in ([^;]+); do \[ -f \$f \] && echo \$f \$\(cat \$f\); done")

# words that a shell command begins with: the function that does it, the words it gets
# fmt: off
SHELL = {("mount", "-t", "ext4", "-o", "noatime", "/dev/vda", "/mnt"): shell_mount, ("sync",): shell_sync, ("rm",): shell_rm,
         ("grep",): shell_grep, ("swapon",): shell_swapon, ("mkdir",): shell_mkdir, ("echo",): shell_echo}
# fmt: on


def shell_commands(line):
    """(function, words) of each command of a line; None if one is not known."""
    if loop := SHOW_LOOP.fullmatch(line):
        return [(shell_show, tuple(loop[1].split()))]
    commands = [shell_command(part) for part in line.split(";")]
    return None if None in commands else commands


def shell_command(line):
    """(function, words) of a command that is known, or None."""
    words = tuple(word for word in shlex.split(line) if word != ">")
    for known, function in SHELL.items():
        if words[: len(known)] == known:
            rest = words[len(known) :]
            if len(rest) == function.__code__.co_argcount - 1:
                return function, rest
    return None
