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


@pytest.mark.interpreted
def test_a_reservation_keeps_only_what_it_says():
    """A rest that stayed beside it would keep the range, once it is given back, from being reserved again."""

    def mapped():
        lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
        return sum(int(end, 16) - int(start, 16) for start, end in (line.split()[0].split("-") for line in lines))

    nbytes, before = (1 << 30) + 5000, mapped()
    addresses = [shm.reserve(nbytes) for _ in range(64)]
    assert not any(address % (2 << 20) for address in addresses)
    assert 64 << 30 < mapped() - before < (64 << 30) + (16 << 20)
