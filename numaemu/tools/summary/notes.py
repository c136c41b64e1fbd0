"""Notes about the host: each is said once a week on each host, as what they say rarely changes.

An empty file for each note, in a directory of this user's, remembers by its time when the note was last said.
"""

import hashlib
import os
import socket
import time

from numaemu.compiler.foreman import user_directory

WEEK_S = 7 * 24 * 3600.0


def due(lines):
    """Those of the notes that this host's user has not seen for a week; they count as seen from now on."""
    return [line for line in lines if not seen(line)]


def seen(line):
    """True if a note was said within the last week; otherwise it is from now on. Where nothing can be kept it is always new."""
    name = hashlib.sha256(f"{socket.gethostname()}\n{line}".encode()).hexdigest()[:16]
    path = user_directory() / "notes" / name
    try:
        if 0 <= time.time() - path.stat().st_mtime < WEEK_S:
            return True
    except OSError:
        pass
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch()
        os.utime(path)
    except OSError:
        pass
    return False
