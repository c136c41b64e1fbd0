"""The children of this process that have ended."""

import os
from collections.abc import Iterator


def ended_children() -> Iterator[tuple[int, int]]:
    """(pid, exit status; -n for signal n) of each child that has ended since the last call."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def wait_for_child() -> bool:
    """Wait until a child has ended, which `ended_children` then tells; False if there are none."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
