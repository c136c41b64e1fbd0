"""Doorbells: the same semaphore for Python and for compiled code."""

import os
import pathlib

import posix_ipc
import pytest

from numaemu.host import shm
from numaemu.kernel.core.smp import ring


def names():
    """What this process has in /dev/shm."""
    return list(pathlib.Path("/dev/shm").glob(f"*numaemu.{os.getpid()}.*"))


@pytest.mark.interpreted
def test_compiled_code_rings_the_bell_that_python_waits_for():
    bell, other = shm.doorbell(), shm.doorbell()
    assert not names()
    with pytest.raises(posix_ipc.BusyError):
        bell.acquire(0)
    for _ in range(2):
        ring(7, bell.address, 0)
    bell.acquire(0)
    bell.acquire(0)
    for silent in (bell, other):
        with pytest.raises(posix_ipc.BusyError):
            silent.acquire(0)
