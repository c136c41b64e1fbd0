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
